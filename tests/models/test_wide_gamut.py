"""Photos in wide colour spaces have the vectors of their copies in sRGB."""

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from pgimgsearch.models import lookup
from pgimgsearch.models.encoder import Placement
from pgimgsearch.models.load import load
from pgimgsearch.models.spec import Checkpoint
from pgimgsearch.sources.decode import decode
from tests.support.icc import SPACES, rgb_profile


@pytest.mark.parametrize("name", ["palette", "timm:mobilenetv2_100"])
def test_a_photo_in_any_space_has_the_vector_of_its_copy_in_srgb(name: str, data: Path) -> None:
    weights = str(data / "weights" / "mobilenetv2_100_backbone_timm.safetensors") if ":" in name else None
    encoder = load(lookup.resolve(name, Checkpoint(weights)), Placement("cpu", "fp32", "torch"))

    def vector(image: Image.Image) -> NDArray[np.float32]:
        (row,) = next(iter(encoder.embed([encoder.prepare(image)]).values()))
        return np.asarray(row / np.linalg.norm(row), np.float32)

    for path in sorted(data.glob("clothing/*/*.jpg"))[::67][:12]:
        photo = Image.open(path).convert("RGB")
        photo.thumbnail((500, 500))
        for space in SPACES:
            profile = rgb_profile(space)
            wide = ImageCms.profileToProfile(
                photo, ImageCms.createProfile("sRGB"), ImageCms.ImageCmsProfile(io.BytesIO(profile)), outputMode="RGB"
            )
            assert wide is not None
            out = io.BytesIO()
            wide.save(out, "PNG", icc_profile=profile)
            assert vector(photo) @ vector(decode(out.getvalue())[0]) > 0.99, (path, space)

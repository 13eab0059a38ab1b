"""Images of every kind, and text towers whose configurations are on the hub."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from pgimgsearch.sources.decode import decode, limit_pixels, register_formats
from tests.support.images import photo

KINDS = {
    "portrait": "clothing/dress/0546d34a-a369-4723-8d3a-74c0f51af26c.jpg",
    "landscape": "clothing/shoes/0bacb2c4-3d90-4835-b23e-aa7c2284d1bc.jpg",
    "rotated by EXIF": "odd/exif-orientation-examples__Landscape_6.jpg",
    "grey": "odd/pillow-tests__hopper_gray.jpg",
    "tiny": "odd/pillow-tests__200x32_p_bl_raw.tga",
    "transparent": "odd/pillow-tests__mode_grayscale_alpha.png",
}


@pytest.fixture(scope="session")
def real_pictures(data: Path) -> list[Image.Image]:
    """Real photos: of every shape, grey, CMYK, palette, transparent and rotated, as the pipeline decodes them."""
    limit_pixels(50_000_000)
    register_formats()
    files = [data / name for name in KINDS.values()]
    for mode in ("CMYK", "P"):
        files.append(next(path for path in sorted((data / "odd").iterdir()) if mode_of(path) == mode))
    return [decode(path.read_bytes())[0] for path in files]


def mode_of(path: Path) -> str | None:
    try:
        with Image.open(path) as image:
            image.load()
            return image.mode if min(image.size) > 20 else None
    except Exception:
        return None


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Image.Image]:
    """Drawn images, where there is no test data."""
    folder = tmp_path_factory.mktemp("pictures")
    sizes = [(320, 200), (200, 320), (224, 224), (37, 50), (641, 427)]
    return [Image.open(photo(folder / f"{n}.png", seed=n, size=size)).convert("RGB") for n, size in enumerate(sizes)]


@pytest.fixture
def text_towers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The configurations that open_clip asks the hub for, from their papers; tokenizers are not needed on paper."""
    import open_clip.hf_model
    import transformers as hf

    known = {
        "roberta-base": hf.RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1),
        "xlm-roberta-base": hf.XLMRobertaConfig(vocab_size=250002, max_position_embeddings=514, type_vocab_size=1),
        "xlm-roberta-large": hf.XLMRobertaConfig(
            vocab_size=250002, max_position_embeddings=514, type_vocab_size=1, hidden_size=1024, num_hidden_layers=24,
            num_attention_heads=16, intermediate_size=4096,
        ),
        "facebook/nllb-200-distilled-600M": hf.M2M100Config(
            vocab_size=256206, d_model=1024, encoder_layers=12, decoder_layers=12
        ),
        "facebook/nllb-200-distilled-1.3B": hf.M2M100Config(
            vocab_size=256206, d_model=1024, encoder_layers=24, decoder_layers=24, encoder_ffn_dim=8192,
            decoder_ffn_dim=8192,
        ),
    }  # fmt: skip

    class Known:
        @staticmethod
        def from_pretrained(name: str, **_: object) -> object:
            return known[name]

    monkeypatch.setattr(open_clip.hf_model, "AutoConfig", Known)
    return

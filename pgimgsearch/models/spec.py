"""A model as data: the row that a command prints, a test loops over and the database stores."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

Storage = Literal["halfvec", "vector", "bit"]
DEFAULT_BATCH_SIZE = 32


@dataclass(frozen=True, slots=True)
class Preprocess:
    """From an upright RGB image to a tensor.

    ``resize`` is ``shortest`` (the short side becomes ``resize_to``) or ``squash`` (both sides are scaled, the height
    to ``resize_to``); the centre is cropped to ``size``. ``mean`` and ``std`` are of values in 0..1. ``centre`` is how
    half a pixel of the crop's offset is dealt with: torchvision rounds it, transformers cuts it off. ``whole`` is
    whether pixels are whole grey levels again after they were resized; DINOv3's own processor resizes fractions.
    """

    size: tuple[int, int]
    resize: Literal["shortest", "squash"]
    resize_to: int
    interpolation: Literal["bilinear", "bicubic", "lanczos", "nearest"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    centre: Literal["round", "floor"] = "round"
    whole: bool = True

    def as_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return asdict(self)


def preprocess_from(stored: Mapping[str, Any]) -> Preprocess:
    """The inverse of ``as_dict``, also of what JSON made of it."""
    fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in stored.items()}
    return Preprocess(**fields)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model.

    ``checkpoint`` is the backend's own full name (architecture and tag, repository, or URL); ``weights`` is a local
    file or folder to load instead of a download. ``output`` is what is taken of a forward pass, ``dim`` its
    dimension (0 where only loading tells), and ``also`` the model's other outputs with theirs: ``NAME@OUTPUT``.
    ``size`` is the side of the input in pixels, ``parameters`` their number in millions, as the model's card says.
    ``preprocess`` is given where the checkpoint does not carry it. ``near`` is the
    similarity from which two images count as near-duplicates. ``proof`` is how the row is known to be
    right (docs/models.md).
    """

    name: str
    backend: str
    checkpoint: str
    output: str = "auto"
    dim: int = 0
    also: Mapping[str, int] = field(default_factory=dict)
    size: int = 0
    parameters: float = 0
    revision: str | None = None
    weights: str | None = None
    preprocess: Preprocess | None = None
    trust: bool = False
    storage: Storage = "halfvec"
    text: bool = False
    normalize: bool = True
    licence: str = "see the model's page"
    gated: bool = False
    alternative: str | None = None
    batch_size: int = DEFAULT_BATCH_SIZE
    near: float = 0.95
    good_for: str = ""
    proof: Literal["exact", "architecture", "none"] = "none"

    def with_output(self, output: str) -> "ModelSpec":
        """The same network, another output; text vectors meet the main output alone."""
        return replace(
            self, name=f"{self.name}@{output}", output=output, dim=self.also.get(output, 0), text=False, also={}
        )


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What the user says of a model's weights beyond its name; see ``lookup.resolve``.

    ``weights`` is a local file or folder, ``revision`` a commit or tag of the hub's repository, ``preprocess`` a name
    of ``catalog.PREPROCESS``, ``trust`` the leave to run TorchScript.
    """

    weights: str | None = None
    revision: str | None = None
    preprocess: str | None = None
    trust: bool = False

"""A model as data: the row that a command prints, a test loops over and the database stores."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Storage = Literal["halfvec", "vector", "bit"]
DEFAULT_BATCH_SIZE = 32


@dataclass(frozen=True, slots=True)
class Preprocess:
    """From an upright RGB picture to a tensor.

    ``resize`` is ``shortest`` (the short side becomes ``resize_to``, the centre is cropped to ``size``) or
    ``squash`` (both sides are scaled to ``size``). ``mean`` and ``std`` are of values in 0..1. ``centre`` is how half a
    pixel of the crop's offset is dealt with: torchvision rounds it, transformers cuts it off.
    """

    size: tuple[int, int]
    resize: Literal["shortest", "squash"]
    resize_to: int
    interpolation: Literal["bilinear", "bicubic", "lanczos", "nearest"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    centre: Literal["round", "floor"] = "round"

    def as_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model.

    ``checkpoint`` is the backend's own full name (architecture and tag, or repository); ``weights`` is a local
    file or folder to load instead of a download; ``dim`` is 0 where only loading tells. ``near`` is the
    similarity from which two pictures count as near-duplicates.
    """

    name: str
    backend: str
    checkpoint: str
    output: str = "pool"
    dim: int = 0
    revision: str | None = None
    weights: str | None = None
    storage: Storage = "halfvec"
    text: bool = False
    normalize: bool = True
    licence: str = "see the model's page"
    gated: bool = False
    alternative: str | None = None
    batch_size: int = DEFAULT_BATCH_SIZE
    near: float = 0.95
    good_for: str = ""

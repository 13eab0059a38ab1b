"""Backends, one module each: nothing outside of this folder names one.

To add one, add a module here with a record ``BACKEND`` and ``load(spec, placement)``; with weights also
``origin(spec)``, where they are downloaded from, and perhaps ``companions(spec)``, other repositories that it needs.
``reference(spec)`` is the library's own documented call, where there is one to compare with. Such a module imports its
library inside of functions, so that records can be read at once.
"""

import pkgutil
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType

REBUILT = "its published arithmetic is rebuilt in the tests"


@dataclass(frozen=True, slots=True)
class Backend:
    """One backend.

    ``package`` is what it imports; where it is no dependency, the extra ``torch`` installs it. ``prefix`` is how models
    outside of the catalog are named (``timm:NAME``); a path that ends with ``file_suffix`` is a local file.
    ``needs_preprocessing`` is whether checkpoints do not carry it; ``made_for_copies`` whether a model tells copies
    from look-alikes, so that the first one answers for the alias ``duplicates``. ``no_reference`` says why there is
    no ``reference``.
    """

    package: str
    prefix: str | None = None
    file_suffix: str | None = None
    on_torch: bool = False
    has_weights: bool = True
    needs_preprocessing: bool = False
    made_for_copies: bool = False
    no_reference: str = "no library has another implementation"


@cache
def backends() -> dict[str, Backend]:
    """Every backend by its name, which is that of its file."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: backend_module(name).BACKEND for name in names}


def backend_module(name: str) -> ModuleType:
    """The module of a backend."""
    return import_module(f"{__name__}.{name}")


def prefixes() -> dict[str, str]:
    """Prefix -> name of the backend."""
    return {backend.prefix: name for name, backend in backends().items() if backend.prefix}

"""Finding backends and radios without a list of them."""

from __future__ import annotations

import importlib
import pkgutil

from ..errors import RadioError
from .radio import Radio, RadioInfo


def backends() -> dict[str, type[Radio]]:
    """All backends by kind: every Radio subclass defined in a module of this folder."""
    package = __package__ or ""
    folder = importlib.import_module(package).__path__
    for module in pkgutil.iter_modules(folder):
        importlib.import_module(f"{package}.{module.name}")
    return {kind.kind: kind for kind in sorted(Radio.__subclasses__(), key=lambda kind: kind.kind)}  # type: ignore[type-abstract]


def backend(kind: str) -> type[Radio]:
    """One backend by its name.

    Raises:
        RadioError: there is none of this name.
    """
    known = backends()
    if kind not in known:
        raise RadioError(f"radio {kind!r} is not known; known are {', '.join(known)}")
    return known[kind]


def find_radios() -> list[RadioInfo]:
    """Everything that could be opened now, over all backends."""
    return [info for kind in backends().values() for info in kind.find()]

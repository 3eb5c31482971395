"""Finding backends and radios without a list of them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from ..errors import RadioError
from .radio import Radio, RadioInfo


def backends() -> dict[str, type[Radio]]:
    """All backends by kind: every complete Radio subclass defined in a module of this folder.

    Raises:
        ValueError: two backends have the same kind.
    """
    package = importlib.import_module(__package__ or "")
    found: dict[str, type[Radio]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for _, item in inspect.getmembers(module, inspect.isclass):
            if not issubclass(item, Radio) or inspect.isabstract(item) or item.__module__ != module.__name__:
                continue
            if item.kind in found:
                raise ValueError(
                    f"{item.__module__} and {found[item.kind].__module__} both define a radio of kind "
                    f"{item.kind!r}; give one of them another kind"
                )
            found[item.kind] = item
    return dict(sorted(found.items()))


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

"""Activity detectors by name.

Modules of this package whose name starts without underscore are searched for subclasses of `Detector`: a new
detector is one new module here and no change elsewhere. Trained weights are detectors by the name of their folder.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from functools import cache
from typing import Any

from numpy.typing import ArrayLike

from ....errors import ModelError, ScenarioError
from . import learned
from .base import Detection, Detector, Flag

LEARNED = learned.PREFIX
"""What the names of all shipped weights start with."""

__all__ = ["LEARNED", "Detection", "Detector", "Flag", "available", "classical", "kind", "make", "suiting"]


def available() -> dict[str, type[Detector]]:
    """Every detector's class by its name: the classical ones, then those of the shipped weights."""
    return {**_discovered(), **learned.shipped()}


def classical() -> dict[str, type[Detector]]:
    """Every detector's class by its name, without those of trained weights."""
    return dict(_discovered())


def suiting(preambles: ArrayLike, lengths: Iterable[int]) -> list[str]:
    """Names among `available()` of the detectors that take these preambles and lengths.

    Args:
        preambles: complex64, (max_length, user): the pool.
        lengths: Preamble symbols that will be sent.
    """
    names = []
    for name, chosen in available().items():
        if issubclass(chosen, learned.LearnedDetector):
            try:
                chosen.check_pool(preambles)
                chosen.refuse_lengths(lengths)
            except ModelError:
                continue
        names.append(name)
    return names


def kind(name: str) -> type[Detector]:
    """The class of a detector.

    Args:
        name: One of `available()`, or the path of a folder of weights.

    Raises:
        ScenarioError: there is no such detector.
        ModelError: the folder holds no weights of an activity detector.
    """
    known = available()
    if name in known:
        return known[name]
    if learned.names_a_path(name):
        return learned.from_path(name)
    raise ScenarioError(
        f"detector {name!r} is unknown; choose one of: {', '.join(known)}, or give the path of a folder of weights"
    )


def make(name: str, preambles: ArrayLike, activity: float, **options: Any) -> Detector:
    """Build a detector from its name.

    Args:
        name: One of `available()`, or the path of a folder of weights.
        preambles: complex64, (max_length, user): the pool.
        activity: Prior probability in (0, 1) that a user sends.
        **options: Options of that detector, see its class.

    Raises:
        ScenarioError: if the name or an option is unknown, or a value is out of range.
        ModelError: weights are damaged or foreign, or do not fit the preambles.
    """
    chosen = kind(name)
    allowed = set(inspect.signature(chosen).parameters) - {"preambles", "activity"}
    unknown = sorted(set(options) - allowed)
    if unknown:
        raise ScenarioError(
            f"detector {name!r} has no option {', '.join(unknown)}; it knows: {', '.join(sorted(allowed))}"
        )
    return chosen(preambles, activity, **options)


@cache
def _discovered() -> dict[str, type[Detector]]:
    found: dict[str, type[Detector]] = {}
    for module_info in pkgutil.iter_modules(__path__):
        if module_info.name.startswith("_") or module_info.name == "base":
            continue
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for item in vars(module).values():
            if not (inspect.isclass(item) and issubclass(item, Detector)):
                continue
            if item.__module__ != module.__name__ or inspect.isabstract(item) or "name" not in vars(item):
                continue
            if item.name in found:
                raise RuntimeError(f"two detectors are named {item.name!r}; rename the one in {module.__name__}")
            found[item.name] = item
    return dict(sorted(found.items()))

"""Benchmarks: what this software claims, measured, with peers beside it in the same run.

One module of this folder per area; one more area is one more module that defines `AREA`, its name, and
`measurements(quick)`, a list of `Measurement`. Modules without `AREA` are helpers.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from types import ModuleType

from ...errors import ScenarioError
from .entry import Entry, Measurement, processor_ticks

__all__ = ["Entry", "Measurement", "areas", "entry_names", "run_area"]


def areas() -> dict[str, ModuleType]:
    """The modules of all areas, by the area's name."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        if not info.name.startswith("_"):
            module = importlib.import_module(f"{__name__}.{info.name}")
            if hasattr(module, "AREA"):
                found[module.AREA] = module
    return dict(sorted(found.items()))


def entry_names(area: str, quick: bool = False) -> list[str]:
    """Names of the entries that an area yields, in order.

    Raises:
        ScenarioError: there is no such area.
    """
    return [name for measurement in _measurements(area, quick) for name in measurement.names]


def run_area(
    area: str,
    quick: bool = False,
    only: list[str] | None = None,
    on_progress: Callable[[str, float], None] | None = None,
) -> Iterator[Entry]:
    """Measure one area.

    Args:
        area: one of `areas()`.
        quick: within about a minute, with wider intervals.
        only: parts of names; entries whose name contains none of them are left out, and not measured unless
            they come with one that is asked for. None or empty: all.
        on_progress: called with the entry being measured and the share of the whole that is done.

    Returns:
        An iterator that yields each entry as it is ready.

    Raises:
        ScenarioError: there is no such area, or `only` fits no entry.
    """
    wanted = _measurements(area, quick)
    if only:
        names = [name for measurement in wanted for name in measurement.names]
        for part in only:
            if not any(part in name for name in names):
                # Whole names would fill pages: hundreds are made of a few dozen words.
                words = dict.fromkeys(word for name in names for word in name.split("/"))
                raise ScenarioError(
                    f"{part!r} is in no entry of benchmark {area!r}, such as {names[0]}; they are made of: "
                    f"{', '.join(words)}"
                )
        wanted = [m for m in wanted if any(_fits(name, only) for name in m.names)]
    return _run(wanted, only, on_progress)


def _measurements(area: str, quick: bool) -> list[Measurement]:
    known = areas()
    if area not in known:
        raise ScenarioError(f"benchmark {area!r} is unknown; choose one of: {', '.join(known)}")
    return list(known[area].measurements(quick))


def _fits(name: str, only: list[str] | None) -> bool:
    return not only or any(part in name for part in only)


def _run(
    wanted: list[Measurement], only: list[str] | None, on_progress: Callable[[str, float], None] | None
) -> Iterator[Entry]:
    total = sum(measurement.weight for measurement in wanted)
    done = 0.0
    with ExitStack() as stack:
        for measurement in wanted:
            if measurement.background is not None:
                stack.enter_context(measurement.background())
        for measurement in wanted:
            tell = _share_of_all(measurement, done, total, on_progress)
            tell(0.0)
            before = processor_ticks()
            for entry in measurement.run(tell):
                if _fits(entry.name, only):
                    yield replace(entry, settings={**entry.settings, "stolen_share": _stolen_since(before)})
            done += measurement.weight
            tell(1.0)


def _stolen_since(before: tuple[int, int]) -> float:
    """Share of processor time that a virtual machine's host gave to others: what real-time figures suffer from."""
    total, stolen = (now - then for now, then in zip(processor_ticks(), before, strict=True))
    return round(stolen / total, 4) if total else 0.0


def _share_of_all(
    measurement: Measurement, done: float, total: float, on_progress: Callable[[str, float], None] | None
) -> Callable[[float], None]:
    def tell(share: float) -> None:
        if on_progress is not None:
            on_progress(measurement.names[0], min((done + share * measurement.weight) / total, 1.0))

    return tell

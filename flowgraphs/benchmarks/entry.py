"""What a benchmark area consists of: measurements that yield entries, one figure each."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

OnShare = Callable[[float], None]
"""Called with the share of a measurement that is done, 0 to 1."""


@dataclass(frozen=True)
class Entry:
    """One measured figure.

    Attributes:
        name: path-like, e.g. `symbol-error/cd/L8`.
        value: the figure.
        ci95: its 95 % confidence interval; None where repetition has no meaning or is too little.
        unit: of value and interval; `1` for shares and probabilities.
        reference: target, or a peer's figure.
        settings: what it takes to repeat the figure, counts and seeds included, and what else was seen.
    """

    name: str
    value: float
    ci95: tuple[float, float] | None
    unit: str
    reference: float | str
    settings: dict[str, Any]

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"{self.name}: value={self.value} is no figure; a finite number is needed")

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; an interval without finite bounds is none."""
        bounded = self.ci95 is not None and all(math.isfinite(bound) for bound in self.ci95)
        return {
            "name": self.name,
            "value": float(self.value),
            "ci95": [float(bound) for bound in self.ci95] if bounded and self.ci95 else None,
            "unit": self.unit,
            "reference": self.reference,
            "settings": _plain(self.settings),
        }


@dataclass(frozen=True)
class Measurement:
    """A piece of work that yields one or more entries.

    Attributes:
        names: of the entries that it yields, in order.
        run: does it; told how to report its share done.
        weight: how long it takes beside others, for progress.
        background: context in which all measurements run; for what takes long and does not mind company.
    """

    names: tuple[str, ...]
    run: Callable[[OnShare], Iterator[Entry]]
    weight: float = 1.0
    background: Callable[[], AbstractContextManager[None]] | None = None


def machine() -> dict[str, Any]:
    """What a time or a rate depends on: processor, cores this process may use, versions."""
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu": _cpu_name(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": metadata.version("numba"),
    }


def processor_ticks() -> tuple[int, int]:
    """Ticks of all cores since this machine began, and how many of them a host gave to others; zeros where not told."""
    try:
        with open("/proc/stat", encoding="ascii") as lines:
            ticks = [int(word) for word in next(lines).split()[1:9]]
    except (OSError, ValueError, StopIteration):
        return 0, 0
    return sum(ticks), ticks[7] if len(ticks) > 7 else 0


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    # JSON knows neither infinity nor not-a-number.
    return None if isinstance(value, float) and not math.isfinite(value) else value

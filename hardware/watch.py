"""Noticing that a radio gives no more samples: a device that was unplugged tells nothing by itself."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..errors import RadioError
from .radio import Radio

STALL_S = 1.5
START_S = 5.0
_STEP_S = 0.2


class StallWatch:
    """Looks whether the samples of a radio go on. Radios that wait, or tell by themselves, are not watched.

    Time in which this process did not run, because the machine slept or was busy, does not count.

    Args:
        radio: whose samples.
        progress: tells how many have come so far.
        clock: seconds, monotonic.
    """

    def __init__(self, radio: Radio, progress: Callable[[], int], clock: Callable[[], float] = time.monotonic) -> None:
        self._is_watched = not (radio.waits or radio.tells_when_gone)
        self._kind = radio.kind
        self._progress = progress
        self._clock = clock
        self._seen = 0
        self._idle_s = 0.0
        self._looked: float | None = None

    def failure(self) -> RadioError | None:
        """What to report, or None. To be asked many times a second while the flowgraph runs."""
        if not self._is_watched:
            return None
        now = self._clock()
        step_s = 0.0 if self._looked is None else min(now - self._looked, _STEP_S)
        self._looked = now
        come = self._progress()
        if come != self._seen:
            self._seen, self._idle_s = come, 0.0
            return None
        self._idle_s += step_s
        limit_s = STALL_S if self._seen else START_S
        if self._idle_s < limit_s:
            return None
        what = f"after {self._seen} samples no more came" if self._seen else "no samples came"
        return RadioError(
            f"the {self._kind} radio vanished: {what} for {limit_s:g} s; see its power, its cable or network, and "
            "`semair doctor --radio`"
        )

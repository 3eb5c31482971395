"""Whether a server goes on, and how much memory it takes, whatever the machine does meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE_S = 5.0
"""A server that gives its client nothing for longer has stopped."""
_STEP_S = 0.2


class Pulse:
    """Longest time in which a count did not grow, once it had begun to. Time in which nobody looked, because the
    machine was busy with something else, counts little.

    Args:
        count: grows.
        clock: seconds, monotonic.
    """

    def __init__(self, count: Callable[[], int], clock: Callable[[], float] = time.monotonic) -> None:
        self._count = count
        self._clock = clock
        self._first = self._seen = count()
        self._looked = clock()
        self._idle_s = 0.0
        self.longest_s = 0.0

    def look(self) -> None:
        """Look; to be called some fifty times a second."""
        now, come = self._clock(), self._count()
        step_s, self._looked = min(now - self._looked, _STEP_S), now
        if come != self._seen:
            self._seen, self._idle_s = come, 0.0
        elif come != self._first:
            self._idle_s += step_s
            self.longest_s = max(self.longest_s, self._idle_s)


def resident_bytes() -> int:
    """Memory of this process that lies in the machine's; 0 where it is not told."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0

"""The time that all virtual radios share: the machine's own, or one that moves as fast as samples are taken."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod


class Clock(ABC):
    """Seconds since the air began. Every radio counts its samples from the same beginning."""

    @abstractmethod
    def now_s(self) -> float:
        """The present."""

    @abstractmethod
    def reach(self, time_s: float, radio: str = "", drives: bool = False, timeout_s: float = 0.1) -> bool:
        """Let time come, as a stream does that needs samples up to `time_s`.

        Args:
            time_s: the time that is needed.
            radio: who needs it.
            drives: the stream may make time pass, where nothing else does.
            timeout_s: return after this long in any case, so that the caller can look whether it is still wanted.

        Returns:
            Whether that time has come.
        """


class RealTimeClock(Clock):
    """The machine's monotonic clock, or a slower one for machines that cannot compute the air in time.

    Args:
        speed: seconds that pass here per second of the machine.
    """

    def __init__(self, speed: float = 1.0) -> None:
        if not speed > 0:
            raise ValueError(f"speed={speed} must be positive")
        self._start_s = time.monotonic()
        self._speed = speed

    def now_s(self) -> float:
        return (time.monotonic() - self._start_s) * self._speed

    def reach(self, time_s: float, radio: str = "", drives: bool = False, timeout_s: float = 0.1) -> bool:
        ahead_s = (time_s - self.now_s()) / self._speed
        if ahead_s > 0:
            time.sleep(min(ahead_s, timeout_s))
        return ahead_s <= timeout_s


class SteppedClock(Clock):
    """Time that stands still until the master takes or gives samples: for tests that depend on no machine's speed.

    The rule: time passes as the streams of one radio, the master, make it pass; all others wait for it. Which of
    the master's streams does is said by it, see `drives`. Without a master every radio makes time pass.

    Args:
        master: name of the radio that makes time pass.
    """

    def __init__(self, master: str | None = None) -> None:
        self.master = master
        self._now_s = 0.0
        self._moved = threading.Condition()

    def now_s(self) -> float:
        return self._now_s

    def reach(self, time_s: float, radio: str = "", drives: bool = False, timeout_s: float = 0.1) -> bool:
        with self._moved:
            if self._now_s < time_s and drives and self.master in (None, radio):
                self._now_s = time_s
                self._moved.notify_all()
                return True
            return self._moved.wait_for(lambda: self._now_s >= time_s, timeout_s)

"""Faults that a virtual device shows on request: what it does, where, and how many times."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Literal

Action = Literal["errno", "end", "cut", "truncate", "garbage", "hang", "lose", "lose-silently"]


@dataclass
class Fault:
    """One thing that goes wrong.

    Attributes:
        where: command at which it does, in lower case: open, readbuf, writebuf, read, write, print.
        action: "errno" refuses with `number`; "end" ends a transfer early; "cut" closes the connection within an
            answer; "truncate" leaves the second half of an answer out; "garbage" answers with bytes that mean
            nothing; "hang" never answers; "lose" loses received buffers, "lose-silently" does so without the flag.
        subject: only where this is part of the device's or the attribute's name.
        number: errno, or how many buffers are lost.
        after: let so many pass first.
        times: how often; negative: for ever.
    """

    where: str
    action: Action
    subject: str = ""
    number: int = 5
    after: int = 0
    times: int = 1


class Faults:
    """Faults that wait for their turn. May be used from any thread."""

    def __init__(self) -> None:
        self._waiting: list[Fault] = []
        self._lock = threading.Lock()
        self.shown: list[Fault] = []
        """Those that happened, in order; one entry each time."""

    def add(self, fault: Fault) -> None:
        """Have something go wrong from now on."""
        with self._lock:
            self._waiting.append(fault)

    def clear(self) -> None:
        """Have nothing go wrong any more."""
        with self._lock:
            self._waiting.clear()

    def take(self, where: str, subject: str) -> Fault | None:
        """The fault to show here and now, if any."""
        if not self._waiting:
            return None
        with self._lock:
            for fault in self._waiting:
                if fault.where == where and fault.subject in subject:
                    if fault.after > 0:
                        fault.after -= 1
                        continue
                    fault.times -= 1
                    if fault.times == 0:
                        self._waiting.remove(fault)
                    self.shown.append(fault)
                    return fault
        return None

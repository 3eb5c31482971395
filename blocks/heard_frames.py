"""Which frames' bursts are known, for blocks that get samples as a stream and users' bursts as messages."""

from __future__ import annotations

import time
from typing import Any

from .runtime import FRAME, input_tags, pmt


class HeardFrames:
    """Holds a stream back where it would outrun the messages that belong to it.

    A block that reached the end of its stream hears no more messages, so whoever needs both must not take samples of
    a frame before the frame's message is there.
    """

    def __init__(self) -> None:
        self._frames: set[int] = set()

    def add(self, frame: int) -> None:
        """A frame's bursts are known now."""
        self._frames.add(frame)

    def known(self, block: Any, n: int) -> int:
        """How many of a block's next n samples lie before the first frame whose bursts are not known."""
        tagged = [tag for tag in input_tags(block, 0, n) if pmt.equal(tag.key, FRAME)] if n else []
        frames = [pmt.to_long(tag.value) for tag in tagged]
        for tag, frame in zip(tagged, frames, strict=True):
            if frame not in self._frames:
                return int(tag.offset - block.nitems_read(0))
        if frames:
            self._frames = {frame for frame in self._frames if frame >= frames[0]}
        return n

    @staticmethod
    def wait() -> None:
        """Hand the processor to the thread through which the users' answer is on its way."""
        time.sleep(2e-4)

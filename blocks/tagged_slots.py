"""Cutting slots out of streams in which frames, losses and the end are tagged, for blocks that receive slots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .messages import fields_of
from .runtime import FRAME, RX_END, RX_TIME, input_tags, pmt, time_ticks
from .waveforms.frame_sync import FrameStart, SlotCutter


class TaggedSlots:
    """Cuts the same part out of every frame that a frame synchroniser tagged.

    Args:
        cutter: of the part.
        sample_rate_hz: of the streams.
    """

    def __init__(self, cutter: SlotCutter, sample_rate_hz: float) -> None:
        self.cutter = cutter
        self._rate_hz = sample_rate_hz
        self._time_known = False
        self._clock = (0, 0)
        self._details: dict[int, Any] = {}

    def take(
        self, block: Any, input_items: Sequence[np.ndarray], begin: int, n: int
    ) -> tuple[list[tuple[FrameStart, np.ndarray, Any]], list[dict[str, Any]]]:
        """Take the next n samples of a block's inputs, from `begin` on.

        Returns:
            Parts that became complete: frame, complex64 (antennas, samples), and the synchroniser's dictionary; and
            {frame, sample_time, reason} of frames in whose part samples are missing.
        """
        first = block.nitems_read(0) + begin
        samples = [port[begin : begin + n] for port in input_items]
        parts: list[tuple[FrameStart, np.ndarray]] = []
        dropped: list[dict[str, Any]] = []
        done = 0
        for tag in input_tags(block, 0, n, begin):
            if pmt.equal(tag.key, RX_TIME) or pmt.equal(tag.key, RX_END):
                if pmt.equal(tag.key, RX_END) or self._breaks(tag):
                    place = tag.offset - first
                    parts += self.cutter.cut([row[done:place] for row in samples])
                    done = place
                    dropped += [self._drop(frame) for frame in self.cutter.interrupt()]
            elif pmt.equal(tag.key, FRAME):
                self._announce(tag)
        parts += self.cutter.cut([row[done:] for row in samples])
        return [(frame, part, self._details.pop(frame.start)) for frame, part in parts], dropped

    def _announce(self, tag: Any) -> None:
        if not pmt.is_dict(tag.value):
            raise ValueError(
                f"the `frame` tag at sample {tag.offset} is {tag.value} and not the dictionary of a frame "
                "synchroniser: put one before this block"
            )
        told = fields_of(tag.value)
        self.cutter.announce(
            FrameStart(
                tag.offset,
                told["fraction"],
                told["cfo_hz"],
                told["metric"],
                told["snr_db"],
                told["frame"],
                told["counted"],
                np.empty(0, np.complex64),
            )
        )
        self._details[tag.offset] = tag.value

    def _breaks(self, tag: Any) -> bool:
        """Whether a time tag does not continue the time before it."""
        ticks = time_ticks(tag.value, self._rate_hz)
        breaks = self._time_known and ticks - self._clock[1] != tag.offset - self._clock[0]
        self._time_known = True
        self._clock = (tag.offset, ticks)
        return breaks

    def _drop(self, frame: FrameStart) -> dict[str, Any]:
        details = fields_of(self._details.pop(frame.start))
        reason = "samples were lost inside the slot"
        return {"frame": frame.frame_number, "sample_time": details["sample_time"], "reason": reason}

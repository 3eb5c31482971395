"""GNU Radio block: turns access slots into snapshots."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from .messages import extended, fields_of, pack
from .runtime import FRAME, RX_END, RX_TIME, Failsafe, gr, guarded, input_tags, pmt, time_ticks
from .waveforms.frame import FrameFormat
from .waveforms.frame_sync import AccessSlot, AccessSlotCutter, FrameStart

SLOT = pmt.intern("slot")
_CHUNK_SAMPLES = 4096
# So that a burst of slots from one large chunk need not wait for the detector.
_BUFFERED_SLOTS = 64


class AccessSlotReceiver(Failsafe, gr.basic_block):
    """Cuts the access slot of every tagged frame out of the streams and demodulates it.

    Streams: n_antennas complex in; out one vector per slot, complex, max_preamble_length * n_antennas *
    n_groups items: the snapshots (Lp, antennas * n_groups) row after row, then zeros.

    Tags read: `frame` (of the frame synchroniser), `rx_time`, `rx_end`. Tags written: `slot` on each vector, the
    frame's dictionary with `length` and `noise_power`.

    A frame in whose slots samples are missing is not put out; it is counted in `dropped` and told on the message
    port `dropped` as {frame, sample_time, reason}.

    Args:
        frame_format: numerology and slots.
        n_antennas: receive antennas.
        preamble_lengths: length sent in frame f is preamble_lengths[f % len(preamble_lengths)].
    """

    def __init__(self, frame_format: FrameFormat, n_antennas: int, preamble_lengths: Sequence[int]) -> None:
        self.vector_items = frame_format.max_preamble_length * n_antennas * frame_format.n_groups
        gr.basic_block.__init__(
            self,
            name="semair access slot receiver",
            in_sig=[np.complex64] * n_antennas,
            out_sig=[(np.complex64, self.vector_items)],
        )
        self.frame_format = frame_format
        self.cutter = AccessSlotCutter(frame_format, n_antennas, preamble_lengths)
        self.dropped = 0
        self._time_known = False
        self._clock = (0, 0)
        self._details: dict[int, Any] = {}
        self._ready: deque[AccessSlot] = deque()
        self.set_tag_propagation_policy(gr.TPP_DONT)
        # GNU Radio writes a line about the buffer to standard output, where commands write JSON.
        self.set_log_level("warn")
        self.set_min_output_buffer(_BUFFERED_SLOTS)
        self.message_port_register_out(pmt.intern("dropped"))

    def forecast(self, noutput_items: int, ninputs: int) -> list[int]:
        """A chunk of samples per call keeps the calls few."""
        return [_CHUNK_SAMPLES] * ninputs

    @guarded
    def general_work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        """Collect samples, and put out the slots that are complete."""
        out = output_items[0]
        available = min(len(port) for port in input_items)
        taken = 0
        # No more than the output has room for: what waits inside when the stream ends would be lost.
        while taken < available and len(self._ready) < len(out):
            room = len(out) - len(self._ready)
            n = min(room * self.frame_format.frame_samples, available - taken)
            self._take(input_items, taken, n)
            taken += n
        for port in range(len(input_items)):
            self.consume(port, taken)
        written = 0
        while self._ready and written < len(out):
            slot = self._ready.popleft()
            out[written] = 0
            out[written, : slot.snapshots.size] = slot.snapshots.reshape(-1)
            fields = {
                "length": len(slot.snapshots),
                "noise_power": slot.noise_power,
                "cut_ns": time.monotonic_ns(),
            }
            details = extended(self._details.pop(slot.frame.start), fields)
            self.add_item_tag(0, self.nitems_written(0) + written, SLOT, details)
            written += 1
        return written

    def _take(self, input_items: Sequence[np.ndarray], begin: int, n: int) -> None:
        first = self.nitems_read(0) + begin
        samples = [port[begin : begin + n] for port in input_items]
        done = 0
        for tag in input_tags(self, 0, n, begin):
            if pmt.equal(tag.key, RX_TIME) or pmt.equal(tag.key, RX_END):
                place = tag.offset - first
                if pmt.equal(tag.key, RX_END) or self._breaks(tag):
                    self._ready.extend(self.cutter.process([row[done:place] for row in samples]))
                    done = place
                    for frame in self.cutter.interrupt():
                        self._drop(frame)
            elif pmt.equal(tag.key, FRAME):
                self._announce(tag)
        self._ready.extend(self.cutter.process([row[done:] for row in samples]))

    def _announce(self, tag: gr.tag_t) -> None:
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

    def _breaks(self, tag: gr.tag_t) -> bool:
        """Whether a time tag does not continue the time before it."""
        ticks = time_ticks(tag.value, self.frame_format.sample_rate_hz)
        breaks = self._time_known and ticks - self._clock[1] != tag.offset - self._clock[0]
        self._time_known = True
        self._clock = (tag.offset, ticks)
        return breaks

    def _drop(self, frame: FrameStart) -> None:
        self.dropped += 1
        details = self._details.pop(frame.start)
        fields = {
            "frame": frame.frame_number,
            "sample_time": fields_of(details)["sample_time"],
            "reason": "samples were lost inside the slot",
        }
        self.message_port_pub(pmt.intern("dropped"), pack(fields))

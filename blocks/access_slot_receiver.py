"""GNU Radio block: turns access slots into snapshots."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from .messages import extended, pack
from .runtime import SLOT, Failsafe, gr, guarded, pmt
from .tagged_slots import TaggedSlots
from .waveforms.frame import FrameFormat
from .waveforms.frame_sync import AccessSlot, AccessSlotCutter

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
        self._slots = TaggedSlots(self.cutter, frame_format.sample_rate_hz)
        self._ready: deque[tuple[AccessSlot, Any]] = deque()
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
            slot, told = self._ready.popleft()
            out[written] = 0
            out[written, : slot.snapshots.size] = slot.snapshots.reshape(-1)
            fields = {
                "length": len(slot.snapshots),
                "noise_power": slot.noise_power,
                "cut_ns": time.monotonic_ns(),
            }
            details = extended(told, fields)
            self.add_item_tag(0, self.nitems_written(0) + written, SLOT, details)
            written += 1
        return written

    def _take(self, input_items: Sequence[np.ndarray], begin: int, n: int) -> None:
        slots, dropped = self._slots.take(self, input_items, begin, n)
        self._ready.extend((self.cutter.demodulate(frame, window), details) for frame, window, details in slots)
        for fields in dropped:
            self.dropped += 1
            self.message_port_pub(pmt.intern("dropped"), pack(fields))

"""GNU Radio block: turns feedback slots into the users' codes."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np

from .messages import extended, pack
from .runtime import SLOT, Failsafe, gr, guarded, pmt
from .tagged_slots import TaggedSlots
from .waveforms.csi_frame import CsiFrame
from .waveforms.feedback import Feedback, receive_feedback
from .waveforms.frame_sync import SlotCutter

_CHUNK_SAMPLES = 4096
_BUFFERED_SLOTS = 64


class FeedbackReceiver(Failsafe, gr.basic_block):
    """Cuts the feedback slot of every tagged frame out of the streams, and combines the antennas for each user.

    Streams: n_antennas complex in; out one vector per slot, complex, users * feedback_length items: the codes as they
    were sent, user after user, zero for users that were not received.

    Tags read: `frame` (of the frame synchroniser), `rx_time`, `rx_end`. Tags written: `slot` on each vector, the
    frame's dictionary with {length, noise_power, word_snr_db (float64, one per user), flags (list, one sum of
    `PartFlag` per user), receive_s, cut_ns}.

    A frame in whose slot samples are missing is not put out; it is counted in `dropped` and told on the message port
    `dropped` as {frame, sample_time, reason}.

    Args:
        frame: slots and antennas.
        full_scale: of the converter, for samples at its end; None where there is none.
    """

    def __init__(self, frame: CsiFrame, full_scale: float | None = None) -> None:
        self.vector_items = frame.slots.n_users * frame.slots.feedback_length
        gr.basic_block.__init__(
            self,
            name="semair feedback receiver",
            in_sig=[np.complex64] * frame.n_antennas,
            out_sig=[(np.complex64, self.vector_items)],
        )
        self.frame = frame
        self.full_scale = full_scale
        self.dropped = 0
        self.received = 0
        span = frame.used_samples - frame.feedback_start
        self._slots = TaggedSlots(
            SlotCutter(frame.n_antennas, frame.feedback_start, span), frame.frame_format.sample_rate_hz
        )
        self._ready: deque[tuple[Feedback, Any, float, int]] = deque()
        self.set_tag_propagation_policy(gr.TPP_DONT)
        # GNU Radio writes a line about the buffer to standard output, where commands write JSON.
        self.set_log_level("warn")
        self.set_min_output_buffer(_BUFFERED_SLOTS)
        self.message_port_register_out(pmt.intern("dropped"))

    def warm_up(self) -> None:
        """Compile what is compiled at first use."""
        span = self.frame.used_samples - self.frame.feedback_start
        receive_feedback(np.ones((self.frame.n_antennas, span), np.complex64), self.frame)

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
            n = min(room * self.frame.frame_format.frame_samples, available - taken)
            self._take(input_items, taken, n)
            taken += n
        for port in range(len(input_items)):
            self.consume(port, taken)
        written = 0
        while self._ready and written < len(out):
            feedback, details, took, cut_ns = self._ready.popleft()
            out[written] = feedback.words.reshape(-1)
            fields = {
                "length": self.frame.slots.feedback_length,
                "noise_power": feedback.noise_power,
                "word_snr_db": feedback.snr_db,
                "flags": [int(flag) for flag in feedback.flags],
                "receive_s": took,
                "cut_ns": cut_ns,
            }
            self.add_item_tag(0, self.nitems_written(0) + written, SLOT, extended(details, fields))
            self.received += 1
            written += 1
        return written

    def _take(self, input_items: list[np.ndarray], begin: int, n: int) -> None:
        slots, dropped = self._slots.take(self, input_items, begin, n)
        for start, samples, details in slots:
            cut_ns, first = time.monotonic_ns(), time.perf_counter()
            feedback = receive_feedback(samples, self.frame, start.fraction, start.cfo_hz, self.full_scale)
            self._ready.append((feedback, details, time.perf_counter() - first, cut_ns))
        for fields in dropped:
            self.dropped += 1
            self.message_port_pub(pmt.intern("dropped"), pack(fields))

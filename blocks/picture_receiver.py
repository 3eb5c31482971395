"""GNU Radio block: a user's receiver in the picture downlink, up to its decoder."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np

from .messages import extended, fields_of, pack
from .runtime import SLOT, Failsafe, gr, guarded, pmt
from .tagged_slots import TaggedSlots
from .waveforms.frame_sync import SlotCutter
from .waveforms.picture_frame import PictureFrame, PictureSlot, picture_slot, receive_slot

_CHUNK_SAMPLES = 4096
_BUFFERED_SLOTS = 16


class PictureReceiver(Failsafe, gr.basic_block):
    """Cuts the slot of every tagged frame out of the stream, and puts out references and data of those for its user.

    Streams: one complex in, of the user's frame synchroniser; out one vector per frame that serves the user, complex,
    (n_streams + data_symbols) * n_subcarriers items: the reference symbols, then the data, then zeros.

    Tags read: `frame` (of the frame synchroniser), `rx_time`, `rx_end`. Tags written: `slot` on each vector, the
    frame's dictionary with {user, stream (which reference symbol's place is the user's), n_served, noise_power, level,
    drift_hz, receive_s, cut_ns}.

    Message out `skipped`, {frame, user, sample_time, reason}, of frames that bring the user nothing; reason is "not
    served", "grant not read", or "samples were lost inside the slot". Counted in `unserved`, `refused` and `dropped`.

    Args:
        frame: slots and antennas.
        user: number of this user.
    """

    def __init__(self, frame: PictureFrame, user: int = 0) -> None:
        self.vector_items = (frame.slots.n_streams + frame.slots.data_symbols) * frame.n_subcarriers
        gr.basic_block.__init__(
            self, name="semair picture receiver", in_sig=[np.complex64], out_sig=[(np.complex64, self.vector_items)]
        )
        self.frame = frame
        self.user = user
        self.received = self.unserved = self.refused = self.dropped = 0
        span = frame.used_samples - frame.grant_start
        self._slots = TaggedSlots(SlotCutter(1, frame.grant_start, span), frame.frame_format.sample_rate_hz)
        self._ready: deque[tuple[np.ndarray, Any]] = deque()
        self.set_tag_propagation_policy(gr.TPP_DONT)
        # GNU Radio writes a line about the buffer to standard output, where commands write JSON.
        self.set_log_level("warn")
        self.set_min_output_buffer(_BUFFERED_SLOTS)
        self.message_port_register_out(pmt.intern("skipped"))

    def warm_up(self) -> None:
        """Compile what is compiled at first use."""
        frame = self.frame
        cells = np.ones((1 + frame.slots.data_symbols, frame.n_subcarriers, frame.n_antennas), np.complex64)
        slot = np.zeros(frame.used_samples - frame.grant_start, np.complex64)
        sent = picture_slot(frame, (self.user,), cells[:1], cells[1:])[0]
        slot[: len(sent)] = sent
        receive_slot(slot, frame)

    def forecast(self, noutput_items: int, ninputs: int) -> list[int]:
        """A chunk of samples per call keeps the calls few."""
        return [_CHUNK_SAMPLES] * ninputs

    @guarded
    def general_work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        """Collect samples, and put out the slots that are complete."""
        out, available = output_items[0], len(input_items[0])
        taken = 0
        # No more than the output has room for: what waits inside when the stream ends would be lost.
        while taken < available and len(self._ready) < len(out):
            room = len(out) - len(self._ready)
            n = min(room * self.frame.frame_format.frame_samples, available - taken)
            self._take(input_items, taken, n)
            taken += n
        self.consume(0, taken)
        written = 0
        while self._ready and written < len(out):
            out[written], fields = self._ready.popleft()
            self.add_item_tag(0, self.nitems_written(0) + written, SLOT, fields)
            self.received += 1
            written += 1
        return written

    def _take(self, input_items: list[np.ndarray], begin: int, n: int) -> None:
        slots, dropped = self._slots.take(self, input_items, begin, n)
        for start, samples, details in slots:
            cut_ns, first = time.monotonic_ns(), time.perf_counter()
            slot = receive_slot(samples[0], self.frame, start.fraction, start.cfo_hz)
            if slot.users is None or self.user not in slot.users:
                self._skip(slot, fields_of(details))
                continue
            vector = np.zeros(self.vector_items, np.complex64)
            cells = np.concatenate([slot.reference, slot.data]).reshape(-1)
            vector[: len(cells)] = cells
            fields = {
                "user": self.user,
                "stream": slot.users.index(self.user),
                "n_served": len(slot.users),
                "noise_power": slot.noise_power,
                "level": slot.level,
                "drift_hz": slot.cfo_hz,
                "receive_s": time.perf_counter() - first,
                "cut_ns": cut_ns,
            }
            self._ready.append((vector, extended(details, fields)))
        for fields in dropped:
            self.dropped += 1
            self.message_port_pub(pmt.intern("skipped"), pack({**fields, "user": self.user}))

    def _skip(self, slot: PictureSlot, details: dict[str, Any]) -> None:
        self.unserved += slot.users is not None
        self.refused += slot.users is None
        reason = "grant not read" if slot.users is None else "not served"
        fields = {
            "frame": details["frame"],
            "user": self.user,
            "sample_time": details["sample_time"],
            "reason": reason,
        }
        self.message_port_pub(pmt.intern("skipped"), pack(fields))

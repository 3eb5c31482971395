"""GNU Radio block: the users' encoders and transmitters in CSI feedback."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any, Protocol

import numpy as np

from .messages import pack, unpack
from .runtime import Failsafe, gr, guarded, pmt
from .waveforms.csi_frame import CsiFrame
from .waveforms.feedback import feedback_burst


class Encoder(Protocol):
    """Codes CSI; `models.csi.codec.Codec` is one."""

    def encode(self, csi: np.ndarray, length: int, snr_db: float) -> np.ndarray:
        """complex64, (tap, beam), into complex64, (length,), of unit mean power."""


class FeedbackTransmitter(Failsafe, gr.basic_block):
    """Codes the CSI that users have estimated, and sends it in their parts of the feedback slot.

    Message in `frames`: {frame, start} of the sounding transmitter, whose stream the parts are placed in. Message in
    `estimates`: of the users' sounding receivers. Once every user has told that a frame is over, what those sent that
    heard it goes out: message `bursts`, {frame, start, length, users, burst_samples, offsets}, waveforms one after
    another as vector, `offsets` being their places behind `start`. Message out `sent`, one per user and frame: the
    estimate's fields with {length, encode_s}, and as vector the CSI, then the code. Message out `truth`, one per frame:
    {frame, start, length, users}.

    Args:
        frame: slots and antennas.
        encoder: codes for all users, one after the other.
        snr_db: that the base station announced; the code is made for it.
        answering: users that answer in a frame, by its number; others hear it and stay silent. None: all answer.
    """

    def __init__(
        self,
        frame: CsiFrame,
        encoder: Encoder,
        snr_db: float,
        answering: Callable[[int], Collection[int]] | None = None,
    ) -> None:
        gr.basic_block.__init__(self, name="semair feedback transmitter", in_sig=None, out_sig=None)
        self.frame = frame
        self.encoder = encoder
        self.snr_db = snr_db
        self.answering = answering
        self._starts: dict[int, int] = {}
        self._words: dict[int, dict[int, np.ndarray]] = {}
        self._over: dict[int, set[int]] = {}
        self.message_port_register_in(pmt.intern("frames"))
        self.message_port_register_in(pmt.intern("estimates"))
        self.set_msg_handler(pmt.intern("frames"), self.handle_frame)
        self.set_msg_handler(pmt.intern("estimates"), self.handle_estimate)
        self.message_port_register_out(pmt.intern("bursts"))
        self.message_port_register_out(pmt.intern("sent"))
        self.message_port_register_out(pmt.intern("truth"))

    def warm_up(self) -> None:
        """Load the network."""
        slots = self.frame.slots
        csi = np.ones((slots.n_taps, self.frame.n_antennas), np.complex64)
        for _ in range(3):
            feedback_burst(self.frame, self.encoder.encode(csi, slots.feedback_length, self.snr_db))

    @guarded
    def handle_frame(self, message: Any) -> None:
        """Note where a frame begins."""
        fields, _ = unpack(message)
        self._starts[fields["frame"]] = fields["start"]
        self._finish(fields["frame"])

    @guarded
    def handle_estimate(self, message: Any) -> None:
        """Code an estimate, or note that no more of its frame will come from this user."""
        fields, vector = unpack(message)
        frame, user = fields["frame"], fields["user"]
        if fields["over"]:
            self._over.setdefault(frame, set()).add(user)
            self._finish(frame)
            return
        if not vector.any() or (self.answering is not None and user not in self.answering(frame)):
            # Nothing was received, so there is nothing to tell; or nobody is there to tell it.
            return
        slots = self.frame.slots
        begin = time.perf_counter()
        csi = vector.reshape(slots.n_taps, self.frame.n_antennas)
        word = self.encoder.encode(csi, slots.feedback_length, self.snr_db)
        took = time.perf_counter() - begin
        self._words.setdefault(frame, {})[user] = word
        sent = {**fields, "length": slots.feedback_length, "encode_s": took}
        self.message_port_pub(pmt.intern("sent"), pack(sent, np.concatenate([vector, word])))

    def _finish(self, frame: int) -> None:
        """Send what all users have for a frame, once it is over for all of them."""
        slots = self.frame.slots
        if frame not in self._starts or len(self._over.get(frame, ())) < slots.n_users:
            return
        words = self._words.pop(frame, {})
        users = sorted(words)
        fields = {
            "frame": frame,
            "start": self._starts.pop(frame) + self.frame.feedback_start,
            "length": slots.feedback_length,
            "users": users,
        }
        del self._over[frame]
        # Estimates with wrong frame numbers would otherwise stay for ever.
        self._words = {number: kept for number, kept in self._words.items() if number > frame}
        self.message_port_pub(pmt.intern("truth"), pack(fields))
        bursts = [feedback_burst(self.frame, words[user]) for user in users]
        places = {
            "burst_samples": self.frame.part_samples,
            "offsets": [user * self.frame.part_samples for user in users],
        }
        vector = np.concatenate(bursts) if bursts else None
        self.message_port_pub(pmt.intern("bursts"), pack({**fields, **places}, vector))

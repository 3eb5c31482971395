"""GNU Radio block: recovers the CSI of all users together."""

from __future__ import annotations

import time
from typing import Protocol

import numpy as np

from .messages import c32vector, extended, field
from .runtime import SLOT, Failsafe, gr, guarded, input_tags, pmt
from .waveforms.csi_frame import CsiFrame
from .waveforms.feedback import PartFlag

_LEFT_OUT = int(PartFlag.SILENT | PartFlag.NOT_FINITE)


class Decoder(Protocol):
    """Recovers CSI; `models.csi.codec.Codec` is one."""

    def decode(
        self, received: np.ndarray, snr_db: np.ndarray | float, announced_db: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """complex64, (user, symbol), into complex64, (user, tap, beam), and bool, (user,): who was decoded."""


class CsiDecoder(Failsafe, gr.sync_block):
    """Runs a joint decoder on every feedback slot. Users that were not received are left out.

    Stream in: one vector per slot, as the feedback receiver writes it. Tags read: `slot`.

    Message out `decisions`: the slot's dictionary with {users (numbers of those decoded), decode_s, decided_ns}, and
    as vector the received codes, then the recovered CSI in delay and angle, user after user, tap after tap.

    The decoder is warmed up for every number of users when the flowgraph starts.

    Args:
        frame: slots and antennas.
        decoder: of all users' codes.
        announced_db: SNR that users are told when they encode.
        snr_db: least and largest SNR that the decoder is told; what is received is taken for no better or worse.
    """

    def __init__(
        self,
        frame: CsiFrame,
        decoder: Decoder,
        announced_db: float,
        snr_db: tuple[float, float] = (-10.0, 20.0),
    ) -> None:
        slots = frame.slots
        gr.sync_block.__init__(
            self,
            name="semair CSI decoder",
            in_sig=[(np.complex64, slots.n_users * slots.feedback_length)],
            out_sig=None,
        )
        self.frame = frame
        self.decoder = decoder
        self.announced_db, self.snr_db = announced_db, snr_db
        self.decided = 0
        self.message_port_register_out(pmt.intern("decisions"))

    def warm_up(self) -> None:
        """Load the network for every number of users."""
        slots = self.frame.slots
        words = np.zeros((slots.n_users, slots.feedback_length), np.complex64)
        for user in range(slots.n_users):
            words[user] = 1
            for _ in range(3):
                self.decoder.decode(words, 10.0, self.announced_db)

    @guarded
    def work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        """Decode the slots at hand."""
        slots = self.frame.slots
        first = self.nitems_read(0)
        n = len(input_items[0])
        tagged = {tag.offset - first: tag.value for tag in input_tags(self, 0, n) if pmt.equal(tag.key, SLOT)}
        for k, vector in enumerate(input_items[0]):
            if k not in tagged:
                raise ValueError(
                    f"slot vector {first + k} carries no `slot` tag: connect this input to a feedback receiver"
                )
            words = vector.reshape(slots.n_users, slots.feedback_length).copy()
            heard = np.array([not flag & _LEFT_OUT for flag in field(tagged[k], "flags")])
            words[~heard] = 0
            snr_db = np.where(heard, field(tagged[k], "word_snr_db"), 0.0).clip(*self.snr_db)
            begin = time.perf_counter()
            csi, decoded = self.decoder.decode(words, snr_db, self.announced_db)
            fields = {
                "users": [int(user) for user in np.flatnonzero(decoded)],
                "decode_s": time.perf_counter() - begin,
                "decided_ns": time.monotonic_ns(),
            }
            values = np.concatenate([words.reshape(-1), csi.reshape(-1)])
            message = pmt.cons(extended(tagged[k], fields), c32vector(values))
            self.message_port_pub(pmt.intern("decisions"), message)
            self.decided += 1
        return n

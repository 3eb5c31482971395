"""GNU Radio block: a user's decoder in the picture downlink."""

from __future__ import annotations

import time
from typing import Protocol

import numpy as np

from .messages import extended, field, u8vector
from .runtime import SLOT, Failsafe, gr, guarded, input_tags, pmt
from .waveforms.picture_frame import PictureFrame


class Decoder(Protocol):
    """Recovers pictures; `models.semantic.codec.PictureCodec` is one."""

    def receive(
        self, reference: np.ndarray, data: np.ndarray, noise_power: float, user: int, size: tuple[int, int]
    ) -> tuple[np.ndarray, float]:
        """Picture, uint8 (row, column, 3), and estimated SINR in dB, from complex64 (reference symbol, subcarrier),
        complex64 (OFDM symbol, subcarrier), noise power per cell, and the user's place among the streams."""


class PictureDecoder(Failsafe, gr.sync_block):
    """Recovers a user's picture from every vector of its receiver.

    Stream in: one vector per frame that serves the user, as the picture receiver writes it. Tags read: `slot`.

    Message out `pictures`: the slot's dictionary with {sinr_db, rows, columns, decode_s, decided_ns}, and the picture
    as vector, uint8, row after row, pixel after pixel.

    Args:
        frame: slots and antennas.
        codec: recovers pictures; its own, another thread may not use it.
        size: rows and columns of the pictures.
    """

    def __init__(self, frame: PictureFrame, codec: Decoder, size: tuple[int, int]) -> None:
        items = (frame.slots.n_streams + frame.slots.data_symbols) * frame.n_subcarriers
        gr.sync_block.__init__(self, name="semair picture decoder", in_sig=[(np.complex64, items)], out_sig=None)
        self.frame = frame
        self.codec = codec
        self.size = size
        self.decided = 0
        self.message_port_register_out(pmt.intern("pictures"))

    def warm_up(self) -> None:
        """Load the network for every number of streams."""
        frame = self.frame
        data = np.ones((frame.slots.data_symbols, frame.n_subcarriers), np.complex64)
        for n in range(1, frame.slots.n_streams + 1):
            for _ in range(2):
                self.codec.receive(np.ones((n, frame.n_subcarriers), np.complex64), data, 0.1, 0, self.size)

    @guarded
    def work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        """Decode the slots at hand."""
        frame = self.frame
        first, n = self.nitems_read(0), len(input_items[0])
        tagged = {tag.offset - first: tag.value for tag in input_tags(self, 0, n) if pmt.equal(tag.key, SLOT)}
        for k, vector in enumerate(input_items[0]):
            if k not in tagged:
                raise ValueError(
                    f"slot vector {first + k} carries no `slot` tag: connect this input to a picture receiver"
                )
            begin = time.perf_counter()
            cells = vector.reshape(-1, frame.n_subcarriers)
            n_served = field(tagged[k], "n_served")
            picture, sinr_db = self.codec.receive(
                cells[:n_served].copy(),
                cells[n_served : n_served + frame.slots.data_symbols].copy(),
                field(tagged[k], "noise_power"),
                field(tagged[k], "stream"),
                self.size,
            )
            fields = {
                "sinr_db": float(sinr_db),
                "rows": picture.shape[0],
                "columns": picture.shape[1],
                "decode_s": time.perf_counter() - begin,
                "decided_ns": time.monotonic_ns(),
            }
            message = pmt.cons(extended(tagged[k], fields), u8vector(picture.reshape(-1)))
            self.message_port_pub(pmt.intern("pictures"), message)
            self.decided += 1
        return n

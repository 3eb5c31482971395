"""GNU Radio block: the base station's transmitters in the picture downlink."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from .messages import pack
from .runtime import FRAME, WORK_DONE, Failsafe, gr, guarded, pmt
from .waveforms.beacon import beacon
from .waveforms.picture_frame import PictureFrame, on_data_subcarriers, picture_slot

_CHUNK_SAMPLES = 4096


@dataclass(frozen=True)
class Served:
    """Whom the base station serves in a frame, with what, and by which knowledge.

    Attributes:
        users: ascending; none: the frame is empty.
        pictures: uint8, (user, row, column, 3), of these users.
        csi: complex64, (user, subcarrier, antenna), of these users, as the base station has it: ascending frequency,
            around the carrier; of any common scale.
        csi_nmse_db: error that the base station reckons with; -40 or less for none.
    """

    users: tuple[int, ...] = ()
    pictures: np.ndarray = field(default_factory=lambda: np.empty((0, 0, 0, 3), np.uint8))
    csi: np.ndarray = field(default_factory=lambda: np.empty((0, 0, 0), np.complex64))
    csi_nmse_db: float = -40.0


Serve = Callable[[int], Served]
"""Tells, by the number of a frame, whom it serves; asked once for each, in order."""


class Sent(NamedTuple):
    """Cells of a frame, of unit mean power, summed over antennas.

    Attributes:
        reference: complex64, (reference symbol, subcarrier, antenna).
        data: complex64, (OFDM symbol, subcarrier, antenna).
    """

    reference: np.ndarray
    data: np.ndarray


class Precoder(Protocol):
    """Codes and precodes pictures; `models.semantic.codec.PictureCodec` is one."""

    def transmit(
        self, pictures: np.ndarray, csi: np.ndarray, csi_nmse_db: float, snr_db: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Reference and data, as those of `Sent`, from the arguments that `Served` describes, CSI on the subcarriers
        of the data."""


class PictureTransmitter(Failsafe, gr.sync_block):
    """Sends frames: the beacon from the first antenna, then the grant and the pictures of all users served from all.

    Streams out: complex samples, one chain per antenna. Message out `frames`: {frame, start, users, csi_nmse_db,
    serve_s, transmit_s} as each frame is made, `start` being the stream index of its first sample. Tags written:
    `frame` (the number) on each frame's first sample on port 0. The stream ends with `tail_samples` of silence after
    the last frame.

    Args:
        frame: slots and antennas.
        codec: codes and precodes.
        serve: whom each frame serves.
        size: rows and columns of the pictures.
        snr_db: transmit power over a user's noise power, channels having unit mean power, that the base station
            reckons with.
        n_frames: frames to send; negative: without end.
        beacon_amplitude: root mean square of beacon and grant.
        tail_samples: silence after the last frame, so that receivers can finish it.
    """

    def __init__(
        self,
        frame: PictureFrame,
        codec: Precoder,
        serve: Serve,
        size: tuple[int, int],
        snr_db: float,
        n_frames: int = -1,
        beacon_amplitude: float = 1.0,
        tail_samples: int = 0,
    ) -> None:
        gr.sync_block.__init__(
            self, name="semair picture transmitter", in_sig=None, out_sig=[np.complex64] * frame.n_antennas
        )
        self.frame = frame
        self.codec = codec
        self.serve = serve
        self.size = size
        self.snr_db = snr_db
        self.n_frames = n_frames
        self.beacon_amplitude = beacon_amplitude
        self._length = frame.frame_format.frame_samples
        self._end = n_frames * self._length + tail_samples if n_frames >= 0 else None
        self._position = 0
        self._made: tuple[int, np.ndarray] = (-1, np.empty((frame.n_antennas, 0), np.complex64))
        self.set_output_multiple(_CHUNK_SAMPLES)
        self.message_port_register_out(pmt.intern("frames"))

    @property
    def ended(self) -> bool:
        """Whether everything was handed on."""
        return self._end is not None and self._position >= self._end

    def warm_up(self) -> None:
        """Load the networks for every number of users."""
        frame = self.frame
        beacon(frame.frame_format, 0)
        at = np.arange(frame.n_subcarriers)[:, None] * np.arange(1, frame.n_antennas + 1)
        for n in range(1, frame.slots.n_streams + 1):
            csi = np.exp(2j * np.pi * np.arange(n)[:, None, None] * at / frame.n_subcarriers).astype(np.complex64)
            for _ in range(2):
                self.codec.transmit(np.zeros((n, *self.size, 3), np.uint8), csi, -10.0, self.snr_db)

    @guarded
    def work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        """Fill the outputs with the next part of the frame sequence."""
        n = len(output_items[0])
        if self.ended:
            return WORK_DONE
        for out in output_items:
            out[:n] = 0
        for number in range(self._position // self._length, -(-(self._position + n) // self._length)):
            if 0 <= self.n_frames <= number:
                break
            begin = number * self._length - self._position
            if begin >= 0:
                self._make(number)
                self.add_item_tag(0, self._position + begin, FRAME, pmt.from_long(number))
            low, high = max(begin, 0), min(begin + self._made[1].shape[1], n)
            for row, out in zip(self._made[1], output_items, strict=True):
                out[low : max(high, low)] = row[low - begin : max(high, low) - begin]
        self._position += n
        return n

    def _make(self, number: int) -> None:
        """Ask whom a frame serves, code their pictures, and tell of it."""
        fmt = self.frame.frame_format
        begin = time.perf_counter()
        served = self.serve(number)
        asked = time.perf_counter()
        slot = self._slot(served)
        signal = np.zeros((self.frame.n_antennas, self.frame.downlink_samples), np.complex64)
        signal[0, : fmt.beacon_samples] = np.float32(self.beacon_amplitude) * beacon(fmt, number)
        signal[:, self.frame.grant_start :] = slot
        self._made = (number, signal)
        fields: dict[str, Any] = {
            "frame": number,
            "start": number * self._length,
            "users": [int(user) for user in served.users],
            "csi_nmse_db": float(served.csi_nmse_db),
            "serve_s": asked - begin,
            "transmit_s": time.perf_counter() - asked,
        }
        self.message_port_pub(pmt.intern("frames"), pack(fields))

    def _slot(self, served: Served) -> np.ndarray:
        nothing = np.empty((0, self.frame.n_subcarriers, self.frame.n_antennas), np.complex64)
        if not served.users:
            return picture_slot(self.frame, (), nothing, nothing, self.beacon_amplitude)
        if max(served.users) >= self.frame.n_users:
            raise ValueError(f"users={list(served.users)}: there are users 0 to {self.frame.n_users - 1}")
        wanted = (len(served.users), *self.size, 3)
        if served.pictures.shape != wanted:
            raise ValueError(f"pictures have shape {served.pictures.shape}; needs {wanted} for users served")
        reference, data = self.codec.transmit(
            served.pictures, on_data_subcarriers(served.csi), served.csi_nmse_db, self.snr_db
        )
        return picture_slot(self.frame, served.users, reference, data, self.beacon_amplitude)

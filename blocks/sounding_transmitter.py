"""GNU Radio block: the base station's transmitters in CSI feedback."""

from __future__ import annotations

import numpy as np

from .messages import pack
from .runtime import FRAME, WORK_DONE, Failsafe, gr, guarded, pmt
from .waveforms.beacon import beacon
from .waveforms.csi_frame import CsiFrame
from .waveforms.sounding import sounding_slot

_CHUNK_SAMPLES = 4096


class SoundingTransmitter(Failsafe, gr.sync_block):
    """Sends frames: the beacon from the first antenna, the sounding slot from all, then silence for the users.

    Streams out: complex samples, one chain per antenna. Message out `frames`: {frame, start} as each frame is made,
    `start` being the stream index of its first sample. Tags written: `frame` (the number) on each frame's first sample
    on port 0. The stream ends with `tail_samples` of silence after the last frame.

    Args:
        frame: slots and antennas.
        n_frames: frames to send; negative: without end.
        beacon_amplitude: root mean square of the beacon.
        sounding_amplitude: of a sounding cell.
        tail_samples: silence after the last frame, so that receivers can finish it.
    """

    def __init__(
        self,
        frame: CsiFrame,
        n_frames: int = -1,
        beacon_amplitude: float = 1.0,
        sounding_amplitude: float = 1.0,
        tail_samples: int = 0,
    ) -> None:
        gr.sync_block.__init__(
            self, name="semair sounding transmitter", in_sig=None, out_sig=[np.complex64] * frame.n_antennas
        )
        self.frame = frame
        self.n_frames = n_frames
        self.beacon_amplitude = beacon_amplitude
        self._sounding = np.float32(sounding_amplitude) * sounding_slot(frame)
        self._length = frame.frame_format.frame_samples
        self._end = n_frames * self._length + tail_samples if n_frames >= 0 else None
        self._position = 0
        self._beacon: tuple[int, np.ndarray] = (-1, np.empty(0, np.complex64))
        self.set_output_multiple(_CHUNK_SAMPLES)
        self.message_port_register_out(pmt.intern("frames"))

    @property
    def ended(self) -> bool:
        """Whether everything was handed on."""
        return self._end is not None and self._position >= self._end

    def _waveform(self, frame: int) -> np.ndarray:
        if self._beacon[0] != frame:
            self._beacon = (frame, np.float32(self.beacon_amplitude) * beacon(self.frame.frame_format, frame))
        return self._beacon[1]

    @guarded
    def work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        """Fill the outputs with the next part of the frame sequence."""
        n = len(output_items[0])
        if self._end is not None and self._position >= self._end:
            return WORK_DONE
        for out in output_items:
            out[:n] = 0
        first = self._position // self._length
        for frame in range(first, -(-(self._position + n) // self._length)):
            if 0 <= self.n_frames <= frame:
                break
            begin = frame * self._length - self._position
            if begin >= 0:
                self.add_item_tag(0, self._position + begin, FRAME, pmt.from_long(frame))
                self.message_port_pub(pmt.intern("frames"), pack({"frame": frame, "start": self._position + begin}))
            _place(self._waveform(frame), begin, output_items[0])
            for row, out in zip(self._sounding, output_items, strict=True):
                _place(row, begin + self.frame.sounding_start, out)
        self._position += n
        return n


def _place(waveform: np.ndarray, begin: int, out: np.ndarray) -> None:
    """Write what of a waveform that begins at an index, maybe a negative one, lies in the output."""
    low, high = max(begin, 0), min(begin + len(waveform), len(out))
    if low < high:
        out[low:high] = waveform[low - begin : high - begin]

"""GNU Radio block: the base station's transmitter."""

from __future__ import annotations

import numpy as np

from .messages import pack
from .runtime import FRAME, WORK_DONE, Failsafe, gr, guarded, pmt
from .waveforms.beacon import beacon
from .waveforms.frame import FrameFormat


class FrameTransmitter(Failsafe, gr.sync_block):
    """Sends frames: the beacon with its frame counter, then silence for the users' slots.

    Stream out: complex samples, one chain. Message out `frames`: {frame, start} as each frame is made, `start`
    being the stream index of its first sample. Tags written: `frame` (the number) on each frame's first sample.
    The stream ends with `tail_samples` of silence after the last frame.

    Args:
        frame_format: numerology and slots.
        n_frames: frames to send; negative: without end.
        amplitude: root mean square of the beacon.
        tail_samples: silence after the last frame, so that receivers can finish it.
        lead_samples: silence before the first frame, so that receivers are there when it comes.
    """

    def __init__(
        self,
        frame_format: FrameFormat,
        n_frames: int = -1,
        amplitude: float = 1.0,
        tail_samples: int = 0,
        lead_samples: int = 0,
    ) -> None:
        gr.sync_block.__init__(self, name="semair frame transmitter", in_sig=None, out_sig=[np.complex64])
        self.frame_format = frame_format
        self.n_frames = n_frames
        self.amplitude = amplitude
        self._lead = lead_samples
        frames = n_frames * frame_format.frame_samples
        self._end = lead_samples + frames + tail_samples if n_frames >= 0 else None
        self._position = 0
        self._beacon: tuple[int, np.ndarray] = (-1, np.empty(0, np.complex64))
        self.message_port_register_out(pmt.intern("frames"))

    @property
    def ended(self) -> bool:
        """Whether everything was handed on."""
        return self._end is not None and self._position >= self._end

    def _waveform(self, frame: int) -> np.ndarray:
        if self._beacon[0] != frame:
            self._beacon = (frame, np.float32(self.amplitude) * beacon(self.frame_format, frame))
        return self._beacon[1]

    @guarded
    def work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        """Fill the output with the next part of the frame sequence."""
        out = output_items[0]
        n = len(out) if self._end is None else min(len(out), self._end - self._position)
        if n == 0:
            return WORK_DONE
        out[:n] = 0
        length = self.frame_format.frame_samples
        begin = self._position - self._lead
        for frame in range(max(begin // length, 0), -(-(begin + n) // length)):
            if 0 <= self.n_frames <= frame:
                break
            offset = frame * length - begin
            if offset >= 0:
                self.add_item_tag(0, self._position + offset, FRAME, pmt.from_long(frame))
                self.message_port_pub(pmt.intern("frames"), pack({"frame": frame, "start": self._position + offset}))
            waveform = self._waveform(frame)
            low, high = max(offset, 0), min(offset + len(waveform), n)
            if low < high:
                out[low:high] = waveform[low - offset : high - offset]
        self._position += n
        return n

"""GNU Radio block: plays a SigMF recording as the radio would have delivered it."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from ..captures.reader import Recording, Segment
from .runtime import RX_END, WORK_DONE, Failsafe, gr, guarded, pmt, time_tags


class SigmfSource(Failsafe, gr.sync_block):
    """Puts out the channels of a recording, one complex stream each.

    Tags written on all ports: `rx_time`, `rx_rate`, `rx_freq` at the start of every capture segment, with the
    recorded device time where there is one and else the recorded sample count as time; so a gap looks as it did
    live. A segment that does not say its frequency has the recording's. Nothing is filled into gaps. After the
    recording follow `tail_samples` zeros behind a tag `rx_end`, so that receivers finish the last frame but never
    take the zeros for signal.

    Args:
        recording: the opened recording.
        tail_samples: zeros after the end.
    """

    def __init__(self, recording: Recording, tail_samples: int = 0) -> None:
        gr.sync_block.__init__(
            self, name="semair SigMF source", in_sig=None, out_sig=[np.complex64] * recording.n_channels
        )
        self.recording = recording
        self.tail_samples = tail_samples
        self._position = 0
        self._rate = recording.sample_rate_hz or 1.0
        self._starts = _start_ticks(recording.segments, self._rate)
        otherwise = recording.frequency_hz or 0.0
        self._frequencies_hz = {
            segment.sample_start: otherwise if segment.frequency_hz is None else segment.frequency_hz
            for segment in recording.segments
        }

    @property
    def end_time_samples(self) -> int:
        """Time right behind the last recorded sample, in sample periods, as `rx_time` counts."""
        last = self.recording.segments[-1].sample_start
        return self._starts[last] + self.recording.n_samples - last

    @guarded
    def work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        """Read the next samples."""
        length = self.recording.n_samples
        n = min(len(output_items[0]), length + self.tail_samples - self._position)
        if n <= 0:
            return WORK_DONE
        end = self._position + n
        recorded = max(min(end, length) - self._position, 0)
        if recorded:
            self.recording.read_into(self._position, [output[:recorded] for output in output_items])
        for output in output_items:
            output[recorded:n] = 0
        for start, ticks in self._starts.items():
            if self._position <= start < end and start < length:
                time_tags(self, len(output_items), start, ticks, self._rate, self._frequencies_hz[start])
        if self._position <= length < end:
            for port in range(len(output_items)):
                self.add_item_tag(port, length, RX_END, pmt.PMT_T)
        self._position = end
        return n


def _start_ticks(segments: Sequence[Segment], rate_hz: float) -> dict[int, int]:
    """Time in sample periods at which each segment starts, by its place in the file.

    A segment without device time runs on from the one before it by the recorded sample count.
    """
    starts: dict[int, int] = {}
    offset = 0
    for segment in segments:
        count = segment.sample_start if segment.global_index is None else segment.global_index
        if segment.device_time is not None:
            offset = round(segment.device_time.seconds * Fraction(rate_hz)) - count
        starts[segment.sample_start] = offset + count
    return starts

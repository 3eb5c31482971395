"""GNU Radio block: finds frames in the signals of one or many antennas."""

from __future__ import annotations

import math
import time
from collections import deque

import numpy as np

from ..errors import RadioError
from .messages import pack
from .runtime import FRAME, RX_END, RX_TIME, Failsafe, gr, guarded, input_tags, pmt, time_ticks
from .waveforms.beacon import beacon
from .waveforms.frame import FrameFormat
from .waveforms.frame_sync import FrameFinder, FrameStart


def _default_chunk(sample_rate_hz: float) -> int:
    return 2 ** min(max(round(math.log2(8e-3 * sample_rate_hz)), 12), 16)


class FrameSynchroniser(Failsafe, gr.sync_block):
    """Passes the antenna streams on, delayed, with a tag on the first sample of every frame found.

    Streams: n_antennas complex in, as many out, delayed by `delay_samples`.

    Tags read: `rx_time`; one inside the stream that does not continue the time before it means lost samples,
    where the search starts anew. `rx_end`, behind which only padding follows. All tags are passed on at their
    delayed place.

    Tags written: `frame` on port 0, a dictionary {frame, counted, fraction, cfo_hz, metric, snr_db, sample_time
    (of the frame start on the radio's clock, in samples), heard_ns and tagged_ns (host clock when the frame's
    start came in, and when the tag was made)}. Message out `frames`: the same with the header's equalised symbols
    as vector.

    Args:
        frame_format: numerology and slots.
        n_antennas: receive antennas.
        max_cfo_hz: largest carrier offset to expect.
        false_alarms_per_sample: of the beacon's detector in noise.
        chunk_samples: samples per call; larger is faster and later. None: about 8 ms, 4096 to 65536.
    """

    def __init__(
        self,
        frame_format: FrameFormat,
        n_antennas: int = 1,
        max_cfo_hz: float = 20e3,
        false_alarms_per_sample: float = 1e-10,
        chunk_samples: int | None = None,
    ) -> None:
        ports = [np.complex64] * n_antennas
        gr.sync_block.__init__(self, name="semair frame synchroniser", in_sig=ports, out_sig=ports)
        self.frame_format = frame_format
        self.finder = FrameFinder(frame_format, n_antennas, max_cfo_hz, false_alarms_per_sample)
        self.delay_samples = self.finder.delay_samples
        self.found = 0
        self.gaps = 0
        self.lost_samples = 0
        self._clock: tuple[int, int] = (0, 0)
        self._time_known = False
        self._arrivals: deque[tuple[int, int]] = deque(maxlen=256)
        self.set_tag_propagation_policy(gr.TPP_DONT)
        self.set_output_multiple(chunk_samples or _default_chunk(frame_format.sample_rate_hz))
        self.message_port_register_out(pmt.intern("frames"))

    @property
    def refused(self) -> int:
        """Beacons found whose frame number could not be read."""
        return self.finder.refused

    def warm_up(self) -> None:
        """Compile what is compiled at first use."""
        trial = FrameFinder(self.frame_format, self.finder.n_antennas, self.finder.max_cfo_hz)
        quiet = np.zeros((trial.n_antennas, self.frame_format.frame_samples + 2 * trial.delay_samples), np.complex64)
        for start in (0, self.frame_format.frame_samples):
            quiet[:, start : start + self.frame_format.beacon_samples] = beacon(self.frame_format, 0)
        trial.process(quiet)

    @guarded
    def work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        """Search the next samples, and pass on the delayed ones."""
        n = len(output_items[0])
        first = self.nitems_read(0)
        samples = [port[:n] for port in input_items]
        self._arrivals.append((first + n, time.monotonic_ns()))
        done = 0
        for tag in self._move_tags(len(input_items), n):
            lost = 0
            if pmt.equal(tag.key, RX_TIME):
                ticks = time_ticks(tag.value, self.frame_format.sample_rate_hz)
                if self._time_known:
                    lost = ticks - self._clock[1] - (tag.offset - self._clock[0])
            if lost or pmt.equal(tag.key, RX_END):
                self._pass(samples, done, tag.offset - first, output_items)
                done = tag.offset - first
                self._publish(self.finder.interrupt())
            if lost:
                self.gaps += 1
                # A clock that was set back loses nothing, though the stream breaks.
                self.lost_samples += max(lost, 0)
            if pmt.equal(tag.key, RX_TIME):
                self._clock = (tag.offset, ticks)
                self._time_known = True
        self._pass(samples, done, n, output_items)
        return n

    def _pass(self, samples: list[np.ndarray], begin: int, end: int, output_items: list[np.ndarray]) -> None:
        try:
            delayed, frames = self.finder.process([row[begin:end] for row in samples])
        except ValueError as error:
            raise RadioError(f"the receiver was given samples that are no numbers: {error}") from error
        for port, values in zip(output_items, delayed, strict=True):
            port[begin:end] = values
        self._publish(frames)

    def _move_tags(self, n_ports: int, n: int) -> list[gr.tag_t]:
        """Pass all tags on at their delayed place; returns the tags of time and end on port 0."""
        times = []
        for port in range(n_ports):
            for tag in input_tags(self, port, n):
                self.add_item_tag(port, tag.offset + self.delay_samples, tag.key, tag.value)
                if port == 0 and (pmt.equal(tag.key, RX_TIME) or pmt.equal(tag.key, RX_END)):
                    times.append(tag)
        return times

    def _publish(self, frames: list[FrameStart]) -> None:
        for frame in frames:
            self.found += 1
            heard = next((at for index, at in self._arrivals if index > frame.start), time.monotonic_ns())
            fields = {
                "frame": frame.frame_number,
                "counted": frame.counted,
                "fraction": frame.fraction,
                "cfo_hz": frame.cfo_hz,
                "metric": frame.metric,
                "snr_db": frame.snr_db,
                "sample_time": self._clock[1] + frame.start - self._clock[0],
                "heard_ns": heard,
                "tagged_ns": time.monotonic_ns(),
            }
            message = pack(fields, frame.header_symbols)
            self.add_item_tag(0, frame.start + self.delay_samples, FRAME, pmt.car(message))
            self.message_port_pub(pmt.intern("frames"), message)

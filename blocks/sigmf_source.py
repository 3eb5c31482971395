"""GNU Radio block: plays a SigMF recording as the radio would have delivered it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from ..captures.reader import Recording
from ..errors import ScenarioError
from .playback import Gaps, Playback, PlayOptions, log
from .runtime import RX_BEGIN, RX_END, RX_GAP, WORK_DONE, Failsafe, gr, guarded, pmt, time_tags

_PACE_STEP_S = 0.005


class SigmfSource(Failsafe, gr.sync_block):
    """Puts out channels of a recording, one complex stream each. The same arguments give the same samples and tags.

    Tags written on all ports: `rx_time`, `rx_rate`, `rx_freq` at the start of every capture segment that is played,
    with the recorded device time where there is one and else the recorded sample count as time. A segment that does
    not say its frequency has the recording's. `rx_gap` with the number of lost samples where a gap was spliced or
    filled; `rx_begin` with the number of the turn where one begins. After the recording follow `tail_samples` zeros
    behind a tag `rx_end`, so that receivers finish the last frame but never take the zeros for signal.

    Args:
        recording: the opened recording.
        tail_samples: zeros after the end.
        channels: recorded channels to put out, in this order; None: all.
        gaps: "stop": end before the first gap; "splice": join what is there, and let the time run on; "zero": zeros
            in the place of lost samples, so that times hold; "as-recorded": the samples follow each other and
            `rx_time` jumps, as it did live. Only what reads these tags, as the receivers here do, can take the last.
        rate_hz: sample rate to put out; None: the recorded one.
        turns: how often; more than one need frame_samples.
        frame_samples: play whole frames of this many recorded samples only, none of them across a gap.
        frame_start: recorded sample at which a frame begins.
        max_samples: end after so many samples; None: no limit.
        speed: of the host's clock; 1 is real time. None: as fast as it is taken.

    Raises:
        ScenarioError: the arguments do not fit the recording.
        RecordingError: no whole frame is there, or a gap cannot be filled.
    """

    def __init__(
        self,
        recording: Recording,
        tail_samples: int = 0,
        channels: Sequence[int] | None = None,
        gaps: Gaps = "stop",
        rate_hz: float | None = None,
        turns: int = 1,
        frame_samples: int | None = None,
        frame_start: int = 0,
        max_samples: int | None = None,
        speed: float | None = None,
    ) -> None:
        if speed is not None and not 0 < speed < float("inf"):
            raise ScenarioError(f"speed={speed}: it must be positive; 1 is real time")
        options = PlayOptions(
            channels=None if channels is None else tuple(channels),
            gaps=gaps,
            rate_hz=rate_hz,
            turns=turns,
            frame_samples=frame_samples,
            frame_start=frame_start,
            max_samples=max_samples,
        )
        self.playback = Playback(recording, options)
        gr.sync_block.__init__(
            self, name="semair SigMF source", in_sig=None, out_sig=[np.complex64] * len(self.playback.channels)
        )
        self.recording = recording
        self.tail_samples = tail_samples
        self._position = 0
        self._pace = None if speed is None else Pace(speed * self.playback.rate_hz)
        if self.playback.stopped_at is not None:
            log.warning(
                f"{recording.name}: samples are missing before sample {self.playback.stopped_at}: from there on "
                f"{self.playback.skipped_samples} samples are not played; see gaps"
            )

    @property
    def end_time_samples(self) -> int:
        """Time right behind the last played sample, in sample periods, as `rx_time` counts."""
        return self.playback.end_ticks

    def warm_up(self) -> None:
        """Compile what is compiled at first use."""
        self.playback.warm_up()

    @guarded
    def work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        """Read the next samples."""
        length = self.playback.n_samples
        n = min(len(output_items[0]), length + self.tail_samples - self._position)
        if n <= 0:
            return WORK_DONE
        if self._pace is not None:
            n = self._pace.grant(self._position, n)
        end = self._position + n
        played = max(min(end, length) - self._position, 0)
        if played:
            self.playback.read_into(self._position, [output[:played] for output in output_items])
        for output in output_items:
            output[played:n] = 0
        self._tag(self._position, end)
        self._position = end
        return n

    def _tag(self, begin: int, end: int) -> None:
        ports = range(len(self.playback.channels))
        for mark in self.playback.marks(begin, end):
            time_tags(self, len(ports), mark.item, mark.ticks, self.playback.rate_hz, mark.frequency_hz)
            for port in ports:
                if mark.lost:
                    self.add_item_tag(port, mark.item, RX_GAP, pmt.from_long(mark.lost))
                if mark.turn is not None:
                    self.add_item_tag(port, mark.item, RX_BEGIN, pmt.from_long(mark.turn))
        if begin <= self.playback.n_samples < end:
            for port in ports:
                self.add_item_tag(port, self.playback.n_samples, RX_END, pmt.PMT_T)


class Pace:
    """Lets samples out at a rate of the host's clock.

    Args:
        rate_hz: samples per second.
        clock: seconds, monotonic.
        sleep: waits for seconds.
    """

    def __init__(
        self,
        rate_hz: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate_hz = rate_hz
        self._clock = clock
        self._sleep = sleep
        self._begin: float | None = None

    def grant(self, done: int, wanted: int) -> int:
        """Wait until samples are due, a few milliseconds' worth at a time.

        Args:
            done: samples that went out before.
            wanted: samples that could go out now; at least 1.

        Returns:
            Samples that may go out; at least 1.
        """
        if self._begin is None:
            self._begin = self._clock()
        enough = min(wanted, max(1, int(self._rate_hz * _PACE_STEP_S)))
        while (due := int((self._clock() - self._begin) * self._rate_hz) - done) < enough:
            self._sleep((enough - due) / self._rate_hz)
        return min(wanted, due)

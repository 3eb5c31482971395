"""Frames in the recording of a run: where they are, and what was sent in them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.ndimage

from ..blocks.waveforms.frame_sync import FrameFinder, FrameStart
from ..captures.datasets import gapless
from ..captures.meta import META_SUFFIX
from ..captures.reader import Recording
from ..errors import RecordingError, ScenarioError
from .runfolder import TX_BEACON_NAME, TX_USERS_NAME, RunFolder, unpack_users
from .scenario import Scenario

OnShare = Callable[[float], None]

_PIECE_SAMPLES = 1 << 16
# Clocks drift over seconds; a beacon alone tells timing and offset far worse than its neighbours together.
_SMOOTHED_FRAMES = 31


@dataclass(frozen=True)
class RecordedRun:
    """A run folder opened for reading: its scenario, the received signal and the table of what was sent."""

    folder: RunFolder
    scenario: Scenario
    recording: Recording
    truth: np.ndarray

    @classmethod
    def open(cls, folder: RunFolder) -> RecordedRun:
        """Open the folder of a run.

        Raises:
            RecordingError: it is none, has no recording, or does not say what was sent.
            ScenarioError: it is of another link than random access.
        """
        if not folder.path.is_dir():
            raise RecordingError(f"{folder.path} is not a folder; give the folder of a run")
        scenario = folder.scenario()
        if scenario.kind != "random-access":
            raise ScenarioError(
                f"{folder.path} is a run of {scenario.kind}; slots and channels are taken out of runs of random access"
            )
        recording = Recording.open(folder.recording)
        if recording.n_channels != scenario.radio.n_antennas:
            raise RecordingError(
                f"{recording.meta_path}, core:num_channels: is {recording.n_channels}, the run's scenario has "
                f"radio.n_antennas={scenario.radio.n_antennas}"
            )
        return cls(folder, scenario, recording, folder.rows(folder.truth))

    def active(self) -> np.ndarray:
        """Who was active in the frames of `truth`; bool, (frames, users)."""
        return unpack_users(self.truth["active"], self.scenario.users.n_users)

    def transmitted(self, name: str) -> Recording:
        """A recording of what was sent."""
        return Recording.open(self.folder.path / f"{name}{META_SUFFIX}")


def find_frames(run: RecordedRun, on_share: OnShare | None = None) -> list[tuple[FrameStart, int]]:
    """Find all frames of a run's recording that lie between gaps.

    Args:
        run: to be read through.
        on_share: told the share done.

    Returns:
        Frames in order, each with the index of the stretch without gaps in which it lies whole.
    """
    scenario, recording = run.scenario, run.recording
    finder = FrameFinder(
        scenario.frame, recording.n_channels, scenario.max_cfo_hz, scenario.sync.false_alarms_per_sample
    )
    found: list[tuple[FrameStart, int]] = []
    for index, (begin, end) in enumerate(gapless(recording)):
        for start in range(begin, end, _PIECE_SAMPLES):
            piece = recording.read(start, min(_PIECE_SAMPLES, end - start))
            found += [(frame, index) for frame in finder.process(piece)[1]]
            if on_share is not None:
                on_share(start / recording.n_samples)
        found += [(frame, index) for frame in finder.interrupt()]
        found = [
            (frame, place)
            for frame, place in found
            if place != index or begin <= frame.start <= end - scenario.frame.used_samples
        ]
    return found


@dataclass(frozen=True)
class Clocks:
    """Timing and carrier offset of frames, smoothed over their neighbours.

    Attributes:
        arrival: float64, (frames,): where each frame's first sample arrives, in samples of the file.
        cfo_hz: float64, (frames,).
        sampling_offset: relative excess of the transmitters' sampling clock.
    """

    arrival: np.ndarray
    cfo_hz: np.ndarray
    sampling_offset: float


def smooth_clocks(frames: list[tuple[FrameStart, int]], frame_samples: int) -> Clocks:
    """Take the noise out of the beacons' estimates of timing and carrier offset, stretch by stretch."""
    numbers = np.array([frame.frame_number for frame, _ in frames], float)
    places = np.array([frame.start + frame.fraction for frame, _ in frames])
    offsets = np.array([frame.cfo_hz for frame, _ in frames])
    stretch = np.array([index for _, index in frames])
    drift = places - numbers * frame_samples
    # One slope for all stretches, since the clocks are the same; each has an offset of its own.
    about = np.array([numbers - numbers[stretch == index].mean() for index in np.unique(stretch)])
    own = about[np.searchsorted(np.unique(stretch), stretch), np.arange(len(frames))]
    slope = float(own @ drift / max(own @ own, 1.0))
    arrival, cfo_hz = np.empty(len(frames)), np.empty(len(frames))
    for index in np.unique(stretch):
        mine = stretch == index
        arrival[mine] = numbers[mine] * (frame_samples + slope)
        arrival[mine] += _smoothed(drift[mine] - slope * numbers[mine])
        cfo_hz[mine] = _smoothed(offsets[mine])
    return Clocks(arrival, cfo_hz, -slope / frame_samples)


def _smoothed(values: np.ndarray) -> np.ndarray:
    width = min(_SMOOTHED_FRAMES, len(values) - (1 - len(values) % 2))
    return scipy.ndimage.median_filter(values, max(width, 1), mode="nearest")


def burst_waveforms(run: RecordedRun) -> dict[tuple[int, int], np.ndarray]:
    """What each user sent, by user and preamble length, as it was recorded; complex64, (samples,)."""
    recording = run.transmitted(TX_USERS_NAME)
    waves = {}
    for annotation in recording.annotations:
        named = re.fullmatch(r"user (\d+) L (\d+)", annotation.label)
        if named:
            samples = recording.read(annotation.sample_start, annotation.sample_count)[0]
            waves[int(named[1]), int(named[2])] = samples
    return waves


def beacon_waveform(run: RecordedRun, sent: Recording, row: np.void) -> np.ndarray | None:
    """What the beacon of a frame was; complex64, (samples,), or None where its recording ends before.

    Args:
        run: of the frame.
        sent: `run.transmitted(TX_BEACON_NAME)`.
        row: of the frame in `truth`.
    """
    fmt = run.scenario.frame
    start = int(row["start"]) - fmt.access_start
    if start < 0 or start + fmt.beacon_samples > sent.n_samples:
        return None
    return sent.read(start, fmt.beacon_samples)[0]


def sent_beacon(run: RecordedRun) -> Recording:
    """The recording of the transmitted beacon stream."""
    sent = run.transmitted(TX_BEACON_NAME)
    if sent.sample_rate_hz != run.recording.sample_rate_hz:
        raise ScenarioError(
            f"{sent.meta_path}: core:sample_rate is {sent.sample_rate_hz}, the received signal's "
            f"{run.recording.sample_rate_hz}; they are not of one run"
        )
    return sent

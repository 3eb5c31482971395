"""Finding frames in a multi-antenna stream, and cutting the access slot out of them.

Both classes take the stream in pieces of any size and give results that do not depend on the cuts, which is
what makes a replay decide as the live run did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .access import level_antennas, noise_powers, receive_access
from .beacon import read_header, sync_sequence
from .frame import FrameFormat
from .preamble_detector import Preamble, PreambleDetector, refuse_non_finite

# Frames followed without a readable header until every sample is searched again.
_MOST_UNREAD = 8


@dataclass(frozen=True)
class FrameStart:
    """A frame found in a stream.

    Attributes:
        start: index of the frame's first sample; the true start is start + fraction.
        fraction: fractional timing in samples, -0.5 to 0.5.
        cfo_hz: carrier offset of the beacon.
        metric: detection metric, 0 to 1.
        snr_db: beacon SNR per antenna.
        frame_number: the frame counter.
        counted: the header did not decode, and the number was counted on from an earlier frame.
        header_symbols: complex64, (cells,), equalised header symbols.
    """

    start: int
    fraction: float
    cfo_hz: float
    metric: float
    snr_db: float
    frame_number: int
    counted: bool
    header_symbols: np.ndarray


class FrameFinder:
    """Finds beacons on one or many antennas and reads their frame counter.

    It searches every sample until a header was read, and from then on only where the next frame is due, a prefix
    length to either side; where no beacon is found there it searches every sample again, from there on. A frame
    whose header fails its checksum takes its number from an earlier frame when it stands at a whole number of
    frame lengths from it; otherwise it is refused and counted in `refused`.

    Args:
        frame_format: numerology and slots.
        n_antennas: receive antennas.
        max_cfo_hz: largest carrier offset to expect, either sign.
        false_alarms_per_sample: of the beacon's detector in white noise.

    Attributes:
        delay_samples: by which the stream leaves later than it comes.
        refused: beacons whose frame number could not be told.
        searches: times the search of every sample began.
    """

    def __init__(
        self,
        frame_format: FrameFormat,
        n_antennas: int,
        max_cfo_hz: float,
        false_alarms_per_sample: float = 1e-10,
    ) -> None:
        self.frame_format = frame_format
        self.n_antennas = n_antennas
        self.max_cfo_hz = max_cfo_hz
        self._slack = frame_format.cp_samples
        options: dict[str, Any] = {
            "sample_rate_hz": frame_format.sample_rate_hz,
            "n_antennas": n_antennas,
            "max_cfo_hz": max_cfo_hz,
            "false_alarms_per_sample": false_alarms_per_sample,
            "min_distance_samples": frame_format.used_samples // 2,
        }
        self._detector = PreambleDetector(sync_sequence(frame_format), **options)
        self._look = PreambleDetector(sync_sequence(frame_format), block_samples=4 * self._slack, **options)
        self.delay_samples = self._detector.latency_samples + frame_format.beacon_samples
        self.refused = 0
        self.searches = 1
        self._held = np.zeros((n_antennas, self.delay_samples), np.complex64)
        self._filled = self.delay_samples
        self._end = 0
        self._searched = 0
        self._pending: list[Preamble] = []
        self._last: tuple[int, int] | None = None
        self._due: int | None = None
        self._unread = 0

    def process(self, samples: np.ndarray | Sequence[np.ndarray]) -> tuple[np.ndarray, list[FrameStart]]:
        """Take the next samples of the stream.

        Args:
            samples: complex64, (n_antennas, n), or one row per antenna.

        Returns:
            The stream delayed by `delay_samples` (zeros first), complex64 (n_antennas, n), a view that holds until
            the next call, and the frames found; each frame's start is still ahead of, or inside, the delayed samples
            returned with it.

        Raises:
            ValueError: a sample is not finite; nothing was taken then.
        """
        n = len(samples[0])
        self._make_room(n)
        first = self._filled - self.delay_samples
        fresh = self._held[:, self._filled : self._filled + n]
        for row, values in zip(fresh, samples, strict=True):
            row[:] = values
        refuse_non_finite(fresh, self._end)
        self._filled += n
        self._end += n
        return self._held[:, first : first + n], self._advance()

    def interrupt(self) -> list[FrameStart]:
        """Close the part of the stream processed so far, because samples are missing before the next one.

        Beacons that are not complete are forgotten; the delayed stream goes on unbroken.

        Returns:
            The last frames before the gap.
        """
        frames = []
        if self._due is None:
            self._pending += self._detector.flush()
            read = [self._read(found) for found in self._pending if self._complete(found)]
            frames = [frame for frame in read if frame is not None]
        self._last = None
        self._search_from(self._end)
        return frames

    def _advance(self) -> list[FrameStart]:
        """Search or follow as far as the samples reach. Each step depends on the samples alone, not on the calls."""
        frames: list[FrameStart] = []
        while True:
            if self._due is None:
                if not self._acquire(frames):
                    return frames
            elif self._end < self._due + self._slack + self.frame_format.beacon_samples:
                return frames
            else:
                self._follow(self._due, frames)

    def _acquire(self, frames: list[FrameStart]) -> bool:
        """Search all samples at hand; true once a header was read, from where on frames are followed."""
        if self._searched < self._end:
            self._pending += self._detector.process(self._view(self._searched, self._end))
            self._searched = self._end
        while self._pending and self._complete(self._pending[0]):
            frame = self._read(self._pending.pop(0))
            if frame is None:
                continue
            frames.append(frame)
            if not frame.counted:
                # Later beacons that the search has seen already are found again by following, whatever the calls.
                self._pending = []
                self._due = frame.start + self.frame_format.frame_samples
                self._unread = 0
                return True
        return False

    def _follow(self, due: int, frames: list[FrameStart]) -> None:
        """Look for a beacon where it is due; where there is none, search again."""
        first = due - self._slack
        found = self._look.look(self._view(first, due + self._slack + self.frame_format.sync_samples))
        near = found and abs(found[0].start - self._slack) < self._slack
        frame = self._read(replace(found[0], start=first + found[0].start)) if near else None
        self._unread = self._unread + 1 if frame is None or frame.counted else 0
        if frame is None or self._unread > _MOST_UNREAD:
            self._search_from(first)
        else:
            frames.append(frame)
            self._due = frame.start + self.frame_format.frame_samples

    def _search_from(self, index: int) -> None:
        self._due = None
        self._pending = []
        self._detector.restart(index)
        self._searched = index
        self.searches += 1

    def _view(self, start: int, end: int) -> np.ndarray:
        return self._held[:, self._filled - (self._end - start) : self._filled - (self._end - end)]

    def _make_room(self, n: int) -> None:
        if self._filled + n <= self._held.shape[1]:
            return
        # Room for several calls, so that what is still needed is seldom moved.
        delay = self.delay_samples
        held = self._held
        if held.shape[1] < 2 * delay + n:
            held = np.empty((self.n_antennas, delay + max(n + delay, 4 * delay)), np.complex64)
        held[:, :delay] = self._held[:, self._filled - delay : self._filled]
        self._held, self._filled = held, delay

    def _complete(self, found: Preamble) -> bool:
        return found.start + self.frame_format.beacon_samples <= self._end

    def _read(self, found: Preamble) -> FrameStart | None:
        """Read the header behind a synchronisation sequence; None, counted in `refused`, without a frame number."""
        fmt = self.frame_format
        beacon = self._view(found.start, found.start + fmt.beacon_samples)
        header = read_header(beacon, fmt, found.fraction, found.cfo_hz)
        number = header.frame_number
        counted = number is None
        if number is None:
            number = self._count_on(found.start)
        if number is None:
            self.refused += 1
            return None
        if not counted:
            self._last = (number, found.start)
        return FrameStart(
            found.start,
            found.fraction,
            found.cfo_hz,
            found.metric,
            found.snr_db,
            number,
            counted,
            header.symbols,
        )

    def _count_on(self, start: int) -> int | None:
        """Frame number at a start that lies whole frame lengths behind the last frame whose header was read."""
        if self._last is None:
            return None
        number, last_start = self._last
        frames, remainder = divmod(
            start - last_start + self.frame_format.frame_samples // 2, self.frame_format.frame_samples
        )
        slack = abs(remainder - self.frame_format.frame_samples // 2)
        return number + frames if frames > 0 and slack <= self.frame_format.cp_samples // 2 else None


@dataclass(frozen=True)
class AccessSlot:
    """What one access slot delivered.

    Attributes:
        frame: the frame it belongs to.
        snapshots: complex64, (Lp, antennas * n_groups).
        noise_power: estimated noise power per snapshot entry, the same on all antennas, always positive.
    """

    frame: FrameStart
    snapshots: np.ndarray
    noise_power: float


class SlotCutter:
    """Cuts one and the same part out of every frame that is announced to it.

    Args:
        n_antennas: rows of the stream.
        first_sample: of the part, from the frame start.
        n_samples: of the part.
    """

    def __init__(self, n_antennas: int, first_sample: int, n_samples: int) -> None:
        self.n_antennas = n_antennas
        self.first_sample = first_sample
        self.n_samples = n_samples
        self._index = 0
        self._open: list[tuple[FrameStart, np.ndarray]] = []

    def announce(self, frame: FrameStart) -> None:
        """Ask for the part of a frame whose start is not behind the samples processed so far."""
        if frame.start < self._index:
            raise ValueError(f"frame at sample {frame.start} announced late: the stream is at {self._index}")
        self._open.append((frame, np.empty((self.n_antennas, self.n_samples), np.complex64)))

    def cut(self, samples: np.ndarray | Sequence[np.ndarray]) -> list[tuple[FrameStart, np.ndarray]]:
        """Take the next samples; returns frames whose part became complete, with it, complex64 (n_antennas, n_samples).

        Args:
            samples: complex64, (n_antennas, n), or one row per antenna; only what lies in parts is copied.
        """
        begin, end = self._index, self._index + len(samples[0])
        self._index = end
        done, still_open = [], []
        for frame, window in self._open:
            first = frame.start + self.first_sample
            low, high = max(begin, first), min(end, first + window.shape[1])
            if low < high:
                for row, values in zip(window, samples, strict=True):
                    row[low - first : high - first] = values[low - begin : high - begin]
            if end >= first + window.shape[1]:
                done.append((frame, window))
            else:
                still_open.append((frame, window))
        self._open = still_open
        return done

    def interrupt(self) -> list[FrameStart]:
        """Drop the frames still open, as samples are missing from here on; returns them."""
        dropped = [frame for frame, _ in self._open]
        self._open = []
        return dropped


class AccessSlotCutter(SlotCutter):
    """Cuts access slot and noise slot out of a stream at the frames announced to it.

    Args:
        frame_format: numerology and slots.
        n_antennas: receive antennas.
        preamble_lengths: length sent in frame f is preamble_lengths[f % len(preamble_lengths)].
    """

    def __init__(self, frame_format: FrameFormat, n_antennas: int, preamble_lengths: Sequence[int]) -> None:
        for length in preamble_lengths:
            frame_format.symbols_of_length(length)
        super().__init__(n_antennas, frame_format.access_start, frame_format.used_samples - frame_format.access_start)
        self.frame_format = frame_format
        self.preamble_lengths = tuple(preamble_lengths)

    def length_of(self, frame_number: int) -> int:
        """Preamble length sent in a frame."""
        return self.preamble_lengths[frame_number % len(self.preamble_lengths)]

    def process(self, samples: np.ndarray | Sequence[np.ndarray]) -> list[AccessSlot]:
        """Take the next samples; returns the slots that became complete.

        Args:
            samples: complex64, (n_antennas, n), or one row per antenna.
        """
        return [self.demodulate(frame, window) for frame, window in self.cut(samples)]

    def demodulate(self, frame: FrameStart, window: np.ndarray) -> AccessSlot:
        """What the part of a frame delivered."""
        fmt = self.frame_format
        length = self.length_of(frame.frame_number)
        used = window[:, : fmt.symbols_of_length(length) * fmt.symbol_samples]
        snapshots = receive_access(used, fmt, length, frame.fraction, frame.cfo_hz)
        per_antenna = noise_powers(window[:, fmt.noise_start - fmt.access_start :], fmt)
        return AccessSlot(frame, *level_antennas(snapshots, per_antenna))

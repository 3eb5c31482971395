"""What a recording plays as: which samples, in which order, at which times and which rate. Without GNU Radio."""

from __future__ import annotations

import bisect
import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any, Literal, get_args

import numpy as np

from ..captures.reader import Annotation, Recording
from ..errors import RecordingError, ScenarioError
from .waveforms.resampling import Resampler, rate_ratio

Gaps = Literal["as-recorded", "stop", "splice", "zero"]
"""What becomes of places where samples were lost."""

LONGEST_FILL_S = 600.0
"""Longest gap that is filled with zeros."""
# Whole seconds of a time tag are an unsigned integer of 64 bits.
_LATEST_S = 2.0**63
_BLOCK_SAMPLES = 16384

log = logging.getLogger(__name__)


@contextmanager
def silence() -> Iterator[None]:
    """Let what plays inside say nothing about gaps: for callers who tell them with their results."""
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


@dataclass(frozen=True)
class PlayOptions:
    """How to play a recording.

    Attributes:
        channels: recorded channels to put out, in this order; None: all.
        gaps: "as-recorded": the samples follow each other and the time tags jump, as they did live, for receivers
            that read them. For anything that does not: "stop" ends before the first gap; "splice" joins what is
            there and lets the time run on; "zero" puts zeros in the place of lost samples, so that times hold.
        rate_hz: sample rate to put out; None: the recorded one.
        turns: how often to play it.
        frame_samples: play whole frames of this many recorded samples only; needed for more turns than one.
        frame_start: recorded sample at which a frame begins.
        max_samples: end after so many played samples per channel; None: no limit.
    """

    channels: tuple[int, ...] | None = None
    gaps: Gaps = "as-recorded"
    rate_hz: float | None = None
    turns: int = 1
    frame_samples: int | None = None
    frame_start: int = 0
    max_samples: int | None = None

    def __post_init__(self) -> None:
        if self.gaps not in get_args(Gaps):
            raise ScenarioError(f"gaps={self.gaps!r} is unknown; choose one of: {', '.join(get_args(Gaps))}")
        if self.turns < 1:
            raise ScenarioError(f"turns={self.turns}: at least 1 turn of the loop must be played")
        if self.frame_samples is not None and self.frame_samples < 1:
            raise ScenarioError(f"frame_samples={self.frame_samples}: a frame has at least 1 sample")
        if self.frame_start < 0:
            raise ScenarioError(f"frame_start={self.frame_start}: places in a recording start at 0")
        if self.max_samples is not None and self.max_samples < 1:
            raise ScenarioError(f"max_samples={self.max_samples}: at least 1 sample must be played")

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Mark:
    """Place in the played stream at which a radio would tell its time.

    Attributes:
        item: of the played stream, per channel.
        ticks: time there, in sample periods of the played rate.
        frequency_hz: centre frequency from here on.
        lost: samples lost before this place that the times do not tell, in periods of the recorded rate; negative
            where the clock was set back.
        turn: number of the turn that begins here; None where none does.
    """

    item: int
    ticks: int
    frequency_hz: float
    lost: int = 0
    turn: int | None = None


@dataclass(frozen=True)
class _Piece:
    """Adjacent samples of one capture segment, or zeros in the place of lost ones.

    Attributes:
        start: index in the file; None: zeros.
        count: samples.
        ticks: time of its first sample, in sample periods of the recorded rate.
        frequency_hz: centre frequency.
        lost: samples lost before it that the times do not tell.
        told: whether a radio would have told its time here.
    """

    start: int | None
    count: int
    ticks: int
    frequency_hz: float
    lost: int = 0
    told: bool = True

    def part(self, first: int, count: int) -> _Piece:
        """The same, cut to `count` samples from `first` on."""
        start = None if self.start is None else self.start + first
        return replace(self, start=start, count=count, ticks=self.ticks + first)


@dataclass(frozen=True)
class _Run:
    """Samples without a jump in time: `inputs` samples from `first_input` on give `items` from `first_item` on."""

    first_input: int
    inputs: int
    ticks: int
    first_item: int
    items: int
    first_ticks: int


class Playback:
    """A recording as it is to be played. The same recording and options give the same samples, bit for bit.

    Where the rate is changed, played samples lie at whole multiples of the new sample period on the radio's clock
    and the filter delays nothing: a sample played at time t is the recorded signal at time t. Every stretch without
    a jump in time is filtered by itself, as if silence surrounded it.

    Args:
        recording: the opened recording.
        options: how to play it.

    Attributes:
        channels: recorded channels put out, in order.
        recorded_rate_hz: of the recording; 1 where it does not say.
        rate_hz: of the played stream.
        n_samples: of the played stream, per channel.
        gaps: places at which samples are missing in the recording.
        stopped_at: index in the file of the gap before which it stops; None where it does not.
        skipped_samples: samples of the file that are not played, per channel.

    Raises:
        ScenarioError: a channel is not there or named twice, the rates are in no ratio of whole numbers, or loops
            would cross gaps or have no frames.
        RecordingError: no whole frame is there, a gap cannot be filled, or a time cannot be told.
    """

    def __init__(self, recording: Recording, options: PlayOptions | None = None) -> None:
        options = options or PlayOptions()
        if options.turns > 1 and options.frame_samples is None:
            raise ScenarioError(
                f"{recording.name}: turns={options.turns} of a loop, which is of whole frames: give frame_samples, and "
                "frame_start where one begins"
            )
        self.recording = recording
        self.options = options
        self.channels = _checked_channels(recording, options.channels)
        self.recorded_rate_hz = recording.sample_rate_hz or 1.0
        self.rate_hz = self.recorded_rate_hz if options.rate_hz is None else options.rate_hz
        try:
            self._ratio = rate_ratio(self.recorded_rate_hz, self.rate_hz)
        except ValueError as error:
            raise ScenarioError(f"{recording.name}: cannot be resampled: {error}") from error
        self._resampler = None if self._ratio == 1 else Resampler(self._ratio)
        stretches = _stretches(_pieces_of(recording, self.recorded_rate_hz))
        self.gaps = len(stretches) - 1
        self.stopped_at: int | None = None
        self._pieces = self._arrange(stretches)
        played = sum(piece.count for piece in self._pieces if piece.start is not None)
        self.skipped_samples = recording.n_samples - played
        ends = list(itertools.accumulate(piece.count for piece in self._pieces))
        self._inputs_before = [0, *ends[:-1]]
        self._turn_inputs = ends[-1]
        self._runs = self._make_runs()
        self._run_items = [run.first_item for run in self._runs]
        whole = self._runs[-1].first_item + self._runs[-1].items
        self.n_samples = whole if options.max_samples is None else min(whole, options.max_samples)
        self._marks: tuple[int, list[Mark]] | None = None
        self._block: tuple[tuple[int, int], np.ndarray] | None = None

    def _arrange(self, stretches: list[list[_Piece]]) -> list[_Piece]:
        """The pieces of one turn."""
        options, name = self.options, self.recording.name
        if options.gaps == "stop" and len(stretches) > 1:
            self.stopped_at = stretches[1][0].start
            stretches = stretches[:1]
        if options.frame_samples is not None:
            if len(stretches) > 1 and options.gaps != "splice":
                raise ScenarioError(
                    f"{name}: gaps={options.gaps!r} with {len(stretches) - 1} gaps: whole frames are played without "
                    "gaps; choose stop or splice"
                )
            stretches = _whole_frames(stretches, options.frame_samples, options.frame_start)
            if not stretches:
                raise RecordingError(
                    f"{name}: no whole frame of frame_samples={options.frame_samples} from "
                    f"frame_start={options.frame_start} on without a gap; correct them, or play without whole frames"
                )
        if options.gaps == "splice":
            return _spliced(stretches)
        if options.gaps == "zero":
            return _filled(stretches, name, round(LONGEST_FILL_S * self.recorded_rate_hz))
        return [piece for stretch in stretches for piece in stretch]

    def _make_runs(self) -> list[_Run]:
        runs: list[_Run] = []
        items = 0
        bounds = [0] + [
            k
            for k in range(1, len(self._pieces))
            if self._pieces[k].ticks != self._pieces[k - 1].ticks + self._pieces[k - 1].count
        ]
        for k, after in zip(bounds, [*bounds[1:], len(self._pieces)], strict=True):
            inputs = sum(piece.count for piece in self._pieces[k:after])
            if len(bounds) == 1:
                inputs *= self.options.turns
            ticks = self._pieces[k].ticks
            first = self._played_ticks(ticks)
            n_items = self._played_ticks(ticks + inputs) - first
            runs.append(_Run(self._inputs_before[k], inputs, ticks, items, n_items, first))
            items += n_items
        return runs

    def _played_ticks(self, ticks: int) -> int:
        """First instant of the played rate that is not before one of the recorded rate."""
        return -(-ticks * self._ratio.numerator // self._ratio.denominator)

    @property
    def end_ticks(self) -> int:
        """Time right behind the last played sample, in sample periods of the played rate."""
        run = self._runs[self._run_at(self.n_samples - 1)]
        return run.first_ticks + self.n_samples - run.first_item

    def warm_up(self) -> None:
        """Compile what is compiled at first use."""
        if self._resampler is not None:
            self._resampler.warm_up()

    def as_dict(self) -> dict[str, Any]:
        """Options and what came of them, as plain values."""
        return {
            **self.options.as_dict(),
            "channels": list(self.channels),
            "recorded_rate_hz": self.recorded_rate_hz,
            "rate_hz": self.rate_hz,
            "samples": self.n_samples,
            "recorded_gaps": self.gaps,
            "stopped_at": self.stopped_at,
            "skipped_samples": self.skipped_samples,
        }

    def read_into(self, item: int, out: Sequence[np.ndarray]) -> None:
        """Put played samples into memory that is there.

        Args:
            item: first sample of the played stream.
            out: complex64, (count,) per played channel.

        Raises:
            RecordingError: the file has changed since it was opened.
        """
        if self._resampler is None:
            # Inputs are numbered through, as the items are.
            self._read_inputs(item, out)
            return
        done, count = 0, len(out[0])
        while done < count:
            index = self._run_at(item + done)
            run = self._runs[index]
            place = item + done - run.first_item
            # Blocks lie on a grid of their own, so that every call computes the same.
            block, offset = divmod(place, _BLOCK_SAMPLES)
            values = self._resampled(index, block)
            n = min(count - done, values.shape[1] - offset)
            for row, value in zip(out, values, strict=True):
                row[done : done + n] = value[offset : offset + n]
            done += n

    def _resampled(self, index: int, block: int) -> np.ndarray:
        if self._block is None or self._block[0] != (index, block):
            assert self._resampler is not None
            run, filter_ = self._runs[index], self._resampler
            first = block * _BLOCK_SAMPLES
            count = min(_BLOCK_SAMPLES, run.items - first)
            position = (run.first_ticks + first) * filter_.down - run.ticks * filter_.up
            start, length = filter_.window(position, count)
            window = np.zeros((len(self.channels), length), np.complex64)
            low, high = max(start, 0), min(start + length, run.inputs)
            if low < high:
                self._read_inputs(run.first_input + low, list(window[:, low - start : high - start]))
            self._block = (index, block), filter_.resample(window, position, count)
        return self._block[1]

    def _read_inputs(self, place: int, out: Sequence[np.ndarray]) -> None:
        """Samples at the recorded rate, numbered through over pieces and turns."""
        done, count = 0, len(out[0])
        while done < count:
            at = (place + done) % self._turn_inputs
            k = bisect.bisect_right(self._inputs_before, at) - 1
            piece, offset = self._pieces[k], at - self._inputs_before[k]
            n = min(count - done, piece.count - offset)
            rows = [row[done : done + n] for row in out]
            if piece.start is None:
                for row in rows:
                    row[:] = 0
            else:
                self._read_file(piece.start + offset, rows)
            done += n

    def _read_file(self, start: int, rows: list[np.ndarray]) -> None:
        if len(rows) < self.recording.n_channels:
            unused = np.empty(len(rows[0]), np.complex64)
            recorded = [unused] * self.recording.n_channels
        else:
            recorded = list(rows)
        for channel, row in zip(self.channels, rows, strict=True):
            recorded[channel] = row
        self.recording.read_into(start, recorded)

    def marks(self, begin: int, end: int) -> list[Mark]:
        """Marks within a stretch of the played stream, in order, at most one per place.

        Args:
            begin: first item.
            end: item behind the last.
        """
        end = min(end, self.n_samples)
        if begin >= end:
            return []
        found: list[Mark] = []
        for turn in range(self._turn_at(begin), self._turn_at(end - 1) + 1):
            of_turn = self._marks_of(turn)
            low = bisect.bisect_left(of_turn, begin, key=lambda mark: mark.item)
            high = bisect.bisect_left(of_turn, end, key=lambda mark: mark.item)
            found += of_turn[low:high]
        return found

    def _turn_at(self, item: int) -> int:
        if self.options.turns == 1:
            return 0
        return int(self._input_place(item) // self._turn_inputs)

    def _marks_of(self, turn: int) -> list[Mark]:
        if self._marks is None or self._marks[0] != turn:
            self._marks = turn, list(self._make_marks(turn))
        return self._marks[1]

    def _make_marks(self, turn: int) -> Iterator[Mark]:
        pending: Mark | None = None
        runs = iter(self._runs)
        run = next(runs)
        for k, (piece, before) in enumerate(zip(self._pieces, self._inputs_before, strict=True)):
            if self.options.turns == 1 and before >= run.first_input + run.inputs:
                run = next(runs)
            if not piece.told:
                continue
            ticks = self._played_ticks(piece.ticks + turn * self._turn_inputs)
            begins = turn if self.options.turns > 1 and k == 0 else None
            mark = Mark(run.first_item + ticks - run.first_ticks, ticks, piece.frequency_hz, piece.lost, begins)
            if pending is not None and pending.item < mark.item:
                yield pending
            elif pending is not None:
                # Segments shorter than a sample of the played rate leave their news to the next.
                mark = replace(mark, lost=mark.lost + pending.lost, turn=pending.turn)
            pending = mark
        if pending is not None:
            yield pending

    def _run_at(self, item: int) -> int:
        return bisect.bisect_right(self._run_items, item) - 1

    def _input_place(self, item: int) -> Fraction:
        """Where a played sample lies among the samples at the recorded rate."""
        run = self._runs[self._run_at(item)]
        ticks = (run.first_ticks + item - run.first_item) / self._ratio
        return run.first_input + ticks - run.ticks

    def recorded_place(self, item: int) -> float:
        """Where a played sample lies in the file, in samples; of what was filled in, where the gap is."""
        place = self._input_place(item) % self._turn_inputs
        k = bisect.bisect_right(self._inputs_before, place) - 1
        start = self._pieces[k].start
        if start is None:
            after = self._pieces[k + 1].start
            assert after is not None
            return float(after)
        return float(start + place - self._inputs_before[k])

    def place_at(self, ticks: int) -> int | None:
        """Index in the file of the sample recorded at a time; None where none was, or where it is not played.

        Args:
            ticks: in sample periods of the recorded rate, as marks and time tags count.
        """
        for piece in self._pieces:
            if piece.start is not None and piece.ticks <= ticks < piece.ticks + piece.count:
                return piece.start + ticks - piece.ticks
        return None

    def annotations(self) -> list[Annotation]:
        """The recording's annotations as they lie in the first turn of the played stream; those in it only."""
        found = []
        by_start = sorted((p.start, p.count, u) for p, u in self._placed() if p.start is not None)
        starts = [start for start, _, _ in by_start]
        for note in self.recording.annotations:
            begin, end = note.sample_start, note.sample_start + max(note.sample_count, 1)
            parts = []
            for start, count, place in by_start[max(bisect.bisect_right(starts, begin) - 1, 0) :]:
                if start >= end:
                    break
                low, high = max(begin, start), min(end, start + count)
                if low < high:
                    parts.append((self._item_of(place + low - start), self._item_of(place + high - 1 - start, 1)))
            if parts and parts[0][0] < self.n_samples:
                first, last = parts[0][0], min(max(part[1] for part in parts), self.n_samples)
                length = max(last - first, 0) if note.sample_count else 0
                found.append(replace(note, sample_start=first, sample_count=length))
        return found

    def _placed(self) -> Iterator[tuple[_Piece, int]]:
        return zip(self._pieces, self._inputs_before, strict=True)

    def _item_of(self, place: int, behind: int = 0) -> int:
        """First played sample not before an input, or not before the one `behind` it in the same run."""
        k = bisect.bisect_right([run.first_input for run in self._runs], place) - 1
        run = self._runs[k]
        return run.first_item + self._played_ticks(run.ticks + place + behind - run.first_input) - run.first_ticks


def _checked_channels(recording: Recording, channels: Sequence[int] | None) -> tuple[int, ...]:
    if channels is None:
        return tuple(range(recording.n_channels))
    wrong = [channel for channel in channels if not 0 <= channel < recording.n_channels]
    if wrong or not channels:
        raise ScenarioError(
            f"{recording.name}: channel {wrong[0] if wrong else 'list is empty'}: the recording has "
            f"core:num_channels={recording.n_channels}, choose from 0 to {recording.n_channels - 1}"
        )
    if len(set(channels)) < len(channels):
        raise ScenarioError(f"{recording.name}: channels {list(channels)}: name each channel once")
    return tuple(channels)


def _pieces_of(recording: Recording, rate_hz: float) -> list[_Piece]:
    """Capture segments with their times.

    A segment without device time runs on from the one before it by the recorded sample count.
    """
    otherwise = recording.frequency_hz or 0.0
    pieces: list[_Piece] = []
    offset = 0
    for segment in recording.segments:
        count = segment.sample_start if segment.global_index is None else segment.global_index
        if segment.device_time is not None:
            offset = round(segment.device_time.seconds * Fraction(rate_hz)) - count
        frequency_hz = otherwise if segment.frequency_hz is None else segment.frequency_hz
        if not 0 <= offset + count < _LATEST_S * rate_hz:
            raise RecordingError(
                f"{recording.name}: the time of sample {segment.sample_start} is {(offset + count) / rate_hz:.6g} s; "
                f"times from 0 to {_LATEST_S:g} s can be told, mend the recording"
            )
        if segment.sample_count:
            pieces.append(_Piece(segment.sample_start, segment.sample_count, offset + count, frequency_hz))
    if not pieces or pieces[0].start:
        # Samples before the first segment: nothing says their time, so none is told.
        length = (pieces[0].start or 0) if pieces else recording.n_samples
        ticks = pieces[0].ticks - length if pieces else 0
        pieces.insert(0, _Piece(0, length, ticks, otherwise, told=ticks >= 0))
    return pieces


def _stretches(pieces: list[_Piece]) -> list[list[_Piece]]:
    """Pieces grouped so that time runs on within each group."""
    groups = [[pieces[0]]]
    for before, piece in itertools.pairwise(pieces):
        if piece.ticks == before.ticks + before.count:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return groups


def _end(stretch: list[_Piece]) -> int:
    return stretch[-1].ticks + stretch[-1].count


def _whole_frames(stretches: list[list[_Piece]], frame_samples: int, frame_start: int) -> list[list[_Piece]]:
    """Stretches cut to whole frames, whose grid goes on in time through gaps; those without one are left out."""
    grid = None
    found = []
    for stretch in stretches:
        if grid is None:
            for piece in stretch:
                assert piece.start is not None
                if piece.start <= frame_start < piece.start + piece.count:
                    grid = piece.ticks + frame_start - piece.start
            if grid is None:
                continue
        first = grid + max(0, -(-(stretch[0].ticks - grid) // frame_samples)) * frame_samples
        end = grid + (_end(stretch) - grid) // frame_samples * frame_samples
        if first < end:
            found.append(_cut(stretch, first, end))
    return found


def _cut(stretch: list[_Piece], first: int, end: int) -> list[_Piece]:
    """What lies between two times."""
    kept = []
    for piece in stretch:
        low, high = max(first, piece.ticks), min(end, piece.ticks + piece.count)
        if low < high:
            kept.append(replace(piece.part(low - piece.ticks, high - low), told=piece.told or low > piece.ticks))
    return kept


def _spliced(stretches: list[list[_Piece]]) -> list[_Piece]:
    """Everything in one row, with times that run on from the first."""
    pieces: list[_Piece] = []
    previous_end: int | None = None
    for stretch in stretches:
        for k, piece in enumerate(stretch):
            ticks = piece.ticks if not pieces else pieces[-1].ticks + pieces[-1].count
            lost = piece.ticks - previous_end if k == 0 and previous_end is not None else 0
            pieces.append(replace(piece, ticks=ticks, lost=lost))
        previous_end = _end(stretch)
    return pieces


def _filled(stretches: list[list[_Piece]], name: str, longest: int) -> list[_Piece]:
    """Everything in one row, with zeros in the place of lost samples."""
    pieces: list[_Piece] = []
    for stretch in stretches:
        if pieces:
            lost = stretch[0].ticks - _end(pieces)
            if not 0 <= lost <= longest:
                why = "the clock was set back" if lost < 0 else f"at most {longest} are filled"
                raise RecordingError(
                    f"{name}: {lost} samples are missing before sample {stretch[0].start}: {why}; "
                    "choose gaps=splice or gaps=stop"
                )
            pieces.append(_Piece(None, lost, _end(pieces), pieces[-1].frequency_hz, lost=lost))
        pieces += stretch
    return pieces

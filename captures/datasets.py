"""Data sets out of recordings: items of whole runs, split by run and never by item, none across a gap.

Items of one run share its room, its radios and its faults: a set that trains on some of them and judges by others
flatters. So a run is either trained with or kept out, and the same samples under another name are still the same run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import RecordingError, ScenarioError
from .reader import Recording


@dataclass(frozen=True)
class RunItems:
    """What one recording gives for training or evaluation.

    Attributes:
        name: for people, e.g. the run's folder.
        sha512: of the recorded samples, which tells runs apart.
        arrays: items along the first axis of each.
    """

    name: str
    sha512: str
    arrays: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        sizes = {name: len(values) for name, values in self.arrays.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"{self.name}: arrays of one run have the same number of items; these have {sizes}")

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values()), ()))


@dataclass(frozen=True)
class DataSet:
    """Runs to train with and runs to judge by.

    Raises:
        ScenarioError: a run is on both sides, or twice on one, or a side is empty.
    """

    training: tuple[RunItems, ...]
    kept_out: tuple[RunItems, ...]

    def __post_init__(self) -> None:
        for side, runs in (("to train with", self.training), ("kept out", self.kept_out)):
            if not any(len(run) for run in runs):
                raise ScenarioError(f"no items of runs {side}: give at least one run that holds some")
        seen: dict[str, str] = {}
        for run in (*self.training, *self.kept_out):
            if run.sha512 in seen:
                raise ScenarioError(
                    f"{run.name} holds the same samples as {seen[run.sha512]}: a run is trained with or kept out, and "
                    "given once"
                )
            seen[run.sha512] = run.name


def joined(runs: Sequence[RunItems]) -> dict[str, np.ndarray]:
    """All items of several runs, one after another, by array; `run` (int64) tells which run each is from.

    Raises:
        ValueError: the runs' items differ in shape or name.
    """
    names = {tuple(sorted(run.arrays)) for run in runs}
    if len(names) != 1:
        raise ValueError(f"runs with different arrays cannot be joined: {sorted(names)}")
    arrays = {name: np.concatenate([run.arrays[name] for run in runs]) for name in runs[0].arrays}
    return {**arrays, "run": np.repeat(np.arange(len(runs)), [len(run) for run in runs])}


def batches(runs: Sequence[RunItems], size: int, by: str, rng: np.random.Generator) -> Iterator[dict[str, np.ndarray]]:
    """Go once through all items in random order, in batches whose items are equal in one array.

    Args:
        runs: of one side of a data set.
        size: items per batch; the last ones of each value may be fewer.
        by: name of that array, e.g. `length`.
        rng: of the order.

    Yields:
        As `joined`, (up to size, ...) each.
    """
    if size < 1:
        raise ValueError(f"size={size}: batches have at least 1 item")
    arrays = joined(runs)
    groups = []
    for value in np.unique(arrays[by]):
        mine = rng.permutation(np.flatnonzero(arrays[by] == value))
        groups += [mine[start : start + size] for start in range(0, len(mine), size)]
    for k in rng.permutation(len(groups)):
        yield {name: values[groups[k]] for name, values in arrays.items()}


def gapless(recording: Recording) -> list[tuple[int, int]]:
    """Spans of a recording, [begin, end) in samples of the file, in which no sample is missing.

    Segments that do not say where they lie in the original stream are spans of their own.
    """
    spans: list[tuple[int, int]] = []
    expected: int | None = None
    for segment in recording.segments:
        end = segment.sample_start + segment.sample_count
        if spans and segment.global_index is not None and segment.global_index == expected:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((segment.sample_start, end))
        expected = None if segment.global_index is None else segment.global_index + segment.sample_count
    return spans


def windows(
    recording: Recording, starts: Sequence[int] | np.ndarray, n_samples: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Cut stretches of equal length out of a recording, leaving out those that reach over a gap or an end.

    Args:
        recording: to read from.
        starts: index in the file of each stretch's first sample.
        n_samples: of each.

    Yields:
        Index along `starts`, and complex64 (channels, n_samples).

    Raises:
        RecordingError: the file has changed since it was opened.
    """
    if n_samples < 1:
        raise RecordingError(f"n_samples={n_samples}: stretches have at least 1 sample")
    spans = gapless(recording)
    begins = np.array([begin for begin, _ in spans])
    for k, start in enumerate(starts):
        place = int(np.searchsorted(begins, start, side="right")) - 1
        if place >= 0 and start + n_samples <= spans[place][1]:
            yield k, recording.read(int(start), n_samples)

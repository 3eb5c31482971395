"""Error probability and time of activity detectors, all on the same draws.

Pools of preambles and draws come from `numpy.random.SeedSequence` with one key for evaluation and another one
for calibration: whatever the seed, no detector is ever judged on the draws that set its threshold.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ScenarioError
from ..statistics import Interval, mean_ci95
from .detectors import Detector, make
from .preambles import qpsk_preambles
from .simulate import Batch, Channel, draw_batch

_PURPOSES = {"evaluation": 0, "calibration": 1}


@dataclass(frozen=True)
class AccessScenario:
    """What is drawn; the defaults are the scenario of the semantic-aware MIMO paper (arXiv 2602.21672).

    Attributes:
        n_users: Users N.
        max_length: Symbols of the longest preamble.
        n_snapshots: Snapshots M.
        activity: Probability that a user sends.
        snr_db: Total received SNR of the ensemble.
        power_spread_db: Width of the users' power range, see `draw_batch`.
        noise_mismatch_db: Noise power told to the detectors over the true one.
        channel: See `draw_batch`.
    """

    n_users: int = 128
    max_length: int = 28
    n_snapshots: int = 64
    activity: float = 0.1
    snr_db: float = 10.0
    power_spread_db: float = 0.0
    noise_mismatch_db: float = 0.0
    channel: Channel | None = None


@dataclass(frozen=True)
class DetectorSetup:
    """A detector to evaluate: its registered name, its options, and the label it is reported under."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""

    def build(self, preambles: NDArray[np.complex64], activity: float) -> Detector:
        """The detector for this pool."""
        return make(self.name, preambles, activity, **self.options)

    @property
    def title(self) -> str:
        """The label, or else name and options."""
        options = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return self.label or (f"{self.name} ({options})" if options else self.name)


@dataclass(frozen=True)
class ErrorProbability:
    """Rates of wrong decisions of one detector at its default threshold, at one preamble length.

    Attributes:
        detector: Title of the setup.
        length: Preamble symbols.
        error: Share of users decided wrongly; interval over samples (slots), not decisions.
        miss: Share of the active users that were missed.
        false_alarm: Share of the silent users that were called active.
        threshold: Decision threshold used.
        pool_errors: Share of users decided wrongly with each pool of preambles.
        n_samples: Slots over all pools.
        slot_s: Median wall time of one slot in a batch of one, seconds.
    """

    detector: str
    length: int
    error: Interval
    miss: float
    false_alarm: float
    threshold: float
    pool_errors: tuple[float, ...]
    n_samples: int
    slot_s: float


Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


def error_table(
    setups: Sequence[DetectorSetup | str],
    lengths: Sequence[int],
    n_samples: int,
    n_pools: int,
    seed: int,
    scenario: AccessScenario | None = None,
    n_timed: int = 50,
    progress: Progress | None = None,
) -> list[ErrorProbability]:
    """Evaluate detectors over preamble lengths, every one on the same pools and slots.

    Args:
        setups: Detectors, as setups or registered names.
        lengths: Preamble lengths in symbols.
        n_samples: Slots per length and pool.
        n_pools: Pools of preambles; error probabilities of short preambles differ between pools by more than
            their confidence intervals.
        seed: Of the evaluation's pools and draws.
        scenario: What is drawn; None is the paper's.
        n_timed: Slots timed one by one for `slot_s`.
        progress: Called after every length of every pool.

    Returns:
        One row per length and detector, in the order given.

    Raises:
        ScenarioError: if a count is below 1 or a detector is unknown.
    """
    scenario = scenario or AccessScenario()
    if min(n_samples, n_pools, n_timed) < 1:
        raise ScenarioError(f"n_samples={n_samples}, n_pools={n_pools}, n_timed={n_timed}: each must be at least 1")
    chosen = [DetectorSetup(setup) if isinstance(setup, str) else setup for setup in setups]
    cells = [_Tally(setup.title, length) for length in lengths for setup in chosen]
    steps = 0
    for preambles, batches in _draws("evaluation", scenario, lengths, n_samples, n_pools, seed):
        detectors = [setup.build(preambles, scenario.activity) for setup in chosen]
        for at, batch in enumerate(batches):
            for k, detector in enumerate(detectors):
                cells[at * len(chosen) + k].add(detector, batch, n_timed, scenario.noise_mismatch_db)
            steps += 1
            if progress is not None:
                progress(steps, n_pools * len(lengths))
    return [cell.result() for cell in cells]


def slot_time(detector: Detector, y: NDArray[np.complex64], noise_power: NDArray[np.float64]) -> NDArray[np.float64]:
    """Wall time of each slot in a batch of one, with input checks, after a warm-up.

    Args:
        detector: The detector.
        y: complex64, (sample, symbol, snapshot).
        noise_power: float64, (sample,).

    Returns:
        float64, (sample,): seconds.
    """
    detector.warm_up(y.shape[1], y.shape[2])
    elapsed = np.empty(y.shape[0])
    for i in range(y.shape[0]):
        start = time.perf_counter()
        detector.detect(y[i : i + 1], noise_power[i : i + 1])
        elapsed[i] = time.perf_counter() - start
    return elapsed


def error_probability(detector: Detector, batch: Batch) -> Interval:
    """Share of users decided wrongly in a batch, with its interval over samples."""
    wrong = detector.detect(batch.y, batch.noise_power).active != batch.active
    return mean_ci95(wrong.mean(axis=1), unit=1 / detector.n_users)


def calibration_draws(
    scenario: AccessScenario, lengths: Sequence[int], n_samples: int, n_pools: int, seed: int
) -> Iterator[tuple[NDArray[np.complex64], list[Batch]]]:
    """Pools, each with one batch per length, that no evaluation draws, whatever its seed."""
    yield from _draws("calibration", scenario, lengths, n_samples, n_pools, seed)


def _draws(
    purpose: str, scenario: AccessScenario, lengths: Sequence[int], n_samples: int, n_pools: int, seed: int
) -> Iterator[tuple[NDArray[np.complex64], list[Batch]]]:
    root = np.random.SeedSequence(seed, spawn_key=(_PURPOSES[purpose],))
    for pool_seed in root.spawn(n_pools):
        # Every length has its own stream: its slots do not depend on which others are asked for.
        preambles = qpsk_preambles(scenario.n_users, scenario.max_length, np.random.default_rng(_child(pool_seed, 0)))
        batches = [
            draw_batch(
                np.random.default_rng(_child(pool_seed, length)),
                preambles,
                n_samples,
                length,
                scenario.n_snapshots,
                scenario.activity,
                scenario.snr_db,
                scenario.power_spread_db,
                scenario.channel,
            )
            for length in lengths
        ]
        yield preambles, batches


def _child(seed: np.random.SeedSequence, key: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, key))


class _Tally:
    """Decisions of one detector at one length, gathered over pools."""

    def __init__(self, title: str, length: int) -> None:
        self._title = title
        self._length = length
        self._wrong: list[NDArray[np.float64]] = []
        self._times: list[NDArray[np.float64]] = []
        self._counts = np.zeros(4, dtype=np.int64)  # active, missed, silent, alarms
        self._threshold = 0.0

    def add(self, detector: Detector, batch: Batch, n_timed: int, noise_mismatch_db: float) -> None:
        told = batch.noise_power * 10 ** (noise_mismatch_db / 10)
        if not self._times:
            self._times.append(slot_time(detector, batch.y[:n_timed], told[:n_timed]))
        found = detector.detect(batch.y, told).active
        wrong = found != batch.active
        self._wrong.append(wrong.mean(axis=1))
        self._counts += [
            batch.active.sum(),
            (wrong & batch.active).sum(),
            (~batch.active).sum(),
            (wrong & ~batch.active).sum(),
        ]
        self._threshold = detector.threshold(self._length)
        self._n_users = detector.n_users

    def result(self) -> ErrorProbability:
        wrong = np.concatenate(self._wrong)
        active, missed, silent, alarms = (int(count) for count in self._counts)
        return ErrorProbability(
            detector=self._title,
            length=self._length,
            error=mean_ci95(wrong, unit=1 / self._n_users),
            miss=missed / max(active, 1),
            false_alarm=alarms / max(silent, 1),
            threshold=self._threshold,
            pool_errors=tuple(float(pool.mean()) for pool in self._wrong),
            n_samples=wrong.size,
            slot_s=float(np.median(np.concatenate(self._times))),
        )

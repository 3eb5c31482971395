"""Error probability of many detectors over lengths, snapshots, activity, SNR, channels and pools, on the same slots.

A condition fixes what is drawn; every detector decides the same slots of it, slow ones the first part of them.
Thresholds of detectors whose scores are no probabilities are found on other slots of the same condition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import ScenarioError
from ..statistics import Interval, best_threshold, mean_ci95, miss_false_alarm_curve, paired_ratio_ci95
from .detectors import Detector, available, kind, make
from .detectors.learned import LearnedDetector
from .evaluate import DetectorSetup
from .preambles import qpsk_preambles
from .simulate import Batch, draw_batch

ChannelKind = Literal["rayleigh", "array", "lab"]

LENGTHS = (8, 9, 10, 11, 12, 13, 14, 15, 16, 20, 24, 28)
_MORE_SLOTS = {13: 2, 14: 2, 15: 4}
"""Longer preambles leave fewer errors to count; 16 and more take eight times the slots."""

_LEAST_SLOTS = 60
"""Decided by every detector, however slow, or a quarter of the base number where that is less."""

_CHUNK = 250
_POINTS_PER_DECADE = 12
_FRESH_POOLS = 8
_PURPOSES = {"evaluation": 0, "calibration": 1}


@dataclass(frozen=True)
class Condition:
    """What is drawn; the defaults are the paper's scenario (arXiv 2602.21672).

    Attributes:
        length: Preamble symbols.
        n_snapshots: Snapshots; of "array" and "lab" always 64.
        activity: Probability that a user sends; told to the detectors.
        snr_db: Total received SNR of the ensemble.
        channel: "rayleigh": i.i.d.; "array": clustered at an 8x8 planar array; "lab": 4 antennas x 16 groups of
            subcarriers with the delay spread of the lab scenario.
        fresh_pool: Preambles drawn for the evaluation instead of the pool of `pool_seed`.
        n_users: Users.
        max_length: Symbols of the longest preamble.
        pool_seed: Of the pool that networks are trained with.
    """

    length: int = 12
    n_snapshots: int = 64
    activity: float = 0.1
    snr_db: float = 10.0
    channel: ChannelKind = "rayleigh"
    fresh_pool: bool = False
    n_users: int = 128
    max_length: int = 28
    pool_seed: int = 1


@dataclass(frozen=True)
class Contender:
    """A detector to evaluate.

    Attributes:
        setup: Name, options, label.
        calibrated: Whether its threshold is the best one of calibration slots of the same condition; otherwise its
            own.
        share: Of the slots that it decides.
        channels: Kinds of channel that it is evaluated on; empty: all.
    """

    setup: DetectorSetup
    calibrated: bool = False
    share: float = 1.0
    channels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """Decisions of one detector in one condition.

    Attributes:
        detector: Title of the setup.
        condition: What was drawn.
        error: Share of users decided wrongly; interval over slots.
        miss: Share of the active users that were missed.
        false_alarm: Share of the silent users that were called active.
        threshold: Decision threshold.
        n_slots: Slots decided.
        over_cd: Its error probability over that of "cd" on the same slots; None without or for cd itself.
        curve: False alarm and miss rates over thresholds, where asked for.
        wrong: int, (slot,): users decided wrongly; not part of `as_dict`.
    """

    detector: str
    condition: Condition
    error: Interval
    miss: float
    false_alarm: float
    threshold: float
    n_slots: int
    over_cd: Interval | None
    curve: tuple[tuple[float, float], ...]
    wrong: NDArray[np.int64] = field(repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {name: value for name, value in vars(self).items() if name != "wrong"}
        return {
            **values,
            "condition": asdict(self.condition),
            "error": list(self.error),
            "over_cd": None if self.over_cd is None else [x if math.isfinite(x) else None for x in self.over_cd],
            "curve": [list(point) for point in self.curve],
        }


@dataclass(frozen=True)
class Sweep:
    """Conditions that differ in one thing.

    Attributes:
        name: For people and files.
        axis: What differs, a field of `Condition`.
        conditions: In order.
        slots: Slots of each, as multiples of the base number.
        curves: Whether miss against false alarm is kept.
    """

    name: str
    axis: str
    conditions: tuple[Condition, ...]
    slots: tuple[float, ...]
    curves: bool = False


def sweeps(quick: bool = False) -> dict[str, Sweep]:
    """The evaluation of activity detectors, by sweep name; `quick` takes fewer conditions."""
    base = Condition()

    def over(
        name: str, axis: str, values: Sequence[Any], conditions: Sequence[Condition], curves: bool = False
    ) -> Sweep:
        made = tuple(replace(condition, **{axis: value}) for condition in conditions for value in values)
        slots = tuple(1.0 if axis != "length" else float(_more(condition.length)) for condition in made)
        return Sweep(name, axis, made, slots, curves)

    at_8, at_12 = replace(base, length=8), base
    lengths = (8, 12, 16) if quick else LENGTHS
    some = (8, 12) if quick else (8, 12, 16, 20)
    correlated = [replace(base, channel="array"), replace(base, channel="lab")]
    found = [
        over("length", "length", lengths, [base], curves=True),
        over("snapshots", "n_snapshots", (16, 64) if quick else (16, 32, 64, 128, 256), [at_8, at_12]),
        over("activity", "activity", (0.05, 0.2) if quick else (0.05, 0.1, 0.15, 0.2, 0.3), [at_12]),
        over("snr", "snr_db", (0.0, 15.0) if quick else (-5.0, 0.0, 5.0, 10.0, 15.0, 20.0), [at_12]),
        over("channel", "length", some, correlated),
        over("pool", "fresh_pool", (False, True), [at_8] if quick else [at_8, replace(base, length=10), at_12]),
    ]
    return {sweep.name: sweep for sweep in found}


def _more(length: int) -> int:
    return 8 if length >= 16 else _MORE_SLOTS.get(length, 1)


def contenders(names: Sequence[str] | None = None) -> list[Contender]:
    """Detectors with the effort they are worth.

    Args:
        names: Registered names or paths of weights; None: all that are installed, and those networks that take an
            unknown noise power once more without being told it.

    Raises:
        SemairError: one is unknown, or its weights are damaged.
    """
    chosen: list[Contender] = []
    for name in available() if names is None else names:
        found = kind(name)
        if not issubclass(found, LearnedDetector):
            # Message passing takes a hundred times as long as the others.
            share = 1 / 40 if name == "gmmv-amp" else 1.0
            chosen.append(Contender(DetectorSetup(name), calibrated=name != "map-search", share=share))
            continue
        card = found.card_of()
        trained = card.scenario
        channels = tuple(trained["channels"])
        if trained["pool"] == "fresh" and "rayleigh" in channels:
            channels = ()
        options = {"beyond_training": True}
        share = 1.0 if card.network.n_parameters < 100_000 else 1 / 4
        chosen.append(Contender(DetectorSetup(name, options, name), share=share, channels=channels))
        if trained["mixture"]["noise_unknown"] > 0:
            unknown = DetectorSetup(name, {**options, "noise": "unknown"}, f"{name}, noise unknown")
            chosen.append(Contender(unknown, share=share, channels=channels))
    return chosen


class Evaluation:
    """Evaluates contenders on conditions, one after the other.

    Args:
        chosen: Detectors.
        n_slots: Slots of a condition, before the multiples of its sweep.
        seed: Of all draws and fresh pools.
    """

    def __init__(self, chosen: Sequence[Contender], n_slots: int, seed: int) -> None:
        if n_slots < 2 or not chosen:
            raise ScenarioError(f"n_slots={n_slots}, {len(chosen)} detectors: at least 2 slots and 1 detector")
        self.chosen = list(chosen)
        self.n_slots = n_slots
        self.seed = seed
        self._detectors: dict[Any, Detector] = {}

    def rows(
        self,
        condition: Condition,
        slots: float = 1.0,
        curves: bool = False,
        on_share: Callable[[float], None] | None = None,
    ) -> list[Row]:
        """Evaluate all contenders that are meant for a condition.

        Args:
            condition: What is drawn.
            slots: Multiple of the base number of slots.
            curves: Whether to keep miss against false alarm.
            on_share: Told the share done.

        Returns:
            One row per contender, in their order.
        """
        fitting = [one for one in self.chosen if not one.channels or condition.channel in one.channels]
        n_slots = max(2, round(self.n_slots * slots))
        least = min(_LEAST_SLOTS, math.ceil(self.n_slots / 4))
        counts = [min(n_slots, max(least, math.ceil(n_slots * one.share))) for one in fitting]
        calibration = max(2, n_slots // 2)
        thresholds: list[float | None] = []
        for one, count in zip(fitting, counts, strict=True):
            n = max(2, min(calibration, count))
            thresholds.append(self._best_threshold(one, condition, n) if one.calibrated else None)
        if on_share is not None:
            on_share(0.3)
        tallies = [_Tally(curves) for _ in fitting]
        done = 0
        for pool_key, preambles, batch in draw_slots(condition, n_slots, self.seed, "evaluation"):
            for one, count, threshold, tally in zip(fitting, counts, thresholds, tallies, strict=True):
                take = min(max(count - done, 0), len(batch.y))
                if take:
                    detector = self._detector(one, pool_key, preambles, condition.activity)
                    scores = detector.scores(batch.y[:take], batch.noise_power[:take])
                    used = detector.threshold(condition.length) if threshold is None else threshold
                    tally.add(scores, batch.active[:take], used)
            done += len(batch.y)
            if on_share is not None:
                on_share(0.3 + 0.7 * done / n_slots)
        wrong = {one.setup.title: tally.wrong for one, tally in zip(fitting, tallies, strict=True)}
        return [
            tally.row(one.setup.title, condition, wrong.get("cd")) for one, tally in zip(fitting, tallies, strict=True)
        ]

    def _best_threshold(self, one: Contender, condition: Condition, n_slots: int) -> float:
        scores, truth = [], []
        for pool_key, preambles, batch in draw_slots(condition, n_slots, self.seed, "calibration"):
            detector = self._detector(one, pool_key, preambles, condition.activity)
            scores.append(detector.scores(batch.y, batch.noise_power))
            truth.append(batch.active)
        return best_threshold(np.concatenate(scores), np.concatenate(truth))

    def _detector(self, one: Contender, pool_key: Any, preambles: NDArray[np.complex64], activity: float) -> Detector:
        key = (one.setup.name, tuple(sorted(one.setup.options.items())), pool_key, activity)
        if key not in self._detectors:
            self._detectors[key] = make(one.setup.name, preambles, activity, **one.setup.options)
        return self._detectors[key]


def draw_slots(
    condition: Condition, n_slots: int, seed: int, purpose: Literal["evaluation", "calibration"]
) -> Iterator[tuple[tuple[Any, ...], NDArray[np.complex64], Batch]]:
    """Draw the slots of a condition piece by piece.

    With the pool of training the first slots are the same whatever their number.

    Args:
        condition: What is drawn.
        n_slots: Slots.
        seed: Of draws and fresh pools.
        purpose: Slots of one purpose never occur under the other.

    Yields:
        What identifies the pool, the pool, complex64 (max_length, user), and slots.
    """
    spread = [float(value) if not isinstance(value, str) else ord(value[0]) for value in asdict(condition).values()]
    key = [int(np.float64(value).view(np.uint64)) for value in spread]
    root = np.random.SeedSequence([seed, _PURPOSES[purpose], *key])
    chunk = _CHUNK if not condition.fresh_pool else max(1, min(_CHUNK, n_slots // _FRESH_POOLS))
    for piece, first in enumerate(range(0, n_slots, chunk)):
        rng = np.random.default_rng(np.random.SeedSequence(root.entropy, spawn_key=(piece,)))
        pool_key: tuple[Any, ...] = ("seed", condition.pool_seed)
        pool_rng = np.random.default_rng(condition.pool_seed)
        if condition.fresh_pool:
            number = piece % _FRESH_POOLS
            pool_key = (purpose, seed, number)
            pool_rng = np.random.default_rng([seed, _PURPOSES[purpose], number, 77])
        preambles = qpsk_preambles(condition.n_users, condition.max_length, pool_rng)
        batch = _batch(condition, preambles, chunk, rng)
        n = min(chunk, n_slots - first)
        yield pool_key, preambles, Batch(batch.y[:n], batch.active[:n], batch.noise_power[:n])


def _batch(condition: Condition, preambles: NDArray[np.complex64], n: int, rng: np.random.Generator) -> Batch:
    if condition.channel == "rayleigh":
        c = condition
        return draw_batch(rng, preambles, n, c.length, c.n_snapshots, c.activity, c.snr_db)
    import torch

    from .draws import ArrayChannel, LabChannel, Mixture, draw

    mixture = Mixture(
        n_users=condition.n_users,
        max_length=condition.max_length,
        lengths=(condition.length,),
        activity=(condition.activity, condition.activity),
        snr_db=(condition.snr_db, condition.snr_db),
        channels=(ArrayChannel() if condition.channel == "array" else LabChannel(),),
    )
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    slots = draw(mixture, torch.tensor(preambles), n, generator)
    assert slots.noise_power is not None
    return Batch(slots.y.numpy(), slots.active.numpy(), slots.noise_power.double().numpy())


class _Tally:
    """Decisions of one detector in one condition, gathered over pieces."""

    def __init__(self, keep: bool) -> None:
        self._keep = keep
        self._wrong: list[NDArray[np.int64]] = []
        self._counts = np.zeros(4, np.int64)  # active, missed, silent, alarms
        self._scores: list[NDArray[np.float64]] = []
        self._truth: list[NDArray[np.bool_]] = []
        self._threshold = math.nan

    def add(self, scores: NDArray[np.float64], active: NDArray[np.bool_], threshold: float) -> None:
        self._threshold = threshold
        self._n_users = scores.shape[1]
        wrong = (scores > threshold) != active
        self._wrong.append(wrong.sum(axis=1))
        self._counts += [active.sum(), (wrong & active).sum(), (~active).sum(), (wrong & ~active).sum()]
        if self._keep:
            self._scores.append(scores)
            self._truth.append(active)

    @property
    def wrong(self) -> NDArray[np.int64]:
        return np.concatenate(self._wrong)

    def row(self, title: str, condition: Condition, of_cd: NDArray[np.int64] | None) -> Row:
        wrong = self.wrong
        active, missed, silent, alarms = (int(count) for count in self._counts)
        over = None
        if of_cd is not None and title != "cd" and of_cd[: len(wrong)].any():
            over = paired_ratio_ci95(wrong, of_cd[: len(wrong)])
        estimate = mean_ci95(wrong / self._n_users, 1 / self._n_users)
        return Row(
            detector=title,
            condition=condition,
            error=Interval(estimate.value, max(estimate.low, 0.0), min(estimate.high, 1.0)),
            miss=missed / max(active, 1),
            false_alarm=alarms / max(silent, 1),
            threshold=self._threshold,
            n_slots=len(wrong),
            over_cd=over,
            curve=self._curve() if self._keep else (),
            wrong=wrong,
        )

    def _curve(self) -> tuple[tuple[float, float], ...]:
        """(false alarm, miss), thinned to points that a line on logarithmic axes needs."""
        curve = miss_false_alarm_curve(np.concatenate(self._scores), np.concatenate(self._truth))
        rates = np.stack([curve.false_alarm, curve.miss])
        cells = np.round(_POINTS_PER_DECADE * np.log10(np.maximum(rates, 1e-9)))
        keep = np.append(True, np.any(np.diff(cells, axis=1) != 0, axis=0))
        keep[-1] = True
        return tuple((float(x), float(y)) for x, y in rates[:, keep].T)


def as_json(results: Mapping[str, Sequence[Row]], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values of everything measured."""
    return {
        "format": 1,
        "settings": dict(settings),
        "sweeps": {name: [row.as_dict() for row in rows] for name, rows in results.items()},
    }

"""The interface of every activity detector, classical or learned."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntFlag
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ....errors import ScenarioError


class Flag(IntFlag):
    """Why a decision deserves less trust than usual; several may be set at once."""

    SILENT = 1
    """The slot is zero throughout: nothing was received."""

    CROWDED = 2
    """More users seem active than a learned detector ever saw in training."""

    UNSTABLE = 4
    """Scores were no numbers; they are replaced by 0."""

    @property
    def meaning(self) -> str:
        """What is said of slots that carry this one flag."""
        return _MEANINGS[self]


_MEANINGS = {
    Flag.SILENT: "zero throughout: nothing was received",
    Flag.CROWDED: "more users seem active than the detector was trained for",
    Flag.UNSTABLE: "the detector's scores were no numbers, and count as 0",
}


@dataclass(frozen=True)
class Detection:
    """What a detector found.

    Attributes:
        scores: float64, (sample, user): the larger, the more likely active.
        active: bool, (sample, user): `scores > threshold`.
        flags: uint8, (sample,): sums of `Flag`, 0 where there is nothing to say.
    """

    scores: NDArray[np.float64]
    active: NDArray[np.bool_]
    flags: NDArray[np.uint8]


class Detector(ABC):
    """Finds which users sent their preamble in an access slot.

    A sample's scores are the same bits whatever else is in its batch, and in every call.

    Args:
        preambles: complex64, (max_length, user): the pool; users send the first L symbols of their column.
        activity: Prior probability in (0, 1) that a user sends.
        threshold: Decision threshold on the scores for every length; None takes the calibrated one.

    Raises:
        ScenarioError: if an argument is out of range.

    A detector is a subclass in a module of this package that sets `name` and `thresholds` and computes
    `_scores`. Further keyword arguments of its constructor are its options.
    """

    name: ClassVar[str]
    """How a scenario names the detector."""

    thresholds: Mapping[int, float]
    """Preamble length -> threshold of least error probability, from `semair.models.uad.calibrate`."""

    def __init__(self, preambles: ArrayLike, activity: float, *, threshold: float | None = None) -> None:
        pool = np.array(preambles, dtype=np.complex64, order="C")
        if pool.ndim != 2 or 0 in pool.shape:
            raise ScenarioError(f"preambles has shape {pool.shape}; needs (max_length, user), both at least 1")
        if not np.isfinite(pool).all():
            raise ScenarioError("preambles holds NaN or infinite symbols; draw the pool again")
        if not pool[0].all():
            raise ScenarioError("preambles starts with a zero symbol for some user, which length 1 cannot detect")
        if not 0 < activity < 1:
            raise ScenarioError(f"activity={activity}: a probability between 0 and 1, both excluded")
        if threshold is not None and not np.isfinite(threshold):
            raise ScenarioError(f"threshold={threshold}: a finite number, or None for the calibrated threshold")
        pool.setflags(write=False)
        self.preambles: NDArray[np.complex64] = pool
        self.activity = float(activity)
        self._threshold = threshold

    @property
    def max_length(self) -> int:
        """Longest preamble in symbols."""
        return int(self.preambles.shape[0])

    @property
    def n_users(self) -> int:
        """Number of users that own a preamble."""
        return int(self.preambles.shape[1])

    def check_lengths(self, lengths: Iterable[int]) -> None:
        """Refuse preamble lengths that cannot be detected, before anything that takes time.

        Raises:
            SemairError: one of them, in symbols, does not suit this detector.
        """
        outside = sorted({length for length in lengths if not 1 <= length <= self.max_length})
        if outside:
            raise ScenarioError(f"preamble lengths {outside}: the preambles have 1 to {self.max_length} symbols")

    def describe(self) -> dict[str, Any]:
        """What decides on the scores beside name, options and software; plain values."""
        return {}

    def scores(self, y: ArrayLike, noise_power: ArrayLike) -> NDArray[np.float64]:
        """Score every user in every sample.

        Args:
            y: complex64, (sample, symbol, snapshot): 1 to max_length symbols, any number of snapshots.
            noise_power: float64, (sample,) or one number for all: noise variance per complex symbol, above 0.

        Returns:
            float64, (sample, user), finite: the larger, the more likely active.

        Raises:
            ValueError: if a shape does not fit, a value is NaN or infinite, or a noise power is not positive.
        """
        return self.detect(y, noise_power).scores

    def threshold(self, length: int) -> float:
        """Decision threshold for preambles of `length` symbols, interpolated between calibrated lengths."""
        if self._threshold is not None:
            return float(self._threshold)
        known = sorted(self.thresholds)
        return float(np.interp(length, known, [self.thresholds[at] for at in known]))

    def detect(self, y: ArrayLike, noise_power: ArrayLike) -> Detection:
        """Score every user and decide with `threshold`; arguments and errors as in `scores`.

        In a sample that is zero throughout nobody is active, and it is flagged.
        """
        received, noise = self._checked(y, noise_power)
        scores = self._scores(received, noise)
        finite = np.isfinite(scores)
        broken = not finite.all()
        if broken:
            scores[~finite] = 0.0
        active = scores > self.threshold(received.shape[1])
        flags = self._flags(received, noise, scores)
        heard = received.any(axis=(1, 2))
        if not heard.all():
            active[~heard] = False
            flags[~heard] |= Flag.SILENT
        if broken:
            flags[~finite.all(axis=1)] |= Flag.UNSTABLE
        return Detection(scores, active, flags)

    def warm_up(self, length: int, n_snapshots: int) -> None:
        """Compile and fill caches for slots of this shape, so that the first real slot is not late."""
        rng = np.random.default_rng(0)
        y = rng.standard_normal((1, length, n_snapshots, 2)) @ np.array([1, 1j])
        self.detect(y, 1.0)

    @abstractmethod
    def _scores(self, y: NDArray[np.complex64], noise_power: NDArray[np.float64]) -> NDArray[np.float64]:
        """Score checked input: complex64 (sample, symbol, snapshot), C-contiguous; float64 (sample,). A new array."""

    def _flags(
        self, y: NDArray[np.complex64], noise_power: NDArray[np.float64], scores: NDArray[np.float64]
    ) -> NDArray[np.uint8]:
        """What there is to say about checked input and finite scores, (sample, user); uint8, (sample,), a new array."""
        return np.zeros(len(scores), np.uint8)

    def _checked(self, y: ArrayLike, noise_power: ArrayLike) -> tuple[NDArray[np.complex64], NDArray[np.float64]]:
        received = np.ascontiguousarray(y, dtype=np.complex64)
        if received.ndim != 3 or received.shape[2] < 1:
            raise ValueError(f"y has shape {received.shape}; needs (sample, symbol, snapshot) with at least 1 snapshot")
        if not 1 <= received.shape[1] <= self.max_length:
            raise ValueError(
                f"y has {received.shape[1]} symbols; the preambles allow 1 to {self.max_length}; "
                "pass the slot's preamble part alone, or detect with a longer pool"
            )
        if not np.isfinite(received).all():
            raise ValueError("y holds NaN or infinite values; drop the slot before detection")
        noise = np.asarray(noise_power, dtype=np.float64)
        if noise.ndim > 1 or (noise.ndim == 1 and noise.shape[0] != received.shape[0]):
            raise ValueError(
                f"noise_power has shape {noise.shape}; needs one value per sample, ({received.shape[0]},), "
                "or one number for all"
            )
        if not (np.isfinite(noise).all() and (noise > 0).all()):
            raise ValueError("noise_power must be positive and finite; estimate it from unused resources")
        return received, np.ascontiguousarray(np.broadcast_to(noise, received.shape[:1]))


def checked_count(name: str, value: int, least: int = 1) -> int:
    """An option that counts something, as int; ScenarioError if it is no integer or below `least`."""
    try:
        count = operator.index(value)
    except TypeError:
        count = least - 1
    if isinstance(value, bool) or count < least:
        raise ScenarioError(f"{name}={value!r}: a whole number, {least} or more")
    return count


def checked_positive(name: str, value: float) -> float:
    """An option that is positive and finite, as float; ScenarioError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 < value < np.inf:
        raise ScenarioError(f"{name}={value!r}: a positive finite number")
    return float(value)

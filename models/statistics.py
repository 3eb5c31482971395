"""Confidence intervals and decision curves, shared by reports and benchmarks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

_FEW = 20
"""Below this many samples with an event, their count is treated as binomial and not as normal."""


class Interval(NamedTuple):
    """An estimate with its two-sided 95 % confidence interval."""

    value: float
    low: float
    high: float


class DecisionCurve(NamedTuple):
    """Rates of wrong decisions at ascending thresholds, for the rule `score > threshold`.

    Attributes:
        thresholds: float64, (point,): the first is -inf (all active), then every distinct score.
        miss: float64, (point,): share of the active that are missed, 0 where none is active.
        false_alarm: float64, (point,): share of the silent that are called active, 0 where none is silent.
        error: float64, (point,): share of wrong decisions.
    """

    thresholds: NDArray[np.float64]
    miss: NDArray[np.float64]
    false_alarm: NDArray[np.float64]
    error: NDArray[np.float64]


def mean_ci95(per_sample_values: ArrayLike, unit: float = 1.0) -> Interval:
    """Estimate a mean over independent samples.

    Errors cluster in samples (slots, images, frames), so the values are one per sample, such as a slot's
    share of wrong users, and not one per decision. Student's t interval, unless fewer than 20 samples differ
    from 0 and others do not: then the share of samples that differ from 0 gets its exact binomial interval,
    and their mean value scales it. Where no sample differs from 0, `unit` takes the place of that mean.

    Args:
        per_sample_values: float, (sample,), finite, at least one; 0 or above where most are 0.
        unit: Value to assume for a sample with an event when none was seen; for a share of wrong users
            among N, 1 / N is one wrong user. The default, 1, is safe for every share.

    Returns:
        Mean and interval; the interval of one single value that is not 0 is infinite.

    Raises:
        ValueError: if there is no value or one is not finite.
    """
    values = np.asarray(per_sample_values, dtype=np.float64).ravel()
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"per_sample_values: needs at least one value, all finite; got {values.size} values")
    mean = float(values.mean())
    nonzero = values[values != 0]
    if nonzero.size < min(_FEW, values.size) and (nonzero >= 0).all():
        share = proportion_ci95(nonzero.size, values.size)
        size = float(nonzero.mean()) if nonzero.size else unit
        return Interval(mean, share.low * size, share.high * size)
    if values.size == 1:
        return Interval(mean, -np.inf, np.inf)
    half = float(stats.t.ppf(0.975, values.size - 1) * values.std(ddof=1) / np.sqrt(values.size))
    return Interval(mean, mean - half, mean + half)


def grouped_mean_ci95(per_sample_values: ArrayLike, groups: ArrayLike) -> Interval:
    """Estimate a mean over samples of which those of one group are alike, such as drops of one place.

    Student's t interval from the sums over groups of deviations from the mean, groups taken for independent.

    Args:
        per_sample_values: float, (sample,), finite, at least one.
        groups: integers, (sample,).

    Returns:
        Mean over samples and interval; with one group it is infinite.

    Raises:
        ValueError: there is no value, one is not finite, or the sizes differ.

    Source: Liang and Zeger, "Longitudinal data analysis using generalized linear models", Biometrika 73, 1986.
    """
    values = np.asarray(per_sample_values, dtype=np.float64).ravel()
    _, members = np.unique(np.asarray(groups).ravel(), return_inverse=True)
    if values.size == 0 or not np.isfinite(values).all() or members.size != values.size:
        raise ValueError(
            f"per_sample_values: needs at least one value, all finite, and a group for each; got {values.size} values "
            f"and {members.size} groups"
        )
    mean = float(values.mean())
    sums = np.bincount(members, values - mean)
    if sums.size == 1:
        return Interval(mean, -np.inf, np.inf)
    spread = np.sqrt(sums.size / (sums.size - 1) * np.sum(sums**2)) / values.size
    half = float(stats.t.ppf(0.975, sums.size - 1) * spread)
    return Interval(mean, mean - half, mean + half)


def proportion_ci95(k: int, n: int) -> Interval:
    """Estimate a probability from k events in n independent trials: the exact (Clopper-Pearson) interval.

    Raises:
        ValueError: unless 0 <= k <= n and n >= 1.
    """
    if n < 1 or not 0 <= k <= n:
        raise ValueError(f"k={k}, n={n}: needs n of 1 or more and k from 0 to n")
    low, high = stats.binomtest(int(k), int(n)).proportion_ci(0.95, method="exact")
    return Interval(k / n, float(low), float(high))


def miss_false_alarm_curve(scores: ArrayLike, active: ArrayLike) -> DecisionCurve:
    """Miss and false alarm rates at every threshold that changes a decision.

    Args:
        scores: float, any shape, no NaN.
        active: bool, same shape: the truth.

    Raises:
        ValueError: if the shapes differ, there is nothing, or a score is NaN.
    """
    s = np.asarray(scores, dtype=np.float64).ravel()
    a = np.asarray(active, dtype=bool).ravel()
    if np.shape(scores) != np.shape(active) or s.size == 0 or np.isnan(s).any():
        raise ValueError(f"scores {np.shape(scores)} and active {np.shape(active)}: need one shape, not empty, no NaN")
    order = np.argsort(s, kind="stable")
    s, a = s[order], a[order]
    last = np.flatnonzero(np.append(s[1:] != s[:-1], True))  # last of each run of equal scores
    missed = np.concatenate([[0], np.cumsum(a)[last]])
    rejected = np.concatenate([[0], np.cumsum(~a)[last]])
    n_active = int(a.sum())
    n_silent = a.size - n_active
    alarms = n_silent - rejected
    return DecisionCurve(
        np.concatenate([[-np.inf], s[last]]),
        missed / max(n_active, 1),
        alarms / max(n_silent, 1),
        (missed + alarms) / a.size,
    )


def best_threshold(scores: ArrayLike, active: ArrayLike) -> float:
    """Threshold of least error probability for the rule `score > threshold`.

    It lies half-way between two neighbouring scores, in the middle of the widest range of equally good
    thresholds; where calling all active (nobody active) is best, it is just below (at) the extreme score.

    Args and Raises: as `miss_false_alarm_curve`.
    """
    curve = miss_false_alarm_curve(scores, active)
    best = curve.error == curve.error.min()
    low = curve.thresholds
    high = np.append(low[1:], low[-1])
    low = np.where(np.isneginf(low), np.nextafter(low[1], -np.inf), low)
    # Neighbouring points of equal error cannot touch: a distinct score changes at least one decision, so a
    # best range is one gap between two scores.
    gap = np.where(best, high - low, -1.0)
    at = int(np.argmax(gap))
    return float(low[at] + 0.5 * (high[at] - low[at])) if 0 < at < low.size - 1 else float(low[at])


def paired_ratio_ci95(
    per_sample_values: ArrayLike,
    per_sample_reference: ArrayLike,
    unit: float = 1.0,
    rng: np.random.Generator | None = None,
    n_bootstrap: int = 2000,
) -> Interval:
    """Estimate the ratio of two means over the same samples.

    The interval is the percentile bootstrap with Poisson weights over samples, both values of a sample drawn
    together: slots that are hard for both detectors cancel. Where no value differs from 0, the upper end is that of
    `mean_ci95` over the reference's mean.

    Args:
        per_sample_values: float, (sample,), 0 or above.
        per_sample_reference: float, (sample,), 0 or above, not all 0.
        unit: see `mean_ci95`.
        rng: of the bootstrap; None: a fixed seed.
        n_bootstrap: resamples.

    Raises:
        ValueError: if the shapes differ, a value is negative or not finite, or the reference is 0 throughout.
    """
    values = np.asarray(per_sample_values, dtype=np.float64).ravel()
    reference = np.asarray(per_sample_reference, dtype=np.float64).ravel()
    both = np.stack([values, reference]) if values.shape == reference.shape else np.full((2, 1), np.nan)
    if not (np.isfinite(both).all() and (both >= 0).all() and reference.any()):
        raise ValueError(
            f"values {values.shape} and reference {reference.shape}: need one shape, finite, none negative, and a "
            "reference above 0 somewhere"
        )
    ratio = float(values.sum() / reference.sum())
    if not values.any():
        return Interval(0.0, 0.0, mean_ci95(values, unit).high / float(reference.mean()))
    # Samples in which both are 0 add nothing to either sum.
    both = both[:, both.any(axis=0)]
    weights = (np.random.default_rng(0) if rng is None else rng).poisson(1.0, (n_bootstrap, both.shape[1]))
    above, below = both @ weights.T
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(below > 0, above / below, np.inf)
    low, high = np.quantile(ratios, [0.025, 0.975], method="nearest")
    return Interval(ratio, float(low), float(high))

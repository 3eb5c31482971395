"""Confidence intervals and decision curves against scipy, brute force and coverage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from semair.models.statistics import (
    best_threshold,
    mean_ci95,
    miss_false_alarm_curve,
    paired_ratio_ci95,
    proportion_ci95,
)


def test_mean_of_many_samples_is_the_t_interval(rng):
    values = rng.normal(3, 2, 200)
    expected = stats.t.interval(0.95, 199, values.mean(), stats.sem(values))
    assert mean_ci95(values) == pytest.approx((values.mean(), *expected))


def test_no_error_seen_still_has_an_upper_bound():
    interval = mean_ci95(np.zeros(1000), unit=1 / 128)
    # No event in n trials: 1 - 0.025^(1/n) is the exact upper end for the share of samples with an error.
    assert interval.value == 0
    assert interval.low == 0
    assert interval.high == pytest.approx((1 - 0.025 ** (1 / 1000)) / 128)
    assert mean_ci95(np.zeros(1000)).high == pytest.approx(1 - 0.025 ** (1 / 1000))


@pytest.mark.parametrize(("share", "n"), [(0.002, 1000), (0.05, 400)])
def test_interval_of_clustered_errors_covers_the_mean(rng, share, n):
    # Slots go wrong with probability `share` and then lose one or two of 128 users: mean 1.5 share / 128.
    truth = 1.5 * share / 128
    hits = 0
    for _ in range(400):
        wrong = (rng.random(n) < share) * rng.integers(1, 3, n) / 128
        _, low, high = mean_ci95(wrong, unit=2 / 128)
        hits += low <= truth <= high
    # Five standard deviations of the share in 400 trials are 5 sqrt(0.95 * 0.05 / 400) = 5.5 %.
    assert hits / 400 > 0.95 - 0.055


def test_single_values():
    assert mean_ci95([0.5]).low == -np.inf
    assert mean_ci95([0.0]).high == pytest.approx(0.975)


@pytest.mark.parametrize("bad", [[], [1.0, np.nan], [np.inf]])
def test_mean_refuses_nothing_and_nan(bad):
    with pytest.raises(ValueError, match="per_sample_values"):
        mean_ci95(bad)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_proportion_is_clopper_pearson(k_n):
    k, n = k_n
    value, low, high = proportion_ci95(k, n)
    assert value == k / n
    assert low == pytest.approx(stats.beta.ppf(0.025, k, n - k + 1) if k else 0, abs=1e-12)
    assert high == pytest.approx(stats.beta.ppf(0.975, k + 1, n - k) if k < n else 1, abs=1e-12)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 3), (4, 3)])
def test_proportion_refuses_impossible_counts(k, n):
    with pytest.raises(ValueError, match="k="):
        proportion_ci95(k, n)


scores_and_truth = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=25)


@given(scores_and_truth)
def test_curve_equals_counting(pairs):
    scores = np.array([s for s, _ in pairs], dtype=float)
    active = np.array([a for _, a in pairs])
    curve = miss_false_alarm_curve(scores, active)
    np.testing.assert_array_equal(curve.thresholds, [-np.inf, *np.unique(scores)])
    for at, threshold in enumerate(curve.thresholds):
        said = scores > threshold
        assert curve.error[at] == pytest.approx(np.mean(said != active))
        assert curve.miss[at] == pytest.approx(np.sum(~said & active) / max(active.sum(), 1))
        assert curve.false_alarm[at] == pytest.approx(np.sum(said & ~active) / max((~active).sum(), 1))


@given(scores_and_truth)
def test_best_threshold_is_finite_and_attains_the_least_error(pairs):
    scores = np.array([s for s, _ in pairs], dtype=float)
    active = np.array([a for _, a in pairs])
    threshold = best_threshold(scores, active)
    assert np.isfinite(threshold)
    least = min(np.mean((scores > t) != active) for t in [-9, *scores])
    assert np.mean((scores > threshold) != active) == pytest.approx(least)


def test_best_threshold_is_in_the_middle_of_the_gap():
    assert best_threshold([0.0, 0.1, 0.9, 1.0], [False, False, True, True]) == pytest.approx(0.5)


def test_curve_refuses_shapes_that_differ_and_nan():
    for scores, active in (([1.0], [True, False]), ([], []), ([np.nan], [True])):
        with pytest.raises(ValueError, match="scores"):
            miss_false_alarm_curve(scores, active)


def test_ratio_of_means_is_that_of_the_sums_with_an_interval_that_covers():
    rng = np.random.default_rng(8)
    hits = 0
    for _ in range(300):
        # Values that rise and fall together: 300 samples of a hard slot's factor times Poisson counts.
        hard = rng.gamma(1.0, 1.0, 300)
        values, reference = rng.poisson(0.6 * hard), rng.poisson(1.0 * hard)
        found = paired_ratio_ci95(values, reference)
        assert found.value == pytest.approx(values.sum() / reference.sum())
        hits += found.low <= 0.6 <= found.high
    # At least 95 % of 300, four standard deviations of 3.8 below.
    assert hits >= 270


def test_ratio_gains_from_pairs():
    rng = np.random.default_rng(9)
    reference = rng.poisson(3.0, 400)
    values = rng.binomial(reference, 0.5)
    paired = paired_ratio_ci95(values, reference)
    shuffled = paired_ratio_ci95(values, rng.permutation(reference))
    assert paired.high - paired.low < 0.8 * (shuffled.high - shuffled.low)


def test_ratio_without_events_is_bounded_by_what_could_have_been():
    found = paired_ratio_ci95(np.zeros(100), np.full(100, 2.0), unit=1.0)
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(mean_ci95(np.zeros(100), 1.0).high / 2)


def test_ratio_refuses_what_has_none():
    for values, reference in (([1.0], [0.0]), ([1.0, 2.0], [1.0]), ([-1.0], [1.0]), ([np.nan], [1.0]), ([], [])):
        with pytest.raises(ValueError, match="reference"):
            paired_ratio_ci95(values, reference)

"""Preamble pools and symbol-level draws: moments, independence, errors."""

from __future__ import annotations

import numpy as np
import pytest
from semair.errors import ScenarioError
from semair.models.uad.preambles import qpsk_preambles
from semair.models.uad.simulate import complex_normal, draw_batch


def test_preambles_are_balanced_qpsk(rng):
    pool = qpsk_preambles(200, 25, rng)
    assert pool.shape == (25, 200)
    assert pool.dtype == np.complex64
    points, counts = np.unique(pool, return_counts=True)
    np.testing.assert_allclose(sorted(np.angle(points) / np.pi), [-0.75, -0.25, 0.25, 0.75], atol=1e-6)
    np.testing.assert_allclose(np.abs(points), 1, atol=1e-6)
    # 5000 symbols in 4 cells: standard deviation sqrt(5000 * 3/16) = 31, five of them 153.
    assert np.abs(counts - 1250).max() < 153


def test_preambles_refuse_an_empty_pool(rng):
    with pytest.raises(ValueError, match="n_users=0"):
        qpsk_preambles(0, 8, rng)


def test_draw_is_decided_by_the_generator():
    pool = qpsk_preambles(16, 8, np.random.default_rng(0))
    one, two, other = (
        draw_batch(np.random.default_rng(s), pool, 5, 6, 4, 0.2, 10.0, power_spread_db=3.0) for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(one.y, two.y)
    np.testing.assert_array_equal(one.active, two.active)
    assert (one.y != other.y).any()


def test_total_snr_and_noise_power_of_the_ensemble(rng):
    pool = qpsk_preambles(64, 8, rng)
    batch = draw_batch(rng, pool, 4000, 8, 16, 0.1, 3.0)
    assert batch.y.dtype == np.complex64
    np.testing.assert_allclose(batch.noise_power, 6.4 / 10**0.3)
    # A slot has 6.4 +- 2.4 users: its power deviates by half at most, the mean over 4000 by 0.008.
    power = np.mean(np.abs(batch.y.astype(complex)) ** 2)
    assert power == pytest.approx(6.4 + 6.4 / 10**0.3, rel=5 * 0.008)
    # 256 000 decisions: standard deviation sqrt(0.09 / 256000) = 6e-4.
    assert batch.active.mean() == pytest.approx(0.1, abs=5 * 6e-4)


def test_noise_power_does_not_tell_how_many_are_active(rng):
    batch = draw_batch(rng, qpsk_preambles(32, 8, rng), 50, 8, 4, 0.1, 10.0)
    assert np.unique(batch.active.sum(axis=1)).size > 1
    assert np.unique(batch.noise_power).size == 1


def test_without_noise_the_slot_is_the_preambles_times_the_gains(rng):
    pool = qpsk_preambles(8, 6, rng)
    gains = complex_normal(rng, (3, 8, 5))
    batch = draw_batch(rng, pool, 3, 4, 5, 0.4, 200.0, channel=lambda *_: gains)
    expected = np.einsum("ln,bn,bnm->blm", pool[:4], batch.active, gains)
    np.testing.assert_allclose(batch.y, expected, atol=1e-5)


def test_default_channel_is_independent_rayleigh(rng):
    pool = np.ones((1, 1), np.complex64)
    batch = draw_batch(rng, pool, 4000, 1, 3, 0.999, 200.0)
    h = batch.y[batch.active[:, 0], 0].astype(complex)
    # Covariance over some 4000 draws of three snapshots: deviations of 1/sqrt(4000) = 0.016 per entry.
    np.testing.assert_allclose(h.T @ h.conj() / len(h), np.eye(3), atol=5 * 0.016)
    # Pseudo-covariance of a circular variable vanishes.
    np.testing.assert_allclose(h.T @ h / len(h), np.zeros((3, 3)), atol=5 * 0.023)


def test_power_spread_has_unit_mean_and_the_width_asked_for(rng):
    pool = np.ones((1, 1), np.complex64)
    batch = draw_batch(
        rng,
        pool,
        20000,
        1,
        1,
        0.999,
        200.0,
        power_spread_db=10.0,
        channel=lambda _, *shape: np.ones(shape, np.complex64),
    )
    power = np.abs(batch.y[batch.active[:, 0], 0, 0].astype(complex)) ** 2
    # Uniform over 10 dB: linear standard deviation 0.65, over 20 000 draws 0.0046.
    assert power.mean() == pytest.approx(1, abs=5 * 0.0046)
    level_db = 10 * np.log10(power)
    assert level_db.max() - level_db.min() == pytest.approx(10, abs=0.02)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"length": 9}, "length=9"),
        ({"length": 0}, "length=0"),
        ({"n_samples": 0}, "n_samples=0"),
        ({"n_snapshots": 0}, "n_snapshots=0"),
        ({"activity": 0.0}, "activity"),
        ({"activity": 1.0}, "activity"),
        ({"power_spread_db": -1.0}, "power_spread_db"),
        ({"power_spread_db": np.nan}, "power_spread_db"),
    ],
)
def test_arguments_out_of_range(rng, change, word):
    arguments = {"n_samples": 2, "length": 4, "n_snapshots": 3, "activity": 0.1, "snr_db": 10.0}
    with pytest.raises(ScenarioError, match=word):
        draw_batch(rng, qpsk_preambles(4, 8, rng), **(arguments | change))


def test_channel_of_wrong_shape(rng):
    with pytest.raises(ValueError, match="gains of shape"):
        draw_batch(rng, qpsk_preambles(4, 8, rng), 2, 4, 3, 0.1, 10.0, channel=lambda *_: np.ones((2, 4)))

"""Bounds of separate coding: reverse water-filling by brute force, rates that agree with capacity, and the cliff."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from semair.models.csi.separate import best_nmse, block_error_rate, fixed_rate_nmse, gaussian_nmse, rate_bits

VARIANCES = np.array([4.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.01])


@pytest.mark.parametrize("bits", [0.1, 1.0, 3.0, 8.0, 30.0, 100.0])
def test_reverse_water_filling_by_searching_the_level(bits):
    def spent(level):
        return np.sum(np.maximum(np.log2(VARIANCES / level), 0)) - bits

    level = brentq(spent, 1e-20, VARIANCES[0])
    expected = np.minimum(VARIANCES, level).sum() / VARIANCES.sum()
    assert gaussian_nmse(VARIANCES, bits) == pytest.approx(expected, rel=1e-9)


def test_no_bits_recover_nothing():
    assert gaussian_nmse(VARIANCES, 0.0) == 1.0


def test_long_words_come_near_to_capacity_and_short_ones_do_not():
    capacity = math.log2(11)
    assert float(rate_bits(10**6, 10.0, 1e-3)) / 10**6 == pytest.approx(capacity, rel=2e-3)
    # 16 symbols at one error in a thousand: about two thirds of the capacity.
    assert 0.6 < float(rate_bits(16, 10.0, 1e-3)) / (16 * capacity) < 0.8


def test_error_rate_is_the_inverse_of_the_rate():
    for length, snr_db, error in ((8, 3.0, 1e-2), (64, 10.0, 1e-4), (16, -3.0, 0.3)):
        bits = float(rate_bits(length, snr_db, error))
        assert block_error_rate(length, snr_db, bits) == pytest.approx(error, rel=1e-6)


def test_a_fixed_rate_falls_off_a_cliff_and_the_best_rate_does_not():
    bits = float(rate_bits(16, 10.0, 1e-3))
    fixed = [fixed_rate_nmse(VARIANCES, 16, snr_db, bits) for snr_db in (20.0, 10.0, 5.0, 0.0)]
    assert fixed[1] < fixed[0] + 2e-3
    assert fixed[2] > 0.5
    assert fixed[3] > 0.99
    for snr_db, value in zip((20.0, 10.0, 5.0, 0.0), fixed, strict=True):
        # The grid of error rates ends at 1/2 and is a twentieth of a decade or so fine.
        assert best_nmse(VARIANCES, 16, snr_db) <= value * 1.001

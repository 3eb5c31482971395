"""The measurement of detectors: it must count what a detector does, not flatter it."""

from __future__ import annotations

import numpy as np
import pytest
from semair.blocks.waveforms.preamble_detector import PreambleDetector
from semair.blocks.waveforms.references import named_reference
from semair.blocks.waveforms.sync_evaluation import (
    delay,
    measure_detection,
    measure_false_alarms,
    white_noise,
)

REFERENCE = named_reference("l-ltf")


def detector(**options) -> PreambleDetector:
    return PreambleDetector(REFERENCE, sample_rate_hz=20e6, n_antennas=2, max_cfo_hz=40e3, **options)


def test_delay_by_whole_and_half_samples():
    n = np.arange(-64, 160 + 64)
    np.testing.assert_allclose(delay(REFERENCE, 1.0)[65:225], REFERENCE, atol=1e-6)
    pulse = np.sinc(0.5 * (np.arange(160) - 80))  # half the band
    half = delay(pulse, 0.5)
    expected = np.sinc(0.5 * (n - 80.5))
    # The pulse is cut 80 samples from its centre, where it has fallen to 1/126.
    np.testing.assert_allclose(half[64 + 40 : 64 + 120], expected[64 + 40 : 64 + 120], atol=5e-3)


def test_noise_is_white_circular_and_of_unit_variance(rng):
    x = white_noise(rng, (2, 100_000))
    # Standard deviation of each mean of 100 000 samples: 0.0032; bound 6 of them.
    assert np.mean(np.abs(x) ** 2, axis=1) == pytest.approx(1, abs=0.02)
    assert np.abs(np.mean(x**2, axis=1)).max() < 0.02
    assert np.abs(np.mean(x[:, 1:] * x[:, :-1].conj(), axis=1)).max() < 0.02
    assert abs(np.mean(x[0] * x[1].conj())) < 0.02


def test_strong_preambles_are_all_found_and_none_invented(rng):
    result = measure_detection(detector(), rng, n_preambles=50, snr_db=15, max_cfo_hz=40e3)
    assert (result.sent, result.missed, result.false) == (50, 0, 0)
    assert result.timing_errors_samples.shape == result.cfo_errors_hz.shape == (50,)
    assert result.samples == 50 * 4 * 160


def test_a_deaf_detector_misses_all(rng):
    result = measure_detection(detector(threshold=0.999), rng, n_preambles=20, snr_db=0, max_cfo_hz=0)
    assert (result.missed, result.false, len(result.cfo_errors_hz)) == (20, 0, 0)


def test_a_detection_outside_the_tolerance_is_both_missed_and_false(rng):
    result = measure_detection(detector(), rng, n_preambles=20, snr_db=20, max_cfo_hz=0, tolerance_samples=1e-6)
    assert result.missed == result.false > 15


def test_rayleigh_fading_misses_more_than_static_antennas():
    counts = [
        measure_detection(
            detector(), np.random.default_rng(1), n_preambles=300, snr_db=-4, max_cfo_hz=0, fading=fading
        ).missed
        for fading in ("static", "rayleigh")
    ]
    assert counts[0] < counts[1]


def test_equal_seeds_give_equal_results():
    first, second = (
        measure_detection(detector(), np.random.default_rng(5), n_preambles=10, snr_db=5, max_cfo_hz=1e3)
        for _ in range(2)
    )
    np.testing.assert_array_equal(first.cfo_errors_hz, second.cfo_errors_hz)


def test_spacing_without_room_is_refused(rng):
    with pytest.raises(ValueError, match="at least 480"):
        measure_detection(detector(), rng, n_preambles=1, snr_db=0, max_cfo_hz=0, spacing_samples=400)


def test_low_threshold_raises_false_alarms_above_it(rng):
    result = measure_false_alarms(detector(threshold=0.03), rng, n_samples=30_000, chunk_samples=7777)
    assert result.samples == 30_000
    # Two antennas of 160 samples: the sum of two Beta(1, 159) exceeds 0.06 with probability 7e-4 per sample.
    assert len(result.metrics) > 3
    assert result.metrics.min() >= 0.02

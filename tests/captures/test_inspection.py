"""Levels and spectrogram against closed forms, and bounded memory."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from scipy import signal
from scipy.stats import gamma
from semair.captures import inspection as module
from semair.captures.inspection import measure_levels, spectrogram, summary
from semair.captures.reader import Recording


def noise(rng: np.random.Generator, shape: tuple[int, ...], power: float) -> np.ndarray:
    parts = rng.standard_normal((*shape, 2)) * np.sqrt(power / 2)
    return (parts[..., 0] + 1j * parts[..., 1]).astype(np.complex64)


def test_levels_are_those_of_the_samples(record, rng):
    samples = noise(rng, (3, 70_001), 1e-2)
    samples[1] += 0.1 - 0.05j
    samples[2] = 0
    samples[0, 40_000] = 0.9j
    recording = Recording.open(record(samples, datatype="cf32_le"))
    levels = measure_levels(recording, n_stretches=50)
    exact = np.abs(samples.astype(complex)) ** 2
    with np.errstate(divide="ignore"):
        assert np.allclose(levels.rms_dbfs, 10 * np.log10(exact.mean(axis=1)), atol=1e-4)
        assert np.allclose(levels.peak_dbfs, 10 * np.log10(exact.max(axis=1)), atol=1e-4)
    assert np.allclose(levels.dc, samples.mean(axis=1, dtype=complex), atol=1e-7)
    edges = np.arange(51) * 70_001 // 50
    over_time = [exact[:, a:b].mean(axis=1) for a, b in pairwise(edges)]
    with np.errstate(divide="ignore"):
        assert np.allclose(levels.rms_over_time_dbfs.T, 10 * np.log10(over_time), atol=1e-4)
    assert levels.peak_over_time_dbfs[0].argmax() == np.searchsorted(edges, 40_000, side="right") - 1
    assert np.allclose(levels.time_s, (edges[:-1] + edges[1:]) / 2 / 1e6)


@pytest.mark.parametrize("silent", [1.0, 0.2, 0.12])
def test_the_noise_floor_is_that_of_the_silent_part(record, rng, silent):
    n = 400_000
    samples = noise(rng, (1, n), 1e-4)
    # In bursts of 2000 samples, as frames come.
    loud = np.arange(n) % 2000 >= 2000 * silent
    samples[0, loud] += noise(rng, (n,), 1e-2)[loud]
    recording = Recording.open(record(samples, datatype="cf32_le"))
    # The 5 % quantile of the mean of 64 exponential powers is 1.0 dB below their mean; where only a part of the time is
    # silent the quantile found is a higher one of the silent part, at most its largest of some thousands: 2.5 dB above.
    assert pytest.approx(10 * np.log10(gamma.ppf(0.05, 64) / 64), abs=1e-3) == module._FLOOR_BIAS_DB
    (floor,) = measure_levels(recording).noise_floor_dbfs
    assert floor == pytest.approx(-40, abs=0.15) if silent == 1.0 else -40.2 < floor < -37


def test_clipping_is_counted_at_full_scale(record):
    samples = np.full((2, 100), 0.5 + 0j, np.complex64)
    samples[1, 3:7] = [1.0, -1.0j, 0.9999999 + 0j, 0.5 + 0.9998j]
    levels = measure_levels(Recording.open(record(samples)))
    assert levels.clipped.tolist() == [0, 3]


def test_what_is_not_finite_is_left_out_and_counted(tmp_path, record, rng):
    samples = noise(rng, (2, 1000), 1e-2)
    path = record(samples, datatype="cf32_le")
    data = np.fromfile(tmp_path / "rec.sigmf-data", "<c8").reshape(1000, 2)
    data[5, 0], data[7, 0] = np.nan, np.inf
    data.tofile(tmp_path / "rec.sigmf-data")
    levels = measure_levels(Recording.open(path))
    assert levels.nonfinite.tolist() == [2, 0]
    keep = np.delete(samples[0], [5, 7])
    assert levels.rms_dbfs[0] == pytest.approx(10 * np.log10(np.mean(np.abs(keep) ** 2)), abs=1e-3)


@pytest.mark.parametrize("n_samples", [1, 2, 9, 300])
def test_short_recordings_have_levels_and_a_spectrogram(record, rng, n_samples):
    recording = Recording.open(record(noise(rng, (1, n_samples), 1e-2), datatype="cf32_le"))
    levels = measure_levels(recording)
    power, edges = spectrogram(recording)
    assert levels.rms_over_time_dbfs.shape == (1, n_samples)
    assert power.shape[2] == len(edges) - 1
    assert edges[-1] == n_samples
    assert summary(recording, levels)["samples"] == n_samples


def test_the_spectrogram_agrees_with_scipy_where_all_is_transformed(record, rng):
    samples = noise(rng, (2, 64 * 256), 1e-2)
    samples[0] += 0.3 * np.exp(2j * np.pi * 0.25 * np.arange(samples.shape[1]))
    recording = Recording.open(record(samples, datatype="cf32_le"))
    power, edges = spectrogram(recording, n_columns=64, n_bins=64)
    assert np.array_equal(edges, np.arange(65) * 256)
    # Four transforms without overlap in each column of 256.
    for channel in range(2):
        _, _, each = signal.spectrogram(
            samples[channel].astype(complex), window="hann", nperseg=64, noverlap=0, detrend=False,
            return_onesided=False, scaling="density", mode="psd",
        )  # fmt: skip
        expected = np.fft.fftshift(each.reshape(64, 64, 4).mean(axis=2), axes=0) / 64
        assert np.allclose(power[channel], expected, rtol=1e-6)
    assert power[0].mean(axis=1).argmax() == 48


def test_memory_does_not_grow_with_the_recording(tmp_path, record, rng):
    path = record(noise(rng, (4, 1 << 19), 1e-2))
    tracemalloc.start()
    try:
        recording = Recording.open(path)
        measure_levels(recording)
        spectrogram(recording, n_columns=60)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The samples take 16 MB as complex64; a piece of 65536 of them a few copies in float64.
    assert peak < 12 << 20


def test_a_summary_is_plain_and_tells_what_is_there(record, grid_samples):
    path = record(
        grid_samples(2, 200),
        frequency_hz=2.4e9,
        global_fields={"path": "cable"},
        capture_fields={"rx_gain_db": [1.0, 2.0]},
    )
    recording = Recording.open(path)
    facts = summary(recording, measure_levels(recording))
    assert (facts["rate_hz"], facts["duration_s"], facts["state"]) == (1e6, 2e-4, "complete")
    assert {"path cable", "rx_gain_db [1.0, 2.0]"} <= set(facts["settings"])
    assert [row["channel"] for row in facts["levels"]] == [0, 1]

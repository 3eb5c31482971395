"""OFDM against sums of exponentials written out."""

from __future__ import annotations

import numpy as np
import pytest
from semair.blocks.waveforms.frame import FrameFormat
from semair.blocks.waveforms.ofdm import demodulate, modulate

FMT = FrameFormat(n_fft=32, cp_samples=8, n_used=24, n_groups=4, group_width=2, header_symbols=2)


def random_grid(rng: np.random.Generator, n_symbols: int, n_fft: int = 32) -> np.ndarray:
    return (rng.standard_normal((n_symbols, n_fft, 2)) * np.sqrt(0.5)).view(complex)[..., 0]


def test_modulation_is_the_unitary_inverse_transform_behind_its_own_end(rng):
    grid = random_grid(rng, 3)
    n, k = np.arange(32)[:, None], np.arange(32)[None]
    expected = []
    for cells in grid:
        body = (np.exp(2j * np.pi * k * n / 32) @ cells) / np.sqrt(32)
        expected += [*body[-8:], *body]
    samples = modulate(grid, 8)
    assert samples.dtype == np.complex64
    np.testing.assert_allclose(samples, expected, atol=2e-6)


def test_a_unit_cell_carries_unit_energy():
    grid = np.zeros((1, 32), complex)
    grid[0, 5] = 1
    body = modulate(grid, 8)[8:]
    assert np.sum(np.abs(body) ** 2) == pytest.approx(1, abs=1e-6)


def test_demodulation_inverts_modulation(rng):
    grid = random_grid(rng, 4)
    samples = np.stack([modulate(grid, 8), 1j * modulate(grid, 8)])
    cells = demodulate(samples, FMT, 4)
    assert cells.shape == (2, 4, 32)
    assert cells.dtype == np.complex64
    np.testing.assert_allclose(cells[0], grid, atol=4e-6)
    np.testing.assert_allclose(cells[1], 1j * grid, atol=4e-6)


def test_samples_behind_the_symbols_asked_for_do_not_matter(rng):
    grid = random_grid(rng, 2)
    samples = modulate(grid, 8)[None]
    longer = np.concatenate([samples, np.full((1, 77), 1e3, np.complex64)], axis=1)
    np.testing.assert_array_equal(demodulate(samples, FMT, 2), demodulate(longer, FMT, 2))


@pytest.mark.parametrize("shift", [-2, -1, 1, 2, 5])
def test_whole_shifts_within_the_window_are_undone_by_the_fraction(rng, shift):
    # The window opens a quarter prefix (2) early, so it bears starts up to 6 late and 2 early of the prefix of 8.
    grid = random_grid(rng, 3)
    samples = np.roll(modulate(grid, 8), shift)[None]
    cells = demodulate(samples, FMT, 3, fraction_samples=shift)[:, 1:2]
    np.testing.assert_allclose(cells[0, 0], grid[1], atol=4e-6)


def test_fractional_start_is_undone(rng):
    # A delay by a fraction, exact for a signal made of the subcarriers alone, written as phase per subcarrier.
    grid = random_grid(rng, 1)
    grid[0, 16] = 0
    delay = 0.37
    n, frequency = np.arange(-8, 32)[:, None], np.fft.fftfreq(32)[None]
    samples = np.exp(2j * np.pi * frequency * (n - delay)) @ grid[0] / np.sqrt(32)
    cells = demodulate(samples[None].astype(np.complex64), FMT, 1, fraction_samples=delay)
    np.testing.assert_allclose(cells[0, 0], grid[0], atol=5e-6)


def test_multipath_within_the_prefix_is_one_factor_per_subcarrier(rng):
    grid = random_grid(rng, 5)
    taps = np.array([0.8, 0, 0.3j, 0, -0.2])
    received = np.convolve(modulate(grid, 8), taps)[None].astype(np.complex64)
    response = np.exp(-2j * np.pi * np.outer(np.fft.fftfreq(32), np.arange(5))) @ taps
    # The window opens 6 samples into the prefix of 8, behind the longest echo of 4.
    np.testing.assert_allclose(demodulate(received, FMT, 5)[0], grid * response, atol=1e-5)


@pytest.mark.parametrize("cfo_hz", [-61_000.0, 12_345.0])
def test_carrier_offset_is_removed_with_phase_zero_at_the_first_sample(rng, cfo_hz):
    grid = random_grid(rng, 4)
    samples = modulate(grid, 8)
    turning = samples * np.exp(2j * np.pi * cfo_hz / FMT.sample_rate_hz * np.arange(len(samples)))
    np.testing.assert_allclose(demodulate(turning[None], FMT, 4, cfo_hz=cfo_hz)[0], grid, atol=6e-6)


def test_subcarriers_asked_for_come_in_the_order_asked(rng):
    samples = modulate(random_grid(rng, 3), 8)[None]
    wanted = np.array([31, 2, 2, 17])
    picked = demodulate(samples, FMT, 3, 0.3, 1e3, wanted)
    np.testing.assert_array_equal(picked, demodulate(samples, FMT, 3, 0.3, 1e3)[:, :, wanted])


def test_memory_layout_of_the_samples_does_not_matter(rng):
    samples = np.stack([modulate(random_grid(rng, 3), 8) for _ in range(2)])
    expected = demodulate(samples, FMT, 3, 0.2, 5e3)
    wide = np.zeros((2, 3 * samples.shape[1]), np.complex64)
    wide[:, ::3] = samples
    read_only = samples.copy()
    read_only.setflags(write=False)
    for same in (wide[:, ::3], np.asfortranarray(samples), read_only):
        np.testing.assert_array_equal(demodulate(same, FMT, 3, 0.2, 5e3), expected)

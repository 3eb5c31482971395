"""QAM against sums over all constellation points, and against error rates in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from semair.blocks.waveforms.qam import BITS_PER_SYMBOL, modulate, soft_bits


def labels(m: int) -> np.ndarray:
    """All words of m bits; uint8, (2**m, m)."""
    return (np.arange(2**m)[:, None] >> np.arange(m - 1, -1, -1) & 1).astype(np.uint8)


@pytest.mark.parametrize("m", BITS_PER_SYMBOL)
def test_constellations_are_square_of_unit_power_and_gray(m):
    words = labels(m)
    points = modulate(words, m)[:, 0]
    assert points.shape == (2**m,)
    assert points.dtype == np.complex64
    assert np.mean(np.abs(points) ** 2) == pytest.approx(1, abs=1e-6)
    distance = np.abs(points[:, None] - points)
    np.fill_diagonal(distance, np.inf)
    step = distance.min()
    near = np.argwhere(distance < 1.01 * step)
    # A square of s by s points has 2 s (s - 1) neighbourships, each seen from both ends.
    side = 2 ** (m // 2)
    assert len(near) == 4 * side * (side - 1)
    assert ((words[near[:, 0]] != words[near[:, 1]]).sum(1) == 1).all()


@pytest.mark.parametrize("m", BITS_PER_SYMBOL)
def test_soft_bits_are_the_ratio_of_posterior_probabilities(m, rng):
    words = labels(m)
    points = modulate(words, m)[:, 0].astype(complex)
    received = rng.standard_normal((3, 5, 2)) @ np.array([1, 1j])
    noise_power = rng.uniform(0.05, 2, (3, 5))
    likelihood = np.exp(-(np.abs(received[..., None] - points) ** 2) / noise_power[..., None])
    expected = np.stack(
        [
            np.log(likelihood[..., words[:, bit] == 0].sum(-1) / likelihood[..., words[:, bit] == 1].sum(-1))
            for bit in range(m)
        ],
        -1,
    )
    found = soft_bits(received, m, noise_power)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.reshape(3, -1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("m", "snr_db"), [(2, 6.0), (4, 12.0), (6, 18.0), (8, 24.0)])
def test_bit_errors_are_those_of_theory(m, snr_db, rng):
    n_symbols, noise_power = 60_000, 10 ** (-snr_db / 10)
    bits = rng.integers(0, 2, (1, n_symbols * m), dtype=np.uint8)
    noise = rng.standard_normal((1, n_symbols, 2)) @ np.array([1, 1j]) * np.sqrt(noise_power / 2)
    wrong = (soft_bits(modulate(bits, m) + noise, m, noise_power) < 0) != bits
    # Each level of one part becomes another where the noise crosses the thresholds in the middle between levels.
    half = m // 2
    words = np.pad(labels(half), ((0, 0), (0, half)))
    levels = modulate(words, m)[:, 0].real.astype(float)
    order = np.argsort(levels)
    edges = np.concatenate([[-np.inf], (levels[order][1:] + levels[order][:-1]) / 2, [np.inf]])
    cross = np.diff(norm.cdf((edges - levels[:, None]) / np.sqrt(noise_power / 2)), axis=1)
    differing = (words[:, None] != words[order]).sum(-1) / half
    expected = (cross * differing).sum(1).mean()
    # Bits of a symbol may err together: at most m of m n bits in one event. Four standard deviations: 6e-5.
    bound = 4 * np.sqrt(expected * m / bits.size)
    assert abs(wrong.mean() - expected) < bound
    assert bound < 0.2 * expected


def test_wrong_numbers_of_bits_are_refused():
    with pytest.raises(ValueError, match="7 bits; need a multiple of bits_per_symbol=2"):
        modulate(np.zeros(7, np.uint8), 2)
    with pytest.raises(ValueError, match="bits_per_symbol=3"):
        modulate(np.zeros(6, np.uint8), 3)

"""Square QAM with Gray labels: bits to symbols, and received symbols to log-likelihood ratios of the bits."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

BITS_PER_SYMBOL = (2, 4, 6, 8)
"""Of 4-, 16-, 64- and 256-QAM."""


def modulate(bits: NDArray[np.uint8], bits_per_symbol: int) -> NDArray[np.complex64]:
    """Map bits to symbols of unit mean power.

    The first half of a symbol's bits is its real part, the second its imaginary part; neighbouring levels differ in
    one bit.

    Args:
        bits: uint8, (..., symbol * bits_per_symbol): zeros and ones.
        bits_per_symbol: one of `BITS_PER_SYMBOL`.

    Returns:
        complex64, (..., symbol).

    Raises:
        ValueError: the bits fill no whole number of symbols.
    """
    levels = _levels(bits_per_symbol)
    half = bits_per_symbol // 2
    if bits.shape[-1] % bits_per_symbol:
        raise ValueError(f"{bits.shape[-1]} bits; need a multiple of bits_per_symbol={bits_per_symbol}")
    parts = bits.reshape(*bits.shape[:-1], -1, 2, half) @ (1 << np.arange(half - 1, -1, -1))
    real, imag = np.moveaxis(levels[parts], -1, 0)
    return (real + 1j * imag).astype(np.complex64)


def soft_bits(
    received: NDArray[np.complexfloating], bits_per_symbol: int, noise_power: ArrayLike
) -> NDArray[np.float32]:
    """Log-likelihood ratios ln P(bit = 0) / P(bit = 1) behind complex Gaussian noise, exact.

    Args:
        received: complex, (..., symbol): scaled so that a symbol was sent with unit mean power.
        bits_per_symbol: one of `BITS_PER_SYMBOL`.
        noise_power: float, broadcast against `received`: of both parts together, above 0.

    Returns:
        float32, (..., symbol * bits_per_symbol), in the order of `modulate`.
    """
    levels = _levels(bits_per_symbol)
    half = bits_per_symbol // 2
    parts = np.stack([received.real, received.imag], -1)[..., None]
    # (..., symbol, part, level); each part has half the noise.
    exponents = -((parts - levels) ** 2) / np.asarray(noise_power, np.float64)[..., None, None]
    labels = np.arange(len(levels))
    found = []
    for bit in range(half - 1, -1, -1):
        one = (labels >> bit & 1).astype(bool)
        found.append(logsumexp(exponents[..., ~one], axis=-1) - logsumexp(exponents[..., one], axis=-1))
    return np.stack(found, -1).reshape(*received.shape[:-1], -1).astype(np.float32)


@lru_cache
def _levels(bits_per_symbol: int) -> NDArray[np.float64]:
    """Level of every label of one part, such that both parts have unit power together."""
    if bits_per_symbol not in BITS_PER_SYMBOL:
        raise ValueError(f"bits_per_symbol={bits_per_symbol}: one of {BITS_PER_SYMBOL}")
    n = 1 << (bits_per_symbol // 2)
    places = np.arange(n)
    levels = np.empty(n)
    levels[places ^ (places >> 1)] = n - 1 - 2 * places
    return levels / np.sqrt(2 * np.mean(levels**2))

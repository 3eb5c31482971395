"""What separate source and channel coding can reach at best with the components of the linear code.

The source code is that of independent Gaussian components (reverse water-filling), the channel code is as good as
codes of its length can be (normal approximation of Polyanskiy, Poor and Verdu, IEEE Trans. Inf. Theory 56(5), 2010). A
word that is not decoded leaves the mean CSI, an NMSE of 1. Practical quantisers and codes of a few dozen symbols stay
behind this; a quantiser that knows more of the source than its covariance can be ahead of it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

_ERROR_RATES = np.logspace(-6, math.log10(0.5), 60)


def rate_bits(length: int, snr_db: float, error_rate: ArrayLike) -> NDArray[np.float64]:
    """Bits that complex symbols carry at a block error rate; float64, like `error_rate`, at least 0."""
    snr = 10 ** (snr_db / 10)
    back_off = math.sqrt(length * _dispersion(snr)) * norm.isf(np.asarray(error_rate, np.float64))
    return np.maximum(length * math.log2(1 + snr) - back_off + 0.5 * math.log2(length), 0.0)


def block_error_rate(length: int, snr_db: float, bits: float) -> float:
    """Block error rate of a number of bits over complex symbols, the inverse of `rate_bits`."""
    snr = 10 ** (snr_db / 10)
    spare = length * math.log2(1 + snr) + 0.5 * math.log2(length) - bits
    return float(norm.sf(spare / math.sqrt(length * _dispersion(snr))))


def gaussian_nmse(variances: ArrayLike, bits: float) -> float:
    """Distortion over power of independent complex Gaussian components in so many bits: reverse water-filling.

    Args:
        variances: float64, (component,), descending, above 0.
        bits: in all, at least 0.
    """
    values = np.asarray(variances, np.float64)
    # With the n strongest above the water level: bits = sum log2(l_i / level).
    logs = np.cumsum(np.log2(values))
    levels = 2 ** ((logs - bits) / np.arange(1, len(values) + 1))
    following = np.append(values[1:], 0.0)
    n = int(np.argmax(levels >= following)) + 1
    return float((n * levels[n - 1] + values[n:].sum()) / values.sum()) if bits > 0 else 1.0


def best_nmse(variances: ArrayLike, length: int, snr_db: float) -> float:
    """NMSE at the rate that is best for the SNR: what is lost to quantisation and to failures, together least."""
    found = [
        (1 - error) * gaussian_nmse(variances, float(rate_bits(length, snr_db, error))) + error
        for error in _ERROR_RATES
    ]
    return min(*found, 1.0)


def fixed_rate_nmse(variances: ArrayLike, length: int, snr_db: float, bits: float) -> float:
    """NMSE at a fixed rate: good down to some SNR, nothing below: the cliff."""
    error = block_error_rate(length, snr_db, bits)
    return (1 - error) * gaussian_nmse(variances, bits) + error


def _dispersion(snr: float) -> float:
    """Of the complex Gaussian channel, in squared bits per use."""
    return snr * (snr + 2) / (snr + 1) ** 2 * math.log2(math.e) ** 2

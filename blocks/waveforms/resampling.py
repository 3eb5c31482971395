"""Changing the sample rate by a ratio of whole numbers: linear phase, every output at its exact instant."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

import numpy as np
from numba import njit
from scipy import signal

PASSBAND = 0.9
"""Share of the lower of both Nyquist frequencies that passes unaltered; from that frequency on nothing does."""
ATTENUATION_DB = 90.0
"""Of what would alias or be an image, and bound of the ripple in the passband."""
LARGEST_TERM = 4096
"""Of numerator and denominator: the filter grows with them."""

# A whole number of vector registers, so that no remainder is left to slow code.
_TAPS_MULTIPLE = 16


def rate_ratio(from_hz: float, to_hz: float) -> Fraction:
    """Ratio of two sample rates in whole numbers.

    Args:
        from_hz: rate that is there.
        to_hz: rate that is wanted.

    Returns:
        to_hz / from_hz, exact up to the rounding of rates such as 100e6/3 to floating point numbers.

    Raises:
        ValueError: a rate is not positive and finite, or no ratio of whole numbers up to 4096 fits.
    """
    if not (0 < from_hz < float("inf") and 0 < to_hz < float("inf")):
        raise ValueError(f"rates {from_hz:.10g} Hz and {to_hz:.10g} Hz: both must be positive and finite")
    exact = Fraction(to_hz) / Fraction(from_hz)
    near = exact.limit_denominator(LARGEST_TERM)
    if near.numerator > LARGEST_TERM or abs(near - exact) > exact * Fraction(1, 10**14):
        raise ValueError(
            f"{to_hz:.12g} Hz and {from_hz:.12g} Hz are in no ratio of whole numbers up to {LARGEST_TERM}; "
            f"choose a rate of {from_hz:.12g} Hz times such a ratio"
        )
    return near


class Resampler:
    """Polyphase filter for one ratio of rates, without a state: outputs are asked for by place.

    Positions are in steps of 1 / (up * input rate): input k lies at k * up, and an output at position p is
    sum over k of h(p - k * up) x(k) with a filter h that is symmetric around 0, so that nothing is delayed.

    Args:
        ratio: output rate over input rate.

    Attributes:
        up: numerator of the ratio.
        down: denominator of the ratio: outputs lie this many positions apart.
        before: inputs that an output depends on before the one at or left of it.
        taps: inputs that an output depends on, `before` included.
    """

    def __init__(self, ratio: Fraction) -> None:
        self.up, self.down = ratio.numerator, ratio.denominator
        self._rows = _polyphase_rows(self.up, self.down)
        self.taps = self._rows.shape[1]
        self.before = _half_width(self.up, self.down)

    def warm_up(self) -> None:
        """Compile what is compiled at first use."""
        self.resample(np.zeros((1, self.taps), np.complex64), 0, 1)

    def window(self, position: int, count: int) -> tuple[int, int]:
        """Inputs that outputs need: index of the first, and how many.

        Args:
            position: of the first output.
            count: outputs.
        """
        first, last = position // self.up, (position + (count - 1) * self.down) // self.up
        return first - self.before, last - first + self.taps

    def resample(self, window: np.ndarray, position: int, count: int) -> np.ndarray:
        """Outputs from a window of inputs.

        The same inputs give the same bits, however outputs are spread over calls.

        Args:
            window: complex64, (channels, samples): the inputs named by `window(position, count)`.
            position: of the first output.
            count: outputs.

        Returns:
            complex64, (channels, count).
        """
        n_channels, n = window.shape
        planar = np.ascontiguousarray(
            np.ascontiguousarray(window, np.complex64).view(np.float32).reshape(n_channels, n, 2).transpose(0, 2, 1)
        ).reshape(2 * n_channels, n)
        out = np.empty((2 * n_channels, count), np.float32)
        _filter(self._rows, planar, position % self.up, self.down, self.up, out)
        return np.ascontiguousarray(out.reshape(n_channels, 2, count).transpose(0, 2, 1)).view(np.complex64)[..., 0]


def _half_width(up: int, down: int) -> int:
    """Inputs on either side that the filter reaches."""
    length, _ = signal.kaiserord(ATTENUATION_DB, (1 - PASSBAND) / max(up, down))
    return -(-(length // 2) // up)


@lru_cache(maxsize=8)
def _polyphase_rows(up: int, down: int) -> np.ndarray:
    """The filter by phase: row r weighs the inputs around an output r positions behind an input.

    Kaiser's window design: Oppenheim and Schafer, Discrete-Time Signal Processing, section 7.5.3.

    Returns:
        float32, (up, taps).
    """
    widest = max(up, down)
    length, beta = signal.kaiserord(ATTENUATION_DB, (1 - PASSBAND) / widest)
    half = length // 2
    h = signal.firwin(2 * half + 1, (1 + PASSBAND) / 2 / widest, window=("kaiser", beta))
    reach = _half_width(up, down)
    taps = -(-(2 * reach + 1) // _TAPS_MULTIPLE) * _TAPS_MULTIPLE
    at = np.arange(up)[:, None] + (reach - np.arange(taps)) * up + half
    rows = np.where((at >= 0) & (at < len(h)), h[np.clip(at, 0, len(h) - 1)], 0.0)
    # Every phase passes a constant alike; without this the phases' ripple would be a tone at the input rate.
    rows /= rows.sum(axis=1, keepdims=True)
    return rows.astype(np.float32)


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")
def _filter(rows: np.ndarray, x: np.ndarray, phase: int, down: int, up: int, out: np.ndarray) -> None:
    """out(c, j) = sum over i of rows(p mod up, i) x(c, p div up + i) with p = phase + j * down."""
    n_taps = rows.shape[1]
    for j in range(out.shape[1]):
        position = phase + j * down
        k = position // up
        row = rows[position - k * up]
        for c in range(x.shape[0]):
            part = x[c, k : k + n_taps]
            total = np.float32(0.0)
            for i in range(n_taps):
                total += row[i] * part[i]
            out[c, j] = total

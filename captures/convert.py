"""Samples of several channels to the bytes of a file, in compiled code that leaves the interpreter to others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

_PIECE_SAMPLES = 8192
"""Converted at a time: what the processor's cache holds."""


def all_finite(rows: Sequence[np.ndarray]) -> bool:
    """Whether no sample is NaN or infinite.

    Args:
        rows: complex64, (samples,) per channel; contiguous.
    """
    return all(_finite(row.view(np.float32)) for row in rows)


def interleave(rows: Sequence[np.ndarray], out: np.ndarray, clipped: np.ndarray) -> None:
    """Write samples channel by channel into the place they have in the file.

    Args:
        rows: per channel complex64, (samples,), or int16, (samples, 2); contiguous. Complex samples go to fixed point
            as value x 32768, rounded to nearest and limited.
        out: uint8, (bytes,): complex64 samples if it has room for 8 bytes each, else 16 bit pairs.
        clipped: int64, (channels,): raised by the samples at or beyond full scale, where these are 16 bit.
    """
    n_channels, count = len(rows), len(rows[0])
    if len(out) == 8 * n_channels * count:
        _interleave_words([row.view(np.uint64) for row in rows], out.view(np.uint64))
        return
    for begin in range(0, count, _PIECE_SAMPLES):
        words = []
        for channel, row in enumerate(rows):
            piece = row[begin : begin + _PIECE_SAMPLES]
            if piece.dtype == np.int16:
                parts = piece.reshape(-1)
            else:
                parts = np.empty(2 * len(piece), np.int16)
                _round_parts(piece.view(np.float32), parts)
            if _reaches_full_scale(parts):
                clipped[channel] += _at_full_scale(parts)
            words.append(parts.view(np.uint32))
        _interleave_words(words, out.view(np.uint32)[begin * n_channels : (begin + len(words[0])) * n_channels])


def _interleave_words(words: Sequence[np.ndarray], out: np.ndarray) -> None:
    n_channels = len(words)
    if n_channels == 1:
        out[:] = words[0]
        return
    together = n_channels // 4 * 4
    for channel in range(0, together, 4):
        a, b, c, d = words[channel : channel + 4]
        _copy_four(a, b, c, d, out, channel, n_channels)
    for channel in range(together, n_channels):
        _copy_one(words[channel], out, channel, n_channels)


@njit(cache=True, nogil=True)
def _finite(parts):
    # Nothing but a finite number times zero is zero; a sum, unlike an early return, is computed many at a time.
    bad = 0
    for value in parts:
        bad += value * np.float32(0) != np.float32(0)
    return bad == 0


@njit(cache=True, nogil=True)
def _copy_one(words, out, channel, n_channels):
    for i in range(len(words)):
        out[i * n_channels + channel] = words[i]


@njit(cache=True, nogil=True)
def _copy_four(a, b, c, d, out, channel, n_channels):
    for i in range(len(a)):
        place = i * n_channels + channel
        out[place] = a[i]
        out[place + 1] = b[i]
        out[place + 2] = c[i]
        out[place + 3] = d[i]


@njit(cache=True, nogil=True)
def _reaches_full_scale(parts):
    high = low = np.int16(0)
    for i in range(len(parts)):
        high = max(high, parts[i])
        low = min(low, parts[i])
    return high == 32767 or low == -32768


@njit(cache=True, nogil=True)
def _at_full_scale(parts):
    """Samples, (2 n,) as pairs, of which a part is the largest or the smallest number."""
    count = 0
    for i in range(len(parts) // 2):
        re, im = parts[2 * i], parts[2 * i + 1]
        count += re == 32767 or re == -32768 or im == 32767 or im == -32768
    return count


@njit(cache=True, nogil=True)
def _round_parts(parts, out):
    scale, high, low = np.float32(32768), np.float32(32767), np.float32(-32768)
    for i in range(len(parts)):
        value = np.rint(parts[i] * scale)
        value = high if value > high else value
        value = low if value < low else value
        out[i] = np.int16(value)

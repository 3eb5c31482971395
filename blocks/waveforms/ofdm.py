"""OFDM modulation and demodulation with unitary transforms."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import scipy.fft
from numba import njit

from .frame import FrameFormat

# As in the preamble detector: terms may be reordered and fused, not-a-number and infinity keep their meaning, and
# helpers are inlined by force, so that there is one copy of each with one order of its sums.
_FAST = {"contract", "reassoc", "nsz", "arcp"}


def modulate(grid: np.ndarray, cp_samples: int) -> np.ndarray:
    """Turn subcarrier values into samples with cyclic prefixes.

    The transform is unitary: a cell of unit magnitude carries unit energy, spread over n_fft samples.

    Args:
        grid: complex, (symbols, n_fft), FFT bin order.
        cp_samples: prefix length in samples.

    Returns:
        complex64, (symbols * (cp_samples + n_fft),).
    """
    time = scipy.fft.ifft(grid, axis=-1, norm="ortho")
    return np.concatenate([time[:, -cp_samples:], time], axis=1).reshape(-1).astype(np.complex64)


@njit(cache=True, fastmath=_FAST, error_model="numpy")
def _windows(samples, turns, first, step, out):
    """Cut the transform windows out of the samples and remove an offset of `turns` per sample.

    samples: complex64, (antennas, n); out: complex64, (antennas, symbols, n_fft).
    """
    n_antennas, n_symbols, n_fft = out.shape
    re = np.empty(n_fft, np.float32)
    im = np.empty(n_fft, np.float32)
    turn_re, turn_im = np.cos(2 * np.pi * turns), -np.sin(2 * np.pi * turns)
    for s in range(n_symbols):
        begin = first + s * step
        angle = -2 * np.pi * turns * begin
        phasor_re, phasor_im = np.cos(angle), np.sin(angle)
        for k in range(n_fft):
            re[k] = phasor_re
            im[k] = phasor_im
            phasor_re, phasor_im = (
                phasor_re * turn_re - phasor_im * turn_im,
                phasor_re * turn_im + phasor_im * turn_re,
            )
        for a in range(n_antennas):
            for k in range(n_fft):
                x = samples[a, begin + k]
                out[a, s, k] = complex(x.real * re[k] - x.imag * im[k], x.real * im[k] + x.imag * re[k])


@njit(cache=True, fastmath=_FAST, error_model="numpy")
def _pick_cells(spectra, bins, frequencies, shift_samples, out):
    """Take some bins out of the spectra and undo a shift in time; out: complex64, (antennas, symbols, bins)."""
    n_antennas, n_symbols, n_bins = out.shape
    re = np.empty(n_bins, np.float32)
    im = np.empty(n_bins, np.float32)
    for i in range(n_bins):
        angle = 2 * np.pi * frequencies[i] * shift_samples
        re[i] = np.cos(angle)
        im[i] = np.sin(angle)
    for a in range(n_antennas):
        for s in range(n_symbols):
            for i in range(n_bins):
                x = spectra[a, s, bins[i]]
                out[a, s, i] = complex(x.real * re[i] - x.imag * im[i], x.real * im[i] + x.imag * re[i])


@lru_cache(maxsize=64)
def _frequencies(n_fft: int, bins: bytes | None) -> tuple[np.ndarray, np.ndarray]:
    """Bins, int64, and their frequencies in turns per sample; all of them where none are named."""
    index = np.arange(n_fft) if bins is None else np.frombuffer(bins, np.int64).copy()
    return index, np.fft.fftfreq(n_fft)[index]


def demodulate(
    samples: np.ndarray,
    frame_format: FrameFormat,
    n_symbols: int,
    fraction_samples: float = 0.0,
    cfo_hz: float = 0.0,
    subcarriers: np.ndarray | None = None,
) -> np.ndarray:
    """Turn samples of consecutive OFDM symbols into subcarrier values.

    The transform window begins a quarter of the prefix early, so that a user that is somewhat early or an
    error of the timing estimate does not reach into the next symbol; the phase ramp of this known shift and of
    the fractional start is undone.

    Args:
        samples: complex, (antennas, at least n_symbols * symbol_samples), from the first prefix sample on.
        frame_format: numerology.
        n_symbols: symbols to demodulate.
        fraction_samples: true start minus the index of the first sample, in samples.
        cfo_hz: carrier offset to remove; its phase is zero at the first sample.
        subcarriers: FFT bins to return, int, (bins,); all in FFT order if None.

    Returns:
        complex64, (antennas, n_symbols, bins).
    """
    fmt = frame_format
    early = fmt.cp_samples // 4
    # One memory layout and one type, so that one compiled copy serves all callers.
    part = np.ascontiguousarray(samples[:, : n_symbols * fmt.symbol_samples], np.complex64)
    windows = np.empty((len(part), n_symbols, fmt.n_fft), np.complex64)
    _windows(part, cfo_hz / fmt.sample_rate_hz, fmt.cp_samples - early, fmt.symbol_samples, windows)
    spectra = scipy.fft.fft(windows, axis=-1, norm="ortho")
    wanted = None if subcarriers is None else np.asarray(subcarriers, np.int64).tobytes()
    bins, frequencies = _frequencies(fmt.n_fft, wanted)
    cells = np.empty((len(part), n_symbols, len(bins)), np.complex64)
    _pick_cells(spectra, bins, frequencies, float(early + fraction_samples), cells)
    return cells

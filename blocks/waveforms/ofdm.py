"""OFDM modulation and demodulation with unitary transforms."""

from __future__ import annotations

import numpy as np
import scipy.fft

from .frame import FrameFormat


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


def demodulate(
    samples: np.ndarray, frame_format: FrameFormat, n_symbols: int, fraction_samples: float = 0.0
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

    Returns:
        complex64, (antennas, n_symbols, n_fft), FFT bin order.
    """
    fmt = frame_format
    early = fmt.cp_samples // 4
    first = fmt.cp_samples - early
    pieces = samples[:, : n_symbols * fmt.symbol_samples].reshape(len(samples), n_symbols, fmt.symbol_samples)
    window = pieces[:, :, first : first + fmt.n_fft].astype(np.complex64, copy=False)
    bins = scipy.fft.fft(window, axis=-1, norm="ortho")
    frequency = np.fft.fftfreq(fmt.n_fft)
    ramp = np.exp(2j * np.pi * frequency * (early + fraction_samples)).astype(np.complex64)
    return bins * ramp


def rotate(samples: np.ndarray, cfo_hz: float, sample_rate_hz: float, first_index: int = 0) -> np.ndarray:
    """Remove a carrier offset.

    Args:
        samples: complex, (..., n).
        cfo_hz: offset to remove.
        sample_rate_hz: sample rate.
        first_index: index of samples[..., 0] on the time axis on which the phase is zero at index 0.

    Returns:
        complex64, same shape.
    """
    index = np.arange(first_index, first_index + samples.shape[-1], dtype=np.float64)
    return samples * np.exp(-2j * np.pi * (cfo_hz / sample_rate_hz) * index).astype(np.complex64)

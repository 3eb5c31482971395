"""The access slot: what an active user sends, and what the base station makes of it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .frame import FrameFormat
from .ofdm import demodulate, modulate


@lru_cache(maxsize=16)
def _group_phases(fmt: FrameFormat) -> np.ndarray:
    """Unit factors per group, complex128 (n_groups,).

    All groups carry the same symbols; without a phase of its own per group the slot would be a train of
    pulses. The factor is common to all users and thus part of the unknown channel.
    """
    return np.exp(2j * np.pi * np.random.default_rng([fmt.sequence_seed, 4]).random(fmt.n_groups))


def access_burst(frame_format: FrameFormat, preamble: np.ndarray) -> np.ndarray:
    """The samples that an active user sends from `access_start` on.

    Args:
        frame_format: numerology and slots.
        preamble: complex, (Lp,), the first Lp symbols of the user's preamble; one per cell, unit cell energy.

    Returns:
        complex64, (symbols_of_length(Lp) * symbol_samples,).

    Raises:
        ValueError: the preamble is longer than the slot.
    """
    fmt = frame_format
    n_symbols = fmt.symbols_of_length(len(preamble))
    cells = np.zeros(n_symbols * fmt.group_width, complex)
    cells[: len(preamble)] = preamble
    grid = np.zeros((n_symbols, fmt.n_fft), complex)
    for bins, phase in zip(fmt.access_subcarriers, _group_phases(fmt), strict=True):
        grid[:, bins] = cells.reshape(n_symbols, fmt.group_width) * phase
    return modulate(grid, fmt.cp_samples)


def receive_access(
    samples: np.ndarray, frame_format: FrameFormat, preamble_length: int, fraction_samples: float = 0.0
) -> np.ndarray:
    """Demodulate the access slot into snapshots.

    Args:
        samples: complex, (antennas, n), from `access_start` on, carrier offset removed.
        frame_format: numerology and slots.
        preamble_length: symbols sent, Lp.
        fraction_samples: true start minus the index of the first sample.

    Returns:
        complex64, (Lp, antennas * n_groups); snapshot index = antenna * n_groups + group.
    """
    fmt = frame_format
    n_symbols = fmt.symbols_of_length(preamble_length)
    cells = demodulate(samples, fmt, n_symbols, fraction_samples)[:, :, fmt.access_subcarriers]
    by_symbol = cells.transpose(1, 3, 0, 2).reshape(n_symbols * fmt.group_width, -1)
    return np.ascontiguousarray(by_symbol[:preamble_length])


def noise_power(samples: np.ndarray, frame_format: FrameFormat) -> float:
    """Mean power per access cell in the silent slot, which is the noise power of the snapshots.

    Measured on the same subcarriers through the same transform, so that coloured noise is weighed as in the
    snapshots.

    Args:
        samples: complex, (antennas, at least noise_symbols * symbol_samples), from `noise_start` on.
        frame_format: numerology and slots.

    Returns:
        Noise power per cell (complex sample, unitary transform).
    """
    cells = demodulate(samples, frame_format, frame_format.noise_symbols)[:, :, frame_format.access_subcarriers]
    return float(np.mean(np.abs(cells.astype(np.complex128)) ** 2))

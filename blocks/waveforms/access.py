"""The access slot: what an active user sends, and what the base station makes of it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .frame import FrameFormat
from .ofdm import demodulate, modulate

# A converter that rounds faint noise to nothing leaves a silent noise slot; detectors need a positive number.
_LEAST_NOISE_SHARE = 1e-8
_LEAST_NOISE_POWER = 1e-20
# A chain with less than this share of the mean noise power hears nothing.
_DEAD_SHARE = 1e-3


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


def noise_powers(samples: np.ndarray, frame_format: FrameFormat) -> np.ndarray:
    """Noise power of each antenna from the silent slot, over all used subcarriers.

    Args:
        samples: complex, (antennas, at least noise_symbols * symbol_samples), from `noise_start` on.
        frame_format: numerology and slots.

    Returns:
        float64, (antennas,): noise power per cell, that is per complex sample, the transform being unitary.
    """
    cells = demodulate(samples, frame_format, frame_format.noise_symbols)[:, :, frame_format.used_subcarriers]
    return np.mean(cells.real.astype(np.float64) ** 2 + cells.imag.astype(np.float64) ** 2, axis=(1, 2))


def level_antennas(snapshots: np.ndarray, noise_per_antenna: np.ndarray) -> tuple[np.ndarray, float]:
    """Scale the snapshots of every antenna so that all have the same noise power.

    Gains behind the first amplifier differ between chains and scale signal and noise alike; a detector that
    assumes one noise power for all snapshots would weigh a loud chain more than a quiet one.

    Args:
        snapshots: complex64, (Lp, antennas * n_groups), antenna by antenna.
        noise_per_antenna: float64, (antennas,).

    Returns:
        The snapshots levelled, same shape, and their noise power: the mean over the antennas. A chain that is
        silent, or nearly so beside the others, is taken for dead and its snapshots are left as they are.
    """
    floor = max(_LEAST_NOISE_SHARE * float(np.mean(np.abs(snapshots) ** 2)), _LEAST_NOISE_POWER)
    mean = max(float(np.mean(noise_per_antenna)), floor)
    alive = noise_per_antenna > max(_DEAD_SHARE * mean, floor)
    factors = np.where(alive, np.sqrt(mean / np.where(alive, noise_per_antenna, 1.0)), 1.0)
    n_groups = snapshots.shape[1] // len(noise_per_antenna)
    return snapshots * np.repeat(factors, n_groups).astype(np.float32), mean

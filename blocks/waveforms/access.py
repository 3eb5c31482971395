"""The access slot: what an active user sends, and what the base station makes of it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numba import njit

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


def access_mix(frame_format: FrameFormat, preambles: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """What several users together send from `access_start` on, each with gains of its own.

    Args:
        frame_format: numerology and slots.
        preambles: complex, (Lp, users), the first Lp symbols of each user's preamble.
        gains: complex, (users, n_groups), on each group of subcarriers.

    Returns:
        complex64, (symbols_of_length(Lp) * symbol_samples,); with gains of 1 the sum of the users' `access_burst`.

    Raises:
        ValueError: the preambles are longer than the slot.
    """
    fmt = frame_format
    n_symbols = fmt.symbols_of_length(len(preambles))
    cells = np.zeros((n_symbols * fmt.group_width, fmt.n_groups), complex)
    cells[: len(preambles)] = preambles @ (gains * _group_phases(fmt))
    grid = np.zeros((n_symbols, fmt.n_fft), complex)
    grid[:, fmt.access_subcarriers] = cells.reshape(n_symbols, fmt.group_width, fmt.n_groups).transpose(0, 2, 1)
    return modulate(grid, fmt.cp_samples)


@lru_cache(maxsize=16)
def _access_bins(fmt: FrameFormat) -> np.ndarray:
    """The slot's subcarriers in order of symbol, then group; int64, (group_width * n_groups,)."""
    return np.ascontiguousarray(fmt.access_subcarriers.T.reshape(-1), np.int64)


def receive_access(
    samples: np.ndarray,
    frame_format: FrameFormat,
    preamble_length: int,
    fraction_samples: float = 0.0,
    cfo_hz: float = 0.0,
) -> np.ndarray:
    """Demodulate the access slot into snapshots.

    Args:
        samples: complex, (antennas, n), from `access_start` on.
        frame_format: numerology and slots.
        preamble_length: symbols sent, Lp.
        fraction_samples: true start minus the index of the first sample.
        cfo_hz: carrier offset to remove.

    Returns:
        complex64, (Lp, antennas * n_groups); snapshot index = antenna * n_groups + group.
    """
    fmt = frame_format
    n_symbols = fmt.symbols_of_length(preamble_length)
    cells = demodulate(samples, fmt, n_symbols, fraction_samples, cfo_hz, _access_bins(fmt))
    by_group = cells.reshape(len(cells), n_symbols * fmt.group_width, fmt.n_groups)[:, :preamble_length]
    return by_group.transpose(1, 0, 2).reshape(preamble_length, -1)


def noise_powers(samples: np.ndarray, frame_format: FrameFormat) -> np.ndarray:
    """Noise power of each antenna from the silent slot, over all used subcarriers.

    Args:
        samples: complex, (antennas, at least noise_symbols * symbol_samples), from `noise_start` on.
        frame_format: numerology and slots.

    Returns:
        float64, (antennas,): noise power per cell, that is per complex sample, the transform being unitary.
    """
    fmt = frame_format
    cells = demodulate(samples, fmt, fmt.noise_symbols, subcarriers=fmt.used_subcarriers)
    return _mean_powers(cells.reshape(len(cells), -1))


@njit(cache=True, fastmath={"contract", "reassoc", "nsz", "arcp"}, error_model="numpy")
def _mean_powers(values):
    """Mean square of the magnitude of each row; complex64 (rows, n) -> float64 (rows,)."""
    out = np.empty(values.shape[0])
    for a in range(values.shape[0]):
        total = np.float64(0)
        for k in range(values.shape[1]):
            re, im = np.float64(values[a, k].real), np.float64(values[a, k].imag)
            total += re * re + im * im
        out[a] = total / values.shape[1]
    return out


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
    values = np.array(snapshots, np.complex64, order="C")
    return values, float(_level(values, np.asarray(noise_per_antenna, np.float64)))


@njit(cache=True, error_model="numpy")
def _level(snapshots, noise):
    """Work of `level_antennas`, in place; returns the noise power."""
    power = 0.0
    for i in range(snapshots.shape[0]):
        for k in range(snapshots.shape[1]):
            power += snapshots[i, k].real ** 2 + snapshots[i, k].imag ** 2
    floor = max(_LEAST_NOISE_SHARE * power / max(snapshots.size, 1), _LEAST_NOISE_POWER)
    mean = max(float(noise.mean()), floor)
    n_groups = snapshots.shape[1] // noise.size
    for a in range(noise.size):
        if noise[a] > max(_DEAD_SHARE * mean, floor):
            factor = np.float32(np.sqrt(mean / noise[a]))
            for i in range(snapshots.shape[0]):
                for k in range(a * n_groups, (a + 1) * n_groups):
                    snapshots[i, k] *= factor
    return mean

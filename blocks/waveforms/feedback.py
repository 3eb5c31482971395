"""The feedback slot: what a user sends of its CSI, and what the base station makes of all users' parts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntFlag
from functools import lru_cache

import numpy as np
import scipy.stats

from .access import noise_powers
from .csi_frame import CsiFrame
from .frame import FrameFormat
from .ofdm import demodulate, modulate

# Probability that noise alone is taken for a user.
_FALSE_ALARM = 1e-6
# Taps next to each other among which a user's energy is looked for.
_WINDOW_TAPS = 16
# Of the mean energy of a tap's subcarriers; keeps the fit from blowing noise up.
_RIDGE = 1e-3
# More samples than this share of a part at the converter's end distort its symbols.
_MOST_SATURATED = 1e-3
# A converter of 12 bits in a 16-bit container ends at 2047/2048.
_FULL_SCALE = 0.999
_LEAST_NOISE_POWER = 1e-20


class PartFlag(IntFlag):
    """What is wrong with a user's part of the feedback slot."""

    SILENT = 1
    NOT_FINITE = 2
    SATURATED = 4

    @property
    def meaning(self) -> str:
        """For people."""
        return {
            PartFlag.SILENT: "nothing was received from the user",
            PartFlag.NOT_FINITE: "samples are no numbers, so that the user was left out",
            PartFlag.SATURATED: "samples stand at the converter's end, so that the symbols may be distorted",
        }[self]


@dataclass(frozen=True)
class Feedback:
    """What one feedback slot delivered.

    Attributes:
        words: complex64, (user, symbol): the codes as they were sent, of unit mean power, with noise; zero for users
            left out.
        snr_db: float64, (user,): of a symbol in `words`; -inf for users left out.
        flags: uint8, (user,): sum of `PartFlag`.
        heard: bool, (user,): who was received.
        noise_power: mean over antennas, per complex sample.
    """

    words: np.ndarray
    snr_db: np.ndarray
    flags: np.ndarray
    heard: np.ndarray
    noise_power: float


@lru_cache(maxsize=16)
def _pilots(fmt: FrameFormat, n_symbols: int) -> np.ndarray:
    """Values of the pilots in the symbols of a part, complex128 (n_symbols, n_used), of unit magnitude."""
    rng = np.random.default_rng([fmt.sequence_seed, 6])
    return np.exp(0.5j * np.pi * rng.integers(0, 4, (n_symbols, fmt.n_used)))


def feedback_burst(frame: CsiFrame, word: np.ndarray) -> np.ndarray:
    """The samples that a user sends from the start of its part on.

    Args:
        frame: slots.
        word: complex, (feedback_length,), unit mean power: a cell with a symbol has the energy of one of pilots.

    Returns:
        complex64, (part_samples,).

    Raises:
        ValueError: the word has another length, or is not finite.
    """
    fmt, slots = frame.frame_format, frame.slots
    word = np.asarray(word)
    if word.shape != (slots.feedback_length,):
        raise ValueError(f"word has shape {word.shape}; the feedback slot takes {slots.feedback_length} symbols")
    if not np.isfinite(word).all():
        raise ValueError("word holds symbols that are no numbers")
    cells = np.zeros((frame.part_symbols, fmt.n_used), complex)
    known = _pilots(fmt, frame.part_symbols)
    cells[: slots.pilot_symbols] = known[: slots.pilot_symbols]
    cells[slots.pilot_symbols :, frame.pilot_cells] = known[slots.pilot_symbols :, frame.pilot_cells]
    symbol, cell = frame.code_cells.T
    cells[slots.pilot_symbols + symbol, cell] = word
    grid = np.zeros((frame.part_symbols, fmt.n_fft), complex)
    grid[:, fmt.used_subcarriers] = cells
    return modulate(grid, fmt.cp_samples)


@dataclass(frozen=True)
class _Taps:
    """Delay taps that a channel may have, from a quarter of the prefix before to a whole prefix after the timing.

    Attributes:
        fit: complex64, (tap, n_used): from one symbol of pilots to its taps, by least squares.
        steering: complex64, (n_used, tap): from taps back to subcarriers.
        noise: float64, (tap,): power that white noise of unit power has in each tap.
    """

    fit: np.ndarray
    steering: np.ndarray
    noise: np.ndarray


@lru_cache(maxsize=16)
def _taps(fmt: FrameFormat) -> _Taps:
    frequency = np.fft.fftfreq(fmt.n_fft)[fmt.used_subcarriers]
    delays = np.arange(-(fmt.cp_samples // 4), fmt.cp_samples + 1, fmt.n_fft / fmt.n_used)
    steering = np.exp(-2j * np.pi * np.outer(frequency, delays))
    gram = steering.conj().T @ steering
    fit = np.linalg.solve(gram + _RIDGE * np.trace(gram).real / len(gram) * np.eye(len(gram)), steering.conj().T)
    noise = np.sum(np.abs(fit) ** 2, axis=1)
    return _Taps(fit.astype(np.complex64), steering.astype(np.complex64), noise)


@lru_cache(maxsize=16)
def _least_energy(n_taps: int, n_antennas: int) -> float:
    """Energy that noise of unit power per tap has in some window of taps with `_FALSE_ALARM` at most."""
    width = min(_WINDOW_TAPS, n_taps)
    return float(scipy.stats.gamma.isf(_FALSE_ALARM / (n_taps - width + 1), width * n_antennas))


def _estimate_channel(pilots: np.ndarray, fmt: FrameFormat, noise: float) -> tuple[np.ndarray, float] | None:
    """Channel of every antenna from one symbol of pilots.

    Args:
        pilots: complex64, (antenna, n_used): received over sent.
        fmt: numerology.
        noise: power in each of them.

    Returns:
        complex64, (antenna, n_used), and its square error per cell; None where nothing stands out of the noise.
    """
    taps = _taps(fmt)
    found = pilots @ taps.fit.T
    power = np.mean(np.abs(found) ** 2, axis=0, dtype=np.float64)
    expected = noise * taps.noise
    energy = len(pilots) * power / expected
    window = np.convolve(energy, np.ones(min(_WINDOW_TAPS, len(energy))), "valid")
    if window.max() <= _least_energy(len(energy), len(pilots)):
        return None
    # The delay profile is common to all antennas.
    weights = np.maximum(power - expected, 0) / np.maximum(power, 1e-30)
    h = (found * weights.astype(np.float32)) @ taps.steering.T
    return h, float(np.sum(weights * expected))


def receive_feedback(
    samples: np.ndarray,
    frame: CsiFrame,
    fraction_samples: float = 0.0,
    cfo_hz: float = 0.0,
    full_scale: float | None = None,
) -> Feedback:
    """Demodulate the feedback slot: all users' codes, combined over antennas.

    Noise is measured in the slot that is left silent. For each user the channel of every antenna follows from its
    pilots by LMMSE, the phase of each symbol with code from the pilots in it. Antennas are combined for the highest
    SNR; symbols on weaker subcarriers are scaled down as minimum mean square error asks, and all together so that they
    have the power they were sent with.

    Args:
        samples: complex, (antenna, n), from `feedback_start` on to the end of the noise slot.
        frame: slots.
        fraction_samples: true frame start minus the index that was taken for it.
        cfo_hz: carrier offset of the beacon.
        full_scale: of the converter; None where there is none, and nothing saturates.

    Returns:
        What was received. Parts with samples that are no numbers are left out, and flagged.

    Raises:
        ValueError: too few samples.
    """
    fmt, n_users = frame.frame_format, frame.slots.n_users
    span = frame.used_samples - frame.feedback_start
    samples = np.asarray(samples)
    if samples.ndim != 2 or samples.shape[1] < span:
        raise ValueError(f"samples has shape {samples.shape}; needs (antennas, at least {span})")
    words = np.zeros((n_users, frame.slots.feedback_length), np.complex64)
    snr_db = np.full(n_users, -np.inf)
    flags = np.zeros(n_users, np.uint8)
    silence = samples[:, frame.noise_start - frame.feedback_start : span]
    noise = noise_powers(np.where(np.isfinite(silence), silence, 0), fmt)
    # A converter that rounds faint noise to nothing leaves silence.
    noise = np.maximum(noise, max(1e-8 * float(noise.max(initial=0)), _LEAST_NOISE_POWER))
    for user in range(n_users):
        begin = user * frame.part_samples
        part = samples[:, begin : begin + frame.part_samples]
        if not np.isfinite(part).all():
            flags[user] |= PartFlag.NOT_FINITE
            continue
        if full_scale is not None:
            loud = np.maximum(np.abs(part.real), np.abs(part.imag)) >= _FULL_SCALE * full_scale
            if loud.mean() > _MOST_SATURATED:
                flags[user] |= PartFlag.SATURATED
        # The offset is removed with phase zero at the part's begin: its channel estimate takes up the rest.
        found = _receive_part(part, frame, noise, fraction_samples, cfo_hz)
        if found is None:
            flags[user] |= PartFlag.SILENT
            continue
        words[user], snr_db[user] = found
    heard = (flags & (PartFlag.SILENT | PartFlag.NOT_FINITE)) == 0
    return Feedback(words, snr_db, flags, heard, float(noise.mean()))


def _receive_part(
    part: np.ndarray, frame: CsiFrame, noise: np.ndarray, fraction_samples: float, cfo_hz: float
) -> tuple[np.ndarray, float] | None:
    """One user's code and its SNR; None where nothing was received."""
    fmt, n_pilots = frame.frame_format, frame.slots.pilot_symbols
    # All antennas with unit noise.
    cells = demodulate(part, fmt, frame.part_symbols, fraction_samples, cfo_hz, fmt.used_subcarriers)
    cells = cells / np.sqrt(noise).astype(np.float32)[:, None, None]
    known = _pilots(fmt, frame.part_symbols)
    turned = cells[:, :n_pilots] * known[:n_pilots].conj()
    # Phases of later pilot symbols against the first, from all antennas.
    for k in range(1, n_pilots):
        turned[:, k] *= np.exp(-1j * np.angle(np.vdot(turned[:, 0], turned[:, k]))).astype(np.complex64)
    estimate = _estimate_channel(turned.mean(axis=1), fmt, 1 / n_pilots)
    if estimate is None:
        return None
    h, error = estimate
    # Phase of every symbol with code; noise has unit power, so that antennas weigh by their channel alone.
    data = cells[:, n_pilots:]
    reference = known[n_pilots:, frame.pilot_cells]
    seen = np.einsum("ap,asp->s", h[:, frame.pilot_cells].conj(), data[:, :, frame.pilot_cells] * reference.conj())
    data = data * np.exp(-1j * np.angle(seen)).astype(np.complex64)[:, None]

    symbol, cell = frame.code_cells.T
    channel, received = h[:, cell], data[:, symbol, cell]
    gain = np.maximum(np.sum(np.abs(channel) ** 2, axis=0, dtype=np.float64), 1e-12)
    combined = np.sum(channel.conj() * received, axis=0, dtype=np.complex128) / gain
    # Noise, and what the error of the channel estimate makes of the symbol itself.
    variance = (1 + error) / gain
    typical = len(variance) / np.sum(1 / (1 + variance))
    scale = typical / (1 + variance)
    wrong = float(np.mean((scale - 1) ** 2 + scale**2 * variance))
    return (scale * combined).astype(np.complex64), -10 * math.log10(wrong)

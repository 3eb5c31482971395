"""The sounding slot: what the base station's antennas send, and the CSI that a user makes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.fft

from .csi_frame import CsiFrame
from .frame import FrameFormat
from .ofdm import demodulate, modulate

# The interpolation between pilots is built for this share of noise: at higher SNR its own error stays below the noise.
_DESIGN_NOISE = 1e-3
# The first path is where the delay profile comes within 10 dB of its peak. Weaker paths before are not worth it:
# noise and sidelobes would be taken for them.
_EDGE_SHARE = 0.1
# Points of the delay profile per tap.
_FINE = 16


@dataclass(frozen=True)
class Csi:
    """CSI as a user estimates it, in the timing that codes expect.

    Attributes:
        delay_angle: complex64, (tap, beam): its first taps, less the noise; all zero where nothing was received.
        subcarriers: complex64, (subcarrier, antenna), ascending frequency: the estimate with all its noise.
        noise_power: per cell and complex sample of the received signal, on the scale of the pilots.
        error_power: expected square error of an entry of `subcarriers`.
        snr_db: of a received sounding cell, mean over antennas.
        first_path_samples: where the first path lies, against the beacon's timing.
        cfo_hz: carrier offset that was left in the slot, and was removed.
    """

    delay_angle: np.ndarray
    subcarriers: np.ndarray
    noise_power: float
    error_power: float
    snr_db: float
    first_path_samples: float
    cfo_hz: float


@lru_cache(maxsize=16)
def _pilots(fmt: FrameFormat, n_symbols: int) -> np.ndarray:
    """Pilots of the sounding symbols, complex128 (n_symbols, n_used), of unit magnitude."""
    rng = np.random.default_rng([fmt.sequence_seed, 5])
    return np.exp(0.5j * np.pi * rng.integers(0, 4, (n_symbols, fmt.n_used)))


@lru_cache(maxsize=16)
def sounding_slot(frame: CsiFrame) -> np.ndarray:
    """What the antennas of the base station send from `sounding_start` on.

    Args:
        frame: slots and antennas.

    Returns:
        complex64, (antenna, sounding_samples); every sounded cell has unit energy.
    """
    fmt, comb = frame.frame_format, frame.slots.comb
    known = _pilots(fmt, frame.sounding_symbols)
    slot = np.empty((frame.n_antennas, frame.sounding_samples), np.complex64)
    for antenna in range(frame.n_antennas):
        symbol, offset = divmod(antenna, comb)
        grid = np.zeros((frame.sounding_symbols, fmt.n_fft), complex)
        grid[symbol, fmt.used_subcarriers[offset::comb]] = known[symbol, offset::comb]
        slot[antenna] = np.tile(modulate(grid, fmt.cp_samples), frame.slots.sounding_repeats)
    slot.setflags(write=False)
    return slot


@lru_cache(maxsize=16)
def _interpolators(frame: CsiFrame) -> tuple[np.ndarray, ...]:
    """From the pilots of each comb to the subcarriers that CSI is told of; complex64 (subcarrier, pilot) each.

    LMMSE for delays spread evenly from a quarter of the prefix before to a whole prefix after the beacon's timing.
    """
    fmt = frame.frame_format
    delays = np.arange(-(fmt.cp_samples // 4), fmt.cp_samples + 1)

    def steering(subcarriers: np.ndarray) -> np.ndarray:
        return np.exp(-2j * np.pi * np.outer(subcarriers / fmt.n_fft, delays)) / math.sqrt(len(delays))

    wanted = steering(frame.csi_subcarriers)
    found = []
    for offset in range(frame.slots.comb):
        sounded = steering(frame.used_subcarriers[offset :: frame.slots.comb])
        gram = sounded @ sounded.conj().T + _DESIGN_NOISE * np.eye(len(sounded))
        found.append(np.linalg.solve(gram, sounded @ wanted.conj().T).conj().T.astype(np.complex64))
    return tuple(found)


@lru_cache(maxsize=16)
def _noise_profiles(frame: CsiFrame) -> np.ndarray:
    """Noise power in each delay tap, over that of an averaged pilot; float64, (comb, n_subcarriers).

    Normalised so that the mean over all taps is the noise power of an entry over subcarriers. The estimate's noise
    lies in the delays that it is made for, and not evenly in all taps.
    """
    n = frame.slots.n_subcarriers
    in_taps = [scipy.fft.ifft(np.fft.ifftshift(w, axes=0), axis=0, norm="ortho") for w in _interpolators(frame)]
    return np.array([np.sum(np.abs(w) ** 2, axis=1) for w in in_taps]).reshape(-1, n).astype(np.float64)


def estimate_csi(samples: np.ndarray, frame: CsiFrame, fraction_samples: float = 0.0, cfo_hz: float = 0.0) -> Csi:
    """Estimate a user's CSI from the sounding slot.

    Repeats of a symbol tell the carrier offset that the beacon left, and the noise. The channel follows by LMMSE from
    the pilots of each antenna. The first path is put at `lead_taps`, the first taps are kept, and in each of them the
    noise that is expected there is weighed against the power of all antennas (Wiener).

    Args:
        samples: complex, (n,), at least sounding_samples, from `sounding_start` on.
        frame: slots and antennas.
        fraction_samples: true frame start minus the index that was taken for it.
        cfo_hz: carrier offset of the beacon.

    Returns:
        The CSI, with the phase that it has in this slot.

    Raises:
        ValueError: too few samples, or some that are not finite.
    """
    fmt, slots = frame.frame_format, frame.slots
    part = np.asarray(samples)[: frame.sounding_samples]
    if part.ndim != 1 or len(part) < frame.sounding_samples:
        raise ValueError(f"samples has shape {np.shape(samples)}; needs ({frame.sounding_samples},) of one antenna")
    if not np.isfinite(part).all():
        raise ValueError("the sounding slot holds samples that are no numbers")
    n_symbols, repeats = frame.sounding_symbols, slots.sounding_repeats
    cells = demodulate(part[None], fmt, n_symbols * repeats, fraction_samples, cfo_hz, fmt.used_subcarriers)[0]
    turned = cells.reshape(repeats, n_symbols, -1) * _pilots(fmt, n_symbols).conj()
    per_slot = float(np.angle(np.vdot(turned[:-1], turned[1:])))
    # The phase in the middle of the slot is that of the CSI.
    at = np.arange(repeats * n_symbols) - (repeats * n_symbols - 1) / 2
    turned = turned * np.exp(-1j * per_slot / n_symbols * at).reshape(repeats, n_symbols, 1)
    mean = turned.mean(axis=0)
    sent = _sounded(frame)
    noise = float(np.mean(np.abs(turned - mean)[:, sent] ** 2)) * repeats / (repeats - 1)

    h = np.empty((slots.n_subcarriers, frame.n_antennas), np.complex64)
    for offset, interpolator in enumerate(_interpolators(frame)):
        antennas = np.arange(offset, frame.n_antennas, slots.comb)
        h[:, antennas] = interpolator @ mean[: len(antennas), offset :: slots.comb].T
    combs = np.arange(frame.n_antennas) % slots.comb
    error = noise / repeats * _noise_profiles(frame)[combs].mean(axis=0)

    edge = first_path(h)
    delay_angle = to_delay_angle(_shifted(h, slots.lead_taps - edge), slots.n_taps)
    kept = (np.arange(slots.n_taps) + round(edge - slots.lead_taps)) % slots.n_subcarriers
    expected = error[kept] * slots.n_taps / slots.n_subcarriers
    power = np.mean(np.abs(delay_angle) ** 2, axis=1, dtype=np.float64)
    weights = np.maximum(power - expected, 0) / np.maximum(power, 1e-30)
    snr = max(float(np.mean(np.abs(mean[sent]) ** 2)) - noise / repeats, 1e-30) / max(noise, 1e-30)
    return Csi(
        delay_angle=(delay_angle * weights[:, None]).astype(np.complex64),
        subcarriers=h,
        noise_power=noise,
        error_power=float(error.mean()),
        snr_db=10 * math.log10(snr),
        first_path_samples=edge * fmt.n_fft / slots.n_subcarriers,
        cfo_hz=per_slot / (2 * math.pi) * fmt.sample_rate_hz / (n_symbols * fmt.symbol_samples),
    )


def _sounded(frame: CsiFrame) -> np.ndarray:
    """Which cells of the sounding symbols some antenna sends in; bool, (sounding_symbols, n_used)."""
    cells = np.zeros((frame.sounding_symbols, frame.frame_format.n_used), bool)
    for antenna in range(frame.n_antennas):
        symbol, offset = divmod(antenna, frame.slots.comb)
        cells[symbol, offset :: frame.slots.comb] = True
    return cells


def first_path(h: np.ndarray) -> float:
    """Where the delay profile over all antennas first comes within 10 dB of its peak, less what the band blurs.

    The power of a single path rises through that level 0.74 taps before the path itself.

    Args:
        h: complex, (subcarrier, antenna), ascending frequency; an even number of subcarriers.

    Returns:
        Delay in taps; negative ones down to minus a quarter of the range that subcarriers tell apart.
    """
    n = len(h)
    fine = scipy.fft.ifft(np.fft.ifftshift(_zero_padded(h, _FINE * n), axes=0), axis=0)
    profile = np.sum(np.abs(fine) ** 2, axis=1)
    profile = np.roll(profile, _FINE * n // 4)
    level = _EDGE_SHARE * profile.max()
    if not level > 0:
        return 0.0
    above = int(np.argmax(profile >= level))
    place = float(above)
    if above:
        low, high = profile[above - 1], profile[above]
        place = above - float((high - level) / (high - low))
    return place / _FINE - n / 4 + _blur(n)


def _zero_padded(h: np.ndarray, length: int) -> np.ndarray:
    """Subcarriers in the middle of more of them, so that delays come out finer; (length, antenna)."""
    n = len(h)
    wide = np.zeros((length, h.shape[1]), np.complex64)
    wide[length // 2 - n // 2 : length // 2 + n // 2] = h
    return wide


@lru_cache(maxsize=8)
def _blur(n: int) -> float:
    """Taps before a single path at which its power rises to `_EDGE_SHARE` of the peak."""
    x = np.linspace(0.5, 1.0, 4001)
    power = (np.sin(np.pi * x) / (n * np.sin(np.pi * x / n))) ** 2
    return float(np.interp(-_EDGE_SHARE, -power, x))


def _shifted(h: np.ndarray, taps: float) -> np.ndarray:
    """CSI delayed by some taps."""
    n = len(h)
    return h * np.exp(-2j * np.pi * taps / n * np.arange(-(n // 2), n // 2))[:, None]


def to_delay_angle(h: np.ndarray, n_taps: int) -> np.ndarray:
    """Transform CSI to delay and angle and keep the first taps.

    Args:
        h: complex, (..., subcarrier, antenna), ascending frequency, an even number of subcarriers.
        n_taps: taps to keep.

    Returns:
        Complex, (..., tap, beam): CSI of unit mean power that fits into the taps keeps it.
    """
    n = h.shape[-2]
    taps = scipy.fft.ifft(np.fft.ifftshift(h, axes=-2), axis=-2, norm="ortho")[..., :n_taps, :]
    return scipy.fft.fft(taps, axis=-1, norm="ortho") * math.sqrt(n_taps / n)


def from_delay_angle(x: np.ndarray, n_subcarriers: int) -> np.ndarray:
    """Transform delay taps and beams back to CSI over subcarriers.

    Args:
        x: complex, (..., tap, beam).
        n_subcarriers: even, at least the number of taps.

    Returns:
        Complex, (..., subcarrier, antenna).
    """
    n_taps = x.shape[-2]
    taps = scipy.fft.ifft(x, axis=-1, norm="ortho") * math.sqrt(n_subcarriers / n_taps)
    return np.fft.fftshift(scipy.fft.fft(taps, n_subcarriers, axis=-2, norm="ortho"), axes=-2)


def aligned(h: np.ndarray, to: np.ndarray) -> tuple[np.ndarray, float]:
    """CSI in the timing and phase in which other CSI fits it best: neither matters to a precoder.

    Args:
        h: complex, (subcarrier, antenna): to be delayed and turned.
        to: complex, (subcarrier, antenna): stays as it is.

    Returns:
        Complex64, (subcarrier, antenna), and by how many taps it was delayed.
    """
    n = len(h)
    product = np.sum(h.conj() * to, axis=1)[:, None]
    found = np.abs(scipy.fft.ifft(np.fft.ifftshift(_zero_padded(product, _FINE * n), axes=0), axis=0)[:, 0])
    best = int(np.argmax(found))
    before, peak, after = found[best - 1], found[best], found[(best + 1) % len(found)]
    bend = before - 2 * peak + after
    place = best + (0.5 * (before - after) / bend if bend < 0 else 0.0)
    taps = float((place / _FINE + n / 2) % n - n / 2)
    moved = _shifted(h, taps)
    turn = np.vdot(moved, to)
    return (moved * np.exp(1j * np.angle(turn))).astype(np.complex64), taps

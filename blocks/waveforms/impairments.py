"""What real radios do to a signal: one pure function per effect, and one description of all of them.

Conventions: full scale is 1.0 for the real and for the imaginary part; a positive frequency offset turns the
signal counter-clockwise; a positive delay makes it later; powers are per complex sample.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numba import njit
from pydantic import BaseModel, ConfigDict, Field
from scipy.special import i0

KERNEL_TAPS = 24
"""Taps of the fractional-delay filter."""
KERNEL_BEFORE = KERNEL_TAPS // 2 - 1
"""Samples by which the fractional-delay filter reaches ahead of the integer delay."""
KERNEL_AFTER = KERNEL_TAPS // 2
"""Samples by which the fractional-delay filter reaches behind the integer delay."""

_PHASES = 512
# Rotations are the product of a coarse and a fine turn, aligned to the absolute index, so that every cut of a
# stream gives the same bits at the price of one sine per _FINE samples.
_FINE = 64


class Impairments(BaseModel):
    """Imperfections of the transmitting radios, of the receiver, and of the clocks between them.

    The transmitting radios share one clock; the receiver has another. A positive offset means that the
    transmitting clock is fast: the carrier is high and frames arrive ever earlier.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cfo_ppm: float = Field(default=0.0, ge=-100, le=100, description="clock of the transmitters against the receiver")
    sampling_offset_ppm: float | None = Field(
        default=None, ge=-100, le=100, description="same for the sampling clocks; none: they follow cfo_ppm"
    )
    user_cfo_hz: float = Field(
        default=0.0,
        ge=0,
        le=1e5,
        description="standard deviation of the carrier offset left after a user locked on",
    )
    user_timing_samples: float = Field(
        default=0.0,
        ge=0,
        le=64,
        description="timing error left after a user locked on: uniform, plus or minus this",
    )
    start_delay_samples: float = Field(
        default=0.0, ge=0, le=1e6, description="unknown start of the receiver: uniform between 0 and this"
    )
    phase_noise_linewidth_hz: float = Field(
        default=0.0,
        ge=0,
        le=1e4,
        description="3 dB linewidth of every radio's oscillator (Wiener phase noise)",
    )
    chain_phase: bool = Field(default=False, description="random phase of every receive chain")
    chain_delay_samples: float = Field(
        default=0.0, ge=0, le=16, description="delay of every receive chain: uniform, plus or minus this"
    )
    chain_gain_db: float = Field(default=0.0, ge=0, le=20, description="standard deviation of the gains of the chains")
    iq_gain_db: float = Field(default=0.0, ge=-6, le=6, description="gain of Q over I")
    iq_phase_deg: float = Field(default=0.0, ge=-45, le=45, description="quadrature error")
    dc_dbfs: float | None = Field(
        default=None,
        ge=-120,
        le=0,
        description="magnitude of the DC offset under full scale, its phase random; none: no DC",
    )
    adc_bits: int | None = Field(
        default=None,
        ge=2,
        le=16,
        description="bits of the converter, which clips at full scale; none: unquantised",
    )
    full_scale_backoff_db: float = Field(
        default=12.0,
        ge=0,
        le=60,
        description="rms of signal and noise under full scale, when there is a converter",
    )

    @property
    def effective_sampling_offset_ppm(self) -> float:
        """Offset of the sampling clocks, after the rule that it follows the carrier unless given."""
        return self.cfo_ppm if self.sampling_offset_ppm is None else self.sampling_offset_ppm

    @classmethod
    def preset(cls, level: Literal["perfect", "cabled", "wireless"]) -> Impairments:
        """Give the imperfections of a typical set-up.

        Args:
            level: "perfect": none; "cabled": two radios on one bench, joined by cables and attenuators;
                "wireless": two radios in one room, users on the move of a hand.

        Raises:
            ValueError: there is no such level.
        """
        if level not in _PRESETS:
            raise ValueError(f"impairment level {level!r} is unknown: allowed are {', '.join(_PRESETS)}")
        return cls.model_validate(_PRESETS[level])


_PRESETS: dict[str, dict[str, object]] = {
    "perfect": {},
    "cabled": {
        # Two temperature-compensated crystals of the 2 ppm class (USRP B210), warmed up on one bench.
        "cfo_ppm": 1.0,
        # A preamble of about 1000 samples at 30 dB and 2 MS/s leaves 1 Hz; the rest is room for drift.
        "user_cfo_hz": 5.0,
        # A user that aligns to its nearest sample.
        "user_timing_samples": 0.5,
        # Receiver and transmitter are started by hand: anything up to two frames of 4096 samples.
        "start_delay_samples": 8192.0,
        # -95 dBc/Hz at 10 kHz, an integrated synthesiser of the AD936x class below 3 GHz.
        "phase_noise_linewidth_hz": 0.2,
        # Dividers and mixers lock in arbitrary phase at each tune.
        "chain_phase": True,
        # A metre of cable more or less is 5 ns, 0.01 samples at 2 MS/s; filters of the chains add as much.
        "chain_delay_samples": 0.02,
        "chain_gain_db": 0.5,
        # Image rejection of about 46 dB: the radio's own correction at work.
        "iq_gain_db": 0.05,
        "iq_phase_deg": 0.5,
        # DC tracking at work.
        "dc_dbfs": -60.0,
        # AD936x: 12 bits.
        "adc_bits": 12,
        # Ten-odd dB for the peaks of many users' OFDM.
        "full_scale_backoff_db": 12.0,
    },
    "wireless": {
        # 2.5 ppm crystals (USRP X310) in rooms of different temperature; Plutos are worse.
        "cfo_ppm": 2.5,
        # Offset estimate at about 10 dB, plus the drift until the access slot.
        "user_cfo_hz": 50.0,
        # Beacon search in multipath, and the path itself: a sample is 150 m at 2 MS/s.
        "user_timing_samples": 1.0,
        "start_delay_samples": 8192.0,
        # -85 dBc/Hz at 10 kHz: integrated synthesiser in the 5 to 6 GHz range, with margin.
        "phase_noise_linewidth_hz": 2.0,
        "chain_phase": True,
        # Antenna feeders of unequal length.
        "chain_delay_samples": 0.1,
        "chain_gain_db": 1.5,
        # Image rejection of about 33 dB: correction done at another frequency or temperature.
        "iq_gain_db": 0.2,
        "iq_phase_deg": 2.0,
        # Leakage of the local oscillator before tracking has settled.
        "dc_dbfs": -45.0,
        "adc_bits": 12,
        # More room, since the powers of the users vary with fading.
        "full_scale_backoff_db": 15.0,
    },
}


def db_to_amplitude(value_db: float | np.ndarray) -> np.ndarray:
    """Convert decibels to an amplitude ratio."""
    return np.power(10.0, np.asarray(value_db, dtype=np.float64) / 20)


def rotation(cfo_hz: float, rate_hz: float, start_index: int, n: int) -> np.ndarray:
    """Compute exp(j 2 pi cfo_hz k / rate_hz) for absolute sample indices k.

    Args:
        cfo_hz: frequency.
        rate_hz: sample rate.
        start_index: first k.
        n: samples.

    Returns:
        (n,) complex128; a sample depends on its k alone, bit for bit, whatever the start.
    """
    cycles = cfo_hz / rate_hz
    first, last = start_index // _FINE, (start_index + n - 1) // _FINE
    coarse = np.exp(2j * np.pi * np.mod(cycles * _FINE * np.arange(first, last + 1, dtype=np.float64), 1.0))
    fine = np.exp(2j * np.pi * cycles * np.arange(_FINE))
    skip = start_index - first * _FINE
    return np.multiply.outer(coarse, fine).ravel()[skip : skip + n]


def apply_frequency_offset(x: np.ndarray, cfo_hz: float, rate_hz: float, start_index: int = 0) -> np.ndarray:
    """Shift a signal in frequency, continuous in phase over cuts of a stream.

    Args:
        x: (..., n) complex.
        cfo_hz: offset.
        rate_hz: sample rate.
        start_index: absolute index of the first sample.

    Returns:
        (..., n) of the type of x: x[k] exp(j 2 pi cfo_hz (start_index + k) / rate_hz).
    """
    x = np.asarray(x)
    return (x * rotation(cfo_hz, rate_hz, start_index, x.shape[-1])).astype(x.dtype)


def phase_noise(
    n: int, linewidth_hz: float, rate_hz: float, rng: np.random.Generator, start_rad: float = 0.0
) -> np.ndarray:
    """Draw the phase of a free-running oscillator, a Wiener process.

    The variance grows by 2 pi linewidth_hz / rate_hz per sample; the spectrum of the carrier is Lorentzian
    with the given full width at half maximum (Demir, Mehrotra, Roychowdhury 2000).

    Args:
        n: samples.
        linewidth_hz: 3 dB linewidth.
        rate_hz: sample rate.
        rng: source of the increments.
        start_rad: phase before the first increment.

    Returns:
        (n,) float64 in rad.
    """
    if not linewidth_hz:
        return np.full(n, start_rad)
    return start_rad + np.cumsum(phase_steps(n, linewidth_hz, rate_hz, rng), dtype=np.float64)


@njit(cache=True, nogil=True)
def _turn(x, out, amplitude, cycles, start, steps, phase):
    """See turn."""
    z = 0j
    for i in range(x.size):
        if i % _FINE == 0:
            whole = cycles * (start + i)
            angle = 2 * math.pi * (whole - math.floor(whole)) + phase
            z = amplitude * complex(math.cos(angle), math.sin(angle))
            ahead = complex(math.cos(2 * math.pi * cycles), math.sin(2 * math.pi * cycles))
        if steps.size:
            step = np.float64(steps[i])
            phase += step
            if abs(step) < 0.1:
                # Taylor series, exact to 1e-8 and cheaper than sine and cosine.
                square = step * step
                z *= complex(1 - square / 2 * (1 - square / 12), step * (1 - square / 6))
            else:
                z *= complex(math.cos(step), math.sin(step))
        out[i] = x[i] * z
        z *= ahead
    return phase


def turn(
    x: np.ndarray,
    out: np.ndarray,
    cycles_per_sample: float,
    start_index: int,
    phase_steps_rad: np.ndarray,
    *,
    amplitude: float = 1.0,
    start_rad: float = 0.0,
) -> float:
    """Apply amplitude, frequency offset and phase noise in one pass, for where speed matters.

    Args:
        x: (n,) complex64.
        out: (n,) complex64, written to; may be x.
        cycles_per_sample: frequency offset over sample rate.
        start_index: absolute index of the first sample.
        phase_steps_rad: (n,) float32 increments of the phase noise, or (0,) for none.
        amplitude: factor.
        start_rad: phase of the phase noise before the first increment.

    Returns:
        Phase of the phase noise after the last increment, in rad, modulo 2 pi.
    """
    end = _turn(x, out, amplitude, cycles_per_sample, start_index, phase_steps_rad, start_rad)
    return math.fmod(end, 2 * math.pi)


def phase_steps(n: int, linewidth_hz: float, rate_hz: float, rng: np.random.Generator) -> np.ndarray:
    """Draw the increments of `phase_noise`. Returns (n,) float32 in rad; empty when the linewidth is 0."""
    if not linewidth_hz:
        return np.empty(0, dtype=np.float32)
    # Uniform increments have the same spectrum as Gaussian ones, their sum is Gaussian after a handful of
    # samples, and they cost a fraction.
    steps = rng.random(n, dtype=np.float32)
    steps -= np.float32(0.5)
    steps *= np.float32(math.sqrt(12 * 2 * math.pi * linewidth_hz / rate_hz))
    return steps


def linewidth_of(phase_noise_dbc_hz: float, offset_hz: float) -> float:
    """Convert one point of a data sheet's phase-noise curve to the linewidth of a Wiener process.

    Args:
        phase_noise_dbc_hz: single-sideband phase noise L(f).
        offset_hz: f, well above the linewidth.

    Returns:
        Linewidth in Hz, 2 pi f^2 L(f).
    """
    return 2 * math.pi * offset_hz**2 * 10 ** (phase_noise_dbc_hz / 10)


def iq_coefficients(gain_db: float, phase_deg: float) -> tuple[complex, complex]:
    """Give a and b of the imbalanced signal y = a x + b conj(x).

    The local oscillator delivers cos(wt) and -g sin(wt + phase): I is exact, Q is off by the gain g and the
    phase. Image rejection is |a|^2 / |b|^2 = (1 + 2 g cos(phase) + g^2) / (1 - 2 g cos(phase) + g^2).
    """
    q = 10 ** (gain_db / 20) * np.exp(1j * math.radians(phase_deg))
    return complex((1 + np.conj(q)) / 2), complex((1 - q) / 2)


def iq_imbalance(x: np.ndarray, gain_db: float, phase_deg: float) -> np.ndarray:
    """Apply a receiver's IQ imbalance.

    Args:
        x: complex, any shape.
        gain_db: gain of Q over I.
        phase_deg: quadrature error.

    Returns:
        Same shape and type as x.
    """
    x = np.asarray(x)
    direct, image = iq_coefficients(gain_db, phase_deg)
    return (direct * x + image * np.conj(x)).astype(x.dtype)


def quantise(x: np.ndarray, bits: int) -> tuple[np.ndarray, int]:
    """Convert to the values of a two's complement converter with full scale 1.0.

    Args:
        x: complex64, any shape.
        bits: 2 to 16.

    Returns:
        complex64 of the same shape with multiples of 2^(1-bits) in [-1, 1 - 2^(1-bits)], all of them exact in
        int16/32768; and the number of complex samples of which a part was clipped.

    Raises:
        ValueError: bits out of range.
    """
    if not 2 <= bits <= 16:
        raise ValueError(f"bits={bits} is not possible: allowed 2 to 16")
    x = np.ascontiguousarray(x, dtype=np.complex64)
    levels = np.float32(2 ** (bits - 1))
    parts = np.floor(x.view(np.float32) * levels + np.float32(0.5))
    limited = np.clip(parts, -levels, levels - 1)
    clipped = np.count_nonzero((limited != parts).reshape(-1, 2).any(axis=1))
    return (limited / levels).view(np.complex64).reshape(x.shape), int(clipped)


def _make_kernels() -> np.ndarray:
    """Tabulate the windowed sinc at all phases. Returns float32, (_PHASES + 1, KERNEL_TAPS)."""
    at = np.arange(-KERNEL_BEFORE, KERNEL_AFTER + 1) - np.arange(_PHASES + 1)[:, None] / _PHASES
    half_width = KERNEL_TAPS / 2
    window = i0(7.4 * np.sqrt(np.clip(1 - (at / half_width) ** 2, 0, None))) / i0(7.4)
    kernels = np.sinc(at) * window
    # Exact zeros and ones where the delay is whole: such delays must not disturb a single bit.
    kernels[np.abs(at - np.round(at)) < 1e-12] = 0
    kernels[np.abs(at) < 1e-12] = 1
    return (kernels / kernels.sum(axis=1, keepdims=True)).astype(np.float32)


_KERNELS = _make_kernels()


@njit(cache=True, fastmath={"contract"}, nogil=True)
def _delay_rows(out, first, source, offsets, starts, lengths, delays, drift, piece, kernels):
    """See delay_rows."""
    rows, width2 = out.shape
    width = width2 // 2
    taps = kernels.shape[1]
    phases = kernels.shape[0] - 1
    before = taps // 2 - 1
    h = np.empty(taps, dtype=np.float32)
    for r in range(rows):
        for p0 in range(0, width, piece):
            p1 = min(p0 + piece, width)
            centre = first + 0.5 * (p0 + p1 - 1)
            delay = delays[r] - drift * (centre - delays[r])
            whole = np.int64(np.floor(delay))
            phase = (delay - whole) * phases
            index = min(np.int64(phase), phases - 1)
            weight = np.float32(phase - index)
            for k in range(taps):
                h[k] = kernels[index, k] + weight * (kernels[index + 1, k] - kernels[index, k])
            # Column c takes source samples at, at - 1, ... from at = c + lead on; the rest is silence.
            lead = first - whole - starts[r] + before
            c0 = max(p0, -lead)
            c1 = min(p1, lengths[r] + taps - 1 - lead)
            if c1 <= c0:
                continue
            base = 2 * (offsets[r] + c0 + lead)
            y = out[r, 2 * c0 : 2 * c1]
            if weight == 0 and index == 0:
                shift = base - 2 * before
                s = source[shift : shift + y.size]
                for i in range(y.size):
                    y[i] = s[i]
                continue
            for k in range(0, taps, 8):
                # Eight taps at once keep the sums in registers.
                s = source[base - 2 * (k + 7) : base - 2 * k + y.size]
                h0, h1, h2, h3 = h[k], h[k + 1], h[k + 2], h[k + 3]
                h4, h5, h6, h7 = h[k + 4], h[k + 5], h[k + 6], h[k + 7]
                for i in range(y.size):
                    y[i] += (
                        (h0 * s[i + 14] + h1 * s[i + 12])
                        + (h2 * s[i + 10] + h3 * s[i + 8])
                        + (h4 * s[i + 6] + h5 * s[i + 4])
                        + (h6 * s[i + 2] + h7 * s[i])
                    )


def delay_rows(
    first: int,
    width: int,
    source: np.ndarray,
    offsets: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    delays_samples: np.ndarray,
    drift: float = 0.0,
    piece: int = 4096,
) -> np.ndarray:
    """Delay pieces of signals onto one common grid of absolute sample indices.

    Row r at absolute index m is its source at index m - d, with d = D_r - drift (m - D_r), as a
    Kaiser-windowed sinc of KERNEL_TAPS taps gives it; outside its source's span the signal is zero. The delay
    is held over `piece` samples. Whole delays are exact.

    Args:
        first: absolute index of the first column.
        width: columns.
        source: (s,) complex64, all sources one after the other, each with KERNEL_TAPS zeros (or true
            neighbours) before and after it.
        offsets: (rows,) int64, where in `source` the row's first sample lies.
        starts: (rows,) int64, its absolute index.
        lengths: (rows,) int64, its samples.
        delays_samples: (rows,) float64, D_r, any real number.
        drift: fast source clock, relative.
        piece: samples over which a delay is held.

    Returns:
        (rows, width) complex64.
    """
    out = np.zeros((len(delays_samples), 2 * width), dtype=np.float32)
    _delay_rows(out, first, source.view(np.float32), offsets, starts, lengths, delays_samples, drift, piece, _KERNELS)
    return out.view(np.complex64)


def fractional_delay(x: np.ndarray, delay_samples: float | np.ndarray) -> np.ndarray:
    """Delay signals of finite length by any real number of samples.

    Band-limited interpolation whose error stays below -67 dB up to 0.4 of the sample rate. Samples shifted
    out are lost, zeros come in.

    Args:
        x: (..., n) complex64.
        delay_samples: one delay, or one per signal of shape (...).

    Returns:
        (..., n) complex64.
    """
    x = np.asarray(x, dtype=np.complex64)
    flat = x.reshape(-1, x.shape[-1])
    rows, n = flat.shape
    delays = np.broadcast_to(np.asarray(delay_samples, dtype=np.float64), x.shape[:-1]).reshape(-1).copy()
    padded = np.pad(flat, ((0, 0), (KERNEL_TAPS, KERNEL_TAPS)))
    offsets = np.arange(rows, dtype=np.int64) * (n + 2 * KERNEL_TAPS) + KERNEL_TAPS
    zeros = np.zeros(rows, dtype=np.int64)
    lengths = np.full(rows, n, dtype=np.int64)
    return delay_rows(0, n, padded.ravel(), offsets, zeros, lengths, delays).reshape(x.shape)

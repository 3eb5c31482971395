"""Differences between the chains of one radio: the signal that shows them, their estimates, and their correction.

A receive chain turns its antenna signal x into

    y[n] = v[n] + k conj(v[n]) + d,    v = c (delay by t) x e^(j w n),

with complex gain c, delay t, image k of its IQ imbalance and DC d; w is a carrier offset that all chains share. A
transmitter may have an image and a leaking oscillator of its own: they turn with e^(j w n) like the signal, the
receiver's do not, so that both can be told apart as soon as w turns a few times while the radio listens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numba import njit
from scipy.signal import fftconvolve
from scipy.special import i0

_KERNEL_REACH = 12
_KERNEL_BETA = 7.4
# Least turns of the carrier offset while listening, from which on the images of both sides are told apart.
_TURNS_TO_SPLIT = 1.5
_LEAST_PERIODICITY = 0.3
# Chains may differ by so many samples in delay, and a peak be so wide.
_PEAK_REACH = 20


@dataclass(frozen=True)
class Sounding:
    """A periodic multisine of constant spectrum that sounds every path at once, sent in one slot per transmit chain.

    Of each pair of frequencies +f and -f one is sent and the other left free, where images then show.

    Attributes:
        period_samples: even.
        periods: in one slot; the first and the last are not evaluated.
        occupied: share of the sample rate that holds power.
        guard_samples: silence behind every slot, and more than the paths and chains differ in delay.
        n_slots: transmit chains, one slot each.
    """

    period_samples: int = 1024
    periods: int = 66
    occupied: float = 0.8
    guard_samples: int = 2048
    n_slots: int = 1

    def __post_init__(self) -> None:
        if self.period_samples < 16 or self.period_samples % 2:
            raise ValueError(f"period_samples={self.period_samples} must be even and at least 16")
        if self.periods < 4 or self.n_slots < 1 or self.guard_samples < 0:
            raise ValueError(
                f"periods={self.periods} must be at least 4, n_slots={self.n_slots} at least 1, "
                f"guard_samples={self.guard_samples} at least 0"
            )
        if not 0.1 <= self.occupied <= 0.95:
            raise ValueError(f"occupied={self.occupied:g} must lie between 0.1 and 0.95")

    @property
    def burst_samples(self) -> int:
        """Length of what is sent in a slot."""
        return self.period_samples * self.periods

    @property
    def slot_samples(self) -> int:
        """Length of a slot with its guard."""
        return self.burst_samples + self.guard_samples

    @property
    def bins(self) -> np.ndarray:
        """Frequencies that are sent, in cycles per period; int64, ascending, never 0."""
        half = np.arange(1, int(self.occupied * self.period_samples / 2) + 1)
        signs = np.where(np.random.default_rng(self.period_samples).random(half.size) < 0.5, -1, 1)
        return np.sort(signs * half)

    def period(self) -> np.ndarray:
        """One period, of mean power 1; complex128, (period_samples,).

        Phases after Schroeder (1970) keep the peaks low.
        """
        order = np.arange(self.bins.size)
        spectrum = np.zeros(self.period_samples, complex)
        spectrum[self.bins] = np.exp(-1j * np.pi * order**2 / order.size)
        return np.fft.ifft(spectrum) * self.period_samples / math.sqrt(order.size)

    def waveforms(self) -> np.ndarray:
        """What every transmit chain sends: complex64, (n_slots, n_slots * slot_samples), of mean power 1 while on."""
        burst = np.tile(self.period(), self.periods).astype(np.complex64)
        out = np.zeros((self.n_slots, self.n_slots * self.slot_samples), np.complex64)
        for slot in range(self.n_slots):
            out[slot, slot * self.slot_samples : slot * self.slot_samples + burst.size] = burst
        return out


@dataclass(frozen=True)
class Heard:
    """What the receive chains heard of one slot.

    Attributes:
        spectra: complex128, (receive chain, period, bin): the sounding behind the path, images and DC removed.
        gains: complex128, (receive chain, bin): transfer function of the path, in the middle of the slot.
        start_samples: float, where the first sample of the slot arrived at receive chain 0.
        cfo_cycles: carrier offset of the transmitter, in cycles per sample.
        image: complex128, (receive chain,): k of the receiver's IQ imbalance.
        dc: complex128, (receive chain,).
        tx_image: complex, the transmitter's; None where it cannot be told from the receiver's.
        tx_dc: complex, leaking oscillator over the signal's amplitude; None likewise.
        noise_power: float64, (receive chain,), per sample.
        snr_db: float64, (receive chain,), per sample over the whole band.
    """

    spectra: np.ndarray
    gains: np.ndarray
    start_samples: float
    cfo_cycles: float
    image: np.ndarray
    dc: np.ndarray
    tx_image: complex | None
    tx_dc: complex | None
    noise_power: np.ndarray
    snr_db: np.ndarray


@dataclass(frozen=True)
class ChainError:
    """What one receive chain does to its signal, against a chain without errors.

    Attributes:
        delay_samples: later is positive.
        gain: complex amplitude.
        image: k of its IQ imbalance.
        dc: offset, full scale 1.
    """

    delay_samples: float = 0.0
    gain: complex = 1.0
    image: complex = 0.0
    dc: complex = 0.0

    def __post_init__(self) -> None:
        values = np.array([self.delay_samples, self.gain, self.image, self.dc])
        if not np.isfinite(values).all() or not self.gain or abs(self.image) >= 1 or abs(self.delay_samples) > 4096:
            raise ValueError(
                f"{self} cannot be corrected: all must be finite, the gain not 0, the image below 1, the delay at "
                "most 4096"
            )


def image_of_imbalance(gain_db: float, phase_deg: float) -> complex:
    """Image k of what `impairments.iq_imbalance` does: k = (1 - q) / (1 + q) with q = g exp(j phase)."""
    q = 10 ** (gain_db / 20) * np.exp(1j * math.radians(phase_deg))
    return complex((1 - q) / (1 + q))


def imbalance_of_image(image: complex) -> tuple[float, float]:
    """Gain of Q over I in dB and quadrature error in degrees; the inverse of `image_of_imbalance`."""
    q = (1 - image) / (1 + image)
    return 20 * math.log10(abs(q)), math.degrees(math.atan2(q.imag, q.real))


# Finding


def find_sounding(
    received: np.ndarray, sounding: Sounding, max_cfo_cycles: float = 0.0, first: bool = False
) -> tuple[int, float]:
    """Find a sounding in what the receive chains heard together.

    Args:
        received: complex64, (receive chain, n).
        sounding: what was sent.
        max_cfo_cycles: largest carrier offset to expect, in cycles per sample.
        first: the first of several soundings, a slot apart at least, instead of the strongest; one that was on before
            the beginning, or begins within half a slot of it, is left out.

    Returns:
        Index at which its first slot begins, to the nearest sample, and the carrier offset in cycles per sample.

    Raises:
        ValueError: there is none.
    """
    n, period = received.shape[1], sounding.period_samples
    width = period * (sounding.periods - 2)
    if n < width + period:
        raise ValueError(f"{n} samples are too few for a sounding of {sounding.burst_samples}")
    # DC would pass for a period of any length.
    x = received - received.mean(axis=1, keepdims=True)
    products = np.sum(np.conj(x[:, :-period]) * x[:, period:], axis=0, dtype=complex)
    powers = np.sum(np.abs(x) ** 2, axis=0, dtype=float)
    moved, energy = _running_sum(products, width), _running_sum(powers[: n - period], width)
    likeness = np.abs(moved) / np.maximum(energy, np.finfo(float).tiny)
    # Where silence without noise is periodic, too, the energy decides.
    at = int(np.argmax(np.abs(moved)))
    if likeness[at] < _LEAST_PERIODICITY:
        raise ValueError(
            f"no sounding is heard: nothing repeats after {period} samples (likeness {likeness[at]:.2f}, at least "
            f"{_LEAST_PERIODICITY} is needed)"
        )
    fine = float(np.angle(moved[at])) / (2 * math.pi * period)
    piece = x[:, at : at + width] * np.exp(-2j * np.pi * fine * np.arange(width))
    spectra = np.fft.fft(piece.reshape(len(x), -1, period).sum(axis=1))
    reach = math.ceil(max_cfo_cycles * period + 0.5)
    shifts = range(-reach, reach + 1)
    sent = np.fft.fft(sounding.period())
    # The right shift by whole bins is the one at which the sounding folds into a peak.
    peaks = [
        np.sum(np.abs(np.fft.ifft(np.roll(spectra, -shift, axis=1) * np.conj(sent))) ** 2, axis=0).max()
        for shift in shifts
    ]
    cfo = fine + shifts[int(np.argmax(peaks))] / period
    # Coherent within a period, and not beyond: phase noise may have turned the carrier by then.
    one = np.zeros(n - period + 1)
    for row in x * np.exp(-2j * np.pi * cfo * np.arange(n)):
        one += np.abs(fftconvolve(row, np.conj(sounding.period()[::-1]), mode="valid")) ** 2
    matched = np.sum(
        [one[k * period : one.size - (sounding.periods - 1 - k) * period] for k in range(sounding.periods)], 0
    )
    slots = sounding.slot_samples * np.arange(sounding.n_slots)
    if matched.size <= slots[-1]:
        raise ValueError(f"{n} samples are too few for a sounding of {sounding.n_slots} slots")
    together = np.sum([matched[slot : matched.size - slots[-1] + slot] for slot in slots], axis=0)
    # Between two samples, and between chains that differ in delay, a peak loses height but no area.
    area, near = _boxcar(together), int(np.argmax(_boxcar(together)))
    begin, span = 0, sounding.n_slots * sounding.slot_samples
    while first and (loud := np.flatnonzero(area[begin:] > 0.5 * area.max())).size:
        early = begin + int(loud[0])
        near = early + int(np.argmax(area[early : early + span]))
        # Silence lies before the first slot, and neither before the others nor in the middle of a burst.
        before, half = near - sounding.slot_samples // 2, sounding.slot_samples // 2 - period
        if before >= 0 and one[before : before + half].mean() < 0.1 * one[near : near + half].mean():
            break
        begin = near + sounding.slot_samples // 2
    low = max(near - _PEAK_REACH, 0)
    start = low + int(np.argmax(together[low : near + _PEAK_REACH + 1]))
    return start, cfo


def _boxcar(x: np.ndarray) -> np.ndarray:
    return np.convolve(x, np.ones(2 * _PEAK_REACH + 1), mode="same")


def _running_sum(x: np.ndarray, width: int) -> np.ndarray:
    total = np.concatenate(([0], np.cumsum(x)))
    return total[width:] - total[:-width]


# Estimates


def listen(received: np.ndarray, sounding: Sounding, start: int, cfo_cycles: float, slot: int = 0) -> Heard:
    """Take one slot apart: signal behind the path, images, DC, noise.

    All parts are fitted together by least squares; the images take three rounds, for they are images of the fit.

    Args:
        received: complex64, (receive chain, n).
        sounding: what was sent.
        start: index at which the first slot begins.
        cfo_cycles: carrier offset, in cycles per sample, to a tenth of a cycle per period.
        slot: which one.

    Returns:
        What was heard.

    Raises:
        ValueError: the slot is not in these samples as a whole.
    """
    period, bins = sounding.period_samples, sounding.bins
    begin = start + slot * sounding.slot_samples + period
    width = period * (sounding.periods - 2)
    if begin < 0 or begin + width > received.shape[1]:
        raise ValueError(f"slot {slot} at {begin} is not within the {received.shape[1]} samples")
    y = received[:, begin : begin + width].astype(complex)
    n = np.arange(width)
    sent = np.fft.fft(sounding.period())[bins]

    def spectra_of(x: np.ndarray, cfo: float) -> np.ndarray:
        turned = x * np.exp(-2j * np.pi * cfo * n)
        return np.fft.fft(turned.reshape(len(x), -1, period))[:, :, bins]

    def signal_of(spectra: np.ndarray, cfo: float, at: np.ndarray) -> np.ndarray:
        whole = np.zeros((*spectra.shape[:2], period), complex)
        whole[:, :, at] = spectra
        return np.fft.ifft(whole).reshape(len(spectra), -1) * np.exp(2j * np.pi * cfo * n)

    spectra = spectra_of(y, cfo_cycles)
    cfo = cfo_cycles + _left_over_cfo(spectra, period)
    split = abs(cfo) * width >= _TURNS_TO_SPLIT
    others = np.zeros_like(y)
    ones = np.ones((1, width), complex)

    # The images are fitted with the signal that was found without them, so once more with them.
    for _ in range(3):
        spectra = spectra_of(y - others, cfo)
        wander, drift = _motion(spectra, bins, period)
        moves = wander[:, None] * np.exp(-1j * np.outer(drift, bins))

        def steady(x: np.ndarray, moves: np.ndarray = moves) -> np.ndarray:
            """The part of some rows that a path at rest can explain."""
            gains = np.mean(spectra_of(x, cfo) * np.conj(moves), axis=1, keepdims=True)
            return signal_of(gains * moves, cfo, bins)

        signal = steady(y - others)
        freed = y - steady(y)
        gains = np.mean(spectra * np.conj(moves), axis=1)
        mirrored = _at_mirrored_bins(gains / sent, bins, period) * np.conj(sent)
        tx_moves = wander[:, None] * np.exp(1j * np.outer(drift, bins))
        tx_images = signal_of(mirrored[:, None, :] * tx_moves, cfo, -bins)
        carrier = np.repeat(wander, period) * np.exp(2j * np.pi * cfo * n)
        parts = []
        for k in range(len(y)):
            columns = np.concatenate((ones, np.conj(signal[k : k + 1]), carrier[None], tx_images[k : k + 1]))
            columns = columns if split else columns[:2]
            parts.append(np.linalg.lstsq((columns - steady(columns)).T, freed[k], rcond=None)[0])
            others[k] = parts[-1] @ columns
        fitted = np.array(parts)
    rest = y - signal - others
    # The fit takes as many values as there are bins, and a handful more.
    noise = np.mean(np.abs(rest) ** 2, axis=1) / (1 - bins.size / width)
    power = np.maximum(np.mean(np.abs(signal) ** 2, axis=1) - noise * bins.size / width, np.finfo(float).tiny)
    weights = power / np.maximum(noise, np.finfo(float).tiny)
    fits = [delay_and_gain(row / sent, np.ones(bins.size), bins, period) for row in gains]
    at_carrier = np.array([gain for _, gain in fits])
    return Heard(
        spectra=spectra,
        gains=gains / sent,
        start_samples=begin - period + fits[0][0],
        cfo_cycles=cfo,
        image=fitted[:, 1],
        dc=fitted[:, 0],
        tx_image=complex(np.average(fitted[:, 3], weights=weights)) if split else None,
        tx_dc=complex(np.average(fitted[:, 2] / at_carrier, weights=weights)) if split else None,
        noise_power=noise,
        snr_db=10 * np.log10(power / np.maximum(noise, np.finfo(float).tiny)),
    )


def chain_errors(heard: Heard, sounding: Sounding, reference: int = 0) -> list[ChainError]:
    """Errors of all receive chains that heard the same signal, delay and gain against one of them.

    Delay and phase are those of greatest likelihood; products within one period only are taken, so that neither the
    offset nor the phase noise of the oscillator, which the chains share, matters.

    Args:
        heard: by chains behind a splitter with cables of equal length.
        sounding: what was sent.
        reference: chain whose delay is 0 and whose gain is 1.
    """
    bins, period = sounding.bins, sounding.period_samples
    own = heard.spectra[reference]
    errors = []
    # Noise adds to the reference's own power.
    power = np.maximum(np.mean(np.abs(own) ** 2, axis=0).mean() - heard.noise_power[reference] * period, 1e-300)
    for chain, spectra in enumerate(heard.spectra):
        cross = np.mean(spectra * np.conj(own), axis=0)
        delay, gain = delay_and_gain(cross, np.full(bins.size, power), bins, period)
        if chain == reference:
            delay, gain = 0.0, 1.0 + 0j
        errors.append(ChainError(delay, gain, complex(heard.image[chain]), complex(heard.dc[chain])))
    return errors


def path_gains(heards: Sequence[Heard], sounding: Sounding) -> np.ndarray:
    """Transfer functions from every transmit chain to every receive chain.

    Args:
        heards: of all slots in order, of one sounding.
        sounding: what was sent.

    Returns:
        complex128, (bin, receive chain, transmit chain), as they were in the middle of the first slot as far as the
        carrier offset is known.
    """
    cfo = float(np.mean([heard.cfo_cycles for heard in heards]))
    turns = [np.exp(-2j * np.pi * cfo * sounding.slot_samples * slot) for slot in range(len(heards))]
    columns = np.array([heard.gains * turn for heard, turn in zip(heards, turns, strict=True)])
    return np.moveaxis(columns, (0, 1, 2), (2, 1, 0))


def reciprocity_factors(gains: np.ndarray) -> np.ndarray:
    """Factors that turn what antennas hear into what they send, against the first antenna.

    With transmit and receive chains t_i and r_i behind antenna i and the same path both ways, gains[i, j] =
    r_i p_ij t_j, and c_i = t_i / r_i up to one common factor. Minimises sum |c_i g_ij - c_j g_ji|^2 over pairs of
    antennas, of all c of unit length (Rogalin et al., IEEE Trans. Wireless Commun. 13(4), 2014, after Shepard et
    al., Argos, MobiCom 2012). What a radio hears of itself is not looked at.

    Args:
        gains: complex, (..., antenna, antenna): receive antenna before transmit antenna; NaN where nothing was
            measured.

    Returns:
        complex128, (..., antenna), first one 1. A downlink channel is (row vector) uplink channel times factors.

    Raises:
        ValueError: fewer than two antennas, or the pairs measured both ways leave some antenna alone.
    """
    gains = np.asarray(gains, complex)
    n = gains.shape[-1]
    if gains.ndim < 2 or gains.shape[-2] != n or n < 2:
        raise ValueError(f"gains has shape {gains.shape}: two axes of equal length, 2 or more, are needed at its end")
    known = np.isfinite(gains).all(axis=tuple(range(gains.ndim - 2)))
    known &= known.T & ~np.eye(n, dtype=bool)
    reached = {0}
    for _ in range(n):
        reached |= {j for i in reached for j in np.flatnonzero(known[i]).tolist()}
    if len(reached) < n:
        alone = sorted(set(range(n)) - reached)
        raise ValueError(f"antennas {alone} are joined to antenna 0 by no pairs that were measured both ways")
    g = np.where(known, gains, 0)
    # sum over pairs of |c_i g_ij - c_j g_ji|^2 = c^H Q c, Q hermitian.
    q = -np.conj(g) * np.swapaxes(g, -1, -2)
    diagonal = np.sum(np.abs(g) ** 2, axis=-1)
    q[..., np.arange(n), np.arange(n)] = diagonal
    _, vectors = np.linalg.eigh(q)
    c = vectors[..., :, 0]
    return c / c[..., :1]


def _motion(spectra: np.ndarray, bins: np.ndarray, period: int) -> tuple[np.ndarray, np.ndarray]:
    """How the periods differ: by the phase of the oscillators, and by the drift of the sample clocks.

    Returns:
        Common phase of each period, complex of unit length, (period,); delay of each against their middle, in radians
        per bin, (period,), on a straight line.
    """
    n = spectra.shape[1]
    at = np.arange(n) - (n - 1) / 2
    halves = [np.mean(part * np.conj(_common(part))[None, :, None], axis=1) for part in np.array_split(spectra, 2, 1)]
    cross = np.sum(halves[1] * np.conj(halves[0]), axis=0)
    moved, _ = delay_and_gain(cross, np.ones(bins.size), bins, period, near=True)
    # The middles of the two halves lie half of all periods apart.
    drift = 2 * np.pi * moved / period * at / (n / 2)
    return _common(spectra * np.exp(1j * np.outer(drift, bins))), drift


def _common(spectra: np.ndarray) -> np.ndarray:
    """Phase of each period against the mean over periods, of all chains together; complex, (period,), unit."""
    turns = np.sum(spectra * np.conj(np.mean(spectra, axis=1, keepdims=True)), axis=(0, 2))
    return turns / np.maximum(np.abs(turns), np.finfo(float).tiny)


def _left_over_cfo(spectra: np.ndarray, period: int) -> float:
    """Carrier offset left in spectra of successive periods, in cycles per sample: a line through their phases."""
    steps = np.sum(np.conj(spectra[:, :-1]) * spectra[:, 1:], axis=(0, 2))
    step = float(np.angle(steps.sum()))
    n = spectra.shape[1]
    flat = spectra * np.exp(-1j * step * np.arange(n))[None, :, None]
    slope = float(np.polyfit(np.arange(n), np.unwrap(np.angle(_common(flat))), 1)[0])
    return (step + slope) / (2 * math.pi * period)


def _at_mirrored_bins(gains: np.ndarray, bins: np.ndarray, period: int) -> np.ndarray:
    """Transfer functions, complex (chain, bin), at the mirrored bins, where nothing was sent."""
    out = np.empty_like(gains)
    for row, values in zip(out, gains, strict=True):
        # Between its own bins the path is smooth once its delay is taken out.
        delay, _ = delay_and_gain(values, np.ones(bins.size), bins, period)
        flat = values * np.exp(2j * np.pi * bins * delay / period)
        row[:] = np.interp(-bins, bins, flat.real) + 1j * np.interp(-bins, bins, flat.imag)
        row *= np.exp(2j * np.pi * bins * delay / period)
    return out


def delay_and_gain(
    cross: np.ndarray, power: np.ndarray, bins: np.ndarray, period: int, near: bool = False
) -> tuple[float, complex]:
    """Fit cross = gain * power * exp(-j 2 pi bins delay / period): the peak of the likelihood, then Newton's steps.

    `near` looks for delays of less than half a sample only.
    """
    delay = 0.0
    if not near:
        spectrum = np.zeros(8 * period, complex)
        spectrum[bins] = cross
        delay = float(np.argmax(np.abs(np.fft.ifft(spectrum)))) / 8
        delay = delay - period if delay > period / 2 else delay
    f = 2 * np.pi * bins / period
    for _ in range(4):
        turned = cross * np.exp(1j * f * delay)
        total = turned.sum()
        first = np.sum(1j * f * turned)
        second = -np.sum(f**2 * turned)
        slope = np.real(np.conj(total) * first)
        bend = np.abs(first) ** 2 + np.real(np.conj(total) * second)
        delay -= float(slope / bend) if bend < 0 else 0.0
    total = np.sum(cross * np.exp(1j * f * delay))
    return delay, complex(total / power.sum())


# Correction


@dataclass
class Corrector:
    """Takes errors of receive chains back out of their streams.

    Delays are taken to lie before the mixer, in cables. A shift behind it turns a signal of some carrier offset too, by
    2 pi times offset times delay: 0.06 degrees for 1 ppm of 3.5 GHz and 0.1 samples at 2 MS/s.

    A sample depends on the samples before it alone, bit for bit, however the stream is cut.

    Args:
        errors: of all chains.
        max_delay_samples: chains that differ by more are refused.

    Attributes:
        delay_samples: by which all streams come out later, after their own delays were made equal to that of error 0.
    """

    errors: Sequence[ChainError]
    max_delay_samples: float = 4096
    delay_samples: int = field(init=False)

    def __post_init__(self) -> None:
        delays = [error.delay_samples for error in self.errors]
        if not delays or max(map(abs, delays)) > self.max_delay_samples:
            raise ValueError(f"delays {delays}: one to {self.max_delay_samples} samples each can be corrected")
        latest = math.ceil(max(delays))
        fractional = any(delay != round(delay) for delay in delays)
        self.delay_samples = max(0, latest) + (_KERNEL_REACH if fractional else 0)
        self._taps = [_delay_taps(self.delay_samples - delay) for delay in delays]
        self._past = [np.zeros(taps.size - 1, np.complex64) for taps in self._taps]

    def process(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Correct the next samples.

        Args:
            rows: (n,) complex64 of every chain.

        Returns:
            complex64, (chain, n), `delay_samples` later.
        """
        out = np.zeros((len(self.errors), len(rows[0])), np.complex64)
        for k, (row, error, taps) in enumerate(zip(rows, self.errors, self._taps, strict=True)):
            x = np.concatenate((self._past[k], np.asarray(row, np.complex64)))
            new = x[taps.size - 1 :]
            _straighten(new, np.complex64(error.dc), np.complex64(error.image), np.float32(1 - abs(error.image) ** 2))
            _filter(x, taps, np.complex64(1 / error.gain), out[k])
            self._past[k] = x[new.size :].copy()
        return out


def correct(x: np.ndarray, errors: Sequence[ChainError]) -> np.ndarray:
    """Take errors of receive chains out of signals of finite length.

    Args:
        x: complex64, (chain, n).
        errors: of all chains.

    Returns:
        complex64, (chain, n), in place: what would come before the beginning or behind the end counts as silence.
    """
    corrector = Corrector(errors)
    late = np.pad(np.asarray(x, np.complex64), ((0, 0), (0, corrector.delay_samples)))
    # Behind the end there is silence and no DC.
    late[:, x.shape[1] :] = np.array([error.dc for error in errors])[:, None]
    return corrector.process(list(late))[:, corrector.delay_samples :]


def _delay_taps(delay_samples: float) -> np.ndarray:
    """Windowed sinc of a delay of at least 0 samples, float32; its first tap is of the present sample."""
    if delay_samples == round(delay_samples):
        taps = np.zeros(round(delay_samples) + 1)
        taps[-1] = 1
        return taps.astype(np.float32)
    lag = np.arange(math.floor(delay_samples) + _KERNEL_REACH + 1) - delay_samples
    window = i0(_KERNEL_BETA * np.sqrt(np.clip(1 - (lag / _KERNEL_REACH) ** 2, 0, None))) / i0(_KERNEL_BETA)
    taps = np.where(np.abs(lag) < _KERNEL_REACH, np.sinc(lag) * window, 0)
    return (taps / taps.sum()).astype(np.float32)


@njit(cache=True, nogil=True)
def _straighten(x, dc, image, scale):
    """Take DC and image out in place. No fast mathematics: the same bits in every piece of a stream."""
    for i in range(x.size):
        v = x[i] - dc
        x[i] = (v - image * np.conj(v)) / scale


@njit(cache=True, nogil=True)
def _filter(x, taps, gain, out):
    """Real taps, then a complex gain; x begins taps.size - 1 samples before out."""
    for p0 in range(0, out.size, 2048):
        y = out[p0 : min(p0 + 2048, out.size)]
        for k in range(taps.size):
            h = taps[k]
            if h == 0:
                continue
            lag = p0 + taps.size - 1 - k
            s = x[lag : lag + y.size]
            for i in range(y.size):
                y[i] += h * s[i]
        for i in range(y.size):
            y[i] *= gain

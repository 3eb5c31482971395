"""Estimating multi-antenna channels from samples whose transmitted waveforms are known.

All waveforms of a frame are on the air at once, so they are solved for together: received = sum over sources of
waveform * taps + noise. The taps are limited in delay and Gaussian a priori, with one covariance for all sources that
expectation maximisation learns from the recording; the estimate is the posterior mean, its error the posterior
variance. Only what lies in the band of the waveforms can be told, and only that is returned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg

# Directions of the prior that would be received with less than this share of the noise's energy are left out.
_LEAST_ENERGY = 0.1
_CFO_ROUNDS = 2
_COMMON_FRAMES = 4


@dataclass(frozen=True)
class Observation:
    """A stretch of samples with the waveforms known to be in it.

    Attributes:
        received: complex, (antennas, n), the carrier offset removed.
        waves: complex, (sources, w): what each source sent, zero where it was silent.
        lead: samples of `received` before the first of `waves`; -lead is below the least delay.
        noise_power: float64, (antennas,), per complex sample.
        sources: int, (sources,): who sent.
    """

    received: np.ndarray
    waves: np.ndarray
    lead: int
    noise_power: np.ndarray
    sources: np.ndarray


@dataclass(frozen=True)
class Prior:
    """What is known of taps beforehand, on antennas that are scaled to a noise power of 1.

    Attributes:
        first_delay_samples: delay of the first tap.
        covariance: complex128, (delays, delays), of trace 1.
        powers: mean power of the taps of each source, by its number.
        default_power: of sources that are not in `powers`.
    """

    first_delay_samples: int
    covariance: np.ndarray
    powers: dict[int, float]
    default_power: float

    def root(self, least: float) -> np.ndarray:
        """Directions of more than `least` power, scaled by their amplitudes; complex128, (delays, directions)."""
        values, vectors = np.linalg.eigh(self.covariance)
        kept = values > min(max(least, 1e-9), 0.9 * values[-1])
        return vectors[:, kept] * np.sqrt(values[kept])

    def power_of(self, sources: np.ndarray) -> np.ndarray:
        """Mean power of each source's taps; float64, (sources,)."""
        return np.array([self.powers.get(int(source), self.default_power) for source in sources])


@dataclass(frozen=True)
class TapEstimate:
    """Estimated channels of one observation.

    Attributes:
        taps: complex128, (sources, antennas, delays), in the units of `received` per unit of `waves`.
        error: float64, (sources,): expected square error over the mean power of that source's taps.
        cfo_hz: float64, (sources,): carrier offset of each source beside what was removed before.
        residual: float64, (antennas,): power of what the estimate leaves unexplained over the noise power, per degree
            of freedom that is left; 1 where there is nothing but noise.
        condition: ratio of the largest to the least singular value of the regularised problem.
        second_moments: complex128, (sources, delays, delays): of the taps given the samples, mean over antennas scaled
            to a noise power of 1.
    """

    taps: np.ndarray
    error: np.ndarray
    cfo_hz: np.ndarray
    residual: np.ndarray
    condition: float
    second_moments: np.ndarray


def start_prior(
    first_delay_samples: int, n_delays: int, occupied: float, decay_samples: float = 2.5, power: float = 1.0
) -> Prior:
    """A prior to learn from: power that falls with delay from 0 on, within the band of the waveforms.

    Learning finds a channel that is longer soon, one that is shorter only slowly; so this begins short, with a floor.

    Args:
        first_delay_samples: of the first tap.
        n_delays: taps, one per sample.
        occupied: width of the band in which the waveforms have power, over the sample rate.
        decay_samples: delay after which the power has fallen by e.
        power: mean power of the taps over that of the noise.
    """
    delays = np.arange(n_delays) + first_delay_samples
    envelope = np.exp(-np.where(delays < 0, -delays / 1.5, delays / decay_samples)) + 3e-3
    amplitudes = np.sqrt(envelope / envelope.sum())
    covariance = scipy.linalg.toeplitz(np.sinc(occupied * np.arange(n_delays))).astype(complex)
    covariance *= amplitudes[:, None] * amplitudes
    return Prior(first_delay_samples, covariance / np.trace(covariance).real, {}, power)


def estimate_taps(observation: Observation, prior: Prior, rate_hz: float = 1.0, cfo_std_hz: float = 0.0) -> TapEstimate:
    """Estimate the taps of all sources in one observation, and their carrier offsets.

    Args:
        observation: samples and waveforms.
        prior: see `learn_prior` and `start_prior`.
        rate_hz: sample rate.
        cfo_std_hz: standard deviation to expect of the sources' own carrier offsets; 0: they have none.

    Returns:
        Posterior means, and how far they can be trusted.

    Source: linear minimum mean square error estimation, Kay, Estimation Theory (1993), section 15.8; offsets by
        Gauss-Newton steps with a Gaussian prior.
    """
    noise = np.maximum(np.asarray(observation.noise_power, float), np.finfo(np.float32).tiny)
    received = (observation.received / np.sqrt(noise)[:, None]).astype(np.complex64)
    waves = np.asarray(observation.waves, complex)
    n_sources, n_antennas = len(waves), len(received)
    amplitudes = np.sqrt(prior.power_of(observation.sources))
    energy = float(np.max(amplitudes**2 * np.sum(np.abs(waves) ** 2, axis=1), initial=0.0))
    root, delays = prior.root(_LEAST_ENERGY / max(energy, 1e-9)), len(prior.covariance)
    times_s = (np.arange(waves.shape[1]) - (waves.shape[1] - 1) / 2) / rate_hz
    offsets_hz = np.zeros(n_sources)
    n_weights = n_sources * root.shape[1]
    rounds = _CFO_ROUNDS if cfo_std_hz > 0 and n_sources else 0
    for step in range(rounds + 1):
        turned = (waves * np.exp(2j * np.pi * offsets_hz[:, None] * times_s)).astype(np.complex64)
        delayed = _delayed(turned, observation.lead + prior.first_delay_samples, delays, received.shape[1])
        # The tall products in single precision, their rounding is far below any noise; and of whole arrays, since
        # products of views that overlap are slow.
        tall = np.ascontiguousarray(delayed.transpose(2, 0, 1)).reshape(-1, delays)
        columns = (tall @ root.astype(np.complex64)).reshape(received.shape[1], n_sources, root.shape[1])
        columns *= amplitudes[:, None].astype(np.float32)
        matrix = columns.reshape(received.shape[1], n_weights)
        gram = (matrix.conj().T @ matrix).astype(complex) + np.eye(n_weights)
        right = (matrix.conj().T @ received.T).astype(complex)
        factor = scipy.linalg.cho_factor(gram, lower=True, check_finite=False) if n_weights else None
        weights = right if factor is None else scipy.linalg.cho_solve(factor, right, check_finite=False)
        left = received - (matrix @ weights.astype(np.complex64)).T
        if step < rounds:
            shares = weights.reshape(n_sources, root.shape[1], n_antennas).astype(np.complex64)
            parts = np.ascontiguousarray(columns.transpose(1, 0, 2)) @ shares  # (sources, n, antennas)
            at_s = (np.arange(received.shape[1]) - observation.lead) / rate_hz + times_s[0]
            slopes = (2j * np.pi * at_s[:, None] * parts).reshape(n_sources, -1)
            # Linearised about the offsets so far; the prior pulls the whole offset towards zero.
            normal = (slopes.conj() @ slopes.T).real + np.eye(n_sources) / (2 * cfo_std_hz**2)
            pull = (slopes.conj() @ left.T.reshape(-1)).real - offsets_hz / (2 * cfo_std_hz**2)
            offsets_hz = offsets_hz + np.linalg.solve(normal, pull)
    values = np.linalg.eigvalsh(gram) if n_weights else np.ones(1)
    covariance = gram if factor is None else scipy.linalg.cho_solve(factor, np.eye(n_weights), check_finite=False)
    by_source = weights.reshape(n_sources, root.shape[1], n_antennas)
    scaled = (root @ by_source) * amplitudes[:, None, None]  # (sources, delays, antennas)
    blocks = covariance.reshape(n_sources, root.shape[1], n_sources, root.shape[1])
    own = blocks[np.arange(n_sources), :, np.arange(n_sources), :]
    spread = (root @ own @ root.conj().T) * (amplitudes**2)[:, None, None]
    free = received.shape[1] - n_weights + float(np.trace(covariance).real)
    return TapEstimate(
        taps=np.swapaxes(scaled, 1, 2) * np.sqrt(noise)[None, :, None],
        error=np.trace(spread, axis1=1, axis2=2).real / np.maximum(amplitudes**2, 1e-300),
        cfo_hz=offsets_hz,
        residual=np.sum(np.abs(left) ** 2, axis=1) / free,
        condition=float(np.sqrt(values[-1] / values[0])),
        second_moments=scaled @ np.swapaxes(scaled, 1, 2).conj() / n_antennas + spread,
    )


def learn_prior(
    observations: Sequence[Observation],
    start: Prior,
    n_rounds: int = 6,
    rate_hz: float = 1.0,
    cfo_std_hz: float = 0.0,
    on_share: Callable[[float], None] | None = None,
) -> Prior:
    """Learn power-delay profile and powers of the sources from a recording itself, by expectation maximisation.

    Args:
        observations: of one recording.
        start: see `start_prior`.
        n_rounds: of expectation and maximisation.
        rate_hz: sample rate.
        cfo_std_hz: see `estimate_taps`.
        on_share: told the share done.

    Returns:
        The prior under which the observations are likely.
    """
    prior = start
    for done in range(n_rounds):
        moments: dict[int, list[np.ndarray]] = {}
        for k, observation in enumerate(observations):
            found = estimate_taps(observation, prior, rate_hz, cfo_std_hz)
            for source, moment in zip(observation.sources, found.second_moments, strict=True):
                moments.setdefault(int(source), []).append(moment)
            if on_share is not None:
                on_share((done + (k + 1) / len(observations)) / n_rounds)
        if not moments:
            return prior
        power = {source: [float(np.trace(m).real) for m in group] for source, group in moments.items()}
        mean = max(float(np.mean([np.mean(group) for group in power.values()])), 1e-12)
        # Few frames say little of a source's mean power: as if it had been seen at the common one as often again.
        powers = {
            source: (sum(group) + _COMMON_FRAMES * mean) / (len(group) + _COMMON_FRAMES)
            for source, group in power.items()
        }
        total = sum(sum(group) / powers[source] for source, group in moments.items())
        covariance = total / np.trace(total).real
        prior = replace(prior, covariance=covariance, powers=powers, default_power=mean)
    return prior


def _delayed(waves: np.ndarray, first: int, n_delays: int, n: int) -> np.ndarray:
    """Waves delayed by first, first + 1, ... samples; complex (sources, w) -> (sources, n_delays, n)."""
    if first < 0:
        raise ValueError(f"the window begins {-first} samples after the earliest delayed waveform; give more lead")
    tail = max(n - waves.shape[1] - first, 0)
    padded = np.pad(waves, ((0, 0), (first + n_delays - 1, tail)))
    # Windows further right hold the wave earlier.
    view = np.lib.stride_tricks.sliding_window_view(padded, n, axis=1)[:, :n_delays]
    return view[:, ::-1]

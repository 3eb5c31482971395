"""Channel estimation against brute force, against statistics, and against the emulated air's truth."""

from __future__ import annotations

import numpy as np
import pytest
from semair.blocks.waveforms.access import access_burst
from semair.blocks.waveforms.air import Air
from semair.blocks.waveforms.channel_estimation import (
    Observation,
    Prior,
    estimate_taps,
    learn_prior,
    start_prior,
)
from semair.blocks.waveforms.frame import FrameFormat
from semair.blocks.waveforms.impairments import Impairments
from semair.models.channels import ChannelConfig

FIRST, DELAYS = -3, 8


def _normal(rng, *shape):
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2)


def _observation(rng, taps, waves, noise_power, lead=4, tail=6, sources=None):
    """Received samples by plain convolution; taps (sources, antennas, delays)."""
    n = lead + waves.shape[1] + tail
    received = np.sqrt(noise_power)[:, None] * _normal(rng, taps.shape[1], n)
    for wave, rows in zip(waves, taps, strict=True):
        for antenna, row in enumerate(rows):
            whole = np.convolve(wave, row)
            begin = lead + FIRST
            kept = whole[: n - begin]
            received[antenna, begin : begin + len(kept)] += kept
    return Observation(received, waves, lead, noise_power, np.arange(len(waves)) if sources is None else sources)


def _white_prior(power):
    return Prior(FIRST, np.eye(DELAYS) / DELAYS, {}, power)


def test_estimate_is_the_regularised_least_squares_solution(rng):
    waves = _normal(rng, 2, 40)
    noise_power = np.array([0.1, 0.4, 0.2])
    observed = _observation(rng, _normal(rng, 2, 3, DELAYS), waves, noise_power)
    found = estimate_taps(observed, _white_prior(DELAYS / 0.5))

    n = observed.received.shape[1]
    matrix = np.zeros((n, 2 * DELAYS), complex)
    for source in range(2):
        for delay in range(DELAYS):
            at = observed.lead + FIRST + delay
            part = waves[source][: n - at]
            matrix[at : at + len(part), source * DELAYS + delay] = part
    for antenna in range(3):
        # The prior knows antennas scaled to a noise power of 1: a tap has power 1/0.5 there.
        inverse = matrix.conj().T @ matrix / noise_power[antenna] + 0.5 / noise_power[antenna] * np.eye(2 * DELAYS)
        right = matrix.conj().T @ observed.received[antenna] / noise_power[antenna]
        expected = np.linalg.solve(
            matrix.conj().T @ matrix + 0.5 * np.eye(2 * DELAYS), matrix.conj().T @ observed.received[antenna]
        )
        np.testing.assert_allclose(np.linalg.solve(inverse, right), expected, rtol=1e-9)
        np.testing.assert_allclose(found.taps[:, antenna].reshape(-1), expected, rtol=2e-4, atol=2e-5)


def test_said_error_is_the_mean_error_and_the_residual_is_noise(rng):
    said, true, residual = [], [], []
    noise_power = np.array([0.5, 0.5])
    for _ in range(60):
        taps = _normal(rng, 3, 2, DELAYS) / np.sqrt(DELAYS)
        observed = _observation(rng, taps, _normal(rng, 3, 48), noise_power)
        found = estimate_taps(observed, _white_prior(1 / 0.5))
        said.append(found.error)
        true.append(np.sum(np.abs(found.taps - taps) ** 2, axis=2).mean(axis=1))
        residual.append(found.residual)
    # 360 sums of 8 squares each, correlated within an observation: a standard error of about 3 %; four of them.
    assert np.mean(true) == pytest.approx(np.mean(said), rel=0.12)
    # 120 residuals of some 40 degrees of freedom: 1.5 %.
    assert np.mean(residual) == pytest.approx(1.0, abs=0.06)


def test_offsets_of_the_sources_are_found(rng):
    rate_hz, offsets_hz = 1e6, np.array([120.0, -80.0])
    waves = _normal(rng, 2, 1000)
    times = (np.arange(1000) - 499.5) / rate_hz
    taps = _normal(rng, 2, 4, DELAYS)
    noise_power = np.full(4, 0.1)
    turned = waves * np.exp(2j * np.pi * offsets_hz[:, None] * times)
    observed = _observation(rng, taps, turned, noise_power)
    observed = Observation(observed.received, waves, observed.lead, noise_power, observed.sources)
    prior = _white_prior(DELAYS / 0.1)
    found = estimate_taps(observed, prior, rate_hz, 100.0)
    # Cramer-Rao: 4 antennas x 1000 samples at about 19 dB over 1 ms give 1.1 Hz; four of them.
    np.testing.assert_allclose(found.cfo_hz, offsets_hz, atol=5)
    still = estimate_taps(observed, prior, rate_hz)
    assert np.sum(np.abs(found.taps - taps) ** 2) < 0.1 * np.sum(np.abs(still.taps - taps) ** 2)


def test_nobody_active_leaves_noise(rng):
    observed = _observation(rng, np.zeros((0, 2, DELAYS)), np.zeros((0, 50)), np.array([1.0, 2.0]))
    found = estimate_taps(observed, _white_prior(1.0), 1e6, 50.0)
    assert found.taps.shape == (0, 2, DELAYS) and found.error.shape == (0,)
    np.testing.assert_allclose(found.residual, 1, atol=0.5)


def test_window_without_lead_is_refused(rng):
    observed = _observation(rng, _normal(rng, 1, 1, DELAYS), _normal(rng, 1, 20), np.ones(1))
    early = Observation(observed.received, observed.waves, 2, observed.noise_power, observed.sources)
    with pytest.raises(ValueError, match="lead"):
        estimate_taps(early, _white_prior(1.0))


def test_prior_learns_profile_and_powers(rng):
    profile = np.array([0, 0, 0, 0.5, 0.3, 0.15, 0.05, 0])
    powers = {0: 4.0, 1: 0.5}
    noise_power = np.full(3, 0.05)
    observations = []
    for _ in range(30):
        taps = _normal(rng, 2, 3, DELAYS) * np.sqrt(profile) * np.sqrt([powers[0], powers[1]])[:, None, None]
        observations.append(_observation(rng, taps, _normal(rng, 2, 60), noise_power))
    start = start_prior(FIRST, DELAYS, 1.0)
    prior = learn_prior(observations, start, 10)
    learned = np.diag(prior.covariance).real
    # 180 realisations: 7 % of each share, and what the least powers cannot shake off in ten rounds.
    np.testing.assert_allclose(learned, profile, atol=0.08)
    # 90 sums of about 3 degrees of freedom: 6 %; four frames' worth of the mean pull the two together by a tenth.
    mean = 2.25 / 0.05
    for source, power in powers.items():
        expected = (30 * power / 0.05 + 4 * mean) / 34
        assert prior.powers[source] == pytest.approx(expected, rel=0.25)
    errors = [np.mean([estimate_taps(observed, p).error.mean() for observed in observations]) for p in (start, prior)]
    assert errors[1] < errors[0]


def test_channels_of_the_emulated_air_are_found(rng):
    fmt = FrameFormat(frame_samples=4096, n_groups=16, max_preamble_length=28)
    air = Air(
        ChannelConfig(kind="rayleigh", delay_spread_s=0.4e-6),
        Impairments(user_timing_samples=1.0, chain_phase=True, chain_gain_db=1.0),
        sample_rate_hz=fmt.sample_rate_hz,
        centre_frequency_hz=3.5e9,
        n_rx=4,
        n_users=20,
        noise_power=0.05,
        seed=3,
    )
    preambles = (rng.choice([-1, 1], (28, 20)) + 1j * rng.choice([-1, 1], (28, 20))) / np.sqrt(2)
    n_frames, lead = 6, 16
    who = [rng.choice(20, 5, replace=False) for _ in range(n_frames)]
    bursts = np.array([access_burst(fmt, preambles[:, user]) for user in range(20)])
    for frame in range(n_frames):
        for user in who[frame]:
            air.add_burst(int(user), frame * fmt.frame_samples + 200, bursts[user], frame)
    y = air.process(np.zeros(4096 * (n_frames + 1), np.complex64))
    noise = air.truth.noise_power * 10 ** (air.truth.chain_gain_db / 10)
    arrival = int(air.truth.receive_index(0)) + 200
    observations = [
        Observation(
            y[:, arrival + f * 4096 - lead : arrival + f * 4096 + bursts.shape[1] + 20],
            bursts[who[f]],
            lead,
            noise,
            who[f],
        )
        for f in range(n_frames)
    ]
    prior = learn_prior(observations, start_prior(-8, 25, 0.75, power=20.0), 3)
    wrong, power, said = 0.0, 0.0, []
    # Where users send: between the outermost access groups, everywhere.
    freqs_hz = np.sort(np.fft.fftfreq(fmt.n_fft)[fmt.access_subcarriers.reshape(-1)]) * fmt.sample_rate_hz
    late_s = (np.arange(25) - 8) / fmt.sample_rate_hz
    for frame, observed in enumerate(observations):
        found = estimate_taps(observed, prior)
        said += list(found.error)
        for user, taps in zip(who[frame], found.taps, strict=True):
            timing_s = air.truth.user_timing_samples[user] / fmt.sample_rate_hz
            true = air.response(int(user), frame, freqs_hz, 0) * np.exp(-2j * np.pi * freqs_hz * timing_s)
            estimate = taps @ np.exp(-2j * np.pi * np.outer(late_s, freqs_hz))
            wrong += np.sum(np.abs(estimate - true) ** 2)
            power += np.sum(np.abs(true) ** 2)
    error_db = 10 * np.log10(wrong / power)
    # 13 dB per cell, 448 cells for some 8 degrees of freedom: about -30 dB less what the delay kernels leave.
    assert error_db < -23
    # 30 links: the said error covers the true one, and is larger only by what lies between the users' subcarriers.
    said_db = 10 * np.log10(np.mean(said))
    assert said_db - 5 < error_db < said_db + 1

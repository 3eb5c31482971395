"""Channels against the closed forms of their statistics."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import special, stats
from semair.models.channels import ChannelConfig, checked_array_shape, draw_paths, frequency_response

SPREAD_S = 0.4e-6
KINDS = {
    "none": ChannelConfig(),
    "flat": ChannelConfig(kind="rayleigh"),
    "rayleigh": ChannelConfig(kind="rayleigh", delay_spread_s=SPREAD_S, doppler_hz=30.0),
    "clustered": ChannelConfig(kind="clustered", delay_spread_s=SPREAD_S, doppler_hz=30.0),
}


def draw(config: ChannelConfig, n_antennas: int, count: int, freqs_hz, time_s: float, rng) -> np.ndarray:
    """Responses of independent realisations: (count, antennas, freqs)."""
    freqs_hz = np.asarray(freqs_hz, dtype=float)
    return np.array([frequency_response(draw_paths(config, n_antennas, rng), freqs_hz, time_s) for _ in range(count)])


@pytest.mark.parametrize("name", KINDS)
def test_mean_power_of_every_antenna_is_one(name, rng):
    h = draw(KINDS[name], 4, 3000, [-3e5, 1e5], 0.7, rng)
    # |H|^2 has variance 1 at most (exponential): the mean of 3000 is off by 5.5/sqrt(3000) = 0.1 with
    # probability 2e-8 per value.
    np.testing.assert_allclose(np.mean(np.abs(h) ** 2, axis=0), 1.0, atol=0.1)


def test_wire_is_exactly_one(rng):
    h = frequency_response(draw_paths(ChannelConfig(), 3, rng), np.linspace(-1e6, 1e6, 5), 12.0)
    np.testing.assert_array_equal(h, np.ones((3, 5)))


@pytest.mark.parametrize("name", ["flat", "rayleigh"])
def test_rayleigh_magnitude_follows_the_rayleigh_distribution(name, rng):
    h = draw(KINDS[name], 1, 4000, [2e5], 3.3, rng)[:, 0, 0]
    assert stats.kstest(np.abs(h), "rayleigh", args=(0, np.sqrt(0.5))).pvalue > 1e-5
    assert stats.kstest(np.angle(h), "uniform", args=(-np.pi, 2 * np.pi)).pvalue > 1e-5


def test_rayleigh_antennas_are_uncorrelated(rng):
    h = draw(KINDS["rayleigh"], 3, 4000, [0.0], 0.0, rng)[:, :, 0]
    correlation = h.conj().T @ h / len(h)
    # Each off-diagonal entry is complex with variance 1/4000; 6 standard deviations are 0.095.
    np.testing.assert_allclose(correlation, np.eye(3), atol=0.095)


def test_rayleigh_delay_spread_is_the_configured_one(rng):
    config = KINDS["rayleigh"]
    powers, delays = [], []
    for _ in range(2000):
        paths = draw_paths(config, 1, rng)
        powers.append(np.full(config.n_taps, 1 / config.n_taps))
        delays.append(paths.tap_delays_s)
    powers, delays = np.array(powers), np.array(delays)
    mean = np.sum(powers * delays) / np.sum(powers)
    spread = np.sqrt(np.sum(powers * (delays - mean) ** 2) / np.sum(powers))
    # 16000 exponential delays: relative standard error of the spread is sqrt(8)/2/sqrt(16000) = 1.1 %.
    assert mean == pytest.approx(SPREAD_S, rel=0.04)
    assert spread == pytest.approx(SPREAD_S, rel=0.06)
    assert delays.max() <= config.max_delay_s


def test_rayleigh_frequency_correlation_is_that_of_an_exponential_profile(rng):
    offsets_hz = np.array([0.0, 1e5, 3e5, 6e5, 1e6])
    h = draw(KINDS["rayleigh"], 8, 1500, offsets_hz, 0.0, rng)
    measured = np.mean(h * h[:, :, :1].conj(), axis=(0, 1))
    # 8 antennas x 1500 draws, the antennas sharing their delays: standard error below 1/sqrt(1500) = 0.026
    # in the worst case and about 1/sqrt(12000) = 0.009 in truth; 0.06 is over 5 of the larger halves.
    np.testing.assert_allclose(measured, 1 / (1 + 2j * np.pi * offsets_hz * SPREAD_S), atol=0.06)


def test_rayleigh_autocorrelation_is_a_bessel_function(rng):
    config = ChannelConfig(kind="rayleigh", doppler_hz=100.0)
    lags_s = np.array([0.0, 1e-3, 2e-3, 3.827e-3, 6e-3, 10e-3])
    products = []
    for _ in range(1500):
        taps = draw_paths(config, 8, rng).tap_gains(5.0 + lags_s)[:, 0]
        products.append(taps * taps[:1].conj())
    measured = np.mean(products, axis=(0, 2))
    # As above: 12000 products, 6 standard errors are 0.055.
    np.testing.assert_allclose(measured, special.j0(2 * np.pi * 100.0 * lags_s), atol=0.055)


def test_one_realisation_fades_over_time_with_the_jakes_spectrum(rng):
    config = ChannelConfig(kind="rayleigh", doppler_hz=50.0)
    taps = draw_paths(config, 64, rng).tap_gains(np.arange(4000) * 1e-3)[:, 0]
    spectrum = np.mean(np.abs(np.fft.fft(taps * np.hanning(4000)[:, None], axis=0)) ** 2, axis=1)
    freqs_hz = np.fft.fftfreq(4000, 1e-3)
    inside = np.abs(freqs_hz) <= 51
    assert spectrum[inside].sum() > 0.999 * spectrum.sum()
    # A ray at angle a has Doppler 50 cos(a): half of the power lies beyond 50/sqrt(2) Hz. Sixteen strata
    # give that share within a ray or two, and the Gaussian ray powers average over 64 antennas.
    outer = np.abs(freqs_hz) > 50 / np.sqrt(2)
    assert spectrum[outer & inside].sum() / spectrum.sum() == pytest.approx(0.5, abs=0.15)


def laplace_density(x, rms):
    return np.exp(-np.abs(x) * np.sqrt(2) / rms) / (np.sqrt(2) * rms)


def test_clustered_spatial_correlation_is_the_integral_over_angles(rng):
    config = ChannelConfig(
        kind="clustered",
        azimuth_deg=20.0,
        angle_spread_deg=12.0,
        cluster_spread_deg=5.0,
        zenith_spread_deg=4.0,
    )
    h = draw(config, 4, 6000, [0.0], 0.0, rng)[:, :, 0]
    measured = np.mean(h[:, :1].conj() * h, axis=0)
    between = np.sqrt(12.0**2 - 5.0**2)
    one = np.linspace(-120, 120, 2401)
    step = one[1] - one[0]
    azimuth = np.convolve(laplace_density(one, between), laplace_density(one, 5.0), mode="same") * step
    zenith = laplace_density(one, 4.0)
    sine, height = np.sin(np.deg2rad(20.0 + one)), np.cos(np.deg2rad(one))
    expected = []
    for spacing in range(4):
        inner = np.exp(1j * np.pi * spacing * sine[:, None] * height[None, ::10]) @ zenith[::10] * 10 * step
        expected.append(np.sum(azimuth * inner) * step)
    # Products of variance below 1 over 6000 draws: 6 standard errors are 0.078.
    np.testing.assert_allclose(measured, expected, atol=0.078)
    assert abs(expected[3]) < 0.6


def test_clustered_planar_array_is_correlated_more_vertically(rng):
    config = ChannelConfig(
        kind="clustered", azimuth_deg=0.0, angle_spread_deg=40.0, zenith_spread_deg=1.0, array_shape=(2, 3)
    )
    h = draw(config, 6, 800, [0.0], 0.0, rng)[:, :, 0]
    horizontal = abs(np.mean(h[:, 0].conj() * h[:, 2]))
    vertical = abs(np.mean(h[:, 0].conj() * h[:, 3]))
    # 1 degree of zenith spread: correlation exp(-(pi sin(1 degree))^2 / 2) = 0.998 between rows.
    assert vertical > 0.85
    assert horizontal < 0.5


def test_clustered_power_falls_with_delay_as_an_exponential_profile(rng):
    config = ChannelConfig(kind="clustered", delay_spread_s=SPREAD_S, n_clusters=64, rays_per_cluster=1)
    spreads = []
    for _ in range(400):
        paths = draw_paths(config, 1, rng)
        power = np.abs(paths.gains[:, 0]) ** 2
        assert np.all(np.diff(paths.delays_s) >= 0)
        mean = np.sum(power * paths.delays_s)
        spreads.append(np.sqrt(np.sum(power * (paths.delays_s - mean) ** 2)))
    # With many clusters the spread of a realisation tends to the configured one from below.
    assert np.mean(spreads) == pytest.approx(SPREAD_S, rel=0.15)


@pytest.mark.parametrize("name", ["rayleigh", "clustered"])
def test_gains_at_rest_equal_gains_at_time_zero(name, rng):
    paths = draw_paths(KINDS[name], 2, rng)
    np.testing.assert_allclose(paths.tap_gains(np.zeros(1))[0], paths.static_gains, atol=1e-12)


@pytest.mark.parametrize("name", KINDS)
def test_same_generator_gives_same_realisation(name):
    first = draw_paths(KINDS[name], 4, np.random.default_rng(5))
    second = draw_paths(KINDS[name], 4, np.random.default_rng(5))
    np.testing.assert_array_equal(first.gains, second.gains)
    np.testing.assert_array_equal(first.delays_s, second.delays_s)
    np.testing.assert_array_equal(first.doppler_hz, second.doppler_hz)


def test_array_that_does_not_fit_is_refused(rng):
    with pytest.raises(ValueError, match=r"2x3 has 6 elements.*4 antennas"):
        draw_paths(ChannelConfig(kind="clustered", array_shape=(2, 3)), 4, rng)
    assert checked_array_shape(None, 4) == (1, 4)
    assert checked_array_shape((2, 2), 4) == (2, 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "none", "doppler_hz": 3.0}, "kind='none'"),
        ({"kind": "clustered", "angle_spread_deg": 2.0, "cluster_spread_deg": 3.0}, "cannot exceed it"),
        ({"kind": "rayleigh", "delay_spread_s": -1e-9}, "greater than or equal to 0"),
        ({"kind": "rayleigh", "delay": 1}, "Extra inputs"),
        ({"kind": "clustered", "array_shape": (0, 4)}, "at least one row"),
    ],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        ChannelConfig(**values)

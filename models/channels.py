"""Multipath channels as sums of plane-wave rays: statistics in, delays, gains and Doppler shifts out.

A channel realisation is a list of rays. The response of antenna a at frequency f and time t is

    H_a(f, t) = sum_r gains[r, a] exp(j 2 pi (doppler_hz[r] t - f delays_s[r])),   E|H_a|^2 = 1,

with f counted from the carrier. Nothing here is tied to a sample rate: delays are real numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

# Delays beyond this many delay spreads are not drawn: exp(-10) = 5e-5 of the power lies there.
_MAX_SPREADS = 10.0
# Ratio of the spread of cluster delays to the delay spread, r_tau in 3GPP TR 38.901 table 7.5-6 (UMa NLOS).
_DELAY_PROPORTIONALITY = 2.3
# Per-cluster shadowing, zeta in the same table.
_CLUSTER_SHADOWING_DB = 3.0


class ChannelConfig(BaseModel):
    """Statistics of the channel between one transmitting antenna and the receiving array.

    "none" is a wire: one path, gain 1 on every antenna. "rayleigh" is a tapped delay line with an exponential
    power-delay profile, independent and identically distributed over antennas. "clustered" is a geometric
    channel in the manner of 3GPP TR 38.901 section 7.5: clusters of rays with their own delay, power and
    angle of arrival at a uniform array with half a wavelength between elements. "recorded" has no statistics: its
    realisations come from a recording.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["none", "rayleigh", "clustered", "recorded"] = Field(default="none", description="family of channels")
    recording: str | None = Field(default=None, description="of a recorded channel: its file")
    delay_spread_s: float = Field(default=0.0, ge=0, le=1e-3, description="rms delay spread; 0 is frequency-flat")
    n_taps: int = Field(default=8, ge=1, le=64, description="taps of a rayleigh channel that has a delay spread")
    doppler_hz: float = Field(default=0.0, ge=0, le=1e5, description="maximum Doppler shift, speed over wavelength")
    redraw: Literal["frame", "never"] = Field(
        default="frame",
        description="frame: new fading for every frame; never: one realisation that moves with Doppler",
    )
    n_clusters: int = Field(default=12, ge=1, le=64, description="clusters of a clustered channel")
    rays_per_cluster: int = Field(default=20, ge=1, le=64, description="rays of one cluster, equal in power")
    angle_spread_deg: float = Field(
        default=15.0,
        ge=0,
        le=90,
        description="rms azimuth spread of all power around the direction of the transmitter",
    )
    cluster_spread_deg: float = Field(
        default=3.0, ge=0, le=90, description="part of the azimuth spread that lies within each cluster, rms"
    )
    zenith_spread_deg: float = Field(default=3.0, ge=0, le=45, description="rms zenith spread around the horizon")
    azimuth_deg: float | None = Field(
        default=None,
        ge=-90,
        le=90,
        description="direction of the transmitter from broadside; none: drawn, see sector_deg",
    )
    sector_deg: float = Field(
        default=120.0,
        gt=0,
        le=180,
        description="directions are drawn uniformly from this sector around broadside",
    )
    array_shape: tuple[int, int] | None = Field(
        default=None, description="rows (vertical) and columns (horizontal) of the array; none: one row"
    )

    @model_validator(mode="after")
    def _consistent(self) -> ChannelConfig:
        if self.cluster_spread_deg > self.angle_spread_deg and self.kind == "clustered":
            raise ValueError(
                f"cluster_spread_deg={self.cluster_spread_deg} is part of angle_spread_deg="
                f"{self.angle_spread_deg} and cannot exceed it; lower it or raise angle_spread_deg"
            )
        if (self.kind == "recorded") != (self.recording is not None):
            raise ValueError(
                f"kind={self.kind!r} with recording={self.recording!r}: kind 'recorded' needs the path of a channel "
                "recording, and no other kind has one"
            )
        if self.array_shape is not None and min(self.array_shape) < 1:
            raise ValueError(f"array_shape={self.array_shape} needs at least one row and one column")
        if self.kind in ("none", "recorded") and (self.delay_spread_s or self.doppler_hz):
            raise ValueError(
                f"kind={self.kind!r} has neither delay_spread_s={self.delay_spread_s} nor "
                f"doppler_hz={self.doppler_hz}; set them to 0, or choose kind 'rayleigh' or 'clustered'"
            )
        return self

    @property
    def max_delay_s(self) -> float:
        """Longest delay that a realisation can have."""
        longest = {"rayleigh": 1.0, "clustered": _DELAY_PROPORTIONALITY}
        return _MAX_SPREADS * longest.get(self.kind, 0.0) * self.delay_spread_s


@dataclass(frozen=True)
class Paths:
    """One channel realisation. Rays of equal delay form a tap and are neighbours, `rays_per_tap` of them.

    Attributes:
        delays_s: (rays,) float64, ascending.
        gains: (rays, antennas) complex128 at time 0.
        doppler_hz: (rays,) float64.
        rays_per_tap: rays that share one delay.
    """

    delays_s: np.ndarray
    gains: np.ndarray
    doppler_hz: np.ndarray
    rays_per_tap: int = 1

    @property
    def static_gains(self) -> np.ndarray:
        """Sum the rays of each tap at time 0. Returns (taps, antennas) complex128."""
        if self.rays_per_tap == 1:
            return self.gains
        return self.gains.reshape(-1, self.rays_per_tap, self.gains.shape[1]).sum(axis=1)

    @property
    def tap_delays_s(self) -> np.ndarray:
        """Delay of each tap. Returns (taps,) float64."""
        return self.delays_s[:: self.rays_per_tap]

    def tap_gains(self, times_s: np.ndarray) -> np.ndarray:
        """Sum the rays of each tap at several times.

        Args:
            times_s: (times,).

        Returns:
            (times, taps, antennas) complex128.
        """
        taps = self.delays_s.size // self.rays_per_tap
        by_tap = self.gains.reshape(taps, self.rays_per_tap, -1)
        times = np.asarray(times_s, dtype=np.float64)
        turns = np.exp(2j * np.pi * self.doppler_hz.reshape(taps, 1, -1) * times[:, None])
        return np.swapaxes(turns @ by_tap, 0, 1)


def draw_paths(config: ChannelConfig, n_antennas: int, rng: np.random.Generator) -> Paths:
    """Draw one realisation of a channel.

    Args:
        config: statistics.
        n_antennas: elements of the receiving array.
        rng: source of all randomness.

    Returns:
        Rays with E|H_a|^2 = 1 for every antenna a.

    Raises:
        ValueError: `config.array_shape` does not have `n_antennas` elements, or the channel is a recorded one.
    """
    if config.kind == "recorded":
        raise ValueError("kind='recorded': its realisations are read from the recording, and never drawn")
    if n_antennas < 1:
        raise ValueError(f"n_antennas={n_antennas} must be at least 1")
    if config.kind == "none":
        return Paths(np.zeros(1), np.ones((1, n_antennas), dtype=np.complex128), np.zeros(1))
    if config.kind == "rayleigh":
        return _draw_rayleigh(config, n_antennas, rng)
    return _draw_clustered(config, n_antennas, rng)


def frequency_response(paths: Paths, freqs_hz: np.ndarray, time_s: float = 0.0) -> np.ndarray:
    """Evaluate a realisation at one time.

    Args:
        paths: realisation.
        freqs_hz: (freqs,), counted from the carrier.
        time_s: absolute time.

    Returns:
        (antennas, freqs) complex128.
    """
    taps = paths.tap_gains(np.array([time_s]))[0]
    return taps.T @ np.exp(-2j * np.pi * paths.tap_delays_s[:, None] * np.asarray(freqs_hz))


def checked_array_shape(array_shape: tuple[int, int] | None, n_antennas: int) -> tuple[int, int]:
    """Resolve the shape of an array and check that it has the receiver's antennas.

    Args:
        array_shape: rows (vertical) and columns (horizontal); None for one row.
        n_antennas: elements that are there.

    Returns:
        Rows and columns.

    Raises:
        ValueError: the shape does not have `n_antennas` elements.
    """
    rows, columns = array_shape or (1, n_antennas)
    if rows * columns != n_antennas:
        raise ValueError(
            f"array_shape={rows}x{columns} has {rows * columns} elements, but the receiver has {n_antennas} "
            "antennas; make the product equal to them"
        )
    return rows, columns


def _complex_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Circular Gaussian numbers, variance 1 per complex number."""
    return rng.standard_normal((*shape, 2)).view(np.complex128)[..., 0] * math.sqrt(0.5)


def _draw_rayleigh(config: ChannelConfig, n_antennas: int, rng: np.random.Generator) -> Paths:
    """Draw Gaussian taps of equal power at delays from equally probable slices of the exponential profile.

    Averaged over realisations the profile is the continuous exponential one, without the periodicity in
    frequency that a fixed tap spacing brings, and no tap is too weak to matter. With Doppler each tap is a
    sum of Gaussian rays whose angles of arrival at the mobile are stratified over the circle (Clarke's
    model): the taps are exactly Gaussian at every instant and their mean autocorrelation is exactly J0.
    """
    if config.delay_spread_s > 0:
        slices = (np.arange(config.n_taps) + rng.random(config.n_taps)) / config.n_taps
        delays = -config.delay_spread_s * np.log1p(slices * math.expm1(-_MAX_SPREADS))
    else:
        delays = np.zeros(1)
    # Sixteen rays keep the error of one realisation's own autocorrelation small at a bearable cost.
    rays = 16 if config.doppler_hz > 0 else 1
    gains = _complex_normal(rng, (delays.size * rays, n_antennas)) / math.sqrt(delays.size * rays)
    if rays == 1:
        return Paths(delays, gains, np.zeros(delays.size))
    angles = 2 * np.pi * (np.arange(rays) + rng.random((delays.size, rays))) / rays
    doppler = config.doppler_hz * np.cos(angles).ravel()
    return Paths(np.repeat(delays, rays), gains, doppler, rays)


def _draw_clustered(config: ChannelConfig, n_antennas: int, rng: np.random.Generator) -> Paths:
    """Draw clusters after TR 38.901 section 7.5 steps 5 to 11, with Laplacian angles instead of tabled ones.

    Cluster angles do not depend on cluster power, so that the mean spatial correlation is the characteristic
    function of the angle distribution.
    """
    array_shape = checked_array_shape(config.array_shape, n_antennas)
    clusters, rays = config.n_clusters, config.rays_per_cluster
    # Steps 5 and 6: delays by the inverse distribution function, powers that fall with delay.
    exponents = np.sort(-np.log1p(rng.random(clusters) * math.expm1(-_MAX_SPREADS)))
    shadowing_db = _CLUSTER_SHADOWING_DB * rng.standard_normal(clusters)
    powers = np.exp(-exponents * (_DELAY_PROPORTIONALITY - 1)) * 10 ** (-shadowing_db / 10)
    powers /= powers.sum()
    delays = _DELAY_PROPORTIONALITY * config.delay_spread_s * exponents
    # Step 7: angles of arrival at the array.
    towards = config.azimuth_deg
    if towards is None:
        towards = config.sector_deg * (rng.random() - 0.5)
    between_deg = math.sqrt(config.angle_spread_deg**2 - config.cluster_spread_deg**2)
    azimuth_deg = (
        towards + _laplace(rng, between_deg, (clusters, 1)) + _laplace(rng, config.cluster_spread_deg, (clusters, rays))
    )
    zenith_deg = 90 + _laplace(rng, config.zenith_spread_deg, (clusters, rays))
    azimuth, zenith = np.deg2rad(azimuth_deg).ravel(), np.deg2rad(zenith_deg).ravel()
    # Steps 10 and 11: random phase of every ray; Doppler from its angle at the mobile, which is independent.
    phases = 2 * np.pi * rng.random(clusters * rays)
    amplitudes = np.sqrt(np.repeat(powers / rays, rays)) * np.exp(1j * phases)
    steering = _steering(np.sin(azimuth) * np.sin(zenith), np.cos(zenith), array_shape)
    doppler = config.doppler_hz * np.cos(2 * np.pi * rng.random(clusters * rays))
    if not config.doppler_hz:
        # Rays at rest add up once and for all.
        gains = amplitudes.reshape(clusters, 1, rays) @ steering.reshape(clusters, rays, n_antennas)
        return Paths(delays, gains[:, 0], np.zeros(clusters))
    return Paths(np.repeat(delays, rays), amplitudes[:, None] * steering, doppler, rays)


def _steering(horizontal: np.ndarray, vertical: np.ndarray, array_shape: tuple[int, int]) -> np.ndarray:
    """Compute the responses of a uniform array with half a wavelength between elements to plane waves.

    Args:
        horizontal: (rays,) direction cosines along a row.
        vertical: (rays,) direction cosines along a column.
        array_shape: rows and columns.

    Returns:
        (rays, antennas) complex128, row by row.
    """
    rows, columns = array_shape
    along = np.vander(np.exp(1j * np.pi * horizontal), columns, increasing=True)
    up = np.vander(np.exp(1j * np.pi * vertical), rows, increasing=True)
    return (up[:, :, None] * along[:, None, :]).reshape(horizontal.size, rows * columns)


def _laplace(rng: np.random.Generator, rms: float, shape: tuple[int, ...]) -> np.ndarray:
    """Laplacian numbers of mean 0 and the given rms."""
    return rng.laplace(0.0, rms / math.sqrt(2), shape)

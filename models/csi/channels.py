"""Downlink CSI of neighbouring users, drawn with torch on any device: scatterers in space, shared as far as they are.

A drop is a base station in the origin with a uniform array along y, half a wavelength between elements, and users on
a line, `spacing_m` from one to the next. Clusters have the statistics of 3GPP TR 38.901 section 7.5. Each ray ends in a
scatterer near the user, in a fixed place: moving from one user to the next changes its length, and with that delay and
phase, exactly as geometry demands, while its departure from the base station stays. Clusters are replaced along the
line at the rate that reproduces the correlation distances of table 7.6.3.1-2, and spreads and K factor follow theirs,
so that every user by himself has the statistics of the standard. All is in the horizontal plane, with one polarisation
and isotropic elements; path loss is normalised away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from torch import Tensor

from .environments import (
    GROUP_DELAYS,
    LINE_OF_SIGHT_M,
    RAY_GROUPS,
    RAY_OFFSETS,
    RAYS,
    Site,
    Tables,
    line_of_sight_probability,
    tables,
)

SPEED_OF_LIGHT_M_S = 299792458.0
SPLITS = ("train", "valid", "test")
# Section 7.5, step 6: clusters this far below the strongest are left out.
_WEAKEST_DB = -25.0
# Section 7.5, step 4.
_WIDEST_AZIMUTH_DEG = 104.0
# Ray couplings (step 8) are picked from this many permutations.
_COUPLINGS = 4096


def _as_range(value: Any) -> Any:
    return (value, value) if isinstance(value, int | float) else value


Range = Annotated[tuple[float, float], BeforeValidator(_as_range)]
"""Lowest and highest value, drawn uniformly; one number stands for both."""


class ChannelConfig(BaseModel):
    """Numbers of the downlink and of where its users are. The defaults are those of `paper`.

    256 subcarriers 78.125 kHz apart span 20 MHz: one delay tap is 50 ns, and 32 of them are 1.6 us.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    n_antennas: int = Field(32, ge=1, le=256, description="of the base station's uniform linear array")
    n_subcarriers: int = Field(256, ge=8, le=4096, description="subcarriers the CSI is given for")
    n_taps: int = Field(32, ge=1, le=4096, description="delay taps that are kept")
    lead_taps: float = Field(4.0, ge=0, le=64, description="delay of the first path: a user's timing advance")
    timing_jitter_taps: float = Field(0.0, ge=0, le=4, description="rms error of a user's timing")
    frequency_hz: float = Field(3.5e9, ge=0.5e9, le=100e9, description="carrier")
    bandwidth_hz: Range = Field(
        (20e6, 20e6), description="spanned by the subcarriers; drawn per drop, its logarithm uniform"
    )
    n_users: int = Field(2, ge=1, le=16, description="users of a drop")
    spacing_m: Range = Field((0.5, 5.0), description="from one user to the next, drawn per drop")
    sites: tuple[Site, ...] = Field(("umi",), min_length=1, description="kinds of places, each as often as the others")
    line_of_sight: bool | None = Field(None, description="none: by the probability of the standard")
    umi_distance_m: Range = Field((10.0, 100.0), description="of users from the base station, uniform over the area")
    indoor_distance_m: Range = Field((2.0, 40.0), description="the same indoors")
    sector_deg: float = Field(120.0, gt=0, le=180, description="users lie in this sector around broadside")

    @model_validator(mode="after")
    def _consistent(self) -> ChannelConfig:
        if self.n_subcarriers % 2:
            raise ValueError(f"n_subcarriers={self.n_subcarriers} must be even")
        if self.n_taps > self.n_subcarriers:
            raise ValueError(f"n_taps={self.n_taps} cannot exceed n_subcarriers={self.n_subcarriers}")
        if not self.lead_taps < self.n_taps:
            raise ValueError(f"lead_taps={self.lead_taps} must be below n_taps={self.n_taps}")
        for name, least, most in (
            ("bandwidth_hz", 1e3, 2e9),
            ("spacing_m", 0.0, 1e4),
            ("umi_distance_m", 1.0, 5e3),
            ("indoor_distance_m", 1.0, 1e3),
        ):
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise ValueError(f"{name}={[low, high]}: lowest and highest, within {least:g} to {most:g}")
        return self


PRESETS: dict[str, ChannelConfig] = {
    "paper": ChannelConfig(),
    # A radio at 2 MS/s sees less of the delays than one at 20 MS/s; both, and all between, are to be told apart.
    "lab": ChannelConfig(n_antennas=4, sites=("umi", "indoor"), bandwidth_hz=(2e6, 20e6), timing_jitter_taps=0.25),
}
"""Numerologies by name."""


@dataclass(frozen=True)
class Drops:
    """Drawn CSI, as a sum of paths; what is wanted of it is computed once, when asked for.

    Attributes:
        delays_taps: float32, (batch, user, path): delays in the user's own timing, in samples of the bandwidth.
        gains: complex64, (batch, user, path, antenna): mean power of a user's CSI is 1.
        n_subcarriers: subcarriers of `h`.
        n_taps: taps of `delay_angle`.
        positions_m: float32, (batch, user, 2): users, with the base station in the origin and its array along y.
        line_of_sight: bool, (batch, user).
        places: int64, (batch,): drops of one number come from one place and are no independent samples; None: all are.
    """

    delays_taps: Tensor
    gains: Tensor
    n_subcarriers: int
    n_taps: int
    positions_m: Tensor
    line_of_sight: Tensor
    places: Tensor | None = None

    @cached_property
    def h(self) -> Tensor:
        """Downlink CSI, complex64, (batch, user, subcarrier, antenna), subcarriers by ascending frequency."""
        n = self.n_subcarriers
        fine = 1 << math.ceil(math.log2(n) / 2)
        coarse = math.ceil(n / fine)
        step = (self.delays_taps / n)[:, :, None]
        over_fine = _turns(-step * torch.arange(fine, device=step.device)[:, None])
        over_coarse = _turns(-step * (fine * torch.arange(coarse, device=step.device) - n // 2)[:, None])
        return (over_coarse[:, :, :, None] * over_fine[:, :, None]).flatten(2, 3)[:, :, :n] @ self.gains

    @cached_property
    def delay_angle(self) -> Tensor:
        """The same as `to_delay_angle(h, n_taps)`, faster: complex64, (batch, user, tap, beam)."""
        taps = torch.arange(self.n_taps, device=self.gains.device)
        kernel = _kernel(self.delays_taps[:, :, None] - taps[:, None], self.n_subcarriers)
        return torch.fft.fft(kernel @ self.gains, norm="ortho") * math.sqrt(self.n_taps)

    @property
    def truncation_nmse(self) -> Tensor:
        """Share of the energy outside the first taps, float32, (batch, user)."""
        power = torch.view_as_real(self.delay_angle).square().sum((-3, -2, -1))
        return (1 - power / (self.n_taps * self.gains.shape[-1])).clamp_min(0.0)

    @property
    def spacing_m(self) -> Tensor:
        """Distance between the first two users, float32, (batch,)."""
        return (self.positions_m[:, 1] - self.positions_m[:, 0]).norm(dim=-1)


class Source(Protocol):
    """Anything that CSI is drawn from."""

    @property
    def config(self) -> ChannelConfig:
        """Numbers of the downlink."""
        ...

    def draw(
        self,
        n: int,
        generator: torch.Generator,
        spacing_m: tuple[float, float] | None = None,
        n_users: int | None = None,
    ) -> Drops:
        """Draw n drops on the generator's device; None takes the configured spacing and number of users."""
        ...


@dataclass(frozen=True)
class Clustered:
    """Drops without end, from the statistics of TR 38.901."""

    config: ChannelConfig = PRESETS["paper"]

    def draw(
        self,
        n: int,
        generator: torch.Generator,
        spacing_m: tuple[float, float] | None = None,
        n_users: int | None = None,
    ) -> Drops:
        """Draw n drops. See `Source`."""
        rays = draw_rays(self.config, n, generator, spacing_m, n_users)
        delays_s, gains = paths(rays, self.config.n_antennas)
        return drops(self.config, delays_s, gains, rays.positions_m, rays.line_of_sight, generator)


@dataclass(frozen=True)
class Rays:
    """Geometry of drops. Powers of a user add up to 1.

    Attributes:
        positions_m: float32, (batch, user, 2).
        line_of_sight: bool, (batch, user).
        delays_s: float32, (batch, user, cluster): after the user's first path.
        powers: float32, (batch, user, cluster): 0 where there is no cluster.
        departures: float32, (batch, user, cluster, ray): azimuth at the base station from broadside, radians.
        phases: float32, (batch, user, cluster, ray): at the carrier, turns.
        direct_delay_s: float32, (batch, user): of the line of sight after the first path.
        direct_power: float32, (batch, user): 0 without line of sight.
        direct_departure: float32, (batch, user).
        direct_phase: float32, (batch, user), turns.
        group_delay_s: float32, (batch, user): cluster delay spread of the two strongest clusters.
        k_db: float32, (batch, user): K factor drawn; no meaning without line of sight.
        shared: bool, (batch, user, cluster): whether the previous user has this cluster, too.
    """

    positions_m: Tensor
    line_of_sight: Tensor
    delays_s: Tensor
    powers: Tensor
    departures: Tensor
    phases: Tensor
    direct_delay_s: Tensor
    direct_power: Tensor
    direct_departure: Tensor
    direct_phase: Tensor
    group_delay_s: Tensor
    k_db: Tensor
    shared: Tensor


def stream(split: Literal["train", "valid", "test"], seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Start a split's own stream of random numbers: drops of different splits, or seeds, never coincide.

    Args:
        split: what the drops are for.
        seed: at least 0.
        device: of the generator.

    Raises:
        ValueError: there is no such split, or the seed is negative.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: must be one of {', '.join(SPLITS)}")
    if seed < 0:
        raise ValueError(f"seed={seed} must be at least 0")
    state = np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split),)).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state) >> 1)


def draw_rays(
    config: ChannelConfig,
    n: int,
    generator: torch.Generator,
    spacing_m: tuple[float, float] | None = None,
    n_users: int | None = None,
) -> Rays:
    """Draw the geometry of n drops on the generator's device.

    Args:
        config: statistics.
        n: drops.
        generator: its device is used.
        spacing_m: lowest and highest distance from one user to the next; None takes the configured one.
        n_users: users of a drop; None takes the configured number.

    Raises:
        ValueError: a number or a spacing is out of range.

    Source: 3GPP TR 38.901 section 7.5, steps 4 to 8 and 10.
    """
    k = config.n_users if n_users is None else n_users
    low, high = config.spacing_m if spacing_m is None else spacing_m
    if n < 1 or k < 1:
        raise ValueError(f"n={n}, n_users={k}: both must be at least 1")
    if not 0 <= low <= high:
        raise ValueError(f"spacing_m={(low, high)}: lowest and highest distance, none negative")
    dev = generator.device
    table = tables(config.sites, config.frequency_hz, dev)

    # Users on a line of any direction.
    site = torch.randint(len(config.sites), (n,), generator=generator, device=dev)
    by_site = [config.umi_distance_m if name == "umi" else config.indoor_distance_m for name in config.sites]
    limits = torch.tensor(by_site, device=dev)[site] ** 2
    distance = (limits[:, 0] + (limits[:, 1] - limits[:, 0]) * _uniform((n,), generator)).sqrt()
    bearing = math.radians(config.sector_deg) * (_uniform((n,), generator) - 0.5)
    spacing = low + (high - low) * _uniform((n,), generator)
    heading = 2 * math.pi * _uniform((n,), generator)
    steps = torch.arange(k, device=dev) * spacing[:, None]
    moved = steps[..., None] * _unit(heading)[:, None]
    positions = (distance[:, None] * _unit(bearing))[:, None] + moved

    los = _line_of_sight(config, site, positions, spacing, generator)
    env = 2 * site[:, None] + (~los).long()
    same = torch.ones_like(los)
    same[:, 1:] = env[:, 1:] == env[:, :-1]
    delay_spread, departure_spread, arrival_spread, k_db = _large_scale(table, env, same, spacing, generator)
    fresh = _clusters(table, env, los, positions, delay_spread, departure_spread, arrival_spread, k_db, generator)

    # A cluster lives on to the next user with the probability that makes its share decay over the tabled distance.
    alive = torch.exp(-spacing[:, None] / table.columns[env, 7])
    shared = _uniform(tuple(fresh.powers.shape), generator) < (alive * same)[..., None]
    shared[:, 0] = False
    born = torch.arange(k, device=dev)[:, None].expand(n, k, fresh.powers.shape[2]).clone()
    for user in range(1, k):
        born[:, user] = torch.where(shared[:, user], born[:, user - 1], born[:, user])
    if k > 1:
        fresh = _Clusters(*(_gathered(part, born) for part in vars(fresh).values()))

    # How much longer each ray is than to the user it was drawn for.
    away = (positions[:, :, None] - fresh.birthplaces)[:, :, :, None]
    end = fresh.reach[..., None, None] * fresh.arrivals - away
    longer = end.norm(dim=-1) - fresh.reach[..., None]
    range_m = positions.norm(dim=-1)
    lengths = torch.maximum(fresh.lengths_m + longer.mean(-1), range_m[..., None])
    phases = fresh.phases - longer * (config.frequency_hz / SPEED_OF_LIGHT_M_S)

    k_factor = torch.where(los, 10 ** (k_db / 10), 0.0)
    scattered = fresh.powers / fresh.powers.sum(-1, keepdim=True) / (1 + k_factor)[..., None]
    present = scattered > 10 ** (_WEAKEST_DB / 10) * torch.maximum(
        scattered.amax(-1), k_factor / (1 + k_factor)
    ).unsqueeze(-1)
    scattered = torch.where(present, scattered, 0.0)
    scattered = scattered * (1 / (1 + k_factor) / scattered.sum(-1).clamp_min(1e-12))[..., None]
    first = torch.where(present, lengths, torch.inf).amin(-1)
    first = torch.where(los, range_m, first)
    return Rays(
        positions_m=positions,
        line_of_sight=los,
        delays_s=torch.where(present, lengths - first[..., None], 0.0) / SPEED_OF_LIGHT_M_S,
        powers=scattered,
        departures=fresh.departures,
        phases=phases,
        direct_delay_s=torch.where(los, range_m - first, 0.0) / SPEED_OF_LIGHT_M_S,
        direct_power=torch.where(los, 1 - scattered.sum(-1), 0.0),
        direct_departure=torch.atan2(positions[..., 1], positions[..., 0]),
        direct_phase=-range_m * (config.frequency_hz / SPEED_OF_LIGHT_M_S),
        group_delay_s=table.columns[env, 3],
        k_db=k_db,
        shared=shared,
    )


def paths(rays: Rays, n_antennas: int) -> tuple[Tensor, Tensor]:
    """Sum the rays of each cluster over the array.

    Rays of a cluster share its delay, but for the groups of the two strongest (section 7.5, step 11).

    Args:
        rays: geometry.
        n_antennas: of the uniform linear array.

    Returns:
        Delays after the first path in seconds, float32 (batch, user, path), and gains, complex64
        (batch, user, path, antenna).
    """
    n_clusters, n_rays = rays.departures.shape[2:]
    # Powers of one ray's step from antenna to antenna: coarse steps times fine ones, so that a product of two short
    # matrices sums over the rays.
    n_fine = 1 << math.ceil(math.log2(n_antennas) / 2)
    step = _turns(0.5 * torch.sin(rays.departures))
    fine, stride = _powers(torch.ones_like(step), step, n_fine)
    coarse, _ = _powers(_turns(rays.phases), stride, math.ceil(n_antennas / n_fine))

    def summed(coarse: Tensor, fine: Tensor) -> Tensor:
        return (coarse @ fine.mT).flatten(-2)[..., :n_antennas]

    amplitude = (rays.powers / n_rays).sqrt()
    gains = summed(coarse, fine)
    strongest = rays.powers.topk(min(2, n_clusters), dim=-1).indices
    gains_late, delays_late = [], []
    for group, delay in zip(RAY_GROUPS[1:], GROUP_DELAYS, strict=True):
        late = summed(_gathered(coarse[..., group], strongest, 2), _gathered(fine[..., group], strongest, 2))
        gains = gains.scatter_add(2, strongest[..., None].expand_as(late), -late)
        gains_late.append(late * amplitude.gather(2, strongest)[..., None])
        delays_late.append(rays.delays_s.gather(2, strongest) + delay * rays.group_delay_s[..., None])
    direct = plane_waves(
        rays.direct_power.sqrt() * _turns(rays.direct_phase), torch.sin(rays.direct_departure), n_antennas
    )
    gains = torch.cat([gains * amplitude[..., None], *gains_late, direct[:, :, None]], 2)
    delays = torch.cat([rays.delays_s, *delays_late, rays.direct_delay_s[..., None]], 2)
    return delays, gains


def plane_waves(gains: Tensor, cosines: Tensor, n_antennas: int) -> Tensor:
    """Spread paths over a uniform linear array with half a wavelength between elements.

    Args:
        gains: complex64, (...): at the first antenna.
        cosines: float32, (...): of the angle between departure and array.
        n_antennas: elements.

    Returns:
        complex64, (..., antenna).
    """
    return gains[..., None] * _turns(0.5 * cosines[..., None] * torch.arange(n_antennas, device=gains.device))


def drops(
    config: ChannelConfig,
    delays_s: Tensor,
    gains: Tensor,
    positions_m: Tensor,
    line_of_sight: Tensor,
    generator: torch.Generator,
) -> Drops:
    """Put paths into the users' timing and normalise them.

    Args:
        config: numbers of subcarriers and taps, bandwidth, timing.
        delays_s: float32, (batch, user, path), after the user's first path.
        gains: complex64, (batch, user, path, antenna).
        positions_m: float32, (batch, user, 2).
        line_of_sight: bool, (batch, user).
        generator: draws bandwidths and timing errors.
    """
    b, k = delays_s.shape[:2]
    low, high = config.bandwidth_hz
    bandwidth = low * (high / low) ** _uniform((b, 1, 1), generator) if high > low else low
    taps = delays_s * bandwidth + config.lead_taps
    if config.timing_jitter_taps:
        taps = taps + config.timing_jitter_taps * torch.randn((b, k, 1), generator=generator, device=delays_s.device)
    # Power over the whole band, from the correlation of the paths with each other.
    overlap = _kernel(taps[..., None, :] - taps[..., :, None], config.n_subcarriers)
    power = ((gains.conj() @ gains.mT) * overlap).sum((-2, -1)).real / gains.shape[-1]
    gains = gains * power.clamp_min(1e-20).rsqrt()[..., None, None]
    return Drops(taps, gains, config.n_subcarriers, config.n_taps, positions_m, line_of_sight)


def to_delay_angle(h: Tensor, n_taps: int) -> Tensor:
    """Transform CSI to delay and angle and keep the first taps.

    Args:
        h: complex64, (..., subcarrier, antenna), subcarriers by ascending frequency, their number even.
        n_taps: taps to keep.

    Returns:
        complex64, (..., tap, beam). CSI of unit mean power that fits into the taps keeps it.
    """
    n = h.shape[-2]
    x = torch.fft.fft(
        torch.fft.ifft(torch.fft.ifftshift(h, dim=-2), dim=-2, norm="ortho")[..., :n_taps, :], norm="ortho"
    )
    return x * math.sqrt(n_taps / n)


def from_delay_angle(x: Tensor, n_subcarriers: int) -> Tensor:
    """Transform delay taps and beams back to CSI; the exact inverse of `to_delay_angle` for what the taps hold.

    Args:
        x: complex64, (..., tap, beam).
        n_subcarriers: even, at least the number of taps.

    Returns:
        complex64, (..., subcarrier, antenna).
    """
    n_taps = x.shape[-2]
    taps = torch.fft.ifft(x, norm="ortho") * math.sqrt(n_subcarriers / n_taps)
    return torch.fft.fftshift(torch.fft.fft(taps, n=n_subcarriers, dim=-2, norm="ortho"), dim=-2)


def truncation_nmse(h: Tensor, n_taps: int) -> Tensor:
    """Share of the energy outside the first taps: the NMSE that no code of these taps can fall below.

    Args:
        h: complex64, (..., subcarrier, antenna).
        n_taps: taps that are kept.

    Returns:
        float32, (...).
    """
    x = to_delay_angle(h, n_taps) * math.sqrt(h.shape[-2] / n_taps)
    kept = torch.view_as_real(x).square().sum((-3, -2, -1))
    return (1 - kept / torch.view_as_real(h).square().sum((-3, -2, -1))).clamp_min(0.0)


@dataclass(frozen=True)
class _Clusters:
    """Clusters as they were drawn for each user; see `Rays` for shapes.

    Attributes:
        lengths_m: (batch, user, cluster): path length to the user it was drawn for.
        powers: (batch, user, cluster): before normalisation.
        reach: (batch, user, cluster): metres from that user to the scatterers.
        birthplaces: (batch, user, cluster, 2): where that user is.
        departures: (batch, user, cluster, ray).
        arrivals: (batch, user, cluster, ray, 2): unit vectors from that user to the scatterers.
        phases: (batch, user, cluster, ray), turns, at that user.
    """

    lengths_m: Tensor
    powers: Tensor
    reach: Tensor
    birthplaces: Tensor
    departures: Tensor
    arrivals: Tensor
    phases: Tensor


def _line_of_sight(
    config: ChannelConfig, site: Tensor, positions: Tensor, spacing: Tensor, generator: torch.Generator
) -> Tensor:
    """Draw whether each user sees the base station, kept over the distance of table 7.6.3.1-2; bool (batch, user)."""
    n, k = positions.shape[:2]
    if config.line_of_sight is not None:
        return torch.full((n, k), config.line_of_sight, device=positions.device)
    distance = positions.norm(dim=-1)
    probability = torch.zeros_like(distance)
    keep_m = torch.zeros_like(spacing)
    for index, name in enumerate(config.sites):
        here = site == index
        probability = torch.where(here[:, None], line_of_sight_probability(name, distance), probability)
        keep_m = torch.where(here, LINE_OF_SIGHT_M[name], keep_m)
    los = _uniform((n, k), generator) < probability
    keep = _uniform((n, k), generator) < torch.exp(-spacing / keep_m)[:, None]
    for user in range(1, k):
        los[:, user] = torch.where(keep[:, user], los[:, user - 1], los[:, user])
    return los


def _large_scale(
    table: Tables, env: Tensor, same: Tensor, spacing: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw delay spread (s), departure and arrival spread (rad), K factor (dB); float32 (batch, user) each.

    On a line a process of first order has exactly the exponential correlation that section 7.5 step 4 asks for. As in
    the standard each of the four varies over its own distance before they are mixed, so that the mixed ones vary over
    distances between those of their parts.
    """
    n, k = env.shape
    z = torch.randn((n, k, 4), generator=generator, device=env.device)
    keep = torch.exp(-spacing[:, None, None] / table.correlation_m[env]) * same[..., None]
    for user in range(1, k):
        z[:, user] = keep[:, user] * z[:, user - 1] + (1 - keep[:, user] ** 2).sqrt() * z[:, user]
    mixed = (table.mixing[env] @ z[..., None])[..., 0]
    spreads = table.spreads[env]
    value = spreads[..., 0] + spreads[..., 1] * mixed
    azimuths = torch.deg2rad((10 ** value[..., 1:3]).clamp_max(_WIDEST_AZIMUTH_DEG))
    return 10 ** value[..., 0], azimuths[..., 0], azimuths[..., 1], value[..., 3]


def _clusters(
    table: Tables,
    env: Tensor,
    los: Tensor,
    positions: Tensor,
    delay_spread: Tensor,
    departure_spread: Tensor,
    arrival_spread: Tensor,
    k_db: Tensor,
    generator: torch.Generator,
) -> _Clusters:
    """Draw clusters for every user by himself (section 7.5, steps 5 to 8 and 10)."""
    n, users = env.shape
    dev = env.device
    columns = table.columns[env]
    n_clusters, r_tau, zeta, _, c_departure, c_arrival, c_phi, _, nearest = columns.unbind(-1)
    most = int(table.columns[:, 0].max())
    shape = (n, users, most)
    there = torch.arange(most, device=dev) < n_clusters[..., None]

    # Step 5: delays. Step 6: powers. The line of sight scales delays after, not before, the powers.
    exponents = -torch.log(_uniform(shape, generator).clamp_min(1e-12))
    exponents = torch.where(there, exponents, torch.inf).sort(-1).values
    exponents = exponents - exponents[..., :1]
    delays = (r_tau * delay_spread)[..., None] * torch.where(there, exponents, 0.0)
    scaling = 0.7705 - 0.0433 * k_db + 0.0002 * k_db**2 + 0.000017 * k_db**3
    delays = torch.where(los[..., None], delays / scaling[..., None], delays)
    shadowing = torch.randn(shape, generator=generator, device=dev) * zeta[..., None]
    powers = torch.exp(-exponents * (r_tau - 1)[..., None]) * 10 ** (-shadowing / 10)

    # Step 7: angles by the inverse of a wrapped Gaussian, the first cluster along the line of sight.
    k_factor = torch.where(los, 10 ** (k_db / 10), 0.0)
    seen = powers / powers.sum(-1, keepdim=True) / (1 + k_factor)[..., None]
    seen[..., 0] += k_factor / (1 + k_factor)
    ratio = (seen / seen.amax(-1, keepdim=True)).clamp(10 ** (_WEAKEST_DB / 10), 1.0)
    c_los = 1.1035 - 0.028 * k_db - 0.002 * k_db**2 + 0.0001 * k_db**3
    c_phi = torch.where(los, c_phi * c_los, c_phi)
    spread = 2 / 1.4 * (-torch.log(ratio)).sqrt() / c_phi[..., None]

    towards = torch.atan2(positions[..., 1], positions[..., 0])[..., None]

    def angles(rms: Tensor, centre: Tensor) -> Tensor:
        signs = 1.0 - 2.0 * torch.randint(2, shape, generator=generator, device=dev)
        off = rms[..., None] * (signs * spread + torch.randn(shape, generator=generator, device=dev) / 7)
        return centre + torch.where(los[..., None], off - off[..., :1], off)

    departures = angles(departure_spread, towards)
    arrivals = angles(arrival_spread, towards + math.pi)

    # Scatterers lie on the ellipse of single reflection; rays that leave elsewhere are reflected more than once.
    range_m = positions.norm(dim=-1)[..., None]
    lengths = range_m + SPEED_OF_LIGHT_M_S * delays
    reach = (lengths**2 - range_m**2) / (2 * (lengths - range_m * torch.cos(arrivals - towards - math.pi))).clamp_min(
        1e-6
    )
    reach = torch.maximum(reach, nearest[..., None])

    # Step 8: rays at the base station and at the user are coupled at random.
    offsets = torch.tensor(RAY_OFFSETS, device=dev)
    couplings = _couplings(dev)[torch.randint(_COUPLINGS, shape, generator=generator, device=dev)]
    ray_arrivals = arrivals[..., None] + c_arrival[..., None, None] * offsets[couplings]
    return _Clusters(
        lengths_m=lengths,
        powers=torch.where(there, powers, 0.0),
        reach=reach,
        birthplaces=positions[:, :, None].expand(*shape, 2),
        departures=departures[..., None] + c_departure[..., None, None] * offsets,
        arrivals=_unit(ray_arrivals),
        phases=_uniform((*shape, RAYS), generator),
    )


# Kept tensors serve training, too, whoever asked first.
@cache
@torch.inference_mode(False)
def _couplings(device: torch.device) -> Tensor:
    """Permutations of the rays, int64 (coupling, ray)."""
    rng = np.random.default_rng(7)
    return torch.from_numpy(rng.permuted(np.tile(np.arange(RAYS), (_COUPLINGS, 1)), axis=1)).to(device)


def _gathered(part: Tensor, index: Tensor, dim: int = 1) -> Tensor:
    """Take part[index] along one axis, whatever axes follow those of the index."""
    extra = part.shape[index.ndim :]
    return part.gather(dim, index.reshape(*index.shape, *(1,) * len(extra)).expand(*index.shape, *extra))


def _kernel(delays: Tensor, n_subcarriers: int) -> Tensor:
    """Mean over the subcarriers of the phasors of delays in taps; complex64 of the same shape."""
    x = (delays / n_subcarriers - (delays / n_subcarriers).round()) * math.pi
    near = x.abs() < 1e-6
    ratio = torch.sin(x * n_subcarriers) / (n_subcarriers * torch.sin(torch.where(near, 1.0, x)))
    return torch.polar(torch.ones_like(x), x) * torch.where(near, 1.0, ratio)


def _powers(first: Tensor, step: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Geometric series first * step**i, by doubling.

    Args:
        first: complex64, (..., ray).
        step: complex64, (..., ray).
        n: terms.

    Returns:
        complex64 (..., n, ray), and step raised to the least power of two that is no less than n.
    """
    out = first.new_empty((*first.shape[:-1], n, first.shape[-1]))
    out[..., 0, :] = first
    done = 1
    while done < n:
        more = min(done, n - done)
        torch.mul(out[..., :more, :], step[..., None, :], out=out[..., done : done + more, :])
        step = step * step
        done += more
    return out, step


def _turns(phase: Tensor) -> Tensor:
    """Phasors of phases in turns."""
    angle = (2 * math.pi) * (phase - phase.round())
    return torch.complex(torch.cos(angle), torch.sin(angle))


def _unit(angle: Tensor) -> Tensor:
    return torch.stack([torch.cos(angle), torch.sin(angle)], -1)


def _uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.rand(tuple(shape), generator=generator, device=generator.device)

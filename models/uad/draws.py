"""Access slots for training, drawn with torch on any device: Y = S diag(a) H + W under a mixture of conditions.

SNR is the total received one of the ensemble, as in `simulate`: the noise power is `activity * n_users / 10**(snr/10)`
and never depends on who happens to be active. What all slots of a batch share (length, snapshots, activity, kind of
channel) is drawn on the CPU, so that a GPU is never waited for; channels are drawn for the active users alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from torch import Tensor

from ..channels import ChannelConfig
from .preambles import qpsk_preambles

# As in models/channels.py: delays beyond this many delay spreads are not drawn; cluster delays spread wider than the
# delay spread; shadowing per cluster (TR 38.901 table 7.5-6, UMa NLOS).
_MAX_SPREADS = 10.0
_DELAY_PROPORTIONALITY = 2.3
_CLUSTER_SHADOWING_DB = 3.0


def _as_range(value: Any) -> Any:
    return (value, value) if isinstance(value, int | float) else value


Range = Annotated[tuple[float, float], BeforeValidator(_as_range)]
"""Lowest and highest value, drawn uniformly; one number stands for both."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RayleighChannel(_Section):
    """Independent and identically distributed over users and snapshots."""

    kind: Literal["rayleigh"] = "rayleigh"
    weight: float = Field(1.0, gt=0, description="share of batches, relative to the other channels")


class ArrayChannel(_Section):
    """Correlated over the antennas of a planar array: narrow-band, clustered, one snapshot per antenna."""

    kind: Literal["array"] = "array"
    weight: float = Field(1.0, gt=0, description="share of batches, relative to the other channels")
    statistics: ChannelConfig = Field(
        ChannelConfig(kind="clustered", array_shape=(8, 8)), description="as in models/channels.py; static"
    )

    @model_validator(mode="after")
    def _fits(self) -> ArrayChannel:
        if self.statistics.kind != "clustered" or self.statistics.array_shape is None:
            raise ValueError("statistics: needs kind='clustered' and an array_shape such as [8, 8]")
        if self.statistics.doppler_hz:
            raise ValueError(f"statistics.doppler_hz={self.statistics.doppler_hz}: the channel is static here; set 0")
        return self


class LabChannel(_Section):
    """Snapshots of few antennas times groups of subcarriers, with what is left of the radios' faults.

    Preamble symbols fill the subcarriers of a group first, then OFDM symbols. Snapshot index = antenna * groups +
    group. The defaults are the numerology of the lab scenario.
    """

    kind: Literal["lab"] = "lab"
    weight: float = Field(1.0, gt=0, description="share of batches, relative to the other channels")
    n_antennas: int = Field(4, ge=1, le=256)
    group_subcarriers: tuple[int, ...] = Field(
        (-46, -40, -34, -28, -22, -16, -10, -4, 3, 9, 15, 21, 27, 33, 39, 45),
        min_length=1,
        description="first subcarrier of every group, counted from the carrier",
    )
    group_width: int = Field(2, ge=1, le=64, description="subcarriers of a group")
    subcarrier_spacing_hz: float = Field(15625.0, gt=0)
    symbol_s: float = Field(72e-6, gt=0, description="duration of an OFDM symbol with its prefix")
    delay_spread_s: float = Field(0.5e-6, ge=0, description="rms, exponential profile")
    n_taps: int = Field(8, ge=1, le=64)
    doppler_hz: float = Field(11.0, ge=0, description="maximum Doppler shift")
    cfo_hz: float = Field(0.0, ge=0, description="standard deviation of each user's residual carrier offset")
    timing_s: float = Field(0.0, ge=0, description="each user's residual timing error: uniform, plus or minus this")
    phase_noise_linewidth_hz: float = Field(0.0, ge=0, description="of a user's and the receiver's oscillator together")
    gain_ripple_db: float = Field(
        0.0, ge=0, le=20, description="standard deviation of the gain of antenna and group, common to all users"
    )
    error_floor_db: float | None = Field(
        None, le=0, description="unmodelled distortion under the power of the slot's users; none: no distortion"
    )


ChannelMix = Annotated[RayleighChannel | ArrayChannel | LabChannel, Field(discriminator="kind")]


class Mixture(_Section):
    """What training sees. A batch shares length, snapshots, activity and channel; SNR and spread differ per slot."""

    n_users: int = Field(128, ge=1, le=4096)
    max_length: int = Field(28, ge=1, le=1024, description="symbols of a whole preamble")
    lengths: tuple[int, ...] = Field(tuple(range(8, 29)), min_length=1, description="preamble lengths")
    length_weights: tuple[float, ...] | None = Field(None, description="relative, one per length; none: all equal")
    snapshots: tuple[int, ...] = Field((64,), min_length=1, description="numbers of snapshots of rayleigh batches")
    activity: Range = Field((0.1, 0.1), description="probability that a user sends")
    snr_db: Range = Field((10.0, 10.0), description="total received SNR of the ensemble")
    power_spread_db: Range = Field((0.0, 0.0), description="width of the users' power range, uniform in dB, mean 1")
    equal_power: float = Field(
        0.0, ge=0, le=1, description="share of slots whose users are equal in power all the same"
    )
    pool: Literal["fixed", "fresh"] = Field("fixed", description="one pool of preambles, or a new one for every slot")
    pool_seed: int = Field(1, ge=0, description="of the fixed pool")
    noise_unknown: float = Field(0.0, ge=0, le=1, description="share of batches whose noise power is not told")
    noise_error_db: float = Field(0.0, ge=0, le=20, description="standard deviation of the noise power told")
    channels: tuple[ChannelMix, ...] = Field((RayleighChannel(),), min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Mixture:
        if not all(1 <= length <= self.max_length for length in self.lengths):
            raise ValueError(f"lengths={list(self.lengths)}: each must be 1 to max_length={self.max_length}")
        weights = self.length_weights
        if weights is not None and (len(weights) != len(self.lengths) or min(weights) < 0 or sum(weights) <= 0):
            raise ValueError(
                f"length_weights has {len(weights)} values for {len(self.lengths)} lengths; "
                "needs one per length, none negative, not all 0"
            )
        if min(self.snapshots) < 1:
            raise ValueError(f"snapshots={list(self.snapshots)}: each must be at least 1")
        if not 0 < self.activity[0] <= self.activity[1] < 1:
            raise ValueError(f"activity={list(self.activity)}: lowest and highest probability, between 0 and 1")
        if not -60 <= self.snr_db[0] <= self.snr_db[1] <= 120:
            raise ValueError(f"snr_db={list(self.snr_db)}: lowest and highest, within -60 to 120")
        if not 0 <= self.power_spread_db[0] <= self.power_spread_db[1] <= 60:
            raise ValueError(f"power_spread_db={list(self.power_spread_db)}: lowest and highest, within 0 to 60")
        return self

    def fixed_pool(self) -> Tensor:
        """The pool of `pool_seed`; complex64, (max_length, user), on the CPU."""
        rng = np.random.default_rng(self.pool_seed)
        return torch.from_numpy(qpsk_preambles(self.n_users, self.max_length, rng))


@dataclass(frozen=True)
class Slots:
    """A batch of access slots.

    Attributes:
        y: complex64, (batch, symbol, snapshot).
        active: bool, (batch, user): who sent.
        noise_power: float32, (batch,): what a detector is told of the noise per complex symbol; None: nothing.
        preambles: complex64, (max_length, user), or (batch, max_length, user) when each slot has its own pool.
        activity: probability that a user sends.
        snr_db: float32, (batch,): total SNR of the ensemble.
        channel: kind of channel.
    """

    y: Tensor
    active: Tensor
    noise_power: Tensor | None
    preambles: Tensor
    activity: float
    snr_db: Tensor
    channel: str


def draw(
    mixture: Mixture,
    pool: Tensor | None,
    n: int,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    length: int | None = None,
) -> Slots:
    """Draw a batch of access slots.

    Args:
        mixture: conditions.
        pool: complex64, (max_length, user), on `device`; None draws a pool for every slot.
        n: slots.
        generator: on the CPU; it also seeds the device's own.
        device: where everything is drawn and returned.
        length: preamble symbols; None draws them.

    Raises:
        ValueError: `pool` or `length` does not fit the mixture.
    """
    device = torch.device(device)
    if pool is not None and tuple(pool.shape) != (mixture.max_length, mixture.n_users):
        raise ValueError(
            f"pool has shape {tuple(pool.shape)}; the mixture needs {(mixture.max_length, mixture.n_users)}"
        )
    if length is not None and not 1 <= length <= mixture.max_length:
        raise ValueError(f"length={length}: the preambles have 1 to {mixture.max_length} symbols")

    on_device = torch.Generator(device).manual_seed(int(torch.randint(2**63 - 1, (), generator=generator)))
    if length is None:
        length = mixture.lengths[_pick(mixture.length_weights or (1.0,) * len(mixture.lengths), generator)]
    channel = mixture.channels[_pick([c.weight for c in mixture.channels], generator)]
    n_snapshots = mixture.snapshots[_pick((1.0,) * len(mixture.snapshots), generator)]
    activity = _between(mixture.activity, float(torch.rand((), generator=generator)))
    told = float(torch.rand((), generator=generator)) >= mixture.noise_unknown
    active = torch.rand((n, mixture.n_users), generator=generator) < activity

    # One row per active user and slot; `place` is its position among the active ones of its slot.
    slot, user = active.nonzero(as_tuple=True)
    place = (active.cumsum(1) - 1)[slot, user]
    n_places = max(int(active.sum(1).max()), 1)
    slot, user, place = (index.to(device, non_blocking=True) for index in (slot, user, place))

    snr_db = _between(mixture.snr_db, _uniform((n,), on_device))
    noise_power = activity * mixture.n_users / 10 ** (snr_db / 10)
    amplitude = _amplitudes(mixture, slot, n, on_device)
    if pool is None:
        signs = torch.randint(2, (2, n, mixture.max_length, mixture.n_users), generator=on_device, device=device)
        preambles = torch.complex(*((1.0 - 2.0 * signs) * math.sqrt(0.5)))
        sent = preambles[slot, :length, user]
    else:
        preambles = pool
        sent = pool[:length, user].T
    sent = sent * amplitude[:, None]

    def gathered(rows: Tensor) -> Tensor:
        """(row, x) -> (batch, place, x), zero where a slot has fewer active users."""
        out = rows.new_zeros((n, n_places, rows.shape[1]))
        out[slot, place] = rows
        return out

    if isinstance(channel, LabChannel):
        y = _lab(channel, sent, gathered, slot, n, on_device)
    else:
        if isinstance(channel, ArrayChannel):
            gains = clustered_gains(channel.statistics, user.numel(), on_device)
        else:
            gains = complex_normal((user.numel(), n_snapshots), on_device)
        y = gathered(sent).mT @ gathered(gains)
    y = y + noise_power.sqrt()[:, None, None] * complex_normal(tuple(y.shape), on_device)
    reported = None
    if told:
        error_db = mixture.noise_error_db * torch.randn((n,), generator=on_device, device=device)
        reported = noise_power * 10 ** (error_db / 10)
    return Slots(y, active.to(device, non_blocking=True), reported, preambles, activity, snr_db, channel.kind)


def complex_normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Circular complex Gaussian values of unit variance; complex64 of `shape` on the generator's device."""
    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.complex64)


def clustered_gains(statistics: ChannelConfig, n_links: int, generator: torch.Generator) -> Tensor:
    """Draw narrow-band gains of a clustered channel at a planar array, a new geometry for every link.

    Args:
        statistics: of kind "clustered"; the delays do not matter in a narrow band.
        n_links: users times slots.
        generator: its device is used.

    Returns:
        complex64, (link, antenna), unit mean power; antennas row by row.

    Source: 3GPP TR 38.901 section 7.5, as in `channels.draw_paths`.
    """
    if statistics.array_shape is None:
        raise ValueError("statistics.array_shape is missing; give rows and columns of the array")
    rows, columns = statistics.array_shape
    clusters, rays = statistics.n_clusters, statistics.rays_per_cluster
    exponents = -torch.log1p(_uniform((n_links, clusters), generator) * math.expm1(-_MAX_SPREADS))
    shadowing_db = _CLUSTER_SHADOWING_DB * _normal((n_links, clusters), generator)
    powers = torch.exp(-exponents * (_DELAY_PROPORTIONALITY - 1)) * 10 ** (-shadowing_db / 10)
    powers = powers / powers.sum(1, keepdim=True)
    if statistics.azimuth_deg is None:
        towards = statistics.sector_deg * (_uniform((n_links, 1, 1), generator) - 0.5)
    else:
        towards = torch.full((n_links, 1, 1), statistics.azimuth_deg, device=generator.device)
    between_deg = math.sqrt(statistics.angle_spread_deg**2 - statistics.cluster_spread_deg**2)
    azimuth = torch.deg2rad(
        towards
        + _laplace(between_deg, (n_links, clusters, 1), generator)
        + _laplace(statistics.cluster_spread_deg, (n_links, clusters, rays), generator)
    ).flatten(1)
    # Counted from the horizon: single precision keeps more of a small elevation than of an angle near 90 degrees.
    elevation = torch.deg2rad(-_laplace(statistics.zenith_spread_deg, (n_links, clusters, rays), generator)).flatten(1)
    phases = 2 * math.pi * _uniform((n_links, clusters * rays), generator)
    amplitudes = (powers / rays).sqrt().repeat_interleave(rays, 1)
    horizontal = math.pi * torch.sin(azimuth) * torch.cos(elevation)
    vertical = math.pi * torch.sin(elevation)
    along = _turn(horizontal[:, :, None] * torch.arange(columns, device=generator.device))
    up = _turn(vertical[:, None, :] * torch.arange(rows, device=generator.device)[:, None] + phases[:, None])
    return ((up * amplitudes[:, None]) @ along).flatten(1)


def _lab(lab: LabChannel, sent: Tensor, gathered: Any, slot: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Sum the users' signals without noise.

    Args:
        lab: statistics.
        sent: complex64, (link, symbol): preambles times amplitudes.
        gathered: (link, x) -> (batch, place, x).
        slot: int64, (link,).
        n: batch size.
        generator: its device is used.

    Returns:
        complex64, (batch, symbol, snapshot).
    """
    device = generator.device
    n_links, length = sent.shape
    gw, groups = lab.group_width, len(lab.group_subcarriers)
    n_symbols = math.ceil(length / gw)

    # Exponential profile in equally probable slices, as channels.py draws it.
    if lab.delay_spread_s > 0:
        slices = torch.arange(lab.n_taps, device=device) + _uniform((n_links, lab.n_taps), generator)
        delays_s = -lab.delay_spread_s * torch.log1p(slices / lab.n_taps * math.expm1(-_MAX_SPREADS))
    else:
        delays_s = torch.zeros((n_links, 1), device=device)
    n_taps = delays_s.shape[1]
    taps = complex_normal((n_links, lab.n_antennas, n_taps), generator) / math.sqrt(n_taps)
    delays_s = delays_s + lab.timing_s * (2 * _uniform((n_links, 1), generator) - 1)
    per_subcarrier = -2 * math.pi * lab.subcarrier_spacing_hz * delays_s
    firsts = torch.tensor(lab.group_subcarriers, device=device)
    over_groups = _turn(per_subcarrier[:, :, None] * firsts)  # (link, tap, group)

    # A user's phase runs on from symbol to symbol: residual offset, Doppler shift, phase noise.
    shift_hz = lab.cfo_hz * _normal((n_links, 1), generator)
    shift_hz = shift_hz + lab.doppler_hz * torch.cos(2 * math.pi * _uniform((n_links, 1), generator))
    walk = math.sqrt(2 * math.pi * lab.phase_noise_linewidth_hz * lab.symbol_s)
    steps = 2 * math.pi * lab.symbol_s * shift_hz + walk * _normal((n_links, n_symbols), generator)
    sent = sent * _turn(steps.cumsum(1)).repeat_interleave(gw, 1)[:, :length]

    ripple = 10 ** (lab.gain_ripple_db * _normal((n, 1, lab.n_antennas * groups), generator) / 20)
    y = sent.new_empty((n, length, lab.n_antennas * groups))
    for offset in range(min(gw, length)):
        gains = (taps * _turn(per_subcarrier * offset)[:, None]) @ over_groups
        y[:, offset::gw] = gathered(sent[:, offset::gw]).mT @ (gathered(gains.flatten(1)) * ripple)
    if lab.error_floor_db is not None:
        power = torch.zeros(n, device=device).index_add_(0, slot, sent[:, 0].abs().square())
        floor = (power * 10 ** (lab.error_floor_db / 10)).sqrt()
        y = y + floor[:, None, None] * complex_normal(tuple(y.shape), generator)
    return y


def _amplitudes(mixture: Mixture, slot: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Square roots of powers uniform in dB with mean 1, their width drawn per slot. Returns float32 (link,)."""
    if mixture.power_spread_db == (0.0, 0.0):
        return torch.ones(slot.shape, device=generator.device)
    # Half the width in nepers of power; the least keeps sinh(x)/x from 0/0.
    half = _between(mixture.power_spread_db, _uniform((n,), generator)) * math.log(10) / 20
    if mixture.equal_power > 0:
        half = torch.where(_uniform((n,), generator) < mixture.equal_power, 0.0, half)
    half = half.clamp_min(1e-3)
    powers = torch.exp(half[slot] * (2 * _uniform(tuple(slot.shape), generator) - 1)) * (half / torch.sinh(half))[slot]
    return powers.sqrt()


def _pick(weights: Any, generator: torch.Generator) -> int:
    """Index drawn with probabilities in proportion to weights."""
    if len(weights) == 1:
        return 0
    return int(torch.multinomial(torch.tensor(weights, dtype=torch.float64), 1, generator=generator))


def _between(limits: tuple[float, float], share: Any) -> Any:
    return limits[0] + (limits[1] - limits[0]) * share


def _turn(phase: Tensor) -> Tensor:
    return torch.polar(torch.ones_like(phase), phase)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device)


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


def _laplace(rms: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Laplacian numbers of mean 0 and the given rms, by the inverse distribution function."""
    u = _uniform(shape, generator) - 0.5
    # In single precision u can be exactly -0.5, whose logarithm is infinite.
    return -rms / math.sqrt(2) * torch.sign(u) * torch.log1p((-2 * u.abs()).clamp_min(-1 + 1e-7))

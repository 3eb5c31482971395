"""Downlink channels for pictures, and how the base station comes to know them: perfectly, with noise, or fed back."""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from ..csi.channels import PRESETS, ChannelConfig, Clustered, Drops, Range, from_delay_angle
from ..csi.evaluate import load_contender
from ..csi.link import feed_back
from ..csi.train import conditioned
from .link import PERFECT_DB, Channels

Csi = Literal["perfect", "estimated", "fed back"]
KINDS: tuple[Csi, ...] = ("perfect", "estimated", "fed back")


class DownlinkConfig(BaseModel):
    """Where users are, how many, at what SNR, and what is known of their channels."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    channel: ChannelConfig = Field(PRESETS["lab"], description="numbers of the downlink; the name of a preset, too")
    spacing_m: Range = Field((0.5, 20.0), description="between neighbouring users")
    users: tuple[int, ...] = Field((2,), min_length=1, description="served at once; one of these, drawn per step")
    snr_db: Range = Field((-5.0, 20.0), description="transmit power over noise power, uniform")
    perfect: float = Field(0.4, ge=0, le=1, description="share of drops whose CSI is known")
    fed_back: float = Field(0.3, ge=0, le=1, description="share whose CSI came by feedback; the rest is estimated")
    estimate_nmse_db: Range = Field((-25.0, -3.0), description="error of estimated CSI, uniform")
    codec: str = Field("lab", description="weights of the CSI feedback, shipped or a folder")
    feedback_snr_db: Range = Field((0.0, 20.0), description="of a received feedback symbol, uniform")

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, data: object) -> object:
        if isinstance(data, dict) and isinstance(data.get("channel"), str):
            if data["channel"] not in PRESETS:
                raise ValueError(f"channel={data['channel']!r}: a table, or one of {', '.join(PRESETS)}")
            return {**data, "channel": PRESETS[data["channel"]]}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> DownlinkConfig:
        if self.perfect + self.fed_back > 1:
            raise ValueError(f"perfect={self.perfect} and fed_back={self.fed_back} add up to more than 1")
        if min(self.users) < 1 or max(self.users) > 16:
            raise ValueError(f"users={list(self.users)}: 1 to 16")
        for name in ("snr_db", "estimate_nmse_db", "feedback_snr_db"):
            low, high = getattr(self, name)
            if not -60 <= low <= high <= 60:
                raise ValueError(f"{name}={[low, high]}: lowest and highest, within -60 to 60")
        return self


def draw(
    config: DownlinkConfig,
    n: int,
    generator: torch.Generator,
    n_users: int | None = None,
    csi: Csi | None = None,
    estimate_nmse_db: float | None = None,
    feedback: tuple[int, float] | None = None,
) -> Channels:
    """Draw channels, and what the base station knows of them.

    Args:
        config: of the downlink.
        n: drops.
        generator: of everything; drops are drawn on its device.
        n_users: of each drop; None: the first of the configured ones.
        csi: what is known; None: one of the kinds for every drop, in the configured shares.
        estimate_nmse_db: error of estimated CSI; None: drawn.
        feedback: symbols and their SNR in dB of CSI that is fed back; None: drawn.
    """
    users = config.users[0] if n_users is None else n_users
    drops = Clustered(config.channel).draw(n, generator, config.spacing_m, users)
    share = torch.rand(n, generator=generator, device=generator.device)
    fed = share >= 1 - config.fed_back if csi is None else torch.full_like(share, csi == "fed back", dtype=torch.bool)
    exact = share < config.perfect if csi is None else torch.full_like(fed, csi == "perfect")
    h = drops.h
    nmse_db = _uniform(config.estimate_nmse_db, n, generator)
    if estimate_nmse_db is not None:
        nmse_db = torch.full_like(nmse_db, estimate_nmse_db)
    nmse_db = torch.where(exact, PERFECT_DB, nmse_db)
    known = torch.where(exact[:, None, None, None], h, estimated(h, nmse_db, generator))
    if bool(fed.any()):
        recovered, error_db = recover(config, drops, fed, generator, feedback)
        known, nmse_db = known.clone(), nmse_db.clone()
        known[fed], nmse_db[fed] = recovered, error_db
    return Channels(h, known, nmse_db)


def feedback_lengths(config: DownlinkConfig) -> tuple[int, ...]:
    """Symbols of CSI feedback that the codec was trained for, ascending.

    Raises:
        ScenarioError: there is no such codec.
        ModelError: its weights are damaged.
    """
    return tuple(sorted(int(length) for length in _codec(config.codec)[0].scenario["lengths"]))


def estimated(h: Tensor, nmse_db: Tensor, generator: torch.Generator) -> Tensor:
    """Channels as an MMSE estimator has them: h + e scaled such that the error is independent of the estimate.

    Args:
        h: complex64, (batch, user, subcarrier, antenna), unit mean power.
        nmse_db: float32, (batch,): mean squared error over mean power.
        generator: of the noise.
    """
    nmse = 10 ** (nmse_db.clamp_max(-0.1) / 10)
    # An observation with noise of power q has an MMSE of q / (1 + q).
    power = nmse / (1 - nmse)
    noise = torch.view_as_complex(torch.randn((*h.shape, 2), generator=generator, device=h.device))
    return (h + noise * (power / 2).sqrt()[:, None, None, None]) * (1 - nmse)[:, None, None, None]


def recover(
    config: DownlinkConfig,
    drops: Drops,
    which: Tensor,
    generator: torch.Generator,
    feedback: tuple[int, float] | None = None,
) -> tuple[Tensor, Tensor]:
    """CSI of some drops as it comes back over the CSI feedback link.

    Args:
        config: names the codec.
        drops: whose CSI it is.
        which: bool, (drop,).
        generator: of lengths, SNRs and noise.
        feedback: symbols and their SNR in dB; None: drawn.

    Returns:
        complex64, (chosen drop, user, subcarrier, antenna), and the error that the codec's card lets expect, float32
        (chosen drop,), in dB.

    Raises:
        ScenarioError: there is no such codec.
        ModelError: its weights are damaged.
    """
    _, contender = _codec(config.codec)
    lengths = feedback_lengths(config)
    csi = drops.delay_angle[which]
    if csi.shape[-2:] != (contender.network.config.n_taps, contender.network.config.n_antennas):
        raise ValueError(f"CSI of {tuple(csi.shape[-2:])} taps and antennas does not fit the codec {config.codec!r}")
    if feedback is None:
        # One length for all, so that they are decoded together; the SNR is each drop's own.
        length = lengths[int(torch.randint(len(lengths), (1,), generator=generator, device=generator.device))]
        snr = _uniform(config.feedback_snr_db, len(csi), generator)
    else:
        length, snr = feedback[0], torch.full((len(csi),), feedback[1], device=csi.device)
    batch = conditioned(csi, length, 0.0)
    batch = type(batch)(batch.csi, batch.lengths, snr[:, None].expand_as(batch.snr_db), batch.present)
    with torch.no_grad():
        found = feed_back(contender.network, batch, generator)
    expected = np.interp(snr.cpu().numpy(), *_expected(config.codec, length))
    error_db = torch.from_numpy(expected).to(torch.float32).to(csi.device)
    return from_delay_angle(found, drops.n_subcarriers), error_db


@cache
def _codec(name: str):  # type: ignore[no-untyped-def]
    return load_contender(name)


@cache
def _expected(name: str, length: int) -> tuple[list[float], list[float]]:
    """NMSE in dB over SNR that a codec's card tells, for the nearest length."""
    card = _codec(name)[0]
    told = [m for m in card.metrics if m.name == "nmse_db" and m.conditions.get("neighbour") == "near"]
    if not told:
        return [0.0], [-6.0]
    nearest = min({int(m.conditions["length"]) for m in told}, key=lambda known: abs(known - length))
    points = sorted((float(m.conditions["snr_db"]), m.value) for m in told if m.conditions["length"] == nearest)
    return [snr for snr, _ in points], [value for _, value in points]


def expected_nmse_db(codec: str, length: int, snr_db: float) -> float:
    """Error of CSI that is fed back, in dB, as the card of a codec lets expect it.

    Args:
        codec: weights of the CSI feedback, shipped or a folder.
        length: of the code, in symbols; the nearest that the card knows stands for it.
        snr_db: of a received symbol.

    Raises:
        ScenarioError: there is no such codec.
        ModelError: its weights are damaged.
    """
    return float(np.interp(snr_db, *_expected(codec, length)))


def _uniform(limits: tuple[float, float], n: int, generator: torch.Generator) -> Tensor:
    low, high = limits
    return low + (high - low) * torch.rand(n, generator=generator, device=generator.device)

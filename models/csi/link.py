"""The feedback link at symbol level: words of unit power, noise at the SNR after combining, no channel else.

The SNR is that of a received code symbol, behind whatever combining over antennas the receiver does: a symbol of unit
power arrives with complex Gaussian noise of power 10^(-SNR/10).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from .channels import PRESETS, ChannelConfig, Clustered, Range, Source
from .networks import Network
from .sources import TracedShare


class Mixture(BaseModel):
    """What training sees: drops, feedback lengths, SNR; missing and distant neighbours among them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    channel: ChannelConfig = Field(PRESETS["paper"], description="numbers of the downlink; the name of a preset, too")
    ratios: tuple[int, ...] = Field(
        (64, 32, 16, 8), min_length=1, description="complex numbers of the truncated CSI per symbol sent"
    )
    snr_db: Range = Field((-10.0, 20.0), description="of a received symbol, uniform")
    snr_spread_db: float = Field(
        0.0, ge=0, le=40, description="largest difference of a user's SNR from that of the drop"
    )
    missing: float = Field(0.1, ge=0, lt=1, description="share of drops in which one user alone is heard")
    far: float = Field(0.1, ge=0, lt=1, description="share of drops whose users are too far apart to share anything")
    far_m: Range = Field((30.0, 100.0), description="their spacing")
    traced: TracedShare | None = Field(None, description="drops that come out of a file of traced paths; none: no drop")

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, data: object) -> object:
        if isinstance(data, dict) and isinstance(data.get("channel"), str):
            if data["channel"] not in PRESETS:
                raise ValueError(f"channel={data['channel']!r}: a table, or one of {', '.join(PRESETS)}")
            return {**data, "channel": PRESETS[data["channel"]]}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Mixture:
        for ratio in self.ratios:
            if ratio < 1 or self.size % ratio:
                raise ValueError(f"ratios holds {ratio}; each must divide the {self.size} numbers of the CSI")
        if not -20 <= self.snr_db[0] <= self.snr_db[1] <= 40:
            raise ValueError(f"snr_db={list(self.snr_db)}: lowest and highest, within -20 to 40")
        if not 0 <= self.far_m[0] <= self.far_m[1] <= 1e4:
            raise ValueError(f"far_m={list(self.far_m)}: lowest and highest, within 0 to 10000")
        return self

    @property
    def size(self) -> int:
        """Complex numbers of the truncated CSI."""
        return self.channel.n_taps * self.channel.n_antennas

    @property
    def lengths(self) -> tuple[int, ...]:
        """Symbols of the feedback, ascending."""
        return tuple(sorted(self.size // ratio for ratio in self.ratios))


def clustered(mixture: Mixture) -> Source:
    """Drops without end for a mixture that has no traced ones."""
    if mixture.traced is not None:
        raise ValueError("the mixture has traced drops: see `sources.training_source`, which takes their file")
    return Clustered(mixture.channel)


@dataclass(frozen=True)
class Batch:
    """Drops with the conditions of their feedback.

    Attributes:
        csi: complex64, (batch, user, tap, beam): what is to be recovered.
        lengths: int64, (batch,): symbols.
        snr_db: float32, (batch, user).
        present: bool, (batch, user): whose symbols arrive.
        padded: symbols of the longest feedback, which noise is drawn for; None: as the code says.
    """

    csi: Tensor
    lengths: Tensor
    snr_db: Tensor
    present: Tensor
    padded: int | None = None

    def part(self, start: int, stop: int) -> Batch:
        """Some of the drops."""
        at = slice(start, stop)
        return Batch(self.csi[at], self.lengths[at], self.snr_db[at], self.present[at], self.padded)


def draw(mixture: Mixture, n: int, generator: torch.Generator, source: Source | None = None) -> Batch:
    """Draw drops and their conditions on the generator's device.

    Args:
        mixture: what is drawn.
        n: drops.
        generator: of everything.
        source: of the CSI; None: the clustered generator, for a mixture without traced drops.
    """
    source = source or clustered(mixture)
    device = generator.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    far = int((uniform(n) < mixture.far).sum())
    parts = [source.draw(n - far, generator).delay_angle] if far < n else []
    if far:
        parts.append(source.draw(far, generator, mixture.far_m).delay_angle)
    csi = torch.cat(parts)
    n_users = csi.shape[1]
    lengths = torch.tensor(mixture.lengths, device=device)
    low, high = mixture.snr_db
    snr = low + (high - low) * uniform(n, 1) + mixture.snr_spread_db * (2 * uniform(n, n_users) - 1)
    # Who is alone is any of the users.
    alone = uniform(n, 1) < mixture.missing
    who = torch.randint(n_users, (n, 1), generator=generator, device=device)
    present = ~alone | (torch.arange(n_users, device=device) == who)
    picked = torch.randint(len(lengths), (n,), generator=generator, device=device)
    return Batch(csi, lengths[picked], snr.clamp(-20, 40), present)


def add_noise(words: Tensor, snr_db: Tensor, generator: torch.Generator) -> Tensor:
    """Words as they are received; complex64, (..., symbol), with snr_db float32 (...)."""
    noise = torch.view_as_complex(torch.randn((*words.shape, 2), generator=generator, device=words.device))
    return words + noise * (0.5 * 10 ** (-snr_db[..., None] / 10)).sqrt()


def feed_back(network: Network, batch: Batch, generator: torch.Generator) -> Tensor:
    """Encode, send and decode a batch; complex64, (batch, user, tap, beam)."""
    n_users = batch.csi.shape[1]
    words = network.encode(
        batch.csi.flatten(0, 1), batch.lengths.repeat_interleave(n_users), batch.snr_db.flatten()
    ).unflatten(0, (-1, n_users))
    received = add_noise(words, batch.snr_db, generator)
    return network.decode(received, batch.lengths, batch.snr_db, batch.present)


def nmse(csi: Tensor, recovered: Tensor) -> Tensor:
    """Squared error over the energy of the CSI; float32, (...) from (..., tap, beam)."""
    error = torch.view_as_real(csi - recovered).square().sum((-3, -2, -1))
    return error / torch.view_as_real(csi).square().sum((-3, -2, -1)).clamp_min(1e-20)

"""The interface of every network that feeds CSI back: real encoder and decoder, complex numbers around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

N_CONDITIONS = 4
"""Numbers that tell a network the conditions; see `conditions`."""

SNR_SCALE_DB = 10.0
"""SNR of 1 among the conditions."""

STEEPNESS = 2.3
"""Of the curve that squeezes the announced SNR among the conditions."""

_TINY = 1e-12


class NetworkConfig(BaseModel):
    """Sizes and choices of a network; every kind adds its own fields.

    `n_taps`, `n_antennas` and `max_length` are filled from what the network is trained for, unless given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_taps: int = Field(32, ge=2, le=256, description="delay taps of the CSI")
    n_antennas: int = Field(32, ge=1, le=256, description="antennas of the base station, and so beams of the CSI")
    max_length: int = Field(128, ge=1, le=4096, description="symbols of the longest feedback")


class AttentionConfig(NetworkConfig):
    """Fields that networks of attention share."""

    width: int = Field(96, ge=8, le=1024, description="numbers of a token")
    heads: int = Field(4, ge=1, le=32)
    feedforward: int = Field(192, ge=8, le=4096, description="width of the feed-forward layers")
    encoder_layers: int = Field(2, ge=1, le=16)
    decoder_layers: int = Field(4, ge=2, le=32, description="all layers of the decoder, those among users included")
    code_width: int = Field(16, ge=1, le=256, description="numbers of a token before and behind the code")

    @model_validator(mode="after")
    def _divisible(self) -> AttentionConfig:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} must be a multiple of heads={self.heads}")
        return self


class Network(nn.Module):
    """Turns CSI into a few complex symbols at a user, and the symbols of several users into CSI at the base station.

    A network is a subclass in a module of this package that sets `kind`, `Config`, and in its constructor `encoder`
    and `decoder`, which are real, so that inference engines can run them:

    - `encoder(features, condition)`: (batch, tap, 2 antennas), (batch, `N_CONDITIONS`) -> (batch, 2 max_length);
    - `decoder(code, condition, present)`: (batch, user, 2 max_length), (batch, user, `N_CONDITIONS`), (batch, user)
      -> (batch, user, tap, 2 antennas).

    Real parts stand first in the last axis, then imaginary parts. Of a code the first symbols are sent, as many as the
    length says, which is among the conditions; the others are not.
    """

    kind: ClassVar[str]
    """How a card or a training configuration names the network."""

    Config: ClassVar[type[NetworkConfig]]
    """Class of its configuration."""

    encoder: nn.Module
    decoder: nn.Module

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config

    def start_from(self, csi: Tensor) -> None:
        """Set weights before training from draws of it; complex64, (drop, user, tap, beam). Most kinds do nothing."""

    def settle(self, csi: Tensor, lengths: Sequence[int]) -> None:
        """Choose once trained what gradients cannot, from draws; complex64, (drop, user, tap, beam). Most do nothing.

        Args:
            csi: draws of training.
            lengths: symbols that feedback will have.
        """

    def encode(self, csi: Tensor, lengths: Tensor, snr_db: Tensor) -> Tensor:
        """Compress CSI into symbols of unit average power.

        Args:
            csi: complex64, (batch, tap, beam): delay and angle; its scale does not matter.
            lengths: int64, (batch,): symbols to use.
            snr_db: float32, (batch,): SNR per received symbol that the user was told.

        Returns:
            complex64, (batch, max_length): unit mean power over the symbols used, zero behind them.
        """
        condition = self.conditions(lengths, snr_db)
        return as_symbols(self.encoder(as_features(csi), condition), self.mask(lengths))

    def decode(
        self,
        received: Tensor,
        lengths: Tensor,
        snr_db: Tensor,
        present: Tensor,
        announced_db: Tensor | None = None,
    ) -> Tensor:
        """Recover the CSI of users together.

        Args:
            received: complex64, (batch, user, max_length): zero behind the symbols sent.
            lengths: int64, (batch,): symbols sent by each user.
            snr_db: float32, (batch, user): per received symbol.
            present: bool, (batch, user): whose symbols arrived; others' are ignored.
            announced_db: float32, (batch, user): SNR that users were told when they encoded; None: `snr_db`.

        Returns:
            complex64, (batch, user, tap, beam): CSI of unit mean power but for what noise leaves uncertain.
        """
        n_users = received.shape[1]
        mask = (self.mask(lengths)[:, None] & present[..., None]).to(torch.float32)
        code = torch.cat([received.real * mask, received.imag * mask], -1)
        condition = self.conditions(lengths[:, None].expand(-1, n_users), snr_db, announced_db)
        real, imag = self.decoder(code, condition, present.to(torch.float32)).chunk(2, -1)
        return torch.complex(real, imag)

    def mask(self, lengths: Tensor) -> Tensor:
        """Which symbols are used; bool, (batch, max_length)."""
        return torch.arange(self.config.max_length, device=lengths.device) < lengths[:, None]

    def conditions(self, lengths: Tensor, snr_db: Tensor, announced_db: Tensor | None = None) -> Tensor:
        """SNR, the SNR that was announced (None: the same), and length, as numbers of about unit size.

        Returns:
            float32, (..., `N_CONDITIONS`).
        """
        share = lengths.to(torch.float32) / self.config.max_length
        snr = snr_db.clamp(-20.0, 40.0) / SNR_SCALE_DB
        announced = snr if announced_db is None else announced_db.clamp(-20.0, 40.0) / SNR_SCALE_DB
        return torch.stack([snr, torch.sigmoid(STEEPNESS * announced), torch.log2(share) / 2, share], -1)


def announced_snr_db(condition: Tensor) -> Tensor:
    """SNR that was announced, in dB; (..., 1) from conditions (..., number)."""
    return torch.logit(condition[..., 1:2]) * (SNR_SCALE_DB / STEEPNESS)


def as_features(csi: Tensor) -> Tensor:
    """CSI of unit mean power as real numbers; float32, (batch, tap, 2 beams)."""
    power = (csi.real.square() + csi.imag.square()).mean((-2, -1), keepdim=True)
    scale = torch.rsqrt(power + _TINY)
    return torch.cat([csi.real * scale, csi.imag * scale], -1)


def as_symbols(code: Tensor, mask: Tensor) -> Tensor:
    """Real code to symbols of unit mean power over those that are used.

    Args:
        code: float32, (batch, 2 max_length).
        mask: bool, (batch, max_length): symbols that are used.

    Returns:
        complex64, (batch, max_length).
    """
    real, imag = (part * mask for part in code.chunk(2, -1))
    energy = (real.square() + imag.square()).sum(-1, keepdim=True)
    scale = torch.sqrt(mask.sum(-1, keepdim=True) / (energy + _TINY))
    return torch.complex(real * scale, imag * scale)

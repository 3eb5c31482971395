"""The interface of every network that sends pictures over a precoded downlink: picture coder and transmitter.

A picture is cut into tokens of `PIXELS` x `PIXELS` pixels, each of which becomes `uses` complex symbols. The
subcarriers form groups of neighbours; as many tokens as there are groups make a block, which fills a few OFDM symbols.
The symbols of a token are spread evenly over the groups (`interleave`), so that no token is lost in a fade.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

PIXELS = 8
"""Side of a token, in pixels."""

MULTIPLE = 64
"""Sides of pictures are multiples of this."""

SEND_CONDITIONS = 3
"""Numbers that tell the encoder the conditions: SNR, quality of the CSI, expected SINR behind the precoder."""

HEARD_CONDITIONS = 2
"""Numbers that tell the decoder the conditions: mean SINR of the reference symbols, and its spread."""

CSI_EXTRAS = 2
"""Numbers per subcarrier beside the CSI itself: gain of the channel, expected SINR."""


class NetworkConfig(BaseModel):
    """Numerology and choices; every kind adds its own fields.

    The numerology is filled from what the network is trained for, unless given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_antennas: int = Field(4, ge=1, le=256, description="of the base station")
    n_subcarriers: int = Field(256, ge=1, le=4096, description="subcarriers that carry pictures")
    group: int = Field(4, ge=1, le=64, description="neighbouring subcarriers of a group")
    uses: int = Field(16, ge=1, le=256, description="complex symbols of a token of 8 x 8 pixels")
    precoder: Literal["rzf", "wmmse", "learned"] = Field("rzf", description="who makes the precoding matrix")

    @model_validator(mode="after")
    def _divisible(self) -> NetworkConfig:
        if self.n_subcarriers % self.group or self.uses % self.group:
            raise ValueError(f"group={self.group} must divide n_subcarriers={self.n_subcarriers} and uses={self.uses}")
        return self

    @property
    def n_groups(self) -> int:
        """Groups of subcarriers, and tokens of a block."""
        return self.n_subcarriers // self.group

    @property
    def block_symbols(self) -> int:
        """OFDM symbols that a block fills."""
        return self.uses // self.group

    @property
    def csi_features(self) -> int:
        """Real numbers that tell a user's CSI in one group."""
        return self.group * (2 * self.n_antennas + CSI_EXTRAS)


class Network(nn.Module):
    """Codes pictures of several users, and makes of their symbols what the antennas send.

    A network is a subclass in a module of this package that sets `kind`, `Config`, and in its constructor real
    modules, so that inference engines can run them:

    - `encoder(pictures, condition)`: (batch, 3, height, width) in [0, 1], (batch, `SEND_CONDITIONS`) -> (batch, token,
      2 uses), tokens by rows;
    - `decoder(received, condition)`: (batch, row, column, 3 uses), (batch, `HEARD_CONDITIONS`) -> (batch, 3, height,
      width), not limited to [0, 1]; the last axis holds real parts, imaginary parts, and for every symbol its
      reliability between 0 and 1;
    - `transmitter(symbols, csi, condition)`, or None where nothing stands between encoder and precoding matrix:
      (batch, user, block, group, 2 uses), (batch, user, group, `csi_features`), (batch, user, `SEND_CONDITIONS`) ->
      symbols of the same shape; corrections of the precoding matrix (batch, user, group, 4), see
      `precoding.corrected`, or None; what is added to the antennas (batch, block, group, 2 antennas uses), or None.
    """

    kind: ClassVar[str]
    """How a card or a training configuration names the network."""

    Config: ClassVar[type[NetworkConfig]]
    """Class of its configuration."""

    encoder: nn.Module
    decoder: nn.Module
    transmitter: nn.Module | None

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config


def to_blocks(code: Tensor, n_groups: int) -> Tensor:
    """Cut tokens into blocks, the last one filled up with zeros; (..., token, n) -> (..., block, group, n)."""
    n_tokens = code.shape[-2]
    n_blocks = -(-n_tokens // n_groups)
    padded = nn.functional.pad(code, (0, 0, 0, n_blocks * n_groups - n_tokens))
    return padded.unflatten(-2, (n_blocks, n_groups))


def interleave(symbols: Tensor) -> Tensor:
    """Spread the symbols of tokens over the groups: (..., token, use) -> (..., group, use).

    Symbol j of token t goes to place j of group t + j n_groups / uses, so that a token meets the whole band.
    """
    return symbols.gather(-2, _sources(symbols).expand_as(symbols))


def deinterleave(symbols: Tensor) -> Tensor:
    """Undo `interleave`; (..., group, use) -> (..., token, use)."""
    return symbols.gather(-2, _targets(symbols).expand_as(symbols))


def to_subcarriers(groups: Tensor, group: int) -> Tensor:
    """Lay places of groups onto subcarriers: (..., block, group, use) -> (..., subcarrier, OFDM symbol)."""
    places = groups.unflatten(-1, (group, groups.shape[-1] // group))
    # (..., block, group, member, symbol) -> (..., group, member, block, symbol)
    return places.movedim(-4, -2).flatten(-4, -3).flatten(-2, -1)


def to_groups(grid: Tensor, group: int, uses: int) -> Tensor:
    """Undo `to_subcarriers`; (..., subcarrier, OFDM symbol) -> (..., block, group, use)."""
    per_block = uses // group
    parts = grid.unflatten(-1, (grid.shape[-1] // per_block, per_block)).unflatten(-3, (-1, group))
    return parts.movedim(-2, -4).flatten(-2, -1)


def _shifts(symbols: Tensor) -> tuple[Tensor, Tensor, int]:
    n, uses = symbols.shape[-2:]
    token = torch.arange(n, device=symbols.device)[:, None]
    shift = (torch.arange(uses, device=symbols.device) * n) // uses
    return token, shift, n


def _sources(symbols: Tensor) -> Tensor:
    token, shift, n = _shifts(symbols)
    return (token - shift) % n


def _targets(symbols: Tensor) -> Tensor:
    token, shift, n = _shifts(symbols)
    return (token + shift) % n

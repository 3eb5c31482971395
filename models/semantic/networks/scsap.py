"""SCSAP: Swin picture coder, CSI semantics fused with those of pictures, precoding by knowledge and by data.

Source: the paper's SCSAP is JSCBF, Wu et al., arXiv 2405.19889. Ours differs where that scheme is bound to one size:
a token of 8 x 8 pixels has its own symbols, so that pictures may have any size; users are joined by means, so that
there may be any number of them; corrections of the precoding matrix start from regularised zero forcing.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ._layers import AttentionFeature, SwinLayer, UserLayer
from .base import HEARD_CONDITIONS, SEND_CONDITIONS, Network, NetworkConfig

_PATCH = 4
_FINE_WINDOW = 4
_COARSE_WINDOW = 8


class ScsapConfig(NetworkConfig):
    """Sizes of the coder and of the transmitter, and which of its parts there are."""

    fine_width: int = Field(32, ge=8, le=512, description="numbers of a patch of 4 x 4 pixels")
    fine_heads: int = Field(2, ge=1, le=16)
    coarse_width: int = Field(96, ge=8, le=1024, description="numbers of a token of 8 x 8 pixels")
    coarse_heads: int = Field(4, ge=1, le=16)
    encoder_layers: tuple[int, int] = Field((2, 2), description="of patches, of tokens")
    decoder_layers: tuple[int, int] = Field((2, 4), description="of patches, of tokens")
    expansion: int = Field(3, ge=1, le=8, description="width of feed-forward layers over that of tokens")
    csi_width: int = Field(64, ge=8, le=1024)
    csi_layers: int = Field(2, ge=0, le=12)
    fusion_width: int = Field(64, ge=8, le=1024)
    fusion_layers: int = Field(2, ge=1, le=12)
    data_width: int = Field(64, ge=8, le=1024)
    data_layers: int = Field(2, ge=1, le=12)
    csi_fusion: bool = Field(False, description="whether CSI semantics and those of the pictures are fused")
    data_branch: bool = Field(False, description="whether there is a data-driven precoder")

    @model_validator(mode="after")
    def _heads_divide(self) -> ScsapConfig:
        for width, heads in (("fine_width", "fine_heads"), ("coarse_width", "coarse_heads")):
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(f"{width}={getattr(self, width)} must be a multiple of {heads}")
        for width in ("csi_width", "fusion_width", "data_width"):
            if getattr(self, width) % _USER_HEADS:
                raise ValueError(f"{width}={getattr(self, width)} must be a multiple of {_USER_HEADS}")
        return self


_USER_HEADS = 4


class Scsap(Network):
    """Semantic precoding; without fusion, data branch and learned precoding matrix, its picture coder alone."""

    kind = "scsap"
    Config: ClassVar[type[NetworkConfig]] = ScsapConfig

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        c = cast(ScsapConfig, config)
        self.encoder = SwinEncoder(c)
        self.decoder = SwinDecoder(c)
        needed = c.csi_fusion or c.data_branch or c.precoder == "learned"
        self.transmitter = Transmitter(c) if needed else None


class SwinEncoder(nn.Module):
    """Picture to symbols: patches, Swin layers, merged to tokens, Swin layers, symbols."""

    def __init__(self, c: ScsapConfig) -> None:
        super().__init__()
        self.embed = nn.Linear(3 * _PATCH**2, c.fine_width)
        self.fine = _swin(c.fine_width, c.fine_heads, _FINE_WINDOW, c.encoder_layers[0], c.expansion)
        self.fine_feature = AttentionFeature(c.fine_width, SEND_CONDITIONS)
        self.merge_norm = nn.LayerNorm(4 * c.fine_width)
        self.merge = nn.Linear(4 * c.fine_width, c.coarse_width)
        self.coarse = _swin(c.coarse_width, c.coarse_heads, _COARSE_WINDOW, c.encoder_layers[1], c.expansion)
        self.coarse_feature = AttentionFeature(c.coarse_width, SEND_CONDITIONS)
        self.norm = nn.LayerNorm(c.coarse_width)
        self.out = nn.Linear(c.coarse_width, 2 * c.uses)

    def forward(self, pictures: Tensor, condition: Tensor) -> Tensor:
        """See `Network`."""
        x = nn.functional.pixel_unshuffle(2 * pictures - 1, _PATCH).permute(0, 2, 3, 1)
        x = self.fine_feature(self.fine(self.embed(x)), condition)
        b, rows, columns, width = x.shape
        x = x.reshape(b, rows // 2, 2, columns // 2, 2, width).transpose(2, 3).reshape(b, rows // 2, columns // 2, -1)
        x = self.coarse_feature(self.coarse(self.merge(self.merge_norm(x))), condition)
        return self.out(self.norm(x)).flatten(1, 2)


class SwinDecoder(nn.Module):
    """What was received to a picture: Swin layers of tokens, of patches, one convolution across patches."""

    def __init__(self, c: ScsapConfig) -> None:
        super().__init__()
        self.embed = nn.Linear(3 * c.uses, c.coarse_width)
        self.coarse_feature = AttentionFeature(c.coarse_width, HEARD_CONDITIONS)
        self.coarse = _swin(c.coarse_width, c.coarse_heads, _COARSE_WINDOW, c.decoder_layers[1], c.expansion)
        self.split_norm = nn.LayerNorm(c.coarse_width)
        self.split = nn.Linear(c.coarse_width, 4 * c.fine_width)
        self.fine_feature = AttentionFeature(c.fine_width, HEARD_CONDITIONS)
        self.fine = _swin(c.fine_width, c.fine_heads, _FINE_WINDOW, c.decoder_layers[0], c.expansion)
        self.norm = nn.LayerNorm(c.fine_width)
        self.out = nn.Conv2d(c.fine_width, 3 * _PATCH**2, 3, padding=1)
        # Fresh weights shall give about grey, not noise that takes long to unlearn.
        nn.init.normal_(self.out.weight, std=0.01)

    def forward(self, received: Tensor, condition: Tensor) -> Tensor:
        """See `Network`."""
        x = self.coarse(self.coarse_feature(self.embed(received), condition))
        x = self.split(self.split_norm(x))
        b, rows, columns, width = x.shape
        x = x.reshape(b, rows, columns, 2, 2, width // 4).transpose(2, 3).reshape(b, 2 * rows, 2 * columns, -1)
        x = self.norm(self.fine(self.fine_feature(x, condition)))
        return 0.5 + 0.5 * nn.functional.pixel_shuffle(self.out(x.permute(0, 3, 1, 2)), _PATCH)


class Transmitter(nn.Module):
    """Fuses CSI and pictures, tells corrections of the precoding matrix, and precodes by itself; starts as nothing."""

    def __init__(self, c: ScsapConfig) -> None:
        super().__init__()
        self.config = c
        self.csi = UserTransformer(c.csi_features + SEND_CONDITIONS, c.csi_width, c.csi_layers, c.csi_width, c)
        reach = 2 * c.uses + c.csi_width
        if c.csi_fusion:
            self.fusion = UserTransformer(reach, c.fusion_width, c.fusion_layers, 2 * c.uses, c)
            nn.init.zeros_(self.fusion.out.weight)
        if c.precoder == "learned":
            self.knowledge = nn.Sequential(nn.LayerNorm(c.csi_width), nn.Linear(c.csi_width, 4))
            nn.init.zeros_(cast(nn.Linear, self.knowledge[1]).weight)
            nn.init.zeros_(cast(nn.Linear, self.knowledge[1]).bias)
        if c.data_branch:
            self.data = UserTransformer(reach, c.data_width, c.data_layers, 2 * c.n_antennas * c.uses, c)
            self.data_share = nn.Parameter(torch.zeros(()))

    def forward(self, symbols: Tensor, csi: Tensor, condition: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """See `Network`."""
        c = self.config
        told = condition[:, :, None].expand(*csi.shape[:3], -1)
        semantics = self.csi(torch.cat([csi, told], -1)[:, :, None])
        corrections = self.knowledge(semantics[:, :, 0]) if c.precoder == "learned" else None
        semantics = semantics.expand(*symbols.shape[:4], -1)
        if c.csi_fusion:
            symbols = symbols + self.fusion(torch.cat([symbols, semantics], -1))
        added = None
        if c.data_branch:
            added = self.data_share * self.data(torch.cat([symbols, semantics], -1)).sum(1)
        return symbols, corrections, added


class UserTransformer(nn.Module):
    """Transformer over groups of subcarriers for any number of users."""

    def __init__(self, n_in: int, width: int, layers: int, n_out: int, c: ScsapConfig) -> None:
        super().__init__()
        self.embed = nn.Linear(n_in, width)
        self.place = nn.Parameter(0.02 * torch.randn(c.n_groups, width))
        self.layers = nn.ModuleList(UserLayer(width, _USER_HEADS, 2 * width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, n_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, user, block, group, in) -> (batch, user, block, group, out)."""
        x = self.embed(x) + self.place
        for layer in self.layers:
            x = layer(x)
        return self.out(self.norm(x))


def _swin(width: int, heads: int, window: int, layers: int, expansion: int) -> nn.Sequential:
    return nn.Sequential(*(SwinLayer(width, heads, window, k % 2 == 1, expansion * width) for k in range(layers)))

"""SA-RCA-MUNet and its relatives: one Transformer, several ways for neighbouring users to help each other.

After Zhang et al., "Residual cross-attention Transformer-based multi-user CSI feedback with deep joint source-channel
coding" (IEEE Wireless Communications Letters 14(8), 2025), as arXiv 2602.21672 uses it. Neither gives sizes, and the
residual cut is described in words alone: both readings of it are here, and the result is an interpretation.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ._layers import Attention, Embedding, FeedForward, SelfLayer, TokenEncoder
from ._linear import LinearCode, silent, start_linear
from .base import AttentionConfig, Network, NetworkConfig

Fusion = Literal["residual-value", "residual-token", "cross", "sum", "none"]


class MUNetConfig(AttentionConfig):
    """Sizes, and how users are joined."""

    fusion: Fusion = Field(
        "residual-value",
        description="residual-value: SA-RCA-MUNet, x_i + V_i - Attn(Q_j, K_i, V_i); residual-token: SA-RCA-MUNet, "
        "x_i + x_j - Attn(Q_j, K_i, V_i); cross: SA-CA-MUNet, queries of the user over keys and values of the others; "
        "sum: Distributed DeepCMC, a share of the others' features is added; none: vanilla Transformer, users alone",
    )
    joint_layers: int = Field(2, ge=1, le=16, description="last layers of the decoder, where users meet")


class MUNet(Network):
    """Tokens are delay taps; every user passes the same layers, then those in which users meet.

    Encoder and decoder stand beside the linear code and begin as nothing else, like all networks here: what is
    compared is what each learns beyond it.
    """

    kind = "munet"
    Config = MUNetConfig

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        assert isinstance(config, MUNetConfig)
        self.encoder = TokenEncoder(config)
        self.decoder = _Decoder(config)

    def start_from(self, csi: Tensor) -> None:
        """Begin with the linear code that is best for these draws."""
        start_linear(self, csi)


class _Decoder(nn.Module):
    def __init__(self, c: MUNetConfig) -> None:
        super().__init__()
        self.n_tokens, self.code_width, self.fusion = c.n_taps, c.code_width, c.fusion
        self.linear = LinearCode(c)
        self.expand = nn.Linear(2 * c.max_length, c.n_taps * c.code_width)
        self.embedding = Embedding(c.n_taps, c.code_width + 2 * c.n_antennas, c.width)
        alone = c.decoder_layers - c.joint_layers
        self.alone = nn.ModuleList(SelfLayer(c.width, c.heads, c.feedforward) for _ in range(alone))
        joint = SelfLayer if c.fusion in ("none", "sum") else _JointLayer
        self.joint = nn.ModuleList(joint(c.width, c.heads, c.feedforward) for _ in range(c.joint_layers))
        if c.fusion == "sum":
            # A plain sum would leave users alike; each feature has its own share of the others'.
            self.share = nn.Parameter(torch.full((c.width,), 0.5))
        self.norm = nn.LayerNorm(c.width)
        self.out = silent(nn.Linear(c.width, 2 * c.n_antennas))

    def forward(self, code: Tensor, condition: Tensor, present: Tensor) -> Tensor:
        n_batch, n_users = code.shape[:2]
        flat, flat_condition = code.flatten(0, 1), condition.flatten(0, 1)
        estimate = self.linear.estimate(flat, flat_condition)
        raw = self.expand(flat).reshape(n_batch * n_users, self.n_tokens, self.code_width)
        x = self.embedding(torch.cat([raw, estimate], 2), flat_condition)
        for layer in self.alone:
            x = layer(x)
        x = x.reshape(n_batch, n_users, *x.shape[1:])
        # Weight of user j's tokens for user i: equal among the others that are there.
        others = present[:, None, :] * (1 - torch.eye(n_users, dtype=present.dtype, device=present.device))
        if self.fusion == "sum":
            x = x + self.share * torch.einsum("bij,bjtd->bitd", others, x)
        for layer in self.joint:
            if isinstance(layer, _JointLayer):
                x = layer(x, others, self.fusion)
            else:
                x = layer(x.flatten(0, 1)).reshape(x.shape)
        return estimate.reshape(n_batch, n_users, *estimate.shape[1:]) + self.out(self.norm(x))


class _JointLayer(nn.Module):
    """Attention between users, then feed-forward."""

    def __init__(self, width: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm_feedforward = nn.LayerNorm(width)
        self.feedforward = FeedForward(width, feedforward)

    def forward(self, x: Tensor, others: Tensor, fusion: str) -> Tensor:
        """Mix.

        Args:
            x: (batch, user, token, width).
            others: (batch, user, other user): 1 for another user that is there.
            fusion: of the configuration; not "sum" or "none".
        """
        n_batch, n_users = x.shape[:2]
        normed = self.norm(x)
        attention = self.attention
        query, key, value = attention.project(normed)
        # All ordered pairs (i, j): own[i] beside other[j].
        own = {n: t[:, :, None].expand(-1, -1, n_users, -1, -1).flatten(0, 2) for n, t in _named(query, key, value)}
        other = {n: t[:, None].expand(-1, n_users, -1, -1, -1).flatten(0, 2) for n, t in _named(query, key, value)}
        if fusion == "cross":
            mixed = attention.mix(own["query"], other["key"], other["value"])
        else:
            mixed = attention.mix(other["query"], own["key"], own["value"])
        pairs = mixed.reshape(n_batch, n_users, n_users, *mixed.shape[1:])
        weight = others / others.sum(-1, keepdim=True).clamp(min=1)
        mean = torch.einsum("bij,bijtd->bitd", weight, pairs)
        if fusion == "cross":
            x = x + attention.out(mean)
        elif fusion == "residual-value":
            x = x + attention.out(value - mean)
        else:
            x = x + torch.einsum("bij,bjtd->bitd", weight, x) - attention.out(mean)
        return x + self.feedforward(self.norm_feedforward(x))


def _named(query: Tensor, key: Tensor, value: Tensor) -> list[tuple[str, Tensor]]:
    return [("query", query), ("key", key), ("value", value)]

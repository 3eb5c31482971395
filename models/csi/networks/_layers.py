"""Layers that the attention networks share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._linear import LinearCode, silent
from .base import N_CONDITIONS, AttentionConfig


class Attention(nn.Module):
    """Multi-head attention, among tokens or between those of users."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        """(batch, token, width) -> (batch, head, token, width / heads)."""
        return x.reshape(*x.shape[:2], self.heads, x.shape[2] // self.heads).transpose(1, 2)

    def mix(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        """Attention between projected tokens, before the output projection; (batch, query, width)."""
        q, k, v = self.split(query), self.split(key), self.split(value)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return mixed.transpose(1, 2).reshape(query.shape)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens; (batch, token, width) each."""
        parts = (self.query, self.key, self.value)
        # At once: three small products take longer than one.
        weight = torch.cat([part.weight for part in parts])
        query, key, value = nn.functional.linear(x, weight, torch.cat([part.bias for part in parts])).chunk(3, -1)
        return query, key, value

    def forward(self, x: Tensor) -> Tensor:
        """Attention among tokens; (batch, token, width) -> the same."""
        return self.out(self.mix(*self.project(x)))


class FeedForward(nn.Sequential):
    """Two affine layers with GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))


class SelfLayer(nn.Module):
    """Conventional Transformer layer, normalised before its parts."""

    def __init__(self, width: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm_feedforward = nn.LayerNorm(width)
        self.feedforward = FeedForward(width, feedforward)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, token, width) -> the same."""
        x = x + self.attention(self.norm(x))
        return x + self.feedforward(self.norm_feedforward(x))


class Embedding(nn.Module):
    """Tokens to `width` numbers each, with their place and the conditions added."""

    def __init__(self, n_tokens: int, n_in: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_in, width)
        self.place = nn.Parameter(0.02 * torch.randn(n_tokens, width))
        self.condition = nn.Sequential(
            nn.Linear(N_CONDITIONS, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """(batch, token, in), (batch, condition) -> (batch, token, width)."""
        return self.linear(tokens) + self.place + self.condition(condition)[:, None]


class TokenEncoder(nn.Module):
    """Transformer encoder over delay taps, and a linear layer from all of them to the code, beside the linear code."""

    def __init__(self, c: AttentionConfig) -> None:
        super().__init__()
        self.linear = LinearCode(c)
        self.embedding = Embedding(c.n_taps, 2 * c.n_antennas, c.width)
        self.layers = nn.ModuleList(SelfLayer(c.width, c.heads, c.feedforward) for _ in range(c.encoder_layers))
        self.norm = nn.LayerNorm(c.width)
        self.narrow = nn.Linear(c.width, c.code_width)
        self.to_code = silent(nn.Linear(c.n_taps * c.code_width, 2 * c.max_length))

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """(batch, tap, 2 beams), (batch, condition) -> (batch, 2 max_length)."""
        x = self.embedding(features, condition)
        for layer in self.layers:
            x = layer(x)
        return self.linear.encode(features, condition) + self.to_code(self.narrow(self.norm(x)).flatten(1))

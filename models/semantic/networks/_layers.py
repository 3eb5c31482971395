"""Layers of the semantic precoding networks: windows of pictures, groups of subcarriers, users among each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FeedForward(nn.Sequential):
    """Two affine layers with GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))


class Attention(nn.Module):
    """Multi-head attention among tokens, with a bias for every head and pair where one is given."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(batch, token, width) -> the same."""
        b, n, width = x.shape
        q, k, v = self.project(x).reshape(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out(mixed.transpose(1, 2).reshape(b, n, width))


class SwinLayer(nn.Module):
    """Attention within windows of a picture, shifted by half a window in every second layer.

    Source: Liu et al., "Swin Transformer", ICCV 2021.
    """

    def __init__(self, width: int, heads: int, window: int, shifted: bool, feedforward: int) -> None:
        super().__init__()
        self.window, self.shifted = window, shifted
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm_feedforward = nn.LayerNorm(width)
        self.feedforward = FeedForward(width, feedforward)
        self.pair: Tensor
        self.bias = nn.Parameter(0.02 * torch.randn(heads, (2 * window - 1) ** 2))
        place = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        step = place[:, :, None] - place[:, None] + window - 1
        self.register_buffer("pair", step[0] * (2 * window - 1) + step[1], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, row, column, width) -> the same; rows and columns are multiples of the window."""
        b, rows, columns, width = x.shape
        w = self.window
        bias = self.bias[:, self.pair]
        normed = self.norm(x)
        # One window that is the whole picture has no borders to shift across.
        shift = w // 2 if self.shifted and (rows > w or columns > w) else 0
        if shift:
            normed = torch.roll(normed, (-shift, -shift), (1, 2))
            bias = bias + self._apart(rows, columns, shift, x)[:, None]
        windows = normed.reshape(b, rows // w, w, columns // w, w, width).transpose(2, 3).reshape(-1, w * w, width)
        if shift:
            # Each window has its own mask: attention takes them as batch x window.
            bias = bias.expand(b, *bias.shape).flatten(0, 1) if b > 1 else bias
        mixed = self.attention(windows, bias)
        mixed = mixed.reshape(b, rows // w, columns // w, w, w, width).transpose(2, 3).reshape(b, rows, columns, width)
        if shift:
            mixed = torch.roll(mixed, (shift, shift), (1, 2))
        x = x + mixed
        return x + self.feedforward(self.norm_feedforward(x))

    def _apart(self, rows: int, columns: int, shift: int, like: Tensor) -> Tensor:
        """Minus infinity between tokens that only the roll has made neighbours; (window, token, token)."""
        w = self.window

        def regions(n: int) -> Tensor:
            at = torch.arange(n, device=like.device)
            return (at >= n - w).long() + (at >= n - shift).long()

        region = 3 * regions(rows)[:, None] + regions(columns)
        region = region.reshape(rows // w, w, columns // w, w).transpose(1, 2).reshape(-1, w * w)
        return torch.where(region[:, :, None] == region[:, None], 0.0, -1e4).to(like.dtype)


class AttentionFeature(nn.Module):
    """Scales channels by what the conditions and the mean over the picture say.

    Source: the attention-feature module of Xu et al., "Wireless Image Transmission Using Deep Source Channel Coding
    With Attention Modules", IEEE TCSVT 32(4), 2022.
    """

    def __init__(self, width: int, n_conditions: int) -> None:
        super().__init__()
        hidden = max(width // 4, 8)
        self.layers = nn.Sequential(nn.Linear(width + n_conditions, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(batch, row, column, width), (batch, condition) -> the same as x."""
        gain = torch.sigmoid(self.layers(torch.cat([x.mean((1, 2)), condition], -1)))
        # Twice, so that fresh weights leave the scale alone.
        return x * (2 * gain[:, None, None])


class UserLayer(nn.Module):
    """Transformer layer over the groups of subcarriers, users joined by their mean: any number, in any order."""

    def __init__(self, width: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm_users = nn.LayerNorm(width)
        self.users = nn.Linear(width, width)
        self.norm_feedforward = nn.LayerNorm(width)
        self.feedforward = FeedForward(width, feedforward)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, user, block, group, width) -> the same."""
        x = x + self.attention(self.norm(x).flatten(0, 2)).unflatten(0, x.shape[:3])
        x = x + self.users(self.norm_users(x)).mean(1, keepdim=True)
        return x + self.feedforward(self.norm_feedforward(x))

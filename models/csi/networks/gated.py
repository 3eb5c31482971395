"""Our network: a linear code that is right from the first step, and layers that learn what it leaves over."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ._layers import Attention, Embedding, FeedForward
from ._linear import LinearCode, silent, start_linear
from .base import N_CONDITIONS, AttentionConfig, Network, NetworkConfig

_NEVER = 1e4

_SHUT = -2.0
"""Initial bias of the gates: a neighbour counts for little until training finds that it helps."""

_CONDITION_WIDTH = 32


class GatedConfig(AttentionConfig):
    """Sizes and choices."""

    tokens: Literal["delay", "angle"] = Field("angle", description="what a token is: a delay tap or a beam")
    joint_layers: int = Field(2, ge=0, le=16, description="last layers of the decoder, where users help each other")


class Gated(Network):
    """Transformers beside a linear code and its linear decoder, with gates between users.

    - The linear code is that of `KltCode`, power by SNR and length included; it starts from draws and is trained on.
    - A token is a beam over all delays (or a delay over all beams): neighbours share beams and delays, not phases.
      In the decoder it holds the linear estimate there.
    - Layers weigh the CSI before it is coded, and the linear estimate after: what is weak in a drop is left out.
    - The conditions scale and shift every layer's input, so one set of weights serves every SNR and length.
    - In the last layers a user looks at the others' tokens and at a token that says nothing; what it found is scaled
      by a gate that knows the user's tokens and the answer. With nobody else there the answer is exactly zero.
    """

    kind = "gated"
    Config = GatedConfig

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        assert isinstance(config, GatedConfig)
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config)

    def start_from(self, csi: Tensor) -> None:
        """Begin with the linear code that is best for these draws."""
        start_linear(self, csi)


class _Layer(nn.Module):
    """Self-attention, gated attention to other users if any, feed-forward; inputs scaled and shifted by conditions."""

    def __init__(self, c: GatedConfig, n_tokens: int, joint: bool) -> None:
        super().__init__()
        width = c.width
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(_CONDITION_WIDTH, (6 if joint else 4) * width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        self.attention = Attention(width, c.heads)
        self.feedforward = FeedForward(width, c.feedforward)
        self.joint = joint
        if joint:
            self.others = Attention(width, c.heads)
            # The same place in another user's channel is what most likely helps.
            self.near = nn.Parameter(torch.zeros(c.heads, n_tokens, n_tokens) + 2.0 * torch.eye(n_tokens))
            self.nothing = nn.Parameter(0.02 * torch.randn(1, width))
            self.gate = nn.Linear(2 * width, width)
            nn.init.zeros_(self.gate.weight)
            nn.init.constant_(self.gate.bias, _SHUT)

    def forward(self, x: Tensor, condition: Tensor, present: Tensor | None = None) -> Tensor:
        """Mix.

        Args:
            x: (batch, token, width); where there are users, those of one drop follow each other.
            condition: (batch, number).
            present: (drop, user): 1 for users that are heard; None without users.
        """
        modulation = self.modulate(condition).reshape(x.shape[0], 1, 6 if self.joint else 4, x.shape[2])
        parts = modulation.unbind(2)
        normed = self.norm(x) * (1 + parts[0]) + parts[1]
        x = x + self.attention(normed, normed)
        if self.joint and present is not None and present.shape[1] > 1:
            x = x + self._from_others(self.norm(x) * (1 + parts[4]) + parts[5], present)
        return x + self.feedforward(self.norm(x) * (1 + parts[2]) + parts[3])

    def _from_others(self, x: Tensor, present: Tensor) -> Tensor:
        n_all, n_tokens, width = x.shape
        n_drops, n_users = present.shape
        attention = self.others
        # Of each user the tokens of all others: (drop, user, other, token, width), then in a row, then the silence.
        rest = [[j for j in range(n_users) if j != i] for i in range(n_users)]
        index = torch.tensor(rest, dtype=torch.long, device=x.device).reshape(n_users * (n_users - 1))
        unheard = ((1 - present) * -_NEVER)[:, index].reshape(n_all, 1, 1, n_users - 1, 1)
        near = self.near.repeat(1, 1, n_users - 1).reshape(1, attention.heads, n_tokens, n_users - 1, n_tokens)
        bias = nn.functional.pad((near + unheard).reshape(n_all, attention.heads, n_tokens, -1), (0, 1))

        def from_others(projected: Tensor, silence: Tensor) -> Tensor:
            picked = projected.reshape(n_drops, n_users, n_tokens, width)[:, index]
            picked = picked.reshape(n_all, (n_users - 1) * n_tokens, width)
            return torch.cat([picked, silence.reshape(1, 1, width).expand(n_all, 1, width)], 1)

        key = from_others(attention.key(x), attention.key(self.nothing))
        value = from_others(attention.value(x), torch.zeros_like(self.nothing))
        # No bias behind the values: nothing heard is nothing said.
        found = nn.functional.linear(attention.mix(attention.query(x), key, value, bias), attention.out.weight)
        return found * torch.sigmoid(self.gate(torch.cat([x, found], 2)))


class _Conditions(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Linear(N_CONDITIONS, _CONDITION_WIDTH),
            nn.SiLU(),
            nn.Linear(_CONDITION_WIDTH, _CONDITION_WIDTH),
            nn.SiLU(),
        )


class _Encoder(nn.Module):
    def __init__(self, c: GatedConfig) -> None:
        super().__init__()
        self.tokens = c.tokens
        n_tokens, n_in = _token_shape(c)
        self.linear = LinearCode(c)
        self.conditions = _Conditions()
        self.embedding = Embedding(n_tokens, n_in, c.width)
        self.layers = nn.ModuleList(_Layer(c, n_tokens, joint=False) for _ in range(c.encoder_layers))
        self.norm = nn.LayerNorm(c.width)
        self.narrow = nn.Linear(c.width, c.code_width)
        self.to_code = silent(nn.Linear(n_tokens * c.code_width, 2 * c.max_length))
        self.weigh = silent(nn.Linear(c.width, n_in // 2))

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        x = self.embedding(_tokens(features, self.tokens), condition)
        modulation = self.conditions(condition)
        for layer in self.layers:
            x = layer(x, modulation)
        x = self.norm(x)
        weighed = features * _spread(self.weigh(x), self.tokens)
        return self.linear.encode(weighed, condition) + self.to_code(self.narrow(x).flatten(1))


class _Decoder(nn.Module):
    def __init__(self, c: GatedConfig) -> None:
        super().__init__()
        self.tokens, self.size, self.code_width = c.tokens, (c.n_taps, c.n_antennas), c.code_width
        self.n_tokens, n_out = _token_shape(c)
        self.linear = LinearCode(c)
        self.expand = nn.Linear(2 * c.max_length, self.n_tokens * c.code_width)
        self.conditions = _Conditions()
        self.embedding = Embedding(self.n_tokens, c.code_width + n_out, c.width)
        self.layers = nn.ModuleList(
            _Layer(c, self.n_tokens, joint=layer >= c.decoder_layers - c.joint_layers)
            for layer in range(c.decoder_layers)
        )
        self.norm = nn.LayerNorm(c.width)
        self.out = silent(nn.Linear(c.width, n_out))
        self.weigh = silent(nn.Linear(c.width, n_out // 2))

    def forward(self, code: Tensor, condition: Tensor, present: Tensor) -> Tensor:
        n_batch, n_users = code.shape[:2]
        flat, flat_condition = code.flatten(0, 1), condition.flatten(0, 1)
        estimate = self.linear.estimate(flat, flat_condition)
        raw = self.expand(flat).reshape(n_batch * n_users, self.n_tokens, self.code_width)
        x = self.embedding(torch.cat([raw, _tokens(estimate, self.tokens)], 2), flat_condition)
        modulation = self.conditions(flat_condition)
        for layer in self.layers:
            x = layer(x, modulation, present)
        x = self.norm(x)
        found = estimate * _spread(self.weigh(x), self.tokens) + _features(self.out(x), self.tokens, self.size)
        return found.reshape(n_batch, n_users, self.size[0], 2 * self.size[1])


def _spread(gain: Tensor, tokens: str) -> Tensor:
    """Factors around 1, (batch, token, complex number), for both parts of each number: (batch, tap, 2 beams)."""
    by_tap = 1 + (gain if tokens == "delay" else gain.transpose(1, 2))
    return torch.cat([by_tap, by_tap], 2)


def _token_shape(c: GatedConfig) -> tuple[int, int]:
    return (c.n_taps, 2 * c.n_antennas) if c.tokens == "delay" else (c.n_antennas, 2 * c.n_taps)


def _tokens(features: Tensor, tokens: str) -> Tensor:
    """(batch, tap, 2 beams) -> (batch, token, in)."""
    if tokens == "delay":
        return features
    real, imag = features.chunk(2, 2)
    return torch.cat([real, imag], 1).transpose(1, 2)


def _features(x: Tensor, tokens: str, size: tuple[int, int]) -> Tensor:
    """(batch, token, out) -> (batch, tap, 2 beams)."""
    if tokens == "delay":
        return x
    n_taps = size[0]
    return torch.cat([x[:, :, :n_taps].transpose(1, 2), x[:, :, n_taps:].transpose(1, 2)], 2)

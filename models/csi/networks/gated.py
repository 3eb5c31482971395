"""Our network: a linear code that is right from the first step, and layers that learn what it leaves over."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..klt import KltCode
from ._layers import Attention, Embedding, FeedForward
from .base import N_CONDITIONS, SNR_SCALE_DB, AttentionConfig, Network, NetworkConfig

_NEVER = 1e4

_SHUT = -2.0
"""Initial bias of the gates: a neighbour counts for little until training finds that it helps."""

_CONDITION_WIDTH = 32
_FLOOR = 1e-6


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
        code = KltCode(csi.cpu().numpy(), joint=False)
        with torch.no_grad():
            for linear in (self.encoder.linear, self.decoder.linear):
                assert isinstance(linear, _LinearCode)
                linear.set(torch.from_numpy(code.basis.copy()), torch.from_numpy(code.variances.copy()))


class _LinearCode(nn.Module):
    """Basis and variances of a linear code, and its powers by SNR and length."""

    def __init__(self, c: GatedConfig) -> None:
        super().__init__()
        self.size, self.n = c.n_taps * c.n_antennas, c.max_length
        # Entries of unit size, so that they move as slowly as other weights do for their size.
        self.basis = nn.Parameter(torch.randn(2, self.size, self.n) / math.sqrt(2))
        self.log_variances = nn.Parameter(torch.zeros(self.n))

    def set(self, basis: Tensor, variances: Tensor) -> None:
        """Take over a KLT: complex (size, component), (component,)."""
        n = min(self.n, basis.shape[1])
        self.basis[:, :, :n] = torch.stack([basis.real, basis.imag])[:, :, :n] * math.sqrt(self.size)
        self.log_variances[:n] = variances[:n].clamp(min=1e-4).log().to(self.log_variances.dtype)

    def matrix(self) -> tuple[Tensor, Tensor]:
        """Real and imaginary part, (size, component) each."""
        real, imag = (self.basis / math.sqrt(self.size)).unbind(0)
        return real, imag

    def powers(self, condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Powers and standard deviations of the components, and noise power; (..., component), (component,), (..., 1).

        See `KltCode.powers`; too weak components are left out step by step.
        """
        noise = torch.pow(10.0, -condition[..., :1] * (SNR_SCALE_DB / 10))
        length = condition[..., 3:4] * self.n
        root = torch.exp(0.5 * self.log_variances)
        used = (torch.arange(self.n, device=root.device) < length - 0.5).to(root.dtype)
        power = used
        for _ in range(4):
            scale = (length + used.sum(-1, keepdim=True) * noise) / (root * used).sum(-1, keepdim=True).clamp(
                min=_FLOOR
            )
            power = (scale * root - noise) * used
            used = used * (power > 0).to(root.dtype)
        return power.clamp(min=0.0), root, noise

    def encode(self, features: Tensor, condition: Tensor) -> Tensor:
        """(batch, tap, 2 beams) -> (batch, 2 component)."""
        x, y = (part.flatten(1) for part in features.chunk(2, -1))
        a, b = self.matrix()
        power, root, _ = self.powers(condition)
        amplitude = torch.sqrt(power + _FLOOR) / root
        # Times the conjugate basis.
        return torch.cat([(x @ a + y @ b) * amplitude, (y @ a - x @ b) * amplitude], -1)

    def decode(self, code: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, 2 component) -> real and imaginary part, (batch, size) each: LMMSE of independent components."""
        power, root, noise = self.powers(condition)
        gain = root * torch.sqrt(power + _FLOOR) / (power + noise)
        x, y = (part * gain for part in code.chunk(2, -1))
        a, b = self.matrix()
        return x @ a.mT - y @ b.mT, x @ b.mT + y @ a.mT


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
        self.linear = _LinearCode(c)
        self.conditions = _Conditions()
        self.embedding = Embedding(n_tokens, n_in, c.width)
        self.layers = nn.ModuleList(_Layer(c, n_tokens, joint=False) for _ in range(c.encoder_layers))
        self.norm = nn.LayerNorm(c.width)
        self.narrow = nn.Linear(c.width, c.code_width)
        self.to_code = _silent(nn.Linear(n_tokens * c.code_width, 2 * c.max_length))
        self.weigh = _silent(nn.Linear(c.width, n_in // 2))

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
        self.linear = _LinearCode(c)
        self.expand = nn.Linear(2 * c.max_length, self.n_tokens * c.code_width)
        self.conditions = _Conditions()
        self.embedding = Embedding(self.n_tokens, c.code_width + n_out, c.width)
        self.layers = nn.ModuleList(
            _Layer(c, self.n_tokens, joint=layer >= c.decoder_layers - c.joint_layers)
            for layer in range(c.decoder_layers)
        )
        self.norm = nn.LayerNorm(c.width)
        self.out = _silent(nn.Linear(c.width, n_out))
        self.weigh = _silent(nn.Linear(c.width, n_out // 2))

    def forward(self, code: Tensor, condition: Tensor, present: Tensor) -> Tensor:
        n_batch, n_users = code.shape[:2]
        flat, flat_condition = code.flatten(0, 1), condition.flatten(0, 1)
        estimate = torch.cat([part.reshape(-1, *self.size) for part in self.linear.decode(flat, flat_condition)], 2)
        raw = self.expand(flat).reshape(n_batch * n_users, self.n_tokens, self.code_width)
        x = self.embedding(torch.cat([raw, _tokens(estimate, self.tokens)], 2), flat_condition)
        modulation = self.conditions(flat_condition)
        for layer in self.layers:
            x = layer(x, modulation, present)
        x = self.norm(x)
        found = estimate * _spread(self.weigh(x), self.tokens) + _features(self.out(x), self.tokens, self.size)
        return found.reshape(n_batch, n_users, self.size[0], 2 * self.size[1])


def _silent(linear: nn.Linear) -> nn.Linear:
    """A layer that says nothing before it has learned something."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


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

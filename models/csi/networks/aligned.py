"""Our network: a linear code in the frame of the strongest direction, and layers that learn what it leaves over."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from ._aligned import SNRS_DB, AlignedCode
from ._layers import Attention, Embedding, FeedForward
from ._linear import silent
from .base import N_CONDITIONS, AttentionConfig, Network, NetworkConfig

_NEVER = 1e4

_SHUT = -2.0
"""Initial bias of the gates: a neighbour counts for little until training finds that it helps."""

_CONDITION_WIDTH = 32


class AlignedConfig(AttentionConfig):
    """Sizes and choices."""

    joint_layers: int = Field(2, ge=0, le=16, description="last layers of the decoder, where users help each other")
    angles_per_beam: int = Field(4, ge=1, le=32, description="fineness of the grid of directions")
    shapes: int = Field(8, ge=1, le=64, description="kinds of power over delay and angle, each with a linear code")
    short: bool = Field(False, description="whether the direction alone may be sent, too, where feedback is short")


class Aligned(Network):
    """Transformers beside `AlignedCode`, with gates between users.

    - The code turns CSI so that its strongest direction is beam 0, and sends direction and kind of channel in the first
      symbols: what is strong in a drop is known then, where a linear code has to be ready for every direction. The
      others are linear in the turned CSI. How many symbols go to which is planned by length and SNR, from draws.
    - Neighbours mostly share direction and kind: the decoder finds each user's from the symbols of all.
    - A token is a beam of the turned CSI over all delays. Layers weigh the CSI before it is coded, and what the linear
      decoders find after; in the last ones a user looks at the others' tokens and at a token that says nothing, through
      a gate that knows the user's tokens and the answer. With nobody else there the answer is exactly zero.
    - The conditions, and kind and certainty of the channel, scale and shift every layer's input.
    """

    kind = "aligned"
    Config = AlignedConfig

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        assert isinstance(config, AlignedConfig)
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config)

    def start_from(self, csi: Tensor) -> None:
        """Take the code from these draws."""
        first, second = self._codes()
        first.fit(csi)
        second.load_state_dict(first.state_dict())

    def _codes(self) -> tuple[AlignedCode, AlignedCode]:
        """Of encoder and decoder, which are alike."""
        first, second = self.encoder.code, self.decoder.code
        assert isinstance(first, AlignedCode)
        assert isinstance(second, AlignedCode)
        return first, second

    @torch.no_grad()
    def settle(self, csi: Tensor, lengths: Sequence[int]) -> None:
        """Plan anew with what the layers make of each mode, users decoded alone."""
        codes = self._codes()
        users = csi.flatten(0, 1)
        energy = users.abs().square().sum((1, 2))
        n = len(users)
        heard = torch.ones((n, 1), dtype=torch.bool, device=csi.device)
        for length in lengths:
            symbols = torch.full((n,), length, device=csi.device)
            for column, snr_db in enumerate(SNRS_DB):
                snr = torch.full((n,), snr_db, device=csi.device)
                noise = torch.randn((n, self.config.max_length, 2), generator=torch.Generator().manual_seed(1))
                noise = noise.to(csi.device) * (0.5 * 10 ** (-snr_db / 10)) ** 0.5
                errors = {}
                for mode in codes[0].modes(length):
                    for code in codes:
                        code.plan[code.row(length), column] = mode
                    received = self.encode(users, symbols, snr) + torch.view_as_complex(noise)
                    found = self.decode(received[:, None], symbols, snr[:, None], heard)[:, 0]
                    gain = torch.sqrt(energy / users[0].numel())[:, None, None]
                    errors[mode] = float(((found * gain - users).abs().square().sum((1, 2)) / energy).mean())
                for code in codes:
                    code.plan[code.row(length), column] = min(errors, key=errors.__getitem__)


class _Layer(nn.Module):
    """Self-attention, gated attention to other users if any, feed-forward; inputs scaled and shifted by conditions."""

    def __init__(self, c: AlignedConfig, joint: bool) -> None:
        super().__init__()
        width, n_tokens = c.width, c.n_antennas
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = silent(nn.Linear(_CONDITION_WIDTH, (6 if joint else 4) * width))
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
        modulation = self.modulate(condition).unflatten(1, (6 if self.joint else 4, x.shape[2]))
        parts = modulation.split(1, 1)
        x = x + self.attention(self.norm(x) * (1 + parts[0]) + parts[1])
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

        query, key, value = attention.project(x)
        key = from_others(key, attention.key(self.nothing))
        value = from_others(value, torch.zeros_like(self.nothing))
        # No bias behind the values: nothing heard is nothing said.
        found = nn.functional.linear(attention.mix(query, key, value, bias), attention.out.weight)
        return found * torch.sigmoid(self.gate(torch.cat([x, found], 2)))


class _Conditions(nn.Sequential):
    def __init__(self, c: AlignedConfig) -> None:
        super().__init__(
            nn.Linear(N_CONDITIONS + c.shapes + c.short + 2, _CONDITION_WIDTH),
            nn.SiLU(),
            nn.Linear(_CONDITION_WIDTH, _CONDITION_WIDTH),
            nn.SiLU(),
        )


class _Encoder(nn.Module):
    def __init__(self, c: AlignedConfig) -> None:
        super().__init__()
        self.code = AlignedCode(c, c.angles_per_beam, c.shapes, c.short)
        self.conditions = _Conditions(c)
        self.embedding = Embedding(c.n_antennas, 2 * c.n_taps, c.width)
        self.layers = nn.ModuleList(_Layer(c, joint=False) for _ in range(c.encoder_layers))
        self.norm = nn.LayerNorm(c.width)
        self.narrow = nn.Linear(c.width, c.code_width)
        self.to_code = silent(nn.Linear(c.n_antennas * c.code_width, 2 * c.max_length))
        self.weigh = silent(nn.Linear(c.width, c.n_taps))

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        frame = self.code.choose(features, condition)
        turned = self.code.turn(features, frame.angle)
        x = self.embedding(_tokens(turned), condition)
        modulation = self.conditions(torch.cat([condition, frame.facts], 1))
        for layer in self.layers:
            x = layer(x, modulation)
        x = self.norm(x)
        weighed = turned * _spread(self.weigh(x))
        return self.code.encode(weighed, self.to_code(self.narrow(x).flatten(1)), frame, condition)


class _Decoder(nn.Module):
    def __init__(self, c: AlignedConfig) -> None:
        super().__init__()
        self.code = AlignedCode(c, c.angles_per_beam, c.shapes, c.short)
        self.joint, self.code_width, self.n_tokens = c.joint_layers > 0, c.code_width, c.n_antennas
        self.expand = nn.Linear(2 * c.max_length, c.n_antennas * c.code_width)
        self.conditions = _Conditions(c)
        self.embedding = Embedding(c.n_antennas, c.code_width + 2 * c.n_taps, c.width)
        self.layers = nn.ModuleList(
            _Layer(c, joint=layer >= c.decoder_layers - c.joint_layers) for layer in range(c.decoder_layers)
        )
        self.norm = nn.LayerNorm(c.width)
        self.out = silent(nn.Linear(c.width, 2 * c.n_taps))
        self.weigh = silent(nn.Linear(c.width, c.n_taps))

    def forward(self, code: Tensor, condition: Tensor, present: Tensor) -> Tensor:
        frame = self.code.find(code, condition, present if self.joint else None)
        flat, flat_condition = code.flatten(0, 1), condition.flatten(0, 1)
        estimate, symbols = self.code.decode(flat, frame, flat_condition)
        raw = self.expand(symbols).reshape(len(flat), self.n_tokens, self.code_width)
        x = self.embedding(torch.cat([raw, _tokens(estimate)], 2), flat_condition)
        modulation = self.conditions(torch.cat([flat_condition, frame.facts], 1))
        for layer in self.layers:
            x = layer(x, modulation, present)
        x = self.norm(x)
        found = estimate * _spread(self.weigh(x)) + _features(self.out(x))
        return self.code.turn_back(found, frame.angle).unflatten(0, code.shape[:2])


def _spread(gain: Tensor) -> Tensor:
    """Factors around 1, (batch, beam, tap), for both parts of each number: (batch, tap, 2 beams)."""
    by_tap = 1 + gain.transpose(1, 2)
    return torch.cat([by_tap, by_tap], 2)


def _tokens(features: Tensor) -> Tensor:
    """(batch, tap, 2 beams) -> (batch, beam, 2 taps)."""
    real, imag = features.chunk(2, 2)
    return torch.cat([real, imag], 1).transpose(1, 2)


def _features(x: Tensor) -> Tensor:
    """(batch, beam, 2 taps) -> (batch, tap, 2 beams)."""
    real, imag = x.chunk(2, 2)
    return torch.cat([real.transpose(1, 2), imag.transpose(1, 2)], 2)

"""The heterogeneous Transformer and SA-UADNet-VPL: received signal and preambles as tokens with weights of their own.

One token per user holds its preamble, one more holds the sample covariance of the received slot, zero-padded to the
longest preamble. Post-norm Transformer layers mix them; every weight exists twice, for preamble tokens and for the
received token. A decoder correlates the received token's summary with every preamble token.

Sources: heterogeneous Transformer: arXiv 2112.10086; zero padding and the preamble-length attention module (PLAM):
arXiv 2505.12382. Where those leave a choice open, it is a field of the configuration.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from .base import Network, NetworkConfig, checked_slots


class HeterogeneousConfig(NetworkConfig):
    """Sizes and choices of the heterogeneous Transformer."""

    n_users: int = Field(128, ge=1, le=4096)
    max_length: int = Field(28, ge=1, le=1024, description="symbols of a whole preamble, to which slots are padded")
    lengths: tuple[int, int] = Field((8, 28), description="shortest and longest preamble trained for; scales PLAM")
    d_model: int = Field(128, ge=1, description="width of a token")
    n_layers: int = Field(3, ge=1)
    n_heads: int = Field(8, ge=1)
    head_dim: int = Field(16, ge=1, description="n_heads * head_dim need not be d_model")
    ffn: int = Field(256, ge=1, description="hidden width of the feed-forward part")
    plam: bool = Field(True, description="preamble-length attention behind every layer but the last")
    plam_hidden: int = Field(64, ge=1, description="hidden width of PLAM")
    plam_bias: float | None = Field(
        None, description="at the start of training, before PLAM's sigmoid: 2 passes 0.88 of every feature; none: half"
    )
    norm: Literal["layer", "batch"] = Field(
        "layer", description="batch: running statistics per token, as published, which mix preamble lengths"
    )
    covariance: Literal["raw", "power"] = Field(
        "power", description="raw: as is; power: over the slot's mean power, whose logarithm is one more feature"
    )
    clip: float = Field(10.0, gt=0, description="largest magnitude of the decoder's correlation")
    loss: Literal["bce", "weighted"] = Field("bce", description="weighted: active and silent users count alike")
    activity: float = Field(0.1, gt=0, lt=1, description="for the weighted loss; the log-odds remain posterior ones")

    @model_validator(mode="after")
    def _consistent(self) -> HeterogeneousConfig:
        if not 1 <= self.lengths[0] <= self.lengths[1] <= self.max_length:
            raise ValueError(f"lengths={list(self.lengths)}: shortest and longest, 1 to max_length={self.max_length}")
        return self


class HeterogeneousTransformer(Network):
    """SA-UADNet-VPL, or with other choices the heterogeneous Transformer it comes from."""

    kind: ClassVar[str] = "heterogeneous"
    Config: ClassVar[type[NetworkConfig]] = HeterogeneousConfig
    config: HeterogeneousConfig

    input_names: ClassVar[tuple[str, ...]] = ("preambles", "covariance", "length")
    input_notes: ClassVar[tuple[str, ...]] = (
        "real, then imaginary parts of every user's whole preamble",
        "real, then imaginary parts of Y Y^H / M padded with zeros; see the configuration's field `covariance`",
        "preamble symbols received, 0 at the shortest and 1 at the longest trained",
    )

    def __init__(self, config: HeterogeneousConfig) -> None:
        super().__init__(config)
        features = 2 * config.max_length**2 + (config.covariance == "power")
        self.embed_preambles = nn.Linear(2 * config.max_length, config.d_model)
        self.embed_received = nn.Linear(features, config.d_model)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.n_layers))
        self.plams = nn.ModuleList(_Plam(config) for _ in range(config.n_layers - 1 if config.plam else 0))
        self.decoder = _Decoder(config)
        with torch.no_grad():
            # Of the features only those of the received symbols differ from zero. The default initialisation counts all
            # of them, and would leave the received token far smaller than the preambles' ones.
            middle = sum(config.lengths) / 2
            self.embed_received.weight.normal_(0, 1 / middle)

    def prepare(self, y: Tensor, preambles: Tensor, noise_power: Tensor | None, activity: float) -> tuple[Tensor, ...]:
        """Pad and normalise; see `Network.prepare`.

        Returns:
            float32: preambles (batch, user, 2 max_length), covariance (batch, 2 max_length^2, and one more if divided
            by the power), length (batch, 1).
        """
        config = self.config
        length = checked_slots(y, preambles, config.max_length, config.n_users)
        batch = y.shape[0]
        covariance = y @ y.mH / y.shape[2]
        extra = []
        if config.covariance == "power":
            power = covariance.diagonal(dim1=1, dim2=2).real.mean(1).clamp_min(torch.finfo(torch.float32).tiny)
            covariance = covariance / power[:, None, None] - torch.eye(length, device=y.device)
            # Off the diagonal, K users of unit power leave about 1/sqrt(K) of the power.
            covariance = covariance * math.sqrt(activity * config.n_users)
            extra = [power.log()[:, None]]
        padding = config.max_length - length
        padded = functional.pad(torch.view_as_real(covariance).movedim(3, 1), (0, padding, 0, padding))
        received = torch.cat([padded.flatten(1), *extra], 1)
        pool = torch.view_as_real(preambles.mT.contiguous()).transpose(-1, -2).flatten(-2)
        shortest, longest = config.lengths
        scaled = (length - shortest) / max(longest - shortest, 1)
        return pool.expand(batch, -1, -1), received, torch.full((batch, 1), scaled, device=y.device)

    def forward(self, *prepared: Tensor) -> Tensor:
        """Score every user; see `Network.forward`."""
        preambles, covariance, length = prepared
        return self._score(preambles, covariance, length)

    def loss(self, active: Tensor, *prepared: Tensor) -> Tensor:
        """Binary cross-entropy, plain or with active and silent users weighted alike."""
        preambles, covariance, length = prepared
        # One pool for all slots is an expanded view: its tokens are the same in every slot until the first attention.
        shared = preambles[:1] if preambles.stride(0) == 0 else preambles
        logits = self._score(shared, covariance, length)
        target = active.to(logits.dtype)
        if self.config.loss == "bce":
            return functional.binary_cross_entropy_with_logits(logits, target)
        p = self.config.activity
        weight = 2 * torch.where(active, 1 - p, p)
        return functional.binary_cross_entropy_with_logits(logits + self._prior(), target, weight=weight)

    def _score(self, preambles: Tensor, covariance: Tensor, length: Tensor) -> Tensor:
        users = self.embed_preambles(preambles)
        received = self.embed_received(covariance)
        for index, layer in enumerate(self.layers):
            users, received = layer(users, received)
            if index < len(self.plams):
                users, received = self.plams[index](users, received, length)
        logits = self.decoder(users, received)
        return logits - self._prior() if self.config.loss == "weighted" else logits

    def _prior(self) -> float:
        """What weighting both classes alike takes from the log-odds."""
        return math.log((1 - self.config.activity) / self.config.activity)


class _Attention(nn.Module):
    """Projections of one kind of token."""

    def __init__(self, config: HeterogeneousConfig) -> None:
        super().__init__()
        inner = config.n_heads * config.head_dim
        self.query = nn.Linear(config.d_model, inner, bias=False)
        self.key = nn.Linear(config.d_model, inner, bias=False)
        self.value = nn.Linear(config.d_model, inner, bias=False)
        self.out = nn.Linear(inner, config.d_model, bias=False)


class _Layer(nn.Module):
    """One encoder layer: attention over all tokens, feed-forward, both with residual and norm behind."""

    def __init__(self, config: HeterogeneousConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        d = config.d_model
        self.users, self.received = _Attention(config), _Attention(config)
        self.users_ffn = nn.Sequential(nn.Linear(d, config.ffn), nn.ReLU(), nn.Linear(config.ffn, d))
        self.received_ffn = nn.Sequential(nn.Linear(d, config.ffn), nn.ReLU(), nn.Linear(config.ffn, d))
        self.users_norm1, self.users_norm2 = (_norm(config, config.n_users) for _ in range(2))
        self.received_norm1, self.received_norm2 = (_norm(config, 1) for _ in range(2))

    def forward(self, users: Tensor, received: Tensor) -> tuple[Tensor, Tensor]:
        """(batch or 1, user, d), (batch, d) -> (batch, user, d), (batch, d)."""
        if users.shape[0] == 1 and received.shape[0] > 1:
            to_users, to_received = self._attend_shared(users[0], received)
        else:
            to_users, to_received = self._attend(users, received)
        users = self.users_norm1(users + to_users)
        received = self.received_norm1((received + to_received)[:, None])[:, 0]
        users = self.users_norm2(users + self.users_ffn(users))
        received = self.received_norm2((received + self.received_ffn(received))[:, None])[:, 0]
        return users, received

    def _attend(self, users: Tensor, received: Tensor) -> tuple[Tensor, Tensor]:
        one = received[:, None]
        query, key, value = (
            torch.cat([getattr(self.users, name)(users), getattr(self.received, name)(one)], 1)
            .unflatten(2, (self.n_heads, -1))
            .transpose(1, 2)
            for name in ("query", "key", "value")
        )
        mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self.users.out(mixed[:, :-1]), self.received.out(mixed[:, -1])

    def _attend_shared(self, users: Tensor, received: Tensor) -> tuple[Tensor, Tensor]:
        """The same for preamble tokens (user, d) that are common to the batch.

        The softmax over users and received token is that over the users, common to all slots, and a share for the
        received token, sigmoid(its score - log sum exp of the users').
        """
        heads = self.n_heads
        query_u, key_u, value_u = (
            getattr(self.users, name)(users).unflatten(1, (heads, -1)).transpose(0, 1)
            for name in ("query", "key", "value")
        )  # (head, user, head_dim)
        query_r, key_r, value_r = (
            getattr(self.received, name)(received).unflatten(1, (heads, -1)).transpose(0, 1)
            for name in ("query", "key", "value")
        )  # (head, batch, head_dim)
        scale = query_u.shape[-1] ** -0.5
        among = scale * query_u @ key_u.mT
        share = torch.sigmoid(scale * key_r @ query_u.mT - among.logsumexp(2)[:, None])  # (head, batch, user)
        out = self.users.out.weight.unflatten(1, (heads, -1)).permute(1, 2, 0)  # (head, head_dim, d)
        common = among.softmax(2) @ value_u @ out  # (head, user, d)
        own = value_r @ out  # (head, batch, d)
        to_users = (
            common.sum(0)
            - (share.permute(2, 1, 0) @ common.transpose(0, 1)).transpose(0, 1)
            + share.permute(1, 2, 0) @ own.transpose(0, 1)
        )
        scores = torch.cat([query_r @ key_u.mT, (query_r * key_r).sum(2, keepdim=True)], 2)
        weights = (scale * scores).softmax(2)
        mixed = weights[..., :-1] @ value_u + weights[..., -1:] * value_r
        return to_users, self.received.out(mixed.transpose(0, 1).flatten(1))


class _Plam(nn.Module):
    """Preamble-length attention: scales the features of all tokens by what their mean and the length say."""

    def __init__(self, config: HeterogeneousConfig) -> None:
        super().__init__()
        hidden = nn.Linear(config.d_model + 1, config.plam_hidden)
        out = nn.Linear(config.plam_hidden, config.d_model)
        if config.plam_bias is not None:
            nn.init.constant_(out.bias, config.plam_bias)
        self.gate = nn.Sequential(hidden, nn.ReLU(), out, nn.Sigmoid())

    def forward(self, users: Tensor, received: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        mean = (users.sum(1) + received) / (users.shape[1] + 1)
        gate = self.gate(torch.cat([mean, length.to(mean.dtype)], 1))
        return users * gate[:, None], received * gate


class _Decoder(nn.Module):
    """Cross-attention from the received token over all tokens, then the clipped correlation with every user's token."""

    def __init__(self, config: HeterogeneousConfig) -> None:
        super().__init__()
        self.n_heads, self.clip = config.n_heads, config.clip
        self.scale = config.head_dim**-0.5
        inner = config.n_heads * config.head_dim
        self.query = nn.Linear(config.d_model, inner, bias=False)
        self.users_key, self.users_value, self.received_key, self.received_value = (
            nn.Linear(config.d_model, inner, bias=False) for _ in range(4)
        )
        self.out = nn.Linear(inner, config.d_model, bias=False)
        self.correlate = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(self, users: Tensor, received: Tensor) -> Tensor:
        # With one query, projecting it back costs less than projecting every user's token to keys and values.
        heads = (self.n_heads, -1)
        query = self.query(received).unflatten(1, heads)
        back = self.users_key.weight.unflatten(0, heads)
        to_users = torch.einsum("bhk,hkd->bhd", query, back) @ users.mT
        to_received = (query * self.received_key(received).unflatten(1, heads)).sum(2, keepdim=True)
        weights = (self.scale * torch.cat([to_users, to_received], 2)).softmax(2)
        mean = weights[..., :-1] @ users
        values = torch.einsum("bhd,hkd->bhk", mean, self.users_value.weight.unflatten(0, heads))
        values = values + weights[..., -1:] * self.received_value(received).unflatten(1, heads)
        summary = self.correlate(self.out(values.flatten(1)))
        correlation = (users @ summary[..., None])[..., 0] / math.sqrt(users.shape[-1])
        return self.clip * torch.tanh(correlation.float())


def _norm(config: HeterogeneousConfig, n_tokens: int) -> nn.Module:
    return nn.LayerNorm(config.d_model) if config.norm == "layer" else _TokenBatchNorm(n_tokens, config.d_model)


class _TokenBatchNorm(nn.Module):
    """Batch normalisation with statistics per token and feature, gain and bias per feature."""

    def __init__(self, n_tokens: int, d_model: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(n_tokens * d_model, affine=False)
        self.gain = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens.flatten(1)).view_as(tokens) * self.gain + self.bias

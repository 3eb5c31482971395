"""Attention over the users that the likelihood leaves in doubt."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from ..detectors import _packed
from . import _attention, _posterior
from .base import Network, NetworkConfig, checked_slots

_MASKED = -1e4
_REST_LIMIT = 40.0
_NO_POOLS = np.empty((0, 1, 1), np.complex64)


class LikelihoodConfig(NetworkConfig):
    """Sizes of a `LikelihoodTransformer`."""

    max_length: int = Field(28, ge=1, description="symbols of the longest preamble")
    width: int = Field(32, ge=4, description="features of a token")
    n_layers: int = Field(2, ge=1, le=16)
    n_heads: int = Field(4, ge=1)
    feedforward: int = Field(64, ge=4, description="hidden width of the layers' feed-forward part")
    edge_width: int = Field(8, ge=1, description="hidden width of what turns pair features into attention")
    least_candidates: int = Field(32, ge=2, description="users looked at, at least")
    most_candidates: int = Field(64, ge=2, description="users looked at, at most")
    doubt: float = Field(
        24.0,
        gt=0,
        description="only users that a change of less than this log posterior could turn over go through attention",
    )
    array_shape: tuple[int, int] | None = Field(
        None, description="rows and columns of a planar array whose antennas are the snapshots, row by row"
    )


class LikelihoodTransformer(Network):
    """Finds active users from the costs of alternatives around the most likely set.

    `prepare` searches the set of users that maximises the posterior of i.i.d. Rayleigh snapshots (coordinate descent,
    then flips of one and two users), fits the common gain and an unknown noise power to it, and hands on the users in
    doubt: what each flip and each pair of flips would cost, matched and whitened energies, the prior and the noise
    level. `forward` weighs these alternatives with attention whose scores see the pairs, and corrects the
    log-odds that the flips alone would give. Trained with cross-entropy the result is a marginal probability, where
    the search alone returns the jointly most likely set.

    Any number of users, snapshots and preamble symbols up to `max_length`; any pool. With `array_shape` the snapshots
    are the antennas of that array, and the powers of the candidates in its beams are looked at too.
    """

    kind: ClassVar[str] = "likelihood"
    Config: ClassVar[type[NetworkConfig]] = LikelihoodConfig
    dynamic_axes: ClassVar[tuple[tuple[int, ...], ...] | None] = ((0, 1), (0, 1), (0, 1, 2), (0,), (0, 1), (0,))

    def __init__(self, config: LikelihoodConfig) -> None:
        super().__init__(config)
        if config.width % config.n_heads:
            raise ValueError(f"width={config.width} must be a multiple of n_heads={config.n_heads}")
        if config.least_candidates > config.most_candidates:
            raise ValueError(
                f"least_candidates={config.least_candidates} exceeds most_candidates={config.most_candidates}"
            )
        self.sizes = config
        width = config.width
        beams = config.array_shape is not None
        self.n_token = _posterior.N_TOKEN + beams * _posterior.N_BEAM_TOKEN
        self.n_edge = _posterior.N_EDGE + beams * _posterior.N_BEAM_EDGE
        self.embed = nn.Linear(self.n_token, width)
        self.embed_slot = nn.Linear(_posterior.N_GLOBAL, width)
        self.edge_hidden = nn.Linear(self.n_edge, config.edge_width)
        self.edge_scores = nn.Linear(config.edge_width, config.n_layers * config.n_heads)
        self.layers = nn.ModuleList(_Layer(width, config.n_heads, config.feedforward) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1)
        self.trust = nn.Parameter(torch.tensor([0.5, 0.25]))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self._pool: tuple[NDArray[np.complex64], _packed.Prepared] | None = None

    def prepare(self, y: Tensor, preambles: Tensor, noise_power: Tensor | None, activity: float) -> tuple[Tensor, ...]:
        """See `Network`. The statistics are computed on the processor, by as many threads as torch may use.

        Returns:
            tokens float32 (batch, candidate, feature); valid float32 (batch, candidate), 0 where a slot has fewer
            candidates; edges float32 (batch, candidate, candidate, feature); slot float32 (batch, feature); index
            int64 (batch, candidate): the candidates' users; rest float32 (batch, user): log-odds of every user with
            all others held.
        """
        checked_slots(y, preambles, self.sizes.max_length)
        noise = None if noise_power is None else noise_power.detach().cpu().double().numpy()
        arrays = self._statistics(
            np.ascontiguousarray(y.detach().cpu().resolve_conj().numpy(), np.complex64),
            np.ascontiguousarray(preambles.detach().cpu().resolve_conj().numpy(), np.complex64),
            noise,
            activity,
            torch.get_num_threads(),
        )
        return tuple(torch.from_numpy(array).to(y.device, non_blocking=True) for array in arrays)

    def prepare_numpy(
        self,
        y: NDArray[np.complex64],
        preambles: NDArray[np.complex64],
        noise_power: NDArray[np.floating] | None,
        activity: float,
    ) -> tuple[NDArray, ...]:
        """As `prepare`, on arrays and with one thread.

        Args:
            y: complex64, (batch, symbol, snapshot), C-contiguous.
            preambles: complex64, (max_length, user), or (batch, max_length, user). What is worked out from the former
                is kept for the next call with the very same array, which must not change.
            noise_power: float, (batch,), or None.
            activity: prior probability that a user sends.
        """
        return self._statistics(y, preambles, noise_power, activity, 1)

    def _statistics(
        self,
        y: NDArray[np.complex64],
        preambles: NDArray[np.complex64],
        noise_power: NDArray[np.floating] | None,
        activity: float,
        n_threads: int,
    ) -> tuple[NDArray, ...]:
        n, length, n_users = len(y), y.shape[1], preambles.shape[-1]
        most = min(self.sizes.most_candidates, n_users)
        if preambles.ndim == 3:
            pools = np.ascontiguousarray(preambles, np.complex64)
            side = _packed.padded(length)
            packed = np.empty((n_users, 2, side)), np.empty((n_users, side * side))
        else:
            pools = _NO_POOLS
            packed = self._packed_pool(preambles, length)
        # Rows that are not written belong to no user in doubt, and a single slot has none of them.
        allocate = np.zeros if n > 1 else np.empty
        tokens = allocate((n, most, self.n_token), np.float32)
        edges = allocate((n, most, most, self.n_edge), np.float32)
        slot = np.empty((n, _posterior.N_GLOBAL), np.float32)
        index = np.empty((n, most), np.int64)
        rest = np.empty((n, n_users), np.float32)
        sizes = np.empty(n, np.int64)
        noise = np.zeros(n) if noise_power is None else np.asarray(noise_power, np.float64)
        log_odds = math.log((1 - activity) / activity)
        limits = (log_odds, self.sizes.least_candidates, self.sizes.doubt)
        shared = (y, self._beams(y), noise, pools, *packed, *limits)
        outputs = (tokens, edges, slot, index, rest, sizes)
        parts = max(1, min(n_threads, n // 8))
        bounds = [n * k // parts for k in range(parts + 1)]

        def analyse(first: int, last: int) -> None:
            _posterior.analyse_all(*shared, first, last, *outputs)

        if parts == 1:
            analyse(0, n)
        else:
            with ThreadPoolExecutor(parts) as threads:
                list(threads.map(analyse, bounds[:-1], bounds[1:]))
        used = int(sizes.max(initial=1))
        if n == 1:
            valid = np.ones((1, used), np.float32)
            index = index[:, :used]
        else:
            valid = (np.arange(used) < sizes[:, None]).astype(np.float32)
            # Padding points at users beyond the last, whose scores are thrown away.
            index = np.where(valid > 0, index[:, :used], n_users)
        edges = np.ascontiguousarray(edges[:, :used, :used])
        return np.ascontiguousarray(tokens[:, :used]), valid, edges, slot, np.ascontiguousarray(index), rest

    def _packed_pool(
        self, preambles: NDArray[np.complex64], length: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if self._pool is None or self._pool[0] is not preambles:
            self._pool = preambles, _packed.Prepared(preambles)
        return self._pool[1].of(length)

    def _beams(self, y: NDArray[np.complex64]) -> NDArray[np.complex64]:
        """Unitary Fourier transforms over rows and columns of the array; without one, no symbols of any slot."""
        if self.sizes.array_shape is None:
            return np.empty((len(y), 0, 1, 1), np.complex64)
        rows, columns = self.sizes.array_shape
        if y.shape[2] != rows * columns:
            raise ValueError(f"y has {y.shape[2]} snapshots; this network is for an array of {rows} x {columns}")
        antennas = y.reshape(*y.shape[:2], rows, columns)
        return np.ascontiguousarray(scipy.fft.fft2(antennas, norm="ortho"), np.complex64)

    def forward(self, *prepared: Tensor) -> Tensor:
        """See `Network`; takes what `prepare` returns."""
        tokens, valid, edges, slot, index, rest = prepared
        x = self.embed(tokens) + self.embed_slot(slot)[:, None]
        scores = self.edge_scores(torch.relu(self.edge_hidden(edges)))
        scores = scores + (_MASKED * (1.0 - valid))[:, None, :, None]
        # One leading axis of layers and heads: (batch, layer * head, candidate, candidate).
        scores = scores.permute(0, 3, 1, 2)
        heads = self.sizes.n_heads
        for k, layer in enumerate(self.layers):
            x = layer(x, scores[:, k * heads : (k + 1) * heads])
        found = self.head(self.norm(x))[:, :, 0] + 8.0 * self.trust[0] * tokens[:, :, 2]
        others = self.trust[1] * rest.clamp(-_REST_LIMIT, _REST_LIMIT)
        padded = torch.cat([others, others.new_zeros(others.shape[0], 1)], 1)
        return padded.scatter(1, index, found)[:, :-1]

    def compiled(self) -> Callable[..., NDArray[np.float64]]:
        """See `Network`; what is worked out from a pool is kept for calls with the very same array."""
        sizes = self.sizes
        weights = _flattened(self)
        shape = np.array(
            [sizes.width, sizes.n_layers, sizes.n_heads, sizes.feedforward, sizes.edge_width], dtype=np.int64
        )
        features = np.array([self.n_token, self.n_edge], dtype=np.int64)
        limit = np.float32(_REST_LIMIT)

        def run(
            y: NDArray[np.complex64],
            preambles: NDArray[np.complex64],
            noise_power: NDArray[np.float64] | None,
            activity: float,
        ) -> NDArray[np.float64]:
            scores = np.empty((len(y), preambles.shape[1]))
            _attention.log_odds_all(
                y,
                self._beams(y),
                np.zeros(len(y)) if noise_power is None else noise_power,
                *self._packed_pool(preambles, y.shape[1]),
                math.log((1 - activity) / activity),
                sizes.least_candidates,
                sizes.most_candidates,
                sizes.doubt,
                features,
                weights,
                shape,
                limit,
                scores,
            )
            return scores

        return run


def _flattened(network: LikelihoodTransformer) -> NDArray[np.float32]:
    """All weights one after the other, in the order in which `_attention.forward` reads them; matrices (in, out)."""
    parts: list[Tensor] = []

    def take(*modules: nn.Module) -> None:
        for module in modules:
            weight, bias = module.get_parameter("weight"), module.get_parameter("bias")
            parts.extend([weight.T if weight.dim() == 2 else weight, bias])

    take(network.embed, network.embed_slot, network.edge_hidden, network.edge_scores)
    for layer in network.layers:
        assert isinstance(layer, _Layer)
        take(layer.norm_attention, layer.queries_keys_values, layer.out)
        take(layer.norm_feedforward, layer.hidden, layer.back)
    take(network.norm, network.head)
    parts.append(network.trust)
    return np.concatenate([part.detach().cpu().float().numpy().ravel() for part in parts])


class _Layer(nn.Module):
    """Pre-norm attention and feed-forward; the attention's scores get a bias from outside."""

    def __init__(self, width: int, n_heads: int, feedforward: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm_attention = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_feedforward = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, feedforward)
        self.back = nn.Linear(feedforward, width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        batch, n, width = x.shape
        size = width // self.n_heads
        mixed = self.queries_keys_values(self.norm_attention(x)).view(batch, n, 3, self.n_heads, size)
        q, k, v = mixed.permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(2, 3) * size**-0.5 + bias, dim=3)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(batch, n, width))
        return x + self.back(torch.relu(self.hidden(self.norm_feedforward(x))))

"""One frame of the base station in numpy: the numbers of `link.transmit` without its many small torch operations."""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from . import link, precoding
from .networks.base import PIXELS, NetworkConfig

Complex = NDArray[np.complex64]
Real = NDArray[np.float32]

_TINY = 1e-9


class Runner(Protocol):
    """The real modules of a network, for arrays; see `networks.Network`."""

    @property
    def config(self) -> NetworkConfig: ...
    @property
    def transmits(self) -> bool:
        """Whether anything stands between encoder and precoding matrix."""
        ...

    def encode(self, pictures: Real, condition: Real) -> Real: ...
    def transmit(self, symbols: Real, csi: Real, condition: Real) -> tuple[Real, Real | None, Real | None]: ...


def transmit(
    runner: Runner, pictures: Real, known: Complex, nmse_db: float, snr_db: float
) -> tuple[Complex, Complex, tuple[int, int]]:
    """Code the pictures of all users, and precode them; see `link.transmit`.

    Args:
        runner: runs the network.
        pictures: float32, (user, 3, row, column), in [0, 1].
        known: complex64, (user, subcarrier, antenna).
        nmse_db: its error.
        snr_db: transmit power over noise power.

    Returns:
        Reference symbols, complex64 (subcarrier, antenna, user); data, complex64 (subcarrier, antenna, OFDM symbol);
        rows and columns of tokens.
    """
    c, n_users = runner.config, len(known)
    power = float(np.vdot(known, known).real) / known.size
    known = known * np.float32(max(power, 1e-30) ** -0.5 if power > 0 else 0.0)
    rows = np.ascontiguousarray(known.swapaxes(0, 1))
    noise = 10 ** (-snr_db / 10) + (10 ** (min(nmse_db, 0.0) / 10) if nmse_db > link.PERFECT_DB else 0.0)
    gram = np.einsum("skn,sjn->skj", rows, rows.conj())
    floor = _floor(gram)
    rzf = _precoder(rows, gram, (n_users * noise + floor)[:, None], None, None)
    expected = np.clip(_sinr(rows, rzf, noise), 1e-3, 1e4).T
    log_sinr = np.log10(expected)
    whole = (snr_db / 10, max(nmse_db, link.PERFECT_DB) / 10)
    condition = np.array([(*whole, mean) for mean in log_sinr.mean(1)], np.float32)
    gain = np.log10(np.maximum(np.square(known.view(np.float32)).sum(-1), 1e-3))
    features = np.concatenate([known.real, known.imag, gain[..., None], log_sinr[..., None]], -1, dtype=np.float32)
    csi = features.reshape(n_users, c.n_groups, -1)

    code = runner.encode(pictures, condition)
    code = code / np.sqrt(2 * np.square(code).mean((1, 2), keepdims=True) + _TINY)
    symbols = _interleaved(code, c.n_groups, c.uses)
    corrections, added = None, None
    if runner.transmits:
        symbols, corrections, added = runner.transmit(symbols, csi, condition)
    if c.precoder == "wmmse":
        with torch.inference_mode():
            v = precoding.iterative_wmmse(torch.from_numpy(rows)[None], torch.tensor([noise]).float())[0].numpy()
    elif corrections is None:
        v = rzf
    else:
        told = np.repeat(corrections, c.group, 1).swapaxes(0, 1)
        alpha = 1 + told[..., 0] + 1j * told[..., 1]
        rho, mu = (_softplus(told[..., 2]), noise * _softplus(told[..., 3].mean(-1)))
        v = _precoder(rows, gram, (n_users * mu + floor)[:, None], rho, alpha)
    data = v @ _on_subcarriers(_complex(symbols), c).swapaxes(0, 1)
    if added is not None:
        parts = _complex(added).reshape(*added.shape[:2], c.n_antennas, c.uses)
        data += _on_subcarriers(np.moveaxis(parts, 2, 0), c).swapaxes(0, 1)
    reference = v @ _pilots(n_users)
    energy = float(np.vdot(reference, reference).real + np.vdot(data, data).real)
    n = v.shape[0] * (reference.shape[-1] + data.shape[-1])
    scale = np.float32((n / energy) ** 0.5 if energy > _TINY else 0.0)
    return reference * scale, data * scale, (pictures.shape[2] // PIXELS, pictures.shape[3] // PIXELS)


def _precoder(rows: Complex, gram: Complex, diagonal: Real, rho: Real | None, alpha: Complex | None) -> Complex:
    """H^H (diagonal + D H H^H)^-1 diag(alpha) of unit mean power; complex64, (subcarrier, antenna, user)."""
    n_users = gram.shape[-1]
    inner = (gram if rho is None else rho[..., None] * gram).astype(np.complex128)
    at = np.arange(n_users)
    inner[:, at, at] += diagonal
    if n_users == 2:
        a, b, c, d = (inner[:, i, j] for i in (0, 1) for j in (0, 1))
        inverse = np.stack([d, -b, -c, a], -1).reshape(-1, 2, 2) / (a * d - b * c)[:, None, None]
    else:
        inverse = np.linalg.inv(inner)
    if alpha is not None:
        inverse = inverse * alpha[:, None]
    v = rows.conj().swapaxes(1, 2) @ inverse.astype(np.complex64)
    power = float(np.vdot(v, v).real) / len(v)
    return v * np.float32(max(power, _TINY**2) ** -0.5)


def _sinr(rows: Complex, v: Complex, noise: float) -> Real:
    heard = rows @ v
    power = np.square(heard.real) + np.square(heard.imag)
    at = np.arange(power.shape[-1])
    own = power[:, at, at]
    found: Real = own / np.maximum(power.sum(-1) - own + np.float32(noise), np.float32(_TINY))
    return found


def _floor(gram: Complex) -> Real:
    found: Real = 1e-6 * np.einsum("skk->s", gram).real + 1e-12
    return found


def _softplus(x: Real) -> Real:
    """1 where x is 0."""
    found: Real = np.logaddexp(0, x + precoding.SOFTPLUS_ONE).astype(np.float32)
    return found


def _complex(x: Real) -> Complex:
    half = x.shape[-1] // 2
    found = np.empty((*x.shape[:-1], half), np.complex64)
    found.real, found.imag = x[..., :half], x[..., half:]
    return found


def _interleaved(code: Real, n_groups: int, uses: int) -> Real:
    """Blocks of tokens, spread over the groups; (user, block, group, 2 uses) from (user, token, 2 uses)."""
    n_blocks = -(-code.shape[1] // n_groups)
    padded = np.zeros((len(code), n_blocks * n_groups, 2 * uses), np.float32)
    padded[:, : code.shape[1]] = code
    return padded.reshape(len(code), n_blocks, -1).take(_sources(n_groups, uses), 2)


def _on_subcarriers(groups: Complex, c: NetworkConfig) -> Complex:
    """See `networks.base.to_subcarriers`; (k, block, group, use) -> (k, subcarrier, OFDM symbol)."""
    n, n_blocks = groups.shape[:2]
    places = groups.reshape(n, n_blocks, c.n_groups, c.group, c.block_symbols)
    return places.transpose(0, 2, 3, 1, 4).reshape(n, c.n_subcarriers, -1)


@lru_cache(maxsize=16)
def _sources(n: int, uses: int) -> NDArray[np.int64]:
    """Number of a block that each place takes; see `networks.base.interleave`."""
    shift = np.tile(np.arange(uses) * n // uses, 2)
    return (np.arange(n)[:, None] - shift) % n * 2 * uses + np.arange(2 * uses)


@lru_cache(maxsize=16)
def _pilots(n: int) -> Complex:
    found: Complex = link.pilots(n, torch.device("cpu")).numpy()
    return found

"""Source codes for CSI: bits at the user, CSI at the base station, for separate source and channel coding.

Two codes behind one interface: a trained network whose symbols are quantised, and the linear code's components in as
many bits as reverse water-filling gives them. Every real value has a Lloyd-Max quantiser (Lloyd, IEEE Trans. Inf.
Theory 28(2), 1982) for what training draws hold there, and bits go one by one to where they lower the error most.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .klt import KltCode
from .networks import Network

Bits = NDArray[np.uint8]
Real = NDArray[np.float64]

MOST_BITS = 8
"""Of one real value."""

DESIGN_SNR_DB = (-5.0, 0.0, 5.0, 10.0, 15.0, 20.0)
"""SNRs that a network may be told: those next to that of its quantisation noise are tried."""

_STEP_DB = 5.0
_TYPICAL_SNR_DB = 5.0
_LOW, _HIGH = 0.5, 3.0

_ROUNDS = 60
_CHUNK = 500
_LEAST_KEPT = 0.05


def lloyd_max(samples: Real, n_bits: int) -> Real:
    """Levels of the scalar quantiser with the least mean square error for samples, near to a local minimum.

    Args:
        samples: float64, (sample,).
        n_bits: 2**n_bits levels.

    Returns:
        float64, (level,), ascending.
    """
    if samples.ndim != 1 or not samples.size or not 0 <= n_bits <= MOST_BITS:
        raise ValueError(f"samples {samples.shape}, n_bits={n_bits}: need (sample,), and 0 to {MOST_BITS} bits")
    ordered = np.sort(samples)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    n = 1 << n_bits
    levels = np.quantile(ordered, (np.arange(n) + 0.5) / n)
    for _ in range(_ROUNDS):
        ends = np.concatenate([[0], np.searchsorted(ordered, (levels[1:] + levels[:-1]) / 2), [ordered.size]])
        count = np.diff(ends)
        # A level that nothing is nearest to stays where it is.
        moved = np.where(count > 0, np.diff(sums[ends]) / np.maximum(count, 1), levels)
        if np.array_equal(moved, levels):
            break
        levels = moved
    return levels


class ScalarQuantisers:
    """Quantisers of independent real values, with any number of bits in all.

    Args:
        samples: float64, (sample, value): training draws.

    Attributes:
        variances: float64, (value,).
    """

    def __init__(self, samples: Real) -> None:
        self.n_values = samples.shape[1]
        self.variances = np.maximum(samples.var(0), 1e-18)
        self._samples = samples.T
        self._fits: dict[tuple[int, int], tuple[Real, float]] = {}

    def levels(self, value: int, n_bits: int) -> Real:
        """Of one value's quantiser; float64, (level,)."""
        return self._fit(value, n_bits)[0]

    def error(self, value: int, n_bits: int) -> float:
        """Mean square error of one value."""
        return self._fit(value, n_bits)[1]

    def errors(self, bits: NDArray[np.int64]) -> Real:
        """Mean square errors of all values; float64, (value,)."""
        return np.array([self.error(value, int(n)) for value, n in enumerate(bits)])

    def _fit(self, value: int, n_bits: int) -> tuple[Real, float]:
        key = (value, n_bits)
        if key not in self._fits:
            samples = self._samples[value]
            levels = lloyd_max(samples, n_bits)
            self._fits[key] = levels, float(np.mean((samples - levels[_nearest(samples, levels)]) ** 2))
        return self._fits[key]

    def allocate(self, n_bits: int) -> NDArray[np.int64]:
        """Bits of every value, adding up to n_bits where that is possible; int64, (value,)."""
        bits = np.zeros(self.n_values, np.int64)
        gains = np.array([self.error(value, 0) - self.error(value, 1) for value in range(self.n_values)])
        for _ in range(n_bits):
            value = int(np.argmax(gains))
            if gains[value] <= 0:
                break
            bits[value] += 1
            b = int(bits[value])
            gains[value] = self.error(value, b) - self.error(value, b + 1) if b < MOST_BITS else 0.0
        return bits

    def encode(self, values: Real, bits: NDArray[np.int64]) -> Bits:
        """Index of the nearest level of every value, in binary; uint8, (word, sum of bits) from (word, value)."""
        parts = []
        for value in np.flatnonzero(bits):
            n = int(bits[value])
            index = _nearest(values[:, value], self.levels(int(value), n))
            parts.append((index[:, None] >> np.arange(n - 1, -1, -1) & 1).astype(np.uint8))
        return np.concatenate(parts, 1) if parts else np.zeros((len(values), 0), np.uint8)

    def decode(self, words: Bits, bits: NDArray[np.int64]) -> Real:
        """Levels; float64, (word, value), the mean where a value has no bits."""
        found, at = np.empty((len(words), self.n_values)), 0
        for value in range(self.n_values):
            n = int(bits[value])
            index = words[:, at : at + n].astype(np.int64) @ (1 << np.arange(n - 1, -1, -1))
            found[:, value] = self.levels(value, n)[index]
            at += n
        return found


class SourceCode(Protocol):
    """CSI in a number of bits."""

    name: str
    n_bits: int

    def encode(self, csi: Tensor) -> Bits:
        """uint8, (word, n_bits) from complex64, (word, tap, beam)."""
        ...

    def decode(self, words: Bits, present: Tensor) -> Tensor:
        """Recover drops.

        Args:
            words: uint8, (drop * user, n_bits).
            present: bool, (drop, user): whose words are right.

        Returns:
            complex64, (drop, user, tap, beam); zero, the mean CSI, for users who are not there.
        """
        ...


class LinearBits:
    """Principal components of the linear code, quantised; every user by itself.

    Attributes:
        n_bits: Of a word.
    """

    name = "linear"

    def __init__(self, code: KltCode, quantisers: ScalarQuantisers, n_bits: int) -> None:
        self._code, self._quantisers = code, quantisers
        self._bits = quantisers.allocate(n_bits)
        self.n_bits = int(self._bits.sum())

    def encode(self, csi: Tensor) -> Bits:
        """See `SourceCode`."""
        return self._quantisers.encode(linear_values(self._code, csi, self._quantisers.n_values // 2), self._bits)

    def decode(self, words: Bits, present: Tensor) -> Tensor:
        """See `SourceCode`."""
        values = self._quantisers.decode(words, self._bits)
        components = values[:, 0::2] + 1j * values[:, 1::2]
        csi = components @ self._code.basis[:, : components.shape[1]].T
        shaped = torch.from_numpy(csi.astype(np.complex64)).reshape(*present.shape, *self._code.shape)
        return shaped * present[..., None, None]


def linear_values(code: KltCode, csi: Tensor, n_components: int) -> Real:
    """Real and imaginary parts of the first principal components of CSI of unit power, in turn; (word, 2 component)."""
    flat = csi.reshape(len(csi), -1).numpy()
    scale = np.sqrt(np.maximum(np.mean(np.abs(flat) ** 2, 1, keepdims=True), 1e-12))
    components = (flat / scale) @ code.basis[:, :n_components].conj()
    return np.stack([components.real, components.imag], -1).reshape(len(flat), -1).astype(np.float64)


class NetworkBits:
    """A trained network's symbols, quantised, and its decoder for all users together.

    Encoder and decoder are told the SNR that the quantisation noise amounts to.

    Attributes:
        n_bits: Of a word.
        length: Symbols.
        snr_db: What the network is told.
    """

    def __init__(
        self, network: Network, quantisers: ScalarQuantisers, length: int, snr_db: float, n_bits: int, name: str
    ) -> None:
        self.name, self.length, self.snr_db = name, length, snr_db
        self._network, self._quantisers = network, quantisers
        self._bits = quantisers.allocate(n_bits)
        self.n_bits = int(self._bits.sum())
        kept = 1 - quantisers.errors(self._bits) / quantisers.variances
        # A level is the mean of what it stands for: too small by this, where a noisy symbol would be too large.
        self._gain = np.where(self._bits > 0, 1 / np.maximum(kept, _LEAST_KEPT), 0.0)

    def encode(self, csi: Tensor) -> Bits:
        """See `SourceCode`."""
        return self._quantisers.encode(network_values(self._network, csi, self.length, self.snr_db), self._bits)

    def decode(self, words: Bits, present: Tensor) -> Tensor:
        """See `SourceCode`."""
        values = self._quantisers.decode(words, self._bits) * self._gain
        symbols = torch.zeros(len(words), self._network.config.max_length, dtype=torch.complex64)
        symbols[:, : self.length] = torch.from_numpy(values[:, 0::2] + 1j * values[:, 1::2]).to(torch.complex64)
        n_drops, n_users = present.shape
        symbols = symbols.reshape(n_drops, n_users, -1) * present[..., None]
        with torch.inference_mode():
            csi = self._network.decode(
                symbols,
                torch.full((n_drops,), self.length),
                torch.full((n_drops, n_users), self.snr_db),
                present,
            )
        return csi * present[..., None, None]


def network_values(network: Network, csi: Tensor, length: int, snr_db: float) -> Real:
    """Real and imaginary parts of a network's symbols, in turn; float64, (word, 2 length)."""
    words = []
    with torch.inference_mode():
        for part in csi.split(_CHUNK):
            n = len(part)
            word = network.encode(part, torch.full((n,), length), torch.full((n,), snr_db))[:, :length]
            words.append(torch.view_as_real(word).flatten(1).double().numpy())
    return np.concatenate(words)


class NetworkCoder:
    """Source codes of a network for any number of bits.

    Args:
        network: Trained.
        csi: complex64, (draw, tap, beam): training draws, to fit quantisers to.
        lengths: Numbers of symbols that it was trained for.
        name: Of the network.
    """

    def __init__(self, network: Network, csi: Tensor, lengths: tuple[int, ...], name: str) -> None:
        self.name, self.lengths = name, lengths
        self._network, self._csi = network, csi
        self._quantisers = cache(self._fitted)

    def codes(self, n_bits: int) -> list[SourceCode]:
        """Those among which the best one is, with half a bit to three bits for each real value where that can be.

        At less than a bit, part of the values has none at all, and the network does better when told less noise.
        """
        shares = {length: n_bits / (2 * length) for length in self.lengths}
        fitting = [length for length, share in shares.items() if _LOW <= share <= _HIGH]
        if not fitting:
            fitting = [max(self.lengths) if n_bits > max(self.lengths) else min(self.lengths)]
        found: list[SourceCode] = []
        for length in fitting:
            noise_db = self._noise_db(length, n_bits)
            for snr_db in sorted(DESIGN_SNR_DB, key=lambda snr_db: abs(snr_db - noise_db - _STEP_DB / 2))[:2]:
                quantisers = self._quantisers(length, snr_db)
                found.append(NetworkBits(self._network, quantisers, length, snr_db, n_bits, self.name))
        return found

    def _noise_db(self, length: int, n_bits: int) -> float:
        """SNR that quantisers amount to."""
        # What the network is told changes its symbols, but hardly how their power is spread.
        quantisers = self._quantisers(length, _TYPICAL_SNR_DB)
        lost = float(quantisers.errors(quantisers.allocate(n_bits)).sum() / quantisers.variances.sum())
        return -10 * math.log10(max(lost, 1e-6) / max(1 - lost, _LEAST_KEPT))

    def _fitted(self, length: int, snr_db: float) -> ScalarQuantisers:
        return ScalarQuantisers(network_values(self._network, self._csi, length, snr_db))


class LinearCoder:
    """Source codes of the linear code for any number of bits.

    Args:
        code: For one user alone.
        csi: complex64, (draw, tap, beam): training draws.
        n_components: That bits may go to.
    """

    name = LinearBits.name

    def __init__(self, code: KltCode, csi: Tensor, n_components: int) -> None:
        self._code = code
        n = min(n_components, code.basis.shape[1])
        self._quantisers = ScalarQuantisers(linear_values(code, csi, n))

    def codes(self, n_bits: int) -> list[SourceCode]:
        """The one."""
        return [LinearBits(self._code, self._quantisers, n_bits)]


def _nearest(samples: Real, levels: Real) -> NDArray[np.int64]:
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, samples)

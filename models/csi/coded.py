"""Separate source and channel coding of CSI: the best code for every length and SNR, and how it does end to end.

A user's CSI becomes bits (`quantised`), the bits symbols of a coded link, as many symbols as every other contender
sends, behind the same noise. For every length and SNR the best of a grid of source codes, code rates and modulations is
chosen by draws of the validation split and block error rates measured with the real decoder; what is evaluated then
are real bits through that decoder. Whether a word is right is known without a checksum, which costs nothing here and
bits elsewhere. A wrong word leaves the mean CSI, zero: an NMSE of 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .channels import ChannelConfig, Clustered, stream
from .evaluate import Condition, Contender, LinearContender, NetworkContender
from .link import Batch, add_noise, nmse
from .quantised import Bits, LinearCoder, NetworkCoder, SourceCode
from .separate import block_error_rate

SEPARATE = "separate"
"""Name of the contender that takes the best rate for every SNR."""

FIXED = "separate-fixed"
"""Name of the one that keeps the rate that is best at `DESIGN_SNR_DB`."""

DESIGN_SNR_DB = 10.0

BITS_PER_SYMBOL = (2, 4, 6)
RATES = (1 / 16, 1 / 8, 1 / 6, 1 / 4, 1 / 3, 2 / 5, 1 / 2, 3 / 5, 2 / 3, 3 / 4, 5 / 6, 1.0)

_TRAIN_DROPS = 1000
_VALID_DROPS = 250
_MESSAGES = 300
_COMPONENTS = 128
# Beyond this in the normal approximation no practical code is worth a trial.
_HOPELESS = 0.7
# Payloads that are tried with the network; the linear code, quick to try, ranks all.
_TRIED = 2


class Link(Protocol):
    """A channel code with a modulation: messages of bits as symbols of unit mean power."""

    n_symbols: int
    bits_per_symbol: int
    rate: float
    n_info: int

    def encode(self, bits: Bits) -> NDArray[np.complex64]:
        """complex64, (message, n_symbols) from uint8, (message, n_info)."""
        ...

    def decode(self, received: NDArray[np.complexfloating], noise_power: ArrayLike) -> Bits:
        """uint8, (message, n_info) from complex, (message, n_symbols)."""
        ...

    def block_errors(self, snr_db: float, n_messages: int, generator: np.random.Generator) -> int:
        """Messages of so many that come wrong through Gaussian noise."""
        ...


MakeLink = Callable[[int, int, float], Link]
"""Makes a link of so many symbols, bits per symbol, and a code rate."""


@dataclass(frozen=True)
class Scheme:
    """One way to send CSI in so many symbols.

    Attributes:
        link: Channel code and modulation.
        source: Source code.
        block_error_rate: Of the link, measured.
        source_nmse: Where nothing goes wrong.
    """

    link: Link
    source: SourceCode
    block_error_rate: float
    source_nmse: float

    @property
    def nmse(self) -> float:
        """Expected."""
        return (1 - self.block_error_rate) * self.source_nmse + self.block_error_rate

    def __str__(self) -> str:
        return (
            f"{1 << self.link.bits_per_symbol}-QAM, rate {self.link.rate:.3g}, {self.source.n_bits} bits "
            f"({self.source.name}), block errors {self.block_error_rate:.2g}"
        )


class SeparateCoding:
    """Finds the best scheme for a length and an SNR; slow the first time, for what was measured is kept.

    Args:
        config: Numbers of the downlink.
        make_link: Makes a link.
        linear: Linear code, for its components.
        network: Whose symbols may be quantised instead; None: none.
        lengths: Of the network's training.
        seed: Of draws.
    """

    def __init__(
        self,
        config: ChannelConfig,
        make_link: MakeLink,
        linear: LinearContender,
        network: NetworkContender | None = None,
        lengths: tuple[int, ...] = (),
        seed: int = 1,
    ) -> None:
        source = Clustered(config)
        draws = source.draw(_TRAIN_DROPS, stream("train", seed + 1)).delay_angle.flatten(0, 1)
        self._valid = source.draw(_VALID_DROPS, stream("valid", seed)).delay_angle
        self._linear = LinearCoder(linear.alone, draws, _COMPONENTS)
        self._network = None
        if network is not None and lengths:
            self._network = NetworkCoder(network.network, draws, lengths, network.name)
        self._seed, self._make_link = seed, make_link
        self._links: dict[tuple[int, int, float], Link | None] = {}
        self._rates: dict[tuple[int, int, float, float], float] = {}
        self._sources: dict[tuple[int, bool], tuple[SourceCode, float]] = {}
        self._schemes: dict[tuple[int, float], Scheme] = {}

    def scheme(self, length: int, snr_db: float) -> Scheme:
        """The best one for so many symbols at an SNR."""
        key = (length, float(snr_db))
        if key not in self._schemes:
            self._schemes[key] = self._search(*key)
        return self._schemes[key]

    def _search(self, length: int, snr_db: float) -> Scheme:
        links = [
            link
            for n_bits in BITS_PER_SYMBOL
            for rate in RATES
            if (link := self._link(length, n_bits, rate)) is not None
        ]
        # The most robust one stands in where all are hopeless.
        able = [link for link in links if block_error_rate(length, snr_db, link.n_info) < _HOPELESS] or links[:1]
        found = [
            Scheme(link, source, self._error_rate(link, snr_db), value)
            for link in able
            for source, value in [self._source(link.n_info, trained=False)]
        ]
        found.sort(key=lambda scheme: scheme.nmse)
        if self._network is not None:
            found += [
                Scheme(scheme.link, source, scheme.block_error_rate, value)
                for scheme in found[:_TRIED]
                for source, value in [self._source(scheme.link.n_info, trained=True)]
            ]
        return min(found, key=lambda scheme: scheme.nmse)

    def _link(self, length: int, n_bits: int, rate: float) -> Link | None:
        key = (length, n_bits, rate)
        if key not in self._links:
            fits = math.floor(length * n_bits * rate + 1e-9) >= 1
            self._links[key] = self._make_link(length, n_bits, rate) if fits else None
        return self._links[key]

    def _error_rate(self, link: Link, snr_db: float) -> float:
        key = (link.n_symbols, link.bits_per_symbol, link.rate, snr_db)
        if key not in self._rates:
            generator = np.random.default_rng([self._seed, link.n_symbols, link.bits_per_symbol, link.n_info])
            self._rates[key] = link.block_errors(snr_db, _MESSAGES, generator) / _MESSAGES
        return self._rates[key]

    def _source(self, n_bits: int, trained: bool) -> tuple[SourceCode, float]:
        """The best source code of a kind for so many bits, and its NMSE."""
        key = (n_bits, trained)
        if key not in self._sources:
            coder = self._network if trained else self._linear
            assert coder is not None
            present = torch.ones(self._valid.shape[:2], dtype=torch.bool)
            tried: list[tuple[SourceCode, float]] = []
            for code in coder.codes(n_bits):
                recovered = code.decode(code.encode(self._valid.flatten(0, 1)), present)
                tried.append((code, float(nmse(self._valid, recovered).mean())))
            self._sources[key] = min(tried, key=lambda one: one[1])
        return self._sources[key]


class SeparateContender:
    """Separate coding as a contender of an evaluation.

    Args:
        coding: Finds schemes.
        fixed_at_db: SNR for which the scheme of a length is chosen, whatever the SNR is then; None: each its own.
    """

    def __init__(self, coding: SeparateCoding, fixed_at_db: float | None = None) -> None:
        self.name = SEPARATE if fixed_at_db is None else FIXED
        self.coding, self.fixed_at_db = coding, fixed_at_db

    def scheme(self, length: int, snr_db: float) -> Scheme:
        """What is sent."""
        return self.coding.scheme(length, snr_db if self.fixed_at_db is None else self.fixed_at_db)

    def recover(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """See `evaluate.Contender`; zero for users whose words came wrong."""
        length, snr_db = int(batch.lengths[0]), float(batch.snr_db[0, 0])
        scheme = self.scheme(length, snr_db)
        link, source = scheme.link, scheme.source
        bits = source.encode(batch.csi.flatten(0, 1))
        # A source code may have use for fewer bits than there are.
        filled = np.pad(bits, ((0, 0), (0, link.n_info - bits.shape[1])))
        symbols = torch.from_numpy(link.encode(filled)).unflatten(0, batch.csi.shape[:2])
        n_padded = length if batch.padded is None else batch.padded
        padded = torch.nn.functional.pad(symbols, (0, n_padded - length))
        received = add_noise(padded, batch.snr_db, generator)[..., :length]
        decided = link.decode(received.flatten(0, 1).numpy(), 10 ** (-snr_db / 10))
        right = torch.from_numpy((decided == filled).all(1)).reshape(batch.present.shape)
        return source.decode(decided[:, : bits.shape[1]], right & batch.present)


def choose_schemes(
    chosen: Sequence[Contender],
    config: ChannelConfig,
    conditions: Sequence[Condition],
    on_progress: Callable[[str, float], None],
) -> dict[str, str]:
    """Choose what separate contenders send in some conditions, before they are evaluated: that takes its time.

    Args:
        chosen: Contenders of any kind.
        config: Numbers of the downlink.
        conditions: Of the evaluation.
        on_progress: Told what is done, and the share.

    Returns:
        What was chosen, by contender, length and SNR.
    """
    size = config.n_taps * config.n_antennas
    wanted = {
        (one.name, size // condition.ratio, condition.snr_db): one
        for condition in conditions
        for one in chosen
        if isinstance(one, SeparateContender)
    }
    found = {}
    for done, ((name, length, snr_db), one) in enumerate(wanted.items()):
        on_progress(f"choosing code rates, {length} symbols at {snr_db:g} dB", done / len(wanted))
        found[f"{name}, {length} symbols, {snr_db:g} dB"] = str(one.scheme(length, snr_db))
    return found

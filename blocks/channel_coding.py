"""LDPC codes from GNU Radio's gr-fec with Gray-labelled QAM: bits in, symbols out, and back.

Codes of any length and rate: parity-check matrices come from `waveforms.parity_check`, encoder and decoder are
`fec.ldpc_encoder` and `fec.ldpc_decoder` (sum-product algorithm). They are called directly, without a flowgraph, so
that a block may use them in its own `work`. Not for several threads at once.
"""

from __future__ import annotations

import ctypes
import math
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .waveforms import qam
from .waveforms.parity_check import as_alist, parity_check

Bits = NDArray[np.uint8]

LARGEST_BLOCK = 1024
"""Coded bits beyond which a message is split into several code words; longer ones decode slowly."""

ITERATIONS = 40

_LOWEST_RATE = 1 / 3
# The decoder of GNU Radio up to 3.10 takes exp(input / (2 sigma^2)) for the likelihood ratio, later ones the input for
# its logarithm; with this sigma both mean the same.
_SIGMA = math.sqrt(0.5)
# Beyond this the decoder's ratios come too near to 0 and infinity; at 0 it would divide by zero.
_LARGEST_LLR = 20.0
_SMALLEST_LLR = 1e-3


class LdpcCode:
    """One block code.

    Below a rate of 1/3 the code words of a code of rate 1/3 are repeated; with as many coded bits as information bits
    there is no code.

    Args:
        n_info: Information bits of a word, at least 1.
        n_coded: Coded bits of a word, from n_info to `waveforms.parity_check.MAX_CODED`.
        iterations: Of the decoder, at most.
    """

    def __init__(self, n_info: int, n_coded: int, iterations: int = ITERATIONS) -> None:
        if not 1 <= n_info <= n_coded:
            raise ValueError(f"n_info={n_info}, n_coded={n_coded}: need 1 <= n_info <= n_coded")
        self.n_info, self.n_coded, self.iterations = n_info, n_coded, iterations
        self._n_mother = min(n_coded, max(math.floor(n_info / _LOWEST_RATE), n_info + 1)) if n_coded > n_info else 0
        self._codec = _Codec(n_info, self._n_mother, iterations) if self._n_mother else None

    def encode(self, bits: Bits) -> Bits:
        """Add parity bits; uint8, (word, n_coded) from (word, n_info) of zeros and ones."""
        if bits.ndim != 2 or bits.shape[1] != self.n_info:
            raise ValueError(f"bits is {bits.shape}; needs (word, {self.n_info})")
        if self._codec is None:
            return bits.astype(np.uint8)
        return self._codec.encode(bits)[:, np.arange(self.n_coded) % self._n_mother]

    def decode(self, llr: NDArray[np.floating]) -> Bits:
        """Recover information bits.

        Args:
            llr: float, (word, n_coded): ln P(0) / P(1), not a number where nothing is known.

        Returns:
            uint8, (word, n_info); whether they are right is for the caller to check.
        """
        if llr.ndim != 2 or llr.shape[1] != self.n_coded:
            raise ValueError(f"llr is {llr.shape}; needs (word, {self.n_coded})")
        known = np.nan_to_num(np.asarray(llr, np.float64), nan=0.0)
        if self._codec is None:
            return (known < 0).astype(np.uint8)
        n = self._n_mother
        known = np.pad(known, ((0, 0), (0, -self.n_coded % n))).reshape(len(known), -1, n).sum(1)
        size = np.clip(np.abs(known), _SMALLEST_LLR, _LARGEST_LLR)
        return self._codec.decode(np.where(known < 0, -size, size).astype(np.float32))


class CodedModulation:
    """Messages of bits as QAM symbols of unit mean power.

    A message is split into equal code words of about `LARGEST_BLOCK` coded bits at most, and their bits are spread over
    all symbols. What does not divide is filled with zeros.

    Args:
        n_symbols: Complex symbols of a message.
        bits_per_symbol: One of `waveforms.qam.BITS_PER_SYMBOL`.
        rate: Information bits per coded bit, above 0, at most 1: uncoded.

    Attributes:
        n_info: Information bits of a message.

    Raises:
        ValueError: nothing fits.
    """

    def __init__(self, n_symbols: int, bits_per_symbol: int, rate: float) -> None:
        if n_symbols < 1 or not 0 < rate <= 1:
            raise ValueError(f"n_symbols={n_symbols}, rate={rate}: need at least 1 symbol and 0 < rate <= 1")
        self.n_symbols, self.bits_per_symbol, self.rate = n_symbols, bits_per_symbol, rate
        n_coded = n_symbols * bits_per_symbol
        self.n_info = math.floor(n_coded * rate + 1e-9)
        if self.n_info < 1:
            raise ValueError(f"{n_coded} coded bits at rate {rate:g} carry less than one information bit")
        self._n_words = math.ceil(n_coded / LARGEST_BLOCK)
        self._code = ldpc_code(math.ceil(self.n_info / self._n_words), n_coded // self._n_words)
        # Neighbouring coded bits must not share symbols, nor all parity bits the weaker labels.
        self._order = np.random.default_rng(n_coded).permutation(n_coded)

    def encode(self, bits: Bits) -> NDArray[np.complex64]:
        """Messages to symbols; complex64, (message, n_symbols) from uint8, (message, n_info)."""
        return qam.modulate(self.encode_bits(bits), self.bits_per_symbol)

    def encode_bits(self, bits: Bits) -> Bits:
        """Messages to coded bits in the order of the symbols that are to carry them.

        Args:
            bits: uint8, (message, n_info).

        Returns:
            uint8, (message, n_symbols * bits_per_symbol).
        """
        if bits.ndim != 2 or bits.shape[1] != self.n_info:
            raise ValueError(f"bits is {bits.shape}; needs (message, {self.n_info})")
        code = self._code
        filled = np.pad(bits, ((0, 0), (0, self._n_words * code.n_info - self.n_info)))
        coded = code.encode(filled.reshape(-1, code.n_info)).reshape(len(bits), -1)
        spread = np.zeros((len(bits), self._order.size), np.uint8)
        spread[:, self._order[: coded.shape[1]]] = coded
        return spread

    def decode(self, received: NDArray[np.complexfloating], noise_power: ArrayLike) -> Bits:
        """Received symbols to messages.

        Args:
            received: complex, (message, n_symbols): scaled so that symbols were sent with unit mean power.
            noise_power: float, broadcast against `received`, above 0.

        Returns:
            uint8, (message, n_info).
        """
        if received.ndim != 2 or received.shape[1] != self.n_symbols:
            raise ValueError(f"received is {received.shape}; needs (message, {self.n_symbols})")
        return self.decode_bits(qam.soft_bits(received, self.bits_per_symbol, noise_power))

    def decode_bits(self, llr: NDArray[np.floating]) -> Bits:
        """Ratios of coded bits to messages.

        Args:
            llr: float, (message, n_symbols * bits_per_symbol): ln P(0) / P(1), in the order of `encode_bits`.

        Returns:
            uint8, (message, n_info).
        """
        if llr.ndim != 2 or llr.shape[1] != self._order.size:
            raise ValueError(f"llr is {llr.shape}; needs (message, {self._order.size})")
        code = self._code
        used = llr[:, self._order[: self._n_words * code.n_coded]]
        return code.decode(used.reshape(-1, code.n_coded)).reshape(len(llr), -1)[:, : self.n_info]

    def block_errors(self, snr_db: float, n_messages: int, generator: np.random.Generator) -> int:
        """Send random messages through Gaussian noise, and count those that come back wrong."""
        bits = generator.integers(0, 2, (n_messages, self.n_info), dtype=np.uint8)
        noise_power = 10 ** (-snr_db / 10)
        noise = generator.standard_normal((n_messages, self.n_symbols, 2)) @ np.array([1, 1j])
        received = self.encode(bits) + noise * math.sqrt(noise_power / 2)
        return int((self.decode(received, noise_power) != bits).any(1).sum())


@lru_cache(maxsize=256)
def ldpc_code(n_info: int, n_coded: int) -> LdpcCode:
    """A code that was made before, or a new one: the larger take a second."""
    return LdpcCode(n_info, n_coded)


class _Codec:
    """Encoder and decoder of GNU Radio for one parity-check matrix."""

    def __init__(self, n_info: int, n_coded: int, iterations: int) -> None:
        # Where GNU Radio is missing, this says how to get it.
        from . import runtime  # noqa: F401, I001
        from gnuradio import fec

        self._n_info, self._n_coded = n_info, n_coded
        with tempfile.TemporaryDirectory(prefix="semair-") as folder:
            path = Path(folder) / "code.alist"
            path.write_text(as_alist(parity_check(n_info, n_coded)))
            self._encoder = fec.ldpc_encoder.make(str(path))
            self._decoder = fec.ldpc_decoder.make(str(path), sigma=_SIGMA, max_iterations=iterations)

    def encode(self, bits: Bits) -> Bits:
        return _each(self._encoder, np.ascontiguousarray(bits, np.uint8), self._n_coded)

    def decode(self, llr: NDArray[np.float32]) -> Bits:
        # GNU Radio wants positive numbers for ones.
        return _each(self._decoder, np.ascontiguousarray(-llr), self._n_info)


_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.restype = ctypes.py_object
_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


def _each(coder: Any, words: NDArray[Any], n_out: int) -> Bits:
    """Run a coder of gr-fec, which takes addresses, on every row."""
    found = np.zeros((len(words), n_out), np.uint8)
    for word, out in zip(words, found, strict=True):
        coder.generic_work(_capsule(word.ctypes.data, None, None), _capsule(out.ctypes.data, None, None))
    return found

"""A trained network as users and base stations use it: arrays in, arrays out, one at a time, by an inference engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import ModelError
from ..engine import Engine, make_engine
from . import networks
from .evaluate import load_contender, trained_bandwidths_hz

Complex = NDArray[np.complex64]

_TINY = 1e-12
# Mean power of a word over what symbols and noise have together. Of one Gaussian symbol one in ten million is louder.
_LOUDEST = 16.0


class Codec:
    """Encoder and joint decoder of one set of weights.

    The same bits for the same input. Not for several threads at once.

    Args:
        name: Of shipped weights, or a folder.
        size: (taps, antennas) that the weights must be for; None: any.
        engine: One of `models.engine.ENGINES`.
        bandwidth_hz: Spanned by the subcarriers, one over the distance of taps; None: not compared with the card's.

    Attributes:
        card: What the weights are.
        max_length: Symbols of the longest feedback.
        lengths: Feedback lengths that they were trained for.

    Raises:
        ScenarioError: there are no such weights.
        ModelError: they are damaged, or for another numerology.
    """

    def __init__(
        self,
        name: str | Path,
        size: tuple[int, int] | None = None,
        engine: str = "onnxruntime",
        bandwidth_hz: float | None = None,
    ) -> None:
        self.card, contender = load_contender(str(name))
        self._network: networks.Network = contender.network
        config = self._network.config
        self.size = (config.n_taps, config.n_antennas)
        if size is not None and size != self.size:
            raise ModelError(
                f"{name}: trained for {self.size[0]} taps and {self.size[1]} antennas, used with {size[0]} and "
                f"{size[1]}; choose other weights, or train some with `semair train csi`"
            )
        trained = trained_bandwidths_hz(self.card)
        if bandwidth_hz is not None and trained and not 0.99 * trained[0] <= bandwidth_hz <= 1.01 * trained[1]:
            raise ModelError(
                f"{name}: trained for {trained[0] / 1e6:g} to {trained[1] / 1e6:g} MHz, used with "
                f"{bandwidth_hz / 1e6:g} MHz, where delay taps mean something else; choose other weights"
            )
        self.max_length = config.max_length
        self.lengths = tuple(self.card.scenario.get("lengths", [self.max_length]))
        self._engine_name = engine
        self._engines: dict[int, Engine] = {}

    def encode(self, csi: Complex, length: int, snr_db: float) -> Complex:
        """Compress one user's CSI.

        Args:
            csi: complex64, (tap, beam): delay and angle, of any scale.
            length: symbols to send.
            snr_db: of a received symbol, as the base station told.

        Returns:
            complex64, (length,): symbols of unit mean power.

        Raises:
            ValueError: the size does not fit, CSI is not finite or zero throughout, or the length is out of range.
        """
        values = np.asarray(csi)
        if values.shape != self.size or not np.iscomplexobj(values):
            raise ValueError(f"csi is {values.dtype} {values.shape}; needs complex {self.size}, (tap, beam)")
        # In double precision no number of single precision overflows when it is squared or scaled.
        values = values.astype(np.complex128)
        with np.errstate(over="ignore", invalid="ignore"):
            power = float(np.mean(np.abs(values) ** 2))
        if not np.isfinite(power) or power == 0:
            raise ValueError(f"csi has a mean power of {power:g}; needs finite numbers that are not all 0")
        self._check(length, snr_db)
        scaled = values / np.sqrt(power)
        features = np.concatenate([scaled.real, scaled.imag], -1)[None].astype(np.float32)
        inputs = (features, self._condition(length, snr_db, snr_db)[None])
        if 0 not in self._engines:
            self._engines[0] = make_engine(self._network.encoder, inputs, self._engine_name, [()] * 2)
        code = self._engines[0].run(*inputs)[0].astype(np.float64)
        word = code[:length] + 1j * code[self.max_length : self.max_length + length]
        return (word / np.sqrt(max(float(np.mean(np.abs(word) ** 2)), _TINY))).astype(np.complex64)

    def decode(
        self, received: Complex, snr_db: NDArray[np.floating] | float, announced_db: float
    ) -> tuple[Complex, NDArray[np.bool_]]:
        """Recover the CSI of neighbouring users together.

        A user whose symbols are all zero, not all finite, or far louder than its SNR allows, is left out: nothing is
        recovered for it, and the others are decoded as if it were not there.

        Args:
            received: complex64, (user, symbol): scaled so that a symbol was sent with unit mean power.
            snr_db: of a received symbol; one for all, or (user,).
            announced_db: what users were told when they encoded: codes are planned for it.

        Returns:
            CSI of about unit mean power, complex64 (user, tap, beam), zero for users left out; and bool, (user,): who
            was decoded.

        Raises:
            ValueError: shapes do not fit, or a number of symbols or an SNR is out of range.
        """
        values = np.asarray(received)
        if values.ndim != 2 or not np.iscomplexobj(values) or not values.shape[0]:
            raise ValueError(f"received is {values.dtype} {values.shape}; needs complex (user, symbol)")
        n_users, length = values.shape
        snr = np.asarray(snr_db, np.float64)
        if snr.shape not in ((), (n_users,)):
            raise ValueError(f"snr_db has shape {snr.shape}; needs one for all, or ({n_users},), one for each user")
        snr = np.broadcast_to(snr, (n_users,))
        finite = np.isfinite(values.real) & np.isfinite(values.imag)
        there = finite.all(1) & np.where(finite, values, 0).any(1)
        for user in np.flatnonzero(there):
            self._check(length, float(snr[user]))
        self._check(length, announced_db)
        with np.errstate(over="ignore"):
            power = np.mean(np.abs(values[there].astype(np.complex128)) ** 2, axis=1)
        there[there] = power <= _LOUDEST * (1 + 10 ** (-np.clip(snr[there], -20, 40) / 10))
        heard = np.flatnonzero(there)
        found = np.zeros((n_users, *self.size), np.complex64)
        if not heard.size:
            return found, there
        code = np.zeros((1, heard.size, 2 * self.max_length), np.float32)
        code[0, :, :length] = values[heard].real
        code[0, :, self.max_length : self.max_length + length] = values[heard].imag
        conditions = np.stack([self._condition(length, float(snr[user]), announced_db) for user in heard])[None]
        inputs = (code, conditions, np.ones((1, heard.size), np.float32))
        # One engine for each number of users: fixed sizes leave more to optimise.
        if heard.size not in self._engines:
            self._engines[heard.size] = make_engine(self._network.decoder, inputs, self._engine_name, [()] * 3)
        real, imag = np.split(self._engines[heard.size].run(*inputs)[0], 2, axis=-1)
        found[heard] = real + 1j * imag
        return found, there

    def _check(self, length: int, snr_db: float) -> None:
        if not isinstance(length, int | np.integer) or not 1 <= length <= self.max_length:
            raise ValueError(f"{length} symbols; these weights take 1 to {self.max_length}, best {self.lengths}")
        if not np.isfinite(snr_db):
            raise ValueError(f"snr_db={snr_db}: must be finite")

    def _condition(self, length: int, snr_db: float, announced_db: float) -> NDArray[np.float32]:
        with torch.inference_mode():
            snr, told = (torch.tensor(value, dtype=torch.float32) for value in (snr_db, announced_db))
            conditions = self._network.conditions(torch.tensor(length), snr, told)
        return conditions.numpy()

"""A trained network as base stations and users run it: arrays in, arrays out, one frame at a time, by an engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import ModelError
from ..engine import Engine, make_engine
from . import frames, link
from .evaluate import Joined, load_contender
from .networks import Network
from .networks.base import MULTIPLE, PIXELS

Complex = NDArray[np.complex64]
Real = NDArray[np.float32]


class Sent(NamedTuple):
    """A frame as the antennas send it, of unit mean power over subcarriers and OFDM symbols.

    Attributes:
        reference: complex64, (reference symbol, subcarrier, antenna): one reference symbol for each user.
        data: complex64, (OFDM symbol, subcarrier, antenna).
    """

    reference: Complex
    data: Complex


class Received(NamedTuple):
    """What a user makes of a frame.

    Attributes:
        picture: uint8, (row, column, 3).
        sinr_db: estimated, mean over subcarriers of the ratio in dB.
    """

    picture: NDArray[np.uint8]
    sinr_db: float


class PictureCodec:
    """Transmitter and receiver of one set of weights.

    The same bits for the same input. Not for several threads at once.

    Args:
        name: Of shipped weights, or a folder; see `evaluate.load_contender`.
        size: (antennas, subcarriers) that the weights must be for; None: any.
        engine: One of `models.engine.ENGINES`.

    Attributes:
        card: What the weights are.
        size: (antennas, subcarriers).

    Raises:
        ScenarioError: there are no such weights.
        ModelError: they are damaged, or for another numerology.
    """

    def __init__(self, name: str | Path, size: tuple[int, int] | None = None, engine: str = "onnxruntime") -> None:
        self.card, contender = load_contender(str(name))
        config = contender.network.config
        self.size = (config.n_antennas, config.n_subcarriers)
        if size is not None and size != self.size:
            raise ModelError(
                f"{name}: trained for {self.size[0]} antennas and {self.size[1]} subcarriers, used with {size[0]} and "
                f"{size[1]}; choose other weights, or train some with `semair train semantic`"
            )
        self._running = _Running(contender.network, engine)

    def n_symbols(self, rows: int, columns: int) -> int:
        """OFDM symbols of the data of pictures of rows x columns pixels; reference symbols come on top.

        Raises:
            ValueError: a side is no multiple of 64.
        """
        _check_side(rows, columns)
        c = self._running.config
        return -(-(rows // PIXELS * columns // PIXELS) // c.n_groups) * c.block_symbols

    def transmit(self, pictures: NDArray[np.uint8], csi: Complex, csi_nmse_db: float, snr_db: float) -> Sent:
        """Code and precode the pictures of all users.

        Args:
            pictures: uint8, (user, row, column, 3): sides are multiples of 64; see `images.prepare`.
            csi: complex64, (user, subcarrier, antenna), of any common scale; users whose channel is not known have
                zeros, nothing is steered to them.
            csi_nmse_db: error of the CSI; -40 or less for none.
            snr_db: transmit power over noise power, channels having unit mean power.

        Raises:
            ValueError: shapes do not fit, or CSI or SNR is not finite.
        """
        sent, known = np.asarray(pictures), np.asarray(csi)
        if sent.ndim != 4 or sent.shape[3] != 3 or sent.dtype != np.uint8 or not len(sent):
            raise ValueError(f"pictures is {sent.dtype} {sent.shape}; needs uint8 (user, row, column, 3)")
        _check_side(*sent.shape[1:3])
        if known.shape != (len(sent), *self.size[::-1]) or not np.iscomplexobj(known):
            raise ValueError(f"csi is {known.dtype} {known.shape}; needs complex {(len(sent), *self.size[::-1])}")
        if not (np.isfinite(known).all() and np.isfinite(snr_db) and np.isfinite(csi_nmse_db)):
            raise ValueError(f"csi, csi_nmse_db={csi_nmse_db} and snr_db={snr_db} must be finite")
        squares = np.ascontiguousarray(np.moveaxis(sent, 3, 1), np.float32) / np.float32(255)
        rows = np.ascontiguousarray(known, np.complex64)
        with one_thread():
            reference, data, _ = frames.transmit(self._running, squares, rows, float(csi_nmse_db), float(snr_db))
        return Sent(*(np.ascontiguousarray(np.moveaxis(part, 2, 0)) for part in (reference, data)))

    def receive(
        self, reference: Complex, data: Complex, noise_power: float, user: int, size: tuple[int, int]
    ) -> Received:
        """Recover one user's picture.

        Args:
            reference: complex64, (reference symbol, subcarrier): as received, in the order sent.
            data: complex64, (OFDM symbol, subcarrier).
            noise_power: of the receiver, in the same units.
            user: which of the streams is the user's, from 0.
            size: rows and columns of the picture.

        Raises:
            ValueError: shapes do not fit, or something is not finite.
        """
        shapes = (len(reference), self.size[1]), (self.n_symbols(*size), self.size[1])
        for name, part, shape in zip(("reference", "data"), (reference, data), shapes, strict=True):
            if part.shape != shape or not np.iscomplexobj(part) or not np.isfinite(part).all():
                raise ValueError(f"{name} is {part.dtype} {part.shape}; needs complex {shape}, finite")
        if not 0 <= user < len(reference) or not (np.isfinite(noise_power) and noise_power >= 0):
            raise ValueError(f"user={user} of {len(reference)}, noise_power={noise_power}: out of range")
        pilots, grid = (torch.from_numpy(part.astype(np.complex64).T.copy())[None, None] for part in (reference, data))
        tokens = (size[0] // PIXELS, size[1] // PIXELS)
        with torch.inference_mode(), one_thread():
            noise = torch.tensor([[max(noise_power, 1e-12)]], dtype=torch.float32)
            heard = link.hear(self._running, pilots, grid, noise, tokens, (user,))
            picture = link.decode(self._running, heard)[0, 0]
        shown = (picture * 255 + 0.5).byte().permute(1, 2, 0).contiguous().numpy()
        return Received(shown, float(heard.sinr_db))


class _Running:
    """A network whose real modules are run by engines, one for each set of shapes."""

    training = False

    def __init__(self, network: Network, engine: str) -> None:
        self.config = network.config
        self._network, self._name = network, engine
        self._joined = Joined(network.transmitter) if network.transmitter is not None else None
        self._engines: dict[tuple[object, ...], Engine] = {}

    @property
    def transmits(self) -> bool:
        return self._joined is not None

    def encode(self, pictures: Real, condition: Real) -> Real:
        return self._run("encoder", self._network.encoder, (pictures, condition))

    def transmit(self, symbols: Real, csi: Real, condition: Real) -> tuple[Real, Real | None, Real | None]:
        assert self._joined is not None
        flat = self._run("transmitter", self._joined, (symbols[None], csi[None], condition[None]))
        parts: list[Real | None] = []
        at = 0
        for shape in self._joined.shapes(1, *symbols.shape):
            n = 0 if shape is None else math.prod(shape)
            parts.append(None if shape is None else flat[at : at + n].reshape(shape[1:]))
            at += n
        assert parts[0] is not None
        return parts[0], parts[1], parts[2]

    def decoder(self, *inputs: Tensor) -> Tensor:
        return torch.from_numpy(self._run("decoder", self._network.decoder, [values.numpy() for values in inputs]))

    def _run(self, name: str, module: torch.nn.Module, inputs: Sequence[NDArray[Any]]) -> Real:
        arrays = [np.ascontiguousarray(values) for values in inputs]
        key = (name, *(array.shape for array in arrays))
        if key not in self._engines:
            self._engines[key] = make_engine(module, arrays, self._name, [()] * len(arrays))
        return self._engines[key].run(*arrays)


class one_thread:  # noqa: N801
    """Lets torch use one thread, as engines do: the same bits whatever runs beside.

    Where several threads run codecs, around all of them: each by itself would change the number back and forth.
    """

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._before)


def _check_side(rows: int, columns: int) -> None:
    if min(rows, columns) < MULTIPLE or rows % MULTIPLE or columns % MULTIPLE:
        raise ValueError(f"pictures of {rows} x {columns} pixels; sides must be multiples of {MULTIPLE}")

"""Digital pictures over the same downlink: whatever coder turns a picture into symbols, and symbols into a picture.

Coders live above this room (`flowgraphs`), where channel codes and picture formats are at hand; here are frame,
precoding, channel and receiver, the very ones that networks have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import link, precoding
from .link import Channels
from .networks.base import PIXELS, NetworkConfig

if TYPE_CHECKING:
    from .evaluate import Condition, Evaluation

FAILED_LEVEL = 0.5
"""Brightness of the grey picture that stands for one that was not decoded."""


class PictureCoder(Protocol):
    """Source and channel coding with modulation."""

    def encode(self, picture: NDArray[np.uint8], n_symbols: int) -> NDArray[np.complex64]:
        """A picture, (row, column, 3), as n_symbols symbols of unit mean power."""
        ...

    def decode(
        self, received: NDArray[np.complex64], noise_power: NDArray[np.float64], size: tuple[int, int]
    ) -> NDArray[np.uint8] | None:
        """Symbols, (n_symbols,), scaled as they were sent, with their noise powers, as a picture of a size; None where
        the check sum says that it is wrong."""
        ...


class DigitalContender:
    """Pictures of several users behind regularised zero forcing, every user with the same coder.

    Args:
        name: For people.
        coder: Of the pictures.
        config: Numerology of the frame.
    """

    def __init__(self, name: str, coder: PictureCoder, config: NetworkConfig | None = None) -> None:
        self.name, self.coder = name, coder
        self.config = config or NetworkConfig()

    def prepare(self, condition: Condition, evaluation: Evaluation) -> None:
        """See `evaluate.Contender`; a coder of fixed rate chooses nothing."""

    def deliver(
        self, pictures: Tensor, channels: Channels, snr_db: float, generator: torch.Generator
    ) -> tuple[Tensor, NDArray[np.bool_]]:
        """See `evaluate.Contender`."""
        rows, columns = pictures.shape[-2:]
        n_symbols = used_symbols(self.config, rows, columns)
        symbols = np.stack([[self.coder.encode(one, n_symbols) for one in drop] for drop in as_bytes(pictures)])
        snr = torch.full((len(pictures),), snr_db)
        received, noise = sent_through(self.config, torch.from_numpy(symbols), channels, snr, generator)
        return as_shown(pictures, lambda at: self.coder.decode(received[at], noise[at], (rows, columns)))


def as_bytes(pictures: Tensor) -> NDArray[np.uint8]:
    """Pictures as coders take them; uint8 (..., row, column, 3) from float32 (..., 3, row, column) in [0, 1]."""
    return (pictures * 255 + 0.5).byte().movedim(-3, -1).numpy()


def as_shown(
    pictures: Tensor, decode: Callable[[tuple[int, ...]], NDArray[np.uint8] | None]
) -> tuple[Tensor, NDArray[np.bool_]]:
    """What users see, grey where nothing was decoded.

    Args:
        pictures: float32, (batch, user, 3, row, column): as sent.
        decode: makes the picture of one place (batch, user), None where it fails.

    Returns:
        float32, of the shape of `pictures`, and which failed, bool (batch, user).
    """
    found = torch.full_like(pictures, FAILED_LEVEL)
    failed = np.zeros(tuple(pictures.shape[:2]), bool)
    for at in np.ndindex(failed.shape):
        picture = decode(at)
        failed[at] = picture is None
        if picture is not None:
            found[at] = torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 255
    return found, failed


def used_symbols(config: NetworkConfig, rows: int, columns: int) -> int:
    """Complex symbols that a picture gets: whole OFDM symbols, as many as the networks fill."""
    n_tokens = (rows // PIXELS) * (columns // PIXELS)
    return -(-n_tokens // config.n_groups) * config.n_groups * config.uses


def sent_through(
    config: NetworkConfig, symbols: Tensor, channels: Channels, snr_db: Tensor, generator: torch.Generator
) -> tuple[NDArray[np.complex64], NDArray[np.float64]]:
    """Precode, send and equalise symbols of all users, with regularised zero forcing.

    Args:
        config: numerology.
        symbols: complex64, (batch, user, symbol): unit mean power, whole OFDM symbols.
        channels: true and known ones; known ones have unit mean power as true ones do.
        snr_db: float32, (batch,).
        generator: of the noise.

    Returns:
        complex64, (batch, user, symbol): scaled as sent; and float64 of the same shape, the power of noise and
        interference that the receiver reckons with.
    """
    b, k, n = symbols.shape
    v = precoding.regularised(link.scaled(channels.known).transpose(1, 2), link.base_noise(channels.nmse_db, snr_db))
    order, back = spreading(n)
    grid = symbols[..., order].unflatten(-1, (config.n_subcarriers, -1))
    frame = link.framed(v, v @ grid.transpose(1, 2), (0, 0))
    references, data = link.propagate(frame, channels.h, snr_db, generator)
    own_noise = (10 ** (-snr_db / 10))[:, None].expand(b, k)
    own, disturbance = link.own_channel(references, own_noise)
    gain = own.abs().square().clamp_min(1e-9)
    found = (data * (own.conj() / gain)[..., None]).flatten(2)
    noise = (disturbance / gain)[..., None].expand_as(data).flatten(2)
    return found[..., back].numpy(), noise[..., back].double().numpy()


def spreading(n: int) -> tuple[Tensor, Tensor]:
    """Where each of n symbols is sent, the same for all users, and the way back; int64, (n,)."""
    order = torch.from_numpy(np.random.default_rng(n).permutation(n))
    back = torch.empty_like(order)
    back[order] = torch.arange(n)
    return order, back

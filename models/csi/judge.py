"""How good recovered CSI is, on arrays: error, likeness, sum rate, and what the same code does at symbol level."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from .evaluate import rzf_sum_rate

Complex = NDArray[np.complex64]


class Coder(Protocol):
    """Codes CSI and recovers it; `codec.Codec` is one."""

    def encode(self, csi: Complex, length: int, snr_db: float) -> Complex:
        """See `codec.Codec.encode`."""

    def decode(
        self, received: Complex, snr_db: NDArray[np.floating] | float, announced_db: float
    ) -> tuple[Complex, NDArray[np.bool_]]:
        """See `codec.Codec.decode`."""


def scaled_nmse(csi: Complex, recovered: Complex) -> float:
    """Squared error over energy, with the CSI scaled to unit mean power, which is what codes tell.

    Args:
        csi: complex64, any shape: the truth.
        recovered: complex64, of the same shape.
    """
    power = float(np.mean(np.abs(csi) ** 2, dtype=np.float64))
    return float(np.mean(np.abs(csi / np.sqrt(max(power, 1e-30)) - recovered) ** 2, dtype=np.float64))


def cosine(h: Complex, known: Complex) -> float:
    """Likeness of the channels of each subcarrier, mean over subcarriers: 1 where they are the same but for a factor.

    Args:
        h: complex64, (subcarrier, antenna).
        known: the same as it was recovered.
    """
    inner = np.abs(np.sum(h.conj() * known, axis=-1))
    scale = np.linalg.norm(h, axis=-1) * np.linalg.norm(known, axis=-1)
    return float(np.mean(inner / np.maximum(scale, 1e-20)))


def sum_rate_share(h: Complex, known: Complex, snr_db: float) -> float:
    """Sum rate of regularised zero forcing with recovered CSI, over that with perfect CSI.

    Args:
        h: complex64, (user, subcarrier, antenna): the truth, unit mean power per entry.
        known: the same as the base station knows it.
        snr_db: transmit power over noise power.
    """
    true, told = (torch.from_numpy(np.array(values, np.complex64))[None] for values in (h, known))
    perfect = float(rzf_sum_rate(true, true, snr_db)[0])
    return float(rzf_sum_rate(true, told, snr_db)[0]) / perfect


def at_symbol_level(
    coder: Coder,
    csi: Complex,
    length: int,
    announced_snr_db: float,
    snr_db: NDArray[np.floating],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Feed CSI back behind noise and nothing else, as `link.feed_back` does.

    Args:
        coder: of all users.
        csi: complex64, (user, tap, beam).
        length: symbols of each code.
        announced_snr_db: that users code for.
        snr_db: float64, (user,): of a received symbol.
        rng: of the noise.

    Returns:
        float64, (user,): `scaled_nmse` of what comes back.
    """
    words = np.stack([coder.encode(one, length, announced_snr_db) for one in csi])
    noise = rng.standard_normal((*words.shape, 2)) @ np.array([1, 1j])
    received = words + noise * np.sqrt(0.5 * 10 ** (-np.asarray(snr_db)[:, None] / 10))
    recovered, _ = coder.decode(received.astype(np.complex64), np.clip(snr_db, -10.0, 20.0), announced_snr_db)
    return np.array([scaled_nmse(one, got) for one, got in zip(csi, recovered, strict=True)])

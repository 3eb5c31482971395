"""The best linear code: Karhunen-Loeve transform, power by reverse water-filling's linear kin, LMMSE over all users."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Complex = NDArray[np.complex64]


class KltCode:
    """Linear encoder for any length and SNR, and a joint linear decoder for a fixed number of users.

    The encoder sends the strongest principal components, each at the power that minimises the mean square error of
    independent Gaussian components behind noise: p_i = max(0, a sqrt(l_i) - s^2), with l_i the variance of component
    i, s^2 the noise power and a such that the powers add up to the number of symbols. Every word is then scaled to
    unit power like those of all other codes. What is sent and what is wanted are not jointly Gaussian then; the decoder
    is the best linear one all the same, from sample covariances of words and CSI, with the noise added in closed form.

    Args:
        csi: complex64, (drop, user, tap, beam): training draws; their number should be several times tap * beam.
        joint: Whether the decoder uses all users' words for each.

    Raises:
        ValueError: draws have another shape, are none, hold values that are no numbers, or a user without power.
    """

    def __init__(self, csi: Complex, joint: bool = True) -> None:
        if csi.ndim != 4 or not np.iscomplexobj(csi):
            raise ValueError(f"csi is {csi.dtype} {csi.shape}; needs complex (drop, user, tap, beam)")
        if not csi.size or not np.isfinite(csi).all() or not csi.any((2, 3)).all():
            raise ValueError(f"csi {csi.shape}: needs draws of finite numbers, of each user some that are not 0")
        self.shape = csi.shape[2:]
        self.n_users = csi.shape[1] if joint else 1
        # Each order of users is as likely as any other.
        parts = [np.roll(csi, -turn, axis=1) for turn in range(csi.shape[1])]
        self._drops = _unit(np.concatenate(parts).reshape(csi.shape[0] * csi.shape[1], csi.shape[1], -1))
        first = self._drops[:, 0]
        variances, basis = np.linalg.eigh((first.T @ first.conj()) / len(first))
        self.variances = np.maximum(variances[::-1], 0).astype(np.float64)
        """float64, (component,): variances, the largest first."""
        self.basis = basis[:, ::-1].astype(np.complex64)
        """complex64, (tap * beam, component): principal directions."""
        self._decoders: dict[tuple[int, float], Complex] = {}

    def encode(self, csi: Complex, length: int, snr_db: float) -> Complex:
        """Words of unit mean power; complex64, (..., length) from (..., tap, beam).

        Raises:
            ValueError: a shape, a length or an SNR does not fit, or CSI holds values that are no numbers.
        """
        if csi.shape[-2:] != self.shape or not np.iscomplexobj(csi) or not np.isfinite(csi).all():
            raise ValueError(
                f"csi is {csi.dtype} {csi.shape}; needs finite complex CSI whose last axes are {self.shape}"
            )
        flat = _unit(csi.reshape(*csi.shape[:-2], -1))
        amplitude = np.sqrt(self.powers(length, snr_db) / np.maximum(self.variances[:length], 1e-12))
        words = (flat @ self.basis[:, :length].conj()) * amplitude
        power = np.mean(np.abs(words) ** 2, axis=-1, keepdims=True)
        return (words / np.sqrt(np.maximum(power, 1e-12))).astype(np.complex64)

    def powers(self, length: int, snr_db: float) -> NDArray[np.float64]:
        """Powers of the first components; float64, (length,), summing to length."""
        if not 1 <= length <= len(self.variances) or not np.isfinite(snr_db):
            raise ValueError(f"length={length}, snr_db={snr_db}: 1 to {len(self.variances)} symbols, a finite SNR")
        noise = 10 ** (-snr_db / 10)
        root = np.sqrt(np.maximum(self.variances[:length], 1e-12))
        # Components drop out from the weakest on until all that are left have a positive power.
        for n in range(length, 0, -1):
            scale = (length + n * noise) / root[:n].sum()
            powers = scale * root[:n] - noise
            if powers[-1] > 0 or n == 1:
                return np.concatenate([powers, np.zeros(length - n)])
        raise AssertionError("the first component always has a positive power")

    def decode(self, received: Complex, snr_db: float) -> Complex:
        """Recover CSI.

        Args:
            received: complex64, (batch, user, symbol): words behind noise.
            snr_db: per received symbol.

        Returns:
            complex64, (batch, user, tap, beam).

        Raises:
            ValueError: a shape, a length or an SNR does not fit, or there are values that are no numbers.
        """
        if received.ndim != 3 or not np.isfinite(received).all():
            raise ValueError(f"received is {received.dtype} {received.shape}; needs (batch, user, symbol), finite")
        n_batch, n_users, length = received.shape
        if self.n_users not in (1, n_users):
            raise ValueError(f"words of {n_users} users; this decoder was made for {self.n_users}")
        key = (length, float(snr_db))
        if key not in self._decoders:
            self._decoders[key] = self._decoder(length, snr_db)
        found = [
            np.roll(received, -user, axis=1)[:, : self.n_users].reshape(n_batch, -1) @ self._decoders[key]
            for user in range(n_users)
        ]
        return np.stack(found, 1).reshape(n_batch, n_users, *self.shape)

    def _decoder(self, length: int, snr_db: float) -> Complex:
        """Row vector of words to row vector of CSI; complex64, (user * length, tap * beam)."""
        drops = self._drops[:, : self.n_users].reshape(len(self._drops), self.n_users, *self.shape)
        words = self.encode(drops, length, snr_db).reshape(len(drops), -1)
        n = len(words)
        covariance = (words.conj().T @ words) / n + 10 ** (-snr_db / 10) * np.eye(words.shape[1])
        return np.linalg.solve(covariance, words.conj().T @ self._drops[:, 0] / n).astype(np.complex64)


def _unit(flat: Complex) -> Complex:
    """Rows of unit mean power."""
    power = np.mean(np.abs(flat) ** 2, axis=-1, keepdims=True)
    return (flat / np.sqrt(np.maximum(power, 1e-12))).astype(np.complex64)

"""Covariance maximum likelihood by coordinate descent."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _packed
from .base import Detector, checked_count, checked_positive

_ESTIMATED_GAIN = MappingProxyType(
    {4: 2.46, 6: 0.889, 8: 0.546, 10: 0.442, 12: 0.432, 14: 0.42, 16: 0.41, 20: 0.338, 28: 0.328}
)
_KNOWN_GAIN = MappingProxyType(
    {4: 3.82, 6: 0.69, 8: 0.411, 10: 0.379, 12: 0.352, 14: 0.342, 16: 0.359, 20: 0.323, 28: 0.318}
)
"""From `calibrate`, seed 0: N=128, M=64, activity 0.1, total SNR 10 dB, i.i.d. Rayleigh, equal gains."""

_SUPPORT_SWEEPS = 20
"""Most sweeps over the users with power between two sweeps over all."""


class CoordinateDescent(Detector):
    """Covariance maximum likelihood: finds the power gamma_n >= 0 of every user, one coordinate at a time.

    Minimises log|Sigma| + tr(Sigma^-1 C) with Sigma = S diag(gamma) S^H + noise_power I and C = Y Y^H / M.
    Sweeps over all users alternate with sweeps over those whose power is not zero, until a sweep over all
    users moves the powers by less than `tolerance` in sum. The order of the users is drawn once from `seed`.

    The score is gamma_n over the received power of an active user, `gain`.

    Args:
        preambles, activity, threshold: see `Detector`; `activity` is not used by the likelihood.
        gain: Received power per symbol and snapshot of an active user, in the units of y. None estimates it
            in each sample as sum(gamma^2) / sum(gamma), but not below what noise alone could cause.
        tolerance: Stop once a full sweep changes the powers by less than this in sum, in units of the
            strongest of them or the noise.
        max_sweeps: Most sweeps over all users.
        seed: Of the coordinate order.

    Source: Haghighatshoar, Jung, Caire, ISIT 2018; Fengler et al., IEEE Trans. Inf. Theory 67(5), 2021.
    """

    name: ClassVar[str] = "cd"
    thresholds: Mapping[int, float] = _ESTIMATED_GAIN

    def __init__(
        self,
        preambles: ArrayLike,
        activity: float,
        *,
        threshold: float | None = None,
        gain: float | None = None,
        tolerance: float = 3e-2,
        max_sweeps: int = 30,
        seed: int = 0,
    ) -> None:
        super().__init__(preambles, activity, threshold=threshold)
        self.gain = None if gain is None else checked_positive("gain", gain)
        if gain is not None:
            self.thresholds = _KNOWN_GAIN
        self._tolerance = checked_positive("tolerance", tolerance)
        self._max_sweeps = checked_count("max_sweeps", max_sweeps)
        order = np.random.default_rng(checked_count("seed", seed, 0)).permutation(self.n_users)
        self._order = order.astype(np.int64)
        self._preambles = _packed.Prepared(self.preambles)

    def powers(self, y: ArrayLike, noise_power: ArrayLike) -> NDArray[np.float64]:
        """Maximum likelihood power of every user, float64 (sample, user), in the units of |y|^2."""
        received, noise = self._checked(y, noise_power)
        return self._powers(received, noise)

    def _powers(self, y: NDArray[np.complex64], noise_power: NDArray[np.float64]) -> NDArray[np.float64]:
        columns, forms = self._preambles.of(y.shape[1])
        gamma = np.empty((y.shape[0], self.n_users))
        for i in range(y.shape[0]):
            descend(y[i], noise_power[i], columns, forms, self._order, self._tolerance, self._max_sweeps, gamma[i])
        return gamma

    def _scores(self, y: NDArray[np.complex64], noise_power: NDArray[np.float64]) -> NDArray[np.float64]:
        gamma = self._powers(y, noise_power)
        if self.gain is not None:
            return gamma / self.gain
        return gamma / typical_gain(gamma, noise_power, y.shape[1], y.shape[2])[:, None]


def typical_gain(
    gamma: NDArray[np.float64], noise_power: NDArray[np.float64], length: int, n_snapshots: int
) -> NDArray[np.float64]:
    """Power of a typical active user from maximum likelihood powers.

    Weighting every power with itself lets the many small powers of silent users count little. Noise alone
    gives powers with a standard deviation of noise_power / (length sqrt(n_snapshots)); the result is at
    least ten times that, so that an empty slot does not scale its own noise up to an activity.

    Args:
        gamma: float64, (sample, user).
        noise_power: float64, (sample,).
        length: Preamble symbols.
        n_snapshots: Snapshots.

    Returns:
        float64, (sample,), above 0.
    """
    total = gamma.sum(axis=1)
    weighted = np.divide((gamma**2).sum(axis=1), total, out=np.zeros_like(total), where=total > 0)
    return np.maximum(weighted, 10 * noise_power / (length * np.sqrt(n_snapshots)))


@_packed.compiled
def _step(v, u, power):
    """Change of one power that minimises the likelihood: (u - v) / v^2, as far as the power stays >= 0."""
    # v > 0 for any nonzero preamble; rounding alone could make it vanish.
    return max((u - v) / max(v * v, 1e-30), -power)


@_packed.compiled
def _sweep_support(users, s, packed_covariance, inverse, gamma, b):
    """As `_sweep`, where most users move: needs no P, as u = (Q s)^H C (Q s)."""
    moved = 0.0
    for n in users:
        _packed.product(inverse, s[n], b)
        v = _packed.inner(s[n], b)
        delta = _step(v, _packed.quadratic(packed_covariance, b), gamma[n])
        if delta != 0.0:
            _packed.subtract_outer(inverse, b, delta / (1.0 + delta * v))
            gamma[n] += delta
            moved += abs(delta)
    return moved


@_packed.compiled
def _sweep(users, s, forms, inverse, weighted, gamma, b, c):
    """Minimise exactly over each of `users` in turn; return the sum of the changes' magnitudes.

    Keeps P = Q C Q beside Q, so that a user who stays at zero costs two inner products.
    """
    moved = 0.0
    flat_inverse = inverse.reshape(-1)
    flat_weighted = weighted.reshape(-1)
    for n in users:
        v = 0.0
        u = 0.0
        f = forms[n]
        for k in range(flat_inverse.size):
            v += f[k] * flat_inverse[k]
            u += f[k] * flat_weighted[k]
        delta = _step(v, u, gamma[n])
        if delta != 0.0:
            _packed.add_user(inverse, weighted, s[n], delta, b, c)
            gamma[n] += delta
            moved += abs(delta)
    return moved


@_packed.compiled
def descend(y, noise_power, s, forms, order, tolerance, max_sweeps, gamma):
    """Coordinate descent for one sample; writes the powers into `gamma` and returns the full sweeps done.

    y: complex64 (symbol, snapshot); s: float64 (user, 2, side); forms: float64 (user, side * side);
    order: int64 (user,); gamma: float64 (user,).
    """
    side = s.shape[2]
    packed_covariance = np.empty((side, side))
    inverse = np.empty((side, side))
    weighted = np.empty((side, side))
    b = np.empty((2, side))
    c = np.empty((2, side))
    used = _packed.covariance(y, noise_power, packed_covariance)
    gamma[:] = 0.0
    support = np.empty(order.size, np.int64)
    sweeps = 0
    while sweeps < max_sweeps:
        _packed.rebuild(gamma, s, packed_covariance, inverse, weighted, b, c)
        moved = _sweep(order, s, forms, inverse, weighted, gamma, b, c)
        sweeps += 1
        size = 0
        largest = 1.0
        for n in order:
            if gamma[n] > 0.0:
                support[size] = n
                size += 1
                largest = max(largest, gamma[n])
        if moved <= tolerance * largest:
            break
        enough = max(tolerance * largest, 0.1 * moved)
        for _ in range(_SUPPORT_SWEEPS):
            if _sweep_support(support[:size], s, packed_covariance, inverse, gamma, b) <= enough:
                break
    for n in range(gamma.size):
        gamma[n] *= used
    return sweeps

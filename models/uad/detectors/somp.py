"""Simultaneous orthogonal matching pursuit."""

from __future__ import annotations

from types import MappingProxyType
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _packed
from .base import Detector, checked_count


class Somp(Detector):
    """Simultaneous orthogonal matching pursuit over all snapshots.

    Takes the user whose preamble correlates best with the residual, projects the preambles taken so far out
    of the received signal, and repeats. The score of a user taken is the mean power of the residual *before*
    it was taken, over the noise power; of others it is 0. A threshold of 1 is therefore the rule "stop once
    the residual has the power of the noise". At most L - 1 users can be found in L symbols: with more active
    users than that the pursuit must fail.

    Args:
        preambles, activity, threshold: see `Detector`; `activity` is not used.
        max_users: Most users taken; None takes up to L - 1 (one if L is 1).

    Source: Tropp, Gilbert, Strauss, Signal Processing 86(3), 2006.
    """

    name: ClassVar[str] = "somp"
    # From `calibrate`, seed 0: N=128, M=64, activity 0.1, total SNR 10 dB, i.i.d. Rayleigh, equal gains.
    thresholds = MappingProxyType(
        {4: 21.0, 6: 7.95, 8: 6.34, 10: 4.52, 12: 3.77, 14: 2.87, 16: 1.96, 20: 1.01, 24: 0.739, 28: 0.75}
    )

    def __init__(
        self,
        preambles: ArrayLike,
        activity: float,
        *,
        threshold: float | None = None,
        max_users: int | None = None,
    ) -> None:
        super().__init__(preambles, activity, threshold=threshold)
        self._max_users = None if max_users is None else checked_count("max_users", max_users)
        self._preambles = _packed.Prepared(self.preambles)

    def _scores(self, y: NDArray[np.complex64], noise_power: NDArray[np.float64]) -> NDArray[np.float64]:
        length = y.shape[1]
        columns, forms = self._preambles.of(length)
        most = max(length - 1, 1)
        if self._max_users is not None:
            most = min(most, self._max_users)
        scores = np.zeros((y.shape[0], self.n_users))
        for i in range(y.shape[0]):
            pursue(y[i], noise_power[i], columns, forms, length, min(most, self.n_users), scores[i])
        return scores


@_packed.compiled
def pursue(y, noise_power, s, forms, length, most, scores):
    """Pursuit on the covariance of one sample: the residual enters only through R R^H = D Y Y^H D.

    D is the projector that is orthogonal to the preambles taken. y: complex64 (symbol, snapshot);
    s: float64 (user, 2, side); forms: float64 (user, side * side); scores: float64 (user,), zero on entry.
    """
    side = s.shape[2]
    projector = np.zeros((side, side))
    residual = np.empty((side, side))
    b = np.empty((2, side))
    c = np.empty((2, side))
    used = _packed.covariance(y, noise_power, residual)
    for i in range(length):
        projector[i, i] = 1.0
    flat = residual.reshape(-1)
    for _ in range(most):
        power = 0.0
        for i in range(length):
            power += residual[i, i]
        best = -1
        best_power = 0.0
        for n in range(scores.size):
            if scores[n] == 0.0:
                energy = _packed.inner(s[n], s[n])
                correlation = _packed.form(forms[n], flat) / energy
                if correlation > best_power:
                    best_power = correlation
                    best = n
        if best < 0 or power <= 0.0:
            break
        _packed.product(projector, s[best], b)
        left = _packed.inner(b, b)
        if left <= 1e-12 * length:  # the preamble lies in the span of those taken
            break
        scores[best] = power * used / (noise_power * length)
        _packed.subtract_outer(projector, b, 1.0 / left)
        # With E = I - b b^H / left, E R E = R - b w^H - w b^H for w = (R b - b (b^H R b) / (2 left)) / left.
        _packed.product(residual, b, c)
        half = 0.5 * _packed.inner(b, c) / left
        for i in range(side):
            c[0, i] = (c[0, i] - half * b[0, i]) / left
            c[1, i] = (c[1, i] - half * b[1, i]) / left
        _packed.subtract_outer_pair(residual, b, c)

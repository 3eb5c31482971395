"""Maximum a posteriori activity by local search."""

from __future__ import annotations

from types import MappingProxyType
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _packed
from .base import Detector, checked_count, checked_positive
from .covariance import CoordinateDescent, typical_gain


class MapSearch(Detector):
    """Joint maximum a posteriori activity: flips and swaps from the covariance maximum likelihood solution.

    Minimises over binary a the negative log posterior
    f(a) = M (log|Sigma_a| + tr(Sigma_a^-1 C)) + log((1 - p) / p) sum(a),
    Sigma_a = gain S diag(a) S^H + noise_power I,
    for i.i.d. Rayleigh channels of one common gain. Every step takes the best of all flips of one user and
    all swaps of an active with a silent one, until none lowers f.

    The score is each user's log posterior ratio with all others held, f(a_n = 0) - f(a_n = 1); the search's
    decision is a score above 0.

    Args:
        preambles, activity, threshold: see `Detector`.
        gain: Received power per symbol and snapshot of an active user, in the units of y; None estimates it
            in each sample as `CoordinateDescent` does.
        max_moves: Most moves.
        seed: Of the coordinate order of the start.
    """

    name: ClassVar[str] = "map-search"
    # 0 is the search's own decision. Below 8 symbols its optimum is often a wrong set, and only large ratios
    # are worth following: from `calibrate`, seed 0, as for the start's thresholds.
    thresholds = MappingProxyType({4: 131.0, 6: 17.2, 8: 0.0})

    def __init__(
        self,
        preambles: ArrayLike,
        activity: float,
        *,
        threshold: float | None = None,
        gain: float | None = None,
        max_moves: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__(preambles, activity, threshold=threshold)
        self.gain = None if gain is None else checked_positive("gain", gain)
        self._max_moves = checked_count("max_moves", max_moves, 0)
        self._start = CoordinateDescent(preambles, activity, gain=gain, seed=seed)
        self._preambles = _packed.Prepared(self.preambles)
        self._log_odds = float(np.log((1 - self.activity) / self.activity))

    def _scores(self, y: NDArray[np.complex64], noise_power: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._search(y, noise_power)[0]

    def _search(
        self, y: NDArray[np.complex64], noise_power: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Log posterior ratios and the set that the search ends with, both (sample, user)."""
        length, n_snapshots = y.shape[1:]
        columns, forms = self._preambles.of(length)
        gamma = self._start._powers(y, noise_power)
        if self.gain is None:
            gain = typical_gain(gamma, noise_power, length, n_snapshots)
        else:
            gain = np.full(y.shape[0], self.gain)
        chosen = gamma > self._start.threshold(length) * gain[:, None]
        if self.gain is None:
            gain = self._balanced_gain(y, noise_power, chosen, gain)
        scores = np.empty((y.shape[0], self.n_users))
        for i in range(y.shape[0]):
            search(
                y[i],
                noise_power[i],
                gain[i],
                columns,
                forms,
                self._log_odds,
                self._max_moves,
                chosen[i],
                scores[i],
            )
        return scores, chosen

    def _balanced_gain(
        self,
        y: NDArray[np.complex64],
        noise_power: NDArray[np.float64],
        chosen: NDArray[np.bool_],
        otherwise: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Gain that explains the received power, given who is active; `otherwise` where that says nothing.

        Maximum likelihood powers are too small on average, the more so the fewer symbols there are, since the
        powers of silent users take their part; a gain too small lets the search find too many users.
        """
        gain = otherwise.copy()
        sent_power = np.mean(np.abs(self.preambles[: y.shape[1]].astype(np.complex128)) ** 2, axis=0)
        for i in range(y.shape[0]):
            signal = np.mean(y[i].real.astype(np.float64) ** 2 + y[i].imag.astype(np.float64) ** 2) - noise_power[i]
            if chosen[i].any() and signal > 0:
                gain[i] = max(gain[i], signal / sent_power[chosen[i]].sum())
        return gain


@_packed.compiled
def _cost(v, u):
    """Change of log|Sigma| + tr(Sigma^-1 C) when +-s s^H is added; v, u carry the sign."""
    kept = max(1.0 + v, 1e-15)  # 1 - v > 0 in exact arithmetic
    return np.log(kept) - u / kept


@_packed.compiled
def search(y, noise_power, gain, s, forms, log_odds, max_moves, active, scores):
    """Local search for one sample; changes `active` to the optimum, writes `scores`, returns the moves made.

    y: complex64 (symbol, snapshot); s: float64 (user, 2, side); forms: float64 (user, side * side);
    active: bool (user,), the start; scores: float64 (user,).
    """
    n_users, _, side = s.shape
    n_snapshots = y.shape[1]
    packed_covariance = np.empty((side, side))
    inverse = np.empty((side, side))
    weighted = np.empty((side, side))
    b = np.empty((2, side))
    c = np.empty((2, side))
    powers = np.empty(n_users)
    v = np.empty(n_users)
    u = np.empty(n_users)
    flip = np.empty(n_users)
    used = _packed.covariance(y, noise_power, packed_covariance)
    g = gain / used
    moves = 0
    while True:
        for n in range(n_users):
            powers[n] = g if active[n] else 0.0
        _packed.rebuild(powers, s, packed_covariance, inverse, weighted, b, c)
        flat_inverse = inverse.reshape(-1)
        flat_weighted = weighted.reshape(-1)
        best = 0.0
        first = -1
        second = -1
        for n in range(n_users):
            v[n] = g * _packed.form(forms[n], flat_inverse)
            u[n] = g * _packed.form(forms[n], flat_weighted)
            if active[n]:
                flip[n] = n_snapshots * _cost(-v[n], -u[n]) - log_odds
            else:
                flip[n] = n_snapshots * _cost(v[n], u[n]) + log_odds
            if flip[n] < best:
                best = flip[n]
                first = n
        if moves < max_moves:
            for i in range(n_users):
                if not active[i]:
                    continue
                _packed.product(inverse, s[i], b)
                _packed.product(weighted, s[i], c)
                kept = max(1.0 - v[i], 1e-15)
                for j in range(n_users):
                    if active[j]:
                        continue
                    # G = s_j^H Q s_i and U = s_j^H P s_i times the gain.
                    g_re = 0.0
                    g_im = 0.0
                    u_re = 0.0
                    u_im = 0.0
                    for k in range(side):
                        g_re += s[j, 0, k] * b[0, k] + s[j, 1, k] * b[1, k]
                        g_im += s[j, 0, k] * b[1, k] - s[j, 1, k] * b[0, k]
                        u_re += s[j, 0, k] * c[0, k] + s[j, 1, k] * c[1, k]
                        u_im += s[j, 0, k] * c[1, k] - s[j, 1, k] * c[0, k]
                    scale = g / kept
                    v_j = v[j] + g * scale * (g_re * g_re + g_im * g_im)
                    u_j = (
                        u[j]
                        + 2.0 * g * scale * (g_re * u_re + g_im * u_im)
                        + scale * scale * (g_re * g_re + g_im * g_im) * u[i]
                    )
                    change = flip[i] + n_snapshots * _cost(v_j, u_j) + log_odds
                    if change < best:
                        best = change
                        first = i
                        second = j
        # Moves that gain less than rounding could go round in circles.
        if moves >= max_moves or best >= -1e-9 * n_snapshots:
            break
        active[first] = not active[first]
        if second >= 0:
            active[second] = not active[second]
        moves += 1
    for n in range(n_users):
        scores[n] = flip[n] if active[n] else -flip[n]
    return moves

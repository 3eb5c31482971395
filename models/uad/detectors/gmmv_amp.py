"""Approximate message passing for generalised multiple measurement vectors, with expectation maximisation."""

from __future__ import annotations

from types import MappingProxyType
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ....errors import ScenarioError
from . import _packed
from .base import Detector, checked_count, checked_positive


class GmmvAmp(Detector):
    """GMMV-AMP: Bernoulli-Gaussian message passing with learned activities, mean, variance and noise.

    Every gain x_nm is zero with probability 1 - lambda_n, else Gaussian with mean mu and variance tau; the
    denoiser works on each snapshot alone, and lambda_n is the mean over snapshots of the posterior
    probabilities. Needs about as many symbols as there are active users, or more.

    The score is the belief lambda_n, in [0, 1]. Where the iteration diverges, it stops and the beliefs of the
    iterate before stand.

    Args:
        preambles, threshold: see `Detector`.
        activity: see `Detector`; the start of every lambda_n.
        iterations: Most iterations.
        tolerance: Stop once the gains change by less than this, relative to their norm.
        damping: Share in [0, 1) of the old value kept in the output means and variances.
        learn_noise: Whether expectation maximisation replaces the given noise power as it goes on.

    Source: Ke et al., IEEE Trans. Signal Process. 68, 2020.
    """

    name: ClassVar[str] = "gmmv-amp"
    # From `calibrate` with 20 slots of each of 4 pools, seed 0: N=128, M=64, activity 0.1, total SNR 10 dB,
    # i.i.d. Rayleigh, equal gains.
    thresholds = MappingProxyType(
        {6: 0.999, 8: 0.628, 10: 0.456, 12: 0.415, 14: 0.279, 16: 0.219, 20: 0.235, 24: 0.282, 28: 0.459}
    )

    def __init__(
        self,
        preambles: ArrayLike,
        activity: float,
        *,
        threshold: float | None = None,
        iterations: int = 200,
        tolerance: float = 1e-5,
        damping: float = 0.3,
        learn_noise: bool = False,
    ) -> None:
        super().__init__(preambles, activity, threshold=threshold)
        self._iterations = checked_count("iterations", iterations)
        self._tolerance = checked_positive("tolerance", tolerance)
        self._damping = 0.0 if damping == 0 else checked_positive("damping", damping)
        if self._damping >= 1:
            raise ScenarioError(f"damping={damping}: a share below 1, of the old value that is kept")
        self._learn_noise = bool(learn_noise)

    def _scores(self, y: NDArray[np.complex64], noise_power: NDArray[np.float64]) -> NDArray[np.float64]:
        sent = self.preambles[: y.shape[1]].astype(np.complex128)
        s_re, s_im = np.ascontiguousarray(sent.real), np.ascontiguousarray(sent.imag)
        scores = np.empty((y.shape[0], self.n_users))
        for i in range(y.shape[0]):
            used = max(noise_power[i], _packed.NOISE_FLOOR * float(np.mean(np.abs(y[i].astype(complex)) ** 2)))
            received = y[i].astype(np.complex128) / np.sqrt(used)
            pass_messages(
                np.ascontiguousarray(received.real),
                np.ascontiguousarray(received.imag),
                s_re,
                s_im,
                self.activity,
                self._iterations,
                self._tolerance,
                self._damping,
                self._learn_noise,
                scores[i],
            )
        return scores


@_packed.compiled
def pass_messages(y_re, y_im, s_re, s_im, activity, iterations, tolerance, damping, learn_noise, belief):
    """Message passing for one sample of unit noise power; writes `belief`, returns the iterations accepted.

    y_*: float64 (symbol, snapshot); s_*: float64 (symbol, user); belief: float64 (user,).
    """
    length, n_snapshots = y_re.shape
    n_users = s_re.shape[1]
    gain = s_re * s_re + s_im * s_im
    mean_gain = gain.mean()
    received = (y_re * y_re + y_im * y_im).mean()
    # Were the variance free to shrink, an empty slot's noise would pass for many weak users.
    least_tau = 10.0 / (length * mean_gain * np.sqrt(n_snapshots))
    tau = max((received - 1.0) / (n_users * activity * mean_gain), least_tau)
    mu_re = 0.0
    mu_im = 0.0
    noise = 1.0
    x_re = np.zeros((n_users, n_snapshots))
    x_im = np.zeros((n_users, n_snapshots))
    v = np.full((n_users, n_snapshots), activity * tau)
    new_re = np.empty((n_users, n_snapshots))
    new_im = np.empty((n_users, n_snapshots))
    new_v = np.empty((n_users, n_snapshots))
    z_re = y_re.copy()
    z_im = y_im.copy()
    big_v = np.ones((length, n_snapshots))
    next_v = np.empty(n_snapshots)
    next_re = np.empty(n_snapshots)
    next_im = np.empty(n_snapshots)
    weight = np.empty((length, n_snapshots))
    e_re = np.empty((length, n_snapshots))
    e_im = np.empty((length, n_snapshots))
    d = np.empty(n_snapshots)
    c_re = np.empty(n_snapshots)
    c_im = np.empty(n_snapshots)
    new_belief = np.empty(n_users)
    belief[:] = activity
    accepted = 0
    for iteration in range(iterations):
        keep = damping if iteration > 0 else 0.0
        noise_sum = 0.0
        for k in range(length):
            for m in range(n_snapshots):
                next_v[m] = 0.0
                next_re[m] = 0.0
                next_im[m] = 0.0
            for n in range(n_users):
                a = s_re[k, n]
                b = s_im[k, n]
                w = gain[k, n]
                for m in range(n_snapshots):
                    next_v[m] += w * v[n, m]
                    next_re[m] += a * x_re[n, m] - b * x_im[n, m]
                    next_im[m] += a * x_im[n, m] + b * x_re[n, m]
            for m in range(n_snapshots):
                onsager = next_v[m] / (noise + big_v[k, m])
                z_re[k, m] = keep * z_re[k, m] + (1.0 - keep) * (next_re[m] - (y_re[k, m] - z_re[k, m]) * onsager)
                z_im[k, m] = keep * z_im[k, m] + (1.0 - keep) * (next_im[m] - (y_im[k, m] - z_im[k, m]) * onsager)
                big_v[k, m] = keep * big_v[k, m] + (1.0 - keep) * next_v[m]
                total = noise + big_v[k, m]
                weight[k, m] = 1.0 / total
                left_re = y_re[k, m] - z_re[k, m]
                left_im = y_im[k, m] - z_im[k, m]
                e_re[k, m] = left_re / total
                e_im[k, m] = left_im / total
                share = noise / total
                noise_sum += share * share * (left_re * left_re + left_im * left_im) + share * big_v[k, m]
        sum_p = 0.0
        sum_re = 0.0
        sum_im = 0.0
        sum_power = 0.0
        change = 0.0
        energy = 0.0
        for n in range(n_users):
            for m in range(n_snapshots):
                d[m] = 0.0
                c_re[m] = 0.0
                c_im[m] = 0.0
            for k in range(length):
                a = s_re[k, n]
                b = s_im[k, n]
                w = gain[k, n]
                for m in range(n_snapshots):
                    d[m] += w * weight[k, m]
                    c_re[m] += a * e_re[k, m] + b * e_im[k, m]
                    c_im[m] += a * e_im[k, m] - b * e_re[k, m]
            prior = np.log(belief[n]) - np.log1p(-belief[n])
            new_belief[n] = 0.0
            for m in range(n_snapshots):
                var = 1.0 / d[m]
                at_re = x_re[n, m] + var * c_re[m]
                at_im = x_im[n, m] + var * c_im[m]
                both = var + tau
                off_re = at_re - mu_re
                off_im = at_im - mu_im
                ratio = (
                    prior
                    + np.log(var / both)
                    + (at_re * at_re + at_im * at_im) / var
                    - (off_re * off_re + off_im * off_im) / both
                )
                p = 1.0 / (1.0 + np.exp(-min(max(ratio, -600.0), 600.0)))
                pull = tau / both
                m_re = mu_re + pull * off_re
                m_im = mu_im + pull * off_im
                m_var = pull * var
                power = m_re * m_re + m_im * m_im
                new_re[n, m] = p * m_re
                new_im[n, m] = p * m_im
                new_v[n, m] = max(p * (power + m_var) - p * p * power, 1e-30)
                new_belief[n] += p
                sum_p += p
                sum_re += p * m_re
                sum_im += p * m_im
                sum_power += p * (power + m_var)
                step_re = new_re[n, m] - x_re[n, m]
                step_im = new_im[n, m] - x_im[n, m]
                change += step_re * step_re + step_im * step_im
                energy += p * p * power
            new_belief[n] /= n_snapshots
        # More energy in the estimate than any set of users can have received: the iteration diverges.
        if not energy * mean_gain < 100.0 * n_snapshots * (received + 1.0):
            break
        accepted += 1
        for n in range(n_users):
            belief[n] = min(max(new_belief[n], 1e-12), 1.0 - 1e-12)
        x_re, new_re = new_re, x_re
        x_im, new_im = new_im, x_im
        v, new_v = new_v, v
        if sum_p > 1e-9:
            mu_re = sum_re / sum_p
            mu_im = sum_im / sum_p
            tau = max(sum_power / sum_p - mu_re * mu_re - mu_im * mu_im, least_tau)
        if learn_noise:
            noise = max(noise_sum / (length * n_snapshots), 1e-9)
        if change <= tolerance * tolerance * energy:
            break
    return accepted

"""Symbol-level draws of the access slot: Y = S diag(a) H + W.

SNR here is the *total received* one, E||S diag(a) H||^2 / E||W||^2, of the ensemble: with unit-modulus
preambles and unit mean gain every received symbol carries `activity * n_users` of signal power on average, so
that the noise power is `activity * n_users / 10**(snr_db / 10)`, the same for every sample. Were it set from
the power that a sample happens to have, it would tell a detector how many users are active.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import ScenarioError

Channel = Callable[[np.random.Generator, int, int, int], NDArray[np.complexfloating]]
"""(rng, n_samples, n_users, n_snapshots) -> gains, complex, (sample, user, snapshot), unit mean power."""


@dataclass(frozen=True)
class Batch:
    """Received access slots and what was sent in them.

    Attributes:
        y: complex64, (sample, symbol, snapshot): received preambles.
        active: bool, (sample, user): who sent.
        noise_power: float64, (sample,): noise variance per complex received symbol.
    """

    y: NDArray[np.complex64]
    active: NDArray[np.bool_]
    noise_power: NDArray[np.float64]


def ensemble_noise_power(n_users: int, activity: float, snr_db: float) -> float:
    """Noise variance per complex symbol at a total received SNR; unit mean gain, unit-modulus preambles."""
    return activity * n_users / 10 ** (snr_db / 10)


def draw_batch(
    rng: np.random.Generator,
    preambles: NDArray[np.complexfloating],
    n_samples: int,
    length: int,
    n_snapshots: int,
    activity: float,
    snr_db: float,
    power_spread_db: float = 0.0,
    channel: Channel | None = None,
) -> Batch:
    """Draw access slots with independently active users.

    Args:
        rng: Source of randomness.
        preambles: complex, (max_length, user), unit mean square.
        n_samples: Number of slots.
        length: Preamble symbols that are sent, 1 to max_length.
        n_snapshots: Receive antennas times groups of subcarriers, at least 1.
        activity: Probability in (0, 1) that a user sends.
        snr_db: Total received SNR of the ensemble, see the module's text.
        power_spread_db: Width of the interval in which the mean power of each user in each slot lies, uniform
            in dB and scaled to unit mean power; 0 is perfect power control.
        channel: Gains of all users; None is i.i.d. Rayleigh over users and snapshots.

    Returns:
        The batch of slots with its ground truth.

    Raises:
        ScenarioError: if an argument is out of range.
        ValueError: if `channel` returns another shape than it was asked for.

    Source: the system model of arXiv 2505.12382.
    """
    max_length, n_users = preambles.shape
    if not 1 <= length <= max_length:
        raise ScenarioError(f"length={length}: the preambles have 1 to {max_length} symbols")
    if n_samples < 1 or n_snapshots < 1:
        raise ScenarioError(f"n_samples={n_samples}, n_snapshots={n_snapshots}: both must be at least 1")
    if not 0 < activity < 1:
        raise ScenarioError(f"activity={activity}: a probability between 0 and 1, both excluded")
    if not power_spread_db >= 0:
        raise ScenarioError(f"power_spread_db={power_spread_db}: a width in dB, 0 or more")

    noise_power = ensemble_noise_power(n_users, activity, snr_db)
    active = rng.random((n_samples, n_users)) < activity
    amplitude = np.sqrt(_powers(rng, (n_samples, n_users), power_spread_db))
    y = np.sqrt(noise_power) * complex_normal(rng, (n_samples, length, n_snapshots))
    sent = preambles[:length]
    if channel is None:
        for i in range(n_samples):
            who = np.flatnonzero(active[i])
            gains = complex_normal(rng, (who.size, n_snapshots))
            y[i] += (sent[:, who] * amplitude[i, who]) @ gains
    else:
        gains = np.asarray(channel(rng, n_samples, n_users, n_snapshots))
        if gains.shape != (n_samples, n_users, n_snapshots):
            raise ValueError(
                f"channel returned gains of shape {gains.shape}; "
                f"asked for (sample, user, snapshot) = {(n_samples, n_users, n_snapshots)}"
            )
        y += sent @ ((active * amplitude)[..., None] * gains)
    return Batch(y.astype(np.complex64), active, np.full(n_samples, noise_power))


def complex_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.complex64]:
    """Draw circular complex Gaussian values of unit variance per complex value; complex64 of `shape`."""
    pairs = rng.standard_normal((*shape, 2), dtype=np.float32)
    pairs *= np.float32(np.sqrt(0.5))
    return pairs.view(np.complex64)[..., 0]


def _powers(rng: np.random.Generator, shape: tuple[int, int], spread_db: float) -> NDArray[np.float64]:
    """Uniform in dB over `spread_db`, unit mean of the linear values."""
    if spread_db == 0:
        return np.ones(shape)
    half = spread_db * np.log(10) / 20  # half the width, in nepers of power
    return np.exp(rng.uniform(-half, half, shape)) * half / np.sinh(half)

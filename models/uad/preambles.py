"""Pools of user preambles."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def qpsk_preambles(n_users: int, max_length: int, rng: np.random.Generator) -> NDArray[np.complex64]:
    """Draw a pool of random 4QAM preambles, one for each user.

    A user that transmits a preamble of length L sends the first L symbols of its column.

    Args:
        n_users: Number of users N that own a preamble, at least 1.
        max_length: Longest preamble in symbols, at least 1.
        rng: Source of randomness.

    Returns:
        complex64, (max_length, n_users): symbols (+-1 +-1j)/sqrt(2), unit modulus.

    Raises:
        ValueError: if a dimension is below 1.

    Source: the pool of random 4QAM pilots of arXiv 2505.12382.
    """
    if n_users < 1 or max_length < 1:
        raise ValueError(f"n_users={n_users}, max_length={max_length}: both must be at least 1")
    bits = rng.integers(0, 2, size=(2, max_length, n_users))
    return ((1 - 2 * bits[0] + 1j * (1 - 2 * bits[1])) / np.sqrt(2)).astype(np.complex64)

"""The interface of every activity-detection network."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn


class NetworkConfig(BaseModel):
    """Sizes and choices of a network; every kind has its own fields.

    Fields named `n_users`, `max_length` or `lengths` are filled from what the network is trained for, unless given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


class Network(nn.Module):
    """Computes for every user the log-odds of having sent its preamble.

    The work is split in two. `prepare` turns a received slot into real tensors: whatever needs complex arithmetic
    is there, and nothing that is learned. `forward` is real and is what inference engines run.

    A network is a subclass in a module of this package that sets `kind` and `Config`.
    """

    kind: ClassVar[str]
    """How a card or a training configuration names the network."""

    Config: ClassVar[type[NetworkConfig]]
    """Class of its configuration."""

    dynamic_axes: ClassVar[tuple[tuple[int, ...], ...] | None] = None
    """Per tensor of `prepare` the axes whose sizes differ between slots of one shape; None: of none, but the batch."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config

    def prepare(self, y: Tensor, preambles: Tensor, noise_power: Tensor | None, activity: float) -> tuple[Tensor, ...]:
        """Turn received slots into the real tensors that `forward` takes.

        Args:
            y: complex64, (batch, symbol, snapshot): as many symbols as were sent.
            preambles: complex64, (max_length, user), or (batch, max_length, user) for a pool per slot.
            noise_power: float32, (batch,): per complex received symbol; None where it is unknown.
            activity: prior probability that a user sends.

        Returns:
            Real tensors, batch first.

        Raises:
            ValueError: a shape does not fit the network's configuration.
        """
        raise NotImplementedError

    def forward(self, *prepared: Tensor) -> Tensor:
        """Score every user; float32 (batch, user): log-odds of being active."""
        raise NotImplementedError

    def compiled(self) -> Callable[..., NDArray[np.float64]] | None:
        """Slots to log-odds in one compiled function, with the weights as they are now; None: this kind has none.

        Where calls from layer to layer take longer than the arithmetic it is faster than any inference engine. It
        takes what `prepare` takes, as arrays, and gives float64 (batch, user): log-odds, -inf in a slot that is zero
        throughout. One thread, the interpreter's lock released; the same bits for a slot alone and in a batch.
        """
        return None

    def loss(self, active: Tensor, *prepared: Tensor) -> Tensor:
        """What training minimises: binary cross-entropy per user, unless a network defines another.

        Args:
            active: bool, (batch, user): who sent.
            *prepared: from `prepare`.

        Returns:
            float32 scalar.
        """
        logits = self(*prepared)
        return nn.functional.binary_cross_entropy_with_logits(logits, active.to(logits.dtype))


def checked_slots(y: Tensor, preambles: Tensor, max_length: int, n_users: int | None = None) -> int:
    """Check the shapes that every network's `prepare` gets.

    Returns:
        Length: symbols in `y`.

    Raises:
        ValueError: a shape does not fit.
    """
    if y.dim() != 3 or not torch.is_complex(y):
        raise ValueError(f"y is {y.dtype} {tuple(y.shape)}; needs complex (batch, symbol, snapshot)")
    if not 1 <= y.shape[1] <= max_length:
        raise ValueError(f"y has {y.shape[1]} symbols; this network takes 1 to {max_length}")
    if preambles.dim() not in (2, 3) or preambles.shape[-2] != max_length:
        raise ValueError(
            f"preambles have shape {tuple(preambles.shape)}; this network takes ({max_length}, user) "
            f"or (batch, {max_length}, user)"
        )
    if preambles.dim() == 3 and preambles.shape[0] != y.shape[0]:
        raise ValueError(f"{preambles.shape[0]} pools of preambles for {y.shape[0]} slots; needs one for each")
    if n_users is not None and preambles.shape[-1] != n_users:
        raise ValueError(f"preambles are of {preambles.shape[-1]} users; this network was made for {n_users}")
    return int(y.shape[1])

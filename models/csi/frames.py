"""A new drop for every frame: what the air between a base station and its users is made of."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .channels import Source, stream

# Frames that an emulated air and those who compare with it look at together.
_KEPT = 64


@dataclass(frozen=True)
class FrameDrop:
    """Users of one drop.

    Attributes:
        delays_taps: float64, (user, path).
        gains: complex64, (user, path, antenna).
        h: complex64, (user, subcarrier, antenna): downlink CSI, ascending frequency.
    """

    delays_taps: NDArray[np.float64]
    gains: NDArray[np.complex64]
    h: NDArray[np.complex64]


class FrameDrops:
    """Draws the drop of a frame from seed and number alone, whatever was drawn before.

    Args:
        source: of the drops.
        seed: at least 0.
        n_users: of a drop.
        spacing_m: lowest and highest distance between neighbouring users.
    """

    def __init__(self, source: Source, seed: int, n_users: int, spacing_m: tuple[float, float]) -> None:
        self.source, self.seed, self.n_users, self.spacing_m = source, seed, n_users, spacing_m
        self._kept: OrderedDict[int, FrameDrop] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, frame: int) -> FrameDrop:
        """The drop of a frame; may be asked for by several threads."""
        with self._lock:
            return self._drop(frame)

    def _drop(self, frame: int) -> FrameDrop:
        if frame not in self._kept:
            state = np.random.SeedSequence([self.seed, 21, frame]).generate_state(1, np.uint64)[0]
            drops = self.source.draw(1, stream("test", int(state) >> 1), self.spacing_m, self.n_users)
            self._kept[frame] = FrameDrop(
                drops.delays_taps[0].numpy().astype(np.float64), drops.gains[0].numpy(), drops.h[0].numpy()
            )
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return self._kept[frame]

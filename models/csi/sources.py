"""Where the drops of training come from: the generator, a file of traced paths, or both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ...errors import ModelError, ScenarioError
from .channels import ChannelConfig, Clustered, Drops, Source
from .raytraced import PathFile, RayTraced

Split = Literal["train", "valid", "test"]


class TracedShare(BaseModel):
    """Drops of traced scenes among those that training sees."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    share: float = Field(0.5, gt=0, le=1, description="of drops that are traced; the others are generated")
    scenes: tuple[str, ...] = Field((), description="of the file of traced paths; none named: all of them")
    augment: bool = Field(
        True, description="oscillator phases at random, half of the drops mirrored; in training alone"
    )


@dataclass(frozen=True)
class Mixed:
    """Drops of two sources, each of the second with a fixed probability. A `channels.Source`.

    Those of the first stand before those of the second.
    """

    first: Source
    second: Source
    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share={self.share}: probability of a drop of the second source, 0 to 1")

    @property
    def config(self) -> ChannelConfig:
        """Numbers of the downlink, those of the first source."""
        return self.first.config

    def draw(
        self,
        n: int,
        generator: torch.Generator,
        spacing_m: tuple[float, float] | None = None,
        n_users: int | None = None,
    ) -> Drops:
        """Draw n drops. See `channels.Source`."""
        if n < 1:
            raise ValueError(f"n={n}: must be at least 1")
        n_second = int((torch.rand((n,), generator=generator, device=generator.device) < self.share).sum())
        parts = [
            source.draw(count, generator, spacing_m, n_users)
            for source, count in ((self.first, n - n_second), (self.second, n_second))
            if count
        ]
        return parts[0] if len(parts) == 1 else _joined(*parts)


def channel_sources(
    channel: ChannelConfig, traced: TracedShare | None, file: PathFile | None, split: Split
) -> dict[str, Source]:
    """Sources of a split, each by itself, by name: "clustered" unless all drops are traced, and "traced" if some are.

    Args:
        channel: numbers of the downlink.
        traced: what comes from the file; None: nothing.
        file: of traced paths, needed by `traced`.
        split: of the traced drops; generated ones are kept apart by their random numbers.

    Raises:
        ScenarioError: a file is missing, or there is one that nothing is to come from.
        ModelError: the file has no such scene, another carrier, no drop of the split, or too few users in a drop.
    """
    if traced is None:
        if file is not None:
            raise ScenarioError(
                "a file of traced paths is given, and mixture.traced is missing; add it, with its share"
            )
        return {"clustered": Clustered(channel)}
    if file is None:
        raise ScenarioError(
            f"mixture.traced wants {traced.share:.0%} of the drops traced: give their file with --traced, "
            "or make one with: semair trace paths.safetensors"
        )
    users = file.arrays["delays_s"].shape[1]
    if channel.n_users not in (2, *range(1, users + 1)):
        raise ModelError(f"n_users={channel.n_users} of the channel: drops of the traced file have {users} users")
    found = RayTraced(file, split, traced.scenes, channel, augment=traced.augment and split == "train")
    return {"traced": found} if traced.share == 1 else {"clustered": Clustered(channel), "traced": found}


def training_source(channel: ChannelConfig, traced: TracedShare | None, file: PathFile | None, split: Split) -> Source:
    """The source of a split's drops with all shares as configured. See `channel_sources`."""
    found = channel_sources(channel, traced, file, split)
    if traced is None or len(found) == 1:
        return next(iter(found.values()))
    return Mixed(found["clustered"], found["traced"], traced.share)


def _joined(one: Drops, other: Drops) -> Drops:
    """Drops of both, those with fewer paths filled up with some of no power."""
    most = max(one.delays_taps.shape[2], other.delays_taps.shape[2])

    def filled(paths: Tensor) -> Tensor:
        missing = most - paths.shape[2]
        if not missing:
            return paths
        return torch.cat([paths, paths.new_zeros((*paths.shape[:2], missing, *paths.shape[3:]))], 2)

    return Drops(
        torch.cat([filled(one.delays_taps), filled(other.delays_taps)]),
        torch.cat([filled(one.gains), filled(other.gains)]),
        one.n_subcarriers,
        one.n_taps,
        torch.cat([one.positions_m, other.positions_m]),
        torch.cat([one.line_of_sight, other.line_of_sight]),
        _joined_places(one, other),
    )


def _joined_places(one: Drops, other: Drops) -> Tensor | None:
    if one.places is None and other.places is None:
        return None
    # Numbers of one do not mean the same as those of the other; a drop without place is its own.
    parts, start = [], 0
    for drops in (one, other):
        alone = torch.arange(len(drops.gains), device=drops.gains.device)
        parts.append(start + (alone if drops.places is None else drops.places))
        start = int(parts[-1].max()) + 1
    return torch.cat(parts)

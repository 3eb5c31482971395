"""CSI from ray tracing: drops out of a file that `raytracing/trace.py` wrote, with the interface of the generator.

The file is safetensors, nothing in it is executable. Arrays, over drops of some users with some paths each:

    scene        uint8    (drop,)              index into the scenes named in the metadata
    base         uint16   (drop,)              base station within its scene
    split        uint8    (drop,)              0 train, 1 valid, 2 test, by squares of ground
    positions_m  float32  (drop, user, 2)      base station in the origin, its array along y
    line_of_sight uint8   (drop, user)
    delays_s     float32  (drop, user, path)   after the user's first path
    cosines      float32  (drop, user, path)   of departure, along the array
    gains_re, gains_im float32 (drop, user, path)  at the first antenna and the carrier; 0 where there is no path
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...errors import ModelError
from .channels import PRESETS, SPLITS, ChannelConfig, Drops, drops, plane_waves

FORMAT = "semair csi paths 1"
# Type and number of axes of each array.
_ARRAYS: dict[str, tuple[str, int]] = {
    "scene": ("uint8", 1),
    "base": ("uint16", 1),
    "split": ("uint8", 1),
    "positions_m": ("float32", 3),
    "line_of_sight": ("uint8", 2),
    "delays_s": ("float32", 3),
    "cosines": ("float32", 3),
    "gains_re": ("float32", 3),
    "gains_im": ("float32", 3),
}
# Pairs of users that are kept for one range of spacings; more are thinned out.
_MOST_PAIRS = 200_000
# Drops whose first users are in one square of this side, seen from one base station, count as one sample.
_PLACE_M = 20.0
# Within a range of spacings each of so many equal parts that holds pairs is drawn as often.
_SPACING_PARTS = 8
# Beyond these a path makes no sense, and single precision would overflow.
_LONGEST_S = 1e-3
_FARTHEST_M = 1e6
_MOST_POWER = 1e6


@dataclass(frozen=True)
class PathFile:
    """What a file of traced paths holds, checked.

    Attributes:
        arrays: by name, as in the head of this module.
        scenes: names.
        frequency_hz: carrier of the gains.
        metadata: all of the file's metadata.
        sha256: of the file, hexadecimal.
    """

    arrays: dict[str, np.ndarray]
    scenes: tuple[str, ...]
    frequency_hz: float
    metadata: dict[str, str]
    sha256: str = ""


class _Pairs(NamedTuple):
    """Pairs of users, int64 (pair, 2), by distance; first and last plus one of each part of the range, (part,)."""

    users: Tensor
    first: Tensor
    stop: Tensor


def read_paths(path: Path | str) -> PathFile:
    """Read a file of traced paths.

    Raises:
        ModelError: the file is missing, damaged, or no such file.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: no such file; make one with: semair trace {path}")
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            present = set(file.keys())
            arrays = {name: file.get_tensor(name) for name in _ARRAYS if name in present}
        with path.open("rb") as content:
            sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        # The last two are types of numbers that NumPy does not know.
        raise ModelError(f"{path}: damaged, or no safetensors file ({error}); make it again") from error
    if metadata.get("format") != FORMAT:
        raise ModelError(f"{path}: format {metadata.get('format')!r}; needs {FORMAT!r}, as semair trace writes it")
    try:
        scenes = json.loads(metadata["scenes"])
        if not isinstance(scenes, list) or not all(isinstance(name, str) for name in scenes):
            raise ValueError(f"scenes is {metadata['scenes']!r:.40}, no list of names")
        frequency_hz = float(metadata["frequency_hz"])
    except (KeyError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: scenes or frequency_hz missing or unreadable ({error}); make it again") from error
    _check(path, arrays, tuple(scenes), frequency_hz)
    return PathFile(arrays, tuple(scenes), frequency_hz, metadata, sha256)


def _check(path: Path, arrays: dict[str, np.ndarray], scenes: tuple[str, ...], frequency_hz: float) -> None:
    """Refuse arrays that do not belong together."""
    for name, (dtype, ndim) in _ARRAYS.items():
        array = arrays.get(name)
        if array is None:
            raise ModelError(f"{path}: array {name} is missing; make it again")
        if array.dtype != dtype or array.ndim != ndim:
            raise ModelError(f"{path}: {name} is {array.dtype} with {array.ndim} axes; needs {dtype} with {ndim}")
        if array.dtype == np.float32 and not np.isfinite(array).all():
            raise ModelError(f"{path}: {name} holds values that are no numbers; make it again")
    n, users, paths = arrays["delays_s"].shape
    sizes = {name: (n, users, paths)[:ndim] for name, (_, ndim) in _ARRAYS.items()} | {"positions_m": (n, users, 2)}
    for name, size in sizes.items():
        if arrays[name].shape != size:
            raise ModelError(f"{path}: {name} has shape {arrays[name].shape}; {size} belongs to delays_s")
    if not (n and users and paths):
        raise ModelError(f"{path}: holds no drops; make it again with more")
    if arrays["scene"].max() >= len(scenes) or arrays["split"].max() >= len(SPLITS):
        raise ModelError(f"{path}: a drop names a scene or split that is not there; make it again")
    power = _powers(arrays)
    if not (power > 0).all() or power.max() > _MOST_POWER or np.abs(arrays["cosines"]).max() > 1.001:
        raise ModelError(f"{path}: a user without paths, one that receives more than is sent, or a cosine above 1")
    if arrays["delays_s"].min() < 0 or arrays["delays_s"].max() > _LONGEST_S:
        raise ModelError(f"{path}: a negative delay, or one above {_LONGEST_S:g} s; make it again")
    if np.abs(arrays["positions_m"]).max() > _FARTHEST_M:
        raise ModelError(f"{path}: a user more than {_FARTHEST_M:g} m from the base station; make it again")
    if not 0 < frequency_hz < math.inf:
        raise ModelError(f"{path}: frequency_hz={frequency_hz}; must be positive")


def _powers(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Sum over the paths of each user; float64, (drop, user)."""
    power: np.ndarray = sum(np.square(arrays[name], dtype=np.float64).sum(-1) for name in ("gains_re", "gains_im"))
    return power


@dataclass(frozen=True)
class RayTraced:
    """Drops of a split and of some scenes, drawn with replacement. A `channels.Source`.

    Pairs are any two users of one base station as far apart as asked for, so that one file serves every spacing that
    its scenes have room for; other numbers of users are users of one drop. Distances within what is asked for come up
    about equally often, as the generator has them.

    With `augment` every draw is another one that physics allows as well: the phase of each user's oscillator at random,
    and half of the drops mirrored at the array's broadside, all their users together.
    """

    file: PathFile
    split: Literal["train", "valid", "test"] = "train"
    scenes: tuple[str, ...] = ()
    config: ChannelConfig = PRESETS["paper"]
    augment: bool = False
    _pairs: dict[tuple[float, float, torch.device], _Pairs] = field(default_factory=dict, compare=False, repr=False)
    _on_device: dict[torch.device, dict[str, Tensor]] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        unknown = set(self.scenes) - set(self.file.scenes)
        if unknown:
            raise ModelError(f"scenes {sorted(unknown)} are not in the file; it has {', '.join(self.file.scenes)}")
        if self.split not in SPLITS:
            raise ValueError(f"split={self.split!r}: must be one of {', '.join(SPLITS)}")
        if not math.isclose(self.config.frequency_hz, self.file.frequency_hz, rel_tol=1e-9):
            raise ModelError(
                f"frequency_hz={self.config.frequency_hz:g} of the channel, {self.file.frequency_hz:g} of the file: "
                "phases between users belong to one carrier; trace again, or set the channel's to the file's"
            )
        if not self.drop_indices.size:
            raise ModelError(f"no drop of split {self.split} in {', '.join(self.scenes or self.file.scenes)}")

    @property
    def drop_indices(self) -> np.ndarray:
        """Drops of the split and the scenes, int64, ascending."""
        arrays = self.file.arrays
        wanted = arrays["split"] == SPLITS.index(self.split)
        if self.scenes:
            wanted &= np.isin(arrays["scene"], [self.file.scenes.index(name) for name in self.scenes])
        return np.flatnonzero(wanted)

    def draw(
        self,
        n: int,
        generator: torch.Generator,
        spacing_m: tuple[float, float] | None = None,
        n_users: int | None = None,
    ) -> Drops:
        """Draw n drops. See `channels.Source`.

        Raises:
            ModelError: no two users are that far apart, or a drop has fewer users than asked for.
            ValueError: a number is out of range.
        """
        k = self.config.n_users if n_users is None else n_users
        if n < 1 or k < 1:
            raise ValueError(f"n={n}, n_users={k}: both must be at least 1")
        device = generator.device
        if k == 2:
            pairs = self._pairs_within(self.config.spacing_m if spacing_m is None else spacing_m, device)
            part = _pick(len(pairs.first), n, generator)
            first, stop = pairs.first[part], pairs.stop[part]
            share = torch.rand((n,), generator=generator, device=device, dtype=torch.float64)
            chosen = pairs.users[first + ((stop - first) * share).long()]
            # Either may come first.
            swap = torch.rand((n, 1), generator=generator, device=device) < 0.5
            chosen = torch.where(swap, chosen.flip(1), chosen)
        else:
            per_drop = self.file.arrays["delays_s"].shape[1]
            if k > per_drop:
                raise ModelError(f"n_users={k}: drops of this file have {per_drop} users; trace again with more")
            indices = torch.from_numpy(self.drop_indices).to(device)
            order = torch.rand((n, per_drop), generator=generator, device=device).argsort(1)[:, :k]
            chosen = indices[_pick(len(indices), n, generator)][:, None] * per_drop + order
        users = self._flat(device)
        gains = torch.complex(users["gains_re"][chosen], users["gains_im"][chosen])
        cosines, positions = users["cosines"][chosen], users["positions_m"][chosen]
        if self.augment:
            phases = 2 * math.pi * torch.rand((n, k, 1), generator=generator, device=device)
            gains = gains * torch.polar(torch.ones_like(phases), phases)
            side = 1.0 - 2.0 * torch.randint(2, (n, 1, 1), generator=generator, device=device)
            cosines = cosines * side
            positions = torch.cat([positions[..., :1], positions[..., 1:] * side], -1)
        waves = plane_waves(gains, cosines, self.config.n_antennas)
        los = users["line_of_sight"][chosen].bool()
        drawn = drops(self.config, users["delays_s"][chosen], waves, positions, los, generator)
        return replace(drawn, places=users["places"][chosen[:, 0]])

    def has_pairs(self, spacing_m: tuple[float, float]) -> bool:
        """Whether there are two users so far apart."""
        try:
            self._pairs_within(spacing_m, torch.device("cpu"))
        except ModelError:
            return False
        return True

    def _flat(self, device: torch.device) -> dict[str, Tensor]:
        """Arrays per user, (drop * user, ...), on a device."""
        if device not in self._on_device:
            names = ("cosines", "delays_s", "positions_m", "line_of_sight")
            arrays = {name: self.file.arrays[name] for name in names}
            # Path loss may be anything; it is normalised away below, in single precision.
            scale = np.sqrt(_powers(self.file.arrays))[..., None]
            arrays |= {name: (self.file.arrays[name] / scale).astype(np.float32) for name in ("gains_re", "gains_im")}
            flat = {name: array.reshape(-1, *array.shape[2:]) for name, array in arrays.items()}
            flat["places"] = self._places(flat["positions_m"])
            self._on_device[device] = {name: torch.from_numpy(array).to(device) for name, array in flat.items()}
        return self._on_device[device]

    def _places(self, positions_m: np.ndarray) -> np.ndarray:
        """Number of the square that each user of `_flat` is in, int64 (drop * user,)."""
        per_drop = self.file.arrays["positions_m"].shape[1]
        stations = np.repeat(self._stations(), per_drop)
        squares = np.floor(positions_m / _PLACE_M).astype(np.int64)
        found: np.ndarray = np.unique(np.column_stack([stations, squares]), axis=0, return_inverse=True)[1]
        return found.reshape(-1).astype(np.int64)

    def _stations(self) -> np.ndarray:
        """A number for each drop's base station, int64 (drop,)."""
        arrays = self.file.arrays
        found: np.ndarray = arrays["scene"].astype(np.int64) << 16 | arrays["base"]
        return found

    def _pairs_within(self, spacing_m: Sequence[float], device: torch.device) -> _Pairs:
        """Pairs of users so far apart, indices into `_flat`."""
        low, high = float(spacing_m[0]), float(spacing_m[1])
        if not 0 <= low <= high:
            raise ValueError(f"spacing_m={(low, high)}: lowest and highest distance, none negative")
        key = (low, high, device)
        if key not in self._pairs:
            self._pairs[key] = _Pairs(*(torch.from_numpy(part).to(device) for part in self._find_pairs(low, high)))
        return self._pairs[key]

    def _find_pairs(self, low: float, high: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        from scipy.spatial import cKDTree

        arrays: dict[str, Any] = self.file.arrays
        drops_wanted = self.drop_indices
        per_drop = arrays["positions_m"].shape[1]
        stations = self._stations()[drops_wanted]
        # One spacing asks for about that one: positions are where they were traced.
        slack = 0.1 * low if high == low else 0.0
        found, apart = [], []
        for station in np.unique(stations):
            members = drops_wanted[stations == station]
            users = (members[:, None] * per_drop + np.arange(per_drop)).ravel()
            positions = arrays["positions_m"].reshape(-1, 2)[users].astype(np.float64)
            pairs = cKDTree(positions).query_pairs(high + slack, output_type="ndarray")
            distance = np.linalg.norm(positions[pairs[:, 0]] - positions[pairs[:, 1]], axis=1)
            near_enough = distance >= low - slack
            found.append(users[pairs[near_enough]])
            apart.append(distance[near_enough])
        pairs, distances = np.concatenate(found).astype(np.int64), np.concatenate(apart)
        if not len(pairs):
            raise ModelError(
                f"spacing_m={(low, high)}: no two users of split {self.split} are that far apart; "
                "ask for a wider range, or trace more drops"
            )
        if len(pairs) > _MOST_PAIRS:
            kept = np.random.default_rng(1).choice(len(pairs), _MOST_PAIRS, replace=False)
            pairs, distances = pairs[kept], distances[kept]
        order = np.argsort(distances, kind="stable")
        edges = np.linspace(low - slack, high + slack, _SPACING_PARTS + 1)[1:-1]
        inner = np.searchsorted(distances[order], edges) if high > low else np.empty(0, np.int64)
        limits = np.concatenate([[0], inner, [len(pairs)]]).astype(np.int64)
        some = limits[1:] > limits[:-1]
        return pairs[order], limits[:-1][some], limits[1:][some]


def _pick(n_choices: int, n: int, generator: torch.Generator) -> Tensor:
    return torch.randint(n_choices, (n,), generator=generator, device=generator.device)

"""Trained networks as activity detectors.

Every folder in `models/uad/weights` is a detector named `uad-` and the folder's name; a path of any other folder
that `semair train uad` left names a detector too. Listing them reads no card and loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtrc, expit

from ....errors import ModelError, ScenarioError
from ...cards import CARD_FILE, Card, load_card
from ...engine import ENGINES, Engine, make_engine
from ..preambles import qpsk_preambles
from ..simulate import ensemble_noise_power
from . import _packed
from .base import Detector, Flag

if TYPE_CHECKING:
    from ..networks import Network

PREFIX = "uad-"
WEIGHTS = Path(__file__).parents[1] / "weights"

DEFAULT_ENGINE = "onnxruntime"
"""The fastest inference engine for one slot at a time, by `semair benchmark uad --only latency`."""

COMPILED = "compiled"
"""In the place of an engine: the network's own compiled forward pass, faster still where there is one."""

_RARE = 1e-6
"""Probability that a slot of the highest activity trained with has more active users than are taken for normal."""


class LearnedDetector(Detector):
    """A trained network: scores are its probabilities that a user is active, to be compared with 0.5.

    Slots go through the network one at a time, so that the bits of a score do not depend on the batch it came in.

    Args:
        preambles: see `Detector`; for as many users and symbols as the network was trained with, and of the very
            pool if it was trained with one.
        activity: see `Detector`.
        threshold: see `Detector`; None is 0.5.
        noise: "given" uses the noise power; "unknown" keeps it from the network, which then needs slots in the
            units that it was trained in, unless it is indifferent to them.
        engine: What runs the network: one of `semair.models.engine`, or "compiled"; None is "compiled" for networks
            that can, and else `DEFAULT_ENGINE`.
        beyond_training: Whether to go on with preambles and lengths that the network was not trained with, to see
            what it does.

    Raises:
        ModelError: the weights are damaged or foreign, or do not fit the preambles.
        ScenarioError: an option is out of range.
        SetupError: the engine's package is not installed.
    """

    name: ClassVar[str]
    folder: ClassVar[Path]
    thresholds: Mapping[int, float] = MappingProxyType({1: 0.5})

    def __init__(
        self,
        preambles: ArrayLike,
        activity: float,
        *,
        threshold: float | None = None,
        noise: Literal["given", "unknown"] = "given",
        engine: str | None = None,
        beyond_training: bool = False,
    ) -> None:
        super().__init__(preambles, activity, threshold=threshold)
        if noise not in ("given", "unknown"):
            raise ScenarioError(f"noise={noise!r}; choose one of: given, unknown")
        if engine is not None and engine not in (*ENGINES, COMPILED):
            raise ScenarioError(f"engine={engine!r}; choose one of: {', '.join((*ENGINES, COMPILED))}")
        self.check_pool(self.preambles, beyond_training)
        self._beyond_training = beyond_training
        self._noise_given = noise == "given"
        self.card, self._network = _load(self.folder)
        self._compiled = self._network.compiled() if engine in (None, COMPILED) else None
        if engine == COMPILED and self._compiled is None:
            raise ScenarioError(
                f"engine={engine!r}: networks of kind {self._network.kind!r} have no compiled forward pass; choose one "
                f"of: {', '.join(ENGINES)}"
            )
        self.engine_name = COMPILED if self._compiled else engine or DEFAULT_ENGINE
        self._engines: dict[tuple[tuple[int, ...], ...], Engine] = {}
        self._engine_of_shapes: dict[tuple[tuple[int, ...], ...], Engine] = {}
        self._known_lengths: set[int] = set()
        trained = self.card.scenario
        least_db, most_db = trained["snr_db"]
        # A network trained at one SNR knows signals in the units of that training alone.
        self._trained_noise = (
            ensemble_noise_power(self.n_users, trained["activity"][1], most_db) if least_db == most_db else None
        )
        # A little above is rounding: a scenario without activity is told a prior above 0.
        self._told_too_many = self.activity > 1.001 * trained["activity"][1]
        exceeded = bdtrc(np.arange(self.n_users + 1), self.n_users, trained["activity"][1])
        self._limit = float(np.argmax(exceeded < _RARE))

    @classmethod
    def card_of(cls) -> Card:
        """The card, checked; loads no network.

        Raises:
            ModelError: it is damaged or foreign.
        """
        _trained_for(cls.folder)
        return load_card(cls.folder, task="uad")

    @classmethod
    def check_pool(cls, preambles: ArrayLike, beyond_training: bool = False) -> None:
        """Refuse preambles that the network was not trained for; loads no network.

        Args:
            preambles: complex64, (max_length, user).
            beyond_training: Whether preambles are accepted that it was not trained with, of the same shape.

        Raises:
            ModelError: they do not fit, or there is no such model.
        """
        trained = _trained_for(cls.folder)
        pool = np.asarray(preambles)
        wanted = (trained["max_length"], trained["n_users"])
        if pool.shape != wanted:
            raise ModelError(
                f"{cls.name} was trained for {wanted[1]} users with preambles of at most {wanted[0]} symbols; here are "
                f"{pool.shape[1]} users and {pool.shape[0]} symbols. Change the scenario, or train for it: "
                "semair train uad --help"
            )
        if trained["pool"] == "fixed" and not beyond_training:
            known = qpsk_preambles(wanted[1], wanted[0], np.random.default_rng(trained["pool_seed"]))
            if not np.array_equal(pool, known):
                raise ModelError(
                    f"{cls.name} was trained with the preambles of seed {trained['pool_seed']}, and these are others. "
                    f"Set users.preamble_seed={trained['pool_seed']}, train with these, or set its option "
                    "beyond_training=true to see what it does nevertheless"
                )

    @classmethod
    def refuse_lengths(cls, lengths: Iterable[int]) -> None:
        """Refuse preamble lengths, in symbols, that the network was not trained for; loads no network.

        Raises:
            ModelError: there is one.
        """
        least, most = _trained_for(cls.folder)["lengths"]
        outside = sorted({length for length in lengths if not least <= length <= most})
        if outside:
            raise ModelError(
                f"{cls.name} was trained for preambles of {least} to {most} symbols, not of "
                f"{', '.join(map(str, outside))}; choose other lengths or another detector, or set its option "
                "beyond_training=true to see what it does nevertheless"
            )

    def check_lengths(self, lengths: Iterable[int]) -> None:
        """As `refuse_lengths`, unless told to go beyond training; see `Detector`."""
        super().check_lengths(lengths)
        if not self._beyond_training:
            self.refuse_lengths(lengths)

    def describe(self) -> dict[str, Any]:
        """Fingerprint of the weights, and the engine."""
        assert self.card.weights is not None
        return {"weights_sha256": self.card.weights.sha256, "engine": self.engine_name}

    @property
    def network(self) -> Network:
        """The trained network."""
        return self._network

    @property
    def n_parameters(self) -> int:
        """Learned numbers."""
        return self.card.network.n_parameters

    def prepared(self, y: NDArray[np.complex64], noise_power: NDArray[np.float64]) -> tuple[NDArray[Any], ...]:
        """What the network's forward takes for slots, complex64 (sample, symbol, snapshot): arrays, sample first."""
        y, noise = self._as_trained(y, noise_power)
        compiled = getattr(self._network, "prepare_numpy", None)
        if compiled is not None:
            return compiled(y, self.preambles, noise, self.activity)
        import torch

        with torch.inference_mode():
            told = None if noise is None else torch.tensor(noise, dtype=torch.float32)
            # A copy: the pool is read-only, which torch has no notion of.
            tensors = self._network.prepare(torch.tensor(y), torch.tensor(self.preambles), told, self.activity)
        return tuple(np.ascontiguousarray(tensor.numpy()) for tensor in tensors)

    def _scores(self, y: NDArray[np.complex64], noise_power: NDArray[np.float64]) -> NDArray[np.float64]:
        if len(y) and y.shape[1] not in self._known_lengths:
            self.check_lengths([y.shape[1]])
            self._known_lengths.add(y.shape[1])
        if self._compiled is not None:
            slots, noise = self._as_trained(y, noise_power)
            log_odds = self._compiled(slots, self.preambles, noise, self.activity)
            return expit(log_odds, out=log_odds)
        scores = np.zeros((len(y), self.n_users))
        for i in range(len(y)):
            if y[i].any():
                inputs = self.prepared(y[i : i + 1], noise_power[i : i + 1])
                scores[i] = expit(self._engine_for(inputs).run(*inputs)[0].astype(np.float64))
        return scores

    def _as_trained(
        self, y: NDArray[np.complex64], noise_power: NDArray[np.float64]
    ) -> tuple[NDArray[np.complex64], NDArray[np.float64] | None]:
        """Slots in the units that the network was trained in, and their noise power if it is to be told."""
        if not self._noise_given:
            return y, None
        if self._trained_noise is None:
            return y, noise_power
        scaled = y * np.sqrt(self._trained_noise / noise_power).astype(np.float32)[:, None, None]
        return scaled, np.full_like(noise_power, self._trained_noise)

    def _engine_for(self, inputs: Sequence[NDArray[Any]]) -> Engine:
        """The engine for inputs of these shapes: sizes that are known leave more to optimise."""
        shapes = tuple([values.shape for values in inputs])
        engine = self._engine_of_shapes.get(shapes)
        if engine is None:
            axes = self._network.dynamic_axes or [()] * len(inputs)
            key = tuple(
                tuple(-1 if axis in varying else size for axis, size in enumerate(shape))
                for shape, varying in zip(shapes, axes, strict=True)
            )
            if key not in self._engines:
                self._engines[key] = make_engine(self._network, inputs, self.engine_name, axes)
            engine = self._engine_of_shapes[shapes] = self._engines[key]
        return engine

    def _flags(
        self, y: NDArray[np.complex64], noise_power: NDArray[np.float64], scores: NDArray[np.float64]
    ) -> NDArray[np.uint8]:
        if self._told_too_many:
            return np.full(len(scores), Flag.CROWDED, np.uint8)
        flags = np.zeros(len(scores), np.uint8)
        for i in range(len(scores)):
            if crowded(y[i], noise_power[i], scores[i], self._limit, self._noise_given):
                flags[i] = Flag.CROWDED
        return flags


@_packed.compiled
def least_users(y, noise_power):
    """Lower bound, rarely exceeded, of the number of users of equal power in a slot, whatever their power.

    K users of power g with random unit-modulus preambles over M independent snapshots give the sample covariance a
    diagonal of g K + noise and off-diagonal elements of mean square g^2 K + (g K + noise)^2 / M. Two standard
    deviations of the latter's mean over L (L - 1) / 2 elements make the bound. Users of unequal power, or correlated
    snapshots, lower it.

    y: complex64 (symbol, snapshot); returns 0 for one symbol, which tells nothing.
    """
    length, n_snapshots = y.shape
    if length < 2:
        return 0.0
    packed = np.empty((length, length))
    # In units of the noise, raised where that is next to nothing.
    _packed.covariance(y, noise_power, packed)
    diagonal = 0.0
    square = 0.0
    for i in range(length):
        diagonal += packed[i, i]
        for j in range(i):
            # Re + Im and Re - Im.
            square += 0.5 * (packed[i, j] * packed[i, j] + packed[j, i] * packed[j, i])
    pairs = 0.5 * length * (length - 1)
    diagonal /= length
    square /= pairs
    signal = max(diagonal - 1.0, 0.0)
    spread = square * (1.0 + 2.0 / np.sqrt(pairs)) - diagonal * diagonal / n_snapshots
    return signal * signal / max(spread, 1e-30)


@_packed.compiled
def crowded(y, noise_power, scores, limit, noise_given):
    """Whether more than `limit` users seem active in a slot.

    The expected number of active users is the sum of their probabilities, if those are right. A network outside its
    training may well be wrong about that, so the slot itself is asked, too, where the noise power is known.
    """
    expected = 0.0
    for n in range(scores.size):
        expected += scores[n]
    return expected > limit or (noise_given and least_users(y, noise_power) > limit)


def shipped() -> dict[str, type[Detector]]:
    """Classes of the shipped weights, by detector name."""
    folders = sorted(path.parent for path in WEIGHTS.glob(f"*/{CARD_FILE}"))
    return {PREFIX + folder.name: _class_of(PREFIX + folder.name, folder) for folder in folders}


def from_path(path: str) -> type[Detector]:
    """Class of the weights in a folder; its detector is named by the path.

    Raises:
        ModelError: the folder is no model for this task.
    """
    folder = Path(path).expanduser()
    load_card(folder, task="uad")
    return _class_of(path, folder)


def names_a_path(name: str) -> bool:
    """Whether a detector's name is the path of a folder."""
    return "/" in name or (Path(name) / CARD_FILE).is_file()


@cache
def _class_of(name: str, folder: Path) -> type[LearnedDetector]:
    return type("LearnedDetector", (LearnedDetector,), {"name": name, "folder": folder, "__module__": __name__})


def _load(folder: Path) -> tuple[Card, Network]:
    from .. import networks

    return networks.load(folder)


def _trained_for(folder: Path) -> dict[str, Any]:
    """The card's scenario, with the fields that are read here.

    Raises:
        ModelError: one is missing or of another kind.
    """
    path = folder / CARD_FILE
    return _checked_scenario(folder, path.stat().st_mtime_ns if path.is_file() else 0)


@cache
def _checked_scenario(folder: Path, _modified_ns: int) -> dict[str, Any]:
    scenario = load_card(folder, task="uad").scenario

    def pair(key: str, kind: type | tuple[type, ...]) -> bool:
        value = scenario.get(key)
        return isinstance(value, list) and len(value) == 2 and all(isinstance(item, kind) for item in value)

    fits = (
        all(isinstance(scenario.get(key), int) for key in ("n_users", "max_length"))
        and pair("lengths", int)
        and pair("activity", (int, float))
        and pair("snr_db", (int, float))
        and scenario.get("pool") in ("fixed", "fresh")
        and (scenario["pool"] == "fresh" or isinstance(scenario.get("pool_seed"), int))
    )
    if not fits:
        raise ModelError(
            f"{folder / CARD_FILE}: scenario must hold n_users, max_length, lengths, activity, snr_db, pool and "
            "pool_seed as `semair train uad` writes them; train the model again"
        )
    return scenario

"""CSI feedback compared on the same drops and noise: over compression ratio, SNR and spacing.

Every contender codes the same test drops, which no training draws, and gets the same noise. NMSE is that of the
truncated delay-angle CSI, averaged over the users of a drop; intervals are over drops. What CSI is for
stands beside it: the sum rate of regularised zero forcing with what was recovered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ...errors import ModelError, ScenarioError
from ..cards import CARD_FILE, Card
from ..engine import latencies
from ..statistics import Interval
from ..training import derived_seed
from . import networks
from .channels import PRESETS, ChannelConfig, Clustered, Drops, Source, from_delay_angle, stream
from .klt import KltCode
from .link import Batch, add_noise, feed_back, nmse
from .raytraced import RayTraced, read_paths
from .train import WEIGHTS, conditioned, drops_ci95, in_db

KLT = "klt"
"""Name of the linear contender."""

RATIOS = (64, 32, 16, 8)
_CHUNK = 250
_KLT_DROPS = 6000


@dataclass(frozen=True)
class Condition:
    """What is coded and how it is sent.

    Attributes:
        ratio: Complex numbers of the truncated CSI per symbol sent.
        snr_db: Of a received symbol.
        spacing_m: Lowest and highest distance between neighbouring users.
        neighbour: "there", or "missing": only one user is heard, and judged.
        n_users: Users of a drop.
    """

    ratio: int = 16
    snr_db: float = 10.0
    spacing_m: tuple[float, float] = (0.5, 2.0)
    neighbour: Literal["there", "missing"] = "there"
    n_users: int = 2


@dataclass(frozen=True)
class Sweep:
    """Conditions that differ in one thing.

    Attributes:
        name: For people and files.
        axis: What differs, a field of `Condition`.
        conditions: In order.
    """

    name: str
    axis: str
    conditions: tuple[Condition, ...]


@dataclass(frozen=True)
class Row:
    """One contender in one condition.

    Attributes:
        contender: Its name.
        condition: What was sent.
        nmse_db: Of the truncated CSI, with its interval over drops.
        full_nmse_db: Over all subcarriers, what lies outside the taps included.
        cosine: Mean over subcarriers and users of the cosine similarity of true and recovered CSI.
        sum_rate: Mean sum rate over that which regularised zero forcing reaches with perfect CSI; None for one user.
        lost: Share of heard users of whom nothing was recovered: an NMSE of 1 each.
        drops: Coded.
        places: Independent samples among them: generated drops are all that, traced ones only from place to place.
        errors: float64, (drop,): NMSE of each; not part of `as_dict`.
    """

    contender: str
    condition: Condition
    nmse_db: Interval
    full_nmse_db: float
    cosine: float
    sum_rate: Interval | None
    lost: float
    drops: int
    places: int
    errors: NDArray[np.float64]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            **{name: value for name, value in vars(self).items() if name != "errors"},
            "condition": asdict(self.condition),
            "nmse_db": list(self.nmse_db),
            "sum_rate": None if self.sum_rate is None else list(self.sum_rate),
        }


class Contender(Protocol):
    """Anything that feeds CSI back."""

    name: str

    def recover(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Encode, send and decode drops of one length and SNR; complex64, (drop, user, tap, beam)."""
        ...


class NetworkContender:
    """A trained network."""

    def __init__(self, name: str, network: networks.Network) -> None:
        self.name = name
        self.network = network

    def recover(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """See `Contender`."""
        c, longest = self.network.config, int(batch.lengths.max())
        if batch.csi.shape[-2:] != (c.n_taps, c.n_antennas):
            raise ValueError(f"csi is {tuple(batch.csi.shape)}; {self.name} needs (..., {c.n_taps}, {c.n_antennas})")
        if longest > c.max_length:
            raise ScenarioError(
                f"{self.name!r} sends at most {c.max_length} symbols, and {longest} are asked for: leave it out, or "
                "evaluate higher ratios alone"
            )
        with torch.inference_mode():
            return feed_back(self.network, batch, generator)


class LinearContender:
    """`KltCode` with the joint linear decoder, from draws of the training split.

    Attributes:
        alone: Its code for one user.
        variances: float64, (component,): of its components, descending.
    """

    name = KLT

    def __init__(self, config: ChannelConfig, seed: int = 1) -> None:
        generator, source = stream("train", seed), Clustered(config)
        drops = [source.draw(_CHUNK, generator).delay_angle for _ in range(_KLT_DROPS // _CHUNK)]
        csi = torch.cat(drops).numpy()
        self._joint, self.alone = KltCode(csi), KltCode(csi, joint=False)
        self.variances = self.alone.variances

    def recover(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """See `Contender`; where not all users are heard, each is decoded alone."""
        length, snr_db = int(batch.lengths[0]), float(batch.snr_db[0, 0])
        joint = bool(batch.present.all()) and batch.csi.shape[1] == self._joint.n_users
        code = self._joint if joint else self.alone
        words = torch.from_numpy(code.encode(batch.csi.numpy(), length, snr_db))
        # The noise of the first symbols is that of the networks, whose words are padded.
        n_padded = int(batch.lengths[0]) if batch.padded is None else batch.padded
        padded = torch.nn.functional.pad(words, (0, n_padded - length))
        received = add_noise(padded, batch.snr_db, generator)[..., :length]
        return torch.from_numpy(code.decode(received.numpy(), snr_db))


def shipped() -> dict[str, Path]:
    """Folders of the trained networks that come with semair, by name."""
    return {path.parent.name: path.parent for path in sorted(WEIGHTS.glob(f"*/{CARD_FILE}"))}


def load_contender(name: str) -> tuple[Card, NetworkContender]:
    """A trained network by the name of its shipped weights, or by a path.

    Raises:
        ScenarioError: there is none of this name.
        ModelError: its weights are damaged.
    """
    folder = shipped().get(name, Path(name))
    if not (folder / CARD_FILE).is_file():
        raise ScenarioError(
            f"{name!r} is neither a folder with {CARD_FILE} nor one of the shipped weights: {', '.join(shipped())}"
        )
    card, network = networks.load(folder)
    _check_card(folder, card, network)
    return card, NetworkContender(name, network)


def _check_card(folder: Path, card: Card, network: networks.Network) -> None:
    """Refuse a card whose scenario contradicts its network; what it leaves out, it cannot."""
    c, told = network.config, card.scenario
    for name, size in (("n_taps", c.n_taps), ("n_antennas", c.n_antennas)):
        if told.get(name, size) != size:
            raise ModelError(
                f"{folder}: its card says {name}={told[name]!r}, its network has {size}; copy or train the model again"
            )
    lengths = told.get("lengths", [c.max_length])
    if (
        not isinstance(lengths, list)
        or not lengths
        or not all(type(length) is int and 1 <= length <= c.max_length for length in lengths)
    ):
        raise ModelError(
            f"{folder}: its card says lengths={lengths!r:.60}, its network sends 1 to {c.max_length} symbols; "
            "copy or train the model again"
        )
    trained_bandwidths_hz(card)


def trained_bandwidths_hz(card: Card) -> tuple[float, float] | None:
    """Lowest and highest bandwidth that a card's weights were trained for; None: it does not say.

    Raises:
        ModelError: What it says makes no sense.
    """
    mixture = card.scenario.get("mixture")
    if mixture is None:
        return None
    try:
        low, high = map(float, mixture["channel"]["bandwidth_hz"])
        if not 0 < low <= high < math.inf:
            raise ValueError(f"{low:g} to {high:g} Hz")
    except (TypeError, KeyError, ValueError) as error:
        raise ModelError(
            f"{card.name}: its card's mixture has no bandwidth_hz ({error}); train the model again"
        ) from error
    return low, high


def part_latencies(
    name: str, part: Literal["encoder", "decoder"], n_runs: int, engine: str = "onnxruntime", n_users: int = 2
) -> NDArray[np.float64]:
    """Time a user's encoder, or the joint decoder of some users, one thread, batch 1.

    Args:
        name: Of shipped weights, or a folder.
        part: What is timed.
        n_runs: How often.
        engine: One of `models.engine.ENGINES`.
        n_users: Of the decoder.

    Returns:
        float64, (n_runs,): seconds.
    """
    network = load_contender(name)[1].network
    c, rng = network.config, np.random.default_rng(1)
    condition = network.conditions(torch.tensor([c.max_length // 2]), torch.tensor([10.0])).numpy()
    if part == "encoder":
        features = rng.standard_normal((1, c.n_taps, 2 * c.n_antennas)).astype(np.float32)
        return latencies(network.encoder, (features, condition), n_runs, [engine])[engine]
    code = rng.standard_normal((1, n_users, 2 * c.max_length)).astype(np.float32)
    conditions = np.repeat(condition[None], n_users, axis=1)
    inputs = (code, conditions, np.ones((1, n_users), np.float32))
    return latencies(network.decoder, inputs, n_runs, [engine])[engine]


def multiply_adds(network: networks.Network, n_users: int = 2) -> int:
    """Multiply-add operations of matrix products and convolutions to feed back the CSI of some users once."""
    c = network.config
    condition = network.conditions(torch.tensor([c.max_length // 2]), torch.tensor([10.0]))
    features = torch.zeros(1, c.n_taps, 2 * c.n_antennas)
    code, present = torch.zeros(1, n_users, 2 * c.max_length), torch.ones(1, n_users)
    with torch.no_grad(), FlopCounterMode(display=False) as encoder:
        network.encoder(features, condition)
    with torch.no_grad(), FlopCounterMode(display=False) as decoder:
        network.decoder(code, condition[None].repeat(1, n_users, 1), present)
    # A multiply-add is two operations.
    return (n_users * encoder.get_total_flops() + decoder.get_total_flops()) // 2


def contenders(numerology: str, names: Sequence[str] | None = None) -> list[Contender]:
    """Contenders of a numerology.

    Args:
        numerology: one of `channels.PRESETS`.
        names: shipped weights, folders, or "klt"; None: all shipped that fit, and "klt".

    Raises:
        ScenarioError: numerology or name is unknown, or weights are for other taps or antennas.
    """
    config = _preset(numerology)
    chosen: list[Contender] = []
    for name in [*fitting(numerology), KLT] if names is None else names:
        if name == KLT:
            chosen.append(LinearContender(config))
            continue
        found = load_contender(name)[1]
        size = (found.network.config.n_taps, found.network.config.n_antennas)
        if size != (config.n_taps, config.n_antennas):
            raise ScenarioError(
                f"{name!r} was trained for {size[0]} taps and {size[1]} antennas; {numerology!r} has {config.n_taps} "
                f"and {config.n_antennas}"
            )
        chosen.append(found)
    return chosen


def fitting(numerology: str) -> list[str]:
    """Names of shipped weights for the taps and antennas of a numerology.

    Raises:
        ScenarioError: the numerology is unknown.
    """
    config = _preset(numerology)
    sizes = {name: load_contender(name)[1].network.config for name in shipped()}
    return [name for name, c in sizes.items() if (c.n_taps, c.n_antennas) == (config.n_taps, config.n_antennas)]


def _preset(numerology: str) -> ChannelConfig:
    if numerology not in PRESETS:
        raise ScenarioError(f"numerology {numerology!r} is unknown; choose one of: {', '.join(PRESETS)}")
    return PRESETS[numerology]


TRACED_SPACINGS_M = ((0.5, 1.0), (1.0, 2.0), (2.0, 5.0), (5.0, 10.0), (10.0, 20.0), (20.0, 50.0), (50.0, 100.0))
"""Ranges that pairs of traced users are sorted into, where they are and not where one would have them."""


def sweeps(quick: bool = False, traced: RayTraced | None = None) -> dict[str, Sweep]:
    """The evaluation of CSI feedback, by sweep name.

    Args:
        quick: fewer conditions.
        traced: for drops of this source; spacings are those that it has pairs for.
    """
    base = Condition()

    def over(name: str, axis: str, values: Sequence[Any]) -> Sweep:
        return Sweep(name, axis, tuple(replace(base, **{axis: value}) for value in values))

    spacings = [(m, m) for m in ((0.5, 5.0, 50.0) if quick else (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0))]
    if traced is not None:
        spacings = [m for m in TRACED_SPACINGS_M[:: 3 if quick else 1] if traced.has_pairs(m)]
    found = [
        over("ratio", "ratio", (64, 8) if quick else RATIOS),
        over("snr", "snr_db", (-5.0, 10.0) if quick else (-10.0, -5.0, 0.0, 5.0, 10.0, 15.0, 20.0)),
        over("spacing", "spacing_m", spacings),
        over("neighbour", "neighbour", ("there", "missing")),
    ]
    return {sweep.name: sweep for sweep in found}


def traced_test(path: Path | str, scenes: Sequence[str], numerology: str) -> RayTraced:
    """Drops of the test split of a file of traced paths.

    Args:
        path: of the file.
        scenes: of it; none: all.
        numerology: one of `channels.PRESETS`.

    Raises:
        ScenarioError: the numerology is unknown.
        ModelError: the file is missing or damaged, or has no such scene, another carrier, or no test drops.
    """
    return RayTraced(read_paths(path), "test", tuple(scenes), _preset(numerology))


class Evaluation:
    """Evaluates contenders on conditions, one after the other.

    Args:
        chosen: Contenders.
        config: Numbers of the downlink.
        n_drops: Of each condition.
        seed: Of drops and noise.
        downlink_snr_db: Transmit power over noise power of the downlink that the sum rate is that of.
        source: Of the drops, of the test split; None: the generator.

    Raises:
        ScenarioError: There is nothing to compare, or too little to compare it on.
        ModelError: The source is for another numerology.
    """

    def __init__(
        self,
        chosen: Sequence[Contender],
        config: ChannelConfig,
        n_drops: int,
        seed: int = 1,
        downlink_snr_db: float = 10.0,
        source: Source | None = None,
    ) -> None:
        if n_drops < 2 or not chosen:
            raise ScenarioError(f"n_drops={n_drops}, {len(chosen)} contenders: at least 2 drops and 1 contender")
        self.chosen = list(chosen)
        self.config, self.n_drops, self.seed, self.downlink_snr_db = config, n_drops, seed, downlink_snr_db
        self.source = source or Clustered(config)
        given, needed = ((c.n_taps, c.n_antennas, c.n_subcarriers) for c in (self.source.config, config))
        if given != needed:
            raise ModelError(
                f"drops have {given[0]} taps, {given[1]} antennas and {given[2]} subcarriers; the evaluation is for "
                f"{needed[0]}, {needed[1]} and {needed[2]}"
            )

    def rows(self, condition: Condition, on_share: Callable[[float], None] | None = None) -> list[Row]:
        """Evaluate all contenders; one row each, in their order.

        Raises:
            ScenarioError: the ratio leaves no whole number of symbols.
        """
        size = self.config.n_taps * self.config.n_antennas
        if condition.ratio < min(RATIOS) or size % condition.ratio:
            raise ScenarioError(f"ratio={condition.ratio}: at least {min(RATIOS)}, and a divisor of {size}")
        length = size // condition.ratio
        tallies = [_Tally() for _ in self.chosen]
        generator = stream("test", self.seed)
        done = 0
        while done < self.n_drops:
            drops = self.source.draw(
                min(_CHUNK, self.n_drops - done), generator, condition.spacing_m, condition.n_users
            )
            csi = drops.delay_angle
            present = torch.ones(csi.shape[:2], dtype=torch.bool)
            if condition.neighbour == "missing":
                present[:, 1:] = False
            batch = replace(conditioned(csi, length, condition.snr_db, present), padded=size // min(RATIOS))
            perfect = self._rate(drops.h, drops.h) if bool(present.all()) and condition.n_users > 1 else None
            for contender, tally in zip(self.chosen, tallies, strict=True):
                noise = torch.Generator().manual_seed(derived_seed(self.seed, "test", done))
                recovered = contender.recover(batch, noise)
                if recovered.shape != csi.shape:
                    raise ValueError(f"{contender.name} recovered {tuple(recovered.shape)} from {tuple(csi.shape)}")
                if not bool(torch.isfinite(torch.view_as_real(recovered)).all()):
                    raise ModelError(f"{contender.name} recovered values that are no numbers; train it again")
                tally.add(drops, recovered, present)
                if perfect is not None:
                    rate = self._rate(drops.h, from_delay_angle(recovered, self.config.n_subcarriers))
                    tally.rates.append(torch.stack([rate, perfect]).double().numpy())
            done += len(csi)
            if on_share is not None:
                on_share(done / self.n_drops)
        return [tally.row(contender.name, condition) for contender, tally in zip(self.chosen, tallies, strict=True)]

    def _rate(self, h: Tensor, known: Tensor) -> Tensor:
        return rzf_sum_rate(h, known, self.downlink_snr_db)


def rzf_sum_rate(h: Tensor, known: Tensor, snr_db: float) -> Tensor:
    """Sum rate of regularised zero forcing that knows the channel only so well.

    The precoder of each subcarrier is W = G^H (G G^H + K/SNR I)^-1 with the rows of G the known channels, scaled to
    unit power; users treat what is meant for others as noise.

    Args:
        h: complex64, (drop, user, subcarrier, antenna): true channels, unit mean power per entry.
        known: the same as the base station knows them.
        snr_db: transmit power over noise power.

    Returns:
        float32, (drop,): bit per channel use, mean over subcarriers.
    """
    snr = 10 ** (snr_db / 10)
    truth, rows = h.transpose(1, 2), known.transpose(1, 2)
    users = rows.shape[-2]
    gram = rows @ rows.mH + (users / snr) * torch.eye(users)
    # Of W = rows^H gram^-1, with one column per user.
    precoder = rows.mH @ torch.linalg.inv(gram)
    power = torch.view_as_real(precoder).square().sum((-3, -2, -1))
    received = torch.view_as_real(truth @ precoder).square().sum(-1) * (snr / power.clamp_min(1e-20))[..., None, None]
    wanted = received.diagonal(dim1=-2, dim2=-1)
    sinr = wanted / (1 + received.sum(-1) - wanted)
    return torch.log2(1 + sinr).sum(-1).mean(-1)


class _Tally:
    """Figures of one contender in one condition, gathered over pieces."""

    def __init__(self) -> None:
        self._errors: list[NDArray[np.float64]] = []
        self._full: list[NDArray[np.float64]] = []
        self._cosine: list[NDArray[np.float64]] = []
        self._lost: list[NDArray[np.float64]] = []
        self._places: list[Tensor | None] = []
        self.rates: list[NDArray[np.float64]] = []

    def add(self, drops: Drops, recovered: Tensor, present: Tensor) -> None:
        heard = present.sum(1)

        def mean(value: Tensor) -> NDArray[np.float64]:
            return ((value * present).sum(1) / heard).double().numpy()

        h, known = drops.h, from_delay_angle(recovered, drops.n_subcarriers)
        inner = (h.conj() * known).sum(-1).abs()
        scale = (h.abs().square().sum(-1) * known.abs().square().sum(-1)).sqrt().clamp_min(1e-20)
        self._errors.append(mean(nmse(drops.delay_angle, recovered)))
        self._full.append(mean(nmse(h, known)))
        self._cosine.append(mean((inner / scale).mean(-1)))
        self._lost.append(mean((recovered == 0).all(-1).all(-1)))
        self._places.append(drops.places)

    def _sum_rate(self) -> Interval:
        """Ratio of mean rates: that of single drops exceeds 1 where users are too alike to be told apart."""
        rate, perfect = np.concatenate(self.rates, axis=1)
        ratio = float(rate.mean() / perfect.mean())
        # To first order the ratio errs by the mean of these residuals.
        return drops_ci95(ratio + (rate - ratio * perfect) / perfect.mean(), self._places)

    def row(self, name: str, condition: Condition) -> Row:
        errors = np.concatenate(self._errors)
        known = [part for part in self._places if part is not None]
        return Row(
            contender=name,
            condition=condition,
            nmse_db=in_db(drops_ci95(errors, self._places)),
            full_nmse_db=10 * math.log10(float(np.concatenate(self._full).mean())),
            cosine=float(np.concatenate(self._cosine).mean()),
            sum_rate=self._sum_rate() if self.rates else None,
            lost=float(np.concatenate(self._lost).mean()),
            drops=len(errors),
            places=len(torch.cat(known).unique()) if known else len(errors),
            errors=errors,
        )


def as_json(results: Mapping[str, Sequence[Row]], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values of everything measured."""
    return {
        "format": 1,
        "settings": dict(settings),
        "sweeps": {name: [row.as_dict() for row in rows] for name, rows in results.items()},
    }

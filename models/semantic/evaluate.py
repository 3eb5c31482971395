"""Picture downlinks compared on the same pictures, channels and noise: over SNR, quality of the CSI, number of users.

Values are means over the users of a drop; intervals are over drops. LPIPS is there where its weights are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...errors import ModelError, ScenarioError
from ..cards import CARD_FILE, Card
from ..engine import latencies
from ..statistics import Interval, mean_ci95
from ..training import derived_seed
from . import downlink, networks
from .downlink import Csi, DownlinkConfig
from .images import Collection, Split
from .link import Channels, deliver
from .metrics import PictureMetric, ms_ssim, psnr
from .networks.base import CSI_EXTRAS, HEARD_CONDITIONS, PIXELS, SEND_CONDITIONS
from .train import as_batch, shipped

WMMSE = "+wmmse"
"""Behind the name of weights: the same, but with iterative WMMSE for a precoding matrix."""

RZF = "+rzf"
"""Behind the name of weights: the same, but with regularised zero forcing."""

QUALITIES = ("lpips", "ms_ssim", "psnr_db")
_CHUNK = 16


@dataclass(frozen=True)
class Condition:
    """What is sent over what.

    Attributes:
        snr_db: Transmit power over noise power.
        csi: How the base station came to know the channels.
        estimate_nmse_db: Error of CSI that is estimated.
        feedback_symbols: Of CSI that is fed back.
        feedback_snr_db: Of a received feedback symbol.
        n_users: Served at once.
        side: Of the pictures, in pixels.
    """

    snr_db: float = 10.0
    csi: Csi = "perfect"
    estimate_nmse_db: float = -10.0
    feedback_symbols: int = 16
    feedback_snr_db: float = 10.0
    n_users: int = 2
    side: int = 64


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
        condition: What was sent over what.
        quality: Means with their intervals over drops: "lpips", "ms_ssim", "psnr_db".
        failed: Share of pictures that were not decoded at all.
        drops: Sent.
        values: float64, (drop,) of each quality, averaged over users; not part of `as_dict`.
    """

    contender: str
    condition: Condition
    quality: dict[str, Interval]
    failed: float
    drops: int
    values: dict[str, NDArray[np.float64]]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "contender": self.contender,
            "condition": asdict(self.condition),
            **{name: list(interval) for name, interval in self.quality.items()},
            "failed": self.failed,
            "drops": self.drops,
        }


class Contender(Protocol):
    """Anything that sends pictures to several users."""

    name: str

    def prepare(self, condition: Condition, evaluation: Evaluation) -> None:
        """Choose what is to be chosen for a condition, on nothing but the evaluation's validation pictures."""
        ...

    def deliver(
        self, pictures: Tensor, channels: Channels, snr_db: float, generator: torch.Generator
    ) -> tuple[Tensor, NDArray[np.bool_]]:
        """Send pictures, float32 (batch, user, 3, row, column), and receive them; as they come out, in [0, 1], and
        which of them were not decoded at all, bool (batch, user)."""
        ...


class NetworkContender:
    """A trained network."""

    def __init__(self, name: str, network: networks.Network) -> None:
        self.name = name
        self.network = network

    def prepare(self, condition: Condition, evaluation: Evaluation) -> None:
        """See `Contender`; a network adapts by itself."""

    def deliver(
        self, pictures: Tensor, channels: Channels, snr_db: float, generator: torch.Generator
    ) -> tuple[Tensor, NDArray[np.bool_]]:
        """See `Contender`; a network always shows something."""
        with torch.inference_mode():
            found, _ = deliver(self.network, pictures, channels, torch.full((len(pictures),), snr_db), generator)
        return found, np.zeros(tuple(pictures.shape[:2]), bool)


def load_contender(name: str) -> tuple[Card, NetworkContender]:
    """A trained network by the name of its shipped weights, or by a path; `WMMSE` or `RZF` behind it changes its
    precoding matrix.

    Raises:
        ScenarioError: there is none of this name.
        ModelError: its weights are damaged.
    """
    plain, change = name, None
    for suffix in (WMMSE, RZF):
        if name.endswith(suffix):
            plain, change = name.removesuffix(suffix), suffix[1:]
    folder = shipped().get(plain, Path(plain))
    if not (folder / CARD_FILE).is_file():
        raise ScenarioError(
            f"{plain!r} is neither a folder with {CARD_FILE} nor one of the shipped weights: "
            f"{', '.join(shipped()) or 'none'}"
        )
    card, network = networks.load(folder)
    if change is not None:
        network = copy.copy(network)
        network.config = network.config.model_copy(update={"precoder": change})
    return card, NetworkContender(name, network)


def contenders(names: Sequence[str] | None, config: DownlinkConfig) -> list[Contender]:
    """Trained networks.

    Args:
        names: shipped weights or folders, see `load_contender`; None: all shipped that fit.
        config: of the downlink that they must fit.

    Raises:
        ScenarioError: a name is unknown, or there is nothing to compare.
        ModelError: weights are damaged, or for other antennas or subcarriers.
    """
    chosen: list[Contender] = []
    size = (config.channel.n_antennas, config.channel.n_subcarriers)
    for name in shipped() if names is None else names:
        _, found = load_contender(name)
        c = found.network.config
        if (c.n_antennas, c.n_subcarriers) == size:
            chosen.append(found)
        elif names is not None:
            raise ModelError(
                f"{name}: trained for {c.n_antennas} antennas and {c.n_subcarriers} subcarriers, used with "
                f"{size[0]} and {size[1]}; choose other weights, or train some with `semair train semantic`"
            )
    if names is None:
        chosen += [load_contender(name + WMMSE)[1] for name in [one.name for one in chosen] if name.endswith("-rzf")]
    if not chosen:
        raise ScenarioError("no weights are shipped for this downlink; name some, or train some")
    return chosen


def sweeps(quick: bool = False) -> dict[str, Sweep]:
    """The evaluation of picture downlinks, by sweep name; `quick` takes fewer conditions."""
    base = Condition()

    def over(name: str, axis: str, values: Sequence[Any], start: Condition = base) -> Sweep:
        return Sweep(name, axis, tuple(replace(start, **{axis: value}) for value in values))

    snrs = (0.0, 10.0) if quick else (-5.0, 0.0, 5.0, 10.0, 15.0, 20.0)
    fed_back = replace(base, csi="fed back")
    found = [
        over("snr", "snr_db", snrs),
        over("snr-fed-back", "snr_db", snrs, fed_back),
        over(
            "csi",
            "estimate_nmse_db",
            (-15.0, -5.0) if quick else (-20.0, -15.0, -10.0, -5.0),
            replace(base, csi="estimated"),
        ),
        over("users", "n_users", (1, 3) if quick else (1, 2, 3, 4)),
    ]
    return {sweep.name: sweep for sweep in found}


class Evaluation:
    """Evaluates contenders on conditions, one after the other.

    Args:
        chosen: Contenders.
        config: Of the downlink.
        pictures: Whose test split is sent.
        n_drops: Of each condition.
        seed: Of drops and noise.
        lpips: The metric; None: left out.
        split: Of pictures and seeds; what is chosen on "valid" is judged on "test".
    """

    def __init__(
        self,
        chosen: Sequence[Contender],
        config: DownlinkConfig,
        pictures: Collection,
        n_drops: int,
        seed: int = 1,
        lpips: PictureMetric | None = None,
        split: Split = "test",
    ) -> None:
        if n_drops < 2 or not chosen:
            raise ScenarioError(f"n_drops={n_drops}, {len(chosen)} contenders: at least 2 drops and 1 contender")
        self.chosen = list(chosen)
        self.config, self.pictures, self.n_drops, self.seed = config, pictures, n_drops, seed
        self.lpips, self.split = lpips, split

    def rows(self, condition: Condition, on_share: Callable[[float], None] | None = None) -> list[Row]:
        """Evaluate all contenders; one row each, in their order."""
        tallies = [_Tally() for _ in self.chosen]
        for contender in self.chosen:
            contender.prepare(condition, self)
        done = 0
        for sent, channels, noise_seed in self._draws(condition, self.n_drops):
            for contender, tally in zip(self.chosen, tallies, strict=True):
                noise = torch.Generator().manual_seed(noise_seed)
                tally.add(sent, *contender.deliver(sent, channels, condition.snr_db, noise), self.lpips)
            done += len(sent)
            if on_share is not None:
                on_share(done / self.n_drops)
        return [tally.row(one.name, condition) for one, tally in zip(self.chosen, tallies, strict=True)]

    def sheet(self, snrs_db: Sequence[float], n: int = 3, start: Condition | None = None) -> dict[str, Any]:
        """The same pictures through every scheme at several SNRs, over the same channels.

        Args:
            snrs_db: in dB.
            n: pictures; each is the first user's of a drop.
            start: other conditions; None: the defaults.

        Returns:
            "sent", uint8 (picture, row, column, 3), and "found", by contender's name, uint8 (SNR, picture, row,
            column, 3).
        """
        condition = start or Condition()
        sent, channels, noise_seed = next(iter(self._draws(condition, max(n, 2))))
        found: dict[str, NDArray[np.uint8]] = {}
        for contender in self.chosen:
            rows = []
            for snr_db in snrs_db:
                contender.prepare(replace(condition, snr_db=snr_db), self)
                noise = torch.Generator().manual_seed(noise_seed)
                rows.append(_as_bytes(contender.deliver(sent, channels, snr_db, noise)[0][:n, 0]))
            found[contender.name] = np.stack(rows)
        return {"sent": _as_bytes(sent[:n, 0]), "found": found}

    def _draws(self, condition: Condition, n_drops: int) -> Any:
        k = condition.n_users
        squares = self.pictures.fixed(n_drops * k, self.split, condition.side)
        purpose = "test" if self.split == "test" else "validation"
        for start in range(0, n_drops, _CHUNK):
            sent = as_batch(squares[start * k : (start + _CHUNK) * k], k)
            # Drops are the same whatever the SNR, and noise differs by its strength alone.
            generator = torch.Generator().manual_seed(derived_seed(self.seed, purpose, start))
            channels = downlink.draw(
                self.config,
                len(sent),
                generator,
                k,
                condition.csi,
                condition.estimate_nmse_db,
                (condition.feedback_symbols, condition.feedback_snr_db),
            )
            yield sent, channels, derived_seed(self.seed, purpose, start + 1)


class _Tally:
    """Figures of one contender in one condition, gathered over pieces."""

    def __init__(self) -> None:
        self._values: dict[str, list[NDArray[np.float64]]] = {}
        self._failed: list[NDArray[np.bool_]] = []

    def add(self, sent: Tensor, found: Tensor, failed: NDArray[np.bool_], lpips: PictureMetric | None) -> None:
        self._failed.append(failed)
        n_users = sent.shape[1]
        first, second = sent.flatten(0, 1), found.flatten(0, 1)
        values = {"ms_ssim": ms_ssim(first, second), "psnr_db": psnr(first, second)}
        if lpips is not None:
            values["lpips"] = lpips(first, second)
        for name, value in values.items():
            per_drop = value.unflatten(0, (-1, n_users)).mean(1).double().numpy()
            self._values.setdefault(name, []).append(per_drop)

    def row(self, name: str, condition: Condition) -> Row:
        values = {key: np.concatenate(self._values[key]) for key in QUALITIES if key in self._values}
        failed = np.concatenate(self._failed)
        quality = {key: mean_ci95(value) for key, value in values.items()}
        return Row(name, condition, quality, float(failed.mean()), len(failed), values)


def part_latencies(
    name: str,
    part: Literal["encoder", "transmitter", "decoder"],
    n_runs: int,
    engine: str = "onnxruntime",
    n_users: int = 2,
) -> NDArray[np.float64]:
    """Time one real module of a network for one frame of 64 x 64 pixels, one thread.

    Args:
        name: Of shipped weights, or a folder.
        part: What is timed: the encoder for all users, the transmitter for all users, or one user's decoder.
        n_runs: How often.
        engine: One of `models.engine.ENGINES`.
        n_users: Served at once.

    Returns:
        float64, (n_runs,): seconds.

    Raises:
        ScenarioError: the network has no such part.
    """
    network = load_contender(name)[1].network
    c, rng = network.config, np.random.default_rng(1)

    def numbers(*shape: int) -> NDArray[np.float32]:
        return rng.random(shape, np.float32)

    tokens = 64 // PIXELS
    module: nn.Module
    inputs: tuple[NDArray[np.float32], ...]
    if part == "encoder":
        module, inputs = network.encoder, (numbers(n_users, 3, 64, 64), numbers(n_users, SEND_CONDITIONS))
    elif part == "decoder":
        module, inputs = network.decoder, (numbers(1, tokens, tokens, 3 * c.uses), numbers(1, HEARD_CONDITIONS))
    elif network.transmitter is not None:
        features = c.group * (2 * c.n_antennas + CSI_EXTRAS)
        n_blocks = -(-(tokens**2) // c.n_groups)
        module = Joined(network.transmitter)
        inputs = (
            numbers(1, n_users, n_blocks, c.n_groups, 2 * c.uses),
            numbers(1, n_users, c.n_groups, features),
            numbers(1, n_users, SEND_CONDITIONS),
        )
    else:
        raise ScenarioError(f"{name} has no transmitter between encoder and precoding matrix")
    return latencies(module, inputs, n_runs, [engine])[engine]


class Joined(nn.Module):
    """A transmitter whose outputs are one flat tensor, for engines that give one."""

    def __init__(self, transmitter: nn.Module) -> None:
        super().__init__()
        self.transmitter = transmitter

    def forward(self, *inputs: Tensor) -> Tensor:
        """All outputs that there are, flat, one after the other."""
        return torch.cat([part.flatten() for part in self.transmitter(*inputs) if part is not None])

    def shapes(
        self, b: int, n_users: int, n_blocks: int, n_groups: int, width: int
    ) -> tuple[tuple[int, ...], tuple[int, ...] | None, tuple[int, ...] | None]:
        """Shapes of the outputs, None for those that there are not, for the shape of the symbols that go in."""
        c: Any = self.transmitter.config
        return (
            (b, n_users, n_blocks, n_groups, width),
            (b, n_users, n_groups, 4) if c.precoder == "learned" else None,
            (b, n_blocks, n_groups, c.n_antennas * width) if c.data_branch else None,
        )


def as_json(results: Mapping[str, Sequence[Row]], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values of everything measured."""
    return {
        "format": 1,
        "settings": dict(settings),
        "sweeps": {name: [row.as_dict() for row in rows] for name, rows in results.items()},
    }


def _as_bytes(pictures: Tensor) -> NDArray[np.uint8]:
    return (pictures * 255 + 0.5).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()

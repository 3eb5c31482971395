"""Training of semantic precoding: fresh crops and channels in every step, checkpoints, exact resume, a card at the end.

The loss is MSE and MS-SSIM, end to end through precoding, channel and receiver. LPIPS judges only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from ...errors import ModelError, ScenarioError
from ..cards import CARD_FILE, InputSpec, Metric, load_card
from ..statistics import mean_ci95
from ..training import (
    OnProgress,
    OptimiserSection,
    Section,
    Trained,
    TrainingRun,
    checked_device,
    derived_seed,
    initial_weights,
    read_config,
    sit,
)
from . import downlink, networks
from .downlink import DownlinkConfig
from .images import Collection
from .link import Channels, deliver
from .metrics import ms_ssim, psnr
from .networks.base import HEARD_CONDITIONS, MULTIPLE, SEND_CONDITIONS

SHIPPED = Path(__file__).parent / "configs"
WEIGHTS = Path(__file__).parent / "weights"
STARTS = WEIGHTS / "starts"
"""Of networks that others begin with; they are no scheme of their own."""

_CHUNK = 32
# Of CSI that is fed back or estimated, for the card.
_FEEDBACK_SNR_DB = 10.0
_ESTIMATE_NMSE_DB = -10.0


class LossSection(Section):
    """What training minimises: mse MSE + ms_ssim (1 - MS-SSIM), for pictures in [0, 1]."""

    mse: float = Field(100.0, ge=0)
    ms_ssim: float = Field(1.0, ge=0)


class ValidationSection(Section):
    """Quality of fixed pictures over fixed channels while training, and of others at the end."""

    every: int = Field(500, ge=1, description="steps")
    drops: int = Field(64, ge=2, description="while training, of each SNR")
    snr_db: tuple[int, ...] = Field((-5, 5, 15), min_length=1, description="in whole dB")
    test_drops: int = Field(200, ge=2, description="of each condition, for the card")
    test_snr_db: tuple[float, ...] = Field((-5.0, 0.0, 5.0, 10.0, 15.0, 20.0), min_length=1)


class TrainingConfig(Section):
    """Everything that decides what is learned, as a TOML file."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="of the model")
    description: str = ""
    task: Literal["semantic"] = "semantic"
    seed: int = Field(1, ge=0, description="of initial weights, training, validation and test draws")
    checkpoint_s: float = Field(60.0, ge=0, description="seconds between checkpoints")
    start: str = Field("", description="weights to begin with, shipped or a folder; what is new begins fresh")
    side: int = Field(64, ge=MULTIPLE, le=1024, description="of the pictures, in pixels")
    network: dict[str, Any] = Field(description="kind, and fields of that kind's configuration")
    downlink: DownlinkConfig = DownlinkConfig()
    loss: LossSection = LossSection()
    optimiser: OptimiserSection = OptimiserSection(batch=16)
    validation: ValidationSection = ValidationSection()

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        if not isinstance(self.network.get("kind"), str):
            raise ValueError("network.kind: missing; it must be given")
        if self.side % MULTIPLE:
            raise ValueError(f"side={self.side}: a multiple of {MULTIPLE}")
        if self.loss.mse == 0 and self.loss.ms_ssim == 0:
            raise ValueError("loss: mse and ms_ssim are both 0")
        return self


def shipped_configs() -> dict[str, Path]:
    """Training configurations that come with semair, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.toml"))}


def shipped() -> dict[str, Path]:
    """Folders of the trained networks that come with semair, by name."""
    return _in_folders(WEIGHTS)


def _in_folders(place: Path) -> dict[str, Path]:
    return {path.parent.name: path.parent for path in sorted(place.glob(f"*/{CARD_FILE}"))}


def load_config(source: str | Path) -> TrainingConfig:
    """Read and check a training configuration.

    Args:
        source: name of a shipped one, or path of a TOML file.

    Raises:
        ScenarioError: the file is missing or no TOML, or a field is wrong.
    """
    config = read_config(source, shipped_configs(), TrainingConfig)
    build_network(config)
    return config


def build_network(config: TrainingConfig) -> networks.Network:
    """Make the network of a configuration; fields that it shares with the downlink come from there.

    Raises:
        ScenarioError: a field is wrong, or contradicts the downlink.
    """
    fields = dict(config.network)
    kind = fields.pop("kind")
    channel = config.downlink.channel
    for name, needed in (("n_antennas", channel.n_antennas), ("n_subcarriers", channel.n_subcarriers)):
        if fields.setdefault(name, needed) != needed:
            raise ScenarioError(f"network.{name}={fields[name]} contradicts the downlink's {needed}; leave it out")
    with initial_weights(config.seed):
        return networks.build(kind, fields)


def train(
    config: TrainingConfig,
    folder: str | Path,
    pictures: Collection,
    *,
    device: str = "cpu",
    minutes: float | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
    command: str | None = None,
) -> Trained:
    """Train a network, and leave it with its card and its learning curve in a folder.

    An interruption (Ctrl-C) ends after the step under way and leaves a checkpoint to resume from.

    Args:
        config: what to train on what.
        folder: of the model.
        pictures: to train with; its validation and test splits judge.
        device: "cpu" or "cuda".
        minutes: wall time of training; the schedule is stretched over it and `steps` does not count. None: `steps`.
        resume: go on from the folder's checkpoint.
        overwrite: begin anew in a folder that holds a model or a checkpoint.
        on_progress: called a few times per second at most.
        command: for the card; None makes one up from the configuration's name.

    Returns:
        Folder, card and steps.

    Raises:
        ScenarioError: an argument or the configuration is wrong, or the folder is in use.
        ModelError: the loss became NaN or infinite, or the checkpoint or the weights to begin with do not fit.
        StorageError: the folder cannot be written.
    """
    where = checked_device(device)
    run = SemanticTraining(config, Path(folder), where, minutes, pictures, fresh=not resume)
    return sit(run, resume, overwrite, on_progress, command or f"semair train semantic --config {config.name}")


def as_batch(squares: NDArray[np.uint8], n_users: int) -> Tensor:
    """Squares as pictures of users; float32 in [0, 1], (batch, user, 3, row, column)."""
    return torch.from_numpy(squares).permute(0, 3, 1, 2).unflatten(0, (-1, n_users)).float() / 255


class SemanticTraining(TrainingRun[TrainingConfig, networks.Network]):
    """State of one training run of a semantic precoding network."""

    figure = "psnr_db"
    half = True

    def __init__(
        self,
        config: TrainingConfig,
        place: Path,
        device: torch.device,
        minutes: float | None,
        pictures: Collection,
        fresh: bool = True,
    ) -> None:
        super().__init__(config, place, device, minutes)
        self.pictures = pictures
        self.origin = {"pictures": pictures.name, "pictures_fingerprint": pictures.fingerprint}
        if config.start:
            self.origin = {**self.origin, **self._begin_with(config.start, fresh)}

    def build(self) -> networks.Network:
        """The network of the configuration."""
        return build_network(self.config)

    def loss(self, generator: torch.Generator) -> Tensor:
        """MSE and MS-SSIM of fresh crops over fresh channels."""
        config = self.config
        n_users = config.downlink.users[_integer(len(config.downlink.users), generator)]
        n = max(config.optimiser.batch // n_users, 1)
        rng = np.random.default_rng(_integer(1 << 62, generator))
        sent = as_batch(self.pictures.crops(n * n_users, "train", config.side, rng), n_users).to(self.device)
        low, high = config.downlink.snr_db
        snr_db = low + (high - low) * torch.rand(n, generator=generator)
        channels = self._channels(lambda: downlink.draw(config.downlink, n, generator, n_users))
        noise = torch.Generator(self.device).manual_seed(_integer(1 << 62, generator))
        half = config.optimiser.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            found, _ = deliver(self.network, sent, channels, snr_db.to(self.device), noise)
        sent, found = sent.flatten(0, 1), found.flatten(0, 1).float()
        loss = config.loss.mse * (sent - found).square().mean()
        if config.loss.ms_ssim:
            loss = loss + config.loss.ms_ssim * (1 - ms_ssim(sent, found).mean())
        return loss

    def errors(self, network: networks.Network) -> dict[int, float]:
        """Mean PSNR in dB per SNR, over the mixture of training."""
        settings = self.config.validation
        return {
            snr_db: float(self._quality(network, "valid", settings.drops, snr_db, None)["psnr_db"].mean())
            for snr_db in settings.snr_db
        }

    def measure(self, network: networks.Network) -> tuple[Metric, ...]:
        """PSNR and MS-SSIM over SNR, with perfect CSI and with what was fed back, on pictures and drops never seen."""
        settings = self.config.validation
        metrics = []
        fed_back = bool(self.config.downlink.fed_back)
        kinds: list[downlink.Csi] = ["perfect", "fed back" if fed_back else "estimated"]
        for csi in kinds:
            for snr_db in settings.test_snr_db:
                found = self._quality(network, "test", settings.test_drops, snr_db, csi)
                conditions = {"snr_db": snr_db, "csi": csi, "drops": settings.test_drops, "split": "test"}
                if csi == "fed back":
                    conditions |= {"feedback_symbols": self._longest(), "feedback_snr_db": _FEEDBACK_SNR_DB}
                elif csi == "estimated":
                    conditions |= {"estimate_nmse_db": _ESTIMATE_NMSE_DB}
                for name, values in found.items():
                    unit = "dB" if name.endswith("_db") else ""
                    interval = mean_ci95(values)
                    metrics.append(Metric(name=name, unit=unit, conditions=conditions, **interval._asdict()))
        return tuple(metrics)

    def scenario(self) -> dict[str, Any]:
        """Numerology, pictures and downlink."""
        channel = self.config.downlink.channel
        return {
            "n_antennas": channel.n_antennas,
            "n_subcarriers": channel.n_subcarriers,
            "users": list(self.config.downlink.users),
            "side": self.config.side,
            "snr_db": list(self.config.downlink.snr_db),
            "downlink": self.config.downlink.model_dump(mode="json"),
            "loss": self.config.loss.model_dump(mode="json"),
        }

    def inputs(self, network: networks.Network) -> tuple[InputSpec, ...]:
        """What encoder and decoder take."""
        c = network.config
        return (
            InputSpec(name="encoder pictures", shape=("batch", 3, "row", "column"), normalisation="0 to 1, RGB"),
            InputSpec(name="encoder condition", shape=("batch", SEND_CONDITIONS), normalisation="see networks/base.py"),
            InputSpec(
                name="decoder received",
                shape=("batch", "row / 8", "column / 8", 3 * c.uses),
                normalisation="equalised symbols, real and imaginary parts, and their reliability",
            ),
            InputSpec(
                name="decoder condition", shape=("batch", HEARD_CONDITIONS), normalisation="see networks/base.py"
            ),
        )

    def _quality(
        self,
        network: networks.Network,
        split: Literal["valid", "test"],
        n: int,
        snr_db: float,
        csi: downlink.Csi | None,
    ) -> dict[str, NDArray[np.float64]]:
        """Of every drop, averaged over users."""
        config = self.config
        n_users = config.downlink.users[0]
        # The same drops at every SNR.
        seed = derived_seed(config.seed, "validation" if split == "valid" else "test")
        feedback = (self._longest(), _FEEDBACK_SNR_DB) if csi == "fed back" else None
        error_db = _ESTIMATE_NMSE_DB if csi == "estimated" else None
        generator = torch.Generator().manual_seed(seed)
        squares = self.pictures.fixed(n * n_users, split, config.side)
        values: dict[str, list[Tensor]] = {"psnr_db": [], "ms_ssim": []}
        with torch.inference_mode():
            for start in range(0, n, _CHUNK):
                part = squares[start * n_users : (start + _CHUNK) * n_users]
                sent = as_batch(part, n_users).to(self.device)
                draws = partial(downlink.draw, config.downlink, len(sent), generator, n_users, csi, error_db, feedback)
                found = self._channels(draws)
                noise = torch.Generator(self.device).manual_seed(_integer(1 << 62, generator))
                snr = torch.full((len(sent),), float(snr_db), device=self.device)
                got, _ = deliver(network, sent, found, snr, noise)
                values["psnr_db"].append(psnr(sent, got).mean(1).cpu())
                values["ms_ssim"].append(
                    ms_ssim(sent.flatten(0, 1), got.flatten(0, 1)).unflatten(0, (-1, n_users)).mean(1).cpu()
                )
        return {name: torch.cat(parts).double().numpy() for name, parts in values.items()}

    def _longest(self) -> int:
        return downlink.feedback_lengths(self.config.downlink)[-1]

    def _channels(self, draw: Callable[[], Channels]) -> Channels:
        # Drawn on the CPU: the draws of a seed are the same on every device.
        found = draw()
        return Channels(*(part.to(self.device) for part in (found.h, found.known, found.nmse_db)))

    def _begin_with(self, name: str, fresh: bool) -> dict[str, Any]:
        """Take the weights of another network as far as it has them; what identifies it."""
        known = {**shipped(), **_in_folders(STARTS)}
        folder = known.get(name, Path(name))
        if not (folder / CARD_FILE).is_file():
            raise ScenarioError(
                f"start={name!r} is neither a folder with {CARD_FILE} nor one of the shipped weights: "
                f"{', '.join(known) or 'none'}"
            )
        card = load_card(folder, "semantic")
        assert card.weights is not None
        if fresh:
            _, other = networks.load(folder)
            given, own = other.state_dict(), self.network.state_dict()
            odd = [key for key in given if key not in own or own[key].shape != given[key].shape]
            if odd:
                raise ModelError(
                    f"start={name!r}: its weights do not fit the network, the first of {len(odd)} is {odd[0]!r}; take "
                    "weights of a network of the same sizes"
                )
            self.network.load_state_dict({**own, **given})
            if self.average is not None:
                self.average = {key: tensor.detach().clone() for key, tensor in self.network.state_dict().items()}
        return {"start": card.name, "start_sha256": card.weights.sha256, "start_steps": card.training.steps}


def _integer(high: int, generator: torch.Generator) -> int:
    return int(torch.randint(high, (1,), generator=generator))

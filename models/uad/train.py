"""Training of activity-detection networks: fresh slots in every step, checkpoints, exact resume, a card at the end.

Step k draws with a generator seeded from (seed, k), so that a run that was interrupted and resumed sees the very
slots of one that was not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from ...errors import ScenarioError
from ..cards import InputSpec, Metric
from ..statistics import mean_ci95
from ..training import (
    CHECKPOINT_FILE,
    CURVE_FILE,
    OnProgress,
    OptimiserSection,
    Progress,
    Section,
    Trained,
    checked_device,
    derived_seed,
    initial_weights,
    learning_rate,
    read_config,
    sit,
)
from ..training import TrainingRun as GeneralRun
from . import networks
from .draws import Mixture, Slots, draw

__all__ = [
    "CHECKPOINT_FILE",
    "CURVE_FILE",
    "OnProgress",
    "OptimiserSection",
    "Progress",
    "Trained",
    "TrainingConfig",
    "TrainingRun",
    "build_network",
    "checked_device",
    "error_counts",
    "error_metric",
    "learning_rate",
    "load_config",
    "shipped_configs",
    "sit",
    "train",
]

SHIPPED = Path(__file__).parent / "configs"


class ValidationSection(Section):
    """Error probability on fixed draws while training, and on others at the end."""

    every: int = Field(1000, ge=1, description="steps")
    slots: int = Field(200, ge=1, description="per length, while training")
    test_slots: int = Field(1000, ge=2, description="per length, for the card")
    lengths: tuple[int, ...] | None = Field(None, description="none: all lengths of the mixture")


class TrainingConfig(Section):
    """Everything that decides what is learned, as a TOML file."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="of the model")
    description: str = ""
    task: Literal["uad"] = "uad"
    seed: int = Field(1, ge=0, description="of initial weights, training, validation and test draws")
    checkpoint_s: float = Field(60.0, ge=0, description="seconds between checkpoints")
    network: dict[str, Any] = Field(description="kind, and fields of that kind's configuration")
    mixture: Mixture = Mixture()
    optimiser: OptimiserSection = OptimiserSection()
    validation: ValidationSection = ValidationSection()

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        if not isinstance(self.network.get("kind"), str):
            raise ValueError("network.kind: missing; it must be given")
        for length in self.validation.lengths or ():
            if not 1 <= length <= self.mixture.max_length:
                raise ValueError(f"validation.lengths holds {length}; allowed: 1 to {self.mixture.max_length}")
        return self

    @property
    def validation_lengths(self) -> tuple[int, ...]:
        """Lengths at which the error probability is measured."""
        return self.validation.lengths or self.mixture.lengths


def shipped_configs() -> dict[str, Path]:
    """Training configurations that come with semair, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.toml"))}


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
    """Make the network of a configuration; fields that it shares with the mixture come from there.

    Raises:
        ScenarioError: a field is wrong, or contradicts the mixture.
    """
    fields = dict(config.network)
    kind = fields.pop("kind")
    known = networks.available()
    if kind in known:
        for name in ("n_users", "max_length"):
            if name not in known[kind].Config.model_fields:
                continue
            needed = getattr(config.mixture, name)
            if fields.setdefault(name, needed) != needed:
                raise ScenarioError(f"network.{name}={fields[name]} contradicts mixture.{name}={needed}; leave it out")
        if "lengths" in known[kind].Config.model_fields:
            fields.setdefault("lengths", (min(config.mixture.lengths), max(config.mixture.lengths)))
    with initial_weights(config.seed):
        return networks.build(kind, fields)


def train(
    config: TrainingConfig,
    folder: str | Path,
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
        ModelError: the loss became NaN or infinite, or the checkpoint is damaged or of another configuration.
        StorageError: the folder cannot be written.
    """
    place = Path(folder)
    where = checked_device(device)
    run = TrainingRun(config, place, where, minutes)
    return sit(run, resume, overwrite, on_progress, command or f"semair train uad --config {config.name}")


def error_counts(
    network: networks.Network,
    mixture: Mixture,
    length: int,
    n_slots: int,
    seed: int,
    device: torch.device | str = "cpu",
    batch: int = 256,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decide slots of one length at probability 1/2 and count what went wrong.

    Args:
        network: in evaluation mode, on `device`.
        mixture: conditions.
        length: preamble symbols.
        n_slots: slots.
        seed: of the draws.
        device: where to compute.
        batch: slots at a time.

    Returns:
        Three int64 arrays, (slot,): missed users, false alarms, active users.
    """
    generator = torch.Generator().manual_seed(seed)
    pool = mixture.fixed_pool().to(device) if mixture.pool == "fixed" else None
    counts: list[Tensor] = []
    with torch.inference_mode():
        for start in range(0, n_slots, batch):
            slots = draw(mixture, pool, min(batch, n_slots - start), generator, device, length=length)
            logits = network(*network.prepare(slots.y, slots.preambles, slots.noise_power, slots.activity))
            found = logits > 0
            counts.append(
                torch.stack([(~found & slots.active).sum(1), (found & ~slots.active).sum(1), slots.active.sum(1)]).cpu()
            )
    missed, alarms, active = torch.cat(counts, 1).numpy()
    return missed, alarms, active


def error_metric(
    missed: np.ndarray, alarms: np.ndarray, active: np.ndarray, n_users: int, conditions: Mapping[str, Any]
) -> Metric:
    """Error probability with its interval over slots, from the counts of `error_counts`."""
    interval = mean_ci95((missed + alarms) / n_users, unit=1 / n_users)
    return Metric(
        name="error_probability",
        value=interval.value,
        low=interval.low,
        high=interval.high,
        conditions={
            **conditions,
            "missed": float(missed.sum() / max(active.sum(), 1)),
            "false_alarms": float(alarms.sum() / max((n_users - active).sum(), 1)),
        },
    )


class TrainingRun(GeneralRun[TrainingConfig, networks.Network]):
    """State of one training run of an activity detector."""

    figure = "error_probability"

    def __init__(self, config: TrainingConfig, place: Path, device: torch.device, minutes: float | None) -> None:
        super().__init__(config, place, device, minutes)
        self.pool = config.mixture.fixed_pool().to(device) if config.mixture.pool == "fixed" else None

    def build(self) -> networks.Network:
        """The network of the configuration."""
        return build_network(self.config)

    def loss(self, generator: torch.Generator) -> Tensor:
        """What the network says of slots never seen before."""
        slots = self.draw(generator)
        with torch.no_grad():
            prepared = self.network.prepare(slots.y, slots.preambles, slots.noise_power, slots.activity)
        half = self.config.optimiser.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            return self.network.loss(slots.active, *prepared)

    def draw(self, generator: torch.Generator) -> Slots:
        """Slots of one step."""
        return draw(self.config.mixture, self.pool, self.config.optimiser.batch, generator, self.device)

    def errors(self, network: networks.Network) -> dict[int, float]:
        """Error probability per length."""
        slots, found = self.config.validation.slots, {}
        for length in self.config.validation_lengths:
            seed = derived_seed(self.config.seed, "validation", length)
            missed, alarms, _ = error_counts(network, self.config.mixture, length, slots, seed, self.device)
            found[length] = float((missed + alarms).mean() / self.config.mixture.n_users)
        return found

    def measure(self, network: networks.Network) -> tuple[Metric, ...]:
        """Error probability per length, on draws that training never used."""
        config = self.config
        metrics: list[Metric] = []
        slots = config.validation.test_slots
        for length in config.validation_lengths:
            seed = derived_seed(config.seed, "test", length)
            missed, alarms, active = error_counts(network, config.mixture, length, slots, seed, self.device)
            users = config.mixture.n_users
            conditions = {"length": length, "slots": slots, "decisions": slots * users, "threshold": 0.5}
            metrics.append(error_metric(missed, alarms, active, users, conditions))
        return tuple(metrics)

    def scenario(self) -> dict[str, Any]:
        """The mixture."""
        return _scenario(self.config.mixture)

    def inputs(self, network: networks.Network) -> tuple[InputSpec, ...]:
        """What `forward` takes."""
        return _inputs(network, self.config.mixture, self.pool)

    def seeds(self) -> dict[str, int]:
        """Of training, and of the pool."""
        return {**super().seeds(), "pool": self.config.mixture.pool_seed}


def _inputs(network: networks.Network, mixture: Mixture, pool: Tensor | None) -> tuple[InputSpec, ...]:
    """Describe what forward takes, by preparing slots of two batch sizes."""
    shapes = []
    parameter = next(network.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    with torch.inference_mode():
        for n in (2, 3):
            slots = draw(mixture, pool, n, torch.Generator().manual_seed(0), device, length=max(mixture.lengths))
            shapes.append(network.prepare(slots.y, slots.preambles, slots.noise_power, slots.activity))
    names = getattr(network, "input_names", None) or [f"input_{index}" for index in range(len(shapes[0]))]
    notes = getattr(network, "input_notes", None) or [""] * len(shapes[0])
    return tuple(
        InputSpec(
            name=name,
            shape=tuple("batch" if a != b else a for a, b in zip(one.shape, two.shape, strict=True)),
            dtype=str(one.dtype).removeprefix("torch."),
            normalisation=note,
        )
        for name, note, one, two in zip(names, notes, *shapes, strict=True)
    )


def _scenario(mixture: Mixture) -> dict[str, Any]:
    return {
        "n_users": mixture.n_users,
        "max_length": mixture.max_length,
        "lengths": [min(mixture.lengths), max(mixture.lengths)],
        "activity": list(mixture.activity),
        "snr_db": list(mixture.snr_db),
        "pool": mixture.pool,
        "pool_seed": mixture.pool_seed if mixture.pool == "fixed" else None,
        "channels": sorted({channel.kind for channel in mixture.channels}),
        "mixture": mixture.model_dump(mode="json"),
    }

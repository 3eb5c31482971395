"""Training of activity-detection networks: fresh slots in every step, checkpoints, exact resume, a card at the end.

Step k draws with a generator seeded from (seed, k), so that a run that was interrupted and resumed sees the very
slots of one that was not.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from ...errors import ModelError, ScenarioError, StorageError, explain_validation
from ..cards import (
    CARD_FILE,
    Card,
    InputSpec,
    Metric,
    NetworkSection,
    TrainingSection,
    git_commit,
    save_model,
    write_atomically,
)
from ..statistics import mean_ci95
from . import networks
from .draws import Mixture, Slots, draw

SHIPPED = Path(__file__).parent / "configs"
CHECKPOINT_FILE = "checkpoint.safetensors"
CURVE_FILE = "curve.png"

_PURPOSES = {"weights": 0, "training": 1, "validation": 2, "test": 3}
_REPORT_S = 0.5


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class OptimiserSection(_Section):
    """AdamW and its schedule; `--minutes` stretches or shrinks the schedule to a time instead of `steps`."""

    steps: int = Field(10_000, ge=1)
    batch: int = Field(128, ge=1, description="slots per step")
    lr: float = Field(1e-3, gt=0, le=1, description="learning rate after warm-up")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the run in which the learning rate rises linearly")
    schedule: Literal["cosine", "steps", "constant"] = "cosine"
    final_lr: float = Field(0.0, ge=0, le=1, description="cosine: learning rate at the end, share of lr")
    drops: tuple[float, ...] = Field((), description="steps: shares of the run at which lr falls to a tenth")
    weight_decay: float = Field(0.0, ge=0, le=1, description="of matrices; vectors are left alone")
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    ema: float = Field(0.0, ge=0, lt=1, description="decay per step of the averaged weights that are kept; 0: none")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of matrix products while training")


class ValidationSection(_Section):
    """Error probability on fixed draws while training, and on others at the end."""

    every: int = Field(1000, ge=1, description="steps")
    slots: int = Field(200, ge=1, description="per length, while training")
    test_slots: int = Field(1000, ge=2, description="per length, for the card")
    lengths: tuple[int, ...] | None = Field(None, description="none: all lengths of the mixture")


class TrainingConfig(_Section):
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


@dataclass(frozen=True)
class Progress:
    """Where a training run stands.

    Attributes:
        step: steps done.
        share: of the run that is done.
        elapsed_s: wall time spent, earlier sittings included.
        left_s: estimate of what is left.
        loss: mean over the last steps.
        error: error probability per length at the last validation; empty before the first.
    """

    step: int
    share: float
    elapsed_s: float
    left_s: float
    loss: float
    error: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """What `train` leaves.

    Attributes:
        folder: of the model or the checkpoint.
        card: of the finished model; None when the run was interrupted.
        steps: done in all.
    """

    folder: Path
    card: Card | None
    steps: int


OnProgress = Callable[[Progress], None]


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
    shipped = shipped_configs()
    path = shipped.get(str(source), Path(source))
    if not path.is_file():
        raise ScenarioError(
            f"training configuration {str(source)!r} is neither a file nor a shipped one ({', '.join(shipped)})"
        )
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: not a TOML file: {error}") from error
    try:
        config = TrainingConfig.model_validate(data)
    except ValidationError as error:
        raise ScenarioError(f"{path}: {explain_validation(error)}") from error
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
    torch_state = torch.random.get_rng_state()
    try:
        # Layers take their initial weights from torch's global generator.
        torch.manual_seed(_seed(config.seed, "weights"))
        return networks.build(kind, fields)
    finally:
        torch.random.set_rng_state(torch_state)


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
    if minutes is not None and not minutes > 0:
        raise ScenarioError(f"minutes={minutes:g}: a positive time")
    run = TrainingRun(config, place, where, minutes)
    return sit(run, resume, overwrite, on_progress, command or f"semair train uad --config {config.name}")


def sit(run: TrainingRun, resume: bool, overwrite: bool, on_progress: OnProgress | None, command: str) -> Trained:
    """Take a training run to its end, or to an interruption; see `train`."""
    if resume:
        run.restore()
    else:
        _make_way(run.place, overwrite)
    with _interruptible() as stop:
        finished = run.loop(stop, on_progress)
    return Trained(run.place, run.finish(command) if finished else None, run.step)


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


def learning_rate(optimiser: OptimiserSection, share: float) -> float:
    """Learning rate when `share` of the run is done."""
    if share < optimiser.warmup:
        return optimiser.lr * share / optimiser.warmup
    if optimiser.schedule == "steps":
        return optimiser.lr * 0.1 ** sum(share >= drop for drop in optimiser.drops)
    if optimiser.schedule == "constant":
        return optimiser.lr
    done = min((share - optimiser.warmup) / (1 - optimiser.warmup), 1.0)
    low = optimiser.final_lr
    return optimiser.lr * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done)))


class TrainingRun:
    """State of one training run: everything that a checkpoint holds."""

    origin: Mapping[str, Any] = MappingProxyType({})
    """What the run depends on beside its configuration, in plain values; a checkpoint of another one is refused."""

    def __init__(self, config: TrainingConfig, place: Path, device: torch.device, minutes: float | None) -> None:
        self.config, self.place, self.device, self.minutes = config, place, device, minutes
        self.network = build_network(config).to(device).train()
        matrices = [p for p in self.network.parameters() if p.dim() >= 2]
        vectors = [p for p in self.network.parameters() if p.dim() < 2]
        settings = config.optimiser
        groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=settings.lr,
            betas=settings.betas,
            fused=device.type == "cuda",
        )
        self.average = (
            {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}
            if settings.ema
            else None
        )
        self.pool = config.mixture.fixed_pool().to(device) if config.mixture.pool == "fixed" else None
        self.step = 0
        self.elapsed_s = 0.0
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.loss_count = 0
        self.curve: list[dict[str, Any]] = []
        self.error: dict[int, float] = {}
        self.findings: dict[str, Any] = {}
        """For the card's details, noted by `measure`."""
        # Of the code as it is loaded now: the working copy may change under a run of hours.
        self.commits: list[str] = [commit] if (commit := git_commit()) else []

    @property
    def share(self) -> float:
        """Share of the run that is done."""
        if self.minutes is not None:
            return self.elapsed_s / (60 * self.minutes)
        return self.step / self.config.optimiser.steps

    def loop(self, stop: threading.Event, on_progress: OnProgress | None) -> bool:
        """Train to the end; False when stopped before."""
        _make_folder(self.place)
        every = self.config.validation.every
        last = saved = told = time.monotonic()
        while self.share < 1:
            if stop.is_set():
                self.save()
                return False
            self.advance()
            now = time.monotonic()
            self.elapsed_s += now - last
            last = now
            if self.step % every == 0 or self.share >= 1:
                self.validate()
            if now - saved >= self.config.checkpoint_s:
                self.save()
                saved = time.monotonic()
            if on_progress is not None and (now - told >= _REPORT_S or self.share >= 1):
                told = now
                share = min(self.share, 1.0)
                left_s = self.elapsed_s * (1 - share) / share
                on_progress(Progress(self.step, share, self.elapsed_s, left_s, self.recent_loss(), dict(self.error)))
        # From here on an interruption costs the final evaluation alone.
        self.save()
        return True

    def advance(self) -> None:
        """One step on slots never seen before."""
        settings = self.config.optimiser
        generator = torch.Generator().manual_seed(_seed(self.config.seed, "training", self.step))
        slots = self.draw(generator)
        with torch.no_grad():
            prepared = self.network.prepare(slots.y, slots.preambles, slots.noise_power, slots.activity)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(settings, self.share)
        self.optimiser.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            loss = self.network.loss(slots.active, *prepared)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip)
        # The norm is not finite either when only the gradient went astray.
        self.loss_sum += loss.detach().double() + 0 * norm.double()
        self.loss_count += 1
        self.optimiser.step()
        self.step += 1
        if self.average is not None:
            # A young average would remember the initial weights for too long.
            decay = min(settings.ema, (1 + self.step) / (10 + self.step))
            for name, tensor in self.network.state_dict().items():
                if tensor.is_floating_point():
                    self.average[name].lerp_(tensor, 1 - decay)
                else:
                    self.average[name].copy_(tensor)
        # Reading a number waits for the device: seldom on a GPU.
        if self.device.type == "cpu" or self.step % 50 == 0:
            self.refuse_nan()

    def draw(self, generator: torch.Generator) -> Slots:
        """Slots of one step."""
        return draw(self.config.mixture, self.pool, self.config.optimiser.batch, generator, self.device)

    def recent_loss(self) -> float:
        """Mean loss since the last validation; that up to it while too few steps have followed."""
        if self.curve and self.loss_count < min(50, self.config.validation.every):
            return float(self.curve[-1]["loss"])
        return float(self.loss_sum) / max(self.loss_count, 1)

    def refuse_nan(self) -> None:
        """Stop before a broken state can replace the last good checkpoint."""
        if not math.isfinite(float(self.loss_sum)):
            kept = self.place / CHECKPOINT_FILE
            remedy = f"the last good state is kept in {kept}" if kept.exists() else "no checkpoint was written yet"
            raise ModelError(
                f"the loss became NaN or infinite by step {self.step}; {remedy}. "
                f"Lower optimiser.lr ({self.config.optimiser.lr:g}) or optimiser.clip ({self.config.optimiser.clip:g})"
            )

    def validate(self) -> None:
        """Measure the error probability on the fixed validation draws, and note it in the curve."""
        self.refuse_nan()
        network = self.kept()
        slots = self.config.validation.slots
        self.error = {}
        for length in self.config.validation_lengths:
            seed = _seed(self.config.seed, "validation", length)
            missed, alarms, _ = error_counts(network, self.config.mixture, length, slots, seed, self.device)
            self.error[length] = float((missed + alarms).mean() / self.config.mixture.n_users)
        self.curve.append(
            {
                "step": self.step,
                "time_s": round(self.elapsed_s, 1),
                "lr": learning_rate(self.config.optimiser, self.share),
                "loss": float(self.loss_sum) / max(self.loss_count, 1),
                "error_probability": {str(length): value for length, value in self.error.items()},
            }
        )
        self.loss_sum.zero_()
        self.loss_count = 0

    def kept(self) -> networks.Network:
        """The network as it would be kept: averaged where averages are asked for, in evaluation mode."""
        network = build_network(self.config)
        network.load_state_dict(self.average if self.average is not None else self.network.state_dict())
        return network.to(self.device).eval()

    def save(self) -> None:
        """Write a checkpoint in one piece, replacing the one before."""
        from safetensors.torch import save

        self.refuse_nan()
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        for index, entries in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{name}": tensor for name, tensor in entries.items()}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.items()}
        tensors["loss_sum"] = self.loss_sum
        state = {
            "format": "semair-checkpoint",
            "config": self.config.model_dump(mode="json"),
            "minutes": self.minutes,
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "loss_count": self.loss_count,
            "curve": self.curve,
            "error": self.error,
            "commits": self.commits,
            "origin": dict(self.origin),
        }
        plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        try:
            write_atomically(self.place / CHECKPOINT_FILE, save(plain, metadata={"state": json.dumps(state)}))
        except OSError as error:
            raise StorageError(f"checkpoint in {self.place} cannot be written: {error}") from error

    def restore(self) -> None:
        """Go back to the state of the folder's checkpoint."""
        from safetensors import SafetensorError, safe_open

        path = self.place / CHECKPOINT_FILE
        if not path.is_file():
            finished = "; the model in it is finished" if (self.place / CARD_FILE).exists() else ""
            raise ScenarioError(f"nothing to resume: {self.place} has no {CHECKPOINT_FILE}{finished}")
        try:
            with safe_open(path, framework="pt") as file:
                state = json.loads((file.metadata() or {})["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            given, now = state["config"], json.loads(self.config.model_dump_json())
            if given != now:
                odd = sorted(key for key in given.keys() | now.keys() if given.get(key) != now.get(key))
                raise ModelError(
                    f"{path} was written with another configuration: {', '.join(odd)} differ; resume with the same, "
                    "or begin anew with --overwrite"
                )
            if state.get("origin", {}) != json.loads(json.dumps(dict(self.origin))):
                raise ModelError(
                    f"{path} was written with other weights or recordings; resume with the same, or begin anew with "
                    "--overwrite"
                )
            self.network.load_state_dict(_under("network.", tensors))
            settings = self.optimiser.state_dict()
            settings["state"] = {}
            for name, tensor in _under("optimiser.", tensors).items():
                index, _, entry = name.partition(".")
                settings["state"].setdefault(int(index), {})[entry] = tensor
            self.optimiser.load_state_dict(settings)
            if self.average is not None:
                average = _under("average.", tensors)
                self.average = {name: average[name].to(tensor.device) for name, tensor in self.average.items()}
            self.loss_sum = tensors["loss_sum"].to(self.device)
            self.loss_count = int(state["loss_count"])
            self.step = int(state["step"])
            self.elapsed_s = float(state["elapsed_s"])
            self.curve = list(state["curve"])
            self.error = {int(length): value for length, value in state["error"].items()}
            self.commits = list(dict.fromkeys([*state.get("commits", []), *self.commits]))
            if self.minutes is None:
                self.minutes = state["minutes"]
        except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OSError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(
                f"checkpoint {path} is damaged or foreign: {error}; begin anew with --overwrite"
            ) from error

    def measure(self, network: networks.Network) -> tuple[Metric, ...]:
        """Error probability per length, on draws that training never used."""
        config = self.config
        metrics: list[Metric] = []
        slots = config.validation.test_slots
        for length in config.validation_lengths:
            seed = _seed(config.seed, "test", length)
            missed, alarms, active = error_counts(network, config.mixture, length, slots, seed, self.device)
            users = config.mixture.n_users
            conditions = {"length": length, "slots": slots, "decisions": slots * users, "threshold": 0.5}
            metrics.append(error_metric(missed, alarms, active, users, conditions))
        return tuple(metrics)

    def finish(self, command: str) -> Card:
        """Measure on draws that training never used, and write model, card and curve."""
        config = self.config
        network = self.kept()
        kind = type(network).kind
        card = Card(
            name=config.name,
            task=config.task,
            description=config.description,
            network=NetworkSection(
                kind=kind,
                config=network.config.model_dump(mode="json"),
                n_parameters=sum(p.numel() for p in network.parameters()),
            ),
            inputs=_inputs(network, config.mixture, self.pool),
            scenario=_scenario(config.mixture),
            training=TrainingSection(
                command=command,
                config=config.model_dump(mode="json"),
                seeds={"training": config.seed, "pool": config.mixture.pool_seed},
                steps=self.step,
                samples=self.step * config.optimiser.batch,
                time_s=round(self.elapsed_s, 1),
                device=_device_name(self.device),
                curve=tuple(self.curve),
            ),
            metrics=self.measure(network),
            git_commit=self.commits[-1] if self.commits else None,
            details={
                **({"minutes": self.minutes} if self.minutes is not None else {}),
                # One sitting after another, when the code changed in between.
                **({"commits": self.commits} if len(self.commits) > 1 else {}),
                **self.origin,
                **self.findings,
            },
        )
        written = save_model(self.place, card, network.state_dict())
        try:
            plot_curve(written, self.place / CURVE_FILE)
            (self.place / CHECKPOINT_FILE).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{self.place} cannot be written: {error}") from error
        return written


def plot_curve(card: Card, path: str | Path) -> None:
    """Draw loss and error probability over training steps as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = card.training.curve
    steps = [point["step"] for point in points]
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.plot(steps, [point["loss"] for point in points], color="black")
    left.set(xlabel="step", ylabel="loss", title=f"{card.name}: loss on fresh slots")
    lengths = list(points[0]["error_probability"]) if points else []
    for rank, length in enumerate(lengths):
        shade = (0.1 + 0.75 * rank / max(len(lengths) - 1, 1),) * 2
        values = [max(point["error_probability"][length], 1e-7) for point in points]
        right.semilogy(steps, values, color=(shade[0], 0.3, 1 - shade[1]), label=f"L = {length}")
    right.set(xlabel="step", ylabel="error probability", title="validation")
    if lengths:
        right.legend(fontsize="x-small", ncols=2)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(str(path), dpi=110)


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


def _seed(seed: int, purpose: str, index: int = 0) -> int:
    """Independent 63-bit seeds for every purpose and index."""
    sequence = np.random.SeedSequence(seed, spawn_key=(_PURPOSES[purpose], index))
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def checked_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ScenarioError(f"device {name!r} is unknown; allowed: cpu, cuda, cuda:0 ...") from error
    if device.type not in ("cpu", "cuda"):
        raise ScenarioError(f"device {name!r}; allowed: cpu, cuda, cuda:0 ...")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ScenarioError(
            f"device {name!r}: torch {torch.__version__} finds no CUDA device here; use --device cpu, or install "
            "a CUDA build of torch on a machine with an NVIDIA GPU"
        )
    return device


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def _make_way(place: Path, overwrite: bool) -> None:
    there = [name for name in (CARD_FILE, CHECKPOINT_FILE) if (place / name).exists()]
    if there and not overwrite:
        raise ScenarioError(f"{place} already holds {', '.join(there)}: --resume goes on, --overwrite begins anew")
    for name in there:
        (place / name).unlink()


def _make_folder(place: Path) -> None:
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"model folder {place} cannot be made: {error}") from error


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or termination into a request to stop after the step under way; the second one ends."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

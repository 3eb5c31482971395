"""Training of networks: checkpoints, exact resume, interruptions, a card at the end. What is drawn, a task says.

Step k draws with a generator seeded from (seed, k), so that a run that was interrupted and resumed sees the very
samples of one that was not.
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
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from ..errors import ModelError, ScenarioError, StorageError, explain_validation
from .cards import (
    CARD_FILE,
    Card,
    InputSpec,
    Metric,
    NetworkSection,
    TrainingSection,
    git_commit,
    halved,
    save_model,
    write_atomically,
)

CHECKPOINT_FILE = "checkpoint.safetensors"
CURVE_FILE = "curve.png"

_PURPOSES = {"weights": 0, "training": 1, "validation": 2, "test": 3}
_REPORT_S = 0.5
OVER_SNR = ("psnr_db", "lost_share")
"""Figures that are measured over SNR, not over lengths."""


class Section(BaseModel):
    """A part of a training configuration: frozen, no unknown fields, no infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class OptimiserSection(Section):
    """AdamW and its schedule; `--minutes` stretches or shrinks the schedule to a time instead of `steps`."""

    steps: int = Field(10_000, ge=1)
    batch: int = Field(128, ge=1, description="samples per step")
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


@dataclass(frozen=True)
class Progress:
    """Where a training run stands.

    Attributes:
        step: steps done.
        share: of the run that is done.
        elapsed_s: wall time spent, earlier sittings included.
        left_s: estimate of what is left.
        loss: mean over the last steps.
        error: validation figure per length, the last one measured; empty before the first.
        figure: what it is, e.g. "error_probability" or "nmse_db".
    """

    step: int
    share: float
    elapsed_s: float
    left_s: float
    loss: float
    error: Mapping[int, float] = field(default_factory=dict)
    figure: str = ""


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


ModelT = TypeVar("ModelT", bound=BaseModel)


def read_config(source: str | Path, shipped: Mapping[str, Path], kind: type[ModelT]) -> ModelT:
    """Read and check a training configuration.

    Args:
        source: name of a shipped one, or path of a TOML file.
        shipped: paths of the shipped ones by name.
        kind: of configuration.

    Raises:
        ScenarioError: the file is missing or no TOML, or a field is wrong.
    """
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
        return kind.model_validate(data)
    except ValidationError as error:
        raise ScenarioError(f"{path}: {explain_validation(error)}") from error


@contextmanager
def initial_weights(seed: int) -> Iterator[None]:
    """Let layers take their initial weights from a seed: they use torch's global generator, put back afterwards."""
    before = torch.random.get_rng_state()
    try:
        torch.manual_seed(derived_seed(seed, "weights"))
        yield
    finally:
        torch.random.set_rng_state(before)


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


def sit(run: TrainingRun, resume: bool, overwrite: bool, on_progress: OnProgress | None, command: str) -> Trained:
    """Take a training run to its end, or to an interruption; see `train`."""
    if resume:
        run.restore()
    else:
        _make_way(run.place, overwrite)
    with _interruptible() as stop:
        finished = run.loop(stop, on_progress)
    return Trained(run.place, run.finish(command) if finished else None, run.step)


class TrainingSettings(Protocol):
    """What every training configuration has."""

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def task(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def checkpoint_s(self) -> float: ...
    @property
    def network(self) -> dict[str, Any]: ...
    @property
    def optimiser(self) -> OptimiserSection: ...
    @property
    def validation(self) -> Any: ...
    def model_dump(self, *, mode: str) -> dict[str, Any]: ...
    @classmethod
    def model_validate(cls, obj: Any) -> Any: ...


ConfigT = TypeVar("ConfigT", bound=TrainingSettings)
NetworkT = TypeVar("NetworkT", bound=nn.Module)


class TrainingRun(Generic[ConfigT, NetworkT]):
    """State of one training run: everything that a checkpoint holds. A task says what is drawn, lost and measured."""

    figure: ClassVar[str]
    """What `errors` measures; a name in the learning curve."""

    half: ClassVar[bool] = False
    """Keep matrices in half precision, see `cards.halved`: where networks of the task do not mind."""

    origin: Mapping[str, Any] = MappingProxyType({})
    """What the run depends on beside its configuration, in plain values; a checkpoint of another one is refused."""

    def __init__(self, config: ConfigT, place: Path, device: torch.device, minutes: float | None) -> None:
        if minutes is not None and not minutes > 0:
            raise ScenarioError(f"minutes={minutes:g}: a positive time")
        self.config, self.place, self.device, self.minutes = config, place, device, minutes
        self.network = self.build().to(device).train()
        matrices = [p for p in self.network.parameters() if p.dim() >= 2]
        vectors = [p for p in self.network.parameters() if p.dim() < 2]
        settings = config.optimiser
        groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=settings.lr,
            betas=settings.betas,
            fused=True,
        )
        self.average = (
            {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}
            if settings.ema
            else None
        )
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

    def build(self) -> NetworkT:
        """The network with fresh weights, or any: a run loads those it keeps."""
        raise NotImplementedError

    def loss(self, generator: torch.Generator) -> Tensor:
        """Draw the samples of one step, and what training minimises on them; scalar."""
        raise NotImplementedError

    def errors(self, network: NetworkT) -> dict[int, float]:
        """Measure on the fixed validation draws: a figure per length."""
        raise NotImplementedError

    def measure(self, network: NetworkT) -> tuple[Metric, ...]:
        """Measure for the card, on draws that training never used."""
        raise NotImplementedError

    def scenario(self) -> dict[str, Any]:
        """What the network is trained for, for the card."""
        raise NotImplementedError

    def inputs(self, network: NetworkT) -> tuple[InputSpec, ...]:
        """What the network takes, for the card."""
        raise NotImplementedError

    def seeds(self) -> dict[str, int]:
        """Seeds, for the card."""
        return {"training": self.config.seed}

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
                loss = self.recent_loss()
                on_progress(Progress(self.step, share, self.elapsed_s, left_s, loss, dict(self.error), self.figure))
        # From here on an interruption costs the final evaluation alone.
        self.save()
        return True

    def advance(self) -> None:
        """One step on samples never seen before."""
        settings = self.config.optimiser
        generator = torch.Generator().manual_seed(derived_seed(self.config.seed, "training", self.step))
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(settings, self.share)
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.loss(generator)
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
        """Measure on the fixed validation draws, and note it in the curve."""
        self.refuse_nan()
        self.error = self.errors(self.kept())
        self.curve.append(
            {
                "step": self.step,
                "time_s": round(self.elapsed_s, 1),
                "lr": learning_rate(self.config.optimiser, self.share),
                "loss": float(self.loss_sum) / max(self.loss_count, 1),
                self.figure: {str(length): value for length, value in self.error.items()},
            }
        )
        self.loss_sum.zero_()
        self.loss_count = 0

    def kept(self) -> NetworkT:
        """The network as it would be kept: averaged where averages are asked for, in evaluation mode."""
        network = self.build()
        network.load_state_dict(self.average if self.average is not None else self.network.state_dict())
        return network.to(self.device).eval()

    def settle(self, network: NetworkT) -> None:
        """Make the choices that are left to the end of training; most have none."""

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
            given, now = self._completed(state["config"]), json.loads(json.dumps(self.config.model_dump(mode="json")))
            if given != now:
                odd = sorted(key for key in given.keys() | now.keys() if given.get(key) != now.get(key))
                raise ModelError(
                    f"{path} was written with another configuration: {', '.join(odd)} differ; resume with the same, "
                    "or begin anew with --overwrite"
                )
            if state.get("origin", {}) != json.loads(json.dumps(dict(self.origin))):
                raise ModelError(
                    f"{path} was written with other weights or recordings (or traced paths); resume with the same, or "
                    "begin anew with --overwrite"
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

    def _completed(self, given: dict[str, Any]) -> dict[str, Any]:
        """A checkpoint's configuration with the defaults of fields that it was written without."""
        try:
            completed = type(self.config).model_validate(given)
        except ValidationError:
            return given
        plain: dict[str, Any] = json.loads(json.dumps(completed.model_dump(mode="json")))
        return plain

    def finish(self, command: str) -> Card:
        """Measure on draws that training never used, and write model, card and curve."""
        config = self.config
        network = self.kept()
        self.settle(network)
        weights = network.state_dict()
        if self.half:
            weights = halved(weights)
            # What is measured below is what will be loaded.
            network.load_state_dict(weights)
        kind = str(config.network["kind"])
        card = Card(
            name=config.name,
            task=config.task,
            description=config.description,
            network=NetworkSection(
                kind=kind,
                config=network.config.model_dump(mode="json"),  # type: ignore[union-attr, operator]
                n_parameters=sum(p.numel() for p in network.parameters()),
            ),
            inputs=self.inputs(network),
            scenario=self.scenario(),
            training=TrainingSection(
                command=command,
                config=config.model_dump(mode="json"),
                seeds=self.seeds(),
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
        written = save_model(self.place, card, weights)
        try:
            plot_curve(written, self.figure, self.place / CURVE_FILE)
            (self.place / CHECKPOINT_FILE).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{self.place} cannot be written: {error}") from error
        return written


def plot_curve(card: Card, figure_name: str, path: str | Path) -> None:
    """Draw loss and validation figures over training steps as PNG; figures in dB on a linear axis, else logarithmic."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = card.training.curve
    in_db = figure_name.endswith("_db")
    steps = [point["step"] for point in points]
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.plot(steps, [point["loss"] for point in points], color="black")
    left.set(xlabel="step", ylabel="loss", title=f"{card.name}: loss on fresh samples")
    lengths = list(points[0][figure_name]) if points else []
    for rank, length in enumerate(lengths):
        shade = (0.1 + 0.75 * rank / max(len(lengths) - 1, 1),) * 2
        values = [point[figure_name][length] for point in points]
        if not in_db:
            values = [max(value, 1e-7) for value in values]
        name = f"SNR = {length} dB" if figure_name in OVER_SNR else f"L = {length}"
        right.plot(steps, values, color=(shade[0], 0.3, 1 - shade[1]), label=name)
    right.set(xlabel="step", ylabel=figure_name.replace("_", " "), title="validation")
    if not in_db:
        right.set_yscale("log")
    if lengths:
        right.legend(fontsize="x-small", ncols=2)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(str(path), dpi=110)


def derived_seed(seed: int, purpose: str, index: int = 0) -> int:
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

"""Training of CSI feedback networks: fresh drops in every step, checkpoints, exact resume, a card at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from ...errors import ScenarioError, explain_validation
from ..cards import InputSpec, Metric
from ..statistics import Interval, grouped_mean_ci95, mean_ci95
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
from . import networks
from .channels import Drops, Source, stream
from .link import Batch, Mixture, draw, feed_back, nmse
from .networks.base import N_CONDITIONS
from .raytraced import PathFile
from .sources import Split, TracedShare, channel_sources, training_source

SHIPPED = Path(__file__).parent / "configs"
WEIGHTS = Path(__file__).parent / "weights"

_CHUNK = 250
_SETTLING_DROPS = 100


class ValidationSection(Section):
    """NMSE on fixed draws while training, and on others at the end."""

    every: int = Field(500, ge=1, description="steps")
    drops: int = Field(500, ge=2, description="while training, at `snr_db`")
    snr_db: float = Field(10.0, ge=-20, le=40)
    test_drops: int = Field(2000, ge=2, description="of each condition, for the card")
    test_snr_db: tuple[float, ...] = Field((-10.0, -5.0, 0.0, 5.0, 10.0, 15.0, 20.0), min_length=1)


class TrainingConfig(Section):
    """Everything that decides what is learned, as a TOML file."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="of the model")
    description: str = ""
    task: Literal["csi"] = "csi"
    seed: int = Field(1, ge=0, description="of initial weights, training, validation and test draws")
    checkpoint_s: float = Field(60.0, ge=0, description="seconds between checkpoints")
    start_drops: int = Field(4000, ge=0, description="drops that a network may take its initial weights from")
    network: dict[str, Any] = Field(description="kind, and fields of that kind's configuration")
    mixture: Mixture = Mixture()
    optimiser: OptimiserSection = OptimiserSection(batch=64)
    validation: ValidationSection = ValidationSection()

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        if not isinstance(self.network.get("kind"), str):
            raise ValueError("network.kind: missing; it must be given")
        return self


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


def with_traced(
    config: TrainingConfig, scenes: Sequence[str] | None = None, share: float | None = None
) -> TrainingConfig:
    """A configuration that takes drops from traced scenes.

    Args:
        config: what it says of traced drops is kept where nothing else is given.
        scenes: of the file; None: as configured, or all.
        share: of drops that are traced; None: as configured, or half.

    Raises:
        ScenarioError: the share is out of range.
    """
    fields = {} if config.mixture.traced is None else config.mixture.traced.model_dump()
    if scenes is not None:
        fields["scenes"] = tuple(scenes)
    if share is not None:
        fields["share"] = share
    try:
        traced = TracedShare.model_validate(fields)
    except ValidationError as error:
        raise ScenarioError(f"traced drops: {explain_validation(error)}") from error
    return config.model_copy(update={"mixture": config.mixture.model_copy(update={"traced": traced})})


def build_network(config: TrainingConfig) -> networks.Network:
    """Make the network of a configuration; fields that it shares with the mixture come from there.

    Raises:
        ScenarioError: a field is wrong, or contradicts the mixture.
    """
    fields = dict(config.network)
    kind = fields.pop("kind")
    channel = config.mixture.channel
    shared = {
        "n_taps": channel.n_taps,
        "n_antennas": channel.n_antennas,
        "max_length": max(config.mixture.lengths),
    }
    for name, needed in shared.items():
        if fields.setdefault(name, needed) != needed:
            raise ScenarioError(f"network.{name}={fields[name]} contradicts the mixture's {needed}; leave it out")
    with initial_weights(config.seed):
        return networks.build(kind, fields)


def train(
    config: TrainingConfig,
    folder: str | Path,
    *,
    traced: PathFile | None = None,
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
        traced: file of traced paths, for a mixture with traced drops.
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
        ModelError: the loss became NaN or infinite, the checkpoint is damaged or of another configuration, or the
            traced paths do not fit the mixture.
        StorageError: the folder cannot be written.
    """
    where = checked_device(device)
    run = CsiTraining(config, Path(folder), where, minutes, fresh=not resume, traced=traced)
    return sit(run, resume, overwrite, on_progress, command or f"semair train csi --config {config.name}")


def conditioned(csi: Tensor, length: int, snr_db: float, present: Tensor | None = None) -> Batch:
    """A batch at one length and SNR; everybody is present unless told otherwise."""
    n, users = csi.shape[:2]
    device = csi.device
    return Batch(
        csi,
        torch.full((n,), length, dtype=torch.long, device=device),
        torch.full((n, users), float(snr_db), device=device),
        torch.ones((n, users), dtype=torch.bool, device=device) if present is None else present,
    )


def drop_nmse(network: networks.Network, batch: Batch, generator: torch.Generator) -> np.ndarray:
    """NMSE of every drop, averaged over the users whose symbols arrive; float64, (drop,)."""
    found = []
    with torch.inference_mode():
        for start in range(0, len(batch.csi), _CHUNK):
            part = batch.part(start, start + _CHUNK)
            error = nmse(part.csi, feed_back(network, part, generator)) * part.present
            found.append((error.sum(1) / part.present.sum(1)).cpu())
    return torch.cat(found).double().numpy()


def in_db(interval: Interval) -> Interval:
    """A mean NMSE and its interval in dB."""
    return Interval(*(10 * math.log10(max(value, 1e-12)) for value in interval))


class CsiTraining(TrainingRun[TrainingConfig, networks.Network]):
    """State of one training run of a CSI feedback network."""

    figure = "nmse_db"
    half = True

    def __init__(
        self,
        config: TrainingConfig,
        place: Path,
        device: torch.device,
        minutes: float | None,
        fresh: bool = True,
        traced: PathFile | None = None,
    ) -> None:
        super().__init__(config, place, device, minutes)
        mixture = config.mixture

        def source(split: Split) -> Source:
            return training_source(mixture.channel, mixture.traced, traced, split)

        self.source, self._valid = source("train"), source("valid")
        self._tests = channel_sources(mixture.channel, mixture.traced, traced, "test")
        if traced is not None:
            self.origin = {"traced_sha256": traced.sha256}
            # Too few drops for a spacing would end the run only after hours.
            for tried in (self.source, self._valid, self._tests["traced"]):
                for spacing_m in (None, mixture.far_m) if mixture.far else (None,):
                    tried.draw(32, torch.Generator().manual_seed(1), spacing_m)
        if fresh and config.start_drops:
            # In training mode still, and before the first step; a checkpoint brings its own weights.
            generator = torch.Generator().manual_seed(derived_seed(config.seed, "training", 1 << 40))
            self.network.start_from(_csi(_drawn(self.source, config.start_drops, generator)))
            if self.average is not None:
                self.average = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}
        self._validation: Tensor | None = None

    def build(self) -> networks.Network:
        """The network of the configuration."""
        return build_network(self.config)

    def loss(self, generator: torch.Generator) -> Tensor:
        """NMSE over the users whose symbols arrive."""
        if self.device.type != "cpu":
            generator = torch.Generator(self.device).manual_seed(generator.initial_seed())
        batch = draw(self.config.mixture, self.config.optimiser.batch, generator, self.source)
        half = self.config.optimiser.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            recovered = feed_back(self.network, batch, generator)
        present = batch.present.to(torch.float32)
        return (nmse(batch.csi, recovered) * present).sum() / present.sum()

    def errors(self, network: networks.Network) -> dict[int, float]:
        """NMSE in dB per length, at the validation's SNR, with both users there."""
        settings = self.config.validation
        if self._validation is None:
            generator = torch.Generator().manual_seed(derived_seed(self.config.seed, "validation"))
            self._validation = _csi(_drawn(self._valid, settings.drops, generator))
        found = {}
        for length in self.config.mixture.lengths:
            generator = torch.Generator(self.device).manual_seed(derived_seed(self.config.seed, "validation", length))
            batch = conditioned(self._validation.to(self.device), length, settings.snr_db)
            found[length] = 10 * math.log10(float(drop_nmse(network, batch, generator).mean()))
        return found

    def settle(self, network: networks.Network) -> None:
        """Let the network choose what gradients could not, from draws of training."""
        generator = torch.Generator().manual_seed(derived_seed(self.config.seed, "training", 1 << 41))
        csi = _csi(_drawn(self.source, _SETTLING_DROPS, generator)).to(self.device)
        network.settle(csi, self.config.mixture.lengths)

    def measure(self, network: networks.Network) -> tuple[Metric, ...]:
        """NMSE in dB over lengths and SNR, with a neighbour, without one, and with one far away; each source alone."""
        return tuple(metric for name, source in self._tests.items() for metric in self._measured(network, name, source))

    def _measured(self, network: networks.Network, channel: str, source: Source) -> list[Metric]:
        settings, seed = self.config.validation, self.config.seed
        n = settings.test_drops
        generator = stream("test", seed)
        near_drops = _drawn(source, n, generator)
        far_drops = _drawn(source, n, generator, self.config.mixture.far_m)
        near, far = _csi(near_drops).to(self.device), _csi(far_drops).to(self.device)
        places = {"near": [drops.places for drops in near_drops], "far": [drops.places for drops in far_drops]}
        metrics = []
        first = torch.zeros(near.shape[:2], dtype=torch.bool, device=self.device)
        first[:, 0] = True
        for length in self.config.mixture.lengths:
            for snr_db in settings.test_snr_db:
                cases: list[tuple[str, Batch]] = [("near", conditioned(near, length, snr_db))]
                if snr_db == settings.snr_db:
                    cases += [
                        ("missing", conditioned(near, length, snr_db, first)),
                        ("far", conditioned(far, length, snr_db)),
                    ]
                for neighbour, batch in cases:
                    noise = torch.Generator(self.device).manual_seed(derived_seed(seed, "test", length))
                    interval = in_db(
                        drops_ci95(drop_nmse(network, batch, noise), places["far" if neighbour == "far" else "near"])
                    )
                    conditions = {"length": length, "snr_db": snr_db, "neighbour": neighbour, "drops": n}
                    conditions["channel"] = channel
                    metrics.append(Metric(name="nmse_db", unit="dB", conditions=conditions, **interval._asdict()))
        return metrics

    def scenario(self) -> dict[str, Any]:
        """Numerology, lengths and the mixture."""
        mixture = self.config.mixture
        return {
            "n_taps": mixture.channel.n_taps,
            "n_antennas": mixture.channel.n_antennas,
            "n_subcarriers": mixture.channel.n_subcarriers,
            "lengths": list(mixture.lengths),
            "snr_db": list(mixture.snr_db),
            "mixture": mixture.model_dump(mode="json"),
        }

    def inputs(self, network: networks.Network) -> tuple[InputSpec, ...]:
        """What encoder and decoder take."""
        c = network.config
        snr_and_length = "SNR and length, see `Network.conditions`"
        return (
            InputSpec(
                name="encoder features",
                shape=("batch", c.n_taps, 2 * c.n_antennas),
                normalisation="CSI in delay and angle, unit mean power; real parts, then imaginary parts",
            ),
            InputSpec(name="encoder condition", shape=("batch", N_CONDITIONS), normalisation=snr_and_length),
            InputSpec(
                name="decoder code",
                shape=("batch", "user", 2 * c.max_length),
                normalisation="received symbols, zero behind those sent; real parts, then imaginary parts",
            ),
            InputSpec(name="decoder condition", shape=("batch", "user", N_CONDITIONS), normalisation=snr_and_length),
            InputSpec(name="decoder present", shape=("batch", "user"), normalisation="1 for users that are heard"),
        )


def drops_ci95(per_drop_values: ArrayLike, places: Sequence[Tensor | None]) -> Interval:
    """Mean over drops with its interval; those of one place count as one sample, unless all are.

    Args:
        per_drop_values: float, (drop,).
        places: `Drops.places` of the parts that the drops were drawn in.
    """
    known = [part for part in places if part is not None]
    numbers = torch.cat(known).cpu().numpy() if known else np.empty(0)
    # One place alone says nothing of others: its interval would be infinite, and is that of this place.
    if len(known) < len(places) or np.all(numbers == numbers[0]):
        return mean_ci95(per_drop_values)
    return grouped_mean_ci95(per_drop_values, numbers)


def _drawn(
    source: Source, n: int, generator: torch.Generator, spacing_m: tuple[float, float] | None = None
) -> list[Drops]:
    return [source.draw(min(_CHUNK, n - start), generator, spacing_m) for start in range(0, n, _CHUNK)]


def _csi(drawn: Sequence[Drops]) -> Tensor:
    return torch.cat([drops.delay_angle for drops in drawn])

"""Training of the autoencoder that carries bits: cross entropy of every bit, over the downlinks that pictures have."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ...errors import ScenarioError
from .. import registry
from ..cards import CARD_FILE, Card, InputSpec, Metric
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
from . import downlink
from .autoencoder import BITS_PER_SYMBOL, Autoencoder, carry
from .downlink import DownlinkConfig
from .link import Channels

SHIPPED = Path(__file__).parent / "configs" / "bits"
WEIGHTS = Path(__file__).parent / "weights" / "bits"
TASK: Literal["bits"] = "bits"

_CHUNK = 32
_FEEDBACK_SNR_DB = 10.0
_KNOWN = {Autoencoder.kind: Autoencoder}


class ValidationSection(Section):
    """Information on fixed channels while training, and on others at the end."""

    every: int = Field(1000, ge=1, description="steps")
    drops: int = Field(64, ge=2, description="while training, of each SNR")
    snr_db: tuple[int, ...] = Field((-5, 5, 15), min_length=1, description="in whole dB")
    test_drops: int = Field(200, ge=2, description="of each condition, for the card")
    test_snr_db: tuple[float, ...] = Field((-5.0, 0.0, 5.0, 10.0, 15.0, 20.0), min_length=1)


class TrainingConfig(Section):
    """Everything that decides what is learned, as a TOML file."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="of the model")
    description: str = ""
    task: Literal["bits"] = TASK
    seed: int = Field(1, ge=0, description="of initial weights, training, validation and test draws")
    checkpoint_s: float = Field(60.0, ge=0, description="seconds between checkpoints")
    symbols: int = Field(4, ge=1, le=64, description="OFDM symbols of a frame, beside references")
    repeats: int = Field(1, ge=1, description="in training, an OFDM symbol stands for so many of the frame's power")
    network: dict[str, Any] = Field({"kind": Autoencoder.kind}, description="kind, and its configuration")
    downlink: DownlinkConfig = DownlinkConfig()
    optimiser: OptimiserSection = OptimiserSection(batch=16)
    validation: ValidationSection = ValidationSection()

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        if self.symbols % self.repeats:
            raise ValueError(f"repeats={self.repeats} must divide symbols={self.symbols}")
        return self


def shipped_configs() -> dict[str, Path]:
    """Training configurations that come with semair, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.toml"))}


def shipped() -> dict[str, Path]:
    """Folders of the trained autoencoders that come with semair, by name."""
    return {path.parent.name: path.parent for path in sorted(WEIGHTS.glob(f"*/{CARD_FILE}"))}


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


def build_network(config: TrainingConfig) -> Autoencoder:
    """Make the network of a configuration.

    Raises:
        ScenarioError: a field is wrong.
    """
    fields = dict(config.network)
    with initial_weights(config.seed):
        return registry.build(_KNOWN, str(fields.pop("kind", "")), fields)


def load(name: str | Path) -> tuple[Card, Autoencoder]:
    """Load a trained autoencoder, ready to use.

    Args:
        name: of shipped weights, or a folder.

    Raises:
        ScenarioError: there is none of this name.
        ModelError: its weights are damaged.
    """
    folder = shipped().get(str(name), Path(name))
    if not (folder / CARD_FILE).is_file():
        raise ScenarioError(
            f"{str(name)!r} is neither a folder with {CARD_FILE} nor one of the shipped weights: "
            f"{', '.join(shipped()) or 'none'}"
        )
    return registry.load(_KNOWN, folder, TASK)


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
    """Train an autoencoder, and leave it with its card and its learning curve in a folder.

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
        ModelError: the loss became NaN or infinite, or the checkpoint does not fit.
        StorageError: the folder cannot be written.
    """
    where = checked_device(device)
    run = AutoencoderTraining(config, Path(folder), where, minutes)
    return sit(run, resume, overwrite, on_progress, command or f"semair train semantic --config {config.name}")


def lost_share(bits: Tensor, ratios: Tensor) -> Tensor:
    """Share of a bit that its log-likelihood ratio leaves unknown, 0 to 1 where ratios are right; of the same shape.

    One less it is the information of a bit in the mean, a rate at which good codes with a decoder of bits succeed.
    """
    return torch.nn.functional.softplus((2 * bits.float() - 1) * ratios) / math.log(2)


class AutoencoderTraining(TrainingRun[TrainingConfig, Autoencoder]):
    """State of one training run of an autoencoder."""

    figure = "lost_share"
    half = True

    def build(self) -> Autoencoder:
        """The network of the configuration."""
        return build_network(self.config)

    def loss(self, generator: torch.Generator) -> Tensor:
        """Cross entropy of fresh bits over fresh channels."""
        config = self.config
        n_users = config.downlink.users[_integer(len(config.downlink.users), generator)]
        bits_per_symbol = BITS_PER_SYMBOL[_integer(len(BITS_PER_SYMBOL), generator)]
        n = max(config.optimiser.batch // n_users, 1)
        low, high = config.downlink.snr_db
        snr_db = low + (high - low) * torch.rand(n, generator=generator)
        channels = self._moved(downlink.draw(config.downlink, n, generator, n_users))
        symbols = config.symbols // config.repeats
        bits = self._bits(n, n_users, symbols, bits_per_symbol, generator)
        noise = torch.Generator(self.device).manual_seed(_integer(1 << 62, generator))
        snr_db = snr_db.to(self.device)
        ratios = carry(self.network, bits, bits_per_symbol, channels, snr_db, noise, config.repeats)
        return lost_share(bits, ratios).mean()

    def errors(self, network: Autoencoder) -> dict[int, float]:
        """Mean share of a bit that is lost per SNR, over the mixture of training."""
        settings = self.config.validation
        return {
            snr_db: sum(
                float(self._lost(network, "validation", settings.drops, snr_db, bits, None).mean())
                for bits in BITS_PER_SYMBOL
            )
            / len(BITS_PER_SYMBOL)
            for snr_db in settings.snr_db
        }

    def measure(self, network: Autoencoder) -> tuple[Metric, ...]:
        """Information of a symbol over SNR, of this network and of QAM behind regularised zero forcing, which it began
        with, on drops never seen."""
        settings, metrics = self.config.validation, []
        fresh = build_network(self.config).to(self.device).eval()
        kinds: list[downlink.Csi] = ["perfect", "fed back" if self.config.downlink.fed_back else "estimated"]
        for csi in kinds:
            for snr_db in settings.test_snr_db:
                for bits in BITS_PER_SYMBOL:
                    for name, one in (("information", network), ("information_of_qam", fresh)):
                        lost = self._lost(one, "test", settings.test_drops, snr_db, bits, csi)
                        conditions: dict[str, Any] = {"snr_db": snr_db, "csi": csi, "bits_per_symbol": bits}
                        conditions |= {"drops": settings.test_drops, "split": "test"}
                        if csi == "fed back":
                            conditions |= {"feedback_symbols": self._longest(), "feedback_snr_db": _FEEDBACK_SNR_DB}
                        found = mean_ci95((bits * (1 - lost)).double().numpy())
                        metrics.append(
                            Metric(name=name, unit="bit per symbol", conditions=conditions, **found._asdict())
                        )
        return tuple(metrics)

    def scenario(self) -> dict[str, Any]:
        """Numerology and downlink."""
        config = self.config
        return {
            "n_antennas": config.downlink.channel.n_antennas,
            "n_subcarriers": config.downlink.channel.n_subcarriers,
            "users": list(config.downlink.users),
            "snr_db": list(config.downlink.snr_db),
            "bits_per_symbol": list(BITS_PER_SYMBOL),
            "downlink": config.downlink.model_dump(mode="json"),
        }

    def inputs(self, network: Autoencoder) -> tuple[InputSpec, ...]:
        """What transmitter and receiver take."""
        return (
            InputSpec(name="points", shape=("batch", "subcarrier", "user", "symbol", 2), normalisation="unit power"),
            InputSpec(
                name="equalised",
                shape=("batch", "user", "subcarrier", "symbol", 2),
                normalisation="divided by the effective channel, see autoencoder.py",
            ),
        )

    def _lost(
        self,
        network: Autoencoder,
        purpose: Literal["validation", "test"],
        n: int,
        snr_db: float,
        bits_per_symbol: int,
        csi: downlink.Csi | None,
    ) -> Tensor:
        """Share of a bit that is lost in every drop, the same drops at every SNR; float32, (n,)."""
        config = self.config
        n_users = config.downlink.users[0]
        generator = torch.Generator().manual_seed(derived_seed(config.seed, purpose))
        feedback = (self._longest(), _FEEDBACK_SNR_DB) if csi == "fed back" else None
        draw = partial(downlink.draw, config.downlink, generator=generator, n_users=n_users, csi=csi, feedback=feedback)
        parts = []
        with torch.inference_mode():
            for start in range(0, n, _CHUNK):
                m = min(_CHUNK, n - start)
                channels = self._moved(draw(n=m))
                bits = self._bits(m, n_users, config.symbols, bits_per_symbol, generator)
                noise = torch.Generator(self.device).manual_seed(_integer(1 << 62, generator))
                snr = torch.full((m,), float(snr_db), device=self.device)
                ratios = carry(network, bits, bits_per_symbol, channels, snr, noise)
                parts.append(lost_share(bits, ratios).mean((1, 2)).cpu())
        return torch.cat(parts)

    def _bits(self, n: int, n_users: int, symbols: int, bits_per_symbol: int, generator: torch.Generator) -> Tensor:
        length = symbols * self.config.downlink.channel.n_subcarriers * bits_per_symbol
        return torch.randint(2, (n, n_users, length), generator=generator, dtype=torch.uint8).to(self.device)

    def _longest(self) -> int:
        return downlink.feedback_lengths(self.config.downlink)[-1]

    def _moved(self, found: Channels) -> Channels:
        # Drawn on the CPU: the draws of a seed are the same on every device.
        return Channels(*(part.to(self.device) for part in (found.h, found.known, found.nmse_db)))


def _integer(high: int, generator: torch.Generator) -> int:
    return int(torch.randint(high, (1,), generator=generator))

"""Fine-tuning of activity-detection networks with recorded access slots, judged by recordings that were kept out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from ...errors import ModelError, ScenarioError, explain_validation
from ..cards import CARD_FILE, Metric, load_model
from ..statistics import Interval, mean_ci95
from . import networks
from .detectors.learned import PREFIX, WEIGHTS
from .draws import Slots
from .train import (
    OnProgress,
    OptimiserSection,
    Trained,
    TrainingConfig,
    TrainingRun,
    build_network,
    checked_device,
    error_metric,
    sit,
)

_BATCH = 64


@dataclass(frozen=True)
class RecordedSlots:
    """Access slots of one recording, as a receiver levelled them, with what was sent.

    Attributes:
        name: of the recording, for people.
        sha512: of its samples.
        y: complex64, (slot, max_length, snapshot), zero behind the symbols sent.
        length: int64, (slot,): symbols sent.
        noise_power: float32, (slot,): estimated, per entry of y.
        active: bool, (slot, user): who sent.
        preambles: complex64, (max_length, user).
        activity: probability that a user sends.
    """

    name: str
    sha512: str
    y: np.ndarray
    length: np.ndarray
    noise_power: np.ndarray
    active: np.ndarray
    preambles: np.ndarray
    activity: float

    def batch(self, chosen: np.ndarray, device: torch.device | str = "cpu") -> Slots:
        """Some slots, all of one length."""
        length = int(self.length[chosen[0]])
        return Slots(
            y=torch.from_numpy(np.ascontiguousarray(self.y[chosen, :length])).to(device),
            active=torch.from_numpy(self.active[chosen]).to(device),
            noise_power=torch.from_numpy(self.noise_power[chosen]).to(device),
            preambles=torch.from_numpy(np.ascontiguousarray(self.preambles)).to(device),
            activity=self.activity,
            snr_db=torch.full((len(chosen),), float("nan"), device=device),
            channel="recorded",
        )


@dataclass(frozen=True)
class Comparison:
    """Error probability on recordings kept out, before and after, on the same slots.

    Attributes:
        length: preamble symbols; None: all.
        slots: decided.
        before, after: with 95 % intervals over slots.
        change: after minus before, paired by slot, with its interval: below 0 is better.
    """

    length: int | None
    slots: int
    before: Interval
    after: Interval
    change: Interval

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "length": self.length,
            "slots": self.slots,
            "before": list(self.before),
            "after": list(self.after),
            "change": list(self.change),
        }


def fine_tune(
    weights: str | Path,
    recorded: Sequence[RecordedSlots],
    kept_out: Sequence[RecordedSlots],
    folder: str | Path,
    *,
    steps: int = 600,
    share: float = 0.75,
    lr: float = 2e-3,
    device: str = "cpu",
    resume: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
    command: str = "",
) -> tuple[Trained, list[Comparison]]:
    """Go on training a network with recorded slots among the drawn ones it was trained with.

    Args:
        weights: folder of the model to start from.
        recorded: to train with.
        kept_out: to judge by; none of `recorded` may be among them.
        folder: of the new model.
        steps: of training.
        share: of the steps that take recorded slots; the others keep what was learned from being forgotten.
        lr: learning rate at its highest.
        device: "cpu" or "cuda".
        resume: go on from the folder's checkpoint.
        overwrite: begin anew in a folder that holds a model or a checkpoint.
        on_progress: called a few times per second at most.
        command: for the card.

    Returns:
        As `train`; and the comparison by length and over all, empty when the run was interrupted.

    Raises:
        ScenarioError: an argument is wrong, a recording is on both sides, or does not fit the network.
        ModelError: the weights are damaged, or were not trained by this program.
    """
    if not 0 < share <= 1:
        raise ScenarioError(f"share={share:g}: above 0 and at most 1")
    if not recorded or not kept_out:
        raise ScenarioError("fine-tuning needs recordings to train with, and others to judge by")
    both = {one.sha512 for one in recorded} & {one.sha512 for one in kept_out}
    if both:
        names = ", ".join(one.name for one in recorded if one.sha512 in both)
        raise ScenarioError(f"{names}: trained with and kept out; a recording can be one of the two")
    where = checked_device(device)
    config = _config(Path(weights), steps, lr)
    run = _FineTuning(config, Path(folder), where, Path(weights), recorded, kept_out, share)
    done = sit(run, resume, overwrite, on_progress, command or f"semair train uad --from ... --weights {weights}")
    return done, run.comparisons


def weights_folder(name: str) -> Path:
    """Folder of trained weights that are named like their detector, or by path.

    Raises:
        ScenarioError: there are none of this name.
    """
    for folder in (WEIGHTS / name.removeprefix(PREFIX), Path(name)):
        if (folder / CARD_FILE).is_file():
            return folder
    shipped = ", ".join(PREFIX + path.parent.name for path in sorted(WEIGHTS.glob(f"*/{CARD_FILE}")))
    raise ScenarioError(f"weights {name!r} are neither a folder with {CARD_FILE} nor one of: {shipped}")


def slot_errors(network: networks.Network, slots: RecordedSlots, device: torch.device | str = "cpu") -> np.ndarray:
    """Decide recorded slots at probability 1/2.

    Returns:
        int64, (3, slot): missed users, false alarms, active users.
    """
    counts = np.zeros((3, len(slots.length)), np.int64)
    with torch.inference_mode():
        for length in np.unique(slots.length):
            mine = np.flatnonzero(slots.length == length)
            for start in range(0, len(mine), _BATCH):
                chosen = mine[start : start + _BATCH]
                batch = slots.batch(chosen, device)
                logits = network(*network.prepare(batch.y, batch.preambles, batch.noise_power, batch.activity))
                found, active = (logits > 0).cpu().numpy(), slots.active[chosen]
                counts[:, chosen] = (~found & active).sum(1), (found & ~active).sum(1), active.sum(1)
    return counts


def _config(weights: Path, steps: int, lr: float) -> TrainingConfig:
    """The configuration that a model was trained with, with a schedule of its own."""
    from pydantic import ValidationError

    card, _ = load_model(weights, "uad")
    try:
        before = TrainingConfig.model_validate(card.training.config)
        optimiser = OptimiserSection.model_validate(
            {
                **before.optimiser.model_dump(),
                "steps": steps,
                "lr": lr,
                "batch": _BATCH,
                # The average must be able to leave the weights it starts from within the run.
                "ema": min(before.optimiser.ema, 1 - 10 / max(steps, 20)),
            }
        )
        validation = before.validation.model_copy(update={"every": max(steps // 4, 1), "slots": 64})
        return before.model_copy(
            update={
                "name": f"{before.name}-tuned",
                "description": f"{card.name}, fine-tuned with recorded slots; before: {before.description}",
                "optimiser": optimiser,
                "validation": validation,
            }
        )
    except ValidationError as error:
        raise ModelError(
            f"{weights}: its training configuration cannot be gone on with: {explain_validation(error)}"
        ) from error


class _FineTuning(TrainingRun):
    """A training run that begins with trained weights and takes recorded slots in some of its steps."""

    def __init__(
        self,
        config: TrainingConfig,
        place: Path,
        device: torch.device,
        weights: Path,
        recorded: Sequence[RecordedSlots],
        kept_out: Sequence[RecordedSlots],
        share: float,
    ) -> None:
        super().__init__(config, place, device, None)
        card, tensors = load_model(weights, "uad")
        for one in (*recorded, *kept_out):
            self._refuse_unfitting(one)
        self._load(tensors)
        self._before = tensors
        self._recorded, self._kept_out, self._share = list(recorded), list(kept_out), share
        # Every recorded slot is as likely as any other; a batch is of one recording and length.
        self._groups = [
            (one, np.flatnonzero(one.length == length)) for one in recorded for length in np.unique(one.length)
        ]
        self.comparisons: list[Comparison] = []
        fingerprint = card.weights
        self.origin = {
            "fine_tuned_from": {"name": card.name, "sha256": fingerprint.sha256 if fingerprint else ""},
            "recordings": [_named(one) for one in recorded],
            "kept_out": [_named(one) for one in kept_out],
            "share_of_recorded_steps": share,
        }

    def draw(self, generator: torch.Generator) -> Slots:
        """Recorded slots in a share of the steps, else drawn ones."""
        if float(torch.rand((), generator=generator)) >= self._share:
            return super().draw(generator)
        weights = torch.tensor([len(mine) for _, mine in self._groups], dtype=torch.float64)
        one, mine = self._groups[int(torch.multinomial(weights, 1, generator=generator))]
        picked = torch.randint(len(mine), (self.config.optimiser.batch,), generator=generator).numpy()
        return self._renamed(one.batch(mine[picked], self.device), generator)

    def measure(self, network: networks.Network) -> tuple[Metric, ...]:
        """Error probability on the recordings kept out, beside that of the weights before."""
        old = build_network(self.config)
        old.load_state_dict(self._before)
        old.to(self.device).eval()
        before, after = (
            np.concatenate([slot_errors(one, slots, self.device) for slots in self._kept_out], axis=1)
            for one in (old, network)
        )
        lengths = np.concatenate([slots.length for slots in self._kept_out])
        users = self.config.mixture.n_users
        metrics = []
        for length in (None, *(int(value) for value in np.unique(lengths))):
            at = np.ones(len(lengths), bool) if length is None else lengths == length
            wrong = [(counts[0] + counts[1])[at] / users for counts in (before, after)]
            self.comparisons.append(
                Comparison(
                    length,
                    int(at.sum()),
                    mean_ci95(wrong[0], 1 / users),
                    mean_ci95(wrong[1], 1 / users),
                    _paired(wrong[1] - wrong[0], 1 / users),
                )
            )
            if length is not None:
                conditions = {
                    "length": length,
                    "slots": int(at.sum()),
                    "decisions": int(at.sum()) * users,
                    "threshold": 0.5,
                    "recordings": "kept out",
                }
                missed, alarms, active = after[:, at]
                metrics.append(error_metric(missed, alarms, active, users, conditions))
        self.findings["comparison"] = [one.as_dict() for one in self.comparisons]
        return tuple(metrics)

    def _renamed(self, slots: Slots, generator: torch.Generator) -> Slots:
        """Users in another order: who is who is not what a detector shall learn, unless its pool is fixed."""
        if self.config.mixture.pool == "fixed":
            return slots
        order = torch.randperm(slots.active.shape[1], generator=generator).to(self.device)
        return Slots(
            slots.y,
            slots.active[:, order],
            slots.noise_power,
            slots.preambles[:, order],
            slots.activity,
            slots.snr_db,
            slots.channel,
        )

    def _load(self, tensors: Mapping[str, Tensor]) -> None:
        self.network.load_state_dict(dict(tensors))
        if self.average is not None:
            self.average = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}

    def _refuse_unfitting(self, one: RecordedSlots) -> None:
        mixture = self.config.mixture
        needed = (mixture.max_length, mixture.n_users)
        if one.preambles.shape != needed:
            raise ScenarioError(
                f"{one.name}: preambles of (symbols, users) {one.preambles.shape}, the network takes {needed}; choose "
                "--weights trained for them"
            )
        if self.pool is not None and not np.allclose(self.pool.cpu().numpy(), one.preambles, atol=1e-6):
            raise ScenarioError(
                f"{one.name}: was recorded with another pool of preambles than the network's (users.preamble_seed of "
                f"the run, pool_seed={mixture.pool_seed} of the training)"
            )


def _paired(change: np.ndarray, unit: float) -> Interval:
    """Mean change with its interval over slots; where no slot changed, one decision per slot may still do so."""
    if change.any() and len(change) > 1:
        # Student's, however few slots changed: changes have a sign, and counts of events have none.
        mean, error = float(change.mean()), float(stats.sem(change))
        half = float(stats.t.ppf(0.975, len(change) - 1)) * error
        return Interval(mean, mean - half, mean + half)
    most = mean_ci95(np.abs(change), unit).high
    return Interval(float(change.mean()), -most, most)


def _named(one: RecordedSlots) -> dict[str, Any]:
    return {"name": Path(one.name).name, "sha512": one.sha512, "slots": len(one.length)}

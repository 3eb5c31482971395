"""Trained models on disk: a folder with `model.safetensors` (weights) and `card.json` (what they are).

The card is written last, and holds the hash of the weights: a folder is either whole or refused. Nothing here is
ever unpickled. Reading a card alone needs no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import ModelError, StorageError, explain_validation

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "card.json"
_LOSS_OF_HALF = 1e-3
_LIBRARIES = ("torch", "numpy", "safetensors", "semair")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NetworkSection(_Section):
    """What to build before the weights are loaded."""

    kind: str = Field(min_length=1, description="name of the network among those of the task")
    config: dict[str, Any] = Field({}, description="its configuration")
    n_parameters: int = Field(ge=0, description="learned numbers")


class InputSpec(_Section):
    """One real tensor that the network's forward takes."""

    name: str
    shape: tuple[int | str, ...] = Field(description="sizes; a word for those that may vary")
    dtype: str = "float32"
    normalisation: str = Field("", description="what was done to it before")


class TrainingSection(_Section):
    """How the weights came about."""

    command: str = Field(description="what to type to train it again")
    config: dict[str, Any] = Field({}, description="the whole training configuration")
    seeds: dict[str, int] = {}
    steps: int = Field(ge=0)
    samples: int = Field(ge=0, description="drawn in all")
    time_s: float = Field(ge=0, description="wall time of training, without evaluation at the end")
    device: str = ""
    curve: tuple[dict[str, Any], ...] = Field((), description="loss and validation over steps")


class Metric(_Section):
    """One measured figure with its two-sided 95 % interval."""

    name: str
    value: float
    low: float
    high: float
    unit: str = ""
    conditions: dict[str, Any] = Field({}, description="of the measurement, e.g. preamble length, slots, seed")


class WeightsSection(_Section):
    """Fingerprint of the file of weights."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    n_bytes: int = Field(ge=0)
    tensors: dict[str, tuple[str, tuple[int, ...]]] = Field(description="dtype and shape of each")


class Card(_Section):
    """What a trained model is, what it was trained for, how, and how well it does."""

    format: Literal["semair-model"] = "semair-model"
    format_version: Literal[1] = 1
    name: str = Field(min_length=1)
    task: str = Field(min_length=1, description="e.g. uad")
    description: str = ""
    network: NetworkSection
    inputs: tuple[InputSpec, ...] = ()
    scenario: dict[str, Any] = Field({}, description="what it was trained for; fields depend on the task")
    training: TrainingSection
    metrics: tuple[Metric, ...] = ()
    versions: dict[str, str] = {}
    git_commit: str | None = Field(None, description="of the code that trained it; ends in -dirty if it was changed")
    created: str = Field("", description="UTC, ISO 8601")
    weights: WeightsSection | None = Field(None, description="filled when the model is saved")
    details: dict[str, Any] = Field({}, description="anything else that belongs to the task")


def save_model(folder: str | Path, card: Card, tensors: Mapping[str, Tensor]) -> Card:
    """Write a model's folder: weights first, then the card, each in one piece.

    Args:
        folder: made if it is not there; a model already in it is replaced.
        card: what is known; fingerprint, versions, commit and date are filled in where they are missing.
        tensors: weights by name, finite.

    Returns:
        The card as written.

    Raises:
        ModelError: a tensor holds NaN or infinity.
        StorageError: the folder cannot be written.
    """
    from safetensors.torch import save

    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(tensors.items())}
    _refuse_non_finite(folder, plain)
    data = save(plain, metadata={"format": "semair-model", "name": card.name, "task": card.task})
    written = card.model_copy(
        update={
            "weights": WeightsSection(
                sha256=hashlib.sha256(data).hexdigest(), n_bytes=len(data), tensors=_described(plain)
            ),
            "versions": card.versions or software_versions(),
            "git_commit": card.git_commit or git_commit(),
            "created": card.created or datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
        # Without its card a folder is no model: an interruption between the two files leaves none that is wrong.
        (place / CARD_FILE).unlink(missing_ok=True)
        write_atomically(place / WEIGHTS_FILE, data)
        write_atomically(place / CARD_FILE, (written.model_dump_json(indent=1) + "\n").encode())
    except OSError as error:
        raise StorageError(f"model folder {place} cannot be written: {error}") from error
    return written


def halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices in half precision, but for those that lose more than a thousandth of their norm by it.

    Networks load them into single precision, so that files are half as large and computing stays the same. Not all
    networks bear it: an activity detector with batch normalisation erred a quarter more, figures of CSI and pictures
    changed in the fourth digit.

    Args:
        tensors: weights by name; what is not float32 stays as it is.
    """
    from torch import float32

    def kept(tensor: Tensor) -> Tensor:
        half = tensor.half()
        fits = tensor.dtype == float32 and (half.float() - tensor).norm() <= _LOSS_OF_HALF * tensor.norm()
        return half if fits and tensor.ndim > 1 else tensor

    return {name: kept(tensor.detach()) for name, tensor in tensors.items()}


def load_card(folder: str | Path, task: str | None = None) -> Card:
    """Read and check a card alone.

    Args:
        folder: of the model.
        task: what the model must be for; None for any.

    Raises:
        ModelError: there is no card, it is damaged or foreign, or of another task.
    """
    path = Path(folder) / CARD_FILE
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ModelError(
            f"{folder} is no model: it has no {CARD_FILE}; give a folder that `semair train` wrote"
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}; copy or train the model again") from error
    if not isinstance(data, dict) or data.get("format") != "semair-model":
        raise ModelError(f"{path} is not the card of a semair model")
    try:
        card = Card.model_validate(data)
    except ValidationError as error:
        raise ModelError(f"{path}: {explain_validation(error)}") from error
    if card.weights is None:
        raise ModelError(f"{path} has no fingerprint of the weights; copy or train the model again")
    if task is not None and card.task != task:
        raise ModelError(f"{folder} is a model for task {card.task!r}, not for {task!r}")
    return card


def load_model(folder: str | Path, task: str | None = None) -> tuple[Card, dict[str, Tensor]]:
    """Read a model and refuse it unless it is exactly what its card says.

    Args:
        folder: of the model.
        task: what the model must be for; None for any.

    Returns:
        Card, and weights by name on the CPU.

    Raises:
        ModelError: a file is missing, damaged, or not the one that the card describes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    card = load_card(folder, task)
    fingerprint = card.weights
    assert fingerprint is not None
    path = Path(folder) / WEIGHTS_FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"the weights {path} cannot be read: {error}; copy or train the model again") from error
    if len(data) != fingerprint.n_bytes:
        raise ModelError(
            f"{path} has {len(data)} bytes, its card says {fingerprint.n_bytes}: the file is cut or foreign; "
            "copy or train the model again"
        )
    if hashlib.sha256(data).hexdigest() != fingerprint.sha256:
        raise ModelError(f"{path} is damaged or foreign: its SHA-256 is not the card's; copy or train the model again")
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ModelError(f"{path} is no safetensors file: {error}") from error
    if _described(tensors) != fingerprint.tensors:
        raise ModelError(f"{path} holds other tensors than its card says")
    _refuse_non_finite(folder, tensors)
    return card, tensors


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that, whatever happens, either the old or the new one is there, whole."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def software_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide what training computes."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def git_commit() -> str | None:
    """Commit of the source that runs, with -dirty behind it if tracked files were changed; None outside git."""
    root = Path(__file__).parents[1]
    try:
        top, commit, changes = (
            subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20, check=True)
            for arguments in (
                ["rev-parse", "--show-toplevel"],
                ["rev-parse", "HEAD"],
                ["status", "--porcelain", "--untracked-files=no"],
            )
        )
    except (OSError, subprocess.SubprocessError):
        return None
    # Installed into someone else's repository, that one's commit would say nothing.
    if Path(top.stdout.strip()).resolve() != root.resolve():
        return None
    return commit.stdout.strip() + ("-dirty" if changes.stdout.strip() else "")


def _described(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {
        name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in sorted(tensors.items())
    }


def _refuse_non_finite(folder: str | Path, tensors: Mapping[str, Tensor]) -> None:
    bad = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if bad:
        raise ModelError(
            f"{folder}: weights {', '.join(bad[:3])} hold NaN or infinity; train again with a lower learning rate"
        )

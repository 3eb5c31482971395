"""Networks of a task by kind: found in the modules of a package, built from their configuration, loaded with their
weights."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from torch import nn

from ..errors import ModelError, ScenarioError, explain_validation
from .cards import Card, load_model

NetworkT = TypeVar("NetworkT", bound=nn.Module)


def discover(package: str, paths: Iterable[str], base: type[NetworkT]) -> dict[str, type[NetworkT]]:
    """Find the networks of a package.

    Args:
        package: its name; modules that start with an underscore, and `base`, are left out.
        paths: its folders.
        base: what networks are subclasses of; those that set `kind` count.

    Returns:
        Classes by kind, sorted.
    """
    found: dict[str, type[NetworkT]] = {}
    for module_info in pkgutil.iter_modules(paths):
        if module_info.name.startswith("_") or module_info.name == "base":
            continue
        module = importlib.import_module(f"{package}.{module_info.name}")
        for item in vars(module).values():
            if not (inspect.isclass(item) and issubclass(item, base)) or item.__module__ != module.__name__:
                continue
            if "kind" not in vars(item):
                continue
            kind = vars(item)["kind"]
            if kind in found:
                raise RuntimeError(f"two networks are of kind {kind!r}; rename the one in {module.__name__}")
            found[kind] = item
    return dict(sorted(found.items()))


def build(known: Mapping[str, type[NetworkT]], kind: str, config: Mapping[str, Any] | None = None) -> NetworkT:
    """Make a network with fresh weights.

    Args:
        known: classes by kind; each has `Config`, the class of its configuration.
        kind: one of them.
        config: fields of that kind's `Config`.

    Raises:
        ScenarioError: the kind or a field is unknown, or a value is out of range.
    """
    if kind not in known:
        raise ScenarioError(f"network kind {kind!r} is unknown; choose one of: {', '.join(known)}")
    network: Any = known[kind]
    try:
        checked = network.Config.model_validate(dict(config or {}))
    except ValidationError as error:
        raise ScenarioError(f"network {kind!r}: {explain_validation(error)}") from error
    made: NetworkT = network(checked)
    return made


def load(known: Mapping[str, type[NetworkT]], folder: str | Path, task: str) -> tuple[Card, NetworkT]:
    """Load a trained network, ready to use.

    Args:
        known: classes by kind.
        folder: with `model.safetensors` and `card.json`.
        task: what it must be for.

    Returns:
        Card and network on the CPU, in evaluation mode.

    Raises:
        ModelError: the folder is damaged or foreign, or its weights do not fit its network.
    """
    card, tensors = load_model(folder, task=task)
    try:
        network = build(known, card.network.kind, card.network.config)
    except ScenarioError as error:
        raise ModelError(f"{folder}: the card describes a network that cannot be built: {error}") from error
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != given:
        odd = sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name))
        raise ModelError(
            f"{folder}: the weights do not fit the network of the card; first of {len(odd)} that differ: {odd[0]!r}, "
            f"stored {given.get(odd[0])}, needed {expected.get(odd[0])}"
        )
    network.load_state_dict(tensors)
    return card, network.eval()

"""Activity-detection networks by kind.

Modules of this package whose name starts without underscore are searched for subclasses of `Network`: a new
network is one new module here and no change elsewhere.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ....errors import ModelError, ScenarioError, explain_validation
from ...cards import Card, load_model
from .base import Network, NetworkConfig

__all__ = ["Network", "NetworkConfig", "available", "build", "load"]


def available() -> dict[str, type[Network]]:
    """Every network's class by its kind, sorted by kind."""
    return dict(_discovered())


def build(kind: str, config: Mapping[str, Any] | None = None) -> Network:
    """Make a network with fresh weights.

    Args:
        kind: one of `available()`.
        config: fields of that kind's `Config`.

    Raises:
        ScenarioError: the kind or a field is unknown, or a value is out of range.
    """
    known = _discovered()
    if kind not in known:
        raise ScenarioError(f"network kind {kind!r} is unknown; choose one of: {', '.join(known)}")
    try:
        checked = known[kind].Config.model_validate(dict(config or {}))
    except ValidationError as error:
        raise ScenarioError(f"network {kind!r}: {explain_validation(error)}") from error
    return known[kind](checked)


def load(folder: str | Path) -> tuple[Card, Network]:
    """Load a trained network, ready to score.

    Args:
        folder: with `model.safetensors` and `card.json`.

    Returns:
        Card and network on the CPU, in evaluation mode.

    Raises:
        ModelError: the folder is damaged or foreign, or its weights do not fit its network.
    """
    card, tensors = load_model(folder, task="uad")
    try:
        network = build(card.network.kind, card.network.config)
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


@cache
def _discovered() -> dict[str, type[Network]]:
    found: dict[str, type[Network]] = {}
    for module_info in pkgutil.iter_modules(__path__):
        if module_info.name.startswith("_") or module_info.name == "base":
            continue
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for item in vars(module).values():
            if not (inspect.isclass(item) and issubclass(item, Network)) or item.__module__ != module.__name__:
                continue
            if "kind" not in vars(item):
                continue
            if item.kind in found:
                raise RuntimeError(f"two networks are of kind {item.kind!r}; rename the one in {module.__name__}")
            found[item.kind] = item
    return dict(sorted(found.items()))

"""Semantic precoding networks by kind.

Modules of this package whose name starts without underscore are searched for subclasses of `Network`: a new
network is one new module here and no change elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ... import registry
from ...cards import Card
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
    return registry.build(_discovered(), kind, config)


def load(folder: str | Path) -> tuple[Card, Network]:
    """Load a trained network, ready to use.

    Args:
        folder: with `model.safetensors` and `card.json`.

    Returns:
        Card and network on the CPU, in evaluation mode.

    Raises:
        ModelError: the folder is damaged or foreign, or its weights do not fit its network.
    """
    return registry.load(_discovered(), folder, "semantic")


@cache
def _discovered() -> dict[str, type[Network]]:
    return registry.discover(__name__, __path__, Network)

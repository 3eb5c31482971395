"""What the commands that train have in common: options, the list of configurations, and how they end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ScenarioError
from .common import INTERRUPTED, err, say

if TYPE_CHECKING:
    from ..models.cards import Card
    from ..models.training import Trained

ConfigOption = Annotated[
    str | None, typer.Option("--config", "-c", help="Name of a shipped configuration, or path of a TOML file.")
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")]
MinutesOption = Annotated[
    float | None, typer.Option(help="Train for this long: the schedule is fitted to it, and steps do not count.")
]
ResumeFlag = Annotated[bool, typer.Option("--resume", help="Go on from the folder's checkpoint.")]
ListFlag = Annotated[bool, typer.Option("--list", help="List the shipped configurations.")]


def list_configs(descriptions: Mapping[str, str], as_json: bool) -> None:
    """Print names of configurations and what they are."""
    if as_json:
        print(json.dumps(dict(descriptions)))
        return
    for name, description in descriptions.items():
        say(f"{name}: {description}")


def needed(config: str | None, known: Iterable[str]) -> str:
    """The configuration that was named.

    Raises:
        ScenarioError: none was.
    """
    if config is None:
        raise ScenarioError(f"--config is missing; give a TOML file or one of: {', '.join(known)}")
    return config


def settings_text(minutes: float | None, device: str) -> str:
    """How a command that trains ends, as it was typed."""
    return (
        f"{f' --minutes {minutes:g}' if minutes is not None else ''}{f' --device {device}' if device != 'cpu' else ''}"
    )


def tell_trained(done: Trained, place: Path, as_json: bool, show: Callable[[Card], None]) -> None:
    """Say what came out of training, and end the command where it was interrupted.

    Args:
        done: what training left.
        place: folder of the model.
        as_json: print JSON instead of tables.
        show: prints the figures of the card.
    """
    card = done.card
    if as_json:
        metrics = None if card is None else [metric.model_dump(mode="json") for metric in card.metrics]
        print(json.dumps({"folder": str(place), "steps": done.steps, "finished": card is not None, "metrics": metrics}))
    elif card is not None:
        show(card)
        say(f"model       {place}, {card.network.n_parameters} parameters, {card.training.time_s:.0f} s")
    end_if_interrupted(done, place)


def end_if_interrupted(done: Trained, place: Path) -> None:
    """End the command where training was interrupted, and say how to go on."""
    if done.card is None:
        err.print(f"checkpoint at step {done.steps} in {place}; go on with --resume", markup=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED)

"""What all commands share: consoles, options, and how texts of options are read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ..errors import ScenarioError

if TYPE_CHECKING:
    pass

# One thread per block: several threads inside each library call would fight over the cores with them.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

INTERRUPTED = 130

app = typer.Typer(
    help="An over-the-air testbed for semantic-aware MIMO. Without hardware, the loopback radio stands in for the air.",
    epilog="Exit codes: 0 done; 1 failed; 2 wrong scenario or argument; 3 damaged or unfitting recording; "
    "4 radio; 5 set-up of this machine; 6 storage; 7 a replay decided otherwise; "
    "8 unfitting or damaged model; 130 stopped by Ctrl-C.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

out = Console()
err = Console(stderr=True)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else on stdout.")]
ScenarioOption = Annotated[
    str, typer.Option("--scenario", "-s", help="Name of a shipped scenario (lab, paper) or path of a TOML file.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a field, e.g. --set users.activity=0.2 --set level=wireless."),
]
RadioOption = Annotated[
    str | None,
    typer.Option(
        "--radio",
        "-r",
        metavar="KIND[:ADDRESS]",
        help="Instead of the scenario's, e.g. usrp:type=usrp2,addr=127.0.0.1 or pluto:ip:192.168.2.1; see `semair "
        "radios`.",
    ),
]
OverwriteFlag = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in this folder.")]


def say(line: str) -> None:
    """Print a line that holds names of files: as it is, whatever brackets they have and however long they are."""
    out.print(line, markup=False, highlight=False, soft_wrap=True)


def duration_text(seconds: float) -> str:
    for factor, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= factor:
            return f"{seconds / factor:.4g} {unit}"
    return f"{seconds * 1e6:.4g} us"


def chosen_scenario(source: str, overrides: list[str] | None, radio: str | None = None) -> Any:
    from ..flowgraphs.scenario import load_scenario

    return load_scenario(source, [*_radio_settings(radio), *(overrides or [])])


def _radio_settings(radio: str | None) -> list[str]:
    if radio is None:
        return []
    from ..hardware.discover import named

    kind, address = named(radio)
    return [f"radio.kind={json.dumps(kind)}", f"radio.address={json.dumps(address)}"]


def new_folder(name: str) -> Path:
    from datetime import datetime

    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def options_of(texts: list[str] | None) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise ScenarioError(f"--option {text!r} is not of the form name=value")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options


def channel_list(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ScenarioError(f"--channels {text!r} is no list of channel numbers, e.g. 2,0,1") from error

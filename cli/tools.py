"""Commands beside the experiments: GNU Radio Companion and benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from .common import (
    JsonFlag,
    app,
    err,
    out,
)
from .progress import share_progress

if TYPE_CHECKING:
    pass


@app.command(epilog="Examples: semair grc | semair grc random_access_loopback | semair grc --print >> ~/.bashrc")
def grc(
    flowgraph: Annotated[
        str | None, typer.Argument(help="Name of a shipped flowgraph, or a .grc file; none: an empty one.")
    ] = None,
    only_print: Annotated[bool, typer.Option("--print", help="Print the environment instead of starting.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Start GNU Radio Companion with the semair blocks on its path."""
    from ..flowgraphs import companion

    if as_json:
        shipped = {name: str(path) for name, path in companion.shipped_flowgraphs().items()}
        print(json.dumps({"environment": companion.environment(), "flowgraphs": shipped}))
    elif only_print:
        for name, value in companion.environment().items():
            print(f'export {name}="{value}"')
    else:
        file = companion.shipped_flowgraphs().get(flowgraph or "", Path(flowgraph) if flowgraph else None)
        raise typer.Exit(companion.open_companion(file))


@app.command(
    epilog="Examples: semair benchmark random-access --quick | semair benchmark random-access --json > all.json"
)
def benchmark(
    area: Annotated[str, typer.Argument(help="What to measure, e.g. random-access.")],
    quick: Annotated[bool, typer.Option("--quick", help="Within 60 s, with wider intervals.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="Only the entries whose name contains this.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure what this software claims, with peers beside it in the same run."""
    from ..flowgraphs.benchmarks import run_area

    entries: list[dict[str, Any]] = []
    try:
        with share_progress(area, quiet=as_json) as on_progress:
            for measured in run_area(area, quick=quick, only=only, on_progress=on_progress):
                entries.append(measured.as_dict())
                if not as_json:
                    err.print(_entry_line(entries[-1]))
    finally:
        # What was measured before Ctrl-C or an error is not lost.
        if as_json:
            print(json.dumps(entries, indent=1))
    if as_json:
        return
    table = Table("figure", "value", "95 %", "unit", "reference")
    for entry in entries:
        table.add_row(entry["name"], *_entry_cells(entry))
    out.print(table)


def _entry_cells(entry: dict[str, Any]) -> list[str]:
    interval = entry["ci95"]
    value = entry["value"]
    return [
        f"{value:.3g}" if isinstance(value, float) else str(value),
        f"{interval[0]:.3g} to {interval[1]:.3g}" if interval else "-",
        entry["unit"],
        f"{entry['reference']:.3g}" if isinstance(entry["reference"], float) else str(entry["reference"]),
    ]


def _entry_line(entry: dict[str, Any]) -> str:
    value, interval, unit, reference = _entry_cells(entry)
    return f"{entry['name']}: {value} {unit} ({interval}), reference {reference}"

"""Commands beside the experiments: GNU Radio Companion, benchmarks, ray tracing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ..errors import ScenarioError
from .common import (
    JsonFlag,
    app,
    err,
    out,
    say,
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


@app.command(
    epilog="Examples: semair trace --install | semair trace runs/paths.safetensors | semair trace paths.safetensors "
    "--scene munich --scene etoile --drops 300"
)
def trace(
    output: Annotated[Path | None, typer.Argument(help="File to write; may be left out with --install.")] = None,
    scene: Annotated[
        list[str] | None, typer.Option(help="munich, etoile or simple_street_canyon; repeat for more; default: all.")
    ] = None,
    drops: Annotated[int, typer.Option(min=1, help="Groups of four neighbouring users, of each scene.")] = 1000,
    bases: Annotated[int, typer.Option(min=1, help="Base stations of each scene.")] = 8,
    frequency_hz: Annotated[float, typer.Option(min=0.5e9, max=100e9, help="Carrier.")] = 3.5e9,
    depth: Annotated[int, typer.Option(min=1, max=10, help="Most reflections of a path.")] = 4,
    samples: Annotated[int, typer.Option(min=1000, help="Rays that look for paths.")] = 50_000,
    seed: Annotated[int, typer.Option(min=0, help="Of all places.")] = 1,
    environment: Annotated[
        Path | None, typer.Option(help="Folder of the tracer's Python environment; default: in the cache.")
    ] = None,
    install: Annotated[bool, typer.Option("--install", help="Make that environment first; needs the network.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Trace rays through city scenes with Sionna RT: channels for CSI feedback, in a file.

    Sionna RT runs in a Python environment of its own. LLVM 16 or newer must be there: apt-get install libllvm19.
    """
    from ..models.csi import tracing

    place = environment or tracing.default_environment()
    if output is None and not install:
        raise ScenarioError("a file to write is missing; give one, e.g. semair trace paths.safetensors")
    if drops < bases:
        raise ScenarioError(f"--drops {drops} for --bases {bases}: give at least one drop for each base station")
    if install:
        if not as_json:
            err.print("installing Sionna RT, some minutes")
        tracing.install(place)
    if output is None:
        print(json.dumps({"environment": str(place)})) if as_json else say(f"environment {place}")
        return
    with share_progress("tracing", quiet=as_json) as on_progress:
        done = tracing.trace(
            output,
            scenes=tuple(scene) if scene else tracing.SCENES,
            options={
                "drops": drops,
                "bases": bases,
                "frequency_hz": frequency_hz,
                "depth": depth,
                "samples": samples,
                "seed": seed,
            },
            environment=place,
            on_progress=on_progress,
        )
    if as_json:
        print(json.dumps(done))
    else:
        say(f"paths       {output}, {done['drops']} drops; {done['skipped']} skipped, no ray reached a user")


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

"""The command that runs access, CSI feedback and pictures in turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from .common import (
    JsonFlag,
    OverwriteFlag,
    SetOption,
    chosen_scenario,
    err,
    new_folder,
    out,
)
from .progress import frame_progress
from .runs import conclude, run_app

_MOST_PICTURES = 500


@run_app.command(
    "closed-loop",
    epilog="Examples: semair run closed-loop | semair run closed-loop --rounds 40 --pictures photos --folder "
    "runs/loop | semair run closed-loop --set users.activity=0.04 --set link.access_snr_db=-5 | "
    "semair run closed-loop --model lab-swin-rzf+wmmse --set loop.downlink.csi.feedback_length=4",
)
def run_closed_loop(
    scenario: Annotated[
        str, typer.Option("--scenario", "-s", help="Name of a shipped scenario (closed-loop) or path of a TOML file.")
    ] = "closed-loop",
    rounds: Annotated[
        int | None,
        typer.Option("--rounds", "-n", help="Rounds of access, feedback and pictures; default: the scenario's."),
    ] = None,
    pictures: Annotated[
        list[Path] | None,
        typer.Option(
            "--pictures", "-p", help="A picture, a folder, a .zip or a .tar of pictures; default: drawn ones."
        ),
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Run folder; default runs/SCENARIO-TIME.")] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Weights for pictures instead of the scenario's: shipped, or a folder."),
    ] = None,
    settings: SetOption = None,
    record: Annotated[bool, typer.Option(help="Keep the samples.")] = True,
    report: Annotated[bool, typer.Option(help="Write report.html.")] = True,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Let users ask for pictures, feed their CSI back, and receive the pictures precoded with it; leave a report.

    A round is one frame of each of the three links. Whom the detector finds gets a slot, as long as there are slots;
    what one link gets wrong, the next ones live with. Each link's run lies in a folder below the run folder.
    """
    from ..flowgraphs.closed_loop import require_loop
    from ..flowgraphs.closed_loop_run import run_closed_loop as run
    from ..flowgraphs.picture_schedule import read_pictures

    overrides = list(settings or [])
    if model is not None:
        overrides.append(f"loop.downlink.pictures.model={json.dumps(model)}")
    chosen = chosen_scenario(scenario, overrides)
    wanted = require_loop(chosen).downlink.pictures
    assert wanted is not None
    given = read_pictures(pictures, wanted.side, _MOST_PICTURES) if pictures else None
    if given is not None and given.skipped and not as_json:
        err.print(f"[yellow]skipped {len(given.skipped)} files: {escape(next(iter(given.skipped.values())))}[/]")
    place = folder or new_folder(chosen.name)
    with frame_progress("frames", quiet=as_json) as on_progress:
        result = run(
            chosen,
            place,
            n_frames=rounds,
            record=record,
            overwrite=overwrite,
            on_progress=on_progress,
            pictures=given,
        )
    title = f"closed loop, scenario {chosen.name}"
    conclude(result, place, lambda: show_loop(result.metrics, title), report=report, record=record, as_json=as_json)


def show_loop(metrics: dict[str, Any], title: str) -> None:
    """What became of whom, and what it cost."""
    from ..flowgraphs.closed_loop import Cause
    from ..flowgraphs.closed_loop_metrics import LATENCIES

    users = metrics["users"]
    table = Table("users who asked, or were taken to have", "times", "meaning", title=escape(title))
    for cause in Cause:
        count = users.get(cause.value.replace(" ", "_"), 0)
        if count or cause is Cause.SERVED:
            table.add_row(cause.value, str(count), cause.meaning)
    out.print(table)
    if "pictures" in metrics:
        shown = metrics["pictures"]
        table = Table("of the pictures received", "mean", "95 %")
        for key, text, unit in (
            ("psnr_db", "PSNR", " dB"),
            ("symbol_psnr_db", "without radio and synchronisation", " dB"),
            ("perfect_psnr_db", "and with perfect CSI", " dB"),
            ("ms_ssim", "MS-SSIM", ""),
        ):
            if key in shown:
                mean, low, high = ("-" if x is None else f"{x:.2f}" for x in shown[key])
                table.add_row(text, mean + unit, f"{low} to {high}")
        out.print(table)
    if "csi" in metrics:
        mean = metrics["csi"]["nmse_db"][0]
        out.print(
            f"CSI         {mean:.1f} dB NMSE at the base station, which reckoned with "
            f"{metrics['csi']['reckoned_nmse_db']:.1f} dB"
        )
    latency = metrics["latency_ms"]
    parts = [
        f"{name} {latency[f'{stage}_{key}']['p50']:.1f} ms"
        for stage, key, name, _ in LATENCIES
        if f"{stage}_{key}" in latency
    ]
    if parts:
        out.print(f"latency     median: {', '.join(parts)}")
    lost = metrics["counts"]["lost_samples"]
    if lost:
        out.print(f"[yellow]losses      {lost} samples in {metrics['counts']['gaps']} gaps[/]")

"""Commands that look after recordings."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import ScenarioError
from .common import (
    JsonFlag,
    ScenarioOption,
    SetOption,
    app,
    chosen_scenario,
    duration_text,
    err,
    out,
    say,
)
from .progress import share_progress

if TYPE_CHECKING:
    pass

capture_app = typer.Typer(help="Look after recordings.", no_args_is_help=True)
app.add_typer(capture_app, name="capture")

PLACE_HELP = "Sample, or time since the first one such as 1.5s, 20ms, 3us; negative: from the end."


@capture_app.command("verify", epilog="Example: semair capture verify runs/demo")
def capture_verify(
    path: Annotated[Path, typer.Argument(help="A recording, a collection, or a folder.")],
    as_json: JsonFlag = False,
) -> None:
    """Check recordings: schemas, hashes, missing streams, cut files, gaps, leftovers of a crash."""
    from ..captures.verify import verify

    findings = verify(path)
    if as_json:
        print(json.dumps([{**vars(finding), "file": str(finding.file)} for finding in findings]))
    else:
        for finding in findings:
            say(f"{finding.severity}: {finding.file}: {finding.field}: {finding.message}")
        out.print("nothing wrong" if not findings else f"{len(findings)} findings")
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(3)


@capture_app.command(
    "channel",
    epilog="Examples: semair capture channel runs/wireless | semair capture channel runs/wireless --out air/hall | "
    "semair run random-access --channel runs/wireless/bs-rx.channel.json",
)
def capture_channel(
    run: Annotated[Path, typer.Argument(help="Folder of a run with recording and truth.")],
    to: Annotated[Path | None, typer.Option("--out", help="Files to write, without ending; default RUN/bs-rx.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier channel recording.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Estimate a recording's channels from what is known to have been sent, to put other waveforms on them.

    Leaves a channel recording: taps of every user and of the beacon, carrier offset, timing, noise, and how good
    they are, frame by frame.
    """
    from ..captures.channels import channel_files
    from ..flowgraphs.channel_replay import estimate_run

    place = to or run / "bs-rx"
    if channel_files(place)[0].exists() and not overwrite:
        raise ScenarioError(f"{channel_files(place)[0]} exists; choose another --out, or add --overwrite to replace it")
    with share_progress("channels", quiet=as_json) as on_progress:
        found = estimate_run(run, on_progress)
    written = found.write(place)
    quality = found.quality
    if as_json:
        print(json.dumps({"recording": str(written), "quality": quality, "source": found.source}))
        return
    link, beacon, residual = (quality[name] for name in ("link_error_db", "beacon_error_db", "residual_over_noise_db"))
    table = Table("", "mean", "best", "worst", title=escape(f"channels of {run}"))
    for name, row in (("error of users' taps, dB", link), ("error of the beacon's taps, dB", beacon)):
        table.add_row(name, f"{row['mean']:.1f}", f"{row['min']:.1f}", f"{row['max']:.1f}")
    table.add_row("residual over noise, dB", *(f"{residual[key]:+.2f}" for key in ("mean", "min", "max")))
    out.print(table)
    say(f"{quality['links']} links of {quality['users']} users in {quality['frames']} frames: {written}")
    say(f"put frames on it   semair run random-access --channel {written}")


@capture_app.command(
    "find-gaps",
    epilog="Examples: semair capture find-gaps air.sigmf-meta -s lab | semair capture find-gaps runs/pluto --write",
)
def capture_find_gaps(
    recording: Annotated[Path, typer.Argument(help="A recording, or a folder that holds one or a run.")],
    scenario: ScenarioOption = "lab",
    settings: SetOption = None,
    write: Annotated[bool, typer.Option("--write", help="Mark them in the recording's metadata.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Find lost samples by the numbers of the frames that a recording holds, where its radio told no time."""
    from ..flowgraphs.recording import find_recorded_losses
    from ..flowgraphs.runfolder import RunFolder

    path = RunFolder(recording).recording
    path = path if path.is_file() else recording
    with share_progress("searching", quiet=as_json) as on_progress:
        losses, heard = find_recorded_losses(
            path, chosen_scenario(scenario, settings), write=write, on_share=lambda share: on_progress("frames", share)
        )
    if as_json:
        print(json.dumps({"frames": heard, "losses": [vars(loss) for loss in losses], "written": write}))
        return
    for loss in losses:
        say(f"{loss.lost_samples} samples lost between samples {loss.earliest_start} and {loss.sample_start}")
    say(f"{len(losses)} losses in {heard} frames heard")
    if not heard:
        err.print(f"no frame of scenario {scenario} was heard, so nothing can be said; name the scenario that was sent")


@capture_app.command("recover", epilog="Example: semair capture recover runs/crashed")
def capture_recover(
    folder: Annotated[Path, typer.Argument(help="Folder with what a crash left behind.")],
    as_json: JsonFlag = False,
) -> None:
    """Make readable recordings of what a crash or a full disk left behind; originals are never altered."""
    from ..captures.recover import recover

    found = recover(folder)
    if as_json:
        print(json.dumps([{"name": item.name, "samples": item.n_samples} for item in found]))
        return
    for item in found:
        say(f"recovered {item.name}: {item.n_samples} samples per channel")
    if not found:
        say(f"nothing to recover in {folder}")


@capture_app.command(
    "ls",
    epilog="Examples: semair capture ls | semair capture ls runs air --label good --since 2026-10-01 | "
    "semair capture ls runs --gaps --json",
)
def capture_ls(
    folders: Annotated[list[Path] | None, typer.Argument(help="Where to look, with all below; default here.")] = None,
    label: Annotated[str | None, typer.Option(help="Only those with this label.")] = None,
    since: Annotated[str | None, typer.Option(help="Only those from this date on, e.g. 2026-10-01.")] = None,
    min_rate: Annotated[float | None, typer.Option(help="Only those of at least this sample rate, Hz.")] = None,
    min_channels: Annotated[int | None, typer.Option(help="Only those of at least so many channels.")] = None,
    gaps: Annotated[bool | None, typer.Option("--gaps/--no-gaps", help="Only those with, or without, gaps.")] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Open every recording and make the index anew.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """List recordings with date, run, rate, channels, duration, gaps, labels and SNR.

    An index in each folder (.semair-index.sqlite) makes the next look fast; it is checked against the files, and may be
    deleted.
    """
    from ..captures.catalogue import catalogue, parse_date, select

    earliest = None if since is None else parse_date(since)
    listed: list[dict[str, Any]] = []
    for folder in folders or [Path()]:
        with share_progress("looking", quiet=as_json) as on_progress:
            found = catalogue(folder, rebuild=rebuild, on_share=partial(on_progress, str(folder)))
        for note in found.notes:
            err.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
        rows = select(
            found.rows, label=label, since=earliest, min_rate_hz=min_rate, min_channels=min_channels, gaps=gaps
        )
        listed += [{**vars(row), "path": str(folder / row.path)} for row in rows]
    if as_json:
        print(json.dumps(listed))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("date", "run", "recording", "rate", "ch", "duration", "gaps", "SNR", "labels"):
        table.add_column(title, no_wrap=title not in ("run", "recording", "labels"), overflow="fold")
    for row in listed:
        date = row["date"][:16].replace("T", " ") + ("" if row["date_from"] == "recording" else "~")
        cells = [date, escape(row["run"]), escape(row["name"])]
        if row["problem"]:
            table.add_row(*cells, *[""] * 5, "[red]cannot be opened[/]")
            continue
        labels = [f"{name} x{n}" if n > 1 else name for name, n in row["labels"].items()]
        marks = ["[yellow]incomplete[/]"] if row["complete"] is False else []
        marks += [escape(", ".join(labels[:3]) + (f" and {len(labels) - 3} more" if len(labels) > 3 else ""))]
        table.add_row(
            *cells,
            "?" if row["rate_hz"] is None else f"{row['rate_hz'] / 1e6:g} MS/s",
            str(row["n_channels"]),
            "?" if row["duration_s"] is None else duration_text(row["duration_s"]),
            f"{row['gaps']} ({row['lost_samples']})" if row["gaps"] else "0",
            "" if row["snr_db"] is None else f"{row['snr_db']:.1f} dB",
            " ".join(marks),
        )
    (out if out.is_terminal else Console(width=200)).print(table)
    say(f"{len(listed)} recordings (~: date of the file; gaps: number and lost samples)")
    for row in listed:
        if row["problem"]:
            say(f"cannot be opened: {row['problem']}")


@capture_app.command(
    "show",
    epilog="Examples: semair capture show runs/demo/bs-rx | semair capture show air/hall --picture hall.png --open",
)
def capture_show(
    recording: Annotated[Path, typer.Argument(help="A recording.")],
    picture: Annotated[
        Path | None, typer.Option(help="PNG file for spectrogram, levels over time and constellation, gaps marked.")
    ] = None,
    open_picture: Annotated[bool, typer.Option("--open", help="Open the picture; default NAME.png.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show what is in a recording: levels, clipping, offsets, noise floor, gaps, segments, annotations, settings."""
    from ..captures.inspection import measure_levels, summary
    from ..captures.reader import Recording

    opened = Recording.open(recording)
    if picture is None and open_picture:
        picture = Path(f"{opened.name}.png")
    share = 1.0 if picture is None else 0.7
    with share_progress("reading", quiet=as_json) as on_progress:
        levels = measure_levels(opened, on_share=lambda done: on_progress("levels", done * share))
        if picture is not None:
            from ..flowgraphs.capture_pictures import draw_recording

            draw_recording(opened, levels, picture, on_share=lambda done: on_progress("picture", 0.7 + 0.3 * done))
    facts = summary(opened, levels)
    if as_json:
        print(json.dumps({**facts, "picture": None if picture is None else str(picture)}))
    else:
        _show_recording(facts)
        if picture is not None:
            say(f"picture     {picture}")
    if open_picture:
        typer.launch(str(picture))


@capture_app.command(
    "trim",
    epilog="Examples: semair capture trim air/hall --start 1.5s --stop 2s | semair capture trim air/hall --stop 100000 "
    "--name start",
)
def capture_trim(
    recording: Annotated[Path, typer.Argument(help="A recording; it stays as it is.")],
    start: Annotated[str, typer.Option(help=PLACE_HELP)] = "0",
    stop: Annotated[str | None, typer.Option(help="As --start; the end if not given.")] = None,
    name: Annotated[str | None, typer.Option(help="Base name of the result.")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Folder of the result; that of the recording if not given.")
    ] = None,
    check: Annotated[bool, typer.Option(help="Compare the recording with its checksums first.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Copy a stretch of a recording into a new one, with metadata that fit it and its source noted."""
    from ..captures.reader import Recording
    from ..captures.trim import place_in, trim

    source = Recording.open(recording)
    first, last = place_in(source, start), source.n_samples if stop is None else place_in(source, stop)
    with share_progress("copying", quiet=as_json) as on_progress:
        done = trim(
            source, first, last, name=name, folder=folder, check=check, overwrite=overwrite,
            on_share=lambda share: on_progress(source.name, share),
        )  # fmt: skip
    if as_json:
        print(json.dumps({"recording": str(done.meta_path), "samples": done.n_samples}))
    else:
        say(f"{done.meta_path}: {done.n_samples} samples per channel, from sample {first} of {source.name}")


@capture_app.command(
    "export",
    epilog="Examples: semair capture export runs/demo --to archive | semair capture export runs/demo/bs-rx --to numpy "
    "--out bs-rx.npy | semair capture export runs/demo/bs-rx --to channels --out per-channel",
)
def capture_export(
    path: Annotated[Path, typer.Argument(help="A recording; for an archive also a run folder or a collection.")],
    to: Annotated[str, typer.Option("--to", help="channels, archive, numpy or hdf5.")],
    target: Annotated[
        Path | None, typer.Option("--out", help="File, or folder for channels; made of the name if not given.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a recording for other programs, after a check against its checksums.

    channels: one recording per channel with a collection. archive: a .sigmf file; of a run with all its recordings and
    ground truth. numpy, hdf5: complex64 (channels, samples) with the metadata.
    """
    from ..captures import export
    from ..captures.archive import archive
    from ..captures.reader import Recording

    formats = {"channels": export.per_channel, "numpy": export.to_numpy, "hdf5": export.to_hdf5}
    if to not in (*formats, "archive"):
        raise ScenarioError(f"--to {to!r} is unknown; choose one of: {', '.join((*formats, 'archive'))}")
    name = path.resolve().name.split(".sigmf-")[0]
    with share_progress("exporting", quiet=as_json) as on_progress:

        def tell(share: float) -> None:
            on_progress(name, share)

        if to == "archive":
            made = archive(path, target or Path(f"{name}.sigmf"), overwrite=overwrite, on_share=tell)
        else:
            source = Recording.open(path)
            default = Path(f"{source.name}-channels" if to == "channels" else source.name)
            made = formats[to](source, target or default, overwrite=overwrite, on_share=tell)
    if as_json:
        print(json.dumps({"export": str(made)}))
    else:
        say(f"exported {made}")


@capture_app.command(
    "import",
    epilog="Examples: semair capture import other.sigmf-meta | semair capture import run.sigmf --folder air | "
    "semair capture import dump.bin --datatype ci16_le --rate 20e6 --channels 2 --frequency 2.45e9 | "
    "semair capture import renew.mat --rate 5e6 --frequency 2.5e9",
)
def capture_import(
    path: Annotated[Path, typer.Argument(help="SigMF recording, collection or archive, .mat file, or raw samples.")],
    folder: Annotated[Path, typer.Option(help="Where the recording goes.")] = Path("imported"),
    name: Annotated[str | None, typer.Option(help="Base name; that of the source if not given.")] = None,
    datatype: Annotated[
        str | None, typer.Option(help="Raw samples: SigMF datatype, e.g. ci16_le, cf32_le, cu8.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Raw samples, .mat: sample rate, Hz.")] = None,
    channels: Annotated[int | None, typer.Option(help="Raw samples, .mat: number of channels.")] = None,
    frequency: Annotated[float | None, typer.Option(help="Raw samples, .mat: centre frequency, Hz.")] = None,
    header_bytes: Annotated[int, typer.Option(help="Raw samples: bytes to leave out at the beginning.")] = 0,
    drop_rest: Annotated[
        bool, typer.Option("--drop-rest", help="Raw samples: leave out bytes at the end that make no whole sample.")
    ] = False,
    key: Annotated[str | None, typer.Option(help=".mat: variable; found if not given.")] = None,
    join: Annotated[
        bool, typer.Option("--join", help="Make one recording of a set of channels that were taken together.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier recordings.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make recordings of what others recorded, exactly, with the source and its hash noted."""
    from ..captures.importing import RawFormat, import_file

    raw = RawFormat(datatype, rate, channels, frequency, header_bytes, drop_rest)
    with share_progress("importing", quiet=as_json) as on_progress:
        done = import_file(
            path, folder, name=name, raw=raw, key=key, join=join, overwrite=overwrite,
            on_share=lambda share: on_progress(path.name, share),
        )  # fmt: skip
    if as_json:
        listed = [{"recording": str(item.meta_path), "samples": item.n_samples} for item in done.recordings]
        collection = None if done.collection is None else str(done.collection)
        print(json.dumps({"recordings": listed, "collection": collection, "notes": done.notes}))
        return
    for item in done.recordings:
        rate_text = "rate not known" if item.sample_rate_hz is None else f"{item.sample_rate_hz / 1e6:g} MS/s"
        say(f"{item.meta_path}: {item.n_channels} channels, {item.n_samples} samples, {item.datatype}, {rate_text}")
    if done.collection is not None:
        say(f"{done.collection}")
    for note in done.notes:
        say(f"note: {note}")


@capture_app.command(
    "label",
    epilog="Examples: semair capture label air/hall good | semair capture label air/hall interference --from 1.5s "
    "--to 1.7s | semair capture label air/hall good --remove",
)
def capture_label(
    recording: Annotated[Path, typer.Argument(help="A recording.")],
    label: Annotated[str, typer.Argument(help="At most 20 characters.")],
    start: Annotated[str | None, typer.Option("--from", help=PLACE_HELP)] = None,
    stop: Annotated[str | None, typer.Option("--to", help="As --from; the end if not given.")] = None,
    comment: Annotated[str, typer.Option(help="Free text.")] = "",
    remove: Annotated[bool, typer.Option("--remove", help="Take the label off instead.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Put a label on a stretch of a recording; checksums in the run's collection follow."""
    from ..captures.labels import add_label, remove_label
    from ..captures.reader import Recording
    from ..captures.trim import place_in

    opened = Recording.open(recording)
    first = None if start is None else place_in(opened, start)
    last = None if stop is None else place_in(opened, stop)
    if remove:
        changed = remove_label(opened, label, first, last)
    else:
        changed = add_label(opened, label, first, last, comment)
    if as_json:
        print(json.dumps({"changed": [str(path) for path in changed]}))
    else:
        for path in changed:
            say(f"changed {path}")


def _show_recording(facts: dict[str, Any]) -> None:
    for key, unit in (
        ("name", ""), ("datatype", ""), ("samples", ""), ("channels", ""), ("rate_hz", " Hz"), ("frequency_hz", " Hz"),
        ("duration_s", " s"), ("recorded", ""), ("state", ""), ("source", ""),
    ):  # fmt: skip
        value = facts[key]
        if value is not None:
            text = f"{value:.12g}" if isinstance(value, float) else value
            say(f"{key.rsplit('_', 1)[0] if unit else key:<12}{text}{unit}")
    table = Table("channel", "rms dBFS", "peak dBFS", "noise floor", "DC dBFS", "clipped", "NaN or inf")
    for row in facts["levels"]:
        values = [row[key] for key in ("rms_dbfs", "peak_dbfs", "noise_floor_dbfs", "dc_dbfs")]
        shown = ["-inf" if value is None else f"{value:.1f}" for value in values]
        table.add_row(str(row["channel"]), *shown, str(row["clipped"]), str(row["nonfinite"]))
    out.print(table)
    for title in ("segments", "gaps", "annotations", "settings"):
        lines = facts[title]
        say(f"{title}: {len(lines)}" if lines else f"{title}: none")
        for line in lines[:20]:
            say(f"  {line}")
        if len(lines) > 20:
            say(f"  ... and {len(lines) - 20} more: --json has all")

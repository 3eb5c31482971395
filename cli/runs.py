"""Commands that run links, record, replay, report and transmit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from ..errors import RadioError, ScenarioError
from .common import (
    INTERRUPTED,
    JsonFlag,
    OverwriteFlag,
    RadioOption,
    ScenarioOption,
    SetOption,
    app,
    channel_list,
    chosen_scenario,
    err,
    new_folder,
    options_of,
    out,
    say,
)
from .progress import frame_progress, recorder_progress, share_progress, terminal_progress

if TYPE_CHECKING:
    from ..blocks.playback import PlayOptions
    from ..flowgraphs import transmit as sender
    from ..flowgraphs.link_run import RunResult

CalibrateFlag = Annotated[
    bool,
    typer.Option(
        "--calibrate",
        help="Measure the receive chains right before, as they are tuned, through a splitter from the transmitter to "
        "all of them, and correct them by that; see `semair calibrate`.",
    ),
]

run_app = typer.Typer(help="Run an experiment over a radio.", no_args_is_help=True)
app.add_typer(run_app, name="run")


@run_app.command(
    "random-access",
    epilog="Examples: semair run random-access | semair run random-access -s paper -n 500 -d map-search | "
    "semair run random-access --set level=wireless --set link.access_snr_db=6 --folder runs/wireless | "
    "semair run random-access --channel runs/wireless/bs-rx.channel.json --set users.preamble_seed=7 | "
    "semair run random-access -s bench --role users, and then, in another shell, --role base",
)
def run_random_access(
    scenario: ScenarioOption = "lab",
    frames: Annotated[
        int | None, typer.Option("--frames", "-n", help="Frames to send, behind those in which users find the beacon.")
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Run folder; default runs/SCENARIO-TIME.")] = None,
    detector: Annotated[str | None, typer.Option("--detector", "-d", help="Instead of the scenario's.")] = None,
    channel: Annotated[
        Path | None,
        typer.Option(
            help="Put the frames on recorded air: a file that `semair capture channel` wrote. Choices: --set "
            "channel_replay.cfo=remove, .timing, .mapping, .reuse, .snr_backoff_db, .max_error_db."
        ),
    ] = None,
    radio: RadioOption = None,
    settings: SetOption = None,
    role: Annotated[
        str,
        typer.Option(
            help="both, or base or users alone, where the scenario's terminals run in another process; start users "
            "first, they wait for the beacon."
        ),
    ] = "both",
    calibrate: CalibrateFlag = False,
    record: Annotated[bool, typer.Option(help="Keep the samples.")] = True,
    report: Annotated[bool, typer.Option(help="Write report.html.")] = True,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Detect which users are active, through real GNU Radio blocks; leave recording, metrics and report."""
    from ..flowgraphs.run import run_random_access as run

    overrides = list(settings or [])
    if detector is not None:
        overrides += [f'detector.name="{detector}"', "detector.options={}"]
    if channel is not None:
        overrides.append(f'channel={{kind="recorded", recording={json.dumps(str(channel))}}}')
    chosen = chosen_scenario(scenario, overrides, radio)
    if calibrate and role == "users":
        raise ScenarioError("--calibrate is for the base station's radio; leave it out with --role users")
    if role == "users":
        _run_terminals(chosen, folder, frames, overwrite, as_json)
        return
    if role not in ("both", "base"):
        raise ScenarioError(f"--role {role}: it must be one of both, base, users")
    place = folder or new_folder(chosen.name)
    with frame_progress("frames", quiet=as_json) as on_progress:
        result = run(
            chosen,
            place,
            n_frames=frames,
            record=record,
            overwrite=overwrite,
            on_progress=on_progress,
            role="base" if role == "base" else "both",
            calibrate=calibrate,
        )

    def show() -> None:
        _show_metrics(result.metrics, f"random access, scenario {chosen.name}, detector {chosen.detector.name}")
        if "terminals" in result.metrics:
            _show_terminals(result.metrics["terminals"])
        if calibrate:
            _show_residual(result.folder.calibration)

    conclude(result, place, show, report=report, record=record, as_json=as_json)


@run_app.command(
    "csi-feedback",
    epilog="Examples: semair run csi-feedback | semair run csi-feedback -s csi-paper -n 50 | "
    "semair run csi-feedback --set level=wireless --set csi.snr_db=5 --folder runs/wireless | "
    "semair run csi-feedback --model lab-alone --set csi.feedback_length=16",
)
def run_csi_feedback(
    scenario: Annotated[
        str,
        typer.Option(
            "--scenario", "-s", help="Name of a shipped scenario (csi-lab, csi-paper) or path of a TOML file."
        ),
    ] = "csi-lab",
    frames: Annotated[int | None, typer.Option("--frames", "-n", help="Frames to send; default 200.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Run folder; default runs/SCENARIO-TIME.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Weights instead of the scenario's: shipped, or a folder.")
    ] = None,
    settings: SetOption = None,
    record: Annotated[bool, typer.Option(help="Keep the samples.")] = True,
    report: Annotated[bool, typer.Option(help="Write report.html.")] = True,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Let users feed the CSI of the downlink back as analog symbols, and recover it jointly; leave metrics and report.

    Users and base station are emulated radios; CSI is that of a new place in every frame.
    """
    from ..flowgraphs.csi_feedback_run import run_csi_feedback as run

    overrides = list(settings or [])
    if model is not None:
        overrides.append(f"csi.model={json.dumps(model)}")
    chosen = chosen_scenario(scenario, overrides)
    place = folder or new_folder(chosen.name)
    with frame_progress("frames", quiet=as_json) as on_progress:
        result = run(chosen, place, n_frames=frames, record=record, overwrite=overwrite, on_progress=on_progress)
    title = f"CSI feedback, scenario {chosen.name}, model {chosen.csi.model}"
    conclude(result, place, lambda: _show_metrics(result.metrics, title), report=report, record=record, as_json=as_json)


@run_app.command(
    "semantic-downlink",
    epilog="Examples: semair run semantic-downlink | semair run semantic-downlink -p photos -p cat.jpg | "
    "semair run semantic-downlink -n 50 --set pictures.snr_db=0 --set level=wireless --folder runs/faint | "
    "semair run semantic-downlink --set pictures.csi=perfect --model lab-swin-rzf+wmmse | "
    "semair run semantic-downlink --set pictures.side=128 --set pictures.data_symbols=16 "
    "--set frame.frame_samples=24576",
)
def run_semantic_downlink(
    scenario: Annotated[
        str, typer.Option("--scenario", "-s", help="Name of a shipped scenario (semantic-lab) or path of a TOML file.")
    ] = "semantic-lab",
    pictures: Annotated[
        list[Path] | None,
        typer.Option("--pictures", "-p", help="A picture, or a folder, .zip or .tar of pictures; default: drawn ones."),
    ] = None,
    frames: Annotated[
        int | None, typer.Option("--frames", "-n", help="Frames to send; default: every picture once, 20 if drawn.")
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Run folder; default runs/SCENARIO-TIME.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Weights instead of the scenario's: shipped, or a folder.")
    ] = None,
    settings: SetOption = None,
    record: Annotated[bool, typer.Option(help="Keep the samples.")] = True,
    report: Annotated[bool, typer.Option(help="Write report.html.")] = True,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Send pictures to several users at once, coded and precoded by trained networks; leave pictures, metrics, report.

    Users and base station are emulated radios. Pictures appear in the run folder as they arrive.
    """
    from ..flowgraphs.picture_schedule import read_pictures
    from ..flowgraphs.semantic_downlink_run import PICTURES, require_pictures
    from ..flowgraphs.semantic_downlink_run import run_semantic_downlink as run

    overrides = list(settings or [])
    if model is not None:
        overrides.append(f"pictures.model={json.dumps(model)}")
    chosen = chosen_scenario(scenario, overrides)
    wanted = require_pictures(chosen)
    most = None if frames is None else max(frames, 1) * wanted.n_streams
    given = read_pictures(pictures, wanted.side, most) if pictures else None
    place = folder or new_folder(chosen.name)
    if given is not None and given.skipped and not as_json:
        err.print(f"[yellow]skipped {len(given.skipped)} files: {escape(next(iter(given.skipped.values())))}[/]")
    if not as_json:
        say(f"pictures    appear in {place / PICTURES}")
    with frame_progress("pictures", quiet=as_json) as on_progress:
        result = run(
            chosen,
            place,
            n_frames=frames,
            record=record,
            overwrite=overwrite,
            on_progress=on_progress,
            pictures=given,
        )
    title = f"picture downlink, scenario {chosen.name}, model {wanted.model}"
    conclude(result, place, lambda: _show_metrics(result.metrics, title), report=report, record=record, as_json=as_json)


def _run_terminals(chosen: Any, folder: Path | None, frames: int | None, overwrite: bool, as_json: bool) -> None:
    """The scenario's terminals alone, until their base station is gone."""
    from ..flowgraphs.terminals import run_terminals

    place = folder or new_folder(f"{chosen.name}-users")
    with terminal_progress(len(chosen.terminals), quiet=as_json) as on_progress:
        result = run_terminals(chosen, place, n_frames=frames, overwrite=overwrite, on_progress=on_progress)
    if as_json:
        print(json.dumps({"folder": str(place), "terminals": list(result.reports), "interrupted": result.interrupted}))
    else:
        _show_terminals(result.reports)
        say(f"run folder  {place}")
    if result.interrupted:
        raise typer.Exit(INTERRUPTED)


def _show_terminals(reports: Any) -> None:
    table = Table("terminal", "heard", "sent", "carrier offset", "delay", "what went wrong", title="terminals")
    well = {"heard", "sent", "turnaround_samples", "cfo_hz", "period_samples", "radio", "beacons_refused"}
    for number, report in enumerate(reports):
        wrong = {name: count for name, count in report.items() if name not in well and count}
        wrong |= {f"radio {name}": count for name, count in report["radio"].items() if name != "burst_ack"}
        delay = report["turnaround_samples"]
        table.add_row(
            str(number),
            str(report.get("heard", 0)),
            str(report.get("sent", 0)),
            f"{report['cfo_hz']:.1f} Hz",
            "not found" if delay is None else f"{delay:.2f} samples",
            ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in wrong.items()) or "nothing",
        )
    out.print(table)


@app.command(
    epilog="Examples: semair record --folder runs/air | semair record -n 1000 --set seed=7 --folder runs/x | "
    "semair record --duration 60 | semair record --raw --size 10e9 --radio usrp:addr=192.168.10.2 "
    "--folder runs/listen"
)
def record(
    scenario: ScenarioOption = "lab",
    frames: Annotated[
        int | None, typer.Option("--frames", "-n", help="Frames to send; 200, or as many as --duration or --size take.")
    ] = None,
    duration: Annotated[float | None, typer.Option(help="End after so many seconds of air.")] = None,
    size: Annotated[float | None, typer.Option(help="End before the received data exceed so many bytes, e.g. 2e9.")] = (
        None
    ),
    calibrate: CalibrateFlag = False,
    raw: Annotated[bool, typer.Option("--raw", help="Only listen to the scenario's radio; nothing is sent.")] = False,
    folder: Annotated[Path | None, typer.Option(help="Run folder; default runs/SCENARIO-TIME.")] = None,
    radio: RadioOption = None,
    settings: SetOption = None,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Send and record without receiving; `semair replay` decides later.

    Ctrl-C, a limit, or a disk that has no more room than its reserve end it with a whole recording.
    """
    from ..flowgraphs.links import runner_of
    from ..flowgraphs.run import record_radio

    chosen = chosen_scenario(scenario, settings, radio)
    place = folder or new_folder(chosen.name)
    if raw:
        if frames is not None:
            raise ScenarioError("--frames has no meaning with --raw, which sends nothing; use --duration or --size")
        if calibrate:
            raise ScenarioError("--calibrate has no meaning with --raw, which sends nothing; calibrate before")
        with recorder_progress(quiet=as_json) as on_state:
            heard = record_radio(
                chosen, place, duration_s=duration, size_bytes=size, overwrite=overwrite, on_progress=on_state
            )
        if as_json:
            print(json.dumps({**vars(heard), "folder": str(place), "recording": str(heard.recording)}))
        else:
            say(
                f"recorded {heard.seconds:.3f} s on {heard.n_channels} channels, {heard.lost_samples} samples lost, "
                f"at most {max(heard.clipped_samples)} clipped on one; check it: semair capture verify {place}"
            )
        if heard.interrupted:
            raise typer.Exit(INTERRUPTED)
        return
    with frame_progress("frames", quiet=as_json) as on_progress:
        result = runner_of(chosen)(
            chosen,
            place,
            n_frames=frames,
            receive=False,
            overwrite=overwrite,
            on_progress=on_progress,
            duration_s=duration,
            size_bytes=size,
            **({"calibrate": True} if calibrate else {}),
        )
    if as_json:
        print(json.dumps({"folder": str(place), **result.metrics}))
    else:
        say(f"recorded {result.metrics['frames']['sent']} frames in {place}; decide with: semair replay {place}")
        if calibrate:
            _show_residual(result.folder.calibration)
    if result.interrupted:
        raise typer.Exit(INTERRUPTED)


@app.command(
    epilog="Examples: semair replay runs/demo | semair replay runs/demo --detector somp --channels 0,2 | "
    "semair replay wifi.sigmf-meta --reference l-ltf --max-cfo 40e3 | "
    "semair replay air.sigmf-meta --scenario lab --resample 2e6 --any-frequency"
)
def replay(
    path: Annotated[
        Path, typer.Argument(help="A run folder, or any SigMF recording together with --scenario or --reference.")
    ],
    detector: Annotated[
        str | None, typer.Option("--detector", "-d", help="What would this detector have decided on the same air?")
    ] = None,
    option: Annotated[list[str] | None, typer.Option(help="Option of that detector, name=value.")] = None,
    channel: Annotated[
        bool,
        typer.Option(
            "--channel",
            help="CSI feedback: send new codes, of --detector or --option feedback_length=N, over the recorded uplink.",
        ),
    ] = False,
    channels: Annotated[
        str | None, typer.Option(help="Recorded channels to take as antennas, in this order, e.g. 2,0,1.")
    ] = None,
    gaps: Annotated[
        str,
        typer.Option(
            help="Where samples were lost: as-recorded (the receiver is told, as live), stop, splice, or zero (filled)."
        ),
    ] = "as-recorded",
    resample: Annotated[float | None, typer.Option(help="Sample rate to change the recording to, Hz.")] = None,
    loop: Annotated[int, typer.Option(help="Turns, of whole frames and across no gap.")] = 1,
    frame: Annotated[int | None, typer.Option(help="Play whole frames of this many recorded samples only.")] = None,
    frame_start: Annotated[int, typer.Option(help="Recorded sample at which a frame begins.")] = 0,
    speed: Annotated[
        float | None, typer.Option(help="1: in real time, by the clock of this machine; default: as fast as it goes.")
    ] = None,
    scenario: Annotated[
        str | None, typer.Option("--scenario", "-s", help="Receive a recording with this scenario's receiver.")
    ] = None,
    settings: SetOption = None,
    any_frequency: Annotated[
        bool, typer.Option("--any-frequency", help="With --scenario: take recordings of other centre frequencies.")
    ] = False,
    folder: Annotated[
        Path | None, typer.Option(help="With --scenario: where decisions go; default runs/replay-RECORDING-TIME.")
    ] = None,
    overwrite: OverwriteFlag = False,
    reference: Annotated[
        str | None,
        typer.Option(help="Search this sequence: l-ltf, l-ltf-64, l-stf, or a file (.npy, .sigmf-meta, .cf32, .ci16)."),
    ] = None,
    max_cfo: Annotated[float, typer.Option(help="Search: largest carrier offset, Hz.")] = 0.0,
    false_alarms: Annotated[float, typer.Option(help="Search: false alarms per sample of white noise.")] = 1e-9,
    threshold: Annotated[
        float | None, typer.Option(help="Search: threshold of the metric, 0 to 1, instead of --false-alarms.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Search: sample rate of a recording that does not say it.")] = None,
    annotations_at: Annotated[
        int | None,
        typer.Option(help="Search: compare with annotations; samples from their start to the reference's start."),
    ] = None,
    tolerance: Annotated[int, typer.Option(help="Search: samples within which an annotation counts as found.")] = 2,
    as_json: JsonFlag = False,
) -> None:
    """Drive a receiver with a recording.

    A run folder must give the very decisions it gave live, unless something else is asked for. Any other SigMF
    recording is received with a scenario, or searched for a reference sequence.
    """
    from ..blocks.playback import PlayOptions, silence
    from ..flowgraphs.links import kind_of_run, module_of

    play = PlayOptions(
        channels=channel_list(channels),
        gaps=gaps,  # type: ignore[arg-type]
        rate_hz=resample,
        turns=loop,
        frame_samples=frame,
        frame_start=frame_start,
    )
    if reference is not None:
        _search(
            path, reference, max_cfo, false_alarms, threshold, rate, annotations_at, tolerance, play, speed, as_json
        )
        return
    if scenario is None and path.is_file():
        raise ScenarioError(
            f"{path} is a file: give a run folder, a --scenario to receive it with, or a --reference to search in it"
        )
    if scenario is not None and path.is_dir() and (path / "run.json").is_file():
        raise ScenarioError(
            f"{path} is a run, which has its own scenario: leave --scenario out, or give the recording in it"
        )
    if channel and (scenario is not None or play != PlayOptions() or speed is not None):
        raise ScenarioError("--channel takes the folder of a run, --detector and --option; leave other options out")
    if channel and kind_of_run(path) != "csi-feedback":
        raise ScenarioError(
            f"{path}: --channel is for runs of CSI feedback; for random access run `semair capture channel`, and "
            "then `semair run random-access --channel`"
        )
    # Where a replay stopped is told with its result.
    with silence(), frame_progress("slots", quiet=as_json) as on_progress:
        if channel:
            from ..flowgraphs.csi_channel_replay import replay_channel

            result = replay_channel(path, detector=detector, options=options_of(option), on_progress=on_progress)
        elif scenario is None:
            result = module_of(kind_of_run(path)).replay_run(
                path, detector=detector, options=options_of(option), play=play, speed=speed, on_progress=on_progress
            )
        else:
            chosen = chosen_scenario(scenario, _with_detector(settings, detector, option))
            replay_recording = module_of(chosen.kind).replay_recording
            place = folder or new_folder(f"replay-{path.name.partition('.')[0]}")
            result = replay_recording(
                path,
                chosen,
                place,
                play=play,
                any_frequency=any_frequency,
                speed=speed,
                overwrite=overwrite,
                on_progress=on_progress,
            )
    summary = {
        "folder": str(result.folder.path),
        "detector": result.detector,
        "live_decisions": result.live,
        "reproduced": result.equal,
        "extra": result.extra,
        "air_s": result.air_s,
        "wall_s": result.wall_s,
        "playback": result.playback,
    }
    if as_json:
        print(json.dumps({**summary, **result.metrics}))
    else:
        _show_metrics(result.metrics, f"replay of {path}, detector {result.detector}")
        if result.equal is not None and result.live:
            out.print(f"[green]all {result.equal} of {result.live} live decisions reproduced bit for bit[/]")
        if result.extra and result.live:
            out.print(f"{result.extra} slots that the live run had not decided")
        if not result.live:
            say(f"{result.extra} slots decided, in {result.folder.path}")
        if result.playback:
            _show_playback(result.playback)
        if result.metrics.get("run_nmse_db"):
            say(f"the run's own NMSE was {result.metrics['run_nmse_db'][0]:.2f} dB; folder {result.folder.path}")
        out.print(f"{result.air_s:.2f} s of air in {result.wall_s:.2f} s")
    if result.interrupted:
        raise typer.Exit(INTERRUPTED)


def _search(
    path: Path,
    reference: str,
    max_cfo: float,
    false_alarms: float,
    threshold: float | None,
    rate: float | None,
    annotations_at: int | None,
    tolerance: int,
    play: PlayOptions,
    speed: float | None,
    as_json: bool,
) -> None:
    from ..blocks.waveforms.references import load_reference
    from ..flowgraphs.preamble_replay import compare_with_annotations, find_preambles

    with share_progress("searching", quiet=as_json) as on_progress:
        played, found = find_preambles(
            path,
            load_reference(reference),
            max_cfo_hz=max_cfo,
            false_alarms_per_sample=false_alarms,
            threshold=threshold,
            sample_rate_hz=rate,
            play=play,
            speed=speed,
            on_progress=lambda share: on_progress("samples", share),
        )
    comparison = None if annotations_at is None else compare_with_annotations(played, found, annotations_at, tolerance)
    if as_json:
        result = {"recording": played.recording.name, "preambles": found, "annotations": comparison}
        print(json.dumps({**result, "playback": played.as_dict()}))
        return
    table = Table(
        "start", "fraction", "CFO Hz", "metric", "SNR dB", title=escape(f"{reference} in {played.recording.name}")
    )
    for item in found:
        table.add_row(
            str(item["start"]),
            f"{item['fraction']:+.2f}",
            f"{item['cfo_hz']:+.0f}",
            f"{item['metric']:.3f}",
            f"{item['snr_db']:.1f}",
        )
    out.print(table)
    out.print(f"{len(found)} found in {played.n_samples} samples on {len(played.channels)} antennas")
    if comparison:
        out.print(
            f"{comparison['matched']} of {comparison['annotated']} annotations found within {tolerance} samples, "
            f"{comparison['extra']} more found"
        )
    _show_playback(played.as_dict())


def _with_detector(settings: list[str] | None, detector: str | None, option: list[str] | None) -> list[str]:
    """Overrides of a scenario with another detector among them."""
    overrides = list(settings or [])
    if detector is not None:
        overrides += [f'detector.name="{detector}"', "detector.options={}"]
    return overrides + [f"detector.options.{text}" for text in option or []]


@app.command(
    epilog="Examples: semair transmit runs/demo/tx-beacon.sigmf-meta --radio loopback --frequency 3.5e9 --gain -20 "
    "--level -15 | semair transmit runs/demo/tx-beacon.sigmf-meta --radio loopback --frequency 3.5e9 --gain -20 "
    "--level -15 --really CODE | semair transmit runs/demo/tx-beacon.sigmf-meta --radio usrp:addr=192.168.10.2 "
    "--frequency 2.45e9 --gain 10 --level -20 --in 3"
)
def transmit(
    recording: Annotated[Path, typer.Argument(help="A waveform that a run here recorded of what it sent (tx-...).")],
    radio: Annotated[str, typer.Option(metavar="KIND[:ADDRESS]", help="A radio here, see `semair radios`.")],
    frequency: Annotated[float, typer.Option(help="Centre frequency, Hz; never taken from the recording.")],
    gain: Annotated[float | None, typer.Option(help="Transmit gain, dB; never taken from the recording.")] = None,
    level: Annotated[
        float | None, typer.Option(help="Scale to this mean power, dBFS, at most -12; default: as recorded.")
    ] = None,
    channels: Annotated[str | None, typer.Option(help="Recorded channels to send, in this order, e.g. 1,0.")] = None,
    loop: Annotated[int, typer.Option(help="Turns.")] = 1,
    frame: Annotated[int | None, typer.Option(help="Send whole frames of this many samples only.")] = None,
    frame_start: Annotated[int, typer.Option(help="Sample at which a frame begins.")] = 0,
    duration: Annotated[float | None, typer.Option(help="End after so many seconds.")] = None,
    at: Annotated[
        float | None,
        typer.Option(
            help="Begin exactly at this time of the radio, s, on radios that obey times (uhd), where it is 0 when the "
            "radio is set up."
        ),
    ] = None,
    delay: Annotated[
        float | None, typer.Option("--in", help="Begin exactly so many seconds after the radio was set up.")
    ] = None,
    site: Annotated[
        Path | None,
        typer.Option(help="What is permitted here; default ./semair-site.toml or ~/.config/semair/site.toml."),
    ] = None,
    log: Annotated[Path | None, typer.Option(help="Takes a line per transmission; default: the site's.")] = None,
    really: Annotated[
        str | None, typer.Option(metavar="CODE", help="Send, with the code that the dry run showed.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Send a recorded waveform of one's own over a radio: a dry run, unless the dry run's code is given.

    The loopback radio needs no site file; on others, only what the site file permits is sent.
    """
    from ..flowgraphs import transmit as sender
    from ..hardware.discover import named
    from ..hardware.site import find_site_file, load_site

    site_file = site or find_site_file()
    rules = None if site_file is None else load_site(site_file)
    kind, address = named(radio)
    request = sender.Request(
        recording=recording,
        kind=kind,
        address=address,
        frequency_hz=frequency,
        gain_db=gain,
        level_dbfs=level,
        channels=channel_list(channels),
        turns=loop,
        frame_samples=frame,
        frame_start=frame_start,
        duration_s=duration,
        at_s=at,
        in_s=delay,
    )
    with share_progress("planning", quiet=as_json) as on_progress:
        on_progress("checking the recording", 0.0)
        waveform = sender.own_waveform(recording)
        device = sender.open_radio(request, waveform)
        plan = sender.make_plan(request, device, waveform, rules, on_progress)
    refusals = plan.judgement.refusals
    if not as_json:
        _show_plan(plan, site_file)
    if refusals or really is None:
        if as_json:
            print(json.dumps({"sent": False, "code": None if refusals else plan.code, "plan": plan.as_dict()}))
        elif refusals:
            for refusal in refusals:
                say(f"refused     {refusal}")
        else:
            say(f"nothing was sent; send it with the same command and --really {plan.code}")
        if refusals:
            raise typer.Exit(RadioError.exit_code)
        return
    place = log or (rules.log if rules is not None else None) or sender.default_log()
    with share_progress("transmitting", quiet=as_json) as on_progress:
        sent = sender.transmit(plan, really, device, waveform, place, on_progress=on_progress)
    if as_json:
        print(json.dumps({"sent": True, "plan": plan.as_dict(), **vars(sent), "log": str(place)}))
    else:
        say(f"sent        {sent.samples} samples in {sent.seconds:.2f} s, silence included; see {place}")
        if sent.at_s is not None:
            say(f"began       at {sent.at_s:.9f} s of the radio's time")
        for name, count in sent.counts.items():
            say(f"            {name.replace('_', ' ')} {count}")
    if sent.interrupted:
        raise typer.Exit(INTERRUPTED)


@app.command(epilog="Example: semair report runs/demo")
def report(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    as_json: JsonFlag = False,
) -> None:
    """Write report.html of a run, with all detectors beside the one that ran."""
    path = _report(folder, as_json)
    if as_json:
        print(json.dumps({"report": str(path)}))
    else:
        say(f"report  {path}")


def _show_residual(path: Path) -> None:
    """What is left of the chains' errors after correction."""
    from ..hardware.calibration import load_calibration

    worst = load_calibration(path).worst()
    say(
        f"calibrated  at worst {worst['delay_samples']:.3f} samples, {worst['phase_deg']:.2f} degrees and "
        f"{worst['gain_db']:.2f} dB are left between the chains; {path}"
    )


def conclude(
    result: RunResult, place: Path, show: Callable[[], None], *, report: bool, record: bool, as_json: bool
) -> None:
    """Write a run's report, print what it measured and left, and end with the code of an interruption after one.

    Args:
        result: of the run.
        place: its folder.
        show: prints what was measured, where it is not printed as JSON.
        report: whether to write one.
        record: whether samples were kept.
        as_json: print JSON and nothing else.
    """
    report_path = _report(place, as_json) if report else None
    if as_json:
        print(json.dumps({"folder": str(place), **result.metrics}))
    else:
        show()
        say(f"run folder  {place}")
        if report_path:
            say(f"report      {report_path}")
        if record:
            say(f"replay it   semair replay {place}")
    if result.interrupted:
        err.print("everything up to here is in the run folder")
        raise typer.Exit(INTERRUPTED)


def _report(folder: Path, quiet: bool) -> Path:
    from ..flowgraphs.report import write_report

    with share_progress("report", quiet=quiet) as on_progress:
        return write_report(folder, on_progress=on_progress)


def _show_plan(plan: sender.Plan, site_file: Path | None) -> None:
    """Everything about a transmission that is planned."""
    request, emission, judged = plan.request, plan.emission, plan.judgement
    table = Table("transmission", "", title=escape(f"{request.recording} over {request.kind} {request.address}"))
    table.add_row("waveform", f"{plan.role}, {emission.duration_s:.6g} s, turns {request.turns}")
    table.add_row("band", f"{emission.low_hz:.10g} to {emission.high_hz:.10g} Hz")
    table.add_row("level", f"mean {emission.level_dbfs:.1f} dBFS, peak {emission.peak:.3f} of full scale")
    if plan.gains_db:
        table.add_row("gain", " ".join(f"{gain:g}" for gain in plan.gains_db) + " dB")
    if request.timed:
        when = f"at {request.at_s:g} s of" if request.at_s is not None else f"{request.in_s:g} s from now by"
        table.add_row("begins", f"{when} the radio's time")
    table.add_row("path", judged.path)
    if judged.power_dbm is not None:
        table.add_row("power", f"{judged.power_dbm:.1f} dBm at the port")
    if judged.band is not None and judged.eirp_dbm is not None:
        allowed = f"{judged.band.max_eirp_dbm:g} dBm permitted in {judged.band.name}"
        table.add_row("EIRP", escape(f"{judged.eirp_dbm:.1f} dBm, {allowed} ({judged.band.basis})"))
    table.add_row("site", escape("none" if site_file is None else f"{plan.site}, {site_file}"))
    out.print(table)


def _show_playback(played: dict[str, Any]) -> None:
    """What of a recording was left out, or what stands in for it."""
    if played["stopped_at"] is not None:
        out.print(
            f"[yellow]stopped     before the gap at sample {played['stopped_at']}: {played['skipped_samples']} samples "
            "not played; see --gaps[/]"
        )
    elif played["skipped_samples"]:
        out.print(f"not played  {played['skipped_samples']} samples outside whole frames")
    if played["recorded_gaps"] and played["gaps"] in ("splice", "zero"):
        done = "spliced" if played["gaps"] == "splice" else "filled with zeros"
        out.print(f"[yellow]gaps        {played['recorded_gaps']}, {done}[/]")
    if played["rate_hz"] != played["recorded_rate_hz"]:
        out.print(f"resampled   {played['recorded_rate_hz']:.10g} to {played['rate_hz']:.10g} Hz")


def _show_csi(measured: dict[str, Any], title: str) -> None:
    """Errors of recovered CSI."""
    table = Table("of the recovered CSI", "mean", "95 %", title=escape(title))
    rows = (
        ("nmse_db", "NMSE", "dB"),
        ("symbol_level_nmse_db", "the same at symbol level", "dB"),
        ("chain_loss_db", "what the radio chain costs", "dB"),
        ("estimate_nmse_db", "NMSE of what users estimated", "dB"),
        ("cosine", "cosine", ""),
        ("sum_rate_share", "sum rate over that of perfect CSI", ""),
    )
    for name, text, unit in rows:
        if name in measured:
            value, low, high = ("-" if x is None else f"{x:.2f}" for x in measured[name])
            table.add_row(text, f"{value} {unit}".strip(), f"{low} to {high}")
    out.print(table)
    snr = measured["uplink_snr_db"]
    out.print(
        f"SNR         {snr['mean']:.1f} +- {snr['std']:.1f} dB behind the combining, "
        f"{measured['announced_snr_db']:g} dB announced"
    )


def _show_quality(measured: dict[str, Any], title: str) -> None:
    """Quality of pictures received."""
    table = Table("of the pictures received", "mean", "95 %", title=escape(title))
    rows = (
        ("psnr_db", "PSNR", "dB", 2),
        ("symbol_psnr_db", "the same at symbol level", "dB", 2),
        ("chain_loss_db", "what the radio chain costs", "dB", 2),
        ("ms_ssim", "MS-SSIM", "", 3),
        ("symbol_ms_ssim", "the same at symbol level", "", 3),
    )
    for name, text, unit, digits in rows:
        if name in measured:
            value, low, high = ("-" if x is None else f"{x:.{digits}f}" for x in measured[name])
            table.add_row(text, f"{value} {unit}".strip(), f"{low} to {high}")
    out.print(table)
    true = f", true {measured['true_sinr_db']['mean']:.1f} dB" if "true_sinr_db" in measured else ""
    out.print(
        f"SINR        {measured['sinr_db']['mean']:.1f} +- {measured['sinr_db']['std']:.1f} dB estimated{true}; "
        f"CSI of the base station {measured['csi_nmse_db']['mean']:.1f} dB NMSE"
    )


def _show_metrics(metrics: dict[str, Any], title: str) -> None:
    if metrics.get("kind") == "closed-loop":
        from .loop import show_loop

        show_loop(metrics, title)
        return
    replayed = metrics.get("channel_replay")
    if replayed:
        title = f"channel replay of {replayed['recording']}: {title}"
    if "detection" in metrics:
        table = Table(
            "preamble length", "slots", "error probability", "95 %", "missed", "false alarms", title=escape(title)
        )
        for length, row in metrics["detection"].items():
            value, low, high = row["error_probability"]
            shares = ["-" if share is None else f"{share:.2e}" for share in (row["missed"], row["false_alarms"])]
            table.add_row(length, str(row["slots"]), f"{value:.2e}", f"{low:.1e} to {high:.1e}", *shares)
        out.print(table)
    if "csi" in metrics:
        _show_csi(metrics["csi"], title)
    if "quality" in metrics:
        _show_quality(metrics["quality"], title)
    if "pictures" in metrics:
        told = metrics["pictures"]
        out.print(
            f"pictures    {told['sent']} sent in {metrics['frames']['sent']} frames, {told['decided']} received, "
            f"{told['missed']} missed, {told['false']} false, {told['dropped']} dropped"
        )
    elif "frames" in metrics:
        frames = metrics["frames"]
        out.print(
            f"frames      {frames['sent']} sent, {frames['decided']} decided, {frames['missed']} missed, "
            f"{frames['false']} false, {metrics['counts'].get('slots_dropped', 0)} dropped"
        )
    sync = metrics.get("synchronisation") or {}
    if "cfo_true_hz" in sync:
        out.print(
            f"sync        timing error {sync['timing_error_samples']['mean']:+.2f} +- "
            f"{sync['timing_error_samples']['std']:.2f} samples, CFO error {sync['cfo_error_hz']['mean']:+.1f} +- "
            f"{sync['cfo_error_hz']['std']:.1f} Hz at {sync['cfo_true_hz']:.0f} Hz"
        )
    latency = metrics.get("latency_ms") or {}
    if latency:
        detect, total = latency.get("detect") or latency["decode"], latency.get("total")
        name = "detector" if "detect" in latency else "decoder"
        out.print(
            f"latency     {name} {detect['p50']:.2f} ms (p99 {detect['p99']:.2f})"
            + (f", frame start to decision {total['p50']:.0f} ms (p99 {total['p99']:.0f})" if total else "")
        )
    for name, count in metrics.get("flagged", {}).items():
        out.print(f"[yellow]flagged     {count} slots: {_meaning(metrics, name)}[/]")
    unheard = metrics.get("users", {}).get("unheard", 0)
    if unheard:
        out.print(f"[yellow]left out    {unheard} times a user that had sent[/]")
    lost = metrics["counts"].get("lost_samples", 0)
    if lost:
        out.print(f"[yellow]losses      {lost} samples in {metrics['counts']['gaps']} gaps[/]")


def _meaning(metrics: dict[str, Any], flag: str) -> str:
    """What a flag of detectors, or of users' parts of a feedback slot, says."""
    if metrics.get("kind") == "csi-feedback":
        from ..blocks.waveforms.feedback import PartFlag

        return PartFlag[flag.upper()].meaning
    from ..models.uad.detectors import Flag

    return Flag[flag.upper()].meaning

"""The command line `semair`."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from .errors import RadioError, ScenarioError, SemairError, explain_validation

if TYPE_CHECKING:
    from .blocks.playback import PlayOptions
    from .flowgraphs import recording as recorder
    from .flowgraphs import run as runner
    from .flowgraphs import transmit as sender
    from .hardware import calibration as calibrations
    from .models.uad import train as trainer

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
run_app = typer.Typer(help="Run an experiment over a radio.", no_args_is_help=True)
evaluate_app = typer.Typer(help="Evaluate models beside their peers.", no_args_is_help=True)
capture_app = typer.Typer(help="Look after recordings.", no_args_is_help=True)
train_app = typer.Typer(help="Train a model.", no_args_is_help=True)
app.add_typer(run_app, name="run")
app.add_typer(train_app, name="train")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(capture_app, name="capture")
virtual_app = typer.Typer(help="Start virtual radios, which real drivers connect to.", no_args_is_help=True)
app.add_typer(virtual_app, name="virtual")

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
OverwriteFlag = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in this folder.")]


@run_app.command(
    "random-access",
    epilog="Examples: semair run random-access | semair run random-access -s paper -n 500 -d map-search | "
    "semair run random-access --set level=wireless --set link.access_snr_db=6 --folder runs/wireless | "
    "semair run random-access --channel runs/wireless/bs-rx.channel.json --set users.preamble_seed=7",
)
def run_random_access(
    scenario: ScenarioOption = "lab",
    frames: Annotated[int, typer.Option("--frames", "-n", help="Frames to send.")] = 200,
    folder: Annotated[Path | None, typer.Option(help="Run folder; default runs/SCENARIO-TIME.")] = None,
    detector: Annotated[str | None, typer.Option("--detector", "-d", help="Instead of the scenario's.")] = None,
    channel: Annotated[
        Path | None,
        typer.Option(
            help="Put the frames on recorded air: a file that `semair capture channel` wrote. Choices: --set "
            "channel_replay.cfo=remove, .timing, .mapping, .reuse, .snr_backoff_db, .max_error_db."
        ),
    ] = None,
    settings: SetOption = None,
    record: Annotated[bool, typer.Option(help="Keep the samples.")] = True,
    report: Annotated[bool, typer.Option(help="Write report.html.")] = True,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Detect which users are active, through real GNU Radio blocks; leave recording, metrics and report."""
    from .flowgraphs.run import run_random_access as run

    overrides = list(settings or [])
    if detector is not None:
        overrides += [f'detector.name="{detector}"', "detector.options={}"]
    if channel is not None:
        overrides.append(f'channel={{kind="recorded", recording={json.dumps(str(channel))}}}')
    chosen = _scenario(scenario, overrides)
    place = folder or _new_folder(chosen.name)
    with _frame_progress("frames", quiet=as_json) as on_progress:
        result = run(chosen, place, n_frames=frames, record=record, overwrite=overwrite, on_progress=on_progress)
    report_path = _report(place, as_json) if report else None
    if as_json:
        print(json.dumps({"folder": str(place), **result.metrics}))
    else:
        _show_metrics(result.metrics, f"random access, scenario {chosen.name}, detector {chosen.detector.name}")
        _say(f"run folder  {place}")
        if report_path:
            _say(f"report      {report_path}")
        if record:
            _say(f"replay it   semair replay {place}")
    if result.interrupted:
        err.print("everything up to here is in the run folder")
        raise typer.Exit(INTERRUPTED)


@app.command(
    epilog="Examples: semair record --folder runs/air | semair record -n 1000 --set seed=7 --folder runs/x | "
    "semair record --duration 60 | semair record --raw --size 10e9 --folder runs/listen"
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
    raw: Annotated[bool, typer.Option("--raw", help="Only listen to the scenario's radio; nothing is sent.")] = False,
    folder: Annotated[Path | None, typer.Option(help="Run folder; default runs/SCENARIO-TIME.")] = None,
    settings: SetOption = None,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Send and record without receiving; `semair replay` decides later.

    Ctrl-C, a limit, or a disk that has no more room than its reserve end it with a whole recording.
    """
    from .flowgraphs.run import record_radio
    from .flowgraphs.run import run_random_access as run

    chosen = _scenario(scenario, settings)
    place = folder or _new_folder(chosen.name)
    if raw:
        if frames is not None:
            raise ScenarioError("--frames has no meaning with --raw, which sends nothing; use --duration or --size")
        with _recorder_progress(quiet=as_json) as on_state:
            heard = record_radio(
                chosen, place, duration_s=duration, size_bytes=size, overwrite=overwrite, on_progress=on_state
            )
        if as_json:
            print(json.dumps({**vars(heard), "folder": str(place), "recording": str(heard.recording)}))
        else:
            _say(
                f"recorded {heard.seconds:.3f} s on {heard.n_channels} channels, {heard.lost_samples} samples lost, "
                f"at most {max(heard.clipped_samples)} clipped on one; check it: semair capture verify {place}"
            )
        if heard.interrupted:
            raise typer.Exit(INTERRUPTED)
        return
    with _frame_progress("frames", quiet=as_json) as on_progress:
        result = run(
            chosen,
            place,
            n_frames=frames,
            receive=False,
            overwrite=overwrite,
            on_progress=on_progress,
            duration_s=duration,
            size_bytes=size,
        )
    if as_json:
        print(json.dumps({"folder": str(place), **result.metrics}))
    else:
        _say(f"recorded {result.metrics['frames']['sent']} frames in {place}; decide with: semair replay {place}")
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
    from .blocks.playback import PlayOptions
    from .flowgraphs.run import replay_recording, replay_run

    # Where a replay stopped is told with its result.
    logging.getLogger("semair.blocks.sigmf_source").setLevel(logging.ERROR)
    play = PlayOptions(
        channels=_channel_list(channels),
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
    with _frame_progress("slots", quiet=as_json) as on_progress:
        if scenario is None:
            result = replay_run(
                path, detector=detector, options=_options(option), play=play, speed=speed, on_progress=on_progress
            )
        else:
            chosen = _scenario(scenario, _with_detector(settings, detector, option))
            place = folder or _new_folder(f"replay-{path.name.partition('.')[0]}")
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
            _say(f"{result.extra} slots decided, in {result.folder.path}")
        _show_playback(result.playback)
        out.print(f"{result.air_s:.2f} s of air in {result.wall_s:.2f} s")
    if result.interrupted:
        raise typer.Exit(INTERRUPTED)


@virtual_app.command(
    "pluto",
    epilog="Examples: semair virtual pluto | semair virtual pluto 127.0.0.1 127.0.0.2 --ppm 2 --ppm -1 | "
    "semair virtual pluto 127.0.0.3 --model ad9361 --channel rayleigh --delay-spread 2e-7 --path-gain -20",
)
def virtual_pluto(
    addresses: Annotated[
        list[str] | None,
        typer.Argument(help="Addresses of this machine, one radio each, ADDRESS or ADDRESS:PORT; default 127.0.0.1."),
    ] = None,
    model: Annotated[str, typer.Option(help="pluto (one chain each way) or ad9361 (two).")] = "pluto",
    seed: Annotated[int, typer.Option(help="Of noise, phases and channel.")] = 0,
    noise: Annotated[float, typer.Option(help="Noise power per sample at each receiver's port, dBFS.")] = -80.0,
    path_gain: Annotated[float, typer.Option(help="Of every path, dB.")] = 0.0,
    channel: Annotated[str, typer.Option(help="none, rayleigh or clustered.")] = "none",
    delay_spread: Annotated[float, typer.Option(help="Of the channel, rms, seconds.")] = 0.0,
    ppm: Annotated[
        list[float] | None, typer.Option(help="Error of a radio's crystal; once per radio, in order.")
    ] = None,
    fixed_phase: Annotated[
        bool, typer.Option("--fixed-phase", help="Oscillators start at phase 0, not at one of their own per tuning.")
    ] = False,
    stepped: Annotated[
        bool, typer.Option("--stepped", help="Time passes as the first radio's samples are taken, not by itself.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Be one or more Plutos, or AD9361 boards, on one air, until Ctrl-C."""
    from contextlib import ExitStack
    from threading import Event

    from .hardware.virtual.ad9361 import open_radios
    from .hardware.virtual.air import VirtualAir
    from .hardware.virtual.clock import SteppedClock
    from .models.channels import ChannelConfig

    places = addresses or ["127.0.0.1"]
    air = VirtualAir(
        SteppedClock(places[0]) if stepped else None,
        seed=seed,
        noise_power=10 ** (noise / 10),
        path_gain_db=path_gain,
        random_phase=not fixed_phase,
    )
    if channel != "none" or delay_spread:
        try:
            air.draw_channel(ChannelConfig.model_validate({"kind": channel, "delay_spread_s": delay_spread}))
        except ValueError as error:
            raise ScenarioError(f"--channel {channel}: {explain_validation(error)}") from None
    with ExitStack() as running:
        radios = [running.enter_context(radio) for radio in open_radios(air, places, model, ppm or [])]
        if as_json:
            print(json.dumps({"uris": [radio.uri for radio in radios]}), flush=True)
        else:
            for radio in radios:
                _say(f"{radio.model.name} at {radio.uri}")
            _say(f"try it: iio_info -u {radios[0].uri}    end it: Ctrl-C")
        Event().wait()


@virtual_app.command(
    "n210",
    epilog="Examples: semair virtual n210 | semair virtual n210 127.0.0.1 127.0.0.2 --mimo | "
    "semair virtual n210 127.0.0.5 127.0.0.6 --ppm 2 --ppm -1.5 --path-gain -20",
)
def virtual_n210(
    addresses: Annotated[
        list[str] | None, typer.Argument(help="Addresses of this machine, one unit each; default 127.0.0.1.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of noise and phases.")] = 0,
    noise: Annotated[float, typer.Option(help="Noise power per sample at each receiver's port, dBFS.")] = -80.0,
    path_gain: Annotated[float, typer.Option(help="Of every path, dB.")] = 0.0,
    ppm: Annotated[
        list[float] | None, typer.Option(help="Error of a unit's reference; once per unit, in order.")
    ] = None,
    pps_error: Annotated[
        list[int] | None, typer.Option(help="Ticks of 10 ns by which a unit sees the pulse late; once per unit.")
    ] = None,
    mimo: Annotated[bool, typer.Option("--mimo", help="A MIMO cable from the first unit to each other.")] = False,
    fixed_phase: Annotated[
        bool, typer.Option("--fixed-phase", help="Oscillators start at phase 0, not at one of their own per tuning.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Be one or more USRP N210 with SBX on one air, until Ctrl-C."""
    from contextlib import ExitStack
    from threading import Event

    from .hardware.virtual.air import VirtualAir
    from .hardware.virtual.n210 import VirtualN210

    air = VirtualAir(seed=seed, noise_power=10 ** (noise / 10), path_gain_db=path_gain, random_phase=not fixed_phase)
    units: list[VirtualN210] = []
    with ExitStack() as running:
        for k, address in enumerate(addresses or ["127.0.0.1"]):
            unit = VirtualN210(
                air,
                address,
                ppm=ppm[k] if ppm and k < len(ppm) else 0.0,
                pps_error_ticks=pps_error[k] if pps_error and k < len(pps_error) else 0,
                mimo_master=units[0] if mimo and units else None,
            )
            units.append(running.enter_context(unit))
        several = [f"addr{k}={unit.address}" for k, unit in enumerate(units)]
        arguments = ",".join(["type=usrp2", *several]) if several[1:] else f"type=usrp2,addr={units[0].address}"
        if as_json:
            print(json.dumps({"args": arguments, "serials": [unit.serial for unit in units]}), flush=True)
        else:
            for unit in units:
                _say(f"virtual N210 {unit.serial} at {unit.address}")
            _say(f'try it: uhd_usrp_probe --args "{arguments}"    end it: Ctrl-C')
        try:
            Event().wait()
        finally:
            for unit in units if not as_json else ():
                counted = ", ".join(f"{name} {n}" for name, n in sorted(unit.counts.items()) if n)
                err.print(f"{unit.address}: {counted or 'nothing happened'}", highlight=False)


@app.command(
    epilog="Examples: semair transmit runs/demo/tx-beacon.sigmf-meta --radio loopback --frequency 3.5e9 --gain -20 "
    "--level -15 | semair transmit runs/demo/tx-beacon.sigmf-meta --radio loopback --frequency 3.5e9 --gain -20 "
    "--level -15 --really CODE"
)
def transmit(
    recording: Annotated[Path, typer.Argument(help="A waveform that a run here recorded of what it sent (tx-...).")],
    radio: Annotated[str, typer.Option(help="Kind of radio, see `semair radios`.")],
    frequency: Annotated[float, typer.Option(help="Centre frequency, Hz; never taken from the recording.")],
    gain: Annotated[float | None, typer.Option(help="Transmit gain, dB; never taken from the recording.")] = None,
    address: Annotated[str, typer.Option(help="Which radio of this kind, see `semair radios`.")] = "",
    level: Annotated[
        float | None, typer.Option(help="Scale to this mean power, dBFS, at most -12; default: as recorded.")
    ] = None,
    channels: Annotated[str | None, typer.Option(help="Recorded channels to send, in this order, e.g. 1,0.")] = None,
    loop: Annotated[int, typer.Option(help="Turns.")] = 1,
    frame: Annotated[int | None, typer.Option(help="Send whole frames of this many samples only.")] = None,
    frame_start: Annotated[int, typer.Option(help="Sample at which a frame begins.")] = 0,
    duration: Annotated[float | None, typer.Option(help="End after so many seconds.")] = None,
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
    from .flowgraphs import transmit as sender
    from .hardware.site import find_site_file, load_site

    site_file = site or find_site_file()
    rules = None if site_file is None else load_site(site_file)
    request = sender.Request(
        recording=recording,
        kind=radio,
        address=address,
        frequency_hz=frequency,
        gain_db=gain,
        level_dbfs=level,
        channels=_channel_list(channels),
        turns=loop,
        frame_samples=frame,
        frame_start=frame_start,
        duration_s=duration,
    )
    with _share_progress("planning", quiet=as_json) as on_progress:
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
                _say(f"refused     {refusal}")
        else:
            _say(f"nothing was sent; send it with the same command and --really {plan.code}")
        if refusals:
            raise typer.Exit(RadioError.exit_code)
        return
    place = log or (rules.log if rules is not None else None) or sender.default_log()
    with _share_progress("transmitting", quiet=as_json) as on_progress:
        sent = sender.transmit(plan, really, device, waveform, place, on_progress=on_progress)
    if as_json:
        print(json.dumps({"sent": True, "plan": plan.as_dict(), **vars(sent), "log": str(place)}))
    else:
        _say(f"sent        {sent.samples} samples in {sent.seconds:.2f} s, silence included; see {place}")
        for name, count in sent.counts.items():
            _say(f"            {name.replace('_', ' ')} {count}")
    if sent.interrupted:
        raise typer.Exit(INTERRUPTED)


@app.command(
    epilog="Examples: semair calibrate lab.calibration.json | semair run random-access "
    "--set radio.calibration=lab.calibration.json | semair calibrate n210.calibration.json --set radio.kind=uhd --set "
    'radio.address="type=usrp2,addr=127.0.0.1" --set frame.sample_rate_hz=1e6 --set radio.n_antennas=1 --tx-gain 10'
)
def calibrate(
    path: Annotated[Path, typer.Argument(help="File to write, NAME.calibration.json; the recording gets its name.")],
    scenario: ScenarioOption = "lab",
    method: Annotated[
        str,
        typer.Option(
            help="splitter: one transmit chain into all receive chains, cables of equal length; antennas: each into "
            "each, for reciprocity."
        ),
    ] = "splitter",
    tx_chain: Annotated[int, typer.Option(help="Transmit chain that sends into the splitter.")] = 0,
    reference: Annotated[int, typer.Option(help="Receive chain against which the others are measured.")] = 0,
    tx_gain: Annotated[float | None, typer.Option(help="Transmit gain, dB; default: the lowest.")] = None,
    rx_gain: Annotated[float | None, typer.Option(help="Receive gain of every chain, dB; default: the radio's.")] = (
        None
    ),
    level: Annotated[float, typer.Option(help="Mean power of what is sent, dBFS, at most -12.")] = -13.0,
    valid_for: Annotated[float, typer.Option(help="Seconds for which the calibration may be used.")] = 3600.0,
    settings: SetOption = None,
    site: Annotated[
        Path | None,
        typer.Option(help="What is permitted here; default ./semair-site.toml or ~/.config/semair/site.toml."),
    ] = None,
    log: Annotated[Path | None, typer.Option(help="Takes a line per transmission; default: the site's.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure delay, phase, gain, IQ imbalance and DC of a radio's receive chains, and keep them in a file.

    Transmits a wide-band sequence of 0.1 s: join the radio by cables, attenuators and a splitter. The loopback radio is
    given its splitter; on radios that leave the machine, only what the site file permits is sent.
    """
    from .flowgraphs import calibrate as calibrator
    from .flowgraphs.transmit import default_log
    from .hardware.site import find_site_file, load_site

    if method not in ("splitter", "antennas"):
        raise ScenarioError(f"--method {method!r} is not known; choose splitter or antennas")
    chosen = _scenario(scenario, settings)
    site_file = site or find_site_file()
    rules = None if site_file is None else load_site(site_file)
    place = log or (rules.log if rules is not None else None) or default_log()
    options = calibrator.Options(
        method=method,  # type: ignore[arg-type]
        tx_chain=tx_chain,
        reference=reference,
        tx_gain_db=tx_gain,
        rx_gain_db=rx_gain,
        level_dbfs=level,
        valid_s=valid_for,
    )
    with _share_progress("calibrating", quiet=as_json) as on_progress:
        found = calibrator.calibrate(chosen, path, options, site=rules, log=place, on_progress=on_progress)
    if as_json:
        print(found.model_dump_json())
        return
    _show_calibration(found)
    _say(f"calibration {path}, until {found.valid.until.astimezone():%Y-%m-%d %H:%M}")
    if found.valid.tune is not None:
        out.print("[yellow]phases      hold for this tuning alone, which has ended; all else holds longer[/]")
    _say(f"use it      semair run random-access -s {scenario} --set radio.calibration={path}")


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
        _say(f"report  {path}")


@app.command(
    epilog="Examples: semair doctor | semair doctor --json | semair doctor --radio uhd:addr=192.168.10.2 | "
    "semair doctor --radio iio:ip:192.168.2.1 --rate 1e6 --rate 2.5e6 --frequency 2.4e9"
)
def doctor(
    folder: Annotated[Path, typer.Option(help="Where recordings would go.")] = Path(),
    radio: Annotated[
        str | None,
        typer.Option(metavar="KIND[:ADDRESS]", help="Listen to this radio, too: locks, and rates without losses."),
    ] = None,
    rate: Annotated[
        list[float] | None, typer.Option(help="Sample rate to try, Hz; repeat for more; default 1e6 to 20e6.")
    ] = None,
    frequency: Annotated[float, typer.Option(help="Centre frequency to listen at, Hz.")] = 2.4e9,
    channels: Annotated[int, typer.Option(min=1, help="Receive channels to listen with.")] = 1,
    seconds: Annotated[float, typer.Option(min=0.1, max=20.0, help="To listen at each rate.")] = 2.0,
    as_json: JsonFlag = False,
) -> None:
    """Examine this machine and say how to mend what does not fit. Nothing is transmitted."""
    from .hardware.doctor import RadioRequest, examine

    request = None
    if radio is not None:
        kind, _, address = radio.partition(":")
        request = RadioRequest(kind, address, frequency_hz=frequency, n_rx=channels, seconds=seconds)
        request = replace(request, rates_hz=tuple(sorted(rate))) if rate else request
    elif rate:
        raise ScenarioError("--rate is for a radio; name it with --radio KIND:ADDRESS")
    with _share_progress("examining", quiet=as_json) as on_progress:
        checks = examine(folder, on_progress=on_progress, radio=request)
    if as_json:
        print(json.dumps([vars(check) for check in checks]))
    else:
        colours = {"ok": "green", "warning": "yellow", "failure": "red"}
        table = Table("check", "")
        for column in ("found", "what to do"):
            table.add_column(column, overflow="fold")
        for check in checks:
            table.add_row(
                check.name, f"[{colours[check.status]}]{check.status}[/]", escape(check.found), escape(check.remedy)
            )
        out.print(table)
    if any(check.status == "failure" for check in checks):
        raise typer.Exit(5)


@app.command(epilog="Examples: semair radios | semair radios --kind uhd --json")
def radios(
    kind: Annotated[list[str] | None, typer.Option(help="Only radios of this kind; repeat for more.")] = None,
    limit: Annotated[float, typer.Option(help="Seconds after which a driver is given up.")] = 20.0,
    as_json: JsonFlag = False,
) -> None:
    """List the radios that can be opened, and the drivers that could not look for theirs."""
    from .hardware.discover import search

    with _share_progress("looking for radios", quiet=as_json):
        found = search(kind, limit)
    if as_json:
        print(json.dumps([vars(info) for info in found.radios]))
    else:
        table = Table("kind", "address", "description", "facts")
        for info in found.radios:
            facts = ", ".join(f"{k} {v}" for k, v in info.facts.items())
            table.add_row(*map(escape, (info.kind, info.address, info.description, facts)))
        out.print(table)
    for name, problem in found.problems.items():
        err.print(f"[yellow]{escape(name)}[/]: {escape(problem)}", highlight=False)


@app.command(
    epilog="Examples: semair serve loopback | semair serve replay:runs/demo/bs-rx.sigmf-meta | "
    'semair serve "uhd:type=usrp2,addr=192.168.10.2" --listen tcp://10.0.0.5:5900 | elsewhere: semair run '
    "random-access --set radio.kind=zmq --set radio.address=tcp://10.0.0.5:5900"
)
def serve(
    radio: Annotated[str, typer.Argument(metavar="KIND[:ADDRESS]", help="A radio here, see `semair radios`.")],
    listen: Annotated[
        str, typer.Option(help="Address to listen at. Whoever can reach it can use the radio; * takes a free port.")
    ] = "tcp://127.0.0.1:5900",
    drop: Annotated[
        bool | None,
        typer.Option(
            "--drop/--wait",
            help="Leave samples out, counted and marked, where a client is too slow, or let the radio wait; default: "
            "wait for radios that can.",
        ),
    ] = None,
    transmit: Annotated[
        bool, typer.Option("--transmit", help="Let clients transmit on a radio that leaves this machine; needs a site.")
    ] = False,
    site: Annotated[
        Path | None,
        typer.Option(help="What is permitted here; default ./semair-site.toml or ~/.config/semair/site.toml."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Offer a radio of this machine to one client at a time, until Ctrl-C."""
    from threading import Event

    from .hardware.serving import RadioServer
    from .hardware.site import find_site_file, load_site

    kind, _, address = radio.partition(":")
    site_file = site or find_site_file()
    rules = load_site(site_file) if transmit and site_file is not None else None

    def tell(line: str) -> None:
        err.print(line, highlight=False, markup=False)

    with RadioServer(kind, address, listen, may_drop=drop, transmit=transmit, site=rules, tell=tell) as server:
        if as_json:
            print(json.dumps({"kind": "zmq", "address": server.endpoint, "serves": radio}), flush=True)
        else:
            _say(f"{radio} at {server.endpoint}")
            if not server.is_local:
                err.print("[yellow]whoever can reach this address can use the radio[/]")
            _say(f"use it: --set radio.kind=zmq --set radio.address={server.endpoint}    end it: Ctrl-C")
        Event().wait()


@app.command(epilog="Examples: semair grc | semair grc random_access_loopback | semair grc --print >> ~/.bashrc")
def grc(
    flowgraph: Annotated[
        str | None, typer.Argument(help="Name of a shipped flowgraph, or a .grc file; none: an empty one.")
    ] = None,
    only_print: Annotated[bool, typer.Option("--print", help="Print the environment instead of starting.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Start GNU Radio Companion with the semair blocks on its path."""
    from .flowgraphs import companion

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
    from .flowgraphs.benchmarks import run_area

    entries: list[dict[str, Any]] = []
    try:
        with _share_progress(area, quiet=as_json) as on_progress:
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


@train_app.command(
    "uad",
    epilog="Examples: semair train uad --config vpl | semair train uad --config mine.toml --folder runs/mine "
    "--minutes 30 | semair train uad --config vpl --folder runs/vpl --resume | semair train uad --config vpl-full "
    "--device cuda | semair train uad --from runs/monday --from runs/tuesday --keep-out runs/friday",
)
def train_uad(
    config: Annotated[
        str | None, typer.Option("--config", "-c", help="Name of a shipped configuration, or path of a TOML file.")
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Where model, card and curve go; default runs/uad-NAME.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    minutes: Annotated[
        float | None, typer.Option(help="Train for this long: the schedule is fitted to it, and steps do not count.")
    ] = None,
    recordings: Annotated[
        list[Path] | None, typer.Option("--from", help="Fine-tune with the recording of this run; repeat for more.")
    ] = None,
    keep_out: Annotated[
        list[Path] | None,
        typer.Option("--keep-out", help="Judge by this run, never trained with; default: the last of several --from."),
    ] = None,
    weights: Annotated[
        str, typer.Option(help="Fine-tuning: weights to begin with, a name such as uad-lab or a folder.")
    ] = "uad-lab",
    steps: Annotated[int, typer.Option(min=1, help="Fine-tuning: steps.")] = 600,
    share: Annotated[float, typer.Option(help="Fine-tuning: share of steps that take recorded slots.")] = 0.75,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the folder's checkpoint.")] = False,
    overwrite: OverwriteFlag = False,
    show_configs: Annotated[bool, typer.Option("--list", help="List the shipped configurations.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train an activity detector on slots that are drawn afresh in every step.

    With --from, trained weights are fine-tuned with the slots of recorded runs, and compared with what they were on
    runs that were kept out. Ctrl-C leaves a checkpoint, from which --resume goes on exactly as if nothing had been.
    """
    if recordings:
        if config is not None or minutes is not None:
            raise ScenarioError("--from fine-tunes given --weights for some --steps; leave out --config and --minutes")
        place = folder or Path("runs") / f"{Path(weights).name}-tuned"
        _fine_tune(recordings, keep_out, weights, place, steps, share, device, resume, overwrite, as_json)
        return
    if keep_out:
        raise ScenarioError("--keep-out goes with --from, the runs to train with")
    from .models.uad.train import load_config, shipped_configs, train

    if show_configs:
        found = {name: load_config(name).description for name in shipped_configs()}
        if as_json:
            print(json.dumps(found))
        for name, description in found.items() if not as_json else ():
            _say(f"{name}: {description}")
        return
    if config is None:
        raise ScenarioError(f"--config is missing; give a TOML file or one of: {', '.join(shipped_configs())}")
    chosen = load_config(config)
    place = folder or Path("runs") / f"uad-{chosen.name}"
    command = f"semair train uad --config {config}"
    if minutes is not None:
        command += f" --minutes {minutes:g}"
    if device != "cpu":
        command += f" --device {device}"
    with _training_progress(quiet=as_json) as on_progress:
        done = train(
            chosen,
            place,
            device=device,
            minutes=minutes,
            resume=resume,
            overwrite=overwrite,
            on_progress=on_progress,
            command=command,
        )
    card = done.card
    if as_json:
        metrics = None if card is None else [metric.model_dump(mode="json") for metric in card.metrics]
        print(json.dumps({"folder": str(place), "steps": done.steps, "finished": card is not None, "metrics": metrics}))
    elif card is not None:
        table = Table("preamble length", "slots", "error probability", "95 %", "missed", "false alarms")
        for metric in card.metrics:
            at = metric.conditions
            table.add_row(
                str(at["length"]),
                str(at["slots"]),
                f"{metric.value:.2e}",
                f"{metric.low:.1e} to {metric.high:.1e}",
                f"{at['missed']:.2e}",
                f"{at['false_alarms']:.2e}",
            )
        out.print(table)
        _say(f"model       {place}, {card.network.n_parameters} parameters, {card.training.time_s:.0f} s")
    if card is None:
        err.print(f"checkpoint at step {done.steps} in {place}; go on with --resume", markup=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED)


def _fine_tune(
    recordings: list[Path],
    keep_out: list[Path] | None,
    weights: str,
    place: Path,
    steps: int,
    share: float,
    device: str,
    resume: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    from .flowgraphs.uad_slots import recorded_sets
    from .models.uad.fine_tune import fine_tune, weights_folder

    if not keep_out and len(recordings) < 2:
        raise ScenarioError(
            "one run alone cannot be trained with and judged by: give another with --keep-out, or several with --from"
        )
    chosen = (recordings, keep_out) if keep_out else (recordings[:-1], recordings[-1:])
    source = weights_folder(weights)
    with _share_progress("receiving", quiet=as_json) as on_share:
        training, judging = recorded_sets(*chosen, on_share)
    parts = ["semair train uad", *(f"--from {path}" for path in chosen[0]), *(f"--keep-out {p}" for p in chosen[1])]
    command = " ".join([*parts, f"--weights {weights} --steps {steps} --share {share:g}"])
    with _training_progress(quiet=as_json) as on_progress:
        done, rows = fine_tune(
            source,
            training,
            judging,
            place,
            steps=steps,
            share=share,
            device=device,
            resume=resume,
            overwrite=overwrite,
            on_progress=on_progress,
            command=command,
        )
    if as_json:
        content = {"folder": str(place), "steps": done.steps, "finished": done.card is not None}
        print(json.dumps({**content, "comparison": [row.as_dict() for row in rows]}))
    elif done.card is not None:
        table = Table("preamble length", "slots", "before", "after", "change", "95 %", title="runs kept out")
        for row in rows:
            table.add_row(
                "all" if row.length is None else str(row.length),
                str(row.slots),
                f"{row.before.value:.2e}",
                f"{row.after.value:.2e}",
                f"{row.change.value:+.1e}",
                f"{row.change.low:+.1e} to {row.change.high:+.1e}",
            )
        out.print(table)
        overall = rows[0].change
        verdict = "better" if overall.high < 0 else "worse" if overall.low > 0 else "no different within the interval"
        _say(f"after fine-tuning: {verdict}")
        _say(f"model       {place}; use it with --detector {place}")
    if done.card is None:
        err.print(f"checkpoint at step {done.steps} in {place}; go on with --resume", markup=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED)


@evaluate_app.command(
    "uad",
    epilog="Examples: semair evaluate uad --quick | semair evaluate uad --sweep length --sweep pool | "
    "semair evaluate uad -d cd -d runs/models/mine --slots 5000 --folder runs/mine-against-cd",
)
def evaluate_uad(
    detector: Annotated[
        list[str] | None, typer.Option("--detector", "-d", help="Names, or paths of trained weights; default all.")
    ] = None,
    sweep: Annotated[
        list[str] | None, typer.Option(help="length, snapshots, activity, snr, channel, pool; default all.")
    ] = None,
    slots: Annotated[
        int | None, typer.Option(help="Slots of a condition; more where errors are rare, fewer for slow detectors.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all draws.")] = 1,
    folder: Annotated[Path | None, typer.Option(help="For the results; default runs/evaluate-uad-TIME.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer conditions and slots.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Compare activity detectors on the same draws: over preamble length, snapshots, activity, SNR, channel and pool.

    Leaves evaluation.json, evaluation.html with all figures, and error-over-length.png. Ctrl-C keeps what is done.
    """
    from .flowgraphs.uad_figures import PAGE_NAME, table, write_evaluation
    from .models.uad import sweeps

    known = sweeps.sweeps(quick)
    for name in sweep or ():
        if name not in known:
            raise ScenarioError(f"--sweep {name!r} is unknown; choose among: {', '.join(known)}")
    chosen = [known[name] for name in sweep or known]
    contenders = sweeps.contenders(detector)
    evaluation = sweeps.Evaluation(contenders, slots or (100 if quick else 2000), seed)
    place = folder or _new_folder("evaluate-uad")
    settings = {
        "detectors": ", ".join(one.setup.title for one in contenders),
        "slots": evaluation.n_slots,
        "seed": seed,
        "users": sweeps.Condition().n_users,
    }
    results: dict[str, list[Any]] = {one.name: [] for one in chosen}
    total, done, interrupted = sum(sum(one.slots) for one in chosen), 0.0, False
    try:
        with _share_progress("evaluating", quiet=as_json) as on_progress:
            for one in chosen:
                for condition, multiple in zip(one.conditions, one.slots, strict=True):
                    text = f"{one.name}, {one.axis} {getattr(condition, one.axis)}"

                    def tell(share: float, text: str = text, done: float = done, multiple: float = multiple) -> None:
                        on_progress(text, (done + share * multiple) / total)

                    tell(0.0)
                    results[one.name] += evaluation.rows(condition, multiple, one.curves, tell)
                    done += multiple
                    write_evaluation(sweeps.as_json(results, settings), place, figures=False)
    except KeyboardInterrupt:
        interrupted = True
    content = sweeps.as_json(results, settings)
    write_evaluation(content, place)
    if as_json:
        print(json.dumps({"folder": str(place), **content}))
    else:
        for name, rows in content["sweeps"].items():
            if rows:
                header, *lines = table(name, rows)
                shown = Table(*header, title=escape(name))
                for line in lines:
                    shown.add_row(*line)
                out.print(shown)
        _say(f"figures     {place / PAGE_NAME}")
    if interrupted:
        err.print("everything up to here is in the folder")
        raise typer.Exit(INTERRUPTED)


@capture_app.command("verify", epilog="Example: semair capture verify runs/demo")
def capture_verify(
    path: Annotated[Path, typer.Argument(help="A recording, a collection, or a folder.")],
    as_json: JsonFlag = False,
) -> None:
    """Check recordings: schemas, hashes, missing streams, cut files, gaps, leftovers of a crash."""
    from .captures.verify import verify

    findings = verify(path)
    if as_json:
        print(json.dumps([{**vars(finding), "file": str(finding.file)} for finding in findings]))
    else:
        for finding in findings:
            _say(f"{finding.severity}: {finding.file}: {finding.field}: {finding.message}")
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
    from .captures.channels import channel_files
    from .flowgraphs.channel_replay import estimate_run

    place = to or run / "bs-rx"
    if channel_files(place)[0].exists() and not overwrite:
        raise ScenarioError(f"{channel_files(place)[0]} exists; choose another --out, or add --overwrite to replace it")
    with _share_progress("channels", quiet=as_json) as on_progress:
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
    _say(f"{quality['links']} links of {quality['users']} users in {quality['frames']} frames: {written}")
    _say(f"put frames on it   semair run random-access --channel {written}")


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
    from .flowgraphs.recording import find_recorded_losses
    from .flowgraphs.runfolder import RunFolder

    path = RunFolder(recording).recording
    path = path if path.is_file() else recording
    with _share_progress("searching", quiet=as_json) as on_progress:
        losses, heard = find_recorded_losses(
            path, _scenario(scenario, settings), write=write, on_share=lambda share: on_progress("frames", share)
        )
    if as_json:
        print(json.dumps({"frames": heard, "losses": [vars(loss) for loss in losses], "written": write}))
        return
    for loss in losses:
        _say(f"{loss.lost_samples} samples lost between samples {loss.earliest_start} and {loss.sample_start}")
    _say(f"{len(losses)} losses in {heard} frames heard")
    if not heard:
        err.print(f"no frame of scenario {scenario} was heard, so nothing can be said; name the scenario that was sent")


@capture_app.command("recover", epilog="Example: semair capture recover runs/crashed")
def capture_recover(
    folder: Annotated[Path, typer.Argument(help="Folder with what a crash left behind.")],
    as_json: JsonFlag = False,
) -> None:
    """Make readable recordings of what a crash or a full disk left behind; originals are never altered."""
    from .captures.recover import recover

    found = recover(folder)
    if as_json:
        print(json.dumps([{"name": item.name, "samples": item.n_samples} for item in found]))
        return
    for item in found:
        _say(f"recovered {item.name}: {item.n_samples} samples per channel")
    if not found:
        _say(f"nothing to recover in {folder}")


PLACE_HELP = "Sample, or time since the first one such as 1.5s, 20ms, 3us; negative: from the end."


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
    from .captures.catalogue import catalogue, parse_date, select

    earliest = None if since is None else parse_date(since)
    listed: list[dict[str, Any]] = []
    for folder in folders or [Path()]:
        with _share_progress("looking", quiet=as_json) as on_progress:
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
            "?" if row["duration_s"] is None else _duration(row["duration_s"]),
            f"{row['gaps']} ({row['lost_samples']})" if row["gaps"] else "0",
            "" if row["snr_db"] is None else f"{row['snr_db']:.1f} dB",
            " ".join(marks),
        )
    (out if out.is_terminal else Console(width=200)).print(table)
    _say(f"{len(listed)} recordings (~: date of the file; gaps: number and lost samples)")
    for row in listed:
        if row["problem"]:
            _say(f"cannot be opened: {row['problem']}")


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
    from .captures.inspection import measure_levels, summary
    from .captures.reader import Recording

    opened = Recording.open(recording)
    if picture is None and open_picture:
        picture = Path(f"{opened.name}.png")
    share = 1.0 if picture is None else 0.7
    with _share_progress("reading", quiet=as_json) as on_progress:
        levels = measure_levels(opened, on_share=lambda done: on_progress("levels", done * share))
        if picture is not None:
            from .flowgraphs.capture_pictures import draw_recording

            draw_recording(opened, levels, picture, on_share=lambda done: on_progress("picture", 0.7 + 0.3 * done))
    facts = summary(opened, levels)
    if as_json:
        print(json.dumps({**facts, "picture": None if picture is None else str(picture)}))
    else:
        _show_recording(facts)
        if picture is not None:
            _say(f"picture     {picture}")
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
    from .captures.reader import Recording
    from .captures.trim import place_in, trim

    source = Recording.open(recording)
    first, last = place_in(source, start), source.n_samples if stop is None else place_in(source, stop)
    with _share_progress("copying", quiet=as_json) as on_progress:
        done = trim(
            source, first, last, name=name, folder=folder, check=check, overwrite=overwrite,
            on_share=lambda share: on_progress(source.name, share),
        )  # fmt: skip
    if as_json:
        print(json.dumps({"recording": str(done.meta_path), "samples": done.n_samples}))
    else:
        _say(f"{done.meta_path}: {done.n_samples} samples per channel, from sample {first} of {source.name}")


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
    from .captures import export
    from .captures.archive import archive
    from .captures.reader import Recording

    formats = {"channels": export.per_channel, "numpy": export.to_numpy, "hdf5": export.to_hdf5}
    if to not in (*formats, "archive"):
        raise ScenarioError(f"--to {to!r} is unknown; choose one of: {', '.join((*formats, 'archive'))}")
    name = path.resolve().name.split(".sigmf-")[0]
    with _share_progress("exporting", quiet=as_json) as on_progress:

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
        _say(f"exported {made}")


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
    from .captures.importing import RawFormat, import_file

    raw = RawFormat(datatype, rate, channels, frequency, header_bytes, drop_rest)
    with _share_progress("importing", quiet=as_json) as on_progress:
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
        _say(f"{item.meta_path}: {item.n_channels} channels, {item.n_samples} samples, {item.datatype}, {rate_text}")
    if done.collection is not None:
        _say(f"{done.collection}")
    for note in done.notes:
        _say(f"note: {note}")


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
    from .captures.labels import add_label, remove_label
    from .captures.reader import Recording
    from .captures.trim import place_in

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
            _say(f"changed {path}")


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
    from .blocks.waveforms.references import load_reference
    from .flowgraphs.preamble_replay import compare_with_annotations, find_preambles

    with _share_progress("searching", quiet=as_json) as on_progress:
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


def _channel_list(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ScenarioError(f"--channels {text!r} is no list of channel numbers, e.g. 2,0,1") from error


def _with_detector(settings: list[str] | None, detector: str | None, option: list[str] | None) -> list[str]:
    """Overrides of a scenario with another detector among them."""
    overrides = list(settings or [])
    if detector is not None:
        overrides += [f'detector.name="{detector}"', "detector.options={}"]
    return overrides + [f"detector.options.{text}" for text in option or []]


def _show_plan(plan: sender.Plan, site_file: Path | None) -> None:
    """Everything about a transmission that is planned."""
    request, emission, judged = plan.request, plan.emission, plan.judgement
    table = Table("transmission", "", title=escape(f"{request.recording} over {request.kind} {request.address}"))
    table.add_row("waveform", f"{plan.role}, {emission.duration_s:.6g} s, turns {request.turns}")
    table.add_row("band", f"{emission.low_hz:.10g} to {emission.high_hz:.10g} Hz")
    table.add_row("level", f"mean {emission.level_dbfs:.1f} dBFS, peak {emission.peak:.3f} of full scale")
    if plan.gains_db:
        table.add_row("gain", " ".join(f"{gain:g}" for gain in plan.gains_db) + " dB")
    table.add_row("path", judged.path)
    if judged.power_dbm is not None:
        table.add_row("power", f"{judged.power_dbm:.1f} dBm at the port")
    if judged.band is not None and judged.eirp_dbm is not None:
        allowed = f"{judged.band.max_eirp_dbm:g} dBm permitted in {judged.band.name}"
        table.add_row("EIRP", escape(f"{judged.eirp_dbm:.1f} dBm, {allowed} ({judged.band.basis})"))
    table.add_row("site", escape("none" if site_file is None else f"{plan.site}, {site_file}"))
    out.print(table)


def _show_calibration(found: calibrations.Calibration) -> None:
    """Errors of the chains, and what correction leaves of them."""
    table = Table(
        "chain", "delay, samples", "phase, deg", "gain, dB", "IQ, dB / deg", "image, dBc", "DC, dBFS", "SNR, dB",
        title=escape(f"{found.radio.kind} {found.radio.address}, against chain {found.reference}"),
    )  # fmt: skip
    for number, (chain, left) in enumerate(zip(found.chains, found.residual, strict=True)):
        table.add_row(
            str(number),
            f"{chain.delay_samples:+.4f}",
            f"{chain.phase_deg:+.2f}",
            f"{chain.gain_db:+.3f}",
            f"{chain.iq_gain_db:+.3f} / {chain.iq_phase_deg:+.2f}",
            f"{chain.image_dbc:.1f}",
            f"{chain.dc_dbfs:.1f}",
            f"{chain.snr_db:.1f}",
        )
        table.add_row(
            "after",
            f"{left.delay_samples:+.4f}",
            f"{left.phase_deg:+.2f}",
            f"{left.gain_db:+.3f}",
            "",
            f"{left.image_dbc:.1f}",
            f"{left.dc_dbfs:.1f}",
            "",
        )
    out.print(table)
    out.print(f"mismatch    {found.mismatch_db:.1f} dB after correction, noise included")
    if found.turnaround is not None:
        clock = "the radio's clock" if found.turnaround.timed else "count of samples"
        out.print(
            f"turnaround  {found.turnaround.samples:.2f} samples, {_duration(found.turnaround.seconds)}, by {clock}"
        )
    if found.transmitter is not None:
        sender = found.transmitter
        out.print(
            f"transmitter IQ {sender.iq_gain_db:+.3f} dB / {sender.iq_phase_deg:+.2f} deg, "
            f"carrier {sender.dc_dbc:.1f} dBc"
        )
    else:
        out.print("transmitter no carrier offset: its image and carrier count as the receiver's")
    if found.reciprocity is not None:
        each = zip(found.reciprocity.gain_db, found.reciprocity.phase_deg, strict=True)
        factors = ", ".join(f"{gain:+.2f} dB {phase:+.1f} deg" for gain, phase in each)
        out.print(f"reciprocity {factors}")


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


def _duration(seconds: float) -> str:
    for factor, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= factor:
            return f"{seconds / factor:.4g} {unit}"
    return f"{seconds * 1e6:.4g} us"


def _show_recording(facts: dict[str, Any]) -> None:
    for key, unit in (
        ("name", ""), ("datatype", ""), ("samples", ""), ("channels", ""), ("rate_hz", " Hz"), ("frequency_hz", " Hz"),
        ("duration_s", " s"), ("recorded", ""), ("state", ""), ("source", ""),
    ):  # fmt: skip
        value = facts[key]
        if value is not None:
            text = f"{value:.12g}" if isinstance(value, float) else value
            _say(f"{key.rsplit('_', 1)[0] if unit else key:<12}{text}{unit}")
    table = Table("channel", "rms dBFS", "peak dBFS", "noise floor", "DC dBFS", "clipped", "NaN or inf")
    for row in facts["levels"]:
        values = [row[key] for key in ("rms_dbfs", "peak_dbfs", "noise_floor_dbfs", "dc_dbfs")]
        shown = ["-inf" if value is None else f"{value:.1f}" for value in values]
        table.add_row(str(row["channel"]), *shown, str(row["clipped"]), str(row["nonfinite"]))
    out.print(table)
    for title in ("segments", "gaps", "annotations", "settings"):
        lines = facts[title]
        _say(f"{title}: {len(lines)}" if lines else f"{title}: none")
        for line in lines[:20]:
            _say(f"  {line}")
        if len(lines) > 20:
            _say(f"  ... and {len(lines) - 20} more: --json has all")


def _say(line: str) -> None:
    """Print a line that holds names of files: as it is, whatever brackets they have and however long they are."""
    out.print(line, markup=False, highlight=False, soft_wrap=True)


def _scenario(source: str, overrides: list[str] | None) -> Any:
    from .flowgraphs.scenario import load_scenario

    return load_scenario(source, overrides or [])


def _new_folder(name: str) -> Path:
    from datetime import datetime

    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def _report(folder: Path, quiet: bool) -> Path:
    from .flowgraphs.report import write_report

    with _share_progress("report", quiet=quiet) as on_progress:
        return write_report(folder, on_progress=on_progress)


def _options(texts: list[str] | None) -> dict[str, Any]:
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


@contextmanager
def _frame_progress(unit: str, quiet: bool) -> Iterator[Callable[[runner.Progress], None] | None]:
    """A live line for runs and replays."""
    if quiet:
        yield None
        return
    columns = (
        SpinnerColumn(),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(unit, total=None, state="starting (compiles at the first run)")

        def update(state: runner.Progress) -> None:
            watched = state.recorder.state() if state.recorder and not state.decided else None
            done = state.decided + state.dropped
            text = f"{unit} decided" if done else "receiving"
            if state.sent:
                text += f", {state.wrong} wrong user decisions"
            if state.dropped:
                text += f", [yellow]{state.dropped} dropped[/]"
            if watched is not None:
                text = f"{state.sent} frames sent, {watched}"
            bar.update(task, total=state.expected, completed=done or (0 if state.sent == 0 else None), state=text)

        yield update


@contextmanager
def _recorder_progress(quiet: bool) -> Iterator[Callable[[recorder.RecorderState], None] | None]:
    """A live line for recordings: rate, room on the disk, losses, clipping."""
    if quiet:
        yield None
        return
    columns = (SpinnerColumn(), BarColumn(bar_width=16), TextColumn("{task.description}"))
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("starting", total=None)

        def update(state: recorder.RecorderState) -> None:
            total = None if state.share is None else 1.0
            bar.update(task, description=str(state), total=total, completed=state.share)

        yield update


@contextmanager
def _training_progress(quiet: bool) -> Iterator[Callable[[trainer.Progress], None] | None]:
    """A live line for training: loss, error probability at shortest, middle and longest preamble, time left."""
    if quiet:
        yield None
        return
    columns = (SpinnerColumn(), BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("starting", total=1.0)
        logged: Mapping[int, float] = {}

        def update(state: trainer.Progress) -> None:
            nonlocal logged
            lengths = sorted(state.error)
            shown = sorted({lengths[0], lengths[len(lengths) // 2], lengths[-1]}) if lengths else []
            errors = ", ".join(f"L={length} {state.error[length]:.1e}" for length in shown) or "none yet"
            minutes, seconds = divmod(round(state.left_s), 60)
            text = f"step {state.step}, loss {state.loss:.4f}, error {errors}, {minutes}:{seconds:02d} left"
            bar.update(task, completed=state.share, description=text)
            # A log gets one line for every validation.
            if not err.is_terminal and state.error != logged:
                logged = state.error
                err.print(text, markup=False, highlight=False, soft_wrap=True)

        yield update


@contextmanager
def _share_progress(title: str, quiet: bool) -> Iterator[Callable[[str, float], None]]:
    """A live line for work that knows its share done."""
    if quiet:
        yield lambda _name, _share: None
        return
    text = TextColumn("{task.description}")
    columns = (SpinnerColumn(), text, BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(title, total=1.0)
        yield lambda name, share: bar.update(task, description=f"{title}: {name}", completed=share)


def _show_metrics(metrics: dict[str, Any], title: str) -> None:
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
    if "frames" in metrics:
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
        detect, total = latency["detect"], latency["total"]
        out.print(
            f"latency     detector {detect['p50']:.2f} ms (p99 {detect['p99']:.2f}), "
            f"frame start to decision {total['p50']:.0f} ms (p99 {total['p99']:.0f})"
        )
    for name, count in metrics.get("flagged", {}).items():
        from .models.uad.detectors import Flag

        out.print(f"[yellow]flagged     {count} slots: {Flag[name.upper()].meaning}[/]")
    lost = metrics["counts"].get("lost_samples", 0)
    if lost:
        out.print(f"[yellow]losses      {lost} samples in {metrics['counts']['gaps']} gaps[/]")


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


def main() -> None:
    """Entry point: errors a user can mend end as one line and an exit code, never as a traceback."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = app(prog_name="semair", standalone_mode=False)
    except SemairError as error:
        err.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        # Wrong usage. Where the classes of such errors live depends on the version of typer, what they have does not.
        if not (hasattr(error, "show") and hasattr(error, "exit_code")):
            raise
        error.show()
        code = error.exit_code
    if code == INTERRUPTED:
        err.print("stopped by Ctrl-C")
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()

"""Commands about radios: those that are there, those of other hosts, virtual ones, and their calibration."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ..errors import ScenarioError, explain_validation
from .common import (
    JsonFlag,
    RadioOption,
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
    from ..hardware import calibration as calibrations

virtual_app = typer.Typer(help="Start virtual radios, which real drivers connect to.", no_args_is_help=True)
app.add_typer(virtual_app, name="virtual")


@app.command(epilog="Examples: semair radios | semair radios --kind uhd --json")
def radios(
    kind: Annotated[list[str] | None, typer.Option(help="Only radios of this kind; repeat for more.")] = None,
    limit: Annotated[float, typer.Option(help="Seconds after which a driver is given up.")] = 20.0,
    as_json: JsonFlag = False,
) -> None:
    """List the radios that can be opened, and the drivers that could not look for theirs."""
    from ..hardware.discover import search

    with share_progress("looking for radios", quiet=as_json):
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
    "random-access --radio zmq:tcp://10.0.0.5:5900"
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

    from ..hardware.discover import named
    from ..hardware.serving import RadioServer
    from ..hardware.site import find_site_file, load_site

    kind, address = named(radio)
    site_file = site or find_site_file()
    rules = load_site(site_file) if transmit and site_file is not None else None

    def tell(line: str) -> None:
        err.print(line, highlight=False, markup=False)

    with RadioServer(kind, address, listen, may_drop=drop, transmit=transmit, site=rules, tell=tell) as server:
        if as_json:
            print(json.dumps({"kind": "zmq", "address": server.endpoint, "serves": radio}), flush=True)
        else:
            say(f"{radio} at {server.endpoint}")
            if not server.is_local:
                err.print("[yellow]whoever can reach this address can use the radio[/]")
            say(f"use it: --radio zmq:{server.endpoint}    end it: Ctrl-C")
        Event().wait()


@app.command(
    epilog="Examples: semair calibrate lab.calibration.json | semair run random-access "
    "--set radio.calibration=lab.calibration.json | semair calibrate n210.calibration.json --radio "
    "usrp:type=usrp2,addr=127.0.0.1 --set frame.sample_rate_hz=1e6 --set radio.n_antennas=1 --tx-gain 10"
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
    radio: RadioOption = None,
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
    from ..flowgraphs import calibrate as calibrator
    from ..flowgraphs.transmit import default_log
    from ..hardware.site import find_site_file, load_site

    if method not in ("splitter", "antennas"):
        raise ScenarioError(f"--method {method!r} is not known; choose splitter or antennas")
    chosen = chosen_scenario(scenario, settings, radio)
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
    with share_progress("calibrating", quiet=as_json) as on_progress:
        found = calibrator.calibrate(chosen, path, options, site=rules, log=place, on_progress=on_progress)
    if as_json:
        print(found.model_dump_json())
        return
    _show_calibration(found)
    say(f"calibration {path}, until {found.valid.until.astimezone():%Y-%m-%d %H:%M}")
    if found.valid.tune is not None:
        out.print("[yellow]phases      hold for this tuning alone, which has ended; all else holds longer[/]")
    say(f"use it      semair run random-access -s {scenario} --set radio.calibration={path}")


@app.command(
    epilog="Examples: semair doctor | semair doctor --json | semair doctor --radio usrp:addr=192.168.10.2 | "
    "semair doctor --radio pluto:ip:192.168.2.1 --rate 1e6 --rate 2.5e6 --frequency 2.4e9"
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
    from ..hardware.discover import named
    from ..hardware.doctor import RadioRequest, examine

    request = None
    if radio is not None:
        kind, address = named(radio)
        request = RadioRequest(kind, address, frequency_hz=frequency, n_rx=channels, seconds=seconds)
        request = replace(request, rates_hz=tuple(sorted(rate))) if rate else request
    elif rate:
        raise ScenarioError("--rate is for a radio; name it with --radio KIND:ADDRESS")
    with share_progress("examining", quiet=as_json) as on_progress:
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

    from ..hardware.virtual.ad9361 import open_radios
    from ..hardware.virtual.air import VirtualAir
    from ..hardware.virtual.clock import SteppedClock
    from ..models.channels import ChannelConfig

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
                say(f"{radio.model.name} at {radio.uri}")
            say(f"try it: iio_info -u {radios[0].uri}    end it: Ctrl-C")
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

    from ..hardware.virtual.air import VirtualAir
    from ..hardware.virtual.n210 import VirtualN210

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
                say(f"virtual N210 {unit.serial} at {unit.address}")
            say(f'try it: uhd_usrp_probe --args "{arguments}"    end it: Ctrl-C')
        try:
            Event().wait()
        finally:
            for unit in units if not as_json else ():
                counted = ", ".join(f"{name} {n}" for name, n in sorted(unit.counts.items()) if n)
                err.print(f"{unit.address}: {counted or 'nothing happened'}", highlight=False)


@virtual_app.command(
    "bench",
    epilog="Examples: semair virtual bench | semair virtual bench my-bench.toml --speed 0.5 | then, in another shell: "
    "semair run random-access -s bench",
)
def virtual_bench(
    file: Annotated[
        Path | None, typer.Argument(help="TOML file of the bench; default the one of scenario `bench`.")
    ] = None,
    speed: Annotated[
        float | None, typer.Option(help="Of time, 0.01 to 1, instead of the file's; lower it where samples are lost.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Be N210s and Plutos on one air, as a file describes them, until Ctrl-C."""
    from threading import Event

    from ..hardware.virtual.bench import LAB, OpenBench, load_bench

    bench = load_bench(file or LAB, {} if speed is None else {"speed": speed})
    with OpenBench(bench) as running:
        if as_json:
            print(json.dumps(running.describe()), flush=True)
        else:
            for addresses in running.describe().values():
                for address in addresses:
                    say(address)
            say(f"time passes at {bench.speed:g} of its pace    end it: Ctrl-C")
        try:
            Event().wait()
        finally:
            for unit in running.units if not as_json else ():
                counted = ", ".join(f"{name} {n}" for name, n in sorted(unit.counts.items()) if n)
                err.print(f"{unit.address}: {counted or 'nothing happened'}", highlight=False)


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
            f"turnaround  {found.turnaround.samples:.2f} samples, {duration_text(found.turnaround.seconds)}, by {clock}"
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

"""Figures of the virtual USRP N210: unmodified clients, sustained rate, exactness of time, and what garbage does."""

from __future__ import annotations

import json
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from ...errors import SetupError
from ...hardware.virtual import usrp2
from ...hardware.virtual.air import VirtualAir
from ...hardware.virtual.n210 import VirtualN210
from ._captures_recorder import share_interval
from ._hardware_pulse import PATIENCE_S, Pulse, resident_bytes
from .entry import Entry, Measurement, OnShare, machine

ADDRESS = "127.0.2.10"
CLIENTS = ("uhd_find_devices", "uhd_usrp_probe", "rx_samples_to_file", "tx_waveforms", "benchmark_rate", "gr-uhd")
_EXAMPLES = Path("/usr/libexec/uhd/examples")
_BIG_FRAMES = "recv_frame_size=8000,send_frame_size=8000"
_FACTORS = (20, 16, 12, 10, 8, 6, 5, 4)


def measurements(quick: bool) -> list[Measurement]:
    """Measurements of the virtual N210; `quick` is done within 20 s."""
    duplex = ("n210/duplex-events",) if quick else ("n210/duplex-events", "n210/duplex-highest-clean")
    # A quick look leaves the slower half of the clients to the tests.
    clients = CLIENTS[:2] if quick else CLIENTS
    return [
        Measurement(
            tuple(f"n210/client/{name}" for name in clients), partial(pass_clients, clients), 2.0 * len(clients)
        ),
        Measurement(duplex, partial(stream_both_ways, quick), 6.0 if quick else 160.0),
        Measurement(("n210/timed-bursts-exact",), partial(time_bursts, 20 if quick else 1000), 4.0 if quick else 25.0),
        Measurement(("n210/fuzzed-failures",), partial(fuzz, 3.0 if quick else 600.0, 1), 5.0 if quick else 600.0),
    ]


def pass_clients(clients: tuple[str, ...], tell: OnShare) -> Iterator[Entry]:
    """Whether each unmodified client ends well: 1 or 0."""
    with tempfile.TemporaryDirectory(prefix="semair-n210-") as folder, _unit():
        options: dict[str, list[str]] = {
            "rx_samples_to_file": ["--file", f"{folder}/x", "--nsamps", "200000", "--rate", "1e6", "--freq", "2e9"],
            "tx_waveforms": ["--nsamps", "200000", "--rate", "1e6", "--freq", "2e9"],
            "benchmark_rate": ["--rx_rate", "1e6", "--tx_rate", "1e6", "--duration", "2"],
        }
        for k, name in enumerate(clients):
            if name == "gr-uhd":
                found = _gr_bursts(100, 10, 0)
                passed = found["asked"] == found["heard"]
            else:
                passed = _uhd(name, *options.get(name, [])).returncode == 0
            tell((k + 1) / len(clients))
            yield Entry(f"n210/client/{name}", float(passed), None, "1", 1.0, {"version": _version()})


def stream_both_ways(quick: bool, tell: OnShare) -> Iterator[Entry]:
    """Losses of full duplex in real time, and up to which rate there are none."""
    rate_hz, duration_s = (2e6, 4.0) if quick else (5e6, 60.0)
    with _unit():
        events, seen = _duplex_events(rate_hz, duration_s)
        tell(0.5)
        settings = {"rate_hz": rate_hz, "duration_s": duration_s, "frames": _BIG_FRAMES, **seen, **machine()}
        yield Entry("n210/duplex-events", float(events), None, "1", 0.0, settings)
        if quick:
            return
        highest = 0.0
        tried = {}
        for k, factor in enumerate(_FACTORS):
            events, seen = _duplex_events(usrp2.TICK_RATE_HZ / factor, 10.0)
            tried[f"{100 / factor:.4g}"] = events
            tell(0.5 + 0.5 * (k + 1) / len(_FACTORS))
            if events:
                break
            highest = 100 / factor
        settings = {"events_by_rate": tried, "duration_s": 10.0, "frames": _BIG_FRAMES, **machine()}
        yield Entry("n210/duplex-highest-clean", highest, None, "MS/s", 5.0, settings)


def time_bursts(count: int, tell: OnShare) -> Iterator[Entry]:
    """Share of timed bursts that arrive at exactly the sample asked for, at several rates and grids."""
    grids = ((100, 0), (100, 37), (50, 13), (104, 1), (128, 99))
    runs = grids[:1] if count < 100 else grids
    exact = 0
    with _unit():
        for k, (factor, grid) in enumerate(runs):
            found = _gr_bursts(factor, count // len(runs), grid)
            exact += len(set(found["asked"]) & set(found["heard"]))
            tell((k + 1) / len(runs))
    settings = {"bursts": count, "decimation_and_grid": runs}
    yield Entry("n210/timed-bursts-exact", exact / count, share_interval(exact, count), "1", 1.0, settings)


def fuzz(duration_s: float, seed: int, tell: OnShare) -> Iterator[Entry]:
    """Failures while strangers send garbage and a host streams: of the unit, of the host, and of its memory."""
    with _unit() as unit:
        host: list[tuple[int, dict[str, int]]] = []
        streaming = threading.Thread(target=lambda: host.append(_duplex_events(1e6, duration_s)))
        before = resident_bytes()
        streaming.start()
        pulse = Pulse(lambda: unit.counts["rx_samples"])
        sent = _send_garbage(duration_s, seed, tell, pulse)
        streaming.join()
        grown = resident_bytes() - before
        answers = _uhd("uhd_find_devices").returncode == 0 and unit.is_alive
        _, seen = host[0]
        # Overruns, underruns, time-outs and errors of sequence are in the settings only: they tell how busy the machine
        # is. What the unit owes its host is that it goes on.
        unserved = pulse.longest_s > PATIENCE_S or seen.get("received samples", 0) < 0.5e6 * duration_s
        # What a stream of 1 MS/s and its queues hold is far below.
        failures = (not answers) + unserved + (grown > 64 << 20)
        counted = {name: n for name, n in unit.counts.items() if name in ("malformed", "strangers", "fifo_full")}
    settings = {"packets": sent, "duration_s": duration_s, "seed": seed, "grown_bytes": grown, "host": seen, **counted}
    settings["longest_stall_s"] = pulse.longest_s
    yield Entry("n210/fuzzed-failures", float(failures), None, "1", 0.0, settings)


def _unit() -> VirtualN210:
    return VirtualN210(VirtualAir(noise_power=1e-8), ADDRESS)


def _send_garbage(duration_s: float, seed: int, tell: OnShare, pulse: Pulse) -> int:
    """Send bytes without meaning, and packets with parts of meaning, to every port; how many.

    Two kinds are left out, because they are requests that the device grants to everybody: a greeting to a stream port,
    which moves the stream there, and a register access at the control port.
    """
    rng = np.random.default_rng(seed)
    ports = (usrp2.CONTROL_PORT, usrp2.FIFO_PORT, usrp2.TX_PORT, *usrp2.RX_PORTS)
    begin, sent = time.monotonic(), 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        while (passed := time.monotonic() - begin) < duration_s:
            for _ in range(50):
                port = int(rng.choice(ports))
                data = rng.bytes(int(rng.integers(0, 300)))
                shape = rng.integers(4)
                if shape == 1:
                    data = struct.pack(">III", 12, int(rng.choice(list(b"ahisl ~"))), 1) + data
                elif shape == 2:
                    data = struct.pack(">II", int(rng.integers(1, 9)), int(rng.integers(2**32))) + data
                elif shape == 3:
                    data = usrp2.pack_context(2, int(rng.integers(2**62)), int(rng.integers(2**32))) + data
                is_access = port == usrp2.CONTROL_PORT and data[4:8] in (b"\0\0\0r", b"\0\0\0h", b"\0\0\0s")
                if not is_access and not (len(data) in (8, 16) and not any(data[:8])):
                    stranger.sendto(data, (ADDRESS, port))
                    sent += 1
            tell(min(1.0, passed / duration_s))
            pulse.look()
            time.sleep(0.02)
    return sent


def _duplex_events(rate_hz: float, duration_s: float) -> tuple[int, dict[str, int]]:
    """Losses of all kinds that UHD's own rate test counts, with its figures."""
    done = _uhd(
        "benchmark_rate", "--rx_rate", f"{rate_hz}", "--tx_rate", f"{rate_hz}", "--duration", f"{duration_s}",
        more=f",{_BIG_FRAMES}", patience_s=duration_s + 30,
    )  # fmt: skip
    seen = {name.strip(): int(n) for name, n in re.findall(r"Num ([^:]+):\s+(\d+)", done.stdout)}
    if done.returncode or "received samples" not in seen:
        return 1, {"returncode": done.returncode}
    events = sum(n for name, n in seen.items() if name not in ("received samples", "transmitted samples"))
    return events + (seen["received samples"] < 0.98 * rate_hz * duration_s), seen


def _uhd(name: str, *options: str, more: str = "", patience_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    program = shutil.which(name) or shutil.which(str(_EXAMPLES / name))
    if program is None:
        raise SetupError(f"{name} is not installed; mend it with: apt install uhd-host")
    command = [program, "--args", f"type=usrp2,addr={ADDRESS}{more}", *options]
    return _run(command, patience_s)


def _gr_bursts(factor: int, count: int, grid_tick: int) -> dict[str, list[int]]:
    given = {
        "args": f"type=usrp2,addr={ADDRESS}",
        "factor": factor,
        "count": count,
        "samples": 50,
        "spacing_samples": 400,
        "grid_tick": grid_tick,
    }
    done = _run([sys.executable, "-m", f"{__package__}._hardware_uhd", json.dumps(given)], 90.0)
    _, _, found = done.stdout.partition("RESULT ")
    return json.loads(found) if found else {"asked": [0], "heard": []}


def _run(command: list[str], patience_s: float) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=patience_s)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", "")


def _version() -> str:
    program = shutil.which("uhd_config_info")
    return _run([program, "--version"], 10.0).stdout.strip() if program else ""

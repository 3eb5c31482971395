"""Figures of faults: whether each is reported by name in time, and leaves a whole recording and nothing hanging."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...captures.verify import verify
from ...errors import RadioError
from ...hardware import wire
from ...hardware.serving import RadioServer
from ...hardware.virtual.air import VirtualAir
from ...hardware.virtual.n210 import VirtualN210
from ..run import run_random_access
from ..runfolder import RX_NAME
from ..scenario import Scenario, load_scenario
from ._captures_recorder import share_interval
from .entry import Entry, Measurement, OnShare

LIMIT_S = 2.0
UNIT = "127.0.2.40"
_NOBODY = "127.0.2.49"
_MAIN = "from semair.cli import main; main()".replace("semair", __package__.split(".")[0])
_START_S = 60.0

Trial = Callable[[Path], tuple[float, str]]
"""Injects a fault once, with a folder of its own; seconds until it was reported, and the report (empty: none)."""


def measurements(quick: bool) -> list[Measurement]:
    """Measurements of faults; `quick` is done within 15 s."""
    plan = (
        ("zmq-killed", partial(_lose_server, signal.SIGKILL), "vanished", 1 if quick else 60, 2.5),
        ("zmq-frozen", partial(_lose_server, signal.SIGSTOP), "vanished", 1 if quick else 30, 4.0),
        ("uhd-nobody", _open_nobody, "No devices found", 1 if quick else 20, 2.0),
        ("uhd-vanished", _lose_unit, "radio vanished", 0 if quick else 30, 8.0),
    )
    garbage = 300 if quick else 5000
    return [
        *(
            Measurement((f"faults/{name}",), partial(inject, name, trial, words, count), cost * count)
            for name, trial, words, count, cost in plan
            if count
        ),
        Measurement(("faults/zmq-garbage",), partial(disturb, garbage, 1), 3.0 if quick else 30.0),
    ]


def inject(name: str, trial: Trial, words: str, count: int, tell: OnShare) -> Iterator[Entry]:
    """Share of faults that were reported by name within two seconds and left a whole recording, where one was made."""
    good = 0
    times: list[float] = []
    for k in range(count):
        with tempfile.TemporaryDirectory(prefix="semair-fault-") as folder:
            seconds, report = trial(Path(folder))
            good += words in report and seconds <= LIMIT_S and _is_whole(Path(folder) / "run")
        times.append(seconds)
        tell((k + 1) / count)
    settings = {"faults": count, "limit_s": LIMIT_S, "longest_s": max(times), "median_s": float(np.median(times))}
    yield Entry(f"faults/{name}", good / count, share_interval(good, count), "1", 1.0, settings)


def disturb(count: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """Share of frames that a client decides while strangers send garbage to its server, and refusals of the garbage."""
    frames = 60
    with tempfile.TemporaryDirectory(prefix="semair-fault-") as folder, RadioServer("loopback") as server:
        stop = threading.Event()
        sent = [0]
        stranger = threading.Thread(target=_send_garbage, args=(server.endpoint, count, seed, stop, sent))
        stranger.start()
        result = run_random_access(_over(server.endpoint), Path(folder) / "run", n_frames=frames)
        tell(0.5)
        stop.set()
        stranger.join()
        decided = int(result.metrics["frames"]["decided"])
        settings = {"garbage": sent[0], "refused": server.counts["malformed"], "frames": frames, "seed": seed}
    yield Entry("faults/zmq-garbage", decided / frames, share_interval(decided, frames), "1", 1.0, settings)


def _over(endpoint: str) -> Scenario:
    return load_scenario("lab", ["radio.kind=zmq", f"radio.address={endpoint}"])


def _is_whole(folder: Path) -> bool:
    """Whether a recording, if one was begun, has no fault."""
    meta = folder / f"{RX_NAME}.sigmf-meta"
    if not folder.exists():
        return True
    return meta.is_file() and not any(finding.severity == "error" for finding in verify(meta))


def _lose_server(how: signal.Signals, folder: Path) -> tuple[float, str]:
    """A server of a radio dies, or its machine hangs, while a run goes on."""
    command = [sys.executable, "-c", _MAIN, "serve", "loopback", "--listen", "tcp://127.0.0.1:*", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    injected = [0.0]

    def kill(progress: Any) -> None:
        if progress.decided > 3 and not injected[0]:
            injected[0] = time.monotonic()
            process.send_signal(how)

    try:
        address = json.loads(process.stdout.readline())["address"]
        run_random_access(_over(address), folder / "run", n_frames=5000, on_progress=kill)
    except RadioError as error:
        return time.monotonic() - injected[0], str(error)
    finally:
        process.kill()
        process.wait()
    return 0.0, ""


def _lose_unit(folder: Path) -> tuple[float, str]:
    """A USRP is unplugged while it is recorded."""
    with VirtualN210(VirtualAir(noise_power=1e-8), UNIT) as unit:
        process = _record(f"type=usrp2,addr={UNIT}", folder)
        deadline = time.monotonic() + _START_S
        while unit.counts["rx_samples"] < 500_000 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        begin = time.monotonic()
        unit.inject("vanish")
        report = _report(process)
        seconds = time.monotonic() - begin
        # The driver may take its time to give a device up that does not answer; the recording is closed by then.
        _end(process)
    return seconds, report


def _open_nobody(folder: Path) -> tuple[float, str]:
    """A USRP does not answer from the beginning. What counts is the driver's time, not that of starting a process."""
    code = (
        "import sys, time; from PACKAGE.hardware.uhd import UhdRadio; from gnuradio import uhd\n"
        "begin = time.monotonic()\ntry: UhdRadio(sys.argv[1], 1)\n"
        "except Exception as error: print(time.monotonic() - begin, error)"
    ).replace("PACKAGE", __package__.split(".")[0])
    arguments = [sys.executable, "-c", code, f"type=usrp2,addr={_NOBODY}"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=_START_S)
    seconds, _, report = done.stdout.partition(" ")
    return (float(seconds), report) if re.fullmatch(r"[\d.e-]+", seconds) else (_START_S, done.stderr)


def _record(address: str, folder: Path) -> subprocess.Popen[bytes]:
    """A recording by the command line, in a process of its own: UHD lets no other Python run while it waits."""
    settings = ("radio.kind=uhd", f"radio.address={address}", "radio.n_antennas=1", "frame.sample_rate_hz=1e6")
    options = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-c", _MAIN, "record", "--raw", "--folder", str(folder / "run"), *options]
    environment = {**os.environ, "UHD_LOG_CONSOLE_LEVEL": "off"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


def _report(process: subprocess.Popen[bytes]) -> str:
    """The error that a process writes, as soon as it is there."""
    assert process.stderr is not None
    said = b""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        ready, _, _ = select.select([process.stderr], [], [], 0.1)
        if ready:
            piece = os.read(process.stderr.fileno(), 65536)
            said += piece
            if not piece or b"error:" in said:
                break
    return " ".join(said.decode(errors="replace").split())


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.communicate(timeout=_START_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def _send_garbage(endpoint: str, count: int, seed: int, stop: threading.Event, sent: list[int]) -> None:
    """Bytes without meaning, and messages with parts of meaning, from many strangers."""
    zmq = wire.zmq()
    rng = np.random.default_rng(seed)
    kinds = ("hello", "configure", "start", "samples", "bursts", "taken", "end", "what")
    with zmq.Context() as context:
        while sent[0] < count and not stop.is_set():
            with context.socket(zmq.DEALER) as stranger:
                stranger.setsockopt(zmq.LINGER, 0)
                stranger.connect(endpoint)
                for _ in range(20):
                    data = rng.bytes(int(rng.integers(0, 400)))
                    if rng.integers(2):
                        fields = {"id": int(rng.integers(5)), "epoch": 1, "shape": [1, int(rng.integers(9))]}
                        data = wire.pack(str(rng.choice(kinds)), fields, data)
                    if rng.integers(4) == 0:
                        data = data[: len(data) // 2]
                    stranger.send(data)
                    sent[0] += 1
                stop.wait(0.02)

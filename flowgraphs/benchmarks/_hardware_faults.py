"""Figures of faults: whether each is reported by name in time, and leaves a whole recording and nothing hanging.

Faults that end a run come one per process. Faults that a run survives, or that are met while a radio is opened, come
many in a row to one process, and what they leave behind is looked at once, at the end.
"""

from __future__ import annotations

import errno
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
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...captures.verify import verify
from ...errors import RadioError
from ...hardware import wire
from ...hardware.network import NetworkRadio
from ...hardware.serving import RadioServer
from ...hardware.virtual.ad9361 import VirtualAd9361
from ...hardware.virtual.air import VirtualAir
from ...hardware.virtual.faults import Action, Fault, Faults
from ...hardware.virtual.n210 import VirtualN210
from ..radios import make_link
from ..run import run_random_access
from ..runfolder import RX_NAME
from ..scenario import Scenario, load_scenario
from ._captures_recorder import share_interval
from ._hardware_pulse import resident_bytes
from .entry import Entry, Measurement, OnShare

LIMIT_S = 2.0
UNIT = "127.0.2.40"
_NOBODY = "127.0.2.49"
# A frequency that the chip refuses, nonsense and nothing in the place of an attribute's value.
_REFUSED = Fault("write", "errno", "frequency", errno.EINVAL)
_GARBAGE = Fault("read", "garbage", "hardwaregain")
_SILENCE = Fault("read", "hang", "hardwaregain")
_MAIN = "from semair.cli import main; main()".replace("semair", __package__.split(".")[0])
_START_S = 60.0
# Of a virtual N210 on its air, where its full gain is 0 dB.
_LEAST_GAIN_DB = -31.5

Trial = Callable[[Path], tuple[float, str]]
"""Injects a fault once, with a folder of its own; seconds until it was reported, and the report (empty: none)."""

Rows = Generator[tuple[float, str], None, list[str]]
Series = Callable[[Path, int], Rows]
"""Injects a fault many times, with a folder for all; yields of each the same, and returns what it left behind."""


def measurements(quick: bool) -> list[Measurement]:
    """Measurements of faults; `quick` is done within 15 s."""
    plan = (
        ("zmq-killed", partial(_lose_server, signal.SIGKILL), "vanished", 1 if quick else 40, 2.5),
        ("zmq-frozen", partial(_lose_server, signal.SIGSTOP), "vanished", 1 if quick else 20, 4.0),
        ("uhd-nobody", _open_nobody, "No devices found", 1 if quick else 20, 2.0),
        ("uhd-vanished", _lose_unit, "radio vanished", 0 if quick else 20, 8.0),
        ("iio-vanished", _lose_iio, "vanished", 0 if quick else 15, 6.0),
    )
    # Name, what injects, words of the report, how many, and seconds of each.
    series: tuple[tuple[str, Series, str, int, float], ...] = (
        ("uhd-overflow", partial(_stream, "rx-overflow", "lost"), "lost", 2 if quick else 40, 0.3),
        ("uhd-lost-packet", partial(_stream, "rx-lost-packet", "lost"), "lost", 0 if quick else 40, 0.3),
        ("uhd-underflow", partial(_stream, "tx-underflow", "underflow"), "underflow", 0 if quick else 40, 0.3),
        ("uhd-late", partial(_stream, "tx-late", "time_error"), "time_error", 0 if quick else 40, 0.3),
        ("uhd-sequence", partial(_stream, "tx-sequence", "seq_error"), "seq_error", 0 if quick else 40, 0.3),
        ("uhd-firmware", _open_wrong_firmware, "FPGA compatibility number 11, but got 10", 0 if quick else 30, 0.3),
        ("uhd-timeout", _time_out, "timed out", 0 if quick else 20, 1.2),
        ("uhd-busy", _open_busy, "is busy", 0 if quick else 30, 0.2),
        ("iio-overflow", partial(_stream_iio, "lose", "readbuf", "overflows"), "overflows", 0 if quick else 30, 0.3),
        ("iio-attribute", partial(_refuse, _REFUSED), "refuses", 0 if quick else 15, 2.0),
        ("iio-garbage", partial(_refuse, _GARBAGE), "ip:127.0.0.1", 0 if quick else 15, 2.0),
        ("iio-timeout", partial(_refuse, _SILENCE), "vanished", 0 if quick else 10, 4.0),
        ("iio-busy", _open_busy_iio, "is busy", 0 if quick else 20, 0.5),
        ("zmq-busy", _open_served, "in use", 3 if quick else 30, 0.1),
        ("zmq-version", _open_foreign, "version 7 of the protocol", 3 if quick else 20, 0.1),
    )
    garbage = 300 if quick else 5000
    return [
        *(
            Measurement((f"faults/{name}",), partial(inject, name, trial, words, count), cost * count)
            for name, trial, words, count, cost in plan
            if count
        ),
        *(
            Measurement((f"faults/{name}",), partial(inject_series, name, one, words, count), 2.0 + cost * count)
            for name, one, words, count, cost in series
            if count
        ),
        Measurement(("faults/zmq-garbage",), partial(disturb, garbage, 1), 3.0 if quick else 30.0),
        *([] if quick else [Measurement(("zmq/fuzzed-failures",), partial(fuzz, 600.0, 1), 600.0)]),
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


def inject_series(name: str, series: Series, words: str, count: int, tell: OnShare) -> Iterator[Entry]:
    """Share of faults in a row that were reported by name within two seconds; 0 where they left anything behind."""
    outcomes: list[tuple[float, str]] = []
    with tempfile.TemporaryDirectory(prefix="semair-fault-") as folder:
        run = series(Path(folder), count)
        left: list[str] = []
        while True:
            try:
                outcomes.append(next(run))
            except StopIteration as end:
                left = list(end.value)
                break
            tell(len(outcomes) / count)
        if not _is_whole(Path(folder) / "run"):
            left.append("the recording is damaged")
    good = 0 if left else sum(words in report and seconds <= LIMIT_S for seconds, report in outcomes)
    times = [seconds for seconds, _ in outcomes]
    settings: dict[str, Any] = {"faults": count, "limit_s": LIMIT_S}
    settings |= {"longest_s": max(times), "median_s": float(np.median(times))}
    others = sorted({report for _, report in outcomes if words not in report})
    if left or others:
        settings |= {"left": left, "other_reports": others}
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


def fuzz(duration_s: float, seed: int, tell: OnShare) -> Iterator[Entry]:
    """Failures while strangers send garbage and a client runs: of the server, of that client, and of memory."""
    frames = 60
    runs = undecided = 0
    begin, before = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="semair-fault-") as folder, RadioServer("loopback") as server:
        stop = threading.Event()
        sent = [0]
        stranger = threading.Thread(target=_send_garbage, args=(server.endpoint, 1 << 62, seed, stop, sent))
        stranger.start()
        try:
            while (passed := time.monotonic() - begin) < duration_s:
                run = run_random_access(_over(server.endpoint), Path(folder) / "run", n_frames=frames, overwrite=True)
                undecided += frames - int(run.metrics["frames"]["decided"])
                runs += 1
                # What is compiled and kept at first use belongs to no leak.
                before = before if runs > 3 else resident_bytes()
                tell(min(1.0, passed / duration_s))
        finally:
            stop.set()
            stranger.join()
        refused = server.counts["malformed"]
        grown = resident_bytes() - before
    failures = undecided + (refused == 0) + (grown > 64 << 20)
    settings: dict[str, Any] = {
        "messages": sent[0],
        "refused": refused,
        "runs": runs,
        "frames": runs * frames,
        "undecided": undecided,
    }
    settings |= {"duration_s": duration_s, "seed": seed, "grown_bytes": grown}
    yield Entry("zmq/fuzzed-failures", float(failures), None, "1", 0.0, settings)


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
        process = _record("uhd", f"type=usrp2,addr={UNIT}", folder)
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


def _record(kind: str, address: str, folder: Path) -> subprocess.Popen[bytes]:
    """A recording by the command line, in a process of its own: UHD lets no other Python run while it waits."""
    settings = (f"radio.kind={kind}", f"radio.address={address}", "radio.n_antennas=1", "frame.sample_rate_hz=1e6")
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


# Many in a row


class _Client:
    """A process that answers each line with one of JSON; see `_hardware_fault_client`.

    Args:
        client: which.
        given: its arguments.
    """

    def __init__(self, client: str, given: dict[str, Any]) -> None:
        command = [sys.executable, "-m", f"{__package__}._hardware_fault_client", client, json.dumps(given)]
        environment = {**os.environ, "UHD_LOG_CONSOLE_LEVEL": "off", "UHD_LOG_FASTPATH_DISABLE": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        self._said = b""
        if not self._answer():
            self.__exit__()
            raise RadioError(f"the client {client} could not be started with {given}; see `semair doctor`")

    def __enter__(self) -> _Client:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_START_S)
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def ask(self, what: str) -> dict[str, Any]:
        """The answer to a line; empty where none comes."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(f"{what}\n".encode())
            self._process.stdin.flush()
            return self._answer()
        return {}

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            rest = self._said.partition(b"\nRESULT ")[2]
            line, newline, more = rest.partition(b"\n")
            if newline:
                # The line break may begin the next answer.
                self._said = newline + more
                return dict(json.loads(line))
            ready, _, _ = select.select([self._process.stdout], [], [], 0.1)
            if ready:
                piece = os.read(self._process.stdout.fileno(), 65536)
                if not piece:
                    break
                self._said += piece
        return {}


def _stream(fault: str, counter: str, folder: Path, count: int) -> Rows:
    """A USRP shows a fault while it sends bursts and is recorded; both go on, and what was lost is marked."""
    address = f"type=usrp2,addr={UNIT}"
    with VirtualN210(VirtualAir(noise_power=1e-8), UNIT) as unit:
        with _Client("stream", {"kind": "uhd", "address": address, "folder": str(folder / "run")}) as client:
            yield from _survived(client, counter, partial(unit.inject, fault), count)
            last = client.ask("stop")
        left = _left_behind(unit) + _ended(last)
        if last.get("lost", 0) < unit.counts["rx_lost_samples"] + unit.counts["injected rx-lost-packet"]:
            left.append(f"{unit.counts['rx_lost_samples']} samples were lost, the recording tells {last.get('lost')}")
    return left


def _stream_iio(action: Action, where: str, counter: str, folder: Path, count: int) -> Rows:
    """An IIO radio loses samples while it sends and is recorded, and tells so; both go on."""
    with VirtualAd9361(VirtualAir(noise_power=1e-8), "r", port=0) as radio:
        with _Client("stream", {"kind": "iio", "address": radio.uri, "folder": str(folder / "run")}) as client:
            yield from _survived(client, counter, lambda: _faults(radio).add(Fault(where, action, number=40)), count)
            last = client.ask("stop")
        return _left_by_iio(radio) + _ended(last)


def _survived(client: _Client, counter: str, inject: Callable[[], None], count: int) -> Iterator[tuple[float, str]]:
    """What a stream counts of faults in a row."""
    deadline = time.monotonic() + _START_S
    while client.ask("counts").get("recorded", 0) < 100_000 and time.monotonic() < deadline:
        time.sleep(0.01)
    for _ in range(count):
        before = after = _counted(client.ask("counts"), counter)
        begin = time.monotonic()
        inject()
        while after == before and time.monotonic() < begin + 2 * LIMIT_S:
            time.sleep(0.005)
            after = _counted(client.ask("counts"), counter)
        yield time.monotonic() - begin, f"{counter}: {after - before}" if after > before else ""


def _ended(last: dict[str, Any]) -> list[str]:
    """What was wrong with a stream when it was stopped."""
    return [] if "recorded" in last and not last.get("failure") else [f"the run ended: {last.get('failure')}"]


def _refuse(fault: Fault, folder: Path, count: int) -> Rows:
    """An IIO radio refuses a value, answers garbage or not at all while it is set up, and does again as it should."""
    with VirtualAd9361(VirtualAir(noise_power=1e-8), "r", port=0) as radio:
        with _Client("settle", {"kind": "iio", "address": radio.uri}) as client:
            mended: dict[str, Any] = {}
            for _ in range(count):
                client.ask("open")
                _faults(radio).add(replace(fault))
                yield _outcome(client.ask("configure"))
                _faults(radio).clear()
                # A connection that broke within an answer is of no more use.
                client.ask("close")
                client.ask("open")
                mended = client.ask("configure")
                client.ask("close")
        return _left_by_iio(radio, mended)


def _open_busy_iio(folder: Path, count: int) -> Rows:
    """An IIO radio that another process streams with is opened."""
    with VirtualAd9361(VirtualAir(noise_power=1e-8), "r", port=0) as radio:
        given = {"kind": "iio", "address": radio.uri}
        with _Client("stream", {**given, "folder": str(folder / "run")}) as first, _Client("settle", given) as second:
            for _ in range(count):
                yield _outcome(second.ask("open"))
            last = first.ask("stop")
        return _left_by_iio(radio) + _ended(last)


def _lose_iio(folder: Path) -> tuple[float, str]:
    """An IIO radio is unplugged while it is recorded."""
    with VirtualAd9361(VirtualAir(noise_power=1e-8), "r", port=0) as radio:
        process = _record("iio", radio.uri, folder)
        deadline = time.monotonic() + _START_S
        while process.poll() is None and time.monotonic() < deadline:
            # A recording that is being made has a name of its own.
            if any(file.stat().st_size > 1_000_000 for file in (folder / "run").glob(f"*{RX_NAME}*")):
                break
            time.sleep(0.01)
        begin = time.monotonic()
        radio.close()
        report = _report(process)
        seconds = time.monotonic() - begin
        _end(process)
    return seconds, report


def _faults(radio: VirtualAd9361) -> Faults:
    assert radio.server is not None
    return radio.server.faults


def _left_by_iio(radio: VirtualAd9361, *answers: dict[str, Any]) -> list[str]:
    """See `_left_behind`."""
    left = [f"afterwards: {answer.get('error', 'no answer')}" for answer in answers if answer.get("error", "no answer")]
    return left + (["the transmitter is left on"] if radio.transmitting() else [])


def _counted(counts: dict[str, Any], prefix: str) -> int:
    """All counts of a kind: some faults have more than one name, by where they are met."""
    return sum(n for name, n in counts.items() if name.startswith(prefix))


def _open_wrong_firmware(folder: Path, count: int) -> Rows:
    """A USRP runs an FPGA image that the driver does not know."""
    with VirtualN210(VirtualAir(noise_power=1e-8), UNIT) as unit:
        with _Client("settle", {"kind": "uhd", "address": f"type=usrp2,addr={UNIT}"}) as client:
            unit.inject("wrong-firmware")
            for _ in range(count):
                yield _outcome(client.ask("open"))
            unit.inject("wrong-firmware", 0)
            mended = client.ask("open")
        return _left_behind(unit, mended)


def _time_out(folder: Path, count: int) -> Rows:
    """A USRP does not answer while it is set up, and does again."""
    with VirtualN210(VirtualAir(noise_power=1e-8), UNIT) as unit:
        with _Client("settle", {"kind": "uhd", "address": f"type=usrp2,addr={UNIT}"}) as client:
            client.ask("open")
            mended: dict[str, Any] = {}
            for _ in range(count):
                unit.inject("fifo-timeout", 1 << 30)
                yield _outcome(client.ask("configure"))
                unit.inject("fifo-timeout", 0)
                mended = client.ask("configure")
        return _left_behind(unit, mended)


def _open_busy(folder: Path, count: int) -> Rows:
    """A USRP that another process uses is opened, again and again; that process is not disturbed."""
    given = {"kind": "uhd", "address": f"type=usrp2,addr={UNIT}"}
    with VirtualN210(VirtualAir(noise_power=1e-8), UNIT) as unit:
        with _Client("settle", given) as first, _Client("settle", given) as second:
            first.ask("open")
            for _ in range(count):
                yield _outcome(second.ask("open"))
            undisturbed = first.ask("configure")
            first.ask("close")
            free = second.ask("open")
        return _left_behind(unit, undisturbed, free)


def _open_served(folder: Path, count: int) -> Rows:
    """A served radio that a client uses is opened by others."""
    link = make_link(load_scenario("lab"))
    with RadioServer("loopback") as server:
        first = NetworkRadio(server.endpoint, link)
        for _ in range(count):
            yield _refused(server.endpoint)
        left = [] if first.set_tx_gain_db is not None and first.facts() else ["the first client was disturbed"]
        first.close()
    return left


def _open_foreign(folder: Path, count: int) -> Rows:
    """What answers speaks another version of the protocol."""
    zmq = wire.zmq()
    with zmq.Context() as context, context.socket(zmq.ROUTER) as other:
        other.setsockopt(zmq.LINGER, 0)
        other.setsockopt(zmq.RCVTIMEO, 100)
        port = other.bind_to_random_port("tcp://127.0.0.1")
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                with suppress(zmq.Again):
                    who, message = other.recv_multipart()
                    other.send_multipart([who, message[:6] + b"\x07" + message[7:]])

        server = threading.Thread(target=serve)
        server.start()
        try:
            for _ in range(count):
                yield _refused(f"tcp://127.0.0.1:{port}")
        finally:
            stop.set()
            server.join()
    return []


def _refused(endpoint: str) -> tuple[float, str]:
    """How a served radio refuses to be opened."""
    begin = time.monotonic()
    try:
        NetworkRadio(endpoint, make_link(load_scenario("lab"))).close()
    except RadioError as error:
        return time.monotonic() - begin, str(error)
    return time.monotonic() - begin, ""


def _outcome(answer: dict[str, Any]) -> tuple[float, str]:
    return float(answer.get("seconds", _START_S)), str(answer.get("error", "no answer"))


def _left_behind(unit: VirtualN210, *answers: dict[str, Any]) -> list[str]:
    """What must not be after the clients are gone: a transmitter that is not turned down, or a radio that is broken."""
    left = [f"afterwards: {answer.get('error', 'no answer')}" for answer in answers if answer.get("error", "no answer")]
    gain_db = unit.radio.tx[0].tunings[-1].gain_db
    if gain_db > _LEAST_GAIN_DB:
        left.append(f"the transmitter is left at a gain of {gain_db:g} dB")
    return left


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

"""Figures of the virtual Pluto and AD9361: unmodified clients, sustained rates, and what garbage does."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from ...errors import SetupError
from ...hardware.virtual.ad9361 import RX_CORE, TX_CORE, VirtualAd9361
from ...hardware.virtual.air import VirtualAir
from .entry import Entry, Measurement, OnShare, machine

CLIENTS = ("iio_info", "iio_attr", "iio_readdev", "iio_writedev", "adi.Pluto", "adi.ad9361", "gr-iio")
_RATES_HZ = (7.5e6, 10e6, 12.5e6, 15e6, 20e6)
# Four kernel buffers of 105 ms at 5 MS/s: what the host of a virtual machine may keep it waiting.
_BUFFER = 524_288
_WORDS = (
    b"READ WRITE OPEN READBUF WRITEBUF PRINT SET TIMEOUT CLOSE INPUT OUTPUT DEBUG ad9361-phy cf-ad9361-lpc voltage0 "
    b"frequency 00000003 4096"
).split()
_CONNECTIONS = 4


def measurements(quick: bool) -> list[Measurement]:
    """Measurements of the virtual Pluto; `quick` is done within 15 s."""
    duplex = ("pluto/duplex-losses",) if quick else ("pluto/duplex-losses", "pluto/duplex-highest-clean")
    return [
        Measurement(tuple(f"pluto/client/{name}" for name in CLIENTS), pass_clients, 5.0),
        Measurement(duplex, partial(stream_both_ways, quick), 6.0 if quick else 130.0),
        Measurement(("pluto/fuzzed-failures",), partial(fuzz, 3.0 if quick else 600.0, 1), 4.0 if quick else 600.0),
    ]


def pass_clients(tell: OnShare) -> Iterator[Entry]:
    """Whether each unmodified client ends well and finds what it should: 1 or 0."""
    air = VirtualAir(noise_power=1e-8)
    with VirtualAd9361(air, "one", port=0) as one, VirtualAd9361(air, "two", model="ad9361", port=0) as two:
        # The second radio's first receiver hears its first transmitter alone.
        h = np.zeros((3, 3))
        h[0, 0] = 1.0
        h[1:, 1] = 1.0
        air.set_channel(h)
        checks: dict[str, Callable[[], bool]] = {
            "iio_info": lambda: b"cf-ad9361-lpc" in _tool("iio_info", "-u", two.uri),
            "iio_attr": lambda: _tool("iio_attr", "-u", one.uri, "-d", "ad9361-phy", "ensm_mode") == b"fdd\n",
            "iio_readdev": lambda: len(_tool("iio_readdev", "-u", one.uri, "-s", "100000", RX_CORE)) >= 400_000,
            "iio_writedev": lambda: _write_samples(one),
            "adi.Pluto": lambda: _near(_script("pyadi", {"uri": one.uri, "kind": "Pluto"})["level"]),
            "adi.ad9361": lambda: _near(_script("pyadi", {"uri": two.uri, "kind": "ad9361"})["level"]),
            "gr-iio": lambda: _near(_stream(one, 1e6, 0.5)[1]["level"]),
        }
        for k, name in enumerate(CLIENTS):
            try:
                passed = checks[name]()
            except (subprocess.SubprocessError, ValueError, KeyError):
                passed = False
            tell((k + 1) / len(CLIENTS))
            yield Entry(f"pluto/client/{name}", float(passed), None, "1", 1.0, {"device": "virtual"})


def stream_both_ways(quick: bool, tell: OnShare) -> Iterator[Entry]:
    """Losses of full duplex through gr-iio in real time, and up to which rate there are none."""
    rate_hz, duration_s = (2.5e6, 4.0) if quick else (5e6, 60.0)
    with VirtualAd9361(VirtualAir(noise_power=1e-8), "r", port=0) as radio:
        losses, seen = _stream(radio, rate_hz, duration_s)
        tell(0.5)
        settings = {"rate_hz": rate_hz, "duration_s": duration_s, "buffer_size": _BUFFER, **seen, **machine()}
        yield Entry("pluto/duplex-losses", float(losses), None, "1", 0.0, settings)
        if quick:
            return
        highest = 0.0 if losses else rate_hz
        tried = {f"{rate_hz / 1e6:g}": losses}
        for k, rate_hz in enumerate(_RATES_HZ):
            losses, seen = _stream(radio, rate_hz, 10.0)
            tried[f"{rate_hz / 1e6:g}"] = losses
            tell(0.5 + 0.5 * (k + 1) / len(_RATES_HZ))
            if losses:
                break
            highest = rate_hz
        settings = {"losses_by_rate": tried, "duration_s": 10.0, "buffer_size": _BUFFER, **machine()}
        yield Entry("pluto/duplex-highest-clean", highest / 1e6, None, "MS/s", 5.0, settings)


def fuzz(duration_s: float, seed: int, tell: OnShare) -> Iterator[Entry]:
    """Failures while strangers send garbage and a client streams: of the server, of that client, and of memory."""
    with VirtualAd9361(VirtualAir(noise_power=1e-8), "r", port=0) as radio:
        served: list[dict[str, float]] = []
        streaming = threading.Thread(target=lambda: served.append(_stream(radio, 1e6, duration_s)[1]))
        streaming.start()
        sent, unanswered, before = _send_garbage(radio, duration_s, seed, tell)
        grown = _resident_bytes() - before
        streaming.join()
        answers = b"fdd" in _tool("iio_attr", "-u", radio.uri, "-d", "ad9361-phy", "ensm_mode")
        # The kernel buffers of some megabytes, and the ring of the air. How near to its rate the client comes tells how
        # busy the machine is; that it is served at all is what the server owes it.
        failures = (not answers) + (served[0].get("rx_hz", 0.0) < 0.5e6) + unanswered + (grown > 64 << 20)
    settings = {"requests": sent, "duration_s": duration_s, "seed": seed, "grown_bytes": grown}
    settings |= {f"client_{name}": value for name, value in served[0].items()}
    yield Entry("pluto/fuzzed-failures", float(failures), None, "1", 0.0, settings)


def _send_garbage(radio: VirtualAd9361, duration_s: float, seed: int, tell: OnShare) -> tuple[int, int, int]:
    """Send bytes, requests and halves of them from several connections.

    Returns:
        How many were sent, how many connections were not closed by the server after their end, and the memory in use
        after the first of them.
    """
    assert radio.server is not None
    place = radio.server.address, radio.server.port
    rng = np.random.default_rng(seed)
    begin = time.monotonic()
    sent = unanswered = 0
    before = _resident_bytes()
    while (passed := time.monotonic() - begin) < duration_s:
        peers = [socket.create_connection(place, timeout=20) for _ in range(_CONNECTIONS)]
        for peer in peers:
            for _ in range(int(rng.integers(1, 6))):
                words = b" ".join(_WORDS[k] for k in rng.integers(len(_WORDS), size=int(rng.integers(1, 5))))
                # What would tune or switch off the radio that the client uses is a request like any other: left out.
                words = words.replace(b"WRITE ", b"WRIT ")
                data = words + b"\r\n" if rng.random() < 0.6 else rng.bytes(int(rng.integers(0, 400)))
                try:
                    peer.sendall(data)
                except OSError:
                    break
                sent += 1
        for peer in peers:
            try:
                if rng.random() < 0.5:
                    peer.shutdown(socket.SHUT_WR)
                    while peer.recv(1 << 16):
                        pass
            except TimeoutError:
                unanswered += 1
            except OSError:
                pass
            peer.close()
        if passed < duration_s / 4:
            before = _resident_bytes()
        tell(min(1.0, passed / duration_s))
        time.sleep(0.02)
    return sent, unanswered, before


def _stream(radio: VirtualAd9361, rate_hz: float, duration_s: float) -> tuple[int, dict[str, float]]:
    """Full duplex through gr-iio for a while. Returns the device's losses of both kinds, and what the client saw."""
    given = {"uri": radio.uri, "rate_hz": rate_hz, "duration_s": duration_s, "buffer_size": _BUFFER}
    command = [sys.executable, "-m", f"{__package__}._hardware_iio", "duplex", json.dumps(given)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as client:
        patience = threading.Timer(duration_s + 60, client.kill)
        patience.start()
        marks, last = {}, ""
        assert client.stdout is not None
        for line in client.stdout:
            for mark in ("streaming", "enough"):
                # gr-iio itself writes letters for losses into the same stream.
                if line.rstrip().endswith(mark):
                    marks[mark] = dict(radio.losses)
            last = line
        patience.cancel()
    try:
        seen = json.loads(last[last.index("{") :])
    except ValueError:
        return 1, {"returncode": float(client.returncode)}
    overflows, underflows = (marks["enough"][way] - marks["streaming"][way] for way in (False, True))
    short = min(seen["rx_hz"], seen["tx_hz"]) < 0.98 * rate_hz
    return overflows + underflows + short, {"overflows": overflows, "underflows": underflows, **seen}


def _write_samples(radio: VirtualAd9361) -> bool:
    """Whether samples that iio_writedev was given were sent, and nothing more after it."""
    _tool("iio_attr", "-u", radio.uri, "-c", "ad9361-phy", "voltage0", "sampling_frequency", "2500000")
    # Far more than the queue holds: what lies in it when the client ends is never sent.
    samples = np.tile(np.array([8000, 0], dtype="<i2"), 1_000_000).tobytes()
    _tool("iio_writedev", "-u", radio.uri, "-b", "10000", "-s", "1000000", TX_CORE, given=samples)
    chain = radio.radio.tx[0]
    now = radio.air.now(chain)
    sent = radio.air.sent(chain, max(now - 2_000_000, 0), 2_000_000)
    return set(np.unique(sent)) == {0, 500 / 2048} and not radio.transmitting()


def _near(level: float) -> bool:
    """Whether what was sent at 0.5 arrived, by at most 0.2 dB; of two chains the first, so that both hear it."""
    return bool(abs(20 * np.log10(max(level, 1e-9) / 0.5)) < 0.2)


def _tool(name: str, *options: str, given: bytes = b"") -> bytes:
    program = shutil.which(name)
    if program is None:
        raise SetupError(f"{name} is not installed; mend it with: apt install libiio-utils")
    done = subprocess.run([program, *options], input=given, capture_output=True, check=True, timeout=60)
    return done.stdout


def _script(what: str, given: dict[str, str]) -> dict[str, float]:
    command = [sys.executable, "-m", f"{__package__}._hardware_iio", what, json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=90)
    return json.loads(done.stdout.splitlines()[-1])


def _resident_bytes() -> int:
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0

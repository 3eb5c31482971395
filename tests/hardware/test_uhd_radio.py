"""The USRP backend, on virtual N210s. gr-uhd runs in a process of its own, for it lets nobody work while it waits."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from semair.errors import RadioError
from semair.hardware.discover import backends
from semair.hardware.uhd import UhdRadio
from semair.hardware.virtual.air import VirtualAir
from semair.hardware.virtual.n210 import VirtualN210

FIRST, SECOND = "127.0.1.40", "127.0.1.41"
CLIENT = Path(__file__).with_name("uhd_client.py")


@pytest.fixture(scope="module")
def units() -> Iterator[list[VirtualN210]]:
    air = VirtualAir(seed=4, noise_power=1e-8)
    with VirtualN210(air, FIRST) as first, VirtualN210(air, SECOND, mimo_master=first) as second:
        yield [first, second]


def play(address: str, options: dict) -> dict:
    if find_spec("gnuradio") is None:
        pytest.skip("GNU Radio is not installed")
    done = subprocess.run(
        ["timeout", "90", sys.executable, str(CLIENT), "radio", address, json.dumps(options)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "gr-uhd cannot be imported" in done.stderr:
        pytest.skip("gr-uhd is not installed")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.split("RESULT ")[1])


def test_it_is_found_by_its_kind() -> None:
    assert backends()["uhd"] is UhdRadio


def test_the_other_module_of_uhd_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uhd", types.ModuleType("uhd"))
    with pytest.raises(RadioError, match="one process for each"):
        UhdRadio("type=usrp2,addr=127.0.1.40", 1)
    assert UhdRadio.find() == []


@pytest.mark.parametrize("address", ["nonsense", "type=usrp2,addr=127.0.1.99", "tx_channels=0.5", "lo_offset=far"])
def test_addresses_that_lead_nowhere_are_refused(address: str) -> None:
    pytest.importorskip("gnuradio.uhd", reason="gr-uhd is not installed")
    with pytest.raises(RadioError, match=address.partition("=")[0]):
        UhdRadio(address, 1)


def test_one_board(units: list[VirtualN210]) -> None:
    wrong = [
        ({"sample_rate_hz": 1.03e6}, "nearest is 1030927.835"),
        ({"sample_rate_hz": 60e6}, "195312.5 to"),
        ({"frequency_hz": 7e9}, "frequency_hz=7000000000"),
        ({"tx_gain_db": (77.0,)}, "0 to 31.5 dB"),
        ({"rx_gain_db": (1.0, 2.0)}, "1 channel"),
        ({"clock_source": "moon"}, "internal, external, mimo"),
    ]
    units[0].inject("tx-underflow", 2)
    found = play(
        f"type=usrp2,addr={FIRST}",
        {"n_rx": 1, "clock": "internal", "time": "none", "wrong": [given for given, _ in wrong]},
    )
    for (_, message), told in zip(wrong, found["refused"], strict=True):
        assert message in told
    assert "configure()" in found["unconfigured"]
    # Busy machines add some of their own.
    assert found["runs"][0]["counts"]["underflow"] >= 2
    assert found["capabilities"] == {"n_rx": 1, "path": "sim"}
    assert found["facts"]["serials"] == [units[0].serial]
    assert found["locks"] == {"reference 0": True, "rx oscillator 0": True, "tx oscillator 0": True}
    assert found["locks_closed"] == {}
    # Closed, it leaves the transmitter turned down as far as it goes, and the driver may switch it off.
    assert units[0].radio.tx[0].tunings[-1].gain_db <= -31.5
    for run, level in zip(found["runs"], (0.5, 0.5 / 10**0.5), strict=True):
        # Transmission begins at the least gain, until another is set.
        assert run["settings"]["tx_gain_db"] == [0.0]
        assert run["settings"]["frequency_hz"] == pytest.approx(2.0003e9, abs=1)
        assert run["levels"] == pytest.approx([level], rel=0.01)
        assert run["tags"] == ["rx_freq", "rx_rate", "rx_time"]


@pytest.mark.slow
def test_four_channels_of_two_boards_are_one_radio(units: list[VirtualN210]) -> None:
    found = play(
        f"type=usrp2,addr0={FIRST},addr1={SECOND},rx_subdev=A:0 A:0", {"n_rx": 4, "clock": "external", "time": "pps"}
    )
    for run in found["runs"]:
        assert len(set(run["begins"])) == 1
        assert run["levels"] == pytest.approx(run["levels"][:1] * 4, rel=0.01)
    assert len(found["facts"]["serials"]) == 2


@pytest.mark.slow
def test_boards_without_common_time_and_too_few_channels_are_refused(units: list[VirtualN210]) -> None:
    pytest.importorskip("gnuradio.uhd", reason="gr-uhd is not installed")
    code = (
        "import sys; from semair.hardware.uhd import UhdRadio; from semair.hardware.radio import Settings\n"
        "from semair.errors import RadioError\n"
        "try: UhdRadio(sys.argv[1], int(sys.argv[2])).configure(Settings(1e6, 2e9))\n"
        "except RadioError as error: print(error)"
    )
    two = f"type=usrp2,addr0={FIRST},addr1={SECOND}"
    for address, n_rx, message in ((two, 2, "common clock and time"), (f"type=usrp2,addr={FIRST}", 2, "rx_subdev")):
        done = subprocess.run(
            ["timeout", "60", sys.executable, "-c", code, address, str(n_rx)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert message in done.stdout, done.stdout + done.stderr


def settle(address: str) -> subprocess.Popen[str]:
    """A process that opens, configures and closes a USRP as it is told."""
    module = "semair.flowgraphs.benchmarks._hardware_fault_client"
    command = [sys.executable, "-m", module, "settle", json.dumps({"kind": "uhd", "address": address})]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def told(process: subprocess.Popen[str], what: str = "") -> dict:
    assert process.stdin is not None and process.stdout is not None
    if what:
        process.stdin.write(f"{what}\n")
        process.stdin.flush()
    for line in process.stdout:
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    return {}


@pytest.mark.slow
def test_busy_and_unresponsive_devices_are_named(units: list[VirtualN210]) -> None:
    pytest.importorskip("gnuradio.uhd", reason="gr-uhd is not installed")
    address = f"type=usrp2,addr={FIRST}"
    with settle(address) as one, settle(address) as other:
        assert told(one)["ready"] and told(other)["ready"]
        assert told(one, "open")["error"] == ""
        assert f"'addr={FIRST}' is busy: another process" in told(other, "open")["error"]
        units[0].inject("fifo-timeout", 1 << 30)
        error = told(one, "configure")["error"]
        units[0].inject("fifo-timeout", 0)
        assert f"{address!r} does not do as told" in error and "timed out" in error
        assert told(one, "configure")["error"] == ""
        assert told(one, "close")["error"] == ""
        # Whoever closes a device leaves it to others, and so does whoever dies.
        assert told(other, "open")["error"] == ""
        other.kill()
        other.wait()
        assert told(one, "open")["error"] == ""
        one.kill()

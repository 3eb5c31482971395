"""Unmodified clients of the virtual USRP N210: UHD's own programs, and gr-uhd. Each runs as a process of its own."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from semair.hardware.virtual.air import VirtualAir
from semair.hardware.virtual.n210 import VirtualN210

FIRST, SECOND = "127.0.1.1", "127.0.1.2"
ONE = f"type=usrp2,addr={FIRST}"
TWO = f"type=usrp2,addr0={FIRST},addr1={SECOND}"
EXAMPLES = Path("/usr/libexec/uhd/examples")
CLIENT = Path(__file__).with_name("uhd_client.py")


def run(name: str, *arguments: str, args: str = ONE) -> str:
    """Output of a program of UHD, which must end well."""
    program = shutil.which(name) or shutil.which(str(EXAMPLES / name))
    if program is None:
        pytest.skip(f"{name} is not installed: apt install uhd-host")
    done = subprocess.run(
        ["timeout", "60", program, "--args", args, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def gr_uhd(step: str, options: dict, args: str = ONE) -> dict | list:
    """What a flowgraph with gr-uhd found."""
    if find_spec("gnuradio") is None:
        pytest.skip("GNU Radio is not installed")
    done = subprocess.run(
        ["timeout", "60", sys.executable, str(CLIENT), step, args, json.dumps(options)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "No module named" in done.stderr:
        pytest.skip("gr-uhd is not installed")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.split("RESULT ")[1])


@pytest.fixture(scope="module")
def air() -> VirtualAir:
    return VirtualAir(seed=3, noise_power=1e-8)


@pytest.fixture(scope="module")
def first(air: VirtualAir) -> Iterator[VirtualN210]:
    with VirtualN210(air, FIRST) as unit:
        yield unit


@pytest.fixture(scope="module")
def second(air: VirtualAir, first: VirtualN210) -> Iterator[VirtualN210]:
    with VirtualN210(air, SECOND, mimo_master=first) as unit:
        yield unit


@pytest.fixture(autouse=True)
def _both(first: VirtualN210, second: VirtualN210) -> None:
    """Every test finds both units."""


def test_find_and_probe(first: VirtualN210) -> None:
    assert f"serial: {first.serial}" in run("uhd_find_devices")
    found = run("uhd_usrp_probe")
    for line in ("N210r4", "SBX (0x0054)", "SBX (0x0055)", "FPGA Version: 11.1", "lo_locked", "ref_locked"):
        assert line in found


def test_rx_samples_to_file(tmp_path: Path, first: VirtualN210) -> None:
    file = tmp_path / "x.dat"
    run("rx_samples_to_file", "--file", str(file), "--type", "float", "--nsamps", "100000", "--rate", "1e6",
        "--freq", "2e9", "--gain", "20", "--setup", "0.1")  # fmt: skip
    x = np.fromfile(file, np.complex64)
    assert x.size == 100_000
    # Noise of -80 dB at the port and 20 dB of gain; the sample variance of 10^5 draws lies within 2 % (6 sigma).
    assert np.mean(np.abs(x) ** 2) == pytest.approx(1e-6, rel=0.02)


def test_tx_waveforms(first: VirtualN210) -> None:
    before = first.counts["tx_samples"]
    run("tx_waveforms", "--rate", "1e6", "--freq", "2e9", "--nsamps", "200000", "--wave-type", "SINE",
        "--wave-freq", "10e3")  # fmt: skip
    assert first.counts["tx_samples"] - before >= 200_000


def test_benchmark_rate() -> None:
    found = run("benchmark_rate", "--rx_rate", "1e6", "--tx_rate", "1e6", "--duration", "1", args=ONE)
    for line in (
        "dropped samples:      0",
        "sequence errors (Tx): 0",
        "sequence errors (Rx): 0",
        "late commands:        0",
    ):
        assert f"Num {line}" in found


@pytest.mark.parametrize("wire", ["sc16", pytest.param("sc8", marks=pytest.mark.slow)])
def test_tones_arrive_at_their_frequency_and_amplitude(wire: str) -> None:
    # At interpolation 104 and decimation 112 the driver halves what goes over the wire.
    cases = [
        {"rate": 1e6, "tx_hz": 2e9, "rx_hz": 1.99996e9, "tone": 100, "amplitude": 0.5},
        {"rate": 100e6 / 104, "tx_hz": 2e9, "rx_hz": 2.0001e9, "tone": 50, "amplitude": 0.4, "rx_offset": 2e6},
    ]
    if wire == "sc8":
        cases.append({"rate": 100e6 / 112, "tx_hz": 2.00004e9, "rx_hz": 2.0001e9, "tone": 50, "amplitude": 0.3,
                      "tx_offset": 3e6, "tx_gain": 21.5, "rx_gain": 4.0})  # fmt: skip
    found = gr_uhd("tone", {"cases": cases, "tx_wire": wire, "rx_wire": wire})
    for case, was in zip(cases, found, strict=True):
        assert was["rate"] == pytest.approx(case["rate"])
        expected = case["tone"] * was["rate"] / 1000 + was["tx_hz"] - was["rx_hz"]
        assert was["offset_hz"] == pytest.approx(expected, abs=1)
        gain_db = was["tx_gain"] - 31.5 + was["rx_gain"]
        assert was["amplitude"] == pytest.approx(case["amplitude"] * 10 ** (gain_db / 20), rel=0.01)
        # Noise of -80 dB; in eight bits the steps of the wire, at worst 2 / 127 wide.
        assert was["rest"] < (2e-4 if wire == "sc16" else 2 / 127)


def test_timed_bursts_are_exact_to_the_sample() -> None:
    # On a grid of 100 ticks that both ends share, and that begins anywhere.
    found = gr_uhd(
        "bursts",
        {"rate": 1e6, "samples": 51, "spacing": 300, "count": 10, "rx_tick": 37, "tx_tick": 0, "set_time": 17.25},
    )
    assert found["first_tick"] == found["asked_first_tick"]
    assert found["heard"] == found["asked"]
    assert found["lengths"] == [51] * 10


@pytest.mark.parametrize("by", ["mimo", pytest.param("pps", marks=pytest.mark.slow)])
def test_two_units_are_one_aligned_device(by: str) -> None:
    found = gr_uhd("units", {"by": by}, TWO)
    assert found["pulses"][0] == found["pulses"][1]
    assert found["first"] == [2000, 2000]
    assert found["levels"] == pytest.approx([0.5, 0.5], rel=0.01)
    assert found["sensors"] == [True, True]


@pytest.mark.slow
def test_asynchronous_messages_and_timed_commands() -> None:
    found = run("test_messages")
    for kind in ("Burst ACK", "Underflow", "Time Error", "Late Command"):
        line = next(line for line in found.splitlines() if line.startswith(f"Test {kind}"))
        assert ", 0 failures" in " ".join(line.split())
    assert "pass" in run("test_timed_commands")
    assert "Success" in run("test_pps_input", "--source", "external")


@pytest.mark.parametrize(
    ("fault", "message"), [("wrong-firmware", "is not compatible"), ("control-timeout", "No devices found")]
)
def test_faults_reach_the_driver(first: VirtualN210, fault: str, message: str) -> None:
    if shutil.which("uhd_usrp_probe") is None:
        pytest.skip("uhd_usrp_probe is not installed: apt install uhd-host")
    first.inject(fault, 40 if fault == "control-timeout" else 1)
    done = subprocess.run(
        ["timeout", "30", "uhd_usrp_probe", "--args", ONE], capture_output=True, text=True, check=False
    )
    first.inject(fault, 0)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr


@pytest.mark.slow
def test_the_command_serves_until_interrupted() -> None:
    command = [sys.executable, "-m", "semair.cli", "virtual", "n210", "127.0.1.20", "127.0.1.21", "--mimo", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            told = json.loads(process.stdout.readline())
            assert told["args"] == "type=usrp2,addr0=127.0.1.20,addr1=127.0.1.21"
            assert told["serials"][1] in run("uhd_find_devices", args="type=usrp2,addr=127.0.1.21")
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130

"""Radios of SoapySDR: its driver for USRPs, with a virtual N210 behind it."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gnuradio.soapy", reason="gr-soapy is not installed")

from semair.errors import RadioError
from semair.hardware import soapy
from semair.hardware.discover import backend, search
from semair.hardware.virtual.air import VirtualAir
from semair.hardware.virtual.n210 import VirtualN210

CLIENT = Path(__file__).parent / "soapy_client.py"
ADDRESS = "127.0.3.40"
ARGS = f"driver=uhd,type=usrp2,addr={ADDRESS}"
ENVIRONMENT = {**os.environ, "UHD_LOG_CONSOLE_LEVEL": "error"}


def drivers() -> str:
    """What SoapySDR says of its drivers; in a process of its own, which may load what does not fit this one."""
    code = "import SoapySDR; print(*SoapySDR.listModules())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False).stdout


needs_driver = pytest.mark.skipif(
    "uhdSupport" not in drivers(),
    reason="SoapySDR's driver for USRPs is missing: apt install soapysdr-module-uhd python3-soapysdr",
)


@pytest.fixture(scope="module")
def unit() -> Iterator[VirtualN210]:
    with VirtualN210(VirtualAir(seed=3, noise_power=1e-8), ADDRESS) as unit:
        yield unit


def start(step: str, options: dict[str, Any] | None = None) -> subprocess.Popen[str]:
    command = ["timeout", "60", sys.executable, str(CLIENT), step, ARGS, json.dumps(options or {})]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)


def result(client: subprocess.Popen[str]) -> Any:
    out, _ = client.communicate()
    assert client.returncode == 0, out
    return json.loads(out.partition("RESULT ")[2])


@pytest.fixture(scope="module")
def told(unit) -> Any:
    """What the step `settings` of the client tells."""
    return result(start("settings"))


@needs_driver
def test_settings_are_checked_set_and_read_back(unit, told):
    found = told
    can = found["capabilities"]
    assert (can["n_rx"], can["n_tx"], can["path"]) == (1, 1, "sim")
    assert (can["has_hw_time"], can["overflow_reporting"]) == (True, "located")
    assert can["tx_gains_db"] == [0.0, 31.5]
    assert can["sample_rates_hz"][0] == pytest.approx(100e6 / 512)
    actual = found["actual"]
    assert (actual["sample_rate_hz"], actual["rx_gain_db"], actual["tx_gain_db"]) == (1e6, [12.0], [7.0])
    assert actual["frequency_hz"] == pytest.approx(2.4e9, abs=0.1)
    assert (actual["clock_source"], actual["time_source"]) == ("internal", "none")
    # Not asked for, a transmitter is as quiet as it can be.
    assert found["least"] == [0.0]
    assert found["locks"] == {"ref_locked": True, "lo_locked 0": True}
    assert found["facts"]["serials"] == [unit.serial]
    assert found["gain"][0] == 3.0 and "gain_db=99 is outside" in found["gain"][1]
    assert found["receiver"][:3] == [0, ["RX2"], None]
    assert "has no transmit gain" in found["receiver"][3]
    assert all("call configure() before" in text for text in [*found["unconfigured"], found["closed"]])


@needs_driver
def test_refusals_name_what_was_given_and_what_is_allowed(told):
    found = told
    words = (
        # The nearest of many rates, and the ends of all.
        ("sample_rate_hz=3300000", "3333333.333", "195312.5 to 50000000"),
        ("sample_rate_hz=nan",),
        ("frequency_hz=9000000000", "380000000 to 4420000000"),
        ("rx_gain_db=99", "0 to 38"),
        ("tx_gain_db has 2 value(s)", "1 channel(s)"),
        ("clock_source='gpsdo'", "internal, external, mimo"),
        ("bandwidth_hz=1000000000", "40000000"),
    )
    assert len(found["refused"]) == len(words)
    for text, expected in zip(found["refused"], words, strict=True):
        assert all(word in text for word in expected), text
    assert "3 receive" in found["too_many"] and "Only  1 channels" not in found["too_many"]
    assert "rx_antenna=J9" in found["antenna"] and "TX/RX, RX2" in found["antenna"]


@needs_driver
def test_a_tone_goes_out_and_comes_back_and_a_loss_is_located(unit):
    lost_before = unit.counts["rx_lost_samples"]
    client = start("duplex", {"samples": 1_000_000})
    assert client.stdout is not None
    while "STREAMS" not in client.stdout.readline():
        assert client.poll() is None
    while unit.counts["rx_samples"] < 300_000:
        assert client.poll() is None
    unit.inject("rx-overflow")
    found = result(client)
    # Both gains at 0 dB of attenuation, a path of 0 dB: what is heard is what was sent.
    assert found["amplitude"] == pytest.approx(0.25, rel=0.02)
    assert found["power"] == pytest.approx(found["amplitude"] ** 2, rel=0.02)
    times = [(item, value) for item, key, value in found["tags"] if key == "rx_time"]
    assert times[0][0] == 0
    assert {value for _, key, value in found["tags"] if key == "rx_rate"} == {1e6}
    ticks = [(item, round(1e6 * (value[0] + value[1]))) for item, value in times]
    jumps = sum(b[1] - a[1] - (b[0] - a[0]) for a, b in itertools.pairwise(ticks))
    # The device may lose more of its own accord when the machine is busy, and at the end after the last tag.
    assert len(ticks) >= 2
    assert 0 < jumps <= unit.counts["rx_lost_samples"] - lost_before


@needs_driver
def test_nobody_there_is_said_with_how_to_look():
    code = "from semair.hardware.soapy import SoapyRadio; SoapyRadio('driver=uhd,type=usrp2,addr=127.0.3.49', 1)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, env=ENVIRONMENT
    )
    assert "RadioError: SoapySDR cannot open 'driver=uhd,type=usrp2,addr=127.0.3.49'" in done.stderr
    assert "No devices found" in done.stderr and "semair radios" in done.stderr


def test_a_device_without_channels_is_refused():
    # SoapySDR's null driver is always there and has none.
    with pytest.raises(RadioError, match="1 receive"):
        backend("soapy")("driver=null", 1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("address", "words"),
    [("lime", "'lime' must be key=value"), ("driver=null,tx_channels=two", "tx_channels='two'")],
)
def test_device_arguments_that_cannot_be_read_are_refused(address, words):
    with pytest.raises(RadioError, match=words):
        soapy.SoapyRadio(address, 1)


def test_a_machine_without_gr_soapy_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gnuradio.soapy", None)
    with pytest.raises(Exception, match="apt install gnuradio"):
        soapy.SoapyRadio("driver=null", 1)


def test_devices_are_found_through_soapysdr(monkeypatch):
    class Device:
        @staticmethod
        def enumerate(args: str) -> list[dict[str, str]]:
            assert args == ""
            return [{"driver": "lime", "label": "LimeSDR", "serial": "1D4", "media": "USB"}, {"driver": "null"}]

    monkeypatch.setitem(sys.modules, "SoapySDR", type("SoapySDR", (), {"Device": Device}))
    (found,) = soapy.SoapyRadio.find()
    assert (found.kind, found.address, found.description) == (
        "soapy",
        "driver=lime,serial=1D4",
        "LimeSDR, through SoapySDR",
    )


@pytest.mark.slow
def test_a_search_ends_without_devices():
    assert "soapy" not in search(["soapy"]).problems

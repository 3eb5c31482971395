"""The virtual Pluto and AD9361 under clients that know nothing of this software, each in a process of its own.

What these tests prove is the driver path, not a radio.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from semair.hardware.virtual.ad9361 import VirtualAd9361
from semair.hardware.virtual.air import VirtualAir

SCRIPT = Path(__file__).with_name("iio_client.py")
PHY, RX, TX = "ad9361-phy", "cf-ad9361-lpc", "cf-ad9361-dds-core-lpc"
PATHS = np.array([[0.8, 0.3j], [-0.2, 0.6]])


@pytest.fixture
def plutos():
    """Two Plutos on one air, whose crystals differ by 3 ppm."""
    air = VirtualAir(noise_power=1e-8, seed=1)
    with VirtualAd9361(air, "a", port=0, ppm=2.0) as a, VirtualAd9361(air, "b", port=0, ppm=-1.0) as b:
        yield a, b


def run(*command: str, **options) -> subprocess.CompletedProcess:
    """Run a client to its end; a client that hangs is killed."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed; it is in Debian's libiio-utils")
    return subprocess.run(
        ["timeout", "-k", "5", "60", *command], capture_output=True, check=False, timeout=90, **options
    )


def script(*arguments: str):
    """What iio_client.py found; a crash at its end counts as one."""
    done = run(sys.executable, str(SCRIPT), *arguments)
    assert done.returncode == 0, done.stderr.decode()
    # Before it stands what gr-iio itself writes, a letter for each loss.
    return json.loads(done.stdout[done.stdout.index(b"{") :])


def attribute(radio: VirtualAd9361, *words: str) -> subprocess.CompletedProcess:
    return run("iio_attr", "-u", radio.uri, *words, text=True)


def test_iio_info(plutos):
    done = run("iio_info", "-u", plutos[0].uri, text=True)
    assert done.returncode == 0
    # The library checks the description against its own grammar, and says so here.
    assert "alidation" not in done.stderr
    for device in plutos[0].context.devices:
        assert f"{device.id}: {device.name}" in done.stdout
    assert "RX_LO (output)" in done.stdout
    assert "le:S12/16>>0" in done.stdout
    assert "hw_model: virtual ADALM-Pluto" in done.stdout
    assert "sampling_frequency value: 30720000" in done.stdout


def test_iio_attr(plutos):
    radio = plutos[0]
    assert attribute(radio, "-c", PHY, "RX_LO", "frequency", "915000000").returncode == 0
    # The synthesizer's step is some hertz.
    assert abs(int(attribute(radio, "-c", PHY, "RX_LO", "frequency").stdout) - 915_000_000) <= 3
    assert radio.radio.rx[0].tunings[-1].nominal_hz == pytest.approx(915e6, rel=1e-8)
    assert "Invalid argument" in attribute(radio, "-c", PHY, "RX_LO", "frequency", "915").stdout
    assert attribute(radio, "-D", PHY, "loopback", "1").returncode == 0
    assert radio.loopback == 1
    assert attribute(radio, "-d", PHY, "ensm_mode").stdout.strip() == "fdd"
    listing = attribute(radio, "-c", PHY, "voltage0").stdout
    assert "slow_attack" in listing
    assert "hardwaregain" in listing
    assert "virtual" in attribute(radio, "-C").stdout


def test_iio_writedev_and_readdev(plutos):
    radio = plutos[0]
    if shutil.which("iio_writedev") is None:
        pytest.skip("iio_writedev is not installed; it is in Debian's libiio-utils")
    radio.loopback = 1
    assert attribute(radio, "-c", PHY, "voltage0", "sampling_frequency", "2500000").returncode == 0
    ramp = (np.arange(4000) % 2000 - 1000).astype("<i2") * 16
    samples = np.stack([ramp, ramp[::-1]], axis=1)
    # Cyclic, so that there is something to receive for as long as the writer lives.
    writing = subprocess.Popen(
        ["timeout", "60", "iio_writedev", "-c", "-u", radio.uri, "-b", "4000", TX],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    writing.stdin.write(samples.tobytes())
    writing.stdin.flush()
    writing.stdin.close()
    try:
        reading = run("iio_readdev", "-u", radio.uri, "-b", "8192", "-s", "400000", RX)
    finally:
        writing.send_signal(signal.SIGINT)
        writing.wait(timeout=60)
    received = np.frombuffer(reading.stdout, "<i2").reshape(-1, 2)
    assert len(received) >= 400_000
    # A slow machine may lose buffers, but within one there is no gap.
    last = received[: len(received) // 8192 * 8192][-8192:]
    first = int(np.flatnonzero((samples >> 4 == last[0]).all(axis=1))[0])
    np.testing.assert_array_equal(last, (samples >> 4)[(first + np.arange(8192)) % 4000])
    assert radio.streams == {False: None, True: None}


def test_pyadi_pluto(plutos):
    found = script("pyadi_pluto", plutos[0].uri)
    assert all(abs(actual - int(asked)) <= 1 for asked, actual in found["rates"].items())
    assert found["gains"] == [3, -9]
    assert found["refused"] == 3
    # One crystal, so that nothing is shifted; 9 - 3 dB below what was sent.
    for name, frequency_hz, amplitude_db in (("cyclic", 100e3, -6), ("tone", 200e3, -6), ("digital", 200e3, 0)):
        assert abs(found[name]["frequency_hz"] - frequency_hz) < 1
        assert abs(20 * np.log10(found[name]["amplitude"] / 0.5) - amplitude_db) < 0.1
    assert found["filter"] == [128, 4, 128, 4]
    assert found["loopback"] == 1
    assert not plutos[0].transmitting() or plutos[0].streams[True] is None


def test_pyadi_ad9361():
    air = VirtualAir(noise_power=1e-8, seed=1)
    with VirtualAd9361(air, "r", model="ad9361", port=0) as radio:
        air.set_channel(PATHS)
        found = script("pyadi_ad9361", radio.uri)
    np.testing.assert_allclose(found["paths"], np.abs(PATHS), atol=0.005)
    np.testing.assert_allclose(
        np.exp(1j * np.array(found["phases"])), np.exp(1j * np.angle(PATHS[1] / PATHS[0])), atol=0.02
    )


@pytest.mark.parametrize("size", [1000, 4096, 65_536])
def test_gnu_radio_source_and_sink(plutos, size):
    a, b = plutos
    for device in (*a.context.devices, *b.context.devices):
        # So that the smallest buffers outlast what a busy machine keeps a process waiting.
        device.kernel_buffers = 64
    # Carriers that differ by 20 kHz, and crystals that make 3 ppm of 1 GHz.
    found = script("gnuradio", a.uri, b.uri, "20e3", str(size))
    expected = 50e3 + a.radio.tx[0].tunings[-1].frequency_hz - b.radio.rx[0].tunings[-1].frequency_hz
    assert abs(expected - 73e3) < 10
    assert abs(found["frequency_hz"] - expected) < 0.5
    assert abs(20 * np.log10(found["amplitude"] / 0.5)) < 0.1
    # Rounding to 12 bits at an amplitude of 1024 turns the phase by 1/1000, noise by less.
    assert found["worst_step_rad"] < 0.01


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_a_client_that_is_killed_leaves_the_transmitter_off(plutos, signal_number):
    if shutil.which("iio_writedev") is None:
        pytest.skip("iio_writedev is not installed; it is in Debian's libiio-utils")
    radio = plutos[0]
    writing = subprocess.Popen(
        ["iio_writedev", "-c", "-u", radio.uri, "-b", "1000", TX], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    writing.stdin.write(np.full(2000, 8000, "<i2").tobytes())
    writing.stdin.flush()
    for _ in range(2000):
        if radio.transmitting():
            break
        signal_wait(radio)
    assert radio.transmitting()
    writing.send_signal(signal_number)
    writing.stdin.close()
    writing.wait(timeout=60)
    for _ in range(2000):
        if not radio.transmitting():
            break
        signal_wait(radio)
    assert not radio.transmitting()


def signal_wait(radio: VirtualAd9361) -> None:
    clock = radio.air.clock
    clock.reach(clock.now_s() + 0.005)


def test_the_command_starts_radios_and_ends_by_ctrl_c():
    process = subprocess.Popen(
        [sys.executable, "-m", "semair.cli", "virtual", "pluto", "127.0.0.1:0", "127.0.0.2:0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        uris = json.loads(process.stdout.readline())["uris"]
        assert [uri.split(":")[1] for uri in uris] == ["127.0.0.1", "127.0.0.2"]
        for uri in uris:
            assert run("iio_attr", "-u", uri, "-C", text=True).returncode == 0
    finally:
        process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130

"""The IIO backend, on virtual Plutos and AD9361. What streams runs in a process of its own, as its users run it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from semair.errors import RadioError, SetupError
from semair.hardware.discover import backends
from semair.hardware.iio import IioRadio
from semair.hardware.radio import Settings
from semair.hardware.trial import RateTrial
from semair.hardware.virtual.ad9361 import VirtualAd9361
from semair.hardware.virtual.air import VirtualAir
from semair.hardware.virtual.faults import Fault
from semair.hardware.virtual.iio_model import Context, Device
from semair.hardware.virtual.iiod import IiodServer

CLIENT = Path(__file__).with_name("iio_radio_client.py")
PATHS = np.array([[0.8, 0.3j], [-0.2, 0.6]])
RX, TX = "cf-ad9361-lpc", "cf-ad9361-dds-core-lpc"

if find_spec("iio") is None or find_spec("adi") is None:
    pytest.skip("pylibiio or pyadi-iio is not installed", allow_module_level=True)
try:
    import iio
except Exception as error:
    pytest.skip(f"libiio does not load: {error}", allow_module_level=True)


@pytest.fixture
def pluto() -> Iterator[VirtualAd9361]:
    with VirtualAd9361(VirtualAir(noise_power=1e-8, seed=1), "a", port=0) as radio:
        yield radio


@pytest.fixture
def board() -> Iterator[VirtualAd9361]:
    air = VirtualAir(noise_power=1e-8, seed=1)
    with VirtualAd9361(air, "b", model="ad9361", port=0) as radio:
        air.set_channel(PATHS)
        yield radio


def start(step: str, address: str, **options) -> subprocess.Popen:
    if find_spec("gnuradio") is None:
        pytest.skip("GNU Radio is not installed")
    command = ["timeout", "-k", "5", "120", sys.executable, str(CLIENT), step, address, json.dumps(options)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(client: subprocess.Popen) -> dict:
    """What a client found; that it hung, or crashed at its end, is a failure."""
    out, err = client.communicate(timeout=150)
    assert client.returncode == 0, out + err
    return json.loads(out.split("RESULT ")[1])


def await_streams(client: subprocess.Popen) -> None:
    assert client.stdout is not None
    for line in client.stdout:
        if line.strip() == "STREAMS":
            return
    raise AssertionError(client.communicate()[1])


def await_(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_off(radio: VirtualAd9361) -> bool:
    """Nothing is sent, and nothing would be: attenuation, oscillator, tones, buffers."""
    down = all(chain.tunings[-1].gain_db == -np.inf for chain in radio.radio.tx)
    quiet = all(not tone.on and tone.scale == 0 for tone in radio._tones)
    return down and quiet and set(radio.tx_gain_db) == {-89.75} and radio.streams[True] is None


def test_it_is_found_by_its_kind() -> None:
    assert backends()["iio"] is IioRadio
    assert IioRadio.foreign


def test_radios_that_announce_themselves_are_listed(
    pluto: VirtualAd9361, board: VirtualAd9361, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = IiodServer(Context("thermometer", {}, [Device("iio:device0", "xadc")]), port=0)
    announced = {pluto.uri: "a board", other.uri: "a thermometer", "ip:127.0.0.1:1": "switched off"}
    monkeypatch.setattr("semair.hardware.iio._announced", lambda iio: dict(announced))
    try:
        (found,) = IioRadio.find()
        assert (found.kind, found.address) == ("iio", pluto.uri)
        assert found.facts["hw_serial"] == "virtual-a"
        # Without an address it is the only one.
        radio = IioRadio("", 1)
        assert radio.facts()["uri"] == pluto.uri
        radio.close()
        announced[board.uri] = "one more"
        with pytest.raises(RadioError, match=f"2 IIO radios .*{pluto.uri}, {board.uri}; name one"):
            IioRadio("", 1)
        announced.clear()
        with pytest.raises(RadioError, match="no IIO radios announce themselves; name one"):
            IioRadio("", 1)
        with pytest.raises(RadioError, match="no AD936x radio; it has xadc"):
            IioRadio(other.uri, 1)
    finally:
        other.close()


def test_nothing_is_announced_where_nothing_is() -> None:
    # Libraries look on USB, on this machine and in the network, which may have nobody to ask.
    assert all(info.kind == "iio" for info in IioRadio.find())


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("192.168.2.1", "begins with one of ip:, usb:"),
        ("ip:127.0.0.1:1", "no radio answers at ip:127.0.0.1:1"),
        ("ip:127.0.0.1,gain=3", "'gain=3' .* known are tx_channels"),
        ("ip:127.0.0.1,loopback", "key=value"),
        ("ip:127.0.0.1,tx_channels=-1", "tx_channels='-1'"),
        ("ip:127.0.0.1,tx_channels=two", "whole number from 0"),
    ],
)
def test_addresses_that_lead_nowhere_are_refused(address: str, message: str) -> None:
    with pytest.raises(RadioError, match=message):
        IioRadio(address, 1)


@pytest.mark.parametrize(
    ("module", "text", "message"),
    [
        ("iio", "raise Exception('libiio version 1.x required, found version 0')", "version 1.x .*pylibiio>=0.25,<1"),
        ("iio", "raise OSError('libiio.so.0: cannot open')", "libiio.so.0.*apt install libiio0"),
        ("adi", "raise ImportError('no adi')", "pyadi-iio does not load: no adi; .*pip install"),
    ],
)
def test_libraries_that_are_missing_or_do_not_fit_are_named(
    module: str, text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SetupError, match=message):
        IioRadio("ip:127.0.0.1", 1)
    assert IioRadio.find() == []


def test_capabilities_are_those_of_the_device(pluto: VirtualAd9361, board: VirtualAd9361) -> None:
    one, two = IioRadio(pluto.uri, 1), IioRadio(f"pluto:{board.uri},tx_channels=2", 2)
    assert (one.capabilities.n_rx, one.capabilities.n_tx) == (1, 1)
    assert (two.capabilities.n_rx, two.capabilities.n_tx) == (2, 2)
    # What the logic around the chip can divide comes on top of what the chip can.
    assert one.capabilities.sample_rates_hz == (pytest.approx(521e3 / 8), 61.44e6)
    assert two.capabilities.sample_rates_hz == (pytest.approx(521e3), 61.44e6)
    for radio in (one, two):
        can = radio.capabilities
        assert not (can.has_hw_time or can.emulates_users or can.phase_stable_across_retune)
        assert can.overflow_reporting == "count"
        assert (can.datatype, can.path) == ("ci16_le", "sim")
        assert can.tx_gains_db == (-89.75, 0.0)
        assert can.loopback_modes == ("digital", "rf")
        with pytest.raises(RadioError, match="configure"):
            radio.source()
        radio.close()
        with pytest.raises(RadioError, match="closed"):
            radio.sink()
        radio.close()
    for address, n_rx, message in ((board.uri, 3, "2 receive chain"), (f"{pluto.uri},tx_channels=2", 1, "1 transmit")):
        with pytest.raises(RadioError, match=message):
            IioRadio(address, n_rx)


@pytest.mark.parametrize("rate_hz", [200e3, 600e3, 1.92e6, 2.5e6, 20e6, 61.44e6])
def test_rates_are_had_with_and_without_filters(pluto: VirtualAd9361, rate_hz: float) -> None:
    radio = IioRadio(pluto.uri, 1)
    assert radio.configure(Settings(rate_hz, 1e9)).sample_rate_hz == rate_hz
    assert pluto.core_rate_hz == {False: pytest.approx(rate_hz, abs=1), True: pytest.approx(rate_hz, abs=1)}
    radio.close()


def test_settings_are_read_back(pluto: VirtualAd9361) -> None:
    radio = IioRadio(f"{pluto.uri},rx_port=B_BALANCED,xo_hz=40000400", 1)
    actual = radio.configure(Settings(1e6, 2.4e9, rx_gain_db=(12.0,), tx_gain_db=(-7.3,), bandwidth_hz=3e6))
    assert actual.sample_rate_hz == 1e6
    # Steps of the synthesiser.
    assert actual.frequency_hz == pytest.approx(2.4e9, abs=5)
    assert (actual.rx_gain_db, actual.tx_gain_db, actual.bandwidth_hz) == ((12.0,), (-7.25,), 3e6)
    assert (actual.clock_source, actual.time_source) == ("internal", "none")
    # The chip's crystal is right, and it is told that it is 10 ppm fast.
    assert pluto.radio.rx[0].tunings[-1].frequency_hz == pytest.approx(2.4e9 * (1 - 1e-5), abs=10)
    facts = radio.facts()
    assert facts["serials"] == ["virtual-a"]
    assert (facts["gain_modes"], facts["agc"]) == (["manual"], False)
    assert facts["xo_hz"] == 40_000_400
    assert 20 < facts["temperature_c"] < 50
    assert "RXSAMP:1000000" in facts["clocks"]["rx"]
    json.dumps(facts, allow_nan=False)
    assert radio.locks() == {"baseband oscillator": True, "rx oscillator": True, "tx oscillator": True}
    assert radio.set_tx_gain_db(-3.0) == -3.0
    radio.silence()
    assert pluto.tx_gain_db == [-89.75]
    # Not asked for, the gain is the least, and the bandwidth that of the samples.
    actual = radio.configure(Settings(4e6, 1e9))
    assert (actual.tx_gain_db, actual.bandwidth_hz) == ((-89.75,), 4e6)
    radio.close()


def test_gains_that_move_by_themselves_are_not_told(pluto: VirtualAd9361) -> None:
    radio = IioRadio(f"{pluto.uri},gain_mode=fast_attack,tx_channels=0", 1)
    assert radio.configure(Settings(1e6, 1e9)).rx_gain_db == ()
    assert radio.facts()["agc"] is True
    with pytest.raises(RadioError, match="gain_mode=fast_attack"):
        radio.configure(Settings(1e6, 1e9, rx_gain_db=(3.0,)))
    # It does not transmit, and its transmitter's oscillator does not run.
    radio.configure(Settings(1e6, 1e9))
    assert radio.sink() is None
    assert "tx oscillator" not in radio.locks()
    assert is_off(pluto)
    with pytest.raises(RadioError, match="no transmit gain"):
        radio.set_tx_gain_db(-10.0)
    radio.close()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sample_rate_hz": 62e6}, "sample_rate_hz=62000000 .*65125 to 61440000 Hz"),
        ({"sample_rate_hz": 50e3}, "65125 to 61440000 Hz"),
        ({"sample_rate_hz": float("nan")}, "sample_rate_hz=nan"),
        ({"frequency_hz": 100e6}, "frequency_hz=100000000 .*325000000 to 3800000000 Hz"),
        ({"frequency_hz": float("inf")}, "frequency_hz=inf"),
        ({"bandwidth_hz": 1e9}, "bandwidth_hz=1000000000 .*200000 to"),
        ({"rx_gain_db": (80.0,)}, "rx_gain_db=80 .*-3 to 71 dB"),
        ({"rx_gain_db": (1.0, 2.0)}, "rx_gain_db has 2 value"),
        ({"tx_gain_db": (1.0,)}, "tx_gain_db=1 .*-89.75 to 0 dB"),
        ({"tx_gain_db": (-1.0, -2.0)}, "tx_gain_db has 2 value"),
        ({"clock_source": "gpsdo"}, "clock_source='gpsdo'"),
        ({"time_source": "external"}, "time_source='external'"),
    ],
)
def test_settings_that_cannot_be_are_refused(pluto: VirtualAd9361, wrong: dict, message: str) -> None:
    radio = IioRadio(pluto.uri, 1)
    with pytest.raises(RadioError, match=message):
        radio.configure(Settings(**{"sample_rate_hz": 1e6, "frequency_hz": 2.4e9, **wrong}))
    with pytest.raises(RadioError, match="not configured"):
        radio.source()
    # The next ones are taken.
    assert radio.configure(Settings(1e6, 2.4e9)).sample_rate_hz == 1e6
    with pytest.raises(RadioError, match=r"gain_db=0\.5 "):
        radio.set_tx_gain_db(0.5)
    radio.close()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("gain_mode=loud", "gain_mode=loud is none of .*: manual, fast_attack"),
        ("rx_port=J9", "rx_port=J9 is none of .*A_BALANCED"),
        ("loopback=moon", "loopback=moon .*off, digital, rf"),
        ("loopback=rf", "refuses loopback=rf: Operation not supported"),
        ("xo_hz=1", "xo_hz=1 .*39992000 to 40008000 Hz"),
    ],
)
def test_options_that_the_device_has_not_are_refused(pluto: VirtualAd9361, option: str, message: str) -> None:
    radio = IioRadio(f"{pluto.uri},{option}", 1)
    with pytest.raises(RadioError, match=message):
        radio.configure(Settings(1e6, 2.4e9))
    radio.close()


def test_what_the_driver_refuses_is_named(pluto: VirtualAd9361) -> None:
    radio = IioRadio(pluto.uri, 1)
    pluto.server.faults.add(Fault("write", "errno", subject="sampling_frequency", number=22, times=-1))
    with pytest.raises(RadioError, match="refuses a sample rate of 1000000 Hz: Invalid argument"):
        radio.configure(Settings(1e6, 2.4e9))
    pluto.server.faults.clear()
    radio.configure(Settings(1e6, 2.4e9))
    pluto.server.drop_connections()
    with pytest.raises(RadioError, match="vanished: it refuses a transmit gain"):
        radio.set_tx_gain_db(-10.0)
    # Of what is gone nothing more is asked.
    radio.silence()
    radio.close()


def test_a_radio_that_streams_for_another_program_is_left_alone(pluto: VirtualAd9361) -> None:
    context = iio.Context(pluto.uri)
    device = context.find_device(RX)
    for channel in device.channels:
        channel.enabled = True
    buffer = iio.Buffer(device, 4096)
    before = pluto.core_rate_hz[False]
    with pytest.raises(RadioError, match="busy: another program receives with it"):
        IioRadio(pluto.uri, 1)
    assert pluto.core_rate_hz[False] == before
    buffer.refill()
    del buffer
    IioRadio(pluto.uri, 1).close()


def test_it_begins_and_ends_with_its_transmitters_off(pluto: VirtualAd9361) -> None:
    # What another program has left on.
    for tone in pluto._tones:
        tone.on, tone.scale = True, 0.5
    pluto.tx_gain_db = [0.0]
    radio = IioRadio(pluto.uri, 1)
    radio.configure(Settings(1e6, 1e9))
    assert not pluto.transmitting()
    assert all(not tone.on and tone.scale == 0 for tone in pluto._tones)
    radio.set_tx_gain_db(-1.0)
    radio.close()
    assert is_off(pluto)


def test_every_path_of_two_chains(board: VirtualAd9361) -> None:
    found = result(start("paths", board.uri, chains=2))
    for run, scale in zip(found["runs"], (0.5, 0.5 / 10**0.5), strict=True):
        # Half a step of the converters; 0.1 dB of the gain.
        np.testing.assert_allclose(run["levels"], scale * np.abs(PATHS), rtol=0.012, atol=1e-3)
        assert run["settings"]["tx_gain_db"] == [-89.75, -89.75]
        assert run["tags"] == {"rx_rate": 1e6, "rx_freq": pytest.approx(1e9, abs=5)}
    assert [run["gain_db"] for run in found["runs"]] == [0.0, -10.0]
    assert found["locks_closed"] == {}
    assert is_off(board)


@pytest.mark.parametrize("samples", [pytest.param(300, marks=pytest.mark.slow), 123_457])
def test_every_sample_that_was_handed_over_is_sent(pluto: VirtualAd9361, samples: int) -> None:
    found = result(start("finite", pluto.uri, samples=samples, amplitude=0.5))
    assert found["heard"] == samples
    assert found["level"] == pytest.approx(0.5, abs=1e-3)
    assert "tx_clipped" not in found["counts"]
    assert pluto.streams == {False: None, True: None}


@pytest.mark.slow
def test_samples_beyond_full_scale_are_counted(pluto: VirtualAd9361) -> None:
    found = result(start("finite", pluto.uri, samples=5000, amplitude=1.5))
    assert found["counts"]["tx_clipped"] == 5000
    assert found["level"] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("way", "name"), [(False, "overflows"), pytest.param(True, "underflows", marks=pytest.mark.slow)]
)
def test_losses_are_counted_and_do_not_end_the_stream(pluto: VirtualAd9361, way: bool, name: str) -> None:
    client = start("stream", pluto.uri, counts=name)
    await_streams(client)
    pluto.streams[way].flag_loss()
    found = result(client)
    assert found["error"] == ""
    assert found["counts"][name] >= 1
    assert is_off(pluto)


@pytest.mark.parametrize(
    "how",
    ["closed", "hang", *(pytest.param(how, marks=pytest.mark.slow) for how in ("cut", "refused"))],
)
def test_a_radio_that_vanishes_is_reported(pluto: VirtualAd9361, how: str) -> None:
    client = start("stream", pluto.uri)
    await_streams(client)
    if how == "closed":
        pluto.server.close()
    elif how == "cut":
        pluto.server.drop_connections()
    else:
        action, times = ("hang", -1) if how == "hang" else ("errno", 1)
        for where in ("readbuf", "writebuf"):
            pluto.server.faults.add(Fault(where, action, number=5, times=times))
    found = result(client)
    assert found["error"].startswith("RadioError: the ")
    assert "vanished" in found["error"]
    # The stream is over in any case.
    await_(lambda: pluto.streams[True] is None)


def test_a_trial_in_which_an_overflow_was_counted_is_not_clean() -> None:
    trial = RateTrial(1e6, received=1_000_000, seconds=1.0)
    assert trial.clean
    assert not replace(trial, counts={"overflows": 1}).clean


@pytest.mark.parametrize("end", ["sigkill", *(pytest.param(end, marks=pytest.mark.slow) for end in ("exit", "sigint"))])
def test_however_a_program_ends_nothing_is_sent_any_more(pluto: VirtualAd9361, end: str) -> None:
    client = start("stream", pluto.uri, end="exit", counts="underflows" if end == "exit" else "")
    await_streams(client)
    assert pluto.transmitting()
    children = subprocess.run(["pgrep", "-P", str(client.pid)], capture_output=True, text=True, check=True)
    if end == "exit":
        pluto.streams[True].flag_loss()
    else:
        signal_number = signal.SIGINT if end == "sigint" else signal.SIGKILL
        subprocess.run(["kill", f"-{int(signal_number)}", children.stdout.strip()], check=True)
    client.communicate(timeout=150)
    await_(lambda: pluto.streams == {False: None, True: None})
    assert not pluto.transmitting()
    # Nobody can turn down what belonged to a process that was killed.
    assert is_off(pluto) == (end != "sigkill")
    # Whoever comes next can.
    IioRadio(pluto.uri, 1).close()
    assert is_off(pluto)

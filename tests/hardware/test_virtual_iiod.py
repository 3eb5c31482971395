"""The virtual AD9361's protocol, attributes and streams, byte by byte over a socket; time passes as the tests say."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from semair.errors import RadioError
from semair.hardware.virtual.ad9361 import VirtualAd9361
from semair.hardware.virtual.air import VirtualAir
from semair.hardware.virtual.clock import SteppedClock
from semair.hardware.virtual.faults import Fault

PHY, RX, TX = "ad9361-phy", "cf-ad9361-lpc", "cf-ad9361-dds-core-lpc"
RATE = 4_000_000


class Client:
    """As little of a client as will do."""

    def __init__(self, device: VirtualAd9361) -> None:
        self.socket = socket.create_connection((device.server.address, device.server.port), timeout=20)
        self.file = self.socket.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()

    def ask(self, line: str, payload: bytes = b"") -> int:
        self.socket.sendall(line.encode() + b"\r\n" + payload)
        return int(self.file.readline())

    def read(self, place: str) -> str:
        n = self.ask(f"READ {place}")
        if n < 0:
            raise OSError(-n, os.strerror(-n))
        value = self.file.read(n)
        assert self.file.read(1) == b"\n"
        assert value.endswith(b"\0")
        return value[:-1].decode()

    def write(self, place: str, value: object) -> int:
        payload = f"{value}\0".encode()
        return self.ask(f"WRITE {place} {len(payload)}", payload)

    def take(self, n: int, columns: int = 2) -> np.ndarray:
        """READBUF of n sample sets, (n, columns) int16."""
        left, out = 2 * columns * n, b""
        self.socket.sendall(f"READBUF {RX} {left}\r\n".encode())
        first = True
        while left:
            got = int(self.file.readline())
            if got <= 0:
                raise OSError(-got, os.strerror(-got))
            if first:
                assert len(self.file.readline()) == 9
                first = False
            out += self.file.read(got)
            left -= got
        return np.frombuffer(out, "<i2").reshape(-1, columns)

    def push(self, samples: np.ndarray) -> int:
        """WRITEBUF of (n, columns) int16 in the way of a client that does not wait for the first answer."""
        payload = np.ascontiguousarray(samples, dtype="<i2").tobytes()
        assert self.ask(f"WRITEBUF {TX} {len(payload)}", payload) == 0
        return int(self.file.readline())


@contextmanager
def device(model="pluto", master="test", name="r", air=None, **options) -> Iterator[VirtualAd9361]:
    air = air or VirtualAir(SteppedClock(master), noise_power=0.0, random_phase=False, seed=1)
    made = VirtualAd9361(air, name, model=model, port=0, **options)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def prepared(**options) -> Iterator[tuple[VirtualAd9361, Client]]:
    """A device at RATE with both carriers at 1 GHz, gains of 0 dB, and one client."""
    with device(**options) as made, Client(made) as client:
        assert client.write(f"{PHY} INPUT voltage0 sampling_frequency", RATE) > 0
        for lo in ("altvoltage0", "altvoltage1"):
            assert client.write(f"{PHY} OUTPUT {lo} frequency", 1_000_000_000) > 0
        for chain in range(made.model.chains):
            assert client.write(f"{PHY} INPUT voltage{chain} gain_control_mode", "manual") > 0
            assert client.write(f"{PHY} INPUT voltage{chain} hardwaregain", "0.000000 dB") > 0
            assert client.write(f"{PHY} OUTPUT voltage{chain} hardwaregain", "0") > 0
        yield made, client


def advance(made: VirtualAd9361, n: int) -> None:
    """Let n samples' time pass."""
    clock = made.air.clock
    assert clock.reach(clock.now_s() + n / RATE, "test", drives=True)


def ramp(n: int, first: int = 0) -> np.ndarray:
    """(n, 2) int16 of which each 12-bit value tells its place."""
    return np.stack([(np.arange(first, first + n) % 2000 - 1000) * 16, np.full(n, 160)], axis=1)


def eventually(condition) -> None:
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it never came")


# Requests and answers


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("TIMEOUT 2500", 0),
        ("timeout 2500", 0),
        ("Timeout 2500", -errno.EINVAL),
        ("TIMEOUT -1", -errno.EINVAL),
        ("TIMEOUT", -errno.EINVAL),
        ("BINARY", -errno.EINVAL),
        ("ZPRINT", -errno.EINVAL),
        ("NONSENSE", -errno.EINVAL),
        ("_do_close", -errno.EINVAL),
        (f"GETTRIG {RX}", 0),
        (f"SETTRIG {RX}", 0),
        ("GETTRIG nothing", -errno.ENODEV),
        (f"SET {RX} BUFFERS_COUNT 8", 0),
        (f"SET {RX} BUFFERS_COUNT 0", -errno.EINVAL),
        (f"SET {RX} BUFFERS_COUNT 1000", -errno.EINVAL),
        (f"SET {RX} SOMETHING 8", -errno.EINVAL),
        ("READ nothing attribute", -errno.ENODEV),
        (f"READ {PHY} nothing", -errno.ENOENT),
        (f"READ {PHY} INPUT voltage7 rssi", -errno.ENXIO),
        (f"READ {PHY} dcxo_tune_coarse", -errno.EOPNOTSUPP),
        (f"READ {PHY} calib_mode more", -errno.EINVAL),
        (f"READ {RX} INPUT voltage0 samples_pps", -errno.EOPNOTSUPP),
        (f"CLOSE {RX}", -errno.ENXIO),
        (f"READBUF {RX} 4096", -errno.EBADF),
        (f"WRITEBUF {TX} 4096", -errno.EBADF),
        ("OPEN nothing 1024 00000003", -errno.ENODEV),
        (f"OPEN {PHY} 1024 00000003", -errno.ENODEV),
        (f"OPEN {RX} 1024 03", -errno.EINVAL),
        (f"OPEN {RX} 1024 0000000g", -errno.EINVAL),
        (f"OPEN {RX} 1024 00000000", -errno.EINVAL),
        (f"OPEN {RX} 0 00000003", -errno.EINVAL),
        (f"OPEN {RX} 1024 00000003 CYCLIC", -errno.EINVAL),
        (f"OPEN {TX} 1024 0000003c", -errno.EINVAL),
        (f"OPEN {RX} 99999999 00000003", -errno.ENOMEM),
        (f"OPEN {RX} 1024 00000003", 0),
        (f"OPEN {TX} 1024 00000003 CYCLIC", 0),
        ("OPEN iio:device3 1024 00000003", 0),
    ],
)
def test_answers(line, answer):
    with device() as made, Client(made) as client:
        assert client.ask(line) == answer
        # The connection goes on after whatever it was.
        assert client.ask("TIMEOUT 0") == 0


def test_version_has_a_tag_of_seven_characters():
    with device() as made, Client(made) as client:
        client.socket.sendall(b"\r\nVERSION\n")
        major, minor, tag = client.file.readline().rstrip(b"\n").split(b".")
        assert (int(major), int(minor), len(tag)) == (0, 24, 7)
        client.socket.sendall(b"EXIT\r\n")
        assert client.file.read() == b""


@pytest.mark.parametrize("model", ["pluto", "ad9361"])
def test_the_description_agrees_with_what_can_be_read(model):
    with device(model) as made, Client(made) as client:
        n = client.ask("PRINT")
        root = ET.fromstring(client.file.read(n + 1).decode())
        assert "virtual" in root.find("context-attribute[@name='hw_model']").get("value")
        readable = 0
        for element in root.findall("device"):
            own = element.get("id")
            # The order of channels is that of the bits in a mask: those with samples first.
            indices = [scan.get("index") for scan in element.findall("channel/scan-element")]
            assert indices == [str(i) for i in range(len(indices))]
            places = [(f"{own}", a.get("name")) for a in element.findall("attribute")]
            places += [(f"{own} DEBUG", a.get("name")) for a in element.findall("debug-attribute")]
            places += [(f"{own} BUFFER", a.get("name")) for a in element.findall("buffer-attribute")]
            for channel in element.findall("channel"):
                kind = channel.get("type").upper()
                places += [(f"{own} {kind} {channel.get('id')}", a.get("name")) for a in channel.findall("attribute")]
            for place, name in places:
                n = client.ask(f"READ {place} {name}")
                assert n > 0 or n == -errno.EOPNOTSUPP, (place, name)
                client.file.read(n + 1 if n > 0 else 0)
                readable += n > 0
        assert readable > 60


def test_attributes_with_one_filename_are_one_cell():
    with device("ad9361") as made:
        cells: dict = {}
        for part in made.context.devices:
            for channel in part.channels:
                for name, cell in channel.attributes.items():
                    known = cells.setdefault((part.id, channel.filenames[name]), cell)
                    assert known is cell, channel.filenames[name]


def test_all_attributes_at_once_are_those_one_by_one():
    with device() as made, Client(made) as client:
        for place, names in (
            (f"{PHY} ", list(made.context.device(PHY).attributes)),
            (f"{PHY} DEBUG ", list(made.context.device(PHY).debug)),
            (f"{RX} BUFFER ", list(made.context.device(RX).buffer)),
            (f"{PHY} INPUT voltage0 ", list(made.context.device(PHY).channel("voltage0", False).attributes)),
        ):
            blocks = client.file.read(client.ask(f"READ {place}"))
            assert client.file.read(1) == b"\n"
            at = 0
            for name in names:
                (n,) = struct.unpack_from(">i", blocks, at)
                at += 4
                if n < 0:
                    with pytest.raises(OSError) as refused:
                        client.read(f"{place}{name}")
                    assert refused.value.errno == -n
                    continue
                assert blocks[at : at + n - 1].decode() == client.read(f"{place}{name}")
                at += n + -n % 4
            assert at == len(blocks)


def test_writing_all_attributes_at_once():
    with device() as made, Client(made) as client:
        names = list(made.context.device(TX).channel("TX1_I_F1", True).attributes)
        values = {"frequency": "250000", "phase": "90000", "raw": "0", "scale": "0.5"}
        blocks = b""
        for name in names:
            text = values.get(name, "").encode() + b"\0"
            # A length of -1 leaves one alone.
            blocks += struct.pack(">i", len(text) if name in values else -1)
            blocks += text + bytes(-len(text) % 4) if name in values else b""
        assert client.ask(f"WRITE {TX} OUTPUT TX1_I_F1 {len(blocks)}", blocks) == len(blocks)
        for name, value in values.items():
            assert float(client.read(f"{TX} OUTPUT altvoltage0 {name}")) == float(value)
        assert client.ask(f"WRITE {TX} OUTPUT TX1_I_F1 6", struct.pack(">i", 99) + b"ab") == -errno.EINVAL


def test_a_refused_value_is_taken_off_the_line():
    with device() as made, Client(made) as client:
        assert client.ask("WRITE nothing attribute 9", b"VERSION\r\n") == -errno.ENODEV
        assert client.ask("TIMEOUT 0") == 0


# The chip's rules


@pytest.mark.parametrize(
    ("place", "value", "refusal"),
    [
        ("OUTPUT RX_LO frequency", 324_999_999, errno.EINVAL),
        ("OUTPUT RX_LO frequency", 3_800_000_001, errno.EINVAL),
        ("OUTPUT RX_LO frequency", "2.4e9", errno.EINVAL),
        ("OUTPUT TX_LO frequency", 3_800_000_000, 0),
        ("INPUT voltage0 sampling_frequency", 2_083_332, errno.EINVAL),
        ("INPUT voltage0 sampling_frequency", 2_083_333, 0),
        ("OUTPUT voltage0 sampling_frequency", 61_440_000, 0),
        ("OUTPUT voltage0 sampling_frequency", 61_440_001, errno.EINVAL),
        ("INPUT voltage0 rf_bandwidth", 199_999, errno.EINVAL),
        ("INPUT voltage0 rf_bandwidth", 56_000_000, 0),
        ("OUTPUT voltage0 rf_bandwidth", 40_000_001, errno.EINVAL),
        ("INPUT voltage0 gain_control_mode", "sometimes", errno.EINVAL),
        ("INPUT voltage0 gain_control_mode", "hybrid", 0),
        ("INPUT voltage0 hardwaregain", "10", errno.EOPNOTSUPP),
        ("OUTPUT voltage0 hardwaregain", "-89.75", 0),
        ("OUTPUT voltage0 hardwaregain", "0.25", errno.EINVAL),
        ("OUTPUT voltage0 hardwaregain", "-90", errno.EINVAL),
        ("OUTPUT voltage0 hardwaregain", "nan", errno.EINVAL),
        ("INPUT voltage0 rf_port_select", "B_BALANCED", 0),
        ("INPUT voltage0 rf_port_select", "Z", errno.EINVAL),
        ("INPUT voltage0 quadrature_tracking_en", "2", errno.EINVAL),
        ("INPUT out voltage_filter_fir_en", "1", errno.EINVAL),
        ("ensm_mode", "alert", 0),
        ("ensm_mode", "asleep", errno.EINVAL),
        ("xo_correction", 40_008_001, errno.EINVAL),
        ("rx_path_rates", "1", errno.EACCES),
        ("DEBUG loopback", 3, errno.EINVAL),
        ("DEBUG loopback", 2, errno.EOPNOTSUPP),
        ("DEBUG bist_tone", "2 1 0 0", 0),
        ("DEBUG bist_tone", "3 1 0 0", errno.EINVAL),
    ],
)
def test_values_are_checked_as_the_chip_does(place, value, refusal):
    with device() as made, Client(made) as client:
        before = client.read(f"{PHY} {place}") if refusal != errno.EACCES else None
        n = client.write(f"{PHY} {place}", value)
        assert n == (-refusal if refusal else len(str(value)) + 1)
        if refusal and before is not None:
            assert client.read(f"{PHY} {place}") == before


def test_gain_limits_follow_the_carrier():
    with device("ad9361") as made, Client(made) as client:
        client.write(f"{PHY} INPUT voltage0 gain_control_mode", "manual")
        client.write(f"{PHY} OUTPUT RX_LO frequency", 800_000_000)
        assert client.read(f"{PHY} INPUT voltage0 hardwaregain_available") == "[-1 1 73]"
        client.write(f"{PHY} INPUT voltage0 hardwaregain", "73.000000 dB")
        client.write(f"{PHY} OUTPUT RX_LO frequency", 5_000_000_000)
        assert client.read(f"{PHY} INPUT voltage0 hardwaregain") == "62.000000 dB"
        assert client.write(f"{PHY} INPUT voltage0 hardwaregain", "63") == -errno.EINVAL


@given(frequency=st.integers(70_000_000, 6_000_000_000))
@settings(max_examples=60)
def test_the_synthesizer_comes_within_its_step(chip, frequency):
    client, made = chip
    assert client.write(f"{PHY} OUTPUT RX_LO frequency", frequency) > 0
    # Twice 40 MHz over the modulus is 9.54 Hz at the VCO, which is divided by 2 at least.
    assert abs(int(client.read(f"{PHY} OUTPUT RX_LO frequency")) - frequency) <= 3
    assert abs(made.radio.rx[0].tunings[-1].frequency_hz - frequency) <= 2.4


@pytest.fixture(scope="module")
def chip():
    with device("ad9361") as made, Client(made) as client:
        yield client, made


def fir(taps: int, factor: int) -> str:
    lines = [f"RX 3 GAIN -6 DEC {factor}", f"TX 3 GAIN 0 INT {factor}", *["100,100"] * taps]
    return "\n".join(lines) + "\n\n"


def rates_of(text: str) -> list[int]:
    return [int(part.partition(":")[2]) for part in text.split()]


@given(rate=st.integers(520_833, 61_440_000), factor=st.sampled_from([1, 2, 4]))
@settings(max_examples=60)
def test_the_clock_chain_is_one_that_the_chip_can_make(rate, factor):
    made = CHAIN
    made._set_rate(30_720_000)
    made._set_fir_on((False, True), "0")
    made._load_fir(fir(16, factor))
    made._set_fir_on((False, True), "1")
    lowest = int(25e6 / 12 / factor)
    if rate < lowest or rate * factor > 640e6:
        with pytest.raises(OSError):
            made._set_rate(rate)
        return
    made._set_rate(rate)
    for output in (False, True):
        pll, converter, first, second, third, samples = rates_of(made._path_rates(output))
        assert samples == rate
        assert third == rate * factor
        assert 715e6 <= pll <= 1430e6
        assert 24.9e6 <= converter <= (336e6 if output else 640e6) + 1
        # Half-band stages divide by 1, 2 or 3, to a rounding.
        for high, low in ((converter, first), (first, second), (second, third)):
            assert abs(high / low - round(high / low)) < 1e-3
            assert round(high / low) in (1, 2, 3)


CHAIN: VirtualAd9361


@pytest.fixture(autouse=True, scope="module")
def _chain():
    global CHAIN
    with device() as CHAIN:
        yield


def test_rates_are_coupled_and_filters_set_their_limits():
    with device() as made, Client(made) as client:
        assert client.read(f"{PHY} INPUT voltage0 sampling_frequency_available") == "[2083333 1 61440000]"
        assert client.write(f"{PHY} OUTPUT voltage0 sampling_frequency", 3_000_000) > 0
        for place in (f"{PHY} INPUT voltage0", f"{RX} INPUT voltage1", f"{TX} OUTPUT voltage0"):
            assert client.read(f"{place} sampling_frequency") == "3000000"
        text = fir(128, 4)
        assert client.write(f"{PHY} filter_fir_config", text) == len(text) + 1
        assert client.read(f"{PHY} filter_fir_config") == "FIR Rx: 128,4 Tx: 128,4"
        assert client.write(f"{PHY} INPUT out voltage_filter_fir_en", 1) > 0
        assert client.read(f"{PHY} INPUT voltage0 filter_fir_en") == "1"
        assert client.read(f"{PHY} OUTPUT voltage0 sampling_frequency_available") == "[520833 1 61440000]"
        assert client.write(f"{PHY} INPUT voltage0 sampling_frequency", 1_000_000) > 0
        # Without the filter the rate is not possible; with it 128 taps are too many for the highest.
        assert client.write(f"{PHY} INPUT out voltage_filter_fir_en", 0) == -errno.EINVAL
        assert client.write(f"{PHY} INPUT voltage0 sampling_frequency", 61_440_000) == -errno.EINVAL
        assert client.read(f"{PHY} INPUT voltage0 sampling_frequency") == "1000000"
        for bad in ("", "RX 3 GAIN -6 DEC 3\n1,1\n", fir(130, 4), fir(15, 4), "hello", "1,2,3\n" * 16):
            assert client.write(f"{PHY} filter_fir_config", bad) == -errno.EINVAL


def test_the_fpga_divides_by_eight():
    with device() as made, Client(made) as client:
        client.write(f"{PHY} INPUT voltage0 sampling_frequency", 8_000_000)
        assert client.read(f"{RX} INPUT voltage0 sampling_frequency_available") == "8000000 1000000 "
        client.write(f"{RX} INPUT voltage0 sampling_frequency", 1_000_000)
        assert client.read(f"{RX} INPUT voltage0 sampling_frequency") == "1000000"
        assert client.read(f"{TX} OUTPUT voltage0 sampling_frequency") == "8000000"
        assert made.radio.rx[0].rate_hz == 1e6


def test_registers():
    with device() as made, Client(made) as client:
        client.write(f"{PHY} DEBUG direct_reg_access", "0x37")
        assert client.read(f"{PHY} DEBUG direct_reg_access") == "0xA"
        client.write(f"{PHY} DEBUG direct_reg_access", "0x100 0x55")
        assert client.read(f"{PHY} DEBUG direct_reg_access") == "0x55"
        assert client.write(f"{PHY} DEBUG direct_reg_access", "one") == -errno.EINVAL


# Samples


def test_digital_loopback_gives_back_every_sample():
    with prepared() as (made, client), Client(made) as tx:
        client.write(f"{PHY} DEBUG loopback", 1)
        assert client.ask(f"OPEN {RX} 1000 00000003") == 0
        assert tx.ask(f"OPEN {TX} 1000 00000003") == 0
        for block in range(3):
            assert tx.push(ramp(1000, 1000 * block)) == 4000
        advance(made, 8000)
        received = np.concatenate([client.take(1000) for _ in range(4)])
        # Only four buffers fill while nobody reads; sending begins after 2 ms, when these are full.
        assert not received.any()
        advance(made, 3500)
        received = np.concatenate([client.take(1000) for _ in range(3)])
        # 12 of 16 bits, in one piece.
        np.testing.assert_array_equal(received, ramp(3000) >> 4)


def test_a_receiver_takes_parts_of_buffers_and_chosen_columns():
    with prepared(model="ad9361") as (made, client), Client(made) as tx:
        client.write(f"{PHY} DEBUG loopback", 1)
        assert tx.ask(f"OPEN {TX} 500 0000000f CYCLIC") == 0
        four = np.stack([ramp(500)[:, 0], -ramp(500)[:, 0], np.full(500, 320), np.full(500, -640)], axis=1)
        tx.push(four)
        assert client.ask(f"OPEN {RX} 1000 0000000d") == 0
        advance(made, 2000)
        parts = np.concatenate([client.take(n, 3) for n in (300, 700, 1000)])
        expected = four[np.arange(2000) % 500][:, [0, 2, 3]] >> 4
        np.testing.assert_array_equal(parts, expected)
        assert client.ask(f"READBUF {RX} 5") == 0


@pytest.mark.parametrize("place", ["cyclic", "tones", "bist tx", "bist rx"])
def test_tones(place):
    with prepared() as (made, client), Client(made) as tx:
        k = np.arange(400)
        cycles = {"cyclic": 0.05, "tones": -0.125}.get(place, 3 / 32)
        if place == "cyclic":
            tone = 16000 * np.exp(2j * np.pi * cycles * k)
            tx.ask(f"OPEN {TX} 400 00000003 CYCLIC")
            assert tx.push(np.stack([tone.real, tone.imag], axis=1)) == 1600
        elif place == "tones":
            # As clients ask for a negative frequency: Q leads I by 90 degrees.
            for name, phase in (("TX1_Q_F1", 90_000), ("TX1_I_F1", 0)):
                client.write(f"{TX} OUTPUT {name} frequency", RATE // 8)
                client.write(f"{TX} OUTPUT {name} phase", phase)
                client.write(f"{TX} OUTPUT {name} scale", 0.5)
        else:
            client.write(f"{PHY} DEBUG bist_tone", f"{1 if place == 'bist tx' else 2} 2 1 0")
        assert made.transmitting() == (place != "bist rx")
        assert client.ask(f"OPEN {RX} 2000 00000003") == 0
        advance(made, 4000)
        client.take(2000)
        received = client.take(2000) @ [1, 1j] / 2048
        expected = np.exp(2j * np.pi * cycles * np.arange(2000))
        amplitude = abs(np.vdot(expected, received)) / 2000
        assert abs(20 * np.log10(amplitude / (16000 / 32768 if place == "cyclic" else 0.5))) < 0.1
        # What is not the tone is rounding to 12 bits, twice at most.
        rest = received - np.vdot(expected, received) / 2000 * expected
        assert np.abs(rest).max() < 2.5 / 2048
        if place == "cyclic":
            tx.ask(f"CLOSE {TX}")
            assert not made.transmitting()


def test_buffers_from_before_a_retune_come_first():
    with prepared() as (made, client), Client(made) as tx:
        tx.ask(f"OPEN {TX} 100 00000003 CYCLIC")
        tx.push(np.tile([16000, 0], (100, 1)))
        assert client.ask(f"OPEN {RX} 1000 00000003") == 0
        advance(made, 3000)
        client.write(f"{PHY} OUTPUT RX_LO frequency", 900_000_000)
        advance(made, 2000)
        powers = [np.abs(client.take(1000)).max() > 100 for _ in range(4)]
        assert powers == [True, True, True, False]


def test_an_overflow_loses_new_samples_and_sets_its_flag_once():
    with prepared() as (made, client), Client(made) as tx:
        client.write(f"{PHY} DEBUG loopback", 1)
        tx.ask(f"OPEN {TX} 2000 00000003 CYCLIC")
        tx.push(ramp(2000))
        assert client.ask(f"OPEN {RX} 300 00000003") == 0
        status = f"{RX} DEBUG direct_reg_access"
        client.write(status, "0x80000088")
        advance(made, 5000)
        first = client.take(300)
        eventually(lambda: client.read(status) == "0x4")
        old = [client.take(300) for _ in range(3)]
        advance(made, 1000)
        received = np.concatenate([first, *old, client.take(300), client.take(300)])[:, 0]
        jumps = np.flatnonzero(np.diff(received) % 2000 != 1)
        # Four buffers had filled; then reception went on with the present.
        assert list(jumps) == [1199]
        assert (received[1200] + 1000) % 2000 == 5000 % 2000
        client.write(status, "0x80000088 0x4")
        client.write(status, "0x80000088")
        assert client.read(status) == "0x0"


def test_an_underflow_sets_its_flag_until_it_is_cleared():
    with prepared() as (made, client), Client(made) as tx:
        status = f"{TX} DEBUG direct_reg_access"
        client.write(status, "0x80000088")
        tx.ask(f"OPEN {TX} 1000 00000003")
        assert client.read(status) == "0x0"
        tx.push(ramp(1000))
        advance(made, 8500)
        assert client.read(status) == "0x0"
        advance(made, 1000)
        assert client.read(status) == "0x1"
        tx.push(ramp(1000))
        client.write(status, "0x80000088 0x1")
        client.write(status, "0x80000088")
        assert client.read(status) == "0x0"


def test_a_full_queue_makes_the_sender_wait():
    with prepared() as (made, client), Client(made) as tx:
        client.ask("TIMEOUT 100")
        tx.ask("TIMEOUT 100")
        tx.ask(f"SET {TX} BUFFERS_COUNT 2")
        tx.ask(f"OPEN {TX} 20000 00000003")
        assert tx.push(ramp(20000)) == 80000
        assert tx.push(ramp(20000)) == 80000
        assert tx.push(ramp(20000)) == -errno.ETIMEDOUT
        advance(made, 20000)
        assert tx.push(ramp(20000)) == 80000


def test_gain_carrier_offset_and_crystal_between_two_radios():
    air = VirtualAir(SteppedClock("test"), noise_power=0.0, random_phase=False)
    with prepared(air=air, name="a", ppm=3.0) as (a, ca), prepared(air=air, name="b", ppm=-1.0) as (b, cb):
        ca.write(f"{PHY} OUTPUT voltage0 hardwaregain", "-12.25")
        cb.write(f"{PHY} INPUT voltage0 hardwaregain", "6")
        for name, phase in (("TX1_I_F1", 90_000), ("TX1_Q_F1", 0)):
            ca.write(f"{TX} OUTPUT {name} frequency", 100_000)
            ca.write(f"{TX} OUTPUT {name} phase", phase)
            ca.write(f"{TX} OUTPUT {name} scale", 0.5)
        cb.write(f"{PHY} OUTPUT RX_LO frequency", 999_950_000)
        cb.ask(f"OPEN {RX} 20000 00000003")

        def measure() -> tuple[float, float]:
            advance(b, 40000)
            cb.take(20000)
            x = cb.take(20000) @ [1, 1j] / 2048
            turns = np.angle(np.vdot(x[:-100], x[100:])) / 2 / np.pi / 100
            # But for multiples of 40 kHz.
            return float(turns * RATE), float(np.sqrt(np.mean(np.abs(x) ** 2)))

        frequency, amplitude = measure()
        # 150 kHz, 4 ppm of 1 GHz, and the two synthesizers' steps.
        expected = 100e3 + a.radio.tx[0].tunings[-1].frequency_hz - b.radio.rx[0].tunings[-1].frequency_hz
        assert abs(expected - 154e3) < 5
        assert abs((frequency - expected + 20e3) % 40e3 - 20e3) < 1
        assert abs(20 * np.log10(amplitude / 0.5) + 6.25) < 0.1
        # A correction of the crystal that is 3 ppm fast.
        ca.write(f"{PHY} xo_correction", 40_000_120)
        assert abs(a.radio.ppm) < 0.001


def test_automatic_gain_brings_a_signal_to_its_level():
    with prepared() as (made, client):
        client.write(f"{PHY} INPUT voltage0 gain_control_mode", "fast_attack")
        assert client.read(f"{PHY} INPUT voltage0 rssi") == "127.75 dB"
        client.write(f"{PHY} OUTPUT voltage0 hardwaregain", "-40")
        for name, phase in (("TX1_I_F1", 90_000), ("TX1_Q_F1", 0)):
            client.write(f"{TX} OUTPUT {name} phase", phase)
            client.write(f"{TX} OUTPUT {name} scale", 1.0)
        client.ask(f"OPEN {RX} 40000 00000003")
        for _ in range(3):
            advance(made, 40000)
            received = client.take(40000)
        # The target is -12 dB of full scale, the gain's step 1 dB, and up to 2 dB off are left alone.
        assert 0.19 < np.sqrt(np.mean(np.sum((received[-8000:] / 2048) ** 2, axis=1))) < 0.34
        assert float(client.read(f"{PHY} INPUT voltage0 hardwaregain").split()[0]) == pytest.approx(28, abs=2)
        assert client.read(f"{PHY} INPUT voltage0 rssi") == "40.00 dB"


def test_two_chains_have_paths_of_their_own():
    with prepared(model="ad9361") as (made, client), Client(made) as tx:
        h = np.array([[0.5, 0.25j], [-0.125, 0.5]])
        made.air.set_channel(h)
        tx.ask(f"OPEN {TX} 400 0000000f CYCLIC")
        k = np.arange(400)
        x = 16000 * np.stack([np.exp(2j * np.pi * 0.05 * k), np.exp(-2j * np.pi * 0.1 * k)])
        tx.push(x.T.copy().view(float).reshape(400, 4))
        client.ask(f"OPEN {RX} 400 0000000f")
        advance(made, 800)
        client.take(400, 4)
        y = client.take(400, 4).astype(float).view(complex).reshape(400, 2).T / 2048
        estimated = y @ np.linalg.pinv(x / 32768)
        np.testing.assert_allclose(estimated, h, atol=2e-3)


def test_the_transmitter_is_off_when_told():
    with prepared() as (made, client):
        client.write(f"{TX} OUTPUT TX1_I_F1 scale", 0.5)
        client.ask(f"OPEN {RX} 1000 00000003")

        def heard() -> bool:
            advance(made, 4000)
            return max(np.abs(client.take(1000)).max() for _ in range(4)) > 100

        assert heard()
        for off, on in ((("OUTPUT TX_LO powerdown", 1), ("OUTPUT TX_LO powerdown", 0)), (("ensm_mode", "alert"),) * 2):
            assert made.transmitting()
            client.write(f"{PHY} {off[0]}", off[1])
            assert not made.transmitting()
            assert not any([heard(), heard()][1:])
            client.write(f"{PHY} {on[0]}", on[1])


def test_without_a_master_time_passes_as_samples_are_taken():
    taken = []
    for size in (1000, 4096):
        with prepared(master=None) as (made, client):
            made.air.noise_power = 1e-2
            client.ask(f"OPEN {RX} {size} 00000003")
            taken.append(np.concatenate([client.take(size) for _ in range(-(-20000 // size))])[:20000])
            assert made.air.clock.now_s() >= 20000 / RATE
    np.testing.assert_array_equal(taken[0], taken[1])


def test_a_new_rate_begins_a_new_line_of_samples():
    with prepared(master=None) as (made, client), Client(made) as control:
        client.ask(f"OPEN {RX} 1000 00000003")
        client.take(1000)
        control.write(f"{PHY} INPUT voltage0 sampling_frequency", 8_000_000)
        before = made.air.clock.now_s()
        for _ in range(8):
            client.take(1000)
        assert made.air.clock.now_s() - before == pytest.approx(8000 / 8e6, abs=1.1e-3)


# Several clients, ends, faults


def test_one_client_streams_at_a_time():
    with device() as made, Client(made) as first, Client(made) as second:
        assert first.ask(f"OPEN {RX} 1000 00000003") == 0
        assert first.ask(f"OPEN {RX} 1000 00000003") == -errno.EBUSY
        assert second.ask(f"OPEN {RX} 1000 00000003") == -errno.EBUSY
        assert second.ask(f"OPEN {TX} 1000 00000003") == 0
        assert first.ask(f"CLOSE {RX}") == 0
        assert second.ask(f"OPEN {RX} 1000 00000003") == 0


def test_a_client_that_vanishes_frees_the_device():
    with prepared() as (made, client):
        gone = Client(made)
        assert gone.ask(f"OPEN {RX} 1000 00000003") == 0
        assert gone.ask(f"OPEN {TX} 1000 00000003 CYCLIC") == 0
        gone.push(ramp(1000))
        # In the middle of a request that waits for samples.
        gone.socket.sendall(f"READBUF {RX} 4000\r\n".encode())
        gone.__exit__()
        eventually(lambda: made.streams == {False: None, True: None})
        assert not made.transmitting()
        assert client.ask(f"OPEN {RX} 1000 00000003") == 0
        advance(made, 1000)
        assert len(client.take(1000)) == 1000


def test_closing_leaves_no_thread_and_no_port():
    before = set(threading.enumerate())
    with device() as made:
        clients = [Client(made) for _ in range(5)]
        clients[0].ask(f"OPEN {RX} 1000 00000003")
        clients[0].socket.sendall(f"READBUF {RX} 4000\r\n".encode())
        clients[1].ask(f"OPEN {TX} 1000 00000003")
        clients[2].socket.sendall(b"VERS")
        address = made.server.address, made.server.port
    assert set(threading.enumerate()) <= before
    with pytest.raises(OSError):
        socket.create_connection(address, timeout=1)
    for client in clients:
        client.__exit__()


def test_an_address_in_use_is_told():
    with device() as made, pytest.raises(RadioError, match="another device there"):
        VirtualAd9361(made.air, "second", port=made.server.port)


def test_faults_show_when_and_as_often_as_asked():
    with prepared() as (made, client):
        faults = made.server.faults
        faults.add(Fault("open", "errno", "lpc", errno.EBUSY))
        assert client.ask(f"OPEN {RX} 1000 00000003") == -errno.EBUSY
        assert client.ask(f"OPEN {RX} 1000 00000003") == 0
        faults.add(Fault("readbuf", "errno", number=errno.ETIMEDOUT, after=1))
        faults.add(Fault("readbuf", "end"))
        advance(made, 4000)
        with pytest.raises(OSError) as ended:
            client.take(1000)
        assert ended.value.errno == 0
        with pytest.raises(OSError) as ended:
            client.take(1000)
        assert ended.value.errno == errno.ETIMEDOUT
        faults.add(Fault("write", "errno", "frequency", errno.EIO, times=2))
        for answer in (-errno.EIO, -errno.EIO, 11):
            assert client.write(f"{PHY} OUTPUT RX_LO frequency", 1_000_000_000) == answer
        faults.add(Fault("read", "garbage"))
        client.socket.sendall(f"READ {PHY} ensm_mode\r\n".encode())
        assert b"garbage" in client.file.readline()
        assert len(faults.shown) == 6
        faults.add(Fault("print", "cut"))
        faults.clear()
        client.file.readline(), client.file.readline()
        assert client.ask("PRINT") > 1000


@pytest.mark.parametrize("action", ["lose", "lose-silently"])
def test_lost_buffers(action):
    with prepared() as (made, client), Client(made) as tx:
        client.write(f"{PHY} DEBUG loopback", 1)
        tx.ask(f"OPEN {TX} 2000 00000003 CYCLIC")
        tx.push(ramp(2000))
        client.ask(f"OPEN {RX} 100 00000003")
        advance(made, 400)
        made.server.faults.add(Fault("readbuf", action, number=2, after=1))
        received = np.concatenate([client.take(100) for _ in range(2)])[:, 0]
        assert received[100] - received[99] == 201
        assert bool(made.status[False]) == (action == "lose")


@pytest.mark.parametrize("action", ["cut", "truncate"])
@pytest.mark.parametrize("where", ["print", "readbuf", "open"])
def test_answers_that_break_off(where, action):
    with prepared() as (made, client):
        if where == "readbuf":
            client.ask(f"OPEN {RX} 1000 00000003")
            advance(made, 2000)
        made.server.faults.add(Fault(where, action))
        request = {"print": "PRINT", "readbuf": f"READBUF {RX} 4000", "open": f"OPEN {RX} 10 00000003"}[where]
        client.socket.sendall(request.encode() + b"\r\n")
        if action == "truncate":
            client.socket.shutdown(socket.SHUT_WR)
        assert len(client.file.read()) < {"print": 9000, "readbuf": 2100, "open": 2}[where]
        eventually(lambda: made.streams[False] is None)


def test_a_device_that_hangs_ends_when_the_client_goes():
    with prepared() as (made, client):
        made.server.faults.add(Fault("read", "hang"))
        hung = Client(made)
        hung.socket.sendall(f"READ {PHY} ensm_mode\r\n".encode())
        eventually(lambda: made.server.faults.shown)
        assert client.read(f"{PHY} ensm_mode") == "fdd"
        hung.__exit__()


# Bad input

WORDS = ["READ", "WRITE", "OPEN", "CLOSE", "READBUF", "WRITEBUF", "PRINT", "SET", "TIMEOUT", "INPUT", "OUTPUT", "DEBUG"]
WORDS += ["BUFFERS_COUNT", "BUFFER", "VERSION", "HELP", "EXIT", "GETTRIG", "SETTRIG", "ZPRINT", "BINARY", "CYCLIC"]
WORDS += [PHY, RX, TX, "iio:device3", "voltage0", "RX_LO", "frequency", "filter_fir_config", "00000003", "0000000f"]
REQUEST = st.lists(
    st.one_of(st.sampled_from(WORDS), st.integers(-5, 70000).map(str), st.binary(max_size=6).map(str)), max_size=6
).map(lambda words: " ".join(words).encode())
STREAM = st.lists(st.one_of(REQUEST, st.binary(max_size=40)), max_size=8).map(b"\r\n".join)


@given(bytes_in=STREAM)
@settings(max_examples=150)
def test_whatever_comes_in_others_are_served(garbled, bytes_in):
    made, client = garbled
    with socket.create_connection((made.server.address, made.server.port), timeout=20) as peer:
        peer.sendall(bytes_in)
        peer.shutdown(socket.SHUT_WR)
        # The server closes once it has seen the end, whatever stood before it.
        while peer.recv(1 << 16):
            pass
    assert client.read(f"{PHY} trx_rate_governor") in ("nominal", "highest_osr")


@pytest.fixture(scope="module")
def garbled():
    with device(master=None) as made, Client(made) as client:
        yield made, client
        eventually(lambda: len(made.server._connections) == 1)


def test_what_is_too_long_ends_the_connection():
    with device() as made, Client(made) as good:
        for flood in (b"A" * 100_000, b"WRITE ad9361-phy ensm_mode 99999999\r\n" + bytes(1000)):
            with Client(made) as bad:
                try:
                    bad.socket.sendall(flood)
                    bad.file.read()
                except ConnectionError:
                    pass
        assert good.read(f"{PHY} ensm_mode") == "fdd"


def test_more_clients_than_there_is_room_for():
    with device() as made:
        clients = [Client(made) for _ in range(64)]
        assert clients[-1].ask("TIMEOUT 0") == 0
        with Client(made) as late:
            assert late.file.read() == b""
        clients.pop().__exit__()
        eventually(lambda: len(made.server._connections) < 64)
        with Client(made) as again:
            assert again.ask("TIMEOUT 0") == 0
        for client in clients:
            client.__exit__()

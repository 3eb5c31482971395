"""The virtual USRP N210 without a driver: packets made here by hand, time that moves only when a test moves it."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from semair.errors import RadioError
from semair.hardware.virtual import usrp2
from semair.hardware.virtual.air import VirtualAir
from semair.hardware.virtual.clock import SteppedClock
from semair.hardware.virtual.n210 import VirtualN210

ADDRESS = "127.0.1.10"
RX0, RX1, TX, FIFO, CONTROL = 49156, 49158, 49157, 49159, 49152
PATIENCE_S = 60.0
CONTINUOUS, NOW, CHAIN, STOP = 3 << 29, 1 << 31, 1 << 30, 1 << 28


def synthesizer_words(frequency_hz: float, modulus: int = 4000) -> list[int]:
    """R2, R4, R1, R0 of an ADF4350 with a phase detector of 25 MHz and divided feedback."""
    whole, part = divmod(frequency_hz, 25e6)
    fraction = round(part / 25e6 * modulus)
    return [4 << 14 | 2, 1 << 20 | 4, modulus << 3 | 1, int(whole) << 15 | fraction << 3 | 0]


class Host:
    """The other end: one socket per port."""

    def __init__(self, unit: VirtualN210, clock: SteppedClock) -> None:
        self.unit, self.clock = unit, clock
        self.ports = {}
        for port in (RX0, RX1, TX, FIFO, CONTROL):
            self.ports[port] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.ports[port].settimeout(PATIENCE_S)
            self.ports[port].connect((unit.address, port))
            if port != CONTROL:
                self.ports[port].send(bytes(8))
        self.sequence = 0
        self.tx_sequence = 0

    def close(self) -> None:
        for channel in self.ports.values():
            channel.close()

    def at(self, ticks: int) -> None:
        """Let time come."""
        self.clock.reach(ticks / 1e8, "test", drives=True)

    def fifo(self, address: int, data: int = 0, poke: bool = True, ticks: int | None = None) -> None:
        self.sequence += 1
        header = 2 << 29 | (5 if ticks is not None else 3) | (1 << 20 if ticks is not None else 0)
        when = struct.pack(">Q", ticks) if ticks is not None else b""
        word = (self.sequence & 0xFFFF) << 16 | (0x100 if poke else 0) | address
        self.ports[FIFO].send(struct.pack(">II", self.sequence, header) + when + struct.pack(">II", word, data))

    def answer(self) -> int:
        packet = self.ports[FIFO].recv(100)
        assert len(packet) == 12
        assert struct.unpack(">I", packet[4:8])[0] >> 16 == self.sequence & 0xFFFF
        return struct.unpack(">I", packet[8:12])[0]

    def poke(self, address: int, data: int, ticks: int | None = None) -> None:
        self.fifo(address, data & 0xFFFFFFFF, True, ticks)
        if ticks is None:
            self.answer()

    def peek(self, address: int) -> int:
        self.fifo(address, poke=False)
        return self.answer()

    def time(self, first: int = 10) -> int:
        return self.peek(first) << 32 | self.peek(first + 1)

    def set_time(self, ticks: int, now: bool) -> None:
        self.poke(11, ticks & 0xFFFFFFFF)
        self.poke(13, int(now))
        self.poke(10, ticks >> 32)

    def set_up(self, *, rx_hz: float = 2e9, tx_hz: float = 2e9, packet_samples: int = 100) -> None:
        """1 MS/s both ways, unity gain from wire to wire."""
        for control, dsp in ((32, 48), (80, 96)):
            self.poke(control + 7, packet_samples)
            self.poke(control + 8, 0)
            self.poke(dsp + 2, 3 << 8 | 25)
            self.poke(dsp + 1, round(2**17 * 2**19 / (1.65 * 25**4)))
        self.poke(144, 1)
        self.poke(144, 0)
        self.poke(162, 3 << 8 | 25)
        self.poke(161, round(2**17 * 2**14 / (1.65 * 25**3)))
        for register in range(184, 188):
            self.poke(register, (63 << 8 | 0x10) << 16)
        self.tune(16, rx_hz)
        self.tune(128, tx_hz)

    def tune(self, slave: int, frequency_hz: float, ticks: int | None = None) -> None:
        self.poke(21, slave | 32 << 24)
        *before, last = synthesizer_words(frequency_hz)
        for word in before:
            self.poke(22, word)
        self.poke(22, last, ticks)

    def receive(self, word: int, ticks: int = 0, dsp: int = 0) -> None:
        base = (32, 80)[dsp]
        self.poke(base, word)
        self.poke(base + 1, ticks >> 32)
        self.poke(base + 2, ticks & 0xFFFFFFFF)

    def packet(self, port: int = RX0) -> dict:
        data = self.ports[port].recv(10_000)
        header, sid, ticks = struct.unpack(">IIQ", data[:16])
        assert (header & 0xFFFF) * 4 == len(data)
        found = {"sid": sid, "ticks": ticks, "eob": bool(header >> 24 & 1), "count": header >> 16 & 0xF}
        if header >> 29 == 2:
            return found | {"words": struct.unpack(f">{(len(data) - 16) // 4}I", data[16:])}
        values = np.frombuffer(data[16:-4], ">i2").astype(float)
        return found | {"samples": (values[::2] + 1j * values[1::2]) / 32767}

    def samples(self, n: int, port: int = RX0) -> tuple[np.ndarray, list[dict]]:
        packets: list[dict] = []
        while sum(p["samples"].size for p in packets) < n:
            packets.append(self.packet(port))
        return np.concatenate([p["samples"] for p in packets]), packets

    def transmit(
        self, samples: np.ndarray, ticks: int | None = None, *, start: bool = True, end: bool = True, skip: int = 0
    ) -> None:
        self.tx_sequence += skip
        values = np.stack([samples.real, samples.imag], 1) * 32767
        payload = np.rint(values).astype(">i2").tobytes()
        body = (struct.pack(">Q", ticks) if ticks is not None else b"") + payload + bytes(4)
        header = 1 << 26 | start << 25 | end << 24 | (ticks is not None) << 20 | (len(body) // 4 + 1)
        self.ports[TX].send(struct.pack(">II", self.tx_sequence, header) + body)
        self.tx_sequence += 1

    def settle(self) -> None:
        """Wait until everything sent so far was handled."""
        seen = self.unit.turns
        while self.unit.turns < seen + 3:
            time.sleep(0.001)


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
def unit(clock: SteppedClock) -> Iterator[VirtualN210]:
    with VirtualN210(VirtualAir(clock, noise_power=0, random_phase=False), ADDRESS) as device:
        yield device


@pytest.fixture
def host(unit: VirtualN210, clock: SteppedClock) -> Iterator[Host]:
    other = Host(unit, clock)
    other.settle()
    yield other
    other.close()


# Words and images


def test_synthesizer_gives_the_frequency_of_the_data_sheet() -> None:
    # Data sheet, worked example: 2112.6 MHz from 10 MHz times 2 by INT 105, FRAC 63 MOD 100 gives 4225.2 / 2; here
    # with a reference of 100 MHz divided by 10.
    registers = {0: 211 << 15 | 26 << 3, 1: 100 << 3 | 1, 2: 10 << 14 | 2, 4: 1 << 20 | 4}
    assert usrp2.synthesizer_hz(registers) == pytest.approx(2112.6e6)
    registers[4] |= 1 << 23
    assert usrp2.synthesizer_hz(registers) == pytest.approx(1056.3e6)
    assert usrp2.synthesizer_hz({0: 1}) is None
    assert usrp2.synthesizer_hz({0: 0, 1: 1, 2: 2, 4: 4}) is None


@pytest.mark.parametrize(("factor", "word"), [(100, 0x319), (52, 0x30D), (7, 0x007), (4, 0x301), (512, 0x380)])
def test_rate_words(factor: int, word: int) -> None:
    assert usrp2.rate_factor(word) == factor


@given(st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    usrp2.unpack_control(data)
    usrp2.unpack_fifo(data)
    packet = usrp2.unpack_tx(memoryview(data))
    assert packet is None or len(packet.payload) % 4 == 0


def test_daughterboard_eeprom_adds_up() -> None:
    rom = usrp2.daughterboard_eeprom(0x54, "X")
    assert sum(rom[:32]) % 256 == 0 and rom[0] == 0xDB


# Control port


def test_control_port_answers_each_kind(host: Host) -> None:
    def ask(kind: str, body: bytes) -> tuple[str, bytes]:
        host.ports[CONTROL].send(struct.pack(">III", 12, ord(kind), 77) + body)
        data = host.ports[CONTROL].recv(10_000)
        version, letter, sequence = struct.unpack(">III", data[:12])
        assert (version, sequence) == (12, 77)
        return chr(letter), data[12:]

    assert ask("a", b"") == ("A", socket.inet_aton(ADDRESS).ljust(24, b"\0"))
    kind, body = ask("r", struct.pack(">IIB", 0x5C00 + 4 * 12, 0, 1))
    assert kind == "R" and struct.unpack(">II", body[:8])[1] == 11 << 16 | 1
    ask("r", struct.pack(">IIB", 5, 99, 6))
    assert struct.unpack(">II", ask("r", struct.pack(">IIB", 5, 0, 5))[1][:8])[1] == 99
    ask("h", bytes([0x50, 1, 0]))
    assert ask("i", bytes([0x50, 2]))[1][:4] == bytes([0x50, 2, 0x11, 0x0A])
    ask("h", bytes([0x50, 2, 33, ord("Z")]))
    ask("h", bytes([0x50, 1, 33]))
    assert ask("i", bytes([0x50, 1]))[1][2:3] == b"Z"
    kind, body = ask("l", struct.pack(">I", 500))
    assert kind == "L" and len(body) == 488 and body[:4] == struct.pack(">I", 16)
    assert ask("?", b"")[0] == " "


# Time


def test_a_timed_command_holds_up_those_behind_it(host: Host) -> None:
    host.fifo(9, poke=False, ticks=50_000_000)
    host.fifo(10, poke=False)
    host.ports[FIFO].settimeout(0.2)
    with pytest.raises(TimeoutError):
        host.ports[FIFO].recv(100)
    host.ports[FIFO].settimeout(PATIENCE_S)
    host.at(50_000_000)
    assert len(host.ports[FIFO].recv(100)) == 12
    assert len(host.ports[FIFO].recv(100)) == 12


def test_time_is_set_at_once_or_exactly_at_the_next_pulse(host: Host) -> None:
    host.at(30_000_000)
    host.set_time(7_000_000_000, now=True)
    assert host.time() == 7_000_000_000
    host.at(60_000_000)
    assert host.time() == 7_030_000_000
    # The last pulse came before the time was set.
    assert host.time(14) == 0
    host.set_time(500_000_000, now=False)
    assert host.time() == 7_030_000_000
    host.at(123_000_000)
    assert host.time() == 523_000_000 and host.time(14) == 500_000_000
    host.at(345_000_000)
    assert host.time(14) == 700_000_000


def test_a_unit_may_see_the_pulse_late(clock: SteppedClock) -> None:
    with VirtualN210(VirtualAir(clock), ADDRESS, pps_error_ticks=10) as late:
        other = Host(late, clock)
        other.at(10_000_000)
        other.set_time(0, now=False)
        other.at(150_000_000)
        assert other.time(14) == 0
        assert other.time() == 150_000_000 - 100_000_010
        other.close()


def test_time_follows_the_other_end_of_the_cable(unit: VirtualN210, host: Host, clock: SteppedClock) -> None:
    with VirtualN210(unit.air, "127.0.1.11", mimo_master=unit) as second:
        other = Host(second, clock)
        host.set_time(900, now=True)
        assert other.time() == 0
        other.poke(15, 1 << 8 | 138)
        assert other.time() == 900
        host.set_time(10**10, now=True)
        host.at(500)
        assert other.time() == host.time() == 10**10 + 500
        other.close()


# Reception


def test_a_finite_reception_has_exact_times_counts_and_one_end(host: Host) -> None:
    host.set_up()
    host.receive(250, 1_000_037)
    host.at(1_100_000)
    samples, packets = host.samples(250)
    assert [p["samples"].size for p in packets] == [100, 100, 50]
    assert [p["ticks"] for p in packets] == [1_000_037, 1_010_037, 1_020_037]
    assert [p["count"] for p in packets] == [0, 1, 2]
    assert [p["eob"] for p in packets] == [False, False, True]
    assert {p["sid"] for p in packets} == {3}
    assert samples.size == 250


def test_stopping_ends_with_a_marked_packet(host: Host) -> None:
    host.set_up()
    host.receive(CONTINUOUS | NOW | 1)
    host.at(25_000)
    host.samples(200)
    host.receive(STOP | NOW)
    samples, packets = host.samples(1)
    assert samples.size == 50 and packets[-1]["eob"]
    host.at(100_000)
    host.settle()
    host.receive(10 | NOW)
    host.at(110_000)
    assert host.packet()["ticks"] == 100_000


def test_late_and_broken_commands_are_told(host: Host) -> None:
    host.set_up()
    host.at(1_000_000)
    host.receive(100, 999_999)
    assert host.packet()["words"] == (2,)
    host.receive(CHAIN | NOW | 100)
    host.at(1_020_000)
    assert host.packet()["samples"].size == 100
    told = host.packet()
    assert told["words"] == (4,) and told["ticks"] == 1_010_000


def test_chained_commands_follow_without_a_gap(host: Host) -> None:
    host.set_up()
    host.receive(CHAIN | 100, 10_000)
    host.receive(NOW | 70)
    host.at(40_000)
    _, packets = host.samples(170)
    assert [p["ticks"] for p in packets] == [10_000, 20_000]
    assert [p["eob"] for p in packets] == [False, True]


@pytest.mark.parametrize("how", ["injected", "by a pause"])
def test_an_overflow_is_told_where_it_was_and_the_stream_goes_on(host: Host, unit: VirtualN210, how: str) -> None:
    host.set_up()
    host.receive(CONTINUOUS | 1, 10_000)
    host.at(40_000)
    host.samples(300)
    if how == "injected":
        unit.inject("rx-overflow")
        host.at(200_000)
    else:
        host.at(100_000_000)
    told = host.packet()
    assert told["words"] == (8,) and told["ticks"] == 40_000
    if how == "by a pause":
        host.settle()
        host.at(100_100_000)
    following = host.packet()
    lost = unit.counts["rx_lost_samples"]
    assert lost > 0 and following["ticks"] == 40_000 + 100 * lost
    assert following["count"] == 3


def test_a_lost_packet_shows_in_the_count(host: Host, unit: VirtualN210) -> None:
    host.set_up()
    unit.inject("rx-lost-packet")
    host.receive(400, 0)
    host.at(50_000)
    _, packets = host.samples(300)
    assert [p["count"] for p in packets] == [1, 2, 3]


def test_nobody_listening_ends_a_stream_and_the_next_host_is_served(unit: VirtualN210, clock: SteppedClock) -> None:
    first = Host(unit, clock)
    first.set_up()
    first.receive(CONTINUOUS | NOW | 1)
    first.at(100_000)
    first.samples(100)
    first.close()
    for k in range(5):
        clock.reach(2e-3 + 1e-3 * k, "test", drives=True)
        time.sleep(0.02)
    second = Host(unit, clock)
    second.set_up()
    start = second.time() + 1000
    second.receive(100, start)
    second.at(start + 20_000)
    assert second.packet()["ticks"] == start
    second.close()


# Transmission


def amplitude(samples: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.abs(samples) > 0.2)


@pytest.mark.parametrize(("rx_tick", "tx_tick"), [(0, 0), (37, 37), (99, 1), (50, 25)])
def test_a_timed_burst_is_heard_at_its_sample(host: Host, rx_tick: int, tx_tick: int) -> None:
    host.set_up()
    host.set_time(123_456_789, now=True)
    base = 124_000_000
    host.receive(1000, base + rx_tick)
    host.transmit(np.full(30, 0.5), base + tx_tick + 400 * 100)
    host.settle()
    host.at(2_000_000)
    samples, packets = host.samples(1000)
    on = amplitude(samples)
    assert packets[0]["ticks"] == base + rx_tick
    assert on.size == 30
    # Within one sample of the time asked for; exactly, where both lie on one grid.
    error = packets[0]["ticks"] + 100 * int(on[0]) - (base + tx_tick + 40_000)
    assert abs(error) < 100 and (rx_tick != tx_tick or error == 0)
    assert np.allclose(samples[on], 0.5, atol=1e-3)


def test_burst_acknowledgement_and_flow_control(host: Host) -> None:
    host.set_up()
    host.poke(149, 1 << 31 | 3)
    for k in range(7):
        host.transmit(np.zeros(10), 100_000 if k == 0 else None, start=k == 0, end=k == 6)
    host.settle()
    host.at(110_000)
    # All seven packets were sent between two looks: one acknowledgement, of the last.
    assert [host.packet(TX)["words"] for _ in range(2)] == [(1, 1), (0, 6)]


def test_flow_control_follows_consumption(host: Host) -> None:
    host.set_up()
    host.poke(149, 1 << 31 | 2)
    for k in range(4):
        host.transmit(np.zeros(10), 100_000 if k == 0 else None, start=k == 0, end=False)
    host.settle()
    host.at(102_000)
    assert host.packet(TX)["words"] == (0, 1)


@pytest.mark.parametrize(
    ("cause", "event"), [("late", 8), ("underflow", 2), ("sequence", 4), ("sequence in a burst", 32), ("injected", 2)]
)
def test_what_goes_wrong_in_transmission_is_told(host: Host, unit: VirtualN210, cause: str, event: int) -> None:
    host.set_up()
    host.at(1_000_000)
    if cause == "late":
        host.transmit(np.ones(10), 999_000)
    elif cause in ("underflow", "injected"):
        host.transmit(np.ones(10), 1_100_000, end=False)
        host.settle()
        if cause == "injected":
            unit.inject("tx-underflow")
        else:
            host.at(1_102_000)
    elif cause == "sequence":
        host.transmit(np.ones(10), 1_100_000, skip=1)
    else:
        host.transmit(np.ones(10), 1_100_000, end=False)
        host.transmit(np.ones(10), start=False, skip=1)
    told = host.packet(TX)
    assert told["sid"] == 2 and told["words"][0] == event
    if cause == "underflow":
        assert told["ticks"] == 1_101_000


def test_after_an_underflow_the_policy_decides(host: Host, unit: VirtualN210) -> None:
    host.set_up()
    host.poke(147, 4)
    host.receive(1000, 0)
    host.transmit(np.full(10, 0.5), 10_000, end=False)
    host.settle()
    host.at(12_000)
    assert host.packet(TX)["words"][0] == 2
    host.transmit(np.full(10, 0.5), 20_000, start=False)
    host.transmit(np.full(10, 0.5), 30_000)
    host.settle()
    host.at(200_000)
    samples, _ = host.samples(1000)
    assert amplitude(samples).tolist() == [*range(100, 110), *range(300, 310)]


def test_a_gap_in_a_timed_burst_is_silence(host: Host) -> None:
    host.set_up()
    host.receive(500, 0)
    host.transmit(np.full(10, 0.5), 10_000, end=False)
    host.transmit(np.full(10, 0.5), 15_000, start=False)
    host.settle()
    host.at(60_000)
    samples, _ = host.samples(500)
    assert amplitude(samples).tolist() == [*range(100, 110), *range(150, 160)]


# Frequency and gain


def test_a_timed_retune_holds_from_its_sample_on(host: Host) -> None:
    host.set_up()
    host.receive(1000, 0)
    host.transmit(np.full(1000, 0.5), 0)
    host.settle()
    host.tune(16, 2e9 - 125e3, ticks=50_000)
    host.settle()
    host.at(50_000)
    host.settle()
    host.at(150_000)
    samples, _ = host.samples(1000)
    turn = np.angle(samples[1:] / samples[:-1]) / (2 * np.pi)
    assert np.allclose(turn[:499], 0, atol=1e-4)
    assert np.allclose(turn[500:], 0.125, atol=1e-4)


def test_dsp_frequencies_have_opposite_signs_and_keep_the_phase(host: Host) -> None:
    host.set_up()
    host.receive(1000, 0)
    host.transmit(np.full(1000, 0.5), 0)
    word = round(0.001 * 2**32)
    host.settle()
    host.fifo(48, word, ticks=30_000)
    host.fifo(160, word, ticks=60_000)
    host.settle()
    for tick in (30_000, 60_000, 150_000):
        host.at(tick)
        host.settle()
    samples, _ = host.samples(1000)
    turn = np.angle(samples[1:] / samples[:-1]) / (2 * np.pi)
    assert np.allclose(turn[:299], 0, atol=1e-4)
    assert np.allclose(turn[300:599], 0.1, atol=1e-4)
    assert np.allclose(turn[600:], 0.2, atol=1e-4)


def test_gains_and_switches_act_on_the_samples(host: Host) -> None:
    host.set_up()
    host.receive(900, 0)
    host.transmit(np.full(900, 0.25), 0)
    host.settle()
    host.fifo(185, 6 << 1 + 8, ticks=20_000)
    host.fifo(186, (51 << 8 | 0x10) << 16, ticks=40_000)
    host.fifo(186, (51 << 8) << 16, ticks=60_000)
    for tick in (20_000, 40_000, 60_000, 150_000):
        host.settle()
        host.at(tick)
    samples, _ = host.samples(900)
    level = [np.abs(samples[a : a + 150]).mean() for a in (20, 220, 420, 620)]
    assert level[:3] == pytest.approx([0.25, 0.25 * 10 ** (6 / 20), 0.25], rel=2e-3)
    assert level[3] == 0


def test_both_dsps_stream_at_once(host: Host, unit: VirtualN210) -> None:
    unit.air.set_path(unit.radio.rx[0], unit.radio.tx[0], 0.5)
    unit.air.set_path(unit.radio.rx[1], unit.radio.tx[0], 0.25j)
    host.set_up()
    for dsp in (0, 1):
        host.receive(100, 10_000, dsp)
    host.transmit(np.full(200, 0.8), 0)
    host.settle()
    host.at(50_000)
    first, _ = host.samples(100, RX0)
    second, packets = host.samples(100, RX1)
    assert packets[0]["sid"] == 4
    assert np.allclose(first, 0.4, atol=1e-3) and np.allclose(second, 0.2j, atol=1e-3)


def test_the_same_seed_gives_the_same_samples_whatever_the_packets() -> None:
    def heard(packet_samples: int) -> np.ndarray:
        clock = SteppedClock()
        with VirtualN210(VirtualAir(clock, noise_power=1e-3, seed=5), ADDRESS) as device:
            other = Host(device, clock)
            other.set_up(packet_samples=packet_samples)
            other.receive(3000, 10_000)
            other.at(400_000)
            samples, _ = other.samples(3000)
            other.close()
        return samples

    assert np.array_equal(heard(77), heard(1000))
    assert 0.01 < np.abs(heard(77)).std() < 0.1


# Robustness

packets = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda kind, body: struct.pack(">III", 12, ord(kind), 1) + body,
        st.sampled_from("ahilrs~ "),
        st.binary(max_size=30),
    ),
    st.builds(
        lambda header, body: struct.pack(">II", 0, header) + body, st.integers(0, 2**32 - 1), st.binary(max_size=80)
    ),
)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from([RX0, RX1, TX, FIFO, CONTROL]), packets), max_size=30))
def test_garbage_reaches_nobody_else(noise: list[tuple[int, bytes]]) -> None:
    unit, host = _lasting()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for port, data in noise:
            # Greetings and register writes are requests that a stranger may make; they are no garbage.
            if (len(data) in (8, 16) and not any(data[:8])) or (port == CONTROL and data[4:8] == b"\0\0\0r"):
                continue
            stranger.sendto(data, (unit.address, port))
    start = host.time() + 10_000
    host.receive(150, start)
    host.at(start + 100_000)
    _, found = host.samples(150)
    assert [p["ticks"] for p in found] == [start, start + 10_000]
    assert unit.is_alive


_kept: list = []


def _lasting() -> tuple[VirtualN210, Host]:
    if not _kept:
        clock = SteppedClock()
        unit = VirtualN210(VirtualAir(clock), "127.0.1.12")
        host = Host(unit, clock)
        host.set_up()
        _kept.extend([unit, host])
    return _kept[0], _kept[1]


@pytest.fixture(scope="module", autouse=True)
def _close_lasting() -> Iterator[None]:
    yield
    for thing in reversed(_kept):
        thing.close()
    _kept.clear()


def test_memory_for_packets_that_wait_is_bounded(host: Host, unit: VirtualN210) -> None:
    host.set_up()
    for k in range(4000):
        host.transmit(np.zeros(360), 10**15 if k == 0 else None, start=k == 0, end=False)
        if k % 200 == 0:
            host.settle()
    host.settle()
    assert unit.counts["tx_memory_full"] > 0
    for _ in range(600):
        host.fifo(9, poke=False, ticks=10**15)
    host.settle()
    assert unit.counts["fifo_full"] > 0


def test_closing_leaves_no_thread_and_no_port() -> None:
    before = threading.active_count()
    for _ in range(2):
        with VirtualN210(VirtualAir(), ADDRESS):
            assert threading.active_count() == before + 1
    assert threading.active_count() == before


@pytest.mark.parametrize("address", [ADDRESS, "192.0.2.1", "nowhere"])
def test_addresses_that_cannot_be_had_are_refused(unit: VirtualN210, address: str) -> None:
    before = threading.active_count()
    with pytest.raises(RadioError, match=address):
        VirtualN210(VirtualAir(), address)
    assert threading.active_count() == before


def test_unknown_faults_are_refused(unit: VirtualN210) -> None:
    with pytest.raises(ValueError, match="rx-overflow"):
        unit.inject("fire")

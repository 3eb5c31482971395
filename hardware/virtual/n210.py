"""A USRP N210 with an SBX daughterboard that exists on the network alone; UHD connects to it unmodified.

One unit listens at one address of this machine, one thread serves it. Its sample lines lie on the shared air: sample k
of a line of rate 100 MHz / D is taken at ticks [k D, k D + D) since the air began. Where a time that was asked for
falls between two samples, reception and transmission both take the sample in which it lies.

Both receive DSPs have an antenna of their own, so that one unit can serve two channels; the device has one for both.
A gain of 0 to 31.5 dB is added on reception and taken relative to 31.5 dB on transmission, so that full scale at full
transmit gain is amplitude 1 on the air.
"""

from __future__ import annotations

import math
import selectors
import socket
import struct
import threading
import zlib
from collections import Counter, deque
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np

from . import usrp2
from .air import Chain, VirtualAir
from .clock import RealTimeClock
from .usrp2 import TICK_RATE_HZ

FAULTS = (
    "rx-overflow",
    "rx-lost-packet",
    "rx-late",
    "rx-broken-chain",
    "tx-underflow",
    "tx-sequence",
    "tx-late",
    "tx-lost-packet",
    "fifo-timeout",
    "control-timeout",
    "vanish",
    "wrong-firmware",
    "unlocked",
)
"""What `VirtualN210.inject` can do."""

_TURN_S = 0.003
_IDLE_S = 0.05
_PACKETS_PER_TURN = 512
_SAMPLES_PER_TURN = 1 << 17
_PAUSE_TICKS = 200_000
_MAX_LAG_TICKS = TICK_RATE_HZ // 4
_PLAY_AHEAD_TICKS = TICK_RATE_HZ // 20
_START_LATENCY_TICKS = TICK_RATE_HZ // 50
_TX_MEMORY_BYTES = 2 << 20
_MAX_PENDING = 256
_MAX_COMMANDS = 16
_MAX_PACKET_SAMPLES = 8000

# Linux: one call sends many packets of equal size; and errors of unconnected sockets are told.
_UDP_SEGMENT, _IP_RECVERR = 103, 11

Address = tuple[str, int]


class _Time:
    """A unit's time: ticks of its own clock since the air began, and the offset that its host has set."""

    def __init__(self, air: VirtualAir, ppm: float, pps_error_ticks: int) -> None:
        self._clock = air.clock
        self._rate_hz = TICK_RATE_HZ * (1 + 1e-6 * ppm if air.sampling_drift else 1.0)
        self._pps_error_ticks = pps_error_ticks
        self._offset = 0
        self._armed: tuple[int, int] | None = None
        self._latched = (-1, 0)
        self.follows: _Time | None = None

    def now(self) -> int:
        """Ticks since the air began."""
        now = math.floor(self._clock.now_s() * self._rate_hz)
        if self._armed is not None and now >= self._edge(self._armed[0]):
            self._offset = self._armed[1] - self._edge(self._armed[0])
            self._armed = None
        return now

    @property
    def offset(self) -> int:
        """What to add to get the time that the host knows."""
        if self.follows is not None:
            self.follows.now()
            return self.follows.offset
        return self._offset

    def seconds_until(self, tick: int) -> float:
        """How long until this tick."""
        return tick / self._rate_hz - self._clock.now_s()

    def set_now(self, ticks: int) -> None:
        """Set the time at once."""
        now = self.now()
        self._latched = (self._edges_until(now), self._offset)
        self._offset = ticks - now
        self._armed = None

    def set_at_next_pps(self, ticks: int) -> None:
        """Set the time at the next pulse."""
        self._armed = (self._edges_until(self.now()) + 1, ticks)

    def at_last_pps(self) -> int:
        """The host's time as the last pulse latched it."""
        if self.follows is not None:
            return self.follows.at_last_pps()
        edge = self._edges_until(self.now())
        return self._edge(edge) + (self._latched[1] if edge == self._latched[0] else self._offset)

    def _edge(self, number: int) -> int:
        return round(number * self._rate_hz) + self._pps_error_ticks

    def _edges_until(self, now: int) -> int:
        number = math.floor((now - self._pps_error_ticks) / self._rate_hz)
        return number + 1 if now >= self._edge(number + 1) else number


class _RxCommand(NamedTuple):
    """A stream command: where it starts, in ticks since the air began, and for how many samples (None: for ever)."""

    start: int
    is_immediate: bool
    n_samples: int | None
    chains: bool


class _RxStream:
    """One receive DSP: commands in, packets out."""

    def __init__(self, unit: VirtualN210, dsp: int) -> None:
        self._unit = unit
        self._dsp = dsp
        self.chain = unit.radio.rx[dsp]
        self.destination: Address | None = None
        self.factor = 100
        self.word = 0
        self._rate_word = self.factor
        self._scale = 0
        self._eight_bit = False
        self._packet_samples = 363
        self._latch = [0, 0]
        self._commands: deque[_RxCommand] = deque()
        self._active: _RxCommand | None = None
        self._done = 0
        self._count = 0

    @property
    def is_busy(self) -> bool:
        """Whether samples flow or will."""
        return self._active is not None or bool(self._commands)

    def poke_control(self, register: int, data: int) -> None:
        """Write one of the control registers, counted from their first."""
        if register in (0, 1):
            self._latch[register] = data
        elif register == 2:
            self._command(self._latch[0], self._latch[1] << 32 | data)
        elif register == 3:
            self._eight_bit = bool(data & 1)
        elif register == 7:
            self._packet_samples = min(max(data, 1), _MAX_PACKET_SAMPLES)
        elif register == 8:
            self.clear()

    def poke_dsp(self, register: int, data: int) -> None:
        """Write one of the DSP registers, counted from their first."""
        if register == 0:
            self.word = data
            self._unit.tune_rx(self._dsp)
        elif register == 1:
            self._scale = data & 0x3FFFF
        elif register == 2 and data != self._rate_word:
            factor = usrp2.rate_factor(data)
            if factor is not None:
                self._rate_word, self.factor = data, factor
                self._unit.set_rate(self.chain, factor)

    def clear(self) -> None:
        """Forget commands; packets count from 0 again."""
        self._commands.clear()
        self._active = None
        self._count = 0

    def stop(self) -> None:
        """Forget commands, without a word to the host."""
        self._commands.clear()
        self._active = None

    def _command(self, word: int, ticks: int) -> None:
        now = self._unit.time.now()
        if word >> 28 & 1:
            self._commands.clear()
            if self._active is not None:
                # The last packet says that it is the last, and has at least one sample.
                n = max((now - self._active.start) // self.factor, self._done + 1)
                self._active = self._active._replace(n_samples=n, chains=False)
            return
        is_immediate = bool(word >> 31)
        start = now if is_immediate else ticks - self._unit.time.offset
        if start < now or self._unit.take("rx-late"):
            self._tell(usrp2.RX_LATE, now)
            return
        n_samples = None if word >> 29 & 1 else word & 0x0FFFFFFF
        if n_samples == 0 or len(self._commands) >= _MAX_COMMANDS:
            return
        self._commands.append(_RxCommand(start, is_immediate, n_samples, bool(word >> 30 & 1)))

    def advance(self, now: int) -> None:
        """Send what has been received by now."""
        budget = _SAMPLES_PER_TURN
        while budget > 0:
            if self._active is None or (self._active.n_samples is None and self._commands):
                if not self._commands or (self._active is None and self._commands[0].start > now):
                    break
                if not self._switch():
                    break
            active = self._active
            assert active is not None
            if active.n_samples is not None and self._done >= active.n_samples:
                self._finish(active)
                continue
            lag = now - (active.start + self._done * self.factor)
            if self._unit.take("rx-overflow"):
                self._overflow(active, 5 * self._packet_samples)
            elif lag > _MAX_LAG_TICKS:
                self._overflow(active, lag // self.factor)
            taken = self._send(active, now, budget)
            if not taken:
                break
            budget -= taken

    def _switch(self) -> bool:
        """Begin the next command; whether that one has come."""
        following, last = self._commands[0], self._active
        if last is not None and not following.is_immediate:
            end = last.start + self._done * self.factor
            if following.start > end:
                if (following.start - end) // self.factor < _SAMPLES_PER_TURN:
                    self._active = last._replace(n_samples=self._done + (following.start - end) // self.factor)
                    return True
                return True
        self._commands.popleft()
        if last is not None:
            # One more command in a stream that runs: no sample is lost or taken twice.
            following = following._replace(start=last.start + self._done * self.factor)
        self._active, self._done = following, 0
        return True

    def _finish(self, active: _RxCommand) -> None:
        end = active.start + self._done * self.factor
        self._active = None
        if not active.chains:
            return
        if not self._commands or self._unit.take("rx-broken-chain"):
            self._commands.clear()
            self._tell(usrp2.RX_BROKEN_CHAIN, end)
        elif self._commands[0].is_immediate:
            self._commands[0] = self._commands[0]._replace(start=end)

    def _overflow(self, active: _RxCommand, n: int) -> None:
        if active.n_samples is not None:
            n = min(n, active.n_samples - self._done - 1)
        if n <= 0:
            return
        self._unit.counts["rx_overflows"] += 1
        self._unit.counts["rx_lost_samples"] += n
        self._tell(usrp2.RX_OVERFLOW, active.start + self._done * self.factor)
        self._done += n

    def _send(self, active: _RxCommand, now: int, budget: int) -> int:
        """Send whole packets, and the last one of a command; how many samples that was."""
        there = (now - active.start) // self.factor - self._done
        n = min(there, max(budget, self._packet_samples))
        size, is_last = self._packet_samples, False
        if active.n_samples is not None:
            left = active.n_samples - self._done
            n = min(n, left)
            if n == left and n <= size:
                size, is_last = n, not active.chains
            elif n == left and n % size == 0:
                is_last = not active.chains
        n -= n % size
        if n <= 0:
            return 0
        samples = self._unit.air.receive(self.chain, active.start // self.factor + self._done, n)
        gain = 32767 * usrp2.scale_gain(self._scale, self._rate_word, 4)
        values = samples.view(np.float32)
        values *= np.float32(gain)
        np.rint(values, out=values)
        top = 127 if self._eight_bit else 32767
        np.clip(values, -top - 1, top, out=values)
        self._unit.counts["rx_samples"] += n
        rows = usrp2.pack_rx(
            values.astype(np.int16).reshape(-1, size, 2),
            stream_id=usrp2.RX_STREAM_IDS[self._dsp],
            first_count=self._count,
            first_ticks=active.start + self._done * self.factor + self._unit.time.offset,
            ticks_per_sample=self.factor,
            eight_bit=self._eight_bit,
            ends_burst=is_last,
        )
        self._count = (self._count + len(rows)) & 0xF
        self._done += n
        if self._unit.take("rx-lost-packet"):
            rows = rows[1:]
        if self.destination is not None:
            self._unit.send_rows(self._dsp, rows, self.destination)
        return n

    def _tell(self, code: int, tick: int) -> None:
        packet = usrp2.pack_context(usrp2.RX_STREAM_IDS[self._dsp], tick + self._unit.time.offset, code)
        self._unit.send(usrp2.RX_PORTS[self._dsp], packet, self.destination)


class _Queued(NamedTuple):
    sequence: int
    starts_burst: bool
    ends_burst: bool
    ticks: int | None
    payload: bytes
    n_samples: int


class _TxStream:
    """The transmit DSP: packets in, samples onto the air, news back."""

    def __init__(self, unit: VirtualN210) -> None:
        self._unit = unit
        self.chain = unit.radio.tx[0]
        self.peer: Address | None = None
        self.factor = 100
        self.word = 0
        self._rate_word = self.factor
        self._scale = 0
        self._eight_bit = False
        self._next_burst_only = False
        self._ack_cycles = 0
        self._ack_packets = 0
        self._queue: deque[_Queued] = deque()
        self._queued_bytes = 0
        self._marks: deque[tuple[int, int, bool]] = deque()
        self._sequence = 0
        self._news = 0
        self._position: int | None = None
        self._awaits_burst = False
        self._consumed: int | None = None
        self._unacknowledged = 0
        self._last_ack = 0

    @property
    def is_busy(self) -> bool:
        """Whether samples are being sent or wait for it."""
        return self._position is not None or bool(self._queue) or bool(self._marks)

    @property
    def wants_packets(self) -> bool:
        """Whether each packet should be looked at when it comes, and not only once per turn."""
        return self._position is None

    def poke_control(self, register: int, data: int) -> None:
        """Write one of the control registers, counted from their first."""
        if register == 0:
            if data:
                self.clear()
        elif register == 1:
            self._eight_bit = bool(data & 1)
        elif register == 3:
            self._next_burst_only = bool(data & 4)
        elif register == 4:
            self._ack_cycles = data & 0x7FFFFFFF if data >> 31 else 0
        elif register == 5:
            self._ack_packets = data & 0x7FFFFFFF if data >> 31 else 0

    def poke_dsp(self, register: int, data: int) -> None:
        """Write one of the DSP registers, counted from their first."""
        if register == 0:
            self.word = data
            self._unit.tune_tx()
        elif register == 1:
            self._scale = data & 0x3FFFF
        elif register == 2 and data != self._rate_word:
            factor = usrp2.rate_factor(data)
            if factor is not None:
                self._rate_word, self.factor = data, factor
                self._unit.set_rate(self.chain, factor)

    def clear(self) -> None:
        """Forget all packets and what they would have sent; sequences begin at 0."""
        self.silence()
        self._sequence = 0
        self._consumed = None
        self._unacknowledged = 0

    def silence(self) -> None:
        """Forget all packets and what they would have sent."""
        self._queue.clear()
        self._marks.clear()
        self._queued_bytes = 0
        self._position = None
        self._awaits_burst = False
        self.chain.cut(self._unit.time.now() // self.factor)

    def take_packet(self, data: memoryview) -> None:
        """Queue a packet that came from the network."""
        packet = usrp2.unpack_tx(data)
        if packet is None:
            self._unit.counts["malformed"] += 1
            return
        if self._unit.take("tx-lost-packet"):
            return
        if packet.sequence != self._sequence or self._unit.take("tx-sequence"):
            self._unit.counts["tx_sequence_errors"] += 1
            in_burst = self._position is not None or bool(self._queue)
            self._tell(usrp2.TX_SEQUENCE_IN_BURST if in_burst else usrp2.TX_SEQUENCE, self._unit.time.now())
        self._sequence = (packet.sequence + 1) & 0xFFFFFFFF
        if self._queued_bytes + len(packet.payload) > _TX_MEMORY_BYTES:
            self._unit.counts["tx_memory_full"] += 1
            return
        payload = bytes(packet.payload)
        self._queued_bytes += len(payload)
        n = len(payload) // 4
        if self._eight_bit:
            n = 2 * n - packet.half_empty
        self._queue.append(_Queued(*packet[:4], payload, n))

    def advance(self, now: int) -> None:
        """Put onto the air what is due soon; tell what has been sent."""
        horizon = now + _PLAY_AHEAD_TICKS
        parts: list[_Queued] = []
        begin = end = 0
        while self._queue:
            packet = self._queue[0]
            start = self._start(packet, now)
            if start is not None and start > horizon:
                break
            self._queue.popleft()
            self._queued_bytes -= len(packet.payload)
            if start is None:
                self._marks.append((now, packet.sequence, False))
                continue
            if parts and start != end:
                self._play(begin, parts)
                parts = []
            if not parts:
                begin = start
            parts.append(packet)
            end = start + packet.n_samples * self.factor
            self._marks.append((end, packet.sequence, packet.ends_burst))
            self._position = None if packet.ends_burst else end
            self._awaits_burst = False
        if parts:
            self._play(begin, parts)
        if self._position is not None and not self._queue and (self._position <= now or self._unit.take("tx-underflow")):
            self._unit.counts["tx_underflows"] += 1
            self._tell(usrp2.TX_UNDERFLOW, self._position)
            self._position = None
            self._awaits_burst = self._next_burst_only
        self._acknowledge(now)

    def _start(self, packet: _Queued, now: int) -> int | None:
        """Tick at which a packet begins; None drops it."""
        if self._awaits_burst and not packet.starts_burst:
            return None
        wanted = None if packet.ticks is None else packet.ticks - self._unit.time.offset
        if self._position is not None:
            # Times of later parts of a burst come from rounded seconds.
            if wanted is None or 2 * abs(wanted - self._position) < self.factor:
                return self._position
        elif wanted is None:
            return now + _START_LATENCY_TICKS
        if wanted < max(now, self._position or 0) or self._unit.take("tx-late"):
            self._unit.counts["tx_late"] += 1
            self._tell(usrp2.TX_LATE, now)
            self._position = None
            self._awaits_burst = self._next_burst_only
            return None
        return wanted

    def _play(self, start: int, parts: list[_Queued]) -> None:
        samples = usrp2.tx_values(b"".join(part.payload for part in parts), self._eight_bit)
        if self._eight_bit:
            ends = np.cumsum([len(part.payload) // 2 for part in parts])
            empty = [end - 1 for part, end in zip(parts, ends, strict=True) if part.n_samples % 2]
            samples = np.delete(samples, empty)
        samples *= np.float32(usrp2.scale_gain(self._scale, self._rate_word, 3) / 32767)
        self._unit.air.transmit(self.chain, start // self.factor, samples)
        self._unit.counts["tx_samples"] += samples.size

    def _acknowledge(self, now: int) -> None:
        while self._marks and self._marks[0][0] <= now:
            tick, self._consumed, ends_burst = self._marks.popleft()
            self._unacknowledged += 1
            if ends_burst:
                self._tell(usrp2.TX_BURST_ACK, tick)
                self._flow(now)
        if self._consumed is None:
            return
        packets_due = self._ack_packets and self._unacknowledged >= self._ack_packets
        cycles_due = self._ack_cycles and now - self._last_ack >= self._ack_cycles
        if packets_due or cycles_due:
            self._flow(now)

    def _flow(self, now: int) -> None:
        assert self._consumed is not None
        self._unacknowledged = 0
        self._last_ack = now
        self._tell(usrp2.TX_FLOW, now, self._consumed)

    def _tell(self, event: int, tick: int, sequence: int | None = None) -> None:
        self._news += 1
        packet = usrp2.pack_context(
            usrp2.ASYNC_STREAM_ID,
            tick + self._unit.time.offset,
            event,
            self._news if sequence is None else sequence,
        )
        self._unit.send(usrp2.TX_PORT, packet, self.peer)


class VirtualN210:
    """A USRP N210 with an SBX, at one address of this machine.

    Args:
        air: shared with other radios. Time is the air's; a unit never makes it pass.
        address: where it listens; one unit per address.
        name: on the air and in its EEPROM; made from the address unless given.
        serial: up to eight characters, made from the address unless given.
        ppm: error of its reference.
        pps_error_ticks: how much later than others it sees the pulse per second; up to 10 on real units.
        mimo_master: the unit at the other end of its MIMO cable.

    Raises:
        OSError: the address is not of this machine, or taken.
    """

    def __init__(
        self,
        air: VirtualAir,
        address: str = "127.0.0.1",
        *,
        name: str | None = None,
        serial: str | None = None,
        ppm: float = 0.0,
        pps_error_ticks: int = 0,
        mimo_master: VirtualN210 | None = None,
    ) -> None:
        digits = "".join(f"{int(part):02X}" for part in address.split("."))
        self.air = air
        self.address = address
        self.name = name or f"n210-{address}"
        self.serial = serial or digits
        self.counts: Counter[str] = Counter()
        """What happened: samples, overflows, underflows, late and malformed packets."""
        self._sockets = {
            port: _bound(address, port)
            for port in (usrp2.CONTROL_PORT, usrp2.FIFO_PORT, usrp2.TX_PORT, *usrp2.RX_PORTS)
        }
        self.radio = air.add_radio(self.name, 1, 2, ppm=ppm)
        self.time = _Time(air, ppm, pps_error_ticks)
        self._master = mimo_master
        self._rx = [_RxStream(self, dsp) for dsp in (0, 1)]
        self._tx = _TxStream(self)
        self._phases = np.random.default_rng([air.seed, 210, zlib.crc32(self.name.encode())])
        self._rx_lo_hz: float | None = None
        self._tx_lo_hz: float | None = None
        self._synthesizers: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self._gpio = [0] * 5
        self._spi_control = 0
        self._time_latch = [0, 0]
        self._firmware = {3: usrp2.NO_GPSDO, 7: usrp2.FIRMWARE_MINOR}
        self._roms = {
            0x50: usrp2.motherboard_eeprom(address, self.serial, "virtual"),
            0x51: bytearray(b"\xff" * 256),
            0x54: usrp2.daughterboard_eeprom(0x55, self.serial),
            0x55: usrp2.daughterboard_eeprom(0x54, self.serial),
        }
        self._rom_pointers: dict[int, int] = {}
        self._fifo_peer: Address | None = None
        self._pending: deque[usrp2.FifoRequest] = deque()
        self._faults: Counter[str] = Counter()
        self._command_tick: int | None = None
        self._buffer = bytearray(1 << 16)
        self._set_gains()
        _warm_up()
        self._is_open = True
        self._poll_s = _IDLE_S if isinstance(air.clock, RealTimeClock) else 0.001
        self._thread = threading.Thread(target=self._serve, name=self.name, daemon=True)
        self._thread.start()

    def __enter__(self) -> VirtualN210:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving; sockets and thread are gone when this returns."""
        self._is_open = False
        self._thread.join()
        for channel in self._sockets.values():
            channel.close()

    def inject(self, fault: str, count: int = 1) -> None:
        """Make something go wrong the next `count` times it can.

        "vanish", "wrong-firmware" and "unlocked" last until they are injected with a count of 0.

        Raises:
            ValueError: there is no such fault.
        """
        if fault not in FAULTS:
            raise ValueError(f"fault {fault!r} is not known; known are {', '.join(FAULTS)}")
        self._faults[fault] = count

    def take(self, fault: str) -> bool:
        """Whether this goes wrong now; asked once per occasion."""
        if not self._faults[fault]:
            return False
        self._faults[fault] -= 1
        self.counts[f"injected {fault}"] += 1
        return True

    # What the registers do to the air

    def set_rate(self, chain: Chain, factor: int) -> None:
        """Begin a sample line of 100 MHz / factor."""
        self.air.set_rate([chain], TICK_RATE_HZ / factor)

    def tune_rx(self, dsp: int, phase_rad: float | None = None) -> None:
        """Set the frequency of a receive line to what synthesizer and DSP make."""
        if self._rx_lo_hz is not None:
            stream = self._rx[dsp]
            frequency_hz = self._rx_lo_hz - usrp2.dsp_frequency_hz(stream.word)
            self._tune(stream.chain, stream.factor, frequency_hz, phase_rad)

    def tune_tx(self, phase_rad: float | None = None) -> None:
        """Set the frequency of the transmit line to what synthesizer and DSP make."""
        if self._tx_lo_hz is not None:
            frequency_hz = self._tx_lo_hz + usrp2.dsp_frequency_hz(self._tx.word)
            self._tune(self._tx.chain, self._tx.factor, frequency_hz, phase_rad)

    def _tune(self, chain: Chain, factor: int, frequency_hz: float, phase_rad: float | None) -> None:
        index = self._now() // factor
        last = chain.at(index)
        if phase_rad is None:
            if frequency_hz == last.nominal_hz:
                return
            # The DSP's oscillator goes on where it stands.
            step_hz = last.frequency_hz - frequency_hz * (1 + 1e-6 * self.radio.ppm)
            phase_rad = last.phase_rad + 2 * math.pi * math.fmod(step_hz * factor / TICK_RATE_HZ * index, 1.0)
        self.air.tune([chain], frequency_hz, index, phase_rad)

    def _synthesize(self, side: int, word: int) -> None:
        registers = self._synthesizers[side]
        registers[word & 7] = word
        if word & 7:
            return
        frequency_hz = usrp2.synthesizer_hz(registers)
        phase_rad = float(self._phases.uniform(0, 2 * math.pi)) if self.air.random_phase else 0.0
        if side == 0:
            self._rx_lo_hz = frequency_hz
            for dsp in (0, 1):
                self.tune_rx(dsp, phase_rad)
        else:
            self._tx_lo_hz = frequency_hz
            self.tune_tx(phase_rad)
        self._set_gains()

    def _set_gains(self) -> None:
        now = self._now()
        front = usrp2.receive_front_end(self._gpio[1] & 0xFFFF)
        for stream in self._rx:
            gain_db = front.gain_db if front.is_on and self._rx_lo_hz is not None else -math.inf
            if stream.chain.tunings[-1].gain_db != gain_db:
                self.air.set_gain(stream.chain, gain_db, now // stream.factor)
        front = usrp2.transmit_front_end(self._gpio[2] >> 16)
        gain_db = front.gain_db - 31.5 if front.is_on and self._tx_lo_hz is not None else -math.inf
        if self._tx.chain.tunings[-1].gain_db != gain_db:
            self.air.set_gain(self._tx.chain, gain_db, now // self._tx.factor)

    def _now(self) -> int:
        """The tick at which the present command takes effect."""
        return self.time.now() if self._command_tick is None else self._command_tick

    # Registers

    def _poke(self, register: int, data: int) -> None:
        if register in (usrp2.SR_TIME_LOW, usrp2.SR_TIME_NOW):
            self._time_latch[register == usrp2.SR_TIME_NOW] = data
        elif register == usrp2.SR_TIME_HIGH:
            ticks = data << 32 | self._time_latch[0]
            if self._time_latch[1] & 1:
                self.time.set_now(ticks)
            else:
                self.time.set_at_next_pps(ticks)
        elif register == usrp2.SR_TIME_MIMO:
            follows = bool(data & usrp2.TIME_FOLLOWS_MIMO) and self._master is not None
            self.time.follows = self._master.time if follows and self._master is not None else None
        elif register == usrp2.SR_SPI_CONTROL:
            self._spi_control = data
        elif register == usrp2.SR_SPI_DATA:
            self._spi(self._spi_control & 0xFFFFFF, data)
        elif usrp2.SR_GPIO <= register < usrp2.SR_GPIO + 5:
            self._gpio[register - usrp2.SR_GPIO] = data
            self._set_gains()
        elif usrp2.SR_TX_CONTROL <= register < usrp2.SR_TX_CONTROL + 6:
            self._tx.poke_control(register - usrp2.SR_TX_CONTROL, data)
        elif usrp2.SR_TX_DSP <= register < usrp2.SR_TX_DSP + 3:
            self._tx.poke_dsp(register - usrp2.SR_TX_DSP, data)
        else:
            for stream, control, dsp in zip(self._rx, usrp2.SR_RX_CONTROL, usrp2.SR_RX_DSP, strict=True):
                if control <= register < control + 9:
                    stream.poke_control(register - control, data)
                elif dsp <= register < dsp + 3:
                    stream.poke_dsp(register - dsp, data)

    def _peek(self, index: int) -> int:
        if index in (10, 11):
            ticks = self.time.now() + self.time.offset
            return (ticks >> 32 if index == 10 else ticks) & 0xFFFFFFFF
        if index in (14, 15):
            ticks = self.time.at_last_pps()
            return (ticks >> 32 if index == 14 else ticks) & 0xFFFFFFFF
        if index == 12:
            major = usrp2.FPGA_MAJOR - 1 if self._faults["wrong-firmware"] else usrp2.FPGA_MAJOR
            return major << 16 | usrp2.FPGA_MINOR
        if index == 9:
            return 0xFFFEFFFE if self._faults["unlocked"] else 0xFFFFFFFF
        if index == 13:
            return (0 if self._faults["unlocked"] else 1 << 11) | (1 << 10 if self._master is not None else 0)
        return 0

    def _spi(self, mask: int, data: int) -> None:
        """Take 32 bits, left-aligned, to the synthesizers; the other chips have nothing to say."""
        if mask & usrp2.SPI_RX_SYNTHESIZER:
            self._synthesize(0, data)
        if mask & usrp2.SPI_TX_SYNTHESIZER:
            self._synthesize(1, data)

    # Network

    def _serve(self) -> None:
        handlers: dict[int, Callable[[memoryview, Address], None]] = {
            usrp2.CONTROL_PORT: self._on_control,
            usrp2.FIFO_PORT: self._on_fifo,
            usrp2.TX_PORT: self._on_tx,
            usrp2.RX_PORTS[0]: lambda data, peer: self._on_rx(0, data, peer),
            usrp2.RX_PORTS[1]: lambda data, peer: self._on_rx(1, data, peer),
        }
        with selectors.DefaultSelector() as selector:
            for port, channel in self._sockets.items():
                selector.register(channel, selectors.EVENT_READ, port)
            listens = True
            while self._is_open:
                # While a burst runs its packets are taken once per turn, many at a time.
                if listens != self._tx.wants_packets:
                    listens = not listens
                    channel = self._sockets[usrp2.TX_PORT]
                    if listens:
                        selector.register(channel, selectors.EVENT_READ, usrp2.TX_PORT)
                    else:
                        selector.unregister(channel)
                ready = {key.data for key, _ in selector.select(self._patience_s())}
                if not listens:
                    ready.add(usrp2.TX_PORT)
                # What was written to a register before or after a packet was sent holds for it so, as far as it matters:
                # a reset comes before, a new time before it is used.
                for port in sorted(ready - {usrp2.TX_PORT}):
                    self._drain(port, handlers[port])
                if usrp2.TX_PORT in ready:
                    self._drain(usrp2.TX_PORT, handlers[usrp2.TX_PORT])
                    self._drain(usrp2.FIFO_PORT, handlers[usrp2.FIFO_PORT])
                now = self.time.now()
                if self._faults["vanish"]:
                    continue
                self._run_commands(now)
                self._tx.advance(now)
                for stream in self._rx:
                    stream.advance(now)

    def _patience_s(self) -> float:
        if self._tx.is_busy or any(stream.is_busy for stream in self._rx):
            return min(_TURN_S, self._poll_s)
        if self._pending:
            ticks = self._pending[0].ticks
            return min(max(0.0, self.time.seconds_until((ticks or 0) - self.time.offset)), self._poll_s)
        return self._poll_s

    def _drain(self, port: int, handler: Callable[[memoryview, Address], None]) -> None:
        channel = self._sockets[port]
        whole = memoryview(self._buffer)
        for _ in range(_PACKETS_PER_TURN):
            try:
                n, peer = channel.recvfrom_into(self._buffer)
            except BlockingIOError:
                return
            except OSError:
                # Somebody who was sent to is gone.
                self._forget(port)
                continue
            if not self._faults["vanish"]:
                handler(whole[:n], peer)

    def _forget(self, port: int) -> None:
        """Read who could not be reached, and stop streaming to where nobody listens."""
        self.counts["unreachable"] += 1
        gone = set()
        try:
            while hasattr(socket, "MSG_ERRQUEUE"):
                *_, address = self._sockets[port].recvmsg(64, 512, socket.MSG_ERRQUEUE)
                gone.add(address)
        except OSError:
            pass
        for dsp, stream in enumerate(self._rx):
            if port == usrp2.RX_PORTS[dsp] and stream.destination in gone:
                stream.stop()
                stream.destination = None

    def send(self, port: int, packet: bytes, to: Address | None) -> None:
        """Send one packet; to nobody where nobody has asked."""
        if to is None:
            return
        # An error belongs to an earlier packet, perhaps to somebody else, so there is a second attempt.
        for _ in range(2):
            try:
                self._sockets[port].sendto(packet, to)
                return
            except BlockingIOError:
                self.counts["unsent"] += 1
                return
            except OSError:
                self._forget(port)

    def send_rows(self, dsp: int, rows: np.ndarray, to: Address) -> None:
        """Send packets of equal size.

        Args:
            dsp: whose stream.
            rows: (packets, bytes) uint8.
            to: host.
        """
        channel = self._sockets[usrp2.RX_PORTS[dsp]]
        size = rows.shape[1]
        at_once = max(1, min(64, 65000 // size))
        extra = [(socket.IPPROTO_UDP, _UDP_SEGMENT, struct.pack("=H", size))]
        for start in range(0, len(rows), at_once):
            part = rows[start : start + at_once]
            for _ in range(2):
                try:
                    channel.sendmsg([part.data], extra if len(part) > 1 else [], 0, to)
                    break
                except BlockingIOError:
                    self.counts["unsent"] += len(part)
                    break
                except OSError:
                    self._forget(usrp2.RX_PORTS[dsp])

    def _on_rx(self, dsp: int, data: memoryview, peer: Address) -> None:
        if len(data) >= 16 and not any(data[4:8]) and any(data[8:16]):
            # Another destination; it is answered so that the host knows it arrived.
            host, port = socket.inet_ntoa(data[8:12]), int.from_bytes(data[12:16])
            if 0 < port < 65536 and (host == peer[0] or host.startswith("127.")):
                self._rx[dsp].destination = (host, port)
                self.send(usrp2.RX_PORTS[dsp], bytes(8), peer)
        elif _is_greeting(data):
            self._rx[dsp].destination = peer

    def _on_tx(self, data: memoryview, peer: Address) -> None:
        if _is_greeting(data):
            self._tx.peer = peer
        elif peer == self._tx.peer:
            self._tx.take_packet(data)
        else:
            self.counts["strangers"] += 1

    def _on_fifo(self, data: memoryview, peer: Address) -> None:
        if _is_greeting(data):
            self._fifo_peer = peer
            self._pending.clear()
            return
        request = usrp2.unpack_fifo(data) if peer == self._fifo_peer else None
        if request is None or len(self._pending) >= _MAX_PENDING:
            self.counts["malformed" if request is None else "fifo_full"] += 1
            return
        if self.take("fifo-timeout"):
            return
        self._pending.append(request)
        self._run_commands(self.time.now())

    def _run_commands(self, now: int) -> None:
        """Do and answer register accesses in order; one with a time holds up those behind it until then."""
        while self._pending:
            request = self._pending[0]
            tick = None if request.ticks is None else request.ticks - self.time.offset
            if tick is not None and tick > now:
                return
            self._pending.popleft()
            self._command_tick = tick
            try:
                if request.is_poke:
                    self._poke(request.address, request.data)
                    data = 0
                else:
                    data = self._peek(request.address)
            finally:
                self._command_tick = None
            self.send(usrp2.FIFO_PORT, usrp2.pack_fifo(request.sequence, data), self._fifo_peer)

    def _on_control(self, data: memoryview, peer: Address) -> None:
        request = usrp2.unpack_control(bytes(data))
        if request is None or self.take("control-timeout"):
            self.counts["malformed"] += request is None
            return
        kind, body, length = request.kind, b"", 36
        if kind == "a":
            body = socket.inet_aton(self.address)
        elif kind == "r":
            body = self._access(*usrp2.unpack_register(request.body))
        elif kind in "hi":
            address, count, content = usrp2.unpack_i2c(request.body)
            if kind == "h":
                self._write_i2c(address, content[:count])
            body = usrp2.pack_i2c(address, content[:count] if kind == "h" else self._read_i2c(address, count))
        elif kind == "s":
            mask, word, _ = usrp2.unpack_spi(request.body)
            self._spi(mask, word)
            body = bytes(4)
        elif kind == "l":
            # The host searches the largest packet that passes, both ways.
            length = min(max(int.from_bytes(request.body[:4]), 36), 9000)
            body = request.length.to_bytes(4)
        elif kind != "~":
            kind = " "
        self.send(usrp2.CONTROL_PORT, usrp2.pack_control(kind.upper(), request.sequence, body, length), peer)

    def _access(self, address: int, data: int, action: int) -> bytes:
        if action == 5:
            data = self._firmware.get(address, 0)
        elif action == 6:
            if address < 64:
                self._firmware[address] = data
        elif action in (1, 2):
            data = self._peek((address - usrp2.READBACK_BASE) // 4) if address >= usrp2.READBACK_BASE else 0
        elif action in (3, 4) and usrp2.SETTING_BASE <= address < usrp2.SETTING_BASE + 1024:
            self._poke((address - usrp2.SETTING_BASE) // 4, data)
        return usrp2.pack_register(address, data, action)

    def _write_i2c(self, address: int, content: bytes) -> None:
        if content:
            self._rom_pointers[address] = content[0]
        rom = self._roms.get(address)
        if rom is not None:
            for offset, byte in enumerate(content[1:]):
                rom[(content[0] + offset) & 0xFF] = byte

    def _read_i2c(self, address: int, count: int) -> bytes:
        rom = self._roms.get(address)
        if rom is None:
            return b"\xff" * count
        start = self._rom_pointers.get(address, 0)
        return bytes(rom[(start + offset) & 0xFF] for offset in range(count))


@cache
def _warm_up() -> None:
    """Have the air's compiled functions ready, before a host waits for an answer meanwhile."""
    air = VirtualAir(history_s=0.01, noise_power=0.0)
    radio = air.add_radio("warm-up", 1, 2)
    air.set_path(radio.rx[1], radio.tx[0], np.ones(2))
    air.tune(radio.rx[1:], 1e3, 0)
    air.transmit(radio.tx[0], 0, np.ones(8))
    for chain in radio.rx:
        air.receive(chain, 0, 8)


def _is_greeting(data: memoryview) -> bool:
    """Whether a packet only tells where its sender is: 8 or 16 bytes with an empty VRT header."""
    return len(data) in (8, 16) and not any(data[:8])


def _bound(address: str, port: int) -> socket.socket:
    channel = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        if hasattr(socket, "MSG_ERRQUEUE"):
            channel.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        channel.setblocking(False)
        channel.bind((address, port))
    except OSError:
        channel.close()
        raise
    return channel

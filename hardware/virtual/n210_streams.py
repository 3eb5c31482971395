"""The time of a virtual USRP N210, and what its signal processors do with it: streams both ways."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from . import usrp2
from .air import VirtualAir
from .usrp2 import TICK_RATE_HZ

if TYPE_CHECKING:
    from .n210 import VirtualN210

_SAMPLES_PER_TURN = 1 << 17
_MAX_LAG_TICKS = TICK_RATE_HZ // 4
_PLAY_AHEAD_TICKS = TICK_RATE_HZ // 20
_START_LATENCY_TICKS = TICK_RATE_HZ // 50
_TX_MEMORY_BYTES = 2 << 20
_MAX_COMMANDS = 16
_MAX_PACKET_SAMPLES = 8000

Address = tuple[str, int]


class Time:
    """A unit's time: ticks of its own clock since the air began, and the offset that its host has set."""

    def __init__(self, air: VirtualAir, ppm: float, pps_error_ticks: int) -> None:
        self._clock = air.clock
        self._rate_hz = TICK_RATE_HZ * (1 + 1e-6 * ppm if air.sampling_drift else 1.0)
        self._pps_error_ticks = pps_error_ticks
        self._offset = 0
        self._armed: tuple[int, int] | None = None
        self._latched = (-1, 0)
        self.follows: Time | None = None

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


class RxStream:
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
            if (self._active is None or (self._active.n_samples is None and self._commands)) and not self._switch(now):
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

    def _switch(self, now: int) -> bool:
        """Begin the next command, also in the place of one without an end; whether there is one to begin."""
        if not self._commands:
            return False
        following, last = self._commands[0], self._active
        if last is None:
            if following.start > now:
                return False
        else:
            end = last.start + self._done * self.factor
            if not following.is_immediate and following.start > end:
                n = self._done + (following.start - end) // self.factor
                self._active = last._replace(n_samples=n, chains=True)
                return True
            # No sample is lost or taken twice.
            following = following._replace(start=end)
        self._commands.popleft()
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


class TxStream:
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
        self._silence(self._unit.time.now())
        self._sequence = 0
        self._consumed = None
        self._unacknowledged = 0
        self._awaits_burst = False

    def _silence(self, now: int) -> None:
        self._queue.clear()
        self._marks.clear()
        self._queued_bytes = 0
        self._position = None
        self.chain.cut(now // self.factor)

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
        if self._position is not None:
            if self._unit.take("tx-underflow"):
                self._silence(now)
                self._consumed = (self._sequence - 1) & 0xFFFFFFFF
                self._underflow(now)
            elif not self._queue and self._position <= now:
                self._underflow(self._position)
        self._acknowledge(now)

    def _underflow(self, tick: int) -> None:
        self._unit.counts["tx_underflows"] += 1
        self._tell(usrp2.TX_UNDERFLOW, tick)
        self._position = None
        self._awaits_burst = self._next_burst_only

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

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
from ipaddress import IPv4Address

import numpy as np

from ...errors import RadioError
from . import usrp2
from .air import Chain, VirtualAir
from .clock import RealTimeClock
from .n210_streams import Address, RxStream, Time, TxStream
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
_MAX_PENDING = 256

# Linux: one call sends many packets of equal size; and errors of unconnected sockets are told.
_UDP_SEGMENT, _IP_RECVERR = 103, 11


class VirtualN210:
    """A USRP N210 with an SBX, at one address of this machine.

    Args:
        air: shared with other radios. Time is the air's; a unit never makes it pass.
        address: where it listens; one unit per address.
        name: on the air, made from the address unless given.
        serial: up to eight characters, made from the address unless given.
        ppm: error of its reference.
        pps_error_ticks: how much later than others it sees the pulse per second; up to 10 on real units.
        mimo_master: the unit at the other end of its MIMO cable.

    Raises:
        RadioError: the address is no address of this machine, or taken.
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
        try:
            digits = f"{int(IPv4Address(address)):08X}"
        except ValueError as error:
            raise RadioError(f"address {address!r} is no IPv4 address; give one such as 127.0.0.1") from error
        self.air = air
        self.address = address
        self.name = name or f"n210-{address}"
        self.serial = serial or digits
        self.counts: Counter[str] = Counter()
        """What happened: samples, overflows, underflows, late and malformed packets."""
        self._sockets: dict[int, socket.socket] = {}
        try:
            for port in (usrp2.CONTROL_PORT, usrp2.FIFO_PORT, usrp2.TX_PORT, *usrp2.RX_PORTS):
                self._sockets[port] = _bound(address, port)
            self.radio = air.add_radio(self.name, 1, 2, ppm=ppm)
        except (OSError, ValueError) as error:
            for channel in self._sockets.values():
                channel.close()
            reason = error.strerror if isinstance(error, OSError) else error
            raise RadioError(
                f"no virtual N210 at {address}: {reason}; each needs an address of this machine of its own, "
                f"such as 127.0.0.2"
            ) from error
        self.time = Time(air, ppm, pps_error_ticks)
        self._master = mimo_master
        self._rx = [RxStream(self, dsp) for dsp in (0, 1)]
        self._tx = TxStream(self)
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
        self.turns = 0
        """How often the thread has looked at everything."""
        self._is_open = True
        self._poll_s = _IDLE_S if isinstance(air.clock, RealTimeClock) else 0.001
        self._thread = threading.Thread(target=self._serve, name=self.name, daemon=True)
        self._thread.start()

    def __enter__(self) -> VirtualN210:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_alive(self) -> bool:
        """Whether the unit is being served."""
        return self._thread.is_alive()

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
                # Ports have no common order. A reset holds for packets that come with it, as does a new time, which
                # is asked for only when they are looked at.
                for port in sorted(ready - {usrp2.TX_PORT}):
                    self._drain(port, handlers[port])
                if usrp2.TX_PORT in ready:
                    self._drain(usrp2.TX_PORT, handlers[usrp2.TX_PORT])
                    self._drain(usrp2.FIFO_PORT, handlers[usrp2.FIFO_PORT])
                now = self.time.now()
                self.turns += 1
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

"""What a USRP N210 and its host say to each other: packets, registers, EEPROMs, synthesizers. No state, no sockets.

All words are big-endian except where an EEPROM says otherwise; times are ticks of 100 MHz.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

TICK_RATE_HZ = 100_000_000

CONTROL_PORT = 49152
RX_PORTS = (49156, 49158)
TX_PORT = 49157
FIFO_PORT = 49159

PROTOCOL = 12
FIRMWARE_MINOR = 4
FPGA_MAJOR, FPGA_MINOR = 11, 1
NO_GPSDO = 0x1234ABCD

READBACK_BASE, SETTING_BASE = 0x5C00, 0x7000

# Setting registers.
SR_CLOCK = 0
SR_TIME_HIGH, SR_TIME_LOW, SR_TIME_NOW, SR_TIME_MIMO = 10, 11, 13, 15
SR_SPI_CONTROL, SR_SPI_DATA = 21, 22
SR_RX_CONTROL, SR_RX_DSP = (32, 80), (48, 96)
SR_TX_CONTROL, SR_TX_DSP = 144, 160
SR_GPIO = 184
CLOCK_MIMO = 0x15
TIME_FOLLOWS_MIMO = 1 << 8

# Stream identifiers and what context packets tell.
RX_STREAM_IDS = (3, 4)
ASYNC_STREAM_ID = 2
RX_LATE, RX_BROKEN_CHAIN, RX_OVERFLOW = 2, 4, 8
TX_FLOW, TX_BURST_ACK, TX_UNDERFLOW, TX_SEQUENCE, TX_LATE, TX_SEQUENCE_IN_BURST = 0, 1, 2, 4, 8, 32

# VRT header bits.
CONTEXT, STREAM_ID, TRAILER = 2 << 29, 1 << 28, 1 << 26
START_OF_BURST, END_OF_BURST, TICKS = 1 << 25, 1 << 24, 1 << 20
_CLASS_ID, _TSI = 1 << 27, 3 << 22
# Trailer that says: two of the payload's last four bytes are padding.
HALF_WORD_EMPTY = (3 << 22) | (1 << 10)

SPI_RX_SYNTHESIZER, SPI_TX_SYNTHESIZER = 16, 128

DECIMATIONS = frozenset([*range(4, 129), *range(130, 257, 2), *range(260, 513, 4)])

_CONTROL = struct.Struct(">III24s")
_REGISTER = struct.Struct(">IIB")
_SPI = struct.Struct(">II4B")
_I2C = struct.Struct(">BB20s")
_WORDS2 = struct.Struct(">II")


class ControlRequest(NamedTuple):
    """One packet to the control port."""

    kind: str
    sequence: int
    body: bytes
    length: int


def unpack_control(data: bytes) -> ControlRequest | None:
    """Read a control packet; short ones are padded, None is no control packet."""
    if len(data) < 12:
        return None
    _, kind, sequence, body = _CONTROL.unpack(data[:36].ljust(36, b"\0"))
    if not 0 < kind < 128:
        return None
    return ControlRequest(chr(kind), sequence, body, len(data))


def pack_control(kind: str, sequence: int, body: bytes = b"", length: int = 36) -> bytes:
    """Write an answer of at least 36 bytes."""
    return _CONTROL.pack(PROTOCOL, ord(kind), sequence, body.ljust(24, b"\0")).ljust(length, b"\0")


def unpack_register(body: bytes) -> tuple[int, int, int]:
    """Address, data and action of a register access."""
    return _REGISTER.unpack_from(body)


def pack_register(address: int, data: int, action: int) -> bytes:
    """The same as an answer."""
    return _REGISTER.pack(address, data & 0xFFFFFFFF, action)


def unpack_spi(body: bytes) -> tuple[int, int, int]:
    """Slave mask, data left-aligned in 32 bits, and bit count."""
    mask, data, _, _, bits, _ = _SPI.unpack_from(body)
    bits = min(max(bits, 1), 32)
    return mask, (data << (32 - bits)) & 0xFFFFFFFF, bits


def unpack_i2c(body: bytes) -> tuple[int, int, bytes]:
    """Bus address, byte count (at most 20) and the bytes."""
    address, count, data = _I2C.unpack_from(body)
    return address, min(count, 20), data


def pack_i2c(address: int, data: bytes) -> bytes:
    """The same as an answer."""
    return _I2C.pack(address, len(data), data)


class FifoRequest(NamedTuple):
    """One packet to the register FIFO. `ticks` is None for one that is not timed."""

    sequence: int
    ticks: int | None
    is_poke: bool
    address: int
    data: int


def unpack_fifo(packet: bytes) -> FifoRequest | None:
    """Read a register access; None where the packet is none."""
    if len(packet) < 16:
        return None
    header = int.from_bytes(packet[4:8])
    if header >> 29 != 2:
        return None
    start, ticks = 8, None
    if header & TICKS:
        ticks = int.from_bytes(packet[8:16])
        start = 16
    if len(packet) < start + 8:
        return None
    control, data = _WORDS2.unpack_from(packet, start)
    return FifoRequest(control >> 16, ticks, bool(control & 0x100), control & 0xFF, data)


def pack_fifo(sequence: int, data: int) -> bytes:
    """The answer to one register access."""
    return struct.pack(">III", CONTEXT | 3, (sequence & 0xFFFF) << 16, data & 0xFFFFFFFF)


class TxPacket(NamedTuple):
    """One packet of the transmit stream. `ticks` is None without a time; the payload is whole words.

    With `half_empty`, the last word holds one sample of eight bits and not two.
    """

    sequence: int
    starts_burst: bool
    ends_burst: bool
    ticks: int | None
    payload: memoryview
    half_empty: bool


def unpack_tx(packet: memoryview) -> TxPacket | None:
    """Read a packet of the transmit stream; None where it is malformed or carries no data."""
    if len(packet) < 12:
        return None
    sequence, header = _WORDS2.unpack_from(packet)
    length = 4 * (header & 0xFFFF)
    if header == 0 or header >> 29 != 0 or header & (_CLASS_ID | _TSI) or not 4 < length <= len(packet) - 4:
        return None
    start, end = 8, 4 + length
    if header & STREAM_ID:
        start += 4
    ticks = None
    if header & TICKS:
        ticks = int.from_bytes(packet[start : start + 8])
        start += 8
    half_empty = False
    if header & TRAILER:
        end -= 4
        trailer = int.from_bytes(packet[end : end + 4])
        half_empty = trailer & HALF_WORD_EMPTY == HALF_WORD_EMPTY
    if start >= end:
        return None
    starts_burst, ends_burst = bool(header & START_OF_BURST), bool(header & END_OF_BURST)
    return TxPacket(sequence, starts_burst, ends_burst, ticks, packet[start:end], half_empty)


def pack_context(stream_id: int, ticks: int, *words: int) -> bytes:
    """A context packet: an error of a receive stream, or news of the transmit stream."""
    n = 4 + len(words)
    body = b"".join(struct.pack(">I", word & 0xFFFFFFFF) for word in words)
    return struct.pack(">IIQ", CONTEXT | STREAM_ID | TICKS | n, stream_id, ticks & (2**64 - 1)) + body


def pack_rx(
    values: NDArray[np.integer],
    *,
    stream_id: int,
    first_count: int,
    first_ticks: int,
    ticks_per_sample: int,
    eight_bit: bool = False,
    ends_burst: bool = False,
) -> NDArray[np.uint8]:
    """Write packets of one length.

    Args:
        values: (packets, samples, 2) I and Q as they go on the wire.
        stream_id: of the receive stream.
        first_count: packet count of the first packet.
        first_ticks: time of the first sample.
        ticks_per_sample: spacing.
        eight_bit: one byte per value instead of two.
        ends_burst: mark the last packet.

    Returns:
        (packets, bytes) uint8.
    """
    n_packets, n_samples, _ = values.shape
    n_payload = (n_samples + 1) // 2 if eight_bit else n_samples
    n_words = n_payload + 5
    words = np.zeros((n_packets, n_words), dtype=">u4")
    order = np.arange(n_packets, dtype=np.int64)
    words[:, 0] = (STREAM_ID | TRAILER | TICKS | n_words) + (((first_count + order) & 0xF) << 16)
    if ends_burst:
        words[-1, 0] |= END_OF_BURST
    words[:, 1] = stream_id
    words[:, 2:4] = (first_ticks + order * (n_samples * ticks_per_sample)).astype(">i8").view(">u4").reshape(-1, 2)
    if eight_bit:
        words.view(np.int8)[:, 16 : 16 + 2 * n_samples] = values.reshape(n_packets, -1)
        if n_samples % 2:
            words[:, -1] = HALF_WORD_EMPTY
    else:
        words.view(">i2")[:, 8:-2] = values.reshape(n_packets, -1)
    return words.view(np.uint8)


def tx_values(payload: bytes, eight_bit: bool) -> NDArray[np.complex64]:
    """Samples of transmit payloads, full scale 32767; bytes count as the upper half of sixteen bits.

    Args:
        payload: whole 32-bit words.
        eight_bit: two samples per word instead of one.
    """
    if eight_bit:
        return 256 * np.frombuffer(payload, dtype=np.int8).astype(np.float32).view(np.complex64)
    return np.frombuffer(payload, dtype=">i2").astype(np.float32).view(np.complex64)


def rate_factor(word: int) -> int | None:
    """Total decimation or interpolation of a rate word, None where the device does not offer it."""
    factor = (word & 0xFF) << ((word >> 8 & 1) + (word >> 9 & 1))
    return factor if factor in DECIMATIONS else None


def scale_gain(word: int, rate_word: int, order: int) -> float:
    """Amplitude gain of a scale register beside the filters' own.

    The driver asks for 2^17 a / f, where a = 2^ceil(log2 c^order) / (1.65 c^order) makes up for a CIC filter of factor
    c; what remains beside a is the gain from full scale to the wire.

    Args:
        word: of the scale register.
        rate_word: of the decimation or interpolation register.
        order: of the CIC filter, 4 for reception and 3 for transmission.
    """
    power = float(max(rate_word & 0xFF, 1)) ** order
    adjustment = 2.0 ** math.ceil(math.log2(power)) / (1.65 * power)
    return word / (2**17 * adjustment)


def dsp_frequency_hz(word: int) -> float:
    """Frequency of a DSP oscillator, signed."""
    return ((word ^ 0x80000000) - 0x80000000) * TICK_RATE_HZ / 2**32


def synthesizer_hz(registers: Mapping[int, int]) -> float | None:
    """Frequency of an ADF4350 at a reference of 100 MHz.

    Args:
        registers: words R0, R1, R2 and R4 by number.

    Returns:
        The frequency at its output, None while words are missing or make no frequency.

    Source: data sheet of the ADF4350, register maps.
    """
    if not {0, 1, 2, 4} <= registers.keys():
        return None
    r0, r1, r2, r4 = (registers[n] for n in (0, 1, 2, 4))
    modulus, divider = r1 >> 3 & 0xFFF, r2 >> 14 & 0x3FF
    if modulus == 0 or divider == 0:
        return None
    phase_detector_hz = TICK_RATE_HZ * (1 + (r2 >> 25 & 1)) / (divider * (1 + (r2 >> 24 & 1)))
    frequency_hz = phase_detector_hz * ((r0 >> 15 & 0xFFFF) + (r0 >> 3 & 0xFFF) / modulus)
    if r4 >> 23 & 1:
        frequency_hz /= 1 << (r4 >> 20 & 7)
    return frequency_hz


@dataclass(frozen=True)
class FrontEnd:
    """One half of an SBX daughterboard's pins: 0 to 31.5 dB of gain, and whether it is on."""

    gain_db: float
    is_on: bool


def receive_front_end(pins: int) -> FrontEnd:
    """State of the receiving half from its 16 pins."""
    return FrontEnd((pins >> 8 & 63) / 2, not pins & 0x30)


def transmit_front_end(pins: int) -> FrontEnd:
    """State of the transmitting half from its 16 pins."""
    return FrontEnd((pins >> 8 & 63) / 2, bool(pins & 0x10) and not pins & 0x20)


def motherboard_eeprom(address: str, serial: str, name: str) -> bytearray:
    """The 256 bytes that say: N210 revision 4, at this address."""
    rom = bytearray(256)
    rom[0:2] = (0x0A11).to_bytes(2, "little")
    ip = bytes(int(part) for part in address.split("."))
    rom[2:8] = b"\x00\x50\xc2" + ip[1:]
    rom[8:12] = b"\xff\xff\xff\x00"
    rom[12:16] = ip
    rom[18:20] = (4).to_bytes(2, "little")
    rom[20:22] = (2577).to_bytes(2, "little")
    rom[24:33] = serial.encode()[:8].ljust(9, b"\0")
    rom[33:56] = name.encode()[:22].ljust(23, b"\0")
    return rom


def daughterboard_eeprom(board_id: int, serial: str) -> bytearray:
    """The 256 bytes of one half of a daughterboard, checksum included."""
    rom = bytearray(256)
    rom[0] = 0xDB
    rom[1:3] = board_id.to_bytes(2, "little")
    rom[9:18] = serial.encode()[:8].ljust(9, b"\0")
    rom[31] = -sum(rom[:31]) & 0xFF
    return rom

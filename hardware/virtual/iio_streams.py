"""Kernel buffers of a virtual IIO radio: they fill and empty as time passes, whatever the client does."""

from __future__ import annotations

import errno
import functools
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numba import njit

from .air import AirRadio, Background, VirtualAir
from .iio_model import StreamTimeout

UNDERFLOW, OVERFLOW = 1, 4
"""Bits of the cores' status register."""

# A stream's samples become real in pieces of this length.
PIECE_S = 2e-3
_POLL_S = 0.05


class StreamHost(Protocol):
    """What streams need of their radio; True stands for transmission as everywhere here, False for reception."""

    air: VirtualAir
    radio: AirRadio
    name: str
    rate_epoch: int
    status: dict[bool, int]
    losses: dict[bool, int]
    streams: dict[bool, RxStream | TxStream | None]

    def receive(self, start: int, columns: tuple[int, ...], out: np.ndarray) -> None:
        """Fill (n, columns) int16 with received samples."""

    def open_tx(self, source: tuple[Background | None, ...]) -> None:
        """Samples of a buffer replace the tones; `source` is what it sends by itself."""

    def close_tx(self) -> None:
        """No buffer is open any more."""


class RxStream:
    """Received samples in kernel buffers, which fill as time passes whether or not anybody takes them.

    When all are full, samples are lost until one is taken; then comes what was received before the loss.
    """

    def __init__(self, device: StreamHost, n: int, columns: tuple[int, ...], queue: int) -> None:
        self.columns = columns
        self._device = device
        self._n = n
        self._queue = queue
        self._full: deque[memoryview] = deque()
        self._current = memoryview(b"")
        self._changed = threading.Condition()
        self._closing = False
        self._wanted = False
        # When the memory of each buffer was free, in the order of the buffers; all of it is at the beginning.
        self._freed: deque[int] = deque([-1] * queue)
        self._thread = threading.Thread(target=self._fill, name=f"{device.name}-rx", daemon=True)

    def start(self) -> None:
        """Begin to receive."""
        self._thread.start()

    def take(self, n_bytes: int, alive: Callable[[], bool], deadline_s: float | None) -> memoryview:
        """See Stream."""
        if not self._current:
            with self._changed:
                self._wanted = True
                self._changed.notify_all()
                while not self._full:
                    if self._closing or not alive():
                        return memoryview(b"")
                    if deadline_s is not None and time.monotonic() > deadline_s:
                        raise StreamTimeout
                    self._changed.wait(_POLL_S)
                self._current = self._full.popleft()
                self._freed.append(self._device.air.now(self._device.radio.rx[0]))
                self._wanted = False
                self._changed.notify_all()
        part, self._current = self._current[:n_bytes], self._current[n_bytes:]
        return part

    def push(self, payload: memoryview, alive: Callable[[], bool], deadline_s: float | None) -> None:
        """A receiver takes nothing."""
        raise OSError(errno.EBADF, "receives only")

    def flag_loss(self) -> None:
        """See Stream."""
        self._device.status[False] |= OVERFLOW
        self._device.losses[False] += 1

    def close(self) -> None:
        """See Stream."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        if self._device.streams[False] is self:
            self._device.streams[False] = None

    def _fill(self) -> None:
        device, air, chain = self._device, self._device.air, self._device.radio.rx[0]
        index, epoch = air.now(chain), device.rate_epoch
        while True:
            with self._changed:
                while not self._freed and not self._closing:
                    self._changed.wait(_POLL_S)
                if self._closing:
                    return
                lost = self._freed.popleft() - index
            if device.rate_epoch == epoch and lost > 0:
                self.flag_loss()
                index += lost
            buffer = np.empty((self._n, len(self.columns)), dtype="<i2")
            at = 0
            while at < self._n:
                n = min(max(int(chain.rate_hz * PIECE_S), 256), self._n - at)
                if device.rate_epoch != epoch:
                    epoch, index = device.rate_epoch, air.now(chain)
                while not air.clock.reach(air.time_of(chain, index + n), device.name, self._wanted, _POLL_S):
                    if self._closing:
                        return
                late = air.now(chain) - index
                if late > max(self._queue * self._n, int(air.history_s * chain.rate_hz)):
                    # This machine was too slow to compute the air.
                    self.flag_loss()
                    index += late
                device.receive(index, self.columns, buffer[at : at + n])
                index += n
                at += n
            with self._changed:
                self._full.append(buffer.data.cast("B"))
                self._changed.notify_all()


class TxStream:
    """Samples to be sent, queued one after the other; where the queue ran dry there is silence."""

    def __init__(self, device: StreamHost, n: int, columns: tuple[int, ...], cyclic: bool, queue: int) -> None:
        self.columns = columns
        self._device = device
        self._n = n
        self._cyclic = cyclic
        self._queue = queue
        self._end: int | None = None
        self._epoch = device.rate_epoch
        self._pushed = False

    def start(self) -> None:
        """Silence the tones."""
        for chain in self._device.radio.tx:
            self._device.air.reserve(chain, self._n * self._queue + self._lead())
        self._device.open_tx((None,) * len(self._device.radio.tx))

    def take(self, n_bytes: int, alive: Callable[[], bool], deadline_s: float | None) -> memoryview:
        """A transmitter gives nothing."""
        raise OSError(errno.EBADF, "transmits only")

    def flag_loss(self) -> None:
        """See Stream."""
        self._device.status[True] |= UNDERFLOW
        self._device.losses[True] += 1

    def is_dry(self) -> bool:
        """Whether samples should be sent and there are none."""
        return self._end is not None and not self._cyclic and self._end < self._device.air.now(self._device.radio.tx[0])

    def push(self, payload: memoryview, alive: Callable[[], bool], deadline_s: float | None) -> None:
        """See Stream."""
        width = len(self.columns)
        raw = np.frombuffer(payload, dtype="<i2", count=len(payload) // (2 * width) * width).reshape(-1, width)
        chains = _to_samples(raw, self.columns, len(self._device.radio.tx))
        if self._cyclic:
            if self._pushed:
                raise OSError(errno.EBUSY, "a cyclic buffer is being sent")
            self._pushed = True
            if len(raw):
                self._device.open_tx(tuple(_cyclic(samples) for samples in chains))
            return
        # Whatever the client's buffers are, no more than the queue holds lies ahead.
        for at in range(0, len(raw), self._n):
            self._push([samples[at : at + self._n] for samples in chains], alive, deadline_s)

    def _lead(self) -> int:
        """How far ahead sending begins: as much as computing the air is behind."""
        return int(PIECE_S * self._device.radio.tx[0].rate_hz)

    def _push(self, chains: list[np.ndarray], alive: Callable[[], bool], deadline_s: float | None) -> None:
        device, air, port = self._device, self._device.air, self._device.radio.tx[0]
        if self._epoch != device.rate_epoch:
            self._epoch, self._end = device.rate_epoch, None
        if self._end is not None:
            room_s = air.time_of(port, self._end - self._lead() - (self._queue - 1) * self._n)
            while not air.clock.reach(room_s, device.name, device.streams[False] is None, _POLL_S):
                if device.streams[True] is not self or not alive():
                    return
                if deadline_s is not None and time.monotonic() > deadline_s:
                    raise StreamTimeout
        now = air.now(port)
        if self._end is None or self._end < now:
            if self._end is not None:
                self.flag_loss()
            self._end = now + self._lead()
        for chain, samples in zip(device.radio.tx, chains, strict=True):
            air.transmit(chain, self._end, samples)
        self._end += len(chains[0])

    def close(self) -> None:
        """See Stream."""
        if self._device.streams[True] is self:
            self._device.streams[True] = None
            self._device.close_tx()


@functools.cache
def compile_conversions() -> None:
    """Have the compiled functions ready before time passes."""
    parts, raw = np.zeros(2, dtype=np.float32), np.zeros((1, 2), dtype="<i2")
    quantise_into(parts, 0, raw, 0)
    _deconvert(raw, 0, parts, 0)


def _cyclic(samples: np.ndarray) -> Background | None:
    """A buffer sent over and over, its place given by the absolute index."""
    if not samples.any():
        return None
    # At least so long that few copies make up a request.
    tile = np.tile(samples, -(-65536 // samples.size) + 1)

    def send(start: int, n: int) -> np.ndarray:
        at = start % samples.size
        if at + n <= tile.size:
            return tile[at : at + n]
        return np.take(samples, np.arange(start, start + n), mode="wrap")

    return send


def _to_samples(raw: np.ndarray, columns: tuple[int, ...], n_chains: int) -> list[np.ndarray]:
    """What the converters make of a buffer: of each chain (n,) complex64, of which they use the upper 12 bits."""
    out = [np.zeros(len(raw), dtype=np.complex64) for _ in range(n_chains)]
    for at, column in enumerate(columns):
        _deconvert(raw, at, out[column // 2].view(np.float32), column % 2)
    return out


@njit(cache=True, nogil=True)
def _deconvert(raw, at, parts, part):
    for i in range(raw.shape[0]):
        parts[2 * i + part] = np.float32(raw[i, at] >> 4) / np.float32(2048)


@njit(cache=True, nogil=True)
def quantise_into(parts, part, out, at):
    """Round and clip one part of each sample to 12 bits."""
    for i in range(out.shape[0]):
        value = math.floor(parts[2 * i + part] * np.float32(2048) + np.float32(0.5))
        out[i, at] = np.int16(min(max(value, -2047), 2047))

"""Sample streams of IIO radios: GNU Radio blocks around the buffers of libiio.

They do what the blocks of gr-iio 3.10 do not: share one context with whoever sets the radio, as a device behind USB
admits only one; report a device that vanished, where gr-iio ends the stream as if it were over; send what is queued
before they let go; and write nothing to standard output.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numba import njit

from ..blocks.runtime import RX_FREQ, RX_RATE, Failsafe, gr, guarded, pmt
from ..errors import RadioError

CONVERTER_BITS = 12
# Longer than a change of rate or carrier with its calibrations takes, shorter than a user waits for an answer.
TIMEOUT_MS = 1800
# Streams are watched by whoever runs the flowgraph; a busy machine may pause for a while.
_STREAM_TIMEOUT_MS = 5000
# REG_VDMA_STATUS of the cores: what it holds stays until it is written.
_STATUS = 0x80000088
_UNDERFLOW, _OVERFLOW, _ALL_FLAGS = 1, 4, 7
_POLL_S = 0.1
_WAIT_S = 0.02
_BUFFER_S = 0.01
_BUFFER_SAMPLES = (1024, 1 << 18)
_KERNEL_BYTES = 8 << 20
_LEAST_BUFFERS, _MOST_BUFFERS = 4, 32
# From libiio to the flowgraph, in seconds of samples.
_HELD_S = 1.0
_STUCK_S = 0.5
_GONE = (
    errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ESHUTDOWN, errno.ETIMEDOUT, errno.ENODEV, errno.ENXIO,
    errno.EIO, errno.EBADF, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPROTO,
)  # fmt: skip


@dataclass
class Core:
    """One direction of a radio, as its streams need it.

    Attributes:
        address: of the radio, for messages.
        iio: the module.
        context: kept alive for as long as a stream is.
        device: of libiio, with the channels that stream.
        output: whether it transmits.
        n_chains: that stream; each is two channels.
        flags: whether its status register can be read.
        counts: of the radio, shared by both directions.
        gone: set once the device does not answer any more; shared.
        owner: gives the radio, which must be there while its streams run; None once it is not.
    """

    address: str
    iio: Any
    context: Any
    device: Any
    output: bool
    n_chains: int
    flags: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    gone: threading.Event = field(default_factory=threading.Event)
    owner: Callable[[], Any] = lambda: None

    def buffer_samples(self, rate_hz: float) -> int:
        """Samples of one buffer at a rate; a multiple of what the cores align to."""
        low, high = _BUFFER_SAMPLES
        return min(max(int(_BUFFER_S * rate_hz), low), high) // 8 * 8

    def kernel_buffers(self, n_samples: int) -> int:
        """Buffers of the kernel: as many as the memory of a small board has room for."""
        fitting = _KERNEL_BYTES // (4 * self.n_chains * n_samples)
        return min(max(fitting, _LEAST_BUFFERS), _MOST_BUFFERS)

    def open(self, n_samples: int) -> Any:
        """A buffer of so many samples per chain.

        Raises:
            RadioError: another client streams, the device is gone, or its radio was closed.
        """
        if self.device is None:
            raise RadioError(f"the radio {self.address} was closed; open it again")
        wanted = {f"voltage{k}" for k in range(2 * self.n_chains)}
        way = "transmits" if self.output else "receives"
        try:
            for channel in self.device.channels:
                if channel.scan_element:
                    channel.enabled = channel.id in wanted
            self.device.set_kernel_buffers_count(self.kernel_buffers(n_samples))
            # A stream takes the patience that its context has when it begins.
            self.context.set_timeout(_STREAM_TIMEOUT_MS)
            try:
                return self.iio.Buffer(self.device, n_samples)
            finally:
                self.context.set_timeout(TIMEOUT_MS)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise RadioError(
                    f"the radio {self.address} is busy: another program {way} with it; end that program, or name "
                    "another radio, see `semair radios`"
                ) from error
            raise self.error(error, f"cannot stream ({self.device.name}, {n_samples} samples)") from error

    def error(self, error: OSError, what: str) -> RadioError:
        """What to tell of an error of the driver; remembers a device that is gone."""
        name = error.strerror or (os.strerror(error.errno) if error.errno else str(error))
        if error.errno in _GONE:
            self.gone.set()
            return RadioError(
                f"the radio {self.address} vanished: it {what}: {name}; see its power and its cable or network, then "
                "start again"
            )
        return RadioError(f"the radio {self.address} {what}: {name}")

    def clear_flags(self) -> None:
        """Forget losses of the past."""
        if self.flags:
            self.device.reg_write(_STATUS, _ALL_FLAGS)

    def poll_flags(self) -> None:
        """Count a loss that happened since the last look."""
        if self.flags:
            bit, name = (_UNDERFLOW, "underflows") if self.output else (_OVERFLOW, "overflows")
            if self.device.reg_read(_STATUS) & bit:
                self.counts[name] = self.counts.get(name, 0) + 1
                self.device.reg_write(_STATUS, _ALL_FLAGS)


def has_flags(device: Any) -> bool:
    """Whether the status register of a core can be read, which a kernel may withhold."""
    try:
        device.reg_read(_STATUS)
    except OSError:
        return False
    return True


class _Stream(Failsafe):
    """A buffer and a thread that fills or empties it, for as long as the flowgraph runs."""

    def __init__(self, core: Core, rate_hz: float) -> None:
        self._core = core
        self._rate_hz = rate_hz
        self._n = core.buffer_samples(rate_hz)
        self._changed = threading.Condition()
        self._ending = False
        self._buffer: Any = None
        self._thread: threading.Thread | None = None
        self._blocked: float | None = None
        self._polled = 0.0
        self._owner: Any = None

    def warm_up(self) -> None:
        """Compile the conversions."""
        parts, words = np.zeros(2, dtype=np.float32), np.zeros((1, 2), dtype="<i2")
        _samples_of(words, 0, 1, 0, parts)
        _words_of(parts, 1, 0, words, 0)

    def start(self) -> bool:
        """Begin to stream."""
        super().start()
        self._ending = False
        self._owner = self._core.owner()
        try:
            self._buffer = self._core.open(self._n)
            self._core.clear_flags()
        except (RadioError, OSError) as error:
            self._buffer = self._owner = None
            known = error if isinstance(error, RadioError) else self._core.error(error, "does not stream")
            self.keep(known)
            return True
        self._polled = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"iio {self._core.device.name}", daemon=True)
        self._thread.start()
        return True

    def stop(self) -> bool:
        """End the stream: what is queued is sent, what is stuck is given up."""
        thread = self._thread
        if thread is None:
            return True
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        while thread.is_alive():
            thread.join(_WAIT_S)
            since = self._blocked
            if since is not None and time.monotonic() - since > _STUCK_S + 2 * self._n / self._rate_hz:
                self._buffer.cancel()
                thread.join(_STUCK_S)
                break
        self._thread = self._owner = None
        if not thread.is_alive():
            # Destroyed here and now, for it must not outlive its context.
            self._buffer = None
        return True

    def _run(self) -> None:
        try:
            self._stream()
        except OSError as error:
            if not (self._ending and error.errno == errno.EBADF):
                what = "takes no more samples" if self._core.output else "gives no more samples"
                self.keep(self._core.error(error, what))
        except Exception as error:
            self.keep(error)
        with self._changed:
            self._changed.notify_all()

    def _stream(self) -> None:
        raise NotImplementedError

    def _guard(self, action: Any) -> None:
        """Do what may block; others see since when it does."""
        self._blocked = time.monotonic()
        action()
        self._blocked = None

    def _look(self) -> None:
        """Look at the flags now and then."""
        now = time.monotonic()
        if now - self._polled >= _POLL_S:
            self._polled = now
            self._core.poll_flags()


class IioSource(_Stream, gr.sync_block):
    """What a radio receives.

    Losses are counted by the radio's flag; where they are, and how long, it does not tell.

    Args:
        core: that receives.
        rate_hz: sample rate.
        frequency_hz: carrier, for the tags.
    """

    def __init__(self, core: Core, rate_hz: float, frequency_hz: float) -> None:
        gr.sync_block.__init__(self, "iio source", None, [np.complex64] * core.n_chains)
        _Stream.__init__(self, core, rate_hz)
        self._frequency_hz = frequency_hz
        # Few large pieces cost a fraction of many small ones; that it is so belongs on no standard output.
        self.set_log_level("warn")
        self.set_min_output_buffer(2 * self._n)
        self._limit = max(int(_HELD_S * rate_hz / self._n), 4)
        self._pieces: deque[np.ndarray] = deque()
        self._at = 0

    def start(self) -> bool:
        """Begin to receive; nothing is old."""
        self._pieces.clear()
        self._at = 0
        return super().start()

    def _stream(self) -> None:
        buffer, width = self._buffer, 2 * self._core.n_chains
        while not self._ending:
            self._guard(buffer.refill)
            piece = np.frombuffer(buffer.read(), dtype="<i2").reshape(-1, width)
            with self._changed:
                while len(self._pieces) >= self._limit and not self._ending:
                    # From here on the kernel's buffers fill, and then the radio loses samples and tells so.
                    self._changed.wait(_POLL_S)
                self._pieces.append(piece)
                self._changed.notify_all()
            self._look()
        self._core.poll_flags()

    @guarded
    def work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        with self._changed:
            if not self._pieces:
                self._changed.wait(_WAIT_S)
            if not self._pieces:
                return 0
            piece = self._pieces[0]
        n = min(len(piece) - self._at, len(output_items[0]))
        for chain, out in enumerate(output_items):
            _samples_of(piece, self._at, n, chain, out.view(np.float32))
        if not self.nitems_written(0):
            for port in range(self._core.n_chains):
                self.add_item_tag(port, 0, RX_RATE, pmt.from_double(self._rate_hz))
                self.add_item_tag(port, 0, RX_FREQ, pmt.from_double(self._frequency_hz))
        self._at += n
        if self._at == len(piece):
            self._at = 0
            with self._changed:
                self._pieces.popleft()
                self._changed.notify_all()
        return n


class IioSink(_Stream, gr.sync_block):
    """What a radio transmits: sent at its rate from when half of its queue is full, and to the last sample.

    Args:
        core: that transmits.
        rate_hz: sample rate.
    """

    def __init__(self, core: Core, rate_hz: float) -> None:
        gr.sync_block.__init__(self, "iio sink", [np.complex64] * core.n_chains, None)
        _Stream.__init__(self, core, rate_hz)
        self._ahead = core.kernel_buffers(self._n) // 2
        self._full: deque[np.ndarray] = deque()
        self._piece = self._empty()
        self._at = 0

    def _empty(self) -> np.ndarray:
        return np.zeros((self._n, 2 * self._core.n_chains), dtype="<i2")

    def start(self) -> bool:
        """Begin to transmit."""
        self._full.clear()
        self._piece, self._at = self._empty(), 0
        return super().start()

    def stop(self) -> bool:
        """Send what is left, wait until it was sent, and let go."""
        with self._changed:
            if self._at:
                # The rest of a buffer is silence.
                self._full.append(self._piece)
                self._piece, self._at = self._empty(), 0
        return super().stop()

    def _stream(self) -> None:
        buffer, ahead, queued_s = self._buffer, self._ahead, 0.0
        while True:
            with self._changed:
                while len(self._full) < ahead and not self._ending:
                    self._changed.wait(_POLL_S)
                if not self._full:
                    break
                piece = self._full.popleft()
                self._changed.notify_all()
            ahead = 1
            buffer.write(bytearray(piece.tobytes()))
            self._guard(buffer.push)
            queued_s = self._core.kernel_buffers(self._n) * self._n / self._rate_hz
            if not self._ending:
                self._look()
        # Closing a buffer drops what it still holds.
        self._core.gone.wait(queued_s)

    @guarded
    def work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        with self._changed:
            if len(self._full) > self._ahead:
                self._changed.wait(_WAIT_S)
            if len(self._full) > self._ahead:
                return 0
        n = min(len(input_items[0]), self._n - self._at)
        cut = 0
        for chain, values in enumerate(input_items):
            cut += _words_of(values.view(np.float32), n, chain, self._piece, self._at)
        if cut:
            self._core.counts["tx_clipped"] = self._core.counts.get("tx_clipped", 0) + cut
        self._at += n
        if self._at == self._n:
            with self._changed:
                self._full.append(self._piece)
                self._changed.notify_all()
            self._piece, self._at = self._empty(), 0
        return n


@njit(cache=True, nogil=True)
def _samples_of(words, first, n, chain, parts):
    """Real and imaginary parts of a chain's samples, full scale 1, from the converters' words (samples, channels)."""
    scale = np.float32(1 / (1 << CONVERTER_BITS - 1))
    for k in range(n):
        parts[2 * k] = scale * words[first + k, 2 * chain]
        parts[2 * k + 1] = scale * words[first + k, 2 * chain + 1]


@njit(cache=True, nogil=True)
def _words_of(parts, n, chain, words, first):
    """The reverse; returns how many samples were cut. The converter takes the upper bits of sixteen."""
    top = np.float32((1 << CONVERTER_BITS - 1) - 1)
    cut = 0
    for k in range(n):
        whole = True
        for part in range(2):
            value = np.rint(parts[2 * k + part] * np.float32(1 << CONVERTER_BITS - 1))
            if not abs(value) <= top:
                whole = False
                # What is no number is silence.
                value = top if value > top else -top if value < -top else np.float32(0)
            words[first + k, 2 * chain + part] = np.int16(value) << (16 - CONVERTER_BITS)
        cut += not whole
    return cut

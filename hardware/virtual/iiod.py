"""The text protocol of libiio's network daemon (libiio 0.24, `iiod/parser.y` and `iiod-client.c`), as a server.

Each connection has a thread. Whatever comes in is bounded: lines, attribute values, payloads, connections, and the
time that a started request may take to arrive; what does not fit is refused, or the connection is closed.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ...errors import RadioError
from .faults import Fault, Faults
from .iio_model import Cell, Context, Device, Stream, StreamTimeout

PORT = 30431
VERSION = b"0.24.c4498c2\n"

_MAX_LINE = 1024
_MAX_VALUE = 1 << 16
_MAX_PAYLOAD = 1 << 26
_MAX_CONNECTIONS = 64
# A client that has begun a request must finish it, and one that has asked must take the answer, within this.
_PATIENCE_S = 30.0
_POLL_S = 0.05
# A new OPEN may overtake the close of the old one.
_BUSY_TRIES, _BUSY_WAIT_S = 500, 1e-4
_KINDS = {"DEBUG", "BUFFER"}
_DIRECTIONS = {"INPUT": False, "OUTPUT": True}


class _Gone(Exception):
    """The connection is over."""


class IiodServer:
    """Serves one context on one port until it is closed.

    Args:
        context: what clients see.
        address: to listen on.
        port: to listen on; 0 takes a free one.

    Raises:
        RadioError: the address cannot be listened on.
    """

    def __init__(self, context: Context, address: str = "127.0.0.1", port: int = PORT) -> None:
        self.context = context
        self.faults = Faults()
        self._xml = context.xml().encode()
        self._owners: dict[str, _Connection] = {}
        self._lock = threading.Lock()
        self._connections: set[_Connection] = set()
        self._closing = False
        try:
            self._listener = socket.create_server((address, port), backlog=32)
        except OSError as error:
            raise RadioError(
                f"cannot listen on {address}:{port}: {error.strerror or error}; is another device there? "
                "Choose another address, such as 127.0.0.2"
            ) from None
        self.address: str = address
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name=f"iiod-{address}", daemon=True)
        self._thread.start()

    @property
    def uri(self) -> str:
        """What to give to libiio."""
        return f"ip:{self.address}" + ("" if self.port == PORT else f":{self.port}")

    def close(self) -> None:
        """Close the port and all connections; wait until every thread has ended."""
        self._closing = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.end()
        for connection in connections:
            connection.thread.join()

    def drop_connections(self) -> None:
        """Close what is connected now, as a device does whose cable is pulled for a moment."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.end()

    def _accept(self) -> None:
        while not self._closing:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if len(self._connections) >= _MAX_CONNECTIONS or self._closing:
                    peer.close()
                    continue
                connection = _Connection(self, peer)
                self._connections.add(connection)
            connection.thread.start()

    def take(self, device: Device, connection: _Connection) -> None:
        """Make a connection the only one that streams with a device; OSError where another is."""
        for _ in range(_BUSY_TRIES):
            with self._lock:
                if self._owners.setdefault(device.id, connection) is connection:
                    return
            time.sleep(_BUSY_WAIT_S)
        raise OSError(errno.EBUSY, "another client streams")

    def release(self, device: Device, connection: _Connection) -> None:
        """The reverse of `take`."""
        with self._lock:
            if self._owners.get(device.id) is connection:
                del self._owners[device.id]

    def forget(self, connection: _Connection) -> None:
        """A connection has ended."""
        with self._lock:
            self._connections.discard(connection)

    def description(self) -> bytes:
        """The context's XML."""
        return self._xml


class _Connection:
    """One client's connection: reads requests, answers them in order."""

    def __init__(self, server: IiodServer, peer: socket.socket) -> None:
        self._server = server
        self._peer = peer
        self._input = bytearray()
        self._streams: dict[str, tuple[Device, Stream, int]] = {}
        self._timeout_s: float | None = None
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Receiving waits by select, so that this limits only how long an answer may wait to be taken.
        peer.settimeout(_PATIENCE_S)
        self.thread = threading.Thread(target=self._run, name="iiod-client", daemon=True)

    def end(self) -> None:
        """Have the thread end, from another thread."""
        with suppress(OSError):
            self._peer.shutdown(socket.SHUT_RDWR)

    # Bytes in and out

    def _receive(self, limit_s: float | None) -> None:
        """Append what has arrived to the input; _Gone at the end or when nothing comes for too long."""
        if not select.select([self._peer], [], [], limit_s)[0]:
            raise _Gone
        got = self._peer.recv(1 << 16)
        if not got:
            raise _Gone
        self._input += got

    def _line(self) -> str:
        """The next request, without its end."""
        searched = 0
        deadline = None
        while (at := self._input.find(b"\n", searched)) < 0:
            searched = len(self._input)
            if searched > _MAX_LINE:
                raise _Gone
            if searched and deadline is None:
                deadline = time.monotonic() + _PATIENCE_S
            self._receive(None if deadline is None else max(deadline - time.monotonic(), 0))
        line = bytes(self._input[:at])
        del self._input[: at + 1]
        return line.decode("latin-1").rstrip("\r\t ")

    def _exactly(self, n: int) -> memoryview:
        """The next n bytes."""
        out = bytearray(n)
        at = min(n, len(self._input))
        out[:at] = self._input[:at]
        del self._input[:at]
        view = memoryview(out)
        while at < n:
            if not select.select([self._peer], [], [], _PATIENCE_S)[0]:
                raise _Gone
            got = self._peer.recv_into(view[at:])
            if not got:
                raise _Gone
            at += got
        return view

    def _send(self, data: bytes | memoryview) -> None:
        self._peer.sendall(data)

    def _number(self, value: int) -> None:
        self._send(b"%d\n" % value)

    def _alive(self) -> bool:
        """Whether the client is still there; one that has closed its side is not."""
        if not select.select([self._peer], [], [], 0)[0]:
            return True
        try:
            return bool(self._peer.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def _connected(self) -> bool:
        """Whether neither side has closed the connection, whatever still waits to be read."""
        poll = select.poll()
        poll.register(self._peer, getattr(select, "POLLRDHUP", select.POLLHUP))
        return not poll.poll(0)

    # Requests

    def _run(self) -> None:
        try:
            while self._answer(self._line()):
                pass
        except (_Gone, OSError):
            pass
        finally:
            for device, stream, _ in list(self._streams.values()):
                stream.close()
                self._server.release(device, self)
            self._peer.close()
            self._server.forget(self)

    def _answer(self, line: str) -> bool:
        """Answer one request. Returns whether more may come."""
        words = line.split()
        if not words:
            return True
        command = words[0].upper() if words[0] in (words[0].upper(), words[0].lower()) else ""
        if command in ("EXIT", "QUIT"):
            return False
        handler = getattr(self, f"_do_{command.lower()}", None) if command.isalpha() else None
        if handler is None:
            self._number(-errno.EINVAL)
            return True
        try:
            handler(words[1:])
        except StreamTimeout:
            self._number(-errno.ETIMEDOUT)
        except _Refused as refusal:
            self._number(-refusal.number)
        return True

    def _do_version(self, words: list[str]) -> None:
        self._send(VERSION)

    def _do_help(self, words: list[str]) -> None:
        self._send(
            b"Commands: HELP EXIT VERSION PRINT TIMEOUT READ WRITE OPEN CLOSE READBUF WRITEBUF GETTRIG SETTRIG SET\n"
        )

    def _do_print(self, words: list[str]) -> None:
        text = self._server.description()
        fault = self._fault("print", "")
        head = b"%d\n" % len(text)
        if fault is not None:
            self._spoil(fault, head + text + b"\n")
            return
        self._send(head + text + b"\n")

    def _do_timeout(self, words: list[str]) -> None:
        limit_ms = _integer(words[0] if words else "")
        if not 0 <= limit_ms <= 1 << 31:
            raise _Refused(errno.EINVAL)
        self._timeout_s = limit_ms / 1000 or None
        self._number(0)

    def _do_read(self, words: list[str]) -> None:
        device, cells, name = self._place(words)
        fault = self._fault("read", f"{device.name} {name or ''}")
        if fault is not None and fault.action == "errno":
            raise _Refused(fault.number)
        if name is None:
            blocks = b"".join(self._read_block(cell) for cell in cells.values())
            answer = b"%d\n" % len(blocks) + blocks + b"\n"
        else:
            if name not in cells:
                raise _Refused(errno.ENOENT)
            value = _read(cells[name])
            answer = b"%d\n" % len(value) + value + b"\n"
        if fault is not None:
            self._spoil(fault, answer)
            return
        self._send(answer)

    def _read_block(self, cell: Cell) -> bytes:
        try:
            value = _read(cell)
        except _Refused as refusal:
            return struct.pack(">i", -refusal.number)
        return struct.pack(">i", len(value)) + value + bytes(-len(value) % 4)

    def _do_write(self, words: list[str]) -> None:
        n = _integer(words[-1] if words else "")
        if not 0 <= n <= _MAX_VALUE:
            self._number(-errno.EINVAL)
            raise _Gone
        # The value has to be taken off the line, whatever becomes of it.
        payload = bytes(self._exactly(n))
        device, cells, name = self._place(words[:-1])
        fault = self._fault("write", f"{device.name} {name or ''}")
        if fault is not None and fault.action == "errno":
            raise _Refused(fault.number)
        if name is None:
            self._write_blocks(cells, payload)
        else:
            if name not in cells:
                raise _Refused(errno.ENOENT)
            _write(cells[name], payload)
        if fault is not None:
            self._spoil(fault, b"%d\n" % n)
            return
        self._number(n)

    def _write_blocks(self, cells: dict[str, Cell], payload: bytes) -> None:
        at = 0
        for cell in cells.values():
            if at + 4 > len(payload):
                raise _Refused(errno.EINVAL)
            (length,) = struct.unpack_from(">i", payload, at)
            at += 4
            if length < 0:
                continue
            if at + length > len(payload):
                raise _Refused(errno.EINVAL)
            _write(cell, payload[at : at + length])
            at += length + -length % 4

    def _do_open(self, words: list[str]) -> None:
        if len(words) not in (3, 4) or (len(words) == 4 and words[3].upper() != "CYCLIC"):
            raise _Refused(errno.EINVAL)
        device, samples = self._device(words[0]), _integer(words[1])
        cyclic = len(words) == 4
        columns = _columns(device, words[2])
        if device.open is None:
            raise _Refused(errno.ENODEV)
        if not columns or samples < 1 or (cyclic and not device.outputs_samples):
            raise _Refused(errno.EINVAL)
        fault = self._fault("open", device.name)
        if fault is not None:
            if fault.action != "errno":
                self._spoil(fault, b"0\n")
                return
            raise _Refused(fault.number)
        if device.id in self._streams:
            raise _Refused(errno.EBUSY)
        with _refusals():
            self._server.take(device, self)
            try:
                stream = device.open(samples, columns, cyclic, device.kernel_buffers)
            except BaseException:
                self._server.release(device, self)
                raise
        self._streams[device.id] = device, stream, 2 * len(columns)
        self._number(0)

    def _do_close(self, words: list[str]) -> None:
        device = self._device(words[0] if words else "")
        if device.id not in self._streams:
            raise _Refused(errno.ENXIO)
        _, stream, _ = self._streams.pop(device.id)
        stream.close()
        self._server.release(device, self)
        self._number(0)

    def _do_readbuf(self, words: list[str]) -> None:
        device, stream, step, wanted = self._opened(words, output=False)
        wanted -= wanted % step
        if not wanted:
            self._number(0)
            return
        mask = _mask(device, stream)
        deadline = self._deadline()
        while wanted:
            fault = self._fault("readbuf", device.name)
            if fault is not None and fault.action in ("errno", "end"):
                raise _Refused(fault.number if fault.action == "errno" else 0)
            got = stream.take(wanted, self._alive, deadline)
            if fault is not None and fault.action in ("lose", "lose-silently"):
                for _ in range(fault.number):
                    got = stream.take(wanted, self._alive, deadline)
                if fault.action == "lose":
                    stream.flag_loss()
            elif fault is not None:
                self._spoil(fault, b"%d\n" % len(got) + mask + bytes(got))
                return
            if not len(got):
                self._number(0)
                return
            self._send(b"%d\n" % len(got) + mask)
            self._send(got)
            mask = b""
            wanted -= len(got)

    def _do_writebuf(self, words: list[str]) -> None:
        device, stream, _, n = self._opened(words, output=True)
        fault = self._fault("writebuf", device.name)
        if fault is not None and fault.action == "errno":
            raise _Refused(fault.number)
        self._number(0)
        payload = self._exactly(n)
        if fault is not None:
            self._spoil(fault, b"%d\n" % n)
            return
        with _refusals():
            stream.push(payload, self._alive, self._deadline())
        self._number(n)

    def _do_gettrig(self, words: list[str]) -> None:
        self._device(words[0] if words else "")
        self._number(0)

    def _do_settrig(self, words: list[str]) -> None:
        self._device(words[0] if words else "")
        self._number(0)

    def _do_set(self, words: list[str]) -> None:
        if len(words) != 3 or words[1].upper() != "BUFFERS_COUNT":
            raise _Refused(errno.EINVAL)
        count = _integer(words[2])
        device = self._device(words[0])
        if not 1 <= count <= 64:
            raise _Refused(errno.EINVAL)
        device.kernel_buffers = count
        self._number(0)

    # Parts of requests

    def _device(self, token: str) -> Device:
        device = self._server.context.device(token)
        if device is None:
            raise _Refused(errno.ENODEV)
        return device

    def _place(self, words: list[str]) -> tuple[Device, dict[str, Cell], str | None]:
        """Device, its cells of the kind that is meant, and the name of one of them or None for all."""
        device = self._device(words[0] if words else "")
        rest = words[1:]
        kind = rest[0].upper() if rest else ""
        if kind in _KINDS:
            cells, rest = (device.debug if kind == "DEBUG" else device.buffer), rest[1:]
        elif kind in _DIRECTIONS and len(rest) > 1:
            channel = device.channel(rest[1], _DIRECTIONS[kind])
            if channel is None:
                raise _Refused(errno.ENXIO)
            cells, rest = channel.attributes, rest[2:]
        else:
            cells = device.attributes
        if len(rest) > 1:
            raise _Refused(errno.EINVAL)
        return device, cells, rest[0] if rest else None

    def _opened(self, words: list[str], output: bool) -> tuple[Device, Stream, int, int]:
        device = self._device(words[0] if words else "")
        n = _integer(words[1] if len(words) > 1 else "")
        if device.id not in self._streams or device.outputs_samples != output:
            raise _Refused(errno.EBADF)
        if not 0 <= n <= _MAX_PAYLOAD:
            self._number(-errno.EINVAL)
            raise _Gone
        return *self._streams[device.id], n

    def _deadline(self) -> float | None:
        return None if self._timeout_s is None else time.monotonic() + self._timeout_s

    # Faults

    def _fault(self, where: str, subject: str) -> Fault | None:
        return self._server.faults.take(where, subject)

    def _spoil(self, fault: Fault, answer: bytes) -> None:
        """Give a spoiled answer in the place of a right one."""
        if fault.action == "garbage":
            self._send(b"\xff\x00\x80garbage\n" * 3)
        elif fault.action == "hang":
            while self._connected():
                time.sleep(_POLL_S)
            raise _Gone
        else:
            self._send(answer[: len(answer) // 2])
            if fault.action == "cut":
                raise _Gone


class _Refused(Exception):
    """A request is refused with an errno."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def _refusals() -> Iterator[None]:
    """Turns an OSError of a device into a refusal; within it no socket is touched."""
    try:
        yield
    except OSError as error:
        raise _Refused(error.errno or errno.EIO) from None


def _read(cell: Cell) -> bytes:
    with _refusals():
        return cell.read().encode() + b"\0"


def _write(cell: Cell, payload: bytes) -> None:
    with _refusals():
        cell.write(payload.partition(b"\0")[0].decode("latin-1").strip())


def _integer(text: str) -> int:
    """A decimal number of a request."""
    if not text.isascii() or not text.lstrip("-").isdigit() or len(text) > 18 or text.count("-") > 1:
        raise _Refused(errno.EINVAL)
    return int(text)


def _columns(device: Device, mask: str) -> tuple[int, ...]:
    """Scan indices that a mask enables: hex words of 32 channels each, the most significant first."""
    if len(mask) != 8 * -(-len(device.channels) // 32) or any(c not in "0123456789abcdefABCDEF" for c in mask):
        raise _Refused(errno.EINVAL)
    bits = int(mask, 16)
    return tuple(
        channel.scan_index
        for at, channel in enumerate(device.channels)
        if bits >> at & 1 and channel.scan_index is not None
    )


def _mask(device: Device, stream: Stream) -> bytes:
    bits = sum(1 << at for at, channel in enumerate(device.channels) if channel.scan_index in stream.columns)
    return b"%0*x\n" % (8 * -(-len(device.channels) // 32), bits)

"""A radio on another host, or in another process, which `semair serve` offers there."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import fields as fields_of
from typing import Any

import numpy as np

from ..blocks.waveforms import air
from ..errors import RadioError, SemairError
from . import wire
from .radio import Link, Radio, RadioInfo, Settings, Truth
from .streams import Incoming, Outgoing, StreamReceiver, StreamSender, window_samples

_GREETING_S = 1.8
_OPENING_S = 90.0
_ANSWER_S = 30.0
_COUNTS_S = 1.0
_DRAIN_S = 2.0
_POLL_MS = 200
_ENDINGS = ("EVENT_DISCONNECTED", "EVENT_CLOSED", "EVENT_HANDSHAKE_FAILED_NO_DETAIL")


class NetworkRadio(Radio):
    """A radio that `semair serve` offers at an address; capabilities, settings, samples and times are that radio's own.

    Where the network or this machine is too slow for a radio that does not wait, the server leaves samples out: the
    times of the stream then jump by as much, and `counts` tells how many and where. A server that vanishes ends the
    flowgraph with an error within two seconds.

    Args:
        address: tcp://HOST:PORT, as the server shows it.
        link: what the experiment wants of its radio.

    Raises:
        RadioError: nobody answers there, another version or another thing does, the radio is in use, or it cannot
            serve the link.
    """

    kind = "zmq"
    # The server watches its radio, and the connection the server.
    tells_when_gone = True

    def __init__(self, address: str, link: Link) -> None:
        self._address = wire.check_endpoint(address)
        asked = wire.link_fields(link)
        self._connection = _Connection(self._address)
        weakref.finalize(self, self._connection.close)
        answer = self._connection.call("hello", _OPENING_S, link=asked)
        try:
            self.capabilities = wire.capabilities_of(answer["capabilities"])
            self._served = {name: str(answer[name]) for name in ("kind", "address", "semair")}
            self._facts = dict(answer["facts"])
            self.waits = answer["waits"] is True
        except (KeyError, TypeError, ValueError) as error:
            raise RadioError(f"what serves {address} does not say what it is: {error}") from error
        if self.capabilities.n_rx != link.n_rx:
            raise RadioError(
                f"the {self._served['kind']} radio at {address} gives {self.capabilities.n_rx} antenna stream(s), but "
                f"{link.n_rx} are asked for; set radio.n_antennas to what it has"
            )
        self._settings: Settings | None = None
        self._run: _Run | None = None
        self._source: StreamReceiver | None = None
        self._sink: StreamSender | None = None
        self._counts: dict[str, Any] = {}

    @classmethod
    def open(cls, address: str, link: Link) -> NetworkRadio:
        """Connect to a server, which opens its radio for this link."""
        return cls(address, link)

    @classmethod
    def find(cls) -> list[RadioInfo]:
        """Servers do not announce themselves; `semair serve` shows their addresses."""
        return [RadioInfo("zmq", "tcp://HOST:PORT", "a radio that `semair serve` offers on this or another host")]

    def configure(self, requested: Settings) -> Settings:
        """Set the served radio up.

        Raises:
            RadioError: it refuses, or the server is gone.
        """
        self._forget()
        self._settings = None
        answer = self._connection.call("configure", _ANSWER_S, settings=requested.as_dict())
        try:
            actual = wire.settings_of(answer["settings"])
        except (KeyError, TypeError, ValueError) as error:
            raise RadioError(f"what serves {self._address} does not say how it is set: {error}") from error
        self._facts = dict(answer.get("facts") or self._facts)
        self._settings = actual
        return actual

    def source(self) -> StreamReceiver:
        """The streams of the served radio, with their tags."""
        if self._source is None:
            run = self._configured("source")
            self._source = StreamReceiver(
                self.capabilities.n_rx, run.incoming, self._connection.failure, self._starter(), run.stop
            )
        return self._source

    def sink(self) -> StreamSender | None:
        """Takes what the served radio transmits; None where it cannot."""
        run = self._configured("sink")
        if self.capabilities.n_tx == 0:
            return None
        if self._sink is None:
            self._sink = StreamSender(
                self.capabilities.n_tx,
                run.outgoing,
                self._connection.failure,
                self._starter(),
                run.finish,
                run.send_bursts if self.capabilities.emulates_users else None,
            )
        return self._sink

    def set_tx_gain_db(self, gain_db: float) -> float:
        """Change the served radio's transmit gain."""
        return float(self._connection.call("gain", _ANSWER_S, gain_db=gain_db)["gain_db"])

    def locks(self) -> dict[str, bool]:
        """Those of the served radio."""
        return {str(name): bool(value) for name, value in self._connection.call("locks", _ANSWER_S)["locks"].items()}

    def facts(self) -> dict[str, Any]:
        """Those of the served radio, and where it is."""
        where = f"served by semair {self._served['semair']} at {self._address}"
        return {**self._facts, "served": f"{self._served['kind']} {self._served['address']}".strip(), "network": where}

    def truth(self) -> Truth | None:
        """What the served radio knows about its own faults, where it is an emulated one."""
        values: Any = self._connection.call("truth", _ANSWER_S).get("truth") if self._settings else None
        if not isinstance(values, dict) or set(values) != {item.name for item in fields_of(air.Truth)}:
            return None
        arrays: dict[str, Any] = {name: np.array(v) if isinstance(v, list) else v for name, v in values.items()}
        return air.Truth(**arrays)

    def counts(self) -> dict[str, Any]:
        """Those of the served radio; samples that the network cost, in all and each time: (item, count)."""
        if self._connection.failure() is None and self._settings is not None:
            # The last known ones are better than none, and the flowgraph learns of an error by itself.
            with contextlib.suppress(RadioError):
                self._counts = dict(self._connection.call("counts", _COUNTS_S)["counts"])
        if self._run is None:
            return self._counts
        incoming = self._run.incoming
        return {**self._counts, "network_lost_samples": incoming.lost, "network_losses": list(incoming.losses)}

    def close(self) -> None:
        """Let the server have its radio back."""
        self._forget()
        self._connection.close()

    def _configured(self, what: str) -> _Run:
        if self._settings is None:
            raise RadioError(f"the radio at {self._address} was not configured: call configure() before {what}()")
        if self._run is None:
            self._run = _Run(self._connection, self.capabilities.n_rx, self.capabilities.n_tx, self._settings)
        return self._run

    def _starter(self) -> Callable[[], None]:
        """Function for both blocks: the first of them that starts begins the run."""
        run = self._run
        assert run is not None
        # A block has details once it is part of a flowgraph that starts. Without a reference to the radio, which
        # would keep itself.
        where = weakref.ref(self)

        def start() -> None:
            radio = where()
            if radio is not None:
                blocks = radio._source, radio._sink
                run.start(*(block is not None and block.detail() is not None for block in blocks))

        return start

    def _forget(self) -> None:
        if self._run is not None:
            self._run.stop()
        self._run = self._source = self._sink = None


class _Run:
    """One flowgraph's use of a radio.

    Attributes:
        epoch: number that all its messages carry.
        incoming: what was received.
        outgoing: what is to be transmitted.
        ended: the server has nothing more to say of it.
    """

    def __init__(self, connection: _Connection, n_rx: int, n_tx: int, settings: Settings) -> None:
        self._connection = connection
        self.epoch = next(connection.epochs)
        rate_hz = settings.sample_rate_hz
        self.window = window_samples(max(n_rx, 1), rate_hz)
        self.incoming = Incoming(n_rx, self.window, connection.wake)
        self.outgoing = Outgoing(max(n_tx, 1), window_samples(max(n_tx, 1), rate_hz), False, connection.wake)
        self.ended = threading.Event()
        self._lock = threading.Lock()
        self._started = self._stopped = False
        self._uses_source = self._uses_sink = False
        self.texts: set[str] = set()
        connection.run = self

    def start(self, source: bool, sink: bool) -> None:
        """Let the server's flowgraph start, once."""
        with self._lock:
            if self._started:
                return
            self._started = True
            self._uses_source, self._uses_sink = source, sink
        self._connection.post("start", epoch=self.epoch, source=source, sink=sink, window=self.window)

    def send_bursts(self, fields: dict[str, Any], vector: np.ndarray) -> None:
        """Hand users' bursts over."""
        self._connection.post_raw(wire.pack_bursts(self.epoch, fields, vector))

    def finish(self) -> None:
        """Nothing more will be transmitted. Where nothing is received either, wait until it went out."""
        self.outgoing.finish()
        if self._uses_source or not self._started:
            return
        progress, seen = time.monotonic(), -1
        while not self.ended.is_set() and self._connection.failure() is None:
            if (taken := self.outgoing.taken) != seen:
                progress, seen = time.monotonic(), taken
            if time.monotonic() - progress > _DRAIN_S:
                break
            self.ended.wait(0.02)
        self.stop()

    def stop(self) -> None:
        """End the server's flowgraph."""
        with self._lock:
            if self._stopped or not self._started:
                self._stopped = True
                return
            self._stopped = True
        self.outgoing.finish()
        self._connection.post("stop", epoch=self.epoch)


class _Call:
    """One question and its answer."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.answer: dict[str, Any] | None = None


class _Connection:
    """A thread that speaks with a server.

    Args:
        address: of the server.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._zmq = wire.zmq()
        self.wake = wire.Wake()
        self.epochs = itertools.count(1)
        self.run: _Run | None = None
        self._ids = itertools.count(1)
        self._calls: dict[int, _Call] = {}
        self._outbox: deque[bytes] = deque()
        self._error: SemairError | None = None
        self._heard = threading.Event()
        self._closing = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._serve, name=f"radio at {address}", daemon=True)
        self._thread.start()

    def failure(self) -> BaseException | None:
        """What befell the connection."""
        return self._error

    def call(self, what: str, patience_s: float, /, **fields: Any) -> dict[str, Any]:
        """Ask the server.

        Raises:
            SemairError: it refuses, or is gone, or does not answer in time.
        """
        call, number = _Call(), next(self._ids)
        with self._lock:
            if self._error is not None:
                raise self._error
            self._calls[number] = call
        self.post(what, id=number, **fields)
        patient_until = time.monotonic() + patience_s
        greeted_until = time.monotonic() + _GREETING_S
        while not call.done.wait(0.05):
            now = time.monotonic()
            if now > greeted_until and not self._heard.is_set():
                self._fail(f"nothing that `semair serve` started answers at {self._address}; check host and port")
            elif now > patient_until:
                with self._lock:
                    self._calls.pop(number, None)
                raise RadioError(f"the radio at {self._address} did not answer {what!r} within {patience_s:g} s")
        if call.answer is None:
            raise self._error or RadioError(f"the connection with {self._address} was closed")
        if "error" in call.answer:
            raise wire.error_of(call.answer, f"radio at {self._address}")
        return call.answer

    def post(self, kind: str, /, **fields: Any) -> None:
        """Send a message."""
        self.post_raw(wire.pack(kind, fields))

    def post_raw(self, message: bytes) -> None:
        """Send a message."""
        self._outbox.append(message)
        self.wake()

    def close(self) -> None:
        """End it; the server then has its radio back."""
        if not self._closing:
            self._closing = True
            self.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(3.0)

    def _fail(self, text: str, made: SemairError | None = None) -> None:
        """Let everybody who waits know; the first error counts."""
        with self._lock:
            if self._error is None:
                self._error = made or RadioError(text)
            calls, self._calls = list(self._calls.values()), {}
        for call in calls:
            call.done.set()
        run = self.run
        if run is not None:
            run.outgoing.finish()
            run.incoming.finish()
            run.ended.set()

    def _serve(self) -> None:
        z = self._zmq
        context = z.Context()
        socket = context.socket(z.DEALER)
        try:
            wire.prepare(socket, self._address)
            monitor = socket.get_monitor_socket()
            try:
                socket.connect(self._address)
                self._speak(socket, monitor)
            finally:
                socket.disable_monitor()
                monitor.close(0)
        except Exception as error:
            self._fail(f"the connection with {self._address} broke: {type(error).__name__}: {error}")
        finally:
            self._fail(f"the connection with {self._address} was closed")
            socket.close()
            context.term()
            self.wake.close()

    def _speak(self, socket: Any, monitor: Any) -> None:
        z = self._zmq
        poller = z.Poller()
        for what in (socket, monitor, self.wake.fd):
            poller.register(what, z.POLLIN)
        while self._error is None:
            ready = dict(poller.poll(_POLL_MS))
            if self.wake.fd in ready:
                self.wake.clear()
            if socket in ready:
                self._hear(socket)
            if monitor in ready:
                self._watch(monitor)
            try:
                if self._error is None:
                    self._send(socket)
                if self._closing:
                    socket.send(wire.pack("bye"), z.NOBLOCK)
                    return
            except z.Again:
                # What is sent has no bound here: there is nobody left to send it to, and the monitor was slower.
                self._lose()

    def _watch(self, monitor: Any) -> None:
        from zmq.utils.monitor import recv_monitor_message

        z = self._zmq
        endings = {getattr(z, name) for name in _ENDINGS}
        while monitor.poll(0):
            event = recv_monitor_message(monitor)["event"]
            if event in endings:
                self._lose()

    def _lose(self) -> None:
        gone = "vanished" if self._heard.is_set() else "cannot be reached, or another thing answers there"
        self._fail(
            f"the server of the radio at {self._address} {gone}; see whether `semair serve` runs there and the network "
            "is up"
        )

    def _hear(self, socket: Any) -> None:
        z = self._zmq
        for _ in range(64):
            try:
                frames = socket.recv_multipart(z.NOBLOCK, copy=False)
            except z.Again:
                return
            try:
                if len(frames) != 1:
                    raise ValueError(f"{len(frames)} frames instead of one")
                self._take(*wire.parse(frames[0].buffer))
            except wire.ForeignVersionError as error:
                self._fail(f"what serves {self._address} does not fit: {error}; install the same semair on both hosts")
            except (ValueError, KeyError, TypeError) as error:
                self._fail(f"what answers at {self._address} is no server of a radio: {error}")

    def _take(self, kind: str, fields: dict[str, Any], payload: memoryview) -> None:
        self._heard.set()
        run = self.run
        if kind == "reply":
            with self._lock:
                call = self._calls.pop(wire.number(fields, "id"), None)
            if call is not None:
                call.answer = fields
                call.done.set()
        elif kind == "bye":
            self._fail(f"the server of the radio at {self._address} ended: {fields.get('reason', 'no reason')!s:.500}")
        elif kind == "alive":
            return
        elif run is None or fields.get("epoch") != run.epoch:
            return  # Of a run that is over.
        elif kind == "samples":
            run.incoming.put(wire.piece_of(fields, payload, run.texts))
        elif kind == "taken":
            run.outgoing.credit(wire.number(fields, "items"))
        elif kind == "end":
            run.incoming.finish(wire.number(fields, "lost"))
        elif kind == "stopped":
            run.incoming.finish()
            run.ended.set()
        elif kind == "failed":
            self._fail("", wire.error_of(fields, f"radio at {self._address}"))

    def _send(self, socket: Any) -> None:
        z = self._zmq
        while self._outbox:
            socket.send(self._outbox.popleft(), z.NOBLOCK)
        run = self.run
        if run is None:
            return
        taken = run.incoming.news()
        if taken is not None:
            socket.send(wire.pack("taken", {"epoch": run.epoch, "items": taken}), z.NOBLOCK)
        while (piece := run.outgoing.next()) is not None:
            socket.send(wire.pack_piece(run.epoch, piece), z.NOBLOCK)
        lost = run.outgoing.end()
        if lost is not None:
            socket.send(wire.pack("end", {"epoch": run.epoch, "lost": lost}), z.NOBLOCK)

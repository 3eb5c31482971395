"""Offering a radio of this machine to others on the network; `NetworkRadio` is the other end."""

from __future__ import annotations

import contextlib
import gc
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import __version__
from ..blocks.messages import pack as pack_message
from ..blocks.runtime import Failsafe, gr, pmt
from ..errors import RadioError, SemairError
from . import wire
from .discover import backend
from .radio import Radio, Settings
from .site import LONGEST_S, LOUDEST_DBFS, Emission, Site, judge
from .streams import Incoming, Outgoing, Piece, StreamReceiver, StreamSender, window_samples
from .watch import StallWatch

_POLL_MS = 200
_WATCH_S = 0.05
_STOP_S = 10.0
_BUFFER_S = 0.02
_REQUESTS = 64
_WAITING_BYTES = 256 << 20
_LOOPBACK = ("tcp://127.", "tcp://localhost:", "tcp://[::1]:")


class RadioServer:
    """Opens a radio for one client at a time, and closes it when the client leaves or vanishes.

    Whoever can reach the address can use the radio: it is on this machine alone unless another address is given.

    Args:
        kind: backend of the radio.
        address: which radio of this kind.
        endpoint: where to listen; `*` as port takes a free one.
        may_drop: leave samples out where a client is too slow, counted and marked; None: only for radios that do not
            wait. False lets the radio itself lose them, in its own manner.
        transmit: let clients transmit on a radio that does so for real, within what the site permits.
        site: what is permitted here.
        tell: called with a line about what happens.

    Attributes:
        endpoint: where it listens.
        counts: `clients`, `refused`, `malformed`.

    Raises:
        RadioError: there is no such kind of radio, or the address cannot be listened at.
    """

    def __init__(
        self,
        kind: str,
        address: str = "",
        endpoint: str = "tcp://127.0.0.1:*",
        *,
        may_drop: bool | None = None,
        transmit: bool = False,
        site: Site | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.radio_class = backend(kind)
        self.kind, self.address = kind, address
        self.may_drop = not self.radio_class.waits if may_drop is None else may_drop
        self.transmit, self.site = transmit, site
        self.counts: Counter[str] = Counter()
        self.tell = tell or (lambda line: None)
        self._zmq = z = wire.zmq()
        self._wake = wire.Wake()
        self._outbox: deque[tuple[bytes, bytes]] = deque()
        self._session: _Session | None = None
        self._leaving: threading.Thread | None = None
        self._closing = False
        self._context = z.Context()
        self._socket = self._context.socket(z.ROUTER)
        wire.prepare(self._socket, endpoint)
        # Whoever is gone must not be written to in vain.
        self._socket.setsockopt(z.ROUTER_MANDATORY, 1)
        try:
            self._socket.bind(wire.check_endpoint(endpoint, listening=True))
        except (z.ZMQError, RadioError) as error:
            self._socket.close(0)
            self._context.term()
            self._wake.close()
            if isinstance(error, RadioError):
                raise
            raise RadioError(f"cannot listen at {endpoint}: {error}; choose another address or port") from error
        self.endpoint = self._socket.getsockopt_string(z.LAST_ENDPOINT)
        self._thread = threading.Thread(target=self._serve, name=f"server of {kind}", daemon=True)
        self._thread.start()

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.endpoint.startswith(_LOOPBACK)

    @property
    def is_busy(self) -> bool:
        """Whether a client has the radio."""
        return self._session is not None

    @property
    def lost_samples(self) -> int:
        """Samples per channel that were left out since the present client's flowgraph started."""
        return 0 if self._session is None else self._session.lost_samples

    def __enter__(self) -> RadioServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Say good-bye to the client, and let the radio go with its transmitters down."""
        self._closing = True
        self._wake()
        self._thread.join(2 * _STOP_S)

    def post(self, who: bytes, message: bytes) -> None:
        """Send a message to a client."""
        self._outbox.append((who, message))
        self._wake()

    def wake(self) -> None:
        """Look for something to send."""
        self._wake()

    def _serve(self) -> None:
        z = self._zmq
        poller = z.Poller()
        poller.register(self._socket, z.POLLIN)
        poller.register(self._wake.fd, z.POLLIN)
        alive = time.monotonic()
        try:
            while not self._closing:
                ready = dict(poller.poll(_POLL_MS))
                if self._wake.fd in ready:
                    self._wake.clear()
                if self._socket in ready:
                    self._hear()
                if time.monotonic() - alive > _POLL_MS / 1000:
                    alive = time.monotonic()
                    if self._session is not None:
                        self._post_to(self._session.who, wire.pack("alive"))
                self._send()
        finally:
            if self._session is not None:
                self._post_to(self._session.who, wire.pack("bye", {"reason": "it was stopped"}))
                self._dismiss("the server is stopped", wait=True)
            self._socket.close()
            self._context.term()
            self._wake.close()

    def _hear(self) -> None:
        z = self._zmq
        for _ in range(64):
            try:
                frames = self._socket.recv_multipart(z.NOBLOCK, copy=False)
            except z.Again:
                return
            who = frames[0].bytes
            try:
                if len(frames) != 2:
                    raise ValueError(f"{len(frames) - 1} frames instead of one")
                self._take(who, *wire.parse(frames[1].buffer))
            except ValueError as error:
                self.counts["malformed"] += 1
                # Also tells a client of another version which one this is.
                self._post_to(who, wire.pack("bye", {"reason": f"it cannot read a message: {error}"}))
                if self._session is not None and self._session.who == who:
                    self._dismiss(f"a message that cannot be read: {error}")

    def _take(self, who: bytes, kind: str, fields: dict[str, Any], payload: memoryview) -> None:
        session = self._session
        if session is not None and session.who == who:
            if kind == "bye":
                self._dismiss("it left")
            else:
                session.take(kind, fields, payload)
        elif kind == "hello":
            number = wire.number(fields, "id")
            link = wire.link_of(fields.get("link"))
            if session is not None or self._closing:
                self.counts["refused"] += 1
                error = {"error": "RadioError", "text": f"the {self.kind} radio is in use by another client; try later"}
                self._post_to(who, wire.pack("reply", {"id": number, **error}))
                return
            self.counts["clients"] += 1
            self.tell(f"client {self.counts['clients']} has come")
            self._session = _Session(self, who, self._leaving)
            self._session.request("hello", number, {"link": link})
            self._post_to(who, wire.pack("alive"))
        elif kind != "bye":
            raise ValueError(f"a message {kind[:40]!r} without a greeting")

    def _dismiss(self, why: str, wait: bool = False) -> None:
        session, self._session = self._session, None
        if session is not None:
            self._leaving = session.thread
            session.close(wait)
            self.tell(f"client {self.counts['clients']} is gone: {why}")

    def _send(self) -> None:
        while self._outbox:
            who, message = self._outbox.popleft()
            # What is left of an earlier client's concerns nobody.
            if self._session is not None and self._session.who == who:
                self._post_to(who, message)
        session = self._session
        while session is not None and session is self._session and (message_ := session.next()) is not None:
            self._post_to(session.who, message_)

    def _post_to(self, who: bytes, message: bytes) -> None:
        try:
            self._socket.send_multipart([who, message], self._zmq.NOBLOCK)
        except self._zmq.ZMQError as error:
            if self._session is not None and self._session.who == who:
                self._dismiss(f"it vanished ({error})")


class _Session:
    """A client's use of the radio. The radio belongs to a thread of its own: opening one may take long.

    Args:
        server: whose radio it is.
        who: the client.
        before: thread of an earlier client's use, which may still hold the device.
    """

    def __init__(self, server: RadioServer, who: bytes, before: threading.Thread | None) -> None:
        self.who = who
        self._before = before
        self._server = server
        self._radio: Radio | None = None
        self._settings: Settings | None = None
        self._run: _ServedRun | None = None
        self._texts: set[str] = set()
        self._requests: queue.Queue[tuple[str, int, dict[str, Any]] | None] = queue.Queue(_REQUESTS)
        self._closing = False
        self.thread = threading.Thread(target=self._work, name="served radio", daemon=True)
        self.thread.start()

    # In the server's thread

    def take(self, kind: str, fields: dict[str, Any], payload: memoryview) -> None:
        """A message of the client.

        Raises:
            ValueError: it cannot be read.
        """
        run = self._run
        if kind in _QUESTIONS:
            self.request(kind, wire.number(fields, "id"), fields)
        elif kind in ("start", "stop"):
            self.request(kind, wire.number(fields, "epoch"), fields)
        elif kind not in ("samples", "bursts", "taken", "end"):
            raise ValueError(f"a message {kind[:40]!r}")
        elif run is not None and wire.number(fields, "epoch") == run.epoch:
            if kind == "samples":
                piece = wire.piece_of(fields, payload, self._texts)
                run.check(piece)
                run.incoming.put(piece)
            elif kind == "bursts":
                run.post_bursts(*wire.bursts_of(fields, payload))
            elif kind == "taken":
                run.outgoing.credit(wire.number(fields, "items"))
            else:
                run.incoming.finish(wire.number(fields, "lost"))

    def request(self, kind: str, number: int, fields: dict[str, Any]) -> None:
        """Have something done in the radio's thread.

        Raises:
            ValueError: too much was asked.
        """
        if kind == "start":
            # Samples may follow at once, and need a place.
            self._begin(number, fields)
        try:
            self._requests.put_nowait((kind, number, fields))
        except queue.Full:
            raise ValueError(f"more than {_REQUESTS} questions at once") from None

    def next(self) -> bytes | None:
        """The next message to send, None where there is nothing."""
        run = self._run
        if run is None:
            return None
        taken = run.incoming.news()
        if taken is not None:
            return wire.pack("taken", {"epoch": run.epoch, "items": taken})
        piece = run.outgoing.next()
        if piece is not None:
            return wire.pack_piece(run.epoch, piece)
        # A flowgraph that broke ends its streams, too: then this is not how they end.
        ended = run.ended.is_set() and run.failure() is None and run.ends_well
        lost = run.outgoing.end() if ended else None
        if lost is not None:
            run.said_end = True
            return wire.pack("end", {"epoch": run.epoch, "lost": lost})
        return None

    @property
    def lost_samples(self) -> int:
        """Samples per channel that were left out in this run."""
        run = self._run
        return 0 if run is None else run.outgoing.lost

    def close(self, wait: bool) -> None:
        """End it."""
        self._closing = True
        if self._run is not None:
            self._run.abort()
        # The thread looks at the flag, too.
        with contextlib.suppress(queue.Full):
            self._requests.put_nowait(None)
        if wait:
            self.thread.join(_STOP_S)

    def _begin(self, epoch: int, fields: dict[str, Any]) -> None:
        radio, settings = self._radio, self._settings
        if radio is None or settings is None or self._run is not None:
            raise ValueError("a start of a radio that is not configured, or runs already")
        window = wire.number(fields, "window", 1, 1 << 24)
        source, sink = fields.get("source") is True, fields.get("sink") is True
        if not (source or sink):
            raise ValueError("a start without streams")
        self._run = _ServedRun(self._server, radio, settings, epoch, window, source, sink)

    # In the radio's thread

    def _work(self) -> None:
        try:
            while not self._closing:
                try:
                    request = self._requests.get(timeout=_WATCH_S)
                except queue.Empty:
                    self._watch()
                    continue
                if request is not None and not self._closing:
                    self._handle(*request)
        finally:
            self._stop_run()
            radio, self._radio = self._radio, None
            if radio is not None:
                self._let_go(radio)
            del radio
            # Drivers let a device go with the last reference to their blocks, which are in cycles.
            gc.collect()

    def _handle(self, kind: str, number: int, fields: dict[str, Any]) -> None:
        try:
            if kind == "start":
                assert self._run is not None
                self._run.start()
            elif kind == "stop":
                if self._run is not None and self._run.epoch == number:
                    self._finish_run()
            else:
                self._reply(number, _QUESTIONS[kind](self, fields))
        except Exception as error:
            if kind in ("start", "stop"):
                self._post("failed", epoch=number, **wire.error_fields(error))
                self._stop_run()
            else:
                self._reply(number, wire.error_fields(error))

    def _watch(self) -> None:
        """Look after the flowgraph."""
        run = self._run
        if run is None:
            return
        error = run.failure() or run.stall()
        if error is not None:
            self._post("failed", epoch=run.epoch, **wire.error_fields(error))
            self._stop_run()
        elif run.ended.is_set() and (run.said_end or not run.uses_source):
            self._finish_run()

    def _finish_run(self) -> None:
        run = self._run
        assert run is not None
        self._stop_run()
        self._post("stopped", epoch=run.epoch)

    def _stop_run(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.stop()

    def _let_go(self, radio: Radio) -> None:
        try:
            if self._settings is not None and radio.capabilities.n_tx:
                radio.silence()
        except SemairError as error:
            self._server.tell(f"the transmitters could not be turned down: {error}")
        finally:
            radio.close()

    def _post(self, kind: str, /, **fields: Any) -> None:
        self._server.post(self.who, wire.pack(kind, fields))

    def _reply(self, number: int, fields: dict[str, Any]) -> None:
        self._post("reply", id=number, **fields)

    # Questions

    def _open(self, fields: dict[str, Any]) -> dict[str, Any]:
        server = self._server
        if self._radio is not None:
            raise RadioError("a second greeting; open a second connection for a second radio")
        if self._before is not None:
            self._before.join(2 * _STOP_S)
            self._before = None
        radio = server.radio_class.open(server.address, fields["link"])
        self._radio = radio
        able = wire.capability_fields(radio.capabilities)
        if radio.capabilities.path in ("air", "cable") and not server.transmit:
            able |= {"n_tx": 0, "tx_gains_db": None}
        return {
            "capabilities": able,
            "facts": radio.facts(),
            "kind": server.kind,
            "address": server.address,
            "semair": __version__,
            "waits": radio.waits,
        }

    def _configure(self, fields: dict[str, Any]) -> dict[str, Any]:
        radio = self._opened()
        self._stop_run()
        self._settings = None
        try:
            requested = wire.settings_of(fields.get("settings"))
        except ValueError as error:
            raise RadioError(f"settings that cannot be read: {error}") from error
        settings = radio.configure(requested)
        self._permit(settings.tx_gain_db, settings)
        self._settings = settings
        return {"settings": settings.as_dict(), "facts": radio.facts()}

    def _set_gain(self, fields: dict[str, Any]) -> dict[str, Any]:
        gain_db = fields.get("gain_db")
        if not isinstance(gain_db, int | float):
            raise RadioError(f"gain_db={gain_db!r:.60} must be a number")
        radio = self._opened()
        if self._settings is not None:
            self._permit((float(gain_db),), self._settings)
        return {"gain_db": radio.set_tx_gain_db(float(gain_db))}

    def _permit(self, gains_db: tuple[float, ...], settings: Settings) -> None:
        """Hold what may be sent against the site's rules, as loud and as long as this server lets pass."""
        server, radio = self._server, self._opened()
        path = radio.capabilities.path
        if path not in ("air", "cable") or not server.transmit:
            return
        emission = Emission(
            settings.frequency_hz,
            settings.sample_rate_hz,
            max(gains_db, default=None),
            LOUDEST_DBFS,
            1.0,
            LONGEST_S if server.site is None else server.site.max_duration_s,
        )
        refusals = judge(emission, server.site, server.kind, server.address, path).refusals
        if refusals:
            radio.silence()
            raise RadioError("the site does not permit to transmit so: " + "; ".join(refusals))

    def _tell_truth(self, _: dict[str, Any]) -> dict[str, Any]:
        truth = self._opened().truth()
        return {"truth": None if truth is None else truth.as_dict()}

    def _count(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"counts": self._opened().counts()}

    def _look_at_locks(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"locks": self._opened().locks()}

    def _opened(self) -> Radio:
        if self._radio is None:
            raise RadioError("the radio could not be opened before")
        return self._radio


_QUESTIONS: dict[str, Callable[[_Session, dict[str, Any]], dict[str, Any]]] = {
    "hello": _Session._open,
    "configure": _Session._configure,
    "gain": _Session._set_gain,
    "truth": _Session._tell_truth,
    "counts": _Session._count,
    "locks": _Session._look_at_locks,
}


class _ServedRun:
    """A flowgraph around the radio.

    Attributes:
        epoch: the client's number for it.
        outgoing: what is received.
        incoming: what is to be transmitted.
        uses_source: whether the client receives.
        ended: the flowgraph has ended by itself.
        said_end: the client knows that no more samples come.
        ends_well: whether the stream may end by itself.
    """

    def __init__(
        self,
        server: RadioServer,
        radio: Radio,
        settings: Settings,
        epoch: int,
        window: int,
        uses_source: bool,
        uses_sink: bool,
    ) -> None:
        can = radio.capabilities
        guarded = can.path in ("air", "cable")
        if uses_sink and (can.n_tx == 0 or (guarded and not server.transmit)):
            raise ValueError("this radio does not transmit here")
        self.epoch = epoch
        self.uses_source, self._uses_sink = uses_source, uses_sink
        self.ended = threading.Event()
        self.said_end = False
        self._server, self._radio, self._settings = server, radio, settings
        self._is_checked = guarded
        # The samples of other radios go on until somebody stops them.
        self.ends_well = radio.waits or not uses_source
        self._longest_s = LONGEST_S if server.site is None else server.site.max_duration_s
        rate_hz = settings.sample_rate_hz
        self.outgoing = Outgoing(can.n_rx, window, server.may_drop, server.wake)
        self.incoming = Incoming(max(can.n_tx, 1), window_samples(max(can.n_tx, 1), rate_hz), server.wake)
        self._error: BaseException | None = None
        self._watch: StallWatch | None = None
        self._top: Any = None
        self._nodes: list[Any] = []
        self._sink: Any = None
        self._began: float | None = None
        self._early: list[Any] | None = []
        self._lock = threading.Lock()

    def start(self) -> None:
        """Build the flowgraph and start it."""
        can, top = self._radio.capabilities, gr.top_block("semair served radio")
        source, sink = self._radio.source(), self._radio.sink()
        self._nodes = [source, sink]
        if self.uses_source:
            sender = StreamSender(can.n_rx, self.outgoing, self._aborted, on_stop=self.outgoing.finish)
            self._nodes.append(sender)
            if self._server.may_drop and not self._radio.waits:
                # Where the client holds the radio up, this is not the radio's fault.
                self._watch = StallWatch(self._radio, lambda: sender.nitems_read(0))
            if hasattr(source, "set_min_output_buffer") and not self._radio.waits:
                # Few large pieces cost a fraction of many small ones. It reports this on standard output.
                source.set_log_level("warn")
                source.set_min_output_buffer(max(int(_BUFFER_S * self._settings.sample_rate_hz), 8192))
            for port in range(can.n_rx):
                top.connect((source, port), (sender, port))
        if self._uses_sink:
            receiver = StreamReceiver(can.n_tx, self.incoming, self._aborted)
            self._nodes.append(receiver)
            for port in range(can.n_tx):
                top.connect((receiver, port), (sink, port))
        if sink is source:
            self._complete(top, source)
        for node in self._nodes:
            if isinstance(node, Failsafe):
                node.warm_up()
        self._top = top
        self._began = time.monotonic()
        top.start()
        with self._lock:
            self._sink, early, self._early = sink, self._early or [], None
            for message in early:
                self._post_message(message)
        threading.Thread(target=self._await_end, args=(top,), name="end of served radio", daemon=True).start()

    def _complete(self, top: Any, block: Any) -> None:
        """Connect the ends of an emulated air that the client has no use for."""
        from gnuradio import blocks

        if not self._uses_sink:
            silence = blocks.null_source(gr.sizeof_gr_complex)
            self._nodes.append(silence)
            for port in range(self._radio.capabilities.n_tx):
                top.connect(silence, (block, port))
        if not self.uses_source:
            unheard = blocks.null_sink(gr.sizeof_gr_complex)
            self._nodes.append(unheard)
            for port in range(self._radio.capabilities.n_rx):
                top.connect((block, port), (unheard, port))

    def check(self, piece: Piece) -> None:
        """Refuse what the site's rules do not cover.

        Raises:
            ValueError: too loud, or for too long.
        """
        if not self._is_checked:
            return
        power = np.abs(piece.samples) ** 2
        if not (power.max() <= 1.0 and power.mean() <= 10 ** (LOUDEST_DBFS / 10)):
            raise ValueError(f"samples above full scale, or louder than {LOUDEST_DBFS:g} dBFS on average")
        if self._began is not None and time.monotonic() - self._began > self._longest_s:
            raise ValueError(f"a transmission of more than {self._longest_s:g} s")

    def post_bursts(self, fields: dict[str, Any], vector: np.ndarray) -> None:
        """Hand users' bursts to the radio.

        Raises:
            ValueError: it emulates no users, or too many bursts wait.
        """
        if not (self._uses_sink and self._radio.capabilities.emulates_users):
            raise ValueError("bursts for a radio that emulates no users")
        message = pack_message(fields, vector)
        with self._lock:
            waiting = self._sink.nmsgs(pmt.intern("bursts")) if self._early is None else len(self._early)
            if waiting * (vector.nbytes + 1024) > _WAITING_BYTES:
                raise ValueError(f"{waiting} messages of bursts wait already")
            if self._early is None:
                self._post_message(message)
            else:
                self._early.append(message)

    def _post_message(self, message: Any) -> None:
        self._sink.to_basic_block()._post(pmt.intern("bursts"), message)

    def _await_end(self, top: Any) -> None:
        top.wait()
        self.ended.set()
        self._server.wake()

    def _aborted(self) -> BaseException | None:
        return self._error

    def failure(self) -> BaseException | None:
        """The first error of its blocks."""
        if self._error is not None:
            return self._error
        return next((node.failure for node in self._nodes if isinstance(node, Failsafe) and node.failure), None)

    def stall(self) -> BaseException | None:
        """Why a radio that has samples at all times gives no more of them."""
        if self._watch is None:
            return None
        if self.ended.is_set():
            return RadioError(f"the stream of the {self._radio.kind} radio ended by itself; is the device still there?")
        return self._watch.failure()

    def abort(self) -> None:
        """Let the blocks end at once."""
        self._error = self._error or RadioError("the client is gone")
        self.outgoing.finish()
        self.incoming.finish()

    def stop(self) -> None:
        """End the flowgraph.

        Raises:
            RuntimeError: it does not end.
        """
        self.outgoing.finish()
        self.incoming.finish()
        if self._top is not None:
            self._top.stop()
            if not self.ended.wait(_STOP_S):
                raise RuntimeError(f"the flowgraph of the served radio did not stop within {_STOP_S:g} s")

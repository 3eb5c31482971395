"""Streams between a flowgraph and a network: queues with a bound, and the two GNU Radio blocks at their ends.

gr-zeromq carries tags, but neither several aligned channels nor the number of samples that were left out where a
receiver was too slow, and it takes PMTs from the network as they come. Here a piece is what all channels gave at once,
its tags are plain values, and whoever sends knows how much the other side has taken.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from ..blocks.heard_frames import HeardFrames
from ..blocks.messages import unpack
from ..blocks.runtime import WORK_DONE, Failsafe, gr, guarded, input_tags, pmt

PIECE_BYTES = 1 << 20
WINDOW_BYTES = 32 << 20
_LONGEST_WAIT_S = 0.02
_KEPT_TAGS = 64
_KEPT_LOSSES = 1000
_TIMES = ("rx_time", "rx_rate", "rx_freq")

Tag = tuple[int, int, str, Any]
"""Item within its piece, port, key, value as of `plain_value`."""


@dataclass
class Piece:
    """What all channels of a stream gave at once.

    Attributes:
        samples: complex64, (ports, n).
        tags: on its items.
        lost: samples that were left out right before it.
    """

    samples: np.ndarray
    tags: list[Tag] = field(default_factory=list)
    lost: int = 0

    @property
    def n(self) -> int:
        """Samples per channel."""
        return int(self.samples.shape[1])


def piece_samples(n_ports: int) -> int:
    """Samples per channel that a piece holds at most."""
    return max(PIECE_BYTES // (8 * n_ports), 1)


def window_samples(n_ports: int, rate_hz: float) -> int:
    """Samples per channel on their way: half a second, within bounds of time and memory."""
    largest = max(WINDOW_BYTES // (8 * n_ports), 2 * piece_samples(n_ports))
    return int(min(max(rate_hz / 2, 65536), largest))


class Outgoing:
    """What a flowgraph gives to a network, until the other side has room for it.

    Args:
        n_ports: channels.
        window: samples per channel that the other side may have before its flowgraph took them.
        may_drop: leave samples out where they find no room, and say where; else let the flowgraph wait.
        notify: called when there may be something to send.

    Attributes:
        lost: samples per channel that were left out so far.
    """

    def __init__(self, n_ports: int, window: int, may_drop: bool, notify: Callable[[], None]) -> None:
        self.lost = 0
        # A piece that is larger than the window would never go.
        self._limit = max(min(piece_samples(n_ports), window // 4), 1)
        self._window = window
        self._room = max(window, 2 * self._limit)
        self._may_drop = may_drop
        self._notify = notify
        self._lock = threading.Condition()
        self._queue: deque[tuple[list[Sequence[np.ndarray]], list[Tag], int, int]] = deque()
        self._queued = self._sent = self._taken = 0
        self._dropping = False
        self._unsaid = 0
        self._kept: list[Tag] = []
        self._clock: tuple[int, Any] | None = None
        self._known: dict[str, Any] = {}
        self._finished = self._ended = False

    def put(self, ports: Sequence[np.ndarray], first: int, tags: Sequence[Tag]) -> int:
        """Take samples.

        Args:
            ports: complex64, (n,) each; copied.
            first: item of the stream at which they begin.
            tags: on them, with items counted from `first`.

        Returns:
            Samples per channel that were taken or, where that is allowed, left out; 0: none, try again.
        """
        n = min(len(ports[0]), self._limit)
        here = [tag for tag in tags if tag[0] < n]
        with self._lock:
            if self._finished:
                return n
            full = self._queued + n > (self._room // 2 if self._dropping else self._room)
            if full and not self._may_drop:
                return 0
            if full:
                self._leave_out(n, first, here)
                return n
            lost, self._unsaid, self._dropping = self._unsaid, 0, False
            if lost:
                here = self._resumed(len(ports), first, here, lost)
            self._note_times(first, here)
            copy = [port[:n].copy() for port in ports]
            last = self._queue[-1] if self._queue else None
            if last is not None and not lost and last[3] + n <= self._limit:
                # Small pieces cost as much as large ones.
                moved = [(item + last[3], *rest) for item, *rest in here]
                self._queue[-1] = ([*last[0], copy], [*last[1], *moved], last[2], last[3] + n)
            else:
                self._queue.append(([copy], here, lost, n))
            self._queued += n
        self._notify()
        return n

    def wait(self) -> None:
        """Wait until there may be room, for a moment only: a block that waits hears no messages."""
        with self._lock:
            self._lock.wait(1e-3)

    def finish(self) -> None:
        """Nothing more will come."""
        with self._lock:
            self._finished = True
        self._notify()

    def next(self) -> Piece | None:
        """What is to be sent next; None: nothing, or the other side has no room."""
        with self._lock:
            if not self._queue or self._sent - self._taken + self._queue[0][3] > self._window:
                return None
            parts, tags, lost, n = self._queue.popleft()
            self._queued -= n
            self._sent += n
            self._lock.notify_all()
        whole = parts[0] if len(parts) == 1 else [np.concatenate(rows) for rows in zip(*parts, strict=True)]
        return Piece(np.stack(whole), tags, lost)

    def end(self) -> int | None:
        """Once, after everything was sent: samples that were left out at the end. None: not yet, or said before."""
        with self._lock:
            if not self._finished or self._queue or self._ended:
                return None
            self._ended = True
            return self._unsaid

    def credit(self, taken: int) -> None:
        """The other side's flowgraph took so many samples in all.

        Raises:
            ValueError: that cannot be.
        """
        with self._lock:
            if not self._taken <= taken <= self._sent:
                raise ValueError(f"{taken} samples taken of {self._sent} sent, after {self._taken}")
            self._taken = taken
            self._lock.notify_all()

    @property
    def taken(self) -> int:
        """Samples per channel that the other side's flowgraph took so far."""
        with self._lock:
            return self._taken

    def _leave_out(self, n: int, first: int, tags: list[Tag]) -> None:
        self._dropping = True
        self._unsaid += n
        self.lost += n
        self._note_times(first, tags)
        # Times are said anew at the end of the loss; what else was said there is said there, too.
        self._kept += [(0, *tag[1:]) for tag in tags if tag[2] not in _TIMES]
        del self._kept[_KEPT_TAGS:]

    def _note_times(self, first: int, tags: Sequence[Tag]) -> None:
        for item, port, key, value in tags:
            if port == 0 and key in _TIMES:
                self._known[key] = value
                if key == "rx_time":
                    self._clock = (first + item, value)

    def _resumed(self, n_ports: int, first: int, tags: list[Tag], lost: int) -> list[Tag]:
        """Tags of a piece after a loss, which say where it begins."""
        said = {(port, key) for item, port, key, _ in tags if item == 0}
        values = dict(self._known)
        rate = self._known.get("rx_rate")
        if self._clock is not None and isinstance(rate, float) and rate > 0:
            values["rx_time"] = _time_after(self._clock[1], first - self._clock[0], rate)
        elif "rx_time" not in self._known:
            # A radio without time: the number is all there is to say.
            values["rx_gap"] = lost
        new = [(0, port, key, value) for port in range(n_ports) for key, value in values.items()]
        kept, self._kept = self._kept, []
        return [*(tag for tag in new if tag[1:3] not in said), *kept, *tags]


def _time_after(value: Any, samples: int, rate_hz: float) -> Any:
    """A time as of an rx_time tag, some samples later, without a rounding on the way."""
    (whole, part) = value[0]["u"], value[1]
    seconds, rest = divmod(whole + Fraction(part) + Fraction(samples) / Fraction(rate_hz), 1)
    return [{"u": int(seconds)}, float(rest)]


class Incoming:
    """What came from a network for a flowgraph, with a bound.

    Args:
        n_ports: channels.
        window: samples per channel that may be here at once.
        notify: called when enough was taken to say so.

    Attributes:
        lost: samples per channel that the sender left out.
        losses: (item, count) of the first of these losses, items counted as the flowgraph got them.
    """

    def __init__(self, n_ports: int, window: int, notify: Callable[[], None]) -> None:
        self.lost = 0
        self.losses: list[tuple[int, int]] = []
        self._n_ports = n_ports
        self._window = window
        self._notify = notify
        self._lock = threading.Condition()
        self._queue: deque[Piece] = deque()
        self._place = 0
        self._got = self._taken = self._told = 0
        self._finished = False

    def put(self, piece: Piece) -> None:
        """Take a piece.

        Raises:
            ValueError: it has another number of channels, or finds no room although its sender knows how much is left.
        """
        if piece.samples.shape[0] != self._n_ports or piece.n < 1 or piece.lost < 0:
            raise ValueError(f"a piece of shape {piece.samples.shape} in a stream of {self._n_ports} channels")
        with self._lock:
            if self._finished or self._got - self._told + piece.n > self._window:
                raise ValueError(f"{piece.n} samples more than the {self._window} that were agreed on")
            self._note_loss(piece.lost)
            self._queue.append(piece)
            self._got += piece.n
            self._lock.notify_all()

    def finish(self, lost: int = 0) -> None:
        """Nothing more will come; some samples may have been left out at the end."""
        with self._lock:
            if not self._finished:
                self._note_loss(lost)
            self._finished = True
            self._lock.notify_all()

    def _note_loss(self, lost: int) -> None:
        if lost:
            self.lost += lost
            if len(self.losses) < _KEPT_LOSSES:
                self.losses.append((self._got, lost))

    def take(self, outputs: Sequence[np.ndarray]) -> tuple[int, list[Tag]] | None:
        """Fill outputs; waits a little where nothing is there.

        Args:
            outputs: complex64, (n,) each.

        Returns:
            Samples written and their tags, with items counted from the first of them; None once nothing more comes.
        """
        with self._lock:
            if not self._queue and not self._finished:
                self._lock.wait(_LONGEST_WAIT_S)
            if not self._queue:
                return None if self._finished else (0, [])
            done, tags = 0, []
            room = len(outputs[0])
            while self._queue and done < room:
                piece, begin = self._queue[0], self._place
                end = min(piece.n, begin + room - done)
                for output, row in zip(outputs, piece.samples, strict=True):
                    output[done : done + end - begin] = row[begin:end]
                tags += [(item - begin + done, *rest) for item, *rest in piece.tags if begin <= item < end]
                done += end - begin
                self._place = end
                if end == piece.n:
                    self._queue.popleft()
                    self._place = 0
            self._taken += done
            due = self._is_due()
        if due:
            self._notify()
        return done, tags

    def news(self) -> int | None:
        """How many samples were taken in all, where that should be told."""
        with self._lock:
            if not self._is_due():
                return None
            self._told = self._taken
            return self._taken

    def _is_due(self) -> bool:
        new = self._taken - self._told
        return new >= self._window // 8 or (new > 0 and not self._queue)


class _EndOfStream(Failsafe):
    """What both blocks share: they begin and end with their flowgraph, and fail with their connection."""

    on_start: Callable[[], None]
    on_stop: Callable[[], None]
    connection_failure: Callable[[], BaseException | None]

    def start(self) -> bool:
        """Tell the connection."""
        try:
            self.on_start()
        except Exception as error:
            self.keep(error)
        return True

    def stop(self) -> bool:
        """Tell the connection."""
        try:
            self.on_stop()
        except Exception as error:
            self.keep(error)
        return True

    def check(self) -> None:
        """Raise what befell the connection."""
        error = self.connection_failure()
        if error is not None:
            raise error


def _nothing() -> None:
    return None


class StreamSender(_EndOfStream, gr.sync_block):
    """Gives n streams with their tags to a network, and the users' bursts of an emulated air.

    Streams: n complex in. Message in `bursts`: see `ChannelEmulator`. Tags read: all whose values are plain; where
    there are bursts, a frame's samples are not taken before its bursts were.

    Args:
        n_ports: channels.
        outgoing: takes what comes.
        failure: what befell the connection.
        on_start: called as the flowgraph starts.
        on_stop: called as it ends; all samples were given before.
        on_bursts: takes messages; None: this radio has no use for them.
    """

    def __init__(
        self,
        n_ports: int,
        outgoing: Outgoing,
        failure: Callable[[], BaseException | None],
        on_start: Callable[[], None] = _nothing,
        on_stop: Callable[[], None] = _nothing,
        on_bursts: Callable[[dict[str, Any], np.ndarray], None] | None = None,
    ) -> None:
        gr.sync_block.__init__(self, name="semair stream sender", in_sig=[np.complex64] * n_ports, out_sig=None)
        self.outgoing = outgoing
        self.connection_failure, self.on_start, self.on_stop, self.on_bursts = failure, on_start, on_stop, on_bursts
        self._heard = HeardFrames()
        if on_bursts is not None:
            self.message_port_register_in(pmt.intern("bursts"))
            self.set_msg_handler(pmt.intern("bursts"), self.handle_bursts)

    @guarded
    def handle_bursts(self, message: Any) -> None:
        """Send one frame's bursts."""
        assert self.on_bursts is not None
        fields, vector = unpack(message)
        self.on_bursts(fields, vector)
        self._heard.add(fields["frame"])

    @guarded
    def work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        """Hand samples over."""
        self.check()
        first, n = self.nitems_read(0), len(input_items[0])
        if self.on_bursts is not None and (n := self._heard.known(self, n)) == 0:
            self._heard.wait()
            return 0
        tags = []
        for port in range(len(input_items)):
            for tag in input_tags(self, port, n):
                try:
                    value = plain_value(tag.value)
                except ValueError:
                    continue
                tags.append((tag.offset - first, port, pmt.symbol_to_string(tag.key), value))
        done = self.outgoing.put([port[:n] for port in input_items], first, tags)
        if not done:
            self.outgoing.wait()
        return done


class StreamReceiver(_EndOfStream, gr.sync_block):
    """Gives n streams from a network to a flowgraph, with the tags they had.

    Streams: n complex out. Tags written: those that were sent.

    Args:
        n_ports: channels.
        incoming: gives what came.
        failure: what befell the connection.
        on_start: called as the flowgraph starts.
        on_stop: called as it ends.
    """

    def __init__(
        self,
        n_ports: int,
        incoming: Incoming,
        failure: Callable[[], BaseException | None],
        on_start: Callable[[], None] = _nothing,
        on_stop: Callable[[], None] = _nothing,
    ) -> None:
        gr.sync_block.__init__(self, name="semair stream receiver", in_sig=None, out_sig=[np.complex64] * n_ports)
        self.incoming = incoming
        self.connection_failure, self.on_start, self.on_stop = failure, on_start, on_stop

    @guarded
    def work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        """Put out what came."""
        self.check()
        taken = self.incoming.take(output_items)
        if taken is None:
            self.check()
            return WORK_DONE
        n, tags = taken
        first = self.nitems_written(0)
        for item, port, key, value in tags:
            self.add_item_tag(port, first + item, pmt.intern(key), pmt_value(value))
        return n


def plain_value(value: Any) -> Any:
    """The value of a tag as what JSON can hold: numbers and texts as they are, tuples as lists, uint64 as {"u": n}.

    Raises:
        ValueError: it is of another kind.
    """
    if pmt.is_bool(value):
        return pmt.to_bool(value)
    if pmt.is_uint64(value):
        return {"u": pmt.to_uint64(value)}
    if pmt.is_integer(value):
        return pmt.to_long(value)
    if pmt.is_real(value):
        return pmt.to_double(value)
    if pmt.is_symbol(value):
        return pmt.symbol_to_string(value)
    if pmt.is_tuple(value):
        return [plain_value(pmt.tuple_ref(value, k)) for k in range(pmt.length(value))]
    raise ValueError(f"a tag's value {value} is no number, text or tuple of them")


def pmt_value(value: Any) -> Any:
    """Inverse of `plain_value`.

    Raises:
        ValueError: it is no such value.
    """
    if isinstance(value, bool):
        return pmt.from_bool(value)
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return pmt.from_long(value)
    if isinstance(value, float):
        return pmt.from_double(value)
    if isinstance(value, str) and len(value) < 1000:
        return pmt.intern(value)
    if isinstance(value, dict) and list(value) == ["u"] and type(value["u"]) is int and 0 <= value["u"] < 2**64:
        return pmt.from_uint64(value["u"])
    if isinstance(value, list) and 1 <= len(value) <= 8 and not any(isinstance(item, list) for item in value):
        return pmt.make_tuple(*(pmt_value(item) for item in value))
    raise ValueError(f"a tag's value {value!r:.80} is no number, text or tuple of them")

"""Queues between flowgraphs and a network, and the messages that carry what is in them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pmt = pytest.importorskip("pmt", reason="GNU Radio is not installed")

from semair.blocks.messages import pack  # noqa: E402
from semair.blocks.runtime import gr, time_ticks, time_value  # noqa: E402
from semair.flowgraphs.execute import execute  # noqa: E402
from semair.hardware import streams, wire  # noqa: E402
from semair.hardware.streams import (  # noqa: E402
    Incoming,
    Outgoing,
    Piece,
    StreamSender,
    piece_samples,
    plain_value,
    pmt_value,
    window_samples,
)


@pytest.fixture(autouse=True, scope="module")
def impatient() -> Iterator[None]:
    """What waits for samples that other threads bring need not wait here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "_LONGEST_WAIT_S", 1e-5)
        yield


def nothing() -> None:
    return None


def carried(piece: Piece) -> Piece:
    """A piece after its way over the wire."""
    kind, fields, payload = wire.parse(wire.pack_piece(1, piece))
    assert kind == "samples"
    return wire.piece_of(fields, payload, set())


def deliver(out: Outgoing, into: Incoming) -> None:
    """Carry over what may be carried now, and what is told back."""
    while (piece := out.next()) is not None:
        into.put(carried(piece))
    lost = out.end()
    if lost is not None:
        into.finish(lost)
    taken = into.news()
    if taken is not None:
        out.credit(taken)


def counting(n: int, n_ports: int = 1, first: int = 0) -> np.ndarray:
    """Samples that tell their own index; complex64 (ports, n)."""
    index = np.arange(first, first + n)
    return np.stack([index + 1j * port for port in range(n_ports)]).astype(np.complex64)


@given(
    parts=st.lists(st.integers(1, 300), min_size=1, max_size=20),
    takes=st.lists(st.integers(1, 500), min_size=1, max_size=8),
    n_ports=st.integers(1, 3),
    tags=st.lists(
        st.tuples(st.integers(0, 5999), st.integers(0, 2), st.sampled_from(["a", "rx_time", "frame"])), max_size=10
    ),
)
def test_samples_and_tags_come_as_they_went_however_they_are_cut(parts, takes, n_ports, tags):
    total = sum(parts)
    x = counting(total, n_ports)
    marks = sorted((item % total, port % n_ports, key, k) for k, (item, port, key) in enumerate(tags))
    out, into = Outgoing(n_ports, 1000, False, nothing), Incoming(n_ports, 1000, nothing)
    heard, found, first, round_ = [], [], 0, 0
    ends = np.cumsum(parts).tolist()
    while True:
        if first < total:
            end = next(end for end in ends if end > first)
            here = [(item - first, *rest) for item, *rest in marks if first <= item < end]
            first += out.put(x[:, first:end], first, here)
            if first == total:
                out.finish()
        deliver(out, into)
        outputs = np.zeros((n_ports, takes[round_ % len(takes)]), np.complex64)
        got = into.take(outputs)
        if got is None:
            break
        place = sum(part.shape[1] for part in heard)
        heard.append(outputs[:, : got[0]])
        found += [(place + item, *rest) for item, *rest in got[1]]
        round_ += 1
    assert np.array_equal(np.concatenate(heard, axis=1), x)
    assert sorted(found) == marks
    assert (into.lost, out.lost) == (0, 0)


RATE_HZ = 1e6 / 3


def timed(item: int, ticks: int) -> list[tuple[int, int, str, Any]]:
    return [
        (item, 0, "rx_time", plain_value(time_value(ticks, RATE_HZ))),
        (item, 0, "rx_rate", RATE_HZ),
        (item, 0, "rx_freq", 2.4e9),
    ]


@given(
    pauses=st.lists(st.integers(0, 60), min_size=1, max_size=6),
    own_gap=st.integers(0, 5000),
    gap_at=st.integers(1, 99),
)
def test_what_found_no_room_is_counted_and_the_times_say_where(pauses, own_gap, gap_at):
    # Samples hold the radio's time. The radio itself loses some at one place, which may be left out as well.
    size, n = 40_000, 100
    out, into = Outgoing(1, size, True, nothing), Incoming(1, size, nothing)
    start = 10**9 + 12_345
    heard: list[np.ndarray] = []
    tags: list[tuple[int, int, str, Any]] = []
    ends = np.cumsum([p + 1 for p in pauses]).tolist()
    shift = 0
    for k in range(n):
        here = timed(0, start) if k == 0 else []
        if k == gap_at and own_gap:
            shift = own_gap
            here = timed(0, start + k * 3000 + shift)
        values = np.arange(k * 3000, (k + 1) * 3000) + shift
        assert out.put(values[None].astype(np.complex64), k * 3000, here) == 3000
        if k % (ends[-1] + 1) in ends or k == n - 1:
            while True:
                deliver(out, into)
                outputs = np.zeros((1, 7777), np.complex64)
                got = into.take(outputs)
                if not (got and got[0]):
                    break
                place = sum(len(part) for part in heard)
                heard.append(outputs[0, : got[0]])
                tags += [(place + item, *rest) for item, *rest in got[1]]
    out.finish()
    deliver(out, into)
    x = np.concatenate(heard).real.astype(int)
    assert len(x) + into.lost == n * 3000
    assert into.lost == out.lost
    # Read the stream as a recorder does: by the times, from tag to tag.
    clock = None
    expected = np.full(len(x), -1)
    times = sorted((item, time_ticks(pmt_value(value), RATE_HZ)) for item, _, key, value in tags if key == "rx_time")
    for (item, ticks), end in zip(times, [*(item for item, _ in times[1:]), len(x)], strict=True):
        expected[item:end] = ticks - start + np.arange(end - item)
        clock = ticks
    assert clock is not None
    assert np.array_equal(x, expected)
    assert {value for _, _, key, value in tags if key == "rx_rate"} == {RATE_HZ}
    assert sum(count for _, count in into.losses) == into.lost


def fill(out: Outgoing, n: int, tags: dict[int, list[tuple[int, int, str, Any]]] | None = None) -> None:
    """Pieces of 25,000 samples, tags on some."""
    for k in range(n):
        assert out.put(counting(25_000, 1, k * 25_000), k * 25_000, (tags or {}).get(k, [])) == 25_000


def test_a_radio_without_time_says_how_many_samples_are_missing():
    out = Outgoing(1, 100_000, True, nothing)
    fill(out, 20)
    kept = 0
    while (piece := out.next()) is not None:
        kept += piece.n
        out.credit(kept)
    fill(out, 1)
    piece = out.next()
    assert piece is not None
    assert piece.lost == out.lost == 20 * 25_000 - kept
    assert piece.tags == [(0, 0, "rx_gap", piece.lost)]


def test_tags_on_samples_that_are_left_out_are_not_lost_with_them():
    out = Outgoing(1, 100_000, True, nothing)
    fill(out, 20, {0: timed(0, 0), 15: [(7, 0, "rx_end", True), *timed(8, 10**7)]})
    kept = 0
    while (piece := out.next()) is not None:
        kept += piece.n
        out.credit(kept)
    out.put(counting(10), 20 * 25_000, [])
    piece = out.next()
    assert piece is not None
    said = {key: value for _, _, key, value in piece.tags}
    assert said["rx_end"] is True
    # Counted on from the last time that the radio told, although nobody heard it.
    assert time_ticks(pmt_value(said["rx_time"]), RATE_HZ) == 10**7 + 20 * 25_000 - (15 * 25_000 + 8)


def test_a_time_is_carried_on_without_rounding():
    out = Outgoing(1, 100_000, True, nothing)
    # A start between two samples of a rate that no fraction of a second fits.
    value = [{"u": 2**40}, 0.1]
    tags = [(0, 0, "rx_time", value), (0, 0, "rx_rate", RATE_HZ)]
    fill(out, 20, {0: tags})
    kept = 0
    while (piece := out.next()) is not None:
        kept += piece.n
        out.credit(kept)
    out.put(counting(10), 20 * 25_000, [])
    piece = out.next()
    assert piece is not None
    (time,) = [value for _, _, key, value in piece.tags if key == "rx_time"]
    exact = 2**40 + Fraction(0.1) + Fraction(20 * 25_000) / Fraction(RATE_HZ)
    assert time[0]["u"] == exact // 1
    assert time[1] == float(exact % 1)


def test_without_leave_to_drop_a_full_queue_takes_nothing():
    out = Outgoing(1, 100_000, False, nothing)
    taken = [out.put(counting(25_000), k * 25_000, []) for k in range(6)]
    assert taken == [25_000] * 4 + [0, 0]
    assert out.lost == 0


def test_neither_side_can_be_made_to_hold_more_than_agreed():
    into = Incoming(2, 1000, nothing)
    into.put(Piece(np.zeros((2, 600), np.complex64)))
    with pytest.raises(ValueError, match="401 samples more than the 1000"):
        into.put(Piece(np.zeros((2, 401), np.complex64)))
    with pytest.raises(ValueError, match=r"\(1, 10\) in a stream of 2"):
        into.put(Piece(np.zeros((1, 10), np.complex64)))
    out = Outgoing(1, 1000, False, nothing)
    assert out.put(counting(100), 0, []) == 100
    assert out.next() is not None
    with pytest.raises(ValueError, match="101 samples taken of 100"):
        out.credit(101)


def test_what_is_on_its_way_has_a_bound_in_memory():
    for n_ports in (1, 4, 64, 256):
        for rate_hz in (1e3, 1e6, 1e9):
            assert 8 * n_ports * window_samples(n_ports, rate_hz) <= 32 << 20
        assert 8 * n_ports * piece_samples(n_ports) <= 1 << 20


# Values of tags


VALUES = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text("abc/_ %ä", max_size=20)
)


@given(st.one_of(VALUES, st.lists(VALUES, min_size=1, max_size=5)))
def test_values_of_tags_survive_json(value):
    there = pmt_value(json.loads(json.dumps(value)))
    assert plain_value(there) == value
    assert type(plain_value(there)) is type(value)


def test_a_time_as_usrps_tag_it_survives():
    value = pmt.make_tuple(pmt.from_uint64(2**63 + 1), pmt.from_double(0.1))
    assert pmt.equal(pmt_value(plain_value(value)), value)


@pytest.mark.parametrize("value", [None, 2**63, {"u": -1}, {"u": True}, {"v": 1}, [[1]], [], [None], "x" * 1000])
def test_other_values_are_refused(value):
    with pytest.raises(ValueError, match="no number, text or tuple"):
        pmt_value(value)


# Messages


@given(st.binary(max_size=200))
def test_bytes_that_are_no_message_are_refused(data):
    with pytest.raises(ValueError):
        wire.parse(data)


GOOD = wire.pack_piece(3, Piece(counting(5, 2), [(4, 1, "rx_rate", 1e6)]))


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255), st.integers(0, len(GOOD)))
def test_damaged_messages_are_read_or_refused(at, value, length):
    data = bytearray(GOOD)
    data[at] = value
    try:
        kind, fields, payload = wire.parse(bytes(data[:length] if length % 2 else data))
        if kind == "samples":
            piece = wire.piece_of(fields, payload, set())
            assert piece.samples.size * 8 == len(payload)
            assert all(0 <= item < piece.n and 0 <= port < len(piece.samples) for item, port, *_ in piece.tags)
    except ValueError:
        pass


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "shape": st.one_of(st.none(), st.lists(st.integers(-3, 10**12), max_size=3), st.text(max_size=3)),
            "tags": st.one_of(st.none(), st.lists(st.lists(st.one_of(st.none(), VALUES), max_size=5), max_size=3)),
            "lost": st.one_of(st.none(), st.integers(), st.floats()),
        },
    )
)
def test_headers_of_samples_that_do_not_fit_are_refused(fields):
    with pytest.raises(ValueError):
        wire.piece_of(fields, memoryview(b"\0" * 24), set())


def test_tags_of_ever_new_names_are_refused():
    # GNU Radio keeps every name for good.
    texts = {f"name {k}" for k in range(256)}
    known, new = ({"shape": [1, 1], "lost": 0, "tags": [[0, 0, name, 1]]} for name in ("name 7", "name 256"))
    wire.piece_of(known, memoryview(b"\0" * 8), texts)
    with pytest.raises(ValueError, match="too many kinds"):
        wire.piece_of(new, memoryview(b"\0" * 8), texts)


def test_a_message_too_large_for_the_other_side_is_not_sent():
    with pytest.raises(Exception, match="does not fit the network's"):
        wire.pack("bursts", {}, b"\0" * wire.MESSAGE_BYTES)


@pytest.mark.parametrize("address", ["", "127.0.0.1:5900", "tcp://127.0.0.1", "tcp://a:70000", "ipc://x", "tcp://a:*"])
def test_addresses_that_are_none_are_refused(address):
    with pytest.raises(Exception, match="must be tcp://HOST:PORT"):
        wire.check_endpoint(address)


def test_a_stream_does_not_end_before_the_bursts_of_its_frames_were_sent():
    from gnuradio import blocks

    frames = 5
    tags = [gr.python_to_tag((100 * k, pmt.intern("frame"), pmt.from_long(k), pmt.PMT_F)) for k in range(frames)]
    sent: list[tuple[str, int]] = []
    outgoing = Outgoing(1, 10**6, False, nothing)
    top = gr.top_block("test")
    source = blocks.vector_source_c([0j] * 100 * frames, False, 1, tags)
    sender = StreamSender(
        1,
        outgoing,
        lambda: None,
        on_stop=lambda: sent.append(("end", -1)),
        on_bursts=lambda fields, _: sent.append(("bursts", fields["frame"])),
    )
    top.connect(source, sender)

    def answer() -> None:
        for frame in range(frames):
            message = pack({"frame": frame, "start": 0, "users": [], "burst_samples": 0})
            sender.to_basic_block()._post(pmt.intern("bursts"), message)

    # Late enough that a sender which did not wait would have ended long before.
    late = threading.Timer(0.3, answer)
    late.start()
    execute(top, lambda: sender.failure)
    late.join()
    assert sent == [*(("bursts", frame) for frame in range(frames)), ("end", -1)]
    assert outgoing.next().n == 100 * frames

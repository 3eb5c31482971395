"""The access-slot receiver is its cutter: right slots at any schedule, none with samples missing."""

from __future__ import annotations

import gc

import numpy as np
import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")

import pmt
from gnuradio import blocks, gr
from semair.blocks.access_slot_receiver import AccessSlotReceiver
from semair.blocks.message_collector import MessageCollector
from semair.blocks.messages import fields_of, pack
from semair.blocks.runtime import time_value
from semair.blocks.waveforms.frame import FrameFormat
from semair.blocks.waveforms.frame_sync import AccessSlotCutter, FrameStart

# Shorter than the receiver's chunk of 4096 samples, so that several slots end within one.
FMT = FrameFormat(
    n_fft=32,
    cp_samples=4,
    n_used=24,
    sync_repeats=4,
    n_groups=3,
    max_preamble_length=8,
    noise_symbols=2,
    guard_samples=8,
    frame_samples=800,
)
LENGTHS = (3, 8)
N_ANTENNAS = 2
FIRST = 150
N_FRAMES = 60
ALL_FRAMES = range(N_FRAMES)
TOTAL = FIRST + N_FRAMES * 800 + 2 * 4096


@pytest.fixture(scope="module")
def signal() -> np.ndarray:
    return (
        np.random.default_rng(9).standard_normal((N_ANTENNAS, TOTAL, 2)).astype(np.float32).view(np.complex64)[..., 0]
    )


def fields(frame: int, sample_time: int) -> dict:
    return {
        "frame": frame,
        "counted": False,
        "fraction": 0.25,
        "cfo_hz": 321.0,
        "metric": 0.9,
        "snr_db": 11.0,
        "sample_time": sample_time,
    }


class Flowgraph(gr.top_block):
    """Vectors into the receiver; slots and messages kept."""

    def __init__(self, signal: np.ndarray, tags) -> None:
        gr.top_block.__init__(self, "test")
        tags = list(tags)
        self.sources = [
            blocks.vector_source_c(row.tolist(), False, 1, tags if port == 0 else []) for port, row in enumerate(signal)
        ]
        self.receiver = AccessSlotReceiver(FMT, len(signal), LENGTHS)
        self.sink = blocks.vector_sink_c(self.receiver.vector_items)
        self.dropped: list[dict] = []
        self.collector = MessageCollector(lambda fields, _: self.dropped.append(fields))
        for port, source in enumerate(self.sources):
            self.connect(source, (self.receiver, port))
        self.connect(self.receiver, self.sink)
        self.msg_connect((self.receiver, "dropped"), (self.collector, "in"))
        self.nodes = (self.receiver, self.collector)

    def slots(self) -> dict[int, tuple[np.ndarray, dict]]:
        """Frame number -> vector and tag."""
        vectors = np.array(self.sink.data(), np.complex64).reshape(-1, self.receiver.vector_items)
        tags = sorted(self.sink.tags(), key=lambda tag: tag.offset)
        assert [tag.offset for tag in tags] == list(range(len(vectors)))
        assert all(pmt.eq(tag.key, pmt.intern("slot")) for tag in tags)
        read = [fields_of(tag.value) for tag in tags]
        return {f["frame"]: (vector, f) for vector, f in zip(vectors, read, strict=True)}


def start_of(frame: int) -> int:
    return FIRST + 800 * frame


def frame_tags(make_tag, frames: range = ALL_FRAMES, moved: int = 0) -> list:
    return [make_tag(start_of(k) - moved, "frame", pmt.car(pack(fields(k, start_of(k))))) for k in frames]


def direct(signal: np.ndarray, frame: int):
    cutter = AccessSlotCutter(FMT, N_ANTENNAS, LENGTHS)
    cutter.announce(FrameStart(start_of(frame), 0.25, 321.0, 0.9, 11.0, frame, False, np.empty(0, np.complex64)))
    return cutter.process(signal)[0]


@pytest.mark.parametrize("max_noutput_items", [1, 3, 1024, None])
def test_slots_do_not_depend_on_the_scheduler(run_graph, signal, make_tag, max_noutput_items):
    tb = Flowgraph(signal, frame_tags(make_tag))
    run_graph(tb, tb.nodes, max_noutput_items)
    slots = tb.slots()
    assert list(slots) == list(range(N_FRAMES))
    for frame, (vector, told) in slots.items():
        expected = direct(signal, frame)
        n = expected.snapshots.size
        np.testing.assert_array_equal(vector[:n], expected.snapshots.reshape(-1))
        np.testing.assert_array_equal(vector[n:], 0)
        told.pop("cut_ns")
        assert told == {
            **fields(frame, start_of(frame)),
            "length": LENGTHS[frame % 2],
            "noise_power": expected.noise_power,
        }
    assert tb.receiver.dropped == 0


def test_vectors_hold_the_longest_preamble():
    assert AccessSlotReceiver(FMT, 2, (3,)).vector_items == 8 * 2 * 3


@pytest.mark.parametrize("max_noutput_items", [1, None])
@pytest.mark.parametrize("place", [FMT.access_start + 20, FMT.noise_start + 5, 10])
def test_frame_with_lost_samples_is_dropped_told_and_the_next_is_right(
    run_graph, signal, make_tag, place, max_noutput_items
):
    gap, lost = start_of(7) + place, 30
    short = np.delete(signal, np.s_[gap : gap + lost], axis=1)
    tags = [
        make_tag(0, "rx_time", time_value(10**7, 2e6)),
        *frame_tags(make_tag, range(8)),
        make_tag(gap, "rx_time", time_value(10**7 + gap + lost, 2e6)),
        *frame_tags(make_tag, range(8, N_FRAMES), moved=lost),
    ]
    tb = Flowgraph(short, tags)
    run_graph(tb, tb.nodes, max_noutput_items, until=lambda: len(tb.sink.data()) == 59 * 48 and tb.dropped)
    assert tb.receiver.dropped == 1
    assert tb.dropped == [{"frame": 7, "sample_time": start_of(7), "reason": "samples were lost inside the slot"}]
    slots = tb.slots()
    assert list(slots) == [k for k in range(N_FRAMES) if k != 7]
    for frame in (6, 8, 9):
        expected = direct(signal, frame).snapshots.reshape(-1)
        np.testing.assert_array_equal(slots[frame][0][: expected.size], expected)


def test_loss_between_slot_and_next_frame_costs_nothing(run_graph, signal, make_tag):
    gap, lost = start_of(7) + FMT.used_samples, 20
    short = np.delete(signal, np.s_[gap : gap + lost], axis=1)
    tags = [
        make_tag(0, "rx_time", time_value(0, 2e6)),
        *frame_tags(make_tag, range(8)),
        make_tag(gap, "rx_time", time_value(gap + lost, 2e6)),
        *frame_tags(make_tag, range(8, N_FRAMES), moved=lost),
    ]
    tb = Flowgraph(short, tags)
    run_graph(tb, tb.nodes)
    assert list(tb.slots()) == list(range(N_FRAMES))
    assert tb.receiver.dropped == 0


def test_frame_that_starts_right_behind_a_loss_is_kept(run_graph, signal, make_tag):
    lost = 40
    short = np.delete(signal, np.s_[start_of(8) - lost : start_of(8)], axis=1)
    at = start_of(8) - lost
    tags = [
        make_tag(0, "rx_time", time_value(0, 2e6)),
        *frame_tags(make_tag, range(8)),
        make_tag(at, "rx_time", time_value(at + lost, 2e6)),
        *frame_tags(make_tag, range(8, N_FRAMES), moved=lost),
    ]
    tb = Flowgraph(short, tags)
    run_graph(tb, tb.nodes)
    expected = direct(signal, 8).snapshots.reshape(-1)
    np.testing.assert_array_equal(tb.slots()[8][0][: expected.size], expected)


def test_time_that_goes_on_over_the_second_drops_nothing(run_graph, signal, make_tag):
    start = 5 * 2_000_000 - start_of(3) - 400
    tags = [
        make_tag(0, "rx_time", time_value(start, 2e6)),
        *frame_tags(make_tag),
        make_tag(start_of(3) + 400, "rx_time", time_value(5 * 2_000_000, 2e6)),
    ]
    tb = Flowgraph(signal, tags)
    run_graph(tb, tb.nodes)
    assert len(tb.slots()) == N_FRAMES


def test_slot_cut_by_the_end_is_dropped(run_graph, signal, make_tag):
    end = start_of(4) + FMT.access_start + 10
    tb = Flowgraph(signal, [*frame_tags(make_tag, range(5)), make_tag(end, "rx_end", pmt.PMT_T)])
    run_graph(tb, tb.nodes)
    assert list(tb.slots()) == [0, 1, 2, 3]
    assert tb.receiver.dropped == 1


def test_frame_tag_of_another_block_is_explained(run_graph, signal, make_tag):
    tb = Flowgraph(signal, [make_tag(150, "frame", 3)])
    with pytest.raises(ValueError, match=r"`frame` tag at sample 150 is 3 .*frame synchroniser"):
        run_graph(tb, tb.nodes)


def test_preamble_longer_than_the_slot_is_refused():
    with pytest.raises(ValueError, match="preamble length 9 does not fit"):
        AccessSlotReceiver(FMT, 2, (3, 9))


def test_built_in_a_function_it_survives_garbage_collection(run_graph, signal, make_tag):
    def build() -> Flowgraph:
        return Flowgraph(signal, frame_tags(make_tag))

    tb = build()
    gc.collect()
    run_graph(tb, tb.nodes)
    assert len(tb.slots()) == N_FRAMES

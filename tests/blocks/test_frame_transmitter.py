"""The frame transmitter against frames put together by hand."""

from __future__ import annotations

import gc

import numpy as np
import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")

import pmt
from gnuradio import blocks, gr
from semair.blocks.frame_transmitter import FrameTransmitter
from semair.blocks.message_collector import MessageCollector
from semair.blocks.waveforms.beacon import beacon
from semair.blocks.waveforms.frame import FrameFormat

FMT = FrameFormat(n_fft=32, cp_samples=4, n_used=24, sync_repeats=4, n_groups=2, guard_samples=8, frame_samples=700)


class Flowgraph(gr.top_block):
    """A transmitter into a sink, its messages into a list."""

    def __init__(self, *, head: int | None = None, **options) -> None:
        gr.top_block.__init__(self, "test")
        self.transmitter = FrameTransmitter(FMT, **options)
        self.sink = blocks.vector_sink_c()
        self.messages: list[dict] = []
        self.collector = MessageCollector(lambda fields, _: self.messages.append(fields))
        if head is None:
            self.connect(self.transmitter, self.sink)
        else:
            self.head = blocks.head(gr.sizeof_gr_complex, head)
            self.connect(self.transmitter, self.head, self.sink)
        self.msg_connect((self.transmitter, "frames"), (self.collector, "in"))

    def frame_tags(self) -> list[tuple[int, int]]:
        return [(t.offset, pmt.to_long(t.value)) for t in self.sink.tags() if pmt.eq(t.key, pmt.intern("frame"))]


def by_hand(n_frames: int, amplitude: float, tail: int) -> np.ndarray:
    silence = np.zeros(FMT.frame_samples - FMT.beacon_samples, np.complex64)
    frames = [part for f in range(n_frames) for part in (np.float32(amplitude) * beacon(FMT, f), silence)]
    return np.concatenate([*frames, np.zeros(tail, np.complex64)])


@pytest.mark.parametrize("max_noutput_items", [1, 64, 699, 1024, None])
def test_stream_and_tags_do_not_depend_on_the_scheduler(run_graph, max_noutput_items):
    tb = Flowgraph(n_frames=5, amplitude=1.7, tail_samples=123)
    run_graph(tb, (tb.transmitter, tb.collector), max_noutput_items)
    np.testing.assert_array_equal(np.array(tb.sink.data(), np.complex64), by_hand(5, 1.7, 123))
    assert tb.frame_tags() == [(k * 700, k) for k in range(5)]


def test_each_frame_is_told_once_with_its_place(run_graph):
    tb = Flowgraph(n_frames=7, tail_samples=5)
    run_graph(tb, (tb.transmitter, tb.collector), 500)
    # Messages lie in the collector's queue when the stream ends; what is told comes in order.
    assert tb.messages == [{"frame": k, "start": 700 * k} for k in range(len(tb.messages))]
    assert len(tb.messages) >= 6


def test_no_frames_are_a_tail_alone(run_graph):
    tb = Flowgraph(n_frames=0, tail_samples=40)
    run_graph(tb, (tb.transmitter,))
    np.testing.assert_array_equal(tb.sink.data(), np.zeros(40))
    assert tb.frame_tags() == []


def test_without_a_number_of_frames_it_goes_on(run_graph):
    tb = Flowgraph(head=30 * 700)
    run_graph(tb, (tb.transmitter,))
    np.testing.assert_array_equal(np.array(tb.sink.data(), np.complex64), by_hand(30, 1.0, 0))


def test_built_in_a_function_it_survives_garbage_collection(run_graph):
    def build() -> Flowgraph:
        return Flowgraph(n_frames=3)

    tb = build()
    gc.collect()
    run_graph(tb, (tb.transmitter,))
    assert len(tb.sink.data()) == 2100

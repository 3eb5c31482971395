"""The frame synchroniser is its frame finder, with tags and radio time in the right places."""

from __future__ import annotations

import gc

import numpy as np
import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")

import pmt
from gnuradio import blocks, gr
from semair.blocks.frame_synchroniser import FrameSynchroniser
from semair.blocks.message_collector import MessageCollector
from semair.blocks.messages import fields_of
from semair.blocks.runtime import time_value
from semair.blocks.waveforms.beacon import beacon
from semair.blocks.waveforms.frame import FrameFormat
from semair.blocks.waveforms.frame_sync import FrameFinder
from semair.errors import RadioError

FMT = FrameFormat(
    n_fft=64,
    cp_samples=8,
    n_used=48,
    n_groups=8,
    max_preamble_length=12,
    noise_symbols=2,
    guard_samples=72,
    frame_samples=1536,
)
MAX_CFO_HZ = 3e3
FIRST = 700
N_FRAMES = 5
CHUNK = 512
DELAY = FrameFinder(FMT, 2, MAX_CFO_HZ).delay_samples
TOTAL = -(-(FIRST + N_FRAMES * 1536 + DELAY) // 4096) * 4096 + 4096


@pytest.fixture(scope="module")
def signal() -> np.ndarray:
    """Beacons of frames 40 to 44 on two antennas at 20 dB; complex64, (2, TOTAL)."""
    rng = np.random.default_rng(6)
    x = rng.standard_normal((2, TOTAL, 2)).view(complex)[..., 0] * np.sqrt(0.005)
    for k in range(N_FRAMES):
        at = FIRST + 1536 * k
        x[:, at : at + FMT.beacon_samples] += np.array([[1], [1j]]) * beacon(FMT, 40 + k)
    return x.astype(np.complex64)


class Flowgraph(gr.top_block):
    """Vectors into the synchroniser, its streams and messages kept."""

    def __init__(self, signal: np.ndarray, tags=(), chunk_samples: int = CHUNK) -> None:
        gr.top_block.__init__(self, "test")
        tags = list(tags)
        self.sources = [
            blocks.vector_source_c(row.tolist(), False, 1, tags if k == 0 else []) for k, row in enumerate(signal)
        ]
        self.synchroniser = FrameSynchroniser(FMT, len(signal), MAX_CFO_HZ, chunk_samples=chunk_samples)
        self.sinks = [blocks.vector_sink_c() for _ in signal]
        self.messages: list[tuple[dict, np.ndarray]] = []
        self.collector = MessageCollector(lambda *message: self.messages.append(message))
        for port, (source, sink) in enumerate(zip(self.sources, self.sinks, strict=True)):
            self.connect(source, (self.synchroniser, port))
            self.connect((self.synchroniser, port), sink)
        self.msg_connect((self.synchroniser, "frames"), (self.collector, "in"))
        self.nodes = (self.synchroniser, self.collector)

    def tags(self, key: str) -> list:
        found = [tag for tag in self.sinks[0].tags() if pmt.eq(tag.key, pmt.intern(key))]
        return sorted(found, key=lambda tag: tag.offset)

    def frames(self) -> list[tuple[int, dict]]:
        return [(tag.offset, fields_of(tag.value)) for tag in self.tags("frame")]


HOST_TIMES = ("heard_ns", "tagged_ns")


def without_host_times(frames: list[tuple[int, dict]]) -> list[tuple[int, dict]]:
    return [(at, {k: v for k, v in fields.items() if k not in HOST_TIMES}) for at, fields in frames]


def expected_frames(signal: np.ndarray) -> list[tuple[int, dict]]:
    """What the frame finder alone says, time starting at 0 with the stream."""
    _, found = FrameFinder(FMT, 2, MAX_CFO_HZ).process(signal)
    return [
        (
            frame.start + DELAY,
            {
                "frame": frame.frame_number,
                "counted": frame.counted,
                "fraction": frame.fraction,
                "cfo_hz": frame.cfo_hz,
                "metric": frame.metric,
                "snr_db": frame.snr_db,
                "sample_time": frame.start,
            },
        )
        for frame in found
    ]


@pytest.mark.parametrize(("max_noutput_items", "chunk"), [(64, 64), (512, 512), (1024, 512), (None, 4096)])
def test_streams_tags_and_messages_do_not_depend_on_the_scheduler(run_graph, signal, max_noutput_items, chunk):
    tb = Flowgraph(signal, chunk_samples=chunk)
    run_graph(tb, tb.nodes, max_noutput_items)
    delayed = np.concatenate([np.zeros((2, DELAY), np.complex64), signal[:, :-DELAY]], axis=1)
    np.testing.assert_array_equal(np.array([s.data() for s in tb.sinks], np.complex64), delayed)
    assert [f["frame"] for _, f in tb.frames()] == [40, 41, 42, 43, 44]
    assert without_host_times(tb.frames()) == expected_frames(signal)
    assert tb.synchroniser.found == 5
    assert tb.synchroniser.gaps == tb.synchroniser.refused == 0
    # The tag sits on the frame's first sample.
    for at, _ in tb.frames():
        assert (at - DELAY - FIRST) % 1536 in (0, 1535)


def test_message_is_the_tag_with_the_headers_symbols(run_graph, signal):
    tb = Flowgraph(signal)
    run_graph(tb, tb.nodes, until=lambda: len(tb.messages) == 5)
    assert len(tb.messages) == 5
    for fields, symbols in tb.messages:
        assert len(symbols) == FMT.header_symbols * FMT.n_used
        assert np.mean(np.abs(np.abs(symbols.real) - 1)) < 0.1
        assert fields["heard_ns"] <= fields["tagged_ns"]


def test_radio_time_rolls_over_its_second(run_graph, signal, make_tag):
    start = 17 * 2_000_000 - FIRST - 1536 - 10
    tags = [
        make_tag(0, "rx_time", time_value(start, 2e6)),
        make_tag(0, "rx_rate", 2e6),
        # A tag that continues the time is no gap: here the first sample of second 17.
        make_tag(FIRST + 1546, "rx_time", time_value(17 * 2_000_000, 2e6)),
    ]
    tb = Flowgraph(signal, tags)
    run_graph(tb, tb.nodes)
    places = [at - DELAY for at, _ in tb.frames()]
    assert [f["sample_time"] for _, f in tb.frames()] == [start + at for at in places]
    assert tb.frames()[0][1]["sample_time"] // 2_000_000 == 16
    assert tb.frames()[2][1]["sample_time"] // 2_000_000 == 17
    assert tb.synchroniser.gaps == 0
    assert [(tag.offset, pmt.to_python(tag.value)) for tag in tb.tags("rx_time")] == [
        (DELAY, pmt.to_python(time_value(start, 2e6))),
        (DELAY + FIRST + 1546, (17, 0.0)),
    ]
    assert [(tag.offset, pmt.to_python(tag.value)) for tag in tb.tags("rx_rate")] == [(DELAY, 2e6)]


@pytest.mark.parametrize("chunk", [64, 512, 4096])
def test_lost_samples_cost_the_frame_they_cut_alone(run_graph, signal, make_tag, chunk):
    # 300 samples vanish in the beacon of frame 42.
    gap, lost = FIRST + 2 * 1536 + 400, 300
    short = np.delete(signal, np.s_[gap : gap + lost], axis=1)
    short = np.concatenate([short, np.zeros((2, lost), np.complex64)], axis=1)
    tags = [make_tag(0, "rx_time", time_value(0, 2e6)), make_tag(gap, "rx_time", time_value(gap + lost, 2e6))]
    tb = Flowgraph(short, tags, chunk)
    run_graph(tb, tb.nodes)
    assert [f["frame"] for _, f in tb.frames()] == [40, 41, 43, 44]
    assert tb.synchroniser.gaps == 1
    assert tb.synchroniser.lost_samples == lost
    # On the radio's clock the frames stand where they always stood.
    for _, f in tb.frames():
        assert f["sample_time"] + f["fraction"] == pytest.approx(FIRST + 1536 * (f["frame"] - 40), abs=0.1)
    assert [tag.offset for tag in tb.tags("rx_time")] == [DELAY, DELAY + gap]


def test_first_time_in_mid_stream_is_no_loss(run_graph, signal, make_tag):
    tb = Flowgraph(signal, [make_tag(100, "rx_time", time_value(10**12, 2e6))])
    run_graph(tb, tb.nodes)
    assert tb.synchroniser.gaps == tb.synchroniser.lost_samples == 0
    assert [f["frame"] for _, f in tb.frames()] == [40, 41, 42, 43, 44]
    assert tb.frames()[0][1]["sample_time"] == pytest.approx(10**12 + FIRST - 100, abs=1)


def test_clock_set_back_breaks_the_stream_but_loses_nothing(run_graph, signal, make_tag):
    tags = [make_tag(0, "rx_time", time_value(10**7, 2e6)), make_tag(500, "rx_time", time_value(0, 2e6))]
    tb = Flowgraph(signal, tags)
    run_graph(tb, tb.nodes)
    assert tb.synchroniser.gaps == 1
    assert tb.synchroniser.lost_samples == 0
    assert tb.frames()[0][1]["sample_time"] == pytest.approx(FIRST - 500, abs=1)


def test_what_follows_the_end_is_never_signal(run_graph, signal, make_tag):
    end = FIRST + 2 * 1536 + FMT.beacon_samples + 5
    tb = Flowgraph(signal, [make_tag(end, "rx_end", pmt.PMT_T)])
    run_graph(tb, tb.nodes)
    # Frames whole before the end are found at once; the search starts anew behind it.
    assert [f["frame"] for _, f in tb.frames()] == [40, 41, 42, 43, 44]
    assert [tag.offset for tag in tb.tags("rx_end")] == [DELAY + end]
    quiet = signal.copy()
    quiet[:, end:] = 0
    tb = Flowgraph(quiet, [make_tag(end, "rx_end", pmt.PMT_T)])
    run_graph(tb, tb.nodes)
    assert [f["frame"] for _, f in tb.frames()] == [40, 41, 42]


@pytest.mark.parametrize("value", [complex(np.nan, 0), complex(0, np.inf)])
def test_not_a_number_ends_with_antenna_and_sample(run_graph, signal, value):
    bad = signal.copy()
    bad[1, 3333] = value
    tb = Flowgraph(bad)
    with pytest.raises(RadioError, match=r"(?s)(?=.*antenna 1)(?=.*sample 3333)"):
        run_graph(tb, tb.nodes)


def test_built_in_a_function_it_survives_garbage_collection(run_graph, signal):
    def build() -> Flowgraph:
        return Flowgraph(signal)

    tb = build()
    gc.collect()
    run_graph(tb, tb.nodes)
    assert len(tb.frames()) == 5

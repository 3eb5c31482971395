"""The channel emulator carries what the air gives, waits for the users, and loses samples as told."""

from __future__ import annotations

import gc
import time

import numpy as np
import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")

import pmt
from gnuradio import blocks, gr
from semair.blocks.channel_emulator import ChannelEmulator
from semair.blocks.frame_transmitter import FrameTransmitter
from semair.blocks.messages import pack
from semair.blocks.user_transmitter import UserTransmitter, draw_active
from semair.blocks.waveforms.access import access_burst
from semair.blocks.waveforms.air import Air
from semair.blocks.waveforms.beacon import beacon
from semair.blocks.waveforms.frame import FrameFormat
from semair.blocks.waveforms.impairments import Impairments
from semair.models.channels import ChannelConfig
from semair.models.uad.preambles import qpsk_preambles

# At 2 kS/s the clock reaches its second second within four frames.
FMT = FrameFormat(
    sample_rate_hz=2000.0,
    n_fft=32,
    cp_samples=4,
    n_used=24,
    sync_repeats=4,
    n_groups=2,
    max_preamble_length=8,
    guard_samples=8,
    frame_samples=1000,
)
GRID = 256
N_FRAMES = 6
TOTAL = N_FRAMES * 1000 // GRID * GRID
POOL = qpsk_preambles(4, 8, np.random.default_rng(1))


def make_air(n_rx: int = 2) -> Air:
    return Air(
        ChannelConfig(kind="rayleigh"),
        Impairments(),
        sample_rate_hz=2000.0,
        centre_frequency_hz=1e9,
        n_rx=n_rx,
        n_users=4,
        noise_power=0.01,
        seed=3,
        block_samples=GRID,
    )


class Flowgraph(gr.top_block):
    """Transmitters, air, and one sink per antenna."""

    def __init__(self, activity: float = 0.5, losses=(), amplitude: float = 1.0, n_rx: int = 2) -> None:
        gr.top_block.__init__(self, "test")
        self.transmitter = FrameTransmitter(FMT, N_FRAMES, amplitude)
        self.users = UserTransmitter(FMT, POOL, activity, (8, 4), seed=2)
        self.emulator = ChannelEmulator(make_air(n_rx), FMT, 1e9, losses)
        self.sinks = [blocks.vector_sink_c() for _ in range(n_rx)]
        self.connect(self.transmitter, self.emulator)
        for port, sink in enumerate(self.sinks):
            self.connect((self.emulator, port), sink)
        self.msg_connect((self.transmitter, "frames"), (self.users, "frames"))
        self.msg_connect((self.users, "bursts"), (self.emulator, "bursts"))
        self.nodes = (self.transmitter, self.users, self.emulator)

    def received(self) -> np.ndarray:
        return np.array([sink.data() for sink in self.sinks], np.complex64)

    def times(self, port: int = 0) -> list[tuple[int, tuple[int, float]]]:
        return [
            (tag.offset, pmt.to_python(tag.value))
            for tag in sorted(self.sinks[port].tags(), key=lambda tag: tag.offset)
            if pmt.eq(tag.key, pmt.intern("rx_time"))
        ]


def directly(activity: float = 0.5) -> np.ndarray:
    """The same air without GNU Radio."""
    air = make_air()
    sent = np.zeros((N_FRAMES, 1000), np.complex64)
    for frame in range(N_FRAMES):
        sent[frame, : FMT.beacon_samples] = beacon(FMT, frame)
        for user in draw_active(4, activity, 2, frame):
            burst = access_burst(FMT, POOL[: (8, 4)[frame % 2], user])
            air.add_burst(int(user), frame * 1000 + FMT.access_start, burst, frame)
    return air.process(sent.reshape(-1)[:TOTAL])


@pytest.mark.parametrize("max_noutput_items", [1, 256, 1024, None])
def test_streams_are_those_of_the_air_whatever_the_scheduler_does(run_graph, max_noutput_items):
    tb = Flowgraph()
    run_graph(tb, tb.nodes, max_noutput_items)
    np.testing.assert_array_equal(tb.received(), directly())
    assert tb.times(0) == tb.times(1) == [(0, (0, 0.0))]


@pytest.mark.parametrize("activity", [0.0, 1.0])
def test_nobody_and_everybody_active(run_graph, activity):
    tb = Flowgraph(activity)
    run_graph(tb, tb.nodes)
    np.testing.assert_array_equal(tb.received(), directly(activity))


def test_first_item_tells_time_rate_and_frequency_on_every_port(run_graph):
    tb = Flowgraph()
    run_graph(tb, tb.nodes)
    for sink in tb.sinks:
        tags = {pmt.symbol_to_string(tag.key): (tag.offset, pmt.to_python(tag.value)) for tag in sink.tags()}
        assert tags == {"rx_time": (0, (0, 0.0)), "rx_rate": (0, 2000.0), "rx_freq": (0, 1e9)}


@pytest.mark.parametrize("max_noutput_items", [256, None])
@pytest.mark.parametrize(
    "losses",
    [
        [(700, 1)],
        [(0, 10)],
        [(250, 12)],  # across the edge of two blocks
        [(256, 256)],  # one whole block
        [(100, 3 * GRID), (2000, 5), (2004, 100)],  # whole blocks and more; overlapping
        [(1990, 30), (3995, 10)],  # across the first and second roll-over of the seconds
        [(TOTAL - 20, 100)],  # at the end
    ],
)
def test_losses_vanish_and_are_tagged(run_graph, losses, max_noutput_items):
    tb = Flowgraph(losses=losses)
    run_graph(tb, tb.nodes, max_noutput_items)
    lost = np.zeros(TOTAL, bool)
    for at, count in losses:
        lost[at : at + count] = True
    np.testing.assert_array_equal(tb.received(), directly()[:, ~lost])
    assert tb.emulator.lost_samples == lost.sum()
    kept = np.flatnonzero(~lost)
    starts = [0, *(np.flatnonzero(np.diff(kept) > 1) + 1)]
    expected = [(int(k), (int(kept[k]) // 2000, kept[k] % 2000 / 2000)) for k in starts]
    assert tb.times(0) == expected
    assert tb.times(1) == expected


def test_everything_lost_still_ends(run_graph):
    tb = Flowgraph(losses=[(0, 10**9)])
    run_graph(tb, tb.nodes)
    assert tb.received().size == 0
    assert tb.times() == []
    assert tb.emulator.lost_samples == TOTAL


@pytest.mark.parametrize("loss", [(-1, 5), (5, 0), (5, -3)])
def test_losses_that_cannot_be_are_refused(loss):
    with pytest.raises(ValueError, match="allowed are counts of 1 or more"):
        ChannelEmulator(make_air(), FMT, 1e9, [loss])


class Fed(gr.top_block):
    """Given samples and tags into an emulator that waits for posted bursts."""

    def __init__(self, samples: np.ndarray, tags, with_users: bool = True) -> None:
        gr.top_block.__init__(self, "test")
        self.source = blocks.vector_source_c(samples.tolist(), False, 1, tags)
        self.emulator = ChannelEmulator(make_air(1), FMT, 1e9, with_users=with_users)
        self.sink = blocks.vector_sink_c()
        self.connect(self.source, self.emulator, self.sink)

    def post(self, fields: dict, vector: np.ndarray | None = None) -> None:
        self.emulator.to_basic_block()._post(pmt.intern("bursts"), pack(fields, vector))


def nobody(frame: int) -> dict:
    return {"frame": frame, "start": 1000 * frame + FMT.access_start, "users": [], "burst_samples": 0}


def test_a_frame_is_held_back_until_its_bursts_are_known(run_graph, make_tag):
    tags = [make_tag(1000 * k, "frame", k) for k in range(3)]
    tb = Fed(np.zeros(3072, np.complex64), tags)
    tb.post(nobody(0))
    deadline = time.monotonic() + 0.3
    run_graph(tb, (tb.emulator,), until=lambda: time.monotonic() > deadline)
    # Whole blocks before the start of frame 1, and no sample of it.
    assert len(tb.sink.data()) == 1000 // GRID * GRID


def test_without_users_nothing_is_waited_for(run_graph, make_tag):
    tb = Fed(np.zeros(3072, np.complex64), [make_tag(0, "frame", 0)], with_users=False)
    run_graph(tb, (tb.emulator,))
    assert len(tb.sink.data()) == 3072


def test_not_a_number_reaches_the_user(run_graph):
    samples = np.zeros(2048, np.complex64)
    samples[1000] = np.nan
    tb = Fed(samples, [], with_users=False)
    with pytest.raises(ValueError, match="NaN"):
        run_graph(tb, (tb.emulator,))


def test_burst_of_an_unknown_user_reaches_the_user(run_graph, make_tag):
    tb = Fed(np.zeros(2048, np.complex64), [make_tag(0, "frame", 0)])
    tb.post({**nobody(0), "users": [9], "burst_samples": 4}, np.ones(4, np.complex64))
    with pytest.raises(ValueError, match=r"user=9.*0 to 3"):
        run_graph(tb, (tb.emulator,))


def test_late_burst_reaches_the_user(run_graph):
    tb = Fed(np.zeros(2048, np.complex64), [])
    tb.emulator.air.process(np.zeros(1024, np.complex64))
    tb.post({**nobody(0), "users": [1], "burst_samples": 4}, np.ones(4, np.complex64))
    with pytest.raises(ValueError, match=r"burst of user 1 in frame 0 is late"):
        run_graph(tb, (tb.emulator,), until=lambda: False)


def test_built_in_a_function_it_survives_garbage_collection(run_graph):
    def build() -> Flowgraph:
        return Flowgraph()

    tb = build()
    gc.collect()
    run_graph(tb, tb.nodes)
    assert tb.received().shape == (2, TOTAL)

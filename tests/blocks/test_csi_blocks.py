"""The blocks of CSI feedback are their functions, at any schedule, and together they carry codes from users to base."""

from __future__ import annotations

import gc

import numpy as np
import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")

import pmt
from gnuradio import blocks, gr
from semair.blocks.channel_emulator import ChannelEmulator
from semair.blocks.csi_decoder import CsiDecoder
from semair.blocks.downlink_emulator import DownlinkEmulator
from semair.blocks.feedback_receiver import FeedbackReceiver
from semair.blocks.feedback_transmitter import FeedbackTransmitter
from semair.blocks.frame_synchroniser import FrameSynchroniser
from semair.blocks.message_collector import MessageCollector
from semair.blocks.messages import fields_of, pack, unpack
from semair.blocks.runtime import time_value
from semair.blocks.sounding_receiver import SoundingReceiver
from semair.blocks.sounding_transmitter import SoundingTransmitter
from semair.blocks.waveforms.air import Air
from semair.blocks.waveforms.beacon import beacon
from semair.blocks.waveforms.csi_frame import CsiFrame, CsiSlots
from semair.blocks.waveforms.downlink import Downlink, DownlinkPaths
from semair.blocks.waveforms.feedback import PartFlag, feedback_burst, receive_feedback
from semair.blocks.waveforms.frame import FrameFormat
from semair.blocks.waveforms.impairments import Impairments
from semair.blocks.waveforms.sounding import estimate_csi, sounding_slot
from semair.models.channels import ChannelConfig

FMT = FrameFormat(
    sample_rate_hz=2e6,
    n_fft=64,
    cp_samples=12,
    n_used=32,
    n_groups=4,
    max_preamble_length=1,
    guard_samples=32,
    frame_samples=2048,
)
LENGTH, N_ANTENNAS, N_USERS, N_FRAMES = 6, 3, 2, 12
FRAME = CsiFrame(
    FMT,
    CsiSlots(n_users=N_USERS, n_subcarriers=32, n_taps=8, lead_taps=2.0, comb=2, feedback_length=LENGTH),
    N_ANTENNAS,
)
GRID = 256
SPAN = FRAME.used_samples - FRAME.feedback_start


class FirstTaps:
    """A codec that sends as many numbers of the CSI as there is room for."""

    def encode(self, csi: np.ndarray, length: int, snr_db: float) -> np.ndarray:
        word = csi.reshape(-1)[8 : 8 + length]
        return (word / np.sqrt(np.mean(np.abs(word) ** 2))).astype(np.complex64)

    def decode(
        self, received: np.ndarray, snr_db: np.ndarray | float, announced_db: float
    ) -> tuple[np.ndarray, np.ndarray]:
        csi = np.zeros((len(received), 8 * N_ANTENNAS), np.complex64)
        csi[:, 8 : 8 + received.shape[1]] = received
        return csi.reshape(len(received), 8, N_ANTENNAS), received.any(axis=1)


def paths(frame: int) -> DownlinkPaths:
    rng = np.random.default_rng([7, frame])
    gains = rng.standard_normal((N_USERS, 3, N_ANTENNAS, 2)) @ np.array([1, 1j]) / np.sqrt(6)
    return DownlinkPaths(np.sort(rng.uniform(0, 4, (N_USERS, 3))), gains.astype(np.complex64))


def make_downlink(noise_power: float = 1e-3, level: str = "perfect") -> Downlink:
    return Downlink(
        Impairments.preset(level),
        paths,
        sample_rate_hz=FMT.sample_rate_hz,
        centre_frequency_hz=1e9,
        n_tx=N_ANTENNAS,
        n_users=N_USERS,
        noise_power=noise_power,
        frame_samples=FMT.frame_samples,
        active_samples=FRAME.downlink_samples,
        seed=1,
        block_samples=GRID,
    )


def transmitted(n_frames: int, n_samples: int) -> np.ndarray:
    """What the base station sends; (N_ANTENNAS, n_samples)."""
    tx = np.zeros((N_ANTENNAS, max(n_samples, n_frames * FMT.frame_samples)), np.complex64)
    for frame in range(n_frames):
        start = frame * FMT.frame_samples
        tx[0, start : start + FMT.beacon_samples] = beacon(FMT, frame)
        tx[:, start + FRAME.sounding_start : start + FRAME.downlink_samples] = sounding_slot(FRAME)
    return tx[:, :n_samples]


class Collected:
    """Messages of a port, in order."""

    def __init__(self, top_block, node, port: str) -> None:
        self.items: list[tuple[dict, np.ndarray]] = []
        self.block = MessageCollector(lambda fields, vector: self.items.append((fields, vector)))
        top_block.msg_connect((node, port), (self.block, "in"))


class Base(gr.top_block):
    """The transmitter alone."""

    def __init__(self, n_frames: int, tail_samples: int) -> None:
        gr.top_block.__init__(self, "test")
        self.transmitter = SoundingTransmitter(FRAME, n_frames, tail_samples=tail_samples)
        self.sinks = [blocks.vector_sink_c() for _ in range(N_ANTENNAS)]
        for port, sink in enumerate(self.sinks):
            self.connect((self.transmitter, port), sink)
        self.frames = Collected(self, self.transmitter, "frames")


@pytest.mark.parametrize("max_noutput_items", [4096, None])
def test_transmitter_sends_beacon_and_sounding(run_graph, max_noutput_items):
    tb = Base(5, 3000)
    run_graph(tb, (tb.transmitter,), max_noutput_items)
    sent = np.array([sink.data() for sink in tb.sinks], np.complex64)
    np.testing.assert_array_equal(sent, transmitted(5, sent.shape[1]))
    assert sent.shape[1] >= 5 * FMT.frame_samples
    starts = [(frame, frame * FMT.frame_samples) for frame in range(5)]
    tags = [(tag.offset, pmt.to_long(tag.value)) for tag in tb.sinks[0].tags()]
    assert sorted(tags) == [(start, frame) for frame, start in starts]
    # Messages that were still under way when the stream ended are lost.
    told = [(fields["frame"], fields["start"]) for fields, _ in tb.frames.items]
    assert told == starts[: len(told)]


class Air1(gr.top_block):
    """Transmitter and downlink."""

    def __init__(self, level: str) -> None:
        gr.top_block.__init__(self, "test")
        self.transmitter = SoundingTransmitter(FRAME, 4, tail_samples=8192)
        self.emulator = DownlinkEmulator(make_downlink(level=level), 1e9)
        self.sinks = [blocks.vector_sink_c() for _ in range(N_USERS)]
        for port in range(N_ANTENNAS):
            self.connect((self.transmitter, port), (self.emulator, port))
        for port, sink in enumerate(self.sinks):
            self.connect((self.emulator, port), sink)


@pytest.mark.parametrize("max_noutput_items", [4096, None])
@pytest.mark.parametrize("level", ["perfect", "wireless"])
def test_downlink_is_its_air_whatever_the_scheduler_does(run_graph, level, max_noutput_items):
    tb = Air1(level)
    gc.collect()
    run_graph(tb, (tb.transmitter, tb.emulator), max_noutput_items)
    received = np.array([sink.data() for sink in tb.sinks], np.complex64)
    air = make_downlink(level=level)
    np.testing.assert_array_equal(received, air.process(transmitted(4, received.shape[1])))
    for user, sink in enumerate(tb.sinks):
        tags = {(pmt.symbol_to_string(tag.key), tag.offset) for tag in sink.tags()}
        overs = {("over", air.over(frame, user)) for frame in range(4)}
        assert tags == {("rx_time", 0), ("rx_rate", 0), ("rx_freq", 0)} | overs


def frame_fields(frame: int, sample_time: int) -> dict:
    return {
        "frame": frame,
        "counted": False,
        "fraction": 0.25,
        "cfo_hz": 30.0,
        "metric": 0.9,
        "snr_db": 11.0,
        "sample_time": sample_time,
        "heard_ns": 5,
    }


class Vectors(gr.top_block):
    """Vectors into a block, with tags on the first port."""

    def __init__(self, signal: np.ndarray, tags, node) -> None:
        gr.top_block.__init__(self, "test")
        self.sources = [
            blocks.vector_source_c(row.tolist(), False, 1, list(tags) if port == 0 else [])
            for port, row in enumerate(signal)
        ]
        self.node = node
        for port, source in enumerate(self.sources):
            self.connect(source, (node, port))


@pytest.mark.parametrize("max_noutput_items", [100, None])
def test_sounding_receiver_estimates_what_its_function_does(run_graph, make_tag, max_noutput_items, rng):
    signal = rng.standard_normal((1, 9000, 2)).astype(np.float32).view(np.complex64)[..., 0]
    starts = [100, 100 + 2048, 100 + 2 * 2048]
    tags = [make_tag(start, "frame", pmt.car(pack(frame_fields(k, start)))) for k, start in enumerate(starts)]
    tags += [make_tag(start + 2000, "over", pmt.from_long(k)) for k, start in enumerate(starts)]
    # Samples are missing inside the slot of frame 1.
    tags.append(make_tag(starts[1] + FRAME.sounding_start + 5, "rx_time", time_value(99_999, FMT.sample_rate_hz)))
    tags.append(make_tag(0, "rx_time", time_value(0, FMT.sample_rate_hz)))
    tb = Vectors(signal, sorted(tags, key=lambda tag: tag.offset), SoundingReceiver(FRAME, 1))
    heard, dropped = Collected(tb, tb.node, "estimates"), Collected(tb, tb.node, "dropped")
    run_graph(tb, (tb.node,), max_noutput_items, until=lambda: len(heard.items) == 5 and dropped.items)
    overs = [fields["frame"] for fields, _ in heard.items if fields["over"]]
    assert overs == [0, 1, 2]
    estimates = {fields["frame"]: (fields, vector) for fields, vector in heard.items if not fields["over"]}
    assert set(estimates) == {0, 2}
    assert [fields["frame"] for fields, _ in dropped.items] == [1]
    for frame, (fields, vector) in estimates.items():
        first = starts[frame] + FRAME.sounding_start
        expected = estimate_csi(signal[0, first : first + FRAME.sounding_samples], FRAME, 0.25, 30.0)
        np.testing.assert_array_equal(vector, expected.delay_angle.reshape(-1))
        assert fields["user"] == 1
        assert fields["cfo_hz"] == 30.0 + expected.cfo_hz
        assert fields["noise_power"] == expected.noise_power


def handled(node, port: str, message) -> None:
    getattr(node, {"frames": "handle_frame", "estimates": "handle_estimate"}[port])(message)
    if node.failure is not None:
        raise node.failure


class Published(FeedbackTransmitter):
    """Keeps what it would publish: handlers are called without a flowgraph."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.out: list[tuple[str, dict, np.ndarray]] = []

    def message_port_pub(self, port, message) -> None:
        self.out.append((pmt.symbol_to_string(port), *unpack(message)))


def estimate(frame: int, user: int, csi: np.ndarray | None):
    fields = {"frame": frame, "user": user, "over": csi is None}
    return pack(fields, None if csi is None else csi.reshape(-1))


def test_users_answer_together_and_who_heard_nothing_stays_silent(rng):
    node = Published(FRAME, FirstTaps(), 10.0)
    csi = rng.standard_normal((8, N_ANTENNAS, 2)).astype(np.float32).view(np.complex64)[..., 0]
    handled(node, "frames", pack({"frame": 3, "start": 6144}))
    handled(node, "estimates", estimate(3, 1, csi))
    handled(node, "estimates", estimate(3, 0, None))
    assert [port for port, *_ in node.out] == ["sent"]
    handled(node, "estimates", estimate(3, 1, None))
    ports = {port: (fields, vector) for port, fields, vector in node.out}
    word = FirstTaps().encode(csi, LENGTH, 10.0)
    fields, vector = ports["bursts"]
    assert fields["users"] == [1]
    assert fields["start"] == 6144 + FRAME.feedback_start
    assert fields["offsets"] == [FRAME.part_samples]
    np.testing.assert_array_equal(vector, feedback_burst(FRAME, word))
    np.testing.assert_array_equal(ports["sent"][1], np.concatenate([csi.reshape(-1), word]))
    assert ports["truth"][0]["users"] == [1]


def test_a_frame_that_nobody_heard_goes_out_empty():
    node = Published(FRAME, FirstTaps(), 10.0)
    for user in range(N_USERS):
        handled(node, "estimates", estimate(0, user, None))
    assert node.out == []
    handled(node, "frames", pack({"frame": 0, "start": 0}))
    bursts = [fields for port, fields, _ in node.out if port == "bursts"]
    assert [fields["users"] for fields in bursts] == [[]]


def test_an_estimate_of_nothing_is_not_sent():
    node = Published(FRAME, FirstTaps(), 10.0)
    handled(node, "estimates", estimate(0, 0, np.zeros((8, N_ANTENNAS), np.complex64)))
    assert node.out == []


def slots_of(signal, tags, run_graph, max_noutput_items=None, full_scale=None):
    node = FeedbackReceiver(FRAME, full_scale)
    tb = Vectors(signal, tags, node)
    tb.sink = blocks.vector_sink_c(node.vector_items)
    tb.connect(node, tb.sink)
    run_graph(tb, (node,), max_noutput_items)
    vectors = np.array(tb.sink.data(), np.complex64).reshape(-1, node.vector_items)
    told = [fields_of(tag.value) for tag in sorted(tb.sink.tags(), key=lambda tag: tag.offset)]
    assert len(told) == len(vectors)
    return dict(zip([fields["frame"] for fields in told], zip(told, vectors, strict=True), strict=True)), node


@pytest.mark.parametrize("max_noutput_items", [1, None])
def test_feedback_receiver_gives_what_its_function_does(run_graph, make_tag, max_noutput_items, rng):
    signal = 0.1 * rng.standard_normal((N_ANTENNAS, 20 * 2048, 2)).astype(np.float32).view(np.complex64)[..., 0]
    starts = [50 + 2048 * k for k in range(15)]
    for k, start in enumerate(starts):
        for user in range(N_USERS):
            if (k + user) % 3:
                burst = feedback_burst(FRAME, rng.standard_normal((LENGTH, 2)) @ np.array([1, 1j]) / np.sqrt(2))
                begin = start + FRAME.part_start(user)
                signal[:, begin : begin + len(burst)] += burst
    tags = [make_tag(start, "frame", pmt.car(pack(frame_fields(k, start)))) for k, start in enumerate(starts)]
    slots, node = slots_of(signal, tags, run_graph, max_noutput_items)
    assert sorted(slots) == list(range(15))
    assert node.received == 15
    for k, start in enumerate(starts):
        fields, vector = slots[k]
        window = signal[:, start + FRAME.feedback_start : start + FRAME.used_samples]
        expected = receive_feedback(window, FRAME, 0.25, 30.0)
        np.testing.assert_array_equal(vector, expected.words.reshape(-1))
        np.testing.assert_array_equal(fields["word_snr_db"], expected.snr_db)
        assert fields["flags"] == expected.flags.tolist()
        assert fields["noise_power"] == expected.noise_power
        silent = [bool(flag & PartFlag.SILENT) for flag in fields["flags"]]
        assert silent == [(k + user) % 3 == 0 for user in range(N_USERS)]


def test_feedback_receiver_drops_slots_with_missing_samples(run_graph, make_tag, rng):
    signal = rng.standard_normal((N_ANTENNAS, 12288, 2)).astype(np.float32).view(np.complex64)[..., 0]
    starts = [50, 50 + 2048, 50 + 4096]
    tags = [make_tag(start, "frame", pmt.car(pack(frame_fields(k, start)))) for k, start in enumerate(starts)]
    tags += [make_tag(0, "rx_time", time_value(0, FMT.sample_rate_hz))]
    tags += [make_tag(starts[1] + FRAME.feedback_start + 9, "rx_time", time_value(77_777, FMT.sample_rate_hz))]
    slots, node = slots_of(signal, sorted(tags, key=lambda tag: tag.offset), run_graph)
    assert sorted(slots) == [0, 2]
    assert node.dropped == 1


def test_tags_of_no_synchroniser_end_the_flowgraph_with_an_error(run_graph, make_tag):
    signal = np.zeros((N_ANTENNAS, 8192), np.complex64)
    with pytest.raises(ValueError, match="frame"):
        slots_of(signal, [make_tag(10, "frame", pmt.from_long(3))], run_graph)


class Decoding(gr.top_block):
    """Slot vectors into the decoder."""

    def __init__(self, vectors: np.ndarray, tags) -> None:
        gr.top_block.__init__(self, "test")
        self.source = blocks.vector_source_c(vectors.reshape(-1).tolist(), False, vectors.shape[1], list(tags))
        self.decoder = CsiDecoder(FRAME, FirstTaps(), 10.0)
        self.connect(self.source, self.decoder)
        self.out = Collected(self, self.decoder, "decisions")


def test_decoder_leaves_out_users_that_were_not_received(run_graph, make_tag, rng):
    vectors = rng.standard_normal((3, N_USERS * LENGTH, 2)).astype(np.float32).view(np.complex64)[..., 0]
    flags = [[0, 0], [int(PartFlag.NOT_FINITE), 0], [int(PartFlag.SATURATED), int(PartFlag.SILENT)]]
    vectors[1, 0] = np.nan
    tags = [
        make_tag(
            k,
            "slot",
            pmt.car(pack({**frame_fields(k, 0), "flags": flags[k], "word_snr_db": np.array([9.0, -np.inf])})),
        )
        for k in range(3)
    ]
    tb = Decoding(vectors, tags)
    run_graph(tb, (tb.decoder,), until=lambda: len(tb.out.items) == 3)
    assert [fields["users"] for fields, _ in tb.out.items] == [[0, 1], [1], [0]]
    for k, (fields, values) in enumerate(tb.out.items):
        words = values[: N_USERS * LENGTH].reshape(N_USERS, LENGTH)
        csi = values[N_USERS * LENGTH :].reshape(N_USERS, 8, N_ANTENNAS)
        np.testing.assert_array_equal(csi, FirstTaps().decode(words, 0.0, 0.0)[0])
        for user in fields["users"]:
            np.testing.assert_array_equal(words[user], vectors[k].reshape(N_USERS, LENGTH)[user])
        assert np.isfinite(values).all()


def test_decoder_refuses_vectors_without_a_slot(run_graph):
    tb = Decoding(np.zeros((1, N_USERS * LENGTH), np.complex64), [])
    with pytest.raises(ValueError, match="feedback receiver"):
        run_graph(tb, (tb.decoder,))


class Link(gr.top_block):
    """All of it."""

    def __init__(self, n_frames: int, noise_power: float = 1e-4) -> None:
        gr.top_block.__init__(self, "test")
        self.air = Air(
            ChannelConfig(kind="rayleigh"),
            Impairments(),
            sample_rate_hz=FMT.sample_rate_hz,
            centre_frequency_hz=1e9,
            n_rx=N_ANTENNAS,
            n_users=N_USERS,
            noise_power=noise_power,
            seed=4,
            block_samples=GRID,
        )
        self.transmitter = SoundingTransmitter(FRAME, n_frames, tail_samples=60_000)
        self.transmitter.set_min_output_buffer(0, 1 << 17)
        self.downlink = DownlinkEmulator(make_downlink(), 1e9)
        self.users = FeedbackTransmitter(FRAME, FirstTaps(), 10.0)
        self.emulator = ChannelEmulator(self.air, FMT, 1e9)
        self.synchroniser = FrameSynchroniser(FMT, N_ANTENNAS, 2e3, chunk_samples=4096)
        self.receiver = FeedbackReceiver(FRAME)
        self.decoder = CsiDecoder(FRAME, FirstTaps(), 10.0)
        self.nodes = [self.transmitter, self.downlink, self.users, self.emulator, self.synchroniser, self.receiver]
        self.nodes.append(self.decoder)
        for port in range(N_ANTENNAS):
            self.connect((self.transmitter, port), (self.downlink, port))
            self.connect((self.emulator, port), (self.synchroniser, port))
            self.connect((self.synchroniser, port), (self.receiver, port))
        self.connect((self.transmitter, 0), self.emulator)
        self.connect(self.receiver, self.decoder)
        for user in range(N_USERS):
            chain = FrameSynchroniser(FMT, 1, 2e3, chunk_samples=4096), SoundingReceiver(FRAME, user)
            self.nodes += chain
            self.connect((self.downlink, user), *chain)
            self.msg_connect((chain[1], "estimates"), (self.users, "estimates"))
        self.msg_connect((self.transmitter, "frames"), (self.users, "frames"))
        self.msg_connect((self.users, "bursts"), (self.emulator, "bursts"))
        self.sent = Collected(self, self.users, "sent")
        self.decisions = Collected(self, self.decoder, "decisions")


def test_what_users_send_arrives(run_graph):
    tb = Link(N_FRAMES)
    gc.collect()
    run_graph(tb, tuple(tb.nodes), until=lambda: len(tb.decisions.items) == N_FRAMES)
    sent = {(fields["frame"], fields["user"]): vector[-LENGTH:] for fields, vector in tb.sent.items}
    assert sorted(fields["frame"] for fields, _ in tb.decisions.items) == list(range(N_FRAMES))
    errors = []
    for fields, values in tb.decisions.items:
        words = values[: N_USERS * LENGTH].reshape(N_USERS, LENGTH)
        heard = [user for user in range(N_USERS) if (fields["frame"], user) in sent]
        assert fields["users"] == heard
        errors += [np.mean(np.abs(words[user] - sent[fields["frame"], user]) ** 2) for user in heard]
    # Fading may hide a beacon from a user now and then.
    assert len(errors) > N_FRAMES
    # So few subcarriers leave a channel that lies between two taps badly known at the edges of the band.
    assert 10 * np.log10(np.median(errors)) < -8

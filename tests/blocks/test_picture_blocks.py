"""The blocks of the picture downlink are their functions, at any schedule, and together they bring users pictures."""

from __future__ import annotations

import gc

import numpy as np
import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")

import pmt
from gnuradio import blocks, gr
from semair.blocks.downlink_emulator import DownlinkEmulator
from semair.blocks.frame_synchroniser import FrameSynchroniser
from semair.blocks.message_collector import MessageCollector
from semair.blocks.messages import pack
from semair.blocks.picture_decoder import PictureDecoder
from semair.blocks.picture_receiver import PictureReceiver
from semair.blocks.picture_transmitter import PictureTransmitter, Served
from semair.blocks.runtime import time_value
from semair.blocks.waveforms.beacon import beacon
from semair.blocks.waveforms.downlink import Downlink, DownlinkPaths
from semair.blocks.waveforms.frame import FrameFormat
from semair.blocks.waveforms.impairments import Impairments
from semair.blocks.waveforms.picture_frame import (
    PictureFrame,
    PictureSlots,
    channels_at,
    on_data_subcarriers,
    picture_slot,
    receive_slot,
)

FMT = FrameFormat(
    sample_rate_hz=2e6,
    n_fft=64,
    cp_samples=12,
    n_used=32,
    n_groups=4,
    max_preamble_length=1,
    guard_samples=32,
    frame_samples=2560,
)
N_ANTENNAS, N_USERS, N_FRAMES, SIDE = 2, 2, 10, 4
FRAME = PictureFrame(FMT, PictureSlots(n_streams=2, data_symbols=2), N_ANTENNAS, N_USERS, 32)
SPAN = FRAME.used_samples - FRAME.grant_start
WIDTH = 4 * 32


class Levels:
    """A code that puts a pixel's value into the amplitude of a cell, behind zero forcing."""

    def transmit(self, pictures, csi, csi_nmse_db, snr_db):
        n = len(pictures)
        assert csi.shape == (n, 32, N_ANTENNAS)
        symbols = np.zeros((n, 2 * 32))
        symbols[:, : SIDE * SIDE * 3] = pictures.reshape(n, -1) / 255 + 0.5
        v = np.linalg.pinv(csi.transpose(1, 0, 2))
        pilots = np.exp(-2j * np.pi / n * np.outer(np.arange(n), np.arange(n)))
        reference = np.einsum("sak,kq->qsa", v, pilots)
        data = np.einsum("sak,kqs->qsa", v, symbols.reshape(n, 2, 32))
        return reference.astype(np.complex64), data.astype(np.complex64)

    def receive(self, reference, data, noise_power, user, size):
        n = len(reference)
        own = np.exp(2j * np.pi / n * user * np.arange(n)) @ reference / n
        values = (data / own).real.reshape(-1)[: SIDE * SIDE * 3]
        return (255 * (values - 0.5).clip(0, 1) + 0.5).astype(np.uint8).reshape(SIDE, SIDE, 3), 12.5


def paths(frame: int) -> DownlinkPaths:
    rng = np.random.default_rng([7, frame])
    gains = np.zeros((N_USERS, 2, N_ANTENNAS), complex)
    gains[:, 0] = np.array([[1, 1], [1, -1]]) * np.exp(2j * np.pi * rng.random((N_USERS, 1)))
    gains[:, 1] = 0.2 * (rng.standard_normal((N_USERS, N_ANTENNAS, 2)) @ np.array([1, 1j]))
    return DownlinkPaths(np.tile([0.0, 2.5], (N_USERS, 1)), gains.astype(np.complex64))


def serve(frame: int) -> Served:
    """Both users, one, the other, nobody, and again."""
    users = ((0, 1), (0,), (1,), ())[frame % 4]
    rng = np.random.default_rng([8, frame])
    pictures = rng.integers(0, 256, (len(users), SIDE, SIDE, 3), np.uint8)
    if not users:
        return Served()
    # On the subcarriers around the carrier; data lie beside it.
    h = np.zeros((N_USERS, 32, N_ANTENNAS), np.complex64)
    at_data = channels_at(FRAME, *vars(paths(frame)).values())
    h[:, :16], h[:, 17:] = at_data[:, :16], at_data[:, 16:-1]
    return Served(users, pictures, h[list(users)], -40.0)


def make_downlink(noise_power: float = 1e-5, level: str = "perfect") -> Downlink:
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
        block_samples=256,
    )


def transmitted(n_frames: int, n_samples: int) -> np.ndarray:
    """What the base station sends; (N_ANTENNAS, n_samples)."""
    tx = np.zeros((N_ANTENNAS, max(n_samples, n_frames * FMT.frame_samples)), np.complex64)
    nothing = np.empty((0, 32, N_ANTENNAS), np.complex64)
    for frame in range(n_frames):
        start, served = frame * FMT.frame_samples, serve(frame)
        parts = (nothing, nothing)
        if served.users:
            parts = Levels().transmit(served.pictures, on_data_subcarriers(served.csi), -40, 10)
        tx[0, start : start + FMT.beacon_samples] = 0.5 * beacon(FMT, frame)
        tx[:, start + FRAME.grant_start : start + FRAME.downlink_samples] = picture_slot(
            FRAME, served.users, *parts, grant_amplitude=0.5
        )
    return tx[:, :n_samples]


class Collected:
    """Messages of a port, in order."""

    def __init__(self, top_block, node, port: str) -> None:
        self.items: list[tuple[dict, np.ndarray]] = []
        self.block = MessageCollector(lambda fields, vector: self.items.append((fields, vector)))
        top_block.msg_connect((node, port), (self.block, "in"))


class Base(gr.top_block):
    """The transmitter alone."""

    def __init__(self, n_frames: int, tail_samples: int, serve=serve) -> None:
        gr.top_block.__init__(self, "test")
        self.transmitter = PictureTransmitter(FRAME, Levels(), serve, (SIDE, SIDE), 10.0, n_frames, 0.5, tail_samples)
        self.sinks = [blocks.vector_sink_c() for _ in range(N_ANTENNAS)]
        for port, sink in enumerate(self.sinks):
            self.connect((self.transmitter, port), sink)
        self.frames = Collected(self, self.transmitter, "frames")


@pytest.mark.parametrize("max_noutput_items", [4096, None])
def test_transmitter_sends_beacon_grant_and_pictures(run_graph, max_noutput_items):
    tb = Base(N_FRAMES, 3000)
    gc.collect()
    run_graph(tb, (tb.transmitter,), max_noutput_items)
    sent = np.array([sink.data() for sink in tb.sinks], np.complex64)
    np.testing.assert_array_equal(sent, transmitted(N_FRAMES, sent.shape[1]))
    assert sent.shape[1] >= N_FRAMES * FMT.frame_samples
    tags = [(tag.offset, pmt.to_long(tag.value)) for tag in tb.sinks[0].tags()]
    assert sorted(tags) == [(frame * FMT.frame_samples, frame) for frame in range(N_FRAMES)]
    # Messages that were still under way when the stream ended are lost.
    told = [(fields["frame"], fields["start"], tuple(fields["users"])) for fields, _ in tb.frames.items]
    wanted = [(frame, frame * FMT.frame_samples, serve(frame).users) for frame in range(N_FRAMES)]
    assert told and told == wanted[: len(told)]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (Served((5,), np.zeros((1, 4, 4, 3), np.uint8), np.ones((1, 32, 2), np.complex64)), "users 0 to 1"),
        (Served((0,), np.zeros((2, 4, 4, 3), np.uint8), np.ones((1, 32, 2), np.complex64)), "pictures have shape"),
        (Served((1, 0), np.zeros((2, 4, 4, 3), np.uint8), np.ones((2, 32, 2), np.complex64)), "ascending"),
    ],
)
def test_a_frame_that_cannot_be_made_stops_the_transmitter_with_its_error(run_graph, wrong, text):
    tb = Base(3, 0, lambda frame: wrong)
    with pytest.raises(ValueError, match=text):
        run_graph(tb, (tb.transmitter,))


class User(gr.top_block):
    """A user's receiver behind tagged samples."""

    def __init__(self, samples: np.ndarray, tags: list, user: int = 0) -> None:
        gr.top_block.__init__(self, "test")
        self.source = blocks.vector_source_c(samples.tolist(), False, 1, tags)
        self.receiver = PictureReceiver(FRAME, user)
        self.sink = blocks.vector_sink_c(WIDTH)
        self.connect(self.source, self.receiver, self.sink)
        self.skipped = Collected(self, self.receiver, "skipped")


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
        "tagged_ns": 6,
    }


@pytest.mark.parametrize("max_noutput_items", [1, 64, None])
def test_receiver_puts_out_the_frames_of_its_user(run_graph, make_tag, max_noutput_items):
    rng = np.random.default_rng(1)
    samples = transmitted(8, 8 * FMT.frame_samples + 5000).sum(axis=0)
    samples += 1e-3 * (rng.standard_normal((len(samples), 2)) @ np.array([1, 1j])).astype(np.complex64)
    # Of frame 4, which serves both, samples are missing.
    lost_at = 4 * FMT.frame_samples + FRAME.reference_start + 10
    tags = [make_tag(0, "rx_time", time_value(0, FMT.sample_rate_hz))]
    tags += [make_tag(lost_at, "rx_time", time_value(lost_at + 7, FMT.sample_rate_hz))]
    for frame in range(8):
        start = frame * FMT.frame_samples
        tags.append(make_tag(start, "frame", pmt.car(pack(frame_fields(frame, start)))))
    tb = User(samples, tags, user=1)
    run_graph(tb, (tb.receiver,), max_noutput_items)
    got = np.array(tb.sink.data(), np.complex64).reshape(-1, WIDTH)
    served = [frame for frame in range(8) if 1 in serve(frame).users and frame != 4]
    assert len(got) == len(served)
    for frame, vector in zip(served, got, strict=True):
        start = frame * FMT.frame_samples + FRAME.grant_start
        wanted = receive_slot(samples[start : start + SPAN], FRAME, 0.25, 30.0)
        cells = np.concatenate([wanted.reference, wanted.data]).reshape(-1)
        np.testing.assert_array_equal(vector[: len(cells)], cells)
        assert not vector[len(cells) :].any()
    told = {fields["frame"]: fields["reason"] for fields, _ in tb.skipped.items}
    assert told[4] == "samples were lost inside the slot" and told[1] == told[3] == "not served"
    assert (tb.receiver.received, tb.receiver.dropped, tb.receiver.unserved, tb.receiver.refused) == (3, 1, 4, 0)
    slots = [tag for tag in tb.sink.tags() if pmt.symbol_to_string(tag.key) == "slot"]
    assert [pmt.to_long(pmt.dict_ref(tag.value, pmt.intern("stream"), pmt.PMT_NIL)) for tag in slots] == [1, 0, 0]


def test_a_grant_in_noise_is_told_as_not_read(run_graph, make_tag):
    rng = np.random.default_rng(2)
    samples = (rng.standard_normal((6000, 2)) @ np.array([1, 1j])).astype(np.complex64)
    tb = User(samples, [make_tag(0, "frame", pmt.car(pack(frame_fields(3, 0))))])
    run_graph(tb, (tb.receiver,))
    assert [(fields["frame"], fields["reason"]) for fields, _ in tb.skipped.items] == [(3, "grant not read")]
    assert tb.receiver.refused == 1


def test_a_vector_without_tag_stops_the_decoder_with_its_error(run_graph):
    tb = gr.top_block()
    tb.source = blocks.vector_source_c([1.0] * WIDTH, False, WIDTH)
    tb.decoder = PictureDecoder(FRAME, Levels(), (SIDE, SIDE))
    tb.connect(tb.source, tb.decoder)
    with pytest.raises(ValueError, match="carries no `slot` tag"):
        run_graph(tb, (tb.decoder,))


class Whole(gr.top_block):
    """Base station, air, and every user."""

    def __init__(self, level: str) -> None:
        gr.top_block.__init__(self, "test")
        self.transmitter = PictureTransmitter(
            FRAME, Levels(), serve, (SIDE, SIDE), 10.0, N_FRAMES, 0.5, tail_samples=6 * FMT.frame_samples + 32768
        )
        self.emulator = DownlinkEmulator(make_downlink(level=level), 1e9)
        self.nodes = [self.transmitter, self.emulator]
        for port in range(N_ANTENNAS):
            self.connect((self.transmitter, port), (self.emulator, port))
        self.pictures, self.skipped = [], []
        for user in range(N_USERS):
            synchroniser = FrameSynchroniser(FMT, 1, 5e3, chunk_samples=4096)
            receiver = PictureReceiver(FRAME, user)
            decoder = PictureDecoder(FRAME, Levels(), (SIDE, SIDE))
            self.nodes += [synchroniser, receiver, decoder]
            self.connect((self.emulator, user), synchroniser, receiver, decoder)
            self.pictures.append(Collected(self, decoder, "pictures"))
            self.skipped.append(Collected(self, receiver, "skipped"))


@pytest.mark.parametrize(("level", "tolerance"), [("perfect", 6), ("cabled", 20)])
def test_pictures_arrive_at_the_users_they_are_for(run_graph, level, tolerance):
    tb = Whole(level)
    gc.collect()
    for node in tb.nodes:
        node.warm_up()
    run_graph(tb, tuple(tb.nodes))
    for user in range(N_USERS):
        due = [frame for frame in range(N_FRAMES) if user in serve(frame).users]
        assert [fields["frame"] for fields, _ in tb.pictures[user].items] == due
        for fields, vector in tb.pictures[user].items:
            served = serve(fields["frame"])
            sent = served.pictures[served.users.index(user)]
            assert (fields["rows"], fields["columns"], fields["sinr_db"]) == (SIDE, SIDE, 12.5)
            off = vector.reshape(sent.shape).astype(int) - sent
            # The band's ends are precoded by their neighbours' CSI.
            assert np.abs(off).mean() < tolerance
        told = {fields["frame"]: fields["reason"] for fields, _ in tb.skipped[user].items}
        assert set(told.values()) == {"not served"}
        assert set(told) == set(range(N_FRAMES)) - set(due)

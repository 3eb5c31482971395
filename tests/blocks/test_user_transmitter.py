"""The users' transmitters: who sends is drawn per frame, what they send is their preamble."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")

import pmt
from gnuradio import gr
from semair.blocks.message_collector import MessageCollector
from semair.blocks.messages import pack
from semair.blocks.user_transmitter import UserTransmitter, draw_active
from semair.blocks.waveforms.access import access_burst
from semair.blocks.waveforms.frame import FrameFormat
from semair.models.uad.preambles import qpsk_preambles

FMT = FrameFormat()
LENGTHS = (8, 12, 28)
POOL = qpsk_preambles(20, 28, np.random.default_rng(1))


class Flowgraph(gr.top_block):
    """Users between posted messages and two lists."""

    def __init__(self, activity: float, seed: int = 0) -> None:
        gr.top_block.__init__(self, "test")
        self.users = UserTransmitter(FMT, POOL, activity, LENGTHS, seed)
        self.bursts: list[tuple[dict, np.ndarray]] = []
        self.truth: list[tuple[dict, np.ndarray]] = []
        self.burst_collector = MessageCollector(lambda *message: self.bursts.append(message))
        self.truth_collector = MessageCollector(lambda *message: self.truth.append(message))
        self.msg_connect((self.users, "bursts"), (self.burst_collector, "in"))
        self.msg_connect((self.users, "truth"), (self.truth_collector, "in"))

    def post(self, message) -> None:
        self.users.to_basic_block()._post(pmt.intern("frames"), message)

    def run_frames(self, run_graph, frames: list[int]) -> None:
        for frame in frames:
            self.post(pack({"frame": frame, "start": 4096 * frame}))
        nodes = (self.users, self.burst_collector, self.truth_collector)
        run_graph(self, nodes, until=lambda: min(len(self.bursts), len(self.truth)) == len(frames))


def test_active_users_send_their_preambles_in_the_access_slot(run_graph):
    tb = Flowgraph(activity=0.3, seed=5)
    frames = [0, 1, 2, 3, 500]
    tb.run_frames(run_graph, frames)
    for (burst, vector), (truth, nothing), frame in zip(tb.bursts, tb.truth, frames, strict=True):
        users = draw_active(20, 0.3, 5, frame).tolist()
        length = LENGTHS[frame % 3]
        expected = {
            "frame": frame,
            "start": 4096 * frame + FMT.access_start,
            "length": length,
            "users": users,
        }
        assert truth == expected
        assert burst == {**expected, "burst_samples": FMT.symbols_of_length(length) * FMT.symbol_samples}
        assert len(nothing) == 0
        np.testing.assert_array_equal(
            vector, np.concatenate([access_burst(FMT, POOL[:length, user]) for user in users])
        )


def test_nobody_active_is_told_with_an_empty_vector(run_graph):
    tb = Flowgraph(activity=0.0)
    tb.run_frames(run_graph, [0, 1])
    for fields, vector in tb.bursts:
        assert fields["users"] == []
        assert len(vector) == 0


def test_everybody_active(run_graph):
    tb = Flowgraph(activity=1.0)
    tb.run_frames(run_graph, [4])
    fields, vector = tb.bursts[0]
    assert fields["users"] == list(range(20))
    assert len(vector) == 20 * fields["burst_samples"]


def test_message_that_is_none_reaches_the_user(run_graph):
    tb = Flowgraph(activity=0.5)
    tb.post(pmt.from_long(4))
    with pytest.raises(ValueError, match="expected a PDU"):
        run_graph(tb, (tb.users,), until=lambda: False)


def test_activity_is_drawn_per_frame_and_not_by_order():
    forward = [draw_active(50, 0.2, 3, frame).tolist() for frame in range(20)]
    backward = [draw_active(50, 0.2, 3, frame).tolist() for frame in reversed(range(20))]
    assert forward == backward[::-1]
    assert len({tuple(users) for users in forward}) > 15
    assert forward != [draw_active(50, 0.2, 4, frame).tolist() for frame in range(20)]


def test_users_are_active_with_the_given_probability_on_their_own():
    active = np.zeros((4000, 30), bool)
    for frame in range(4000):
        active[frame, draw_active(30, 0.1, 8, frame)] = True
    # Binomial: sigma of the mean over frames is sqrt(0.09 / 4000) = 0.0047 per user; bound at five sigma.
    np.testing.assert_allclose(active.mean(axis=0), 0.1, atol=0.024)
    # The count over 30 independent users has variance 2.7; the variance estimate scatters by sqrt(2 / 4000) = 2.2 %.
    assert active.sum(axis=1).var() == pytest.approx(2.7, rel=0.12)


@pytest.mark.parametrize("activity", [-0.1, 1.5, float("nan")])
def test_activity_that_is_no_probability_is_refused(activity):
    with pytest.raises(ValueError, match=r"activity=.*allowed 0 to 1"):
        UserTransmitter(FMT, POOL, activity, LENGTHS)


def test_preamble_longer_than_the_slot_is_refused():
    pool = qpsk_preambles(3, 40, np.random.default_rng(1))
    with pytest.raises(ValueError, match="preamble length 29 does not fit the access slot"):
        UserTransmitter(FMT, pool, 0.1, (8, 29))


def test_pool_shorter_than_the_lengths_is_refused():
    with pytest.raises(ValueError, match=r"preambles has shape \(12, 20\).*at least 16"):
        UserTransmitter(FMT, POOL[:12], 0.1, (8, 16))

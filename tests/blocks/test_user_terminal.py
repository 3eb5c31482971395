"""A user terminal sends where the base station listens, on any radio, and stops where it does not know where."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")

from gnuradio import blocks, gr
from semair.blocks.frame_synchroniser import FrameSynchroniser
from semair.blocks.message_collector import MessageCollector
from semair.blocks.messages import pack
from semair.blocks.preamble_search import PreambleSearch
from semair.blocks.runtime import Failsafe, guarded
from semair.blocks.user_terminal import UserTerminal
from semair.blocks.waveforms.access import access_burst
from semair.blocks.waveforms.beacon import beacon, sync_sequence
from semair.blocks.waveforms.frame import FrameFormat
from semair.blocks.waveforms.user_terminal import BeaconTracker, TerminalUsers, draw_active
from semair.models.uad.preambles import qpsk_preambles

FMT = FrameFormat(sample_rate_hz=250e3, frame_samples=6144)
LENGTHS = (8, 12, 28)
PREAMBLES = qpsk_preambles(6, FMT.max_preamble_length, np.random.default_rng(1))


def users(numbers=(0, 1, 2, 3, 4, 5), **options) -> TerminalUsers:
    given = {"activity": 0.5, "preamble_lengths": LENGTHS, "seed": 3, **options}
    return TerminalUsers(FMT, PREAMBLES, list(numbers), **given)


# --- the tracker


def test_tracker_predicts_places_and_offset_of_later_frames():
    rng = np.random.default_rng(5)
    tracker = BeaconTracker(4096, 8.0)
    period, cfo_hz = 4096 * (1 + 3e-6), 812.0
    for frame in range(10, 210):
        place = 1234.5 + frame * period + 0.1 * rng.standard_normal()
        assert tracker.hear(frame, place, cfo_hz + 20 * rng.standard_normal()) == ("first" if frame == 10 else "heard")
        assert tracker.settled == (frame >= 17)
    # The last 80 places or so count. A line through n of them with deviation s, drawn out by k, is off by about
    # s sqrt(1 / n + 12 (k + n / 2)^2 / n^3): for n = 80, k = 30 that is 0.36 s = 0.036, a fifth of what is allowed.
    assert tracker.place(239) == pytest.approx(1234.5 + 239 * period, abs=0.2)
    # Smoothing by 0.1 leaves 20 Hz * sqrt(0.1 / 1.9) = 4.6 Hz.
    assert tracker.cfo_hz == pytest.approx(cfo_hz, abs=20)


def test_tracker_begins_anew_after_jumps_and_losses():
    tracker = BeaconTracker(4096, 8.0, settle_frames=3, lost_frames=4)
    for frame in range(5):
        tracker.hear(frame, 100.0 + 4096 * frame, 0.0)
    assert tracker.settled
    # Frames left out are not lost until too many are.
    assert tracker.hear(8, 100.0 + 4096 * 8, 0.0) == "heard"
    assert tracker.hear(9, 100.0 + 4096 * 9 + 9, 0.0) == "jumped"
    assert not tracker.settled
    assert tracker.hear(10, 100.0 + 4096 * 10 + 9, 0.0) == "heard"
    assert tracker.hear(11, 100.0 + 4096 * 11 + 9, 0.0) == "heard"
    assert tracker.settled
    assert tracker.hear(16, 100.0 + 4096 * 16 + 9, 0.0) == "lost"
    # A base station that was started anew counts from the beginning.
    assert tracker.hear(0, 100.0 + 4096 * 17, 0.0) == "jumped"


# --- the users


def test_a_terminal_sends_the_sum_of_its_active_users():
    some = users([1, 2, 5])
    for frame in range(12):
        active = [user for user in draw_active(6, 0.5, 3, frame) if user in (1, 2, 5)]
        length = LENGTHS[frame % 3]
        sent = some.samples(frame, amplitude=0.5)
        if not active:
            assert sent is None
            continue
        expected = 0.5 * sum(access_burst(FMT, PREAMBLES[:length, user]) for user in active)
        np.testing.assert_allclose(sent, expected, atol=1e-6)


def test_bursts_are_turned_to_the_base_stations_carrier():
    straight, turned = users().samples(1), users().samples(1, cfo_hz=700.0)
    phase = np.exp(2j * np.pi * 700.0 * np.arange(len(straight)) / FMT.sample_rate_hz)
    np.testing.assert_allclose(turned, straight * phase, atol=1e-5)


def test_terminals_together_send_what_all_users_would():
    whole, parts = users(fading="rayleigh"), [users([0, 3], fading="rayleigh"), users([1, 2, 4, 5], fading="rayleigh")]
    for frame in range(8):
        sent = [samples for part in parts if (samples := part.samples(frame)) is not None]
        np.testing.assert_allclose(sum(sent), whole.samples(frame), atol=1e-6)


def test_fading_has_mean_power_one_and_differs_between_frames():
    faded = users([2], activity=1.0, fading="rayleigh", preamble_lengths=(28,))
    plain = users([2], activity=1.0, preamble_lengths=(28,)).samples(0)
    power = [np.mean(np.abs(faded.samples(frame)) ** 2) for frame in range(300)]
    # Mean of 300 x 16 exponential gains: standard deviation 1 / sqrt(4800) = 0.015.
    assert np.mean(power) / np.mean(np.abs(plain) ** 2) == pytest.approx(1, abs=0.06)
    assert len(set(np.round(power, 6))) > 290


def test_nobody_sends_in_quiet_frames_and_unknown_users_are_refused():
    assert [users(quiet_frames=4).samples(frame) is None for frame in range(4)] == [True] * 4
    assert len(users(quiet_frames=4, activity=1.0).active(4)) == 6
    with pytest.raises(ValueError, match="users 0 to 5"):
        users([1, 6])
    with pytest.raises(ValueError, match="given once"):
        users([1, 1])


# --- the block on a radio without a clock


class Ether:
    """A radio that counts what it sends and what it receives apart, hears itself, and the beacon of a base station.

    Transmission is heard `delay` samples later than the received stream counts.
    """

    def __init__(self, delay: int, cfo_hz: float, n_frames: int, restart: int = 0) -> None:
        self.delay = delay
        self.restart = restart
        self.sent = np.zeros(n_frames * FMT.frame_samples + 2 * delay + 200_000, np.complex64)
        self.n_sent = 0
        self.changed = threading.Condition()
        rng = np.random.default_rng(8)
        n = n_frames * FMT.frame_samples
        self.heard = (1e-3 * (rng.standard_normal((n, 2)) @ np.array([1, 1j]))).astype(np.complex64)
        self.first = 2345
        for frame in range(n_frames - 1):
            at = self.begin(frame)
            waveform = beacon(FMT, frame)
            turns = cfo_hz / FMT.sample_rate_hz * (at + np.arange(len(waveform)))
            self.heard[at : at + len(waveform)] += 0.1 * waveform * np.exp(2j * np.pi * turns)

    def begin(self, frame: int) -> int:
        """Where a frame begins; from frame `restart` on all come later than they were due."""
        return self.first + frame * FMT.frame_samples + (700 if 0 < self.restart <= frame else 0)


class Antenna(Failsafe, gr.sync_block):
    """Receives: waits until what it hears of itself was sent. From sample `drop_at` on, `drop` samples are lost."""

    def __init__(self, ether: Ether, drop_at: int = 0, drop: int = 0) -> None:
        gr.sync_block.__init__(self, "antenna", None, [np.complex64])
        self.ether, self.at, self.drop_at, self.drop = ether, 0, drop_at, drop

    @guarded
    def work(self, input_items, output_items):
        ether, out = self.ether, output_items[0]
        n = min(len(out), 2048, len(ether.heard) - self.at)
        if n == 0:
            return -1
        if self.drop and self.at >= self.drop_at:
            self.at, self.drop = self.at + self.drop, 0
        end = self.at + n - ether.delay
        with ether.changed:
            if not ether.changed.wait_for(lambda: ether.n_sent >= end, 0.05):
                return 0
            own = np.zeros(n, np.complex64)
            low = max(self.at - ether.delay, 0)
            if end > low:
                own[n - (end - low) :] = ether.sent[low:end]
            out[:n] = ether.heard[self.at : self.at + n] + own
            self.at += n
            ether.changed.notify_all()
        return n


class Mast(Failsafe, gr.sync_block):
    """Transmits: takes samples up to `ahead` before they are heard. From `slip_at` on, `slip` of silence is put in."""

    def __init__(self, ether: Ether, antenna: Antenna, ahead: int, slip_at: int = 0, slip: int = 0) -> None:
        gr.sync_block.__init__(self, "mast", [np.complex64], None)
        self.ether, self.antenna, self.ahead, self.slip_at, self.slip = ether, antenna, ahead, slip_at, slip

    @guarded
    def work(self, input_items, output_items):
        ether = self.ether
        with ether.changed:
            room = self.antenna.at - ether.delay + self.ahead - ether.n_sent
            n = min(len(input_items[0]), room, len(ether.sent) - ether.n_sent)
            if n <= 0:
                ether.changed.wait(0.02)
                return 0
            if self.slip and ether.n_sent >= self.slip_at:
                ether.n_sent, self.slip = ether.n_sent + self.slip, 0
            n = min(n, len(ether.sent) - ether.n_sent)
            ether.sent[ether.n_sent : ether.n_sent + n] = input_items[0][:n]
            ether.n_sent += n
            ether.changed.notify_all()
            return n


def play(
    n_frames: int,
    *,
    delay: int = 3217,
    cfo_hz: float = 0.0,
    drop=(0, 0),
    slip=(0, 0),
    ahead: int = 20_000,
    restart: int = 0,
):
    """Run a terminal on such a radio to its end; returns block, frames sent, events, and the radio."""
    ether = Ether(delay, cfo_hz, n_frames, restart)
    sounding = 0.05 * sync_sequence(FMT.model_copy(update={"sequence_seed": 77}))
    top = gr.top_block()
    antenna = Antenna(ether, *drop)
    mast = Mast(ether, antenna, ahead, *slip)
    synchroniser = FrameSynchroniser(FMT, 1, 1500.0, chunk_samples=2048)
    search = PreambleSearch(sounding, FMT.sample_rate_hz, threshold=0.25, chunk_samples=2048)
    terminal = UserTerminal(
        FMT, users(quiet_frames=4), 0.02, lead_s=0.24, sounding=sounding, check_frames=4, settle_frames=4
    )
    sent, events = {}, []
    collectors = [
        MessageCollector(lambda fields, _: sent.update({fields["frame"]: fields})),
        MessageCollector(lambda fields, _: events.append(fields["event"])),
    ]
    nodes = [antenna, mast, synchroniser, search, terminal, *collectors]
    sink = blocks.null_sink(gr.sizeof_gr_complex)
    top.connect(antenna, synchroniser, sink)
    top.connect(antenna, search)
    top.connect(terminal, mast)
    top.msg_connect((synchroniser, "frames"), (terminal, "frames"))
    top.msg_connect((search, "preambles"), (terminal, "preambles"))
    for name, collector in zip(("sent", "events"), collectors, strict=True):
        top.msg_connect((terminal, name), (collector, "in"))
    for node in nodes:
        node.warm_up()
    top.start()
    deadline = time.monotonic() + 120
    while antenna.at < len(ether.heard) and time.monotonic() < deadline:
        time.sleep(0.01)
    # What was heard last is still on its way through queues of messages.
    time.sleep(0.3)
    top.stop()
    top.wait()
    assert antenna.at == len(ether.heard)
    assert [node.failure for node in nodes if node.failure] == []
    return terminal, sent, events, ether


def bursts_stand_in_their_slots(ether: Ether, frames, cfo_hz: float = 0.0) -> list[int]:
    """Frames whose slot, as the base station hears it, holds what the terminal's users send."""
    right = []
    for frame in frames:
        at = ether.begin(frame) + FMT.access_start - ether.delay
        expected = users().samples(frame, cfo_hz, 0.02)
        if np.abs(ether.sent[at : at + len(expected)] - expected).max() < 0.01 * np.abs(expected).max():
            right.append(frame)
    return right


def test_bursts_of_an_unbroken_stream_stand_in_the_slots_to_the_sample():
    terminal, sent, events, ether = play(60)
    # The estimate of a beacon without noise to speak of is right to a small part of a sample.
    assert terminal.turnaround_samples == pytest.approx(ether.delay, abs=0.1)
    assert events == ["aligned"]
    begun = min(sent)
    wanted = [frame for frame in range(begun, 52) if len(draw_active(6, 0.5, 3, frame))]
    assert begun < 25
    assert [frame for frame in wanted if frame in sent] == wanted
    assert bursts_stand_in_their_slots(ether, wanted) == wanted
    assert terminal.counts["late"] == terminal.counts["realigned"] == 0


def test_the_carrier_is_that_of_the_base_station():
    terminal, sent, _, ether = play(40, cfo_hz=640.0)
    assert terminal.tracker.cfo_hz == pytest.approx(640.0, abs=3)
    frame = max(frame for frame in sent if frame < 36)
    at = ether.first + frame * FMT.frame_samples + FMT.access_start - ether.delay
    expected = users().samples(frame, 640.0, 0.02)
    product = ether.sent[at : at + len(expected)] * expected.conj()
    # What is left of the turn shows between both halves of the burst.
    half = len(product) // 2
    left = np.angle(product[half:].sum() * product[:half].sum().conj()) / (2 * np.pi) * FMT.sample_rate_hz / half
    assert left == pytest.approx(0.0, abs=5)
    assert abs(product.sum()) == pytest.approx(np.sum(np.abs(expected) ** 2), rel=0.01)


@pytest.mark.parametrize("what", ["drop", "slip"])
def test_lost_samples_either_way_stop_it_until_it_is_aligned_again(what):
    place = (ether_at := 35 * FMT.frame_samples, 1000)
    terminal, sent, events, ether = play(150, **{what: place})
    assert events[0] == "aligned"
    assert events[-1] == "aligned"
    assert ("beacon_jumped" if what == "drop" else "realigned") in events[1:-1]
    moved = -1000 if what == "drop" else 1000
    assert terminal.turnaround_samples == pytest.approx(ether.delay + moved, abs=0.2)
    # Before and long after, all stands where it should on the air.
    early = [frame for frame in sent if frame < ether_at // FMT.frame_samples - 4]
    late = [frame for frame in sent if 120 <= frame < 138]
    assert len(early) > 5
    assert len(late) > 8
    assert bursts_stand_in_their_slots(ether, [*early, *late]) == [*early, *late]


def test_where_the_base_station_alone_began_anew_one_sounding_is_enough():
    terminal, sent, events, ether = play(110, restart=35)
    assert events == ["aligned", "beacon_jumped", "aligned"]
    assert terminal.turnaround_samples == pytest.approx(ether.delay, abs=0.2)
    late = [frame for frame in sent if 80 <= frame < 98]
    assert len(late) > 10
    assert bursts_stand_in_their_slots(ether, late) == late


def test_an_echo_of_a_sounding_that_is_forgotten_says_nothing():
    sounding = 0.05 * sync_sequence(FMT)
    terminal = UserTerminal(FMT, users(), 0.02, sounding=sounding)
    for start in (1000, 2000, 3000):
        terminal.handle_preamble(pack({"start": start, "fraction": 0.0}, np.ones(1, np.complex64)))
    assert terminal.failure is None
    assert terminal.turnaround_samples is None


def test_without_a_beacon_and_without_hearing_itself_it_sends_no_bursts():
    terminal, sent, events, _ = play(30, delay=150_000)
    assert not sent
    assert "aligned" not in events
    assert terminal.counts["heard"] >= 25

"""Finding frames and cutting slots: right places, right numbers, whatever the cuts; gaps never leak into slots."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from semair.blocks.waveforms.access import access_burst, level_antennas, noise_powers, receive_access
from semair.blocks.waveforms.beacon import beacon
from semair.blocks.waveforms.frame import FrameFormat
from semair.blocks.waveforms.frame_sync import AccessSlotCutter, FrameFinder, FrameStart
from semair.models.uad import detectors
from semair.models.uad.preambles import qpsk_preambles

FMT = FrameFormat(
    n_fft=64,
    cp_samples=8,
    n_used=48,
    sync_repeats=8,
    header_symbols=4,
    n_groups=8,
    group_width=4,
    max_preamble_length=12,
    noise_symbols=2,
    guard_samples=72,
    frame_samples=1536,
)
LENGTHS = (4, 6, 12)
MAX_CFO_HZ = 3e3
N_ANTENNAS = 2
USERS = (0, 3)
TAIL = FrameFinder(FMT, N_ANTENNAS, MAX_CFO_HZ).delay_samples


def gaussian(rng: np.random.Generator, shape: tuple[int, ...], power: float) -> np.ndarray:
    return (rng.standard_normal((*shape, 2)) * np.sqrt(power / 2)).view(complex)[..., 0]


def preambles() -> np.ndarray:
    return qpsk_preambles(5, FMT.max_preamble_length, np.random.default_rng(3))


def stream(
    seed: int, n_frames: int, first: int = 500, cfo_hz: float = 900.0, noise: float = 0.01, number: int = 100
) -> np.ndarray:
    """Frames `number`, `number` + 1, ... from sample `first` on, users 0 and 3 active; complex64, (antennas, n)."""
    rng = np.random.default_rng(seed)
    x = gaussian(rng, (N_ANTENNAS, first + n_frames * FMT.frame_samples + TAIL), noise)
    beacon_gain = np.exp(2j * np.pi * rng.random((N_ANTENNAS, 1)))
    for k in range(n_frames):
        start = first + k * FMT.frame_samples
        x[:, start : start + FMT.beacon_samples] += beacon_gain * beacon(FMT, number + k)
        length = LENGTHS[(number + k) % len(LENGTHS)]
        for user in USERS:
            burst = access_burst(FMT, preambles()[:length, user])
            at = start + FMT.access_start
            x[:, at : at + len(burst)] += gaussian(rng, (N_ANTENNAS, 1), 1.0) * burst
    return (x * np.exp(2j * np.pi * cfo_hz / FMT.sample_rate_hz * np.arange(x.shape[1]))).astype(np.complex64)


def pieces(x: np.ndarray, cuts: list[int]) -> list[np.ndarray]:
    """x cut at the given places."""
    return np.split(x, sorted(c % (x.shape[1] + 1) for c in cuts), axis=1)


def summary(frame: FrameStart) -> tuple:
    return (
        frame.start,
        frame.fraction,
        frame.cfo_hz,
        frame.metric,
        frame.snr_db,
        frame.frame_number,
        frame.counted,
        frame.header_symbols.tobytes(),
    )


def find(parts: list[np.ndarray], finder: FrameFinder | None = None) -> tuple[np.ndarray, list[FrameStart]]:
    finder = finder or FrameFinder(FMT, N_ANTENNAS, MAX_CFO_HZ)
    delayed, frames = [], []
    passed = 0
    for part in parts:
        out, found = finder.process(part)
        for frame in found:
            # A tag for the frame must still fit on the samples that come out now or later.
            assert frame.start + finder.delay_samples >= passed
        passed += part.shape[1]
        delayed.append(out)
        frames += found
    return np.concatenate(delayed, axis=1), frames


@pytest.fixture(scope="module")
def seven_frames() -> np.ndarray:
    return stream(seed=1, n_frames=7)


@pytest.fixture(scope="module")
def uncut(seven_frames) -> tuple[np.ndarray, list[FrameStart]]:
    return find([seven_frames])


def test_all_frames_are_found_with_place_number_and_offset(uncut):
    _, frames = uncut
    assert [frame.frame_number for frame in frames] == list(range(100, 107))
    assert not any(frame.counted for frame in frames)
    for k, frame in enumerate(frames):
        assert frame.start + frame.fraction == pytest.approx(500 + k * 1536, abs=0.1)
        # Cramer-Rao bound at 20 dB x 2 antennas and 256 samples: sigma = rate sqrt(6 / (snr N^3)) / (2 pi) = 13.5
        # Hz; bound at five sigma.
        assert frame.cfo_hz == pytest.approx(900, abs=70)
        assert 0.9 < frame.metric <= 1
        assert frame.snr_db == pytest.approx(20, abs=2)


def test_stream_comes_out_delayed_and_otherwise_untouched(seven_frames, uncut):
    delayed, _ = uncut
    np.testing.assert_array_equal(delayed[:, :TAIL], 0)
    np.testing.assert_array_equal(delayed[:, TAIL:], seven_frames[:, :-TAIL])


@given(cuts=st.lists(st.integers(0, 10**6), max_size=40))
@settings(max_examples=20, deadline=None)
def test_frames_do_not_depend_on_the_cuts(seven_frames, uncut, cuts):
    delayed, frames = find(pieces(seven_frames, cuts))
    np.testing.assert_array_equal(delayed, uncut[0])
    assert [summary(f) for f in frames] == [summary(f) for f in uncut[1]]


@given(cuts=st.lists(st.integers(0, 10**6), max_size=20), gap=st.integers(0, 11_000), lost=st.integers(1, 3000))
@settings(max_examples=20, deadline=None)
def test_interruption_forgets_only_what_it_cut(seven_frames, cuts, gap, lost):
    x = np.delete(seven_frames, np.s_[gap : gap + lost], axis=1)

    def run(parts_before: list[np.ndarray], parts_after: list[np.ndarray]) -> list[FrameStart]:
        finder = FrameFinder(FMT, N_ANTENNAS, MAX_CFO_HZ)
        _, frames = find(parts_before, finder)
        frames += finder.interrupt()
        for part in parts_after:
            frames += finder.process(part)[1]
        return frames

    frames = run(pieces(x[:, :gap], cuts), pieces(x[:, gap:], cuts))
    assert [summary(f) for f in frames] == [summary(f) for f in run([x[:, :gap]], [x[:, gap:]])]
    # Every beacon that is whole on one side of the gap is found, at its place; no other is.
    expected = []
    for k in range(7):
        start = 500 + k * 1536
        if start + FMT.beacon_samples <= gap:
            expected.append((100 + k, start))
        elif start >= gap + lost:
            expected.append((100 + k, start - lost))
    found = [(f.frame_number, round(f.start + f.fraction)) for f in frames]
    assert set(expected) <= set(found)
    # A sync sequence that is whole but without its whole header cannot be read, and is left out.
    assert len(found) == len(expected)


def test_damaged_header_takes_its_number_by_counting_on(seven_frames):
    x = seven_frames.copy()
    start = 500 + 3 * FMT.frame_samples
    rng = np.random.default_rng(5)
    damaged = slice(start + FMT.training_start, start + FMT.beacon_samples)
    x[:, damaged] = gaussian(rng, (N_ANTENNAS, FMT.beacon_samples - FMT.training_start), 1.0)
    _, frames = find([x])
    assert [f.frame_number for f in frames] == list(range(100, 107))
    assert [f.counted for f in frames] == [k == 3 for k in range(7)]


def test_damaged_header_without_predecessor_is_refused_and_counted():
    x = stream(seed=2, n_frames=2)
    rng = np.random.default_rng(5)
    damaged = slice(500 + FMT.training_start, 500 + FMT.beacon_samples)
    x[:, damaged] = gaussian(rng, (N_ANTENNAS, FMT.beacon_samples - FMT.training_start), 1.0)
    finder = FrameFinder(FMT, N_ANTENNAS, MAX_CFO_HZ)
    _, frames = find([x], finder)
    assert [f.frame_number for f in frames] == [101]
    assert finder.refused == 1


def test_beacon_off_the_grid_with_damaged_header_is_not_counted_on(rng):
    x = stream(seed=2, n_frames=3)
    missing = 500 + FMT.frame_samples
    x[:, missing : missing + FMT.beacon_samples] = gaussian(rng, (N_ANTENNAS, FMT.beacon_samples), 0.01)
    stray = missing + 700
    x[:, stray : stray + FMT.sync_samples] += 3 * beacon(FMT, 0)[: FMT.sync_samples]
    finder = FrameFinder(FMT, N_ANTENNAS, MAX_CFO_HZ)
    _, frames = find([x], finder)
    assert [f.frame_number for f in frames] == [100, 102]
    assert finder.refused == 1


def test_frames_are_followed_without_searching_every_sample(seven_frames):
    finder = FrameFinder(FMT, N_ANTENNAS, MAX_CFO_HZ)
    _, frames = find([seven_frames], finder)
    assert len(frames) == 7
    # The first search found frame 100; the second began where frame 107 was due and did not come.
    assert finder.searches == 2


@pytest.mark.parametrize("cut_off", [0, 431])
def test_transmitter_that_starts_anew_is_found_again(cut_off):
    """The second start comes 20 samples late, or with the head of its first beacon missing."""
    before, after = stream(seed=4, n_frames=3), stream(seed=5, n_frames=3, number=7)
    cut = 500 + 3 * FMT.frame_samples
    x = np.concatenate([before[:, :cut], after[:, 480 + cut_off :]], axis=1)
    _, frames = find([x])
    assert [f.frame_number for f in frames][:3] == [100, 101, 102]
    whole = range(3) if cut_off == 0 else range(1, 3)
    expected = [(7 + k, cut + 20 - cut_off + k * FMT.frame_samples) for k in whole]
    assert [(f.frame_number, round(f.start + f.fraction)) for f in frames[3:]] == expected


def test_following_ends_where_no_header_can_be_read_any_more(rng):
    x = stream(seed=6, n_frames=12)
    for k in range(1, 12):
        start = 500 + k * FMT.frame_samples
        damaged = slice(start + FMT.training_start, start + FMT.beacon_samples)
        x[:, damaged] = gaussian(rng, (N_ANTENNAS, FMT.beacon_samples - FMT.training_start), 1.0)
    finder = FrameFinder(FMT, N_ANTENNAS, MAX_CFO_HZ)
    _, frames = find([x], finder)
    assert [f.frame_number for f in frames] == list(range(100, 112))
    assert [f.counted for f in frames] == [False] + [True] * 11
    assert finder.searches == 2


def test_numbers_go_up_to_32_bits():
    _, frames = find([stream(seed=4, n_frames=2, number=2**32 - 2)])
    assert [f.frame_number for f in frames] == [2**32 - 2, 2**32 - 1]


def test_noise_holds_no_frames(rng):
    finder = FrameFinder(FMT, N_ANTENNAS, MAX_CFO_HZ)
    _, frames = find([gaussian(rng, (N_ANTENNAS, 200_000), 1.0).astype(np.complex64)], finder)
    assert frames == []


def test_not_a_number_is_refused_with_antenna_and_sample(seven_frames):
    finder = FrameFinder(FMT, N_ANTENNAS, MAX_CFO_HZ)
    finder.process(seven_frames[:, :1000])
    bad = seven_frames[:, 1000:1200].copy()
    bad[1, 77] = complex(0, np.nan)
    with pytest.raises(ValueError, match=r"antenna 1.*sample 1077|sample 1077.*antenna 1"):
        finder.process(bad)


def announced(number: int, start: int) -> FrameStart:
    return FrameStart(start, 0.0, 900.0, 1.0, 20.0, number, False, np.empty(0, np.complex64))


@given(
    cuts=st.lists(st.integers(0, 10**6), max_size=40),
)
@settings(max_examples=20, deadline=None)
def test_slots_do_not_depend_on_the_cuts_and_equal_a_direct_cut(seven_frames, cuts):
    cutter = AccessSlotCutter(FMT, N_ANTENNAS, LENGTHS)
    waiting = [announced(100 + k, 500 + k * FMT.frame_samples) for k in range(7)]
    slots, place = [], 0
    for part in pieces(seven_frames, cuts):
        while waiting and waiting[0].start < place + part.shape[1]:
            cutter.announce(waiting.pop(0))
        slots += cutter.process(part)
        place += part.shape[1]
    assert [slot.frame.frame_number for slot in slots] == list(range(100, 107))
    for k, slot in enumerate(slots):
        length = LENGTHS[(100 + k) % 3]
        start = 500 + k * FMT.frame_samples
        first = start + FMT.access_start
        span = FMT.used_samples - FMT.access_start
        t = np.arange(span)
        level = seven_frames[:, first : first + span] * np.exp(-2j * np.pi * 900 / FMT.sample_rate_hz * t).astype(
            np.complex64
        )
        silent = seven_frames[:, first + FMT.noise_start - FMT.access_start : first + span]
        expected, noise = level_antennas(receive_access(level, FMT, length), noise_powers(silent, FMT))
        np.testing.assert_array_equal(slot.snapshots, expected)
        assert slot.noise_power == noise
        assert cutter.length_of(100 + k) == length == len(slot.snapshots)


def test_slots_hold_the_users_in_the_span_of_their_preambles(seven_frames, uncut):
    cutter = AccessSlotCutter(FMT, N_ANTENNAS, LENGTHS)
    for frame in uncut[1]:
        cutter.announce(frame)
    for slot in cutter.process(seven_frames):
        sent = preambles()[: len(slot.snapshots), USERS].astype(complex)
        inside = sent @ np.linalg.lstsq(sent, slot.snapshots, rcond=None)[0]
        outside = slot.snapshots - inside
        freedom = (len(slot.snapshots) - len(USERS)) * slot.snapshots.shape[1]
        # What the two users do not explain is the noise of 0.01: 2 x 16 = 32 or more complex values scatter by 18 %
        # or less; and a leak of 1 % of the users' power of 2 would triple it.
        assert np.sum(np.abs(outside) ** 2) / freedom == pytest.approx(0.01, rel=0.9)
        assert np.mean(np.abs(slot.snapshots) ** 2) > 0.1


def test_interrupted_slots_are_dropped_and_the_next_is_right(seven_frames):
    cutter = AccessSlotCutter(FMT, N_ANTENNAS, LENGTHS)
    frames = [announced(100 + k, 500 + k * FMT.frame_samples) for k in range(2)]
    cutter.announce(frames[0])
    assert cutter.process(seven_frames[:, : 500 + FMT.noise_start + 10]) == []
    assert cutter.interrupt() == [frames[0]]
    assert cutter.interrupt() == []
    lost = 200
    moved = announced(101, 500 + FMT.frame_samples - lost)
    cutter.announce(moved)
    slots = cutter.process(seven_frames[:, 500 + FMT.noise_start + 10 + lost :])
    assert [slot.frame for slot in slots] == [moved]
    whole = AccessSlotCutter(FMT, N_ANTENNAS, LENGTHS)
    whole.announce(frames[1])
    np.testing.assert_array_equal(slots[0].snapshots, whole.process(seven_frames)[0].snapshots)


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_noise_power_is_positive_even_where_the_noise_slot_is_silent(seven_frames, level):
    x = level * seven_frames[:, :3000]
    x[:, 500 + FMT.noise_start :] = 0
    cutter = AccessSlotCutter(FMT, N_ANTENNAS, LENGTHS)
    cutter.announce(announced(100, 500))
    (slot,) = cutter.process(x)
    assert 0 < slot.noise_power < 1e-6
    for name in detectors.classical():
        found = detectors.make(name, preambles(), 0.3).detect(slot.snapshots[None], slot.noise_power)
        assert np.all(np.isfinite(found.scores))
        assert level or not found.active.any()


def test_late_announcement_is_refused(seven_frames):
    cutter = AccessSlotCutter(FMT, N_ANTENNAS, LENGTHS)
    cutter.process(seven_frames[:, :501])
    with pytest.raises(ValueError, match="sample 500 announced late: the stream is at 501"):
        cutter.announce(announced(100, 500))


def test_lengths_beyond_the_slot_are_refused():
    with pytest.raises(ValueError, match="preamble length 13 does not fit"):
        AccessSlotCutter(FMT, 1, (4, 13))

"""What a recording plays as, against plain arrays in which every sample stands at its time."""

from __future__ import annotations

import itertools
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from semair.blocks.playback import Gaps, Playback, PlayOptions
from semair.captures.reader import Recording
from semair.errors import RecordingError, ScenarioError

RATE_HZ = 2e6


def recorded(
    folder: Path,
    x: np.ndarray,
    segments: list[tuple[int, int]] = [(0, 0)],  # noqa: B006
    rate_hz: float | None = RATE_HZ,
    frequencies_hz: list[float] | None = None,
    notes: list[tuple[int, int]] | None = None,
) -> Recording:
    """A recording of x with segments (place, time in samples) and annotations (place, count)."""
    folder.mkdir(exist_ok=True)
    np.ascontiguousarray(x.T).astype("<c8").tofile(folder / "rec.sigmf-data")
    captures: list[dict[str, Any]] = [{"core:sample_start": at, "core:global_index": time} for at, time in segments]
    for capture, frequency_hz in zip(captures, frequencies_hz or [], strict=False):
        capture["core:frequency"] = frequency_hz
    head: dict[str, Any] = {"core:datatype": "cf32_le", "core:version": "1.2.0", "core:num_channels": len(x)}
    if rate_hz is not None:
        head["core:sample_rate"] = rate_hz
    annotations = [{"core:sample_start": at, "core:sample_count": count} for at, count in notes or []]
    meta = {"global": head, "captures": captures, "annotations": annotations}
    (folder / "rec.sigmf-meta").write_text(json.dumps(meta))
    return Recording.open(folder / "rec.sigmf-meta")


def noise(n_channels: int, n: int) -> np.ndarray:
    rng = np.random.default_rng(4)
    return (rng.standard_normal((n_channels, n)) + 1j * rng.standard_normal((n_channels, n))).astype(np.complex64)


def played(playback: Playback, cuts: tuple[int, ...] = ()) -> np.ndarray:
    """The whole stream, read in pieces that end at the cuts."""
    out = np.full((len(playback.channels), playback.n_samples), np.nan, np.complex64)
    bounds = sorted({0, playback.n_samples, *(cut for cut in cuts if cut < playback.n_samples)})
    for low, high in itertools.pairwise(bounds):
        playback.read_into(low, [row[low:high] for row in out])
    return out


def marks(playback: Playback) -> list[tuple[int, int]]:
    return [(mark.item, mark.ticks) for mark in playback.marks(0, playback.n_samples)]


def times(n: int, segments: list[tuple[int, int]]) -> np.ndarray:
    """Time of every sample of the file."""
    out = np.zeros(n, int)
    for at, time in segments:
        out[at:] = time + np.arange(n - at)
    return out


# Channels


@pytest.mark.parametrize("channels", [None, (0,), (3, 1), (2, 0, 3, 1)])
def test_channels_are_chosen_and_permuted(tmp_path, channels):
    x = noise(4, 300)
    playback = Playback(recorded(tmp_path, x), PlayOptions(channels))
    assert played(playback, (7, 100)).tobytes() == x[list(channels or range(4))].tobytes()


@pytest.mark.parametrize(
    ("channels", "words"),
    [((4,), r"channel 4.*core:num_channels=4.*0 to 3"), ((-1,), "channel -1"), ((), "empty"), ((1, 1), "once")],
)
def test_channels_that_are_not_there_are_refused(tmp_path, channels, words):
    with pytest.raises(ScenarioError, match=words):
        Playback(recorded(tmp_path, noise(4, 10)), PlayOptions(channels))


# Gaps


def test_gap_policies_of_one_recording(tmp_path):
    x = noise(2, 100)
    # The second segment follows at once; 15 samples are missing before the third, 1 before the last.
    recording = recorded(tmp_path, x, [(0, 5), (20, 25), (40, 60), (99, 120)], frequencies_hz=[1e9, 2e9, 3e9, 4e9])

    def play(gaps: Gaps) -> Playback:
        return Playback(recording, PlayOptions(gaps=gaps))

    for gaps in ("as-recorded", "stop", "splice", "zero"):
        assert play(gaps).gaps == 2

    plain = play("as-recorded")
    assert played(plain).tobytes() == x.tobytes()
    assert marks(plain) == [(0, 5), (20, 25), (40, 60), (99, 120)]
    assert [mark.frequency_hz for mark in plain.marks(0, 100)] == [1e9, 2e9, 3e9, 4e9]
    assert plain.end_ticks == 121
    assert (plain.stopped_at, plain.skipped_samples) == (None, 0)

    stop = play("stop")
    assert played(stop).tobytes() == x[:, :40].tobytes()
    assert marks(stop) == [(0, 5), (20, 25)]
    assert (stop.stopped_at, stop.skipped_samples, stop.end_ticks) == (40, 60, 45)

    splice = play("splice")
    assert played(splice).tobytes() == x.tobytes()
    assert marks(splice) == [(0, 5), (20, 25), (40, 45), (99, 104)]
    assert [mark.lost for mark in splice.marks(0, 100)] == [0, 0, 15, 1]

    zero = play("zero")
    want = np.zeros((2, 116), np.complex64)
    want[:, times(100, [(0, 0), (40, 55), (99, 115)])] = x
    assert played(zero, (30, 41, 56)).tobytes() == want.tobytes()
    assert marks(zero) == [(0, 5), (20, 25), (40, 45), (55, 60), (114, 119), (115, 120)]
    assert [mark.lost for mark in zero.marks(0, 116)] == [0, 0, 15, 0, 1, 0]
    assert zero.end_ticks == plain.end_ticks


@st.composite
def broken(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    """Samples and segments of a recording with gaps."""
    counts = draw(st.lists(st.integers(1, 30), min_size=1, max_size=6))
    place, time, segments = 0, draw(st.integers(0, 50)), []
    for count in counts:
        segments.append((place, time))
        place += count
        time += count + draw(st.integers(0, 12))
    return place, segments


@given(broken(), st.integers(1, 9), st.integers(0, 40), st.integers(1, 3), st.lists(st.integers(1, 200), max_size=4))
def test_whole_frames_without_a_gap_are_what_is_looped(tmp_path_factory, made, frame, start, turns, cuts):
    n, segments = made
    x, at = noise(1, n), times(n, segments)
    recording = recorded(tmp_path_factory.getbasetemp() / "frames", x, segments)
    start %= n
    place = {int(time): k for k, time in enumerate(at)}
    frames = []
    for first in range(int(at[start]), int(at[-1]) + 1, frame):
        if all(first + k in place for k in range(frame)):
            frames.append(x[:, place[first] : place[first] + frame])
    options = PlayOptions(gaps="splice", turns=turns, frame_samples=frame, frame_start=start)
    if not frames:
        with pytest.raises(RecordingError, match=f"no whole frame of frame_samples={frame} from frame_start={start}"):
            Playback(recording, options)
        return
    playback = Playback(recording, options)
    turn = np.concatenate(frames, axis=1)
    assert played(playback, tuple(cuts)).tobytes() == np.tile(turn, turns).tobytes()
    found = playback.marks(0, playback.n_samples)
    # Time runs on through splices and turns.
    assert {mark.ticks - mark.item for mark in found} == {found[0].ticks}
    begins = [(mark.item, mark.turn) for mark in found if mark.turn is not None]
    assert begins == ([(k * turn.shape[1], k) for k in range(turns)] if turns > 1 else [])
    assert playback.skipped_samples == n - turn.shape[1]


@given(broken(), st.lists(st.integers(1, 200), max_size=4))
def test_zeros_stand_where_samples_were_lost(tmp_path_factory, made, cuts):
    n, segments = made
    x, at = noise(1, n), times(n, segments)
    playback = Playback(recorded(tmp_path_factory.getbasetemp() / "zeros", x, segments), PlayOptions(gaps="zero"))
    want = np.zeros((1, at[-1] - at[0] + 1), np.complex64)
    want[:, at - at[0]] = x
    assert played(playback, tuple(cuts)).tobytes() == want.tobytes()
    places = [playback.recorded_place(item) for item in range(playback.n_samples)]
    for item, place in enumerate(places):
        # What was filled in lies at the gap: at the first sample behind it.
        assert place == np.searchsorted(at - at[0], item)


def test_loops_without_frames_are_refused(tmp_path):
    with pytest.raises(ScenarioError, match=r"turns=2 of a loop.*give frame_samples, and frame_start"):
        Playback(recorded(tmp_path, noise(1, 100)), PlayOptions(turns=2))


def test_loops_across_gaps_are_refused_with_the_choices(tmp_path):
    recording = recorded(tmp_path, noise(1, 100), [(0, 0), (40, 50)])
    for gaps in ("as-recorded", "zero"):
        with pytest.raises(ScenarioError, match=rf"gaps='{gaps}' with 1 gaps.*choose stop or splice"):
            Playback(recording, PlayOptions(gaps=gaps, turns=2, frame_samples=10))
    stop = Playback(recording, PlayOptions(gaps="stop", turns=2, frame_samples=15, frame_start=3))
    assert stop.n_samples == 2 * 30
    whole = Playback(recorded(tmp_path, noise(1, 100)), PlayOptions(gaps="zero", turns=3, frame_samples=40))
    assert whole.n_samples == 3 * 80


def test_a_clock_that_was_set_back_and_endless_gaps_are_not_filled(tmp_path):
    back = recorded(tmp_path, noise(1, 100), [(0, 500), (40, 100)])
    with pytest.raises(RecordingError, match=r"-440 samples are missing before sample 40: the clock was set back.*spl"):
        Playback(back, PlayOptions(gaps="zero"))
    splice = Playback(back, PlayOptions(gaps="splice"))
    assert marks(splice) == [(0, 500), (40, 540)]
    assert [mark.lost for mark in splice.marks(0, 100)] == [0, -440]
    far = recorded(tmp_path, noise(1, 100), [(0, 0), (40, 2**62)])
    with pytest.raises(RecordingError, match=r"at most 1200000000 are filled; choose gaps=splice or gaps=stop"):
        Playback(far, PlayOptions(gaps="zero"))


def test_marks_are_found_by_stretch(tmp_path):
    recording = recorded(tmp_path, noise(1, 100), [(0, 0), (20, 30), (40, 70), (99, 400)])
    playback = Playback(recording, PlayOptions(gaps="as-recorded"))
    assert [mark.item for mark in playback.marks(20, 99)] == [20, 40]
    assert [mark.item for mark in playback.marks(21, 40)] == []
    assert playback.marks(50, 50) == playback.marks(100, 200) == []


def test_samples_before_the_first_segment_have_a_time_only_if_it_can_be(tmp_path):
    late = Playback(recorded(tmp_path, noise(1, 50), [(10, 30)]))
    assert marks(late) == [(0, 20), (10, 30)]
    early = Playback(recorded(tmp_path, noise(1, 50), [(10, 3)]))
    assert marks(early) == [(10, 3)]
    assert played(early).shape == (1, 50)


@pytest.mark.parametrize(
    "options",
    [
        {"gaps": "hide"}, {"turns": 0}, {"frame_samples": 0}, {"frame_start": -1}, {"max_samples": 0},
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_named(options):
    with pytest.raises(ScenarioError, match=next(iter(options))):
        PlayOptions(**options)


# Resampling

TONES = np.random.default_rng(5).uniform(-0.25, 0.25, 12)


def wave(at_samples: np.ndarray) -> np.ndarray:
    """A band-limited signal at any time, in samples of the recorded rate."""
    return np.exp(2j * np.pi * np.outer(at_samples, TONES)) @ np.exp(2j * np.arange(12))


@pytest.mark.parametrize("ratio", [Fraction(3, 4), Fraction(3, 2), Fraction(125, 192)])
def test_resampled_samples_are_the_signal_at_the_times_told(tmp_path, ratio):
    segments = [(0, 10_001), (3000, 14_444), (7000, 2_000_000_000_007)]
    at = times(9000, segments)
    x = np.concatenate([wave(np.arange(n)) for n in (3000, 4000, 2000)])[None].astype(np.complex64)
    playback = Playback(
        recorded(tmp_path, x, segments), PlayOptions(gaps="as-recorded", rate_hz=float(RATE_HZ * ratio))
    )
    y = played(playback, (777, 4000))[0]
    found = playback.marks(0, playback.n_samples)
    assert len(found) == 3
    for k, mark in enumerate(found):
        end = found[k + 1].item if k < 2 else playback.n_samples
        first, last = int(at[segments[k][0]]), int(at[segments[k + 1][0] - 1 if k < 2 else -1])
        # Played instants are those within the recorded stretch, no more and no fewer.
        end_ticks = mark.ticks + end - mark.item
        assert (mark.ticks - 1) / ratio < first <= mark.ticks / ratio
        assert (end_ticks - 1) / ratio < last + 1 <= end_ticks / ratio
        inside = np.arange(mark.item + 200, end - 200)
        instants = float(mark.ticks / ratio - first) + (inside - mark.item) / float(ratio)
        ideal = wave(instants)
        error = np.mean(np.abs(y[inside] - ideal) ** 2) / np.mean(np.abs(ideal) ** 2)
        assert 10 * np.log10(error) < -90
    places = np.array([playback.recorded_place(item) for item in range(playback.n_samples)])
    assert 0 <= places[0] < 1 / ratio
    assert 9000 - 1 / ratio <= places[-1] < 9000
    assert np.diff(places) == pytest.approx(float(1 / ratio), abs=float(1 / ratio))


def test_resampled_bits_do_not_depend_on_how_they_are_read(tmp_path):
    x = noise(2, 60_000)
    recording = recorded(tmp_path, x, [(0, 7), (31_000, 40_000)])
    options = PlayOptions((1, 0), "splice", 2e6 * 125 / 192)
    whole = played(Playback(recording, options))
    rng = np.random.default_rng(1)
    for _ in range(3):
        cuts = tuple(rng.integers(1, whole.shape[1], 200).tolist())
        assert played(Playback(recording, options), cuts).tobytes() == whole.tobytes()
    assert whole.shape[1] == pytest.approx(60_000 * 125 / 192, abs=1)


def test_loops_are_resampled_through_their_turns(tmp_path):
    # A tone with a whole number of periods in a frame: a loop of it goes on as one tone, without a seam.
    frame = 1000
    x = np.exp(2j * np.pi * 7 / frame * np.arange(2100))[None].astype(np.complex64)
    recording = recorded(tmp_path, x, [(0, 3)])
    options = PlayOptions(gaps="stop", rate_hz=RATE_HZ * 4 / 7, turns=5, frame_samples=frame, frame_start=50)
    playback = Playback(recording, options)
    found = playback.marks(0, playback.n_samples)
    # Turns of 2000 samples begin at times 53, 2053, ...: at the first instant of the new rate from there on.
    ticks = [-(-(53 + 2000 * turn) * 4 // 7) for turn in range(5)]
    assert [(mark.item, mark.ticks, mark.turn) for mark in found] == [
        (tick - ticks[0], tick, turn) for turn, tick in enumerate(ticks)
    ]
    assert playback.end_ticks == -(-(53 + 10_000) * 4 // 7)
    y = played(playback, (1000,))[0, 200:-200]
    instants = (ticks[0] + np.arange(200, playback.n_samples - 200)) * 7 / 4
    ideal = np.exp(2j * np.pi * 7 / frame * (instants - 3))
    assert np.abs(y - ideal).max() < 1e-4


def test_segments_shorter_than_a_played_sample_lose_no_news(tmp_path):
    segments = [(k, 100 * k) for k in range(20)]
    recording = recorded(tmp_path, noise(1, 20), segments)
    playback = Playback(recording, PlayOptions(gaps="as-recorded", rate_hz=RATE_HZ / 8))
    found = marks(playback)
    # Of instants 0, 8, 16, ... those that are multiples of 100 were recorded: every second one.
    assert found == [(k, 25 * k) for k in range(10)]
    assert playback.n_samples == 10


def test_rates_without_a_ratio_are_refused(tmp_path):
    with pytest.raises(ScenarioError, match=r"rec: cannot be resampled: 2000001 Hz and 2000000 Hz are in no ratio"):
        Playback(recorded(tmp_path, noise(1, 10)), PlayOptions(rate_hz=2_000_001.0))


@pytest.mark.parametrize("seconds", [-1, 10**30])
def test_times_that_no_tag_can_tell_are_refused(tmp_path, seconds):
    recording = recorded(tmp_path, noise(1, 100), [(0, 0), (40, 50)])
    meta = json.loads(recording.meta_path.read_text())
    meta["captures"][1]["semair:device_time"] = {"full_secs": seconds, "frac_ticks": 0, "tick_rate_hz": 1}
    recording.meta_path.write_text(json.dumps(meta))
    with pytest.raises(RecordingError, match="rec: the time of sample 40 is"):
        Playback(Recording.open(recording.meta_path))


def test_a_limit_ends_the_stream_early(tmp_path):
    x = noise(1, 100)
    playback = Playback(recorded(tmp_path, x, [(0, 0), (40, 50)]), PlayOptions(max_samples=60))
    assert played(playback).tobytes() == x[:, :60].tobytes()
    assert playback.end_ticks == 70
    assert Playback(recorded(tmp_path, x), PlayOptions(max_samples=600)).n_samples == 100


# Annotations


def test_annotations_move_with_the_samples(tmp_path):
    x = noise(1, 100)
    notes = [(5, 10), (35, 10), (50, 0), (90, 30)]
    recording = recorded(tmp_path, x, [(0, 0), (40, 50)], notes=notes)

    def places(**options: Any) -> list[tuple[int, int]]:
        return [(n.sample_start, n.sample_count) for n in Playback(recording, PlayOptions(**options)).annotations()]

    assert places(gaps="as-recorded") == [(5, 10), (35, 10), (50, 0), (90, 10)]
    assert places(gaps="splice") == [(5, 10), (35, 10), (50, 0), (90, 10)]
    assert places(gaps="stop") == [(5, 10), (35, 5)]
    # One that spans a gap spans the zeros too.
    assert places(gaps="zero") == [(5, 10), (35, 20), (60, 0), (100, 10)]
    assert places(gaps="stop", frame_samples=10, frame_start=8) == [(0, 7), (27, 3)]
    # Times 5 to 15, 35 to 55, 60 and 100 to 110 at twice and half the rate.
    assert places(gaps="as-recorded", rate_hz=4e6) == [(10, 20), (70, 20), (100, 0), (180, 20)]
    assert places(gaps="zero", rate_hz=1e6) == [(3, 5), (18, 10), (30, 0), (50, 5)]
    assert places(max_samples=38) == [(5, 10), (35, 3)]

"""Runs and recordings played otherwise than they were recorded: fewer antennas, other rates, gaps, loops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")

from scipy import signal
from semair.blocks.playback import PlayOptions
from semair.captures.reader import Recording
from semair.captures.writer import RecordingWriter
from semair.errors import RadioError, ScenarioError
from semair.flowgraphs.link_run import RunResult
from semair.flowgraphs.run import replay_recording, replay_run, run_random_access
from semair.flowgraphs.scenario import Scenario, load_scenario

FRAME = 20480
LOSSES = [[5 * FRAME + 9000, 500], [12 * FRAME + 9000, 4 * FRAME]]
# Frame f begins some 7300 samples behind f * FRAME: the air and the start of the receiver delay it.
N_FRAMES = 24
SETTINGS = (
    "radio.n_antennas=3", "users.n_users=20", "users.preamble_lengths=[12, 28]", "link.beacon_snr_db=15",
    "impairments.start_delay_samples=777",
)  # fmt: skip


def scenario(*overrides: str) -> Scenario:
    made = load_scenario("lab", [*SETTINGS, *overrides])
    assert made.frame.frame_samples == FRAME
    return made


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A run without losses; read only but for its replays."""
    return run_random_access(scenario(), tmp_path_factory.mktemp("live") / "run", n_frames=N_FRAMES)


@pytest.fixture(scope="module")
def lossy(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """The same with two losses: within frame 5, and frames 12 to 16."""
    folder = tmp_path_factory.mktemp("lossy") / "run"
    return run_random_access(scenario(f"radio.losses={LOSSES}"), folder, n_frames=N_FRAMES)


def frames(result: Any) -> list[int]:
    return result.folder.rows(result.folder.decisions)["frame"].tolist()


def test_fewer_antennas_decide_on_the_same_frames(live):
    result = replay_run(live.folder.path, play=PlayOptions(channels=(2, 0)))
    assert frames(result) == list(range(N_FRAMES))
    assert (result.live, result.equal) == (0, None)
    assert result.playback["channels"] == [2, 0]
    told = json.loads(result.folder.run_json.read_text())
    assert told["scenario"]["radio"]["n_antennas"] == 2
    assert told["radio"]["facts"]["playback"]["channels"] == [2, 0]
    # The antennas' order is that asked for: the first column of snapshots is antenna 2.
    rows, all_rows = (f.rows(f.snapshots)["values"] for f in (result.folder, live.folder))
    assert np.abs(rows).sum() > 0 and rows.shape[1] * 3 == all_rows.shape[1] * 2
    # The plain replay beside it is still the live run, bit for bit.
    assert replay_run(live.folder.path).equal == N_FRAMES


def test_gap_policies_decide_what_their_samples_allow(lossy):
    before = [0, 1, 2, 3, 4]
    behind = list(range(17, N_FRAMES))
    live = frames(lossy)
    assert set(before) | set(range(7, 12)) | set(behind[1:]) <= set(live)
    assert replay_run(lossy.folder.path).equal == len(live)
    stop = replay_run(lossy.folder.path, play=PlayOptions(gaps="stop"))
    assert frames(stop) == before
    assert stop.playback["stopped_at"] == Recording.open(lossy.folder.recording).segments[1].sample_start
    zero = replay_run(lossy.folder.path, play=PlayOptions(gaps="zero"))
    # Zeros keep the time, so what follows stands where it was sent.
    truth = lossy.folder.rows(lossy.folder.truth)["arrival"]
    rows = zero.folder.rows(zero.folder.decisions)
    assert set(before) | set(behind) <= set(rows["frame"].tolist())
    np.testing.assert_allclose(rows["sample_time"] + rows["fraction"], truth[rows["frame"]], atol=4)
    splice = replay_run(lossy.folder.path, play=PlayOptions(gaps="splice"))
    rows = splice.folder.rows(splice.folder.decisions)
    assert set(before) | set(behind[1:]) <= set(rows["frame"].tolist())
    late = rows["frame"] >= 18
    lost = sum(count for _, count in LOSSES)
    np.testing.assert_allclose((rows["sample_time"] - truth[rows["frame"]])[late], -lost, atol=4)
    assert "synchronisation" not in splice.metrics


def test_turns_of_a_run_repeat_its_whole_frames(live, lossy):
    result = replay_run(live.folder.path, play=PlayOptions(turns=3))
    # The recording holds every frame whole: those heard between turns are the same ones.
    assert frames(result) == list(range(N_FRAMES)) * 3
    rows = result.folder.rows(result.folder.decisions)
    assert np.array_equal(np.diff(rows["sample_time"][::N_FRAMES]), [result.playback["samples"] // 3] * 2)
    assert result.playback["frame_samples"] == FRAME
    # Frames that a gap has touched are in no turn.
    looped = frames(replay_run(lossy.folder.path, play=PlayOptions(gaps="splice", turns=2)))
    assert set(looped) == set(range(N_FRAMES)) - {5, 12, 13, 14, 15, 16}
    assert looped == looped[: len(looped) // 2] * 2


def test_a_run_at_another_rate_is_refused_with_both_values(live):
    with pytest.raises(RadioError, match=r"bs-rx: is to be resampled to 4000000, the scenario asks for 2000000"):
        replay_run(live.folder.path, play=PlayOptions(rate_hz=4e6))


# Recordings that are no run


@pytest.fixture(scope="module")
def wide(live: RunResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's air as another receiver took it: at 5 MS/s, 10 MHz beside, with antennas 2, 0, 1 and a dead one."""
    folder = tmp_path_factory.mktemp("wide")
    x = Recording.open(live.folder.recording).read()[[2, 0, 1]]
    y = signal.resample_poly(x, 5, 2, axis=1).astype(np.complex64)
    with RecordingWriter(
        folder, "wide", n_channels=4, datatype="cf32_le", sample_rate_hz=5e6, frequency_hz=3.51e9, min_free_bytes=0
    ) as writer:
        writer.write(np.concatenate([y, np.zeros((1, y.shape[1]), np.complex64)]))
    return folder / "wide.sigmf-meta"


def test_any_recording_that_is_made_to_fit_is_received(live, wide, tmp_path):
    play = PlayOptions(channels=(1, 2, 0), rate_hz=2e6)
    result = replay_recording(wide, scenario(), tmp_path / "out", play=play, any_frequency=True)
    assert frames(result) == list(range(N_FRAMES))
    rows, truth = result.folder.rows(result.folder.decisions), live.folder.rows(live.folder.decisions)
    np.testing.assert_allclose(rows["cfo_hz"], truth["cfo_hz"], atol=20)
    start = Recording.open(live.folder.recording).segments[0].device_time
    assert start is not None
    offset = start.full_secs * 2_000_000 + start.frac_ticks * 2_000_000 // start.tick_rate_hz
    timing = rows["sample_time"] + rows["fraction"] - (truth["sample_time"] + truth["fraction"] - offset)
    # The filters delay nothing: a twentieth of a sample is what noise of 15 dB leaves.
    assert np.abs(timing).max() < 0.2
    assert abs(timing.mean()) < 0.05
    long = rows["length"] == 28
    np.testing.assert_array_equal(rows["active"][long], truth["active"][long])
    assert result.air_s == pytest.approx(Recording.open(wide).n_samples / 5e6, rel=1e-6)
    told = json.loads(result.folder.run_json.read_text())["radio"]
    assert told["actual"]["frequency_hz"] == 3.51e9
    assert told["facts"]["playback"]["recorded_rate_hz"] == 5e6


@pytest.mark.parametrize(
    ("play", "any_frequency", "words"),
    [
        (PlayOptions(), True, r"core:num_channels is 4, the scenario has radio\.n_antennas=3.*channels"),
        (PlayOptions((0, 1)), True, r"core:num_channels is 4 and 2 are chosen, the scenario has radio\.n_antennas=3"),
        (PlayOptions((0, 1, 2)), True, r"core:sample_rate is 5000000, the scenario asks for 2000000.*resample"),
        (PlayOptions((0, 1, 2), rate_hz=2e6), False, r"core:frequency is 3510000000 .* asks for 3500000000; .*allow"),
        (PlayOptions((0, 1, 2), rate_hz=1e6), True, r"resampled to 1000000, the scenario asks for 2000000"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_values(wide, tmp_path, play, any_frequency, words):
    with pytest.raises(RadioError, match=words):
        replay_recording(wide, scenario(), tmp_path / "out", play=play, any_frequency=any_frequency)
    assert not (tmp_path / "out").exists()


def test_turns_of_a_recording_need_frames(wide, tmp_path):
    play = PlayOptions((0, 1, 2), rate_hz=2e6, turns=2)
    with pytest.raises(ScenarioError, match=r"turns=2 of a loop.*frame_samples"):
        replay_recording(wide, scenario(), tmp_path / "out", play=play, any_frequency=True)

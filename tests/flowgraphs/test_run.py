"""A live run and its replay decide the same, bit for bit; what does not fit is explained; nothing is lost."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")

from semair.captures.reader import Recording
from semair.captures.recover import recover
from semair.captures.verify import verify
from semair.errors import RadioError, RecordingError, ReplayMismatch, ScenarioError, SemairError
from semair.flowgraphs.link_run import Progress
from semair.flowgraphs.run import compare_decisions, replay_run, run_random_access
from semair.flowgraphs.runfolder import DECISION_FIELDS, RunFolder, unpack_users
from semair.flowgraphs.scenario import Scenario, load_scenario

# Two antennas, twenty users: small enough for many runs.
SMALL = (
    "radio.n_antennas=2",
    "users.n_users=20",
    "users.activity=0.15",
    "users.preamble_lengths=[8, 12, 28]",
    "link.beacon_snr_db=15",
)
N_FRAMES = 25


def scenario(*overrides: str) -> Scenario:
    return load_scenario("lab", [*SMALL, *overrides])


def run(folder: Path, *overrides: str, **options):
    return run_random_access(scenario(*overrides), folder, **{"n_frames": N_FRAMES, **options})


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """One run of the small scenario; read only."""
    folder = tmp_path_factory.mktemp("live") / "run"
    return run(folder)


@pytest.fixture
def copied(live, tmp_path) -> Path:
    """A copy of that run, to be damaged."""
    folder = tmp_path / "copy"
    shutil.copytree(live.folder.path, folder)
    return folder


def test_run_decides_every_frame_and_finds_the_users(live):
    folder = live.folder
    decisions, truth = folder.rows(folder.decisions), folder.rows(folder.truth)
    assert decisions["frame"].tolist() == truth["frame"].tolist() == list(range(N_FRAMES))
    assert decisions["length"].tolist() == [(8, 12, 28)[f % 3] for f in range(N_FRAMES)]
    long = decisions["length"] == 28
    np.testing.assert_array_equal(unpack_users(decisions["active"][long], 20), unpack_users(truth["active"][long], 20))
    # Frames stand where they arrived, within the quarter of the prefix that the receiver bears.
    timing = decisions["sample_time"] + decisions["fraction"] - truth["arrival"]
    assert np.abs(timing).max() < 4
    assert live.metrics["frames"] == {
        "sent": N_FRAMES, "decided": N_FRAMES, "matched": N_FRAMES, "missed": 0, "false": 0, "counted_on": 0,
    }  # fmt: skip
    assert not live.interrupted


def test_the_recording_tells_the_snr_that_the_frames_had(live):
    told = Recording.open(live.folder.recording).global_fields
    # The last message may come when the recording is closed already: an even number has two medians beside each other.
    heard = np.sort(live.folder.rows(live.folder.decisions)["snr_db"])
    middle = len(heard) // 2
    assert heard[middle - 2] - 0.01 <= told["snr_db"] <= heard[min(middle + 2, len(heard) - 1)] + 0.01
    assert "beacon" in told["snr_method"]


def test_run_leaves_a_collection_without_fault(live):
    assert [str(f) for f in verify(live.folder.path) if f.severity == "error"] == []
    recording = Recording.open(live.folder.recording, check_hash=True)
    assert recording.n_channels == 2
    assert recording.segments[0].device_time is not None
    run_json = json.loads(live.folder.run_json.read_text())
    assert run_json["radio"]["actual"]["sample_rate_hz"] == recording.sample_rate_hz
    assert run_json["scenario"]["users"]["n_users"] == 20


def test_recordings_say_how_the_radio_was_set_and_what_was_sent(live):
    recording = Recording.open(live.folder.recording)
    own, capture = recording.global_fields, recording.segments[0].fields
    assert (own["path"], own["origin"], own["serials"]) == ("loopback", "sim", ["loopback"])
    assert own["tx_recordings"] == ["tx-beacon", "tx-users"]
    assert own["radio_counts"]["late_bursts"] == 0
    assert set(own["software"]) >= {"semair", "numpy", "gnuradio"}
    assert capture["requested"]["sample_rate_hz"] == capture["actual"]["sample_rate_hz"] == recording.sample_rate_hz
    assert recording.meta["global"]["spatial:num_elements"] == 2
    sent = Recording.open(live.folder.path / "tx-users.sigmf-meta")
    assert sent.annotations[0].raw["signal:detail"]["multiplexing"] == "ofdm"


@pytest.mark.parametrize("name", ["truth.npy", "run.json", "decisions.npy", "tx-users.sigmf-meta"])
def test_a_changed_byte_anywhere_in_a_run_is_found(copied, name):
    path = copied / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    errors = [f for f in verify(copied) if f.severity == "error"]
    assert errors
    assert {f.file for f in errors} == {path}


def test_replay_decides_the_same_bit_for_bit(live):
    result = replay_run(live.folder.path)
    assert (result.live, result.equal, result.extra) == (N_FRAMES, N_FRAMES, 0)
    ours, theirs = (f.rows(f.decisions) for f in (result.folder, live.folder))
    for field in DECISION_FIELDS:
        assert ours[field].tobytes() == theirs[field].tobytes()
    assert result.air_s > N_FRAMES * 4096 / 2e6


def test_same_seed_same_samples_another_seed_others(live, tmp_path):
    again = run(tmp_path / "again")
    other = run(tmp_path / "other", "seed=2")
    data = [r.folder.recording.with_suffix(".sigmf-data").read_bytes() for r in (live, again, other)]
    assert data[0] == data[1]
    assert data[0] != data[2]


def test_another_detector_decides_on_the_same_air(live):
    result = replay_run(live.folder.path, detector="somp")
    assert result.detector == "somp"
    assert result.equal is None
    rows, live_rows = (f.rows(f.decisions) for f in (result.folder, live.folder))
    for field in ("frame", "sample_time", "length", "cfo_hz", "noise_power"):
        np.testing.assert_array_equal(rows[field], live_rows[field])
    assert rows["scores"].tobytes() != live_rows["scores"].tobytes()
    # A second replay with it replaces the first.
    again = replay_run(live.folder.path, detector="somp")
    assert again.folder.path == result.folder.path


def test_the_runs_own_detector_by_name_keeps_the_options_it_ran_with(tmp_path):
    live = run(tmp_path / "run", "detector.options={threshold=0.9}", n_frames=9)
    named = replay_run(live.folder.path, detector="cd")
    assert (named.detector, named.live, named.equal) == ("cd", 9, 9)
    assert named.folder.path == replay_run(live.folder.path).folder.path
    assert json.loads(named.folder.run_json.read_text())["options"] == {"threshold": 0.9}
    # With options of its own it is another detector.
    other = replay_run(live.folder.path, detector="cd", options={"threshold": 0.1})
    assert other.equal is None
    rows, live_rows = (f.rows(f.decisions) for f in (other.folder, live.folder))
    assert rows["scores"].tobytes() == live_rows["scores"].tobytes()
    assert unpack_users(rows["active"], 20).sum() > unpack_users(live_rows["active"], 20).sum()


def test_options_without_a_detector_are_refused(live):
    with pytest.raises(ScenarioError, match=r"options threshold are given without a detector"):
        replay_run(live.folder.path, options={"threshold": 0.1})


def test_unknown_detector_names_the_known_ones(live):
    with pytest.raises(ScenarioError, match=r"'magic' is unknown.*cd.*somp"):
        replay_run(live.folder.path, detector="magic")


def test_progress_is_told(tmp_path):
    told: list[Progress] = []
    run(tmp_path / "run", on_progress=lambda p: told.append(Progress(**vars(p))))
    assert told[-1].sent == told[-1].decided == told[-1].expected == N_FRAMES


def test_replay_can_stop_early(live):
    result = replay_run(live.folder.path, until_frames=5)
    assert 5 <= len(result.folder.rows(result.folder.decisions)) <= N_FRAMES


def test_lost_samples_live_and_replayed(tmp_path):
    # In the slot of frame 5, in the beacon of frame 9, and whole frames: 14 to 16.
    losses = [[5 * 4096 + 2000 + 4000, 50], [9 * 4096 + 4500, 700], [14 * 4096, 3 * 4096]]
    result = run(tmp_path / "run", "impairments.start_delay_samples=0", f"radio.losses={losses}")
    counts = result.metrics["counts"]
    assert counts["lost_samples_injected"] == counts["lost_samples"] == 50 + 700 + 3 * 4096
    assert counts["gaps"] == 3
    frames = result.folder.rows(result.folder.decisions)["frame"]
    assert 15 <= len(frames) < N_FRAMES
    assert set(range(18, N_FRAMES)) <= set(frames.tolist())
    truth, rows = result.folder.rows(result.folder.truth), result.folder.rows(result.folder.decisions)
    # Those decided stand at their right place in radio time, and are decided rightly at full length.
    np.testing.assert_allclose(rows["sample_time"] + rows["fraction"], truth["arrival"][frames], atol=4)
    long = rows["length"] == 28
    np.testing.assert_array_equal(rows["active"][long], truth["active"][frames][long])
    assert len(Recording.open(result.folder.recording).segments) == 4
    replayed = replay_run(result.folder.path)
    assert (replayed.live, replayed.equal, replayed.extra) == (len(frames), len(frames), 0)
    assert replayed.metrics["counts"]["slots_dropped"] == counts["slots_dropped"]


@pytest.mark.parametrize("activity", [0, 1])
def test_nobody_and_everybody_active(tmp_path, activity):
    result = run(tmp_path / "run", f"users.activity={activity}", n_frames=9)
    folder = result.folder
    truth = unpack_users(folder.rows(folder.truth)["active"], 20)
    assert np.all(truth == bool(activity))
    decided = unpack_users(folder.rows(folder.decisions)["active"], 20)
    assert decided.shape == (9, 20)
    if not activity:
        assert decided.mean() < 0.05
    else:
        assert decided[folder.rows(folder.decisions)["length"] == 28].mean() > 0.8
    replayed = replay_run(folder.path)
    assert replayed.equal == replayed.live == 9


def test_preamble_longer_than_the_slot_is_refused():
    with pytest.raises(ScenarioError, match=r"users\.preamble_lengths holds 29.*max_preamble_length=28"):
        scenario("users.preamble_lengths=[29]")


def test_unknown_radio_names_the_known_ones(tmp_path):
    with pytest.raises(RadioError, match=r"radio 'carrier pigeon' is not known; known are iio, loopback, replay"):
        run(tmp_path / "run", "radio.kind=carrier pigeon")
    assert not (tmp_path / "run").exists()


def test_no_frames_are_refused(tmp_path):
    with pytest.raises(ScenarioError, match="at least 1 frame"):
        run(tmp_path / "run", n_frames=0)
    assert not (tmp_path / "run").exists()


def test_existing_folder_is_replaced_only_when_asked(tmp_path):
    run(tmp_path / "run", n_frames=3)
    with pytest.raises(ScenarioError, match=r"exists and is not empty.*--overwrite"):
        run(tmp_path / "run", n_frames=3)
    assert len(run(tmp_path / "run", n_frames=4, overwrite=True).folder.rows(tmp_path / "run/truth.npy")) == 4


def test_folder_that_is_no_run_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ScenarioError, match="not a run folder"):
        run(tmp_path, n_frames=3, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_run_without_recording_cannot_be_replayed_and_says_so(tmp_path):
    result = run(tmp_path / "run", n_frames=3, record=False)
    assert result.metrics["frames"]["decided"] == 3
    with pytest.raises(RecordingError, match="bs-rx"):
        replay_run(tmp_path / "run")


@pytest.mark.parametrize("missing", ["run.json", "decisions.npy"])
def test_incomplete_run_folders_are_told(copied, missing):
    (copied / missing).unlink()
    with pytest.raises(RecordingError, match=missing.replace(".", r"\.")):
        replay_run(copied)


def test_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(RecordingError, match="not a folder"):
        replay_run(tmp_path / "nothing")


def test_tampered_samples_are_found(copied):
    data = copied / "bs-rx.sigmf-data"
    content = np.fromfile(data, "<i2")
    # A weak copy of other samples in the slots of one frame, far below what the eye sees.
    place = content.size // 2
    content[place : place + 20_000] += content[:20_000] // 8
    content.tofile(data)
    with pytest.raises(ReplayMismatch, match=r"decisions were not reproduced .*the recording was altered"):
        replay_run(copied)


def edit(copied: Path, change) -> None:
    meta = copied / "bs-rx.sigmf-meta"
    content = json.loads(meta.read_text())
    change(content)
    meta.write_text(json.dumps(content))


def test_recording_of_another_rate_is_refused(copied):
    edit(copied, lambda meta: meta["global"].update({"core:sample_rate": 1e6}))
    with pytest.raises(RadioError, match=r"core:sample_rate is 1\S+, the scenario asks for 2\S+;"):
        replay_run(copied)


def test_recording_of_another_number_of_channels_is_refused(copied):
    edit(copied, lambda meta: meta["global"].update({"core:num_channels": 1}))
    with pytest.raises(RecordingError, match=r"core:num_channels|samples were recorded"):
        replay_run(copied)


@pytest.mark.parametrize("datatype", ["cf32_le", "ri16_le", "cu8", "nonsense"])
def test_recording_of_another_datatype_is_refused_or_found_to_differ(copied, datatype):
    edit(copied, lambda meta: meta["global"].update({"core:datatype": datatype}))
    with pytest.raises(SemairError) as caught:
        replay_run(copied)
    assert "bs-rx" in str(caught.value) or isinstance(caught.value, ReplayMismatch)


def test_recording_of_another_frequency_is_refused(copied):
    edit(copied, lambda meta: meta["captures"][0].update({"core:frequency": 2.4e9}))
    with pytest.raises(RadioError, match=r"core:frequency is 2\.?4.*the scenario asks for 3\.?5"):
        replay_run(copied)


def test_truncated_recording_is_told_and_replays_once_recovered(copied):
    data = copied / "bs-rx.sigmf-data"
    with data.open("r+b") as file:
        # In the middle of a frame, and of a sample.
        file.truncate(data.stat().st_size // 2 + 3)
    with pytest.raises(RecordingError, match=r"bs-rx\.sigmf-data.*recover"):
        replay_run(copied)
    recover(copied)
    result = replay_run(copied)
    assert result.equal == result.live
    assert 5 <= result.live < N_FRAMES
    assert result.extra == 0


def test_not_a_number_in_a_recording_ends_with_its_place(tmp_path):
    result = run(tmp_path / "run", "impairments.adc_bits=12", "level=perfect", n_frames=4)
    recording = Recording.open(result.folder.recording)
    x = recording.read()
    x[1, 5000] = np.nan
    x.T.astype("<c8").tofile(recording.data_path)

    def change(meta):
        meta["global"]["core:datatype"] = "cf32_le"
        for key in ("core:sha512",):
            meta["global"].pop(key, None)

    edit(tmp_path / "run", change)
    with pytest.raises(SemairError, match=r"(?s)(?=.*antenna 1)(?=.*sample 5000)"):
        replay_run(tmp_path / "run")


def test_comparison_counts_equal_different_and_extra(live):
    rows = live.folder.rows(live.folder.decisions).copy()
    changed = rows.copy()
    changed["scores"][3, 7] = np.nextafter(changed["scores"][3, 7], 9)
    changed = np.concatenate([changed[:10], changed[11:]])
    extra = rows[:1].copy()
    extra["frame"] = 999
    equal, more, different = compare_decisions(rows, np.concatenate([changed, extra]))
    assert (equal, more, different) == (N_FRAMES - 2, 1, [3, 10])
    # Times of the host differ between runs and do not count.
    later = rows.copy()
    later["decided_ns"] += 5
    assert compare_decisions(rows, later) == (N_FRAMES, 0, [])


ENDLESS = """
    from pathlib import Path
    from semair.flowgraphs.run import run_random_access
    from semair.flowgraphs.scenario import load_scenario
    def told(progress):
        if progress.decided > 40:
            print("running", flush=True)
    result = run_random_access(load_scenario("lab", {overrides!r}), Path({folder!r}), n_frames=10**6, on_progress=told)
    print("interrupted", result.interrupted, flush=True)
"""


def start_endless(folder: Path) -> subprocess.Popen:
    script = textwrap.dedent(ENDLESS.format(overrides=list(SMALL), folder=str(folder)))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line == "running\n":
            return process
    raise AssertionError(f"the run ended with {process.wait()}")


@pytest.mark.slow
def test_killed_run_is_recovered_and_replays(tmp_path):
    folder = tmp_path / "run"
    process = start_endless(folder)
    process.kill()
    process.wait(30)
    assert not (folder / "bs-rx.sigmf-meta").exists()
    with pytest.raises(RecordingError, match="run recover"):
        replay_run(folder)
    recovered = {recording.name: recording for recording in recover(folder)}
    assert recovered["bs-rx"].n_samples > 0
    result = replay_run(folder)
    assert result.equal == result.live > 0
    rows = RunFolder(folder).rows(folder / "decisions.npy")
    assert len(rows) >= 40


@pytest.mark.slow
def test_ctrl_c_leaves_a_run_that_replays(tmp_path):
    folder = tmp_path / "run"
    process = start_endless(folder)
    try:
        process.send_signal(signal.SIGINT)
        assert process.stdout.read().splitlines()[-1] == "interrupted True"
        assert process.wait(30) == 0
    finally:
        process.kill()
    assert [str(f) for f in verify(folder) if f.severity == "error"] == []
    result = replay_run(folder)
    assert result.equal == result.live > 30

"""The closed loop over the emulated radio: errors of one link go into the next, and it replays bit for bit."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")
pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

from PIL import Image
from semair.blocks.waveforms.sounding import from_delay_angle
from semair.captures.collection import open_collection
from semair.captures.verify import verify
from semair.cli import app
from semair.errors import ModelError, RecordingError, ReplayMismatch, ScenarioError
from semair.flowgraphs import closed_loop_run, links
from semair.flowgraphs import run as access_run
from semair.flowgraphs.closed_loop import ACCESS, FEEDBACK, LOOP_DTYPE, PICTURES, STAGES
from semair.flowgraphs.closed_loop_run import LOOP, WANTED, replay_recording, replay_run, run_closed_loop
from semair.flowgraphs.csi_feedback_run import CHANNELS
from semair.flowgraphs.link_run import Progress, RunResult
from semair.flowgraphs.picture_schedule import GivenPictures
from semair.flowgraphs.radios import csi_drops
from semair.flowgraphs.report import write_report
from semair.flowgraphs.runfolder import RunFolder, unpack_users
from semair.flowgraphs.scenario import load_scenario
from semair.flowgraphs.semantic_metrics import SENT
from semair.models.uad.detectors.base import Detection, Detector
from typer.testing import CliRunner

N_ROUNDS, N_USERS = 6, 8
# Few users, of whom many ask; engines that are at hand sooner than others.
SMALL = (
    f"users.n_users={N_USERS}",
    "users.activity=0.2",
    'detector.name="cd"',
    "link.access_snr_db=15",
    'loop.downlink.csi.engine="torch"',
    'loop.downlink.pictures.engine="torch"',
)
# What seed 1 draws.
ACTIVE = [{0, 7}, {1, 2, 5, 6}, {3, 7}, {6}, set(), {2}]
MISSED_ALONE, FOUND_FALSELY, BESIDE = 6, 0, 2


def scripted(scenario, name=None, options=None) -> Detector:
    """A detector that misses one user where nobody else asks, and finds another one beside a third."""
    made = _make_detector(scenario, name, options)
    plain = made.detect

    def detect(y, noise_power) -> Detection:
        found = plain(y, noise_power)
        for active, scores in zip(found.active, found.scores, strict=True):
            users = set(np.flatnonzero(active))
            if users == {MISSED_ALONE}:
                active[:] = False
            if users == {BESIDE}:
                active[FOUND_FALSELY], scores[FOUND_FALSELY] = True, scores.max() + 1
        return found

    made.detect = detect
    return made


_make_detector = access_run.make_detector


@pytest.fixture(scope="module", autouse=True)
def _scripted() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(access_run, "make_detector", scripted)
        yield


@pytest.fixture(scope="module")
def told() -> list[Progress]:
    return []


@pytest.fixture(scope="module")
def live(tmp_path_factory, told) -> RunResult:
    """One run; read only but for its replays and report."""
    folder = tmp_path_factory.mktemp("runs") / "loop"
    return run_closed_loop(
        load_scenario("closed-loop", SMALL), folder, n_frames=N_ROUNDS, on_progress=lambda state: told.append(state)
    )


@pytest.fixture(scope="module")
def table(live) -> np.ndarray:
    return live.folder.rows(live.folder.path / LOOP).reshape(N_ROUNDS, N_USERS)


@pytest.fixture
def copied(live, tmp_path) -> Path:
    return Path(shutil.copytree(live.folder.path, tmp_path / "copy"))


def stage(live: RunResult, name: str) -> RunFolder:
    return RunFolder(live.folder.path / name)


def test_everybody_is_told_what_became_of_it(table):
    assert table.dtype == LOOP_DTYPE
    assert [set(np.flatnonzero(row)) for row in table["active"]] == ACTIVE
    causes = [{int(row["user"]): str(row["cause"]) for row in rows if row["cause"] != "silent"} for rows in table]
    assert causes[0] == {0: "served", 7: "served"}
    assert sorted(causes[1].values()) == ["served", "served", "waiting", "waiting"]
    assert set(causes[1]) == ACTIVE[1]
    assert causes[2] == {3: "served", 7: "served"}
    assert causes[3] == {6: "missed"}
    assert causes[4] == {}
    assert causes[5] == {0: "false alarm", 2: "served"}


def test_those_with_the_highest_scores_are_served_and_others_wait(table):
    rows = table[1]
    served, waiting = rows[rows["cause"] == "served"], rows[rows["cause"] == "waiting"]
    assert served["score"].min() >= waiting["score"].max()
    assert sorted(served["slot"]) == [0, 1]
    assert np.isnan(waiting["psnr_db"]).all()


def test_a_missed_user_gets_nothing_and_nothing_is_sent(live, table):
    assert not table["served"][3].any()
    sent = stage(live, PICTURES).rows(stage(live, PICTURES).path / SENT)
    assert not np.any(np.isin(sent["frame"], [3, 4]))


def test_a_false_alarm_wastes_its_slot_in_silence(live, table):
    row = table[5][FOUND_FALSELY]
    assert row["granted"] and row["slot"] == 0
    assert not row["answered"] and not row["received"]
    assert np.isnan(row["psnr_db"])
    feedback = stage(live, FEEDBACK)
    truth = feedback.rows(feedback.truth)
    assert unpack_users(truth["active"], 2)[5].tolist() == [False, True]
    assert live.metrics["users"]["slots_wasted"] == 1
    # Who is granted with it is served all the same.
    assert table[5][BESIDE]["received"]


def test_pictures_are_precoded_with_the_csi_that_came_back(live, table):
    feedback, pictures = stage(live, FEEDBACK), stage(live, PICTURES)
    decided = feedback.rows(feedback.decisions)
    known = pictures.rows(pictures.path / CHANNELS)
    assert len(known) == np.count_nonzero(table["served"])
    for row in known:
        recovered = decided["csi"][decided["frame"] == row["frame"]][0][row["user"]]
        np.testing.assert_array_equal(row["known"], from_delay_angle(recovered, 256).astype(np.complex64))
    truth = pictures.rows(pictures.truth)
    reckoned = live.metrics["csi"]["reckoned_nmse_db"]
    assert set(truth["csi_nmse_db"][truth["length"] > 0]) == {reckoned}


def test_both_downlinks_of_a_round_are_of_the_same_drop(live):
    drops = csi_drops(load_scenario("closed-loop", SMALL).loop.downlink)
    feedback = stage(live, FEEDBACK)
    for row in feedback.rows(feedback.path / CHANNELS):
        np.testing.assert_array_equal(row["h"], drops(int(row["frame"])).h)


def test_users_get_the_pictures_they_asked_for(live, table):
    wanted = live.folder.rows(live.folder.path / WANTED)
    assert {(int(row["round"]), int(row["user"])) for row in wanted} == {
        (number, user) for number, users in enumerate(ACTIVE) for user in users
    }
    asked = {(int(row["round"]), int(row["user"])): row["picture"] for row in wanted}
    pictures = stage(live, PICTURES)
    got = {(int(row["frame"]), int(row["user"])): row["picture"] for row in pictures.rows(pictures.decisions)}
    for row in table[table["received"]]:
        one = asked[int(row["round"]), int(row["user"])]
        other = got[int(row["round"]), int(row["slot"])]
        psnr_db = 10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2))
        assert row["psnr_db"] == pytest.approx(psnr_db, abs=1e-3)
        # Any other picture would be some 10 dB away.
        assert psnr_db > 14


def test_metrics_are_those_of_the_table(live, table):
    users, rows = live.metrics["users"], table.reshape(-1)
    assert users["active"] == sum(map(len, ACTIVE)) == np.count_nonzero(rows["active"])
    assert users["served"] + users["missed"] + users["waiting"] == users["active"]
    assert (users["missed"], users["waiting"], users["false_alarm"]) == (1, 2, 1)
    got = rows[rows["received"]]
    by_round = [got["psnr_db"][got["round"] == number].mean() for number in np.unique(got["round"])]
    assert live.metrics["pictures"]["psnr_db"][0] == pytest.approx(np.mean(by_round))
    assert live.metrics["share_served"][0] == pytest.approx(users["served"] / users["active"])
    assert live.metrics["access"]["missed"] == pytest.approx(1 / users["active"])
    assert live.metrics["access"]["false_alarms"] == pytest.approx(1 / (N_ROUNDS * N_USERS - users["active"]))
    # Perfect CSI is known for those served, no error at all for as many as the slots take.
    assert np.isfinite(rows["perfect_psnr_db"]).sum() == len(got)
    assert np.isfinite(rows["ideal_psnr_db"]).sum() == sum(min(len(users), 2) for users in ACTIVE)
    assert np.isfinite(table["ideal_psnr_db"][3, MISSED_ALONE])
    for name in ("access_detect", "feedback_encode", "feedback_decode", "pictures_transmit", "pictures_decode"):
        assert live.metrics["latency_ms"][name]["p50"] > 0


def test_progress_goes_over_all_stages(told):
    assert told[-1].expected == len(STAGES) * N_ROUNDS
    assert [name for name in STAGES if any(f", {name}:" in state.remark for state in told)] == list(STAGES)
    assert [state.decided for state in told] == sorted(state.decided for state in told)


def test_one_collection_ties_all_stages_together(live):
    assert verify(live.folder.path) == []
    found = open_collection(live.folder.path)
    assert {role.partition("-")[0] for role in found.recordings} == set(STAGES)
    assert found.fields["truth"] == LOOP
    assert found.fields["complete"]
    assert {"run.json", LOOP, "access/decisions.npy", "feedback/channels.npy", "pictures/sent.npy"} <= set(
        found.fields["files"]
    )
    for name in STAGES:
        assert verify(live.folder.path / name) == []


def test_a_replay_gives_the_same_bits_in_every_stage(live, table):
    assert links.module_of(links.kind_of_run(live.folder.path)) is closed_loop_run
    done = replay_run(live.folder.path)
    n_pictures = np.count_nonzero(table["served"])
    assert done.equal == done.live == 2 * N_ROUNDS + n_pictures
    again = done.folder.rows(done.folder.path / LOOP)
    assert again.tobytes() == table.tobytes()
    for name in ("users", "access", "csi", "pictures", "ideal"):
        assert done.metrics[name] == live.metrics[name]


def test_the_page_tells_the_story_of_each_round(live, table):
    page = write_report(live.folder.path).read_text(encoding="utf-8")
    assert "<script" not in page
    counts = {
        name: int(count)
        for name, count in re.findall(r'<tr data-name="(\w+)"><th[^>]*>[^<]*</th><td><data value="(\d+)">', page)
    }
    users = live.metrics["users"]
    assert {name: counts[name] for name in ("active", "served", "missed", "waiting", "false_alarm")} == {
        name: users[name] for name in ("active", "served", "missed", "waiting", "false_alarm")
    }
    shots = re.findall(
        r'<img src="data:image/png;base64,([^"]+)"[^>]*alt="picture that user (\d+) (asked|received)[^"]*round (\d+)"',
        page,
    )
    assert len(shots) == sum(map(len, ACTIVE)) + np.count_nonzero(table["received"])
    wanted = {
        (int(row["round"]), int(row["user"])): row["picture"] for row in live.folder.rows(live.folder.path / WANTED)
    }
    for data, user, kind, number in shots:
        shown = np.array(Image.open(io.BytesIO(base64.b64decode(data))))
        assert (shown == wanted[int(number), int(user)]).all() == (kind == "asked")
    assert '<b>Round 4</b><span class="soft">nobody asked' in page
    shown = {
        key: float(value)
        for key, value in re.findall(r'<tr data-name="(\w+_psnr_db|psnr_db)">.*?</td><td><data value="([^"]+)">', page)
    }
    assert shown["psnr_db"] == live.metrics["pictures"]["psnr_db"][0]
    assert shown["perfect_psnr_db"] == live.metrics["pictures"]["perfect_psnr_db"][0]
    with pytest.raises(ScenarioError, match="report of its access stage"):
        write_report(live.folder.path, detectors=["somp"])


@pytest.mark.slow
def test_a_replay_that_differs_is_told(copied):
    data = copied / ACCESS / "bs-rx.sigmf-data"
    samples = np.fromfile(data, "<i2")
    samples[: len(samples) // 2] = samples[0]
    samples.tofile(data)
    with pytest.raises((ReplayMismatch, RecordingError)):
        replay_run(copied)
    assert any(finding.severity == "error" for finding in verify(copied))


@pytest.mark.parametrize("asked", [{"detector": "somp"}, {"options": {"threshold": 1}}, {"until_frames": 2}])
def test_a_loop_is_replayed_as_it_was(live, asked):
    with pytest.raises(ScenarioError, match="replay a stage alone"):
        replay_run(live.folder.path, **asked)


def test_what_is_no_loop_is_named(live, tmp_path):
    with pytest.raises(ScenarioError, match="name the scenario of that link"):
        replay_recording(tmp_path / "x.sigmf-meta", load_scenario("closed-loop"), tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(live.folder.run_json, empty)
    with pytest.raises(RecordingError, match="holds no run of a stage"):
        replay_run(empty)


@pytest.mark.parametrize(
    ("overrides", "options", "error", "words"),
    [
        ([], {"n_frames": 0}, ScenarioError, "rounds=0"),
        ([], {"receive": False}, ScenarioError, "round by round"),
        ([], {"duration_s": 1.0}, ScenarioError, "--rounds"),
        (["users.n_users=1"], {}, ScenarioError, "more slots than users"),
        (['detector.name="nobody"'], {}, ScenarioError, "nobody"),
        (['loop.downlink.csi.model="nowhere"'], {}, ScenarioError, "nowhere"),
        (['loop.downlink.pictures.model="nowhere"'], {}, ScenarioError, "nowhere"),
        (["loop.downlink.pictures.side=128"], {}, ModelError, "data_symbols"),
    ],
)
def test_what_does_not_fit_is_explained_before_a_folder_is_made(tmp_path, overrides, options, error, words):
    with pytest.raises(error, match=words):
        run_closed_loop(load_scenario("closed-loop", [*SMALL, *overrides]), tmp_path / "none", **options)
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_csi_that_is_lost_costs_the_picture(tmp_path):
    quiet = [*SMALL, "loop.downlink.csi.sounding_snr_db=-10", "users.activity=0.5"]
    done = run_closed_loop(load_scenario("closed-loop", quiet), tmp_path / "deaf", n_frames=3, record=False)
    assert done.metrics["users"]["csi_lost"] > 0
    rows = done.folder.rows(done.folder.path / LOOP)
    lost = rows[rows["cause"] == "csi lost"]
    assert lost["granted"].all()
    assert not (lost["recovered"] | lost["served"] | lost["received"]).any()
    assert "csi lost" in write_report(done.folder.path).read_text(encoding="utf-8")


@pytest.mark.slow
def test_nobody_asks_and_there_is_a_page_all_the_same(tmp_path):
    empty = load_scenario("closed-loop", [*SMALL, "users.activity=0"])
    done = run_closed_loop(empty, tmp_path / "empty", n_frames=2)
    assert done.metrics["users"]["active"] == done.metrics["users"]["granted"] == 0
    assert "share_served" not in done.metrics and "pictures" not in done.metrics
    assert verify(done.folder.path) == []
    assert replay_run(done.folder.path).equal == 4
    assert "No picture was received." in write_report(done.folder.path).read_text(encoding="utf-8")


@pytest.mark.slow
def test_given_pictures_are_sent_and_the_same_seed_gives_the_same_loop(live, table, tmp_path):
    rng = np.random.default_rng(3)
    given = GivenPictures("mine", list(rng.integers(0, 256, (3, 64, 64, 3), np.uint8)), {})
    scenario = load_scenario("closed-loop", SMALL)
    done = run_closed_loop(scenario, tmp_path / "mine", n_frames=N_ROUNDS, record=False, pictures=given)
    for row in done.folder.rows(done.folder.path / WANTED):
        number = int(row["round"]) * N_USERS + int(row["user"])
        assert (row["picture"] == given[number]).all()
    rows = done.folder.rows(done.folder.path / LOOP)
    for name in ("active", "detected", "score", "slot", "csi_nmse_db", "cause"):
        assert rows[name].tobytes() == table.reshape(-1)[name].tobytes(), name


@pytest.mark.slow
def test_the_command_runs_replays_and_reports(tmp_path):
    runner = CliRunner()
    folder = str(tmp_path / "run")
    settings = [part for text in SMALL for part in ("--set", text)]
    done = runner.invoke(app, ["run", "closed-loop", "-n", "1", "--folder", folder, *settings])
    assert done.exit_code == 0, done.output
    assert "served" in done.output and "report.html" in done.output
    assert (tmp_path / "run" / "report.html").is_file()
    again = runner.invoke(app, ["replay", folder, "--json"])
    assert again.exit_code == 0, again.output
    told = json.loads(again.stdout)
    assert told["reproduced"] == told["live_decisions"] == 4
    assert told["users"]["served"] == 2
    for name in STAGES:
        assert runner.invoke(app, ["report", str(tmp_path / "run" / name)]).exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize("where", STAGES)
def test_ctrl_c_keeps_what_was_done(tmp_path, where):
    # Long enough that the stage is not over when it is noticed.
    rounds = {ACCESS: 1000, FEEDBACK: 80, PICTURES: 30}[where]

    pressed = []

    def press(state: Progress) -> None:
        in_stage = f", {where}:" in state.remark and 2 < state.decided - STAGES.index(where) * rounds < rounds
        if in_stage and not pressed:
            pressed.append(state)
            raise KeyboardInterrupt

    scenario = load_scenario("closed-loop", SMALL)
    done = run_closed_loop(scenario, tmp_path / "run", n_frames=rounds, on_progress=press)
    assert done.interrupted and done.metrics["counts"]["interrupted"]
    reached = STAGES[: STAGES.index(where) + 1]
    assert [name for name in STAGES if (tmp_path / "run" / name).is_dir()] == list(reached)
    assert [finding for finding in verify(done.folder.path) if finding.severity == "error"] == []
    assert not open_collection(done.folder.path).fields["complete"]
    rows = done.folder.rows(done.folder.path / LOOP)
    assert np.any(rows["received"]) == (where == PICTURES)
    again = replay_run(done.folder.path)
    assert again.equal == again.live > 0
    page = write_report(done.folder.path).read_text(encoding="utf-8")
    assert "The run was ended before it was through" in page

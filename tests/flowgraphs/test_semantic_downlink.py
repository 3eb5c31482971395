"""The picture downlink over the emulated radio: what arrives, what it costs, exact replays, and what goes wrong."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")
pytest.importorskip("torch", reason="torch is not installed")

from PIL import Image
from semair.blocks.picture_transmitter import Served
from semair.blocks.playback import PlayOptions
from semair.blocks.waveforms.picture_frame import channels_at, on_data_subcarriers
from semair.captures.reader import Recording
from semair.captures.verify import verify
from semair.errors import ModelError, RadioError, ReplayMismatch, ScenarioError, SemairError
from semair.flowgraphs import links
from semair.flowgraphs.csi_feedback_run import make_codec, run_csi_feedback
from semair.flowgraphs.link_run import Progress
from semair.flowgraphs.picture_schedule import DrawnPictures, every_user, known_csi, read_pictures
from semair.flowgraphs.radios import csi_drops, downlink_paths
from semair.flowgraphs.report import write_report
from semair.flowgraphs.run import run_random_access
from semair.flowgraphs.runfolder import RunFolder, unpack_users
from semair.flowgraphs.scenario import Scenario, load_scenario
from semair.flowgraphs.semantic_downlink_run import (
    make_picture_codec,
    picture_path,
    replay_recording,
    replay_run,
    run_semantic_downlink,
)
from semair.flowgraphs.semantic_metrics import JUDGED, SENT, SKIPPED, at_symbol_level, csi_nmse_db, quality
from semair.models.semantic.images import draw

N_FRAMES = 6
# Engines that compile are at hand later, and a known error needs no second codec.
FAST = ('pictures.engine="torch"', 'pictures.csi="estimated"', "pictures.nmse_db=-20")


def scenario_of(*overrides: str) -> Scenario:
    return load_scenario("semantic-lab", [*FAST, *overrides])


def served_in(frame: int) -> tuple[int, ...]:
    """Both users, one, the other, nobody, and again."""
    return ((0, 1), (1,), (0,), ())[frame % 4]


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """A run in which not every user is served; read only."""
    scenario = scenario_of()
    all_users = every_user(scenario, DrawnPictures(64, 5), known_csi(scenario))

    def serve(frame: int) -> Served:
        users, whole = list(served_in(frame)), all_users(frame)
        return Served(tuple(users), whole.pictures[users], whole.csi[users], whole.csi_nmse_db)

    seen: list[Progress] = []
    folder = tmp_path_factory.mktemp("live") / "run"
    result = run_semantic_downlink(scenario, folder, n_frames=N_FRAMES, serve=serve, on_progress=seen.append)
    assert "PSNR" in seen[-1].remark
    return result


@pytest.fixture
def copied(live, tmp_path) -> Path:
    """A copy of that run, to be damaged."""
    shutil.copytree(live.folder.path, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(scope="module")
def replayed(live):
    return replay_run(live.folder.path)


DUE = {(frame, user) for frame in range(N_FRAMES) for user in served_in(frame)}


def test_whoever_is_served_receives_a_picture_like_what_was_sent(live):
    folder, metrics = live.folder, live.metrics
    rows = folder.rows(folder.decisions)
    assert {(int(row["frame"]), int(row["user"])) for row in rows} == DUE
    assert len(rows) == len(DUE)
    told = metrics["pictures"]
    assert (told["sent"], told["decided"], told["missed"], told["false"]) == (len(DUE), len(DUE), 0, 0)
    assert metrics["frames"] == {"sent": N_FRAMES, "empty": 1, "counted_on": 0}
    # A grey picture has some 13 dB, and pictures of other frames less.
    assert metrics["quality"]["psnr_db"][0] > 17
    assert abs(metrics["quality"]["chain_loss_db"][0]) < 1
    assert not live.interrupted


def test_users_learn_from_the_air_when_they_are_not_served(live):
    rows = live.folder.rows(live.folder.path / SKIPPED)
    assert {(int(row["frame"]), int(row["user"])) for row in rows} == {
        (frame, user) for frame in range(N_FRAMES) for user in range(2)
    } - DUE
    assert set(rows["reason"]) == {0}
    truth = live.folder.rows(live.folder.truth)
    assert [tuple(np.flatnonzero(unpack_users(row["active"], 2))) for row in truth] == [
        served_in(frame) for frame in range(N_FRAMES)
    ]


def test_pictures_appear_as_files(live):
    folder = live.folder
    for table, sent in ((folder.decisions, False), (folder.path / SENT, True)):
        for row in folder.rows(table):
            path = picture_path(folder, int(row["frame"]), int(row["user"]), sent=sent)
            np.testing.assert_array_equal(np.array(Image.open(path)), row["picture"])
    assert len(list((folder.path / "pictures").iterdir())) == 2 * len(DUE)


def test_quality_is_that_of_the_tables(live):
    folder = live.folder
    sent = {(int(row["frame"]), int(row["user"])): row["picture"] for row in folder.rows(folder.path / SENT)}
    judged = folder.rows(folder.path / JUDGED)
    for row in folder.rows(folder.decisions):
        place = int(row["frame"]), int(row["user"])
        mse = np.mean((sent[place].astype(float) - row["picture"]) ** 2) / 255**2
        found = judged[(judged["frame"] == place[0]) & (judged["user"] == place[1])]
        assert found["psnr_db"] == pytest.approx(-10 * np.log10(mse), abs=1e-3)
        # Estimated CSI of -20 dB.
        assert -22 < found["csi_nmse_db"] < -18
    by_frame = {frame: judged["psnr_db"][judged["frame"] == frame].mean() for frame in np.unique(judged["frame"])}
    assert live.metrics["quality"]["psnr_db"][0] == pytest.approx(np.mean(list(by_frame.values())))


def test_sinr_is_what_channel_and_precoder_make_of_it(live):
    """Against brute force: every stream is sent by itself over the true channel."""
    scenario, judged = scenario_of(), live.folder.rows(live.folder.path / JUDGED)
    codec = make_picture_codec(scenario)
    whole = every_user(scenario, DrawnPictures(64, 5), known_csi(scenario))(0)
    reference, _ = codec.transmit(whole.pictures, on_data_subcarriers(whole.csi), whole.csi_nmse_db, 10.0)
    paths = downlink_paths(scenario, csi_drops(scenario)(0))
    h = channels_at(scenario.picture_frame, paths.delays_samples, paths.gains)
    # Two references: the sum and the difference of the streams.
    streams = np.stack([reference[0] + reference[1], reference[0] - reference[1]]) / 2
    for user in range(2):
        power = np.abs(np.einsum("sa,ksa->ks", h[user], streams)) ** 2
        sinr_db = np.mean(10 * np.log10(power[user] / (power[1 - user] + 0.1)))
        row = judged[(judged["frame"] == 0) & (judged["user"] == user)]
        assert row["true_sinr_db"] == pytest.approx(sinr_db, abs=1e-3)
        # 256 subcarriers with noise; what users see of their own stream is cleaned of most of it.
        assert row["sinr_db"] == pytest.approx(sinr_db, abs=1.0)


def test_the_run_folder_holds_recordings_that_verify(live):
    path = live.folder.path
    assert verify(path) == []
    users, antennas = (Recording.open(path / f"{name}.sigmf-meta") for name in ("users-rx", "tx-antennas"))
    assert (users.n_channels, antennas.n_channels) == (2, 4)
    assert users.n_samples == antennas.n_samples
    sent = antennas.read(0, 6 * 20480)
    # Frame 3 serves nobody: behind its grant the antennas are silent.
    frame = scenario_of().picture_frame
    silent = sent[:, 3 * 20480 + frame.reference_start : 4 * 20480]
    assert not silent.any()
    assert sent[:, frame.reference_start : frame.downlink_samples].any(axis=1).all()
    assert links.kind_of_run(path) == "semantic-downlink"
    assert links.runner_of(scenario_of()) is run_semantic_downlink


def test_replay_gives_every_picture_bit_for_bit(live, replayed):
    assert (replayed.live, replayed.equal, replayed.extra) == (len(DUE), len(DUE), 0)
    for name in ("psnr_db", "chain_loss_db", "true_sinr_db"):
        assert replayed.metrics["quality"][name] == live.metrics["quality"][name]


def test_a_recording_that_was_altered_is_told(copied):
    data = np.memmap(copied / "users-rx.sigmf-data", np.int16, "r+")
    place = 2 * 2 * 6000
    data[place : place + 40000] = data[place : place + 40000][::-1].copy()
    data.flush()
    with pytest.raises(ReplayMismatch, match="pictures were not reproduced"):
        replay_run(copied)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"detector": "other"}, "by the weights that coded them"),
        ({"options": {"a": 1}}, "a codec has none"),
        ({"play": PlayOptions(turns=2)}, "--frame"),
        ({"play": PlayOptions(channels=(0,))}, "csi.n_users=2"),
    ],
)
def test_replays_that_make_no_sense_are_refused(live, arguments, text):
    with pytest.raises(SemairError, match=text):
        replay_run(live.folder.path, **arguments)


@pytest.mark.slow
def test_a_recording_is_decoded_without_its_run(live, tmp_path):
    result = replay_recording(live.folder.path / "users-rx.sigmf-meta", scenario_of(), tmp_path / "decoded")
    found, own = (folder.rows(folder.decisions) for folder in (result.folder, live.folder))
    assert result.extra == len(own)
    pictures = {(int(row["frame"]), int(row["user"])): row["picture"] for row in own}
    for row in found:
        np.testing.assert_array_equal(row["picture"], pictures[int(row["frame"]), int(row["user"])])
        assert picture_path(result.folder, int(row["frame"]), int(row["user"])).is_file()
    with pytest.raises(RadioError, match=r"csi\.n_users=2"):
        replay_recording(live.folder.path / "tx-antennas.sigmf-meta", scenario_of(), tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_reports_show_what_was_measured(live, replayed, copied):
    for folder in (live.folder.path, replayed.folder.path):
        page = write_report(folder).read_text(encoding="utf-8")
        assert page.count('alt="sent"') == page.count('alt="received"') == len(DUE)
        assert f'<data value="{live.metrics["quality"]["psnr_db"][0]}">' in page
        assert "Effective channels behind the precoder" in page
        assert "<script" not in page and "http" not in page.replace("http://www.w3.org", "").replace("https://", "")
    # What a killed run leaves, and a folder that kept its pictures only.
    (copied / "metrics.json").unlink()
    (copied / JUDGED).unlink()
    assert "did not end in order" in write_report(copied).read_text(encoding="utf-8")
    for name in ("truth.npy", SENT, "users-rx.sigmf-meta"):
        (copied / name).unlink()
    assert "what was sent is not known" in write_report(copied).read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_run_that_only_records_is_decoded_later(live, tmp_path):
    result = run_semantic_downlink(scenario_of(), tmp_path / "air", n_frames=2, receive=False)
    assert result.metrics["pictures"] | {"missed": 0} == {**live.metrics["pictures"], "sent": 4, "decided": 0}
    later = replay_run(tmp_path / "air")
    assert (later.live, later.extra) == (0, 4)
    assert later.metrics["quality"]["pictures"] == 4


def test_without_recording_there_is_nothing_to_replay(tmp_path):
    result = run_semantic_downlink(scenario_of("pictures.snr_db=25"), tmp_path / "run", n_frames=1, record=False)
    assert result.metrics["pictures"]["decided"] == 2
    with pytest.raises(SemairError, match="users-rx"):
        replay_run(tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.sigmf-*"))


@pytest.mark.parametrize(
    ("overrides", "error", "text"),
    [
        (("pictures.n_streams=5", "csi.n_users=5"), ScenarioError, "n_antennas=4"),
        (("pictures.n_streams=3",), ScenarioError, "3 users at once of 2 users"),
        (("csi.n_users=33", "frame.frame_samples=60000"), ScenarioError, "1 to 32"),
        (("pictures.side=100",), ScenarioError, "multiple of 64"),
        (("pictures.side=128",), ModelError, "data_symbols=4; make it 16"),
        (("pictures.side=128", "pictures.data_symbols=16"), ScenarioError, "lengthen the frame"),
        (("radio.n_antennas=3", "csi.comb=3"), ModelError, "trained for 4 antennas and 256 subcarriers"),
        (('pictures.model="nowhere"',), ScenarioError, "nowhere"),
        (('radio.kind="nothing"',), SemairError, "nothing"),
        (("pictures.csi=guessed",), ScenarioError, "pictures.csi"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(overrides, error, text, tmp_path):
    with pytest.raises(error, match=text):
        run_semantic_downlink(scenario_of(*overrides), tmp_path / "run", n_frames=1)
    assert not (tmp_path / "run").exists()


def test_runs_that_would_do_nothing_are_refused(tmp_path):
    with pytest.raises(ScenarioError, match="at least 1 frame"):
        run_semantic_downlink(scenario_of(), tmp_path / "run", n_frames=0)
    with pytest.raises(ScenarioError, match="nothing to do"):
        run_semantic_downlink(scenario_of(), tmp_path / "run", record=False, receive=False)
    with pytest.raises(ScenarioError, match=r"no section \[pictures\]"):
        run_semantic_downlink(load_scenario("csi-lab"), tmp_path / "run")
    with pytest.raises(ScenarioError, match="semantic-downlink"):
        run_random_access(scenario_of(), tmp_path / "run", n_frames=1)
    with pytest.raises(ScenarioError, match="semantic-downlink"):
        run_csi_feedback(scenario_of(), tmp_path / "run", n_frames=1)
    assert not (tmp_path / "run").exists()


def test_a_failing_schedule_ends_the_run_with_its_error(tmp_path):
    def serve(frame: int) -> Served:
        if frame == 1:
            raise ScenarioError("the schedule is at its end")
        return Served()

    with pytest.raises(ScenarioError, match="the schedule is at its end"):
        run_semantic_downlink(scenario_of(), tmp_path / "run", n_frames=4, serve=serve)


def test_known_csi_is_as_good_as_the_scenario_says():
    perfect = known_csi(scenario_of('pictures.csi="perfect"'))
    drops = csi_drops(scenario_of())
    np.testing.assert_array_equal(perfect(3)[0], drops(3).h)
    assert perfect(3)[1] == -40
    csi, told_db = known_csi(scenario_of("pictures.nmse_db=-12"))(3)
    assert told_db == -12
    error = np.mean(np.abs(csi - drops(3).h) ** 2)
    # 2048 complex values: a standard deviation of 2.2 % of the error; five of them.
    assert error == pytest.approx(10**-1.2, rel=0.11)
    # An MMSE estimate's error does not depend on it.
    assert abs(np.vdot(csi, csi - drops(3).h)) / np.sum(np.abs(csi) ** 2) < 0.03
    scenario = scenario_of('pictures.csi="fed back"', 'csi.engine="torch"')
    fed_back = known_csi(scenario, make_codec(scenario))
    found = [csi_nmse_db(drops(k).h[u], fed_back(k)[0][u]) for k in range(6) for u in range(2)]
    # Users near each other at first sight of the antennas; the card tells the mean over all places.
    assert -25 < np.mean(found) < -6
    assert -20 < fed_back(0)[1] < -5


def test_errors_of_csi_mind_neither_timing_nor_phase_nor_gain():
    rng = np.random.default_rng(1)
    taps = rng.standard_normal((6, 4, 2)) @ np.array([1, 1j])
    h = np.fft.fftshift(np.fft.fft(taps, 64, axis=0), axes=0)
    ramp = np.exp(-2j * np.pi * 2.3 / 64 * np.arange(-32, 32))[:, None]
    assert csi_nmse_db(h, 3j * h * ramp) < -35
    noise = rng.standard_normal((64, 4, 2)) @ np.array([1, 1j]) * np.sqrt(np.mean(np.abs(h) ** 2) / 2 / 9)
    # Best scaled, noise of a ninth of the power leaves a tenth; 256 values: 10 % of it is 1.6 standard deviations.
    assert csi_nmse_db(h, h + noise) == pytest.approx(-10, abs=1.2)
    assert csi_nmse_db(h, np.zeros_like(h)) == 0


def test_symbol_level_is_the_links_own(live):
    """The same pictures through `models.semantic.link.deliver`, with other noise."""
    import torch
    from semair.models.semantic import link
    from semair.models.semantic.evaluate import load_contender

    scenario = scenario_of()
    served = every_user(scenario, DrawnPictures(64, 5), known_csi(scenario))(0)
    paths = downlink_paths(scenario, csi_drops(scenario)(0))
    h = channels_at(scenario.picture_frame, paths.delays_samples, paths.gains)
    level = at_symbol_level(make_picture_codec(scenario), served, h, 10.0, np.random.default_rng(1))
    network = load_contender(scenario.pictures.model)[1].network
    sent = torch.from_numpy(served.pictures.astype(np.float32) / 255).permute(0, 3, 1, 2)[None]
    known = torch.from_numpy(np.ascontiguousarray(on_data_subcarriers(served.csi)))[None]
    channels = link.Channels(torch.from_numpy(h)[None], known, torch.tensor([-20.0]))
    with torch.inference_mode():
        found, _ = link.deliver(network, sent, channels, torch.tensor([10.0]), torch.Generator().manual_seed(1))
    for user in range(2):
        other = (found[0, user].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        own = quality(served.pictures[user], level.pictures[user]).psnr_db
        assert own == pytest.approx(quality(served.pictures[user], other).psnr_db, abs=0.7)


def png(side: int, seed: int = 1) -> bytes:
    target = io.BytesIO()
    Image.fromarray(draw(side, np.random.default_rng(seed))).save(target, "PNG")
    return target.getvalue()


def test_pictures_are_read_from_files_folders_and_archives(tmp_path):
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    (folder / "a.png").write_bytes(png(80, 1))
    (folder / "more" / "b.PNG").write_bytes(png(200, 2))
    (folder / "cut.png").write_bytes(png(80, 3)[:900])
    (folder / "text.jpg").write_text("no picture")
    (folder / "notes.txt").write_text("not looked at")
    Image.fromarray(np.full((70, 90), 1000, np.uint16)).save(tmp_path / "grey16.png")
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("c.png", png(64, 4))
    found = read_pictures([tmp_path / "grey16.png", folder, tmp_path / "some.zip"], 64)
    assert len(found) == 4
    assert all(found[k].shape == (64, 64, 3) and found[k].dtype == np.uint8 for k in range(9))
    np.testing.assert_array_equal(found[7], found[3])
    np.testing.assert_array_equal(found[3], np.array(Image.open(io.BytesIO(png(64, 4)))))
    assert set(found.skipped) == {"photos/cut.png", "photos/text.jpg"}
    assert len(read_pictures([folder], 64, 1)) == 1


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("gone.png", None, "no picture, folder or archive"),
        ("cut.png", png(90)[:500], "cut or damaged"),
        ("text.png", b"words", "no picture of a known kind"),
        ("empty.png", b"", "no picture of a known kind"),
        ("data.bin", b"\0" * 600, "holds no pictures"),
        ("data.tar", b"no archive", "no folder, .zip or .tar"),
        ("empty.zip", b"PK\x05\x06" + bytes(18), "holds no pictures"),
    ],
)
def test_pictures_that_cannot_be_read_are_refused(tmp_path, name, content, text):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ScenarioError, match=text):
        read_pictures([tmp_path / name], 64)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ScenarioError, match="holds no pictures"):
        read_pictures([tmp_path / "folder"], 64)


@pytest.mark.slow
def test_ctrl_c_leaves_a_whole_run(tmp_path):
    code = textwrap.dedent(f"""
        import sys
        from semair.cli import main
        sys.argv = ["semair", "run", "semantic-downlink", "-n", "100000", "--folder", {str(tmp_path / "run")!r}]
        for text in {FAST!r}:
            sys.argv += ["--set", text]
        main()
    """)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    decisions = tmp_path / "run" / "decisions.npy"
    try:
        for _ in range(1200):
            if decisions.is_file() and decisions.stat().st_size > 100_000:
                break
            try:
                process.wait(0.1)
                break
            except subprocess.TimeoutExpired:
                pass
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["counts"]["interrupted"]
    assert verify(tmp_path / "run") == []
    replayed = replay_run(tmp_path / "run")
    assert replayed.equal == replayed.live > 0
    assert RunFolder(tmp_path / "run").report.is_file()

"""The picture downlink over the emulated radio from the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")
pytest.importorskip("torch", reason="torch is not installed")

from PIL import Image
from semair.cli import app
from semair.models.semantic.images import draw, prepare
from typer.testing import CliRunner

FAST = ("--set", 'pictures.engine="torch"', "--set", "pictures.csi=perfect")


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(done, exit_code: int, *words: str) -> None:
    error = done.exception
    assert error is not None
    assert getattr(error, "exit_code", None) == exit_code, done.output
    for word in words:
        assert word in str(error)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for k in range(3):
        Image.fromarray(draw(80 + 20 * k, np.random.default_rng(k))).save(folder / f"{k}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff cut")
    return folder


def test_help_has_examples():
    done = run("run", "semantic-downlink", "--help")
    assert done.exit_code == 0
    assert "semantic-lab" in done.output
    assert "--pictures" in done.output


def test_pictures_of_a_folder_are_sent_and_replayed(photos, tmp_path):
    folder = tmp_path / "run"
    done = run("run", "semantic-downlink", "--pictures", photos, "--folder", folder, *FAST, "--no-report", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["folder"] == str(folder)
    # Three pictures for two users: the fourth is the first again.
    assert (said["frames"]["sent"], said["pictures"]["decided"]) == (2, 4)
    sent = np.array(Image.open(folder / "pictures" / "frame-00001-user-0-sent.png"))
    np.testing.assert_array_equal(sent, prepare(photos / "2.png", (64, 64)))
    told = json.loads((folder / "run.json").read_text())["pictures"]
    assert told["from"] == "photos" and list(told["skipped"]) == ["photos/broken.jpg"]
    done = run("replay", folder)
    assert done.exit_code == 0, done.output
    assert "all 4 of 4 live decisions reproduced bit for bit" in done.output
    assert "PSNR" in done.output


@pytest.mark.slow
def test_a_run_shows_its_quality_and_its_report(tmp_path):
    done = run("run", "semantic-downlink", "-n", 2, "--folder", tmp_path / "run", *FAST)
    assert done.exit_code == 0, done.output
    for word in ("what the radio chain costs", "MS-SSIM", "4 sent in 2 frames, 4 received", "semair replay"):
        assert word in done.output
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
def test_recorded_frames_are_decoded_later(tmp_path):
    done = run("record", "-s", "semantic-lab", "-n", 1, "--folder", tmp_path / "air", *FAST)
    assert done.exit_code == 0, done.output
    done = run("replay", tmp_path / "air", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["pictures"]["decided"] == 2


def test_what_does_not_fit_is_explained(photos, tmp_path):
    folder = ("--folder", tmp_path / "none")
    command = ("run", "semantic-downlink")
    refused(run(*command, "--pictures", tmp_path / "gone", *folder), 2, "gone")
    refused(run(*command, "--pictures", photos / "broken.jpg", *folder), 2, "broken.jpg")
    refused(run(*command, "-n", 0, *folder), 2, "at least 1 frame")
    refused(run(*command, "-s", "csi-lab", *folder), 2, "semantic-lab")
    refused(run(*command, "--model", "nowhere", *folder), 2, "nowhere")
    refused(run(*command, "--set", "radio.n_antennas=2", "--set", "csi.comb=2", *folder), 8, "trained for 4 antennas")
    refused(run(*command, "--set", "pictures.n_streams=5", "--set", "csi.n_users=5", *folder), 2, "n_antennas=4")
    refused(run(*command, "--set", "radio.kind=nothing", *folder), 4, "nothing")
    refused(run("run", "csi-feedback", "-s", "semantic-lab", *folder), 2, "semantic-downlink")
    assert not (tmp_path / "none").exists()

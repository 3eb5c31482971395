"""CSI feedback over the emulated radio from the command line."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")
pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

from semair.cli import app
from typer.testing import CliRunner

FAST = ("--set", 'csi.engine="torch"')


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(done, exit_code: int, *words: str) -> None:
    error = done.exception
    assert error is not None
    assert getattr(error, "exit_code", None) == exit_code, done.output
    for word in words:
        assert word in str(error)


def test_help_has_examples_of_both_scenarios():
    done = run("run", "csi-feedback", "--help")
    assert done.exit_code == 0
    assert "csi-lab" in done.output
    assert "csi-paper" in done.output


def test_a_run_is_replayed_bit_for_bit(tmp_path):
    folder = tmp_path / "run"
    done = run("run", "csi-feedback", "-n", 3, "--folder", folder, *FAST, "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["folder"] == str(folder)
    assert said["frames"]["decided"] == 3
    assert len(said["csi"]["nmse_db"]) == 3
    done = run("replay", folder)
    assert done.exit_code == 0, done.output
    assert "all 3 of 3 live decisions reproduced bit for bit" in done.output
    assert "NMSE" in done.output
    refused(run("replay", folder, "--channels", "0,1"), 2, "all antennas")


@pytest.mark.slow
def test_recorded_frames_are_decoded_later(tmp_path):
    done = run("record", "-s", "csi-lab", "-n", 2, "--folder", tmp_path / "air", *FAST)
    assert done.exit_code == 0, done.output
    done = run("replay", tmp_path / "air", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["frames"]["decided"] == 2


def test_what_does_not_fit_is_explained(tmp_path):
    folder = ("--folder", tmp_path / "none")
    refused(run("run", "csi-feedback", "-s", "lab", *folder), 2, "csi-lab")
    refused(run("run", "csi-feedback", "--model", "nowhere", *folder), 2, "nowhere")
    refused(run("run", "csi-feedback", "--model", "paper", *folder), 8, "32 antennas")
    refused(run("run", "csi-feedback", "--set", "csi.comb=8", *folder), 2, "comb=8")
    refused(run("run", "random-access", "-s", "csi-lab", *folder), 2, "csi-feedback")
    assert not (tmp_path / "none").exists()

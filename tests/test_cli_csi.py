"""CSI feedback from the command line."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")

from semair.cli import app
from typer.testing import CliRunner

TINY = """
name = "tiny"
start_drops = 40
[network]
kind = "munet"
width = 8
heads = 1
feedforward = 8
encoder_layers = 1
decoder_layers = 2
joint_layers = 1
code_width = 2
[mixture]
channel = "lab"
[optimiser]
steps = 3
batch = 4
[validation]
every = 2
drops = 10
test_drops = 10
test_snr_db = [0, 10]
"""


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_trained_network_can_be_evaluated(tmp_path):
    config = tmp_path / "tiny.toml"
    config.write_text(TINY)
    done = run("train", "csi", "--config", config, "--folder", tmp_path / "model", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["steps"], said["finished"]) == (3, True)
    assert {metric["conditions"]["length"] for metric in said["metrics"]} == {2, 4, 8, 16}
    words = ("evaluate", "csi", "-m", tmp_path / "model", "--sweep", "ratio", "--quick", "--drops", 10)
    done = run(*words, "--folder", tmp_path / "results", "--json")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["sweeps"]["ratio"]
    assert [row["condition"]["ratio"] for row in rows] == [64, 8]
    assert (tmp_path / "results" / "evaluation.json").exists()


def test_traced_drops_may_be_trained_with_and_evaluated_on(tmp_path, write_paths):
    config = tmp_path / "tiny.toml"
    config.write_text(TINY)
    paths = write_paths(tmp_path / "paths.safetensors")
    words = ("--config", config, "--traced", paths, "--scene", "square", "--traced-share", "0.4")
    done = run("train", "csi", *words, "--folder", tmp_path / "model", "--json")
    assert done.exit_code == 0, done.output
    assert {metric["conditions"]["channel"] for metric in json.loads(done.stdout)["metrics"]} == {"clustered", "traced"}
    training = json.loads((tmp_path / "model" / "card.json").read_text())["training"]
    assert training["config"]["mixture"]["traced"] == {"share": 0.4, "scenes": ["square"], "augment": True}
    assert training["command"].endswith("--traced paths.safetensors --scene square --traced-share 0.4")
    words = ("evaluate", "csi", "-m", tmp_path / "model", "--sweep", "spacing", "--quick", "--drops", 10)
    done = run(*words, "--traced", paths, "--scene", "street", "--folder", tmp_path / "results", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["settings"]["traced"]["scenes"] == ["street"]
    assert [0.5, 1.0] in [row["condition"]["spacing_m"] for row in said["sweeps"]["spacing"]]
    assert all(1 < row["places"] <= 10 for row in said["sweeps"]["spacing"])


def test_a_table_tells_drops_and_symbols(tmp_path, write_paths):
    config = tmp_path / "tiny.toml"
    config.write_text(TINY)
    paths = write_paths(tmp_path / "paths.safetensors")
    done = run("train", "csi", "--config", config, "--traced", paths, "--folder", tmp_path / "model")
    assert done.exit_code == 0, done.output
    assert "traced" in done.stdout
    assert "clustered" in done.stdout


def test_shipped_configurations_are_listed():
    done = run("train", "csi", "--list", "--json")
    assert done.exit_code == 0, done.output
    assert "SA-RCA-MUNet" in json.loads(done.stdout)["lab-rca"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "csi"), "--config is missing"),
        (("evaluate", "csi", "--sweep", "colour"), "--sweep 'colour' is unknown; choose among: ratio, snr"),
        (("evaluate", "csi", "--numerology", "home", "-m", "klt"), "numerology 'home' is unknown"),
        (("train", "csi", "--config", "lab", "--scene", "etoile"), "--scene and --traced-share go with --traced"),
        (("evaluate", "csi", "--scene", "etoile"), "--scene goes with --traced"),
        (("evaluate", "csi", "-m", "nowhere"), "neither a folder with card.json nor one of the shipped weights"),
    ],
)
def test_what_is_wrong_is_named(words, said, tmp_path, monkeypatch):
    from semair.errors import ScenarioError

    monkeypatch.chdir(tmp_path)
    done = run(*words)
    assert done.exit_code != 0
    assert isinstance(done.exception, ScenarioError)
    assert said in str(done.exception)

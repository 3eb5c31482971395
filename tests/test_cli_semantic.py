"""Semantic precoding from the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("torch")

from PIL import Image
from semair.cli import app
from semair.errors import ScenarioError
from semair.models.semantic.images import draw
from typer.testing import CliRunner

TINY = """
name = "tiny"
[network]
kind = "scsap"
fine_width = 8
fine_heads = 1
coarse_width = 16
coarse_heads = 2
encoder_layers = [1, 1]
decoder_layers = [1, 1]
[downlink]
channel = "lab"
[optimiser]
steps = 2
batch = 2
[validation]
every = 2
drops = 2
test_drops = 2
test_snr_db = [0, 10]
"""

BITS = """
name = "tiny-bits"
task = "bits"
symbols = 1
[network]
kind = "autoencoder"
precoder_width = 4
pair_width = 4
demapper_width = 8
[downlink]
channel = "lab"
fed_back = 0.0
[optimiser]
steps = 2
batch = 2
[validation]
every = 2
drops = 2
snr_db = [5]
test_drops = 2
test_snr_db = [10]
"""


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    place = tmp_path_factory.mktemp("semantic")
    (place / "tiny.toml").write_text(TINY)
    done = run("train", "semantic", "--config", place / "tiny.toml", "--folder", place / "model", "--json")
    assert done.exit_code == 0, done.output
    return place / "model", json.loads(done.stdout)


def test_a_trained_network_tells_its_metrics(model):
    _, said = model
    assert (said["steps"], said["finished"]) == (2, True)
    assert {metric["conditions"]["csi"] for metric in said["metrics"]} == {"perfect", "fed back"}


def test_a_trained_network_can_be_evaluated_on_pictures_of_a_folder(model, tmp_path):
    photos = tmp_path / "photos" / "test"
    photos.mkdir(parents=True)
    for k in range(3):
        Image.fromarray(draw(70 + 20 * k, np.random.default_rng(k))).save(photos / f"{k}.png")
    (photos / "broken.png").write_bytes(b"\x89PNG and no more")
    words = (
        "evaluate",
        "semantic",
        "-m",
        model[0],
        "--pictures",
        photos.parent,
        "--sweep",
        "snr",
        "--quick",
        "--drops",
        3,
    )
    done = run(*words, "--no-digital", "--folder", tmp_path / "results", "--json")
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    rows = content["sweeps"]["snr"]
    assert [row["condition"]["snr_db"] for row in rows] == [0, 10]
    assert all(0 < row["psnr_db"][0] < 100 for row in rows)
    assert content["settings"]["pictures"] == "photos"
    for name in ("evaluation.json", "quality.png", "contact-sheet.png"):
        assert (tmp_path / "results" / name).stat().st_size > 100
    assert "1 pictures are left out, the first is test/broken.png" in done.stderr


def test_shipped_configurations_are_listed():
    done = run("train", "semantic", "--list", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert "SCSAP" in found["lab"]
    assert "utoencoder" in found["lab-e2e"]


def test_an_autoencoder_for_bits_is_trained_without_pictures(tmp_path):
    (tmp_path / "bits.toml").write_text(BITS)
    words = ("train", "semantic", "--config", tmp_path / "bits.toml", "--folder", tmp_path / "model")
    done = run(*words)
    assert done.exit_code == 0, done.output
    assert "information in bits per symbol" in done.stdout
    assert "autoencoder, 2 bits" in done.stdout
    done = run(*words, "--pictures", tmp_path)
    assert isinstance(done.exception, ScenarioError)
    assert "leave out --start and --pictures" in str(done.exception)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "semantic"), "--config is missing"),
        (("train", "semantic", "--config", "lab-swin-rzf", "--pictures", "nowhere"), "neither a folder nor an archive"),
        (("evaluate", "semantic", "--sweep", "colour"), "--sweep 'colour' is unknown; choose among: snr"),
        (("evaluate", "semantic", "-m", "nowhere"), "neither a folder with card.json nor one of the shipped weights"),
    ],
)
def test_what_is_wrong_is_named(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*words)
    assert done.exit_code != 0
    assert isinstance(done.exception, ScenarioError)
    assert said in str(done.exception)

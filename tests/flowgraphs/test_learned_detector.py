"""A trained network in the flowgraph: run, replay, report, and what is refused or flagged there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gnuradio")
pytest.importorskip("torch")

import torch
from semair.errors import ModelError
from semair.flowgraphs.report import write_report
from semair.flowgraphs.report_data import load_run, other_detectors
from semair.flowgraphs.run import make_detector, replay_run, run_random_access
from semair.flowgraphs.scenario import load_scenario
from semair.models.cards import Card, NetworkSection, TrainingSection, save_model
from semair.models.uad import networks
from semair.models.uad.detectors import Flag, learned

N_USERS = 12
MAX_LENGTH = 28
SMALL = [
    f"users.n_users={N_USERS}",
    "users.activity=0.3",
    "users.preamble_lengths=[4, 6]",
    "radio.n_antennas=2",
]


def save(folder: Path, bias: float = 0.0, **scenario) -> Path:
    """A tiny network with random weights; `bias` turns all users' scores up or down."""
    torch.manual_seed(4)
    config = {"n_users": N_USERS, "max_length": MAX_LENGTH, "lengths": [4, 8], "d_model": 8, "n_layers": 1}
    network = networks.build("heterogeneous", {**config, "n_heads": 1, "head_dim": 4, "ffn": 8, "plam_hidden": 2})
    with torch.no_grad():
        if bias:
            # Equal tokens and their correlation with themselves: the sign of all scores is that of the bias.
            network.embed_preambles.weight.zero_()
            network.embed_preambles.bias.copy_(torch.linspace(-1, 1, 8))
            network.layers[0].received_norm2.weight.zero_()
            network.layers[0].users_norm2.weight.zero_()
            network.layers[0].users_norm2.bias.fill_(1.0)
            network.decoder.out.weight.copy_(torch.ones(8, 4))
            network.decoder.users_value.weight.fill_(1.0)
            network.decoder.received_value.weight.fill_(0.0)
            network.decoder.correlate.weight.copy_(bias * torch.eye(8))
    card = Card(
        name=folder.name,
        task="uad",
        network=NetworkSection(kind="heterogeneous", config=network.config.model_dump(mode="json"), n_parameters=1),
        scenario={
            "n_users": N_USERS,
            "max_length": MAX_LENGTH,
            "lengths": [4, 8],
            "activity": [0.1, 0.1],
            "snr_db": [10.0, 10.0],
            "pool": "fixed",
            "pool_seed": 1,
            **scenario,
        },
        training=TrainingSection(command="none", steps=0, samples=0, time_s=0.0),
    )
    save_model(folder, card, network.state_dict())
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Folder of shipped weights with three models."""
    place = tmp_path_factory.mktemp("weights")
    save(place / "tiny")
    save(place / "lab", bias=-5.0)
    save(place / "crowd", bias=5.0)
    return place


@pytest.fixture(autouse=True)
def _shipped(weights, monkeypatch):
    monkeypatch.setattr(learned, "WEIGHTS", weights)


@pytest.fixture(scope="module")
def live(weights, tmp_path_factory) -> Path:
    """A run that the network `tiny` decided."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learned, "WEIGHTS", weights)
        scenario = load_scenario("lab", [*SMALL, "detector.name=uad-tiny"])
        folder = tmp_path_factory.mktemp("runs") / "live"
        run_random_access(scenario, folder, n_frames=12)
    return folder


def decisions(folder: Path) -> np.ndarray:
    return np.load(folder / "decisions.npy")


def test_run_decides_with_the_network(live):
    scenario = load_scenario("lab", [*SMALL, "detector.name=uad-tiny"])
    detector = make_detector(scenario)
    rows = decisions(live)
    snapshots = np.load(live / "snapshots.npy")
    assert len(rows) == 12
    for row, kept in zip(rows, snapshots, strict=True):
        y = kept["values"][: row["length"] * scenario.n_snapshots].reshape(1, row["length"], scenario.n_snapshots)
        expected = detector.detect(y, row["noise_power"])
        assert expected.scores[0].tobytes() == row["scores"].tobytes()
        assert row["flags"] == expected.flags[0]
    run = json.loads((live / "run.json").read_text())
    assert run["detector"] == "uad-tiny"
    assert run["detector_facts"] == detector.describe()


def test_replay_is_equal_bit_for_bit(live):
    result = replay_run(live)
    assert (result.live, result.equal, result.extra) == (12, 12, 0)
    assert result.detector == "uad-tiny"


def test_replay_of_any_recording_with_a_network_and_its_options(live, weights, tmp_path):
    other = replay_run(live, detector="uad-crowd")
    assert other.folder.path == live / "replays" / "uad-crowd"
    assert decisions(other.folder.path)["active"].any(axis=1).all()
    path = str(shutil.copytree(weights / "tiny", tmp_path / "my weights"))
    own = replay_run(live, detector=path, options={"engine": "torch", "threshold": 0.6})
    assert own.folder.path.parent == live / "replays"
    np.testing.assert_allclose(decisions(own.folder.path)["scores"], decisions(live)["scores"], atol=1e-5)


def test_slots_with_more_users_than_trained_are_flagged_in_tables_metrics_and_report(live):
    result = replay_run(live, detector="uad-crowd")
    assert (decisions(result.folder.path)["flags"] == Flag.CROWDED).all()
    assert result.metrics["flagged"] == {"crowded": 12}
    page = write_report(result.folder.path, rerun_s=0.0).read_text(encoding="utf-8")
    assert f"12 of 12 slots: {Flag.CROWDED.meaning}" in page


def test_report_sets_suiting_networks_beside_the_runs_own(live):
    # `lab` is named like the scenario; `tiny` decided; `crowd` has replayed it or is left out.
    names = other_detectors(load_run(live), None)
    assert "uad-lab" in names
    assert "uad-tiny" not in names
    shutil.rmtree(live / "replays" / "uad-crowd", ignore_errors=True)
    assert "uad-crowd" not in other_detectors(load_run(live), None)
    assert other_detectors(load_run(live), ["uad-crowd"]) == ["uad-crowd"]
    page = write_report(live, rerun_s=0.5).read_text(encoding="utf-8")
    assert "uad-lab" in page


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("users.preamble_lengths=[4, 12]", "4 to 8 symbols, not of 12"),
        ("users.n_users=13", "12 users"),
        ("frame.max_preamble_length=20", "28 symbols"),
        ("users.preamble_seed=2", "preambles of seed 1"),
    ],
)
def test_a_scenario_that_does_not_suit_is_refused_before_anything_is_made(override, message, tmp_path):
    scenario = load_scenario("lab", [*SMALL, "detector.name=uad-tiny", override])
    with pytest.raises(ModelError, match=message):
        run_random_access(scenario, tmp_path / "run", n_frames=2)
    assert not (tmp_path / "run").exists()


def test_replay_with_other_weights_of_the_same_name_is_refused(live, weights, tmp_path, monkeypatch):
    shutil.copytree(weights, tmp_path / "weights")
    save(tmp_path / "weights" / "tiny", bias=1.0)
    monkeypatch.setattr(learned, "WEIGHTS", tmp_path / "weights")
    with pytest.raises(ModelError, match="no longer what it was"):
        replay_run(live)

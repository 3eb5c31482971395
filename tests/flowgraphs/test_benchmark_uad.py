"""Benchmark of trained detectors: entries that hold what they say, on weights of any quality."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from semair.flowgraphs.benchmarks import entry_names, uad
from semair.models.cards import Card, NetworkSection, TrainingSection, save_model
from semair.models.uad import detectors, networks
from semair.models.uad.detectors import learned
from semair.models.uad.sweeps import Condition

HETEROGENEOUS = {"d_model": 8, "n_layers": 1, "n_heads": 1, "head_dim": 8, "ffn": 8, "plam_hidden": 2}
LIKELIHOOD = {"width": 8, "n_layers": 1, "n_heads": 1, "feedforward": 8}


def save(folder: Path, kind: str, config: dict, lengths: list[int], **scenario) -> None:
    torch.manual_seed(1)
    network = networks.build(kind, config)
    card = Card(
        name=folder.name,
        task="uad",
        network=NetworkSection(kind=kind, config=network.config.model_dump(mode="json"), n_parameters=1),
        scenario={
            "n_users": 128,
            "max_length": 28,
            "lengths": lengths,
            "activity": [0.1, 0.1],
            "snr_db": [5.0, 15.0],
            "pool": "fresh",
            "pool_seed": None,
            "channels": ["rayleigh"],
            "mixture": {"noise_unknown": 0.5},
            **scenario,
        },
        training=TrainingSection(command="semair train uad", steps=3, samples=9, time_s=90.0, device="cpu, 1 threads"),
    )
    save_model(folder, card, network.state_dict())


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("weights")
    fixed = {"pool": "fixed", "pool_seed": 1}
    for name in ("vpl", "vpl-no-plam"):
        save(place / name, "heterogeneous", {**HETEROGENEOUS, "plam": name == "vpl"}, [8, 28], **fixed)
    save(place / "vpl-fixed", "heterogeneous", HETEROGENEOUS, [12, 12], **fixed)
    # Untrained, this network weighs the costs of flips alone, which already finds most users.
    save(place / "paper", "likelihood", LIKELIHOOD, [8, 28])
    save(place / "lab", "likelihood", LIKELIHOOD, [8, 28], channels=["lab"])
    return place


@pytest.fixture(autouse=True)
def _shipped(weights, monkeypatch):
    monkeypatch.setattr(learned, "WEIGHTS", weights)


def checked(entries) -> dict[str, dict]:
    return {entry.name: json.loads(json.dumps(entry.as_dict(), allow_nan=False)) for entry in entries}


def silent(share: float) -> None:
    assert 0 <= share <= 1


def test_names_are_those_of_the_weights_that_are_there(weights, monkeypatch, tmp_path):
    names = entry_names("uad")
    assert len(names) == len(set(names))
    assert {f"ours-over-cd/L{length}" for length in range(8, 17)} <= set(names)
    assert {f"published/uad-vpl/L{length}" for length in range(8, 17)} <= set(names)
    assert "published/uad-ht/L8" not in names
    assert {"training/uad-lab", "training/uad-paper", "latency/L12/uad-paper/p99", "wireless/L12"} <= set(names)
    assert set(entry_names("uad", quick=True)) < set(names) | {"correlated/L12", "correlated/L16", "correlated/L20"}
    monkeypatch.setattr(learned, "WEIGHTS", tmp_path)
    assert entry_names("uad") == []


def test_published_networks_stand_beside_their_peers_on_the_same_slots():
    rows = checked(uad.published((8, 12), 12, 1, silent))
    assert list(rows) == [
        "published/uad-vpl/L8",
        "published/uad-vpl/L12",
        "published/plam",
        "published/variable-length",
    ]
    eight = rows["published/uad-vpl/L8"]
    assert set(eight["settings"]["peers"]) == {"somp", "gmmv-amp", uad.AS_PUBLISHED, "cd"}
    least = min(eight["settings"]["peers"][peer][0] for peer in ("somp", "gmmv-amp"))
    assert eight["settings"]["below_somp_and_gmmv_amp"] == (eight["value"] < least)
    errors = rows["published/plam"]["settings"]
    assert rows["published/plam"]["value"] == pytest.approx(
        sum(errors["errors"].values()) / sum(errors["errors_without"].values())
    )
    # The network of one length is judged off that length.
    assert rows["published/variable-length"]["settings"]["lengths"] == [8]


def test_ratio_over_cd_is_that_of_the_errors_and_noise_may_be_unknown():
    rows = checked(uad.ours_over_cd(10, 60, 1, silent))
    for name, label in (("ours-over-cd/L10", "unknown"), ("ours-over-cd/L10/noise-given", "given")):
        settings = rows[name]["settings"]
        assert rows[name]["value"] == pytest.approx(settings["errors"][label][0] / settings["errors"]["cd"][0])
        assert rows[name]["ci95"][0] <= rows[name]["value"] <= rows[name]["ci95"][1]
        assert rows[name]["reference"] == "at most 0.7"
        assert settings["threshold"] == 0.5


def test_a_reference_without_errors_still_gives_a_finite_entry():
    (row,) = checked(uad.over_cd_at("x", Condition(length=28), 4, 1, silent)).values()
    assert "cd made no error" in row["settings"]["note"]
    assert row["ci95"] is None


def test_other_conditions_and_pools():
    (row,) = checked(uad.over_cd_at("x", Condition(n_snapshots=16, length=8), 20, 1, silent)).values()
    assert row["settings"]["snapshots"] == 16
    (row,) = checked(uad.fresh_over_known_pool(8, 24, 1, silent)).values()
    settings = row["settings"]
    assert row["value"] == pytest.approx(settings["error_fresh_pools"][0] / settings["error_known_pool"][0])
    (row,) = checked(uad.over_cd_on_array("uad-paper", (12,), 20, 1, silent)).values()
    assert row["settings"]["channel"] == "array"


def test_training_time_is_that_of_the_card():
    (row,) = checked(uad.training_time("uad-lab", 120.0, silent)).values()
    assert (row["value"], row["unit"]) == (1.5, "minutes")
    assert "not measured here" in row["settings"]["from"]


def test_slots_behind_the_radio_chain_are_judged_by_both(monkeypatch):
    scenario = uad.wireless_scenario((8, 12), 3)
    assert scenario.level == "wireless"
    found = uad.air_slots(scenario, 3, silent)
    assert found["truth"][8].shape == found["cd"][8].shape == found["uad-lab"][12].shape == (3, 128)
    detector = detectors.make("cd", scenario.preambles(), 0.1)
    wrong = np.mean((found["cd"][12] > detector.threshold(12)) != found["truth"][12])
    # Nobody active would give 0.1.
    assert wrong < 0.08
    rows = checked(uad.over_cd_on_air((8,), 4, 1, 1, silent))
    settings = rows["wireless/L8"]["settings"]
    assert rows["wireless/L8"]["value"] == pytest.approx(settings["error"] / settings["error_cd"])
    assert settings["seeds"] == [2]


@pytest.mark.slow
def test_latency_comes_from_a_process_of_its_own(weights):
    told: list[float] = []
    name = str(weights / "paper")
    rows = checked(uad.latency(name, 12, 30, 1, told.append))
    assert rows[f"latency/L12/{name}/median"]["value"] <= rows[f"latency/L12/{name}/p99"]["value"]
    ratio = rows[f"latency/L12/{name}/median"]["value"] / rows["latency/L12/cd/median"]["value"]
    assert rows[f"latency/L12/{name}/over-cd"]["value"] == pytest.approx(ratio)
    assert {row for row in rows if row.startswith("latency/L12/engine/")} >= {"latency/L12/engine/torch"}
    assert told[-1] == 1.0

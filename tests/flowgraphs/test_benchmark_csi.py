"""Benchmark of CSI feedback: entries that hold what they say, on weights of any quality."""

from __future__ import annotations

import json
import math
import shutil

import pytest

pytest.importorskip("torch")

import torch
from semair.flowgraphs import csi_separate
from semair.flowgraphs.benchmarks import csi, entry_names
from semair.flowgraphs.csi_figures import (
    FIGURE_NAME,
    JSON_NAME,
    RATE_FIGURE_NAME,
    nmse_figure,
    table,
    title,
    write_evaluation,
)
from semair.models.cards import Card, NetworkSection, TrainingSection, save_model
from semair.models.csi import coded, evaluate, networks
from semair.models.csi.train import build_network, load_config
from semair.models.statistics import Interval

NAMES = ("lab", "lab-rca", "lab-vanilla", "lab-csinet", "lab-alone")


def quiet(share):
    assert 0 <= share <= 1


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Untrained networks as they would be shipped, and a linear code from few drops."""
    for name in NAMES:
        config = load_config(name)
        network = build_network(config)
        card = Card(
            name=name,
            task="csi",
            network=NetworkSection(kind=config.network["kind"], config=network.config.model_dump(), n_parameters=1),
            scenario={"n_taps": 32, "n_antennas": 4},
            training=TrainingSection(command="semair train csi", steps=3, samples=9, time_s=90.0),
        )
        save_model(tmp_path / name, card, network.state_dict())
    monkeypatch.setattr(evaluate, "WEIGHTS", tmp_path)
    monkeypatch.setattr(evaluate, "_KLT_DROPS", 250)
    for name, value in {"_MESSAGES": 30, "_TRAIN_DROPS": 200, "_VALID_DROPS": 50, "RATES": (1 / 3, 2 / 3)}.items():
        monkeypatch.setattr(coded, name, value)
    kept = (csi_separate.linear_contender, csi_separate.separate_coding)
    for one in kept:
        one.cache_clear()
    yield tmp_path
    for one in kept:
        one.cache_clear()


def test_measurements_yield_the_entries_they_promise(weights):
    promised = entry_names("csi", quick=True)
    assert "lab/R8/over-rca" in promised
    assert "lab/neighbour/missing" in promised
    assert not any(name.startswith("paper/") for name in promised)
    runs = [
        csi.over_peers("lab", (32, 8), 10, 1, True, quiet),
        csi.over_separate("lab", (-5.0, 10.0), 10, 1, quiet),
        csi.neighbours("lab", 10, 1, quiet),
        csi.sum_rate("lab", 10, 1, True, quiet),
        csi.computation("lab", quiet),
        csi.latency("lab", 20, quiet),
    ]
    entries = [entry for run in runs for entry in run]
    assert [entry.name for entry in entries] == [name for name in promised if not name.startswith("lab/radio/")]
    by_name = {entry.name: entry for entry in entries}
    for entry in entries:
        json.dumps(entry.as_dict(), allow_nan=False)
        if entry.ci95 is not None and entry.unit == "dB":
            assert entry.ci95[0] <= entry.value <= entry.ci95[1]
    over = by_name["lab/R8/over-rca"]
    # A ratio of mean errors is the difference of their dB.
    settings = over.settings
    assert over.value == pytest.approx(settings["ours_nmse_db"] - settings["peer_nmse_db"], abs=1e-6)
    assert settings["peer_training"]["steps"] == 3
    # The better of the others is chosen, and is one of them.
    best = by_name["lab/R8/rca-over-best"].settings
    figures = [by_name[f"lab/R8/over-{name}"].settings["peer_nmse_db"] for name in ("vanilla", "csinet")]
    assert best["peer_nmse_db"] == min(figures)
    assert by_name["lab/over-separate/-5dB"].settings["lost_users"] <= 1
    cliff = by_name["lab/cliff"]
    assert cliff.settings["rise_of_fixed_rate_db"] > 0
    assert 0 < by_name["lab/sum-rate"].value <= 1.2


@pytest.mark.parametrize(
    ("target", "found", "said"),
    [
        ("at most -0.5", (-0.7, -0.8, -0.6), "at most -0.5: met"),
        ("at most -0.5", (-0.5, -0.5, -0.5), "at most -0.5: met"),
        ("below 0", (0.0, 0.0, 0.0), "below 0: open"),
        ("below 0", (0.1, -0.1, 0.3), "below 0: open"),
        ("below 1", (2.0, 1.5, math.inf), "below 1: missed"),
        ("at least 0.9", (0.95, 0.91, 0.99), "at least 0.9: met"),
        ("at least 0.9", (0.6, 0.5, 0.7), "at least 0.9: missed"),
        ("at least 0.9", (0.9, 0.8, 1.0), "at least 0.9: open"),
        ("fixed rate: 3.92", (1.0, 0.5, 1.5), "fixed rate: 3.92"),
    ],
)
def test_a_target_is_met_by_a_whole_interval_alone(target, found, said):
    assert csi._judged(target, Interval(*found)) == said


def test_multiply_adds_are_those_of_layers_written_out():
    class Small(networks.Network):
        def __init__(self):
            super().__init__(networks.base.NetworkConfig(n_taps=4, n_antennas=2, max_length=3))
            self.inner, self.outer = torch.nn.Linear(16, 6), torch.nn.Linear(6, 16)
            self.encoder = lambda features, condition: self.inner(features.flatten(1))
            self.decoder = lambda code, condition, present: self.outer(code)

    # Two encoders and a decoder that takes both users.
    assert evaluate.multiply_adds(Small()) == 2 * 16 * 6 + 2 * 6 * 16


def test_a_site_kept_out_is_judged_on_its_own_test_drops(weights, tmp_path, write_paths, monkeypatch):
    for name in ("elsewhere", "everywhere"):
        shutil.copytree(weights / "lab", weights / f"lab-{name}")
    path = write_paths(tmp_path / "paths.safetensors")
    monkeypatch.setattr(csi, "SITE", "street")
    monkeypatch.setenv(csi.TRACED, str(path))
    assert "lab/site-kept-out" in entry_names("csi", quick=True)
    (entry,) = csi.site_kept_out("lab", path, 10, 1, quiet)
    # The same weights under two names lose nothing.
    assert entry.value == pytest.approx(0, abs=1e-9)
    assert entry.settings["site"] == "street"
    assert entry.settings["places"] >= 1


@pytest.mark.slow
def test_the_radio_chain_is_measured_where_gnu_radio_is(weights):
    pytest.importorskip("gnuradio", reason="GNU Radio is not installed")
    (entry,) = csi.radio_chain("cabled", 12, 1, quiet)
    assert entry.name == "lab/radio/cabled"
    assert entry.settings["sent"] == 12
    assert entry.ci95[0] <= entry.value <= entry.ci95[1]
    json.dumps(entry.as_dict(), allow_nan=False)


def test_without_weights_there_is_nothing_to_measure(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "WEIGHTS", tmp_path)
    assert entry_names("csi") == []


def test_an_evaluation_is_written_as_json_and_figure(weights, tmp_path):
    _, contender = evaluate.load_contender("lab")
    evaluation = evaluate.Evaluation([contender], evaluate.PRESETS["lab"], 10)
    results = {
        name: [row for condition in sweep.conditions[:2] for row in evaluation.rows(condition)]
        for name, sweep in evaluate.sweeps(quick=True).items()
    }
    content = evaluate.as_json(results, {"drops": 10})
    place = tmp_path / "results"
    write_evaluation(content, place)
    assert json.loads((place / JSON_NAME).read_text()) == json.loads(json.dumps(content))
    for name in (FIGURE_NAME, RATE_FIGURE_NAME):
        assert (place / name).read_bytes().startswith(b"\x89PNG")
    assert table("spacing", content["sweeps"]["spacing"])[0] == ["contender", "0.5", "5"]
    header, line = table("ratio", content["sweeps"]["ratio"])
    assert header == ["contender", "1/64", "1/8"]
    assert float(line[1]) == pytest.approx(results["ratio"][0].nmse_db.value, abs=0.01)


def test_figures_show_lost_users_and_say_who_is_who():
    def row(name, snr_db, nmse_db, lost):
        return {
            "contender": name,
            "condition": {"snr_db": snr_db},
            "nmse_db": [nmse_db, nmse_db - 0.1, nmse_db + 0.1],
            "sum_rate": None,
            "lost": lost,
        }

    rows = [row("lab", 0, -3, 0.0), row("lab", 10, -7, 0.0), row("separate", 0, -1, 0.3), row("separate", 10, -4, 0.0)]
    figure = nmse_figure({"snr": rows}, "lab")
    upper, lower = figure.axes
    assert len(upper.containers) == 2
    # Only the one that loses users has a line there, in percent.
    (line,) = lower.containers
    assert line.lines[0].get_ydata().tolist() == [30.0, 0.0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ours (lab)", "separate coding, best rate"]
    assert len(nmse_figure({"snr": rows[:2]}, "lab").axes) == 1
    assert [title(name, "paper") for name in ("paper-rca", "klt", "lab", "runs/mine")] == [
        "SA-RCA-MUNet",
        "linear code",
        "lab",
        "mine",
    ]

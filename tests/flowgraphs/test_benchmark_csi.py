"""Benchmark of CSI feedback: entries that hold what they say, on weights of any quality."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")

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
from semair.models.csi import evaluate
from semair.models.csi.train import build_network, load_config

NAMES = ("lab", "lab-rca", "lab-csinet", "lab-alone")


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
    return tmp_path


def test_measurements_yield_the_entries_they_promise(weights):
    promised = entry_names("csi", quick=True)
    assert "lab/R8/over-rca" in promised
    assert "lab/neighbour/missing" in promised
    assert not any(name.startswith("paper/") for name in promised)
    runs = [
        csi.over_peers("lab", (32, 8), 10, 1, lambda share: None),
        csi.over_separate("lab", (-5.0, 10.0), 10, 1, lambda share: None),
        csi.neighbours("lab", 10, 1, lambda share: None),
        csi.sum_rate("lab", 10, 1, lambda share: None),
        csi.latency("lab", 20, lambda share: None),
    ]
    entries = [entry for run in runs for entry in run]
    assert [entry.name for entry in entries] == promised
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
    assert 0 < by_name["lab/sum-rate"].value <= 1.2


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

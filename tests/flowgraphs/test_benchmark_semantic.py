"""Benchmark of semantic precoding: entries that hold what they say, on weights of any quality; figures."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("torch")

from semair.flowgraphs import semantic_figures as figures
from semair.flowgraphs.benchmarks import entry_names, semantic
from semair.models.cards import Card, NetworkSection, TrainingSection, save_model
from semair.models.semantic import train
from semair.models.semantic.images import Collection
from semair.models.semantic.train import build_network, load_config


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Untrained networks as they would be shipped."""
    for name in ("lab", "lab-swin-rzf", "lab-adjscc"):
        config = load_config(name)
        network = build_network(config)
        section = NetworkSection(kind=config.network["kind"], config=network.config.model_dump(), n_parameters=1)
        training = TrainingSection(command="semair train semantic", steps=3, samples=9, time_s=90.0)
        card = Card(name=name, task="semantic", network=section, training=training)
        save_model(tmp_path / name, card, network.state_dict())
    monkeypatch.setattr(train, "WEIGHTS", tmp_path)
    monkeypatch.setenv("SEMAIR_DATA", str(tmp_path / "nothing"))
    semantic._pictures.cache_clear()
    yield tmp_path
    semantic._pictures.cache_clear()


@pytest.mark.slow
def test_measurements_yield_the_entries_they_promise(weights):
    promised = [name for name in entry_names("semantic", quick=True) if "hevc" not in name and "radio" not in name]
    assert "lab/over-adjscc/perfect/10dB/ms-ssim" in promised
    assert "lab/over-swin-rzf+wmmse/perfect/0dB/ms-ssim" in promised
    assert not any("no-data" in name or "lpips" in name for name in promised)
    everything = entry_names("semantic")
    assert len(set(everything)) == len(everything)
    peers = (semantic.CODER, semantic.CODER + semantic.WMMSE)
    runs = [
        semantic.over("over-adjscc", (semantic.ADJSCC,), ("perfect",), (0.0, 10.0), 2, 1, lambda share: None),
        semantic.over("over-{peer}", peers, ("perfect",), (0.0,), 2, 1, lambda share: None),
        semantic.latency(3, lambda share: None),
    ]
    entries = [entry for run in runs for entry in run]
    assert [entry.name for entry in entries] == promised
    for entry in entries:
        json.dumps(entry.as_dict(), allow_nan=False)
        if entry.name.startswith("lab/over"):
            settings = entry.settings
            assert entry.value == pytest.approx(settings["ours"] - settings["peer"], abs=1e-9)
            assert settings["pictures"] == "drawn"


@pytest.mark.slow
def test_digital_schemes_are_measured_beside_ours(weights):
    pytest.importorskip("gnuradio")
    pytest.importorskip("pillow_heif")
    promised = [name for name in entry_names("semantic", quick=True) if "hevc" in name]
    peers = tuple(dict.fromkeys(name.split("/")[1].removeprefix("over-") for name in promised))
    assert peers[0] == "hevc-best" and peers[-1] == "hevc-fixed"
    entries = list(semantic.over_digital(("hevc-fixed",), (10.0, 20.0), 2, 1, lambda share: None))
    assert [entry.name for entry in entries] == [f"lab/over-hevc-fixed/perfect/{snr}dB/ms-ssim" for snr in (10, 20)]
    # Untrained weights show less than digital pictures that arrive.
    assert entries[1].settings["peer_failed"] < 1 and entries[1].value < 0


def test_what_is_to_be_beaten_has_a_target():
    assert semantic._target("over-hevc-best", "lpips", 10.0) == "below 0"
    assert semantic._target("over-hevc-e2e", "lpips", 15.0) == semantic._target("over-hevc-best", "ms_ssim", 0.0) == ""
    assert semantic._target("over-no-data", "lpips", 0.0) == ""
    assert semantic._target("over-swin-rzf+wmmse", "ms_ssim", 0.0) == "above 0"


def test_without_weights_there_is_nothing_to_measure(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "WEIGHTS", tmp_path)
    assert entry_names("semantic") == []


@pytest.mark.slow
def test_the_radio_chain_costs_next_to_nothing():
    pytest.importorskip("gnuradio")
    assert "lab/radio/cabled" in entry_names("semantic", quick=True)
    (entry,) = semantic.radio_chain("cabled", 3, 1, lambda share: None)
    assert (entry.name, entry.unit, entry.reference) == ("lab/radio/cabled", "dB", "at most 1")
    assert entry.settings["missed"] == 0 and entry.settings["decided"] == 6
    assert abs(entry.value) < 1
    difference = entry.settings["symbol_psnr_db"][0] - entry.settings["psnr_db"][0]
    assert entry.value == pytest.approx(difference)


def rows(field, points, names=("one", "other"), **more):
    return [
        {
            "contender": name,
            "condition": {field: point},
            "ms_ssim": [0.9 - 0.1 * k, 0.8 - 0.1 * k, 0.95 - 0.1 * k],
            "psnr_db": [20.0 + k, 19.0 + k, 21.0 + k],
            "failed": 0.0,
            "drops": 3,
            **more,
        }
        for point in points
        for k, name in enumerate(names)
    ]


def test_tables_have_a_row_for_each_contender():
    made = rows("snr_db", (0.0, 10.0))
    assert figures.shown(made) == ["ms_ssim", "psnr_db"]
    assert figures.table("snr", made, "psnr_db") == [
        ["contender", "0", "10"],
        ["one", "20.00", "20.00"],
        ["other", "21.00", "21.00"],
    ]


def test_figures_have_a_row_for_each_quality_and_one_for_what_was_lost():
    made = {"snr": rows("snr_db", (0.0, 10.0)), "users": rows("n_users", (1, 3)), "csi": []}
    figure = figures.quality_figure(made)
    assert len(figure.axes) == 2 * 2
    assert figure.axes[0].get_ylim()[1] <= 1
    made["snr"][0]["failed"] = 0.5
    assert [axes.get_ylabel() for axes in figures.quality_figure(made).axes[::2]] == [
        "MS-SSIM",
        "PSNR in dB",
        "share not decoded",
    ]


def test_evaluations_are_written_as_far_as_they_came(tmp_path):
    sheet = {
        "sent": Collection.drawn(5, 64).fixed(3, "test", 64),
        "found": {"one": np.zeros((3, 3, 64, 64, 3), np.uint8)},
    }
    results = {
        "format": 1,
        "settings": {},
        "sweeps": {"snr": rows("snr_db", (0.0,), lpips=[0.1, 0.0, 0.2]), "users": []},
    }
    figures.write_evaluation(results, sheet, tmp_path / "some")
    assert json.loads((tmp_path / "some" / figures.JSON_NAME).read_text()) == results
    for name in (figures.FIGURE_NAME, figures.SHEET_NAME):
        assert (tmp_path / "some" / name).read_bytes().startswith(b"\x89PNG")
    figures.write_evaluation({"format": 1, "settings": {}, "sweeps": {"snr": []}}, None, tmp_path / "none")
    assert [path.name for path in (tmp_path / "none").iterdir()] == [figures.JSON_NAME]

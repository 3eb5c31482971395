"""Training of CSI feedback networks: it learns, resumes exactly, and leaves a model that says what it is."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch
from semair.errors import ModelError, ScenarioError
from semair.models.cards import load_model
from semair.models.csi import networks
from semair.models.csi.channels import PRESETS
from semair.models.csi.link import Mixture, nmse
from semair.models.csi.train import (
    TrainingConfig,
    build_network,
    conditioned,
    drop_nmse,
    load_config,
    shipped_configs,
    train,
)
from semair.models.training import CHECKPOINT_FILE

CHANNEL = {**PRESETS["lab"].model_dump(mode="json"), "n_taps": 8, "lead_taps": 2.0}
TINY = {
    "name": "tiny",
    "seed": 3,
    "start_drops": 120,
    "network": {"kind": "munet", "width": 16, "heads": 2, "feedforward": 24, "code_width": 4},
    "mixture": {"channel": CHANNEL, "ratios": [16, 8]},
    "optimiser": {"steps": 8, "batch": 8, "lr": 2e-3, "ema": 0.9},
    "validation": {"every": 4, "drops": 20, "test_drops": 20, "test_snr_db": [0, 10]},
}


def config(**sections):
    data = {**TINY, **sections}
    for name, section in TINY.items():
        if isinstance(section, dict):
            data[name] = {**section, **sections.get(name, {})}
    return TrainingConfig.model_validate(data)


@pytest.fixture
def told_every_step(monkeypatch):
    monkeypatch.setattr("semair.models.training._REPORT_S", 0.0)


def same_weights(one, other):
    first, second = load_model(one)[1], load_model(other)[1]
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_card_says_what_was_trained(tmp_path):
    done = train(config(), tmp_path, command="semair train csi --config tiny.toml")
    card, network = networks.load(tmp_path)
    assert card == done.card
    assert card.task == "csi"
    assert card.scenario["lengths"] == [2, 4]
    assert (card.scenario["n_taps"], card.scenario["n_antennas"]) == (8, 4)
    assert (card.training.steps, card.training.samples) == (8, 64)
    assert [point["step"] for point in card.training.curve] == [4, 8]
    assert set(card.training.curve[-1]["nmse_db"]) == {"2", "4"}
    assert network.config.max_length == 4
    # Two lengths at two SNRs with a neighbour, and at 10 dB with a missing and with a distant one.
    assert len(card.metrics) == 2 * 2 + 2 * 2
    for metric in card.metrics:
        assert metric.low <= metric.value <= metric.high
    assert TrainingConfig.model_validate(card.training.config) == config()


def test_an_interrupted_run_ends_with_the_very_weights_of_one_that_was_not(tmp_path, told_every_step):
    def stop(progress):
        if progress.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    train(config(), tmp_path / "whole")
    done = train(config(), tmp_path / "parts", on_progress=stop)
    assert done.card is None
    assert (tmp_path / "parts" / CHECKPOINT_FILE).exists()
    # Begun from weights that never saw the start draws, it would differ.
    assert train(config(), tmp_path / "parts", resume=True).card is not None
    assert same_weights(tmp_path / "whole", tmp_path / "parts")


def test_resuming_with_another_configuration_is_refused(tmp_path, told_every_step):
    train(config(), tmp_path, on_progress=lambda progress: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(ModelError, match="written with another configuration: seed differ"):
        train(config(seed=4), tmp_path, resume=True)


@pytest.mark.slow
def test_training_learns_without_the_linear_start(tmp_path):
    card = train(
        config(
            start_drops=0,
            optimiser={"steps": 120, "batch": 32, "lr": 5e-3},
            validation={"every": 20, "drops": 200},
        ),
        tmp_path,
    ).card
    assert card is not None
    errors = [point["nmse_db"]["4"] for point in card.training.curve]
    # Random codes and decoders recover nothing; 200 drops leave about a tenth of a dB of doubt, the same for both.
    assert errors[-1] < errors[0] - 0.3


def test_nothing_recovered_is_an_nmse_of_one_per_user_heard():
    network = build_network(config()).eval()
    csi = torch.view_as_complex(torch.randn((6, 2, 8, 4, 2), generator=torch.Generator().manual_seed(1)))
    present = torch.ones(6, 2, dtype=torch.bool)
    present[:, 1] = False
    batch = conditioned(csi, 4, 10.0, present)
    found = drop_nmse(network, batch, torch.Generator().manual_seed(1))
    with torch.inference_mode():
        words = network.encode(csi.flatten(0, 1), torch.full((12,), 4), torch.full((12,), 10.0)).unflatten(0, (6, 2))
        generator = torch.Generator().manual_seed(1)
        noise = torch.view_as_complex(torch.randn((6, 2, 4, 2), generator=generator)) * np.sqrt(0.05)
        recovered = network.decode(words + noise, batch.lengths, batch.snr_db, present)
    np.testing.assert_allclose(found, nmse(csi, recovered)[:, 0].numpy(), rtol=1e-4)


def test_shipped_configurations_build_and_fit_the_preset_they_name():
    names = shipped_configs()
    assert {"lab", "paper", "lab-rca", "lab-vanilla", "lab-csinet"} <= set(names)
    for name in names:
        found = load_config(name)
        assert found.name == name
        assert found.mixture == Mixture(channel=name.partition("-")[0])
        # Files of one network stay far below 20 MB.
        assert sum(t.numel() * t.element_size() for t in build_network(found).state_dict().values()) < 15e6


def test_networks_that_are_compared_are_trained_alike():
    for numerology in ("lab", "paper"):
        names = [name for name in shipped_configs() if name.startswith(f"{numerology}-")]
        settings = [one for one in map(load_config, names) if one.network["kind"] != "aligned"]
        assert len({one.optimiser for one in settings}) == 1
        munets = [build_network(one) for one in settings if one.network["kind"] == "munet"]
        sizes = [sum(p.numel() for p in network.parameters()) for network in munets]
        # Sums of users' features have a share for each feature on top.
        assert max(sizes) - min(sizes) in (0, 48, 96)


def test_refuses_contradictions(tmp_path):
    with pytest.raises(ScenarioError, match=r"network\.n_antennas=8 contradicts the mixture's 4; leave it out"):
        build_network(config(network={"n_antennas": 8}))
    with pytest.raises(ScenarioError, match=r"minutes=-1: a positive time"):
        train(config(), tmp_path, minutes=-1)
    with pytest.raises(ScenarioError, match=r"neither a file nor a shipped one \(.*lab"):
        load_config("nowhere")

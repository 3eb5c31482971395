"""Training of semantic precoding: it learns, resumes exactly, and leaves a model that says what it is."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from semair.errors import ModelError, ScenarioError
from semair.models.cards import load_model
from semair.models.semantic import networks
from semair.models.semantic.downlink import DownlinkConfig
from semair.models.semantic.images import Collection
from semair.models.semantic.train import TrainingConfig, build_network, load_config, shipped_configs, train
from semair.models.training import CHECKPOINT_FILE

SIZES = {"fine_width": 8, "fine_heads": 1, "coarse_width": 16, "coarse_heads": 2, "expansion": 1}
SMALL = {"kind": "scsap", **SIZES, "encoder_layers": [1, 1], "decoder_layers": [1, 1]}
WHOLE = {"csi_width": 8, "fusion_width": 8, "data_width": 8, "csi_fusion": True, "data_branch": True}
TINY = {
    "name": "tiny",
    "seed": 3,
    "network": SMALL,
    "downlink": {"channel": "lab", "users": [2, 1, 3]},
    "optimiser": {"steps": 4, "batch": 4, "lr": 2e-3, "ema": 0.9},
    "validation": {"every": 2, "drops": 2, "test_drops": 2, "test_snr_db": [0, 10]},
}


def config(**sections):
    data = {**TINY, **sections}
    for name, section in TINY.items():
        if isinstance(section, dict):
            data[name] = {**section, **sections.get(name, {})}
    return TrainingConfig.model_validate(data)


@pytest.fixture(scope="module")
def photographs():
    return Collection.drawn(20, 80)


@pytest.fixture
def told_every_step(monkeypatch):
    monkeypatch.setattr("semair.models.training._REPORT_S", 0.0)


def test_the_card_says_what_was_trained_on_which_pictures(tmp_path, photographs):
    done = train(config(), tmp_path, photographs)
    card, network = networks.load(tmp_path)
    assert card == done.card
    assert card.task == "semantic"
    assert (card.training.steps, card.scenario["side"]) == (4, 64)
    assert card.details["pictures_fingerprint"] == photographs.fingerprint
    assert [point["step"] for point in card.training.curve] == [2, 4]
    assert set(card.training.curve[-1]["psnr_db"]) == {"-5", "5", "15"}
    assert {(m.name, m.conditions["csi"], m.conditions["snr_db"]) for m in card.metrics} == {
        (name, csi, snr) for name in ("psnr_db", "ms_ssim") for csi in ("perfect", "fed back") for snr in (0, 10)
    }
    assert network.transmitter is None
    assert TrainingConfig.model_validate(card.training.config) == config()


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_very_weights_of_one_that_was_not(tmp_path, photographs, told_every_step):
    def stop(progress):
        if progress.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    train(config(), tmp_path / "whole", photographs)
    assert train(config(), tmp_path / "parts", photographs, on_progress=stop).card is None
    assert (tmp_path / "parts" / CHECKPOINT_FILE).exists()
    with pytest.raises(ModelError, match="written with other weights or recordings"):
        train(config(), tmp_path / "parts", Collection.drawn(21, 80), resume=True)
    assert train(config(), tmp_path / "parts", photographs, resume=True).card is not None
    first, second = (load_model(tmp_path / name)[1] for name in ("whole", "parts"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_whole_network_begins_with_the_weights_of_its_coder(tmp_path, photographs):
    train(config(), tmp_path / "coder", photographs)
    start = str(tmp_path / "coder")
    whole = config(start=start, network={**WHOLE, "precoder": "learned"}, optimiser={"steps": 1, "lr": 1e-9, "ema": 0})
    card = train(whole, tmp_path / "whole", photographs).card
    coder, (_, found) = load_model(tmp_path / "coder")[1], load_model(tmp_path / "whole")
    for name, tensor in coder.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)
    assert card.details["start"] == "tiny"
    assert len(card.details["start_sha256"]) == 64
    other = config(start=start, network={"coarse_width": 24})
    with pytest.raises(ModelError, match="weights do not fit the network"):
        train(other, tmp_path / "other", photographs)
    with pytest.raises(ScenarioError, match="start='nowhere' is neither a folder"):
        train(config(start="nowhere"), tmp_path / "none", photographs)


@pytest.mark.slow
def test_training_learns(tmp_path, photographs):
    learning = config(
        optimiser={"steps": 60, "batch": 6, "lr": 5e-3},
        validation={"every": 30, "drops": 12, "snr_db": [15]},
        downlink={"perfect": 1.0, "fed_back": 0.0, "users": [2]},
    )
    curve = train(learning, tmp_path, photographs).card.training.curve
    # Drawn pictures differ by some 10 dB; a network that shows the mean of all gets the same at both validations.
    assert curve[-1]["psnr_db"]["15"] > curve[0]["psnr_db"]["15"] + 0.3
    assert curve[-1]["psnr_db"]["15"] > 12


def test_shipped_configurations_build_and_are_small():
    names = shipped_configs()
    assert {"lab", "lab-coder", "lab-adjscc"} <= set(names)
    total = 0
    for name in names:
        found = load_config(name)
        assert found.name == name
        size = 4 * sum(p.numel() for p in build_network(found).parameters())
        total += size if name.startswith("lab") else 0
        assert size < 40e6
    # What is trained and shipped stays below 5 MB a network.
    assert total / sum(name.startswith("lab") for name in names) < 5e6


def test_networks_that_are_compared_see_the_same_downlink():
    settings = [load_config(name) for name in shipped_configs() if name.startswith("lab")]
    assert len({(one.downlink, one.loss, one.side, one.optimiser.batch) for one in settings}) == 1
    # What one begins with counts as its own training.
    steps = {one.name: one.optimiser.steps for one in settings}
    sums = {one.name: steps[one.name] + steps.get(one.start, 0) for one in settings if one.name != "lab-coder"}
    assert len(set(sums.values())) == 1


def test_contradictions_are_refused(tmp_path, photographs):
    with pytest.raises(ScenarioError, match=r"network\.n_antennas=8 contradicts the downlink's 4; leave it out"):
        build_network(config(network={"n_antennas": 8}))
    with pytest.raises(ScenarioError, match=r"minutes=-1: a positive time"):
        train(config(), tmp_path, photographs, minutes=-1)
    with pytest.raises(ScenarioError, match=r"neither a file nor a shipped one \(.*lab"):
        load_config("nowhere")
    with pytest.raises(ValueError, match="side=100: a multiple of 64"):
        config(side=100)
    with pytest.raises(ScenarioError, match="group=3 must divide"):
        build_network(config(network={"group": 3}))


def test_the_defaults_are_those_of_the_shipped_configurations():
    assert DownlinkConfig(users=(2, 2, 2, 1, 3)) == load_config("lab").downlink

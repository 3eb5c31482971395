"""The autoencoder that carries bits: begins as QAM behind RZF, makes right ratios, treats users alike, learns."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch
from semair.blocks.waveforms import qam
from semair.errors import ModelError, ScenarioError
from semair.models.cards import load_model
from semair.models.semantic import autoencoder as ae
from semair.models.semantic import autoencoder_train as training
from semair.models.semantic import link
from semair.models.semantic.digital import sent_through
from semair.models.semantic.downlink import DownlinkConfig, draw
from semair.models.semantic.link import Channels
from semair.models.semantic.networks import NetworkConfig

TINY = {
    "name": "tiny",
    "network": {"kind": "autoencoder", "precoder_width": 4, "pair_width": 4, "demapper_width": 8},
    "symbols": 1,
    "downlink": {"channel": "lab", "users": [2, 1, 3]},
    "optimiser": {"steps": 4, "batch": 4, "ema": 0.9},
    "validation": {"every": 4, "drops": 2, "snr_db": [5], "test_drops": 2, "test_snr_db": [0, 10]},
}


def fresh():
    torch.manual_seed(1)
    return ae.Autoencoder(ae.AutoencoderConfig()).eval()


def shaken():
    """Weights of which no layer is silent."""
    network = fresh()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def drops(n, n_users=2, csi="perfect"):
    generator = torch.Generator().manual_seed(1)
    return draw(DownlinkConfig(), n, generator, n_users, csi, -8.0)


def random_bits(*shape):
    return np.random.default_rng(2).integers(0, 2, shape, dtype=np.uint8)


@pytest.mark.parametrize("bits_per_symbol", ae.BITS_PER_SYMBOL)
def test_fresh_weights_are_qam_behind_regularised_zero_forcing(bits_per_symbol):
    for csi, n_users in (("perfect", 2), ("estimated", 3)):
        channels, snr = drops(3, n_users, csi), torch.tensor([-5.0, 5.0, 20.0])
        bits = random_bits(3, n_users, 1024 * bits_per_symbol)
        noise = torch.Generator().manual_seed(3)
        with torch.inference_mode():
            found = ae.carry(fresh(), torch.from_numpy(bits), bits_per_symbol, channels, snr, noise).numpy()
        symbols = torch.from_numpy(qam.modulate(bits, bits_per_symbol))
        received = sent_through(NetworkConfig(), symbols, channels, snr, torch.Generator().manual_seed(3))
        expected = qam.soft_bits(received[0], bits_per_symbol, received[1])
        np.testing.assert_allclose(found, np.clip(expected, -30, 30), rtol=1e-3, atol=1e-3)


def over_gaussian_noise(network, bits, snr_db, seed=5):
    """One user's 4-QAM over a flat channel that its reference symbol shows almost exactly."""
    noise_power = 10 ** (-snr_db / 10)
    n = bits.size // 512
    symbols = qam.modulate(bits, 2).reshape(256, n)
    noise = np.random.default_rng(seed).standard_normal((256, n, 2)) @ np.array([1, 1j])
    received = (symbols + noise * np.sqrt(noise_power / 2)).astype(np.complex64)
    told = torch.tensor([[noise_power]], dtype=torch.float32)
    references = torch.ones(1, 1, 256, 1, dtype=torch.complex64)
    with torch.inference_mode():
        ratios = ae.receive(network, references, torch.from_numpy(received)[None, None], told, 2)
    return received, ratios.numpy().reshape(256, n, 2)


def test_ratios_over_gaussian_noise_are_those_of_the_closed_form():
    for snr_db in (-3.0, 4.0):
        received, ratios = over_gaussian_noise(fresh(), random_bits(512 * 20), snr_db)
        parts = np.stack([received.real, received.imag], -1)
        # Levels of +-sqrt(1/2), half the noise in each part; positive for a zero, which is the positive level.
        expected = 4 * np.sqrt(0.5) * parts / 10 ** (-snr_db / 10)
        # The reference symbol is taken for a noisy one: its taps are weighted by 1 - 6 / 256 / SNR.
        np.testing.assert_allclose(ratios, np.clip(expected, -30, 30), rtol=0.1, atol=1e-3)


def test_information_over_gaussian_noise_is_that_of_the_closed_form():
    snr_db, n = 1.0, 400
    bits = random_bits(512 * n)
    ratios = over_gaussian_noise(fresh(), bits, snr_db)[1].ravel()
    # Information of a bit of 4-QAM, by quadrature: each part is a binary input over Gaussian noise.
    nodes, weights = np.polynomial.hermite_e.hermegauss(61)
    level = np.sqrt(2 * 10 ** (snr_db / 10) * 0.5)
    capacity = 1 - weights @ np.log2(1 + np.exp(-2 * level * (nodes + level))) / np.sqrt(2 * np.pi)
    lost = training.lost_share(torch.from_numpy(bits), torch.from_numpy(ratios)).mean()
    # 200 000 bits: the standard error is 0.002; ratios of wrong scale, by a half, lose 0.03 and more.
    assert 1 - float(lost) == pytest.approx(capacity, abs=0.015)


@pytest.mark.parametrize("snr_db", [-5.0, -2.0])
def test_ratios_of_shipped_weights_tell_how_sure_they_are(snr_db):
    flat = torch.ones(20, 1, 256, 4, dtype=torch.complex64)
    channels = Channels(flat, flat, torch.full((20,), link.PERFECT_DB))
    bits = torch.from_numpy(random_bits(20, 1, 1024 * 2))
    noise = torch.Generator().manual_seed(3)
    with torch.inference_mode():
        ratios = ae.carry(training.load("lab-e2e")[1], bits, 2, channels, torch.full((20,), snr_db), noise)
    told = torch.sigmoid(ratios).flatten().numpy()
    zero = (bits == 0).flatten().numpy()
    assert np.mean((told > 0.5) == zero) > 0.75
    # Ten groups of 4096 bits by what was told: standard error at most 0.008; learned ratios are not exact.
    for group in np.array_split(np.argsort(told), 10):
        assert zero[group].mean() == pytest.approx(told[group].mean(), abs=0.06)


def test_users_are_all_alike():
    network, channels = shaken(), drops(2, 3)
    points = network.points(4)[torch.randint(16, (2, 256, 3, 2), generator=torch.Generator().manual_seed(1))]
    snr, order = torch.tensor([0.0, 10.0]), [2, 0, 1]
    with torch.inference_mode():
        frame = ae.transmit(network, points, 4, channels.known, channels.nmse_db, snr)
        other = ae.transmit(network, points[:, :, order], 4, channels.known[:, order], channels.nmse_db, snr)
        plain = ae.transmit(fresh(), points, 4, channels.known, channels.nmse_db, snr)
    torch.testing.assert_close(other.data, frame.data, rtol=1e-3, atol=1e-4)
    assert (frame.data - plain.data).abs().mean() > 0.05


@pytest.mark.parametrize("n_users", [1, 2, 6])
def test_whatever_is_sent_has_unit_power(n_users):
    network, channels = shaken(), drops(2, n_users)
    points = network.points(2)[torch.randint(4, (2, 256, n_users, 4), generator=torch.Generator().manual_seed(1))]
    with torch.inference_mode():
        frame = ae.transmit(network, points, 2, channels.known, channels.nmse_db, torch.tensor([5.0, 5.0]))
    sent = torch.cat([frame.reference, frame.data], -1)
    power = sent.abs().square().sum(2).mean((1, 2))
    np.testing.assert_allclose(power.numpy(), 1, rtol=1e-4)


def test_a_piece_stands_for_a_longer_frame():
    network, channels = shaken(), drops(2)
    points = network.points(2)[torch.randint(4, (2, 256, 2, 1), generator=torch.Generator().manual_seed(1))]
    given = (2, channels.known, channels.nmse_db, torch.tensor([5.0, 5.0]))
    with torch.inference_mode():
        whole = ae.transmit(network, points.expand(-1, -1, -1, 4), *given)
        piece = ae.transmit(network, points, *given, repeats=4)
    torch.testing.assert_close(whole.reference, piece.reference)
    torch.testing.assert_close(whole.data[..., :1], piece.data)


def test_useless_csi_gives_ratios_nonetheless():
    channels = drops(3)
    same = channels.known[:, :1].expand_as(channels.known)
    for known in (torch.zeros_like(channels.known), same, channels.known.roll(1, 0), torch.full_like(same, torch.nan)):
        bits = torch.from_numpy(random_bits(3, 2, 512))
        given = Channels(channels.h, known, torch.full((3,), 0.0))
        with torch.inference_mode():
            ratios = ae.carry(shaken(), bits, 2, given, torch.full((3,), 10.0), torch.Generator().manual_seed(1))
        assert ratios.isfinite().all()


def test_what_fills_no_whole_ofdm_symbol_is_refused():
    bits = torch.zeros(1, 2, 512, dtype=torch.uint8)
    for bits_per_symbol in (4, 3):
        with pytest.raises(ValueError, match=r"needs \(2, 4, 6\) bits a symbol and a multiple of 256 symbols"):
            ae.carry(fresh(), bits[..., :500], bits_per_symbol, drops(1), torch.tensor([5.0]), torch.Generator())


def config(**sections):
    data = {**TINY, **sections}
    for name, section in TINY.items():
        if isinstance(section, dict):
            data[name] = {**section, **sections.get(name, {})}
    return training.TrainingConfig.model_validate(data)


def test_a_card_tells_information_beside_that_of_qam(tmp_path):
    done = training.train(config(optimiser={"lr": 1e-9}), tmp_path)
    card, network = training.load(tmp_path)
    assert card == done.card
    assert (card.task, card.training.steps, set(card.training.curve[-1]["lost_share"])) == ("bits", 4, {"5"})
    values = {}
    for metric in card.metrics:
        at = tuple(metric.conditions[key] for key in ("csi", "snr_db", "bits_per_symbol"))
        values.setdefault(metric.name, {})[at] = metric.value
    assert len(values["information"]) == 2 * 2 * 3
    # Hardly trained: still QAM.
    assert values["information"] == pytest.approx(values["information_of_qam"], abs=1e-3)
    assert values["information"]["perfect", 10, 2] > values["information"]["fed back", 0, 2] > 0
    assert sum(p.numel() for p in network.parameters()) == card.network.n_parameters


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_very_weights_of_one_that_was_not(tmp_path, monkeypatch):
    monkeypatch.setattr("semair.models.training._REPORT_S", 0.0)

    def stop(progress):
        if progress.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    short = config(downlink={"fed_back": 0.0}, validation={"test_snr_db": [5]})
    training.train(short, tmp_path / "whole")
    assert training.train(short, tmp_path / "parts", on_progress=stop).card is None
    assert training.train(short, tmp_path / "parts", resume=True).card is not None
    first, second = (load_model(tmp_path / name)[1] for name in ("whole", "parts"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_training_learns(tmp_path):
    learning = config(
        optimiser={"steps": 50, "batch": 8, "lr": 5e-3},
        network={"precoder_width": 16, "pair_width": 8, "demapper_width": 16},
        downlink={"perfect": 0.0, "fed_back": 0.0, "users": [2], "estimate_nmse_db": [-6, -4]},
        validation={"every": 50, "test_drops": 16, "test_snr_db": [10]},
    )
    card = training.train(learning, tmp_path).card
    found = {
        (metric.name, metric.conditions["snr_db"], metric.conditions["bits_per_symbol"]): metric.value
        for metric in card.metrics
        if metric.conditions["csi"] == "estimated"
    }
    # Same drops, bits and noise for both.
    gains = [value - found["information_of_qam", *at] for (name, *at), value in found.items() if name == "information"]
    assert np.mean(gains) > 0.005


def test_weights_of_another_task_and_unknown_ones_are_refused(tmp_path):
    with pytest.raises(ScenarioError, match="neither a folder with card"):
        training.load("nowhere")
    from semair.models.semantic.train import shipped

    if shipped():
        with pytest.raises(ModelError, match="semantic"):
            training.load(next(iter(shipped().values())))
    with pytest.raises(ScenarioError, match="kind 'swin' is unknown"):
        training.build_network(config(network={"kind": "swin"}))
    with pytest.raises(ScenarioError, match=r"minutes=0: a positive time"):
        training.train(config(), tmp_path, minutes=0)


def test_shipped_weights_carry_more_than_qam():
    network, plain = training.load("lab-e2e")[1], fresh()
    for csi in ("perfect", "estimated"):
        channels, snr = drops(12, 2, csi), torch.full((12,), 5.0)
        for bits_per_symbol in (2, 4):
            bits = torch.from_numpy(random_bits(12, 2, 1024 * bits_per_symbol))
            with torch.inference_mode():
                ours, theirs = (
                    training.lost_share(
                        bits, ae.carry(one, bits, bits_per_symbol, channels, snr, torch.Generator().manual_seed(3))
                    ).mean((1, 2))
                    for one in (network, plain)
                )
            assert float((ours - theirs).mean()) < 0


def test_links_of_pictures_and_bits_have_the_same_frame():
    channels = drops(1)
    points = fresh().points(2)[torch.randint(4, (1, 256, 2, 4), generator=torch.Generator().manual_seed(1))]
    with torch.inference_mode():
        frame = ae.transmit(fresh(), points, 2, channels.known, channels.nmse_db, torch.tensor([5.0]))
    assert isinstance(frame, link.Frame)
    assert (frame.reference.shape, frame.data.shape) == ((1, 256, 4, 2), (1, 256, 4, 4))

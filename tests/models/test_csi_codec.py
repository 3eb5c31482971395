"""Encoder and decoder behind an engine: what the network computes, and users that are silent or broken left out."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

import torch
from semair.errors import ModelError
from semair.models.cards import Card, NetworkSection, TrainingSection, save_model
from semair.models.csi import networks
from semair.models.csi.codec import Codec

TAPS, BEAMS, LENGTH = 8, 4, 6
CONFIG = {"n_taps": TAPS, "n_antennas": BEAMS, "max_length": LENGTH, "width": 16, "heads": 2, "feedforward": 24}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("codec") / "mine"
    torch.manual_seed(1)
    network = networks.build("aligned", CONFIG)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    card = Card(
        name="mine",
        task="csi",
        network=NetworkSection(kind="aligned", config=CONFIG, n_parameters=1),
        scenario={"lengths": [2, 6]},
        training=TrainingSection(command="", steps=0, samples=0, time_s=0),
    )
    save_model(place, card, network.state_dict())
    return place


@pytest.fixture(scope="module")
def codec(folder):
    return Codec(folder)


def complex_gaussian(*shape, seed=1):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def test_words_and_csi_are_those_of_the_network(codec, folder):
    _, network = networks.load(folder)
    csi, received = complex_gaussian(TAPS, BEAMS), complex_gaussian(2, 4, seed=2)
    lengths, snr = torch.tensor([4]), torch.tensor([7.0])
    with torch.inference_mode():
        word = network.encode(torch.from_numpy(csi)[None], lengths, snr)[0, :4].numpy()
        padded = torch.nn.functional.pad(torch.from_numpy(received), (0, LENGTH - 4))[None]
        there = torch.ones(1, 2, dtype=torch.bool)
        truth = network.decode(padded, lengths, torch.tensor([[7.0, 3.0]]), there, torch.tensor([[7.0, 7.0]]))[0]
    np.testing.assert_allclose(codec.encode(csi, 4, 7.0), word, rtol=1e-3, atol=1e-4)
    found, there = codec.decode(received, np.array([7.0, 3.0]), 7.0)
    np.testing.assert_allclose(found, truth.numpy(), rtol=1e-3, atol=1e-3)
    assert there.all()
    assert np.mean(np.abs(codec.encode(csi, 4, 7.0)) ** 2) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("broken", [0.0, np.nan, np.inf])
def test_a_silent_or_broken_user_is_left_out(codec, broken):
    received = complex_gaussian(3, LENGTH)
    received[1] = broken
    found, there = codec.decode(received, 10.0, 10.0)
    assert there.tolist() == [True, False, True]
    assert not found[1].any()
    np.testing.assert_array_equal(found[[0, 2]], codec.decode(received[[0, 2]], 10.0, 10.0)[0])


def test_one_symbol_that_is_no_number_leaves_the_user_out(codec):
    received = complex_gaussian(2, LENGTH)
    received[0, 3] = np.nan + 1j
    assert codec.decode(received, 10.0, 10.0)[1].tolist() == [False, True]


def test_nobody_heard_is_nothing_recovered(codec):
    found, there = codec.decode(np.zeros((2, LENGTH), np.complex64), 10.0, 10.0)
    assert not found.any()
    assert not there.any()


def test_saturated_symbols_give_finite_csi(codec):
    received = 1e6 * complex_gaussian(2, LENGTH)
    assert np.isfinite(codec.decode(received, 20.0, 20.0)[0]).all()


@pytest.mark.parametrize("csi", [np.zeros((TAPS, BEAMS), complex), np.full((TAPS, BEAMS), np.nan + 0j)])
def test_csi_without_content_is_refused(codec, csi):
    with pytest.raises(ValueError, match="needs finite numbers that are not all 0"):
        codec.encode(csi, 4, 10.0)


def test_sizes_that_do_not_fit_are_named(codec, folder):
    with pytest.raises(ValueError, match=r"csi is complex64 \(4, 8\); needs complex \(8, 4\), \(tap, beam\)"):
        codec.encode(complex_gaussian(BEAMS, TAPS), 4, 10.0)
    with pytest.raises(ValueError, match=r"7 symbols; these weights take 1 to 6, best \(2, 6\)"):
        codec.encode(complex_gaussian(TAPS, BEAMS), 7, 10.0)
    with pytest.raises(ValueError, match="7 symbols; these weights take 1 to 6"):
        codec.decode(complex_gaussian(2, 7), 10.0, 10.0)
    with pytest.raises(ValueError, match=r"needs complex \(user, symbol\)"):
        codec.decode(complex_gaussian(LENGTH), 10.0, 10.0)
    with pytest.raises(ValueError, match="snr_db=nan: must be finite"):
        codec.decode(complex_gaussian(2, 6), np.nan, 10.0)
    with pytest.raises(ModelError, match="trained for 8 taps and 4 antennas, used with 32 and 4; choose other weights"):
        Codec(folder, (32, 4))

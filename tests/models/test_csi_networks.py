"""CSI feedback networks: symbols of unit power, any number of users, silent users ignored, the same in every engine."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from semair.errors import ModelError, ScenarioError
from semair.models.cards import Card, NetworkSection, TrainingSection, save_model
from semair.models.csi import networks
from semair.models.csi.channels import ChannelConfig, Clustered, stream
from semair.models.csi.klt import KltCode
from semair.models.csi.link import Batch, Mixture, add_noise, draw, feed_back, nmse
from semair.models.csi.train import conditioned
from semair.models.engine import make_engine

TAPS, BEAMS, LENGTH = 8, 4, 6
SMALL = {"n_taps": TAPS, "n_antennas": BEAMS, "max_length": LENGTH}
ATTENTION = {**SMALL, "width": 16, "heads": 2, "feedforward": 24, "code_width": 4}
ALIGNED = {**ATTENTION, "shapes": 2, "angles_per_beam": 2}
KINDS = {
    "aligned": ("aligned", ALIGNED),
    "aligned-alone": ("aligned", {**ALIGNED, "joint_layers": 0}),
    "rca-value": ("munet", {**ATTENTION, "fusion": "residual-value"}),
    "rca-token": ("munet", {**ATTENTION, "fusion": "residual-token"}),
    "cross": ("munet", {**ATTENTION, "fusion": "cross"}),
    "sum": ("munet", {**ATTENTION, "fusion": "sum"}),
    "vanilla": ("munet", {**ATTENTION, "fusion": "none"}),
    "csinet": ("csinet", SMALL),
}
ALONE = ("aligned-alone", "vanilla", "csinet")


def made(name):
    """The network with weights that do something everywhere, also where training begins with silence."""
    kind, config = KINDS[name]
    torch.manual_seed(3)
    network = networks.build(kind, config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


@pytest.fixture(params=list(KINDS))
def name(request):
    return request.param


def gaussian(*shape, seed=1):
    return torch.view_as_complex(torch.randn((*shape, 2), generator=torch.Generator().manual_seed(seed)))


def decoded(network, received, present, length=LENGTH, snr_db=10.0):
    n, users = received.shape[:2]
    with torch.inference_mode():
        return network.decode(received, torch.full((n,), length), torch.full((n, users), snr_db), present)


def test_kinds_are_found_in_their_modules():
    assert list(networks.available()) == ["aligned", "csinet", "munet"]
    with pytest.raises(
        ScenarioError, match="network kind 'transnet' is unknown; choose one of: aligned, csinet, munet"
    ):
        networks.build("transnet")
    with pytest.raises(ScenarioError, match=r"width=10 must be a multiple of heads=4"):
        networks.build("aligned", {"width": 10})


def test_words_have_unit_power_over_the_symbols_used_and_none_behind(name):
    network = made(name)
    lengths = torch.tensor([1, 2, 6, 3])
    with torch.inference_mode():
        words = network.encode(gaussian(4, TAPS, BEAMS), lengths, torch.tensor([-10.0, 0.0, 10.0, 20.0]))
    for word, length in zip(words, lengths, strict=True):
        assert torch.equal(word[length:], torch.zeros(LENGTH - int(length), dtype=word.dtype))
        assert float(word[:length].abs().square().mean()) == pytest.approx(1, rel=1e-4)


def test_words_do_not_depend_on_the_scale_of_the_csi(name):
    network = made(name)
    csi, lengths, snr = gaussian(3, TAPS, BEAMS), torch.tensor([2, 4, 6]), torch.full((3,), 5.0)
    with torch.inference_mode():
        torch.testing.assert_close(
            network.encode(csi, lengths, snr), network.encode(1e-3 * csi, lengths, snr), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("users", [1, 2, 3, 5])
def test_any_number_of_users_in_any_order(name, users):
    network = made(name)
    received = gaussian(2, users, LENGTH)
    present = torch.ones(2, users, dtype=torch.bool)
    found = decoded(network, received, present)
    assert found.shape == (2, users, TAPS, BEAMS)
    order = torch.roll(torch.arange(users), 1)
    torch.testing.assert_close(decoded(network, received[:, order], present), found[:, order], rtol=1e-3, atol=1e-4)


def test_what_a_silent_user_would_have_sent_changes_nothing_for_others(name):
    network = made(name)
    received = gaussian(3, 3, LENGTH)
    present = torch.tensor([[True, True, False]]).expand(3, -1)
    other = received.clone()
    other[:, 2] = 7 * gaussian(3, LENGTH, seed=9)
    found, same = decoded(network, received, present), decoded(network, other, present)
    assert torch.equal(found[:, :2], same[:, :2])


def test_users_matter_to_each_other_where_they_are_decoded_together(name):
    network = made(name)
    received, present = gaussian(3, 2, LENGTH), torch.ones(3, 2, dtype=torch.bool)
    other = received.clone()
    other[:, 1] = gaussian(3, LENGTH, seed=9)
    difference = (decoded(network, received, present) - decoded(network, other, present))[:, 0].abs().max()
    assert (float(difference) == 0) == (name in ALONE)


def test_users_who_sent_different_words_are_recovered_differently(name):
    network = made(name)
    found = decoded(network, gaussian(3, 2, LENGTH), torch.ones(3, 2, dtype=torch.bool))
    assert float((found[:, 0] - found[:, 1]).abs().max()) > 1e-2


def test_a_missing_neighbour_leaves_exactly_the_single_user_decoder(name):
    if name.startswith("rca"):
        pytest.skip("its residual cut has no meaning for one user; see the published description")
    network = made(name)
    received = gaussian(3, 2, LENGTH)
    there = torch.tensor([[True, False]]).expand(3, -1)
    alone = decoded(network, received[:, :1], torch.ones(3, 1, dtype=torch.bool))
    torch.testing.assert_close(decoded(network, received, there)[:, :1], alone, rtol=1e-3, atol=1e-4)


def test_readings_of_the_residual_cut_differ():
    received, present = gaussian(3, 2, LENGTH), torch.ones(3, 2, dtype=torch.bool)
    found = []
    for name in ("rca-value", "rca-token", "cross"):
        network = networks.build(*KINDS[name])
        network.load_state_dict(made("rca-value").state_dict())
        found.append(decoded(network.eval(), received, present))
    assert all(float((a - b).abs().max()) > 1e-2 for a, b in pairwise(found))


@pytest.mark.parametrize(
    "name", [key if key in ("aligned", "csinet") else pytest.param(key, marks=pytest.mark.slow) for key in KINDS]
)
def test_onnx_runtime_computes_what_torch_does(name):
    pytest.importorskip("onnxruntime")
    network = made(name)
    rng = np.random.default_rng(1)
    snr, lengths = torch.tensor([3.0, 12.0]), torch.tensor([6, 3])
    features = rng.standard_normal((2, TAPS, 2 * BEAMS)).astype(np.float32)
    condition = network.conditions(lengths, snr).numpy()
    code = rng.standard_normal((1, 2, 2 * LENGTH)).astype(np.float32)
    present = np.ones((1, 2), np.float32)
    cases = [(network.encoder, (features, condition)), (network.decoder, (code, condition[None], present))]
    for module, inputs in cases:
        with torch.inference_mode():
            expected = module(*map(torch.from_numpy, inputs)).numpy()
        found = make_engine(module, inputs, "onnxruntime", [()] * len(inputs)).run(*inputs)
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("name", ["rca-value", "csinet"])
def test_a_network_begins_as_the_linear_code(name):
    network = networks.build(*KINDS[name])
    source = Clustered(ChannelConfig(n_antennas=BEAMS, n_taps=TAPS, lead_taps=2.0, bandwidth_hz=10e6))
    training, test = (source.draw(2000, stream(split, 1)).delay_angle for split in ("train", "test"))
    network.start_from(training)
    linear = KltCode(training.numpy(), joint=False)
    for snr_db, length in ((0.0, 3), (10.0, 6), (20.0, 4)):
        batch = conditioned(test, length, snr_db)
        with torch.inference_mode():
            ours = nmse(test, feed_back(network.eval(), batch, torch.Generator().manual_seed(1))).mean()
        words = torch.from_numpy(linear.encode(test.numpy(), length, snr_db))
        received = add_noise(words, batch.snr_db, torch.Generator().manual_seed(2)).numpy()
        theirs = nmse(test, torch.from_numpy(linear.decode(received, snr_db))).mean()
        # The linear decoder knows the words' sample covariance, ours takes components for independent: little apart.
        assert float(10 * torch.log10(ours / theirs)) == pytest.approx(0, abs=0.5)


def test_mixture_draws_what_it_says():
    mixture = Mixture(channel="lab", missing=0.5, snr_db=(0, 6), snr_spread_db=1.0, far=0.3)
    batch = draw(mixture, 400, torch.Generator().manual_seed(1))
    assert mixture.lengths == (2, 4, 8, 16)
    assert batch.csi.shape == (400, 2, 32, 4)
    assert set(batch.lengths.tolist()) == {2, 4, 8, 16}
    # 400 draws of probability 1/2: three standard deviations are 30.
    assert (~batch.present).any(1).sum().item() == pytest.approx(200, abs=30)
    assert batch.present.any(1).all()
    assert float(batch.snr_db.min()) >= -1
    assert float(batch.snr_db.max()) <= 7
    assert float((batch.snr_db[:, 0] - batch.snr_db[:, 1]).abs().max()) <= 2
    again = draw(mixture, 400, torch.Generator().manual_seed(1))
    assert all(torch.equal(a, b) for a, b in zip(tuple(vars(batch).values())[:4], vars(again).values(), strict=False))


def test_mixture_refuses_what_cannot_be():
    with pytest.raises(ValidationError, match="ratios holds 7; each must divide the 128 numbers"):
        Mixture(channel="lab", ratios=(8, 7))
    with pytest.raises(ValidationError, match="channel='home': a table, or one of paper, lab"):
        Mixture(channel="home")


def test_noise_has_the_power_that_the_snr_says():
    words = torch.zeros(2, 40000, dtype=torch.complex64)
    noise = add_noise(words, torch.tensor([0.0, 10.0]), torch.Generator().manual_seed(1))
    power = noise.abs().square().mean(-1)
    # The mean of 40000 exponentials has a standard deviation of 1/200.
    assert power.tolist() == pytest.approx([1.0, 0.1], rel=0.025)
    assert noise.real.square().mean(-1).tolist() == pytest.approx([0.5, 0.05], rel=0.03)


def test_nmse_is_error_over_energy():
    csi = gaussian(2, 3, TAPS, BEAMS)
    torch.testing.assert_close(nmse(csi, torch.zeros_like(csi)), torch.ones(2, 3))
    torch.testing.assert_close(nmse(csi, 0.9 * csi), torch.full((2, 3), 0.01), rtol=1e-3, atol=0)


def test_a_part_of_a_batch_holds_its_drops():
    batch = draw(Mixture(channel="lab"), 10, torch.Generator().manual_seed(1))
    part = batch.part(3, 5)
    assert isinstance(part, Batch)
    assert torch.equal(part.csi, batch.csi[3:5])
    assert torch.equal(part.snr_db, batch.snr_db[3:5])


def test_weights_come_back_and_foreign_ones_are_refused(tmp_path):
    network = made("aligned")
    kind, config = KINDS["aligned"]
    card = Card(
        name="mine",
        task="csi",
        network=NetworkSection(kind=kind, config=config, n_parameters=1),
        training=TrainingSection(command="", steps=0, samples=0, time_s=0),
    )
    save_model(tmp_path / "mine", card, network.state_dict())
    _, loaded = networks.load(tmp_path / "mine")
    received, present = gaussian(2, 2, LENGTH), torch.ones(2, 2, dtype=torch.bool)
    assert torch.equal(decoded(loaded, received, present), decoded(network, received, present))
    other = card.model_copy(
        update={"network": NetworkSection(kind=kind, config={**config, "n_antennas": 8}, n_parameters=1)}
    )
    save_model(tmp_path / "other", other, network.state_dict())
    with pytest.raises(ModelError, match="the weights do not fit the network of the card"):
        networks.load(tmp_path / "other")
    save_model(tmp_path / "uad", card.model_copy(update={"task": "uad"}), network.state_dict())
    with pytest.raises(ModelError, match="is a model for task 'uad', not for 'csi'"):
        networks.load(tmp_path / "uad")

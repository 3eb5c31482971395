"""Evaluation of picture downlinks: fair, paired, and open to anything that delivers pictures."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from semair.errors import ModelError, ScenarioError
from semair.models.cards import Card, NetworkSection, TrainingSection, save_model
from semair.models.semantic import evaluate, networks
from semair.models.semantic.digital import DigitalContender, sent_through, used_symbols
from semair.models.semantic.downlink import DownlinkConfig, draw
from semair.models.semantic.images import Collection
from semair.models.semantic.metrics import Lpips

SMALL = {
    "fine_width": 8,
    "fine_heads": 1,
    "coarse_width": 16,
    "coarse_heads": 2,
    "encoder_layers": (1, 1),
    "decoder_layers": (1, 1),
    "csi_width": 8,
    "fusion_width": 8,
    "data_width": 8,
}


def contender(name="tiny", **fields):
    torch.manual_seed(1)
    return evaluate.NetworkContender(name, networks.build("scsap", {**SMALL, **fields}).eval())


def stored(folder, **fields):
    network = contender(**fields).network
    training = TrainingSection(command="none", steps=0, samples=0, time_s=0)
    section = NetworkSection(kind="scsap", config=network.config.model_dump(mode="json"), n_parameters=1)
    save_model(folder, Card(name="tiny", task="semantic", network=section, training=training), network.state_dict())
    return folder


class Kept:
    """Remembers what it was given, and returns the pictures with a stated error."""

    def __init__(self, name, error):
        self.name, self.error, self.seen = name, error, []

    def prepare(self, condition, evaluation):
        self.seen.append(condition)

    def deliver(self, pictures, channels, snr_db, generator):
        self.seen.append((pictures, channels, snr_db, float(torch.randn(1, generator=generator))))
        return pictures * (1 - self.error), np.zeros(tuple(pictures.shape[:2]), bool)


@pytest.fixture(scope="module")
def photographs():
    return Collection.drawn(20, 80)


def test_all_contenders_see_the_same_pictures_channels_and_noise(photographs):
    one, other = Kept("one", 0.0), Kept("other", 0.1)
    rows = evaluate.Evaluation([one, other], DownlinkConfig(), photographs, 20).rows(evaluate.Condition())
    assert one.seen[0] == other.seen[0] == evaluate.Condition()
    assert len(one.seen) == 3
    for mine, theirs in zip(one.seen[1:], other.seen[1:], strict=True):
        assert torch.equal(mine[0], theirs[0]) and torch.equal(mine[1].h, theirs[1].h) and mine[2:] == theirs[2:]
    assert [row.contender for row in rows] == ["one", "other"]
    assert rows[0].quality["psnr_db"].value == 100
    assert rows[0].quality["ms_ssim"].value == pytest.approx(1, abs=1e-4)
    assert rows[1].quality["psnr_db"].value < 40
    assert rows[0].values["psnr_db"].shape == (20,)


def test_channels_are_the_same_at_every_snr(photographs):
    kept = Kept("one", 0.0)
    evaluation = evaluate.Evaluation([kept], DownlinkConfig(), photographs, 4)
    for snr_db in (0.0, 10.0):
        evaluation.rows(evaluate.Condition(snr_db=snr_db, csi="fed back"))
    first, second = kept.seen[1], kept.seen[3]
    assert torch.equal(first[1].known, second[1].known)
    assert (first[2], second[2]) == (0.0, 10.0)


@pytest.mark.parametrize("sweep", ["snr", "snr-fed-back", "csi", "users"])
def test_every_sweep_gives_rows_that_are_plain_values(sweep, photographs):
    evaluation = evaluate.Evaluation([contender()], DownlinkConfig(), photographs, 2)
    chosen = evaluate.sweeps(quick=True)[sweep]
    rows = [row for condition in chosen.conditions for row in evaluation.rows(condition)]
    content = json.loads(json.dumps(evaluate.as_json({sweep: rows}, {"seed": 1})))
    found = [row["condition"][chosen.axis] for row in content["sweeps"][sweep]]
    assert found == [getattr(condition, chosen.axis) for condition in chosen.conditions]
    assert {"ms_ssim", "psnr_db"} <= set(content["sweeps"][sweep][0])


def test_lpips_is_measured_where_its_weights_are(photographs, shared_data):
    metric = Lpips(shared_data / "lpips")
    kept = [Kept("same", 0.0), Kept("darker", 0.3)]
    rows = evaluate.Evaluation(kept, DownlinkConfig(), photographs, 2, lpips=metric).rows(evaluate.Condition())
    assert rows[0].quality["lpips"].value == pytest.approx(0, abs=1e-5)
    assert rows[1].quality["lpips"].value > 0.01


def test_a_sheet_shows_the_same_pictures_through_every_scheme(photographs):
    evaluation = evaluate.Evaluation([Kept("one", 0.0), contender()], DownlinkConfig(), photographs, 4)
    sheet = evaluation.sheet((0.0, 10.0), 3)
    assert sheet["sent"].shape == (3, 64, 64, 3)
    assert {name: found.shape for name, found in sheet["found"].items()} == {
        "one": (2, 3, 64, 64, 3),
        "tiny": (2, 3, 64, 64, 3),
    }
    assert np.array_equal(sheet["found"]["one"][1], sheet["sent"])


def test_weights_are_taken_by_folder_and_their_precoding_matrix_may_be_changed(tmp_path):
    name = str(stored(tmp_path / "model"))
    card, found = evaluate.load_contender(name + evaluate.WMMSE)
    assert card.name == "tiny"
    assert found.network.config.precoder == "wmmse"
    channels = draw(DownlinkConfig(), 2, torch.Generator().manual_seed(1), csi="perfect")
    pictures = torch.rand(2, 2, 3, 64, 64)
    one, other = (
        c.deliver(pictures, channels, 5.0, torch.Generator().manual_seed(1))[0]
        for c in (found, evaluate.load_contender(name)[1])
    )
    assert not torch.equal(one, other)
    with pytest.raises(ScenarioError, match="neither a folder with card"):
        evaluate.load_contender("nowhere")


def test_weights_for_another_numerology_are_refused(tmp_path):
    name = str(stored(tmp_path / "model", n_antennas=8))
    with pytest.raises(ModelError, match="trained for 8 antennas and 256 subcarriers, used with 4 and 256"):
        evaluate.contenders([name], DownlinkConfig())


@pytest.mark.slow
def test_latencies_of_every_part_are_measured(tmp_path):
    name = str(stored(tmp_path / "whole", csi_fusion=True, data_branch=True, precoder="learned"))
    for part in ("encoder", "transmitter", "decoder"):
        times = evaluate.part_latencies(name, part, 3)
        assert times.shape == (3,) and (times > 0).all()
    plain = str(stored(tmp_path / "plain"))
    with pytest.raises(ScenarioError, match="has no transmitter"):
        evaluate.part_latencies(plain, "transmitter", 3)


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_engines_agree_about_the_transmitter(engine):
    from semair.models.engine import make_engine

    network = contender(csi_fusion=True, data_branch=True, precoder="learned").network
    module = evaluate.Joined(network.transmitter)
    rng = np.random.default_rng(1)
    shapes = ((1, 2, 1, 64, 32), (1, 2, 64, network.config.csi_features), (1, 2, 3))
    inputs = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    with torch.inference_mode():
        expected = module(*map(torch.from_numpy, inputs)).numpy()
    found = make_engine(module, inputs, engine, [()] * 3).run(*inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_symbols_arrive_with_the_noise_that_the_receiver_reckons_with():
    channels = draw(DownlinkConfig(), 40, torch.Generator().manual_seed(1), csi="perfect")
    config = networks.NetworkConfig()
    generator = torch.Generator().manual_seed(2)
    symbols = torch.exp(2j * np.pi * torch.rand((40, 2, 1024), generator=generator)).to(torch.complex64)
    found, noise = sent_through(config, symbols, channels, torch.full((40,), 15.0), generator)
    error = np.abs(found - symbols.numpy()) ** 2
    # Where channels are strong; near zeros of a channel both go to infinity.
    good = noise < 0.5
    assert good.mean() > 0.7
    assert error[good].mean() == pytest.approx(noise[good].mean(), rel=0.25)


def test_a_picture_that_is_not_decoded_is_grey_and_counted(photographs):
    squares = photographs.fixed(20, "test", 64)
    middle = np.median(squares.mean((1, 2, 3)))

    class Coder:
        """Sends whether a picture is bright as the sign of every symbol, and fails for dark ones."""

        def encode(self, picture, n_symbols):
            return np.full(n_symbols, 1 if picture.mean() >= middle else -1, np.complex64)

        def decode(self, received, noise_power, size):
            bright = (received.real / noise_power).sum() > 0
            return np.full((*size, 3), 250, np.uint8) if bright else None

    found = DigitalContender("sign", Coder())
    row = evaluate.Evaluation([found], DownlinkConfig(), photographs, 10).rows(evaluate.Condition(snr_db=20.0))[0]
    assert row.failed == pytest.approx((squares.mean((1, 2, 3)) < middle).mean(), abs=1e-9)
    assert 0 < row.failed < 1


def test_digital_pictures_get_as_many_symbols_as_analog_ones():
    config = networks.NetworkConfig()
    assert used_symbols(config, 64, 64) == 1024
    assert used_symbols(config, 128, 128) == 4096
    assert used_symbols(replace_uses(config, 8), 64, 64) == 512


def replace_uses(config, uses):
    return config.model_copy(update={"uses": uses})


def test_too_little_to_evaluate_is_refused(photographs):
    with pytest.raises(ScenarioError, match="at least 2 drops and 1 contender"):
        evaluate.Evaluation([], DownlinkConfig(), photographs, 10)
    empty = replace(photographs, pictures={**photographs.pictures, "test": []})
    with pytest.raises(ScenarioError, match="has no pictures for test"):
        evaluate.Evaluation([contender()], DownlinkConfig(), empty, 10).rows(evaluate.Condition())

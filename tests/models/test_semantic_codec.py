"""A trained network frame by frame: engines send and receive what training saw, and what does not fit is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from semair.errors import ModelError
from semair.models.cards import Card, NetworkSection, TrainingSection, save_model
from semair.models.csi.channels import PRESETS, Clustered, stream
from semair.models.semantic import link, networks
from semair.models.semantic.codec import PictureCodec
from semair.models.semantic.evaluate import load_contender

SMALL = {
    "fine_width": 8,
    "fine_heads": 1,
    "coarse_width": 16,
    "coarse_heads": 2,
    "encoder_layers": (2, 2),
    "decoder_layers": (2, 2),
    "csi_width": 8,
    "fusion_width": 8,
    "data_width": 8,
}
PARTS = {"csi_fusion": True, "data_branch": True, "precoder": "learned"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}
    for name, kind, fields in (
        ("whole", "scsap", {**SMALL, **PARTS}),
        ("no-data", "scsap", {**SMALL, **PARTS, "data_branch": False}),
        ("adjscc", "adjscc", {"width": 8}),
    ):
        torch.manual_seed(1)
        network = networks.build(kind, fields)
        if network.transmitter is not None:
            with torch.no_grad():
                for parameter in network.transmitter.parameters():
                    parameter.add_(0.1 * torch.randn(parameter.shape))
        section = NetworkSection(kind=kind, config=network.config.model_dump(mode="json"), n_parameters=1)
        training = TrainingSection(command="none", steps=0, samples=0, time_s=0)
        found[name] = tmp_path_factory.mktemp(name)
        card = Card(name=name, task="semantic", network=section, training=training)
        save_model(found[name], card, network.state_dict())
    return found


@pytest.fixture(scope="module")
def csi():
    return Clustered(PRESETS["lab"]).draw(1, stream("test", 3), (0.5, 20.0), 2).h[0].numpy()


def pictures(rows=64, columns=64):
    return np.random.default_rng(2).integers(0, 256, (2, rows, columns, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["whole", "no-data", "adjscc"])
@pytest.mark.parametrize("size", [(64, 64), pytest.param((128, 64), marks=pytest.mark.slow)])
def test_engines_send_and_receive_as_the_network_does(folders, csi, name, size):
    codec = PictureCodec(folders[name], (4, 256))
    sent = codec.transmit(pictures(*size), csi, -20.0, 10.0)
    assert sent.data.shape == (codec.n_symbols(*size), 256, 4)
    _, network = networks.load(folders[name])
    batch = torch.from_numpy(pictures(*size).astype(np.float32) / 255).permute(0, 3, 1, 2)[None]
    conditions = (torch.from_numpy(csi)[None], torch.tensor([-20.0]), torch.tensor([10.0]))
    with torch.inference_mode():
        frame = link.transmit(network, batch, *conditions)
    np.testing.assert_allclose(sent.data, frame.data[0].permute(2, 0, 1).numpy(), atol=2e-3)
    rng = np.random.default_rng(5)
    received = [np.einsum("qsn,ksn->kqs", part, csi) for part in sent]
    received = [r + 0.2 * rng.standard_normal((*r.shape, 2)) @ np.array([1, 1j]) for r in received]
    found = [codec.receive(received[0][k], received[1][k], 0.08, k, size) for k in range(2)]
    grids = [torch.from_numpy(r.astype(np.complex64)).transpose(1, 2)[None] for r in received]
    with torch.inference_mode():
        heard = link.hear(network, *grids, torch.full((1, 2), 0.08), (size[0] // 8, size[1] // 8))
        expected = link.decode(network, heard)[0].permute(0, 2, 3, 1).numpy() * 255
    for k in range(2):
        assert np.abs(found[k].picture - expected[k]).max() < 1
        assert found[k].sinr_db == pytest.approx(float(heard.sinr_db[0, k]), abs=1e-2)


@pytest.mark.parametrize(("name", "n_users"), [("whole", 1), ("whole", 6), ("no-data", 3), ("adjscc+wmmse", 3)])
@pytest.mark.parametrize("csi_nmse_db", [-40.0, -5.0])
def test_any_number_of_users_is_sent_what_the_link_says(folders, name, n_users, csi_nmse_db):
    plain, _, change = name.partition("+")
    path = f"{folders[plain]}{change and '+' + change}"
    known = Clustered(PRESETS["lab"]).draw(1, stream("test", 4), (0.5, 20.0), n_users).h[0].numpy() * 7
    shown = np.random.default_rng(2).integers(0, 256, (n_users, 64, 64, 3), dtype=np.uint8)
    sent = PictureCodec(path, engine="torch").transmit(shown, known, csi_nmse_db, 3.0)
    batch = torch.from_numpy(shown.astype(np.float32) / 255).permute(0, 3, 1, 2)[None]
    conditions = (torch.from_numpy(known)[None], torch.tensor([csi_nmse_db]), torch.tensor([3.0]))
    with torch.inference_mode():
        frame = link.transmit(load_contender(path)[1].network, batch, *conditions)
    for found, expected in zip(sent, (frame.reference, frame.data), strict=True):
        np.testing.assert_allclose(found, expected[0].permute(2, 0, 1).numpy(), atol=1e-3)


@pytest.mark.slow
def test_the_same_input_gives_the_same_bits(folders, csi):
    codec = PictureCodec(folders["whole"])
    one, other = (codec.transmit(pictures(), csi, -40.0, 5.0) for _ in range(2))
    again = PictureCodec(folders["whole"]).transmit(pictures(), csi, -40.0, 5.0)
    assert np.array_equal(one.data, other.data) and np.array_equal(one.data, again.data)


def test_unknown_channels_and_zero_power_are_served_without_harm(folders, csi):
    codec = PictureCodec(folders["whole"])
    half = csi * np.array([1, 0])[:, None, None]
    for known in (half, np.zeros_like(csi), np.repeat(csi[:1], 2, 0)):
        sent = codec.transmit(pictures(), known.astype(np.complex64), 0.0, 40.0)
        assert np.isfinite(sent.data).all()
    silence = np.zeros((2, 256), np.complex64), np.zeros((4, 256), np.complex64)
    assert codec.receive(*silence, 0.0, 0, (64, 64)).picture.shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pictures": np.zeros((2, 60, 64, 3), np.uint8)}, "60 x 64 pixels; sides must be multiples of 64"),
        ({"pictures": np.zeros((2, 64, 64), np.uint8)}, r"pictures is uint8 \(2, 64, 64\)"),
        ({"csi": np.zeros((1, 256, 4), complex)}, r"csi is complex128 \(1, 256, 4\); needs complex \(2, 256, 4\)"),
        ({"csi": np.full((2, 256, 4), np.nan + 0j)}, "must be finite"),
        ({"snr_db": np.inf}, "must be finite"),
    ],
)
def test_what_does_not_fit_to_be_sent_is_named(folders, csi, change, said):
    arguments = {"pictures": pictures(), "csi": csi, "csi_nmse_db": -10.0, "snr_db": 5.0, **change}
    with pytest.raises(ValueError, match=said):
        PictureCodec(folders["whole"]).transmit(**arguments)


def test_what_does_not_fit_to_be_received_is_named(folders):
    codec = PictureCodec(folders["adjscc"])
    reference, data = np.ones((2, 256), np.complex64), np.ones((4, 256), np.complex64)
    for arguments, said in (
        ((reference, data[:3], 0.1, 0, (64, 64)), r"data is complex64 \(3, 256\); needs complex \(4, 256\)"),
        ((reference * np.nan, data, 0.1, 0, (64, 64)), "reference is .* finite"),
        ((reference, data, 0.1, 2, (64, 64)), "user=2 of 2"),
        ((reference, data, -1.0, 0, (64, 64)), "noise_power=-1.0"),
    ):
        with pytest.raises(ValueError, match=said):
            codec.receive(*arguments)


def test_weights_for_another_numerology_are_refused(folders):
    with pytest.raises(ModelError, match="trained for 4 antennas and 256 subcarriers, used with 8 and 64"):
        PictureCodec(folders["whole"], (8, 64))

"""The code in the frame of the strongest direction: turning, frames, the plan, and what neighbours are worth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from semair.models.csi import networks
from semair.models.csi.channels import ChannelConfig, Clustered, stream
from semair.models.csi.klt import KltCode
from semair.models.csi.link import add_noise, feed_back, nmse
from semair.models.csi.networks._aligned import Mode
from semair.models.csi.networks.base import as_features
from semair.models.csi.train import conditioned

TAPS, BEAMS, LENGTH = 8, 8, 16
CHANNEL = ChannelConfig(n_antennas=BEAMS, n_taps=TAPS, lead_taps=2.0, bandwidth_hz=10e6)
CONFIG = {
    "n_taps": TAPS,
    "n_antennas": BEAMS,
    "max_length": LENGTH,
    "short": True,
    "width": 16,
    "heads": 2,
    "feedforward": 24,
    "code_width": 4,
    "shapes": 2,
    "angles_per_beam": 2,
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Many small steps are slower on several threads, and far slower where something else runs beside them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def training():
    return Clustered(CHANNEL).draw(1500, stream("train", 1), (0.5, 2.0)).delay_angle


@pytest.fixture(scope="module")
def test_drops():
    return Clustered(CHANNEL).draw(1500, stream("test", 1), (0.5, 2.0)).delay_angle


@pytest.fixture(scope="module")
def fitted(training):
    torch.manual_seed(1)
    network = networks.build("aligned", CONFIG)
    network.start_from(training)
    return network.eval()


def errors(network, csi, length, snr_db, present=None):
    """Of the first user, one for each drop."""
    batch = conditioned(csi, length, snr_db, present)
    with torch.inference_mode():
        return nmse(csi, feed_back(network, batch, torch.Generator().manual_seed(2)))[:, 0].double().numpy()


def test_turning_moves_a_direction_to_beam_0_and_back(fitted):
    code = fitted.encoder.code
    for place in range(code.n_angles):
        # A plane wave whose phase grows by 2 pi place / n_angles from antenna to antenna, over beams by numpy's FFT.
        wave = np.exp(2j * np.pi * place * np.arange(BEAMS) / code.n_angles)
        beams = np.tile(np.fft.fft(wave, norm="ortho"), (TAPS, 1))
        features = torch.from_numpy(np.concatenate([beams.real, beams.imag], -1)[None]).float()
        angle, _ = code._label(features)
        turned = code.turn(features, angle)
        power = turned[..., :BEAMS].square() + turned[..., BEAMS:].square()
        assert float(power[..., 0].sum() / power.sum()) == pytest.approx(1.0, abs=1e-5)
        torch.testing.assert_close(code.turn_back(turned, angle), features, atol=1e-5, rtol=0)


def test_the_frame_arrives_when_there_is_hardly_any_noise(fitted, test_drops):
    code = fitted.encoder.code
    features = as_features(test_drops[:300].flatten(0, 1))
    n = len(features)
    condition = fitted.conditions(torch.full((n,), LENGTH), torch.full((n,), 20.0))
    kept = code.plan.clone()
    try:
        for mode, way in enumerate(code.ways):
            # One symbol of 32 codewords is too few for certainty at any power here, and one of 16 directions, too.
            if way.symbols >= (3 if way.kinds else 2):
                code.plan[:] = fitted.decoder.code.plan[:] = mode
                frame = code.choose(features, condition)
                sent = code.encode(code.turn(features, frame.angle), torch.zeros(n, 2 * LENGTH), frame, condition)
                found = code.find(sent[:, None], condition[:, None], None)
                assert torch.equal(found.angle, frame.angle)
                assert torch.equal(found.shape, frame.shape)
                # Behind the kinds and the code of what is not turned comes that of any kind.
                assert way.kinds or set(frame.shape.tolist()) == {code.n_shapes + 1}
                assert float(found.facts[:, -1].min()) > 0.99
                # Symbols of the frame and all others have the power that the mode gives them.
                energy = sent.square().sum(1)
                torch.testing.assert_close(energy, torch.full((n,), float(LENGTH)), rtol=1e-3, atol=0)
    finally:
        code.plan[:] = fitted.decoder.code.plan[:] = kept


def test_it_begins_ahead_of_the_linear_code(fitted, training, test_drops):
    linear = KltCode(training.numpy(), joint=False)
    gains = []
    for snr_db, length in ((10.0, 8), (10.0, 16), (20.0, 8), (0.0, 8)):
        words = torch.from_numpy(linear.encode(test_drops.numpy(), length, snr_db))
        received = add_noise(words, torch.full(test_drops.shape[:2], snr_db), torch.Generator().manual_seed(2)).numpy()
        theirs = nmse(test_drops, torch.from_numpy(linear.decode(received, snr_db)))[:, 0].double().numpy()
        gains.append(10 * math.log10(theirs.mean() / errors(fitted, test_drops, length, snr_db).mean()))
    assert max(gains[:3]) > 0.5
    # Where the frame cannot be told, it is the linear code but for the decoder's sample covariance.
    assert min(gains) > -0.5


@pytest.mark.parametrize("way", [Mode(2), Mode(1, 1.0, False)])
def test_a_neighbour_helps_to_find_the_frame_and_does_no_harm_far_away(fitted, test_drops, way):
    """With half the symbols that the frame would need alone, averaged over drops."""
    code = fitted.decoder.code
    features = as_features(test_drops.flatten(0, 1))
    far = Clustered(CHANNEL).draw(1500, stream("test", 2), (50.0, 100.0)).delay_angle
    conditions = fitted.conditions(torch.full((2,), LENGTH), torch.full((2,), 3.0)).repeat(1500, 1, 1)
    kept = code.plan.clone()
    right = {}
    try:
        fitted.encoder.code.plan[:] = code.plan[:] = code.ways.index(way)
        for name, csi in (("near", test_drops), ("far", far)):
            features = as_features(csi.flatten(0, 1))
            frame = code.choose(features, conditions.flatten(0, 1))
            silence = torch.zeros(len(features), 2 * LENGTH)
            sent = code.encode(code.turn(features, frame.angle), silence, frame, conditions.flatten(0, 1))
            noise = torch.randn(sent.shape, generator=torch.Generator().manual_seed(1)) * math.sqrt(0.5 * 10**-0.3)
            received = (sent + noise).unflatten(0, (1500, 2))
            for present in (None, torch.ones(1500, 2)):
                found = code.find(received, conditions, present)
                hits = (found.angle == frame.angle) & (found.shape == frame.shape)
                right[name, present is not None] = float(hits.float().mean())
    finally:
        fitted.encoder.code.plan[:] = code.plan[:] = kept
    # 3000 frames: the standard deviation of a share is below 0.01, that of a paired difference smaller still.
    assert right["near", True] > right["near", False] + 0.03
    assert right["far", True] > right["far", False] - 0.03


def test_users_that_are_not_heard_change_nothing(fitted, test_drops):
    csi = test_drops[:50]
    alone = torch.tensor([[True, False]]).expand(50, 2)
    with torch.inference_mode():
        batch = conditioned(csi, LENGTH, 10.0, alone)
        first = feed_back(fitted, batch, torch.Generator().manual_seed(2))[:, 0]
        other = conditioned(torch.cat([csi[:, :1], csi[:, 1:].flip(0)], 1), LENGTH, 10.0, alone)
        second = feed_back(fitted, other, torch.Generator().manual_seed(2))[:, 0]
    torch.testing.assert_close(first, second)


def test_drops_of_one_user_and_few_draws_are_enough_to_begin():
    csi = Clustered(CHANNEL).draw(40, stream("train", 3), None, 1).delay_angle
    network = networks.build("aligned", CONFIG)
    network.start_from(csi)
    assert np.isfinite(errors(network.eval(), csi, 8, 10.0)).all()


def test_settling_plans_what_the_whole_network_does_best(training, test_drops):
    torch.manual_seed(1)
    network = networks.build("aligned", CONFIG)
    network.start_from(training[:200])
    network.eval()
    # A plan that is wrong everywhere: as many symbols for the frame as fit, also where noise drowns them.
    for code in (network.encoder.code, network.decoder.code):
        for length in (8, 16):
            code.plan[code.row(length)] = max(code.modes(length))
    alone = torch.tensor([[True, False]]).expand(len(test_drops), 2)
    before = {snr_db: errors(network, test_drops, 8, snr_db, alone).mean() for snr_db in (-10.0, 10.0)}
    network.settle(training[:150], (8, 16))
    after = {snr_db: errors(network, test_drops, 8, snr_db, alone).mean() for snr_db in before}
    assert torch.equal(network.encoder.code.plan, network.decoder.code.plan)
    # At -10 dB a frame cannot arrive at all.
    assert network.encoder.code.plan[network.encoder.code.row(8), 0] == 0
    assert after[-10.0] < before[-10.0]
    assert after[10.0] <= before[10.0] * 1.02

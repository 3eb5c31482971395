"""Digital pictures: what fits is sent, what is decoded is what was sent, what fails is known to fail."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("gnuradio")
pytest.importorskip("pillow_heif")

import torch
from semair.flowgraphs.semantic_digital import (
    HevcCoder,
    best_of_qam,
    digital_contenders,
    fitting,
    hevc,
)
from semair.models.semantic.autoencoder import Autoencoder, AutoencoderConfig, AutoencoderContender
from semair.models.semantic.digital import DigitalContender
from semair.models.semantic.downlink import DownlinkConfig
from semair.models.semantic.downlink import draw as draw_channels
from semair.models.semantic.evaluate import Condition, Evaluation
from semair.models.semantic.images import Collection, draw
from semair.models.semantic.train import as_batch


@pytest.fixture(scope="module")
def picture():
    return draw(64, np.random.default_rng(3))


def error(one, other):
    return float(np.mean((one.astype(float) - other) ** 2))


def test_better_quality_takes_more_bytes_and_shows_more(picture):
    (small, coarse), (large, fine) = hevc(picture, 10), hevc(picture, 90)
    assert len(small) < len(large)
    assert error(fine, picture) < error(coarse, picture)


def test_the_best_that_fits_is_taken(picture):
    previous = np.inf
    for room in (64, 80, 200, 500, 2000):
        payload, shown = fitting(picture, room)
        assert 0 < len(payload) <= room
        assert shown.shape == picture.shape
        # Shrunk pictures may be as good as whole ones with some more bytes, not much better.
        assert error(shown, picture) < 1.1 * previous
        previous = error(shown, picture)
    payload, shown = fitting(picture, 2)
    assert payload == b"" and (shown == 128).all()


@pytest.mark.parametrize(("bits", "rate"), [(2, 1 / 2), (4, 1 / 2), (6, 3 / 4)])
def test_a_picture_comes_back_without_noise_and_is_known_to_be_lost_in_it(picture, bits, rate):
    coder = HevcCoder(bits, rate)
    symbols = coder.encode(picture, 1024)
    assert symbols.shape == (1024,)
    assert np.mean(np.abs(symbols) ** 2) == pytest.approx(1, abs=0.1)
    found = coder.decode(symbols, np.full(1024, 1e-3), (64, 64))
    expected = fitting(picture, (int(1024 * bits * rate + 1e-9) - 32) // 8)[1]
    assert np.array_equal(found, expected)
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((1024, 2)) @ np.array([1, 1j])
    assert coder.decode((symbols + 3 * noise).astype(np.complex64), np.full(1024, 18.0), (64, 64)) is None


@pytest.mark.slow
def test_the_mode_is_chosen_by_condition_and_on_validation_pictures_alone(monkeypatch):
    monkeypatch.setattr("semair.flowgraphs.semantic_digital.MODES", ((2, 1 / 3), (6, 3 / 4)))
    monkeypatch.setattr("semair.flowgraphs.semantic_digital._VALIDATION_DROPS", 3)
    best, pictures = best_of_qam(), Collection.drawn(10, 64)
    seen = []
    monkeypatch.setattr(Collection, "fixed", _told(Collection.fixed, seen))
    evaluation = Evaluation([best], DownlinkConfig(), pictures, 2)
    chosen = []
    for snr_db in (0.0, 40.0):
        best.prepare(Condition(snr_db=snr_db), evaluation)
        chosen.append(best.mode)
    assert chosen == ["2 bit, 0.33", "6 bit, 0.75"]
    assert set(seen) == {"valid"}


def _told(fixed, seen):
    def tell(self, n, split, side):
        seen.append(split)
        return fixed(self, n, split, side)

    return tell


def test_an_autoencoder_that_was_not_trained_shows_what_qam_shows():
    channels = draw_channels(DownlinkConfig(), 2, torch.Generator().manual_seed(1), csi="perfect")
    pictures = as_batch(Collection.drawn(10, 64).fixed(4, "test", 64), 2)
    coder = HevcCoder(4, 1 / 2)
    contenders = [
        DigitalContender("qam", coder),
        AutoencoderContender("bits", coder, Autoencoder(AutoencoderConfig()).eval()),
    ]
    shown = [one.deliver(pictures, channels, 12.0, torch.Generator().manual_seed(2)) for one in contenders]
    assert not shown[0][1].all()
    assert np.array_equal(shown[0][1], shown[1][1])
    assert torch.equal(shown[0][0], shown[1][0])


def test_the_grid_of_the_autoencoder_is_that_of_qam():
    names = [one.name for one in digital_contenders()]
    assert names == ["hevc-best", "hevc-16qam-1/2", "hevc-e2e"]

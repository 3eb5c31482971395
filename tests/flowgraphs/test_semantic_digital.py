"""Digital pictures: what fits is sent, what is decoded is what was sent, what fails is known to fail."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("gnuradio")
pytest.importorskip("pillow_heif")

from semair.flowgraphs.semantic_digital import BestOfGrid, HevcCoder, fitting, hevc
from semair.models.semantic.downlink import DownlinkConfig
from semair.models.semantic.evaluate import Condition, Evaluation
from semair.models.semantic.images import Collection, draw


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
    best, pictures = BestOfGrid(), Collection.drawn(10, 64)
    seen = []
    monkeypatch.setattr(Collection, "fixed", _told(Collection.fixed, seen))
    evaluation = Evaluation([best], DownlinkConfig(), pictures, 2)
    chosen = []
    for snr_db in (0.0, 40.0):
        best.prepare(Condition(snr_db=snr_db), evaluation)
        chosen.append(best._now.name)
    assert chosen == ["2 bit, 0.33", "6 bit, 0.75"]
    assert set(seen) == {"valid"}


def _told(fixed, seen):
    def tell(self, n, split, side):
        seen.append(split)
        return fixed(self, n, split, side)

    return tell

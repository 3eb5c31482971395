"""Figures of recovered CSI against closed forms, and against the tensors of training."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from semair.models.csi import judge
from semair.models.csi.evaluate import rzf_sum_rate
from semair.models.csi.link import nmse


def complex_gaussian(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return ((rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2)).astype(np.complex64)


def test_errors_are_those_of_training_for_csi_of_unit_power(rng):
    csi, got = complex_gaussian(rng, 8, 4), complex_gaussian(rng, 8, 4)
    csi /= np.sqrt(np.mean(np.abs(csi) ** 2))
    expected = float(nmse(torch.from_numpy(csi), torch.from_numpy(got)))
    assert judge.scaled_nmse(csi, got) == pytest.approx(expected, rel=1e-5)
    assert judge.scaled_nmse(5 * csi, got) == pytest.approx(expected, rel=1e-5)
    assert judge.scaled_nmse(csi, csi) == pytest.approx(0, abs=1e-10)
    assert judge.scaled_nmse(csi, np.zeros_like(csi)) == pytest.approx(1)


def test_likeness_knows_neither_phase_nor_scale(rng):
    h = complex_gaussian(rng, 16, 4)
    factors = complex_gaussian(rng, 16, 1)
    assert judge.cosine(h, h * factors) == pytest.approx(1, abs=1e-6)
    across = np.zeros((16, 4), np.complex64)
    across[:, 0] = h[:, 1].conj()
    across[:, 1] = -h[:, 0].conj()
    assert judge.cosine(h, across) == pytest.approx(0, abs=1e-6)


def test_sum_rate_is_a_share_of_that_with_perfect_csi(rng):
    h = complex_gaussian(rng, 2, 32, 8)
    assert judge.sum_rate_share(h, h, 10.0) == pytest.approx(1)
    # What a subcarrier's phase is does not matter to a precoder.
    turned = h * np.exp(1j * rng.uniform(0, 6, (2, 32, 1))).astype(np.complex64)
    assert judge.sum_rate_share(h, turned, 10.0) == pytest.approx(1, abs=1e-4)
    wrong = complex_gaussian(rng, 2, 32, 8)
    tensors = [torch.from_numpy(values)[None] for values in (h, wrong)]
    share = float(rzf_sum_rate(tensors[0], tensors[1], 10.0) / rzf_sum_rate(tensors[0], tensors[0], 10.0))
    assert judge.sum_rate_share(h, wrong, 10.0) == pytest.approx(share)
    assert share < 0.7


class Plain:
    """Sends the CSI itself."""

    def encode(self, csi, length, snr_db):
        word = csi.reshape(-1)[:length]
        return word / np.sqrt(np.mean(np.abs(word) ** 2))

    def decode(self, received, snr_db, announced_db):
        # What users coded for, whatever arrives.
        assert announced_db == 10.0
        return received.reshape(len(received), 8, 4), np.ones(len(received), bool)


def test_symbol_level_adds_noise_of_the_snr_and_nothing_else(rng):
    csi = complex_gaussian(rng, 2, 8, 4)
    errors = np.array(
        [judge.at_symbol_level(Plain(), csi, 32, 10.0, np.array([3.0, 13.0]), rng) for _ in range(400)]
    ).mean(axis=0)
    # 400 means of 32 squares: known to 4 / sqrt(12800) = 3.5 %.
    np.testing.assert_allclose(errors, [10**-0.3, 10**-1.3], rtol=0.04)

"""Precoding matrices beside brute force and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from semair.models.csi.evaluate import rzf_sum_rate
from semair.models.semantic import precoding


def channels(batch=3, subcarriers=5, users=2, antennas=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.view_as_complex(
        torch.randn((batch, subcarriers, users, antennas, 2), generator=generator)
    ) / math.sqrt(2)


def sum_rate(rows, v, noise):
    return torch.log2(1 + precoding.sinr(rows, v, noise)).sum(-1).mean(-1)


def test_zero_forcing_is_that_of_the_sum_rate_used_elsewhere():
    # There, every subcarrier has the same power; here, it is shared by all: the same for one subcarrier.
    rows, snr_db = channels(batch=10, subcarriers=1), 7.0
    noise = torch.full((10,), 10 ** (-snr_db / 10))
    found = sum_rate(rows, precoding.regularised(rows, noise), noise)
    expected = rzf_sum_rate(rows.transpose(1, 2), rows.transpose(1, 2), snr_db)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("users", [1, 2, 4])
def test_every_matrix_has_unit_power(users):
    rows, noise = channels(users=users), torch.tensor([0.01, 0.3, 2.0])
    corrections = torch.randn((3, users, 5, 4), generator=torch.Generator().manual_seed(2))
    for v in (
        precoding.regularised(rows, noise),
        precoding.iterative_wmmse(rows, noise),
        precoding.corrected(rows, noise, corrections),
    ):
        assert v.shape == (3, 5, 4, users)
        torch.testing.assert_close(v.abs().square().sum((-2, -1)).mean(-1), torch.ones(3), rtol=1e-4, atol=1e-4)


def test_without_corrections_learned_wmmse_is_zero_forcing():
    rows, noise = channels(), torch.tensor([0.01, 0.3, 2.0])
    found = precoding.corrected(rows, noise, torch.zeros(3, 2, 5, 4))
    torch.testing.assert_close(found, precoding.regularised(rows, noise), rtol=1e-4, atol=1e-5)


def test_the_push_through_form_is_the_inverse_over_antennas():
    rows, noise = channels(antennas=6, users=3), torch.tensor([0.05, 0.3, 2.0])
    told = torch.randn((3, 3, 5, 4), generator=torch.Generator().manual_seed(3))
    found = precoding.corrected(rows, noise, told)
    softplus = torch.nn.functional.softplus
    one = math.log(math.e - 1)
    for b in range(3):
        for s in range(5):
            mu = float(noise[b] * softplus(told[b, :, s, 3].mean() + one))
            inner = 3 * mu * torch.eye(6, dtype=torch.complex128)
            for k in range(3):
                h = rows[b, s, k].conj().to(torch.complex128)
                inner += float(softplus(told[b, k, s, 2] + one)) * torch.outer(h, h.conj())
            for k in range(3):
                alpha = complex(1 + told[b, k, s, 0], told[b, k, s, 1])
                v = alpha * torch.linalg.solve(inner, rows[b, s, k].conj().to(torch.complex128))
                # Up to the scale that is common to a drop.
                scale = found[b, s, :, k].to(torch.complex128) / v
                reference = (found[b, 0, 0, 0] / _brute(rows, noise, told, b, 0)[0]).to(torch.complex128)
                torch.testing.assert_close(scale, reference.expand(6), rtol=2e-3, atol=1e-4)


def _brute(rows, noise, told, b, s):
    softplus, one = torch.nn.functional.softplus, math.log(math.e - 1)
    inner = 3 * float(noise[b] * softplus(told[b, :, s, 3].mean() + one)) * torch.eye(6, dtype=torch.complex128)
    for k in range(3):
        h = rows[b, s, k].conj().to(torch.complex128)
        inner += float(softplus(told[b, k, s, 2] + one)) * torch.outer(h, h.conj())
    return complex(1 + told[b, 0, s, 0], told[b, 0, s, 1]) * torch.linalg.solve(
        inner, rows[b, s, 0].conj().to(torch.complex128)
    )


def test_wmmse_reaches_water_filling_for_one_user():
    # One user: maximum ratio on every subcarrier, and water-filling over subcarriers.
    rows, noise = channels(batch=1, subcarriers=8, users=1), torch.tensor([0.8])
    found = float(sum_rate(rows, precoding.iterative_wmmse(rows, noise, 1000), noise))
    gain = rows[0, :, 0].abs().square().sum(-1) / noise[0]
    low, high = 0.0, 100.0
    for _ in range(100):
        level = (low + high) / 2
        spent = (level - 1 / gain).clamp_min(0).mean()
        low, high = (level, high) if spent < 1 else (low, level)
    best = float(torch.log2(1 + gain * (low - 1 / gain).clamp_min(0)).mean())
    assert found == pytest.approx(best, rel=2e-3)


def test_wmmse_never_falls_below_the_zero_forcing_that_it_begins_with():
    rows = channels(batch=20, users=3)
    for noise in (torch.full((20,), 0.03), torch.full((20,), 1.0)):
        before = sum_rate(rows, precoding.regularised(rows, noise), noise)
        after = sum_rate(rows, precoding.iterative_wmmse(rows, noise), noise)
        assert bool((after > before - 1e-3).all())


@pytest.mark.parametrize("make", [precoding.regularised, precoding.iterative_wmmse])
def test_singular_and_absent_channels_are_served_without_harm(make):
    noise = torch.tensor([0.0, 0.0, 0.1])
    same = channels()[:, :, :1].expand(3, 5, 2, 4)
    assert bool(torch.isfinite(torch.view_as_real(make(same, noise))).all())
    assert not make(torch.zeros_like(same), noise).abs().any()


def test_sinr_counts_every_other_stream_as_noise():
    rows, noise = channels(batch=1, subcarriers=1), torch.tensor([0.5])
    v = precoding.regularised(rows, noise)
    power = (rows[0, 0] @ v[0, 0]).abs().square()
    expected = power[0, 0] / (power[0, 1] + 0.5)
    torch.testing.assert_close(precoding.sinr(rows, v, noise)[0, 0, 0], expected)


@pytest.mark.parametrize("users", [1, 2, 3, 4])
def test_inverses_of_nearly_singular_matrices_are_those_of_double_precision(users):
    rows = channels(batch=50, users=users)
    rows = rows[:, :, :1] + 0.03 * rows
    noise = torch.full((50,), 1e-3)
    found = precoding.regularised(rows, noise).to(torch.complex128)
    wide = rows.to(torch.complex128)
    expected = wide.mH @ torch.linalg.inv(wide @ wide.mH + users * 1e-3 * torch.eye(users, dtype=torch.complex128))
    scale = expected.abs().square().sum((-2, -1)).mean(-1).sqrt()
    error = (found - expected / scale[:, None, None, None]).abs().square().sum((1, 2, 3)).sqrt()
    # Of matrices whose norm over five subcarriers is the root of 5; single precision loses up to 1e-7 x 1e4.
    assert float(error.max()) < 0.02

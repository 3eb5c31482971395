"""The linear code: powers of the optimum, exact where it can be, and the best linear decoder."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from semair.models.csi.klt import KltCode

TAPS, BEAMS = 4, 3
SPREADS = np.sqrt(np.array([4.0, 2.0, 1.0, 0.5, 0.2, 0.1]))


def gaussian(rng, *shape):
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) * np.sqrt(0.5)


def drops(n, seed, users=2, shared=0.0):
    """CSI of six directions; users share some of the numbers in them."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(gaussian(np.random.default_rng(99), TAPS * BEAMS, 6))[0]
    common = gaussian(rng, n, 1, 6)
    numbers = np.sqrt(shared) * common + np.sqrt(1 - shared) * gaussian(rng, n, users, 6)
    return ((numbers * SPREADS) @ directions.T).reshape(n, users, TAPS, BEAMS).astype(np.complex64)


def error(code, csi, length, snr_db, seed=5):
    words = code.encode(csi, length, snr_db)
    noise = gaussian(np.random.default_rng(seed), *words.shape) * 10 ** (-snr_db / 20)
    found = code.decode((words + noise).astype(np.complex64), snr_db)
    # Words carry no scale, so CSI is recovered at unit mean power.
    truth = csi / np.sqrt(np.mean(np.abs(csi) ** 2, axis=(-2, -1), keepdims=True))
    return float(np.mean(np.sum(np.abs(found - truth) ** 2, axis=(-2, -1))) / (TAPS * BEAMS))


@pytest.fixture(scope="module")
def code():
    return KltCode(drops(4000, 1), joint=False)


@pytest.mark.parametrize(("length", "snr_db"), [(6, 0.0), (6, 10.0), (3, -10.0), (4, 20.0), (6, -8.0)])
def test_powers_minimise_the_error_of_independent_components(code, length, snr_db):
    noise, variances = 10 ** (-snr_db / 10), code.variances[:length]

    def total(powers):
        return float(np.sum(variances / (1 + powers / noise)))

    found = code.powers(length, snr_db)
    best = minimize(
        total,
        np.ones(length),
        bounds=[(0, None)] * length,
        constraints={"type": "eq", "fun": lambda powers: powers.sum() - length},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert found.sum() == pytest.approx(length)
    assert found.min() >= 0
    assert total(found) <= best.fun * (1 + 1e-6)


def test_weak_components_get_no_power_behind_strong_noise(code):
    powers = code.powers(6, -20.0)
    assert powers[0] > 0
    assert powers[-1] == 0


def test_all_components_without_noise_give_the_direction_of_the_csi(code):
    csi = drops(200, 2)
    found = code.decode(code.encode(csi, 6, 90.0), 90.0)
    inner = np.abs(np.sum(found.conj() * csi, axis=(-2, -1)))
    norms = np.linalg.norm(found, axis=(-2, -1)) * np.linalg.norm(csi, axis=(-2, -1))
    # Only the direction: words carry no scale. What remains is that six directions are those of a sample.
    assert np.min(inner / norms) > 1 - 1e-3


def test_words_have_unit_power(code):
    words = code.encode(drops(50, 3), 4, 10.0)
    np.testing.assert_allclose(np.mean(np.abs(words) ** 2, axis=-1), 1, rtol=1e-5)


def test_error_falls_with_length_and_snr(code):
    csi = drops(800, 4)
    by_length = [error(code, csi, length, 10.0) for length in (1, 2, 4, 6)]
    by_snr = [error(code, csi, 4, snr_db) for snr_db in (-10.0, 0.0, 10.0, 20.0)]
    assert by_length == sorted(by_length, reverse=True)
    assert by_snr == sorted(by_snr, reverse=True)


def test_users_who_share_what_they_send_are_decoded_better_together():
    training, csi = drops(6000, 6, shared=0.95), drops(1500, 7, shared=0.95)
    joint, alone = KltCode(training), KltCode(training, joint=False)
    # Two looks at almost the same numbers behind independent noise: half the noise.
    assert error(joint, csi, 6, 0.0) < 0.8 * error(alone, csi, 6, 0.0)


def test_independent_users_lose_nothing_by_joint_decoding():
    training, csi = drops(6000, 8), drops(1500, 9)
    joint, alone = KltCode(training), KltCode(training, joint=False)
    # 12 coefficients per number estimated from 12000 words cost about a thousandth.
    assert error(joint, csi, 6, 10.0) == pytest.approx(error(alone, csi, 6, 10.0), rel=0.02)


def test_refuses_what_it_cannot_take(code):
    with pytest.raises(ValueError, match=r"needs complex \(drop, user, tap, beam\)"):
        KltCode(np.ones((3, 2, 4), np.complex64))
    joint = KltCode(drops(100, 1))
    with pytest.raises(ValueError, match="words of 3 users; this decoder was made for 2"):
        joint.decode(np.ones((1, 3, 4), np.complex64), 10.0)

"""The access slot: its snapshots obey S = A H + W, and its noise estimate is the noise."""

from __future__ import annotations

import numpy as np
import pytest
from semair.blocks.waveforms.access import access_burst, level_antennas, noise_powers, receive_access
from semair.blocks.waveforms.frame import FrameFormat
from semair.models.uad.preambles import qpsk_preambles

FMT = FrameFormat()
GROUPS = FMT.n_groups


def noise(rng: np.random.Generator, shape: tuple[int, ...], power: float) -> np.ndarray:
    return (rng.standard_normal((*shape, 2)) * np.sqrt(power / 2)).view(complex)[..., 0]


def effective_channel(fmt: FrameFormat, gains: np.ndarray) -> np.ndarray:
    """One user's channel in the snapshots: gain per antenna times phase per group; (antennas * G,)."""
    slot = access_burst(fmt, np.ones(1, complex))[None]
    phases = receive_access(slot, fmt, 1)[0]
    return np.outer(gains, phases).ravel()


@pytest.mark.parametrize("length", [1, 3, 4, 8, 13, 28])
def test_burst_has_the_length_of_its_symbols(length):
    burst = access_burst(FMT, np.ones(length, complex))
    assert burst.dtype == np.complex64
    assert len(burst) == -(-length // 4) * FMT.symbol_samples


def test_each_preamble_symbol_of_unit_energy_is_sent_once_per_group(rng):
    preamble = qpsk_preambles(1, 28, rng)[:, 0]
    burst = access_burst(FMT, preamble).reshape(-1, FMT.symbol_samples)[:, FMT.cp_samples :]
    assert np.sum(np.abs(burst) ** 2) == pytest.approx(28 * GROUPS, rel=1e-5)
    spectrum = np.fft.fft(burst, axis=1, norm="ortho")
    silent = np.setdiff1d(np.arange(FMT.n_fft), FMT.access_subcarriers)
    assert np.abs(spectrum[:, silent]).max() < 1e-5
    # Subcarriers first, then OFDM symbols; the same symbols in every group, up to a phase.
    for bins in FMT.access_subcarriers:
        cells = spectrum[:, bins].reshape(-1)
        np.testing.assert_allclose(cells / cells[0], preamble / preamble[0], atol=1e-4)


def test_partly_filled_last_symbol_leaves_its_other_subcarriers_empty(rng):
    preamble = qpsk_preambles(1, 6, rng)[:, 0]
    second = access_burst(FMT, preamble).reshape(2, -1)[1, FMT.cp_samples :]
    cells = np.fft.fft(second, norm="ortho")[FMT.access_subcarriers]
    assert np.abs(cells[:, :2]).min() > 0.99
    assert np.abs(cells[:, 2:]).max() < 1e-5


@pytest.mark.parametrize("length", [1, 5, 8, 28])
def test_flat_channel_gives_snapshots_a_times_h_plus_w_exactly(rng, length):
    antennas, users = 3, 5
    preambles = qpsk_preambles(users, length, rng)
    gains = noise(rng, (users, antennas), 1.0)
    n = FMT.symbols_of_length(length) * FMT.symbol_samples
    disturbance = noise(rng, (antennas, n), 0.1)
    received = disturbance + sum(np.outer(gains[user], access_burst(FMT, preambles[:, user])) for user in range(users))
    channel = np.stack([effective_channel(FMT, g) for g in gains])
    # W by brute force: the unitary DFT of the disturbance over each window, which opens a quarter prefix early.
    early = FMT.cp_samples // 4
    w = np.zeros((length, antennas, GROUPS), complex)
    n_index = np.arange(FMT.n_fft)
    for row in range(length):
        symbol, within = divmod(row, FMT.group_width)
        start = symbol * FMT.symbol_samples + FMT.cp_samples - early
        window = disturbance[:, start : start + FMT.n_fft]
        for group in range(GROUPS):
            bin_ = FMT.access_subcarriers[group, within]
            w[row, :, group] = window @ np.exp(-2j * np.pi * bin_ * (n_index - early) / FMT.n_fft) / np.sqrt(FMT.n_fft)
    snapshots = receive_access(received, FMT, length)
    assert snapshots.dtype == np.complex64
    assert snapshots.shape == (length, antennas * GROUPS)
    np.testing.assert_allclose(snapshots, preambles @ channel + w.reshape(length, -1), atol=2e-5)


def test_snapshot_index_is_antenna_times_groups_plus_group(rng):
    gains = np.array([1.0, 0, 0, 5.0])
    snapshots = receive_access(np.outer(gains, access_burst(FMT, np.ones(4, complex))), FMT, 4)
    magnitude = np.abs(snapshots).reshape(4, 4, GROUPS)
    np.testing.assert_allclose(magnitude[:, 0], 1, atol=1e-5)
    np.testing.assert_allclose(magnitude[:, 1:3], 0, atol=1e-5)
    np.testing.assert_allclose(magnitude[:, 3], 5, atol=1e-4)


def test_groups_lie_where_their_subcarriers_are():
    # A tone on one subcarrier of group 5 alone must show in that group and row alone.
    group, within = 5, 2
    bin_ = FMT.access_subcarriers[group, within]
    n = np.arange(-FMT.cp_samples, FMT.n_fft)
    tone = np.exp(2j * np.pi * bin_ * n / FMT.n_fft)[None] / np.sqrt(FMT.n_fft)
    snapshots = receive_access(tone, FMT, 4)
    expected = np.zeros((4, GROUPS))
    expected[within, group] = 1
    np.testing.assert_allclose(snapshots, expected, atol=1e-5)


def test_phases_of_the_groups_are_common_to_all_users_and_keep_the_peak_low(rng):
    a, b = qpsk_preambles(2, 4, rng).T
    ratio = [receive_access(access_burst(FMT, p)[None], FMT, 4) / p[:, None] for p in (a, b)]
    np.testing.assert_allclose(ratio[0], ratio[1], atol=1e-5)
    body = access_burst(FMT, a)[FMT.cp_samples :]
    # Without phases 16 groups would add up to a pulse 16 times above the mean power of their sum.
    assert np.max(np.abs(body) ** 2) / np.mean(np.abs(body) ** 2) < 12


def test_delay_within_the_prefix_only_turns_each_subcarrier(rng):
    preamble = qpsk_preambles(1, 8, rng)[:, 0]
    burst = access_burst(FMT, preamble)
    late = np.concatenate([np.zeros(3, np.complex64), burst])[None, : len(burst)]
    reference = receive_access(burst[None], FMT, 8)
    np.testing.assert_allclose(receive_access(late, FMT, 8, fraction_samples=3.0), reference, atol=2e-5)
    np.testing.assert_allclose(np.abs(receive_access(late, FMT, 8)), np.abs(reference), atol=2e-5)


def test_zero_users_leave_noise_alone(rng):
    samples = noise(rng, (4, 7 * FMT.symbol_samples), 0.5)
    snapshots = receive_access(samples, FMT, 28)
    # 28 x 64 complex Gaussian cells: the mean power scatters by 1 / sqrt(1792) = 2.4 %; bound at five sigma.
    assert np.mean(np.abs(snapshots) ** 2) == pytest.approx(0.5, rel=0.12)


@pytest.mark.parametrize("length", [0, 29])
def test_preamble_that_does_not_fit_is_refused(length):
    with pytest.raises(ValueError, match="does not fit the access slot"):
        access_burst(FMT, np.ones(length, complex))
    with pytest.raises(ValueError, match="does not fit the access slot"):
        receive_access(np.zeros((1, 4000), np.complex64), FMT, length)


@pytest.mark.parametrize("power", [1e-4, 1.0, 250.0])
def test_noise_power_estimate(rng, power):
    n = FMT.noise_symbols * FMT.symbol_samples
    # 4 symbols x 96 cells: each estimate scatters by 1 / sqrt(384) = 5.1 %; bound at five sigma.
    estimate = noise_powers(noise(rng, (8, n), power), FMT)
    assert estimate == pytest.approx(np.full(8, power), rel=0.255)


def test_noise_power_is_the_mean_over_used_cells_and_sees_no_others(rng):
    n = np.arange(FMT.symbol_samples * FMT.noise_symbols)
    samples = noise(rng, (2, len(n)), 1.0)
    loud = samples + 100 * np.exp(2j * np.pi * 60 / 128 * n)
    assert 60 not in FMT.used_subcarriers
    # The prefix is no whole number of periods of the tone, but each window holds 60 whole ones.
    assert noise_powers(loud, FMT) == pytest.approx(noise_powers(samples, FMT), rel=1e-3)


def test_noise_estimate_of_silence_is_zero():
    assert noise_powers(np.zeros((2, 1000), np.complex64), FMT).tolist() == [0.0, 0.0]


def test_levelled_antennas_have_equal_noise_and_keep_their_signal_to_noise_ratio(rng):
    clean = noise(rng, (10, 3 * 4), 1.0)
    gains = np.array([0.5, 1.0, 3.0])
    powers = gains**2 * 0.2
    levelled, power = level_antennas((clean * np.repeat(gains, 4)).astype(np.complex64), powers)
    assert power == pytest.approx(powers.mean())
    np.testing.assert_allclose(levelled, clean * np.sqrt(power / 0.2), rtol=1e-5)


def test_dead_antenna_is_left_alone(rng):
    snapshots = noise(rng, (10, 8), 1.0)
    snapshots[:, 4:] = 0
    levelled, power = level_antennas(snapshots, np.array([0.2, 0.0]))
    assert power == pytest.approx(0.1)
    np.testing.assert_allclose(levelled[:, :4], snapshots[:, :4] * np.sqrt(0.5), rtol=1e-5)
    assert not levelled[:, 4:].any()


def test_silence_has_a_positive_noise_power():
    assert level_antennas(np.zeros((10, 8), np.complex64), np.zeros(2))[1] > 0

"""Training draws: the same statistics as the numpy channel models and simulator, on torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from semair.blocks.waveforms.frame import FrameFormat
from semair.flowgraphs.scenario import load_scenario
from semair.models.channels import ChannelConfig, draw_paths, frequency_response
from semair.models.uad.draws import ArrayChannel, LabChannel, Mixture, RayleighChannel, clustered_gains, draw
from semair.models.uad.simulate import draw_batch


def gen(seed=1):
    return torch.Generator().manual_seed(seed)


def one_user(channel=None, **fields):
    """A mixture whose only user is active in nearly every slot, all symbols 1 after removing the preamble."""
    channels = (channel,) if channel is not None else (RayleighChannel(),)
    defaults = {"n_users": 1, "max_length": 28, "lengths": (28,), "activity": 0.999, "snr_db": 120.0}
    return Mixture(channels=channels, **{**defaults, **fields})


def responses(channel, n, length=28, seed=1, **fields):
    """Effective gains of the user over symbols; complex128 (slot, symbol, snapshot)."""
    mixture = one_user(channel, **fields)
    pool = mixture.fixed_pool()
    slots = draw(mixture, pool, n, gen(seed), length=length)
    h = slots.y / pool[:length]
    return h[slots.active[:, 0]].numpy().astype(complex)


def test_a_draw_is_decided_by_its_generator():
    mixture = Mixture(n_users=16, max_length=8, lengths=(4, 6, 8), channels=(RayleighChannel(), LabChannel()))
    pool = mixture.fixed_pool()
    one, two, other = (draw(mixture, pool, 5, gen(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.y, two.y)
    assert torch.equal(one.active, two.active)
    assert one.y.shape != other.y.shape or not torch.equal(one.y, other.y)


def test_shapes_and_types():
    mixture = Mixture(n_users=16, max_length=8, lengths=(5,), snapshots=(12,))
    slots = draw(mixture, mixture.fixed_pool(), 6, gen())
    assert (slots.y.shape, slots.y.dtype) == ((6, 5, 12), torch.complex64)
    assert (slots.active.shape, slots.active.dtype) == ((6, 16), torch.bool)
    assert slots.noise_power is not None
    assert (slots.noise_power.shape, slots.noise_power.dtype) == ((6,), torch.float32)
    assert slots.preambles.shape == (8, 16)
    assert slots.channel == "rayleigh"


def test_the_fixed_pool_is_that_of_a_scenario_with_the_same_seed():
    scenario = load_scenario("paper", ["users.preamble_seed=5"])
    np.testing.assert_array_equal(Mixture(pool_seed=5).fixed_pool().numpy(), scenario.preambles())


def test_signal_is_preambles_times_gains_of_the_active_users_alone():
    # Without noise, what is received lies in the span of the active users' preambles.
    mixture = Mixture(n_users=12, max_length=10, lengths=(10,), activity=0.3, snr_db=120.0, snapshots=(5,))
    pool = mixture.fixed_pool()
    slots = draw(mixture, pool, 20, gen())
    for y, active in zip(slots.y, slots.active, strict=True):
        sent = pool[:, active].numpy()
        rest = y.numpy() - sent @ np.linalg.lstsq(sent, y.numpy(), rcond=None)[0] if active.any() else y.numpy()
        assert np.abs(rest).max() < 1e-4


def test_moments_equal_those_of_the_simulator():
    mixture = Mixture(lengths=(12,), snapshots=(16,), snr_db=3.0, power_spread_db=6.0)
    pool = mixture.fixed_pool()
    slots = draw(mixture, pool, 3000, gen())
    reference = draw_batch(np.random.default_rng(1), pool.numpy(), 3000, 12, 16, 0.1, 3.0, power_spread_db=6.0)
    assert slots.noise_power is not None
    np.testing.assert_allclose(slots.noise_power.numpy(), reference.noise_power, rtol=1e-5)
    # Received power of a slot: 12.8 +- 3.4 users, each of power 1 +- 0.5, and noise: below 5 per slot, so the mean over
    # 3000 is good to 0.09, the difference of two to 0.13.
    power, expected = (np.mean(np.abs(y.astype(complex)) ** 2) for y in (slots.y.numpy(), reference.y))
    assert power == pytest.approx(expected, abs=4 * 0.13)
    # 384 000 decisions: standard deviation sqrt(0.09 / 384000) = 4.9e-4.
    assert float(slots.active.float().mean()) == pytest.approx(0.1, abs=5 * 4.9e-4)
    # Covariance of the symbols given the pool: 0.1 S S^H + noise. An entry of a slot deviates by the power 19.2 over
    # sqrt(16) snapshots, 4.8, and by the users' number and powers, 4: together 6.3, over 3000 slots 0.12.
    y = slots.y.numpy().astype(complex)
    covariance = np.mean(y @ y.conj().transpose(0, 2, 1), axis=0) / 16
    s = pool[:12].numpy().astype(complex)
    np.testing.assert_allclose(covariance, 0.1 * s @ s.conj().T + 12.8 / 10**0.3 * np.eye(12), atol=5 * 0.12)


def test_noise_power_follows_the_ensemble_and_never_the_draw():
    mixture = Mixture(n_users=32, lengths=(8,), snr_db=(0.0, 20.0))
    slots = draw(mixture, mixture.fixed_pool(), 2000, gen())
    assert slots.noise_power is not None
    np.testing.assert_allclose(slots.noise_power.numpy(), 3.2 / 10 ** (slots.snr_db.numpy() / 10), rtol=1e-4)
    # Uniform over 20 dB: mean 10 +- 5.8/sqrt(2000) = 0.13.
    assert float(slots.snr_db.mean()) == pytest.approx(10, abs=5 * 0.13)
    count = slots.active.sum(1).numpy()
    # Independent: correlation over 2000 slots below 5/sqrt(2000).
    assert abs(np.corrcoef(count, slots.noise_power.numpy())[0, 1]) < 5 / np.sqrt(2000)


def test_noise_told_may_be_wrong_or_missing():
    mixture = Mixture(n_users=8, lengths=(8,), noise_error_db=2.0, snr_db=10.0)
    slots = draw(mixture, mixture.fixed_pool(), 4000, gen())
    assert slots.noise_power is not None
    error_db = 10 * np.log10(slots.noise_power.numpy() / 0.08)
    # Standard deviation of an estimated deviation: 2/sqrt(8000) = 0.022; of the mean: 0.032.
    assert error_db.std() == pytest.approx(2, abs=5 * 0.022)
    assert error_db.mean() == pytest.approx(0, abs=5 * 0.032)
    silent = Mixture(n_users=8, lengths=(8,), noise_unknown=1.0)
    assert draw(silent, silent.fixed_pool(), 3, gen()).noise_power is None
    half = Mixture(n_users=8, lengths=(8,), noise_unknown=0.5)
    generator = gen()
    told = [draw(half, half.fixed_pool(), 1, generator).noise_power is not None for _ in range(200)]
    # Binomial: 100 +- 7.1.
    assert abs(sum(told) - 100) < 5 * 7.1


def test_batches_vary_in_length_snapshots_activity_and_channel():
    mixture = Mixture(
        n_users=8,
        max_length=6,
        lengths=(2, 4, 6),
        length_weights=(1, 0, 3),
        snapshots=(4, 8),
        activity=(0.1, 0.3),
        channels=(RayleighChannel(weight=3), LabChannel(weight=1)),
    )
    generator = gen()
    drawn = [draw(mixture, mixture.fixed_pool(), 1, generator) for _ in range(400)]
    lengths = np.array([slots.y.shape[1] for slots in drawn])
    assert set(lengths) == {2, 6}
    # Binomial with 400 draws: 300 +- 8.7, 200 +- 10 of the rayleigh ones.
    assert abs((lengths == 6).sum() - 300) < 5 * 8.7
    rayleigh = [slots for slots in drawn if slots.channel == "rayleigh"]
    assert abs(len(rayleigh) - 300) < 5 * 8.7
    assert {slots.y.shape[2] for slots in rayleigh} == {4, 8}
    assert {slots.y.shape[2] for slots in drawn if slots.channel == "lab"} == {64}
    activity = np.array([slots.activity for slots in drawn])
    assert 0.1 <= activity.min() < 0.12 < 0.28 < activity.max() <= 0.3


def test_fresh_pools_are_balanced_qpsk_and_used():
    mixture = Mixture(n_users=6, max_length=8, lengths=(8,), pool="fresh", snr_db=120.0, activity=0.4, snapshots=(3,))
    slots = draw(mixture, None, 400, gen())
    assert slots.preambles.shape == (400, 8, 6)
    points, counts = np.unique(slots.preambles.numpy(), return_counts=True)
    np.testing.assert_allclose(np.sort(np.angle(points)) / np.pi, [-0.75, -0.25, 0.25, 0.75], atol=1e-6)
    # 19 200 symbols in 4 cells: 4800 +- 60.
    assert np.abs(counts - 4800).max() < 5 * 60
    at = int(slots.active.sum(1).argmax())
    sent = slots.preambles[at][:, slots.active[at]].numpy()
    y = slots.y[at].numpy()
    assert np.abs(y - sent @ np.linalg.lstsq(sent, y, rcond=None)[0]).max() < 1e-4


def test_power_spread_has_unit_mean_and_its_width():
    slots = draw(one_user(snapshots=(256,), power_spread_db=6.0, lengths=(1,)), one_user().fixed_pool(), 3000, gen())
    power_db = 10 * np.log10(slots.y[slots.active[:, 0]].abs().square().mean((1, 2)).numpy())
    # The mean over 256 snapshots scatters by 10 log10(1 + 1/16) = 0.27 dB around the user's power.
    half = 3 * np.log(10) / 10
    middle_db = 10 * np.log10(half / np.sinh(half))
    assert power_db.min() == pytest.approx(middle_db - 3, abs=4 * 0.27)
    assert power_db.max() == pytest.approx(middle_db + 3, abs=4 * 0.27)
    # Linear mean 1, standard deviation 0.4 over 3000 users: 0.0073.
    assert np.mean(10 ** (power_db / 10)) == pytest.approx(1, abs=5 * 0.0073)


def test_rayleigh_is_independent_over_snapshots_and_constant_over_symbols():
    h = responses(RayleighChannel(), 4000, length=3, snapshots=(4,))
    np.testing.assert_allclose(h[:, 0], h[:, 2], atol=1e-4)
    # Entries of a covariance over 4000 draws deviate by 0.016.
    np.testing.assert_allclose(h[:, 0].T @ h[:, 0].conj() / len(h), np.eye(4), atol=5 * 0.016)


def correlations(h):
    """Mean correlation of neighbours along columns and rows of an 8x8 array, at distances 1, 2 and 4."""
    grid = h.reshape(-1, 8, 8)
    return np.array(
        [np.mean(grid[:, :, d:] * grid[:, :, :-d].conj()) for d in (1, 2, 4)]
        + [np.mean(grid[:, d:] * grid[:, :-d].conj()) for d in (1, 2, 4)]
    )


@pytest.mark.parametrize(
    "statistics",
    [
        ChannelConfig(kind="clustered", array_shape=(8, 8)),
        ChannelConfig(kind="clustered", array_shape=(8, 8), azimuth_deg=20, angle_spread_deg=8, n_clusters=6),
    ],
    ids=["sector", "one-direction"],
)
def test_array_channel_has_the_statistics_of_the_channel_model(statistics):
    rng = np.random.default_rng(1)
    reference = np.array([draw_paths(statistics, 64, rng).static_gains.sum(0) for _ in range(3000)])
    drawn = clustered_gains(statistics, 6000, gen()).numpy().astype(complex)
    for h in (reference, drawn):
        # Power of an antenna is nearly exponential, averages over the array correlated: one slot's mean has a standard
        # deviation below 1, that over 3000 below 0.018.
        assert np.mean(np.abs(h) ** 2) == pytest.approx(1, abs=5 * 0.018)
    # A mean of products of two unit gains: deviation below 1/sqrt(3000) = 0.018, with the other's 0.022.
    np.testing.assert_allclose(correlations(drawn), correlations(reference), atol=5 * 0.022)
    # Eigenvalues of the spatial covariance. The power of a link along one of them is about exponential, with a few
    # strong clusters up to 1.3 times more spread: the relative deviation is 1.3/sqrt(2000) for the two together.
    spectra = [np.linalg.eigvalsh(h.T @ h.conj() / len(h))[::-1] / 64 for h in (reference, drawn)]
    np.testing.assert_allclose(spectra[1][:6], spectra[0][:6], rtol=5 * 1.3 / np.sqrt(2000))
    # Kurtosis of the gains tells how far from Gaussian a few strong clusters leave them. A fourth moment of 64
    # correlated antennas over 3000 links: deviation below 5/sqrt(3000) = 0.09.
    fourth = [np.mean(np.abs(h) ** 4) for h in (reference, drawn)]
    assert fourth[1] == pytest.approx(fourth[0], abs=5 * 0.11)


def test_array_channel_sees_every_user_from_its_own_direction():
    mixture = Mixture(n_users=2, max_length=4, lengths=(4,), activity=0.999, snr_db=120.0, channels=(ArrayChannel(),))
    pool = mixture.fixed_pool()
    slots = draw(mixture, pool, 1500, gen())
    both = slots.active.all(1)
    h = np.linalg.lstsq(pool.numpy(), slots.y[both].numpy().transpose(1, 0, 2).reshape(4, -1), rcond=None)[0]
    h = h.reshape(2, -1, 64)
    # Independent users: the normalised product has mean 0 and a deviation below 1/sqrt(1500).
    product = np.mean(np.sum(h[0] * h[1].conj(), -1) / (np.linalg.norm(h[0], axis=-1) * np.linalg.norm(h[1], axis=-1)))
    assert abs(product) < 5 / np.sqrt(1500)


def test_lab_groups_are_those_of_the_lab_scenario():
    scenario = load_scenario("lab")
    fmt: FrameFormat = scenario.frame
    signed = (fmt.access_subcarriers + fmt.n_fft // 2) % fmt.n_fft - fmt.n_fft // 2
    lab = LabChannel()
    np.testing.assert_array_equal(signed[:, 0], lab.group_subcarriers)
    assert signed.shape[1] == lab.group_width
    assert lab.subcarrier_spacing_hz == pytest.approx(fmt.subcarrier_spacing_hz)
    assert lab.symbol_s == pytest.approx(fmt.symbol_samples / fmt.sample_rate_hz)
    assert lab.delay_spread_s == scenario.channel.delay_spread_s
    assert lab.doppler_hz == scenario.channel.doppler_hz
    assert lab.n_antennas == scenario.radio.n_antennas


def test_lab_channel_correlates_over_frequency_as_the_channel_model():
    lab = LabChannel(doppler_hz=0)
    width = lab.group_width
    h = responses(lab, 4000, length=width)  # the subcarriers of each group, one OFDM symbol
    assert h.shape[1:] == (width, 64)
    at = h.reshape(-1, width, 4, 16).transpose(0, 2, 3, 1).reshape(-1, 4, 16 * width)  # (slot, antenna, subcarrier)
    freqs_hz = (np.array(lab.group_subcarriers)[:, None] + np.arange(width)).ravel() * lab.subcarrier_spacing_hz
    config = ChannelConfig(kind="rayleigh", delay_spread_s=0.5e-6)
    rng = np.random.default_rng(2)
    reference = np.array([frequency_response(draw_paths(config, 4, rng), freqs_hz) for _ in range(3000)])
    covariances = [np.einsum("saf,sag->fg", x, x.conj()) / (4 * len(x)) for x in (at, reference)]
    # Four antennas of 3000 and 4000 draws: an entry deviates by 1/sqrt(12000) = 0.009, the difference by 0.012.
    np.testing.assert_allclose(covariances[0], covariances[1], atol=5 * 0.012)
    # Closed form of an exponential profile (its cut tail is 5e-5 of the power).
    apart_hz = freqs_hz[:, None] - freqs_hz
    np.testing.assert_allclose(covariances[0], 1 / (1 + 2j * np.pi * apart_hz * 0.5e-6), atol=5 * 0.009)
    antennas = np.einsum("saf,sbf->ab", at, at.conj()) / (16 * width * len(at))
    # Averages over the band have about ten independent values.
    np.testing.assert_allclose(antennas, np.eye(4), atol=5 / np.sqrt(4000 * 10))


def test_lab_offset_turns_the_phase_from_symbol_to_symbol():
    lab = LabChannel(n_antennas=1, delay_spread_s=0.0, doppler_hz=0.0, cfo_hz=200.0)
    h = responses(lab, 3000)
    width = lab.group_width
    turns = np.angle(h[:, width::width] * h[:, :-width:width].conj())  # (slot, symbol, group)
    # The same in all groups and between all symbols, constant within an OFDM symbol.
    np.testing.assert_allclose(turns, turns[:, :1, :1] * np.ones_like(turns), atol=2e-3)
    np.testing.assert_allclose(h[:, 0], h[:, width - 1], atol=1e-4)
    step = 2 * np.pi * 200 * lab.symbol_s
    # Standard deviation of an estimated deviation: 1/sqrt(6000) of it.
    assert turns[:, 0, 0].std() == pytest.approx(step, rel=5 / np.sqrt(6000))


def test_lab_timing_turns_the_phase_over_subcarriers():
    lab = LabChannel(n_antennas=1, delay_spread_s=0.0, doppler_hz=0.0, timing_s=0.5e-6)
    h = responses(lab, 3000, length=4)
    delay_s = -np.angle(h[:, 1] * h[:, 0].conj()) / (2 * np.pi * lab.subcarrier_spacing_hz)
    np.testing.assert_allclose(delay_s, delay_s[:, :1] * np.ones_like(delay_s), atol=1e-8)
    between = -np.angle(h[:, 0, 1] * h[:, 0, 0].conj()) / (2 * np.pi * 6 * lab.subcarrier_spacing_hz)
    np.testing.assert_allclose(between, delay_s[:, 0], atol=1e-8)
    assert np.abs(delay_s).max() <= 0.5e-6 + 1e-8
    # Uniform over 1 us: standard deviation 0.289 us, of its estimate below 1/sqrt(6000) of that.
    assert delay_s[:, 0].std() == pytest.approx(1e-6 / np.sqrt(12), rel=5 / np.sqrt(6000))


def test_lab_phase_noise_is_a_random_walk_of_its_linewidth():
    lab = LabChannel(n_antennas=1, delay_spread_s=0.0, doppler_hz=0.0, phase_noise_linewidth_hz=20.0)
    h = responses(lab, 3000)[:, :: lab.group_width, 0]
    turns = np.angle(h[:, 1:] * h[:, :-1].conj())
    variance = 2 * np.pi * 20 * lab.symbol_s
    assert turns.var() == pytest.approx(variance, rel=5 * np.sqrt(2 / turns.size))
    # Steps are independent: their correlation over 3000 slots deviates by 1/sqrt(3000).
    assert abs(np.corrcoef(turns[:, 0], turns[:, 1])[0, 1]) < 5 / np.sqrt(3000)


def test_lab_ripple_and_error_floor():
    quiet = LabChannel(delay_spread_s=0.0, doppler_hz=0.0)
    rippled = responses(quiet.model_copy(update={"gain_ripple_db": 1.0}), 500, length=1)[:, 0].reshape(-1, 4, 16)
    # A flat channel has one gain per antenna: its spread over groups is the ripple. 500*4*16 values.
    spread_db = (20 * np.log10(np.abs(rippled))).std(axis=2, ddof=1)
    assert np.sqrt(np.mean(spread_db**2)) == pytest.approx(1, rel=5 / np.sqrt(2 * 30000))
    floored = responses(quiet.model_copy(update={"error_floor_db": -20.0}), 500, length=4)
    error = floored - floored.mean(1, keepdims=True)
    # One user of power 1; three of four degrees of freedom are left behind the mean. 500*192 values.
    assert np.mean(np.abs(error) ** 2) / 0.75 == pytest.approx(0.01, rel=5 / np.sqrt(96000))


def test_lab_error_floor_is_not_told_as_noise():
    mixture = one_user(LabChannel(error_floor_db=-3.0), snr_db=30.0)
    slots = draw(mixture, mixture.fixed_pool(), 2, gen())
    assert slots.noise_power is not None
    np.testing.assert_allclose(slots.noise_power.numpy(), 0.999e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"lengths": (8, 30)}, "each must be 1 to max_length=28"),
        ({"lengths": (8, 9), "length_weights": (1.0,)}, "1 values for 2 lengths"),
        ({"activity": (0.3, 0.1)}, "lowest and highest"),
        ({"activity": 0.0}, "between 0 and 1"),
        ({"snr_db": (20.0, 0.0)}, "lowest and highest"),
        ({"power_spread_db": -1.0}, "within 0 to 60"),
        ({"snapshots": (0,)}, "at least 1"),
        ({"channels": ()}, "at least 1 item"),
        ({"channels": ({"kind": "fibre"},)}, "fibre"),
        ({"channels": ({"kind": "array", "statistics": {"kind": "rayleigh"}},)}, "needs kind='clustered'"),
    ],
)
def test_a_wrong_mixture_is_refused(fields, reason):
    with pytest.raises(ValidationError, match=reason):
        Mixture.model_validate(fields)


def test_a_wrong_pool_or_length_is_refused():
    mixture = Mixture(n_users=4, max_length=8, lengths=(8,))
    with pytest.raises(ValueError, match=r"pool has shape \(28, 128\)"):
        draw(mixture, Mixture().fixed_pool(), 1, gen())
    with pytest.raises(ValueError, match="length=9"):
        draw(mixture, mixture.fixed_pool(), 1, gen(), length=9)


def test_a_slot_without_active_users_is_noise():
    mixture = Mixture(n_users=2, max_length=4, lengths=(4,), activity=0.001, snr_db=0.0, channels=(LabChannel(),))
    slots = draw(mixture, mixture.fixed_pool(), 3, gen())
    assert not slots.active.any()
    # 768 values of noise of power 0.002.
    assert float(slots.y.abs().square().mean()) == pytest.approx(0.002, rel=5 / np.sqrt(768))

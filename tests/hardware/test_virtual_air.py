"""The air between virtual radios, against closed forms and brute force."""

from __future__ import annotations

import threading
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from semair.hardware.virtual.air import VirtualAir
from semair.hardware.virtual.clock import RealTimeClock, SteppedClock
from semair.models.channels import ChannelConfig

RATE_HZ = 1e6


def pair(ppm=(0.0, 0.0), chains=(1, 1), **options):
    """An air with two radios at one frequency. Returns air, first, second."""
    options = {"noise_power": 0.0, "random_phase": False} | options
    air = VirtualAir(SteppedClock(), **options)
    a = air.add_radio("a", chains[0], chains[0], rate_hz=RATE_HZ, ppm=ppm[0])
    b = air.add_radio("b", chains[1], chains[1], rate_hz=RATE_HZ, ppm=ppm[1])
    for radio in (a, b):
        air.tune(radio.tx, 1e9, 0)
        air.tune(radio.rx, 1e9, 0)
    return air, a, b


def white(rng, *shape):
    return (rng.standard_normal((*shape, 2)) @ [1, 1j] / np.sqrt(2)).astype(np.complex64)


def test_a_sample_depends_on_its_index_alone(rng):
    air, a, b = pair(ppm=(1.0, -2.0), noise_power=0.01, random_phase=True, seed=5)
    air.draw_channel(ChannelConfig(kind="rayleigh", delay_spread_s=1e-6))
    air.set_bandwidth(b.rx[0], 0.6e6, 0)
    air.transmit(a.tx[0], 50, white(rng, 100_000))
    air.set_gain(a.tx[0], -10.0, 40_001)
    air.set_gain(b.rx[0], 3.0, 60_007)
    for drift in (False, True):
        air.sampling_drift = drift
        whole = air.receive(b.rx[0], 0, 100_000)
        for size in (999, 4096, 65_536):
            parts = [air.receive(b.rx[0], k, min(size, 100_000 - k)) for k in range(0, 100_000, size)]
            np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_equal_seeds_give_equal_samples_and_others_do_not(rng):
    x = white(rng, 3000)
    seen = []
    for seed in (1, 1, 2):
        air, a, b = pair(seed=seed, noise_power=0.1, random_phase=True)
        air.transmit(a.tx[0], 0, x)
        seen.append(air.receive(b.rx[0], 0, 3000))
    np.testing.assert_array_equal(seen[0], seen[1])
    assert np.abs(seen[0] - seen[2]).min() > 0


def test_a_tone_arrives_at_its_offset_with_its_gain_and_phase():
    air, a, b = pair(ppm=(2.0, -1.0))
    air.tune(a.tx, 1e9 + 30e3, 0, phase_rad=0.5)
    air.tune(b.rx, 1e9, 0, phase_rad=0.2)
    air.set_gain(a.tx[0], -7.0, 0)
    air.set_gain(b.rx[0], 2.0, 0)
    k = 10**9 + np.arange(5000)
    air.transmit(a.tx[0], int(k[0]), 0.5 * np.exp(2j * np.pi * 0.1 * k))
    received = air.receive(b.rx[0], int(k[0]), 5000)
    offset_hz = (1e9 + 30e3) * (1 + 2e-6) - 1e9 * (1 - 1e-6)
    # In fractions, so that the phase at so high an index is exact.
    step = Fraction(offset_hz) / int(RATE_HZ)
    cycles = np.array([float(step * int(index) % 1) for index in k])
    expected = 0.5 * 10 ** (-5 / 20) * np.exp(2j * np.pi * (0.1 * k % 1 + cycles) + 0.3j)
    np.testing.assert_allclose(received, expected, atol=2e-6)


def test_every_path_is_its_own(rng):
    air, a, b = pair(chains=(2, 2))
    h = white(rng, 4, 4, 5)
    air.set_channel(h)
    x = white(rng, 4, 1000)
    for chain, samples in zip(air.tx_chains, x, strict=True):
        air.transmit(chain, 0, samples)
    for r, chain in enumerate(air.rx_chains):
        expected = sum(np.convolve(x[t], h[r, t])[:1000] for t in range(4))
        np.testing.assert_allclose(air.receive(chain, 0, 1000), expected, atol=1e-4)
    air.set_path(a.rx[0], b.tx[1], 0.0)
    expected = sum(np.convolve(x[t], h[0, t])[:1000] for t in range(3))
    np.testing.assert_allclose(air.receive(a.rx[0], 0, 1000), expected, atol=1e-4)


def test_a_channel_of_other_shape_is_refused():
    air, _, _ = pair()
    with pytest.raises(ValueError, match="2 receive and 2 transmit"):
        air.set_channel(np.ones((3, 2)))
    with pytest.raises(ValueError, match="name of its own"):
        air.add_radio("a", 1, 1)


def test_noise_is_white_normal_and_independent():
    air, a, b = pair(noise_power=4.0, seed=3)
    n = 1_000_000
    x, y = air.receive(a.rx[0], -7, n), air.receive(b.rx[0], -7, n)
    # Means of |x|^2 / 4 have a standard deviation of 1e-3, correlations of n samples one of 1e-3; five of them.
    assert abs(np.mean(np.abs(x) ** 2) / 4 - 1) < 5e-3
    for u, v in ((x, y), (x[1:], x[:-1]), (x[8192:], x[:-8192]), (x, x.conj())):
        assert abs(np.vdot(u, v)) / 4 / n < 5e-3
    for part in (x.real, x.imag, y.real):
        assert stats.kstest(part / np.sqrt(2), "norm").pvalue > 1e-4
        # 63 are expected beyond 4 standard deviations; the bounds have probability below 1e-6.
        assert 25 < np.count_nonzero(np.abs(part) > 4 * np.sqrt(2)) < 105
    air.set_gain(a.rx[0], 6.0, 0)
    np.testing.assert_allclose(air.receive(a.rx[0], 0, 100), x[7:107] * 10 ** (6 / 20), rtol=1e-5)


def test_only_what_lies_in_the_band_and_has_the_rate_is_heard():
    air, a, b = pair()
    air.transmit(a.tx[0], 0, np.ones(100))
    for offset_hz, heard in ((0.499e6, True), (-0.499e6, True), (0.5e6, False), (-3e6, False)):
        air.tune(b.rx, 1e9 + offset_hz, 0)
        assert (np.abs(air.receive(b.rx[0], 0, 100)).max() > 0.9) == heard
    air.tune(b.rx, 1e9, 0)
    air.set_rate(b.rx, 2e6)
    assert not air.receive(b.rx[0], 0, 100).any()


def test_an_analogue_filter_passes_its_band():
    air, a, b = pair()
    air.set_bandwidth(b.rx[0], 0.4e6, 0)
    k = np.arange(4000)
    for cycles, low_db, high_db in ((0.1, -0.5, 0.5), (0.35, -200, -40), (-0.35, -200, -40)):
        air.transmit(a.tx[0], 0, np.exp(2j * np.pi * cycles * k))
        power = np.mean(np.abs(air.receive(b.rx[0], 1000, 2000)) ** 2)
        assert low_db < 10 * np.log10(power + 1e-30) < high_db
    air.set_bandwidth(b.rx[0], 10e6, 0)
    air.set_bandwidth(a.tx[0], 0.4e6, 0)
    assert np.mean(np.abs(air.receive(b.rx[0], 1000, 2000)) ** 2) < 1e-4


def test_changes_take_effect_at_their_index():
    air, a, b = pair()
    air.transmit(a.tx[0], 0, np.ones(1000))
    air.set_gain(a.tx[0], -6.0, 300)
    air.tune(b.rx, 1e9 + 600e3, 700)
    received = np.abs(air.receive(b.rx[0], 0, 1000))
    np.testing.assert_allclose(received, np.repeat([1, 10 ** (-6 / 20), 0], [300, 400, 300]), rtol=1e-5)


def test_each_tuning_has_a_phase_of_its_own_that_chains_share():
    air, a, b = pair(random_phase=True, chains=(1, 2))
    air.transmit(a.tx[0], 0, np.ones(10))
    phases = []
    for _ in range(5):
        air.tune(b.rx, 1e9, 0)
        first, second = (air.receive(chain, 0, 10) for chain in b.rx)
        np.testing.assert_array_equal(first, second)
        phases.append(np.angle(first[0]))
    assert len(np.unique(np.round(phases, 3))) == 5


def test_a_reference_that_drifts_keeps_the_phase():
    air, a, b = pair()
    air.transmit(a.tx[0], 0, np.ones(20_000))
    assert air.clock.reach(0.01, drives=True)
    air.set_ppm(b, 5.0)
    received = air.receive(b.rx[0], 0, 20_000)
    steps = np.angle(received[1:] * received[:-1].conj())
    np.testing.assert_allclose(steps[:10_000], 0, atol=1e-6)
    # 5 ppm of 1 GHz at 1 MS/s, and no jump at the border either.
    np.testing.assert_allclose(steps[10_000:], -2 * np.pi * 5e-3, atol=1e-4)


def test_a_sample_clock_that_is_off_stretches_what_is_heard():
    air, a, b = pair(ppm=(40.0, -10.0), sampling_drift=True)
    for radio in (a, b):
        # Equal true carriers, so that the sample clocks alone differ.
        air.tune(radio.tx, 1e9 / (1 + 1e-6 * radio.ppm), 0)
        air.tune(radio.rx, 1e9 / (1 + 1e-6 * radio.ppm), 0)
    n = 200_000
    air.transmit(a.tx[0], 0, np.exp(2j * np.pi * 0.11 * np.arange(n + 100)))
    received = air.receive(b.rx[0], 1000, n - 2000)
    k = np.arange(1000, n - 1000)
    expected = np.exp(2j * np.pi * 0.11 * k * (1 + 40e-6) / (1 - 10e-6))
    # The delay is held over 512 samples, which at 50 ppm is a phase of 0.009 rad at the ends.
    assert np.abs(received - expected).max() < 0.012
    assert air.true_rate_hz(b.rx[0]) == pytest.approx(RATE_HZ * (1 - 10e-6))


@given(
    pieces=st.lists(st.tuples(st.integers(0, 3_000_000), st.integers(1, 400_000)), min_size=1, max_size=8),
    at=st.integers(0, 3_000_000),
)
def test_the_ring_holds_what_was_laid_over_it_last(pieces, at):
    air, a, b = pair(history_s=0.5)
    model = np.zeros(4_000_000, dtype=np.complex64)
    first = end = None
    size = 1 << 20
    for number, (start, n) in enumerate(pieces):
        samples = np.full(n, number + 1, dtype=np.complex64)
        air.transmit(a.tx[0], start, samples)
        first = start if first is None else first
        model[max(start, first) : start + n] = number + 1
        end = max(end or 0, start + n)
        first = max(first, end - size)
    model[:first] = 0
    received = air.receive(b.rx[0], at, 50_000)
    np.testing.assert_array_equal(received, model[at : at + 50_000])


def test_a_background_fills_what_was_not_handed_over():
    air, a, b = pair()
    air.set_background(a.tx[0], lambda start, n: np.arange(start, start + n).astype(np.complex64), 100)
    air.set_background(a.tx[0], None, 500)
    air.transmit(a.tx[0], 200, np.full(50, -1.0))
    expected = np.concatenate([np.arange(0, 200), np.full(50, -1), np.arange(250, 500), np.zeros(100)])
    np.testing.assert_array_equal(air.receive(b.rx[0], 0, 600)[100:], expected[100:])
    np.testing.assert_array_equal(air.sent(a.tx[0], 190, 20), expected[190:210])


def test_a_drawn_channel_has_its_power_and_is_the_same_at_every_rate():
    air, a, b = pair(chains=(1, 4), path_gain_db=-20.0)
    powers = []
    for air.seed in range(100):
        air.draw_channel(ChannelConfig(kind="rayleigh", delay_spread_s=1e-6))
        powers += [np.sum(np.abs(air.path(rx, a.tx[0])) ** 2) for rx in (*a.rx, *b.rx)]
    # 500 powers that spread no more than exponential ones do: the standard deviation of their mean is below 4.5 %.
    assert abs(np.mean(powers) / 0.01 - 1) < 0.2
    slow = air.path(b.rx[2], a.tx[0])
    air.set_rate(b.rx, 4 * RATE_HZ)
    fast = air.path(b.rx[2], a.tx[0])
    # Equal but for a common delay of the tails, and where the interpolation ends: within 0.3 of the slower rate.
    cycles = np.linspace(-0.3, 0.3, 50)
    responses = [
        np.exp(-2j * np.pi * np.outer(f, np.arange(h.size) - 8)) @ h for f, h in ((cycles, slow), (cycles / 4, fast))
    ]
    assert np.abs(responses[0] - responses[1]).max() < 0.03 * np.abs(responses[0]).max()
    air.set_path(b.rx[2], a.tx[0], 0.5)
    np.testing.assert_array_equal(air.path(b.rx[2], a.tx[0]), [0.5])
    air.draw_channel(None)
    np.testing.assert_allclose(air.path(b.rx[1], a.tx[0]), [0.1], rtol=1e-6)


def test_time_passes_as_the_master_takes_samples():
    clock = SteppedClock(master="a")
    assert not clock.reach(1.0, "b", drives=True, timeout_s=0.01)
    assert not clock.reach(1.0, "a", drives=False, timeout_s=0.01)
    waited = []
    waiting = threading.Thread(target=lambda: waited.append(clock.reach(1.0, "b", timeout_s=30)))
    waiting.start()
    assert clock.reach(1.5, "a", drives=True)
    waiting.join()
    assert waited == [True]
    assert clock.now_s() == 1.5


def test_the_machines_clock_passes_by_itself():
    clock = RealTimeClock()
    before = clock.now_s()
    assert clock.reach(before + 0.005, timeout_s=5)
    assert clock.now_s() >= before + 0.005
    assert not clock.reach(clock.now_s() + 1000, timeout_s=0.01)

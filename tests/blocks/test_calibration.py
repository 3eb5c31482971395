"""Errors of receive chains: planted ones are found, corrected ones are gone, and streams may be cut anywhere."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from semair.blocks.waveforms.calibration import (
    ChainError,
    Corrector,
    Sounding,
    chain_errors,
    correct,
    find_sounding,
    image_of_imbalance,
    imbalance_of_image,
    listen,
    path_gains,
    reciprocity_factors,
)
from semair.blocks.waveforms.impairments import apply_frequency_offset, fractional_delay, iq_imbalance, phase_noise

SOUNDING = Sounding(periods=34)
DELAYS = np.array([0.0, 0.31, -2.37, 5.5])
GAINS = np.array([1.0, 0.7 * np.exp(1j), 1.3 * np.exp(-2.5j), np.exp(3j)])
IQ_GAIN_DB, IQ_PHASE_DEG = 0.2, 2.0
DC = 0.02 * np.exp(1j * np.arange(4))
BEGIN = 25_000.25


def heard(
    cfo: float = 0.0,
    noise_power: float = 0.01,
    seed: int = 1,
    sounding: Sounding = SOUNDING,
    drift: float = 0.0,
    linewidth: float = 0.0,
    tx_image: complex = 0.0,
    tx_dc: complex = 0.0,
) -> np.ndarray:
    """What four chains with the errors above hear of a sounding that begins at BEGIN; complex64, (4, n)."""
    rng = np.random.default_rng(seed)
    sent = sounding.waveforms().sum(axis=0)
    sent = (sent + tx_image * sent.conj() + tx_dc * (sent != 0)).astype(np.complex64)
    sent = np.pad(sent, (24_096, 8192))
    if drift:
        # Each stretch of a period is delayed by a little more than the one before.
        at = np.arange(sent.size)
        late = fractional_delay(np.tile(sent, (33, 1)), np.linspace(0, 1, 33))
        sent = late[np.round(drift * at * 32).astype(int), at]
    x = fractional_delay(np.tile(sent, (4, 1)), DELAYS + BEGIN - 24_096)
    x = apply_frequency_offset(x, cfo, 1.0) * np.exp(1j * phase_noise(x.shape[1], linewidth, 1.0, rng))
    x = x * GAINS[:, None]
    x = x + rng.standard_normal((*x.shape, 2)).view(complex)[..., 0] * math.sqrt(noise_power / 2)
    return (iq_imbalance(x, IQ_GAIN_DB, IQ_PHASE_DEG) + DC[:, None]).astype(np.complex64)


def phase_deg(value: complex) -> float:
    return math.degrees(np.angle(value))


def test_the_sounding_has_a_flat_spectrum_on_one_side_of_each_pair_and_unit_power() -> None:
    period, bins = SOUNDING.period(), SOUNDING.bins
    spectrum = np.fft.fft(period)
    assert np.ptp(np.abs(spectrum[bins])) < 1e-9 * np.abs(spectrum[bins]).max()
    others = np.setdiff1d(np.arange(-512, 512), bins)
    assert np.abs(spectrum[others]).max() < 1e-9
    assert not set(bins) & set(-bins)
    assert 0 not in bins
    assert bins.size == 409
    assert np.mean(np.abs(period) ** 2) == pytest.approx(1)
    # Peaks stay under full scale at the loudest level that sites permit, -12 dBFS.
    assert np.abs(period).max() * 10 ** (-12 / 20) < 1


def test_each_transmit_chain_has_a_slot_of_its_own() -> None:
    sounding = Sounding(periods=4, n_slots=3, guard_samples=100)
    rows = sounding.waveforms()
    assert rows.shape == (3, 3 * (4 * 1024 + 100))
    assert (np.count_nonzero(rows, axis=0) <= 1).all()
    for slot in range(3):
        assert np.allclose(rows[slot, slot * 4196 :][:1024], sounding.period(), atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"period_samples": 1023}, "even"),
        ({"periods": 3}, "at least 4"),
        ({"occupied": 1.0}, "0.95"),
        ({"n_slots": 0}, "n_slots"),
    ],
)
def test_impossible_soundings_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sounding(**wrong)


@pytest.mark.parametrize("cfo", [0.0, 1e-5, 0.00175, -0.0035, 0.1234])
def test_planted_errors_are_found(cfo: float) -> None:
    y = heard(cfo)
    start, offset = find_sounding(y, SOUNDING, 0.13)
    found = listen(y, SOUNDING, start, offset)
    # 32 periods of 1024 samples at 20 dB (chain 1: 17): the phase of a mean of N samples has a standard deviation of
    # 1/sqrt(2 N SNR), of a difference sqrt(2) as much: 0.0007 rad = 0.04 deg, as a gain 0.006 dB; a delay that of the
    # phase over 2 pi times the rms bandwidth of 0.23: 0.0005 samples. Bounds are five of these.
    for k, error in enumerate(chain_errors(found, SOUNDING)):
        assert error.delay_samples - DELAYS[k] == pytest.approx(0, abs=0.003)
        assert phase_deg(error.gain / GAINS[k]) == pytest.approx(0, abs=0.2)
        assert 20 * math.log10(abs(error.gain / GAINS[k])) == pytest.approx(0, abs=0.03)
        # Image and DC: 0.07/sqrt(2 * 32768) = 0.0005 against a signal of 0.7; five of that, twice where both sides'
        # parts are alike.
        assert abs(error.image - image_of_imbalance(IQ_GAIN_DB, IQ_PHASE_DEG)) < 0.004
        assert abs(error.dc - DC[k]) < 0.004
    assert found.start_samples == pytest.approx(BEGIN, abs=0.005)
    assert found.cfo_cycles == pytest.approx(cfo, abs=1e-7)
    # Noise behind the IQ imbalance, signal before it: a hundredth of a decibel; 5 % for what 4 * 32768 samples scatter.
    assert found.snr_db == pytest.approx(20 + 20 * np.log10(np.abs(GAINS)), abs=0.3)


def test_a_transmitters_image_and_carrier_are_told_apart_from_the_receivers() -> None:
    image = image_of_imbalance(0.3, -1.0)
    y = heard(0.00175, tx_image=image, tx_dc=0.01j)
    found = listen(y, SOUNDING, *find_sounding(y, SOUNDING, 0.01))
    assert found.tx_image is not None
    assert found.tx_dc is not None
    assert abs(found.image - image_of_imbalance(IQ_GAIN_DB, IQ_PHASE_DEG)).max() < 0.004
    assert abs(found.dc - DC).max() < 0.004
    assert abs(abs(found.tx_image) - abs(image)) < 0.002
    # Up to the turn of the carrier since the sounding began.
    assert abs(found.tx_dc) == pytest.approx(0.01, abs=0.002)
    still = heard(0.0, tx_image=image)
    assert listen(still, SOUNDING, *find_sounding(still, SOUNDING)).tx_image is None


def test_phase_noise_and_drifting_clocks_matter_little() -> None:
    # 2e-7 cycles per sample: 0.4 Hz at 2 MS/s. The clock moves by 0.09 samples within the burst, as at 2.5 ppm.
    y = heard(0.00175, linewidth=2e-7, drift=2.5e-6)
    errors = chain_errors(listen(y, SOUNDING, *find_sounding(y, SOUNDING, 0.01)), SOUNDING)
    for k, error in enumerate(errors):
        assert error.delay_samples - DELAYS[k] == pytest.approx(0, abs=0.005)
        assert phase_deg(error.gain / GAINS[k]) == pytest.approx(0, abs=0.3)
        assert abs(error.image - image_of_imbalance(IQ_GAIN_DB, IQ_PHASE_DEG)) < 0.005


def test_any_chain_can_be_the_reference() -> None:
    y = heard()
    errors = chain_errors(listen(y, SOUNDING, *find_sounding(y, SOUNDING)), SOUNDING, reference=2)
    assert (errors[2].delay_samples, errors[2].gain) == (0.0, 1.0)
    assert errors[1].delay_samples == pytest.approx(DELAYS[1] - DELAYS[2], abs=0.003)
    assert phase_deg(errors[1].gain * GAINS[2] / GAINS[1]) == pytest.approx(0, abs=0.2)


@pytest.mark.parametrize("skipped", [0, 6000, 7000, 25_000, 26_024, 40_000, 58_000])
def test_a_sounding_that_was_on_before_listening_began_is_left_out(skipped: int) -> None:
    # It begins at 25,000 and ends at 59,816; half a slot before it is 6568.
    twice = np.concatenate((heard(seed=1), heard(seed=2)), axis=1)
    late = twice.shape[1] // 2 + BEGIN
    start, _ = find_sounding(twice[:, skipped:], SOUNDING, 0.01, first=True)
    assert start + skipped == pytest.approx(late if skipped > 6568 else BEGIN, abs=6)


@pytest.mark.parametrize("skipped", [0, 1, 5000, 10_540, 21_000, 43_000, 52_000])
def test_slots_are_told_from_each_other_by_the_silent_one(skipped: int) -> None:
    sounding = Sounding(periods=10, n_slots=4, guard_samples=300)
    cycle = np.pad(sounding.waveforms().sum(axis=0), (0, sounding.slot_samples))
    y = np.tile(cycle, 4)[None, skipped:]
    noise = np.random.default_rng(13).standard_normal((*y.shape, 2)).view(complex)[..., 0] * 0.1
    start, _ = find_sounding((y + noise).astype(np.complex64), sounding, first=True)
    half = sounding.slot_samples // 2
    assert start + skipped == (cycle.size if skipped <= cycle.size - half else 2 * cycle.size)


@pytest.mark.parametrize("late", np.arange(0, 1, 0.125))
def test_the_first_is_found_wherever_it_lies_between_samples(late: float) -> None:
    twice = np.concatenate((fractional_delay(heard(seed=1), late), heard(seed=2)), axis=1)
    start, _ = find_sounding(twice, SOUNDING, 0.01, first=True)
    assert start == pytest.approx(BEGIN + late, abs=6)


def test_the_first_of_several_is_found_and_without_any_it_is_said() -> None:
    quiet = 0.1 * np.random.default_rng(8).standard_normal((4, 40_000)).astype(np.complex64)
    twice = np.concatenate((heard(0.001, seed=1), quiet, heard(0.001, seed=2)), axis=1)
    start, _ = find_sounding(twice, SOUNDING, 0.01, first=True)
    assert start == pytest.approx(BEGIN, abs=6)
    noise = np.random.default_rng(3).standard_normal((2, 60_000, 2)).view(complex)[..., 0].astype(np.complex64)
    with pytest.raises(ValueError, match="no sounding is heard"):
        find_sounding(noise, SOUNDING)
    # A strong DC repeats after any number of samples, and silence after all.
    with pytest.raises(ValueError, match="no sounding is heard"):
        find_sounding(0.001 * noise + 0.5, SOUNDING)
    with pytest.raises(ValueError, match="no sounding is heard"):
        find_sounding(np.zeros_like(noise), SOUNDING)
    with pytest.raises(ValueError, match="too few"):
        find_sounding(noise[:, :1000], SOUNDING)
    with pytest.raises(ValueError, match="not within"):
        listen(noise, SOUNDING, 50_000, 0.0)


@pytest.mark.parametrize("cfo", [0.0, 0.00175])
def test_correction_leaves_no_errors(cfo: float) -> None:
    y, fresh = heard(cfo, seed=1), heard(cfo, seed=2)
    start, offset = find_sounding(y, SOUNDING, 0.01)
    errors = chain_errors(listen(y, SOUNDING, start, offset), SOUNDING)
    left = chain_errors(listen(correct(fresh, errors), SOUNDING, start, offset), SOUNDING)
    for k, error in enumerate(left):
        assert error.delay_samples == pytest.approx(0, abs=0.004)
        # Behind the mixer a shift by a delay turns the carrier offset along.
        assert phase_deg(error.gain * np.exp(-2j * np.pi * cfo * DELAYS[k])) == pytest.approx(0, abs=0.3)
        assert 20 * math.log10(abs(error.gain)) == pytest.approx(0, abs=0.04)
        assert abs(error.image) < 0.005
        assert abs(error.dc) < 0.005


def test_correction_of_known_errors_is_the_closed_form() -> None:
    rng = np.random.default_rng(4)
    spectrum = np.zeros(4096, complex)
    inside = np.r_[1:1600, -1600:0]
    spectrum[inside] = rng.standard_normal(inside.size) + 1j * rng.standard_normal(inside.size)
    clean = np.fft.ifft(spectrum) * 20
    image, rotations = 0.03 - 0.02j, np.fft.fftfreq(4096)
    rows = []
    for delay, gain, dc in zip(DELAYS, GAINS, DC, strict=True):
        v = gain * np.fft.ifft(spectrum * np.exp(-2j * np.pi * rotations * delay)) * 20
        rows.append(v + image * v.conj() + dc)
    errors = [ChainError(d, complex(g), image, complex(o)) for d, g, o in zip(DELAYS, GAINS, DC, strict=True)]
    fixed = correct(np.array(rows).astype(np.complex64), errors)
    # The filter is exact to -60 dB up to 0.4 of the rate; at the ends it lacks what came before or behind.
    error = np.abs(fixed - clean)[:, 40:-40]
    assert np.sqrt(np.mean(error**2)) < 1e-3 * np.sqrt(np.mean(np.abs(clean) ** 2))
    assert error.max() < 6e-3 * np.abs(clean).max()


def test_no_errors_change_no_bit() -> None:
    x = np.random.default_rng(5).standard_normal((3, 500, 2)).astype(np.float32).view(np.complex64)[..., 0]
    corrector = Corrector([ChainError()] * 3)
    assert corrector.delay_samples == 0
    assert np.array_equal(corrector.process(list(x)), x)


def test_whole_delays_are_shifts() -> None:
    x = np.random.default_rng(6).standard_normal((2, 500, 2)).astype(np.float32).view(np.complex64)[..., 0]
    corrector = Corrector([ChainError(delay_samples=3.0), ChainError()])
    out = corrector.process(list(x))
    assert corrector.delay_samples == 3
    assert np.array_equal(out[0], x[0])
    assert np.array_equal(out[1, 3:], x[1, :-3])


@given(cuts=st.lists(st.integers(0, 3000), max_size=12))
def test_a_stream_may_be_cut_anywhere(cuts: list[int]) -> None:
    x = np.random.default_rng(7).standard_normal((2, 3000, 2)).astype(np.float32).view(np.complex64)[..., 0]
    errors = [ChainError(0.4, 1.1j, 0.01, 0.1), ChainError(-20.7, 0.5, 0.02j, -0.1j)]
    whole = Corrector(errors).process(list(x))
    corrector, edges = Corrector(errors), [0, *sorted(cuts), 3000]
    parts = [corrector.process(list(x[:, a:b])) for a, b in pairwise(edges)]
    assert np.array_equal(np.concatenate(parts, axis=1), whole)


@given(gain_db=st.floats(-3, 3), phase_deg=st.floats(-30, 30))
def test_image_and_imbalance_are_inverse_and_the_image_is_the_one_of_the_impairment(gain_db, phase_deg) -> None:
    image = image_of_imbalance(gain_db, phase_deg)
    assert imbalance_of_image(image) == pytest.approx((gain_db, phase_deg), abs=1e-9)
    x = np.array([0.3 + 0.1j, -0.2 + 0.7j, 1j, 1.0])
    y = iq_imbalance(x, gain_db, phase_deg)
    # Widely linear: y - k conj(y) is a multiple of x.
    ratio = (y - image * np.conj(y)) / x
    assert np.ptp(ratio.real) + np.ptp(ratio.imag) < 1e-9


@pytest.mark.parametrize(
    "wrong", [{"gain": 0.0}, {"delay_samples": math.nan}, {"image": 1.0}, {"delay_samples": 1e6}, {"dc": math.inf}]
)
def test_what_cannot_be_corrected_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="cannot be corrected"):
        ChainError(**wrong)


# Reciprocity


def planted(n: int, seed: int, bins: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Gains between n antennas over symmetric paths, (bins, n, n), and factors t/r against antenna 0."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal((*shape, 2)).view(complex)[..., 0]

    t, r, p = draw(bins, n), draw(bins, n), draw(bins, n, n)
    p = p + np.swapaxes(p, 1, 2)
    c = t / r
    return r[:, :, None] * p * t[:, None, :], c / c[:, :1]


@pytest.mark.parametrize("n", [2, 3, 8])
def test_reciprocity_factors_are_those_of_the_chains(n: int) -> None:
    gains, factors = planted(n, n)
    found = reciprocity_factors(gains)
    assert np.allclose(found, factors)
    # What they are for: the downlink is the uplink times factors, up to one common factor for each far antenna.
    down, up = gains[:, 1, :1], gains[:, :1, 1]
    assert np.allclose(down[:, 0] * found[:, 1], up[:, 0] * found[:, 0])


def test_one_relay_is_enough_and_an_antenna_alone_is_named() -> None:
    gains, factors = planted(4, 9)
    star = np.full_like(gains, np.nan)
    star[:, 0, :], star[:, :, 0] = gains[:, 0, :], gains[:, :, 0]
    assert np.allclose(reciprocity_factors(star), factors)
    star[:, 3, 0] = np.nan
    with pytest.raises(ValueError, match=r"antennas \[3\]"):
        reciprocity_factors(star)
    for shape in [(1, 1), (2, 3), (4,)]:
        with pytest.raises(ValueError, match="shape"):
            reciprocity_factors(np.ones(shape))


def test_noise_on_many_pairs_averages_out() -> None:
    gains, factors = planted(8, 10, bins=50)
    rng = np.random.default_rng(11)
    noise = rng.standard_normal((*gains.shape, 2)).view(complex)[..., 0] * 1e-2
    relay = np.full_like(gains, np.nan)
    relay[:, 0, :], relay[:, :, 0] = (gains + noise)[:, 0, :], (gains + noise)[:, :, 0]
    all_pairs = np.abs(reciprocity_factors(gains + noise) / factors - 1)
    assert np.median(all_pairs) < np.median(np.abs(reciprocity_factors(relay) / factors - 1))
    assert np.median(all_pairs) < 0.02


def test_paths_between_all_antennas_are_measured_slot_by_slot() -> None:
    sounding = Sounding(periods=18, n_slots=2, guard_samples=500)
    sent = np.pad(sounding.waveforms(), ((0, 0), (3000, 4000)))
    h = np.array([[0.5, 1.0j], [-0.8, 0.3 + 0.3j]])
    y = apply_frequency_offset(h @ sent, 0.0007, 1.0).astype(np.complex64)
    y += 0.01 * np.random.default_rng(12).standard_normal((*y.shape, 2)).view(complex)[..., 0].astype(np.complex64)
    start, cfo = find_sounding(y, sounding, 0.01)
    assert start == 3000
    found = path_gains([listen(y, sounding, start, cfo, slot) for slot in (0, 1)], sounding)
    assert found.shape == (sounding.bins.size, 2, 2)
    mean = found.mean(axis=0)
    # One common phase is the carrier's at the middle of the first slot.
    mean *= np.exp(-1j * np.angle(mean[0, 0]))
    assert np.abs(mean - h).max() < 0.01

"""Each impairment against its closed form."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from semair.blocks.waveforms import impairments as imp
from semair.blocks.waveforms.impairments import Impairments

RATE_HZ = 2e6


def noise(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.standard_normal((*shape, 2)) * math.sqrt(0.5)).view(np.complex128)[..., 0].astype(np.complex64)


def test_frequency_offset_is_the_complex_exponential_of_the_absolute_index(rng):
    x = noise(rng, 500)
    start = 10**9 + 17
    k = np.arange(start, start + 500)
    expected = x * np.exp(2j * np.pi * np.mod(1234.5 / RATE_HZ * k, 1))
    # A phase of 1e6 turns in double precision is known to about 1e-9 turns.
    np.testing.assert_allclose(imp.apply_frequency_offset(x, 1234.5, RATE_HZ, start), expected, atol=1e-6)


@given(cuts=st.lists(st.integers(0, 1000), max_size=6), start=st.integers(-5000, 10**12))
@settings(max_examples=40, deadline=None)
def test_frequency_offset_does_not_depend_on_how_a_stream_is_cut(cuts, start):
    x = np.ones(1000, dtype=np.complex64)
    whole = imp.apply_frequency_offset(x, -7777.7, RATE_HZ, start)
    edges = [0, *sorted(cuts), 1000]
    parts = [
        imp.apply_frequency_offset(x[a:b], -7777.7, RATE_HZ, start + a) for a, b in itertools.pairwise(edges) if b > a
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_phase_noise_variance_grows_as_a_wiener_process(rng):
    walks = np.array([imp.phase_noise(1001, 50.0, RATE_HZ, rng) for _ in range(2000)])
    steps = walks[:, [100, 300, 1000]] - walks[:, [0]]
    expected = 2 * np.pi * 50.0 * np.array([100, 300, 1000]) / RATE_HZ
    # Relative standard error of a variance from 2000 draws is sqrt(2/2000) = 3.2 %; bound at 5.5 of them.
    np.testing.assert_allclose(steps.var(axis=0), expected, rtol=0.175)
    # Increments over spans that do not overlap are independent.
    first, second = walks[:, 500] - walks[:, 0], walks[:, 1000] - walks[:, 500]
    assert abs(np.corrcoef(first, second)[0, 1]) < 5.5 / math.sqrt(2000)


def test_phase_noise_spectrum_meets_the_data_sheet_point_it_was_made_from(rng):
    linewidth_hz = imp.linewidth_of(-75.0, 10e3)
    walks = np.array([imp.phase_noise(1 << 15, linewidth_hz, RATE_HZ, rng) for _ in range(60)])
    carrier = np.exp(1j * walks)
    window = np.hanning(1 << 15)
    power = np.abs(np.fft.fft(carrier * window, axis=1)) ** 2
    density = power.mean(axis=0) / (RATE_HZ * np.sum(window**2))
    freqs_hz = np.fft.fftfreq(1 << 15, 1 / RATE_HZ)
    # 60 periodograms times about 33 bins: relative standard error 2 to 3 %, 1 dB is over 5 of them.
    near = np.abs(np.abs(freqs_hz) - 10e3) < 500
    assert 10 * np.log10(density[near].mean()) == pytest.approx(-75.0, abs=1.0)


def test_fast_turn_equals_offset_and_phase_noise_apart(rng):
    x = noise(rng, 3000)
    steps = imp.phase_steps(3000, 2000.0, RATE_HZ, np.random.default_rng(3))
    out = np.empty_like(x)
    end = imp.turn(x, out, 777.0 / RATE_HZ, 4096, steps, amplitude=0.5, start_rad=0.3)
    walk = imp.phase_noise(3000, 2000.0, RATE_HZ, np.random.default_rng(3), start_rad=0.3)
    expected = 0.5 * imp.apply_frequency_offset(x, 777.0, RATE_HZ, 4096) * np.exp(1j * walk)
    np.testing.assert_allclose(out, expected, atol=2e-6)
    assert np.exp(1j * end) == pytest.approx(np.exp(1j * walk[-1]), abs=1e-6)


def test_no_linewidth_is_no_phase_noise(rng):
    np.testing.assert_array_equal(imp.phase_noise(10, 0.0, RATE_HZ, rng, 0.25), np.full(10, 0.25))


@pytest.mark.parametrize(("gain_db", "phase_deg"), [(0.5, 0.0), (0.0, 3.0), (0.2, 2.0), (-1.0, -5.0)])
def test_image_rejection_follows_from_gain_and_phase(gain_db, phase_deg):
    n = 1024
    tone = np.exp(2j * np.pi * 100 / n * np.arange(n))
    spectrum = np.abs(np.fft.fft(imp.iq_imbalance(tone, gain_db, phase_deg))) ** 2
    g, c = 10 ** (gain_db / 20), math.cos(math.radians(phase_deg))
    expected = (1 + 2 * g * c + g * g) / (1 - 2 * g * c + g * g)
    assert spectrum[100] / spectrum[n - 100] == pytest.approx(expected, rel=1e-9)


def test_imbalance_leaves_i_alone_and_scales_q(rng):
    x = noise(rng, 200)
    y = imp.iq_imbalance(x, 6.0, 0.0)
    np.testing.assert_allclose(y.real, x.real, atol=1e-6)
    np.testing.assert_allclose(y.imag, x.imag * 10 ** (6.0 / 20), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(imp.iq_imbalance(x, 0.0, 0.0), x)


@pytest.mark.parametrize("bits", [4, 8, 12, 14])
def test_sqnr_of_a_full_scale_sine(bits):
    n = 1 << 16
    level = 1 - 2.0 ** (1 - bits)
    # A frequency without common factor with n visits every phase once.
    x = (level * np.exp(2j * np.pi * 12347 / n * np.arange(n))).astype(np.complex64)
    y, clipped = imp.quantise(x, bits)
    sqnr_db = 10 * np.log10(np.mean(np.abs(x) ** 2) / np.mean(np.abs(y - x) ** 2))
    assert clipped == 0
    expected_db = 6.02 * bits + 1.76 + 20 * math.log10(level)
    # The uniform-error approximation is good to some tenths of a dB at 4 bits and better above.
    assert sqnr_db == pytest.approx(expected_db, abs=0.6 if bits == 4 else 0.15)


@given(
    values=st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=40).filter(lambda v: len(v) % 2 == 0),
    bits=st.integers(2, 16),
)
@settings(max_examples=60, deadline=None)
def test_quantised_values_are_exact_in_int16(values, bits):
    x = np.array(values, dtype=np.float32).view(np.complex64)
    y, clipped = imp.quantise(x, bits)
    parts = y.view(np.float32)
    whole = parts.astype(np.float64) * 32768
    np.testing.assert_array_equal(whole, np.round(whole))
    assert whole.min() >= -32768
    assert whole.max() <= 32767
    np.testing.assert_array_equal(whole % 2 ** (16 - bits), 0)
    step = 2.0 ** (1 - bits)
    inside = np.abs(x.view(np.float32)) < 1 - step
    assert np.all(np.abs(parts - x.view(np.float32))[inside] <= step / 2 * (1 + 1e-5))
    np.testing.assert_array_equal(imp.quantise(y, bits)[0], y)
    assert 0 <= clipped <= x.size


def test_clipped_samples_are_counted_once_each():
    x = np.array([0.5, 1.5, 1.5 + 1.5j, -1.0, -1.2j, 0.9999], dtype=np.complex64)
    y, clipped = imp.quantise(x, 8)
    top = 127 / 128
    assert clipped == 4  # 0.9999 would round to 1.0, which a converter does not have
    np.testing.assert_array_equal(y, np.array([0.5, top, top + top * 1j, -1.0, -1.0j, top], dtype=np.complex64))


def test_bits_out_of_range_are_refused():
    with pytest.raises(ValueError, match="bits=17"):
        imp.quantise(np.zeros(1, dtype=np.complex64), 17)


@pytest.mark.parametrize("delay", [0.25, 0.5, -3.7, 11.123, 1e-4])
@pytest.mark.parametrize("freq", [-0.4, -0.05, 0.2, 0.4])
def test_fractional_delay_of_a_tone(delay, freq):
    k = np.arange(400)
    y = imp.fractional_delay(np.exp(2j * np.pi * freq * k).astype(np.complex64), delay)
    error = y[40:-40] - np.exp(2j * np.pi * freq * (k[40:-40] - delay))
    assert 20 * np.log10(np.abs(error).max()) < -67


def test_whole_delays_are_exact(rng):
    x = noise(rng, 2, 100)
    y = imp.fractional_delay(x, np.array([3, -5]))
    np.testing.assert_array_equal(y[0, 3:], x[0, :-3])
    np.testing.assert_array_equal(y[0, :3], 0)
    np.testing.assert_array_equal(y[1, :-5], x[1, 5:])
    np.testing.assert_array_equal(y[1, -5:], 0)


def test_delay_and_its_inverse_cancel_in_band(rng):
    spectrum = np.zeros(1024, dtype=complex)
    spectrum[np.r_[1:400, 625:1024]] = noise(rng, 798)
    x = np.fft.ifft(spectrum).astype(np.complex64)
    y = imp.fractional_delay(imp.fractional_delay(x, 0.37), -0.37)
    middle = slice(50, -50)
    error = np.mean(np.abs(y[middle] - x[middle]) ** 2) / np.mean(np.abs(x[middle]) ** 2)
    assert 10 * np.log10(error) < -64


def test_drifting_delay_follows_the_clock():
    drift, freq = 20e-6, 0.3
    k = np.arange(-100, 20200)
    source = np.exp(2j * np.pi * freq * k).astype(np.complex64)
    row = np.zeros(1, dtype=np.int64)
    y = imp.delay_rows(0, 20000, source, row + 50, row - 50, row + 20200, np.array([5.3]), drift=drift, piece=24)
    m = np.arange(20000)
    expected = np.exp(2j * np.pi * freq * (m - 5.3) * (1 + drift))
    # Held over 24 samples the delay is off by 12 * 20e-6 = 2.4e-4, which is 4.5e-4 rad at 0.3: -66 dB.
    assert np.abs(y[0] - expected).max() < 1.1e-3


@pytest.mark.parametrize("level", ["perfect", "cabled", "wireless"])
def test_presets_are_valid_and_ordered(level):
    preset = Impairments.preset(level)
    assert Impairments.model_validate_json(preset.model_dump_json()) == preset
    if level == "perfect":
        assert preset == Impairments()


def test_sampling_clock_follows_the_carrier_unless_given():
    assert Impairments(cfo_ppm=2.0).effective_sampling_offset_ppm == 2.0
    assert Impairments(cfo_ppm=2.0, sampling_offset_ppm=0.0).effective_sampling_offset_ppm == 0.0


@pytest.mark.parametrize("values", [{"adc_bits": 1}, {"cfo_ppm": 1e3}, {"dc_dbfs": 3.0}, {"phase": 1}])
def test_impossible_settings_are_refused(values):
    with pytest.raises(ValidationError):
        Impairments(**values)


def test_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="allowed are perfect, cabled, wireless"):
        Impairments.preset("noisy")

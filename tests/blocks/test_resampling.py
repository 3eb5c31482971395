"""Resampling against closed forms and against scipy's own polyphase filter; nothing is delayed."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import signal
from semair.blocks.waveforms.resampling import ATTENUATION_DB, PASSBAND, Resampler, rate_ratio

RATIOS = [Fraction(1, 10), Fraction(125, 192), Fraction(2), Fraction(192, 125), Fraction(3, 2)]


def run(filter_: Resampler, x: np.ndarray, position: int, count: int) -> np.ndarray:
    """Outputs of a signal surrounded by silence."""
    start, length = filter_.window(position, count)
    window = np.zeros((len(x), length), np.complex64)
    low, high = max(start, 0), min(start + length, x.shape[1])
    if low < high:
        window[:, low - start : high - start] = x[:, low:high]
    return filter_.resample(window, position, count)


def tone(frequency: float, n: int) -> np.ndarray:
    return np.exp(2j * np.pi * frequency * np.arange(n))[None].astype(np.complex64)


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_band_limited_signal_comes_out_at_every_exact_instant(ratio, rng):
    lower = min(1.0, float(ratio))
    frequencies = rng.uniform(-PASSBAND / 2, PASSBAND / 2, 40) * lower
    amplitudes = rng.standard_normal(40) + 1j * rng.standard_normal(40)
    x = (amplitudes @ np.exp(2j * np.pi * np.outer(frequencies, np.arange(6000))))[None].astype(np.complex64)
    filter_ = Resampler(ratio)
    # In the middle, where the filter reaches no end; an odd place, so that all phases occur.
    position, count = 2001 * filter_.up + 1, int(2000 * ratio)
    got = run(filter_, x, position, count)
    at = (position + np.arange(count) * filter_.down) / filter_.up
    ideal = amplitudes @ np.exp(2j * np.pi * np.outer(frequencies, at))
    error_db = 10 * np.log10(np.mean(np.abs(got - ideal) ** 2) / np.mean(np.abs(ideal) ** 2))
    assert error_db < -ATTENUATION_DB


@pytest.mark.parametrize("ratio", [Fraction(1, 4), Fraction(125, 192)])
@pytest.mark.parametrize("excess", [1.0, 1.2, 1.5])
def test_what_would_alias_is_gone(ratio, excess):
    frequency = excess * float(ratio) / 2
    if frequency >= 0.5:
        pytest.skip("above the input's own band")
    filter_ = Resampler(ratio)
    got = run(filter_, tone(frequency, 8000), 4000 * filter_.up, int(2000 * ratio))
    # The ripple of a Kaiser window is what was asked for to within a decibel.
    assert 20 * np.log10(np.abs(got).max()) < -ATTENUATION_DB + 1.5


def test_a_narrow_band_signal_comes_out_as_from_scipys_polyphase_filter(rng):
    x = signal.lfilter(signal.firwin(201, 0.5), 1, rng.standard_normal((1, 5000)) + 1j * rng.standard_normal((1, 5000)))
    for up, down in ((3, 2), (4, 5)):
        want = signal.resample_poly(x, up, down, axis=1, window=("kaiser", 14.0))
        got = run(Resampler(Fraction(up, down)), x.astype(np.complex64), 0, want.shape[1])
        inside = np.s_[:, 300:-300]
        assert np.abs(got[inside] - want[inside]).max() < 2e-3 * np.abs(want).max()


@given(st.sampled_from(RATIOS), st.integers(0, 500), st.lists(st.integers(1, 200), min_size=1, max_size=6))
def test_outputs_do_not_depend_on_how_they_are_cut(ratio, first, counts):
    rng = np.random.default_rng(3)
    x = (rng.standard_normal((2, 700)) + 1j * rng.standard_normal((2, 700))).astype(np.complex64)
    filter_ = Resampler(ratio)
    whole = run(filter_, x, first, sum(counts))
    done, parts = 0, []
    for count in counts:
        parts.append(run(filter_, x, first + done * filter_.down, count))
        done += count
    assert np.concatenate(parts, axis=1).tobytes() == whole.tobytes()


def test_a_constant_passes_alike_in_every_phase():
    filter_ = Resampler(Fraction(192, 125))
    got = run(filter_, np.ones((1, 3000), np.complex64), 1000 * filter_.up, 1000)
    assert np.abs(got - 1).max() < 1e-6


def test_ratios_of_rates():
    assert rate_ratio(20e6, 2e6) == Fraction(1, 10)
    assert rate_ratio(30.72e6, 20e6) == Fraction(125, 192)
    # A third is no float: the ratio is meant, not its rounding.
    assert rate_ratio(100e6 / 3, 20e6) == Fraction(3, 5)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="positive and finite"):
            rate_ratio(wrong, 1e6)
    with pytest.raises(ValueError, match=r"in no ratio of whole numbers up to 4096"):
        rate_ratio(2e6, 2_000_001.0)
    with pytest.raises(ValueError, match="in no ratio"):
        rate_ratio(1.0, 5000.0)

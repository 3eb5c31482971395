"""Device time is exact."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from semair.captures.devicetime import DeviceTime

rates = st.one_of(st.integers(1, 10**9).map(float), st.floats(1.0, 1e9), st.just(30.72e6), st.just(100e6 / 3))
seconds = st.integers(0, 2**40)
ticks = st.integers(1, 10**9)


@given(secs=seconds, rate=rates, tick_rate=ticks, samples=st.integers(-(10**12), 10**12), data=st.data())
def test_plus_is_within_half_a_tick_of_the_exact_instant(secs, rate, tick_rate, samples, data):
    start = DeviceTime(secs, data.draw(st.integers(0, tick_rate - 1)), tick_rate)
    later = start.plus(samples, rate)
    exact = Fraction(secs) + Fraction(start.frac_ticks, tick_rate) + Fraction(samples) / Fraction(rate)
    assert abs(later.seconds - exact) <= Fraction(1, 2 * tick_rate)
    assert 0 <= later.frac_ticks < tick_rate


@given(secs=seconds, tick_rate=ticks, samples=st.integers(-(10**15), 10**15), divisor=st.integers(1, 64))
def test_samples_since_undoes_plus_when_the_clock_resolves_samples(secs, tick_rate, samples, divisor):
    start = DeviceTime(secs, 0, tick_rate)
    rate = tick_rate / divisor
    assert start.plus(samples, rate).samples_since(start, rate) == samples


def test_a_second_of_a_long_running_clock_is_told_to_the_sample():
    """Here float64 seconds are off by several samples."""
    start = DeviceTime(1_900_000_000, 1, 20_000_000)
    assert start.plus(3, 20e6).samples_since(start, 20e6) == 3
    assert DeviceTime.from_dict(start.to_dict()) == start


@pytest.mark.parametrize("arguments", [(0, 5, 5), (0, -1, 5), (0, 0, 0), (0.5, 0, 5), (0, True, 5)])
def test_values_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=r"must be|integers"):
        DeviceTime(*arguments)


@pytest.mark.parametrize("fields", [None, {}, {"full_secs": 1, "frac_ticks": 0}, [1, 2, 3]])
def test_anything_but_the_three_integers_is_refused(fields):
    with pytest.raises(ValueError, match="must hold exactly"):
        DeviceTime.from_dict(fields)

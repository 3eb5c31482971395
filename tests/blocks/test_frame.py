"""The frame on air: places follow from lengths, and what does not fit is refused with a reason."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from semair.blocks.waveforms.frame import FrameFormat


def test_slots_follow_one_another_as_documented():
    fmt = FrameFormat(
        n_fft=64,
        cp_samples=8,
        n_used=48,
        sync_repeats=4,
        header_symbols=2,
        n_groups=4,
        group_width=3,
        max_preamble_length=7,
        noise_symbols=2,
        guard_samples=10,
        frame_samples=1000,
    )
    # By hand: 4 pieces of 32; training and two header symbols of 72; guard; ceil(7 / 3) = 3 symbols; guard; 2
    # symbols.
    assert fmt.symbol_samples == 72
    assert fmt.training_start == 128
    assert fmt.beacon_samples == 128 + 3 * 72
    assert fmt.access_start == 344 + 10
    assert fmt.access_symbols == 3
    assert fmt.noise_start == 354 + 216 + 10
    assert fmt.used_samples == 580 + 144
    assert fmt.frame_s == pytest.approx(1000 / 2e6)
    assert fmt.subcarrier_spacing_hz == pytest.approx(2e6 / 64)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_fft": 130}, ["n_fft=130", "multiple of 4"]),
        ({"cp_samples": 128}, ["cp_samples=128", "below n_fft=128"]),
        ({"n_used": 95}, ["n_used=95", "even"]),
        ({"n_used": 128}, ["n_used=128", "at most n_fft-2=126"]),
        ({"n_groups": 25}, ["n_groups*group_width=100", "n_used=96"]),
        ({"frame_samples": 4000, "max_preamble_length": 100}, ["frame_samples=4000", "max_preamble_length"]),
        ({"sync_repeats": 1}, ["sync_repeats", "greater than or equal to 2"]),
        ({"n_used": 2}, ["n_used", "greater than or equal to 4"]),
        ({"n_fft": 8}, ["n_fft", "greater than or equal to 16"]),
        ({"sample_rate_hz": 0}, ["sample_rate_hz", "greater than 0"]),
        ({"sample_rate_hz": float("nan")}, ["sample_rate_hz"]),
        ({"frame_length": 4096}, ["frame_length", "Extra inputs"]),
    ],
)
def test_what_does_not_fit_is_refused_with_names_and_values(changes, words):
    with pytest.raises(ValidationError) as caught:
        FrameFormat(**changes)
    for word in words:
        assert word in str(caught.value)


def test_header_too_small_for_the_counter_is_refused_at_once():
    # One header symbol of 46 cells cannot hold the 48 bits of counter and checksum.
    with pytest.raises(ValidationError, match=r"header_symbols=1.*46.*48"):
        FrameFormat(n_fft=64, cp_samples=8, n_used=46, n_groups=4, header_symbols=1)


def test_frame_that_exactly_holds_its_slots_is_allowed():
    needed = FrameFormat().used_samples
    assert FrameFormat(frame_samples=needed).used_samples == needed
    with pytest.raises(ValidationError):
        FrameFormat(frame_samples=needed - 1)


@given(
    n_fft=st.integers(4, 64).map(lambda k: 4 * k),
    data=st.data(),
)
def test_access_groups_are_neighbouring_disjoint_used_subcarriers(n_fft, data):
    n_used = 2 * data.draw(st.integers(2, (n_fft - 2) // 2))
    width = data.draw(st.integers(1, n_used))
    n_groups = data.draw(st.integers(1, n_used // width))
    fmt = FrameFormat(
        n_fft=n_fft,
        cp_samples=1,
        n_used=n_used,
        n_groups=n_groups,
        group_width=width,
        header_symbols=64,
        frame_samples=10**7,
    )
    bins = fmt.access_subcarriers
    assert bins.shape == (n_groups, width)
    assert len(set(bins.ravel())) == n_groups * width
    assert set(bins.ravel()) <= set(fmt.used_subcarriers)
    assert 0 not in bins
    frequency = (bins + n_fft // 2) % n_fft - n_fft // 2
    # Neighbours, apart from the empty DC that a group may straddle.
    steps = np.diff(frequency, axis=1)
    assert np.all((steps == 1) | ((steps == 2) & (frequency[:, :-1] == -1)))
    assert np.all(np.diff(frequency.ravel()) > 0)


def test_groups_spread_over_the_whole_band():
    fmt = FrameFormat(n_groups=4, group_width=2, frame_samples=8192)
    frequency = (fmt.access_subcarriers + 64) % 128 - 64
    # Four strides of 24 subcarriers, each group of two in the middle of its own: 11 free ones on both sides.
    assert frequency.tolist() == [[-37, -36], [-13, -12], [12, 13], [36, 37]]


@pytest.mark.parametrize(("length", "symbols"), [(1, 1), (4, 1), (5, 2), (28, 7)])
def test_symbols_of_a_preamble_length(length, symbols):
    assert FrameFormat().symbols_of_length(length) == symbols


@pytest.mark.parametrize("length", [0, -1, 29])
def test_preamble_longer_than_the_slot_is_refused(length):
    with pytest.raises(ValueError, match=rf"preamble length {length} .*allowed 1 to 28"):
        FrameFormat().symbols_of_length(length)


def test_formats_are_values():
    assert FrameFormat() == FrameFormat()
    assert hash(FrameFormat()) == hash(FrameFormat())
    with pytest.raises(ValidationError):
        FrameFormat().n_fft = 64

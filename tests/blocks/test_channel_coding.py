"""LDPC codes of GNU Radio with QAM, against theory: what codes of their length can do at best, and not much worse."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import binom
from semair.blocks.channel_coding import LARGEST_BLOCK, CodedModulation, LdpcCode
from semair.blocks.waveforms.parity_check import parity_check
from semair.models.csi.separate import block_error_rate


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(0, 400), st.integers(0, 2**32 - 1))
def test_clean_words_of_every_size_come_back(n_info, n_parity, seed):
    code = LdpcCode(n_info, n_info + n_parity)
    bits = np.random.default_rng(seed).integers(0, 2, (3, n_info), dtype=np.uint8)
    coded = code.encode(bits)
    assert coded.shape == (3, n_info + n_parity)
    for certainty in (0.5, 5.0, 1e9):
        np.testing.assert_array_equal(code.decode((1 - 2.0 * coded) * certainty), bits)


def test_code_words_fulfil_their_checks(rng):
    coded = LdpcCode(60, 120).encode(rng.integers(0, 2, (20, 60), dtype=np.uint8))
    assert not (coded @ parity_check(60, 120).T % 2).any()
    assert len(np.unique(coded, axis=0)) == 20


def test_low_rates_repeat_a_code_of_rate_one_third(rng):
    code = LdpcCode(20, 150)
    coded = code.encode(rng.integers(0, 2, (4, 20), dtype=np.uint8))
    np.testing.assert_array_equal(coded[:, 60:120], coded[:, :60])
    np.testing.assert_array_equal(coded[:, 120:], coded[:, :30])


def test_erasures_are_filled_in(rng):
    code = LdpcCode(100, 300)
    bits = rng.integers(0, 2, (20, 100), dtype=np.uint8)
    llr = (1 - 2.0 * code.encode(bits)) * 8
    # A third of the bits unknown is half of what the rate leaves room for.
    llr[rng.random(llr.shape) < 1 / 3] = np.nan
    np.testing.assert_array_equal(code.decode(llr), bits)


@pytest.mark.parametrize(
    ("n_symbols", "m", "rate", "within_db"),
    [(16, 2, 1 / 2, 2.5), (64, 2, 1 / 4, 2.5), (64, 2, 1 / 2, 2.0), (64, 4, 1 / 2, 2.5), (128, 4, 3 / 4, 3.0)],
)
def test_block_errors_lie_between_the_best_possible_and_a_few_decibels_more(n_symbols, m, rate, within_db):
    link, n = CodedModulation(n_symbols, m, rate), 200

    def short(snr_db: float) -> float:
        return block_error_rate(n_symbols, snr_db, link.n_info) - 0.1

    snr_db = brentq(short, -20, 40)
    generator = np.random.default_rng(1)
    # At the SNR where the normal approximation gives 10 % of block errors no real code has fewer than some 5 %, which
    # leaves room for the approximation; few enough to fall below with probability 1e-4 are 2 of 200 or less.
    assert link.block_errors(snr_db, n, generator) > binom.ppf(1e-4, n, 0.05)
    # So many dB above that it must have fewer than those 10 %.
    assert link.block_errors(snr_db + within_db, n, generator) < binom.ppf(0.9999, n, 0.1)


def test_uncoded_messages_err_where_one_of_their_bits_does():
    link, snr_db, n = CodedModulation(16, 2, 1.0), 8.0, 4000
    assert link.n_info == 32
    from scipy.stats import norm

    expected = 1 - (1 - norm.sf(np.sqrt(10 ** (snr_db / 10)))) ** 32
    found = link.block_errors(snr_db, n, np.random.default_rng(1))
    assert abs(found / n - expected) < 4 * np.sqrt(expected * (1 - expected) / n)


def test_long_messages_are_split_into_words_that_decode(rng):
    link = CodedModulation(1100, 4, 0.5)
    bits = rng.integers(0, 2, (2, link.n_info), dtype=np.uint8)
    assert link.n_info == 2200 > LARGEST_BLOCK
    symbols = link.encode(bits)
    assert symbols.shape == (2, 1100)
    assert np.mean(np.abs(symbols) ** 2) == pytest.approx(1, abs=0.05)
    # A noise power per symbol: every fourth symbol was lost, at the rate 1/2 a half of what may be.
    noise_power = np.where(np.arange(1100) % 4 == 0, 1e6, 0.05)
    noise = rng.standard_normal((2, 1100, 2)) @ np.array([1, 1j]) * np.sqrt(noise_power / 2)
    np.testing.assert_array_equal(link.decode(symbols + noise, noise_power), bits)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="carry less than one information bit"):
        CodedModulation(2, 2, 0.2)
    with pytest.raises(ValueError, match="0 < rate <= 1"):
        CodedModulation(2, 2, 1.2)
    with pytest.raises(ValueError, match="n_info=9, n_coded=8"):
        LdpcCode(9, 8)
    link = CodedModulation(8, 2, 0.5)
    with pytest.raises(ValueError, match=r"bits is \(1, 9\); needs \(message, 8\)"):
        link.encode(np.zeros((1, 9), np.uint8))
    with pytest.raises(ValueError, match=r"received is \(1, 7\); needs \(message, 8\)"):
        link.decode(np.zeros((1, 7), complex), 0.1)
    with pytest.raises(ValueError, match=r"llr is \(8,\)"):
        LdpcCode(4, 8).decode(np.zeros(8))

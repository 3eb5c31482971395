"""Separate coding of CSI end to end: what is measured is what its parts promise, and a fixed rate has a cliff."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("gnuradio", reason="GNU Radio is not installed")

from semair.blocks.channel_coding import CodedModulation
from semair.errors import ScenarioError
from semair.flowgraphs import csi_separate
from semair.models.csi import coded, evaluate
from semair.models.csi.channels import PRESETS
from semair.models.csi.coded import DESIGN_SNR_DB, FIXED, SEPARATE, SeparateCoding, SeparateContender
from semair.models.csi.evaluate import Condition, Evaluation, LinearContender
from semair.models.csi.separate import best_nmse

N = 250
MESSAGES = 100


@pytest.fixture(scope="module")
def coding():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "_KLT_DROPS", 1000)
        patch.setattr(coded, "_MESSAGES", MESSAGES)
        linear = LinearContender(PRESETS["lab"])
        yield SeparateCoding(PRESETS["lab"], CodedModulation, linear), linear


def evaluated(contender, snr_db):
    return Evaluation([contender], PRESETS["lab"], N).rows(Condition(ratio=8, snr_db=snr_db))[0]


def test_what_comes_back_is_what_source_code_and_block_errors_promise(coding):
    contender = SeparateContender(coding[0])
    for snr_db in (0.0, 10.0):
        scheme, row = contender.scheme(16, snr_db), evaluated(contender, snr_db)
        p = scheme.block_error_rate
        # Both shares are estimates, of 100 words and of 500 in pairs that have one channel in common.
        bound = 4 * np.sqrt(max(p * (1 - p), 0.01) * (1 / MESSAGES + 1 / N))
        assert abs(row.lost - p) < bound
        expected = (1 - row.lost) * scheme.source_nmse + row.lost
        assert row.errors.mean() == pytest.approx(expected, abs=4 * row.errors.std() / np.sqrt(N) + 0.03)
        # No code of the same components does better than the bound, up to what these drops can tell.
        bound = best_nmse(np.maximum(coding[1].variances, 1e-9), 16, snr_db)
        assert 10 ** (row.nmse_db.high / 10) > bound


def test_the_best_rate_follows_the_snr_and_the_fixed_one_falls_off_a_cliff(coding):
    best, fixed = SeparateContender(coding[0]), SeparateContender(coding[0], DESIGN_SNR_DB)
    assert (best.name, fixed.name) == (SEPARATE, FIXED)
    assert fixed.scheme(16, -5.0) is best.scheme(16, DESIGN_SNR_DB)
    sent = [best.scheme(16, snr_db).link.n_info for snr_db in (0.0, 10.0, 20.0)]
    assert sent == sorted(set(sent))
    low = evaluated(fixed, DESIGN_SNR_DB - 8)
    assert low.lost > 0.9
    assert low.nmse_db.value > -0.5
    assert evaluated(best, DESIGN_SNR_DB - 8).nmse_db.high < low.nmse_db.low
    # Above its SNR it gains nothing but the last failures.
    above = evaluated(fixed, DESIGN_SNR_DB + 10)
    assert above.lost < 0.01
    assert above.nmse_db.value == pytest.approx(10 * np.log10(fixed.scheme(16, 0.0).source_nmse), abs=0.4)


def test_contenders_are_found_by_name(coding, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "WEIGHTS", tmp_path)
    monkeypatch.setattr(csi_separate, "linear_contender", lambda numerology: coding[1])
    monkeypatch.setattr(csi_separate, "separate_coding", lambda numerology: coding[0])
    assert [one.name for one in csi_separate.contenders("lab")] == ["klt", SEPARATE, FIXED]
    assert [one.name for one in csi_separate.contenders("lab", [FIXED, "klt"])] == [FIXED, "klt"]
    with pytest.raises(ScenarioError, match="numerology 'home' is unknown"):
        csi_separate.contenders("home", [SEPARATE])
    with pytest.raises(ScenarioError, match="'nowhere' is neither a folder"):
        csi_separate.contenders("lab", ["nowhere", SEPARATE])


def test_schemes_are_chosen_before_they_are_needed(coding):
    told = []
    chosen = coded.choose_schemes(
        [SeparateContender(coding[0]), SeparateContender(coding[0], DESIGN_SNR_DB)],
        PRESETS["lab"],
        [Condition(ratio=8, snr_db=0.0), Condition(ratio=8), Condition(ratio=8, neighbour="missing")],
        lambda text, share: told.append(share),
    )
    assert len(chosen) == len(told) == 4
    assert told == sorted(told)
    assert chosen["separate, 16 symbols, 0 dB"] == str(coding[0].scheme(16, 0.0))
    assert chosen["separate-fixed, 16 symbols, 0 dB"] == chosen["separate, 16 symbols, 10 dB"]

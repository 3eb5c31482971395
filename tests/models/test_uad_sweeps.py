"""Sweeps over conditions: same slots for all, thresholds from other slots, and counts that add up."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from semair.errors import ScenarioError
from semair.models.uad.evaluate import DetectorSetup
from semair.models.uad.preambles import qpsk_preambles
from semair.models.uad.sweeps import Condition, Contender, Evaluation, as_json, contenders, draw_slots, sweeps

SMALL = Condition(length=6, n_snapshots=16, n_users=24, max_length=10)
EVERYONE = Contender(DetectorSetup("cd", {"threshold": -1.0}, "everyone"))
NOBODY = Contender(DetectorSetup("cd", {"threshold": 1e12}, "nobody"), share=0.5)


def drawn(condition, n, purpose="evaluation", seed=1):
    pieces = list(draw_slots(condition, n, seed, purpose))
    return np.concatenate([batch.y for _, _, batch in pieces]), [pool for _, pool, _ in pieces]


def test_first_slots_are_the_same_whatever_their_number():
    few, _ = drawn(SMALL, 30)
    many, _ = drawn(SMALL, 260)
    assert many.shape == (260, 6, 16)
    np.testing.assert_array_equal(many[:30], few)


def test_purposes_seeds_and_conditions_have_slots_of_their_own():
    base, _ = drawn(SMALL, 20)
    for other in (
        drawn(SMALL, 20, "calibration")[0],
        drawn(SMALL, 20, seed=2)[0],
        drawn(replace(SMALL, activity=0.2), 20)[0],
        drawn(replace(SMALL, snr_db=12.0), 20)[0],
    ):
        assert not np.isclose(np.abs(base).sum(), np.abs(other).sum(), rtol=1e-9)


def test_pools_are_that_of_training_or_fresh_ones():
    _, pools = drawn(SMALL, 500)
    expected = qpsk_preambles(24, 10, np.random.default_rng(1))
    assert all(np.array_equal(pool, expected) for pool in pools)
    _, fresh = drawn(replace(SMALL, fresh_pool=True), 40)
    assert len(fresh) == 8
    _, calibration = drawn(replace(SMALL, fresh_pool=True), 40, "calibration")
    different = {pool.tobytes() for pool in [expected, *fresh, *calibration]}
    assert len(different) == 17


@pytest.mark.parametrize("channel", ["array", "lab"])
def test_correlated_channels_have_the_power_they_say(channel):
    pytest.importorskip("torch")
    condition = Condition(length=8, channel=channel, snr_db=7.0)
    pieces = [batch for _, _, batch in draw_slots(condition, 120, 3, "evaluation")]
    y = np.concatenate([batch.y for batch in pieces])
    assert y.shape == (120, 8, 64)
    noise = 12.8 / 10**0.7
    np.testing.assert_allclose(pieces[0].noise_power, noise, rtol=1e-6)
    # 1536 links of unit mean power over correlated snapshots: a standard deviation of a few per cent.
    assert np.mean(np.abs(y) ** 2) == pytest.approx(12.8 + noise, rel=0.12)


def test_rates_that_are_known_beforehand():
    everyone, nobody = Evaluation([EVERYONE, NOBODY], 300, 1).rows(SMALL, curves=True)
    assert (everyone.miss, everyone.false_alarm, everyone.n_slots) == (0, 1, 300)
    assert (nobody.miss, nobody.false_alarm, nobody.n_slots) == (1, 0, 150)
    # 7200 activities of probability 0.1: standard deviation 0.0035.
    assert everyone.error.value == pytest.approx(0.9, abs=5 * 0.0035)
    assert np.mean(nobody.wrong + everyone.wrong[:150]) == pytest.approx(24)
    assert everyone.over_cd is None
    points = np.array(everyone.curve)
    assert points.min() >= 0
    assert points.max() <= 1
    # All active, and nobody.
    assert {(1.0, 0.0), (0.0, 1.0)} <= set(everyone.curve)


def test_ratios_are_those_of_the_same_slots():
    cd, somp = Evaluation([Contender(DetectorSetup("cd"), True), Contender(DetectorSetup("somp"), True)], 200, 1).rows(
        SMALL
    )
    assert cd.over_cd is None
    assert somp.over_cd.value == pytest.approx(somp.wrong.sum() / cd.wrong.sum())
    assert somp.over_cd.low < somp.over_cd.value < somp.over_cd.high


def test_calibrated_threshold_is_found_and_used():
    row, own = Evaluation(
        [Contender(DetectorSetup("cd"), True), Contender(DetectorSetup("cd", {}, "own"))], 400, 1
    ).rows(SMALL)
    assert row.threshold != own.threshold
    # On other slots of the same condition the best threshold is hardly worse than the shipped one of another scenario.
    assert row.error.value < 1.1 * own.error.value


def test_detectors_of_another_channel_are_left_out():
    only_lab = replace(NOBODY, channels=("lab",))
    assert [row.detector for row in Evaluation([EVERYONE, only_lab], 4, 1).rows(SMALL)] == ["everyone"]


def test_results_do_not_depend_on_company():
    cd = Contender(DetectorSetup("cd"), True)
    alone = Evaluation([cd], 60, 1).rows(SMALL)[0].as_dict()
    together = Evaluation([EVERYONE, cd, NOBODY], 60, 1).rows(SMALL)[1].as_dict()
    assert alone == together


def test_json_holds_everything_but_single_slots():
    rows = Evaluation([EVERYONE, Contender(DetectorSetup("cd"), True)], 20, 1).rows(SMALL, curves=True)
    content = json.loads(json.dumps(as_json({"length": rows}, {"seed": 1}), allow_nan=False))
    first = content["sweeps"]["length"][0]
    assert first["condition"]["length"] == 6
    assert first["error"] == list(rows[0].error)
    assert "wrong" not in first


@pytest.mark.parametrize("quick", [True, False])
def test_sweeps_vary_what_they_say_and_nothing_else(quick):
    known = sweeps(quick)
    assert list(known) == ["length", "snapshots", "activity", "snr", "channel", "pool"]
    for sweep in known.values():
        assert len(sweep.conditions) == len(sweep.slots) > 1
        values = {getattr(condition, sweep.axis) for condition in sweep.conditions}
        assert len(values) > 1
    if not quick:
        assert {c.length for c in known["length"].conditions} >= set(range(8, 17)) | {28}
        assert {c.n_snapshots for c in known["snapshots"].conditions} >= {16, 64, 256}
        assert {c.channel for c in known["channel"].conditions} == {"array", "lab"}


def test_contenders_by_name():
    chosen = {one.setup.title: one for one in contenders(["cd", "gmmv-amp", "map-search"])}
    assert chosen["cd"].calibrated
    assert not chosen["map-search"].calibrated
    assert chosen["gmmv-amp"].share < chosen["cd"].share == 1
    with pytest.raises(ScenarioError, match="'omp' is unknown"):
        contenders(["omp"])


def test_counts_below_what_intervals_need():
    for chosen, slots in (([], 10), ([EVERYONE], 1)):
        with pytest.raises(ScenarioError, match="at least 2 slots and 1 detector"):
            Evaluation(chosen, slots, 1)

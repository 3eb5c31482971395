"""The closed loop decides round by round, and says what became of everybody: its rules, without radios."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")

from hypothesis import given
from hypothesis import strategies as st
from semair.errors import ScenarioError
from semair.flowgraphs.closed_loop import (
    ACCESS,
    FEEDBACK,
    LOOP_DTYPE,
    PICTURES,
    STAGES,
    Access,
    Cause,
    answering_slots,
    counted_causes,
    granted_users,
    loop_table,
    require_loop,
    stage_scenarios,
)
from semair.flowgraphs.closed_loop_metrics import ideal_slots
from semair.flowgraphs.scenario import load_scenario, parse_scenario, scenario_dict

N_USERS, N_SLOTS = 5, 2


def access(*detected: int, scores: tuple[float, ...] = (0.5,) * N_USERS) -> Access:
    return Access(detected, np.array(scores))


@given(
    detected=st.sets(st.integers(0, N_USERS - 1)),
    scores=st.lists(st.floats(-1e3, 1e3), min_size=N_USERS, max_size=N_USERS),
    n_slots=st.integers(1, 4),
)
def test_slots_go_to_the_highest_scores_among_those_found(detected, scores, n_slots):
    granted = granted_users(access(*sorted(detected), scores=tuple(scores)), n_slots)
    assert len(granted) == min(n_slots, len(detected))
    assert set(granted) <= detected
    left = detected - set(granted)
    assert all(scores[one] >= scores[other] for one in granted for other in left)
    assert [scores[user] for user in granted] == sorted((scores[user] for user in granted), reverse=True)


def test_a_lost_frame_grants_nothing_and_equal_scores_go_by_number():
    assert granted_users(None, N_SLOTS) == ()
    assert granted_users(access(4, 1, 3), N_SLOTS) == (1, 3)


def test_slots_of_false_alarms_stay_silent():
    active = np.array([True, False, True, False, False])
    assert answering_slots((3, 2), active) == (1,)
    assert answering_slots((0, 2), active) == (0, 1)
    assert answering_slots((), active) == ()


def table_of(**changes):
    """One round: users 0 to 3 are active; 1, 2 and 3 are found, and 4, who is not."""
    scores = (0.0, 0.9, 0.7, 0.2, 0.8)
    given = {
        "active": np.array([[True, True, True, True, False]]),
        "access": {0: access(1, 2, 3, 4, scores=scores)},
        "answered": {0: (0,)},
        "recovered": {0: {0: -12.0}},
        "shown": {0: {0: (22.0, 0.8, 23.0)}},
        "reached": lambda stage, number: True,
        **changes,
    }
    shown, reached = given.pop("shown"), given.pop("reached")
    return loop_table(1, N_SLOTS, **given, reckoned_nmse_db=-10.0, shown=shown, reached=reached)


def causes(table):
    return [str(cause) for cause in table["cause"]]


def test_everybody_is_told_what_became_of_it():
    table = table_of()
    assert causes(table) == ["missed", "served", "waiting", "waiting", "false alarm"]
    assert table["slot"].tolist() == [-1, 0, -1, -1, 1]
    assert table["answered"].tolist() == [False, True, False, False, False]
    served = table[1]
    assert (served["csi_nmse_db"], served["reckoned_nmse_db"]) == (-12.0, -10.0)
    assert (served["psnr_db"], served["ms_ssim"], served["symbol_psnr_db"]) == (22.0, 0.8, 23.0)
    assert np.isnan(table["psnr_db"][[0, 2, 3, 4]]).all()
    assert np.isnan(table["ms_ssim"][[0, 2, 3, 4]]).all()
    assert counted_causes(table) == {
        "served": 1,
        "missed": 1,
        "waiting": 2,
        "csi_lost": 0,
        "picture_lost": 0,
        "false_alarm": 1,
        "not_done": 0,
    }


def test_csi_and_pictures_that_are_lost_are_told_apart():
    assert causes(table_of(answered={0: ()}, recovered={}, shown={}))[1] == "csi lost"
    assert causes(table_of(shown={}))[1] == "picture lost"


def test_a_false_alarm_whose_noise_was_decoded_is_served_in_vain():
    table = table_of(recovered={0: {0: -12.0, 1: -0.1}}, shown={0: {0: (22.0, 0.8, 23.0), 1: (9.0, 0.1, 9.0)}})
    assert causes(table)[4] == "false alarm"
    assert table["served"][4] and not table["answered"][4]
    assert not table["received"][4] and math.isnan(table["psnr_db"][4])


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (None, ["not done", "not done", "not done", "not done", "silent"]),
        (ACCESS, ["missed", "not done", "waiting", "waiting", "false alarm"]),
        (FEEDBACK, ["missed", "not done", "waiting", "waiting", "false alarm"]),
        (PICTURES, ["missed", "served", "waiting", "waiting", "false alarm"]),
    ],
)
def test_what_an_interrupted_run_did_not_come_to_is_no_error_of_a_stage(last, expected):
    reached = () if last is None else STAGES[: STAGES.index(last) + 1]
    changes: dict = {"reached": lambda stage, number: stage in reached}
    if ACCESS not in reached:
        changes["access"] = {}
    if FEEDBACK not in reached:
        changes |= {"answered": {}, "recovered": {}}
    if PICTURES not in reached:
        changes["shown"] = {}
    table = table_of(**changes)
    assert causes(table) == expected
    assert table["served"].any() == (PICTURES in reached)


def test_a_lost_access_frame_costs_everybody_the_round():
    assert causes(table_of(access={}, answered={}, recovered={}, shown={})) == ["missed"] * 4 + ["silent"]


def test_without_errors_of_access_slots_go_to_active_users_who_keep_theirs():
    rows = np.zeros(4, LOOP_DTYPE)
    rows["active"] = [True, True, True, False]
    rows["score"] = [0.1, 0.9, 0.5, 1.0]
    rows["slot"] = -1
    # User 3 is a false alarm with the first slot, user 1 got the second.
    rows["granted"][[3, 1]], rows["slot"][[3, 1]] = True, [0, 1]
    assert ideal_slots(rows, 2) == {0: 2, 1: 1}
    rows["active"] = False
    assert ideal_slots(rows, 2) == {}


def test_every_cause_has_a_meaning_of_its_own():
    assert len({cause.meaning for cause in Cause}) == len(Cause)
    assert max(len(cause.value) for cause in Cause) <= LOOP_DTYPE["cause"].itemsize // 4


# --- the scenario


def test_the_downlink_is_a_scenario_with_other_values():
    scenario = load_scenario("closed-loop", ["loop.downlink.csi.snr_db=7", "seed=5", 'level="wireless"'])
    assert scenario.kind == "closed-loop"
    downlink, plain = require_loop(scenario).downlink, load_scenario("semantic-lab")
    assert (downlink.csi.snr_db, downlink.seed, downlink.level) == (7, 5, "wireless")
    assert downlink.pictures == plain.pictures
    assert downlink.impairments == load_scenario("semantic-lab", ['level="wireless"']).impairments
    assert parse_scenario(json.loads(json.dumps(scenario_dict(scenario))), "again") == scenario
    assert load_scenario("closed-loop", ["loop.downlink.seed=9"]).loop.downlink.seed == 9


def test_each_stage_has_a_scenario_of_its_link():
    stages = stage_scenarios(load_scenario("closed-loop"))
    kinds = {stage: scenario.kind for stage, scenario in stages.items()}
    assert kinds == {ACCESS: "random-access", FEEDBACK: "csi-feedback", PICTURES: "semantic-downlink"}
    # The same drops: the channel of a round is that of both.
    assert stages[FEEDBACK].csi == stages[PICTURES].csi
    assert stages[FEEDBACK].seed == stages[PICTURES].seed


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("loop.rounds=0", "loop.rounds"),
        ("loop.slots=3", "allowed here: rounds, downlink"),
        ("loop.downlink.csi.colour=1", "loop.downlink.csi.colour: unknown field"),
        ('loop.downlink="csi-lab"', "one of kind csi-feedback; choose semantic-lab"),
        ('loop.downlink="nowhere"', "nowhere.*neither a file nor a shipped scenario"),
        ("loop.downlink.radio.n_antennas=2", "it is one base station"),
        ("csi={n_users=2}", "csi"),
        ('terminals=[{kind="iio", address="ip:1.2.3.4"}]', "terminals"),
    ],
)
def test_wrong_fields_are_explained(override, words):
    with pytest.raises(ScenarioError, match=words):
        load_scenario("closed-loop", [override])


def test_another_scenario_is_no_loop():
    with pytest.raises(ScenarioError, match="no section \\[loop\\]; choose closed-loop"):
        require_loop(load_scenario("lab"))

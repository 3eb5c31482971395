"""The closed loop: who is granted, who answers, who is served, and what became of whom, round by round.

A round is a frame of random access, one of CSI feedback and one of the picture downlink. What is decided in one goes
into the next; what a stage gets wrong, the next ones have to live with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from ..errors import ScenarioError
from .runfolder import unpack_users
from .scenario import Loop, Scenario

ACCESS, FEEDBACK, PICTURES = STAGES = ("access", "feedback", "pictures")
"""Stages of a round, and the folders of their runs."""


class Cause(StrEnum):
    """What became of a user in a round."""

    SERVED = "served"
    MISSED = "missed"
    WAITING = "waiting"
    CSI_LOST = "csi lost"
    PICTURE_LOST = "picture lost"
    FALSE_ALARM = "false alarm"
    NOT_DONE = "not done"
    SILENT = "silent"

    @property
    def meaning(self) -> str:
        """For people."""
        return _MEANINGS[self]


_MEANINGS = {
    Cause.SERVED: "its picture was precoded with its CSI, and it decoded it",
    Cause.MISSED: "it asked, and the detector did not find it",
    Cause.WAITING: "it was found, and all slots were taken by users with higher scores",
    Cause.CSI_LOST: "it had a slot, and its CSI did not reach the base station, which then sent it nothing",
    Cause.PICTURE_LOST: "its picture was sent, and it did not receive the frame",
    Cause.FALSE_ALARM: "it asked for nothing, and was found: where it got a slot, the slot was wasted",
    Cause.NOT_DONE: "it asked, and the run ended before the round did",
    Cause.SILENT: "it asked for nothing, and was not found",
}

LOOP_DTYPE = np.dtype(
    [
        ("round", "<i8"),
        ("user", "<i4"),
        ("active", "?"),
        ("detected", "?"),
        ("score", "<f8"),
        ("granted", "?"),
        ("slot", "<i4"),
        ("answered", "?"),
        ("recovered", "?"),
        ("csi_nmse_db", "<f8"),
        ("reckoned_nmse_db", "<f8"),
        ("served", "?"),
        ("picture", "<i8"),
        ("received", "?"),
        ("psnr_db", "<f8"),
        ("ms_ssim", "<f8"),
        ("symbol_psnr_db", "<f8"),
        ("perfect_psnr_db", "<f8"),
        ("ideal_psnr_db", "<f8"),
        ("cause", "<U12"),
    ]
)
"""One row per round and user. `slot` is -1 and figures are NaN where there are none; `csi_nmse_db` is against truth,
`reckoned_nmse_db` what the base station took for it; `picture` is the number of the picture that the user wants.
PSNR without radio and synchronisation: `symbol_` with the CSI that was fed back, `perfect_` with the true one, and
`ideal_` where access made no error either."""

NOT_REPLAYED = ("perfect_psnr_db", "ideal_psnr_db")
"""Fields that a replay takes over from the run."""


@dataclass(frozen=True)
class Access:
    """What random access decided in a round.

    Attributes:
        detected: users found, ascending.
        scores: float64, (user,): of the detector; higher is surer.
    """

    detected: tuple[int, ...]
    scores: np.ndarray


def require_loop(scenario: Scenario) -> Loop:
    """The section of the closed loop.

    Raises:
        ScenarioError: there is none.
    """
    if scenario.loop is None:
        raise ScenarioError(
            f"scenario {scenario.name} has no section [loop]; choose closed-loop, or add the section with "
            'downlink = "semantic-lab"'
        )
    return scenario.loop


def stage_scenarios(scenario: Scenario) -> dict[str, Scenario]:
    """The scenario of each stage, by its name."""
    downlink = require_loop(scenario).downlink
    return {
        ACCESS: scenario.model_copy(update={"loop": None, "name": f"{scenario.name}-access"}),
        FEEDBACK: downlink.model_copy(update={"pictures": None, "name": f"{scenario.name}-feedback"}),
        PICTURES: downlink.model_copy(update={"name": f"{scenario.name}-pictures"}),
    }


def access_decisions(rows: np.ndarray, n_users: int) -> dict[int, Access]:
    """Decisions of random access by round; of several on one frame, the first."""
    found: dict[int, Access] = {}
    for row, active in zip(rows, unpack_users(rows["active"], n_users), strict=True):
        detected = tuple(int(user) for user in np.flatnonzero(active))
        found.setdefault(int(row["frame"]), Access(detected, np.array(row["scores"], float)))
    return found


def granted_users(access: Access | None, n_slots: int) -> tuple[int, ...]:
    """Users that get a slot, in the order of the slots: those found with the highest scores.

    Args:
        access: of the round; None where its frame was lost: nobody is granted anything.
        n_slots: of a round.
    """
    if access is None:
        return ()
    # Equal scores go by number.
    ranked = sorted(access.detected, key=lambda user: (-access.scores[user], user))
    return tuple(ranked[:n_slots])


def answering_slots(granted: Sequence[int], active: np.ndarray) -> tuple[int, ...]:
    """Slots whose user is really there; those of false alarms stay silent.

    Args:
        granted: users, in the order of the slots.
        active: bool, (user,): truth.
    """
    return tuple(slot for slot, user in enumerate(granted) if active[user])


def wanted_picture(round_number: int, user: int, n_users: int) -> int:
    """Number of the picture that a user asks for in a round."""
    return round_number * n_users + user


def cause_of(row: np.void, reached: Mapping[str, bool]) -> Cause:
    """What became of a user.

    Args:
        row: of the table, with all but the cause.
        reached: by stage, whether the run came as far in this round.
    """
    if not row["active"]:
        return Cause.FALSE_ALARM if row["detected"] else Cause.SILENT
    if row["received"]:
        return Cause.SERVED
    if row["served"]:
        return Cause.PICTURE_LOST
    if row["granted"]:
        return Cause.CSI_LOST if reached[FEEDBACK] and not row["recovered"] else Cause.NOT_DONE
    if row["detected"]:
        return Cause.WAITING
    return Cause.MISSED if reached[ACCESS] else Cause.NOT_DONE


def loop_table(
    n_rounds: int,
    n_slots: int,
    active: np.ndarray,
    access: Mapping[int, Access],
    answered: Mapping[int, Sequence[int]],
    recovered: Mapping[int, Mapping[int, float]],
    reckoned_nmse_db: float,
    shown: Mapping[int, Mapping[int, tuple[float, float, float]]],
    reached: Callable[[str, int], bool],
) -> np.ndarray:
    """The table of a loop.

    Args:
        n_rounds: of the run.
        n_slots: of a round.
        active: bool, (round, user): truth.
        access: decisions by round.
        answered: slots that sent CSI, by round.
        recovered: error in dB against truth, by slot that the base station has CSI of, by round; NaN where there is no
            truth.
        reckoned_nmse_db: error of CSI that the base station reckons with.
        shown: PSNR in dB, MS-SSIM, and PSNR at symbol level, by slot whose picture was decoded, by round.
        reached: whether the run came as far, by stage and round.

    Returns:
        Of `LOOP_DTYPE`, (round * user,).
    """
    n_users = active.shape[1]
    table = np.zeros((n_rounds, n_users), LOOP_DTYPE)
    table["slot"] = -1
    for name in LOOP_DTYPE.names or ():
        if LOOP_DTYPE[name].kind == "f":
            table[name] = np.nan
    for number, rows in enumerate(table):
        stages = {stage: reached(stage, number) for stage in STAGES}
        rows["round"], rows["user"] = number, np.arange(n_users)
        rows["active"] = active[number]
        rows["picture"] = [wanted_picture(number, user, n_users) for user in range(n_users)]
        found = access.get(number)
        if found is not None:
            rows["score"] = found.scores
            rows["detected"][list(found.detected)] = True
        known, seen = recovered.get(number, {}), shown.get(number, {})
        for slot, user in enumerate(granted_users(found, n_slots)):
            row = rows[user]
            row["granted"], row["slot"] = True, slot
            row["answered"] = slot in answered.get(number, ())
            if slot in known:
                row["recovered"], row["served"] = True, stages[PICTURES]
                row["csi_nmse_db"], row["reckoned_nmse_db"] = known[slot], reckoned_nmse_db
            # At a false alarm's place nobody looks.
            if slot in seen and row["active"]:
                row["received"] = True
                row["psnr_db"], row["ms_ssim"], row["symbol_psnr_db"] = seen[slot]
        rows["cause"] = [cause_of(row, stages).value for row in rows]
    return table.reshape(-1)


def counted_causes(table: np.ndarray) -> dict[str, int]:
    """How often each cause occurred, but silence; words joined by underscores."""
    return {
        cause.value.replace(" ", "_"): int(np.count_nonzero(table["cause"] == cause.value))
        for cause in Cause
        if cause is not Cause.SILENT
    }

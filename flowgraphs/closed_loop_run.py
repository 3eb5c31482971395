"""Running the closed loop live, and replaying it: its three links one after the other, over the same rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..blocks.picture_transmitter import Serve, Served
from ..blocks.playback import PlayOptions
from ..blocks.waveforms.sounding import from_delay_angle
from ..captures.collection import open_collection, write_collection
from ..errors import RecordingError, ScenarioError
from .closed_loop import (
    ACCESS,
    FEEDBACK,
    LOOP_DTYPE,
    NOT_REPLAYED,
    PICTURES,
    STAGES,
    Access,
    Cause,
    access_decisions,
    answering_slots,
    granted_users,
    loop_table,
    require_loop,
    stage_scenarios,
    wanted_picture,
)
from .closed_loop_metrics import add_bounds, loop_metrics
from .csi_feedback_run import CHANNELS, run_csi_feedback
from .csi_feedback_run import make_codec as make_csi_codec
from .link_run import OnProgress, Progress, ReplayResult, RunResult, compare_rows, require_reproduced
from .links import kind_of_run, module_of
from .picture_schedule import DrawnPictures, Pictures
from .recording import collection_name
from .rowlog import RowLog
from .run import make_detector, run_random_access
from .runfolder import RunFolder, provenance, unpack_users
from .scenario import Scenario, scenario_dict
from .semantic_downlink_run import make_picture_codec, run_semantic_downlink
from .semantic_metrics import JUDGED, SENT, csi_nmse_db, judge_pictures, last_whole_frame

KIND = "closed-loop"
LOOP = "loop.npy"
"""Table of what became of every user in every round; see `closed_loop.LOOP_DTYPE`."""
WANTED = "wanted.npy"
"""Table of the pictures that active users asked for; one row per round and such user, of the first rounds."""

KEPT_ROUNDS = 60
"""Rounds whose wanted pictures are kept, for the report."""


def wanted_dtype(side: int) -> np.dtype:
    """One row per round and active user."""
    return np.dtype([("round", "<i8"), ("user", "<i4"), ("picture", "u1", (side, side, 3))])


def run_closed_loop(
    scenario: Scenario,
    folder: Path,
    *,
    n_frames: int | None = None,
    record: bool = True,
    receive: bool = True,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
    duration_s: float | None = None,
    size_bytes: float | None = None,
    pictures: Pictures | None = None,
) -> RunResult:
    """Run access, CSI feedback and pictures over the scenario's radio, and leave a folder with a run of each.

    Each stage is a run of its own below the folder, over the same rounds: who is found in the access slot is told to
    CSI feedback, whose CSI is told to the picture downlink. What one stage gets wrong, the next ones live with.

    Args:
        scenario: the experiment, with a section `loop`.
        folder: to make.
        n_frames: rounds; None: as many as the scenario says.
        record: keep the received and the transmitted samples.
        receive: must be true, for each stage depends on the one before.
        overwrite: replace an earlier run in this folder.
        on_progress: called about twenty times a second, for all stages together.
        duration_s: must be None: a round is the unit here.
        size_bytes: must be None.
        pictures: that users ask for, each by a number of its own; None: drawn ones.

    Returns:
        Folder, metrics, and whether Ctrl-C ended it. Rounds that it kept from their end are in the table as such.

    Raises:
        SemairError: anything a user can mend; what was recorded before is kept.
    """
    loop = require_loop(scenario)
    if not receive or duration_s is not None or size_bytes is not None:
        raise ScenarioError(
            "a closed loop decides while it runs, round by round: it cannot only record, or end at a duration or size; "
            "use `semair run closed-loop --rounds N`"
        )
    if n_frames is not None and n_frames < 1:
        raise ScenarioError(f"rounds={n_frames}: there must be at least 1")
    rounds = n_frames or loop.rounds
    stages = stage_scenarios(scenario)
    told, shown = stages[FEEDBACK].csi, stages[PICTURES].pictures
    assert told is not None and shown is not None
    if told.n_users > scenario.users.n_users:
        raise ScenarioError(
            f"loop.downlink.csi.n_users={told.n_users} slots for users.n_users={scenario.users.n_users}: there are "
            "more slots than users; make them fewer"
        )
    # What does not fit is found before a folder is made.
    make_detector(stages[ACCESS])
    make_csi_codec(stages[FEEDBACK])
    codec = make_picture_codec(stages[PICTURES])
    source = pictures or DrawnPictures(shown.side, scenario.seed)
    run = RunFolder(folder)
    run.create(overwrite)
    info = {
        "format": 1,
        "kind": KIND,
        **provenance(),
        "scenario": scenario_dict(scenario),
        "rounds": rounds,
        "pictures": {"name": source.name, "skipped": source.skipped},
    }
    run.write_json(run.run_json, info)
    begin = time.monotonic()
    progress = _Staged(on_progress, rounds)
    interrupted = False
    # Ctrl-C between two flowgraphs comes as it is.
    with suppress(KeyboardInterrupt):
        interrupted = True
        interrupted = _run_stages(run, scenario, source, rounds, record, progress)
    table = read_table(run, scenario, rounds)
    last = reached_round(RunFolder(run.path / PICTURES), rounds)
    with suppress(KeyboardInterrupt):
        add_bounds(table, stages[PICTURES], source, codec, last, progress.judged)
    _write_tables(run, table, source, shown.side)
    if record:
        _seal(run, scenario, complete=not interrupted)
    metrics = loop_metrics(run, table, interrupted=interrupted, wall_s=time.monotonic() - begin)
    run.write_json(run.metrics, metrics)
    return RunResult(run, metrics, interrupted)


class _Staged:
    """Tells the progress of all stages together."""

    def __init__(self, on_progress: OnProgress | None, per_stage: int) -> None:
        self._on_progress = on_progress
        self._per_stage = per_stage

    def of(self, number: int, stage: str) -> OnProgress | None:
        """What a stage is to call."""
        if self._on_progress is None:
            return None
        tell = self._on_progress

        def staged(state: Progress) -> None:
            done = number * self._per_stage
            remark = state.remark or f"{state.wrong} wrong user decisions"
            tell(
                replace(
                    state,
                    sent=done + state.sent,
                    decided=done + min(state.decided, self._per_stage),
                    expected=len(STAGES) * self._per_stage,
                    recorder=None,
                    remark=f"stage {number + 1} of {len(STAGES)}, {stage}: {remark}",
                )
            )

        return staged

    def judged(self, number: int) -> None:
        """The pictures of a round were compared with what had been possible."""
        if self._on_progress is not None:
            whole = len(STAGES) * self._per_stage
            remark = f"judging pictures, round {number + 1} of {self._per_stage}"
            self._on_progress(Progress(sent=whole, decided=whole, expected=whole, remark=remark))


def _run_stages(
    run: RunFolder, scenario: Scenario, pictures: Pictures, rounds: int, record: bool, progress: _Staged
) -> bool:
    """Run one stage after the other; tells whether Ctrl-C ended it."""
    stages = stage_scenarios(scenario)
    told = stages[FEEDBACK].csi
    assert told is not None
    common: dict[str, Any] = {"n_frames": rounds, "record": record}
    done = run_random_access(stages[ACCESS], run.path / ACCESS, on_progress=progress.of(0, ACCESS), **common)
    if done.interrupted:
        return True
    access = access_decisions(done.folder.rows(done.folder.decisions), scenario.users.n_users)
    active = active_users(done.folder, rounds, scenario.users.n_users)
    granted = [granted_users(access.get(number), told.n_users) for number in range(rounds)]
    answering = [answering_slots(users, active[number]) for number, users in enumerate(granted)]
    done = run_csi_feedback(
        stages[FEEDBACK],
        run.path / FEEDBACK,
        on_progress=progress.of(1, FEEDBACK),
        answering=answering,
        **common,
    )
    if done.interrupted:
        return True
    decided = done.folder.rows(done.folder.decisions)
    serve = serving(stages[PICTURES], granted, decided, pictures, scenario.users.n_users)
    done = run_semantic_downlink(
        stages[PICTURES], run.path / PICTURES, on_progress=progress.of(2, PICTURES), serve=serve, **common
    )
    return done.interrupted


def active_users(access: RunFolder, rounds: int, n_users: int) -> np.ndarray:
    """Who really asked, as the access stage drew it; bool, (round, user)."""
    truth = access.rows(access.truth)
    active = np.zeros((rounds, n_users), bool)
    known = truth["frame"] < rounds
    active[truth["frame"][known]] = unpack_users(truth["active"][known], n_users)
    return active


def recovered_slots(rows: np.ndarray, granted: Sequence[Sequence[int]], n_slots: int) -> dict[int, dict[int, np.void]]:
    """Rows of the table of CSI feedback, by slot that was granted and decoded, by round."""
    found: dict[int, dict[int, np.void]] = {}
    for row, decoded in zip(rows, unpack_users(rows["active"], n_slots), strict=True):
        number = int(row["frame"])
        if number < len(granted):
            slots = [int(slot) for slot in np.flatnonzero(decoded) if slot < len(granted[number])]
            found.setdefault(number, dict.fromkeys(slots, row))
    return found


def reckoned_nmse_db(scenario: Scenario) -> float:
    """Error of recovered CSI that the base station can know of: what the codec's card says of SNR and length."""
    from ..models.semantic.downlink import expected_nmse_db

    told = scenario.csi
    assert told is not None
    return expected_nmse_db(told.model, told.feedback_length, told.snr_db)


def serving(
    scenario: Scenario, granted: Sequence[Sequence[int]], decided: np.ndarray, pictures: Pictures, n_users: int
) -> Serve:
    """What the picture downlink is to send in each round: to every slot of which CSI was recovered.

    Args:
        scenario: of the downlink.
        granted: users in the order of their slots, by round.
        decided: table of CSI feedback.
        pictures: by number.
        n_users: that there are.
    """
    told = scenario.csi
    assert told is not None
    known = recovered_slots(decided, granted, told.n_users)
    reckoned = reckoned_nmse_db(scenario)

    def serve(number: int) -> Served:
        rows = known.get(number, {})
        if not rows:
            return Served()
        slots = tuple(sorted(rows))
        csi = np.stack([from_delay_angle(rows[slot]["csi"][slot], told.n_subcarriers) for slot in slots])
        wanted = [pictures[wanted_picture(number, granted[number][slot], n_users)] for slot in slots]
        return Served(slots, np.stack(wanted), csi.astype(np.complex64), reckoned)

    return serve


def read_table(
    run: RunFolder, scenario: Scenario, rounds: int, of: Callable[[RunFolder], RunFolder] = lambda stage: stage
) -> np.ndarray:
    """The table of a loop, from the tables of its stages.

    Args:
        run: of the loop.
        scenario: of the loop.
        rounds: of the run.
        of: the folder whose decisions count, by the folder of a stage: itself, or that of a replay.

    Returns:
        Of `LOOP_DTYPE`, without what would have been possible.
    """
    stages = stage_scenarios(scenario)
    told, n_users = stages[FEEDBACK].csi, scenario.users.n_users
    assert told is not None
    folders = {stage: RunFolder(run.path / stage) for stage in STAGES}
    active = np.zeros((rounds, n_users), bool)
    access: dict[int, Access] = {}
    answered: dict[int, tuple[int, ...]] = {}
    recovered: dict[int, dict[int, float]] = {}
    shown: dict[int, dict[int, tuple[float, float, float]]] = {}
    last = {stage: reached_round(folders[stage], rounds, of(folders[stage])) for stage in STAGES}

    def decided(stage: str) -> np.ndarray:
        place = of(folders[stage])
        rows = place.rows(place.decisions)
        return rows[rows["frame"] <= last[stage]]

    if last[ACCESS] >= 0:
        live = folders[ACCESS]
        active = active_users(live, rounds, n_users)
        access = access_decisions(decided(ACCESS), n_users)
    granted = [granted_users(access.get(number), told.n_users) for number in range(rounds)]
    if last[FEEDBACK] >= 0:
        live = folders[FEEDBACK]
        truth = live.rows(live.truth)
        for row, users in zip(truth, unpack_users(truth["active"], told.n_users), strict=True):
            answered[int(row["frame"])] = tuple(int(slot) for slot in np.flatnonzero(users))
        channels = live.rows(live.path / CHANNELS)
        true = dict(zip(channels["frame"].tolist(), channels["h"], strict=True))
        for number, rows in recovered_slots(decided(FEEDBACK), granted, told.n_users).items():
            recovered[number] = {
                slot: csi_nmse_db(true[number][slot], from_delay_angle(row["csi"][slot], told.n_subcarriers))
                for slot, row in rows.items()
            }
    if last[PICTURES] >= 0:
        live = folders[PICTURES]
        place = of(live)
        # A run that was killed has not judged its pictures.
        judged = (
            place.rows(place.path / JUDGED)
            if (place.path / JUDGED).is_file()
            else judge_pictures(live, decided(PICTURES), stages[PICTURES], None)
        )
        for row in judged[judged["frame"] <= last[PICTURES]]:
            figures = (float(row["psnr_db"]), float(row["ms_ssim"]), float(row["symbol_psnr_db"]))
            shown.setdefault(int(row["frame"]), {})[int(row["user"])] = figures
    return loop_table(
        rounds,
        told.n_users,
        active,
        access,
        answered,
        recovered,
        reckoned_nmse_db(stages[FEEDBACK]),
        shown,
        lambda stage, number: number <= last[stage],
    )


def reached_round(stage: RunFolder, rounds: int, decided: RunFolder | None = None) -> int:
    """The last round that a stage came to; -1: none.

    Args:
        stage: folder of its run.
        rounds: that it was to come to.
        decided: folder of a replay; what an interrupted run decided may not all have reached the disk.
    """
    if not stage.decisions.is_file():
        return -1
    if stage.metrics.is_file() and not stage.read_json(stage.metrics)["counts"].get("interrupted"):
        return rounds - 1
    decisions = [place.rows(place.decisions) for place in (stage, decided or stage)]
    if (stage.path / SENT).is_file():
        sent = stage.rows(stage.path / SENT)
        return min(last_whole_frame(sent, rows) for rows in decisions)
    return min(int(rows["frame"].max(initial=-1)) for rows in decisions)


def _write_tables(run: RunFolder, table: np.ndarray, pictures: Pictures, side: int) -> None:
    with RowLog(run.path / LOOP, LOOP_DTYPE) as log:
        log.append(table)
    with RowLog(run.path / WANTED, wanted_dtype(side)) as log:
        done = table["active"] & (table["cause"] != Cause.NOT_DONE) & (table["round"] < KEPT_ROUNDS)
        for row in table[done]:
            wanted = np.zeros((), log.dtype)
            wanted["round"], wanted["user"] = row["round"], row["user"]
            wanted["picture"] = pictures[int(row["picture"])]
            log.append(wanted)


def _seal(run: RunFolder, scenario: Scenario, *, complete: bool) -> None:
    """Write the collection over the recordings and tables of all stages."""
    roles: dict[str, str] = {}
    files = [run.run_json.name, LOOP, WANTED]
    fields: dict[str, Any] = {}
    for stage in STAGES:
        try:
            found = open_collection(run.path / stage)
        except RecordingError:
            # A stage that was not reached.
            continue
        for role, recording in found.recordings.items():
            roles[f"{stage}-{role}"] = f"{stage}/{recording.name}"
        files += [f"{stage}/{name}" for name in found.fields.get("files", {})]
        fields |= {key: found.fields[key] for key in ("software", "path", "origin") if key in found.fields}
    if roles:
        fields |= {"scenario": scenario.name, "seed": scenario.seed, "truth": LOOP, "complete": complete}
        description = "a closed loop: recordings of its stages, each in its own folder"
        write_collection(run.path, collection_name(scenario), roles, fields, description=description, files=files)


def replay_run(
    folder: Path,
    *,
    detector: str | None = None,
    options: dict[str, Any] | None = None,
    play: PlayOptions | None = None,
    speed: float | None = None,
    on_progress: OnProgress | None = None,
    until_frames: int | None = None,
) -> ReplayResult:
    """Drive the receivers of all stages with the recordings of a loop, and build its table anew from their decisions.

    Args:
        folder: of the loop.
        detector: must be None; replay a stage alone with another one.
        options: must be empty.
        play: must be None or the default.
        speed: of the host's clock; 1 is real time. None: as fast as it goes.
        on_progress: called about twenty times a second, for all stages together.
        until_frames: must be None.

    Returns:
        The comparison: decisions of all stages, and of them those that were reproduced.

    Raises:
        ReplayMismatch: a stage decided otherwise, or what became of a user would have been another.
        SemairError: folder or recordings do not fit.
    """
    run = RunFolder(folder)
    scenario = run.scenario()
    require_loop(scenario)
    if detector is not None or options or play not in (None, PlayOptions()) or until_frames is not None:
        raise ScenarioError(
            "a closed loop is replayed as it was, for its stages depend on each other; with other detectors, weights, "
            f"channels or parts of the recording replay a stage alone, e.g. semair replay {folder / ACCESS}"
        )
    present = [stage for stage in STAGES if RunFolder(folder / stage).run_json.is_file()]
    if not present:
        raise RecordingError(f"{folder} holds no run of a stage ({', '.join(STAGES)}); nothing can be replayed")
    rounds = int(run.read_json(run.run_json)["rounds"])
    progress = _Staged(on_progress, rounds)
    results: dict[str, ReplayResult] = {}
    for stage in present:
        place = folder / stage
        results[stage] = module_of(kind_of_run(place)).replay_run(
            place, speed=speed, on_progress=progress.of(STAGES.index(stage), stage)
        )
        if results[stage].interrupted:
            break
    interrupted = any(result.interrupted for result in results.values())
    table = live = run.rows(run.path / LOOP) if (run.path / LOOP).is_file() else np.zeros(0, LOOP_DTYPE)
    if not interrupted:
        table = read_table(run, scenario, rounds, lambda stage: stage.replay("same"))
        for name in NOT_REPLAYED if len(live) == len(table) else ():
            table[name] = live[name]
    again = run.replay("same")
    again.path.mkdir(parents=True, exist_ok=True)
    again.write_json(
        again.run_json,
        {"format": 1, "kind": f"{KIND} replay", **provenance(), "scenario": scenario_dict(scenario), "rounds": rounds},
    )
    with RowLog(again.path / LOOP, LOOP_DTYPE) as log:
        log.append(table)
    wall_s = sum(result.wall_s for result in results.values())
    metrics = loop_metrics(run, table, interrupted=interrupted, wall_s=wall_s, of=lambda s: s.replay("same"))
    again.write_json(again.metrics, metrics)
    if not interrupted and len(live):
        # Behind the last round that an interrupted stage recorded whole, live and replay may differ.
        whole = min(reached_round(RunFolder(folder / stage), rounds, results[stage].folder) for stage in present)
        live = live[live["round"] <= whole]
        _, _, different = compare_rows(live, table, LOOP_DTYPE.names or (), ("round", "user"), "round")
        require_reproduced(folder, "users in rounds", len(live), different)
    equal = [result.equal for result in results.values()]
    return ReplayResult(
        again,
        metrics,
        scenario.detector.name,
        sum(result.live for result in results.values()),
        None if None in equal else sum(count or 0 for count in equal),
        sum(result.extra for result in results.values()),
        sum(result.air_s for result in results.values()),
        wall_s,
        interrupted,
        {},
    )


def replay_recording(path: Path, scenario: Scenario, folder: Path, **_: Any) -> ReplayResult:
    """A loop has no recording of its own.

    Raises:
        ScenarioError: always.
    """
    raise ScenarioError(
        f"scenario {scenario.name} is a closed loop, {path} a recording of one link: name the scenario of that link"
    )

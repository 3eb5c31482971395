"""The report's sections of a closed loop: the story of each round, and what every stage cost."""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..errors import RecordingError
from . import plots
from . import report_sections as build
from .closed_loop import ACCESS, FEEDBACK, PICTURES, STAGES, Cause, require_loop
from .closed_loop_metrics import LATENCIES, loop_metrics
from .closed_loop_run import KEPT_ROUNDS, KIND, LOOP, WANTED, read_table
from .csi_feedback_run import ESTIMATES
from .runfolder import RunFolder
from .scenario import Scenario

_STACK = (
    Cause.SERVED,
    Cause.WAITING,
    Cause.MISSED,
    Cause.CSI_LOST,
    Cause.PICTURE_LOST,
    Cause.FALSE_ALARM,
    Cause.NOT_DONE,
)
_NAMES = {ACCESS: "random access", FEEDBACK: "CSI feedback", PICTURES: "picture downlink"}


@dataclass(frozen=True)
class LoopRun:
    """What lies in the folder of a closed loop or of its replay.

    Attributes:
        folder: that the report is about.
        live: of the loop itself; the same where this is no replay.
        info: run.json of `folder`.
        live_info: run.json of `live`.
        scenario: of the loop.
        table: `closed_loop.LOOP_DTYPE`, (round * user,).
        metrics: metrics.json, or the same computed from the tables.
    """

    folder: RunFolder
    live: RunFolder
    info: dict[str, Any]
    live_info: dict[str, Any]
    scenario: Scenario
    table: np.ndarray
    metrics: dict[str, Any]

    @property
    def is_replay(self) -> bool:
        """Whether this is a replay."""
        return self.folder.path != self.live.path

    def decided(self, stage: str) -> RunFolder:
        """Folder of a stage's decisions."""
        folder = RunFolder(self.live.path / stage)
        return folder.replay("same") if self.is_replay else folder


def is_loop(path: Path) -> bool:
    """Whether a folder is that of a closed loop or of its replay."""
    info = path / "run.json"
    return info.is_file() and str(RunFolder(path).read_json(info).get("kind", "")).startswith(KIND)


def load_loop(path: Path) -> LoopRun:
    """Read the folder of a closed loop or of its replay, finished or not.

    Raises:
        RecordingError: it is none, or a table in it is damaged.
    """
    folder = RunFolder(path)
    info = folder.read_json(folder.run_json)
    live = folder
    if "replay" in str(info.get("kind")):
        live = RunFolder(path.resolve().parent.parent)
        if not live.run_json.is_file():
            raise RecordingError(f"{path}: the loop that was replayed is no longer beside its replay; put it back")
    scenario = folder.scenario()
    require_loop(scenario)
    if (folder.path / LOOP).is_file():
        table = folder.rows(folder.path / LOOP)
    else:
        # A run that was killed left the tables of its stages.
        table = read_table(live, scenario, int(info["rounds"]))
    run = LoopRun(folder, live, info, live.read_json(live.run_json), scenario, table, {})
    metrics = folder.read_json(folder.metrics) if folder.metrics.is_file() else None
    if metrics is None:
        metrics = loop_metrics(live, table, interrupted=True, wall_s=0.0)
    run.metrics.update(metrics)
    return run


def loop_sections(run: LoopRun) -> dict[str, Callable[[], dict[str, Any]]]:
    """What makes each section of the page of a closed loop."""
    return {
        "head": lambda: _head(run),
        "loop": lambda: _loop(run),
        "users": lambda: _users(run),
        "cost": lambda: _cost(run),
        "rounds": lambda: _rounds(run),
        "stages": lambda: _stages(run),
        "latency": lambda: _latency(run),
        "settings": lambda: _settings(run),
        "reproduce": lambda: _reproduce(run),
    }


def _stage_info(run: LoopRun, stage: str) -> dict[str, Any]:
    folder = RunFolder(run.live.path / stage)
    return folder.read_json(folder.run_json) if folder.run_json.is_file() else {}


def _stage_metrics(run: LoopRun, stage: str) -> dict[str, Any]:
    folder = run.decided(stage)
    return folder.read_json(folder.metrics) if folder.metrics.is_file() else {}


def _head(run: LoopRun) -> dict[str, Any]:
    users, counts = run.metrics["users"], run.metrics["counts"]
    kind, meaning = build.PATHS["loopback"]
    models = [
        ("Detector", str(_stage_info(run, ACCESS).get("detector", run.scenario.detector.name))),
        ("When", build.when_text(str(run.info.get("created", "")))),
        ("CSI codec", str(_stage_info(run, FEEDBACK).get("model", {}).get("name", "not reached"))),
        ("Picture codec", str(_stage_info(run, PICTURES).get("model", {}).get("name", "not reached"))),
        ("Pictures", str(run.live_info.get("pictures", {}).get("name", ""))),
    ]
    facts = [*models, *(fact for fact in build.provenance_facts(run) if fact[0] != "When")]
    warnings = []
    if counts["interrupted"]:
        warnings.append(
            f"The run was ended before it was through: {build.count_text(users['not_done'])} requests were left."
        )
    if counts["lost_samples"]:
        warnings.append(f"{build.count_text(counts['lost_samples'])} samples were lost in {counts['gaps']} gaps.")
    return {
        "name": run.scenario.name,
        "description": run.scenario.description,
        "title": "Replay of a closed loop" if run.is_replay else "Closed loop run",
        "kind": kind,
        "meaning": ("Decided again from the recordings of a run. " if run.is_replay else "") + meaning,
        "facts": facts,
        "tiles": _tiles(run),
        "verdict": _verdict(run),
        "warnings": warnings,
        "version": __version__,
    }


def _tiles(run: LoopRun) -> list[dict[str, Any]]:
    users, metrics = run.metrics["users"], run.metrics
    tiles = []

    def tile(label: str, value: str, note: str, good: bool | None = None) -> None:
        tiles.append({"label": label, "value": value, "note": note, "good": good})

    share = build.percent(users["served"] / users["active"]) if users["active"] else "–"
    tile("got their picture", build.count_text(users["served"]), f"of {build.count_text(users['active'])}: {share}")
    tile("had to wait", build.count_text(users["waiting"]), "found, and all slots taken")
    missed, false = users["missed"], users["false_alarm"]
    tile("errors of access", build.count_text(missed + false), f"{missed} missed, {false} false", missed + false == 0)
    if "csi" in metrics:
        note = f"{build.number(metrics['csi']['reckoned_nmse_db'])} dB reckoned with"
        tile("NMSE of CSI", f"{build.number(metrics['csi']['nmse_db'][0])} dB", note)
    if "pictures" in metrics:
        found = metrics["pictures"]
        note = f"MS-SSIM {build.number(found['ms_ssim'][0])}"
        if "perfect_psnr_db" in found:
            note = f"{build.number(found['perfect_psnr_db'][0])} dB with perfect CSI; " + note
        tile("PSNR of pictures", f"{build.number(found['psnr_db'][0])} dB", note)
    return tiles


def _verdict(run: LoopRun) -> str:
    users, metrics = run.metrics["users"], run.metrics
    rounds = metrics["rounds"]["asked_for"]
    said = [
        f"In {build.count_text(rounds)} rounds users asked {build.count_text(users['active'])} times for a picture, "
        f"and got it {build.count_text(users['served'])} times."
    ]
    lost = [
        (users["missed"], "were not detected"),
        (users["waiting"], "were detected, but all slots were taken"),
        (users["csi_lost"], "got a slot, but their CSI was lost"),
        (users["picture_lost"], "were served, but lost the frame"),
    ]
    told = [f"{build.count_text(count)} {what}" for count, what in lost if count]
    if told:
        said.append(f"Of the others {', '.join(told)}.")
    if users["false_alarm"]:
        said.append(
            f"{build.count_text(users['false_alarm'])} times a user was detected that had asked for nothing, which "
            f"wasted {build.count_text(users['slots_wasted'])} slots."
        )
    if "pictures" in metrics and "loss_to_perfect_csi_db" in metrics["pictures"]:
        found = metrics["pictures"]
        loss = found["loss_to_perfect_csi_db"][0]
        how = f"{abs(loss):.2f} dB {'less' if loss >= 0 else 'more'} than with perfect CSI and no radio"
        said.append(f"Pictures arrived with a PSNR of {build.number(found['psnr_db'][0])} dB, {how}.")
    return " ".join(said)


def _loop(run: LoopRun) -> dict[str, Any]:
    downlink = require_loop(run.scenario).downlink
    told, wanted = downlink.csi, downlink.pictures
    assert told is not None and wanted is not None
    users, metrics = run.metrics["users"], run.metrics
    csi = metrics.get("csi", {}).get("nmse_db", [None])[0]
    pictures = metrics.get("pictures", {}).get("psnr_db", [None])[0]
    antennas = run.scenario.radio.n_antennas
    return {
        "text": f"A base station with {antennas} antennas and {run.scenario.users.n_users} users who now and then want "
        "a picture. Every round has three frames, one of each link; what the base station decides in one, it uses in "
        "the next. The base station knows only what it hears: what is told here of who really asked, of the true "
        "channels and of the pictures that were meant is known because the air is computed.",
        "steps": [
            {
                "name": "Random access",
                "text": f"Users who want a picture send {'/'.join(map(str, run.scenario.users.preamble_lengths))} "
                f"symbols of their preamble, all at once. A detector ({run.scenario.detector.name}) decides who is "
                f"there; the {told.n_users} with the highest scores get a slot, others wait.",
                "result": f"{users['active']} asked, {users['active'] - users['missed'] - users['not_done']} of them "
                f"found, {users['false_alarm']} false",
            },
            {
                "name": "CSI feedback",
                "text": f"Who got a slot estimates its channel from a sounding slot and sends it back as "
                f"{told.feedback_length} analog symbols; the base station recovers the CSI of all together. Where "
                "nobody is, the slot stays silent.",
                "result": f"{users['granted']} slots granted, {users['csi_lost']} without CSI; NMSE "
                f"{build.number(csi)} dB",
            },
            {
                "name": "Picture downlink",
                "text": f"Pictures of {wanted.side} x {wanted.side} pixels are coded into analog symbols, precoded "
                "with the CSI that came back, and sent to all at once. Every user decodes its own.",
                "result": f"{users['served']} pictures received, PSNR {build.number(pictures)} dB",
            },
        ],
    }


def _users(run: LoopRun) -> dict[str, Any]:
    counted = run.metrics["users"]
    rows: list[dict[str, Any]] = [
        {
            "key": "active",
            "name": "asked",
            "count": counted["active"],
            "meaning": "for a picture, and the run came to their round; the rows below tell what became of them",
            "own": True,
        }
    ]
    for cause in Cause:
        key = cause.value.replace(" ", "_")
        if cause is not Cause.SILENT and (counted[key] or cause in _STACK[:3]):
            rows.append(
                {"key": key, "name": cause.value, "count": counted[key], "meaning": cause.meaning, "own": False}
            )
    if counted["false_alarm"]:
        wasted, vain = counted["slots_wasted"], counted["served_in_vain"]
        meaning = f"granted to false alarms; in {build.count_text(vain)} of them a picture was even sent"
        rows.append({"key": "slots_wasted", "name": "slots wasted", "count": wasted, "meaning": meaning, "own": False})
    table = run.table
    rounds = np.unique(table["round"])
    outcomes = {
        cause.value: np.array(
            [np.count_nonzero(table["cause"][table["round"] == number] == cause.value) for number in rounds]
        )
        for cause in _STACK
        if np.any(table["cause"] == cause.value)
    }
    got = table[table["received"]]
    if not outcomes:
        return {"rows": rows, "figure": None}
    figure = build.captioned(
        plots.loop_rounds(
            rounds, outcomes, (got["round"], got["psnr_db"], got["perfect_psnr_db"]), "Users and pictures over rounds"
        ),
        f"Above: what became of the users of each of {build.count_text(len(rounds))} rounds. Below: the quality of "
        "every picture received, and in open circles that of the same picture over the same channel, had the base "
        "station known it perfectly and had there been nothing but noise. Noise is drawn anew: a circle may lie "
        "below its dot.",
    )
    return {"rows": rows, "figure": figure}


def _cost(run: LoopRun) -> dict[str, Any]:
    found = run.metrics.get("pictures")
    if not found:
        return {"reason": "No picture was received."}
    rows = []
    steps = (
        ("psnr_db", "as received", "everything: radio, synchronisation, CSI that was fed back", found["received"]),
        ("symbol_psnr_db", "without the radio", "the same CSI and channels, behind noise alone", found["received"]),
        ("perfect_psnr_db", "and with perfect CSI", "the base station knows the true channels", found["received"]),
    )
    for key, name, meaning, count in steps:
        if key in found:
            mean, low, high = found[key]
            one = {"key": key, "name": name, "count": count, "mean": mean, "low": low, "high": high}
            rows.append({**one, "meaning": meaning, "own": key == "psnr_db"})
    ideal = run.metrics.get("ideal")
    if ideal:
        mean, low, high = ideal["psnr_db"]
        one = {"key": "ideal_psnr_db", "name": "and no error of access", "count": ideal["served"], "own": False}
        meaning = "nobody is missed, no slot is wasted: as many pictures as the slots take"
        rows.append({**one, "mean": mean, "low": low, "high": high, "meaning": meaning})
    text = (
        "The same pictures over the same channels, with one source of error taken away after the other. Quality "
        "differs more from picture to picture than from row to row, so intervals are wide; the costs in the table of "
        "stages are of the same pictures, one against the other."
    )
    return {"reason": "", "text": text, "rows": rows}


def _rounds(run: LoopRun) -> dict[str, Any]:
    table = run.table
    wanted = {}
    if (run.live.path / WANTED).is_file():
        rows = run.live.rows(run.live.path / WANTED)
        wanted = {(int(row["round"]), int(row["user"])): row["picture"] for row in rows}
    received = {}
    folder = run.decided(PICTURES)
    if folder.decisions.is_file():
        received = {(int(row["frame"]), int(row["user"])): row["picture"] for row in folder.rows(folder.decisions)}
    numbers = np.unique(table["round"])
    told: list[dict[str, Any]] = []
    quiet: list[int] = []

    def close_quiet() -> None:
        if quiet:
            title = f"Round {quiet[0]}" if len(quiet) == 1 else f"Rounds {quiet[0]} to {quiet[-1]}"
            told.append({"number": quiet[0], "title": title, "text": "nobody asked, nobody was found", "askers": []})
            quiet.clear()

    # More would make the page too large to open.
    for number in numbers[:KEPT_ROUNDS]:
        rows = table[(table["round"] == number) & (table["cause"] != Cause.SILENT)]
        if not len(rows):
            quiet.append(int(number))
            continue
        close_quiet()
        order = np.lexsort((rows["user"], np.where(rows["slot"] < 0, 99, rows["slot"])))
        askers = [_asker(row, wanted, received) for row in rows[order]]
        asked, served = int(rows["active"].sum()), int(rows["received"].sum())
        found = int((rows["detected"] & rows["active"]).sum())
        text = f"{asked} asked, {found} of them found, {served} got their picture"
        false = int((rows["detected"] & ~rows["active"]).sum())
        text += f"; {false} found that had not asked" if false else ""
        told.append({"number": int(number), "title": "", "text": text, "askers": askers})
    close_quiet()
    rest = len(numbers) - KEPT_ROUNDS
    return {
        "text": "Everybody who asked or was taken to have asked, with the picture meant for it and what it got. Slots "
        "are given by the detector's score.",
        "rounds": told,
        "rest": f"{build.count_text(rest)} more rounds are in {LOOP}." if rest > 0 else "",
    }


def _asker(
    row: np.void, wanted: dict[tuple[int, int], np.ndarray], received: dict[tuple[int, int], np.ndarray]
) -> dict[str, Any]:
    number, user, slot = int(row["round"]), int(row["user"]), int(row["slot"])
    cause = Cause(str(row["cause"]))
    shot = received.get((number, slot)) if row["received"] else None
    facts = []
    if np.isfinite(row["score"]):
        facts.append(f"score {row['score']:.3f}")
    if np.isfinite(row["csi_nmse_db"]):
        facts.append(f"CSI {build.level_text(row['csi_nmse_db'])} dB")
    if np.isfinite(row["perfect_psnr_db"]):
        facts.append(f"{build.level_text(row['perfect_psnr_db'])} dB with perfect CSI")
    if cause is not Cause.SERVED:
        facts.append(cause.meaning)
    kinds = {Cause.SERVED: "served", Cause.WAITING: "waiting"}
    return {
        "user": user,
        "slot": slot if row["granted"] else None,
        "cause": cause.value,
        "kind": kinds.get(cause, "lost"),
        "wanted": _data_of(wanted[number, user]) if (number, user) in wanted else None,
        "received": None if shot is None else _data_of(shot),
        "psnr": f"{build.level_text(row['psnr_db'])} dB" if np.isfinite(row["psnr_db"]) else "",
        "text": "; ".join(facts),
    }


def _data_of(picture: np.ndarray) -> str:
    """A picture, uint8 (row, column, 3), inside the page."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _stages(run: LoopRun) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []

    def add(stage: str, key: str, name: str, value: float | None, shown: str, meaning: str) -> None:
        first = not rows or rows[-1]["of"] != stage
        one = {"key": f"{stage}_{key}", "of": stage, "stage": _NAMES[stage] if first else "", "first": first}
        rows.append({**one, "name": name, "value": value, "shown": shown, "meaning": meaning})

    access, metrics = run.metrics["access"], run.metrics
    share = build.percent
    add(ACCESS, "missed", "missed", access["missed"], share(access["missed"]), "of those who asked")
    false = access["false_alarms"]
    add(ACCESS, "false_alarms", "false alarms", false, share(false), "of those who had not asked, per round")
    csi = metrics.get("csi")
    if csi:
        mean, low, high = csi["nmse_db"]
        span = f"95 %: {build.number(low)} to {build.number(high)} dB"
        add(FEEDBACK, "nmse_db", "NMSE", mean, f"{build.number(mean)} dB", f"of recovered CSI against truth; {span}")
        reckoned = csi["reckoned_nmse_db"]
        what = "which the base station takes for it, from the codec's card"
        add(FEEDBACK, "reckoned_nmse_db", "NMSE reckoned with", reckoned, f"{build.number(reckoned)} dB", what)
    lost = metrics["users"]["csi_lost"]
    add(FEEDBACK, "lost", "CSI lost", lost, build.count_text(lost), "times a user that was there got nothing through")
    found = metrics.get("pictures", {})
    for key, name, meaning in (
        ("loss_to_perfect_csi_db", "cost of all", "PSNR with perfect CSI and no radio, less that received"),
        ("radio_loss_db", "cost of the radio", "PSNR at symbol level with the same CSI, less that received"),
    ):
        if key in found:
            mean, low, high = found[key]
            span = f"95 %: {_cost_text(low)} to {_cost_text(high)} dB"
            add(PICTURES, key, name, mean, f"{_cost_text(mean)} dB", f"{meaning}; {span}")
    lost = metrics["users"]["picture_lost"]
    add(PICTURES, "lost", "pictures lost", lost, build.count_text(lost), "sent to a user that did not receive them")
    for stage in STAGES:
        counts = _stage_metrics(run, stage).get("counts", {})
        if "lost_samples" in counts:
            lost = counts["lost_samples"]
            add(stage, "lost_samples", "samples lost", lost, build.count_text(lost), f"in {counts['gaps']} gaps")
    order = {stage: place for place, stage in enumerate(STAGES)}
    rows.sort(key=lambda row: order[row["of"]])
    for before, row in zip([None, *rows], rows, strict=False):
        row["first"] = before is None or before["of"] != row["of"]
        row["stage"] = _NAMES[row["of"]] if row["first"] else ""
    return {"rows": rows}


def _cost_text(value: float | None) -> str:
    """A difference in dB with two decimals."""
    return "–" if value is None else f"{value:.2f}".replace("-", "−")


def _latency(run: LoopRun) -> dict[str, Any]:
    stages: dict[str, np.ndarray] = {}
    rows = []
    for stage, key, name, meaning in LATENCIES:
        told = run.metrics["latency_ms"].get(f"{stage}_{key}")
        if told is None:
            continue
        rows.append({"name": name, "meaning": meaning, **told})
        values = _seconds(run, stage, key)
        if len(values):
            stages[name] = values * 1e3
    if not rows:
        return {"reason": "No slot was decided.", "figure": None, "rows": []}
    caption = (
        "Host time that each computation took, one frame at a time, on one core each. Samples come as fast as this "
        "computer makes them, so what blocks wait for differs from that of a radio; computations are what they are."
    )
    return {
        "reason": "",
        "figure": build.captioned(plots.latency_histograms(stages, "Latency per computation"), caption),
        "rows": rows,
    }


def _seconds(run: LoopRun, stage: str, key: str) -> np.ndarray:
    """What a computation took, each time; empty where no table tells."""
    live, decided = RunFolder(run.live.path / stage), run.decided(stage)
    path = {"estimate": live.path / ESTIMATES, "encode": live.path / ESTIMATES, "transmit": live.truth}.get(
        key, decided.decisions
    )
    rows = live.rows(path) if path.is_file() else np.zeros(0, [(f"{key}_s", "<f8")])
    return np.asarray(rows[f"{key}_s"], float)


def _settings(run: LoopRun) -> dict[str, Any]:
    scenario = run.scenario
    downlink = require_loop(scenario).downlink
    told, wanted = downlink.csi, downlink.pictures
    assert told is not None and wanted is not None
    rounds = ("rounds", build.count_text(int(run.live_info["rounds"])), "frames of each stage")
    access = [build.field_row(scenario.users, name) for name in ("n_users", "activity", "preamble_lengths")]
    access += [build.field_row(scenario.detector, "name"), build.field_row(scenario.link, "access_snr_db")]
    access.append(("frame", f"{scenario.frame.frame_s * 1e3:g} ms at {scenario.frame.sample_rate_hz / 1e6:g} MS/s", ""))
    feedback = [
        build.field_row(told, name)
        for name in ("n_users", "model", "feedback_length", "snr_db", "sounding_snr_db", "sites", "spacing_m")
    ]
    pictures = [build.field_row(wanted, name) for name in ("model", "side", "snr_db", "data_symbols")]
    frame = f"{downlink.frame.frame_s * 1e3:g} ms at {downlink.frame.sample_rate_hz / 1e6:g} MS/s"
    pictures.append(("frame", frame, "of CSI feedback and pictures"))
    common = [rounds, ("level", scenario.level, "of the radios' faults"), ("seed", str(scenario.seed), "of everything")]
    common += [build.field_row(scenario.radio, name) for name in ("kind", "n_antennas", "frequency_hz")]
    tables = [("All stages", common), ("Random access", access), ("CSI feedback", feedback)]
    return {"tables": [*tables, ("Picture downlink", pictures)]}


def _reproduce(run: LoopRun) -> dict[str, Any]:
    name, overrides = build.scenario_arguments(run.scenario)
    file = "closed-loop-scenario.toml"
    live = str(run.live.path)
    command = ["semair", "run", KIND, "--scenario", name or file]
    for override in overrides:
        command += ["--set", override]
    command += ["--rounds", str(run.live_info["rounds"]), "--folder", "runs/again"]
    lines = [("The same loop again: the same seed gives the same samples.", shlex.join(command))]
    if RunFolder(run.live.path / ACCESS).recording.is_file():
        text = "The same decisions of all stages again, from their recordings, bit for bit."
        lines.append((text, shlex.join(["semair", "replay", live])))
        lines.append(("All recordings and tables, checked.", shlex.join(["semair", "capture", "verify", live])))
    for stage in STAGES:
        if (run.live.path / stage).is_dir():
            text = f"The report of the stage of {_NAMES[stage]}."
            lines.append((text, shlex.join(["semair", "report", str(run.live.path / stage)])))
    lines.append(("This page again.", shlex.join(["semair", "report", str(run.folder.path)])))
    return {"lines": lines, "file": "" if name else file, "toml": "" if name else build.toml_of(run.scenario)}

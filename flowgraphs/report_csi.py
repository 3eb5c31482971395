"""The report's sections of a run of CSI feedback: what users estimated and what the base station recovered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import __version__
from ..blocks.waveforms.feedback import PartFlag
from ..errors import SemairError
from . import plots
from . import report_sections as build
from .csi_feedback_run import CHANNELS, ESTIMATES, csi_pictures, make_codec
from .csi_metrics import judge_frames
from .metrics import matched, stage_latencies_ms
from .report_data import Run
from .runfolder import unpack_users

# At symbol level frames are judged again; more of them would take longer than people wait.
_SYMBOL_FRAMES = 400
_EXAMPLE_USERS = 4
_EXAMPLES = (("good", 0.1), ("median", 0.5), ("bad", 0.9))
_ROWS = (
    ("nmse_db", "NMSE", " dB", "error of what the base station recovered, against the truth in the user's timing"),
    ("symbol_level_nmse_db", "NMSE at symbol level", " dB", "the same channels and codes behind noise alone"),
    ("chain_loss_db", "cost of the radio chain", " dB", "the first over the second, over the same frames"),
    ("full_nmse_db", "NMSE over all subcarriers", " dB", "the first, with what lies beyond the delays fed back"),
    ("nmse_of_estimate_db", "NMSE of what was sent", " dB", "error against the user's estimate instead of the truth"),
    ("estimate_nmse_db", "NMSE of the estimate", " dB", "error of what users estimated from the sounding slot"),
    ("cosine", "cosine", "", "likeness of recovered and true channels, mean over subcarriers"),
    ("sum_rate_share", "share of sum rate", "", "of regularised zero forcing with perfect CSI"),
)


def csi_sections(run: Run) -> dict[str, Callable[[], dict[str, Any]]]:
    """What makes each section of the page of a run or replay of CSI feedback."""
    judged = _judge(run)
    return {
        "head": lambda: _head(run),
        "settings": lambda: _settings(run),
        "csi": lambda: _csi(run, *judged),
        "examples": lambda: _examples(run, judged[0]),
        "synchronisation": lambda: build.synchronisation_section(run),
        "signals": lambda: build.signals_section(run),
        "latency": lambda: _latency(run),
        "losses": lambda: _losses(run),
        "reproduce": lambda: _reproduce(run),
    }


def _judge(run: Run) -> tuple[dict[str, np.ndarray], str]:
    """Errors frame by frame; and why there are none at symbol level, where there are none."""
    if run.live is None or run.truth is None or not len(run.truth):
        return {}, ""
    scenario = run.scenario
    rows, truth = matched(run.decisions, run.truth)
    decided, sent = run.decisions[rows], run.truth[truth]
    users = scenario.csi_frame.slots.n_users
    whole = (unpack_users(decided["active"], users) & unpack_users(sent["active"], users)).all(axis=1)
    decided = decided[whole]
    if len(decided) > _SYMBOL_FRAMES:
        plain = judge_frames(run.live, decided, scenario)
        return plain, f"More than {_SYMBOL_FRAMES} frames: those at symbol level are not drawn."
    try:
        coder = make_codec(scenario)
        was = run.info.get("model", {}).get("sha256")
        weights = coder.card.weights
        if was is not None and (weights is None or weights.sha256 != was):
            raise SemairError(f"{coder.card.name} is no longer what it was in the run")
    except SemairError as error:
        return judge_frames(run.live, decided, scenario), f"Frames at symbol level are not drawn: {error}"
    return judge_frames(run.live, decided, scenario, coder), ""


def _head(run: Run) -> dict[str, Any]:
    counts, frames = run.metrics["counts"], run.metrics.get("frames")
    measured, users = run.metrics.get("csi"), run.metrics.get("users", {})
    path = run.live_info.get("radio", {}).get("capabilities", {}).get("path", "sim")
    kind, meaning = build.PATHS.get(path, (path, ""))
    replayed = run.info.get("channel_replay")
    if replayed:
        title, before = "Channel replay", "New codes over the recorded uplink of a run. "
    elif run.is_replay:
        title, before = "Replay", "Decided again from the recording of a run. "
    else:
        title, before = "CSI feedback run", ""
    return {
        "name": run.scenario.name,
        "description": run.scenario.description,
        "title": title,
        "kind": kind,
        "meaning": before + meaning,
        "facts": [("Model", str(run.info.get("model", {}).get("name", "none"))), *build.provenance_facts(run)],
        "tiles": _tiles(run, frames, counts, measured, users),
        "verdict": _verdict(run, frames, measured, users),
        "warnings": _warnings(run, users),
        "version": __version__,
    }


def _tiles(run: Run, frames: Any, counts: Any, measured: Any, users: Any) -> list[dict[str, Any]]:
    tiles = []

    def tile(label: str, value: str, note: str, good: bool | None = None) -> None:
        tiles.append({"label": label, "value": value, "note": note, "good": good})

    if frames:
        sent, decided = build.count_text(frames["sent"]), build.count_text(frames["matched"])
        tile("frames decoded", decided, f"of {sent} sent", frames["matched"] == frames["sent"])
    else:
        tile("frames decoded", build.count_text(len(run.decisions)), "no truth known")
    if measured:
        value, low, high = measured["nmse_db"]
        symbol = measured.get("symbol_level_nmse_db")
        note = f"{build.number(symbol[0])} dB at symbol level" if symbol else _span(low, high, " dB")
        tile("NMSE of recovered CSI", f"{build.number(value)} dB", note)
        if "sum_rate_share" in measured:
            value, low, high = measured["sum_rate_share"]
            tile("share of sum rate", build.percent(value), f"of perfect CSI; {_span(low, high, ' %', 100)}")
        snr = measured["uplink_snr_db"]
        announced = build.number(measured["announced_snr_db"])
        tile("SNR behind combining", f"{build.number(snr['mean'])} dB", f"{announced} dB announced to the users")
    if users:
        unheard = users["unheard"]
        note = f"times a user's code was lost; {build.count_text(users['silent'])} times a user had nothing to send"
        tile("users unheard", build.count_text(unheard), note, unheard == 0)
    if run.finished and "lost_samples" in counts:
        lost = counts["lost_samples"]
        note = f"in {build.count_text(counts.get('gaps', 0))} gaps"
        tile("samples lost", build.count_text(lost), note, lost == 0)
    total = run.metrics.get("latency_ms", {}).get("total")
    if total:
        note = f"99 % within {build.number(total['p99'])} ms, antenna to CSI"
        tile("latency, median", f"{build.number(total['p50'])} ms", note)
    return tiles


def _span(low: float | None, high: float | None, unit: str, factor: float = 1) -> str:
    if low is None or high is None:
        return "one drop alone has no interval"
    return f"95 %: {build.number(factor * low)} to {build.number(factor * high)}{unit}"


def _verdict(run: Run, frames: Any, measured: Any, users: Any) -> str:
    if not frames:
        return f"{build.count_text(len(run.decisions))} slots decoded; what was sent is not known."
    said = [
        f"{build.count_text(frames['sent'])} frames sent: {build.count_text(frames['matched'])} decoded, "
        f"{build.count_text(frames['missed'])} missed, {build.count_text(frames['false'])} false."
    ]
    if not measured:
        said.append("In no frame was every user decoded, so nothing is known about the CSI's error.")
        return " ".join(said)
    value, low, high = measured["nmse_db"]
    said.append(
        f"The base station recovered the CSI with an NMSE of {build.number(value)} dB (95 % interval "
        f"{build.number(low)} to {build.number(high)} dB)"
    )
    loss = measured.get("chain_loss_db")
    if loss:
        how = "more" if loss[0] >= 0 else "less"
        said[-1] += f", {abs(loss[0]):.2f} dB {how} than the same codes behind noise alone"
    if "sum_rate_share" in measured:
        said[-1] += f"; with it zero forcing reaches {build.percent(measured['sum_rate_share'][0])} of the sum rate"
    said[-1] += "."
    return " ".join(said)


def _warnings(run: Run, users: Any) -> list[str]:
    said = build.shared_warnings(run)
    for name, count in run.metrics.get("flagged", {}).items():
        said.append(f"{build.count_text(count)} parts of the feedback slot: {PartFlag[name.upper()].meaning}.")
    if users.get("false"):
        said.append(f"{build.count_text(users['false'])} times a user was decoded that had sent nothing.")
    replayed = run.info.get("channel_replay")
    if replayed:
        said.append(
            f"Channel replay: {build.count_text(replayed['links'])} uplinks of {build.count_text(replayed['frames'])} "
            f"frames, estimated with an error of {build.number(replayed['estimation_error_db'])} dB from what the "
            f"users sent; {replayed['noise']}."
        )
    return said


def _settings(run: Run) -> dict[str, Any]:
    scenario = run.scenario
    wanted, frame = scenario.csi, scenario.csi_frame
    assert wanted is not None
    links = [
        *(
            build.field_row(wanted, name)
            for name in type(wanted).model_fields
            if name not in type(frame.slots).model_fields
        ),
        *(build.field_row(wanted, name) for name in ("n_users", "feedback_length")),
        build.field_row(scenario.link, "beacon_snr_db"),
        *(build.field_row(scenario.radio, name) for name in ("n_antennas", "losses")),
        *(build.field_row(scenario.sync, name) for name in ("max_cfo_ppm", "false_alarms_per_sample")),
    ]
    return build.shared_settings(
        run,
        links,
        frame,
        f"In the sounding slot {frame.n_antennas} antennas send {frame.slots.sounding_repeats} times; in the feedback "
        f"slot each of {frame.slots.n_users} users has {frame.part_symbols} OFDM symbols, of which "
        f"{frame.slots.pilot_symbols} of pilots alone, for a code of {frame.slots.feedback_length} symbols.",
    )


def _csi(run: Run, frames: dict[str, np.ndarray], symbol_note: str) -> dict[str, Any]:
    measured = run.metrics.get("csi")
    if not measured or not frames:
        reason = "What was sent is not known." if run.truth is None else "In no frame was every user decoded."
        return {"reason": reason}
    rows = []
    for key, name, unit, meaning in _ROWS:
        if key in measured:
            mean, low, high = measured[key]
            one = {"key": key, "name": name, "unit": unit, "meaning": meaning, "own": key == "nmse_db"}
            rows.append({**one, "mean": mean, "low": low, "high": high})
    for user, (mean, low, high) in enumerate(measured["nmse_db_by_user"]):
        one = {"key": f"nmse_db_user_{user}", "name": f"NMSE of user {user}", "unit": " dB", "own": False}
        rows.append({**one, "meaning": "", "mean": mean, "low": low, "high": high})
    nmse_db = _in_db(frames["nmse"])
    symbol_db = _in_db(frames["symbol"]) if "symbol" in frames else None
    told, known = frames["told_snr"], frames["true_snr"]
    known_snr = known if np.isfinite(known).all() else None
    n = build.count_text(len(frames["frame"]))
    beside = (
        " Circles: the same channels and weights behind noise alone, without a radio." if "symbol" in frames else ""
    )
    several = nmse_db.shape[1] > 4
    return {
        "reason": "",
        "drops": measured["drops"],
        "rows": rows,
        "symbol_note": symbol_note,
        "over_frames": build.captioned(
            plots.nmse_over_frames(frames["frame"], nmse_db, symbol_db, "NMSE of recovered CSI over frames"),
            f"Error of the recovered CSI of {'the first four users' if several else 'each user'} in {n} frames, every "
            f"frame with a channel of its own.{beside}",
        ),
        "likeness": build.captioned(
            plots.csi_quality(
                nmse_db, symbol_db, told, known_snr, "Distribution of NMSE, and SNR behind the combining"
            ),
            "Left: how often the error stays below a value. Right: SNR of a code's symbols behind the combining of all "
            "antennas, as the receiver estimates it"
            + (
                ", against that of a combining that knows the uplink; below the dashed line lies what the estimated "
                "uplink costs."
                if known_snr is not None
                else "."
            ),
        ),
    }


def _examples(run: Run, frames: dict[str, np.ndarray]) -> dict[str, Any]:
    if not frames or run.live is None:
        return {"reason": "There is no frame of which truth and recovered CSI are known."}
    error = frames["nmse"].mean(axis=1)
    order = np.argsort(error)
    picked = [(name, int(order[round(share * (len(order) - 1))])) for name, share in _EXAMPLES]
    shown = {int(frames["frame"][k]) for _, k in picked}
    pictures = {
        (one["frame"], one["user"]): one
        for one in csi_pictures(run.live, decisions=run.decisions)
        if one["frame"] in shown
    }
    figures = []
    for name, k in picked:
        number = int(frames["frame"][k])
        rows = []
        for user in range(min(frames["nmse"].shape[1], _EXAMPLE_USERS)):
            one = pictures[number, user]
            truth, estimate = _unit(one["truth"]), _unit(one["estimate"])
            recovered = one["recovered"]
            wrong = None if recovered is None else recovered - truth
            nmse, cosine = float(_in_db(frames["nmse"][k, user])), frames["cosine"][k, user]
            off = float(_in_db(frames["estimate"][k, user]))
            panels = [
                ("truth\n", truth),
                (f"user's estimate\nNMSE {build.level_text(off)} dB", estimate),
                (f"recovered, cosine {cosine:.2f}\nNMSE {build.level_text(nmse)} dB", recovered),
                ("error of the recovered\n", wrong),
            ]
            rows.append((f"user {user}", panels))
        title = f"CSI of the {name} frame, number {number}, in delay and angle"
        caption = (
            f"Frame {number}, NMSE {build.level_text(float(_in_db(error[k])))} dB over its users. Each row is a user; "
            "all panels of a row share the scale, 0 dB is the peak of the truth."
        )
        share = {"good": "a tenth of the frames is better", "bad": "a tenth of the frames is worse"}.get(name, "")
        heading = f"The {name} frame" + (f": {share}" if share else "")
        figures.append({"name": heading, "figure": build.captioned(plots.csi_comparison(rows, title), caption)})
    return {
        "reason": "",
        "text": "Truth in the user's timing and phase, what the user estimated from the sounding slot and coded, and "
        "what the base station recovered, truth and estimate scaled to unit mean power: absolute gain is not fed back.",
        "figures": figures,
    }


def _unit(csi: np.ndarray) -> np.ndarray:
    return csi / np.sqrt(max(float(np.mean(np.abs(csi) ** 2)), 1e-30))


def _in_db(values: Any) -> np.ndarray:
    return 10 * np.log10(np.maximum(values, 1e-12))


def _latency(run: Run) -> dict[str, Any]:
    if not len(run.decisions):
        return {"reason": "No slot was decoded.", "figure": None, "rows": []}
    meaning = {
        "synchronise": "from the frame's first sample at the receiver to its tag, buffering included",
        "cut": "to the complete feedback slot, including the rest of the frame on air",
        "receive": "demodulation and combining",
        "queue": "waiting for the decoder",
        "decode": "computation of the joint decoder",
        "total": "all of it",
        "estimate": "at the user: CSI from the sounding slot",
        "encode": "at the user: computation of the encoder",
    }
    stages = stage_latencies_ms(run.decisions)
    if run.info.get("channel_replay"):
        # Slots were put together, not waited for.
        stages = {name: stages[name] for name in ("receive", "decode")}
    elif run.live is not None and (run.live.path / ESTIMATES).is_file():
        estimates = run.live.rows(run.live.path / ESTIMATES)
        if len(estimates) and not run.is_replay:
            stages |= {name: estimates[f"{name}_s"] * 1e3 for name in ("estimate", "encode")}
    return build.shared_latencies(run, stages, meaning, "decoder")


def _losses(run: Run) -> dict[str, Any]:
    found = build.losses_section(run)
    users = run.metrics.get("users", {})
    for key, name, meaning in (
        ("unheard", "users unheard", "sent their CSI, but were left out by receiver or decoder"),
        ("silent", "users silent", "did not hear the sounding slot, and had nothing to send"),
        ("false", "users false", "decoded though they had sent nothing"),
    ):
        if key in users:
            found["rows"].append({"name": name, "value": users[key], "meaning": meaning})
    return found


def _reproduce(run: Run) -> dict[str, Any]:
    wanted = run.scenario.csi
    assert wanted is not None
    name = run.folder.path.name
    again = [] if name == "same" else ["--detector", wanted.model]
    replayed = run.info.get("channel_replay")
    if replayed:
        again = ["--channel", *again, *(f"--option={name}={value}" for name, value in replayed["options"].items())]
    also = []
    if run.live is not None and (run.live.path / CHANNELS).is_file():
        half = max(wanted.feedback_length // 2, 1)
        also.append(
            (
                "What codes of another length would have brought over the recorded uplink.",
                ["--channel", "--option", f"feedback_length={half}"],
            )
        )
    return build.shared_reproduction(run, again, also)

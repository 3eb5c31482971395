"""The report's sections of a run of the picture downlink: what was sent and received, and over which channels."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from .. import __version__
from ..blocks.waveforms.picture_frame import on_data_subcarriers
from ..errors import SemairError
from . import plots
from . import report_sections as build
from .metrics import stage_latencies_ms
from .report_data import Run
from .semantic_downlink_run import make_picture_codec, picture_model_facts
from .semantic_metrics import CHANNELS, JUDGED, SENT, judge_pictures

_SHOWN = 24
_ROWS = (
    ("psnr_db", "PSNR", " dB", "peak signal-to-noise ratio against what was sent"),
    ("symbol_psnr_db", "PSNR at symbol level", " dB", "the same pictures over the same channels behind noise alone"),
    ("chain_loss_db", "cost of the radio chain", " dB", "the second less the first, picture by picture"),
    ("ms_ssim", "MS-SSIM", "", "multi-scale structural similarity; 1 for equal pictures"),
    ("symbol_ms_ssim", "MS-SSIM at symbol level", "", "as above"),
)


def semantic_sections(run: Run) -> dict[str, Callable[[], dict[str, Any]]]:
    """What makes each section of the page of a run or replay of the picture downlink."""
    judged = _judged(run)
    # The users have clocks of their own; places in the recording are those of the first.
    first = replace(run, decisions=run.decisions[run.decisions["user"] == 0])
    return {
        "head": lambda: _head(run),
        "settings": lambda: _settings(run),
        "pictures": lambda: _pictures(run, judged),
        "quality": lambda: _quality(run, judged),
        "synchronisation": lambda: _synchronisation(run),
        "signals": lambda: build.signals_section(first),
        "latency": lambda: _latency(run),
        "losses": lambda: _losses(run),
        "reproduce": lambda: build.shared_reproduction(run, [], []),
    }


def _judged(run: Run) -> np.ndarray | None:
    """Quality of every picture received; None where it is not known what was sent."""
    path = run.folder.path / JUDGED
    if path.is_file():
        return run.folder.rows(path)
    if run.live is None or run.truth is None or not (run.live.path / SENT).is_file():
        return None
    return judge_pictures(run.live, run.decisions, run.scenario, None)


def _head(run: Run) -> dict[str, Any]:
    told, measured = run.metrics.get("pictures"), run.metrics.get("quality")
    path = run.live_info.get("radio", {}).get("capabilities", {}).get("path", "sim")
    kind, meaning = build.PATHS.get(path, (path, ""))
    before = "Decided again from the recording of a run. " if run.is_replay else ""
    return {
        "name": run.scenario.name,
        "description": run.scenario.description,
        "title": "Replay" if run.is_replay else "Picture downlink run",
        "kind": kind,
        "meaning": before + meaning,
        "facts": [("Model", str(run.info.get("model", {}).get("name", "none"))), *build.provenance_facts(run)],
        "tiles": _tiles(run, told, measured),
        "verdict": _verdict(run, told, measured),
        "warnings": _warnings(run, told),
        "version": __version__,
    }


def _tiles(run: Run, told: Any, measured: Any) -> list[dict[str, Any]]:
    tiles = []

    def tile(label: str, value: str, note: str, good: bool | None = None) -> None:
        tiles.append({"label": label, "value": value, "note": note, "good": good})

    if told:
        received = told["decided"] - told["false"]
        sent = build.count_text(told["sent"])
        tile("pictures received", build.count_text(received), f"of {sent} sent", received == told["sent"])
    else:
        tile("pictures received", build.count_text(len(run.decisions)), "what was sent is not known")
    if measured:
        symbol = measured.get("symbol_psnr_db")
        note = f"{build.level_text(symbol[0])} dB at symbol level" if symbol else ""
        tile("PSNR", f"{build.level_text(measured['psnr_db'][0])} dB", note)
        note = f"95 %: {measured['ms_ssim'][1]:.3f} to {measured['ms_ssim'][2]:.3f}" if _known(measured) else ""
        tile("MS-SSIM", f"{measured['ms_ssim'][0]:.3f}", note)
        if "true_sinr_db" in measured:
            true = f"{build.level_text(measured['true_sinr_db']['mean'])} dB in truth"
            tile("SINR, estimated", f"{build.level_text(measured['sinr_db']['mean'])} dB", true)
        nmse = build.level_text(measured["csi_nmse_db"]["mean"])
        tile("CSI of the base station", f"{nmse} dB", "mean NMSE against the true channel")
    decode = run.metrics.get("latency_ms", {}).get("decode")
    if decode:
        tile("decoder, median", f"{build.number(decode['p50'])} ms", f"99 % within {build.number(decode['p99'])} ms")
    return tiles


def _known(measured: Any) -> bool:
    return measured["ms_ssim"][1] is not None


def _verdict(run: Run, told: Any, measured: Any) -> str:
    if not told:
        return f"{build.count_text(len(run.decisions))} pictures received; what was sent is not known."
    said = [
        f"{build.count_text(told['sent'])} pictures sent in {build.count_text(run.metrics['frames']['sent'])} frames: "
        f"{build.count_text(told['decided'] - told['false'])} received, {build.count_text(told['missed'])} missed."
    ]
    if measured:
        said.append(
            f"They are like what was sent to a PSNR of {build.level_text(measured['psnr_db'][0])} dB and an MS-SSIM of "
            f"{measured['ms_ssim'][0]:.3f} on average"
        )
        loss = measured.get("chain_loss_db")
        if loss:
            how = "less" if loss[0] >= 0 else "more"
            said[-1] += f", {abs(loss[0]):.2f} dB {how} than the same pictures over the same channels without a radio"
        said[-1] += "."
    return " ".join(said)


def _warnings(run: Run, told: Any) -> list[str]:
    said = build.shared_warnings(run)
    if told and told["grants_not_read"]:
        n = build.count_text(told["grants_not_read"])
        said.append(f"{n} times a user heard a frame, but could not read whom it serves.")
    if told and told["false"]:
        said.append(f"{build.count_text(told['false'])} pictures were decoded from frames that served somebody else.")
    skipped = run.live_info.get("pictures", {}).get("skipped", {})
    if skipped:
        first = next(iter(skipped.values()))
        said.append(f"{build.count_text(len(skipped))} files could not be read and were not sent; the first: {first}")
    return said


def _settings(run: Run) -> dict[str, Any]:
    scenario = run.scenario
    wanted, told, frame = scenario.pictures, scenario.csi, scenario.picture_frame
    assert wanted is not None and told is not None
    names = ["n_users", "spacing_m", "sites", "line_of_sight"]
    if wanted.csi == "fed back":
        names += ["model", "feedback_length", "snr_db"]
    links = [
        *(
            build.field_row(wanted, name)
            for name in type(wanted).model_fields
            if name not in type(frame.slots).model_fields
        ),
        *((f"csi.{row[0]}", *row[1:]) for row in (build.field_row(told, name) for name in names)),
        build.field_row(scenario.link, "beacon_snr_db"),
        build.field_row(scenario.radio, "n_antennas"),
        *(build.field_row(scenario.sync, name) for name in ("max_cfo_ppm", "false_alarms_per_sample")),
    ]
    made = build.shared_settings(
        run,
        links,
        frame,
        f"The grant names the users served. Behind it the antennas send {frame.slots.n_streams} precoded reference "
        f"symbols, one for each of them, {frame.slots.data_symbols} OFDM symbols with the pictures of all at once on "
        f"{frame.n_subcarriers} subcarriers, and the first reference again.",
    )
    # Beacon and pictures go over the downlink, which is told above; [channel] describes an uplink.
    return {
        **made,
        "channel": [("downlink", f"clustered, {', '.join(told.sites)}", "see csi")],
        "beacon_channel": [("downlink", "as the pictures", "")],
    }


def _pictures(run: Run, judged: np.ndarray | None) -> dict[str, Any]:
    if judged is None or not len(judged) or run.live is None:
        return {"reason": "There is no picture of which it is known what was sent."}
    sent = {(int(row["frame"]), int(row["user"])): row["picture"] for row in run.live.rows(run.live.path / SENT)}
    got = {(int(row["frame"]), int(row["user"])): row["picture"] for row in run.decisions}
    order = np.argsort(-judged["psnr_db"], kind="stable")
    picked = order
    if len(order) > _SHOWN:
        picked = order[np.round(np.linspace(0, len(order) - 1, _SHOWN)).astype(int)]
    shown = []
    for k in picked:
        row = judged[k]
        place = int(row["frame"]), int(row["user"])
        shown.append(
            {
                "name": f"frame {place[0]}, user {place[1]}",
                "sent": _embedded(sent[place]),
                "got": _embedded(got[place]),
                "text": f"PSNR {build.level_text(row['psnr_db'])} dB, MS-SSIM {row['ms_ssim']:.3f}, "
                f"SINR {build.level_text(row['sinr_db'])} dB",
            }
        )
    share = "All pictures received" if len(order) <= _SHOWN else f"{_SHOWN} of {build.count_text(len(order))} pictures"
    return {
        "reason": "",
        "text": f"{share}, from the best PSNR to the worst: left what was sent, right what the user received. All "
        "of them are PNG files in the run's folder.",
        "shown": shown,
    }


def _embedded(picture: np.ndarray) -> str:
    from PIL import Image

    target = io.BytesIO()
    Image.fromarray(picture).save(target, "PNG")
    return "data:image/png;base64," + base64.b64encode(target.getvalue()).decode("ascii")


def _quality(run: Run, judged: np.ndarray | None) -> dict[str, Any]:
    measured = run.metrics.get("quality")
    if not measured or judged is None or not len(judged):
        return {"reason": "What was sent is not known, or nothing was received."}
    rows = []
    for key, name, unit, meaning in _ROWS:
        if key in measured and None not in measured[key]:
            # Structural similarities tell apart in their third digit.
            texts = [f"{x:.{2 if unit else 3}f}".replace("-", "−") for x in measured[key]]
            one = {"key": key, "name": name, "unit": unit, "meaning": meaning, "own": key == "psnr_db"}
            rows.append({**one, "value": measured[key][0], "mean": texts[0], "low": texts[1], "high": texts[2]})
    n = build.count_text(len(judged))
    figures = [
        build.captioned(
            plots.pictures_over_frames(judged, "PSNR and MS-SSIM over frames"),
            f"Quality of {n} pictures, every frame with channels of its own. Circles: the same pictures over the same "
            "channels behind noise alone, without radio and synchronisation.",
        )
    ]
    if np.isfinite(judged["true_sinr_db"]).all():
        figures.append(
            build.captioned(
                plots.picture_links(judged, "Estimated and true SINR, and PSNR over SINR"),
                "SINR behind the precoder, mean over subcarriers. Left: as users estimate it from the references, "
                "against the truth. Right: what it does to pictures, which differ in how hard they are themselves.",
            )
        )
    note = ""
    try:
        figures.append(_channels(run, judged))
    except SemairError as error:
        note = f"Effective channels are not drawn: {error}"
    return {"reason": "", "pictures": measured["pictures"], "rows": rows, "figures": figures, "note": note}


def _channels(run: Run, judged: np.ndarray) -> Any:
    """Effective channels of the frame in the middle of all by PSNR."""
    scenario = run.scenario
    wanted = scenario.pictures
    assert wanted is not None and run.live is not None and run.truth is not None
    codec = make_picture_codec(scenario)
    if run.live_info.get("model") != picture_model_facts(scenario, codec):
        raise SemairError(f"{wanted.model} is no longer what it was in the run")
    number = int(judged["frame"][np.argsort(judged["psnr_db"], kind="stable")[len(judged) // 2]])
    sent, channels = run.live.rows(run.live.path / SENT), run.live.rows(run.live.path / CHANNELS)
    at = np.flatnonzero(sent["frame"] == number)
    nmse_db = float(run.truth["csi_nmse_db"][run.truth["frame"] == number][0])
    reference, _ = codec.transmit(
        sent["picture"][at], on_data_subcarriers(channels["known"][at]), nmse_db, wanted.snr_db
    )
    n = len(at)
    phases = np.exp(2j * np.pi / n * np.outer(np.arange(n), np.arange(n))) / n
    streams = np.abs(np.einsum("kq,usa,qsa->uks", phases, channels["h"][at], reference)) ** 2
    own = streams[np.arange(n), np.arange(n)]
    others = streams.sum(axis=1) - own

    def in_db(values: np.ndarray) -> np.ndarray:
        return 10 * np.log10(np.maximum(values, 1e-9))

    users = ", ".join(f"stream {place} is user {user}'s" for place, user in enumerate(sent["user"][at]))
    return build.captioned(
        plots.effective_channels(
            scenario.picture_frame.subcarriers,
            in_db(own),
            in_db(others) if n > 1 else None,
            -wanted.snr_db,
            "Effective channels behind the precoder",
        ),
        f"True channels times precoder in frame {number}, the one in the middle by PSNR; {users}. What others' streams "
        "leave at a user is what the base station does not know of the channel, and what the regularised precoder "
        "leaves on purpose.",
    )


def _synchronisation(run: Run) -> dict[str, Any]:
    rows, metrics = run.decisions, run.metrics.get("synchronisation") or {}
    if not len(rows):
        return {"reason": "No frame brought a picture, so there is nothing to show.", "figures": [], "rows": []}
    known = run.live_info.get("radio", {}).get("users_truth")
    cfo_hz = np.array(known["cfo_hz"])[rows["user"]] if known else None
    off = rows["cfo_hz"] + rows["drift_hz"] - (0 if cfo_hz is None else cfo_hz)
    figures = [
        build.captioned(
            plots.estimate_over_frames(
                rows["frame"],
                off,
                0.0 if known else None,
                "carrier offset error, Hz" if known else "carrier offset, Hz",
                "Carrier offset over frames",
                "estimate − truth, Hz" if known else "",
            ),
            f"Carrier offset of all users, as beacon and references tell it, {build.count_text(len(rows))} frames"
            + (", less the true one of each." if known else "; the truth is not known."),
        ),
        build.captioned(
            plots.estimate_over_frames(
                rows["frame"],
                rows["drift_hz"],
                None,
                "left by the beacon, Hz",
                "Carrier offset that the beacon leaves",
                "",
            ),
            "What the repeat of the first reference shows of it: the beacon's own error, and phase noise. The symbols "
            "of the data are turned back by it.",
        ),
    ]
    names = (
        ("timing_error_samples", "timing error, samples"),
        ("cfo_error_hz", "carrier offset error of the beacon, Hz"),
        ("cfo_error_behind_drift_hz", "carrier offset error behind the references, Hz"),
        ("drift_hz", "left by the beacon, Hz"),
        ("beacon_snr_db", "beacon SNR, dB"),
        ("noise_power_estimated_over_true", "noise power, estimated over true"),
    )
    table = [{"name": label, **metrics[key]} for key, label in names if key in metrics]
    return {"reason": "", "figures": figures, "rows": table}


def _latency(run: Run) -> dict[str, Any]:
    if not len(run.decisions):
        return {"reason": "No picture was received.", "figure": None, "rows": []}
    meaning = {
        "synchronise": "from the frame's first sample at the user to its tag, buffering included",
        "cut": "to the complete slot, including the rest of the frame on air",
        "receive": "demodulation",
        "queue": "waiting for the decoder",
        "decode": "computation of the user's decoder",
        "total": "all of it",
        "transmit": "at the base station: coding and precoding the pictures of all users",
    }
    stages = stage_latencies_ms(run.decisions)
    if run.truth is not None and not run.is_replay:
        stages["transmit"] = run.truth["transmit_s"] * 1e3
    return build.shared_latencies(run, stages, meaning, "decoder")


def _losses(run: Run) -> dict[str, Any]:
    found = build.losses_section(run)
    told, counts = run.metrics.get("pictures", {}), run.metrics["counts"]
    for name, value, meaning in (
        ("pictures missed", told.get("missed"), "sent, but not received"),
        ("grants not read", told.get("grants_not_read"), "a user heard a frame, but could not read whom it serves"),
        ("false pictures", told.get("false"), "decoded, but sent to somebody else"),
        ("frames without the user", counts.get("unserved"), "heard by a user that they did not serve"),
    ):
        if value is not None:
            found["rows"].append({"name": name, "value": value, "meaning": meaning})
    return found

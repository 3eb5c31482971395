"""The sections of the run report: plain values, captions and figures for the template."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

import numpy as np
from markupsafe import Markup
from pydantic import BaseModel

from .. import __version__
from ..blocks.waveforms.csi_frame import CsiFrame
from ..blocks.waveforms.frame import FrameFormat
from ..blocks.waveforms.impairments import Impairments
from ..blocks.waveforms.picture_frame import PictureFrame
from ..captures.reader import Recording
from ..errors import ScenarioError
from ..models.statistics import Interval, miss_false_alarm_curve
from ..models.uad import detectors as engines
from . import plots
from .metrics import STAGES, flagged, matched, noise_power_behind_chains, stage_latencies_ms
from .report_data import Judged, Run, antenna_levels, file_index, share_ci95, with_truth
from .runfolder import RunFolder, unpack_users
from .scenario import Scenario, load_scenario, scenario_dict, shipped_scenarios

_ORIGINS = {"run": "", "folder": ", from the whole recording", "report": " of the slots that the run kept"}

_CURVE_DECISIONS = 2_000_000
_MAP_FRAMES = 60
_SPECTROGRAM_FRAMES = 3

PATHS = {
    "air": (
        "Over the air",
        "Measured with radios and antennas; channel and faults are those of room and devices.",
    ),
    "cable": ("Cabled", "Measured with radios joined by cables: the radios' faults are real, the channel is a wire."),
    "loopback": (
        "Emulated",
        "Transmitter, receiver and detector are the real GNU Radio blocks; air, fading and the radios' faults are"
        " computed. Nothing was radiated, and no figure here is a measurement of hardware.",
    ),
    "sim": ("Simulated", "The samples come from a simulation. No figure here is a measurement of hardware."),
}


class Told(Protocol):
    """A run of one link or of several."""

    @property
    def folder(self) -> RunFolder:
        """That the report is about."""

    @property
    def info(self) -> dict[str, Any]:
        """Its run.json."""

    @property
    def scenario(self) -> Scenario:
        """Of the run."""


def head_section(run: Run, own: Judged) -> dict[str, Any]:
    """Who, when, with what, and how it went."""
    counts = run.metrics["counts"]
    frames = run.metrics.get("frames")
    path = run.live_info.get("radio", {}).get("capabilities", {}).get("path", "sim")
    kind, meaning = PATHS.get(path, (path, ""))
    wrong = [own.decided[length] != own.sent[length] for length in own.sent]
    overall = share_ci95(np.concatenate(wrong)) if wrong else None
    facts = [("Detector", str(run.info["detector"])), *provenance_facts(run)]
    return {
        "name": run.scenario.name,
        "description": run.scenario.description,
        "title": "Replay" if run.is_replay else "Random access run",
        "kind": kind,
        "meaning": ("Decided again from the recording of a run. " if run.is_replay else "") + meaning,
        "facts": facts,
        "tiles": _tiles(run, frames, counts, overall, wrong),
        "verdict": _verdict(run, frames, counts, overall, sum(w.size for w in wrong)),
        "warnings": _warnings(run),
        "version": __version__,
        "overall": overall,
    }


def provenance_facts(run: Told) -> list[tuple[str, str]]:
    """When, by which code, and where."""
    git = run.info.get("git")
    return [
        ("When", when_text(str(run.info.get("created", "")))),
        ("Seed", str(run.scenario.seed)),
        (
            "Code",
            f"commit {git['commit'][:12]}{', with uncommitted changes' if git['changed'] else ''}"
            if git
            else "not a git checkout",
        ),
        ("Versions", ", ".join(f"{k} {v}" for k, v in run.info.get("versions", {}).items())),
        ("Platform", str(run.info.get("platform", ""))),
        ("Folder", str(run.folder.path)),
    ]


def _tiles(
    run: Run, frames: dict[str, Any] | None, counts: dict[str, Any], overall: Interval | None, wrong: list[np.ndarray]
) -> list[dict[str, Any]]:
    tiles = []
    if frames:
        whole = frames["matched"] == frames["sent"]
        tiles.append(
            {
                "label": "frames decided",
                "value": count_text(frames["matched"]),
                "note": f"of {count_text(frames['sent'])} sent",
                "good": whole,
            }
        )
    else:
        tiles.append(
            {"label": "frames decided", "value": count_text(len(run.decisions)), "note": "no truth known", "good": None}
        )
    if overall:
        total = sum(int(w.sum()) for w in wrong)
        tiles.append(
            {
                "label": "error probability",
                "value": number(overall.value) if overall.value else f"< {number(overall.high)}",
                "note": f"{count_text(total)} wrong of {count_text(sum(w.size for w in wrong))} user decisions",
                "good": None,
            }
        )
    if run.finished:
        lost = counts.get("lost_samples", 0)
        tiles.append(
            {
                "label": "samples lost",
                "value": count_text(lost),
                "note": f"in {count_text(counts.get('gaps', 0))} gaps, {count_text(counts.get('slots_dropped', 0))}"
                " slots dropped",
                "good": lost == 0,
            }
        )
    latency = run.metrics.get("latency_ms", {}).get("total")
    if latency:
        tiles.append(
            {
                "label": "latency, median",
                "value": f"{number(latency['p50'])} ms",
                "note": f"99 % within {number(latency['p99'])} ms, antenna to decision",
                "good": None,
            }
        )
    return tiles


def _verdict(
    run: Run, frames: dict[str, Any] | None, counts: dict[str, Any], overall: Interval | None, n_decisions: int
) -> str:
    said = []
    if frames:
        said.append(
            f"{count_text(frames['sent'])} frames sent: {count_text(frames['matched'])} decided, "
            f"{count_text(frames['missed'])} missed, {count_text(counts.get('slots_dropped', 0))} dropped because "
            f"samples were lost, {count_text(frames['false'])} false."
        )
    else:
        said.append(f"{count_text(len(run.decisions))} slots decided; what was sent is not known.")
    if overall:
        if overall.value:
            said.append(
                f"{percent(overall.value)} of {count_text(n_decisions)} user decisions were wrong "
                f"(95 % interval {percent(overall.low)} to {percent(overall.high)})."
            )
        else:
            said.append(
                f"None of {count_text(n_decisions)} user decisions was wrong (error probability below "
                f"{percent(overall.high)} at 95 % confidence)."
            )
    elif frames:
        said.append("Nothing was decided, so nothing is known about errors.")
    if run.finished:
        lost = counts.get("lost_samples", 0)
        said.append(f"{count_text(lost)} samples lost." if lost else "No samples lost.")
    return " ".join(said)


def shared_warnings(run: Run) -> list[str]:
    """What is to be said of how a run of any link ended."""
    said = []
    if not run.finished:
        said.append(
            "This run did not end in order: metrics.json is missing. The figures below were computed from the tables "
            "it left; losses and counts of its blocks are not known."
        )
    elif run.metrics["counts"].get("interrupted"):
        wanted = run.info.get("frames")
        asked = f"; {count_text(wanted)} frames were asked for" if wanted else ""
        said.append(f"Interrupted by the user{asked}.")
    if run.is_replay and run.live is None:
        said.append("The folder of the run that was replayed is gone, and with it the truth and the recording.")
    return said


def _warnings(run: Run) -> list[str]:
    said = shared_warnings(run)
    replayed = run.live_info.get("channel_replay")
    if replayed:
        said.append(
            f"Channel replay: the air is that of recording {replayed['recording']} ({replayed['recorded_links']} links "
            f"of {replayed['recorded_users']} users, estimated with an error of "
            f"{number(replayed['estimation_error_db'])} dB), at its SNR of {number(replayed['cell_snr_db'])} dB per "
            f"user, antenna and subcarrier. Users are {replayed['mapping']}, carrier offsets {replayed['cfo']}, "
            f"timing {replayed['timing']}; noise is {replayed['noise']}."
        )
    for name, count in flagged(run.decisions).items():
        said.append(
            f"{count_text(count)} of {count_text(len(run.decisions))} slots: {engines.Flag[name.upper()].meaning}."
        )
    if run.truth is not None and len(run.truth):
        active = unpack_users(run.truth["active"], run.scenario.users.n_users)
        if not active.any():
            said.append("Nobody was active in any frame: misses cannot be measured here, only false alarms.")
        elif active.all():
            said.append("All users were active in every frame: false alarms cannot be measured here, only misses.")
    return said


def settings_section(run: Run) -> dict[str, Any]:
    """Settings asked for and taken; impairments; channel; frame."""
    scenario = run.scenario
    fmt = scenario.frame
    links = [
        field_row(scenario.link, "access_snr_db"),
        field_row(scenario.link, "beacon_snr_db"),
        *(field_row(scenario.users, name) for name in ("n_users", "activity", "preamble_lengths", "power_spread_db")),
        *(field_row(scenario.radio, name) for name in ("n_antennas", "losses")),
        *(field_row(scenario.sync, name) for name in ("max_cfo_ppm", "false_alarms_per_sample")),
        ("detector", _plain(run.info["detector"]), "with options " + _plain(_options(run)) if _options(run) else ""),
    ]
    return shared_settings(
        run,
        links,
        fmt,
        f"The access slot holds {fmt.access_symbols} OFDM symbols of {fmt.symbol_samples} samples, room for "
        f"{fmt.max_preamble_length} preamble symbols on {fmt.n_groups} groups of {fmt.group_width} subcarriers; "
        f"{scenario.radio.n_antennas} antennas make {scenario.n_snapshots} snapshots.",
    )


def shared_settings(
    run: Run, links: Sequence[tuple[str, str, str]], frame: plots.Slots, explained: str
) -> dict[str, Any]:
    """What the settings of all links have.

    Args:
        run: of any link.
        links: rows (name, value, meaning) of what is this link's own.
        frame: its slots.
        explained: of them, for the caption.
    """
    radio = run.live_info.get("radio", {})
    requested, actual = radio.get("requested", {}), radio.get("actual", {})
    replayed = run.info["radio"].get("actual", {}) if run.is_replay else None
    rows = []
    for key in requested or actual or (replayed or {}):
        asked, taken = requested.get(key), actual.get(key)
        rows.append(
            {
                "name": key.removesuffix("_hz").removesuffix("_db").replace("_", " "),
                "asked": _setting(key, asked),
                "taken": _setting(key, taken),
                "replayed": _setting(key, replayed.get(key)) if replayed is not None else None,
                "differs": asked != taken,
            }
        )
    scenario, fmt = run.scenario, run.scenario.frame
    preset = Impairments.preset(scenario.level).model_dump()
    parts: list[BaseModel] = [fmt] if isinstance(frame, FrameFormat) else [fmt, frame.slots]
    return {
        "radio_kind": radio.get("kind", run.info["radio"].get("kind", "")),
        "facts": {k: _plain(v) for k, v in radio.get("facts", {}).items()},
        "rows": rows,
        "is_replay": run.is_replay,
        "level": scenario.level,
        "impairments": [
            (*field_row(scenario.impairments, name), getattr(scenario.impairments, name) != preset[name])
            for name in type(scenario.impairments).model_fields
        ],
        "calibration": _calibration_rows(run.info.get("calibration")),
        "channel": _channel_rows(scenario.channel),
        "beacon_channel": _channel_rows(scenario.beacon_channel),
        "links": links,
        "frame": [field_row(part, name) for part in parts for name in type(part).model_fields],
        "layout": Markup(plots.frame_layout(frame, "Frame layout with the slots to scale")),
        "layout_caption": f"One frame of {count_text(fmt.frame_samples)} samples, {number(fmt.frame_s * 1e3)} ms, to "
        f"scale. {explained}",
    }


def _calibration_rows(used: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
    """By what the receive chains were corrected, and what that leaves of their errors."""
    if not used:
        return [("used", "none: the chains are received as they are", "see semair calibrate")]
    worst, why = used["worst_residual"], "largest over the chains, on a second measurement after correction"
    return [
        ("measured", f"{when_text(used['created'])}, {used['method']}", "good until " + when_text(used["until"])),
        ("corrected", ", ".join(used["parts"]), "parts of the calibration that were used"),
        ("residual delay", f"{number(worst['delay_samples'])} samples", why),
        ("residual phase", f"{number(worst['phase_deg'])} degrees", why),
        ("residual gain", f"{number(worst['gain_db'])} dB", why),
        ("residual image", f"{number(worst['image_dbc'])} dB under the signal", why),
        ("residual DC", f"{number(worst['dc_dbfs'])} dBFS", why),
        ("mismatch of chains", f"{number(used['mismatch_db'])} dB", "what still differs, noise included"),
    ]


def _channel_rows(channel: BaseModel) -> list[tuple[str, str, str]]:
    """The fields that matter for this kind of channel."""
    kind = getattr(channel, "kind", "")
    names = [name for name in type(channel).model_fields if name in ("kind", "doppler_hz", "delay_spread_s", "redraw")]
    if kind == "none":
        names = ["kind"]
    elif kind == "recorded":
        names = ["kind", "recording"]
    elif kind == "rayleigh":
        names = [name for name in type(channel).model_fields if name in (*names, "n_taps")]
    elif kind == "clustered":
        names = [name for name in type(channel).model_fields if name != "n_taps"]
    return [field_row(channel, name) for name in names]


def detection_section(run: Run, own: Judged, judged: Sequence[Judged]) -> dict[str, Any]:
    """Error probability over lengths, and threshold sweeps."""
    judged = [one for one in judged if one.sent]
    if not own.sent:
        reason = "What was sent is not known." if run.truth is None else "No slot of a frame that was sent was decided."
        return {"reason": reason}
    series = []
    for one in judged:
        lengths = np.array(sorted(one.sent))
        intervals = [one.error(int(length)) for length in lengths]
        series.append(plots.ErrorSeries(one.name, lengths, *(np.array(part) for part in zip(*intervals, strict=True))))
    slots = {one.name: _slot_counts(one) for one in judged}
    rows = [
        {
            "length": length,
            "cells": [
                {
                    "name": one.name,
                    "slots": len(one.sent[length]),
                    "error": one.error(length),
                    "miss": one.miss(length),
                    "false_alarm": one.false_alarm(length),
                }
                for one in judged
                if length in one.sent
            ],
        }
        for length in sorted(own.sent)
    ]
    panels = _panels(run, own, judged)
    return {
        "reason": "",
        "own": own.name,
        "names": [one.name for one in judged],
        "rows": rows,
        "batch_ms": {one.name: one.batch_ms for one in judged if one.batch_ms is not None},
        "figure": Markup(
            plots.error_over_length(series, own.name, "Error probability over preamble length for every detector")
        ),
        "caption": (
            "Share of user decisions that are wrong, with 95 % intervals over slots. A bar with an arrow: no error was "
            "seen, and the bar is the upper end of the interval. Points are set a little apart to be told apart. "
            f"Each point of {own.name} rests on {_span(slots[own.name])} slots, all that this run decided"
            + "".join(f"; of {one.name} on {_span(slots[one.name])}{_ORIGINS[one.origin]}" for one in judged[1:])
            + f". Every slot is {count_text(run.scenario.users.n_users)} decisions."
        ),
        "curves": Markup(plots.trade_offs(panels, "Miss rate against false-alarm rate")) if panels else None,
        "curves_caption": (
            "Every point of a line is one decision threshold; the mark is the threshold in use. "
            f"Left: {own.name} at each preamble length"
            + (f"; right: the detectors at length {_telling_length(own)}" if len(panels) > 1 else "")
            + ". Down and left is better. Where a line runs along an edge, no such error was seen at all. "
            + " ".join(
                f"{'Left' if k == 0 else 'Right'}: {_span([c.n_active for c in curves])} decisions on active and "
                f"{_span([c.n_silent for c in curves])} on silent users per line."
                for k, (_, curves) in enumerate(panels)
            )
        ),
        "no_curves": ""
        if panels
        else "A curve of misses against false alarms needs active and silent users; this run had only one of them.",
    }


def _panels(run: Run, own: Judged, judged: Sequence[Judged]) -> list[tuple[str, list[plots.TradeOff]]]:
    first = [c for length in sorted(own.sent) if (c := _trade_off(own, length, f"L = {length}"))]
    if not first:
        return []
    panels = [(f"{own.name}, by preamble length", first)]
    length = _telling_length(own)
    second = [c for one in judged if length in one.sent and (c := _trade_off(one, length, one.name))]
    if len(second) > 1:
        panels.append((f"detectors at L = {length}", second))
    return panels


def _trade_off(one: Judged, length: int, name: str) -> plots.TradeOff | None:
    sent, scores = one.sent[length], one.scores[length]
    keep = max(1, _CURVE_DECISIONS // sent.shape[1])
    sent, scores = sent[:keep], scores[:keep]
    miss, alarm = one.miss(length), one.false_alarm(length)
    if not sent.any() or sent.all() or miss is None or alarm is None:
        return None
    curve = miss_false_alarm_curve(scores, sent)
    return plots.TradeOff(name, curve.miss, curve.false_alarm, (alarm, miss), int(sent.sum()), int((~sent).sum()))


def _telling_length(own: Judged) -> int:
    """The length at which the detectors are best compared: errors neither rare nor everywhere, near 1 in 100."""
    lengths = [length for length in sorted(own.sent) if own.miss(length) is not None]
    rates = {length: own.error(length).value for length in lengths}
    return min(lengths, key=lambda length: abs(np.log10(max(rates[length], 1e-9)) + 2))


def _slot_counts(one: Judged) -> list[int]:
    return [len(sent) for _, sent in sorted(one.sent.items())]


def _span(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return count_text(low) if low == high else f"{count_text(low)} to {count_text(high)}"


def synchronisation_section(run: Run) -> dict[str, Any]:
    """Estimates of carrier offset, timing, SNR and noise, beside the truth where it is known."""
    decisions = run.decisions
    figures: list[tuple[Markup, str]] = []
    if not len(decisions):
        return {"reason": "No frame was found, so there is nothing to show.", "figures": [], "rows": []}
    metrics = run.metrics.get("synchronisation") or {}
    n = count_text(len(decisions))
    true_cfo = run.radio_truth.get("cfo_hz")
    spacing = run.scenario.frame.subcarrier_spacing_hz
    figures.append(
        captioned(
            plots.estimate_over_frames(
                decisions["frame"],
                decisions["cfo_hz"],
                true_cfo,
                "carrier offset, Hz",
                "Estimated carrier frequency offset over frames",
                "estimate − truth, Hz" if true_cfo is not None else "",
            ),
            f"Carrier frequency offset, one estimate per frame, {n} frames"
            + (
                f"; the radio's true offset is {number(true_cfo)} Hz, and the beacon's fading adds its Doppler shift."
                if true_cfo is not None
                else "; the truth is not known."
            )
            + f" The subcarrier spacing is {number(spacing / 1e3)} kHz.",
        )
    )
    if run.truth is not None:
        known, at_truth = matched(decisions, run.truth)
        # Radios that others use tell no arrivals.
        told = np.isfinite(run.truth["arrival"][at_truth])
        known, at_truth = known[told], at_truth[told]
        if len(known):
            rows = decisions[known]
            error = rows["sample_time"] + rows["fraction"] - run.truth["arrival"][at_truth]
            figures.append(
                captioned(
                    plots.estimate_over_frames(
                        rows["frame"],
                        error,
                        0.0,
                        "timing error, samples",
                        "Timing error over frames",
                        "estimate − truth, samples",
                    ),
                    f"Estimated arrival of the frame less the true one, {count_text(len(known))} frames. Truth is the "
                    "arrival without multipath; echoes pull the estimate to later values. The cyclic prefix is "
                    f"{run.scenario.frame.cp_samples} samples long.",
                )
            )
    ratio_db = None
    if run.radio_truth:
        true_noise = noise_power_behind_chains(run.radio_truth)
        ratio_db = 10 * np.log10(np.maximum(decisions["noise_power"] / true_noise, 1e-12))
    figures.append(
        captioned(
            plots.levels_over_frames(
                decisions["frame"], decisions["snr_db"], ratio_db, "Beacon SNR and noise estimate over frames"
            ),
            f"SNR of the beacon as the receiver estimates it from the scatter of the equalised header, {n} frames. The "
            f"scenario sends {number(run.scenario.link.beacon_snr_db)} dB on average over fading; the estimate holds "
            "fading and the noise of the channel estimate too"
            + (
                ". Beside it the noise power of the silent slot over the true noise power behind the receive chains."
                if ratio_db is not None
                else "."
            ),
        )
    )
    symbols = run.header_symbols
    if symbols is not None and symbols.size:
        figures.append(
            captioned(
                plots.constellation(symbols, "Constellation of the header's symbols"),
                f"Equalised header symbols (BPSK) of the first {count_text(len(symbols))} frames, "
                f"{count_text(symbols.size)} symbols. Two separate clouds around the crosses mean that the frame "
                "counter can be read.",
            )
        )
    rows_out = [
        {"name": label, **metrics[key]}
        for key, label in (
            ("timing_error_samples", "timing error, samples"),
            ("cfo_error_hz", "carrier offset error, Hz"),
            ("beacon_snr_db", "beacon SNR, dB"),
            ("noise_power_estimated_over_true", "noise power, estimated over true"),
        )
        if key in metrics
    ]
    return {"reason": "", "figures": figures, "rows": rows_out}


def signals_section(run: Run) -> dict[str, Any]:
    """Spectrogram, power over a frame, levels per antenna."""
    recording = run.recording
    if recording is None:
        return {"reason": run.recording_note, "figures": [], "levels": []}
    fmt, frame = run.scenario.frame, slots_of(run.scenario)
    if recording.n_samples < fmt.n_fft:
        text = f"The recording holds {count_text(recording.n_samples)} samples, too few to draw."
        return {"reason": text, "figures": [], "levels": []}
    starts = [
        place
        for row in run.decisions[: 4 * _SPECTROGRAM_FRAMES]
        if (place := file_index(recording, row["sample_time"])) is not None
    ]
    figures = [captioned(*_spectrogram(recording, starts, frame))]
    whole = next((s for s in starts if s >= fmt.guard_samples and s + fmt.frame_samples <= recording.n_samples), None)
    if whole is not None:
        before = fmt.guard_samples
        samples = np.nan_to_num(recording.read(whole - before, before + fmt.frame_samples))
        who, more = f"all {len(samples)} antennas", "; the access slot is as long as this frame's preambles."
        if isinstance(frame, CsiFrame):
            more = ". The sounding slot is weak here: of the base station's own antennas it holds the first alone."
        elif isinstance(frame, PictureFrame):
            # Every user has a clock of its own.
            samples, who, more = samples[:1], "user 0", "."
        figures.append(
            captioned(
                plots.power_over_time(samples, before, frame, f"Power over one frame for {who}"),
                f"Power of {who} over one frame, means over 16 samples. The level of the noise slot is the receiver's "
                f"noise estimate{more}",
            )
        )
    levels = antenna_levels(recording)
    bounded = float(levels.peak_dbfs.max()) < 0.01
    figures.append(
        captioned(
            plots.antenna_levels(levels.rms_dbfs, levels.peak_dbfs, "Levels per antenna"),
            f"Level and peak per antenna over {count_text(levels.samples)} of {count_text(recording.n_samples)} "
            "samples. "
            + (
                "0 dBFS: full scale of the real and of the imaginary part."
                if bounded
                else "There is no converter here and so no full scale: 0 dBFS is amplitude 1."
            ),
        )
    )
    told = run.metrics["counts"].get("clipped_samples", run.metrics["counts"].get("clipped_samples_users"))
    rows = [
        {
            "antenna": k,
            "rms": float(levels.rms_dbfs[k]),
            "peak": float(levels.peak_dbfs[k]),
            "full": int(levels.at_full_scale[k]) if bounded else None,
            "clipped": told[k] if told is not None and k < len(told) else None,
        }
        for k in range(recording.n_channels)
    ]
    return {"reason": "", "figures": figures, "levels": rows}


def slots_of(scenario: Scenario) -> plots.Slots:
    """The slots of a scenario's link."""
    if scenario.pictures is not None:
        return scenario.picture_frame
    return scenario.frame if scenario.csi is None else scenario.csi_frame


def _spectrogram(recording: Recording, starts: Sequence[int], frame: plots.Slots) -> tuple[str, str]:
    middle = "access"
    if isinstance(frame, CsiFrame):
        middle = "sounding, feedback"
    elif isinstance(frame, PictureFrame):
        middle = "grant, pictures"
    fmt = frame if isinstance(frame, FrameFormat) else frame.frame_format
    span = _SPECTROGRAM_FRAMES * fmt.frame_samples + fmt.guard_samples
    begin = max(0, starts[0] - fmt.guard_samples) if starts else 0
    span = min(span, recording.n_samples - begin)
    samples = np.nan_to_num(recording.read(begin, span)[0])
    frames = [start - begin for start in starts if start < begin + span]
    who = "User" if isinstance(frame, PictureFrame) else "Antenna"
    svg = plots.spectrogram(samples, begin, frames, frame, f"Spectrogram of {who.lower()} 0")
    caption = f"{who} 0, {count_text(len(samples))} samples of the recording (Hann window of {fmt.n_fft} samples). " + (
        f"Marked above: beacon, {middle} and noise slot where the receiver found them; dotted lines are their starts."
        if frames
        else "No frame was found here, so no slots are marked."
    )
    return svg, caption


def activity_section(run: Run) -> dict[str, Any]:
    """Who sent and who was called active."""
    if run.truth is None or not len(run.decisions):
        return {
            "reason": "What was sent is not known." if run.truth is None else "No slot was decided.",
            "figure": None,
        }
    rows, sent = with_truth(run, run.decisions)
    if not len(rows):
        return {"reason": "No decided slot belongs to a frame that was sent.", "figure": None}
    rows, sent = rows[:_MAP_FRAMES], sent[:_MAP_FRAMES]
    decided = unpack_users(rows["active"], run.scenario.users.n_users)
    return {
        "reason": "",
        "figure": captioned(
            plots.activity_map(rows["frame"], rows["length"], sent, decided, "Activity map of users over frames"),
            f"The first {count_text(len(rows))} decided frames, {count_text(sent.shape[1])} users. Squares: sent and "
            f"found ({count_text((sent & decided).sum())}); crosses: sent and missed "
            f"({count_text((sent & ~decided).sum())}); circles: called active though silent "
            f"({count_text((~sent & decided).sum())}). Preamble lengths take turns from frame to frame.",
        ),
    }


def latency_section(run: Run) -> dict[str, Any]:
    """Host time per stage."""
    if not len(run.decisions):
        return {"reason": "No slot was decided.", "figure": None, "rows": []}
    meaning = {
        "synchronise": "from the frame's first sample at the receiver to its tag, buffering included",
        "cut": "to the demodulated access slot, including the rest of the frame on air",
        "queue": "waiting for the detector",
        "detect": "computation of the detector",
        "total": "all of it",
    }
    stages = stage_latencies_ms(run.decisions)
    return shared_latencies(run, {name: stages[name] for name in STAGES}, meaning, "detector")


def shared_latencies(
    run: Run, stages: Mapping[str, np.ndarray], meaning: Mapping[str, str], who: str
) -> dict[str, Any]:
    """Histograms and table of what each stage took.

    Args:
        run: of any link.
        stages: float, (decision,), ms, by name in the order to show.
        meaning: of each stage; also of those that are in metrics.json alone.
        who: decides.
    """
    emulated = run.is_replay or run.live_info.get("radio", {}).get("kind") == "loopback"
    return {
        "reason": "",
        "figure": captioned(
            plots.latency_histograms(stages, "Latency per stage"),
            f"Host time that each of {count_text(len(run.decisions))} decisions spent in each stage."
            + (
                " Samples come as fast as this computer makes or reads them, not at the sample rate, so the waiting in "
                f"buffers differs from that of a radio; the {who}'s time is what it is."
                if emulated
                else ""
            ),
        ),
        "rows": [
            {"name": name, "meaning": meaning.get(name, ""), **run.metrics["latency_ms"][name]}
            for name in (*stages, *(name for name in meaning if name not in stages))
            if name in run.metrics.get("latency_ms", {})
        ],
    }


def losses_section(run: Run) -> dict[str, Any]:
    """Everything that was lost, refused or clipped."""
    counts, frames = run.metrics["counts"], run.metrics.get("frames", {})
    clipped = counts.get("clipped_samples", counts.get("clipped_samples_users"))
    rows = [
        ("frames missed", frames.get("missed"), "sent, but no decision and no drop told"),
        ("false frames", frames.get("false"), "decided, but never sent under this number"),
        ("frames counted on", frames.get("counted_on"), "header unreadable, number continued from the frame before"),
        ("headers refused", counts.get("headers_refused"), "beacons found whose number could not be read"),
        ("slots dropped", counts.get("slots_dropped"), "samples were lost inside the slot"),
        ("gaps", counts.get("gaps"), "places where samples were lost"),
        ("samples lost", counts.get("lost_samples"), "per antenna, told by the radio's clock"),
        ("samples clipped", sum(clipped) if clipped is not None else None, "over all antennas, told by the radio"),
        ("late bursts", counts.get("late_bursts"), "users' bursts that came after their time on air"),
    ]
    return {
        "rows": [
            {"name": name, "value": value, "meaning": meaning} for name, value, meaning in rows if value is not None
        ],
        "wall_s": counts.get("wall_s"),
    }


def reproduce_section(run: Run) -> dict[str, Any]:
    """Command lines that make this again."""
    others = [other for other in engines.available() if other != run.info["detector"]]
    also = [("What another detector would have decided on the same air.", ["--detector", others[0]])] if others else []
    again = []
    if run.folder.path.name != "same":
        again += ["--detector", str(run.info["detector"])]
        for key, value in run.info.get("options", {}).items():
            again += ["--option", f"{key}={json.dumps(value)}"]
    return shared_reproduction(run, again, also)


def shared_reproduction(run: Run, again: list[str], also: Sequence[tuple[str, list[str]]]) -> dict[str, Any]:
    """Command lines for a run or replay of any link.

    Args:
        run: of any link.
        again: arguments behind the folder with which a replay was made.
        also: what else a replay of the recording can tell, and its arguments.
    """
    scenario = run.scenario
    live = run.live.path if run.live else run.folder.path.resolve().parent.parent
    name, overrides = scenario_arguments(scenario)
    command = ["semair", "run", scenario.kind, "--scenario", name or f"{_slug(scenario.name)}.toml"]
    for override in overrides:
        command += ["--set", override]
    if run.live_info.get("frames"):
        command += ["--frames", str(run.live_info["frames"])]
    command += ["--folder", "runs/again"]
    if run.live is not None and not run.live.recording.is_file():
        command.append("--no-record")
    lines = [("The same run again: the same seed gives the same samples.", shlex.join(command))]
    if run.live is None or run.live.recording.is_file():
        lines.append(
            ("The same decisions again, from the recording, bit for bit.", shlex.join(["semair", "replay", str(live)]))
        )
        lines += [(text, shlex.join(["semair", "replay", str(live), *arguments])) for text, arguments in also]
        if run.is_replay:
            lines.insert(0, ("This replay.", shlex.join(["semair", "replay", str(live), *again])))
    lines.append(("This page again.", shlex.join(["semair", "report", str(run.folder.path)])))
    return {
        "lines": lines,
        "file": "" if name else f"{_slug(scenario.name)}.toml",
        "toml": "" if name else toml_of(scenario),
    }


def scenario_arguments(scenario: Scenario) -> tuple[str, list[str]]:
    """The shipped scenario and the overrides that make a scenario; an empty name where that cannot be said."""
    if scenario.name not in shipped_scenarios():
        return "", []
    wanted = _leaves(scenario_dict(scenario))
    start = [f"level={json.dumps(scenario.level)}"]
    base = _leaves(scenario_dict(load_scenario(scenario.name, start)))
    overrides = [] if load_scenario(scenario.name).level == scenario.level else start
    if wanted.get("detector.name") != base.get("detector.name"):
        overrides.append("detector.options={}")
    overrides += [f"{key}={_toml_value(value)}" for key, value in wanted.items() if base.get(key, base) != value]
    try:
        same = load_scenario(scenario.name, overrides) == scenario
    except ScenarioError:
        same = False
    return (scenario.name, overrides) if same else ("", [])


def toml_of(scenario: Scenario) -> str:
    """A scenario as a TOML file; values that are none stay out."""
    plain = scenario_dict(scenario)
    tables = {key: value for key, value in plain.items() if isinstance(value, dict)}
    lines = [f"{key} = {_toml_value(value)}" for key, value in plain.items() if key not in tables and value is not None]
    for name, table in tables.items():
        lines += ["", f"[{name}]"]
        lines += [f"{key} = {_toml_value(value)}" for key, value in table.items() if value is not None]
    return "\n".join(lines) + "\n"


def _leaves(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict) and value:
            found |= _leaves(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, dict):
        inside = (f"{json.dumps(key)} = {_toml_value(item)}" for key, item in value.items() if item is not None)
        return "{" + ", ".join(inside) + "}"
    return json.dumps(value, ensure_ascii=False)


def captioned(svg: str, caption: str) -> tuple[Markup, str]:
    """A figure with its caption, for the template."""
    # The figures escape what they are given; everything else on the page is escaped by the template.
    return Markup(svg), caption


def _options(run: Run) -> dict[str, Any]:
    if run.is_replay and run.info.get("options"):
        return run.info["options"]
    return run.scenario.detector.options if run.info["detector"] == run.scenario.detector.name else {}


def field_row(section: BaseModel, name: str) -> tuple[str, str, str]:
    """Name, value and description of one field."""
    return name, _plain(getattr(section, name)), type(section).model_fields[name].description or ""


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key}={_plain(item)}" for key, item in value.items())
    return str(value)


def _setting(key: str, value: Any) -> str:
    if value is not None and key.endswith("_hz"):
        for unit, size in (("GHz", 1e9), ("MHz", 1e6), ("kHz", 1e3)):
            if abs(value) >= size:
                return f"{value / size:.9g} {unit}"
        return f"{value:.9g} Hz"
    return _plain(value) + (" dB" if value and key.endswith("_db") else "")


def when_text(created: str) -> str:
    """A time as people read it."""
    try:
        return datetime.fromisoformat(created).strftime("%Y-%m-%d %H:%M:%S %Z")
    except ValueError:
        return created


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)


def number(value: float | None) -> str:
    """Three significant digits, powers of ten as in print; a dash for nothing."""
    if value is None or not np.isfinite(value):
        return "–"
    value = float(f"{value:.3g}")
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e4:
        text = f"{value:.3g}"
        return (f"{float(text):,.0f}".replace(",", "\u202f") if "e" in text else text).replace("-", "−")
    mantissa, exponent = f"{value:.2e}".split("e")
    power = plots.power_of_ten(10.0 ** int(exponent))
    return f"{mantissa}·{power}".replace("-", "−")


def count_text(value: int) -> str:
    """A count with thin spaces between thousands."""
    return f"{int(value):,}".replace(",", "\u202f")


def percent(value: float | None) -> str:
    """A share as per cent."""
    return "–" if value is None else f"{number(100 * value)} %"


def level_text(value: float) -> str:
    """A level in dB with one decimal."""
    return f"{value:.1f}".replace("-", "−")

"""New feedback codes over the recorded uplink of a run: what other weights or lengths would have brought."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..blocks.waveforms.access import noise_powers
from ..blocks.waveforms.csi_frame import CsiFrame
from ..blocks.waveforms.feedback import feedback_burst, receive_feedback
from ..blocks.waveforms.frame import FrameFormat
from ..blocks.waveforms.ofdm import demodulate, modulate
from ..captures.reader import Recording
from ..errors import RecordingError, ScenarioError
from .csi_feedback_run import ESTIMATES, KIND, decision_dtype, make_codec, model_facts, require_csi
from .csi_metrics import csi_metrics
from .link_run import OnProgress, Progress, ReplayResult
from .report_data import file_index
from .rowlog import RowLog
from .runfolder import RunFolder, pack_users, provenance
from .scenario import Scenario, scenario_dict

_NOISE = 72
# SNR that decoders are told, as in the flowgraph's decoder.
_SNR_DB = (-10.0, 20.0)
_LEAST_POWER = 1e-9


@dataclass(frozen=True)
class Uplink:
    """The uplink of one user in one frame, all antennas with unit noise.

    Attributes:
        response: complex64, (antenna, used subcarrier).
        error: expected square error of a value of `response` over its mean power.
        turn_rad: phase by which each OFDM symbol turns against the one before.
    """

    response: np.ndarray
    error: float
    turn_rad: float


def estimate_uplink(
    part: np.ndarray, word: np.ndarray, frame: CsiFrame, noise: np.ndarray, fraction: float = 0.0, cfo_hz: float = 0.0
) -> Uplink:
    """Estimate a user's uplink from its pilots and from the code that it is known to have sent.

    Taps within the delays that the receiver allows, by linear minimum mean square error; their powers are those of a
    least squares fit less its noise.

    Args:
        part: complex, (antenna, part_samples): the user's part of the feedback slot.
        word: complex, (feedback_length,): its code.
        frame: slots.
        noise: float, (antenna,): power per complex sample.
        fraction: true frame start minus the index taken for it, in samples.
        cfo_hz: carrier offset to remove.
    """
    fmt = frame.frame_format
    n, used = frame.part_symbols, fmt.used_subcarriers
    received = demodulate(part, fmt, n, fraction, cfo_hz, used) / np.sqrt(noise)[:, None, None]
    sent = demodulate(feedback_burst(frame, word)[None], fmt, n, subcarriers=used)[0]
    first, _ = _fit(received[:, :1], sent[:1], fmt)
    turns = np.array([np.angle(np.vdot(first * sent[k], received[:, k])) for k in range(n)])
    turns = np.unwrap(turns)
    response, error = _fit(received * np.exp(-1j * turns)[:, None], sent, fmt)
    turn = float(np.polyfit(np.arange(n), turns, 1)[0]) if n > 1 else 0.0
    return Uplink(response.astype(np.complex64), error, turn)


def _fit(received: np.ndarray, sent: np.ndarray, fmt: FrameFormat) -> tuple[np.ndarray, float]:
    """Response of every antenna on the used subcarriers, and its relative square error; noise has unit power."""
    steering = _steering(fmt)
    gram = (steering.conj().T * np.sum(np.abs(sent) ** 2, axis=0)) @ steering
    matched = np.einsum("sk,ask->ak", sent.conj(), received) @ steering.conj()
    ridge = 1e-3 * np.trace(gram).real / len(gram) * np.eye(len(gram))
    inverse = np.linalg.inv(gram + ridge)
    found = matched @ inverse.T
    noise = np.einsum("ij,jk,ik->i", inverse, gram, inverse.conj()).real
    power = np.maximum(np.mean(np.abs(found) ** 2, axis=0) - noise, _LEAST_POWER)
    covariance = np.linalg.inv(gram + np.diag(1 / power))
    response = matched @ covariance.T @ steering.T
    wrong = float(np.mean(np.einsum("ki,ij,kj->k", steering, covariance, steering.conj()).real))
    return response, wrong / max(float(np.mean(np.abs(response) ** 2)), 1e-30)


@lru_cache(maxsize=4)
def _steering(fmt: FrameFormat) -> np.ndarray:
    """From taps, a quarter of the prefix before to a whole one after the timing, to subcarriers; (n_used, tap)."""
    # Whole samples: closer than the band resolves, so that delays between taps need few of them.
    delays = np.arange(-(fmt.cp_samples // 4), fmt.cp_samples + 1)
    return np.exp(-2j * np.pi * np.outer(np.fft.fftfreq(fmt.n_fft)[fmt.used_subcarriers], delays))


def send_over(
    uplinks: dict[int, Uplink], words: dict[int, np.ndarray], frame: CsiFrame, rng: np.random.Generator
) -> np.ndarray:
    """A feedback slot as it would have been received, with white noise of unit power.

    Args:
        uplinks: by user; others are silent.
        words: complex, (feedback_length,), by user.
        frame: slots.
        rng: of the noise.

    Returns:
        complex64, (antenna, n), from `feedback_start` to the end of the noise slot.
    """
    fmt, n = frame.frame_format, frame.part_symbols
    samples = rng.standard_normal((frame.n_antennas, frame.used_samples - frame.feedback_start, 2)) @ [1, 1j]
    samples = (samples * np.sqrt(0.5)).astype(np.complex64)
    for user, uplink in uplinks.items():
        sent = demodulate(feedback_burst(frame, words[user])[None], fmt, n, subcarriers=fmt.used_subcarriers)[0]
        turned = sent * np.exp(1j * uplink.turn_rad * np.arange(n))[:, None]
        begin = user * frame.part_samples
        for antenna, response in enumerate(uplink.response):
            grid = np.zeros((n, fmt.n_fft), complex)
            grid[:, fmt.used_subcarriers] = turned * response
            samples[antenna, begin : begin + frame.part_samples] += modulate(grid, fmt.cp_samples)
    return samples


def replay_channel(
    folder: Path,
    *,
    detector: str | None = None,
    options: dict[str, Any] | None = None,
    on_progress: OnProgress | None = None,
) -> ReplayResult:
    """Code what the users of a run had estimated anew, and send it over the uplink that the run recorded.

    Args:
        folder: of the run.
        detector: weights instead of the run's.
        options: feedback_length instead of the run's.
        on_progress: called after each frame.

    Returns:
        Metrics, with truth, of the new codes; the folder lies beside the run's other replays.

    Raises:
        SemairError: folder, recording, weights or length do not fit.
    """
    live = RunFolder(folder)
    was = live.scenario()
    scenario = _changed(was, detector, dict(options or {}))
    codec, new, old = make_codec(scenario), scenario.csi_frame, was.csi_frame
    wanted = require_csi(scenario)
    recording = Recording.open(live.recording)
    estimates = {(int(row["frame"]), int(row["user"])): row for row in live.rows(live.path / ESTIMATES)}
    rows = live.rows(live.decisions)
    if not len(rows) or not estimates:
        raise RecordingError(f"{folder}: no slot was decoded of which the codes sent are known; replay the run first")
    place = live.replay(f"{codec.card.name}-{wanted.feedback_length}-channel")
    place.path.mkdir(parents=True, exist_ok=True)
    for item in place.path.iterdir():
        item.unlink()
    # Loads the network, which is no part of the first slot's time.
    codec.decode(np.ones((new.slots.n_users, wanted.feedback_length), np.complex64), wanted.snr_db, wanted.snr_db)
    progress, errors, begin = Progress(), [], time.monotonic()
    progress.expected = len(rows)
    span = old.used_samples - old.feedback_start
    with ExitStack() as stack:
        decisions = stack.enter_context(RowLog(place.decisions, decision_dtype(scenario)))
        for row in rows:
            at = file_index(recording, row["sample_time"])
            if at is None or at + old.used_samples > recording.n_samples:
                continue
            samples = recording.read(at + old.feedback_start, span)
            if not np.isfinite(samples).all():
                continue
            noise = noise_powers(samples[:, old.noise_start - old.feedback_start :], old.frame_format)
            noise = np.maximum(noise, max(1e-8 * float(noise.max()), 1e-20))
            number, uplinks, words = int(row["frame"]), {}, {}
            for user in range(old.slots.n_users):
                known = estimates.get((number, user))
                if known is None:
                    continue
                part = samples[:, user * old.part_samples : (user + 1) * old.part_samples]
                cfo = float(row["cfo_hz"])
                uplinks[user] = estimate_uplink(part, known["word"], old, noise, float(row["fraction"]), cfo)
                words[user] = codec.encode(known["csi"], wanted.feedback_length, wanted.snr_db)
                errors.append(uplinks[user].error)
            rng = np.random.default_rng([scenario.seed, _NOISE, number])
            decisions.append(_decide(row, send_over(uplinks, words, new, rng), scenario, codec, decisions.dtype))
            progress.decided += 1
            if on_progress:
                on_progress(progress)
    facts = {
        "recording": recording.meta_path.name,
        "links": len(errors),
        "frames": progress.decided,
        "estimation_error_db": float(10 * np.log10(max(float(np.mean(errors)), 1e-12))) if errors else None,
        "noise": "noise is drawn anew, with the power measured in each frame's silence",
        "options": dict(options or {}),
    }
    info = {"format": 1, "kind": f"{KIND} replay", **provenance(), "scenario": scenario_dict(scenario)}
    info |= {"model": model_facts(codec), "channel_replay": facts, "radio": {"kind": "channel replay"}}
    place.write_json(place.run_json, info)
    wall_s = time.monotonic() - begin
    counts = {"slots_decided": progress.decided, "interrupted": False, "wall_s": wall_s}
    metrics = csi_metrics(place, scenario, counts, truth_folder=live)
    # Nothing was waited for.
    for name in ("synchronise", "cut", "queue", "total", "estimate", "encode"):
        metrics["latency_ms"].pop(name, None)
    metrics["channel_replay"] = facts
    if live.metrics.is_file():
        metrics["run_nmse_db"] = live.read_json(live.metrics).get("csi", {}).get("nmse_db")
    place.write_json(place.metrics, metrics)
    air_s = recording.n_samples / was.frame.sample_rate_hz
    return ReplayResult(
        place, metrics, codec.card.name, len(rows), None, progress.decided - len(rows), air_s, wall_s, False, {}
    )


def _changed(scenario: Scenario, model: str | None, options: dict[str, Any]) -> Scenario:
    """The scenario with other weights or another length."""
    wanted = require_csi(scenario)
    length = options.pop("feedback_length", wanted.feedback_length)
    if options:
        raise ScenarioError(f"options {', '.join(options)}: a channel replay takes feedback_length alone")
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise ScenarioError(f"feedback_length={length!r}: it must be a whole number of symbols, at least 1")
    update = {"feedback_length": length, "model": model or wanted.model}
    changed = scenario.model_copy(update={"csi": wanted.model_copy(update=update)})
    try:
        assert changed.csi_frame.slots.feedback_length == length
    except ValueError as error:
        raise ScenarioError(f"feedback_length={length} does not fit the run's frame: {error}") from error
    return changed


def _decide(live: np.ndarray, slot: np.ndarray, scenario: Scenario, codec: Any, dtype: np.dtype) -> np.ndarray:
    """A slot's row of the table of decisions; where and when are those of the run."""
    begin = time.perf_counter()
    feedback = receive_feedback(slot, scenario.csi_frame)
    middle = time.perf_counter()
    snr_db = np.where(feedback.heard, feedback.snr_db, 0.0).clip(*_SNR_DB)
    wanted = require_csi(scenario)
    csi, decoded = codec.decode(feedback.words, snr_db, wanted.snr_db)
    row = np.zeros((), dtype)
    for name in ("frame", "sample_time", "counted", "fraction", "cfo_hz", "metric", "snr_db", "noise_power"):
        row[name] = live[name]
    row["length"], row["active"] = len(feedback.words[0]), pack_users(np.flatnonzero(decoded), len(decoded))
    row["word_snr_db"], row["flags"], row["words"] = feedback.snr_db, feedback.flags, feedback.words
    row["csi"], row["receive_s"], row["decode_s"] = csi, middle - begin, time.perf_counter() - middle
    return row

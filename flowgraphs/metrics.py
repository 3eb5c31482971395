"""What a run measured: error probabilities, synchronisation against truth, latencies, losses."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..models.statistics import mean_ci95
from ..models.uad.detectors.base import Flag
from .runfolder import RunFolder, unpack_users
from .scenario import Scenario

STAGES = ("synchronise", "cut", "queue", "detect", "total")


def run_metrics(
    folder: RunFolder,
    scenario: Scenario,
    counts: dict[str, Any],
    truth_folder: RunFolder | None = None,
) -> dict[str, Any]:
    """Compute metrics.json of a run or replay from its tables.

    Args:
        folder: holds the decisions.
        scenario: of the run.
        counts: what the blocks counted.
        truth_folder: holds the truth; None: the same folder.

    Returns:
        Plain values.
    """
    source = truth_folder or folder
    decisions = folder.rows(folder.decisions)
    truth = source.rows(source.truth) if source.truth.is_file() else None
    metrics: dict[str, Any] = {"counts": counts, "latency_ms": latencies(decisions), "flagged": flagged(decisions)}
    if truth is not None:
        known = matched(decisions, truth)
        rows, sent = decisions[known[0]], truth[known[1]]
        # What was still on its way when a run was interrupted is not missed.
        under_way = int(np.count_nonzero(truth["frame"] > decisions["frame"].max(initial=-1)))
        due = len(truth) - (under_way if counts.get("interrupted") else 0)
        metrics["frames"] = {
            "sent": len(truth),
            "decided": len(decisions),
            "matched": len(rows),
            "missed": due - len(rows) - counts.get("slots_dropped", 0),
            "false": len(decisions) - len(rows),
            "counted_on": int(np.count_nonzero(decisions["counted"])),
        }
        loud = judged(decisions, truth, scenario)
        active = unpack_users(truth["active"][loud[1]], scenario.users.n_users)
        if scenario.quiet_frames:
            metrics["frames"]["quiet"] = int(np.count_nonzero(truth["frame"] < scenario.quiet_frames))
        metrics["detection"] = detection(decisions[loud[0]], active, scenario)
        metrics["synchronisation"] = synchronisation(rows, sent, source, scenario)
    return metrics


def flagged(decisions: np.ndarray) -> dict[str, int]:
    """Decisions that carry each of the detector's flags, by the flag's name; only flags that occurred."""
    # Tables of earlier versions know no flags.
    flags = decisions["flags"] if "flags" in (decisions.dtype.names or ()) else np.zeros(len(decisions), np.uint8)
    counts = {flag.name.lower(): int(np.count_nonzero(flags & flag)) for flag in Flag if flag.name}
    return {name: count for name, count in counts.items() if count}


def matched(decisions: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of decisions and of truth that belong to the same frame; int index arrays of equal length."""
    _, left, right = np.intersect1d(decisions["frame"], truth["frame"], return_indices=True)
    order = np.argsort(left)
    return left[order], right[order]


def judged(decisions: np.ndarray, truth: np.ndarray, scenario: Scenario) -> tuple[np.ndarray, np.ndarray]:
    """As `matched`, without the quiet frames at the beginning: where nobody may send there is nothing to detect."""
    known, at_truth = matched(decisions, truth)
    loud = truth["frame"][at_truth] >= scenario.quiet_frames
    return known[loud], at_truth[loud]


def detection(rows: np.ndarray, active: np.ndarray, scenario: Scenario) -> dict[str, Any]:
    """Error probability per user decision, by preamble length, with 95 % intervals over slots."""
    decided = unpack_users(rows["active"], scenario.users.n_users)
    result = {}
    for length in sorted(set(rows["length"].tolist())):
        at = rows["length"] == length
        wrong = decided[at] != active[at]
        result[str(length)] = {
            "slots": int(at.sum()),
            "error_probability": interval(wrong.mean(axis=1), scenario.users.n_users),
            "missed": ratio((wrong & active[at]).sum(), active[at].sum()),
            "false_alarms": ratio((wrong & ~active[at]).sum(), (~active[at]).sum()),
        }
    return result


def interval(per_slot: np.ndarray, n_users: int) -> list[float]:
    """Mean share and 95 % interval over slots, within 0 and 1: [mean, low, high]."""
    estimate = mean_ci95(per_slot, 1 / n_users)
    return [float(estimate.value), max(float(estimate.low), 0.0), min(float(estimate.high), 1.0)]


def ratio(part: int, whole: int) -> float | None:
    """Share, or None where there is nothing to share."""
    return float(part / whole) if whole else None


def synchronisation(rows: np.ndarray, sent: np.ndarray, source: RunFolder, scenario: Scenario) -> dict[str, Any]:
    """Estimates of timing and carrier offset against truth."""
    if not len(rows):
        return {}
    truth = source.read_json(source.run_json)["radio"].get("truth")
    if not truth:
        return {"beacon_snr_db": spread(rows["snr_db"])}
    timing = rows["sample_time"] + rows["fraction"] - sent["arrival"]
    cfo = rows["cfo_hz"] - truth["cfo_hz"]
    true_noise = noise_power_behind_chains(truth)
    return {
        "timing_error_samples": spread(timing),
        "cfo_error_hz": spread(cfo),
        "cfo_true_hz": truth["cfo_hz"],
        "beacon_snr_db": spread(rows["snr_db"]),
        "noise_power_estimated_over_true": spread(rows["noise_power"] / true_noise),
    }


def noise_power_behind_chains(truth: dict[str, Any]) -> float:
    """Noise power per complex sample behind the receive chains, on average over antennas.

    Args:
        truth: what an emulated radio knows about itself.
    """
    chains = np.mean(10 ** (np.asarray(truth["chain_gain_db"]) / 10))
    return float(truth["noise_power"] * truth["gain"] ** 2 * chains)


def spread(values: np.ndarray) -> dict[str, float]:
    """Mean, standard deviation, and extreme values."""
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values)),
        "min": float(np.min(values)),
        "max": float(np.max(values)),
    }


def stage_latencies_ms(decisions: np.ndarray) -> dict[str, np.ndarray]:
    """Host time that each decision of any link spent in each stage, in milliseconds; float64 (rows,) per stage.

    synchronise: from the arrival of the frame's first sample to its tag; cut: to the slot; receive: its demodulation,
    where it is timed apart from that; queue: waiting for what decides; detect or decode: its computation; total: all.
    """
    ms = 1e-6
    names = decisions.dtype.names or ()
    work = {
        stage: np.asarray(decisions[f"{stage}_s"] * 1e3, float)
        for stage in ("receive", "detect", "decode")
        if f"{stage}_s" in names
    }
    busy = np.sum(list(work.values()), axis=0)
    before = {"receive": work.pop("receive")} if "receive" in work else {}
    return {
        "synchronise": (decisions["tagged_ns"] - decisions["heard_ns"]) * ms,
        "cut": (decisions["cut_ns"] - decisions["tagged_ns"]) * ms,
        **before,
        "queue": (decisions["decided_ns"] - decisions["cut_ns"]) * ms - busy,
        **work,
        "total": (decisions["decided_ns"] - decisions["heard_ns"]) * ms,
    }


def latencies(decisions: np.ndarray) -> dict[str, dict[str, float]]:
    """Median, 99th percentile and maximum per stage, in milliseconds."""
    if not len(decisions):
        return {}
    return {stage: percentiles(values) for stage, values in stage_latencies_ms(decisions).items()}


def percentiles(values: np.ndarray) -> dict[str, float]:
    """Median, 99th percentile and maximum."""
    return {
        "p50": float(np.percentile(values, 50)),
        "p99": float(np.percentile(values, 99)),
        "max": float(values.max()),
    }

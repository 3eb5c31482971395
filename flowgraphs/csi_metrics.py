"""What a run of CSI feedback measured: errors against truth and against symbol level, sum rate, SNR, latencies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..blocks.waveforms.feedback import PartFlag
from ..blocks.waveforms.sounding import aligned, from_delay_angle, to_delay_angle
from ..models.statistics import Interval, mean_ci95
from .metrics import latencies, matched, percentiles, spread, synchronisation
from .runfolder import RunFolder, unpack_users
from .scenario import Scenario

if TYPE_CHECKING:
    from ..models.csi.judge import Coder

_SYMBOL_NOISE = 71


def csi_metrics(
    folder: RunFolder,
    scenario: Scenario,
    counts: dict[str, Any],
    *,
    truth_folder: RunFolder | None = None,
    coder: Coder | None = None,
) -> dict[str, Any]:
    """Compute metrics.json of a run or replay from its tables.

    Args:
        folder: holds the decisions.
        scenario: of the run.
        counts: what the blocks counted.
        truth_folder: holds what was sent; None: the same folder.
        coder: feeds the very same channels back at symbol level, for comparison; None: no comparison. Their first path
            lies where training puts it, a user puts the first strong one there: where that suits the code better, the
            radio chain costs less than nothing.

    Returns:
        Plain values.
    """
    source = truth_folder or folder
    decisions = folder.rows(folder.decisions)
    metrics: dict[str, Any] = {
        "kind": "csi-feedback",
        "counts": counts,
        "latency_ms": latencies(decisions),
        "flagged": {
            flag.name.lower(): int(np.count_nonzero(decisions["flags"] & flag)) for flag in PartFlag if flag.name
        },
    }
    metrics["flagged"] = {name: count for name, count in metrics["flagged"].items() if count}
    if not source.truth.is_file():
        return metrics
    truth = source.rows(source.truth)
    at_decisions, at_truth = matched(decisions, truth)
    rows, sent = decisions[at_decisions], truth[at_truth]
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
    metrics["synchronisation"] = synchronisation(rows, sent, source, scenario)
    estimates = source.rows(source.path / "estimates.npy")
    if len(estimates):
        metrics["latency_ms"]["estimate"] = percentiles(estimates["estimate_s"] * 1e3)
        metrics["latency_ms"]["encode"] = percentiles(estimates["encode_s"] * 1e3)
    wanted = scenario.csi
    assert wanted is not None
    n_users = wanted.n_users
    known = unpack_users(sent["active"], n_users)
    decoded = unpack_users(rows["active"], n_users)
    there = answering_users(source, sent["frame"], n_users)
    metrics["users"] = {
        "unheard": int(np.count_nonzero(known & ~decoded)),
        "silent": int(np.count_nonzero(there & ~known)),
        "false": int(np.count_nonzero(~known & decoded)),
    }
    mean = judge_frames(source, rows[(known & decoded).all(axis=1)], scenario, coder)
    if not mean:
        return metrics
    result: dict[str, Any] = {
        "drops": len(mean["frame"]),
        "announced_snr_db": wanted.snr_db,
        "nmse_db": in_db(mean["nmse"].mean(axis=1)),
        "nmse_db_by_user": [in_db(mean["nmse"][:, user]) for user in range(n_users)],
        "full_nmse_db": in_db(mean["full"].mean(axis=1)),
        "nmse_of_estimate_db": in_db(mean["of_estimate"].mean(axis=1)),
        "estimate_nmse_db": in_db(mean["estimate"].mean(axis=1)),
        "cosine": list(mean_ci95(mean["cosine"].mean(axis=1))),
        "uplink_snr_db": spread(mean["told_snr"]),
        "known_uplink_snr_db": spread(mean["true_snr"]),
    }
    if "rate" in mean:
        result["sum_rate_share"] = list(mean_ci95(mean["rate"]))
    if "symbol" in mean:
        result["symbol_level_nmse_db"] = in_db(mean["symbol"].mean(axis=1))
        result["chain_loss_db"] = ratio_in_db(mean["nmse"].mean(axis=1), mean["symbol"].mean(axis=1))
    metrics["csi"] = {name: finite(value) for name, value in result.items()}
    return metrics


def finite(value: Any) -> Any:
    """Plain values for JSON: within lists, numbers that are none or infinite become None."""
    if isinstance(value, list):
        return [finite(x) for x in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def answering_users(source: RunFolder, frames: np.ndarray, n_users: int) -> np.ndarray:
    """Users of a run that were there to answer; bool, (frame, user)."""
    told = source.read_json(source.run_json).get("answering")
    if told is None:
        return np.ones((len(frames), n_users), bool)
    there = np.zeros((len(frames), n_users), bool)
    for row, frame in zip(there, frames, strict=True):
        row[told[frame] if frame < len(told) else []] = True
    return there


def judge_frames(
    source: RunFolder, rows: np.ndarray, scenario: Scenario, coder: Coder | None = None
) -> dict[str, np.ndarray]:
    """Errors of recovered CSI, frame by frame.

    Args:
        source: holds true channels and what users estimated.
        rows: decisions, (frame,), in which every user was decoded.
        scenario: of the run.
        coder: feeds the very same channels back at symbol level, for comparison; None: no comparison. Their first path
            lies where training puts it, a user puts the first strong one there: where that suits the code better, the
            radio chain costs less than nothing.

    Returns:
        Empty where there is no row, else by name: frame, int, (frame,); per user, float64 (frame, user), the errors
        nmse, full, of_estimate, estimate of `judge_user`, its cosine, true_snr and told_snr in dB, and with a coder
        symbol, the error at symbol level; rate, float64 (frame,), share of the sum rate of perfect CSI, for two users
        or more.
    """
    from ..models.csi import judge

    wanted = scenario.csi
    assert wanted is not None
    n_users = wanted.n_users
    channels, estimates = source.rows(source.path / "channels.npy"), source.rows(source.path / "estimates.npy")
    index = {int(frame): k for k, frame in enumerate(channels["frame"])}
    told = {(int(row["frame"]), int(row["user"])): k for k, row in enumerate(estimates)}
    tally: dict[str, list[Any]] = {
        name: []
        for name in ("nmse", "full", "of_estimate", "estimate", "symbol", "cosine", "rate", "true_snr", "told_snr")
    }
    for row in rows:
        frame = int(row["frame"])
        channel = channels[index[frame]]
        known_csi = [estimates[told[frame, user]] for user in range(n_users)]
        judged = [judge_user(channel["h"][u], known_csi[u]["csi"], row["csi"][u], wanted) for u in range(n_users)]
        for name in ("nmse", "full", "of_estimate", "estimate", "cosine"):
            tally[name].append([one[name] for one in judged])
        recovered = np.stack([from_delay_angle(one, wanted.n_subcarriers) for one in row["csi"]])
        if n_users > 1:
            tally["rate"].append(judge.sum_rate_share(channel["h"], recovered, wanted.data_snr_db))
        tally["true_snr"].append(channel["uplink_snr_db"])
        tally["told_snr"].append(row["word_snr_db"])
        if coder is not None:
            csi = np.stack([to_delay_angle(h, wanted.n_taps).astype(np.complex64) for h in channel["h"]])
            rng = np.random.default_rng([scenario.seed, _SYMBOL_NOISE, frame])
            snr = channel["uplink_snr_db"]
            tally["symbol"].append(judge.at_symbol_level(coder, csi, wanted.feedback_length, wanted.snr_db, snr, rng))
    found = {name: np.array(values, float) for name, values in tally.items() if values}
    return {"frame": np.array(rows["frame"], int), **found} if found else {}


def judge_user(h: np.ndarray, estimate: np.ndarray, recovered: np.ndarray, wanted: Any) -> dict[str, float]:
    """Errors of one user's CSI, with the truth in the timing and phase of what the user sent.

    Args:
        h: complex64, (subcarrier, antenna): the truth.
        estimate: complex64, (tap, beam): what the user coded.
        recovered: complex64, (tap, beam), unit mean power.
        wanted: the scenario's section `csi`.
    """
    from ..models.csi import judge

    moved, _ = aligned(h, from_delay_angle(estimate, wanted.n_subcarriers))
    truth = to_delay_angle(moved, wanted.n_taps)
    sent = estimate / np.sqrt(np.mean(np.abs(estimate) ** 2))
    everywhere = from_delay_angle(recovered, wanted.n_subcarriers)
    return {
        "nmse": judge.scaled_nmse(truth, recovered),
        "full": judge.scaled_nmse(moved, everywhere),
        "of_estimate": judge.scaled_nmse(estimate, recovered),
        "estimate": judge.scaled_nmse(truth, sent),
        "cosine": judge.cosine(moved, everywhere),
    }


def in_db(values: np.ndarray) -> list[float]:
    """Mean over drops and its 95 % interval, in dB: [mean, low, high]."""
    found = mean_ci95(values)
    return [float(10 * np.log10(max(value, 1e-12))) for value in found]


def ratio_in_db(values: np.ndarray, others: np.ndarray) -> list[float]:
    """Ratio of two means over the same drops, in dB, with its 95 % interval by the delta method."""
    ratio = float(values.mean() / others.mean())
    apart = mean_ci95(values / values.mean() - others / others.mean())
    half = 10 / np.log(10) * (apart.high - apart.low) / 2
    centre = float(10 * np.log10(ratio))
    return list(Interval(centre, centre - half, centre + half))

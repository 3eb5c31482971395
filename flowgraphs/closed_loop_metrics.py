"""What a closed loop measured: what became of whom, what each stage cost in picture quality, and how long all took."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..blocks.picture_transmitter import Served
from ..blocks.waveforms.picture_frame import channels_at
from ..models.statistics import grouped_mean_ci95, mean_ci95
from .closed_loop import STAGES, Cause, counted_causes
from .csi_metrics import finite, in_db
from .picture_schedule import Pictures
from .radios import csi_drops, downlink_paths
from .runfolder import RunFolder
from .scenario import Scenario
from .semantic_metrics import Transceiver, at_symbol_level, quality

LATENCIES = (
    ("access", "detect", "detector", "base station: who is active"),
    ("feedback", "estimate", "estimator", "user: CSI from the sounding slot"),
    ("feedback", "encode", "CSI encoder", "user: CSI to symbols"),
    ("feedback", "decode", "CSI decoder", "base station: CSI of all users from what was received"),
    ("pictures", "transmit", "picture coder and precoder", "base station: pictures of all users to antenna signals"),
    ("pictures", "receive", "demodulator", "user: synchronisation and demodulation of the slot"),
    ("pictures", "decode", "picture decoder", "user: symbols to its picture"),
)
"""Stage, key of its metrics, name, and what is computed where."""

_PERFECT_DB = -40.0
_BOUND_NOISE = 91


def add_bounds(
    table: np.ndarray,
    scenario: Scenario,
    pictures: Pictures,
    codec: Transceiver,
    last: int,
    on_round: Callable[[int], None] = lambda number: None,
) -> None:
    """Fill in what pictures would have been like without errors of feedback and access, at symbol level.

    Both are sent over the very channels of the slots, with white noise of the downlink's power. Without errors of
    access, slots go to active users alone, those with the highest scores first; who was granted one keeps it.

    Args:
        table: of `closed_loop.LOOP_DTYPE`; changed.
        scenario: of the picture downlink.
        pictures: by number.
        codec: of base station and users.
        last: round up to which pictures were sent; those behind are left alone.
        on_round: told each round that is done.
    """
    told, wanted, frame = scenario.csi, scenario.pictures, scenario.picture_frame
    assert told is not None and wanted is not None
    drops = csi_drops(scenario)
    for number in np.unique(table["round"]):
        on_round(int(number))
        rows = table["round"] == number
        users = np.flatnonzero(rows)
        served = {int(table["slot"][at]): at for at in users[table["served"][users]]}
        ideal = ideal_slots(table[users], told.n_users)
        if number > last or not (served or ideal):
            continue
        drop = drops(int(number))
        paths = downlink_paths(scenario, drop)
        h = channels_at(frame, paths.delays_samples, paths.gains)
        chosen = {slot: users[user] for slot, user in ideal.items()}
        for name, places in (("perfect_psnr_db", served), ("ideal_psnr_db", chosen)):
            if not places:
                continue
            slots = tuple(sorted(places))
            sent = np.stack([pictures[int(table["picture"][places[slot]])] for slot in slots])
            rng = np.random.default_rng([scenario.seed, _BOUND_NOISE, int(number)])
            known = Served(slots, sent, drop.h[list(slots)], _PERFECT_DB)
            found = at_symbol_level(codec, known, h[list(slots)], wanted.snr_db, rng)
            for slot, picture, received in zip(slots, sent, found.pictures, strict=True):
                # At a false alarm's place nobody looks.
                if table["active"][places[slot]]:
                    table[name][places[slot]] = quality(picture, received).psnr_db


def ideal_slots(rows: np.ndarray, n_slots: int) -> dict[int, int]:
    """Who would have had which slot without errors of access.

    Args:
        rows: of a round, one per user.
        n_slots: of a round.

    Returns:
        Index of the row by slot.
    """
    active = np.flatnonzero(rows["active"])
    scores = np.nan_to_num(rows["score"][active], nan=-np.inf)
    chosen = [int(active[k]) for k in np.lexsort((active, -scores))[:n_slots]]
    taken = {int(rows["slot"][at]): at for at in chosen if rows["granted"][at]}
    free = [slot for slot in range(n_slots) if slot not in taken]
    rest = [at for at in chosen if not rows["granted"][at]]
    return dict(sorted({**taken, **dict(zip(free, rest, strict=False))}.items()))


def loop_metrics(
    run: RunFolder,
    table: np.ndarray,
    *,
    interrupted: bool,
    wall_s: float,
    of: Callable[[RunFolder], RunFolder] = lambda stage: stage,
) -> dict[str, Any]:
    """Compute metrics.json of a loop or of its replay.

    Args:
        run: of the loop.
        table: of it, `closed_loop.LOOP_DTYPE`.
        interrupted: ended by Ctrl-C.
        wall_s: duration.
        of: the folder whose metrics count, by the folder of a stage: itself, or that of a replay.

    Returns:
        Plain values. Intervals are [mean, low, high] of 95 %.
    """
    stages = {}
    for stage in STAGES:
        folder = of(RunFolder(run.path / stage))
        if folder.metrics.is_file():
            stages[stage] = folder.read_json(folder.metrics)
    done = table[table["cause"] != Cause.NOT_DONE]
    active = done[done["active"]]
    received = active[active["received"]]
    metrics: dict[str, Any] = {
        "kind": "closed-loop",
        "rounds": {
            "asked_for": len(np.unique(table["round"])),
            "with_active_users": len(np.unique(active["round"])),
        },
        "users": {
            "active": len(active),
            "detected": int(np.count_nonzero(done["detected"])),
            "granted": int(np.count_nonzero(done["granted"])),
            "slots_wasted": int(np.count_nonzero(done["granted"] & ~done["active"])),
            "served_in_vain": int(np.count_nonzero(done["served"] & ~done["active"])),
            **counted_causes(table),
        },
        "access": _errors(done),
        "latency_ms": {
            f"{stage}_{key}": stages[stage]["latency_ms"][key]
            for stage, key, _, _ in LATENCIES
            if key in stages.get(stage, {}).get("latency_ms", {})
        },
        "flagged": {},
        "counts": {
            "interrupted": interrupted,
            "wall_s": wall_s,
            "lost_samples": sum(metrics["counts"].get("lost_samples", 0) for metrics in stages.values()),
            "gaps": sum(metrics["counts"].get("gaps", 0) for metrics in stages.values()),
            "slots_dropped": sum(metrics["counts"].get("slots_dropped", 0) for metrics in stages.values()),
            "wall_s_by_stage": {stage: metrics["counts"]["wall_s"] for stage, metrics in stages.items()},
        },
    }
    if len(active):
        # Of users, not of rounds: where many ask, fewer of them are served.
        share = grouped_mean_ci95(active["received"], active["round"])
        metrics["share_served"] = [share.value, *np.clip(share[1:], 0, 1).tolist()]
    judged = done[done["recovered"] & done["active"]]
    if len(judged):
        metrics["csi"] = {
            "nmse_db": finite(in_db(_round_means(judged["round"], 10 ** (judged["csi_nmse_db"] / 10)))),
            "reckoned_nmse_db": float(judged["reckoned_nmse_db"][0]),
        }
    if len(received):
        metrics["pictures"] = _qualities(received)
    ideal = active["ideal_psnr_db"][np.isfinite(active["ideal_psnr_db"])]
    if len(ideal):
        metrics["ideal"] = {
            "served": len(ideal),
            "psnr_db": _by_round(active["round"][np.isfinite(active["ideal_psnr_db"])], ideal),
        }
    return metrics


def _qualities(received: np.ndarray) -> dict[str, Any]:
    """Figures of the pictures that active users received."""
    rounds = received["round"]
    found: dict[str, Any] = {
        "received": len(received),
        "psnr_db": _by_round(rounds, received["psnr_db"]),
        "ms_ssim": _by_round(rounds, received["ms_ssim"]),
    }
    for name, key in (("symbol", "radio_loss_db"), ("perfect", "loss_to_perfect_csi_db")):
        other = received[f"{name}_psnr_db"]
        if np.isfinite(other).all():
            found[f"{name}_psnr_db"] = _by_round(rounds, other)
            found[key] = _by_round(rounds, other - received["psnr_db"])
    return found


def _errors(rows: np.ndarray) -> dict[str, Any]:
    """Error rates of random access."""
    active, idle = rows[rows["active"]], rows[~rows["active"]]
    return {
        "missed": float(np.mean(~active["detected"])) if len(active) else None,
        "false_alarms": float(np.mean(idle["detected"])) if len(idle) else None,
    }


def _round_means(rounds: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Means of rounds, whose users have channels in common and count as one sample."""
    _, at = np.unique(rounds, return_inverse=True)
    return np.bincount(at, values) / np.bincount(at)


def _by_round(rounds: np.ndarray, values: np.ndarray) -> list[float | None]:
    return finite([float(x) for x in mean_ci95(_round_means(rounds, values))])

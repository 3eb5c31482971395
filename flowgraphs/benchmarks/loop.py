"""Benchmark of the closed loop: how many of those who ask get their picture, and what errors cost its quality."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ..scenario import load_scenario
from .entry import Entry, Measurement, OnShare

AREA = "loop"

_SCENARIO = "closed-loop"


def measurements(quick: bool) -> list[Measurement]:
    """All measurements of this area; `quick` takes fewer rounds."""
    rounds = 24 if quick else 200
    names = ("lab/share-served", "lab/loss-to-perfect-csi")
    return [Measurement(names, partial(whole, rounds, 1), 30 + rounds / 3)]


def whole(rounds: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """The share of active users that receive their picture, and its PSNR against perfect CSI without radio, in dB.

    Args:
        rounds: of access, feedback and pictures; one drop each.
        seed: of everything.
        tell: told the share done.
    """
    from ..closed_loop_run import run_closed_loop

    scenario = load_scenario(_SCENARIO, [f"seed={seed}"])
    with tempfile.TemporaryDirectory(prefix="semair-benchmark-") as place:
        done = run_closed_loop(
            scenario,
            Path(place) / "run",
            n_frames=rounds,
            record=False,
            on_progress=lambda state: tell(min(state.decided / (state.expected or 1), 1.0)),
        )
    metrics = done.metrics
    users, pictures = metrics["users"], metrics["pictures"]
    settings = {
        "scenario": _SCENARIO,
        "rounds": rounds,
        "seed": seed,
        **{name: users[name] for name in ("active", "served", "missed", "waiting", "csi_lost", "false_alarm")},
        "ci95_from": "users, grouped by rounds",
    }
    value, low, high = metrics["share_served"]
    most = metrics["ideal"]["served"] / users["active"]
    yield Entry("lab/share-served", value, (low, high), "1", f"{most:.3f} fit into the slots", settings)
    value, low, high = pictures["loss_to_perfect_csi_db"]
    told = {name: pictures[name] for name in ("psnr_db", "symbol_psnr_db", "perfect_psnr_db", "radio_loss_db")}
    settings = {**settings, **told, "csi_nmse_db": metrics["csi"]["nmse_db"], "ci95_from": "rounds, paired"}
    yield Entry("lab/loss-to-perfect-csi", value, (low, high), "dB", "radio below 1", settings)

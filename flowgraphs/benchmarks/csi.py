"""What trained CSI feedback claims at symbol level: NMSE beside other learned codes, a linear one, separate coding."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from ...models.csi.channels import PRESETS
from ...models.csi.evaluate import (
    KLT,
    RATIOS,
    Condition,
    Contender,
    Evaluation,
    LinearContender,
    Row,
    load_contender,
    part_latencies,
    shipped,
)
from ...models.csi.separate import best_nmse
from ...models.statistics import Interval, paired_ratio_ci95
from . import _running
from .entry import Entry, Measurement, OnShare, machine

AREA = "csi"

NUMEROLOGIES = ("lab", "paper")
"""Names of numerologies, and of the shipped weights that are ours."""

RCA = ("rca", "rca-token")
LEARNED = (*RCA, "ca", "vanilla", "sum", "csinet")
"""Networks of the paper's figure; shipped weights are called NUMEROLOGY-NAME."""

SEPARATE_SNR_DB = (-5.0, 0.0, 5.0, 10.0)
FAR_M = (50.0, 50.0)
ENGINE = "onnxruntime"


def measurements(quick: bool) -> list[Measurement]:
    """All measurements of this area, as far as the weights are there; `quick` takes fewer drops and conditions."""
    there, found = shipped(), list[Measurement]()
    n = 250 if quick else 2000
    ratios = (32, 8) if quick else RATIOS
    snrs = (-5.0, 10.0) if quick else SEPARATE_SNR_DB
    for numerology in NUMEROLOGIES:
        if numerology not in there:
            continue
        peers = [name for name in LEARNED if f"{numerology}-{name}" in there]
        share = 1.0 if numerology == "lab" else 4.0
        names = []
        for ratio in ratios:
            names += [f"{numerology}/R{ratio}/over-{name}" for name in (*peers, "linear")]
        weight = share * n / 250 * (2 + len(peers)) * len(ratios)
        found.append(Measurement(tuple(names), partial(over_peers, numerology, tuple(ratios), n, 1), weight))
        names = [f"{numerology}/over-separate/{snr:g}dB" for snr in snrs]
        run = partial(over_separate, numerology, tuple(snrs), n, 1)
        found.append(Measurement(tuple(names), run, share * n / 250 * len(snrs)))
        names = [f"{numerology}/neighbour/{what}" for what in ("gain", "missing", "far")]
        if f"{numerology}-alone" not in there:
            names = names[:1]
        found.append(Measurement(tuple(names), partial(neighbours, numerology, n, 1), share * n / 250 * 3))
        run = partial(sum_rate, numerology, n, 1)
        found.append(Measurement((f"{numerology}/sum-rate",), run, share * n / 250))
        names = [
            f"{numerology}/latency/{part}/{label}" for part in ("encoder", "decoder") for label in ("median", "p99")
        ]
        found.append(Measurement(tuple(names), partial(latency, numerology, 300 if quick else 3000), 2.0))
    return found


def over_peers(numerology: str, ratios: Sequence[int], n_drops: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """NMSE of ours over that of the networks of the paper's figure, and of the linear code, at 10 dB.

    Args:
        numerology: of the drops.
        ratios: compression ratios.
        n_drops: of each.
        seed: of drops and noise.
        tell: told the share done.
    """
    peers = [name for name in LEARNED if f"{numerology}-{name}" in shipped()]
    chosen = [*_networks(numerology, *(f"{numerology}-{name}" for name in peers)), LinearContender(PRESETS[numerology])]
    evaluation = Evaluation(chosen, PRESETS[numerology], n_drops, seed)
    for k, ratio in enumerate(ratios):
        condition = Condition(ratio=ratio)
        rows = _by_name(evaluation.rows(condition, lambda share, k=k: tell((k + share) / len(ratios))))  # type: ignore[misc]
        best = min(rows[f"{numerology}-{name}"].nmse_db.value for name in peers) if peers else math.nan
        for name in (*peers, "linear"):
            row = rows[KLT if name == "linear" else f"{numerology}-{name}"]
            target = {"linear": "below 0", **dict.fromkeys(RCA, "at most -0.5")}.get(name, "below 0")
            yield _ratio_entry(
                f"{numerology}/R{ratio}/over-{name}",
                rows[numerology],
                row,
                target,
                {"nmse_db": row.nmse_db.value, "best_learned_peer_nmse_db": best, **_training(name, numerology)},
                seed,
            )


def over_separate(numerology: str, snrs: Sequence[float], n_drops: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """NMSE of ours over the bound of separate coding with the components of the linear code, ratio 1/16.

    Args:
        numerology: of the drops.
        snrs: of a received symbol, in dB.
        n_drops: of each.
        seed: of drops and noise.
        tell: told the share done.
    """
    config = PRESETS[numerology]
    variances = np.maximum(LinearContender(config).variances, 1e-9)
    evaluation = Evaluation(_networks(numerology), config, n_drops, seed)
    for k, snr_db in enumerate(snrs):
        condition = Condition(snr_db=snr_db)
        row = evaluation.rows(condition, lambda share, k=k: tell((k + share) / len(snrs)))[0]  # type: ignore[misc]
        length = config.n_taps * config.n_antennas // condition.ratio
        bound = 10 * math.log10(best_nmse(variances, length, snr_db))
        low, high = row.nmse_db.low - bound, row.nmse_db.high - bound
        yield Entry(
            f"{numerology}/over-separate/{snr_db:g}dB",
            row.nmse_db.value - bound,
            (low, high),
            "dB",
            "below 0",
            {
                **_settings(row, seed),
                "separate_nmse_db": bound,
                "separate": "reverse water-filling over KLT components, normal approximation, best error rate: a bound "
                "for codes that know the covariance alone, not a code that was run",
            },
        )


def neighbours(numerology: str, n_drops: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """What a neighbour is worth, and that a missing or distant one does no harm, at ratio 1/16 and 10 dB.

    Args:
        numerology: of the drops.
        n_drops: of each condition.
        seed: of drops and noise.
        tell: told the share done.
    """
    single = f"{numerology}-alone"
    there = single in shipped()
    evaluation = Evaluation(_networks(numerology, *([single] if there else [])), PRESETS[numerology], n_drops, seed)
    conditions = {
        "near": Condition(),
        "missing": Condition(neighbour="missing"),
        "far": Condition(spacing_m=FAR_M),
    }
    rows = {
        name: _by_name(evaluation.rows(condition, lambda share, k=k: tell((k + share) / 3)))  # type: ignore[misc]
        for k, (name, condition) in enumerate(conditions.items())
    }
    ours = {name: found[numerology] for name, found in rows.items()}
    # The first user of the same drops, once with and once without the other; errors there are means over both.
    yield _ratio_entry(f"{numerology}/neighbour/gain", ours["near"], ours["missing"], "below 0", {}, seed)
    if there:
        for name in ("missing", "far"):
            alone = rows[name][single]
            yield _ratio_entry(
                f"{numerology}/neighbour/{name}", ours[name], alone, "at most 0.1", {"peer": single}, seed
            )


def sum_rate(numerology: str, n_drops: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """Sum rate of regularised zero forcing with recovered CSI over that with perfect CSI, ratio 1/16, 10 dB.

    Args:
        numerology: of the drops.
        n_drops: drops.
        seed: of drops and noise.
        tell: told the share done.
    """
    chosen = [*_networks(numerology), LinearContender(PRESETS[numerology])]
    rows = _by_name(Evaluation(chosen, PRESETS[numerology], n_drops, seed).rows(Condition(), tell))
    rate, linear = rows[numerology].sum_rate, rows[KLT].sum_rate
    assert rate is not None and linear is not None
    settings = {**_settings(rows[numerology], seed), "downlink_snr_db": 10.0, "linear": linear.value}
    target = "at least 0.9" if numerology == "paper" else f"linear code: {linear.value:.3f}"
    yield Entry(f"{numerology}/sum-rate", rate.value, (rate.low, rate.high), "1", target, settings)


def latency(numerology: str, n_runs: int, tell: OnShare) -> Iterator[Entry]:
    """Time of a user's encoder, and of the joint decoder for two users, one core, batch 1.

    Args:
        numerology: of the weights.
        n_runs: timed.
        tell: told the share done.
    """
    targets: dict[Literal["encoder", "decoder"], str] = {"encoder": "below 1", "decoder": "below 3"}
    for k, (name, target) in enumerate(targets.items()):
        times = 1e3 * part_latencies(numerology, name, n_runs, ENGINE)
        settings = {"numerology": numerology, "runs": n_runs, "batch": 1, "engine": ENGINE, "machine": machine()}
        for label, share in (("median", 0.5), ("p99", 0.99)):
            value, low, high = _running.quantile_ci95(times, share)
            yield Entry(f"{numerology}/latency/{name}/{label}", value, (low, high), "ms", target, settings)
        tell((k + 1) / len(targets))


def _networks(*names: str) -> list[Contender]:
    return [load_contender(name)[1] for name in names]


def _by_name(rows: Sequence[Row]) -> dict[str, Row]:
    return {row.contender: row for row in rows}


def _training(name: str, numerology: str) -> dict[str, Any]:
    """How long both were trained: no comparison says more than that."""
    said = {}
    for label, other in (("ours", numerology), ("peer", f"{numerology}-{name}")):
        if other in shipped():
            training = load_contender(other)[0].training
            said[f"{label}_training"] = {"steps": training.steps, "drops": training.samples, "time_s": training.time_s}
    return said


def _settings(row: Row, seed: int) -> dict[str, Any]:
    return {
        **vars(row.condition),
        "drops": row.drops,
        "seed": seed,
        "ours_nmse_db": row.nmse_db.value,
        "level": "symbols",
    }


def _ratio_entry(name: str, ours: Row, peer: Row, target: str, more: dict[str, Any], seed: int) -> Entry:
    ratio: Interval = paired_ratio_ci95(ours.errors, peer.errors)
    value, low, high = (10 * math.log10(max(part, 1e-12)) for part in ratio)
    settings = {
        **_settings(ours, seed),
        "peer_nmse_db": peer.nmse_db.value,
        **more,
        "ci95_from": "bootstrap over drops",
    }
    return Entry(name, value, (low, high), "dB", target, settings)

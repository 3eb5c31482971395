"""What trained CSI feedback claims, at symbol level and over the air, beside learned, linear and separate codes."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...models.csi.channels import PRESETS
from ...models.csi.coded import FIXED, SEPARATE, SeparateContender
from ...models.csi.evaluate import (
    KLT,
    RATIOS,
    Condition,
    Evaluation,
    Row,
    load_contender,
    multiply_adds,
    part_latencies,
    shipped,
    traced_test,
)
from ...models.csi.separate import best_nmse
from ...models.statistics import Interval, paired_ratio_ci95
from ..csi_separate import contenders as with_separate
from ..csi_separate import linear_contender
from . import _running
from .entry import Entry, Measurement, OnShare, machine

AREA = "csi"

NUMEROLOGIES = ("lab", "paper")
"""Names of numerologies, and of the shipped weights that are ours."""

RCA = ("rca", "rca-token")
OTHERS = ("ca", "vanilla", "sum", "csinet")
LEARNED = (*RCA, *OTHERS)
"""Networks of the paper's figure; shipped weights are called NUMEROLOGY-NAME."""

SEPARATE_SNR_DB = (-5.0, 0.0, 5.0, 10.0)
FAR_M = (50.0, 50.0)
ENGINE = "onnxruntime"

LEVELS = {"cabled": "at most 1", "wireless": "at most 2"}
"""Impairments of the radio chain, and what it may cost in dB."""

TRACED = "SEMAIR_TRACED"
"""Environment variable with the path of a file of `semair trace`, for the site that was kept out."""

SITE = "etoile"
ELSEWHERE, EVERYWHERE = "elsewhere", "everywhere"
"""Weights trained on traced drops without the site, and with it, are called NUMEROLOGY-NAME."""


def measurements(quick: bool) -> list[Measurement]:
    """All measurements of this area, as far as the weights are there; `quick` takes fewer drops and conditions."""
    there, found = shipped(), list[Measurement]()
    ratios = (32, 8) if quick else RATIOS
    snrs = (-5.0, 10.0) if quick else SEPARATE_SNR_DB
    radio = find_spec("gnuradio") is not None
    for numerology in NUMEROLOGIES:
        if numerology not in there:
            continue
        small = numerology == "lab"
        n = (150 if small else 40) if quick else (2000 if small else 1000)
        # The linear code of many antennas takes longer to find than all else of a quick look.
        classical = small or not quick
        share = n / 250 * (1.0 if small else 10.0)
        peers = [name for name in LEARNED if f"{numerology}-{name}" in there]
        names = [name for ratio in ratios for name in _peer_names(numerology, ratio, peers, classical)]
        run = partial(over_peers, numerology, tuple(ratios), n, 1, classical)
        if names:
            found.append(Measurement(tuple(names), run, share * (2 + len(peers)) * len(ratios)))
        if classical and radio:
            names = [*(f"{numerology}/over-separate/{snr:g}dB" for snr in snrs), f"{numerology}/cliff"]
            run = partial(over_separate, numerology, tuple(snrs), n, 1)
            found.append(Measurement(tuple(names), run, (10 + 3 * share) * len(snrs)))
        names = [f"{numerology}/neighbour/{what}" for what in ("gain", "missing", "far")]
        if f"{numerology}-alone" not in there:
            names = names[:1]
        found.append(Measurement(tuple(names), partial(neighbours, numerology, n, 1), share * 3))
        found.append(Measurement((f"{numerology}/sum-rate",), partial(sum_rate, numerology, n, 1, classical), share))
        names = [f"{numerology}/computation-over-{name}" for name in peers if name in RCA]
        if names:
            found.append(Measurement(tuple(names), partial(computation, numerology), 1.0))
        names = [
            f"{numerology}/latency/{part}/{label}" for part in ("encoder", "decoder") for label in ("median", "p99")
        ]
        names += [f"{numerology}/latency/decoder-over-{name}" for name in peers if name in RCA]
        found.append(Measurement(tuple(names), partial(latency, numerology, 300 if quick else 3000), 4.0))
        if {f"{numerology}-{name}" for name in (ELSEWHERE, EVERYWHERE)} <= set(there) and os.environ.get(TRACED):
            run = partial(site_kept_out, numerology, os.environ[TRACED], n, 1)
            found.append(Measurement((f"{numerology}/site-kept-out",), run, share * 2))
    if radio and "lab" in there:
        frames = 60 if quick else 1000
        for level in LEVELS:
            found.append(Measurement((f"lab/radio/{level}",), partial(radio_chain, level, frames, 1), frames / 12))
    return found


def over_peers(
    numerology: str, ratios: Sequence[int], n_drops: int, seed: int, linear: bool, tell: OnShare
) -> Iterator[Entry]:
    """NMSE of ours and of SA-RCA-MUNet over the networks of the paper's figure, and over the linear code, at 10 dB.

    Of the two readings of the residual cut the better one at each ratio stands for SA-RCA-MUNet.

    Args:
        numerology: of the drops.
        ratios: compression ratios.
        n_drops: of each.
        seed: of drops and noise.
        linear: whether the linear code is among them.
        tell: told the share done.
    """
    peers = [name for name in LEARNED if f"{numerology}-{name}" in shipped()]
    chosen = _networks(numerology, *(f"{numerology}-{name}" for name in peers))
    if linear:
        chosen.append(linear_contender(numerology))
    evaluation = Evaluation(chosen, PRESETS[numerology], n_drops, seed)
    for k, ratio in enumerate(ratios):
        condition = Condition(ratio=ratio)
        found = _by_name(evaluation.rows(condition, lambda share, k=k: tell((k + share) / len(ratios))))  # type: ignore[misc]
        rows = {name: found[f"{numerology}-{name}"] for name in peers}
        if linear:
            rows["linear"] = found[KLT]
        learned = {name: row.nmse_db.value for name, row in rows.items() if name in LEARNED}
        cuts = [name for name in RCA if name in learned]
        others = [name for name in OTHERS if name in learned]
        place = f"{numerology}/R{ratio}"
        if cuts and others:
            cut = min(cuts, key=lambda name: learned[name])
            best = min(others, key=lambda name: learned[name])
            for label, name, target in (("best", best, "at most -1"), ("vanilla", "vanilla", "at most -1.5")):
                if name in rows:
                    said = {"reading": cut, "peer": name, **_training((cut, name), numerology)}
                    yield _ratio_entry(f"{place}/rca-over-{label}", rows[cut], rows[name], target, said, seed)
        for name, row in rows.items():
            target = "at most -0.5" if name in RCA else "below 0"
            said = _training((None, name), numerology) if name in LEARNED else {}
            yield _ratio_entry(f"{place}/over-{name}", found[numerology], row, target, said, seed)


def _peer_names(numerology: str, ratio: int, peers: Sequence[str], linear: bool) -> list[str]:
    """Names of what `over_peers` yields for one ratio."""
    names = []
    if any(name in RCA for name in peers) and any(name in OTHERS for name in peers):
        names = ["rca-over-best", *(["rca-over-vanilla"] if "vanilla" in peers else [])]
    names += [f"over-{name}" for name in (*peers, *(["linear"] if linear else []))]
    return [f"{numerology}/R{ratio}/{name}" for name in names]


def over_separate(numerology: str, snrs: Sequence[float], n_drops: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """NMSE of ours over that of separate source and channel coding at its best rate, and the cliff of a fixed one.

    Args:
        numerology: of the drops.
        snrs: of a received symbol, in dB.
        n_drops: of each.
        seed: of drops and noise.
        tell: told the share done.
    """
    config = PRESETS[numerology]
    chosen = with_separate(numerology, [numerology, SEPARATE, FIXED])
    coded = chosen[1]
    assert isinstance(coded, SeparateContender)
    variances = np.maximum(linear_contender(numerology).variances, 1e-9)
    evaluation = Evaluation(chosen, config, n_drops, seed)
    length = config.n_taps * config.n_antennas // Condition().ratio
    design_db = Condition().snr_db
    needed = tuple(dict.fromkeys((*snrs, design_db, design_db - 5)))
    rows = {}
    for k, snr_db in enumerate(needed):
        condition = Condition(snr_db=snr_db)
        found = evaluation.rows(condition, lambda share, k=k: tell((k + share) / len(needed)))  # type: ignore[misc]
        rows[snr_db] = _by_name(found)
        if snr_db in snrs:
            said = {
                "scheme": str(coded.scheme(length, snr_db)),
                "lost_users": rows[snr_db][SEPARATE].lost,
                "fixed_rate_nmse_db": rows[snr_db][FIXED].nmse_db.value,
                "fixed_rate_lost_users": rows[snr_db][FIXED].lost,
                "bound_nmse_db": 10 * math.log10(best_nmse(variances, length, snr_db)),
                "bound": "reverse water-filling over the linear code's components, normal approximation",
            }
            ours, peer = rows[snr_db][numerology], rows[snr_db][SEPARATE]
            yield _ratio_entry(f"{numerology}/over-separate/{snr_db:g}dB", ours, peer, "below 0", said, seed)
    above, below = rows[design_db], rows[design_db - 5]
    fixed = below[FIXED].nmse_db.value - above[FIXED].nmse_db.value
    said = {"fixed_rate": str(coded.scheme(length, design_db)), "rise_of_fixed_rate_db": fixed, "step_db": 5.0}
    yield _ratio_entry(
        f"{numerology}/cliff", below[numerology], above[numerology], f"fixed rate: {fixed:.2f}", said, seed
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


def sum_rate(numerology: str, n_drops: int, seed: int, linear: bool, tell: OnShare) -> Iterator[Entry]:
    """Sum rate of regularised zero forcing with recovered CSI over that with perfect CSI, ratio 1/16, 10 dB.

    Args:
        numerology: of the drops.
        n_drops: drops.
        seed: of drops and noise.
        linear: whether the linear code stands beside it.
        tell: told the share done.
    """
    chosen = [*_networks(numerology), *([linear_contender(numerology)] if linear else [])]
    rows = _by_name(Evaluation(chosen, PRESETS[numerology], n_drops, seed).rows(Condition(), tell))
    rate = rows[numerology].sum_rate
    assert rate is not None
    settings = {**_settings(rows[numerology], seed), "downlink_snr_db": 10.0}
    peer = rows[KLT].sum_rate if linear else None
    if peer is not None:
        settings["linear"] = peer.value
    if numerology == "paper":
        target = _judged("at least 0.9", rate)
    else:
        target = "no target" if peer is None else f"linear code: {peer.value:.3f}"
    yield Entry(f"{numerology}/sum-rate", rate.value, (rate.low, rate.high), "1", target, settings)


def computation(numerology: str, tell: OnShare) -> Iterator[Entry]:
    """Multiplications and additions of ours over those of SA-RCA-MUNet: encoders and decoder of two users.

    Args:
        numerology: of the weights.
        tell: told the share done.
    """
    (ours,) = _networks(numerology)
    counted = multiply_adds(ours.network)
    for name in (name for name in RCA if f"{numerology}-{name}" in shipped()):
        (peer,) = _networks(f"{numerology}-{name}")
        of_peer = multiply_adds(peer.network)
        settings = {"users": 2, "ours_multiply_adds": counted, "peer_multiply_adds": of_peer}
        ratio = counted / of_peer
        reference = _judged("at most 0.333", Interval(ratio, ratio, ratio)) + ", where NMSE is equal"
        yield Entry(f"{numerology}/computation-over-{name}", ratio, None, "1", reference, settings)
    tell(1.0)


def latency(numerology: str, n_runs: int, tell: OnShare) -> Iterator[Entry]:
    """Time of a user's encoder, and of the joint decoder for two users, one core, batch 1.

    Args:
        numerology: of the weights.
        n_runs: timed.
        tell: told the share done.
    """
    targets: dict[Literal["encoder", "decoder"], str] = {"encoder": "below 1", "decoder": "below 3"}
    settings = {"numerology": numerology, "runs": n_runs, "batch": 1, "engine": ENGINE, "machine": machine()}
    times = dict[str, np.ndarray]()
    for k, (part, target) in enumerate(targets.items()):
        times[part] = 1e3 * part_latencies(numerology, part, n_runs, ENGINE)
        for label, share in (("median", 0.5), ("p99", 0.99)):
            value, low, high = _running.quantile_ci95(times[part], share)
            reference = _judged(target, Interval(value, low, high))
            yield Entry(f"{numerology}/latency/{part}/{label}", value, (low, high), "ms", reference, settings)
        tell((k + 1) / (len(targets) + 1))
    for name in (name for name in RCA if f"{numerology}-{name}" in shipped()):
        theirs = 1e3 * part_latencies(f"{numerology}-{name}", "decoder", n_runs, ENGINE)
        ours, rng = times["decoder"], np.random.default_rng(1)
        draws = [
            np.median(rng.choice(ours, n_runs)) / np.median(rng.choice(theirs, n_runs)) for _ in range(_BOOTSTRAPS)
        ]
        low, high = np.percentile(draws, [2.5, 97.5])
        ratio = float(np.median(ours) / np.median(theirs))
        said = {**settings, "peer_median_ms": float(np.median(theirs))}
        yield Entry(
            f"{numerology}/latency/decoder-over-{name}", ratio, (float(low), float(high)), "medians, 1", "below 1", said
        )


def site_kept_out(numerology: str, path: str | Path, n_drops: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """NMSE at a place of weights that never saw it over that of weights trained there, ratio 1/16, 10 dB.

    Args:
        numerology: of the weights.
        path: file of traced paths.
        n_drops: of the place's test split.
        seed: of drops and noise.
        tell: told the share done.
    """
    source = traced_test(path, (SITE,), numerology)
    elsewhere, everywhere = (f"{numerology}-{name}" for name in (ELSEWHERE, EVERYWHERE))
    evaluation = Evaluation(_networks(elsewhere, everywhere), PRESETS[numerology], n_drops, seed, source=source)
    rows = _by_name(evaluation.rows(Condition(spacing_m=(0.5, 5.0)), tell))
    said = {
        "site": SITE,
        "places": rows[elsewhere].places,
        "traced_sha256": source.file.sha256,
        "full_nmse_db": rows[elsewhere].full_nmse_db,
        **_training((ELSEWHERE, EVERYWHERE), numerology),
    }
    yield _ratio_entry(f"{numerology}/site-kept-out", rows[elsewhere], rows[everywhere], "at most 3", said, seed)


def radio_chain(level: str, n_frames: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """NMSE through the whole radio chain over that at symbol level, for the same channels and SNRs.

    Args:
        level: preset of impairments.
        n_frames: frames of the run, one drop each.
        seed: of everything.
        tell: told the share done.
    """
    from ..csi_feedback_run import run_csi_feedback
    from ..scenario import load_scenario

    scenario = load_scenario("csi-lab", [f"level={level}", f"seed={seed}"])
    with tempfile.TemporaryDirectory(prefix="semair-benchmark-") as place:
        done = run_csi_feedback(
            scenario,
            Path(place) / "run",
            n_frames=n_frames,
            record=False,
            on_progress=lambda progress: tell(min(progress.decided / n_frames, 1.0)),
        )
    found = done.metrics["csi"]
    loss = Interval(*found["chain_loss_db"])
    settings = {
        "scenario": "csi-lab",
        "level": level,
        "frames": n_frames,
        "seed": seed,
        **{name: done.metrics["frames"][name] for name in ("sent", "decided", "missed")},
        **{name: found[name] for name in ("nmse_db", "symbol_level_nmse_db", "estimate_nmse_db", "uplink_snr_db")},
        "ci95_from": "drops, paired",
    }
    yield Entry(f"lab/radio/{level}", loss.value, (loss.low, loss.high), "dB", _judged(LEVELS[level], loss), settings)


_BOOTSTRAPS = 500


def _networks(*names: str) -> list[Any]:
    return [load_contender(name)[1] for name in names]


def _by_name(rows: Sequence[Row]) -> dict[str, Row]:
    return {row.contender: row for row in rows}


def _training(names: tuple[str | None, str], numerology: str) -> dict[str, Any]:
    """How long both were trained: no comparison says more than that. None: ours."""
    said = {}
    for label, name in zip(("ours", "peer"), names, strict=True):
        other = numerology if name is None else f"{numerology}-{name}"
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
        "ci95_from": "bootstrap over drops, paired",
    }
    return Entry(name, value, (low, high), "dB", _judged(target, Interval(value, low, high)), settings)


def _judged(target: str, found: Interval) -> str:
    """A target and whether it is met by the whole interval, by none of it, or open between; others as they are."""
    for words, sign in (("at most ", 1.0), ("below ", 1.0), ("at least ", -1.0), ("above ", -1.0)):
        if target.startswith(words):
            bound = sign * float(target.removeprefix(words))
            low, high = sorted((sign * found.low, sign * found.high))
            met = high < bound or (high == bound and words.startswith("at "))
            return f"{target}: {'met' if met else 'missed' if low > bound else 'open'}"
    return target

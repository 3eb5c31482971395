"""What trained activity detectors claim: errors beside classical detectors, latency, generalisation, training time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ...models.engine import ENGINES, installed
from ...models.statistics import Interval, best_threshold, paired_ratio_ci95
from ...models.uad import detectors
from ...models.uad.detectors.learned import LearnedDetector
from ...models.uad.evaluate import DetectorSetup
from ...models.uad.preambles import qpsk_preambles
from ...models.uad.sweeps import Condition, Contender, Evaluation, Row
from ..scenario import Scenario, load_scenario
from . import _running
from ._chain import antenna_streams, make_air, receive_slots, shortest_frame, tail_samples
from .entry import Entry, Measurement, OnShare, machine

AREA = "uad"

PUBLISHED = "uad-vpl"
ABLATIONS = {"plam": "uad-vpl-no-plam", "variable-length": "uad-vpl-fixed"}
"""What the published network is compared with: without the one part, without the other."""
OTHER_PUBLISHED = "uad-ht"

AS_PUBLISHED = "gmmv-amp as published"
"""Message passing that is not told the noise power and decides at belief 0.5, as its authors have it."""

PAPER, ARRAY, LAB = "uad-paper", "uad-array", "uad-lab"
"""Weights for i.i.d. snapshots, for a planar array, and for the lab's antennas and subcarrier groups."""

LENGTHS = tuple(range(8, 17))
TARGETS_OVER_CD = {10: 0.7, 12: 0.5}
CORRELATED_LENGTHS = (12, 14, 16, 18, 20)
WIRELESS_LENGTHS = (8, 10, 12, 16, 20)
_MORE = {13: 2, 14: 2, 15: 4, 16: 8}
"""Longer preambles leave fewer errors to count, and take more slots."""
TRAINING_MINUTES = {LAB: 120.0, PAPER: 30.0}

_CD = Contender(DetectorSetup("cd"), calibrated=True)


def measurements(quick: bool) -> list[Measurement]:
    """All measurements of this area, as far as the weights are there; `quick` takes fewer slots and conditions."""
    there = detectors.available()
    lengths = (8, 12, 16) if quick else LENGTHS
    found: list[Measurement] = []
    if PUBLISHED in there:
        ablations = {what: name for what, name in ABLATIONS.items() if name in there}
        names = [f"published/{PUBLISHED}/L{length}" for length in lengths]
        names += [f"published/{OTHER_PUBLISHED}/L{length}" for length in lengths if OTHER_PUBLISHED in there]
        names += [f"published/{what}" for what in ablations]
        found.append(
            Measurement(tuple(names), partial(published, lengths, 40 if quick else 2000, 1), 10 if quick else 150)
        )
    if PAPER in there:
        for length in lengths:
            slots = (150 if quick else 5000) * _MORE.get(length, 1)
            name = f"ours-over-cd/L{length}"
            run = partial(ours_over_cd, length, slots, 1)
            found.append(Measurement((name, f"{name}/noise-given"), run, slots / 500))
    correlated = CORRELATED_LENGTHS[::2] if quick else CORRELATED_LENGTHS
    ours = ARRAY if ARRAY in there else PAPER
    if ours in there:
        run = partial(over_cd_on_array, ours, correlated, 120 if quick else 1500, 1)
        found.append(Measurement(tuple(f"correlated/L{length}" for length in correlated), run, 6 if quick else 120))
    if LAB in there:
        wireless = WIRELESS_LENGTHS[::2] if quick else WIRELESS_LENGTHS
        run = partial(over_cd_on_air, wireless, 12 if quick else 60, 2 if quick else 8, 1)
        found.append(Measurement(tuple(f"wireless/L{length}" for length in wireless), run, 8 if quick else 150))
    if PAPER in there:
        found += _generalisation(quick)
    for name, minutes in TRAINING_MINUTES.items():
        if name in there:
            found.append(Measurement((f"training/{name}",), partial(training_time, name, minutes), 0.01))
    if PAPER in there:
        for length in (12,) if quick else (8, 10, 12, 16):
            place = f"latency/L{length}"
            names = [f"{place}/{who}/{label}" for who in (PAPER, "cd") for label in ("median", "p99")]
            names += [f"{place}/{PAPER}/over-cd", *(f"{place}/engine/{engine}" for engine in installed())]
            run = partial(latency, PAPER, length, 300 if quick else 3000, 1)
            found.append(Measurement(tuple(names), run, 6 if quick else 20))
    return found


def learned(name: str, label: str = "", **options: Any) -> Contender:
    """A trained detector, at the threshold of its probability."""
    return Contender(DetectorSetup(name, {"beyond_training": True, **options}, label or name))


def learned_as_built(name: str) -> LearnedDetector:
    """A trained detector with the paper scenario's preambles and its own choice of engine."""
    own = detectors.kind(name)
    assert issubclass(own, LearnedDetector)
    return own(qpsk_preambles(128, 28, np.random.default_rng(1)), 0.1)


def published(lengths: Sequence[int], n_slots: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """The published network, trained small, beside pursuit and message passing, and what its parts are good for.

    Args:
        lengths: Preamble symbols.
        n_slots: Slots per length.
        seed: Of the slots.
        tell: Told the share done.
    """
    there = detectors.available()
    peers = [
        Contender(DetectorSetup("somp"), True),
        # Sixty slots in a quick run, at some tens of milliseconds each.
        Contender(DetectorSetup("gmmv-amp"), True, share=1 / 20),
        Contender(DetectorSetup("gmmv-amp", {"learn_noise": True, "threshold": 0.5}, AS_PUBLISHED), share=1 / 20),
    ]
    networks = [name for name in (PUBLISHED, *ABLATIONS.values(), OTHER_PUBLISHED) if name in there]
    evaluation = Evaluation([*peers, _CD, *(learned(name) for name in networks)], n_slots, seed)
    by_length = {
        length: _by_name(evaluation.rows(Condition(length=length), on_share=_part(tell, k, len(lengths))))
        for k, length in enumerate(lengths)
    }
    for name in (PUBLISHED, OTHER_PUBLISHED):
        for length, rows in by_length.items():
            if name in rows:
                compared = ("somp", "gmmv-amp", AS_PUBLISHED, "cd")
                somp, amp, as_published, _ = (rows[peer].error.value for peer in compared)
                yield _error_entry(
                    f"published/{name}/L{length}",
                    rows[name],
                    f"below somp {somp:.2g} and gmmv-amp {amp:.2g} ({as_published:.2g} as published)",
                    seed,
                    {
                        "peers": {peer: list(rows[peer].error) for peer in compared},
                        "peers_thresholds": {peer: rows[peer].threshold for peer in compared},
                        "below_somp_and_gmmv_amp": bool(rows[name].error.value < min(somp, amp)),
                    },
                )
    for what, other in ABLATIONS.items():
        if other in there:
            own = detectors.kind(other)
            assert issubclass(own, LearnedDetector)
            trained = own.card_of().scenario["lengths"]
            # The network of one length is judged off that length.
            used = [length for length in lengths if trained[0] != trained[1] or length != trained[0]]
            wrong = np.concatenate([by_length[length][PUBLISHED].wrong for length in used])
            reference = np.concatenate([by_length[length][other].wrong for length in used])
            ratio = paired_ratio_ci95(wrong, reference)
            yield _ratio_entry(
                f"published/{what}",
                ratio,
                f"below 1: {PUBLISHED} over {other}, averaged over lengths",
                {
                    **_settings(Condition(), seed, n_slots),
                    "lengths": used,
                    "errors": {length: by_length[length][PUBLISHED].error.value for length in used},
                    "errors_without": {length: by_length[length][other].error.value for length in used},
                },
            )


def ours_over_cd(length: int, n_slots: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """Error probability over that of covariance ML with its best threshold, in the paper's scenario.

    Args:
        length: Preamble symbols.
        n_slots: Slots.
        seed: Of the slots.
        tell: Told the share done.
    """
    chosen = [_CD, Contender(DetectorSetup("map-search"))]
    chosen += [learned(PAPER, "unknown", noise="unknown"), learned(PAPER, "given")]
    condition = Condition(length=length)
    rows = _by_name(Evaluation(chosen, n_slots, seed).rows(condition, on_share=tell))
    for label, suffix in (("unknown", ""), ("given", "/noise-given")):
        yield _over_cd_entry(
            f"ours-over-cd/L{length}{suffix}",
            rows[label],
            rows,
            f"at most {TARGETS_OVER_CD.get(length, 1.0):g}",
            seed,
            {"detector": PAPER, "noise_power": label},
        )


def over_cd_on_array(name: str, lengths: Sequence[int], n_slots: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """The same on the clustered channel at an 8 x 8 planar array.

    Args:
        name: Weights.
        lengths: Preamble symbols.
        n_slots: Slots per length.
        seed: Of the slots.
        tell: Told the share done.
    """
    chosen = [_CD, Contender(DetectorSetup("map-search")), learned(name)]
    evaluation = Evaluation(chosen, n_slots, seed)
    for k, length in enumerate(lengths):
        condition = Condition(length=length, channel="array")
        rows = _by_name(evaluation.rows(condition, on_share=_part(tell, k, len(lengths))))
        yield _over_cd_entry(f"correlated/L{length}", rows[name], rows, "at most 0.7", seed, {"detector": name})


def over_cd_on_air(lengths: Sequence[int], n_frames: int, n_runs: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """The lab's weights and covariance ML on the same slots behind the radio chain of level `wireless`.

    Covariance ML gets the best threshold that the slots of other runs give for each length.

    Args:
        lengths: Preamble symbols.
        n_frames: Frames per length and run.
        n_runs: Runs to judge on, each with its own radios, pool and fading; as many before them set the threshold.
        seed: Of the first run.
        tell: Told the share done.
    """
    calibration, judged = (
        [
            air_slots(wireless_scenario(lengths, seed + first + k), n_frames, _part(tell, first + k, 2 * n_runs))
            for k in range(n_runs)
        ]
        for first in (0, n_runs)
    )
    names = ("cd", LAB)
    for length in lengths:
        scores = {name: [run[name][length] for run in judged] for name in names}
        truth = np.concatenate([run["truth"][length] for run in judged])
        known = np.concatenate([run["cd"][length] for run in calibration])
        threshold = best_threshold(known, np.concatenate([run["truth"][length] for run in calibration]))
        wrong = {
            name: ((np.concatenate(scores[name]) > at) != truth).sum(axis=1)
            for name, at in zip(names, (threshold, 0.5), strict=True)
        }
        if not wrong["cd"].any():
            continue
        ratio = paired_ratio_ci95(wrong[LAB], wrong["cd"])
        yield _ratio_entry(
            f"wireless/L{length}",
            ratio,
            "at most 1",
            {
                "scenario": "lab",
                "level": "wireless",
                "chain": "air, frame finder, access slot cutter with estimated noise power",
                "detector": LAB,
                "preamble_length": length,
                "slots": len(truth),
                "runs": n_runs,
                "seeds": list(range(seed + n_runs, seed + 2 * n_runs)),
                "error": float(wrong[LAB].mean() / truth.shape[1]),
                "error_cd": float(wrong["cd"].mean() / truth.shape[1]),
                "threshold_cd": threshold,
                "ci95_from": "bootstrap over slots, both detectors paired",
            },
        )


def wireless_scenario(lengths: Sequence[int], seed: int) -> Scenario:
    """The lab with bad radios, and with the shortest frames that hold its longest preamble."""
    overrides = [
        "level=wireless",
        f"users.preamble_lengths={list(lengths)}",
        f"users.preamble_seed={seed}",
        f"seed={seed}",
    ]
    frame = load_scenario("lab", overrides).frame
    return load_scenario("lab", [*overrides, f"frame.frame_samples={shortest_frame(frame)}"])


def air_slots(scenario: Scenario, n_frames: int, tell: OnShare) -> dict[str, dict[int, np.ndarray]]:
    """Send frames through the radio chain, and score the slots that come out of it.

    Returns:
        Per detector, and for "truth", per length: (slot, user) scores or bool; frames not found are left out.
    """
    users = scenario.users
    rng = np.random.default_rng([scenario.seed, 51])
    total = n_frames * len(users.preamble_lengths)
    truth = rng.random((total, users.n_users)) < users.activity
    lengths = [users.preamble_lengths[frame % len(users.preamble_lengths)] for frame in range(total)]
    air = make_air(scenario)
    tail = tail_samples(scenario, air)
    n_samples = total * scenario.frame.frame_samples + tail
    streams = antenna_streams(scenario, air, [np.flatnonzero(row) for row in truth], lengths, tail)
    slots = receive_slots(scenario, streams, lambda done: tell(0.8 * min(done / n_samples, 1.0)))
    chosen = {name: detectors.make(name, scenario.preambles(), users.activity) for name in ("cd", LAB)}
    found: dict[str, dict[int, list[np.ndarray]]] = {name: {} for name in (*chosen, "truth")}
    for frame, slot in sorted(slots.items()):
        if frame < total:
            found["truth"].setdefault(lengths[frame], []).append(truth[frame])
            for name, detector in chosen.items():
                scores = detector.scores(slot.snapshots[None], slot.noise_power)[0]
                found[name].setdefault(lengths[frame], []).append(scores)
    tell(1.0)
    return {name: {length: np.array(rows) for length, rows in kept.items()} for name, kept in found.items()}


def _generalisation(quick: bool) -> list[Measurement]:
    slots = 200 if quick else 4000
    found = []
    for n_snapshots, length in ((16, 12), (16, 16), (256, 8), (256, 10)):
        if quick and length in (16, 10):
            continue
        condition = Condition(n_snapshots=n_snapshots, length=length)
        name = f"generalisation/snapshots-{n_snapshots}/L{length}"
        found.append(Measurement((name,), partial(over_cd_at, name, condition, slots, 1), 1.0 if quick else 15.0))
    for length in (8,) if quick else (8, 10, 12):
        name = f"generalisation/fresh-pool/L{length}"
        found.append(Measurement((name,), partial(fresh_over_known_pool, length, slots, 1), 1.0 if quick else 15.0))
    return found


def over_cd_at(name: str, condition: Condition, n_slots: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """Error probability over that of covariance ML in another condition than most of the training."""
    rows = _by_name(Evaluation([_CD, learned(PAPER)], n_slots, seed).rows(condition, on_share=tell))
    yield _over_cd_entry(name, rows[PAPER], rows, "at most 1", seed, {"detector": PAPER})


def fresh_over_known_pool(length: int, n_slots: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """Error probability with fresh pools of preambles over that with the shipped scenarios' pool."""
    evaluation = Evaluation([_CD, learned(PAPER)], n_slots, seed)
    condition = Condition(length=length)
    known = _by_name(evaluation.rows(condition, on_share=_part(tell, 0, 2)))
    fresh = _by_name(evaluation.rows(replace(condition, fresh_pool=True), on_share=_part(tell, 1, 2)))
    # The slots of the two are independent: paired at random the interval holds as well.
    ratio = paired_ratio_ci95(fresh[PAPER].wrong, known[PAPER].wrong)
    yield _ratio_entry(
        f"generalisation/fresh-pool/L{length}",
        ratio,
        "at most 1.2",
        {
            **_settings(condition, seed, n_slots),
            "detector": PAPER,
            "error_known_pool": list(known[PAPER].error),
            "error_fresh_pools": list(fresh[PAPER].error),
            "the_same_ratio_of_cd": fresh["cd"].error.value / max(known["cd"].error.value, 1e-12),
            "fresh_pools": 8,
            "note": "pools differ in how hard they are, for cd as well",
        },
    )


def training_time(name: str, minutes: float, tell: OnShare) -> Iterator[Entry]:
    """How long the shipped weights took to train, from their card."""
    tell(0.0)
    kind = detectors.kind(name)
    assert issubclass(kind, LearnedDetector)
    card = kind.card_of()
    yield Entry(
        f"training/{name}",
        card.training.time_s / 60,
        None,
        "minutes",
        f"below {minutes:g}" + (" on 2 cores" if name == LAB else " with a GPU"),
        {
            "from": "card.json of the shipped weights, not measured here",
            "device": card.training.device,
            "steps": card.training.steps,
            "samples": card.training.samples,
            "command": card.training.command,
        },
    )


def latency(name: str, length: int, n_slots: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """Time per slot of a trained detector and of covariance ML, slot by slot in turn, on one core of their own process.

    Args:
        name: Weights.
        length: Preamble symbols.
        n_slots: Slots timed.
        seed: Of the slots.
        tell: Told the share done.
    """
    given = {"detectors": ["cd", name], "length": length, "slots": n_slots, "seed": seed, "engine_runs": n_slots}
    times: dict[str, np.ndarray] = {}
    with _running._alone("uad-latencies", given) as results:
        for part in (0.5, 1.0):
            times |= {key: np.array(values) for key, values in results.get(timeout=300).items()}
            tell(part)
    settings = {
        **_settings(Condition(length=length), seed, n_slots),
        "batch": 1,
        "threads": 1,
        "turn": "cd, then the network, slot by slot",
        "engine": learned_as_built(name).engine_name,
        "machine": machine(),
    }
    place = f"latency/L{length}"
    medians = {key: float(np.median(values)) for key, values in times.items()}
    for who, targets in ((name, (f"at most cd: {medians['cd']:.3g}", "below 1")), ("cd", ("the peer", "below 1"))):
        for (label, share), target in zip((("median", 0.5), ("p99", 0.99)), targets, strict=True):
            value, low, high = _running.quantile_ci95(times[who], share)
            yield Entry(f"{place}/{who}/{label}", value, (low, high), "ms per slot", target, settings)
    low, high = _median_ratio_ci95(times[name], times["cd"], np.random.default_rng(seed))
    yield Entry(
        f"{place}/{name}/over-cd", medians[name] / medians["cd"], (low, high), "medians, 1", "at most 1", settings
    )
    for engine in ENGINES:
        if f"{name}/{engine}" in times:
            value, low, high = _running.quantile_ci95(times[f"{name}/{engine}"], 0.5)
            p99 = float(np.quantile(times[f"{name}/{engine}"], 0.99))
            others = ", ".join(
                f"{e} {medians[f'{name}/{e}']:.3g}" for e in ENGINES if e != engine and f"{name}/{e}" in times
            )
            yield Entry(
                f"{place}/engine/{engine}",
                value,
                (low, high),
                "ms per slot, forward alone",
                others,
                {**settings, "engine": engine, "p99_ms": p99},
            )


def _median_ratio_ci95(values: np.ndarray, reference: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Percentile bootstrap of a ratio of medians over slots, both times of a slot drawn together."""
    draws = []
    for _ in range(500):
        chosen = rng.integers(0, len(values), len(values))
        draws.append(np.median(values[chosen]) / np.median(reference[chosen]))
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def _by_name(rows: Sequence[Row]) -> dict[str, Row]:
    return {row.detector: row for row in rows}


def _settings(condition: Condition, seed: int, n_slots: int) -> dict[str, Any]:
    return {
        "users": condition.n_users,
        "snapshots": condition.n_snapshots,
        "activity": condition.activity,
        "snr_db": condition.snr_db,
        "channel": condition.channel,
        "preamble_length": condition.length,
        "seed": seed,
        "slots": n_slots,
    }


def _error_entry(name: str, row: Row, reference: float | str, seed: int, more: Mapping[str, Any]) -> Entry:
    settings = {**_settings(row.condition, seed, row.n_slots), "missed": row.miss, "false_alarms": row.false_alarm}
    settings |= {"threshold": row.threshold, **more}
    return Entry(name, row.error.value, (row.error.low, row.error.high), "1", reference, settings)


def _ratio_entry(name: str, ratio: Interval, reference: str, settings: Mapping[str, Any]) -> Entry:
    return Entry(name, ratio.value, (ratio.low, ratio.high), "error probabilities, 1", reference, dict(settings))


def _over_cd_entry(
    name: str, row: Row, rows: Mapping[str, Row], reference: str, seed: int, more: Mapping[str, Any]
) -> Entry:
    ratio = row.over_cd
    if ratio is None:
        # Covariance ML made no error at all: only a bound can be told, in errors of one user in all slots.
        ratio = Interval(float(row.wrong.sum()), 0.0, float("inf"))
        more = {**more, "note": "cd made no error; the value is the number of errors of the detector"}
    peers = {peer: list(other.error) for peer, other in rows.items()}
    settings = {
        **_settings(row.condition, seed, row.n_slots),
        "threshold": row.threshold,
        "threshold_cd": rows["cd"].threshold,
        "threshold_cd_from": "slots of their own in the same condition, half as many",
        "errors": peers,
        "missed": row.miss,
        "false_alarms": row.false_alarm,
        "ci95_from": "bootstrap over slots, both detectors paired",
        **more,
    }
    return _ratio_entry(name, ratio, reference, settings)


def _part(tell: OnShare, part: int, of: int) -> Callable[[float], None]:
    return lambda share: tell((part + share) / of)

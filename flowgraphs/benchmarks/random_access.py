"""What random access claims: detection, cost of the radio chain, synchronisation, speed, replay, memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, TypeVar

import numpy as np
from scipy import stats

from ...blocks.waveforms.beacon import sync_sequence
from ...blocks.waveforms.preamble_detector import PreambleDetector
from ...blocks.waveforms.sync_evaluation import (
    DetectionMeasurement,
    FalseAlarmMeasurement,
    measure_detection,
    measure_false_alarms,
)
from ...models.statistics import mean_ci95, proportion_ci95
from ...models.uad import detectors
from ...models.uad.calibrate import calibrate
from ...models.uad.evaluate import DetectorSetup, error_table
from ..scenario import Scenario, load_scenario
from . import _running
from ._chain import (
    Comparison,
    antenna_streams,
    compare,
    make_air,
    receive_slots,
    receiver_delay_samples,
    shortest_frame,
    snr_cost_db,
    tail_samples,
)
from .entry import Entry, Measurement, OnShare, machine

AREA = "random-access"

LENGTHS = (8, 10, 12, 14)
COVARIANCE_ERRORS = {8: 3.3e-2, 10: 8.3e-3, 12: 1.9e-3, 14: 3.9e-4}
"""Covariance coordinate descent in plain numpy: 1600 slots over 4 pools, best threshold on the same slots."""

COST_TARGETS_DB = {"perfect": 0.5, "cabled": 1.0, "wireless": 2.0}
COST_LENGTHS = {"paper": (8, 10), "lab": (10, 16)}
OFFSETS_DB = (-12.0, -10.0, -8.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0)

T = TypeVar("T")


def measurements(quick: bool) -> list[Measurement]:
    """All measurements of this area; `quick` takes fewer draws and shorter runs."""
    return [
        *_symbol_errors(quick),
        *_costs(quick),
        *_synchronisation(quick),
        # These run beside all of the above, and are waited for before anything is timed.
        *_running.memory(quick),
        *_running.speeds(quick),
    ]


def in_threads(jobs: Sequence[Callable[[OnShare], T]], tell: OnShare) -> list[T]:
    """Run independent jobs on all cores; compiled code and transforms leave the interpreter to the others.

    Args:
        jobs: called with a function that takes their share done.
        tell: told the mean share, from the calling thread.

    Returns:
        Their results, in order.
    """
    shares = [0.0] * len(jobs)
    stop = threading.Event()

    def note(k: int, share: float) -> None:
        if stop.is_set():
            raise CancelledError
        shares[k] = share

    with ThreadPoolExecutor(int(machine()["cores"] or 1)) as pool:
        futures = [pool.submit(job, partial(note, k)) for k, job in enumerate(jobs)]
        try:
            waiting = set(futures)
            while waiting:
                finished, waiting = wait(waiting, timeout=0.2)
                for future in finished:
                    future.result()
                tell(sum(shares) / len(shares))
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]


# --- errors at symbol level


def _symbol_errors(quick: bool) -> list[Measurement]:
    found = []
    for name in detectors.classical():
        # A tenth of a second and more per slot: few slots, and none in a quick run.
        slow = name == "gmmv-amp"
        if quick and slow:
            continue
        slots, pools, weight = (50, 4, 0.3) if quick else (25, 4, 20.0) if slow else (400, 16, 6.0)
        for length in LENGTHS:
            entry = f"symbol-error/{name}/L{length}"
            found.append(
                Measurement(
                    (entry, f"{entry}/shipped-threshold"),
                    partial(symbol_error, name, length, slots, pools, 1),
                    weight,
                )
            )
    return found


def symbol_error(detector: str, length: int, n_samples: int, n_pools: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """Error probability per user decision in the paper's scenario, with best and with shipped threshold.

    Args:
        detector: registered name.
        length: preamble symbols.
        n_samples: slots per pool.
        n_pools: pools of preambles, as many for the choice of the threshold.
        seed: of both.
        tell: told the share done.
    """
    setup = DetectorSetup(detector)
    validation = max(n_samples // 2, 1)
    best = calibrate(setup, [length], validation, n_pools, seed)[length]
    tell(0.3)
    chosen = [DetectorSetup(detector, {"threshold": best}, "best"), setup]
    rows = error_table(
        chosen,
        [length],
        n_samples,
        n_pools,
        seed,
        n_timed=1,
        progress=lambda done, of: tell(0.3 + 0.7 * done / of),
    )
    target = COVARIANCE_ERRORS.get(length) if detector == "cd" else None
    for row, kind in zip(rows, ("", "/shipped-threshold"), strict=True):
        settings: dict[str, Any] = {
            "scenario": "128 users, 64 snapshots, activity 0.1, total SNR 10 dB, i.i.d. Rayleigh",
            "detector": detector,
            "preamble_length": length,
            "pools": n_pools,
            "slots_per_pool": n_samples,
            "seed": seed,
            "threshold": row.threshold,
            "threshold_from": f"{validation} slots of each of {n_pools} other pools" if not kind else "shipped",
            "missed": row.miss,
            "false_alarms": row.false_alarm,
        }
        if n_pools > 1:
            over_pools = mean_ci95(row.pool_errors)
            settings["ci95_over_pools"] = [over_pools.low, over_pools.high]
            settings["pool_errors"] = list(row.pool_errors)
            settings["pool_standard_deviation"] = float(np.std(row.pool_errors, ddof=1))
        if target is not None:
            settings["ci95_covers_reference"] = bool(row.error.low <= target <= row.error.high)
            if n_pools > 1:
                settings["ci95_over_pools_covers_reference"] = bool(over_pools.low <= target <= over_pools.high)
        yield Entry(
            f"symbol-error/{detector}/L{length}{kind}",
            row.error.value,
            (max(row.error.low, 0.0), row.error.high),
            "1",
            target if target is not None else f"cd: {COVARIANCE_ERRORS.get(length, float('nan')):.1e}",
            settings,
        )


# --- cost of the radio chain


def _costs(quick: bool) -> list[Measurement]:
    found = []
    frames = {"paper": 12, "lab": 20} if quick else {"paper": 160, "lab": 300}
    runs = 2 if quick else 6
    for name, lengths in COST_LENGTHS.items():
        for level in COST_TARGETS_DB:
            names = tuple(f"snr-cost/{name}/{level}/L{length}" for length in lengths)
            found.append(
                Measurement(
                    names,
                    partial(snr_cost, name, level, frames[name], runs, 1),
                    2.0 if quick else 40.0,
                )
            )
    return found


def chain_scenario(name: str, level: str, seed: int) -> Scenario:
    """A shipped scenario with the shortest slot and frame that hold the lengths compared."""
    lengths = COST_LENGTHS[name]
    overrides = [
        f"frame.max_preamble_length={max(lengths)}",
        f"users.preamble_lengths={list(lengths)}",
        f"users.preamble_seed={seed}",
        f"level={level}",
        f"seed={seed}",
    ]
    frame = load_scenario(name, overrides).frame
    return load_scenario(name, [*overrides, f"frame.frame_samples={shortest_frame(frame)}"])


def snr_cost(name: str, level: str, n_frames: int, n_runs: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """What the whole radio chain costs in SNR against symbol level, with covariance coordinate descent.

    Args:
        name: shipped scenario.
        level: preset of impairments.
        n_frames: frames per run and length.
        n_runs: runs, each with its own pool, radios and fading.
        seed: of the first run; the others follow.
        tell: told the share done.
    """
    lengths = COST_LENGTHS[name]

    def job(run_seed: int, on_share: OnShare) -> Comparison:
        scenario = chain_scenario(name, level, run_seed)
        detector = detectors.make("cd", scenario.preambles(), scenario.users.activity)
        return compare(scenario, detector, n_frames * len(lengths), OFFSETS_DB, on_share)

    seeds = range(seed, seed + n_runs)
    runs = in_threads([partial(job, run_seed) for run_seed in seeds], tell)
    all_lengths = np.concatenate([run.lengths for run in runs])
    chain = np.concatenate([run.chain for run in runs])
    symbol = np.concatenate([run.symbol for run in runs])
    found = np.concatenate([run.found for run in runs])
    scenario = chain_scenario(name, level, seed)
    for length in lengths:
        at = all_lengths == length
        cost = snr_cost_db(chain[at], symbol[at], OFFSETS_DB, np.random.default_rng(seed))
        error = mean_ci95(chain[at], 1 / scenario.users.n_users)
        yield Entry(
            f"snr-cost/{name}/{level}/L{length}",
            cost.value,
            (cost.low, cost.high),
            "dB",
            f"at most {COST_TARGETS_DB[level]:g}",
            {
                "scenario": name,
                "level": level,
                "preamble_length": length,
                "detector": "cd, shipped threshold",
                "chain": "air, frame finder, access slot cutter with estimated noise power, detector",
                "symbol_level": "same pools, active users and fading at the groups' centres, known noise power",
                "channel": scenario.channel.model_dump(),
                "antennas": scenario.radio.n_antennas,
                "groups": scenario.frame.n_groups,
                "frame_samples": scenario.frame.frame_samples,
                "max_preamble_length": scenario.frame.max_preamble_length,
                "snr_db": scenario.link.access_snr_db,
                "frames": int(at.sum()),
                "runs": n_runs,
                "seeds": list(seeds),
                "frames_missed": int((~found[at]).sum()),
                "error_chain": [error.value, error.low, error.high],
                "error_symbol_level": symbol[at].mean(axis=0),
                "offsets_db": OFFSETS_DB,
                "ci95_from": "bootstrap over frames, chain and symbol level paired",
            },
        )


# --- frame synchronisation


def _synchronisation(quick: bool) -> list[Measurement]:
    preambles = 400 if quick else 40_000
    samples, pieces = (4_000_000, 4) if quick else (20_000_000, 20)
    frames, runs = (150, 2) if quick else (2500, 8)
    return [
        Measurement(
            (
                "sync/missed/-3dB",
                "sync/timing-error/-3dB",
                "sync/timing-error/10dB",
                "sync/cfo-error/10dB",
            ),
            partial(sync_accuracy, preambles, 1),
            1.5 if quick else 35.0,
        ),
        Measurement(("sync/frames-missed/-3dB",), partial(frames_missed, frames, runs, 1), 1.5 if quick else 25.0),
        Measurement(
            ("sync/false-frames", "sync/false-alarm-ratio"),
            partial(false_frames, samples // pieces if quick else samples, pieces, 1),
            3.0 if quick else 80.0,
        ),
    ]


def _beacon_detector(scenario: Scenario, false_alarms_per_sample: float | None = None) -> PreambleDetector:
    """The detector as the frame finder sets it up."""
    fmt = scenario.frame
    return PreambleDetector(
        sync_sequence(fmt),
        sample_rate_hz=fmt.sample_rate_hz,
        n_antennas=scenario.radio.n_antennas,
        max_cfo_hz=scenario.max_cfo_hz,
        false_alarms_per_sample=false_alarms_per_sample or scenario.sync.false_alarms_per_sample,
        min_distance_samples=fmt.used_samples // 2,
    )


def _sync_settings(scenario: Scenario) -> dict[str, Any]:
    return {
        "scenario": scenario.name,
        "antennas": scenario.radio.n_antennas,
        "sample_rate_hz": scenario.frame.sample_rate_hz,
        "max_cfo_hz": scenario.max_cfo_hz,
        "false_alarms_per_sample": scenario.sync.false_alarms_per_sample,
        "sync_samples": scenario.frame.sync_samples,
    }


def sync_accuracy(n_preambles: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """Misses at -3 dB per antenna, and errors of timing and carrier offset, in white noise.

    Args:
        n_preambles: at each SNR.
        seed: of all draws.
        tell: told the share done.
    """
    scenario = load_scenario("lab")
    fmt = scenario.frame
    n_jobs = 8
    results: dict[int, list[DetectionMeasurement]] = {}

    def job(snr_db: int, k: int, on_share: OnShare) -> DetectionMeasurement:
        on_share(0.0)
        return measure_detection(
            _beacon_detector(scenario),
            np.random.default_rng([seed, 31, snr_db + 100, k]),
            n_preambles=-(-n_preambles // n_jobs),
            snr_db=snr_db,
            max_cfo_hz=scenario.max_cfo_hz,
        )

    for at, snr_db in enumerate((-3, 10)):
        jobs = [partial(job, snr_db, k) for k in range(n_jobs)]
        results[snr_db] = in_threads(jobs, partial(_tell_part, tell, at, 2))
    settings = {**_sync_settings(scenario), "seed": seed, "fading": "static, random phases per antenna"}
    for snr_db, runs in results.items():
        sent, missed = sum(run.sent for run in runs), sum(run.missed for run in runs)
        timing = np.concatenate([run.timing_errors_samples for run in runs])
        here = {**settings, "snr_db_per_antenna": snr_db, "preambles": sent}
        if snr_db == -3:
            share = proportion_ci95(missed, sent)
            yield Entry(
                "sync/missed/-3dB", share.value, (share.low, share.high), "1", "below 1e-3",
                {**here, "missed": missed, "false": sum(run.false for run in runs)},
            )  # fmt: skip
        value, interval = _rms(timing)
        yield Entry(
            f"sync/timing-error/{snr_db}dB",
            value,
            interval,
            "samples rms",
            f"below {fmt.cp_samples / 4:g}, a quarter of the cyclic prefix",
            {**here, "largest": float(np.abs(timing).max()), "p99": _p99(timing)},
        )
        if snr_db == 10:
            cfo = np.concatenate([run.cfo_errors_hz for run in runs]) / fmt.subcarrier_spacing_hz
            value, interval = _rms(cfo)
            yield Entry(
                "sync/cfo-error/10dB",
                value,
                interval,
                "subcarrier spacings rms",
                "below 0.01",
                {**here, "largest": float(np.abs(cfo).max()), "p99": _p99(cfo)},
            )


def frames_missed(n_frames: int, n_runs: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """Share of frames that the frame finder does not find and number at -3 dB, header included.

    Args:
        n_frames: frames per run.
        n_runs: runs, each with its own radios; carrier offset 5 ppm, up and down in turn.
        seed: of the first run.
        tell: told the share done.
    """
    overrides = ["link.beacon_snr_db=-3", "users.preamble_lengths=[8]"]

    def scenario_of(run: int) -> Scenario:
        cfo_ppm = 5 - 10 * (run % 2)
        return load_scenario(
            "lab",
            # The beacon's channel is a wire, so that every frame has the SNR asked for on every antenna.
            [*overrides, f"seed={seed + run}", f"impairments.cfo_ppm={cfo_ppm}", "beacon_channel.kind=none",
             "beacon_channel.delay_spread_s=0", "beacon_channel.doppler_hz=0"],
        )  # fmt: skip

    def job(run: int, on_share: OnShare) -> int:
        scenario = scenario_of(run)
        air = make_air(scenario)
        nobody = [np.empty(0, int)] * n_frames
        tail = tail_samples(scenario, air)
        total = n_frames * scenario.frame.frame_samples + tail
        streams = antenna_streams(scenario, air, nobody, [8] * n_frames, tail)
        slots = receive_slots(scenario, streams, lambda n: on_share(min(n / total, 1.0)))
        right = 0
        for frame, slot in slots.items():
            start = frame * scenario.frame.frame_samples
            late = slot.frame.start - air.truth.receive_index(start)
            # The delay of the finder is common to all frames and known.
            right += frame < n_frames and abs(late - receiver_delay_samples(scenario)) < scenario.frame.cp_samples
        return n_frames - right

    missed = in_threads([partial(job, run) for run in range(n_runs)], tell)
    share = proportion_ci95(sum(missed), n_frames * n_runs)
    yield Entry(
        "sync/frames-missed/-3dB",
        share.value,
        (share.low, share.high),
        "1",
        "below 1e-3",
        {
            **_sync_settings(scenario_of(0)),
            "level": scenario_of(0).level,
            "overrides": overrides,
            "cfo_ppm": [5, -5],
            "beacon_channel": "wire",
            "frames": n_frames * n_runs,
            "runs": n_runs,
            "seed": seed,
            "missed": sum(missed),
        },
    )


def false_frames(n_samples: int, n_pieces: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """False beacons in white noise as shipped, and how the rate asked for compares with the rate that comes.

    Args:
        n_samples: per antenna and piece.
        n_pieces: pieces of noise.
        seed: of the noise.
        tell: told the share done.
    """
    scenario = load_scenario("lab")
    often = 1e-5
    n_often = n_samples // 20

    def job(piece: int, on_share: OnShare) -> tuple[FalseAlarmMeasurement, FalseAlarmMeasurement]:
        on_share(0.0)
        rng = np.random.default_rng([seed, 32, piece])
        shipped = measure_false_alarms(_beacon_detector(scenario), rng, n_samples=n_samples)
        on_share(0.9)
        lowered = _beacon_detector(scenario, often)
        return shipped, measure_false_alarms(lowered, rng, n_samples=n_often)

    runs = in_threads([partial(job, piece) for piece in range(n_pieces)], tell)
    searched = sum(run.samples for run, _ in runs)
    events = sum(len(run.metrics) for run, _ in runs)
    low, high = poisson_ci95(events)
    scale = 1e8 / searched
    asked = scenario.sync.false_alarms_per_sample
    yield Entry(
        "sync/false-frames",
        events * scale,
        (low * scale, high * scale),
        "per 1e8 samples per antenna",
        "below 1",
        {
            **_sync_settings(scenario),
            "noise_samples_per_antenna": searched,
            "false_beacons": events,
            "by_threshold_formula": asked * 1e8,
            "note": "beacons are counted; a false frame also passes a 16-bit checksum",
            "seed": seed,
        },
    )
    expected = often * sum(run.samples for _, run in runs)
    events = sum(len(run.metrics) for _, run in runs)
    low, high = poisson_ci95(events)
    yield Entry(
        "sync/false-alarm-ratio",
        events / expected,
        (low / expected, high / expected),
        "observed rate over asked rate",
        "at most 1",
        {
            **_sync_settings(scenario),
            "false_alarms_per_sample": often,
            "noise_samples_per_antenna": sum(run.samples for _, run in runs),
            "false_beacons": events,
            "seed": seed,
        },
    )


def poisson_ci95(events: int) -> tuple[float, float]:
    """Exact two-sided 95 % interval of a Poisson mean from one count (Garwood 1936)."""
    low = 0.0 if events == 0 else float(stats.chi2.ppf(0.025, 2 * events) / 2)
    return low, float(stats.chi2.ppf(0.975, 2 * events + 2) / 2)


def _rms(errors: np.ndarray) -> tuple[float, tuple[float, float]]:
    square = mean_ci95(errors**2)
    return float(np.sqrt(square.value)), (float(np.sqrt(max(square.low, 0))), float(np.sqrt(square.high)))


def _p99(errors: np.ndarray) -> float:
    return float(np.percentile(np.abs(errors), 99))


def _tell_part(tell: OnShare, part: int, of: int, share: float) -> None:
    tell((part + share) / of)

"""Speed, replay and memory of random access, measured on running flowgraphs and in processes of their own."""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from ...errors import SetupError
from ...models.statistics import mean_ci95
from ...models.uad import detectors
from ..scenario import Scenario, load_scenario
from ._chain import antenna_streams, make_air
from .entry import Entry, Measurement, OnShare, machine

PEERS = ("ofdm_sync_sc_cfb", "corr_est_cc")
_ANTENNAS = 4


def memory(quick: bool) -> list[Measurement]:
    """Memory of long runs, which go on in the background of other measurements."""
    # A run that records does all that others do, so a quick look is content with it.
    kinds = (True,) if quick else (False, True)
    watches = [MemoryWatch(record, 12.0 if quick else 600.0, 1) for record in kinds]
    return [Measurement((watch.name,), watch.entries, 10.0 if quick else 150.0, watch.running) for watch in watches]


def speeds(quick: bool) -> list[Measurement]:
    """What is timed, and wants the machine for itself."""
    others = [name for name in detectors.classical() if name != "cd"]
    slots = {"cd": 500 if quick else 5000, **dict.fromkeys(others, 100 if quick else 1000)}
    slots["gmmv-amp"] = 4 if quick else 50
    rate_s = 0.8 if quick else 10.0
    frames, repeats = (200, 2) if quick else (5000, 4)
    return [
        Measurement(
            (
                "receiver/rate",
                "receiver/frames-decided",
                "receiver/synchroniser-alone",
                *(f"receiver/rate-over-{peer}" for peer in PEERS),
                *(f"receiver/synchroniser-over-{peer}" for peer in PEERS),
            ),
            partial(receiver_rate, rate_s, 1),
            8.0 if quick else 50.0,
        ),
        Measurement(
            (
                "detector-time/cd/median",
                "detector-time/cd/p99",
                *(f"detector-time/{name}/over-cd" for name in others),
            ),
            partial(detector_time, slots, 1),
            3.0 if quick else 20.0,
        ),
        Measurement(("replay/bit-equal", "replay/speed"), partial(replay, frames, repeats, 1), 5.0 if quick else 60.0),
    ]


# --- receiver


def fast_scenario(seed: int, frame_samples: int = 20480) -> Scenario:
    """The lab at 10 MS/s, delay spreads the same in samples; the default keeps the frames' duration, too."""
    return load_scenario(
        "lab",
        [
            "frame.sample_rate_hz=1e7",
            f"frame.frame_samples={frame_samples}",
            "channel.delay_spread_s=0.1e-6",
            "beacon_channel.delay_spread_s=0.06e-6",
            f"seed={seed}",
        ],
    )


# 10 ms, as the radio frames of LTE and 5G NR.
_LONG_FRAME_SAMPLES = 102_400


def repeatable_samples(scenario: Scenario, n_frames: int) -> np.ndarray:
    """Antenna signals of whole frames, cut between frames so that they can follow themselves.

    Returns:
        complex64, (antennas, n_frames * frame_samples).
    """
    fmt, users = scenario.frame, scenario.users
    rng = np.random.default_rng([scenario.seed, 41])
    active = [np.flatnonzero(rng.random(users.n_users) < users.activity) for _ in range(n_frames)]
    lengths = [users.preamble_lengths[f % len(users.preamble_lengths)] for f in range(n_frames)]
    air = make_air(scenario)
    first = int(air.truth.receive_index(0)) - (fmt.frame_samples - fmt.used_samples) // 2
    tail = first + fmt.frame_samples
    streams = np.concatenate(list(antenna_streams(scenario, air, active, lengths, tail)), axis=1)
    first = max(first, 0)
    return streams[:, first : first + n_frames * fmt.frame_samples]


def receiver_rate(seconds: float, seed: int, tell: OnShare) -> Iterator[Entry]:
    """Rate of the receiver fed from memory, and of GNU Radio's synchronisers on the same samples.

    Args:
        seconds: each flowgraph runs, after warm-up.
        seed: of the samples.
        tell: told the share done.
    """
    # GNU Radio is imported where it is needed: the other measurements run without it.
    from . import _memory_flow as flows

    scenario = fast_scenario(seed)
    n_frames = 4 * len(scenario.users.preamble_lengths)
    samples = repeatable_samples(scenario, n_frames)
    detector = detectors.make("cd", scenario.preambles(), scenario.users.activity)
    receiver = flows.ReceiverFromMemory(samples, scenario, detector)
    long_frames = fast_scenario(seed, _LONG_FRAME_SAMPLES)
    long_samples = repeatable_samples(long_frames, len(scenario.users.preamble_lengths))
    runs: list[tuple[str, Any]] = [
        ("receiver", receiver),
        ("receiver, long frames", flows.ReceiverFromMemory(long_samples, long_frames, detector)),
        ("synchroniser", flows.SynchroniserFromMemory(samples, scenario)),
        *((peer, flows.PeerFromMemory(samples, scenario, peer)) for peer in PEERS),
    ]
    rates = {}
    for k, (name, flowgraph) in enumerate(runs):
        rates[name] = flows.measure_rate(
            flowgraph,
            seconds,
            lambda share, k=k: tell((k + share) / len(runs)),  # type: ignore[misc]
        )
    settings = {
        "scenario": "lab at 10 MS/s, frame_samples 20480",
        "antennas": len(samples),
        "frames_in_memory": n_frames,
        "fed_by": "vector_source_c per antenna, repeated",
        "seconds": seconds,
        "seed": seed,
        "machine": machine(),
    }
    means = {name: mean_ci95(rate.per_interval / 1e6) for name, rate in rates.items()}
    blocks = "frame synchroniser, access slot receiver, activity detector (cd)"
    own = means["receiver"]
    yield Entry(
        "receiver/rate", own.value, (own.low, own.high), "MS/s over all antennas", "at least 40",
        {**settings, "blocks": blocks, "slots_dropped": receiver.slot_receiver.dropped,
         "headers_refused": receiver.synchroniser.refused},
    )  # fmt: skip
    long = means["receiver, long frames"]
    yield Entry(
        "receiver/rate/10ms-frames", long.value, (long.low, long.high), "MS/s over all antennas", "at least 40",
        {**settings, "blocks": blocks, "scenario": f"lab at 10 MS/s, frame_samples {_LONG_FRAME_SAMPLES}",
         "frames_in_memory": len(scenario.users.preamble_lengths)},
    )  # fmt: skip
    decided = np.array(receiver.decisions).reshape(-1, 2)
    expected = expected_decisions(decided, scenario.frame.frame_samples)
    yield Entry(
        "receiver/frames-decided",
        len(decided) / max(expected, 1),
        None,
        "1",
        1.0,
        {
            **settings,
            "decided": len(decided),
            "expected": expected,
            "in_order": in_order(decided, scenario.frame.frame_samples, n_frames),
        },
    )
    alone = means["synchroniser"]
    yield Entry(
        "receiver/synchroniser-alone", alone.value, (alone.low, alone.high), "MS/s over all antennas",
        "at least 40", {**settings, "blocks": "frame synchroniser"},
    )  # fmt: skip
    for name, label in (("receiver", "rate"), ("synchroniser", "synchroniser")):
        for peer in PEERS:
            ratio = rates[name].per_interval.mean() / rates[peer].per_interval.mean()
            value = means[peer]
            yield Entry(
                f"receiver/{label}-over-{peer}",
                float(ratio),
                ratio_ci95(rates[name].per_interval, rates[peer].per_interval),
                "1",
                f"GNU Radio's digital.{peer}: {value.value:.3g} MS/s",
                {
                    **settings,
                    "peer": f"one digital.{peer} per antenna, all in one flowgraph, rates added",
                    "peer_rate_ms_per_s": [value.value, value.low, value.high],
                },
            )


def expected_decisions(decisions: np.ndarray, frame_samples: int) -> int:
    """Frames from the first decision to the last one; decisions: int, (decision, [sample time, frame])."""
    if len(decisions) == 0:
        return 0
    return round((decisions[:, 0].max() - decisions[:, 0].min()) / frame_samples) + 1


def in_order(decisions: np.ndarray, frame_samples: int, n_frames: int) -> bool:
    """Whether each decision is of the frame that follows the one before it, where it must be."""
    time_steps, frame_steps = np.diff(decisions, axis=0).T
    return bool(np.all(frame_steps % n_frames == 1) and np.all(np.abs(time_steps - frame_samples) <= 4))


def ratio_ci95(above: np.ndarray, below: np.ndarray) -> tuple[float, float]:
    """Interval of a ratio of two means, from independent values of each, by the delta method."""
    share = [values.std(ddof=1) / np.sqrt(len(values)) / values.mean() for values in (above, below)]
    ratio = float(above.mean() / below.mean())
    half = ratio * 1.96 * float(np.hypot(*share))
    return ratio - half, ratio + half


# --- detector


def detector_time(slots: dict[str, int], seed: int, tell: OnShare) -> Iterator[Entry]:
    """Time per access slot, one slot at a time, on one core in a process of its own.

    Args:
        slots: how many per detector, `cd` among them.
        seed: of pool and slots.
        tell: told the share done.
    """
    length = 12
    times: dict[str, np.ndarray] = {}
    given = {"slots": slots, "length": length, "seed": seed}
    with _alone("detector-times", given) as results:
        for _ in slots:
            for name, values in results.get(timeout=300).items():
                times[name] = np.array(values)
            tell(len(times) / len(slots))
    settings = {
        "scenario": "128 users, 64 snapshots, activity 0.1, total SNR 10 dB, i.i.d. Rayleigh",
        "preamble_length": length,
        "batch": 1,
        "threads": 1,
        "pinned_to_one_core": hasattr(os, "sched_setaffinity"),
        "seed": seed,
        "machine": machine(),
    }
    for label, share in (("median", 0.5), ("p99", 0.99)):
        value, low, high = quantile_ci95(times["cd"], share)
        yield Entry(
            f"detector-time/cd/{label}", value, (low, high), "ms per slot", "below 1",
            {**settings, "slots": slots["cd"]},
        )  # fmt: skip
    rng = np.random.default_rng(seed)
    for name, values in times.items():
        if name != "cd":
            draws = [
                np.median(rng.choice(values, len(values))) / np.median(rng.choice(times["cd"], slots["cd"]))
                for _ in range(500)
            ]
            low, high = np.percentile(draws, [2.5, 97.5])
            yield Entry(
                f"detector-time/{name}/over-cd",
                float(np.median(values) / np.median(times["cd"])),
                (float(low), float(high)),
                "medians, 1",
                f"cd: {np.median(times['cd']):.3g} ms",
                {**settings, "slots": {name: slots[name], "cd": slots["cd"]}, "median_ms": np.median(values)},
            )


def quantile_ci95(values: np.ndarray, share: float) -> tuple[float, float, float]:
    """A quantile with the interval that order statistics give, free of any distribution.

    Returns:
        Value, low, high; a bound that no order statistic reaches is infinite.
    """
    ordered = np.sort(np.asarray(values, float))
    n = len(ordered)
    low = int(stats.binom.ppf(0.025, n, share)) - 1
    high = int(stats.binom.ppf(0.975, n, share))
    return (
        float(np.quantile(ordered, share)),
        float(ordered[low]) if low >= 0 else -np.inf,
        float(ordered[high]) if high < n else np.inf,
    )


# --- replay


def replay(n_frames: int, n_repeats: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """Record a run of the lab scenario, replay it, compare every decision bit by bit.

    Args:
        n_frames: of the run.
        n_repeats: replays.
        seed: of the run.
        tell: told the share done.
    """
    from ...errors import ReplayMismatch
    from ..run import compare_decisions, replay_run, run_random_access
    from ..runfolder import RunFolder

    scenario = load_scenario("lab", [f"seed={seed}"])
    speeds = []
    live = equal = 0
    with tempfile.TemporaryDirectory(prefix="semair-benchmark-") as place:
        folder = Path(place) / "run"
        run_random_access(scenario, folder, n_frames=n_frames)
        tell(1 / (n_repeats + 1))
        run_folder = RunFolder(folder)
        live_rows = run_folder.rows(run_folder.decisions)
        for k in range(n_repeats):
            try:
                result = replay_run(folder)
                live += result.live
                equal += result.equal or 0
                speeds.append(result.air_s / result.wall_s)
            except ReplayMismatch:
                replayed = run_folder.replay("same")
                live += len(live_rows)
                equal += compare_decisions(live_rows, replayed.rows(replayed.decisions))[0]
            tell((k + 2) / (n_repeats + 1))
    settings = {
        "scenario": "lab",
        "antennas": scenario.radio.n_antennas,
        "sample_rate_hz": scenario.frame.sample_rate_hz,
        "frames": n_frames,
        "decisions_live": len(live_rows),
        "replays": n_repeats,
        "seed": seed,
        "machine": machine(),
    }
    yield Entry("replay/bit-equal", equal / max(live, 1), None, "1", 1.0, settings)
    if speeds:
        speed = mean_ci95(speeds)
        yield Entry(
            "replay/speed",
            speed.value,
            (speed.low, speed.high),
            "times real time",
            "at least 3",
            {**settings, "start_of_the_flowgraph": "included"},
        )


# --- memory


class MemoryWatch:
    """Watches how the resident set of a long run grows after its warm-up.

    Args:
        record: whether the run keeps its samples; it then ends earlier where the disk would fill.
        seconds: of the run.
        seed: of the run.
    """

    def __init__(self, record: bool, seconds: float, seed: int) -> None:
        self.name = "memory/growth-recording" if record else "memory/growth"
        self._record, self._seconds, self._seed = record, seconds, seed
        self._share = 0.0
        self._stop = threading.Event()
        self._seen: tuple[np.ndarray, np.ndarray, int] | None = None
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """The run goes on in a process of its own while this context is open."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._work, name=self.name, daemon=True)
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def entries(self, tell: OnShare) -> Iterator[Entry]:
        """Wait for the end of the run and yield its entry; inside `running`, or by itself."""
        with nullcontext() if self._thread else self.running():
            while self._thread is not None and self._thread.is_alive():
                self._thread.join(0.1)
                tell(self._share)
        if self._error is not None:
            raise self._error
        assert self._seen is not None
        yield self._entry(*self._seen)

    def _work(self) -> None:
        try:
            self._seen = self._watched()
        except BaseException as error:
            self._error = error

    def _watched(self) -> tuple[np.ndarray, np.ndarray, int]:
        scenario = load_scenario("lab")
        bytes_per_frame = scenario.frame.frame_samples * (4 * scenario.radio.n_antennas + 8)
        frames = 10**8
        with tempfile.TemporaryDirectory(prefix="semair-benchmark-") as place:
            if self._record:
                frames = int(min(8e9, shutil.disk_usage(place).free / 2) // bytes_per_frame)
            given = {
                "seconds": self._seconds, "seed": self._seed, "record": self._record, "frames": frames,
                "folder": str(Path(place) / "run"),
            }  # fmt: skip
            return self._readings(given)

    def _readings(self, given: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, int]:
        """Read the resident set several times a second, from the first decisions to the end.

        Returns:
            Times in seconds and resident set in MB, float64 (reading,) each, and slots decided.
        """
        page_mb = page_megabytes()
        times: list[float] = []
        resident: list[float] = []
        with _alone("long-run", given) as results:
            decided = 0
            while not (self._stop.is_set() or (times and times[-1] - times[0] >= self._seconds)):
                while not results.empty():
                    decided = results.get()["decided"]
                if decided:
                    try:
                        pages = Path(f"/proc/{results.process.pid}/statm").read_text().split()[1]
                    except (OSError, IndexError):
                        break
                    times.append(time.monotonic())
                    resident.append(int(pages) * page_mb)
                    self._share = min((times[-1] - times[0]) / self._seconds, 1.0)
                if results.process.poll() is not None:
                    break
                time.sleep(0.5 if self._seconds > 60 else 0.1)
            if self._stop.is_set():
                results.process.kill()
        return np.array(times), np.array(resident), decided

    def _entry(self, times: np.ndarray, resident: np.ndarray, decided: int) -> Entry:
        if len(times) < 20:
            raise SetupError(
                f"a run of {self._seconds:g} s ended before its memory could be watched; `semair run lab` shows why"
            )
        growth, interval = growth_per_minute(times, resident)
        return Entry(
            self.name,
            growth,
            interval,
            "MB per minute",
            "0: flat",
            {
                "scenario": "lab, as fast as the machine runs it",
                "record": self._record,
                "seconds_watched": float(times[-1] - times[0]),
                "warm_up": "first third",
                "frames_decided": decided,
                "resident_mb_after_warm_up": float(resident[len(resident) // 3]),
                "resident_mb_at_the_end": float(resident[-1]),
                "ci95_from": "growth in ten stretches after the warm-up",
                "seed": self._seed,
                "machine": machine(),
            },
        )


def page_megabytes() -> float:
    """Size of a memory page.

    Raises:
        SetupError: this system does not tell the resident set of a process.
    """
    if not Path("/proc/self/statm").exists():
        raise SetupError("the resident set of a process is read from /proc, which this system does not have")
    return os.sysconf("SC_PAGE_SIZE") / 1e6


def growth_per_minute(
    times_s: np.ndarray, resident_mb: np.ndarray, n_stretches: int = 10
) -> tuple[float, tuple[float, float]]:
    """Growth of a resident set after the first third, with its interval over stretches of time.

    Neighbouring readings are far from independent, so the interval comes from the growth within stretches.
    """
    start = times_s[0] + (times_s[-1] - times_s[0]) / 3
    edges = np.linspace(start, times_s[-1], n_stretches + 1)
    steps = np.diff(np.interp(edges, times_s, resident_mb)) / np.diff(edges) * 60
    half = float(stats.t.ppf(0.975, n_stretches - 1) * steps.std(ddof=1) / np.sqrt(n_stretches))
    return float(steps.mean()), (float(steps.mean()) - half, float(steps.mean()) + half)


class _Results(queue.Queue[dict[str, Any]]):
    """What a process of its own has written."""

    process: subprocess.Popen[str]


@contextmanager
def _alone(task: str, given: dict[str, Any]) -> Iterator[_Results]:
    """Start a task of `_alone` with single-threaded libraries; it ends with the context."""
    one_thread = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
    command = [sys.executable, "-m", f"{__package__}._alone", task, json.dumps(given)]
    results = _Results()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **one_thread}) as process:
        results.process = process

        def read() -> None:
            for line in process.stdout or ():
                # Libraries write to standard output too.
                if line.startswith("{"):
                    results.put(json.loads(line))

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            yield results
        finally:
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
            reader.join(timeout=5)

"""Work that is measured in a process of its own, started by `_running`.

`python -m semair.flowgraphs.benchmarks._alone TASK JSON` writes one line of JSON per result to standard output.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def detector_times(given: dict[str, Any]) -> None:
    """Time slots one by one, on one core; writes {detector: milliseconds of every slot}."""
    from ...models.uad import detectors
    from ...models.uad.evaluate import slot_time
    from ...models.uad.preambles import qpsk_preambles
    from ...models.uad.simulate import draw_batch

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    rng = np.random.default_rng(given["seed"])
    preambles = qpsk_preambles(128, 28, rng)
    for name, slots in given["slots"].items():
        batch = draw_batch(rng, preambles, slots, given["length"], 64, 0.1, 10.0)
        times = slot_time(detectors.make(name, preambles, 0.1), batch.y, batch.noise_power)
        _write({name: (1e3 * times).tolist()})


def uad_latencies(given: dict[str, Any]) -> None:
    """Time detectors slot by slot in turn, and one network's parts on one core; writes {what: milliseconds}."""
    from ...models.engine import latencies
    from ...models.uad import detectors
    from ...models.uad.detectors.learned import LearnedDetector
    from ...models.uad.preambles import qpsk_preambles
    from ...models.uad.simulate import draw_batch

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    rng = np.random.default_rng(given["seed"])
    preambles = qpsk_preambles(128, 28, np.random.default_rng(1))
    batch = draw_batch(rng, preambles, given["slots"], given["length"], 64, 0.1, 10.0)
    chosen = {name: detectors.make(name, preambles, 0.1) for name in given["detectors"]}
    times: dict[str, list[float]] = {name: [] for name in chosen}
    for detector in chosen.values():
        for i in range(min(20, given["slots"])):
            detector.detect(batch.y[i : i + 1], batch.noise_power[i : i + 1])
    for i in range(given["slots"]):
        for name, detector in chosen.items():
            begin = time.perf_counter()
            detector.detect(batch.y[i : i + 1], batch.noise_power[i : i + 1])
            times[name].append(1e3 * (time.perf_counter() - begin))
    _write(times)
    for name, detector in chosen.items():
        if isinstance(detector, LearnedDetector):
            inputs = detector.prepared(batch.y[:1], batch.noise_power[:1])
            axes = detector.network.dynamic_axes
            engines = latencies(detector.network, inputs, given["engine_runs"], dynamic_axes=axes)
            _write({f"{name}/{engine}": (1e3 * values).tolist() for engine, values in engines.items()})


def long_run(given: dict[str, Any]) -> None:
    """Run the lab scenario for some seconds; writes {"decided": n} about every second once slots are decided."""
    from ..run import Progress, run_random_access
    from ..scenario import load_scenario

    begin = last = 0.0
    ended = False

    def look(progress: Progress) -> None:
        nonlocal begin, last, ended
        now = time.monotonic()
        if progress.decided and not begin:
            begin = now
        if begin and now - last > 1.0:
            last = now
            _write({"decided": progress.decided})
        if begin and now - begin > given["seconds"] and not ended:
            # The way in which a person ends a run, which stops the flowgraph in an orderly way.
            ended = True
            raise KeyboardInterrupt

    scenario = load_scenario("lab", [f"seed={given['seed']}"])
    run_random_access(
        scenario,
        Path(given["folder"]),
        n_frames=given["frames"],
        record=given["record"],
        overwrite=True,
        on_progress=look,
    )


def record_at_rate(given: dict[str, Any]) -> None:
    """Record at 160 MB/s, or write as much with GNU Radio's file sinks; writes one line of times and counts."""
    from ._captures_recorder import record_at_rate as measure

    measure(given, _write)


TASKS = {
    "record-at-rate": record_at_rate,
    "detector-times": detector_times,
    "uad-latencies": uad_latencies,
    "long-run": long_run,
}


def _write(result: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    TASKS[sys.argv[1]](json.loads(sys.argv[2]))

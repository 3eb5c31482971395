"""Figures of calibration: how well errors that were planted in receive chains are found again.

`python -m semair.flowgraphs.benchmarks._hardware_calibration JSON` calibrates one USRP, in a process of its own, and
writes one line of JSON to standard output.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...blocks.waveforms.impairments import fractional_delay
from ...errors import RadioError
from ...hardware.virtual.air import VirtualAir
from ...hardware.virtual.n210 import VirtualN210
from ..calibrate import Options, calibrate
from ..radios import make_radio, requested_settings
from ..scenario import load_scenario
from .entry import Entry, Measurement, OnShare

_ADDRESSES = ("127.0.2.30", "127.0.2.31")
_LATE_SAMPLES = 12
# What is planted, how far off it may be, and of what.
_TARGETS = {"delay": (0.05, "samples"), "phase": (1.0, "deg"), "gain": (0.1, "dB")}


def measurements(quick: bool) -> list[Measurement]:
    """Measurements of calibration; `quick` is done within 15 s."""
    seeds = 2 if quick else 20
    found = [
        Measurement(
            tuple(f"calibration/loopback-{level}/{what}" for what in _TARGETS),
            partial(on_loopback, level, seeds),
            2.0 * seeds,
        )
        for level in (("wireless",) if quick else ("cabled", "wireless"))
    ]
    # Two boards at a time take half a minute on a busy machine.
    for boards in (1,) if quick else (1, 2):
        names = tuple(f"calibration/n210x{boards}/{what}" for what in (*_TARGETS, "turnaround"))
        times = 1 if quick else 10
        found.append(Measurement(names, partial(on_n210, boards, times), 8.0 * times))
    return found


def on_loopback(level: str, seeds: int, tell: OnShare) -> Iterator[Entry]:
    """Largest error over seeds and chains, with all other impairments of a level at work."""
    errors = []
    with tempfile.TemporaryDirectory(prefix="semair-calibration-") as folder:
        for seed in range(1, seeds + 1):
            # Delays beyond those of the preset, so that there is something to find.
            overrides = [f"level={level}", f"seed={seed}", "impairments.chain_delay_samples=2"]
            scenario = load_scenario("lab", overrides)
            chains = calibrate(scenario, Path(folder) / "x.calibration.json").chains
            radio = make_radio(scenario)
            radio.configure(requested_settings(scenario))
            truth: Any = radio.truth()
            delays, gains = truth.chain_delay_samples, truth.chain_gain_db
            phases = np.degrees(truth.chain_phase_rad)
            for k, chain in enumerate(chains):
                errors.append(
                    (
                        chain.delay_samples - delays[k] + delays[0],
                        _turned(chain.phase_deg - phases[k] + phases[0]),
                        chain.gain_db - gains[k] + gains[0],
                    )
                )
            tell(seed / seeds)
    settings = {"scenario": "lab", "level": level, "seeds": seeds, "chain_delay_samples": 2, "snr_db": 10}
    yield from _entries(f"loopback-{level}", np.array(errors), settings)


def on_n210(boards: int, times: int, tell: OnShare) -> Iterator[Entry]:
    """Largest error on virtual USRPs, through UHD: two channels of one board, or one each of two boards."""
    rng = np.random.default_rng(boards)
    errors, turnarounds = [], []
    for k in range(times):
        gains = rng.uniform(0.3, 1.0, 2) * np.exp(1j * rng.uniform(-np.pi, np.pi, 2))
        delays = rng.uniform(-3, 3, 2)
        air = VirtualAir(seed=int(rng.integers(1 << 31)), noise_power=1e-6)
        with VirtualN210(air, _ADDRESSES[0]) as first, VirtualN210(air, _ADDRESSES[1], mimo_master=first) as second:
            receivers = first.radio.rx if boards == 1 else (first.radio.rx[0], second.radio.rx[0])
            impulse = np.zeros(48, np.complex64)
            impulse[_LATE_SAMPLES] = 1
            for chain, gain, delay in zip(receivers, gains, delays, strict=True):
                air.set_path(chain, first.radio.tx[0], gain * fractional_delay(impulse, delay))
            found = _calibrated(boards)
            # Each tuning of an oscillator begins at a phase of its own.
            turns = [chain.tunings[-1].phase_rad for chain in receivers]
        chain = found["chains"][1]
        phase = np.degrees(np.angle(gains[1] / gains[0]) - turns[1] + turns[0])
        gain_db = 20 * np.log10(abs(gains[1] / gains[0]))
        errors.append(
            (
                chain["delay_samples"] - delays[1] + delays[0],
                _turned(chain["phase_deg"] - phase),
                chain["gain_db"] - gain_db,
            )
        )
        turnarounds.append(found["turnaround"]["samples"] - _LATE_SAMPLES - delays[0])
        tell((k + 1) / times)
    settings = {"boards": boards, "times": times, "rate_hz": 1e6, "frequency_hz": 2e9}
    yield from _entries(f"n210x{boards}", np.array(errors), settings)
    worst = float(np.abs(turnarounds).max())
    yield Entry(f"calibration/n210x{boards}/turnaround", worst, None, "samples", 0.05, settings)


def _entries(radio: str, errors: np.ndarray, settings: dict[str, Any]) -> Iterator[Entry]:
    for (what, (target, unit)), column in zip(_TARGETS.items(), errors.T, strict=True):
        seen = {"rms": float(np.sqrt(np.mean(column**2))), **settings}
        yield Entry(f"calibration/{radio}/{what}", float(np.abs(column).max()), None, unit, target, seen)


def _turned(degrees: float) -> float:
    return (degrees + 180) % 360 - 180


def _calibrated(boards: int) -> dict[str, Any]:
    address = f"type=usrp2,addr={_ADDRESSES[0]},rx_subdev=A:0 A:0"
    overrides = ["radio.kind=uhd", "frame.sample_rate_hz=1e6", "radio.n_antennas=2", "radio.frequency_hz=2e9"]
    if boards == 2:
        address = f"type=usrp2,addr0={_ADDRESSES[0]},addr1={_ADDRESSES[1]}"
        overrides += ["radio.clock_source=mimo", "radio.time_source=mimo"]
    given = json.dumps([*overrides, f'radio.address="{address}"'])
    reason = ""
    # Real time on a busy machine: a burst that came too late is sent once more.
    for _ in range(2):
        command = [sys.executable, "-m", f"{__package__}._hardware_calibration", given]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=90)
        except subprocess.TimeoutExpired:
            reason = "it did not end within 90 s"
            continue
        _, _, found = done.stdout.partition("RESULT ")
        if found:
            return json.loads(found)
        reason = done.stderr[-500:]
    raise RadioError(f"{boards} virtual N210 could not be calibrated: {reason}")


def _main(overrides: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="semair-calibration-") as folder:
        options = Options(tx_gain_db=25.0, rx_gain_db=5.0)
        found = calibrate(load_scenario("lab", overrides), Path(folder) / "x.calibration.json", options)
    sys.stdout.write(f"RESULT {found.model_dump_json()}\n")


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))

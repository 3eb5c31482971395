"""Results are the same bits in every process: compiled just now or loaded from the cache, with any number of threads.

Otherwise the first run after an installation, which compiles, could not be replayed bit for bit, nor could the run of
a program of Companion by the command line.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from semair.blocks.waveforms.access import access_burst
from semair.blocks.waveforms.air import Air
from semair.blocks.waveforms.beacon import beacon, sync_sequence
from semair.blocks.waveforms.frame import FrameFormat
from semair.blocks.waveforms.frame_sync import AccessSlotCutter, FrameFinder
from semair.blocks.waveforms.impairments import Impairments
from semair.blocks.waveforms.preamble_detector import PreambleDetector
from semair.models.channels import ChannelConfig
from semair.models.uad import detectors

DETECTORS = ("cd", "map-search", "somp", "gmmv-amp")
LENGTHS = (8, 10, 12, 16, 28)
N_USERS, N_SNAPSHOTS, N_SLOTS = 64, 64, 3


def complex_normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.standard_normal((*shape, 2), np.float32) @ np.array([1, 1j], np.complex64)) / np.float32(2**0.5)


def detector_scores(name: str, length: int) -> bytes:
    """Scores of some noisy slots with a few active users."""
    rng = np.random.default_rng([length, 1])
    pool = complex_normal(rng, max(LENGTHS), N_USERS)
    gains = complex_normal(rng, N_SLOTS, N_USERS, N_SNAPSHOTS) * (rng.random((N_SLOTS, N_USERS, 1)) < 0.08)
    y = np.einsum("ln,snm->slm", pool[:length], gains) + complex_normal(rng, N_SLOTS, length, N_SNAPSHOTS)
    return detectors.make(name, pool, 0.08).scores(y, 1.0).tobytes()


def preambles_found(reference: np.ndarray, n_antennas: int, max_cfo_hz: float) -> bytes:
    """All that the preamble detector says about preambles of several strengths and offsets in noise."""
    rng = np.random.default_rng([len(reference), n_antennas])
    x = complex_normal(rng, n_antennas, 30_000)
    for place, snr_db in zip(range(1500, 28_000, 5000), (20, 10, 5, 3, 0, 15), strict=True):
        turns = rng.uniform(-max_cfo_hz, max_cfo_hz) / 2e6 * np.arange(len(reference))
        copies = np.exp(2j * np.pi * (turns + rng.random((n_antennas, 1)))) * 10 ** (snr_db / 20) * reference
        x[:, place : place + len(reference)] += copies
    detector = PreambleDetector(reference, sample_rate_hz=2e6, n_antennas=n_antennas, max_cfo_hz=max_cfo_hz)
    detector.restart(0)
    found = [*detector.process(x), *detector.flush()]
    assert len(found) >= 4
    numbers = [(p.start, p.fraction, p.cfo_hz, p.metric, p.snr_db) for p in found]
    return np.array(numbers).tobytes() + b"".join(np.asarray(p.gains).tobytes() for p in found)


def air_output(doppler_hz: float, adc_bits: int | None) -> bytes:
    """Blocks of the emulated air with everything in it that is compiled or multiplies matrices."""
    impairments = Impairments(
        cfo_ppm=2.0, phase_noise_linewidth_hz=10.0, start_delay_samples=3.3, user_timing_samples=2.0, adc_bits=adc_bits
    )
    channel = ChannelConfig(kind="rayleigh", delay_spread_s=1e-6, doppler_hz=doppler_hz)
    air = Air(
        channel, impairments, sample_rate_hz=2e6, centre_frequency_hz=3.5e9, n_rx=4, n_users=3, noise_power=0.1,
        seed=4, beacon_channel=channel, latency_samples=200,
    )  # fmt: skip
    rng = np.random.default_rng(5)
    for user in range(3):
        air.add_burst(user, 700 + 100 * user, complex_normal(rng, 3000), 0)
    received = air.process(complex_normal(rng, 2 * air.block_samples))
    # What was sent has arrived within this span: the last block holds more than noise.
    assert np.mean(np.abs(received[:, -1000:]) ** 2) > 2 * air.gain**2 * air.truth.noise_power
    return received.tobytes()


def slot_received() -> bytes:
    """Header, snapshots and noise power of noisy frames, as the receiver reads them."""
    fmt = FrameFormat()
    rng = np.random.default_rng(7)
    x = 0.3 * complex_normal(rng, 4, 4 * fmt.frame_samples)
    for k in range(3):
        start = 900 + k * fmt.frame_samples
        x[:, start : start + fmt.beacon_samples] += beacon(fmt, k)
        burst = access_burst(fmt, np.exp(1j * np.arange(12.0)))
        x[:, start + fmt.access_start : start + fmt.access_start + len(burst)] += burst
    x = (x * np.exp(2j * np.pi * 3e-4 * np.arange(x.shape[1]))).astype(np.complex64)
    finder, cutter = FrameFinder(fmt, 4, 2e3), AccessSlotCutter(fmt, 4, (12,))
    _, frames = finder.process(x)
    assert [frame.frame_number for frame in frames] == [0, 1, 2]
    for frame in frames:
        cutter.announce(frame)
    parts = [np.array([(frame.fraction, frame.cfo_hz, frame.metric) for frame in frames]).tobytes()]
    parts += [frame.header_symbols.tobytes() for frame in frames]
    parts += [slot.snapshots.tobytes() + np.float64(slot.noise_power).tobytes() for slot in cutter.process(x)]
    return b"".join(parts)


def hashes() -> dict[str, str]:
    """Hashes of results by compiled code, by name."""
    rng = np.random.default_rng(6)
    results = {f"{name} L={length}": detector_scores(name, length) for name in DETECTORS for length in LENGTHS}
    structured, unstructured = sync_sequence(FrameFormat()), complex_normal(rng, 200)
    for n_antennas in (1, 4):
        results[f"beacon, {n_antennas} antennas"] = preambles_found(structured, n_antennas, 17.5e3)
        results[f"unstructured preamble, {n_antennas} antennas"] = preambles_found(unstructured, n_antennas, 4e3)
    results |= {"moving air": air_output(20.0, 12), "resting air": air_output(0.0, None)}
    results["slots"] = slot_received()
    return {name: hashlib.sha256(result).hexdigest() for name, result in results.items()}


def hashes_of_a_new_process(cache: Path, blas_threads: int) -> dict[str, str]:
    threads = {"NUMBA_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": str(blas_threads)}
    done = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, **threads, "NUMBA_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_code_from_the_cache_computes_the_same_bits_as_code_just_compiled(tmp_path):
    compiled = hashes_of_a_new_process(tmp_path, 1)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")}
    assert kept
    loaded = hashes_of_a_new_process(tmp_path, 4)
    # The second process compiled nothing, or the comparison would say nothing.
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")} == kept
    assert loaded == compiled


if __name__ == "__main__":
    print(json.dumps(hashes()))  # noqa: T201


def test_what_is_inlined_counts_as_source(tmp_path):
    (tmp_path / "user.py").write_text(
        "import inner\nfrom semair.models.uad.detectors._packed import compiled\n"
        "@compiled\ndef outer(x):\n    return 10.0 * inner.value(x)\n"
    )
    (tmp_path / "go.py").write_text("import user\nprint(user.outer(1.0), sum(user.outer.stats.cache_hits.values()))\n")
    inner = tmp_path / "inner.py"
    source = "from semair.models.uad.detectors._packed import compiled\n@compiled\ndef value(x):\n    return x + {}.0\n"

    def run() -> str:
        done = subprocess.run([sys.executable, "go.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        return done.stdout or done.stderr

    inner.write_text(source.format(1))
    assert run() == "20.0 0\n"
    assert run().startswith("20.0 1")
    # The same size, and a time that coarse file systems tell apart.
    inner.write_text(source.format(2))
    later = time.time() + 5
    os.utime(inner, (later, later))
    assert run() == "30.0 0\n"

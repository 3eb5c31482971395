"""Figures of the recorder and of its format."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from scipy.stats import beta

from ...captures.collection import write_collection
from ...captures.verify import verify
from ...captures.writer import RecordingWriter
from .entry import Entry, Measurement, OnShare

FLIP_KINDS = ("data", "metadata")


def measurements(quick: bool) -> list[Measurement]:
    """Measurements of the recorder; `quick` takes fewer draws."""
    trials = 300 if quick else 10_000
    names = tuple(f"flipped-bits/{kind}" for kind in FLIP_KINDS)
    return [Measurement(names, partial(flipped_bits, trials, 1), 0.02 * trials)]


def share_interval(hits: int, trials: int) -> tuple[float, float]:
    """Exact 95 % interval of a share (Clopper and Pearson)."""
    low = float(beta.ppf(0.025, hits, trials - hits + 1)) if hits else 0.0
    high = float(beta.ppf(0.975, hits + 1, trials - hits)) if hits < trials else 1.0
    return low, high


def flipped_bits(trials: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """Share of single flipped bits that verify reports under the name of the file they are in."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(prefix="semair-flips-") as place:
        folder = Path(place)
        samples = rng.standard_normal((2, 2000, 2)).astype(np.float32).view(np.complex64)[..., 0] / 8
        with RecordingWriter(
            folder, "bs-rx", n_channels=2, datatype="ci16_le", sample_rate_hz=1e6, min_free_bytes=0, chunk_bytes=4096
        ) as writer:
            writer.write(samples)
        write_collection(folder, "run", {"bs-rx": "bs-rx"})
        files = {
            "data": [folder / "bs-rx.sigmf-data"],
            "metadata": [folder / "bs-rx.sigmf-meta", folder / "run.sigmf-collection"],
        }
        for k, kind in enumerate(FLIP_KINDS):
            caught = 0
            count = trials // len(FLIP_KINDS)
            for trial in range(count):
                file = files[kind][rng.integers(len(files[kind]))]
                whole = file.read_bytes()
                bit = int(rng.integers(8 * len(whole)))
                damaged = bytearray(whole)
                damaged[bit // 8] ^= 1 << bit % 8
                file.write_bytes(damaged)
                caught += any(finding.severity == "error" and finding.file == file for finding in verify(folder))
                file.write_bytes(whole)
                tell((k + trial / count) / len(FLIP_KINDS))
            yield Entry(
                f"flipped-bits/{kind}",
                caught / count,
                share_interval(caught, count),
                "1",
                1.0,
                {"trials": count, "seed": seed},
            )

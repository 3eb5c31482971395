"""Samples and recordings for the tests of this room."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from semair.captures.meta import dumps
from semair.captures.writer import RecordingWriter


def _grid_samples(rng: np.random.Generator, n_channels: int, n: int) -> np.ndarray:
    raw = rng.integers(-32768, 32768, size=(n_channels, n, 2)).astype(np.float32) / np.float32(32768)
    return raw.reshape(n_channels, 2 * n).view(np.complex64)


@pytest.fixture
def grid_samples(rng: np.random.Generator) -> Callable[[int, int], np.ndarray]:
    """Samples that ci16 holds exactly: complex64, (channels, samples)."""
    return lambda n_channels, n: _grid_samples(rng, n_channels, n)


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., Path]:
    """Write a small recording and give its meta file."""

    def write(samples: np.ndarray, name: str = "rec", folder: Path = tmp_path, **options: Any) -> Path:
        options = {"datatype": "ci16_le", "sample_rate_hz": 1e6, "min_free_bytes": 0} | options
        with RecordingWriter(folder, name, n_channels=len(samples), **options) as writer:
            writer.write(samples)
        return writer.path

    return write


@pytest.fixture
def edit_meta() -> Callable[..., None]:
    """Change the metadata in a file by a function on them, and seal them again unless told otherwise."""

    def edit(path: Path, change: Callable[[dict], Any], sealed: bool = True) -> None:
        meta = json.loads(path.read_text())
        change(meta)
        try:
            path.write_bytes(dumps(meta) if sealed else json.dumps(meta).encode())
        except ValueError:
            path.write_text(json.dumps(meta))

    return edit

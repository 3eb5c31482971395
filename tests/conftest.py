"""Fixtures shared by all rooms."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# A shell that starts a job in the background has it ignore Ctrl-C, and its children, too; tests send it to them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# A slow machine is no failure: no test here depends on time.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20260101)


@pytest.fixture
def shared_data() -> Path:
    """Folder of real recordings; tests that need it are skipped, with the reason, where it is absent."""
    folder = Path(os.environ.get("SEMAIR_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real recordings not found in {folder}; set SEMAIR_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def write_paths() -> Callable[..., Path]:
    """Function that writes a file as `semair trace` does, of places that are none, and returns its path."""
    return _write_paths


def _write_paths(
    path: Path, seed: int = 1, n: int = 240, users: int = 4, paths: int = 5, frequency_hz: float = 3.5e9
) -> Path:
    """Write a file of traced paths: two scenes of one base station each, drops of all splits on a strip 200 m long."""
    from safetensors.numpy import save_file
    from semair.models.csi.raytraced import FORMAT

    rng = np.random.default_rng(seed)
    positions = np.stack(
        [
            rng.uniform(20, 220, (n, 1)) + np.arange(users) * rng.uniform(0.5, 1.5, (n, 1)),
            rng.uniform(-9, 9, (n, 1)) * np.ones(users),
        ],
        -1,
    )
    delays = rng.uniform(0, 3e-7, (n, users, paths))
    delays[..., 0] = 0
    gains = rng.standard_normal((2, n, users, paths))
    arrays = {
        "scene": np.arange(n) % 2,
        "base": np.zeros(n),
        "split": np.arange(n) // 2 % 3,
        "positions_m": positions,
        "line_of_sight": np.ones((n, users)),
        "delays_s": delays,
        "cosines": rng.uniform(-1, 1, (n, users, paths)),
        "gains_re": gains[0],
        "gains_im": gains[1],
    }
    types = {"scene": "u1", "base": "u2", "split": "u1", "line_of_sight": "u1"}
    save_file(
        {name: np.ascontiguousarray(array.astype(types.get(name, "f4"))) for name, array in arrays.items()},
        path,
        {"format": FORMAT, "scenes": json.dumps(["square", "street"]), "frequency_hz": str(frequency_hz)},
    )
    return path

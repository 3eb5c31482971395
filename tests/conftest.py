"""Fixtures shared by all rooms."""

from __future__ import annotations

import os
import signal
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

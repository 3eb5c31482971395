"""The folder that a run leaves: what lies where in it, and how it is read back."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..errors import RecordingError, ScenarioError, StorageError
from .rowlog import read_rows
from .scenario import Scenario, parse_scenario

FORMAT = 1
RX_NAME = "bs-rx"
USERS_RX_NAME = "users-rx"
TX_BEACON_NAME = "tx-beacon"
TX_USERS_NAME = "tx-users"
SENDS_ONLY = "semantic-downlink"
"""The kind of link whose base station receives nothing."""


def decision_dtype(n_users: int) -> np.dtype:
    """One row per decided access slot. Times `_ns` are of the host's monotonic clock and differ between runs."""
    return np.dtype(
        [
            ("frame", "<i8"),
            ("sample_time", "<i8"),
            ("length", "<i4"),
            ("counted", "?"),
            ("fraction", "<f8"),
            ("cfo_hz", "<f8"),
            ("metric", "<f8"),
            ("snr_db", "<f8"),
            ("noise_power", "<f8"),
            ("active", "u1", (-(-n_users // 8),)),
            ("scores", "<f8", (n_users,)),
            ("flags", "u1"),
            ("detect_s", "<f8"),
            ("heard_ns", "<i8"),
            ("tagged_ns", "<i8"),
            ("cut_ns", "<i8"),
            ("decided_ns", "<i8"),
        ]
    )


DECISION_FIELDS = (
    "frame",
    "sample_time",
    "length",
    "counted",
    "fraction",
    "cfo_hz",
    "metric",
    "snr_db",
    "noise_power",
    "active",
    "scores",
)
"""The fields of a decision that a replay must reproduce bit for bit."""


def truth_dtype(n_users: int) -> np.dtype:
    """One row per frame sent; `arrival` is where the frame start arrives on the receiver's clock, in samples."""
    return np.dtype(
        [
            ("frame", "<i8"),
            ("start", "<i8"),
            ("arrival", "<f8"),
            ("length", "<i4"),
            ("active", "u1", (-(-n_users // 8),)),
        ]
    )


def pack_users(users: list[int] | np.ndarray, n_users: int) -> np.ndarray:
    """User numbers to a bit mask; uint8, (ceil(n_users / 8),)."""
    mask = np.zeros(n_users, bool)
    mask[np.asarray(users, int)] = True
    return np.packbits(mask)


def unpack_users(masks: np.ndarray, n_users: int) -> np.ndarray:
    """Bit masks, uint8 (..., bytes), to bool (..., users)."""
    return np.unpackbits(masks, axis=-1, count=n_users).astype(bool)


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run. `replays/NAME/` holds the same files of each replay."""

    path: Path

    @property
    def run_json(self) -> Path:
        """Scenario, versions, seeds, radio settings asked for and taken."""
        return self.path / "run.json"

    @property
    def decisions(self) -> Path:
        """Table of decisions."""
        return self.path / "decisions.npy"

    @property
    def snapshots(self) -> Path:
        """Table of the first access slots as the detector saw them."""
        return self.path / "snapshots.npy"

    @property
    def truth(self) -> Path:
        """Table of what was sent."""
        return self.path / "truth.npy"

    @property
    def constellation(self) -> Path:
        """Equalised header symbols of some frames."""
        return self.path / "header_symbols.npy"

    @property
    def calibration(self) -> Path:
        """Calibration by which the receive chains were corrected."""
        return self.path / "calibration.json"

    @property
    def metrics(self) -> Path:
        """What was measured."""
        return self.path / "metrics.json"

    @property
    def report(self) -> Path:
        """Report for people."""
        return self.path / "report.html"

    @property
    def recording(self) -> Path:
        """Meta file of the received signal, which is that of the users where the base station only sends; of what was
        recovered of it, where it had been cut."""
        sends_only = self.run_json.is_file() and str(self.read_json(self.run_json).get("kind")).startswith(SENDS_ONLY)
        name = USERS_RX_NAME if sends_only else RX_NAME
        recovered = self.path / f"{name}-recovered.sigmf-meta"
        return recovered if recovered.is_file() else self.path / f"{name}.sigmf-meta"

    def create(self, overwrite: bool) -> None:
        """Make the folder.

        Raises:
            ScenarioError: it holds something already, and overwrite is not set, or it is no run folder.
            StorageError: it cannot be made.
        """
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            if not overwrite:
                raise ScenarioError(
                    f"{self.path} exists and is not empty; choose another --folder, or add --overwrite to replace it"
                )
            self._clear()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make folder {self.path}: {error.strerror}") from error

    def _clear(self) -> None:
        """Remove an earlier run, and only that: a folder that is none is left alone."""
        if not self.run_json.is_file():
            raise ScenarioError(
                f"{self.path} is not a run folder (it holds no run.json), so --overwrite leaves it alone; "
                "choose another --folder"
            )
        for item in sorted(self.path.rglob("*"), reverse=True):
            if item.is_dir() and not item.is_symlink():
                item.rmdir()
            else:
                item.unlink()

    def write_json(self, path: Path, content: dict[str, Any]) -> None:
        """Write plain values, whole or not at all."""
        partial = path.with_name(f".{path.name}.partial")
        try:
            partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}") from error

    def read_json(self, path: Path) -> dict[str, Any]:
        """Read what write_json wrote.

        Raises:
            RecordingError: the file is missing or damaged.
        """
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise RecordingError(f"{path} is missing: {self.path} is not a complete run folder") from error
        except (ValueError, OSError) as error:
            raise RecordingError(f"{path} cannot be read: {error}") from error

    def scenario(self) -> Scenario:
        """The scenario of the run."""
        run = self.read_json(self.run_json)
        if "scenario" not in run:
            raise RecordingError(f"{self.run_json}: field scenario is missing")
        return parse_scenario(run["scenario"], str(self.run_json))

    def rows(self, path: Path) -> np.ndarray:
        """All rows of one of the tables.

        Raises:
            RecordingError: the file is missing or damaged.
        """
        if not path.is_file() and self.left_by_flowgraph():
            raise RecordingError(
                f"{path} is missing: a flowgraph of GNU Radio Companion leaves its recording only; replay {self.path}, "
                "and take the folder of the replay"
            )
        return read_rows(path)

    def live_decisions(self, dtype: np.dtype) -> np.ndarray:
        """Decisions of the run; no rows of a flowgraph of GNU Radio Companion, which leaves its recording only."""
        return np.empty(0, dtype) if self.left_by_flowgraph() else self.rows(self.decisions)

    def left_by_flowgraph(self) -> bool:
        """Whether a flowgraph of GNU Radio Companion made this folder."""
        return self.run_json.is_file() and str(self.read_json(self.run_json).get("kind", "")).endswith("flowgraph")

    def replay(self, name: str) -> RunFolder:
        """Folder of one replay; of the path of a detector's weights, what may stand in a file name."""
        return RunFolder(self.path / "replays" / re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-."))


def provenance() -> dict[str, Any]:
    """Versions and time, so that a reader knows what made a run."""
    versions = {"semair": __version__, "python": platform.python_version()}
    for package in ("numpy", "scipy", "numba", "sigmf", "torch", "onnxruntime"):
        versions[package] = metadata.version(package)
    try:
        from gnuradio import gr

        versions["gnuradio"] = gr.version()
    except ImportError:
        pass
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions,
        "git": _git_state(),
        "platform": platform.platform(),
    }


def _git_state() -> dict[str, Any] | None:
    folder = Path(__file__).resolve().parent
    try:
        head = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "-C", str(folder), "status", "--porcelain"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": head, "changed": bool(changed)}

"""Which module runs a link: that of kind `csi-feedback` is run by `csi_feedback_run`, with `run_csi_feedback`.

Such a module also has `replay_run` and `replay_recording`. Random access is run by `run`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import RecordingError
from .runfolder import RunFolder
from .scenario import Scenario


def module_of(kind: str) -> ModuleType:
    """The module that runs links of a kind."""
    name = f"{__package__}.{kind.replace('-', '_')}_run"
    return importlib.import_module(name if importlib.util.find_spec(name) else f"{__package__}.run")


def runner_of(scenario: Scenario) -> Callable[..., Any]:
    """The function that runs a scenario's link."""
    return getattr(module_of(scenario.kind), f"run_{scenario.kind.replace('-', '_')}")


def kind_of_run(folder: Path) -> str:
    """The kind of the link that left a run folder.

    Raises:
        RecordingError: it is none.
    """
    run = RunFolder(folder)
    if not folder.is_dir():
        raise RecordingError(f"{folder} is not a folder; give the folder of a run")
    return str(run.read_json(run.run_json).get("kind", "random-access")).partition(" ")[0]

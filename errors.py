"""Errors meant for the user: what was wrong, where, and what to do. Anything else that escapes is a defect.

Every class carries the exit code with which the command line ends when it meets the error.
"""

from __future__ import annotations

from typing import Any


class SemairError(Exception):
    """Root of all errors that a user can cause or mend."""

    exit_code = 1


class ScenarioError(SemairError, ValueError):
    """A scenario file or an argument holds a value that cannot work."""

    exit_code = 2


class RecordingError(SemairError, ValueError):
    """A recording is damaged, incomplete, or does not fit what was asked of it."""

    exit_code = 3


class RadioError(SemairError, RuntimeError):
    """A radio refused a setting, vanished, or cannot do what was asked of it."""

    exit_code = 4


class SetupError(SemairError, RuntimeError):
    """The machine lacks something: GNU Radio, a fitting NumPy, a library."""

    exit_code = 5


class StorageError(SemairError, OSError):
    """Writing failed: the disk is full or the folder cannot be written."""

    exit_code = 6


class ReplayMismatch(SemairError):
    """A replay decided otherwise than the run that was recorded."""

    exit_code = 7


class ModelError(SemairError, ValueError):
    """A trained model is missing, damaged, foreign, or does not fit what was asked of it; or training went astray."""

    exit_code = 8


def explain_validation(error: Any) -> str:
    """One line for a pydantic ValidationError: of each wrong field its path, what was given and what is allowed."""
    return "; ".join(_explain_field(detail) for detail in error.errors())


def _explain_field(detail: Any) -> str:
    path = ".".join(str(part) for part in detail["loc"])
    allowed = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if detail["type"] == "extra_forbidden":
        return f"{path}: unknown field"
    if detail["type"] == "missing":
        return f"{path}: missing; it must be given"
    if detail["type"] in ("value_error", "assertion_error"):
        return f"{path}: {allowed}" if path else allowed
    given = detail.get("input")
    text = "a table" if isinstance(given, dict) else repr(given)
    return f"{path}: given {text}, allowed: {allowed}"

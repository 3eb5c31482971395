"""Errors meant for the user: what was wrong, where, and what to do. Anything else that escapes is a defect.

Every class carries the exit code with which the command line ends when it meets the error.
"""


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

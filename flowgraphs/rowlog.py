"""Tables that grow row by row on disk and survive a crash: NumPy files whose header is finished last."""

from __future__ import annotations

import io
from pathlib import Path
from types import TracebackType

import numpy as np

from ..errors import RecordingError, StorageError

_HEADER_BYTES = 8192


def _header(dtype: np.dtype, rows: int) -> bytes:
    """A version 1 NumPy header of fixed size."""
    text = repr({"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows,)})
    room = _HEADER_BYTES - 10
    if len(text) + 1 > room:
        raise ValueError(f"row type needs {len(text)} bytes of header, {room} are there")
    return b"\x93NUMPY\x01\x00" + room.to_bytes(2, "little") + text.ljust(room - 1).encode("latin1") + b"\n"


class RowLog:
    """Appends rows of one structured type to a `.npy` file.

    Args:
        path: file to create or replace.
        dtype: type of a row.

    Raises:
        StorageError: the file cannot be written.
    """

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.path = path
        self.dtype = np.dtype(dtype)
        self.rows = 0
        try:
            self._file: io.BufferedWriter = path.open("wb")
            self._file.write(_header(self.dtype, 0))
            self._file.flush()
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}") from error

    def append(self, row: np.ndarray) -> None:
        """Add one row (0-d) or several (1-d), and hand it to the operating system: it outlives this process."""
        try:
            self._file.write(np.asarray(row, self.dtype).tobytes())
            self._file.flush()
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror}; rows before are kept") from error
        self.rows += np.size(row)

    def close(self) -> None:
        """Finish the header."""
        if self._file.closed:
            return
        try:
            self._file.seek(0)
            self._file.write(_header(self.dtype, self.rows))
            self._file.close()
        except OSError as error:
            raise StorageError(f"cannot finish {self.path}: {error.strerror}; rows before are kept") from error

    def __enter__(self) -> RowLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_rows(path: Path) -> np.ndarray:
    """All complete rows of a log, finished or not.

    Returns:
        Structured array, (rows,).

    Raises:
        RecordingError: the file is missing or is no such table.
    """
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise ValueError(f"version {version}")
            _, _, dtype = np.lib.format.read_array_header_1_0(file)
            data = file.read()
    except FileNotFoundError as error:
        raise RecordingError(f"{path} is missing: this is not a complete run folder") from error
    except (ValueError, OSError) as error:
        raise RecordingError(f"{path} is not a table of this program: {error}") from error
    return np.frombuffer(data[: len(data) // dtype.itemsize * dtype.itemsize], dtype)

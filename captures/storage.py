"""Files that are wholly there or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ..errors import StorageError

PIECE_BYTES = 4 << 20


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write every byte; on an error the bytes before it are in the file, the file position says how many."""
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(fd, view) :]


def fsync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power failure."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_file(path: Path, content: bytes) -> None:
    """Create or replace a file and wait until it is on disk. The name is not yet: see `fsync_folder`."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        write_all(fd, content)
        os.fsync(fd)
    finally:
        os.close(fd)


def replace_file(path: Path, content: bytes) -> None:
    """Create or replace a file at once: readers see the old content or the new.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        write_file(partial, content)
        os.replace(partial, path)
        fsync_folder(path.parent)
    except OSError as err:
        partial.unlink(missing_ok=True)
        raise StorageError(
            f"{path} cannot be written: {err.strerror or err}; free space or choose another folder"
        ) from err


def free_bytes(folder: Path) -> int:
    """Bytes that can still be written in a folder."""
    return shutil.disk_usage(folder).free


def make_folder(folder: Path) -> None:
    """Create a folder and its parents.

    Raises:
        StorageError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise StorageError(f"folder {folder} cannot be created: {err.strerror}; choose another folder") from err

"""Files that are wholly there or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import StorageError

PIECE_BYTES = 4 << 20
ALIGNMENT_BYTES = 4096
DIRECT_BYTES = 256 << 10
"""Shortest stretch that is worth a write of its own past the page cache."""


class DirectFile:
    """Appends to a file past the page cache, where that is possible.

    It saves the copy into the cache, most of the processor's work of writing, and keeps a disk from being flooded by
    what the cache has put off. Only whole pages go that way, from memory that lies as they do; their remains, and
    everything on file systems without it, are written as usual.

    Args:
        fd: of a file opened for writing, at its beginning.

    Attributes:
        position: bytes written.
    """

    def __init__(self, fd: int) -> None:
        self.position = 0
        self._fd = fd
        self._flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        self._possible = hasattr(os, "O_DIRECT")
        self._direct = False

    def write(self, data: memoryview) -> None:
        """Write every byte; after an error `position` says how many are in the file.

        Args:
            data: at an address that is as far behind the begin of a page as `position` is.
        """
        view = data
        while view:
            to_page = -self.position % ALIGNMENT_BYTES
            if self._possible and len(view) - to_page >= DIRECT_BYTES:
                size = to_page or len(view) // ALIGNMENT_BYTES * ALIGNMENT_BYTES
                self._set_direct(to_page == 0)
            else:
                size = len(view)
                self._set_direct(False)
            try:
                written = os.write(self._fd, view[:size])
            except OSError:
                if not self._direct:
                    raise
                # Said once more without, the error is that of the disk or there is none.
                self._possible = False
                continue
            self.position += written
            view = view[written:]

    def _set_direct(self, direct: bool) -> None:
        if direct == self._direct:
            return
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETFL, self._flags | (os.O_DIRECT if direct else 0))
            self._direct = direct
        except OSError:
            self._possible = False


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


@contextmanager
def unfinished(target: Path) -> Iterator[Path]:
    """Hidden file that becomes the target if all goes well, and disappears if not.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    make_folder(target.parent)
    partial = target.with_name(f".{target.stem}.partial{target.suffix}")
    try:
        partial.unlink(missing_ok=True)
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, target)
        fsync_folder(target.parent)
    except OSError as err:
        if isinstance(err, StorageError):
            raise
        raise StorageError(f"{target} cannot be written: {err.strerror or err}; free space or choose another") from err
    finally:
        partial.unlink(missing_ok=True)


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

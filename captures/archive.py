"""Archives of recordings: tar, plain or compressed, and zip. Members are read in place; nothing is unpacked blindly."""

from __future__ import annotations

import io
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from sigmf import keys

from ..errors import RecordingError
from . import storage
from .collection import collection_body, find_collection, listed_streams, require_stream
from .derive import stretches
from .meta import COLLECTION_SUFFIX, DATA_SUFFIX, META_SUFFIX, NAMESPACE, check_name, check_place
from .reader import OnShare, Recording

SUFFIXES = (keys.SIGMF_ARCHIVE_EXT, *keys.SIGMF_COMPRESSED_EXTS.values())
MEMBER_LIMIT = 100_000
EXPANSION_LIMIT = 200
"""Times the archive's own size that its members may have together: beyond, it is taken for a bomb."""
_EXPANSION_FREE_BYTES = 64 << 20
_LZMA_MEMORY_BYTES = 128 << 20
_READ_LIMIT_BYTES = 8 << 20
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, NotImplementedError)


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Args:
        path: its name as in the archive, checked: relative, without ``..``.
        size: bytes when unpacked.
        open: gives its content from the beginning; one at a time.
    """

    path: PurePosixPath
    size: int
    open: Callable[[], IO[bytes]]


@contextmanager
def open_archive(path: Path) -> Iterator[list[Member]]:
    """Members of an archive, in order.

    Args:
        path: a .sigmf file, or .sigmf.gz, .sigmf.xz, .sigmf.zip.

    Raises:
        RecordingError: it is damaged; or it holds links, devices, absolute or climbing names, the same name twice,
            holes, or more than an archive of its size can honestly hold.
    """
    size = path.stat().st_size
    if not path.is_file():
        raise RecordingError(f"{path} is no file; check the path")
    try:
        with path.open("rb") as file, _members(path, file, size) as members:
            yield members
    except _DAMAGE as err:
        raise RecordingError(f"{path} is damaged or no archive ({err}); restore it from a copy") from err


@contextmanager
def _members(path: Path, file: IO[bytes], size: int) -> Iterator[list[Member]]:
    start = file.read(6)
    file.seek(0)
    with ExitStack() as stack:
        try:
            if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
                found = _zip_members(path, stack.enter_context(zipfile.ZipFile(file)))
            else:
                raw = _plain(file, start, size)
                tar = stack.enter_context(tarfile.open(fileobj=_Bounded(raw), mode="r:"))  # type: ignore[call-overload]
                found = _tar_members(path, tar, size if raw is file else None)
            members = _checked(path, size, found)
        except (ValueError, OSError, OverflowError, RecursionError) as err:
            if isinstance(err, RecordingError):
                raise
            raise RecordingError(f"{path} is damaged or no archive ({err}); restore it from a copy") from err
        yield members


class _Bounded:
    """File for tarfile, which reads headers of any length that a file claims into memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self.read_from = file
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        if size > _READ_LIMIT_BYTES:
            raise tarfile.ReadError(f"a header claims to have {size} bytes")
        return self.read_from.read(size)


def _plain(file: IO[bytes], start: bytes, size: int) -> IO[bytes]:
    """The tar inside gzip or xz; the file itself if it is neither."""
    if start[:2] == b"\x1f\x8b":
        return io.BufferedReader(_Inflated(file, _limit(size), lambda: zlib.decompressobj(31)))
    if start == b"\xfd7zXZ\x00":
        # A header of a few bytes can ask for gigabytes of dictionary.
        return io.BufferedReader(
            _Inflated(file, _limit(size), lambda: lzma.LZMADecompressor(memlimit=_LZMA_MEMORY_BYTES))
        )
    return file


class _Inflated(io.RawIOBase):
    """Compressed file read as its content, in bounded memory; going back starts over."""

    def __init__(self, file: IO[bytes], limit: int, start: Callable[[], Any]) -> None:
        self._file = file
        self._limit = limit
        self._start = start
        self._rewind()

    def _rewind(self) -> None:
        self._file.seek(0)
        self._engine = self._start()
        self._tail = b""
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            raise io.UnsupportedOperation("the end of compressed content is not known")
        target = offset + (self._place if whence == os.SEEK_CUR else 0)
        if target < self._place:
            self._rewind()
        while self._place < target:
            if not self.read(min(1 << 20, target - self._place)):
                break
        return self._place

    def readinto(self, buffer: Any) -> int:
        wanted = len(buffer)
        while True:
            piece = self._more(wanted)
            if piece or self._engine.eof:
                break
        buffer[: len(piece)] = piece
        self._place += len(piece)
        if self._place > self._limit:
            raise EOFError(f"content goes on beyond {self._limit} bytes")
        return len(piece)

    def _more(self, wanted: int) -> bytes:
        engine = self._engine
        if engine.eof:
            return b""
        if isinstance(engine, lzma.LZMADecompressor):
            raw = self._file.read(1 << 16) if engine.needs_input else b""
            if engine.needs_input and not raw:
                raise EOFError("compressed content is cut")
            return engine.decompress(raw, wanted)
        raw = self._tail or self._file.read(1 << 16)
        piece = engine.decompress(raw, wanted)
        self._tail = engine.unconsumed_tail
        if not raw and not piece and not engine.eof:
            raise EOFError("compressed content is cut")
        return bytes(piece)


def _tar_members(path: Path, tar: tarfile.TarFile, size: int | None) -> Iterator[Member]:
    for count, info in enumerate(tar):
        if count >= MEMBER_LIMIT:
            raise RecordingError(f"{path} holds more than {MEMBER_LIMIT} files; unpack it by hand")
        if info.isdir():
            continue
        if not info.isreg() or info.issparse():
            raise RecordingError(f"{path} holds {info.name!r}, which is no plain file; it is not opened")
        if info.size < 0 or (size is not None and info.offset_data + info.size > size):
            raise RecordingError(
                f"{path}, {info.name}: reaches beyond the archive, which was cut; restore it from a copy"
            )
        yield Member(_safe(path, info.name), info.size, partial(_tar_content, tar, info))


def _zip_members(path: Path, opened: zipfile.ZipFile) -> Iterator[Member]:
    for info in opened.infolist():
        if info.filename.endswith("/"):
            continue
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG) or info.flag_bits & 1:
            raise RecordingError(f"{path} holds {info.filename!r}, which is no plain file; it is not opened")
        yield Member(_safe(path, info.filename), info.file_size, partial(_zip_content, opened, info))


def _tar_content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(info)
    if file is None:
        raise tarfile.ReadError(f"{info.name} has no content")
    return file


def _zip_content(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    try:
        return opened.open(info)
    except OSError as err:
        raise zipfile.BadZipFile(f"{info.filename}: {err.strerror}") from err


def _safe(path: Path, name: str) -> PurePosixPath:
    inside = PurePosixPath(name)
    parts = [part for part in inside.parts if part != "."]
    if inside.is_absolute() or not parts or ".." in parts or "\\" in name or "\x00" in name:
        raise RecordingError(f"{path} holds {name!r}, a name that leads out of a folder; it is not opened")
    return PurePosixPath(*parts)


def _limit(size: int) -> int:
    return max(EXPANSION_LIMIT * size, _EXPANSION_FREE_BYTES)


def _checked(path: Path, size: int, members: Iterator[Member]) -> list[Member]:
    found: dict[PurePosixPath, Member] = {}
    total = 0
    for member in members:
        total += member.size
        if member.path in found:
            raise RecordingError(f"{path} holds {str(member.path)!r} twice; which one counts is not known")
        if len(found) >= MEMBER_LIMIT or total > _limit(size):
            raise RecordingError(
                f"{path} has {size} bytes and claims to hold {len(found) + 1} files of {total} bytes or more; it is not"
                " opened. If you trust it, unpack it by hand and import what is inside"
            )
        found[member.path] = member
    return list(found.values())


def archive(path: Path, target: Path, *, overwrite: bool = False, on_share: OnShare | None = None) -> Path:
    """Write a plain archive of one recording, or of a run: collection, recordings, ground truth and run.json.

    Data are checked against their checksums on the way and go straight into the archive, without a copy between.

    Args:
        path: a recording, a collection, or a folder that holds exactly one collection or one recording.
        target: the archive; ``.sigmf`` is added if missing.
        overwrite: replace an existing archive.
        on_share: told the share done.

    Returns:
        The archive.

    Raises:
        RecordingError: something is missing or damaged, or the archive exists.
        StorageError: it cannot be written.
    """
    target = target if target.name.endswith(keys.SIGMF_ARCHIVE_EXT) else target.with_name(f"{target.name}.sigmf")
    stem = target.name.removesuffix(keys.SIGMF_ARCHIVE_EXT)
    check_name(stem, "name of the archive")
    if target.exists() and not overwrite:
        raise RecordingError(f"{target} exists; choose another name, or overwrite it")
    extra: list[Path] = []
    if path.name.endswith(COLLECTION_SUFFIX) or (path.is_dir() and any(path.glob(f"*{COLLECTION_SUFFIX}"))):
        collection = find_collection(path)
        body = collection_body(collection)
        recordings = []
        for base, expected in listed_streams(collection, body):
            require_stream(collection, base, expected)
            recordings.append(Recording.open(collection.parent / (base + META_SUFFIX)))
        extra = [collection, *_companions(collection, body)]
        root, inside = collection.parent, PurePosixPath()
    else:
        recordings = [Recording.open(path)]
        root, inside = recordings[0].meta_path.parent, PurePosixPath(stem)
    total = sum(recording.n_samples * recording.frame_bytes for recording in recordings)
    done = 0
    with storage.unfinished(target) as file, tarfile.open(file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for item in extra:
            _add(tar, item, inside / item.relative_to(root).as_posix())
        for recording in recordings:
            # One recording is called after the archive, as others expect it; the data first, as they write it.
            base = stem if inside.parts else _base(recording, root)
            _add_data(tar, recording, inside / (base + DATA_SUFFIX), on_share, done, total)
            _add(tar, recording.meta_path, inside / (base + META_SUFFIX))
            done += recording.n_samples * recording.frame_bytes
    return target


def _base(recording: Recording, root: Path) -> str:
    """Base name of a recording, with its folder where that is one below."""
    return (recording.meta_path.parent.relative_to(root) / recording.name).as_posix()


def companion_names(body: dict[str, Any]) -> list[str]:
    """Names of the other files of a run, relative to its collection: configuration, ground truth, listed files.

    Raises:
        RecordingError: a name is no plain one, or such in one folder.
    """
    truth, listed = body.get(f"{NAMESPACE}:truth"), body.get(f"{NAMESPACE}:files")
    names = ["run.json", *([truth] if isinstance(truth, str) else []), *(listed if isinstance(listed, dict) else {})]
    for name in names:
        check_place(name, "file of the run")
    return list(dict.fromkeys(names))


def _companions(collection: Path, body: dict[str, Any]) -> list[Path]:
    found = [collection.parent / name for name in companion_names(body)]
    for path in found:
        if path.name != "run.json" and not path.is_file():
            raise RecordingError(f"{path} is missing, but {collection.name} names it; restore it from a copy")
        if not path.resolve().is_relative_to(collection.parent.resolve()):
            raise RecordingError(f"{path} leads out of the folder of {collection.name}; put the file itself there")
    return [path for path in found if path.is_file()]


def _add(tar: tarfile.TarFile, path: Path, inside: PurePosixPath) -> None:
    with path.open("rb") as file:
        info = _info(inside, os.fstat(file.fileno()).st_size, path)
        tar.addfile(info, file)


def _add_data(
    tar: tarfile.TarFile, recording: Recording, inside: PurePosixPath, on_share: OnShare | None, done: int, total: int
) -> None:
    n_bytes = recording.n_samples * recording.frame_bytes

    def tell(share: float) -> None:
        if on_share is not None:
            on_share((done + share * n_bytes) / total)

    pieces = (piece.reshape(-1).view("u1").tobytes() for piece in stretches(recording, check=True, on_share=tell))
    tar.addfile(_info(inside, n_bytes, recording.data_path), _Stream(pieces))  # type: ignore[arg-type]


def _info(inside: PurePosixPath, size: int, source: Path) -> tarfile.TarInfo:
    info = tarfile.TarInfo(inside.as_posix())
    info.size, info.mtime, info.mode = size, int(source.stat().st_mtime), 0o644
    return info


class _Stream:
    """Pieces of bytes with the one method of a file that tarfile calls. They are checked at their end."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = bytearray()
        self._ended = False

    def read(self, size: int) -> bytes:
        while not self._ended and len(self._rest) <= size:
            piece = next(self._pieces, None)
            if piece is None:
                self._ended = True
            else:
                self._rest += piece
        out, self._rest = bytes(self._rest[:size]), self._rest[size:]
        return out

"""Making recordings of what an interruption left behind."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sigmf import keys

from ..errors import RecordingError, StorageError
from . import storage
from .journal import Ledger, RecordingPaths, build_meta, frame_bytes, is_locked, leftovers, read_ledger
from .meta import (
    DATA_SUFFIX,
    EXTENSION,
    META_SUFFIX,
    NAMESPACE,
    SPECIFICATION,
    CutError,
    dumps,
    load_json,
    meta_problems,
    prefixed,
)
from .reader import Recording
from .writer import CHUNK_LIMIT_BYTES

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Find:
    """Samples worth keeping in a file, and what is said of them."""

    source: Path
    name: str
    n_bytes: int
    ledger: Ledger | None
    meta: dict[str, Any] | None
    recording_id: str | None
    frame_bytes: int
    fields: dict[str, Any]
    complete: bool


def recover(folder: str | Path, *, target: str | Path | None = None) -> list[Recording]:
    """Make recordings of everything interrupted or cut in a folder.

    Two kinds of remains are looked at: partial files with their journal, left by a crash, a power failure or
    a full disk; and finished recordings whose data file was cut afterwards. Kept are all whole samples up to
    the first chunk whose checksum is wrong, and those after the last chunk the journal knows, from where
    ``semair:unverified_from_sample`` says so. Results are marked ``semair:recovered``.

    Originals are only read: samples are copied into a new recording, named as the old one was meant to be if
    that name is free, else ``NAME-recovered``. The partial file and its journal stay where they are; delete
    them when content with the result. Only where a crash fell between the last two renames, so that the data
    have their final name already, the metadata are added beside them without a copy. Recordings being
    written are left alone, and remains recovered before are not copied again. What cannot be recovered is
    logged as a warning.

    Args:
        folder: where recordings were being written.
        target: where to put the results, e.g. on another disk if that one is full; the same folder if None.

    Returns:
        The recovered recordings, earlier results included, sorted by the names of the remains.

    Raises:
        RecordingError: there is no such folder.
        StorageError: there is no room for the copies, or the folder cannot be written.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RecordingError(f"{folder} is no folder; name the folder in which recordings were being written")
    place = folder if target is None else Path(target)
    storage.make_folder(place)
    results = []
    for paths in leftovers(folder):
        try:
            recording = _recover_interrupted(paths, place)
        except RecordingError as err:
            _log.warning("%s cannot be recovered: %s", paths.name, err)
            continue
        if recording is not None:
            results.append(recording)
    # Results of an earlier call are whole and so never taken for cut recordings.
    for meta_path in sorted(p for p in folder.glob(f"*{META_SUFFIX}") if not p.name.startswith(".")):
        try:
            find = _cut_recording(meta_path)
            if find is not None:
                results.append(_earlier_result(find, place) or _keep(find, place))
        except RecordingError as err:
            _log.warning("%s cannot be recovered: %s", meta_path, err)
    return results


def _recover_interrupted(paths: RecordingPaths, place: Path) -> Recording | None:
    if not paths.journal.exists():
        raise RecordingError(f"{paths.partial_data} has no journal beside it, so nothing says what it holds")
    if is_locked(paths.journal):
        return None
    ledger = read_ledger(paths.journal)
    if not paths.partial_data.exists() and _finished(paths, ledger):
        paths.journal.unlink()
        return None
    source = paths.partial_data if paths.partial_data.exists() else paths.data
    if not source.is_file():
        raise RecordingError(f"{paths.journal} is there, but neither {paths.partial_data.name} nor {paths.data.name}")
    find = _find_samples(source, ledger)
    for scrap in (paths.reserve, paths.partial_meta):
        scrap.unlink(missing_ok=True)
    earlier = _earlier_result(find, place)
    if earlier is not None:
        return earlier
    if source == paths.data and place == paths.folder and not paths.meta.exists():
        if find.n_bytes == source.stat().st_size:
            meta = _describe(find, _hashes(source, find))
            storage.replace_file(paths.meta, dumps(meta))
            paths.journal.unlink()
            return Recording.open(paths.meta)
        find = replace(find, name=f"{find.name}-recovered")
    return _keep(find, place)


def _finished(paths: RecordingPaths, ledger: Ledger) -> bool:
    """Whether only the removal of the journal was left to do."""
    if not paths.meta.exists() or ledger.end is None:
        return False
    try:
        own = Recording.open(paths.meta).global_fields
        return own.get("recording_id") == ledger.header["recording_id"]
    except RecordingError:
        return False


def _find_samples(source: Path, ledger: Ledger) -> _Find:
    """How far the data file of a journal can be trusted."""
    frame = ledger.frame_bytes
    size = source.stat().st_size
    verified = 0
    with source.open("rb") as file:
        for chunk in ledger.chunks:
            digest = hashlib.sha256()
            for piece in _pieces(file, chunk["bytes"]):
                digest.update(piece)
            if digest.hexdigest() != chunk["sha256"]:
                break
            verified = chunk["offset"] + chunk["bytes"]
    # What follows the last chunk is whole but unvouched for; what follows a wrong chunk is not to be
    # trusted, nor what may hide a gap because the journal lacks lines.
    whole_tail = verified == ledger.chunk_bytes and not ledger.damaged
    kept = size - size % frame if whole_tail else verified
    if kept == 0:
        raise RecordingError(f"{source} holds no whole sample that can be trusted ({size} bytes)")
    fields: dict[str, Any] = {"recovered": True, "recovered_from": source.name}
    end = ledger.end
    whole = end is not None and kept == verified == size == end.get("n_samples", -1) * frame
    complete = whole and end is not None and end.get("complete") is True
    if not complete:
        reason = "recording was interrupted" if whole_tail else "recording was interrupted and its remains are damaged"
        fields["incomplete_reason"] = reason
        if whole and end is not None:
            fields.update(end.get("fields", {}))
    if kept > verified:
        fields["unverified_from_sample"] = verified // frame
    header = ledger.header
    return _Find(source, header["name"], kept, ledger, None, header["recording_id"], frame, fields, complete)


def _cut_recording(meta_path: Path) -> _Find | None:
    """A finished recording whose data file became shorter; None if it did not, or has faults of another
    kind."""
    try:
        Recording.open(meta_path)
        return None
    except CutError:
        pass
    except RecordingError:
        return None
    meta = load_json(meta_path)
    head = meta["global"]
    stem = meta_path.name.removesuffix(META_SUFFIX)
    data = meta_path.with_name(stem + DATA_SUFFIX)
    frame = frame_bytes(head[keys.DATATYPE_KEY], head.get(keys.NUM_CHANNELS_KEY, 1))
    n_samples = data.stat().st_size // frame
    if n_samples == 0:
        raise RecordingError(f"{data} holds no whole sample")
    fields = {
        "recovered": True,
        "recovered_from": data.name,
        "n_samples": n_samples,
        "complete": False,
        "incomplete_reason": "the data file was cut",
        "unverified_from_sample": 0,
    }
    recording_id = head.get(f"{NAMESPACE}:recording_id")
    return _Find(data, f"{stem}-recovered", n_samples * frame, None, meta, recording_id, frame, fields, False)


def _earlier_result(find: _Find, place: Path) -> Recording | None:
    """Recording that an earlier call made of the same remains."""
    for meta_path in sorted(p for p in place.glob(f"*{META_SUFFIX}") if not p.name.startswith(".")):
        try:
            recording = Recording.open(meta_path)
        except RecordingError:
            continue
        own = recording.global_fields
        if (own.get("recovered_from"), own.get("recording_id")) == (find.source.name, find.recording_id):
            return recording
    return None


def _keep(find: _Find, place: Path) -> Recording:
    """Copy the samples, describe them, give them their names."""
    paths = _free_name(place, find.name)
    # The partial name may be that of the original.
    data, description = (path.with_name(f".{path.name}.recovering") for path in (paths.data, paths.meta))
    free = storage.free_bytes(place)
    if free < find.n_bytes + storage.PIECE_BYTES:
        raise StorageError(
            f"recovering {find.source} takes {find.n_bytes} bytes, {free} are free in {place}; free space"
            " or pass a target folder on another disk"
        )
    try:
        hashes = _copy(find, data)
        storage.write_file(description, dumps(_describe(find, hashes)))
        os.replace(data, paths.data)
        os.replace(description, paths.meta)
        storage.fsync_folder(place)
    except OSError as err:
        raise StorageError(
            f"{find.source} cannot be recovered into {place}: {err.strerror or err}; free space or pass a"
            " target folder on another disk. The original is unharmed"
        ) from err
    finally:
        data.unlink(missing_ok=True)
        description.unlink(missing_ok=True)
    return Recording.open(paths.meta)


def _free_name(place: Path, name: str) -> RecordingPaths:
    stem = name.removesuffix("-recovered")
    candidates = [name] + [f"{stem}-recovered"] + [f"{stem}-recovered-{number}" for number in range(2, 1000)]
    for candidate in candidates:
        paths = RecordingPaths(place, candidate)
        if not paths.meta.exists() and not paths.data.exists():
            return paths
    raise RecordingError(f"{place} holds a thousand recoveries of {name}; clear some away")


def _describe(find: _Find, hashes: _Hashes) -> dict[str, Any]:
    """Metadata of the samples kept."""
    n_samples, sha512 = find.n_bytes // find.frame_bytes, hashes.whole.hexdigest()
    if find.ledger is not None:
        meta = build_meta(
            find.ledger, n_samples, sha512, complete=find.complete, fields=find.fields, chunks=hashes.chunks
        )
    else:
        assert find.meta is not None
        fields = {**find.fields, "chunks": [f"{start} {digest}" for start, digest in hashes.chunks]}
        meta = _shortened(find.meta, n_samples, sha512, fields)
    problems = meta_problems(meta)
    if problems and find.ledger is not None:
        raise RecordingError("the journal is damaged: " + "; ".join(f"{f}: {m}" for f, m in problems))
    return meta


def _shortened(meta: dict[str, Any], n_samples: int, sha512: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Metadata of a finished recording for its first samples only."""
    head = dict(meta["global"])
    extensions = [e for e in head.get(keys.EXTENSIONS_KEY, []) if e.get("name") != NAMESPACE]
    head |= {keys.SHA512_KEY: sha512, keys.EXTENSIONS_KEY: [*extensions, EXTENSION]}
    head.setdefault(keys.VERSION_KEY, SPECIFICATION)
    captures = [c for c in meta["captures"] if c[keys.SAMPLE_START_KEY] < n_samples]
    annotations = []
    for annotation in meta["annotations"]:
        start, count = annotation[keys.SAMPLE_START_KEY], annotation.get(keys.SAMPLE_COUNT_KEY)
        if start + min(1 if count is None else count, 1) > n_samples:
            continue
        if count is not None and start + count > n_samples:
            annotation = {**annotation, keys.SAMPLE_COUNT_KEY: n_samples - start, f"{NAMESPACE}:cut": True}
        annotations.append(annotation)
    return {**meta, "global": {**head, **prefixed(fields)}, "captures": captures, "annotations": annotations}


def _pieces(file: Any, n_bytes: int) -> Iterator[bytes]:
    while n_bytes > 0:
        piece = file.read(min(n_bytes, storage.PIECE_BYTES))
        if not piece:
            return
        n_bytes -= len(piece)
        yield piece


class _Hashes:
    """SHA-512 of all data and SHA-256 of each chunk, of the bytes fed."""

    def __init__(self, frame_bytes: int) -> None:
        self.whole = hashlib.sha512()
        self.chunks: list[tuple[int, str]] = []
        self._frame_bytes = frame_bytes
        self._start = 0

    def chunk(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Pass on the pieces of one chunk."""
        digest, n_bytes = hashlib.sha256(), 0
        for piece in pieces:
            self.whole.update(piece)
            digest.update(piece)
            n_bytes += len(piece)
            yield piece
        if n_bytes:
            self.chunks.append((self._start, digest.hexdigest()))
            self._start += n_bytes // self._frame_bytes


def _chunk_sizes(find: _Find) -> Iterator[int]:
    """Bytes of each chunk of what is kept: those of the journal, and what follows them in chunks of its own."""
    left = find.n_bytes
    for chunk in find.ledger.chunks if find.ledger is not None else ():
        if chunk["bytes"] > left:
            break
        left -= chunk["bytes"]
        yield chunk["bytes"]
    limit = max(CHUNK_LIMIT_BYTES // find.frame_bytes, 1) * find.frame_bytes
    while left:
        yield min(left, limit)
        left -= min(left, limit)


def _read(file: Any, find: _Find, hashes: _Hashes) -> Iterator[bytes]:
    for size in _chunk_sizes(find):
        yield from hashes.chunk(_pieces(file, size))


def _copy(find: _Find, path: Path) -> _Hashes:
    """Copy the samples that are kept and wait until they are on disk."""
    hashes = _Hashes(find.frame_bytes)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        with find.source.open("rb") as file:
            for piece in _read(file, find, hashes):
                storage.write_all(fd, piece)
        os.fsync(fd)
    finally:
        os.close(fd)
    return hashes


def _hashes(path: Path, find: _Find) -> _Hashes:
    hashes = _Hashes(find.frame_bytes)
    with path.open("rb") as file:
        for _ in _read(file, find, hashes):
            pass
    return hashes

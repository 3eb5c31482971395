"""Checking recordings and collections for everything that can be wrong with them."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sigmf import keys

from ..errors import RecordingError
from .channels import DATA_SUFFIX as CHANNEL_SUFFIX
from .channels import INFO_SUFFIX, channel_files, read_channels
from .collection import collection_body, find_collection, listed_streams, require_stream
from .extensions import standard_problems
from .journal import Ledger, RecordingPaths, is_locked, leftovers, read_ledger
from .meta import (
    COLLECTION_SUFFIX,
    DATA_SUFFIX,
    META_SUFFIX,
    NAMESPACE,
    FieldError,
    check_place,
    is_sealed_kind,
    load_json,
    meta_problems,
)
from .reader import Recording, find_meta
from .seal import SEAL_KEY, damaged_chunks, file_problem, seal_problem

CLIPPED_SHARE_LIMIT = 1e-3
"""Share of limited samples from which on a warning is given: at 0.1 % clipping noise of OFDM nears -40 dB."""


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Args:
        severity: ``error``: samples or metadata are wrong or missing; ``warning``: usable with care;
            ``info``.
        file: the file it is about.
        field: path of the metadata field, empty if it is about the file as a whole.
        message: what is wrong and what to do.
    """

    severity: Literal["error", "warning", "info"]
    file: Path
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.file}{', ' + self.field if self.field else ''}: {self.message}"


def verify(path: str | Path) -> list[Finding]:
    """Check a recording, a collection with its recordings, a channel recording, or everything in a folder.

    All data are read once for their checksums. Nothing is changed.

    Args:
        path: as for `Recording.open`, `open_collection` or `read_channels`, or any folder.

    Returns:
        Findings in the order of the files; whole if none is of severity ``error``.

    Raises:
        RecordingError: there is nothing at the path.
    """
    path = Path(path)
    if path.is_dir():
        return list(_folder(path))
    if path.name.endswith((INFO_SUFFIX, CHANNEL_SUFFIX)):
        return list(_channels(channel_files(path)[0]))
    base = path.name.removesuffix(COLLECTION_SUFFIX)
    if path.name.endswith(COLLECTION_SUFFIX) or (
        not path.with_name(base + META_SUFFIX).exists() and path.with_name(base + COLLECTION_SUFFIX).exists()
    ):
        collection = find_collection(path)
        return list(_collection(collection, recordings=True))
    return list(_recording(find_meta(path)))


def _folder(folder: Path) -> Iterator[Finding]:
    def visible(suffix: str) -> list[Path]:
        return sorted(p for p in folder.glob(f"*{suffix}") if not p.name.startswith("."))

    for path in visible(COLLECTION_SUFFIX):
        yield from _collection(path, recordings=False)
    metas = visible(META_SUFFIX)
    for path in metas:
        yield from _recording(path)
    left = leftovers(folder)
    for path in visible(DATA_SUFFIX):
        meta_path = path.with_name(path.name.removesuffix(DATA_SUFFIX) + META_SUFFIX)
        if meta_path not in metas and path not in [paths.data for paths in left]:
            yield Finding("error", path, "", f"{meta_path.name} is missing; restore it from a copy")
    for name in sorted({p.name.removesuffix(end) for end in (INFO_SUFFIX, CHANNEL_SUFFIX) for p in visible(end)}):
        yield from _channels(folder / (name + INFO_SUFFIX))
    recovered = {_recording_id(path) for path in metas}
    for paths in left:
        yield from _leftover(paths, recovered)


def _channels(info_path: Path) -> Iterator[Finding]:
    """Findings of a channel recording, whose reader checks all of it."""
    try:
        read_channels(info_path)
    except RecordingError as err:
        yield Finding("error", info_path, "", str(err))


def _recording_id(meta_path: Path) -> str | None:
    try:
        value = load_json(meta_path)["global"].get(f"{NAMESPACE}:recording_id")
    except (RecordingError, KeyError, AttributeError):
        return None
    return value if isinstance(value, str) else None


def _leftover(paths: RecordingPaths, recovered: set[str | None]) -> Iterator[Finding]:
    file = paths.partial_data if paths.partial_data.exists() else paths.journal
    if not paths.journal.exists():
        text = "partial data without a journal: nothing says what they are; put the journal back"
        yield Finding("error", file, "", text)
        return
    if is_locked(paths.journal):
        yield Finding("info", file, "", "is being written")
        return
    try:
        ledger = read_ledger(paths.journal)
    except RecordingError as err:
        data = paths.partial_data
        if not paths.data.exists() and not (data.exists() and data.stat().st_size):
            text = "left from a recording that was interrupted before its first sample; delete it"
            yield Finding("info", paths.journal, "", text)
        else:
            yield Finding("error", paths.journal, "line 1", str(err))
        return
    if ledger.damaged:
        text = "this line was changed or is not whole; recover keeps what the lines before it vouch for"
        yield Finding("error", paths.journal, f"line {ledger.damaged_line}", text)
    if ledger.header["recording_id"] in recovered:
        text = "has been recovered; delete it and its journal when content with the result"
        yield Finding("info", file, "", text)
        return
    yield Finding("error", file, "", f"left from an interrupted recording; run recover on {paths.folder}")
    if paths.partial_data.exists():
        yield from _journalled_data(paths.partial_data, ledger)


def _journalled_data(path: Path, ledger: Ledger) -> Iterator[Finding]:
    frame = ledger.frame_bytes
    chunks = [(c["offset"] // frame, (c["offset"] + c["bytes"]) // frame, c["sha256"]) for c in ledger.chunks]
    for start, end in damaged_chunks(path, chunks, frame):
        text = f"samples {start} to {end} are not those that were recorded; recover keeps what lies before them"
        yield Finding("error", path, "", text)


def _collection(path: Path, *, recordings: bool) -> Iterator[Finding]:
    try:
        body = collection_body(path)
        listed = listed_streams(path, body)
    except RecordingError as err:
        yield _finding(path, err)
        return
    meta = load_json(path)
    yield from _sealed(path, meta)
    for field, message in itertools.chain(meta_problems(_without_pairs(meta)), standard_problems(meta)):
        yield Finding("error", path, field, message)
    yield from _files(path, body)
    names = [base for base, _ in listed]
    roles = body.get(f"{NAMESPACE}:roles", {})
    for role, base in roles.items() if isinstance(roles, dict) else ():
        if base not in names:
            yield Finding("error", path, f"collection.{NAMESPACE}:roles.{role}", f"{base} is not in core:streams")
    for base, expected in listed:
        meta_path = path.parent / (base + META_SUFFIX)
        try:
            require_stream(path, base, expected)
        except FieldError as err:
            yield _finding(path, err)
        # Those beside the collection are found with its folder, too.
        if (recordings or "/" in base) and meta_path.is_file():
            yield from _recording(meta_path)


def _sealed(path: Path, meta: dict) -> Iterator[Finding]:
    """Whether metadata of this project are as they were written, to the last blank."""
    text = path.read_bytes()
    # Asked for by the version of the extension, or there: a change of either alone must not hide the other.
    problem = seal_problem(text) if is_sealed_kind(meta) or SEAL_KEY.encode() in text else None
    if problem is not None:
        yield Finding("error", path, "", f"changed after it was written: {problem}; restore it from a copy")


def _files(path: Path, body: dict) -> Iterator[Finding]:
    """Ground truth and other files that the collection names."""
    field = f"collection.{NAMESPACE}:files"
    listed = body.get(f"{NAMESPACE}:files", {})
    for name, record in listed.items() if isinstance(listed, dict) else ():
        try:
            check_place(name, f"{field}.{name!r}")
        except RecordingError as err:
            yield Finding("error", path, field, str(err))
            continue
        file = path.parent / name
        if not isinstance(record, dict) or {"bytes", "sha256", "crc32"} - set(record):
            continue  # the schema has named it
        if not file.is_file():
            yield Finding("error", file, "", f"missing, but {path.name} lists it; restore it from a copy")
            continue
        try:
            problem = file_problem(file, record)
        except (ValueError, TypeError) as err:
            yield Finding("error", path, f"{field}.{name}", f"malformed: {err}")
            continue
        if problem is not None:
            yield Finding("error", file, "", f"changed after {path.name} was written: {problem}")


def _without_pairs(meta: dict) -> dict:
    """Collection with the deprecated [name, hash] pairs written as the objects that the schema asks for."""
    body = dict(meta["collection"])
    body[keys.STREAMS_KEY] = [
        {"name": s[0], "hash": s[1]} if isinstance(s, list) else s for s in body[keys.STREAMS_KEY]
    ]
    return {**meta, "collection": body}


def _recording(meta_path: Path) -> Iterator[Finding]:
    try:
        meta = load_json(meta_path)
    except RecordingError as err:
        yield _finding(meta_path, err)
        return
    try:
        json.dumps(meta, allow_nan=False)
    except ValueError:
        yield Finding("error", meta_path, "", "holds NaN or Infinity, which JSON does not allow; take the field out")
    yield from _sealed(meta_path, meta)
    for field, message in meta_problems(meta):
        yield Finding("error", meta_path, field, message)
    for field, message in standard_problems(meta):
        yield Finding("error" if is_sealed_kind(meta) else "warning", meta_path, field, message)
    try:
        recording = Recording(meta_path, meta)
    except RecordingError as err:
        yield _finding(meta_path, err)
        return
    yield from _data(recording)
    yield from _annotations(recording)
    yield from _time(recording)
    yield from _story(recording)


def _finding(path: Path, err: RecordingError) -> Finding:
    if isinstance(err, FieldError):
        return Finding("error", err.file, err.field, err.text)
    return Finding("error", path, "", str(err))


def _data(recording: Recording) -> Iterator[Finding]:
    try:
        chunks = recording.chunks
    except RecordingError as err:
        yield _finding(recording.meta_path, err)
        chunks = None
    if chunks is None:
        yield from _whole_data(recording)
        return
    whole = hashlib.sha512() if recording.sha512 is not None else None
    damaged = list(damaged_chunks(recording.data_path, chunks, recording.frame_bytes, whole))
    for start, end in damaged:
        yield Finding(
            "error",
            recording.data_path,
            f"global.{NAMESPACE}:chunks",
            f"the data were changed or damaged in samples {start} to {end}, bytes {start * recording.frame_bytes} to"
            f" {end * recording.frame_bytes}; restore them from a copy",
        )
    if whole is not None and not damaged and whole.hexdigest() != recording.sha512:
        text = f"the data are as recorded, but their hash is {whole.hexdigest()[:16]}...; restore the file from a copy"
        yield Finding("error", recording.meta_path, f"global.{keys.SHA512_KEY}", text)


def _whole_data(recording: Recording) -> Iterator[Finding]:
    if recording.sha512 is None:
        field = f"global.{keys.SHA512_KEY}"
        yield Finding("warning", recording.meta_path, field, "missing; changes of the data cannot be found")
        return
    try:
        recording.check_hash()
    except RecordingError as err:
        yield _finding(recording.data_path, err)


def _annotations(recording: Recording) -> Iterator[Finding]:
    for index, annotation in enumerate(recording.annotations):
        end = annotation.sample_start + annotation.sample_count
        if end > recording.n_samples or annotation.sample_start > recording.n_samples:
            yield Finding(
                "error",
                recording.meta_path,
                f"annotations.{index}",
                f"covers samples {annotation.sample_start} to {end}, the data have"
                f" {recording.n_samples}: the data were"
                " cut, or the annotation is wrong",
            )


def _time(recording: Recording) -> Iterator[Finding]:
    timed = [s for s in recording.segments if s.device_time is not None and s.global_index is not None]
    if recording.sample_rate_hz is None:
        return
    for before, after in itertools.pairwise(timed):
        assert before.device_time is not None
        assert after.device_time is not None
        assert before.global_index is not None
        assert after.global_index is not None
        elapsed = after.device_time.samples_since(before.device_time, recording.sample_rate_hz)
        counted = after.global_index - before.global_index
        if abs(elapsed - counted) > 1:
            yield Finding(
                "warning",
                recording.meta_path,
                f"captures.{recording.segments.index(after)}.{NAMESPACE}:device_time",
                f"{elapsed} sample periods after the segment before, but {keys.GLOBAL_INDEX_KEY} counts"
                f" {counted}: the length of the gap is in doubt",
            )


def _story(recording: Recording) -> Iterator[Finding]:
    """What the recording says of itself."""
    fields, path = recording.global_fields, recording.meta_path
    if fields.get("complete") is False:
        reason = fields.get("incomplete_reason", "no reason given")
        yield Finding("warning", path, f"global.{NAMESPACE}:complete", f"false: {reason}")
    if fields.get("unverified_from_sample") is not None:
        yield Finding(
            "warning",
            path,
            f"global.{NAMESPACE}:unverified_from_sample",
            f"from sample {fields['unverified_from_sample']} on no checksum of the time of recording"
            " vouches for the data",
        )
    if fields.get("lost_samples"):
        gaps = sum(annotation.fields.get("kind") == "gap" for annotation in recording.annotations)
        yield Finding(
            "info",
            path,
            f"global.{NAMESPACE}:lost_samples",
            f"{fields['lost_samples']} samples lost in {gaps} gaps",
        )
    for index, segment in enumerate(recording.segments):
        fractions = segment.fields.get("clipped_fraction")
        numbers = [f for f in fractions if isinstance(f, int | float)] if isinstance(fractions, list) else []
        share = max(numbers, default=0.0)
        if share > CLIPPED_SHARE_LIMIT:
            yield Finding(
                "warning",
                path,
                f"captures.{index}.{NAMESPACE}:clipped_fraction",
                f"up to {share:.2%} of the samples of a channel are at full scale; lower the gain",
            )

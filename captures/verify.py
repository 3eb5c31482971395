"""Checking recordings and collections for everything that can be wrong with them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sigmf import keys

from ..errors import RecordingError
from .collection import collection_body, find_collection, listed_streams, require_stream
from .journal import RecordingPaths, leftovers, read_ledger
from .meta import COLLECTION_SUFFIX, DATA_SUFFIX, META_SUFFIX, NAMESPACE, FieldError, load_json, meta_problems
from .reader import Recording, find_meta
from .writer import is_locked

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
    """Check a recording, a collection with its recordings, or everything in a folder.

    All data are read once for their checksums. Nothing is changed.

    Args:
        path: as for `Recording.open` or `open_collection`, or any folder.

    Returns:
        Findings in the order of the files; whole if none is of severity ``error``.

    Raises:
        RecordingError: there is nothing at the path.
    """
    path = Path(path)
    if path.is_dir():
        return list(_folder(path))
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
    recovered = {_recording_id(path) for path in metas}
    for paths in left:
        yield _leftover(paths, recovered)


def _recording_id(meta_path: Path) -> str | None:
    try:
        value = load_json(meta_path)["global"].get(f"{NAMESPACE}:recording_id")
    except (RecordingError, KeyError, AttributeError):
        return None
    return value if isinstance(value, str) else None


def _leftover(paths: RecordingPaths, recovered: set[str | None]) -> Finding:
    file = paths.partial_data if paths.partial_data.exists() else paths.journal
    if not paths.journal.exists():
        return Finding(
            "error",
            file,
            "",
            "partial data without a journal: nothing says what they are; put the journal back",
        )
    if is_locked(paths.journal):
        return Finding("info", file, "", "is being written")
    try:
        known = read_ledger(paths.journal).header["recording_id"] in recovered
    except RecordingError as err:
        return Finding("error", paths.journal, "", str(err))
    if known:
        return Finding("info", file, "", "has been recovered; delete it and its journal when content with the result")
    return Finding("error", file, "", f"left from an interrupted recording; run recover on {paths.folder}")


def _collection(path: Path, *, recordings: bool) -> Iterator[Finding]:
    try:
        body = collection_body(path)
        listed = listed_streams(path, body)
    except RecordingError as err:
        yield _finding(path, err)
        return
    for field, message in meta_problems(_without_pairs(load_json(path))):
        yield Finding("error", path, field, message)
    names = [base for base, _ in listed]
    roles = body.get(f"{NAMESPACE}:roles", {})
    for role, base in roles.items() if isinstance(roles, dict) else ():
        if base not in names:
            yield Finding("error", path, f"collection.{NAMESPACE}:roles.{role}", f"{base} is not in core:streams")
    for base, expected in listed:
        meta_path = path.with_name(base + META_SUFFIX)
        try:
            require_stream(path, base, expected)
        except FieldError as err:
            yield _finding(path, err)
        if recordings and meta_path.is_file():
            yield from _recording(meta_path)


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
    for field, message in meta_problems(meta):
        yield Finding("error", meta_path, field, message)
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
                f"up to {share:.2%} of the samples of a channel are limited; lower the gain",
            )

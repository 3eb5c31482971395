"""Labels of recordings, put on and taken off after recording."""

from __future__ import annotations

import copy
import hashlib
import os
from pathlib import Path
from typing import Any

from sigmf import keys

from ..errors import RecordingError, StorageError
from . import storage
from .collection import listed_streams, require_stream
from .derive import declare
from .meta import COLLECTION_SUFFIX, LABEL_LIMIT, RECORDER, dumps, load_json, meta_problems
from .reader import Recording


def add_label(
    recording: Recording, label: str, start: int | None = None, stop: int | None = None, comment: str = ""
) -> list[Path]:
    """Mark a stretch of samples.

    Args:
        recording: on disk.
        label: at most 20 characters.
        start: first sample; the beginning if None.
        stop: sample after the last; the end if None.
        comment: free text.

    Returns:
        The files that were rewritten: the metadata, and collections that list the recording.

    Raises:
        RecordingError: the label or the stretch is not allowed; or a collection no longer fits the recording.
        StorageError: it cannot be written.
    """
    start, stop = 0 if start is None else start, recording.n_samples if stop is None else stop
    if not 0 < len(label) <= LABEL_LIMIT:
        raise RecordingError(
            f"label {label!r} has {len(label)} characters; 1 to {LABEL_LIMIT} are allowed, use --comment"
        )
    if not 0 <= start < stop <= recording.n_samples:
        raise RecordingError(
            f"label {label!r} covers samples {start} to {stop}; {recording.name} has {recording.n_samples}: choose a"
            " stretch of at least one sample within them"
        )
    annotation: dict[str, Any] = {
        keys.SAMPLE_START_KEY: start,
        keys.SAMPLE_COUNT_KEY: stop - start,
        keys.LABEL_KEY: label,
        keys.GENERATOR_KEY: RECORDER,
    }
    if comment:
        annotation[keys.COMMENT_KEY] = comment
    meta = copy.deepcopy(recording.meta)
    meta["annotations"] = sorted([*meta["annotations"], annotation], key=lambda item: int(item[keys.SAMPLE_START_KEY]))
    return rewrite(recording, meta)


def remove_label(recording: Recording, label: str, start: int | None = None, stop: int | None = None) -> list[Path]:
    """Take off labels that were put on by hand; what the recorder itself marked stays.

    Args:
        recording: on disk.
        label: which.
        start: only those that begin there or later; all if None.
        stop: only those that end there or earlier; all if None.

    Returns:
        The files that were rewritten.

    Raises:
        RecordingError: there is no such label; or a collection no longer fits the recording.
        StorageError: it cannot be written.
    """
    going = [
        annotation.raw
        for annotation in recording.annotations
        if annotation.label == label
        and "kind" not in annotation.fields
        and (start is None or annotation.sample_start >= start)
        and (stop is None or annotation.sample_start + annotation.sample_count <= stop)
    ]
    if not going:
        there = sorted({a.label for a in recording.annotations if a.label and "kind" not in a.fields})
        raise RecordingError(
            f"{recording.name} has no label {label!r} there that was put on by hand; it has:"
            f" {', '.join(there) or 'none'}"
        )
    meta = copy.deepcopy(recording.meta)
    meta["annotations"] = [item for item in meta["annotations"] if item not in going]
    return rewrite(recording, meta)


def rewrite(recording: Recording, meta: dict[str, Any]) -> list[Path]:
    """Replace the metadata of a recording, and in collections over it their checksum; the files written.

    All are on disk before any gets its name.

    A power failure between the two renames leaves a collection that `verify` names as older than the recording.
    """
    declare(meta)
    problems = meta_problems(meta)
    if problems:
        raise RecordingError(f"{recording.meta_path}, {problems[0][0]}: {problems[0][1]}; import the recording first")
    text = dumps(meta)
    content = {recording.meta_path: text}
    for path in sorted(recording.meta_path.parent.glob(f"*{COLLECTION_SUFFIX}")):
        whole = load_json(path)
        body = whole.get("collection")
        if path.name.startswith(".") or not isinstance(body, dict):
            continue
        listed = listed_streams(path, body)
        for index, (base, expected) in enumerate(listed):
            if base == recording.name:
                # Otherwise a change that somebody else made would be blessed.
                require_stream(path, base, expected)
                body[keys.STREAMS_KEY][index] = {"name": base, "hash": hashlib.sha512(text).hexdigest()}
                content[path] = dumps(whole)
    written = [(path.with_name(f".{path.name}.partial"), path) for path in content]
    try:
        for partial, path in written:
            partial.unlink(missing_ok=True)
            storage.write_file(partial, content[path])
        for partial, path in written:
            os.replace(partial, path)
        storage.fsync_folder(recording.meta_path.parent)
    except OSError as err:
        raise StorageError(
            f"{recording.meta_path} cannot be written: {err.strerror or err}; free space or check permissions"
        ) from err
    finally:
        for partial, _ in written:
            partial.unlink(missing_ok=True)
    return list(content)

"""Recordings made of others: written whole or not at all, with metadata that fit and their source noted."""

from __future__ import annotations

import copy
import hashlib
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from sigmf import keys
from sigmf.hashing import calculate_sha512

from ..errors import RecordingError, StorageError
from . import storage
from .extensions import declarations, standard_problems
from .journal import RecordingPaths, frame_bytes
from .meta import NAMESPACE, FieldError, check_name, dumps, meta_problems, per_channel_fields, prefixed
from .reader import OnShare, Recording, Segment

_OWN_GLOBAL = (
    "n_samples lost_samples dropped_samples clipped_samples unverified_from_sample recording_id sources chunks seal"
)


def write_recording(
    folder: Path,
    name: str,
    meta: dict[str, Any],
    pieces: Iterable[bytes | memoryview],
    *,
    overwrite: bool = False,
    verbatim: bytes | None = None,
) -> Recording:
    """Write a recording whose samples are at hand. Nothing is left behind if anything fails.

    Args:
        folder: where to; created if missing.
        name: base name.
        meta: its metadata; checksum and number of samples are filled in, in place. They are written after the last
            piece has been taken, so that who makes the pieces may complete them.
        pieces: the bytes of the data file; an error they raise ends the writing.
        overwrite: replace an existing recording.
        verbatim: the meta file as it is to be, byte for byte; it must fit the samples.

    Raises:
        RecordingError: the metadata are not valid, there are no samples, or the recording exists.
        StorageError: the disk is full or the folder cannot be written.
    """
    check_name(name)
    storage.make_folder(folder)
    paths = RecordingPaths(folder, name)
    existing = [path for path in (paths.meta, paths.data, paths.journal) if path.exists() or path.is_symlink()]
    if existing and not overwrite:
        raise RecordingError(f"{existing[0]} exists; choose another --name, or overwrite it")
    head = meta["global"]
    head[keys.SHA512_KEY] = "0" * 128
    problems = meta_problems(meta) + list(standard_problems(meta))
    try:
        dumps(meta)
    except ValueError as err:
        problems.append(("", f"{err}: import the recording first, which takes such values out"))
    if problems:
        raise RecordingError(
            f"metadata of recording {name} are not valid: " + "; ".join(f"{f}: {m}" for f, m in problems[:5])
        )
    data, description = (path.with_name(f".{path.name}.deriving") for path in (paths.data, paths.meta))
    try:
        head[keys.SHA512_KEY], n_bytes = _write(data, pieces)
        if n_bytes == 0:
            raise RecordingError(f"recording {name} would hold no samples; choose a stretch that has some")
        if f"{NAMESPACE}:recording_id" in head:
            frame = frame_bytes(head[keys.DATATYPE_KEY], head.get(keys.NUM_CHANNELS_KEY, 1))
            head[f"{NAMESPACE}:n_samples"] = n_bytes // frame
        _write(description, [dumps(meta) if verbatim is None else verbatim])
        paths.meta.unlink(missing_ok=True)
        os.replace(data, paths.data)
        os.replace(description, paths.meta)
        storage.fsync_folder(folder)
    except OSError as err:
        if isinstance(err, StorageError):
            raise
        raise StorageError(
            f"recording {name} cannot be written into {folder}: {err.strerror or err}; free space or choose another"
            " folder"
        ) from err
    finally:
        data.unlink(missing_ok=True)
        description.unlink(missing_ok=True)
    return Recording.open(paths.meta)


def _write(path: Path, pieces: Iterable[bytes | memoryview]) -> tuple[str, int]:
    """Create a file and wait until it is on disk; SHA-512 and size. What lies there under its name is not followed."""
    digest, n_bytes = hashlib.sha512(), 0
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    try:
        for piece in pieces:
            digest.update(piece)
            storage.write_all(fd, piece)
            n_bytes += len(piece)
        os.fsync(fd)
    finally:
        os.close(fd)
    return digest.hexdigest(), n_bytes


def stored_pieces(
    recording: Recording,
    start: int = 0,
    stop: int | None = None,
    channels: Sequence[int] | None = None,
    on_share: OnShare | None = None,
) -> Iterator[memoryview]:
    """The bytes of a stretch of samples, of all channels or some, a few megabytes at a time."""
    for stretch in stretches(recording, start, stop, on_share=on_share):
        chosen = stretch if channels is None else stretch[:, list(channels)]
        yield np.ascontiguousarray(chosen).reshape(-1).view(np.uint8).data


def stretches(
    recording: Recording,
    start: int = 0,
    stop: int | None = None,
    *,
    check: bool = False,
    on_share: OnShare | None = None,
) -> Iterator[np.ndarray]:
    """Components as stored, (count, channels, 2), a few megabytes at a time.

    Args:
        recording: where from.
        start: first sample.
        stop: sample after the last; the end if None.
        check: compare all data with the checksum on the way, where there is one; needs the whole recording.
        on_share: told the share done.

    Raises:
        FieldError: at the end, if the data are not those that were recorded.
    """
    stop = recording.n_samples if stop is None else stop
    step = max(1, storage.PIECE_BYTES // recording.frame_bytes)
    if check and recording.sha512 is None and recording.chunks is not None:
        recording.check_hash()
    digest = hashlib.sha512() if check and recording.sha512 is not None else None
    for first in range(start, stop, step):
        if on_share is not None:
            on_share((first - start) / max(1, stop - start))
        stretch = recording.stored(first, min(step, stop - first))
        if digest is not None:
            digest.update(stretch.reshape(-1).view(np.uint8).data)
        yield stretch
        recording.forget()
    if digest is not None and digest.hexdigest() != recording.sha512:
        raise FieldError(
            recording.data_path,
            f"global.{keys.SHA512_KEY}",
            "the data were changed or damaged since they were recorded; restore them from a copy",
        )


def excerpt(
    recording: Recording, start: int = 0, stop: int | None = None, channels: Sequence[int] | None = None, *, how: str
) -> dict[str, Any]:
    """Metadata of some of the samples of a recording.

    Sample indices count from the new beginning. `core:global_index` keeps counting in the original stream, or in the
    source where that says none. Device time and date move on with the first sample. Counts of clipped samples are left
    out where they cover more than what is kept.

    Args:
        recording: the source.
        start: first sample.
        stop: sample after the last; the end if None.
        channels: to keep, in this order; all if None.
        how: ``trim``, ``export``: for the note on the source.
    """
    stop = recording.n_samples if stop is None else stop
    head = copy.deepcopy(recording.meta["global"])
    whole = start == 0 and stop == recording.n_samples
    source: dict[str, Any] = {
        "how": how,
        "name": recording.name,
        "sha512": hash_of(recording),
    }
    if "recording_id" in recording.global_fields:
        source["recording_id"] = recording.global_fields["recording_id"]
    if not whole:
        source["sample_start"] = start
    if channels is not None:
        source["channels"] = list(channels)
    kept = dict(recording.global_fields)
    for key in _OWN_GLOBAL.split():
        head.pop(f"{NAMESPACE}:{key}", None)
    captures = [
        _moved(recording, segment, start, stop) for segment in recording.segments if _inside(segment, start, stop)
    ]
    at_end = stop == recording.n_samples
    cut = [_cut(a.raw, a.sample_start, a.sample_count, start, stop, at_end=at_end) for a in recording.annotations]
    annotations = [annotation for annotation in cut if annotation is not None]
    gaps = [a for a in annotations if a.get(f"{NAMESPACE}:kind") == "gap"]
    own: dict[str, Any] = {"recording_id": uuid.uuid4().hex, "n_samples": stop - start}
    if "lost_samples" in kept:
        own["lost_samples"] = sum(a.get(f"{NAMESPACE}:lost_samples", 0) for a in gaps)
    if "dropped_samples" in kept:
        by_writer = [a for a in gaps if a.get(f"{NAMESPACE}:cause") == "writer"]
        own["dropped_samples"] = sum(a.get(f"{NAMESPACE}:lost_samples", 0) for a in by_writer)
    if whole and "clipped_samples" in kept:
        own["clipped_samples"] = kept["clipped_samples"]
    unverified = kept.get("unverified_from_sample")
    if isinstance(unverified, int) and unverified < stop:
        own["unverified_from_sample"] = max(0, unverified - start)
    earlier = kept.get("sources", [])
    own["sources"] = [source, *(earlier if isinstance(earlier, list) else [])]
    head.pop(keys.COLLECTION_KEY, None)
    meta = {"global": {**head, **prefixed(own)}, "captures": captures, "annotations": annotations}
    declare(meta)
    return meta if channels is None else _with_channels(meta, list(channels), recording.n_channels)


def hash_of(recording: Recording) -> str:
    """SHA-512 of the data, from the metadata if they say it, else computed."""
    if recording.sha512 is not None and re.fullmatch("[0-9a-f]{128}", recording.sha512):
        return recording.sha512
    return str(calculate_sha512(filename=recording.data_path))


def declare(meta: dict[str, Any]) -> None:
    """List this project's namespace among the extensions, and SigMF's own where they are used; others stay."""
    own = declarations(meta)
    names = [entry["name"] for entry in own]
    listed = meta["global"].get(keys.EXTENSIONS_KEY) or []
    meta["global"][keys.EXTENSIONS_KEY] = [*(e for e in listed if e.get("name") not in names), *own]


def _inside(segment: Segment, start: int, stop: int) -> bool:
    return segment.sample_start < stop and segment.sample_start + segment.sample_count > start


def _moved(recording: Recording, segment: Segment, start: int, stop: int) -> dict[str, Any]:
    capture = copy.deepcopy(segment.raw)
    ahead = max(0, start - segment.sample_start)
    capture[keys.SAMPLE_START_KEY] = max(0, segment.sample_start - start)
    index = segment.sample_start if segment.global_index is None else segment.global_index
    capture[keys.GLOBAL_INDEX_KEY] = index + ahead
    if segment.sample_start < start or segment.sample_start + segment.sample_count > stop:
        capture.pop(f"{NAMESPACE}:clipped_fraction", None)
    if ahead:
        rate_hz = recording.sample_rate_hz
        if segment.device_time is not None:
            if rate_hz is None:
                capture.pop(f"{NAMESPACE}:device_time")
            else:
                capture[f"{NAMESPACE}:device_time"] = segment.device_time.plus(ahead, rate_hz).to_dict()
        if keys.DATETIME_KEY in capture:
            later = (
                None if rate_hz is None else later_date(capture[keys.DATETIME_KEY], Fraction(ahead) / Fraction(rate_hz))
            )
            # A date that cannot be moved would be that of another sample.
            capture.pop(keys.DATETIME_KEY)
            if later is not None:
                capture[keys.DATETIME_KEY] = later
    return capture


def later_date(text: Any, seconds: Fraction) -> str | None:
    """RFC 3339 date in UTC, moved on and rounded to picoseconds; None if the text is none."""
    found = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{1,40})?Z", text) if isinstance(text, str) else None
    if found is None:
        return None
    try:
        whole = datetime.fromisoformat(found[1]).replace(tzinfo=UTC)
        ticks = round((Fraction(f"0{found[2] or ''}") + seconds) * 10**12)
        whole += timedelta(seconds=ticks // 10**12)
    except (ValueError, OverflowError):
        return None
    digits = f"{ticks % 10**12:012d}".rstrip("0")
    return f"{whole:%Y-%m-%dT%H:%M:%S}{'.' + digits if digits else ''}Z"


def _cut(raw: dict[str, Any], first: int, count: int, start: int, stop: int, *, at_end: bool) -> dict[str, Any] | None:
    """Annotation within a stretch; None if it lies outside. One of no length belongs to the sample after it, and a gap
    before the first sample is none within the stretch."""
    instant = count == 0
    gap = raw.get(f"{NAMESPACE}:kind") == "gap"
    if instant and not (start < first < stop or (first == start and not gap) or (first == stop and at_end)):
        return None
    if not instant and (first >= stop or first + count <= start):
        return None
    annotation = copy.deepcopy(raw)
    begin, end = max(first, start), min(first + count, stop)
    annotation[keys.SAMPLE_START_KEY] = begin - start
    if keys.SAMPLE_COUNT_KEY in annotation or end - begin != count:
        annotation[keys.SAMPLE_COUNT_KEY] = end - begin
    if end - begin != count:
        annotation[f"{NAMESPACE}:cut"] = True
    if begin != first:
        annotation.pop(f"{NAMESPACE}:device_time", None)
    return annotation


def _with_channels(meta: dict[str, Any], channels: list[int], n_channels: int) -> dict[str, Any]:
    def chosen(value: Any) -> Any:
        return [value[c] for c in channels] if isinstance(value, list) and len(value) == n_channels else value

    def select(part: str, item: dict[str, Any]) -> dict[str, Any]:
        result = {key: chosen(value) if key in per_channel_fields(part) else value for key, value in item.items()}
        for key in (f"{NAMESPACE}:requested", f"{NAMESPACE}:actual"):
            if isinstance(result.get(key), dict):
                result[key] = {name: chosen(value) for name, value in result[key].items()}
        if "spatial:element_geometry" in result:
            result["spatial:element_geometry"] = chosen(result["spatial:element_geometry"])
        return result

    head = select("global", meta["global"])
    head[keys.NUM_CHANNELS_KEY] = len(channels)
    if len(channels) == 1 and n_channels > 1:
        head |= {"spatial:num_elements": n_channels, "spatial:channel_index": channels[0]}
    annotations = []
    for item in meta["annotations"]:
        about = item.get(f"{NAMESPACE}:channel")
        if about is None:
            annotations.append(item)
        elif about in channels:
            annotations.append({**item, f"{NAMESPACE}:channel": channels.index(about)})
    result = {"global": head, "captures": [select("capture", c) for c in meta["captures"]], "annotations": annotations}
    declare(result)
    return result

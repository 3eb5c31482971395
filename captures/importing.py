"""Recordings of others, and raw samples, as recordings of ours: converted exactly, their source noted with its hash."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from sigmf import keys

from ..errors import RecordingError
from . import storage
from .archive import SUFFIXES, Member, companion_names, open_archive
from .collection import collection_body, find_collection, listed_streams, require_stream, write_collection
from .derive import declare, hash_of, write_recording
from .extensions import standard_problems
from .journal import frame_bytes
from .matfile import read_array
from .meta import (
    COLLECTION_SUFFIX,
    DATA_SUFFIX,
    META_LIMIT_BYTES,
    META_SUFFIX,
    NAMESPACE,
    SPECIFICATION,
    FieldError,
    check_name,
    component_dtype,
    load_json,
    meta_problems,
    parse_json,
    per_channel_fields,
    prefixed,
)
from .reader import OnShare, Recording, Section, find_meta, refuse_unknown_extensions, require_section, to_complex


@dataclass(frozen=True)
class RawFormat:
    """What a file of bare samples does not say itself.

    Args:
        datatype: SigMF datatype, complex, e.g. ``ci16_le``; None for arrays, which have their own.
        sample_rate_hz: samples per second.
        n_channels: interleaved sample by sample; of an array: the length of its channel axis.
        frequency_hz: centre frequency, None if not known.
        header_bytes: to leave out at the beginning.
        drop_rest: leave out bytes at the end that make no whole sample, instead of refusing them.
    """

    datatype: str | None = None
    sample_rate_hz: float | None = None
    n_channels: int | None = None
    frequency_hz: float | None = None
    header_bytes: int = 0
    drop_rest: bool = False


@dataclass(frozen=True)
class Imported:
    """What an import made.

    Args:
        recordings: in the order of the source.
        collection: written over them, where the source was one.
        notes: what was changed or left out, for people.
    """

    recordings: list[Recording]
    collection: Path | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Source:
    """A file of samples, on disk or in an archive."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


@dataclass(frozen=True)
class _Foreign:
    """A recording before it is imported; `raw_meta` are the bytes of its meta file."""

    name: str
    place: Path
    raw_meta: bytes
    data: _Source
    sha512: str | None = None
    """Hash of the file that it was read from, where that is not the data themselves."""


@dataclass(frozen=True)
class _Set:
    """Recordings before they are imported, and what belongs to them."""

    recordings: list[_Foreign]
    title: str = ""
    collection: bytes | None = None
    companions: dict[str, Callable[[], IO[bytes]]] = field(default_factory=dict)


def import_file(
    path: Path,
    folder: Path,
    *,
    name: str | None = None,
    raw: RawFormat | None = None,
    key: str | None = None,
    join: bool = False,
    overwrite: bool = False,
    on_share: OnShare | None = None,
) -> Imported:
    """Import a SigMF recording, collection or archive, a .mat file, or a file of raw samples.

    Recordings in ``ci16_le`` or ``cf32_le`` that carry this project's metadata come over byte for byte. Others are
    converted: integers of up to 16 bits to ``ci16_le`` without loss, the rest to ``cf32_le``. Data are compared with
    the checksum they come with.

    Args:
        path: a file; or a folder that holds exactly one collection or one recording.
        folder: where the result goes; created if missing.
        name: of the result if it is a single recording; that of the source if None.
        raw: for raw samples all of it, for .mat files rate and frequency, else not used.
        key: variable in a .mat file; found if None.
        join: make one interleaved recording of several that were taken together.
        overwrite: replace existing recordings.
        on_share: told the share done of a recording.

    Raises:
        RecordingError: it cannot be read rightly; the message says why and what to do.
        StorageError: the result cannot be written.
    """
    stem = _stem(path)
    if not path.exists() and not path.with_name(stem + META_SUFFIX).is_file():
        raise RecordingError(f"{path} is missing; check the path")
    if join:
        return _joined(path, folder, name or stem, overwrite, on_share)
    if path.name.endswith(SUFFIXES):
        with open_archive(path) as members:
            return _import_set(_in_archive(path, members), folder, name, overwrite, on_share)
    if path.name.endswith(COLLECTION_SUFFIX) or (path.is_dir() and any(path.glob(f"*{COLLECTION_SUFFIX}"))):
        return _import_set(_in_collection(find_collection(path)), folder, name, overwrite, on_share)
    if path.is_dir() or path.name.endswith((META_SUFFIX, DATA_SUFFIX)) or not path.is_file():
        return _import_set(_Set([_on_disk(find_meta(path))]), folder, name, overwrite, on_share)
    if path.suffix == ".mat":
        return _import_array(path, key, raw or RawFormat(), folder, name or stem, overwrite)
    if raw is None or raw.datatype is None or raw.sample_rate_hz is None:
        raise RecordingError(
            f"{path} says nothing of its samples; give --datatype (e.g. ci16_le), --rate, and --channels if there are"
            " several"
        )
    return _import_raw(path, raw, folder, name or stem, overwrite, on_share)


def _stem(path: Path) -> str:
    for suffix in (*SUFFIXES[1:], META_SUFFIX, DATA_SUFFIX, COLLECTION_SUFFIX, SUFFIXES[0]):
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return path.name if path.is_dir() else path.stem


# --- where recordings are found


def _on_disk(meta_path: Path) -> _Foreign:
    load_json(meta_path)  # refuses what is too large or no file
    raw_meta = meta_path.read_bytes()
    stem = meta_path.name.removesuffix(META_SUFFIX)
    data = meta_path.with_name(_dataset(meta_path, raw_meta) or stem + DATA_SUFFIX)
    if not data.is_file():
        raise FieldError(data, "", f"missing; put it beside {meta_path.name}")
    return _Foreign(stem, meta_path, raw_meta, _Source(data.name, data.stat().st_size, _opener(data)))


def _opener(path: Path) -> Callable[[], IO[bytes]]:
    return lambda: path.open("rb")


def _dataset(place: Path, raw_meta: bytes) -> str | None:
    """Name of a data file of another format, which lies in the same folder."""
    head = parse_json(place, raw_meta).get("global")
    name = head.get(keys.DATASET_KEY) if isinstance(head, dict) else None
    if name is None:
        return None
    try:
        # A name with .sigmf-data is no base name, but allowed here.
        check_name(name.removesuffix(DATA_SUFFIX) if isinstance(name, str) else name)
    except RecordingError as err:
        raise FieldError(place, f"global.{keys.DATASET_KEY}", f"no data file: {err}") from err
    return str(name)


def _in_collection(path: Path) -> _Set:
    body = collection_body(path)
    found = []
    for base, expected in listed_streams(path, body):
        require_stream(path, base, expected)
        found.append(replace(_on_disk(path.parent / (base + META_SUFFIX)), name=base))
    files = {name: path.parent / name for name in companion_names(body)}
    companions = {name: _opener(file) for name, file in files.items() if file.is_file() and not file.is_symlink()}
    return _Set(found, _stem(path), path.read_bytes(), companions)


def _in_archive(path: Path, members: list[Member]) -> _Set:
    by_path = {member.path: member for member in members}
    collections = [member for member in members if member.path.name.endswith(COLLECTION_SUFFIX)]
    # What a collection lists lies beside it, or one folder below.
    root = collections[0].path.parent if len(collections) == 1 else None
    found: dict[str, _Foreign] = {}
    for inside, member in by_path.items():
        if not inside.name.endswith(META_SUFFIX):
            continue
        stem = inside.name.removesuffix(META_SUFFIX)
        check_name(stem, f"recording in {path}")
        if root is not None and inside.parent.parent == root != inside.parent:
            stem = f"{inside.parent.name}/{stem}"
        if stem in found:
            raise RecordingError(f"{path} holds two recordings {stem}; unpack it by hand and import one by one")
        raw_meta = _read_small(path, member)
        place = path / str(inside)
        named = inside.name.removesuffix(META_SUFFIX) + DATA_SUFFIX
        data = by_path.get(inside.with_name(_dataset(place, raw_meta) or named))
        if data is None:
            raise RecordingError(f"{path} holds {inside}, but not its data; restore it from a copy")
        found[stem] = _Foreign(stem, place, raw_meta, _Source(data.path.name, data.size, data.open))
    if not found:
        raise RecordingError(f"{path} holds no recording (no {META_SUFFIX} file); check what it is")
    if len(collections) > 1:
        raise RecordingError(f"{path} holds {len(collections)} collections; unpack it by hand and import one of them")
    if not collections:
        return _Set(list(found.values()))
    (member,) = collections
    text, place = _read_small(path, member), path / str(member.path)
    body = parse_json(place, text).get("collection")
    if not isinstance(body, dict):
        raise FieldError(place, "collection", "missing or no object; restore the file from a copy")
    ordered = []
    for base, expected in listed_streams(place, body):
        below = [name for name in found if PurePosixPath(name).name == base]
        if base not in found and len(below) == 1:
            found[base] = replace(found.pop(below[0]), name=base)
        if base not in found:
            raise FieldError(place, f"collection.{keys.STREAMS_KEY}", f"{base} is listed, but not in the archive")
        if hashlib.sha512(found[base].raw_meta).hexdigest() != expected:
            raise FieldError(found[base].place, "", f"changed after {place.name} was written; restore it from a copy")
        ordered.append(found.pop(base))
    companions = {n: by_path[p].open for n in companion_names(body) if (p := member.path.parent / n) in by_path}
    return _Set([*ordered, *found.values()], _stem(place), text, companions)


def _read_small(path: Path, member: Member) -> bytes:
    if member.size > META_LIMIT_BYTES:
        raise RecordingError(
            f"{path}, {member.path}: has {member.size} bytes; metadata are read up to {META_LIMIT_BYTES}, take some out"
        )
    with member.open() as file:
        return file.read(member.size)


# --- SigMF


def _import_set(given: _Set, folder: Path, name: str | None, overwrite: bool, on_share: OnShare | None) -> Imported:
    if name is not None and len(given.recordings) > 1:
        raise RecordingError(f"{len(given.recordings)} recordings cannot all be called {name}; leave --name out")
    if given.collection is not None:
        check_name(given.title, "collection")
    target = folder / f"{given.title}{COLLECTION_SUFFIX}"
    for file in (target, *(folder / inside for inside in given.companions)) if given.collection is not None else ():
        if file.exists() and not overwrite:
            raise RecordingError(f"{file} exists; choose another --folder, or overwrite it")
    recordings, notes, same = [], [], True
    for item in given.recordings:
        recording, told, verbatim = _import_one(item, folder, name or item.name, overwrite, on_share)
        recordings.append(recording)
        notes += [f"{item.name}: {note}" for note in told]
        same = same and verbatim and recording.name == PurePosixPath(item.name).name
    if given.collection is None:
        return Imported(recordings, None, notes)
    for inside, opener in given.companions.items():
        _copy(opener, folder / inside)
    if same:
        storage.replace_file(target, given.collection)
        return Imported(recordings, target, notes)
    roles: dict[str, str] = {}
    for recording in recordings:
        plain = re.sub(r"[^a-z0-9]+", "-", recording.name.lower()).strip("-") or "recording"
        below = recording.meta_path.parent.relative_to(folder)
        roles[plain if plain not in roles else f"{plain}-{len(roles)}"] = (below / recording.name).as_posix()
    write_collection(folder, given.title, roles, overwrite=overwrite)
    return Imported(recordings, target, [*notes, "the collection was written anew over the converted recordings"])


def _copy(opener: Callable[[], IO[bytes]], target: Path) -> None:
    storage.make_folder(target.parent)
    partial = target.with_name(f".{target.name}.deriving")
    partial.unlink(missing_ok=True)
    try:
        with opener() as source, partial.open("xb") as file:
            shutil.copyfileobj(source, file, storage.PIECE_BYTES)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _import_one(
    item: _Foreign, folder: Path, name: str, overwrite: bool, on_share: OnShare | None
) -> tuple[Recording, list[str], bool]:
    """The recording, what was changed, and whether nothing was."""
    meta = parse_json(item.place, item.raw_meta)
    ours = _is_ours(meta)
    layout = _Layout(item, meta)
    notes: list[str] = []
    if not (ours and layout.plain):
        meta = layout.described(notes)
    source = meta["global"].get(f"{NAMESPACE}:sources", [{}])[0] if not (ours and layout.plain) else {}
    pieces = layout.pieces(source, notes, on_share)
    verbatim = item.raw_meta if ours and layout.plain else None
    at = folder / PurePosixPath(name).parent
    recording = write_recording(at, PurePosixPath(name).name, meta, pieces, overwrite=overwrite, verbatim=verbatim)
    return recording, notes, verbatim is not None


def _is_ours(meta: dict[str, Any]) -> bool:
    head = meta.get("global")
    try:
        json.dumps(meta, allow_nan=False)
    except ValueError:
        return False
    return isinstance(head, dict) and f"{NAMESPACE}:recording_id" in head and not meta_problems(meta)


class _Layout:
    """Where in a foreign data file the samples are, and how their description reads here."""

    def __init__(self, item: _Foreign, meta: dict[str, Any]) -> None:
        self._item = item
        place = item.place
        self._meta = copy.deepcopy(meta)
        head = Section(place, "global", require_section(place, self._meta, "global", dict))
        self._head = head
        refuse_unknown_extensions(head)
        datatype = head.get(keys.DATATYPE_KEY, str, required=True)
        try:
            self._component = component_dtype(datatype)
        except ValueError as err:
            raise head.error(keys.DATATYPE_KEY, str(err)) from err
        self._datatype = datatype
        self._expected = head.get(keys.SHA512_KEY, str)
        self.n_channels = head.integer(keys.NUM_CHANNELS_KEY, minimum=1, default=1)
        frame = 2 * self._component.itemsize * self.n_channels
        captures = self._meta.get("captures") or [{keys.SAMPLE_START_KEY: 0}]
        self._meta["captures"] = captures
        self._captures = [
            Section(place, f"captures.{k}", c)
            for k, c in enumerate(require_section(place, self._meta, "captures", list))
        ]
        self._meta.setdefault("annotations", [])
        self._annotations = [
            Section(place, f"annotations.{k}", a)
            for k, a in enumerate(require_section(place, self._meta, "annotations", list))
        ]
        self._offset = head.integer(keys.OFFSET_KEY, minimum=0, default=0)
        starts = [c.integer(keys.SAMPLE_START_KEY, minimum=0, required=True) for c in self._captures]
        if self._offset and starts[0] != self._offset:
            raise head.error(
                keys.OFFSET_KEY,
                f"is {self._offset}, but the first segment starts at {starts[0]}: whether indices count from there or"
                " from the beginning of the file is not known. Ask who recorded it, subtract, and remove the field",
            )
        self._starts = [start - self._offset for start in starts]
        for before, after, capture in zip(self._starts, self._starts[1:], self._captures[1:], strict=False):
            if after < before:
                raise capture.error(keys.SAMPLE_START_KEY, f"is {after} after {before}; it must rise, mend the file")
        self._headers = [c.integer(keys.HEADER_BYTES_KEY, minimum=0, default=0) for c in self._captures]
        self._trailing = head.integer(keys.TRAILING_BYTES_KEY, minimum=0, default=0)
        n_bytes = item.data.size - sum(self._headers) - self._trailing
        self.n_samples, rest = divmod(n_bytes, frame)
        recorded = head.integer(f"{NAMESPACE}:n_samples", minimum=0)
        if n_bytes <= 0:
            raise FieldError(
                place, "", f"{item.data.name} has {item.data.size} bytes and holds no sample; get it again"
            )
        if rest:
            raise FieldError(
                place,
                f"global.{keys.DATATYPE_KEY}",
                f"{n_bytes} bytes of {item.data.name} end within a sample, which takes {frame} ({self.n_channels}"
                f" channels of {datatype}): the file was cut or is of another kind; get it again, or run recover on"
                " its folder",
            )
        if self._starts[-1] > self.n_samples or (recorded is not None and recorded != self.n_samples):
            raise FieldError(
                place,
                "captures",
                f"speaks of {recorded if recorded is not None else self._starts[-1]} samples, {item.data.name} has"
                f" {self.n_samples}; get it again, or run recover on its folder",
            )
        self._frame = frame

    @property
    def plain(self) -> bool:
        """Whether data and metadata can be taken as they are."""
        foreign = any(self._headers) or self._trailing or self._offset or keys.DATASET_KEY in self._head.fields
        return not foreign and self._datatype in ("ci16_le", "cf32_le")

    @property
    def _target(self) -> str:
        exact = self._component.kind in "iu" and self._component.itemsize <= 2
        return "ci16_le" if exact else "cf32_le"

    def described(self, notes: list[str]) -> dict[str, Any]:
        """Metadata of the result; what had to change is added to the notes."""
        head, meta = self._head.fields, self._meta
        earlier = head.pop(f"{NAMESPACE}:sources", [])
        for key in (
            keys.OFFSET_KEY,
            keys.DATASET_KEY,
            keys.TRAILING_BYTES_KEY,
            keys.METADATA_ONLY_KEY,
            keys.COLLECTION_KEY,
        ):
            head.pop(key, None)
        if self._target != self._datatype:
            notes.append(f"converted from {self._datatype} to {self._target}")
        if self._offset:
            notes.append(f"core:offset {self._offset} subtracted from all sample indices")
        if head.get(keys.VERSION_KEY) not in (None, SPECIFICATION):
            notes.append(f"described by version {head[keys.VERSION_KEY]} of the specification")
        head |= {
            keys.DATATYPE_KEY: self._target,
            keys.VERSION_KEY: SPECIFICATION,
            keys.NUM_CHANNELS_KEY: self.n_channels,
        }
        for capture, start in zip(self._captures, self._starts, strict=True):
            if self._offset:
                capture.fields.setdefault(keys.GLOBAL_INDEX_KEY, start + self._offset)
            capture.fields[keys.SAMPLE_START_KEY] = start
            capture.fields.pop(keys.HEADER_BYTES_KEY, None)
        meta["annotations"] = self._kept_annotations(notes)
        source: dict[str, Any] = {"how": "import", "name": self._item.data.name, "sha512": "0" * 128}
        if self._item.sha512 is not None:
            source["name"] = self._item.place.name
        own = {"recording_id": uuid.uuid4().hex, "n_samples": self.n_samples}
        own["sources"] = [source, *(earlier if isinstance(earlier, list) else [])]
        head |= prefixed(own)
        declare(meta)
        _mend(self._item.place, meta, notes)
        return {key: meta[key] for key in ("global", "captures", "annotations")}

    def _kept_annotations(self, notes: list[str]) -> list[dict[str, Any]]:
        kept, cut = [], 0
        for annotation in self._annotations:
            start = annotation.integer(keys.SAMPLE_START_KEY, minimum=0, required=True) - self._offset
            count = annotation.integer(keys.SAMPLE_COUNT_KEY, minimum=0)
            if start < 0 or start > self.n_samples:
                cut += 1
                continue
            if count is not None and start + count > self.n_samples:
                cut += 1
                annotation.fields[keys.SAMPLE_COUNT_KEY] = self.n_samples - start
                annotation.fields[f"{NAMESPACE}:cut"] = True
            annotation.fields[keys.SAMPLE_START_KEY] = start
            kept.append(annotation.fields)
        if cut:
            notes.append(f"{cut} annotations that reached outside the samples cut or left out")
        return sorted(kept, key=lambda fields: int(fields[keys.SAMPLE_START_KEY]))

    def pieces(self, source: dict[str, Any], notes: list[str], on_share: OnShare | None) -> Iterator[bytes]:
        """Bytes of the result; hash and notes of the source are completed at the end.

        Raises:
            FieldError: at the end, if the data are not those that the checksum was made of.
        """
        size, place = self._item.data.size, self._item.place
        digest, done, odd = hashlib.sha512(), 0, 0
        step = max(1, storage.PIECE_BYTES // self._frame) * self._frame
        with self._item.data.open() as file:
            for wanted, length in self._spans():
                left = length
                while left:
                    piece = file.read(min(left, step))
                    if len(piece) < min(left, step):
                        raise FieldError(place, "", f"{self._item.data.name} ended early; get it again")
                    digest.update(piece)
                    left, done = left - len(piece), done + len(piece)
                    if on_share is not None:
                        on_share(done / size)
                    if wanted:
                        if self._component.kind == "f":
                            values = np.frombuffer(piece, self._component)
                            odd += values.size - int(np.isfinite(values).sum())
                        yield _converted(piece, self._component)
        if self._expected is not None and self._expected.lower() != digest.hexdigest():
            raise FieldError(
                place,
                f"global.{keys.SHA512_KEY}",
                f"{self._item.data.name} was changed or damaged since it was recorded; get it again",
            )
        if odd:
            notes.append(f"{odd} values are NaN or infinite")
        if source:
            source["sha512"] = self._item.sha512 or digest.hexdigest()
            if notes:
                source["notes"] = list(notes)

    def _spans(self) -> Iterator[tuple[bool, int]]:
        """Stretches of the file in order: whether they are samples, and bytes."""
        edges = [0, *self._starts, self.n_samples]
        for k, header in enumerate([*self._headers, self._trailing]):
            yield True, (edges[k + 1] - edges[k]) * self._frame
            if k < len(self._headers):
                yield False, header
        yield False, self._trailing


def _converted(piece: bytes, component: np.dtype) -> bytes:
    if component in (np.dtype("<i2"), np.dtype("<f4")):
        return piece
    values = np.frombuffer(piece, component)
    if component.kind == "f" and component.itemsize == 4:
        return values.astype("<f4").tobytes()
    if component.itemsize <= 2:
        bits = 8 * component.itemsize
        middle = 1 << (bits - 1) if component.kind == "u" else 0
        return ((values.astype(np.int32) - middle) << (16 - bits)).astype("<i2").tobytes()
    out = np.empty(values.size // 2, np.complex64)
    to_complex(values.reshape(-1, 1, 2), [out])
    return out.astype("<c8").tobytes()


def _mend(place: Path, meta: dict[str, Any], notes: list[str]) -> None:
    """Take out what this project's stricter check would not let stand, field by field."""
    objects = [("global", meta["global"])]
    objects += [(f"{part}.{k}", item) for part in ("captures", "annotations") for k, item in enumerate(meta[part])]
    for where, item in objects:
        for key in list(item):
            try:
                json.dumps(item[key], allow_nan=False)
            except ValueError:
                del item[key]
                notes.append(f"{where}.{key} left out: NaN or infinite")
    listed = meta["global"][keys.EXTENSIONS_KEY]
    known = {"core"} | {str(e.get("name")).split(":")[0] for e in listed}
    for name in sorted({key.split(":")[0] for _, item in objects for key in item if ":" in key} - known):
        listed.append({"name": name, "version": "unknown", "optional": True})
        notes.append(f"namespace {name} was used without being declared")
    problems = meta_problems(meta) + list(standard_problems(meta))
    for where, item in objects:
        for key in list(item):
            wrong = [text for path, text in problems if path == f"{where}.{key}" or path.startswith(f"{where}.{key}.")]
            if wrong and key not in (keys.EXTENSIONS_KEY, keys.SAMPLE_START_KEY):
                del item[key]
                notes.append(f"{where}.{key} left out: {wrong[0][:120]}")
    problems = meta_problems(meta) + list(standard_problems(meta))
    if problems:
        path, text = problems[0]
        raise FieldError(place, path, f"{text}; mend the file")


# --- bare samples and arrays


def _import_raw(
    path: Path, raw: RawFormat, folder: Path, name: str, overwrite: bool, on_share: OnShare | None
) -> Imported:
    size = path.stat().st_size
    n_channels = 1 if raw.n_channels is None else raw.n_channels
    try:
        frame = frame_bytes(str(raw.datatype), n_channels)
    except ValueError as err:
        raise RecordingError(f"{path} cannot be read so: {err}") from err
    if raw.header_bytes < 0 or raw.header_bytes >= size:
        raise RecordingError(f"header_bytes is {raw.header_bytes}; {path} has {size} bytes, leave some samples")
    rest = (size - raw.header_bytes) % frame
    if rest and not raw.drop_rest:
        raise RecordingError(
            f"{path} has {size - raw.header_bytes} bytes, no multiple of {frame} ({n_channels} channels of"
            f" {raw.datatype}): check --datatype, --channels and --header-bytes, or leave the rest out with --drop-rest"
        )
    meta = _bare_meta(str(raw.datatype), n_channels, raw)
    meta["captures"][0][keys.HEADER_BYTES_KEY] = raw.header_bytes
    meta["global"][keys.TRAILING_BYTES_KEY] = rest
    item = _Foreign(path.stem, path, json.dumps(meta).encode(), _Source(path.name, size, _opener(path)))
    recording, notes, _ = _import_one(item, folder, name, overwrite, on_share)
    return Imported([recording], None, [*notes, f"{rest} bytes at the end left out"] if rest else notes)


def _import_array(path: Path, key: str | None, raw: RawFormat, folder: Path, name: str, overwrite: bool) -> Imported:
    used, samples = read_array(path, key, raw.n_channels)
    interleaved = np.ascontiguousarray(samples.T).view(np.float32)
    steps = interleaved * np.float32(32768)
    exact = bool((steps == np.rint(steps)).all() and (np.abs(interleaved) < 1).all())
    data = steps.astype("<i2").tobytes() if exact else interleaved.astype("<f4").tobytes()
    meta = _bare_meta("ci16_le" if exact else "cf32_le", len(samples), raw)
    with path.open("rb") as file:
        sha512 = hashlib.file_digest(file, "sha512").hexdigest()
    source = _Source(path.name, len(data), lambda: io.BytesIO(data))
    item = _Foreign(path.stem, path, json.dumps(meta).encode(), source, sha512)
    recording, notes, _ = _import_one(item, folder, name, overwrite, None)
    return Imported([recording], None, [f"variable {used}, {len(samples)} channels", *notes])


def _bare_meta(datatype: str, n_channels: int, raw: RawFormat) -> dict[str, Any]:
    head: dict[str, Any] = {
        keys.DATATYPE_KEY: datatype,
        keys.NUM_CHANNELS_KEY: n_channels,
        keys.VERSION_KEY: SPECIFICATION,
    }
    if raw.sample_rate_hz is not None:
        if not 0 < raw.sample_rate_hz < float("inf"):
            raise RecordingError(f"--rate is {raw.sample_rate_hz}; it must be positive and finite")
        head[keys.SAMPLE_RATE_KEY] = raw.sample_rate_hz
    capture: dict[str, Any] = {keys.SAMPLE_START_KEY: 0}
    if raw.frequency_hz is not None:
        capture[keys.FREQUENCY_KEY] = raw.frequency_hz
    return {"global": head, "captures": [capture], "annotations": []}


# --- one recording of several


def _joined(path: Path, folder: Path, name: str, overwrite: bool, on_share: OnShare | None) -> Imported:
    storage.make_folder(folder)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder) as scratch:
        parts = import_file(path, Path(scratch), on_share=on_share)
        recording = join(parts.recordings, folder, name, overwrite=overwrite)
    return Imported([recording], None, parts.notes)


def join(recordings: Sequence[Recording], folder: Path, name: str, *, overwrite: bool = False) -> Recording:
    """One interleaved recording of several that were taken together, sample by sample on one clock.

    Channels come in the order of ``spatial:channel_index`` where all say it, else in the order given.

    Args:
        recordings: of the same datatype, rate and length, with the same segments.
        folder: where to.
        name: of the result.
        overwrite: replace an existing recording.

    Raises:
        RecordingError: they were not taken together.
        StorageError: it cannot be written.
    """
    places = [r.meta["global"].get("spatial:channel_index") for r in recordings]
    if all(isinstance(place, int) for place in places) and len(set(places)) == len(places):
        recordings = [r for _, r in sorted(zip(places, recordings, strict=True), key=lambda pair: pair[0])]
    first, n_channels = recordings[0], sum(r.n_channels for r in recordings)
    for other in recordings[1:]:
        for what, mine, its in (
            ("datatype", first.datatype, other.datatype),
            ("sample rate", first.sample_rate_hz, other.sample_rate_hz),
            ("number of samples", first.n_samples, other.n_samples),
            ("segments", _moments(first), _moments(other)),
        ):
            if mine != its:
                raise RecordingError(
                    f"{first.name} and {other.name} cannot be joined: the {what} is {mine} here and {its} there; join"
                    " only recordings that were taken together on one clock"
                )
    counts = [r.n_channels for r in recordings]
    head = _gathered("global", [r.meta["global"] for r in recordings], counts)
    head = {key: value for key, value in head.items() if not key.startswith("spatial:")}
    captures = [
        _gathered("capture", [r.segments[k].raw for r in recordings], counts) for k in range(len(first.segments))
    ]
    head[keys.NUM_CHANNELS_KEY] = n_channels
    sources = [{"how": "join", "name": r.name, "sha512": hash_of(r)} for r in recordings]
    head |= prefixed({"recording_id": uuid.uuid4().hex, "n_samples": first.n_samples, "sources": sources})
    meta = {"global": head, "captures": captures, "annotations": _united(recordings)}
    declare(meta)
    return write_recording(folder, name, meta, _interleaved(recordings), overwrite=overwrite)


def _moments(recording: Recording) -> list[tuple[Any, ...]]:
    return [(s.sample_start, s.global_index, s.device_time, s.frequency_hz) for s in recording.segments]


def _gathered(part: str, objects: list[dict[str, Any]], counts: list[int]) -> dict[str, Any]:
    """What all objects say; arrays with one entry per channel are put one after the other."""
    result = {}
    for key, value in objects[0].items():
        values = [item.get(key) for item in objects]
        lengths = [len(v) if isinstance(v, list) else None for v in values]
        if key in per_channel_fields(part) and lengths == counts:
            result[key] = [entry for v in values if v is not None for entry in v]
        elif all(v == value for v in values) or key == keys.SHA512_KEY:
            result[key] = value
    return copy.deepcopy(result)


def _united(recordings: Sequence[Recording]) -> list[dict[str, Any]]:
    """Annotations of all; those that only some have are marked with their channel."""
    channel = f"{NAMESPACE}:channel"
    common = [
        a.raw for a in recordings[0].annotations if all(a.raw in [b.raw for b in r.annotations] for r in recordings)
    ]
    common = [raw for raw in common if channel not in raw]
    result, first = list(common), 0
    for recording in recordings:
        for annotation in recording.annotations:
            if annotation.raw not in common:
                result.append({**annotation.raw, channel: first + annotation.raw.get(channel, 0)})
        first += recording.n_channels
    return sorted(copy.deepcopy(result), key=lambda raw: int(raw[keys.SAMPLE_START_KEY]))


def _interleaved(recordings: Sequence[Recording]) -> Iterator[bytes]:
    step = max(1, storage.PIECE_BYTES // sum(r.frame_bytes for r in recordings))
    total = recordings[0].n_samples
    for start in range(0, total, step):
        count = min(step, total - start)
        yield np.concatenate([r.stored(start, count) for r in recordings], axis=1).tobytes()
        for recording in recordings:
            recording.forget()

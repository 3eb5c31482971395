"""Collections: the recordings of one run, by role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sigmf import keys
from sigmf.hashing import calculate_sha512

from ..errors import RecordingError
from . import storage
from .extensions import declarations, standard_problems
from .meta import (
    COLLECTION_SUFFIX,
    META_SUFFIX,
    NAMESPACE,
    SPECIFICATION,
    FieldError,
    check_name,
    check_place,
    dumps,
    load_json,
    meta_problems,
    prefixed,
    require_fields,
    unprefixed,
)
from .reader import Recording
from .seal import file_record


@dataclass(frozen=True)
class Collection:
    """The recordings of one run.

    Args:
        name: base name.
        path: the .sigmf-collection file.
        recordings: by role, in the order of the file; recordings without a role go by their base name.
        fields: fields of the semair namespace, without prefix, roles excepted.
        description: free text, may be empty.
    """

    name: str
    path: Path
    recordings: dict[str, Recording]
    fields: dict[str, Any]
    description: str = ""


def write_collection(
    folder: str | Path,
    name: str,
    recordings: Mapping[str, str],
    fields: Mapping[str, Any] | None = None,
    *,
    description: str = "",
    files: Sequence[str] = (),
    standard_fields: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a collection over finished recordings. Do it last: it holds the checksums of their metadata.

    Args:
        folder: where the recordings are.
        name: base name of the collection.
        recordings: base name by role, e.g. ``{"bs-rx": "run7-bs-rx", "tx-beacon": "run7-tx-beacon"}``; of recordings
            one folder below, ``"folder/bs-rx"``.
        fields: fields of the semair namespace, without prefix.
        description: free text.
        files: names of other files in the folder or one below, e.g. of the ground truth; their checksums go into the
            collection.
        standard_fields: fields of SigMF's own extensions for the collection, under their full names.
        overwrite: replace an existing collection.

    Returns:
        The .sigmf-collection file.

    Raises:
        RecordingError: a recording is missing or damaged, a role or field is not allowed, or the collection
            exists.
        StorageError: it cannot be written.
    """
    folder = Path(folder)
    check_name(name)
    path = folder / (name + COLLECTION_SUFFIX)
    if path.exists() and not overwrite:
        raise RecordingError(f"{path} exists; choose another name or pass overwrite=True to replace it")
    if not recordings:
        raise RecordingError(f"collection {name} has no recordings; name at least one")
    twice = sorted({base for base in recordings.values() if list(recordings.values()).count(base) > 1})
    if twice:
        raise RecordingError(f"recording {twice[0]} has several roles in collection {name}; give it one")
    if "roles" in (fields or {}):
        raise RecordingError("fields hold roles; they follow from recordings, leave them out")
    records = {}
    for file in files:
        check_place(file, "file")
        try:
            records[file] = file_record(folder / file)
        except OSError as err:
            raise RecordingError(
                f"{folder / file} cannot be read ({err.strerror}); leave it out of files, or restore it"
            ) from err
    listed = {"files": records} if records else {}
    own = require_fields("collection", {**(fields or {}), **listed, "roles": dict(recordings)})
    streams = []
    for role, base in recordings.items():
        check_place(base, f"recording of role {role}")
        recording = Recording.open(folder / (base + META_SUFFIX))
        streams.append({"name": base, "hash": calculate_sha512(filename=recording.meta_path)})
    body: dict[str, Any] = {keys.VERSION_KEY: SPECIFICATION, **(standard_fields or {})}
    body[keys.EXTENSIONS_KEY] = declarations({"collection": body})
    if description:
        body[keys.DESCRIPTION_KEY] = description
    body |= {**prefixed(own), keys.STREAMS_KEY: streams}
    meta = {"collection": body}
    problems = meta_problems(meta) + list(standard_problems(meta))
    if problems:
        raise RecordingError(f"collection {name} is not valid: " + "; ".join(f"{f}: {m}" for f, m in problems))
    storage.replace_file(path, dumps(meta))
    return path


def open_collection(path: str | Path) -> Collection:
    """Open a collection and all its recordings.

    Args:
        path: the .sigmf-collection file, its base name, or a folder that holds exactly one.

    Raises:
        RecordingError: the collection or a recording is missing or damaged, or the metadata of a recording
            were changed after the collection was written; the message names the file.
    """
    path = find_collection(Path(path))
    body = collection_body(path)
    recordings: dict[str, Recording] = {}
    roles = _role_by_name(path, body)
    for base, expected in listed_streams(path, body):
        require_stream(path, base, expected)
        recordings[roles.get(base, base)] = Recording.open(path.parent / (base + META_SUFFIX))
    missing = sorted(set(roles.values()) - set(recordings))
    if missing:
        raise FieldError(
            path, f"collection.{NAMESPACE}:roles", f"{missing[0]} is not in {keys.STREAMS_KEY}; mend the file"
        )
    fields = unprefixed(body)
    fields.pop("roles", None)
    fields.pop("seal", None)
    return Collection(
        path.name.removesuffix(COLLECTION_SUFFIX),
        path,
        recordings,
        fields,
        str(body.get(keys.DESCRIPTION_KEY, "")),
    )


def find_collection(path: Path) -> Path:
    """Collection file that a path means: see `open_collection`.

    Raises:
        RecordingError: none, or not exactly one.
    """
    if path.is_dir():
        found = sorted(p for p in path.glob(f"*{COLLECTION_SUFFIX}") if not p.name.startswith("."))
        if len(found) != 1:
            names = ", ".join(p.name for p in found[:8])
            raise RecordingError(
                f"{path} holds {len(found)} collections; "
                + (f"name one of them: {names}" if found else "check the path, or open its recordings one by one")
            )
        return found[0]
    if not path.name.endswith(COLLECTION_SUFFIX):
        path = path.with_name(path.name + COLLECTION_SUFFIX)
    if not path.is_file():
        raise RecordingError(f"{path} is missing; check the path")
    return path


def collection_body(path: Path) -> dict[str, Any]:
    """The collection object in a file.

    Raises:
        RecordingError: the file holds none.
    """
    body = load_json(path).get("collection")
    if not isinstance(body, dict):
        raise FieldError(path, "collection", "missing or no object; restore the file from a copy")
    return body


def listed_streams(path: Path, body: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Base name and expected meta checksum of each recording; objects and the deprecated pairs are both read.

    Raises:
        RecordingError: an entry is malformed or leads out of the collection's folder, or further down than one below.
    """
    listed = body.get(keys.STREAMS_KEY)
    if not isinstance(listed, list):
        raise FieldError(path, f"collection.{keys.STREAMS_KEY}", "missing or no list; restore the file from a copy")
    result = []
    for index, stream in enumerate(listed):
        pair = (stream.get("name"), stream.get("hash")) if isinstance(stream, dict) else stream
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(item, str) for item in pair):
            raise FieldError(
                path,
                f"collection.{keys.STREAMS_KEY}.{index}",
                f"is {stream!r}; it must hold a name and a hash",
            )
        check_place(pair[0], f"{path}, collection.{keys.STREAMS_KEY}.{index}.name")
        result.append((pair[0], pair[1].lower()))
    return result


def require_stream(path: Path, base: str, expected: str) -> None:
    """Refuse a recording that is not the one the collection was written over.

    Raises:
        FieldError: its metadata are missing or were changed.
    """
    meta_path = path.parent / (base + META_SUFFIX)
    if not meta_path.is_file():
        raise FieldError(meta_path, "", f"missing, but {path.name} lists it; restore it from a copy")
    if calculate_sha512(filename=meta_path) != expected:
        raise FieldError(
            meta_path,
            "",
            f"changed after {path.name} was written; restore it from a copy, or write the collection again"
            " if the change is meant",
        )


def _role_by_name(path: Path, body: Mapping[str, Any]) -> dict[str, str]:
    roles = body.get(f"{NAMESPACE}:roles", {})
    if not isinstance(roles, dict) or not all(isinstance(base, str) for base in roles.values()):
        raise FieldError(path, f"collection.{NAMESPACE}:roles", "must be base names by role; restore the file")
    return {base: role for role, base in roles.items()}

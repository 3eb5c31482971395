"""SigMF metadata of this project: field tables, checks, and the files' names."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import sigmf.schema
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from sigmf import keys

from .. import __version__
from ..errors import RecordingError
from .devicetime import DeviceTime
from .extensions import SEMAIR_VERSION
from .seal import SEAL_KEY, blank_seal, seal_text

NAMESPACE = "semair"
EXTENSION = {"name": NAMESPACE, "version": SEMAIR_VERSION, "optional": True}
SPECIFICATION = sigmf.__specification__
RECORDER = f"semair {__version__}"
LABEL_LIMIT = 20
NAME_LIMIT_BYTES = 200
"""Of a base name: file systems allow 255 with endings and dots."""
META_LIMIT_BYTES = 64 << 20
"""Of a metadata file: parsed, it takes ten times as much memory. That is some 200,000 annotations."""

META_SUFFIX = keys.SIGMF_METADATA_EXT
DATA_SUFFIX = keys.SIGMF_DATASET_EXT
COLLECTION_SUFFIX = keys.SIGMF_COLLECTION_EXT


class FieldError(RecordingError):
    """Damage at a place: the message begins with file and field.

    Args:
        file: the file that is wrong.
        field: path of the field, empty if it is the file as a whole.
        text: what is wrong and what to do.
    """

    def __init__(self, file: Path, field: str, text: str) -> None:
        super().__init__(f"{file}, {field}: {text}" if field else f"{file}: {text}")
        self.file = file
        self.field = field
        self.text = text


class CutError(FieldError):
    """The data file is shorter than recorded, which recovery can make the best of."""


# The pattern in the SigMF schema is not anchored at its end and lets "cf32_lexyz" pass.
_DATATYPE = re.compile(r"([cr])(f64|f32|i32|i16|u32|u16|i8|u8)(_le|_be)?")


def component_dtype(datatype: str) -> np.dtype:
    """NumPy dtype of one real component of a complex SigMF datatype.

    Args:
        datatype: `core:datatype`, e.g. ``ci16_le``.

    Raises:
        ValueError: not a complex SigMF datatype.
    """
    match = _DATATYPE.fullmatch(datatype)
    if match is None:
        raise ValueError(f"{datatype!r} is no SigMF datatype; allowed are e.g. ci16_le, cf32_le, ci8, cu8, ci16_be")
    kind, component, order = match.groups()
    if kind == "r":
        raise ValueError(f"{datatype!r} holds real samples; only complex datatypes (c...) are read")
    size = int(component[1:]) // 8
    if size > 1 and order is None:
        raise ValueError(f"{datatype!r} lacks the byte order; add _le or _be")
    return np.dtype(f"{'>' if order == '_be' else '<'}{component[0]}{size}")


def check_name(name: str, what: str = "name") -> None:
    """Refuse base names that could leave the folder, hide, or be taken for another file of the format.

    Raises:
        RecordingError: the name is not a plain file name.
    """
    if not isinstance(name, str) or not name or name.startswith(".") or re.search(r'[/\\:*?"<>|\x00-\x1f]', name):
        raise RecordingError(
            f'{what} is {name!r}; it must be a plain file name without any of / \\ : * ? " < > | and not'
            " start with a dot"
        )
    try:
        long = len(name.encode()) > NAME_LIMIT_BYTES
    except UnicodeEncodeError as err:
        raise RecordingError(f"{what} is {name!r}; it must be Unicode text ({err.reason})") from err
    if long:
        raise RecordingError(f"{what} is {name[:40]}...; it must be at most {NAME_LIMIT_BYTES} bytes long")
    if re.search(r"\.sigmf(-meta|-data|-collection)?$", name):
        raise RecordingError(f"{what} is {name!r}; leave out the .sigmf ending, it is added")


def check_place(name: str, what: str = "name") -> None:
    """As `check_name`, for a file in a folder or in one below it, as `folder/name`.

    Raises:
        RecordingError: the name is not plain, or leads elsewhere.
    """
    parts = name.split("/") if isinstance(name, str) else [name]
    if len(parts) > 2:
        raise RecordingError(f"{what} is {name!r}; it must be a plain file name, or one in a folder below")
    for part in parts:
        check_name(part, what)


def plain(value: Any) -> Any:
    """JSON-ready copy of a field value: NumPy arrays and scalars, tuples and device times become plain."""
    if isinstance(value, DeviceTime):
        return value.to_dict()
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def prefixed(fields: Mapping[str, Any] | None) -> dict[str, Any]:
    """Fields of the semair namespace under their full names, as plain JSON values."""
    return {f"{NAMESPACE}:{key}": plain(value) for key, value in (fields or {}).items()}


def unprefixed(section: Mapping[str, Any]) -> dict[str, Any]:
    """The semair fields of a metadata object, without prefix."""
    start = f"{NAMESPACE}:"
    return {key.removeprefix(start): value for key, value in section.items() if key.startswith(start)}


def dumps(meta: Mapping[str, Any]) -> bytes:
    """Metadata as UTF-8 JSON, with a seal of its own where this project's extension is declared.

    Raises:
        ValueError: a value is NaN or infinite, which JSON cannot hold.
    """
    head = "collection" if "collection" in meta else "global"
    ours = is_sealed_kind(meta)
    if ours:
        meta = {**meta, head: {**meta[head], SEAL_KEY: blank_seal()}}
    text = (json.dumps(meta, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()
    return seal_text(text) if ours else text


def is_sealed_kind(meta: Mapping[str, Any]) -> bool:
    """Whether metadata have a seal, or declare a version of this project's extension that asks for one."""
    head = meta.get("collection", meta.get("global"))
    if not isinstance(head, Mapping):
        return False
    declared = head.get(keys.EXTENSIONS_KEY)
    return SEAL_KEY in head or any(
        isinstance(item, Mapping) and item.get("name") == NAMESPACE and item.get("version") != "1.0.0"
        for item in (declared if isinstance(declared, list) else ())
    )


def load_json(path: Path) -> dict[str, Any]:
    """Object in a JSON file.

    Raises:
        FieldError: the file is missing, unreadable, too large, no UTF-8, no JSON, or holds no object.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise FieldError(path, "", "is no regular file; check the path")
        if status.st_size > META_LIMIT_BYTES:
            raise FieldError(
                path, "", f"has {status.st_size} bytes; metadata are read up to {META_LIMIT_BYTES}, take some out"
            )
        raw = path.read_bytes()
    except OSError as err:
        raise FieldError(path, "", f"cannot be read ({err.strerror}); check the path") from err
    return parse_json(path, raw)


def parse_json(path: Path, raw: bytes) -> dict[str, Any]:
    """Object in JSON text.

    Args:
        path: where it comes from, for messages.
        raw: the text in UTF-8.

    Raises:
        FieldError: no UTF-8, no JSON, or no object.
    """
    try:
        content = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as err:
        raise FieldError(path, "", f"is no JSON in UTF-8 ({err}); restore it from a copy") from err
    if not isinstance(content, dict):
        raise FieldError(path, "", f"holds {type(content).__name__}, not a JSON object; restore it from a copy")
    return content


@cache
def extension_schema() -> dict[str, Any]:
    """JSON schema of the semair namespace."""
    return json.loads((files(__package__) / "semair-extension.schema.json").read_text("utf-8"))


@cache
def _extension_validator(part: str | None) -> Draft202012Validator:
    schema = extension_schema()
    if part is not None:
        schema = {"$schema": schema["$schema"], "$ref": f"#/$defs/{part}", "$defs": schema["$defs"]}
    return Draft202012Validator(schema)


@cache
def _core_validator(collection: bool) -> Draft202012Validator:
    if not collection:
        return Draft202012Validator(sigmf.schema.get_schema())
    schema = json.loads(json.dumps(sigmf.schema.get_schema(schema_file=sigmf.schema.SCHEMA_COLLECTION)))
    # The library's schema knows only the deprecated [name, hash] pairs, the specification asks for objects.
    schema["properties"]["collection"]["properties"]["core:streams"] = {
        "type": "array",
        "items": {
            "type": "object",
            "required": ["name", "hash"],
            "properties": {
                "name": {"type": "string"},
                "hash": {"type": "string", "pattern": "^[0-9a-fA-F]{128}$"},
            },
        },
    }
    return Draft202012Validator(schema)


def _problem(error: ValidationError, prefix: str = "") -> tuple[str, str]:
    """Field and message of a schema violation."""
    field = prefix + ".".join(str(step) for step in error.absolute_path)
    if error.validator == "additionalProperties":
        known = sorted(key.removeprefix(f"{NAMESPACE}:") for key in error.schema.get("properties", {}))
        unknown = sorted(set(unprefixed(error.instance)) - set(known))
        return field, (
            f"{', '.join(unknown)} not in the namespace {NAMESPACE} {SEMAIR_VERSION}; known here: {', '.join(known)}"
            " (anything else goes into the object `extra`)"
        )
    return field, error.message if len(error.message) < 400 else error.message[:400] + " ..."


def field_problems(part: str, fields: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Violations of the semair schema by one metadata object: (field, message).

    Args:
        part: ``global``, ``capture``, ``annotation`` or ``collection``.
        fields: the object, full names.
    """
    for error in _extension_validator(part).iter_errors(fields):
        yield _problem(error)


def require_fields(part: str, fields: Mapping[str, Any] | None, n_channels: int | None = None) -> dict[str, Any]:
    """Fields of the semair namespace, checked and JSON-ready, still without prefix.

    Args:
        part: ``global``, ``capture``, ``annotation`` or ``collection``.
        fields: names without prefix.
        n_channels: if given, the length that per-channel arrays must have.

    Raises:
        RecordingError: a field is unknown, has a wrong type or range, or a wrong number of channels.
    """
    full = prefixed(fields)
    problems = list(field_problems(part, full))
    if n_channels is not None:
        problems += channel_count_problems(part, full, n_channels)
    try:
        json.dumps(full, allow_nan=False)
    except (ValueError, TypeError) as err:
        problems.append(("", f"{err}: only finite numbers, strings, booleans, lists and objects can be stored"))
    if problems:
        text = "; ".join(f"{field}: {message}" if field else message for field, message in problems)
        raise RecordingError(f"{part} fields do not fit the schema of the namespace {NAMESPACE}: {text}")
    return unprefixed(full)


@cache
def field_names(part: str) -> frozenset[str]:
    """Names, without prefix, of the semair fields of one metadata object: see `field_problems`."""
    return frozenset(unprefixed(extension_schema()["$defs"][part]["properties"]))


@cache
def per_channel_fields(part: str) -> frozenset[str]:
    """Full names of the fields of ``global``, ``capture`` ... that are arrays with one entry per channel."""

    def refers(schema: Any) -> bool:
        return "#/$defs/per_channel" in schema.get("$ref", "") or any(map(refers, schema.get("anyOf", ())))

    table = extension_schema()["$defs"][part]["properties"]
    return frozenset(key for key, schema in table.items() if refers(schema))


def channel_count_problems(part: str, fields: Mapping[str, Any], n_channels: int) -> list[tuple[str, str]]:
    """Per-channel arrays whose length is not the number of channels, which a JSON schema cannot express."""
    return [
        (key, f"has {len(fields[key])} entries; it needs one per channel, {n_channels}")
        for key in sorted(per_channel_fields(part) & set(fields))
        if isinstance(fields[key], list) and len(fields[key]) != n_channels
    ]


def meta_problems(meta: Mapping[str, Any]) -> list[tuple[str, str]]:
    """All violations of the SigMF core schema and of the semair schema: (field, message).

    Args:
        meta: content of a meta or a collection file.
    """
    collection = "collection" in meta
    problems = [_problem(error) for error in _core_validator(collection).iter_errors(meta)]
    problems += [_problem(error) for error in _extension_validator(None).iter_errors(meta)]
    sections = ["collection"] if collection else ["global", "captures", "annotations"]
    if problems or not all(key in meta for key in sections):
        return problems
    head = meta[sections[0]]
    declared = {extension["name"].split(":")[0] for extension in head.get(keys.EXTENSIONS_KEY, [])}
    objects = [item for key in sections for item in (meta[key] if isinstance(meta[key], list) else [meta[key]])]
    used = {key.split(":")[0] for item in objects for key in item if ":" in key} - {"core"}
    problems += [
        (
            f"{sections[0]}.{keys.EXTENSIONS_KEY}",
            f"the namespace {name} is used but not declared; list it here",
        )
        for name in sorted(used - declared)
    ]
    if not collection:
        n_channels = head.get(keys.NUM_CHANNELS_KEY, 1)
        problems += [(f"global.{k}", text) for k, text in channel_count_problems("global", head, n_channels)]
        for index, capture in enumerate(meta["captures"]):
            problems += [
                (f"captures.{index}.{k}", text) for k, text in channel_count_problems("capture", capture, n_channels)
            ]
        problems += _order_problems(meta)
    return problems


def _order_problems(meta: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for section in ("captures", "annotations"):
        starts = [item[keys.SAMPLE_START_KEY] for item in meta[section]]
        for index in range(1, len(starts)):
            if starts[index] < starts[index - 1]:
                yield (
                    f"{section}.{index}.{keys.SAMPLE_START_KEY}",
                    f"is {starts[index]} after {starts[index - 1]}; {section} must be sorted by it",
                )
    indexed = [c for c in meta["captures"] if keys.GLOBAL_INDEX_KEY in c]
    for index in range(1, len(indexed)):
        before, after = indexed[index - 1], indexed[index]
        step = after[keys.GLOBAL_INDEX_KEY] - before[keys.GLOBAL_INDEX_KEY]
        if step < after[keys.SAMPLE_START_KEY] - before[keys.SAMPLE_START_KEY]:
            yield (
                f"captures.{index}.{keys.GLOBAL_INDEX_KEY}",
                f"rises by {step}, less than the samples stored in between: duplicates or a clock that stepped back",
            )

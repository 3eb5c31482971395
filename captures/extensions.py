"""SigMF's own extensions beside this project's: which fields they have, and which of them are declared."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jsonschema import Draft202012Validator

from ..errors import RecordingError

STANDARD = {"antenna": "1.0.0", "capture_details": "1.0.0", "signal": "1.0.0", "spatial": "1.1.0"}
"""Version by name; the fields are in standard-extensions.schema.json."""
SEMAIR_VERSION = "1.1.0"


def declarations(meta: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`core:extensions` of metadata: this project's, and those of SigMF whose fields they hold."""
    used = {namespace(key) for item in _objects(meta) for key in item}
    versions = {"semair": SEMAIR_VERSION} | {name: STANDARD[name] for name in sorted(used & set(STANDARD))}
    return [{"name": name, "version": version, "optional": True} for name, version in versions.items()]


def namespace(key: str) -> str:
    """What stands before the colon of a field's name."""
    return key.partition(":")[0]


def standard_problems(meta: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Violations of SigMF's own extensions, where they are used: (field, message).

    The library validates the core only. Fields are checked where they stand, and those an extension requires of an
    object are asked for as soon as the object has one of its fields.
    """
    for error in _validator().iter_errors(meta):
        yield ".".join(str(step) for step in error.absolute_path), error.message[:400]


def require_standard(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of SigMF's own extensions by section (``global``, ``captures``, ``annotations``), checked.

    Raises:
        RecordingError: another namespace, an unknown section, or a violation of an extension's schema.
    """
    unknown = set(fields) - {"global", "captures", "annotations"}
    foreign = {key for section in fields.values() for key in section if namespace(key) not in STANDARD}
    if unknown or foreign:
        raise RecordingError(
            f"standard fields hold {', '.join(sorted(unknown | foreign))}; allowed are the sections global, captures,"
            f" annotations, with fields of the namespaces {', '.join(STANDARD)}"
        )
    lists = {key: dict(value) if key == "global" else [dict(value)] for key, value in fields.items()}
    problems = list(standard_problems(lists))
    if problems:
        text = "; ".join(f"{field}: {message}" for field, message in problems)
        raise RecordingError(f"standard fields do not fit their extension: {text}")
    return {key: dict(value) for key, value in fields.items()}


def spatial_fields(n_channels: int, positions_m: list[list[float]] | None = None) -> dict[str, dict[str, Any]]:
    """The `spatial` extension of a recording that holds all channels of an array.

    Args:
        n_channels: elements, all in this recording.
        positions_m: [x, y, z] of each element; None: unknown.
    """
    points: list[dict[str, Any]] = [{"unknown": True}] * n_channels
    if positions_m is not None:
        points = [{"point": [float(x) for x in position]} for position in positions_m]
    return {
        "global": {"spatial:num_elements": n_channels, "spatial:channel_index": 0},
        "captures": {"spatial:element_geometry": points},
    }


def _objects(meta: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for key in ("global", "collection"):
        if isinstance(meta.get(key), dict):
            yield meta[key]
    for key in ("captures", "annotations"):
        for item in meta.get(key, ()):
            if isinstance(item, dict):
                yield item


@cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(json.loads((files(__package__) / "standard-extensions.schema.json").read_text("utf-8")))

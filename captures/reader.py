"""Reading SigMF recordings, our own and others', without ever returning samples that were not recorded."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sigmf import keys
from sigmf.hashing import calculate_sha512

from ..errors import RecordingError
from .devicetime import DeviceTime
from .journal import leftovers
from .meta import (
    COLLECTION_SUFFIX,
    DATA_SUFFIX,
    META_SUFFIX,
    NAMESPACE,
    CutError,
    FieldError,
    component_dtype,
    load_json,
    unprefixed,
)
from .seal import damaged_chunks, parse_chunks

OnShare = Callable[[float], None]
"""Called with the share done, 0 to 1."""

_MAX_INT = 2**63 - 1
_PIECE_SAMPLES = 4096


@dataclass(frozen=True)
class Segment:
    """Stretch of adjacent samples recorded with the same settings.

    Args:
        sample_start: index in the file of its first sample.
        sample_count: samples per channel.
        global_index: index of its first sample in the original stream, which also counts lost samples; None
            if not said. Segments are adjacent in time only where it runs on.
        device_time: device time of its first sample, None if not recorded.
        fields: fields of the semair namespace, without prefix.
        frequency_hz: centre frequency, None if not recorded.
        raw: the whole capture object.
    """

    sample_start: int
    sample_count: int
    global_index: int | None
    device_time: DeviceTime | None
    fields: dict[str, Any]
    frequency_hz: float | None = None
    raw: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Annotation:
    """Marked stretch of samples.

    Args:
        sample_start: index in the file.
        sample_count: samples per channel; where the file says none, up to the end of the segment.
        label: short label, may be empty.
        comment: free text, may be empty.
        fields: fields of the semair namespace, without prefix.
        raw: the whole annotation object.
    """

    sample_start: int
    sample_count: int
    label: str
    comment: str
    fields: dict[str, Any]
    raw: dict[str, Any] = field(default_factory=dict, repr=False)


class Recording:
    """A recording on disk; get one with `Recording.open`.

    Attributes:
        name: base name.
        meta_path: the .sigmf-meta file.
        data_path: the .sigmf-data file.
        meta: the metadata as they are in the file.
        n_channels: interleaved channels.
        datatype: SigMF datatype of the file.
        sample_rate_hz: None if not recorded.
        n_samples: samples per channel.
        segments: capture segments in order; equal neighbours are merged, as the specification asks.
        annotations: annotations in order.
        global_fields: global fields of the semair namespace, without prefix.
        component: dtype of one real component in the file.
        frame_bytes: of one sample of all channels in the file.
        sha512: of the data file as recorded, lower case; None if not recorded.
    """

    def __init__(self, meta_path: Path, meta: dict[str, Any]) -> None:
        self.meta_path = meta_path
        self.name = meta_path.name.removesuffix(META_SUFFIX)
        self.data_path = meta_path.with_name(self.name + DATA_SUFFIX)
        self.meta = meta
        head = Section(meta_path, "global", require_section(meta_path, meta, "global", dict))
        _refuse_unreadable(meta_path, head)
        self.datatype: str = head.get(keys.DATATYPE_KEY, str, required=True)
        try:
            self.component = component_dtype(self.datatype)
        except ValueError as err:
            raise head.error(keys.DATATYPE_KEY, str(err)) from err
        self.n_channels: int = head.integer(keys.NUM_CHANNELS_KEY, minimum=1, default=1)
        self.sample_rate_hz: float | None = head.number(keys.SAMPLE_RATE_KEY)
        if self.sample_rate_hz is not None and self.sample_rate_hz <= 0:
            raise head.error(keys.SAMPLE_RATE_KEY, f"is {self.sample_rate_hz}; it must be positive")
        sha512 = head.get(keys.SHA512_KEY, str)
        self.sha512: str | None = None if sha512 is None else sha512.lower()
        self.global_fields = unprefixed(head.fields)
        self.frame_bytes = 2 * self.component.itemsize * self.n_channels
        self.n_samples = self._count_samples(head)
        self.segments = self._read_segments()
        self.annotations = self._read_annotations()
        self._map: np.memmap | None = None

    @classmethod
    def open(cls, path: str | Path, check_hash: bool = False) -> Recording:
        """Open a recording.

        Args:
            path: its .sigmf-meta or .sigmf-data file, its base name, or a folder that holds exactly one
                recording.
            check_hash: read all data once and compare with the checksum (about 2 s per GB).

        Raises:
            RecordingError: there is no such recording, or it is damaged or of a kind that cannot be read;
                the message names file and field and what to do.
        """
        meta_path = find_meta(Path(path))
        recording = cls(meta_path, load_json(meta_path))
        if check_hash:
            recording.check_hash()
        return recording

    def __repr__(self) -> str:
        return (
            f"Recording({self.name!r}, {self.datatype}, {self.n_channels} channels, {self.n_samples}"
            f" samples, {self.sample_rate_hz} Hz)"
        )

    @property
    def frequency_hz(self) -> float | None:
        """Centre frequency of the first segment; later ones may differ, see `segments`."""
        return self.segments[0].frequency_hz if self.segments else None

    @property
    def complete(self) -> bool | None:
        """Whether everything meant to be recorded is there; None for recordings that do not say."""
        return self.global_fields.get("complete")

    def read(self, start: int = 0, count: int | None = None) -> np.ndarray:
        """Samples as they were recorded.

        Fixed point samples are divided by exactly their full scale (ci16: 32768; unsigned: after taking off
        the middle), so that ci16 and cf32 recordings return what was written bit by bit. 32 bit integers and
        64 bit floats are rounded to complex64.

        Args:
            start: index in the file of the first sample.
            count: samples per channel; all up to the end if None.

        Returns:
            complex64, (channels, count).

        Raises:
            RecordingError: the stretch is not within the recording, or the file has changed since it was
                opened.
        """
        if count is None:
            count = self.n_samples - start
        stored = self.stored(start, count)
        out = np.empty((self.n_channels, count), np.complex64)
        to_complex(stored, list(out))
        return out

    def read_into(self, start: int, out: Sequence[np.ndarray]) -> None:
        """As `read`, into memory that is there.

        Args:
            start: index in the file of the first sample.
            out: complex64, (count,) per channel.
        """
        to_complex(self.stored(start, len(out[0])), out)

    def stored(self, start: int, count: int) -> np.ndarray:
        """Components as they are in the file.

        Args:
            start: index in the file of the first sample.
            count: samples per channel.

        Returns:
            Of the file's own dtype, (count, channels, 2); a map of the file, not a copy.

        Raises:
            RecordingError: as for `read`.
        """
        if start < 0 or count < 0 or start + count > self.n_samples:
            raise RecordingError(
                f"samples {start} to {start + count} of {self.data_path} were asked for; it has"
                f" {self.n_samples}: ask for a stretch within them"
            )
        try:
            size = os.stat(self.data_path).st_size
        except OSError:
            size = 0
        if size < self.n_samples * self.frame_bytes:
            # Reading a map beyond the end of its file would kill the process.
            raise FieldError(self.data_path, "", "has shrunk since it was opened; restore it from a copy")
        if self._map is None:
            shape = (self.n_samples, self.n_channels, 2)
            self._map = np.memmap(self.data_path, dtype=self.component, mode="r", shape=shape)
        stretch: np.ndarray = self._map[start : start + count]
        return stretch

    @property
    def chunks(self) -> list[tuple[int, int, str]] | None:
        """First sample, sample after the last and SHA-256 of each stretch of the data; None if there are none.

        Raises:
            RecordingError: the field is malformed.
        """
        if "chunks" not in self.global_fields:
            return None
        try:
            return parse_chunks(self.global_fields["chunks"], self.n_samples)
        except ValueError as err:
            raise FieldError(self.meta_path, f"global.{NAMESPACE}:chunks", f"{err}; restore it from a copy") from err

    def forget(self) -> None:
        """Let go of the mapped file, so that what was read of it no longer counts as this process's memory."""
        self._map = None

    def check_hash(self) -> None:
        """Compare the data with the checksums in the metadata: those of the chunks, or that of the whole file.

        Raises:
            RecordingError: they differ, or there is no checksum.
        """
        if self.chunks is not None:
            for start, end in damaged_chunks(self.data_path, self.chunks, self.frame_bytes):
                raise FieldError(
                    self.data_path,
                    f"global.{NAMESPACE}:chunks",
                    f"the data were changed or damaged in samples {start} to {end}; restore them from a copy",
                )
            return
        if self.sha512 is None:
            raise FieldError(
                self.meta_path,
                f"global.{keys.SHA512_KEY}",
                "missing; the data cannot be checked, open without check_hash",
            )
        actual = calculate_sha512(filename=self.data_path)
        if actual != self.sha512:
            raise FieldError(
                self.data_path,
                f"global.{keys.SHA512_KEY}",
                f"the data were changed or damaged, their hash is {actual[:16]}... and"
                f" {self.meta_path.name} says {self.sha512[:16]}...; restore them from a copy",
            )

    def _count_samples(self, head: Section) -> int:
        folder = self.meta_path.parent
        if not self.data_path.is_file():
            raise FieldError(
                self.data_path,
                "",
                f"missing; put it beside {self.meta_path.name}, or run recover on {folder} if recording was"
                " interrupted",
            )
        size = os.stat(self.data_path).st_size
        if size == 0:
            raise FieldError(self.data_path, "", "empty; restore it from a copy, there is nothing to recover in it")
        n_samples, rest = divmod(size, self.frame_bytes)
        fix = f"restore it from a copy, or run recover on {folder} to keep what is whole"
        if rest:
            raise CutError(
                self.data_path,
                f"global.{keys.DATATYPE_KEY}",
                f"{size} bytes end within a sample, which takes {self.frame_bytes} ({self.n_channels}"
                f" channels of {self.datatype}); {fix}",
            )
        recorded = head.integer(f"{NAMESPACE}:n_samples", minimum=0)
        field_name = f"global.{NAMESPACE}:n_samples"
        if recorded is not None and n_samples < recorded:
            text = f"{recorded} samples were recorded and {n_samples} are in the file: it was cut; {fix}"
            raise CutError(self.data_path, field_name, text)
        if recorded is not None and n_samples > recorded:
            text = f"{recorded} samples were recorded and {n_samples} are in the file; restore it from a copy"
            raise FieldError(self.data_path, field_name, text)
        return n_samples

    def _read_segments(self) -> list[Segment]:
        captures = require_section(self.meta_path, self.meta, "captures", list) or [{keys.SAMPLE_START_KEY: 0}]
        sections = [Section(self.meta_path, f"captures.{index}", item) for index, item in enumerate(captures)]
        starts: list[int] = []
        kept: list[Section] = []
        for section in sections:
            if section.integer(keys.HEADER_BYTES_KEY, minimum=0, default=0):
                raise section.error(
                    keys.HEADER_BYTES_KEY,
                    "is not 0: the file is not all samples; convert it with semair capture import",
                )
            start = section.integer(keys.SAMPLE_START_KEY, minimum=0, required=True)
            if starts and start < starts[-1]:
                raise section.error(
                    keys.SAMPLE_START_KEY, f"is {start} after {starts[-1]}; it must rise, mend the file"
                )
            if start > self.n_samples:
                raise CutError(
                    self.meta_path,
                    f"{section.where}.{keys.SAMPLE_START_KEY}",
                    f"is {start}, but {self.data_path.name} has {self.n_samples} samples: it was cut;"
                    f" restore it from a copy, or run recover on {self.meta_path.parent} to keep what is"
                    " whole",
                )
            if kept and _settings(kept[-1].fields) == _settings(section.fields):
                continue
            starts.append(start)
            kept.append(section)
        ends = [*starts[1:], self.n_samples]
        return [
            Segment(
                sample_start=start,
                sample_count=end - start,
                global_index=section.integer(keys.GLOBAL_INDEX_KEY, minimum=0),
                device_time=section.device_time(),
                fields=unprefixed(section.fields),
                frequency_hz=section.number(keys.FREQUENCY_KEY),
                raw=section.fields,
            )
            for section, start, end in zip(kept, starts, ends, strict=True)
        ]

    def _read_annotations(self) -> list[Annotation]:
        result = []
        for index, item in enumerate(require_section(self.meta_path, self.meta, "annotations", list)):
            section = Section(self.meta_path, f"annotations.{index}", item)
            start = section.integer(keys.SAMPLE_START_KEY, minimum=0, required=True)
            count = section.integer(keys.SAMPLE_COUNT_KEY, minimum=0)
            if count is None:
                inside = [s.sample_start + s.sample_count for s in self.segments if s.sample_start <= start]
                count = max(0, (inside[-1] if inside else self.n_samples) - start)
            result.append(
                Annotation(
                    sample_start=start,
                    sample_count=count,
                    label=section.get(keys.LABEL_KEY, str) or "",
                    comment=section.get(keys.COMMENT_KEY, str) or "",
                    fields=unprefixed(section.fields),
                    raw=section.fields,
                )
            )
        return result


def find_meta(path: Path) -> Path:
    """Meta file of the recording that a path means: see `Recording.open`.

    Raises:
        RecordingError: none, or not exactly one.
    """
    if path.is_dir():
        found = sorted(p for p in path.glob(f"*{META_SUFFIX}") if not p.name.startswith("."))
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(p.name.removesuffix(META_SUFFIX) for p in found[:8]) + (", ..." if len(found) > 8 else "")
            raise RecordingError(f"{path} holds {len(found)} recordings; name one of them: {names}")
        hint = f"run recover on {path}" if leftovers(path) else "check the path"
        raise RecordingError(f"{path} holds no recording (no {META_SUFFIX} file); {hint}")
    name = path.name
    for suffix in (META_SUFFIX, DATA_SUFFIX):
        if name.endswith(suffix):
            name = name.removesuffix(suffix)
            break
    else:
        if name.endswith(COLLECTION_SUFFIX):
            raise RecordingError(f"{path} is a collection; open it with open_collection")
        if name.endswith((keys.SIGMF_ARCHIVE_EXT, *keys.SIGMF_COMPRESSED_EXTS.values())) and path.is_file():
            raise RecordingError(f"{path} is an archive; semair capture import {path} unpacks it")
    meta_path = path.with_name(name + META_SUFFIX)
    if not meta_path.is_file():
        interrupted = meta_path.parent.is_dir() and name in [p.name for p in leftovers(meta_path.parent)]
        hint = f"run recover on {meta_path.parent}" if interrupted else "check the path, or restore it from a copy"
        raise RecordingError(f"{meta_path} is missing; {hint}")
    return meta_path


def _settings(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != keys.SAMPLE_START_KEY}


def _refuse_unreadable(meta_path: Path, head: Section) -> None:
    """Refuse what would be read wrongly."""
    if head.integer(keys.OFFSET_KEY, minimum=0, default=0):
        raise head.error(
            keys.OFFSET_KEY,
            "is not 0; readers disagree about what it shifts, so sample indices would be a guess."
            " semair capture import can remove it if the sample indices leave no doubt",
        )
    if head.get(keys.METADATA_ONLY_KEY, bool):
        raise head.error(keys.METADATA_ONLY_KEY, "is true: this recording has no samples; get its data file")
    if head.get(keys.DATASET_KEY, str) is not None or head.integer(keys.TRAILING_BYTES_KEY, minimum=0, default=0):
        field_name = keys.DATASET_KEY if keys.DATASET_KEY in head.fields else keys.TRAILING_BYTES_KEY
        raise head.error(field_name, "marks a foreign data file; convert it with semair capture import")
    refuse_unknown_extensions(head)


def refuse_unknown_extensions(head: Section) -> None:
    """Refuse recordings that demand of their readers to know an extension that is not known here.

    Raises:
        FieldError: the extension is named.
    """
    for index, extension in enumerate(head.get(keys.EXTENSIONS_KEY, list) or []):
        place = f"{keys.EXTENSIONS_KEY}.{index}"
        if not isinstance(extension, dict) or not isinstance(extension.get("name"), str):
            raise head.error(place, "is no object with a name; mend the file")
        if extension.get("optional") is not True and extension["name"].split(":")[0] not in (
            NAMESPACE,
            "core",
        ):
            raise head.error(
                place,
                f"the extension {extension['name']} is not optional and not known here, so the samples"
                " could be misread; set optional to true if they can be read without it",
            )


def require_section(meta_path: Path, meta: Mapping[str, Any], key: str, kind: type) -> Any:
    """Object or list of the metadata that must be there."""
    value = meta.get(key)
    if not isinstance(value, kind):
        raise FieldError(
            meta_path,
            key,
            f"{'missing' if value is None else f'is {type(value).__name__}'}; a SigMF meta file needs"
            f" {'an object' if kind is dict else 'a list'} here, restore it from a copy",
        )
    return value


class Section:
    """One object of the metadata, read with messages that name file and field."""

    def __init__(self, path: Path, where: str, fields: Any) -> None:
        self.path = path
        self.where = where
        if not isinstance(fields, dict):
            raise FieldError(path, where, f"is {type(fields).__name__}, not an object; restore it from a copy")
        self.fields: dict[str, Any] = fields

    def error(self, key: str, text: str) -> FieldError:
        return FieldError(self.path, f"{self.where}.{key}", text)

    def get(self, key: str, kind: type, *, required: bool = False) -> Any:
        value = self.fields.get(key)
        if value is None:
            if required:
                raise self.error(key, "missing; restore the file from a copy")
            return None
        if not isinstance(value, kind):
            raise self.error(key, f"is {value!r}, not of type {kind.__name__}; mend the file")
        return value

    def integer(self, key: str, *, minimum: int, default: int | None = None, required: bool = False) -> Any:
        value = self.get(key, object, required=required)
        if value is None:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= _MAX_INT:
            raise self.error(key, f"is {value!r}; it must be an integer of at least {minimum}, mend the file")
        return value

    def number(self, key: str) -> float | None:
        """Finite number; None where there is none, also if NaN stands in for it as GNU Radio's own sink
        writes."""
        value = self.get(key, object)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(key, f"is {value!r}, not a number; mend the file")
        try:
            number = float(value)
        except OverflowError as err:
            raise self.error(key, "is a number without measure; mend the file") from err
        return number if np.isfinite(number) else None

    def device_time(self) -> DeviceTime | None:
        key = f"{NAMESPACE}:device_time"
        if self.fields.get(key) is None:
            return None
        try:
            return DeviceTime.from_dict(self.fields[key])
        except ValueError as err:
            raise self.error(key, f"{err}; mend the file") from err


def to_complex(raw: np.ndarray, out: Sequence[np.ndarray]) -> None:
    """Components as stored to complex64 at full scale +-1.

    Args:
        raw: any component dtype, (samples, channels, 2).
        out: complex64, (samples,) per channel, receives them.
    """
    # 32 bit integers do not fit float32, so they are scaled before they are rounded.
    working = np.float64 if raw.dtype.kind != "f" and raw.dtype.itemsize == 4 else np.float32
    # Pieces that the processor's cache holds.
    for begin in range(0, len(raw), _PIECE_SAMPLES):
        # Values beyond float32 in the file become infinite, as its own infinities and NaN stay what they are.
        with np.errstate(over="ignore", invalid="ignore"):
            values: np.ndarray = raw[begin : begin + _PIECE_SAMPLES].astype(working)
            if raw.dtype.kind != "f":
                full_scale = working(2.0 ** (8 * raw.dtype.itemsize - 1))
                if raw.dtype.kind == "u":
                    np.subtract(values, full_scale, out=values)
                np.divide(values, full_scale, out=values)
            interleaved = np.ascontiguousarray(values, np.float32).view(np.complex64)
        for channel, row in enumerate(out):
            row[begin : begin + _PIECE_SAMPLES] = interleaved[:, channel, 0]

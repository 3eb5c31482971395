"""The append-only journal beside a recording that is being written, and the metadata that follow from it.

The writer appends lines and applies each to a `Ledger`; recovery reads the lines and applies them to
another. Both build the metadata with the same function, so a recovered recording is described as a finished
one would have been.

Lines are JSON objects with a `type` and a `crc32` of the line:

* ``header``: everything known at the start.
* ``segment``: from `sample_start` on samples follow that are not adjacent to those before; with what was
  lost.
* ``annotation``: as given.
* ``loss``: samples found missing before `sample_start` in what was written, from the waveform.
* ``chunk``: `bytes` at `offset` of the data file were written and have this `sha256`; `clipped` samples per
  channel.
* ``end``: all data are on disk; only metadata and renaming were left to do.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sigmf import keys

from ..errors import RecordingError
from .extensions import declarations
from .meta import DATA_SUFFIX, META_SUFFIX, RECORDER, SPECIFICATION, component_dtype, prefixed

FORMAT = 2
READABLE_FORMATS = (1, 2)
_CRC_FIELD = b',"crc32":'
_LINE_END = re.compile(rb',"crc32":\d+\}.')
_LINE_FIELDS: dict[str, dict[str, Any]] = {
    "header": {
        "format": int,
        "recording_id": str,
        "name": str,
        "n_channels": int,
        "datatype": str,
        "sample_rate_hz": float,
        "frequency_hz": float | None,
        "description": str,
        "global_fields": dict,
        "capture_fields": dict,
    },
    "segment": {
        "sample_start": int,
        "global_index": int,
        "device_time": dict | None,
        "lost_samples": int,
        "cause": str,
    },
    "annotation": {"sample_start": int, "sample_count": int, "label": str, "comment": str, "fields": dict},
    "loss": {"sample_start": int, "lost_samples": int, "earliest_start": int, "method": str},
    "chunk": {"offset": int, "bytes": int, "sha256": str, "clipped": list},
    "end": {"n_samples": int, "sha512": str | None, "complete": bool, "fields": dict},
}


@dataclass(frozen=True)
class RecordingPaths:
    """Files of one recording, while it is written and after."""

    folder: Path
    name: str

    @property
    def meta(self) -> Path:
        return self.folder / f"{self.name}{META_SUFFIX}"

    @property
    def data(self) -> Path:
        return self.folder / f"{self.name}{DATA_SUFFIX}"

    @property
    def partial_data(self) -> Path:
        return self.folder / f".{self.name}{DATA_SUFFIX}.partial"

    @property
    def partial_meta(self) -> Path:
        return self.folder / f".{self.name}{META_SUFFIX}.partial"

    @property
    def reserve(self) -> Path:
        return self.folder / f".{self.name}.reserve.partial"

    @property
    def journal(self) -> Path:
        return self.folder / f".{self.name}.journal.jsonl"


def leftovers(folder: Path) -> list[RecordingPaths]:
    """Recordings in a folder that have a journal or a partial data file, finished ones excluded; sorted
    by name."""
    names = {path.name[1 : -len(".journal.jsonl")] for path in folder.glob(".*.journal.jsonl")}
    ending = f"{DATA_SUFFIX}.partial"
    names |= {path.name[1 : -len(ending)] for path in folder.glob(f".*{ending}")}
    return [RecordingPaths(folder, name) for name in sorted(names)]


def encode(line: dict[str, Any]) -> bytes:
    """One line of the journal, with a CRC-32 of itself as last field."""
    body = json.dumps(line, allow_nan=False, separators=(",", ":")).encode()
    return body[:-1] + _CRC_FIELD + b"%d}\n" % zlib.crc32(body)


@dataclass
class Ledger:
    """What a journal says about a recording."""

    header: dict[str, Any]
    segments: list[dict[str, Any]] = field(default_factory=list)
    gaps: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    losses: list[dict[str, Any]] = field(default_factory=list)
    chunks: list[dict[str, Any]] = field(default_factory=list)
    end: dict[str, Any] | None = None
    damaged: bool = False
    """Lines may be missing before the end of the journal, so that gaps after the last chunk may be
    unknown."""
    damaged_line: int | None = None
    """Number of the first damaged line, counted from 1."""

    def apply(self, line: dict[str, Any]) -> None:
        """Take in one line.

        Raises:
            ValueError: the line is malformed or does not follow from those before it.
        """
        kinds = _LINE_FIELDS.get(line.get("type", ""), {})
        if not all(isinstance(line.get(key), kind) for key, kind in kinds.items()):
            raise ValueError(f"malformed line {line!r}")
        match line.get("type"):
            case "segment":
                if self.segments and line["sample_start"] < self.segments[-1]["sample_start"]:
                    raise ValueError("segments run backwards")
                if self.segments and line["sample_start"] == self.segments[-1]["sample_start"]:
                    self.segments[-1] = line  # nothing was stored between two gaps
                else:
                    self.segments.append(line)
                if line["lost_samples"]:
                    self.gaps.append(line)
            case "annotation":
                self.annotations.append(line)
            case "loss":
                if line["lost_samples"] < 1 or not 0 <= line["earliest_start"] <= line["sample_start"]:
                    raise ValueError("a loss without size or place")
                self.losses.append(line)
            case "chunk":
                if line["offset"] != self.chunk_bytes or line["bytes"] <= 0 or line["bytes"] % self.frame_bytes:
                    raise ValueError("chunks are not adjacent")
                if len(line["clipped"]) != self.header["n_channels"]:
                    raise ValueError("counts of clipped samples do not fit the channels")
                self.chunks.append(line)
            case "end":
                self.end = line
            case other:
                raise ValueError(f"unknown line type {other!r}")

    @property
    def chunk_bytes(self) -> int:
        """Bytes of the data file that the chunks cover."""
        return self.chunks[-1]["offset"] + self.chunks[-1]["bytes"] if self.chunks else 0

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of all channels."""
        return frame_bytes(self.header["datatype"], self.header["n_channels"])


def frame_bytes(datatype: str, n_channels: int) -> int:
    """Bytes of one complex sample of all channels.

    Raises:
        ValueError: the datatype is not complex, or there is no channel.
    """
    if n_channels < 1:
        raise ValueError(f"{n_channels} channels; there must be at least 1")
    return 2 * component_dtype(datatype).itemsize * n_channels


def is_locked(journal: Path) -> bool:
    """Whether a living writer holds a journal."""
    try:
        fd = os.open(journal, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def read_ledger(path: Path) -> Ledger:
    """Ledger from a journal file, as far as the file is intact.

    A last line without its end is what a crash leaves and no damage: data that follow from a line are
    written only after the line.

    Raises:
        RecordingError: not even the header is intact, or it comes from another version.
    """
    with path.open("rb") as file:
        header = _decode(file.readline())
        kinds = _LINE_FIELDS["header"]
        if header is None or not all(isinstance(header.get(key), kind) for key, kind in kinds.items()):
            raise RecordingError(
                f"{path} has no intact header; nothing else describes the samples beside it, keep both"
            )
        if header["format"] not in READABLE_FORMATS:
            raise RecordingError(
                f"{path} has format {header['format']}, this version reads {READABLE_FORMATS}; use the version that"
                " wrote it"
            )
        try:
            frame_bytes(header["datatype"], header["n_channels"])
        except ValueError as err:
            raise RecordingError(f"{path} has a damaged header: {err}; keep it and the data beside it") from err
        ledger = Ledger(header)
        for number, raw in enumerate(file, 2):
            if not raw.endswith(b"\n"):
                # More than a line without its end cannot come from a write that was cut short.
                if _LINE_END.search(raw):
                    ledger.damaged, ledger.damaged_line = True, number
                break
            line = _decode(raw)
            try:
                ledger.apply(line or {})
            except ValueError:
                ledger.damaged, ledger.damaged_line = True, number
                break
    return ledger


def _decode(raw: bytes) -> dict[str, Any] | None:
    """Content of a line; None if it is damaged."""
    start, _, crc = raw.rpartition(_CRC_FIELD)
    body = start + b"}"
    if crc != b"%d}\n" % zlib.crc32(body):
        return None
    try:
        line = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) else None


def build_meta(
    ledger: Ledger,
    n_samples: int,
    sha512: str | None,
    *,
    complete: bool,
    fields: dict[str, Any] | None = None,
    chunks: Sequence[tuple[int, str]] | None = None,
) -> dict[str, Any]:
    """SigMF metadata of the first `n_samples` samples of a recording.

    Args:
        ledger: what the journal says.
        n_samples: samples per channel in the data file.
        sha512: of the data file, if it was made.
        complete: whether these are all samples that were meant to be recorded.
        fields: further semair fields of the global object, without prefix.
        chunks: first sample and SHA-256 of each chunk of the data; those of the ledger if None.

    Returns:
        Content of the meta file. What lies beyond the last sample is left out; annotations that reach beyond
        it are shortened and marked.
    """
    header, frame = ledger.header, ledger.frame_bytes
    standard = header.get("standard_fields", {})
    losses = [loss for loss in ledger.losses if loss["sample_start"] < n_samples]
    gaps = [gap for gap in ledger.gaps if gap["sample_start"] <= n_samples]
    segments = [s for s in ledger.segments if s["sample_start"] < n_samples or s["sample_start"] == 0]
    segments = with_losses(segments, losses)
    counts_clipping = header["datatype"] == "ci16_le"
    own = {
        **header["global_fields"],
        "recording_id": header["recording_id"],
        "n_samples": n_samples,
        "lost_samples": sum(gap["lost_samples"] for gap in [*gaps, *losses]),
        "dropped_samples": sum(gap["lost_samples"] for gap in gaps if gap["cause"] == "writer"),
        "complete": complete,
        "recovered": False,
    }
    if counts_clipping:
        own["clipped_samples"] = _clipped(ledger, 0, n_samples * frame)
    if chunks is None:
        chunks = [(c["offset"] // frame, c["sha256"]) for c in ledger.chunks if c["offset"] < n_samples * frame]
    own["chunks"] = [f"{start} {sha256}" for start, sha256 in chunks]
    own.update(fields or {})
    head: dict[str, Any] = {
        keys.DATATYPE_KEY: header["datatype"],
        keys.VERSION_KEY: SPECIFICATION,
        keys.NUM_CHANNELS_KEY: header["n_channels"],
        keys.SAMPLE_RATE_KEY: header["sample_rate_hz"],
        keys.RECORDER_KEY: RECORDER,
        **standard.get("global", {}),
    }
    if sha512 is not None:
        head[keys.SHA512_KEY] = sha512
    if header["description"]:
        head[keys.DESCRIPTION_KEY] = header["description"]
    captures = []
    for segment in segments:
        capture: dict[str, Any] = {keys.SAMPLE_START_KEY: segment["sample_start"]}
        capture[keys.GLOBAL_INDEX_KEY] = segment["global_index"]
        if header["frequency_hz"] is not None:
            capture[keys.FREQUENCY_KEY] = header["frequency_hz"]
        # Nothing carries over from one segment to the next in SigMF, so each repeats all fields.
        own_capture = dict(header["capture_fields"])
        if segment["device_time"] is not None:
            own_capture["device_time"] = segment["device_time"]
        if counts_clipping and (share := _clipped_share(ledger, segment, n_samples)):
            own_capture["clipped_fraction"] = share
        captures.append({**capture, **standard.get("captures", {}), **prefixed(own_capture)})
    annotations = [gap_annotation(gap) for gap in gaps] + [loss_annotation(loss) for loss in losses]
    for line in ledger.annotations:
        annotation = _annotation(line, n_samples)
        if annotation is not None:
            annotations.append(annotation)
    annotations.sort(key=lambda item: item[keys.SAMPLE_START_KEY])
    head |= prefixed(own)
    meta = {"global": head, "captures": captures, "annotations": annotations}
    head[keys.EXTENSIONS_KEY] = declarations(meta)
    return meta


def with_losses(segments: list[dict[str, Any]], losses: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Segments with those that begin after losses found late; all indices after a loss count it."""
    for loss in sorted(losses, key=lambda item: item["sample_start"]):
        start, lost = loss["sample_start"], loss["lost_samples"]
        before = [s for s in segments if s["sample_start"] <= start]
        after = [s for s in segments if s["sample_start"] > start]
        new = {**before[-1], "sample_start": start, "device_time": None, "lost_samples": 0}
        new["global_index"] = before[-1]["global_index"] + start - before[-1]["sample_start"] + lost
        if before[-1]["sample_start"] == start:
            before.pop()
        segments = [*before, new, *({**s, "global_index": s["global_index"] + lost} for s in after)]
    return segments


def loss_annotation(loss: dict[str, Any]) -> dict[str, Any]:
    """Annotation of the stretch in which samples were lost, up to the first that is known to come after."""
    start, end, lost = loss["earliest_start"], loss["sample_start"], loss["lost_samples"]
    return {
        keys.SAMPLE_START_KEY: start,
        keys.SAMPLE_COUNT_KEY: end - start,
        keys.LABEL_KEY: "gap",
        keys.COMMENT_KEY: f"{lost} samples were lost somewhere in this stretch; found by {loss['method']}",
        **prefixed({"kind": "gap", "lost_samples": lost, "cause": "radio", "method": loss["method"]}),
    }


def gap_annotation(gap: dict[str, Any]) -> dict[str, Any]:
    """Annotation of no length between the last sample before a gap and the first after it."""
    who = "dropped, the disk could not keep up" if gap["cause"] == "writer" else "lost by the radio"
    return {
        keys.SAMPLE_START_KEY: gap["sample_start"],
        keys.SAMPLE_COUNT_KEY: 0,
        keys.LABEL_KEY: "gap",
        keys.COMMENT_KEY: f"{gap['lost_samples']} samples before this one were {who}",
        **prefixed({"kind": "gap", "lost_samples": gap["lost_samples"], "cause": gap["cause"]}),
    }


def _annotation(line: dict[str, Any], n_samples: int) -> dict[str, Any] | None:
    start, count = line["sample_start"], line["sample_count"]
    if start + min(count, 1) > n_samples:
        return None
    fields = dict(line["fields"])
    if start + count > n_samples:
        count, fields["cut"] = n_samples - start, True
    annotation = {keys.SAMPLE_START_KEY: start, keys.SAMPLE_COUNT_KEY: count, keys.LABEL_KEY: line["label"]}
    if line["comment"]:
        annotation[keys.COMMENT_KEY] = line["comment"]
    return {**annotation, **line.get("standard_fields", {}), **prefixed(fields)}


def _clipped_share(ledger: Ledger, segment: dict[str, Any], n_samples: int) -> list[float] | None:
    """Share of clipped samples per channel, over the stretch that was written in one piece around a segment's start:
    chunks never cross the start of a segment that was known while recording."""
    edges = [s["sample_start"] for s in ledger.segments] + [n_samples]
    begin = max((edge for edge in edges[:-1] if edge <= segment["sample_start"]), default=0)
    end = min(edge for edge in edges if edge > begin) if begin < n_samples else n_samples
    if end <= begin:
        return None
    return [count / (end - begin) for count in _clipped(ledger, begin * ledger.frame_bytes, end * ledger.frame_bytes)]


def _clipped(ledger: Ledger, start_byte: int, end_byte: int) -> list[int]:
    """Clipped samples per channel in the chunks that begin in a stretch; chunks never cross a segment's
    start."""
    total = [0] * ledger.header["n_channels"]
    for chunk in ledger.chunks:
        if start_byte <= chunk["offset"] < end_byte:
            total = [have + more for have, more in zip(total, chunk["clipped"], strict=True)]
    return total

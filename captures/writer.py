"""Writing recordings that survive: a journal while recording, atomic names at the end."""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from ..errors import RecordingError, SemairError, StorageError
from . import storage
from .convert import all_finite, interleave
from .devicetime import DeviceTime
from .extensions import require_standard
from .journal import FORMAT, Ledger, RecordingPaths, build_meta, encode, frame_bytes, is_locked
from .meta import LABEL_LIMIT, check_name, dumps, meta_problems, plain, require_fields

__all__ = ["DeviceTime", "RecordingWriter", "is_locked"]

DATATYPES = ("ci16_le", "cf32_le")
CHUNK_LIMIT_BYTES = 8 << 20
CHUNK_S = 1.0
BLOCK_BYTES = 1 << 20
"""Stretch that the worker writes and hashes at a time."""
SHA512_LIMIT_BYTES_PER_S = 50e6
"""Data rate up to which the hash of the whole file is made while recording: it costs a tenth of a core then, and more
than all the rest at 160 MB/s. The chunks' hashes cover the same data at less than half the price."""
RESERVE_BYTES = 1 << 20
"""Room held back on the disk so that metadata can be written when the data have filled it."""
SYNC_S = 1.0
"""Data and journal are made to outlive a power failure this often, and at gaps and the end."""
IDLE_FLUSH_S = 1.0
IDLE_WRITE_S = 0.25
"""Blocks that are not full are written after this time."""


class RecordingWriter:
    """Writes one coherent device's samples as a SigMF recording, safe against crashes and full disks.

    Samples are interleaved in the calling thread, into blocks from a bounded pool, and written, hashed and
    journalled from there by a worker. Until `close` the recording goes by hidden names (``.NAME.sigmf-data.partial``,
    ``.NAME.journal.jsonl``); a final name means that it is whole. After a crash,
    `semair.captures.recover.recover` makes a recording of them.

    Methods may be called from several threads; their order in the file is the order of the calls.

    Args:
        folder: where to write; created if missing.
        name: base name of the recording.
        n_channels: channels, stored interleaved sample by sample. Channels on different clocks need a
            recording each.
        datatype: ``ci16_le`` (value = sample x 32768) or ``cf32_le``, the SigMF datatype of the file.
        sample_rate_hz: the rate the device really has, not the one asked for.
        frequency_hz: the centre frequency the device really has; None if it has none.
        description: free text.
        global_fields: fields of the semair namespace for the whole recording, without prefix.
        capture_fields: the same for every capture segment; per-channel fields have one entry per channel.
        device_time: device time of the first sample, if the device has a clock.
        overwrite: replace an existing recording, finished or interrupted, of the same name.
        standard_fields: fields of SigMF's own extensions under their full names, by section (``global``,
            ``captures``), e.g. ``{"global": {"antenna:model": "..."}}``; the extensions used are declared.
        on_full: what `write` does while the queue is full: ``block`` waits, ``drop`` leaves the samples out,
            counts them and marks the place as a gap.
        queue_bytes: bound of the queue.
        chunk_bytes: stretch that is hashed and journalled at a time; about one second, at most 8 MB,
            if None.
        min_free_bytes: recording ends, properly closed, before less than this is free on the disk.
        sha512: make `core:sha512` of the whole file too; if None, up to 50 MB/s. Without it the SHA-256 of the
            chunks, which are always in the metadata, vouch for the data.

    Raises:
        RecordingError: an argument cannot be stored, or the recording exists.
        StorageError: the folder cannot be written or has too little room.
    """

    def __init__(
        self,
        folder: str | Path,
        name: str,
        *,
        n_channels: int,
        datatype: Literal["ci16_le", "cf32_le"],
        sample_rate_hz: float,
        frequency_hz: float | None = None,
        description: str = "",
        global_fields: Mapping[str, Any] | None = None,
        capture_fields: Mapping[str, Any] | None = None,
        standard_fields: Mapping[str, Mapping[str, Any]] | None = None,
        device_time: DeviceTime | None = None,
        overwrite: bool = False,
        on_full: Literal["block", "drop"] = "block",
        queue_bytes: int = 64 << 20,
        chunk_bytes: int | None = None,
        min_free_bytes: int = 200_000_000,
        sha512: bool | None = None,
    ) -> None:
        check_name(name)
        if isinstance(n_channels, bool) or not isinstance(n_channels, int) or n_channels < 1:
            raise RecordingError(f"n_channels is {n_channels!r}; it must be an integer of at least 1")
        if datatype not in DATATYPES:
            raise RecordingError(f"datatype is {datatype!r}; recordings are written as {' or '.join(DATATYPES)}")
        if not (math.isfinite(sample_rate_hz) and sample_rate_hz > 0):
            raise RecordingError(f"sample_rate_hz is {sample_rate_hz}; it must be positive and finite")
        if frequency_hz is not None and not math.isfinite(frequency_hz):
            raise RecordingError(f"frequency_hz is {frequency_hz}; it must be finite, or None if there is none")
        if on_full not in ("block", "drop"):
            raise ValueError(f"on_full is {on_full!r}; it must be 'block' or 'drop'")
        for argument, value in (("queue_bytes", queue_bytes), ("chunk_bytes", chunk_bytes)):
            if value is not None and value < 1:
                raise ValueError(f"{argument} is {value}; it must be at least 1")

        self._paths = RecordingPaths(Path(folder), name)
        self._n_channels = n_channels
        self._datatype = datatype
        self._rate_hz = float(sample_rate_hz)
        self._overwrite = overwrite
        self._on_full = on_full
        self._frame_bytes = frame_bytes(datatype, n_channels)
        default_chunk = min(CHUNK_LIMIT_BYTES, int(CHUNK_S * self._rate_hz) * self._frame_bytes)
        self._chunk_bytes = max(chunk_bytes or default_chunk, self._frame_bytes)
        self._min_free_bytes = min_free_bytes

        header = {
            "type": "header",
            "format": FORMAT,
            "recording_id": uuid.uuid4().hex,
            "name": name,
            "n_channels": n_channels,
            "datatype": datatype,
            "sample_rate_hz": self._rate_hz,
            "frequency_hz": None if frequency_hz is None else float(frequency_hz),
            "description": str(description),
            "global_fields": require_fields("global", global_fields, n_channels),
            "capture_fields": require_fields("capture", capture_fields, n_channels),
            "standard_fields": require_standard(plain(standard_fields or {})),
        }
        first = _segment_line(0, 0, device_time, lost_samples=0, cause="radio")
        # Whatever the metadata will be checked for at the end is checked before the first sample is taken.
        trial = Ledger(header, segments=[first])
        _require_valid(build_meta(trial, 1, None, complete=True), name)

        self._lock = threading.RLock()
        self._n_samples = 0
        self._lost_samples = 0
        # Metadata count these on top, wherever they lie.
        self._found_samples = 0
        self._dropped_samples = 0
        self._pending_drop = 0
        self._clipped = np.zeros(n_channels, dtype=np.int64)
        self._reference = None if device_time is None else (0, device_time)
        self._closed = False
        self._reported = False

        self._files = _PartialFiles(self._paths, overwrite=overwrite)
        try:
            self._check_room()
            self._files.create(encode(header) + encode(first))
        except _NoRoomError as err:
            self._files.discard()
            raise StorageError(f"{err}; free space or choose another folder") from None
        except BaseException:
            self._files.discard()
            raise
        if sha512 is None:
            sha512 = self._rate_hz * self._frame_bytes <= SHA512_LIMIT_BYTES_PER_S
        self._sink = _Sink(
            self._files,
            Ledger(header, segments=[first]),
            chunk_bytes=self._chunk_bytes,
            check_room=self._check_room,
            sha512=sha512,
        )
        block_bytes = max(min(BLOCK_BYTES, self._chunk_bytes, queue_bytes // 4), self._frame_bytes)
        self._queue = _BlockQueue(queue_bytes, block_bytes - block_bytes % self._frame_bytes, n_channels)
        self._failure: SemairError | None = None
        self._crash: BaseException | None = None
        self._worker = threading.Thread(target=self._run, name=f"recording {name}", daemon=True)
        self._worker.start()

    @property
    def path(self) -> Path:
        """Meta file that `close` leaves; open the recording with it."""
        return self._paths.meta

    @property
    def n_samples(self) -> int:
        """Samples per channel taken so far: the index in the file that the next one gets."""
        return self._n_samples

    @property
    def lost_samples(self) -> int:
        """Samples per channel missing so far: lost by the radio, dropped, found missing in the waveform."""
        return self._lost_samples + self._found_samples

    @property
    def dropped_samples(self) -> int:
        """Samples per channel left out so far because the queue was full."""
        return self._dropped_samples

    @property
    def clipped_samples(self) -> np.ndarray:
        """Samples at or beyond the full scale of 16 bits so far: int64, (channels,)."""
        return self._clipped.copy()

    @property
    def written_bytes(self) -> int:
        """Bytes that the worker has written so far."""
        return self._sink.written_bytes

    @property
    def worker_thread_id(self) -> int | None:
        """The operating system's number of the thread that writes and hashes."""
        return self._worker.native_id

    def room(self) -> tuple[int, float]:
        """Bytes that may still be recorded before the reserve on the disk is reached, and the seconds they last."""
        free = max(storage.free_bytes(self._paths.folder) - self._min_free_bytes, 0)
        return free, free / (self._rate_hz * self._frame_bytes)

    def write(self, samples: np.ndarray | Sequence[np.ndarray]) -> int | None:
        """Append samples. They are copied; the array may be reused at once.

        Args:
            samples: complex64, (channels, samples), full scale +-1. For ``ci16_le`` values are rounded to
                steps of 1/32768 and limited to -32768 .. 32767. Or, for ``ci16_le`` only, int16,
                (channels, samples, 2): real and imaginary part as they go into the file. Either way samples at
                or beyond full scale are counted. A sequence of one array per channel serves as well.

        Returns:
            Index in the file of the first of them; None if they were dropped.

        Raises:
            ValueError: wrong shape or dtype.
            RecordingError: a value is NaN or infinite (nothing of this array is taken), or the recording is
                closed.
            StorageError: writing failed; what was kept is named.
        """
        rows = self._rows(samples)
        count = len(rows[0])
        with self._lock:
            self._require_open()
            if rows[0].dtype == np.complex64 and not all_finite(rows):
                self._refuse_non_finite(rows)
            start = self._n_samples
            if count == 0:
                return start
            if self._on_full == "drop" and not self._queue.has_room(count * self._frame_bytes):
                self._pending_drop += count
                self._dropped_samples += count
                self._lost_samples += count
                return None
            self._flush_drop()
            done = 0
            while done < count:
                place = self._queue.reserve()
                if place is None:
                    self._worker.join()
                    self._raise_failure()
                    raise RecordingError(f"recording {self._paths.name} is closed; open a new writer to record more")
                step = min(count - done, len(place) // self._frame_bytes)
                clipped = np.zeros(self._n_channels, np.int64)
                interleave([row[done : done + step] for row in rows], place[: step * self._frame_bytes], clipped)
                self._queue.commit(step * self._frame_bytes, clipped)
                self._clipped += clipped
                self._n_samples += step
                done += step
            return start

    def _rows(self, samples: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
        """Channels as contiguous arrays, complex64 (samples,) or int16 (samples, 2)."""
        rows = [np.asarray(row) for row in samples]
        shapes = {(row.dtype.str, *row.shape) for row in rows}
        if len(rows) == self._n_channels and len(shapes) == 1:
            kind, *shape = shapes.pop()
            if (kind == np.dtype(np.complex64).str and len(shape) == 1) or (
                kind == "<i2" and len(shape) == 2 and shape[1] == 2 and self._datatype == "ci16_le"
            ):
                return [np.ascontiguousarray(row) for row in rows]
        given = ", ".join(f"{row.dtype} {row.shape}" for row in rows[:4])
        raise ValueError(
            f"samples are {len(rows)} x {given}; they must be complex64 (channels={self._n_channels}, samples)"
            + (f", or int16 (channels={self._n_channels}, samples, 2)" if self._datatype == "ci16_le" else "")
        )

    def gap(self, lost_samples: int, device_time: DeviceTime | None = None) -> None:
        """Say that samples are missing before the next one. Nothing is filled in; a new capture segment
        begins.

        Args:
            lost_samples: samples per channel that are missing, at least 1.
            device_time: device time of the next sample; reckoned from the last known one if None.

        Raises:
            RecordingError: `lost_samples` is not positive: duplicates or a clock that stepped back are no
                gap.
            StorageError: writing failed; what was kept is named.
        """
        if lost_samples < 1:
            raise RecordingError(
                f"lost_samples is {lost_samples}; it must be at least 1. Less means duplicates or a clock"
                " that stepped back: end this recording and start another"
            )
        with self._lock:
            self._require_open()
            self._flush_drop()
            self._lost_samples += int(lost_samples)
            self._start_segment(int(lost_samples), device_time, "radio")

    def found_loss(self, sample_start: int, lost_samples: int, earliest_start: int, method: str) -> None:
        """Say that samples were found missing in what has been written, from the waveform and not from the radio.

        A capture segment begins at `sample_start`, which is known to lie behind the loss.

        Args:
            sample_start: index in the file of the first sample that is known to come after the loss.
            lost_samples: samples per channel that are missing, at least 1.
            earliest_start: index in the file of the last sample known to come before the loss.
            method: how it was found, e.g. ``frame-counter``.

        Raises:
            RecordingError: the places are not within what has been written, or out of order.
            StorageError: writing failed; what was kept is named.
        """
        line = {
            "type": "loss",
            "sample_start": int(sample_start),
            "lost_samples": int(lost_samples),
            "earliest_start": int(earliest_start),
            "method": str(method),
        }
        with self._lock:
            self._require_open()
            if lost_samples < 1 or not 0 <= earliest_start <= sample_start <= self._n_samples:
                raise RecordingError(
                    f"{lost_samples} samples lost between {earliest_start} and {sample_start}; at least 1 must be lost,"
                    f" and the places must rise within the {self._n_samples} samples written"
                )
            self._found_samples += int(lost_samples)
            self._put(line)

    def annotate(
        self,
        sample_start: int,
        sample_count: int,
        label: str,
        comment: str = "",
        standard_fields: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        """Mark a stretch of samples that have been written.

        Args:
            sample_start: index in the file.
            sample_count: samples, 0 for an instant.
            label: at most 20 characters.
            comment: free text.
            standard_fields: fields of SigMF's own extensions under their full names, e.g. ``signal:detail``.
            fields: semair fields of the annotation, e.g. ``kind="frame", frame_seq=7``.

        Raises:
            RecordingError: the stretch is not all written yet, the label is too long, or a field is not
                allowed.
            StorageError: writing failed; what was kept is named.
        """
        if len(label) > LABEL_LIMIT:
            raise RecordingError(
                f"label {label!r} has {len(label)} characters; SigMF allows {LABEL_LIMIT}, use comment"
            )
        line = {
            "type": "annotation",
            "sample_start": int(sample_start),
            "sample_count": int(sample_count),
            "label": str(label),
            "comment": str(comment),
            "fields": require_fields("annotation", fields),
            "standard_fields": require_standard({"annotations": plain(standard_fields or {})})["annotations"],
        }
        with self._lock:
            self._require_open()
            if sample_start < 0 or sample_count < 0 or sample_start + sample_count > self._n_samples:
                raise RecordingError(
                    f"annotation {label!r} covers samples {sample_start} to {sample_start + sample_count};"
                    f" {self._n_samples} have been written: annotate after writing"
                )
            self._put(line)

    def close(self, fields: Mapping[str, Any] | None = None) -> None:
        """Finish: everything on disk, checksum, metadata, final names. A second call does nothing.

        Args:
            fields: further global fields of the semair namespace, known only now.

        Raises:
            StorageError: writing failed; what was kept is named.
            RecordingError: no sample was written, so that there is no recording, or a field is not allowed (nothing
                is closed then).
        """
        self._close(complete=True, reason=None, fields=require_fields("global", fields, self._n_channels))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self._close(complete=False, reason=f"{type(error).__name__}: {error}")
        except SemairError as err:
            error.add_note(f"Closing the recording {self._paths.name}: {err}")

    def _close(self, *, complete: bool, reason: str | None, fields: dict[str, Any] | None = None) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                if self._failure is None and self._crash is None:
                    self._flush_drop()
                self._queue.put(_End(complete, reason, fields or {}))
                self._worker.join()
            if not self._reported:
                self._raise_failure()

    def _require_open(self) -> None:
        self._raise_failure()
        if self._closed:
            raise RecordingError(f"recording {self._paths.name} is closed; open a new writer to record more")

    def _raise_failure(self) -> None:
        failure = self._failure or self._crash
        if failure is not None:
            self._reported = True
            raise failure

    def _put(self, line: dict[str, Any]) -> None:
        if not self._queue.put(line):
            self._worker.join()
            self._raise_failure()

    def _refuse_non_finite(self, rows: list[np.ndarray]) -> None:
        sample, channel = np.argwhere(~np.isfinite(np.stack(rows)).T)[0]
        value = rows[channel][sample]
        raise RecordingError(
            f"channel {channel}, sample {sample} of this write ({self._n_samples + sample} of the"
            f" recording) is {value}; only finite samples can be recorded. What was written before is kept:"
            " mend the source, then go on"
        )

    def _flush_drop(self) -> None:
        if self._pending_drop:
            lost, self._pending_drop = self._pending_drop, 0
            self._start_segment(lost, None, "writer")

    def _start_segment(self, lost: int, device_time: DeviceTime | None, cause: str) -> None:
        global_index = self._n_samples + self._lost_samples
        if device_time is None and self._reference is not None:
            index, instant = self._reference
            device_time = instant.plus(global_index - index, self._rate_hz)
        if device_time is not None:
            self._reference = (global_index, device_time)
        self._put(_segment_line(self._n_samples, global_index, device_time, lost_samples=lost, cause=cause))

    def _check_room(self) -> None:
        folder = self._paths.folder
        free = storage.free_bytes(folder)
        if free < self._min_free_bytes + self._chunk_bytes:
            raise _NoRoomError(
                f"{free} bytes are free in {folder}, {self._min_free_bytes} must stay free (min_free_bytes)"
            )

    def _run(self) -> None:
        try:
            idle_since = time.monotonic()
            while True:
                match self._queue.take(IDLE_WRITE_S):
                    case None:
                        if time.monotonic() - idle_since >= IDLE_FLUSH_S:
                            self._sink.flush_chunk()
                        continue
                    case dict() as line:
                        self._sink.line(line)
                    case _End() as end:
                        self._sink.finish(complete=end.complete, fields=end.fields)
                        return
                    case frames, clipped:
                        self._sink.data(frames, clipped)
                idle_since = time.monotonic()
        except OSError as err:
            self._failure = self._sink.salvage(err)
        except SemairError as err:
            self._failure = err
        except BaseException as err:
            # A defect: the samples stay in the partial file and the caller gets the error unchanged.
            self._crash = err
        finally:
            self._queue.shut()
            self._sink.release()


class _End:
    """Last item of the queue."""

    def __init__(self, complete: bool, reason: str | None, fields: dict[str, Any]) -> None:
        self.complete = complete
        self.fields = fields if reason is None else {**fields, "incomplete_reason": reason}


class _NoRoomError(StorageError):
    """The disk would be filled beyond what the user wants to keep free."""


class _Block:
    """Bytes of the file on their way from the caller to the worker."""

    def __init__(self, n_bytes: int, n_channels: int) -> None:
        memory = np.empty(n_bytes + 2 * storage.ALIGNMENT_BYTES, np.uint8)
        self._memory = memory[-memory.ctypes.data % storage.ALIGNMENT_BYTES :]
        self._n_bytes = n_bytes
        self._n_channels = n_channels
        self.begin(0)

    def begin(self, position: int) -> None:
        """Take the bytes from a position of the file on, which then lie in memory as they do in the file's pages."""
        first = position % storage.ALIGNMENT_BYTES
        self.bytes = self._memory[first : first + self._n_bytes]
        self.filled = self.taken = 0
        self.clipped = np.zeros(self._n_channels, np.int64)


class _BlockQueue:
    """Blocks and notes from one caller to one worker, in order, bounded in bytes.

    The block used last is the first to be used again, so that a worker that keeps up finds all of it in the
    processor's cache.
    """

    def __init__(self, limit_bytes: int, block_bytes: int, n_channels: int) -> None:
        self._block_bytes = block_bytes
        self._n_channels = n_channels
        self._position = 0
        self._unmade = max(limit_bytes // block_bytes, 1)
        self._spare: list[_Block] = []
        self._items: deque[Any] = deque()
        self._taken: _Block | None = None
        self._shut = False
        self._changed = threading.Condition()

    def _open_block(self) -> _Block | None:
        last = self._items[-1] if self._items else None
        return last if isinstance(last, _Block) and last.filled < len(last.bytes) else None

    def has_room(self, size: int) -> bool:
        """Whether so many bytes pass without waiting; more than all blocks hold pass when there is nothing else."""
        with self._changed:
            block = self._open_block()
            room = (len(self._spare) + self._unmade) * self._block_bytes
            room += len(block.bytes) - block.filled if block else 0
            waiting = any(not isinstance(item, _Block) or item.taken < item.filled for item in self._items)
            return self._shut or size <= room or not (waiting or self._taken)

    def reserve(self) -> np.ndarray | None:
        """Place for the next bytes, waited for; None if the worker has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._shut or self._open_block() or self._spare or self._unmade)
            if self._shut:
                return None
            block = self._open_block()
            if block is None:
                if self._spare:
                    block = self._spare.pop()
                else:
                    block = _Block(self._block_bytes, self._n_channels)
                    self._unmade -= 1
                block.begin(self._position)
                self._items.append(block)
            return block.bytes[block.filled :]

    def commit(self, size: int, clipped: np.ndarray) -> None:
        """The first bytes of the place reserved last are there."""
        with self._changed:
            if self._shut:
                return
            block = self._items[-1]
            block.filled += size
            self._position += size
            block.clipped += clipped
            # The worker is not woken for every few bytes.
            if block.filled == len(block.bytes):
                self._changed.notify_all()

    def put(self, note: Any) -> bool:
        """Append something that is no samples; False if the worker has ended."""
        with self._changed:
            if self._shut:
                return False
            self._items.append(note)
            self._changed.notify_all()
            return True

    def _ready(self) -> bool:
        if not self._items:
            return False
        head = self._items[0]
        return not isinstance(head, _Block) or len(self._items) > 1 or head.filled == len(head.bytes)

    def take(self, timeout_s: float) -> Any:
        """The next note, or the next bytes with their clipped samples per channel; None if there was neither.

        What was taken before is no longer used when this is called.
        """
        with self._changed:
            self._taken = None
            while True:
                ready = self._changed.wait_for(self._ready, timeout_s)
                head = self._items[0] if self._items else None
                if not isinstance(head, _Block):
                    return self._items.popleft() if head is not None else None
                if head.taken < head.filled:
                    break
                if not ready:
                    return None
                self._items.popleft()
                self._spare.append(head)
                self._changed.notify_all()
            self._taken = head
            begin, head.taken = head.taken, head.filled
            clipped, head.clipped = head.clipped, np.zeros(self._n_channels, np.int64)
            return head.bytes[begin : head.filled].data, clipped

    def shut(self) -> None:
        with self._changed:
            self._shut = True
            self._items.clear()
            self._changed.notify_all()


class _PartialFiles:
    """The hidden files of a recording in the making; a lock on the journal tells others that it is alive."""

    def __init__(self, paths: RecordingPaths, *, overwrite: bool) -> None:
        self.paths = paths
        self.overwrite = overwrite
        self.data_fd = -1
        self.journal_fd = -1
        self._created: list[Path] = []
        storage.make_folder(paths.folder)
        if (finished := self._finished()) is not None:
            raise RecordingError(f"{finished} exists; choose another name or pass overwrite=True to replace it")
        interrupted = [path for path in (paths.partial_data, paths.journal) if path.exists()]
        if interrupted and not overwrite:
            raise RecordingError(
                f"{interrupted[0]} is left from an interrupted recording, or one is being made; run recover"
                f" on {paths.folder}, choose another name, or pass overwrite=True to lose it"
            )
        if paths.journal.exists() and is_locked(paths.journal):
            raise RecordingError(f"recording {paths.name} in {paths.folder} is being written; choose another name")

    def _finished(self) -> Path | None:
        """File of a finished recording that must not be replaced."""
        existing = [path for path in (self.paths.meta, self.paths.data) if path.exists()]
        return existing[0] if existing and not self.overwrite else None

    def create(self, first_lines: bytes) -> None:
        paths = self.paths
        try:
            if self.overwrite:
                paths.journal.unlink(missing_ok=True)
                paths.partial_data.unlink(missing_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            self.journal_fd = os.open(paths.journal, flags | os.O_APPEND, 0o644)
            self._created.append(paths.journal)
            fcntl.flock(self.journal_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.data_fd = os.open(paths.partial_data, flags, 0o644)
            self._created.append(paths.partial_data)
            self._created.append(paths.reserve)
            storage.write_file(paths.reserve, bytes(RESERVE_BYTES))
            storage.write_all(self.journal_fd, first_lines)
            os.fsync(self.journal_fd)
            storage.fsync_folder(paths.folder)
        except FileExistsError as err:
            raise RecordingError(
                f"recording {paths.name} in {paths.folder} is being written by another process; choose another name"
            ) from err
        except OSError as err:
            raise StorageError(
                f"recording {paths.name} cannot be begun in {paths.folder}: {err.strerror or err};"
                " free space or choose another folder"
            ) from err

    def publish(self, meta: bytes) -> None:
        """Metadata to disk, then the final names. A meta file never stands beside data it does not
        describe."""
        paths = self.paths
        paths.reserve.unlink(missing_ok=True)
        storage.write_file(paths.partial_meta, meta)
        if (finished := self._finished()) is not None:
            raise RecordingError(
                f"{finished} has appeared while recording; the samples are in {paths.partial_data}: run"
                f" recover on {paths.folder}"
            )
        if self.overwrite:
            paths.meta.unlink(missing_ok=True)
        os.replace(paths.partial_data, paths.data)
        os.replace(paths.partial_meta, paths.meta)
        storage.fsync_folder(paths.folder)
        paths.journal.unlink()

    def discard(self) -> None:
        """Remove the hidden files this object created."""
        self.release()
        for path in self._created:
            path.unlink(missing_ok=True)

    def release(self) -> None:
        for fd in (self.data_fd, self.journal_fd):
            if fd >= 0:
                os.close(fd)
        self.data_fd = self.journal_fd = -1


class _Sink:
    """The worker's side: appends to the files, hashes, keeps the ledger."""

    def __init__(
        self,
        files: _PartialFiles,
        ledger: Ledger,
        *,
        chunk_bytes: int,
        check_room: Callable[[], None],
        sha512: bool,
    ) -> None:
        self._files = files
        self._ledger = ledger
        self._chunk_limit = chunk_bytes
        self._check_room = check_room
        self._sha512 = hashlib.sha512() if sha512 else None
        self._bytes = 0
        self._file = storage.DirectFile(files.data_fd)
        self._begin_chunk()
        self._sync_error: OSError | None = None
        self._ending = threading.Event()
        self._syncer = threading.Thread(target=self._sync_on_and_on, name="recording sync", daemon=True)
        self._syncer.start()

    def _begin_chunk(self) -> None:
        self._chunk_sha = hashlib.sha256()
        self._chunk_bytes = 0
        self._chunk_clipped = np.zeros(self._ledger.header["n_channels"], dtype=np.int64)

    def data(self, frames: memoryview, clipped: np.ndarray) -> None:
        """Append whole frames; a chunk that is full is made durable."""
        if self._sync_error is not None:
            raise self._sync_error
        if self._chunk_bytes == 0:
            self._check_room()
        before = self._file.position
        try:
            self._file.write(frames)
        except OSError:
            written = self._file.position - before
            self._count(frames[: written - written % self._ledger.frame_bytes], 0)
            raise
        self._count(frames, clipped)
        if self._chunk_bytes >= self._chunk_limit:
            self.flush_chunk()

    @property
    def written_bytes(self) -> int:
        return self._bytes

    def _count(self, frames: memoryview, clipped: np.ndarray | int) -> None:
        if self._sha512 is not None:
            self._sha512.update(frames)
        self._chunk_sha.update(frames)
        self._bytes += len(frames)
        self._chunk_bytes += len(frames)
        self._chunk_clipped += clipped

    def _hexdigest(self) -> str | None:
        return None if self._sha512 is None else self._sha512.hexdigest()

    def release(self) -> None:
        """Close the files."""
        self._ending.set()
        self._syncer.join()
        self._files.release()

    def _chunk_line(self) -> dict[str, Any]:
        return {
            "type": "chunk",
            "offset": self._bytes - self._chunk_bytes,
            "bytes": self._chunk_bytes,
            "sha256": self._chunk_sha.hexdigest(),
            "clipped": self._chunk_clipped.tolist(),
        }

    def flush_chunk(self) -> None:
        """Note the chunk that is written. Its hash tells after a power failure whether its data outlived it, so the
        line need not wait for the disk."""
        if self._chunk_bytes == 0:
            return
        self._journal(self._chunk_line())
        self._begin_chunk()

    def _sync_now(self) -> None:
        os.fdatasync(self._files.data_fd)
        os.fsync(self._files.journal_fd)

    def _sync_on_and_on(self) -> None:
        # Beside the worker: a disk that takes its time to be certain does not keep samples waiting.
        while not self._ending.wait(SYNC_S):
            try:
                self._sync_now()
            except OSError as err:
                self._sync_error = err
                return

    def _journal(self, line: dict[str, Any]) -> None:
        storage.write_all(self._files.journal_fd, encode(line))
        self._ledger.apply(line)

    def line(self, line: dict[str, Any]) -> None:
        """Append a segment, an annotation or a loss found late."""
        if line["type"] == "segment":
            # A chunk never crosses a gap, and no sample after a gap reaches the disk before the news of the
            # gap: otherwise recovery could join what does not belong together.
            self.flush_chunk()
            self._journal(line)
            self._sync_now()
        else:
            self._journal(line)

    @property
    def _n_samples(self) -> int:
        return self._bytes // self._ledger.frame_bytes

    def finish(self, *, complete: bool, fields: dict[str, Any]) -> None:
        """Close as a recording with its final name."""
        name = self._files.paths.name
        if self._bytes == 0:
            self._files.discard()
            raise RecordingError(f"recording {name} has no samples; nothing was kept. Write some before closing")
        self.flush_chunk()
        end = {
            "type": "end",
            "n_samples": self._n_samples,
            "sha512": self._hexdigest(),
            "complete": complete,
            "fields": fields,
        }
        self._journal(end)
        self._sync_now()
        self._publish(complete, fields)

    def _publish(self, complete: bool, fields: dict[str, Any]) -> None:
        meta = build_meta(self._ledger, self._n_samples, self._hexdigest(), complete=complete, fields=fields)
        _require_valid(meta, self._files.paths.name)
        self._files.publish(dumps(meta))

    def salvage(self, cause: OSError) -> SemairError:
        """Close what is whole after an error of the disk, and say what became of it."""
        paths = self._files.paths
        why = str(cause) if isinstance(cause, _NoRoomError) else f"{cause.strerror or cause}"
        what = f"recording {paths.name} ended early: {why}"
        try:
            paths.reserve.unlink(missing_ok=True)
            if self._bytes == 0:
                self._files.discard()
                error = StorageError(f"{what}. No sample had been written, nothing was kept")
            else:
                os.ftruncate(self._files.data_fd, self._bytes)
                os.fsync(self._files.data_fd)
                if self._chunk_bytes:
                    self._ledger.apply(self._chunk_line())
                self._publish(False, {"incomplete_reason": why})
                error = StorageError(
                    f"{what}. {self._n_samples} samples per channel were kept as {paths.meta}, marked as"
                    " incomplete; open it as usual. Free space or choose another folder before recording"
                    " again"
                )
        except (OSError, SemairError) as second:
            where = paths.partial_data if paths.partial_data.exists() else paths.data
            error = StorageError(
                f"{what}. {self._n_samples} samples per channel are in {where}, but the recording could not"
                f" be closed ({second}). Free space, then run recover on {paths.folder}"
            )
        error.__cause__ = cause
        return error


def _segment_line(
    sample_start: int, global_index: int, device_time: DeviceTime | None, *, lost_samples: int, cause: str
) -> dict[str, Any]:
    return {
        "type": "segment",
        "sample_start": sample_start,
        "global_index": global_index,
        "device_time": None if device_time is None else device_time.to_dict(),
        "lost_samples": lost_samples,
        "cause": cause,
    }


def _require_valid(meta: dict[str, Any], name: str) -> None:
    problems = meta_problems(meta)
    if problems:
        text = "; ".join(f"{field}: {message}" for field, message in problems)
        raise RecordingError(f"metadata of recording {name} are not valid: {text}")

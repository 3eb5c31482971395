"""Readers of files under arbitrary content: what each is given, and what none of them may do.

A reader may refuse with an error meant for the user. Anything else that escapes is a finding, and so is an open of a
file outside the sandbox, or memory beyond twice the content and a fixed allowance for the libraries.
"""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import sys
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import semair
from semair.captures.catalogue import INDEX_NAME, catalogue, select
from semair.captures.collection import open_collection, write_collection
from semair.captures.export import per_channel
from semair.captures.importing import RawFormat, import_file
from semair.captures.inspection import measure_levels, summary
from semair.captures.labels import add_label
from semair.captures.reader import Recording
from semair.captures.recover import recover
from semair.captures.trim import trim
from semair.captures.verify import verify
from semair.captures.writer import RecordingWriter
from semair.errors import SemairError

ALLOWANCE_BYTES = 24 << 20
"""Of memory: for what libraries keep after their first use, and for buffers of fixed size."""

logging.getLogger("semair").setLevel(logging.CRITICAL)

Target = Callable[[bytes, Path], None]


class OutsideError(AssertionError):
    """A file outside the sandbox was opened."""


def _each(*calls: Callable[[], Any]) -> None:
    """Every call is made; errors meant for the user are what a reader may answer with."""
    for call in calls:
        with suppress(SemairError):
            call()


def read_meta(content: bytes, folder: Path) -> None:
    """A meta file beside 240 bytes of data."""
    path = folder / "x.sigmf-meta"
    path.write_bytes(content)
    (folder / "x.sigmf-data").write_bytes(bytes(range(240)))

    def look() -> None:
        recording = Recording.open(path)
        recording.read()
        json.dumps(summary(recording, measure_levels(recording, 7)), allow_nan=False)
        _each(
            lambda: trim(recording, 0, recording.n_samples // 2 + 1, name="part"),
            lambda: per_channel(recording, folder / "channels"),
            lambda: add_label(recording, "fuzz"),
        )

    _each(lambda: verify(folder), lambda: import_file(path, folder / "in"), lambda: catalogue(folder), look)


def read_collection(content: bytes, folder: Path) -> None:
    """A collection over two recordings that are there."""
    _two_recordings(folder)
    path = folder / "run.sigmf-collection"
    path.write_bytes(content)
    _each(lambda: open_collection(path), lambda: verify(path), lambda: import_file(path, folder / "in"))
    _each(lambda: import_file(path, folder / "in2", join=True))


def read_journal(content: bytes, folder: Path) -> None:
    """A journal beside partial data."""
    (folder / ".x.journal.jsonl").write_bytes(content)
    (folder / ".x.sigmf-data.partial").write_bytes(bytes(256))
    _each(lambda: verify(folder), lambda: recover(folder, target=folder / "out"))


def read_archive(content: bytes, folder: Path) -> None:
    """An archive of any kind."""
    path = folder / "x.sigmf"
    path.write_bytes(content)
    _each(lambda: import_file(path, folder / "in"))


def read_raw(content: bytes, folder: Path) -> None:
    """Raw samples; the first bytes choose how they are said to be."""
    kinds = ["ci16_le", "cf32_le", "cu8", "ci8", "cf64_be", "ci32_le", "cu16_be", "ri16_le", "cf32", "x"]
    head = (content + bytes(4))[:4]
    raw = RawFormat(kinds[head[0] % len(kinds)], 1e6, head[1], None, head[2], bool(head[3] & 1))
    path = folder / "x.bin"
    path.write_bytes(content[4:])
    _each(lambda: import_file(path, folder / "in", raw=raw))


def read_mat(content: bytes, folder: Path) -> None:
    """A .mat file of either kind."""
    path = folder / "x.mat"
    path.write_bytes(content)
    _each(lambda: import_file(path, folder / "in", raw=RawFormat(sample_rate_hz=1.0)))


def read_index(content: bytes, folder: Path) -> None:
    """An index of a catalogue."""
    _two_recordings(folder)
    (folder / INDEX_NAME).write_bytes(content)
    rows = catalogue(folder).rows
    select(rows, label="x", min_rate_hz=1.0, min_channels=1)
    if [row.name for row in rows] != ["a", "b"]:
        raise AssertionError(f"the index made {rows} of two recordings")


TARGETS: dict[str, Target] = {
    "meta": read_meta,
    "collection": read_collection,
    "journal": read_journal,
    "archive": read_archive,
    "raw": read_raw,
    "mat": read_mat,
    "index": read_index,
}

_CORE = (
    "datatype version num_channels sample_rate sha512 offset dataset trailing_bytes metadata_only extensions collection"
    " sample_start sample_count global_index frequency datetime header_bytes label comment uuid freq_lower_edge"
)
_OWN = (
    "n_samples recording_id sources chunks device_time lost_samples clipped_samples unverified_from_sample complete"
    " kind snr_db snr_method cause channel rx_gain_db clipped_fraction requested roles truth files extra"
)
WORDS = [
    *(rf"\"{space}:{key}\"" for space, keys in (("core", _CORE), ("semair", _OWN)) for key in keys.split()),
    *(
        "cf32_le",
        "ci16_le",
        "cu8",
        "ri16_le",
        "ci16_be",
        "cf64_le",
        r"\"gap\"",
        "../",
        "/etc/passwd",
        "NaN",
        "null",
        "true",
    ),
    *("9223372036854775807", "-1", "1e999", "9" * 60, "[[[[[[[[", r"\"optional\": false", r"\x00", r"\xff\xff\xff\xff"),
]
"""What a fuzzer should know of the formats."""

_made: dict[str, bytes] = {}


def _two_recordings(folder: Path) -> None:
    """The recordings a and b; the same bytes in every call, so that checksums in seeds fit."""
    if not _made:
        scratch = folder / "scratch"
        for k, name in enumerate("ab"):
            samples = np.linspace(-0.5, 0.5, 32).astype(np.complex64).reshape(1, 32) * (1 + k)
            with RecordingWriter(
                scratch, name, n_channels=1, datatype="ci16_le", sample_rate_hz=1e6, min_free_bytes=0
            ) as writer:
                writer.write(samples)
                writer.annotate(0, 4, "mark", kind="frame", frame_seq=k)
        _made.update({path.name: path.read_bytes() for path in scratch.iterdir()})
        shutil.rmtree(scratch)
    for name, content in _made.items():
        (folder / name).write_bytes(content)


def seeds(target: str, folder: Path) -> list[bytes]:
    """Whole files of a kind, to begin with."""
    _two_recordings(folder)
    meta = (folder / "a.sigmf-meta").read_bytes()
    if target == "meta":
        foreign = {"core:datatype": "cu8", "core:version": "1.0.0", "core:num_channels": 2, "core:sample_rate": 1e6}
        odd = {**foreign, "core:offset": 7, "core:dataset": "x.sigmf-data", "core:trailing_bytes": 2}
        notes = [{"core:sample_start": 9, "core:sample_count": 3, "core:label": "x", "semair:snr_db": 3}]
        starts = [{"core:sample_start": 7, "core:header_bytes": 4, "core:datetime": "2026-01-01T00:00:00.5Z"}]
        clock = {"full_secs": 5, "frac_ticks": 1, "tick_rate_hz": 10}
        more = [*starts, {"core:sample_start": 20, "core:frequency": 1e9, "semair:device_time": clock}]
        others = [
            {"global": foreign, "captures": [{"core:sample_start": 0}], "annotations": []},
            {"global": odd, "captures": more, "annotations": notes},
        ]
        return [meta, *(json.dumps(other).encode() for other in others)]
    if target == "collection":
        path = write_collection(folder, "seed", {"rx": "a", "tx": "b"}, {"run_id": "x"})
        return [path.read_bytes()]
    if target == "journal":
        with RecordingWriter(
            folder / "j", "x", n_channels=1, datatype="ci16_le", sample_rate_hz=1e6, min_free_bytes=0, chunk_bytes=64
        ) as writer:
            writer.write(np.zeros((1, 32), np.complex64))
            writer.gap(3)
            writer.write(np.zeros((1, 32), np.complex64))
            writer.annotate(0, 4, "mark")
            path = folder / "j" / ".x.journal.jsonl"
            while b"mark" not in (text := path.read_bytes()):
                time.sleep(0.01)
        return [text]
    if target == "archive":
        return _archives(folder)
    if target == "mat":
        return _mats()
    if target == "index":
        catalogue(folder)
        return [(folder / INDEX_NAME).read_bytes()]
    return [bytes([0, 1, 0, 0]) + bytes(range(64)), bytes([4, 2, 5, 1]) + bytes(range(100))]


def _archives(folder: Path) -> list[bytes]:
    names = ["a.sigmf-data", "a.sigmf-meta"]
    found = []
    for mode in ("w", "w:gz", "w:xz"):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode, format=tarfile.PAX_FORMAT) as tar:
            for name in names:
                tar.add(folder / name, arcname=f"a/{name}")
        found.append(buffer.getvalue())
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in names:
            packed.write(folder / name, f"a/{name}")
    return [*found, buffer.getvalue()]


def _mats() -> list[bytes]:
    values = {"iq": np.arange(24).reshape(2, 12) * (1 + 2j), "n": np.arange(3)}
    found = []
    for compressed in (False, True):
        buffer = io.BytesIO()
        scipy.io.savemat(buffer, values, do_compression=compressed)
        found.append(buffer.getvalue())
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"iq": values["iq"]}, format="4")
    found.append(buffer.getvalue())
    try:
        import h5py
    except ImportError:
        return found
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", userblock_size=512) as file:
        pair = np.zeros((12, 2), np.dtype([("real", "<f8"), ("imag", "<f8")]))
        pair["real"], pair["imag"] = values["iq"].real.T, values["iq"].imag.T
        file["iq"] = pair
    return [*found, buffer.getvalue()]


class Sandbox:
    """A folder of its own for every run, and a watch over what is opened elsewhere."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._inside = str(self.folder) + os.sep
        self._libraries = tuple(
            str(Path(p).resolve()) + os.sep
            for p in {
                os.path.dirname(semair.__file__),
                sys.prefix,
                sys.base_prefix,
                os.path.dirname(os.__file__),
                *(q for q in sys.path if q),
            }
        )
        self._watching = False
        self._strayed: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, details: tuple[Any, ...]) -> None:
        if not self._watching or event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link"):
            return
        path = details[0]
        # Clearing up a folder names what is in it relative to a descriptor of it.
        if not isinstance(path, str | bytes | os.PathLike) or not os.path.isabs(path):
            return
        text = os.path.abspath(os.fsdecode(path))
        if text.startswith(self._inside) or text in (str(self.folder), os.devnull):
            return
        reading = event == "open" and not (isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR))
        if reading and (text.startswith((*self._libraries, "/proc/", "/dev/urandom", "/sys/"))):
            return
        self._strayed.append(f"{event} {text}")

    @contextmanager
    def _fresh(self) -> Iterator[Path]:
        place = self.folder / "run"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        self._strayed.clear()
        self._watching = True
        try:
            yield place
        finally:
            self._watching = False

    def run(self, target: Target, content: bytes) -> None:
        """One run.

        Raises:
            OutsideError: a file outside the sandbox was touched.
            MemoryError: too much memory was taken.
            Exception: whatever escaped.
        """
        traced = tracemalloc.is_tracing()
        if not traced:
            tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            with self._fresh() as place:
                target(content, place)
            taken = tracemalloc.get_traced_memory()[1] - before
        finally:
            if not traced:
                tracemalloc.stop()
        if self._strayed:
            raise OutsideError(f"opened outside the sandbox: {self._strayed[:3]}")
        if taken > 2 * len(content) + ALLOWANCE_BYTES:
            raise MemoryError(f"{taken} bytes of memory for {len(content)} bytes of content")

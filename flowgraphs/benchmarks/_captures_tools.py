"""Figures of the tools around recordings: listing many, opening those of others, refusing what is damaged."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import sigmf

from ...captures.archive import archive
from ...captures.catalogue import catalogue
from ...captures.collection import write_collection
from ...captures.export import per_channel
from ...captures.importing import RawFormat, import_file
from ...captures.reader import Recording
from ...captures.verify import verify
from ...captures.writer import RecordingWriter
from ...errors import SemairError
from .entry import Entry, Measurement, OnShare, machine

DATA_VARIABLE = "SEMAIR_DATA"
"""Environment variable with a folder of real recordings, all of which are opened."""


def measurements(quick: bool) -> list[Measurement]:
    """Measurements of the tools; `quick` lists fewer recordings and tries fewer damaged files."""
    n_recordings, n_damaged = (1500, 150) if quick else (10_000, 2000)
    return [
        Measurement(
            ("tools/list/first", "tools/list/second", "tools/list/speed-up"),
            partial(listing, n_recordings),
            4.0 if quick else 60.0,
        ),
        Measurement(("tools/foreign/failed",), foreign_recordings, 4.0),
        Measurement(("tools/damaged/failed",), partial(damaged_files, n_damaged, 1), 4.0 if quick else 60.0),
    ]


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="semair-tools-") as folder:
        yield Path(folder)


def _write(folder: Path, name: str, samples: np.ndarray, **options: Any) -> Path:
    with RecordingWriter(
        folder,
        name,
        n_channels=len(samples),
        sample_rate_hz=1e6,
        min_free_bytes=0,
        **{"datatype": "ci16_le", **options},
    ) as writer:
        writer.write(samples)
        for k in range(20):
            writer.annotate(k, 1, "frame", kind="frame", frame_seq=k, snr_db=10.0, snr_method="nominal")
    return writer.path


def listing(n_recordings: int, tell: OnShare) -> Iterator[Entry]:
    """Time to list many recordings without and with an index, beside opening each.

    Args:
        n_recordings: in folders of 100, each with 20 annotations.
        tell: told the share done.
    """
    with _scratch() as folder:
        path = _write(folder / "seed", "rec", np.zeros((2, 64), np.complex64))
        meta, data = path.read_bytes(), path.with_name("rec.sigmf-data").read_bytes()
        shutil.rmtree(folder / "seed")
        metas = []
        for k in range(n_recordings):
            place = folder / f"run{k // 100}"
            place.mkdir(exist_ok=True)
            metas.append(place / f"rec{k}.sigmf-meta")
            metas[-1].write_bytes(meta)
            (place / f"rec{k}.sigmf-data").write_bytes(data)
            if k % 256 == 0:
                tell(0.3 * k / n_recordings)

        def timed(work: Callable[[], Any]) -> float:
            begun = time.perf_counter()
            work()
            return time.perf_counter() - begun

        opened_s = timed(lambda: [Recording.open(path) for path in metas])
        tell(0.6)
        first_s = timed(lambda: catalogue(folder))
        tell(0.9)
        seconds = [timed(lambda: catalogue(folder)) for _ in range(3)]
        found = catalogue(folder)
        if len(found.rows) != n_recordings or found.read:
            raise RuntimeError(f"{len(found.rows)} of {n_recordings} recordings listed, {found.read} opened again")
    settings = {
        "recordings": n_recordings,
        "meta_bytes": len(meta),
        "annotations": 20,
        "opening_each_s": opened_s,
        "first_s": first_s,
        "second_s": seconds,
        **machine(),
    }
    second_s = float(np.median(seconds))
    yield Entry("tools/list/first", first_s / opened_s, None, "of the time to open each", "near 1", settings)
    interval = (min(seconds) / opened_s, max(seconds) / opened_s)
    yield Entry("tools/list/second", second_s / opened_s, interval, "of the time to open each", "below 0.2", settings)
    yield Entry("tools/list/speed-up", first_s / second_s, None, "times", "above 5", settings)


# --- recordings made by others


def foreign_recordings(tell: OnShare) -> Iterator[Entry]:
    """Recordings of others: opened, refused with a reason, or failed. Those in `SEMAIR_DATA`, and archives,
    collections and sets that sigmf-python makes here.

    Args:
        tell: told the share done.
    """
    with _scratch() as folder:
        cases = list(_made(folder / "made"))
        data = os.environ.get(DATA_VARIABLE)
        if data:
            cases += list(_found(Path(data)))
        opened, refused, failed = [], {}, {}
        for k, (name, path, options, expected) in enumerate(cases):
            tell(k / len(cases))
            try:
                done = import_file(path, folder / f"in{k}", **options)
                wrong = [str(f) for r in done.recordings for f in verify(r.meta_path) if f.severity == "error"]
                if wrong or not expected(done.recordings):
                    failed[name] = wrong[:1] or "samples differ"
                else:
                    opened.append(name)
            except SemairError as err:
                refused[name] = str(err).replace(str(folder), "")[:200]
            except Exception as err:
                failed[name] = f"{type(err).__name__}: {err}"[:200]
    settings = {
        "cases": len(cases),
        "opened": len(opened),
        "refused_with_reason": refused,
        "failed": failed,
        "real_recordings_from": DATA_VARIABLE if data else f"none, {DATA_VARIABLE} is not set",
        "library": f"sigmf {sigmf.__version__}",
    }
    yield Entry("tools/foreign/failed", len(failed), None, f"of {len(cases)} recordings and sets", 0.0, settings)


Case = tuple[str, Path, dict[str, Any], Callable[[list[Recording]], bool]]


def _any(_recordings: list[Recording]) -> bool:
    return True


def _found(folder: Path) -> Iterator[Case]:
    """All recordings in a folder; SigMF as it is, .mat and bare .dat with rate and kind given."""
    raw = RawFormat("ci16_le", 20e6)

    def as_read(path: Path) -> Callable[[list[Recording]], bool]:
        return lambda done: np.array_equal(done[0].read(), Recording.open(path).read())

    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".sigmf-meta":
            yield name, path, {}, as_read(path)
        elif path.suffix == ".mat":
            yield name, path, {"raw": RawFormat(sample_rate_hz=5e6)}, _any
        elif path.suffix == ".dat":
            # Logs of channel estimates end in .dat, too; as nothing is claimed for them, a reason is due.
            conducted = path.parent.name == "conducted"
            yield name, path, {"raw": raw if conducted else None}, _any


def _made(folder: Path) -> Iterator[Case]:
    rng = np.random.default_rng(1)
    folder.mkdir()
    samples = (rng.standard_normal((3, 400, 2)).astype(np.float32).reshape(3, -1).view(np.complex64) / 8).copy()

    def same(wanted: np.ndarray) -> Callable[[list[Recording]], bool]:
        return lambda done: np.array_equal(np.concatenate([r.read() for r in done]), wanted)

    def theirs(name: str, rows: np.ndarray, **head: Any) -> Any:
        rows.T.astype("<c8").tofile(folder / f"{name}.sigmf-data")
        fields = {"core:datatype": "cf32_le", "core:version": "1.0.0", "core:num_channels": len(rows), **head}
        file = sigmf.SigMFFile(global_info=fields)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file.set_data_file(folder / f"{name}.sigmf-data", skip_checksum="core:sha512" in head)
        file.add_capture(0, metadata={"core:frequency": 1e9})
        file.add_annotation(5, 9, metadata={"core:label": "x"})
        file.tofile(folder / name, overwrite=True, skip_validate=True)
        return file

    file = theirs("interleaved", samples)
    yield "interleaved", folder / "interleaved.sigmf-meta", {}, same(samples)
    for ending in ("sigmf", "sigmf.gz", "sigmf.xz", "sigmf.zip"):
        file.archive(str(folder / f"archive.{ending}"))
        yield f"archive.{ending}", folder / f"archive.{ending}", {}, same(samples)
    for k in range(3):
        theirs(f"antenna{k}", samples[k : k + 1])
    names = [f"antenna{k}.sigmf-meta" for k in range(3)]
    sigmf.SigMFCollection(names, base_path=folder).tofile(str(folder / "array"))
    yield "collection", folder / "array.sigmf-collection", {}, same(samples)
    yield "per-channel set, joined", folder / "array.sigmf-collection", {"join": True}, same(samples)
    with tarfile.open(folder / "several.sigmf", "w") as tar:
        for k in range(3):
            for ending in ("meta", "data"):
                tar.add(folder / f"antenna{k}.sigmf-{ending}", arcname=f"set/antenna{k}.sigmf-{ending}")
        tar.add(folder / "array.sigmf-collection", arcname="array.sigmf-collection")
    yield "archive of several with a collection", folder / "several.sigmf", {}, same(samples)
    ours = folder / "ours"
    path = _write(ours, "rec", samples, datatype="cf32_le")
    write_collection(ours, "run", {"rx": "rec"})
    yield "our archive", archive(ours, folder / "ours.sigmf"), {}, same(samples)
    yield "our channels, joined", per_channel(Recording.open(path), folder / "channels"), {"join": True}, same(samples)
    yield from _odd(folder, samples, same)


def _odd(folder: Path, samples: np.ndarray, same: Callable[[np.ndarray], Any]) -> Iterator[Case]:
    """What trips the library up: offsets, cut and empty files, wrapped files, and what is not declared."""
    content = samples.T.astype("<c8").tobytes()
    head = {"core:datatype": "cf32_le", "core:version": "1.0.0", "core:num_channels": 3}

    def put(name: str, data: bytes, fields: dict[str, Any], **capture: Any) -> Path:
        captures = [{"core:sample_start": 0, **capture}]
        meta = {"global": {**head, **fields}, "captures": captures, "annotations": []}
        (folder / f"{name}.sigmf-meta").write_text(json.dumps(meta))
        (folder / f"{name}.sigmf-data").write_bytes(data)
        return folder / f"{name}.sigmf-meta"

    def none(_done: list[Recording]) -> bool:
        return False

    offset = {"core:offset": 9}
    yield "offset", put("o", content, offset, **{"core:sample_start": 9}), {}, same(samples)
    yield "offset in doubt", put("d", content, offset), {}, none
    yield "cut inside a sample", put("c", content[:-5], {}), {}, none
    yield "cut between samples", put("s", content[:-24], {"core:sha512": "0" * 128}), {}, none
    yield "empty", put("e", b"", {}), {}, none
    wrapped = {"core:dataset": "w.sigmf-data", "core:trailing_bytes": 2}
    path = put("w", b"1234567" + content + b"89", wrapped, **{"core:header_bytes": 7})
    yield "wrapped", path, {}, same(samples)
    yield "not declared", put("u", content, {"vendor:thing": 1}), {}, same(samples)
    values = {"iq": samples.astype(complex)}
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, values, do_compression=True)
    (folder / "m.mat").write_bytes(buffer.getvalue())
    yield "mat 5", folder / "m.mat", {"raw": RawFormat(sample_rate_hz=1e6)}, same(samples)
    (folder / "r.iq").write_bytes(content)
    yield "raw", folder / "r.iq", {"raw": RawFormat("cf32_le", 1e6, 3)}, same(samples)


# --- damaged files


def damaged_files(n_trials: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """Metadata, collections, archives, raw files and indices, changed at random: read, refused, or failed.

    Args:
        n_trials: files, of each kind in turn.
        seed: of the changes.
        tell: told the share done.
    """
    rng = np.random.default_rng([seed, 77])
    counts = {"read": 0, "refused": 0}
    failed: list[str] = []
    with _scratch() as folder:
        good = folder / "good"
        _write(good, "a", np.full((2, 60), 0.1, np.complex64))
        write_collection(good, "run", {"rx": "a"})
        catalogue(good)
        packed = archive(good, folder / "run.sigmf")
        targets = ["a.sigmf-meta", "run.sigmf-collection", "a.sigmf-data", ".semair-index.sqlite", "archive"]
        for trial in range(n_trials):
            target = targets[trial % len(targets)]
            place = folder / "try"
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(good, place)
            path = place / target if target != "archive" else place / "x.sigmf"
            path.write_bytes(_changed(path.read_bytes() if target != "archive" else packed.read_bytes(), rng))
            try:
                catalogue(place)
                verify(place)
                import_file(path if target == "archive" else place / "run.sigmf-collection", place / "in")
                counts["read"] += 1
            except SemairError:
                counts["refused"] += 1
            except Exception as err:
                failed.append(f"{target}: {type(err).__name__}: {err}"[:200])
            if trial % 16 == 0:
                tell(trial / n_trials)
    settings = {"files": n_trials, "kinds": targets, "seed": seed, **counts, "failures": failed[:10]}
    yield Entry("tools/damaged/failed", len(failed), None, f"of {n_trials} damaged files", 0.0, settings)


def _changed(content: bytes, rng: np.random.Generator) -> bytes:
    """Some bits flipped, some bytes cut out, or something put in."""
    out = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(len(out))) if out else 0
        match int(rng.integers(4)):
            case 0 if out:
                out[at] ^= 1 << int(rng.integers(8))
            case 1:
                del out[at : at + int(rng.integers(1, 60))]
            case 2:
                out[at:at] = (b"9" * 5000, b"null", b"[[[", b"../", b"\x00" * 512, b"NaN")[int(rng.integers(6))]
            case _:
                del out[max(at, 1) :]
    return bytes(out)

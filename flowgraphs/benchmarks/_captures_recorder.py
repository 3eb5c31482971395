"""Figures of the recorder and of its format."""

from __future__ import annotations

import json
import multiprocessing
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import beta

from ...blocks.waveforms.beacon import beacon
from ...blocks.waveforms.frame_sync import FrameFinder
from ...captures.collection import write_collection
from ...captures.devicetime import DeviceTime
from ...captures.gaps import find_losses
from ...captures.journal import RecordingPaths, leftovers, read_ledger
from ...captures.reader import Recording
from ...captures.recover import recover
from ...captures.verify import verify
from ...captures.writer import RecordingWriter
from ...errors import RecordingError, StorageError
from ..scenario import load_scenario
from . import _running
from .entry import Entry, Measurement, OnShare, machine

RATE_HZ = 10e6
CHANNELS = 4
FLIP_KINDS = ("data", "metadata", "journal", "ground-truth")
_FULL_DISK_BYTES = 4 << 20


def measurements(quick: bool) -> list[Measurement]:
    """Measurements of the recorder; `quick` takes fewer draws and shorter runs."""
    kills, fills, gaps, flips = (5, 1, 50, 200) if quick else (200, 50, 1000, 10_000)
    seconds = 2.0 if quick else 60.0
    found = [
        Measurement(
            tuple(f"flipped-bits/{kind}" for kind in FLIP_KINDS), partial(flipped_bits, flips, 1), 0.01 * flips
        ),
        Measurement(("gaps/with-radio-time", "gaps/with-radio-time/invented"), partial(gaps_with_time, gaps, 1), 1.0),
        Measurement(
            ("gaps/by-frame-counter", "gaps/by-frame-counter/count-error", "gaps/by-frame-counter/invented"),
            partial(gaps_by_frames, gaps, 1),
            0.01 * gaps,
        ),
        Measurement(("kill-9/recovered",), partial(killed, kills, 1), 0.3 * kills),
        Measurement(("full-disk/recovered", "full-disk/recovered/file-limit"), partial(filled, fills, 1), 0.5 * fills),
        Measurement(
            ("recorder/lost-samples", "recorder/rate", "recorder/processor-over-file-sink"),
            partial(recorder_cost, "disk", seconds),
            3 * seconds,
        ),
    ]
    if not quick:
        memory = ("recorder/processor-over-file-sink/memory",)
        found.append(Measurement(memory, partial(recorder_cost, "memory", 10.0), 30.0))
    return found


def share_interval(hits: int, trials: int) -> tuple[float, float]:
    """Exact 95 % interval of a share (Clopper and Pearson)."""
    low = float(beta.ppf(0.025, hits, trials - hits + 1)) if hits else 0.0
    high = float(beta.ppf(0.975, hits + 1, trials - hits)) if hits < trials else 1.0
    return low, high


def _share(name: str, hits: int, trials: int, target: float, **settings: Any) -> Entry:
    return Entry(name, hits / trials, share_interval(hits, trials), "1", target, {"trials": trials, **settings})


# --- flipped bits


def flipped_bits(trials: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """Share of single flipped bits that verify reports under the name of the file, with the place in it."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(prefix="semair-flips-") as place:
        files = _flip_folder(Path(place), rng)
        count = max(trials // len(FLIP_KINDS), 1)
        for k, kind in enumerate(FLIP_KINDS):
            caught = located = 0
            for trial in range(count):
                file = files[kind][rng.integers(len(files[kind]))]
                whole = file.read_bytes()
                bit = int(rng.integers(8 * len(whole)))
                damaged = bytearray(whole)
                damaged[bit // 8] ^= 1 << bit % 8
                file.write_bytes(damaged)
                named = [f for f in verify(file.parent) if f.severity == "error" and f.file == file]
                file.write_bytes(whole)
                caught += bool(named)
                located += any(
                    f.field or any(word in f.message for word in ("byte ", "samples ", "line ", "position "))
                    for f in named
                )
                tell((k + trial / count) / len(FLIP_KINDS))
            yield _share(f"flipped-bits/{kind}", caught, count, 1.0, seed=seed, with_a_place=located / count)


def _flip_folder(folder: Path, rng: np.random.Generator) -> dict[str, list[Path]]:
    """A run, and what an interruption left of another one; the files by kind."""
    run, left = folder / "run", folder / "left"
    samples = rng.integers(-3000, 3000, (2, 1000, 2), dtype=np.int16)
    with _writer(run, "bs-rx", 2, chunk_bytes=2048) as writer:
        writer.write(samples[:, :600])
        writer.gap(70, DeviceTime(3, 670, 1_000_000))
        writer.write(samples[:, 600:])
        writer.annotate(10, 100, "frame", "the first", kind="frame", frame_seq=0)
    np.save(run / "truth.npy", rng.integers(0, 100, 500))
    (run / "run.json").write_text(json.dumps({"kind": "benchmark", "numbers": list(range(50))}, indent=1))
    write_collection(run, "run", {"bs-rx": "bs-rx"}, {"truth": "truth.npy"}, files=["truth.npy", "run.json"])
    left.mkdir()
    with _writer(folder / "other", "cut", 2, chunk_bytes=2048) as writer:
        writer.write(samples)
        writer.annotate(10, 100, "frame", "the first")
        journal, data = folder / "other" / ".cut.journal.jsonl", folder / "other" / ".cut.sigmf-data.partial"
        deadline = time.monotonic() + 30
        while b'"annotation"' not in journal.read_bytes() and time.monotonic() < deadline:
            time.sleep(0.01)
        shutil.copy(journal, left)
        shutil.copy(data, left)
    return {
        "data": [run / "bs-rx.sigmf-data"],
        "metadata": [run / "bs-rx.sigmf-meta", run / "run.sigmf-collection", run / "run.json"],
        "journal": [left / journal.name],
        "ground-truth": [run / "truth.npy"],
    }


def _writer(folder: Path, name: str, n_channels: int, **options: Any) -> RecordingWriter:
    return RecordingWriter(
        folder,
        name,
        **{
            "n_channels": n_channels,
            "datatype": "ci16_le",
            "sample_rate_hz": 1e6,
            "min_free_bytes": 0,
            **options,
        },
    )


# --- lost samples


def gaps_with_time(trials: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """Share of gaps that a radio's time tells of which the recording has at their place with their length."""
    from gnuradio import blocks, gr

    from ...blocks.runtime import time_value
    from ...blocks.sigmf_sink import SigmfSink

    rng = np.random.default_rng(seed)
    rate_hz, n = 30.72e6, 400 * trials
    places = np.sort(rng.choice(np.arange(1, n), trials, replace=False))
    lost = np.exp(rng.uniform(0, np.log(1e7), trials)).astype(int)
    found = invented = 0
    with tempfile.TemporaryDirectory(prefix="semair-gaps-") as place:
        for k, losses in enumerate((lost, np.zeros(trials, int))):
            tags = []
            for at, before in zip([0, *places], [0, *np.cumsum(losses)], strict=True):
                tag = gr.tag_t()
                tag.offset, tag.key = int(at), _symbol("rx_time")
                tag.value = time_value(int(at + before) + 10**12, rate_hz)
                tags.append(tag)
            graph = gr.top_block()
            source = blocks.vector_source_c(np.zeros(n).tolist(), False, 1, tags)
            sink = SigmfSink(place, f"run{k}", 1, rate_hz, min_free_bytes=0)
            graph.connect(source, sink)
            graph.run()
            if sink.failure is not None:
                raise sink.failure
            recording = Recording.open(Path(place) / f"run{k}")
            marked = {a.sample_start: a.fields["lost_samples"] for a in recording.annotations if a.label == "gap"}
            if k:
                invented = len(marked)
            else:
                index = {s.sample_start: s.global_index for s in recording.segments}
                total = np.cumsum(lost)
                found = sum(
                    marked.get(int(at)) == count and index.get(int(at)) == at + before
                    for at, count, before in zip(places, lost, total, strict=True)
                )
            tell((k + 1) / 2)
    settings = {"seed": seed, "sample_rate_hz": rate_hz, "lost_samples_each": "1 to 1e7"}
    yield _share("gaps/with-radio-time", found, trials, 1.0, **settings)
    yield _share("gaps/with-radio-time/invented", invented, trials, 0.0, clean_time_tags=trials, seed=seed)


def _symbol(name: str) -> Any:
    import pmt

    return pmt.intern(name)


def gaps_by_frames(trials: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """Share of gaps found by the frame counter between the frames on either side, and the error of their length."""
    rng = np.random.default_rng(seed)
    fmt = load_scenario("lab", ["frame.frame_samples=5120"]).frame
    size = fmt.frame_samples
    # A frame on either side of a gap is heard, unless the gap takes it.
    starts = np.cumsum(rng.integers(3 * size, 5 * size, trials))
    lost = np.exp(rng.uniform(np.log(16), np.log(3 * size), trials)).astype(int)
    n_frames = int(starts[-1] + lost.sum()) // size + 4
    heard: list[list[tuple[int, float]]] = []
    for k, gaps in enumerate((lost, np.zeros(trials, int))):
        finder = FrameFinder(fmt, 1, 1e3)
        frames: list[tuple[int, float]] = []
        # Places in the stream that was sent, at which samples vanish.
        sent_at = starts + np.concatenate([[0], np.cumsum(gaps)[:-1]])
        for number in range(n_frames):
            samples = np.zeros(size, np.complex64)
            samples[: fmt.beacon_samples] = beacon(fmt, number)
            noise = rng.standard_normal((size, 2), np.float32).view(np.complex64)[:, 0]
            samples += noise * np.float32(np.sqrt(0.05))
            keep = np.ones(size, bool)
            low = number * size
            for j in range(*np.searchsorted(sent_at + gaps, [low, low + 4 * size], "right")):
                keep[max(sent_at[j] - low, 0) : max(sent_at[j] + gaps[j] - low, 0)] = False
            _, found = finder.process(samples[None, keep])
            frames += [(f.frame_number, f.start + f.fraction) for f in found if not f.counted]
            if number % 100 == 0:
                tell((k + number / n_frames) / 2)
        heard.append(frames)
    losses = find_losses(heard[0], size)
    errors, unmatched = [], list(losses)
    for at, count in zip(starts, lost, strict=True):
        # A beacon with a gap inside is timed by the part that is heard best, so it counts as before or after the gap.
        early, late = 2, fmt.beacon_samples
        around = [loss for loss in unmatched if loss.earliest_start - early <= at <= loss.sample_start + late]
        if around:
            unmatched.remove(around[0])
            errors.append(abs(around[0].lost_samples - int(count)))
    within = sum(error <= size for error in errors)
    settings = {
        "seed": seed,
        "frame_samples": size,
        "snr_db": 10.0,
        "lost_samples_each": f"16 to {3 * size}",
        "losses_reported": len(losses),
    }
    yield _share("gaps/by-frame-counter", within, trials, 1.0, **settings)
    yield Entry(
        "gaps/by-frame-counter/count-error",
        float(max(errors, default=0)),
        None,
        "samples",
        float(size),
        {
            **settings,
            "mean": float(np.mean(errors)) if errors else None,
            "exact": float(np.mean(np.array(errors) == 0)),
        },
    )
    invented = len(find_losses(heard[1], size))
    yield _share("gaps/by-frame-counter/invented", invented, len(heard[1]), 0.0, clean_frames=len(heard[1]), seed=seed)


# --- interruptions


def _counted(start: int, count: int) -> np.ndarray:
    """Samples that tell their place; int16, (2, count, 2)."""
    index = np.arange(start, start + count)
    one = np.stack([index & 0x7FFF, index >> 15 & 0x7FFF], axis=-1).astype(np.int16)
    return np.stack([one, ~one])


def _holds_counted(recording: Recording) -> bool:
    n = recording.n_samples
    stored = recording.read().view(np.float32).reshape(2, n, 2) * 32768
    return bool(np.array_equal(stored, _counted(0, n)))


def _record_on_and_on(folder: str, seed: int, started: Any) -> None:
    """Make recordings until this process is killed."""
    rng = np.random.default_rng(seed)
    for number in range(10**6):
        with _writer(Path(folder), f"r{number}", 2, chunk_bytes=1 << 15) as writer:
            for _ in range(int(rng.integers(1, 60))):
                writer.write(_counted(writer.n_samples, int(rng.integers(1, 4000))))
                started.set()


def _record_until_full(folder: str, limit_bytes: int | None) -> None:
    """Record until the disk is full, or until a file may not grow any more."""
    if limit_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    try:
        with _writer(Path(folder), "r", 2, chunk_bytes=1 << 17) as writer:
            while True:
                writer.write(_counted(writer.n_samples, 3001))
    except (StorageError, RecordingError):
        return


def _processes() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _journalled_bytes(paths: RecordingPaths) -> int:
    """Bytes that a journal vouches for; 0 where the kill came before its first line, and so before any sample."""
    try:
        return read_ledger(paths.journal).chunk_bytes
    except RecordingError:
        if paths.partial_data.exists() and paths.partial_data.stat().st_size:
            raise
        return 0


def killed(trials: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """Share of recorders killed with SIGKILL of which every journalled chunk, and all else, is readable after."""
    rng = np.random.default_rng(seed)
    context = _processes()
    good = interrupted = unverified = 0
    with tempfile.TemporaryDirectory(prefix="semair-kill-") as place:
        for trial in range(trials):
            folder = Path(place) / str(trial)
            started = context.Event()
            child = context.Process(target=_record_on_and_on, args=(str(folder), trial, started), daemon=True)
            child.start()
            started.wait(60)
            time.sleep(float(rng.uniform(0, 0.2)))
            child.kill()
            child.join()
            journalled = {p.name: _journalled_bytes(p) for p in leftovers(folder) if p.journal.exists()}
            results = {r.name.removesuffix("-recovered"): r for r in recover(folder)}
            whole = [Recording.open(p) for p in folder.glob("r*.sigmf-meta")]
            for recording in whole:
                recording.check_hash()
            kept = all(
                size == 0 or (name in results and results[name].n_samples * results[name].frame_bytes >= size)
                for name, size in journalled.items()
                # A journal that was left beside a finished recording is only cleared away.
                if name in results or not (folder / f"{name}.sigmf-meta").exists()
            )
            wrong = [f for f in verify(folder) if f.severity == "error" and f.file.name.endswith(("meta", "data"))]
            good += kept and not wrong and all(map(_holds_counted, whole))
            interrupted += bool(results)
            unverified += sum("unverified_from_sample" in r.global_fields for r in results.values())
            shutil.rmtree(folder)
            tell(trial / trials)
    yield _share(
        "kill-9/recovered", good, trials, 1.0, seed=seed, recordings_cut=interrupted, with_samples_after=unverified
    )


def filled(trials: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """Share of recordings into a disk that fills to the last byte that are whole up to there."""
    rng = np.random.default_rng(seed)
    context = _processes()

    def fill(folder: Path, limit: int | None) -> bool:
        child = context.Process(target=_record_until_full, args=(str(folder), limit), daemon=True)
        child.start()
        child.join(120)
        child.kill()
        with tempfile.TemporaryDirectory(prefix="semair-rescue-") as rescue:
            recover(folder, target=rescue)
            found = [Recording.open(p) for path in (folder, Path(rescue)) for p in path.glob("r*.sigmf-meta")]
            for recording in found:
                recording.check_hash()
            # The reserve and the journal take their part.
            room = (limit or _FULL_DISK_BYTES) - (2 << 20)
            size = max((r.n_samples * r.frame_bytes for r in found), default=0)
            return size >= room and all(map(_holds_counted, found))

    good = 0
    if (reason := _unmountable()) is None:
        for trial in range(trials):
            with _small_disk() as folder:
                (folder / "other").write_bytes(bytes(int(rng.integers(1, 1 << 20))))
                good += fill(folder, None)
            tell(trial / trials / 2)
        yield _share("full-disk/recovered", good, trials, 1.0, seed=seed, disk_bytes=_FULL_DISK_BYTES)
    good = 0
    with tempfile.TemporaryDirectory(prefix="semair-limit-") as place:
        for trial in range(trials):
            folder = Path(place) / str(trial)
            good += fill(folder, int(rng.integers(2 << 20, 4 << 20)))
            tell(0.5 + trial / trials / 2)
    settings = {"seed": seed, "how": "RLIMIT_FSIZE", "small_disk": reason or "measured in its own entry"}
    yield _share("full-disk/recovered/file-limit", good, trials, 1.0, **settings)


@contextmanager
def _small_disk() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="semair-disk-") as place:
        size = f"size={_FULL_DISK_BYTES}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", place], check=True, capture_output=True)
        try:
            yield Path(place)
        finally:
            subprocess.run(["umount", "-l", place], check=True)


def _unmountable() -> str | None:
    """Why no small file system can be mounted here; None if it can."""
    try:
        with _small_disk():
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        return f"a small file system cannot be mounted ({error}); only root may"


# --- cost


def recorder_cost(kind: str, seconds: float, tell: OnShare) -> Iterator[Entry]:
    """Samples the recorder left out at 160 MB/s, and its processor time over that of GNU Radio's file sinks."""
    places = {"disk": Path(tempfile.gettempdir()), "memory": Path("/dev/shm")}
    with tempfile.TemporaryDirectory(prefix="semair-recorder-", dir=places[kind]) as folder:
        need = 4 * CHANNELS * RATE_HZ * seconds
        free = shutil.disk_usage(folder).free
        seconds = min(seconds, 0.8 * seconds * free / need)
        results = []
        for k, sink in enumerate(("recorder", "file_sink")):
            with _running._alone("record-at-rate", {"folder": folder, "sink": sink, "seconds": seconds}) as lines:
                results.append(lines.get(timeout=60 + 6 * seconds))
            tell((k + 1) / 2)
    recorder, plain = results
    settings = {
        "seconds": seconds,
        "channels": CHANNELS,
        "sample_rate_hz": RATE_HZ,
        "file_system": _file_system(places[kind]),
        "recorder_core_share": {part: recorder["cpu"][part] / recorder["wall_s"] for part in recorder["cpu"]},
        "file_sink_core_share": sum(plain["cpu"].values()) / plain["wall_s"],
        "file_sink_rate_hz": plain["samples"] / plain["wall_s"],
        "counted": "time of the sinks' own threads; what the kernel puts off for file_sink is not in it",
        **machine(),
    }
    ratio = (sum(recorder["cpu"].values()) / recorder["samples"]) / (sum(plain["cpu"].values()) / plain["samples"])
    if kind == "memory":
        yield Entry("recorder/processor-over-file-sink/memory", ratio, None, "1", 2.0, settings)
        return
    lost = float(recorder["dropped"])
    yield Entry("recorder/lost-samples", lost, None, "samples per channel", 0.0, settings)
    yield Entry("recorder/rate", recorder["samples"] / recorder["wall_s"], None, "samples/s", RATE_HZ, settings)
    yield Entry("recorder/processor-over-file-sink", ratio, None, "1", 2.0, settings)


def _file_system(folder: Path) -> str:
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    inside = [m for m in mounts if folder.resolve().is_relative_to(m[0])]
    return max(inside, key=lambda m: len(m[0]))[1] if inside else "unknown"


def record_at_rate(given: dict[str, Any], write: Callable[[dict[str, Any]], None]) -> None:
    """Stream four channels of pairs of shorts at their rate into one kind of sink; times its threads."""
    from gnuradio import blocks, gr

    from ...blocks.sigmf_sink import SigmfSink

    folder, n = Path(given["folder"]), int(given["seconds"] * RATE_HZ)
    rng = np.random.default_rng(1)
    graph = gr.top_block()
    pattern = rng.integers(-3000, 3000, 2 * CHANNELS << 15).tolist()
    source = blocks.vector_source_s(pattern, True, 2 * CHANNELS)
    head = blocks.head(4 * CHANNELS, n)
    throttle = blocks.throttle(4 * CHANNELS, RATE_HZ)
    radio = blocks.vector_to_streams(4, CHANNELS)
    # As the recorder does with a radio: a fiftieth of a second per call.
    radio.set_min_output_buffer(int(RATE_HZ / 50))
    graph.connect(source, head, throttle, radio)
    sinks: list[Any] = []
    if given["sink"] == "recorder":
        sink = SigmfSink(
            folder, "r", CHANNELS, RATE_HZ, stream="short", on_full="drop", min_free_bytes=0, queue_bytes=256 << 20
        )
        sink.warm_up()
        sink.gather_s = 5e-3
        sinks.append(sink)
        for port in range(CHANNELS):
            graph.connect((radio, port), (sink, port))
    else:
        for port in range(CHANNELS):
            sinks.append(blocks.file_sink(4, str(folder / f"{port}.raw")))
            graph.connect((radio, port), sinks[-1])
    begin = time.monotonic()
    graph.start()
    watched = sinks[-1]
    times: dict[int, tuple[str, float]] = {}
    while watched.nitems_read(0) < n and time.monotonic() - begin < 4 * given["seconds"] + 20:
        time.sleep(0.1)
        times.update(_thread_times())
    wall_s = time.monotonic() - begin
    times.update(_thread_times())
    samples = int(watched.nitems_read(0))
    writer = sinks[0].writer if given["sink"] == "recorder" else None
    worker = writer.worker_thread_id if writer is not None else None
    graph.stop()
    graph.wait()
    cpu: dict[str, float] = {}
    for thread, (name, seconds) in times.items():
        if thread == worker or name.startswith(("semair SigMF", "file_sink")):
            part = "worker" if thread == worker else "block"
            cpu[part] = cpu.get(part, 0.0) + seconds
    dropped = writer.dropped_samples if writer is not None else 0
    write({"wall_s": wall_s, "samples": samples, "dropped": dropped, "cpu": cpu})
    for path in folder.iterdir():
        path.unlink()


def _thread_times() -> dict[int, tuple[str, float]]:
    """Name and processor time of every thread of this process."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            name = (task / "comm").read_text().strip()
            found[int(task.name)] = (name, int((task / "schedstat").read_text().split()[0]) * 1e-9)
        except (OSError, ValueError, IndexError):
            continue
    return found

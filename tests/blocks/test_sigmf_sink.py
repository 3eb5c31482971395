"""The SigMF sink writes what was streamed, bit for bit, with its gaps and its time."""

from __future__ import annotations

import errno
import functools
import gc
import os
from fractions import Fraction

import numpy as np
import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")

from gnuradio import blocks, gr
from semair.blocks.frame_synchroniser import FrameSynchroniser
from semair.blocks.runtime import time_value
from semair.blocks.sigmf_sink import SigmfSink
from semair.blocks.waveforms.beacon import beacon
from semair.blocks.waveforms.frame import FrameFormat
from semair.captures.reader import Recording
from semair.captures.verify import verify
from semair.errors import RecordingError, StorageError
from semair.flowgraphs.scenario import load_scenario

RATE_HZ = 1e6
N = 50_000


def signal(n_channels: int, n: int = N) -> np.ndarray:
    """Values on the grid of ci16_le, which every datatype holds exactly; complex64, (channels, n)."""
    rng = np.random.default_rng(2)
    steps = rng.integers(-32768, 32768, (n_channels, n, 2))
    return (steps / 32768).astype(np.float32).view(np.complex64)[..., 0]


class Flowgraph(gr.top_block):
    """Vectors into the sink."""

    def __init__(self, folder, samples: np.ndarray, tags=(), rate_hz: float = RATE_HZ, **options) -> None:
        gr.top_block.__init__(self, "test")
        tags = list(tags)
        self.sources = [
            blocks.vector_source_c(row.tolist(), False, 1, tags if port == 0 else [])
            for port, row in enumerate(samples)
        ]
        options = {"min_free_bytes": 0, **options}
        self.sink = SigmfSink(folder, "rec", len(samples), rate_hz, **options)
        for port, source in enumerate(self.sources):
            self.connect(source, (self.sink, port))


@pytest.mark.parametrize("datatype", ["ci16_le", "cf32_le"])
@pytest.mark.parametrize(("n_channels", "max_noutput_items"), [(1, 100), (3, 1024), (4, None)])
def test_recording_holds_the_streams_bit_for_bit(run_graph, tmp_path, n_channels, max_noutput_items, datatype):
    x = signal(n_channels)
    tb = Flowgraph(tmp_path, x, frequency_hz=2.4e9, datatype=datatype)
    run_graph(tb, (tb.sink,), max_noutput_items)
    recording = Recording.open(tmp_path / "rec.sigmf-meta", check_hash=True)
    assert recording.read().tobytes() == x.tobytes()
    assert (recording.n_channels, recording.datatype) == (n_channels, datatype)
    assert (recording.sample_rate_hz, recording.frequency_hz) == (RATE_HZ, 2.4e9)
    assert recording.segments[0].device_time is None
    assert recording.complete
    assert [f for f in verify(tmp_path / "rec.sigmf-meta") if f.severity == "error"] == []


@pytest.mark.parametrize("max_noutput_items", [1, 1000, None])
@pytest.mark.parametrize("rate_hz", [RATE_HZ, 1e6 / 3, 30.72e6])
def test_gaps_and_device_time_over_the_second(run_graph, tmp_path, make_tag, rate_hz, max_noutput_items):
    x = signal(2, 3000)
    # 1000 samples before second 7, a tag that goes on at the roll-over, and two losses behind it.
    start = round(7 * rate_hz) - 1000
    places = [(0, 0), (1000, 0), (1500, 40), (2999, 40 + 12345678)]
    tags = [make_tag(at, "rx_time", time_value(start + at + lost, rate_hz)) for at, lost in places]
    tb = Flowgraph(tmp_path, x, tags, rate_hz)
    run_graph(tb, (tb.sink,), max_noutput_items)
    recording = Recording.open(tmp_path / "rec.sigmf-meta")
    assert recording.read().tobytes() == x.tobytes()
    told = [
        (s.sample_start, s.global_index, round(s.device_time.seconds * Fraction(rate_hz))) for s in recording.segments
    ]
    expected = [(at, at + lost, start + at + lost) for at, lost in places if at != 1000]
    assert told == expected
    assert [a.label for a in recording.annotations] == ["gap", "gap"]
    assert tb.sink.writer.lost_samples == 40 + 12345678


def test_time_that_comes_only_later_is_no_gap(run_graph, tmp_path, make_tag):
    tb = Flowgraph(tmp_path, signal(1, 3000), [make_tag(700, "rx_time", time_value(10**9, RATE_HZ))])
    run_graph(tb, (tb.sink,))
    recording = Recording.open(tmp_path / "rec.sigmf-meta")
    assert len(recording.segments) == 1
    assert tb.sink.writer.lost_samples == 0


def test_clock_that_steps_back_ends_the_recording_and_keeps_it(run_graph, tmp_path, make_tag):
    x = signal(1, 3000)
    tags = [make_tag(0, "rx_time", time_value(5000, RATE_HZ)), make_tag(700, "rx_time", time_value(0, RATE_HZ))]
    tb = Flowgraph(tmp_path, x, tags)
    with pytest.raises(RecordingError, match="stepped back"):
        run_graph(tb, (tb.sink,))
    assert Recording.open(tmp_path / "rec.sigmf-meta").read().tobytes() == x[:, :700].tobytes()


@pytest.mark.parametrize("max_noutput_items", [7, 1024, None])
def test_max_samples_ends_the_stream(run_graph, tmp_path, max_noutput_items):
    x = signal(2)
    tb = Flowgraph(tmp_path, x, max_samples=12_345)
    run_graph(tb, (tb.sink,), max_noutput_items)
    assert Recording.open(tmp_path / "rec.sigmf-meta").read().tobytes() == x[:, :12_345].tobytes()


def test_max_samples_ends_an_endless_source(run_graph, tmp_path):
    class Endless(gr.top_block):
        def __init__(self) -> None:
            gr.top_block.__init__(self, "test")
            self.source = blocks.null_source(gr.sizeof_gr_complex)
            self.sink = SigmfSink(tmp_path, "rec", max_samples=100_000, min_free_bytes=0)
            self.connect(self.source, self.sink)

    tb = Endless()
    run_graph(tb, (tb.sink,))
    assert Recording.open(tmp_path / "rec.sigmf-meta").n_samples == 100_000


def test_settings_of_the_writer_pass_through(run_graph, tmp_path):
    tb = Flowgraph(tmp_path, signal(1), description="on the bench", global_fields={"role": "bs-rx", "origin": "sim"})
    run_graph(tb, (tb.sink,))
    recording = Recording.open(tmp_path / "rec.sigmf-meta")
    assert recording.meta["global"]["core:description"] == "on the bench"
    assert recording.global_fields["role"] == "bs-rx"


def test_existing_recording_is_not_replaced_unasked(run_graph, tmp_path):
    first, second = signal(1), signal(1, 999)
    tb = Flowgraph(tmp_path, first)
    run_graph(tb, (tb.sink,))
    tb = Flowgraph(tmp_path, second)
    with pytest.raises(RecordingError, match="rec"):
        run_graph(tb, (tb.sink,))
    assert Recording.open(tmp_path / "rec.sigmf-meta").n_samples == N
    tb = Flowgraph(tmp_path, second, overwrite=True)
    run_graph(tb, (tb.sink,))
    assert Recording.open(tmp_path / "rec.sigmf-meta").n_samples == 999


def test_not_a_number_reaches_the_user_and_what_came_before_is_kept(run_graph, tmp_path):
    x = signal(2)
    x[1, 30_000] = np.nan
    tb = Flowgraph(tmp_path, x)
    with pytest.raises(RecordingError, match=r"channel 1.*30000 of the recording.*nan"):
        run_graph(tb, (tb.sink,), 1000)
    kept = Recording.open(tmp_path / "rec.sigmf-meta").read()
    assert kept.shape[1] >= 29_000
    assert kept.tobytes() == x[:, : kept.shape[1]].tobytes()


def test_full_disk_reaches_the_user_and_keeps_the_recording_readable(run_graph, tmp_path, monkeypatch):
    x = signal(2)
    room = [150_001]
    write = os.write

    def until_full(fd: int, data) -> int:
        if not os.readlink(f"/proc/self/fd/{fd}").endswith(".sigmf-data.partial"):
            return write(fd, data)
        if room[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = write(fd, data[: room[0]])
        room[0] -= done
        return done

    monkeypatch.setattr(os, "write", until_full)
    tb = Flowgraph(tmp_path, x, chunk_bytes=8192)
    with pytest.raises(StorageError, match="No space left on device"):
        run_graph(tb, (tb.sink,), 1000)
    monkeypatch.undo()
    recording = Recording.open(tmp_path / "rec.sigmf-meta", check_hash=True)
    # All whole samples that found room; one of both channels takes 8 bytes.
    assert recording.n_samples == 150_001 // 8
    assert recording.read().tobytes() == x[:, : recording.n_samples].tobytes()
    assert recording.complete is False


def test_too_little_room_is_told_before_anything_is_written(run_graph, tmp_path):
    tb = Flowgraph(tmp_path, signal(1), min_free_bytes=10**18)
    with pytest.raises(StorageError, match="free"):
        run_graph(tb, (tb.sink,))
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_made_reaches_the_user(run_graph, tmp_path):
    (tmp_path / "file").write_text("x")
    tb = Flowgraph(tmp_path / "file" / "sub", signal(1))
    with pytest.raises(StorageError, match="sub"):
        run_graph(tb, (tb.sink,))


def test_recording_is_closed_when_the_run_is_stopped(run_graph, tmp_path):
    x = signal(1)
    tb = Flowgraph(tmp_path, x)
    run_graph(tb, (tb.sink,), until=lambda: tb.sink.writer is not None and tb.sink.writer.n_samples > 0)
    assert not list(tmp_path.glob(".*"))
    kept = Recording.open(tmp_path / "rec.sigmf-meta").read()
    assert kept.tobytes() == x[:, : kept.shape[1]].tobytes()


def test_built_in_a_function_it_survives_garbage_collection(run_graph, tmp_path):
    def build() -> Flowgraph:
        return Flowgraph(tmp_path, signal(1))

    tb = build()
    gc.collect()
    run_graph(tb, (tb.sink,))
    assert Recording.open(tmp_path / "rec.sigmf-meta").n_samples == N


class Shorts(gr.top_block):
    """Pairs of shorts into the sink, as a radio delivers them."""

    def __init__(self, folder, raw: np.ndarray, tags=(), **options) -> None:
        gr.top_block.__init__(self, "test")
        self.sink = SigmfSink(folder, "rec", len(raw), RATE_HZ, stream="short", min_free_bytes=0, **options)
        self.sources = []
        for port, row in enumerate(raw):
            tags_of_port = list(tags) if port == 0 else []
            self.sources.append(blocks.vector_source_s(row.reshape(-1).tolist(), False, 2, tags_of_port))
            self.connect(self.sources[-1], (self.sink, port))


def test_shorts_are_written_as_they_come_with_their_gaps(run_graph, tmp_path, make_tag):
    raw = np.random.default_rng(4).integers(-32768, 32768, (3, 20_000, 2), dtype=np.int16)
    places = [(0, 0), (700, 11), (12_345, 11 + 99)]
    tb = Shorts(tmp_path, raw, [make_tag(at, "rx_time", time_value(at + lost, RATE_HZ)) for at, lost in places])
    tb.sink.closing_fields = lambda: {"radio_counts": {"overflows": 2}}
    tb.sink.gather_s = 1e-3
    run_graph(tb, (tb.sink,))
    stored = np.fromfile(tmp_path / "rec.sigmf-data", "<i2").reshape(-1, 3, 2)
    assert np.array_equal(stored, raw.transpose(1, 0, 2))
    recording = Recording.open(tmp_path / "rec", check_hash=True)
    assert [(s.sample_start, s.global_index) for s in recording.segments] == [(at, at + lost) for at, lost in places]
    assert recording.global_fields["radio_counts"] == {"overflows": 2}


def test_shorts_need_a_file_of_shorts():
    with pytest.raises(ValueError, match="ci16_le"):
        SigmfSink("x", "rec", stream="short", datatype="cf32_le")


def test_what_is_sent_is_said_of_the_whole_recording(run_graph, tmp_path):
    tb = Flowgraph(tmp_path, signal(1))
    tb.sink.signal = {"type": "digital", "mod_class": "psk", "order": 2}
    run_graph(tb, (tb.sink,))
    recording = Recording.open(tmp_path / "rec")
    (annotation,) = recording.annotations
    assert (annotation.sample_start, annotation.sample_count) == (0, recording.n_samples)
    assert annotation.raw["signal:detail"]["order"] == 2
    assert verify(tmp_path) == []


class Frames(gr.top_block):
    """Frames through a synchroniser and beside it into a sink that hears its messages."""

    def __init__(self, folder, samples: np.ndarray, frame_format: FrameFormat, tags=()) -> None:
        gr.top_block.__init__(self, "test")
        size = frame_format.frame_samples
        self.source = blocks.vector_source_c(samples.tolist(), False, 1, list(tags))
        self.sync = FrameSynchroniser(frame_format, 1, 1e3)
        self.sink = SigmfSink(folder, "rec", 1, RATE_HZ, datatype="cf32_le", frame_samples=size, min_free_bytes=0)
        self.end = blocks.null_sink(gr.sizeof_gr_complex)
        self.connect(self.source, self.sync, self.end)
        self.connect(self.source, self.sink)
        self.msg_connect((self.sync, "frames"), (self.sink, "frames"))


@pytest.fixture(scope="module")
def frames() -> tuple[FrameFormat, np.ndarray]:
    """Frame format, and fifty frames in faint noise; complex64, (samples,)."""
    fmt = load_scenario("lab", ["frame.frame_samples=5120"]).frame
    rng = np.random.default_rng(8)
    stream = rng.standard_normal((50, fmt.frame_samples, 2), np.float32).view(np.complex64)[..., 0] / 50
    for number, frame in enumerate(stream):
        frame[: fmt.beacon_samples] += beacon(fmt, number)
    return fmt, stream.reshape(-1)


def test_losses_without_time_are_found_by_the_frames_while_recording(run_graph, tmp_path, frames):
    fmt, stream = frames
    size = fmt.frame_samples
    cuts = [(10 * size + 2000, 123), (20 * size + 3000, 3 * size + 17)]
    samples = np.delete(stream, np.concatenate([np.arange(at, at + count) for at, count in cuts]))
    tb = Frames(tmp_path, samples, fmt)
    run_graph(tb, (tb.sink, tb.sync))
    recording = Recording.open(tmp_path / "rec", check_hash=True)
    gaps = [a for a in recording.annotations if a.fields.get("kind") == "gap"]
    told = [(a.fields["lost_samples"], a.sample_start, a.sample_start + a.sample_count) for a in gaps]
    segments = [(s.sample_start, s.global_index) for s in recording.segments]
    # The timing of a frame errs by a sample; the first frame after the small loss came before it was due.
    near = functools.partial(np.testing.assert_allclose, rtol=0, atol=2)
    near(told, [(123, 10 * size, 12 * size - 123), (3 * size + 17, 20 * size - 123, 24 * size - 123 - 3 * size - 17)])
    near(segments, [(0, 0), (12 * size - 123, 12 * size), (21 * size - 140, 24 * size)])
    assert [f for f in verify(tmp_path) if f.severity != "info"] == []


def test_none_are_found_where_none_are_or_where_time_tells(run_graph, tmp_path, make_tag, frames):
    fmt, stream = frames
    tb = Frames(tmp_path / "clean", stream, fmt)
    run_graph(tb, (tb.sink, tb.sync))
    assert len(Recording.open(tmp_path / "clean").segments) == 1
    samples = np.delete(stream, np.arange(50_000, 50_500))
    tags = [make_tag(at, "rx_time", time_value(at + lost, RATE_HZ)) for at, lost in ((0, 0), (50_000, 500))]
    tb = Frames(tmp_path / "timed", samples, fmt, tags)
    run_graph(tb, (tb.sink, tb.sync))
    timed = Recording.open(tmp_path / "timed")
    assert [(s.sample_start, s.global_index) for s in timed.segments] == [(0, 0), (50_000, 50_500)]

"""What is written is what is read: samples bit by bit, gaps, times, fields."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import sigmf
from hypothesis import given, settings
from hypothesis import strategies as st
from semair.captures.devicetime import DeviceTime
from semair.captures.reader import Recording
from semair.captures.verify import verify
from semair.captures.writer import RecordingWriter
from semair.errors import RecordingError


def bits(samples: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(samples).view(np.uint32)


def open_writer(folder, n_channels=2, datatype="ci16_le", **options):
    options = {"sample_rate_hz": 1e6, "min_free_bytes": 0} | options
    return RecordingWriter(folder, "rec", n_channels=n_channels, datatype=datatype, **options)


@st.composite
def sessions(draw):
    """A recording session: pieces of samples, and what was lost before each of them."""
    n_channels = draw(st.integers(1, 5))
    pieces = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60)), min_size=1, max_size=6))
    return n_channels, pieces, draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 400))


@settings(max_examples=40, deadline=None)
@given(session=sessions(), datatype=st.sampled_from(["ci16_le", "cf32_le"]))
def test_round_trip_is_exact_for_any_pieces_gaps_and_chunks(session, datatype):
    n_channels, pieces, seed, chunk_bytes = session
    rng = np.random.default_rng(seed)
    written, expected_segments, lost_total = [], [(0, 0)], 0
    with tempfile.TemporaryDirectory() as folder:
        writer = open_writer(folder, n_channels, datatype, chunk_bytes=chunk_bytes)
        for lost, count in pieces:
            index = sum(piece.shape[1] for piece in written)
            if lost:
                writer.gap(lost)
                lost_total += lost
                if expected_segments[-1][0] == index:
                    expected_segments.pop()
                expected_segments.append((index, index + lost_total))
            # Short of the ends of the range, which count as clipped.
            raw = rng.integers(-32767, 32767, size=(n_channels, 2 * count))
            samples = (raw.astype(np.float32) / np.float32(32768)).view(np.complex64)
            if datatype == "cf32_le":
                # Any finite bit pattern must pass, negative zeros and denormal numbers too.
                words = rng.integers(0, 2**32, size=(n_channels, 2 * count), dtype=np.uint32)
                floats = words.view(np.float32)
                floats[~np.isfinite(floats)] = -0.0
                samples = floats.view(np.complex64)
            assert writer.write(samples) == index
            written.append(samples)
        everything = np.concatenate(written, axis=1)
        n_samples = everything.shape[1]
        if n_samples == 0:
            with pytest.raises(RecordingError, match="no samples"):
                writer.close()
            assert list(Path(folder).iterdir()) == []
            return
        writer.close()
        recording = Recording.open(folder, check_hash=True)
        assert recording.n_samples == n_samples
        assert recording.n_channels == n_channels
        assert np.array_equal(bits(recording.read()), bits(everything))
        start = int(rng.integers(0, n_samples + 1))
        count = int(rng.integers(0, n_samples - start + 1))
        part = recording.read(start, count)
        assert part.dtype == np.complex64
        assert np.array_equal(bits(part), bits(everything[:, start : start + count]))
        stored = [pair for pair in expected_segments if pair[0] < n_samples]
        assert [(s.sample_start, s.global_index) for s in recording.segments] == stored
        gaps = [a for a in recording.annotations if a.label == "gap"]
        assert sum(gap.fields["lost_samples"] for gap in gaps) == lost_total
        assert recording.global_fields["lost_samples"] == lost_total
        assert [f for f in verify(folder) if f.severity != "info"] == []
        assert {p.name for p in Path(folder).iterdir()} == {"rec.sigmf-data", "rec.sigmf-meta"}


def test_the_file_holds_what_the_specification_says(tmp_path, grid_samples):
    """Interleaved frame by frame, little endian, I before Q; hash over the whole file."""
    samples = grid_samples(3, 50)
    with open_writer(tmp_path, 3) as writer:
        writer.write(samples)
    data = (tmp_path / "rec.sigmf-data").read_bytes()
    raw = np.frombuffer(data, dtype="<i2").reshape(50, 3, 2)
    expected = np.stack([samples.real.T, samples.imag.T], axis=-1) * 32768
    assert np.array_equal(raw, expected)
    meta = json.loads((tmp_path / "rec.sigmf-meta").read_text())
    assert meta["global"]["core:sha512"] == hashlib.sha512(data).hexdigest()
    assert meta["global"]["core:num_channels"] == 3
    assert "core:offset" not in meta["global"]
    assert {"name": "semair", "version": "1.1.0", "optional": True} in meta["global"]["core:extensions"]


@pytest.mark.parametrize("datatype", ["ci16_le", "cf32_le"])
def test_sigmf_python_reads_the_same_samples_and_finds_nothing_wrong(tmp_path, grid_samples, datatype):
    samples = grid_samples(4, 300)
    with open_writer(tmp_path, 4, datatype, frequency_hz=2.45e9, global_fields={"path": "cable"}) as writer:
        writer.write(samples[:, :100])
        writer.gap(20)
        writer.write(samples[:, 100:])
        writer.annotate(10, 40, "frame", kind="frame", frame_seq=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = sigmf.fromfile(tmp_path / "rec.sigmf-meta")
        other.validate()
    assert np.array_equal(other.read_samples().T, samples)
    assert np.array_equal(other.read_samples_in_capture(1).T, samples[:, 100:])
    assert other.declared_version == sigmf.__specification__


def test_fixed_point_rounds_to_nearest_and_counts_what_it_limits(tmp_path):
    step = np.float32(1 / 32768)
    values = np.array([0.4, 0.6, -0.4, -0.6, 1.5, 2.5, 32767.4, 32768.0, -32768.0, -32769.0, 1e35])
    samples = np.zeros((2, len(values)), dtype=np.complex64)
    samples[0].real = values.astype(np.float32) * step
    with open_writer(tmp_path) as writer:
        writer.write(samples)
        assert writer.clipped_samples.tolist() == [5, 0]  # the ends of the range count
    recording = Recording.open(tmp_path)
    expected = [0, 1, 0, -1, 2, 2, 32767, 32767, -32768, -32768, 32767]
    assert (recording.read()[0].real * 32768).tolist() == expected
    assert recording.global_fields["clipped_samples"] == [5, 0]
    assert recording.segments[0].fields["clipped_fraction"] == pytest.approx([5 / len(values), 0])


def test_clipping_is_told_per_segment(tmp_path):
    loud, quiet = np.full((1, 10), 2, np.complex64), np.zeros((1, 30), np.complex64)
    with open_writer(tmp_path, 1) as writer:
        writer.write(quiet)
        writer.gap(5)
        writer.write(loud)
        writer.write(quiet)
    fractions = [s.fields["clipped_fraction"] for s in Recording.open(tmp_path).segments]
    assert fractions == [[0.0], [0.25]]
    assert any(f.field.endswith("clipped_fraction") and f.severity == "warning" for f in verify(tmp_path))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, complex(0, np.nan)])
@pytest.mark.parametrize("datatype", ["ci16_le", "cf32_le"])
def test_samples_that_are_not_finite_are_refused(tmp_path, bad, datatype, grid_samples):
    good = grid_samples(3, 40)
    spoilt = good.copy()
    spoilt[2, 17] = bad
    spoilt[0, 30] = bad
    with open_writer(tmp_path, 3, datatype) as writer:
        writer.write(good)
        with pytest.raises(RecordingError, match=r"channel 2, sample 17 .*57 of the recording"):
            writer.write(spoilt)
        writer.write(good)
    assert np.array_equal(Recording.open(tmp_path).read(), np.concatenate([good, good], axis=1))


def test_all_fields_are_repeated_in_every_segment_and_time_runs_on_over_gaps(tmp_path):
    zeros = np.zeros((2, 1000), np.complex64)
    start = DeviceTime(1_700_000_000, 199_999_999, 200_000_000)
    with open_writer(
        tmp_path,
        sample_rate_hz=20e6,
        frequency_hz=3.5e9,
        device_time=start,
        capture_fields={
            "rx_gain_db": np.array([30.0, 31.5]),
            "agc": False,
            "actual": {"rate": np.float64(2e7)},
        },
    ) as writer:
        writer.write(zeros)
        writer.gap(500)
        writer.write(zeros)
        given_time = DeviceTime(1_700_000_001, 7, 200_000_000)
        writer.gap(3, given_time)
        writer.write(zeros)
    recording = Recording.open(tmp_path)
    for segment in recording.segments:
        assert segment.frequency_hz == 3.5e9
        assert segment.fields["rx_gain_db"] == [30.0, 31.5]
        assert segment.fields["agc"] is False
        assert segment.fields["actual"] == {"rate": 20e6}
    # 1500 samples of 10 ticks each after the start, which is one tick before a full second.
    expected = [start, DeviceTime(1_700_000_001, 14_999, 200_000_000), given_time]
    assert [s.device_time for s in recording.segments] == expected
    assert [s.sample_count for s in recording.segments] == [1000, 1000, 1000]
    # The time given for the last segment contradicts the samples counted.
    assert [f.severity for f in verify(tmp_path) if "device_time" in f.field] == ["warning"]


def test_a_full_queue_in_drop_mode_counts_and_marks_what_it_leaves_out(tmp_path, monkeypatch, grid_samples):
    """The disk is made to stand still until several writes have been turned away."""
    go_on = threading.Event()
    reached = threading.Event()
    real_write = os.write

    def slow_write(fd, data):
        if threading.current_thread().name.startswith("recording"):
            reached.set()
            go_on.wait(30)
        return real_write(fd, data)

    samples = grid_samples(2, 600)
    start = DeviceTime(10, 0, 1_000_000)
    writer = open_writer(tmp_path, on_full="drop", queue_bytes=2400, chunk_bytes=1 << 20, device_time=start)
    monkeypatch.setattr(os, "write", slow_write)
    assert writer.write(samples[:, :100]) == 0
    assert reached.wait(30)
    assert writer.write(samples[:, 100:300]) == 100  # fills the queue: 300 frames of 8 bytes
    assert writer.write(samples[:, 300:400]) is None
    assert writer.write(samples[:, 400:450]) is None
    assert writer.dropped_samples == 150
    go_on.set()
    partial = tmp_path / ".rec.sigmf-data.partial"
    while partial.stat().st_size < 300 * 8:  # once these are written the queue is empty
        time.sleep(0.001)
    assert writer.write(samples[:, 450:]) == 300
    writer.close()
    recording = Recording.open(tmp_path)
    assert np.array_equal(recording.read(), np.delete(samples, np.s_[300:450], axis=1))
    assert [(s.sample_start, s.global_index) for s in recording.segments] == [(0, 0), (300, 450)]
    assert recording.segments[1].device_time == DeviceTime(10, 450, 1_000_000)
    (gap,) = recording.annotations
    assert (gap.sample_start, gap.fields["lost_samples"], gap.fields["cause"]) == (300, 150, "writer")
    assert recording.global_fields["dropped_samples"] == 150


def test_a_small_queue_in_block_mode_loses_nothing(tmp_path, grid_samples):
    samples = grid_samples(2, 5000)
    with open_writer(tmp_path, queue_bytes=64, chunk_bytes=500) as writer:
        for start in range(0, 5000, 7):
            writer.write(samples[:, start : start + 7])
    recording = Recording.open(tmp_path, check_hash=True)
    assert np.array_equal(recording.read(), samples)
    assert recording.global_fields["dropped_samples"] == 0


def test_a_gap_at_the_end_is_not_hidden(tmp_path, grid_samples):
    with open_writer(tmp_path) as writer:
        writer.write(grid_samples(2, 10))
        writer.gap(99)
    recording = Recording.open(tmp_path)
    assert len(recording.segments) == 1
    assert recording.annotations[0].sample_start == 10
    assert recording.global_fields["lost_samples"] == 99
    assert {f.severity for f in verify(tmp_path)} == {"info"}


def test_annotations_keep_their_fields_and_are_sorted(tmp_path, grid_samples):
    with open_writer(tmp_path) as writer:
        writer.write(grid_samples(2, 100))
        writer.annotate(50, 50, "late", "second", kind="frame", frame_seq=2, snr_db=12.5, snr_method="pilots")
        writer.annotate(0, 20, "early", kind="sync", user=1)
    early, late = Recording.open(tmp_path).annotations
    assert (early.label, early.sample_start, early.sample_count, early.comment) == ("early", 0, 20, "")
    assert early.fields == {"kind": "sync", "user": 1}
    assert late.comment == "second"
    assert late.fields["snr_db"] == 12.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: w.annotate(0, 11, "x"), "annotate after writing"),
        (lambda w: w.annotate(-1, 2, "x"), "covers samples -1"),
        (lambda w: w.annotate(0, 1, "x" * 21), "allows 20"),
        (lambda w: w.annotate(0, 1, "x", colour="red"), "colour.*known here.*frame_seq"),
        (lambda w: w.annotate(0, 1, "x", snr_db=3.0), "snr_method"),
        (lambda w: w.annotate(0, 1, "x", snr_db=float("nan"), snr_method="m"), "finite"),
        (lambda w: w.gap(0), "at least 1"),
        (lambda w: w.gap(-4), "stepped"),
    ],
)
def test_calls_that_cannot_be_stored_say_so_and_do_no_harm(tmp_path, grid_samples, call, message):
    samples = grid_samples(2, 10)
    with open_writer(tmp_path) as writer:
        writer.write(samples)
        with pytest.raises(RecordingError, match=message):
            call(writer)
    assert np.array_equal(Recording.open(tmp_path).read(), samples)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_channels": 0}, "n_channels"),
        ({"datatype": "ci8"}, "ci16_le or cf32_le"),
        ({"sample_rate_hz": float("nan")}, "sample_rate_hz"),
        ({"sample_rate_hz": -1.0}, "sample_rate_hz"),
        ({"sample_rate_hz": 2e12}, "core:sample_rate"),
        ({"frequency_hz": float("inf")}, "frequency_hz"),
        ({"global_fields": {"path": "moon"}}, "semair:path"),
        ({"global_fields": {"nonsense": 1}}, "nonsense.*known here"),
        ({"capture_fields": {"rx_gain_db": [1.0, 2.0, 3.0]}}, "one per channel, 2"),
        ({"capture_fields": {"phase_offset_deg": [1.0, 2.0]}}, "phase_calibration"),
    ],
)
def test_arguments_that_cannot_be_stored_are_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(RecordingError, match=message):
        open_writer(tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".hidden", "a.sigmf-meta", "a\nb", "a:b"])
def test_names_that_leave_the_folder_or_confuse_are_refused(tmp_path, name):
    with pytest.raises(RecordingError, match="name"):
        RecordingWriter(tmp_path, name, n_channels=1, datatype="ci16_le", sample_rate_hz=1.0)


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros((3, 5), np.complex64),
        np.zeros((2, 5), np.complex128),
        np.zeros(5, np.complex64),
        np.zeros((2, 5)),
    ],
)
def test_arrays_of_another_shape_or_kind_are_refused(tmp_path, samples):
    with open_writer(tmp_path) as writer:
        with pytest.raises(ValueError, match=r"complex64 \(channels=2, samples\)"):
            writer.write(samples)
        writer.write(np.zeros((2, 1), np.complex64))


def test_an_existing_recording_is_replaced_only_when_told_to(tmp_path, grid_samples):
    first, second = grid_samples(2, 20), grid_samples(2, 30)
    with open_writer(tmp_path) as writer:
        writer.write(first)
    with pytest.raises(RecordingError, match="overwrite=True"):
        open_writer(tmp_path)
    assert np.array_equal(Recording.open(tmp_path, check_hash=True).read(), first)
    with open_writer(tmp_path, overwrite=True) as writer:
        writer.write(second)
        # Until the end the old recording stays whole.
        assert np.array_equal(Recording.open(tmp_path, check_hash=True).read(), first)
    assert np.array_equal(Recording.open(tmp_path, check_hash=True).read(), second)


def test_one_name_is_written_by_one_writer_at_a_time(tmp_path):
    with open_writer(tmp_path) as writer:
        for overwrite in (False, True):
            with pytest.raises(RecordingError, match=r"being (made|written)"):
                open_writer(tmp_path, overwrite=overwrite)
        writer.write(np.zeros((2, 3), np.complex64))
    assert Recording.open(tmp_path).n_samples == 3


def test_an_exception_in_the_block_leaves_a_valid_recording_marked_incomplete(tmp_path, grid_samples):
    samples = grid_samples(2, 25)

    def session():
        with open_writer(tmp_path) as writer:
            writer.write(samples)
            raise KeyError("antenna fell off")

    with pytest.raises(KeyError):
        session()
    recording = Recording.open(tmp_path, check_hash=True)
    assert recording.complete is False
    assert "antenna fell off" in recording.global_fields["incomplete_reason"]
    assert np.array_equal(recording.read(), samples)
    assert [f.severity for f in verify(tmp_path)] == ["warning"]


def test_a_closed_writer_takes_nothing_more(tmp_path):
    with open_writer(tmp_path) as writer:
        writer.write(np.zeros((2, 3), np.complex64))
    writer.close()
    with pytest.raises(RecordingError, match="closed"):
        writer.write(np.zeros((2, 3), np.complex64))


def test_reading_beyond_either_end_is_refused(tmp_path, record, grid_samples):
    recording = Recording.open(record(grid_samples(2, 10)))
    for start, count in ((0, 11), (10, 1), (-1, 1), (3, -1), (11, None)):
        with pytest.raises(RecordingError, match="it has 10"):
            recording.read(start, count)
    assert recording.read(10, 0).shape == (2, 0)


@pytest.mark.parametrize("ending", ["rec.sigmf-meta", "rec.sigmf-data", "rec", ""])
def test_every_way_to_name_a_recording_opens_it(tmp_path, record, grid_samples, ending):
    record(grid_samples(1, 4))
    assert Recording.open(tmp_path / ending).name == "rec"
    assert Recording.open(str(tmp_path / ending)).n_samples == 4


def test_a_folder_must_hold_exactly_one_recording(tmp_path, record, grid_samples):
    with pytest.raises(RecordingError, match="no recording"):
        Recording.open(tmp_path)
    record(grid_samples(1, 4), "one")
    record(grid_samples(1, 4), "two")
    with pytest.raises(RecordingError, match="one, two"):
        Recording.open(tmp_path)
    with pytest.raises(RecordingError, match=r"three\.sigmf-meta is missing"):
        Recording.open(tmp_path / "three")

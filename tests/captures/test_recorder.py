"""What the recorder takes and how it writes: integers of radios, any alignment, fields of SigMF extensions."""

from __future__ import annotations

import threading
import tracemalloc
import warnings

import numpy as np
import pytest
import sigmf
from semair.captures.extensions import declarations, spatial_fields, standard_problems
from semair.captures.meta import load_json
from semair.captures.reader import Recording
from semair.captures.storage import DirectFile
from semair.captures.verify import verify
from semair.captures.writer import RecordingWriter
from semair.errors import RecordingError


def open_writer(folder, n_channels, datatype="ci16_le", **options):
    options = {"sample_rate_hz": 1e6, "min_free_bytes": 0, **options}
    return RecordingWriter(folder, "rec", n_channels=n_channels, datatype=datatype, **options)


@pytest.mark.parametrize("n_channels", [1, 3, 4, 9])
@pytest.mark.parametrize("blocks", [(20_000, 1, 4095, 70_000), (100_000,)])
def test_integers_of_a_radio_go_into_the_file_as_they_are(tmp_path, rng, n_channels, blocks):
    """Larger than the pieces that are converted, the blocks that are written and the pages of the disk."""
    raw = rng.integers(-32768, 32768, (n_channels, sum(blocks), 2), dtype=np.int16)
    with open_writer(tmp_path, n_channels) as writer:
        at = 0
        for count in blocks:
            rows = [np.ascontiguousarray(row[at : at + count]) for row in raw]
            assert writer.write(rows) == at
            at += count
        full = ((raw == 32767) | (raw == -32768)).any(axis=2).sum(axis=1)
        assert writer.clipped_samples.tolist() == full.tolist()
    stored = np.fromfile(tmp_path / "rec.sigmf-data", "<i2").reshape(-1, n_channels, 2)
    assert np.array_equal(stored, raw.transpose(1, 0, 2))
    assert Recording.open(tmp_path).global_fields["clipped_samples"] == full.tolist()


@pytest.mark.parametrize("datatype", ["ci16_le", "cf32_le"])
def test_complex_samples_of_any_number_of_channels(tmp_path, grid_samples, datatype):
    """Five channels: a part of the compiled copies takes four at a time. Gaps shift all that follows in the pages."""
    samples = grid_samples(5, 60_001)
    with open_writer(tmp_path, 5, datatype) as writer:
        writer.write(samples[:, :17])
        writer.gap(3)
        writer.write(samples[:, 17:40_000])
        writer.gap(4)
        writer.write(samples[:, 40_000:])
    recording = Recording.open(tmp_path, check_hash=True)
    assert np.array_equal(recording.read(), samples)


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros((2, 5, 3), np.int16),
        np.zeros((2, 5), np.int16),
        np.zeros((3, 5, 2), np.int16),
        [np.zeros((5, 2), np.int16), np.zeros((6, 2), np.int16)],
        [np.zeros(5, np.complex64), np.zeros(5, np.complex128)],
        np.zeros(5, np.complex64),
    ],
)
def test_other_shapes_are_refused(tmp_path, samples):
    with open_writer(tmp_path, 2) as writer:
        writer.write(np.zeros((2, 1), np.complex64))
        with pytest.raises(ValueError, match=r"int16 \(channels=2, samples, 2\)"):
            writer.write(samples)


def test_integers_do_not_pass_for_floats(tmp_path):
    with open_writer(tmp_path, 1, "cf32_le") as writer:
        writer.write(np.zeros((1, 1), np.complex64))
        with pytest.raises(ValueError, match="complex64"):
            writer.write(np.zeros((1, 5, 2), np.int16))


@pytest.mark.parametrize("refuses", [False, True])
def test_writing_past_the_page_cache_changes_no_byte(tmp_path, rng, monkeypatch, refuses):
    """Pieces of all sizes at the addresses that their places ask for; also where the file system takes part only."""
    if refuses:
        monkeypatch.setattr("semair.captures.storage.os.O_DIRECT", 1 << 30)
    content = rng.integers(0, 256, 5_000_000, dtype=np.uint8)
    memory = np.empty(len(content) + 4096, np.uint8)
    aligned = memory[-memory.ctypes.data % 4096 :][: len(content)]
    aligned[:] = content
    with (tmp_path / "x").open("wb", buffering=0) as file:
        direct = DirectFile(file.fileno())
        at = 0
        while at < len(content):
            size = int(rng.choice([1, 700, 4096, 300_000, 1 << 20]))
            direct.write(aligned[at : at + size].data)
            at = min(at + size, len(content))
            assert direct.position == at
    assert (tmp_path / "x").read_bytes() == content.tobytes()


def test_memory_stays_within_the_queue(tmp_path, rng):
    """30 MB pass through 2 MB; tracemalloc sees the arrays of numpy."""
    queue_bytes = 2 << 20
    piece = rng.integers(-99, 99, (2, 50_000, 2), dtype=np.int16)
    with open_writer(tmp_path, 2, queue_bytes=queue_bytes, chunk_bytes=1 << 19) as writer:
        writer.write(piece)
        tracemalloc.start()
        for _ in range(75):
            writer.write(piece)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 1.5 * queue_bytes
    assert Recording.open(tmp_path).n_samples == 76 * 50_000


def test_several_threads_may_write_and_annotate(tmp_path):
    with open_writer(tmp_path, 1, queue_bytes=4096) as writer:

        def work(value: int) -> None:
            for _ in range(50):
                at = writer.write(np.full((1, 100, 2), value, np.int16))
                writer.annotate(at, 100, str(value))

        threads = [threading.Thread(target=work, args=(value,)) for value in (1, 2, 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    recording = Recording.open(tmp_path, check_hash=True)
    stored = recording.read()[0].real * 32768
    assert len(recording.annotations) == 150
    for annotation in recording.annotations:
        stretch = stored[annotation.sample_start : annotation.sample_start + annotation.sample_count]
        assert set(stretch) == {float(annotation.label)}


STANDARD = {
    "global": {"antenna:model": "L-com HG3512UP-NF", "antenna:gain": 12.0, **spatial_fields(2)["global"]},
    "captures": {
        **spatial_fields(2, [[0, 0, 0], [0, 0.5, 0]])["captures"],
        "capture_details:acq_scale_factor": 1.0,
        "capture_details:attenuation": 0.0,
        "capture_details:acquisition_bandwidth": 8e5,
        "capture_details:start_capture": "2026-01-02T03:04:05Z",
        "capture_details:stop_capture": "2026-01-02T03:04:06Z",
        "capture_details:source_file": "rec.sigmf-data",
    },
}


def test_fields_of_sigmf_extensions_are_declared_and_read_by_others(tmp_path, grid_samples):
    signal = {"signal:detail": {"type": "digital", "mod_class": "psk", "order": 4}, "signal:emitter": {"seid": 3}}
    with open_writer(tmp_path, 2, standard_fields=STANDARD) as writer:
        writer.write(grid_samples(2, 50))
        writer.annotate(3, 9, "burst", standard_fields=signal, user=3)
        writer.close({"radio_counts": {"overflows": 2}})
    meta = load_json(writer.path)
    names = {(e["name"], e["version"]) for e in meta["global"]["core:extensions"]}
    versions = {("antenna", "1.0.0"), ("capture_details", "1.0.0"), ("signal", "1.0.0"), ("spatial", "1.1.0")}
    assert names == versions | {("semair", "1.1.0")}
    assert meta["annotations"][0]["signal:emitter"] == {"seid": 3}
    assert meta["captures"][0]["spatial:element_geometry"] == [{"point": [0.0, 0.0, 0.0]}, {"point": [0.0, 0.5, 0.0]}]
    assert meta["global"]["semair:radio_counts"] == {"overflows": 2}
    assert verify(tmp_path) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = sigmf.fromfile(writer.path)
        other.validate()
    assert other.get_global_field("antenna:model") == "L-com HG3512UP-NF"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"global": {"antenna:gain": 3}}, "antenna:model"),
        ({"global": {"spatial:num_elements": 4}}, "spatial:channel_index"),
        ({"global": {"antenna:modell": "x", "antenna:model": "x"}}, "antenna:modell"),
        ({"captures": {"capture_details:gain": 3.0}}, "acq_scale_factor"),
        ({"captures": {"antenna:model": "x"}}, "antenna:model"),
        ({"captures": {"spatial:element_geometry": [{"point": [1, 2]}]}}, "element_geometry"),
        ({"global": {"wifi:channel": 3}}, "wifi:channel"),
        ({"header": {}}, "header"),
    ],
)
def test_fields_that_an_extension_does_not_allow_are_refused(tmp_path, fields, message):
    with pytest.raises(RecordingError, match=message):
        open_writer(tmp_path, 2, standard_fields=fields)
    assert list(tmp_path.iterdir()) == []


def test_an_annotation_takes_only_fields_of_its_kind(tmp_path):
    with open_writer(tmp_path, 1) as writer:
        writer.write(np.zeros((1, 9), np.complex64))
        with pytest.raises(RecordingError, match="mod_class"):
            writer.annotate(0, 9, "x", standard_fields={"signal:detail": {"mod_class": "chirp"}})


def test_the_extensions_of_others_are_checked_as_a_warning(tmp_path):
    meta = {"global": {"antenna:gain": 0}, "captures": [{}], "annotations": []}
    assert [field for field, _ in standard_problems(meta)] == ["global"]
    assert [e["name"] for e in declarations(meta)] == ["semair", "antenna"]


def test_room_tells_how_long_the_disk_lasts(tmp_path):
    with open_writer(tmp_path, 2) as writer:
        writer.write(np.zeros((2, 9), np.complex64))
        free, seconds = writer.room()
        assert seconds == pytest.approx(free / 8e6)
        assert free > 0

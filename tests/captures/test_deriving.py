"""Parts, channels and copies of recordings: the samples that were asked for, described as what they are."""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import sigmf
from hypothesis import given, settings
from hypothesis import strategies as st
from semair.captures.archive import archive
from semair.captures.collection import open_collection, write_collection
from semair.captures.derive import later_date
from semair.captures.devicetime import DeviceTime
from semair.captures.export import per_channel, to_hdf5, to_numpy
from semair.captures.importing import import_file
from semair.captures.labels import add_label, remove_label
from semair.captures.reader import Recording
from semair.captures.trim import place_in, trim
from semair.captures.verify import verify
from semair.captures.writer import RecordingWriter
from semair.errors import RecordingError

RATE_HZ = 1e6


@pytest.fixture
def gapped(tmp_path: Path, grid_samples) -> Recording:
    """Two channels of 3 x 100 samples with gaps of 7 and 5 between, at device times."""
    start = DeviceTime(10, 0, 1_000_000)
    with RecordingWriter(
        tmp_path / "run", "rec", n_channels=2, datatype="ci16_le", sample_rate_hz=RATE_HZ, frequency_hz=2e9,
        device_time=start, min_free_bytes=0, global_fields={"antennas": ["north", "south"]},
        capture_fields={"rx_gain_db": [10.0, 20.0], "requested": {"rx_gain_db": [11, 21], "frequency_hz": 2e9}},
    ) as writer:  # fmt: skip
        writer.write(grid_samples(2, 100))
        writer.gap(7)
        writer.write(grid_samples(2, 100))
        writer.gap(5)
        writer.write(grid_samples(2, 100))
        writer.annotate(40, 30, "first")
        writer.annotate(150, 100, "second", frame_seq=3)
        writer.annotate(210, 1, "south only", channel=1)
    return Recording.open(writer.path)


def whole(recording: Recording) -> Recording:
    """A result that this project's check and the library's find nothing wrong with."""
    assert [f for f in verify(recording.meta_path) if f.severity != "info"] == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sigmf.fromfile(recording.meta_path).validate() is None
    return recording


@settings(max_examples=40)
@given(bounds=st.tuples(st.integers(0, 300), st.integers(0, 300)))
def test_a_part_holds_what_was_there_with_times_and_gaps_of_its_own(tmp_path_factory, bounds):
    folder = tmp_path_factory.mktemp("trim")
    source = _gapped_once(folder)
    start, stop = min(bounds), max(bounds)
    if start == stop:
        with pytest.raises(RecordingError, match="at least one sample"):
            trim(source, start, stop, folder=folder)
        return
    part = trim(source, start, stop, folder=folder, name="part")
    assert np.array_equal(part.read(), source.read(start, stop - start))

    def moments(recording: Recording, first: int) -> list[tuple[int, Fraction]]:
        """Global index and device time of every sample from a place on."""
        found = []
        for s in recording.segments:
            assert s.global_index is not None and s.device_time is not None
            for k in range(s.sample_count):
                found.append((s.global_index + k, s.device_time.plus(k, RATE_HZ).seconds))
        return found[first:]

    assert moments(part, 0) == moments(source, start)[: stop - start]
    kinds = [a for a in part.annotations if a.fields.get("kind") == "gap"]
    assert [a.sample_start + start for a in kinds] == [g for g in (100, 200) if start < g < stop]
    assert part.global_fields["lost_samples"] == sum(n for g, n in ((100, 7), (200, 5)) if start < g < stop)
    for label, first, last in (("first", 40, 70), ("second", 150, 250)):
        kept = [(a.sample_start + start, a.sample_count) for a in part.annotations if a.label == label]
        overlap = min(last, stop) - max(first, start)
        assert kept == ([(max(first, start), overlap)] if overlap > 0 else [])
    assert [f for f in verify(part.meta_path) if f.severity != "info"] == []


_kept: dict[str, dict[str, bytes]] = {}


def _gapped_once(folder: Path) -> Recording:
    """The recording of `gapped`, written once and copied for every example."""
    if not _kept:
        scratch = folder / "scratch"
        samples = np.random.default_rng(3).integers(-9, 9, (2, 300, 2)).astype(np.float32) / 32768
        values = samples.reshape(2, -1).view(np.complex64)
        with RecordingWriter(
            scratch, "rec", n_channels=2, datatype="ci16_le", sample_rate_hz=RATE_HZ, min_free_bytes=0,
            device_time=DeviceTime(10, 0, 1_000_000),
        ) as writer:  # fmt: skip
            writer.write(np.ascontiguousarray(values[:, :100]))
            writer.gap(7)
            writer.write(np.ascontiguousarray(values[:, 100:200]))
            writer.gap(5)
            writer.write(np.ascontiguousarray(values[:, 200:]))
            writer.annotate(40, 30, "first")
            writer.annotate(150, 100, "second")
        _kept["rec"] = {path.name: path.read_bytes() for path in scratch.iterdir()}
    for name, content in _kept["rec"].items():
        (folder / name).write_bytes(content)
    return Recording.open(folder / "rec")


def test_a_part_names_its_source_and_has_no_stale_counts(gapped):
    part = whole(trim(gapped, 50, 250))
    (source,) = part.global_fields["sources"]
    assert (source["how"], source["name"], source["sample_start"]) == ("trim", "rec", 50)
    assert source["recording_id"] == gapped.global_fields["recording_id"] != part.global_fields["recording_id"]
    assert source["sha512"] == hashlib.sha512(gapped.data_path.read_bytes()).hexdigest()
    assert "clipped_samples" not in part.global_fields
    assert ["clipped_fraction" in s.fields for s in part.segments] == [False, True, False]
    again = trim(part, 10, 20, name="again")
    assert [s["name"] for s in again.global_fields["sources"]] == ["rec-50-250", "rec"]


def test_damage_gets_no_fresh_checksum(gapped):
    content = bytearray(gapped.data_path.read_bytes())
    content[1000] ^= 4
    gapped.data_path.write_bytes(content)
    folder = gapped.meta_path.parent
    before = sorted(p.name for p in folder.iterdir())
    for call in (
        lambda: trim(gapped, 0, 10),
        lambda: archive(gapped.meta_path, folder / "x.sigmf"),
        lambda: to_numpy(gapped, folder / "x.npy"),
        lambda: per_channel(gapped, folder),
    ):
        with pytest.raises(RecordingError, match="changed or damaged"):
            call()
    assert sorted(p.name for p in folder.iterdir()) == before


def test_a_gap_after_the_last_sample_goes_with_it(tmp_path, grid_samples):
    with RecordingWriter(
        tmp_path, "rec", n_channels=1, datatype="ci16_le", sample_rate_hz=1e6, min_free_bytes=0
    ) as writer:
        writer.write(grid_samples(1, 10))
        writer.gap(4)
    source = Recording.open(writer.path)
    assert [trim(source, a, b).global_fields["lost_samples"] for a, b in ((0, 10), (3, 10), (0, 9))] == [4, 4, 0]


def test_nothing_is_replaced_unasked(gapped):
    trim(gapped, 0, 10, name="part")
    with pytest.raises(RecordingError, match="exists"):
        trim(gapped, 0, 20, name="part")
    assert trim(gapped, 0, 20, name="part", overwrite=True).n_samples == 20


@pytest.mark.parametrize(
    ("text", "place"),
    [("0", 0), ("120", 120), ("-20", 280), ("100us", 100), ("0.1ms", 100), ("0.0002s", 200), ("-10us", 290)],
)
def test_places_are_samples_or_times(gapped, text, place):
    assert place_in(gapped, text) == place


@pytest.mark.parametrize("text", ["", "x", "1.5", "s", "nans", "1h", "infs"])
def test_what_is_no_place_is_refused(gapped, text):
    with pytest.raises(RecordingError, match="is no place"):
        place_in(gapped, text)


@pytest.mark.parametrize(
    ("date", "seconds", "expected"),
    [
        ("2026-12-31T23:59:59.25Z", Fraction(3, 4), "2027-01-01T00:00:00Z"),
        ("2026-01-01T00:00:00Z", Fraction(1, 8), "2026-01-01T00:00:00.125Z"),
        ("2026-01-01T00:00:00.123456789Z", Fraction(1, 10**9), "2026-01-01T00:00:00.12345679Z"),
        ("2026-01-01 00:00:00", Fraction(1), None),
        ("9999-12-31T23:59:59Z", Fraction(1), None),
        (5, Fraction(1), None),
    ],
)
def test_dates_move_on_exactly_or_are_given_up(date, seconds, expected):
    assert later_date(date, seconds) == expected


def test_one_recording_per_channel_and_back(gapped, tmp_path):
    path = per_channel(gapped, tmp_path / "channels")
    collection = open_collection(path)
    assert [str(f) for f in verify(tmp_path / "channels") if f.severity != "info"] == []
    for channel, (role, recording) in enumerate(collection.recordings.items()):
        assert role == f"channel-{channel}"
        assert np.array_equal(whole(recording).read()[0], gapped.read()[channel])
        assert recording.meta["global"]["spatial:channel_index"] == channel
        assert recording.meta["global"]["spatial:num_elements"] == 2
        assert recording.global_fields["antennas"] == [["north", "south"][channel]]
        assert recording.segments[1].fields["rx_gain_db"] == [[10.0, 20.0][channel]]
        assert recording.segments[1].fields["requested"] == {"rx_gain_db": [[11, 21][channel]], "frequency_hz": 2e9}
        assert ("south only" in [a.label for a in recording.annotations]) == (channel == 1)
    (joined,) = import_file(path, tmp_path / "joined", join=True, name="rec").recordings
    assert np.array_equal(whole(joined).read(), gapped.read())
    for mine, its in zip(joined.segments, gapped.segments, strict=True):
        assert (mine.global_index, mine.device_time) == (its.global_index, its.device_time)
        assert mine.fields["rx_gain_db"] == its.fields["rx_gain_db"]
    marks = [(a.label, a.sample_start, a.fields.get("channel")) for a in joined.annotations]
    assert marks == [(a.label, a.sample_start, a.fields.get("channel")) for a in gapped.annotations]


def test_the_library_reads_what_is_exported_with_all_its_channels(gapped, tmp_path):
    packed = archive(gapped.meta_path, tmp_path / "one")
    other = sigmf.fromarchive(packed)
    assert other.get_global_field("core:num_channels") == 2
    assert np.array_equal(other.read_samples().T, gapped.read())


def test_an_archive_needs_no_room_elsewhere_and_is_whole_or_not_there(gapped, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "mkdtemp", lambda *_args, **_options: pytest.fail("a temporary copy"))
    folder = gapped.meta_path.parent
    write_collection(folder, "run", {"rx": "rec"})
    first = archive(folder, tmp_path / "run.sigmf").read_bytes()
    assert archive(folder, tmp_path / "again.sigmf").read_bytes() == first
    gapped.data_path.unlink()
    with pytest.raises(RecordingError, match="missing"):
        archive(folder, tmp_path / "broken.sigmf")
    assert sorted(p.name for p in tmp_path.glob("*.sigmf")) == ["again.sigmf", "run.sigmf"]


def test_numpy_and_hdf5_hold_the_samples_and_the_metadata(gapped, tmp_path):
    made = to_numpy(gapped, tmp_path / "x.npy")
    mapped = np.load(made, mmap_mode="r", allow_pickle=False)
    assert mapped.dtype == np.complex64
    assert np.array_equal(mapped, gapped.read())
    facts = json.loads((tmp_path / "x.json").read_text())
    assert facts["axes"] == ["channel", "sample"]
    assert facts["meta"] == gapped.meta
    h5py = pytest.importorskip("h5py")
    with h5py.File(to_hdf5(gapped, tmp_path / "x.h5")) as file:
        assert np.array_equal(file["iq"][()], gapped.read())
        assert file.attrs["sample_rate_hz"] == RATE_HZ
        assert json.loads(file["sigmf_meta"][()]) == gapped.meta
        assert [tuple(row) for row in file["segments"][()]] == [(0, 0), (100, 107), (200, 212)]


# --- labels


def test_a_label_goes_on_and_off_and_collections_follow(gapped):
    folder = gapped.meta_path.parent
    write_collection(folder, "run", {"rx": "rec"}, {"run_id": "7"})
    original = {p.name: p.read_bytes() for p in folder.iterdir()}
    changed = add_label(gapped, "good", 20, 60, "no interference")
    assert [p.name for p in changed] == ["rec.sigmf-meta", "run.sigmf-collection"]
    reopened = open_collection(folder).recordings["rx"]
    added = [(a.sample_start, a.sample_count, a.comment) for a in reopened.annotations if a.label == "good"]
    assert added == [(20, 40, "no interference")]
    assert [f for f in verify(folder) if f.severity != "info"] == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The library raises where a checksum in a collection no longer fits.
        sigmf.fromfile(folder / "run.sigmf-collection")
    remove_label(reopened, "good")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == original


def test_what_the_recorder_marked_is_not_taken_off(gapped):
    with pytest.raises(RecordingError, match="has: first, second, south only"):
        remove_label(gapped, "gap")
    remove_label(gapped, "first", 40, 70)
    with pytest.raises(RecordingError, match="no label 'first'"):
        remove_label(Recording.open(gapped.meta_path), "first")


def test_a_change_by_somebody_else_is_not_blessed(gapped):
    folder = gapped.meta_path.parent
    write_collection(folder, "run", {"rx": "rec"})
    gapped.meta_path.write_text(gapped.meta_path.read_text().replace("second", "third"))
    with pytest.raises(RecordingError, match="changed after"):
        add_label(Recording.open(gapped.meta_path), "good")


@pytest.mark.parametrize(
    ("label", "start", "stop"), [("", 0, 9), ("x" * 21, 0, 9), ("x", 5, 5), ("x", -1, 5), ("x", 0, 301)]
)
def test_labels_that_cannot_be_are_refused(gapped, label, start, stop):
    before = gapped.meta_path.read_bytes()
    with pytest.raises(RecordingError, match="label"):
        add_label(gapped, label, start, stop)
    assert gapped.meta_path.read_bytes() == before

"""Recordings of others open if they can be read rightly; if not, file, field and remedy are named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import sigmf
from hypothesis import given, settings
from hypothesis import strategies as st
from semair.captures.reader import Recording
from semair.captures.verify import verify
from semair.errors import RecordingError


def foreign(folder: Path, datatype: str, raw: np.ndarray, captures=None, annotations=None, **head) -> Path:
    """A recording as another program would write it."""
    head = {"core:datatype": datatype, "core:version": "1.0.0"} | head
    meta = {"global": head, "captures": captures if captures is not None else [{"core:sample_start": 0}]}
    meta["annotations"] = annotations or []
    path = folder / "other.sigmf-meta"
    path.write_text(json.dumps(meta))
    (folder / "other.sigmf-data").write_bytes(raw.tobytes())
    return path


INTEGERS = ["i8", "u8", "i16_le", "i16_be", "u16_le", "u16_be", "i32_le", "i32_be", "u32_le", "u32_be"]


@pytest.mark.parametrize("component", INTEGERS)
@pytest.mark.parametrize("n_channels", [1, 3])
def test_integers_are_scaled_to_full_scale_one(tmp_path, rng, component, n_channels):
    kind, order = (component + "_le").split("_")[:2]
    dtype = np.dtype(f"{'>' if order == 'be' else '<'}{kind[0]}{int(kind[1:]) // 8}")
    info = np.iinfo(dtype)
    raw = rng.integers(info.min, info.max, size=(50, n_channels, 2), endpoint=True).astype(dtype)
    raw[:2, 0] = [[info.min, info.max], [0, 1]]
    path = foreign(tmp_path, f"c{component}", raw, **{"core:num_channels": n_channels})
    half = 2.0 ** (info.bits - 1)
    values = (raw.astype(np.float64) - (half if kind[0] == "u" else 0)) / half
    expected = (values[..., 0].astype(np.float32) + 1j * values[..., 1].astype(np.float32)).T
    assert np.array_equal(Recording.open(path).read(), expected)
    if info.bits < 32:
        other = sigmf.fromfile(path, skip_checksum=True).read_samples().reshape(50, n_channels).T
        assert np.array_equal(Recording.open(path).read(), other)


@pytest.mark.parametrize("datatype", ["cf32_le", "cf32_be", "cf64_le", "cf64_be"])
def test_floats_come_as_they_are(tmp_path, rng, datatype):
    dtype = np.dtype(f"{'>' if datatype.endswith('be') else '<'}f{int(datatype[2:4]) // 8}")
    raw = rng.standard_normal((40, 2, 2)).astype(dtype)
    path = foreign(tmp_path, datatype, raw, **{"core:num_channels": 2})
    expected = (raw[..., 0].astype(np.float32) + 1j * raw[..., 1].astype(np.float32)).T
    assert np.array_equal(Recording.open(path).read(), expected)


def test_what_is_not_said_is_none(tmp_path):
    recording = Recording.open(foreign(tmp_path, "cu8", np.zeros(20, np.uint8), captures=[]))
    assert recording.sample_rate_hz is None
    assert recording.frequency_hz is None
    assert recording.sha512 is None
    assert recording.complete is None
    assert recording.global_fields == {}
    (segment,) = recording.segments
    assert (segment.sample_start, segment.sample_count, segment.global_index) == (0, 10, None)
    assert segment.device_time is None
    with pytest.raises(RecordingError, match="core:sha512"):
        recording.check_hash()
    assert [f.severity for f in verify(tmp_path)] == ["warning"]


def test_equal_neighbouring_segments_are_one(tmp_path):
    captures = [
        {"core:sample_start": 0, "core:frequency": 1e9},
        {"core:sample_start": 4, "core:frequency": 1e9},
    ]
    captures.append({"core:sample_start": 6, "core:frequency": 2e9})
    recording = Recording.open(foreign(tmp_path, "ci8", np.zeros(20, np.int8), captures))
    assert [(s.sample_start, s.sample_count, s.frequency_hz) for s in recording.segments] == [
        (0, 6, 1e9),
        (6, 4, 2e9),
    ]


def test_an_annotation_without_length_reaches_to_the_end_of_its_segment(tmp_path):
    captures = [{"core:sample_start": 0}, {"core:sample_start": 6, "core:frequency": 2e9}]
    notes = [{"core:sample_start": 2}, {"core:sample_start": 7, "core:label": "x", "other:thing": 1}]
    recording = Recording.open(foreign(tmp_path, "ci8", np.zeros(20, np.int8), captures, notes))
    assert [(a.sample_start, a.sample_count, a.label) for a in recording.annotations] == [
        (2, 4, ""),
        (7, 3, "x"),
    ]
    assert recording.annotations[1].raw["other:thing"] == 1


def test_a_centre_frequency_of_nan_as_gnu_radio_writes_it_opens_and_is_reported(tmp_path):
    captures = [{"core:sample_start": 0, "core:frequency": float("nan")}]
    recording = Recording.open(foreign(tmp_path, "cf32_le", np.zeros(20, np.float32), captures))
    assert recording.frequency_hz is None
    assert any("NaN" in f.message and f.severity == "error" for f in verify(tmp_path))


@pytest.mark.parametrize(
    ("head", "field", "remedy"),
    [
        ({"core:datatype": "rf32_le"}, "core:datatype", "only complex"),
        ({"core:datatype": "cf32_lexyz"}, "core:datatype", "allowed are"),
        ({"core:datatype": "ci16"}, "core:datatype", "add _le or _be"),
        ({"core:datatype": 5}, "core:datatype", "mend"),
        ({"core:offset": 3}, "core:offset", "remove it"),
        ({"core:num_channels": 0}, "core:num_channels", "at least 1"),
        ({"core:num_channels": "two"}, "core:num_channels", "mend"),
        ({"core:num_channels": 3}, "core:datatype", "within a sample"),
        ({"core:sample_rate": -1}, "core:sample_rate", "positive"),
        ({"core:metadata_only": True}, "core:metadata_only", "data file"),
        ({"core:dataset": "x.wav"}, "core:dataset", "convert"),
        ({"core:trailing_bytes": 8}, "core:trailing_bytes", "convert"),
        (
            {"core:extensions": [{"name": "strange", "version": "1", "optional": False}]},
            "core:extensions.0",
            "set optional",
        ),
        ({"semair:n_samples": 11}, "semair:n_samples", "it was cut"),
        ({"semair:n_samples": 9}, "semair:n_samples", "restore"),
    ],
)
def test_what_could_be_misread_is_refused_by_name(tmp_path, head, field, remedy):
    path = foreign(tmp_path, "ci16_le", np.zeros(20, np.int16), **head)
    with pytest.raises(RecordingError, match=rf"other\.sigmf-(meta|data), global\.{field}: .*{remedy}"):
        Recording.open(path)
    findings = verify(tmp_path)
    assert any(f.severity == "error" and field in f.field for f in findings)


@pytest.mark.parametrize(
    ("captures", "field"),
    [
        ([{"core:sample_start": 11}], "captures.0.core:sample_start"),
        ([{"core:sample_start": 5}, {"core:sample_start": 4}], "captures.1.core:sample_start"),
        ([{"core:sample_start": 0, "core:header_bytes": 4}], "captures.0.core:header_bytes"),
        ([{}], "captures.0.core:sample_start"),
        ([3], "captures.0"),
        ([{"core:sample_start": 0, "semair:device_time": {"full_secs": 1}}], "captures.0.semair:device_time"),
    ],
)
def test_captures_that_make_no_sense_are_refused_by_name(tmp_path, captures, field):
    path = foreign(tmp_path, "ci16_le", np.zeros(20, np.int16), captures)
    with pytest.raises(RecordingError, match=field):
        Recording.open(path)
    assert any(f.severity == "error" and f.field.startswith(field[:10]) for f in verify(path))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"{}", b'{"global": 3}', b'{"global": {}}'])
def test_meta_files_that_are_none_are_refused(tmp_path, content):
    (tmp_path / "x.sigmf-meta").write_bytes(content)
    (tmp_path / "x.sigmf-data").write_bytes(bytes(8))
    with pytest.raises(RecordingError, match=r"x\.sigmf-meta.*restore"):
        Recording.open(tmp_path)
    assert any(f.severity == "error" for f in verify(tmp_path))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
CORE = "datatype num_channels sample_rate extensions sha512 version offset sample_start global_index frequency"
CORE += " sample_count label header_bytes"
OWN = "n_samples device_time complete clipped_fraction unverified_from_sample lost_samples recording_id"
FIELDS = [f"core:{name}" for name in CORE.split()] + [f"semair:{name}" for name in OWN.split()]


@settings(max_examples=100, deadline=None)
@given(
    section=st.sampled_from(["global", "captures", "annotations"]),
    key=st.sampled_from(FIELDS),
    value=json_values,
)
def test_any_value_in_any_field_opens_or_is_refused_cleanly(tmp_path_factory, section, key, value):
    """No field, whatever its value, ends in anything but a recording or a RecordingError."""
    folder = tmp_path_factory.mktemp("fuzz")
    path = foreign(folder, "ci16_le", np.zeros(20, np.int16), annotations=[{"core:sample_start": 0}])
    meta = json.loads(path.read_text())
    target = meta["global"] if section == "global" else meta[section][0]
    target[key] = value
    path.write_text(json.dumps(meta))
    refusal = ""
    try:
        recording = Recording.open(path)
        assert recording.read().shape == (recording.n_channels, recording.n_samples)
    except RecordingError as error:
        refusal = str(error)
    findings = verify(folder)
    if refusal:
        assert "other.sigmf-" in refusal
        assert any(f.severity == "error" for f in findings)


def test_missing_and_empty_data_are_told_apart(tmp_path, record, grid_samples):
    path = record(grid_samples(1, 5))
    data = tmp_path / "rec.sigmf-data"
    data.write_bytes(b"")
    with pytest.raises(RecordingError, match=r"rec\.sigmf-data: empty"):
        Recording.open(path)
    data.unlink()
    with pytest.raises(RecordingError, match=r"rec\.sigmf-data: missing"):
        Recording.open(path)
    assert [f.file for f in verify(tmp_path)] == [data]


def test_a_changed_sample_is_found_when_the_hash_is_checked(tmp_path, record, grid_samples):
    path = record(grid_samples(2, 50))
    data = tmp_path / "rec.sigmf-data"
    content = bytearray(data.read_bytes())
    content[123] ^= 1
    data.write_bytes(content)
    Recording.open(path)
    with pytest.raises(RecordingError, match=r"rec\.sigmf-data, global\.semair:chunks.*samples 0 to .*restore"):
        Recording.open(path, check_hash=True)
    assert [(f.severity, f.field) for f in verify(tmp_path)] == [("error", "global.semair:chunks")]


def test_a_file_cut_after_opening_is_noticed(tmp_path, record, grid_samples):
    recording = Recording.open(record(grid_samples(2, 5000)))
    recording.read(0, 10)
    (tmp_path / "rec.sigmf-data").write_bytes(b"")
    with pytest.raises(RecordingError, match="shrunk"):
        recording.read(4000, 10)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda m: m["global"].pop("core:version"), "global"),
        (lambda m: m["global"].update({"core:extensions": []}), "global.core:extensions"),
        (lambda m: m["global"].update({"semair:path": "moon"}), "global.semair:path"),
        (lambda m: m["global"].update({"semair:unheard": 1}), "global"),
        (lambda m: m["captures"][0].update({"semair:rx_gain_db": [1, 2, 3]}), "captures.0.semair:rx_gain_db"),
        (lambda m: m["captures"][1].update({"core:global_index": 4}), "captures.1.core:global_index"),
        (
            lambda m: m["annotations"].append({"core:sample_start": 15, "core:sample_count": 6}),
            "annotations.1",
        ),
        (lambda m: m["annotations"].append({"core:sample_start": 0}), "annotations.1.core:sample_start"),
    ],
)
def test_verify_names_the_field_that_is_wrong(tmp_path, grid_samples, edit_meta, change, field):
    from semair.captures.writer import RecordingWriter

    with RecordingWriter(
        tmp_path, "rec", n_channels=2, datatype="ci16_le", sample_rate_hz=1.0, min_free_bytes=0
    ) as writer:
        writer.write(grid_samples(2, 10))
        writer.gap(3)
        writer.write(grid_samples(2, 10))
    edit_meta(writer.path, change)
    errors = [f for f in verify(writer.path) if f.severity == "error"]
    assert [f.field for f in errors] == [field]
    assert errors[0].message


def test_verify_finds_data_without_metadata(tmp_path, record, grid_samples):
    record(grid_samples(1, 5)).unlink()
    (finding,) = verify(tmp_path)
    assert (finding.severity, finding.file.name) == ("error", "rec.sigmf-data")
    assert "rec.sigmf-meta is missing" in str(finding)
    with pytest.raises(RecordingError, match="missing"):
        verify(tmp_path / "rec")


def test_archives_and_collections_are_pointed_elsewhere(tmp_path):
    (tmp_path / "x.sigmf").write_bytes(b"")
    with pytest.raises(RecordingError, match="unpack"):
        Recording.open(tmp_path / "x.sigmf")
    with pytest.raises(RecordingError, match="open_collection"):
        Recording.open(tmp_path / "x.sigmf-collection")


def test_real_recordings_of_other_labs_open(shared_data):
    metas = sorted(shared_data.rglob("*.sigmf-meta"))
    assert metas
    for path in metas:
        recording = Recording.open(path, check_hash=True)
        other = sigmf.fromfile(path, skip_checksum=True).read_samples()
        assert np.array_equal(recording.read(), other.reshape(-1, recording.n_channels).T)
        assert not [f for f in verify(path) if f.severity == "error"]

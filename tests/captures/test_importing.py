"""Recordings of others come in exactly, or with the reason why not; no trap of the format's library is stepped in."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import sigmf
from semair.captures.archive import archive
from semair.captures.importing import RawFormat, import_file
from semair.captures.matfile import read_unguarded
from semair.captures.meta import component_dtype
from semair.captures.reader import Recording
from semair.captures.verify import verify
from semair.errors import RecordingError
from sigmf.hashing import calculate_sha512


def foreign(
    folder: Path, raw: np.ndarray | bytes, name: str = "other", captures=None, annotations=None, **head
) -> Path:
    """A recording as another program would write it."""
    folder.mkdir(exist_ok=True)
    head = {"core:datatype": "ci16_le", "core:version": "1.0.0", "core:sample_rate": 1e6} | head
    meta = {"global": head, "captures": captures or [{"core:sample_start": 0}], "annotations": annotations or []}
    path = folder / f"{name}.sigmf-meta"
    path.write_text(json.dumps(meta))
    (folder / f"{name}.sigmf-data").write_bytes(raw if isinstance(raw, bytes) else raw.tobytes())
    return path


def checked(recording: Recording) -> Recording:
    """A result that this project's check and the library's find nothing wrong with."""
    assert [str(f) for f in verify(recording.meta_path)] == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # It returns nothing even for good files; for bad ones it raises.
        assert sigmf.fromfile(recording.meta_path).validate() is None
    return recording


COMPONENTS = ["i8", "u8", "i16_le", "i16_be", "u16_be", "i32_be", "u32_le", "f32_le", "f32_be", "f64_le"]


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_datatype_reads_after_the_import_as_before(tmp_path, rng, component):
    dtype = component_dtype(f"c{component}")
    if dtype.kind == "f":
        raw = rng.standard_normal((60, 2, 2)).astype(dtype)
    else:
        info = np.iinfo(dtype)
        raw = rng.integers(info.min, info.max, (60, 2, 2), endpoint=True).astype(dtype)
        raw[0, 0] = info.min, info.max
    path = foreign(tmp_path / "theirs", raw, **{"core:datatype": f"c{component}", "core:num_channels": 2})
    (done,) = import_file(path, tmp_path / "ours").recordings
    assert np.array_equal(checked(done).read(), Recording.open(path).read())
    exact = dtype.kind != "f" and dtype.itemsize <= 2
    assert done.datatype == ("ci16_le" if exact else "cf32_le")
    (source,) = done.global_fields["sources"]
    assert (source["how"], source["name"]) == ("import", "other.sigmf-data")
    assert source["sha512"] == calculate_sha512(filename=path.with_name("other.sigmf-data"))


def test_an_offset_is_subtracted_where_indices_leave_no_doubt(tmp_path, grid_samples):
    raw = np.arange(40, dtype="<i2")
    captures = [{"core:sample_start": 100}, {"core:sample_start": 112, "core:frequency": 2e9}]
    notes = [{"core:sample_start": 105, "core:sample_count": 3, "core:label": "x"}]
    path = foreign(tmp_path / "theirs", raw, captures=captures, annotations=notes, **{"core:offset": 100})
    done = import_file(path, tmp_path / "ours")
    (recording,) = done.recordings
    checked(recording)
    assert [(s.sample_start, s.sample_count, s.global_index) for s in recording.segments] == [
        (0, 12, 100),
        (12, 8, 112),
    ]
    assert [(a.sample_start, a.sample_count) for a in recording.annotations] == [(5, 3)]
    assert "core:offset" not in recording.meta["global"]
    assert np.array_equal(recording.read()[0].real * 32768, raw[::2])
    assert any("core:offset 100" in note for note in done.notes)


def test_an_offset_that_could_mean_two_things_is_refused(tmp_path):
    path = foreign(tmp_path, np.zeros(40, "<i2"), captures=[{"core:sample_start": 0}], **{"core:offset": 100})
    with pytest.raises(RecordingError, match=r"core:offset.*not known"):
        import_file(path, tmp_path / "ours")
    assert not list((tmp_path / "ours").glob("*.sigmf-*"))


def test_headers_between_segments_and_bytes_at_the_end_are_left_out(tmp_path):
    blocks = [np.arange(k, k + 8, dtype="<i2") for k in (0, 100, 200)]
    content = b"HEAD" + blocks[0].tobytes() + b"hh" + blocks[1].tobytes() + blocks[2].tobytes() + b"tail!"
    captures = [
        {"core:sample_start": 0, "core:header_bytes": 4, "core:frequency": 1e9},
        {"core:sample_start": 4, "core:header_bytes": 2, "core:frequency": 2e9},
        {"core:sample_start": 8, "core:frequency": 3e9},
    ]
    head = {"core:dataset": "radio.dat", "core:trailing_bytes": 5}
    path = foreign(tmp_path / "theirs", b"", captures=captures, **head)
    (tmp_path / "theirs" / "radio.dat").write_bytes(content)
    with pytest.raises(RecordingError, match="capture import"):
        Recording.open(path)
    (recording,) = import_file(path, tmp_path / "ours").recordings
    expected = np.concatenate(blocks).reshape(-1, 2)
    assert np.array_equal(checked(recording).read()[0] * 32768, expected[:, 0] + 1j * expected[:, 1])
    assert [s.frequency_hz for s in recording.segments] == [1e9, 2e9, 3e9]
    assert recording.global_fields["sources"][0]["name"] == "radio.dat"


@pytest.mark.parametrize("cut", [1, 3, 4, 8])
def test_a_cut_file_is_refused_whether_the_cut_is_inside_a_sample_or_between_two(tmp_path, cut):
    raw = np.arange(40, dtype="<i2").tobytes()
    path = foreign(tmp_path, raw[:-cut], **{"core:sha512": hashlib.sha512(raw).hexdigest()})
    with pytest.raises(RecordingError, match=r"within a sample|changed or damaged"):
        import_file(path, tmp_path / "ours")
    assert not list((tmp_path / "ours").glob("*.sigmf-*"))


def test_an_empty_data_file_is_refused(tmp_path):
    with pytest.raises(RecordingError, match="holds no sample"):
        import_file(foreign(tmp_path, b""), tmp_path / "ours")


def test_what_the_stricter_check_would_not_let_stand_is_taken_out_and_told(tmp_path):
    captures = [{"core:sample_start": 0, "core:frequency": float("nan"), "core:datetime": "yesterday"}]
    notes = [
        {"core:sample_start": 7, "core:sample_count": 20, "vendor:colour": "red"},
        {"core:sample_start": 2, "core:sample_count": 1, "core:freq_lower_edge": "low"},
    ]
    path = foreign(tmp_path / "theirs", np.zeros(20, "<i2"), captures=captures, annotations=notes)
    done = import_file(path, tmp_path / "ours")
    (recording,) = done.recordings
    checked(recording)
    told = " | ".join(done.notes)
    for what in ("core:frequency", "core:freq_lower_edge", "namespace vendor", "version 1.0.0"):
        assert what in told
    assert recording.annotations[1].raw["vendor:colour"] == "red"
    assert (recording.annotations[1].sample_count, recording.annotations[1].fields["cut"]) == (3, True)


def test_extensions_that_are_demanded_and_not_known_are_refused(tmp_path):
    demanded = [{"name": "strange", "version": "1", "optional": False}]
    path = foreign(tmp_path, np.zeros(20, "<i2"), **{"core:extensions": demanded})
    with pytest.raises(RecordingError, match="strange"):
        import_file(path, tmp_path / "ours")


# --- archives and collections


def theirs(folder: Path, samples: np.ndarray, name: str = "rec") -> sigmf.SigMFFile:
    folder.mkdir(exist_ok=True)
    samples.T.astype("<c8").tofile(folder / f"{name}.sigmf-data")
    meta = {"core:datatype": "cf32_le", "core:version": "1.0.0", "core:sample_rate": 1e6}
    file = sigmf.SigMFFile(global_info={**meta, "core:num_channels": len(samples)})
    file.set_data_file(folder / f"{name}.sigmf-data")
    file.add_capture(0, metadata={"core:frequency": 2.4e9})
    file.add_annotation(3, 5, metadata={"core:label": "x"})
    file.tofile(folder / name, overwrite=True)
    return file


@pytest.mark.parametrize("ending", ["sigmf", "sigmf.gz", "sigmf.xz", "sigmf.zip"])
def test_archives_of_the_library_open(tmp_path, grid_samples, ending):
    samples = grid_samples(2, 5000)
    theirs(tmp_path / "theirs", samples).archive(str(tmp_path / f"packed.{ending}"))
    (recording,) = import_file(tmp_path / f"packed.{ending}", tmp_path / "ours").recordings
    assert np.array_equal(checked(recording).read(), samples)
    assert recording.frequency_hz == 2.4e9
    assert [a.label for a in recording.annotations] == ["x"]


def test_a_collection_of_the_library_comes_with_all_its_recordings(tmp_path, grid_samples):
    folder = tmp_path / "theirs"
    parts = [grid_samples(1, 100) for _ in range(3)]
    for k, part in enumerate(parts):
        theirs(folder, part, f"antenna{k}")
    names = [f"antenna{k}.sigmf-meta" for k in range(3)]
    sigmf.SigMFCollection(names, base_path=folder).tofile(str(folder / "array"))
    done = import_file(folder / "array.sigmf-collection", tmp_path / "ours")
    assert [str(f) for f in verify(tmp_path / "ours")] == []
    assert all(np.array_equal(r.read(), p) for r, p in zip(done.recordings, parts, strict=True))
    joined = import_file(folder / "array.sigmf-collection", tmp_path / "joined", join=True)
    (recording,) = joined.recordings
    assert np.array_equal(checked(recording).read(), np.concatenate(parts))
    assert [s["name"] for s in recording.global_fields["sources"]] == ["antenna0", "antenna1", "antenna2"]
    (folder / "antenna1.sigmf-meta").unlink()
    with pytest.raises(RecordingError, match=r"antenna1\.sigmf-meta: missing"):
        import_file(folder / "array.sigmf-collection", tmp_path / "again")


def test_recordings_that_were_not_taken_together_are_not_joined(tmp_path, grid_samples):
    folder = tmp_path / "theirs"
    theirs(folder, grid_samples(1, 100), "a")
    theirs(folder, grid_samples(1, 101), "b")
    sigmf.SigMFCollection(["a.sigmf-meta", "b.sigmf-meta"], base_path=folder).tofile(str(folder / "set"))
    with pytest.raises(RecordingError, match="number of samples is 100 here and 101 there"):
        import_file(folder, tmp_path / "ours", join=True)


def packed(path: Path, members: dict[str, bytes], kind: str = "tar", **attributes) -> Path:
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as opened:
            for name, content in members.items():
                opened.writestr(name, content)
        return path
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in attributes.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize(
    "name", ["../out.sigmf-meta", "/tmp/out.sigmf-meta", "a/../../out.sigmf-meta", "..\\out.sigmf-meta"]
)
def test_members_that_lead_out_of_the_folder_are_refused(tmp_path, kind, name):
    path = packed(tmp_path / "x.sigmf", {name: b"{}"}, kind)
    with pytest.raises(RecordingError, match="leads out"):
        import_file(path, tmp_path / "ours")


@pytest.mark.parametrize(
    "attributes", [{"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, {"type": tarfile.FIFOTYPE}]
)
def test_members_that_are_no_files_are_refused(tmp_path, attributes):
    path = packed(tmp_path / "x.sigmf", {"a.sigmf-data": b"", "a.sigmf-meta": b"{}"}, **attributes)
    with pytest.raises(RecordingError, match="no plain file"):
        import_file(path, tmp_path / "ours")


def test_an_archive_that_claims_more_than_it_can_hold_is_refused(tmp_path):
    path = tmp_path / "x.sigmf.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("a.sigmf-data", bytes(65 << 20))
    assert path.stat().st_size < 100_000
    with pytest.raises(RecordingError, match="claims to hold"):
        import_file(path, tmp_path / "ours")


def test_a_dataset_name_that_leads_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(80))
    for name in ("../secret", "/etc/passwd", "a/b", "..", ""):
        path = foreign(tmp_path / "theirs", np.zeros(20, "<i2"), **{"core:dataset": name})
        with pytest.raises(RecordingError, match="core:dataset"):
            import_file(path, tmp_path / "ours")


def test_deep_and_giant_metadata_are_refused(tmp_path):
    (tmp_path / "x.sigmf-data").write_bytes(bytes(8))
    for content in (b"[" * 100_000, b'{"global": ' + b"9" * 10_000 + b"}", b'{"a":' * 50_000):
        (tmp_path / "x.sigmf-meta").write_bytes(content)
        for call in (
            lambda: Recording.open(tmp_path / "x"),
            lambda: import_file(tmp_path / "x.sigmf-meta", tmp_path / "o"),
        ):
            with pytest.raises(RecordingError, match="no JSON"):
                call()
    with (tmp_path / "x.sigmf-meta").open("wb") as file:
        file.truncate(200 << 20)
    with pytest.raises(RecordingError, match="metadata are read up to"):
        Recording.open(tmp_path / "x")


def test_a_giant_rate_is_refused_or_left_out(tmp_path):
    path = foreign(tmp_path, np.zeros(20, "<i2"), **{"core:sample_rate": 10**400})
    with pytest.raises(RecordingError, match="core:sample_rate"):
        Recording.open(path)
    done = import_file(path, tmp_path / "ours")
    assert done.recordings[0].sample_rate_hz is None
    assert any("core:sample_rate left out" in note for note in done.notes)


@pytest.mark.parametrize("field", ["core:num_channels", "core:trailing_bytes", "core:offset"])
def test_giant_counts_are_refused(tmp_path, field):
    path = foreign(tmp_path, np.zeros(20, "<i2"), **{field: 10**400})
    for call in (lambda: Recording.open(path), lambda: import_file(path, tmp_path / "ours")):
        with pytest.raises(RecordingError, match=field):
            call()


def test_our_own_archive_comes_back_byte_for_byte(tmp_path, record, grid_samples):
    from semair.captures.collection import write_collection

    run = tmp_path / "run"
    record(grid_samples(2, 3000), "bs-rx", run)
    record(grid_samples(1, 500), "tx", run)
    (run / "truth.npy").write_bytes(b"the truth")
    (run / "run.json").write_text("{}")
    write_collection(run, "lab", {"bs-rx": "bs-rx", "tx": "tx"}, {"truth": "truth.npy"}, files=["truth.npy"])
    packed_run = archive(run, tmp_path / "lab.sigmf")
    done = import_file(packed_run, tmp_path / "back")
    assert {p.name: p.read_bytes() for p in run.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "back").iterdir()
    }
    assert done.notes == []
    assert verify(tmp_path / "back") == []


# --- bare samples and arrays


def test_raw_samples_need_to_be_described(tmp_path, rng):
    path = tmp_path / "dump.dat"
    raw = rng.integers(-3000, 3000, 4 * 500 + 3).astype("<i2")
    path.write_bytes(b"skip" + raw.tobytes())
    with pytest.raises(RecordingError, match="--datatype"):
        import_file(path, tmp_path / "ours")
    wanted = RawFormat("ci16_le", 20e6, 2, 2.4e9, header_bytes=4)
    with pytest.raises(RecordingError, match="--drop-rest"):
        import_file(path, tmp_path / "ours", raw=wanted)
    wanted = RawFormat("ci16_le", 20e6, 2, 2.4e9, header_bytes=4, drop_rest=True)
    done = import_file(path, tmp_path / "ours", raw=wanted, name="wifi")
    (recording,) = done.recordings
    checked(recording)
    expected = raw[:2000].reshape(500, 2, 2)
    assert np.array_equal(recording.read() * 32768, (expected[..., 0] + 1j * expected[..., 1]).T)
    assert (recording.name, recording.sample_rate_hz, recording.frequency_hz) == ("wifi", 20e6, 2.4e9)
    assert recording.global_fields["sources"][0]["sha512"] == calculate_sha512(filename=path)
    assert any("6 bytes at the end" in note for note in done.notes)


@pytest.mark.parametrize("hdf5", [False, True])
def test_arrays_in_mat_files(tmp_path, rng, hdf5):
    path = tmp_path / "frame.mat"
    values = rng.standard_normal((3, 700)) + 1j * rng.standard_normal((3, 700))
    if hdf5:
        h5py = pytest.importorskip("h5py")
        pair = np.zeros((700, 3), np.dtype([("real", "<f8"), ("imag", "<f8")]))
        pair["real"], pair["imag"] = values.real.T, values.imag.T
        with h5py.File(path, "w", userblock_size=512) as file:
            file["iq"] = pair
            file["gain"] = np.ones(4)
            file["elsewhere"] = h5py.ExternalLink("/etc/passwd", "x")
    else:
        scipy.io.savemat(path, {"iq": values, "gain": np.ones(4), "note": "text"})
    done = import_file(path, tmp_path / "ours", raw=RawFormat(sample_rate_hz=5e6))
    (recording,) = done.recordings
    assert np.array_equal(checked(recording).read(), values.astype(np.complex64))
    assert recording.global_fields["sources"][0]["name"] == "frame.mat"
    assert recording.global_fields["sources"][0]["sha512"] == calculate_sha512(filename=path)
    with pytest.raises(RecordingError, match="no variable 'x'"):
        import_file(path, tmp_path / "more", key="x")
    with pytest.raises(RecordingError, match="not complex"):
        read_unguarded(path, "gain")


def test_values_of_a_converter_in_a_mat_file_stay_integers(tmp_path):
    samples = np.round(np.random.default_rng(1).uniform(-30000, 30000, (300, 2, 2))).astype(np.int16) / 32768
    values = samples[..., 0] + 1j * samples[..., 1]
    scipy.io.savemat(tmp_path / "x.mat", {"iq": values}, do_compression=True)
    (recording,) = import_file(tmp_path / "x.mat", tmp_path / "ours").recordings
    assert recording.datatype == "ci16_le"
    assert np.array_equal(recording.read(), values.T.astype(np.complex64))


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"a": np.ones((2, 9)) * 1j, "b": np.ones((2, 9)) * 1j}, "--key.*a, b"),
        ({"a": np.ones((5, 5)) * 1j}, "either axis"),
        ({"a": np.ones((2, 3, 4)) * 1j}, "two axes"),
        ({"a": np.ones(4)}, "0 arrays"),
    ],
)
def test_mat_files_that_leave_doubt_are_refused(tmp_path, variables, message):
    scipy.io.savemat(tmp_path / "x.mat", variables)
    with pytest.raises(RecordingError, match=message):
        read_unguarded(tmp_path / "x.mat")


def test_a_mat_file_that_crashes_the_library_is_damaged(tmp_path):
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"iq": np.ones((2, 2000)) * 1j})
    content = bytearray(buffer.getvalue())
    # The type of the elements: none that there is.
    assert content[176] == 9
    content[176] = 0
    (tmp_path / "x.mat").write_bytes(content)
    with pytest.raises(RecordingError, match="crashed the library"):
        import_file(tmp_path / "x.mat", tmp_path / "ours")


def test_all_real_recordings_of_others_come_in(shared_data, tmp_path):
    wifi = RawFormat("ci16_le", 20e6)
    for kind, pattern in enumerate(("iq/**/*.sigmf-meta", "mimo/**/*.sigmf-meta", "mimo/**/*.mat", "iq/**/*.dat")):
        for path in sorted(shared_data.glob(pattern)):
            raw = wifi if path.suffix == ".dat" else RawFormat(sample_rate_hz=5e6)
            (recording,) = import_file(path, tmp_path / str(kind), raw=raw).recordings
            checked(recording)
            if path.suffix == ".sigmf-meta":
                assert np.array_equal(recording.read(), Recording.open(path).read())
            if path.suffix == ".dat":
                pairs = np.fromfile(path, "<i2").reshape(-1, 2)
                assert np.array_equal(recording.read()[0] * 32768, pairs[:, 0] + 1j * pairs[:, 1])
            if path.suffix == ".mat":
                twin = Recording.open(path.parent / "sigmf" / path.stem)
                assert np.array_equal(recording.read(), twin.read())


def test_files_of_other_kinds_give_a_reason(shared_data, tmp_path):
    for path in sorted(shared_data.glob("mimo/csidata_intel/activity/*.dat"))[:3]:
        with pytest.raises(RecordingError, match="says nothing of its samples"):
            import_file(path, tmp_path / "ours")

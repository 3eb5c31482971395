"""Metadata and named files: no changed byte passes, and a flipped bit is told by its place."""

from __future__ import annotations

import json
import re
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from semair.captures.collection import open_collection, write_collection
from semair.captures.meta import dumps, load_json
from semair.captures.seal import file_problem, file_record, flipped_bit, seal_problem
from semair.captures.verify import verify
from semair.captures.writer import RecordingWriter
from semair.errors import RecordingError


@given(content=st.binary(min_size=1, max_size=3000), data=st.data())
def test_a_flipped_bit_is_located_exactly(content, data):
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    assert flipped_bit(bytes(damaged), zlib.crc32(content)) == bit


def test_large_files_and_other_changes(rng, tmp_path):
    content = rng.bytes(3_000_000)
    damaged = bytearray(content)
    damaged[1_234_567] ^= 0x10
    assert flipped_bit(bytes(damaged), zlib.crc32(content)) == 8 * 1_234_567 + 4
    path = tmp_path / "table.npy"
    path.write_bytes(content)
    record = file_record(path)
    assert file_problem(path, record) is None
    path.write_bytes(damaged)
    assert re.search(r"byte 1234567,.*0x", file_problem(path, record))
    damaged[5] ^= 0xFF
    path.write_bytes(damaged)
    assert "more than one bit" in file_problem(path, record)
    path.write_bytes(content[:-1])
    assert "2999999 bytes, 3000000 were recorded" in file_problem(path, record)
    path.unlink()
    assert "cannot be read" in file_problem(path, record)


@pytest.fixture
def run(tmp_path, record, grid_samples):
    """Folder of a recording, a file of truth and a collection over both."""
    record(grid_samples(2, 300), "rx", chunk_bytes=800)
    np.save(tmp_path / "truth.npy", np.arange(40))
    write_collection(tmp_path, "run", {"rx": "rx"}, {"truth": "truth.npy"}, files=["truth.npy"])
    return tmp_path


def test_every_single_bit_of_metadata_counts(run, rng):
    """Bits of both metadata files, the white space and the seals included."""
    assert verify(run) == []
    for path in (run / "rx.sigmf-meta", run / "run.sigmf-collection"):
        whole = path.read_bytes()
        for bit in rng.choice(8 * len(whole), 60, replace=False).tolist():
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            try:
                meta = json.loads(damaged)
            except ValueError:
                continue  # verify says so without a seal
            assert seal_problem(bytes(damaged)) is not None, (path.name, bit, meta)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"version": "1.1.0"', b'"version": "1.0.0"'),
        (b'"semair:seal"', b'"semair:seam"'),
        (b'"core:sample_rate": 1', b'"core:sample_rate": 3'),
        (b'  "global"', b' "global" '),
    ],
)
def test_one_change_of_metadata_is_an_error_of_that_file(run, old, new):
    path = run / "rx.sigmf-meta"
    text = path.read_bytes()
    assert text.count(old) == 1
    path.write_bytes(text.replace(old, new))
    (run / "run.sigmf-collection").unlink()
    errors = [f for f in verify(run) if f.severity == "error"]
    assert errors
    assert {f.file for f in errors} == {path}


def test_a_flipped_bit_of_metadata_and_truth_is_named_with_its_byte(run):
    for name in ("rx.sigmf-meta", "truth.npy"):
        path = run / name
        whole = path.read_bytes()
        damaged = bytearray(whole)
        # A digit of the rate; a value of the table.
        place = whole.index(b"1000000") if name.endswith("meta") else len(whole) - 3
        damaged[place] ^= 2
        path.write_bytes(damaged)
        messages = [f.message for f in verify(run) if f.file == path and f.severity == "error"]
        assert any(f"byte {place}," in message for message in messages), messages
        path.write_bytes(whole)
    assert verify(run) == []


@pytest.mark.parametrize("name", ["../truth.npy", "a/b/c", "", ".", "x\0y", "/etc/passwd"])
def test_names_that_lead_elsewhere_are_refused(run, edit_meta, name):
    def rename(meta):
        files = meta["collection"]["semair:files"]
        files[name] = files.pop("truth.npy")

    edit_meta(run / "run.sigmf-collection", rename)
    errors = [f for f in verify(run) if f.severity == "error"]
    assert any("plain file name" in f.message for f in errors)
    assert {f.file.name for f in errors} == {"run.sigmf-collection"}


def test_truth_that_is_gone_is_named(run):
    (run / "truth.npy").unlink()
    assert [(f.severity, f.file.name) for f in verify(run)] == [("error", "truth.npy")]
    with pytest.raises(RecordingError, match="truth"):
        write_collection(run, "again", {"rx": "rx"}, files=["truth.npy"])


def test_edited_metadata_written_again_are_whole(run):
    path = run / "rx.sigmf-meta"
    meta = load_json(path)
    meta["global"]["core:author"] = 'say "semair:seal": "0"'
    path.write_bytes(dumps(meta))
    assert seal_problem(path.read_bytes()) is None
    assert {f.file.name for f in verify(run)} == {"rx.sigmf-meta"}  # the collection knows the old
    assert "seal" not in open_fields(run)


def open_fields(run):
    (run / "run.sigmf-collection").unlink()
    write_collection(run, "run", {"rx": "rx"}, {"truth": "truth.npy"}, files=["truth.npy"])
    return open_collection(run).fields


def test_chunks_say_where_data_changed(run):
    data = run / "rx.sigmf-data"
    whole = data.read_bytes()
    damaged = bytearray(whole)
    damaged[1300] ^= 1
    data.write_bytes(damaged)
    (finding,) = verify(run)
    assert finding.file == data
    assert "samples 100 to 200, bytes 800 to 1600" in finding.message


@pytest.mark.parametrize(
    "chunks", [[], ["5 " + "0" * 64], ["0 " + "0" * 63], ["0 " + "0" * 64, "0 " + "1" * 64], "0", [7]]
)
def test_chunks_that_cover_nothing_are_refused(run, edit_meta, chunks):
    edit_meta(run / "rx.sigmf-meta", lambda m: m["global"].update({"semair:chunks": chunks}))
    (run / "run.sigmf-collection").unlink()
    assert any(f.severity == "error" and "chunks" in f.field for f in verify(run))


def test_the_hash_of_the_whole_file_is_made_where_it_is_cheap_or_asked_for(tmp_path, grid_samples):
    samples = grid_samples(1, 100)
    made = {}
    for name, rate_hz, asked in (("slow", 1e6, None), ("fast", 40e6, None), ("asked", 40e6, True), ("not", 1e6, False)):
        options = {"n_channels": 1, "datatype": "ci16_le", "sample_rate_hz": rate_hz, "min_free_bytes": 0}
        with RecordingWriter(tmp_path, name, sha512=asked, **options) as writer:
            writer.write(samples)
        made[name] = "core:sha512" in load_json(writer.path)["global"]
    assert made == {"slow": True, "fast": False, "asked": True, "not": False}
    assert verify(tmp_path) == []

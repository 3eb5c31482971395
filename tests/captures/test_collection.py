"""Collections hold together what belongs together."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import sigmf
from semair.captures.archive import archive
from semair.captures.collection import open_collection, write_collection
from semair.captures.importing import import_file
from semair.captures.verify import verify
from semair.errors import RecordingError


@pytest.fixture
def run(tmp_path, record, grid_samples):
    """Folder of two recordings and their collection."""
    record(grid_samples(2, 20), "run-bs-rx")
    record(grid_samples(1, 30), "run-tx-beacon", datatype="cf32_le")
    roles = {"bs-rx": "run-bs-rx", "tx-beacon": "run-tx-beacon"}
    write_collection(tmp_path, "run", roles, {"seed": {"noise": 3}, "origin": "cable"}, description="bench")
    return tmp_path


@pytest.mark.parametrize("ending", ["", "run", "run.sigmf-collection"])
def test_recordings_come_back_by_role(run, ending):
    collection = open_collection(run / ending)
    assert collection.name == "run"
    assert list(collection.recordings) == ["bs-rx", "tx-beacon"]
    assert collection.recordings["bs-rx"].read().shape == (2, 20)
    assert collection.recordings["tx-beacon"].n_samples == 30
    assert collection.fields == {"seed": {"noise": 3}, "origin": "cable"}
    assert collection.description == "bench"
    assert verify(run) == []
    assert verify(run / ending) == []


def test_the_file_is_what_the_specification_asks_for(run):
    body = json.loads((run / "run.sigmf-collection").read_text())["collection"]
    expected = [
        {"name": name, "hash": hashlib.sha512((run / f"{name}.sigmf-meta").read_bytes()).hexdigest()}
        for name in ("run-bs-rx", "run-tx-beacon")
    ]
    assert body["core:streams"] == expected
    library = sigmf.fromfile(run / "run.sigmf-collection")
    assert library.get_stream_names() == ["run-bs-rx", "run-tx-beacon"]


def test_a_missing_recording_is_named(run):
    (run / "run-bs-rx.sigmf-meta").unlink()
    with pytest.raises(RecordingError, match=r"run-bs-rx\.sigmf-meta: missing"):
        open_collection(run)
    errors = [f for f in verify(run / "run") if f.severity == "error"]
    assert [f.file.name for f in errors] == ["run-bs-rx.sigmf-meta"]


def test_missing_data_of_a_recording_are_named(run):
    (run / "run-bs-rx.sigmf-data").unlink()
    with pytest.raises(RecordingError, match=r"run-bs-rx\.sigmf-data: missing"):
        open_collection(run)


def test_edited_metadata_are_named(run, edit_meta):
    edit_meta(run / "run-tx-beacon.sigmf-meta", lambda m: m["global"].update({"core:author": "somebody"}))
    with pytest.raises(RecordingError, match=r"run-tx-beacon\.sigmf-meta: changed"):
        open_collection(run)
    errors = [f for f in verify(run) if f.severity == "error"]
    assert {f.file.name for f in errors} == {"run-tx-beacon.sigmf-meta"}


@pytest.mark.parametrize(
    ("roles", "fields", "message"),
    [
        ({}, {}, "no recordings"),
        ({"rx": "absent"}, {}, r"absent\.sigmf-meta is missing"),
        ({"RX 1": "run-bs-rx"}, {}, "RX 1"),
        ({"a": "run-bs-rx", "b": "run-bs-rx"}, {}, "several roles"),
        ({"rx": "../run-bs-rx"}, {}, "plain file name"),
        ({"rx": "run-bs-rx"}, {"colour": "red"}, "colour"),
        ({"rx": "run-bs-rx"}, {"roles": {}}, "follow from"),
    ],
)
def test_collections_that_cannot_be_are_refused(run, roles, fields, message):
    with pytest.raises(RecordingError, match=message):
        write_collection(run, "second", roles, fields)
    assert not (run / "second.sigmf-collection").exists()


def test_an_existing_collection_is_replaced_only_when_told_to(run):
    with pytest.raises(RecordingError, match="overwrite=True"):
        write_collection(run, "run", {"rx": "run-bs-rx"})
    write_collection(run, "run", {"rx": "run-bs-rx"}, overwrite=True)
    assert list(open_collection(run).recordings) == ["rx"]


@pytest.mark.parametrize("pairs", [True, False])
def test_collections_of_others_open_by_base_name(run, pairs):
    """Without our namespace, and with the deprecated pairs instead of objects."""
    digest = hashlib.sha512((run / "run-bs-rx.sigmf-meta").read_bytes()).hexdigest()
    stream = ["run-bs-rx", digest] if pairs else {"name": "run-bs-rx", "hash": digest.upper()}
    body = {"core:version": "1.2.0", "core:streams": [stream]}
    (run / "other.sigmf-collection").write_text(json.dumps({"collection": body}))
    collection = open_collection(run / "other")
    assert np.array_equal(list(collection.recordings), ["run-bs-rx"])
    assert collection.fields == {}
    assert [f for f in verify(run / "other") if f.severity == "error"] == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (None, "collection: missing"),
        ({}, "core:streams"),
        ({"core:streams": [{"name": "x"}]}, r"core:streams\.0"),
        ({"core:streams": [{"name": "../x", "hash": "0"}]}, "plain file name"),
        ({"core:streams": [], "semair:roles": {"rx": "x"}}, "semair:roles"),
        ({"core:streams": [], "semair:roles": 3}, "semair:roles"),
    ],
)
def test_damaged_collections_are_refused_by_name(tmp_path, body, message):
    path = tmp_path / "c.sigmf-collection"
    path.write_text(json.dumps({} if body is None else {"collection": body}))
    with pytest.raises(RecordingError, match=message):
        open_collection(path)
    assert any(f.severity == "error" for f in verify(path))


def test_a_folder_must_hold_exactly_one_collection(run):
    write_collection(run, "second", {"rx": "run-bs-rx"})
    with pytest.raises(RecordingError, match=r"2 collections.*run\.sigmf-collection, second"):
        open_collection(run)
    with pytest.raises(RecordingError, match="is missing"):
        open_collection(run / "third")


@pytest.fixture
def stages(tmp_path, grid_samples, record):
    """A folder whose collection ties recordings of two folders below together."""
    folder = tmp_path / "loop"
    for n, stage in enumerate(("access", "pictures")):
        (folder / stage).mkdir(parents=True)
        record(grid_samples(2, 20 + n), f"{stage}-rx")
        for end in ("meta", "data"):
            (tmp_path / f"{stage}-rx.sigmf-{end}").rename(folder / stage / f"bs-rx.sigmf-{end}")
        (folder / stage / "truth.npy").write_bytes(stage.encode())
    (folder / "run.json").write_text("{}")
    roles = {f"{stage}-bs-rx": f"{stage}/bs-rx" for stage in ("access", "pictures")}
    write_collection(folder, "loop", roles, files=["run.json", "access/truth.npy"])
    return folder


def test_recordings_one_folder_below_belong_to_it(stages):
    collection = open_collection(stages)
    assert list(collection.recordings) == ["access-bs-rx", "pictures-bs-rx"]
    assert [recording.n_samples for recording in collection.recordings.values()] == [20, 21]
    assert verify(stages) == verify(stages / "loop") == []
    library = sigmf.fromfile(stages / "loop.sigmf-collection")
    library.verify_stream_hashes()
    assert library.get_stream_names() == ["access/bs-rx", "pictures/bs-rx"]


@pytest.mark.parametrize("file", ["access/truth.npy", "access/bs-rx.sigmf-data", "pictures/bs-rx.sigmf-meta"])
def test_what_was_changed_below_is_named(stages, file):
    with (stages / file).open("r+b") as changed:
        changed.seek(2)
        changed.write(b"!")
    for path in (stages, stages / "loop"):
        assert {finding.file for finding in verify(path) if finding.severity == "error"} == {stages / file}


def test_recordings_below_go_into_an_archive_and_come_back(stages, tmp_path):
    made = archive(stages, tmp_path / "whole.sigmf")
    for source in (made, stages):
        back = tmp_path / f"from-{source.name}"
        import_file(source, back)
        assert verify(back) == []
        for below in ("access/bs-rx.sigmf-data", "pictures/bs-rx.sigmf-meta", "access/truth.npy"):
            assert (back / below).read_bytes() == (stages / below).read_bytes()


@pytest.mark.parametrize("base", ["../bs-rx", "a/b/bs-rx", "/bs-rx", "access/../bs-rx", "access/"])
def test_recordings_elsewhere_do_not(stages, base):
    with pytest.raises(RecordingError, match="must"):
        write_collection(stages, "other", {"bs-rx": base})
    text = (stages / "loop.sigmf-collection").read_text().replace("access/bs-rx", base)
    (stages / "loop.sigmf-collection").write_text(text)
    with pytest.raises(RecordingError, match="must"):
        open_collection(stages)

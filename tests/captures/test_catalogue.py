"""The catalogue: what is listed is what is there, whatever the index says."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest
from semair.captures import catalogue as module
from semair.captures.catalogue import INDEX_NAME, catalogue, parse_date, select
from semair.captures.labels import add_label
from semair.captures.reader import Recording
from semair.captures.writer import RecordingWriter
from semair.errors import RecordingError


@pytest.fixture
def lab(tmp_path, record, grid_samples) -> Path:
    """Three recordings in two runs."""
    record(grid_samples(2, 3000), "bs-rx", tmp_path / "lab" / "monday")
    record(grid_samples(1, 500), "tx", tmp_path / "lab" / "monday")
    with RecordingWriter(
        tmp_path / "lab" / "tuesday", "bs-rx", n_channels=4, datatype="ci16_le", sample_rate_hz=20e6, min_free_bytes=0,
        frequency_hz=2.4e9,
    ) as writer:  # fmt: skip
        writer.write(grid_samples(4, 100))
        writer.gap(33)
        writer.write(grid_samples(4, 100))
        for snr_db in (9.0, 11.0, 40.0):
            writer.annotate(0, 50, "frame", kind="frame", snr_db=snr_db, snr_method="known symbols")
    return tmp_path / "lab"


def paths(found: module.Catalogue) -> list[str]:
    return [row.path for row in found.rows]


ALL = ["monday/bs-rx.sigmf-meta", "monday/tx.sigmf-meta", "tuesday/bs-rx.sigmf-meta"]


def test_a_listing_says_what_the_recordings_say(lab):
    found = catalogue(lab)
    assert paths(found) == ALL
    row = found.rows[2]
    assert (row.run, row.name, row.rate_hz, row.frequency_hz, row.n_channels) == ("tuesday", "bs-rx", 20e6, 2.4e9, 4)
    assert (row.n_samples, row.duration_s, row.gaps, row.lost_samples) == (200, 1e-5, 1, 33)
    assert (row.labels, row.snr_db, row.complete) == ({"gap": 1, "frame": 3}, 11.0, True)
    assert row.problem == ""


def test_the_second_look_opens_only_what_changed(lab, monkeypatch):
    first = catalogue(lab)
    assert (first.read, first.notes) == (3, [])
    opened: list[str] = []
    look = module._look
    monkeypatch.setattr(module, "_look", lambda folder, path: opened.append(path) or look(folder, path))
    assert catalogue(lab).rows == first.rows
    assert opened == []
    add_label(Recording.open(lab / ALL[1]), "good")
    shutil.rmtree(lab / "tuesday")
    second = catalogue(lab)
    assert opened == [ALL[1]]
    assert paths(second) == ALL[:2]
    assert second.rows[1].labels == {"good": 1}
    assert catalogue(lab, rebuild=True).read == 2


def test_data_that_were_cut_behind_the_back_of_the_index_are_seen(lab):
    catalogue(lab)
    data = lab / "monday" / "bs-rx.sigmf-data"
    os.truncate(data, 400)
    assert "was cut" in catalogue(lab).rows[0].problem
    data.unlink()
    assert "missing" in catalogue(lab).rows[0].problem


def test_what_cannot_be_opened_is_listed_with_the_reason(lab):
    (lab / ALL[0]).write_text("{")
    (lab / "odd.sigmf-meta").mkdir()
    (row, *_) = catalogue(lab).rows
    assert "no JSON" in row.problem
    assert row.n_samples == 0


def spoil_text(index: Path) -> None:
    index.write_bytes(b"no database at all")


def spoil_page(index: Path) -> None:
    content = bytearray(index.read_bytes())
    content[100:3000] = b"\xff" * 2900
    index.write_bytes(content)


def spoil_row(index: Path) -> None:
    with sqlite3.connect(index) as database:
        database.execute("UPDATE recordings SET row = '{\"path\": 5}'")


def spoil_swap(index: Path) -> None:
    with sqlite3.connect(index) as database:
        rows = dict(database.execute("SELECT path, row FROM recordings").fetchall())
        database.execute("UPDATE recordings SET row = ?", (rows[ALL[2]],))


def spoil_view(index: Path) -> None:
    index.unlink()
    with sqlite3.connect(index) as database:
        database.execute("CREATE VIEW recordings AS SELECT 'a' AS path, 'b' AS state, 'c' AS row")


def spoil_version(index: Path) -> None:
    with sqlite3.connect(index) as database:
        database.execute("PRAGMA user_version = 99")


@pytest.mark.parametrize("spoil", [spoil_text, spoil_page, spoil_row, spoil_swap, spoil_view, spoil_version])
def test_a_damaged_index_changes_nothing_and_is_mended(lab, spoil):
    good = catalogue(lab).rows
    spoil(lab / INDEX_NAME)
    assert catalogue(lab).rows == good
    third = catalogue(lab)
    assert (third.rows, third.read, third.notes) == (good, 0, [])


def test_an_index_that_is_a_link_is_left_alone(lab, tmp_path):
    other = tmp_path / "other.sqlite"
    other.write_bytes(b"precious")
    (lab / INDEX_NAME).symlink_to(other)
    found = catalogue(lab)
    assert paths(found) == ALL
    assert any("link" in note for note in found.notes)
    assert other.read_bytes() == b"precious"


def test_a_folder_that_cannot_be_written_is_listed_without_an_index(lab, monkeypatch):
    def refuse(*_args: object) -> sqlite3.Connection:
        raise sqlite3.OperationalError("attempt to write a readonly database")

    monkeypatch.setattr(module, "_connect", refuse)
    for _ in range(2):
        found = catalogue(lab)
        assert (paths(found), found.read) == (ALL, 3)
        assert any("readonly" in note for note in found.notes)


def test_links_to_other_folders_are_not_followed(lab):
    (lab / "loop").symlink_to(lab)
    assert paths(catalogue(lab)) == ALL


def test_rows_are_chosen_by_what_they_say(lab):
    meta = json.loads((lab / ALL[1]).read_text())
    meta["global"]["core:extensions"] = []
    meta["captures"][0]["core:datetime"] = "2025-05-05T10:00:00.123456789Z"
    (lab / ALL[1]).write_text(json.dumps(meta))
    rows = catalogue(lab).rows
    assert (rows[1].date, rows[1].date_from) == ("2025-05-05T10:00:00+00:00", "recording")

    def chosen(**asked: object) -> list[str]:
        return [row.path for row in select(rows, **asked)]

    assert chosen() == ALL
    assert chosen(label="frame") == [ALL[2]]
    assert chosen(min_rate_hz=2e6) == [ALL[2]]
    assert chosen(min_channels=2) == [ALL[0], ALL[2]]
    assert chosen(gaps=True) == [ALL[2]]
    assert chosen(gaps=False) == ALL[:2]
    assert chosen(since=parse_date("2025-05-06")) == [ALL[0], ALL[2]]
    assert chosen(since=datetime(2025, 5, 5, 10, tzinfo=UTC)) == ALL


def test_dates_and_folders_that_are_none_are_refused(tmp_path):
    with pytest.raises(RecordingError, match="no date"):
        parse_date("last week")
    with pytest.raises(RecordingError, match="no folder"):
        catalogue(tmp_path / "nowhere")

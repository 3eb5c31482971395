"""The page of an evaluation: complete, self-contained, and right for partial results."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace

import pytest
from semair.errors import StorageError
from semair.flowgraphs.uad_figures import FIGURE_NAME, JSON_NAME, PAGE_NAME, page, table, write_evaluation
from semair.models.uad.sweeps import Condition


def row(detector: str, condition: Condition, value: float, curve=()) -> dict:
    return {
        "detector": detector,
        "condition": asdict(condition),
        "error": [value, 0.8 * value, 1.2 * value if value else 1e-4],
        "miss": 0.1,
        "false_alarm": 0.01,
        "threshold": 0.5,
        "n_slots": 10,
        "over_cd": None,
        "curve": list(curve),
    }


def results() -> dict:
    base = Condition()
    lengths = [
        row(
            name, replace(base, length=length), 0.1 * scale / length if length < 16 else 0.0, [[0.1, 0.01], [0.01, 0.1]]
        )
        for name, scale in (("cd", 1.0), ("uad-paper, noise unknown", 0.5))
        for length in (8, 12, 16)
    ]
    channels = [
        row("cd", replace(base, channel=channel, length=length), 0.01 * length)
        for channel in ("array", "lab")
        for length in (8, 12)
    ]
    pools = [row("cd", replace(base, fresh_pool=fresh), 0.02) for fresh in (False, True)]
    return {
        "format": 1,
        "settings": {"seed": 1, "detectors": "cd <of ours>"},
        "sweeps": {"length": lengths, "snapshots": [], "channel": channels, "pool": pools},
    }


def test_page_shows_every_sweep_that_has_results_and_needs_nothing_else():
    text = page(results())
    assert "Error probability over preamble length" in text
    assert "correlated channels" in text
    assert "number of snapshots" not in text
    assert text.count("<svg") == 4
    assert "cd &lt;of ours&gt;" in text
    assert "uad-paper, noise unknown" in text
    assert not re.findall(r"(?:src|href)=\"(?!#)", text)
    assert "<script" not in text


def test_table_has_one_row_for_each_detector_and_condition():
    content = results()["sweeps"]
    header, *lines = table("length", content["length"])
    assert header == ["detector", "condition", "8", "12", "16"]
    assert lines[0] == ["cd", "", "1.3e-02", "8.3e-03", "< 1e-04"]
    assert [line[0] for line in lines] == ["cd", "uad-paper, noise unknown"]
    header, *lines = table("channel", content["channel"])
    assert [line[1] for line in lines] == ["8x8 array, clustered", "lab, 4 antennas x 16 groups"]
    assert table("pool", content["pool"])[0][2:] == ["from training", "fresh"]


def test_files_of_whole_partial_and_empty_evaluations(tmp_path):
    write_evaluation(results(), tmp_path / "whole")
    assert {file.name for file in (tmp_path / "whole").iterdir()} == {JSON_NAME, PAGE_NAME, FIGURE_NAME}
    assert (tmp_path / "whole" / FIGURE_NAME).read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "whole" / JSON_NAME).read_text()) == results()
    partial = {**results(), "sweeps": {"length": results()["sweeps"]["length"][:1], "snr": []}}
    write_evaluation(partial, tmp_path / "partial")
    write_evaluation({**results(), "sweeps": {"length": []}}, tmp_path / "empty")
    assert not (tmp_path / "empty" / FIGURE_NAME).exists()
    write_evaluation(results(), tmp_path / "table", figures=False)
    assert [file.name for file in (tmp_path / "table").iterdir()] == [JSON_NAME]


def test_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write the evaluation"):
        write_evaluation(results(), tmp_path / "file" / "below")

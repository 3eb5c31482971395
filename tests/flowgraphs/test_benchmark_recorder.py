"""The recorder's part of the benchmark of captures: its entries at the smallest sizes, against what must come out."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")

from semair.flowgraphs.benchmarks import _captures_recorder as recorder
from semair.flowgraphs.benchmarks import entry_names


def values(entries) -> dict[str, float]:
    return {entry.name: entry.value for entry in entries}


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (partial(recorder.flipped_bits, 16), {f"flipped-bits/{kind}": 1.0 for kind in recorder.FLIP_KINDS}),
        (partial(recorder.gaps_with_time, 7), {"gaps/with-radio-time": 1.0, "gaps/with-radio-time/invented": 0.0}),
    ],
)
def test_what_must_be_caught_is_caught(measure, expected):
    assert values(measure(3, lambda share: None)) == expected


def test_gaps_by_frames_are_found_and_none_invented():
    found = values(recorder.gaps_by_frames(6, 3, lambda share: None))
    assert (found["gaps/by-frame-counter"], found["gaps/by-frame-counter/invented"]) == (1.0, 0.0)
    assert found["gaps/by-frame-counter/count-error"] <= 3


@pytest.mark.slow
def test_killed_recorders_and_full_disks_leave_whole_recordings():
    assert values(recorder.killed(2, 3, lambda share: None)) == {"kill-9/recovered": 1.0}
    assert set(values(recorder.filled(1, 3, lambda share: None)).values()) == {1.0}


def test_the_cost_of_both_sinks_is_taken_over_the_same_samples(tmp_path):
    lines = []
    for sink in ("recorder", "file_sink"):
        given = {"folder": str(tmp_path), "sink": sink, "seconds": 0.2}
        recorder.record_at_rate(given, lambda line: lines.append(json.loads(json.dumps(line))))
        assert list(Path(tmp_path).iterdir()) == []
    assert [line["samples"] for line in lines] == [2_000_000, 2_000_000]
    assert set(lines[0]["cpu"]) >= {"block"}
    assert all(line["cpu"]["block"] > 0 for line in lines)


def test_the_interval_of_a_share_is_that_of_clopper_and_pearson():
    # The rule of three: no failure in n trials bounds the share by 1 - 0.025 ** (1 / n).
    assert recorder.share_interval(200, 200) == (pytest.approx(0.025 ** (1 / 200)), 1.0)
    assert recorder.share_interval(0, 200) == (0.0, pytest.approx(1 - 0.025 ** (1 / 200)))


def test_quick_leaves_out_only_what_takes_long():
    assert set(entry_names("captures", True)) <= set(entry_names("captures", False))

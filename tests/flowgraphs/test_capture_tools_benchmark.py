"""The figures of the tools around recordings, small: they are measured, and what must be none is none."""

from __future__ import annotations

import pytest
from semair.flowgraphs.benchmarks import _captures_tools as tools
from semair.flowgraphs.benchmarks import entry_names


def quiet(_share: float) -> None:
    """Nobody is told."""


def test_the_entries_belong_to_the_area():
    names = entry_names("captures", quick=True)
    promised = [name for measurement in tools.measurements(True) for name in measurement.names]
    assert [name for name in names if name.startswith("tools/")] == promised


def test_listing_is_measured_beside_opening_each():
    first, second, speed_up = tools.listing(40, quiet)
    assert [e.name for e in (first, second, speed_up)] == list(tools.measurements(True)[0].names)
    assert first.settings["recordings"] == 40
    assert len(second.settings["second_s"]) == 3
    assert speed_up.value == pytest.approx(first.value / second.value)


@pytest.mark.slow
def test_what_others_made_opens_or_gives_a_reason(monkeypatch):
    monkeypatch.delenv(tools.DATA_VARIABLE, raising=False)
    (entry,) = tools.foreign_recordings(quiet)
    assert entry.settings["failed"] == {}
    assert entry.value == 0
    refused = entry.settings["refused_with_reason"]
    assert set(refused) == {"offset in doubt", "cut inside a sample", "cut between samples", "empty"}
    assert entry.settings["opened"] + len(refused) == entry.settings["cases"]


@pytest.mark.slow
def test_damaged_files_are_read_or_refused():
    (entry,) = tools.damaged_files(60, 5, quiet)
    assert entry.settings["failures"] == []
    assert entry.settings["read"] + entry.settings["refused"] == 60
    # Most changes are seen: checksums cover metadata, collections and data.
    assert entry.settings["refused"] > 20

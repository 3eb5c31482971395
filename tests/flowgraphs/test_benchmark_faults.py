"""The figures of faults: what counts as reported, and the ones that are real at their smallest size."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gnuradio.blocks", reason="GNU Radio is not installed")

from semair.captures.writer import RecordingWriter
from semair.flowgraphs.benchmarks import _hardware_faults as faults
from semair.flowgraphs.benchmarks import hardware


def only(entries):
    (entry,) = list(entries)
    return entry


def ignore(share: float) -> None:
    return None


@pytest.mark.parametrize(
    ("seconds", "report", "share"),
    [(1.9, "the radio vanished", 1.0), (2.1, "the radio vanished", 0.0), (0.1, "Traceback", 0.0), (0.0, "", 0.0)],
)
def test_a_fault_counts_where_it_is_named_in_time(seconds, report, share):
    entry = only(faults.inject("x", lambda folder: (seconds, report), "vanished", 3, ignore))
    assert (entry.name, entry.value, entry.settings["faults"]) == ("faults/x", share, 3)
    assert entry.settings["longest_s"] == seconds


def test_a_damaged_recording_counts_as_a_fault_that_was_not_met():
    def trial(folder: Path, damage: bool) -> tuple[float, str]:
        with RecordingWriter(
            folder / "run", faults.RX_NAME, n_channels=1, datatype="cf32_le", sample_rate_hz=1e6
        ) as writer:
            writer.write(np.full((1, 1000), 0.25, np.complex64))
        if damage:
            data = folder / "run" / f"{faults.RX_NAME}.sigmf-data"
            data.write_bytes(data.read_bytes()[:-4])
        return 0.1, "vanished"

    assert only(faults.inject("x", partial(trial, damage=False), "vanished", 1, ignore)).value == 1.0
    assert only(faults.inject("x", partial(trial, damage=True), "vanished", 1, ignore)).value == 0.0


def test_a_server_that_dies_and_strangers():
    entry = only(faults.inject("zmq-killed", partial(faults._lose_server, signal.SIGKILL), "vanished", 1, ignore))
    assert entry.settings["faults"] == 1
    garbage = only(faults.disturb(200, 1, ignore))
    assert garbage.value == 1.0
    assert garbage.settings["refused"] > 0


@pytest.mark.slow
def test_a_usrp_that_is_unplugged_and_one_that_never_was(tmp_path):
    pytest.importorskip("gnuradio.uhd", reason="gr-uhd is not installed")
    _, report = faults._lose_unit(tmp_path)
    assert "the uhd radio vanished: after" in report
    assert faults._is_whole(tmp_path / "run")
    _, report = faults._open_nobody(tmp_path)
    assert "No devices found" in report


def test_the_quick_look_has_fewer_of_them():
    names = [[m.names for m in hardware.measurements(quick) if "faults" in m.names[0]] for quick in (True, False)]
    assert set(names[0]) < set(names[1])

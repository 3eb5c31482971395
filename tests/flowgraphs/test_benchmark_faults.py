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
from semair.flowgraphs.benchmarks._hardware_pulse import Pulse


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


def test_one_thing_left_behind_spoils_a_series():
    def series(folder: Path, count: int, left: list[str]):
        for _ in range(count):
            yield 0.1, "is busy"
        return left

    assert only(faults.inject_series("x", partial(series, left=[]), "busy", 3, ignore)).value == 1.0
    entry = only(faults.inject_series("x", partial(series, left=["a transmitter"]), "busy", 3, ignore))
    assert (entry.value, entry.settings["left"]) == (0.0, ["a transmitter"])
    entry = only(faults.inject_series("x", partial(series, left=[]), "vanished", 3, ignore))
    assert (entry.value, entry.settings["other_reports"]) == (0.0, ["is busy"])


def test_served_radios_refuse_whoever_comes_second_and_whoever_speaks_otherwise():
    assert only(faults.inject_series("zmq-busy", faults._open_served, "in use", 3, ignore)).value == 1.0
    foreign = faults.inject_series("zmq-version", faults._open_foreign, "version 7 of the protocol", 3, ignore)
    assert only(foreign).value == 1.0


@pytest.mark.parametrize(
    ("fault", "counter"),
    [
        ("rx-overflow", "lost"),
        pytest.param("rx-lost-packet", "lost", marks=pytest.mark.slow),
        pytest.param("tx-underflow", "underflow", marks=pytest.mark.slow),
        pytest.param("tx-late", "time_error", marks=pytest.mark.slow),
        pytest.param("tx-sequence", "seq_error", marks=pytest.mark.slow),
    ],
)
def test_a_usrp_goes_on_after_what_it_reports(fault, counter):
    pytest.importorskip("gnuradio.uhd", reason="gr-uhd is not installed")
    entry = only(faults.inject_series("x", partial(faults._stream, fault, counter), counter, 2, ignore))
    assert "left" not in entry.settings, entry.settings
    assert entry.settings["faults"] == 2


@pytest.mark.slow
def test_a_usrp_with_a_foreign_image_is_named():
    pytest.importorskip("gnuradio.uhd", reason="gr-uhd is not installed")
    entry = only(faults.inject_series("x", faults._open_wrong_firmware, "FPGA compatibility number 11", 1, ignore))
    assert "left" not in entry.settings, entry.settings


@pytest.mark.slow
def test_a_usrp_that_is_unplugged_and_one_that_never_was(tmp_path):
    pytest.importorskip("gnuradio.uhd", reason="gr-uhd is not installed")
    _, report = faults._lose_unit(tmp_path)
    assert "the uhd radio vanished: after" in report
    assert faults._is_whole(tmp_path / "run")
    _, report = faults._open_nobody(tmp_path)
    assert "No devices found" in report


@pytest.mark.slow
def test_garbage_does_a_served_radio_no_harm():
    entry = only(faults.fuzz(1.0, 3, ignore))
    assert (entry.name, entry.value, entry.settings["undecided"]) == ("zmq/fuzzed-failures", 0.0, 0)
    assert entry.settings["refused"] > 0


def test_a_pulse_is_missed_only_while_somebody_looks():
    count, now = [0], [0.0]
    pulse = Pulse(lambda: count[0], lambda: now[0])
    for _ in range(100):
        # Nothing has begun yet.
        now[0] += 0.02
        pulse.look()
    assert pulse.longest_s == 0
    count[0] = 1
    pulse.look()
    for _ in range(50):
        now[0] += 0.02
        pulse.look()
    assert pulse.longest_s == pytest.approx(1.0)
    # The machine was busy for a minute: that is no minute of silence.
    now[0] += 60
    pulse.look()
    assert pulse.longest_s == pytest.approx(1.2)
    count[0] = 2
    pulse.look()
    now[0] += 0.02
    pulse.look()
    assert pulse.longest_s == pytest.approx(1.2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "series", "words"),
    [
        ("overflow", partial(faults._stream_iio, "lose", "readbuf", "overflows"), "overflows"),
        ("attribute", partial(faults._refuse, faults._REFUSED), "refuses"),
        ("garbage", partial(faults._refuse, faults._GARBAGE), "ip:127.0.0.1"),
        ("timeout", partial(faults._refuse, faults._SILENCE), "vanished"),
        ("busy", faults._open_busy_iio, "is busy"),
    ],
)
def test_an_iio_radio_reports_what_it_meets_and_goes_on(name, series, words):
    pytest.importorskip("adi", reason="pyadi-iio is not installed")
    entry = only(faults.inject_series(name, series, words, 1, ignore))
    # How soon depends on the machine; what and that nothing is left behind does not.
    assert not entry.settings.get("left") and not entry.settings.get("other_reports"), entry.settings


def test_the_quick_look_has_fewer_of_them():
    names = [[m.names for m in hardware.measurements(quick) if "faults" in m.names[0]] for quick in (True, False)]
    assert set(names[0]) < set(names[1])

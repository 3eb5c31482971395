"""A radio whose samples stop is reported; one that waits, or a machine that slept, is not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from semair.errors import RadioError
from semair.hardware.watch import STALL_S, START_S, StallWatch


def play(steps: list[tuple[float, int]], **facts: Any) -> list[int]:
    """Let time pass and samples come; the steps at which something is reported."""
    radio: Any = SimpleNamespace(**{"kind": "uhd", "waits": False, "tells_when_gone": False, **facts})
    now = [0.0]
    come = [0]
    watch = StallWatch(radio, lambda: come[0], clock=lambda: now[0])
    told = []
    for k, (passed_s, more) in enumerate(steps):
        now[0] += passed_s
        come[0] += more
        failure = watch.failure()
        if failure is not None:
            assert isinstance(failure, RadioError)
            told.append(k)
    return told


STEP_S = 0.05
QUIET = [(STEP_S, 0)]
BUSY = [(STEP_S, 1000)]


def test_samples_that_stop_are_reported_within_two_seconds():
    told = play(BUSY * 20 + QUIET * 100)
    assert told[0] == pytest.approx(20 + STALL_S / STEP_S, abs=1)
    assert (told[0] - 20) * STEP_S < 2.0


def test_a_radio_has_more_time_to_begin():
    assert play(QUIET * 200)[0] == pytest.approx(START_S / STEP_S, abs=2)


def test_samples_that_go_on_are_not_reported():
    assert play((QUIET * 20 + BUSY) * 50) == []


def test_a_machine_that_slept_is_no_radio_that_vanished():
    assert play(BUSY * 5 + [(3600.0, 0)] + BUSY * 5 + [(30.0, 0)] * 3 + BUSY) == []


@pytest.mark.parametrize("fact", ["waits", "tells_when_gone"])
def test_some_radios_are_not_watched(fact):
    assert play(BUSY * 5 + QUIET * 1000, **{fact: True}) == []

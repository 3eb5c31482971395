"""The benchmark of signal replay: what it yields, and that it would notice what it looks for."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")

from semair.blocks.playback import Playback
from semair.blocks.waveforms.resampling import Resampler
from semair.flowgraphs.benchmarks import _captures_replay as replay
from semair.flowgraphs.benchmarks.entry import Entry


def only(measured: Any) -> Entry:
    (entry,) = list(measured)
    return entry


def test_entries_are_those_announced():
    for quick in (True, False):
        names = [name for measurement in replay.measurements(quick) for name in measurement.names]
        assert names == [f"signal-replay/{name}" for name in ("bit-equal", "resampling-error", "resampling-speed")]


def test_every_play_is_equal_and_a_wrong_bit_is_noticed(monkeypatch):
    measure = partial(replay.bit_equal, 9000, 3, 1, lambda _: None)
    assert only(measure()).value == 1.0
    counter = itertools.count()
    read_into = Playback.read_into

    def wrong(self: Playback, item: int, out: Any) -> None:
        read_into(self, item, out)
        if next(counter) == 40:
            out[0][0] += np.float32(1e-6)

    monkeypatch.setattr(Playback, "read_into", wrong)
    entry = only(measure())
    assert 0 < entry.value < 1
    assert entry.settings["plays"] == 30


def test_the_error_is_that_of_the_filter_and_a_delay_is_noticed(monkeypatch):
    entry = only(replay.resampling_error(1, 1, lambda _: None))
    assert entry.value < entry.reference == -90.0
    assert set(entry.settings["ratios_db"]) == {"1/10", "125/192", "3/2", "192/125", "2"}
    resample = Resampler.resample
    monkeypatch.setattr(Resampler, "resample", lambda self, x, at, n: resample(self, x, at + 1, n))
    assert only(replay.resampling_error(1, 1, lambda _: None)).value > -40


def test_the_speed_stands_beside_a_peer_of_the_same_run():
    told: list[float] = []
    entry = only(replay.resampling_speed(40_000, 2, 1, told.append))
    assert entry.value > 0
    assert isinstance(entry.reference, float) and entry.reference > 0
    assert told == [0.5, 1.0]
    assert entry.settings["taps"] == 192 * 125

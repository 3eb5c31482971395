"""Data sets: whole runs on one side or the other, every item once, nothing across a gap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from semair.captures.datasets import DataSet, RunItems, batches, gapless, joined, windows
from semair.captures.reader import Recording
from semair.captures.writer import RecordingWriter
from semair.errors import RecordingError, ScenarioError


def items(name: str, n: int, first: int = 0) -> RunItems:
    numbers = np.arange(first, first + n)
    return RunItems(name, f"hash of {name}", {"number": numbers, "length": numbers % 3, "y": np.zeros((n, 2, 2))})


def test_a_run_is_trained_with_or_kept_out():
    one, two = items("a", 5), items("b", 5)
    assert len(DataSet((one,), (two,)).training[0]) == 5
    renamed = RunItems("copy of a", one.sha512, one.arrays)
    for training, kept_out in (((one,), (renamed,)), ((one, renamed), (two,))):
        with pytest.raises(ScenarioError, match=r"copy of a.*same samples as a"):
            DataSet(training, kept_out)
    with pytest.raises(ScenarioError, match="kept out"):
        DataSet((one,), ())
    with pytest.raises(ScenarioError, match="train with"):
        DataSet((items("empty", 0),), (two,))


def test_items_of_a_run_belong_together():
    with pytest.raises(ValueError, match="same number"):
        RunItems("a", "h", {"y": np.zeros(3), "length": np.zeros(4)})
    with pytest.raises(ValueError, match="cannot be joined"):
        joined([items("a", 3), RunItems("b", "h", {"y": np.zeros(3)})])
    both = joined([items("a", 2), items("b", 3, 10)])
    assert both["number"].tolist() == [0, 1, 10, 11, 12]
    assert both["run"].tolist() == [0, 0, 1, 1, 1]


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 99))
def test_batches_hold_every_item_once_and_one_length_each(n, size, seed):
    runs = [items("a", n), items("b", 4, 100)]
    seen = []
    for batch in batches(runs, size, "length", np.random.default_rng(seed)):
        assert 1 <= len(batch["number"]) <= size
        assert len(set(batch["length"].tolist())) == 1
        assert batch["y"].shape == (len(batch["number"]), 2, 2)
        seen += batch["number"].tolist()
    assert sorted(seen) == [*range(n), *range(100, 104)]


def test_order_follows_from_the_generator():
    def order(seed):
        return [b["number"].tolist() for b in batches([items("a", 30)], 4, "length", np.random.default_rng(seed))]

    assert order(1) == order(1) != order(2)
    with pytest.raises(ValueError, match="size=0"):
        next(batches([items("a", 3)], 0, "length", np.random.default_rng(0)))


@pytest.fixture
def gappy(tmp_path) -> Recording:
    """Three stretches of 100, 50 and 80 samples with losses between them; sample k of the file is k."""
    values = np.arange(230, dtype=np.complex64)[None] / 1024
    with RecordingWriter(
        tmp_path, "x", n_channels=1, datatype="cf32_le", sample_rate_hz=1e6, frequency_hz=1e9
    ) as writer:
        writer.write(values[:, :100])
        writer.gap(7)
        writer.write(values[:, 100:150])
        writer.gap(1000)
        writer.write(values[:, 150:])
    return Recording.open(tmp_path / "x")


def test_windows_never_reach_over_a_gap(gappy):
    assert gapless(gappy) == [(0, 100), (100, 150), (150, 230)]
    starts = np.arange(-5, 240)
    found = dict(windows(gappy, starts, 40))
    expected = [s for s in starts if any(b <= s and s + 40 <= e for b, e in ((0, 100), (100, 150), (150, 230)))]
    assert [int(starts[k]) for k in found] == expected
    for k, samples in found.items():
        np.testing.assert_array_equal(samples[0] * 1024, np.arange(starts[k], starts[k] + 40))
    with pytest.raises(RecordingError, match="n_samples=0"):
        next(windows(gappy, [0], 0))

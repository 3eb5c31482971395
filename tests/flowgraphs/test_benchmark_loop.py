"""Benchmark of the closed loop: the entries are those promised, with what the run measured."""

from __future__ import annotations

import json
from functools import partial

import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")
pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

from semair.flowgraphs.benchmarks import areas, entry_names, loop
from semair.flowgraphs.scenario import load_scenario


@pytest.mark.slow
def test_measurements_yield_the_entries_they_promise(monkeypatch):
    assert areas()["loop"] is loop
    small = ['loop.downlink.csi.engine="torch"', 'loop.downlink.pictures.engine="torch"']
    monkeypatch.setattr(loop, "load_scenario", lambda name, overrides: load_scenario(name, [*overrides, *small]))
    told: list[float] = []
    entries = list(partial(loop.whole, 6, 1)(told.append))
    assert [entry.name for entry in entries] == entry_names("loop", quick=True)
    assert told[-1] == 1.0
    for entry in entries:
        json.dumps(entry.as_dict(), allow_nan=False)
        settings = entry.settings
        assert settings["active"] == sum(settings[name] for name in ("served", "missed", "waiting", "csi_lost"))
    share, loss = entries
    assert share.ci95[0] <= share.value <= share.ci95[1] <= 1
    gain = loss.settings["perfect_psnr_db"][0] - loss.settings["psnr_db"][0]
    assert loss.value == pytest.approx(gain)

"""The benchmark of the virtual Pluto, in small."""

from __future__ import annotations

import shutil

import pytest
from semair.flowgraphs.benchmarks import _hardware_pluto as pluto
from semair.flowgraphs.benchmarks import entry_names


def test_the_area_has_the_entries():
    names = entry_names("hardware", quick=True)
    assert {f"pluto/client/{name}" for name in pluto.CLIENTS} <= set(names)
    assert {"pluto/duplex-losses", "pluto/fuzzed-failures"} <= set(names)
    assert "pluto/duplex-highest-clean" in entry_names("hardware", quick=False)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("iio_writedev") is None, reason="libiio-utils is not installed")
def test_clients_pass_and_garbage_does_no_harm():
    shares: list[float] = []
    for entry in pluto.pass_clients(shares.append):
        assert entry.value == 1.0, entry.name
    (fuzzed,) = pluto.fuzz(1.0, 2, shares.append)
    assert fuzzed.settings["requests"] > 10
    # How many samples a busy machine receives is no matter here; that the server answered and stayed small is.
    assert fuzzed.settings["grown_bytes"] < 64 << 20
    assert max(shares) <= 1.0

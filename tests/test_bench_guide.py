"""The files that the bench guide shows are ones that the software takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[1] / "hardware" / "BENCH.md"
FILES = [
    (kind, re.sub(r"^ {3}", "", text, flags=re.MULTILINE))
    for kind, text in re.findall(r"```toml\n *# (\w+)\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
]


def test_the_guide_shows_a_site_and_a_scenario():
    assert {kind for kind, _ in FILES} >= {"site", "scenario"}


@pytest.mark.parametrize(("kind", "text"), FILES)
def test_what_the_guide_shows_is_taken(kind, text, tmp_path):
    pytest.importorskip("gnuradio.gr", reason="GNU Radio is not installed")
    from semair.flowgraphs.scenario import load_scenario
    from semair.hardware.site import load_site
    from semair.hardware.virtual.bench import load_bench

    path = tmp_path / f"{kind}.toml"
    path.write_text(text, encoding="utf-8")
    {"site": load_site, "scenario": lambda file: load_scenario(str(file), []), "bench": load_bench}[kind](path)

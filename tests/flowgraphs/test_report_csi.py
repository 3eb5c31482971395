"""The report of CSI feedback: it shows what the run measured, and it holds where something is missing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")
pytest.importorskip("torch", reason="torch is not installed")

from semair.errors import ScenarioError
from semair.flowgraphs.csi_feedback_run import replay_run, run_csi_feedback
from semair.flowgraphs.csi_metrics import judge_frames
from semair.flowgraphs.report import write_report
from semair.flowgraphs.runfolder import RunFolder
from semair.flowgraphs.scenario import load_scenario

N_FRAMES = 10


@pytest.fixture(scope="module")
def live(tmp_path_factory) -> Path:
    """A run with shipped weights, whose engine needs no compiling; read only but for its report."""
    scenario = load_scenario("csi-lab", ['csi.engine="torch"'])
    folder = tmp_path_factory.mktemp("runs") / "run"
    run_csi_feedback(scenario, folder, n_frames=N_FRAMES)
    return folder


@pytest.fixture
def copied(live, tmp_path) -> Path:
    return Path(shutil.copytree(live, tmp_path / "copy"))


def cells(page: str) -> dict[str, list[float]]:
    """Mean and interval by name, from the table of the page."""
    found = re.findall(r'<tr data-name="([^"]+)">(.*?)</tr>', page, re.DOTALL)
    return {name: [float(x) for x in re.findall(r'<data value="([^"]+)">', row)] for name, row in found}


def test_the_page_says_what_was_measured(live):
    page = write_report(live).read_text(encoding="utf-8")
    metrics = json.loads((live / "metrics.json").read_text())
    shown = cells(page)
    for name in ("nmse_db", "symbol_level_nmse_db", "chain_loss_db", "cosine", "sum_rate_share", "estimate_nmse_db"):
        assert shown[name] == metrics["csi"][name], name
    for user, expected in enumerate(metrics["csi"]["nmse_db_by_user"]):
        assert shown[f"nmse_db_user_{user}"] == expected
    for stage in ("decode", "encode", "estimate", "total"):
        for key in ("p50", "p99"):
            assert f'<data value="{metrics["latency_ms"][stage][key]}">' in page
    assert "users unheard" in page
    assert "semair run csi-feedback --scenario csi-lab" in page
    assert "<script" not in page
    assert "random-access" not in page


@pytest.mark.slow
def test_examples_are_the_frames_at_the_quantiles_of_the_error(live):
    page = write_report(live).read_text(encoding="utf-8")
    folder = RunFolder(live)
    errors = judge_frames(folder, folder.rows(folder.decisions), folder.scenario())
    order = errors["frame"][np.argsort(errors["nmse"].mean(axis=1))]
    n = len(order) - 1
    expected = {"good": order[round(0.1 * n)], "median": order[round(0.5 * n)], "bad": order[round(0.9 * n)]}
    told = dict(re.findall(r'aria-label="CSI of the (\w+) frame, number (\d+)', page))
    assert told == {name: str(number) for name, number in expected.items()}


@pytest.mark.slow
def test_errors_frame_by_frame_average_to_the_metrics(live):
    folder = RunFolder(live)
    errors = judge_frames(folder, folder.rows(folder.decisions), folder.scenario())
    metrics = json.loads(folder.metrics.read_text())["csi"]
    assert 10 * np.log10(errors["nmse"].mean()) == pytest.approx(metrics["nmse_db"][0])
    assert errors["rate"].mean() == pytest.approx(metrics["sum_rate_share"][0])


@pytest.mark.slow
def test_a_replay_has_a_report_of_its_own(copied):
    replay_run(copied)
    page = write_report(copied / "replays" / "same").read_text(encoding="utf-8")
    assert "Replay" in page
    assert cells(page)["nmse_db"] == cells(write_report(copied).read_text(encoding="utf-8"))["nmse_db"]


@pytest.mark.slow
def test_a_run_that_was_killed_or_kept_little_has_a_report(copied):
    (copied / "metrics.json").unlink()
    for path in copied.glob("bs-rx.sigmf-*"):
        path.unlink()
    page = write_report(copied).read_text(encoding="utf-8")
    assert "did not end in order" in page
    assert "kept no recording" in page
    assert "nmse_db" in cells(page)


@pytest.mark.slow
def test_weights_that_are_gone_cost_the_symbol_level_alone(copied):
    info = json.loads((copied / "run.json").read_text())
    info["model"]["sha256"] = "0" * 64
    (copied / "run.json").write_text(json.dumps(info))
    page = write_report(copied).read_text(encoding="utf-8")
    assert "no longer what it was in the run" in page
    assert 'aria-label="CSI of the median frame' in page


@pytest.mark.slow
def test_nothing_decoded_is_said(copied):
    rows = np.load(copied / "decisions.npy")
    np.save(copied / "decisions.npy", rows[:0])
    (copied / "metrics.json").unlink()
    page = write_report(copied).read_text(encoding="utf-8")
    assert "In no frame was every user decoded" in page
    assert "There is no frame of which truth and recovered CSI are known" in page


def test_detectors_beside_each_other_are_refused(live):
    with pytest.raises(ScenarioError, match="CSI feedback"):
        write_report(live, detectors=["map-search"])

"""`semair capture channel`, `semair run random-access --channel`, `semair train uad --from`: as a user calls them."""

from __future__ import annotations

import json

import pytest
from semair import cli

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")

from semair.flowgraphs.run import run_random_access
from semair.flowgraphs.scenario import load_scenario

SMALL = (
    "frame.frame_samples=6144",
    "radio.n_antennas=2",
    "users.n_users=8",
    "users.activity=0.2",
    "users.preamble_lengths=[28]",
    "link.beacon_snr_db=15",
)


@pytest.fixture
def semair(monkeypatch, capsys):
    def call(*words) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["semair", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return call


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run whose name would elsewhere be markup; written into by one test alone."""
    folder = tmp_path_factory.mktemp("cli") / "run [1]"
    run_random_access(load_scenario("lab", list(SMALL)), folder, n_frames=24)
    return folder


def test_estimate_then_run_on_it(semair, recorded, tmp_path):
    code, out, _ = semair("capture", "channel", recorded, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["recording"].endswith("bs-rx.channel.json")
    assert found["quality"]["frames"] == 24
    code, out, err = semair("capture", "channel", recorded)
    assert (code, out) == (2, "") and "--overwrite" in err and len(err.splitlines()) == 1
    code, out, _ = semair("capture", "channel", recorded, "--out", tmp_path / "air")
    assert code == 0 and "residual over noise" in out and "air.channel.json" in out

    settings = [word for text in SMALL for word in ("--set", text)]
    run = ("run", "random-access", "--channel", found["recording"], "-n", 4, "--no-report", *settings)
    code, out, err = semair(*run, "--folder", tmp_path / "new", "--json")
    assert code == 0, err
    metrics = json.loads(out)
    assert metrics["kind"] == "channel-replay"
    assert metrics["channel_replay"]["timing"] == "kept"
    assert (
        json.loads((tmp_path / "new" / "run.json").read_text())["channel_replay"]["recording"] == "bs-rx.channel.json"
    )
    code, out, err = semair(*run, "--folder", tmp_path / "x", "--set", "radio.n_antennas=4")
    assert (code, out) == (2, "") and "radio.n_antennas=4" in err
    code, out, err = semair(*run[:3], tmp_path / "none", *run[4:], "--folder", tmp_path / "x")
    assert (code, out) == (3, "") and "is missing" in err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--from", "a"), "--keep-out"),
        (("--keep-out", "a"), "--from"),
        (("--from", "a", "--from", "b", "--config", "vpl"), "--config"),
        (("--from", "a", "--keep-out", "b", "--weights", "none"), "weights 'none'"),
    ],
)
def test_fine_tuning_needs_runs_on_both_sides(semair, words, said):
    code, out, err = semair("train", "uad", *words)
    assert (code, out) == (2, "") and said in err and len(err.splitlines()) == 1


def test_runs_that_do_not_fit_the_weights(semair, recorded, tmp_path):
    code, out, err = semair("train", "uad", "--from", recorded, "--keep-out", recorded, "--folder", tmp_path / "m")
    assert (code, out) == (2, "") and "same samples" in err
    other = tmp_path / "other"
    run_random_access(load_scenario("lab", [*SMALL, "seed=2"]), other, n_frames=3)
    code, out, err = semair("train", "uad", "--from", recorded, "--keep-out", other, "--folder", tmp_path / "m")
    assert (code, out) == (2, "") and "(28, 8)" in err and "(28, 128)" in err

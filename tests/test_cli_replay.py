"""The commands that play recordings: into receivers, and out over radios."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from semair import cli

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")

SETTINGS = (
    "radio.n_antennas=2", "users.n_users=20", "users.activity=0.15", "users.preamble_lengths=[8, 12]",
    "link.beacon_snr_db=15", "radio.losses=[[75000, 100]]",
)  # fmt: skip
N_FRAMES = 8


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a loss in its fourth frame; read only but for its replays."""
    from semair.flowgraphs.run import run_random_access
    from semair.flowgraphs.scenario import load_scenario

    folder = tmp_path_factory.mktemp("cli") / "run [1]"
    run_random_access(load_scenario("lab", list(SETTINGS)), folder, n_frames=N_FRAMES)
    return folder


@pytest.fixture
def semair(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Call the command line in this process, in an empty folder and with an empty account."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["semair", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        return int(caught.value.code or 0), " ".join(captured.out.split()), captured.err

    yield call
    signal.signal(signal.SIGTERM, before)


def refused(ended: tuple[int, str, str], code: int, *words: str) -> None:
    assert ended[:2] == (code, ""), ended
    assert ended[2].startswith("error: ")
    for word in words:
        assert word in ended[2]


# Replay


def test_a_replay_tells_what_was_not_played(semair, made):
    code, out, _ = semair("replay", made, "--gaps", "stop")
    assert code == 0
    assert "stopped before the gap at sample 75000" in out
    assert "see --gaps" in out
    code, out, _ = semair("replay", made, "--gaps", "zero", "--channels", "1,0")
    assert "gaps 1, filled with zeros" in out
    assert f"slots decided, in {made}/replays/cd-zero-ch1-0" in out
    code, out, _ = semair("replay", made, "--gaps", "splice", "--loop", "2", "--json")
    found = json.loads(out)
    assert (code, found["playback"]["turns"], found["playback"]["gaps"]) == (0, 2, "splice")
    assert found["reproduced"] is None
    assert found["extra"] >= 2 * (N_FRAMES - 2)


def test_a_replay_in_real_time_takes_its_time(semair, made):
    _, out, _ = semair("replay", made, "--speed", "1", "--json")
    found = json.loads(out)
    # Samples are never out before they are due, so it cannot be faster.
    assert found["wall_s"] >= found["air_s"]
    assert found["reproduced"] == found["live_decisions"] >= N_FRAMES - 2


def test_a_recording_is_received_with_a_scenario(semair, made, tmp_path):
    sets = [word for setting in SETTINGS for word in ("--set", setting)]
    code, out, _ = semair("replay", made / "bs-rx.sigmf-meta", "-s", "lab", *sets, "--folder", "out", "--json")
    found = json.loads(out)
    assert (code, found["folder"], found["live_decisions"]) == (0, "out", 0)
    assert found["extra"] >= N_FRAMES - 2
    other = [*sets, "--set", "radio.frequency_hz=2.4e9"]
    path = made / "bs-rx.sigmf-meta"
    refused(semair("replay", path, "-s", "lab", *other), 4, "core:frequency is 3500000000", "2400000000", "allow any")
    code, out, _ = semair(
        "replay", path, "-s", "lab", *other, "--any-frequency", "-d", "somp", "--folder", "b", "--json"
    )
    assert (code, json.loads(out)["detector"]) == (0, "somp")


def test_replays_that_cannot_be(semair, made):
    refused(semair("replay", made, "--gaps", "hide"), 2, "gaps='hide' is unknown", "as-recorded, stop, splice, zero")
    refused(semair("replay", made, "--channels", "0,x"), 2, "--channels '0,x' is no list of channel numbers")
    refused(semair("replay", made, "--channels", "0,2"), 2, "channel 2", "core:num_channels=2")
    refused(semair("replay", made, "--speed", "0"), 2, "speed=0.0")
    refused(semair("replay", made, "--loop", "2"), 2, "with 1 gaps", "choose stop or splice")
    refused(semair("replay", made, "--resample", "4e6"), 4, "resampled to 4000000", "2000000")
    refused(semair("replay", made, "-s", "lab"), 2, "is a run, which has its own scenario")
    refused(semair("replay", made / "bs-rx.sigmf-meta"), 2, "--scenario", "--reference")


# Transmission


def asked(made: Path) -> tuple[str | Path, ...]:
    beacon = made / "tx-beacon.sigmf-meta"
    return ("transmit", beacon, "--radio", "loopback", "--frequency", "3.5e9", "--gain", "-80", "--level", "-15")


def test_a_dry_run_comes_first_and_its_code_sends(semair, made, tmp_path):
    code, out, _ = semair(*asked(made))
    assert code == 0
    assert "mean -15.0 dBFS" in out and "3499000000 to 3501000000 Hz" in out
    token = out.rpartition("--really ")[2]
    assert f"nothing was sent; send it with the same command and --really {token}" in out
    assert json.loads(semair(*asked(made), "--json")[1])["code"] == token
    refused_code, _, err = semair(*asked(made), "--really", "12345678")
    assert refused_code == 4
    assert "is that of another plan or of none" in err
    assert not (tmp_path / "state").exists()
    code, out, _ = semair(*asked(made), "--really", token, "--duration", "0.05")
    assert code == 4
    token = json.loads(semair(*asked(made), "--duration", "0.05", "--json")[1])["code"]
    code, out, _ = semair(*asked(made), "--duration", "0.05", "--really", token, "--json")
    sent = json.loads(out)
    assert (code, sent["sent"], sent["samples"], sent["gain_db"]) == (0, True, 100_000, -80.0)
    log = Path(sent["log"])
    assert log == tmp_path / "state" / "semair" / "transmissions.jsonl"
    assert [json.loads(line)["event"] for line in log.read_text().splitlines()] == ["begin", "end"]


def test_what_is_refused_says_all_reasons_and_ends_with_the_code_of_radios(semair, made):
    quiet = tuple(word for word in asked(made) if word not in ("--level", "-15"))
    code, out, _ = semair(*quiet)
    assert code == 4
    assert "refused samples reach" in out and "refused mean power is" in out
    assert "--really" not in out
    # A code does not help.
    assert semair(*quiet, "--really", "12345678")[0] == 4
    found = json.loads(semair(*quiet, "--json")[1])
    assert (found["sent"], found["code"], len(found["plan"]["judgement"]["refusals"])) == (False, None, 2)


def test_receptions_and_requests_without_frequency_are_refused(semair, made):
    reception = tuple(
        made / "bs-rx.sigmf-meta" if word == made / "tx-beacon.sigmf-meta" else word for word in asked(made)
    )
    refused(semair(*reception), 3, "semair:role is 'bs-rx'")
    code, _, err = semair("transmit", made / "tx-beacon.sigmf-meta", "--radio", "loopback")
    assert code == 2
    assert "--frequency" in err
    Path("semair-site.toml").write_text('name = "x"\nbands = 3\n')
    refused(semair(*asked(made)), 2, "semair-site.toml", "bands")


@pytest.mark.slow
def test_ctrl_c_ends_a_transmission_with_130_and_a_line_in_the_log(semair, made, tmp_path):
    words = [*map(str, asked(made)), "--loop", "100", "--json"]
    token = json.loads(semair(*words)[1])["code"]
    log = tmp_path / "log"
    command = [sys.executable, "-m", "semair.cli", *words, "--really", token, "--log", str(log)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        for _ in range(600):
            if log.exists() and log.read_text():
                break
            time.sleep(0.1)
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert json.loads(out)["interrupted"] is True
    assert [json.loads(line).get("outcome") for line in log.read_text().splitlines()] == [None, "interrupted"]

"""GNU Radio Companion's flowgraphs: they open, compile and run, and the editor finds semair."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gnuradio.grc", reason="GNU Radio Companion is not installed")

from gnuradio import blocks, gr
from gnuradio.grc.core.platform import Platform
from PIL import Image
from semair.blocks.message_collector import MessageCollector
from semair.blocks.messages import pack
from semair.captures.reader import Recording
from semair.errors import RecordingError, ScenarioError, SetupError
from semair.flowgraphs import companion, grc_support
from semair.flowgraphs.csi_feedback_run import replay_run as replay_csi
from semair.flowgraphs.csi_feedback_run import run_csi_feedback
from semair.flowgraphs.report import write_report
from semair.flowgraphs.run import replay_run as replay_random_access
from semair.flowgraphs.run import run_random_access
from semair.flowgraphs.runfolder import RunFolder, unpack_users
from semair.flowgraphs.scenario import load_scenario
from semair.flowgraphs.semantic_downlink_run import picture_path
from semair.flowgraphs.semantic_downlink_run import replay_run as replay_pictures

SYSTEM_PYTHON = Path("/usr/bin/python3")
FLOWGRAPHS = companion.shipped_flowgraphs()
LIMIT_S = 120


def run(program: Path, folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(program), *arguments],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def decisions(output: str) -> dict[int, tuple[str, ...]]:
    """Active users by frame, from the printed lines."""
    lines = re.findall(r"^frame +(\d+) .* active: (.+)$", output, re.MULTILINE)
    return {int(frame): tuple(users.split()) for frame, users in lines}


@pytest.fixture(scope="module")
def platform() -> Platform:
    made = Platform(
        name="test",
        prefs=gr.prefs(),
        version=gr.version(),
        version_parts=(gr.major_version(), gr.api_version(), gr.minor_version()),
    )
    ours = companion.environment()["GRC_BLOCKS_PATH"].split(os.pathsep)
    made.build_library(list(dict.fromkeys([*ours, *made.config.block_paths])))
    return made


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The shipped flowgraphs, compiled by grcc."""
    folder = tmp_path_factory.mktemp("programs")
    return {name: companion.compile_flowgraph(path, folder) for name, path in FLOWGRAPHS.items()}


def test_the_flowgraphs_are_shipped() -> None:
    assert set(FLOWGRAPHS) == {
        "csi_feedback_loopback",
        "random_access_loopback",
        "random_access_qt",
        "random_access_replay",
        "semantic_downlink_loopback",
    }
    assert all(path.is_file() for path in FLOWGRAPHS.values())


@pytest.mark.parametrize("name", FLOWGRAPHS)
def test_flowgraphs_open_without_errors(name: str, platform: Platform) -> None:
    graph = platform.make_flow_graph(str(FLOWGRAPHS[name]))
    assert list(graph.iter_error_messages()) == []
    assert graph.is_valid()
    assert graph.get_option("id") == name
    assert not [block for block in graph.blocks if block.is_dummy_block]


@pytest.mark.parametrize("name", FLOWGRAPHS)
def test_blocks_are_placed_apart(name: str, platform: Platform) -> None:
    """No block begins on another; the narrowest blocks are some 100 by 40 pixels in size."""
    graph = platform.make_flow_graph(str(FLOWGRAPHS[name]))
    places = np.array([block.states["coordinate"] for block in graph.blocks])
    distance = np.abs(places[:, None] - places[None])
    together = (distance[..., 0] < 100) & (distance[..., 1] < 40)
    assert np.count_nonzero(together) == len(places)


def test_environment_keeps_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRC_BLOCKS_PATH", "/opt/blocks")
    monkeypatch.setenv("PYTHONPATH", "/opt/python")
    variables = companion.environment()
    assert set(variables) == {"GRC_BLOCKS_PATH", "PYTHONPATH"}
    first, *rest = variables["GRC_BLOCKS_PATH"].split(os.pathsep)
    assert list(Path(first).glob("semair_*.block.yml"))
    assert rest == ["/opt/blocks"]
    assert variables["PYTHONPATH"].split(os.pathsep)[-1] == "/opt/python"
    # Applied twice it stays the same.
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert companion.environment() == variables


@pytest.mark.skipif(not SYSTEM_PYTHON.exists(), reason="no system Python")
def test_the_systems_python_finds_semair(tmp_path: Path) -> None:
    code = (
        "from semair.flowgraphs.scenario import load_scenario; from semair.flowgraphs import grc_support; "
        "import numpy; print(grc_support.make_air(load_scenario('lab')).n_rx, numpy.__version__)"
    )
    done = subprocess.run(
        [str(SYSTEM_PYTHON), "-c", code],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], **companion.environment()},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    # The same NumPy as here: compiled packages of the environment would not load with another.
    assert done.stdout.split() == ["4", np.__version__], done.stderr


@pytest.mark.slow
def test_a_broken_flowgraph_is_answered_with_the_editors_reason(tmp_path: Path) -> None:
    text = FLOWGRAPHS["random_access_loopback"].read_text(encoding="utf-8")
    broken = tmp_path / "broken.grc"
    broken.write_text(text.replace("amplitude: scenario.beacon_amplitude", "amplitude: '-1'"), encoding="utf-8")
    with pytest.raises(ScenarioError, match=r"(?s)broken\.grc cannot be compiled.*amplitude >= 0"):
        companion.compile_flowgraph(broken, tmp_path)


def test_a_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    for action in (lambda p: companion.compile_flowgraph(p, tmp_path), companion.open_companion):
        with pytest.raises(ScenarioError, match=r"nothing\.grc is not a file.*random_access_loopback"):
            action(tmp_path / "nothing.grc")


def test_without_gnu_radio_the_package_to_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for action in (
        companion.open_companion,
        lambda: companion.compile_flowgraph(FLOWGRAPHS["random_access_loopback"], tmp_path),
    ):
        with pytest.raises(SetupError, match="apt install gnuradio"):
            action()


def test_without_a_display_the_editor_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(SetupError, match="DISPLAY"):
        companion.open_companion()


@pytest.fixture
def pretended_editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in the place of GNU Radio Companion that writes down how it was called, to the path returned."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "gnuradio-companion"
    program.write_text(f'#!/bin/sh\necho "$1 $GRC_BLOCKS_PATH $PYTHONPATH" > {tmp_path}/said\nexit 3\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("DISPLAY", ":0")
    gi = pytest.importorskip("gi")
    monkeypatch.setattr(gi, "require_version", lambda name, version: None)
    return tmp_path / "said"


def test_the_editor_gets_file_and_environment(pretended_editor: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.grc"
    shutil.copyfile(FLOWGRAPHS["random_access_loopback"], mine)
    assert companion.open_companion(mine) == 3
    variables = companion.environment()
    assert pretended_editor.read_text().split() == [
        str(mine),
        variables["GRC_BLOCKS_PATH"],
        variables["PYTHONPATH"],
    ]


def test_a_shipped_flowgraph_is_opened_as_a_copy_and_the_copy_is_kept(
    pretended_editor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = FLOWGRAPHS["random_access_replay"]
    companion.open_companion(shipped)
    copy = tmp_path / shipped.name
    assert pretended_editor.read_text().split()[0] == str(copy)
    assert copy.read_bytes() == shipped.read_bytes()
    copy.write_text("changed by its user")
    companion.open_companion(shipped)
    assert copy.read_text() == "changed by its user"


def test_without_gtk_the_package_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gi = pytest.importorskip("gi")

    def refuse(name: str, version: str) -> None:
        raise ValueError(f"Namespace {name} not available")

    monkeypatch.setattr(gi, "require_version", refuse)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setenv("DISPLAY", ":0")
    with pytest.raises(SetupError, match=r"Gtk not available.*apt install .*gir1\.2-gtk-3\.0"):
        companion.open_companion()


@pytest.mark.slow
def test_compiled_flowgraphs_decide_live_and_replayed_alike(programs: dict[str, Path], tmp_path: Path) -> None:
    """The loopback ends by itself; its decisions are those of the Python flowgraph, and of the replay."""
    live = run(programs["random_access_loopback"], tmp_path, "--n-frames", "12")
    assert live.returncode == 0, live.stderr
    decided = decisions(live.stdout)
    assert sorted(decided) == list(range(12))

    result = run_random_access(load_scenario("lab"), tmp_path / "python", n_frames=12, record=False)
    rows = result.folder.rows(result.folder.decisions)
    reference = {
        int(row["frame"]): tuple(str(user) for user in np.flatnonzero(unpack_users(row["active"], 128))) or ("none",)
        for row in rows
    }
    assert decided == reference

    recording = Recording.open(tmp_path / "runs" / "companion" / "bs-rx.sigmf-meta")
    assert recording.n_channels == 4
    assert recording.sample_rate_hz == load_scenario("lab").frame.sample_rate_hz
    replayed = run(programs["random_access_replay"], tmp_path)
    assert replayed.returncode == 0, replayed.stderr
    assert decisions(replayed.stdout) == decided
    by_command = replay_random_access(tmp_path / "runs" / "companion")
    assert (by_command.live, by_command.extra) == (0, len(decided))


@pytest.mark.slow
def test_compiled_replay_takes_the_run_folder_of_the_command_line(programs: dict[str, Path], tmp_path: Path) -> None:
    run_random_access(load_scenario("lab", ["users.activity=0.03"]), tmp_path / "mine", n_frames=6)
    done = run(programs["random_access_replay"], tmp_path, "--run-folder", "mine")
    assert done.returncode == 0, done.stderr
    assert sorted(decisions(done.stdout)) == list(range(6))


@pytest.mark.slow
def test_compiled_flowgraphs_end_with_an_error_where_something_is_wrong(
    programs: dict[str, Path], tmp_path: Path
) -> None:
    missing = run(programs["random_access_replay"], tmp_path, "--run-folder", "nowhere")
    assert missing.returncode != 0
    assert "nowhere" in missing.stderr

    other = run(programs["random_access_loopback"], tmp_path, "--scenario-name", "paper")
    assert other.returncode != 0
    assert "radio.n_antennas=64" in other.stderr

    foreign = tmp_path / "precious"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    kept = run(programs["random_access_loopback"], tmp_path, "--run-folder", "precious")
    assert kept.returncode != 0
    assert "precious is not a run folder" in kept.stderr
    assert (foreign / "thesis.txt").read_text() == "years of work"


@pytest.mark.slow
def test_compiled_csi_feedback_recovers_what_the_python_flowgraph_recovers(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    program = companion.compile_flowgraph(FLOWGRAPHS["csi_feedback_loopback"], tmp_path)
    done = run(program, tmp_path, "--n-frames", "5")
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"^frame +(\d+) .* decoded: (.+)$", done.stdout, re.MULTILINE)
    told = {int(frame): [float(x) for x in re.findall(r"user \d+ +(-?[\d.]+) dB", text)] for frame, text in lines}

    result = run_csi_feedback(load_scenario("csi-lab"), tmp_path / "python", n_frames=5, record=False)
    rows = result.folder.rows(result.folder.decisions)
    assert told == {int(row["frame"]): [float(f"{x:.1f}") for x in row["word_snr_db"]] for row in rows}
    assert sorted(told) == list(range(5))

    folder = RunFolder(tmp_path / "runs" / "companion-csi")
    assert folder.scenario() == load_scenario("csi-lab")
    assert Recording.open(folder.recording).n_channels == 4
    replayed = replay_csi(folder.path)
    assert (replayed.live, replayed.extra) == (0, 5)
    again = replayed.folder.rows(replayed.folder.decisions)
    for name in ("sample_time", "words", "csi"):
        np.testing.assert_array_equal(again[name], rows[name])
    with pytest.raises(RecordingError, match="leaves its recording only; replay"):
        write_report(folder.path)


@pytest.mark.slow
def test_compiled_picture_downlink_delivers_what_a_replay_decodes(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    program = companion.compile_flowgraph(FLOWGRAPHS["semantic_downlink_loopback"], tmp_path)
    done = run(program, tmp_path, "--n-frames", "3")
    assert done.returncode == 0, done.stderr
    told = {(int(a), int(b)) for a, b in re.findall(r"^frame +(\d+) +user +(\d+) +SINR", done.stdout, re.MULTILINE)}
    assert told == {(frame, user) for frame in range(3) for user in range(2)}

    folder = RunFolder(tmp_path / "runs" / "companion-pictures")
    assert folder.scenario() == load_scenario("semantic-lab")
    replayed = replay_pictures(folder.path)
    assert (replayed.live, replayed.extra) == (0, 6)
    for row in replayed.folder.rows(replayed.folder.decisions):
        shown = np.array(Image.open(picture_path(folder, int(row["frame"]), int(row["user"]))))
        np.testing.assert_array_equal(shown, row["picture"])


def failing(fields: dict[str, Any], vector: np.ndarray) -> None:
    raise ScenarioError("the cable is out")


class _Endless(gr.top_block):
    """Runs until it is stopped."""

    def __init__(self) -> None:
        gr.top_block.__init__(self)
        self.source = blocks.null_source(gr.sizeof_float)
        self.throttle = blocks.throttle(gr.sizeof_float, 1e4)
        self.sink = blocks.null_sink(gr.sizeof_float)
        self.connect(self.source, self.throttle, self.sink)
        self.collector = MessageCollector(failing)


def test_a_failed_block_stops_the_flowgraph_and_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    top_block = _Endless()
    done = threading.Event()
    top_block.start()
    watcher = grc_support.guard(top_block, done.set)
    assert not done.wait(0.5)
    # As the block's own thread would call it.
    top_block.collector.handle_message(pack({"a": 1}))
    watcher.join(LIMIT_S)
    assert done.is_set()
    assert "ScenarioError: the cable is out" in capfd.readouterr().err
    with pytest.raises(ScenarioError, match="the cable is out"):
        grc_support.raise_failure(top_block)


def test_the_guard_ends_with_the_flowgraph(capfd: pytest.CaptureFixture[str]) -> None:
    top_block = _Endless()
    top_block.start()
    watcher = grc_support.guard(top_block)
    time.sleep(0.2)
    top_block.stop()
    watcher.join(LIMIT_S)
    assert not watcher.is_alive()
    grc_support.raise_failure(top_block)
    assert "Error" not in capfd.readouterr().err


def test_a_run_that_does_not_exist_yet_stands_for_the_lab(tmp_path: Path) -> None:
    assert grc_support.scenario_of_run(tmp_path / "none") == load_scenario("lab")
    other = load_scenario("lab", ["seed=5"])
    grc_support.begin_run(tmp_path / "run", other)
    assert grc_support.scenario_of_run(tmp_path / "run") == other


def test_a_flowgraph_drawn_for_other_antennas_says_so() -> None:
    with pytest.raises(ScenarioError, match=r"radio\.n_antennas=4, this flowgraph is drawn for 2"):
        grc_support.check_antennas(load_scenario("lab"), 2)
    grc_support.check_antennas(load_scenario("lab"), 4)
    grc_support.check_antennas(load_scenario("csi-lab"), 4, n_users=2)
    with pytest.raises(ScenarioError, match=r"csi\.n_users=2, this flowgraph is drawn for 3"):
        grc_support.check_antennas(load_scenario("csi-lab"), 4, n_users=3)
    with pytest.raises(ScenarioError, match=r"no section \[csi\]"):
        grc_support.check_antennas(load_scenario("lab"), 4, n_users=2)


def test_the_tail_covers_the_delay_of_the_air() -> None:
    prompt, late = (
        grc_support.tail_samples(
            load_scenario("lab"), SimpleNamespace(truth=SimpleNamespace(receive_index=lambda place, delay=delay: delay))
        )  # type: ignore[arg-type]
        for delay in (0.5, 1000.5)
    )
    assert late == prompt + 1000


def test_decisions_are_printed_as_lines(capsys: pytest.CaptureFixture[str]) -> None:
    fields = {"frame": 3, "length": 12, "snr_db": 9.96, "cfo_hz": -120.0, "detect_s": 4e-4, "users": [1, 7]}
    grc_support.print_decision(fields, np.empty(0, np.complex64))
    grc_support.print_decision({**fields, "frame": 4, "users": []}, np.empty(0, np.complex64))
    out = capsys.readouterr().out
    assert decisions(out) == {3: ("1", "7"), 4: ("none",)}
    assert "L = 12" in out
    assert "10.0 dB" in out

"""Every command: what it prints where, its exit code, and one line instead of a traceback."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from semair import cli
from semair.captures.reader import Recording
from semair.captures.writer import RecordingWriter
from semair.flowgraphs.runfolder import RunFolder
from semair.hardware import discover, doctor

SMALL = (
    "--set", "radio.n_antennas=2", "--set", "users.n_users=20", "--set", "users.activity=0.15",
    "--set", "users.preamble_lengths=[8, 12]", "--set", "link.beacon_snr_db=15",
)  # fmt: skip
N_FRAMES = 6


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What stands on stdout, which must be JSON in the strict sense and nothing else."""

        def refuse(name: str) -> None:
            raise AssertionError(f"{name} is not JSON")

        return json.loads(self.out, parse_constant=refuse)

    @property
    def text(self) -> str:
        """What stands on stdout, without the line breaks that fit it into a window."""
        return " ".join(self.out.split())

    def refused(self, code: int, *words: str) -> None:
        """Check that it ended with a code and one line that holds some words."""
        assert (self.code, self.out) == (code, ""), self
        assert len(self.err.splitlines()) == 1, self.err
        assert self.err.startswith("error: ")
        for word in words:
            assert word in self.err


Semair = Callable[..., Ended]


@pytest.fixture
def semair(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Semair]:
    """Call the command line in this process, as its entry point does."""
    before = signal.getsignal(signal.SIGTERM)

    def call(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["semair", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        code = caught.value.code
        return Ended(code if isinstance(code, int) else 1, *capsys.readouterr())

    yield call
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a recording; read only."""
    pytest.importorskip("gnuradio", reason="GNU Radio is not installed")
    from semair.flowgraphs.run import run_random_access
    from semair.flowgraphs.scenario import load_scenario

    folder = tmp_path_factory.mktemp("cli") / "run [1]"
    run_random_access(load_scenario("lab", list(SMALL[1::2])), folder, n_frames=N_FRAMES)
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be damaged or written into."""
    # A name that elsewhere would be markup.
    folder = tmp_path / "copies [" / "bold] [red]"
    shutil.copytree(made, folder)
    return folder


def commands() -> list[tuple[str, ...]]:
    """The words of every command."""

    def below(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        inner = getattr(command, "commands", None)
        if inner is None:
            yield words
        else:
            for name, item in inner.items():
                yield from below(item, (*words, name))

    return list(below(typer.main.get_command(cli.app), ()))


# Help and wrong usage


def test_the_commands_are_those_promised():
    assert {" ".join(words) for words in commands()} >= {
        "run random-access", "record", "replay", "report", "doctor", "radios", "serve", "grc", "benchmark",
        "capture verify", "capture recover",
    }  # fmt: skip


@pytest.mark.parametrize("words", commands(), ids=" ".join)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_of_every_command_shows_an_example_of_it(semair, words, flag):
    ended = semair(*words, flag)
    assert (ended.code, ended.err) == (0, "")
    assert f"semair {' '.join(words)}" in ended.text.partition("Example")[2]


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_as_a_whole_tells_the_exit_codes(semair, flag):
    ended = semair(flag)
    assert ended.code == 0
    for text in ("0 done", "2 wrong scenario", "3 damaged", "4 radio", "5 set-up", "6 storage", "7 a replay", "130"):
        assert text in ended.text


@pytest.mark.parametrize("words", [(), ("run",), ("capture",)])
def test_commands_without_a_word_show_their_help(semair, words):
    ended = semair(*words)
    assert ended.code == 2
    assert "Usage: semair" in ended.out + ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nonsense",), "nonsense"),
        (("run", "nonsense"), "nonsense"),
        (("replay",), "path"),
        (("radios", "--nonsense"), "--nonsense"),
        (("run", "random-access", "--frames", "some"), "--frames"),
    ],
)
def test_wrong_usage_is_told_without_traceback(semair, words, said):
    ended = semair(*words)
    assert (ended.code, ended.out) == (2, "")
    assert said.lower() in ended.err.lower()
    assert "Usage: semair" in ended.err
    assert "Traceback" not in ended.err


def test_a_defect_is_not_hidden(semair, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("never thought of")

    monkeypatch.setattr("semair.hardware.discover.search", broken)
    with pytest.raises(RuntimeError, match="never thought of"):
        semair("radios")


def test_ctrl_c_in_any_command_has_its_code(semair, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("semair.hardware.discover.search", interrupted)
    ended = semair("radios", "--json")
    assert (ended.code, ended.out) == (130, "")
    assert ended.err.strip() == "stopped by Ctrl-C"


def test_as_a_program_it_starts_without_the_libraries_that_take_long():
    # Help and usage errors are answered before GNU Radio, NumPy and Numba are loaded.
    code = (
        "import sys\nsys.argv = ['semair', 'record', '--nonsense']\nfrom semair.cli import main\n"
        "try: main()\nfinally: print([m for m in ('gnuradio', 'numpy', 'numba') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "[]\n")
    assert "--nonsense" in done.stderr


# Radios, doctor, companion, benchmark


def test_radios(semair):
    ended = semair("radios", "--json")
    assert ended.code == 0
    assert {"loopback", "replay"} <= {radio["kind"] for radio in ended.json}
    assert all(set(radio) == {"kind", "address", "description", "facts"} for radio in ended.json)
    table = semair("radios")
    assert table.code == 0
    assert "loopback" in table.out


def test_doctor_examines_this_machine(semair, tmp_path):
    ended = semair("doctor", "--json", "--folder", tmp_path)
    assert [check["name"] for check in ended.json] == list(doctor.CHECKS)
    failed = [check for check in ended.json if check["status"] == "failure"]
    assert ended.code == (5 if failed else 0)


def test_radios_tells_which_drivers_failed(semair, monkeypatch):
    monkeypatch.setattr(
        "semair.hardware.discover.search", lambda kinds, limit: discover.Search([], {"uhd": "killed by signal 6"})
    )
    for ended in (semair("radios"), semair("radios", "--json")):
        assert ended.code == 0
        assert "uhd: killed by signal 6" in ended.err


def test_radios_of_one_kind(semair):
    assert [radio["kind"] for radio in semair("radios", "--kind", "zmq", "--json").json] == ["zmq"]
    ended = semair("radios", "--kind", "tin")
    assert (ended.code, "radio 'tin' is not known" in ended.err) == (4, True)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("serve", "nope"), 4, "radio 'nope' is not known; known are"),
        (("serve", "loopback", "--listen", "127.0.0.1:5900"), 4, "must be tcp://HOST:PORT"),
        (("serve", "loopback", "--listen", "tcp://203.0.113.1:5900"), 4, "cannot listen at tcp://203.0.113.1:5900"),
        (("doctor", "--rate", "1e6"), 2, "name it with --radio"),
    ],
)
def test_serve_and_doctor_refuse_with_the_fix(semair, words, code, said):
    ended = semair(*words)
    assert ended.code == code
    assert said in " ".join(ended.err.split())


def test_doctor_prints_what_to_do_as_it_is(semair, monkeypatch):
    def examination(*checks: doctor.Check) -> None:
        monkeypatch.setattr(doctor, "examine", lambda folder, **_: list(checks))

    well = doctor.Check("lamp", "ok", "bright")
    dim = doctor.Check("lamp", "warning", "dim", "install 'lamp[bright]'")
    examination(well, dim)
    ended = semair("doctor")
    assert ended.code == 0
    assert "'lamp[bright]'" in ended.text
    examination(well, doctor.Check("lamp", "failure", "dark", "buy one"))
    assert semair("doctor").code == 5
    assert semair("doctor", "--json").code == 5


def test_grc_prints_what_a_shell_can_read(semair):
    ended = semair("grc", "--print")
    assert (ended.code, ended.err) == (0, "")
    script = f"{ended.out}\necho $GRC_BLOCKS_PATH"
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True)
    assert list(Path(done.stdout.strip().split(":")[0]).glob("*.block.yml"))
    found = semair("grc", "--json").json
    assert {"GRC_BLOCKS_PATH", "PYTHONPATH"} == set(found["environment"])
    assert Path(found["flowgraphs"]["random_access_loopback"]).is_file()


def test_grc_says_what_it_lacks(semair, monkeypatch):
    if shutil.which("gnuradio-companion") is None:
        pytest.skip("GNU Radio Companion is not installed")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    semair("grc").refused(5, "display")
    semair("grc", "missing.grc").refused(2, "missing.grc is not a file", "random_access_loopback")


def test_benchmark_of_nothing_names_what_there_is(semair):
    semair("benchmark", "nothing").refused(2, "'nothing' is unknown", "random-access")


# Runs


def test_run_as_json(semair, tmp_path):
    pytest.importorskip("gnuradio", reason="GNU Radio is not installed")
    folder = tmp_path / "run"
    ended = semair(
        "run", "random-access", "-n", N_FRAMES, "--json", "--no-report", "--no-record", "--folder", folder, *SMALL
    )  # fmt: skip
    assert (ended.code, ended.err) == (0, "")
    assert ended.json["folder"] == str(folder)
    assert ended.json["frames"]["sent"] == ended.json["frames"]["decided"] == N_FRAMES
    assert ended.json["counts"]["interrupted"] is False
    assert not list(folder.glob("*.sigmf-*"))
    assert not (folder / "report.html").exists()


def test_run_as_text_with_another_detector(semair, tmp_path):
    pytest.importorskip("gnuradio", reason="GNU Radio is not installed")
    # A long name with what elsewhere would be markup: it must come out in one piece, to be copied.
    folder = tmp_path / ("long-" * 20 + "[red]")
    ended = semair(
        "run", "random-access", "-n", N_FRAMES, "--no-report", "-d", "somp", "--folder", folder, *SMALL
    )  # fmt: skip
    assert ended.code == 0
    assert f"replay it   semair replay {folder}\n" in ended.out
    assert "detector somp" in ended.text
    assert f"{N_FRAMES} sent, {N_FRAMES} decided, 0 missed, 0 false, 0 dropped" in ended.text
    assert json.loads((folder / "run.json").read_text())["detector"] == "somp"


def test_record_and_decide_later(semair, tmp_path):
    pytest.importorskip("gnuradio", reason="GNU Radio is not installed")
    folder = tmp_path / "air"
    recorded = semair("record", "-n", N_FRAMES, "--folder", folder, *SMALL)
    assert recorded.code == 0
    assert f"recorded {N_FRAMES} frames in {folder}; decide with: semair replay {folder}\n" in recorded.out
    assert semair("record", "-n", 3, "--folder", folder, *SMALL).code == 2
    again = semair("record", "-n", 3, "--folder", folder, "--overwrite", "--json", *SMALL)
    assert again.json["frames"]["sent"] == 3
    decided = semair("replay", folder, "--json")
    assert decided.code == 0
    assert (decided.json["live_decisions"], decided.json["extra"]) == (0, 3)


def test_record_up_to_a_duration_or_a_size(semair, tmp_path):
    pytest.importorskip("gnuradio", reason="GNU Radio is not installed")
    folder = tmp_path / "air"
    assert semair("record", "--duration", 0.05, "--folder", folder, "--json", *SMALL).code == 0
    recording = Recording.open(folder / "bs-rx.sigmf-meta", check_hash=True)
    assert recording.n_samples == 0.05 * recording.sample_rate_hz
    assert semair("capture", "verify", folder).code == 0
    assert semair("record", "--size", 1e6, "--folder", folder, "--overwrite", *SMALL).code == 0
    data = folder / "bs-rx.sigmf-data"
    assert 1e6 - 64 < data.stat().st_size <= 1e6
    ended = semair("record", "--duration", -1, "--folder", tmp_path / "none", *SMALL)
    assert (ended.code, (tmp_path / "none").exists()) == (2, False)
    assert "duration=-1" in ended.err


def test_gaps_are_found_by_the_frames_of_a_recording(semair, tmp_path):
    pytest.importorskip("gnuradio", reason="GNU Radio is not installed")
    folder = tmp_path / "air"
    assert semair("record", "-n", N_FRAMES, "--folder", folder, *SMALL).code == 0
    clean = semair("capture", "find-gaps", folder, "--json", *SMALL)
    assert (clean.json["losses"], clean.json["frames"]) == ([], N_FRAMES)
    # As a radio without time would have recorded it that lost 777 samples.
    original = Recording.open(folder / "bs-rx.sigmf-meta")
    samples = original.read()
    with RecordingWriter(
        tmp_path / "cut", "rx", n_channels=2, datatype="ci16_le", sample_rate_hz=original.sample_rate_hz
    ) as writer:
        writer.write(np.delete(samples, np.s_[50_000:50_777], axis=1))
    found = semair("capture", "find-gaps", tmp_path / "cut", "--write", "--json", *SMALL)
    (loss,) = found.json["losses"]
    assert abs(loss["lost_samples"] - 777) <= 2
    assert loss["earliest_start"] < 50_000 < loss["sample_start"]
    cut = Recording.open(tmp_path / "cut")
    assert [s.sample_start for s in cut.segments] == [0, loss["sample_start"]]
    assert semair("capture", "verify", tmp_path / "cut").code == 0
    again = semair("capture", "find-gaps", tmp_path / "cut", *SMALL)
    assert (again.code, "0 losses" in again.text) == (0, True)
    other = semair("capture", "find-gaps", tmp_path / "cut", "--set", "frame.sample_rate_hz=1e6")
    assert (other.code, "core:sample_rate" in other.err) == (3, True)


def test_record_only_what_the_radio_hears(semair, tmp_path):
    pytest.importorskip("gnuradio", reason="GNU Radio is not installed")
    folder = tmp_path / "quiet"
    ended = semair("record", "--raw", "--duration", 0.02, "--folder", folder, "--json", *SMALL)
    assert ended.code == 0
    recording = Recording.open(ended.json["recording"], check_hash=True)
    assert recording.n_samples == ended.json["n_samples"] == 0.02 * recording.sample_rate_hz
    # Noise and nothing else.
    assert 0 < np.abs(recording.read()).max() < 0.2
    fields = recording.segments[0].fields
    assert fields["requested"]["frequency_hz"] == fields["actual"]["frequency_hz"] == recording.frequency_hz
    assert (fields["agc"], fields["clock_source"]) == (False, "internal")
    assert semair("capture", "verify", folder).code == 0
    said = semair("record", "--raw", "--size", 1e5, "--folder", folder, "--overwrite", *SMALL)
    assert (said.code, "0 samples lost" in said.text) == (0, True)
    assert semair("record", "--raw", "-n", 3, "--folder", tmp_path / "no", *SMALL).code == 2


def test_wrong_values_are_told_in_one_line_before_anything_is_written(semair, tmp_path):
    pytest.importorskip("gnuradio", reason="GNU Radio is not installed")
    folder = tmp_path / "run"

    def run(*arguments: str) -> Ended:
        return semair("run", "random-access", "-n", 3, "--folder", folder, *arguments)

    run("--set", "users.activty=0.1").refused(2, "users.activty", "unknown field", "activity")
    run("--set", "users.activity=1.5").refused(2, "users.activity", "1.5")
    run("--set", "nonsense").refused(2, "nonsense")
    run("-s", "nowhere.toml").refused(2, "nowhere.toml")
    run("-s", "labb").refused(2, "labb", "lab, paper")
    run("-d", "magic").refused(2, "'magic' is unknown", "cd", "somp")
    run("--set", "radio.kind=pigeon").refused(4, "'pigeon' is not known", "loopback")
    run("-n", "0").refused(2, "at least 1 frame")
    assert not folder.exists()
    (tmp_path / "file").write_text("not a folder")
    folder = tmp_path / "file" / "run"
    run().refused(6, "cannot make folder", str(folder))


# Replay


def test_replay_of_a_run(semair, copied):
    ended = semair("replay", copied)
    assert ended.code == 0
    assert f"all {N_FRAMES} of {N_FRAMES} live decisions reproduced bit for bit" in ended.text
    found = semair("replay", copied, "--json").json
    assert (found["detector"], found["live_decisions"], found["reproduced"], found["extra"]) == (
        "cd", N_FRAMES, N_FRAMES, 0,
    )  # fmt: skip
    assert found["air_s"] > 0


def test_replay_with_another_detector(semair, copied):
    ended = semair("replay", copied, "-d", "map-search", "--option", "threshold=0.5", "--json")
    assert (ended.code, ended.json["detector"], ended.json["reproduced"]) == (0, "map-search", None)
    assert json.loads((Path(ended.json["folder"]) / "run.json").read_text())["options"] == {"threshold": 0.5}


def test_replay_that_cannot_be(semair, copied, tmp_path):
    semair("replay", tmp_path / "nothing").refused(3, "nothing is not a folder", "run")
    (tmp_path / "empty").mkdir()
    semair("replay", tmp_path / "empty").refused(3, "empty")
    semair("replay", copied / "bs-rx.sigmf-meta").refused(2, "--reference")
    semair("replay", copied, "-d", "magic").refused(2, "'magic' is unknown", "cd", "somp")
    semair("replay", copied, "-d", "cd", "--option", "magic=1").refused(2, "no option magic", "threshold")
    semair("replay", copied, "-d", "cd", "--option", "threshold").refused(2, "name=value")
    semair("replay", copied, "--option", "threshold=1").refused(2, "threshold", "--detector")
    (copied / "bs-rx.sigmf-data").unlink()
    semair("replay", copied).refused(3, "bs-rx.sigmf-data", "missing")


def test_replay_that_decides_otherwise(semair, copied):
    rows_path = RunFolder(copied).decisions
    rows = np.load(rows_path)
    rows["scores"][2, 3] += 1e-9
    np.save(rows_path, rows)
    semair("replay", copied).refused(7, f"1 of {N_FRAMES} decisions were not reproduced", "frame 2")


@pytest.fixture
def preambles(tmp_path: Path) -> Path:
    """A recording of two marked long training fields without a sample rate, and one that is not marked."""
    from semair.blocks.waveforms.references import named_reference

    rng = np.random.default_rng(1)
    x = 0.05 * (rng.standard_normal(9000) + 1j * rng.standard_normal(9000))
    for place in (1000, 4000, 8000):
        x[place : place + 160] += named_reference("l-ltf")
    with RecordingWriter(
        tmp_path, "wifi", n_channels=1, datatype="cf32_le", sample_rate_hz=20e6, min_free_bytes=0
    ) as writer:
        writer.write(x.astype(np.complex64)[None])
        writer.annotate(840, 320, "packet")
        writer.annotate(3840, 320, "packet")
    meta = tmp_path / "wifi.sigmf-meta"
    content = json.loads(meta.read_text())
    del content["global"]["core:sample_rate"]
    meta.write_text(json.dumps(content))
    return meta


def test_search_for_a_reference(semair, preambles):
    pytest.importorskip("gnuradio", reason="GNU Radio is not installed")
    search = ("replay", preambles, "--reference", "l-ltf", "--max-cfo", "40e3")
    semair(*search).refused(3, "core:sample_rate is missing", "--rate")
    ended = semair(*search, "--rate", "20e6", "--annotations-at", "160", "--json")
    assert (ended.code, ended.json["recording"]) == (0, "wifi")
    assert [found["start"] for found in ended.json["preambles"]] == [1000, 4000, 8000]
    assert ended.json["annotations"] == {"annotated": 2, "matched": 2, "missed": 0, "extra": 1}
    shown = semair(*search, "--rate", "20e6", "--annotations-at", "160")
    assert shown.code == 0
    assert "3 found in 9000 samples on 1 antennas" in shown.text
    assert "2 of 2 annotations found within 2 samples, 1 more found" in shown.text
    semair("replay", preambles, "--reference", "l-lft").refused(2, "'l-lft' is not known", "l-ltf")
    semair("replay", preambles, "--reference", "r.npy").refused(3, "r.npy does not exist")
    semair("replay", preambles.with_name("none.sigmf-meta"), "--reference", "l-ltf").refused(3, "none.sigmf-meta")


# Reports and recordings


@pytest.mark.slow
def test_report(semair, copied):
    ended = semair("report", copied)
    assert (ended.code, ended.out) == (0, f"report  {copied / 'report.html'}\n")
    assert semair("report", copied, "--json").json == {"report": str(copied / "report.html")}
    assert (copied / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_report_of_nothing(semair, tmp_path):
    pytest.importorskip("gnuradio", reason="GNU Radio is not installed")
    semair("report", tmp_path / "nothing").refused(3, "nothing is not a folder")


def test_verify_and_recover(semair, copied):
    whole = semair("capture", "verify", copied)
    assert (whole.code, whole.out) == (0, "nothing wrong\n")
    assert semair("capture", "verify", copied, "--json").json == []
    data = copied / "bs-rx.sigmf-data"
    with data.open("r+b") as file:
        file.truncate(data.stat().st_size // 2 + 3)
    damaged = semair("capture", "verify", copied)
    assert damaged.code == 3
    assert str(data) in damaged.out
    found = semair("capture", "verify", copied, "--json")
    assert found.code == 3
    assert str(data) in {finding["file"] for finding in found.json if finding["severity"] == "error"}
    recovered = semair("capture", "recover", copied, "--json")
    assert recovered.code == 0
    (item,) = (item for item in recovered.json if item["name"].startswith("bs-rx"))
    # Two channels of 4 bytes: the sample that was cut is left out.
    assert item["samples"] == data.stat().st_size // 8


def test_verify_and_recover_of_nothing(semair, tmp_path):
    semair("capture", "verify", tmp_path / "nothing").refused(3, "nothing")
    semair("capture", "recover", tmp_path / "nothing").refused(3, "nothing")
    (tmp_path / "empty").mkdir()
    ended = semair("capture", "recover", tmp_path / "empty")
    assert (ended.code, ended.out) == (0, f"nothing to recover in {tmp_path / 'empty'}\n")


# Ctrl-C


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_a_run_with_its_code_and_what_was_recorded(semair, tmp_path, number):
    pytest.importorskip("gnuradio", reason="GNU Radio is not installed")
    folder = tmp_path / "run"
    words = ["run", "random-access", "-n", "1000000", "--no-report", "--folder", str(folder), *SMALL]
    process = subprocess.Popen(
        [sys.executable, "-m", "semair.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        decisions = folder / "decisions.npy"
        limit = time.monotonic() + 120
        while not (decisions.is_file() and decisions.stat().st_size > 20_000):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < limit
            time.sleep(0.1)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "stopped by Ctrl-C" in err
    assert "Traceback" not in err
    assert str(folder) in out
    assert Recording.open(folder / "bs-rx.sigmf-meta", check_hash=True).complete is not None
    assert semair("replay", folder).code == 0


@pytest.mark.parametrize(
    ("radio", "kind", "address"),
    [("usrp:type=usrp2,addr=127.0.0.9", "uhd", "type=usrp2,addr=127.0.0.9"), ("loopback", "loopback", "")],
)
def test_a_radio_is_named_by_product_or_kind_and_address(radio, kind, address):
    from semair.cli.common import chosen_scenario

    chosen = chosen_scenario("lab", ["radio.n_antennas=2"], radio)
    assert (chosen.radio.kind, chosen.radio.address, chosen.radio.n_antennas) == (kind, address, 2)


def test_a_radio_of_no_known_kind_is_answered_with_those_there_are(semair):
    ended = semair("run", "random-access", "--radio", "usrb:addr=1")
    assert ended.code == 4
    assert "'usrb' is not known" in ended.err
    assert "usrp" in ended.err

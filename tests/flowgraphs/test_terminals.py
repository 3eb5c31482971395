"""Users on radios of their own answer a base station on another, over real drivers and virtual devices.

Virtual devices run in a process of their own, as do drivers. Nothing here depends on the machine's speed: the bench's
clock is slowed down until enough frames came through whole, and what is asserted holds for every frame anyway.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")

from semair.captures.verify import verify
from semair.errors import RadioError, ScenarioError
from semair.flowgraphs.run import replay_run, run_random_access
from semair.flowgraphs.runfolder import RunFolder, unpack_users
from semair.flowgraphs.scenario import load_scenario
from semair.flowgraphs.terminals import EVENTS_NAME, SENT_NAME, run_terminals, transmission
from semair.hardware.radio import Settings
from semair.hardware.virtual.bench import LAB, OpenBench, load_bench

N_USERS = 6
QUIET = 40
BASE, UNIT, PLUTO, PLUTO_BASE = "127.0.3.1", "127.0.3.2", "127.0.3.3", "127.0.3.4"
BENCH = f"""
noise_dbfs = -60
path_gain_db = -10
own_gain_db = -15
[[n210]]
address = "{BASE}"
[[n210]]
address = "{UNIT}"
ppm = 2
[[pluto]]
address = "{PLUTO}"
ppm = -2
[[pluto]]
address = "{PLUTO_BASE}"
model = "ad9361"
"""
SCENARIO = f"""
name = "bench-test"
[frame]
sample_rate_hz = 625e3
frame_samples = 12288
group_width = 2
[users]
n_users = {N_USERS}
activity = 0.4
preamble_lengths = [20, 28]
quiet_frames = {QUIET}
[sync]
max_cfo_ppm = 4
"""
SPEEDS = (0.4, 0.2, 0.08, 0.03)


def base(kind: str, address: str, n_antennas: int, tx_gain_db: float) -> str:
    return f"""
[radio]
kind = "{kind}"
address = "{address}"
n_antennas = {n_antennas}
frequency_hz = 5e8
rx_gain_db = 0
tx_gain_db = {tx_gain_db}
"""


def terminal(kind: str, address: str, tx_gain_db: float) -> str:
    return f"""
[[terminals]]
kind = "{kind}"
address = "{address}"
rx_gain_db = 0
tx_gain_db = {tx_gain_db}
fading = "rayleigh"
lead_s = 0.4
"""


def drivers(*names: str) -> None:
    """Skip where a driver is not installed."""
    modules = {"uhd": "gnuradio.uhd", "iio": "iio", "adi": "adi"}
    for name in names:
        if find_spec(modules[name]) is None:
            pytest.skip(f"{modules[name]} is not installed")


def command(*arguments: str, inside: str | None = None) -> list[str]:
    enter = ["ip", "netns", "exec", inside] if inside else []
    return [*enter, sys.executable, "-c", "from semair.cli import main; main()", *arguments]


@contextlib.contextmanager
def apart(*arguments: str, inside: str | None = None) -> Iterator[dict]:
    """A command that goes on until it is stopped, and the line of JSON it begins with."""
    process = subprocess.Popen(
        command(*arguments, "--json", inside=inside), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"{arguments} ended at once"
        yield json.loads(line)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def start(scenario: Path, role: str, folder: Path, n_frames: int, inside: str | None = None) -> subprocess.Popen[str]:
    arguments = ["run", "random-access", "-s", str(scenario), "--role", role, "--folder", str(folder)]
    return subprocess.Popen(
        ["timeout", "240", *command(*arguments, "-n", str(n_frames), "--no-report", "--json", inside=inside)]
        if role != "users"
        else ["timeout", "240", *command(*arguments, "--json", inside=inside)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def result(process: subprocess.Popen[str]) -> dict:
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, out + error
    return json.loads(next(line for line in out.splitlines() if line.startswith("{")))


def every_frame_is_accounted_for(folder: RunFolder, metrics: dict, n_frames: int) -> None:
    frames = metrics["frames"]
    assert frames["sent"] == n_frames + QUIET == len(folder.rows(folder.truth))
    assert frames["matched"] + frames["missed"] + metrics["counts"]["slots_dropped"] == frames["sent"]
    assert frames["false"] == 0


def whole_frames(folder: RunFolder, users_folder: Path) -> list[int]:
    """Frames that were decided, and in which each terminal sent all that it should, well away from what went wrong."""
    truth, decided = folder.rows(folder.truth), set(folder.rows(folder.decisions)["frame"].tolist())
    sent = np.load(users_folder / SENT_NAME)
    events = json.loads((users_folder / EVENTS_NAME).read_text())["events"]
    trouble = [event["frame"] for event in events if event["event"] != "aligned"]
    whole = []
    for row in truth[truth["frame"] >= QUIET]:
        users = unpack_users(sent[sent["frame"] == row["frame"]]["active"], N_USERS)
        near = any(abs(int(row["frame"]) - frame) < 40 for frame in trouble)
        if int(row["frame"]) in decided and not near:
            expected = unpack_users(row["active"], N_USERS)
            if np.array_equal(users.any(axis=0) if len(users) else np.zeros(N_USERS, bool), expected):
                whole.append(int(row["frame"]))
    return whole


def users_are_found(folder: RunFolder, frames: list[int]) -> float:
    """Share of decisions on users in some frames that are right."""
    truth, decisions = folder.rows(folder.truth), folder.rows(folder.decisions)
    active = {int(row["frame"]): unpack_users(row["active"], N_USERS) for row in truth}
    right = [
        unpack_users(row["active"], N_USERS) == active[int(row["frame"])] for row in decisions if row["frame"] in frames
    ]
    return float(np.mean(right))


def link(tmp_path: Path, text: str, n_frames: int, run: Callable[[Path, Path], dict]) -> tuple[RunFolder, dict]:
    """Run a link on the bench, slower and slower until most frames came through whole."""
    bench, scenario = tmp_path / "bench.toml", tmp_path / "scenario.toml"
    bench.write_text(BENCH)
    scenario.write_text(SCENARIO + text)
    for speed in SPEEDS:
        for name in ("run", "users"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
        with apart("virtual", "bench", str(bench), "--speed", str(speed)):
            metrics = run(scenario, tmp_path)
        folder = RunFolder(tmp_path / "run")
        users = tmp_path / "users" if (tmp_path / "users").is_dir() else folder.path
        every_frame_is_accounted_for(folder, metrics, n_frames)
        whole = whole_frames(folder, users)
        if len(whole) >= n_frames // 2:
            break
    else:
        pytest.fail(f"only frames {whole} came through whole at {speed} of the clock's pace: {metrics}")
    # Twenty symbols for 2.4 active users of six at some 20 dB: hardly an error.
    assert users_are_found(folder, whole) > 0.98
    assert [str(finding) for finding in verify(folder.path) if finding.severity == "error"] == []
    return folder, metrics


def together(scenario: Path, place: Path) -> dict:
    return result(start(scenario, "both", place / "run", 40))


def in_two_processes(scenario: Path, place: Path) -> dict:
    users = start(scenario, "users", place / "users", 40)
    # They wait for the beacon as long as it takes; the folder is there once their radios are open.
    deadline = time.monotonic() + 100
    while not (place / "users" / SENT_NAME).is_file() and users.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    metrics = result(start(scenario, "base", place / "run", 40))
    reports = result(users)["terminals"]
    assert sum(report.get("sent", 0) for report in reports) > 0
    return metrics


@pytest.mark.slow
def test_an_n210_and_a_pluto_answer_a_base_station_without_common_clock(tmp_path):
    drivers("uhd", "iio", "adi")
    text = (
        base("uhd", f"type=usrp2,addr={BASE}", 1, 31.5)
        + terminal("uhd", f"type=usrp2,addr={UNIT}", 31.5)
        + terminal("iio", f"ip:{PLUTO}", 0)
    )
    folder, metrics = link(tmp_path, text, 40, together)
    # Two millionths of 500 MHz either way; the bound is that of single estimates at this SNR.
    offsets = [report["cfo_hz"] for report in metrics["terminals"]]
    assert offsets == pytest.approx([-1000, 1000], abs=30)
    assert metrics["terminals"][0]["turnaround_samples"] == 0
    replayed = replay_run(folder.path)
    assert replayed.equal == replayed.live > 0


@pytest.mark.slow
def test_an_ad9361_is_the_base_station_of_users_in_another_process(tmp_path):
    drivers("uhd", "iio", "adi")
    text = base("iio", f"ip:{PLUTO_BASE}", 2, 0) + terminal("uhd", f"type=usrp2,addr={UNIT}", 31.5)
    folder, _ = link(tmp_path, text, 40, in_two_processes)
    replayed = replay_run(folder.path)
    assert replayed.equal == replayed.live > 0


@pytest.mark.slow
def test_base_station_and_users_reach_their_radios_over_the_network(tmp_path):
    drivers("uhd")

    def served(scenario: Path, place: Path) -> dict:
        with (
            apart("serve", f"usrp:type=usrp2,addr={BASE}", "--listen", "tcp://127.0.0.1:*") as one,
            apart("serve", f"usrp:type=usrp2,addr={UNIT}", "--listen", "tcp://127.0.0.1:*") as two,
        ):
            text = base("zmq", one["address"], 1, 31.5) + terminal("zmq", two["address"], 31.5)
            scenario.write_text(SCENARIO + text)
            return in_two_processes(scenario, place)

    link(tmp_path, "", 40, served)


@contextlib.contextmanager
def two_hosts(one: str, two: str) -> Iterator[None]:
    """Two network namespaces with a cable between them, at 10.213.3.1 and 10.213.3.2."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    made = subprocess.run(["ip", "netns", "add", one], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no network namespaces here: {made.stderr.strip()}")

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    try:
        ip("netns", "add", two)
        ip("link", "add", "semair-a", "netns", one, "type", "veth", "peer", "name", "semair-b", "netns", two)
        for name, end, number in ((one, "semair-a", 1), (two, "semair-b", 2)):
            ip("-n", name, "addr", "add", f"10.213.3.{number}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no cable between network namespaces here: {error.stderr}")
    finally:
        for name in (one, two):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@pytest.mark.slow
def test_base_station_and_users_on_two_hosts(tmp_path):
    """The air is one machine's; the users' process is on another and reaches its radio over the cable alone."""
    drivers("uhd")
    one, two = "semair-test-one", "semair-test-two"
    bench, base_file, users_file = tmp_path / "bench.toml", tmp_path / "base.toml", tmp_path / "users.toml"
    bench.write_text(BENCH)
    with two_hosts(one, two):
        for speed in SPEEDS:
            for name in ("run", "users"):
                shutil.rmtree(tmp_path / name, ignore_errors=True)
            with (
                apart("virtual", "bench", str(bench), "--speed", str(speed), inside=one),
                apart("serve", f"usrp:type=usrp2,addr={UNIT}", "--listen", "tcp://10.213.3.1:*", inside=one) as remote,
            ):
                # Both know who sends, and only one needs to reach the users' radio.
                text = SCENARIO + base("uhd", f"type=usrp2,addr={BASE}", 1, 31.5)
                for file in (base_file, users_file):
                    file.write_text(text + terminal("zmq", remote["address"], 31.5))
                users = start(users_file, "users", tmp_path / "users", 40, inside=two)
                deadline = time.monotonic() + 100
                while not (tmp_path / "users" / SENT_NAME).is_file() and users.poll() is None:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
                metrics = result(start(base_file, "base", tmp_path / "run", 40, inside=one))
                result(users)
            folder = RunFolder(tmp_path / "run")
            every_frame_is_accounted_for(folder, metrics, 40)
            whole = whole_frames(folder, tmp_path / "users")
            if len(whole) >= 20:
                break
        assert len(whole) >= 20
        assert users_are_found(folder, whole) > 0.98


# --- what does not fit


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (['radio.kind="loopback"'], "emulated users only"),
        (["users.n_users=5"], "0 to 4 must belong"),
        (['terminals=[{kind="iio", address="ip:a", users=[0, 1]}, {kind="iio", address="ip:b"}]'], "to all of them"),
        (['terminals=[{kind="iio", address="ip:a"}, {kind="iio", address="ip:a"}]'], "the same radio"),
        (['terminals=[{kind="iio", address="ip:a", colour="red"}]'], "terminals.0.colour: unknown field"),
    ],
)
def test_terminals_that_do_not_fit_are_explained(tmp_path, overrides, message):
    path = tmp_path / "scenario.toml"
    path.write_text(
        SCENARIO
        + base("uhd", "addr=1", 1, 0)
        + '[[terminals]]\nkind = "iio"\naddress = "ip:a"\nusers = [0, 2, 4]\n'
        + '[[terminals]]\nkind = "iio"\naddress = "ip:b"\nusers = [1, 3, 5]\n'
    )
    assert load_scenario(path).terminal_users(1) == (1, 3, 5)
    with pytest.raises(ScenarioError, match=message):
        load_scenario(path, overrides)


def test_a_scenario_without_terminals_has_no_users_to_run(tmp_path):
    with pytest.raises(ScenarioError, match=r"\[\[terminals\]\]"):
        run_terminals(load_scenario("lab"), tmp_path / "run")


def test_the_shipped_scenario_names_the_radios_of_the_shipped_bench():
    scenario, bench = load_scenario("bench"), load_bench(LAB)
    named = [scenario.radio.address, *(one.address for one in scenario.terminals)]
    assert all(any(address in text for text in named) for address in bench.addresses)
    assert sorted(user for k in range(3) for user in scenario.terminal_users(k)) == list(range(12))
    assert scenario.quiet_frames * scenario.frame.frame_s == pytest.approx(1.5, abs=0.05)


def test_a_radio_that_is_not_there_is_named_before_a_folder_is_made(tmp_path):
    drivers("iio", "adi")
    path = tmp_path / "scenario.toml"
    path.write_text(SCENARIO + base("uhd", "addr=1", 1, 0) + terminal("iio", "ip:127.0.3.99", 0))
    with pytest.raises(RadioError, match=r"127\.0\.3\.99"):
        run_terminals(load_scenario(path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nobody_sends_in_quiet_frames_on_the_loopback_radio_either(tmp_path):
    scenario = load_scenario("lab", ["users.n_users=8", "users.activity=0.9", "users.quiet_frames=5"])
    done = run_random_access(scenario, tmp_path / "run", n_frames=6, record=False)
    truth = done.folder.rows(done.folder.truth)
    assert [bool(active.any()) for active in unpack_users(truth["active"], 8)] == [False] * 5 + [True] * 6
    assert done.metrics["frames"]["quiet"] == 5
    assert sum(part["slots"] for part in done.metrics["detection"].values()) == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no radios"),
        ('[[n210]]\naddress = "127.0.3.9"\nmimo_master = "127.0.3.8"', "no unit of this bench"),
        ('[[n210]]\naddress = "127.0.3.9"\n[[paths]]\nsender = "x"\nreceiver = "127.0.3.9"\ngain_db = 0', "names 'x'"),
        ('speed = 3\n[[n210]]\naddress = "127.0.3.9"', "speed"),
        ("speed =", "not a TOML file"),
    ],
)
def test_benches_that_do_not_fit_are_explained(tmp_path, text, message):
    path = tmp_path / "bench.toml"
    path.write_text(text)
    with pytest.raises(ScenarioError, match=message):
        OpenBench(load_bench(path))


def test_paths_of_a_bench_are_as_its_file_says(tmp_path):
    path = tmp_path / "bench.toml"
    path.write_text(
        'path_gain_db = -3\nown_gain_db = -20\n[[n210]]\naddress = "127.0.3.9"\n[[n210]]\naddress = "127.0.3.10"\n'
        '[[paths]]\nsender = "127.0.3.9"\nreceiver = "127.0.3.10"\ngain_db = -inf\n'
    )
    with OpenBench(load_bench(path)) as bench:
        one, two = bench.units[0].radio, bench.units[1].radio
        assert abs(bench.air.path(one.rx[0], two.tx[0])) == pytest.approx([10 ** (-3 / 20)])
        assert abs(bench.air.path(one.rx[1], one.tx[0])) == pytest.approx([0.1])
        assert bench.air.path(two.rx[0], one.tx[0]).size == 0


# What the site permits

SITE = """
name = "hall"
max_duration_s = 60
log = "{log}"
[[radios]]
kind = "iio"
address = "ip:192.168.2.1"
path = "cable"
max_gain_db = -20
"""
ON_AIR = SimpleNamespace(capabilities=SimpleNamespace(path="air"))


def sent(gain_db: float, radio: object = ON_AIR, address: str = "ip:192.168.2.1"):
    settings = Settings(1e6, 2.45e9, tx_gain_db=(gain_db,))
    return transmission(radio, "iio", address, settings, level_dbfs=-15.0, peak=0.5, duration_s=10.0)


def test_what_is_sent_for_real_stands_in_the_log_of_the_site(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "sent.jsonl"
    (tmp_path / "semair-site.toml").write_text(SITE.format(log=log), encoding="utf-8")
    running = sent(-30.0)
    running.__enter__()
    begun = json.loads(log.read_text().splitlines()[-1])
    # Ctrl-C goes on to whoever runs it.
    assert not running.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert (begun["event"], begun["address"]) == ("begin", "ip:192.168.2.1")
    assert begun["emission"]["gain_db"] == -30.0
    ended = json.loads(log.read_text().splitlines()[-1])
    assert (ended["event"], ended["id"]) == ("end", begun["id"])


@pytest.mark.parametrize(("gain_db", "address"), [(-10.0, "ip:192.168.2.1"), (-30.0, "ip:192.168.2.2")])
def test_what_the_site_does_not_permit_is_not_sent(tmp_path, monkeypatch, gain_db, address):
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "sent.jsonl"
    (tmp_path / "semair-site.toml").write_text(SITE.format(log=log), encoding="utf-8")
    with pytest.raises(RadioError, match=r"not sent: .*site 'hall'"), sent(gain_db, address=address):
        pytest.fail("it may send")
    assert not log.exists()


def test_without_a_site_file_nothing_is_sent_for_real(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(RadioError, match="there is no site file"), sent(-30.0):
        pytest.fail("it may send")
    virtual = SimpleNamespace(capabilities=SimpleNamespace(path="sim"))
    with sent(0.0, virtual):
        assert list(tmp_path.iterdir()) == []

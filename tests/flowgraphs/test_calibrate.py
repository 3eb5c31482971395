"""Calibrating radios, and receiving with what was found."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")

from gnuradio import gr
from semair.blocks.playback import PlayOptions
from semair.blocks.waveforms.calibration import Sounding
from semair.blocks.waveforms.impairments import fractional_delay
from semair.captures.reader import Recording
from semair.captures.verify import verify
from semair.cli import app
from semair.errors import RadioError, ScenarioError
from semair.flowgraphs import calibrate as module
from semair.flowgraphs.benchmarks import _hardware_calibration, entry_names
from semair.flowgraphs.calibrate import Options, calibrate, calibrate_configured
from semair.flowgraphs.radios import make_radio, requested_settings
from semair.flowgraphs.report import write_report
from semair.flowgraphs.report_data import load_run
from semair.flowgraphs.report_sections import settings_section
from semair.flowgraphs.run import replay_recording, replay_run, run_random_access
from semair.flowgraphs.runfolder import RunFolder
from semair.flowgraphs.scenario import load_scenario
from semair.hardware.calibration import load_calibration, require_valid
from semair.hardware.loopback import LoopbackRadio
from semair.hardware.radio import Capabilities, Link, Radio, RadioInfo, Settings
from semair.hardware.site import Site
from semair.hardware.virtual.air import VirtualAir
from semair.hardware.virtual.n210 import VirtualN210
from typer.testing import CliRunner

SMALL = ["radio.n_antennas=3", "users.n_users=16", "users.preamble_lengths=[8]", "link.beacon_snr_db=20"]


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration of the small scenario's radio."""
    path = tmp_path_factory.mktemp("calibrated") / "small.calibration.json"
    calibrate(load_scenario("lab", SMALL), path)
    return path


@pytest.fixture(scope="module")
def run(calibrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with this calibration."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    run_random_access(load_scenario("lab", [*SMALL, f"radio.calibration={calibrated}"]), folder, n_frames=12)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    run_random_access(load_scenario("lab", SMALL), folder, n_frames=12)
    return folder


def degrees(difference: np.ndarray) -> np.ndarray:
    return (difference + 180) % 360 - 180


@pytest.mark.parametrize("level", ["cabled", "wireless"])
def test_planted_errors_of_the_loopback_radio_are_found(level: str, tmp_path: Path) -> None:
    # All that a radio does at once; the SNR is that of the scenario's beacon, 10 dB.
    scenario = load_scenario("lab", [f"level={level}", "impairments.chain_delay_samples=3"])
    found = calibrate(scenario, tmp_path / "x.calibration.json")
    radio = make_radio(scenario)
    radio.configure(requested_settings(scenario))
    truth: Any = radio.truth()
    chains, first = found.chains, 0
    delays = truth.chain_delay_samples - truth.chain_delay_samples[first]
    phases = np.degrees(truth.chain_phase_rad - truth.chain_phase_rad[first])
    gains = truth.chain_gain_db - truth.chain_gain_db[first]
    assert np.array([chain.delay_samples for chain in chains]) == pytest.approx(delays, abs=0.05)
    assert np.abs(degrees(np.array([chain.phase_deg for chain in chains]) - phases)).max() < 1
    assert np.array([chain.gain_db for chain in chains]) == pytest.approx(gains, abs=0.1)
    # The image's standard deviation is 1/sqrt(10 * 65536) = 0.0012 of the signal: 0.02 dB and 0.14 degrees.
    for chain in chains:
        assert chain.iq_gain_db == pytest.approx(scenario.impairments.iq_gain_db, abs=0.1)
        assert chain.iq_phase_deg == pytest.approx(scenario.impairments.iq_phase_deg, abs=0.7)
        assert chain.dc_dbfs == pytest.approx(scenario.impairments.dc_dbfs, abs=5)
    # Phase noise of linewidth b leaves a line through T seconds of phase uncertain by sqrt(b / (2 pi T)): 3 Hz for
    # 2 Hz and 34 ms; five of that.
    assert found.cfo_hz == pytest.approx(truth.cfo_hz, abs=15)
    assert found.turnaround is not None
    # The clocks drift: what was measured is the delay in the middle of the first sounding.
    middle = Sounding().slot_samples + Sounding().burst_samples / 2
    late = truth.receive_index(middle) - middle + truth.chain_delay_samples[0]
    assert found.turnaround.samples == pytest.approx(late, abs=0.05)


def test_what_is_left_is_measured_and_small(calibrated: Path) -> None:
    found = load_calibration(calibrated)
    worst = found.worst()
    assert worst["delay_samples"] < 0.01
    assert worst["phase_deg"] < 1
    assert worst["gain_db"] < 0.1
    assert worst["image_dbc"] < -45
    assert found.mismatch_db < -20
    assert any(one.phase_deg for one in found.residual[1:]), "a second sounding is never exactly the first"


def test_the_measurement_is_kept_and_vouched_for(calibrated: Path) -> None:
    import hashlib

    found = load_calibration(calibrated)
    assert found.recording is not None
    meta = calibrated.parent / found.recording
    assert [finding for finding in verify(meta) if finding.severity == "error"] == []
    assert hashlib.sha256(meta.read_bytes()).hexdigest() == found.recording_sha256
    recording = Recording.open(meta)
    assert recording.n_channels == 3
    assert recording.global_fields["role"] == "calibration"


def test_a_run_is_corrected_and_its_recording_is_as_received(run: Path, plain: Path, calibrated: Path) -> None:
    raw = [Path(folder / "bs-rx.sigmf-data").read_bytes() for folder in (run, plain)]
    assert raw[0] == raw[1]
    corrected, as_it_is = RunFolder(run), RunFolder(plain)
    assert load_calibration(corrected.calibration) == load_calibration(calibrated)
    told = json.loads(corrected.run_json.read_text())["calibration"]
    assert told["worst_residual"]["phase_deg"] < 1
    assert told["parts"] == ["delay", "phase", "gain", "iq", "dc"]
    assert json.loads(as_it_is.run_json.read_text())["calibration"] is None
    assert not as_it_is.calibration.exists()
    one, other = corrected.rows(corrected.decisions), as_it_is.rows(as_it_is.decisions)
    assert len(one) == len(other) == 12
    assert one["scores"].tobytes() != other["scores"].tobytes()
    # The filter's delay is no delay of the signal.
    assert np.abs(one["sample_time"] + one["fraction"] - other["sample_time"] - other["fraction"]).max() < 0.5


def test_a_replay_corrects_alike_bit_for_bit(run: Path) -> None:
    result = replay_run(run)
    assert (result.live, result.equal) == (12, 12)
    assert json.loads((run / "replays/same/run.json").read_text())["calibration"]["parts"]
    swapped = replay_run(run, play=PlayOptions(channels=(2, 0)))
    assert swapped.extra == 12


def test_any_recording_is_corrected_where_settings_agree(run: Path, calibrated: Path, tmp_path: Path) -> None:
    scenario = load_scenario("lab", [*SMALL, f"radio.calibration={calibrated}"])
    replay_recording(run / "bs-rx.sigmf-meta", scenario, tmp_path / "replayed")
    folder, live = RunFolder(tmp_path / "replayed"), RunFolder(run)
    again, then = folder.rows(folder.decisions), live.rows(live.decisions)
    assert again["scores"].tobytes() == then["scores"].tobytes()
    other = load_scenario("lab", [*SMALL, f"radio.calibration={calibrated}", "radio.n_antennas=2"])
    with pytest.raises(RadioError, match="chains: it holds 3, there are 2"):
        replay_recording(run / "bs-rx.sigmf-meta", other, tmp_path / "other", play=PlayOptions(channels=(0, 1)))


def test_every_report_says_by_what_the_chains_were_corrected(run: Path, plain: Path) -> None:
    page = write_report(run, detectors=[]).read_text(encoding="utf-8")
    for words in ("Calibration", "residual delay", "residual phase", "residual gain", "residual image", "residual DC"):
        assert words in page
    (used,) = settings_section(load_run(plain))["calibration"]
    assert used[1] == "none: the chains are received as they are"


def test_a_calibration_for_something_else_is_refused_before_anything_is_made(calibrated: Path, tmp_path: Path) -> None:
    for setting, words in [
        ("seed=2", "radio.serials is"),
        ("radio.frequency_hz=2.4e9", "valid.frequency_hz is 3499999000 to 3500001000, the radio has 2400000000"),
        ("frame.sample_rate_hz=1e6", "valid.sample_rate_hz"),
        ("radio.n_antennas=4", "chains: it holds 3, there are 4"),
        ("radio.calibration=/nowhere.json", "cannot be read"),
    ]:
        scenario = load_scenario("lab", [*SMALL, f"radio.calibration={calibrated}", setting])
        with pytest.raises((RadioError, ScenarioError), match=words):
            run_random_access(scenario, tmp_path / "run", n_frames=2)
        assert not (tmp_path / "run").exists()


# Other radios, and what goes wrong


def use(monkeypatch: pytest.MonkeyPatch, radio: type[Radio]) -> None:
    monkeypatch.setattr(module, "backend", lambda kind: radio)


def test_a_tuned_radio_is_calibrated_as_it_is_and_its_phases_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = load_scenario("lab", ["radio.n_antennas=2", "frame.sample_rate_hz=4e5", "sync.max_cfo_ppm=1"])
    radio = Timeless()
    radio.queue.h = np.array([[0.5, 0], [0.3j, 0]])
    actual = radio.configure(requested_settings(scenario))
    path = tmp_path / "x.calibration.json"
    found = calibrate_configured(scenario, radio, actual, path, Options())
    assert found.chains[1].phase_deg == pytest.approx(90, abs=0.1)
    assert found.chains[1].gain_db == pytest.approx(20 * np.log10(0.6), abs=0.01)
    require_valid(found, radio, "", actual)
    radio.configure(requested_settings(scenario))
    with pytest.raises(RadioError, match="tuned or started anew"):
        require_valid(found, radio, "", actual)


def test_radios_that_cannot_are_named(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, scenario = tmp_path / "x.calibration.json", load_scenario("lab", SMALL)
    deaf = load_scenario("lab", [*SMALL, "radio.kind=replay", f"radio.address={run / 'bs-rx.sigmf-meta'}"])
    with pytest.raises(RadioError, match="cannot transmit"):
        calibrate(deaf, path)
    with pytest.raises(RadioError, match=r"as many transmit as receive chains.*has 1 and 3"):
        calibrate(scenario, path, Options(method="antennas"))
    for options, words in [
        (Options(reference=3), "reference=3: the radio has receive chains 0 to 2"),
        (Options(tx_chain=1), "tx_chain=1: the radio has transmit chains 0 to 0"),
        (Options(valid_s=0), "valid_s=0"),
    ]:
        with pytest.raises(ScenarioError, match=words):
            calibrate(scenario, path, options)
    with pytest.raises(ScenarioError, match=r"end in \.json"):
        calibrate(scenario, tmp_path / "x.toml")
    with pytest.raises(RadioError, match=r"at an SNR of -\d.*--tx-gain"):
        calibrate(load_scenario("lab", [*SMALL, "users.activity=0", "link.beacon_snr_db=-2"]), path)
    assert list(tmp_path.iterdir()) == []

    class Loses(LoopbackRadio):
        @classmethod
        def open(cls, address: str, link: Link) -> LoopbackRadio:
            return super().open(address, dataclasses.replace(link, losses=((60_000, 100),)))

    use(monkeypatch, Loses)
    with pytest.raises(RadioError, match="100 samples were lost"):
        calibrate(scenario, path)


SITE = Site.model_validate(
    {"name": "bench", "radios": [{"kind": "loopback", "address": "", "path": "cable", "max_gain_db": -20}]}
)


def test_radios_that_leave_the_machine_need_a_site_and_end_at_the_lowest_gain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gains: list[float] = []

    class Cabled(LoopbackRadio):
        @classmethod
        def open(cls, address: str, link: Link) -> LoopbackRadio:
            made = super().open(address, dataclasses.replace(link, noise_power=1e-7))
            made.capabilities = dataclasses.replace(made.capabilities, path="cable")
            return made

        def set_tx_gain_db(self, gain_db: float) -> float:
            gains.append(gain_db)
            return super().set_tx_gain_db(gain_db)

    use(monkeypatch, Cabled)
    path, log = tmp_path / "x.calibration.json", tmp_path / "log.jsonl"
    scenario = load_scenario("lab", SMALL)
    with pytest.raises(RadioError, match="not sent: there is no site file"):
        calibrate(scenario, path, Options(tx_gain_db=-20.0), log=log)
    with pytest.raises(RadioError, match="permits at most -20 dB"):
        calibrate(scenario, path, Options(tx_gain_db=-19.0), site=SITE, log=log)
    with pytest.raises(RadioError, match=r"mean power is -11\.0 dBFS"):
        calibrate(scenario, path, Options(tx_gain_db=-20.0, level_dbfs=-11.0), site=SITE, log=log)
    assert not log.exists()
    assert gains == []
    calibrate(scenario, path, Options(tx_gain_db=-20.0), site=SITE, log=log)
    assert gains == [-20.0, -80.0]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["begin", "end"]
    assert lines[0]["emission"]["gain_db"] == -20.0


class Queue:
    """Samples between two blocks that share nothing else."""

    def __init__(self, n: int, h: np.ndarray) -> None:
        self.h = h
        self.lock = threading.Lock()
        self.waiting = np.zeros((n, 0), np.complex64)


class QueueSink(gr.sync_block):
    def __init__(self, shared: Queue, n: int) -> None:
        gr.sync_block.__init__(self, "queue sink", [np.complex64] * n, None)
        self.shared = shared

    def work(self, input_items, output_items):
        with self.shared.lock:
            room = 400_000 - self.shared.waiting.shape[1]
            n = min(max(room, 0), len(input_items[0]))
            new = np.array([port[:n] for port in input_items])
            self.shared.waiting = np.concatenate((self.shared.waiting, new), axis=1)
        return n


class QueueSource(gr.sync_block):
    def __init__(self, shared: Queue, n: int) -> None:
        gr.sync_block.__init__(self, "queue source", None, [np.complex64] * n)
        self.shared, self.rng = shared, np.random.default_rng(1)

    def work(self, input_items, output_items):
        with self.shared.lock:
            n = min(self.shared.waiting.shape[1], len(output_items[0]))
            heard = self.shared.h @ self.shared.waiting[:, :n]
            self.shared.waiting = self.shared.waiting[:, n:]
        noise = self.rng.standard_normal((*heard.shape, 2)).view(complex)[..., 0] * 1e-4
        for port, row in zip(output_items, heard + noise, strict=True):
            port[:n] = row
        return n


T, R = np.array([1.0, 0.8 * np.exp(0.7j)]), np.array([0.9j, 1.1 * np.exp(-0.4j)])


class Timeless(Radio):
    """Two antennas, whose streams begin whenever they do."""

    kind = "timeless"

    def __init__(self) -> None:
        self.capabilities = Capabilities(2, 2, False, (1e3, 1e9), False, False, "none", (), "cf32_le", "sim")
        path = np.array([[0.02, 0.5 - 0.3j], [0.5 - 0.3j, 0.03j]])
        self.queue = Queue(2, R[:, None] * path * T[None, :])
        self.gap = None

    @classmethod
    def open(cls, address: str, link: Link) -> Timeless:
        return cls()

    @classmethod
    def find(cls) -> list[RadioInfo]:
        return []

    def configure(self, requested: Settings) -> Settings:
        self.blocks = QueueSource(self.queue, 2), QueueSink(self.queue, 2)
        return requested

    def source(self) -> QueueSource:
        return self.blocks[0]

    def sink(self) -> QueueSink:
        return self.blocks[1]

    def facts(self) -> dict[str, Any]:
        return {"serials": ["T"]}


def test_reciprocity_of_two_antennas_without_a_common_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Timeless)
    scenario = load_scenario("lab", ["radio.n_antennas=2", "frame.sample_rate_hz=4e5", "sync.max_cfo_ppm=1"])
    found = calibrate(scenario, tmp_path / "x.calibration.json", Options(method="antennas"))
    assert found.turnaround is None
    assert found.valid.tune is not None
    assert found.reciprocity is not None
    c = T / R
    assert found.reciprocity.factors()[0] == pytest.approx(c / c[0], abs=2e-3)
    assert found.mismatch_db < -40
    assert all(chain.delay_samples == chain.gain_db == chain.phase_deg == 0 for chain in found.chains)


def test_from_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "x.calibration.json"
    settings = [part for setting in SMALL for part in ("--set", setting)]
    shown = CliRunner().invoke(app, ["calibrate", str(path), *settings, "--log", str(tmp_path / "log")])
    assert shown.exit_code == 0
    for words in ("mismatch", "turnaround", "transmitter", f"--set radio.calibration={path}"):
        assert words in shown.output
    assert {item.name for item in tmp_path.iterdir()} == {
        "x.calibration.json", "x-sounding.sigmf-data", "x-sounding.sigmf-meta", "log",
    }  # fmt: skip
    printed = CliRunner().invoke(app, ["calibrate", str(path), *settings, "--json", "--log", str(tmp_path / "log")])
    assert json.loads(printed.stdout) == json.loads(load_calibration(path).model_dump_json())
    wrong = CliRunner().invoke(app, ["calibrate", str(path), "--method", "guess"])
    assert isinstance(wrong.exception, ScenarioError)
    assert "splitter or antennas" in str(wrong.exception)


def test_the_benchmark_measures_what_it_says() -> None:
    names = entry_names("hardware", quick=False)
    for what in ("delay", "phase", "gain"):
        assert {f"calibration/{radio}/{what}" for radio in ("loopback-cabled", "n210x1", "n210x2")} <= set(names)
    entries = list(_hardware_calibration.on_loopback("cabled", 1, lambda _: None))
    assert [entry.name.rpartition("/")[2] for entry in entries] == ["delay", "phase", "gain"]
    assert all(0 < entry.value < entry.reference for entry in entries)


# The virtual N210


FIRST, SECOND = "127.0.1.70", "127.0.1.71"


@pytest.fixture(scope="module")
def units() -> Iterator[tuple[VirtualAir, list[VirtualN210]]]:
    air = VirtualAir(seed=4, noise_power=1e-6)
    with VirtualN210(air, FIRST) as first, VirtualN210(air, SECOND, mimo_master=first) as second:
        yield air, [first, second]


def shell(folder: Path, *arguments: str) -> dict[str, Any]:
    command = ["timeout", "100", sys.executable, "-m", "semair.cli", "calibrate", str(folder / "n.calibration.json")]
    settings = ["radio.kind=uhd", "frame.sample_rate_hz=1e6", "radio.n_antennas=2", "radio.frequency_hz=2e9"]
    given = [part for setting in settings for part in ("--set", setting)]
    done = subprocess.run([*command, *given, *arguments, "--json"], capture_output=True, text=True, check=False)
    if "gr-uhd cannot be imported" in done.stderr:
        pytest.skip("gr-uhd is not installed")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("boards", [1, 2])
def test_planted_errors_of_virtual_n210s_are_found(units, boards: int, tmp_path: Path) -> None:
    air, (first, second) = units
    receivers = first.radio.rx if boards == 1 else (first.radio.rx[0], second.radio.rx[0])
    gains, delays = np.array([0.9 * np.exp(0.3j), 0.6 * np.exp(-1.1j)]), np.array([0.0, 1.37])
    impulse = np.zeros(48, np.complex64)
    impulse[12] = 1
    for chain, gain, delay in zip(receivers, gains, delays, strict=True):
        air.set_path(chain, first.radio.tx[0], gain * fractional_delay(impulse, delay))
    address = f"type=usrp2,addr={FIRST},rx_subdev=A:0 A:0"
    more = []
    if boards == 2:
        address = f"type=usrp2,addr0={FIRST},addr1={SECOND}"
        more = ["--set", "radio.clock_source=mimo", "--set", "radio.time_source=mimo"]
    found = shell(
        tmp_path, "--set", f'radio.address="{address}"', "--tx-gain", "25", "--rx-gain", "5",
        "--log", str(tmp_path / "log"), *more,
    )  # fmt: skip
    # Each tuning begins at a phase of its own, on each board.
    turns = [chain.tunings[-1].phase_rad for chain in receivers]
    phase = np.degrees(np.angle(gains[1] / gains[0]) - (turns[1] - turns[0]))
    chain = found["chains"][1]
    assert chain["delay_samples"] == pytest.approx(1.37, abs=0.01)
    assert degrees(chain["phase_deg"] - phase) == pytest.approx(0, abs=0.2)
    assert chain["gain_db"] == pytest.approx(20 * np.log10(abs(gains[1] / gains[0])), abs=0.02)
    # Twelve samples were planted; the burst was timed to the tick.
    assert found["turnaround"]["timed"] is True
    assert found["turnaround"]["samples"] == pytest.approx(12, abs=0.01)
    assert found["valid"]["tune"]
    assert found["valid"]["rx_gain_db"][0]["low"] < 5 < found["valid"]["rx_gain_db"][0]["high"]


# Right before a run


def test_a_run_calibrates_its_radio_first(tmp_path: Path) -> None:
    scenario = load_scenario("lab", SMALL)
    result = run_random_access(scenario, tmp_path / "run", n_frames=6, calibrate=True)
    told = json.loads(result.folder.run_json.read_text())["calibration"]
    assert told["worst_residual"]["phase_deg"] < 1
    assert load_calibration(result.folder.calibration).worst() == told["worst_residual"]
    # It is what a calibration before would have found, and what a replay corrects by.
    before = calibrate(scenario, tmp_path / "x.calibration.json")
    assert load_calibration(result.folder.calibration).chains == before.chains
    replayed = replay_run(tmp_path / "run")
    assert replayed.equal == replayed.live == 6
    named = load_scenario("lab", [*SMALL, f"radio.calibration={tmp_path / 'x.calibration.json'}"])
    with pytest.raises(ScenarioError, match="leave one of them out"):
        run_random_access(named, tmp_path / "other", n_frames=2, calibrate=True)


def test_calibration_before_a_run_needs_something_that_is_sent(tmp_path: Path) -> None:
    for arguments in (["run", "random-access", "--role", "users"], ["record", "--raw"]):
        shown = CliRunner().invoke(app, [*arguments, "--calibrate", "--folder", str(tmp_path / "x")])
        assert isinstance(shown.exception, ScenarioError)
        assert "--calibrate" in str(shown.exception)
    assert not (tmp_path / "x").exists()


def record_calibrated(folder: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    """What a base station over a virtual N210 hears, calibrated first; nobody answers it."""
    pytest.importorskip("gnuradio.uhd", reason="gr-uhd is not installed")
    base = (
        "radio.kind=uhd", f'radio.address="type=usrp2,addr={FIRST},rx_subdev=A:0 A:0"', "frame.sample_rate_hz=1e6",
        "radio.n_antennas=2", "radio.frequency_hz=2e9", "radio.tx_gain_db=25", "radio.rx_gain_db=5",
    )  # fmt: skip
    given = [part for setting in (*base, *settings) for part in ("--set", setting)]
    command = [sys.executable, "-m", "semair.cli", "run", "random-access", "--role", "base", "--calibrate", "-n", "5"]
    return subprocess.run(
        ["timeout", "100", *command, "--folder", str(folder), "--no-report", "--json", *given],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XDG_STATE_HOME": str(folder.parent)},
    )


@pytest.mark.slow
def test_phases_that_were_measured_right_before_hold_for_the_run(units, tmp_path: Path) -> None:
    air, (first, _) = units
    gains = np.array([0.9 * np.exp(0.3j), 0.6 * np.exp(-1.1j)])
    for chain, gain in zip(first.radio.rx, gains, strict=True):
        air.set_path(chain, first.radio.tx[0], np.array([gain]))
    done = record_calibrated(tmp_path / "run")
    assert done.returncode == 0, done.stderr
    folder = RunFolder(tmp_path / "run")
    found = load_calibration(folder.calibration)
    # Both channels share one oscillator, so that what was planted is what differs.
    assert found.chains[1].phase_deg == pytest.approx(np.degrees(np.angle(gains[1] / gains[0])), abs=0.2)
    assert found.chains[1].gain_db == pytest.approx(20 * np.log10(abs(gains[1] / gains[0])), abs=0.02)
    run = json.loads(folder.run_json.read_text())
    assert run["calibration"]["worst_residual"] == found.worst()
    # What was recorded after it has those phases: the beacon itself, heard by both chains.
    recording = Recording.open(folder.recording)
    heard = recording.read(0, recording.n_samples)
    loud = np.abs(heard[0]) > 0.5 * np.abs(heard[0]).max()
    turned = np.degrees(np.angle(np.vdot(heard[0, loud], heard[1, loud])))
    assert degrees(turned - found.chains[1].phase_deg) == pytest.approx(0, abs=1)
    assert first.radio.tx[0].tunings[-1].gain_db <= -31.5


@pytest.mark.slow
def test_a_radio_without_a_splitter_is_told_so_and_left_silent(units, tmp_path: Path) -> None:
    air, (first, _) = units
    for chain in first.radio.rx:
        air.set_path(chain, first.radio.tx[0], np.zeros(1))
    done = record_calibrated(tmp_path / "run")
    assert done.returncode == RadioError.exit_code, done.stderr
    said = " ".join(done.stderr.split())
    assert "cannot be calibrated before the run" in said and "leave --calibrate out" in said
    assert first.radio.tx[0].tunings[-1].gain_db <= -31.5

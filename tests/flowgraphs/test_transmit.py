"""Transmission of recordings: only own waveforms, only what was planned, from the lowest gain, with a log."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")

from gnuradio import blocks as gr_blocks
from semair.blocks.playback import Playback, PlayOptions
from semair.captures.collection import write_collection
from semair.captures.reader import Recording
from semair.captures.writer import RecordingWriter
from semair.errors import RadioError, RecordingError, ScenarioError, StorageError
from semair.flowgraphs.transmit import Level, Request, Watch, level, make_plan, open_radio, own_waveform, transmit
from semair.hardware.loopback import LoopbackRadio
from semair.hardware.radio import Settings
from semair.hardware.site import Band, Site, SiteRadio
from semair.hardware.virtual.air import VirtualAir
from semair.hardware.virtual.n210 import VirtualN210

RATE_HZ = 2e6
AMPLITUDE = 0.1


def waveform(n: int = 30_000, n_channels: int = 1) -> np.ndarray:
    """QPSK at -20 dBFS."""
    turns = np.random.default_rng(7).integers(0, 4, (n_channels, n))
    return (AMPLITUDE * np.exp(0.5j * np.pi * (turns + 0.5))).astype(np.complex64)


def record(
    folder: Path, x: np.ndarray, name: str = "tx-beacon", gap: int = 0, rate_hz: float = RATE_HZ, **fields: Any
) -> Path:
    with RecordingWriter(
        folder, name, n_channels=len(x), datatype="cf32_le", sample_rate_hz=rate_hz, frequency_hz=9e9, min_free_bytes=0,
        global_fields={"path": "loopback", "origin": "sim", "role": "tx-beacon", **fields},
    ) as writer:  # fmt: skip
        writer.write(x)
        if gap:
            writer.gap(gap)
            writer.write(x)
    return folder / f"{name}.sigmf-meta"


def asked(path: Path, **changes: Any) -> Request:
    return Request(
        **{"recording": path, "kind": "loopback", "address": "", "frequency_hz": 3.5e9, "gain_db": -20.0, **changes}
    )


def planned(path: Path, site: Site | None = None, **changes: Any) -> tuple[Any, Any, Any]:
    """Plan, radio and recording of a request."""
    request, recording = asked(path, **changes), own_waveform(path)
    radio = open_radio(request, recording)
    return make_plan(request, radio, recording, site), radio, recording


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


# Whose waveforms


def edit(path: Path, change: Any) -> None:
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"role": "bs-rx"}, "semair:role is 'bs-rx', not one of tx-"),
        ({"origin": "ota"}, "semair:origin is 'ota': it was received"),
        ({"origin": "cable"}, "semair:origin is 'cable': it was received"),
    ],
)
def test_receptions_are_never_sent(tmp_path, fields, words):
    with pytest.raises(RecordingError, match=words):
        own_waveform(record(tmp_path, waveform(), **fields))


def test_foreign_waveforms_are_never_sent(tmp_path):
    waveform().T.astype("<c8").tofile(tmp_path / "wifi.sigmf-data")
    head = {"core:datatype": "cf32_le", "core:version": "1.2.0", "core:sample_rate": RATE_HZ, "core:recorder": "other"}
    meta = {"global": head, "captures": [{"core:sample_start": 0}], "annotations": []}
    (tmp_path / "wifi.sigmf-meta").write_text(json.dumps(meta))
    with pytest.raises(RecordingError, match=r"core:recorder is 'other', not semair.*role is None.*complete is not tr"):
        own_waveform(tmp_path / "wifi.sigmf-meta")


def test_altered_samples_are_not_sent(tmp_path):
    path = record(tmp_path, waveform())
    data = path.with_suffix(".sigmf-data")
    content = bytearray(data.read_bytes())
    content[1000] ^= 1
    data.write_bytes(content)
    with pytest.raises(RecordingError, match="changed or damaged"):
        own_waveform(path)


def test_altered_metadata_are_not_sent(tmp_path):
    path = record(tmp_path, waveform())
    write_collection(tmp_path, "run", {"tx-beacon": "tx-beacon"})
    assert own_waveform(path).n_samples == 30_000
    path.write_text(path.read_text().replace("2000000.0", "2000001.0"))
    with pytest.raises(RecordingError, match="chang"):
        own_waveform(path)


def test_what_was_recovered_is_not_sent(tmp_path):
    path = record(tmp_path, waveform())
    edit(path, lambda meta: meta["global"].update({"semair:complete": False}))
    with pytest.raises(RecordingError, match="semair:complete is not true"):
        own_waveform(path)


def test_gaps_are_not_sent(tmp_path):
    with pytest.raises(RecordingError, match="has 1 gaps"):
        planned(record(tmp_path, waveform(1000), gap=50))


# Level


def played(folder: Path, x: np.ndarray, **options: Any) -> Playback:
    return Playback(Recording.open(record(folder, x)), PlayOptions(gaps="stop", **options))


def test_the_level_is_that_of_the_loudest_millisecond(tmp_path):
    x = np.zeros((2, 200_000), np.complex64)
    # A burst of exactly one window, across a border of blocks, on one channel only.
    x[1, 65_000:67_000] = 0.25j
    x[0, 5] = 0.6
    found = level(played(tmp_path, x))
    assert found.mean_dbfs == pytest.approx(20 * np.log10(0.25), abs=1e-6)
    assert found.peak == pytest.approx(0.6)


@pytest.mark.parametrize("n", [1, 100, 1999, 2000, 2001, 70_000])
def test_the_level_of_a_steady_waveform_does_not_depend_on_its_length(tmp_path, n):
    assert level(played(tmp_path, waveform(n))) == Level(pytest.approx(-20.0, abs=1e-5), pytest.approx(0.1))


def test_a_burst_across_two_turns_counts_as_one(tmp_path):
    x = np.zeros((1, 10_000), np.complex64)
    x[0, :1000] = x[0, -1000:] = 0.5
    assert level(played(tmp_path, x, turns=3, frame_samples=10_000)).mean_dbfs == pytest.approx(-6.02, abs=0.01)


def test_silence_and_what_is_no_number_are_refused(tmp_path):
    with pytest.raises(RecordingError, match="nothing but silence"):
        level(played(tmp_path / "a", np.zeros((1, 100), np.complex64)))
    playback = played(tmp_path / "b", waveform(100))
    with playback.recording.data_path.open("r+b") as data:
        data.seek(8 * 50)
        data.write(np.complex64(np.nan).tobytes())
    with pytest.raises(RecordingError, match="no numbers"):
        level(playback)


# Plans


def test_a_plan_holds_everything_and_sends_nothing(tmp_path):
    plan, radio, _ = planned(record(tmp_path, waveform()), level_dbfs=-30.0, turns=2, duration_s=0.02)
    assert plan.judgement.refusals == ()
    assert (plan.emission.frequency_hz, plan.emission.bandwidth_hz) == (3.5e9, RATE_HZ)
    assert plan.emission.level_dbfs == pytest.approx(-30.0)
    assert plan.emission.peak == pytest.approx(10 ** (-30 / 20), rel=1e-4)
    assert plan.emission.duration_s == pytest.approx(0.02)
    assert plan.gains_db == (-80.0, -70.0, -60.0, -50.0, -40.0, -30.0, -20.0)
    json.dumps(plan.as_dict())
    with pytest.raises(RadioError, match="was not configured"):
        radio.sink()


def test_the_code_stands_for_one_plan_only(tmp_path):
    path = record(tmp_path, waveform())
    codes = [
        planned(path, **changes)[0].code
        for changes in (
            {}, {"gain_db": -19.0}, {"frequency_hz": 3.6e9}, {"level_dbfs": -21.0}, {"turns": 2}, {"duration_s": 0.01},
        )
    ]  # fmt: skip
    assert len(set(codes)) == len(codes)
    assert planned(path)[0].code == codes[0]
    other = record(tmp_path / "other", waveform()[:, ::-1].copy())
    assert planned(other)[0].code != codes[0]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"gain_db": None}, ScenarioError, r"gain_db=None: type a transmit gain of -80 to 0 dB"),
        ({"gain_db": 1.0}, ScenarioError, r"gain_db=1.0"),
        ({"channels": (0, 1)}, ScenarioError, r"2 are chosen, the radio has 1 transmit chains"),
        ({"duration_s": 0.0}, ScenarioError, r"duration_s=0.0"),
        ({"at_s": 3.0}, RadioError, r"at_s=3.0, in_s=None: radio loopback '' cannot begin at a time"),
        ({"at_s": 3.0, "in_s": 1.0}, ScenarioError, r"give one of them"),
        ({"kind": "replay"}, RecordingError, r"check the path"),
        ({"kind": "pigeon"}, RadioError, r"'pigeon' is not known"),
    ],
)
def test_requests_that_do_not_fit_are_refused(tmp_path, changes, error, words):
    path = record(tmp_path, waveform(n_channels=2))
    with pytest.raises(error, match=words):
        planned(path, **{"channels": (1,), **changes})


def test_a_waveform_that_is_too_loud_is_refused_by_the_plan_and_by_the_transmission(tmp_path):
    plan, radio, recording = planned(record(tmp_path, 20 * waveform()))
    assert len(plan.judgement.refusals) == 2
    with pytest.raises(RadioError, match="not sent: samples reach 2"):
        transmit(plan, plan.code, radio, recording, tmp_path / "log")
    assert not (tmp_path / "log").exists()


# Transmission over the loopback radio


class Aerial(LoopbackRadio):
    """The loopback radio, as if it were on the air; notes the gains it is given."""

    kind = "aerial"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gains: list[float] = []
        self.error_db = 0.0

    def set_tx_gain_db(self, gain_db: float) -> float:
        self.gains.append(gain_db)
        return super().set_tx_gain_db(gain_db) + self.error_db


@pytest.fixture
def aerial(monkeypatch: pytest.MonkeyPatch) -> None:
    """A radio that transmits for real as far as the rules go, but ends in this machine."""
    monkeypatch.setattr(
        "semair.flowgraphs.transmit.backend", lambda kind: {"aerial": Aerial, "loopback": LoopbackRadio}[kind]
    )


def test_the_waveform_arrives_whole_at_the_gain_that_was_typed(tmp_path):
    x = waveform()
    plan, radio, recording = planned(record(tmp_path, x), turns=2, level_dbfs=-26.0)
    sink = gr_blocks.vector_sink_c()
    told: list[tuple[str, float]] = []
    sent = transmit(
        plan, plan.code, radio, recording, tmp_path / "log", receivers=[sink], on_progress=lambda *t: told.append(t)
    )
    assert (sent.samples, sent.gain_db, sent.interrupted) == (60_000, -20.0, False)
    got = np.array(sink.data(), np.complex64)
    loud = np.flatnonzero(np.abs(got) > 0)
    first = loud[0]
    # The wire has gain 1 and delays by whole samples; 20 dB are the gain, 6 dB the level.
    want = np.tile(x[0], 2) * 10 ** (-6 / 20) * 10 ** (-20 / 20) * radio.truth().gain
    np.testing.assert_allclose(got[first : first + 60_000], want, rtol=1e-3, atol=1e-7)
    assert not got[first + 60_000 :].any()
    # The waveform began behind the silence in which the gain rose.
    assert first >= 7 * 0.05 * RATE_HZ
    begin, end = lines(tmp_path / "log")
    assert (begin["event"], begin["code"], end["event"], end["outcome"]) == ("begin", plan.code, "end", "done")
    assert begin["id"] == end["id"]
    assert begin["plan"]["request"]["gain_db"] == -20.0
    assert end["samples"] == 60_000
    assert told[-1] == ("sending", 1.0)


def test_the_log_grows_and_no_transmission_goes_without_it(tmp_path):
    plan, radio, recording = planned(record(tmp_path, waveform(1000)), gain_db=-80.0)
    log = tmp_path / "log"
    for _ in range(2):
        transmit(plan, plan.code, radio, recording, log)
    assert [line["event"] for line in lines(log)] == ["begin", "end"] * 2
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="nothing is sent without it"):
        transmit(plan, plan.code, radio, recording, tmp_path / "file" / "log")


@pytest.mark.parametrize("code", ["", "00000000", "yes"])
def test_a_plan_that_was_not_seen_is_not_sent(tmp_path, code):
    plan, radio, recording = planned(record(tmp_path, waveform(1000)))
    with pytest.raises(RadioError, match="is that of another plan or of none"):
        transmit(plan, code, radio, recording, tmp_path / "log")
    changed = replace(plan, gains_db=(0.0,))
    with pytest.raises(RadioError, match="another plan"):
        transmit(changed, plan.code, radio, recording, tmp_path / "log")
    assert not (tmp_path / "log").exists()


def site(**changes: Any) -> Site:
    entry = SiteRadio(
        kind="aerial", address="", path="air", max_gain_db=-20, full_scale_dbm=10, full_scale_gain_db=0
    )  # fmt: skip
    band = Band(name="lab", low_hz=3.4e9, high_hz=3.6e9, max_eirp_dbm=0, basis="licence 1")
    return Site(**{"name": "hall", "max_duration_s": 5, "bands": (band,), "radios": (entry,), **changes})


@pytest.fixture
def on_air(monkeypatch: pytest.MonkeyPatch, aerial: None) -> None:
    """Lets the aerial say that it is on the air, and still be paced like what ends in this machine."""
    init = Aerial.__init__

    def made(self: Aerial, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        self.capabilities = replace(self.capabilities, path="air")

    monkeypatch.setattr(Aerial, "__init__", made)


def test_on_the_air_the_site_decides(tmp_path, on_air):
    path = record(tmp_path, waveform(1000))
    plan, _, _ = planned(path, None, kind="aerial")
    assert "there is no site file" in plan.judgement.refusals[0]
    plan, _, _ = planned(path, site(), kind="aerial", frequency_hz=3.599e9)
    assert plan.judgement.refusals == ()
    assert plan.judgement.eirp_dbm == pytest.approx(10 - 20 - 20)
    plan, radio, recording = planned(path, site(), kind="aerial", frequency_hz=3.5991e9)
    assert "lies in no permitted band as a whole" in plan.judgement.refusals[0]
    with pytest.raises(RadioError, match="not sent: 3598100000 to 3600100000 Hz"):
        transmit(plan, plan.code, radio, recording, tmp_path / "log")


def test_the_gain_rises_from_the_lowest_and_falls_back(tmp_path, aerial):
    plan, radio, recording = planned(record(tmp_path, waveform(1000)), kind="aerial", gain_db=-45.0)
    transmit(plan, plan.code, radio, recording, tmp_path / "log")
    # Once when the radio is set up, then step by step, and back.
    assert radio.gains[0] == -80.0
    assert [gain for gain in radio.gains if gain > -80] == [-70.0, -60.0, -50.0, -45.0]
    assert radio.gains[-1] == -80.0


def test_a_radio_that_takes_more_gain_than_asked_for_is_stopped_and_logged(tmp_path, aerial):
    plan, radio, recording = planned(record(tmp_path, waveform()), kind="aerial")
    radio.error_db = 3.0
    with pytest.raises(RadioError, match="set a transmit gain of -77 dB where -80 dB were asked for"):
        transmit(plan, plan.code, radio, recording, tmp_path / "log")
    assert radio.gains[-1] == -80.0
    end = lines(tmp_path / "log")[-1]
    assert (end["event"], end["samples"]) == ("end", 0)
    assert end["outcome"].startswith("failed: the radio set a transmit gain")


@pytest.mark.slow
def test_ctrl_c_ends_it_in_order(tmp_path, aerial):
    plan, radio, recording = planned(record(tmp_path, waveform()), kind="aerial", turns=300)

    pressed = []

    def press(_: str, share: float) -> None:
        if share > 0.35 and not pressed:
            pressed.append(share)
            raise KeyboardInterrupt

    sent = transmit(plan, plan.code, radio, recording, tmp_path / "log", on_progress=press)
    assert sent.interrupted
    assert 0 < sent.samples < 300 * 30_000
    assert radio.gains[-1] == -80.0
    end = lines(tmp_path / "log")[-1]
    assert (end["outcome"], end["samples"]) == ("interrupted", sent.samples)


# The watch


class Flow:
    """A flowgraph that is as far as it is told."""

    lead_samples = 1000
    waveform_samples = 2_000_000
    total_samples = 2_001_000
    wait_s = 0.0

    def __init__(self) -> None:
        self.at = 0

    def sent(self) -> int:
        return self.at

    def began(self) -> bool:
        return self.sent() >= self.lead_samples

    def is_due(self) -> bool:
        return True

    def release(self) -> None:
        pass


@pytest.fixture
def watched(tmp_path) -> Any:
    """A watch over a plan, its flow, and a clock that a test moves."""
    plan, radio, _ = planned(record(tmp_path, waveform(1000)))
    radio.configure(Settings(plan.sample_rate_hz, plan.request.frequency_hz))
    now = [0.0]
    flow = Flow()
    return Watch(plan, radio, flow, lambda: now[0]), flow, now  # type: ignore[arg-type]


def test_a_gain_that_is_late_stops_the_transmission(watched):
    watch, flow, _ = watched
    watch.tick()
    flow.at = 1000
    with pytest.raises(RadioError, match="was not reached before the waveform began"):
        watch.tick()


def test_samples_that_stand_still_stop_the_transmission(watched):
    watch, flow, now = watched
    for k in range(10):
        now[0], flow.at = 0.05 * k, 10 * k
        watch.tick()
    now[0] += 2.9
    watch.tick()
    now[0] += 0.2
    with pytest.raises(RadioError, match="no samples went to the radio for 3 s"):
        watch.tick()


def test_a_transmission_that_does_not_end_is_stopped(watched):
    watch, flow, now = watched
    # 1.5 times the 1.0005 s that the samples last, and 3 s.
    for k in range(46):
        now[0], flow.at = 0.1 * k, min(k, 999)
        watch.tick()
    now[0], flow.at = 4.6, 2000
    with pytest.raises(RadioError, match=r"did not end within 4\.5 s"):
        watch.tick()


# Transmission over a virtual USRP, by the command line: the driver lets no virtual device work in its own process

UNIT = "127.0.1.75"
SLOW_HZ = 200e3
FACTOR = 500


@pytest.fixture(scope="module")
def unit() -> Iterator[VirtualN210]:
    with VirtualN210(VirtualAir(seed=4, noise_power=0.0, history_s=5.0), UNIT) as made:
        yield made


@pytest.fixture(scope="module")
def codes(unit: VirtualN210, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, str]]:
    """Path of a long waveform, and the code for sending it with options; each dry run is made once."""
    path = record(tmp_path_factory.mktemp("waveform"), waveform(200_000), rate_hz=SLOW_HZ)
    known: dict[tuple[str, ...], str] = {}

    def find(*options: str) -> tuple[Path, str]:
        if options not in known:
            known[options] = code_of(path, *options)
        return path, known[options]

    return find


def command(path: Path, *options: str) -> list[str]:
    radio = ["--radio", f"uhd:type=usrp2,addr={UNIT}", "--frequency", "2e9", "--gain", "31.5", "--level", "-12"]
    log = ["--log", str(path.parent / "log"), "--json"]
    return [sys.executable, "-m", "semair.cli", "transmit", str(path), *radio, *log, *options]


def code_of(path: Path, *options: str) -> str:
    """The code that a dry run shows."""
    pytest.importorskip("gnuradio.uhd", reason="gr-uhd is not installed")
    done = subprocess.run(["timeout", "100", *command(path, *options)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["code"]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_waveform_begins_at_the_very_sample_of_its_time(tmp_path, unit):
    x = waveform(3000)
    path = record(tmp_path, x, rate_hz=SLOW_HZ)
    options = ("--at", "3.1234567")
    code = code_of(path, *options)
    before = unit.counts["tx_samples"]
    done = subprocess.run(
        ["timeout", "100", *command(path, *options, "--really", code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    sent = json.loads(done.stdout)
    assert (sent["samples"], sent["at_s"], sent["interrupted"]) == (3000, 3.1234567, False)
    assert sent["counts"].get("burst_ack") and "time_error" not in sent["counts"]
    # In the sample of its time, by the clock that the host set to zero, and at the level and gain that were typed.
    chain = unit.radio.tx[0]
    first = (312_345_670 - unit.time.offset) // FACTOR
    heard = unit.air.sent(chain, first - 5000, 15_000)
    assert not heard[:5000].any()
    np.testing.assert_allclose(heard[5000:8000], x[0] / AMPLITUDE * 10 ** (-12 / 20), atol=1e-3)
    # The driver ends a stream with one sample of silence.
    assert not heard[8000:].any()
    assert unit.counts["tx_samples"] - before <= 3001
    assert chain.tunings[-1].gain_db <= -31.5


@pytest.mark.slow
def test_a_time_that_cannot_be_met_is_refused(tmp_path, unit):
    path = record(tmp_path, waveform(3000), rate_hz=SLOW_HZ)
    options = ("--in", "0.1")
    code, before = code_of(path, *options), unit.counts["tx_samples"]
    done = subprocess.run(
        ["timeout", "100", *command(path, *options, "--really", code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == RadioError.exit_code
    assert "in_s=0.1 is 0.1" in " ".join(done.stderr.split())
    assert unit.counts["tx_samples"] == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "timed"), [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGKILL, False), (signal.SIGKILL, True)]
)
def test_whatever_ends_a_transmission_leaves_the_transmitter_off(unit, codes, how, timed):
    options = ("--loop", "20", *(("--in", "3") if timed else ()))
    path, code = codes(*options)
    before, log = unit.counts["tx_samples"], path.parent / "log"
    log.unlink(missing_ok=True)
    chain = unit.radio.tx[0]
    process = subprocess.Popen(
        command(path, *options, "--really", code), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: unit.counts["tx_samples"] > before + 100_000 and chain.tunings[-1].gain_db == 0.0)
        process.send_signal(how)
        code_of_exit = process.wait(60)
    finally:
        process.kill()
        process.wait()
    assert code_of_exit == (-signal.SIGKILL if how == signal.SIGKILL else 130)
    if how != signal.SIGKILL:
        # Turned down as far as it goes.
        assert chain.tunings[-1].gain_db <= -31.5
        assert [line["event"] for line in lines(log)] == ["begin", "end"]
    # Once its memory is empty, at most 1 MiB, it sends nothing more, whoever still holds it.
    seen = [-1, unit.counts["tx_samples"]]

    def is_quiet() -> bool:
        time.sleep(0.3)
        seen.append(unit.counts["tx_samples"])
        return seen[-1] == seen[-2] == seen[-3]

    wait_until(is_quiet)
    assert not unit.air.sent(chain, unit.air.now(chain) - 1000, 1000).any()


@pytest.mark.slow
def test_a_transmission_that_is_stopped_before_its_time_sends_nothing(unit, codes):
    options = ("--in", "30")
    path, code = codes(*options)
    before = unit.counts["tx_samples"]
    process = subprocess.Popen(command(path, *options, "--really", code), stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: unit.radio.tx[0].tunings[-1].gain_db == 0.0)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
    # The driver ends its stream with a sample of silence.
    assert unit.counts["tx_samples"] <= before + 1
    assert unit.radio.tx[0].tunings[-1].gain_db <= -31.5

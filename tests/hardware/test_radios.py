"""The contract that every radio keeps, and what the loopback and the replay radio promise beyond it."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

gr_blocks = pytest.importorskip("gnuradio.blocks", reason="GNU Radio is not installed")
pmt = pytest.importorskip("pmt", reason="GNU Radio is not installed")

from gnuradio import gr  # noqa: E402
from semair import hardware  # noqa: E402
from semair.blocks.frame_transmitter import FrameTransmitter  # noqa: E402
from semair.blocks.user_transmitter import UserTransmitter  # noqa: E402
from semair.blocks.waveforms.air import Air  # noqa: E402
from semair.blocks.waveforms.frame import FrameFormat  # noqa: E402
from semair.blocks.waveforms.frame_sync import FrameFinder  # noqa: E402
from semair.blocks.waveforms.impairments import Impairments  # noqa: E402
from semair.captures.devicetime import DeviceTime  # noqa: E402
from semair.captures.writer import RecordingWriter  # noqa: E402
from semair.errors import RadioError, RecordingError  # noqa: E402
from semair.hardware import discover  # noqa: E402
from semair.hardware.discover import backend, backends, search  # noqa: E402
from semair.hardware.loopback import LoopbackRadio  # noqa: E402
from semair.hardware.network import NetworkRadio  # noqa: E402
from semair.hardware.radio import Capabilities, Link, Radio, Settings  # noqa: E402
from semair.hardware.replay import ReplayRadio  # noqa: E402
from semair.hardware.serving import RadioServer  # noqa: E402
from semair.models.channels import ChannelConfig  # noqa: E402
from semair.models.uad.preambles import qpsk_preambles  # noqa: E402

RATE_HZ = 2e6
FREQUENCY_HZ = 3.5e9
SETTINGS = Settings(RATE_HZ, FREQUENCY_HZ)
BLOCK = 4096
WIRE = ChannelConfig()


# Playing a radio


def execute(top_block: gr.top_block, blocks: list[Any]) -> None:
    """Run to the end, within a minute, and raise what a block met."""
    ended = threading.Event()

    def wait() -> None:
        top_block.wait()
        ended.set()

    top_block.start()
    threading.Thread(target=wait, daemon=True).start()
    failed = False
    for _ in range(6000):
        failed = any(getattr(block, "failure", None) for block in blocks)
        if failed or ended.wait(0.01):
            break
    top_block.stop()
    assert ended.wait(10), "the flowgraph does not stop"
    for block in blocks:
        if getattr(block, "failure", None):
            raise block.failure


def tags_of(sink: Any) -> list[tuple[int, str, Any]]:
    """Item, key and value; times in sample periods."""
    found = []
    for tag in sink.tags():
        value = pmt.to_python(tag.value)
        key = pmt.symbol_to_string(tag.key)
        if key == "rx_time":
            value = round((value[0] + value[1]) * RATE_HZ)
        found.append((tag.offset, key, value))
    return sorted(found, key=lambda tag: tag[:2])


def play(
    radio: Radio, tx: np.ndarray | None = None, frames: int = 0, users: int = 0
) -> tuple[np.ndarray, list[list[tuple[int, str, Any]]]]:
    """Run a radio's streams; give it samples to send, or frames with users.

    Returns:
        complex64 (n_rx, samples), and per antenna the tags.
    """
    top_block = gr.top_block()
    source, sink = radio.source(), radio.sink()
    nodes: list[Any] = [source]
    if tx is not None and sink is not None:
        transmitter = gr_blocks.vector_source_c(tx)
        nodes.append(transmitter)
        top_block.connect(transmitter, (sink, 0))
    elif frames:
        fmt = FrameFormat()
        preambles = qpsk_preambles(users, fmt.max_preamble_length, np.random.default_rng(1))
        beacon = FrameTransmitter(fmt, frames, tail_samples=8 * fmt.frame_samples)
        bursts = UserTransmitter(fmt, preambles, 0.5, (8, 28), seed=3)
        nodes += [beacon, bursts]
        top_block.connect(beacon, (sink, 0))
        top_block.msg_connect((beacon, "frames"), (bursts, "frames"))
        top_block.msg_connect((bursts, "bursts"), (sink, "bursts"))
    sinks = [gr_blocks.vector_sink_c() for _ in range(radio.capabilities.n_rx)]
    for port, vector_sink in enumerate(sinks):
        top_block.connect((source, port), vector_sink)
    execute(top_block, nodes)
    return np.array([s.data() for s in sinks], np.complex64), [tags_of(s) for s in sinks]


def signal(n: int, seed: int = 5) -> np.ndarray:
    """QPSK of power 1; complex64, (n,)."""
    turns = np.random.default_rng(seed).integers(0, 4, n)
    return np.exp(0.5j * np.pi * (turns + 0.5)).astype(np.complex64)


def loopback(**options: Any) -> LoopbackRadio:
    return LoopbackRadio(
        **{
            "frame_format": FrameFormat(),
            "n_rx": 2,
            "n_users": 8,
            "channel": WIRE,
            "beacon_channel": WIRE,
            "impairments": Impairments(),
            "noise_power": 0.0,
            "expected_power": 1.0,
            "with_users": False,
            **options,
        }
    )


def configured(radio: LoopbackRadio) -> LoopbackRadio:
    radio.configure(SETTINGS)
    return radio


# The contract


@dataclass
class Case:
    """One radio and what is expected of it.

    Attributes:
        radio: not configured.
        samples: that its streams must give; complex64, (n_rx, samples).
        times: radio time in sample periods by item, where a tag must say it.
        wrong_frequency_hz: that it must refuse.
        wrong_frequency_words: that the refusal must hold: what was given, what is allowed.
        tx: samples to send, None where it cannot.
        close: called after the test.
    """

    radio: Radio
    samples: np.ndarray
    times: dict[int, int]
    wrong_frequency_hz: float
    wrong_frequency_words: tuple[str, str]
    tx: np.ndarray | None
    close: Callable[[], None] = lambda: None


LOOPBACK_OPTIONS: dict[str, Any] = {
    "n_rx": 3,
    "n_users": 8,
    "channel": WIRE,
    "beacon_channel": ChannelConfig(kind="rayleigh", delay_spread_s=3e-7, doppler_hz=11),
    "impairments": Impairments.preset("wireless"),
    "noise_power": 0.1,
    "expected_power": 1.0,
    "seed": 4,
}


def loopback_case(folder: Path) -> Case:
    """Three antennas in a room, and an overflow."""
    tx = signal(12 * BLOCK)
    air = Air(sample_rate_hz=RATE_HZ, centre_frequency_hz=FREQUENCY_HZ, **LOOPBACK_OPTIONS)
    received = np.delete(air.process(tx), np.s_[5000:5777], axis=1)
    radio = loopback(**LOOPBACK_OPTIONS, losses=[(5000, 777)])
    return Case(radio, received, {0: 0, 5000: 5777}, -1.0, ("-1", "0 to 1e+11"), tx)


def replay_case(folder: Path) -> Case:
    """Two channels, recorded from device time 10 s on, with a gap."""
    rng = np.random.default_rng(6)
    samples = rng.integers(-20000, 20000, (2, 9000, 2)).astype(np.float32).view(np.complex64)[..., 0] / 32768
    rate = int(RATE_HZ)
    options: dict[str, Any] = {"n_channels": 2, "datatype": "ci16_le", "sample_rate_hz": RATE_HZ}
    with RecordingWriter(
        folder, "rx", frequency_hz=FREQUENCY_HZ, device_time=DeviceTime(10, 7, rate), **options
    ) as writer:
        writer.write(samples[:, :3000])
        writer.gap(1234, DeviceTime(10, 7 + 3000 + 1234, rate))
        writer.write(samples[:, 3000:])
    times = {0: 10 * rate + 7, 3000: 10 * rate + 7 + 4234}
    return Case(ReplayRadio(folder / "rx"), samples, times, 2.4e9, ("2400000000", "3500000000"), None)


def zmq_case(folder: Path) -> Case:
    """The loopback radio of above, over a network."""
    case = loopback_case(folder)
    server = RadioServer("loopback")
    link = Link(FrameFormat(), tail_samples=0, losses=[(5000, 777)], **LOOPBACK_OPTIONS)
    radio = NetworkRadio(server.endpoint, link)

    def close() -> None:
        radio.close()
        server.close()

    return dataclasses.replace(case, radio=radio, close=close)


CASES: dict[str, Callable[[Path], Case]] = {"loopback": loopback_case, "replay": replay_case, "zmq": zmq_case}


@pytest.fixture(params=CASES)
def case(request, tmp_path) -> Iterator[Case]:
    case = CASES[request.param](tmp_path)
    yield case
    case.close()


# Radios of hardware play for ever and never the same twice; each keeps the contract in tests of its own.
HARDWARE = {kind for kind in backends() if (Path(__file__).parent / f"test_{kind}_radio.py").exists()}


def test_every_radio_is_under_contract():
    assert set(CASES) | HARDWARE == set(backends())


def test_capabilities_are_declared(case):
    can = case.radio.capabilities
    assert isinstance(can, Capabilities)
    assert can.n_rx == len(case.samples)
    assert (can.n_tx > 0) == (case.tx is not None)
    assert can.sample_rates_hz[0] <= RATE_HZ <= can.sample_rates_hz[1]
    assert can.overflow_reporting in ("none", "count", "located")
    # What is kept in the run folder.
    json.dumps([dataclasses.asdict(can), case.radio.facts()], allow_nan=False)


def test_configuring_returns_what_was_taken(case):
    actual = case.radio.configure(SETTINGS)
    assert isinstance(actual, Settings)
    assert (actual.sample_rate_hz, actual.frequency_hz) == (RATE_HZ, FREQUENCY_HZ)
    assert len(actual.rx_gain_db) in (0, case.radio.capabilities.n_rx)
    json.dumps(actual.as_dict(), allow_nan=False)


def test_another_sample_rate_is_refused_with_both_numbers(case):
    # Six digits would not tell these two apart.
    with pytest.raises(RadioError, match="2000001") as caught:
        case.radio.configure(Settings(2_000_001.0, FREQUENCY_HZ))
    assert "2000000" in str(caught.value)


def test_a_frequency_it_cannot_have_is_refused_with_both_numbers(case):
    with pytest.raises(RadioError) as caught:
        case.radio.configure(Settings(RATE_HZ, case.wrong_frequency_hz))
    for words in case.wrong_frequency_words:
        assert words in str(caught.value)
    with pytest.raises(RadioError):
        case.radio.configure(Settings(RATE_HZ, math.nan))


def test_an_unconfigured_radio_is_refused(case):
    with pytest.raises(RadioError, match=r"call configure\(\) before source\(\)"):
        case.radio.source()
    if case.radio.capabilities.n_tx:
        with pytest.raises(RadioError, match=r"configure\(\)"):
            case.radio.sink()


def test_a_refused_setting_leaves_an_unconfigured_radio_unconfigured(case):
    with pytest.raises(RadioError):
        case.radio.configure(Settings(2_000_001.0, FREQUENCY_HZ))
    with pytest.raises(RadioError, match=r"configure\(\)"):
        case.radio.source()


def test_streams_and_tags(case):
    case.radio.configure(SETTINGS)
    samples, tags = play(case.radio, case.tx)
    assert np.array_equal(samples, case.samples)
    expected = []
    for item, ticks in case.times.items():
        expected += [(item, "rx_freq", FREQUENCY_HZ), (item, "rx_rate", RATE_HZ), (item, "rx_time", ticks)]
    for of_antenna in tags:
        assert [tag for tag in of_antenna if tag[1].startswith("rx_") and tag[1] != "rx_end"] == expected


def test_the_transmit_gain_is_one_that_the_radio_says_it_has(case):
    case.radio.configure(SETTINGS)
    limits = case.radio.capabilities.tx_gains_db
    if limits is None:
        with pytest.raises(RadioError, match="has no transmit gain, but 3 dB were asked for"):
            case.radio.set_tx_gain_db(3.0)
        return
    assert case.radio.capabilities.n_tx > 0
    for gain_db in limits:
        assert case.radio.set_tx_gain_db(gain_db) == gain_db
        assert case.radio.configure(dataclasses.replace(SETTINGS, tx_gain_db=(gain_db,))).tx_gain_db == (gain_db,)
    for gain_db in (limits[0] - 0.1, limits[1] + 0.1, math.nan):
        with pytest.raises(RadioError, match=f"gain_db={gain_db:g} is outside"):
            case.radio.set_tx_gain_db(gain_db)
        with pytest.raises(RadioError, match="outside"):
            case.radio.configure(dataclasses.replace(SETTINGS, tx_gain_db=(gain_db,)))


def test_only_radios_that_transmit_have_a_sink(case):
    case.radio.configure(SETTINGS)
    assert (case.radio.sink() is None) == (case.radio.capabilities.n_tx == 0)


def test_the_same_block_until_configured_again_which_begins_anew(case):
    case.radio.configure(SETTINGS)
    first = case.radio.source()
    assert case.radio.source() is first
    once, _ = play(case.radio, case.tx)
    case.radio.configure(SETTINGS)
    assert case.radio.source() is not first
    again, _ = play(case.radio, case.tx)
    assert np.array_equal(once, again)


@pytest.mark.parametrize("kind", CASES)
def test_a_radio_is_found_by_its_name(kind):
    found = backend(kind).find()
    assert found
    assert {info.kind for info in found} == {kind}
    assert all(info.address and info.description for info in found)
    assert search([kind]).radios == found


# Discovery


def test_an_unknown_radio_is_answered_with_the_known_ones():
    with pytest.raises(RadioError, match=r"'nope' is not known; known are .*loopback, replay"):
        backend("nope")


BACKEND = """
from semair.hardware.loopback import LoopbackRadio
from semair.hardware.radio import Radio


class Unfinished(Radio):
    kind = "unfinished"


class Other(LoopbackRadio):
    kind = "{kind}"
"""


@pytest.fixture
def add_backend(tmp_path, monkeypatch):
    """Function that puts a module into the folder of radios for one test."""

    def add(name: str, kind: str) -> None:
        (tmp_path / f"{name}.py").write_text(BACKEND.format(kind=kind))
        monkeypatch.setattr(hardware, "__path__", [*hardware.__path__, str(tmp_path)])
        monkeypatch.delitem(sys.modules, f"semair.hardware.{name}", raising=False)

    yield add
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(f"semair.hardware.{path.stem}", None)
        vars(hardware).pop(path.stem, None)


def test_a_module_in_the_folder_is_a_radio_without_a_list_to_edit(add_backend):
    before = set(backends())
    add_backend("tin_can", "tin-can")
    assert set(backends()) - before == {"tin-can"}
    assert backend("tin-can").__name__ == "Other"
    assert [info.kind for info in search(["tin-can", "replay"]).radios] == ["loopback", "replay"]


TROUBLE = """
import os, sys, time
from semair.hardware.loopback import LoopbackRadio


class {name}(LoopbackRadio):
    kind = "{kind}"
    foreign = {foreign}

    @classmethod
    def find(cls):
        {action}
"""


def test_a_driver_that_fails_or_hangs_hides_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "__path__", [*hardware.__path__, str(tmp_path)])
    for kind, action in (("raises", "raise OSError('no bus')"), ("hangs", "time.sleep(3600)")):
        text = TROUBLE.format(name=kind.title(), kind=kind, foreign=False, action=action)
        (tmp_path / f"{kind}.py").write_text(text)
    try:
        found = search(["raises", "hangs", "loopback"], limit_s=3)
    finally:
        for kind in ("raises", "hangs"):
            sys.modules.pop(f"semair.hardware.{kind}", None)
            vars(hardware).pop(kind, None)
    assert [info.kind for info in found.radios] == ["loopback"]
    assert found.problems == {"raises": "OSError: no bus", "hangs": "no answer within 3 s"}


@pytest.mark.parametrize(
    ("code", "limit_s", "words"),
    [
        ("import os; os.abort()", 60, "its driver failed (killed by signal 6)"),
        ("import sys; sys.exit('libusb: no access')", 60, "libusb: no access (exit code 1)"),
        ("import time; time.sleep(3600)", 1, "no answer within 1 s"),
        ("print('chatter'); print('RADIOS []'); import os; os.abort()", 60, ""),
    ],
    ids=["aborts", "fails", "hangs", "breaks-on-its-way-out"],
)
def test_drivers_look_in_processes_of_their_own(tmp_path, monkeypatch, code, limit_s, words):
    class Foreign(LoopbackRadio):
        kind = "foreign"
        foreign = True

    monkeypatch.setattr(discover, "backend", lambda kind: Foreign)
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -u -c {shlex.quote(code)}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    found = search(["foreign"], limit_s=limit_s)
    assert found.radios == []
    if words:
        assert words in found.problems["foreign"]
    else:
        # What was found counts, even where a driver breaks when it is unloaded.
        assert found.problems == {}


def test_radios_defined_elsewhere_are_none_of_the_folder():
    class Mine(LoopbackRadio):
        kind = "mine"

    assert "mine" not in backends()


def test_two_radios_of_one_name_are_refused(add_backend):
    add_backend("second_loopback", "loopback")
    with pytest.raises(ValueError, match=r"both define a radio of kind 'loopback'"):
        backends()


# Loopback


def noise_bound(n: int) -> float:
    """Five standard deviations of the mean of n exponentially distributed powers of mean 1."""
    return 5 / math.sqrt(n)


@pytest.mark.parametrize("noise_power", [0.25, 3.0])
def test_the_noise_has_the_power_declared(noise_power):
    n = 64 * BLOCK
    radio = configured(loopback(noise_power=noise_power, seed=11))
    samples, _ = play(radio, np.zeros(n, np.complex64))
    assert radio.air is not None
    assert radio.air.truth.noise_power == noise_power
    power = np.mean(np.abs(samples) ** 2, axis=1)
    assert power == pytest.approx(noise_power, rel=noise_bound(n))
    # Independent over antennas: a correlation r of white noise exceeds 5/sqrt(n) with probability exp(-25).
    assert abs(np.vdot(samples[0], samples[1])) / n / noise_power < 5 / math.sqrt(n)


def test_the_gain_is_the_declared_one_and_leaves_the_backoff():
    tx = signal(4 * BLOCK)
    impairments = Impairments(adc_bits=12, full_scale_backoff_db=12.0)
    radio = configured(loopback(impairments=impairments, expected_power=1.0))
    samples, _ = play(radio, tx)
    assert radio.air is not None
    gain = radio.air.truth.gain
    assert gain == pytest.approx(10 ** (-12 / 20))
    # Rounding to steps of 1/2048 moves each part by at most half a step.
    assert np.abs(samples - gain * tx).max() <= math.sqrt(2) * 0.5 / 2048 + 1e-6
    parts = samples.view(np.float32) * 2048
    assert np.array_equal(parts, np.round(parts))


def test_noise_goes_through_the_gain():
    n = 64 * BLOCK
    impairments = Impairments(adc_bits=16, full_scale_backoff_db=12.0)
    radio = configured(loopback(impairments=impairments, noise_power=0.6, expected_power=0.4))
    samples, _ = play(radio, np.zeros(n, np.complex64))
    assert radio.air is not None
    power = np.mean(np.abs(samples) ** 2, axis=1)
    # The 16 bit converter adds 2/12/32768^2 = 1.6e-10, nothing beside 0.6 * 10^-1.2 = 0.04.
    assert power == pytest.approx(0.6 * radio.air.truth.gain**2, rel=noise_bound(n))
    assert radio.air.truth.gain == pytest.approx(10 ** (-12 / 20))


@pytest.mark.parametrize(
    "losses",
    [
        [(0, 100)],
        [(BLOCK - 1, 2)],
        [(BLOCK, BLOCK)],
        [(100, 1), (101, 5), (9000, 2 * BLOCK)],
        [(9000, 10), (50, 7), (9005, 10)],
        [(8 * BLOCK - 3, 1000)],
        [(9 * BLOCK, 1)],
    ],
)
def test_losses_are_where_they_were_put_and_are_told_there(losses):
    tx = signal(8 * BLOCK)
    options: dict[str, Any] = {"noise_power": 0.1, "seed": 2}
    whole, _ = play(configured(loopback(**options)), tx)
    radio = configured(loopback(**options, losses=losses))
    samples, tags = play(radio, tx)
    kept = np.ones(len(tx), bool)
    for at, count in losses:
        kept[at : at + count] = False
    assert np.array_equal(samples, whole[:, kept])
    assert radio.source().lost_samples == np.count_nonzero(~kept)
    sent = np.flatnonzero(kept)
    after = np.flatnonzero(np.diff(sent, prepend=-2) > 1)
    for of_antenna in tags:
        assert {item: ticks for item, key, ticks in of_antenna if key == "rx_time"} == {
            int(item): int(sent[item]) for item in after
        }


ROOM = ChannelConfig(kind="rayleigh", delay_spread_s=3e-7, doppler_hz=11)


def bench(level: str, seed: int = 1) -> LoopbackRadio:
    # Unit beacon at 20 dB; half of 8 users of unit power on average.
    return configured(
        loopback(
            impairments=Impairments.preset(level),  # type: ignore[arg-type]
            channel=ROOM,
            beacon_channel=ROOM,
            noise_power=0.01,
            expected_power=4.0,
            user_power_spread_db=3.0,
            seed=seed,
            with_users=True,
        )
    )


def test_one_seed_gives_the_same_bits_and_another_does_not():
    first, _ = play(bench("wireless"), frames=3, users=8)
    again, _ = play(bench("wireless"), frames=3, users=8)
    other, _ = play(bench("wireless", seed=2), frames=3, users=8)
    assert first.tobytes() == again.tobytes()
    assert first.shape == other.shape
    assert first.tobytes() != other.tobytes()


@pytest.mark.parametrize("level", ["perfect", "cabled", "wireless"])
def test_a_receiver_hears_every_frame_at_every_level(level):
    radio, frames = bench(level), 6
    assert radio.air is not None
    assert radio.capabilities.datatype == ("cf32_le" if level == "perfect" else "ci16_le")
    samples, _ = play(radio, frames=frames, users=8)
    assert np.isfinite(samples).all()
    finder = FrameFinder(FrameFormat(), radio.capabilities.n_rx, max_cfo_hz=5e-6 * FREQUENCY_HZ)
    _, found = finder.process(samples)
    assert [frame.frame_number for frame in found] == list(range(frames))
    for frame in found:
        place = radio.air.truth.receive_index(frame.frame_number * FrameFormat().frame_samples)
        # Within the cyclic prefix of 16 samples: the room's echoes come later, by up to 6.
        assert abs(frame.start - place) < 16
        # The beacon's header is short, and its channel is a faded one: a tenth of the subcarrier spacing.
        assert abs(frame.cfo_hz - radio.air.truth.cfo_hz) < 0.1 * FrameFormat().subcarrier_spacing_hz


def test_facts_say_that_nothing_is_hardware():
    assert loopback().facts() == {"serials": ["loopback"], "driver": "semair loopback", "agc": False}
    assert loopback().capabilities.path == "loopback"


def test_the_emulation_draws_its_truth_when_configured():
    radio = loopback(impairments=Impairments(cfo_ppm=2.0))
    assert radio.air is None
    radio.configure(SETTINGS)
    assert radio.air is not None
    assert radio.air.truth.cfo_hz == pytest.approx(2e-6 * FREQUENCY_HZ, rel=1e-5)


# Replay


def foreign(folder: Path, head: dict[str, Any], captures: list[dict[str, Any]], samples: np.ndarray) -> Path:
    """A recording of another program; samples complex64, (samples,)."""
    samples.astype("<c8").tofile(folder / "foreign.sigmf-data")
    meta = {
        "global": {"core:datatype": "cf32_le", "core:version": "1.0.0", **head},
        "captures": captures,
        "annotations": [],
    }
    path = folder / "foreign.sigmf-meta"
    path.write_text(json.dumps(meta))
    return path


def test_a_recording_without_sample_rate_is_taken_at_the_rate_asked_for(tmp_path):
    samples = signal(5000)
    captures = [
        {"core:sample_start": 0, "core:global_index": 0},
        {"core:sample_start": 2000, "core:global_index": 2500},
    ]
    radio = ReplayRadio(foreign(tmp_path, {}, captures, samples))
    low, high = radio.capabilities.sample_rates_hz
    assert low <= RATE_HZ <= high
    assert radio.configure(SETTINGS).sample_rate_hz == RATE_HZ
    got, tags = play(radio)
    assert np.array_equal(got[0], samples)
    assert [(item, value) for item, key, value in tags[0] if key == "rx_time"] == [(0, 0), (2000, 2500)]
    assert {value for _, key, value in tags[0] if key == "rx_rate"} == {RATE_HZ}
    # Its own rate is still not known: another one may be asked for, but none that is no rate.
    assert radio.configure(Settings(1e6, FREQUENCY_HZ)).sample_rate_hz == 1e6
    for rate_hz in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(RadioError, match="sample_rate_hz"):
            radio.configure(Settings(rate_hz, FREQUENCY_HZ))


def test_a_recording_that_changes_its_frequency_is_refused(tmp_path):
    captures = [
        {"core:sample_start": 0, "core:frequency": FREQUENCY_HZ},
        {"core:sample_start": 2000, "core:frequency": 2.4e9},
    ]
    radio = ReplayRadio(foreign(tmp_path, {"core:sample_rate": RATE_HZ}, captures, signal(5000)))
    with pytest.raises(RadioError, match="2400000000 from sample 2000 on"):
        radio.configure(SETTINGS)


def test_the_tail_is_silence_behind_a_mark(tmp_path):
    case = replay_case(tmp_path)
    n = case.samples.shape[1]
    radio = ReplayRadio(tmp_path / "rx", tail_samples=777)
    radio.configure(SETTINGS)
    samples, tags = play(radio)
    assert samples.shape[1] == n + 777
    assert np.array_equal(samples[:, :n], case.samples)
    assert not samples[:, n:].any()
    for of_antenna in tags:
        assert [item for item, key, _ in of_antenna if key == "rx_end"] == [n]


def test_replay_says_what_it_replays(tmp_path):
    radio = replay_case(tmp_path).radio
    facts = radio.facts()
    assert facts["recording"] == "rx"
    assert len(facts["sha512"]) == 128
    assert radio.capabilities.datatype == "ci16_le"
    assert radio.capabilities.has_hw_time


def test_a_missing_recording_is_told(tmp_path):
    with pytest.raises(RecordingError, match="nothing"):
        ReplayRadio(tmp_path / "nothing.sigmf-meta")

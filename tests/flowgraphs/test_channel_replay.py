"""Channels of a recorded run: as true as they say, met again by new waveforms, and refused where they do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")

from semair.captures.channels import read_channels
from semair.captures.datasets import gapless
from semair.errors import RecordingError, ScenarioError
from semair.flowgraphs.channel_replay import estimate_run, recorded_channel
from semair.flowgraphs.radios import make_radio, requested_settings
from semair.flowgraphs.recorded_frames import RecordedRun, find_frames
from semair.flowgraphs.run import replay_run, run_random_access
from semair.flowgraphs.runfolder import RunFolder
from semair.flowgraphs.scenario import load_scenario

SMALL = (
    "frame.frame_samples=6144",
    "radio.n_antennas=2",
    "users.n_users=12",
    "users.activity=0.2",
    "users.preamble_lengths=[12, 28]",
    "link.beacon_snr_db=15",
)
N_FRAMES = 40


def scenario(*overrides: str):
    return load_scenario("lab", [*SMALL, *overrides])


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    """A run with two losses, and its channel recording; read only."""
    folder = tmp_path_factory.mktemp("recorded") / "run"
    losses = "radio.losses=[[60000, 700], [150000, 9000]]"
    run_random_access(scenario("level=wireless", losses), folder, n_frames=N_FRAMES)
    estimate_run(folder).write(folder / "bs-rx")
    return folder


@pytest.fixture(scope="module")
def truth(recorded):
    """The air of that run: the same seed draws the same."""
    chosen = RunFolder(recorded).scenario()
    radio = make_radio(chosen)
    radio.configure(requested_settings(chosen))
    return radio.air


def test_estimates_are_as_true_as_they_say(recorded, truth):
    found = read_channels(recorded)
    fmt = RunFolder(recorded).scenario().frame
    freqs_hz = np.sort(np.fft.fftfreq(fmt.n_fft)[fmt.access_subcarriers.reshape(-1)]) * fmt.sample_rate_hz
    arrays = found.arrays
    late = found.first_delay_samples + np.arange(arrays["link_taps"].shape[2])
    steering = np.exp(-2j * np.pi * np.outer(late, freqs_hz) / fmt.sample_rate_hz)
    wrong = power = 0.0
    delays = np.linspace(-6, 6, 241)
    ramps = np.exp(-2j * np.pi * np.outer(delays, freqs_hz) / fmt.sample_rate_hz)
    for index, user, taps in zip(arrays["link_frame"], arrays["link_user"], arrays["link_taps"], strict=True):
        frame = int(arrays["frame"][index])
        # In the receiver's own time, which the losses have not shortened: the channels move.
        place = round(truth.truth.receive_index(frame * fmt.frame_samples + fmt.access_start))
        true = truth.gain * truth.response(int(user), frame, freqs_hz, place)
        # Phase and timing of the whole are matters of reference; of all the estimate is compared at the best.
        products = ramps @ (true.conj() * (taps @ steering)).sum(axis=0)
        wrong += np.sum(np.abs(taps @ steering) ** 2) + np.sum(np.abs(true) ** 2) - 2 * np.abs(products).max()
        power += np.sum(np.abs(true) ** 2)
    said = 10 * np.log10(arrays["link_error"].mean())
    assert 10 * np.log10(wrong / power) == pytest.approx(said, abs=2.0)
    # With two or three users of twelve active at 10 dB in all, the channels are well known.
    assert said < -10


def test_clocks_and_noise_are_those_of_the_radio(recorded, truth):
    found = read_channels(recorded)
    assert found.sampling_offset == pytest.approx(truth.truth.sampling_offset, abs=4e-6)
    assert found.cfo_hz == pytest.approx(truth.truth.cfo_hz, abs=40)
    noise = truth.truth.noise_power * truth.gain**2 * 10 ** (truth.truth.chain_gain_db / 10)
    # Some 15 frames of 384 cells, and a converter of 12 bits.
    np.testing.assert_allclose(found.arrays["noise_power"].mean(axis=0), noise, rtol=0.08)
    assert abs(found.quality["residual_over_noise_db"]["mean"]) < 0.5
    assert found.source["sha512"] == RecordedRun.open(RunFolder(recorded)).recording.sha512


def test_no_frame_across_a_gap(recorded):
    run = RecordedRun.open(RunFolder(recorded))
    spans = gapless(run.recording)
    assert len(spans) == 3
    frames = find_frames(run)
    used = run.scenario.frame.used_samples
    for frame, index in frames:
        assert spans[index][0] <= frame.start and frame.start + used <= spans[index][1]
    # The first loss costs a frame at most, the second two or three.
    assert N_FRAMES - 5 <= len({frame.frame_number for frame, _ in frames}) < N_FRAMES


def test_new_preambles_on_recorded_air(recorded, tmp_path):
    overrides = ("users.preamble_seed=9", "seed=4", 'channel.kind="recorded"', f'channel.recording="{recorded}"')
    # The lab's own statistics do not matter any more.
    chosen = scenario("channel.delay_spread_s=0", "channel.doppler_hz=0", *overrides)
    result = run_random_access(chosen, tmp_path / "new", n_frames=20)
    metrics = result.metrics
    assert metrics["kind"] == "channel-replay"
    assert metrics["channel_replay"]["cfo"] == "kept"
    assert metrics["channel_replay"]["source"]["sha512"] == read_channels(recorded).source["sha512"]
    assert metrics["frames"]["matched"] == 20
    # Two or three of twelve users with 28 symbols: errors are rare.
    assert metrics["detection"]["28"]["error_probability"][0] < 0.05
    assert abs(metrics["synchronisation"]["timing_error_samples"]["mean"]) < 1
    assert metrics["synchronisation"]["noise_power_estimated_over_true"]["mean"] == pytest.approx(1, abs=0.1)
    # A replay of the new recording decides the same, and needs no channel any more.
    assert replay_run(tmp_path / "new").equal == 20


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("radio.n_antennas=4", ["radio.n_antennas=4", "2"]),
        ("frame.sample_rate_hz=1e6", ["frame.sample_rate_hz=1000000", "2000000"]),
        ("radio.frequency_hz=2.4e9", ["radio.frequency_hz=2400000000", "3500000000"]),
        ("frame.n_used=120", ["occupied band", "945312.5", "757812.5"]),
        ("users.n_users=13", ["users.n_users=13", "12 users", "channel_replay.reuse"]),
        ("channel_replay.max_error_db=-39", ["users.n_users=12", "0 users"]),
    ],
)
def test_what_does_not_fit_is_refused_by_name(recorded, override, words):
    overrides = (
        "channel.delay_spread_s=0", "channel.doppler_hz=0", 'channel.kind="recorded"',
        f'channel.recording="{recorded}"',
    )  # fmt: skip
    with pytest.raises(ScenarioError) as caught:
        recorded_channel(scenario(*overrides, override))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        (('channel={kind="recorded"}',), "recording"),
        (('channel.recording="x"',), "recording"),
        (('channel={kind="recorded", recording="x"}', "radio.kind=uhd"), "radio.kind"),
        (('beacon_channel={kind="recorded", recording="x"}',), "beacon_channel"),
        (("channel_replay.snr_backoff_db=-1",), "channel_replay.snr_backoff_db"),
    ],
)
def test_scenarios_that_contradict_themselves(overrides, word):
    with pytest.raises(ScenarioError, match=word):
        scenario(*overrides)


def test_run_without_what_was_sent(recorded, tmp_path):
    with pytest.raises(RecordingError, match="not a folder"):
        estimate_run(tmp_path / "nothing")
    with pytest.raises(RecordingError, match=r"run\.json"):
        estimate_run(tmp_path)

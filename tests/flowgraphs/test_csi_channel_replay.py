"""New feedback codes over a recorded uplink: the estimate is right, and what comes back is what the run brought."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")
pytest.importorskip("torch", reason="torch is not installed")

import torch
from semair.blocks.waveforms.access import noise_powers
from semair.blocks.waveforms.feedback import feedback_burst, receive_feedback
from semair.errors import ScenarioError
from semair.flowgraphs.csi_channel_replay import estimate_uplink, replay_channel, send_over
from semair.flowgraphs.csi_feedback_run import run_csi_feedback
from semair.flowgraphs.report import write_report
from semair.flowgraphs.scenario import Scenario, load_scenario
from semair.models.cards import Card, NetworkSection, TrainingSection, save_model
from semair.models.csi import networks
from semair.models.csi.channels import ChannelConfig, Clustered, stream

N_FRAMES = 16
ANTENNAS, TAPS, SUBCARRIERS = 2, 16, 64
SMALL = (
    "frame.n_fft=128",
    "frame.cp_samples=32",
    "frame.n_used=64",
    "frame.n_groups=4",
    "frame.guard_samples=64",
    "frame.frame_samples=4096",
    f"radio.n_antennas={ANTENNAS}",
    f"csi.n_subcarriers={SUBCARRIERS}",
    f"csi.n_taps={TAPS}",
    "csi.comb=2",
    "csi.feedback_length=6",
    "csi.pilot_symbols=2",
    "channel.delay_spread_s=0.2e-6",
    "beacon_channel.delay_spread_s=0.1e-6",
    'csi.engine="torch"',
)


@pytest.fixture(scope="module")
def scenario(tmp_path_factory) -> Scenario:
    """Two antennas, and a network as training starts it, from a linear code."""
    folder = tmp_path_factory.mktemp("models") / "small"
    config = {"n_taps": TAPS, "n_antennas": ANTENNAS, "max_length": 8, "width": 16, "heads": 2, "feedforward": 24}
    config |= {"encoder_layers": 1, "decoder_layers": 2, "code_width": 4}
    torch.manual_seed(1)
    network = networks.build("munet", config)
    numbers = ChannelConfig(n_antennas=ANTENNAS, n_subcarriers=SUBCARRIERS, n_taps=TAPS, bandwidth_hz=(2e6, 2e6))
    network.start_from(Clustered(numbers).draw(600, stream("train", 1), (0.5, 2.0)).delay_angle)
    card = Card(
        name=folder.name,
        task="csi",
        network=NetworkSection(kind="munet", config=config, n_parameters=1),
        scenario={"lengths": [4, 8]},
        training=TrainingSection(command="", steps=0, samples=0, time_s=0),
    )
    save_model(folder, card, network.state_dict())
    return load_scenario("csi-lab", [*SMALL, f"csi.model={json.dumps(str(folder))}"])


@pytest.fixture(scope="module")
def live(scenario, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    run_csi_feedback(scenario, folder, n_frames=N_FRAMES)
    return folder


def word(rng: np.random.Generator, length: int) -> np.ndarray:
    drawn = rng.standard_normal((length, 2)) @ [1, 1j]
    return drawn / np.sqrt(np.mean(np.abs(drawn) ** 2))


def test_an_uplink_is_estimated_with_the_error_that_it_tells(scenario):
    """Two-tap channel, offset and unequal noise; the true error lies around the expected one."""
    frame = scenario.csi_frame
    fmt, rng = frame.frame_format, np.random.default_rng(3)
    noise, cfo_hz = np.array([1e-3, 4e-3]), 700.0
    true_error, told_error = [], []
    for _ in range(40):
        sent = word(rng, frame.slots.feedback_length)
        burst = feedback_burst(frame, sent)
        gains = rng.standard_normal((2, 2, 2)) @ [1, 1j]
        part = np.stack([g[0] * burst + g[1] * np.roll(burst, 5) for g in gains])
        part = part * np.exp(2j * np.pi * cfo_hz / fmt.sample_rate_hz * np.arange(part.shape[1]))
        part += (rng.standard_normal((*part.shape, 2)) @ [1, 1j]) * np.sqrt(noise / 2)[:, None]
        found = estimate_uplink(part, sent, frame, noise, 0.0, cfo_hz)
        f = np.fft.fftfreq(fmt.n_fft)[fmt.used_subcarriers]
        truth = (gains[:, :1] + gains[:, 1:] * np.exp(-2j * np.pi * 5 * f)) / np.sqrt(noise)[:, None]
        true_error.append(np.mean(np.abs(found.response - truth) ** 2) / np.mean(np.abs(truth) ** 2))
        told_error.append(found.error)
        # Removed with the offset that was put in; a symbol turns by little else than noise.
        assert abs(found.turn_rad) < 0.1
    assert 0.5 < np.mean(true_error) / np.mean(told_error) < 2
    assert np.mean(true_error) < 0.01


def test_a_slot_sent_over_an_uplink_is_received_with_its_snr(scenario):
    frame, rng = scenario.csi_frame, np.random.default_rng(5)
    sent = word(rng, frame.slots.feedback_length)
    part = feedback_burst(frame, sent)[None] * np.array([[1.0], [2j]])
    uplink = estimate_uplink(part, sent, frame, np.array([0.05, 0.05]))
    errors, told = [], []
    for _ in range(60):
        samples = send_over({1: uplink}, {1: sent}, frame, rng)
        assert (
            np.abs(noise_powers(samples[:, frame.noise_start - frame.feedback_start :], scenario.frame) - 1).max() < 1
        )
        got = receive_feedback(samples, frame)
        assert got.heard.tolist() == [False, True]
        errors.append(np.mean(np.abs(got.words[1] - sent) ** 2))
        told.append(10 ** (-got.snr_db[1] / 10))
    # 5 / 0.05 over both antennas is 20 dB, less what the estimated uplink costs; 360 symbols tell it within 0.5 dB.
    assert 10 * np.log10(np.mean(errors)) == pytest.approx(10 * np.log10(np.mean(told)), abs=1.0)
    assert -20.5 < 10 * np.log10(np.mean(errors)) < -17.5


def test_the_same_code_over_the_recorded_uplink_brings_what_the_run_brought(live):
    """The same channels and words with other noise: errors differ by what noise of that SNR can make of them."""
    result = replay_channel(live)
    run = json.loads((live / "metrics.json").read_text())["csi"]
    again = result.metrics["csi"]
    assert again["drops"] == run["drops"]
    assert again["nmse_db"][0] == pytest.approx(run["nmse_db"][0], abs=1.0)
    assert again["uplink_snr_db"]["mean"] == pytest.approx(run["uplink_snr_db"]["mean"], abs=0.5)
    assert result.metrics["run_nmse_db"] == run["nmse_db"]
    assert result.metrics["channel_replay"]["estimation_error_db"] < -10
    repeated = replay_channel(live)
    assert repeated.metrics["csi"] == again


@pytest.mark.slow
def test_a_shorter_code_brings_less_and_has_a_report(live):
    short = replay_channel(live, options={"feedback_length": 2})
    whole = replay_channel(live)
    assert short.metrics["csi"]["nmse_db"][0] > whole.metrics["csi"]["nmse_db"][0] + 1
    assert short.folder.scenario().csi_frame.slots.feedback_length == 2
    page = write_report(short.folder.path).read_text(encoding="utf-8")
    assert "Channel replay" in page
    assert "--option=feedback_length=2" in page


def test_what_does_not_fit_is_refused(live):
    for options, match in (
        ({"feedback_length": 0}, "at least 1"),
        ({"feedback_length": 2.5}, "whole number"),
        ({"feedback_length": 100000}, "does not fit"),
        ({"threshold": 1}, "feedback_length alone"),
    ):
        with pytest.raises(ScenarioError, match=match):
            replay_channel(live, options=options)

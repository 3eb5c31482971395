"""CSI feedback over the emulated radio: what comes back, what it costs, replays bit for bit, and what goes wrong."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")
pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

import torch
from semair.blocks.playback import PlayOptions
from semair.captures.reader import Recording
from semair.captures.verify import verify
from semair.errors import ModelError, RecordingError, ReplayMismatch, ScenarioError, SemairError
from semair.flowgraphs import links
from semair.flowgraphs.channel_replay import estimate_run
from semair.flowgraphs.csi_feedback_run import (
    CHANNELS,
    ESTIMATES,
    compare_csi,
    csi_pictures,
    replay_recording,
    replay_run,
    run_csi_feedback,
)
from semair.flowgraphs.csi_metrics import ratio_in_db
from semair.flowgraphs.link_run import Progress
from semair.flowgraphs.run import run_random_access
from semair.flowgraphs.runfolder import unpack_users
from semair.flowgraphs.scenario import Scenario, load_scenario
from semair.models.cards import Card, NetworkSection, TrainingSection, save_model
from semair.models.csi import judge, networks
from semair.models.csi.channels import ChannelConfig, Clustered, stream

ANTENNAS, TAPS, SUBCARRIERS, LENGTH, N_FRAMES = 2, 16, 64, 6, 12
# Two antennas and an eighth of the numbers: small enough for many runs.
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
    f"csi.feedback_length={LENGTH}",
    "csi.pilot_symbols=2",
    "channel.delay_spread_s=0.2e-6",
    "beacon_channel.delay_spread_s=0.1e-6",
    # At hand sooner than others.
    'csi.engine="torch"',
)


def write_model(folder: Path, n_antennas: int = ANTENNAS, seed: int = 1) -> Path:
    """A network as training starts it, from a linear code."""
    config = {
        "n_taps": TAPS,
        "n_antennas": n_antennas,
        "max_length": 8,
        "width": 16,
        "heads": 2,
        "feedforward": 24,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "code_width": 4,
    }
    torch.manual_seed(seed)
    network = networks.build("munet", config)
    numbers = ChannelConfig(n_antennas=n_antennas, n_subcarriers=SUBCARRIERS, n_taps=TAPS, bandwidth_hz=(2e6, 2e6))
    network.start_from(Clustered(numbers).draw(600, stream("train", seed), (0.5, 2.0)).delay_angle)
    card = Card(
        name=folder.name,
        task="csi",
        network=NetworkSection(kind="munet", config=config, n_parameters=1),
        scenario={"lengths": [4, 8]},
        training=TrainingSection(command="", steps=0, samples=0, time_s=0),
    )
    save_model(folder, card, network.state_dict())
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="module")
def scenario_of(model):
    def load(*overrides: str) -> Scenario:
        return load_scenario("csi-lab", [*SMALL, f"csi.model={json.dumps(str(model))}", *overrides])

    return load


@pytest.fixture(scope="module")
def live(scenario_of, tmp_path_factory):
    """One run of the small scenario; read only."""
    return run_csi_feedback(scenario_of(), tmp_path_factory.mktemp("live") / "run", n_frames=N_FRAMES)


@pytest.fixture
def copied(live, tmp_path) -> Path:
    """A copy of that run, to be damaged."""
    shutil.copytree(live.folder.path, tmp_path / "copy")
    return tmp_path / "copy"


def test_every_frame_is_answered_and_decoded(live):
    folder = live.folder
    decisions, truth = folder.rows(folder.decisions), folder.rows(folder.truth)
    assert decisions["frame"].tolist() == truth["frame"].tolist() == list(range(N_FRAMES))
    sent = unpack_users(truth["active"], 2)
    assert sent.sum() > N_FRAMES
    np.testing.assert_array_equal(unpack_users(decisions["active"], 2), sent)
    estimates = folder.rows(folder.path / ESTIMATES)
    assert len(estimates) == sent.sum()
    timing = decisions["sample_time"] + decisions["fraction"] - truth["arrival"]
    assert np.abs(timing).max() < 8
    assert live.metrics["frames"]["decided"] == N_FRAMES
    assert not live.interrupted


def test_recovered_csi_is_that_of_the_channel(live):
    measured = live.metrics["csi"]
    assert measured["estimate_nmse_db"][0] < -20
    # What the linear code itself loses, of one drop or another.
    assert -20 < measured["nmse_db"][0] < -3
    assert measured["nmse_db"][1] <= measured["nmse_db"][0] <= measured["nmse_db"][2]
    assert 0.5 < measured["cosine"][0] <= 1
    assert 0.3 < measured["sum_rate_share"][0] <= 1.01
    assert measured["uplink_snr_db"]["mean"] == pytest.approx(measured["known_uplink_snr_db"]["mean"], abs=1.5)


def test_stored_arrays_give_the_metrics_again(live):
    folder = live.folder
    channels = folder.rows(folder.path / CHANNELS)
    np.testing.assert_allclose(np.mean(np.abs(channels["h"]) ** 2, axis=(2, 3)), 1, rtol=1e-3)
    pictures = csi_pictures(folder)
    assert len(pictures) == len(folder.rows(folder.path / ESTIMATES))
    for picture in pictures:
        assert picture["truth"].shape == picture["estimate"].shape == (TAPS, ANTENNAS)
        sent = picture["estimate"] / np.sqrt(np.mean(np.abs(picture["estimate"]) ** 2))
        assert judge.scaled_nmse(picture["truth"], sent) < 0.1
    errors = [
        judge.scaled_nmse(picture["truth"], picture["recovered"])
        for picture in pictures
        if picture["recovered"] is not None
    ]
    by_user = [value for value, *_ in live.metrics["csi"]["nmse_db_by_user"]]
    assert min(by_user) - 3 < 10 * np.log10(np.mean(errors)) < max(by_user) + 3


def test_replay_recovers_the_very_same_csi(live):
    replayed = replay_run(live.folder.path)
    assert (replayed.live, replayed.equal, replayed.extra) == (N_FRAMES, N_FRAMES, 0)
    rows = replayed.folder.rows(replayed.folder.decisions)
    assert rows["csi"].tobytes() == live.folder.rows(live.folder.decisions)["csi"].tobytes()
    assert replayed.metrics["csi"]["nmse_db"] == live.metrics["csi"]["nmse_db"]


@pytest.mark.slow
def test_replay_with_other_weights_recovers_something_else(live, model, tmp_path):
    other = write_model(tmp_path / "other", seed=2)
    replayed = replay_run(live.folder.path, detector=str(other))
    assert replayed.equal is None
    assert replayed.detector == "other"
    assert replayed.folder.path.name == "other"
    rows = replayed.folder.rows(replayed.folder.decisions)
    assert rows["csi"].tobytes() != live.folder.rows(live.folder.decisions)["csi"].tobytes()
    # The words are the same: only the decoder is another.
    assert rows["words"].tobytes() == live.folder.rows(live.folder.decisions)["words"].tobytes()


@pytest.mark.slow
def test_altered_recordings_are_told(copied):
    data = copied / "bs-rx.sigmf-data"
    values = np.fromfile(data, "<i2")
    values //= 2
    values.tofile(data)
    with pytest.raises((ReplayMismatch, RecordingError)):
        replay_run(copied)


def test_changed_weights_are_told(copied, model):
    run = json.loads((copied / "run.json").read_text())
    run["model"]["sha256"] = "0" * 64
    (copied / "run.json").write_text(json.dumps(run))
    with pytest.raises(ModelError, match="no longer what it was"):
        replay_run(copied)


def test_recordings_hold_what_was_sent_and_received(live):
    folder = live.folder.path
    for name, channels in (("bs-rx", ANTENNAS), ("users-rx", 2), ("tx-beacon", 1), ("tx-sounding", ANTENNAS)):
        recording = Recording.open(folder / f"{name}.sigmf-meta")
        assert recording.n_channels == channels
        assert verify(recording.meta_path) == []
    sent = Recording.open(folder / "tx-users.sigmf-meta")
    assert len(sent.annotations) == len(live.folder.rows(folder / ESTIMATES))
    collection = json.loads(next(folder.glob("*.sigmf-collection")).read_text())["collection"]
    assert set(collection["semair:roles"]) == {"bs-rx", "users-rx", "tx-beacon", "tx-sounding", "tx-users"}
    assert {CHANNELS, ESTIMATES} <= set(collection["semair:files"])


@pytest.mark.slow
def test_a_recording_alone_is_received_with_a_scenario(live, scenario_of, tmp_path):
    done = replay_recording(live.folder.recording, scenario_of(), tmp_path / "again")
    assert done.extra == N_FRAMES
    rows = done.folder.rows(done.folder.decisions)
    assert rows["csi"].tobytes() == live.folder.rows(live.folder.decisions)["csi"].tobytes()


@pytest.mark.slow
def test_recording_first_and_decoding_later_is_the_same(live, scenario_of, tmp_path):
    recorded = run_csi_feedback(scenario_of(), tmp_path / "recorded", n_frames=N_FRAMES, receive=False)
    assert recorded.metrics["frames"]["decided"] == 0
    replayed = replay_run(tmp_path / "recorded")
    rows = replayed.folder.rows(replayed.folder.decisions)
    assert rows["csi"].tobytes() == live.folder.rows(live.folder.decisions)["csi"].tobytes()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_and_another_another(live, scenario_of, tmp_path):
    again = run_csi_feedback(scenario_of(), tmp_path / "again", n_frames=4, record=False)
    live_rows = live.folder.rows(live.folder.decisions)[:4]
    assert compare_csi(live_rows, again.folder.rows(again.folder.decisions)) == (4, 0, [])
    other = run_csi_feedback(scenario_of("seed=2"), tmp_path / "other", n_frames=4, record=False)
    assert other.folder.rows(other.folder.decisions)["csi"].tobytes() != live_rows["csi"].tobytes()


@pytest.mark.slow
def test_without_impairments_the_radio_chain_costs_next_to_nothing(scenario_of, tmp_path):
    done = run_csi_feedback(
        scenario_of("level=perfect", "csi.sounding_snr_db=40", "csi.snr_db=15"),
        tmp_path / "perfect",
        n_frames=80,
        record=False,
    )
    value, low, _ = done.metrics["csi"]["chain_loss_db"]
    # The interval of 80 paired drops is some half a decibel to either side; the chain itself costs pilots' noise.
    assert low < 0.5
    assert value < 1.0
    assert done.metrics["csi"]["drops"] > 70


def test_noise_below_the_beacon_leaves_users_out_and_nothing_hangs(scenario_of, tmp_path):
    done = run_csi_feedback(scenario_of("csi.sounding_snr_db=-10"), tmp_path / "deaf", n_frames=4, record=False)
    folder = done.folder
    truth = folder.rows(folder.truth)
    assert truth["frame"].tolist() == [0, 1, 2, 3]
    sent = unpack_users(truth["active"], 2)
    assert done.metrics["users"]["silent"] == np.count_nonzero(~sent) > 0
    decided = unpack_users(folder.rows(folder.decisions)["active"], 2)
    assert not (decided & ~sent).any()
    assert done.metrics["flagged"]["silent"] == np.count_nonzero(~decided)


@pytest.mark.slow
def test_samples_that_are_no_numbers_are_named(scenario_of, tmp_path):
    run_csi_feedback(scenario_of("level=perfect"), tmp_path / "run", n_frames=4)
    data = tmp_path / "run" / "bs-rx.sigmf-data"
    values = np.fromfile(data, "<c8")
    values[len(values) // 4] = np.nan
    values.tofile(data)
    with pytest.raises(SemairError, match=r"no numbers|not finite|NaN"):
        replay_run(tmp_path / "run")


@pytest.mark.slow
def test_a_converter_at_its_end_is_told(scenario_of, tmp_path):
    done = run_csi_feedback(
        scenario_of("impairments.full_scale_backoff_db=0"), tmp_path / "loud", n_frames=6, record=False
    )
    assert done.metrics["flagged"]["saturated"] > 0
    assert sum(done.metrics["counts"]["clipped_samples"]) > 0


def test_progress_tells_how_good_it_is(scenario_of, tmp_path):
    seen: list[Progress] = []
    run_csi_feedback(scenario_of(), tmp_path / "p", n_frames=3, record=False, on_progress=seen.append)
    assert seen[-1].sent == seen[-1].decided == seen[-1].expected == 3
    assert "NMSE" in seen[-1].remark


@pytest.mark.slow
def test_lost_samples_cost_their_frames_alone(live, scenario_of, tmp_path):
    place = int(live.folder.rows(live.folder.decisions)["sample_time"][5]) + 2000
    done = run_csi_feedback(
        scenario_of(f"radio.losses=[[{place}, 300]]"), tmp_path / "loss", n_frames=N_FRAMES, record=False
    )
    assert done.metrics["counts"]["slots_dropped"] + done.metrics["frames"]["missed"] == 1
    rows = done.folder.rows(done.folder.decisions)
    kept = live.folder.rows(live.folder.decisions)
    kept = kept[np.isin(kept["frame"], rows["frame"])]
    assert compare_csi(kept, rows)[0] >= len(kept) - 1


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        (['csi.model="nowhere"'], ScenarioError, "nowhere"),
        (["csi.feedback_length=9"], ModelError, "at most 8 symbols"),
        (["csi.n_taps=8"], ModelError, "trained for 16 taps"),
        (['csi.traced="nowhere.safetensors"'], SemairError, "nowhere"),
        (["radio.n_antennas=3"], ModelError, "trained for 16 taps and 2 antennas"),
        (['radio.kind="uhd"', 'radio.address="type=none"'], SemairError, "."),
        (['radio.calibration="x.json"'], ScenarioError, "leave it out"),
    ],
)
def test_what_does_not_fit_is_explained_before_a_folder_is_made(scenario_of, tmp_path, overrides, error, words):
    with pytest.raises(error, match=words):
        run_csi_feedback(scenario_of(*overrides), tmp_path / "none", n_frames=2)
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_traced_channels_take_the_place_of_drawn_ones(scenario_of, write_paths, tmp_path):
    traced = f"csi.traced={json.dumps(str(write_paths(tmp_path / 'paths.safetensors')))}"
    done = run_csi_feedback(scenario_of(traced), tmp_path / "traced", n_frames=4, record=False)
    assert done.metrics["csi"]["drops"] > 0
    assert done.metrics["csi"]["estimate_nmse_db"][0] < -15
    with pytest.raises(ModelError, match="moon"):
        run_csi_feedback(scenario_of(traced, 'csi.scenes=["moon"]'), tmp_path / "none", n_frames=4)
    with pytest.raises(ScenarioError, match=r"csi\.traced"):
        scenario_of('csi.scenes=["moon"]')
    assert not (tmp_path / "none").exists()


def test_links_do_not_take_scenarios_of_each_other(scenario_of, tmp_path):
    with pytest.raises(ScenarioError, match="csi-feedback"):
        run_random_access(scenario_of(), tmp_path / "a", n_frames=2)
    with pytest.raises(ScenarioError, match=r"\[csi\]"):
        run_csi_feedback(load_scenario("lab"), tmp_path / "b", n_frames=2)
    with pytest.raises(ScenarioError, match="frames=0"):
        run_csi_feedback(scenario_of(), tmp_path / "c", n_frames=0)
    with pytest.raises(ScenarioError, match="records, receives"):
        run_csi_feedback(scenario_of(), tmp_path / "d", record=False, receive=False)


def test_replays_refuse_what_a_codec_cannot_take(live):
    with pytest.raises(ScenarioError, match="all antennas"):
        replay_run(live.folder.path, play=PlayOptions(channels=(0,)))
    with pytest.raises(ScenarioError, match="codec has none"):
        replay_run(live.folder.path, options={"a": 1})
    with pytest.raises(ScenarioError, match="--frame"):
        replay_run(live.folder.path, play=PlayOptions(turns=2))


def test_what_knows_random_access_alone_says_so(live):
    with pytest.raises(ScenarioError, match="csi-feedback"):
        estimate_run(live.folder.path)


def test_links_are_found_by_their_kind(live, tmp_path):
    assert links.kind_of_run(live.folder.path) == "csi-feedback"
    assert links.module_of("csi-feedback").replay_run is replay_run
    assert links.runner_of(load_scenario("csi-lab")) is run_csi_feedback
    assert links.runner_of(load_scenario("lab")) is run_random_access
    with pytest.raises(RecordingError, match="not a folder"):
        links.kind_of_run(tmp_path / "nowhere")


def test_paired_ratios_are_surer_than_their_parts(rng):
    base = rng.exponential(1.0, 400)
    value, low, high = ratio_in_db(base * rng.normal(1.26, 0.05, 400), base)
    # 10 log10(1.26) = 1.004 dB, known to 0.05 / sqrt(400) of itself per drop.
    assert value == pytest.approx(1.0, abs=0.1)
    assert low < value < high
    assert high - low < 0.2


@pytest.mark.slow
def test_ctrl_c_leaves_a_whole_run(model, tmp_path):
    overrides = [*SMALL, f"csi.model={json.dumps(str(model))}"]
    code = textwrap.dedent(f"""
        import sys
        from semair.cli import main
        sys.argv = ["semair", "run", "csi-feedback", "-n", "100000", "--folder", {str(tmp_path / "run")!r}]
        for text in {overrides!r}:
            sys.argv += ["--set", text]
        main()
    """)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    decisions = tmp_path / "run" / "decisions.npy"
    try:
        for _ in range(1200):
            if decisions.is_file() and decisions.stat().st_size > 20_000:
                break
            try:
                process.wait(0.1)
                break
            except subprocess.TimeoutExpired:
                pass
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["counts"]["interrupted"]
    replayed = replay_run(tmp_path / "run")
    assert replayed.equal == replayed.live > 0

"""Slots of recorded runs are those the live detector saw, and runs are split whole."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")

from semair.errors import RecordingError, ScenarioError
from semair.flowgraphs.run import run_random_access
from semair.flowgraphs.runfolder import RunFolder, unpack_users
from semair.flowgraphs.scenario import load_scenario
from semair.flowgraphs.uad_slots import recorded_sets, run_slots

SMALL = (
    "frame.frame_samples=6144",
    "radio.n_antennas=2",
    "users.n_users=12",
    "users.activity=0.2",
    "users.preamble_lengths=[8, 28]",
    "link.beacon_snr_db=15",
    "level=wireless",
    "radio.losses=[[64000, 3000]]",
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two runs of different seeds; read only."""
    made = []
    for seed in (1, 2):
        folder = tmp_path_factory.mktemp("runs") / f"run-{seed}"
        run_random_access(load_scenario("lab", [*SMALL, f"seed={seed}"]), folder, n_frames=20)
        made.append(folder)
    return made


def test_slots_are_what_the_live_detector_saw(folders):
    scenario, found = run_slots(folders[0])
    folder = RunFolder(folders[0])
    snapshots, decisions = folder.rows(folder.snapshots), folder.rows(folder.decisions)
    truth = folder.rows(folder.truth)
    live = {int(row["frame"]): row for row in snapshots}
    assert set(found.arrays["frame"].tolist()) == set(live)
    # One frame went with the loss.
    assert len(found) == 19
    for k, frame in enumerate(found.arrays["frame"]):
        length = int(found.arrays["length"][k])
        y = found.arrays["y"][k]
        kept = live[int(frame)]["values"][: length * scenario.n_snapshots].reshape(length, -1)
        assert y[:length].tobytes() == kept.tobytes()
        assert not y[length:].any()
        decided = decisions[decisions["frame"] == frame][0]
        assert found.arrays["noise_power"][k] == np.float32(decided["noise_power"])
        sent = truth[truth["frame"] == frame][0]
        assert length == sent["length"]
        np.testing.assert_array_equal(found.arrays["active"][k], unpack_users(sent["active"], 12))


def test_runs_are_split_whole(folders, tmp_path):
    training, judging = recorded_sets(folders[:1], folders[1:])
    assert [one.name for one in training] == [str(folders[0])]
    assert training[0].sha512 != judging[0].sha512
    assert training[0].preambles.shape == (28, 12)
    assert training[0].activity == 0.2
    with pytest.raises(ScenarioError, match="same samples"):
        recorded_sets(folders[:1], folders[:1])
    with pytest.raises(RecordingError, match="not a folder"):
        recorded_sets(folders[:1], [tmp_path / "nothing"])

"""Trained networks as detectors: the contract of all detectors, and what they refuse or flag."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from scipy.stats import binom
from semair.errors import ModelError, ScenarioError, SetupError
from semair.models.cards import Card, NetworkSection, TrainingSection, save_model
from semair.models.engine import ENGINES, installed
from semair.models.uad import detectors, networks
from semair.models.uad.detectors import Flag, learned
from semair.models.uad.preambles import qpsk_preambles
from semair.models.uad.simulate import draw_batch

N_USERS = 12
MAX_LENGTH = 10
LENGTHS = [4, 10]
SEED = 5
POOL = qpsk_preambles(N_USERS, MAX_LENGTH, np.random.default_rng(SEED))
CONFIG = {
    "n_users": N_USERS,
    "max_length": MAX_LENGTH,
    "lengths": LENGTHS,
    "d_model": 16,
    "n_layers": 2,
    "n_heads": 2,
    "head_dim": 8,
    "ffn": 16,
    "plam_hidden": 4,
}
SCENARIO = {
    "n_users": N_USERS,
    "max_length": MAX_LENGTH,
    "lengths": LENGTHS,
    "activity": [0.1, 0.2],
    "snr_db": [0.0, 10.0],
    "pool": "fixed",
    "pool_seed": SEED,
}


def save(folder: Path, kind: str = "heterogeneous", config=CONFIG, task: str = "uad", **scenario) -> Path:
    """A tiny network with random weights, as training would leave it."""
    torch.manual_seed(2)
    network = networks.build(kind, config)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1 and not parameter.any():
                parameter.normal_(0, 0.3)
    card = Card(
        name=folder.name,
        task=task,
        network=NetworkSection(kind=kind, config=network.config.model_dump(mode="json"), n_parameters=7),
        scenario={**SCENARIO, **scenario},
        training=TrainingSection(command="none", steps=0, samples=0, time_s=0.0),
    )
    save_model(folder, card, network.state_dict())
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "tiny")


def make(folder, preambles=POOL, activity=0.15, **options):
    return detectors.make(str(folder), preambles, activity, **options)


def draw(rng, length=7, n_samples=5, activity=0.15):
    return draw_batch(rng, POOL, n_samples, length, 16, activity, 5.0)


def double(folder: Path, batch) -> np.ndarray:
    """Probabilities from the network itself, in double precision."""
    _, network = networks.load(folder)
    with torch.no_grad():
        prepared = network.prepare(
            torch.tensor(batch.y), torch.tensor(POOL), torch.tensor(batch.noise_power, dtype=torch.float32), 0.15
        )
        logits = network.double()(*(t.double() if t.is_floating_point() else t for t in prepared))
    return torch.sigmoid(logits).numpy()


# The contract


@pytest.mark.parametrize("engine", list(ENGINES))
def test_scores_are_the_probabilities_of_the_network(engine, folder, rng):
    if engine not in installed():
        pytest.skip(f"{engine} is not installed")
    batch = draw(rng)
    detector = make(folder, engine=engine)
    found = detector.detect(batch.y, batch.noise_power)
    np.testing.assert_allclose(found.scores, double(folder, batch), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found.active, found.scores > 0.5)
    assert detector.threshold(7) == 0.5
    assert make(folder, threshold=0.3).threshold(7) == 0.3
    assert detector.describe()["engine"] == engine


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
@pytest.mark.parametrize("length", [4, 9])
def test_same_bits_alone_in_a_batch_and_from_another_layout(engine, length, folder, rng):
    if engine not in installed():
        pytest.skip(f"{engine} is not installed")
    batch = draw(rng, length)
    detector = make(folder, engine=engine)
    scores = detector.scores(batch.y, batch.noise_power)
    np.testing.assert_array_equal(make(folder, engine=engine).scores(batch.y, batch.noise_power), scores)
    for i in range(len(scores)):
        alone = detector.scores(batch.y[i : i + 1], batch.noise_power[i : i + 1])
        np.testing.assert_array_equal(alone[0], scores[i])
    np.testing.assert_array_equal(detector.scores(batch.y[::-1], batch.noise_power[::-1])[::-1], scores)
    np.testing.assert_array_equal(detector.scores(np.asfortranarray(batch.y), batch.noise_power), scores)


def test_same_bits_in_another_process(folder, rng, tmp_path):
    batch = draw(rng)
    np.savez(tmp_path / "slots.npz", y=batch.y, noise=batch.noise_power, pool=POOL)
    code = (
        "import sys, numpy as np; from semair.models.uad import detectors; d = np.load(sys.argv[1]);"
        "print(detectors.make(sys.argv[2], d['pool'], 0.15).scores(d['y'], d['noise']).tobytes().hex())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "slots.npz"), str(folder)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert printed == make(folder).scores(batch.y, batch.noise_power).tobytes().hex()


def test_warm_up_makes_the_engine_and_changes_nothing(folder, rng):
    batch = draw(rng)
    cold, warm = make(folder), make(folder)
    warm.warm_up(7, 16)
    assert len(warm._engines) == 1
    np.testing.assert_array_equal(cold.scores(batch.y, batch.noise_power), warm.scores(batch.y, batch.noise_power))
    assert len(warm._engines) == 1


def test_empty_batch(folder):
    assert make(folder).detect(np.ones((0, 7, 4)), np.ones(0)).active.shape == (0, N_USERS)


def test_compiled_preparation_is_used_where_a_network_has_one(folder, rng, monkeypatch):
    batch = draw(rng)
    expected = make(folder).scores(batch.y, batch.noise_power)
    kind = networks.available()["heterogeneous"]
    calls = []

    def prepare_numpy(self, y, preambles, noise_power, activity):
        calls.append((y.shape, preambles.shape, noise_power, activity))
        with torch.no_grad():
            tensors = self.prepare(torch.tensor(y), torch.tensor(preambles), None, activity)
        return tuple(tensor.contiguous().numpy() for tensor in tensors)

    monkeypatch.setattr(kind, "prepare_numpy", prepare_numpy, raising=False)
    np.testing.assert_array_equal(make(folder).scores(batch.y, batch.noise_power), expected)
    assert [call[0] for call in calls] == [(1, 7, 16)] * 5
    assert calls[0][1] == POOL.shape
    assert calls[0][3] == 0.15
    np.testing.assert_array_equal([call[2][0] for call in calls], batch.noise_power)
    calls.clear()
    make(folder, noise="unknown").scores(batch.y, batch.noise_power)
    assert {call[2] for call in calls} == {None}


def test_sizes_that_differ_from_slot_to_slot_need_one_engine(tmp_path, rng):
    pool = qpsk_preambles(60, MAX_LENGTH, rng)
    config = {"max_length": MAX_LENGTH, "width": 8, "least_candidates": 2, "most_candidates": 60}
    folder = save(tmp_path / "likelihood", "likelihood", config, n_users=60, pool="fresh", pool_seed=None)
    batch = draw_batch(rng, pool, 12, 9, 16, 0.1, 15.0)
    detector = make(folder, pool, 0.1, engine="onnxruntime")
    scores = detector.scores(batch.y, batch.noise_power)
    sizes = {detector.prepared(batch.y[i : i + 1], batch.noise_power[i : i + 1])[0].shape[1] for i in range(12)}
    assert len(sizes) > 2
    assert len(detector._engines) == 1
    another = make(folder, pool, 0.1, engine="onnxruntime")
    for i in (7, 3, 11):
        np.testing.assert_array_equal(another.scores(batch.y[i : i + 1], batch.noise_power[i : i + 1])[0], scores[i])
    in_torch = make(folder, pool, 0.1, engine="torch").scores(batch.y, batch.noise_power)
    np.testing.assert_allclose(scores, in_torch, rtol=0, atol=1e-5)


def test_a_network_that_can_runs_compiled(tmp_path, folder, rng):
    pool = qpsk_preambles(60, MAX_LENGTH, rng)
    fresh = save(
        tmp_path / "likelihood", "likelihood", {"max_length": MAX_LENGTH}, n_users=60, pool="fresh", pool_seed=None
    )
    batch = draw_batch(rng, pool, 12, 9, 16, 0.1, 15.0)
    detector = make(fresh, pool, 0.1)
    assert detector.describe()["engine"] == "compiled"
    scores = detector.scores(batch.y, batch.noise_power)
    in_torch = make(fresh, pool, 0.1, engine="torch").scores(batch.y, batch.noise_power)
    np.testing.assert_allclose(scores, in_torch, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(detector.scores(batch.y[7:8], batch.noise_power[7:8])[0], scores[7])
    assert make(folder).describe()["engine"] == "onnxruntime"
    with pytest.raises(ScenarioError, match="no compiled forward pass; choose one of: torch"):
        make(folder, engine="compiled")


def test_units_do_not_matter_to_a_network_trained_at_one_snr(tmp_path, rng):
    batch = draw(rng)
    detector = make(save(tmp_path / "one-snr", snr_db=[10.0, 10.0]))
    one = detector.scores(batch.y, batch.noise_power)
    other = detector.scores(300 * batch.y, 300**2 * batch.noise_power)
    np.testing.assert_allclose(other, one, rtol=0, atol=1e-4)
    # In training the noise power was users * activity / 10 dB: there nothing is scaled.
    trained = np.full(5, N_USERS * 0.2 / 10)
    np.testing.assert_allclose(detector.scores(batch.y, trained), double(tmp_path / "one-snr", batch), atol=1e-5)


# Names


def test_shipped_weights_are_detectors_by_their_folder(folder, monkeypatch, rng):
    monkeypatch.setattr(learned, "WEIGHTS", folder.parent)
    known = detectors.available()
    assert list(known)[-1] == "uad-tiny"
    assert known["uad-tiny"] is detectors.available()["uad-tiny"]
    detector = detectors.make("uad-tiny", POOL, 0.15)
    assert detector.name == "uad-tiny"
    batch = draw(rng)
    np.testing.assert_array_equal(
        detector.scores(batch.y, batch.noise_power), make(folder).scores(batch.y, batch.noise_power)
    )


def test_only_suiting_detectors_are_offered(folder, monkeypatch):
    monkeypatch.setattr(learned, "WEIGHTS", folder.parent)
    classical = [name for name in detectors.available() if name != "uad-tiny"]
    assert detectors.suiting(POOL, [4, 10]) == [*classical, "uad-tiny"]
    assert detectors.suiting(POOL, [3, 10]) == classical
    assert detectors.suiting(POOL[:, 1:], [4, 10]) == classical
    assert detectors.suiting(POOL[::-1], [4, 10]) == classical


def test_listing_reads_no_card(tmp_path, monkeypatch):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "card.json").write_text("{")
    monkeypatch.setattr(learned, "WEIGHTS", tmp_path)
    assert "uad-broken" in detectors.available()
    with pytest.raises(ModelError, match=r"card\.json"):
        detectors.make("uad-broken", POOL, 0.1)


def test_listing_and_asking_for_classical_detectors_load_no_torch():
    code = (
        "import sys, numpy as np; from semair.models.uad import detectors; detectors.available();"
        "detectors.make('cd', np.ones((4, 3)), 0.1); print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "onnxruntime", "openvino"} & set(loaded)


def test_a_path_names_a_detector(folder, monkeypatch):
    assert make(folder).name == str(folder)
    monkeypatch.chdir(folder.parent)
    assert detectors.make("tiny", POOL, 0.1).card.name == "tiny"
    with pytest.raises(ModelError, match="no model"):
        detectors.make("./nowhere", POOL, 0.1)
    with pytest.raises(ScenarioError, match=r"'nowhere' is unknown.*path of a folder"):
        detectors.make("nowhere", POOL, 0.1)


# Bad input


@pytest.mark.parametrize("shape", [(MAX_LENGTH, N_USERS + 1), (MAX_LENGTH - 1, N_USERS), (MAX_LENGTH + 1, N_USERS)])
def test_another_number_of_users_or_symbols_is_refused(folder, shape):
    pool = qpsk_preambles(shape[1], shape[0], np.random.default_rng(SEED))
    with pytest.raises(ModelError, match=rf"12 users.*10 symbols.*{shape[1]} users.*{shape[0]} symbols"):
        make(folder, pool)


def test_another_pool_is_refused_unless_asked_for(folder, tmp_path, rng):
    pool = qpsk_preambles(N_USERS, MAX_LENGTH, np.random.default_rng(SEED + 1))
    with pytest.raises(ModelError, match=r"preambles of seed 5.*beyond_training=true"):
        make(folder, pool)
    batch = draw(rng)
    scores = make(folder, pool, beyond_training=True).scores(batch.y, batch.noise_power)
    assert not np.array_equal(scores, make(folder).scores(batch.y, batch.noise_power))
    fresh = save(tmp_path / "fresh", pool="fresh", pool_seed=None)
    np.testing.assert_array_equal(make(fresh, pool).scores(batch.y, batch.noise_power), scores)


@pytest.mark.parametrize("length", [3, 1])
def test_length_outside_the_trained_range_is_refused(folder, length):
    detector = make(folder)
    for call in (lambda: detector.detect(np.ones((1, length, 16)), 1.0), lambda: detector.warm_up(length, 16)):
        with pytest.raises(ModelError, match=f"4 to 10 symbols, not of {length}"):
            call()
    with pytest.raises(ModelError, match=f"not of {length}"):
        detector.check_lengths([4, length, 10])
    detector.check_lengths([4, 10])
    nevertheless = make(folder, beyond_training=True)
    nevertheless.check_lengths([length])
    assert np.isfinite(nevertheless.detect(np.ones((1, length, 16)), 1.0).scores).all()
    with pytest.raises(ScenarioError, match="1 to 10"):
        nevertheless.check_lengths([11])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_a_number_in_a_slot_is_refused(folder, value):
    y = np.ones((2, 7, 16), np.complex64)
    y[1, 2, 3] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        make(folder).detect(y, 1.0)


def test_a_slot_of_zeros_is_nobody_and_flagged(folder, rng):
    batch = draw(rng)
    batch.y[2] = 0
    found = make(folder, threshold=-1.0).detect(batch.y, batch.noise_power)
    assert not found.active[2].any()
    assert found.flags[2] == Flag.SILENT
    assert np.isfinite(found.scores).all()
    alone = make(folder, threshold=-1.0).detect(batch.y[:2], batch.noise_power[:2])
    np.testing.assert_array_equal(found.scores[:2], alone.scores)


def test_more_users_than_ever_trained_are_flagged(folder, rng, monkeypatch):
    detector = make(folder)
    # Of 12 users at activity 0.2 more than this many are active once in a million slots.
    limit = detector._limit
    assert binom.sf(limit, N_USERS, 0.2) < 1e-6 <= binom.sf(limit - 1, N_USERS, 0.2)
    batch = draw(rng, n_samples=3)
    logits = np.full((3, N_USERS), -20.0, np.float32)
    logits[1, : int(limit)] = 20.0
    logits[2, : int(limit) + 1] = 20.0

    class Fixed:
        name = "fixed"
        calls = 0

        def run(self, *inputs):
            self.calls += 1
            return logits[self.calls - 1 : self.calls]

    engine = Fixed()
    monkeypatch.setattr(detector, "_engine_for", lambda inputs: engine)
    found = detector.detect(batch.y, batch.noise_power)
    assert found.active.sum(axis=1).tolist() == [0, limit, limit + 1]
    assert found.flags.tolist() == [0, 0, Flag.CROWDED]


def test_a_network_told_of_more_activity_than_it_was_trained_for_flags_every_slot(folder, rng):
    batch = draw(rng)
    assert not make(folder, activity=0.2).detect(batch.y, batch.noise_power).flags.any()
    assert (make(folder, activity=0.25).detect(batch.y, batch.noise_power).flags == Flag.CROWDED).all()


@pytest.mark.parametrize("length", [8, 12, 20])
@pytest.mark.parametrize("gain", [0.01, 1.0, 300.0])
def test_users_in_a_slot_are_bounded_from_below_whatever_their_power(length, gain, rng):
    pool = qpsk_preambles(128, 28, rng)

    def bounds(activity, n=200):
        batch = draw_batch(rng, pool, n, length, 64, activity, 10.0)
        noise = gain * batch.noise_power
        y = (np.sqrt(gain) * batch.y).astype(np.complex64)
        return np.array([learned.least_users(y[i], noise[i]) for i in range(n)]), batch.active.sum(axis=1)

    found, true = bounds(0.1)
    # Two standard deviations are exceeded in 2 to 3 of 100 slots, somewhat more often for a few heavy-tailed squares.
    assert np.mean(found > true) < 0.08
    assert (found < 31).all()
    found, true = bounds(0.6)
    assert np.mean(found > true) < 0.08
    # 77 users where 31 are the most that training at activity 0.1 shows.
    assert np.mean(found > 31) > 0.6


def test_a_network_that_overlooks_a_crowd_is_flagged_by_the_slot_itself(tmp_path, rng):
    config = {**CONFIG, "n_users": 100, "max_length": 20, "lengths": [4, 20]}
    scenario = {"n_users": 100, "max_length": 20, "lengths": [4, 20], "activity": [0.05, 0.05]}
    pool = qpsk_preambles(100, 20, np.random.default_rng(SEED))
    detector = make(save(tmp_path / "small-crowds", config=config, **scenario), pool, 0.05)
    batch = draw_batch(rng, pool, 20, 16, 64, 0.6, 15.0)
    quiet = draw_batch(rng, pool, 20, 16, 64, 0.05, 15.0)
    detector._limit = 18.0
    detector._engine_for = lambda inputs: type("Blind", (), {"run": staticmethod(lambda *x: np.full((1, 100), -9.0))})
    assert (detector.detect(batch.y, batch.noise_power).flags == Flag.CROWDED).all()
    assert not detector.detect(quiet.y, quiet.noise_power).flags.any()


def test_numbers_beyond_single_precision_are_flagged_and_harmless(folder, rng):
    batch = draw(rng)
    batch.y[1] *= np.float32(1e30)
    found = make(folder, threshold=-1.0).detect(batch.y, batch.noise_power)
    assert np.isfinite(found.scores).all()
    assert found.flags[1] & Flag.UNSTABLE
    assert not found.scores[1].any()
    assert not (found.flags[[0, 2, 3, 4]] & Flag.UNSTABLE).any()


def test_options_out_of_range(folder):
    for options in ({"noise": "guessed"}, {"engine": "tensorrt"}, {"threshold": np.nan}, {"gain": 1.0}):
        with pytest.raises(ScenarioError, match=next(iter(options))):
            make(folder, **options)


def test_engine_that_is_not_installed_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(SetupError, match="pip install openvino"):
        make(folder, engine="openvino").warm_up(7, 16)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: flip_a_bit(f / "model.safetensors"), "damaged or foreign"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04."), "cut or foreign"),
        (lambda f: (f / "model.safetensors").unlink(), "cannot be read"),
        (lambda f: (f / "card.json").write_text('{"format": "other"}'), "not the card"),
        (lambda f: (f / "card.json").unlink(), "no model"),
    ],
)
def test_damaged_or_foreign_weights_are_refused(tmp_path, harm, message):
    folder = save(tmp_path / "harmed")
    harm(folder)
    with pytest.raises(ModelError, match=message):
        make(folder)


def test_weights_for_another_task_are_refused(tmp_path):
    with pytest.raises(ModelError, match="task 'csi'"):
        make(save(tmp_path / "csi", task="csi"))


@pytest.mark.parametrize(
    "change",
    [{"n_users": "12"}, {"lengths": [4]}, {"activity": None}, {"pool": "some"}, {"pool_seed": None}, {"snr_db": 10}],
)
def test_card_that_does_not_say_what_it_was_trained_for_is_refused(tmp_path, change):
    folder = save(tmp_path / "odd", **change)
    assert json.loads((folder / "card.json").read_text())["scenario"][next(iter(change))] == next(iter(change.values()))
    with pytest.raises(ModelError, match=r"scenario must hold n_users"):
        make(folder)

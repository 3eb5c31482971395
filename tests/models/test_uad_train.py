"""Training: it learns, resumes exactly, ends cleanly, and leaves a model that says what it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from semair.errors import ModelError, ScenarioError
from semair.models.cards import CARD_FILE, WEIGHTS_FILE, load_card, load_model
from semair.models.uad import networks
from semair.models.uad.draws import draw
from semair.models.uad.simulate import draw_batch
from semair.models.uad.train import (
    CHECKPOINT_FILE,
    CURVE_FILE,
    OptimiserSection,
    TrainingConfig,
    error_counts,
    learning_rate,
    load_config,
    shipped_configs,
    train,
)

TINY = {
    "name": "tiny",
    "seed": 3,
    "network": {
        "kind": "heterogeneous", "d_model": 24, "n_layers": 2, "n_heads": 2, "head_dim": 12, "ffn": 24,
    },
    "mixture": {"n_users": 10, "max_length": 8, "lengths": [4, 8], "snapshots": [16], "activity": 0.2},
    "optimiser": {"steps": 12, "batch": 8, "lr": 3e-3},
    "validation": {"every": 5, "slots": 20, "test_slots": 30},
}  # fmt: skip


def config(**sections):
    data = {key: dict(value) if isinstance(value, dict) else value for key, value in TINY.items()}
    for key, value in sections.items():
        data[key] = {**data[key], **value} if isinstance(value, dict) and key in data else value
    return TrainingConfig.model_validate(data)


def toml(path, text=""):
    """The tiny configuration as a file, with lines behind it."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in TINY.items() if not isinstance(value, dict)]
    for key, section in TINY.items():
        if isinstance(section, dict):
            lines += [f"[{key}]", *(f"{name} = {json.dumps(value)}" for name, value in section.items())]
    path.write_text("\n".join([*lines, text]))
    return path


class Stop:
    """Presses Ctrl-C once when a step is reached."""

    def __init__(self, at):
        self.at = at

    def __call__(self, progress):
        if progress.step >= self.at:
            self.at = 10**9
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def told_every_step(monkeypatch):
    monkeypatch.setattr("semair.models.training._REPORT_S", 0.0)


@pytest.mark.slow
def test_training_learns_to_detect(tmp_path):
    learned = config(
        network={"d_model": 32, "head_dim": 16, "ffn": 32},
        mixture={"n_users": 16, "lengths": [6, 8]},
        optimiser={"steps": 350, "batch": 32},
        validation={"every": 100, "test_slots": 400},
    )
    card = train(learned, tmp_path).card
    assert card is not None
    by_length = {metric.conditions["length"]: metric for metric in card.metrics}
    # Deciding "nobody" errs with probability 0.2; 400 slots of 16 decisions leave an interval of about 0.01.
    assert by_length[8].high < 0.08
    assert by_length[6].high < 0.1
    losses = [point["loss"] for point in card.training.curve]
    assert losses[-1] < 0.6 * losses[0]
    assert [point["step"] for point in card.training.curve] == [100, 200, 300, 350]


def test_the_card_says_what_was_trained(tmp_path):
    done = train(config(), tmp_path, command="semair train uad --config tiny.toml")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([CARD_FILE, WEIGHTS_FILE, CURVE_FILE])
    card, network = networks.load(tmp_path)
    assert card == done.card
    assert card.task == "uad"
    assert card.scenario["n_users"] == 10
    assert card.scenario["max_length"] == 8
    assert card.scenario["lengths"] == [4, 8]
    assert card.scenario["activity"] == [0.2, 0.2]
    assert card.training.command == "semair train uad --config tiny.toml"
    assert (card.training.steps, card.training.samples, card.training.seeds["training"]) == (12, 96, 3)
    assert card.network.n_parameters == sum(p.numel() for p in network.parameters())
    assert TrainingConfig.model_validate(card.training.config) == config()
    assert [(spec.name, spec.shape) for spec in card.inputs] == [
        ("preambles", ("batch", 10, 16)),
        ("covariance", ("batch", 2 * 8 * 8 + 1)),
        ("length", ("batch", 1)),
    ]
    assert {metric.conditions["length"] for metric in card.metrics} == {4, 8}
    for metric in card.metrics:
        assert metric.low <= metric.value <= metric.high
        assert metric.conditions["decisions"] == 300
    assert (tmp_path / CURVE_FILE).read_bytes().startswith(b"\x89PNG")


def test_metrics_of_the_card_can_be_measured_again(tmp_path):
    train(config(optimiser={"steps": 40}), tmp_path)
    card, network = networks.load(tmp_path)
    for metric in card.metrics:
        length = metric.conditions["length"]
        # Other draws of the same kind, from the numpy simulator.
        pool = config().mixture.fixed_pool()
        batch = draw_batch(np.random.default_rng(1), pool.numpy(), 3000, length, 16, 0.2, 10.0)
        x = network.prepare(torch.from_numpy(batch.y), pool, None, 0.2)
        with torch.inference_mode():
            found = network(*x).numpy() > 0
        wrong = (found != batch.active).mean(axis=1)
        half = (metric.high - metric.low) / 2
        assert wrong.mean() == pytest.approx(metric.value, abs=2.5 * half + 4 * wrong.std() / np.sqrt(3000))


def test_error_counts_counts_what_is_wrong():
    mixture = config().mixture
    drawn = draw(mixture, mixture.fixed_pool(), 50, torch.Generator().manual_seed(9), length=8)

    class EveryOther(networks.Network):
        def prepare(self, y, preambles, noise_power, activity):
            return (y.real,)

        def forward(self, *prepared):
            return torch.ones((prepared[0].shape[0], 10)) * torch.tensor([1.0, -1.0] * 5)

    missed, alarms, active = error_counts(EveryOther(networks.NetworkConfig()), mixture, 8, 50, seed=9)
    truth = drawn.active.numpy()
    np.testing.assert_array_equal(active, truth.sum(1))
    np.testing.assert_array_equal(missed, truth[:, 1::2].sum(1))
    np.testing.assert_array_equal(alarms, (~truth[:, ::2]).sum(1))


def same_model(one, two):
    weights = [load_model(folder)[1] for folder in (one, two)]
    return weights[0].keys() == weights[1].keys() and all(
        torch.equal(weights[0][name], weights[1][name]) for name in weights[0]
    )


def test_one_seed_trains_one_model(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train(config(seed=seed), tmp_path / name)
    assert same_model(tmp_path / "a", tmp_path / "b")
    assert not same_model(tmp_path / "a", tmp_path / "c")


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"optimiser": {"ema": 0.9, "weight_decay": 0.01}, "network": {"norm": "batch"}},
        {"mixture": {"pool": "fresh", "channels": [{"kind": "rayleigh"}, {"kind": "lab"}], "noise_unknown": 0.5}},
    ],
    ids=["plain", "ema-batchnorm", "mixture"],
)
def test_interrupted_and_resumed_is_bit_for_bit_uninterrupted(tmp_path, told_every_step, sections):
    whole = train(config(**sections), tmp_path / "whole")
    # Stopped right behind a validation, and once more between two.
    for at in (5, 8):
        part = train(config(**sections), tmp_path / "parts", resume=at == 8, on_progress=Stop(at))
        assert part.card is None
        assert part.steps == at
        assert (tmp_path / "parts" / CHECKPOINT_FILE).exists()
        assert not (tmp_path / "parts" / CARD_FILE).exists()
    rest = train(config(**sections), tmp_path / "parts", resume=True)
    assert same_model(tmp_path / "whole", tmp_path / "parts")
    assert whole.card is not None
    assert rest.card is not None
    assert rest.card.metrics == whole.card.metrics
    drop_time = [[{**point, "time_s": 0} for point in card.training.curve] for card in (whole.card, rest.card)]
    assert drop_time[0] == drop_time[1]
    assert not (tmp_path / "parts" / CHECKPOINT_FILE).exists()


def test_a_kill_costs_no_more_than_the_time_between_checkpoints(tmp_path, told_every_step):
    class Killed(BaseException):
        pass

    def kill(progress):
        if progress.step == 9:
            raise Killed

    every_step = config(checkpoint_s=0.0)
    train(every_step, tmp_path / "whole")
    with pytest.raises(Killed):
        train(every_step, tmp_path / "parts", on_progress=kill)
    with safe_open(tmp_path / "parts" / CHECKPOINT_FILE, framework="pt") as file:
        assert json.loads(file.metadata()["state"])["step"] == 9
    train(every_step, tmp_path / "parts", resume=True)
    assert same_model(tmp_path / "whole", tmp_path / "parts")


def test_the_commit_is_that_of_the_code_that_trained(tmp_path, monkeypatch, told_every_step):
    name = "semair.models.training.git_commit"
    first, second = "1" * 40, "2" * 40
    monkeypatch.setattr(name, lambda: first)

    def commit_in_between(progress):
        monkeypatch.setattr(name, lambda: second)

    card = train(config(), tmp_path / "whole", on_progress=commit_in_between).card
    assert card is not None
    assert card.git_commit == first
    assert "commits" not in card.details
    monkeypatch.setattr(name, lambda: first)
    train(config(), tmp_path / "parts", on_progress=Stop(5))
    monkeypatch.setattr(name, lambda: second)
    card = train(config(), tmp_path / "parts", resume=True).card
    assert card is not None
    assert card.git_commit == second
    assert card.details["commits"] == [first, second]


def test_handlers_of_signals_are_given_back(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    train(config(), tmp_path)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_minutes_fit_the_schedule_to_the_time(tmp_path, monkeypatch, told_every_step):
    # A clock on which every step takes a second.
    clock = iter(range(10**6))
    monkeypatch.setattr("semair.models.training.time.monotonic", lambda: float(next(clock)))
    seen = []
    done = train(config(validation={"every": 1000}), tmp_path, minutes=0.5, on_progress=seen.append)
    assert done.card is not None
    assert done.steps > 12
    assert done.card.training.time_s == pytest.approx(30, abs=3)
    assert seen[-1].share == 1
    assert all(p.elapsed_s + p.left_s == pytest.approx(30, abs=3) for p in seen)
    assert done.card.training.curve[-1]["lr"] < 0.02 * 3e-3


def test_nan_stops_with_the_last_good_checkpoint(tmp_path, monkeypatch):
    broken = config(checkpoint_s=0.0)
    real = draw

    def spoil(*args, **kwargs):
        slots = real(*args, **kwargs)
        spoil.calls += 1
        if spoil.calls == 4:
            slots.y.fill_(float("nan"))
        return slots

    spoil.calls = 0
    monkeypatch.setattr("semair.models.uad.train.draw", spoil)
    with pytest.raises(ModelError, match=r"NaN or infinite by step 4; the last good state is kept in .*Lower optim"):
        train(broken, tmp_path)
    monkeypatch.undo()
    with safe_open(tmp_path / CHECKPOINT_FILE, framework="pt") as file:
        assert json.loads(file.metadata()["state"])["step"] == 3
        assert all(bool(file.get_tensor(name).isfinite().all()) for name in file.keys())  # noqa: SIM118
    assert train(broken, tmp_path, resume=True).card is not None


def test_nan_before_any_checkpoint_says_so(tmp_path, monkeypatch):
    def spoiled(*args, **kwargs):
        slots = draw(*args, **kwargs)
        slots.y.fill_(float("nan"))
        return slots

    monkeypatch.setattr("semair.models.uad.train.draw", spoiled)
    with pytest.raises(ModelError, match="by step 1; no checkpoint was written yet"):
        train(config(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def checkpointed(folder, **sections):
    train(config(**sections), folder, on_progress=Stop(3))
    assert (folder / CHECKPOINT_FILE).exists()


def test_resuming_with_another_configuration_is_refused(tmp_path, told_every_step):
    checkpointed(tmp_path)
    with pytest.raises(ModelError, match=r"another configuration: optimiser differ"):
        train(config(optimiser={"lr": 1e-4}), tmp_path, resume=True)


@pytest.mark.parametrize("how", ["cut", "foreign", "text"])
def test_a_damaged_checkpoint_is_refused(tmp_path, told_every_step, how):
    checkpointed(tmp_path)
    path = tmp_path / CHECKPOINT_FILE
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    elif how == "foreign":
        save_file({"a": torch.ones(2)}, path)
    else:
        path.write_text("not a checkpoint")
    with pytest.raises(ModelError, match="damaged or foreign"):
        train(config(), tmp_path, resume=True)


def test_nothing_is_replaced_unasked(tmp_path):
    train(config(), tmp_path)
    with pytest.raises(ScenarioError, match=r"already holds card\.json"):
        train(config(), tmp_path)
    with pytest.raises(ScenarioError, match=r"nothing to resume: .* the model in it is finished"):
        train(config(), tmp_path, resume=True)
    train(config(seed=4), tmp_path, overwrite=True)
    assert load_card(tmp_path).training.seeds["training"] == 4


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [({"device": "tpu9"}, "device 'tpu9'"), ({"device": "mps"}, "allowed: cpu, cuda"), ({"minutes": 0.0}, "minutes=0")],
)
def test_wrong_arguments_are_refused(tmp_path, arguments, reason):
    with pytest.raises(ScenarioError, match=reason):
        train(config(), tmp_path, **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_missing_gpu_is_named(tmp_path):
    with pytest.raises(ScenarioError, match="finds no CUDA device here; use --device cpu"):
        train(config(), tmp_path, device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_runs_on_a_gpu(tmp_path):
    card = train(config(optimiser={"steps": 60, "precision": "bfloat16"}), tmp_path, device="cuda").card
    assert card is not None
    assert card.training.curve[-1]["loss"] < card.training.curve[0]["loss"]


def test_half_precision_trains_and_is_evaluated_in_full(tmp_path):
    card = train(config(optimiser={"steps": 40, "precision": "bfloat16"}), tmp_path).card
    assert card is not None
    assert card.training.curve[-1]["loss"] < card.training.curve[0]["loss"]
    assert all(tensor.dtype != torch.bfloat16 for tensor in load_model(tmp_path)[1].values())


def test_schedules():
    cosine = OptimiserSection(lr=2.0e-3, warmup=0.1, final_lr=0.1)
    assert learning_rate(cosine, 0.05) == pytest.approx(1e-3)
    assert learning_rate(cosine, 0.1) == pytest.approx(2e-3)
    assert learning_rate(cosine, 0.55) == pytest.approx(2e-3 * (0.1 + 0.9 / 2))
    assert learning_rate(cosine, 1.0) == pytest.approx(2e-4)
    steps = OptimiserSection(lr=1e-3, warmup=0.1, schedule="steps", drops=(0.5, 0.9))
    assert [learning_rate(steps, share) for share in (0.4, 0.5, 0.95)] == pytest.approx([1e-3, 1e-4, 1e-5])
    assert learning_rate(OptimiserSection(lr=1e-3, warmup=0, schedule="constant"), 0.99) == 1e-3


def test_a_configuration_file_is_read(tmp_path):
    assert load_config(toml(tmp_path / "tiny.toml")) == config()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[network.extra]\nx = 1", "extra: unknown field"),
        ("[colour]\nx = 1", "colour: unknown field"),
        ("= 3", "not a TOML file"),
    ],
)
def test_a_wrong_configuration_file_is_refused(tmp_path, text, reason):
    with pytest.raises(ScenarioError, match=reason):
        load_config(toml(tmp_path / "tiny.toml", text))


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"network": {"kind": "perceptron"}}, "'perceptron' is unknown"),
        ({"network": {"max_length": 9}}, "network.max_length=9 contradicts mixture.max_length=8"),
        ({"network": {"width": 3}}, "width: unknown field"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(tmp_path, sections, reason):
    with pytest.raises(ScenarioError, match=reason):
        train(config(**sections), tmp_path)


def test_a_missing_configuration_names_the_shipped_ones(tmp_path):
    with pytest.raises(ScenarioError, match=r"neither a file nor a shipped one \(.*vpl"):
        load_config(tmp_path / "missing.toml")


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_configurations_are_valid(name):
    shipped = load_config(name)
    assert shipped.name == name
    assert shipped.description


def test_models_run_without_gnu_radio_and_scenario_files():
    code = (
        "import sys\nsys.modules['gnuradio'] = None\n"
        "import semair.models.uad.train\nassert not [m for m in sys.modules if m.startswith('semair.flowgraphs')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def run_command(*words):
    return subprocess.Popen(
        [sys.executable, "-m", "semair.cli", "train", "uad", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_the_command_trains_stops_and_resumes(tmp_path):
    text = toml(tmp_path / "tiny.toml").read_text().replace("steps = 12", "steps = 400")
    (tmp_path / "tiny.toml").write_text(text.replace("seed = 3", "seed = 3\ncheckpoint_s = 0.0"))
    folder = tmp_path / "model"
    words = ("--config", str(tmp_path / "tiny.toml"), "--folder", str(folder), "--json")
    process = run_command(*words)
    deadline = time.monotonic() + 100
    while not (folder / CHECKPOINT_FILE).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    stopped = json.loads(out)
    assert not stopped["finished"]
    assert stopped["steps"] < 400
    assert "go on with --resume" in err
    process = run_command(*words, "--resume")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    done = json.loads(out)
    assert done["finished"]
    assert done["steps"] == 400
    assert [metric["conditions"]["length"] for metric in done["metrics"]] == [4, 8]
    assert load_card(folder).training.command == f"semair train uad --config {tmp_path / 'tiny.toml'}"


def test_the_command_refuses_in_one_line():
    process = run_command("--config", "missing")
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("error: training configuration 'missing' is neither")
    assert len(err.splitlines()) == 1

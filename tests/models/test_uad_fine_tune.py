"""Fine-tuning with recorded slots: what it learns, what it names, what it refuses, and that it resumes exactly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from semair.errors import ModelError, ScenarioError
from semair.models.cards import load_card, load_model
from semair.models.statistics import mean_ci95
from semair.models.uad.fine_tune import RecordedSlots, fine_tune, slot_errors, weights_folder
from semair.models.uad.simulate import draw_batch
from semair.models.uad.train import TrainingConfig, build_network, train

TINY = {
    "name": "tiny",
    "seed": 3,
    "network": {
        "kind": "heterogeneous", "d_model": 24, "n_layers": 2, "n_heads": 2, "head_dim": 12, "ffn": 24,
    },
    "mixture": {
        "n_users": 10, "max_length": 8, "lengths": [4, 8], "snapshots": [16], "activity": 0.2, "pool": "fresh",
    },
    "optimiser": {"steps": 30, "batch": 16, "lr": 3e-3},
    "validation": {"every": 30, "slots": 20, "test_slots": 30},
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A trained network; read only."""
    folder = tmp_path_factory.mktemp("tiny")
    train(TrainingConfig.model_validate(TINY), folder)
    return folder


def slots(seed: int, n: int = 40, pool: int = 0) -> RecordedSlots:
    """Slots of two lengths on an odd bench: every snapshot is the same."""
    rng = np.random.default_rng(seed)
    preambles = (np.random.default_rng(pool).choice([-1, 1], (8, 10)) * (1 + 0j)).astype(np.complex64)
    y, lengths, active, noise = np.zeros((2 * n, 8, 16), np.complex64), [], [], []
    for k, length in enumerate((4, 8)):
        batch = draw_batch(rng, preambles, n, length, 16, 0.2, 10.0)
        y[k * n : (k + 1) * n, :length] = batch.y[:, :, :1]
        lengths += [length] * n
        active.append(batch.active)
        noise.append(batch.noise_power)
    return RecordedSlots(
        f"run-{seed}", f"{seed:0128x}", y, np.array(lengths), np.concatenate(noise).astype(np.float32),
        np.concatenate(active), preambles, 0.2,
    )  # fmt: skip


def test_comparison_is_that_of_the_two_networks_on_the_runs_kept_out(tiny, tmp_path):
    kept = [slots(3), slots(4, 25)]
    done, rows = fine_tune(tiny, [slots(1), slots(2)], kept, tmp_path / "new", steps=8, command="the command")
    assert done.steps == 8
    card, tensors = load_model(tmp_path / "new", "uad")
    assert card.name == "tiny-tuned"
    assert card.training.command == "the command"
    assert card.details["fine_tuned_from"] == {"name": "tiny", "sha256": load_card(tiny).weights.sha256}
    assert [one["sha512"] for one in card.details["recordings"]] == [slots(1).sha512, slots(2).sha512]
    assert [one["slots"] for one in card.details["kept_out"]] == [80, 50]
    config = TrainingConfig.model_validate(TINY)
    wrong = []
    for weights in (load_model(tiny)[1], tensors):
        network = build_network(config).eval()
        network.load_state_dict(weights)
        per_slot = [slot_errors(network, one) for one in kept]
        wrong.append(np.concatenate([(found[0] + found[1]) / 10 for found in per_slot]))
    assert not np.array_equal(*wrong)
    overall = rows[0]
    assert overall.length is None and overall.slots == 130
    assert overall.before == mean_ci95(wrong[0], 0.1)
    assert overall.after == mean_ci95(wrong[1], 0.1)
    change = stats.ttest_rel(wrong[1], wrong[0]).confidence_interval(0.95)
    assert tuple(overall.change) == pytest.approx((np.mean(wrong[1] - wrong[0]), change.low, change.high))
    lengths = np.concatenate([one.length for one in kept])
    assert [row.length for row in rows[1:]] == [4, 8]
    for row in rows[1:]:
        assert row.after.value == pytest.approx(wrong[1][lengths == row.length].mean())
    assert card.details["comparison"] == [row.as_dict() for row in rows]
    assert [metric.conditions["length"] for metric in card.metrics] == [4, 8]


def test_errors_are_counted_slot_by_slot(tiny):
    config = TrainingConfig.model_validate(TINY)
    network = build_network(config).eval()
    network.load_state_dict(load_model(tiny)[1])
    one = slots(5, 6)
    found = slot_errors(network, one)
    for k in range(12):
        batch = one.batch(np.array([k]))
        with torch.inference_mode():
            logits = network(*network.prepare(batch.y, batch.preambles, batch.noise_power, batch.activity))[0].numpy()
        decided = logits > 0
        truth = one.active[k]
        assert found[:, k].tolist() == [(~decided & truth).sum(), (decided & ~truth).sum(), truth.sum()]


def test_what_is_odd_about_a_bench_is_learned(tiny, tmp_path):
    _, rows = fine_tune(
        tiny, [slots(1, 300)], [slots(2, 300)], tmp_path, steps=150, share=0.9, lr=3e-3
    )  # fmt: skip
    # One snapshot instead of sixteen: what was learned of sixteen is far too sure of itself.
    assert rows[0].change.high < 0


def test_resumes_exactly(tiny, tmp_path, monkeypatch):
    from semair.models.uad.train import TrainingRun

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = ([slots(1)], [slots(2)])
    fine_tune(tiny, *arguments, whole, steps=6)
    advance = TrainingRun.advance

    def interrupt(self):
        advance(self)
        if self.step == 3:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(TrainingRun, "advance", interrupt)
    done, rows = fine_tune(tiny, *arguments, parts, steps=6)
    assert done.card is None and rows == [] and done.steps == 3
    monkeypatch.setattr(TrainingRun, "advance", advance)
    with pytest.raises(ModelError, match="other weights or recordings"):
        fine_tune(tiny, [slots(7)], [slots(2)], parts, steps=6, resume=True)
    done, _ = fine_tune(tiny, *arguments, parts, steps=6, resume=True)
    assert done.card is not None
    one, other = load_model(whole)[1], load_model(parts)[1]
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_cannot_be_trained_with_is_refused(tiny, tmp_path):
    cases = [
        (([slots(1)], [slots(1)]), {}, "run-1: trained with and kept out"),
        (([slots(1)], []), {}, "others to judge by"),
        (([slots(1)], [slots(2)]), {"share": 0.0}, "share=0"),
        (([replace(slots(1), preambles=slots(1).preambles[:, :9])], [slots(2)]), {}, r"\(8, 9\).*\(8, 10\)"),
    ]
    for sets, options, word in cases:
        with pytest.raises(ScenarioError, match=word):
            fine_tune(tiny, *sets, tmp_path, steps=2, **options)
    with pytest.raises(ModelError, match="no model"):
        fine_tune(tmp_path, [slots(1)], [slots(2)], tmp_path / "x", steps=2)


def test_another_pool_than_the_networks_own_is_refused(tmp_path):
    data = {**TINY, "mixture": {**TINY["mixture"], "pool": "fixed"}, "optimiser": {"steps": 2, "batch": 4}}
    train(TrainingConfig.model_validate(data), tmp_path / "fixed")
    with pytest.raises(ScenarioError, match="another pool"):
        fine_tune(tmp_path / "fixed", [slots(1)], [slots(2)], tmp_path / "x", steps=2)


def test_weights_by_name_and_by_path(tiny):
    assert weights_folder("uad-lab") == weights_folder("lab")
    assert weights_folder(str(tiny)) == tiny
    with pytest.raises(ScenarioError, match="uad-lab"):
        weights_folder("nothing")

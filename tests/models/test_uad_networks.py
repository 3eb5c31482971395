"""Networks: the registry, and the heterogeneous Transformer against a direct evaluation of its formulas."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from semair.errors import ModelError, ScenarioError
from semair.models.cards import CARD_FILE, Card, NetworkSection, TrainingSection, save_model
from semair.models.uad import networks
from semair.models.uad.draws import Mixture, draw

SMALL = {
    "n_users": 10, "max_length": 6, "lengths": (3, 6), "d_model": 12, "n_layers": 3, "n_heads": 2, "head_dim": 5,
    "ffn": 7, "plam_hidden": 4,
}  # fmt: skip


def small(seed=1, **fields):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = networks.build("heterogeneous", {**SMALL, **fields})
    return network.eval()


def slots(n=4, length=5, **fields):
    mixture = Mixture(n_users=10, max_length=6, lengths=(6,), snapshots=(9,), activity=0.2, **fields)
    pool = mixture.fixed_pool() if mixture.pool == "fixed" else None
    return draw(mixture, pool, n, torch.Generator().manual_seed(1), length=length)


def prepared(network, drawn):
    return network.prepare(drawn.y, drawn.preambles, drawn.noise_power, drawn.activity)


def linear(name, weights, x):
    bias = weights.get(f"{name}.bias")
    return x @ weights[f"{name}.weight"].T + (0 if bias is None else bias)


def softmax(x):
    shifted = np.exp(x - x.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def layer_norm(name, weights, x):
    centred = x - x.mean(-1, keepdims=True)
    unit = centred / np.sqrt(np.mean(centred**2, -1, keepdims=True) + 1e-5)
    return unit * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def reference(network, preambles, covariance, length):
    """One slot, token by token and head by head, in double precision. Returns float64 (user,)."""
    c = network.config
    w = {name: tensor.detach().double().numpy() for name, tensor in network.state_dict().items()}
    tokens = [linear("embed_preambles", w, p) for p in preambles] + [linear("embed_received", w, covariance)]
    names = ["users"] * c.n_users + ["received"]
    for index in range(c.n_layers):
        base = f"layers.{index}."
        q, k, v = (
            np.array([linear(f"{base}{n}.{what}", w, t) for n, t in zip(names, tokens, strict=True)]).reshape(
                len(tokens), c.n_heads, c.head_dim
            )
            for what in ("query", "key", "value")
        )
        mixed = np.zeros_like(q)
        for head in range(c.n_heads):
            mixed[:, head] = softmax(q[:, head] @ k[:, head].T / math.sqrt(c.head_dim)) @ v[:, head]
        for i, n in enumerate(names):
            t = tokens[i] + linear(f"{base}{n}.out", w, mixed[i].ravel())
            t = layer_norm(f"{base}{n}_norm1", w, t)
            hidden = np.maximum(linear(f"{base}{n}_ffn.0", w, t), 0)
            tokens[i] = layer_norm(f"{base}{n}_norm2", w, t + linear(f"{base}{n}_ffn.2", w, hidden))
        if c.plam and index < c.n_layers - 1:
            features = np.append(np.mean(tokens, axis=0), length)
            hidden = np.maximum(linear(f"plams.{index}.gate.0", w, features), 0)
            gate = 1 / (1 + np.exp(-linear(f"plams.{index}.gate.2", w, hidden)))
            tokens = [t * gate for t in tokens]
    query = linear("decoder.query", w, tokens[-1]).reshape(c.n_heads, c.head_dim)
    keys, values = (
        np.array([linear(f"decoder.{n}_{what}", w, t) for n, t in zip(names, tokens, strict=True)]).reshape(
            len(tokens), c.n_heads, c.head_dim
        )
        for what in ("key", "value")
    )
    mixed = [
        softmax(keys[:, head] @ query[head] / math.sqrt(c.head_dim)) @ values[:, head] for head in range(c.n_heads)
    ]
    summary = linear("decoder.correlate", w, linear("decoder.out", w, np.concatenate(mixed)))
    return c.clip * np.tanh(np.array(tokens[:-1]) @ summary / math.sqrt(c.d_model))


@pytest.mark.parametrize("fields", [{}, {"plam": False}, {"covariance": "raw"}, {"n_layers": 1}])
def test_forward_computes_the_published_formulas(fields):
    network = small(**fields)
    x = prepared(network, slots())
    got = network(*x).detach().numpy()
    assert got.shape == (4, 10)
    assert got.dtype == np.float32
    for i in range(4):
        expected = reference(network, *(t[i].double().numpy() for t in x[:2]), float(x[2][i, 0]))
        np.testing.assert_allclose(got[i], expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("fields", [{}, {"plam": False, "norm": "batch"}])
def test_training_uses_the_same_formulas_with_a_shared_pool(fields):
    network = small(**fields)
    drawn = slots()
    x = prepared(network, drawn)
    assert x[0].stride(0) == 0
    expected = torch.nn.functional.binary_cross_entropy_with_logits(network(*x), drawn.active.float())
    apart = network.loss(drawn.active, x[0].contiguous(), *x[1:])
    torch.testing.assert_close(network.loss(drawn.active, *x), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(apart, expected, rtol=1e-5, atol=0)


def test_input_is_the_padded_covariance_of_what_was_received():
    network = small(covariance="raw")
    drawn = slots(length=4)
    preambles, covariance, length = prepared(network, drawn)
    y = drawn.y[2].numpy().astype(complex)
    padded = np.zeros((2, 6, 6))
    c = y @ y.conj().T / 9
    padded[0, :4, :4], padded[1, :4, :4] = c.real, c.imag
    np.testing.assert_allclose(covariance[2].numpy(), padded.ravel(), rtol=1e-4, atol=1e-5)
    s = drawn.preambles[:, 7].numpy()
    np.testing.assert_allclose(preambles[2, 7].numpy(), np.concatenate([s.real, s.imag]), rtol=1e-6)
    assert length[2, 0] == pytest.approx((4 - 3) / (6 - 3))


def test_power_normalisation_keeps_the_level_in_one_feature():
    network = small()
    drawn = slots(length=4)
    one = prepared(network, drawn)[1]
    louder = network.prepare(10 * drawn.y, drawn.preambles, drawn.noise_power, drawn.activity)[1]
    np.testing.assert_allclose(one[:, :-1].numpy(), louder[:, :-1].numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose((louder - one)[:, -1].numpy(), np.log(100), rtol=1e-4)
    power = drawn.y[0].abs().square().mean()
    assert float(one[0, -1]) == pytest.approx(float(power.log()), rel=1e-4)


def test_a_silent_slot_gives_finite_numbers():
    network = small()
    drawn = slots()
    x = network.prepare(torch.zeros_like(drawn.y), drawn.preambles, None, 0.2)
    assert all(bool(t.isfinite().all()) for t in x)
    assert bool(network(*x).isfinite().all())


def test_every_slot_may_have_its_own_pool():
    network = small()
    drawn = slots(pool="fresh")
    x = prepared(network, drawn)
    assert x[0].shape == (4, 10, 12)
    for i in range(4):
        alone = network.prepare(drawn.y[i : i + 1], drawn.preambles[i], None, drawn.activity)
        torch.testing.assert_close(network(*alone)[0], network(*x)[i], rtol=1e-4, atol=1e-5)


def test_users_in_another_order_get_their_scores_in_that_order():
    network = small()
    drawn = slots()
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    turned = network.prepare(drawn.y, drawn.preambles[:, order], None, drawn.activity)
    torch.testing.assert_close(network(*turned), network(*prepared(network, drawn))[:, order], rtol=1e-4, atol=1e-5)


def test_plam_makes_the_scores_depend_on_the_length_told():
    network, without = small(), small(plam=False)
    x = prepared(network, slots())
    other = (*x[:2], x[2] + 0.5)
    assert (network(*other) - network(*x)).abs().max() > 1e-4
    assert torch.equal(without(*other), without(*x))
    assert sum("plam" in name for name in network.state_dict()) == 2 * 4  # behind every layer but the last


def test_plam_may_begin_by_letting_everything_pass():
    network = small(plam_bias=30.0)
    # Gates that are 1 leave the network without PLAM.
    without = small(plam=False)
    without.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("plams.")})
    x = prepared(network, slots())
    torch.testing.assert_close(network(*x), without(*x))


def test_weighted_loss_weighs_both_classes_alike_and_keeps_posterior_log_odds():
    network, plain = small(loss="weighted", activity=0.2), small()
    drawn = slots()
    x = prepared(network, drawn)
    balanced = plain(*x)
    torch.testing.assert_close(network(*x), balanced - math.log(4.0))
    p = torch.sigmoid(balanced.double())
    a = drawn.active.double()
    expected = -2 * (0.8 * a * p.log() + 0.2 * (1 - a) * (1 - p).log()).mean()
    assert network.loss(drawn.active, *x).item() == pytest.approx(expected.item(), rel=1e-5)


def test_batch_norm_has_statistics_per_token_and_shared_gain():
    network = small(norm="batch").train()
    norm = network.layers[0].users_norm1
    tokens = torch.randn((50, 10, 12), generator=torch.Generator().manual_seed(1)) * torch.arange(1, 11)[:, None] + 3
    out = norm(tokens)
    np.testing.assert_allclose(out.mean(0).detach().numpy(), 0, atol=1e-5)
    np.testing.assert_allclose(out.var(0, unbiased=False).detach().numpy(), 1, atol=1e-3)
    assert norm.gain.shape == (12,)


def test_scores_stay_within_the_clip():
    network = small(clip=3.0)
    with torch.no_grad():
        network.decoder.correlate.weight.mul_(1000)
    scores = network(*prepared(network, slots()))
    assert scores.abs().max() <= 3.0
    assert scores.abs().max() > 2.9


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"y": torch.zeros((2, 7, 4), dtype=torch.complex64)}, "7 symbols; this network takes 1 to 6"),
        ({"y": torch.zeros((2, 5, 4))}, "needs complex"),
        ({"y": torch.zeros((5, 4), dtype=torch.complex64)}, "needs complex"),
        ({"preambles": torch.zeros((5, 10), dtype=torch.complex64)}, r"this network takes \(6, user\)"),
        ({"preambles": torch.zeros((6, 11), dtype=torch.complex64)}, "made for 10"),
        ({"preambles": torch.zeros((3, 6, 10), dtype=torch.complex64)}, "3 pools of preambles for 2 slots"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change, reason):
    arguments = {
        "y": torch.zeros((2, 5, 4), dtype=torch.complex64),
        "preambles": torch.zeros((6, 10), dtype=torch.complex64),
        **change,
    }
    with pytest.raises(ValueError, match=reason):
        small().prepare(noise_power=None, activity=0.1, **arguments)


def test_kinds_are_found_and_unknown_ones_refused():
    assert networks.available()["heterogeneous"].kind == "heterogeneous"
    with pytest.raises(ScenarioError, match=r"'perceptron' is unknown; choose one of: .*heterogeneous"):
        networks.build("perceptron")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"d_model": 0}, "d_model: given 0"),
        ({"colour": 1}, "colour: unknown field"),
        ({"norm": "group"}, "norm: given 'group', allowed: 'layer' or 'batch'"),
        ({"lengths": (8, 40)}, r"lengths=\[8, 40\]"),
    ],
)
def test_a_wrong_configuration_is_refused(fields, reason):
    with pytest.raises(ScenarioError, match=reason):
        networks.build("heterogeneous", fields)


def saved(folder, network, **section):
    card = Card(
        name="small",
        task="uad",
        network=NetworkSection(
            **{"kind": "heterogeneous", "config": network.config.model_dump(mode="json"), "n_parameters": 1, **section}
        ),
        training=TrainingSection(command="x", steps=0, samples=0, time_s=0),
    )
    save_model(folder, card, network.state_dict())


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_a_saved_network_scores_the_same_bits(tmp_path, norm):
    network = small(norm=norm)
    saved(tmp_path, network)
    card, loaded = networks.load(tmp_path)
    assert not loaded.training
    assert loaded.config == network.config
    assert card.name == "small"
    x = prepared(network, slots())
    assert torch.equal(loaded(*x), network(*x))


def test_weights_that_do_not_fit_their_network_are_refused(tmp_path):
    network = small()
    saved(tmp_path, network, config={**network.config.model_dump(mode="json"), "d_model": 16})
    with pytest.raises(ModelError, match=r"do not fit the network of the card; .* needed"):
        networks.load(tmp_path)


def test_a_card_of_an_unknown_network_is_refused(tmp_path):
    saved(tmp_path, small(), kind="perceptron")
    with pytest.raises(ModelError, match="cannot be built: network kind 'perceptron' is unknown"):
        networks.load(tmp_path)


def test_a_model_of_another_task_is_refused(tmp_path):
    saved(tmp_path, small())
    data = json.loads((tmp_path / CARD_FILE).read_text())
    (tmp_path / CARD_FILE).write_text(json.dumps({**data, "task": "csi"}))
    with pytest.raises(ModelError, match="task 'csi'"):
        networks.load(tmp_path)

"""The likelihood network: its statistics against brute force, its invariances, and what it does with padding."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from semair.models.uad import networks  # noqa: E402
from semair.models.uad.preambles import qpsk_preambles  # noqa: E402
from semair.models.uad.simulate import draw_batch  # noqa: E402


def make_network(**fields):
    torch.manual_seed(0)
    network = networks.build("likelihood", fields).eval()
    # The head starts at zero; anything else shows what attention does.
    torch.nn.init.normal_(network.head.weight)
    return network


def make_slots(n=6, n_users=40, length=8, n_snapshots=48, activity=0.15, seed=1, **kwargs):
    rng = np.random.default_rng(seed)
    preambles = qpsk_preambles(n_users, 12, rng)
    return preambles, draw_batch(rng, preambles, n, length, n_snapshots, activity, 10.0, **kwargs)


def statistics(network, preambles, batch, activity=0.15, known=True):
    return network.prepare_numpy(batch.y, preambles, batch.noise_power if known else None, activity)


def objective(chosen, powers, noise, sent, y, log_odds):
    """f(a) from its definition, with numpy's own inverse and determinant."""
    length, n_snapshots = y.shape
    sigma = noise * np.eye(length) + (sent[:, chosen] * powers[chosen]) @ sent[:, chosen].conj().T
    covariance = y @ y.conj().T / n_snapshots
    fit = np.trace(np.linalg.solve(sigma, covariance)).real
    return n_snapshots * (np.linalg.slogdet(sigma)[1] + fit) + log_odds * chosen.sum()


@pytest.mark.parametrize("known", [True, False])
def test_costs_of_flips_and_pairs_are_those_of_the_definition(known):
    network = make_network(max_length=12, doubt=1e9)
    preambles, batch = make_slots()
    _, valid, edges, slot, index, rest = statistics(network, preambles, batch, known=known)
    checked = 0
    for k in range(len(batch.y)):
        if slot[k, 10] > 0:  # powers of silent users then differ from the gain
            continue
        received = np.mean(np.abs(batch.y[k]) ** 2)
        noise = received / np.exp(slot[k, 7] + 2.4)
        gain = noise * np.exp(slot[k, 3])
        if known:
            assert noise == pytest.approx(batch.noise_power[k], rel=1e-4)
        sent = preambles[:8].astype(complex)
        y = batch.y[k].astype(complex)
        powers = np.full(preambles.shape[1], gain)
        chosen = rest[k] > 0
        log_odds = np.log(0.85 / 0.15)
        here = objective(chosen, powers, noise, sent, y, log_odds)
        candidates = index[k][valid[k] > 0]
        for n in candidates:
            other = chosen.copy()
            other[n] ^= True
            cost = objective(other, powers, noise, sent, y, log_odds) - here
            assert (1 if chosen[n] else -1) * rest[k, n] == pytest.approx(cost, rel=2e-3, abs=2e-2)
            assert cost > -1e-2  # no flip improves the set
        assert chosen[candidates].sum() == chosen.sum()
        for a, b in itertools.combinations(range(len(candidates)), 2):
            other = chosen.copy()
            other[candidates[[a, b]]] ^= True
            cost = objective(other, powers, noise, sent, y, log_odds) - here
            assert cost > -1e-2  # nor does a pair of flips
            seen = edges[k, a, b, 3]
            assert seen == edges[k, b, a, 3]
            if seen > 1e-6:
                assert -4 * np.log(seen) == pytest.approx(cost, rel=2e-3, abs=2e-2)
        checked += 1
    assert checked >= 3


def test_statistics_do_not_depend_on_the_unit_of_the_samples():
    network = make_network(max_length=12)
    preambles, batch = make_slots()
    plain = network.prepare_numpy(batch.y, preambles, batch.noise_power, 0.15)
    scaled = network.prepare_numpy(np.complex64(100) * batch.y, preambles, 1e4 * batch.noise_power, 0.15)
    for one, other in zip(plain, scaled, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4)


def test_scores_follow_the_users_when_the_pool_is_reordered():
    network = make_network(max_length=12)
    preambles, batch = make_slots()
    order = np.random.default_rng(3).permutation(preambles.shape[1])
    with torch.inference_mode():
        plain = network(*map(torch.from_numpy, statistics(network, preambles, batch)))
        mixed = network(*map(torch.from_numpy, statistics(network, preambles[:, order], batch)))
    np.testing.assert_allclose(plain[:, order], mixed, rtol=1e-3, atol=1e-3)


def test_a_slot_is_analysed_alike_alone_and_in_a_batch_and_on_tensors():
    network = make_network(max_length=12)
    preambles, batch = make_slots(n=20)
    together = statistics(network, preambles, batch)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        tensors = network.prepare(
            torch.from_numpy(batch.y), torch.from_numpy(preambles), torch.from_numpy(batch.noise_power), 0.15
        )
    finally:
        torch.set_num_threads(n_threads)
    for one, other in zip(together, tensors, strict=True):
        np.testing.assert_array_equal(one, other.numpy())
    for k in (0, 7, 19):
        tokens, valid, edges, slot, index, rest = network.prepare_numpy(
            batch.y[k : k + 1], preambles, batch.noise_power[k : k + 1], 0.15
        )
        used = tokens.shape[1]
        assert valid.all()
        np.testing.assert_array_equal(tokens[0], together[0][k, :used])
        np.testing.assert_array_equal(edges[0], together[2][k, :used, :used])
        np.testing.assert_array_equal(slot[0], together[3][k])
        np.testing.assert_array_equal(index[0], together[4][k, :used])
        np.testing.assert_array_equal(rest[0], together[5][k])


def test_users_that_were_never_candidates_are_judged_by_the_set_that_was_found():
    """Few strong users among many: the first proposal is far from the set that the search ends with."""
    network = make_network(max_length=12, least_candidates=4, most_candidates=24)
    preambles, batch = make_slots(n=60, n_users=100, length=12, n_snapshots=8, activity=0.06, power_spread_db=12.0)
    rest = statistics(network, preambles, batch, activity=0.06)[5]
    assert ((rest > 0).sum(1) <= 24).all()
    assert ((rest > 0) != batch.active).mean() < 0.02


def test_each_slot_may_have_a_pool_of_its_own():
    network = make_network(max_length=12)
    one, first = make_slots(n=1, seed=4)
    two, second = make_slots(n=1, seed=5)
    y = np.concatenate([first.y, second.y])
    noise = np.concatenate([first.noise_power, second.noise_power])
    together = network.prepare_numpy(y, np.stack([one, two]), noise, 0.15)
    for k, (pool, batch) in enumerate(((one, first), (two, second))):
        np.testing.assert_array_equal(together[5][k], statistics(network, pool, batch)[5][0])


def test_padding_with_candidates_that_are_not_there_changes_nothing():
    network = make_network(max_length=12)
    preambles, batch = make_slots()
    tokens, valid, edges, slot, index, rest = map(torch.from_numpy, statistics(network, preambles, batch))
    more = 5
    with torch.inference_mode():
        plain = network(tokens, valid, edges, slot, index, rest)
        padded = network(
            torch.nn.functional.pad(tokens, (0, 0, 0, more), value=3.0),
            torch.nn.functional.pad(valid, (0, more)),
            torch.nn.functional.pad(edges, (0, 0, 0, more, 0, more), value=2.0),
            slot,
            torch.nn.functional.pad(index, (0, more), value=preambles.shape[1]),
            rest,
        )
    torch.testing.assert_close(plain, padded, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"width": 24, "n_layers": 3, "n_heads": 2, "feedforward": 20, "edge_width": 3},
        {"array_shape": (6, 8)},
        {"doubt": 1.0, "least_candidates": 4},
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_compiled_scores_are_those_of_preparation_and_torch(fields, known):
    network = make_network(max_length=12, **fields)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    preambles, batch = make_slots(n=12)
    noise = batch.noise_power if known else None
    with torch.inference_mode():
        prepared = network.prepare_numpy(batch.y, preambles, noise, 0.15)
        expected = network(*map(torch.from_numpy, prepared)).numpy()
    compiled = network.compiled()
    together = compiled(batch.y, preambles, noise, 0.15)
    np.testing.assert_allclose(together, expected, rtol=2e-4, atol=2e-4)
    alone = compiled(batch.y[3:4], preambles, noise[3:4] if known else None, 0.15)
    np.testing.assert_array_equal(alone[0], together[3])


def test_compiled_scores_of_a_silent_slot_say_that_nobody_is_there():
    network = make_network(max_length=12)
    preambles, batch = make_slots(n=3)
    batch.y[1] = 0
    scores = network.compiled()(batch.y, preambles, batch.noise_power, 0.15)
    assert np.isneginf(scores[1]).all()
    assert np.isfinite(scores[[0, 2]]).all()


def test_an_unknown_noise_power_is_found_where_there_are_more_symbols_than_users():
    network = make_network(max_length=12)
    preambles, batch = make_slots(n=40, length=12, n_snapshots=64, activity=0.1)
    slot = statistics(network, preambles, batch, activity=0.1, known=False)[3]
    noise = np.mean(np.abs(batch.y) ** 2, axis=(1, 2)) / np.exp(slot[:, 7] + 2.4)
    error_db = 10 * np.log10(noise / batch.noise_power)
    assert np.abs(np.median(error_db)) < 1.0
    assert np.percentile(np.abs(error_db), 90) < 3.0


def test_the_search_alone_is_right_where_the_problem_is_easy():
    network = make_network(max_length=12)
    preambles, batch = make_slots(n=50, n_users=24, length=12, n_snapshots=64, activity=0.1, power_spread_db=3.0)
    rest = statistics(network, preambles, batch, activity=0.1)[5]
    np.testing.assert_array_equal(rest > 0, batch.active)


@pytest.mark.parametrize("n_users", [3, 40])
@pytest.mark.parametrize("level", [0.0, 1e-20, 1e20])
def test_silence_and_extreme_levels_give_finite_scores(level, n_users):
    network = make_network(max_length=12)
    preambles = qpsk_preambles(n_users, 12, np.random.default_rng(0))
    y = np.full((2, 8, 16), level, np.complex64)
    for noise in (None, np.full(2, max(level, 1e-30))):
        with torch.inference_mode():
            scores = network(*map(torch.from_numpy, network.prepare_numpy(y, preambles, noise, 0.1)))
        assert torch.isfinite(scores).all()


def test_shapes_that_do_not_fit_are_refused():
    network = make_network(max_length=12)
    preambles, batch = make_slots(n=2)
    y, pool = torch.from_numpy(batch.y), torch.from_numpy(preambles)
    with pytest.raises(ValueError, match="12"):
        network.prepare(y, pool[:10], None, 0.1)
    with pytest.raises(ValueError, match="complex"):
        network.prepare(y.real, pool, None, 0.1)


def test_a_step_of_training_lowers_the_loss_on_its_batch():
    network = make_network(max_length=12)
    preambles, batch = make_slots(n=64, length=6)
    prepared = tuple(map(torch.from_numpy, statistics(network, preambles, batch)))
    active = torch.from_numpy(batch.active)
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = network.loss(active, *prepared)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def reference_beam_powers(z, noise, gain, sent, rest, n_steps=20):
    """Expectation maximisation over azimuth beams, and what removing each user would cost, from the formulas."""
    length, n_up, n_along = z.shape
    profile = np.maximum(np.mean(np.abs(z) ** 2, axis=(0, 2)) - noise, 0)
    keep = profile > 0.05 * profile.max()
    profile = profile / profile.sum() * n_up
    powers = np.repeat(gain / (1 + np.exp(-np.clip(rest / 8, -4, 4)))[:, None], n_along, 1)

    def inverse(a, e):
        return np.linalg.inv(noise * np.eye(length) + (sent * (powers[:, a] * profile[e])) @ sent.conj().T)

    for _ in range(n_steps):
        fresh = np.zeros_like(powers)
        for a in range(n_along):
            for e in np.flatnonzero(keep):
                p = powers[:, a] * profile[e]
                whitened = sent.conj().T @ inverse(a, e)
                mean = p * (whitened @ z[:, e, a])
                variance = p - p**2 * np.sum(whitened * sent.T, 1).real
                fresh[:, a] += (np.abs(mean) ** 2 + variance) / profile[e] / keep.sum()
        powers = 0.5 * fresh + 0.25 * (np.roll(fresh, 1, 1) + np.roll(fresh, -1, 1))
    cost = np.zeros(len(rest))
    for a in range(n_along):
        for e in np.flatnonzero(keep):
            q = inverse(a, e)
            full = np.trace(q @ np.outer(z[:, e, a], z[:, e, a].conj())).real - np.linalg.slogdet(q)[1]
            for k in range(len(rest)):
                without = np.linalg.inv(q) - powers[k, a] * profile[e] * np.outer(sent[:, k], sent[:, k].conj())
                left = (z[:, e, a].conj() @ np.linalg.solve(without, z[:, e, a])).real + np.linalg.slogdet(without)[1]
                cost[k] += left - full
    return powers, cost


def test_powers_in_the_beams_are_those_of_the_formulas():
    network = make_network(max_length=12, array_shape=(2, 8), least_candidates=16, doubt=1e9)
    preambles, batch = make_slots(n=3, n_users=30, n_snapshots=16)
    tokens, valid, edges, slot, index, rest = statistics(network, preambles, batch)
    for k in range(3):
        count = int(valid[k].sum())
        users = index[k, :count]
        z = np.fft.fft2(batch.y[k].astype(complex).reshape(8, 2, 8), norm="ortho")
        noise = batch.noise_power[k]
        powers, cost = reference_beam_powers(
            z, noise, noise * np.exp(slot[k, 3]), preambles[:8, users].astype(complex), rest[k, users]
        )
        shares = powers / powers.mean(1, keepdims=True)
        np.testing.assert_allclose(2 * np.sinh(tokens[k, :count, -5]), cost, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(tokens[k, :count, -1], shares.max(1) / 8, rtol=1e-3)
        overlap = np.sqrt(powers) @ np.sqrt(powers).T / 8
        overlap /= np.sqrt(np.outer(powers.mean(1), powers.mean(1)))
        np.testing.assert_allclose(edges[k, :count, :count, -1], overlap, rtol=1e-3)


def test_users_from_few_directions_are_told_apart_by_the_beams():
    """Users heard in one azimuth beam each: the beams alone separate the active ones from the others."""
    rng = np.random.default_rng(6)
    network = make_network(max_length=12, array_shape=(8, 8), least_candidates=48, doubt=1e9)
    preambles = qpsk_preambles(64, 12, rng)

    def one_beam(rng, n_samples, n_users, n_snapshots):
        fading = (rng.standard_normal((n_samples, n_users)) + 1j * rng.standard_normal((n_samples, n_users))) / 2**0.5
        beam = rng.integers(8, size=(n_samples, n_users))
        along = np.exp(2j * np.pi * beam[..., None] * np.arange(8) / 8)
        gains = (1.5 + fading)[..., None, None] * np.ones((8, 1)) * along[:, :, None] / 3.25**0.5
        return gains.reshape(n_samples, n_users, n_snapshots)

    batch = draw_batch(rng, preambles, 60, 8, 64, 0.15, 10.0, channel=one_beam)
    tokens, _, _, _, index, rest = network.prepare_numpy(batch.y, preambles, batch.noise_power, 0.15)
    cost = np.full((60, 65), -1.0)  # padding writes to one user more than there are
    np.put_along_axis(cost, index, tokens[:, :, -5], 1)
    cost = cost[:, :64]

    def least_error(scores):
        return min((((scores > t) != batch.active).mean()) for t in np.quantile(scores, np.linspace(0.5, 0.99, 100)))

    assert least_error(cost) < 0.7 * least_error(rest)


def test_another_number_of_antennas_than_the_array_has_is_refused():
    network = make_network(max_length=12, array_shape=(8, 8))
    preambles, batch = make_slots(n=2)
    with pytest.raises(ValueError, match="48 snapshots; this network is for an array of 8 x 8"):
        statistics(network, preambles, batch)

"""Activity detectors: the contract all share, and each one against an independent reference."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from semair.errors import ScenarioError
from semair.models.uad import detectors
from semair.models.uad.detectors import base
from semair.models.uad.preambles import qpsk_preambles
from semair.models.uad.simulate import Batch, complex_normal, draw_batch

NAMES = ("cd", "gmmv-amp", "map-search", "somp")
ACTIVITY = 0.1


@pytest.fixture
def pool(rng) -> np.ndarray:
    return qpsk_preambles(40, 20, rng)


def draw(rng, pool, length=16, n_samples=6, n_snapshots=32, activity=ACTIVITY, snr_db=10.0) -> Batch:
    return draw_batch(rng, pool, n_samples, length, n_snapshots, activity, snr_db)


def likelihood(y, noise_power, preambles, gamma):
    """log|Sigma| + tr(Sigma^-1 C) of one sample, evaluated directly."""
    y = y.astype(complex)
    s = preambles[: len(y)].astype(complex)
    sigma = (s * gamma) @ s.conj().T + noise_power * np.eye(len(y))
    return np.linalg.slogdet(sigma)[1] + np.trace(np.linalg.solve(sigma, y @ y.conj().T)).real / y.shape[1]


def log_posterior_cost(y, noise_power, preambles, active, gain, activity):
    """f(a) of the search, evaluated directly."""
    log_odds = np.log((1 - activity) / activity)
    return y.shape[1] * likelihood(y, noise_power, preambles, gain * active) + log_odds * np.sum(active)


# The contract


def test_every_detector_is_discovered():
    assert set(NAMES) <= set(detectors.available())
    for name, kind in detectors.available().items():
        assert kind.name == name
        assert issubclass(kind, detectors.Detector)


def test_a_new_module_is_a_new_detector(tmp_path, monkeypatch):
    (tmp_path / "energy.py").write_text(
        "from semair.models.uad.detectors.base import Detector\n"
        "class Energy(Detector):\n"
        "    name = 'energy'\n"
        "    thresholds = {1: 0.5}\n"
        "    def _scores(self, y, noise_power):\n"
        "        return abs(self.preambles[:y.shape[1]].conj().T @ y).sum(axis=2)\n"
    )
    monkeypatch.setattr(detectors, "__path__", [*detectors.__path__, str(tmp_path)])
    detectors._discovered.cache_clear()
    try:
        assert "energy" in detectors.available()
        found = detectors.make("energy", np.ones((2, 3)), 0.1).detect(np.ones((1, 2, 4)), 1.0)
        assert found.active.all()
    finally:
        detectors._discovered.cache_clear()


def test_unknown_name_and_option_say_what_is_known(pool):
    with pytest.raises(ScenarioError, match=r"'omp' is unknown.*cd.*somp"):
        detectors.make("omp", pool, ACTIVITY)
    with pytest.raises(ScenarioError, match=r"no option sweeps.*gain.*max_sweeps"):
        detectors.make("cd", pool, ACTIVITY, sweeps=3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cd", {"gain": -1.0}),
        ("cd", {"tolerance": 0.0}),
        ("cd", {"max_sweeps": 0}),
        ("cd", {"max_sweeps": 2.5}),
        ("cd", {"seed": -1}),
        ("cd", {"threshold": np.nan}),
        ("map-search", {"max_moves": -1}),
        ("map-search", {"gain": np.inf}),
        ("gmmv-amp", {"damping": 1.0}),
        ("gmmv-amp", {"damping": -0.1}),
        ("gmmv-amp", {"iterations": 0}),
        ("somp", {"max_users": 0}),
    ],
)
def test_options_out_of_range(pool, name, options):
    with pytest.raises(ScenarioError, match=next(iter(options))):
        detectors.make(name, pool, ACTIVITY, **options)


@pytest.mark.parametrize(
    ("preambles", "activity"),
    [
        (np.ones(4), 0.1),
        (np.ones((0, 4)), 0.1),
        (np.full((2, 4), np.nan), 0.1),
        (np.zeros((2, 4)), 0.1),
        (np.ones((2, 4)), 0.0),
        (np.ones((2, 4)), 1.0),
    ],
)
def test_pool_and_activity_out_of_range(preambles, activity):
    with pytest.raises(ScenarioError, match=r"preambles|activity"):
        detectors.make("cd", preambles, activity)


def test_the_pool_is_copied():
    mine = np.ones((2, 3), np.complex64)
    detector = detectors.make("cd", mine, ACTIVITY)
    mine[:] = np.nan
    assert np.isfinite(detector.preambles).all()
    with pytest.raises(ValueError, match="read-only"):
        detector.preambles[0, 0] = 2


@pytest.mark.parametrize("name", NAMES)
def test_bad_input_is_named(name, pool):
    detector = detectors.make(name, pool, ACTIVITY)
    y = np.ones((2, 4, 3), np.complex64)
    broken = y.copy()
    broken[1, 2, 0] = np.nan
    endless = y.copy()
    endless[0, 0, 0] = np.inf
    for bad, noise, word in (
        (y[0], 1.0, "shape"),
        (y[:, :, :0], 1.0, "snapshot"),
        (y[:, :0], 1.0, "symbols"),
        (np.ones((1, 21, 3)), 1.0, "21 symbols"),
        (broken, 1.0, "NaN"),
        (endless, 1.0, "infinite"),
        (y, 0.0, "positive"),
        (y, -1.0, "positive"),
        (y, np.nan, "finite"),
        (y, np.ones(3), "one value per sample"),
        (y, np.ones((2, 1)), "one value per sample"),
    ):
        for call in (detector.scores, detector.detect):
            with pytest.raises(ValueError, match=word):
                call(bad, noise)


@pytest.mark.parametrize("name", NAMES)
def test_scores_and_decisions_fit_together(name, rng, pool):
    batch = draw(rng, pool)
    detector = detectors.make(name, pool, ACTIVITY)
    found = detector.detect(batch.y, batch.noise_power)
    assert found.scores.shape == found.active.shape == batch.active.shape
    assert found.scores.dtype == np.float64
    assert found.active.dtype == bool
    np.testing.assert_array_equal(found.scores, detector.scores(batch.y, batch.noise_power))
    np.testing.assert_array_equal(found.active, found.scores > detector.threshold(16))
    everyone = detectors.make(name, pool, ACTIVITY, threshold=-1e9).detect(batch.y, batch.noise_power)
    assert everyone.active.all()


@pytest.mark.parametrize("name", NAMES)
def test_same_bits_alone_in_a_batch_and_from_another_layout(name, rng, pool):
    batch = draw(rng, pool, length=11)
    detector = detectors.make(name, pool, ACTIVITY)
    scores = detector.scores(batch.y, batch.noise_power)
    np.testing.assert_array_equal(detectors.make(name, pool, ACTIVITY).scores(batch.y, batch.noise_power), scores)
    for i in range(len(scores)):
        alone = detector.scores(batch.y[i : i + 1], batch.noise_power[i : i + 1])
        np.testing.assert_array_equal(alone[0], scores[i])
    backwards = detector.scores(batch.y[::-1], batch.noise_power[::-1])
    np.testing.assert_array_equal(backwards[::-1], scores)
    np.testing.assert_array_equal(detector.scores(np.asfortranarray(batch.y), batch.noise_power), scores)
    np.testing.assert_array_equal(detector.scores(batch.y, batch.noise_power[0]), scores)


@pytest.mark.parametrize("name", NAMES)
def test_empty_batch(name, pool):
    found = detectors.make(name, pool, ACTIVITY).detect(np.ones((0, 8, 4)), np.ones(0))
    assert found.active.shape == (0, 40)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 20])
@pytest.mark.parametrize("n_snapshots", [1, 2, 37])
def test_any_length_and_number_of_snapshots(name, length, n_snapshots, rng, pool):
    batch = draw(rng, pool, length=length, n_samples=2, n_snapshots=n_snapshots)
    assert np.isfinite(detectors.make(name, pool, ACTIVITY).scores(batch.y, batch.noise_power)).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [1, 8, 16])
def test_silence_means_nobody(name, length, pool):
    y = np.zeros((3, length, 5))
    y[1, 0, 2] = 1.0
    found = detectors.make(name, pool, ACTIVITY, threshold=-1.0).detect(y, 0.3)
    assert np.isfinite(found.scores).all()
    assert not found.active[[0, 2]].any()
    assert found.flags.dtype == np.uint8
    assert found.flags.tolist() == [detectors.Flag.SILENT, 0, detectors.Flag.SILENT]


@pytest.mark.parametrize("name", NAMES)
def test_noise_alone(name, rng, pool):
    y = np.sqrt(0.3) * complex_normal(rng, (20, 16, 64))
    found = detectors.make(name, pool, ACTIVITY).detect(y, 0.3)
    assert np.isfinite(found.scores).all()
    # None of 800 users should be found. Each maximum likelihood power has a standard deviation of 1/8 of
    # noise / length, and the least gain assumed is ten times that, of which a third is the threshold.
    assert found.active.sum() <= (40 if name in ("somp", "gmmv-amp") else 0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [4, 16, 20])
def test_all_active(name, length, rng, pool):
    y = pool[:length] @ complex_normal(rng, (3, 40, 16)) + 0.5 * complex_normal(rng, (3, length, 16))
    assert np.isfinite(detectors.make(name, pool, ACTIVITY).detect(y, 0.25).scores).all()


@pytest.mark.parametrize("name", NAMES)
def test_all_of_few_users_active_are_found(name, rng):
    pool = qpsk_preambles(6, 16, rng)
    y = pool @ complex_normal(rng, (10, 6, 64)) + 0.1 * complex_normal(rng, (10, 16, 64))
    detector = detectors.make(name, pool, 0.5, threshold={"map-search": 0.0, "somp": 1.5}.get(name, 0.3))
    assert detector.detect(y, 0.01).active.mean() > 0.98


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("snr_db", "told"), [(60.0, None), (200.0, None), (200.0, 1e-30), (-60.0, None), (10, 1e30)])
def test_extreme_noise(name, snr_db, told, rng, pool):
    batch = draw(rng, pool, length=12, snr_db=snr_db, n_samples=4)
    noise = batch.noise_power if told is None else told
    assert np.isfinite(detectors.make(name, pool, ACTIVITY).scores(batch.y, noise)).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1e-4, 300.0])
def test_units_of_the_signal_do_not_matter(name, scale, rng, pool):
    batch = draw(rng, pool, length=12, n_samples=10)
    detector = detectors.make(name, pool, ACTIVITY)
    one = detector.detect(batch.y, batch.noise_power)
    other = detector.detect(scale * batch.y, scale**2 * batch.noise_power)
    np.testing.assert_array_equal(one.active, other.active)
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cd", {"tolerance": 1e-9, "max_sweeps": 500}),
        ("gmmv-amp", {}),
        ("map-search", {"gain": 1.0}),
        ("somp", {}),
    ],
)
def test_users_are_interchangeable(name, options, rng, pool):
    batch = draw(rng, pool, length=14, n_samples=10)
    order = rng.permutation(40)
    one = detectors.make(name, pool, ACTIVITY, **options).scores(batch.y, batch.noise_power)
    other = detectors.make(name, pool[:, order], ACTIVITY, **options).scores(batch.y, batch.noise_power)
    np.testing.assert_allclose(other, one[:, order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_phase_of_a_snapshot_does_not_matter(name, rng, pool):
    batch = draw(rng, pool, length=18, n_samples=4)
    turned = batch.y * np.exp(2j * np.pi * rng.random((4, 1, 32)))
    detector = detectors.make(name, pool, ACTIVITY)
    expected = detector.scores(batch.y, batch.noise_power)
    # complex64 input is rounded anew when it is turned: 1e-7 relative, which the iterations amplify, most of
    # all in beliefs of message passing that have not settled.
    atol = 0.1 if name == "gmmv-amp" else 2e-3
    np.testing.assert_allclose(detector.scores(turned, batch.noise_power), expected, rtol=2e-3, atol=atol)


@pytest.mark.parametrize("name", NAMES)
def test_easy_slots_are_solved(name, rng):
    # 4 of 40 users on average in 20 symbols at 10 dB total, 14 dB per user and symbol before 20 symbols
    # and 64 snapshots are summed: covariance detectors must be practically free of errors. Message passing
    # is derived for many users and leaves a few in such small pools.
    pool = qpsk_preambles(40, 20, rng)
    batch = draw(rng, pool, length=20, n_samples=60, n_snapshots=64)
    detector = detectors.make(name, pool, ACTIVITY, threshold={"map-search": 0.0, "somp": 1.2}.get(name, 0.35))
    assert np.mean(detector.detect(batch.y, batch.noise_power).active != batch.active) < (
        0.006 if name == "gmmv-amp" else 0.002
    )


@pytest.mark.parametrize("name", NAMES)
def test_warm_up_leaves_decisions_alone(name, rng, pool):
    batch = draw(rng, pool, length=9)
    cold = detectors.make(name, pool, ACTIVITY)
    warm = detectors.make(name, pool, ACTIVITY)
    warm.warm_up(9, 32)
    np.testing.assert_array_equal(cold.scores(batch.y, batch.noise_power), warm.scores(batch.y, batch.noise_power))


@pytest.mark.parametrize("name", NAMES)
def test_default_threshold_is_interpolated_and_finite(name, pool):
    detector = detectors.make(name, pool, ACTIVITY)
    values = [detector.threshold(length) for length in range(1, 29)]
    assert np.isfinite(values).all()
    assert min(detector.threshold(8), detector.threshold(10)) <= detector.threshold(9)
    assert detector.threshold(9) <= max(detector.threshold(8), detector.threshold(10))
    assert detectors.make(name, pool, ACTIVITY, threshold=0.7).threshold(9) == 0.7


def test_lengths_are_checked_before_a_run(pool):
    detector = detectors.make("cd", pool, ACTIVITY)
    detector.check_lengths([1, 20])
    with pytest.raises(ScenarioError, match=r"\[0, 21\].*1 to 20"):
        detector.check_lengths([21, 5, 0])


def test_options_that_count_and_that_measure():
    assert base.checked_count("n", np.int64(3)) == 3
    assert base.checked_positive("x", np.float32(0.5)) == 0.5
    for wrong in (True, "3", None, 2.0):
        with pytest.raises(ScenarioError, match="n="):
            base.checked_count("n", wrong)


# Covariance maximum likelihood


def plain_descent(y, noise_power, preambles, order, sweeps):
    """Coordinate descent as printed in the literature, on full complex matrices."""
    y = y.astype(complex)
    s = preambles[: len(y)].astype(complex)
    covariance = y @ y.conj().T / y.shape[1]
    inverse = np.eye(len(y), dtype=complex) / noise_power
    gamma = np.zeros(s.shape[1])
    for _ in range(sweeps):
        for n in order:
            b = inverse @ s[:, n]
            v = (s[:, n].conj() @ b).real
            u = (b.conj() @ covariance @ b).real
            delta = max((u - v) / v**2, -gamma[n])
            gamma[n] += delta
            inverse -= delta / (1 + delta * v) * np.outer(b, b.conj())
    return gamma


@pytest.mark.parametrize("length", [5, 8, 11, 20])
def test_one_sweep_equals_the_plain_algorithm(length, rng, pool):
    batch = draw(rng, pool, length=length, n_samples=4)
    detector = detectors.make("cd", pool, ACTIVITY, max_sweeps=1, tolerance=1e9)
    got = detector.powers(batch.y, batch.noise_power)
    for i in range(4):
        expected = plain_descent(batch.y[i], batch.noise_power[i], pool, detector._order, 1)
        np.testing.assert_allclose(got[i], expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("length", [8, 12, 20])
def test_descent_reaches_the_optimum_of_the_plain_algorithm(length, rng, pool):
    batch = draw(rng, pool, length=length, n_samples=3)
    detector = detectors.make("cd", pool, ACTIVITY, tolerance=1e-10, max_sweeps=1000)
    got = detector.powers(batch.y, batch.noise_power)
    for i in range(3):
        reference = plain_descent(batch.y[i], batch.noise_power[i], pool, detector._order, 400)
        at_reference = likelihood(batch.y[i], batch.noise_power[i], pool, reference)
        assert likelihood(batch.y[i], batch.noise_power[i], pool, got[i]) == pytest.approx(at_reference, abs=1e-6)


@pytest.mark.parametrize("length", [6, 12])
def test_optimum_satisfies_the_karush_kuhn_tucker_conditions(length, rng, pool):
    batch = draw(rng, pool, length=length, n_samples=3)
    got = detectors.make("cd", pool, ACTIVITY, tolerance=1e-10, max_sweeps=1000).powers(batch.y, batch.noise_power)
    assert (got >= 0).all()
    for i in range(3):
        y = batch.y[i].astype(complex)
        s = pool[:length].astype(complex)
        inverse = np.linalg.inv((s * got[i]) @ s.conj().T + batch.noise_power[i] * np.eye(length))
        b = inverse @ s
        u = np.sum(np.abs(b.conj().T @ y) ** 2, axis=1) / y.shape[1]
        gradient = np.sum(s.conj() * b, axis=0).real - u
        np.testing.assert_allclose(gradient[got[i] > 0], 0, atol=1e-6)
        assert (gradient[got[i] == 0] > -1e-6).all()


def test_default_tolerance_is_close_to_the_optimum(rng):
    pool = qpsk_preambles(128, 12, rng)
    batch = draw(rng, pool, length=12, n_samples=5, n_snapshots=64)
    loose = detectors.make("cd", pool, ACTIVITY).powers(batch.y, batch.noise_power)
    tight = detectors.make("cd", pool, ACTIVITY, tolerance=1e-9, max_sweeps=1000).powers(batch.y, batch.noise_power)
    # Users have power 1 and decisions fall near 0.4.
    assert np.abs(loose - tight).max() < 0.05


def test_likelihood_never_increases(rng, pool):
    batch = draw(rng, pool, length=9, n_samples=4)
    track = []
    for sweeps in range(1, 12):
        gamma = detectors.make("cd", pool, ACTIVITY, tolerance=1e-12, max_sweeps=sweeps).powers(
            batch.y, batch.noise_power
        )
        track.append([likelihood(batch.y[i], batch.noise_power[i], pool, gamma[i]) for i in range(4)])
    start = [likelihood(batch.y[i], batch.noise_power[i], pool, np.zeros(40)) for i in range(4)]
    assert (np.diff([start, *track], axis=0) <= 1e-9).all()


@pytest.mark.parametrize("length", [1, 3, 7])
def test_single_user_has_a_closed_form(length, rng):
    pool = qpsk_preambles(1, 7, rng)
    y = complex_normal(rng, (30, length, 6)) * np.sqrt(rng.choice([0.2, 3.0], (30, 1, 1)))
    got = detectors.make("cd", pool, ACTIVITY, tolerance=1e-12).powers(y, 0.5)[:, 0]
    # Along the preamble the slot has the power |s^H y|^2 / |s|^2, of which the noise takes its share.
    along = np.mean(np.abs(pool[:length, 0].conj() @ y.astype(complex)) ** 2, axis=1) / length
    np.testing.assert_allclose(got, np.maximum(along - 0.5, 0) / length, rtol=1e-5, atol=1e-9)
    assert (got == 0).any()
    assert (got > 0).any()


def test_known_gain_divides_the_powers(rng, pool):
    batch = draw(rng, pool)
    detector = detectors.make("cd", pool, ACTIVITY, gain=2.0)
    np.testing.assert_allclose(
        detector.scores(batch.y, batch.noise_power),
        detector.powers(batch.y, batch.noise_power) / 2,
        rtol=1e-14,
    )


# Maximum a posteriori search


def best_sets(y, noise_power, preambles, gain, activity):
    """Every activity of a small pool with its cost, the least first."""
    sets = np.array(list(itertools.product([False, True], repeat=preambles.shape[1])))
    costs = np.array([log_posterior_cost(y, noise_power, preambles, a, gain, activity) for a in sets])
    order = np.argsort(costs)
    return sets[order], costs[order]


@pytest.mark.parametrize(("length", "n_snapshots", "least_same"), [(4, 16, 0.6), (6, 32, 0.9)])
def test_search_against_all_sets(length, n_snapshots, least_same, rng):
    # With four symbols and few snapshots a local search often ends beside the optimum; with six hardly ever.
    pool = qpsk_preambles(8, length, rng)
    batch = draw(rng, pool, length=length, n_samples=40, n_snapshots=n_snapshots, activity=0.3, snr_db=10.0)
    detector = detectors.make("map-search", pool, 0.3, gain=1.0, threshold=0.0)
    found = detector.detect(batch.y, batch.noise_power)
    same = 0
    for i in range(40):
        sets, costs = best_sets(batch.y[i], batch.noise_power[i], pool, 1.0, 0.3)
        reached = log_posterior_cost(batch.y[i], batch.noise_power[i], pool, found.active[i], 1.0, 0.3)
        assert reached >= costs[0] - 1e-6
        same += bool((sets[0] == found.active[i]).all())
    assert same / 40 >= least_same


def test_scores_are_log_posterior_ratios(rng, pool):
    batch = draw(rng, pool, length=9, n_samples=4)
    detector = detectors.make("map-search", pool, ACTIVITY, gain=1.0, threshold=0.0)
    found = detector.detect(batch.y, batch.noise_power)
    for i in range(4):
        for n in range(40):
            costs = []
            for state in (False, True):
                a = found.active[i].copy()
                a[n] = state
                costs.append(log_posterior_cost(batch.y[i], batch.noise_power[i], pool, a, 1.0, ACTIVITY))
            assert found.scores[i, n] == pytest.approx(costs[0] - costs[1], rel=1e-6, abs=1e-6)


def neighbours(active):
    """All sets that one flip or one swap leads to."""
    for n in range(active.size):
        flipped = active.copy()
        flipped[n] = not flipped[n]
        yield flipped
    for i, j in itertools.product(np.flatnonzero(active), np.flatnonzero(~active)):
        swapped = active.copy()
        swapped[[i, j]] = False, True
        yield swapped


def test_each_move_is_the_best_of_all_flips_and_swaps(rng):
    # Short preambles for many users: the start is often wrong, and the search moves more than once.
    pool = qpsk_preambles(24, 4, rng)
    batch = draw(rng, pool, length=4, n_samples=12, n_snapshots=24, activity=0.25, snr_db=10.0)
    moved = 0
    for i in range(12):
        y, noise = batch.y[i : i + 1], batch.noise_power[i : i + 1]
        track = [
            detectors.make("map-search", pool, 0.25, gain=1.0, max_moves=moves)._search(np.ascontiguousarray(y), noise)[
                1
            ][0]
            for moves in range(6)
        ]
        for before, after in itertools.pairwise(track):
            cost = log_posterior_cost(y[0], noise[0], pool, before, 1.0, 0.25)
            around = [log_posterior_cost(y[0], noise[0], pool, a, 1.0, 0.25) for a in neighbours(before)]
            if (before == after).all():
                assert min(around) >= cost - 1e-6
            else:
                moved += 1
                at = log_posterior_cost(y[0], noise[0], pool, after, 1.0, 0.25)
                assert at == pytest.approx(min(around), abs=1e-6)
                assert at < cost
    assert moved > 5


def test_search_is_better_than_its_start(rng):
    # L = 10, N = 128: published-order error probabilities are 7e-3 for the start and 4e-3 for the search;
    # on the same 300 slots the search's advantage is some hundred errors.
    pool = qpsk_preambles(128, 10, rng)
    batch = draw(rng, pool, length=10, n_samples=300, n_snapshots=64)
    errors = {
        name: np.sum(
            detectors.make(name, pool, ACTIVITY, gain=1.0).detect(batch.y, batch.noise_power).active != batch.active
        )
        for name in ("cd", "map-search")
    }
    assert errors["map-search"] < 0.85 * errors["cd"]
    assert errors["cd"] < 0.02 * batch.active.size


def test_estimated_gain_of_users_of_another_power(rng):
    # The gain is nowhere told; users come 12 dB above and below the scale of the calibration.
    pool = qpsk_preambles(128, 12, rng)
    for gain in (1 / 16, 16.0):
        batch = draw(rng, pool, length=12, n_samples=60, n_snapshots=64)
        found = detectors.make("map-search", pool, ACTIVITY).detect(np.sqrt(gain) * batch.y, gain * batch.noise_power)
        assert np.mean(found.active != batch.active) < 0.01


# Orthogonal matching pursuit


def plain_pursuit(y, noise_power, preambles, most):
    """Simultaneous OMP on the snapshots, with least squares over the support."""
    y = y.astype(complex)
    s = preambles[: len(y)].astype(complex)
    residual = y
    support: list[int] = []
    scores = np.zeros(s.shape[1])
    for _ in range(most):
        strength = np.linalg.norm(s.conj().T @ residual, axis=1) / np.linalg.norm(s, axis=0)
        strength[support] = 0
        best = int(np.argmax(strength))
        scores[best] = np.mean(np.abs(residual) ** 2) / noise_power
        support.append(best)
        solution = np.linalg.lstsq(s[:, support], y, rcond=None)[0]
        residual = y - s[:, support] @ solution
    return scores


@pytest.mark.parametrize("length", [2, 6, 13, 20])
def test_pursuit_equals_least_squares_on_the_snapshots(length, rng):
    pool = complex_normal(rng, (20, 40))
    batch = draw(rng, pool, length=length, n_samples=5)
    got = detectors.make("somp", pool, ACTIVITY).scores(batch.y, batch.noise_power)
    for i in range(5):
        expected = plain_pursuit(batch.y[i], batch.noise_power[i], pool, length - 1)
        np.testing.assert_allclose(got[i], expected, rtol=1e-6, atol=1e-9)


def test_pursuit_takes_at_most_what_is_allowed(rng, pool):
    batch = draw(rng, pool, length=12)
    for most in (1, 5, 100):
        got = detectors.make("somp", pool, ACTIVITY, max_users=most).scores(batch.y, batch.noise_power)
        assert ((got > 0).sum(axis=1) == min(most, 11)).all()


def test_pursuit_with_equal_preambles():
    pool = np.ones((6, 4), np.complex64)
    y = np.ones((1, 6, 3), np.complex64)
    got = detectors.make("somp", pool, ACTIVITY).scores(y, 0.1)
    assert (got > 0).sum() == 1


# Message passing


def plain_messages(y, noise_power, preambles, activity, iterations, damping, learn_noise):
    """GMMV-AMP in matrix notation."""
    y = y.astype(complex) / np.sqrt(noise_power)
    s = preambles[: len(y)].astype(complex)
    power = np.abs(s) ** 2
    least_tau = 10 / (len(y) * power.mean() * np.sqrt(y.shape[1]))
    tau = max((np.mean(np.abs(y) ** 2) - 1) / (s.shape[1] * activity * power.mean()), least_tau)
    mu, noise, belief = 0.0, 1.0, np.full((s.shape[1], 1), activity)
    x = np.zeros((s.shape[1], y.shape[1]), complex)
    v = np.full(x.shape, activity * tau)
    z, spread = y, np.ones(y.shape)
    for t in range(iterations):
        keep = damping if t else 0.0
        new_spread = power @ v
        new_z = s @ x - (y - z) / (noise + spread) * new_spread
        spread = keep * spread + (1 - keep) * new_spread
        z = keep * z + (1 - keep) * new_z
        share = noise / (noise + spread)
        noise_next = np.mean(np.abs((y - z) * share) ** 2 + share * spread)
        d = 1 / (power.T @ (1 / (noise + spread)))
        c = x + d * (s.conj().T @ ((y - z) / (noise + spread)))
        ratio = np.log(d / (d + tau)) + np.abs(c) ** 2 / d - np.abs(c - mu) ** 2 / (d + tau)
        p = 1 / (1 + np.exp(-np.clip(ratio + np.log(belief / (1 - belief)), -600, 600)))
        mean = (tau * c + d * mu) / (d + tau)
        var = d * tau / (d + tau)
        x = p * mean
        v = np.maximum(p * (np.abs(mean) ** 2 + var) - np.abs(x) ** 2, 1e-30)
        mu = np.sum(p * mean) / np.sum(p)
        tau = max(np.sum(p * (np.abs(mean - mu) ** 2 + var)) / np.sum(p), least_tau)
        belief = np.clip(p.mean(axis=1, keepdims=True), 1e-12, 1 - 1e-12)
        if learn_noise:
            noise = noise_next
    return belief[:, 0]


@pytest.mark.parametrize("learn_noise", [False, True])
@pytest.mark.parametrize("length", [12, 20])
def test_messages_equal_the_matrix_form(length, learn_noise, rng, pool):
    batch = draw(rng, pool, length=length, n_samples=3)
    options = {"iterations": 8, "damping": 0.3, "learn_noise": learn_noise}
    got = detectors.make("gmmv-amp", pool, ACTIVITY, tolerance=1e-12, **options).scores(batch.y, batch.noise_power)
    for i in range(3):
        expected = plain_messages(batch.y[i], batch.noise_power[i], pool, ACTIVITY, **options)
        np.testing.assert_allclose(got[i], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_messages_do_not_diverge_into_nonsense(damping, rng):
    # Half the symbols that the active users need, no damping: the iteration has no fixed point to find.
    pool = qpsk_preambles(128, 6, rng)
    batch = draw(rng, pool, length=6, n_samples=4, n_snapshots=16, snr_db=40.0)
    got = detectors.make("gmmv-amp", pool, ACTIVITY, damping=damping).scores(batch.y, batch.noise_power)
    assert ((got >= 0) & (got <= 1)).all()

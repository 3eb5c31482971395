"""Evaluation of CSI feedback: the same drops for all, closed forms of the sum rate, errors that name what is wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from semair.errors import ModelError, ScenarioError
from semair.models.csi.channels import PRESETS, ChannelConfig, Clustered, from_delay_angle, stream
from semair.models.csi.evaluate import (
    TRACED_SPACINGS_M,
    Condition,
    Evaluation,
    as_json,
    contenders,
    load_contender,
    rzf_sum_rate,
    sweeps,
    traced_test,
)
from semair.models.csi.link import nmse
from semair.models.statistics import grouped_mean_ci95

CONFIG = ChannelConfig(n_antennas=4, n_taps=16, lead_taps=2.0, n_subcarriers=32, bandwidth_hz=10e6)


class Genie:
    """Recovers CSI up to a known relative error."""

    def __init__(self, name, error):
        self.name = name
        self._error = error
        self.seen = []

    def recover(self, batch, generator):
        self.seen.append(batch)
        scale = torch.rand((), generator=generator)
        assert 0 <= float(scale) < 1
        return batch.csi * (1 - self._error)


def test_all_get_the_same_drops_and_figures_follow_from_the_error():
    perfect, tenth = Genie("perfect", 0.0), Genie("tenth", 0.1)
    evaluation = Evaluation([perfect, tenth], CONFIG, 60)
    rows = evaluation.rows(Condition(ratio=8))
    assert [row.contender for row in rows] == ["perfect", "tenth"]
    assert all(torch.equal(a.csi, b.csi) for a, b in zip(perfect.seen, tenth.seen, strict=True))
    assert rows[1].nmse_db.value == pytest.approx(-20, abs=1e-3)
    assert rows[1].cosine == pytest.approx(rows[0].cosine, abs=1e-5)
    # What lies outside the taps is lost even to a perfect code.
    drops = Clustered(CONFIG).draw(60, stream("test", 1), (0.5, 2.0), 2)
    assert rows[0].full_nmse_db == pytest.approx(10 * np.log10(float(drops.truncation_nmse.mean())), abs=0.05)
    assert rows[0].sum_rate.value == pytest.approx(1, abs=0.05)
    again = Evaluation([Genie("perfect", 0.1)], CONFIG, 60).rows(Condition(ratio=8))[0]
    np.testing.assert_array_equal(again.errors, rows[1].errors)


def test_sum_rate_is_the_mean_rate_over_that_with_perfect_csi():
    class Worse(Genie):
        def recover(self, batch, generator):
            return super().recover(batch, generator) + 0.5 * batch.csi.roll(1, 0)

    worse = Worse("worse", 0.1)
    row = Evaluation([worse], CONFIG, 200).rows(Condition(ratio=8))[0]
    drops = Clustered(CONFIG).draw(200, stream("test", 1), (0.5, 2.0), 2)
    known = from_delay_angle(0.9 * drops.delay_angle + 0.5 * drops.delay_angle.roll(1, 0), CONFIG.n_subcarriers)
    rate, perfect = (rzf_sum_rate(drops.h, each, 10.0).double().numpy() for each in (known, drops.h))
    assert row.sum_rate.value == pytest.approx(rate.mean() / perfect.mean(), rel=1e-5)
    # The bootstrap tells the same width; of 2000 draws it is good to a few per cent.
    chosen = np.random.default_rng(1).integers(200, size=(2000, 200))
    low, high = np.quantile(rate[chosen].mean(1) / perfect[chosen].mean(1), [0.025, 0.975])
    assert row.sum_rate.high - row.sum_rate.low == pytest.approx(high - low, rel=0.12)


def test_a_missing_neighbour_is_not_judged():
    genie = Genie("genie", 0.1)
    row = Evaluation([genie], CONFIG, 20).rows(Condition(neighbour="missing"))[0]
    assert genie.seen[0].present.tolist() == [[True, False]] * 20
    assert row.sum_rate is None
    assert row.drops == 20


def test_orthogonal_channels_share_the_power():
    # Rows of one subcarrier: orthogonal, norms 2 and 2 squared to 4: each user gets half of the power.
    h = torch.zeros(1, 2, 1, 4, dtype=torch.complex64)
    h[0, 0, 0, :2] = torch.tensor([2.0, 0.0])
    h[0, 1, 0, 2:] = torch.tensor([0.0, 2.0j])
    expected = 2 * np.log2(1 + 0.5 * 4 * 10)
    assert float(rzf_sum_rate(h, h, 10.0)) == pytest.approx(expected, rel=1e-5)
    # Common phases and scales of what is known do not matter where both users' are alike.
    assert float(rzf_sum_rate(h, 1j * h, 10.0)) == pytest.approx(expected, rel=1e-5)


def test_rate_with_one_user_is_that_of_a_matched_filter():
    h = torch.view_as_complex(torch.randn((5, 1, 3, 4, 2), generator=torch.Generator().manual_seed(1)))
    expected = np.log2(1 + 10 * h.abs().square().sum(-1).numpy()).mean((1, 2))
    np.testing.assert_allclose(rzf_sum_rate(h, h, 10.0).numpy(), expected, rtol=1e-4)


def test_rate_agrees_with_the_sum_over_users_written_out():
    rng = np.random.default_rng(1)
    h, known = (
        (rng.standard_normal((1, 3, 2, 4)) + 1j * rng.standard_normal((1, 3, 2, 4))).astype(np.complex64) for _ in "ab"
    )
    snr, rates = 10**0.7, []
    for subcarrier in range(2):
        g, truth = known[0, :, subcarrier], h[0, :, subcarrier]
        w = g.conj().T @ np.linalg.inv(g @ g.conj().T + 3 / snr * np.eye(3))
        w /= np.linalg.norm(w)
        gains = np.abs(truth @ w) ** 2 * snr
        sinr = [gains[k, k] / (1 + gains[k].sum() - gains[k, k]) for k in range(3)]
        rates.append(sum(np.log2(1 + value) for value in sinr))
    found = rzf_sum_rate(torch.from_numpy(h), torch.from_numpy(known), 7.0)
    assert float(found) == pytest.approx(np.mean(rates), rel=1e-4)


def test_linear_code_beside_networks(monkeypatch):
    monkeypatch.setattr("semair.models.csi.evaluate._KLT_DROPS", 500)
    monkeypatch.setitem(PRESETS, "small", CONFIG)
    (klt,) = contenders("small", ["klt"])
    evaluation = Evaluation([klt], CONFIG, 100)
    by_ratio = [evaluation.rows(Condition(ratio=ratio))[0] for ratio in (32, 8)]
    assert by_ratio[1].nmse_db.high < by_ratio[0].nmse_db.low
    content = as_json({"ratio": by_ratio}, {"drops": 100})
    assert content["sweeps"]["ratio"][0]["condition"]["ratio"] == 32
    assert "errors" not in content["sweeps"]["ratio"][0]


def test_recovered_taps_are_judged_over_all_subcarriers_by_the_inverse_transform():
    drops = Clustered(CONFIG).draw(5, stream("test", 2))
    whole = from_delay_angle(drops.delay_angle, CONFIG.n_subcarriers)
    np.testing.assert_allclose(nmse(drops.h, whole).numpy(), drops.truncation_nmse.numpy(), atol=2e-4)


def test_sweeps_vary_one_thing():
    for sweep in (*sweeps().values(), *sweeps(quick=True).values()):
        values = [getattr(condition, sweep.axis) for condition in sweep.conditions]
        assert len(set(values)) == len(values) > 1


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(ScenarioError, match="numerology 'home' is unknown; choose one of: paper, lab"):
        contenders("home")
    with pytest.raises(ScenarioError, match=r"neither a folder with card\.json nor one of the shipped weights"):
        load_contender(str(tmp_path))
    with pytest.raises(ScenarioError, match="at least 2 drops and 1 contender"):
        Evaluation([], CONFIG, 10)
    with pytest.raises(ScenarioError, match="ratio=7: at least 8, and a divisor of 64"):
        Evaluation([Genie("one", 0)], CONFIG, 10).rows(Condition(ratio=7))


class Places:
    """Drops of the generator, so many of each of a few places."""

    def __init__(self, n_places, config=CONFIG):
        self.config, self._n = config, n_places

    def draw(self, n, generator, spacing_m=None, n_users=None):
        drops = Clustered(self.config).draw(n, generator, spacing_m, n_users)
        return replace(drops, places=torch.arange(n) % self._n)


def test_drops_of_a_given_source_and_the_interval_over_its_places():
    class Scattered(Genie):
        def recover(self, batch, generator):
            return batch.csi * torch.linspace(0, 1, len(batch.csi))[:, None, None, None]

    condition = Condition(ratio=8)
    plain = Evaluation([Scattered("one", 0)], CONFIG, 60).rows(condition)[0]
    row = Evaluation([Scattered("one", 0)], CONFIG, 60, source=Places(5)).rows(condition)[0]
    assert (plain.places, row.places, row.drops) == (60, 5, 60)
    np.testing.assert_array_equal(row.errors, plain.errors)
    expected = grouped_mean_ci95(row.errors, np.arange(60) % 5)
    assert row.nmse_db == pytest.approx([10 * np.log10(value) for value in expected])
    assert as_json({"ratio": [row]}, {})["sweeps"]["ratio"][0]["places"] == 5


def test_drops_of_one_place_alone_have_the_interval_of_that_place():
    plain = Evaluation([Genie("one", 0.1)], CONFIG, 20).rows(Condition(ratio=8))[0]
    row = Evaluation([Genie("one", 0.1)], CONFIG, 20, source=Places(1)).rows(Condition(ratio=8))[0]
    assert row.places == 1
    assert row.nmse_db == plain.nmse_db
    assert np.isfinite(row.sum_rate).all()


def test_drops_of_another_numerology_are_refused():
    other = Places(3, ChannelConfig(n_antennas=8, n_taps=16, lead_taps=2.0, n_subcarriers=32))
    with pytest.raises(ModelError, match=r"drops have 16 taps, 8 antennas and 32 subcarriers; .* for 16, 4 and 32"):
        Evaluation([Genie("one", 0)], CONFIG, 10, source=other)


def test_traced_sweeps_have_the_spacings_that_the_file_has_pairs_for(tmp_path, write_paths):
    write_paths(tmp_path / "paths")
    source = traced_test(tmp_path / "paths", ("street",), "lab")
    assert (source.split, source.scenes, source.config) == ("test", ("street",), PRESETS["lab"])
    spacings = [condition.spacing_m for condition in sweeps(traced=source)["spacing"].conditions]
    assert spacings[0] == (0.5, 1.0)
    assert all(source.has_pairs(spacing) == (spacing in spacings) for spacing in TRACED_SPACINGS_M)
    with pytest.raises(ScenarioError, match="numerology 'home' is unknown"):
        traced_test(tmp_path / "paths", (), "home")
    with pytest.raises(ModelError, match="no such file; make one with: semair trace"):
        traced_test(tmp_path / "nothing", (), "lab")

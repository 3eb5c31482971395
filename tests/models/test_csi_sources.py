"""Drops of training from the generator and from traced files: shares, splits, augmentation, and what is refused."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from semair.errors import ModelError, ScenarioError
from semair.models.cards import load_model
from semair.models.csi import networks
from semair.models.csi.channels import PRESETS, ChannelConfig, Clustered, stream
from semair.models.csi.link import Mixture, draw
from semair.models.csi.raytraced import RayTraced, read_paths
from semair.models.csi.sources import Mixed, TracedShare, channel_sources, training_source
from semair.models.csi.train import TrainingConfig, train, with_traced
from semair.models.statistics import grouped_mean_ci95, mean_ci95

SMALL = ChannelConfig(n_antennas=4, n_subcarriers=64, n_taps=8, lead_taps=2.0)


@pytest.fixture(scope="module")
def file(tmp_path_factory, write_paths):
    return read_paths(write_paths(tmp_path_factory.mktemp("paths") / "paths.safetensors"))


class Marked:
    """Drops whose users' power sits in one tap, told by a number."""

    def __init__(self, tap, paths):
        self.config, self._tap, self._paths = SMALL, tap, paths

    def draw(self, n, generator, spacing_m=None, n_users=None):
        drops = Clustered(SMALL).draw(n, generator, spacing_m, n_users)
        shape = (n, drops.gains.shape[1], self._paths)
        gains = torch.zeros((*shape, 4), dtype=torch.complex64)
        gains[:, :, 0] = 1
        return type(drops)(
            torch.full(shape, float(self._tap)), gains, 64, 8, drops.positions_m, drops.line_of_sight, drops.places
        )


def test_each_source_gives_its_share_of_the_drops():
    mixed = Mixed(Marked(1, 3), Marked(5, 2), 0.3)
    drops = mixed.draw(2000, stream("train", 1))
    strongest = drops.delay_angle.abs().square().sum(-1).argmax(-1)
    assert set(strongest.unique().tolist()) == {1, 5}
    # 2000 draws of probability 0.3: three standard deviations are 61.
    assert int((strongest[:, 0] == 5).sum()) == pytest.approx(600, abs=61)
    assert (strongest[:, 0] == strongest[:, 1]).all()
    power = drops.h.abs().square().mean((2, 3))
    torch.testing.assert_close(power, torch.ones_like(power))
    again = mixed.draw(2000, stream("train", 1))
    assert torch.equal(again.delay_angle, drops.delay_angle)


@pytest.mark.parametrize(("share", "tap"), [(0.0, 1), (1.0, 5)])
def test_a_share_of_nothing_or_all_leaves_one_source(share, tap):
    drops = Mixed(Marked(1, 3), Marked(5, 2), share).draw(7, stream("train", 1), n_users=3)
    assert drops.delay_angle.shape == (7, 3, 8, 4)
    assert (drops.delay_angle.abs().square().sum(-1).argmax(-1) == tap).all()


def test_spacing_reaches_both_sources(file):
    mixed = Mixed(Clustered(SMALL), RayTraced(file, config=SMALL), 0.5)
    drops = mixed.draw(200, stream("train", 3), (30.0, 60.0))
    assert ((drops.spacing_m > 29.9) & (drops.spacing_m < 60.1)).all()
    # Generated drops are places of their own.
    assert drops.places is not None
    assert len(drops.places.unique()) >= 80
    with pytest.raises(ValueError, match=r"share=1\.5"):
        Mixed(Clustered(SMALL), Clustered(SMALL), 1.5)
    with pytest.raises(ValueError, match="n=0"):
        mixed.draw(0, stream("train", 1))


def test_spacings_come_up_equally_often(file):
    drops = RayTraced(file, config=SMALL).draw(4000, stream("train", 1), (1.0, 9.0))
    found = np.histogram(drops.spacing_m.numpy(), 8, (1.0, 9.0))[0]
    # 500 each: a standard deviation is 21, and there are eight of them.
    assert np.abs(found - 500).max() < 4 * 21


def test_drops_of_one_square_share_their_place(file):
    drops = RayTraced(file, config=SMALL).draw(500, stream("train", 1), (0.5, 5.0))
    squares = torch.floor(drops.positions_m[:, 0] / 20)
    for place in drops.places.unique():
        assert len(squares[drops.places == place].unique(dim=0)) == 1
    # 10 times 2 squares of 20 m, seen from the base stations of two scenes.
    assert 20 < len(drops.places.unique()) <= 44


def test_augmented_drops_are_those_of_the_file_mirrored_or_turned(file):
    plain = RayTraced(file, "train", config=SMALL)
    arrays = file.arrays

    def by_definition(side):
        found = []
        for drop in plain.drop_indices:
            for user in range(4):
                taps = arrays["delays_s"][drop, user] * 20e6 + SMALL.lead_taps
                gains = arrays["gains_re"][drop, user] + 1j * arrays["gains_im"][drop, user]
                steer = np.exp(1j * np.pi * np.outer(side * arrays["cosines"][drop, user], np.arange(4)))
                h = np.exp(-2j * np.pi * np.outer(np.arange(64) - 32, taps) / 64) @ (gains[:, None] * steer)
                found.append(h / np.linalg.norm(h))
        return np.stack(found)

    bank, mirrored = by_definition(1), by_definition(-1)
    drops = RayTraced(file, "train", config=SMALL, augment=True).draw(60, stream("train", 1))
    h = drops.h.numpy()
    h /= np.linalg.norm(h, axis=(2, 3), keepdims=True)
    alike = [np.einsum("bsa,kusa->kub", each.conj(), h) for each in (bank, mirrored)]
    best = np.stack([np.abs(each).max(-1) for each in alike])
    assert best.max(0) == pytest.approx(1, abs=1e-3)
    side = best.argmax(0)
    # Both users of a drop on the same side, about half of the drops each: 60 draws, three deviations are 12.
    assert (side[:, 0] == side[:, 1]).all()
    assert side[:, 0].sum() == pytest.approx(30, abs=12)
    chosen = np.take_along_axis(np.stack(alike), side[None, :, :, None], 0)[0]
    phases = np.angle(np.take_along_axis(chosen, np.abs(chosen).argmax(-1)[..., None], -1))[..., 0]
    # Mean of 120 phasors at random: 3 / sqrt(120).
    assert abs(np.exp(1j * phases).mean()) < 0.28
    assert abs(np.exp(1j * (phases[:, 0] - phases[:, 1])).mean()) < 0.4


def test_validation_and_test_are_of_their_split_and_as_they_were_traced(file):
    share = TracedShare(share=0.5, scenes=("street",))
    for split in ("train", "valid", "test"):
        traced = channel_sources(SMALL, share, file, split)["traced"]
        assert (traced.split, traced.scenes, traced.augment) == (split, ("street",), split == "train")
    assert set(channel_sources(SMALL, share, file, "test")) == {"clustered", "traced"}
    assert set(channel_sources(SMALL, TracedShare(share=1), file, "test")) == {"traced"}
    assert isinstance(training_source(SMALL, share, file, "train"), Mixed)
    assert training_source(SMALL, None, None, "train") == Clustered(SMALL)


def test_sources_that_cannot_be_are_refused(file, tmp_path, write_paths):
    with pytest.raises(ScenarioError, match=r"wants 50% of the drops traced: give their file with --traced"):
        channel_sources(SMALL, TracedShare(), None, "train")
    with pytest.raises(ScenarioError, match=r"mixture\.traced is missing"):
        channel_sources(SMALL, None, file, "train")
    with pytest.raises(ModelError, match=r"scenes \['moon'\] are not in the file; it has square, street"):
        channel_sources(SMALL, TracedShare(scenes=("moon",)), file, "train")
    with pytest.raises(ModelError, match="n_users=5 of the channel: drops of the traced file have 4 users"):
        channel_sources(SMALL.model_copy(update={"n_users": 5}), TracedShare(), file, "train")
    other = read_paths(write_paths(tmp_path / "28GHz", frequency_hz=28e9))
    with pytest.raises(ModelError, match=r"frequency_hz=3\.5e\+09 of the channel, 2\.8e\+10 of the file"):
        channel_sources(SMALL, TracedShare(), other, "train")
    with pytest.raises(ValueError, match="the mixture has traced drops"):
        draw(Mixture(channel="lab", traced=TracedShare()), 2, stream("train", 1))


@given(share=st.one_of(st.floats(), st.integers(-2, 2), st.text(max_size=3)))
def test_a_share_is_above_0_and_at_most_1(share):
    try:
        found = TracedShare(share=share)
    except ValidationError:
        assert not (isinstance(share, int | float) and 0 < share <= 1)
    else:
        assert 0 < found.share <= 1


def test_grouped_interval_is_students_where_every_sample_is_a_group(rng):
    values = rng.standard_normal(40) + 3
    np.testing.assert_allclose(grouped_mean_ci95(values, np.arange(40)), mean_ci95(values), rtol=1e-12)


def test_copies_of_samples_tell_nothing_new(rng):
    values = rng.standard_normal(30) + 3
    copied = grouped_mean_ci95(np.repeat(values, 7), np.repeat(np.arange(30), 7))
    np.testing.assert_allclose(copied, mean_ci95(values), rtol=1e-12)


def test_grouped_interval_covers_the_mean_of_correlated_samples(rng):
    groups = np.repeat(np.arange(40), 5)
    covered = 0
    for _ in range(400):
        values = rng.standard_normal(40)[groups] + 0.3 * rng.standard_normal(200)
        interval = grouped_mean_ci95(values, groups)
        covered += interval.low < 0 < interval.high
    # 400 intervals of 95 %: 380 cover, a standard deviation is 4.4.
    assert abs(covered - 380) < 4 * 4.4


def test_grouped_interval_needs_a_group_for_each_value():
    assert grouped_mean_ci95([1.0, 2.0], [7, 7]) == (1.5, -np.inf, np.inf)
    for values, groups in (([], []), ([1.0], [1, 2]), ([np.nan], [1])):
        with pytest.raises(ValueError, match="a group for each"):
            grouped_mean_ci95(values, groups)


TINY = TrainingConfig.model_validate(
    {
        "name": "tiny",
        "seed": 3,
        "start_drops": 60,
        "network": {"kind": "munet", "width": 16, "heads": 2, "feedforward": 24, "code_width": 4},
        "mixture": {
            "channel": {**PRESETS["lab"].model_dump(mode="json"), "n_taps": 8, "lead_taps": 2.0},
            "ratios": [16, 8],
            "traced": {"share": 0.5, "scenes": ["street"]},
        },
        "optimiser": {"steps": 4, "batch": 6},
        "validation": {"every": 2, "drops": 20, "test_drops": 20, "test_snr_db": [0, 10]},
    }
)


def test_the_card_tells_the_file_and_figures_of_each_source(file, tmp_path):
    card = train(TINY, tmp_path, traced=file).card
    assert card.details["traced_sha256"] == file.sha256
    assert card.scenario["mixture"]["traced"]["scenes"] == ["street"]
    by_channel = [metric.conditions["channel"] for metric in card.metrics]
    assert by_channel.count("clustered") == by_channel.count("traced") == 2 * 2 + 2 * 2
    plain = train(TINY.model_copy(update={"mixture": TINY.mixture.model_copy(update={"traced": None})}), tmp_path / "x")
    assert {metric.conditions["channel"] for metric in plain.card.metrics} == {"clustered"}
    assert networks.load(tmp_path)[0] == card


def stop_at_once(progress):
    os.kill(os.getpid(), signal.SIGINT)


def test_resuming_takes_the_same_file_and_ends_with_the_same_weights(file, tmp_path, monkeypatch, write_paths):
    monkeypatch.setattr("semair.models.training._REPORT_S", 0.0)
    train(TINY, tmp_path / "whole", traced=file)
    assert train(TINY, tmp_path / "parts", traced=file, on_progress=stop_at_once).card is None
    other = read_paths(write_paths(tmp_path / "other", seed=2))
    with pytest.raises(ModelError, match="was written with other weights or recordings"):
        train(TINY, tmp_path / "parts", traced=other, resume=True)
    with pytest.raises(ScenarioError, match="give their file with --traced"):
        train(TINY, tmp_path / "parts", resume=True)
    assert train(TINY, tmp_path / "parts", traced=file, resume=True).card is not None
    one, two = (load_model(tmp_path / name)[1] for name in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_checkpoint_from_before_a_field_was_there_can_be_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr("semair.models.training._REPORT_S", 0.0)
    config = TINY.model_copy(update={"mixture": TINY.mixture.model_copy(update={"traced": None})})

    class Older(TrainingConfig):
        def model_dump(self, **settings):
            found = super().model_dump(**settings)
            found["mixture"].pop("traced")
            return found

    older = Older.model_validate(config.model_dump())
    assert train(older, tmp_path, on_progress=stop_at_once).card is None
    assert train(config, tmp_path, resume=True).card is not None


def test_too_few_drops_for_distant_pairs_are_told_before_training(file, tmp_path):
    config = TINY.model_copy(update={"mixture": TINY.mixture.model_copy(update={"far_m": (500.0, 900.0)})})
    with pytest.raises(ModelError, match=r"spacing_m=\(500\.0, 900\.0\): no two users of split"):
        train(config, tmp_path, traced=file)
    assert not list(tmp_path.iterdir())


def test_scenes_and_share_may_be_given_for_any_configuration():
    plain = TINY.model_copy(update={"mixture": TINY.mixture.model_copy(update={"traced": None})})
    assert with_traced(plain).mixture.traced == TracedShare()
    assert with_traced(plain, ["square"], 0.2).mixture.traced == TracedShare(share=0.2, scenes=("square",))
    assert with_traced(TINY, share=1.0).mixture.traced == TracedShare(share=1.0, scenes=("street",))
    with pytest.raises(ScenarioError, match=r"traced drops: share: given 0\.0, allowed: greater than 0"):
        with_traced(plain, share=0.0)

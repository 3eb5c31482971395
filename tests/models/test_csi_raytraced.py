"""Drops out of files of traced paths: what is drawn, how splits and scenes stay apart, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from semair.errors import ModelError
from semair.models.csi.channels import PRESETS, ChannelConfig, stream
from semair.models.csi.raytraced import FORMAT, RayTraced, read_paths

METADATA = {
    "format": FORMAT,
    "scenes": json.dumps(["square", "street"]),
    "frequency_hz": "3500000000.0",
    "settings": "{}",
    "tracer": "by hand",
}


def some_arrays(n=60, users=4, paths=6, seed=1):
    """Drops with users on a line, 1, 2 and 3 m from the first; drops of one base station 55 m apart."""
    rng = np.random.default_rng(seed)
    scene = (np.arange(n) % 2).astype(np.uint8)
    positions = np.zeros((n, users, 2), np.float32)
    positions[:, :, 0] = 10 + np.arange(users) + 55.0 * (np.arange(n)[:, None] // 6)
    gains = rng.standard_normal((2, n, users, paths)).astype(np.float32)
    # One number tells whose paths they are: the last path of every user.
    delays = rng.uniform(0, 5e-7, (n, users, paths)).astype(np.float32)
    delays[..., 0] = 0
    return {
        "scene": scene,
        "base": (np.arange(n) // 2 % 3).astype(np.uint16),
        "split": (np.arange(n) // 6 % 3).astype(np.uint8),
        "positions_m": positions,
        "line_of_sight": (rng.random((n, users)) < 0.5).astype(np.uint8),
        "delays_s": delays,
        "cosines": rng.uniform(-1, 1, (n, users, paths)).astype(np.float32),
        "gains_re": gains[0],
        "gains_im": gains[1],
    }


def write(path, arrays, metadata=METADATA):
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path, metadata)
    return path


@pytest.fixture
def file(tmp_path):
    return read_paths(write(tmp_path / "paths.safetensors", some_arrays()))


def expected_h(arrays, drop, user, config):
    """CSI of one user, by definition."""
    sc = (np.arange(config.n_subcarriers) - config.n_subcarriers // 2) * 20e6 / config.n_subcarriers
    delays = arrays["delays_s"][drop, user].astype(float) + config.lead_taps / 20e6
    gains = arrays["gains_re"][drop, user] + 1j * arrays["gains_im"][drop, user]
    steer = np.exp(1j * np.pi * np.outer(arrays["cosines"][drop, user], np.arange(config.n_antennas)))
    h = np.exp(-2j * np.pi * np.outer(sc, delays)) @ (gains[:, None] * steer)
    return h / np.sqrt((np.abs(h) ** 2).mean())


def owners(drawn, file, config):
    """Which (drop, user) of the file each drawn user is, by comparison with all of them."""
    arrays = file.arrays
    n, users = arrays["delays_s"].shape[:2]
    bank = np.stack([expected_h(arrays, d, u, config).ravel() for d in range(n) for u in range(users)])
    h = drawn.h.flatten(0, 1).flatten(1).numpy()
    match = np.abs(bank.conj() @ h.T).argmax(0)
    np.testing.assert_allclose(h, bank[match], atol=5e-3)
    return np.stack([match // users, match % users], 1).reshape(*drawn.h.shape[:2], 2)


SMALL = ChannelConfig(n_antennas=4, n_subcarriers=64, n_taps=16)


def test_drawn_users_are_those_of_the_file_and_neighbours_as_far_apart_as_asked_for(file):
    source = RayTraced(file, "train", config=SMALL)
    drawn = source.draw(50, stream("train", 1), (0.9, 2.1))
    found = owners(drawn, file, SMALL)
    assert (file.arrays["split"][found[..., 0]] == 0).all()
    assert (found[:, 0, 0] == found[:, 1, 0]).all()
    assert set(np.abs(found[:, 0, 1] - found[:, 1, 1])) == {1, 2}
    assert ((drawn.spacing_m > 0.9) & (drawn.spacing_m < 2.1)).all()
    positions = torch.from_numpy(file.arrays["positions_m"])[found[..., 0], found[..., 1]]
    assert torch.equal(drawn.positions_m, positions)
    los = torch.from_numpy(file.arrays["line_of_sight"])[found[..., 0], found[..., 1]].bool()
    assert torch.equal(drawn.line_of_sight, los)


def test_distant_pairs_are_users_of_one_base_station(file):
    source = RayTraced(file, "valid", config=SMALL)
    # Drops of the same split lie three squares of 55 m apart.
    drawn = source.draw(30, stream("valid", 1), (160.0, 170.0))
    found = owners(drawn, file, SMALL)[..., 0]
    arrays = file.arrays
    assert (found[:, 0] != found[:, 1]).all()
    for name in ("scene", "base", "split"):
        assert (arrays[name][found[:, 0]] == arrays[name][found[:, 1]]).all()
    assert ((drawn.spacing_m > 160) & (drawn.spacing_m < 170)).all()


def test_splits_and_scenes_share_no_drop(file):
    sets = [set(RayTraced(file, split, config=SMALL).drop_indices) for split in ("train", "valid", "test")]
    assert set.union(*sets) == set(range(60))
    assert sum(map(len, sets)) == 60
    street = RayTraced(file, "train", ("street",), SMALL)
    assert (file.arrays["scene"][street.drop_indices] == 1).all()
    found = owners(street.draw(20, stream("train", 2), (0.5, 5.0)), file, SMALL)[..., 0]
    assert set(found.ravel()) <= set(street.drop_indices)


def test_other_numbers_of_users_come_from_one_drop(file):
    source = RayTraced(file, "test", config=SMALL)
    for k in (1, 3, 4):
        found = owners(source.draw(10, stream("test", k), n_users=k), file, SMALL)
        assert found.shape == (10, k, 2)
        assert (found[..., 0] == found[:, :1, 0]).all()
        assert all(len(set(users)) == k for users in found[..., 1])
    with pytest.raises(ModelError, match="n_users=5"):
        source.draw(1, stream("test", 1), n_users=5)


def test_a_draw_is_decided_by_its_generator(file):
    source = RayTraced(file, config=SMALL)
    one, two, other = (source.draw(8, stream("train", seed)).h for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_the_paper_numerology(file):
    drawn = RayTraced(file, config=PRESETS["paper"]).draw(6, stream("train", 1))
    assert drawn.h.shape == (6, 2, 256, 32)
    assert drawn.delay_angle.shape == (6, 2, 32, 32)
    power = drawn.h.abs().square().mean((2, 3))
    assert torch.allclose(power, torch.ones_like(power), atol=1e-4)


def test_unfitting_requests_are_refused(file):
    with pytest.raises(ModelError, match="moon"):
        RayTraced(file, scenes=("moon",))
    with pytest.raises(ModelError, match="frequency_hz"):
        RayTraced(file, config=ChannelConfig(frequency_hz=5e9))
    with pytest.raises(ModelError, match="that far apart"):
        RayTraced(file, config=SMALL).draw(1, stream("train", 1), (20.0, 30.0))
    with pytest.raises(ValueError, match="n=0"):
        RayTraced(file, config=SMALL).draw(0, stream("train", 1))
    with pytest.raises(ValueError, match="split"):
        RayTraced(file, "dev")
    with pytest.raises(ValueError, match="spacing_m"):
        RayTraced(file, config=SMALL).draw(1, stream("train", 1), (2.0, 1.0))


@pytest.mark.parametrize("keep", [0, 5, 300, 2000, -1])
def test_cut_files_are_refused(tmp_path, keep):
    path = write(tmp_path / "paths.safetensors", some_arrays())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"paths\.safetensors"):
        read_paths(path)


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        read_paths(tmp_path / "nothing")
    (tmp_path / "text").write_text("hello" * 100, encoding="utf-8")
    with pytest.raises(ModelError, match="safetensors"):
        read_paths(tmp_path / "text")
    foreign = write(tmp_path / "foreign", {"weight": np.zeros(3, np.float32)}, {"format": "pt"})
    with pytest.raises(ModelError, match="format 'pt'"):
        read_paths(foreign)


def without(name):
    return {key: value for key, value in some_arrays().items() if key != name}


def with_value(name, value):
    arrays = some_arrays()
    arrays[name].flat[3] = value
    return arrays


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (without("base"), "base is missing"),
        (some_arrays() | {"split": np.zeros(60, np.int64)}, "split is int64"),
        (some_arrays() | {"scene": np.zeros(59, np.uint8)}, "scene has shape"),
        (some_arrays(0), "holds no drops"),
        (with_value("gains_re", np.nan), "gains_re holds values"),
        (with_value("scene", 2), "scene or split"),
        (with_value("split", 3), "scene or split"),
        (with_value("delays_s", -1e-9), "negative delay"),
        (with_value("cosines", 1.5), "cosine above 1"),
        (
            some_arrays()
            | {"gains_re": np.zeros((60, 4, 6), np.float32), "gains_im": np.zeros((60, 4, 6), np.float32)},
            "without paths",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arrays_that_make_no_sense_are_refused(tmp_path, arrays, message):
    with pytest.raises(ModelError, match=message):
        read_paths(write(tmp_path / "paths.safetensors", arrays))


@pytest.mark.parametrize("change", [{"scenes": "no json"}, {"frequency_hz": "high"}, {"frequency_hz": "-1"}])
def test_metadata_that_makes_no_sense_is_refused(tmp_path, change):
    path = write(tmp_path / "paths.safetensors", some_arrays(), METADATA | change)
    with pytest.raises(ModelError, match=r"scenes or frequency_hz|must be positive"):
        read_paths(path)

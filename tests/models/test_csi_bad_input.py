"""What comes from outside to CSI feedback: symbols, cards, traced files, configurations; taken or refused by name."""

from __future__ import annotations

import json
import struct
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from semair.errors import ModelError, ScenarioError
from semair.models.cards import Card, NetworkSection, TrainingSection, save_model
from semair.models.csi import networks
from semair.models.csi.channels import PRESETS, ChannelConfig, stream
from semair.models.csi.codec import Codec
from semair.models.csi.evaluate import Condition, Evaluation, NetworkContender, contenders, load_contender
from semair.models.csi.klt import KltCode
from semair.models.csi.raytraced import RayTraced, read_paths
from semair.models.csi.train import TrainingConfig, build_network

TAPS, BEAMS, LENGTH = 8, 4, 6
CONFIG = {"n_taps": TAPS, "n_antennas": BEAMS, "max_length": LENGTH, "width": 8, "heads": 1, "feedforward": 8}
CHANNEL = ChannelConfig(n_antennas=BEAMS, n_taps=TAPS, lead_taps=2.0, n_subcarriers=32)
MIXTURE = {"channel": {"bandwidth_hz": [10e6, 20e6]}}
# Files are written over in each example, which hypothesis wants to be told.
WRITES = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def save(place, **scenario):
    torch.manual_seed(1)
    network = networks.build("aligned", CONFIG)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    card = Card(
        name="mine",
        task="csi",
        network=NetworkSection(kind="aligned", config=CONFIG, n_parameters=1),
        scenario=scenario,
        training=TrainingSection(command="", steps=0, samples=0, time_s=0),
    )
    save_model(place, card, network.state_dict())
    return place


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    return Codec(save(tmp_path_factory.mktemp("codec") / "mine", lengths=[2, 6], mixture=MIXTURE))


ANY = st.one_of(
    st.floats(width=32, allow_subnormal=False),
    st.sampled_from([0.0, 1.0, -1.0, 2.0**127, 2.0**-126, float("nan"), float("inf")]),
    st.floats(-3, 3, width=32, allow_subnormal=False),
)


@settings(max_examples=50)
@given(
    parts=hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, LENGTH), st.just(2)), elements=ANY),
    snr_db=st.floats(allow_nan=False, allow_infinity=False),
)
def test_whatever_is_received_what_is_recovered_is_finite(codec, parts, snr_db):
    received = parts.view(np.complex64)[..., 0]
    found, there = codec.decode(received, snr_db, 10.0)
    assert np.isfinite(found).all()
    assert not found[~there].any()
    assert (there <= (np.isfinite(received).all(1) & received.any(1))).all()
    if there.any():
        # Those left out leave no trace: not even of their number.
        np.testing.assert_array_equal(found[there], codec.decode(received[there], snr_db, 10.0)[0])


@settings(max_examples=50)
@given(
    parts=hnp.arrays(np.float32, (TAPS, BEAMS, 2), elements=ANY),
    length=st.integers(-2, LENGTH + 2),
    snr_db=st.floats(),
)
def test_whatever_is_encoded_words_have_unit_power_or_are_refused(codec, parts, length, snr_db):
    csi = parts.view(np.complex64)[..., 0]
    good = 1 <= length <= LENGTH and np.isfinite(snr_db) and np.isfinite(csi).all() and csi.any()
    if good:
        word = codec.encode(csi, length, snr_db)
        assert word.shape == (length,)
        assert np.mean(np.abs(word) ** 2) == pytest.approx(1, rel=1e-3)
    else:
        with pytest.raises(ValueError, match=r"needs finite numbers|symbols; these weights|snr_db"):
            codec.encode(csi, length, snr_db)


def gaussian(rng, *shape):
    return (rng.standard_normal((*shape, 2)).astype(np.float32) * np.float32(np.sqrt(0.5))).view(np.complex64)[..., 0]


def test_a_user_far_louder_than_symbols_and_noise_is_left_out(codec, rng):
    received = gaussian(rng, 2, LENGTH)
    for snr_db, loudest in ((20.0, 16 * 1.01), (-10.0, 16 * 11)):
        for factor, expected in ((0.9, True), (1.1, False)):
            received[1] *= np.sqrt(factor * loudest / np.mean(np.abs(received[1]) ** 2))
            assert codec.decode(received, snr_db, snr_db)[1].tolist() == [True, expected]


def test_symbols_cut_off_by_a_receiver_are_decoded_still(codec, rng):
    received = gaussian(rng, 2, LENGTH)
    cut = received.copy()
    cut[1] = np.clip(cut[1].real, -0.3, 0.3) + 1j * np.clip(cut[1].imag, -0.3, 0.3)
    found, there = codec.decode(cut, 10.0, 10.0)
    assert there.all()
    assert np.isfinite(found).all()
    assert np.abs(found[1] - codec.decode(received, 10.0, 10.0)[0][1]).max() > 1e-3


def test_numbers_of_symbols_and_snr_that_do_not_fit_are_refused_even_in_silence(codec):
    for n in (0, LENGTH + 1):
        with pytest.raises(ValueError, match=f"{n} symbols; these weights take 1 to 6"):
            codec.decode(np.zeros((2, n), np.complex64), 10.0, 10.0)
    with pytest.raises(ValueError, match=r"snr_db has shape \(3,\); needs one for all, or \(2,\)"):
        codec.decode(np.ones((2, 4), np.complex64), np.zeros(3), 10.0)
    with pytest.raises(ValueError, match=r"snr_db=nan: must be finite"):
        codec.decode(np.ones((2, 4), np.complex64), 10.0, float("nan"))
    with pytest.raises(ValueError, match=r"4\.0 symbols"):
        codec.encode(np.ones((TAPS, BEAMS), np.complex64), 4.0, 10.0)


def test_weights_for_another_bandwidth_are_refused(tmp_path):
    place = save(tmp_path / "mine", mixture=MIXTURE)
    for fits in (10e6, 15e6, 20e6, None):
        Codec(place, (TAPS, BEAMS), bandwidth_hz=fits)
    with pytest.raises(ModelError, match="trained for 10 to 20 MHz, used with 2 MHz"):
        Codec(place, (TAPS, BEAMS), bandwidth_hz=2e6)
    # A card that tells of no bandwidth cannot contradict one.
    Codec(save(tmp_path / "silent"), bandwidth_hz=2e6)


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        ({"n_taps": 16}, "its card says n_taps=16, its network has 8"),
        ({"n_antennas": "4"}, "its card says n_antennas='4', its network has 4"),
        ({"lengths": [2, 7]}, r"its card says lengths=\[2, 7\], its network sends 1 to 6"),
        ({"lengths": []}, r"lengths=\[\]"),
        ({"lengths": 6}, "lengths=6"),
        ({"lengths": [2.5]}, r"lengths=\[2\.5\]"),
        ({"lengths": [True]}, r"lengths=\[True\]"),
        ({"mixture": {}}, "mixture has no bandwidth_hz"),
        ({"mixture": {"channel": {"bandwidth_hz": [2e6]}}}, "mixture has no bandwidth_hz"),
        ({"mixture": {"channel": {"bandwidth_hz": [2e6, 1e6]}}}, "mixture has no bandwidth_hz"),
        ({"mixture": "paper"}, "mixture has no bandwidth_hz"),
    ],
    ids=str,
)
def test_cards_that_contradict_their_network_are_refused(tmp_path, scenario, message):
    with pytest.raises(ModelError, match=message):
        load_contender(str(save(tmp_path / "mine", **scenario)))


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 300), st.floats(), st.text(max_size=6)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=5,
)


def places(value, path=()):
    """Paths of all places in nested tables and lists."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*path, key))


def changed(data, draw):
    """A copy of nested tables and lists with one place put out of order."""
    copy = json.loads(json.dumps(data))
    path = draw.draw(st.sampled_from([path for path in places(copy) if path]))
    parent = copy
    for key in path[:-1]:
        parent = parent[key]
    if draw.draw(st.booleans()):
        parent[path[-1]] = draw.draw(JSON)
    else:
        del parent[path[-1]]
    return copy


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save(tmp_path_factory.mktemp("cards") / "mine", n_taps=8, n_antennas=4, lengths=[2, 6], mixture=MIXTURE)


@WRITES
@given(draw=st.data())
def test_a_card_out_of_order_is_refused_or_loaded(whole, tmp_path, draw):
    card = changed(json.loads((whole / "card.json").read_text()), draw)
    (tmp_path / "card.json").write_text(json.dumps(card))
    (tmp_path / "model.safetensors").write_bytes((whole / "model.safetensors").read_bytes())
    try:
        found, contender = load_contender(str(tmp_path))
    except ModelError:
        return
    assert (contender.network.config.n_taps, contender.network.config.n_antennas) == (8, 4)
    assert found.scenario.get("lengths", [2, 6])


@WRITES
@given(draw=st.data())
def test_a_traced_file_out_of_order_is_refused_or_gives_finite_csi(write_paths, tmp_path, draw):
    path = tmp_path / "paths"
    if not path.exists():
        write_paths(path, n=12)
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    if draw.draw(st.booleans()):
        head = json.dumps(changed(json.loads(data[8 : 8 + size]), draw)).encode()
        data = struct.pack("<Q", len(head)) + head + data[8 + size :]
    else:
        place = draw.draw(st.one_of(st.integers(0, 8 + size), st.integers(0, len(data) - 1)))
        data = data[:place] + bytes([draw.draw(st.integers(0, 255))]) + data[place + 1 :]
    (tmp_path / "broken").write_bytes(data)
    try:
        source = RayTraced(read_paths(tmp_path / "broken"), "train", config=CHANNEL)
        drawn = source.draw(4, stream("train", 1), n_users=1)
    except ModelError:
        return
    assert torch.view_as_real(drawn.delay_angle).isfinite().all()
    power = drawn.h.abs().square().mean((2, 3))
    torch.testing.assert_close(power, torch.ones_like(power), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("gains_re", 1e30, "receives more than is sent"),
        ("delays_s", 1.0, r"or one above 0\.001 s"),
        ("positions_m", -1e12, r"more than 1e\+06 m from"),
    ],
)
def test_values_beyond_single_precision_are_refused(write_paths, tmp_path, name, value, message):
    from safetensors.numpy import load_file, save_file

    path = write_paths(tmp_path / "paths", n=12)
    arrays, metadata = load_file(path), read_paths(path).metadata
    arrays[name].flat[0] = value
    save_file(arrays, path, metadata)
    with pytest.raises(ModelError, match=message):
        read_paths(path)


def test_the_weakest_user_is_as_loud_as_others_in_the_end(write_paths, tmp_path):
    from safetensors.numpy import load_file, save_file

    path = write_paths(tmp_path / "paths", n=12)
    arrays, metadata = load_file(path), read_paths(path).metadata
    plain = RayTraced(read_paths(path), config=CHANNEL).draw(8, stream("train", 1))
    save_file(
        {**arrays, **{name: arrays[name] * np.float32(1e-15) for name in ("gains_re", "gains_im")}}, path, metadata
    )
    weak = RayTraced(read_paths(path), config=CHANNEL).draw(8, stream("train", 1))
    torch.testing.assert_close(weak.delay_angle, plain.delay_angle, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scenes", ["[1, 2]", '"square"', '{"square": 1}', "null", "[" * 100_000])
def test_scenes_that_are_no_list_of_names_are_refused(write_paths, tmp_path, scenes):
    from safetensors.numpy import load_file, save_file

    path = write_paths(tmp_path / "paths", n=12)
    save_file(load_file(path), path, {**read_paths(path).metadata, "scenes": scenes})
    with pytest.raises(ModelError, match="scenes or frequency_hz missing or unreadable"):
        read_paths(path)


TINY = {
    "name": "tiny",
    "seed": 3,
    "start_drops": 0,
    "network": {"kind": "munet", "width": 16, "heads": 2, "feedforward": 24, "code_width": 4},
    "mixture": {
        "channel": {"n_antennas": 4, "n_taps": 8, "lead_taps": 2.0, "bandwidth_hz": [2e6, 20e6]},
        "ratios": [16, 8],
        "snr_db": [-10, 20],
        "far_m": [30, 100],
        "traced": {"share": 0.5, "scenes": ["square"], "augment": True},
    },
    "optimiser": {"steps": 2, "batch": 4},
    "validation": {"every": 2, "drops": 4, "test_drops": 4, "test_snr_db": [10]},
}


@settings(max_examples=60)
@given(draw=st.data())
def test_a_configuration_out_of_order_is_refused_by_name_or_makes_a_network(draw):
    data = changed(TINY, draw)
    try:
        network = build_network(TrainingConfig.model_validate(data))
    except (ScenarioError, ValueError):
        return
    assert network.config.max_length >= 1


@pytest.mark.parametrize("far_m", [[100, 30], [-1, 30], [30, 1e5]])
def test_distances_of_far_users_out_of_order_are_refused(far_m):
    with pytest.raises(ValueError, match=r"far_m=.*: lowest and highest, within 0 to 10000"):
        TrainingConfig.model_validate({**TINY, "mixture": {**TINY["mixture"], "far_m": far_m}})


def test_the_linear_code_refuses_what_does_not_fit(rng):
    draws = gaussian(rng, 40, 2, TAPS, BEAMS)
    code = KltCode(draws)
    broken = draws.copy()
    broken[3, 1, 2, 0] = np.nan
    silent = draws.copy()
    silent[5, 0] = 0
    for bad in (broken, silent, draws[:0]):
        with pytest.raises(ValueError, match=r"needs draws of finite numbers"):
            KltCode(bad)
    with pytest.raises(ValueError, match=r"needs complex \(drop, user, tap, beam\)"):
        KltCode(draws.real)
    for bad in (broken, draws[..., :3], draws.real):
        with pytest.raises(ValueError, match=r"needs finite complex CSI whose last axes are \(8, 4\)"):
            code.encode(bad, 4, 10.0)
    for length, snr_db in ((0, 10.0), (33, 10.0), (4, np.nan)):
        with pytest.raises(ValueError, match="1 to 32 symbols, a finite SNR"):
            code.encode(draws, length, snr_db)
    words = code.encode(draws, 4, 10.0)
    words[7, 1, 2] = np.inf
    with pytest.raises(ValueError, match=r"needs \(batch, user, symbol\), finite"):
        code.decode(words, 10.0)
    with pytest.raises(ValueError, match="words of 3 users; this decoder was made for 2"):
        code.decode(np.ones((2, 3, 4), np.complex64), 10.0)


class Broken:
    name = "broken"

    def __init__(self, recover):
        self.recover = recover


def test_contenders_that_recover_nonsense_are_named():
    nan = Broken(lambda batch, generator: batch.csi * float("nan"))
    with pytest.raises(ModelError, match="broken recovered values that are no numbers"):
        Evaluation([nan], CHANNEL, 4).rows(Condition(ratio=8))
    cut = Broken(lambda batch, generator: batch.csi[..., :2])
    with pytest.raises(ValueError, match=r"broken recovered \(4, 2, 8, 2\) from \(4, 2, 8, 4\)"):
        Evaluation([cut], CHANNEL, 4).rows(Condition(ratio=8))


def test_weights_are_compared_only_where_they_fit(tmp_path):
    with pytest.raises(ScenarioError, match="was trained for 8 taps and 4 antennas; 'lab' has 32 and 4"):
        contenders("lab", [str(save(tmp_path / "mine"))])
    small = NetworkContender("small", networks.build("aligned", {**CONFIG, "max_length": 2}).eval())
    assert Evaluation([small], CHANNEL, 4).rows(Condition(ratio=16))[0].drops == 4
    with pytest.raises(ScenarioError, match="'small' sends at most 2 symbols, and 4 are asked for"):
        Evaluation([small], CHANNEL, 4).rows(Condition(ratio=8))
    with pytest.raises(ValueError, match=r"small needs \(\.\.\., 8, 4\)"):
        small.recover(SimpleNamespace(csi=torch.ones(2, 2, 8, 8), lengths=torch.tensor([2, 2])), torch.Generator())
    assert PRESETS["lab"].n_taps == 32

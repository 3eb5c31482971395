"""CSI in bits: quantisers against Max's table, allocation against all others, codes against what rates allow."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from semair.models.csi import networks
from semair.models.csi.channels import ChannelConfig, Clustered, stream
from semair.models.csi.klt import KltCode
from semair.models.csi.link import nmse
from semair.models.csi.quantised import LinearCoder, NetworkCoder, ScalarQuantisers, lloyd_max, network_values
from semair.models.csi.separate import gaussian_nmse

CONFIG = ChannelConfig(n_antennas=2, n_taps=8, lead_taps=2.0, n_subcarriers=16, bandwidth_hz=5e6)


@pytest.fixture(scope="module")
def csi():
    return Clustered(CONFIG).draw(600, stream("train", 1)).delay_angle


@pytest.fixture(scope="module")
def coder(csi):
    return LinearCoder(KltCode(csi.numpy(), joint=False), csi.flatten(0, 1), 16)


# J. Max, Quantizing for minimum distortion, IRE Trans. Inf. Theory 6(1), 1960, table I.
@pytest.mark.parametrize(("n_bits", "error"), [(0, 1.0), (1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497)])
def test_gaussian_quantisers_have_the_errors_of_the_table(n_bits, error, rng):
    samples = rng.standard_normal(200_000)
    levels = lloyd_max(samples, n_bits)
    found = ((samples[:, None] - levels) ** 2).min(1).mean()
    # The mean of 200 000 squared errors, whose own deviation is at most 3 times their mean: 4 sigma are 2.7 %.
    assert found == pytest.approx(error, rel=0.027)
    assert (np.diff(levels) > 0).all()


def test_allocation_is_the_best_there_is(rng):
    quantisers = ScalarQuantisers(rng.standard_normal((4000, 3)) * [3.0, 1.0, 0.5])
    for total in range(7):
        bits = quantisers.allocate(total)
        assert bits.sum() == total

        def cost(some):
            return sum(quantisers.error(value, n) for value, n in enumerate(some))

        best = min(cost(some) for some in product(range(total + 1), repeat=3) if sum(some) == total)
        assert cost(bits) == pytest.approx(best, rel=1e-9)


def test_values_come_back_as_the_nearest_level(rng):
    quantisers = ScalarQuantisers(rng.standard_normal((30_000, 4)) * [4.0, 2.0, 1.0, 0.01])
    bits = quantisers.allocate(9)
    values = rng.standard_normal((50, 4)) * [4.0, 2.0, 1.0, 0.01]
    words = quantisers.encode(values, bits)
    assert words.shape == (50, 9)
    assert set(np.unique(words)) <= {0, 1}
    found = quantisers.decode(words, bits)
    for value in range(4):
        levels = quantisers.levels(value, int(bits[value]))
        nearest = levels[np.abs(values[:, value, None] - levels).argmin(1)]
        np.testing.assert_allclose(found[:, value], nearest)
    # What is lost of each value is what was said of it.
    more = rng.standard_normal((20_000, 4)) * [4.0, 2.0, 1.0, 0.01]
    lost = ((quantisers.decode(quantisers.encode(more, bits), bits) - more) ** 2).mean(0)
    np.testing.assert_allclose(lost, quantisers.errors(bits), rtol=0.1)


def test_values_that_are_codewords_cost_no_more_than_their_bits(rng):
    values = np.stack([rng.choice([-1.0, 1.0], 500), 0.5 * rng.standard_normal(500)], 1)
    quantisers = ScalarQuantisers(values)
    bits = quantisers.allocate(4)
    assert bits.tolist() == [1, 3]
    np.testing.assert_allclose(quantisers.decode(quantisers.encode(values, bits), bits)[:, 0], values[:, 0])


def test_linear_bits_stay_behind_the_bound_and_come_nearer_with_more(csi, coder):
    drops = Clustered(CONFIG).draw(300, stream("valid", 1)).delay_angle
    present = torch.ones(300, 2, dtype=torch.bool)
    variances = KltCode(csi.numpy(), joint=False).variances
    found = []
    for n_bits in (4, 16, 40):
        (code,) = coder.codes(n_bits)
        words = code.encode(drops.flatten(0, 1))
        assert words.shape == (600, n_bits)
        found.append(float(nmse(drops, code.decode(words, present)).mean()))
        assert found[-1] > gaussian_nmse(np.maximum(variances, 1e-9), n_bits)
    assert found == sorted(found, reverse=True)
    assert found[0] < 0.9
    assert found[-1] < 0.2
    present[:, 1] = False
    alone = code.decode(words, present)
    assert not alone[:, 1].any()
    assert alone[:, 0].any()


def test_finely_quantised_symbols_are_decoded_as_they_would_be_without(csi):
    torch.manual_seed(1)
    network = networks.build(
        "munet",
        {"n_taps": 8, "n_antennas": 2, "max_length": 4, "width": 8, "heads": 1, "feedforward": 8, "code_width": 2},
    ).eval()
    coder = NetworkCoder(network, csi.flatten(0, 1), (2, 4), "small")
    drops = Clustered(CONFIG).draw(50, stream("valid", 1)).delay_angle
    present = torch.ones(50, 2, dtype=torch.bool)
    (code, other) = coder.codes(2 * 4 * 7)
    assert {code.snr_db, other.snr_db} == {15.0, 20.0}
    assert code.length == 4
    values = network_values(network, drops.flatten(0, 1), 4, code.snr_db)
    symbols = torch.from_numpy(values[:, 0::2] + 1j * values[:, 1::2]).to(torch.complex64).unflatten(0, (50, 2))
    with torch.inference_mode():
        expected = network.decode(symbols, torch.full((50,), 4), torch.full((50, 2), code.snr_db), present)
    found = code.decode(code.encode(drops.flatten(0, 1)), present)
    assert float(nmse(expected, found).mean()) < 1e-3
    # Fewer bits are worse, and few bits go to few symbols.
    coarse = coder.codes(4)
    assert {one.length for one in coarse} == {2, 4}
    worse = next(one for one in coder.codes(2 * 4 * 2) if one.length == 4)
    values = network_values(network, drops.flatten(0, 1), 4, worse.snr_db)
    symbols = torch.from_numpy(values[:, 0::2] + 1j * values[:, 1::2]).to(torch.complex64).unflatten(0, (50, 2))
    with torch.inference_mode():
        exact = network.decode(symbols, torch.full((50,), 4), torch.full((50, 2), worse.snr_db), present)
    rough = worse.decode(worse.encode(drops.flatten(0, 1)), present)
    assert float(nmse(exact, rough).mean()) > 10 * float(nmse(expected, found).mean())
    present[3, 0] = False
    assert not worse.decode(worse.encode(drops.flatten(0, 1)), present)[3, 0].any()


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="n_bits=9"):
        lloyd_max(np.zeros(5), 9)

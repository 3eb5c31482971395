"""The picture downlink: where symbols lie, how much power is sent, what receivers learn from reference symbols."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from semair.models.csi.channels import PRESETS, Clustered, stream
from semair.models.semantic import downlink, link, networks, precoding
from semair.models.semantic.downlink import DownlinkConfig
from semair.models.semantic.networks.base import deinterleave, interleave, to_blocks, to_groups, to_subcarriers

TINY = {"fine_width": 8, "fine_heads": 1, "coarse_width": 16, "coarse_heads": 2, "encoder_layers": (1, 2)}
SMALL = {**TINY, "decoder_layers": (2, 2), "csi_width": 8, "fusion_width": 8, "data_width": 8}
WHOLE = {**SMALL, "precoder": "learned", "csi_fusion": True, "data_branch": True}


def network(kind="scsap", seed=1, **fields):
    fields = {**WHOLE, **fields} if kind == "scsap" else {"width": 8, **fields}
    torch.manual_seed(seed)
    return networks.build(kind, fields).eval()


def awakened(built, scale=0.1):
    """Parts that begin as nothing, made to do something."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in built.transmitter.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return built


def drops(n=3, users=2, seed=1, antennas=4, subcarriers=256):
    config = PRESETS["lab"].model_copy(update={"n_antennas": antennas, "n_subcarriers": subcarriers})
    return Clustered(config).draw(n, stream("test", seed), (0.5, 20.0), users).h


def pictures(n=3, users=2, rows=64, columns=64):
    return torch.rand((n, users, 3, rows, columns), generator=torch.Generator().manual_seed(2))


def perfect(n=3):
    return torch.full((n,), link.PERFECT_DB)


def test_every_symbol_lies_somewhere_and_comes_back():
    values = torch.arange(2 * 3 * 2 * 64 * 16.0).reshape(2, 3, 2, 64, 16)
    grid = to_subcarriers(interleave(values), 4)
    assert grid.shape == (2, 3, 256, 8)
    assert torch.equal(deinterleave(to_groups(grid, 4, 16)), values)


def test_a_token_is_spread_over_the_whole_band():
    values = torch.zeros(64, 16)
    values[5] = 1
    used = to_subcarriers(interleave(values)[None], 4).any(-1).nonzero().flatten() // 4
    # Sixteen groups, four apart, the last as far from the first around the band.
    assert sorted((used - used.min()).tolist()) == list(range(0, 64, 4))


def test_blocks_are_filled_up_with_silence():
    blocks = to_blocks(torch.ones(1, 100, 3), 64)
    assert blocks.shape == (1, 2, 64, 3)
    assert float(blocks.sum()) == 300


def test_zero_forcing_is_regularised_by_the_noise_over_channels_of_unit_power():
    # Of any scale: the base station has what feedback and estimators tell it.
    h = drops(2, users=2, seed=4) * 7.0
    snr_db = torch.tensor([0.0, 12.0])
    sent = link.transmit(network("adjscc"), pictures(2), h, perfect(2), snr_db).reference.detach()
    for drop, noise in enumerate((1.0, 10**-1.2)):
        rows = h[drop].numpy().swapaxes(0, 1).astype(complex)
        rows = rows / np.sqrt(np.mean(np.abs(rows) ** 2))
        # One Fourier sequence of reference symbols for each user.
        pilots = np.exp(-2j * np.pi / 2 * np.outer([0, 1], [0, 1]))
        expected = np.linalg.solve(
            rows.conj().swapaxes(1, 2) @ rows + 2 * noise * np.eye(4), rows.conj().swapaxes(1, 2)
        )
        found, expected = sent[drop].numpy(), expected @ pilots
        np.testing.assert_allclose(found / np.linalg.norm(found), expected / np.linalg.norm(expected), atol=2e-5)


@pytest.mark.parametrize("users", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", ["scsap", "adjscc"])
def test_the_frame_has_unit_power_whatever_was_added_to_it(kind, users):
    built = network(kind)
    if kind == "scsap":
        awakened(built)
    h = drops(users=users)
    with torch.inference_mode():
        frame = link.transmit(built, pictures(users=users), h, perfect(), torch.tensor([-5.0, 5.0, 20.0]))
    sent = torch.cat([frame.reference, frame.data], -1)
    assert frame.data.shape == (3, 256, 4, 4)
    torch.testing.assert_close(sent.abs().square().sum(2).mean((1, 2)), torch.ones(3), rtol=1e-4, atol=1e-4)


def test_a_fresh_network_sends_what_zero_forcing_sends():
    whole = network()
    plain = networks.build("scsap", SMALL).eval()
    plain.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith("transmitter")})
    arguments = (pictures(), drops(), perfect(), torch.full((3,), 5.0))
    with torch.inference_mode():
        one, other = link.transmit(whole, *arguments), link.transmit(plain, *arguments)
    torch.testing.assert_close(one.data, other.data, rtol=1e-3, atol=1e-4)


def test_each_part_of_the_transmitter_changes_what_is_sent():
    arguments = (pictures(), drops(), perfect(), torch.full((3,), 5.0))
    with torch.inference_mode():
        sent = {
            fields: link.transmit(awakened(network(**dict(fields))), *arguments).data
            for fields in [(), (("data_branch", False),), (("csi_fusion", False),), (("precoder", "rzf"),)]
        }
    first, *others = sent.values()
    assert all(float((first - other).abs().square().mean()) > 1e-6 for other in others)


def test_the_order_of_users_does_not_matter():
    built = awakened(network())
    h, sent = drops(users=3), pictures(users=3)
    order = torch.tensor([2, 0, 1])
    with torch.inference_mode():
        one = link.transmit(built, sent, h, perfect(), torch.full((3,), 5.0))
        other = link.transmit(built, sent[:, order], h[:, order], perfect(), torch.full((3,), 5.0))
    torch.testing.assert_close(one.data, other.data, rtol=1e-3, atol=1e-4)


def test_received_is_channel_times_sent_with_noise_of_the_stated_power():
    h = drops()
    frame = link.framed(
        precoding.regularised(h.transpose(1, 2), torch.full((3,), 0.1)), torch.ones(3, 256, 4, 40) + 0j, (1, 1)
    )
    snr_db = torch.tensor([0.0, 10.0, 20.0])
    _, data = link.propagate(frame, h, snr_db, torch.Generator().manual_seed(1))
    clean = torch.stack([h[:, :, s] @ frame.data[:, s] for s in range(256)], 2)
    power = (data - clean).abs().square().mean((1, 2, 3))
    # 20480 samples of unit mean and unit variance each: a relative deviation of 0.007, five of them allowed.
    torch.testing.assert_close(power, 10 ** (-snr_db / 10), rtol=0.035, atol=0)


def test_reference_symbols_tell_the_effective_channels():
    h = drops(n=40, users=2, seed=4)
    v = precoding.regularised(h.transpose(1, 2), torch.full((40,), 0.1))
    frame = link.framed(v, torch.zeros(40, 256, 4, 0) + 0j, (0, 0))
    # The reference symbols alone carry the unit power: each stream has that of its column.
    truth = (h.transpose(1, 2) @ v).transpose(1, 2)
    received, _ = link.propagate(frame, h, torch.full((40,), 10.0), torch.Generator().manual_seed(1))
    noise = torch.full((40, 2), 0.1)
    found = link.effective_channels(received, noise)
    rough = torch.einsum("bksp,jp->bksj", received, torch.tensor([[1, 1], [1, -1]]) + 0j) / 2
    error, before = ((x - truth).abs().square().mean() for x in (found, rough))
    # Least squares over two symbols leaves half of the noise; cleaning must take most of that away.
    assert before == pytest.approx(0.05, rel=0.05)
    assert error < 0.4 * before


def test_without_noise_the_symbols_arrive_as_they_were_sent():
    built = network("adjscc")
    h, sent = drops(users=1), pictures(users=1)
    snr_db = torch.full((3,), 60.0)
    with torch.inference_mode():
        frame = link.transmit(built, sent, h, perfect(), snr_db)
        received = link.propagate(frame, h, snr_db, torch.Generator().manual_seed(1))
        heard = link.hear(built, *received, torch.full((3, 1), 1e-6), frame.size)
        code = built.encoder(sent.flatten(0, 1), torch.tensor([[6.0, -4.0, 4.0]] * 3)).unflatten(1, (8, 8))
    code = code * (2 * code.square().mean((1, 2, 3), keepdim=True)).rsqrt()
    features = heard.features[:, 0]
    assert float(features[..., 32:].min()) > 0.99
    # A user alone sees its symbols up to the scale that data have over reference symbols, about 1.
    error = (features[..., :32] - code).square().mean() / code.square().mean()
    assert float(error) < 0.01


def test_reliability_is_what_interference_and_noise_leave():
    built = network("adjscc")
    h = drops(n=30)
    snr_db = torch.full((30,), 5.0)
    with torch.inference_mode():
        frame = link.transmit(built, pictures(n=30), h, perfect(30), snr_db)
        received = link.propagate(frame, h, snr_db, torch.Generator().manual_seed(1))
        noise = torch.full((30, 2), 10**-0.5)
        heard = link.hear(built, *received, noise, frame.size)
    v = precoding.regularised(h.transpose(1, 2), noise[:, 0])
    ratio = precoding.sinr(h.transpose(1, 2), v, noise[:, 0])
    expected = (ratio / (1 + ratio)).mean()
    # Estimates of channels near 0 come out too large rather than too small.
    assert float(heard.features[..., 32:].mean()) == pytest.approx(float(expected), abs=0.04)


@pytest.mark.parametrize("size", [(64, 64), (64, 128), (128, 128)])
def test_pictures_of_several_sizes_come_back_in_theirs(size):
    built = awakened(network())
    channels = link.Channels(drops(), drops(), perfect())
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        found, heard = link.deliver(built, pictures(rows=size[0], columns=size[1]), channels, torch.zeros(3), generator)
    assert found.shape == (3, 2, 3, *size)
    assert float(found.min()) >= 0 and float(found.max()) <= 1
    assert heard.sinr_db.shape == (3, 2)


@pytest.mark.parametrize("case", ["zero", "equal", "one zero", "stale", "not a number"])
def test_a_base_station_that_knows_nothing_or_too_little_still_serves(case):
    built = awakened(network())
    h = drops()
    known = {
        "zero": torch.zeros_like(h),
        "equal": h[:, :1].expand_as(h),
        "one zero": h * torch.tensor([1, 0])[:, None, None],
        "stale": h.roll(1, 0),
        "not a number": torch.where(torch.arange(3)[:, None, None, None] == 1, torch.nan, h),
    }
    channels = link.Channels(h, known[case], perfect())
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        found, _ = link.deliver(built, pictures(), channels, torch.full((3,), 20.0), generator)
    assert bool(torch.isfinite(found).all())


def test_the_size_of_the_paper_works_when_reduced():
    built = awakened(network(n_antennas=16, n_subcarriers=64, group=1, uses=8))
    h = drops(users=4, antennas=16, subcarriers=64)
    frame = link.transmit(built, pictures(users=4, rows=128, columns=128), h, perfect(), torch.zeros(3))
    # 256 tokens of 8 symbols on 64 subcarriers.
    assert frame.data.shape == (3, 64, 16, 32)


def test_gradients_reach_every_parameter():
    built = awakened(network()).train()
    channels = link.Channels(drops(), drops(), perfect())
    found, _ = link.deliver(built, pictures(), channels, torch.full((3,), 5.0), torch.Generator().manual_seed(1))
    found.square().mean().backward()
    missing = [name for name, p in built.named_parameters() if p.grad is None or not bool(torch.isfinite(p.grad).all())]
    assert not missing


def test_estimates_have_the_stated_error_and_it_is_independent_of_them():
    h = drops(n=60)
    known = downlink.estimated(h, torch.full((60,), -6.0), torch.Generator().manual_seed(1))
    error = h - known
    assert 10 * math.log10(float(error.abs().square().mean() / h.abs().square().mean())) == pytest.approx(-6.0, abs=0.1)
    assert abs(complex((error * known.conj()).mean())) < 0.01


def test_csi_is_known_as_configured():
    config = DownlinkConfig(channel="lab", perfect=0.5, fed_back=0.25)
    found = downlink.draw(config, 200, torch.Generator().manual_seed(1))
    nmse_db = 10 * torch.log10((found.h - found.known).abs().square().mean((1, 2, 3)).clamp_min(1e-9))
    exact = found.nmse_db == link.PERFECT_DB
    # A binomial share of 200 deviates by 0.035; three of them.
    assert float(exact.float().mean()) == pytest.approx(0.5, abs=0.11)
    assert bool((nmse_db[exact] < -80).all())
    assert float((nmse_db - found.nmse_db)[~exact].abs().mean()) < 3


def test_fed_back_csi_is_better_with_more_symbols_at_a_better_snr():
    config = DownlinkConfig(channel="lab")

    def error(symbols, snr_db):
        made = downlink.draw(config, 150, torch.Generator().manual_seed(2), csi="fed back", feedback=(symbols, snr_db))
        return float((made.h - made.known).abs().square().mean()), float(made.nmse_db.mean())

    good, expected = error(16, 20.0)
    assert good < 0.7 * error(2, 0.0)[0]
    # Users here are further apart than those of the card, and their channels reach beyond the delays that are sent.
    assert 10 * math.log10(good) == pytest.approx(expected, abs=3)


def test_draws_are_those_of_the_seed():
    config = DownlinkConfig(channel="lab")
    one, other = (downlink.draw(config, 8, torch.Generator().manual_seed(9)) for _ in range(2))
    assert torch.equal(one.known, other.known) and torch.equal(one.h, other.h)


@pytest.mark.parametrize(
    "wrong", [{"perfect": 0.8, "fed_back": 0.4}, {"users": [0]}, {"snr_db": [20, -5]}, {"channel": "home"}]
)
def test_contradictions_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DownlinkConfig.model_validate(wrong)


def test_windows_keep_their_neighbours_apart_across_the_seam():
    from semair.models.semantic.networks._layers import SwinLayer

    torch.manual_seed(1)
    layer = SwinLayer(8, 2, 4, True, 16).eval()
    x = torch.zeros(2, 8, 12, 8)
    x[0] = torch.randn(8, 12, 8)
    changed = x.clone()
    changed[0, 0, 0] = torch.randn(8)
    with torch.inference_mode():
        moved = (layer(changed) - layer(x)).abs().sum(-1)[0]
    touched = {tuple(at) for at in (moved > 1e-7).nonzero().tolist()}
    # Shifted by two, the corner shares its window with two rows and two columns alone, not with the far edges.
    assert touched == {(r, c) for r in range(2) for c in range(2)}
    assert np.isfinite(moved.numpy()).all()

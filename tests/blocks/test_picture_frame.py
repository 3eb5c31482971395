"""The frame of the picture downlink: places, grant, cells through known channels, clocks that drift, noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from semair.blocks.waveforms.beacon import beacon
from semair.blocks.waveforms.frame import FrameFormat
from semair.blocks.waveforms.picture_frame import (
    MOST_USERS,
    PictureFrame,
    PictureSlots,
    channels_at,
    grant_number,
    granted_users,
    on_data_subcarriers,
    picture_slot,
    receive_slot,
)

FMT = FrameFormat(
    sample_rate_hz=2e6,
    n_fft=64,
    cp_samples=16,
    n_used=48,
    n_groups=4,
    max_preamble_length=1,
    guard_samples=32,
    frame_samples=4096,
)
FRAME = PictureFrame(FMT, PictureSlots(n_streams=2, data_symbols=5), n_antennas=3, n_users=4, n_subcarriers=32)
TEXTS = {
    "users": {"n_users": 33, "slots": PictureSlots(n_streams=2)},
    "n_antennas": {"n_antennas": 1},
    "n_streams": {"n_users": 1},
    "n_subcarriers": {"n_subcarriers": 50},
    "even": {"n_subcarriers": 31},
    "frame_samples": {"slots": PictureSlots(n_streams=2, data_symbols=60)},
}


def make(**changed) -> PictureFrame:
    values = {
        "frame_format": FMT,
        "slots": PictureSlots(n_streams=2, data_symbols=5),
        "n_antennas": 3,
        "n_users": 4,
        "n_subcarriers": 32,
    }
    return PictureFrame(**{**values, **changed})


def cells(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return ((rng.standard_normal((*shape, 2)) @ np.array([1, 1j])) / np.sqrt(2)).astype(np.complex64)


def heard(
    slot: np.ndarray, delays: np.ndarray, gains: np.ndarray, noise_power: float, cfo_hz: float, rng, gain: float = 1.0
) -> np.ndarray:
    """A slot over whole-sample paths, (path,) and (path, antenna), up to the end of the noise slot."""
    out = np.zeros(FRAME.used_samples - FRAME.grant_start, complex)
    for delay, weights in zip(delays, gains, strict=True):
        out[delay : delay + slot.shape[1]] += (weights @ slot)[: len(out) - delay]
    out = out * np.exp(2j * np.pi * cfo_hz / FMT.sample_rate_hz * np.arange(len(out)))
    return (gain * (out + cells(rng, len(out)) * np.sqrt(noise_power))).astype(np.complex64)


@pytest.mark.parametrize("text", TEXTS)
def test_what_does_not_fit_is_refused_with_what_to_change(text):
    with pytest.raises(ValueError, match=text):
        make(**TEXTS[text])


def test_slots_follow_one_another():
    symbol = FMT.symbol_samples
    assert FRAME.grant_start == FMT.beacon_samples + FMT.guard_samples
    assert FRAME.reference_start == FRAME.grant_start + (1 + FMT.header_symbols) * symbol
    # References, data, the closing reference.
    assert FRAME.downlink_samples == FRAME.reference_start + (2 + 5 + 1) * symbol
    assert FRAME.used_samples == FRAME.downlink_samples + FMT.guard_samples + FMT.noise_symbols * symbol
    assert FRAME.precoded_symbols(1) == 7 and FRAME.precoded_symbols(0) == 0
    assert 0 not in FRAME.subcarriers and len(set(FRAME.bins)) == 32
    assert set(FRAME.bins) <= set(FMT.used_subcarriers)


@given(st.sets(st.integers(0, MOST_USERS - 1)))
def test_a_grant_names_its_users(users):
    ordered = tuple(sorted(users))
    assert granted_users(grant_number(ordered)) == ordered


@pytest.mark.parametrize("users", [(1, 1), (-1,), (MOST_USERS,)])
def test_a_grant_names_no_others(users):
    with pytest.raises(ValueError, match="each once"):
        grant_number(users)


def test_csi_moves_to_the_datas_subcarriers():
    frame = make(n_subcarriers=8)
    csi = np.arange(-4, 4)[:, None] * np.ones((8, 3))
    np.testing.assert_array_equal(on_data_subcarriers(csi)[:-1, 0], frame.subcarriers[:-1])
    # That of the upper end is not known.
    assert on_data_subcarriers(csi)[-1, 0] == 3


def test_channels_are_the_paths_transform():
    rng = np.random.default_rng(1)
    delays, gains = rng.uniform(0, 9, (2, 4)), cells(rng, 2, 4, 3)
    h = channels_at(FRAME, delays, gains)
    k = int(np.flatnonzero(FRAME.subcarriers == -7)[0])
    expected = sum(gains[1, p] * np.exp(2j * np.pi * 7 * delays[1, p] / 64) for p in range(4))
    np.testing.assert_allclose(h[1, k], expected, rtol=1e-5)


def test_cells_of_unit_power_are_samples_of_the_used_share():
    rng = np.random.default_rng(2)
    reference, data = cells(rng, 2, 32, 3) / np.sqrt(3), cells(rng, 5, 32, 3) / np.sqrt(3)
    slot = picture_slot(FRAME, (0, 2), reference, data, grant_amplitude=1.0)
    bodies = slot[:, FRAME.grant_samples :].reshape(3, 8, -1)[:, :, FMT.cp_samples :]
    energy = np.sum(np.abs(np.concatenate([reference, data, reference[:1]])) ** 2)
    np.testing.assert_allclose(np.sum(np.abs(bodies) ** 2), energy, rtol=1e-5)
    np.testing.assert_allclose(np.mean(np.sum(np.abs(slot[:, : FRAME.grant_samples]) ** 2, 0)), 1, rtol=0.1)


def test_references_that_are_all_the_same_make_no_peak():
    """What converters clip: before scrambling one sample would hold the energy of the whole symbol."""
    reference = np.ones((2, 32, 3), np.complex64)
    slot = picture_slot(FRAME, (0, 1), reference, np.ones((5, 32, 3), np.complex64))
    body = slot[0, FRAME.grant_samples :].reshape(8, -1)[:, FMT.cp_samples :]
    peak = np.max(np.abs(body) ** 2, axis=1) / np.mean(np.abs(body) ** 2, axis=1)
    # 32 equal subcarriers out of 64 would peak at 32 times the mean; random phases stay near ln(64) times.
    assert peak.max() < 12


@pytest.mark.parametrize("users", [(0,), (3,), (1, 3), (0, 2)])
@pytest.mark.parametrize("gain", [1.0, 1e-4, 300.0])
def test_cells_arrive_as_channel_times_cell(users, gain):
    rng = np.random.default_rng(len(users))
    n = len(users)
    reference, data = cells(rng, n, 32, 3), cells(rng, 5, 32, 3)
    slot = picture_slot(FRAME, users, reference, data)
    delays, gains = np.array([0, 3, 7]), cells(rng, 3, 3)
    found = receive_slot(heard(slot, delays, gains, 0.0, 0.0, rng, gain), FRAME)
    assert found.users == users
    h = channels_at(FRAME, delays[None].astype(float), gains[None])[0]
    expected = [np.einsum("sa,qsa->qs", h, part) for part in (reference, data)]
    level = np.mean(np.abs(expected[0]) ** 2)
    np.testing.assert_allclose(found.level, gain**2 * level, rtol=1e-3)
    for part, wanted in zip((found.reference, found.data), expected, strict=True):
        np.testing.assert_allclose(part, wanted / np.sqrt(level), atol=2e-3)
    np.testing.assert_allclose(np.mean(np.abs(found.reference) ** 2), 1, rtol=1e-4)
    assert abs(found.cfo_hz) < 0.1


def test_noise_is_measured_on_the_scale_of_the_cells():
    rng = np.random.default_rng(4)
    reference, data = cells(rng, 1, 32, 3), cells(rng, 5, 32, 3)
    slot = picture_slot(FRAME, (1,), reference, data)
    ratios = []
    for _ in range(40):
        found = receive_slot(heard(slot, np.array([0]), np.ones((1, 3)), 0.05, 0.0, rng, 0.3), FRAME)
        ratios.append(found.noise_power * found.level / (0.09 * 0.05))
    # 40 x 4 x 32 exponential values: a standard deviation of 1.4 % of the mean; four of them.
    assert abs(np.mean(ratios) - 1) < 0.056


@pytest.mark.parametrize("cfo_hz", [-150.0, 20.0, 400.0])
def test_drift_is_followed(cfo_hz):
    """A clock that is off by so much turns a symbol against the next by 2 pi cfo T; none of that may be left."""
    rng = np.random.default_rng(5)
    reference, data = cells(rng, 2, 32, 3), cells(rng, 5, 32, 3)
    slot = picture_slot(FRAME, (0, 1), reference, data)
    clean = receive_slot(heard(slot, np.array([0]), np.ones((1, 3)), 0.0, 0.0, rng), FRAME)
    samples = heard(slot, np.array([0]), np.ones((1, 3)), 0.0, cfo_hz, rng)
    found = receive_slot(samples, FRAME)
    # Interference of subcarriers has (pi cfo / spacing)^2 / 3 of the power: 2.3 % of the amplitude at 400 Hz, with
    # which the angle between two symbols is off by 0.025 rad at most.
    assert abs(found.cfo_hz - cfo_hz) < 0.04 * abs(cfo_hz) + 1
    turned = found.data * np.conj(clean.data)
    angles = np.angle(turned.sum(axis=1))
    # What is left is one phase for all, which references take, and some interference of subcarriers.
    assert np.ptp(angles) < 0.03
    left = receive_slot(samples, FRAME, follow_drift=False)
    turned = left.data * np.conj(clean.data)
    steps = np.diff(np.unwrap(np.angle(turned.sum(axis=1))))
    np.testing.assert_allclose(steps, 2 * np.pi * cfo_hz * FMT.symbol_samples / FMT.sample_rate_hz, atol=0.02)
    # Told before, it is removed at once.
    known = receive_slot(samples, FRAME, cfo_hz=cfo_hz)
    assert abs(known.cfo_hz) < 1


def test_a_fraction_of_a_sample_is_undone():
    rng = np.random.default_rng(6)
    reference, data = cells(rng, 1, 32, 3), cells(rng, 5, 32, 3)
    samples = heard(picture_slot(FRAME, (0,), reference, data), np.array([0]), np.ones((1, 3)), 0.0, 0.0, rng)
    early, exact = receive_slot(samples, FRAME, fraction_samples=0.5), receive_slot(samples, FRAME)
    ratio = early.data / exact.data
    np.testing.assert_allclose(ratio[0], np.exp(2j * np.pi * FRAME.subcarriers * 0.5 / 64), atol=1e-3)


def test_an_empty_grant_brings_nothing():
    nothing = np.empty((0, 32, 3), np.complex64)
    slot = picture_slot(FRAME, (), nothing, nothing)
    found = receive_slot(heard(slot, np.array([0]), np.ones((1, 3)), 1e-3, 0.0, np.random.default_rng(7)), FRAME)
    assert found.users == () and found.reference.shape == (0, 32)
    assert not slot[:, FRAME.grant_samples :].any()


def test_noise_is_no_grant():
    rng = np.random.default_rng(8)
    read = [receive_slot(cells(rng, FRAME.used_samples - FRAME.grant_start), FRAME).users for _ in range(20)]
    # A check sum of 16 bits takes one in 65 536 for a grant.
    assert read == [None] * 20


def test_a_grant_for_more_users_than_there_are_streams_is_refused():
    wide = make(slots=PictureSlots(n_streams=3, data_symbols=5))
    rng = np.random.default_rng(9)
    slot = picture_slot(wide, (0, 1, 2), cells(rng, 3, 32, 3), cells(rng, 5, 32, 3))
    assert receive_slot(heard(slot, np.array([0]), np.ones((1, 3)), 0.0, 0.0, rng), FRAME).users is None


def test_the_grant_survives_where_one_antenna_is_not_heard():
    rng = np.random.default_rng(10)
    slot = picture_slot(FRAME, (0, 3), cells(rng, 2, 32, 3), cells(rng, 5, 32, 3))
    samples = heard(slot, np.array([0]), np.array([[0.0, 1.0, 0.5]]), 0.05, 0.0, rng)
    assert receive_slot(samples, FRAME).users == (0, 3)


def test_a_grant_is_no_beacon():
    slot = picture_slot(FRAME, (0,), np.zeros((1, 32, 3), np.complex64), np.zeros((5, 32, 3), np.complex64))
    sync = beacon(FMT, 0)[: FMT.sync_samples]
    found = np.abs(np.correlate(slot[0], sync)) / len(sync)
    assert found.max() < 0.5


@settings(max_examples=25)
@given(st.data())
def test_any_users_and_cells_come_back(data_of):
    users = tuple(sorted(data_of.draw(st.sets(st.integers(0, 3), max_size=2))))
    rng = np.random.default_rng(data_of.draw(st.integers(0, 2**32)))
    n_symbols = data_of.draw(st.integers(1, 8))
    frame = make(slots=PictureSlots(n_streams=2, data_symbols=n_symbols), n_antennas=2)
    reference, data = cells(rng, len(users), 32, 2), cells(rng, n_symbols, 32, 2)
    slot = picture_slot(frame, users, reference, data)
    samples = np.zeros(frame.used_samples - frame.grant_start, np.complex64)
    samples[: slot.shape[1]] = slot.sum(axis=0)
    found = receive_slot(samples, frame)
    assert found.users == users
    if users:
        expected = data.sum(axis=2) / np.sqrt(np.mean(np.abs(reference.sum(axis=2)) ** 2))
        np.testing.assert_allclose(found.data, expected, atol=5e-3 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("users", "shapes", "text"),
    [((1, 0), (2, 5), "ascending"), ((0, 1, 2), (3, 5), "at most 2"), ((0,), (2, 5), "shape"), ((0,), (1, 4), "shape")],
)
def test_slots_that_do_not_fit_are_refused(users, shapes, text):
    with pytest.raises(ValueError, match=text):
        picture_slot(FRAME, users, *(np.zeros((n, 32, 3), np.complex64) for n in shapes))


def test_samples_that_do_not_fit_are_refused():
    span = FRAME.used_samples - FRAME.grant_start
    with pytest.raises(ValueError, match="samples has shape"):
        receive_slot(np.zeros(span - 1, np.complex64), FRAME)
    wrong = np.zeros(span, np.complex64)
    wrong[3] = np.nan
    with pytest.raises(ValueError, match="no numbers"):
        receive_slot(wrong, FRAME)

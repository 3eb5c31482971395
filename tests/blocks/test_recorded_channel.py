"""A recorded channel on the emulated air: taps, noise, offsets, mapping, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from semair.blocks.waveforms.air import Air
from semair.blocks.waveforms.impairments import Impairments
from semair.blocks.waveforms.recorded_channel import RecordedChannel, RecordedLinks
from semair.models.channels import ChannelConfig

RECORDED = ChannelConfig(kind="recorded", recording="x")
FRAME = 2048
RATE_HZ = 1e6


def _normal(rng, *shape):
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2)


@pytest.fixture
def links(rng) -> RecordedLinks:
    """Three users in four frames of a recording with two antennas; user 2 was heard once."""
    index = np.array([0, 0, 1, 1, 2, 3, 3])
    users = np.array([0, 1, 0, 2, 1, 0, 1])
    return RecordedLinks(
        sample_rate_hz=RATE_HZ,
        first_delay_samples=-2,
        frame_number=np.array([10, 11, 12, 13]),
        fraction=np.zeros(4),
        cfo_hz=500.0,
        sampling_offset=0.0,
        noise_power=np.array([1e-4, 4e-4]),
        beacon_taps=_normal(rng, 4, 2, 5),
        beacon_power=4.0,
        link_frame=index,
        link_user=users,
        link_taps=_normal(rng, 7, 2, 5),
        link_cfo_hz=np.linspace(-30, 30, 7),
        link_error=np.full(7, 0.1),
    )


def _channel(links, **options) -> RecordedChannel:
    return RecordedChannel(links, **{"n_users": 3, "frame_samples": FRAME, "beacon_power": 1.0, "seed": 5, **options})


def _air(channel, impairments=None, **options) -> Air:
    return Air(
        RECORDED,
        impairments or Impairments(cfo_ppm=3, chain_gain_db=5, user_cfo_hz=100, user_timing_samples=2),
        **{
            "sample_rate_hz": RATE_HZ,
            "centre_frequency_hz": 1e9,
            "n_rx": 2,
            "n_users": channel.n_users,
            "noise_power": 99.0,
            "seed": 1,
            "recorded": channel,
            "block_samples": 512,
            "user_power_spread_db": 10,
            **options,
        },
    )


def _silent(links) -> RecordedLinks:
    return replace(links, noise_power=np.full(2, 1e-30))


def test_burst_meets_the_recorded_taps(rng, links):
    channel = _channel(_silent(links), keep_cfo=False)
    air = _air(channel)
    sent = _normal(rng, 300).astype(np.complex64)
    air.add_burst(1, 3 * FRAME + 100, sent, 3)
    received = air.process(np.zeros(4 * FRAME + 512, np.complex64))
    link = channel.link_of(1, 3)
    assert links.link_user[link] == channel.assigned[1]
    at = 3 * FRAME + 100 + air.truth.latency_samples - 2
    # The estimate's power is given back: 10 % error, hence a tenth less power.
    expected = np.array([np.convolve(sent, row) for row in links.link_taps[link]]) / np.sqrt(0.9)
    np.testing.assert_allclose(received[:, at : at + 304], expected, atol=2e-5)
    received[:, at : at + 304] = 0
    assert np.abs(received).max() < 1e-6


def test_beacon_meets_another_recorded_frame_every_time_at_recorded_power(rng, links):
    channel = _channel(_silent(links), keep_cfo=False)
    air = _air(channel)
    tx = np.zeros(9 * FRAME, np.complex64)
    sent = _normal(rng, 400).astype(np.complex64)
    for frame in range(8):
        tx[frame * FRAME : frame * FRAME + 400] = sent
    received = air.process(tx)
    met = set()
    for frame in range(8):
        at = frame * FRAME + air.truth.latency_samples - 2
        # Recorded with power 4, sent with power 1 now, received as it was recorded.
        outcomes = [2 * np.array([np.convolve(sent, row) for row in taps]) for taps in links.beacon_taps]
        distances = [np.abs(received[:, at : at + 404] - outcome).max() for outcome in outcomes]
        met.add(int(np.argmin(distances)))
        assert min(distances) < 1e-4
    assert len(met) > 1


def test_noise_is_recorded_noise_and_only_ever_more(links):
    for backoff_db in (0.0, 6.0):
        air = _air(_channel(links, snr_backoff_db=backoff_db))
        power = np.mean(np.abs(air.process(np.zeros(1 << 16, np.complex64))) ** 2, axis=1)
        # 65536 samples: 0.4 %; five of them.
        np.testing.assert_allclose(power, links.noise_power * 10 ** (backoff_db / 10), rtol=0.02)
    with pytest.raises(ValueError, match="snr_backoff_db"):
        _channel(links, snr_backoff_db=-1.0)


@pytest.mark.parametrize("keep", [True, False])
def test_offsets_are_kept_or_removed(rng, links, keep):
    links = replace(_silent(links), sampling_offset=2e-6, fraction=np.array([0.3, -0.2, 0.1, 0.4]))
    channel = _channel(links, keep_cfo=keep, keep_timing=keep)
    air = _air(channel)
    assert air.truth.cfo_hz == (500.0 if keep else 0.0)
    assert air.truth.sampling_offset == (2e-6 if keep else 0.0)
    link = channel.link_of(0, 0)
    tone = np.ones(1500, np.complex64)
    air.add_burst(0, 0, tone, 0)
    received = air.process(np.zeros(6 * FRAME, np.complex64))[0]
    middle = received[100 + air.truth.latency_samples : 1400 + air.truth.latency_samples]
    turn = np.angle(np.vdot(middle[:-1], middle[1:])) * RATE_HZ / (2 * np.pi)
    # A tone through a filter at rest stays a tone.
    assert turn == pytest.approx(500.0 + links.link_cfo_hz[link] if keep else 0.0, abs=1.0)


def test_removed_timing_centres_every_link_alike(links):
    channel = _channel(links, keep_timing=False)
    centres = []
    for frame in range(40):
        for user in range(3):
            paths = channel.user_paths(user, frame)
            powers = np.sum(np.abs(paths.gains * 10 ** (channel.chain_gain_db / 20)) ** 2, axis=1)
            centres.append(powers @ paths.tap_delays_s / powers.sum() * RATE_HZ)
    assert np.ptp(centres) < 1e-9


def test_output_does_not_depend_on_cuts_and_repeats_with_the_seed(rng, links):
    tx = np.zeros(4 * FRAME, np.complex64)
    for frame in range(4):
        tx[frame * FRAME : frame * FRAME + 300] = 1
    whole, cut, other = (_air(_channel(links, seed=seed)) for seed in (5, 5, 6))
    sent = _normal(rng, 200)
    for air in (whole, cut, other):
        for frame in range(3):
            air.add_burst(frame, frame * FRAME + 600, sent, frame)
    one = whole.process(tx)
    pieces = np.concatenate([cut.process(part) for part in np.split(tx, 16)], axis=1)
    assert one.tobytes() == pieces.tobytes()
    assert one.tobytes() != other.process(tx).tobytes()


def test_users_are_drawn_once_and_links_per_frame(links):
    channel = _channel(links)
    assert sorted(channel.assigned) == [0, 1, 2]
    again = _channel(links)
    seen = {user: set() for user in range(3)}
    for frame in range(60):
        for user in range(3):
            link = channel.link_of(user, frame)
            assert link == again.link_of(user, frame)
            assert links.link_user[link] == channel.assigned[user]
            seen[user].add(link)
    # Every link of every user is met within 60 frames: missed with probability 3 (2/3)^60.
    assert set().union(*seen.values()) == set(range(7))


def test_recorded_mapping_meets_the_very_link_where_there_is_one(links):
    channel = _channel(links, mapping="recorded", n_users=4, reuse=True)
    assert list(channel.assigned[:3]) == [0, 1, 2] and channel.assigned[3] in (0, 1, 2)
    for link, (index, user) in enumerate(zip(links.link_frame, links.link_user, strict=True)):
        assert channel.link_of(int(user), int(links.frame_number[index])) == link
    assert channel.link_of(2, 99) == 3
    np.testing.assert_array_equal(
        channel.beacon_paths(12).gains, _channel(links, mapping="recorded", seed=9).beacon_paths(12).gains
    )


def test_more_users_than_recorded_need_leave(links):
    with pytest.raises(ValueError, match=r"n_users=4.*3 users"):
        _channel(links, n_users=4)
    reused = _channel(links, n_users=7, reuse=True)
    assert sorted(np.bincount(reused.assigned)) == [2, 2, 3]
    assert reused.describe()["users_reused"] is True


@pytest.mark.parametrize(
    ("options", "word"),
    [({"n_rx": 3}, "n_rx=3"), ({"sample_rate_hz": 2e6}, "sample_rate_hz"), ({"recorded": None}, "recorded=None")],
)
def test_air_refuses_what_does_not_fit_the_recording(links, options, word):
    with pytest.raises(ValueError, match=word):
        _air(_channel(links), **options)


def test_snr_is_that_of_the_links(links):
    channel = _channel(links, snr_backoff_db=3.0)
    power = np.sum(np.abs(links.link_taps) ** 2, axis=2) / 0.9
    expected = 10 * np.log10(np.mean(power / links.noise_power)) - 3
    assert channel.describe()["cell_snr_db"] == pytest.approx(expected)

"""The emulated air to users: against channels in closed form, whatever the cuts, with every user's own clock."""

from __future__ import annotations

import numpy as np
import pytest
from semair.blocks.waveforms.downlink import Downlink, DownlinkPaths
from semair.blocks.waveforms.impairments import Impairments
from semair.errors import RadioError

FRAME, ACTIVE, N_TX, N_USERS = 8192, 3000, 3, 2
RATE_HZ, CARRIER_HZ = 4e6, 3.5e9


def paths(frame: int) -> DownlinkPaths:
    rng = np.random.default_rng([5, frame])
    gains = (rng.standard_normal((N_USERS, 4, N_TX)) + 1j * rng.standard_normal((N_USERS, 4, N_TX))) / np.sqrt(8)
    return DownlinkPaths(np.sort(rng.uniform(0, 40, (N_USERS, 4)), axis=1), gains.astype(np.complex64))


def downlink(impairments: Impairments | None = None, **options) -> Downlink:
    chosen = {
        "sample_rate_hz": RATE_HZ,
        "centre_frequency_hz": CARRIER_HZ,
        "n_tx": N_TX,
        "n_users": N_USERS,
        "noise_power": 0.0,
        "frame_samples": FRAME,
        "active_samples": ACTIVE,
        "seed": 1,
        **options,
    }
    return Downlink(impairments or Impairments(), chosen.pop("paths", paths), **chosen)


def sent(n_frames: int, rng: np.random.Generator, band: float = 0.3) -> np.ndarray:
    """Bursts within a part of the band, where fractional delays are exact, and silence; (N_TX, samples)."""
    tx = np.zeros((N_TX, (n_frames * FRAME + 16384) // 4096 * 4096), np.complex64)
    for frame in range(n_frames):
        burst = rng.standard_normal((N_TX, ACTIVE - 200)) + 1j * rng.standard_normal((N_TX, ACTIVE - 200))
        spectrum = np.fft.fft(burst, axis=1)
        spectrum[:, np.abs(np.fft.fftfreq(burst.shape[1])) > band] = 0
        tx[:, frame * FRAME + 100 : frame * FRAME + ACTIVE - 100] = np.fft.ifft(spectrum, axis=1)
    return tx


def expected(tx: np.ndarray, frame: int, user: int, latency: float, length: int) -> np.ndarray:
    """A frame behind its paths, delayed in the frequency domain; (length,) from the frame's begin in the stream."""
    burst = np.zeros((N_TX, 16384), complex)
    burst[:, :ACTIVE] = tx[:, frame * FRAME : frame * FRAME + ACTIVE]
    spectrum, turns = np.fft.fft(burst, axis=1), np.fft.fftfreq(16384)
    channel = paths(frame)
    delays = channel.delays_samples[user] + latency
    passed = sum(
        np.exp(-2j * np.pi * turns * delay) * (gain @ spectrum)
        for delay, gain in zip(delays, channel.gains[user], strict=True)
    )
    return np.fft.ifft(passed)[:length]


def test_every_frame_passes_its_own_channels(rng):
    tx = sent(3, rng)
    air = downlink()
    rx = air.process(tx)
    for frame in range(3):
        for user in range(N_USERS):
            truth = expected(tx, frame, user, air.truth.latency_samples, FRAME)
            got = rx[user, frame * FRAME : (frame + 1) * FRAME]
            error = np.mean(np.abs(got - truth) ** 2) / np.mean(np.abs(truth) ** 2)
            # Ends of bursts that were cut to the band leave little outside of it.
            assert 10 * np.log10(error) < -43


@pytest.mark.parametrize("level", ["perfect", "cabled", "wireless"])
def test_output_does_not_depend_on_the_cuts(level, rng):
    tx = sent(2, rng)
    whole = downlink(Impairments.preset(level), noise_power=0.01).process(tx)
    pieces = downlink(Impairments.preset(level), noise_power=0.01)
    cuts = np.split(tx, [4096, 12288, 20480], axis=1)
    np.testing.assert_array_equal(np.concatenate([pieces.process(cut) for cut in cuts], axis=1), whole)


def test_users_have_clocks_of_their_own(rng):
    air = downlink(Impairments(cfo_ppm=2.0, start_delay_samples=100.0))
    truth = air.truth
    assert len(set(truth.cfo_hz)) == N_USERS
    assert np.abs(truth.cfo_hz).max() <= 2e-6 * CARRIER_HZ
    np.testing.assert_allclose(truth.sampling_offset, truth.cfo_hz / CARRIER_HZ)
    frame = 2
    tx = sent(3, rng)
    rx = air.process(tx)
    for user in range(N_USERS):
        arrival = truth.receive_index(frame * FRAME, user) - frame * FRAME
        flat = expected(tx, frame, user, arrival, FRAME)
        at = frame * FRAME + np.arange(FRAME)
        turned = flat * np.exp(2j * np.pi * truth.cfo_hz[user] / RATE_HZ * at)
        got = rx[user, at]
        error = np.mean(np.abs(got - turned) ** 2) / np.mean(np.abs(turned) ** 2)
        # Over a burst the sampling offset moves it by less than 0.006 samples: (0.006 * 0.3 * 2 pi / 3)^2 = -48 dB.
        assert 10 * np.log10(error) < -42


def test_noise_has_the_power_asked_for_and_differs_between_users():
    air = downlink(noise_power=0.3)
    rx = air.process(np.zeros((N_TX, 40960), np.complex64))
    # 40960 squares of relative variance 1: five times the deviation is 2.5 %.
    np.testing.assert_allclose(np.mean(np.abs(rx) ** 2, axis=1), 0.3, rtol=0.025)
    assert abs(np.vdot(rx[0], rx[1])) < 5 * 0.3 * np.sqrt(40960)


def test_converter_quantises_and_counts_clipping(rng):
    air = downlink(Impairments(adc_bits=8, full_scale_backoff_db=0.0), expected_power=0.01)
    rx = air.process(sent(2, rng))
    assert (air.clipped_samples > 0).all()
    levels = rx.view(np.float32) * 128
    np.testing.assert_array_equal(levels, np.round(levels))


def test_a_frame_is_over_once_its_last_path_arrived(rng):
    air = downlink()
    rx = air.process(sent(1, rng))
    for user in range(N_USERS):
        last = int(np.flatnonzero(np.abs(rx[user]) > 1e-6).max())
        assert last < air.over(0, user) < air.truth.receive_index(FRAME, user)


def test_what_cannot_be_carried_is_refused(rng):
    with pytest.raises(ValueError, match="active_samples"):
        downlink(active_samples=FRAME + 1)
    with pytest.raises(ValueError, match="n_users"):
        downlink(n_users=0)
    with pytest.raises(ValueError, match="powers"):
        downlink(noise_power=-1.0)
    air = downlink()
    with pytest.raises(ValueError, match="block_samples"):
        air.process(np.zeros((N_TX, 100), np.complex64))
    with pytest.raises(ValueError, match="no numbers"):
        air.process(np.full((N_TX, 4096), np.nan, np.complex64))
    with pytest.raises(ValueError, match="shapes"):
        downlink(n_users=3).process(sent(1, rng))


def test_drift_that_eats_the_latency_is_an_error(rng):
    air = downlink(Impairments(cfo_ppm=100.0), sample_rate_hz=1e3)
    tx = sent(80, rng)
    with pytest.raises(RadioError, match="latency"):
        air.process(tx)

"""The air against closed forms, and its promise that only inputs, configuration and seed decide every bit."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import special
from semair.blocks.waveforms.air import Air
from semair.blocks.waveforms.impairments import Impairments
from semair.errors import RadioError
from semair.models.channels import ChannelConfig

RATE_HZ = 2e6
CENTRE_HZ = 2.4e9
BLOCK = 1024
WIRE = ChannelConfig()
FADING = ChannelConfig(kind="rayleigh", delay_spread_s=0.7e-6)


def make(channel: ChannelConfig = WIRE, impairments: Impairments | None = None, **changes) -> Air:
    settings = {
        "sample_rate_hz": RATE_HZ,
        "centre_frequency_hz": CENTRE_HZ,
        "n_rx": 3,
        "n_users": 4,
        "noise_power": 0.0,
        "seed": 11,
        "block_samples": BLOCK,
    }
    return Air(channel, impairments or Impairments(), **{**settings, **changes})


def gaussian(rng: np.random.Generator, n: int) -> np.ndarray:
    return (rng.standard_normal((n, 2)) * math.sqrt(0.5)).view(np.complex128)[:, 0].astype(np.complex64)


def in_band(rng: np.random.Generator, n: int) -> np.ndarray:
    """Smooth-edged noise within 0.36 of the sample rate, where the emulation is accurate."""
    spectrum = np.fft.fft(gaussian(rng, n) * np.hanning(n))
    spectrum[np.abs(np.fft.fftfreq(n)) > 0.36] = 0
    return (np.fft.ifft(spectrum) * np.hanning(n)).astype(np.complex64)


def silence(n: int) -> np.ndarray:
    return np.zeros(n, dtype=np.complex64)


def error_db(measured: np.ndarray, expected: np.ndarray) -> float:
    return 10 * np.log10(np.sum(np.abs(measured - expected) ** 2) / np.sum(np.abs(expected) ** 2))


def ideal(samples: np.ndarray, start: float, response, n: int) -> np.ndarray:
    """Samples from a real-valued start on, through a response of frequencies in Hz: (antennas, n)."""
    size = 1 << (n - 1).bit_length() + 1
    freqs = np.fft.fftfreq(size)
    spectrum = np.fft.fft(samples, size) * np.exp(-2j * np.pi * freqs * start)
    return np.fft.ifft(spectrum * response(freqs * RATE_HZ), axis=1)[:, :n]


class TestIdealAir:
    def test_perfect_wire_delivers_the_stream_bit_for_bit(self, rng):
        tx = gaussian(rng, 4 * BLOCK)
        air = make()
        np.testing.assert_array_equal(air.process(tx), np.tile(tx, (3, 1)))
        assert air.position == tx.size
        assert air.gain == 1.0
        assert air.truth.receive_index(77.0) == 77.0

    def test_bursts_and_beacon_add_up_where_they_belong(self, rng):
        tx, first, second = gaussian(rng, 4 * BLOCK), gaussian(rng, 700), gaussian(rng, 1500)
        air = make()
        air.add_burst(1, 900, first, 0)
        air.add_burst(3, 1000, second, 0)
        expected = tx.copy()
        expected[900:1600] += first
        expected[1000:2500] += second
        np.testing.assert_allclose(air.process(tx), np.tile(expected, (3, 1)), atol=1e-6)

    def test_silence_and_no_users(self):
        air = make(n_users=0, noise_power=0.0)
        np.testing.assert_array_equal(air.process(silence(2 * BLOCK)), np.zeros((3, 2 * BLOCK)))
        assert air.process(silence(0)).shape == (3, 0)

    def test_result_types(self):
        out = make(noise_power=1.0, impairments=Impairments.preset("wireless")).process(silence(BLOCK))
        assert out.dtype == np.complex64
        assert out.flags.c_contiguous


class TestMultipath:
    @pytest.mark.parametrize(
        "channel",
        [
            ChannelConfig(kind="rayleigh"),
            FADING,
            ChannelConfig(kind="clustered", delay_spread_s=0.3e-6, array_shape=(1, 3)),
        ],
        ids=["flat", "selective", "clustered"],
    )
    def test_burst_through_a_known_channel_equals_convolution(self, channel, rng):
        x = in_band(rng, 800)
        air = make(channel)
        air.add_burst(2, 700, x, 5)
        start = air.truth.receive_index(700, user=2)
        out = air.process(silence(3 * BLOCK))
        expected = ideal(x, start, lambda f: air.response(2, 5, f, 0), 3 * BLOCK)
        assert error_db(out, expected) < -60

    def test_beacon_through_its_own_channel(self, rng):
        x = in_band(rng, 3 * BLOCK)
        air = make(beacon_channel=FADING)
        out = air.process(np.concatenate([x, silence(BLOCK)]))
        expected = ideal(x, air.truth.receive_index(0), lambda f: air.response(None, 0, f, 0), 4 * BLOCK)
        assert error_db(out, expected) < -60

    def test_mean_received_power_is_that_of_the_bursts(self, rng):
        channel = ChannelConfig(kind="rayleigh", delay_spread_s=0.2e-6)
        air = make(channel, n_rx=8, n_users=1)
        x = in_band(rng, 600)
        energy = 0.0
        frames = 150
        for frame in range(frames):
            air.add_burst(0, frame * BLOCK + 100, x, frame)
            energy += np.sum(np.abs(air.process(silence(BLOCK))) ** 2) / 8
        # 150 x 8 powers of variance at most 1: six standard errors of the mean are 0.17.
        assert energy / frames / np.sum(np.abs(x) ** 2) == pytest.approx(1.0, abs=0.17)

    def test_channel_that_moves_within_a_burst(self, rng):
        channel = ChannelConfig(kind="rayleigh", doppler_hz=800.0)
        air = make(channel)
        x = in_band(rng, 6 * BLOCK)
        air.add_burst(0, 0, x, 0)
        out = air.process(silence(7 * BLOCK))
        h = np.concatenate(
            [air.response(0, 0, np.zeros(1), m) for m in range(air.truth.latency_samples, 6 * BLOCK)], axis=1
        )
        expected = np.zeros((3, 6 * BLOCK), dtype=complex)
        delayed = ideal(x, air.truth.receive_index(0), lambda f: np.ones((1, f.size)), 6 * BLOCK)
        expected[:, air.truth.latency_samples :] = h * delayed[:, air.truth.latency_samples :]
        # Phases held over 0.02 rad are off by 0.01 / sqrt(3) rms for the fastest ray: -45 dB.
        assert error_db(out[:, : 6 * BLOCK], expected) < -43
        assert np.abs(h[:, 0] - h[:, -1]).max() > 0.3

    def test_fading_is_new_in_every_frame_and_shared_within_one(self, rng):
        x = in_band(rng, 300)
        air = make(FADING)
        outs = []
        for block, frame in enumerate([0, 0, 1]):
            air.add_burst(1, block * BLOCK + 50, x, frame)
            outs.append(air.process(silence(BLOCK)))
        np.testing.assert_array_equal(outs[0], outs[1])
        assert error_db(outs[2], outs[0]) > -10

    def test_fading_that_is_never_redrawn_stays(self, rng):
        x = in_band(rng, 300)
        air = make(FADING.model_copy(update={"redraw": "never"}))
        outs = []
        for frame in range(2):
            air.add_burst(1, frame * BLOCK + 50, x, frame)
            outs.append(air.process(silence(BLOCK)))
        np.testing.assert_array_equal(outs[0], outs[1])

    def test_all_of_128_users_at_once(self, rng):
        air = make(FADING, n_users=128, n_rx=2)
        alone = np.zeros((2, 2 * BLOCK), dtype=np.complex64)
        bursts = [in_band(rng, 400) for _ in range(128)]
        for user, x in enumerate(bursts):
            air.add_burst(user, 300, x, 0)
            single = make(FADING, n_users=128, n_rx=2)
            single.add_burst(user, 300, x, 0)
            alone += single.process(silence(2 * BLOCK))
        assert error_db(air.process(silence(2 * BLOCK)), alone) < -100


class TestClocks:
    def test_unknown_start_delays_by_a_fraction_too(self, rng):
        x = in_band(rng, 2 * BLOCK)
        air = make(impairments=Impairments(start_delay_samples=2000.0))
        out = air.process(np.concatenate([x, silence(3 * BLOCK)]))
        start = air.truth.receive_index(0)
        assert 0 <= air.truth.start_delay_samples <= 2000
        assert start == air.truth.latency_samples + air.truth.start_delay_samples
        assert error_db(out, ideal(x, start, lambda f: np.ones((3, f.size)), 5 * BLOCK)) < -60

    def test_impulse_arrives_at_the_true_place(self):
        air = make(impairments=Impairments(start_delay_samples=500.0))
        tx = silence(2 * BLOCK)
        tx[100] = 1
        peak = int(np.argmax(np.abs(air.process(tx)[0])))
        assert peak == round(air.truth.receive_index(100))

    def test_carrier_offset_of_a_tone(self):
        air = make(impairments=Impairments(cfo_ppm=2.0, sampling_offset_ppm=0.0))
        k = np.arange(8 * BLOCK)
        tx = np.exp(2j * np.pi * 0.1 * k).astype(np.complex64)
        expected = np.exp(2j * np.pi * (0.1 + 4800.0 / RATE_HZ) * k)
        assert air.truth.cfo_hz == pytest.approx(4800.0)
        np.testing.assert_allclose(air.process(tx)[0], expected, atol=2e-6)

    @pytest.mark.parametrize("ppm", [-30.0, 30.0])
    def test_sampling_offset_over_many_samples_of_drift(self, ppm):
        air = make(impairments=Impairments(sampling_offset_ppm=ppm), n_rx=1, latency_samples=200)
        k = np.arange(400 * BLOCK)
        tx = np.exp(2j * np.pi * 0.25 * k).astype(np.complex64)
        out = air.process(tx)[0, BLOCK:]
        arrival = 0.25 * (np.arange(BLOCK, k.size) - 200) * (1 + ppm * 1e-6)
        # Twelve samples of drift in all. Held within 1/4096 sample: 2 pi 0.25 / 4096 = 4e-4 rad at a quarter.
        assert abs(ppm * 1e-6 * k.size) > 12
        assert np.abs(out - np.exp(2j * np.pi * np.mod(arrival, 1))).max() < 1e-3

    @pytest.mark.parametrize("ppm", [-30.0, 30.0])
    def test_bursts_drift_with_the_clock(self, ppm, rng):
        air = make(impairments=Impairments(sampling_offset_ppm=ppm), latency_samples=100)
        begin = 300 * BLOCK
        x = in_band(rng, 500)
        air.add_burst(0, begin + 100, x, 300)
        air.process(silence(begin))
        out = air.process(silence(2 * BLOCK))
        start = air.truth.receive_index(begin + 100, user=0) - begin
        assert start == pytest.approx(100 + 100 - ppm * 1e-6 * begin, abs=0.01)
        # The reference holds the delay of the burst's middle, up to 0.0075 samples off at its ends.
        middle = start - ppm * 1e-6 * 250
        assert error_db(out, ideal(x, middle, lambda f: np.ones((3, f.size)), 2 * BLOCK)) < -38

    def test_drift_beyond_the_latency_is_refused(self):
        air = make(impairments=Impairments(sampling_offset_ppm=100.0), latency_samples=60)
        # Forty samples of drift need 400000 samples of time.
        with pytest.raises(RadioError, match="latency_samples=60"):
            air.process(silence(600 * BLOCK))
        assert 60 - 100e-6 * air.position < 20

    def test_default_latency_lasts_an_hour_of_drift(self):
        assert make(impairments=Impairments(cfo_ppm=2.5)).truth.latency_samples >= 2.5e-6 * RATE_HZ * 3600
        assert make(impairments=Impairments(cfo_ppm=-2.5)).truth.latency_samples < 100

    def test_users_have_their_own_offset_timing_and_power(self):
        impairments = Impairments(user_cfo_hz=200.0, user_timing_samples=3.0)
        air = make(impairments=impairments, user_power_spread_db=6.0)
        truth = air.truth
        n = np.arange(900)
        tone = np.exp(2j * np.pi * 0.05 * n).astype(np.complex64)
        assert np.all(np.abs(truth.user_timing_samples) <= 3)
        assert np.all(np.abs(truth.user_gain_db) <= 6)
        assert np.unique(truth.user_cfo_hz).size == 4
        for user in range(4):
            begin = air.position
            air.add_burst(user, begin + 50, tone, user)
            out = air.process(silence(BLOCK))[0, 150:850]
            m = np.arange(begin + 150, begin + 850)
            sent = m - truth.receive_index(0, user)
            cycles = 0.05 * (sent - begin - 50) + truth.user_cfo_hz[user] / RATE_HZ * sent
            expected = 10 ** (truth.user_gain_db[user] / 20) * np.exp(2j * np.pi * cycles)
            assert error_db(out, expected) < -60

    def test_phase_noise_of_transmitter_and_receiver_add(self):
        air = make(impairments=Impairments(phase_noise_linewidth_hz=20.0), n_rx=2)
        out = air.process(np.ones(400 * BLOCK, dtype=np.complex64))
        # One receiver, one oscillator: both antennas turn alike.
        np.testing.assert_array_equal(out[0], out[1])
        phase = np.unwrap(np.angle(out[0, 64:]))
        steps = np.diff(phase[::512])
        # 800 independent increments: five standard errors of their variance are 5 sqrt(2/800) = 25 %.
        assert steps.var() == pytest.approx(2 * 2 * np.pi * 20.0 * 512 / RATE_HZ, rel=0.25)


class TestReceiver:
    def test_noise_has_its_power_is_white_and_differs_by_antenna(self):
        out = make(noise_power=0.25).process(silence(64 * BLOCK))
        n = out.shape[1]
        # |w|^2 is exponential: the relative standard error of a mean over 65536 is 0.4 %.
        np.testing.assert_allclose(np.mean(np.abs(out) ** 2, axis=1), 0.25, rtol=0.025)
        flat = out / 0.5
        for lag in (1, 2, 17, BLOCK):
            # Autocorrelation at a lag: standard deviation 1/sqrt(n) = 0.004; the bound is six of them.
            assert np.abs(np.mean(flat[:, lag:] * flat[:, :-lag].conj(), axis=1)).max() < 6 / math.sqrt(n)
        cross = flat @ flat.conj().T / n
        assert np.abs(cross - np.diag(np.diag(cross))).max() < 6 / math.sqrt(n)
        # Circular: I and Q are uncorrelated and of equal power.
        assert np.abs(np.mean(flat**2, axis=1)).max() < 6 / math.sqrt(n)

    def test_chains_differ_by_phase_delay_and_gain(self, rng):
        impairments = Impairments(chain_phase=True, chain_delay_samples=1.5, chain_gain_db=2.0)
        air = make(impairments=impairments)
        x = in_band(rng, 2 * BLOCK)
        out = air.process(np.concatenate([x, silence(BLOCK)]))
        truth = air.truth

        def chains(freqs_hz):
            turns = truth.chain_phase_rad[:, None] - 2 * np.pi * np.outer(truth.chain_delay_samples, freqs_hz) / RATE_HZ
            return 10 ** (truth.chain_gain_db[:, None] / 20) * np.exp(1j * turns)

        assert error_db(out, ideal(x, truth.receive_index(0), chains, 3 * BLOCK)) < -60
        assert np.unique(truth.chain_phase_rad).size == 3

    def test_image_and_dc(self):
        impairments = Impairments(iq_gain_db=0.5, iq_phase_deg=2.0, dc_dbfs=-20.0)
        k = np.arange(4 * BLOCK)
        out = make(impairments=impairments).process(np.exp(2j * np.pi * k / 16).astype(np.complex64))
        spectrum = np.fft.fft(out, axis=1) / k.size
        np.testing.assert_allclose(np.abs(spectrum[:, 0]), 0.1, rtol=1e-4)
        g, c = 10 ** (0.5 / 20), math.cos(math.radians(2.0))
        rejection = (1 + 2 * g * c + g * g) / (1 - 2 * g * c + g * g)
        measured = np.abs(spectrum[:, k.size // 16] / spectrum[:, -k.size // 16]) ** 2
        np.testing.assert_allclose(measured, rejection, rtol=1e-3)

    def test_converter_gain_sets_the_backoff_and_values_fit_int16(self, rng):
        impairments = Impairments(adc_bits=12, full_scale_backoff_db=15.0)
        air = make(impairments=impairments, noise_power=2.0, expected_power=3.0)
        out = air.process(math.sqrt(3.0) * gaussian(rng, 32 * BLOCK))
        assert air.gain == pytest.approx(10 ** (-15 / 20) / math.sqrt(5.0))
        assert 10 * np.log10(np.mean(np.abs(out) ** 2)) == pytest.approx(-15.0, abs=0.2)
        steps = out.view(np.float32) * 2048
        np.testing.assert_array_equal(steps, np.round(steps))
        np.testing.assert_array_equal(air.clipped_samples, 0)

    def test_clipping_is_counted(self):
        # Gaussian I and Q of rms sqrt(1/2) full scale each: a part clips with probability erfc(1).
        impairments = Impairments(adc_bits=12, full_scale_backoff_db=0.0)
        air = make(impairments=impairments, noise_power=1e6, expected_power=1e-6)
        out = air.process(silence(32 * BLOCK))
        share = air.clipped_samples / out.shape[1]
        # Standard error of a share near 0.29 over 32768 samples: 0.0025; the bound is six of them.
        np.testing.assert_allclose(share, 1 - (1 - special.erfc(1.0)) ** 2, atol=0.015)
        assert out.real.max() == 2047 / 2048
        assert out.real.min() == -1.0


class TestReproducibility:
    @staticmethod
    def run(cuts: list[int], *, shuffle: bool = False, late_as_possible: bool = False, seed: int = 4) -> np.ndarray:
        """Twelve blocks of everything at once, cut into calls of the given numbers of blocks."""
        rng = np.random.default_rng(8)
        tx = np.concatenate([gaussian(rng, 6 * BLOCK), silence(3 * BLOCK), gaussian(rng, 3 * BLOCK)])
        bursts = [
            (
                int(rng.integers(4)),
                int(rng.integers(11 * BLOCK)),
                gaussian(rng, int(rng.integers(100, 2500))),
                i,
            )
            for i in range(14)
        ]
        if shuffle:
            bursts = bursts[::-1]
        air = make(
            ChannelConfig(kind="rayleigh", delay_spread_s=0.4e-6, doppler_hz=60.0),
            Impairments.preset("wireless").model_copy(update={"start_delay_samples": 900.0, "cfo_ppm": -2.5}),
            noise_power=0.1,
            beacon_channel=ChannelConfig(kind="clustered", delay_spread_s=0.2e-6, doppler_hz=5.0),
            user_power_spread_db=3.0,
            expected_power=3.0,
            seed=seed,
        )
        out, position = [], 0
        for cut in cuts:
            end = position + cut * BLOCK
            for burst in bursts:
                if position <= burst[1] < end if late_as_possible else position == 0:
                    air.add_burst(*burst)
            out.append(air.process(tx[position:end]))
            position = end
        return np.concatenate(out, axis=1)

    def test_output_does_not_depend_on_how_the_span_is_cut(self):
        whole = self.run([12])
        assert np.mean(np.abs(whole) ** 2) > 0.001
        np.testing.assert_array_equal(self.run([1] * 12), whole)
        np.testing.assert_array_equal(self.run([3, 1, 6, 2]), whole)

    def test_output_does_not_depend_on_when_and_in_which_order_bursts_are_added(self):
        whole = self.run([12])
        np.testing.assert_array_equal(self.run([2] * 6, shuffle=True), whole)
        np.testing.assert_array_equal(self.run([1] * 12, late_as_possible=True), whole)

    def test_bursts_of_the_next_block_do_not_touch_this_one(self, rng):
        x = [gaussian(rng, 1000) for _ in range(7)]

        def run(early: bool) -> np.ndarray:
            air = make(ChannelConfig(kind="rayleigh"), n_users=7, n_rx=5)
            for user in range(4):
                air.add_burst(user, 20 + user, x[user], 0)
            for user in range(4, 7) if early else ():
                air.add_burst(user, BLOCK, x[user], 1)
            first = air.process(silence(BLOCK))
            for user in range(4, 7) if not early else ():
                air.add_burst(user, BLOCK, x[user], 1)
            return np.concatenate([first, air.process(silence(BLOCK))], axis=1)

        np.testing.assert_array_equal(run(True), run(False))

    def test_seed_decides(self):
        assert not np.array_equal(self.run([12], seed=5), self.run([12]))

    def test_more_users_leave_those_that_were_there_as_they_were(self):
        few, many = (make(FADING, Impairments.preset("wireless"), n_users=n).truth for n in (3, 40))
        np.testing.assert_array_equal(few.user_cfo_hz, many.user_cfo_hz[:3])
        np.testing.assert_array_equal(few.user_timing_samples, many.user_timing_samples[:3])
        assert few.start_delay_samples == many.start_delay_samples

    def test_truth_is_plain_data(self):
        truth = make(FADING, Impairments.preset("cabled")).truth
        assert json.loads(json.dumps(truth.as_dict()))["user_cfo_hz"] == truth.user_cfo_hz.tolist()


class TestRefusals:
    def test_late_burst(self):
        air = make()
        air.process(silence(2 * BLOCK))
        with pytest.raises(ValueError, match=r"late: it starts at sample 2047.*2048"):
            air.add_burst(0, 2 * BLOCK - 1, np.ones(10, dtype=np.complex64), 0)
        assert air.late_bursts == 1
        air.add_burst(0, 2 * BLOCK, np.ones(10, dtype=np.complex64), 0)
        assert np.abs(air.process(silence(BLOCK))[0, :10]).min() > 0.9

    @pytest.mark.parametrize("poison", [np.nan, np.inf, 1j * np.nan])
    def test_samples_that_are_not_finite(self, poison):
        air = make()
        bad = np.ones(BLOCK, dtype=np.complex64)
        bad[7] = poison
        with pytest.raises(ValueError, match="tx holds NaN"):
            air.process(bad)
        with pytest.raises(ValueError, match="burst of user 2 in frame 9 holds NaN"):
            air.add_burst(2, 0, bad, 9)
        assert air.position == 0
        np.testing.assert_array_equal(air.process(silence(BLOCK)), 0)

    def test_wrong_shapes_and_users(self):
        air = make()
        with pytest.raises(ValueError, match="block_samples=1024"):
            air.process(silence(BLOCK + 1))
        with pytest.raises(ValueError, match="one row"):
            air.process(np.zeros((2, BLOCK), dtype=np.complex64))
        with pytest.raises(ValueError, match="user=4"):
            air.add_burst(4, 0, silence(5), 0)
        with pytest.raises(ValueError, match="one row of samples"):
            air.add_burst(0, 0, silence(0), 0)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"n_rx": 0}, "n_rx=0"),
            ({"noise_power": -1.0}, "noise_power=-1"),
            ({"sample_rate_hz": math.nan}, "sample_rate_hz=nan"),
            ({"latency_samples": 3, "beacon_channel": FADING}, "latency_samples=3"),
            ({"channel": ChannelConfig(kind="clustered", array_shape=(2, 2))}, "array_shape=2x2"),
        ],
    )
    def test_impossible_settings(self, changes, message):
        with pytest.raises(ValueError, match=message):
            make(**changes)

"""The feedback slot: what users send, and what the base station makes of it."""

from __future__ import annotations

import numpy as np
import pytest
from semair.blocks.waveforms.csi_frame import CsiFrame, CsiSlots
from semair.blocks.waveforms.feedback import PartFlag, feedback_burst, receive_feedback
from semair.blocks.waveforms.frame import FrameFormat

FORMAT = FrameFormat(
    sample_rate_hz=4e6,
    n_fft=512,
    cp_samples=96,
    n_used=256,
    frame_samples=40960,
    max_preamble_length=1,
    guard_samples=256,
)
SIZES = {"lab": (4, 8), "paper": (32, 64), "long": (4, 500)}


def frame_of(name: str, **slots) -> CsiFrame:
    n_antennas, length = SIZES[name]
    return CsiFrame(FORMAT, CsiSlots(feedback_length=length, **slots), n_antennas)


def complex_noise(rng: np.random.Generator, shape: tuple[int, ...], power: float) -> np.ndarray:
    return np.sqrt(power / 2) * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))


def words_of(frame: CsiFrame, rng: np.random.Generator) -> np.ndarray:
    words = complex_noise(rng, (frame.slots.n_users, frame.slots.feedback_length), 1.0)
    return words / np.sqrt(np.mean(np.abs(words) ** 2, axis=1, keepdims=True))


def slot_of(
    frame: CsiFrame,
    words: np.ndarray,
    noise_power: float,
    rng: np.random.Generator,
    users: tuple[int, ...] = (0, 1),
    cfo_hz: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """What the antennas receive, and the noise of each user's symbols behind the best combining of a known channel."""
    n_samples = frame.used_samples - frame.feedback_start
    samples = complex_noise(rng, (frame.n_antennas, n_samples), noise_power)
    best = np.empty(len(words))
    for user in range(len(words)):
        burst = np.fft.fft(feedback_burst(frame, words[user]), 8192)
        turns = np.fft.fftfreq(len(burst))
        delays, gains = rng.exponential(8, 6), complex_noise(rng, (frame.n_antennas, 6), 1 / 6)
        channel = gains @ np.exp(-2j * np.pi * np.outer(delays, turns))
        cells = gains @ np.exp(-2j * np.pi * np.outer(delays, frame.used_subcarriers / FORMAT.n_fft))
        best[user] = np.mean(noise_power / np.sum(np.abs(cells[:, frame.code_cells[:, 1]]) ** 2, axis=0))
        if user in users:
            received = np.fft.ifft(burst * channel, axis=1)[:, : frame.part_samples]
            begin = user * frame.part_samples
            turned = np.exp(2j * np.pi * cfo_hz / FORMAT.sample_rate_hz * np.arange(frame.part_samples))
            samples[:, begin : begin + frame.part_samples] += received * turned
    return samples.astype(np.complex64), best


@pytest.mark.parametrize("name", SIZES)
def test_a_burst_fills_its_part_and_its_cells_have_unit_energy(name, rng):
    frame = frame_of(name)
    word = words_of(frame, rng)[0]
    burst = feedback_burst(frame, word)
    assert burst.shape == (frame.part_samples,)
    symbols = burst.reshape(frame.part_symbols, -1)[:, FORMAT.cp_samples :]
    cells = np.fft.fft(symbols, axis=-1, norm="ortho")[:, FORMAT.used_subcarriers]
    np.testing.assert_allclose(np.abs(cells[: frame.slots.pilot_symbols]), 1.0, rtol=1e-4)
    symbol, cell = frame.code_cells.T
    np.testing.assert_allclose(cells[frame.slots.pilot_symbols + symbol, cell], word, atol=1e-4)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("pilot_symbols", [1, 3])
def test_without_noise_the_words_come_back(name, pilot_symbols, rng):
    frame = frame_of(name, pilot_symbols=pilot_symbols)
    words = words_of(frame, rng)
    samples, _ = slot_of(frame, words, 1e-9, rng, cfo_hz=10.0)
    got = receive_feedback(samples, frame)
    assert got.heard.all()
    assert not got.flags.any()
    # The channel estimate errs at the edges of the band, whatever the noise.
    assert 10 * np.log10(np.mean(np.abs(got.words - words) ** 2)) < -20


@pytest.mark.parametrize(("name", "snr_db"), [("lab", 10), ("lab", 0), ("paper", 10), ("paper", 15), ("long", 10)])
def test_combining_loses_little_against_a_known_channel_and_tells_its_snr(name, snr_db, rng):
    frame = frame_of(name)
    power = frame.n_antennas * 10 ** (-snr_db / 10)
    errors, told, best = [], [], []
    for _ in range(40 if name == "lab" else 12):
        words = words_of(frame, rng)
        samples, known = slot_of(frame, words, power, rng, cfo_hz=10.0)
        got = receive_feedback(samples, frame)
        assert got.heard.all()
        assert got.noise_power == pytest.approx(power, rel=0.2)
        errors += list(np.mean(np.abs(got.words - words) ** 2, axis=1))
        told += list(10 ** (-got.snr_db / 10))
        best += list(known)
    # At least 640 symbols: the mean of as many squares is known to 4 / sqrt(640) = 16 % = 0.7 dB. The channel's error
    # at the edges of the band, which nothing tells, adds up to half a decibel.
    loss_db = 10 * np.log10(np.mean(errors) / np.mean(best))
    assert -0.7 < loss_db < (1.5 if name == "paper" else 1.2)
    assert 10 * np.log10(np.mean(errors) / np.mean(told)) == pytest.approx(0, abs=1.2)


def test_a_silent_user_is_left_out_and_the_other_is_not_disturbed(rng):
    frame = frame_of("lab")
    words = words_of(frame, rng)
    samples, _ = slot_of(frame, words, 0.1, rng, users=(1,))
    got = receive_feedback(samples, frame)
    assert got.heard.tolist() == [False, True]
    assert got.flags.tolist() == [PartFlag.SILENT, 0]
    assert not got.words[0].any()
    assert got.snr_db[0] == -np.inf
    both, _ = slot_of(frame, words, 0.1, np.random.default_rng(3))
    alone = both.copy()
    alone[:, : frame.part_samples] = 0
    np.testing.assert_array_equal(receive_feedback(both, frame).words[1], receive_feedback(alone, frame).words[1])


def test_noise_is_never_taken_for_a_user(rng):
    # 120 parts at one in a million each: one alarm has a probability of 1e-4.
    frame = frame_of("paper")
    n_samples = frame.used_samples - frame.feedback_start
    for scale in (1e-4, 1.0, 1e3) * 20:
        noise = complex_noise(rng, (frame.n_antennas, n_samples), scale).astype(np.complex64)
        assert not receive_feedback(noise, frame).heard.any()


def test_nothing_at_all_is_silence():
    frame = frame_of("lab")
    got = receive_feedback(np.zeros((4, frame.used_samples - frame.feedback_start), np.complex64), frame)
    assert not got.heard.any()
    assert got.noise_power > 0


def test_samples_that_are_no_numbers_take_only_their_user_along(rng):
    frame = frame_of("lab")
    words = words_of(frame, rng)
    samples, _ = slot_of(frame, words, 0.1, rng)
    clean = receive_feedback(samples, frame)
    samples[2, 5] = np.nan
    got = receive_feedback(samples, frame)
    assert got.flags.tolist() == [PartFlag.NOT_FINITE, 0]
    assert got.heard.tolist() == [False, True]
    np.testing.assert_array_equal(got.words[1], clean.words[1])
    samples[1, -5] = np.inf
    assert np.isfinite(receive_feedback(samples, frame).noise_power)


def test_saturation_is_told_where_there_is_a_converter(rng):
    frame = frame_of("lab")
    samples, _ = slot_of(frame, words_of(frame, rng), 0.1, rng)
    loud = samples / np.abs(samples).max()
    assert not receive_feedback(loud, frame, full_scale=1.0).flags.any()
    clipped = np.clip(4 * loud.real, -1, 1) + 1j * np.clip(4 * loud.imag, -1, 1)
    got = receive_feedback(clipped.astype(np.complex64), frame, full_scale=1.0)
    assert got.flags.tolist() == [PartFlag.SATURATED] * 2
    assert got.heard.all()
    assert not receive_feedback(clipped.astype(np.complex64), frame).flags.any()


def test_loud_and_quiet_chains_weigh_alike(rng):
    frame = frame_of("lab")
    words = words_of(frame, rng)
    samples, _ = slot_of(frame, words, 0.4, rng)
    scaled = samples * np.array([1, 30, 0.05, 1], np.float32)[:, None]
    plain = receive_feedback(samples, frame)
    np.testing.assert_allclose(receive_feedback(scaled, frame).words, plain.words, atol=1e-3)


def test_wrong_sizes_are_refused(rng):
    frame = frame_of("lab")
    with pytest.raises(ValueError, match="takes 8 symbols"):
        feedback_burst(frame, np.ones(9, complex))
    with pytest.raises(ValueError, match="no numbers"):
        feedback_burst(frame, np.full(8, np.nan, complex))
    with pytest.raises(ValueError, match="at least"):
        receive_feedback(np.zeros((4, 100), np.complex64), frame)


def test_every_flag_is_explained():
    for flag in PartFlag:
        assert len(flag.meaning) > 10

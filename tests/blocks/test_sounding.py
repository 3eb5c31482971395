"""The sounding slot and the CSI that a user makes of it, against closed forms and the models' own transforms."""

from __future__ import annotations

import numpy as np
import pytest
from semair.blocks.waveforms.csi_frame import CsiFrame, CsiSlots
from semair.blocks.waveforms.frame import FrameFormat
from semair.blocks.waveforms.sounding import (
    aligned,
    estimate_csi,
    first_path,
    from_delay_angle,
    sounding_slot,
    to_delay_angle,
)

FORMAT = FrameFormat(
    sample_rate_hz=4e6,
    n_fft=512,
    cp_samples=96,
    n_used=256,
    frame_samples=24576,
    max_preamble_length=1,
    guard_samples=256,
)
LAB = CsiFrame(FORMAT, CsiSlots(feedback_length=8), 4)
PAPER = CsiFrame(FORMAT, CsiSlots(feedback_length=64), 32)


def response(delays_taps: np.ndarray, gains: np.ndarray, frame: CsiFrame) -> np.ndarray:
    """CSI of paths; complex128, (subcarrier, antenna)."""
    n = frame.slots.n_subcarriers
    return np.exp(-2j * np.pi * np.outer(frame.csi_subcarriers, delays_taps) / n) @ gains


def heard(frame: CsiFrame, delays_taps: np.ndarray, gains: np.ndarray, cfo_hz: float = 0.0) -> np.ndarray:
    """The slot behind paths that it passes as exactly as a discrete Fourier transform can delay it."""
    slot = np.pad(sounding_slot(frame), ((0, 0), (0, 1024)))
    spectrum, turns = np.fft.fft(slot, axis=1), np.fft.fftfreq(slot.shape[1])
    tap_samples = frame.frame_format.n_fft / frame.slots.n_subcarriers
    passed = sum(
        np.exp(-2j * np.pi * turns * delay * tap_samples) * (gain @ spectrum)
        for delay, gain in zip(delays_taps, gains, strict=True)
    )
    samples = np.fft.ifft(passed)[: frame.sounding_samples]
    return samples * np.exp(2j * np.pi * cfo_hz / frame.frame_format.sample_rate_hz * np.arange(len(samples)))


def complex_noise(rng: np.random.Generator, shape: tuple[int, ...], power: float) -> np.ndarray:
    return np.sqrt(power / 2) * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))


def drawn_paths(rng: np.random.Generator, n_antennas: int) -> tuple[np.ndarray, np.ndarray]:
    delays = np.sort(np.concatenate([[0.0], rng.uniform(0, 20, 7)]))
    powers = np.exp(-delays / 8)
    gains = complex_noise(rng, (8, n_antennas), 1.0) * np.sqrt(powers / powers.sum())[:, None]
    return delays, gains


def db(x: float) -> float:
    return 10 * np.log10(x)


@pytest.mark.parametrize("frame", [LAB, PAPER], ids=["lab", "paper"])
def test_antennas_are_orthogonal_and_every_cell_has_unit_energy(frame):
    slot = sounding_slot(frame)
    assert slot.shape == (frame.n_antennas, frame.sounding_samples)
    symbols = slot.reshape(frame.n_antennas, -1, FORMAT.symbol_samples)[:, :, FORMAT.cp_samples :]
    cells = np.fft.fft(symbols, axis=-1, norm="ortho")
    used = np.abs(cells) > 1e-3
    assert (used.sum(axis=0) <= 1).all()
    np.testing.assert_allclose(np.abs(cells[used]), 1.0, rtol=1e-4)
    per_antenna = used.sum(axis=(1, 2))
    assert set(per_antenna) == {FORMAT.n_used // frame.slots.comb * frame.slots.sounding_repeats}
    # Every used subcarrier is sounded by somebody in each symbol.
    assert (used.sum(axis=(0, 2)) == FORMAT.n_used).all()


@pytest.mark.parametrize("frame", [LAB, PAPER], ids=["lab", "paper"])
def test_error_of_the_estimate_is_the_one_that_it_tells(frame, rng):
    delays, gains = np.array([0.0, 7.0]), complex_noise(rng, (2, frame.n_antennas), 0.5)
    clean = heard(frame, delays, gains)
    power = 0.05
    estimates = [
        estimate_csi((clean + complex_noise(rng, clean.shape, power)).astype(np.complex64), frame) for _ in range(60)
    ]
    # Entries of one antenna are correlated over some 4 subcarriers, and antennas are independent: at least 60 * 4 * 64
    # independent squares of relative variance 1 leave a mean within 4 / sqrt(15360) = 3.3 %.
    spread = np.var([estimate.subcarriers for estimate in estimates], axis=0, ddof=1).mean()
    told = np.mean([estimate.error_power for estimate in estimates])
    assert spread == pytest.approx(told, rel=0.05)
    # Interpolating from P pilots, averaged over R repeats, to delays that fill about all of what P pilots tell apart
    # leaves about the noise of a pilot.
    assert told == pytest.approx(power / frame.slots.sounding_repeats, rel=0.25)
    noise = [estimate.noise_power for estimate in estimates]
    cells = 60 * FORMAT.n_used * frame.sounding_symbols
    assert np.mean(noise) == pytest.approx(power, rel=4 / np.sqrt(cells))


@pytest.mark.parametrize("frame", [LAB, PAPER], ids=["lab", "paper"])
@pytest.mark.parametrize("offset_taps", [-2.3, 0.0, 3.6])
def test_without_noise_the_channel_comes_out_in_the_timing_of_training(frame, offset_taps, rng):
    delays, gains = drawn_paths(rng, frame.n_antennas)
    gains[0] *= 4
    found = estimate_csi(heard(frame, delays + offset_taps, gains, cfo_hz=150.0).astype(np.complex64), frame)
    assert found.cfo_hz == pytest.approx(150.0, abs=1)
    tap_samples = FORMAT.n_fft / frame.slots.n_subcarriers
    assert found.first_path_samples / tap_samples == pytest.approx(offset_taps, abs=0.15)
    # What is left is the interpolation's own error at the edges of the band.
    moved, _ = aligned(response(delays, gains, frame), found.subcarriers)
    assert db(np.mean(np.abs(moved - found.subcarriers) ** 2) / np.mean(np.abs(moved) ** 2)) < -24
    # In delay and angle it is what the models' channels with their first path at that tap are.
    late = response(delays + frame.slots.lead_taps, gains, frame)
    expected = to_delay_angle(late, frame.slots.n_taps)
    power = np.mean(np.abs(found.delay_angle) ** 2, axis=1)
    assert power[: int(frame.slots.lead_taps) - 1].sum() < 0.05 * power.sum()
    alike = abs(np.vdot(expected, found.delay_angle)) / np.linalg.norm(expected) / np.linalg.norm(found.delay_angle)
    # An error of the timing by 0.15 taps leaves 1 - (0.15 pi)^2 / 6 = 0.96.
    assert alike > 0.96
    assert np.linalg.norm(found.delay_angle) == pytest.approx(np.linalg.norm(expected), rel=0.05)


@pytest.mark.parametrize("frame", [LAB, PAPER], ids=["lab", "paper"])
def test_taps_without_signal_lose_their_noise(frame, rng):
    delays, gains = np.array([0.0]), complex_noise(rng, (1, frame.n_antennas), 1.0)
    gains /= np.sqrt(np.mean(np.abs(gains) ** 2))
    samples = heard(frame, delays, gains)
    found = estimate_csi((samples + complex_noise(rng, samples.shape, 0.1)).astype(np.complex64), frame)
    assert found.snr_db == pytest.approx(10, abs=0.7)
    kept = np.sum(np.abs(found.delay_angle[10:]) ** 2)
    # The estimate's noise lies in the delays of one and a quarter prefix, 60 taps, and evenly there.
    noise = found.error_power * frame.slots.n_taps / 60 * found.delay_angle[10:].size
    # With the mean over M antennas taken for a tap's power, Wiener keeps E[max(g - 1, 0)^2 / g] of it, g being the
    # mean of M unit exponentials: 0.14 for 4, 0.02 for 32.
    assert kept < (0.3 if frame is LAB else 0.06) * noise


def test_delay_and_angle_are_those_of_the_models(rng):
    torch = pytest.importorskip("torch")
    from semair.models.csi import channels

    h = complex_noise(rng, (2, 256, 4), 1.0).astype(np.complex64)
    x = to_delay_angle(h, 32)
    np.testing.assert_allclose(x, channels.to_delay_angle(torch.from_numpy(h), 32).numpy(), atol=1e-5)
    back = channels.from_delay_angle(torch.from_numpy(x), 256).numpy()
    np.testing.assert_allclose(from_delay_angle(x, 256), back, atol=1e-5)


@pytest.mark.parametrize("place", [-3.2, 0.0, 0.4, 11.7, 60.0])
def test_first_path_of_a_single_path_is_its_place(place):
    h = response(np.array([place]), np.ones((1, 3)), LAB)
    assert first_path(h) == pytest.approx(place, abs=0.02)


def test_later_paths_do_not_move_the_first_by_much(rng):
    errors = []
    for _ in range(50):
        delays, gains = drawn_paths(rng, 32)
        errors.append(first_path(response(delays, gains, PAPER)))
    assert np.median(np.abs(errors)) < 0.15


def test_alignment_finds_delay_and_phase(rng):
    delays, gains = drawn_paths(rng, 4)
    h = response(delays, gains, LAB)
    other = response(delays + 2.37, gains, LAB) * np.exp(1.1j)
    moved, taps = aligned(h, other)
    assert taps == pytest.approx(2.37, abs=0.01)
    np.testing.assert_allclose(moved, other, atol=2e-2)


def test_silence_gives_no_csi():
    found = estimate_csi(np.zeros(LAB.sounding_samples, np.complex64), LAB)
    assert not found.delay_angle.any()
    assert np.isfinite(found.snr_db)


def test_samples_that_cannot_be_used_are_refused():
    with pytest.raises(ValueError, match="no numbers"):
        estimate_csi(np.full(LAB.sounding_samples, np.nan, np.complex64), LAB)
    with pytest.raises(ValueError, match=str(LAB.sounding_samples)):
        estimate_csi(np.zeros(LAB.sounding_samples - 1, np.complex64), LAB)


def test_frames_that_do_not_fit_say_what_to_change():
    with pytest.raises(ValueError, match="denser comb"):
        CsiFrame(FORMAT, CsiSlots(comb=8), 4)
    with pytest.raises(ValueError, match="lengthen"):
        CsiFrame(FORMAT.model_copy(update={"frame_samples": 9000}), CsiSlots(), 32)
    with pytest.raises(ValueError, match="n_used=256"):
        CsiFrame(FORMAT, CsiSlots(n_subcarriers=300), 4)
    with pytest.raises(ValueError, match="lead_taps"):
        CsiFrame(FORMAT, CsiSlots(n_taps=4), 4)
    with pytest.raises(ValueError, match="n_antennas"):
        CsiFrame(FORMAT, CsiSlots(), 0)


@pytest.mark.parametrize("length", [1, 8, 64, 224, 225, 500])
def test_code_symbols_and_pilots_share_no_cell(length):
    frame = CsiFrame(FORMAT.model_copy(update={"frame_samples": 60000}), CsiSlots(feedback_length=length), 4)
    cells = {tuple(cell) for cell in frame.code_cells}
    assert len(cells) == length
    assert not {cell for _, cell in cells} & set(frame.pilot_cells.tolist())
    symbols = frame.code_cells[:, 0]
    assert symbols.min() == 0
    assert symbols.max() == frame.code_symbols - 1
    starts = [frame.sounding_start, frame.feedback_start, frame.part_start(1), frame.noise_start, frame.used_samples]
    assert starts == sorted(starts)

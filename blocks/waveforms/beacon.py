"""The beacon: a synchronisation sequence, one training symbol, and a header with the frame counter.

The synchronisation sequence repeats one piece of n_fft/2 samples under a cover of signs. One short piece
stays coherent under large carrier offsets, the cover makes the timing of the whole unambiguous, and a
detector needs one correlator for all pieces. The header repeats a 32-bit counter with its CRC-16 over all its
cells, which receivers combine over cells and antennas; it survives well below 0 dB.
"""

from __future__ import annotations

import binascii
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.fft
from numba import njit

from .frame import COUNTER_BITS, HEADER_BITS, FrameFormat
from .ofdm import demodulate, modulate

# As in the preamble detector.
_FAST = {"contract", "reassoc", "nsz", "arcp"}


@dataclass(frozen=True)
class Header:
    """What a receiver reads from one beacon.

    Attributes:
        frame_number: the counter, or None where the checksum does not fit.
        symbols: complex64, (header cells,), equalised BPSK symbols around +-1 for the constellation plot.
        snr_db: per antenna, from the scatter of the equalised symbols.
    """

    frame_number: int | None
    symbols: np.ndarray
    snr_db: float


def _quiet_spectrum(rng: np.random.Generator, n_fft: int, bins: np.ndarray, candidates: int = 256) -> np.ndarray:
    """QPSK values on `bins` with the lowest peak among random candidates; complex128, (n_fft,)."""
    draws = np.zeros((candidates, n_fft), complex)
    draws[:, bins] = np.exp(1j * np.pi / 2 * rng.integers(0, 4, (candidates, len(bins))))
    peaks = np.abs(scipy.fft.ifft(draws, 4 * n_fft, axis=-1)).max(axis=-1)
    return draws[int(np.argmin(peaks))]


def _cover_signs(n: int, rng: np.random.Generator) -> np.ndarray:
    """Signs, (n,), with a small largest aperiodic autocorrelation sidelobe."""
    if n <= 12:
        candidates = 1 - 2 * ((np.arange(2 ** (n - 1))[:, None] >> np.arange(n)) & 1)
    else:
        candidates = rng.choice([-1, 1], (2000, n))
    sidelobes = [np.abs(np.correlate(c, c, "full")[: n - 1]).max() for c in candidates]
    return candidates[int(np.argmin(sidelobes))].astype(float)


@lru_cache(maxsize=16)
def sync_sequence(frame_format: FrameFormat) -> np.ndarray:
    """The synchronisation sequence of a frame format.

    Returns:
        complex64, (sync_samples,), unit mean power.
    """
    fmt = frame_format
    rng = np.random.default_rng([fmt.sequence_seed, 1])
    even = fmt.used_subcarriers[fmt.used_subcarriers % 2 == 0]
    piece = scipy.fft.ifft(_quiet_spectrum(rng, fmt.n_fft, even))[: fmt.n_fft // 2]
    sequence = (_cover_signs(fmt.sync_repeats, rng)[:, None] * piece).reshape(-1)
    return (sequence / np.sqrt(np.mean(np.abs(sequence) ** 2))).astype(np.complex64)


@lru_cache(maxsize=16)
def _training(fmt: FrameFormat) -> np.ndarray:
    """Subcarrier values of the training symbol, complex128 (n_fft,), scaled to unit mean sample power."""
    rng = np.random.default_rng([fmt.sequence_seed, 2])
    return _quiet_spectrum(rng, fmt.n_fft, fmt.used_subcarriers) * np.sqrt(fmt.n_fft / fmt.n_used)


@lru_cache(maxsize=16)
def _header_map(fmt: FrameFormat) -> tuple[np.ndarray, np.ndarray]:
    """Which header bit each cell carries and its scrambling sign; (cells,) each.

    The order is shuffled so that the repetitions of a bit lie on distant subcarriers.
    """
    cells = fmt.header_symbols * fmt.n_used
    rng = np.random.default_rng([fmt.sequence_seed, 3])
    return rng.permutation(np.arange(cells) % HEADER_BITS), rng.choice([-1.0, 1.0], cells)


@lru_cache(maxsize=16)
def _smoother(fmt: FrameFormat) -> np.ndarray:
    """LMMSE channel smoother for delays spread over a quarter prefix before to a whole prefix after; float64-complex,
    (n_used, n_used).

    Built for 10 dB, where its bias no longer shows in the constellation; at -3 dB it still beats no smoothing.
    """
    frequency = np.fft.fftfreq(fmt.n_fft)[fmt.used_subcarriers]
    delays = np.arange(-fmt.cp_samples // 4, fmt.cp_samples + 1)
    steering = np.exp(-2j * np.pi * np.outer(frequency, delays)) / np.sqrt(len(delays))
    correlation = steering @ steering.conj().T
    return correlation @ np.linalg.inv(correlation + 0.1 * np.eye(fmt.n_used))


def header_bits(frame_number: int) -> np.ndarray:
    """Counter and checksum, most significant bit first; uint8, (HEADER_BITS,). CRC-16/XMODEM."""
    payload = (frame_number % 2**COUNTER_BITS).to_bytes(COUNTER_BITS // 8, "big")
    checksum = binascii.crc_hqx(payload, 0).to_bytes(2, "big")
    return np.unpackbits(np.frombuffer(payload + checksum, np.uint8))


def beacon(frame_format: FrameFormat, frame_number: int) -> np.ndarray:
    """The whole beacon of a frame: synchronisation sequence, training symbol, header.

    Args:
        frame_format: numerology and slots.
        frame_number: counter value, taken modulo 2**32.

    Returns:
        complex64, (beacon_samples,), about unit mean power.
    """
    fmt = frame_format
    bit_of_cell, scrambling = _header_map(fmt)
    signs = (1.0 - 2.0 * header_bits(frame_number)[bit_of_cell]) * scrambling
    grid = np.zeros((1 + fmt.header_symbols, fmt.n_fft), complex)
    grid[0] = _training(fmt)
    grid[1:, fmt.used_subcarriers] = signs.reshape(fmt.header_symbols, -1) * np.sqrt(fmt.n_fft / fmt.n_used)
    return np.concatenate([sync_sequence(fmt), modulate(grid, fmt.cp_samples)])


@dataclass(frozen=True)
class _Reading:
    """What reading a header needs, worked out once per frame format."""

    bins: np.ndarray
    inverse_training: np.ndarray
    smoother: np.ndarray
    bit_of_cell: np.ndarray
    scrambling: np.ndarray


@lru_cache(maxsize=16)
def _reading(fmt: FrameFormat) -> _Reading:
    bins = fmt.used_subcarriers
    smoother = _smoother(fmt).T * np.sqrt(fmt.n_fft / fmt.n_used)
    bit_of_cell, scrambling = _header_map(fmt)
    return _Reading(
        bins,
        (1 / _training(fmt)[bins]).astype(np.complex64),
        np.stack([smoother.real, smoother.imag]).astype(np.float32),
        bit_of_cell.astype(np.int64).reshape(fmt.header_symbols, -1),
        scrambling.astype(np.float32).reshape(fmt.header_symbols, -1),
    )


@njit(cache=True, nogil=True, fastmath=_FAST, forceinline=True, error_model="numpy")
def _add_product(re, im, b_re, b_im, out_re, out_im):
    """out += (re + j im) b."""
    for k in range(out_re.shape[0]):
        out_re[k] += re * b_re[k] - im * b_im[k]
        out_im[k] += re * b_im[k] + im * b_re[k]


@njit(cache=True, nogil=True, fastmath=_FAST, forceinline=True, error_model="numpy")
def _add_matched(h_re, h_im, x, out_re, out_im):
    """out += conj(h) x."""
    for k in range(out_re.shape[0]):
        out_re[k] += h_re[k] * x[k].real + h_im[k] * x[k].imag
        out_im[k] += h_re[k] * x[k].imag - h_im[k] * x[k].real


@njit(cache=True, nogil=True, fastmath=_FAST, forceinline=True, error_model="numpy")
def _equalise(re, im, weight, signs, out_re, out_im):
    for k in range(out_re.shape[0]):
        gain = signs[k] / max(weight[k], np.float32(1.2e-38))
        out_re[k] = re[k] * gain
        out_im[k] = im[k] * gain


@njit(cache=True, error_model="numpy")
def _combine(cells, inverse_training, smoother, bit_of_cell, scrambling, soft, symbols):
    """Estimate the channel, combine header cells over antennas, and sum them up per bit.

    Args:
        cells: complex64, (antennas, 1 + symbols, bins): training symbol, then header.
        inverse_training: complex64, (bins,).
        smoother: float32, (2, bins, bins), real and imaginary part, by bin of the input, then of the output.
        bit_of_cell: int64, (symbols, bins).
        scrambling: float32, (symbols, bins).
        soft: float64, (HEADER_BITS,), receives the sum per bit.
        symbols: complex64, (symbols, bins), receives the equalised symbols.

    Returns:
        Mean square of the distance of the equalised symbols to +-1; whether there was a channel, and all
        is finite.
    """
    n_antennas, n_symbols, n_bins = cells.shape
    weight = np.zeros(n_bins, np.float32)
    combined_re = np.zeros((n_symbols - 1, n_bins), np.float32)
    combined_im = np.zeros((n_symbols - 1, n_bins), np.float32)
    h_re = np.empty(n_bins, np.float32)
    h_im = np.empty(n_bins, np.float32)
    for a in range(n_antennas):
        h_re[:] = 0.0
        h_im[:] = 0.0
        for i in range(n_bins):
            raw = cells[a, 0, i] * inverse_training[i]
            _add_product(raw.real, raw.imag, smoother[0, i], smoother[1, i], h_re, h_im)
        for k in range(n_bins):
            weight[k] += h_re[k] * h_re[k] + h_im[k] * h_im[k]
        for s in range(n_symbols - 1):
            _add_matched(h_re, h_im, cells[a, 1 + s], combined_re[s], combined_im[s])
    soft[:] = 0.0
    error = 0.0
    re = np.empty(n_bins, np.float32)
    im = np.empty(n_bins, np.float32)
    for s in range(n_symbols - 1):
        _equalise(combined_re[s], combined_im[s], weight, scrambling[s], re, im)
        for k in range(n_bins):
            soft[bit_of_cell[s, k]] += combined_re[s, k] * scrambling[s, k]
            symbols[s, k] = complex(re[k], im[k])
            distance = abs(re[k]) - np.float32(1)
            error += distance * distance + im[k] * im[k]
    return error / symbols.size, weight.any() and np.isfinite(error)


def read_header(
    samples: np.ndarray, frame_format: FrameFormat, fraction_samples: float = 0.0, cfo_hz: float = 0.0
) -> Header:
    """Estimate the channel from the training symbol and read the frame counter.

    Args:
        samples: complex, (antennas, at least beacon_samples), from the frame start on.
        frame_format: numerology and slots.
        fraction_samples: true frame start minus the index of the first sample.
        cfo_hz: carrier offset to remove.

    Returns:
        The header; its frame_number is None where the checksum does not fit.
    """
    fmt = frame_format
    known = _reading(fmt)
    part = samples[:, fmt.training_start : fmt.beacon_samples]
    cells = demodulate(part, fmt, 1 + fmt.header_symbols, fraction_samples, cfo_hz, known.bins)
    soft = np.empty(HEADER_BITS)
    symbols = np.empty((fmt.header_symbols, fmt.n_used), np.complex64)
    error, heard = _combine(
        cells, known.inverse_training, known.smoother, known.bit_of_cell, known.scrambling, soft, symbols
    )
    content = np.packbits(soft < 0).tobytes()
    payload, checksum = content[: COUNTER_BITS // 8], content[COUNTER_BITS // 8 :]
    intact = heard and binascii.crc_hqx(payload, 0).to_bytes(2, "big") == checksum
    snr_db = 10 * math.log10(max(1.0 / max(error, 1e-9), 1e-3) / len(samples))
    return Header(int.from_bytes(payload, "big") if intact else None, symbols.reshape(-1), snr_db)

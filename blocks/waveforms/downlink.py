"""The air from a base station's antennas to its users, each with one antenna and a clock of its own.

Sample n leaves the base station when its clock has ticked n times; a user converts its sample m when the user's clock
has ticked m times. As in `air`, both timelines advance by the same number of samples per call, and

    m = n / (1 + e) + latency + start delay + delay of the path,

with e the relative excess of the base station's clock over the user's. Every frame meets channels of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import RadioError
from .impairments import (
    KERNEL_AFTER,
    KERNEL_BEFORE,
    KERNEL_TAPS,
    Impairments,
    db_to_amplitude,
    delay_rows,
    iq_imbalance,
    phase_steps,
    quantise,
    turn,
)

# Streams of randomness: every draw is addressed by what it belongs to, never by order of calls.
_USER, _BASE_PHASE, _USER_PHASE, _NOISE = range(61, 65)

_MAX_DELAY_STEP_SAMPLES = 1 / 2048
_DRIFT_ALLOWANCE_S = 60.0


@dataclass(frozen=True)
class DownlinkPaths:
    """Channels from the base station to all users in one frame.

    Attributes:
        delays_samples: float64, (user, path), 0 or more.
        gains: complex64, (user, path, antenna).
    """

    delays_samples: np.ndarray
    gains: np.ndarray


@dataclass(frozen=True)
class DownlinkTruth:
    """What a user cannot know, but a report may.

    Attributes:
        latency_samples: whole delay of the emulation itself.
        start_delay_samples: float64, (user,).
        cfo_hz: float64, (user,): of the base station's carrier against the user's.
        sampling_offset: float64, (user,): relative excess of the base station's sampling clock.
        gain: amplitude gain before the users' converters.
        noise_power: per complex sample, in the units of the transmitted samples.
    """

    latency_samples: int
    start_delay_samples: np.ndarray
    cfo_hz: np.ndarray
    sampling_offset: np.ndarray
    gain: float
    noise_power: float

    def receive_index(self, transmit_sample: float, user: int) -> float:
        """Where a sample of the base station arrives at a user, apart from multipath, in the user's samples."""
        fixed = self.latency_samples + float(self.start_delay_samples[user])
        return transmit_sample / (1 + float(self.sampling_offset[user])) + fixed

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, for run.json."""
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(self).items()}


class Downlink:
    """Takes what the base station's antennas send, gives what the users' converters deliver.

    The output is a function of configuration, seed and input alone, bit for bit, however the stream is cut into calls.

    Effects come in the order in which a signal meets them: phase noise of the base station, multipath, carrier offset
    and phase noise of the user, noise, gain, IQ imbalance, DC, conversion. Of the impairments, those of chains and of
    users that lock do not occur here: a user has one chain, and what it locks on is this signal.

    Args:
        impairments: of the radios. Each user's clock is off by up to `cfo_ppm`, either way.
        paths: gives the channels of a frame by its number.
        sample_rate_hz: of all radios.
        centre_frequency_hz: carrier, for offsets in ppm.
        n_tx: antennas of the base station.
        n_users: users.
        noise_power: per complex sample, in the units of the transmitted samples.
        frame_samples: frame f begins at sample f * frame_samples.
        active_samples: in a frame, the base station sends in so many samples from its start, and then is silent.
        seed: of clocks, phases and noise.
        expected_power: mean power received while the base station sends, for the converter's level.
        block_samples: grid of the processing.

    Attributes:
        truth: what was drawn.
        position: samples processed so far.
        clipped_samples: int64, (user,).
    """

    def __init__(
        self,
        impairments: Impairments,
        paths: Callable[[int], DownlinkPaths],
        *,
        sample_rate_hz: float,
        centre_frequency_hz: float,
        n_tx: int,
        n_users: int,
        noise_power: float,
        frame_samples: int,
        active_samples: int,
        seed: int,
        expected_power: float = 1.0,
        block_samples: int = 4096,
    ) -> None:
        for name, value, least in (("n_tx", n_tx, 1), ("n_users", n_users, 1), ("seed", seed, 0)):
            if value < least:
                raise ValueError(f"{name}={value}: must be at least {least}")
        if not 0 < active_samples <= frame_samples:
            raise ValueError(f"active_samples={active_samples} must lie in a frame of {frame_samples} samples")
        if noise_power < 0 or expected_power <= 0:
            raise ValueError(f"noise_power={noise_power}, expected_power={expected_power}: powers are above 0")
        self.sample_rate_hz, self.n_tx, self.n_users = float(sample_rate_hz), n_tx, n_users
        self.frame_samples, self.active_samples, self.block_samples = frame_samples, active_samples, block_samples
        self._impairments, self._paths, self._seed = impairments, paths, seed
        parts = [self._random(_USER, user) for user in range(n_users)]
        off = np.array([rng.uniform(-1, 1) for rng in parts])
        start = impairments.start_delay_samples * np.array([rng.random() for rng in parts])
        turns = np.array([rng.random() for rng in parts])
        sampling = impairments.effective_sampling_offset_ppm * 1e-6 * off
        drift = math.ceil(max(0.0, float(sampling.max())) * sample_rate_hz * _DRIFT_ALLOWANCE_S)
        gain = 1.0
        if impairments.adc_bits is not None:
            rms = math.sqrt(expected_power + noise_power)
            gain = float(db_to_amplitude(-impairments.full_scale_backoff_db)) / rms
        self.truth = DownlinkTruth(
            # A frame is worked out as a whole, before its first sample arrives anywhere.
            latency_samples=active_samples + KERNEL_BEFORE + 2 + drift,
            start_delay_samples=start,
            cfo_hz=impairments.cfo_ppm * 1e-6 * centre_frequency_hz * off,
            sampling_offset=sampling,
            gain=gain,
            noise_power=float(noise_power),
        )
        self._dc = np.zeros(n_users, np.complex64)
        if impairments.dc_dbfs is not None:
            self._dc = (db_to_amplitude(impairments.dc_dbfs) * np.exp(2j * np.pi * turns)).astype(np.complex64)
        self.position = 0
        self.clipped_samples = np.zeros(n_users, np.int64)
        self._next_frame = 0
        self._sent = np.zeros((n_tx, 0), np.complex64)
        self._sent_from = 0
        self._under_way: list[list[tuple[int, np.ndarray]]] = [[] for _ in range(n_users)]
        self._phases = [0.0] * n_users

    def process(self, tx: np.ndarray) -> np.ndarray:
        """Advance by a span.

        Args:
            tx: complex64, (n_tx, n), from `position` on; n a multiple of block_samples.

        Returns:
            complex64, (user, n).

        Raises:
            ValueError: wrong shape, or samples that are not finite.
            RadioError: the drift of the sampling clocks has used up the latency.
        """
        tx = np.asarray(tx, np.complex64)
        if tx.ndim != 2 or len(tx) != self.n_tx or tx.shape[1] % self.block_samples:
            raise ValueError(
                f"tx has shape {tx.shape}; needs ({self.n_tx}, n) with n a multiple of "
                f"block_samples={self.block_samples}"
            )
        if not np.isfinite(tx).all():
            raise ValueError(f"tx holds samples that are no numbers; its span starts at sample {self.position}")
        self._sent = np.concatenate([self._sent, tx], axis=1)
        end = self.position + tx.shape[1]
        while self._next_frame * self.frame_samples + self.active_samples <= end:
            self._send(self._next_frame)
            self._next_frame += 1
        keep = min(self._next_frame * self.frame_samples, end)
        self._sent = self._sent[:, keep - self._sent_from :]
        self._sent_from = keep
        out = np.empty((self.n_users, tx.shape[1]), np.complex64)
        for column in range(0, tx.shape[1], self.block_samples):
            for user in range(self.n_users):
                out[user, column : column + self.block_samples] = self._receive(user)
            self.position += self.block_samples
        return out

    def over(self, frame: int, user: int) -> int:
        """Sample of a user's stream at which everything of a frame has arrived, multipath included."""
        last = self.truth.receive_index(frame * self.frame_samples + self.active_samples, user)
        return math.ceil(last) + KERNEL_AFTER + (self.frame_samples - self.active_samples) // 2

    def _random(self, stream: int, first: int, second: int = 0) -> np.random.Generator:
        sequence = np.random.SeedSequence(self._seed, spawn_key=(stream, first, second))
        return np.random.Generator(np.random.SFC64(sequence))

    def _steps(self, n: int, stream: int, first: int, second: int = 0) -> np.ndarray:
        linewidth_hz = self._impairments.phase_noise_linewidth_hz
        if not linewidth_hz:
            return np.empty(0, np.float32)
        return phase_steps(n, linewidth_hz, self.sample_rate_hz, self._random(stream, first, second))

    def _send(self, frame: int) -> None:
        """Carry what the base station sent in a frame to all users."""
        begin = frame * self.frame_samples
        sent = self._sent[:, begin - self._sent_from : begin - self._sent_from + self.active_samples]
        if not sent.any():
            return
        steps = self._steps(sent.shape[1], _BASE_PHASE, frame)
        if steps.size:
            wander = np.ones(sent.shape[1], np.complex64)
            turn(wander, wander, 0.0, 0, steps)
            sent = sent * wander
        channels = self._paths(frame)
        shape = (self.n_users, channels.delays_samples.shape[-1])
        if channels.delays_samples.shape != shape or channels.gains.shape != (*shape, self.n_tx):
            raise ValueError(
                f"channels of frame {frame} have shapes {channels.delays_samples.shape} and {channels.gains.shape}; "
                f"needs (users, paths) and (users, paths, antennas) for {self.n_users} users, {self.n_tx} antennas"
            )
        for user in range(self.n_users):
            self._under_way[user].append(self._carry(frame, user, sent, channels))

    def _carry(self, frame: int, user: int, sent: np.ndarray, channels: DownlinkPaths) -> tuple[int, np.ndarray]:
        """One user's signal of a frame: where it begins, and complex64 (n,)."""
        used = np.flatnonzero(np.any(channels.gains[user], axis=1))
        mixed = np.ascontiguousarray(channels.gains[user][used], np.complex64) @ sent
        offset = float(self.truth.sampling_offset[user])
        begin = frame * self.frame_samples
        fixed = self.truth.latency_samples + float(self.truth.start_delay_samples[user])
        delays = fixed + channels.delays_samples[user][used].astype(np.float64)
        first = math.floor(begin / (1 + offset) + delays.min()) - KERNEL_BEFORE - 1
        end = math.ceil((begin + sent.shape[1]) / (1 + offset) + delays.max()) + KERNEL_AFTER + 1
        if first < begin + self.active_samples - 1:
            raise RadioError(
                f"after {begin} samples the sampling offset of {offset * 1e6:g} ppm has used up the downlink's latency "
                "of a minute of air; shorten the run"
            )
        padded = np.pad(mixed, ((0, 0), (KERNEL_TAPS, KERNEL_TAPS)))
        n_paths, width = padded.shape
        piece = int(min(max(_MAX_DELAY_STEP_SAMPLES / max(abs(offset), 1e-12), 16), self.block_samples))
        rows = delay_rows(
            first,
            end - first,
            padded.ravel(),
            np.arange(n_paths, dtype=np.int64) * width + KERNEL_TAPS,
            np.full(n_paths, begin, np.int64),
            np.full(n_paths, sent.shape[1], np.int64),
            delays,
            offset,
            piece,
        )
        return first, rows.sum(axis=0)

    def _receive(self, user: int) -> np.ndarray:
        """The next block of a user's converter; complex64, (block_samples,)."""
        n, begin = self.block_samples, self.position
        block = begin // n
        signal = np.zeros(n, np.complex64)
        for first, values in self._under_way[user]:
            low, high = max(first, begin), min(first + len(values), begin + n)
            if low < high:
                signal[low - begin : high - begin] += values[low - first : high - first]
        self._under_way[user] = [(a, values) for a, values in self._under_way[user] if a + len(values) > begin + n]
        cycles = float(self.truth.cfo_hz[user]) / self.sample_rate_hz
        steps = self._steps(n, _USER_PHASE, user, block)
        if cycles or steps.size:
            self._phases[user] = turn(signal, signal, cycles, begin, steps, start_rad=self._phases[user])
        if self.truth.noise_power:
            drawn = self._random(_NOISE, user, block).standard_normal(2 * n, dtype=np.float32).view(np.complex64)
            signal += drawn * np.float32(math.sqrt(self.truth.noise_power / 2))
        imp = self._impairments
        signal *= np.float32(self.truth.gain)
        if imp.iq_gain_db or imp.iq_phase_deg:
            signal = iq_imbalance(signal, imp.iq_gain_db, imp.iq_phase_deg)
        signal += self._dc[user]
        if imp.adc_bits is not None:
            signal, clipped = quantise(signal, imp.adc_bits)
            self.clipped_samples[user] += clipped
        return signal

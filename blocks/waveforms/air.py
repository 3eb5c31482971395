"""The air between transmitting radios and one multi-antenna receiver, sample by sample.

Two timelines run side by side. Sample n of the transmit timeline leaves the antennas when the transmitters'
clock has ticked n times; sample m of the receive timeline is converted when the receiver's clock has ticked m
times. With the relative sampling offset e, a transmit sample n arrives, apart from multipath, at

    m = n / (1 + e) + latency + start delay + timing error of the user,

and both timelines advance by the same number of samples per call, as they do in a flowgraph. A fast
transmitting clock therefore eats up the latency, which by default is enough for one hour.

Accuracy: delays are band-limited to -67 dB up to 0.4 of the sample rate; the sampling offset is followed in
steps of at most 1/2048 sample (-64 dB at that edge); the phases that Doppler gives to a path are held for at
most 0.02 rad (-40 dB at the ends of such a piece, -45 dB on average).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from ...errors import RadioError
from ...models.channels import ChannelConfig, Paths, checked_array_shape, draw_paths, frequency_response
from .impairments import (
    KERNEL_AFTER,
    KERNEL_BEFORE,
    KERNEL_TAPS,
    Impairments,
    db_to_amplitude,
    delay_rows,
    iq_coefficients,
    phase_steps,
    turn,
)
from .recorded_channel import RecordedChannel

# Streams of randomness: every draw is addressed by stream and by what it belongs to, never by order of calls.
_RADIO, _USERS, _BEACON_CHANNEL, _USER_CHANNEL, _BEACON_PHASE, _USER_PHASE, _RECEIVER_PHASE, _NOISE = range(8)

_NO_STEPS = np.empty(0, dtype=np.float32)

# What a recorded channel brings along, and must not be met a second time.
_HELD_BY_RECORDING = {
    "cfo_ppm": 0.0,
    "sampling_offset_ppm": None,
    "user_cfo_hz": 0.0,
    "user_timing_samples": 0.0,
    "chain_phase": False,
    "chain_delay_samples": 0.0,
    "chain_gain_db": 0.0,
}

_MAX_DELAY_STEP_SAMPLES = 1 / 2048
_MAX_DOPPLER_STEP_RAD = 0.02
_DRIFT_ALLOWANCE_S = 3600.0


@dataclass(frozen=True)
class Truth:
    """What the receiver cannot know but a report may.

    Attributes:
        latency_samples: whole delay of the emulation itself.
        start_delay_samples: unknown start.
        sampling_offset: relative excess of the transmitters' sampling clock.
        cfo_hz: common carrier offset, to which each user's own adds.
        chain_phase_rad: (antennas,).
        chain_delay_samples: (antennas,).
        chain_gain_db: (antennas,).
        user_cfo_hz: (users,) offset after locking.
        user_timing_samples: (users,) delay after locking.
        user_gain_db: (users,).
        gain: amplitude gain of all chains before the converter.
        noise_power: at the antennas, per complex sample.
    """

    latency_samples: int
    start_delay_samples: float
    sampling_offset: float
    cfo_hz: float
    chain_phase_rad: np.ndarray
    chain_delay_samples: np.ndarray
    chain_gain_db: np.ndarray
    user_cfo_hz: np.ndarray
    user_timing_samples: np.ndarray
    user_gain_db: np.ndarray
    gain: float
    noise_power: float

    def receive_index(self, transmit_sample: float, user: int | None = None) -> float:
        """Tell where a transmit sample arrives, apart from multipath and chain delays.

        Args:
            transmit_sample: place in the transmit timeline.
            user: whose burst it belongs to; None for the beacon.

        Returns:
            Place in the receive timeline, in samples, seldom whole.
        """
        timing = 0.0 if user is None else float(self.user_timing_samples[user])
        fixed = self.latency_samples + self.start_delay_samples + timing
        return transmit_sample / (1 + self.sampling_offset) + fixed

    def as_dict(self) -> dict[str, Any]:
        """Give all values as plain numbers and lists, for a report."""
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(self).items()}


@dataclass
class _Burst:
    """A burst on its way. `padded` holds the samples between KERNEL_TAPS zeros on each side."""

    key: tuple[int, int, int]
    start: int
    length: int
    padded: np.ndarray
    paths: Paths
    delays_samples: np.ndarray
    arrives: int
    gone: int


class Air:
    """Shared air of a beacon, up to `n_users` users, and one receiver with `n_rx` antennas.

    The output is a function of absolute sample index, configuration, seed and inputs alone, bit for bit, no
    matter how a span is cut into calls: all work is done on a fixed grid of blocks, and randomness is
    addressed by block, by user and by frame.

    The effects come in the order in which a signal meets them: power, carrier offset and phase noise of the
    user; multipath; sum; delay of the chain; common carrier offset and the receiver's phase noise; phase of
    the chain; noise; gain of the chain; IQ imbalance; DC; conversion.

    The beacon's channel is one realisation for the whole run, which moves with its Doppler shift; its
    `redraw` is not looked at, since the beacon is one unbroken stream.

    A recorded channel takes the place of all draws it holds: paths and offsets of the users and of the beacon,
    which gets another one in every frame, powers, gains and noise of the chains, and the clocks. Signals then have
    the units of the recording, the gain before the converter is 1, and of the impairments only start delay, phase
    noise, IQ imbalance, DC and the converter's bits are applied.

    Attributes:
        truth: what was drawn.
        gain: amplitude gain before the converter; 1 without converter.
        position: samples processed so far.
        late_bursts: bursts refused for being late.
        clipped_samples: (n_rx,) int64, complex samples clipped so far.
    """

    def __init__(
        self,
        channel: ChannelConfig,
        impairments: Impairments,
        *,
        sample_rate_hz: float,
        centre_frequency_hz: float,
        n_rx: int,
        n_users: int,
        noise_power: float,
        seed: int,
        beacon_channel: ChannelConfig | None = None,
        user_power_spread_db: float = 0.0,
        expected_power: float = 1.0,
        latency_samples: int | None = None,
        block_samples: int = 4096,
        recorded: RecordedChannel | None = None,
    ) -> None:
        """Draw everything that stays for the run.

        Args:
            channel: statistics of the users' channels.
            impairments: radios and clocks.
            sample_rate_hz: of all chains.
            centre_frequency_hz: carrier, for offsets in ppm.
            n_rx: receive antennas.
            n_users: users 0 to n_users - 1 may send.
            noise_power: per complex sample and antenna, in the units of the transmitted samples.
            seed: of everything random.
            beacon_channel: statistics of the beacon's channel; None for a wire.
            user_power_spread_db: receive powers of users are uniform within plus or minus this.
            expected_power: mean power per antenna of what is received while somebody sends, for the gain.
            latency_samples: delay of the emulation; None for the least that lasts one hour.
            block_samples: grid of the processing.
            recorded: channels that were measured, for `channel`, `beacon_channel`, `noise_power` and the user's
                powers; given if and only if `channel.kind` is "recorded".

        Raises:
            ValueError: a value is out of range.
        """
        _check("sample_rate_hz", sample_rate_hz, sample_rate_hz > 0, "above 0")
        _check("centre_frequency_hz", centre_frequency_hz, centre_frequency_hz >= 0, "0 or more")
        _check("n_rx", n_rx, n_rx >= 1, "1 or more")
        _check("n_users", n_users, n_users >= 0, "0 or more")
        _check("noise_power", noise_power, noise_power >= 0, "0 or more")
        _check("seed", seed, seed >= 0, "0 or more")
        _check("user_power_spread_db", user_power_spread_db, user_power_spread_db >= 0, "0 or more")
        _check("expected_power", expected_power, expected_power > 0, "above 0")
        _check("block_samples", block_samples, block_samples >= 64, "64 or more")
        beacon_channel = beacon_channel or ChannelConfig()
        if (channel.kind == "recorded") != (recorded is not None):
            raise ValueError(
                f"channel.kind={channel.kind!r} with recorded={recorded!r}: a recorded channel needs kind 'recorded', "
                "and the other way round"
            )
        if recorded is not None:
            _check("n_rx", n_rx, n_rx == recorded.n_antennas, f"{recorded.n_antennas}, as recorded")
            _check("n_users", n_users, n_users == recorded.n_users, f"{recorded.n_users}, as assigned")
            rate_hz = recorded.links.sample_rate_hz
            _check("sample_rate_hz", sample_rate_hz, sample_rate_hz == rate_hz, f"{rate_hz:.10g}, as recorded")
            beacon_channel, user_power_spread_db, noise_power = channel, 0.0, recorded.noise_power
            impairments = impairments.model_copy(update=dict(_HELD_BY_RECORDING))
        for statistics in (channel, beacon_channel):
            if statistics.kind == "clustered":
                checked_array_shape(statistics.array_shape, n_rx)
        self.sample_rate_hz, self.n_rx, self.n_users = float(sample_rate_hz), int(n_rx), int(n_users)
        self.block_samples = int(block_samples)
        self._channel, self._impairments, self._recorded = channel, impairments, recorded
        self._random = _KeyedRandom(seed)
        self._seed = int(seed)

        sampling_offset = impairments.effective_sampling_offset_ppm * 1e-6
        if recorded is not None:
            sampling_offset = recorded.sampling_offset
        self._halo = 0
        if impairments.chain_delay_samples:
            self._halo = KERNEL_AFTER + 1 + math.ceil(impairments.chain_delay_samples)
        whole_delays = not (
            sampling_offset
            or impairments.start_delay_samples
            or impairments.user_timing_samples
            or impairments.chain_delay_samples
            or channel.delay_spread_s
            or beacon_channel.delay_spread_s
            or recorded is not None
        )
        # Reach of the interpolation around a signal; whole delays need none, and what is not yet known must
        # not even add zeros, since these could change the rounding of a sum.
        self._ahead, self._behind = (0, 0) if whole_delays else (KERNEL_BEFORE + 1, KERNEL_AFTER + 1)
        # What has to lie between transmission and reception so that nothing depends on the future.
        self._margin = 0
        if not whole_delays:
            self._margin = self._ahead + 1 + self._halo + math.ceil(impairments.user_timing_samples)
        if recorded is not None:
            self._margin += max(0, math.ceil(-recorded.earliest_samples))
        if latency_samples is None:
            hour = max(0.0, sampling_offset) * sample_rate_hz * _DRIFT_ALLOWANCE_S
            latency_samples = self._margin + math.ceil(hour)
        _check(
            "latency_samples",
            latency_samples,
            latency_samples >= self._margin,
            f"{self._margin} or more here",
        )

        gain = 1.0
        if impairments.adc_bits is not None and recorded is None:
            rms = math.sqrt(expected_power + noise_power)
            gain = float(db_to_amplitude(-impairments.full_scale_backoff_db)) / rms
        self.truth = self._draw_truth(
            centre_frequency_hz,
            int(latency_samples),
            sampling_offset,
            user_power_spread_db,
            gain,
            noise_power,
        )
        self.gain = gain
        self._common_delay = self.truth.latency_samples + self.truth.start_delay_samples
        step = _MAX_DELAY_STEP_SAMPLES / max(abs(sampling_offset), 1e-12)
        self._delay_piece = int(min(max(step, 16), self.block_samples))
        self._user_amplitude = db_to_amplitude(self.truth.user_gain_db)
        self._prepare_chains()

        self._beacon_of: dict[int, Paths] = {}
        if recorded is None:
            self._beacon_of[0] = draw_paths(beacon_channel, n_rx, self._random.at(_BEACON_CHANNEL))
        self._beacon_piece = self._gain_piece(beacon_channel)
        self._user_piece = self._gain_piece(channel)
        self._lasting_paths: dict[int, Paths] = {}

        self.position = 0
        self.late_bursts = 0
        self.clipped_samples = np.zeros(n_rx, dtype=np.int64)
        self._bursts: list[_Burst] = []
        # The beacon's past, from absolute index _past_start on; at first a silence.
        self._past_start = -2 * KERNEL_TAPS
        self._past = np.zeros(2 * KERNEL_TAPS, dtype=np.complex64)
        self._beacon_phase = 0.0
        self._receiver_phase = 0.0

    def add_burst(self, user: int, start_sample: int, samples: np.ndarray, frame: int) -> None:
        """Let a user send.

        Bursts of one user in one frame meet the same channel.

        Args:
            user: 0 to n_users - 1.
            start_sample: nominal place of the first sample in the transmit timeline, not before `position`.
            samples: (n,) complex64.
            frame: number of the frame, which addresses the fading.

        Raises:
            ValueError: the burst is late, not finite, empty, or of a user that does not exist.
        """
        samples = np.ascontiguousarray(samples, dtype=np.complex64)
        _check("user", user, 0 <= user < self.n_users, f"0 to {self.n_users - 1} (n_users)")
        _check("frame", frame, frame >= 0, "0 or more")
        if samples.ndim != 1 or not samples.size:
            raise ValueError(
                f"burst of user {user} in frame {frame} has shape {samples.shape}; give one row of samples"
            )
        if not np.isfinite(samples.view(np.float32)).all():
            raise ValueError(f"burst of user {user} in frame {frame} holds NaN or infinite samples")
        start = int(start_sample)
        if start < self.position:
            self.late_bursts += 1
            raise ValueError(
                f"burst of user {user} in frame {frame} is late: it starts at sample {start}, but samples "
                f"up to {self.position} are on the air already; add bursts before processing their span"
            )
        paths = self._paths(user, frame)
        delays = paths.tap_delays_s * self.sample_rate_hz
        delays += self._common_delay + self.truth.user_timing_samples[user]
        padded = np.zeros(samples.size + 2 * KERNEL_TAPS, dtype=np.complex64)
        # Phase noise starts at zero: the slow wander between bursts is what the users' tracking removes.
        turn(
            samples,
            padded[KERNEL_TAPS:-KERNEL_TAPS],
            (self.truth.user_cfo_hz[user] + self._own_cfo_hz(user, frame)) / self.sample_rate_hz,
            start,
            self._phase_steps(samples.size, _USER_PHASE, user, start),
            amplitude=float(self._user_amplitude[user]),
        )
        tick = 1 + self.truth.sampling_offset
        burst = _Burst(
            key=(start, user, frame),
            start=start,
            length=samples.size,
            padded=padded,
            paths=paths,
            delays_samples=delays,
            arrives=math.floor(start / tick + delays[0]) - self._ahead,
            gone=math.ceil((start + samples.size) / tick + delays[-1]) + self._behind,
        )
        self._bursts.append(burst)

    def process(self, tx: np.ndarray) -> np.ndarray:
        """Advance by a span: take the beacon's samples, return what the antennas deliver.

        Args:
            tx: (n,) complex64, the beacon stream from `position` on; n a multiple of block_samples.

        Returns:
            (n_rx, n) complex64.

        Raises:
            ValueError: wrong shape, or samples that are not finite.
            RadioError: the drift of the sampling clocks has used up the latency.
        """
        tx = np.ascontiguousarray(tx, dtype=np.complex64)
        if tx.ndim != 1 or tx.size % self.block_samples:
            raise ValueError(
                f"tx has shape {tx.shape}; give one row whose length is a multiple of "
                f"block_samples={self.block_samples}"
            )
        if not np.isfinite(tx.view(np.float32)).all():
            raise ValueError(f"tx holds NaN or infinite samples; its span starts at sample {self.position}")
        out = np.empty((self.n_rx, tx.size), dtype=np.complex64)
        for column in range(0, tx.size, self.block_samples):
            self._process_block(tx[column : column + self.block_samples], out, column)
        return out

    def response(self, user: int | None, frame: int, freqs_hz: np.ndarray, sample: int) -> np.ndarray:
        """Give the true frequency response from a user to the converters' inputs.

        Holds multipath, the user's power and the chains, but neither the common delay and offset nor the
        user's own timing and carrier offset, nor `gain`.

        Args:
            user: who sends; None for the beacon.
            frame: number of the frame.
            freqs_hz: (freqs,) from the carrier.
            sample: place in the receive timeline, for channels that move.

        Returns:
            (n_rx, freqs) complex128.
        """
        if user is None:
            paths, amplitude = self._beacon_paths(frame), 1.0
        else:
            paths, amplitude = self._paths(user, frame), float(self._user_amplitude[user])
        freqs_hz = np.asarray(freqs_hz, dtype=np.float64)
        multipath = frequency_response(paths, freqs_hz, sample / self.sample_rate_hz)
        delays_s = self.truth.chain_delay_samples / self.sample_rate_hz
        chains = self._chain_amplitude * np.exp(1j * self.truth.chain_phase_rad)
        return amplitude * multipath * chains[:, None] * np.exp(-2j * np.pi * delays_s[:, None] * freqs_hz)

    def _draw_truth(
        self,
        centre_frequency_hz: float,
        latency_samples: int,
        sampling_offset: float,
        user_power_spread_db: float,
        gain: float,
        noise_power: float,
    ) -> Truth:
        # Every quantity has its own address, so that switching one effect on leaves the others as they were.
        imp, at, recorded = self._impairments, self._random.at, self._recorded
        cfo_hz = imp.cfo_ppm * 1e-6 * centre_frequency_hz
        chain_gain_db = imp.chain_gain_db * at(_RADIO, 3).standard_normal(self.n_rx)
        if recorded is not None:
            cfo_hz, chain_gain_db = recorded.cfo_hz, recorded.chain_gain_db
        return Truth(
            latency_samples=latency_samples,
            start_delay_samples=imp.start_delay_samples * float(at(_RADIO, 0).random()),
            sampling_offset=sampling_offset,
            cfo_hz=cfo_hz,
            chain_phase_rad=imp.chain_phase * 2 * np.pi * at(_RADIO, 1).random(self.n_rx),
            chain_delay_samples=imp.chain_delay_samples * at(_RADIO, 2).uniform(-1, 1, self.n_rx),
            chain_gain_db=chain_gain_db,
            user_cfo_hz=imp.user_cfo_hz * at(_USERS, 0).standard_normal(self.n_users),
            user_timing_samples=imp.user_timing_samples * at(_USERS, 1).uniform(-1, 1, self.n_users),
            user_gain_db=user_power_spread_db * at(_USERS, 2).uniform(-1, 1, self.n_users),
            gain=gain,
            noise_power=float(noise_power),
        )

    def _prepare_chains(self) -> None:
        """Compute the constants of the receive chains: gains of signal and noise, IQ, DC, converter."""
        imp, truth = self._impairments, self.truth
        self._chain_amplitude = db_to_amplitude(truth.chain_gain_db)
        signal = self.gain * self._chain_amplitude * np.exp(1j * truth.chain_phase_rad)
        self._signal_gains = signal.astype(np.complex64)
        noise = self.gain * self._chain_amplitude * math.sqrt(truth.noise_power / 2)
        self._noise_gains = noise.astype(np.float32)
        direct, image = iq_coefficients(imp.iq_gain_db, imp.iq_phase_deg)
        dc = np.zeros(self.n_rx, dtype=np.complex64)
        if imp.dc_dbfs is not None:
            turns = self._random.at(_RADIO, 4).random(self.n_rx)
            dc = (db_to_amplitude(imp.dc_dbfs) * np.exp(2j * np.pi * turns)).astype(np.complex64)
        self._dc = dc
        self._iq = np.array([direct, image], dtype=np.complex64)
        self._levels = np.float32(0 if imp.adc_bits is None else 2 ** (imp.adc_bits - 1))
        self._turns = bool(truth.cfo_hz or imp.phase_noise_linewidth_hz)
        self._noise = np.zeros((self.n_rx, 2 * self.block_samples), dtype=np.float32)

    def _paths(self, user: int, frame: int) -> Paths:
        if self._recorded is not None:
            return self._recorded.user_paths(user, frame)
        if self._channel.redraw == "frame":
            return draw_paths(self._channel, self.n_rx, self._random.at(_USER_CHANNEL, user, 1 + frame))
        if user not in self._lasting_paths:
            self._lasting_paths[user] = draw_paths(self._channel, self.n_rx, self._random.at(_USER_CHANNEL, user, 0))
        return self._lasting_paths[user]

    def _own_cfo_hz(self, user: int, frame: int) -> float:
        """What a user's carrier offset was when its channel was recorded."""
        return 0.0 if self._recorded is None else self._recorded.user_cfo_hz(user, frame)

    def _beacon_paths(self, frame: int) -> Paths:
        if self._recorded is None:
            return self._beacon_of[0]
        if frame not in self._beacon_of:
            # A frame's beacon spans a few blocks, and is long past when the next but one begins.
            self._beacon_of = {f: paths for f, paths in self._beacon_of.items() if f >= frame - 1}
            self._beacon_of[frame] = self._recorded.beacon_paths(frame)
        return self._beacon_of[frame]

    def _frame_of(self, transmit_sample: int) -> int:
        return 0 if self._recorded is None else max(transmit_sample, 0) // self._recorded.frame_samples

    def _beacon_reach(self) -> tuple[float, float]:
        """Least and largest delay that a tap of the beacon has in any frame, in samples."""
        if self._recorded is None:
            delays = self._beacon_delays(0)
            return float(delays[0]), float(delays[-1])
        least, most = self._recorded.beacon_reach_samples
        return self._common_delay + least, self._common_delay + most

    def _beacon_delays(self, frame: int) -> np.ndarray:
        """Delays of the beacon's taps from transmit to receive timeline; float64, (taps,) in samples."""
        return self._common_delay + self._beacon_paths(frame).tap_delays_s * self.sample_rate_hz + np.zeros(1)

    def _gain_piece(self, channel: ChannelConfig) -> int:
        """Samples over which the gains of a moving channel are held; 0 for a channel at rest."""
        if not channel.doppler_hz:
            return 0
        step = _MAX_DOPPLER_STEP_RAD * self.sample_rate_hz / (2 * math.pi * channel.doppler_hz)
        return int(min(max(step, 16), self.block_samples))

    def _phase_steps(self, n: int, stream: int, first: int, second: int = 0) -> np.ndarray:
        """Draw the oscillator's phase increments for an address. Returns (n,) float32, or (0,) for none."""
        linewidth_hz = self._impairments.phase_noise_linewidth_hz
        if not linewidth_hz:
            return _NO_STEPS
        return phase_steps(n, linewidth_hz, self.sample_rate_hz, self._random.at(stream, first, second))

    def _process_block(self, tx: np.ndarray, out: np.ndarray, column: int) -> None:
        n, begin = self.block_samples, self.position
        block = begin // n
        first, width = begin - self._halo, n + 2 * self._halo
        truth = self.truth
        nearest = self._common_delay - truth.sampling_offset * (begin + n - self._common_delay)
        if nearest < self._margin:
            raise RadioError(
                f"after {begin} samples the sampling offset of {truth.sampling_offset * 1e6:g} ppm has used "
                f"up latency_samples={truth.latency_samples}; raise latency_samples, shorten the run, or "
                "give the offset the other sign"
            )
        # Signals lie between zeros, ready to be delayed again by the chains.
        signals = np.zeros((self.n_rx, width + 2 * KERNEL_TAPS), dtype=np.complex64)
        body = signals[:, KERNEL_TAPS : KERNEL_TAPS + width]
        self._add_beacon(tx, block, first, body)
        self._add_users(first, body)
        if self._halo:
            rows = np.arange(self.n_rx, dtype=np.int64)
            signals = delay_rows(
                begin,
                n,
                signals.ravel(),
                rows * signals.shape[1] + KERNEL_TAPS,
                np.full(self.n_rx, first, dtype=np.int64),
                np.full(self.n_rx, width, dtype=np.int64),
                truth.chain_delay_samples,
            )
        else:
            signals = np.ascontiguousarray(body)
        if truth.noise_power:
            sequence = np.random.SeedSequence(self._seed, spawn_key=(_NOISE, block))
            noise_rng = np.random.Generator(np.random.SFC64(sequence))
            noise_rng.standard_normal(out=self._noise, dtype=np.float32)
        _receive(
            signals.view(np.float32),
            self._rotator(begin, block).view(np.float32),
            self._noise,
            self._signal_gains,
            self._noise_gains,
            self._iq,
            self._dc,
            self._levels,
            out.view(np.float32),
            column,
            self.clipped_samples,
        )
        self.position += n
        self._bursts = [b for b in self._bursts if b.gone >= self.position - self._halo]

    def _rotator(self, begin: int, block: int) -> np.ndarray:
        """Turn by carrier offset and the receiver's oscillator. Returns (n,) complex64."""
        n = self.block_samples
        rotator = np.ones(n, dtype=np.complex64)
        if self._turns:
            cycles = self.truth.cfo_hz / self.sample_rate_hz
            steps = self._phase_steps(n, _RECEIVER_PHASE, block)
            self._receiver_phase = turn(rotator, rotator, cycles, begin, steps, start_rad=self._receiver_phase)
        return rotator

    def _add_beacon(self, tx: np.ndarray, block: int, first: int, body: np.ndarray) -> None:
        """Take a block of the beacon stream and add what of it arrives in the receive window.

        Args:
            tx: (block_samples,) complex64.
            block: its number.
            first: receive index of the first column.
            body: (n_rx, width) complex64, added to.
        """
        steps = self._phase_steps(tx.size, _BEACON_PHASE, block)
        if steps.size:
            turned = np.empty_like(tx)
            self._beacon_phase = turn(tx, turned, 0.0, 0, steps, start_rad=self._beacon_phase)
            tx = turned
        # Followed by zeros that only columns without meaning for this block would touch.
        source = np.concatenate([self._past, tx, np.zeros(KERNEL_TAPS, dtype=np.complex64)])
        width, drift = body.shape[1], self.truth.sampling_offset
        least, most = self._beacon_reach()
        reach = [d - drift * (m - d) for d in (least, most) for m in (first, first + width)]
        oldest = max(first - math.ceil(max(reach)) - KERNEL_TAPS - self._past_start, KERNEL_TAPS)
        newest = first + width - math.floor(min(reach)) + KERNEL_TAPS - self._past_start
        for begin, end in _sounding(source[oldest:newest]):
            low, high = oldest + begin, oldest + end
            frame = self._frame_of(self._past_start + low)
            delays = self._beacon_delays(frame)
            arrives = math.floor((self._past_start + low) / (1 + drift) + delays[0]) - self._ahead
            gone = math.ceil((self._past_start + high) / (1 + drift) + delays[-1]) + self._behind
            left, right = max(arrives - first, 0), min(gone - first, width)
            if left >= right:
                continue
            rows = delay_rows(
                first + left,
                right - left,
                source,
                np.full(delays.size, low, dtype=np.int64),
                np.full(delays.size, self._past_start + low, dtype=np.int64),
                np.full(delays.size, high - low, dtype=np.int64),
                delays,
                drift,
                self._delay_piece,
            )
            columns = body[:, left:right]
            self._add_paths(columns, rows, first + left, self._beacon_piece, [self._beacon_paths(frame)])
        # The delay changes by far less than a block per block: what is older than this is never needed again.
        drop = max(0, first + self.block_samples - math.ceil(max(reach)) - 4 * KERNEL_TAPS - self._past_start)
        self._past = source[drop:-KERNEL_TAPS].copy()
        self._past_start += drop

    def _add_users(self, first: int, body: np.ndarray) -> None:
        """Add all bursts that arrive in the receive window to `body`, see `_add_beacon`."""
        width = body.shape[1]
        present = [b for b in self._bursts if b.arrives < first + width and b.gone >= first]
        # Bursts that overlap share one matrix product over their common span; silence costs nothing.
        for group in _overlapping(present):
            low = max(min(b.arrives for b in group), first)
            high = min(max(b.gone for b in group) + 1, first + width)
            parts, offsets, starts, lengths = [], [], [], []
            offset = 0
            for burst in group:
                taps = burst.delays_samples.size
                begin = min(max(0, low - burst.gone + burst.length - KERNEL_TAPS), burst.length)
                end = max(min(burst.length, high - burst.arrives + KERNEL_TAPS), begin)
                parts.append(burst.padded[begin : end + 2 * KERNEL_TAPS])
                offsets += [offset + KERNEL_TAPS] * taps
                starts += [burst.start + begin] * taps
                lengths += [end - begin] * taps
                offset += parts[-1].size
            rows = delay_rows(
                low,
                high - low,
                np.concatenate(parts),
                np.array(offsets, dtype=np.int64),
                np.array(starts, dtype=np.int64),
                np.array(lengths, dtype=np.int64),
                np.concatenate([b.delays_samples for b in group]),
                self.truth.sampling_offset,
                self._delay_piece,
            )
            self._add_paths(body[:, low - first : high - first], rows, low, self._user_piece, [b.paths for b in group])

    def _add_paths(self, body: np.ndarray, rows: np.ndarray, first: int, piece: int, sources: list[Paths]) -> None:
        """Add delayed signals times gains, the gains held over pieces.

        Args:
            body: (n_rx, columns) complex64, added to.
            rows: (taps, columns) complex64, the taps of all sources one after the other.
            first: receive index of the first column.
            piece: columns over which gains are held; 0 for ever.
            sources: realisations.
        """
        if not piece:
            gains = np.concatenate([p.static_gains for p in sources]).astype(np.complex64)
            body += gains.T @ rows if len(gains) > 1 else gains.T * rows
            return
        begins = np.arange(0, rows.shape[1], piece)
        ends = np.minimum(begins + piece, rows.shape[1])
        times_s = (first + 0.5 * (begins + ends - 1)) / self.sample_rate_hz
        held = np.concatenate([p.tap_gains(times_s) for p in sources], axis=1).astype(np.complex64)
        for gains, begin, end in zip(held, begins, ends, strict=True):
            body[:, begin:end] += gains.T @ rows[:, begin:end]


class _KeyedRandom:
    """Random numbers addressed by up to three integers, by the counter-based generator Philox.

    Philox (Salmon et al. 2011) turns a key and a counter into numbers; here the key comes from the seed, the
    upper words of the counter are the address, and the lowest word counts draws.
    """

    def __init__(self, seed: int) -> None:
        self._bits = np.random.Philox(np.random.SeedSequence(seed))
        self._generator = np.random.Generator(self._bits)
        # A fresh state: no numbers left over in the generator's buffers.
        self._state: Any = self._bits.state

    def at(self, stream: int, first: int = 0, second: int = 0) -> np.random.Generator:
        """Give the generator of an address. It is good until the next call."""
        self._state["state"]["counter"] = np.array([0, second, first, stream], dtype=np.uint64)
        self._bits.state = self._state
        return self._generator


def _check(name: str, value: float, valid: bool, allowed: str) -> None:
    if not valid or not math.isfinite(value):
        raise ValueError(f"{name}={value} is not possible: allowed {allowed}")


def _sounding(x: np.ndarray) -> list[tuple[int, int]]:
    """Find the runs of a signal between silences of more than 4 KERNEL_TAPS samples. Returns (begin, end)."""
    places = np.flatnonzero(x)
    if not places.size:
        return []
    gaps = np.flatnonzero(np.diff(places) > 4 * KERNEL_TAPS)
    begins = [places[0], *places[gaps + 1]]
    ends = [*places[gaps], places[-1]]
    return [(int(begin), int(end) + 1) for begin, end in zip(begins, ends, strict=True)]


def _overlapping(bursts: list[_Burst]) -> list[list[_Burst]]:
    """Group bursts whose spans of arrival touch each other, in an order that does not depend on calls."""
    groups: list[list[_Burst]] = []
    reach = 0
    for burst in sorted(bursts, key=lambda b: (b.arrives, b.key)):
        if groups and burst.arrives <= reach:
            groups[-1].append(burst)
            reach = max(reach, burst.gone)
        else:
            groups.append([burst])
            reach = burst.gone
    return groups


@njit(cache=True, fastmath={"contract"}, nogil=True)
def _receive(signals, turn, noise, signal_gains, noise_gains, iq, dc, levels, out, column, clipped):
    """Take antenna signals to converter output: rotation, noise, gains, IQ imbalance, DC, quantisation.

    signals: (n_rx, 2n) float32; turn: (2n,) float32; noise: (n_rx, 2n) float32, unit variance per part;
    iq: (2,) complex64, factors of the signal and of its conjugate; levels: converter levels per unit, 0 for
    no converter; out: (n_rx, 2N) float32, written from complex column `column` on; clipped: (n_rx,), counted
    up.
    """
    n_rx, width = signals.shape
    n = width // 2
    direct_re, direct_im, image_re, image_im = iq[0].real, iq[0].imag, iq[1].real, iq[1].imag
    for a in range(n_rx):
        g_re, g_im, g_noise = signal_gains[a].real, signal_gains[a].imag, noise_gains[a]
        dc_re, dc_im = dc[a].real, dc[a].imag
        x = signals[a]
        w = noise[a]
        y = out[a, 2 * column : 2 * (column + n)]
        for t in range(n):
            t_re = turn[2 * t] * g_re - turn[2 * t + 1] * g_im
            t_im = turn[2 * t] * g_im + turn[2 * t + 1] * g_re
            s_re = x[2 * t] * t_re - x[2 * t + 1] * t_im + w[2 * t] * g_noise
            s_im = x[2 * t] * t_im + x[2 * t + 1] * t_re + w[2 * t + 1] * g_noise
            y[2 * t] = direct_re * s_re - direct_im * s_im + image_re * s_re + image_im * s_im + dc_re
            y[2 * t + 1] = direct_re * s_im + direct_im * s_re + image_im * s_re - image_re * s_im + dc_im
        if levels > 0:
            top = levels - np.float32(1)
            count = 0
            for t in range(n):
                v_re = np.floor(y[2 * t] * levels + np.float32(0.5))
                v_im = np.floor(y[2 * t + 1] * levels + np.float32(0.5))
                l_re = min(max(v_re, -levels), top)
                l_im = min(max(v_im, -levels), top)
                count += (l_re != v_re) | (l_im != v_im)
                y[2 * t] = l_re / levels
                y[2 * t + 1] = l_im / levels
            clipped[a] += count

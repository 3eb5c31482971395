"""The radio chain of random access without GNU Radio, and what it costs against symbol level.

The chain is what the flowgraph's blocks do, by the functions and classes that they are shells of: beacon and
bursts, the air with its impairments, frame finder, access slot cutter, detector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...blocks.waveforms.access import access_burst, receive_access
from ...blocks.waveforms.air import Air
from ...blocks.waveforms.beacon import beacon
from ...blocks.waveforms.frame import FrameFormat
from ...blocks.waveforms.frame_sync import AccessSlot, AccessSlotCutter, FrameFinder
from ...blocks.waveforms.impairments import Impairments
from ...models.statistics import Interval
from ...models.uad.detectors import Detector
from ...models.uad.simulate import complex_normal
from ..scenario import Scenario

_CHUNK_BLOCKS = 8


@dataclass(frozen=True)
class Comparison:
    """The same slots through the radio chain and at symbol level.

    Attributes:
        lengths: int, (frame,): preamble symbols sent.
        chain: float64, (frame,): share of users decided wrongly behind the chain; a frame that was not found
            counts as all silent.
        symbol: float64, (frame, offset): the same at symbol level, at the chain's SNR plus each offset.
        found: bool, (frame,): frames found and decided.
    """

    lengths: np.ndarray
    chain: np.ndarray
    symbol: np.ndarray
    found: np.ndarray


def make_air(scenario: Scenario, impairments: Impairments | None = None) -> Air:
    """The air that the loopback radio would make for a scenario, or one with other impairments."""
    return Air(
        scenario.channel,
        scenario.impairments if impairments is None else impairments,
        sample_rate_hz=scenario.frame.sample_rate_hz,
        centre_frequency_hz=scenario.radio.frequency_hz,
        n_rx=scenario.radio.n_antennas,
        n_users=scenario.users.n_users,
        noise_power=scenario.noise_power,
        seed=scenario.seed,
        beacon_channel=scenario.beacon_channel,
        user_power_spread_db=scenario.users.power_spread_db,
        expected_power=scenario.expected_power,
    )


def shortest_frame(frame_format: FrameFormat) -> int:
    """The least frame_samples that a frame's slots allow."""
    return frame_format.used_samples


def antenna_streams(
    scenario: Scenario,
    air: Air,
    active: Sequence[np.ndarray],
    lengths: Sequence[int],
    tail_samples: int,
) -> Iterator[np.ndarray]:
    """Send frames over the air.

    Args:
        scenario: numerology, preambles, amplitudes.
        air: as `make_air` gives it, at its start.
        active: per frame the numbers of its active users.
        lengths: per frame the preamble length.
        tail_samples: at least so much silence follows the last frame.

    Yields:
        complex64, (antennas, n): the antenna signals, piece by piece.
    """
    fmt, preambles = scenario.frame, scenario.preambles()
    bursts: dict[tuple[int, int], np.ndarray] = {}
    chunk = _CHUNK_BLOCKS * air.block_samples
    total = len(active) * fmt.frame_samples + tail_samples
    amplitude = np.float32(scenario.beacon_amplitude)
    for first in range(0, -(-total // air.block_samples) * air.block_samples, chunk):
        n = min(chunk, -(-(total - first) // air.block_samples) * air.block_samples)
        tx = np.zeros(n, np.complex64)
        for frame in range(first // fmt.frame_samples, -(-(first + n) // fmt.frame_samples)):
            if frame >= len(active):
                break
            start = frame * fmt.frame_samples
            waveform = amplitude * beacon(fmt, frame)
            low, high = max(start, first), min(start + len(waveform), first + n)
            if low < high:
                tx[low - first : high - first] = waveform[low - start : high - start]
            if start >= first:
                for user in active[frame]:
                    key = (int(user), lengths[frame])
                    if key not in bursts:
                        bursts[key] = access_burst(fmt, preambles[: key[1], key[0]])
                    air.add_burst(key[0], start + fmt.access_start, bursts[key], frame)
        yield air.process(tx)


def receive_slots(
    scenario: Scenario, streams: Iterator[np.ndarray], on_samples: Callable[[int], None] | None = None
) -> dict[int, AccessSlot]:
    """Find the frames in antenna streams and cut out their access slots.

    Args:
        scenario: numerology, lengths, synchronisation.
        streams: complex64, (antennas, n) each.
        on_samples: called with the samples taken so far.

    Returns:
        Access slots by frame number.
    """
    fmt = scenario.frame
    n_antennas = scenario.radio.n_antennas
    finder = FrameFinder(fmt, n_antennas, scenario.max_cfo_hz, scenario.sync.false_alarms_per_sample)
    cutter = AccessSlotCutter(fmt, n_antennas, scenario.users.preamble_lengths)
    slots: dict[int, AccessSlot] = {}
    taken = 0
    for samples in streams:
        delayed, frames = finder.process(samples)
        for frame in frames:
            cutter.announce(replace(frame, start=frame.start + finder.delay_samples))
        for slot in cutter.process(delayed):
            slots[slot.frame.frame_number] = slot
        taken += samples.shape[1]
        if on_samples is not None:
            on_samples(taken)
    return slots


def receiver_delay_samples(scenario: Scenario) -> int:
    """By how much the frame finder delays the streams."""
    return FrameFinder(scenario.frame, 1, scenario.max_cfo_hz).delay_samples


def tail_samples(scenario: Scenario, air: Air) -> int:
    """Silence behind the last frame in which the receiver finishes it."""
    return int(air.truth.receive_index(0)) + receiver_delay_samples(scenario) + 2 * scenario.frame.frame_samples


def group_centres_hz(frame_format: FrameFormat) -> np.ndarray:
    """Mean frequency of the subcarriers of each access group, from the carrier; float64, (n_groups,)."""
    frequencies = np.fft.fftfreq(frame_format.n_fft) * frame_format.sample_rate_hz
    return frequencies[frame_format.access_subcarriers].mean(axis=1)


def true_gains(scenario: Scenario, air: Air, users: np.ndarray, frame: int, length: int) -> np.ndarray:
    """Channel gains of users in a frame as the snapshots see them, without what the receive chains add.

    Taken at the centre of every group and in the middle of the burst.

    Returns:
        complex128, (users, antennas * n_groups).
    """
    fmt = scenario.frame
    middle = fmt.symbols_of_length(length) * fmt.symbol_samples / 2
    place = air.truth.receive_index(frame * fmt.frame_samples + fmt.access_start + middle)
    freqs_hz = group_centres_hz(fmt)
    chain_gain = 10 ** (air.truth.chain_gain_db[:, None] / 20)
    gains = np.empty((len(users), scenario.radio.n_antennas, fmt.n_groups), complex)
    for k, user in enumerate(users):
        late = air.truth.user_timing_samples[user] / fmt.sample_rate_hz
        turns = np.exp(-2j * np.pi * late * freqs_hz)
        gains[k] = air.response(int(user), frame, freqs_hz, round(place)) * turns / chain_gain
    return gains.reshape(len(users), scenario.n_snapshots)


def noise_snapshots(
    scenario: Scenario, air: Air, slots: dict[int, AccessSlot], delay_samples: int
) -> Iterator[tuple[int, np.ndarray]]:
    """The noise in access slots: what they would have held without any signal and with perfect radios.

    Args:
        scenario: of the run.
        air: of the run, at its end.
        slots: as received, by frame number.
        delay_samples: of the frame finder, by which their starts are late.

    Yields:
        Frame number, and complex64, (Lp, antennas * n_groups), white noise of the scenario's power.
    """
    # The same seed draws the same noise, receive sample by receive sample, whatever else is on the air.
    quiet = make_air(scenario, Impairments())
    cutter = AccessSlotCutter(scenario.frame, scenario.radio.n_antennas, scenario.users.preamble_lengths)
    for slot in slots.values():
        cutter.announce(replace(slot.frame, start=slot.frame.start - delay_samples))
    while quiet.position < air.position:
        for slot in cutter.process(quiet.process(np.zeros(_CHUNK_BLOCKS * quiet.block_samples, np.complex64))):
            yield slot.frame.frame_number, slot.snapshots


def compare(
    scenario: Scenario,
    detector: Detector,
    n_frames: int,
    offsets_db: Sequence[float],
    on_share: Callable[[float], None] | None = None,
) -> Comparison:
    """Decide the same slots behind the radio chain and at symbol level.

    Symbol level is Y = S diag(a) H + W with the preambles, active users and fading of each frame of the
    chain, H at the groups' centres, and known noise power. W is the noise of the chain, scaled for each
    offset, and the users' common phases are those of the chain: both leave the distribution as it is, and
    make both sides err in the same slots, which narrows the interval of their difference.

    Args:
        scenario: of the chain; its access_snr_db is offset 0.
        detector: decides both.
        n_frames: frames sent.
        offsets_db: SNRs at symbol level over that of the chain.
        on_share: told the share done.

    Returns:
        Shares of wrong decisions, per frame.
    """
    users, fmt = scenario.users, scenario.frame
    rng = np.random.default_rng([scenario.seed, 21])
    truth = rng.random((n_frames, users.n_users)) < users.activity
    who = [np.flatnonzero(row) for row in truth]
    lengths = [users.preamble_lengths[f % len(users.preamble_lengths)] for f in range(n_frames)]
    air = make_air(scenario)
    delay = receiver_delay_samples(scenario)
    total = n_frames * fmt.frame_samples + tail_samples(scenario, air)

    def tell(share: float) -> None:
        if on_share is not None:
            on_share(share)

    streams = antenna_streams(scenario, air, who, lengths, tail_samples(scenario, air))
    slots = receive_slots(scenario, streams, lambda n: tell(0.6 * n / total))
    slots = {frame: slot for frame, slot in slots.items() if frame < n_frames}
    decided = np.zeros_like(truth)
    for frame, slot in slots.items():
        decided[frame] = detector.detect(slot.snapshots[None], slot.noise_power).active[0]

    scales = 10 ** (-np.asarray(offsets_db, float) / 20)
    symbol = np.empty((n_frames, len(scales)))
    preambles = scenario.preambles()
    chains = np.repeat(air.gain * 10 ** (air.truth.chain_gain_db / 20), fmt.n_groups)
    noises = noise_snapshots(scenario, air, slots, delay)
    missed = sorted(set(range(n_frames)) - set(slots))
    for done, frame in enumerate([*(frame for frame in missed), *slots]):
        length, active = lengths[frame], who[frame]
        waves = preambles[:length, active].T[:, :, None] * true_gains(scenario, air, active, frame, length)[:, None, :]
        if frame in slots:
            number, noise = next(noises)
            assert number == frame
            waves = waves * _common_phases(fmt, air, slots[frame], delay)
            waves = _with_phases(waves, slots[frame].snapshots / chains - noise)
        else:
            noise = np.sqrt(scenario.noise_power) * complex_normal(rng, (length, scenario.n_snapshots))
        for k, scale in enumerate(scales):
            y = (waves.sum(axis=0) + scale * noise).astype(np.complex64)
            result = detector.detect(y[None], scenario.noise_power * scale**2)
            symbol[frame, k] = np.mean(result.active[0] != truth[frame])
        tell(0.6 + 0.4 * (done + 1) / n_frames)
    found = np.array([frame in slots for frame in range(n_frames)])
    return Comparison(np.array(lengths), np.mean(decided != truth, axis=1), symbol, found)


def _common_phases(fmt: FrameFormat, air: Air, slot: AccessSlot, delay_samples: int) -> np.ndarray:
    """Phases that all users share: those of the groups, and the ramp of the timing estimate's error.

    Returns:
        complex, (antennas * n_groups,).
    """
    groups = receive_access(access_burst(fmt, np.ones(1))[None], fmt, 1)[0]
    found = slot.frame.start - delay_samples + slot.frame.fraction
    late = found - air.truth.receive_index(slot.frame.frame_number * fmt.frame_samples)
    ramp = np.exp(2j * np.pi * group_centres_hz(fmt) * late / fmt.sample_rate_hz)
    return np.tile(groups * ramp, air.n_rx)


def _with_phases(waves: np.ndarray, received: np.ndarray) -> np.ndarray:
    """Turn every user's wave by the phase with which it fits what was received best.

    Args:
        waves: complex128, (user, symbol, snapshot).
        received: complex, (symbol, snapshot), without noise.
    """
    if len(waves) == 0:
        return waves
    basis = waves.reshape(len(waves), -1).T
    fit = np.linalg.lstsq(basis, received.reshape(-1), rcond=None)[0]
    return waves * np.exp(1j * np.angle(fit))[:, None, None]


def snr_cost_db(
    chain: np.ndarray,
    symbol: np.ndarray,
    offsets_db: Sequence[float],
    rng: np.random.Generator,
    n_bootstrap: int = 2000,
) -> Interval:
    """How many dB less SNR symbol level needs for the error probability of the chain.

    The horizontal distance to the curve of error probability over SNR, interpolated linearly in log error;
    beyond the grid's ends it is that end. The interval is the percentile bootstrap over frames, chain and
    symbol level of a frame drawn together.

    Args:
        chain: float64, (frame,): share of wrong decisions.
        symbol: float64, (frame, offset): at symbol level.
        offsets_db: ascending.
        rng: of the bootstrap.
        n_bootstrap: resamples.

    Returns:
        Cost in dB, positive where the chain is worse, with its interval.
    """
    offsets = np.asarray(offsets_db, float)
    if symbol.shape != (len(chain), len(offsets)) or len(chain) < 2 or np.any(np.diff(offsets) <= 0):
        raise ValueError(
            f"chain {chain.shape}, symbol {symbol.shape}, {len(offsets)} offsets: need (frame,), "
            "(frame, offset) with at least 2 frames, and ascending offsets"
        )
    least = 1e-3 / len(chain)
    weights = rng.multinomial(len(chain), np.full(len(chain), 1 / len(chain)), n_bootstrap) / len(chain)
    costs = [
        _horizontal_distance(float(w @ chain), w @ symbol, offsets, least)
        for w in [np.full(len(chain), 1 / len(chain)), *weights]
    ]
    low, high = np.percentile(costs[1:], [2.5, 97.5])
    return Interval(costs[0], float(low), float(high))


def _horizontal_distance(error: float, curve: np.ndarray, offsets: np.ndarray, least: float) -> float:
    # Chance may lift a point above its left neighbour; the curve itself falls with SNR.
    falling = np.log(np.maximum(np.minimum.accumulate(curve), least))
    return 0.0 - float(np.interp(-np.log(max(error, least)), -falling, offsets))

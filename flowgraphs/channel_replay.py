"""Channels of recorded runs: estimated once, and met again by other waveforms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage

from ..blocks.waveforms.access import noise_powers
from ..blocks.waveforms.channel_estimation import (
    Observation,
    Prior,
    TapEstimate,
    estimate_taps,
    learn_prior,
    start_prior,
)
from ..blocks.waveforms.frame_sync import FrameStart
from ..blocks.waveforms.impairments import rotation
from ..blocks.waveforms.recorded_channel import RecordedChannel, RecordedLinks
from ..captures.channels import ChannelRecording, read_channels
from ..captures.reader import Recording
from ..errors import RecordingError, ScenarioError
from .recorded_frames import (
    RecordedRun,
    beacon_waveform,
    burst_waveforms,
    find_frames,
    sent_beacon,
    smooth_clocks,
)
from .runfolder import RX_NAME, RunFolder, provenance
from .scenario import Scenario

# Delays that are looked at, in samples; what has no power is left out in the end.
_EARLIEST_SAMPLES = -8
_LEARNING_FRAMES = 24
_LEARNING_ROUNDS = 6
_LEAST_TAP_SHARE = 1e-4
# Twice what the emulated radios of the level "wireless" leave after locking.
_USER_CFO_STD_HZ = 100.0

OnProgress = Callable[[str, float], None]


def estimate_run(folder: Path, on_progress: OnProgress | None = None) -> ChannelRecording:
    """Estimate the channels of a run's recording from what is known to have been sent.

    Args:
        folder: of the run.
        on_progress: told what is done, and the share of all.

    Returns:
        Taps of the beacon in every frame and of every user in the frames in which it sent, with clocks, noise and
        quality.

    Raises:
        RecordingError: the folder is none of a run, or holds no frame of which it is known what was sent.
    """
    tell = on_progress or (lambda _name, _share: None)
    run = RecordedRun.open(RunFolder(folder))
    fmt, recording = run.scenario.frame, run.recording
    found = find_frames(run, lambda share: tell("finding frames", 0.2 * share))
    rows = {int(row["frame"]): index for index, row in enumerate(run.truth)}
    found = [(frame, stretch) for frame, stretch in found if frame.frame_number in rows]
    if not found:
        raise RecordingError(
            f"{recording.meta_path}: no frame was found of which {run.folder.truth.name} says what was sent; check "
            "that both are of one run"
        )
    clocks = smooth_clocks(found, fmt.frame_samples)
    noise = np.array([_noise(recording, frame, fmt) for frame, _ in found])
    noise = scipy.ndimage.uniform_filter1d(noise, min(31, len(noise)), axis=0, mode="nearest")

    waves, beacon_stream, active = burst_waveforms(run), sent_beacon(run), run.active()
    kept, beacons, bursts, beacon_powers = [], [], [], []
    for index, (frame, _) in enumerate(found):
        row = rows[frame.frame_number]
        start = round(clocks.arrival[index])
        sent = beacon_waveform(run, beacon_stream, run.truth[row])
        users = np.flatnonzero(active[row])
        length = int(run.truth["length"][row])
        if sent is None or any((int(user), length) not in waves for user in users):
            continue
        options = (recording, clocks.cfo_hz[index], noise[index])
        beacon = _observation(*options, start, sent[None], np.array([-1]), fmt)
        n_burst = fmt.symbols_of_length(length) * fmt.symbol_samples
        together = np.array([waves[int(user), length] for user in users]).reshape(len(users), n_burst)
        burst = _observation(*options, start + fmt.access_start, together, users, fmt)
        if beacon is not None and burst is not None:
            kept.append(index)
            beacons.append(beacon)
            bursts.append(burst)
            beacon_powers.append(float(np.mean(np.abs(sent) ** 2)))
    if not kept or not any(len(burst.sources) for burst in bursts):
        raise RecordingError(f"{recording.meta_path}: no user was heard in any frame; there is no channel to estimate")

    rate_hz = fmt.sample_rate_hz
    n_delays = fmt.cp_samples + 1 - _EARLIEST_SAMPLES
    occupied = fmt.n_used / fmt.n_fft
    snr = float(np.mean([np.mean(np.abs(b.received) ** 2 / b.noise_power[:, None]) for b in beacons]))
    beacon_power = float(np.mean(beacon_powers))
    begin = start_prior(_EARLIEST_SAMPLES, n_delays, occupied, power=max(snr, 1.0) / beacon_power)
    beacon_prior = learn_prior(beacons[:: max(1, len(beacons) // _LEARNING_FRAMES)], begin, _LEARNING_ROUNDS, rate_hz)
    tell("learning", 0.25)
    # Long preambles with few users say most.
    order = sorted(range(len(bursts)), key=lambda k: len(bursts[k].sources) / max(bursts[k].waves.shape[1], 1))
    telling = [bursts[k] for k in order if len(bursts[k].sources)][:_LEARNING_FRAMES]
    prior = learn_prior(
        telling,
        start_prior(_EARLIEST_SAMPLES, n_delays, occupied, power=0.1 * begin.default_power * beacon_power),
        _LEARNING_ROUNDS,
        rate_hz,
        on_share=lambda share: tell("learning", 0.25 + 0.25 * share),
    )
    heard, estimates = [], []
    for k, (beacon, burst) in enumerate(zip(beacons, bursts, strict=True)):
        heard.append(estimate_taps(beacon, beacon_prior))
        estimates.append(estimate_taps(burst, prior, rate_hz, _USER_CFO_STD_HZ))
        tell("estimating", 0.5 + 0.5 * (k + 1) / len(bursts))
    span = _significant(prior, beacon_prior)
    arrays = _arrays(kept, [found[k][0] for k in kept], clocks, bursts, heard, estimates, span)
    arrays["length"] = run.truth["length"][[rows[int(number)] for number in arrays["frame"]]].astype(np.int32)
    errors = arrays["link_error"]
    return ChannelRecording(
        arrays,
        sample_rate_hz=rate_hz,
        frequency_hz=run.scenario.radio.frequency_hz,
        band_hz=(fmt.n_used / 2 + 0.5) * fmt.subcarrier_spacing_hz,
        first_delay_samples=_EARLIEST_SAMPLES + span.start,
        beacon_power=beacon_power,
        sampling_offset=clocks.sampling_offset,
        cfo_hz=float(np.median(arrays["cfo_hz"])),
        source=_source(run),
        method={
            "estimator": "joint linear minimum mean square error of delay-limited taps of all active users",
            "prior": f"delay covariance and powers from {len(telling)} frames by expectation maximisation",
            "user_offsets": f"Gauss-Newton, standard deviation {_USER_CFO_STD_HZ:g} Hz a priori",
            "noise": "silent slot of every frame, mean over 31 frames",
            "clocks": "beacons, median over 31 frames",
        },
        quality={
            "frames": len(kept),
            "frames_found": len(found),
            "links": len(errors),
            "users": len(np.unique(arrays["link_user"])),
            "link_error_db": _spread_db(errors),
            "beacon_error_db": _spread_db(arrays["beacon_error"]),
            "residual_over_noise_db": _spread_db(arrays["residual"]),
            "condition": {"median": float(np.median(arrays["condition"])), "max": float(arrays["condition"].max())},
        },
        created=provenance(),
    )


def recorded_channel(scenario: Scenario) -> tuple[RecordedChannel, dict[str, Any]]:
    """The recorded air that a scenario asks for.

    Args:
        scenario: with channel.kind "recorded".

    Returns:
        The channel, and what a report must say of it.

    Raises:
        RecordingError: the recording is damaged.
        ScenarioError: it does not fit the scenario; names the field and both values.
    """
    place = Path(scenario.channel.recording or "")
    found, replayed = read_channels(place), scenario.channel_replay
    fmt, radio = scenario.frame, scenario.radio
    band_hz = (fmt.n_used / 2 + 0.5) * fmt.subcarrier_spacing_hz
    for field, given, recorded, fits in (
        ("frame.sample_rate_hz", fmt.sample_rate_hz, found.sample_rate_hz, fmt.sample_rate_hz == found.sample_rate_hz),
        ("radio.n_antennas", radio.n_antennas, found.n_antennas, radio.n_antennas == found.n_antennas),
        ("radio.frequency_hz", radio.frequency_hz, found.frequency_hz, radio.frequency_hz == found.frequency_hz),
        ("occupied band in Hz to either side (frame)", band_hz, found.band_hz, band_hz <= found.band_hz * (1 + 1e-9)),
    ):
        if not fits:
            raise ScenarioError(
                f"{field}={given:.10g} does not fit the channel recording {place}, which has {recorded:.10g}; a "
                "channel holds only where it was recorded"
            )
    arrays = found.arrays
    good = arrays["link_error"] <= 10 ** (replayed.max_error_db / 10)
    n_good = len(np.unique(arrays["link_user"][good]))
    if scenario.users.n_users > n_good and not (replayed.reuse and n_good):
        raise ScenarioError(
            f"users.n_users={scenario.users.n_users}, but {place} holds channels of {n_good} users with an error of at "
            f"most channel_replay.max_error_db={replayed.max_error_db:g} ({len(found.users)} in all); lower "
            "users.n_users, record more frames, or set channel_replay.reuse=true"
        )
    links = RecordedLinks(
        sample_rate_hz=found.sample_rate_hz,
        first_delay_samples=found.first_delay_samples,
        frame_number=arrays["frame"],
        fraction=arrays["arrival"] - np.round(arrays["arrival"]),
        cfo_hz=found.cfo_hz,
        sampling_offset=found.sampling_offset,
        noise_power=arrays["noise_power"].mean(axis=0),
        beacon_taps=arrays["beacon_taps"],
        beacon_power=found.beacon_power,
        link_frame=arrays["link_frame"][good],
        link_user=arrays["link_user"][good],
        link_taps=arrays["link_taps"][good],
        link_cfo_hz=arrays["link_cfo_hz"][good],
        link_error=arrays["link_error"][good],
    )
    channel = RecordedChannel(
        links,
        n_users=scenario.users.n_users,
        frame_samples=fmt.frame_samples,
        beacon_power=scenario.beacon_amplitude**2,
        seed=scenario.seed,
        reuse=replayed.reuse,
        mapping=replayed.mapping,
        keep_cfo=replayed.cfo == "keep",
        keep_timing=replayed.timing == "keep",
        snr_backoff_db=replayed.snr_backoff_db,
    )
    facts = {
        **channel.describe(),
        "links_left_out": int(np.count_nonzero(~good)),
        "recording": place.name,
        "source": found.source,
        "estimated": found.created.get("created"),
        "quality": found.quality,
        "not_used": ["link", "beacon_channel", "users.power_spread_db", "impairments of clocks, users and chain gains"],
    }
    return channel, facts


def _noise(recording: Recording, frame: FrameStart, fmt: Any) -> np.ndarray:
    start = frame.start + fmt.noise_start
    return noise_powers(recording.read(start, fmt.noise_symbols * fmt.symbol_samples), fmt)


def _observation(
    recording: Recording,
    cfo_hz: float,
    noise_power: np.ndarray,
    start: int,
    waves: np.ndarray,
    sources: np.ndarray,
    fmt: Any,
) -> Observation | None:
    """Samples around waveforms that begin at `start`; None where the recording does not hold them."""
    lead, tail = -_EARLIEST_SAMPLES, min(fmt.cp_samples, fmt.guard_samples)
    n = lead + waves.shape[1] + tail
    if start < lead or start - lead + n > recording.n_samples:
        return None
    samples = recording.read(start - lead, n)
    turned = samples * rotation(-cfo_hz, fmt.sample_rate_hz, start - lead, n)
    return Observation(turned, waves, lead, noise_power, sources)


def _significant(*priors: Prior) -> slice:
    """Delays, as indices, outside which no prior has power to speak of."""
    powers = np.max([np.diag(prior.covariance).real / np.trace(prior.covariance).real for prior in priors], axis=0)
    kept = np.flatnonzero(powers > _LEAST_TAP_SHARE)
    return slice(int(kept[0]), int(kept[-1]) + 1)


def _arrays(
    kept: list[int],
    frames: list[FrameStart],
    clocks: Any,
    bursts: list[Observation],
    heard: list[TapEstimate],
    estimates: list[TapEstimate],
    span: slice,
) -> dict[str, np.ndarray]:
    users = [burst.sources for burst in bursts]
    return {
        "frame": np.array([frame.frame_number for frame in frames], np.int64),
        "arrival": clocks.arrival[kept],
        "cfo_hz": clocks.cfo_hz[kept],
        "noise_power": np.array([burst.noise_power for burst in bursts]),
        "residual": np.array([found.residual for found in estimates]),
        "condition": np.array([found.condition for found in estimates]),
        "beacon_taps": np.array([found.taps[0][:, span] for found in heard], np.complex64),
        "beacon_error": np.array([found.error[0] for found in heard]),
        "link_frame": np.repeat(np.arange(len(users)), [len(group) for group in users]),
        "link_user": np.concatenate(users).astype(np.int64),
        "link_taps": np.concatenate([found.taps[:, :, span] for found in estimates]).astype(np.complex64),
        "link_cfo_hz": np.concatenate([found.cfo_hz for found in estimates]),
        "link_error": np.concatenate([found.error for found in estimates]),
    }


def _source(run: RecordedRun) -> dict[str, Any]:
    facts = run.folder.read_json(run.folder.run_json)
    return {
        "name": RX_NAME,
        "sha512": run.recording.sha512,
        "path": run.recording.global_fields.get("path"),
        "recorded": facts.get("created"),
        "scenario": run.scenario.name,
        "seed": run.scenario.seed,
        "radio": facts.get("radio", {}).get("kind"),
    }


def _spread_db(values: np.ndarray) -> dict[str, float]:
    db = 10 * np.log10(np.maximum(values, 1e-12))
    return {"mean": 10 * float(np.log10(np.mean(values))), "min": float(db.min()), "max": float(db.max())}

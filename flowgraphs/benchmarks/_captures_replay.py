"""Signal replay: the same bits every time, and another rate without a trace."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import signal

from ...blocks.playback import Playback, PlayOptions, silence
from ...blocks.runtime import gr, pmt
from ...blocks.sigmf_source import SigmfSource
from ...blocks.waveforms.resampling import ATTENUATION_DB, PASSBAND, Resampler
from ...captures.devicetime import DeviceTime
from ...captures.reader import Recording
from ...captures.writer import RecordingWriter
from ...models.statistics import mean_ci95
from ..execute import execute
from .entry import Entry, Measurement, OnShare, machine

RATE_HZ = 2_000_000
POLICIES = ("as-recorded", "stop", "splice", "zero")
RATIOS = (Fraction(1, 10), Fraction(125, 192), Fraction(3, 2), Fraction(192, 125), Fraction(2))


def measurements(quick: bool) -> list[Measurement]:
    """Measurements of signal replay; `quick` takes fewer repeats and shorter signals."""
    repeats, samples = (2, 60_000) if quick else (25, 400_000)
    tones = 2 if quick else 20
    speed_samples, speeds = (200_000, 3) if quick else (2_000_000, 9)
    return [
        Measurement(("signal-replay/bit-equal",), partial(bit_equal, samples, repeats, 1), 1.0 if quick else 20.0),
        Measurement(("signal-replay/resampling-error",), partial(resampling_error, tones, 1), 0.3 if quick else 2.0),
        Measurement(
            ("signal-replay/resampling-speed",),
            partial(resampling_speed, speed_samples, speeds, 1),
            1.0 if quick else 6.0,
        ),
    ]


def bit_equal(n_samples: int, n_repeats: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """Play one recording with gaps under every policy, at both rates, in turns, under many schedules.

    Args:
        n_samples: of the recording, on each of two channels.
        n_repeats: plays per combination, each with pieces of another size, some paced.
        seed: of samples, gaps and schedules.
        tell: told the share done.
    """
    rng = np.random.default_rng(seed)
    # That it stops at gaps is what is measured here, and no news.
    with tempfile.TemporaryDirectory() as folder, silence():
        recording = _recording(Path(folder), n_samples, rng)
        ways: list[dict[str, Any]] = [
            {"gaps": gaps, "rate_hz": rate_hz} for gaps in POLICIES for rate_hz in (None, 1.28e6)
        ]
        ways += [{"gaps": "splice", "turns": 3, "frame_samples": 512, "rate_hz": rate} for rate in (None, 1.28e6)]
        equal = plays = 0
        for k, way in enumerate(ways):
            first = None
            for _ in range(n_repeats):
                digest = _play(recording, way, rng)
                first = first or digest
                equal += digest == first
                plays += 1
                tell((k + 1) / len(ways))
    settings = {"samples": n_samples, "channels": 2, "ways": ways, "plays": plays, "seed": seed}
    yield Entry("signal-replay/bit-equal", equal / plays, None, "1", 1.0, settings)


def _recording(folder: Path, n_samples: int, rng: np.random.Generator) -> Recording:
    x = rng.standard_normal((2, n_samples, 2)).astype(np.float32).view(np.complex64)[..., 0]
    places = np.sort(rng.choice(np.arange(1, n_samples), 5, replace=False))
    with RecordingWriter(
        folder, "rec", n_channels=2, datatype="cf32_le", sample_rate_hz=float(RATE_HZ),
        device_time=DeviceTime(5, 17, RATE_HZ),
    ) as writer:  # fmt: skip
        for part in np.split(x, places, axis=1)[:-1]:
            writer.write(part)
            writer.gap(int(rng.integers(1, 3000)))
        writer.write(x[:, places[-1] :])
    return Recording.open(folder / "rec.sigmf-meta")


def _play(recording: Recording, way: dict[str, Any], rng: np.random.Generator) -> str:
    """Digest of all samples and tags of one play."""
    from gnuradio import blocks as gr_blocks

    paced = rng.random() < 0.1
    source = SigmfSource(recording, 500, **way, speed=20.0 if paced else None)
    if rng.random() < 0.8:
        source.set_max_noutput_items(int(2 ** rng.uniform(7, 14)))
    top_block = gr.top_block("play")
    sinks = [gr_blocks.vector_sink_c() for _ in source.playback.channels]
    for port, sink in enumerate(sinks):
        top_block.connect((source, port), sink)
    execute(top_block, lambda: source.failure)
    digest = hashlib.sha256()
    for sink in sinks:
        digest.update(np.array(sink.data(), np.complex64).tobytes())
        tags = sorted((tag.offset, pmt.write_string(tag.key), pmt.write_string(tag.value)) for tag in sink.tags())
        digest.update(str(tags).encode())
    return digest.hexdigest()


def resampling_error(n_draws: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """Resample band-limited signals, and compare with their values at the exact instants.

    Args:
        n_draws: signals per ratio, each of 64 tones anywhere in the passband.
        seed: of the tones.
        tell: told the share done.
    """
    rng = np.random.default_rng(seed)
    by_ratio: dict[str, float] = {}
    for k, ratio in enumerate(RATIOS):
        filter_ = Resampler(ratio)
        count = 4000
        position = 7
        first, length = filter_.window(position, count)
        ideal_at = (position + np.arange(count) * filter_.down) / filter_.up
        error = power = 0.0
        for _ in range(n_draws):
            tones = rng.uniform(-PASSBAND / 2, PASSBAND / 2, 64) * min(1.0, float(ratio))
            amplitudes = np.exp(2j * np.pi * rng.random(64))
            window = np.exp(2j * np.pi * np.outer(np.arange(first, first + length), tones)) @ amplitudes
            ideal = np.exp(2j * np.pi * np.outer(ideal_at, tones)) @ amplitudes
            got = filter_.resample(window[None].astype(np.complex64), position, count)[0]
            error += float(np.sum(np.abs(got - ideal) ** 2))
            power += float(np.sum(np.abs(ideal) ** 2))
        by_ratio[str(ratio)] = 10 * np.log10(error / power)
        tell((k + 1) / len(RATIOS))
    settings = {"ratios_db": by_ratio, "draws": n_draws, "passband": PASSBAND, "seed": seed}
    yield Entry("signal-replay/resampling-error", max(by_ratio.values()), None, "dB", -ATTENUATION_DB, settings)


def resampling_speed(n_samples: int, n_repeats: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """Play four channels of a 30.72 MS/s recording at 20 MS/s; beside it scipy's filter of as many taps.

    Args:
        n_samples: of the recording, per channel.
        n_repeats: measurements.
        seed: of the samples.
        tell: told the share done.
    """
    ratio, n_channels = Fraction(125, 192), 4
    rng = np.random.default_rng(seed)
    x = (0.1 * rng.standard_normal((n_channels, n_samples, 2))).astype(np.float32).view(np.complex64)[..., 0]
    taps = Resampler(ratio).taps * ratio.numerator
    rates, peer = [], []
    with tempfile.TemporaryDirectory() as folder:
        with RecordingWriter(
            Path(folder), "rec", n_channels=n_channels, datatype="ci16_le", sample_rate_hz=30.72e6
        ) as writer:
            writer.write(x)
        recording = Recording.open(Path(folder) / "rec.sigmf-meta")
        options = PlayOptions(gaps="stop", rate_hz=20e6)
        Playback(recording, options).warm_up()
        h = signal.firwin(taps | 1, 1 / ratio.denominator, window=("kaiser", 9.0)).astype(np.float32)
        few = min(n_samples, 100_000)
        for k in range(n_repeats):
            playback = Playback(recording, options)
            out = [np.empty(16384, np.complex64) for _ in range(n_channels)]
            begin = time.perf_counter()
            for first in range(0, playback.n_samples, 16384):
                n = min(16384, playback.n_samples - first)
                playback.read_into(first, [row[:n] for row in out])
            rates.append(n_samples * n_channels / (time.perf_counter() - begin) / 1e6)
            begin = time.perf_counter()
            signal.upfirdn(h, x[:, :few], ratio.numerator, ratio.denominator)
            peer.append(few * n_channels / (time.perf_counter() - begin) / 1e6)
            tell((k + 1) / n_repeats)
    estimate = mean_ci95(np.array(rates))
    settings = {
        "ratio": str(ratio), "channels": n_channels, "samples": n_samples, "repeats": n_repeats, "taps": taps,
        "seed": seed, "reference": "scipy.signal.upfirdn with as many taps", **machine(),
    }  # fmt: skip
    yield Entry(
        "signal-replay/resampling-speed",
        estimate.value,
        (estimate.low, estimate.high),
        "MS/s",
        float(np.median(peer)),
        settings,
    )

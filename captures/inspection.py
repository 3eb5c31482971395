"""What the samples of a recording look like: levels, offsets, clipping, noise floor; in bounded memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from sigmf import keys

from .reader import Annotation, OnShare, Recording, Segment

BLOCK_SAMPLES = 64
"""Powers are averaged over so many samples where the noise floor is looked for."""
FLOOR_SHARE = 0.05
_FLOOR_BIAS_DB = -0.949
"""The mean of 64 exponential powers, a gamma variable of shape 64: its 5 % quantile beside its mean."""
_PIECE_SAMPLES = 1 << 16
_LOWEST_DB, _STEP_DB, _N_BINS = -200.0, 0.05, 8000


@dataclass(frozen=True)
class Levels:
    """Levels of a recording. dBFS: relative to a complex sample of magnitude 1; -inf where there is nothing but zeros.

    Args:
        rms_dbfs: float64, (channel,).
        peak_dbfs: largest magnitude, (channel,).
        dc: complex128 mean, in units of full scale, (channel,).
        clipped: int64, samples of which a part is at full scale or beyond, (channel,).
        noise_floor_dbfs: total noise power in the recorded bandwidth, (channel,): the power that 5 % of all stretches
            of 64 samples do not exceed, corrected for what that is of white noise alone. Where the transmitter is
            silent for less than a twentieth of the time it is an upper bound.
        nonfinite: int64, samples that are NaN or infinite and left out of all others, (channel,).
        time_s: middle of each stretch, or its sample where there is no rate, (stretch,).
        rms_over_time_dbfs: (channel, stretch).
        peak_over_time_dbfs: (channel, stretch).
    """

    rms_dbfs: np.ndarray
    peak_dbfs: np.ndarray
    dc: np.ndarray
    clipped: np.ndarray
    noise_floor_dbfs: np.ndarray
    nonfinite: np.ndarray
    time_s: np.ndarray
    rms_over_time_dbfs: np.ndarray
    peak_over_time_dbfs: np.ndarray


def measure_levels(recording: Recording, n_stretches: int = 600, on_share: OnShare | None = None) -> Levels:
    """Measure all samples of a recording once.

    Args:
        recording: on disk; memory does not grow with its length.
        n_stretches: at most so many for the levels over time.
        on_share: told the share done.
    """
    n_channels, n_samples = recording.n_channels, recording.n_samples
    n_stretches = min(n_stretches, n_samples)
    edges = np.arange(n_stretches + 1) * n_samples // n_stretches
    power, peak = np.zeros((2, n_channels, n_stretches))
    total = np.zeros(n_channels, complex)
    clipped, nonfinite = np.zeros((2, n_channels), np.int64)
    histogram = np.zeros((n_channels, _N_BINS), np.int64)
    largest = _largest(recording)
    for start, samples in _pieces(recording, on_share):
        parts = samples.view(np.float32).reshape(n_channels, -1, 2)
        bad = ~np.isfinite(parts).all(axis=2)
        if bad.any():
            nonfinite += bad.sum(axis=1)
            samples = np.where(bad, 0, samples)
            parts = samples.view(np.float32).reshape(n_channels, -1, 2)
        clipped += ((parts >= largest) | (parts <= -1)).any(axis=2).sum(axis=1)
        with np.errstate(over="ignore"):
            squares = np.square(parts, dtype=np.float64).sum(axis=2)
        total += samples.sum(axis=1, dtype=np.complex128)
        stop = start + samples.shape[1]
        first, last = np.searchsorted(edges, [start, stop - 1], side="right") - 1
        cuts = np.maximum(edges[first : last + 1] - start, 0)
        power[:, first : last + 1] += np.add.reduceat(squares, cuts, axis=1)
        peak[:, first : last + 1] = np.maximum(peak[:, first : last + 1], np.maximum.reduceat(squares, cuts, axis=1))
        blocks = squares.shape[1] // BLOCK_SAMPLES * BLOCK_SAMPLES
        means = squares[:, :blocks].reshape(n_channels, -1, BLOCK_SAMPLES).mean(axis=2)
        for channel in range(n_channels):
            level = _db(means[channel][means[channel] > 0])
            at = np.clip((level - _LOWEST_DB) / _STEP_DB, 0, _N_BINS - 1).astype(int)
            histogram[channel] += np.bincount(at, minlength=_N_BINS)
    counts = np.diff(edges)
    middle = (edges[:-1] + edges[1:]) / 2
    valid = np.maximum(n_samples - nonfinite, 1)
    return Levels(
        rms_dbfs=_db(power.sum(axis=1) / valid),
        peak_dbfs=_db(peak.max(axis=1)),
        dc=total / valid,
        clipped=clipped,
        noise_floor_dbfs=_floor(histogram),
        nonfinite=nonfinite,
        time_s=middle / (recording.sample_rate_hz or 1.0),
        rms_over_time_dbfs=_db(power / counts),
        peak_over_time_dbfs=_db(peak),
    )


def spectrogram(recording: Recording, n_columns: int = 400, n_bins: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Power over frequency and time: of each column of time, the mean of a few transforms spread over it.

    Args:
        recording: on disk; only what is transformed is read.
        n_columns: at most so many.
        n_bins: transform length, less for short recordings.

    Returns:
        Power per bin, float64 (channel, bin, column), lowest frequency first; edges of the columns in samples,
        int64 (column + 1,). The power of a column sums to the mean power of its samples.
    """
    # As fine in frequency as in time where samples are few.
    n_bins = min(n_bins, 1 << (recording.n_samples.bit_length() // 2))
    n_columns = max(1, min(n_columns, recording.n_samples // n_bins))
    edges = np.arange(n_columns + 1) * recording.n_samples // n_columns
    window = np.hanning(n_bins + 1)[:-1] if n_bins >= 8 else np.ones(n_bins)
    window = window / np.sqrt(np.sum(window**2) * n_bins)
    power = np.empty((recording.n_channels, n_bins, n_columns))
    for column, (start, stop) in enumerate(pairwise(edges)):
        starts = np.unique(np.linspace(start, stop - n_bins, min(4, max(1, (stop - start) // n_bins))).astype(int))
        total = np.zeros((recording.n_channels, n_bins))
        for at in starts:
            samples = np.nan_to_num(recording.read(int(at), n_bins), posinf=0, neginf=0)
            total = total + np.abs(np.fft.fft(samples * window, axis=1)) ** 2
        power[:, :, column] = np.fft.fftshift(total / len(starts), axes=1)
    return power, edges


def summary(recording: Recording, levels: Levels) -> dict[str, Any]:
    """What there is to say of a recording, in plain values and lines of text.

    Args:
        recording: on disk.
        levels: as measured.
    """
    rate, fields = recording.sample_rate_hz, recording.global_fields
    date = recording.segments[0].raw.get(keys.DATETIME_KEY) if recording.segments else None
    states = [] if recording.complete is None else ["complete" if recording.complete else "incomplete"]
    states += ["recovered"] if fields.get("recovered") else []
    states += [f"incomplete because {fields['incomplete_reason']}"] if fields.get("incomplete_reason") else []
    sources = [
        f"{item.get('how')} of {item.get('name')} (sha512 {str(item.get('sha512'))[:16]}...)"
        for item in fields.get("sources", [])
        if isinstance(item, dict)
    ]
    rows = [
        {
            "channel": channel,
            "rms_dbfs": _finite(levels.rms_dbfs[channel]),
            "peak_dbfs": _finite(levels.peak_dbfs[channel]),
            "noise_floor_dbfs": _finite(levels.noise_floor_dbfs[channel]),
            "dc_dbfs": _finite(_db(np.abs(levels.dc) ** 2)[channel]),
            "clipped": int(levels.clipped[channel]),
            "nonfinite": int(levels.nonfinite[channel]),
        }
        for channel in range(recording.n_channels)
    ]
    return {
        "name": recording.name,
        "datatype": recording.datatype,
        "samples": recording.n_samples,
        "channels": recording.n_channels,
        "rate_hz": rate,
        "frequency_hz": recording.frequency_hz,
        "duration_s": None if rate is None else recording.n_samples / rate,
        "recorded": date,
        "state": ", ".join(states) or None,
        "source": "; ".join(sources) or None,
        "levels": rows,
        "segments": [_segment_line(s) for s in recording.segments],
        "gaps": [_line(a) for a in recording.annotations if a.fields.get("kind") == "gap"],
        "annotations": [_line(a) for a in recording.annotations if a.fields.get("kind") != "gap"],
        "settings": _settings(recording),
    }


def _finite(value: float) -> float | None:
    return round(float(value), 2) if np.isfinite(value) else None


def _segment_line(segment: Segment) -> str:
    parts = [f"from sample {segment.sample_start}, {segment.sample_count} samples"]
    if segment.global_index is not None:
        parts.append(f"global index {segment.global_index}")
    if segment.device_time is not None:
        parts.append(f"device time {float(segment.device_time.seconds):.9f} s")
    if segment.frequency_hz is not None:
        parts.append(f"{segment.frequency_hz:.12g} Hz")
    return ", ".join(parts)


def _line(annotation: Annotation) -> str:
    fields = {key: value for key, value in annotation.fields.items() if key not in ("kind", "device_time")}
    told = [f"{annotation.sample_start} +{annotation.sample_count}", annotation.label, annotation.comment]
    return "  ".join(part for part in [*told, ", ".join(f"{k} {v}" for k, v in fields.items())] if part)


def _settings(recording: Recording) -> list[str]:
    """Fields of the recording and of its first segment, one line each; long ones cut."""
    own = {k: v for k, v in recording.global_fields.items() if k not in ("chunks", "seal", "sources", "recording_id")}
    if recording.segments:
        own |= {k: v for k, v in recording.segments[0].fields.items() if k != "device_time"}
    texts = [f"{key} {value if isinstance(value, str) else json.dumps(value)}" for key, value in own.items()]
    return [text if len(text) <= 200 else f"{text[:196]} ..." for text in texts]


def _pieces(recording: Recording, on_share: OnShare | None) -> Iterator[tuple[int, np.ndarray]]:
    step = max(BLOCK_SAMPLES, _PIECE_SAMPLES // recording.n_channels // BLOCK_SAMPLES * BLOCK_SAMPLES)
    for start in range(0, recording.n_samples, step):
        if on_share is not None:
            on_share(start / recording.n_samples)
        yield start, recording.read(start, min(step, recording.n_samples - start))
        recording.forget()


def _largest(recording: Recording) -> float:
    """The largest value that a part of a sample can have, as read."""
    component = recording.component
    return 1.0 if component.kind == "f" else 1.0 - 2.0 ** (1 - 8 * component.itemsize)


def _floor(histogram: np.ndarray) -> np.ndarray:
    count = histogram.sum(axis=1)
    below = np.cumsum(histogram, axis=1)
    at = (below >= np.maximum(FLOOR_SHARE * count, 1)[:, None]).argmax(axis=1)
    level = _LOWEST_DB + (at + 0.5) * _STEP_DB
    return np.where(count > 0, level - _FLOOR_BIAS_DB, -np.inf)


def _db(power: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return 10 * np.log10(power)

"""Replaying any SigMF recording through the preamble detector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..blocks.message_collector import MessageCollector
from ..blocks.preamble_search import PreambleSearch
from ..blocks.runtime import gr
from ..blocks.sigmf_source import SigmfSource
from ..captures.reader import Recording
from ..errors import RecordingError, ScenarioError
from .execute import execute
from .random_access import first_failure

_CHUNK_SAMPLES = 8192


class PreambleReplay(gr.top_block):
    """A recording, the search, and a collector of what it finds."""

    def __init__(self, recording: Recording, search: PreambleSearch, receiver: Callable[..., None]) -> None:
        gr.top_block.__init__(self, "semair preamble replay")
        tail = _CHUNK_SAMPLES + -(recording.n_samples + _CHUNK_SAMPLES) % _CHUNK_SAMPLES
        self.source = SigmfSource(recording, tail)
        self.search = search
        self.collector = MessageCollector(receiver)
        for port in range(recording.n_channels):
            self.connect((self.source, port), (self.search, port))
        self.msg_connect((self.search, "preambles"), (self.collector, "in"))


def find_preambles(
    path: Path,
    reference: np.ndarray,
    *,
    max_cfo_hz: float = 0.0,
    false_alarms_per_sample: float = 1e-9,
    threshold: float | None = None,
    sample_rate_hz: float | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> tuple[Recording, list[dict[str, Any]]]:
    """Find a reference sequence in a recording, all its channels being antennas.

    Args:
        path: of the recording; any SigMF with complex samples.
        reference: complex64, (L,), at the recording's sample rate.
        max_cfo_hz: largest carrier offset to expect.
        false_alarms_per_sample: in white noise; sets the threshold.
        threshold: of the metric, instead; for air that carries other structured signals.
        sample_rate_hz: for recordings that do not say theirs.
        on_progress: called with the share done.

    Returns:
        The recording and one dictionary per occurrence, ascending: start (index of the reference's first sample),
        fraction, cfo_hz, metric, snr_db, gain_db (per antenna).

    Raises:
        RecordingError: the recording is damaged, or its sample rate is unknown or differs from the one given.
        ScenarioError: reference and search do not fit the recording.
    """
    recording = Recording.open(path)
    rate = recording.sample_rate_hz or sample_rate_hz
    if rate is None:
        raise RecordingError(f"{path}: core:sample_rate is missing; give it with --rate")
    if sample_rate_hz is not None and rate != sample_rate_hz:
        raise RecordingError(
            f"{path}: core:sample_rate is {rate:.10g}, but --rate says {sample_rate_hz:.10g}; leave it out"
        )
    # The source tells times in seconds and the search counts samples: both by the same rate, or no segment joins.
    recording.sample_rate_hz = rate
    if recording.n_samples < len(reference):
        raise RecordingError(
            f"{path} holds {recording.n_samples} samples, the reference {len(reference)}: it cannot occur"
        )
    try:
        search = PreambleSearch(
            reference, rate, recording.n_channels, max_cfo_hz, false_alarms_per_sample, threshold, _CHUNK_SAMPLES
        )
    except ValueError as error:
        raise ScenarioError(f"the search cannot be set up: {error}") from error
    found: list[dict[str, Any]] = []

    def collect(fields: dict[str, Any], gains: np.ndarray) -> None:
        power = np.maximum(np.abs(gains) ** 2, 1e-30)
        found.append({**fields, "gain_db": (10 * np.log10(power)).round(2).tolist()})

    top_block = PreambleReplay(recording, search, collect)
    interrupted = execute(
        top_block,
        lambda: first_failure([top_block.source, top_block.search, top_block.collector]),
        (lambda: on_progress(min(1.0, top_block.source.nitems_written(0) / recording.n_samples)))
        if on_progress
        else None,
    )
    if interrupted:
        raise KeyboardInterrupt
    return recording, sorted(found, key=lambda fields: fields["start"])


def compare_with_annotations(
    recording: Recording, found: Sequence[dict[str, Any]], offset: int, tolerance: int
) -> dict[str, int]:
    """Hold what was found against the annotations of a recording.

    Args:
        recording: with annotations that begin at the occurrences.
        found: of `find_preambles`.
        offset: samples from an annotation's start to the reference's first sample.
        tolerance: largest difference that counts as found, in samples.

    Returns:
        Counts: annotated, matched, missed, extra (found, but not annotated).
    """
    expected = np.array([note.sample_start + offset for note in recording.annotations], int)
    starts = np.array([fields["start"] for fields in found], int)
    near = np.abs(expected[:, None] - starts[None, :]) <= tolerance
    matched = int(near.any(axis=1).sum())
    return {
        "annotated": len(expected),
        "matched": matched,
        "missed": len(expected) - matched,
        "extra": int((~near.any(axis=0)).sum()) if len(expected) else len(starts),
    }

"""Replaying any SigMF recording through the preamble detector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..blocks.message_collector import MessageCollector
from ..blocks.playback import Playback, PlayOptions
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

    def __init__(self, source: SigmfSource, search: PreambleSearch, receiver: Callable[..., None]) -> None:
        gr.top_block.__init__(self, "semair preamble replay")
        self.source = source
        self.search = search
        self.collector = MessageCollector(receiver)
        for port in range(len(source.playback.channels)):
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
    play: PlayOptions | None = None,
    speed: float | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> tuple[Playback, list[dict[str, Any]]]:
    """Find a reference sequence in a recording, all its channels being antennas.

    Args:
        path: of the recording; any SigMF with complex samples.
        reference: complex64, (L,), at the sample rate that is played: the recording's, or the one resampled to.
        max_cfo_hz: largest carrier offset to expect.
        false_alarms_per_sample: in white noise; sets the threshold.
        threshold: of the metric, instead; for air that carries other structured signals.
        sample_rate_hz: for recordings that do not say theirs.
        play: how to play it; None: all channels at the recorded rate, searched anew behind each gap.
        speed: of the host's clock; 1 is real time. None: as fast as it goes.
        on_progress: called with the share done.

    Returns:
        What was played, and one dictionary per occurrence, ascending: start (index in the file of the reference's
        first sample), fraction, item (its index in what was played), cfo_hz, metric, snr_db, gain_db (per antenna).

    Raises:
        RecordingError: the recording is damaged, or its sample rate is unknown or differs from the one given.
        ScenarioError: reference, search or play options do not fit the recording.
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
    source = SigmfSource(recording, **vars(play or PlayOptions()), speed=speed)
    playback = source.playback
    if playback.n_samples < len(reference):
        raise RecordingError(
            f"{path} holds {playback.n_samples} samples, the reference {len(reference)}: it cannot occur"
        )
    # The search takes whole chunks, and looks back from behind what it finds.
    source.tail_samples = _CHUNK_SAMPLES + -(playback.n_samples + _CHUNK_SAMPLES) % _CHUNK_SAMPLES
    try:
        search = PreambleSearch(
            reference,
            playback.rate_hz,
            len(playback.channels),
            max_cfo_hz,
            false_alarms_per_sample,
            threshold,
            _CHUNK_SAMPLES,
        )
    except ValueError as error:
        raise ScenarioError(f"the search cannot be set up: {error}") from error
    found: list[dict[str, Any]] = []

    def collect(fields: dict[str, Any], gains: np.ndarray) -> None:
        power = np.maximum(np.abs(gains) ** 2, 1e-30)
        found.append({**fields, **_in_file(playback, fields), "gain_db": (10 * np.log10(power)).round(2).tolist()})

    top_block = PreambleReplay(source, search, collect)
    interrupted = execute(
        top_block,
        lambda: first_failure([top_block.source, top_block.search, top_block.collector]),
        (lambda: on_progress(min(1.0, source.nitems_written(0) / playback.n_samples))) if on_progress else None,
    )
    if interrupted:
        raise KeyboardInterrupt
    return playback, sorted(found, key=lambda fields: fields["item"])


def _in_file(playback: Playback, fields: dict[str, Any]) -> dict[str, Any]:
    """Place in the file of what was found in the played stream."""
    place = playback.recorded_place(fields["start"])
    if playback.rate_hz == playback.recorded_rate_hz:
        return {"item": fields["start"], "start": int(place)}
    place += fields["fraction"] * playback.recorded_rate_hz / playback.rate_hz
    return {"item": fields["start"], "start": round(place), "fraction": place - round(place)}


def compare_with_annotations(
    playback: Playback, found: Sequence[dict[str, Any]], offset: int, tolerance: int
) -> dict[str, int]:
    """Hold what was found against the annotations of a recording.

    Args:
        playback: of `find_preambles`, of a recording with annotations that begin at the occurrences.
        found: of `find_preambles`.
        offset: played samples from an annotation's start to the reference's first sample.
        tolerance: largest difference that counts as found, in played samples.

    Returns:
        Counts: annotated, matched, missed, extra (found, but not annotated).
    """
    expected = np.array([note.sample_start + offset for note in playback.annotations()], int)
    starts = np.array([fields["item"] for fields in found], int)
    near = np.abs(expected[:, None] - starts[None, :]) <= tolerance
    matched = int(near.any(axis=1).sum())
    return {
        "annotated": len(expected),
        "matched": matched,
        "missed": len(expected) - matched,
        "extra": int((~near.any(axis=0)).sum()) if len(expected) else len(starts),
    }

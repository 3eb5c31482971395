"""Finding lost samples by the frame counter of the recorded waveform, where the radio does not tell its time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sigmf import keys

from .journal import loss_annotation, with_losses
from .labels import rewrite
from .meta import EXTENSION, NAMESPACE, prefixed
from .reader import Recording

METHOD = "frame-counter"


@dataclass(frozen=True)
class Loss:
    """Samples that are missing between two frames.

    Args:
        lost_samples: how many, per channel.
        earliest_start: index in the file of the start of the last frame before the loss.
        sample_start: index in the file of the start of the first frame after it.
    """

    lost_samples: int
    earliest_start: int
    sample_start: int


class LossFinder:
    """Compares how many samples lie between frames with how many their numbers ask for.

    The count is exact up to the timing error of two frames plus the drift of the clocks between them. The place is
    told by the frames on either side, so it is within one frame where every frame is heard. (A synchroniser that
    expects the next frame at its usual place may miss the first one after a loss, and one that hears a beacon with a
    loss inside times it by one of its parts.)

    Args:
        frame_samples: length of a frame.
        tolerance_samples: difference between two frames that is no loss, for the errors of timing.
        drift_ppm: difference of the clocks of transmitter and receiver that is no loss.
        counter_bits: bits of the frame counter, which begins anew after the largest number.
    """

    def __init__(
        self, frame_samples: int, tolerance_samples: float = 4.0, drift_ppm: float = 50.0, counter_bits: int = 32
    ) -> None:
        if frame_samples < 1 or tolerance_samples < 0 or drift_ppm < 0:
            raise ValueError(
                f"frame_samples={frame_samples}, tolerance_samples={tolerance_samples}, drift_ppm={drift_ppm};"
                " frames have at least 1 sample, the others are not negative"
            )
        self._frame_samples = frame_samples
        self._tolerance_samples = tolerance_samples
        self._drift = 1e-6 * drift_ppm
        self._counter = 1 << counter_bits
        self._last: tuple[int, float] | None = None

    def add(self, frame: int, start: float) -> Loss | None:
        """Take in the next frame.

        Args:
            frame: number that was read in it; frames whose number was only counted on do not belong here.
            start: index in the file of its first sample.

        Returns:
            What was lost since the frame before, None if nothing. A counter that went back or stood still, as after
            a new start of the transmitter, says nothing and begins anew.
        """
        last, self._last = self._last, (frame, start)
        if last is None or start <= last[1]:
            return None
        frames = (frame - last[0]) % self._counter
        if not 0 < frames < self._counter // 2:
            return None
        there = start - last[1]
        missing = frames * self._frame_samples - there
        if missing <= self._tolerance_samples + self._drift * frames * self._frame_samples or round(missing) < 1:
            return None
        return Loss(round(missing), round(last[1]), round(start))

    def interrupt(self) -> None:
        """Forget the last frame: what lies between it and the next is accounted for otherwise."""
        self._last = None


def find_losses(frames: Iterable[tuple[int, float]], frame_samples: int, **options: Any) -> list[Loss]:
    """Losses between frames of a whole recording.

    Args:
        frames: number and index of the first sample of each frame heard, in order of place.
        frame_samples: length of a frame.
        options: as of `LossFinder`.
    """
    finder = LossFinder(frame_samples, **options)
    return [loss for frame, start in frames if (loss := finder.add(frame, start)) is not None]


def mark_losses(path: Path, losses: Iterable[Loss]) -> int:
    """Write losses into the metadata of a finished recording, and its new checksum into collections over it.

    Args:
        path: meta file.
        losses: see `with_found_losses`.

    Returns:
        How many were not marked before.

    Raises:
        RecordingError: the file is damaged.
        StorageError: it cannot be written.
    """
    recording = Recording.open(path)
    new = with_found_losses(recording.meta, losses)
    count = len(new["annotations"]) - len(recording.meta["annotations"])
    if count:
        rewrite(recording, new)
    return count


def with_found_losses(meta: dict[str, Any], losses: Iterable[Loss]) -> dict[str, Any]:
    """Metadata of a finished recording with losses that were found in its samples.

    From each loss on a capture segment begins whose `core:global_index` counts what is missing; the stretch in which
    it lies gets an annotation. Losses that are marked already are not marked again.

    Args:
        meta: content of a meta file of this project, or of another with at least one capture segment.
        losses: to mark.

    Returns:
        New metadata; the old are not changed.
    """
    known = {
        (a[keys.SAMPLE_START_KEY], a.get(keys.SAMPLE_COUNT_KEY))
        for a in meta["annotations"]
        if a.get(f"{NAMESPACE}:kind") == "gap"
    }
    new: list[dict[str, Any]] = [
        {
            "sample_start": loss.sample_start,
            "earliest_start": loss.earliest_start,
            "lost_samples": loss.lost_samples,
            "method": METHOD,
        }
        for loss in losses
        if (loss.earliest_start, loss.sample_start - loss.earliest_start) not in known
    ]
    segments: list[dict[str, Any]] = [
        {
            "sample_start": capture[keys.SAMPLE_START_KEY],
            "global_index": capture.get(keys.GLOBAL_INDEX_KEY, capture[keys.SAMPLE_START_KEY]),
            "capture": capture,
        }
        for capture in meta["captures"]
    ]
    captures = []
    for segment in with_losses(segments, new):
        capture = {
            **segment["capture"],
            keys.SAMPLE_START_KEY: segment["sample_start"],
            keys.GLOBAL_INDEX_KEY: segment["global_index"],
        }
        if segment["sample_start"] != segment["capture"][keys.SAMPLE_START_KEY]:
            # Times are those of the first sample of the old segment, and the radio knew nothing of the loss.
            for key in (f"{NAMESPACE}:device_time", keys.DATETIME_KEY):
                capture.pop(key, None)
        captures.append(capture)
    annotations: list[dict[str, Any]] = [*meta["annotations"], *map(loss_annotation, new)]
    annotations.sort(key=lambda item: item[keys.SAMPLE_START_KEY])
    head = dict(meta["global"])
    declared = head.get(keys.EXTENSIONS_KEY, [])
    if all(extension.get("name") != NAMESPACE for extension in declared):
        head[keys.EXTENSIONS_KEY] = [*declared, EXTENSION]
    lost = head.get(f"{NAMESPACE}:lost_samples", 0) + sum(loss["lost_samples"] for loss in new)
    head.update(prefixed({"lost_samples": lost}))
    return {**meta, "global": head, "captures": captures, "annotations": annotations}

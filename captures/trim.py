"""A part of a recording as a recording of its own."""

from __future__ import annotations

import math
from pathlib import Path

from ..errors import RecordingError
from .derive import excerpt, stored_pieces, write_recording
from .reader import OnShare, Recording

_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}


def trim(
    recording: Recording,
    start: int,
    stop: int,
    *,
    name: str | None = None,
    folder: Path | None = None,
    check: bool = True,
    overwrite: bool = False,
    on_share: OnShare | None = None,
) -> Recording:
    """Copy a stretch of samples into a new recording; the source stays as it is.

    Args:
        recording: the source.
        start: first sample.
        stop: sample after the last.
        name: of the result; made of the source's name and the stretch if None.
        folder: of the result; that of the source if None.
        check: compare the source with its checksum first, so that damage does not get a fresh one.
        overwrite: replace an existing recording.
        on_share: told the share done of the copy.

    Raises:
        RecordingError: the stretch is empty or not within the recording, the source is damaged, or the result exists.
        StorageError: it cannot be written.
    """
    if not 0 <= start < stop <= recording.n_samples:
        raise RecordingError(
            f"samples {start} to {stop} of {recording.name} were asked for; it has {recording.n_samples}: choose a"
            " stretch of at least one sample within them"
        )
    if check and recording.sha512 is not None:
        recording.check_hash()
    return write_recording(
        recording.meta_path.parent if folder is None else folder,
        f"{recording.name}-{start}-{stop}" if name is None else name,
        excerpt(recording, start, stop, how="trim"),
        stored_pieces(recording, start, stop, on_share=on_share),
        overwrite=overwrite,
    )


def place_in(recording: Recording, text: str) -> int:
    """Sample that a user means: a whole number, or a time since the first sample such as ``1.5s``, ``20ms``, ``3us``.

    Time counts samples in the file; what was lost at gaps takes none. Negative places count from the end.

    Raises:
        RecordingError: neither, or a time in a recording that does not say its rate.
    """
    number = text.rstrip("msu")
    unit = text[len(number) :]
    try:
        if not unit:
            place = int(number)
        else:
            if recording.sample_rate_hz is None:
                raise RecordingError(
                    f"{recording.meta_path}, global.core:sample_rate: missing, so {text!r} is no place; give samples"
                )
            seconds = float(number) * _UNITS[unit]
            if not math.isfinite(seconds):
                raise ValueError(text)
            place = round(seconds * recording.sample_rate_hz)
    except (ValueError, KeyError) as err:
        raise RecordingError(
            f"{text!r} is no place in a recording; give a sample such as 12000, or a time such as 1.5s, 20ms, 3us"
        ) from err
    return place if place >= 0 else recording.n_samples + place

"""Figures of recordings: what the recorder loses and costs, what survives, what checks catch, what can be replayed."""

from __future__ import annotations

from . import _captures_channel, _captures_recorder, _captures_replay, _captures_tools
from .entry import Measurement

AREA = "captures"


def measurements(quick: bool) -> list[Measurement]:
    """All measurements of this area; `quick` takes fewer draws and shorter runs."""
    return [
        *_captures_recorder.measurements(quick),
        *_captures_tools.measurements(quick),
        *_captures_replay.measurements(quick),
        *_captures_channel.measurements(quick),
    ]

"""Figures of the picture downlink, on tables made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from semair.flowgraphs.semantic_metrics import last_whole_frame


def table(*places):
    return np.array(list(places), [("frame", "<i8"), ("user", "<i4")])


@pytest.mark.parametrize(
    ("sent", "received", "last"),
    [
        (table(), table(), -1),
        (table((0, 0), (0, 1)), table(), -1),
        (table((0, 0), (0, 1)), table((0, 0)), -1),
        (table((0, 0), (0, 1), (1, 0), (1, 1)), table((0, 0), (0, 1), (1, 1)), 0),
        (table((0, 0), (0, 1), (1, 0), (1, 1)), table((0, 1), (1, 1), (0, 0), (1, 0)), 1),
        # A picture that a later one overtook was lost.
        (table((0, 0), (0, 1), (1, 0), (1, 1)), table((0, 1), (1, 1), (1, 0)), 1),
        # Who is served seldom keeps nobody waiting.
        (table((0, 0), (0, 1), (1, 0), (2, 0), (3, 0), (3, 1)), table((0, 0), (0, 1), (1, 0), (2, 0)), 2),
    ],
)
def test_rounds_are_whole_up_to_the_first_picture_on_its_way(sent, received, last):
    assert last_whole_frame(sent, received) == last

"""Drops by frame: the same whatever was asked before, and those of the source."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from semair.models.csi.channels import ChannelConfig, Clustered
from semair.models.csi.frames import FrameDrops

SMALL = Clustered(ChannelConfig(n_antennas=4, n_subcarriers=32, n_taps=16))


def test_a_frame_has_its_drop_in_whatever_order_it_is_asked():
    one, other = (FrameDrops(SMALL, 3, 2, (1.0, 1.0)) for _ in range(2))
    forwards = [one(frame).h for frame in range(4)]
    backwards = [other(frame).h for frame in reversed(range(4))]
    for a, b in zip(forwards, reversed(backwards), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(forwards[0] - forwards[1]).max() > 0.1


def test_seeds_differ_and_sizes_are_those_asked_for():
    drop = FrameDrops(SMALL, 3, 3, (1.0, 1.0))(0)
    assert drop.h.shape == (3, 32, 4)
    assert drop.gains.shape[0] == 3
    assert np.abs(drop.h - FrameDrops(SMALL, 4, 3, (1.0, 1.0))(0).h).max() > 0.1


def test_csi_is_that_of_the_paths():
    drop = FrameDrops(SMALL, 3, 2, (1.0, 1.0))(7)
    turns = np.exp(-2j * np.pi * np.arange(-16, 16)[:, None] * drop.delays_taps[:, None, :] / 32)
    np.testing.assert_allclose(turns @ drop.gains, drop.h, atol=1e-4)

"""Figures of channel replay: a frame recorded by others is predicted to within its noise, and what the noise is."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")

from semair.captures.reader import Recording
from semair.flowgraphs.benchmarks import _captures_channel as figures


def test_a_frame_recorded_by_others_is_predicted_to_within_its_noise(shared_data):
    path = shared_data / figures.RENEW
    (entry,) = figures.renew_frame(path, lambda _share: None)
    assert entry.value < 1.0
    assert entry.unit == "dB" and entry.ci95[0] < entry.value < entry.ci95[1]
    found = figures.predict_frame(Recording.open(path).read(0).astype(np.complex128))
    # 16-QAM is decided safely: a symbol error needs a third of the distance between points, 10 dB.
    assert (found.evm_db < -18).all()
    assert (found.signal > 10 * found.error).all()
    # What is told apart: noise with signals on the air is far above that before anybody sends.
    assert (found.noise > 10 * found.silence).all()


def test_prediction_needs_the_right_frame(shared_data):
    samples = Recording.open(shared_data / figures.RENEW).read(0).astype(np.complex128)
    shuffled = samples.copy()
    # The payload backwards is no 16-QAM any more: nothing of it is predicted.
    shuffled[:, 393 : 393 + 46 * 80] = samples[:, 393 : 393 + 46 * 80][:, ::-1]
    found = figures.predict_frame(shuffled)
    assert (found.error > 0.05 * found.signal).all()


@pytest.mark.slow
def test_detection_on_replayed_channels_is_that_of_the_run():
    entries = list(figures.own_runs(100, lambda _share: None))
    assert [entry.name for entry in entries] == [f"channel-replay/lab-wireless/L{length}" for length in figures.LENGTHS]
    # 25 slots of each length: the interval of the paired ratio holds 1 in 19 of 20 seeds, and this one is fixed.
    assert entries[0].ci95[0] < 1 < entries[0].ci95[1]
    for entry in entries:
        assert entry.settings["slots"] >= 23
        assert abs(entry.settings["residual_over_noise_db"]) < 0.3

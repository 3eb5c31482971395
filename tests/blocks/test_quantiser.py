"""What the quantiser gives is what a recording of it gives back, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")

import pmt
from gnuradio import blocks, gr
from semair.blocks.quantiser import Quantiser
from semair.captures.reader import Recording
from semair.captures.writer import RecordingWriter


def quantised(rows: np.ndarray, tags=()) -> tuple[np.ndarray, list]:
    top, block = gr.top_block(), Quantiser(len(rows))
    sinks = [blocks.vector_sink_c() for _ in rows]
    for port, row in enumerate(rows):
        top.connect(blocks.vector_source_c(row.tolist(), False, 1, list(tags) if port == 1 else []), (block, port))
        top.connect((block, port), sinks[port])
    top.run()
    assert block.failure is None
    return np.array([sink.data() for sink in sinks], np.complex64), [sink.tags() for sink in sinks]


def test_a_recording_holds_it_exactly(tmp_path, rng):
    rows = (0.7 * rng.standard_normal((2, 5000, 2)) @ np.array([1, 1j])).astype(np.complex64)
    given, _ = quantised(rows)
    inside = (np.abs(rows.real) < 0.99) & (np.abs(rows.imag) < 0.99)
    assert np.abs((given - rows)[inside].view(np.float32)).max() <= 0.5 / 32768 * 1.001
    assert given.real.max() <= 32767 / 32768
    assert given.real.min() >= -1
    with RecordingWriter(
        tmp_path, "x", n_channels=2, datatype="ci16_le", sample_rate_hz=1e6, frequency_hz=1e9
    ) as writer:
        writer.write(given)
    recording = Recording.open(tmp_path / "x.sigmf-meta")
    assert recording.read(0, given.shape[1]).tobytes() == given.tobytes()


def test_what_a_driver_scales_by_its_own_full_scale_keeps_its_steps():
    counted = np.arange(-16000, 16000, 7)
    rows = (counted / 32767).astype(np.complex64)[None]
    given, _ = quantised(rows)
    np.testing.assert_array_equal(given[0].real * 32768, counted)


def test_tags_stay_on_their_streams_and_samples():
    tag = gr.tag_utils.python_to_tag((17, pmt.intern("rx_time"), pmt.from_long(5), pmt.PMT_F))
    _, tags = quantised(np.zeros((2, 100), np.complex64), [tag])
    assert [[found.offset for found in port] for port in tags] == [[], [17]]

"""The block corrects as the function does, whatever the scheduler cuts, and moves tags along."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")

import pmt
from gnuradio import blocks, gr
from semair.blocks.chain_corrector import ChainCorrector
from semair.blocks.waveforms.calibration import ChainError, Corrector

ERRORS = [ChainError(), ChainError(-2.3, 0.7j, 0.02 - 0.01j, 0.1), ChainError(1.5, 1.2, 0.0, -0.05j)]


@pytest.mark.parametrize("most", [1, 100, 100_000])
def test_it_is_the_function_and_tags_move_along(most: int) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((3, 5000, 2)).astype(np.float32).view(np.complex64)[..., 0]
    tags = [gr.tag_utils.python_to_tag((at, pmt.intern("rx_time"), pmt.from_long(at), pmt.PMT_F)) for at in (0, 1234)]
    top = gr.top_block()
    sources = [blocks.vector_source_c(row.tolist(), False, 1, tags) for row in x]
    block, sinks = ChainCorrector(3, ERRORS), [blocks.vector_sink_c() for _ in x]
    for port, (source, sink) in enumerate(zip(sources, sinks, strict=True)):
        top.connect(source, (block, port))
        top.connect((block, port), sink)
    top.run(most)
    assert block.failure is None
    assert np.array_equal(np.array([sink.data() for sink in sinks], np.complex64), Corrector(ERRORS).process(list(x)))
    for sink in sinks:
        found = [(tag.offset, pmt.to_long(tag.value)) for tag in sink.tags()]
        assert found == [(at + block.delay_samples, at) for at in (0, 1234)]


def test_without_errors_samples_pass_and_other_numbers_of_chains_are_refused() -> None:
    assert ChainCorrector(2).delay_samples == 0
    with pytest.raises(ValueError, match="3 chains, but n_antennas=2"):
        ChainCorrector(2, ERRORS)

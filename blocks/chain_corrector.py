"""GNU Radio block: takes the errors of receive chains out of their streams."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .runtime import Failsafe, gr, guarded, input_tags
from .waveforms.calibration import ChainError, Corrector


class ChainCorrector(Failsafe, gr.sync_block):
    """Makes the receive chains of a radio equal: delay, phase, gain, IQ imbalance and DC.

    Streams: n_antennas complex in, as many out, delayed by `delay_samples`. Tags: all are passed on at their delayed
    place. Losses are not looked at: the samples within a filter's length behind one are smeared over it.

    Args:
        n_antennas: receive antennas.
        errors: of all chains, such as `Calibration.errors` gives them; empty: none has any.
    """

    def __init__(self, n_antennas: int = 1, errors: Sequence[ChainError] = ()) -> None:
        if errors and len(errors) != n_antennas:
            raise ValueError(f"errors holds {len(errors)} chains, but n_antennas={n_antennas}; give one each, or none")
        ports = [np.complex64] * n_antennas
        gr.sync_block.__init__(self, name="semair chain corrector", in_sig=ports, out_sig=ports)
        self.corrector = Corrector(list(errors) or [ChainError()] * n_antennas)
        self.delay_samples = self.corrector.delay_samples
        self.set_tag_propagation_policy(gr.TPP_DONT)

    def warm_up(self) -> None:
        """Compile what is compiled at first use."""
        errors = self.corrector.errors
        Corrector(errors).process([np.zeros(1, np.complex64)] * len(errors))

    @guarded
    def work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        """Correct the next samples."""
        n = len(output_items[0])
        corrected = self.corrector.process([port[:n] for port in input_items])
        for port, values in enumerate(corrected):
            output_items[port][:] = values
            for tag in input_tags(self, port, n):
                self.add_item_tag(port, tag.offset + self.delay_samples, tag.key, tag.value)
        return n

"""GNU Radio block: samples as a recording of 16 bits holds them."""

from __future__ import annotations

import numpy as np
from numba import njit

from .runtime import Failsafe, gr, guarded


class Quantiser(Failsafe, gr.sync_block):
    """Rounds samples to steps of 1/32768 within full scale, so that a recording of 16 bits holds them exactly.

    Drivers give what a converter counted times a factor of their own: 1/32767 and a correction of the filters' gain.
    What decides live and what decides on the recording would then differ in their last bits.

    Streams: n complex in, as many out. Tags go with their samples.

    Args:
        n_ports: streams.
    """

    def __init__(self, n_ports: int) -> None:
        ports = [np.complex64] * n_ports
        gr.sync_block.__init__(self, name="semair quantiser", in_sig=ports, out_sig=ports)
        self.set_tag_propagation_policy(gr.TPP_ONE_TO_ONE)

    def warm_up(self) -> None:
        """Compile what is compiled at first use."""
        some = np.zeros(2, np.float32)
        _quantise(some, some.copy())

    @guarded
    def work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        """Round the next samples."""
        n = len(output_items[0])
        for values, out in zip(input_items, output_items, strict=True):
            _quantise(values[:n].view(np.float32), out[:n].view(np.float32))
        return n


@njit(cache=True, nogil=True)
def _quantise(values, out):
    for i in range(out.size):
        step = np.rint(values[i] * np.float32(32768))
        out[i] = min(max(step, np.float32(-32768)), np.float32(32767)) * np.float32(1 / 32768)

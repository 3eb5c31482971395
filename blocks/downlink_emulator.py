"""GNU Radio block: the air between a base station's antennas and users that listen."""

from __future__ import annotations

import numpy as np

from .runtime import FRAME, OVER, Failsafe, gr, guarded, input_tags, pmt, stack_ports, time_tags
from .waveforms.downlink import Downlink


class DownlinkEmulator(Failsafe, gr.sync_block):
    """Multi-antenna downlink with a channel and a clock of its own for every user.

    Streams: one complex in per antenna of the base station, one complex out per user. Tags read: `frame` (the number,
    on port 0). Tags written: `rx_time`, `rx_rate`, `rx_freq` on the first item of every port; `over` (the number) where
    all of a frame has arrived, which tells emulated users that they need not wait for its beacon any longer.

    Args:
        downlink: the channels and their impairments.
        centre_frequency_hz: for the rx_freq tag.
    """

    def __init__(self, downlink: Downlink, centre_frequency_hz: float) -> None:
        gr.sync_block.__init__(
            self,
            name="semair downlink emulator",
            in_sig=[np.complex64] * downlink.n_tx,
            out_sig=[np.complex64] * downlink.n_users,
        )
        self.downlink = downlink
        self.centre_frequency_hz = centre_frequency_hz
        self._over: list[list[tuple[int, int]]] = [[] for _ in range(downlink.n_users)]
        self.set_tag_propagation_policy(gr.TPP_DONT)
        self.set_output_multiple(downlink.block_samples)

    @guarded
    def work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        """Carry whole blocks of samples over the air."""
        air = self.downlink
        n = len(output_items[0])
        first = self.nitems_read(0)
        if first == 0:
            time_tags(self, air.n_users, 0, 0, air.sample_rate_hz, self.centre_frequency_hz)
        for tag in input_tags(self, 0, n):
            if pmt.equal(tag.key, FRAME):
                index = tag.offset // air.frame_samples
                for user, places in enumerate(self._over):
                    places.append((air.over(index, user), pmt.to_long(tag.value)))
        for port, values in zip(output_items, air.process(stack_ports(input_items, n)), strict=True):
            port[:n] = values
        for user, places in enumerate(self._over):
            while places and places[0][0] < first + n:
                place, number = places.pop(0)
                self.add_item_tag(user, place, OVER, pmt.from_long(number))
        return n

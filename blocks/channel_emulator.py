"""GNU Radio block: the air between transmitting radios and a multi-antenna receiver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .heard_frames import HeardFrames
from .messages import unpack
from .runtime import Failsafe, gr, guarded, pmt, time_tags
from .waveforms.air import Air
from .waveforms.frame import FrameFormat


class ChannelEmulator(Failsafe, gr.basic_block):
    """Multi-antenna, multi-user channel with the impairments of the radios on both sides.

    Streams: one complex in (the base station's transmit chain), n_rx complex out. Message in `bursts`: the users'
    bursts, one message per frame. Tags read: `frame`; a frame's samples are not put out before its bursts are
    known. Tags written on all ports: `rx_time`, `rx_rate`, `rx_freq` on the first item and after each loss.

    Args:
        air: the channel and its impairments.
        frame_format: numerology and slots.
        centre_frequency_hz: for the rx_freq tag.
        losses: (sample, count) pairs: `count` samples vanish from index `sample` of the received stream on, as in
            an overflow of a radio.
        with_users: wait for a message of users' bursts per frame.
    """

    def __init__(
        self,
        air: Air,
        frame_format: FrameFormat,
        centre_frequency_hz: float,
        losses: Sequence[tuple[int, int]] = (),
        with_users: bool = True,
    ) -> None:
        gr.basic_block.__init__(
            self,
            name="semair channel emulator",
            in_sig=[np.complex64],
            out_sig=[np.complex64] * air.n_rx,
        )
        self.air = air
        self.frame_format = frame_format
        self.centre_frequency_hz = centre_frequency_hz
        self.losses = sorted((int(at), int(count)) for at, count in losses)
        for at, count in self.losses:
            if at < 0 or count < 1:
                raise ValueError(
                    f"loss of {count} samples at {at}: allowed are counts of 1 or more at samples of 0 or more"
                )
        self.with_users = with_users
        # May be changed while samples flow.
        self.tx_amplitude = 1.0
        self.lost_samples = 0
        self._heard = HeardFrames()
        self._untimed = True
        self.set_tag_propagation_policy(gr.TPP_DONT)
        self.set_output_multiple(air.block_samples)
        self.message_port_register_in(pmt.intern("bursts"))
        self.set_msg_handler(pmt.intern("bursts"), self.handle_bursts)

    def forecast(self, noutput_items: int, ninputs: int) -> list[int]:
        """As many samples in as out."""
        return [noutput_items] * ninputs

    @guarded
    def handle_bursts(self, message: Any) -> None:
        """Put one frame's bursts on the air."""
        fields, vector = unpack(message)
        size = fields["burst_samples"]
        offsets = fields.get("offsets") or [0] * len(fields["users"])
        for k, (user, offset) in enumerate(zip(fields["users"], offsets, strict=True)):
            burst = vector[k * size : (k + 1) * size]
            self.air.add_burst(int(user), fields["start"] + offset, burst, fields["frame"])
        self._heard.add(fields["frame"])

    @guarded
    def general_work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        """Carry whole blocks of samples over the air, as far as the bursts are known."""
        grid = self.air.block_samples
        n = min(len(input_items[0]), len(output_items[0])) // grid * grid
        if self.with_users:
            n = self._heard.known(self, n) // grid * grid
        if n == 0:
            self._heard.wait()
            return 0
        first = self.nitems_read(0)
        sent = input_items[0][:n].copy()
        if self.tx_amplitude != 1.0:
            sent *= np.float32(self.tx_amplitude)
        received = self.air.process(sent)
        self.consume(0, n)
        keep = np.ones(n, bool)
        for at, count in self.losses:
            low, high = max(at - first, 0), min(at + count - first, n)
            if low < high:
                keep[low:high] = False
        kept = received if keep.all() else received[:, keep]
        for port, values in zip(output_items, kept, strict=True):
            port[: kept.shape[1]] = values
        self._time(first, keep)
        self.lost_samples += n - kept.shape[1]
        return kept.shape[1]

    def _time(self, first: int, keep: np.ndarray) -> None:
        """Tag the first sample, and every first sample after a loss."""
        after_loss = np.flatnonzero(np.diff(keep.astype(int), prepend=0 if self._untimed else 1) == 1)
        if keep.any():
            self._untimed = not keep[-1]
        elif len(keep):
            self._untimed = True
        place = np.cumsum(keep) - 1
        for k in after_loss:
            item = self.nitems_written(0) + int(place[k])
            rate = self.frame_format.sample_rate_hz
            time_tags(self, self.air.n_rx, item, first + int(k), rate, self.centre_frequency_hz)

"""GNU Radio block: a user's estimate of the downlink's CSI."""

from __future__ import annotations

import time

import numpy as np

from .messages import fields_of, pack
from .runtime import OVER, Failsafe, gr, guarded, input_tags, pmt
from .tagged_slots import TaggedSlots
from .waveforms.beacon import beacon
from .waveforms.csi_frame import CsiFrame
from .waveforms.frame_sync import SlotCutter
from .waveforms.sounding import estimate_csi, sounding_slot


class SoundingReceiver(Failsafe, gr.sync_block):
    """Estimates CSI from the sounding slot of every frame that a user heard.

    Stream in: one complex, of the user's frame synchroniser. Tags read: `frame` (its dictionary), `rx_time`, `rx_end`;
    `over` of emulated air.

    Message out `estimates`: {frame, user, over (false), sample_time, fraction, cfo_hz, snr_db, noise_power,
    error_power, first_path_samples, estimate_s, heard_ns} with CSI in delay and angle, tap after tap, as vector. And
    {frame, user, over (true)} where a tag says that nothing of the frame will come any more. Message out `dropped`:
    {frame, sample_time, reason} of frames in whose slot samples are missing.

    Args:
        frame: slots and antennas.
        user: number of this user.
    """

    def __init__(self, frame: CsiFrame, user: int = 0) -> None:
        gr.sync_block.__init__(self, name="semair sounding receiver", in_sig=[np.complex64], out_sig=None)
        self.frame = frame
        self.user = user
        self.estimated = 0
        self.dropped = 0
        self._slots = TaggedSlots(
            SlotCutter(1, frame.sounding_start, frame.sounding_samples), frame.frame_format.sample_rate_hz
        )
        self.message_port_register_out(pmt.intern("estimates"))
        self.message_port_register_out(pmt.intern("dropped"))

    def warm_up(self) -> None:
        """Work out what the first estimate would wait for."""
        beacon(self.frame.frame_format, 0)
        estimate_csi(sounding_slot(self.frame)[0], self.frame)

    @guarded
    def work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        """Estimate from the slots that are complete."""
        n = len(input_items[0])
        slots, dropped = self._slots.take(self, input_items, 0, n)
        for start, samples, details in slots:
            begin = time.perf_counter()
            csi = estimate_csi(samples[0], self.frame, start.fraction, start.cfo_hz)
            told = fields_of(details)
            fields = {
                "frame": start.frame_number,
                "user": self.user,
                "over": False,
                "sample_time": told["sample_time"],
                "fraction": start.fraction,
                "cfo_hz": start.cfo_hz + csi.cfo_hz,
                "snr_db": csi.snr_db,
                "noise_power": csi.noise_power,
                "error_power": csi.error_power,
                "first_path_samples": csi.first_path_samples,
                "estimate_s": time.perf_counter() - begin,
                "heard_ns": told["heard_ns"],
            }
            self.message_port_pub(pmt.intern("estimates"), pack(fields, csi.delay_angle.reshape(-1)))
            self.estimated += 1
        for fields in dropped:
            self.dropped += 1
            self.message_port_pub(pmt.intern("dropped"), pack(fields))
        for tag in input_tags(self, 0, n):
            if pmt.equal(tag.key, OVER):
                fields = {"frame": pmt.to_long(tag.value), "user": self.user, "over": True}
                self.message_port_pub(pmt.intern("estimates"), pack(fields))
        return n

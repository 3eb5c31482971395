"""GNU Radio block: the transmitters of all users."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .messages import pack, unpack
from .runtime import Failsafe, gr, guarded, pmt
from .waveforms.access import access_burst
from .waveforms.frame import FrameFormat
from .waveforms.user_terminal import draw_active


class UserTransmitter(Failsafe, gr.basic_block):
    """Sends the preambles of the users that are active in each frame.

    Message in `frames`: {frame, start} of the frame transmitter, which here stands for hearing the beacon.
    Message out `bursts`, one per frame: {frame, start, length, users, burst_samples} with the active users'
    waveforms one after another as vector; `start` is the place of the access slot. Message out `truth`: the
    same without samples.

    Where the users are radios of their own, it knows what they send from the frame numbers alone, and puts out the
    truth only.

    Args:
        frame_format: numerology and slots.
        preambles: complex64, (max_preamble_length, users).
        activity: probability that a user is active in a frame.
        preamble_lengths: length sent in frame f is preamble_lengths[f % len(preamble_lengths)].
        seed: of the activity.
        quiet_frames: frames at the beginning in which nobody sends.
        with_bursts: put out the bursts, too.
    """

    def __init__(
        self,
        frame_format: FrameFormat,
        preambles: np.ndarray,
        activity: float,
        preamble_lengths: Sequence[int],
        seed: int = 0,
        quiet_frames: int = 0,
        with_bursts: bool = True,
    ) -> None:
        gr.basic_block.__init__(self, name="semair user transmitter", in_sig=None, out_sig=None)
        if not 0 <= activity <= 1:
            raise ValueError(f"activity={activity} is not a probability: allowed 0 to 1")
        if preambles.ndim != 2 or len(preambles) < max(preamble_lengths):
            raise ValueError(
                f"preambles has shape {preambles.shape}; needed: (at least {max(preamble_lengths)}, users), as "
                f"preamble_lengths goes up to {max(preamble_lengths)}"
            )
        self.frame_format = frame_format
        self.preambles = preambles
        self.activity = activity
        self.preamble_lengths = tuple(preamble_lengths)
        self.seed = seed
        self.quiet_frames = quiet_frames
        self.with_bursts = with_bursts
        self._waveforms: dict[tuple[int, int], np.ndarray] = {}
        for length in self.preamble_lengths:
            frame_format.symbols_of_length(length)
        self.message_port_register_in(pmt.intern("frames"))
        self.message_port_register_out(pmt.intern("bursts"))
        self.message_port_register_out(pmt.intern("truth"))
        self.set_msg_handler(pmt.intern("frames"), self.handle_frame)

    def waveform(self, user: int, length: int) -> np.ndarray:
        """The burst of one user; complex64, (samples,)."""
        if (user, length) not in self._waveforms:
            self._waveforms[user, length] = access_burst(self.frame_format, self.preambles[:length, user])
        return self._waveforms[user, length]

    @guarded
    def handle_frame(self, message: Any) -> None:
        """Answer one frame with the bursts of its active users."""
        fields, _ = unpack(message)
        frame = fields["frame"]
        length = self.preamble_lengths[frame % len(self.preamble_lengths)]
        users = np.empty(0, int)
        if frame >= self.quiet_frames:
            users = draw_active(self.preambles.shape[1], self.activity, self.seed, frame)
        truth = {
            "frame": frame,
            "start": fields["start"] + self.frame_format.access_start,
            "length": length,
            "users": [int(user) for user in users],
        }
        self.message_port_pub(pmt.intern("truth"), pack(truth))
        if not self.with_bursts:
            return
        samples = [self.waveform(int(user), length) for user in users]
        burst_samples = self.frame_format.symbols_of_length(length) * self.frame_format.symbol_samples
        vector = np.concatenate(samples) if samples else None
        self.message_port_pub(pmt.intern("bursts"), pack({**truth, "burst_samples": burst_samples}, vector))

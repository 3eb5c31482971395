"""The picture downlink as a GNU Radio flowgraph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..blocks.frame_synchroniser import FrameSynchroniser
from ..blocks.message_collector import MessageCollector, Receiver
from ..blocks.picture_decoder import Decoder, PictureDecoder
from ..blocks.picture_receiver import PictureReceiver
from ..blocks.picture_transmitter import PictureTransmitter, Precoder, Serve
from ..blocks.runtime import Failsafe, gr
from ..blocks.sigmf_sink import SigmfSink
from ..hardware.radio import Radio
from .random_access import first_failure
from .scenario import Scenario

_REPLAY_CHUNK_SAMPLES = 262144
# What the blocks of a receiver hold back because it does not fill their chunks, and some more.
_HELD_BACK_SAMPLES = 65536 + 2 * 16384


def picture_tail_samples(scenario: Scenario, radio: Radio) -> int:
    """Silence after the last frame that lets the air and the users finish it, in samples."""
    truth = radio.downlink().downlink.truth
    latest = max(truth.receive_index(0, user) for user in range(len(truth.start_delay_samples)))
    return math.ceil(latest) + 3 * scenario.frame.frame_samples + _HELD_BACK_SAMPLES


class SemanticDownlink(gr.top_block):
    """Base station, emulated users, radio, and the sinks of one run of the picture downlink.

    Every block is an attribute or in `nodes`: GNU Radio holds no reference of its own to Python blocks.

    Args:
        scenario: with a section `pictures`.
        radio: configured; one that cannot transmit (a recording of what users received) gets no transmitter, and its
            channels are the users.
        precoder: of the base station; None for a radio that cannot transmit.
        serve: whom each frame serves; None for a radio that cannot transmit.
        decoders: of the users, one for each; None: the signals are only recorded.
        n_frames: frames to send.
        tail_samples: silence after the last frame.
        rx_sink: records what the users receive, or None.
        tx_sink: records what the antennas send, or None.
        receivers: functions called with each message, by port: `sent`, of the transmitter's frames; of every user,
            `frames` of the synchroniser, `skipped` of the receiver, `pictures` of the decoder.
    """

    def __init__(
        self,
        scenario: Scenario,
        radio: Radio,
        precoder: Precoder | None,
        serve: Serve | None,
        decoders: Sequence[Decoder] | None,
        *,
        n_frames: int = 0,
        tail_samples: int = 0,
        rx_sink: SigmfSink | None = None,
        tx_sink: SigmfSink | None = None,
        receivers: dict[str, Receiver] | None = None,
    ) -> None:
        gr.top_block.__init__(self, "semair picture downlink")
        self.radio = radio
        self.nodes: list[Any] = []
        self._receivers = receivers or {}
        if radio.capabilities.n_tx:
            assert precoder is not None and serve is not None
            self._add_transmitter(scenario, precoder, serve, n_frames, tail_samples, tx_sink)
        else:
            self.air = radio.source()
            self.nodes.append(self.air)
        self.synchronisers: list[FrameSynchroniser] = []
        self.picture_receivers: list[PictureReceiver] = []
        self.picture_decoders: list[PictureDecoder] = []
        if decoders is not None:
            for user in range(scenario.n_users):
                self._add_user(scenario, user, decoders[user])
        if rx_sink is not None:
            self.nodes.append(rx_sink)
            for user in range(scenario.n_users):
                self.connect((self.air, user), (rx_sink, user))

    def _add_transmitter(
        self,
        scenario: Scenario,
        precoder: Precoder,
        serve: Serve,
        n_frames: int,
        tail_samples: int,
        tx_sink: SigmfSink | None,
    ) -> None:
        frame, wanted = scenario.picture_frame, scenario.pictures
        assert wanted is not None
        self.transmitter = PictureTransmitter(
            frame,
            precoder,
            serve,
            (wanted.side, wanted.side),
            wanted.snr_db,
            n_frames,
            scenario.picture_beacon_amplitude,
            tail_samples,
        )
        self.air = self.radio.downlink()
        self.nodes += [self.transmitter, self.air]
        for port in range(frame.n_antennas):
            self.connect((self.transmitter, port), (self.air, port))
        if tx_sink is not None:
            self.nodes.append(tx_sink)
            for port in range(frame.n_antennas):
                self.connect((self.transmitter, port), (tx_sink, port))
        self._collect(self.transmitter, "frames", "sent")

    def _add_user(self, scenario: Scenario, user: int, decoder: Decoder) -> None:
        frame, wanted = scenario.picture_frame, scenario.pictures
        assert wanted is not None
        synchroniser = FrameSynchroniser(
            scenario.frame,
            1,
            scenario.max_cfo_hz,
            scenario.sync.false_alarms_per_sample,
            # Nobody waits for a recording: large pieces make its replay fast, and change no decision.
            None if self.radio.capabilities.n_tx else _REPLAY_CHUNK_SAMPLES,
        )
        receiver = PictureReceiver(frame, user)
        decoding = PictureDecoder(frame, decoder, (wanted.side, wanted.side))
        self.nodes += [synchroniser, receiver, decoding]
        self.synchronisers.append(synchroniser)
        self.picture_receivers.append(receiver)
        self.picture_decoders.append(decoding)
        self.connect((self.air, user), synchroniser, receiver, decoding)
        self._collect(synchroniser, "frames", "frames")
        self._collect(receiver, "skipped", "skipped")
        self._collect(decoding, "pictures", "pictures")

    def _collect(self, node: Any, port: str, name: str) -> None:
        if name in self._receivers:
            collector = MessageCollector(self._receivers[name])
            self.nodes.append(collector)
            self.msg_connect((node, port), (collector, "in"))

    def warm_up(self) -> None:
        """Load networks and compile what is compiled at first use, one block after another."""
        for node in self.nodes:
            if isinstance(node, Failsafe):
                node.warm_up()

    def failure(self) -> BaseException | None:
        """The first error that a block met, or None."""
        return first_failure(self.nodes)

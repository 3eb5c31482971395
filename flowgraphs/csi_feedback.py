"""CSI feedback as a GNU Radio flowgraph."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Protocol

from ..blocks.csi_decoder import CsiDecoder, Decoder
from ..blocks.feedback_receiver import FeedbackReceiver
from ..blocks.feedback_transmitter import Encoder, FeedbackTransmitter
from ..blocks.frame_synchroniser import FrameSynchroniser
from ..blocks.message_collector import MessageCollector, Receiver
from ..blocks.runtime import Failsafe, gr
from ..blocks.sigmf_sink import SigmfSink
from ..blocks.sounding_receiver import SoundingReceiver
from ..blocks.sounding_transmitter import SoundingTransmitter
from ..hardware.radio import Radio
from .random_access import first_failure
from .scenario import Scenario

_REPLAY_CHUNK_SAMPLES = 262144
# A user answers within its frame: it may not wait for more samples than that.
_USER_CHUNK_SAMPLES = 4096
# Between the base station's transmitter and its emulated receiver the stream waits for the users' answers, which take
# a frame, the chunks on their way, and the delay of their synchronisation.
_WAITING_FRAMES = 4
_WAITING_SAMPLES = 1 << 18


def waiting_samples(scenario: Scenario) -> int:
    """Samples that the transmitter's outputs hold while the emulated receiver waits for the users' answers."""
    return _WAITING_FRAMES * scenario.frame.frame_samples + _WAITING_SAMPLES


class Codec(Encoder, Decoder, Protocol):
    """Both ends of a code."""


class CsiFeedback(gr.top_block):
    """Base station, emulated users, radio, and the sinks of one run of CSI feedback.

    Every block is an attribute or in `nodes`: GNU Radio holds no reference of its own to Python blocks.

    Args:
        scenario: with a section `csi`.
        radio: configured; one that cannot transmit (a recording) gets no transmitters and no users.
        encoder: of the users.
        decoder: of the base station; None: no receiver, the signals are only recorded.
        n_frames: frames to send.
        tail_samples: silence after the last frame.
        rx_sink: records the antenna streams, or None.
        tx_sink: records what the first antenna sends, or None.
        users_sink: records what the users receive, or None.
        receivers: functions called with each message, by port: `frames`, `truth`, `sent`, `decisions`, `dropped`.
        answering: users that answer in a frame, by its number; None: all.
    """

    def __init__(
        self,
        scenario: Scenario,
        radio: Radio,
        encoder: Encoder | None,
        decoder: Decoder | None,
        *,
        n_frames: int = 0,
        tail_samples: int = 0,
        rx_sink: SigmfSink | None = None,
        tx_sink: SigmfSink | None = None,
        users_sink: SigmfSink | None = None,
        receivers: dict[str, Receiver] | None = None,
        answering: Callable[[int], Collection[int]] | None = None,
    ) -> None:
        gr.top_block.__init__(self, "semair CSI feedback")
        self.radio = radio
        self._answering = answering
        self.source = radio.source()
        self.nodes: list[Any] = [self.source]
        n_antennas = scenario.radio.n_antennas
        if decoder is not None:
            self._add_receiver(scenario, decoder)
        if radio.capabilities.n_tx:
            assert encoder is not None
            self._add_transmitter(scenario, n_frames, tail_samples, tx_sink)
            self._add_users(scenario, encoder, users_sink)
        if rx_sink is not None:
            self.nodes.append(rx_sink)
            for port in range(n_antennas):
                self.connect((self.source, port), (rx_sink, port))
            if decoder is not None:
                self.msg_connect((self.synchroniser, "frames"), (rx_sink, "frames"))
        self._collect(receivers or {})

    def _add_receiver(self, scenario: Scenario, decoder: Decoder) -> None:
        n_antennas = scenario.radio.n_antennas
        # Nobody waits for a recording: large pieces make its replay fast, and change no decision.
        chunk_samples = None if self.radio.capabilities.n_tx else _REPLAY_CHUNK_SAMPLES // max(n_antennas // 4, 1)
        self.synchroniser = FrameSynchroniser(
            scenario.frame, n_antennas, scenario.max_cfo_hz, scenario.sync.false_alarms_per_sample, chunk_samples
        )
        # Recordings of converters hold whole numbers of their steps.
        full_scale = 1.0 if self.radio.capabilities.datatype == "ci16_le" else None
        self.feedback_receiver = FeedbackReceiver(scenario.csi_frame, full_scale)
        assert scenario.csi is not None
        self.decoder = CsiDecoder(scenario.csi_frame, decoder, scenario.csi.snr_db)
        self.nodes += [self.synchroniser, self.feedback_receiver, self.decoder]
        for port in range(n_antennas):
            self.connect((self.source, port), (self.synchroniser, port))
            self.connect((self.synchroniser, port), (self.feedback_receiver, port))
        self.connect(self.feedback_receiver, self.decoder)

    def _add_transmitter(self, scenario: Scenario, n_frames: int, tail_samples: int, tx_sink: SigmfSink | None) -> None:
        from gnuradio import blocks

        frame = scenario.csi_frame
        self.transmitter = SoundingTransmitter(frame, n_frames, tail_samples=tail_samples)
        # GNU Radio writes a line about the buffer to standard output, where commands write JSON.
        self.transmitter.set_log_level("warn")
        self.transmitter.set_min_output_buffer(0, waiting_samples(scenario))
        self.downlink = self.radio.downlink()
        # What the base station hears of itself has the scale of what it hears of the users.
        self.scale = blocks.multiply_const_cc(scenario.beacon_amplitude)
        sink = self.radio.sink()
        self.nodes += [self.transmitter, self.downlink, self.scale, sink]
        for port in range(frame.n_antennas):
            self.connect((self.transmitter, port), (self.downlink, port))
        self.connect((self.transmitter, 0), self.scale, (sink, 0))
        if tx_sink is not None:
            self.nodes.append(tx_sink)
            self.connect((self.transmitter, 0), tx_sink)

    def _add_users(self, scenario: Scenario, encoder: Encoder, users_sink: SigmfSink | None) -> None:
        wanted = scenario.csi
        assert wanted is not None
        frame = scenario.csi_frame
        self.feedback_transmitter = FeedbackTransmitter(frame, encoder, wanted.snr_db, self._answering)
        self.nodes.append(self.feedback_transmitter)
        for user in range(wanted.n_users):
            synchroniser = FrameSynchroniser(
                scenario.frame,
                1,
                scenario.max_cfo_hz,
                scenario.sync.false_alarms_per_sample,
                _USER_CHUNK_SAMPLES,
            )
            receiver = SoundingReceiver(frame, user)
            self.nodes += [synchroniser, receiver]
            self.connect((self.downlink, user), synchroniser, receiver)
            self.msg_connect((receiver, "estimates"), (self.feedback_transmitter, "estimates"))
            if users_sink is not None:
                self.connect((self.downlink, user), (users_sink, user))
        if users_sink is not None:
            self.nodes.append(users_sink)
        self.msg_connect((self.transmitter, "frames"), (self.feedback_transmitter, "frames"))
        self.msg_connect((self.feedback_transmitter, "bursts"), (self.radio.sink(), "bursts"))

    def _collect(self, receivers: dict[str, Receiver]) -> None:
        nodes = {
            "frames": "synchroniser",
            "dropped": "feedback_receiver",
            "decisions": "decoder",
            "truth": "feedback_transmitter",
            "sent": "feedback_transmitter",
        }
        for port, receiver in receivers.items():
            node = getattr(self, nodes[port], None)
            if node is not None:
                collector = MessageCollector(receiver)
                self.nodes.append(collector)
                self.msg_connect((node, port), (collector, "in"))

    def warm_up(self) -> None:
        """Load networks and compile what is compiled at first use, so that the time of a run is that of its work."""
        for node in self.nodes:
            if isinstance(node, Failsafe):
                node.warm_up()

    def failure(self) -> BaseException | None:
        """The first error that a block met, or None."""
        return first_failure(self.nodes)

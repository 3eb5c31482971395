"""The random-access link as a GNU Radio flowgraph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..blocks.access_slot_receiver import AccessSlotReceiver
from ..blocks.activity_detector import ActivityDetector
from ..blocks.chain_corrector import ChainCorrector
from ..blocks.frame_synchroniser import FrameSynchroniser
from ..blocks.frame_transmitter import FrameTransmitter
from ..blocks.message_collector import MessageCollector, Receiver
from ..blocks.quantiser import Quantiser
from ..blocks.runtime import Failsafe, gr
from ..blocks.sigmf_sink import SigmfSink
from ..blocks.user_transmitter import UserTransmitter
from ..blocks.waveforms.calibration import ChainError
from ..hardware.radio import Radio, Truth
from ..hardware.watch import StallWatch
from ..models.uad.detectors.base import Detector
from .scenario import Scenario

_REPLAY_CHUNK_SAMPLES = 262144
# The largest chunk that the frame synchroniser takes by itself.
_LIVE_CHUNK_SAMPLES = 65536
_LEAD_S = 0.5
# What a radio, its driver and GNU Radio may hold between the transmitter and the air.
_HELD_SAMPLES = 1 << 19


class RandomAccess(gr.top_block):
    """Transmitters, radio, receiver, and the sinks of one random-access run.

    Every block is an attribute or in `nodes`: GNU Radio holds no reference of its own to Python blocks.

    Args:
        scenario: numerology, users, synchronisation.
        radio: configured; one that cannot transmit (a recording) gets no transmitters.
        detector: decides on activity; None: no receiver, the signals are only recorded.
        n_frames: frames to send.
        tail_samples: silence after the last frame.
        rx_sink: records the antenna streams, or None.
        tx_sink: records the transmitted stream, or None.
        receivers: functions called with each message, by port: `frames`, `truth`, `decisions`, `dropped`.
        errors: of the receive chains, taken out before the receiver; recordings keep them. Empty: none.
    """

    def __init__(
        self,
        scenario: Scenario,
        radio: Radio,
        detector: Detector | None,
        *,
        n_frames: int = 0,
        tail_samples: int = 0,
        rx_sink: SigmfSink | None = None,
        tx_sink: SigmfSink | None = None,
        receivers: dict[str, Receiver] | None = None,
        errors: Sequence[ChainError] = (),
    ) -> None:
        gr.top_block.__init__(self, "semair random access")
        self.radio = radio
        self.source = radio.source()
        self.nodes: list[Any] = [self.source]
        can = radio.capabilities
        self.samples = self.source
        if can.datatype == "ci16_le" and can.n_tx and not can.emulates_users:
            # The receiver decides on what the recording holds.
            self.samples = Quantiser(scenario.radio.n_antennas)
            self.nodes.append(self.samples)
            for port in range(scenario.radio.n_antennas):
                self.connect((self.source, port), (self.samples, port))
        if detector is not None:
            self._add_receiver(scenario, detector, errors)
        if radio.capabilities.n_tx:
            self._add_transmitters(scenario, n_frames, tail_samples, tx_sink)
        if rx_sink is not None:
            self.nodes.append(rx_sink)
            for port in range(scenario.radio.n_antennas):
                self.connect((self.samples, port), (rx_sink, port))
            if detector is not None:
                self.msg_connect((self.synchroniser, "frames"), (rx_sink, "frames"))
        self._collect(receivers or {})
        # A source that is made of several blocks does not tell how far it is.
        heard = self.source if hasattr(self.source, "nitems_written") else rx_sink or self.synchroniser
        count = heard.nitems_written if heard is self.source else heard.nitems_read
        self._received = lambda: int(count(0))
        self._all_sent: int | None = None
        self._watch = StallWatch(radio, self._received)

    def _add_receiver(self, scenario: Scenario, detector: Detector, errors: Sequence[ChainError]) -> None:
        fmt, users = scenario.frame, scenario.users
        n_antennas = scenario.radio.n_antennas
        # Nobody waits for a recording: large pieces make its replay fast, and change no decision.
        chunk_samples = None if self.radio.capabilities.n_tx else _REPLAY_CHUNK_SAMPLES
        self.synchroniser = FrameSynchroniser(
            fmt, n_antennas, scenario.max_cfo_hz, scenario.sync.false_alarms_per_sample, chunk_samples
        )
        self.slot_receiver = AccessSlotReceiver(fmt, n_antennas, users.preamble_lengths)
        self.activity_detector = ActivityDetector(
            detector, fmt.max_preamble_length, scenario.n_snapshots, users.preamble_lengths
        )
        self.nodes += [self.synchroniser, self.slot_receiver, self.activity_detector]
        corrected = self.samples
        if errors:
            corrected = ChainCorrector(n_antennas, errors)
            self.nodes.append(corrected)
        for port in range(n_antennas):
            if errors:
                self.connect((self.samples, port), (corrected, port))
            self.connect((corrected, port), (self.synchroniser, port))
            self.connect((self.synchroniser, port), (self.slot_receiver, port))
        self.connect(self.slot_receiver, self.activity_detector)

    def _add_transmitters(
        self, scenario: Scenario, n_frames: int, tail_samples: int, tx_sink: SigmfSink | None
    ) -> None:
        users, can = scenario.users, self.radio.capabilities
        emulated = can.emulates_users
        rate = scenario.frame.sample_rate_hz
        # A radio of its own begins to receive and to transmit when it likes.
        self.frame_transmitter = FrameTransmitter(
            scenario.frame,
            n_frames,
            scenario.beacon_amplitude if emulated else 10 ** (scenario.radio.tx_level_dbfs / 20),
            tail_samples,
            0 if emulated else round(_LEAD_S * rate),
        )
        self.user_transmitter = UserTransmitter(
            scenario.frame,
            scenario.preambles(),
            users.activity,
            users.preamble_lengths,
            scenario.seed,
            scenario.quiet_frames,
            with_bursts=emulated,
        )
        self._tail_samples = tail_samples + _HELD_SAMPLES
        sink = self.radio.sink()
        self.nodes += [sink, self.frame_transmitter, self.user_transmitter]
        self.connect(self.frame_transmitter, (sink, 0))
        self.nodes += connect_silence(self, sink, range(1, can.n_tx))
        self.msg_connect((self.frame_transmitter, "frames"), (self.user_transmitter, "frames"))
        if emulated:
            self.msg_connect((self.user_transmitter, "bursts"), (sink, "bursts"))
        if tx_sink is not None:
            self.nodes.append(tx_sink)
            self.connect(self.frame_transmitter, tx_sink)

    def _collect(self, receivers: dict[str, Receiver]) -> None:
        nodes = {
            "frames": "synchroniser",
            "dropped": "slot_receiver",
            "decisions": "activity_detector",
            "truth": "user_transmitter",
        }
        for port, receiver in receivers.items():
            node = getattr(self, nodes[port], None)
            if node is not None:
                collector = MessageCollector(receiver)
                self.nodes.append(collector)
                self.msg_connect((node, port), (collector, "in"))

    def warm_up(self) -> None:
        """Compile what is compiled at first use, so that the time of a run is the time of its work."""
        for node in self.nodes:
            if isinstance(node, Failsafe):
                node.warm_up()

    def is_over(self, answered: int) -> bool:
        """Whether a radio whose stream never ends has given all that there is to receive.

        Args:
            answered: frames decided or dropped so far.
        """
        can = self.radio.capabilities
        if can.emulates_users or not can.n_tx or not self.frame_transmitter.ended:
            return False
        if self._all_sent is None:
            self._all_sent = self._received()
        return answered >= self.frame_transmitter.n_frames or self._received() - self._all_sent > self._tail_samples

    def failure(self) -> BaseException | None:
        """The first error that a block met, or None."""
        return first_failure(self.nodes) or self._watch.failure()


def tail_samples(scenario: Scenario, truth: Truth | None = None) -> int:
    """Silence after the last frame that lets channel and receiver finish it, in samples.

    Args:
        scenario: numerology.
        truth: of a simulated radio, whose delay is added; None for a replay.
    """
    # What the blocks of the receiver hold back because it does not fill their chunks, and some more.
    held_back = (_REPLAY_CHUNK_SAMPLES if truth is None else _LIVE_CHUNK_SAMPLES) + 2 * 16384
    delay_samples = 0 if truth is None else int(truth.receive_index(0)) + 1
    return delay_samples + 3 * scenario.frame.frame_samples + held_back


def connect_silence(top_block: Any, sink: Any, ports: Sequence[int]) -> list[Any]:
    """Give silence to transmit chains that have nothing to send; returns the blocks that do."""
    from gnuradio import blocks

    silent = []
    for port in ports:
        silent.append(blocks.null_source(gr.sizeof_gr_complex))
        top_block.connect(silent[-1], (sink, port))
    return silent


def first_failure(nodes: Sequence[Any]) -> BaseException | None:
    """The first error that one of the blocks met, or None."""
    for node in nodes:
        if isinstance(node, Failsafe) and node.failure is not None:
            return node.failure
    return None

"""Flowgraphs that are fed from memory: the receiver, and GNU Radio's own synchronisers beside it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gnuradio import blocks, digital

from ...blocks.access_slot_receiver import AccessSlotReceiver
from ...blocks.activity_detector import ActivityDetector
from ...blocks.frame_synchroniser import FrameSynchroniser
from ...blocks.message_collector import MessageCollector
from ...blocks.runtime import gr
from ...blocks.waveforms.beacon import sync_sequence
from ...models.uad.detectors import Detector
from ..execute import execute
from ..random_access import first_failure
from ..scenario import Scenario

_WARM_UP_S = 1.0


@dataclass(frozen=True)
class Rates:
    """How fast a flowgraph took samples, over all antennas.

    Attributes:
        per_interval: float64, samples per second in consecutive stretches of equal length.
        samples: taken in all, per antenna.
        seconds: of the stretches together.
    """

    per_interval: np.ndarray
    samples: int
    seconds: float


class FromMemory(gr.top_block):
    """Antenna streams that repeat without end, and what takes them.

    Args:
        samples: complex64, (antennas, n).
    """

    def __init__(self, samples: np.ndarray) -> None:
        gr.top_block.__init__(self, "semair from memory")
        self.sources = [blocks.vector_source_c(row.tolist(), True) for row in samples]
        self.nodes: list[Any] = []
        self.counted: list[Any] = []

    def taken(self) -> int:
        """Samples taken so far, over all antennas."""
        raise NotImplementedError


class SynchroniserFromMemory(FromMemory):
    """The frame synchroniser alone."""

    def __init__(self, samples: np.ndarray, scenario: Scenario) -> None:
        super().__init__(samples)
        self.synchroniser = FrameSynchroniser(
            scenario.frame, len(samples), scenario.max_cfo_hz, scenario.sync.false_alarms_per_sample
        )
        self.nodes.append(self.synchroniser)
        self.sinks = [blocks.null_sink(gr.sizeof_gr_complex) for _ in samples]
        for port, source in enumerate(self.sources):
            self.connect(source, (self.synchroniser, port), self.sinks[port])

    def taken(self) -> int:
        """Samples taken so far, over all antennas."""
        return len(self.sources) * int(self.synchroniser.nitems_read(0))


class ReceiverFromMemory(FromMemory):
    """The whole receiver: synchroniser, access slot receiver, detector.

    Attributes:
        decisions: (sample_time, frame) of every decision.
    """

    def __init__(self, samples: np.ndarray, scenario: Scenario, detector: Detector) -> None:
        super().__init__(samples)
        fmt, lengths = scenario.frame, scenario.users.preamble_lengths
        self.decisions: list[tuple[int, int]] = []
        self.synchroniser = FrameSynchroniser(
            fmt, len(samples), scenario.max_cfo_hz, scenario.sync.false_alarms_per_sample
        )
        self.slot_receiver = AccessSlotReceiver(fmt, len(samples), lengths)
        self.detector = ActivityDetector(detector, fmt.max_preamble_length, scenario.n_snapshots, lengths)
        self.collector = MessageCollector(self._note)
        self.nodes += [self.synchroniser, self.slot_receiver, self.detector, self.collector]
        for port, source in enumerate(self.sources):
            self.connect(source, (self.synchroniser, port))
            self.connect((self.synchroniser, port), (self.slot_receiver, port))
        self.connect(self.slot_receiver, self.detector)
        self.msg_connect((self.detector, "decisions"), (self.collector, "in"))

    def _note(self, fields: dict[str, Any], _: np.ndarray) -> None:
        self.decisions.append((fields["sample_time"], fields["frame"]))

    def taken(self) -> int:
        """Samples taken so far, over all antennas."""
        return len(self.sources) * int(self.synchroniser.nitems_read(0))


class PeerFromMemory(FromMemory):
    """One instance per antenna of a synchroniser of GNU Radio, all running at once.

    Args:
        samples: complex64, (antennas, n).
        scenario: whose numerology and synchronisation sequence they look for.
        kind: `ofdm_sync_sc_cfb` or `corr_est_cc`.
    """

    def __init__(self, samples: np.ndarray, scenario: Scenario, kind: str) -> None:
        super().__init__(samples)
        fmt = scenario.frame
        for source in self.sources:
            if kind == "ofdm_sync_sc_cfb":
                peer = digital.ofdm_sync_sc_cfb(fmt.n_fft, fmt.cp_samples)
                sizes = (gr.sizeof_float, gr.sizeof_char)
            elif kind == "corr_est_cc":
                peer = digital.corr_est_cc(sync_sequence(fmt).tolist(), 1, 0)
                sizes = (gr.sizeof_gr_complex, gr.sizeof_gr_complex)
            else:
                raise ValueError(f"kind={kind!r}: allowed are ofdm_sync_sc_cfb and corr_est_cc")
            sinks = [blocks.null_sink(size) for size in sizes]
            self.connect(source, peer)
            for port, sink in enumerate(sinks):
                self.connect((peer, port), sink)
            self.nodes += [peer, *sinks]
            self.counted.append(sinks[0])

    def taken(self) -> int:
        """Samples taken so far, over all antennas."""
        return sum(int(sink.nitems_read(0)) for sink in self.counted)


def measure_rate(
    flowgraph: FromMemory, seconds: float, on_share: Callable[[float], None], n_intervals: int = 10
) -> Rates:
    """Run a flowgraph for a while and see how fast it takes samples, after a second of warm-up."""
    seen: list[tuple[float, int]] = []

    def look() -> None:
        seen.append((time.monotonic(), flowgraph.taken()))
        on_share(min((seen[-1][0] - seen[0][0]) / (seconds + _WARM_UP_S), 1.0))

    def enough() -> bool:
        return bool(seen) and seen[-1][0] - seen[0][0] >= seconds + _WARM_UP_S

    if execute(flowgraph, lambda: first_failure(flowgraph.nodes), look, enough):
        raise KeyboardInterrupt
    # The last look comes after the flowgraph was stopped.
    times, counts = np.array(seen[:-1]).T
    edges = np.linspace(times[0] + _WARM_UP_S, times[-1], n_intervals + 1)
    at = np.interp(edges, times, counts)
    return Rates(np.diff(at) / np.diff(edges), seen[-1][1] // len(flowgraph.sources), edges[-1] - edges[0])

"""Listening to a radio for a moment, to learn whether it runs as it should. Nothing is transmitted.

`python -m semair.hardware.trial JSON` does so in a process of its own, for drivers that may abort or hang.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..blocks.runtime import RX_TIME, Failsafe, gr, guarded, input_tags, pmt, time_ticks
from ..blocks.waveforms.frame import FrameFormat
from ..blocks.waveforms.impairments import Impairments
from ..errors import RadioError, SemairError
from ..models.channels import ChannelConfig
from .discover import backend
from .radio import Link, Radio, Settings

MARK = "TRIAL "
_START_S = 10.0
_SHARE = 0.98
_BUFFER_S = 0.02


@dataclass(frozen=True)
class RateTrial:
    """How a radio ran at one sample rate.

    Attributes:
        rate_hz: asked for.
        received: samples per channel that came.
        lost: samples per channel that the times of the stream lack.
        seconds: between the first samples and the last.
        counts: what the radio itself counted.
        problem: why it did not run; empty where it did.
    """

    rate_hz: float
    received: int = 0
    lost: int = 0
    seconds: float = 0.0
    counts: dict[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def clean(self) -> bool:
        """Whether nothing was lost, as far as the radio tells."""
        # Some radios tell that samples were lost, but not how many.
        lost = self.lost or self.counts.get("overflows")
        return not self.problem and not lost and self.received >= _SHARE * self.rate_hz * self.seconds


def listen(kind: str, address: str, rates_hz: list[float], frequency_hz: float, n_rx: int, seconds: float) -> Any:
    """Open a radio and receive at one rate after the other, until one is too high.

    Returns:
        Plain values: `radio` (capabilities, facts, settings), `locks`, `rates` (as `RateTrial`, with `clean`), and
        `waits`.

    Raises:
        SemairError: the radio cannot be opened or set.
    """
    radio: Radio | None = None
    trials: list[RateTrial] = []
    found: dict[str, Any] = {}
    for rate_hz in rates_hz:
        if radio is None or radio.waits:
            # An emulated radio knows one rate only.
            if radio is not None:
                radio.close()
            radio = backend(kind).open(address, _link(rate_hz, n_rx))
            found["radio"] = {"capabilities": asdict(radio.capabilities), "facts": radio.facts()}
            found["waits"] = radio.waits
        try:
            settings = radio.configure(Settings(rate_hz, frequency_hz))
        except RadioError as error:
            trials.append(RateTrial(rate_hz, problem=str(error)))
            continue
        found["radio"] |= {"settings": settings.as_dict(), "facts": radio.facts()}
        found["locks"] = radio.locks()
        trials.append(_receive(radio, rate_hz, seconds))
        if not trials[-1].clean:
            break
    assert radio is not None
    radio.close()
    return {**found, "rates": [{**asdict(trial), "clean": trial.clean} for trial in trials]}


class _Counter(Failsafe, gr.sync_block):
    """Counts samples, and what the times say is missing."""

    def __init__(self, n_ports: int, rate_hz: float) -> None:
        gr.sync_block.__init__(self, "counter", [np.complex64] * n_ports, None)
        self.received = self.lost = 0
        self.begin = self.end = 0.0
        self._before = 0
        self._rate_hz = rate_hz
        self._clock: tuple[int, int] | None = None

    @guarded
    def work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        n = len(input_items[0])
        for tag in input_tags(self, 0, n):
            if pmt.equal(tag.key, RX_TIME):
                ticks = time_ticks(tag.value, self._rate_hz)
                if self._clock is not None:
                    self.lost += max(ticks - self._clock[1] - (tag.offset - self._clock[0]), 0)
                self._clock = tag.offset, ticks
        self.end = time.monotonic()
        if not self.begin:
            # What comes first waited in buffers.
            self.begin, self._before = self.end, n
        self.received = self.nitems_read(0) + n - self._before
        return n


def _receive(radio: Radio, rate_hz: float, seconds: float) -> RateTrial:
    can, top, source = radio.capabilities, gr.top_block("semair trial"), radio.source()
    counter = _Counter(can.n_rx, rate_hz)
    nodes: list[Any] = [source, counter]
    if hasattr(source, "set_min_output_buffer"):
        source.set_log_level("warn")
        source.set_min_output_buffer(max(int(_BUFFER_S * rate_hz), 8192))
    for port in range(can.n_rx):
        top.connect((source, port), (counter, port))
    if can.n_tx and can.emulates_users and radio.sink() is source:
        from gnuradio import blocks

        silence = blocks.null_source(gr.sizeof_gr_complex)
        nodes.append(silence)
        top.connect(silence, (source, 0))
    top.start()
    started = time.monotonic()
    failure = None
    while failure is None:
        time.sleep(0.02)
        failure = next((node.failure for node in nodes if isinstance(node, Failsafe) and node.failure), None)
        now = time.monotonic()
        if (counter.begin and now - counter.begin >= seconds) or now - started > seconds + _START_S:
            break
    # A radio that vanished lets no samples come: the time until now counts, not that until the last sample.
    received, begin, end = counter.received, counter.begin, time.monotonic()
    top.stop()
    top.wait()
    problem = "" if failure is None else str(failure)
    if not begin and not problem:
        problem = f"no samples came within {_START_S:g} s"
    return RateTrial(rate_hz, received, counter.lost, end - begin if begin else 0.0, radio.counts(), problem)


def _link(rate_hz: float, n_rx: int) -> Link:
    """A link that asks nothing special of its radio."""
    wire = ChannelConfig()
    return Link(FrameFormat(sample_rate_hz=rate_hz), n_rx, 0, 0, wire, wire, Impairments(), 1e-3, 1.0)


def _main() -> None:
    given = json.loads(sys.argv[1])
    try:
        # Drivers write to standard output as they please; a line of our own is found among theirs.
        with contextlib.redirect_stdout(sys.stderr):
            result = listen(**given)
    except SemairError as error:
        result = {"problem": str(error)}
    sys.stdout.write(f"\n{MARK}{json.dumps(result)}\n")


if __name__ == "__main__":
    _main()

"""Clients of radios that show faults, each in a process of its own: their drivers let no virtual device work beside.

`python -m semair.flowgraphs.benchmarks._hardware_fault_client CLIENT JSON` answers each line of standard input with
one line of JSON, and ends with it.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ...blocks.waveforms.frame import FrameFormat
from ...blocks.waveforms.impairments import Impairments
from ...errors import SemairError
from ...hardware.discover import backend
from ...hardware.radio import Link, Radio, Settings
from ...models.channels import ChannelConfig

RATE_HZ = 1e6
FREQUENCY_HZ = 2e9
_BURST_SAMPLES, _BURST_SPACING_S, _LEAD_S = 20_000, 0.05, 0.3


def stream(given: dict[str, Any]) -> Callable[[str], dict[str, Any]]:
    """Record what a radio hears while it sends, bursts at their times where it can; answers "counts" and "stop".

    Args:
        given: `kind`, `address`, `folder` of the recording.
    """
    import pmt
    from gnuradio import blocks

    from ...blocks.runtime import gr
    from ...blocks.sigmf_sink import SigmfSink
    from ..runfolder import RX_NAME

    radio = _opened(given["kind"], given["address"])
    radio.configure(Settings(RATE_HZ, FREQUENCY_HZ))
    assert radio.capabilities.tx_gains_db is not None
    radio.set_tx_gain_db(radio.capabilities.tx_gains_db[1])

    class Bursts(gr.sync_block):
        """Bursts without an end of their sequence, each at its time."""

        def __init__(self) -> None:
            gr.sync_block.__init__(self, "bursts", None, [np.complex64])
            self.set_output_multiple(_BURST_SAMPLES)
            self.begin_s: float | None = None

        def work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
            at = self.nitems_written(0)
            if self.begin_s is None:
                self.begin_s = float(radio.time_now_s()) + _LEAD_S
            seconds, rest = divmod(self.begin_s + at // _BURST_SAMPLES * _BURST_SPACING_S, 1.0)
            time_s = pmt.make_tuple(pmt.from_uint64(int(seconds)), pmt.from_double(rest))
            output_items[0][:_BURST_SAMPLES] = 0.5
            self.add_item_tag(0, at, pmt.intern("tx_sob"), pmt.PMT_T)
            self.add_item_tag(0, at, pmt.intern("tx_time"), time_s)
            self.add_item_tag(0, at + _BURST_SAMPLES - 1, pmt.intern("tx_eob"), pmt.PMT_T)
            return _BURST_SAMPLES

    sink = SigmfSink(Path(given["folder"]), RX_NAME, 1, RATE_HZ, FREQUENCY_HZ, "ci16_le")
    sent, top = Bursts() if radio.sends_timed else blocks.vector_source_c([0.5] * 1000, True), gr.top_block()
    top.connect(sent, radio.sink())
    given["source"] = radio.source()
    top.connect(given["source"], sink)
    sink.warm_up()
    top.start()

    # GNU Radio holds no reference of its own to Python blocks.
    given["kept"] = sent, sink

    def answer(what: str) -> dict[str, Any]:
        if what == "stop":
            top.stop()
            top.wait()
            radio.close()
        writer = sink.writer
        heard = {} if writer is None else {"lost": writer.lost_samples, "recorded": writer.n_samples}
        failures = [getattr(node, "failure", None) for node in (sink, given["source"])]
        return {**radio.counts(), **heard, "failure": next((str(one) for one in failures if one is not None), "")}

    return answer


def settle(given: dict[str, Any]) -> Callable[[str], dict[str, Any]]:
    """Open a radio, set it up, or do both, as each line says: "open", "configure", "close"; tells error and time.

    Args:
        given: `kind`, `address`.
    """
    kept: list[Radio] = []
    # Loading a driver is no part of meeting its faults.
    backend(given["kind"])
    for module in {"uhd": ["gnuradio.uhd"], "iio": ["adi"]}.get(given["kind"], []):
        importlib.import_module(module)

    def answer(what: str) -> dict[str, Any]:
        begin = time.monotonic()
        error = ""
        try:
            if what == "open":
                kept.append(_opened(given["kind"], given["address"]))
            elif what == "configure":
                kept[-1].configure(Settings(RATE_HZ, FREQUENCY_HZ))
            elif kept:
                kept.pop().close()
        except SemairError as told:
            error = str(told)
        except Exception as escaped:
            error = f"not meant for users: {type(escaped).__name__}: {escaped}"
        return {"error": error, "seconds": time.monotonic() - begin}

    return answer


def _opened(kind: str, address: str) -> Radio:
    wire = ChannelConfig()
    link = Link(FrameFormat(sample_rate_hz=RATE_HZ), 1, 0, 0, wire, wire, Impairments(), 0.0, 1.0)
    return backend(kind).open(address, link)


CLIENTS = {"stream": stream, "settle": settle}


def _say(value: dict[str, Any]) -> None:
    # Drivers write to standard output as they please; a line of our own is found among theirs.
    sys.stdout.write(f"\nRESULT {json.dumps(value)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    wanted = json.loads(sys.argv[2])
    client = CLIENTS[sys.argv[1]](wanted)
    _say({"ready": True})
    for line in sys.stdin:
        _say(client(line.strip()))
    # Some drivers wait for ever when they are taken down.
    sys.stdout.flush()
    os._exit(0)

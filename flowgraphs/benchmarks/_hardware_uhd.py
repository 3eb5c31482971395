"""Flowgraphs with gr-uhd for measurements, in a process of their own: UHD can be loaded once per process only.

`python -m semair.flowgraphs.benchmarks._hardware_uhd JSON` writes one line of JSON to standard output.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np

_TICK_RATE_HZ = 100_000_000
_LEAD_SAMPLES = 2000


def timed_bursts(given: dict[str, Any]) -> dict[str, list[int]]:
    """Send timed bursts and look when they arrive, in ticks of 100 MHz.

    Args:
        given: `args` of the device, `factor` that makes the sample rate from 100 MHz, `count` of bursts, `samples` of
            each, `spacing_samples` between their beginnings, `grid_tick` by which all times are moved.

    Returns:
        `asked` and `heard`: tick of each burst's first sample.
    """
    import pmt
    from gnuradio import blocks, gr, uhd

    factor, n, spacing = given["factor"], given["samples"], given["spacing_samples"]
    top = gr.top_block()
    sink = uhd.usrp_sink(given["args"], uhd.stream_args(cpu_format="fc32", channels=[0]))
    source = uhd.usrp_source(given["args"], uhd.stream_args(cpu_format="fc32", channels=[0]))
    for device in (sink, source):
        device.set_samp_rate(_TICK_RATE_HZ / factor)
        device.set_center_freq(2e9, 0)
    sink.set_gain(31.5, 0)
    begin = source.get_time_now().to_ticks(_TICK_RATE_HZ) + _TICK_RATE_HZ // 2 + given["grid_tick"]
    asked = [begin + (_LEAD_SAMPLES + spacing * i) * factor for i in range(given["count"])]
    tags = []
    for i, tick in enumerate(asked):
        whole, part = divmod(tick, _TICK_RATE_HZ)
        at = pmt.make_tuple(pmt.from_uint64(whole), pmt.from_double(part / _TICK_RATE_HZ))
        values = ((i * n, "tx_sob", pmt.PMT_T), (i * n, "tx_time", at), ((i + 1) * n - 1, "tx_eob", pmt.PMT_T))
        tags += [
            gr.tag_utils.python_to_tag((position, pmt.intern(key), value, pmt.PMT_F)) for position, key, value in values
        ]
    sender = blocks.vector_source_c([0.5] * (n * given["count"]), False, 1, tags)
    heard = blocks.vector_sink_c()
    source.set_start_time(uhd.time_spec.from_ticks(begin, _TICK_RATE_HZ))
    top.connect(sender, sink)
    top.connect(source, heard)
    wanted = 2 * _LEAD_SAMPLES + spacing * given["count"]
    deadline = time.monotonic() + 10 + wanted * factor / _TICK_RATE_HZ
    top.start()
    while heard.nitems_read(0) < wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    top.stop()
    top.wait()
    level = np.abs(np.array(heard.data()[:wanted]))
    found = []
    for tag in heard.tags():
        if pmt.symbol_to_string(tag.key) == "rx_time":
            whole, part = pmt.to_uint64(pmt.tuple_ref(tag.value, 0)), pmt.to_double(pmt.tuple_ref(tag.value, 1))
            found.append((tag.offset, whole * _TICK_RATE_HZ + round(part * _TICK_RATE_HZ)))
    rises = np.flatnonzero((level[1:] > 0.25) & (level[:-1] <= 0.25)) + 1
    ticks = []
    for k in rises.tolist():
        offset, tick = [entry for entry in found if entry[0] <= k][-1]
        ticks.append(tick + (k - offset) * factor)
    return {"asked": asked, "heard": ticks}


if __name__ == "__main__":
    sys.stdout.write(f"RESULT {json.dumps(timed_bursts(json.loads(sys.argv[1])))}\n")

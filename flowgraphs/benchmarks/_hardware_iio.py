"""Clients of IIO radios for measurements, each in a process of its own, since their libraries do not end well.

`python -m semair.flowgraphs.benchmarks._hardware_iio WHAT JSON` writes lines to standard output; the last is JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import numpy as np


def say(line: str) -> None:
    """One line for the parent, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def duplex(given: dict[str, Any]) -> dict[str, float]:
    """Send a tone and receive through gr-iio; say "streaming" when both run, "enough" after `duration_s`.

    Args:
        given: `uri`, `rate_hz`, `duration_s`, `buffer_size`.

    Returns:
        Rates `rx_hz` and `tx_hz` between the two lines; `level` of what was received last, of 0.5 sent.
    """
    from gnuradio import analog, blocks, gr, iio

    rate, size = given["rate_hz"], given["buffer_size"]
    graph = gr.top_block()
    sink = iio.fmcomms2_sink_fc32(given["uri"], [True, True], size, False)
    source = iio.fmcomms2_source_fc32(given["uri"], [True, True], size)
    for block in (sink, source):
        block.set_len_tag_key("")
        block.set_frequency(1_000_000_000)
        block.set_samplerate(int(rate))
        block.set_filter_params("Auto", "", 0, 0)
    sink.set_attenuation(0, 0.0)
    source.set_gain_mode(0, "manual")
    source.set_gain(0, 0.0)
    tone = analog.sig_source_c(rate, analog.GR_COS_WAVE, rate / 16, 0.5)
    probe = blocks.probe_signal_c()
    graph.connect(tone, sink)
    graph.connect(source, probe)
    graph.start()
    while not (source.nitems_written(0) > rate / 2 and sink.nitems_read(0) > rate / 2):
        time.sleep(0.01)
    say("streaming")
    at, before = time.monotonic(), (source.nitems_written(0), sink.nitems_read(0))
    time.sleep(given["duration_s"])
    passed, after = time.monotonic() - at, (source.nitems_written(0), sink.nitems_read(0))
    say("enough")
    level = abs(probe.level())
    graph.stop()
    graph.wait()
    # gr-iio 3.10.5 waits for ever when it destroys a source (gnuradio/gnuradio#6776).
    given["kept"] = graph, source, sink
    return {"rx_hz": (after[0] - before[0]) / passed, "tx_hz": (after[1] - before[1]) / passed, "level": level}


def pyadi(given: dict[str, Any]) -> dict[str, float]:
    """Send a cyclic tone and receive it through a class of pyadi-iio.

    Args:
        given: `uri`, `kind`, the class.

    Returns:
        `level` of each chain that is received, of 0.5 sent.
    """
    import adi

    radio = getattr(adi, given["kind"])(given["uri"])
    try:
        radio.sample_rate = 1_000_000
        radio.rx_lo = radio.tx_lo = 1_000_000_000
        n_chains = len(radio.rx_enabled_channels)
        for k in range(n_chains):
            setattr(radio, f"gain_control_mode_chan{k}", "manual")
            setattr(radio, f"rx_hardwaregain_chan{k}", 0)
            setattr(radio, f"tx_hardwaregain_chan{k}", 0)
        radio.tx_cyclic_buffer = True
        tone = 2.0**14 * np.exp(2j * np.pi * 0.1 * np.arange(1000))
        silence = np.zeros(1000, dtype=complex)
        radio.tx(tone if n_chains == 1 else [tone, silence])
        for _ in range(6):
            heard = radio.rx()
        return {"level": float(np.abs(np.atleast_2d(heard)).mean() / 2048)}
    finally:
        radio.rx_destroy_buffer()
        radio.tx_destroy_buffer()
        del radio


if __name__ == "__main__":
    wanted = json.loads(sys.argv[2])
    say(json.dumps({"duplex": duplex, "pyadi": pyadi}[sys.argv[1]](wanted)))
    if "kept" in wanted:
        os._exit(0)

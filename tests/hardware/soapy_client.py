"""What an experiment does with a radio of SoapySDR, as a process of its own: `soapy_client.py STEP ADDRESS [JSON]`."""

import json
import sys
import time

import numpy as np
import pmt
from gnuradio import blocks, gr
from semair.errors import RadioError
from semair.hardware.radio import Settings
from semair.hardware.soapy import SoapyRadio


def refusal(action):
    try:
        action()
    except RadioError as error:
        return str(error)
    return "nothing was refused"


def settings(args, options):
    """Capabilities, facts, what was read back, what is refused, and a second radio after the first."""
    radio = SoapyRadio(args, 1)
    unconfigured = refusal(radio.source)
    asked = Settings(1e6, 2.4e9, rx_gain_db=(12.0,), tx_gain_db=(7.0,))
    actual = radio.configure(asked)
    refused = [
        refusal(lambda wrong=wrong: radio.configure(Settings(**{**asked.as_dict(), **wrong})))
        for wrong in (
            {"sample_rate_hz": 3.3e6},
            {"sample_rate_hz": float("nan")},
            {"frequency_hz": 9e9},
            {"rx_gain_db": (99.0,)},
            {"tx_gain_db": (1.0, 2.0)},
            {"clock_source": "gpsdo"},
            {"bandwidth_hz": 1e9},
        )
    ]
    unconfigured_again = refusal(radio.sink)
    radio.configure(Settings(1e6, 2.4e9))
    quiet = radio.set_tx_gain_db(3.0)
    too_loud = refusal(lambda: radio.set_tx_gain_db(99.0))
    found = {
        "capabilities": vars(radio.capabilities),
        "facts": radio.facts(),
        "locks": radio.locks(),
        "actual": actual.as_dict(),
        "least": radio.configure(Settings(1e6, 2.4e9)).tx_gain_db,
        "refused": refused,
        "unconfigured": [unconfigured, unconfigured_again],
        "gain": [quiet, too_loud],
        "too_many": refusal(lambda: SoapyRadio(args, 3)),
        "antenna": refusal(lambda: SoapyRadio(f"{args},rx_antenna=J9", 1)),
    }
    radio.close()
    found["closed"] = refusal(radio.source)
    again = SoapyRadio(f"{args},rx_antenna=RX2,tx_channels=0", 1)
    found["receiver"] = [again.capabilities.n_tx, again.facts()["antennas"]]
    again.configure(Settings(1e6, 2.4e9))
    found["receiver"] += [again.sink(), refusal(lambda: again.set_tx_gain_db(0.0))]
    return found


def duplex(args, options):
    """A tone that is sent, as it is heard: its frequency, its amplitude, and the tags of the stream."""
    radio = SoapyRadio(args, 1)
    radio.configure(Settings(1e6, 2e9, rx_gain_db=(0.0,), tx_gain_db=(31.5,)))
    top = gr.top_block()
    tone = 0.25 * np.exp(2j * np.pi * 50 * np.arange(1000) / 1000)
    sender, heard = blocks.vector_source_c(tone.tolist(), True), blocks.vector_sink_c()
    top.connect(sender, radio.sink())
    top.connect(radio.source(), heard)
    top.start()
    sys.stdout.write("STREAMS\n")
    sys.stdout.flush()
    deadline = time.monotonic() + 30
    while heard.nitems_read(0) < options["samples"] and time.monotonic() < deadline:
        time.sleep(0.01)
    top.stop()
    top.wait()
    x = np.array(heard.data())
    piece = x[int(0.9 * len(x)) :]
    piece = piece[: len(piece) // 1000 * 1000]
    line = np.exp(-2j * np.pi * 50 * np.arange(len(piece)) / 1000)
    tags = [(tag.offset, pmt.symbol_to_string(tag.key), pmt.to_python(tag.value)) for tag in heard.tags()]
    return {"amplitude": float(abs(np.mean(piece * line))), "power": float(np.mean(abs(piece) ** 2)), "tags": tags}


if __name__ == "__main__":
    step, args, *more = sys.argv[1:]
    done = globals()[step](args, json.loads(more[0]) if more else {})
    sys.stdout.write(f"RESULT {json.dumps(done)}\n")

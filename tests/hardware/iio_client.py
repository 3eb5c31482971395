"""Clients as their users write them, which test_virtual_pluto.py runs in processes of their own: WHAT URI..."""

from __future__ import annotations

import json
import os
import sys
import time

import numpy as np

RATE = 1_000_000
# gr-iio 3.10.5 waits for ever when it destroys a source (gnuradio/gnuradio#6776): none is, see the end.
KEPT: list = []


def tone_of(x: np.ndarray, rate: float = RATE) -> dict[str, float]:
    """Frequency, amplitude and rest of what should be one tone."""
    n = len(x)
    steps = np.angle(np.vdot(x[:-1], x[1:])) / 2 / np.pi
    # The coarse estimate leaves less than half a turn over 64 samples.
    fine = np.angle(np.vdot(x[:-64], x[64:]) * np.exp(-2j * np.pi * 64 * steps)) / 2 / np.pi / 64
    model = np.exp(2j * np.pi * (steps + fine) * np.arange(n))
    spectrum = np.fft.fft(x * model.conj() * np.hanning(n), 4 * n)
    k = int(np.argmax(np.abs(spectrum)))
    frequency = steps + fine + (k if k < 2 * n else k - 4 * n) / (4 * n)
    model = np.exp(2j * np.pi * frequency * np.arange(n))
    amplitude = abs(np.vdot(model, x)) / n
    turns = np.unwrap(np.angle(x * model.conj()))
    return {
        "frequency_hz": float(frequency * rate),
        "amplitude": float(amplitude),
        "worst_step_rad": float(np.abs(np.diff(turns)).max()),
    }


def pyadi_pluto(uri: str) -> dict:
    import adi

    sdr = adi.Pluto(uri)
    found: dict = {"rates": {}}
    try:
        for rate in (521_000, 2_084_000, 2_500_000, 20_000_000, 30_720_000, 40_000_000, 61_440_000, RATE):
            sdr.sample_rate = rate
            found["rates"][rate] = sdr.sample_rate
        sdr.rx_lo = sdr.tx_lo = 1_000_000_000
        sdr.rx_rf_bandwidth = sdr.tx_rf_bandwidth = 2_000_000
        sdr.gain_control_mode_chan0 = "manual"
        sdr.rx_hardwaregain_chan0 = 3
        sdr.tx_hardwaregain_chan0 = -9
        found["gains"] = [sdr.rx_hardwaregain_chan0, sdr.tx_hardwaregain_chan0]
        found["refused"] = 0
        for name, value in (("rx_lo", 1000), ("sample_rate", 70_000_000), ("tx_hardwaregain_chan0", 5)):
            try:
                setattr(sdr, name, value)
            except OSError as error:
                found["refused"] += error.errno == 22
        sdr.sample_rate = RATE
        sdr.rx_buffer_size = 8192
        sdr.tx_cyclic_buffer = True
        sdr.tx(2**14 * np.exp(2j * np.pi * 0.1 * np.arange(1000)))
        for _ in range(6):
            received = sdr.rx()
        found["cyclic"] = tone_of(received / 2048)
        sdr.tx_destroy_buffer()
        sdr.dds_single_tone(200_000, 0.5)
        for _ in range(6):
            received = sdr.rx()
        found["tone"] = tone_of(received / 2048)
        found["filter"] = sdr.filter
        sdr.loopback = 1
        found["loopback"] = sdr.loopback
        for _ in range(6):
            received = sdr.rx()
        found["digital"] = tone_of(received / 2048)
    finally:
        sdr.rx_destroy_buffer()
        sdr.tx_destroy_buffer()
        del sdr
    return found


def pyadi_ad9361(uri: str) -> dict:
    import adi

    sdr = adi.ad9361(uri)
    try:
        sdr.sample_rate = 2 * RATE
        sdr.rx_lo = sdr.tx_lo = 5_000_000_000
        for chain in ("chan0", "chan1"):
            setattr(sdr, f"gain_control_mode_{chain}", "manual")
            setattr(sdr, f"rx_hardwaregain_{chain}", 0)
            setattr(sdr, f"tx_hardwaregain_{chain}", 0)
        sdr.rx_enabled_channels = sdr.tx_enabled_channels = [0, 1]
        sdr.rx_buffer_size = 8000
        sdr.tx_cyclic_buffer = True
        k = np.arange(1000)
        sent = 2**14 * np.stack([np.exp(2j * np.pi * 0.05 * k), np.exp(-2j * np.pi * 0.12 * k)])
        sdr.tx(list(sent))
        for _ in range(6):
            received = np.stack(sdr.rx()) / 2048
        # What was sent repeats: one matrix of paths fits, but for a common shift in time.
        spectra = np.fft.fft(received, axis=1)[:, [400, 8000 - 960]] / 8000 * 2
        return {"paths": np.abs(spectra).tolist(), "phases": np.angle(spectra[1] / spectra[0]).tolist()}
    finally:
        sdr.rx_destroy_buffer()
        sdr.tx_destroy_buffer()
        del sdr


def gnuradio(tx_uri: str, rx_uri: str, offset_hz: str, buffer_size: str) -> dict:
    from gnuradio import analog, gr, iio

    class Keep(gr.sync_block):
        """Keeps the last samples, as many as asked for."""

        def __init__(self, n: int) -> None:
            super().__init__("keep", [np.complex64], None)
            self.last = np.zeros(n, dtype=np.complex64)

        def work(self, input_items, output_items):
            new = input_items[0][-self.last.size :]
            self.last = np.concatenate([self.last[new.size :], new])
            return len(input_items[0])

    size = int(buffer_size)
    graph = gr.top_block()
    sink = iio.fmcomms2_sink_fc32(tx_uri, [True, True], size, False)
    sink.set_len_tag_key("")
    sink.set_frequency(1_000_000_000)
    sink.set_samplerate(RATE)
    sink.set_attenuation(0, 6.0)
    sink.set_filter_params("Auto", "", 0, 0)
    source = iio.fmcomms2_source_fc32(rx_uri, [True, True], size)
    source.set_len_tag_key("")
    source.set_frequency(1_000_000_000 - int(float(offset_hz)))
    source.set_samplerate(RATE)
    source.set_gain_mode(0, "manual")
    source.set_gain(0, 6.0)
    source.set_quadrature(True)
    source.set_rfdc(True)
    source.set_bbdc(True)
    source.set_filter_params("Auto", "", 0, 0)
    kept = Keep(100_000)
    graph.connect(analog.sig_source_c(RATE, analog.GR_COS_WAVE, 50e3, 0.5), sink)
    graph.connect(source, kept)
    graph.start()
    # Not for a fixed time: until the tone has stood for as long as is kept.
    for _ in range(600):
        time.sleep(0.05)
        last = kept.last
        if (np.abs(last) > 0.4).all():
            break
    graph.stop()
    graph.wait()
    KEPT.append((graph, source, sink))
    return tone_of(last)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
    sys.stdout.flush()
    if KEPT:
        os._exit(0)

"""What a user of gr-uhd does with a device, as a process of its own: `uhd_client.py STEP DEVICE-ARGUMENTS [JSON]`."""

import json
import sys
import time

import numpy as np
import pmt
from gnuradio import blocks, gr, uhd


def stream(channels=(0,), **more):
    return uhd.stream_args(cpu_format="fc32", channels=list(channels), **more)


def measure(x):
    """Cycles per sample of a tone, its amplitude, and the effective value of what is not the tone."""
    at = np.angle(np.vdot(x[:-1], x[1:])) / (2 * np.pi)
    half = x.size // 2
    z = x * np.exp(-2j * np.pi * at * np.arange(x.size))
    # The turn from one half to the other makes the estimate fine.
    at += np.angle(z[half : 2 * half].sum() * z[:half].sum().conj()) / (2 * np.pi * half)
    z = x * np.exp(-2j * np.pi * at * np.arange(x.size))
    return at, abs(z.mean()), np.sqrt(np.mean(abs(z - z.mean()) ** 2))


def tone(args, options):
    """Full duplex: a tone, and what is heard of it, at several rates and frequencies."""
    out = []
    top = gr.top_block()
    sink = uhd.usrp_sink(args, stream(otw_format=options.get("tx_wire", "sc16")))
    source = uhd.usrp_source(args, stream(otw_format=options.get("rx_wire", "sc16")))
    for case in options["cases"]:
        for device in (sink, source):
            device.set_samp_rate(case["rate"])
        rate = source.get_samp_rate()
        sink.set_center_freq(uhd.tune_request(case["tx_hz"], case.get("tx_offset", 0.0)), 0)
        source.set_center_freq(uhd.tune_request(case["rx_hz"], case.get("rx_offset", 0.0)), 0)
        sink.set_gain(case.get("tx_gain", 31.5), 0)
        source.set_gain(case.get("rx_gain", 0.0), 0)
        n = int(0.3 * rate)
        period = np.exp(2j * np.pi * case["tone"] * np.arange(1000) / 1000).astype(np.complex64)
        sender = blocks.vector_source_c((case["amplitude"] * period).tolist(), True)
        # On a machine that is too busy the tone may come when the listening is over: then again.
        for _ in range(4):
            heard = blocks.vector_sink_c()
            top.disconnect_all()
            top.connect(sender, sink)
            top.connect(source, heard)
            top.start()
            while heard.nitems_read(0) < n:
                time.sleep(0.01)
            top.stop()
            top.wait()
            # The device still sends what its memory holds: 1 MiB, in eight bits half a second.
            time.sleep(0.6)
            # Pieces, so that a pause of the machine spoils only some.
            pieces = [measure(x) for x in np.array_split(np.array(heard.data()[:n])[-(n // 3) :], 16)]
            at, amplitude, rest = np.median(pieces, axis=0)
            if amplitude > 5 * rest:
                break
        out.append(
            {
                "rate": rate,
                "offset_hz": float(at * rate),
                "amplitude": float(amplitude),
                "rest": float(rest),
                "tx_hz": sink.get_center_freq(0),
                "rx_hz": source.get_center_freq(0),
                "tx_gain": sink.get_gain(0),
                "rx_gain": source.get_gain(0),
            }
        )
    return out


def tagged(samples, at_s, offset=0, ends=True):
    """Tags of a timed burst."""
    whole = int(at_s)
    values = [
        ("tx_sob", pmt.PMT_T, offset),
        ("tx_time", pmt.make_tuple(pmt.from_uint64(whole), pmt.from_double(at_s - whole)), offset),
    ]
    if ends:
        values.append(("tx_eob", pmt.PMT_T, offset + samples - 1))
    return [
        gr.tag_utils.python_to_tag((position, pmt.intern(key), value, pmt.intern("client")))
        for key, value, position in values
    ]


def bursts(args, options):
    """Timed bursts, and at which sample of a timed reception each is heard."""
    rate, n = options["rate"], options["samples"]
    top = gr.top_block()
    sink = uhd.usrp_sink(args, stream(otw_format=options.get("wire", "sc16")))
    source = uhd.usrp_source(args, stream(otw_format=options.get("wire", "sc16")))
    for device in (sink, source):
        device.set_samp_rate(rate)
        device.set_center_freq(2e9, 0)
    sink.set_gain(31.5, 0)
    source.set_time_now(uhd.time_spec(options.get("set_time", 0.0)))
    ticks = 1e8
    base = round((source.get_time_now().get_real_secs() + 0.4) * ticks) + options.get("rx_tick", 0)
    spacing, factor = options["spacing"], round(1e8 / rate)
    starts = [base + (1000 + spacing * i) * factor + options.get("tx_tick", 0) for i in range(options["count"])]
    samples = np.tile(np.full(n, 0.5, np.complex64), len(starts))
    tags = [tag for i, at in enumerate(starts) for tag in tagged(n, at / ticks, i * n)]
    sender = blocks.vector_source_c(samples.tolist(), False, 1, tags)
    heard = blocks.vector_sink_c()
    source.set_start_time(uhd.time_spec.from_ticks(base, ticks))
    top.connect(sender, sink)
    top.connect(source, heard)
    top.start()
    wanted = 1000 + spacing * len(starts) + 2000
    while heard.nitems_read(0) < wanted:
        time.sleep(0.01)
    time.sleep(0.1)
    top.stop()
    top.wait()
    x = np.abs(np.array(heard.data()[:wanted]))
    on = np.flatnonzero((x[1:] > 0.25) & (x[:-1] <= 0.25)) + 1
    off = np.flatnonzero((x[1:] <= 0.25) & (x[:-1] > 0.25)) + 1
    stamp = next(tag for tag in heard.tags() if pmt.symbol_to_string(tag.key) == "rx_time")
    seconds = pmt.to_uint64(pmt.tuple_ref(stamp.value, 0)), pmt.to_double(pmt.tuple_ref(stamp.value, 1))
    first = seconds[0] * 100_000_000 + round(seconds[1] * ticks)
    return {
        "first_tick": first,
        "asked_first_tick": base,
        "asked": starts,
        "heard": [int(first + k * factor) for k in on],
        "lengths": (off - on).tolist() if off.size == on.size else [],
    }


def units(args, options):
    """Two units in one device: aligned by the pulse per second, or by the cable between them."""
    rate = 1e6
    top = gr.top_block()
    source = uhd.usrp_source(args, stream((0, 1)))
    sink = uhd.usrp_sink(args, stream((0,)))
    if options["by"] == "mimo":
        source.set_clock_source("mimo", 1)
        source.set_time_source("mimo", 1)
        source.set_time_now(uhd.time_spec(5.0), 0)
        time.sleep(0.2)
    else:
        for unit in (0, 1):
            source.set_clock_source("external", unit)
            source.set_time_source("external", unit)
        source.set_time_unknown_pps(uhd.time_spec(3.0))
        time.sleep(1.1)
    pulses = [source.get_time_last_pps(unit).to_ticks(1e8) for unit in (0, 1)]
    for device, channels in ((source, (0, 1)), (sink, (0,))):
        device.set_samp_rate(rate)
        for channel in channels:
            device.set_center_freq(2.0003e9, channel)
    sink.set_gain(31.5, 0)
    start = int(source.get_time_now().get_real_secs() * 10 + 4) / 10
    sender = blocks.vector_source_c([0.5] * 500, False, 1, tagged(500, start + 2e-3))
    heard = [blocks.vector_sink_c() for _ in (0, 1)]
    source.set_start_time(uhd.time_spec(start))
    top.connect(sender, sink)
    for channel in (0, 1):
        top.connect((source, channel), heard[channel])
    top.start()
    while min(block.nitems_read(0) for block in heard) < 4000:
        time.sleep(0.01)
    top.stop()
    top.wait()
    x = np.array([block.data()[:4000] for block in heard])
    return {
        "pulses": pulses,
        "first": [int(np.flatnonzero(abs(row) > 0.1)[0]) for row in x],
        "levels": [float(abs(row[2100:2400]).mean()) for row in x],
        "synchronized": bool(source.get_time_now(0).get_real_secs() - source.get_time_now(1).get_real_secs() < 0.01),
        "sensors": [source.get_mboard_sensor("ref_locked", unit).to_bool() for unit in (0, 1)],
    }


def radio(args, options):
    """The backend of this project: settings, streams, refusals, and what it counts."""
    from semair.errors import RadioError
    from semair.hardware.radio import Settings
    from semair.hardware.uhd import UhdRadio

    n_rx = options["n_rx"]
    clocks = {"clock_source": options["clock"], "time_source": options["time"]}
    device = UhdRadio(args, n_rx)
    try:
        device.source()
        unconfigured = ""
    except RadioError as error:
        unconfigured = str(error)
    refused = []
    for wrong in options.get("wrong", []):
        try:
            device.configure(Settings(**{"sample_rate_hz": 1e6, "frequency_hz": 2e9, **clocks, **wrong}))
            refused.append("")
        except RadioError as error:
            refused.append(str(error))
    settings = Settings(1e6, 2.0003e9, rx_gain_db=(0.0,) * n_rx, **clocks)
    out = []
    for gain_db in (31.5, 21.5):
        actual = device.configure(settings)
        taken = device.set_tx_gain_db(gain_db)
        top = gr.top_block()
        sender = blocks.vector_source_c([0.5] * 1000, True)
        gate, heard = blocks.copy(gr.sizeof_gr_complex), [blocks.vector_sink_c() for _ in range(n_rx)]
        top.connect(sender, gate, device.sink())
        for channel in range(n_rx):
            top.connect((device.source(), channel), heard[channel])
        top.start()
        while min(block.nitems_read(0) for block in heard) < 300_000:
            time.sleep(0.01)
        top.stop()
        top.wait()
        x = np.abs(np.array([block.data()[:300_000] for block in heard]))
        out.append(
            {
                "settings": actual.as_dict(),
                "tx_gain_db": taken,
                "levels": [float(np.median(row[row > 0.05])) for row in x],
                "begins": [int(np.argmax(row > 0.05)) for row in x],
                "tags": sorted({pmt.symbol_to_string(tag.key) for tag in heard[0].tags()}),
                "counts": device.counts(),
            }
        )
    facts, locks = device.facts(), device.locks()
    device.close()
    return {
        "unconfigured": unconfigured,
        "refused": refused,
        "runs": out,
        "facts": facts,
        "locks": locks,
        "locks_closed": device.locks(),
        "capabilities": {"n_rx": device.capabilities.n_rx, "path": device.capabilities.path},
    }


if __name__ == "__main__":
    step, args = sys.argv[1:3]
    found = globals()[step](args, json.loads(sys.argv[3]) if len(sys.argv) > 3 else {})
    sys.stdout.write(f"RESULT {json.dumps(found)}\n")

"""What an experiment does with an IIO radio, as a process of its own: `iio_radio_client.py STEP ADDRESS [JSON]`."""

import json
import sys
import time

import numpy as np
import pmt
from gnuradio import blocks, gr
from semair.errors import RadioError, SemairError
from semair.flowgraphs.execute import execute
from semair.hardware.iio import IioRadio
from semair.hardware.radio import Settings
from semair.hardware.watch import StallWatch

RATE = 1_000_000


def say(line):
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def await_(condition):
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.01)


def tone(cycles):
    return (0.5 * np.exp(2j * np.pi * cycles * np.arange(1000))).astype(np.complex64).tolist()


def paths(args, options):
    """Tones from every transmit chain, and how loud each of them is in every receive chain; twice over."""
    n = options["chains"]
    radio = IioRadio(f"{args},tx_channels={n}", n)
    runs = []
    for gain_db in (0.0, -10.0):
        settings = radio.configure(Settings(RATE, 1e9, rx_gain_db=(0.0,) * n))
        taken = radio.set_tx_gain_db(gain_db)
        top = gr.top_block()
        heard = [blocks.vector_sink_c() for _ in range(n)]
        for chain in range(n):
            top.connect(blocks.vector_source_c(tone(0.05 * (chain + 1)), True), (radio.sink(), chain))
            top.connect((radio.source(), chain), heard[chain])
        lines = [np.exp(-2j * np.pi * 0.05 * (chain + 1) * np.arange(5000)) for chain in range(n)]
        levels = []

        def all_heard(heard=heard, levels=levels, lines=lines):
            """On a busy machine tones come late and with gaps: the loudest stretch of 5 ms has none."""
            n = min(sink.nitems_read(0) for sink in heard) // 5000 * 5000
            if n < 300_000:
                return False
            rows = [np.array(sink.data()[n - 300_000 : n]).reshape(-1, 5000) for sink in heard]
            levels[:] = [[float(np.abs(row @ line).max() / 5000) for line in lines] for row in rows]
            return min(map(min, levels)) > 0.02

        top.start()
        await_(all_heard)
        top.stop()
        top.wait()
        tags = {pmt.symbol_to_string(tag.key): pmt.to_python(tag.value) for tag in heard[0].tags()}
        runs.append({"settings": settings.as_dict(), "gain_db": taken, "levels": levels, "tags": tags})
    found = {"runs": runs, "facts": radio.facts(), "locks": radio.locks(), "capabilities": vars(radio.capabilities)}
    radio.close()
    return found | {"locks_closed": radio.locks()}


def finite(args, options):
    """So many samples, handed over as fast as they are taken, and how many of them are heard."""
    radio = IioRadio(f"{args},loopback=digital", 1)
    wanted = options["samples"]
    for _ in range(4):
        radio.configure(Settings(RATE, 1e9))
        heard = blocks.vector_sink_c()
        listening, sending = gr.top_block(), gr.top_block()
        listening.connect(radio.source(), heard)
        sending.connect(blocks.vector_source_c([options["amplitude"]] * wanted), radio.sink())
        listening.start()
        await_(lambda heard=heard: heard.nitems_read(0) > 0)
        sending.run()
        end = heard.nitems_read(0) + RATE // 10
        await_(lambda heard=heard, end=end: heard.nitems_read(0) > end)
        listening.stop()
        listening.wait()
        counts = radio.counts()
        if "overflows" not in counts:
            break
    radio.close()
    x = np.array(heard.data())
    loud = x[np.abs(x) > 0.25]
    return {"heard": len(loud), "level": float(np.abs(loud).mean()), "counts": counts}


def stream(args, options):
    """Full duplex until the parent says a word, or until something fails; then the end that was asked for."""
    radio = IioRadio(args, 1)
    radio.configure(Settings(RATE, 1e9, tx_gain_db=(-20.0,)))
    top, heard = gr.top_block(), blocks.null_sink(gr.sizeof_gr_complex)
    source, sink = radio.source(), radio.sink()
    sender = blocks.vector_source_c(tone(0.05), True)
    top.connect(sender, sink)
    top.connect(source, heard)
    watch = StallWatch(radio, lambda: heard.nitems_read(0))
    state = {"said": False}

    def failure():
        return source.failure or sink.failure or watch.failure()

    def until():
        if not state["said"] and heard.nitems_read(0) > RATE // 4 and sink.nitems_read(0) > RATE // 4:
            state["said"] = True
            say("STREAMS")
        enough = options.get("counts")
        return state["said"] and bool(enough) and enough in radio.counts()

    try:
        execute(top, failure, None, until)
        error = ""
    except SemairError as problem:
        error = f"{type(problem).__name__}: {problem}"
    if options.get("end") == "exit":
        # As a program that fails does: nothing is closed.
        say("RESULT {}")
        sys.exit(0)
    found = {"error": error, "counts": radio.counts()}
    try:
        radio.close()
    except RadioError as problem:
        found["close"] = str(problem)
    return found


if __name__ == "__main__":
    step, args, *more = sys.argv[1:]
    done = globals()[step](args, json.loads(more[0]) if more else {})
    say(f"RESULT {json.dumps(done)}")

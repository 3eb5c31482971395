"""Running flowgraphs: errors reach the caller, Ctrl-C ends in order, and nothing hangs."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")

from gnuradio import blocks, gr
from semair.blocks.runtime import Failsafe, guarded
from semair.flowgraphs.execute import execute


class Consumer(Failsafe, gr.sync_block):
    """Takes samples, raises at one of them, and notes its end."""

    def __init__(self, fails_at: float = float("inf")) -> None:
        gr.sync_block.__init__(self, "consumer", [np.complex64], None)
        self.fails_at = fails_at
        self.taken = 0
        self.stopped = False

    @guarded
    def work(self, input_items, output_items):
        self.taken += len(input_items[0])
        if self.taken > self.fails_at:
            raise OSError("disk broke")
        return len(input_items[0])

    def stop(self):
        self.stopped = True
        return True


class Flowgraph(gr.top_block):
    """Zeros, endless or so many, into a consumer."""

    def __init__(self, n: int | None = None, fails_at: float = float("inf")) -> None:
        gr.top_block.__init__(self, "test")
        self.source = blocks.null_source(gr.sizeof_gr_complex)
        self.consumer = Consumer(fails_at)
        if n is None:
            self.connect(self.source, self.consumer)
        else:
            self.head = blocks.head(gr.sizeof_gr_complex, n)
            self.connect(self.source, self.head, self.consumer)

    def failure(self):
        return self.consumer.failure


def test_finite_flowgraph_runs_to_its_end():
    tb = Flowgraph(100_000)
    assert execute(tb, tb.failure) is False
    assert tb.consumer.taken == 100_000
    assert tb.consumer.stopped


@pytest.mark.parametrize("n", [None, 10**8])
def test_error_of_a_block_reaches_the_caller_after_everything_stopped(n):
    tb = Flowgraph(n, fails_at=50_000)
    with pytest.raises(OSError, match="disk broke"):
        execute(tb, tb.failure)
    assert tb.consumer.stopped


def test_run_ends_early_when_asked():
    tb = Flowgraph()
    assert execute(tb, tb.failure, until=lambda: tb.consumer.taken > 10_000) is False
    assert tb.consumer.stopped


def test_progress_is_told_while_it_runs_and_once_at_the_end():
    told = []
    tb = Flowgraph()
    execute(tb, tb.failure, lambda: told.append(tb.consumer.taken), until=lambda: len(told) >= 3)
    assert len(told) == 4
    assert told == sorted(told)
    assert told[-1] == tb.consumer.taken


def test_error_of_the_progress_display_stops_the_flowgraph_too():
    tb = Flowgraph()

    def broken():
        raise RuntimeError("terminal is gone")

    with pytest.raises(RuntimeError, match="terminal is gone"):
        execute(tb, tb.failure, broken)
    assert tb.consumer.stopped


def pressed_once():
    """Progress display during which Ctrl-C is pressed."""
    presses = iter([KeyboardInterrupt()])

    def on_tick():
        for press in presses:
            raise press

    return on_tick


def test_ctrl_c_is_told_and_ends_in_order():
    tb = Flowgraph()
    assert execute(tb, tb.failure, pressed_once()) is True
    assert tb.consumer.stopped


def test_more_presses_of_ctrl_c_do_not_disturb_the_end():
    class Stubborn:
        """A flowgraph whose stop is interrupted twice."""

        def __init__(self):
            self.presses = 0
            self.ended = False

        def start(self):
            pass

        def wait(self):
            while not self.ended:
                time.sleep(0.005)

        def stop(self):
            self.presses += 1
            if self.presses < 3:
                raise KeyboardInterrupt
            self.ended = True

    flowgraph = Stubborn()
    assert execute(flowgraph, lambda: None, pressed_once()) is True
    assert flowgraph.ended


def test_flowgraph_that_does_not_stop_is_told(monkeypatch):
    class Stuck:
        """A flowgraph that goes on."""

        def __init__(self):
            self.released = False

        def start(self):
            pass

        def wait(self):
            while not self.released:
                time.sleep(0.005)

        def stop(self):
            pass

    monkeypatch.setattr("semair.flowgraphs.execute._STOP_TIMEOUT_S", 0.05)
    flowgraph = Stuck()
    with pytest.raises(RuntimeError, match="did not stop within") as caught:
        execute(flowgraph, lambda: ValueError("the cause"))
    assert str(caught.value.__cause__) == "the cause"
    flowgraph.released = True


SIGNALLED = """
    from gnuradio import blocks, gr
    from semair.blocks.sigmf_sink import SigmfSink
    from semair.flowgraphs.execute import execute
    tb = gr.top_block("test")
    source = blocks.null_source(gr.sizeof_gr_complex)
    throttle = blocks.throttle(gr.sizeof_gr_complex, 1e6)
    sink = SigmfSink({folder!r}, "rec", min_free_bytes=0)
    tb.connect(source, throttle, sink)
    ready = False
    def tick():
        global ready
        if not ready and sink.writer is not None and sink.writer.n_samples > 10_000:
            ready = True
            print("running", flush=True)
    print("interrupted", execute(tb, lambda: sink.failure, tick), flush=True)
"""


def test_signal_of_ctrl_c_leaves_a_whole_recording(tmp_path):
    from semair.captures.reader import Recording

    script = textwrap.dedent(SIGNALLED.format(folder=str(tmp_path)))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "interrupted True\n"
        assert process.wait(30) == 0
    finally:
        process.kill()
    recording = Recording.open(tmp_path / "rec.sigmf-meta", check_hash=True)
    assert recording.complete
    assert recording.n_samples > 10_000

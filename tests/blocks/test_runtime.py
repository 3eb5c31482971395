"""What all blocks share: errors kept, radio time without rounding, and GNU Radio asked for politely."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")

import pmt
from gnuradio import blocks, gr
from semair.blocks import runtime
from semair.blocks.runtime import Failsafe, guarded, require_gnuradio, time_ticks, time_value
from semair.errors import SetupError

RATES_HZ = st.one_of(
    st.sampled_from([1.0, 48e3, 1e6, 2e6, 30.72e6, 100e6 / 3, 245.76e6, 1e9]),
    st.floats(1e3, 1e9),
)


@given(st.integers(0, 10**18), RATES_HZ)
def test_time_tags_keep_every_sample_period(ticks, rate_hz):
    value = time_value(ticks, rate_hz)
    seconds, rest = pmt.to_uint64(pmt.tuple_ref(value, 0)), pmt.to_double(pmt.tuple_ref(value, 1))
    assert 0 <= rest <= 1
    # The fraction is a double below 1, good to 1.1e-16 s: 1e-7 of a sample period at 1 GS/s.
    assert abs(Fraction(ticks) / Fraction(rate_hz) - seconds - Fraction(rest)) < Fraction(1, 10**15)
    assert time_ticks(value, rate_hz) == ticks


@pytest.mark.parametrize("second", [1, 1_700_000_000])
def test_second_rolls_over_exactly(second):
    last, first = (time_value(second * 2_000_000 + k, 2e6) for k in (-1, 0))
    assert pmt.to_python(last) == (second - 1, 1999999 / 2e6)
    assert pmt.to_python(first) == (second, 0.0)


def test_tag_as_uhd_writes_it_is_read():
    value = pmt.make_tuple(pmt.from_uint64(12), pmt.from_double(0.25))
    assert time_ticks(value, 1e6) == 12_250_000


class Fragile(Failsafe, gr.sync_block):
    """Raises at a given item, or on any message."""

    def __init__(self, fails_at: int = 10**9) -> None:
        gr.sync_block.__init__(self, "fragile", [np.complex64], None)
        self.fails_at = fails_at
        self.stopped = False
        self.message_port_register_in(pmt.intern("in"))
        self.set_msg_handler(pmt.intern("in"), self.handle)

    @guarded
    def handle(self, message):
        raise KeyError("handler broke")

    @guarded
    def work(self, input_items, output_items):
        if self.nitems_read(0) + len(input_items[0]) > self.fails_at:
            raise ZeroDivisionError(f"work broke near {self.nitems_read(0)}")
        return len(input_items[0])

    def stop(self):
        self.stopped = True
        return True


class Flowgraph(gr.top_block):
    """An endless source into a fragile block."""

    def __init__(self, fails_at: int) -> None:
        gr.top_block.__init__(self, "test")
        self.source = blocks.null_source(gr.sizeof_gr_complex)
        self.fragile = Fragile(fails_at)
        self.connect(self.source, self.fragile)


def test_error_in_work_reaches_the_caller_and_does_not_hang(run_graph):
    tb = Flowgraph(fails_at=50_000)
    with pytest.raises(ZeroDivisionError, match="work broke"):
        run_graph(tb, (tb.fragile,))
    assert tb.fragile.stopped


def test_error_in_a_message_handler_reaches_the_caller_and_does_not_hang(run_graph):
    tb = Flowgraph(fails_at=10**12)
    tb.fragile.to_basic_block()._post(pmt.intern("in"), pmt.from_long(1))
    with pytest.raises(KeyError, match="handler broke"):
        run_graph(tb, (tb.fragile,))


def test_first_error_is_kept_and_nothing_runs_after_it():
    class Counting(Failsafe):
        calls = 0

        @guarded
        def work(self, items):
            self.calls += 1
            raise ValueError(f"error {self.calls}")

    block = Counting()
    assert block.work([1]) == runtime.WORK_DONE == -1
    assert block.work([1]) == -1
    assert block.calls == 1
    assert str(block.failure) == "error 1"
    block.keep(ValueError("later"))
    assert str(block.failure) == "error 1"
    assert Counting().failure is None


def test_guarded_functions_keep_their_name():
    # GNU Radio looks message handlers up by name.
    assert Fragile.handle.__name__ == "handle"


def test_input_tags_come_in_order_of_place_for_the_asked_stretch_alone():
    tags = [SimpleNamespace(offset=o) for o in (9, 3, 7, 5)]

    class Block:
        def nitems_read(self, port):
            return 2

        def get_tags_in_range(self, port, begin, end):
            return [tag for tag in tags if begin <= tag.offset < end]

    assert [tag.offset for tag in runtime.input_tags(Block(), 0, 6)] == [3, 5, 7]
    assert [tag.offset for tag in runtime.input_tags(Block(), 0, 3, skip=3)] == [5, 7]


def test_stacked_ports_are_copies():
    port = np.arange(5, dtype=np.complex64)
    stacked = runtime.stack_ports([port, port], 3)
    port[:] = 0
    np.testing.assert_array_equal(stacked, [[0, 1, 2], [0, 1, 2]])


def test_numpy_2_beside_gnu_radio_is_explained(monkeypatch):
    monkeypatch.setattr(np, "__version__", "2.1.0")
    with pytest.raises(SetupError, match=r"NumPy 2\.1\.0.*pip install 'numpy<2'"):
        require_gnuradio()


def test_missing_gnu_radio_is_explained():
    code = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("gnuradio", "pmt"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
from semair.errors import SetupError
try:
    import semair.blocks.frame_synchroniser
except SetupError as error:
    print("SETUP", error, error.exit_code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.startswith("SETUP ")
    assert "apt install gnuradio" in done.stdout
    assert "--system-site-packages" in done.stdout
    assert "make setup" in done.stdout

"""What every GNU Radio block here shares: the guarded import, error keeping, and the tags of radio time."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from ..errors import SetupError

RECIPE = (
    "install it with `apt install gnuradio` and make the environment with "
    "`/usr/bin/python3 -m venv --system-site-packages .venv` and `pip install 'numpy<2' -e .` "
    "(`make setup` does all of it)"
)


def require_gnuradio() -> tuple[Any, Any]:
    """Import GNU Radio, or say how to get it.

    Returns:
        The modules gnuradio.gr and pmt.

    Raises:
        SetupError: GNU Radio is missing, or NumPy does not fit it.
    """
    if int(np.__version__.split(".")[0]) >= 2:
        raise SetupError(
            f"NumPy {np.__version__} is installed, but the distribution's GNU Radio needs NumPy below 2: "
            "run `pip install 'numpy<2'` in this environment"
        )
    try:
        import pmt
        from gnuradio import gr
    except ImportError as error:
        raise SetupError(f"GNU Radio cannot be imported ({error}); {RECIPE}") from error
    return gr, pmt


gr, pmt = require_gnuradio()

# Blocks leave the interpreter for compiled work many times per call. With Python's own 5 ms, a block that comes back
# would wait that long for its turn whenever another one is busy with Python code.
sys.setswitchinterval(5e-4)

# As a number: the gateway compares what work returns with 0, which the enumeration gr.WORK_DONE cannot.
WORK_DONE = -1


class Failsafe:
    """Keeps the first error of a block's thread, where GNU Radio would hang or lose it.

    `work` functions and message handlers are wrapped with `guarded`. After an error the block ends its part of
    the graph; whoever runs the flowgraph reads `failure`, stops it, and raises the error.
    """

    failure: BaseException | None = None

    def warm_up(self) -> None:
        """Compile or load what would delay the first samples; blocks that have such work override this."""

    def start(self) -> bool:
        """Warm up before the first sample comes."""
        try:
            self.warm_up()
        except Exception as error:
            self.keep(error)
        return True

    def keep(self, error: BaseException) -> None:
        """Store the first error."""
        if self.failure is None:
            self.failure = error


def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a block's work function or message handler: an error is kept, and work answers that it is done."""

    @functools.wraps(function)
    def wrapper(self: Failsafe, *args: Any) -> Any:
        if self.failure is not None:
            return WORK_DONE
        try:
            return function(self, *args)
        except BaseException as error:
            self.keep(error)
            return WORK_DONE

    return wrapper


def time_value(ticks: int, rate_hz: float) -> Any:
    """Value of an rx_time tag, whole seconds and fraction as UHD gives it, for a time in sample periods."""
    seconds, rest = divmod(Fraction(ticks) / Fraction(rate_hz), 1)
    return pmt.make_tuple(pmt.from_uint64(int(seconds)), pmt.from_double(float(rest)))


def time_ticks(value: Any, rate_hz: float) -> int:
    """Sample periods since the radio's time zero, from the value of an rx_time tag."""
    seconds, rest = pmt.to_uint64(pmt.tuple_ref(value, 0)), pmt.to_double(pmt.tuple_ref(value, 1))
    return round((seconds + Fraction(rest)) * Fraction(rate_hz))


RX_TIME = pmt.intern("rx_time")
RX_RATE = pmt.intern("rx_rate")
RX_FREQ = pmt.intern("rx_freq")
RX_END = pmt.intern("rx_end")
RX_GAP = pmt.intern("rx_gap")
RX_BEGIN = pmt.intern("rx_begin")
FRAME = pmt.intern("frame")
OVER = pmt.intern("over")
SLOT = pmt.intern("slot")


def time_tags(block: Any, n_ports: int, item: int, ticks: int, rate_hz: float, freq_hz: float) -> None:
    """Add rx_time (from a time in sample periods), rx_rate and rx_freq to every output port, as radios do."""
    for port in range(n_ports):
        block.add_item_tag(port, item, RX_TIME, time_value(ticks, rate_hz))
        block.add_item_tag(port, item, RX_RATE, pmt.from_double(rate_hz))
        block.add_item_tag(port, item, RX_FREQ, pmt.from_double(freq_hz))


def input_tags(block: Any, port: int, n_items: int, skip: int = 0) -> list[Any]:
    """Tags on n_items of an input after the next `skip`, in order of position (no predicate crosses into C++)."""
    first = block.nitems_read(port) + skip
    return sorted(block.get_tags_in_range(port, first, first + n_items), key=lambda tag: tag.offset)


def stack_ports(input_items: Sequence[np.ndarray], n: int) -> np.ndarray:
    """Copy the first n items of all ports; complex64, (ports, n). The ports' buffers are reused by GNU Radio."""
    return np.stack([port[:n] for port in input_items])

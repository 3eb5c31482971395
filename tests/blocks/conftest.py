"""Running small flowgraphs in tests: with a time limit, and with the blocks' errors raised."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

RunGraph = Callable[..., None]


@pytest.fixture
def run_graph() -> RunGraph:
    """Function that runs a top block to its end, or until a block has failed, and raises the block's error.

    Arguments: the top block; the blocks whose errors count; `max_noutput_items` for the scheduler; `until`, a
    function that ends the run once it is true, for graphs that do not end by themselves; `timeout_s`.
    """

    def run(
        top_block: Any,
        nodes: tuple[Any, ...] = (),
        max_noutput_items: int | None = None,
        until: Callable[[], bool] | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        ended = threading.Event()

        def wait() -> None:
            top_block.wait()
            ended.set()

        def failures() -> list[BaseException]:
            return [node.failure for node in nodes if getattr(node, "failure", None) is not None]

        if max_noutput_items is None:
            top_block.start()
        else:
            top_block.start(max_noutput_items)
        threading.Thread(target=wait, daemon=True).start()
        limit = time.monotonic() + timeout_s
        while not ended.wait(0.005) and not failures() and not (until and until()):
            if time.monotonic() > limit:
                top_block.stop()
                ended.wait(5)
                pytest.fail(f"the flowgraph did not end within {timeout_s} s")
        top_block.stop()
        assert ended.wait(10), "the flowgraph did not stop"
        if failures():
            raise failures()[0]

    return run


@pytest.fixture
def make_tag() -> Callable[[int, str, Any], Any]:
    """Function that makes a stream tag from place, key and value (a PMT, or plain)."""
    pmt = pytest.importorskip("pmt", reason="GNU Radio is not installed")
    from gnuradio import gr

    def make(offset: int, key: str, value: Any) -> Any:
        tag = gr.tag_t()
        tag.offset = offset
        tag.key = pmt.intern(key)
        tag.value = value if isinstance(value, pmt.pmt_base) else pmt.to_pmt(value)
        return tag

    return make

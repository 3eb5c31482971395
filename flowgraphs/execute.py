"""Running a flowgraph so that errors reach the user, Ctrl-C ends it cleanly, and nothing hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

_POLL_S = 0.05
_STOP_TIMEOUT_S = 30.0


def execute(
    top_block: Any,
    failure: Callable[[], BaseException | None],
    on_tick: Callable[[], None] | None = None,
    until: Callable[[], bool] | None = None,
) -> bool:
    """Run a flowgraph to its end.

    Args:
        top_block: the flowgraph.
        failure: gives the first error of its blocks, or None.
        on_tick: called about twenty times a second from this thread, for progress.
        until: ends the run early once true.

    Returns:
        True where the run was interrupted by Ctrl-C; the flowgraph is stopped in an orderly way then too.

    Raises:
        The first error that a block met, after the flowgraph was stopped and its sinks were closed.
        RuntimeError: the flowgraph does not stop.
    """
    ended = threading.Event()

    def wait() -> None:
        top_block.wait()
        ended.set()

    interrupted = False
    top_block.start()
    waiter = threading.Thread(target=wait, name="flowgraph", daemon=True)
    waiter.start()
    try:
        while not ended.wait(_POLL_S) and failure() is None and not (until and until()):
            if on_tick:
                on_tick()
    except KeyboardInterrupt:
        interrupted = True
    finally:
        # Also where on_tick or until failed: a flowgraph left running would write on and hold the process.
        stopped = _stop(top_block, ended)
    if not stopped:
        raise RuntimeError(f"the flowgraph did not stop within {_STOP_TIMEOUT_S:.0f} s") from failure()
    error = failure()
    if error is not None:
        raise error
    if on_tick:
        on_tick()
    return interrupted


def _stop(top_block: Any, ended: threading.Event) -> bool:
    """Stop the flowgraph and close its sinks, undisturbed by more presses of Ctrl-C; tells whether it ended."""
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while True:
        try:
            top_block.stop()
            return ended.wait(max(deadline - time.monotonic(), 0.0))
        except KeyboardInterrupt:
            continue

"""GNU Radio block: hands messages to a Python function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .messages import unpack
from .runtime import Failsafe, gr, guarded, pmt

Receiver = Callable[[dict[str, Any], np.ndarray], None]


class MessageCollector(Failsafe, gr.basic_block):
    """Calls a function with the fields and the vector of every message on its port `in`.

    Args:
        receiver: called in the block's own thread, one message at a time.
    """

    def __init__(self, receiver: Receiver) -> None:
        gr.basic_block.__init__(self, name="semair message collector", in_sig=None, out_sig=None)
        self.receiver = receiver
        self.received = 0
        self.message_port_register_in(pmt.intern("in"))
        self.set_msg_handler(pmt.intern("in"), self.handle_message)

    @guarded
    def handle_message(self, message: Any) -> None:
        """Unpack one message and pass it on."""
        fields, vector = unpack(message)
        self.receiver(fields, vector)
        self.received += 1

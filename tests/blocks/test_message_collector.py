"""The message collector hands every message on, in order, and its receiver's errors to the user."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")

import pmt
from gnuradio import blocks, gr
from semair.blocks.message_collector import MessageCollector
from semair.blocks.messages import pack


class Flowgraph(gr.top_block):
    """A collector, with a stock block whose messages it may get."""

    def __init__(self, receiver) -> None:
        gr.top_block.__init__(self, "test")
        self.collector = MessageCollector(receiver)
        self.strobe = blocks.message_strobe(pack({"tick": 1}), 10)
        self.msg_connect((self.strobe, "strobe"), (self.collector, "in"))

    def post(self, message) -> None:
        self.collector.to_basic_block()._post(pmt.intern("in"), message)


def test_messages_arrive_in_order_with_fields_and_vector(run_graph):
    received = []
    tb = Flowgraph(lambda fields, vector: received.append((fields, vector)))
    for k in range(200):
        tb.post(pack({"k": k}, np.full(3, k, np.complex64)))
    run_graph(tb, (tb.collector,), until=lambda: tb.collector.received >= 205)
    numbered = [(fields, vector) for fields, vector in received if "k" in fields]
    assert [fields["k"] for fields, _ in numbered] == list(range(200))
    for fields, vector in numbered:
        np.testing.assert_array_equal(vector, np.full(3, fields["k"]))
    # Others come from the stock block between or behind them.
    assert all(fields == {"tick": 1} for fields, _ in received if "k" not in fields)


def test_error_of_the_receiver_reaches_the_user(run_graph):
    def receiver(fields, vector):
        raise OSError("table cannot be written")

    tb = Flowgraph(receiver)
    with pytest.raises(OSError, match="table cannot be written"):
        run_graph(tb, (tb.collector,), until=lambda: False)
    assert tb.collector.received == 0


def test_message_of_another_form_reaches_the_user(run_graph):
    tb = Flowgraph(lambda fields, vector: None)
    tb.post(pmt.intern("hello"))
    with pytest.raises(ValueError, match="expected a PDU"):
        run_graph(tb, (tb.collector,), until=lambda: False)

"""The activity detector hands every slot to its engine, and the engine's answer and errors to the user."""

from __future__ import annotations

import gc

import numpy as np
import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")

import pmt
from gnuradio import blocks, gr
from semair.blocks.activity_detector import ActivityDetector
from semair.blocks.message_collector import MessageCollector
from semair.blocks.messages import pack
from semair.models.uad import detectors
from semair.models.uad.preambles import qpsk_preambles

N_USERS = 12
ROWS = 8
M = 16
POOL = qpsk_preambles(N_USERS, ROWS, np.random.default_rng(1))


def engine(name: str = "cd"):
    return detectors.make(name, POOL, 0.2)


def slots(active_users: list[list[int]], lengths: list[int]) -> tuple[np.ndarray, list[dict]]:
    """Snapshots at 20 dB as slot vectors, (slots, ROWS * M), and their fields."""
    rng = np.random.default_rng(4)

    def gaussian(*shape):
        return (rng.standard_normal((*shape, 2)) * np.sqrt(0.5)).view(complex)[..., 0]

    vectors = np.zeros((len(active_users), ROWS * M), np.complex64)
    told = []
    for k, (users, length) in enumerate(zip(active_users, lengths, strict=True)):
        y = POOL[:length, users] @ gaussian(len(users), M) + 0.1 * gaussian(length, M)
        vectors[k, : length * M] = y.astype(np.complex64).reshape(-1)
        # What lies behind the rows of a short preamble must not matter.
        vectors[k, length * M :] = 7
        told.append({"frame": 10 + k, "length": length, "noise_power": 0.01, "sample_time": 1000 * k})
    return vectors, told


class Flowgraph(gr.top_block):
    """Slot vectors into the detector, its decisions into a list."""

    def __init__(self, vectors: np.ndarray, tags, detector=None, lengths=(4, 8)) -> None:
        gr.top_block.__init__(self, "test")
        self.source = blocks.vector_source_c(vectors.reshape(-1).tolist(), False, ROWS * M, list(tags))
        self.detector = ActivityDetector(detector or engine(), ROWS, M, lengths)
        self.decisions: list[tuple[dict, np.ndarray]] = []
        self.collector = MessageCollector(lambda *message: self.decisions.append(message))
        self.connect(self.source, self.detector)
        self.msg_connect((self.detector, "decisions"), (self.collector, "in"))
        self.nodes = (self.detector, self.collector)

    def run_to(self, run_graph, n: int, max_noutput_items: int | None = None) -> None:
        run_graph(self, self.nodes, max_noutput_items, until=lambda: len(self.decisions) == n)


def slot_tags(make_tag, told: list[dict]) -> list:
    return [make_tag(k, "slot", pmt.car(pack(fields))) for k, fields in enumerate(told)]


ACTIVE = [[0, 5], [], [3], list(range(N_USERS)), [11, 1, 2], [7]]


@pytest.mark.parametrize("max_noutput_items", [1, 4, None])
@pytest.mark.parametrize("name", ["cd", "somp"])
def test_decisions_are_those_of_the_engine(run_graph, make_tag, name, max_noutput_items):
    vectors, told = slots(ACTIVE, [8, 4, 8, 8, 4, 8])
    tb = Flowgraph(vectors, slot_tags(make_tag, told), engine(name))
    tb.run_to(run_graph, 6, max_noutput_items)
    assert tb.detector.decided == 6
    for k, (fields, snapshots) in enumerate(tb.decisions):
        length = told[k]["length"]
        y = vectors[k, : length * M].reshape(1, length, M)
        expected = engine(name).detect(y, np.array([0.01]))
        assert fields["users"] == np.flatnonzero(expected.active[0]).tolist()
        assert np.asarray(fields["scores"]).tobytes() == expected.scores[0].tobytes()
        assert fields["flags"] == 0
        assert fields["detect_s"] > 0
        assert {key: fields[key] for key in told[k]} == told[k]
        np.testing.assert_array_equal(snapshots, y.reshape(-1))


def test_users_are_found_and_an_empty_slot_stays_empty(run_graph, make_tag):
    vectors, told = slots(ACTIVE[:3], [8, 8, 8])
    tb = Flowgraph(vectors, slot_tags(make_tag, told))
    tb.run_to(run_graph, 3)
    assert [fields["users"] for fields, _ in tb.decisions] == ACTIVE[:3]


def test_flags_of_the_detector_travel_with_the_decision(run_graph, make_tag):
    vectors, told = slots(ACTIVE[:3], [8, 8, 8])
    vectors[1] = 0
    tb = Flowgraph(vectors, slot_tags(make_tag, told))
    tb.run_to(run_graph, 3)
    assert [fields["flags"] for fields, _ in tb.decisions] == [0, detectors.Flag.SILENT, 0]


def test_engine_is_warmed_up_before_the_first_slot(run_graph, make_tag):
    calls = []
    detector = engine()
    warm_up, detect = detector.warm_up, detector.detect
    detector.warm_up = lambda *a: (calls.append(("warm up", *a)), warm_up(*a))
    detector.detect = lambda y, noise: (calls.append(("detect", *y.shape)), detect(y, noise))[1]
    vectors, told = slots([[1]], [8])
    tb = Flowgraph(vectors, slot_tags(make_tag, told), detector, lengths=(8, 4, 8))
    tb.run_to(run_graph, 1)
    assert [call for call in calls if call[0] == "warm up"] == [("warm up", 4, M), ("warm up", 8, M)]
    assert calls[-1] == ("detect", 1, 8, M)
    assert calls.index(("warm up", 8, M)) < len(calls) - 1


def test_slot_without_tag_is_explained(run_graph, make_tag):
    vectors, told = slots(ACTIVE[:3], [8, 8, 8])
    tb = Flowgraph(vectors, slot_tags(make_tag, told)[:1])
    with pytest.raises(ValueError, match=r"slot vector 1 carries no `slot` tag.*access slot receiver"):
        run_graph(tb, tb.nodes)


def test_slot_tag_that_is_no_dictionary_is_explained(run_graph, make_tag):
    vectors, _ = slots([[1]], [8])
    tb = Flowgraph(vectors, [make_tag(0, "slot", 5)])
    with pytest.raises(ValueError, match="no field 'length': 5"):
        run_graph(tb, tb.nodes)


def test_error_of_the_engine_reaches_the_user(run_graph, make_tag):
    vectors, told = slots(ACTIVE[:2], [8, 8])
    detector = engine()

    def broken(y, noise):
        raise ArithmeticError("engine broke")

    detector.detect = broken
    detector.warm_up = lambda *a: None
    tb = Flowgraph(vectors, slot_tags(make_tag, told), detector)
    with pytest.raises(ArithmeticError, match="engine broke"):
        run_graph(tb, tb.nodes)


def test_error_of_the_warm_up_reaches_the_user(run_graph, make_tag):
    vectors, told = slots([[1]], [8])
    detector = engine()

    def broken(*a):
        raise ArithmeticError("no model")

    detector.warm_up = broken
    tb = Flowgraph(vectors, slot_tags(make_tag, told), detector)
    with pytest.raises(ArithmeticError, match="no model"):
        run_graph(tb, tb.nodes)


def test_snapshots_that_are_no_numbers_reach_the_user(run_graph, make_tag):
    vectors, told = slots([[1]], [8])
    vectors[0, 5] = np.nan
    tb = Flowgraph(vectors, slot_tags(make_tag, told))
    with pytest.raises(ValueError, match=r"(?i)nan|finite"):
        run_graph(tb, tb.nodes)


def test_built_in_a_function_it_survives_garbage_collection(run_graph, make_tag):
    vectors, told = slots([[1], [2]], [8, 8])

    def build() -> Flowgraph:
        return Flowgraph(vectors, slot_tags(make_tag, told))

    tb = build()
    gc.collect()
    tb.run_to(run_graph, 2)
    assert [fields["users"] for fields, _ in tb.decisions] == [[1], [2]]

"""The SigMF source gives a recording back as the radio gave it: samples, time, gaps, and then silence."""

from __future__ import annotations

import gc
import json

import numpy as np
import pytest

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")

import pmt
from gnuradio import blocks, gr
from semair.blocks.playback import silence
from semair.blocks.runtime import time_ticks, time_value
from semair.blocks.sigmf_sink import SigmfSink
from semair.blocks.sigmf_source import Pace, SigmfSource
from semair.captures.devicetime import DeviceTime
from semair.captures.reader import Recording
from semair.captures.writer import RecordingWriter
from semair.errors import ScenarioError

RATE_HZ = 2e6


def signal(n_channels: int, n: int) -> np.ndarray:
    rng = np.random.default_rng(2)
    steps = rng.integers(-32768, 32768, (n_channels, n, 2))
    return (steps / 32768).astype(np.float32).view(np.complex64)[..., 0]


class Flowgraph(gr.top_block):
    """The source into one sink per channel."""

    def __init__(self, recording: Recording, tail_samples: int = 0, **options) -> None:
        gr.top_block.__init__(self, "test")
        self.source = SigmfSource(recording, tail_samples, **{"gaps": "as-recorded", **options})
        self.sinks = [blocks.vector_sink_c() for _ in self.source.playback.channels]
        for port, sink in enumerate(self.sinks):
            self.connect((self.source, port), sink)

    def samples(self) -> np.ndarray:
        return np.array([sink.data() for sink in self.sinks], np.complex64)

    def tags(self, port: int = 0) -> list[tuple[int, str, object]]:
        return sorted(
            (tag.offset, pmt.symbol_to_string(tag.key), pmt.to_python(tag.value)) for tag in self.sinks[port].tags()
        )

    def times(self, rate_hz: float = RATE_HZ) -> list[tuple[int, int]]:
        tags = sorted(self.sinks[0].tags(), key=lambda tag: tag.offset)
        return [(t.offset, time_ticks(t.value, rate_hz)) for t in tags if pmt.eq(t.key, pmt.intern("rx_time"))]


def write(folder, x: np.ndarray, gaps=(), start: DeviceTime | None = None, rate_hz: float = RATE_HZ, **options):
    """Record x with gaps of (place, lost samples)."""
    with RecordingWriter(
        folder, "rec", n_channels=len(x), datatype="ci16_le", sample_rate_hz=rate_hz, device_time=start,
        min_free_bytes=0, **options,
    ) as writer:  # fmt: skip
        done = 0
        for at, lost in gaps:
            writer.write(x[:, done:at])
            writer.gap(lost)
            done = at
        writer.write(x[:, done:])
    return Recording.open(folder / "rec.sigmf-meta")


@pytest.mark.parametrize("max_noutput_items", [1, 100, 1024, None])
def test_samples_and_tags_do_not_depend_on_the_scheduler(run_graph, tmp_path, max_noutput_items):
    x = signal(2, 5000)
    # The second rolls over at sample 1000; gaps at 1024, an edge of chunks, and at the last sample.
    start = DeviceTime(3, 1_999_000, 2_000_000)
    recording = write(tmp_path, x, [(1024, 7), (4999, 10**7)], start, frequency_hz=3.5e9)
    tb = Flowgraph(recording, tail_samples=300)
    run_graph(tb, (tb.source,), max_noutput_items)
    np.testing.assert_array_equal(tb.samples()[:, :5000], x)
    np.testing.assert_array_equal(tb.samples()[:, 5000:], np.zeros((2, 300)))
    expected = []
    for at, ticks in [(0, 7_999_000), (1024, 7_999_000 + 1024 + 7), (4999, 7_999_000 + 4999 + 7 + 10**7)]:
        time = (ticks // 2_000_000, pytest.approx(ticks % 2_000_000 / 2e6, abs=1e-12))
        expected += [(at, "rx_freq", 3.5e9), (at, "rx_rate", 2e6), (at, "rx_time", time)]
    expected.append((5000, "rx_end", True))
    assert tb.tags(0) == expected
    assert tb.tags(1) == expected


def test_without_device_time_the_sample_count_is_the_time(run_graph, tmp_path):
    recording = write(tmp_path, signal(1, 100), [(40, 15)])
    tb = Flowgraph(recording)
    run_graph(tb, (tb.source,))
    assert tb.times() == [(0, 0), (40, 55)]
    assert tb.samples().shape == (1, 100)
    assert "rx_end" not in [key for _, key, _ in tb.tags()]


@pytest.mark.parametrize("rate_hz", [1e6 / 3, 5e6 / 3, 61.44e6, 100e6 / 3])
def test_what_was_recorded_comes_back_with_its_times(run_graph, tmp_path, make_tag, rate_hz):
    x = signal(2, 4000)
    start = round(1_700_000_000 * rate_hz) + 1
    places = [(0, 0), (700, 1), (1500, 123), (3000, 10**9)]

    class Recorder(gr.top_block):
        def __init__(self) -> None:
            gr.top_block.__init__(self, "test")
            tags = [make_tag(at, "rx_time", time_value(start + at + lost, rate_hz)) for at, lost in places]
            self.sources = [blocks.vector_source_c(row.tolist(), False, 1, tags) for row in x]
            self.sink = SigmfSink(tmp_path, "rec", 2, rate_hz, min_free_bytes=0)
            for port, source in enumerate(self.sources):
                self.connect(source, (self.sink, port))

    recorder = Recorder()
    run_graph(recorder, (recorder.sink,))
    tb = Flowgraph(Recording.open(tmp_path / "rec.sigmf-meta"))
    run_graph(tb, (tb.source,))
    assert tb.samples().tobytes() == x.tobytes()
    assert tb.times(rate_hz) == [(at, start + at + lost) for at, lost in places]


def edited(recording: Recording, change) -> Recording:
    """The recording after a change of its metadata, as another program might have written it."""
    meta = json.loads(recording.meta_path.read_text())
    change(meta)
    recording.meta_path.write_text(json.dumps(meta))
    return Recording.open(recording.meta_path)


def test_recording_without_sample_count_runs_on_from_its_places(run_graph, tmp_path):
    recording = write(tmp_path, signal(1, 100), [(40, 15)])

    def strip(meta):
        meta["captures"] = [{"core:sample_start": 0, "core:frequency": 1e9}, {"core:sample_start": 40}]
        meta["annotations"] = []

    tb = Flowgraph(edited(recording, strip))
    run_graph(tb, (tb.source,))
    assert tb.times() == [(0, 0), (40, 40)]


def test_segment_without_device_time_runs_on_from_the_one_before(run_graph, tmp_path):
    recording = write(tmp_path, signal(1, 100), [(40, 15)], DeviceTime(2, 0, 2_000_000))

    def strip(meta):
        key = next(key for key in meta["captures"][1] if "device_time" in key)
        del meta["captures"][1][key]

    tb = Flowgraph(edited(recording, strip))
    run_graph(tb, (tb.source,))
    assert tb.times() == [(0, 4_000_000), (40, 4_000_055)]


@pytest.mark.parametrize(
    ("recorded", "told"),
    [
        ([1e9, 2.4e9, None], [1e9, 2.4e9, 1e9]),
        ([None, 2.4e9, 0.0], [0.0, 2.4e9, 0.0]),
        ([None, None, None], [0.0, 0.0, 0.0]),
    ],
)
def test_every_segment_tells_its_own_frequency(run_graph, tmp_path, recorded, told):
    recording = write(tmp_path, signal(2, 100), [(40, 15), (70, 1)])

    def retune(meta):
        for capture, frequency_hz in zip(meta["captures"], recorded, strict=True):
            capture.pop("core:frequency", None)
            if frequency_hz is not None:
                capture["core:frequency"] = frequency_hz

    tb = Flowgraph(edited(recording, retune))
    run_graph(tb, (tb.source,))
    for port in (0, 1):
        tags = [(at, value) for at, key, value in tb.tags(port) if key == "rx_freq"]
        assert tags == list(zip([0, 40, 70], told, strict=True))


def test_recording_cut_while_it_is_played_reaches_the_user(run_graph, tmp_path):
    recording = write(tmp_path, signal(1, 200_000))
    tb = Flowgraph(recording)
    with recording.data_path.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(Exception, match=r"(?i)cut|restore|sigmf-data"):
        run_graph(tb, (tb.source,))


def test_built_in_a_function_it_survives_garbage_collection(run_graph, tmp_path):
    def build() -> Flowgraph:
        return Flowgraph(write(tmp_path, signal(2, 1000)), 10)

    tb = build()
    gc.collect()
    run_graph(tb, (tb.source,))
    assert tb.samples().shape == (2, 1010)


# Policies


def rows(tags: list[tuple[int, str, object]], *keys: str) -> list[tuple[int, str, object]]:
    return [tag for tag in tags if tag[1] in keys]


def test_by_default_it_stops_before_the_first_gap_and_says_so(run_graph, tmp_path, caplog):
    x = signal(1, 1000)
    recording = write(tmp_path, x, [(400, 15)])
    tb = gr.top_block("test")
    source, sink = SigmfSource(recording, 50), blocks.vector_sink_c()
    tb.connect(source, sink)
    run_graph(tb, (source,))
    np.testing.assert_array_equal(sink.data(), np.concatenate([x[0, :400], np.zeros(50)]))
    tags = [(tag.offset, pmt.symbol_to_string(tag.key)) for tag in sink.tags()]
    assert sorted(tags) == [(0, "rx_freq"), (0, "rx_rate"), (0, "rx_time"), (400, "rx_end")]
    assert "rec: samples are missing before sample 400: from there on 600 samples are not played" in caplog.text


def test_it_is_silent_about_gaps_only_while_asked_to_be(tmp_path, caplog):
    recording = write(tmp_path, signal(1, 1000), [(400, 15)])
    with silence():
        SigmfSource(recording, 50)
    assert not caplog.text
    SigmfSource(recording, 50)
    assert "samples are missing" in caplog.text


@pytest.mark.parametrize(
    ("gaps", "length", "joints"),
    [("splice", 1000, [(400, 15), (700, 1)]), ("zero", 1016, [(400, 15), (715, 1)])],
)
def test_joints_are_marked_with_what_was_lost_there(run_graph, tmp_path, gaps, length, joints):
    tb = Flowgraph(write(tmp_path, signal(2, 1000), [(400, 15), (700, 1)]), gaps=gaps)
    run_graph(tb, (tb.source,))
    assert tb.samples().shape == (2, length)
    for port in (0, 1):
        assert [(at, lost) for at, key, lost in tb.tags(port) if key == "rx_gap"] == joints
    # To what reads times, nothing is missing.
    assert {ticks - at for at, ticks in tb.times()} == {0}


def test_every_turn_begins_with_its_number(run_graph, tmp_path):
    x = signal(2, 1000)
    recording = write(tmp_path, x, [(640, 15)], DeviceTime(7, 0, 2_000_000))
    tb = Flowgraph(recording, 10, channels=(1,), gaps="stop", turns=3, frame_samples=100, frame_start=20)
    run_graph(tb, (tb.source,), 333)
    assert tb.samples()[0, :1800].tobytes() == np.tile(x[1, 20:620], 3).tobytes()
    assert not tb.samples()[0, 1800:].any()
    assert rows(tb.tags(), "rx_begin") == [(0, "rx_begin", 0), (600, "rx_begin", 1), (1200, "rx_begin", 2)]
    assert tb.times() == [(600 * turn, 14_000_020 + 600 * turn) for turn in range(3)]
    assert tb.source.end_time_samples == 14_001_820


@pytest.mark.parametrize("options", [
    {"gaps": "stop"}, {"gaps": "splice", "channels": (1, 0)}, {"gaps": "zero"}, {"gaps": "as-recorded"},
    {"gaps": "splice", "turns": 3, "frame_samples": 700},
])  # fmt: skip
@pytest.mark.parametrize("rate_hz", [None, 1.28e6])
def test_the_same_settings_give_the_same_bits_at_every_pace(run_graph, tmp_path, options, rate_hz):
    recording = write(tmp_path, signal(2, 50_000), [(20_001, 777), (41_000, 3)], DeviceTime(1, 5, 2_000_000))
    seen = set()
    for most, buffer, speed in [(None, None, None), (1000, None, None), (None, 65536, 3.0), (17_000, 32768, None)]:
        tb = Flowgraph(recording, 300, rate_hz=rate_hz, speed=speed, **options)
        if buffer:
            tb.source.set_min_output_buffer(buffer)
        run_graph(tb, (tb.source,), most)
        seen.add((tb.samples().tobytes(), str(tb.tags(0)), str(tb.tags(1))))
    assert len(seen) == 1


def test_a_run_of_another_rate_tells_times_in_its_own_samples(run_graph, tmp_path):
    recording = write(tmp_path, signal(1, 9000), [(3000, 1000)], DeviceTime(2, 0, 2_000_000), frequency_hz=1e9)
    tb = Flowgraph(recording, 20, rate_hz=5e5)
    run_graph(tb, (tb.source,))
    assert tb.times(5e5) == [(0, 1_000_000), (750, 1_001_000)]
    assert {value for _, key, value in tb.tags() if key == "rx_rate"} == {5e5}
    assert {value for _, key, value in tb.tags() if key == "rx_freq"} == {1e9}
    assert rows(tb.tags(), "rx_end") == [(2250, "rx_end", True)]
    assert tb.samples().shape == (1, 2270)
    assert tb.source.end_time_samples == 1_002_500


# Pace


class Clock:
    """A clock that goes on only while somebody sleeps, or by what work took."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


def test_samples_go_out_when_they_are_due_and_never_before():
    clock = Clock()
    pace = Pace(1e6, clock, clock.sleep)
    done = 0
    while done < 100_000:
        granted = pace.grant(done, min(8192, 100_000 - done))
        assert 1 <= granted <= 8192
        done += granted
        # 1e-9 s: what sums of floating point seconds may be off.
        assert done <= (clock.now - 100.0) * 1e6 + 1e-3
        clock.now += 1e-4
    # 5 ms are let out at a time, so it ends at most that late.
    assert 0.1 <= clock.now - 100.0 < 0.1 + 5e-3 + 1e-3


def test_what_is_late_is_made_good_at_once():
    clock = Clock()
    pace = Pace(1e6, clock, clock.sleep)
    done = pace.grant(0, 1000)
    clock.now += 1.0
    assert pace.grant(done, 50_000) == 50_000
    assert clock.now == pytest.approx(101.0, abs=0.01)


def test_a_rate_below_one_step_still_gives_samples():
    clock = Clock()
    pace = Pace(10.0, clock, clock.sleep)
    assert pace.grant(0, 8192) == 1


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan"), float("inf")])
def test_speeds_that_cannot_be_are_refused(tmp_path, speed):
    with pytest.raises(ScenarioError, match="speed"):
        SigmfSource(write(tmp_path, signal(1, 10)), speed=speed)

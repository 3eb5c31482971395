"""Losses by the frame counter: found, counted, placed, and none where there are none."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from semair.captures.gaps import LossFinder, find_losses, mark_losses
from semair.captures.meta import load_json
from semair.captures.reader import Recording
from semair.captures.recover import recover
from semair.captures.verify import verify
from semair.captures.writer import RecordingWriter
from semair.errors import RecordingError

FRAME = 1000


@given(
    gaps=st.lists(st.tuples(st.integers(2, 6), st.integers(0, FRAME - 1), st.integers(20, 5 * FRAME)), max_size=8),
    jitter=st.integers(0, 2**32 - 1),
    drift_ppm=st.floats(-20, 20),
)
def test_every_loss_between_frames_is_found_and_counted(gaps, jitter, drift_ppm):
    """A stream of frames with pieces cut out, and the frames whose start survived, at jittered places."""
    rng = np.random.default_rng(jitter)
    cuts, at = [], 0
    for frames, offset, count in gaps:
        at += frames * FRAME + offset
        cuts.append((at, count))
        at += count
    n_frames = at // FRAME + 4
    heard = []
    for number in range(n_frames):
        sent = number * FRAME
        if any(begin <= sent < begin + count for begin, count in cuts):
            continue
        lost = sum(count for begin, count in cuts if begin + count <= sent)
        place = (sent - lost) * (1 + 1e-6 * drift_ppm) + rng.uniform(-1, 1)
        heard.append((number, place))
    losses = find_losses(heard, FRAME)
    assert sum(loss.lost_samples for loss in losses) == pytest.approx(sum(c for _, c in cuts), abs=3 * len(cuts) + 1)
    assert all(loss.earliest_start < loss.sample_start for loss in losses)
    assert len(losses) <= len(cuts)
    recorded = np.array([begin for begin, _ in cuts]) - np.cumsum([0, *(count for _, count in cuts)])[: len(cuts)]
    for begin in recorded:
        assert any(loss.earliest_start - 3 <= begin <= loss.sample_start + 3 for loss in losses)


@given(
    start=st.integers(0, 2**40),
    first=st.integers(0, 2**32 - 1),
    heard=st.lists(st.integers(1, 30), max_size=60),
    drift_ppm=st.floats(-40, 40),
)
def test_nothing_is_invented_where_frames_go_unheard_or_the_counter_begins_anew(start, first, heard, drift_ppm):
    numbers = np.cumsum([0, *heard])
    places = start + numbers * FRAME * (1 + 1e-6 * drift_ppm)
    frames = zip([int(n + first) % 2**32 for n in numbers], places.tolist(), strict=True)
    assert find_losses(frames, FRAME) == []


def test_a_transmitter_that_starts_again_is_no_loss():
    finder = LossFinder(FRAME)
    for number in range(5):
        assert finder.add(number, number * FRAME) is None
    assert finder.add(0, 7 * FRAME) is None
    assert finder.add(1, 8 * FRAME) is None
    assert finder.add(3, 9 * FRAME).lost_samples == FRAME
    finder.interrupt()
    assert finder.add(30, 10 * FRAME) is None


def open_writer(folder, **options):
    options = {"sample_rate_hz": 1e6, "min_free_bytes": 0, "chunk_bytes": 400, **options}
    return RecordingWriter(folder, "rec", n_channels=1, datatype="ci16_le", **options)


def expect_marked(recording: Recording) -> None:
    """A gap of the radio's at 300 (50 samples), and losses between 100 and 200 (7) and 500 and 600 (9)."""
    pairs = [(s.sample_start, s.global_index) for s in recording.segments]
    assert pairs == [(0, 0), (200, 207), (300, 357), (600, 666)]
    gaps = [(a.sample_start, a.sample_count, a.fields["lost_samples"]) for a in recording.annotations]
    assert gaps == [(100, 100, 7), (300, 0, 50), (500, 100, 9)]
    assert recording.global_fields["lost_samples"] == 66
    assert recording.annotations[0].fields["method"] == "frame-counter"


def test_losses_found_while_recording_become_segments_also_after_a_crash(tmp_path, grid_samples):
    samples = grid_samples(1, 1000)
    writer = open_writer(tmp_path)
    writer.write(samples[:, :300])
    writer.found_loss(200, 7, 100, "frame-counter")
    writer.gap(50)
    writer.write(samples[:, 300:])
    writer.found_loss(600, 9, 500, "frame-counter")
    for arguments in ((2000, 1, 0), (100, 1, 200), (100, 0, 50)):
        with pytest.raises(RecordingError, match="samples lost between"):
            writer.found_loss(*arguments, "frame-counter")
    assert writer.lost_samples == 66
    writer.annotate(0, 1, "end")
    partial, journal = (tmp_path / name for name in (".rec.sigmf-data.partial", ".rec.journal.jsonl"))
    while b'"end"' not in journal.read_bytes():
        pass
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    for path in (partial, journal):
        shutil.copy(path, crashed)
    writer.close()
    recording = Recording.open(tmp_path)
    expect_no_end(recording)
    assert {f.severity for f in verify(tmp_path)} == {"info"}
    (recovered,) = recover(crashed)
    expect_no_end(recovered)


def expect_no_end(recording: Recording) -> None:
    assert recording.annotations.pop(0).label == "end"
    expect_marked(recording)


def test_losses_found_later_are_marked_once_and_the_file_stays_whole(tmp_path, grid_samples):
    with open_writer(tmp_path) as writer:
        writer.write(grid_samples(1, 300))
        writer.gap(50)
        writer.write(grid_samples(1, 700))
    finder = LossFinder(100)
    found = [finder.add(*frame) for frame in ((1, 100), (2, 193), (3, 293))]
    assert [loss.lost_samples for loss in found if loss] == [7]
    losses = find_losses([(0, 100), (1, 200 - 7), (2, 293)], 100)
    assert mark_losses(writer.path, losses) == 1
    assert mark_losses(writer.path, losses) == 0
    recording = Recording.open(tmp_path)
    assert [(s.sample_start, s.global_index) for s in recording.segments] == [(0, 0), (193, 200), (300, 357)]
    assert recording.global_fields["lost_samples"] == 57
    assert {f.severity for f in verify(tmp_path)} == {"info"}


def test_recordings_of_others_can_be_marked(tmp_path):
    np.zeros(3000, np.int16).tofile(tmp_path / "x.sigmf-data")
    (tmp_path / "x.sigmf-meta").write_text(
        '{"global": {"core:datatype": "ci16_le", "core:version": "1.0.0"}, "captures": [{"core:sample_start": 0,'
        ' "core:datetime": "2020-01-01T00:00:00Z"}], "annotations": []}'
    )
    assert mark_losses(tmp_path / "x.sigmf-meta", find_losses([(0, 10), (3, 1010)], FRAME)) == 1
    recording = Recording.open(tmp_path)
    assert [(s.sample_start, s.global_index) for s in recording.segments] == [(0, 0), (1010, 3010)]
    assert "core:datetime" not in load_json(tmp_path / "x.sigmf-meta")["captures"][1]
    assert [f for f in verify(tmp_path) if f.severity == "error"] == []

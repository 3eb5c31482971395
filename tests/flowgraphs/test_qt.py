"""The activity map, and the flowgraph with live displays."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("gnuradio", reason="GNU Radio is not installed")
pytest.importorskip("PyQt5", reason="PyQt5 is not installed")
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from PyQt5 import QtGui, QtWidgets
from semair.blocks.activity_map import (
    CORRECT,
    DETECTED,
    FALSE,
    MISSED,
    SILENT,
    ActivityHistory,
    ActivityMap,
    ActivityMapWidget,
    summary,
    ticks,
)
from semair.blocks.messages import pack
from semair.flowgraphs import companion

LIMIT_S = 120


@pytest.fixture(scope="module")
def application() -> Any:
    return QtWidgets.QApplication.instance() or QtWidgets.QApplication([])


def test_history_against_a_table_of_all_frames(rng: np.random.Generator) -> None:
    """Random truths and decisions, some frames without truth, some without decision, over several wraps."""
    n_users, n_frames = 7, 10
    history = ActivityHistory(n_users, n_frames)
    columns: list[tuple[int, list[int]]] = []
    counts: Counter[int] = Counter()
    for frame in range(37):
        truth = rng.random(n_users) < 0.4 if rng.random() < 0.8 else None
        if truth is not None:
            history.add_truth(frame, np.flatnonzero(truth).tolist())
        if rng.random() < 0.1:
            continue
        detected = rng.random(n_users) < 0.4
        history.add_decision(frame, np.flatnonzero(detected).tolist())
        column = []
        for user in range(n_users):
            if truth is None:
                state = DETECTED if detected[user] else SILENT
            elif truth[user]:
                state = CORRECT if detected[user] else MISSED
            else:
                state = FALSE if detected[user] else SILENT
            column.append(state)
            counts[state] += 1
        columns.append((frame, column))
        view = history.view()
        shown = columns[-n_frames:]
        assert view.filled == len(shown)
        assert view.cells[:, n_frames - len(shown) :].T.tolist() == [column for _, column in shown]
        assert not view.cells[:, : n_frames - len(shown)].any()
        assert (view.first_frame, view.last_frame) == (shown[0][0], shown[-1][0])
        assert view.active == int(detected.sum())
        assert view.decided == len(columns)
        assert (view.missed, view.false_alarms) == (counts[MISSED], counts[FALSE])
        assert view.sent == counts[MISSED] + counts[CORRECT]
    assert view.judged < view.decided  # some frames had no truth


def test_history_is_whole_while_another_thread_writes() -> None:
    """Frame f shows exactly user f modulo the users: a torn view would show another, none or two."""
    n_users, n_frames, frames = 11, 16, 3000
    history = ActivityHistory(n_users, n_frames)

    def write() -> None:
        for frame in range(frames):
            history.add_truth(frame, [frame % n_users])
            history.add_decision(frame, [frame % n_users])

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while writer.is_alive() or history.view().decided > max(seen, default=0):
        view = history.view()
        seen.add(view.decided)
        for back in range(view.filled):
            column = view.cells[:, n_frames - 1 - back]
            assert np.flatnonzero(column).tolist() == [(view.last_frame - back) % n_users]
        assert view.judged == view.decided
    writer.join()
    assert max(seen) == frames


def test_history_refuses_users_it_has_no_row_for() -> None:
    history = ActivityHistory(4, 4)
    with pytest.raises(ValueError, match="n_users=4"):
        history.add_decision(0, [1, 4])
    with pytest.raises(ValueError, match="n_frames=0"):
        ActivityHistory(4, 0)


def test_truths_whose_decision_never_comes_do_not_pile_up() -> None:
    history = ActivityHistory(4, 4)
    for frame in range(20000):
        history.add_truth(frame, [1])
    history.add_decision(0, [1])
    assert history.view().judged == 0  # long forgotten
    history.add_decision(19999, [1])
    assert history.view().judged == 1


@given(first=st.integers(0, 10**9), length=st.integers(0, 10**6), most=st.integers(1, 40))
@settings(deadline=None)
def test_ticks_are_round_few_and_inside(first: int, length: int, most: int) -> None:
    places = ticks(first, first + length, most)
    assert len(places) <= most + 1
    assert all(first <= place <= first + length for place in places)
    if len(places) > 1:
        step = places[1] - places[0]
        assert set(np.diff(places)) == {step}
        assert all(place % step == 0 for place in places)
        assert int(str(step)[0]) in (1, 2, 5)
        assert not str(step)[1:].strip("0")
        # One step finer would be too many.
        finer = step * 2 // 5 if str(step)[0] == "5" else step // 2
        assert step == 1 or length > most * finer
    if length >= 10**6 and most >= 10:
        assert places


def colours(widget: QtWidgets.QWidget) -> Counter[str]:
    """Number of pixels of each colour that a widget shows."""
    image = widget.grab().toImage().convertToFormat(QtGui.QImage.Format_RGB32)
    data = image.constBits().asstring(image.byteCount())
    pixels = np.frombuffer(data, "<u4").reshape(image.height(), -1)[:, : image.width()] & 0xFFFFFF
    values, counts = np.unique(pixels, return_counts=True)
    return Counter({f"#{value:06x}": int(count) for value, count in zip(values, counts, strict=True)})


def test_the_picture_shows_the_cells_to_scale(application: Any) -> None:
    """16 users x 20 frames; of 320 cells 160 are correct, 80 missed and 40 false."""
    history = ActivityHistory(16, 20)
    for frame in range(20):
        history.add_truth(frame, range(12))
        history.add_decision(frame, [*range(8), 14, 15])
    widget = ActivityMapWidget(history, "Activity")
    widget.resize(900, 500)
    seen = colours(widget)
    correct, missed, false = (seen[c] for c in ("#1f5fa8", "#e4572e", "#f2b134"))
    # The legend adds one small square of each colour.
    assert correct > 900 * 500 / 4
    assert missed == pytest.approx(correct / 2, rel=0.02)
    assert false == pytest.approx(correct / 4, rel=0.04)


def test_the_picture_without_truth_shows_only_detections(application: Any) -> None:
    history = ActivityHistory(16, 20)
    widget = ActivityMapWidget(history, "Activity")
    widget.resize(900, 500)
    assert "#e4572e" not in colours(widget)
    assert summary(history.view()) == "no frame yet"
    history.add_decision(5, [0, 3])
    seen = colours(widget)
    assert seen["#1f5fa8"] > 500
    assert "#e4572e" not in seen
    assert "#f2b134" not in seen
    assert summary(history.view()) == "frame 5: 2 active"


def test_the_smallest_window_is_drawn(application: Any) -> None:
    history = ActivityHistory(128, 200)
    history.add_decision(0, [1])
    widget = ActivityMapWidget(history, "Activity")
    for width, height in ((320, 200), (1, 1)):
        widget.setMinimumSize(1, 1)
        widget.resize(width, height)
        assert colours(widget).total() == width * height


def test_the_block_reads_the_messages_of_detector_and_transmitter(application: Any) -> None:
    block = ActivityMap(8, 10)
    block.handle_truth(pack({"frame": 3, "start": 0, "length": 8, "users": [1, 2]}))
    block.handle_decision(pack({"frame": 3, "users": [2, 5], "scores": np.zeros(8)}))
    view = block.history.view()
    assert view.cells[:, -1].tolist() == [0, MISSED, CORRECT, 0, 0, FALSE, 0, 0]
    assert summary(view) == "frame 3: 2 active | missed 1 of 2, false alarms 1"
    assert block.failure is None
    block.handle_decision(pack({"frame": 4, "users": [8]}))
    assert "n_users=8" in str(block.failure)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The flowgraph with displays, compiled by grcc."""
    grc = companion.shipped_flowgraphs()["random_access_qt"]
    return companion.compile_flowgraph(grc, tmp_path_factory.mktemp("qt"))


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "QT_QPA_PLATFORM": "offscreen"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


@pytest.mark.slow
def test_the_program_runs_to_its_end(program: Path, tmp_path: Path) -> None:
    done = run(tmp_path, str(program), "--n-frames", "20", "--close-at-end", "1")
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr


SEEN = """
import sys
from PyQt5 import Qt
from random_access_qt import random_access_qt, snippets_main_after_start

application = Qt.QApplication(sys.argv)
window = random_access_qt(n_frames=30, close_at_end=0)
window.resize(1200, 900)
window.show()
window.start()
ended = []
from semair.flowgraphs.grc_support import guard
guard(window, lambda: ended.append(True))
timer = Qt.QTimer()
timer.timeout.connect(lambda: application.quit() if ended else None)
timer.start(100)
application.exec_()
for _ in range(20):
    application.processEvents()
    Qt.QThread.msleep(20)
window.grab().save("window.png")
window.activity_map.widget.grab().save("map.png")
view = window.activity_map.history.view()
print(view.decided, view.judged, view.last_frame)
window.close()
"""


@pytest.mark.slow
def test_the_window_shows_decisions_beside_the_truth(program: Path, tmp_path: Path) -> None:
    script = program.parent / "seen.py"
    script.write_text(SEEN)
    done = run(tmp_path, str(script))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-3:] == ["30", "30", "29"]
    window, activity = (QtGui.QImage(str(tmp_path / f"{name}.png")) for name in ("window", "map"))
    assert (window.width(), window.height()) == (1200, 900)
    # The map has its share of the window: all of its width, about four ninths of its height.
    assert activity.width() > 0.9 * window.width()
    assert activity.height() > 0.3 * window.height()

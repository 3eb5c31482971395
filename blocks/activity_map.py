"""GNU Radio block: draws which users were active, frame by frame, in a Qt window."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import SetupError
from .messages import unpack
from .runtime import Failsafe, gr, guarded, pmt

try:
    from PyQt5 import QtCore, QtGui, QtWidgets
except ImportError as missing:
    raise SetupError(
        f"the activity map draws with Qt, and PyQt5 cannot be imported ({missing}); "
        "install it with `apt install python3-pyqt5`"
    ) from missing

SILENT, DETECTED, CORRECT, MISSED, FALSE = range(5)
"""What a cell of the map says. DETECTED is for decisions whose truth is not known."""

_COLOURS = ("#f4f5f7", "#1f5fa8", "#1f5fa8", "#e4572e", "#f2b134")
_LEGEND = {DETECTED: "detected", CORRECT: "detected", MISSED: "missed", FALSE: "false alarm"}
_REFRESH_MS = 100
_WAITING_TRUTHS = 4096


@dataclass(frozen=True)
class ActivityView:
    """What the map shows at one moment.

    Attributes:
        cells: uint8, (users, frames), SILENT to FALSE; the newest frame is the last column.
        first_frame: number of the frame in the first column that is filled; -1 without one.
        last_frame: number of the newest frame; -1 without one.
        filled: columns that hold a frame; they are the last ones.
        active: users detected in the newest frame.
        missed: missed users over all frames whose truth was known.
        false_alarms: users detected wrongly over these frames.
        sent: active users in these frames.
        judged: decisions whose truth was known.
        decided: decisions so far.
    """

    cells: np.ndarray
    first_frame: int
    last_frame: int
    filled: int
    active: int
    missed: int
    false_alarms: int
    sent: int
    judged: int
    decided: int


class ActivityHistory:
    """The last frames' decisions beside the truth, written by one thread and read by another.

    Args:
        n_users: rows.
        n_frames: columns.
    """

    def __init__(self, n_users: int, n_frames: int) -> None:
        for name, value in (("n_users", n_users), ("n_frames", n_frames)):
            if value < 1:
                raise ValueError(f"{name}={value}: allowed 1 or more")
        self.n_users = n_users
        self.n_frames = n_frames
        self._lock = threading.Lock()
        self._cells = np.zeros((n_users, n_frames), np.uint8)
        self._numbers = np.full(n_frames, -1)
        self._truths: OrderedDict[int, np.ndarray] = OrderedDict()
        self._decided = 0
        self._active = 0
        self._missed = self._false_alarms = self._sent = self._judged = 0

    def add_truth(self, frame: int, users: Sequence[int]) -> None:
        """Note who sends in a frame; it counts when the frame's decision comes."""
        with self._lock:
            self._truths[frame] = self._mask(users)
            while len(self._truths) > _WAITING_TRUTHS:
                self._truths.popitem(last=False)

    def add_decision(self, frame: int, users: Sequence[int]) -> None:
        """Add a frame's column at the end of the map."""
        detected = self._mask(users)
        with self._lock:
            truth = self._truths.pop(frame, None)
            if truth is None:
                column = np.where(detected, DETECTED, SILENT)
            else:
                column = np.select(
                    [detected & truth, ~detected & truth, detected & ~truth], [CORRECT, MISSED, FALSE], SILENT
                )
                self._missed += int(np.count_nonzero(column == MISSED))
                self._false_alarms += int(np.count_nonzero(column == FALSE))
                self._sent += int(np.count_nonzero(truth))
                self._judged += 1
            place = self._decided % self.n_frames
            self._cells[:, place] = column
            self._numbers[place] = frame
            self._active = int(np.count_nonzero(detected))
            self._decided += 1

    def view(self) -> ActivityView:
        """A copy of the map as it stands."""
        with self._lock:
            shift = -(self._decided % self.n_frames)
            filled = min(self._decided, self.n_frames)
            numbers = np.roll(self._numbers, shift)
            return ActivityView(
                np.roll(self._cells, shift, axis=1),
                int(numbers[-filled]) if filled else -1,
                int(numbers[-1]) if filled else -1,
                filled,
                self._active,
                self._missed,
                self._false_alarms,
                self._sent,
                self._judged,
                self._decided,
            )

    def _mask(self, users: Sequence[int]) -> np.ndarray:
        mask = np.zeros(self.n_users, bool)
        places = np.asarray(users, int)
        if places.size and (places.min() < 0 or places.max() >= self.n_users):
            raise ValueError(
                f"users {places.min()} to {places.max()} came in, but the map has n_users={self.n_users} rows; "
                "set it to the number of users"
            )
        mask[places] = True
        return mask


class ActivityMapWidget(QtWidgets.QWidget):
    """Draws an ActivityHistory, ten times a second when it changed. Lives in the thread of the window.

    Args:
        history: what to draw.
        title: heading.
    """

    def __init__(self, history: ActivityHistory, title: str) -> None:
        super().__init__()
        self.history = history
        self.title = title
        self._drawn = -1
        self.setMinimumSize(320, 200)
        self.setSizePolicy(QtWidgets.QSizePolicy.Expanding, QtWidgets.QSizePolicy.Expanding)
        self._timer = QtCore.QTimer(self)
        self._timer.timeout.connect(self._refresh)
        self._timer.start(_REFRESH_MS)

    def sizeHint(self) -> QtCore.QSize:  # noqa: N802 (name of Qt)
        """Size to begin with."""
        return QtCore.QSize(900, 300)

    def _refresh(self) -> None:
        decided = self.history.view().decided
        if decided != self._drawn:
            self._drawn = decided
            self.update()

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:  # noqa: N802 (name of Qt)
        """Draw heading, legend, axes and cells."""
        view = self.history.view()
        painter = QtGui.QPainter(self)
        painter.fillRect(self.rect(), QtGui.QColor("white"))
        metrics = painter.fontMetrics()
        line = metrics.height()
        left = metrics.horizontalAdvance("0000") + line + 12
        plot = QtCore.QRect(left, 2 * line, max(self.width() - left - line, 1), max(self.height() - 5 * line, 1))
        painter.drawImage(plot, _image(view.cells))
        painter.setPen(QtGui.QColor("#555555"))
        painter.drawRect(plot.adjusted(-1, -1, 0, 0))
        self._axes(painter, plot, view, line)
        self._heading(painter, plot, view, line)

    def _axes(self, painter: QtGui.QPainter, plot: QtCore.QRect, view: ActivityView, line: int) -> None:
        align = QtCore.Qt.AlignmentFlag.AlignRight | QtCore.Qt.AlignmentFlag.AlignVCenter
        for user in ticks(0, self.history.n_users - 1, max(plot.height() // (3 * line), 1)):
            y = plot.top() + round((user + 0.5) * plot.height() / self.history.n_users)
            painter.drawLine(plot.left() - 5, y, plot.left() - 2, y)
            painter.drawText(QtCore.QRect(0, y - line, plot.left() - 8, 2 * line), align, str(user))
        painter.save()
        painter.translate(line, plot.center().y())
        painter.rotate(-90)
        painter.drawText(
            QtCore.QRect(-plot.height() // 2, -line, plot.height(), line), QtCore.Qt.AlignmentFlag.AlignCenter, "user"
        )
        painter.restore()
        width = plot.width() / self.history.n_frames
        if view.filled:
            for frame in ticks(view.first_frame, view.last_frame, max(plot.width() // (12 * line), 1)):
                column = self.history.n_frames - 1 - (view.last_frame - frame)
                x = plot.left() + round((column + 0.5) * width)
                if plot.left() <= x <= plot.right():
                    painter.drawLine(x, plot.bottom() + 2, x, plot.bottom() + 5)
                    box = QtCore.QRect(x - 4 * line, plot.bottom() + 6, 8 * line, line)
                    painter.drawText(box, QtCore.Qt.AlignmentFlag.AlignCenter, str(frame))
        below = QtCore.QRect(plot.left(), plot.bottom() + line + 8, plot.width(), line + 2)
        painter.drawText(below, QtCore.Qt.AlignmentFlag.AlignCenter, "frame")

    def _heading(self, painter: QtGui.QPainter, plot: QtCore.QRect, view: ActivityView, line: int) -> None:
        shown = (CORRECT, MISSED, FALSE) if view.judged else (DETECTED,)
        x, y = plot.left(), line // 2
        painter.setPen(QtGui.QColor("black"))
        font = painter.font()
        font.setBold(True)
        painter.setFont(font)
        painter.drawText(QtCore.QPoint(x, y + line - 4), self.title)
        x += painter.fontMetrics().horizontalAdvance(self.title) + 2 * line
        font.setBold(False)
        painter.setFont(font)
        for state in shown:
            painter.fillRect(x, y + 2, line - 6, line - 6, QtGui.QColor(_COLOURS[state]))
            painter.drawText(QtCore.QPoint(x + line, y + line - 4), _LEGEND[state])
            x += painter.fontMetrics().horizontalAdvance(_LEGEND[state]) + 2 * line
        box = QtCore.QRect(x, y - 2, plot.right() - x, line)
        painter.drawText(box, QtCore.Qt.AlignmentFlag.AlignRight | QtCore.Qt.AlignmentFlag.AlignVCenter, summary(view))


class ActivityMap(Failsafe, gr.basic_block):
    """Shows who was active, users over frames, in a Qt widget.

    Message in `decisions`: of the activity detector; each adds a column. Message in `truth`: of the user
    transmitter, where there is one; then missed users and false alarms have colours of their own. The widget is
    `widget`; the block must be made in the thread of the Qt application.

    Args:
        n_users: rows of the map.
        shown_frames: columns of the map.
        title: heading.
    """

    def __init__(self, n_users: int, shown_frames: int = 200, title: str = "Activity") -> None:
        gr.basic_block.__init__(self, name="semair activity map", in_sig=None, out_sig=None)
        self.history = ActivityHistory(n_users, shown_frames)
        self.widget = ActivityMapWidget(self.history, title)
        self.message_port_register_in(pmt.intern("decisions"))
        self.message_port_register_in(pmt.intern("truth"))
        self.set_msg_handler(pmt.intern("decisions"), self.handle_decision)
        self.set_msg_handler(pmt.intern("truth"), self.handle_truth)

    @guarded
    def handle_decision(self, message: Any) -> None:
        """Add a column."""
        fields, _ = unpack(message)
        self.history.add_decision(fields["frame"], fields["users"])

    @guarded
    def handle_truth(self, message: Any) -> None:
        """Note who sends."""
        fields, _ = unpack(message)
        self.history.add_truth(fields["frame"], fields["users"])


def summary(view: ActivityView) -> str:
    """The counts of a map in words."""
    if not view.decided:
        return "no frame yet"
    text = f"frame {view.last_frame}: {view.active} active"
    if view.judged:
        text += f" | missed {view.missed} of {view.sent}, false alarms {view.false_alarms}"
    return text


def ticks(first: int, last: int, most: int) -> list[int]:
    """Round numbers from first to last, at most about `most` of them, in steps of 1, 2 or 5 times a power of ten."""
    steps = (factor * 10**power for power in range(18) for factor in (1, 2, 5))
    step = next(step for step in steps if last - first <= most * step)
    return list(range(-(-first // step) * step, last + 1, step))


def _image(cells: np.ndarray) -> QtGui.QImage:
    """Cells as a picture of one pixel each; it keeps its own copy of the data."""
    rows, columns = cells.shape
    data = np.ascontiguousarray(cells)
    image = QtGui.QImage(data.tobytes(), columns, rows, columns, QtGui.QImage.Format_Indexed8)
    image.setColorTable([QtGui.QColor(colour).rgb() for colour in _COLOURS])
    return image.copy()

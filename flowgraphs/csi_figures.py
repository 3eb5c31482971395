"""Figure of an evaluation of CSI feedback, from the plain values of its JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..errors import StorageError
from ..models.cards import write_atomically
from .plots import DASHES, INK, LINE, MARKERS, SERIES, SOFT
from .uad_figures import png

JSON_NAME = "evaluation.json"
FIGURE_NAME = "nmse.png"

_AXES = {
    "ratio": ("ratio", "compression ratio 1 / x"),
    "snr": ("snr_db", "SNR of a received symbol in dB"),
    "spacing": ("spacing_m", "distance between users in m"),
    "neighbour": ("neighbour", "other user"),
}
_STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}

Rows = Sequence[Mapping[str, Any]]


def write_evaluation(results: Mapping[str, Any], folder: Path, figures: bool = True) -> None:
    """Write an evaluation into a folder: JSON, and one figure with a panel for each sweep.

    Args:
        results: as `models.csi.evaluate.as_json` gives it; sweeps may be missing or incomplete.
        folder: made if it is not there.
        figures: whether to draw, or to write the JSON alone.

    Raises:
        StorageError: the folder cannot be written.
    """
    files = {JSON_NAME: (json.dumps(results, indent=1, allow_nan=False) + "\n").encode()}
    if figures and any(results["sweeps"].values()):
        files[FIGURE_NAME] = png(nmse_figure(results["sweeps"]))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            write_atomically(folder / name, data)
    except OSError as error:
        raise StorageError(f"cannot write the evaluation into {folder}: {error.strerror}") from error


def nmse_figure(sweeps: Mapping[str, Rows]) -> Figure:
    """NMSE in dB with 95 % intervals over what each sweep varies; one panel per sweep."""
    there = {name: rows for name, rows in sweeps.items() if rows}
    names = list(dict.fromkeys(row["contender"] for rows in there.values() for row in rows))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(3.4 * len(there) + 4.0, 4.2), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(there), sharey=True, squeeze=False)[0]
        handles: dict[str, Any] = {}
        for axes, (sweep, rows) in zip(panels, there.items(), strict=True):
            _draw(axes, sweep, rows, names, handles)
        panels[0].set_ylabel("NMSE in dB")
        figure.legend(list(handles.values()), list(handles), loc="outside right upper")
        return figure


def table(sweep: str, rows: Rows) -> list[list[str]]:
    """NMSE in dB as text: one row for each contender, one column for each point; header first."""
    points = _points(sweep, rows)
    lines = [["contender", *points]]
    for name in dict.fromkeys(row["contender"] for row in rows):
        found = {_label(sweep, row): row["nmse_db"][0] for row in rows if row["contender"] == name}
        lines.append([name, *(f"{found[point]:.2f}" if point in found else "" for point in points)])
    return lines


def _draw(axes: Axes, sweep: str, rows: Rows, names: Sequence[str], handles: dict[str, Any]) -> None:
    points = _points(sweep, rows)
    for k, name in enumerate(names):
        mine = [row for row in rows if row["contender"] == name]
        if not mine:
            continue
        x = [points.index(_label(sweep, row)) for row in mine]
        value, low, high = np.array([row["nmse_db"] for row in mine]).T
        handles[name] = axes.errorbar(
            x,
            value,
            yerr=[np.maximum(value - low, 0), np.maximum(high - value, 0)],
            color=SERIES[k % len(SERIES)],
            marker=MARKERS[k % len(MARKERS)],
            linestyle=DASHES[k // len(SERIES) % len(DASHES)],
            markersize=5,
            capsize=2.5,
            elinewidth=1,
        )
    axes.set_xticks(range(len(points)))
    axes.set_xticklabels(points)
    axes.set_xlabel(_AXES[sweep][1])


def _points(sweep: str, rows: Rows) -> list[str]:
    return list(dict.fromkeys(_label(sweep, row) for row in rows))


def _label(sweep: str, row: Mapping[str, Any]) -> str:
    value = row["condition"][_AXES[sweep][0]]
    if isinstance(value, list | tuple):
        low, high = value
        return f"{low:g}" if low == high else f"{low:g}-{high:g}"
    return value if isinstance(value, str) else f"{value:g}"

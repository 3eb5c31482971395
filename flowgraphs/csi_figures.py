"""Figures of an evaluation of CSI feedback, from the plain values of its JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..errors import StorageError
from ..models.cards import write_atomically
from .plots import DASHES, INK, LINE, SERIES, SOFT
from .uad_figures import png

JSON_NAME = "evaluation.json"
FIGURE_NAME = "nmse.png"
RATE_FIGURE_NAME = "sum-rate.png"

_AXES = {
    "ratio": ("ratio", "compression ratio"),
    "snr": ("snr_db", "SNR of a received symbol in dB"),
    "spacing": ("spacing_m", "distance between users in m"),
    "neighbour": ("neighbour", "other user"),
}
_NMSE_LABEL = "NMSE in dB"
_TITLES = {
    "rca": "SA-RCA-MUNet",
    "rca-token": "SA-RCA-MUNet, cut of tokens",
    "ca": "SA-CA-MUNet",
    "vanilla": "vanilla Transformer",
    "sum": "Distributed DeepCMC",
    "csinet": "ADJSCC-CSINet+",
    "alone": "ours without neighbours",
    "klt": "linear code",
    "separate": "separate coding, best rate",
    "separate-fixed": "separate coding, fixed rate",
}
# Ours in ink, the others in colours, codes that are not learned broken.
_OURS: dict[str, Any] = {"color": INK, "marker": "o", "linestyle": "-", "linewidth": 2.2, "zorder": 4}
_FIXED_STYLES: dict[str, dict[str, Any]] = {
    "klt": {"color": SOFT, "marker": "x", "linestyle": ":", "linewidth": 1.4},
    "separate": {"color": "#d55e00", "marker": "s", "linestyle": "--", "linewidth": 1.6},
    "separate-fixed": {"color": "#b8860b", "marker": "v", "linestyle": "-.", "linewidth": 1.6},
}
_COLOURS = tuple(colour for colour in SERIES if colour not in ("#d55e00", "#b8860b", "#666f78"))
_LEARNED_MARKERS = ("^", "D", "P", "X", "h", "<", ">", "p")
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
Styles = Mapping[str, Mapping[str, Any]]


def write_evaluation(results: Mapping[str, Any], folder: Path, figures: bool = True) -> None:
    """Write an evaluation into a folder: JSON, and figures of NMSE and of sum rate with a panel for each sweep.

    Args:
        results: as `models.csi.evaluate.as_json` gives it; sweeps may be missing or incomplete.
        folder: made if it is not there.
        figures: whether to draw, or to write the JSON alone.

    Raises:
        StorageError: the folder cannot be written.
    """
    files = {JSON_NAME: (json.dumps(results, indent=1, allow_nan=False) + "\n").encode()}
    sweeps, numerology = results["sweeps"], results.get("settings", {}).get("numerology", "")
    if figures and any(sweeps.values()):
        files[FIGURE_NAME] = png(nmse_figure(sweeps, numerology))
        if any(row["sum_rate"] for rows in sweeps.values() for row in rows):
            files[RATE_FIGURE_NAME] = png(rate_figure(sweeps, numerology))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            write_atomically(folder / name, data)
    except OSError as error:
        raise StorageError(f"cannot write the evaluation into {folder}: {error.strerror}") from error


def nmse_figure(sweeps: Mapping[str, Rows], numerology: str = "") -> Figure:
    """NMSE in dB with 95 % intervals over what each sweep varies, and the share of users of whom nothing came.

    Args:
        sweeps: as `models.csi.evaluate.as_json` gives them.
        numerology: name of the weights that are ours.
    """
    there = {name: rows for name, rows in sweeps.items() if rows}
    losing = any(row["lost"] > 0 for rows in there.values() for row in rows)
    with mpl.rc_context(_STYLE):
        figure, panels = _panels(there, (4.0, 1.3) if losing else (4.0,))
        styles, handles = _styles(there, numerology), dict[str, Any]()
        for column, (sweep, rows) in enumerate(there.items()):
            _draw(panels[0][column], sweep, rows, styles, handles, lambda row: row["nmse_db"])
            if losing:
                # Where nothing is lost no line says anything.
                lossy = {name for name in styles if any(row["lost"] > 0 for row in rows if row["contender"] == name)}
                some = [row for row in rows if row["contender"] in lossy]
                _draw(panels[1][column], sweep, some or rows[:0], styles, {}, lambda row: [100 * row["lost"]] * 3, rows)
                panels[1][column].set_ylim(-5, 105)
                panels[0][column].tick_params(labelbottom=False)
            panels[-1][column].set_xlabel(_AXES[sweep][1])
        panels[0][0].set_ylabel(_NMSE_LABEL)
        if losing:
            panels[1][0].set_ylabel("nothing\nrecovered, %")
        _legend(figure, handles, numerology)
        return figure


def rate_figure(sweeps: Mapping[str, Rows], numerology: str = "") -> Figure:
    """Share of the sum rate that regularised zero forcing reaches with perfect CSI, over what each sweep varies.

    Args:
        sweeps: as `models.csi.evaluate.as_json` gives them.
        numerology: name of the weights that are ours.
    """
    # A missing neighbour leaves one user, and no sum.
    there = {name: [row for row in rows if row["sum_rate"]] for name, rows in sweeps.items() if name != "neighbour"}
    there = {name: rows for name, rows in there.items() if rows}
    if not there:
        there = {name: [row for row in rows if row["sum_rate"]] for name, rows in sweeps.items()}
    with mpl.rc_context(_STYLE):
        figure, panels = _panels(there, (4.0,))
        styles, handles = _styles(sweeps, numerology), dict[str, Any]()
        for axes, (sweep, rows) in zip(panels[0], there.items(), strict=True):
            _draw(axes, sweep, rows, styles, handles, lambda row: row["sum_rate"])
            perfect = axes.axhline(1.0, color=SOFT, linewidth=1.2)
            axes.set_ylim(bottom=0, top=1.05)
            axes.set_xlabel(_AXES[sweep][1])
        panels[0][0].set_ylabel("sum rate over that with perfect CSI")
        _legend(figure, {**handles, "perfect CSI": perfect}, numerology)
        return figure


def table(sweep: str, rows: Rows) -> list[list[str]]:
    """NMSE in dB as text: one row for each contender, one column for each point; header first."""
    points = _points(sweep, rows)
    lines = [["contender", *points]]
    for name in dict.fromkeys(row["contender"] for row in rows):
        found = {_label(sweep, row): row["nmse_db"][0] for row in rows if row["contender"] == name}
        lines.append([name, *(f"{found[point]:.2f}" if point in found else "" for point in points)])
    return lines


def title(name: str, numerology: str = "") -> str:
    """What a contender is called in a legend."""
    if name == numerology:
        return f"ours ({name})"
    known = _TITLES.get(name.removeprefix(f"{numerology}-"))
    return known or Path(name).name


def _panels(there: Mapping[str, Rows], heights: Sequence[float]) -> tuple[Figure, Any]:
    figure = Figure(figsize=(3.3 * len(there) + 2.6, sum(heights) + 0.5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(
        len(heights), len(there), sharex="col", sharey="row", squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    return figure, panels


def _legend(figure: Figure, handles: Mapping[str, Any], numerology: str) -> None:
    labels = [title(name, numerology) for name in handles]
    figure.legend(list(handles.values()), labels, loc="outside right upper")


def _styles(sweeps: Mapping[str, Rows], numerology: str) -> dict[str, dict[str, Any]]:
    """A line style for each contender, in their order."""
    names = list(dict.fromkeys(row["contender"] for rows in sweeps.values() for row in rows))
    found, learned = dict[str, dict[str, Any]](), 0
    for name in names:
        if name == numerology:
            found[name] = _OURS
        elif name in _FIXED_STYLES:
            found[name] = _FIXED_STYLES[name]
        else:
            found[name] = {
                "color": _COLOURS[learned % len(_COLOURS)],
                "marker": _LEARNED_MARKERS[learned % len(_LEARNED_MARKERS)],
                "linestyle": DASHES[learned // len(_COLOURS) % len(DASHES)],
                "linewidth": 1.4,
            }
            learned += 1
    return found


def _draw(
    axes: Axes,
    sweep: str,
    rows: Rows,
    styles: Styles,
    handles: dict[str, Any],
    value_of: Callable[[Mapping[str, Any]], Sequence[float]],
    all_rows: Rows | None = None,
) -> None:
    points = _points(sweep, all_rows or rows)
    for name, style in styles.items():
        mine = [row for row in rows if row["contender"] == name]
        # At one SNR the fixed rate is the best one, and only hides it.
        if not mine or (name == "separate-fixed" and sweep != "snr" and "separate" in styles):
            continue
        x = [points.index(_label(sweep, row)) for row in mine]
        value, low, high = np.array([value_of(row) for row in mine]).T
        drawn = axes.errorbar(
            x,
            value,
            yerr=[np.maximum(value - low, 0), np.maximum(high - value, 0)],
            markersize=5,
            capsize=2.5,
            elinewidth=1,
            **(style if len(points) > 2 or sweep == "ratio" else {**style, "linestyle": "none"}),
        )
        # The first panel has lines.
        handles.setdefault(name, drawn)
    axes.set_xticks(range(len(points)))
    axes.set_xticklabels(points)
    axes.margins(x=0.06 if len(points) > 2 else 0.5)


def _points(sweep: str, rows: Rows) -> list[str]:
    return list(dict.fromkeys(_label(sweep, row) for row in rows))


def _label(sweep: str, row: Mapping[str, Any]) -> str:
    value = row["condition"][_AXES[sweep][0]]
    if sweep == "ratio":
        return f"1/{value}"
    if isinstance(value, list | tuple):
        low, high = value
        return f"{low:g}" if low == high else f"{low:g}-{high:g}"
    return value if isinstance(value, str) else f"{value:g}"

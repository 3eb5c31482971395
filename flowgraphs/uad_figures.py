"""Figures and page of an evaluation of activity detectors, from the plain values of its JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ..errors import StorageError
from ..models.cards import write_atomically
from .plots import DASHES, INK, LINE, MARKERS, SERIES, SOFT

JSON_NAME = "evaluation.json"
PAGE_NAME = "evaluation.html"
FIGURE_NAME = "error-over-length.png"

_AXES = {
    "length": "preamble length in symbols",
    "n_snapshots": "snapshots (antennas)",
    "activity": "probability that a user is active",
    "snr_db": "total received SNR in dB",
    "fresh_pool": "preambles",
}
_TITLES = {
    "length": ("length", "Error probability over preamble length"),
    "snapshots": ("n_snapshots", "Error probability over the number of snapshots"),
    "activity": ("activity", "Error probability over activity"),
    "snr": ("snr_db", "Error probability over SNR"),
    "channel": ("length", "Error probability on correlated channels"),
    "pool": ("fresh_pool", "Pool of preambles: known from training, or fresh"),
}
_CHANNELS = {"rayleigh": "i.i.d. Rayleigh", "array": "8x8 array, clustered", "lab": "lab, 4 antennas x 16 groups"}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "semair",
    "font.size": 9.5,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}

Rows = Sequence[Mapping[str, Any]]


def write_evaluation(results: Mapping[str, Any], folder: Path, figures: bool = True) -> None:
    """Write an evaluation into a folder: JSON, and the page with all figures and the paper's figure as PNG.

    Args:
        results: as `sweeps.as_json` gives it; sweeps may be missing or incomplete.
        folder: made if it is not there.
        figures: whether to draw, or to write the JSON alone.

    Raises:
        StorageError: the folder cannot be written.
    """
    files = {JSON_NAME: (json.dumps(results, indent=1, allow_nan=False) + "\n").encode()}
    if figures:
        files[PAGE_NAME] = page(results).encode()
        if results["sweeps"].get("length"):
            files[FIGURE_NAME] = png(error_figure("length", results["sweeps"]["length"]))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            write_atomically(folder / name, data)
    except OSError as error:
        raise StorageError(f"cannot write the evaluation into {folder}: {error.strerror}") from error


def page(results: Mapping[str, Any]) -> str:
    """One HTML page with everything inside."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    sections = []
    for name, rows in results["sweeps"].items():
        if not rows:
            continue
        figures = [svg(error_figure(name, rows))]
        if any(row["curve"] for row in rows):
            figures.append(svg(trade_off_figure(rows)))
        sections.append({"title": _TITLES[name][1], "figures": figures, "table": table(name, rows)})
    template = environment.get_template("uad_evaluation.html.j2")
    return template.render(sections=sections, settings=results["settings"])


def error_figure(sweep: str, rows: Rows) -> Figure:
    """Error probability with 95 % intervals over what a sweep varies, logarithmic; one panel for each other condition.

    Where no error was seen, the upper end of the interval stands with an arrow.
    """
    axis = _TITLES[sweep][0]
    panels = _panels(rows, axis)
    names = _detectors(rows)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10, 5.6 if len(panels) == 1 else 5.0), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        lows = [row["error"][0] or row["error"][2] for row in rows]
        all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, members) in zip(all_axes, panels.items(), strict=True):
            for k, name in enumerate(names):
                _draw_curve(axes, [row for row in members if row["detector"] == name], axis, k, name)
            axes.set_yscale("log")
            axes.set_ylim(min(lows) / 2, 1.2 * max(row["error"][2] for row in rows))
            axes.set_xlabel(_AXES[axis])
            if title:
                axes.set_title(title, loc="left")
            ticks = sorted({row["condition"][axis] for row in members})
            if axis == "n_snapshots":
                axes.set_xscale("log", base=2)
            axes.set_xticks([float(tick) for tick in ticks])
            axes.set_xticklabels(_tick_labels(axis, ticks))
            axes.xaxis.set_minor_locator(NullLocator())
        all_axes[0].set_ylabel("error probability per user decision")
        handles = {}
        for axes in all_axes:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                handles[label] = handle
        shown = [name for name in names if name in handles]
        figure.legend([handles[name] for name in shown], shown, loc="outside right upper")
        return figure


def trade_off_figure(rows: Rows) -> Figure:
    """Miss against false-alarm rate at up to three preamble lengths, both logarithmic."""
    lengths = [length for length in (8, 10, 12, 16) if any(row["condition"]["length"] == length for row in rows)][:3]
    names = _detectors(rows)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10, 4.4), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        all_axes = figure.subplots(1, len(lengths), sharey=True, sharex=True, squeeze=False)[0]
        lines = {}
        for axes, length in zip(all_axes, lengths, strict=True):
            for row in rows:
                if row["condition"]["length"] != length or not row["curve"]:
                    continue
                k = names.index(row["detector"])
                points = np.array([point for point in row["curve"] if min(point) > 0]).reshape(-1, 2)
                points = points[np.argsort(points[:, 0], kind="stable")]
                style = {"color": SERIES[k % len(SERIES)], "linestyle": DASHES[k // len(SERIES) % len(DASHES)]}
                (lines[row["detector"]],) = axes.plot(points[:, 0], points[:, 1], **style)
                if row["false_alarm"] > 0 and row["miss"] > 0:
                    axes.plot(row["false_alarm"], row["miss"], marker=MARKERS[k % len(MARKERS)], color=style["color"])
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xlabel("false-alarm rate")
            axes.set_title(f"L = {length}", loc="left")
        all_axes[0].set_ylabel("miss rate")
        shown = [name for name in names if name in lines]
        figure.legend([lines[name] for name in shown], shown, loc="outside right upper")
        return figure


def table(sweep: str, rows: Rows) -> list[list[str]]:
    """Error probabilities as text: one row for each detector and panel, one column for each point; header first."""
    axis = _TITLES[sweep][0]
    points = sorted({row["condition"][axis] for row in rows})
    lines = [["detector", "condition", *_tick_labels(axis, points)]]
    for title, members in _panels(rows, axis).items():
        for name in _detectors(members):
            found = {row["condition"][axis]: row["error"] for row in members if row["detector"] == name}
            lines.append([name, title, *(_text(found[point]) if point in found else "" for point in points)])
    return lines


def svg(figure: Figure) -> Markup:
    """The figure as SVG for inline use."""
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])


def png(figure: Figure) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_curve(axes: Axes, rows: Rows, axis: str, k: int, name: str) -> None:
    rows = sorted(rows, key=lambda row: row["condition"][axis])
    if not rows:
        return
    x = np.array([float(row["condition"][axis]) for row in rows])
    value, low, high = np.array([row["error"] for row in rows]).T
    learned = name.startswith("uad-")
    colour, marker = SERIES[k % len(SERIES)], MARKERS[k % len(MARKERS)]
    seen = value > 0
    bottom = np.maximum(low, value / 30)
    axes.errorbar(
        x[seen],
        value[seen],
        yerr=[(value - bottom)[seen], (high - value)[seen]],
        color=colour,
        marker=marker,
        linestyle=DASHES[k // len(SERIES) % len(DASHES)] if learned else "--",
        linewidth=1.9 if learned else 1.2,
        markersize=5.5,
        capsize=2.5,
        elinewidth=1,
        label=name,
        zorder=4 if learned else 3,
    )
    for at, bound in zip(x[~seen], high[~seen], strict=True):
        axes.annotate(
            "", (at, bound / 1.8), (at, bound), arrowprops={"arrowstyle": "-|>", "color": colour, "shrinkA": 0}
        )
        axes.plot(at, bound, marker="_", color=colour, markersize=9)


def _panels(rows: Rows, axis: str) -> dict[str, list[Mapping[str, Any]]]:
    """Rows by what else differs between them, in words."""
    differing = [
        key for key in rows[0]["condition"] if key != axis and len({str(row["condition"][key]) for row in rows}) > 1
    ]
    panels: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        words = []
        for key in differing:
            value = row["condition"][key]
            words.append({"channel": _CHANNELS.get(value), "length": f"L = {value}"}.get(key) or f"{key} {value}")
        panels.setdefault(", ".join(words), []).append(row)
    return panels


def _detectors(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["detector"] for row in rows))


def _tick_labels(axis: str, ticks: Sequence[Any]) -> list[str]:
    if axis == "fresh_pool":
        return ["fresh" if tick else "from training" for tick in ticks]
    return [f"{tick:g}" for tick in ticks]


def _text(error: Sequence[float]) -> str:
    return f"{error[0]:.1e}" if error[0] else f"< {error[2]:.0e}"

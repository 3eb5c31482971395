"""Figures of an evaluation of picture downlinks: quality over what each sweep varies, and a contact sheet."""

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
FIGURE_NAME = "quality.png"
SHEET_NAME = "contact-sheet.png"
SHEET_SNR_DB = (0.0, 5.0, 10.0)

FAILED = "failed"
"""Share of pictures that were not decoded, in rows beside the qualities."""

TITLES = {"lpips": "LPIPS (SqueezeNet 1.1, v0.1), less is better", "ms_ssim": "MS-SSIM", "psnr_db": "PSNR in dB"}

_AXES = {
    "snr": ("snr_db", "SNR in dB, perfect CSI"),
    "snr-fed-back": ("snr_db", "SNR in dB, CSI fed back"),
    "csi": ("estimate_nmse_db", "NMSE of estimated CSI in dB"),
    "users": ("n_users", "users served at once"),
}
_LIMITS = {"lpips": (0.0, None), "ms_ssim": (0.0, 1.0), FAILED: (-0.02, 1.03)}
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


def write_evaluation(results: Mapping[str, Any], sheet: Mapping[str, Any] | None, folder: Path) -> None:
    """Write an evaluation into a folder: JSON, one figure with a row for each quality, a contact sheet.

    Args:
        results: as `models.semantic.evaluate.as_json` gives it; sweeps may be missing or incomplete.
        sheet: as `models.semantic.evaluate.Evaluation.sheet` gives it; None: there is none.
        folder: made if it is not there.

    Raises:
        StorageError: the folder cannot be written.
    """
    files = {JSON_NAME: (json.dumps(results, indent=1, allow_nan=False) + "\n").encode()}
    if any(results["sweeps"].values()):
        files[FIGURE_NAME] = png(quality_figure(results["sweeps"]))
    if sheet is not None:
        files[SHEET_NAME] = png(contact_sheet(sheet["sent"], sheet["found"], SHEET_SNR_DB))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            write_atomically(folder / name, data)
    except OSError as error:
        raise StorageError(f"cannot write the evaluation into {folder}: {error.strerror}") from error


def shown(rows: Rows) -> list[str]:
    """Qualities that rows have, in the order in which they are shown."""
    return [quality for quality in TITLES if any(quality in row for row in rows)]


def quality_figure(sweeps: Mapping[str, Rows]) -> Figure:
    """Qualities with 95 % intervals over what each sweep varies: one row per quality, one column per sweep.

    Where digital pictures were lost, one row more tells how many.
    """
    there = {name: rows for name, rows in sweeps.items() if rows}
    everything = [row for rows in there.values() for row in rows]
    qualities = shown(everything) + [FAILED] * any(row[FAILED] > 0 for row in everything)
    names = list(dict.fromkeys(row["contender"] for rows in there.values() for row in rows))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(3.4 * len(there) + 2.6, 3.0 * len(qualities) + 0.4), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(qualities), len(there), sharey="row", squeeze=False)
        handles: dict[str, Any] = {}
        for line, quality in zip(panels, qualities, strict=True):
            for axes, (sweep, rows) in zip(line, there.items(), strict=True):
                _draw(axes, sweep, quality, rows, names, handles)
            low, high = _LIMITS.get(quality, (None, None))
            bottom, top = line[0].get_ylim()
            line[0].set_ylim(bottom if low is None else max(low, bottom), top if high is None else min(high, top))
            line[0].set_ylabel(TITLES.get(quality, "share not decoded").replace(", less", ",\nless"))
        figure.legend(list(handles.values()), list(handles), loc="outside right upper")
        return figure


def contact_sheet(sent: np.ndarray, found: Mapping[str, np.ndarray], snrs_db: Sequence[float]) -> Figure:
    """The same pictures through every scheme.

    Args:
        sent: uint8, (picture, row, column, 3).
        found: by scheme, uint8 (SNR, picture, row, column, 3).
        snrs_db: of `found`.
    """
    names = ["sent", *found]
    n_pictures = len(sent)
    columns = n_pictures * len(snrs_db)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(1.05 * columns + 1.7, 1.08 * len(names) + 0.5), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, hspace=0.01, wspace=0.01)  # type: ignore[union-attr, call-arg]
        grid = figure.subplots(len(names), columns, squeeze=False)
        for row, name in enumerate(names):
            for k in range(columns):
                at, picture = divmod(k, n_pictures)
                axes = grid[row, k]
                axes.imshow(sent[picture] if name == "sent" else found[name][at, picture], interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
                if row == 0 and picture == 0:
                    axes.set_title(f"{snrs_db[at]:g} dB", loc="left", fontsize=9.5, color=INK)
            grid[row, 0].set_ylabel(name, rotation=0, ha="right", va="center", color=INK)
        return figure


def table(sweep: str, rows: Rows, quality: str) -> list[list[str]]:
    """A quality as text: one row for each contender, one column for each point; header first."""
    points = list(dict.fromkeys(_label(sweep, row) for row in rows))
    lines = [["contender", *points]]
    digits = 2 if quality == "psnr_db" else 3
    for name in dict.fromkeys(row["contender"] for row in rows):
        found = {_label(sweep, row): row[quality][0] for row in rows if row["contender"] == name and quality in row}
        lines.append([name, *(f"{found[point]:.{digits}f}" if point in found else "" for point in points)])
    return lines


def _draw(axes: Axes, sweep: str, quality: str, rows: Rows, names: Sequence[str], handles: dict[str, Any]) -> None:
    field = _AXES[sweep][0]
    for k, name in enumerate(names):
        mine = [row for row in rows if row["contender"] == name and quality in row]
        if not mine:
            continue
        x = [float(row["condition"][field]) for row in mine]
        # A share that was not decoded comes without an interval.
        value, low, high = np.array([np.broadcast_to(row[quality], 3) for row in mine]).T
        handles[name] = axes.errorbar(
            x,
            value,
            yerr=None if quality == FAILED else np.maximum([value - low, high - value], 0),
            color=SERIES[k % len(SERIES)],
            marker=MARKERS[k % len(MARKERS)],
            linestyle=DASHES[k // len(SERIES) % len(DASHES)],
            markersize=4.5,
            capsize=2,
            elinewidth=1,
        )
    axes.set_xticks(sorted({float(row["condition"][field]) for row in rows}))
    axes.set_xlabel(_AXES[sweep][1])


def _label(sweep: str, row: Mapping[str, Any]) -> str:
    return f"{row['condition'][_AXES[sweep][0]]:g}"

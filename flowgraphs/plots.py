"""Figures of the run report: arrays in, inline SVG out.

Colours are written as placeholders that the page's style sheet resolves (`var(--ink)` and so on), so that one
figure reads well on light and on dark ground. Text stays text. Marks differ in shape or line style as well as
in colour.
"""

from __future__ import annotations

import html
import io
import re
import zlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from scipy.signal import ShortTimeFFT, get_window

from ..blocks.waveforms.csi_frame import CsiFrame
from ..blocks.waveforms.frame import FrameFormat
from ..blocks.waveforms.picture_frame import PictureFrame

# The values are those of the light theme or mid-tones: they show wherever a figure is drawn as pixels.
INK = "#1b1f24"
SOFT = "#5b6570"
LINE = "#c9d0d6"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#a6599f", "#b8860b", "#3d8fc4", "#7a5230", "#666f78")
"""After Okabe and Ito: told apart with any colour vision."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (7, 2)), (0, (3, 1, 1, 1)))
_VARIABLES = {
    INK: "var(--ink)",
    SOFT: "var(--soft)",
    LINE: "var(--line)",
    **{c: f"var(--s{k})" for k, c in enumerate(SERIES)},
}

SLOT_COLOURS = {
    "beacon": SERIES[0],
    "access": SERIES[1],
    "noise": SERIES[2],
    "sounding": SERIES[3],
    "feedback": SERIES[1],
    "grant": SERIES[3],
    "pictures": SERIES[1],
}

_MID_BLUE = "#2f8fd0"
"""For marks drawn as pixels, which cannot follow the theme: reads on light and on dark."""

_MANY_MARKS = 2500
"""More marks than these are drawn as pixels, which keeps the file small."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "semair",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
}


@dataclass(frozen=True)
class ErrorSeries:
    """Error probability of one detector over preamble lengths.

    Attributes:
        name: of the detector.
        lengths: int, (point,).
        value: float, (point,); 0 where no error was seen.
        low: float, (point,), lower end of the 95 % interval.
        high: float, (point,), upper end.
    """

    name: str
    lengths: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class TradeOff:
    """A threshold sweep.

    Attributes:
        name: what was swept.
        miss: float, (point,), share of the active users that are missed.
        false_alarm: float, (point,), share of the silent users that are called active.
        decided: (false alarm, miss) with the threshold in use.
        n_active: decisions on active users.
        n_silent: decisions on silent users.
    """

    name: str
    miss: np.ndarray
    false_alarm: np.ndarray
    decided: tuple[float, float]
    n_active: int
    n_silent: int


Slots = FrameFormat | CsiFrame | PictureFrame
"""Frames of all links."""


def slots(frame: Slots) -> list[tuple[str, str, int, int]]:
    """The parts of a frame: (kind, label, first sample, samples); kind is empty for silence."""
    fmt = _format(frame)
    data = (1 + fmt.header_symbols) * fmt.symbol_samples
    beacon = [
        ("beacon", "sync", 0, fmt.sync_samples),
        ("beacon", "training", fmt.training_start, fmt.symbol_samples),
        ("beacon", "header", fmt.training_start + fmt.symbol_samples, data - fmt.symbol_samples),
        ("", "guard", fmt.beacon_samples, fmt.guard_samples),
    ]
    if isinstance(frame, CsiFrame):
        span = frame.slots.n_users * frame.part_samples
        used = [
            ("sounding", "sounding slot", frame.sounding_start, frame.sounding_samples),
            ("", "turn-around", frame.downlink_samples, frame.slots.turnaround_samples),
            ("feedback", "feedback slot", frame.feedback_start, span),
        ]
    elif isinstance(frame, PictureFrame):
        n = fmt.symbol_samples
        data = frame.reference_start + frame.slots.n_streams * n
        used = [
            ("grant", "grant", frame.grant_start, frame.grant_samples),
            ("pictures", "references", frame.reference_start, frame.slots.n_streams * n),
            ("pictures", "data", data, frame.slots.data_symbols * n),
            ("pictures", "closing", frame.downlink_samples - n, n),
        ]
    else:
        used = [("access", "access slot", fmt.access_start, fmt.access_symbols * fmt.symbol_samples)]
    return [
        *beacon,
        *used,
        ("", "guard", frame.noise_start - fmt.guard_samples, fmt.guard_samples),
        ("noise", "noise slot", frame.noise_start, fmt.noise_symbols * fmt.symbol_samples),
        ("", "rest", frame.used_samples, fmt.frame_samples - frame.used_samples),
    ]


def _format(frame: Slots) -> FrameFormat:
    return frame if isinstance(frame, FrameFormat) else frame.frame_format


def _sent_slots(frame: Slots) -> list[tuple[str, str, int, int]]:
    """Slots without silence between, the beacon as one: (kind, name, first sample, samples)."""
    fmt = _format(frame)
    rest = [part for part in slots(frame) if part[0] not in ("", "beacon")]
    return [("beacon", "beacon", 0, fmt.beacon_samples), *rest]


def frame_layout(frame: Slots, title: str) -> str:
    """One frame with its slots to scale."""
    fmt = _format(frame)
    with style():
        figure = _figure(10, 1.55)
        axes = figure.add_subplot()
        last = -np.inf
        hatches = {
            "training": "////",
            "header": "..",
            "noise slot": "xx",
            "references": "..",
            "closing": "..",
        }
        for kind, label, first, n in slots(frame):
            if n <= 0:
                continue
            colour = SLOT_COLOURS.get(kind, "none")
            axes.barh(
                0,
                n,
                left=first,
                height=1,
                color=colour,
                edgecolor=INK if kind else SOFT,
                hatch=hatches.get(label, ""),
                alpha=0.55 if kind else 1,
                linewidth=0.8,
            )
            wide = n > 0.08 * fmt.frame_samples
            at = first + n / 2
            if not wide:
                # Names of narrow neighbours would lie on each other.
                at = max(at, last + 0.1 * fmt.frame_samples)
                last = at
            axes.annotate(
                f"{label}\n{n}" if wide else f"{label} {n}",
                (first + n / 2, 0.5),
                (at, 0.68 if wide else 1.62),
                ha="center",
                va="bottom",
                fontsize=8.5,
                arrowprops=None if wide else {"arrowstyle": "-", "color": SOFT, "linewidth": 0.6},
            )
        axes.set_xlim(0, fmt.frame_samples)
        axes.set_ylim(-0.55, 2.3)
        axes.set_xlabel("samples since frame start")
        axes.yaxis.set_visible(False)
        axes.spines["left"].set_visible(False)
        axes.grid(False)
        ms = 1e3 / fmt.sample_rate_hz
        above = axes.secondary_xaxis("top", functions=(lambda x: np.multiply(x, ms), lambda t: np.divide(t, ms)))
        above.xaxis.set_major_formatter(FuncFormatter(lambda t, _: f"{t:g} ms"))
        return _svg(figure, title)


def error_over_length(series: Sequence[ErrorSeries], highlight: str, title: str) -> str:
    """Error probability over preamble length on a log scale; where no error was seen, the upper bound alone."""
    with style():
        figure = _figure(10, 4.4)
        axes = figure.add_subplot()
        step = min(np.diff(sorted({int(x) for s in series for x in s.lengths})), default=2)
        highs = np.concatenate([s.high for s in series])
        values = np.concatenate([s.value for s in series])
        lows = np.concatenate([s.low for s in series])
        floor = float(np.min(np.concatenate([highs, values[values > 0], lows[lows > 0]]))) / 2
        for k, s in enumerate(series):
            x = s.lengths + 0.12 * step * (k - (len(series) - 1) / 2)
            seen = s.value > 0
            own = s.name == highlight
            colour, marker = SERIES[k % len(SERIES)], MARKERS[k % len(MARKERS)]
            low = np.maximum(s.low[seen], floor / 2)
            axes.errorbar(
                x[seen],
                s.value[seen],
                yerr=[s.value[seen] - low, s.high[seen] - s.value[seen]],
                color=colour,
                marker=marker,
                linestyle=DASHES[k % len(DASHES)],
                linewidth=2.4 if own else 1.2,
                markersize=7.5 if own else 5,
                capsize=3,
                elinewidth=1.1,
                label=f"{s.name} (this run)" if own else s.name,
                zorder=4 if own else 3,
            )
            for at, bound in zip(x[~seen], s.high[~seen], strict=True):
                axes.plot(at, bound, marker="_", color=colour, markersize=11, markeredgewidth=2, zorder=3)
                axes.annotate(
                    "",
                    (at, bound / 1.9),
                    (at, bound),
                    arrowprops={"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 0},
                )
            if not seen.any():
                axes.plot([], [], color=colour, marker="_", label=f"{s.name}: no errors", linestyle="")
        axes.set_yscale("log")
        axes.set_ylim(floor / 2, min(1.5, 3 * float(highs.max())))
        _log_ticks(axes, "y")
        axes.set_xticks(sorted({int(x) for s in series for x in s.lengths}))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("preamble length in symbols")
        axes.set_ylabel("error probability per user decision")
        axes.legend(loc="best")
        return _svg(figure, title)


def trade_offs(panels: Sequence[tuple[str, Sequence[TradeOff]]], title: str) -> str:
    """Miss against false-alarm rate, both logarithmic; rates of 0 are drawn on the edge of the plot."""
    with style():
        figure = _figure(10, 5)
        for place, (name, curves) in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), place + 1)
            x_floor = 0.5 / max(c.n_silent for c in curves)
            y_floor = 0.5 / max(c.n_active for c in curves)
            for k, c in enumerate(curves):
                x, y = _thinned(np.maximum(c.false_alarm, x_floor), np.maximum(c.miss, y_floor))
                colour = SERIES[k % len(SERIES)]
                axes.plot(
                    x,
                    y,
                    color=colour,
                    linestyle=DASHES[k % len(DASHES)],
                    label=c.name,
                    drawstyle="steps-post",
                )
                axes.plot(
                    max(c.decided[0], x_floor),
                    max(c.decided[1], y_floor),
                    marker=MARKERS[k % len(MARKERS)],
                    color=colour,
                    markeredgecolor=INK,
                    markersize=7.5,
                    linestyle="",
                    clip_on=False,
                    zorder=5,
                )
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xlim(x_floor, 1)
            axes.set_ylim(y_floor, 1)
            _log_ticks(axes, "x")
            _log_ticks(axes, "y")
            axes.set_xlabel("false-alarm rate")
            axes.set_ylabel("miss rate")
            axes.set_title(name)
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, handlelength=3, borderaxespad=0)
        return _svg(figure, title)


def estimate_over_frames(
    frames: np.ndarray,
    values: np.ndarray,
    truth: float | np.ndarray | None,
    label: str,
    title: str,
    residual_label: str = "",
) -> str:
    """An estimate over frames with the truth, and beside it the histogram of what is left.

    Args:
        frames: int, (row,).
        values: float, (row,).
        truth: one value or one per row; None where it is not known.
        label: of the values, with unit.
        title: for readers that do not see the figure.
        residual_label: of the differences; empty: the histogram shows the values.
    """
    with style():
        figure = _figure(10, 2.7)
        grid = figure.add_gridspec(1, 2, width_ratios=(2.6, 1))
        left, right = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
        left.plot(
            frames,
            values,
            ".",
            color=SERIES[0],
            markersize=4,
            label="estimated",
            rasterized=len(frames) > _MANY_MARKS,
        )
        if truth is not None:
            level = np.broadcast_to(np.asarray(truth, float), frames.shape)
            left.plot(frames, level, "--", color=SERIES[1], label="truth")
            left.legend(loc="upper left", bbox_to_anchor=(0, 1.14), ncols=2, borderaxespad=0)
        left.set_xlabel("frame number")
        left.set_ylabel(label)
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        left.ticklabel_format(useOffset=False)
        shown = values if truth is None else values - np.asarray(truth, float)
        right.hist(shown, bins=_bins(shown), color=SERIES[0], alpha=0.75, edgecolor=SERIES[0])
        if truth is not None and residual_label:
            right.axvline(0, color=SERIES[1], linestyle="--")
        right.set_xlabel(residual_label or label)
        right.set_ylabel("frames")
        right.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        right.ticklabel_format(useOffset=False)
        return _svg(figure, title)


def levels_over_frames(frames: np.ndarray, snr_db: np.ndarray, noise_ratio_db: np.ndarray | None, title: str) -> str:
    """Beacon SNR, and noise estimate over its true value, over frames; both in dB."""
    with style():
        figure = _figure(10, 2.7)
        shown = [("beacon SNR per antenna, dB", snr_db, SERIES[0])]
        if noise_ratio_db is not None:
            shown.append(("noise estimate over truth, dB", noise_ratio_db, SERIES[2]))
        for place, (label, values, colour) in enumerate(shown):
            axes = figure.add_subplot(1, len(shown), place + 1)
            raster = len(frames) > _MANY_MARKS
            axes.plot(frames, values, "." if raster else ".-", color=colour, markersize=4, linewidth=0.7)
            if raster:
                axes.lines[0].set_rasterized(True)
            if place:
                axes.axhline(0, color=SERIES[1], linestyle="--", linewidth=1.2)
            axes.set_xlabel("frame number")
            axes.set_ylabel(label)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return _svg(figure, title)


def constellation(symbols: np.ndarray, title: str) -> str:
    """Equalised BPSK symbols, complex (any shape), with the two sent values."""
    with style():
        figure = _figure(5, 4.2)
        axes = figure.add_subplot()
        flat = symbols.reshape(-1)
        flat = flat[np.isfinite(flat)][:: max(1, flat.size // 20000)]
        axes.plot(flat.real, flat.imag, ".", color=_MID_BLUE, markersize=2, alpha=0.25, rasterized=True)
        axes.plot([-1, 1], [0, 0], "x", color=SERIES[1], markersize=11, markeredgewidth=2.5, label="sent values")
        reach = float(np.clip(np.percentile(np.abs(flat), 99.5), 1.5, 6)) if flat.size else 1.5
        axes.set_xlim(-reach, reach)
        axes.set_ylim(-reach, reach)
        axes.set_aspect("equal")
        axes.set_xlabel("in phase")
        axes.set_ylabel("quadrature")
        axes.legend(loc="upper right")
        return _svg(figure, title)


def spectrogram(
    samples: np.ndarray,
    begin: int,
    frame_starts: Sequence[int],
    frame: Slots,
    title: str,
) -> str:
    """Spectrogram of one antenna with the slots of the frames marked above it.

    Args:
        samples: complex64, (n,).
        begin: place of the first sample, for the time axis.
        frame_starts: places of frame starts relative to the first sample; may lie outside.
        frame: numerology and slots.
        title: for readers that do not see the figure.
    """
    fmt = _format(frame)
    hop = max(8, len(samples) // 1600)
    transform = ShortTimeFFT(
        get_window("hann", fmt.n_fft), hop, fmt.sample_rate_hz, fft_mode="centered", scale_to="magnitude"
    )
    # A frame's time is drawn where the window is centred; edges where it sticks out are left off.
    power = transform.spectrogram(samples.astype(np.complex128), p0=0, p1=max(1, len(samples) // hop))
    level_db = 10 * np.log10(np.maximum(power, 1e-14))
    low, high = np.percentile(level_db, [5, 99.7])
    low = max(low, high - 60)
    ms = 1e3 / fmt.sample_rate_hz
    left, right = begin * ms, (begin + len(samples)) * ms
    half_khz = fmt.sample_rate_hz / 2e3
    with style():
        figure = _figure(10, 4.2)
        grid = figure.add_gridspec(2, 2, height_ratios=(0.09, 1), width_ratios=(1, 0.016), hspace=0.02)
        strip, axes, bar = (figure.add_subplot(grid[at]) for at in ((0, 0), (1, 0), (1, 1)))
        image = axes.imshow(
            level_db,
            aspect="auto",
            origin="lower",
            extent=(left, right, -half_khz, half_khz),
            cmap="viridis",
            vmin=low,
            vmax=high,
            interpolation="nearest",
        )
        for start in frame_starts:
            for kind, _, first, n in _sent_slots(frame):
                at, end = (begin + start + first) * ms, (begin + start + first + n) * ms
                if end <= left or at >= right:
                    continue
                strip.barh(
                    0, end - at, left=at, height=1, color=SLOT_COLOURS[kind], alpha=0.55, edgecolor=INK, linewidth=0.5
                )
                if at >= left and end <= right:
                    strip.text((at + end) / 2, 0, kind, ha="center", va="center", fontsize=8.5)
                axes.axvline(at, color="#ffffff", linestyle=":", linewidth=0.8, alpha=0.8)
        strip.set_xlim(left, right)
        strip.set_ylim(-0.5, 0.5)
        strip.axis("off")
        axes.set_xlim(left, right)
        axes.grid(False)
        axes.set_xlabel("time since start of recording, ms")
        axes.set_ylabel("frequency, kHz")
        figure.colorbar(image, cax=bar, label="dBFS per bin")
        bar.grid(False)
        return _svg(figure, title)


def power_over_time(samples: np.ndarray, before: int, frame: Slots, title: str) -> str:
    """Power of all antennas over one frame, with its slots shaded.

    Args:
        samples: complex64, (antennas, n).
        before: samples ahead of the frame start.
        frame: numerology and slots.
        title: for readers that do not see the figure.
    """
    fmt = _format(frame)
    window = 16
    ms = 1e3 / fmt.sample_rate_hz
    with style():
        figure = _figure(10, 3.2)
        axes = figure.add_subplot()
        seen = set()
        for kind, _, first, n in slots(frame):
            if kind:
                axes.axvspan(
                    first * ms,
                    (first + n) * ms,
                    color=SLOT_COLOURS[kind],
                    alpha=0.13,
                    linewidth=0,
                )
                if kind not in seen:
                    axes.annotate(
                        kind if kind in ("beacon", "grant", "pictures") else f"{kind} slot",
                        (first * ms, 1.01),
                        xycoords=("data", "axes fraction"),
                        ha="left",
                        va="bottom",
                        fontsize=8.5,
                    )
                seen.add(kind)
        many = len(samples) > 8
        for k, antenna in enumerate(samples):
            power = np.abs(antenna.astype(np.complex128)) ** 2
            smooth = power[: len(power) // window * window].reshape(-1, window).mean(axis=1)
            t = (np.arange(len(smooth)) * window + window / 2 - before) * ms
            axes.plot(
                t,
                10 * np.log10(np.maximum(smooth, 1e-14)),
                color=SERIES[k % len(SERIES)],
                linestyle="-" if many else DASHES[k % len(DASHES)],
                linewidth=0.5 if many else 1,
                alpha=0.8,
                label=None if many or len(samples) == 1 else f"antenna {k}",
                rasterized=many,
            )
        axes.set_xlim(-before * ms, (samples.shape[1] - before) * ms)
        axes.set_xlabel("time since frame start, ms")
        axes.set_ylabel("power, dBFS")
        if 1 < len(samples) <= 8:
            axes.legend(loc="upper right", ncols=min(len(samples), 4), handlelength=3)
        return _svg(figure, title)


def antenna_levels(rms_db: np.ndarray, peak_db: np.ndarray, title: str) -> str:
    """Root mean square and peak per antenna under full scale; float, (antennas,), dBFS."""
    with style():
        figure = _figure(5, max(2.4, min(8.0, 1.3 + 0.34 * len(rms_db))))
        axes = figure.add_subplot()
        at = np.arange(len(rms_db))
        low = float(np.floor((min(rms_db.min(), peak_db.min()) - 6) / 10) * 10)
        axes.barh(at, rms_db - low, left=low, height=0.55, color=SERIES[0], alpha=0.6, label="rms")
        axes.plot(peak_db, at, "|", color=SERIES[1], markersize=15, markeredgewidth=3, label="peak", clip_on=False)
        axes.axvline(0, color=INK, linewidth=1, linestyle="--")
        axes.set_xlim(low, max(3.0, float(peak_db.max()) + 2))
        axes.set_yticks(at if len(at) <= 24 else at[:: len(at) // 12])
        axes.invert_yaxis()
        axes.set_xlabel("dBFS")
        axes.set_ylabel("antenna")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.1, markerscale=0.6)
        return _svg(figure, title)


def activity_map(frames: np.ndarray, lengths: np.ndarray, sent: np.ndarray, decided: np.ndarray, title: str) -> str:
    """Which users sent and which were called active.

    Args:
        frames: int, (row,).
        lengths: int, (row,), preamble symbols.
        sent: bool, (row, user).
        decided: bool, (row, user).
        title: for readers that do not see the figure.
    """
    with style():
        figure = _figure(10, float(np.clip(1.2 + 0.034 * sent.shape[1], 2.2, 6.2)))
        axes = figure.add_subplot()
        size = float(np.clip(450 / max(sent.shape[1], len(frames)), 1.4, 6))
        for name, mask, marker, colour, order in (
            ("hit", sent & decided, MarkerStyle("s"), SERIES[0], 2),
            ("missed", sent & ~decided, MarkerStyle("x"), SERIES[1], 4),
            ("false alarm", ~sent & decided, MarkerStyle("o", fillstyle="none"), SERIES[3], 4),
        ):
            rows, users = np.nonzero(mask)
            axes.plot(
                rows,
                users,
                linestyle="",
                marker=marker,
                markersize=size * (1 if name == "hit" else 1.7),
                markeredgewidth=0 if name == "hit" else 1.5,
                color=colour,
                alpha=0.6 if name == "hit" else 1,
                label=f"{name} ({len(rows)})",
                rasterized=len(rows) > _MANY_MARKS,
                zorder=order,
            )
        step = max(1, len(frames) // 12)
        axes.set_xticks(
            np.arange(0, len(frames), step),
            [f"{f}\nL={n}" for f, n in zip(frames[::step], lengths[::step], strict=True)],
        )
        axes.set_xlim(-0.7, len(frames) - 0.3)
        axes.set_ylim(-1, sent.shape[1])
        axes.set_xlabel("frame number, preamble length L")
        axes.set_ylabel("user")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, markerscale=max(1, 4 / size), borderaxespad=0.2)
        return _svg(figure, title)


def csi_comparison(rows: Sequence[tuple[str, Sequence[tuple[str, np.ndarray | None]]]], title: str) -> str:
    """CSI in delay and angle, side by side on one colour scale, in dB below the first panel's peak.

    Args:
        rows: per user a label, and its panels: name and complex (tap, beam), all in one scale; None where there is
            nothing to show.
        title: for readers that do not see the figure.
    """
    floor_db = -40.0
    n_panels = max(len(panels) for _, panels in rows)
    with style():
        figure = _figure(10, 0.5 + 2.5 * len(rows))
        axes = figure.subplots(len(rows), n_panels, squeeze=False, sharex=True, sharey=True)
        image = None
        for row, (label, panels) in enumerate(rows):
            first = panels[0][1]
            assert first is not None
            peak = max(float(np.abs(first).max()), 1e-20)
            for column, (name, values) in enumerate(panels):
                place = axes[row, column]
                place.grid(False)
                place.set_title(name, fontsize=9)
                if values is None:
                    place.text(0.5, 0.5, "left out", ha="center", va="center", transform=place.transAxes)
                    continue
                level_db = 20 * np.log10(np.maximum(np.abs(values) / peak, 10 ** (floor_db / 20 - 1)))
                image = place.imshow(
                    level_db,
                    aspect="auto",
                    origin="upper",
                    cmap="viridis",
                    vmin=floor_db,
                    vmax=0,
                    interpolation="nearest",
                    extent=(-0.5, values.shape[1] - 0.5, values.shape[0] - 0.5, -0.5),
                )
                place.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
                if row == len(rows) - 1:
                    place.set_xlabel("beam")
            axes[row, 0].set_ylabel(f"{label}\ndelay, taps")
        if image is not None:
            bar = figure.colorbar(image, ax=axes.ravel().tolist(), label="dB below the true peak", pad=0.01, aspect=30)
            bar.ax.grid(False)
        return _svg(figure, title)


def nmse_over_frames(frames: np.ndarray, nmse_db: np.ndarray, symbol_db: np.ndarray | None, title: str) -> str:
    """NMSE of recovered CSI over frames, a panel per user (four at most), beside that of symbol level.

    Args:
        frames: int, (frame,).
        nmse_db: float, (frame, user).
        symbol_db: the same at symbol level, or None.
        title: for readers that do not see the figure.
    """
    n_users = min(nmse_db.shape[1], 4)
    many = len(frames) > _MANY_MARKS
    with style():
        figure = _figure(10, 0.6 + 1.9 * n_users)
        axes = figure.subplots(n_users, 1, squeeze=False, sharex=True, sharey=True)[:, 0]
        for user, place in enumerate(axes):
            if symbol_db is not None:
                place.plot(
                    frames,
                    symbol_db[:, user],
                    linestyle="",
                    marker="o",
                    markersize=5,
                    markerfacecolor="none",
                    color=SERIES[1],
                    label="symbol level",
                    rasterized=many,
                )
            place.plot(frames, nmse_db[:, user], ".-", color=SERIES[0], linewidth=0.8, label="radio chain")
            place.lines[-1].set_rasterized(many)
            place.set_ylabel(f"user {user}\nNMSE, dB")
        axes[0].legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.1)
        axes[-1].set_xlabel("frame number")
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        return _svg(figure, title)


def csi_quality(
    nmse_db: np.ndarray, symbol_db: np.ndarray | None, told_db: np.ndarray, known_db: np.ndarray | None, title: str
) -> str:
    """Share of users and frames up to an NMSE, and the SNR behind the combining against that with a known uplink.

    Args:
        nmse_db: float, (frame, user).
        symbol_db: the same at symbol level, or None.
        told_db: float, (frame, user): SNR behind the combining as the receiver estimates it.
        known_db: the same of a combining that knows the uplink, or None.
        title: for readers that do not see the figure.
    """
    with style():
        figure = _figure(10, 3.4)
        left, right = figure.subplots(1, 2)
        for label, values, colour, dash in (
            ("radio chain", nmse_db, SERIES[0], "-"),
            ("symbol level", symbol_db, SERIES[1], "--"),
        ):
            if values is not None:
                ordered = np.sort(values.reshape(-1))
                share = np.arange(1, ordered.size + 1) / ordered.size
                left.step(ordered, share, dash, where="post", color=colour, label=label)
        left.set_xlabel("NMSE of one user in one frame, dB")
        left.set_ylabel("share of users and frames below")
        left.set_ylim(0, 1.02)
        left.legend(loc="upper left")
        raster = told_db.size > _MANY_MARKS
        for user in range(told_db.shape[1]):
            look: dict[str, Any] = {
                "linestyle": "",
                "marker": MARKERS[user % len(MARKERS)],
                "markersize": 4,
                "color": SERIES[user % len(SERIES)],
                "label": f"user {user}" if told_db.shape[1] <= 8 else None,
                "rasterized": raster,
            }
            if known_db is None:
                right.plot(np.arange(len(told_db)), told_db[:, user], **look)
            else:
                right.plot(known_db[:, user], told_db[:, user], **look)
        if known_db is None:
            right.set_xlabel("frame")
        else:
            ends = [float(min(known_db.min(), told_db.min())), float(max(known_db.max(), told_db.max()))]
            right.plot(ends, ends, "--", color=SOFT, linewidth=1)
            right.set_xlabel("SNR of a combining that knows the uplink, dB")
        right.set_ylabel("SNR as received, dB")
        if told_db.shape[1] <= 8:
            right.legend(loc="upper left")
        return _svg(figure, title)


def pictures_over_frames(judged: np.ndarray, title: str) -> str:
    """PSNR and MS-SSIM of the pictures received over frames, beside those at symbol level.

    Args:
        judged: rows of `semantic_metrics.JUDGED_DTYPE`.
        title: for readers that do not see the figure.
    """
    many = len(judged) > _MANY_MARKS
    with style():
        figure = _figure(10, 4.4)
        for place, name, label in zip(
            figure.subplots(2, 1, sharex=True), ("psnr_db", "ms_ssim"), ("PSNR, dB", "MS-SSIM"), strict=True
        ):
            symbol = judged[f"symbol_{name}"]
            if np.isfinite(symbol).all():
                look: dict[str, Any] = {"markersize": 6, "markerfacecolor": "none", "color": SOFT, "rasterized": many}
                place.plot(judged["frame"], symbol, linestyle="", marker="o", label="at symbol level", **look)
            for k, user in enumerate(np.unique(judged["user"])):
                own = judged[judged["user"] == user]
                place.plot(
                    own["frame"],
                    own[name],
                    linestyle="",
                    marker=MARKERS[k % len(MARKERS)],
                    markersize=4,
                    color=SERIES[k % len(SERIES)],
                    label=f"user {user}" if k < 8 else None,
                    rasterized=many,
                )
            place.set_ylabel(label)
            if name == "psnr_db":
                place.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=6, borderaxespad=0.1)
        place.set_xlabel("frame number")
        place.xaxis.set_major_locator(MaxNLocator(integer=True))
        return _svg(figure, title)


def picture_links(judged: np.ndarray, title: str) -> str:
    """SINR as users estimate it against the truth, and PSNR over SINR.

    Args:
        judged: rows of `semantic_metrics.JUDGED_DTYPE`, with the truth.
        title: for readers that do not see the figure.
    """
    with style():
        figure = _figure(10, 3.4)
        left, right = figure.subplots(1, 2)
        both = np.concatenate([judged["sinr_db"], judged["true_sinr_db"]])
        ends = [float(both.min()), float(both.max())]
        left.plot(ends, ends, "--", color=SOFT, linewidth=1)
        for k, user in enumerate(np.unique(judged["user"])):
            own = judged[judged["user"] == user]
            look: dict[str, Any] = {
                "linestyle": "",
                "marker": MARKERS[k % len(MARKERS)],
                "markersize": 4,
                "color": SERIES[k % len(SERIES)],
                "label": f"user {user}" if k < 8 else None,
                "rasterized": len(judged) > _MANY_MARKS,
            }
            left.plot(own["true_sinr_db"], own["sinr_db"], **look)
            right.plot(own["true_sinr_db"], own["psnr_db"], **look)
        left.set_xlabel("true SINR, dB")
        left.set_ylabel("SINR as the user estimates it, dB")
        left.legend(loc="upper left")
        right.set_xlabel("true SINR, dB")
        right.set_ylabel("PSNR, dB")
        return _svg(figure, title)


def effective_channels(
    subcarriers: np.ndarray, own_db: np.ndarray, others_db: np.ndarray | None, noise_db: float, title: str
) -> str:
    """What each user receives of its own stream and of the others', over subcarriers, a panel for each.

    Args:
        subcarriers: int, (subcarrier,).
        own_db: float, (user, subcarrier): power of the user's own stream.
        others_db: the same of all other streams together; None where there are none.
        noise_db: power of noise.
        title: for readers that do not see the figure.
    """
    with style():
        n = min(len(own_db), 4)
        figure = _figure(10, 0.6 + 1.9 * n)
        axes = figure.subplots(n, 1, squeeze=False, sharex=True, sharey=True)[:, 0]
        for user, place in enumerate(axes):
            place.plot(subcarriers, own_db[user], color=SERIES[0], label="own stream")
            if others_db is not None:
                place.plot(subcarriers, others_db[user], "--", color=SERIES[1], label="other streams")
            place.axhline(noise_db, color=SOFT, linewidth=1, linestyle=":", label="noise")
            place.set_ylabel(f"stream {user}\npower, dB")
        low = noise_db - 15
        axes[0].set_ylim(low, float(own_db.max()) + 3)
        axes[0].legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0.1)
        axes[-1].set_xlabel("subcarrier, from the carrier")
        return _svg(figure, title)


def loop_rounds(
    rounds: np.ndarray,
    outcomes: Mapping[str, np.ndarray],
    pictures: tuple[np.ndarray, np.ndarray, np.ndarray],
    title: str,
) -> str:
    """What became of users round by round, above; and the quality of what they received, below.

    Args:
        rounds: int, (round,).
        outcomes: int, (round,), users by what became of them, in the order of the stack.
        pictures: of each picture received the round, its PSNR in dB, and that with perfect CSI; NaN where that is not
            known.
        title: of the figure.
    """
    with style():
        figure = _figure(10, 4.6)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.15))
        floor = np.zeros(len(rounds))
        hatches = ("", "//", "..", "xx", "\\\\", "++", "--")
        for k, (name, counts) in enumerate(outcomes.items()):
            colour = SERIES[(2, 4, 1, 3, 0, 7, 6)[k % 7]]
            style_of: dict[str, Any] = {"facecolor": colour, "alpha": 0.85, "hatch": hatches[k % 7]}
            above.bar(rounds, counts, bottom=floor, width=0.8, label=name, edgecolor=INK, linewidth=0.4, **style_of)
            floor += counts
        above.set_ylabel("users")
        above.set_ylim(0, max(float(floor.max()), 1.0) * 1.06)
        above.yaxis.set_major_locator(MaxNLocator(integer=True))
        above.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=7, borderaxespad=0.2)
        place, psnr_db, perfect_db = pictures
        # Two pictures of a round stand beside each other.
        at = place + np.where(np.append(False, place[1:] == place[:-1]), 0.15, -0.15) if len(place) else place
        below.vlines(at, psnr_db, perfect_db, color=SOFT, linewidth=1)
        below.plot(at, perfect_db, "o", color=SERIES[1], fillstyle="none", label="with perfect CSI, without radio")
        below.plot(at, psnr_db, "o", color=SERIES[0], label="as received")
        below.set_ylabel("PSNR, dB")
        below.set_xlabel("round")
        below.set_xlim(rounds.min() - 0.7, rounds.max() + 0.7)
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(place):
            below.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.2)
        return _svg(figure, title)


def latency_histograms(stages: Mapping[str, np.ndarray], title: str) -> str:
    """Histogram per stage on a common logarithmic time axis, with median and 99th percentile."""
    with style():
        figure = _figure(10, 0.75 + 0.72 * len(stages))
        floor = 1e-3
        everything = np.maximum(np.concatenate(list(stages.values())), floor)
        edges = np.geomspace(everything.min() * 0.9, everything.max() * 1.1, 70)
        first: Axes | None = None
        for place, (name, values) in enumerate(stages.items()):
            axes = figure.add_subplot(len(stages), 1, place + 1, sharex=first)
            first = first or axes
            shown = np.maximum(values, floor)
            axes.hist(shown, bins=edges.tolist(), color=SERIES[0 if name != "total" else 2], alpha=0.7)
            axes.axvline(float(np.median(shown)), color=INK, linewidth=1.3)
            axes.axvline(float(np.percentile(shown, 99)), color=SERIES[1], linewidth=1.3, linestyle="--")
            axes.set_xscale("log")
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
            axes.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8)
            last = place == len(stages) - 1
            axes.tick_params(labelbottom=last)
            _log_ticks(axes, "x", plain=True)
            if last:
                axes.set_xlabel("ms    (solid line: median, dashed line: 99th percentile)")
        return _svg(figure, title)


def style() -> AbstractContextManager[None]:
    """The look that all figures share."""
    return mpl.rc_context(_STYLE)


def _figure(width_in: float, height_in: float) -> Figure:
    figure = Figure(figsize=(width_in, height_in), dpi=110, layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def _bins(values: np.ndarray) -> int:
    return int(np.clip(np.sqrt(len(values)) * 1.5, 5, 50))


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The corners of a falling staircase, and of these one per 1/60 decade."""
    cell = np.round(60 * np.log10(np.stack([x, y])))
    keep = np.append(True, np.any(np.diff(cell, axis=1) != 0, axis=0))
    keep[-1] = True
    return x[keep], y[keep]


def _log_ticks(axes: Axes, which: str, plain: bool = False) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}" if plain else power_of_ten(v)))
    axis.set_minor_locator(NullLocator())


def power_of_ten(value: float) -> str:
    """1e-3 as 10⁻³; other values plainly."""
    exponent = np.log10(value) if value > 0 else 0.5
    if abs(exponent - round(exponent)) > 1e-9:
        return f"{value:g}"
    if -1 <= exponent <= 2:
        return f"{value:g}"
    return "10" + str(round(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _svg(figure: Figure, title: str) -> str:
    """The figure as an SVG element for inline use: themed, and with identifiers that are its own."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue().decode("utf-8")
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    own = f"f{zlib.crc32(title.encode()):08x}-"
    body = re.sub(r'\bid="', f'id="{own}', body)
    body = re.sub(r'href="#', f'href="#{own}', body)
    body = re.sub(r"url\(#", f"url(#{own}", body)
    body = re.sub(r"#[0-9a-f]{6}\b", lambda found: _VARIABLES.get(found[0], found[0]), body)
    head, rest = body.split(">", 1)
    box = re.search(r'viewBox="([^"]*)"', head)
    assert box is not None
    name = html.escape(title)
    return f'<svg viewBox="{box[1]}" role="img" aria-label="{name}"><title>{name}</title>{rest}'

"""The picture of a recording: spectrogram of each channel, levels over time, constellation; gaps marked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..captures.inspection import Levels, spectrogram
from ..captures.reader import Recording
from ..errors import RecordingError, StorageError
from .plots import DASHES, INK, SERIES, SOFT, style
from .runfolder import RX_NAME, RunFolder

MOST_CHANNELS = 8
"""More channels than these have levels, but no spectrogram in the picture."""
_SCATTER_SAMPLES = 200_000
_GAP_LINES = 200
_GAP = "#ff3b30"


def draw_recording(
    recording: Recording, levels: Levels, target: Path, on_share: Callable[[float], None] | None = None
) -> Path:
    """Draw a recording into a PNG file; memory does not grow with its length.

    Args:
        recording: on disk.
        levels: as measured.
        target: the file, replaced if it exists.
        on_share: told the share done.

    Returns:
        The file.

    Raises:
        RecordingError: the name does not end in .png.
        StorageError: it cannot be written.
    """
    if target.suffix.lower() != ".png":
        raise RecordingError(f"--picture is {target}; pictures are PNG files, let the name end in .png")
    tell = on_share or (lambda _share: None)
    power, edges = spectrogram(recording)
    tell(0.5)
    shown = min(recording.n_channels, MOST_CHANNELS)
    unit, scale = _time_unit(recording)
    gaps = [a.sample_start * scale for a in recording.annotations if a.fields.get("kind") == "gap"]
    with style():
        figure = Figure(figsize=(11, 1.7 + 2.1 * shown + 3.9), dpi=110, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(shown + 1, 2, width_ratios=(2.7, 1), height_ratios=[2.1] * shown + [3.4])
        figure.suptitle(_title(recording), fontsize=10.5, color=INK, x=0.01, ha="left")
        level_db = 10 * np.log10(np.maximum(power[:shown], 1e-20))
        high = float(np.percentile(level_db, 99.7))
        low = max(float(np.percentile(level_db, 3)), high - 70)
        half, span = (0.5 * (recording.sample_rate_hz or 1.0), edges[-1] * scale)
        hertz, label = (1e3, "kHz") if half < 2e6 else (1e6, "MHz")
        if recording.sample_rate_hz is None:
            hertz, label = 1.0, "of the rate"
        for channel in range(shown):
            axes = figure.add_subplot(grid[channel, :])
            image = axes.imshow(
                level_db[channel],
                aspect="auto",
                origin="lower",
                extent=(0, span, -half / hertz, half / hertz),
                cmap="viridis",
                vmin=low,
                vmax=high,
                interpolation="nearest",
            )
            _mark(axes, gaps)
            axes.grid(False)
            axes.set_ylabel(f"channel {channel}\n{label}")
            figure.colorbar(image, ax=axes, label="dBFS per bin", pad=0.01, fraction=0.03)
            axes.tick_params(labelbottom=channel == shown - 1)
            if channel == shown - 1:
                axes.set_xlabel(f"time in the file, {unit}" + (f"   (red: {len(gaps)} gaps)" if gaps else ""))
        tell(0.8)
        _draw_levels(figure.add_subplot(grid[shown, 0]), recording, levels, gaps, unit, scale)
        _draw_plane(figure.add_subplot(grid[shown, 1]), recording)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(target, format="png", facecolor="white")
        except OSError as err:
            raise StorageError(f"{target} cannot be written: {err.strerror}; choose another --picture") from err
    tell(1.0)
    return target


def _title(recording: Recording) -> str:
    rate, frequency = recording.sample_rate_hz, recording.frequency_hz
    parts = [
        recording.name,
        f"{recording.n_channels} x {recording.n_samples} samples, {recording.datatype}",
        "rate not known" if rate is None else f"{rate / 1e6:g} MS/s, {recording.n_samples / rate:g} s",
    ]
    if frequency is not None:
        parts.append(f"{frequency / 1e6:g} MHz")
    return "   ".join(parts)


def _time_unit(recording: Recording) -> tuple[str, float]:
    """Unit of the time axis, and what a sample is in it."""
    rate = recording.sample_rate_hz
    if rate is None:
        return "samples", 1.0
    duration_s = recording.n_samples / rate
    unit, factor = ("s", 1.0) if duration_s >= 2 else ("ms", 1e3) if duration_s >= 2e-3 else ("us", 1e6)
    return unit, factor / rate


def _mark(axes: Axes, gaps: list[float]) -> None:
    for at in gaps[:: 1 + len(gaps) // _GAP_LINES]:
        axes.axvline(at, color=_GAP, linewidth=1.8, linestyle=(0, (4, 2)))


def _draw_levels(axes: Axes, recording: Recording, levels: Levels, gaps: list[float], unit: str, scale: float) -> None:
    time = levels.time_s * (recording.sample_rate_hz or 1.0) * scale
    finite = levels.rms_over_time_dbfs[np.isfinite(levels.rms_over_time_dbfs)]
    for channel in range(recording.n_channels):
        colour, dash = SERIES[channel % len(SERIES)], DASHES[channel % len(DASHES)]
        name = f"channel {channel}" if channel < MOST_CHANNELS else None
        axes.plot(time, levels.rms_over_time_dbfs[channel], color=colour, linestyle=dash, linewidth=1, label=name)
    peaks = levels.peak_over_time_dbfs.max(axis=0)
    axes.plot(time, peaks, color=SOFT, linewidth=0.7, alpha=0.7, label="peak of all")
    axes.axhline(0, color=INK, linewidth=0.8, linestyle=":")
    _mark(axes, gaps)
    low = float(finite.min()) if finite.size else -100.0
    axes.set_ylim(max(low, -130.0) - 3, 4)
    axes.set_xlim(0, recording.n_samples * scale)
    axes.set_xlabel(f"time in the file, {unit}")
    axes.set_ylabel("level, dBFS")
    axes.set_title("rms level" + (f" (first {MOST_CHANNELS} named)" if recording.n_channels > MOST_CHANNELS else ""))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=5, handlelength=2.4)


def _draw_plane(axes: Axes, recording: Recording) -> None:
    """Equalised header symbols of the run, where the recording is what its receiver heard; else samples as stored."""
    symbols = _header_symbols(recording)
    if symbols is not None:
        reach = float(np.clip(np.percentile(np.abs(symbols), 99.5), 1.5, 6))
        axes.set_title("equalised header symbols")
    else:
        count = min(recording.n_samples, _SCATTER_SAMPLES // recording.n_channels)
        starts = np.linspace(0, recording.n_samples - max(1, count // 16), 16).astype(int) if count >= 16 else [0]
        pieces = [recording.read(int(s), max(1, count // 16) if count >= 16 else count).reshape(-1) for s in starts]
        symbols = np.concatenate(pieces)
        symbols = symbols[np.isfinite(symbols)]
        reach = float(np.percentile(np.abs(symbols), 99.9)) * 1.1 if symbols.size else 1.0
        axes.set_title("samples, all channels" if recording.n_channels > 1 else "samples")
    reach = reach if 0 < reach < np.inf else 1.0
    edges = list(np.linspace(-reach, reach, 161))
    density, _, _ = np.histogram2d(symbols.real, symbols.imag, bins=[edges, edges])
    axes.imshow(
        np.log1p(density.T),
        origin="lower",
        extent=(-reach, reach, -reach, reach),
        cmap="Blues",
        interpolation="nearest",
    )
    axes.set_aspect("equal")
    axes.set_xlabel("in phase")
    axes.set_ylabel("quadrature")


def _header_symbols(recording: Recording) -> np.ndarray | None:
    folder = RunFolder(recording.meta_path.parent)
    if not recording.name.startswith(RX_NAME) or not folder.constellation.is_file():
        return None
    try:
        symbols = np.load(folder.constellation, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError):
        return None
    if symbols.dtype.kind != "c":
        return None
    flat = np.asarray(symbols.reshape(-1)[: 20 * _SCATTER_SAMPLES])
    flat = flat[np.isfinite(flat)]
    return flat if flat.size else None

"""What the run report shows: a run read back from its folder, and other detectors on the slots it kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..captures.devicetime import DeviceTime
from ..captures.reader import Recording
from ..errors import RecordingError
from ..models.statistics import Interval, mean_ci95
from ..models.uad import detectors as engines
from ..models.uad.detectors.base import Detector
from .csi_metrics import csi_metrics
from .metrics import judged, run_metrics
from .run import make_detector
from .runfolder import RunFolder, unpack_users
from .scenario import Scenario
from .semantic_metrics import semantic_metrics

OnProgress = Callable[[str, float], None]
"""Called with what is being done and the share that is done, 0 to 1."""

Origin = Literal["run", "folder", "report"]

_RERUN_SLOTS = 600
_LEAST_SLOTS = 3
"""Per length, whatever the time: fewer give no interval worth drawing."""

_LEVEL_BLOCK_SAMPLES = 65536
_LEVEL_VALUES = 32_000_000
# A converter of 12 bits in a 16-bit container ends at 2047/2048.
_FULL_SCALE = 0.999


@dataclass(frozen=True)
class Run:
    """What lies in the folder of a run or replay.

    Attributes:
        folder: that the report is about.
        info: its run.json.
        live: folder of the run itself; for a run the same, for a replay the one it replays, None where that
            is gone.
        live_info: run.json of that.
        scenario: of the run.
        metrics: metrics.json, or the same computed from the tables.
        finished: whether metrics.json is there.
        decisions: table, (row,).
        truth: table, (frame,), or None.
        snapshots: table, (slot,), or None.
        header_symbols: complex64, (frame, cell), or None.
        recording: received signal, or None.
        recording_note: why there is none.
    """

    folder: RunFolder
    info: dict[str, Any]
    live: RunFolder | None
    live_info: dict[str, Any]
    scenario: Scenario
    metrics: dict[str, Any]
    finished: bool
    decisions: np.ndarray
    truth: np.ndarray | None
    snapshots: np.ndarray | None
    header_symbols: np.ndarray | None
    recording: Recording | None
    recording_note: str

    @property
    def is_replay(self) -> bool:
        """Whether this is a replay."""
        return self.live is not self.folder

    @property
    def radio_truth(self) -> dict[str, Any]:
        """What an emulated radio knows about itself; empty for real ones."""
        return self.live_info.get("radio", {}).get("truth", {})


@dataclass
class Judged:
    """One detector's scores and decisions, by preamble length.

    Attributes:
        name: of the detector.
        origin: decided in this run, in another folder of the same recording, or for this report.
        scores: float64, (slot, user) per length.
        decided: bool, (slot, user) per length.
        sent: bool, (slot, user) per length.
        batch_ms: mean computing time per slot in this report; None where it was not computed here.
    """

    name: str
    origin: Origin
    scores: dict[int, np.ndarray] = field(default_factory=dict)
    decided: dict[int, np.ndarray] = field(default_factory=dict)
    sent: dict[int, np.ndarray] = field(default_factory=dict)
    batch_ms: float | None = None

    def error(self, length: int) -> Interval:
        """Share of users decided wrongly, with its 95 % interval over slots."""
        return share_ci95(self.decided[length] != self.sent[length])

    def miss(self, length: int) -> float | None:
        """Share of the active users that were missed; None where nobody was active."""
        sent = self.sent[length]
        return float((sent & ~self.decided[length]).sum() / sent.sum()) if sent.any() else None

    def false_alarm(self, length: int) -> float | None:
        """Share of the silent users that were called active; None where nobody was silent."""
        silent = ~self.sent[length]
        return float((silent & self.decided[length]).sum() / silent.sum()) if silent.any() else None


def load_run(path: Path) -> Run:
    """Read the folder of a run or replay, finished or not.

    Raises:
        RecordingError: it is none, or a table in it is damaged.
    """
    folder = RunFolder(path)
    if not path.is_dir():
        raise RecordingError(f"{path} is not a folder; give the folder of a run")
    info = folder.read_json(folder.run_json)
    scenario = folder.scenario()
    live: RunFolder | None = folder
    live_info = info
    if "replay" in str(info.get("kind", "")):
        live = RunFolder(path.resolve().parent.parent)
        if live.run_json.is_file():
            live_info = live.read_json(live.run_json)
        else:
            live, live_info = None, {}
    decisions = folder.rows(folder.decisions)
    truth = live.rows(live.truth) if live and live.truth.is_file() else None
    finished = folder.metrics.is_file()
    if finished:
        metrics = folder.read_json(folder.metrics)
    else:
        # A run that was killed left its tables; what its blocks had counted is lost with it.
        measures: dict[str, Callable[..., dict[str, Any]]] = {
            "csi-feedback": csi_metrics,
            "semantic-downlink": semantic_metrics,
        }
        metrics = measures.get(scenario.kind, run_metrics)(folder, scenario, {}, truth_folder=live)
    recording, note = _recording(live)
    symbols = None
    if folder.constellation.is_file():
        try:
            symbols = np.load(folder.constellation)
        except (ValueError, OSError) as error:
            raise RecordingError(f"{folder.constellation} cannot be read: {error}; delete it to go without") from error
    return Run(
        folder,
        info,
        live,
        live_info,
        scenario,
        metrics,
        finished,
        decisions,
        truth,
        folder.rows(folder.snapshots) if folder.snapshots.is_file() else None,
        symbols,
        recording,
        note,
    )


def _recording(live: RunFolder | None) -> tuple[Recording | None, str]:
    if live is None:
        return None, "The run that was replayed is no longer beside this replay."
    if not live.recording.is_file():
        return None, "This run kept no recording of the received signal."
    try:
        return Recording.open(live.recording), ""
    except RecordingError as error:
        return None, f"The recording cannot be read: {error}"


def other_detectors(run: Run, names: Sequence[str] | None) -> list[str]:
    """Detectors to set beside the run's own.

    Unasked these are the classical ones, the weights that are named like the scenario, and those that have decided
    on this recording already.

    Args:
        run: the run.
        names: those asked for; None: all of the above.

    Raises:
        SemairError: one is unknown.
    """
    if names is None:
        users = run.scenario.users
        decided = {str(run.live_info.get("detector"))}
        names = [
            name
            for name in engines.suiting(run.scenario.preambles(), users.preamble_lengths)
            if not name.startswith(engines.LEARNED)
            or name in {engines.LEARNED + run.scenario.name, *decided}
            or (run.live is not None and run.live.replay(name).metrics.is_file())
        ]
    for name in names:
        engines.kind(name)
    return [name for name in names if name != run.info["detector"]]


def judge_run(run: Run) -> Judged:
    """The decisions that the run took, all of them, beside the truth."""
    return _judge_decisions(run, str(run.info["detector"]), "run", run.decisions)


def judge_other_folder(run: Run, name: str) -> Judged | None:
    """The decisions of another detector on the whole recording: those of its replay, or of the run replayed.

    Returns:
        None where there is no finished folder of this detector with the options it has here.
    """
    if run.live is None:
        return None
    options = run.scenario.detector.options if name == run.scenario.detector.name else {}
    for folder in (run.live, run.live.replay(name)):
        if folder.path == run.folder.path or not folder.metrics.is_file():
            continue
        info = folder.read_json(folder.run_json)
        default = info.get("options", {}) == options if folder is not run.live else True
        if info.get("detector") == name and default:
            return _judge_decisions(run, name, "folder", folder.rows(folder.decisions))
    return None


def _judge_decisions(run: Run, name: str, origin: Origin, decisions: np.ndarray) -> Judged:
    judged = Judged(name, origin)
    if run.truth is None:
        return judged
    rows, sent = with_truth(run, decisions)
    for length in sorted(set(rows["length"].tolist())):
        at = rows["length"] == length
        judged.scores[length] = rows["scores"][at]
        judged.decided[length] = unpack_users(rows["active"][at], run.scenario.users.n_users)
        judged.sent[length] = sent[at]
    return judged


def rerun_detectors(
    run: Run, names: Sequence[str], budget_s: float, on_progress: OnProgress | None = None
) -> list[Judged]:
    """What other detectors decide on the slots that the run kept.

    Args:
        run: with snapshots and truth; without them there is nothing to judge.
        names: of the detectors.
        budget_s: computing time for all of them; compilation at first use comes on top.
        on_progress: called with what is being done and the share done.

    Returns:
        One per detector, in the order given; every length that the run kept has at least
        three slots where the run kept so many.
    """
    if run.truth is None or run.snapshots is None or not names:
        return []
    kept = min(len(run.snapshots), len(run.decisions))
    snapshots, decisions = run.snapshots[:kept], run.decisions[:kept]
    same = snapshots["frame"] == decisions["frame"]
    snapshots, decisions = snapshots[same], decisions[same]
    known, at_truth = judged(decisions, run.truth, run.scenario)
    known, at_truth = known[:_RERUN_SLOTS], at_truth[:_RERUN_SLOTS]
    rows, values = decisions[known], snapshots["values"][known]
    sent = unpack_users(run.truth["active"][at_truth], run.scenario.users.n_users)
    m = run.scenario.n_snapshots
    slots = {}
    for length in sorted(set(rows["length"].tolist())):
        at = rows["length"] == length
        slots[length] = (
            values[at][:, : length * m].reshape(-1, length, m),
            rows["noise_power"][at],
            sent[at],
        )
    if not slots:
        return []
    costs: list[tuple[float, str, Detector]] = []
    for name in names:
        detector = make_detector(run.scenario, None if name == run.scenario.detector.name else name)
        if on_progress:
            on_progress(f"warming up {name}", 0.0)
        detector.warm_up(max(slots), m)
        begin = time.perf_counter()
        detector.warm_up(max(slots), m)
        costs.append((time.perf_counter() - begin, name, detector))
    # The quick ones first: what they leave of the time goes to the slow ones.
    end = time.perf_counter() + budget_s
    done: dict[str, Judged] = {}
    for k, (_, name, detector) in enumerate(sorted(costs, key=lambda cost: cost[0])):
        share = (end - time.perf_counter()) / (len(costs) - k)
        base = k / len(costs)
        done[name] = _judge(
            detector,
            slots,
            share,
            partial(_tell_part, on_progress, name, base, 1 / len(costs)) if on_progress else None,
        )
    return [done[name] for name in names]


def _tell_part(on_progress: OnProgress, name: str, base: float, share: float, part: float) -> None:
    on_progress(f"re-deciding with {name}", base + share * part)


def _judge(
    detector: Detector,
    slots: Mapping[int, tuple[np.ndarray, np.ndarray, np.ndarray]],
    budget_s: float,
    on_progress: Callable[[float], None] | None,
) -> Judged:
    """Decide slots in turn over lengths until time is up."""
    longest = max(len(y) for y, _, _ in slots.values())
    parts: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {length: [] for length in slots}
    begin = time.perf_counter()
    place, count, step = 0, 0, _LEAST_SLOTS
    while place < longest:
        for length, (y, noise, _) in slots.items():
            chunk = slice(place, place + step)
            if len(y[chunk]):
                found = detector.detect(y[chunk], noise[chunk])
                parts[length].append((found.scores, found.active))
                count += len(found.scores)
        place += step
        spent = time.perf_counter() - begin
        if on_progress:
            on_progress(min(1.0, max(place / longest, spent / budget_s if budget_s > 0 else 1.0)))
        step = min(4 * step, int((budget_s - spent) / (spent / place)))
        if step < 1:
            break
    judged = Judged(detector.name, "report", batch_ms=(time.perf_counter() - begin) / max(count, 1) * 1e3)
    for length, found_parts in parts.items():
        judged.scores[length] = np.concatenate([scores for scores, _ in found_parts])
        judged.decided[length] = np.concatenate([active for _, active in found_parts])
        judged.sent[length] = slots[length][2][: len(judged.scores[length])]
    return judged


def share_ci95(wrong: np.ndarray) -> Interval:
    """Share of wrong decisions, bool (slot, user), with its 95 % interval over slots, within 0 and 1."""
    value, low, high = mean_ci95(wrong.mean(axis=1), 1 / wrong.shape[1])
    return Interval(value, max(low, 0.0), min(high, 1.0))


def file_index(recording: Recording, sample_time: float) -> int | None:
    """Where the sample of a time on the radio's clock lies in a recording.

    Args:
        recording: of the run.
        sample_time: in samples on the clock of the recording's device times.

    Returns:
        Index in the file, or None where that sample was not recorded.
    """
    rate = recording.sample_rate_hz
    zero = DeviceTime(0, 0, round(rate)) if rate else None
    for segment in recording.segments:
        if segment.device_time is not None and zero is not None and rate:
            first = segment.device_time.samples_since(zero, rate)
        else:
            first = segment.global_index if segment.global_index is not None else segment.sample_start
        offset = round(sample_time) - first
        if 0 <= offset < segment.sample_count:
            return segment.sample_start + offset
    return None


@dataclass(frozen=True)
class Levels:
    """Levels per antenna; full scale is 1 for the real and for the imaginary part.

    Attributes:
        rms_dbfs: float, (antenna,), of the complex signal.
        peak_dbfs: float, (antenna,), of the larger of the two parts.
        at_full_scale: int, (antenna,), samples with a part at full scale.
        samples: looked at per antenna.
    """

    rms_dbfs: np.ndarray
    peak_dbfs: np.ndarray
    at_full_scale: np.ndarray
    samples: int


def antenna_levels(recording: Recording) -> Levels:
    """Levels of a recording; of a long one, of blocks spread evenly over it."""
    n_blocks = -(-recording.n_samples // _LEVEL_BLOCK_SAMPLES)
    wanted = max(1, _LEVEL_VALUES // (_LEVEL_BLOCK_SAMPLES * recording.n_channels))
    chosen = np.unique(np.linspace(0, n_blocks - 1, min(n_blocks, wanted)).astype(int))
    power = np.zeros(recording.n_channels)
    peak = np.zeros(recording.n_channels)
    full = np.zeros(recording.n_channels, np.int64)
    seen = 0
    for block in chosen:
        begin = int(block) * _LEVEL_BLOCK_SAMPLES
        count = min(_LEVEL_BLOCK_SAMPLES, recording.n_samples - begin)
        parts = np.nan_to_num(recording.read(begin, count)).view(np.float32)
        size = np.abs(parts)
        power += np.einsum("ij,ij->i", parts, parts, dtype=np.float64)
        peak = np.maximum(peak, size.max(axis=1))
        full += (size.reshape(len(size), -1, 2) >= _FULL_SCALE).any(axis=2).sum(axis=1)
        seen += count
    return Levels(
        10 * np.log10(np.maximum(power / max(seen, 1), 1e-20)), 20 * np.log10(np.maximum(peak, 1e-10)), full, seen
    )


def with_truth(run: Run, decisions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decisions on frames in which users might send, and who was active in them, bool (row, user)."""
    assert run.truth is not None
    known, at_truth = judged(decisions, run.truth, run.scenario)
    return decisions[known], unpack_users(run.truth["active"][at_truth], run.scenario.users.n_users)

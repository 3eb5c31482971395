"""Access slots of recorded runs as the detector would see them, with what was sent: data for activity detection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..blocks.waveforms.access import level_antennas, noise_powers, receive_access
from ..captures.datasets import DataSet, RunItems, windows
from ..errors import RecordingError
from ..models.uad.fine_tune import RecordedSlots
from .recorded_frames import OnShare, RecordedRun, find_frames
from .runfolder import RunFolder
from .scenario import Scenario


def run_slots(folder: Path, on_share: OnShare | None = None) -> tuple[Scenario, RunItems]:
    """Receive the access slots of a run's recording.

    Args:
        folder: of the run.
        on_share: told the share done.

    Returns:
        The run's scenario, and its slots: y (complex64, slot, max_preamble_length, snapshot, zero behind the symbols
        sent), length (int64), noise_power (float32, per snapshot entry), active (bool, slot, user), frame (int64).

    Raises:
        RecordingError: the folder is none of a run, its samples have no hash, or no frame of it is known.
    """
    run = RecordedRun.open(RunFolder(folder))
    scenario, fmt = run.scenario, run.scenario.frame
    if run.recording.sha512 is None:
        raise RecordingError(f"{run.recording.meta_path}, core:sha512: missing; runs are told apart by it")
    rows = {int(row["frame"]): index for index, row in enumerate(run.truth)}
    tell = on_share or (lambda _share: None)
    frames = [frame for frame, _ in find_frames(run, lambda share: tell(0.7 * share)) if frame.frame_number in rows]
    active = run.active()
    starts = [frame.start + fmt.access_start for frame in frames]
    slots, lengths, noise, who, numbers = [], [], [], [], []
    for k, window in windows(run.recording, starts, fmt.used_samples - fmt.access_start):
        frame = frames[k]
        row = rows[frame.frame_number]
        length = int(run.truth["length"][row])
        sent = window[:, : fmt.symbols_of_length(length) * fmt.symbol_samples]
        snapshots = receive_access(sent, fmt, length, frame.fraction, frame.cfo_hz)
        levelled, power = level_antennas(snapshots, noise_powers(window[:, fmt.noise_start - fmt.access_start :], fmt))
        y = np.zeros((fmt.max_preamble_length, levelled.shape[1]), np.complex64)
        y[:length] = levelled
        slots.append(y)
        lengths.append(length)
        noise.append(power)
        who.append(active[row])
        numbers.append(frame.frame_number)
        tell(0.7 + 0.3 * (k + 1) / len(frames))
    if not slots:
        raise RecordingError(
            f"{run.recording.meta_path}: no frame was found of which {run.folder.truth.name} says what was sent; check "
            "that both are of one run"
        )
    arrays: dict[str, np.ndarray] = {
        "y": np.array(slots),
        "length": np.array(lengths, np.int64),
        "noise_power": np.array(noise, np.float32),
        "active": np.array(who),
        "frame": np.array(numbers, np.int64),
    }
    return scenario, RunItems(str(folder), run.recording.sha512, arrays)


def recorded_sets(
    training: Sequence[Path], kept_out: Sequence[Path], on_progress: Callable[[str, float], None] | None = None
) -> tuple[list[RecordedSlots], list[RecordedSlots]]:
    """Access slots of runs to train with and of runs to judge by, as the training of detectors takes them.

    Args:
        training: folders of runs.
        kept_out: folders of runs.
        on_progress: told which run is received, and the share of all.

    Raises:
        ScenarioError: a run is on both sides, or given twice.
        RecordingError: a folder is none of a run.
    """
    total = len(training) + len(kept_out)
    scenarios: dict[str, Scenario] = {}
    items: list[RunItems] = []
    for done, folder in enumerate([*training, *kept_out]):

        def tell(share: float, name: str = str(folder), done: int = done) -> None:
            if on_progress is not None:
                on_progress(name, (done + share) / total)

        scenario, found = run_slots(folder, tell)
        scenarios[found.sha512] = scenario
        items.append(found)
    sets = DataSet(tuple(items[: len(training)]), tuple(items[len(training) :]))

    def slots(run: RunItems) -> RecordedSlots:
        scenario = scenarios[run.sha512]
        arrays = {name: run.arrays[name] for name in ("y", "length", "noise_power", "active")}
        return RecordedSlots(
            run.name, run.sha512, **arrays, preambles=scenario.preambles(), activity=scenario.users.activity
        )

    return [slots(run) for run in sets.training], [slots(run) for run in sets.kept_out]

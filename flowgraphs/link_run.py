"""What runs of every link have in common: results, sinks, running with limits, replay and its comparison."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..blocks.playback import Playback, PlayOptions
from ..blocks.sigmf_sink import SigmfSink
from ..errors import ReplayMismatch, ScenarioError
from ..hardware.radio import Link, Radio, Settings
from ..hardware.replay import ReplayRadio
from .execute import execute
from .radios import make_link, requested_settings
from .recording import RecorderWatch, common_fields, queue_bytes, radio_fields
from .runfolder import RX_NAME, TX_BEACON_NAME, RunFolder, provenance
from .scenario import Scenario, scenario_dict


@dataclass
class Progress:
    """State of a run while it runs.

    Attributes:
        sent: frames sent.
        decided: slots decided.
        dropped: slots dropped because samples were missing.
        wrong: wrong user decisions so far.
        expected: frames to come in all; None where unknown.
        recorder: tells how the recording of the antennas goes; None where there is none.
        remark: how good the decisions are, where it is not told by `wrong`.
    """

    sent: int = 0
    decided: int = 0
    dropped: int = 0
    wrong: int = 0
    expected: int | None = None
    recorder: RecorderWatch | None = None
    remark: str = ""


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class RunResult:
    """How a run went.

    Attributes:
        folder: where everything lies.
        metrics: contents of metrics.json.
        interrupted: ended by Ctrl-C.
    """

    folder: RunFolder
    metrics: dict[str, Any]
    interrupted: bool


@dataclass(frozen=True)
class ReplayResult:
    """How a replay compares with the live run.

    Attributes:
        folder: of the replay.
        metrics: contents of its metrics.json.
        detector: which decided; the model's name, where a link has no detector.
        live: decisions of the live run on frames that the recording holds whole.
        equal: of these, those the replay reproduced bit for bit (compared only with the live run's detector).
        extra: decisions the live run did not make (an interrupted run may leave its last frames undecided).
        air_s: duration of the recording.
        wall_s: duration of the replay.
        interrupted: ended by Ctrl-C.
        playback: how the recording was played.
    """

    folder: RunFolder
    metrics: dict[str, Any]
    detector: str
    live: int
    equal: int | None
    extra: int
    air_s: float
    wall_s: float
    interrupted: bool
    playback: dict[str, Any]


class Flowgraph(Protocol):
    """A link's top block."""

    def start(self) -> None:
        """Start."""

    def stop(self) -> None:
        """Stop."""

    def wait(self) -> None:
        """Wait for the end."""

    def warm_up(self) -> None:
        """Load networks and compile."""

    def failure(self) -> BaseException | None:
        """The first error that a block met, or None."""


def require_work(n_frames: int | None, record: bool, receive: bool) -> None:
    """Refuse a run that would do nothing.

    Raises:
        ScenarioError: no frame is to be sent, or it is neither to record nor to receive.
    """
    if n_frames is not None and n_frames < 1:
        raise ScenarioError(f"frames={n_frames}: at least 1 frame must be sent")
    if not (record or receive):
        raise ScenarioError("nothing to do: a run records, receives, or both")


def run_facts(
    kind: str,
    scenario: Scenario,
    radio: Radio,
    requested: Settings,
    actual: Settings,
    *,
    receive: bool = True,
    details: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Contents of a live run's run.json.

    Args:
        kind: of the link.
        scenario: of the run.
        radio: configured.
        requested: asked of it.
        actual: what it took.
        receive: whether something is received, not only recorded.
        details: what else is told.
    """
    truth = radio.truth()
    return {
        "format": 1,
        "kind": kind if receive else f"{kind} recording",
        **provenance(),
        "scenario": scenario_dict(scenario),
        **(details or {}),
        "radio": {
            "kind": radio.kind,
            "requested": requested.as_dict(),
            "actual": actual.as_dict(),
            "capabilities": asdict(radio.capabilities),
            "facts": radio.facts(),
            "truth": truth.as_dict() if truth else {},
        },
    }


def receive_sink(
    folder: RunFolder,
    scenario: Scenario,
    radio: Radio,
    requested: Settings,
    actual: Settings,
    max_samples: int | None,
    sent: Sequence[str],
) -> SigmfSink:
    """Recorder of the base station's antennas.

    Args:
        folder: of the run.
        scenario: of the run.
        radio: configured.
        requested: asked of it.
        actual: what it took.
        max_samples: per channel; None: no limit.
        sent: names of the recordings of what is received.
    """
    sink = SigmfSink(
        folder.path,
        RX_NAME,
        radio.capabilities.n_rx,
        actual.sample_rate_hz,
        actual.frequency_hz,
        radio.capabilities.datatype,
        max_samples=max_samples,
        frame_samples=None if radio.capabilities.has_hw_time else scenario.frame.frame_samples,
        queue_bytes=queue_bytes(radio, actual),
        description=f"base station antennas, scenario {scenario.name}",
        global_fields={**common_fields(radio, scenario), "role": "bs-rx", "tx_recordings": list(sent)},
        **radio_fields(radio, requested, actual),
    )
    sink.closing_fields = lambda: {"radio_counts": radio.counts()}
    return sink


def beacon_sink(folder: RunFolder, scenario: Scenario, radio: Radio, actual: Settings, description: str) -> SigmfSink:
    """Recorder of what the base station's first antenna sends."""
    return SigmfSink(
        folder.path,
        TX_BEACON_NAME,
        1,
        actual.sample_rate_hz,
        actual.frequency_hz,
        "cf32_le",
        description=description,
        global_fields={**common_fields(radio, scenario), "role": "tx-beacon"},
    )


def recorded_samples(sink: SigmfSink | None) -> int:
    """Samples per antenna that a sink has taken."""
    return sink.writer.n_samples if sink is not None and sink.writer is not None else 0


def run_flowgraph(
    flowgraph: Flowgraph,
    progress: Progress,
    on_progress: OnProgress | None,
    *,
    sink: SigmfSink | None = None,
    max_samples: int | None = None,
    until: Callable[[], bool] | None = None,
    failure: Callable[[], BaseException | None] | None = None,
) -> tuple[bool, float]:
    """Run a link's flowgraph, warmed up, to its end or to a limit.

    Args:
        flowgraph: of the link.
        progress: handed to `on_progress`.
        on_progress: called about twenty times a second; may be None.
        sink: ends the run once it holds `max_samples` per channel.
        max_samples: None: no limit.
        until: ends the run early once true.
        failure: instead of the flowgraph's own.

    Returns:
        Whether Ctrl-C ended it, and how many seconds it took.

    Raises:
        The first error that a block met.
    """

    def ended() -> bool:
        full = max_samples is not None and recorded_samples(sink) >= max_samples
        return full or (until is not None and until())

    begin = time.monotonic()
    interrupted = execute(
        flowgraph, failure or flowgraph.failure, (lambda: on_progress(progress)) if on_progress else None, ended
    )
    return interrupted, time.monotonic() - begin


def receiver_counts(synchroniser: Any, receiver: Any, decider: Any) -> dict[str, Any]:
    """What the blocks of a base station's receiver counted.

    Args:
        synchroniser: a frame synchroniser.
        receiver: cuts slots.
        decider: decides on them.
    """
    return {
        "frames_found": synchroniser.found,
        "headers_refused": synchroniser.refused,
        "gaps": synchroniser.gaps,
        "lost_samples": synchroniser.lost_samples,
        "slots_dropped": receiver.dropped,
        "slots_decided": decider.decided,
        "sync_delay_samples": synchroniser.delay_samples,
    }


@dataclass(frozen=True)
class Driven:
    """A receiver that was driven with a recording.

    Attributes:
        folder: of its decisions.
        playback: how the recording was played.
        counts: what its blocks counted.
    """

    folder: RunFolder
    playback: Playback
    counts: dict[str, Any]

    @property
    def interrupted(self) -> bool:
        """Ended by Ctrl-C."""
        return bool(self.counts["interrupted"])

    def result(self, metrics: dict[str, Any], detector: str, live: int, equal: int | None, extra: int) -> ReplayResult:
        """The replay's result."""
        air_s = self.playback.n_samples / self.playback.rate_hz
        played = self.playback.as_dict()
        wall_s = self.counts["wall_s"]
        return ReplayResult(self.folder, metrics, detector, live, equal, extra, air_s, wall_s, self.interrupted, played)


def drive(
    folder: RunFolder,
    recording: str,
    scenario: Scenario,
    kind: str,
    details: dict[str, Any],
    play: PlayOptions,
    build: Callable[[Radio, ExitStack], tuple[Flowgraph, Progress]],
    counts: Callable[[Any], dict[str, Any]],
    *,
    link: Link | None = None,
    any_frequency: bool = False,
    speed: float | None = None,
    expected: int | None = None,
    on_progress: OnProgress | None = None,
    until_frames: int | None = None,
) -> Driven:
    """Play a recording into a link's receiver, and leave run.json and tables in a folder, which is emptied.

    Args:
        folder: for run.json and tables.
        recording: its meta file.
        scenario: of the receiver.
        kind: of the link.
        details: what run.json tells of the receiver.
        play: how to play the recording.
        build: makes the flowgraph over the radio that plays, and the state of its progress; tables that it opens are
            closed with the stack.
        counts: what the flowgraph's blocks counted.
        link: what the recording is to be; None: what the scenario's base station receives.
        any_frequency: whatever the recording's centre frequency is.
        speed: of the host's clock; 1 is real time. None: as fast as it goes.
        expected: decisions to come; None where unknown.
        on_progress: called about twenty times a second.
        until_frames: stop after so many decisions; None: the whole recording.
    """
    radio = ReplayRadio.open(recording, link or make_link(scenario), play, any_frequency, speed)
    actual = radio.configure(requested_settings(scenario))
    playback = radio.source().playback
    if folder.path.is_dir():
        for item in folder.path.iterdir():
            item.unlink()
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_json(
        folder.run_json,
        {
            "format": 1,
            "kind": f"{kind} replay",
            **provenance(),
            "scenario": scenario_dict(scenario),
            **details,
            "radio": {"kind": radio.kind, "actual": actual.as_dict(), "facts": radio.facts()},
        },
    )
    with ExitStack() as stack:
        flowgraph, progress = build(radio, stack)
        progress.expected = expected
        flowgraph.warm_up()
        interrupted, wall_s = run_flowgraph(
            flowgraph,
            progress,
            on_progress,
            until=(lambda: progress.decided >= until_frames) if until_frames else None,
        )
    return Driven(folder, playback, {**counts(flowgraph), "interrupted": interrupted, "wall_s": wall_s})


def codec_play(play: PlayOptions | None, options: dict[str, Any] | None) -> tuple[PlayOptions, bool]:
    """How a replay by a codec plays its recording, and whether that is all of it as it was recorded.

    Raises:
        ScenarioError: options, of which codecs have none; or a loop without the place of its frames.
    """
    if options:
        raise ScenarioError(f"options {', '.join(options)}: a codec has none; leave them out")
    chosen = play or PlayOptions()
    if chosen.turns > 1 and chosen.frame_samples is None:
        raise ScenarioError("--loop needs the length and the begin of a frame; give --frame and --frame-start")
    return chosen, chosen == PlayOptions()


def held_rows(rows: np.ndarray, used_samples: int, playback: Playback) -> np.ndarray:
    """Live decisions on frames that a recording holds whole.

    A run that was interrupted or killed may have decided on samples that never reached the disk.

    Args:
        rows: with a field `sample_time`.
        used_samples: from a frame's start to the end of what decides.
        playback: of the recording.
    """
    return rows[rows["sample_time"] + used_samples <= playback.end_ticks]


def compare_rows(
    live: np.ndarray,
    replayed: np.ndarray,
    names: Iterable[str],
    keys: Sequence[str] = ("sample_time", "frame"),
    number: str = "frame",
) -> tuple[int, int, list[int]]:
    """Compare two tables of decisions, field by field and bit by bit.

    Args:
        live: rows, one per decision.
        replayed: rows of the same type.
        names: fields that must be equal.
        keys: fields that say which rows belong together.
        number: field that is told of rows that differ.

    Returns:
        Live decisions that were reproduced, decisions that only the replay made, and the frames of the live
        decisions that were not reproduced.
    """
    names = tuple(names)
    by_place = {tuple(int(row[key]) for key in keys): row for row in replayed}
    equal, different = 0, []
    for row in live:
        other = by_place.pop(tuple(int(row[key]) for key in keys), None)
        if other is not None and all(row[name].tobytes() == other[name].tobytes() for name in names):
            equal += 1
        else:
            different.append(int(row[number]))
    return equal, len(by_place), different


def require_reproduced(folder: Path, what: str, live: int, different: Sequence[int]) -> None:
    """Refuse a replay that decided otherwise.

    Args:
        folder: of the run.
        what: was decided, in the plural.
        live: how many were to be reproduced.
        different: frames of those that were not.

    Raises:
        ReplayMismatch: there are such.
    """
    if different:
        raise ReplayMismatch(
            f"{folder}: {len(different)} of {live} {what} were not reproduced (first: frame {different[0]}); the "
            "recording was altered, or the software or its libraries changed since the run (compare versions in "
            "run.json)"
        )

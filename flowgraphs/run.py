"""Running the random-access link live, and replaying it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..blocks.message_collector import Receiver
from ..blocks.playback import Playback, PlayOptions
from ..blocks.sigmf_sink import SigmfSink
from ..blocks.waveforms.access import access_burst
from ..blocks.waveforms.calibration import ChainError
from ..blocks.waveforms.frame import FrameFormat
from ..captures.gaps import find_losses, mark_losses
from ..captures.reader import Recording
from ..captures.writer import RecordingWriter
from ..errors import ModelError, RecordingError, ScenarioError, StorageError
from ..hardware.calibration import Calibration, load_calibration, require_settings, require_valid
from ..hardware.radio import Radio, Settings
from ..hardware.replay import ReplayRadio
from ..models.uad import detectors
from ..models.uad.detectors.base import Detector
from .calibrate import calibrate_for_run
from .channel_replay import recorded_channel
from .link_run import (
    Driven,
    OnProgress,
    Progress,
    ReplayResult,
    RunResult,
    beacon_sink,
    compare_rows,
    drive,
    held_rows,
    receive_sink,
    receiver_counts,
    require_reproduced,
    require_work,
    run_facts,
    run_flowgraph,
)
from .metrics import run_metrics
from .radios import make_link, make_radio, requested_settings
from .random_access import RandomAccess, tail_samples
from .recording import (
    RawResult,
    RecorderWatch,
    common_fields,
    record_raw,
    sample_limit,
    seal_run,
)
from .rowlog import RowLog
from .runfolder import (
    DECISION_FIELDS,
    RX_NAME,
    TX_BEACON_NAME,
    TX_USERS_NAME,
    RunFolder,
    decision_dtype,
    pack_users,
    truth_dtype,
    unpack_users,
)
from .scenario import Scenario, parse_scenario, scenario_dict
from .terminals import Terminals, transmission_of_base

KIND = "random-access"
KEPT_SNAPSHOTS = 2000
KEPT_CONSTELLATIONS = 64


Role = Literal["both", "base"]


def make_detector(scenario: Scenario, name: str | None = None, options: dict[str, Any] | None = None) -> Detector:
    """The scenario's detector, or another one by name, for its preambles and activity."""
    users = scenario.users
    # A prior of exactly 0 or 1 would decide without listening.
    activity = min(max(users.activity, 0.5 / users.n_users), 1 - 0.5 / users.n_users)
    if name is None:
        name, options = scenario.detector.name, scenario.detector.options
    made = detectors.make(name, scenario.preambles(), activity, **(options or {}))
    made.check_lengths(users.preamble_lengths)
    return made


def calibration_of(scenario: Scenario, radio: Radio, actual: Settings) -> Calibration | None:
    """The calibration that a scenario names, if it holds for its configured radio now; None where it names none.

    A recording is asked for its settings alone: which radio made it, and when, is no longer to be told for sure.

    Raises:
        ScenarioError: there is no such file, or it is none.
        RadioError: it does not hold; names field, both values, and what to do.
    """
    path = scenario.radio.calibration
    if path is None:
        return None
    calibration = load_calibration(path)
    if isinstance(radio, ReplayRadio):
        require_settings(calibration, actual, radio.capabilities.n_rx, str(path))
    else:
        address, parts = scenario.radio.address, scenario.radio.calibration_parts
        require_valid(calibration, radio, address, actual, parts, name=str(path))
    return calibration


def _errors(calibration: Calibration | None, scenario: Scenario, channels: Sequence[int] | None) -> list[ChainError]:
    """Errors of the chains that are received; empty where there is no calibration."""
    if calibration is None:
        return []
    errors = calibration.errors(scenario.radio.calibration_parts)
    return errors if channels is None else [errors[channel] for channel in channels]


def _calibration_facts(calibration: Calibration | None, scenario: Scenario) -> dict[str, Any] | None:
    """What run.json tells of the calibration in use."""
    if calibration is None:
        return None
    return {**calibration.summary(), "parts": list(scenario.radio.calibration_parts)}


class _Logs:
    """Turns messages into rows of the run folder."""

    def __init__(
        self,
        folder: RunFolder,
        scenario: Scenario,
        stack: ExitStack,
        arrival: Callable[[float], float] | None,
    ) -> None:
        self.n_users = scenario.users.n_users
        self.progress = Progress()
        self._arrival = arrival
        self._access_start = scenario.frame.access_start
        self._snapshot_items = scenario.frame.max_preamble_length * scenario.n_snapshots
        self.decisions = stack.enter_context(RowLog(folder.decisions, decision_dtype(self.n_users)))
        self.snapshots = stack.enter_context(
            RowLog(folder.snapshots, np.dtype([("frame", "<i8"), ("values", "<c8", (self._snapshot_items,))]))
        )
        self.truth = None if arrival is None else stack.enter_context(RowLog(folder.truth, truth_dtype(self.n_users)))
        self._masks: dict[int, np.ndarray] = {}
        self._constellation: list[np.ndarray] = []
        self.heard: list[tuple[int, float]] = []
        self._constellation_path = folder.constellation

    def on_truth(self, fields: dict[str, Any], _: np.ndarray) -> None:
        """A frame was sent."""
        assert self.truth is not None and self._arrival is not None
        row = np.zeros((), self.truth.dtype)
        row["frame"], row["start"], row["length"] = fields["frame"], fields["start"], fields["length"]
        row["arrival"] = self._arrival(fields["start"] - self._access_start)
        row["active"] = pack_users(fields["users"], self.n_users)
        self.truth.append(row)
        self._masks[fields["frame"]] = row["active"].copy()
        self.progress.sent += 1

    def on_decision(self, fields: dict[str, Any], snapshots: np.ndarray) -> None:
        """A slot was decided."""
        row = np.zeros((), self.decisions.dtype)
        for name in self.decisions.dtype.names or ():
            if name != "active":
                row[name] = fields[name]
        row["active"] = pack_users(fields["users"], self.n_users)
        self.decisions.append(row)
        if self.snapshots.rows < KEPT_SNAPSHOTS:
            kept = np.zeros((), self.snapshots.dtype)
            kept["frame"] = fields["frame"]
            kept["values"][: len(snapshots)] = snapshots
            self.snapshots.append(kept)
        sent = self._masks.pop(fields["frame"], None)
        if sent is not None:
            wrong = unpack_users(np.bitwise_xor(row["active"], sent), self.n_users)
            self.progress.wrong += int(np.count_nonzero(wrong))
        self.progress.decided += 1

    def on_frame(self, fields: dict[str, Any], symbols: np.ndarray) -> None:
        """A beacon was heard."""
        if not fields["counted"]:
            self.heard.append((fields["frame"], fields["sample_time"] + fields["fraction"]))
        if len(self._constellation) < KEPT_CONSTELLATIONS:
            self._constellation.append(symbols)

    def on_dropped(self, fields: dict[str, Any], _: np.ndarray) -> None:
        """A slot was dropped."""
        self._masks.pop(fields["frame"], None)
        self.progress.dropped += 1

    def finish(self) -> None:
        """Write what is not a growing table."""
        if self._constellation:
            try:
                np.save(self._constellation_path, np.stack(self._constellation))
            except OSError as error:
                raise StorageError(f"cannot write {self._constellation_path}: {error.strerror}") from error


def run_random_access(
    scenario: Scenario,
    folder: Path,
    *,
    n_frames: int | None = None,
    record: bool = True,
    receive: bool = True,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
    duration_s: float | None = None,
    size_bytes: float | None = None,
    role: Role = "both",
    calibrate: bool = False,
) -> RunResult:
    """Run the random-access link and leave a run folder.

    Args:
        scenario: the experiment.
        folder: to make.
        n_frames: frames to send, behind the quiet ones at the beginning; None: 200, or as many as the limits below
            take.
        record: keep the received and the transmitted samples.
        receive: synchronise and decide; without it the run only records, and a replay decides later.
        overwrite: replace an earlier run in this folder.
        on_progress: called about twenty times a second.
        duration_s: end the run once so much is recorded; None: no limit.
        size_bytes: end it before the received data exceed this; None: no limit.
        role: "both" runs the scenario's terminals in this process, too; "base" leaves them to others.
        calibrate: measure the radio's receive chains right before, as they are tuned then, and correct them by that.

    Returns:
        Folder, metrics, and whether Ctrl-C ended it.

    Raises:
        SemairError: anything a user can mend; what was recorded before is kept.
    """
    if scenario.csi is not None:
        raise ScenarioError(
            f"scenario {scenario.name} is one of kind {scenario.kind}: run it with `semair run {scenario.kind}`, or "
            "choose another"
        )
    require_work(n_frames, record, receive)
    if calibrate and scenario.radio.calibration is not None:
        raise ScenarioError(
            f"radio.calibration={scenario.radio.calibration} is given, and the radio is to be calibrated now: leave "
            "one of them out"
        )
    detector = make_detector(scenario)
    recorded, replayed = recorded_channel(scenario) if scenario.channel.kind == "recorded" else (None, None)
    radio = make_radio(scenario, recorded)
    _check_role(scenario, radio, role)
    with ExitStack() as opened:
        # A radio that emulates its air has nothing to let go, and may be asked afterwards.
        if not radio.waits:
            opened.callback(radio.close)
        return _run_over(
            radio,
            scenario,
            folder,
            detector,
            opened,
            replayed=replayed,
            n_frames=n_frames,
            record=record,
            receive=receive,
            overwrite=overwrite,
            on_progress=on_progress,
            duration_s=duration_s,
            size_bytes=size_bytes,
            with_terminals=role == "both" and bool(scenario.terminals),
            calibrate=calibrate,
        )


def _check_role(scenario: Scenario, radio: Radio, role: Role) -> None:
    if radio.capabilities.emulates_users and scenario.terminals:
        raise ScenarioError(
            f"radio {radio.kind} emulates the users, but the scenario has terminals; leave one of them out"
        )
    can = radio.capabilities
    if role == "both" and can.n_tx and not (can.emulates_users or scenario.terminals):
        raise ScenarioError(
            f"nobody would answer the beacon: radio {radio.kind} emulates no users, and the scenario has no terminals; "
            "list them as [[terminals]] with kind and address, or run the base station alone with --role base"
        )


def _run_over(
    radio: Radio,
    scenario: Scenario,
    folder: Path,
    detector: Detector,
    opened: ExitStack,
    *,
    replayed: dict[str, Any] | None,
    n_frames: int | None,
    record: bool,
    receive: bool,
    overwrite: bool,
    on_progress: OnProgress | None,
    duration_s: float | None,
    size_bytes: float | None,
    with_terminals: bool,
    calibrate: bool,
) -> RunResult:
    """See `run_random_access`; what is opened beside the radio is closed with `opened`."""
    requested = requested_settings(scenario, radio)
    actual = radio.configure(requested)
    max_samples = sample_limit(radio, actual, duration_s, size_bytes)
    if n_frames is None and max_samples is not None:
        n_frames = max_samples // scenario.frame.frame_samples + 2
    else:
        n_frames = (n_frames or 200) + scenario.quiet_frames
    truth = radio.truth()
    arrival = truth.receive_index if truth else _unknown_arrival
    calibration = calibration_of(scenario, radio, actual)
    if radio.capabilities.n_tx:
        opened.enter_context(transmission_of_base(scenario, radio, actual, n_frames))
    run_folder = RunFolder(folder)
    terminals = None
    if with_terminals:
        terminals = opened.enter_context(Terminals(scenario, run_folder, n_frames * scenario.frame.frame_s))
    run_folder.create(overwrite)
    if calibrate:
        # Which itself asks for a link and its settings.
        calibration = calibrate_for_run(scenario, radio, actual, run_folder.calibration)
    elif calibration is not None:
        calibration.write(run_folder.calibration)
    details = {
        "detector": detector.name,
        "detector_facts": detector.describe(),
        "calibration": _calibration_facts(calibration, scenario),
        "frames": n_frames,
        "quiet_frames": scenario.quiet_frames,
    }
    run = run_facts(KIND, scenario, radio, requested, actual, receive=receive, details=details)
    if replayed is not None:
        run["channel_replay"] = replayed
    if terminals is not None:
        run["terminals"] = terminals.facts()
    run_folder.write_json(run_folder.run_json, run)
    with ExitStack() as stack:
        logs = _Logs(run_folder, scenario, stack, arrival)
        stack.callback(logs.finish)
        logs.progress.expected = n_frames
        sinks: tuple[SigmfSink | None, SigmfSink | None] = (None, None)
        if record:
            sinks = receive_sink, _ = _sinks(run_folder, scenario, radio, requested, actual, max_samples)
            logs.progress.recorder = RecorderWatch(receive_sink, max_samples)
        flowgraph = RandomAccess(
            scenario,
            radio,
            detector if receive else None,
            n_frames=n_frames,
            tail_samples=tail_samples(scenario, truth),
            rx_sink=sinks[0],
            tx_sink=sinks[1],
            receivers={
                "truth": logs.on_truth,
                "decisions": logs.on_decision,
                "dropped": logs.on_dropped,
                "frames": logs.on_frame,
            },
            errors=_errors(calibration, scenario, None),
        )
        flowgraph.warm_up()
        if terminals is not None:
            terminals.start()

        def failure() -> BaseException | None:
            return flowgraph.failure() or (terminals.failure() if terminals is not None else None)

        interrupted, wall_s = run_flowgraph(
            flowgraph,
            logs.progress,
            on_progress,
            sink=sinks[0],
            max_samples=max_samples,
            until=lambda: flowgraph.is_over(logs.progress.decided + logs.progress.dropped),
            failure=failure,
        )
    reports = None if terminals is None else terminals.report()
    if terminals is not None:
        terminals.stop()
    if record and run_folder.recording.is_file():
        common = common_fields(radio, scenario)
        if not radio.capabilities.has_hw_time:
            mark_losses(run_folder.recording, find_losses(logs.heard, scenario.frame.frame_samples))
        _write_users_waveforms(run_folder, scenario, common)
        names = {"bs-rx": RX_NAME, "tx-beacon": TX_BEACON_NAME, "tx-users": TX_USERS_NAME}
        seal_run(run_folder, names, scenario, common, complete=not interrupted)
    counts = {
        **(_receiver_counts(flowgraph) if receive else {}),
        **radio.counts(),
        "interrupted": interrupted,
        "wall_s": wall_s,
    }
    metrics = run_metrics(run_folder, scenario, counts)
    if replayed is not None:
        metrics |= {"kind": "channel-replay", "channel_replay": replayed}
    if reports is not None:
        metrics["terminals"] = reports
    run_folder.write_json(run_folder.metrics, metrics)
    return RunResult(run_folder, metrics, interrupted)


def record_radio(scenario: Scenario, folder: Path, **options: Any) -> RawResult:
    """Record what the scenario's radio hears, without transmitting and without a receiver: see `record_raw`."""
    return record_raw(scenario, make_radio(scenario), requested_settings(scenario), folder, **options)


def replay_run(
    folder: Path,
    *,
    detector: str | None = None,
    options: dict[str, Any] | None = None,
    play: PlayOptions | None = None,
    speed: float | None = None,
    on_progress: OnProgress | None = None,
    until_frames: int | None = None,
) -> ReplayResult:
    """Drive the receiver with the recording of a run.

    Args:
        folder: of the run.
        detector: another detector than the run's. None, or the run's own without options: the same, with the
            options it had, whose decisions must come out bit for bit.
        options: of that detector.
        play: how to play the recording; None: all of it as it was recorded. Fewer channels are fewer antennas. Turns
            are of whole frames, found by the run's own decisions unless frames are given. Decisions are compared
            with the live ones only where nothing was asked for.
        speed: of the host's clock; 1 is real time. None: as fast as it goes.
        on_progress: called about twenty times a second.
        until_frames: stop after so many decisions; None: the whole recording.

    Returns:
        The comparison.

    Raises:
        ReplayMismatch: the same detector decided otherwise on some frame.
        SemairError: folder or recording do not fit.
    """
    live_folder = RunFolder(folder)
    if not live_folder.path.is_dir():
        raise RecordingError(f"{folder} is not a folder; give the folder of a run")
    scenario = live_folder.scenario()
    if options and detector is None:
        raise ScenarioError(f"options {', '.join(options)} are given without a detector; name theirs with --detector")
    live_run = live_folder.read_json(live_folder.run_json)
    live_name = str(live_run["detector"])
    same = detector is None or (detector == live_name and not options)
    play, as_it_was = play or PlayOptions(), play in (None, PlayOptions())
    scenario = _with_antennas(scenario, play)
    engine = make_detector(scenario) if same else make_detector(scenario, detector, options)
    if same and as_it_was and live_run.get("detector_facts", engine.describe()) != engine.describe():
        raise ModelError(
            f"{folder}: detector {live_name} is no longer what it was in the run: {live_run['detector_facts']} then, "
            f"{engine.describe()} now; bring the run's weights back, or name a detector with --detector"
        )
    if play.turns > 1 and play.frame_samples is None:
        play = replace(
            play, frame_samples=scenario.frame.frame_samples, frame_start=_first_frame(live_folder, scenario)
        )
    name = "same" if same and as_it_was else engine.name
    replay_folder = live_folder.replay(name if as_it_was else f"{name}-{_play_name(play)}")
    live_rows = live_folder.live_decisions(decision_dtype(scenario.users.n_users))
    driven = _drive(
        replay_folder,
        str(live_folder.recording),
        scenario,
        engine,
        scenario.detector.options if same else options or {},
        play,
        speed=speed,
        expected=len(live_rows) if as_it_was else None,
        on_progress=on_progress,
        until_frames=until_frames,
        calibration=load_calibration(live_folder.calibration) if live_folder.calibration.is_file() else None,
    )
    held = held_rows(live_rows, scenario.frame.used_samples, driven.playback)
    live_rows = held if as_it_was else live_rows[:0]
    rows = replay_folder.rows(replay_folder.decisions)
    equal, extra, different = compare_decisions(live_rows, rows)
    # Turns repeat frames, but truth holds each once.
    truth_folder = live_folder if play.turns == 1 and live_folder.truth.is_file() else None
    metrics = run_metrics(replay_folder, scenario, driven.counts, truth_folder=truth_folder)
    if play.gaps == "splice" and driven.playback.gaps:
        # Spliced samples have not the times they had on the air.
        metrics.pop("synchronisation", None)
    replay_folder.write_json(replay_folder.metrics, metrics)
    result = driven.result(metrics, engine.name, len(live_rows), equal if same and as_it_was else None, extra)
    if same and not result.interrupted and until_frames is None:
        require_reproduced(folder, "decisions", len(live_rows), different)
    return result


def replay_recording(
    path: Path,
    scenario: Scenario,
    folder: Path,
    *,
    play: PlayOptions | None = None,
    any_frequency: bool = False,
    speed: float | None = None,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> ReplayResult:
    """Drive a scenario's receiver with any recording that fits it.

    Args:
        path: of the recording.
        scenario: numerology, preambles, synchronisation, detector.
        folder: to leave the decisions in.
        play: how to play the recording; None: all of it as it was recorded.
        any_frequency: whatever its centre frequency is.
        speed: of the host's clock; 1 is real time. None: as fast as it goes.
        overwrite: replace an earlier run in this folder.
        on_progress: called about twenty times a second.

    Returns:
        Metrics without truth, which a recording does not hold.

    Raises:
        RadioError: sample rate, centre frequency or number of channels are others than the scenario's.
        SemairError: anything else a user can mend.
    """
    play = play or PlayOptions()
    engine = make_detector(scenario)
    run_folder = RunFolder(folder)
    options = scenario.detector.options
    # Refused before a folder is made.
    radio = ReplayRadio.open(str(path), make_link(scenario), play, any_frequency)
    calibration = calibration_of(scenario, radio, radio.configure(requested_settings(scenario)))
    run_folder.create(overwrite)
    driven = _drive(
        run_folder,
        str(path),
        scenario,
        engine,
        options,
        play,
        any_frequency=any_frequency,
        speed=speed,
        on_progress=on_progress,
        calibration=calibration,
    )
    metrics = run_metrics(run_folder, scenario, driven.counts)
    run_folder.write_json(run_folder.metrics, metrics)
    return driven.result(metrics, engine.name, 0, None, len(run_folder.rows(run_folder.decisions)))


def _drive(
    folder: RunFolder,
    recording: str,
    scenario: Scenario,
    engine: Detector,
    options: dict[str, Any],
    play: PlayOptions,
    *,
    calibration: Calibration | None,
    **how: Any,
) -> Driven:
    """Play a recording into a scenario's receiver: see `drive`."""
    details = {
        "detector": engine.name,
        "detector_facts": engine.describe(),
        "calibration": _calibration_facts(calibration, scenario),
        "options": options,
    }

    def build(radio: Radio, stack: ExitStack) -> tuple[RandomAccess, Progress]:
        logs = _Logs(folder, scenario, stack, None)
        stack.callback(logs.finish)
        receivers: dict[str, Receiver] = {
            "decisions": logs.on_decision,
            "dropped": logs.on_dropped,
            "frames": logs.on_frame,
        }
        errors = _errors(calibration, scenario, play.channels)
        return RandomAccess(scenario, radio, engine, receivers=receivers, errors=errors), logs.progress

    return drive(folder, recording, scenario, KIND, details, play, build, _receiver_counts, **how)


def _with_antennas(scenario: Scenario, play: PlayOptions) -> Scenario:
    """The scenario with as many antennas as channels are played."""
    if play.channels is None:
        return scenario
    plain = scenario_dict(scenario)
    plain["radio"]["n_antennas"] = len(play.channels)
    return parse_scenario(plain, f"channels={list(play.channels)}")


def _first_frame(folder: RunFolder, scenario: Scenario) -> int:
    """Place in the recording at which the first frame begins that the run heard."""
    rows = folder.rows(folder.decisions)
    place = None
    if len(rows):
        place = Playback(Recording.open(folder.recording)).place_at(int(rows["sample_time"].min()))
    if place is None:
        raise RecordingError(
            f"{folder.path}: the run decided on no frame of its recording, so nothing tells where frames begin; give "
            f"it with frame_start, and frame_samples={scenario.frame.frame_samples}"
        )
    return place


def _play_name(play: PlayOptions) -> str:
    """What a replay played, for the name of its folder."""
    parts: list[str] = [play.gaps]
    if play.channels is not None:
        parts.append("ch" + "-".join(map(str, play.channels)))
    if play.rate_hz is not None:
        parts.append(f"{play.rate_hz:.0f}Hz")
    if play.frame_samples is not None:
        parts.append(f"{play.turns}x{play.frame_samples}from{play.frame_start}")
    if play.max_samples is not None:
        parts.append(f"to{play.max_samples}")
    return "-".join(parts)


def compare_decisions(live: np.ndarray, replayed: np.ndarray) -> tuple[int, int, list[int]]:
    """Compare two tables of decisions on activity: see `compare_rows`."""
    return compare_rows(live, replayed, DECISION_FIELDS)


def _unknown_arrival(transmit_sample: float, user: int | None = None) -> float:
    return float("nan")


def _receiver_counts(flowgraph: RandomAccess) -> dict[str, Any]:
    return receiver_counts(flowgraph.synchroniser, flowgraph.slot_receiver, flowgraph.activity_detector)


def _sinks(
    folder: RunFolder,
    scenario: Scenario,
    radio: Radio,
    requested: Settings,
    actual: Settings,
    max_samples: int | None,
) -> tuple[SigmfSink, SigmfSink]:
    sent = (TX_BEACON_NAME, TX_USERS_NAME)
    receive = receive_sink(folder, scenario, radio, requested, actual, max_samples, sent)
    transmit = beacon_sink(folder, scenario, radio, actual, "transmitted beacon stream")
    transmit.signal = _ofdm(scenario.frame, 2)
    return receive, transmit


def _ofdm(frame: FrameFormat, order: int) -> dict[str, Any]:
    """A transmitted waveform in the terms of SigMF's extension `signal`."""
    return {
        "type": "digital",
        "mod_class": "psk",
        "order": order,
        "carrier_variant": "multi_carrier",
        "multiplexing": "ofdm",
        "channel_bw": frame.n_used * frame.subcarrier_spacing_hz,
    }


def _write_users_waveforms(folder: RunFolder, scenario: Scenario, common: dict[str, Any]) -> None:
    """Every burst that occurred, once per user and length, annotated; truth.npy says when each was sent."""
    truth = folder.rows(folder.truth)
    active = unpack_users(truth["active"], scenario.users.n_users)
    preambles = scenario.preambles()
    with RecordingWriter(
        folder.path,
        TX_USERS_NAME,
        n_channels=1,
        datatype="cf32_le",
        sample_rate_hz=scenario.frame.sample_rate_hz,
        frequency_hz=scenario.radio.frequency_hz,
        description="waveforms of the users' bursts, one after another; the annotations name user and length",
        global_fields={**common, "role": "tx-users"},
    ) as writer:
        place = 0
        for length in sorted(set(truth["length"].tolist())):
            for user in np.flatnonzero(active[truth["length"] == length].any(axis=0)):
                burst = access_burst(scenario.frame, preambles[:length, user])
                writer.write(burst[None])
                detail = {"signal:detail": _ofdm(scenario.frame, 4), "signal:emitter": {"seid": int(user)}}
                writer.annotate(place, len(burst), f"user {user} L {length}", standard_fields=detail, user=int(user))
                place += len(burst)
        if place == 0:
            # A run in which nobody was active still has its recording, one silent symbol long.
            writer.write(np.zeros((1, scenario.frame.symbol_samples), np.complex64))

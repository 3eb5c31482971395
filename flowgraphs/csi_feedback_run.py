"""Running CSI feedback live, and replaying it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..blocks.playback import PlayOptions
from ..blocks.sigmf_sink import SigmfSink
from ..blocks.waveforms.feedback import feedback_burst
from ..blocks.waveforms.sounding import aligned, from_delay_angle, sounding_slot, to_delay_angle
from ..captures.writer import RecordingWriter
from ..errors import ModelError, ScenarioError
from ..hardware.radio import Radio, Settings
from ..hardware.replay import ReplayRadio
from .csi_feedback import CsiFeedback
from .csi_metrics import csi_metrics
from .link_run import (
    Driven,
    OnProgress,
    Progress,
    ReplayResult,
    RunResult,
    beacon_sink,
    codec_play,
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
from .radios import csi_drops, make_link, make_radio, requested_settings
from .random_access import tail_samples
from .recording import RecorderWatch, common_fields, sample_limit, seal_run
from .rowlog import RowLog
from .runfolder import (
    RX_NAME,
    TX_BEACON_NAME,
    TX_USERS_NAME,
    USERS_RX_NAME,
    RunFolder,
    pack_users,
    truth_dtype,
)
from .scenario import Scenario

if TYPE_CHECKING:
    from ..models.csi.codec import Codec

KIND = "csi-feedback"
TX_SOUNDING_NAME = "tx-sounding"
CHANNELS = "channels.npy"
"""Table of the true downlink CSI, and of the SNR behind a combining that knows the uplink; one row per frame sent."""
ESTIMATES = "estimates.npy"
"""Table of what users estimated and sent; one row per user and frame heard."""


def channels_dtype(scenario: Scenario) -> np.dtype:
    """One row per frame sent: `h` (user, subcarrier, antenna), and per user the SNR that a known uplink would give."""
    frame = scenario.csi_frame
    users = frame.slots.n_users
    return np.dtype(
        [
            ("frame", "<i8"),
            ("uplink_snr_db", "<f8", (users,)),
            ("h", "<c8", (users, frame.slots.n_subcarriers, frame.n_antennas)),
        ]
    )


def estimate_dtype(scenario: Scenario) -> np.dtype:
    """One row per user and frame heard; see the messages `sent` of the feedback transmitter."""
    frame = scenario.csi_frame
    return np.dtype(
        [
            ("frame", "<i8"),
            ("user", "<i4"),
            ("sample_time", "<i8"),
            ("fraction", "<f8"),
            ("cfo_hz", "<f8"),
            ("snr_db", "<f8"),
            ("noise_power", "<f8"),
            ("error_power", "<f8"),
            ("first_path_samples", "<f8"),
            ("csi", "<c8", (frame.slots.n_taps, frame.n_antennas)),
            ("word", "<c8", (frame.slots.feedback_length,)),
            ("estimate_s", "<f8"),
            ("encode_s", "<f8"),
        ]
    )


def decision_dtype(scenario: Scenario) -> np.dtype:
    """One row per feedback slot decoded. Times `_ns` are of the host's monotonic clock and differ between runs."""
    frame = scenario.csi_frame
    users, length = frame.slots.n_users, frame.slots.feedback_length
    return np.dtype(
        [
            ("frame", "<i8"),
            ("sample_time", "<i8"),
            ("length", "<i4"),
            ("counted", "?"),
            ("fraction", "<f8"),
            ("cfo_hz", "<f8"),
            ("metric", "<f8"),
            ("snr_db", "<f8"),
            ("noise_power", "<f8"),
            ("active", "u1", (-(-users // 8),)),
            ("word_snr_db", "<f8", (users,)),
            ("flags", "u1", (users,)),
            ("words", "<c8", (users, length)),
            ("csi", "<c8", (users, frame.slots.n_taps, frame.n_antennas)),
            ("receive_s", "<f8"),
            ("decode_s", "<f8"),
            ("heard_ns", "<i8"),
            ("tagged_ns", "<i8"),
            ("cut_ns", "<i8"),
            ("decided_ns", "<i8"),
        ]
    )


_TIMES = {"receive_s", "decode_s", "heard_ns", "tagged_ns", "cut_ns", "decided_ns"}


def make_codec(scenario: Scenario) -> Codec:
    """The codec that a scenario names.

    Raises:
        ModelError: it is for another numerology, or takes no code of this length.
        ScenarioError: there is none of this name, or the scenario is none of CSI feedback.
    """
    wanted = require_csi(scenario)
    from ..models.csi.codec import Codec

    frame = scenario.csi_frame
    codec = Codec(
        wanted.model, (wanted.n_taps, scenario.radio.n_antennas), wanted.engine, bandwidth_hz=frame.bandwidth_hz
    )
    if wanted.feedback_length > codec.max_length:
        raise ModelError(
            f"{wanted.model}: codes have at most {codec.max_length} symbols, csi.feedback_length="
            f"{wanted.feedback_length}; shorten it, or choose other weights"
        )
    return codec


def require_csi(scenario: Scenario) -> Any:
    """The section of CSI feedback.

    Raises:
        ScenarioError: there is none.
    """
    if scenario.csi is None:
        raise ScenarioError(
            f"scenario {scenario.name} has no section [csi]; choose csi-lab or csi-paper, or add the section"
        )
    return scenario.csi


def model_facts(codec: Codec) -> dict[str, Any]:
    """What decides on the recovered CSI beside scenario and software; plain values."""
    weights = codec.card.weights
    return {"name": codec.card.name, "sha256": None if weights is None else weights.sha256}


class _Logs:
    """Turns messages into rows of the run folder."""

    def __init__(self, folder: RunFolder, scenario: Scenario, stack: ExitStack, radio: Radio | None) -> None:
        self.progress = Progress()
        self.scenario = scenario
        self.heard: list[tuple[int, float]] = []
        self._radio = radio
        self._slots = scenario.csi_frame.slots
        self._frame = scenario.csi_frame
        self.decisions = stack.enter_context(RowLog(folder.decisions, decision_dtype(scenario)))
        self._estimates: dict[tuple[int, int], np.ndarray] = {}
        self._error = self._energy = 0.0
        if radio is not None:
            self.truth = stack.enter_context(RowLog(folder.truth, truth_dtype(self._slots.n_users)))
            self.channels = stack.enter_context(RowLog(folder.path / CHANNELS, channels_dtype(scenario)))
            self.estimates = stack.enter_context(RowLog(folder.path / ESTIMATES, estimate_dtype(scenario)))
            self._drops = csi_drops(scenario)
            # The radio's own air draws in the thread of its block, and may not be asked meanwhile.
            twin = make_radio(scenario)
            twin.configure(requested_settings(scenario, twin))
            self._air = getattr(twin, "air", None)

    def on_truth(self, fields: dict[str, Any], _: np.ndarray) -> None:
        """A frame was sent, and answered."""
        assert self._radio is not None
        frame, users = fields["frame"], self._slots.n_users
        truth = self._radio.truth()
        row = np.zeros((), self.truth.dtype)
        row["frame"], row["start"], row["length"] = frame, fields["start"], fields["length"]
        row["arrival"] = np.nan
        if truth is not None:
            row["arrival"] = truth.receive_index(fields["start"] - self._frame.feedback_start)
        row["active"] = pack_users(fields["users"], users)
        self.truth.append(row)
        row = np.zeros((), self.channels.dtype)
        row["frame"] = frame
        row["h"] = self._drops(frame).h
        row["uplink_snr_db"] = [self._uplink_snr_db(user, frame, fields["start"]) for user in range(users)]
        self.channels.append(row)
        self.progress.sent += 1

    def _uplink_snr_db(self, user: int, frame: int, start: int) -> float:
        """SNR of a symbol behind a combining that knows the uplink, by the mean noise of the code's symbols."""
        air = self._air
        if air is None:
            return float("nan")
        fmt = self._frame.frame_format
        cells = self._frame.used_subcarriers[self._frame.code_cells[:, 1]]
        place = round(air.truth.receive_index(start + user * self._frame.part_samples))
        response = air.response(user, frame, cells * fmt.subcarrier_spacing_hz, place)
        # Gains of chains change signal and noise alike.
        gain = 10 ** (air.truth.chain_gain_db / 20)
        power = np.sum(np.abs(response / gain[:, None]) ** 2, axis=0)
        return float(-10 * np.log10(np.mean(air.truth.noise_power / np.maximum(power, 1e-30))))

    def on_sent(self, fields: dict[str, Any], vector: np.ndarray) -> None:
        """A user sent its CSI."""
        row = np.zeros((), self.estimates.dtype)
        for name in self.estimates.dtype.names or ():
            if name not in ("csi", "word"):
                row[name] = fields[name]
        size = row["csi"].size
        row["csi"] = vector[:size].reshape(row["csi"].shape)
        row["word"] = vector[size:]
        self.estimates.append(row)
        self._estimates[fields["frame"], fields["user"]] = row["csi"].copy()

    def on_decision(self, fields: dict[str, Any], vector: np.ndarray) -> None:
        """A slot was decoded."""
        row = np.zeros((), self.decisions.dtype)
        for name in self.decisions.dtype.names or ():
            if name not in ("active", "words", "csi"):
                row[name] = fields[name]
        row["active"] = pack_users(fields["users"], self._slots.n_users)
        size = row["words"].size
        row["words"] = vector[:size].reshape(row["words"].shape)
        row["csi"] = vector[size:].reshape(row["csi"].shape)
        self.decisions.append(row)
        self.progress.decided += 1
        for user in range(self._slots.n_users):
            sent = self._estimates.pop((fields["frame"], user), None)
            if sent is not None and user in fields["users"]:
                sent = sent / np.sqrt(np.mean(np.abs(sent) ** 2))
                self._error += float(np.mean(np.abs(sent - row["csi"][user]) ** 2))
                self._energy += 1
        if self._energy:
            error_db = 10 * np.log10(max(self._error / self._energy, 1e-9))
            self.progress.remark = f"NMSE {error_db:.1f} dB of what was sent"

    def on_frame(self, fields: dict[str, Any], _: np.ndarray) -> None:
        """The base station heard a beacon."""
        if not fields["counted"]:
            self.heard.append((fields["frame"], fields["sample_time"] + fields["fraction"]))

    def on_dropped(self, fields: dict[str, Any], _: np.ndarray) -> None:
        """A slot was dropped."""
        self.progress.dropped += 1

    def receivers(self) -> dict[str, Any]:
        """Functions by port."""
        return {
            "truth": self.on_truth,
            "sent": self.on_sent,
            "decisions": self.on_decision,
            "dropped": self.on_dropped,
            "frames": self.on_frame,
        }


def run_csi_feedback(
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
    answering: Sequence[Collection[int]] | None = None,
) -> RunResult:
    """Feed CSI back over the scenario's radio, and leave a run folder.

    Args:
        scenario: the experiment, with a section `csi`.
        folder: to make.
        n_frames: frames to send; None: 200, or as many as the limits below take.
        record: keep the received and the transmitted samples.
        receive: decode; without it the run only records, and a replay decodes later.
        overwrite: replace an earlier run in this folder.
        on_progress: called about twenty times a second.
        duration_s: end the run once so much is recorded; None: no limit.
        size_bytes: end it before the received data exceed this; None: no limit.
        answering: users that are there, for each frame from the first on; the others' parts stay silent, as they do in
            frames behind the last one told. None: all of them, always.

    Returns:
        Folder, metrics, and whether Ctrl-C ended it.

    Raises:
        SemairError: anything a user can mend; what was recorded before is kept.
    """
    require_csi(scenario)
    if scenario.pictures is not None:
        raise ScenarioError(
            f"scenario {scenario.name} is one of kind {scenario.kind}: run it with `semair run {scenario.kind}`, or "
            "leave its section [pictures] out"
        )
    require_work(n_frames, record, receive)
    if scenario.radio.calibration is not None:
        raise ScenarioError("radio.calibration has no use here: pilots tell what the chains do; leave it out")
    # Users and base station run in threads of their own.
    encoder, decoder = make_codec(scenario), make_codec(scenario)
    # What cannot be drawn is found before a folder is made.
    csi_drops(scenario)(0)
    radio = make_radio(scenario)
    if not radio.capabilities.emulates_users:
        raise ScenarioError(
            f"radio.kind={scenario.radio.kind!r}: users that feed CSI back are emulated so far; choose 'loopback'"
        )
    requested = requested_settings(scenario, radio)
    actual = radio.configure(requested)
    max_samples = sample_limit(radio, actual, duration_s, size_bytes)
    if n_frames is None:
        n_frames = 200 if max_samples is None else max_samples // scenario.frame.frame_samples + 2
    run_folder = RunFolder(folder)
    run_folder.create(overwrite)
    truth = radio.truth()
    details: dict[str, Any] = {"model": model_facts(decoder), "frames": n_frames}
    if answering is not None:
        details["answering"] = [sorted(users) for users in answering]
    run = run_facts(KIND, scenario, radio, requested, actual, receive=receive, details=details)
    run["radio"]["users_truth"] = radio.downlink().downlink.truth.as_dict()
    run_folder.write_json(run_folder.run_json, run)
    with ExitStack() as stack:
        logs = _Logs(run_folder, scenario, stack, radio)
        logs.progress.expected = n_frames
        sinks = _sinks(run_folder, scenario, radio, requested, actual, max_samples) if record else {}
        if record:
            logs.progress.recorder = RecorderWatch(sinks["rx_sink"], max_samples)
        flowgraph = CsiFeedback(
            scenario,
            radio,
            encoder,
            decoder if receive else None,
            n_frames=n_frames,
            tail_samples=tail_samples(scenario, truth) + 2 * scenario.frame.frame_samples,
            receivers=logs.receivers(),
            answering=None if answering is None else lambda frame: answering[frame] if frame < len(answering) else (),
            **sinks,
        )
        flowgraph.warm_up()
        interrupted, wall_s = run_flowgraph(
            flowgraph, logs.progress, on_progress, sink=sinks.get("rx_sink"), max_samples=max_samples
        )
    if record and run_folder.recording.is_file():
        common = common_fields(radio, scenario)
        _write_waveforms(run_folder, scenario, common)
        names = {
            "bs-rx": RX_NAME,
            "users-rx": USERS_RX_NAME,
            "tx-beacon": TX_BEACON_NAME,
            "tx-sounding": TX_SOUNDING_NAME,
            "tx-users": TX_USERS_NAME,
        }
        tables = (run_folder.path / CHANNELS, run_folder.path / ESTIMATES)
        seal_run(run_folder, names, scenario, common, complete=not interrupted, tables=tables)
    counts = {
        **(_receiver_counts(flowgraph) if receive else {}),
        **radio.counts(),
        "interrupted": interrupted,
        "wall_s": wall_s,
    }
    metrics = csi_metrics(run_folder, scenario, counts, coder=decoder)
    run_folder.write_json(run_folder.metrics, metrics)
    return RunResult(run_folder, metrics, interrupted)


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
    """Drive the base station's receiver with the recording of a run.

    Args:
        folder: of the run.
        detector: other weights than the run's. None: the same, whose CSI must come out bit for bit.
        options: there are none.
        play: how to play the recording; None: all of it as it was recorded.
        speed: of the host's clock; 1 is real time. None: as fast as it goes.
        on_progress: called about twenty times a second.
        until_frames: stop after so many decisions; None: the whole recording.

    Returns:
        The comparison.

    Raises:
        ReplayMismatch: the same codec recovered other CSI in some frame.
        SemairError: folder or recording do not fit.
    """
    live = RunFolder(folder)
    scenario = live.scenario()
    wanted = require_csi(scenario)
    live_run = live.read_json(live.run_json)
    play, as_it_was = codec_play(play, options)
    same = detector is None or detector == wanted.model
    if not same:
        scenario = scenario.model_copy(update={"csi": wanted.model_copy(update={"model": detector})})
    codec = make_codec(scenario)
    if same and as_it_was and live_run.get("model") != model_facts(codec):
        raise ModelError(
            f"{folder}: model {wanted.model} is no longer what it was in the run: {live_run.get('model')} then, "
            f"{model_facts(codec)} now; bring the run's weights back, or name other ones with --detector"
        )
    name = "same" if same and as_it_was else codec.card.name
    replay_folder = live.replay(name if as_it_was else f"{name}-played")
    live_rows = live.live_decisions(decision_dtype(scenario))
    driven = _drive(
        replay_folder,
        str(live.recording),
        scenario,
        codec,
        play,
        speed=speed,
        expected=len(live_rows) if as_it_was else None,
        on_progress=on_progress,
        until_frames=until_frames,
    )
    held = held_rows(live_rows, scenario.csi_frame.used_samples, driven.playback)
    live_rows = held if as_it_was else live_rows[:0]
    equal, extra, different = compare_csi(live_rows, replay_folder.rows(replay_folder.decisions))
    # Turns repeat frames, but truth holds each once.
    source = live if play.turns == 1 and live.truth.is_file() else None
    metrics = csi_metrics(replay_folder, scenario, driven.counts, truth_folder=source)
    replay_folder.write_json(replay_folder.metrics, metrics)
    if same and not driven.interrupted and until_frames is None:
        require_reproduced(folder, "recoveries of CSI", len(live_rows), different)
    return driven.result(metrics, codec.card.name, len(live_rows), equal if same and as_it_was else None, extra)


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
    """Drive a scenario's base station with any recording that fits it.

    Args:
        path: of the recording.
        scenario: numerology, slots, synchronisation, codec.
        folder: to leave the recovered CSI in.
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
    codec = make_codec(scenario)
    run_folder = RunFolder(folder)
    # Refused before a folder is made.
    ReplayRadio.open(str(path), make_link(scenario), play, any_frequency).configure(requested_settings(scenario))
    run_folder.create(overwrite)
    driven = _drive(
        run_folder, str(path), scenario, codec, play, any_frequency=any_frequency, speed=speed, on_progress=on_progress
    )
    metrics = csi_metrics(run_folder, scenario, driven.counts)
    run_folder.write_json(run_folder.metrics, metrics)
    return driven.result(metrics, codec.card.name, 0, None, len(run_folder.rows(run_folder.decisions)))


def _drive(
    folder: RunFolder, recording: str, scenario: Scenario, codec: Codec, play: PlayOptions, **how: Any
) -> Driven:
    """Play a recording into a scenario's receiver: see `drive`."""
    if play.channels is not None:
        raise ScenarioError("--channels: a codec is trained for all antennas of the base station; leave it out")

    def build(radio: Radio, stack: ExitStack) -> tuple[CsiFeedback, Progress]:
        logs = _Logs(folder, scenario, stack, None)
        return CsiFeedback(scenario, radio, None, codec, receivers=logs.receivers()), logs.progress

    details = {"model": model_facts(codec)}
    return drive(folder, recording, scenario, KIND, details, play, build, _receiver_counts, **how)


def compare_csi(live: np.ndarray, replayed: np.ndarray) -> tuple[int, int, list[int]]:
    """Compare two tables of recovered CSI but for the host's times: see `compare_rows`."""
    return compare_rows(live, replayed, [name for name in live.dtype.names or () if name not in _TIMES])


def csi_pictures(folder: RunFolder, decisions: np.ndarray | None = None) -> list[dict[str, Any]]:
    """True, estimated and recovered CSI of the frames of a run that were decoded.

    Args:
        folder: of the run.
        decisions: table of a replay; None: the run's own.

    Returns:
        One dictionary per user and frame: frame, user, and in delay and angle, complex64 (tap, beam), all in the timing
        of what the user sent: truth, estimate, recovered; recovered is None where the user was left out.
    """
    scenario = folder.scenario()
    frame = scenario.csi_frame
    n, taps = frame.slots.n_subcarriers, frame.slots.n_taps
    channels = folder.rows(folder.path / CHANNELS)
    truth = {int(number): k for k, number in enumerate(channels["frame"])}
    rows = folder.rows(folder.decisions) if decisions is None else decisions
    decided = {int(row["frame"]): row for row in rows}
    found = []
    for row in folder.rows(folder.path / ESTIMATES):
        number, user = int(row["frame"]), int(row["user"])
        if number not in decided or number not in truth:
            continue
        h = channels["h"][truth[number]][user]
        moved, _ = aligned(h, from_delay_angle(row["csi"], n))
        got = decided[number]["csi"][user]
        found.append(
            {
                "frame": number,
                "user": user,
                "truth": to_delay_angle(moved, taps),
                "estimate": row["csi"],
                "recovered": got if got.any() else None,
            }
        )
    return found


def _receiver_counts(flowgraph: CsiFeedback) -> dict[str, Any]:
    return receiver_counts(flowgraph.synchroniser, flowgraph.feedback_receiver, flowgraph.decoder)


def _sinks(
    folder: RunFolder,
    scenario: Scenario,
    radio: Radio,
    requested: Settings,
    actual: Settings,
    max_samples: int | None,
) -> dict[str, SigmfSink]:
    """Sinks of the received signals and of the first antenna's, as arguments of the flowgraph."""
    sent = (TX_BEACON_NAME, TX_USERS_NAME)
    users = SigmfSink(
        folder.path,
        USERS_RX_NAME,
        scenario.csi_frame.slots.n_users,
        actual.sample_rate_hz,
        actual.frequency_hz,
        radio.capabilities.datatype,
        description=f"one channel per user, each with a clock of its own, scenario {scenario.name}",
        global_fields={
            **common_fields(radio, scenario),
            "role": "users-rx",
            "tx_recordings": [TX_BEACON_NAME, TX_SOUNDING_NAME],
        },
    )
    receive = receive_sink(folder, scenario, radio, requested, actual, max_samples, sent)
    transmit = beacon_sink(folder, scenario, radio, actual, "what the base station's first antenna sent")
    return {"rx_sink": receive, "users_sink": users, "tx_sink": transmit}


def _write_waveforms(folder: RunFolder, scenario: Scenario, common: dict[str, Any]) -> None:
    """The sounding slot of all antennas, once; and every burst of the users, annotated with user and frame."""
    frame = scenario.csi_frame
    with RecordingWriter(
        folder.path,
        TX_SOUNDING_NAME,
        n_channels=frame.n_antennas,
        datatype="cf32_le",
        description=f"sounding slot of all antennas, sent {frame.sounding_start} samples behind each frame's start",
        global_fields={**common, "role": "tx-sounding"},
        sample_rate_hz=scenario.frame.sample_rate_hz,
        frequency_hz=scenario.radio.frequency_hz,
    ) as writer:
        writer.write(sounding_slot(frame))
    with RecordingWriter(
        folder.path,
        TX_USERS_NAME,
        n_channels=1,
        datatype="cf32_le",
        description="the users' bursts, one after another; the annotations name user and frame",
        global_fields={**common, "role": "tx-users"},
        sample_rate_hz=scenario.frame.sample_rate_hz,
        frequency_hz=scenario.radio.frequency_hz,
    ) as writer:
        at = 0
        for row in folder.rows(folder.path / ESTIMATES):
            burst = feedback_burst(frame, row["word"])
            writer.write(burst[None])
            user = int(row["user"])
            detail = {"signal:emitter": {"seid": user}}
            writer.annotate(at, len(burst), f"user {user} frame {row['frame']}", standard_fields=detail, user=user)
            at += len(burst)
        if at == 0:
            # A run in which no user heard anything still has its recording, one silent symbol long.
            writer.write(np.zeros((1, scenario.frame.symbol_samples), np.complex64))

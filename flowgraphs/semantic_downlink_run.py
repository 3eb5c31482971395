"""Running the picture downlink live, and replaying it."""

from __future__ import annotations

import math
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..blocks.picture_transmitter import Serve, Served
from ..blocks.playback import PlayOptions
from ..blocks.sigmf_sink import SigmfSink
from ..blocks.waveforms.picture_frame import channels_at
from ..captures.reader import Recording
from ..errors import ModelError, RadioError, ScenarioError, StorageError
from ..hardware.radio import Link, Radio, Settings
from ..hardware.replay import ReplayRadio
from .csi_feedback_run import make_codec
from .link_run import (
    Driven,
    OnProgress,
    Progress,
    ReplayResult,
    RunResult,
    codec_play,
    compare_rows,
    drive,
    held_rows,
    require_reproduced,
    require_work,
    run_facts,
    run_flowgraph,
)
from .picture_schedule import DrawnPictures, GivenPictures, Pictures, every_user, known_csi
from .radios import csi_drops, downlink_paths, make_link, make_radio, requested_settings
from .recording import RecorderWatch, common_fields, queue_bytes, sample_limit, seal_run
from .rowlog import RowLog
from .runfolder import USERS_RX_NAME, RunFolder, pack_users
from .scenario import Pictures as PictureSection
from .scenario import Scenario
from .semantic_downlink import SemanticDownlink, picture_tail_samples
from .semantic_metrics import (
    CHANNELS,
    JUDGED,
    JUDGED_DTYPE,
    REASONS,
    SENT,
    SKIPPED,
    SKIPPED_DTYPE,
    csi_nmse_db,
    judge_pictures,
    semantic_metrics,
)

if TYPE_CHECKING:
    from ..models.semantic.codec import PictureCodec

KIND = "semantic-downlink"
TX_NAME = "tx-antennas"
PICTURES = "pictures"
"""Folder of the pictures sent and received, as PNG."""

_FRAMES = 20


def truth_dtype(scenario: Scenario) -> np.dtype:
    """One row per frame sent; `arrival` is where the frame start arrives on each user's clock, in samples, and `length`
    how many users it serves."""
    users = scenario.n_users
    return np.dtype(
        [
            ("frame", "<i8"),
            ("start", "<i8"),
            ("arrival", "<f8", (users,)),
            ("length", "<i4"),
            ("active", "u1", (-(-users // 8),)),
            ("csi_nmse_db", "<f8"),
            ("serve_s", "<f8"),
            ("transmit_s", "<f8"),
        ]
    )


def sent_dtype(side: int) -> np.dtype:
    """One row per frame and user served: the picture."""
    return np.dtype([("frame", "<i8"), ("user", "<i4"), ("picture", "u1", (side, side, 3))])


def channels_dtype(scenario: Scenario) -> np.dtype:
    """One row per frame and user served; `h` lies on the data's subcarriers, `known` on those around the carrier."""
    frame = scenario.picture_frame
    shape = (frame.n_subcarriers, frame.n_antennas)
    return np.dtype(
        [("frame", "<i8"), ("user", "<i4"), ("nmse_db", "<f8"), ("h", "<c8", shape), ("known", "<c8", shape)]
    )


def decision_dtype(side: int) -> np.dtype:
    """One row per picture received. Times `_ns` are of the host's monotonic clock and differ between runs."""
    return np.dtype(
        [
            ("frame", "<i8"),
            ("user", "<i4"),
            ("sample_time", "<i8"),
            ("counted", "?"),
            ("fraction", "<f8"),
            ("cfo_hz", "<f8"),
            ("metric", "<f8"),
            ("snr_db", "<f8"),
            ("stream", "<i4"),
            ("n_served", "<i4"),
            ("noise_power", "<f8"),
            ("level", "<f8"),
            ("drift_hz", "<f8"),
            ("sinr_db", "<f8"),
            ("picture", "u1", (side, side, 3)),
            ("receive_s", "<f8"),
            ("decode_s", "<f8"),
            ("heard_ns", "<i8"),
            ("tagged_ns", "<i8"),
            ("cut_ns", "<i8"),
            ("decided_ns", "<i8"),
        ]
    )


_TIMES = {"receive_s", "decode_s", "heard_ns", "tagged_ns", "cut_ns", "decided_ns"}


def require_pictures(scenario: Scenario) -> PictureSection:
    """The section of the picture downlink.

    Raises:
        ScenarioError: there is none.
    """
    if scenario.pictures is None:
        raise ScenarioError(
            f"scenario {scenario.name} has no section [pictures]; choose semantic-lab, or add the sections [csi] and "
            "[pictures]"
        )
    return scenario.pictures


def make_picture_codec(scenario: Scenario) -> PictureCodec:
    """The picture codec that a scenario names.

    Raises:
        ModelError: it is for another numerology, or its pictures take another number of OFDM symbols.
        ScenarioError: there is none of this name, or the scenario is none of the picture downlink.
    """
    wanted = require_pictures(scenario)
    from ..models.semantic.codec import PictureCodec

    frame = scenario.picture_frame
    codec = PictureCodec(wanted.model, (frame.n_antennas, frame.n_subcarriers), wanted.engine)
    needed = codec.n_symbols(wanted.side, wanted.side)
    if needed != wanted.data_symbols:
        raise ModelError(
            f"{wanted.model}: pictures of {wanted.side} x {wanted.side} take {needed} OFDM symbols, "
            f"pictures.data_symbols={wanted.data_symbols}; make it {needed}"
        )
    return codec


def picture_model_facts(scenario: Scenario, codec: PictureCodec) -> dict[str, Any]:
    """What decides on the received pictures beside scenario and software; plain values."""
    weights = codec.card.weights
    return {"name": require_pictures(scenario).model, "sha256": None if weights is None else weights.sha256}


def picture_path(folder: RunFolder, frame: int, user: int, *, sent: bool = False) -> Path:
    """Where a run leaves the picture that a user received in a frame, or the one sent to it."""
    return folder.path / PICTURES / f"frame-{frame:05d}-user-{user}{'-sent' if sent else ''}.png"


class _Logs:
    """Turns messages into rows and pictures of the run folder.

    Every user's messages come in a thread of their own.
    """

    def __init__(self, folder: RunFolder, scenario: Scenario, stack: ExitStack, radio: Radio | None) -> None:
        wanted = require_pictures(scenario)
        self.progress = Progress()
        self.scenario, self._folder, self._radio = scenario, folder, radio
        self._lock = threading.Lock()
        self._served: dict[int, Served] = {}
        self._sent: dict[tuple[int, int], np.ndarray] = {}
        self._psnr_db: list[float] = []
        self.decisions = stack.enter_context(RowLog(folder.decisions, decision_dtype(wanted.side)))
        self.skipped = stack.enter_context(RowLog(folder.path / SKIPPED, SKIPPED_DTYPE))
        if radio is not None:
            self._drops = csi_drops(scenario)
            self.truth = stack.enter_context(RowLog(folder.truth, truth_dtype(scenario)))
            self.sent = stack.enter_context(RowLog(folder.path / SENT, sent_dtype(wanted.side)))
            self.channels = stack.enter_context(RowLog(folder.path / CHANNELS, channels_dtype(scenario)))
            (folder.path / PICTURES).mkdir()

    def noted(self, serve: Serve) -> Serve:
        """The same function, whose answers are kept until their frame is told of."""

        def asked(number: int) -> Served:
            served = serve(number)
            with self._lock:
                self._served[number] = served
                for user, picture in zip(served.users, served.pictures, strict=True):
                    self._sent[number, user] = picture
            return served

        return asked

    def on_sent(self, fields: dict[str, Any], _: np.ndarray) -> None:
        """A frame was sent."""
        assert self._radio is not None
        number, users = fields["frame"], fields["users"]
        with self._lock:
            served = self._served.pop(number)
        air = self._radio.downlink().downlink.truth
        row = np.zeros((), self.truth.dtype)
        for name in ("frame", "start", "csi_nmse_db", "serve_s", "transmit_s"):
            row[name] = fields[name]
        row["arrival"] = [air.receive_index(fields["start"], user) for user in range(self.scenario.n_users)]
        row["length"] = len(users)
        row["active"] = pack_users(users, self.scenario.n_users)
        if users:
            drop = self._drops(number)
            paths = downlink_paths(self.scenario, drop)
            h = channels_at(self.scenario.picture_frame, paths.delays_samples, paths.gains)
        for place, user in enumerate(users):
            channel = np.zeros((), self.channels.dtype)
            channel["frame"], channel["user"] = number, user
            channel["nmse_db"] = csi_nmse_db(drop.h[user], served.csi[place])
            channel["h"], channel["known"] = h[user], served.csi[place]
            self.channels.append(channel)
            picture = np.zeros((), self.sent.dtype)
            picture["frame"], picture["user"], picture["picture"] = number, user, served.pictures[place]
            self.sent.append(picture)
            _write_picture(picture_path(self._folder, number, user, sent=True), served.pictures[place])
        # Last: a run that is killed has no frame without its pictures and channels.
        self.truth.append(row)
        self.progress.sent += 1

    def on_picture(self, fields: dict[str, Any], vector: np.ndarray) -> None:
        """A user received a picture."""
        frame, user = fields["frame"], fields["user"]
        picture = vector.reshape(fields["rows"], fields["columns"], 3)
        row = np.zeros((), self.decisions.dtype)
        for name in self.decisions.dtype.names or ():
            row[name] = picture if name == "picture" else fields[name]
        with self._lock:
            self.decisions.append(row)
            self.progress.decided += 1
            sent = self._sent.pop((frame, user), None)
        if self._radio is not None:
            _write_picture(picture_path(self._folder, frame, user), picture)
        if sent is not None:
            error = float(np.mean((sent.astype(np.float64) - picture) ** 2))
            with self._lock:
                self._psnr_db.append(10 * math.log10(255**2 / max(error, 1e-5)))
                self.progress.remark = f"PSNR {np.mean(self._psnr_db):.1f} dB"

    def on_skipped(self, fields: dict[str, Any], _: np.ndarray) -> None:
        """A user heard a frame that brought it nothing."""
        row = np.zeros((), self.skipped.dtype)
        for name in ("frame", "user", "sample_time"):
            row[name] = fields[name]
        row["reason"] = REASONS.index(fields["reason"])
        with self._lock:
            self.skipped.append(row)
            self.progress.dropped += fields["reason"] == REASONS[-1]

    def receivers(self) -> dict[str, Any]:
        """Functions by port."""
        return {"sent": self.on_sent, "pictures": self.on_picture, "skipped": self.on_skipped}


def _write_picture(path: Path, picture: np.ndarray) -> None:
    from PIL import Image

    try:
        Image.fromarray(picture).save(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}; pictures before are kept") from error


def run_semantic_downlink(
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
    pictures: Pictures | None = None,
    serve: Serve | None = None,
) -> RunResult:
    """Send pictures over the scenario's radio, and leave a run folder.

    Args:
        scenario: the experiment, with sections `csi` and `pictures`.
        folder: to make.
        n_frames: frames to send; None: as many as the limits below take, else as send every picture once, else 20.
        record: keep what users received and what the antennas sent.
        receive: decode; without it the run only records, and a replay decodes later.
        overwrite: replace an earlier run in this folder.
        on_progress: called about twenty times a second.
        duration_s: end the run once so much is recorded; None: no limit.
        size_bytes: end it before the received data exceed this; None: no limit.
        pictures: to send; None: drawn ones.
        serve: tells whom each frame serves, with which pictures and CSI, instead of all users in turn with CSI as the
            scenario says.

    Returns:
        Folder, metrics, and whether Ctrl-C ended it.

    Raises:
        SemairError: anything a user can mend; what was recorded before is kept.
    """
    wanted = require_pictures(scenario)
    require_work(n_frames, record, receive)
    if scenario.radio.calibration is not None:
        raise ScenarioError("radio.calibration has no use here: references tell what the chains do; leave it out")
    users = range(scenario.n_users)
    # Users and base station run in threads of their own.
    precoder = make_picture_codec(scenario)
    decoders = [make_picture_codec(scenario) for _ in users] if receive else None
    chosen = pictures or DrawnPictures(wanted.side, scenario.seed)
    if serve is None:
        serve = every_user(
            scenario, chosen, known_csi(scenario, make_codec(scenario) if wanted.csi == "fed back" else None)
        )
        given = None
    else:
        given = "by the caller"
    # What cannot be drawn is found before a folder is made.
    csi_drops(scenario)(0)
    radio = make_radio(scenario)
    if not radio.capabilities.emulates_users:
        raise ScenarioError(
            f"radio.kind={scenario.radio.kind!r}: users that receive pictures are emulated so far; choose 'loopback'"
        )
    requested = requested_settings(scenario, radio)
    actual = radio.configure(requested)
    max_samples = sample_limit(_Users(radio, scenario), actual, duration_s, size_bytes)  # type: ignore[arg-type]
    if n_frames is None:
        n_frames = _FRAMES
        if max_samples is not None:
            n_frames = max_samples // scenario.frame.frame_samples + 2
        elif isinstance(chosen, GivenPictures):
            n_frames = math.ceil(len(chosen) / wanted.n_streams)
    run_folder = RunFolder(folder)
    run_folder.create(overwrite)
    details = {
        "model": picture_model_facts(scenario, precoder),
        "frames": n_frames,
        "pictures": {"from": given or chosen.name, "skipped": {} if given else chosen.skipped},
    }
    run = run_facts(KIND, scenario, radio, requested, actual, receive=receive, details=details)
    run["radio"]["users_truth"] = radio.downlink().downlink.truth.as_dict()
    run_folder.write_json(run_folder.run_json, run)
    from ..models.semantic.codec import one_thread

    with ExitStack() as stack:
        stack.enter_context(one_thread())
        logs = _Logs(run_folder, scenario, stack, radio)
        logs.progress.expected = None if given else n_frames * wanted.n_streams
        sinks = _sinks(run_folder, scenario, radio, actual, max_samples) if record else {}
        if record:
            logs.progress.recorder = RecorderWatch(sinks["rx_sink"], max_samples)
        flowgraph = SemanticDownlink(
            scenario,
            radio,
            precoder,
            logs.noted(serve),
            decoders,
            n_frames=n_frames,
            tail_samples=picture_tail_samples(scenario, radio),
            receivers=logs.receivers(),
            **sinks,
        )
        flowgraph.warm_up()
        interrupted, wall_s = run_flowgraph(
            flowgraph, logs.progress, on_progress, sink=sinks.get("rx_sink"), max_samples=max_samples
        )
    if record and run_folder.recording.is_file():
        common = common_fields(radio, scenario)
        tables = tuple(run_folder.path / name for name in (SENT, CHANNELS, SKIPPED))
        roles = {"users-rx": USERS_RX_NAME, "tx-antennas": TX_NAME}
        seal_run(run_folder, roles, scenario, common, complete=not interrupted, tables=tables)
    with one_thread():
        decisions = run_folder.rows(run_folder.decisions)
        _write_rows(run_folder.path / JUDGED, judge_pictures(run_folder, decisions, scenario, precoder))
    counts = {**_counts(flowgraph), **_air_counts(radio), "interrupted": interrupted, "wall_s": wall_s}
    metrics = semantic_metrics(run_folder, scenario, counts)
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
    """Drive the users' receivers with the recording of a run.

    Args:
        folder: of the run.
        detector: only the run's own weights, which must give every picture bit for bit.
        options: there are none.
        play: how to play the recording; None: all of it as it was recorded.
        speed: of the host's clock; 1 is real time. None: as fast as it goes.
        on_progress: called about twenty times a second.
        until_frames: stop after so many pictures; None: the whole recording.

    Returns:
        The comparison.

    Raises:
        ReplayMismatch: some picture came out otherwise.
        SemairError: folder or recording do not fit.
    """
    live = RunFolder(folder)
    scenario = live.scenario()
    wanted = require_pictures(scenario)
    live_run = live.read_json(live.run_json)
    play, as_it_was = codec_play(play, options)
    if detector not in (None, wanted.model):
        raise ScenarioError(
            f"--detector {detector}: pictures are decoded by the weights that coded them, {wanted.model}; leave it out"
        )
    codecs = [make_picture_codec(scenario) for _ in range(scenario.n_users)]
    facts = picture_model_facts(scenario, codecs[0])
    if as_it_was and live_run.get("model") != facts:
        raise ModelError(
            f"{folder}: model {wanted.model} is no longer what it was in the run: {live_run.get('model')} then, "
            f"{facts} now; bring the run's weights back"
        )
    replay_folder = live.replay("same" if as_it_was else "played")
    live_rows = live.live_decisions(decision_dtype(wanted.side))
    driven = _drive(
        replay_folder,
        live.recording,
        scenario,
        codecs,
        play,
        speed=speed,
        expected=len(live_rows) if as_it_was else None,
        on_progress=on_progress,
        until_frames=until_frames,
    )
    held = held_rows(live_rows, scenario.picture_frame.used_samples, driven.playback)
    live_rows = held if as_it_was else live_rows[:0]
    replayed = replay_folder.rows(replay_folder.decisions)
    equal, extra, different = compare_pictures(live_rows, replayed)
    # Turns repeat frames, but truth holds each once.
    source = live if play.turns == 1 and live.truth.is_file() else None
    if source is not None:
        _write_rows(replay_folder.path / JUDGED, judge_pictures(live, replayed, scenario, None))
    metrics = semantic_metrics(replay_folder, scenario, driven.counts, truth_folder=source)
    replay_folder.write_json(replay_folder.metrics, metrics)
    if not driven.interrupted and until_frames is None:
        require_reproduced(folder, "pictures", len(live_rows), different)
    return driven.result(metrics, wanted.model, len(live_rows), equal if as_it_was else None, extra)


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
    """Drive a scenario's users with any recording that fits them, one channel for each.

    Args:
        path: of the recording.
        scenario: numerology, slots, synchronisation, codec.
        folder: to leave the pictures in.
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
    codecs = [make_picture_codec(scenario) for _ in range(scenario.n_users)]
    run_folder = RunFolder(folder)
    # Refused before a folder is made.
    link = _users_link(path, scenario, play)
    ReplayRadio.open(str(path), link, play, any_frequency).configure(requested_settings(scenario))
    run_folder.create(overwrite)
    driven = _drive(run_folder, path, scenario, codecs, play, any_frequency, speed, on_progress=on_progress)
    metrics = semantic_metrics(run_folder, scenario, driven.counts)
    run_folder.write_json(run_folder.metrics, metrics)
    rows = run_folder.rows(run_folder.decisions)
    (run_folder.path / PICTURES).mkdir(exist_ok=True)
    for row in rows:
        _write_picture(picture_path(run_folder, int(row["frame"]), int(row["user"])), row["picture"])
    return driven.result(metrics, require_pictures(scenario).model, 0, None, len(rows))


def compare_pictures(live: np.ndarray, replayed: np.ndarray) -> tuple[int, int, list[int]]:
    """Compare two tables of pictures bit by bit, but for the host's times.

    Returns:
        Live rows that were reproduced, rows that only the replay has, and the frames of live rows that were not
        reproduced.
    """
    names = [name for name in replayed.dtype.names or () if name not in _TIMES]
    return compare_rows(live, replayed, names, ("sample_time", "frame", "user"))


def _users_link(path: Path, scenario: Scenario, play: PlayOptions) -> Link:
    """What a recording of the users' antennas is to be."""
    channels = Recording.open(path).n_channels if play.channels is None else len(play.channels)
    if channels != scenario.n_users:
        raise RadioError(
            f"{path} has {channels} channels, the scenario has csi.n_users={scenario.n_users}, whose antennas they are "
            "to be; replay it with the scenario it was recorded with, or choose as many channels"
        )
    return replace(make_link(scenario), n_rx=scenario.n_users)


def _drive(
    folder: RunFolder,
    recording: Path,
    scenario: Scenario,
    codecs: list[PictureCodec],
    play: PlayOptions,
    any_frequency: bool = False,
    speed: float | None = None,
    *,
    expected: int | None = None,
    on_progress: OnProgress | None = None,
    until_frames: int | None = None,
) -> Driven:
    """Play a recording into the users' receivers, and leave run.json and tables in a folder, which is emptied."""

    from ..models.semantic.codec import one_thread

    def build(radio: Radio, stack: ExitStack) -> tuple[SemanticDownlink, Progress]:
        stack.enter_context(one_thread())
        logs = _Logs(folder, scenario, stack, None)
        return SemanticDownlink(scenario, radio, None, None, codecs, receivers=logs.receivers()), logs.progress

    return drive(
        folder,
        str(recording),
        scenario,
        KIND,
        {"model": picture_model_facts(scenario, codecs[0])},
        play,
        build,
        _counts,
        link=_users_link(recording, scenario, play),
        any_frequency=any_frequency,
        speed=speed,
        expected=expected,
        on_progress=on_progress,
        until_frames=until_frames,
    )


def _counts(flowgraph: SemanticDownlink) -> dict[str, Any]:
    """What the users' receivers counted, all together."""
    synchronisers, receivers = flowgraph.synchronisers, flowgraph.picture_receivers
    if not synchronisers:
        return {}
    return {
        "frames_found": sum(one.found for one in synchronisers),
        "headers_refused": sum(one.refused for one in synchronisers),
        "gaps": sum(one.gaps for one in synchronisers),
        "lost_samples": sum(one.lost_samples for one in synchronisers),
        "slots_dropped": sum(one.dropped for one in receivers),
        "grants_refused": sum(one.refused for one in receivers),
        "unserved": sum(one.unserved for one in receivers),
        "slots_decided": sum(one.decided for one in flowgraph.picture_decoders),
        "sync_delay_samples": synchronisers[0].delay_samples,
    }


def _air_counts(radio: Radio) -> dict[str, Any]:
    return {"clipped_samples_users": radio.downlink().downlink.clipped_samples.tolist()}


class _Users:
    """The users' antennas as a radio, where its number of channels is asked for."""

    def __init__(self, radio: Radio, scenario: Scenario) -> None:
        self.capabilities = replace(radio.capabilities, n_rx=scenario.n_users)


def _sinks(
    folder: RunFolder, scenario: Scenario, radio: Radio, actual: Settings, max_samples: int | None
) -> dict[str, SigmfSink]:
    """Sinks of what users receive and of what the antennas send, as arguments of the flowgraph."""
    common = common_fields(radio, scenario)
    place = (actual.sample_rate_hz, actual.frequency_hz)
    receive = SigmfSink(
        folder.path,
        USERS_RX_NAME,
        scenario.n_users,
        *place,
        radio.capabilities.datatype,
        max_samples=max_samples,
        queue_bytes=queue_bytes(radio, actual),
        description=f"one channel per user, each with a clock of its own, scenario {scenario.name}",
        global_fields={**common, "role": "users-rx", "tx_recordings": [TX_NAME]},
    )
    receive.closing_fields = lambda: {"radio_counts": _air_counts(radio)}
    transmit = SigmfSink(
        folder.path,
        TX_NAME,
        scenario.radio.n_antennas,
        *place,
        "cf32_le",
        description="what the base station's antennas sent",
        global_fields={**common, "role": "tx-antennas"},
    )
    return {"rx_sink": receive, "tx_sink": transmit}


def _write_rows(path: Path, rows: np.ndarray) -> None:
    with RowLog(path, JUDGED_DTYPE) as log:
        log.append(rows)

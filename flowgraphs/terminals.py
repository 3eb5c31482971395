"""User terminals: radios that hear the base station's beacon and send their users' preambles in its access slots."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..blocks.frame_synchroniser import FrameSynchroniser
from ..blocks.message_collector import MessageCollector
from ..blocks.preamble_search import PreambleSearch
from ..blocks.runtime import Failsafe, gr
from ..blocks.user_terminal import UserTerminal
from ..blocks.waveforms.beacon import beacon, sync_sequence
from ..blocks.waveforms.user_terminal import TerminalUsers
from ..errors import RadioError, ScenarioError
from ..hardware.discover import backend
from ..hardware.radio import Link, Radio, Settings
from ..hardware.site import LOUDEST_DBFS, Emission, find_site_file, judge, load_site
from ..hardware.watch import StallWatch
from ..models.channels import ChannelConfig
from .execute import execute
from .random_access import connect_silence, first_failure
from .rowlog import RowLog
from .runfolder import RunFolder, pack_users, provenance
from .scenario import Scenario, Terminal, scenario_dict
from .transmit import append_log, default_log

SENT_NAME = "terminals.npy"
EVENTS_NAME = "terminals.json"
_KEPT_EVENTS = 10_000
# Soundings of terminals are drawn far from the seeds that scenarios use.
_SOUNDING_SEED = 1 << 20
_SOUNDING_THRESHOLD = 0.25
_GONE_S = 3.0
_STOP_S = 10.0


def sent_dtype(n_users: int) -> np.dtype:
    """One row per frame and terminal in which something was sent; `start` of the access slot on its own clock."""
    return np.dtype(
        [
            ("frame", "<i8"),
            ("terminal", "<i4"),
            ("start", "<f8"),
            ("cfo_hz", "<f8"),
            ("length", "<i4"),
            ("active", "u1", (-(-n_users // 8),)),
        ]
    )


@contextmanager
def transmission(
    radio: Radio, kind: str, address: str, settings: Settings, level_dbfs: float, peak: float, duration_s: float
) -> Iterator[None]:
    """While a radio may send: what the site does not permit is refused, and beginning and end stand in the site's log.

    What ends in this machine is free.

    Raises:
        RadioError: the rules do not allow it; names all reasons.
        StorageError: the log cannot be written.
    """
    path = radio.capabilities.path
    if path in ("loopback", "sim"):
        yield
        return
    site_file = find_site_file()
    site = None if site_file is None else load_site(site_file)
    emission = Emission(
        frequency_hz=settings.frequency_hz,
        bandwidth_hz=settings.sample_rate_hz,
        gain_db=max(settings.tx_gain_db, default=None),
        level_dbfs=level_dbfs,
        peak=peak,
        duration_s=duration_s,
    )
    judgement = judge(emission, site, kind, address, path)
    if judgement.refusals:
        raise RadioError(f"not sent: {'; '.join(judgement.refusals)}")
    log = (site.log if site is not None else None) or default_log()
    entry = {"id": uuid.uuid4().hex, "what": "random access", "radio": kind, "address": address}
    append_log(log, {"event": "begin", **entry, "emission": vars(emission)})
    try:
        yield
    finally:
        append_log(log, {"event": "end", **entry})


def transmission_of_base(
    scenario: Scenario, radio: Radio, settings: Settings, n_frames: int
) -> AbstractContextManager[None]:
    """`transmission` of a base station's beacon."""
    level_dbfs = scenario.radio.tx_level_dbfs
    peak = 10 ** (level_dbfs / 20) * float(np.abs(beacon(scenario.frame, 0)).max())
    duration_s = n_frames * scenario.frame.frame_s
    kind, address = scenario.radio.kind, scenario.radio.address
    return transmission(radio, kind, address, settings, level_dbfs, peak, duration_s)


class TerminalFlowgraph(gr.top_block):
    """One terminal: its radio, the synchroniser that hears the beacon, and the transmitter that follows it.

    Args:
        scenario: numerology, users, synchronisation.
        number: of the terminal.
        radio: configured.
        on_sent: called with the fields of each frame in which it sends.
        on_event: called with what goes wrong and right.
    """

    def __init__(
        self,
        scenario: Scenario,
        number: int,
        radio: Radio,
        on_sent: Callable[[dict[str, Any], np.ndarray], None],
        on_event: Callable[[dict[str, Any], np.ndarray], None],
    ) -> None:
        gr.top_block.__init__(self, f"semair terminal {number}")
        from gnuradio import blocks as gr_blocks

        fmt, options = scenario.frame, scenario.terminals[number]
        self.radio = radio
        self.source, sink = radio.source(), radio.sink()
        untimed = not radio.capabilities.has_hw_time
        sounding = None
        if untimed:
            sequence = sync_sequence(fmt.model_copy(update={"sequence_seed": _SOUNDING_SEED + number}))
            sounding = (10 ** (_sounding_level_dbfs(options) / 20) * sequence).astype(np.complex64)
        self.synchroniser = FrameSynchroniser(fmt, 1, scenario.max_cfo_hz, scenario.sync.false_alarms_per_sample)
        self.terminal = UserTerminal(
            fmt,
            terminal_users(scenario, number),
            _amplitude(scenario, options),
            lead_s=options.lead_s,
            turnaround_samples=options.turnaround_samples,
            sounding=sounding,
        )
        heard = gr_blocks.null_sink(gr.sizeof_gr_complex)
        collectors = [MessageCollector(on_sent), MessageCollector(on_event)]
        self.nodes: list[Any] = [self.source, sink, self.synchroniser, self.terminal, heard, *collectors]
        self.connect(self.source, self.synchroniser, heard)
        self.connect(self.terminal, (sink, 0))
        self.nodes += connect_silence(self, sink, range(1, radio.capabilities.n_tx))
        self.msg_connect((self.synchroniser, "frames"), (self.terminal, "frames"))
        for name, collector in zip(("sent", "events"), collectors, strict=True):
            self.msg_connect((self.terminal, name), (collector, "in"))
        if sounding is not None:
            search = PreambleSearch(
                sounding, fmt.sample_rate_hz, threshold=_SOUNDING_THRESHOLD, chunk_samples=_search_chunk(fmt)
            )
            self.nodes.append(search)
            self.connect(self.source, search)
            self.msg_connect((search, "preambles"), (self.terminal, "preambles"))
        count = self.source.nitems_written if hasattr(self.source, "nitems_written") else self.synchroniser.nitems_read
        self._watch = StallWatch(radio, lambda: int(count(0)))

    def warm_up(self) -> None:
        """Compile what is compiled at first use."""
        for node in self.nodes:
            if isinstance(node, Failsafe):
                node.warm_up()

    def failure(self) -> BaseException | None:
        """The first error that a block met, or that the radio vanished."""
        return first_failure(self.nodes) or self._watch.failure()

    def report(self) -> dict[str, Any]:
        """What it did, as plain values."""
        block = self.terminal
        return {
            **dict(block.counts),
            "beacons_refused": self.synchroniser.refused,
            "lost_samples": self.synchroniser.lost_samples,
            "turnaround_samples": block.turnaround_samples,
            "cfo_hz": block.tracker.cfo_hz,
            "period_samples": block.tracker.period_samples,
            "radio": self.radio.counts(),
        }


def terminal_users(scenario: Scenario, number: int) -> TerminalUsers:
    """The users of one of a scenario's terminals."""
    return TerminalUsers(
        scenario.frame,
        scenario.preambles(),
        scenario.terminal_users(number),
        activity=scenario.users.activity,
        preamble_lengths=scenario.users.preamble_lengths,
        seed=scenario.seed,
        quiet_frames=scenario.quiet_frames,
        fading=scenario.terminals[number].fading,
    )


def _sounding_level_dbfs(options: Terminal) -> float:
    """Louder than a user, for a terminal has to hear itself beside the base station."""
    return min(options.level_dbfs + 10.0, max(options.level_dbfs, LOUDEST_DBFS))


def _search_chunk(fmt: Any) -> int:
    return int(min(max(fmt.frame_samples // 2, 4096), 16384))


def _amplitude(scenario: Scenario, options: Terminal) -> float:
    """Of a cell, so that a user's burst has the mean power that is asked for."""
    fmt = scenario.frame
    return float(10 ** (options.level_dbfs / 20) * np.sqrt(fmt.n_fft / (fmt.n_groups * fmt.group_width)))


def _peak(scenario: Scenario, number: int) -> tuple[float, float]:
    """Level in dBFS and largest magnitude of a terminal's loudest frame among the first hundred."""
    users, amplitude = terminal_users(scenario, number), _amplitude(scenario, scenario.terminals[number])
    level_dbfs, peak = _sounding_level_dbfs(scenario.terminals[number]), 0.0
    for frame in range(scenario.quiet_frames, scenario.quiet_frames + 100):
        samples = users.samples(frame, 0.0, amplitude)
        if samples is not None:
            peak = max(peak, float(np.abs(samples).max()))
            level_dbfs = max(level_dbfs, 10 * float(np.log10(np.mean(np.abs(samples) ** 2))))
    return level_dbfs, peak


@dataclass
class _Opened:
    radio: Radio
    requested: Settings
    actual: Settings


class Terminals:
    """All terminals of a scenario, in this process, as a context: their radios are let go when it ends.

    Args:
        scenario: names them.
        folder: takes `terminals.npy`, what was sent, and `terminals.json`, what happened.
        duration_s: how long they may send, for the site's rules.

    Raises:
        RadioError: a radio is not there, cannot do what is asked, or must not send here.
        ScenarioError: the scenario has no terminals.
    """

    def __init__(self, scenario: Scenario, folder: RunFolder, duration_s: float) -> None:
        if not scenario.terminals:
            raise ScenarioError(
                "the scenario has no terminals; list them as [[terminals]] with kind, address and, if several, users"
            )
        self.scenario = scenario
        self._folder = folder
        self._stack = ExitStack()
        self._events: list[dict[str, Any]] = []
        self._log: RowLog | None = None
        self._lock = threading.Lock()
        self._running: list[TerminalFlowgraph] = []
        self._opened: list[_Opened] = []
        try:
            for number in range(len(scenario.terminals)):
                self._opened.append(self._open(number, duration_s))
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Terminals:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            self._stack.close()

    def _open(self, number: int, duration_s: float) -> _Opened:
        scenario, options = self.scenario, self.scenario.terminals[number]
        wire = ChannelConfig()
        link = Link(scenario.frame, 1, 0, 0, wire, wire, scenario.impairments, scenario.noise_power, 1.0)
        radio = backend(options.kind).open(options.address, link)
        self._stack.callback(radio.close)
        can = radio.capabilities
        if not can.n_tx or can.emulates_users:
            why = "cannot transmit" if not can.n_tx else "emulates users itself"
            raise RadioError(f"terminal {number}: radio {options.kind} {options.address!r} {why}; choose another")
        requested = Settings(
            scenario.frame.sample_rate_hz,
            scenario.radio.frequency_hz,
            rx_gain_db=() if options.rx_gain_db is None else (options.rx_gain_db,) * can.n_rx,
            tx_gain_db=() if options.tx_gain_db is None else (options.tx_gain_db,) * can.n_tx,
            clock_source=options.clock_source,
            time_source=options.time_source,
        )
        actual = radio.configure(requested)
        level_dbfs, peak = _peak(scenario, number)
        self._stack.enter_context(
            transmission(radio, options.kind, options.address, actual, level_dbfs, peak, duration_s)
        )
        return _Opened(radio, requested, actual)

    def facts(self) -> list[dict[str, Any]]:
        """What run.json tells of them."""
        return [
            {
                "kind": options.kind,
                "address": options.address,
                "users": list(self.scenario.terminal_users(number)),
                "requested": opened.requested.as_dict(),
                "actual": opened.actual.as_dict(),
                "capabilities": asdict(opened.radio.capabilities),
                "facts": opened.radio.facts(),
            }
            for number, (options, opened) in enumerate(zip(self.scenario.terminals, self._opened, strict=True))
        ]

    def start(self) -> None:
        """Begin to listen, and to send once the beacon is heard."""
        self._log = RowLog(self._folder.path / SENT_NAME, sent_dtype(self.scenario.users.n_users))
        for number, opened in enumerate(self._opened):
            self._running.append(
                TerminalFlowgraph(self.scenario, number, opened.radio, self._logger(number), self._notes(number))
            )
        for flowgraph in self._running:
            flowgraph.warm_up()
        for flowgraph in self._running:
            flowgraph.start()

    def _logger(self, number: int) -> Callable[[dict[str, Any], np.ndarray], None]:
        log, lock, n_users = self._log, self._lock, self.scenario.users.n_users
        assert log is not None

        def note(fields: dict[str, Any], _: np.ndarray) -> None:
            row = np.zeros((), log.dtype)
            for name in ("frame", "start", "cfo_hz", "length"):
                row[name] = fields[name]
            row["terminal"] = number
            row["active"] = pack_users(fields["users"], n_users)
            # Each terminal's messages come in a thread of their own.
            with lock:
                log.append(row)

        return note

    def _notes(self, number: int) -> Callable[[dict[str, Any], np.ndarray], None]:
        def note(fields: dict[str, Any], _: np.ndarray) -> None:
            if len(self._events) < _KEPT_EVENTS:
                self._events.append({"terminal": number, **fields, "time_s": time.time()})

        return note

    def failure(self) -> BaseException | None:
        """The first error of a terminal, or None."""
        return next((error for flowgraph in self._running if (error := flowgraph.failure()) is not None), None)

    def heard(self) -> list[int]:
        """The last frame that each terminal heard; -1: none."""
        return [flowgraph.terminal.tracker.frame for flowgraph in self._running]

    def sending(self) -> int:
        """How many know where frames are."""
        return sum(flowgraph.terminal.is_sending for flowgraph in self._running)

    def report(self) -> list[dict[str, Any]]:
        """What each did."""
        return [flowgraph.report() for flowgraph in self._running]

    def stop(self) -> None:
        """Stop sending and listening, and write what happened; again without effect."""
        running, self._running = self._running, []
        if not running:
            return
        reports = [flowgraph.report() for flowgraph in running]
        for flowgraph in running:
            flowgraph.stop()
        for flowgraph in running:
            # A driver whose device vanished may never come back.
            waiter = threading.Thread(target=flowgraph.wait, name="terminal", daemon=True)
            waiter.start()
            waiter.join(_STOP_S)
        if self._log is not None:
            self._log.close()
        self._folder.write_json(self._folder.path / EVENTS_NAME, {"terminals": reports, "events": self._events})


class _Together:
    """Stands for flowgraphs that run already, so that waiting for them ends as one flowgraph does."""

    def __init__(self) -> None:
        self._stopped = threading.Event()

    def start(self) -> None:
        """They run already."""

    def stop(self) -> None:
        """End the waiting."""
        self._stopped.set()

    def wait(self) -> None:
        """Wait for the end."""
        self._stopped.wait()


@dataclass(frozen=True)
class TerminalsResult:
    """How terminals of a process of their own went.

    Attributes:
        folder: where everything lies.
        reports: what each terminal did.
        interrupted: ended by Ctrl-C.
    """

    folder: RunFolder
    reports: Sequence[dict[str, Any]]
    interrupted: bool


def run_terminals(
    scenario: Scenario,
    folder: Path,
    *,
    n_frames: int | None = None,
    overwrite: bool = False,
    wait_s: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> TerminalsResult:
    """Run a scenario's terminals in this process, while the base station is in another or at another place.

    They wait for its beacon, and end when it was not heard for three seconds after it had been.

    Args:
        scenario: the same as the base station's.
        folder: to make.
        n_frames: end after this frame number, quiet ones not counted; None: when the beacon is gone.
        overwrite: replace an earlier run in this folder.
        wait_s: give up where no beacon was heard for so long at the beginning; None: wait on.
        on_progress: called with the last frame heard and the number of terminals that are sending.

    Raises:
        SemairError: anything a user can mend.
    """
    run_folder = RunFolder(folder)
    frames = None if n_frames is None else n_frames + scenario.quiet_frames
    duration_s = 0.0 if frames is None else frames * scenario.frame.frame_s
    with Terminals(scenario, run_folder, max(duration_s, 1.0)) as terminals:
        run_folder.create(overwrite)
        run_folder.write_json(
            run_folder.run_json,
            {
                "format": 1,
                "kind": "random-access terminals",
                **provenance(),
                "scenario": scenario_dict(scenario),
                "terminals": terminals.facts(),
            },
        )
        terminals.start()
        last, since = -1, time.monotonic()

        def ended() -> bool:
            nonlocal last, since
            frame = max(terminals.heard())
            now = time.monotonic()
            if frame != last:
                last, since = frame, now
            if on_progress is not None:
                on_progress(frame, terminals.sending())
            if frame < 0:
                if wait_s is not None and now - since > wait_s:
                    raise RadioError(
                        f"no terminal heard a beacon for {wait_s:g} s; start the base station with the same scenario, "
                        "and see its gain, frequency and antenna"
                    )
                return False
            return now - since > _GONE_S or (frames is not None and frame >= frames - 1)

        interrupted = execute(_Together(), terminals.failure, None, ended)
        reports = terminals.report()
    return TerminalsResult(run_folder, reports, interrupted)

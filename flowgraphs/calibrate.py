"""Measuring what a radio's chains do to their signals, and keeping it as a calibration."""

from __future__ import annotations

import hashlib
import math
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gnuradio import blocks as gr_blocks

from ..blocks.runtime import RX_TIME, WORK_DONE, Failsafe, gr, guarded, input_tags, pmt
from ..blocks.waveforms.calibration import (
    Heard,
    Sounding,
    chain_errors,
    correct,
    delay_and_gain,
    find_sounding,
    imbalance_of_image,
    listen,
    path_gains,
    reciprocity_factors,
)
from ..captures.writer import RecordingWriter
from ..errors import RadioError, ScenarioError
from ..hardware.calibration import (
    Calibration,
    Chain,
    Reciprocity,
    Residual,
    Transmitter,
    Turnaround,
    source_of,
    validity,
)
from ..hardware.discover import backend
from ..hardware.radio import Radio, Settings
from ..hardware.site import Emission, Site, find_site_file, judge, load_site
from ..models.channels import ChannelConfig
from .execute import execute
from .radios import make_link, requested_settings
from .random_access import first_failure
from .recording import common_fields
from .runfolder import provenance
from .scenario import Scenario
from .transmit import append_log, default_log

LEVEL_DBFS = -13.0
_SOUNDINGS = 2
# From when a burst is handed over until it is due, and how long a stream is left to settle. Streams of several boards
# come late at first by much more than what they need later.
_LEAD_S = 1.0
_SETTLE_S = 0.3
_PATIENCE_S = 10.0
_LEAST_SNR_DB = 5.0
_FULL_SCALE = 0.999
_MOST_CLIPPED = 1e-4

OnProgress = Callable[[str, float], None]


@dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes:
        method: "splitter": one transmit chain into all receive chains through a splitter; "antennas": each antenna
            into each, for reciprocity.
        tx_chain: that sends into the splitter.
        reference: receive chain against which the others are measured.
        tx_gain_db: None: the lowest; on a radio that ends in this machine, its own.
        rx_gain_db: of every receive chain; None: the radio's own.
        level_dbfs: mean power of what is sent, full scale is 0.
        valid_s: how long the calibration is used.
    """

    method: Literal["splitter", "antennas"] = "splitter"
    tx_chain: int = 0
    reference: int = 0
    tx_gain_db: float | None = None
    rx_gain_db: float | None = None
    level_dbfs: float = LEVEL_DBFS
    valid_s: float = 3600.0


@dataclass(frozen=True)
class Measured:
    """What was heard of the soundings.

    Attributes:
        samples: complex64, (receive chain, n).
        sounding: sent twice, `_spacing` apart.
        sent_at: sample of the transmitter's count at which the first began, less the receiver's at samples[:, 0];
            None where the two counts have nothing in common.
        timed: by the radio's clock.
    """

    samples: np.ndarray
    sounding: Sounding
    sent_at: float | None
    timed: bool


def calibrate(
    scenario: Scenario,
    path: Path,
    options: Options | None = None,
    *,
    site: Site | None = None,
    log: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Calibration:
    """Open a scenario's radio, calibrate it at the scenario's settings, and leave file and recording.

    The loopback radio gets a splitter in the place of its air; its chains keep the errors that the scenario's seed
    draws for them.

    Args:
        scenario: radio, rate, frequency, antennas.
        path: of the file; the recording gets its name.
        options: how to measure.
        site: what is permitted; for radios that do not end in this machine.
        log: file that takes a line per transmission.
        on_progress: called with what is done and the share done.

    Raises:
        RadioError: the radio cannot do it, may not transmit, or what comes back is too weak, cut, or broken.
        SemairError: anything else a user can mend.
    """
    options, tell = options or Options(), on_progress or (lambda _, __: None)
    _name_of(path)
    tell("opening the radio", 0.0)
    radio = _open(scenario, options)
    settings = requested_settings(scenario)
    if options.rx_gain_db is not None:
        settings = replace(settings, rx_gain_db=(options.rx_gain_db,) * radio.capabilities.n_rx)
    _permitted(scenario, radio, _sounding(radio, options), options, site)
    return calibrate_configured(scenario, radio, radio.configure(settings), path, options, site, log, tell)


def calibrate_configured(
    scenario: Scenario,
    radio: Radio,
    actual: Settings,
    path: Path,
    options: Options,
    site: Site | None = None,
    log: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Calibration:
    """Calibrate a radio as it is tuned now, so that phases hold for what it does next; see `calibrate`.

    Args:
        scenario: of the radio.
        radio: configured; it is not configured again.
        actual: settings it took.
        path: see `calibrate`, like all that follows.
        options: see there.
        site: see there.
        log: see there.
        on_progress: see there.
    """
    tell, name = on_progress or (lambda _, __: None), _name_of(path)
    sounding = _sounding(radio, options)
    emission = _permitted(scenario, radio, sounding, options, site)
    entry = {"id": uuid.uuid4().hex, "what": "calibration", "radio": radio.kind, "address": scenario.radio.address}
    if log is not None:
        append_log(log, {"event": "begin", **entry, "emission": vars(emission)})
    try:
        tell("sounding", 0.2)
        measured = measure(radio, actual, sounding, _amplitude(scenario, radio, options), options)
    finally:
        if log is not None:
            append_log(log, {"event": "end", **entry})
    tell("estimating", 0.6)
    try:
        found = estimate(measured, options, actual.sample_rate_hz)
    except RadioError as error:
        raise RadioError(f"{error}; the radio counted {radio.counts() or 'nothing'}") from error
    created = datetime.now(UTC)
    tell("writing", 0.9)
    recording = _keep(measured, path.parent, name, radio, actual, scenario)
    calibration = Calibration(
        created=created,
        method=options.method,
        reference=options.reference,
        radio=source_of(radio, scenario.radio.address),
        settings=actual.as_dict(),
        software=provenance()["versions"],
        recording=recording.name,
        recording_sha256=hashlib.sha256(recording.read_bytes()).hexdigest(),
        valid=validity(radio, actual, options.valid_s, created),
        **found,
    )
    calibration.write(path)
    tell("written", 1.0)
    return calibration


def calibrate_for_run(scenario: Scenario, radio: Radio, actual: Settings, path: Path) -> Calibration:
    """Calibrate a radio right before it runs, so that everything holds, phases included, and set its gain again.

    Its chains have to hear its transmitter through a splitter, as for `calibrate`, at the transmit gain of the
    scenario. What the site file permits is sent, and the log takes a line.

    Args:
        scenario: of the radio.
        radio: configured.
        actual: settings it took.
        path: of the file.

    Raises:
        RadioError: see `calibrate`.
    """
    options = Options(tx_gain_db=scenario.radio.tx_gain_db)
    _require_able(scenario, radio, options)
    site_file = find_site_file()
    site = None if site_file is None else load_site(site_file)
    log = (site.log if site is not None else None) or default_log()
    if radio.source() is radio.sink():
        # An emulated radio has its air in the place of a splitter; another one of the same seed has the same errors.
        return calibrate(scenario, path, Options(), site=site, log=log)
    try:
        return calibrate_configured(scenario, radio, actual, path, options, site, log)
    except RadioError as error:
        raise RadioError(
            f"the {radio.kind} radio cannot be calibrated before the run: {error}; without a splitter from its "
            "transmitter to all of its receive chains leave --calibrate out"
        ) from error
    finally:
        if actual.tx_gain_db:
            radio.set_tx_gain_db(actual.tx_gain_db[0])


# Estimating


def estimate(measured: Measured, options: Options, rate_hz: float) -> dict[str, Any]:
    """Take what was heard apart, and what is left after correction.

    Args:
        measured: two soundings.
        options: how they were sent.
        rate_hz: sample rate.

    Returns:
        Fields of a `Calibration`.

    Raises:
        RadioError: what came back is too weak, or cut.
    """
    samples, sounding = measured.samples, measured.sounding
    clipped = np.mean(np.maximum(np.abs(samples.real), np.abs(samples.imag)) >= _FULL_SCALE, axis=1)
    if clipped.max() > _MOST_CLIPPED:
        raise RadioError(
            f"chain {int(clipped.argmax())} is at full scale in {clipped.max():.1%} of the samples: lower --tx-gain, "
            "--rx-gain or --level, or put an attenuator in"
        )
    try:
        start, cfo = find_sounding(samples, sounding, _max_cfo_cycles(rate_hz), first=True)
        second = start + _spacing(sounding)
        slots = range(sounding.n_slots)
        first_heard = [listen(samples, sounding, start, cfo, slot) for slot in slots]
    except ValueError as error:
        raise RadioError(f"{error}; check the cables, or raise --tx-gain or --rx-gain") from error
    cfo = first_heard[0].cfo_cycles
    _require_snr(first_heard, options.method)
    # Every chain's own errors from the slot that it hears best.
    best = [int(np.argmax([heard.snr_db[chain] for heard in first_heard])) for chain in range(len(samples))]
    errors = chain_errors(first_heard[0], sounding, options.reference)
    if options.method == "antennas":
        errors = [
            replace(error, delay_samples=0.0, gain=1.0, image=complex(first_heard[slot].image[chain]),
                    dc=complex(first_heard[slot].dc[chain]))
            for chain, (error, slot) in enumerate(zip(errors, best, strict=True))
        ]  # fmt: skip
    corrected = correct(samples, errors)
    try:
        second_heard = [listen(corrected, sounding, second, cfo, slot) for slot in slots]
    except ValueError as error:
        raise RadioError(f"only one of two soundings was heard: {error}; measure again") from error
    left = chain_errors(second_heard[0], sounding, options.reference)
    reciprocity = None
    if options.method == "antennas":
        left = [
            replace(error, delay_samples=0.0, gain=1.0, image=complex(second_heard[slot].image[chain]),
                    dc=complex(second_heard[slot].dc[chain]))
            for chain, (error, slot) in enumerate(zip(left, best, strict=True))
        ]  # fmt: skip
        corrected_heard = [listen(corrected, sounding, start, cfo, slot) for slot in slots]
        reciprocity, mismatch = _reciprocity(corrected_heard, second_heard, sounding)
    else:
        gains = second_heard[0].gains
        reference = gains[options.reference]
        difference = np.mean(np.abs(gains - reference) ** 2, axis=1).max() / np.mean(np.abs(reference) ** 2)
        mismatch = 10 * math.log10(max(float(difference), 1e-20))
    heard = first_heard[0]
    transmitter = None
    if heard.tx_image is not None and heard.tx_dc is not None:
        gain_db, phase_deg = imbalance_of_image(heard.tx_image)
        transmitter = Transmitter(
            iq_gain_db=gain_db, iq_phase_deg=phase_deg, dc_dbc=20 * math.log10(max(abs(heard.tx_dc), 1e-10))
        )
    turnaround = None
    if measured.sent_at is not None:
        late = heard.start_samples - measured.sent_at
        turnaround = Turnaround(samples=late, seconds=late / rate_hz, timed=measured.timed)
    return {
        "cfo_hz": cfo * rate_hz,
        "chains": tuple(
            Chain.of(error, float(first_heard[slot].snr_db[chain]))
            for chain, (error, slot) in enumerate(zip(errors, best, strict=True))
        ),
        "residual": tuple(Residual.of(error) for error in left),
        "mismatch_db": mismatch,
        "transmitter": transmitter,
        "turnaround": turnaround,
        "reciprocity": reciprocity,
    }


def _max_cfo_cycles(rate_hz: float) -> float:
    """Two radios of 10 ppm at 6 GHz, but never beyond a quarter of the band."""
    return min(0.25, 120e3 / rate_hz)


def _require_snr(heards: list[Heard], method: str) -> None:
    snr_db = np.array([heard.snr_db for heard in heards])
    if method == "antennas":
        # What a radio hears of itself may be anything.
        snr_db = snr_db[~np.eye(len(snr_db), dtype=bool)]
    if snr_db.min() < _LEAST_SNR_DB:
        raise RadioError(
            f"a chain hears the sounding at an SNR of {snr_db.min():.1f} dB, at least {_LEAST_SNR_DB:g} dB is needed: "
            "check its cable, raise --tx-gain or --rx-gain, or take attenuators out"
        )


def _reciprocity(first: list[Heard], second: list[Heard], sounding: Sounding) -> tuple[Reciprocity, float]:
    """Factors of the antennas, and how far they miss a second measurement, in dB."""
    bins, period = sounding.bins, sounding.period_samples
    factors = reciprocity_factors(path_gains(first, sounding))
    fits = [delay_and_gain(column, np.ones(bins.size), bins, period) for column in factors.T]
    found = Reciprocity(
        gain_db=tuple(20 * math.log10(abs(gain)) for _, gain in fits),
        phase_deg=tuple(math.degrees(np.angle(gain)) for _, gain in fits),
        delay_samples=tuple(delay for delay, _ in fits),
    )
    fitted = np.array(found.factors((bins / period).tolist()))
    weighted = fitted[:, :, None] * path_gains(second, sounding)
    pairs = ~np.eye(weighted.shape[-1], dtype=bool)
    difference = (weighted - np.swapaxes(weighted, 1, 2))[:, pairs]
    return found, float(10 * np.log10(np.mean(np.abs(difference) ** 2) / np.mean(np.abs(weighted[:, pairs]) ** 2)))


# Measuring


def measure(radio: Radio, actual: Settings, sounding: Sounding, amplitude: float, options: Options) -> Measured:
    """Send two soundings over a configured radio and gather what its receive chains hear.

    The radio is not configured anew, so that its phases hold afterwards; its transmit gain is the lowest at the end.

    Args:
        radio: configured.
        actual: settings it took.
        sounding: what to send.
        amplitude: root mean square of it.
        options: transmit gain and chain.

    Raises:
        RadioError: samples were lost, or none came.
    """
    flowgraph = _Flowgraph(radio, actual, sounding, amplitude, options)
    gains_db = radio.capabilities.tx_gains_db
    deadline = time.monotonic() + _PATIENCE_S + 2 * flowgraph.gather.wanted / actual.sample_rate_hz

    def done() -> bool:
        flowgraph.release()
        if time.monotonic() > deadline:
            raise RadioError(
                f"only {flowgraph.gather.stored} of {flowgraph.gather.wanted} samples came within the time for twice "
                "as many; is the radio still there?"
            )
        return flowgraph.gather.stored >= flowgraph.gather.wanted

    try:
        if gains_db is not None and options.tx_gain_db is not None:
            radio.set_tx_gain_db(options.tx_gain_db)
        interrupted = execute(flowgraph, flowgraph.failure, None, done)
    finally:
        if gains_db is not None and (options.tx_gain_db is not None or radio.capabilities.path != "loopback"):
            radio.set_tx_gain_db(gains_db[0])
    if interrupted:
        raise KeyboardInterrupt
    gather = flowgraph.gather
    if gather.lost:
        raise RadioError(
            f"{gather.lost} samples were lost while the radio was measured; lower frame.sample_rate_hz, or see "
            "`semair doctor`"
        )
    return Measured(gather.samples[:, : gather.stored], sounding, flowgraph.sent_at(), flowgraph.kind == "timed")


def _seconds(value: Any) -> Fraction:
    """Time that an rx_time tag tells."""
    whole, rest = pmt.tuple_ref(value, 0), pmt.tuple_ref(value, 1)
    return pmt.to_uint64(whole) + Fraction(pmt.to_double(rest))


def _spacing(sounding: Sounding) -> int:
    """From one sounding to the next: a silent slot tells the last slot of one from the first of the next."""
    return (sounding.n_slots + 1) * sounding.slot_samples


class _Gather(Failsafe, gr.sync_block):
    """Keeps a stretch of some streams, and the time of their first sample."""

    def __init__(self, n_ports: int, rate_hz: float, begin: int | None, wanted: int) -> None:
        gr.sync_block.__init__(self, "semair gather", [np.complex64] * n_ports, None)
        self._rate_hz = rate_hz
        self._lock = threading.Lock()
        self._clock: tuple[int, Fraction] | None = None
        self.begin = begin
        self.wanted = wanted
        self.samples = np.empty((n_ports, wanted), np.complex64)
        self.stored = 0
        self.heard = 0
        self.lost = 0
        self.first_s: Fraction | None = None

    @guarded
    def work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        n, first = len(input_items[0]), self.nitems_read(0)
        with self._lock:
            for tag in input_tags(self, 0, n):
                if pmt.equal(tag.key, RX_TIME):
                    at = _seconds(tag.value)
                    if self._clock is not None and self.begin is not None:
                        known_at, known_s = self._clock
                        jump = round((at - known_s) * Fraction(self._rate_hz)) - (tag.offset - known_at)
                        self.lost += jump if self.begin < tag.offset < self.begin + self.wanted else 0
                    # The latest time holds: what was lost before does not matter.
                    self.first_s = at - tag.offset / Fraction(self._rate_hz)
                    self._clock = (tag.offset, at)
            self.heard = first + n
            if self.begin is not None:
                skip = min(max(self.begin + self.stored - first, 0), n)
                taken = min(n - skip, self.wanted - self.stored)
                for row, port in zip(self.samples, input_items, strict=True):
                    row[self.stored : self.stored + taken] = port[skip : skip + taken]
                self.stored += taken
        return n

    def from_now(self, lead: int, before: int) -> int:
        """Begin to keep samples `before` ahead of a place `lead` samples from now; returns that place."""
        with self._lock:
            place = self.heard + lead
            self.begin = place - before
            return place


class _TimedBurst(Failsafe, gr.sync_block):
    """Sends a burst at a time that is told while the flowgraph runs."""

    def __init__(self, rows: np.ndarray) -> None:
        gr.sync_block.__init__(self, "semair timed burst", None, [np.complex64] * len(rows))
        self._rows = rows
        self._due = threading.Event()
        self._time: Any = None

    def release(self, time_s: Fraction) -> None:
        """Send at this time of the radio."""
        seconds, rest = divmod(time_s, 1)
        self._time = pmt.make_tuple(pmt.from_uint64(int(seconds)), pmt.from_double(float(rest)))
        self._due.set()

    def stop(self) -> bool:
        self._due.set()
        return True

    @guarded
    def work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        # A short wait only: the scheduler has to be able to end.
        if not self._due.wait(1e-3):
            return 0
        if self._time is None:
            return WORK_DONE
        at = self.nitems_written(0)
        n = min(len(output_items[0]), self._rows.shape[1] - at)
        if n == 0:
            return WORK_DONE
        for port, (values, row) in enumerate(zip(output_items, self._rows, strict=True)):
            values[:n] = row[at : at + n]
            if at == 0:
                self.add_item_tag(port, 0, pmt.intern("tx_sob"), pmt.PMT_T)
                self.add_item_tag(port, 0, pmt.intern("tx_time"), self._time)
            if at + n == self._rows.shape[1]:
                self.add_item_tag(port, at + n - 1, pmt.intern("tx_eob"), pmt.PMT_T)
        return n


class _Flowgraph(gr.top_block):
    """Soundings into a radio's transmit chains, its receive chains into memory.

    An emulated radio, whose output is its input, gets one stream that ends. A radio with a clock gets a burst at a
    time of that clock. Any other repeats the soundings until enough was heard.
    """

    def __init__(self, radio: Radio, actual: Settings, sounding: Sounding, amplitude: float, options: Options) -> None:
        gr.top_block.__init__(self, "semair calibration")
        can, rate = radio.capabilities, actual.sample_rate_hz
        self._rate_hz = rate
        source, sink = radio.source(), radio.sink()
        self._lead, self._settle = round(_LEAD_S * rate), round(_SETTLE_S * rate)
        pulse = np.zeros((can.n_tx, _spacing(sounding)), np.complex64)
        first, waveforms = options.tx_chain if options.method == "splitter" else 0, sounding.waveforms()
        pulse[first : first + sounding.n_slots, : waveforms.shape[1]] = amplitude * waveforms
        sent = np.tile(pulse, (1, _SOUNDINGS))
        self._before = sounding.slot_samples
        senders: list[Any]
        self.burst: _TimedBurst | None = None
        if sink is source:
            self.kind = "locked"
            truth = radio.truth()
            late = 0 if truth is None else math.ceil(truth.receive_index(0))
            silence = np.zeros((can.n_tx, self._before), np.complex64)
            # The emulation works in blocks, and gives none that is not full.
            end = np.zeros((can.n_tx, late + 4 * 16384), np.complex64)
            stream = np.concatenate((silence, sent, end), axis=1)
            wanted, begin = self._before + sent.shape[1] + late + 16384, 0
            senders = [gr_blocks.vector_source_c(row.tolist()) for row in stream]
        elif can.has_hw_time:
            self.kind = "timed"
            wanted, begin = sent.shape[1] + 3 * self._before, None
            self.burst = _TimedBurst(sent)
            senders = []
        else:
            self.kind = "repeated"
            wanted, begin = 3 * pulse.shape[1], self._settle
            senders = [gr_blocks.vector_source_c(row.tolist(), True) for row in pulse]
        self.gather = _Gather(can.n_rx, rate, begin, wanted)
        self.nodes = [source, sink, self.gather, *senders]
        if self.burst is not None:
            self.nodes.append(self.burst)
        for port in range(can.n_tx):
            self.connect((self.burst, port) if self.burst is not None else senders[port], (sink, port))
        for port in range(can.n_rx):
            self.connect((source, port), (self.gather, port))

    def release(self) -> None:
        """Say when a timed burst is due, once the receiver runs and its clock is known."""
        gather = self.gather
        if self.burst is None or gather.begin is not None or gather.first_s is None:
            return
        if gather.heard < self._settle:
            return
        place = gather.from_now(self._lead, self._before)
        # To the exact tick of the radio: its samples need not lie on a grid of sample periods.
        self.burst.release(gather.first_s + place / Fraction(self._rate_hz))

    def sent_at(self) -> float | None:
        """Place of the first sounding's beginning in what was gathered, were there no delay; None: not known."""
        return None if self.kind == "repeated" else float(self._before)

    def failure(self) -> BaseException | None:
        """The first error that a block met, or None."""
        return first_failure(self.nodes)


# Around it


def _name_of(path: Path) -> str:
    """Name of the recording beside a calibration. It is one that no other recording has, and may be replaced."""
    name = path.name.removesuffix(".json").removesuffix(".calibration")
    if not name or path.suffix != ".json":
        raise ScenarioError(f"{path}: the name of a calibration must end in .json, such as lab.calibration.json")
    return f"{name}-sounding"


def _sounding(radio: Radio, options: Options) -> Sounding:
    return Sounding(n_slots=radio.capabilities.n_tx if options.method == "antennas" else 1)


def _open(scenario: Scenario, options: Options) -> Radio:
    link = replace(
        make_link(scenario), channel=ChannelConfig(), beacon_channel=ChannelConfig(), losses=(), recorded=None
    )
    radio = backend(scenario.radio.kind).open(scenario.radio.address, link)
    _require_able(scenario, radio, options)
    return radio


def _require_able(scenario: Scenario, radio: Radio, options: Options) -> None:
    """Refuse what a radio cannot measure of itself."""
    n_tx, n_rx = radio.capabilities.n_tx, radio.capabilities.n_rx
    if not n_tx:
        raise RadioError(
            f"radio {radio.kind} {scenario.radio.address!r} cannot transmit, so it cannot measure itself; choose "
            "another, see `semair radios`"
        )
    if not 0 <= options.reference < n_rx:
        raise ScenarioError(f"reference={options.reference}: the radio has receive chains 0 to {n_rx - 1}")
    if not 0 <= options.tx_chain < n_tx:
        raise ScenarioError(f"tx_chain={options.tx_chain}: the radio has transmit chains 0 to {n_tx - 1}")
    if options.method == "antennas" and (n_tx != n_rx or n_rx < 2):
        raise RadioError(
            f"reciprocity needs as many transmit as receive chains, and two at least; radio {radio.kind} "
            f"{scenario.radio.address!r} has {n_tx} and {n_rx}"
        )
    if not options.valid_s > 0:
        raise ScenarioError(f"valid_s={options.valid_s:g}: it must be positive")


def _amplitude(scenario: Scenario, radio: Radio, options: Options) -> float:
    """Root mean square of the sounding: what an emulated receiver is set up for, or the level asked for."""
    if radio.capabilities.path == "loopback":
        return math.sqrt(scenario.expected_power)
    return 10 ** (options.level_dbfs / 20)


def _permitted(scenario: Scenario, radio: Radio, sounding: Sounding, options: Options, site: Site | None) -> Emission:
    """What will be sent, if the rules allow it.

    Raises:
        RadioError: they do not; names all reasons.
    """
    rate = scenario.frame.sample_rate_hz
    gains_db = radio.capabilities.tx_gains_db
    gain_db = options.tx_gain_db if options.tx_gain_db is not None or gains_db is None else gains_db[0]
    level = 10 ** (options.level_dbfs / 20)
    emission = Emission(
        frequency_hz=scenario.radio.frequency_hz,
        bandwidth_hz=rate,
        gain_db=gain_db,
        level_dbfs=options.level_dbfs,
        peak=level * float(np.abs(sounding.period()).max()),
        duration_s=(_SOUNDINGS + 1) * sounding.n_slots * sounding.slot_samples / rate + 1.0,
    )
    judgement = judge(emission, site, radio.kind, scenario.radio.address, radio.capabilities.path)
    if judgement.refusals:
        raise RadioError(f"not sent: {'; '.join(judgement.refusals)}")
    return emission


def _keep(measured: Measured, folder: Path, name: str, radio: Radio, actual: Settings, scenario: Scenario) -> Path:
    """Record what was heard; returns the path of the metadata."""
    with RecordingWriter(
        folder,
        name,
        n_channels=len(measured.samples),
        datatype="cf32_le",
        sample_rate_hz=actual.sample_rate_hz,
        frequency_hz=actual.frequency_hz,
        description="soundings behind the receive chains of one radio, for its calibration",
        global_fields={**common_fields(radio, scenario), "role": "calibration"},
        overwrite=True,
    ) as writer:
        writer.write(measured.samples)
    return folder / f"{name}.sigmf-meta"

"""Sending recordings of one's own waveforms over a radio: refused by default, planned first, logged always."""

from __future__ import annotations

import getpass
import hashlib
import json
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..blocks.playback import Playback, PlayOptions
from ..blocks.runtime import Failsafe, gr, guarded, pmt
from ..blocks.sigmf_source import SigmfSource
from ..blocks.waveforms.frame import FrameFormat
from ..blocks.waveforms.impairments import Impairments
from ..captures.collection import collection_body, listed_streams, require_stream
from ..captures.meta import COLLECTION_SUFFIX
from ..captures.reader import Recording
from ..captures.verify import verify
from ..errors import RadioError, RecordingError, ScenarioError, StorageError
from ..hardware.discover import backend
from ..hardware.radio import Link, Radio, Settings
from ..hardware.site import Emission, Judgement, Site, judge
from ..models.channels import ChannelConfig
from .execute import execute
from .random_access import first_failure

LEVEL_WINDOW_S = 1e-3
"""Mean power is that of the loudest stretch this long, so that silence between bursts hides nothing."""
LATEST_S = 1e9
"""Times of a radio are below this."""
_GAIN_STEP_DB = 10.0
_TICK_S = 0.05
_SPARE_S = 0.5
_STALL_S = 3.0
# A burst is handed over so long before its time; news of it may come so late.
_HAND_OVER_S = 0.5
_NEWS_S = 0.3
_HOLD_S = 5e-3
# The radio's own blocks hold some samples back, which must not be the waveform's last.
_FLUSH_SAMPLES = 65536
_READ_SAMPLES = 1 << 16

OnProgress = Callable[[str, float], None]
"""Called with what is being done and the share that is done, 0 to 1."""


@dataclass(frozen=True)
class Request:
    """What the operator typed. Nothing here is ever taken from a recording.

    Attributes:
        recording: path of it.
        kind: backend of the radio.
        address: which radio of this kind.
        frequency_hz: centre frequency.
        gain_db: transmit gain; None for radios that have none to set.
        level_dbfs: mean power to scale the waveform to; None: as it was recorded.
        channels: of the recording, one per transmit chain; None: all.
        turns: how often the waveform is repeated, in whole frames.
        frame_samples: of one frame; None: the whole recording is one.
        frame_start: sample at which a frame begins.
        duration_s: end after so long; None: when the waveform ends.
        at_s: begin exactly at this time of the radio; None: as soon as the gain is reached.
        in_s: begin exactly so long after the radio was set up, by its time; None: see `at_s`.
    """

    recording: Path
    kind: str
    address: str
    frequency_hz: float
    gain_db: float | None = None
    level_dbfs: float | None = None
    channels: tuple[int, ...] | None = None
    turns: int = 1
    frame_samples: int | None = None
    frame_start: int = 0
    duration_s: float | None = None
    at_s: float | None = None
    in_s: float | None = None

    @property
    def timed(self) -> bool:
        """Whether it begins at a time of the radio."""
        return self.at_s is not None or self.in_s is not None


@dataclass(frozen=True)
class Level:
    """Loudness of a waveform, over all channels.

    Attributes:
        mean_dbfs: mean power of the loudest stretch of a millisecond; a tone at full scale is 0.
        peak: largest magnitude.
    """

    mean_dbfs: float
    peak: float


@dataclass(frozen=True)
class Plan:
    """A transmission as it would be: what a dry run shows and what the real one keeps to.

    Attributes:
        request: what was typed.
        recording_sha: digest of the recording's metadata, which vouch for its samples.
        role: of the recording.
        sample_rate_hz: of the waveform.
        scale: factor on its samples.
        emission: what would be sent.
        judgement: what the rules say.
        site: name of the site; None without a site file.
        gains_db: transmit gains on the way from the lowest to the one typed; empty where there is none to set.
    """

    request: Request
    recording_sha: str
    role: str
    sample_rate_hz: float
    scale: float
    emission: Emission
    judgement: Judgement
    site: str | None
    gains_db: tuple[float, ...]

    @property
    def code(self) -> str:
        """Stands for this very plan; the real transmission asks for it, so that no plan is sent unseen."""
        canonical = json.dumps(self.as_dict(), sort_keys=True, default=str)
        return hashlib.sha256(canonical.encode()).hexdigest()[:8]

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        plain = {**asdict(self), "judgement": {**vars(self.judgement), "band": None}}
        if self.judgement.band is not None:
            plain["judgement"]["band"] = self.judgement.band.model_dump()
        plain["request"]["recording"] = str(self.request.recording)
        return plain


@dataclass(frozen=True)
class Sent:
    """How a transmission went.

    Attributes:
        samples: of the waveform that went to the radio, per chain.
        seconds: on the host's clock.
        gain_db: transmit gain read back last before the waveform; None where there is none to set.
        counts: what the radio counted.
        interrupted: ended by Ctrl-C.
        at_s: time of the radio at which the waveform began, where it was asked for; None otherwise.
    """

    samples: int
    seconds: float
    gain_db: float | None
    counts: dict[str, Any]
    interrupted: bool
    at_s: float | None = None


def own_waveform(path: Path) -> Recording:
    """Open a recording that may be sent: a waveform of this project, whole and unaltered.

    Raises:
        RecordingError: it is none, it was received, or anything in it was changed or is missing.
    """
    recording = Recording.open(path)
    fields, head = recording.global_fields, recording.meta["global"]
    role = fields.get("role")
    reasons = []
    if not str(head.get("core:recorder", "")).startswith("semair ") or "recording_id" not in fields:
        reasons.append(f"core:recorder is {head.get('core:recorder')!r}, not semair")
    if not isinstance(role, str) or not role.startswith("tx-"):
        reasons.append(f"semair:role is {role!r}, not one of tx-...")
    if fields.get("origin") in ("ota", "cable"):
        reasons.append(f"semair:origin is {fields['origin']!r}: it was received")
    if fields.get("complete") is not True or fields.get("recovered"):
        reasons.append("semair:complete is not true: parts are missing")
    if reasons:
        raise RecordingError(
            f"{recording.meta_path} is no waveform of this project to send: {'; '.join(reasons)}; only recordings that "
            "a run here made of what it sent are transmitted, never receptions"
        )
    for finding in verify(recording.meta_path):
        if finding.severity == "error":
            raise RecordingError(f"{finding.file}, {finding.field}: {finding.message}; it is not sent")
    recording.check_hash()
    for collection in recording.meta_path.parent.glob(f"*{COLLECTION_SUFFIX}"):
        for name, expected in listed_streams(collection, collection_body(collection)):
            if name == recording.name:
                require_stream(collection, name, expected)
    return recording


def level(playback: Playback, on_share: Callable[[float], None] | None = None) -> Level:
    """Loudness of what is played, in one turn.

    Args:
        playback: what is played.
        on_share: called with the share done.

    Raises:
        RecordingError: it holds samples that are no numbers, or nothing but silence.
    """
    window = max(1, min(round(LEVEL_WINDOW_S * playback.rate_hz), playback.n_samples))
    total = min(playback.n_samples, -(-playback.n_samples // playback.options.turns) + window)
    loudest = peak = 0.0
    power = np.zeros((len(playback.channels), 0))
    for first in range(0, total, _READ_SAMPLES):
        n = min(_READ_SAMPLES, total - first)
        block = np.empty((len(playback.channels), n), np.complex64)
        playback.read_into(first, list(block))
        if not np.isfinite(block.view(np.float32)).all():
            raise RecordingError(f"{playback.recording.name} holds samples that are no numbers; it is not sent")
        new = block.real.astype(float) ** 2 + block.imag.astype(float) ** 2
        peak = max(peak, math.sqrt(new.max()))
        power = np.concatenate([power, new], axis=1)
        if power.shape[1] >= window:
            sums = np.concatenate([np.zeros((len(power), 1)), np.cumsum(power, axis=1)], axis=1)
            loudest = max(loudest, float((sums[:, window:] - sums[:, :-window]).max()) / window)
            power = power[:, power.shape[1] - window + 1 :]
        if on_share:
            on_share(min(1.0, (first + n) / total))
    if loudest == 0:
        raise RecordingError(f"{playback.recording.name} holds nothing but silence; there is nothing to send")
    return Level(10 * math.log10(loudest), peak)


def open_radio(request: Request, recording: Recording) -> Radio:
    """Open the radio of a request, not yet configured: nothing is sent.

    Raises:
        RadioError: there is no such radio, or it cannot transmit.
    """
    rate = recording.sample_rate_hz
    if rate is None:
        raise RecordingError(f"{recording.meta_path}: core:sample_rate is missing; it is not sent")
    link = Link(
        FrameFormat(sample_rate_hz=rate),
        n_rx=1,
        n_users=1,
        tail_samples=0,
        channel=ChannelConfig(),
        beacon_channel=ChannelConfig(),
        impairments=Impairments(),
        noise_power=0.0,
        expected_power=1.0,
    )
    radio = backend(request.kind).open(request.address, link)
    if not radio.capabilities.n_tx:
        raise RadioError(
            f"radio {request.kind} {request.address!r} cannot transmit; choose another, see `semair radios`"
        )
    return radio


def make_plan(
    request: Request, radio: Radio, recording: Recording, site: Site | None, on_progress: OnProgress | None = None
) -> Plan:
    """Work out what would be sent, and what the rules say of it. Nothing is sent, and nothing is configured.

    Args:
        request: what was typed.
        radio: of `open_radio`.
        recording: of `own_waveform`.
        site: what is permitted; None: no site file.
        on_progress: called as the waveform is read.

    Raises:
        ScenarioError: the request does not fit recording or radio.
        RecordingError: the recording cannot be sent.
    """
    playback = Playback(recording, _play_options(request, recording))
    if playback.gaps:
        raise RecordingError(f"{recording.name} has {playback.gaps} gaps; a waveform that is sent has none")
    able = radio.capabilities
    if len(playback.channels) != able.n_tx:
        raise ScenarioError(
            f"{recording.name}: core:num_channels is {recording.n_channels} and {len(playback.channels)} are chosen, "
            f"the radio has {able.n_tx} transmit chains; choose as many channels"
        )
    _check_time(request, radio)
    low_hz, high_hz = able.sample_rates_hz
    if not low_hz <= playback.rate_hz <= high_hz:
        raise RadioError(
            f"{recording.name}: core:sample_rate is {playback.rate_hz:.10g}, the radio does {low_hz:g} to {high_hz:g}"
        )
    found = level(playback, None if on_progress is None else lambda share: on_progress("measuring the level", share))
    scale = 1.0 if request.level_dbfs is None else 10 ** ((request.level_dbfs - found.mean_dbfs) / 20)
    emission = Emission(
        frequency_hz=request.frequency_hz,
        bandwidth_hz=playback.rate_hz,
        gain_db=request.gain_db,
        level_dbfs=found.mean_dbfs + 20 * math.log10(scale),
        peak=found.peak * scale,
        duration_s=playback.n_samples / playback.rate_hz,
    )
    return Plan(
        request=request,
        recording_sha=hashlib.sha256(recording.meta_path.read_bytes()).hexdigest(),
        role=str(recording.global_fields["role"]),
        sample_rate_hz=playback.rate_hz,
        scale=scale,
        emission=emission,
        judgement=judge(emission, site, request.kind, request.address, able.path),
        site=None if site is None else site.name,
        gains_db=_gains(request.gain_db, able.tx_gains_db),
    )


def _check_time(request: Request, radio: Radio) -> None:
    if not request.timed:
        return
    given = f"at_s={request.at_s}, in_s={request.in_s}"
    if request.at_s is not None and request.in_s is not None:
        raise ScenarioError(f"{given}: give one of them, a time of the radio or a time from now")
    if not radio.sends_timed:
        raise RadioError(
            f"{given}: radio {radio.kind} {request.address!r} cannot begin at a time, only as soon as its gain is "
            "reached; leave it out, or take a radio whose sink obeys times (uhd)"
        )
    if not all(value is None or 0 <= value < LATEST_S for value in (request.at_s, request.in_s)):
        raise ScenarioError(f"{given}: it must be from 0 up to {LATEST_S:g} s")


def _play_options(request: Request, recording: Recording) -> PlayOptions:
    rate = recording.sample_rate_hz or 1.0
    if request.duration_s is not None and not 0 < request.duration_s < math.inf:
        raise ScenarioError(f"duration_s={request.duration_s}: it must be positive")
    limit = None if request.duration_s is None else max(1, round(request.duration_s * rate))
    whole = recording.n_samples if request.turns > 1 else None
    frame_samples = whole if request.frame_samples is None else request.frame_samples
    return PlayOptions(
        channels=request.channels,
        gaps="stop",
        turns=request.turns,
        frame_samples=frame_samples,
        frame_start=request.frame_start,
        max_samples=limit,
    )


def _gains(gain_db: float | None, limits_db: tuple[float, float] | None) -> tuple[float, ...]:
    """Gains from the lowest to the one typed, in steps."""
    if limits_db is None:
        if gain_db is not None:
            raise ScenarioError(f"gain_db={gain_db:g}: this radio has no transmit gain to set; leave it out")
        return ()
    low, high = limits_db
    if gain_db is None or not low <= gain_db <= high:
        raise ScenarioError(f"gain_db={gain_db}: type a transmit gain of {low:g} to {high:g} dB")
    steps = math.ceil((gain_db - low) / _GAIN_STEP_DB)
    return (*(low + _GAIN_STEP_DB * k for k in range(steps)), gain_db)


class _TimedBurst(Failsafe, gr.sync_block):
    """Holds a waveform back until it is released, and passes it on as one burst that begins at a time of the radio."""

    def __init__(self, n_ports: int, n_samples: int, time_s: Fraction) -> None:
        gr.sync_block.__init__(self, "semair timed burst", [np.complex64] * n_ports, [np.complex64] * n_ports)
        self._n_samples = n_samples
        seconds, rest = divmod(time_s, 1)
        self._time = pmt.make_tuple(pmt.from_uint64(int(seconds)), pmt.from_double(float(rest)))
        self.released = threading.Event()

    @guarded
    def work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        at = self.nitems_written(0)
        n = min(len(output_items[0]), self._n_samples - at)
        # Short waits only: the scheduler has to be able to end. What follows the waveform is never passed on.
        if n == 0 or not self.released.wait(_HOLD_S):
            time.sleep(_HOLD_S)
            return 0
        for port, (values, new) in enumerate(zip(output_items, input_items, strict=True)):
            values[:n] = new[:n]
            if at == 0:
                self.add_item_tag(port, 0, pmt.intern("tx_sob"), pmt.PMT_T)
                self.add_item_tag(port, 0, pmt.intern("tx_time"), self._time)
            if at + n == self._n_samples:
                self.add_item_tag(port, at + n - 1, pmt.intern("tx_eob"), pmt.PMT_T)
        return n


class Transmission(gr.top_block):
    """Silence while the gain rises, the waveform, and silence that flushes it through the radio.

    A waveform with a time is one burst, and nothing is sent before and after it. It is handed over shortly before, so
    that a radio has nothing to send when a transmission is stopped earlier.

    Args:
        plan: what is sent.
        recording: its waveform.
        radio: configured.
        receivers: blocks that take the radio's receive streams, one per chain; without them these are dropped where
            the radio is one block for both ways, and left alone otherwise.

    Raises:
        RadioError: the time is too near, or over.
    """

    def __init__(self, plan: Plan, recording: Recording, radio: Radio, receivers: Sequence[Any] = ()) -> None:
        from gnuradio import blocks as gr_blocks

        gr.top_block.__init__(self, "semair transmission")
        self.source = SigmfSource(recording, **vars(_play_options(plan.request, recording)))
        rate = plan.sample_rate_hz
        self.waveform_samples = self.source.playback.n_samples
        self.begin_s: Fraction | None = None
        self._burst: _TimedBurst | None = None
        # On this machine's clock: when a burst begins and when it is over.
        self._begin = self._end = 0.0
        self.wait_s = 0.0
        if plan.request.timed:
            self._add_burst(plan, radio, receivers)
            return
        # Far longer than the gain needs: its steps are made by this machine's clock, not by the samples'.
        self.lead_samples = round((3 * len(plan.gains_db) * _TICK_S + _SPARE_S) * rate)
        self.total_samples = self.lead_samples + self.waveform_samples + _FLUSH_SAMPLES
        sink = radio.sink()
        self.nodes: list[Any] = [self.source, sink, *receivers]
        paced = radio.capabilities.path in ("loopback", "sim")
        for port in range(len(self.source.playback.channels)):
            silence = gr_blocks.null_source(gr.sizeof_gr_complex)
            row = gr_blocks.stream_mux(gr.sizeof_gr_complex, [self.lead_samples, self.waveform_samples])
            scale = gr_blocks.multiply_const_cc(plan.scale)
            end = gr_blocks.head(gr.sizeof_gr_complex, self.total_samples)
            self.connect(silence, (row, 0))
            self.connect((self.source, port), (row, 1))
            chain = [row, scale, end]
            if paced:
                # A radio takes samples when they are due; what ends in this machine takes them at once.
                chain.append(gr_blocks.throttle(gr.sizeof_gr_complex, rate, False))
            self.connect(*chain)
            self.connect(chain[-1], (sink, port))
            self.nodes += [silence, *chain]
            self.last = chain[-1]
        streams = list(receivers)
        if not streams and paced and sink is radio.source():
            streams = [gr_blocks.null_sink(gr.sizeof_gr_complex) for _ in range(radio.capabilities.n_rx)]
        for port, receiver in enumerate(streams):
            self.connect((radio.source(), port), receiver)
        self.nodes += streams

    def _add_burst(self, plan: Plan, radio: Radio, receivers: Sequence[Any]) -> None:
        from gnuradio import blocks as gr_blocks

        n = len(self.source.playback.channels)
        self.lead_samples, self.total_samples = 0, self.waveform_samples
        now_s, now = radio.time_now_s(), time.monotonic()
        wanted = plan.request.at_s if plan.request.in_s is None else plan.request.in_s
        self.begin_s = Fraction(str(wanted)) + (0 if plan.request.in_s is None else now_s)
        self.wait_s = float(self.begin_s - now_s)
        least_s = 3 * len(plan.gains_db) * _TICK_S + _HAND_OVER_S + _SPARE_S
        if self.wait_s < least_s:
            raise RadioError(
                f"not sent: at_s={plan.request.at_s}, in_s={plan.request.in_s} is {self.wait_s:.3f} s from now by the "
                f"radio's time, which is {float(now_s):.3f} s; the gain takes {least_s:.2f} s to be reached"
            )
        self._begin = now + self.wait_s
        self._end = self._begin + self.waveform_samples / plan.sample_rate_hz + _NEWS_S
        self._burst = self.last = _TimedBurst(n, self.waveform_samples, self.begin_s)
        silence = gr_blocks.null_source(gr.sizeof_gr_complex)
        sink = radio.sink()
        self.nodes = [self.source, silence, self._burst, sink, *receivers]
        for port in range(n):
            # What never ends keeps the flowgraph, and with it the radio's news of the burst.
            row = gr_blocks.stream_mux(gr.sizeof_gr_complex, [self.waveform_samples, 1 << 30])
            scale = gr_blocks.multiply_const_cc(plan.scale)
            self.connect((self.source, port), (row, 0))
            self.connect(silence, (row, 1))
            self.connect(row, scale, (self._burst, port))
            self.connect((self._burst, port), (sink, port))
            self.nodes += [row, scale]
        for port, receiver in enumerate(receivers):
            self.connect((radio.source(), port), receiver)

    def began(self) -> bool:
        """Whether the waveform is on its way to the radio."""
        return self.sent() >= self.lead_samples if self._burst is None else self._burst.released.is_set()

    def is_due(self) -> bool:
        """Whether samples should be flowing now."""
        return self._burst is None or (self.began() and self.sent() < self.total_samples)

    def release(self) -> None:
        """Hand a burst over once its time is near. To be called now and then."""
        if self._burst is not None and time.monotonic() > self._begin - _HAND_OVER_S:
            self._burst.released.set()

    def is_over(self) -> bool:
        """Whether a burst's time is over; whatever has no time ends by itself."""
        return self._burst is not None and time.monotonic() > self._end

    def sent(self) -> int:
        """Samples on their way to the radio so far, silence included."""
        return int(self.last.nitems_written(0))

    def failure(self) -> BaseException | None:
        """The first error that a block met, or None."""
        return first_failure([node for node in self.nodes if isinstance(node, Failsafe)])


class Watch:
    """Raises the gain step by step, and stops what does not go as planned.

    Called about twenty times a second while the flowgraph runs.

    Args:
        plan: what is sent.
        radio: its gain is set.
        flowgraph: tells how far it is.
        clock: seconds, monotonic.
    """

    def __init__(
        self, plan: Plan, radio: Radio, flowgraph: Transmission, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._plan = plan
        self._radio = radio
        self._flowgraph = flowgraph
        self._clock = clock
        self._begin = self._moved = clock()
        self._last = 0
        self._gains = list(plan.gains_db)
        self.gain_db: float | None = None

    def tick(self) -> None:
        """Take the next step.

        Raises:
            RadioError: the radio took another gain than asked for, the gain is late, samples do not flow, or the
                transmission lasts longer than planned.
        """
        flow, plan, now = self._flowgraph, self._plan, self._clock()
        if self._gains:
            if flow.began():
                raise RadioError("the transmit gain was not reached before the waveform began; nothing more is sent")
            wanted = self._gains.pop(0)
            self.gain_db = self._radio.set_tx_gain_db(wanted)
            if self.gain_db > wanted + 0.5:
                raise RadioError(
                    f"the radio set a transmit gain of {self.gain_db:g} dB where {wanted:g} dB were asked for"
                )
        if flow.sent() > self._last or not flow.is_due():
            self._last, self._moved = flow.sent(), now
        if now - self._moved > _STALL_S:
            raise RadioError(f"no samples went to the radio for {_STALL_S:g} s; the transmission was stopped")
        flow.release()
        longest = 1.5 * flow.total_samples / plan.sample_rate_hz + _STALL_S + flow.wait_s
        if now - self._begin > longest:
            raise RadioError(f"the transmission did not end within {longest:.1f} s and was stopped")


def transmit(
    plan: Plan,
    code: str,
    radio: Radio,
    recording: Recording,
    log: Path,
    *,
    receivers: Sequence[Any] = (),
    on_progress: OnProgress | None = None,
) -> Sent:
    """Send a plan that a dry run has shown.

    The radio starts at its lowest gain; the gain rises in steps while silence is sent, and falls back to the lowest
    when the transmission ends, however it ends. A line in the log tells the beginning, another the end.

    Args:
        plan: what is sent.
        code: of the plan, as the dry run showed it.
        radio: of `open_radio`.
        recording: of `own_waveform`.
        log: file that takes the lines.
        receivers: see `Transmission`.
        on_progress: called with the share sent.

    Raises:
        RadioError: the plan is refused, the code is another plan's, or the radio does not do as told.
        StorageError: the log cannot be written; then nothing is sent.
    """
    if plan.judgement.refusals:
        raise RadioError(f"not sent: {'; '.join(plan.judgement.refusals)}")
    if code != plan.code:
        raise RadioError(
            f"not sent: code {code!r} is that of another plan or of none; look at the plan with a dry run, which shows "
            "its code"
        )
    entry = {"id": uuid.uuid4().hex, "operator": getpass.getuser(), "plan": plan.as_dict(), "code": plan.code}
    append_log(log, {"event": "begin", **entry})
    begin, sent, outcome = time.monotonic(), 0, "failed"
    try:
        gains = plan.gains_db[:1] * radio.capabilities.n_tx
        settings = Settings(plan.sample_rate_hz, plan.request.frequency_hz, tx_gain_db=gains)
        _check_settings(settings, radio.configure(settings))
        flowgraph = Transmission(plan, recording, radio, receivers)
        watch = Watch(plan, radio, flowgraph)

        def tick() -> None:
            watch.tick()
            if on_progress is not None:
                on_progress("sending", min(1.0, flowgraph.sent() / flowgraph.total_samples))

        try:
            interrupted = execute(flowgraph, flowgraph.failure, tick, flowgraph.is_over)
        finally:
            sent = max(0, min(flowgraph.sent() - flowgraph.lead_samples, flowgraph.waveform_samples))
            if plan.gains_db:
                radio.set_tx_gain_db(plan.gains_db[0])
        counts, at_s = radio.counts(), flowgraph.begin_s
        if at_s is not None and counts.get("time_error"):
            sent = 0
            raise RadioError(
                f"not sent: the waveform came too late for its time, {float(at_s):.6f} s of the radio; is this machine "
                "too busy? see `semair doctor`"
            )
        outcome = "interrupted" if interrupted else "done"
        seconds = time.monotonic() - begin
        return Sent(sent, seconds, watch.gain_db, counts, interrupted, None if at_s is None else float(at_s))
    except BaseException as error:
        outcome = f"failed: {error or type(error).__name__}"
        raise
    finally:
        seconds = time.monotonic() - begin
        append_log(log, {"event": "end", "id": entry["id"], "outcome": outcome, "samples": sent, "seconds": seconds})


def _check_settings(asked: Settings, actual: Settings) -> None:
    """Refuse a radio that took something else: rates by a millionth, frequencies by a hundredth of the band."""
    if abs(actual.sample_rate_hz - asked.sample_rate_hz) > 1e-6 * asked.sample_rate_hz:
        raise RadioError(
            f"not sent: the radio took a sample rate of {actual.sample_rate_hz:.10g} Hz where "
            f"{asked.sample_rate_hz:.10g} Hz were asked for"
        )
    if abs(actual.frequency_hz - asked.frequency_hz) > 0.01 * asked.sample_rate_hz:
        raise RadioError(
            f"not sent: the radio took a centre frequency of {actual.frequency_hz:.12g} Hz where "
            f"{asked.frequency_hz:.12g} Hz were asked for"
        )


def default_log() -> Path:
    """Log of this account, for sites that name none."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return state / "semair" / "transmissions.jsonl"


def append_log(log: Path, entry: dict[str, Any]) -> None:
    """One line at the end of the log, on disk before anything goes on."""
    line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **entry}, default=str) + "\n"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(f"the log {log} cannot be written ({error.strerror}); nothing is sent without it") from error

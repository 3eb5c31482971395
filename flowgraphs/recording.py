"""Recording what a radio hears: what recordings say of it, and listening without a receiver."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..blocks.runtime import gr
from ..blocks.sigmf_sink import SigmfSink
from ..blocks.waveforms.frame_sync import FrameFinder, FrameStart
from ..captures.collection import write_collection
from ..captures.extensions import spatial_fields
from ..captures.gaps import Loss, LossFinder, mark_losses
from ..captures.meta import field_names
from ..captures.reader import Recording
from ..errors import RadioError, RecordingError, ScenarioError
from ..hardware.radio import Radio, Settings
from ..hardware.watch import StallWatch
from .execute import execute
from .random_access import first_failure
from .runfolder import RX_NAME, RunFolder, provenance
from .scenario import Scenario, scenario_dict

_LONGEST_QUEUE_BYTES = 512 << 20
_BUFFER_S = 0.02
_PIECE_SAMPLES = 1 << 17
_ORIGINS = {"air": "ota", "cable": "cable", "loopback": "sim", "sim": "sim"}


def common_fields(radio: Radio, scenario: Scenario) -> dict[str, Any]:
    """Fields of the semair namespace that all recordings of a run share."""
    facts = radio.facts()
    fields = {
        "path": radio.capabilities.path,
        "origin": _ORIGINS[radio.capabilities.path],
        "scenario": scenario.name,
        "seed": scenario.seed,
        "radio": " ".join(filter(None, (str(facts.get("driver", radio.kind)), scenario.radio.address))),
        "software": {name: str(version) for name, version in provenance()["versions"].items()},
    }
    # A radio names its facts as the fields are named; what has no field stays in run.json.
    return fields | {key: facts[key] for key in facts if key in field_names("global") and key not in fields}


def radio_fields(radio: Radio, requested: Settings, actual: Settings) -> dict[str, Any]:
    """Arguments of a recording's writer that say how the radio was set while it received."""
    n_rx = radio.capabilities.n_rx
    facts = radio.facts()
    capture: dict[str, Any] = {
        "requested": requested.as_dict(),
        "actual": actual.as_dict(),
        "clock_source": actual.clock_source,
        "time_source": actual.time_source,
    }
    if len(actual.rx_gain_db) == n_rx:
        capture["rx_gain_db"] = list(actual.rx_gain_db)
    if actual.bandwidth_hz is not None:
        capture["bandwidth_hz"] = actual.bandwidth_hz
    capture |= {key: facts[key] for key in facts if key in field_names("capture") and key not in capture}
    standard = spatial_fields(n_rx)
    if "antenna_model" in facts:
        standard["global"]["antenna:model"] = facts["antenna_model"]
    return {"capture_fields": capture, "standard_fields": standard}


def queue_bytes(radio: Radio, actual: Settings) -> int:
    """Room between radio and disk: a second of samples, within bounds."""
    size = 4 if radio.capabilities.datatype == "ci16_le" else 8
    return int(min(max(64 << 20, size * radio.capabilities.n_rx * actual.sample_rate_hz), _LONGEST_QUEUE_BYTES))


def sample_limit(radio: Radio, actual: Settings, duration_s: float | None, size_bytes: float | None) -> int | None:
    """Samples per channel after which a recording is long or large enough; None: no limit.

    Raises:
        ScenarioError: a limit is not positive.
    """
    limits = []
    for name, value in (("duration", duration_s), ("size", size_bytes)):
        if value is not None and not value > 0:
            raise ScenarioError(f"{name}={value:g}: it must be positive")
    if duration_s is not None:
        limits.append(max(round(duration_s * actual.sample_rate_hz), 1))
    if size_bytes is not None:
        per_sample = (4 if radio.capabilities.datatype == "ci16_le" else 8) * radio.capabilities.n_rx
        limits.append(max(int(size_bytes // per_sample), 1))
    return min(limits) if limits else None


@dataclass(frozen=True)
class RecorderState:
    """How a recording goes.

    Attributes:
        seconds: recorded so far, on the radio's clock.
        rate_bytes_per_s: written to the disk, mean so far.
        free_bytes: room left before the reserve on the disk.
        left_s: how long it lasts at the radio's rate.
        lost_samples: per channel, so far.
        clipped_share: largest share of samples at full scale over the channels.
        share: of what was asked for; None without a limit.
    """

    seconds: float
    rate_bytes_per_s: float
    free_bytes: int
    left_s: float
    lost_samples: int
    clipped_share: float
    share: float | None

    def __str__(self) -> str:
        minutes, seconds = divmod(int(min(self.left_s, 359_999)), 60)
        text = (
            f"{self.seconds:.1f} s, {self.rate_bytes_per_s / 1e6:.1f} MB/s, {self.free_bytes / 1e9:.1f} GB free ="
            f" {minutes // 60}:{minutes % 60:02d}:{seconds:02d} left, {self.lost_samples} lost"
        )
        return text + (f", {self.clipped_share:.2%} clipped" if self.clipped_share else ", none clipped")


class RecorderWatch:
    """Tells the state of a recording that is being made.

    Args:
        sink: makes it.
        limit: samples per channel to record, None without.
    """

    def __init__(self, sink: SigmfSink, limit: int | None = None) -> None:
        self._sink = sink
        self._limit = limit
        self._begin: float | None = None

    def state(self) -> RecorderState | None:
        """Now; None before the first sample."""
        writer = self._sink.writer
        if writer is None or not writer.n_samples:
            return None
        now = time.monotonic()
        self._begin = self._begin or now - 1e-3
        free, left_s = writer.room()
        return RecorderState(
            seconds=writer.n_samples / self._sink.sample_rate_hz,
            rate_bytes_per_s=writer.written_bytes / (now - self._begin),
            free_bytes=free,
            left_s=left_s,
            lost_samples=writer.lost_samples,
            clipped_share=float(writer.clipped_samples.max()) / writer.n_samples,
            share=None if self._limit is None else min(writer.n_samples / self._limit, 1.0),
        )


@dataclass(frozen=True)
class RawResult:
    """How a recording went.

    Attributes:
        folder: where it lies.
        recording: its meta file.
        seconds: recorded.
        n_channels: recorded.
        n_samples: per channel.
        lost_samples: per channel, missing at gaps.
        clipped_samples: per channel.
        radio_counts: what the radio counted.
        interrupted: ended by Ctrl-C.
    """

    folder: Path
    recording: Path
    seconds: float
    n_channels: int
    n_samples: int
    lost_samples: int
    clipped_samples: list[int]
    radio_counts: dict[str, Any]
    interrupted: bool


class Listening(gr.top_block):
    """A radio and a sink that records it. A radio whose emulated air needs a transmitter gets silence.

    Args:
        radio: configured.
        sink: records.
        sample_rate_hz: of the radio.
    """

    def __init__(self, radio: Radio, sink: SigmfSink, sample_rate_hz: float) -> None:
        gr.top_block.__init__(self, "semair recorder")
        source = radio.source()
        self.nodes: list[Any] = [source, sink]
        # Few large pieces cost a fraction of many small ones.
        if hasattr(source, "set_min_output_buffer"):
            # It reports this on standard output, where results go.
            source.set_log_level("warn")
            source.set_min_output_buffer(max(int(_BUFFER_S * sample_rate_hz), 8192))
            # Only a radio goes on by itself meanwhile.
            sink.gather_s = _BUFFER_S / 4 if radio.capabilities.path in ("air", "cable") else 0.0
        if radio.sink() is source:
            from gnuradio import blocks

            for port in range(radio.capabilities.n_tx):
                silence = blocks.null_source(gr.sizeof_gr_complex)
                self.nodes.append(silence)
                self.connect(silence, (source, port))
        for port in range(radio.capabilities.n_rx):
            self.connect((source, port), (sink, port))
        self._watch = StallWatch(radio, lambda: sink.nitems_read(0))

    def failure(self) -> BaseException | None:
        """The first error that a block met, or that the radio vanished."""
        return first_failure(self.nodes) or self._watch.failure()


def record_raw(
    scenario: Scenario,
    radio: Radio,
    requested: Settings,
    folder: Path,
    *,
    duration_s: float | None = None,
    size_bytes: float | None = None,
    overwrite: bool = False,
    on_progress: Callable[[RecorderState], None] | None = None,
) -> RawResult:
    """Record what a radio hears, without transmitting and without a receiver.

    Ends at a duration, at a size, before the disk is full, or with Ctrl-C; whatever ends it, the recording is whole.

    Args:
        scenario: names the radio and its settings.
        radio: not yet configured.
        requested: asked of it.
        folder: to make.
        duration_s: to record.
        size_bytes: of the data file, at most.
        overwrite: replace an earlier run in this folder.
        on_progress: called about twenty times a second once samples come.

    Raises:
        SemairError: anything a user can mend; what was recorded before is kept.
    """
    actual = radio.configure(requested)
    limit = sample_limit(radio, actual, duration_s, size_bytes)
    run_folder = RunFolder(folder)
    run_folder.create(overwrite)
    run_folder.write_json(
        run_folder.run_json,
        {
            "format": 1,
            "kind": "recording",
            **provenance(),
            "scenario": scenario_dict(scenario),
            "radio": {
                "kind": radio.kind,
                "requested": requested.as_dict(),
                "actual": actual.as_dict(),
                "facts": radio.facts(),
            },
        },
    )
    sink = SigmfSink(
        folder,
        RX_NAME,
        radio.capabilities.n_rx,
        actual.sample_rate_hz,
        actual.frequency_hz,
        radio.capabilities.datatype,
        max_samples=limit,
        description=f"what the radio of scenario {scenario.name} heard",
        global_fields={**common_fields(radio, scenario), "role": "bs-rx"},
        queue_bytes=queue_bytes(radio, actual),
        # A radio does not wait: what the disk cannot take is left out, counted and marked.
        on_full="drop" if radio.capabilities.path in ("air", "cable") else "block",
        **radio_fields(radio, requested, actual),
    )
    sink.closing_fields = lambda: {"radio_counts": radio.counts()}
    flowgraph = Listening(radio, sink, actual.sample_rate_hz)
    sink.warm_up()
    watch = RecorderWatch(sink, limit)

    def tell() -> None:
        state = watch.state()
        if state is not None and on_progress is not None:
            on_progress(state)

    interrupted = execute(
        flowgraph,
        flowgraph.failure,
        tell,
        # A sink that has enough tells its source, which may take its time to hear it.
        lambda: limit is not None and sink.writer is not None and sink.writer.n_samples >= limit,
    )
    writer = sink.writer
    if writer is None:
        raise RadioError(f"the radio gave no samples, so {folder} holds no recording; check it, then record again")
    seal_run(
        run_folder,
        {"bs-rx": RX_NAME},
        scenario,
        common_fields(radio, scenario),
        complete=limit is None or not interrupted,
    )
    return RawResult(
        folder,
        writer.path,
        writer.n_samples / actual.sample_rate_hz,
        radio.capabilities.n_rx,
        writer.n_samples,
        writer.lost_samples,
        writer.clipped_samples.tolist(),
        radio.counts(),
        interrupted,
    )


def seal_run(
    folder: RunFolder,
    roles: dict[str, str],
    scenario: Scenario,
    fields: dict[str, Any],
    *,
    complete: bool,
    tables: Sequence[Path] = (),
) -> Path:
    """Write the collection of a run over its recordings, its ground truth and its other tables."""
    tables = (
        folder.run_json,
        folder.truth,
        folder.decisions,
        folder.snapshots,
        folder.constellation,
        *tables,
    )
    files = [path.name for path in tables if path.is_file()]
    own = {key: fields[key] for key in fields if key in field_names("collection")} | {"complete": complete}
    if folder.truth.is_file():
        own["truth"] = folder.truth.name
    return write_collection(folder.path, collection_name(scenario), roles, own, files=files)


def collection_name(scenario: Scenario) -> str:
    """Base name of the collection of a scenario's run."""
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in scenario.name)


def find_recorded_losses(
    path: Path, scenario: Scenario, *, write: bool = False, on_share: Callable[[float], None] = lambda share: None
) -> tuple[list[Loss], int]:
    """Lost samples of a recording, found by the frames of a scenario that it holds.

    Stretches between gaps that the recording knows are searched each for itself.

    Args:
        path: of the recording.
        scenario: its frames, and how they are searched for.
        write: mark what is found in the recording.
        on_share: told the share done.

    Returns:
        Losses, and frames heard.

    Raises:
        RecordingError: the recording is damaged, or of another sample rate.
    """
    recording = Recording.open(path)
    frame = scenario.frame
    if recording.sample_rate_hz not in (None, frame.sample_rate_hz):
        raise RecordingError(
            f"{recording.meta_path}: core:sample_rate is {recording.sample_rate_hz:.10g}, frames of scenario"
            f" {scenario.name} have {frame.sample_rate_hz:.10g}; name the scenario that was sent"
        )
    finder = FrameFinder(frame, recording.n_channels, scenario.max_cfo_hz, scenario.sync.false_alarms_per_sample)
    counter = LossFinder(frame.frame_samples)
    losses: list[Loss] = []
    n_heard = 0

    def hear(frames: Sequence[FrameStart]) -> None:
        nonlocal n_heard
        for one in frames:
            if not one.counted:
                n_heard += 1
                loss = counter.add(one.frame_number, one.start + one.fraction)
                losses.extend([loss] if loss is not None else [])

    for segment in recording.segments:
        end = segment.sample_start + segment.sample_count
        for start in range(segment.sample_start, end, _PIECE_SAMPLES):
            hear(finder.process(recording.read(start, min(_PIECE_SAMPLES, end - start)))[1])
            on_share(start / recording.n_samples)
        hear(finder.interrupt())
        counter.interrupt()
    if write:
        mark_losses(recording.meta_path, losses)
    return losses, n_heard

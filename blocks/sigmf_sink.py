"""GNU Radio block: records antenna streams as SigMF."""

from __future__ import annotations

import functools
import statistics
import time
from collections import deque
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..captures.convert import all_finite, interleave
from ..captures.devicetime import DeviceTime
from ..captures.gaps import METHOD, Loss, LossFinder
from ..captures.meta import component_dtype
from ..captures.writer import RecordingWriter
from .messages import field
from .runtime import RX_TIME, WORK_DONE, Failsafe, gr, guarded, input_tags, pmt, time_ticks

_SNR_FRAMES = 4096
_SNR_METHOD = (
    "per antenna, of the beacon, by correlation with it, so that its echoes count as noise; median of the last "
    f"{_SNR_FRAMES} frames"
)


class SigmfSink(Failsafe, gr.sync_block):
    """Writes n_channels streams into one interleaved recording.

    Tags read: `rx_time` on port 0; the first gives the recording its device time, a later one that does not
    continue it starts a new capture segment with the count of lost samples. Message in `frames`: frames that a
    synchroniser heard in the same streams; they tell the SNR, and lost samples where the radio gives no time. The
    recording is opened with the first samples and gets its final name when the flowgraph stops; `writer` tells how it
    went.

    Args:
        folder: where to write.
        name: base name of the recording.
        n_channels: streams.
        sample_rate_hz: that the radio really has.
        frequency_hz: that the radio really has, None without.
        datatype: "ci16_le" for radios of up to 16 bits, "cf32_le" for anything.
        overwrite: replace a recording of this name.
        max_samples: end the stream after so many samples per channel; None: no limit.
        stream: what the streams hold: "complex", or "short" for pairs of 16-bit integers (vectors of two shorts) as
            radios deliver them, which are written as they are; needs "ci16_le".
        frame_samples: length of the frames that `frames` tells of; None: such messages are not used.
        writer_options: further arguments of the recording's writer.

    Attributes:
        writer: of the recording, None before the first samples.
        closing_fields: called when the recording is closed, for global fields known only then; None: no such fields.
        gather_s: after a call that took less than this duration of samples, wait for the rest of it: few calls cost
            less than many. The buffer before this block must hold several times as much. 0: never wait.
        signal: what is sent, as `signal:detail` of SigMF's extension, with which the whole recording is annotated.
    """

    def __init__(
        self,
        folder: str | Path,
        name: str,
        n_channels: int = 1,
        sample_rate_hz: float = 1e6,
        frequency_hz: float | None = None,
        datatype: Literal["ci16_le", "cf32_le"] = "ci16_le",
        overwrite: bool = False,
        max_samples: int | None = None,
        stream: Literal["complex", "short"] = "complex",
        frame_samples: int | None = None,
        **writer_options: Any,
    ) -> None:
        if stream not in ("complex", "short") or (stream == "short" and datatype != "ci16_le"):
            raise ValueError(f"stream={stream!r} with {datatype}: choose 'complex', or 'short' with 'ci16_le'")
        item = np.complex64 if stream == "complex" else (np.int16, 2)
        gr.sync_block.__init__(self, name="semair SigMF sink", in_sig=[item] * n_channels, out_sig=None)
        self.sample_rate_hz = sample_rate_hz
        self.max_samples = max_samples
        self.writer: RecordingWriter | None = None
        self._open = functools.partial(
            RecordingWriter,
            folder,
            name,
            n_channels=n_channels,
            datatype=datatype,
            sample_rate_hz=sample_rate_hz,
            frequency_hz=frequency_hz,
            overwrite=overwrite,
            **writer_options,
        )
        self._n_channels, self._item, self._datatype = n_channels, item, datatype
        self.closing_fields: Callable[[], dict[str, Any]] | None = None
        self.signal: dict[str, Any] | None = None
        self.gather_s = 0.0
        self._clock: tuple[int, int] | None = None
        self._losses = None if frame_samples is None else LossFinder(frame_samples)
        self._found: list[Loss] = []
        self._snr_db: deque[float] = deque(maxlen=_SNR_FRAMES)
        self.message_port_register_in(pmt.intern("frames"))
        self.set_msg_handler(pmt.intern("frames"), self.handle_frame)

    def warm_up(self) -> None:
        """Compile what is compiled at first use."""
        rows = list(np.zeros((self._n_channels, 1), np.dtype(self._item)))
        size = component_dtype(self._datatype).itemsize
        interleave(rows, np.empty(2 * size * self._n_channels, np.uint8), np.zeros(self._n_channels, np.int64))
        if self._item == np.complex64:
            all_finite(rows)

    @guarded
    def handle_frame(self, message: Any) -> None:
        """Note a frame's SNR; compare its number with its place, where nothing else tells of losses."""
        table = pmt.car(message)
        self._snr_db.append(field(table, "snr_db"))
        if self._losses is None or self._clock is not None:
            return
        if field(table, "counted"):
            return
        start = field(table, "sample_time")
        loss = self._losses.add(field(table, "frame"), start + field(table, "fraction"))
        if loss is not None:
            self._found.append(loss)

    def _mark_losses(self, writer: RecordingWriter) -> None:
        """Note losses as far as they lie in what is written; who heard them may be ahead of this block."""
        while self._found and self._found[0].sample_start <= writer.n_samples:
            loss = self._found.pop(0)
            writer.found_loss(loss.sample_start, loss.lost_samples, loss.earliest_start, METHOD)

    @guarded
    def work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        """Hand the samples to the writer."""
        first = self.nitems_read(0)
        n = len(input_items[0])
        if self.max_samples is not None:
            n = min(n, self.max_samples - first)
            if n <= 0:
                return WORK_DONE
        samples = [port[:n] for port in input_items]
        times = [tag for tag in input_tags(self, 0, n) if pmt.equal(tag.key, RX_TIME)]
        if self.writer is None:
            at_start = [tag for tag in times if tag.offset == first]
            self.writer = self._open(device_time=self._device_time(at_start[0]) if at_start else None)
        done = 0
        for tag in times:
            ticks = time_ticks(tag.value, self.sample_rate_hz)
            if self._clock is not None:
                lost = ticks - self._clock[1] - (tag.offset - self._clock[0])
                if lost:
                    self.writer.write([port[done : tag.offset - first] for port in samples])
                    done = tag.offset - first
                    self.writer.gap(lost, self._device_time(tag))
            self._clock = (tag.offset, ticks)
        self.writer.write([port[done:] for port in samples] if done else samples)
        self._mark_losses(self.writer)
        if (short_s := self.gather_s - n / self.sample_rate_hz) > 0:
            time.sleep(short_s)
        return n

    def _device_time(self, tag: gr.tag_t) -> DeviceTime:
        ticks = time_ticks(tag.value, self.sample_rate_hz)
        if float(self.sample_rate_hz).is_integer():
            rate = int(self.sample_rate_hz)
            return DeviceTime(*divmod(ticks, rate), rate)
        # Sample periods are no whole part of a second: picoseconds tell them apart at any rate of a radio.
        picoseconds = round(Fraction(ticks) / Fraction(self.sample_rate_hz) * 10**12)
        return DeviceTime(*divmod(picoseconds, 10**12), 10**12)

    def stop(self) -> bool:
        """Close the recording, whatever ended the flowgraph."""
        try:
            if self.writer is not None:
                self._mark_losses(self.writer)
                if self.signal is not None:
                    detail = {"signal:detail": self.signal}
                    self.writer.annotate(0, self.writer.n_samples, "signal", standard_fields=detail)
                fields = {} if self.closing_fields is None else self.closing_fields()
                if self._snr_db:
                    fields |= {"snr_db": round(statistics.median(self._snr_db), 2), "snr_method": _SNR_METHOD}
                self.writer.close(fields)
        except Exception as error:
            self.keep(error)
        return True

"""GNU Radio block: records antenna streams as SigMF."""

from __future__ import annotations

import functools
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..captures.devicetime import DeviceTime
from ..captures.writer import RecordingWriter
from .runtime import RX_TIME, WORK_DONE, Failsafe, gr, guarded, input_tags, pmt, stack_ports, time_ticks


class SigmfSink(Failsafe, gr.sync_block):
    """Writes n_channels complex streams into one interleaved recording.

    Tags read: `rx_time` on port 0; the first gives the recording its device time, a later one that does not
    continue it starts a new capture segment with the count of lost samples. The recording is opened with the
    first samples and gets its final name when the flowgraph stops; `writer` tells how it went.

    Args:
        folder: where to write.
        name: base name of the recording.
        n_channels: streams.
        sample_rate_hz: that the radio really has.
        frequency_hz: that the radio really has, None without.
        datatype: "ci16_le" for radios of up to 16 bits, "cf32_le" for anything.
        overwrite: replace a recording of this name.
        max_samples: end the stream after so many samples per channel; None: no limit.
        writer_options: further arguments of the recording's writer.
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
        **writer_options: Any,
    ) -> None:
        gr.sync_block.__init__(self, name="semair SigMF sink", in_sig=[np.complex64] * n_channels, out_sig=None)
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
        self._clock: tuple[int, int] | None = None

    @guarded
    def work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        """Hand the samples to the writer."""
        first = self.nitems_read(0)
        n = len(input_items[0])
        if self.max_samples is not None:
            n = min(n, self.max_samples - first)
            if n <= 0:
                return WORK_DONE
        samples = stack_ports(input_items, n)
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
                    self.writer.write(samples[:, done : tag.offset - first])
                    done = tag.offset - first
                    self.writer.gap(lost, self._device_time(tag))
            self._clock = (tag.offset, ticks)
        self.writer.write(samples[:, done:])
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
                self.writer.close()
        except Exception as error:
            self.keep(error)
        return True

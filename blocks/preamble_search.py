"""GNU Radio block: finds any known reference sequence in the signals of one or many antennas."""

from __future__ import annotations

import numpy as np

from ..errors import RadioError
from .messages import pack
from .runtime import RX_END, RX_TIME, Failsafe, gr, guarded, input_tags, pmt, stack_ports, time_ticks
from .waveforms.preamble_detector import Preamble, PreambleDetector


class PreambleSearch(Failsafe, gr.sync_block):
    """Tells where a reference sequence occurs, with timing, carrier offset and SNR.

    Streams in: n_antennas complex. Message out `preambles`, one per occurrence: {start, fraction, cfo_hz, metric,
    snr_db} with the complex gain per antenna as vector; `start` is the item index of the reference's first
    sample. Tags read: `rx_time`; one that does not continue the time before it means lost samples, where the
    search starts anew; `rx_end`, behind which only padding follows.

    Args:
        reference: complex64, (L,), the sequence.
        sample_rate_hz: of the streams.
        n_antennas: receive antennas, combined without need of their phases.
        max_cfo_hz: largest carrier offset to expect, either sign.
        false_alarms_per_sample: in white noise; sets the threshold.
        threshold: of the metric, 0 to 1, instead. Needed where other structured signals are on the air: they
            resemble the reference more than noise does.
        chunk_samples: samples per call.
    """

    def __init__(
        self,
        reference: np.ndarray,
        sample_rate_hz: float,
        n_antennas: int = 1,
        max_cfo_hz: float = 0.0,
        false_alarms_per_sample: float = 1e-9,
        threshold: float | None = None,
        chunk_samples: int = 8192,
    ) -> None:
        gr.sync_block.__init__(self, name="semair preamble search", in_sig=[np.complex64] * n_antennas, out_sig=None)
        self.sample_rate_hz = sample_rate_hz
        self.detector = PreambleDetector(
            reference,
            sample_rate_hz=sample_rate_hz,
            n_antennas=n_antennas,
            max_cfo_hz=max_cfo_hz,
            false_alarms_per_sample=false_alarms_per_sample,
            # Air that others use too is not white: a foreign signal reaches all antennas alike.
            independent_antennas=False,
            threshold=threshold,
        )
        self.found = 0
        self._clock: tuple[int, int] | None = None
        self.set_output_multiple(chunk_samples)
        self.message_port_register_out(pmt.intern("preambles"))

    @guarded
    def work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        """Search the next samples."""
        n = len(input_items[0])
        first = self.nitems_read(0)
        samples = stack_ports(input_items, n)
        done = 0
        for tag in input_tags(self, 0, n):
            breaks = bool(pmt.equal(tag.key, RX_END))
            if pmt.equal(tag.key, RX_TIME):
                ticks = time_ticks(tag.value, self.sample_rate_hz)
                breaks = self._clock is not None and ticks - self._clock[1] != tag.offset - self._clock[0]
                self._clock = (tag.offset, ticks)
            if breaks:
                self._search(samples[:, done : tag.offset - first])
                done = tag.offset - first
                self._publish(self.detector.flush())
        self._search(samples[:, done:])
        return n

    def _search(self, samples: np.ndarray) -> None:
        try:
            self._publish(self.detector.process(samples))
        except ValueError as error:
            raise RadioError(f"the search was given samples that are no numbers: {error}") from error

    def _publish(self, preambles: list[Preamble]) -> None:
        for preamble in preambles:
            self.found += 1
            fields = {
                "start": preamble.start,
                "fraction": preamble.fraction,
                "cfo_hz": preamble.cfo_hz,
                "metric": preamble.metric,
                "snr_db": preamble.snr_db,
            }
            self.message_port_pub(pmt.intern("preambles"), pack(fields, preamble.gains))

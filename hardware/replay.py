"""The replay radio: a recording in place of antennas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..blocks.sigmf_source import SigmfSource
from ..captures.reader import Recording
from ..errors import RadioError
from .radio import Capabilities, Link, Radio, RadioInfo, Settings

_ANY_RATE_HZ = (1.0, 1e9)


class ReplayRadio(Radio):
    """Gives the samples of a recording, with the times and gaps it was recorded with. It cannot transmit.

    A recording that does not say its sample rate is given the one asked for.

    Args:
        path: of the recording.
        tail_samples: zeros after the end, so that a receiver finishes the last frame.
    """

    kind = "replay"

    def __init__(self, path: Path | str, tail_samples: int = 0) -> None:
        self.recording = Recording.open(path)
        self._tail_samples = tail_samples
        self._block: SigmfSource | None = None
        self._configured = False
        self._recorded_rate_hz = rate = self.recording.sample_rate_hz
        self.capabilities = Capabilities(
            n_rx=self.recording.n_channels,
            n_tx=0,
            emulates_users=False,
            sample_rates_hz=_ANY_RATE_HZ if rate is None else (rate, rate),
            has_hw_time=self.recording.segments[0].device_time is not None,
            phase_stable_across_retune=False,
            overflow_reporting="located",
            loopback_modes=(),
            datatype="ci16_le" if self.recording.datatype == "ci16_le" else "cf32_le",
            path="sim",
        )

    @classmethod
    def open(cls, address: str, link: Link) -> ReplayRadio:
        """A recording by its path.

        Raises:
            RadioError: it has another number of channels than the link has antennas.
        """
        radio = cls(address, link.tail_samples)
        if radio.capabilities.n_rx != link.n_rx:
            raise RadioError(
                f"{address}: core:num_channels is {radio.capabilities.n_rx}, the scenario has "
                f"radio.n_antennas={link.n_rx}; replay it with the scenario it was recorded with"
            )
        return radio

    @classmethod
    def find(cls) -> list[RadioInfo]:
        """Recordings are opened by path; none is searched for."""
        return [RadioInfo("replay", "PATH", "any SigMF recording in place of antennas")]

    def configure(self, requested: Settings) -> Settings:
        """Compare what is asked with what was recorded.

        Raises:
            RadioError: the recording, or a part of it, has another sample rate or centre frequency.
        """
        recorded = self._recorded_rate_hz
        if recorded is not None and recorded != requested.sample_rate_hz:
            raise RadioError(
                f"{self.recording.name}: core:sample_rate is {recorded:.10g}, the scenario asks for "
                f"{requested.sample_rate_hz:.10g}; replay it with the scenario it was recorded with"
            )
        low, high = self.capabilities.sample_rates_hz
        if not low <= requested.sample_rate_hz <= high:
            raise RadioError(
                f"{self.recording.name}: sample_rate_hz={requested.sample_rate_hz:.10g} is not possible: {low:g} to "
                f"{high:g}"
            )
        for segment in self.recording.segments:
            frequency = segment.frequency_hz
            if frequency is not None and not abs(frequency - requested.frequency_hz) <= 1.0:
                raise RadioError(
                    f"{self.recording.name}: core:frequency is {frequency:.12g} from sample {segment.sample_start} on, "
                    f"the scenario asks for {requested.frequency_hz:.12g}; replay it with the scenario it was "
                    "recorded with"
                )
        self.recording.sample_rate_hz = requested.sample_rate_hz
        self._block, self._configured = None, True
        return Settings(requested.sample_rate_hz, requested.frequency_hz)

    def source(self) -> SigmfSource:
        """The recording's channels."""
        if not self._configured:
            raise RadioError(f"{self.recording.name} was not configured: call configure() before source()")
        if self._block is None:
            self._block = SigmfSource(self.recording, self._tail_samples)
        return self._block

    def sink(self) -> None:
        """A recording cannot transmit."""

    def facts(self) -> dict[str, Any]:
        """Which recording is replayed."""
        return {"recording": self.recording.name, "sha512": self.recording.sha512}

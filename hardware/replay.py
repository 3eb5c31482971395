"""The replay radio: a recording in place of antennas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..blocks.playback import Playback, PlayOptions
from ..blocks.sigmf_source import SigmfSource
from ..captures.reader import Recording
from ..errors import RadioError
from .radio import Capabilities, Link, Radio, RadioInfo, Settings

_ANY_RATE_HZ = (1.0, 1e9)


class ReplayRadio(Radio):
    """Gives the samples of a recording, by default with the times and gaps it was recorded with. It cannot transmit.

    A recording that does not say its sample rate is given the one asked for.

    Args:
        path: of the recording.
        tail_samples: zeros after the end, so that a receiver finishes the last frame.
        play: channels, gaps, turns. A rate in it allows to resample to this rate, which then must be the one asked for.
        any_frequency: play recordings of any centre frequency, whatever is asked for.
        speed: of the host's clock; 1 is real time. None: as fast as it is taken.

    Raises:
        RecordingError: there is no such recording, or it is damaged.
        ScenarioError: it cannot be played so.
    """

    kind = "replay"
    waits = True

    def __init__(
        self,
        path: Path | str,
        tail_samples: int = 0,
        play: PlayOptions | None = None,
        any_frequency: bool = False,
        speed: float | None = None,
    ) -> None:
        self.recording = Recording.open(path)
        self._tail_samples = tail_samples
        self._play = play or PlayOptions()
        self._any_frequency = any_frequency
        self._speed = speed
        self._block: SigmfSource | None = None
        self._configured = False
        self._recorded_rate_hz = self.recording.sample_rate_hz
        rate = self._recorded_rate_hz if self._play.rate_hz is None else self._play.rate_hz
        n_channels = self.recording.n_channels if self._play.channels is None else len(self._play.channels)
        self.capabilities = Capabilities(
            n_rx=n_channels,
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
    def open(
        cls,
        address: str,
        link: Link,
        play: PlayOptions | None = None,
        any_frequency: bool = False,
        speed: float | None = None,
    ) -> ReplayRadio:
        """A recording by its path; further arguments as those of the class.

        Raises:
            RadioError: it plays another number of channels than the link has antennas.
        """
        radio = cls(address, link.tail_samples, play, any_frequency, speed)
        if radio.capabilities.n_rx != link.n_rx:
            chosen = "" if play is None or play.channels is None else f" and {radio.capabilities.n_rx} are chosen"
            raise RadioError(
                f"{address}: core:num_channels is {radio.recording.n_channels}{chosen}, the scenario has "
                f"radio.n_antennas={link.n_rx}; replay it with the scenario it was recorded with, or choose as many "
                "channels"
            )
        return radio

    @classmethod
    def find(cls) -> list[RadioInfo]:
        """Recordings are opened by path; none is searched for."""
        return [RadioInfo("replay", "PATH", "any SigMF recording in place of antennas")]

    def configure(self, requested: Settings) -> Settings:
        """Compare what is asked with what was recorded.

        Raises:
            RadioError: the recording, or a part of it, has another sample rate or centre frequency, and nothing was
                said of resampling or of other frequencies.
            ScenarioError: it cannot be played so.
        """
        recorded, resampled = self._recorded_rate_hz, self._play.rate_hz
        if resampled is not None and resampled != requested.sample_rate_hz:
            raise RadioError(
                f"{self.recording.name}: is to be resampled to {resampled:.10g}, the scenario asks for "
                f"{requested.sample_rate_hz:.10g}; resample to that rate"
            )
        if resampled is None and recorded is not None and recorded != requested.sample_rate_hz:
            raise RadioError(
                f"{self.recording.name}: core:sample_rate is {recorded:.10g}, the scenario asks for "
                f"{requested.sample_rate_hz:.10g}; replay it with the scenario it was recorded with, or resample it "
                f"to that rate"
            )
        low, high = self.capabilities.sample_rates_hz
        if not low <= requested.sample_rate_hz <= high:
            raise RadioError(
                f"{self.recording.name}: sample_rate_hz={requested.sample_rate_hz:.10g} is not possible: {low:g} to "
                f"{high:g}"
            )
        for segment in self.recording.segments:
            frequency = segment.frequency_hz
            if self._any_frequency or frequency is None:
                continue
            # Synthesisers have steps of some hertz.
            if not abs(frequency - requested.frequency_hz) <= max(1.0, 5e-9 * requested.frequency_hz):
                raise RadioError(
                    f"{self.recording.name}: core:frequency is {frequency:.12g} from sample {segment.sample_start} on, "
                    f"the scenario asks for {requested.frequency_hz:.12g}; replay it with the scenario it was "
                    "recorded with, or allow any frequency"
                )
        if recorded is None:
            self.recording.sample_rate_hz = requested.sample_rate_hz
        # What cannot be played is refused here and not when the flowgraph is built.
        Playback(self.recording, self._play)
        self._block, self._configured = None, True
        frequency = self.recording.frequency_hz if self._any_frequency else None
        return Settings(requested.sample_rate_hz, requested.frequency_hz if frequency is None else frequency)

    def source(self) -> SigmfSource:
        """The recording's channels."""
        if not self._configured:
            raise RadioError(f"{self.recording.name} was not configured: call configure() before source()")
        if self._block is None:
            self._block = SigmfSource(self.recording, self._tail_samples, speed=self._speed, **vars(self._play))
        return self._block

    def sink(self) -> None:
        """A recording cannot transmit."""

    def facts(self) -> dict[str, Any]:
        """Which recording is replayed, and how."""
        facts: dict[str, Any] = {"recording": self.recording.name, "sha512": self.recording.sha512}
        return facts if self._block is None else {**facts, "playback": self._block.playback.as_dict()}

"""The one interface of all radios: what a radio can do, what was asked of it, what it really did."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any, ClassVar, Literal, Protocol

from ..blocks.waveforms.downlink import DownlinkPaths
from ..blocks.waveforms.frame import FrameFormat
from ..blocks.waveforms.impairments import Impairments
from ..blocks.waveforms.recorded_channel import RecordedChannel
from ..errors import RadioError
from ..models.channels import ChannelConfig


@dataclass(frozen=True)
class Capabilities:
    """What a radio can do, as found out from it and never guessed; unknown means no.

    Attributes:
        n_rx: receive chains.
        n_tx: transmit chains that take a stream.
        emulates_users: bursts of many users can be handed over as messages.
        sample_rates_hz: lowest and highest sample rate; rates between may be refused.
        has_hw_time: samples carry the radio's own time.
        phase_stable_across_retune: phases between chains survive retuning.
        overflow_reporting: whether and how lost samples are told.
        loopback_modes: ways of hearing itself without an antenna.
        datatype: SigMF datatype that holds its samples exactly.
        path: what lies between transmitter and receiver; "air" needs the lab's site file.
        tx_gains_db: lowest and highest transmit gain; None where the radio has none to set.
    """

    n_rx: int
    n_tx: int
    emulates_users: bool
    sample_rates_hz: tuple[float, float]
    has_hw_time: bool
    phase_stable_across_retune: bool
    overflow_reporting: Literal["none", "count", "located"]
    loopback_modes: tuple[str, ...]
    datatype: Literal["ci16_le", "cf32_le"]
    path: Literal["air", "cable", "loopback", "sim"]
    tx_gains_db: tuple[float, float] | None = None


@dataclass(frozen=True)
class Settings:
    """Settings of a radio, asked for or read back.

    Attributes:
        sample_rate_hz: of every chain.
        frequency_hz: centre frequency.
        rx_gain_db: per receive chain; empty where the radio has none.
        tx_gain_db: per transmit chain; empty where the radio has none.
        bandwidth_hz: analogue bandwidth, None where the radio has none to set.
        clock_source: where the sample clock comes from.
        time_source: where the radio's time comes from.
    """

    sample_rate_hz: float
    frequency_hz: float
    rx_gain_db: tuple[float, ...] = ()
    tx_gain_db: tuple[float, ...] = ()
    bandwidth_hz: float | None = None
    clock_source: str = "internal"
    time_source: str = "none"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for run.json and recordings."""
        return asdict(self)


@dataclass(frozen=True)
class DownlinkAir:
    """Emulated air from the base station's antennas to users that listen.

    Attributes:
        paths: gives the channels of a frame by its number.
        n_tx: antennas of the base station.
        active_samples: in a frame, the base station sends in so many samples from its start.
        noise_power: per complex sample at a user.
        expected_power: mean power received while the base station sends.
    """

    paths: Callable[[int], DownlinkPaths]
    n_tx: int
    active_samples: int
    noise_power: float
    expected_power: float


@dataclass(frozen=True)
class Link:
    """What an experiment wants of its radio. A radio of real hardware has its own air and ignores the last part.

    Attributes:
        frame_format: numerology and slots.
        n_rx: receive antennas.
        n_users: users that may send.
        tail_samples: silence after the end that lets a receiver finish the last frame.
        channel: of the users, for emulated air like all that follows.
        beacon_channel: of the beacon.
        impairments: of the radios on both sides.
        noise_power: per complex sample at each antenna.
        expected_power: mean received power per sample without noise.
        user_power_spread_db: the users' received powers lie uniformly within plus or minus this.
        losses: (sample, count) pairs of samples that vanish, as in an overflow.
        seed: of channel, impairments and noise.
        recorded: measured air in the place of the drawn one.
        downlink: where users listen to more than the frames' numbers.
    """

    frame_format: FrameFormat
    n_rx: int
    n_users: int
    tail_samples: int
    channel: ChannelConfig
    beacon_channel: ChannelConfig
    impairments: Impairments
    noise_power: float
    expected_power: float
    user_power_spread_db: float = 0.0
    losses: Sequence[tuple[int, int]] = ()
    seed: int = 0
    recorded: RecordedChannel | None = None
    downlink: DownlinkAir | None = None


class Truth(Protocol):
    """What a simulated radio knows about its own faults."""

    def receive_index(self, transmit_sample: float, user: int | None = None) -> float:
        """Where a transmitted sample arrives on the receiver's clock, in samples."""

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values."""


@dataclass(frozen=True)
class RadioInfo:
    """One line of a listing of radios.

    Attributes:
        kind: the backend's name.
        address: what to give it to open this radio.
        description: for people.
        facts: serial numbers, versions and the like.
    """

    kind: str
    address: str
    description: str
    facts: dict[str, str] = field(default_factory=dict)


class Radio(ABC):
    """A radio: streams of GNU Radio blocks, settings, facts.

    A backend is a module of this folder with one subclass; it is found by its `kind`, without a list to edit.
    `configure` comes first; `source` and `sink` give the same block at every call until it is configured again.

    Attributes:
        kind: the backend's name.
        waits: its samples come when they are taken, so that nothing is lost however late that is.
        tells_when_gone: its source fails once the device is gone; others only give no more samples.
        sends_timed: its sink begins a burst exactly at the radio's time that a tag `tx_time` tells; see `time_now_s`.
        foreign: its driver is foreign code that may hang or abort; `find` is then called in a process of its own.
        capabilities: what this radio can do.
    """

    kind: ClassVar[str]
    waits: bool = False
    sends_timed: ClassVar[bool] = False
    foreign: ClassVar[bool] = False
    tells_when_gone: ClassVar[bool] = False
    capabilities: Capabilities

    @classmethod
    @abstractmethod
    def open(cls, address: str, link: Link) -> Radio:
        """Open one radio for an experiment; `configure` comes next.

        Raises:
            RadioError: there is no such radio, or it cannot serve the link.
        """

    @classmethod
    @abstractmethod
    def find(cls) -> list[RadioInfo]:
        """The radios of this kind that can be opened now."""

    @abstractmethod
    def configure(self, requested: Settings) -> Settings:
        """Set the radio up and read back what it took.

        Raises:
            RadioError: a value is outside what the radio can do.
        """

    @abstractmethod
    def source(self) -> Any:
        """GNU Radio block with n_rx complex outputs; tags rx_time, rx_rate, rx_freq at its start and after losses.

        Raises:
            RadioError: the radio was not configured.
        """

    @abstractmethod
    def sink(self) -> Any:
        """GNU Radio block with n_tx complex inputs, or None where the radio cannot transmit.

        Raises:
            RadioError: the radio was not configured.
        """

    def downlink(self) -> Any:
        """GNU Radio block with an input per antenna of the base station and an output per user that listens.

        Raises:
            RadioError: its users are radios of their own, or it was not configured.
        """
        raise RadioError(f"radio {self.kind} does not emulate users that listen; use the loopback radio")

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Serial numbers, versions, and for simulated radios the truth behind them, for the run folder."""

    def set_tx_gain_db(self, gain_db: float) -> float:
        """Change the transmit gain of all chains, also while samples flow, and read back what the radio took.

        Raises:
            RadioError: it has no gain to set, the gain is outside of what it can do, or it was not configured.
        """
        raise RadioError(f"radio {self.kind} has no transmit gain, but {gain_db:g} dB were asked for")

    def silence(self) -> None:
        """Turn every transmitter down as far as it goes."""
        if self.capabilities.tx_gains_db is not None:
            self.set_tx_gain_db(self.capabilities.tx_gains_db[0])

    def time_now_s(self) -> Fraction:
        """The radio's own time, in seconds, once configured.

        Raises:
            RadioError: it has none that can be asked for.
        """
        raise RadioError(f"radio {self.kind} has no time of its own to ask for")

    def locks(self) -> dict[str, bool]:
        """Which of its clocks and oscillators are locked, by name; empty where it does not tell."""
        return {}

    def close(self) -> None:  # noqa: B027 - nothing to do is right for most
        """Let go of the device, once its flowgraph has ended; nothing can be asked of this radio afterwards."""

    def truth(self) -> Truth | None:
        """What a simulated radio knows about its own faults, once configured; None for real ones."""
        return None

    def counts(self) -> dict[str, Any]:
        """What the radio counted during a run: losses, clipped samples and the like."""
        return {}

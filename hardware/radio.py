"""The one interface of all radios: what a radio can do, what was asked of it, what it really did."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal


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
    """

    kind: ClassVar[str]
    capabilities: Capabilities

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

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Serial numbers, versions, and for simulated radios the truth behind them, for the run folder."""

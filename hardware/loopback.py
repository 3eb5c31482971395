"""The loopback radio: a multi-antenna radio whose air is computed, with the faults of real ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..blocks.channel_emulator import ChannelEmulator
from ..blocks.downlink_emulator import DownlinkEmulator
from ..blocks.waveforms.air import Air
from ..blocks.waveforms.downlink import Downlink
from ..blocks.waveforms.frame import FrameFormat
from ..blocks.waveforms.impairments import Impairments
from ..blocks.waveforms.recorded_channel import RecordedChannel
from ..errors import RadioError
from ..models.channels import ChannelConfig
from .radio import Capabilities, DownlinkAir, Link, Radio, RadioInfo, Settings, Truth

_FREQUENCIES_HZ = (0.0, 1e11)
_TX_GAINS_DB = (-80.0, 0.0)


class LoopbackRadio(Radio):
    """Beacon and users' bursts go in, the antenna signals of the base station come out.

    Everything random follows from one seed: the same seed gives the same samples, bit for bit.

    Args:
        frame_format: numerology; the emulator reads frame tags with it.
        n_rx: receive antennas.
        n_users: users whose bursts may come.
        channel: of the users.
        beacon_channel: of the beacon.
        impairments: of the radios on both sides.
        noise_power: per complex sample at each antenna.
        expected_power: mean received power per sample without noise, for the receiver's level.
        user_power_spread_db: the users' received powers lie uniformly within plus or minus this.
        losses: (sample, count) pairs of samples that vanish, as in an overflow.
        seed: of channel, impairments and noise.
        with_users: wait for one message of users' bursts per frame.
        recorded: measured air, see `Air`; goes with a channel of kind "recorded".
        downlink: air to users that listen; None where they need none.
    """

    kind = "loopback"
    waits = True

    def __init__(
        self,
        frame_format: FrameFormat,
        *,
        n_rx: int,
        n_users: int,
        channel: ChannelConfig,
        beacon_channel: ChannelConfig,
        impairments: Impairments,
        noise_power: float,
        expected_power: float,
        user_power_spread_db: float = 0.0,
        losses: Sequence[tuple[int, int]] = (),
        seed: int = 0,
        with_users: bool = True,
        recorded: RecordedChannel | None = None,
        downlink: DownlinkAir | None = None,
    ) -> None:
        self._frame_format = frame_format
        self._losses = tuple(losses)
        self._with_users = with_users
        self._downlink_air = downlink
        self._block: ChannelEmulator | None = None
        self._downlink: DownlinkEmulator | None = None
        self._settings: Settings | None = None
        self._air_options: dict[str, Any] = {
            "channel": channel,
            "beacon_channel": beacon_channel,
            "impairments": impairments,
            "n_rx": n_rx,
            "n_users": n_users,
            "noise_power": noise_power,
            "expected_power": expected_power,
            "user_power_spread_db": user_power_spread_db,
            "seed": seed,
            "recorded": recorded,
        }
        self.air: Air | None = None
        self.capabilities = Capabilities(
            n_rx=n_rx,
            n_tx=1,
            emulates_users=True,
            sample_rates_hz=(1e3, 1e9),
            has_hw_time=True,
            phase_stable_across_retune=True,
            overflow_reporting="located",
            loopback_modes=("emulated",),
            datatype="cf32_le" if impairments.adc_bits is None else "ci16_le",
            path="loopback",
            tx_gains_db=_TX_GAINS_DB,
        )

    @classmethod
    def open(cls, address: str, link: Link) -> LoopbackRadio:
        """A loopback radio for a link; there is one address only."""
        return cls(
            link.frame_format,
            n_rx=link.n_rx,
            n_users=link.n_users,
            channel=link.channel,
            beacon_channel=link.beacon_channel,
            impairments=link.impairments,
            noise_power=link.noise_power,
            expected_power=link.expected_power,
            user_power_spread_db=link.user_power_spread_db,
            losses=link.losses,
            seed=link.seed,
            recorded=link.recorded,
            downlink=link.downlink,
        )

    @classmethod
    def find(cls) -> list[RadioInfo]:
        """The loopback radio is always there."""
        return [RadioInfo("loopback", "loopback", "emulated air between emulated radios, no hardware")]

    def configure(self, requested: Settings) -> Settings:
        """Take sample rate, frequency and transmit gain; the receive gain follows from the expected level.

        The emulation begins anew, with the same draws.

        Raises:
            RadioError: the rate is not the frame's, or rate, frequency or gain is out of range.
        """
        low, high = self.capabilities.sample_rates_hz
        if not low <= requested.sample_rate_hz <= high:
            raise RadioError(
                f"sample_rate_hz={requested.sample_rate_hz:.10g} is outside what the loopback radio does: "
                f"{low:g} to {high:g}"
            )
        if requested.sample_rate_hz != self._frame_format.sample_rate_hz:
            raise RadioError(
                f"sample_rate_hz={requested.sample_rate_hz:.10g} differs from the frame's "
                f"{self._frame_format.sample_rate_hz:.10g}; set frame.sample_rate_hz in the scenario"
            )
        low, high = _FREQUENCIES_HZ
        if not low <= requested.frequency_hz <= high:
            raise RadioError(
                f"frequency_hz={requested.frequency_hz:g} is outside what the loopback radio does: {low:g} to {high:g}"
            )
        if len(requested.tx_gain_db) > 1:
            raise RadioError(f"tx_gain_db={list(requested.tx_gain_db)}: the loopback radio has one transmit chain")
        for gain_db in requested.tx_gain_db:
            _checked_gain(gain_db)
        self._block = self._downlink = None
        self.air = Air(
            sample_rate_hz=requested.sample_rate_hz,
            centre_frequency_hz=requested.frequency_hz,
            **self._air_options,
        )
        self._settings = Settings(
            requested.sample_rate_hz,
            requested.frequency_hz,
            tx_gain_db=requested.tx_gain_db,
            clock_source="internal",
            time_source="internal",
        )
        return self._settings

    def source(self) -> ChannelEmulator:
        """The emulator; its outputs are the antennas."""
        if self._block is None:
            if self.air is None or self._settings is None:
                raise RadioError("the loopback radio was not configured: call configure() before source() or sink()")
            self._block = ChannelEmulator(
                self.air, self._frame_format, self._settings.frequency_hz, self._losses, self._with_users
            )
            for gain_db in self._settings.tx_gain_db:
                self.set_tx_gain_db(gain_db)
        return self._block

    def sink(self) -> ChannelEmulator:
        """The emulator; input 0 takes the beacon, the message port `bursts` the users."""
        return self.source()

    def downlink(self) -> DownlinkEmulator:
        """The emulator of the air to users that listen."""
        wanted, settings = self._downlink_air, self._settings
        if wanted is None:
            return super().downlink()
        if settings is None:
            raise RadioError("the loopback radio was not configured: call configure() before downlink()")
        if self._downlink is None:
            air = Downlink(
                self._air_options["impairments"],
                wanted.paths,
                sample_rate_hz=settings.sample_rate_hz,
                centre_frequency_hz=settings.frequency_hz,
                n_tx=wanted.n_tx,
                n_users=self._air_options["n_users"],
                noise_power=wanted.noise_power,
                frame_samples=self._frame_format.frame_samples,
                active_samples=wanted.active_samples,
                seed=self._air_options["seed"],
                expected_power=wanted.expected_power,
            )
            self._downlink = DownlinkEmulator(air, settings.frequency_hz)
        return self._downlink

    def set_tx_gain_db(self, gain_db: float) -> float:
        """Scale what goes in; 0 dB, the highest gain and the one without being asked, leaves it as it is."""
        self.sink().tx_amplitude = 10 ** (_checked_gain(gain_db) / 20)
        return gain_db

    def facts(self) -> dict[str, Any]:
        """That nothing here is hardware."""
        return {"serials": ["loopback"], "driver": "semair loopback", "agc": False}

    def truth(self) -> Truth | None:
        """Offsets, delays and gains that were drawn."""
        return None if self.air is None else self.air.truth

    def counts(self) -> dict[str, Any]:
        """Losses injected, bursts that came too late, samples clipped per antenna."""
        if self.air is None or self._block is None:
            return {}
        heard = (
            {}
            if self._downlink is None
            else {"clipped_samples_users": self._downlink.downlink.clipped_samples.tolist()}
        )
        return {
            **heard,
            "lost_samples_injected": self._block.lost_samples,
            "late_bursts": self.air.late_bursts,
            "clipped_samples": self.air.clipped_samples.tolist(),
        }


def _checked_gain(gain_db: float) -> float:
    low, high = _TX_GAINS_DB
    if not low <= gain_db <= high:
        raise RadioError(f"tx_gain_db={gain_db:g} is outside what the loopback radio does: {low:g} to {high:g}")
    return gain_db

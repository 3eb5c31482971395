"""The radio that a scenario asks for, and what is asked of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

from ..blocks.waveforms.downlink import DownlinkPaths
from ..blocks.waveforms.recorded_channel import RecordedChannel
from ..hardware.discover import backend
from ..hardware.radio import DownlinkAir, Link, Radio, Settings
from .channel_replay import recorded_channel
from .random_access import tail_samples
from .scenario import Scenario

if TYPE_CHECKING:
    from ..models.csi.frames import FrameDrop, FrameDrops


def make_link(scenario: Scenario) -> Link:
    """What a scenario wants of its radio."""
    return Link(
        scenario.frame,
        n_rx=scenario.radio.n_antennas,
        n_users=scenario.n_users,
        tail_samples=tail_samples(scenario),
        channel=scenario.channel,
        beacon_channel=scenario.beacon_channel,
        impairments=scenario.impairments,
        noise_power=scenario.noise_power,
        expected_power=scenario.expected_power,
        user_power_spread_db=scenario.users.power_spread_db,
        losses=scenario.radio.losses,
        seed=scenario.seed,
        downlink=None if scenario.csi is None else _downlink(scenario),
    )


def csi_drops(scenario: Scenario) -> FrameDrops:
    """The drop of each frame of a scenario of CSI feedback or of the picture downlink."""
    # What draws them loads torch, which other links do without.
    from ..models.csi.channels import ChannelConfig, Clustered, Source
    from ..models.csi.frames import FrameDrops
    from ..models.csi.raytraced import RayTraced, read_paths

    wanted, frame = scenario.csi, scenario.csi_frame
    assert wanted is not None
    config = ChannelConfig(
        n_antennas=frame.n_antennas,
        n_subcarriers=wanted.n_subcarriers,
        n_taps=wanted.n_taps,
        lead_taps=wanted.lead_taps,
        frequency_hz=scenario.radio.frequency_hz,
        bandwidth_hz=(frame.bandwidth_hz, frame.bandwidth_hz),
        sites=wanted.sites,
        line_of_sight=wanted.line_of_sight,
    )
    source = cast(Source, Clustered(config))
    if wanted.traced is not None:
        source = cast(Source, RayTraced(read_paths(wanted.traced), "test", wanted.scenes, config))
    return FrameDrops(source, scenario.seed, wanted.n_users, wanted.spacing_m)


def _downlink(scenario: Scenario) -> DownlinkAir:
    wanted = scenario.csi
    assert wanted is not None
    drops = csi_drops(scenario)

    def paths(number: int) -> DownlinkPaths:
        return downlink_paths(scenario, drops(number))

    if scenario.pictures is not None:
        pictures = scenario.picture_frame
        # Precoding adds the antennas' amplitudes up at a user.
        most = pictures.n_subcarriers / pictures.frame_format.n_fft * pictures.n_antennas
        return DownlinkAir(
            paths,
            pictures.n_antennas,
            pictures.downlink_samples,
            noise_power=scenario.picture_noise_power,
            expected_power=max(scenario.picture_beacon_amplitude**2, most),
        )
    frame = scenario.csi_frame
    return DownlinkAir(
        paths,
        frame.n_antennas,
        frame.downlink_samples,
        noise_power=10 ** (-wanted.sounding_snr_db / 10),
        expected_power=1.0,
    )


def downlink_paths(scenario: Scenario, drop: FrameDrop) -> DownlinkPaths:
    """A drop as the air of its frame: the first paths arrive without delay."""
    wanted = scenario.csi
    assert wanted is not None
    tap_samples = scenario.frame.n_fft / wanted.n_subcarriers
    return DownlinkPaths((drop.delays_taps - wanted.lead_taps) * tap_samples, drop.gains)


def make_radio(scenario: Scenario, recorded: RecordedChannel | None = None) -> Radio:
    """The radio that a scenario asks for, not yet configured; a recorded channel is read, unless it is given."""
    if scenario.channel.kind == "recorded" and recorded is None:
        recorded, _ = recorded_channel(scenario)
    link = replace(make_link(scenario), recorded=recorded)
    return backend(scenario.radio.kind).open(scenario.radio.address, link)


def requested_settings(scenario: Scenario, radio: Radio | None = None) -> Settings:
    """What a scenario asks of a radio; gains only where it is known how many chains there are."""
    wanted = scenario.radio
    n_rx, n_tx = (0, 0) if radio is None else (radio.capabilities.n_rx, radio.capabilities.n_tx)
    return Settings(
        scenario.frame.sample_rate_hz,
        wanted.frequency_hz,
        rx_gain_db=() if wanted.rx_gain_db is None else (wanted.rx_gain_db,) * n_rx,
        tx_gain_db=() if wanted.tx_gain_db is None else (wanted.tx_gain_db,) * n_tx,
        clock_source=wanted.clock_source,
        time_source=wanted.time_source,
    )

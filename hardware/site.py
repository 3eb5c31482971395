"""What a site permits to transmit: bands, power, and what lies behind each radio. Rules only, no radio.

A site file is TOML, written by whoever answers for the station:

    name = "hall 3"
    max_duration_s = 20

    [[bands]]
    name = "ISM 2.4 GHz"
    low_hz = 2.4e9
    high_hz = 2.4835e9
    max_eirp_dbm = 10
    basis = "general authorisation, decision 06-12"

    [[radios]]
    kind = "uhd"
    address = "serial=31415926"
    path = "air"
    max_gain_db = 60
    full_scale_dbm = 12
    full_scale_gain_db = 60
    antenna_gain_dbi = 3
"""

from __future__ import annotations

import math
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import ScenarioError, explain_validation

SITE_FILE = "semair-site.toml"
LONGEST_S = 600.0
"""Longest transmission that any site can permit."""
LOUDEST_DBFS = -12.0
"""Largest mean power of a waveform: the peaks of OFDM lie about 12 dB above it."""


@dataclass(frozen=True)
class Protected:
    """Band in which nothing here transmits, whatever a site file says.

    Attributes:
        name: its use.
        low_hz: lower edge.
        high_hz: upper edge.
    """

    name: str
    low_hz: float
    high_hz: float


PROTECTED = tuple(
    Protected(name, low * 1e6, high * 1e6)
    for name, low, high in (
        ("aeronautical marker beacons", 74.8, 75.2),
        ("aeronautical navigation: VOR, ILS", 108.0, 117.975),
        ("aeronautical voice", 117.975, 137.0),
        ("military aeronautical voice", 225.0, 399.9),
        ("distress beacons", 406.0, 406.1),
        ("aeronautical navigation: DME, transponders, ADS-B", 960.0, 1164.0),
        ("GNSS: L5, E5, L3", 1164.0, 1215.0),
        ("GNSS: L2, E6", 1215.0, 1300.0),
        ("aeronautical surveillance radar", 1300.0, 1350.0),
        ("GNSS: L1, E1, G1", 1559.0, 1610.0),
        ("satellite navigation, S band", 2483.5, 2500.0),
        ("aeronautical surveillance radar", 2700.0, 2900.0),
        ("radio altimeters", 4200.0, 4400.0),
        ("aeronautical navigation: MLS, AeroMACS", 5000.0, 5150.0),
        ("airborne weather radar", 5350.0, 5470.0),
        ("airborne Doppler radar", 8750.0, 8850.0),
        ("precision approach radar", 9000.0, 9200.0),
        ("airborne Doppler radar", 13250.0, 13400.0),
        ("aeronautical navigation: landing radar", 15400.0, 15700.0),
    )
)
"""GNSS, aviation and distress: allocations of the ITU Radio Regulations, article 5."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Band(_Section):
    """One permission to transmit."""

    name: str = Field(min_length=1, description="for people")
    low_hz: float = Field(gt=0, lt=1e12, description="lower edge")
    high_hz: float = Field(gt=0, lt=1e12, description="upper edge")
    max_eirp_dbm: float = Field(ge=-100, le=60, description="mean power, as from an isotropic antenna")
    basis: str = Field(min_length=1, description="licence or general authorisation that permits it")

    @model_validator(mode="after")
    def _edges(self) -> Band:
        if self.low_hz >= self.high_hz:
            raise ValueError(f"low_hz={self.low_hz:.10g} must lie below high_hz={self.high_hz:.10g}")
        return self


class SiteRadio(_Section):
    """What lies behind one radio."""

    kind: str = Field(min_length=1, description="backend, see `semair radios`")
    address: str = Field(description="which radio of this kind, see `semair radios`")
    path: Literal["air", "cable"] = Field(description="an antenna, or cables and attenuators only")
    max_gain_db: float = Field(description="largest transmit gain")
    max_power_dbm: float | None = Field(None, description="largest mean power at its port; none: no limit of its own")
    full_scale_dbm: float | None = Field(None, description="power at its port of a tone at full scale, as measured")
    full_scale_gain_db: float | None = Field(None, description="transmit gain at which that was measured")
    antenna_gain_dbi: float = Field(0.0, ge=-30, le=60, description="of the antenna")
    loss_db: float = Field(0.0, ge=0, le=200, description="of the cable between port and antenna")

    @model_validator(mode="after")
    def _power_known(self) -> SiteRadio:
        measured = (self.full_scale_dbm, self.full_scale_gain_db)
        if None in measured and (self.path == "air" or self.max_power_dbm is not None or measured != (None, None)):
            raise ValueError(
                f"full_scale_dbm={self.full_scale_dbm} and full_scale_gain_db={self.full_scale_gain_db} must both be "
                "given where power has a limit, as it has on the air: measure a tone at full scale"
            )
        return self

    def power_dbm(self, gain_db: float, level_dbfs: float) -> float | None:
        """Mean power at the port, taking a decibel of gain for a decibel of power; None where nothing was measured."""
        if self.full_scale_dbm is None or self.full_scale_gain_db is None:
            return None
        return self.full_scale_dbm + gain_db - self.full_scale_gain_db + level_dbfs


class Site(_Section):
    """Everything that a site permits."""

    name: str = Field(min_length=1, description="for people and the log")
    max_duration_s: float = Field(60.0, gt=0, le=LONGEST_S, description="longest transmission")
    log: Path | None = Field(None, description="file that takes a line per transmission")
    bands: tuple[Band, ...] = Field((), description="permissions")
    radios: tuple[SiteRadio, ...] = Field((), description="radios that may transmit")

    @model_validator(mode="after")
    def _each_once(self) -> Site:
        keys = [(radio.kind, radio.address) for radio in self.radios]
        for kind, address in keys:
            if keys.count((kind, address)) > 1:
                raise ValueError(f"radios: {kind} {address!r} is there twice; describe it once")
        return self

    def radio(self, kind: str, address: str) -> SiteRadio | None:
        """The entry of one radio, or None."""
        return next((radio for radio in self.radios if (radio.kind, radio.address) == (kind, address)), None)


@dataclass(frozen=True)
class Emission:
    """What is to be sent.

    Attributes:
        frequency_hz: centre frequency.
        bandwidth_hz: everything that may hold power: the sample rate.
        gain_db: transmit gain; None where the radio has none to set.
        level_dbfs: mean power of the waveform's loudest part; a tone at full scale is 0.
        peak: largest magnitude of a sample; full scale is 1.
        duration_s: how long.
    """

    frequency_hz: float
    bandwidth_hz: float
    gain_db: float | None
    level_dbfs: float
    peak: float
    duration_s: float

    @property
    def low_hz(self) -> float:
        """Lower edge."""
        return self.frequency_hz - self.bandwidth_hz / 2

    @property
    def high_hz(self) -> float:
        """Upper edge."""
        return self.frequency_hz + self.bandwidth_hz / 2


@dataclass(frozen=True)
class Judgement:
    """What the rules say of an emission.

    Attributes:
        refusals: every reason against it, each with what was given and what is allowed; empty: it is permitted.
        path: what lies behind the radio.
        band: permission under which it falls; None off the air.
        power_dbm: mean power at the port; None where unknown.
        eirp_dbm: mean power as from an isotropic antenna; None off the air.
    """

    refusals: tuple[str, ...]
    path: str
    band: Band | None = None
    power_dbm: float | None = None
    eirp_dbm: float | None = None


def protected(low_hz: float, high_hz: float) -> list[Protected]:
    """Protected bands that a stretch of spectrum reaches into; common edges do not count."""
    return [band for band in PROTECTED if low_hz < band.high_hz and high_hz > band.low_hz]


def permitting(site: Site, low_hz: float, high_hz: float) -> Band | None:
    """The permission that holds a stretch of spectrum as a whole; of several, the one that permits most."""
    holding = [band for band in site.bands if band.low_hz <= low_hz and high_hz <= band.high_hz]
    return max(holding, key=lambda band: band.max_eirp_dbm, default=None)


def judge(emission: Emission, site: Site | None, kind: str, address: str, path: str) -> Judgement:
    """Hold an emission against all rules.

    Args:
        emission: what is to be sent.
        site: what is permitted; None: no site file.
        kind: backend of the radio.
        address: which radio of this kind.
        path: what the radio itself knows to lie behind it; "loopback" and "sim" end in the machine and need no site.

    Returns:
        All refusals, not the first alone.
    """
    refusals = _waveform_refusals(emission)
    if path in ("loopback", "sim"):
        return Judgement((*refusals, *_duration_refusals(emission, LONGEST_S, "any site")), path)
    if site is None:
        refusals.append(
            f"there is no site file, and radio {kind} {address!r} transmits for real; write {SITE_FILE} (see "
            "hardware/README.md) or name one"
        )
        return Judgement(tuple(refusals), path)
    refusals += _duration_refusals(emission, site.max_duration_s, f"site {site.name!r}")
    refusals += [
        f"{emission.low_hz:.10g} to {emission.high_hz:.10g} Hz reaches into a protected band, {band.low_hz:.10g} to "
        f"{band.high_hz:.10g} Hz ({band.name}); no site file permits that, choose another frequency"
        for band in protected(emission.low_hz, emission.high_hz)
    ]
    entry = site.radio(kind, address)
    if entry is None:
        known = ", ".join(f"{radio.kind} {radio.address!r}" for radio in site.radios) or "none"
        refusals.append(
            f"radio {kind} {address!r} is not in site {site.name!r}, which knows: {known}; describe it there"
        )
        return Judgement(tuple(refusals), path)
    if emission.gain_db is None or not emission.gain_db <= entry.max_gain_db:
        refusals.append(
            f"gain_db={emission.gain_db}: site {site.name!r} permits at most {entry.max_gain_db:g} dB there"
        )
    power_dbm = None if emission.gain_db is None else entry.power_dbm(emission.gain_db, emission.level_dbfs)
    if entry.max_power_dbm is not None and not (power_dbm is not None and power_dbm <= entry.max_power_dbm):
        refusals.append(
            f"{_dbm(power_dbm)} at the port: site {site.name!r} permits at most {entry.max_power_dbm:g} dBm there; "
            "lower gain or level"
        )
    if entry.path == "cable":
        return Judgement(tuple(refusals), "cable", None, power_dbm)
    eirp_dbm = None if power_dbm is None else power_dbm + entry.antenna_gain_dbi - entry.loss_db
    band = permitting(site, emission.low_hz, emission.high_hz)
    if band is None:
        known = ", ".join(f"{b.name} {b.low_hz:.10g} to {b.high_hz:.10g} Hz" for b in site.bands) or "none"
        refusals.append(
            f"{emission.low_hz:.10g} to {emission.high_hz:.10g} Hz lies in no permitted band as a whole; site "
            f"{site.name!r} permits: {known}"
        )
    elif not (eirp_dbm is not None and eirp_dbm <= band.max_eirp_dbm):
        refusals.append(
            f"{_dbm(eirp_dbm)} EIRP: {band.name} permits at most {band.max_eirp_dbm:g} dBm; lower gain or level"
        )
    return Judgement(tuple(refusals), "air", band, power_dbm, eirp_dbm)


def _waveform_refusals(emission: Emission) -> list[str]:
    refusals = []
    numbers = (emission.frequency_hz, emission.bandwidth_hz, emission.duration_s)
    if not all(math.isfinite(number) and number > 0 for number in numbers) or emission.low_hz <= 0:
        refusals.append(
            f"frequency_hz={emission.frequency_hz:.10g}, bandwidth_hz={emission.bandwidth_hz:.10g}, "
            f"duration_s={emission.duration_s:g}: all must be positive, and the band must lie above 0 Hz"
        )
    if not emission.peak <= 1.0:
        refusals.append(f"samples reach {emission.peak:.4g}: more than full scale, 1, would be cut; lower the level")
    if not emission.level_dbfs <= LOUDEST_DBFS:
        refusals.append(
            f"mean power is {emission.level_dbfs:.1f} dBFS: at most {LOUDEST_DBFS:g} is allowed, so that peaks of OFDM "
            "find room; lower the level"
        )
    return refusals


def _duration_refusals(emission: Emission, longest_s: float, whose: str) -> list[str]:
    if emission.duration_s <= longest_s:
        return []
    return [f"duration_s={emission.duration_s:g}: {whose} permits at most {longest_s:g} s"]


def _dbm(power: float | None) -> str:
    return "unknown power" if power is None else f"{power:.1f} dBm"


def find_site_file() -> Path | None:
    """The site file of the working folder, else of this account; None where there is none."""
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    places = (Path(SITE_FILE), config / "semair" / "site.toml")
    return next((place for place in places if place.is_file()), None)


def load_site(path: Path) -> Site:
    """Read a site file.

    Raises:
        ScenarioError: it is missing or no TOML, or a field is wrong; names file and field, what was given, and what
            is allowed.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ScenarioError(f"site file {path} cannot be read ({error.strerror}); check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: not a TOML file: {error}") from error
    try:
        return Site.model_validate(data)
    except ValidationError as error:
        raise ScenarioError(f"{path}: {explain_validation(error)}") from error

"""Calibrations: what was measured of a radio's chains, where it holds, and when it no longer does."""

from __future__ import annotations

import cmath
import hashlib
import json
import math
import uuid
import weakref
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..blocks.waveforms.calibration import ChainError, image_of_imbalance, imbalance_of_image
from ..errors import RadioError, ScenarioError, StorageError, explain_validation
from .radio import Radio, Settings

FORMAT = 1
Part = Literal["delay", "phase", "gain", "iq", "dc"]
PARTS: tuple[Part, ...] = ("delay", "phase", "gain", "iq", "dc")
"""What can be corrected, and left out."""

_AGAIN = "measure a new one at these settings with `semair calibrate`"
# Tune of each radio by its source block, which is another one after each time it was configured.
_TUNES: weakref.WeakKeyDictionary[Radio, tuple[weakref.ref[Any], str]] = weakref.WeakKeyDictionary()


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Chain(_Section):
    """Errors of one receive chain; delay, phase and gain against the reference chain."""

    delay_samples: float = Field(ge=-4096, le=4096, description="later is positive")
    phase_deg: float = Field(ge=-180, le=180, description="ahead is positive")
    gain_db: float = Field(ge=-60, le=60)
    iq_gain_db: float = Field(ge=-6, le=6, description="gain of Q over I")
    iq_phase_deg: float = Field(ge=-45, le=45, description="quadrature error")
    dc_i: float = Field(ge=-1, le=1, description="of full scale")
    dc_q: float = Field(ge=-1, le=1, description="of full scale")
    snr_db: float = Field(description="of the measurement, per sample")

    @classmethod
    def of(cls, error: ChainError, snr_db: float) -> Chain:
        """What the estimates of a chain are in the terms of people."""
        iq_gain_db, iq_phase_deg = imbalance_of_image(error.image)
        return cls(
            delay_samples=error.delay_samples,
            phase_deg=math.degrees(cmath.phase(error.gain)),
            gain_db=20 * math.log10(abs(error.gain)),
            iq_gain_db=iq_gain_db,
            iq_phase_deg=iq_phase_deg,
            dc_i=error.dc.real,
            dc_q=error.dc.imag,
            snr_db=snr_db,
        )

    @property
    def image_dbc(self) -> float:
        """Power of the image under the signal's."""
        return 20 * math.log10(max(abs(image_of_imbalance(self.iq_gain_db, self.iq_phase_deg)), 1e-10))

    @property
    def dc_dbfs(self) -> float:
        """Power of the DC offset under full scale."""
        return 20 * math.log10(max(abs(complex(self.dc_i, self.dc_q)), 1e-10))

    def error(self, parts: Sequence[str] = PARTS) -> ChainError:
        """What is to be corrected, of the parts given."""
        gain = 10 ** (self.gain_db / 20) if "gain" in parts else 1.0
        phase = math.radians(self.phase_deg) if "phase" in parts else 0.0
        return ChainError(
            delay_samples=self.delay_samples if "delay" in parts else 0.0,
            gain=cmath.rect(gain, phase),
            image=image_of_imbalance(self.iq_gain_db, self.iq_phase_deg) if "iq" in parts else 0.0,
            dc=complex(self.dc_i, self.dc_q) if "dc" in parts else 0.0,
        )


class Residual(_Section):
    """What is left of a chain's errors, measured on a second sounding after correction with the first."""

    delay_samples: float
    phase_deg: float
    gain_db: float
    image_dbc: float = Field(description="power of the image under the signal's")
    dc_dbfs: float

    @classmethod
    def of(cls, error: ChainError) -> Residual:
        """What the estimates of a corrected chain are in the terms of people."""
        return cls(
            delay_samples=error.delay_samples,
            phase_deg=math.degrees(cmath.phase(error.gain)),
            gain_db=20 * math.log10(abs(error.gain)),
            image_dbc=20 * math.log10(max(abs(error.image), 1e-10)),
            dc_dbfs=20 * math.log10(max(abs(error.dc), 1e-10)),
        )


class Span(_Section):
    """A closed interval."""

    low: float
    high: float

    @model_validator(mode="after")
    def _order(self) -> Span:
        if self.low > self.high:
            raise ValueError(f"low={self.low:g} must not exceed high={self.high:g}")
        return self


class Validity(_Section):
    """Where a calibration holds."""

    frequency_hz: Span
    sample_rate_hz: Span
    rx_gain_db: tuple[Span, ...] = Field((), description="per receive chain; none: the radio has no gain to set")
    bandwidth_hz: Span | None = Field(None, description="none: the radio has none to set")
    clock_source: str
    temperature_c: Span | None = Field(None, description="none: not known when it was measured")
    until: AwareDatetime = Field(description="not used later than this")
    tune: str | None = Field(description="the one tuning at which phases hold; none: they survive retuning and restart")


class Transmitter(_Section):
    """What the transmitter adds, as far as it can be told from the receiver."""

    iq_gain_db: float
    iq_phase_deg: float
    dc_dbc: float = Field(description="leaking oscillator under the signal")


class Turnaround(_Section):
    """From a sample's time at the transmitter to its time at the receiver, by the radio's own count."""

    samples: float
    seconds: float
    timed: bool = Field(description="by the radio's clock; otherwise by the count of samples since both streams began")


class Reciprocity(_Section):
    """Factors from what an antenna hears to what it sends, against antenna 0."""

    gain_db: tuple[float, ...]
    phase_deg: tuple[float, ...]
    delay_samples: tuple[float, ...]

    def factors(self, frequencies: Sequence[float] = (0.0,)) -> list[list[complex]]:
        """Factor of every antenna at frequencies in cycles per sample, (frequency, antenna)."""
        each = list(zip(self.gain_db, self.phase_deg, self.delay_samples, strict=True))
        return [
            [cmath.rect(10 ** (g / 20), math.radians(p) - 2 * math.pi * f * d) for g, p, d in each] for f in frequencies
        ]


class Source(_Section):
    """The radio that was measured."""

    kind: str
    address: str
    serials: tuple[str, ...]
    driver: str
    path: Literal["air", "cable", "loopback", "sim"]


class Calibration(_Section):
    """A calibration file."""

    format: Literal[1] = 1
    created: AwareDatetime
    method: Literal["splitter", "antennas"] = Field(
        description="splitter: one transmit chain into all receive chains; antennas: each into each"
    )
    reference: int = Field(ge=0, description="chain against which delay, phase and gain are given")
    radio: Source
    settings: dict[str, Any] = Field(description="as the radio took them")
    software: dict[str, str]
    recording: str | None = Field(None, description="of the measurement")
    recording_sha256: str | None = Field(None, description="of its metadata, which vouch for its samples")
    cfo_hz: float = Field(description="of the transmitter against the receiver")
    chains: tuple[Chain, ...] = Field(min_length=1)
    residual: tuple[Residual, ...]
    mismatch_db: float = Field(
        description="power by which the worst chain still differs from the reference, noise included, over its power"
    )
    transmitter: Transmitter | None = Field(None, description="none: cannot be told from the receiver's errors")
    turnaround: Turnaround | None = Field(None, description="none: not known")
    reciprocity: Reciprocity | None = None
    valid: Validity

    @model_validator(mode="after")
    def _consistent(self) -> Calibration:
        if len(self.residual) != len(self.chains):
            raise ValueError(f"residual has {len(self.residual)} entries, chains has {len(self.chains)}")
        if self.reference >= len(self.chains):
            raise ValueError(f"reference={self.reference}, but there are {len(self.chains)} chains")
        if self.valid.rx_gain_db and len(self.valid.rx_gain_db) != len(self.chains):
            raise ValueError(f"valid.rx_gain_db has {len(self.valid.rx_gain_db)} entries, not {len(self.chains)}")
        return self

    def errors(self, parts: Sequence[str] = PARTS) -> list[ChainError]:
        """What is to be corrected of every chain."""
        return [chain.error(parts) for chain in self.chains]

    def worst(self) -> dict[str, float]:
        """Largest residual over the chains, of each kind."""
        return {
            "delay_samples": max(abs(one.delay_samples) for one in self.residual),
            "phase_deg": max(abs(one.phase_deg) for one in self.residual),
            "gain_db": max(abs(one.gain_db) for one in self.residual),
            "image_dbc": max(one.image_dbc for one in self.residual),
            "dc_dbfs": max(one.dc_dbfs for one in self.residual),
        }

    def summary(self) -> dict[str, Any]:
        """What reports tell of it."""
        return {
            "created": self.created.isoformat(timespec="seconds"),
            "method": self.method,
            "until": self.valid.until.isoformat(timespec="seconds"),
            "serials": list(self.radio.serials),
            "mismatch_db": self.mismatch_db,
            "worst_residual": self.worst(),
            "residual": [one.model_dump() for one in self.residual],
        }

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            StorageError: it cannot be written.
        """
        partial = path.with_name(f".{path.name}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}") from error


def load_calibration(path: Path) -> Calibration:
    """Read a calibration file.

    Raises:
        ScenarioError: it is missing or none, or a field is wrong; names file and field, what was given, and what is
            allowed.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ScenarioError(
            f"calibration {path} cannot be read ({error.strerror}); check the path, or {_AGAIN}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ScenarioError(f"{path}: not a calibration file: {error}") from error
    if isinstance(data, dict) and data.get("format", FORMAT) != FORMAT:
        raise ScenarioError(f"{path}: format is {data['format']!r}, known is {FORMAT}; {_AGAIN}")
    try:
        return Calibration.model_validate(data)
    except ValidationError as error:
        raise ScenarioError(f"{path}: {explain_validation(error)}") from error


def source_of(radio: Radio, address: str) -> Source:
    """Which radio this is. An emulated one is another one when other errors were drawn for its chains."""
    facts = radio.facts()
    serials = [str(serial) for serial in facts.get("serials", [])]
    truth = radio.truth()
    if truth is not None:
        drawn = {key: value for key, value in truth.as_dict().items() if key.startswith("chain_")}
        serials.append(hashlib.sha256(json.dumps(drawn, sort_keys=True).encode()).hexdigest()[:12])
    return Source(
        kind=radio.kind,
        address=address,
        serials=tuple(serials),
        driver=str(facts.get("driver", radio.kind)),
        path=radio.capabilities.path,
    )


def tune_of(radio: Radio) -> str:
    """Names the present tuning of a configured radio: another one after each `configure`, and in each process."""
    block = radio.source()
    known = _TUNES.get(radio)
    if known is None or known[0]() is not block:
        known = (weakref.ref(block), uuid.uuid4().hex)
        _TUNES[radio] = known
    return known[1]


def validity(radio: Radio, actual: Settings, valid_s: float, created: datetime) -> Validity:
    """Where what is measured now will hold: at these settings, and for phases at this tuning.

    Args:
        radio: configured.
        actual: settings it took.
        valid_s: how long.
        created: from when on.
    """
    temperature = radio.facts().get("temperature_c")
    return Validity(
        # A synthesizer's step is well below a kilohertz, what a filter changes over one is nothing.
        frequency_hz=_around(actual.frequency_hz, 1e3),
        sample_rate_hz=_around(actual.sample_rate_hz, 1e-6 * actual.sample_rate_hz),
        rx_gain_db=tuple(_around(gain, 0.05) for gain in actual.rx_gain_db),
        bandwidth_hz=None if actual.bandwidth_hz is None else _around(actual.bandwidth_hz, 1.0),
        clock_source=actual.clock_source,
        temperature_c=None if temperature is None else _around(float(temperature), 5.0),
        until=created + timedelta(seconds=valid_s),
        tune=None if radio.capabilities.phase_stable_across_retune else tune_of(radio),
    )


def _around(value: float, reach: float) -> Span:
    return Span(low=value - reach, high=value + reach)


def require_settings(calibration: Calibration, actual: Settings, n_rx: int, name: str) -> None:
    """Refuse a calibration for other settings.

    Args:
        calibration: to be used.
        actual: settings of radio or recording; without gains, gains are not compared.
        n_rx: receive chains.
        name: of the file, for errors.

    Raises:
        RadioError: names field, both values, and what to do.
    """
    valid = calibration.valid
    if len(calibration.chains) != n_rx:
        raise RadioError(f"{name}: chains: it holds {len(calibration.chains)}, there are {n_rx}; {_AGAIN}")
    compared: list[tuple[str, float, Span | None]] = [
        ("frequency_hz", actual.frequency_hz, valid.frequency_hz),
        ("sample_rate_hz", actual.sample_rate_hz, valid.sample_rate_hz),
    ]
    if len(actual.rx_gain_db) == len(valid.rx_gain_db):
        gains = zip(actual.rx_gain_db, valid.rx_gain_db, strict=True)
        compared += [(f"rx_gain_db[{k}]", gain, span) for k, (gain, span) in enumerate(gains)]
    elif actual.rx_gain_db:
        raise RadioError(
            f"{name}: valid.rx_gain_db holds {len(valid.rx_gain_db)} gains, the radio has {len(actual.rx_gain_db)}; "
            f"{_AGAIN}"
        )
    if actual.bandwidth_hz is not None:
        compared.append(("bandwidth_hz", actual.bandwidth_hz, valid.bandwidth_hz))
    for field, value, span in compared:
        _require_within(name, field, value, span)


def require_valid(
    calibration: Calibration,
    radio: Radio,
    address: str,
    actual: Settings,
    parts: Sequence[str] = PARTS,
    *,
    name: str = "calibration",
    now: datetime | None = None,
) -> None:
    """Refuse a calibration that does not hold for a configured radio as it is now.

    Args:
        calibration: to be used.
        radio: configured, to be corrected.
        address: of the radio.
        actual: settings it took.
        parts: that will be corrected; phases hold for one tuning of most radios, all others longer.
        name: of the file, for errors.
        now: the present unless given.

    Raises:
        RadioError: names field, both values, and what to do.
    """
    require_settings(calibration, actual, radio.capabilities.n_rx, name)
    valid, now = calibration.valid, now or datetime.now(UTC)
    here = source_of(radio, address)
    for field in ("kind", "serials"):
        then, present = getattr(calibration.radio, field), getattr(here, field)
        if then != present:
            raise RadioError(f"{name}: radio.{field} is {_text(then)}, this radio's is {_text(present)}; {_AGAIN}")
    if valid.clock_source != actual.clock_source:
        raise RadioError(
            f"{name}: valid.clock_source is {valid.clock_source!r}, the radio's is {actual.clock_source!r}; {_AGAIN}"
        )
    temperature = radio.facts().get("temperature_c")
    if temperature is not None:
        _require_within(name, "temperature_c", float(temperature), valid.temperature_c)
    if now > valid.until:
        raise RadioError(
            f"{name}: valid.until is {valid.until.isoformat(timespec='seconds')}, now it is "
            f"{now.isoformat(timespec='seconds')}; {_AGAIN}"
        )
    if now < calibration.created - timedelta(minutes=5):
        raise RadioError(
            f"{name}: created is {calibration.created.isoformat(timespec='seconds')}, but now it is "
            f"{now.isoformat(timespec='seconds')}; set the clock of this machine right, or {_AGAIN}"
        )
    if "phase" in parts and valid.tune is not None and valid.tune != (present_tune := tune_of(radio)):
        others = [part for part in parts if part != "phase"]
        raise RadioError(
            f"{name}: valid.tune is {valid.tune[:8]}, this is {present_tune[:8]}: the radio was tuned or started anew, "
            f"and its phases with it; calibrate in the same session, or leave phases as they are: "
            f"--set radio.calibration_parts={json.dumps(others)}"
        )


def _require_within(name: str, field: str, value: float, span: Span | None) -> None:
    if span is None:
        raise RadioError(f"{name}: valid.{field} is not known, the radio has {value:.10g}; {_AGAIN}")
    if not span.low <= value <= span.high:
        raise RadioError(
            f"{name}: valid.{field} is {span.low:.12g} to {span.high:.12g}, the radio has {value:.12g}; {_AGAIN}"
        )


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)

"""Scenarios: everything an experiment depends on, in one validated file.

A scenario is a TOML file. Shipped ones are named by their stem (`lab`, `paper`); own ones by path. Any field
can be overridden on the command line as `section.field=value`.
"""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from ..blocks.waveforms.csi_frame import CsiFrame, CsiSlots
from ..blocks.waveforms.frame import FrameFormat
from ..blocks.waveforms.impairments import Impairments
from ..blocks.waveforms.picture_frame import PictureFrame, PictureSlots
from ..errors import ScenarioError
from ..hardware.calibration import PARTS, Part
from ..models.channels import ChannelConfig, checked_array_shape
from ..models.uad.preambles import qpsk_preambles

SHIPPED = Path(__file__).parent / "scenarios"
_SETTLE_S = 1.5


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Users(_Section):
    """Who may send, how often, and what."""

    n_users: int = Field(128, ge=1, le=4096, description="users with a preamble of their own")
    activity: float = Field(0.1, ge=0, le=1, description="probability that a user is active in a frame")
    preamble_lengths: tuple[int, ...] = Field(
        (8, 10, 12, 14, 16),
        min_length=1,
        description="preamble symbols sent, frame after frame in turn",
    )
    preamble_seed: int = Field(1, ge=0, description="seed of the 4QAM preamble pool")
    power_spread_db: float = Field(
        0.0, ge=0, le=30, description="received powers of users lie uniformly within plus or minus this"
    )
    quiet_frames: int | None = Field(
        None,
        ge=0,
        description="frames at the beginning in which nobody sends; default 0, with terminals 1.5 s to find the beacon",
    )


class Link(_Section):
    """Received signal-to-noise ratios, on average over fading."""

    access_snr_db: float = Field(10.0, ge=-30, le=60, description="total over all active users, per access cell")
    beacon_snr_db: float = Field(10.0, ge=-30, le=60, description="of the beacon, per antenna and sample")


class RadioSection(_Section):
    """The radio and what is asked of it."""

    kind: str = Field("loopback", description="backend, see `semair radios`")
    address: str = Field("", description="which radio of this kind, see `semair radios`")
    frequency_hz: float = Field(3.5e9, gt=0, le=1e11, description="centre frequency")
    n_antennas: int = Field(4, ge=1, le=256, description="receive antennas of the base station")
    clock_source: str = Field("internal", description="of the sample clock: internal, external, gpsdo, mimo")
    time_source: str = Field("none", description="of the radio's time: none, external, gpsdo, mimo")
    rx_gain_db: float | None = Field(None, description="of all receive chains; default: the radio's own")
    tx_gain_db: float | None = Field(None, description="of all transmit chains; default: the least")
    tx_level_dbfs: float = Field(
        -15.0, ge=-80, le=-12, description="mean power of the beacon, on radios with an air of their own"
    )
    losses: tuple[tuple[NonNegativeInt, PositiveInt], ...] = Field(
        (), description="loopback only: [sample, count] pairs of samples that vanish, as in an overflow"
    )
    calibration: Path | None = Field(None, description="file of `semair calibrate` by which chains are corrected")
    calibration_parts: tuple[Part, ...] = Field(PARTS, min_length=1, description="what of it is corrected")


class Terminal(_Section):
    """A radio that stands for users: it hears the beacon and sends their preambles."""

    kind: str = Field(description="backend, see `semair radios`")
    address: str = Field(description="which radio of this kind, see `semair radios`")
    users: tuple[NonNegativeInt, ...] | None = Field(
        None, description="numbers of its users; default: an equal share, in order"
    )
    tx_gain_db: float | None = Field(None, description="transmit gain; default: the least")
    rx_gain_db: float | None = Field(None, description="receive gain; default: the radio's own")
    level_dbfs: float = Field(-30.0, ge=-80, le=-12, description="mean power of one user's burst")
    fading: Literal["none", "rayleigh"] = Field(
        "none", description="rayleigh: each user has a channel of its own before the one that all of a radio share"
    )
    lead_s: float = Field(0.25, ge=0.02, le=5, description="how far ahead bursts are handed to the radio")
    turnaround_samples: float = Field(
        0.0, ge=-1e6, le=1e6, description="by which a radio with hardware time hears itself later than its clock says"
    )
    clock_source: str = Field("internal", description="of the sample clock: internal, external, gpsdo, mimo")
    time_source: str = Field("none", description="of the radio's time: none, external, gpsdo, mimo")


class Sync(_Section):
    """Frame synchronisation."""

    max_cfo_ppm: float = Field(5.0, ge=0, le=100, description="largest carrier offset to search, either sign")
    false_alarms_per_sample: float = Field(1e-10, gt=0, lt=0.1, description="of the beacon's detector in noise")


class DetectorSection(_Section):
    """Who decides on activity."""

    name: str = Field("cd", description="one of `semair.models.uad.detectors`")
    options: dict[str, Any] = Field({}, description="options of this detector")


class Csi(CsiSlots):
    """CSI feedback: its slots, its codec, and the downlink that it tells of. Its users take the place of [users]."""

    model: str = Field("lab", description="weights of the codec, see `semair.models.csi.codec`: shipped, or a folder")
    engine: str = Field("onnxruntime", description="what runs it, see `semair.models.engine`")
    snr_db: float = Field(
        10.0,
        ge=-10,
        le=20,
        description="of a symbol of the code behind the combining, on average; announced to the users, who code for it",
    )
    sounding_snr_db: float = Field(20.0, ge=-10, le=60, description="of a sounding cell at a user, on average")
    spacing_m: tuple[float, float] = Field((0.5, 2.0), description="lowest and highest distance between users")
    sites: tuple[Literal["umi", "indoor"], ...] = Field(("umi",), min_length=1, description="kinds of places")
    line_of_sight: bool | None = Field(None, description="none: by the probability of the standard")
    traced: Path | None = Field(
        None, description="file of `semair trace` that channels come from, of its test split; instead of drawn ones"
    )
    scenes: tuple[str, ...] = Field((), description="scenes of that file; default: all")
    data_snr_db: float = Field(10.0, ge=-30, le=60, description="of the downlink that the sum rate is that of")

    @model_validator(mode="after")
    def _spaced(self) -> Csi:
        low, high = self.spacing_m
        if not 0 <= low <= high <= 1e4:
            raise ValueError(f"spacing_m={[low, high]}: lowest and highest, within 0 to 10000")
        if self.scenes and self.traced is None:
            raise ValueError(f"scenes={list(self.scenes)} are of a file of traced channels; give it with csi.traced")
        return self

    @property
    def slots(self) -> CsiSlots:
        """The slots alone."""
        return CsiSlots(**{name: getattr(self, name) for name in CsiSlots.model_fields})


class Pictures(PictureSlots):
    """The picture downlink: its slots, its codec, its SNR, and what is known of the channel, which [csi] describes."""

    model: str = Field(
        "lab", description="weights of the codec, see `semair.models.semantic.codec`: shipped, or a folder"
    )
    engine: str = Field("onnxruntime", description="what runs it, see `semair.models.engine`")
    side: int = Field(64, ge=64, le=1024, multiple_of=64, description="of the pictures, in pixels")
    snr_db: float = Field(
        10.0, ge=-30, le=60, description="transmit power over a user's noise power, channels having unit mean power"
    )
    csi: Literal["perfect", "estimated", "fed back"] = Field(
        "fed back", description="what the base station knows: all, with an error, or as the codec of [csi] recovers it"
    )
    nmse_db: float = Field(-10.0, ge=-40, le=0, description="error of estimated CSI")

    @property
    def slots(self) -> PictureSlots:
        """The slots alone."""
        return PictureSlots(**{name: getattr(self, name) for name in PictureSlots.model_fields})


class ChannelReplay(_Section):
    """How a recorded channel (`channel.kind = "recorded"`) is met by new transmissions."""

    mapping: Literal["drawn", "recorded"] = Field(
        "drawn",
        description="drawn: users meet recorded users, and in every frame one of their links, at random; "
        "recorded: equal numbers meet again wherever they were recorded",
    )
    reuse: bool = Field(False, description="let several users meet the channels of the same recorded one")
    cfo: Literal["keep", "remove"] = Field("keep", description="carrier offsets of the recording")
    timing: Literal["keep", "remove"] = Field("keep", description="sampling offset and users' timing of the recording")
    snr_backoff_db: float = Field(
        0.0, ge=0, le=60, description="lower the recorded SNR by this; a higher one was not recorded"
    )
    max_error_db: float = Field(
        -8.0, ge=-40, le=-1, description="links whose expected estimation error over their power is larger are left out"
    )


class Loop(_Section):
    """The closed loop: random access, of the rest of the scenario, then CSI feedback and pictures for who got access.

    The downlink is a scenario of its own: `downlink = {scenario = "semantic-lab", csi = {snr_db = 5}}` takes the
    shipped one, or that of a file, with other values. Its seed and level are those of the whole, unless given.
    """

    rounds: int = Field(24, ge=1, le=10_000, description="of access, feedback and pictures, one frame each")
    downlink: Scenario = Field(description="CSI feedback and picture downlink; csi.n_users of them are served at once")

    @field_validator("downlink")
    @classmethod
    def _has_pictures(cls, downlink: Scenario) -> Scenario:
        if downlink.kind != "semantic-downlink":
            raise ValueError(
                f"scenario {downlink.name!r} is one of kind {downlink.kind}; choose semantic-lab, or one with the "
                "sections [csi] and [pictures]"
            )
        return downlink


class Scenario(_Section):
    """One experiment: of random access, or of CSI feedback, the picture downlink or all of it in a loop, where there is
    a section for it.
    """

    name: str = Field(min_length=1, description="for people and folders")
    description: str = ""
    seed: int = Field(1, ge=0, description="of activity, channel, impairments and noise")
    level: Literal["perfect", "cabled", "wireless"] = Field(
        "cabled", description="preset of [impairments], whose single values may be overridden there"
    )
    frame: FrameFormat = FrameFormat()
    users: Users = Users()
    link: Link = Link()
    radio: RadioSection = RadioSection()
    channel: ChannelConfig = ChannelConfig()
    beacon_channel: ChannelConfig = ChannelConfig()
    channel_replay: ChannelReplay = ChannelReplay()
    impairments: Impairments = Impairments()
    sync: Sync = Sync()
    detector: DetectorSection = DetectorSection()
    csi: Csi | None = Field(None, description="CSI feedback instead of random access")
    pictures: Pictures | None = Field(None, description="picture downlink over the channels of [csi]")
    loop: Loop | None = Field(None, description="closed loop, of which the rest is random access")
    terminals: tuple[Terminal, ...] = Field(
        (), description="radios of the users; none where the base station's radio emulates them"
    )

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        level = data.get("level", "cabled")
        given = data.get("impairments", {})
        if level not in ("perfect", "cabled", "wireless") or not isinstance(given, dict):
            return data
        loop = data.get("loop")
        if isinstance(loop, dict) and isinstance(loop.get("downlink"), str | dict):
            common = {"seed": data.get("seed", 1), "level": level}
            data = {**data, "loop": {**loop, "downlink": _expanded(loop["downlink"], common)}}
        return {**data, "impairments": {**Impairments.preset(level).model_dump(), **given}}

    @field_validator("users")
    @classmethod
    def _lengths(cls, users: Users) -> Users:
        if min(users.preamble_lengths) < 1:
            raise ValueError(f"preamble_lengths={list(users.preamble_lengths)}: lengths start at 1")
        return users

    @model_validator(mode="after")
    def _consistent(self) -> Scenario:
        longest = max(self.users.preamble_lengths)
        if longest > self.frame.max_preamble_length:
            raise ValueError(
                f"users.preamble_lengths holds {longest}, but the access slot has room for "
                f"frame.max_preamble_length={self.frame.max_preamble_length}"
            )
        if self.max_cfo_hz > self.frame.sample_rate_hz / 2:
            raise ValueError(
                f"sync.max_cfo_ppm={self.sync.max_cfo_ppm:g} of radio.frequency_hz={self.radio.frequency_hz:g} is "
                f"{self.max_cfo_hz:g} Hz; allowed is half of frame.sample_rate_hz={self.frame.sample_rate_hz:g}"
            )
        if self.beacon_channel.kind == "recorded":
            raise ValueError(
                "beacon_channel.kind='recorded': the beacon's channel comes with channel.kind='recorded'; leave it out"
            )
        if self.channel.kind == "recorded" and self.radio.kind != "loopback":
            raise ValueError(
                f"channel.kind='recorded' with radio.kind={self.radio.kind!r}: only the loopback radio has an air to "
                "replace"
            )
        for name, channel in (("channel", self.channel), ("beacon_channel", self.beacon_channel)):
            if channel.kind == "clustered":
                try:
                    checked_array_shape(channel.array_shape, self.radio.n_antennas)
                except ValueError as error:
                    raise ValueError(f"{name}.array_shape: {error}") from error
        if self.terminals:
            self._check_terminals()
        if self.csi is not None:
            self._check_csi()
        if self.pictures is not None:
            if self.csi is None:
                raise ValueError("pictures without csi: their channels are described there; add the section [csi]")
            try:
                self.picture_frame  # noqa: B018
            except ValueError as error:
                raise ValueError(f"pictures: {error}") from error
        if self.loop is not None:
            self._check_loop(self.loop)
        return self

    def _check_loop(self, loop: Loop) -> None:
        if self.csi is not None or self.pictures is not None:
            raise ValueError("loop with csi or pictures: they are those of loop.downlink; leave them out")
        if self.terminals or self.channel.kind == "recorded":
            raise ValueError("loop: its users and channels are emulated; leave terminals and recorded channels out")
        for name in ("kind", "address", "n_antennas", "frequency_hz"):
            here, there = getattr(self.radio, name), getattr(loop.downlink.radio, name)
            if here != there:
                raise ValueError(
                    f"radio.{name}={here!r}, but loop.downlink.radio.{name}={there!r}: it is one base station; make "
                    "them equal"
                )

    def _check_csi(self) -> None:
        try:
            frame = self.csi_frame
        except ValueError as error:
            raise ValueError(f"csi: {error}") from error
        if self.terminals:
            raise ValueError("csi with terminals: users that feed CSI back are emulated; leave terminals out")
        if self.channel.kind == "recorded":
            raise ValueError("csi with channel.kind='recorded': choose another kind")
        low, high = 1e3, 2e9
        if not low <= frame.bandwidth_hz <= high:
            raise ValueError(f"csi: its subcarriers span {frame.bandwidth_hz:g} Hz; allowed {low:g} to {high:g}")

    def _check_terminals(self) -> None:
        if self.radio.kind == "loopback":
            raise ValueError(
                "terminals with radio.kind='loopback': its air has emulated users only; choose another radio, or leave "
                "terminals out"
            )
        places = [(terminal.kind, terminal.address) for terminal in self.terminals]
        if len(set(places)) < len(places) or (self.radio.kind, self.radio.address) in places:
            raise ValueError("terminals: two of them, or one and the base station, are the same radio")
        if len({terminal.users is None for terminal in self.terminals}) > 1:
            raise ValueError("terminals: give users to all of them, or to none")
        users = sorted(user for k in range(len(self.terminals)) for user in self.terminal_users(k))
        if users != list(range(self.users.n_users)):
            raise ValueError(
                f"terminals: each of users 0 to {self.users.n_users - 1} must belong to one terminal; given: {users}"
            )

    def terminal_users(self, terminal: int) -> tuple[int, ...]:
        """Numbers of the users that a terminal stands for."""
        given = self.terminals[terminal].users
        if given is not None:
            return given
        shares = np.array_split(np.arange(self.users.n_users), len(self.terminals))
        return tuple(int(user) for user in shares[terminal])

    @property
    def kind(self) -> str:
        """The link that the experiment is of."""
        if self.loop is not None:
            return "closed-loop"
        if self.pictures is not None:
            return "semantic-downlink"
        return "random-access" if self.csi is None else "csi-feedback"

    @property
    def csi_frame(self) -> CsiFrame:
        """The frame of CSI feedback.

        Raises:
            ValueError: the scenario is none of CSI feedback, or its slots do not fit.
        """
        if self.csi is None:
            raise ValueError(f"scenario {self.name!r} has no section [csi]")
        return CsiFrame(self.frame, self.csi.slots, self.radio.n_antennas)

    @property
    def picture_frame(self) -> PictureFrame:
        """The frame of the picture downlink.

        Raises:
            ValueError: the scenario is none of it, or its slots do not fit.
        """
        if self.csi is None or self.pictures is None:
            raise ValueError(f"scenario {self.name!r} has no sections [csi] and [pictures]")
        slots, users = self.pictures.slots, self.csi.n_users
        return PictureFrame(self.frame, slots, self.radio.n_antennas, users, self.csi.n_subcarriers)

    @property
    def picture_noise_power(self) -> float:
        """Noise power per complex sample at a user, in units of the picture downlink's transmit power per cell.

        Raises:
            ValueError: the scenario is none of it.
        """
        if self.pictures is None:
            raise ValueError(f"scenario {self.name!r} has no section [pictures]")
        return 10 ** (-self.pictures.snr_db / 10)

    @property
    def picture_beacon_amplitude(self) -> float:
        """Root mean square of its beacon, on the same scale, for `link.beacon_snr_db` at the users."""
        return math.sqrt(self.picture_noise_power * 10 ** (self.link.beacon_snr_db / 10))

    @property
    def n_users(self) -> int:
        """Users that may send."""
        return self.users.n_users if self.csi is None else self.csi.n_users

    @property
    def quiet_frames(self) -> int:
        """Frames at the beginning in which nobody sends."""
        if self.users.quiet_frames is not None:
            return self.users.quiet_frames
        return math.ceil(_SETTLE_S / self.frame.frame_s) if self.terminals else 0

    @property
    def n_snapshots(self) -> int:
        """Snapshots per access slot, M = antennas * groups."""
        return self.radio.n_antennas * self.frame.n_groups

    @property
    def max_cfo_hz(self) -> float:
        """Largest carrier offset to search."""
        return self.sync.max_cfo_ppm * 1e-6 * self.radio.frequency_hz

    @property
    def noise_power(self) -> float:
        """Noise power per complex sample when each user's cell arrives with mean power 1.

        Total received SNR of the ensemble: activity * users / noise. A scenario without activity takes the noise
        that one active user would. In CSI feedback, antennas / noise is the SNR behind the combining.
        """
        if self.csi is not None:
            return self.radio.n_antennas / 10 ** (self.csi.snr_db / 10)
        active = max(self.users.activity * self.users.n_users, 1.0)
        return active / 10 ** (self.link.access_snr_db / 10)

    @property
    def beacon_amplitude(self) -> float:
        """Root mean square of the beacon on the same scale."""
        return float(np.sqrt(self.noise_power * 10 ** (self.link.beacon_snr_db / 10)))

    @property
    def expected_power(self) -> float:
        """Mean received power in the strongest slot, for the receiver's level."""
        if self.csi is not None:
            return max(self.beacon_amplitude**2, self.frame.n_used / self.frame.n_fft)
        cells = self.frame.n_groups * self.frame.group_width / self.frame.n_fft
        return max(self.beacon_amplitude**2, self.users.activity * self.users.n_users * cells)

    def preambles(self) -> np.ndarray:
        """The preamble pool; complex64, (max_preamble_length, users)."""
        rng = np.random.default_rng(self.users.preamble_seed)
        return qpsk_preambles(self.users.n_users, self.frame.max_preamble_length, rng)


def shipped_scenarios() -> dict[str, Path]:
    """Scenarios that come with semair, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.toml"))}


def load_scenario(source: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> Scenario:
    """Read and check a scenario.

    Args:
        source: name of a shipped scenario, or path of a TOML file.
        overrides: `section.field=value` texts, values in TOML or plain words.

    Raises:
        ScenarioError: the file is missing or no TOML, or a field is wrong; names the field's path, what was
            given, and what is allowed.
    """
    data = _read(source)
    for text in overrides:
        _override(data, text)
    return parse_scenario(data, str(shipped_scenarios().get(str(source), source)))


def _read(source: str | Path) -> dict[str, Any]:
    """Plain values of a shipped scenario or of a file."""
    shipped = shipped_scenarios()
    path = shipped.get(str(source), Path(source))
    if not path.is_file():
        raise ScenarioError(f"scenario {str(source)!r} is neither a file nor a shipped scenario ({', '.join(shipped)})")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: not a TOML file: {error}") from error


def parse_scenario(data: dict[str, Any], origin: str) -> Scenario:
    """Check plain values as a scenario; `origin` names them in errors."""
    try:
        return Scenario.model_validate(data)
    except ValidationError as error:
        lines = [_explain(detail) for detail in error.errors()]
        raise ScenarioError(f"{origin}: " + "; ".join(lines)) from error


def scenario_dict(scenario: Scenario) -> dict[str, Any]:
    """Plain values that `parse_scenario` takes back."""
    return json.loads(scenario.model_dump_json())


def _expanded(given: str | dict[str, Any], common: dict[str, Any]) -> dict[str, Any]:
    """A scenario within one: the plain values of the named scenario, with common ones and those given in their place.

    Raises:
        ScenarioError: there is no such scenario, or its file is none.
    """
    if isinstance(given, dict) and not isinstance(given.get("scenario"), str):
        return given
    own = {} if isinstance(given, str) else {key: value for key, value in given.items() if key != "scenario"}
    return _merged({**_read(given if isinstance(given, str) else given["scenario"]), **common}, own)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Tables joined, table by table; values above replace those below."""
    both = dict(below)
    for key, value in above.items():
        under = both.get(key)
        both[key] = _merged(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return both


def _override(data: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ScenarioError(f"override {text!r} is not of the form section.field=value, e.g. users.activity=0.2")
    try:
        parsed = tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    place = data
    for part in parts[:-1]:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise ScenarioError(f"override {text!r}: {part} is a value and has no fields")
    place[parts[-1]] = parsed


def _explain(detail: Any) -> str:
    """One wrong field as: path, what was given, what is allowed."""
    path = ".".join(str(part) for part in detail["loc"])
    given = detail.get("input")
    kind = detail["type"]
    allowed = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if kind == "extra_forbidden":
        section = _fields_at(detail["loc"][:-1])
        return f"{path}: unknown field; allowed here: {', '.join(section)}"
    if kind == "missing":
        return f"{path}: missing; it must be given"
    if kind in ("value_error", "assertion_error"):
        return f"{path}: {allowed}" if path else allowed
    text = repr(given) if not isinstance(given, dict) else "a table"
    return f"{path}: given {text}, allowed: {allowed}"


Loop.model_rebuild()
Scenario.model_rebuild()


def _fields_at(location: tuple[Any, ...]) -> list[str]:
    model: Any = Scenario
    for part in location:
        # A number is a place in a tuple of tables.
        model = get_args(model)[0] if isinstance(part, int) else model.model_fields[part].annotation
        if isinstance(model, UnionType):
            # A section that may be left out.
            model = get_args(model)[0]
    return list(model.model_fields)

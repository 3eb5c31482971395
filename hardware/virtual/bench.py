"""A bench of virtual radios: N210s and Plutos on one air, described in one file."""

from __future__ import annotations

import tomllib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...errors import ScenarioError, explain_validation
from ...models.channels import ChannelConfig
from .ad9361 import VirtualAd9361, open_radios
from .air import VirtualAir
from .clock import RealTimeClock
from .n210 import VirtualN210

LAB = Path(__file__).with_name("lab.toml")
"""The bench of scenario `bench`."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class UnitPart(_Part):
    """A virtual N210."""

    address: str = Field(description="of this machine, such as 127.0.0.2")
    ppm: float = Field(0.0, ge=-100, le=100, description="error of its reference")
    pps_error_ticks: int = Field(0, ge=-100, le=100, description="of 10 ns, by which it sees the pulse late")
    mimo_master: str | None = Field(None, description="address of the unit at the other end of its MIMO cable")


class PlutoPart(_Part):
    """A virtual Pluto or AD9361 board."""

    address: str = Field(description="of this machine, ADDRESS or ADDRESS:PORT")
    model: str = Field("pluto", description="pluto (one chain each way) or ad9361 (two)")
    ppm: float = Field(0.0, ge=-100, le=100, description="error of its crystal")


class PathPart(_Part):
    """What lies between two radios, instead of what is drawn."""

    sender: str = Field(description="address of a radio")
    receiver: str = Field(description="address of a radio; the sender itself for what it hears of its own")
    gain_db: float = Field(le=60, description="of all paths between them; -inf is no path")


class Bench(_Part):
    """Radios on one air."""

    seed: int = Field(0, ge=0, description="of noise, phases and channels")
    noise_dbfs: float = Field(-80.0, ge=-160, le=0, description="noise power per sample at each receiver's port")
    path_gain_db: float = Field(0.0, ge=-160, le=60, description="of paths without an entry of their own")
    own_gain_db: float | None = Field(None, le=60, description="of the path from a radio to itself; default: as others")
    channel: ChannelConfig | None = Field(None, description="draws the paths; none: a plain gain")
    redraw_s: float | None = Field(None, gt=1e-4, description="drawn paths are others after so long")
    speed: float = Field(1.0, gt=0.01, le=1, description="of time: below 1 it passes more slowly than on a clock")
    random_phase: bool = Field(True, description="oscillators begin at a phase of their own")
    sampling_drift: bool = Field(False, description="errors of references move the sample clocks, too")
    history_s: float = Field(0.5, gt=0, le=10, description="how late a receiver may be computed")
    n210: tuple[UnitPart, ...] = ()
    pluto: tuple[PlutoPart, ...] = ()
    paths: tuple[PathPart, ...] = ()

    @property
    def addresses(self) -> list[str]:
        """Of all radios, in order."""
        return [*(part.address for part in self.n210), *(part.address for part in self.pluto)]


class OpenBench:
    """A bench whose radios answer, as a context.

    Args:
        bench: what is on it.

    Attributes:
        air: that they share.
        units: N210s, in the order of the file.
        plutos: Plutos and AD9361 boards.

    Raises:
        RadioError: an address is taken, or none of this machine.
        ScenarioError: a path names a radio that is not there.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        known = bench.addresses
        for part in bench.n210:
            if part.mimo_master is not None and part.mimo_master not in known:
                raise ScenarioError(f"mimo_master={part.mimo_master!r} is no unit of this bench: {', '.join(known)}")
        for path in bench.paths:
            for name in (path.sender, path.receiver):
                if name not in known:
                    raise ScenarioError(f"a path names {name!r}, but the radios are {', '.join(known) or 'none'}")
        if not known:
            raise ScenarioError("the bench has no radios; list them as [[n210]] and [[pluto]] with an address each")
        self.air = VirtualAir(
            RealTimeClock(bench.speed),
            seed=bench.seed,
            noise_power=10 ** (bench.noise_dbfs / 10),
            path_gain_db=bench.path_gain_db,
            random_phase=bench.random_phase,
            sampling_drift=bench.sampling_drift,
            history_s=bench.history_s,
        )
        if bench.channel is not None:
            self.air.draw_channel(bench.channel, bench.redraw_s)
        self.units: list[VirtualN210] = []
        self.plutos: list[VirtualAd9361] = []
        with ExitStack() as stack:
            for part in bench.n210:
                master = next((unit for unit in self.units if unit.address == part.mimo_master), None)
                unit = VirtualN210(
                    self.air,
                    part.address,
                    name=part.address,
                    ppm=part.ppm,
                    pps_error_ticks=part.pps_error_ticks,
                    mimo_master=master,
                )
                self.units.append(stack.enter_context(unit))
            for board in bench.pluto:
                opened = open_radios(self.air, [board.address], board.model, [board.ppm])
                self.plutos.append(stack.enter_context(opened[0]))
            self._set_paths()
            self._stack = stack.pop_all()

    def _set_paths(self) -> None:
        radios = self.air.radios
        pairs: dict[tuple[str, str], float] = {}
        if self.bench.own_gain_db is not None:
            pairs = {(name, name): self.bench.own_gain_db for name in radios}
        pairs |= {(path.sender, path.receiver): path.gain_db for path in self.bench.paths}
        for (sender, receiver), gain_db in pairs.items():
            amplitude = 10 ** (gain_db / 20)
            for rx in radios[receiver].rx:
                for tx in radios[sender].tx:
                    self.air.set_path(rx, tx, amplitude)

    def __enter__(self) -> OpenBench:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let all radios go."""
        self._stack.close()

    def describe(self) -> dict[str, Any]:
        """How to reach the radios: `n210` device arguments, `pluto` URIs."""
        return {
            "n210": [f"type=usrp2,addr={unit.address}" for unit in self.units],
            "pluto": [radio.uri for radio in self.plutos],
        }


def load_bench(path: Path, changes: dict[str, Any] | None = None) -> Bench:
    """Read and check a bench; `changes` are values in the place of the file's.

    Raises:
        ScenarioError: the file is missing or no TOML, or a field is wrong; names the field, what was given, and what is
            allowed.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ScenarioError(f"{path} cannot be read: {error.strerror}; give the TOML file of a bench") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: not a TOML file: {error}") from error
    try:
        return Bench.model_validate(data | (changes or {}))
    except ValidationError as error:
        raise ScenarioError(f"{path}: {explain_validation(error)}") from error

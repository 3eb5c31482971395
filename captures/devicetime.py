"""Time on a radio's own clock, in whole ticks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any


@dataclass(frozen=True)
class DeviceTime:
    """Instant on a device clock: ``full_secs + frac_ticks / tick_rate_hz`` seconds.

    Integers only: a float64 of seconds since 1970 moves in steps of 0.24 microseconds, several samples at 20
    MS/s.

    Args:
        full_secs: whole seconds.
        frac_ticks: ticks into the second, ``0 <= frac_ticks < tick_rate_hz``.
        tick_rate_hz: ticks per second.

    Raises:
        ValueError: a value is no integer or out of range.
    """

    full_secs: int
    frac_ticks: int
    tick_rate_hz: int

    def __post_init__(self) -> None:
        for name in ("full_secs", "frac_ticks", "tick_rate_hz"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"{name} is {value!r}; device time takes integers, convert with int() if it is whole")
        if self.tick_rate_hz < 1:
            raise ValueError(f"tick_rate_hz is {self.tick_rate_hz}; it must be at least 1")
        if not 0 <= self.frac_ticks < self.tick_rate_hz:
            raise ValueError(
                f"frac_ticks is {self.frac_ticks}; it must be 0 to {self.tick_rate_hz - 1} (tick_rate_hz - 1)"
            )

    @property
    def seconds(self) -> Fraction:
        """The instant in seconds, exactly."""
        return self.full_secs + Fraction(self.frac_ticks, self.tick_rate_hz)

    def plus(self, samples: int, sample_rate_hz: float) -> DeviceTime:
        """Instant `samples` sample periods later, rounded to the nearest tick of this clock.

        Args:
            samples: sample periods, may be negative.
            sample_rate_hz: samples per second; the float's exact value counts.
        """
        ticks = round((self.seconds + Fraction(samples) / _rate(sample_rate_hz)) * self.tick_rate_hz)
        return DeviceTime(*divmod(ticks, self.tick_rate_hz), self.tick_rate_hz)

    def samples_since(self, earlier: DeviceTime, sample_rate_hz: float) -> int:
        """Sample periods from `earlier` to this instant, rounded to the nearest; negative if `earlier` is
        later."""
        return round((self.seconds - earlier.seconds) * _rate(sample_rate_hz))

    def to_dict(self) -> dict[str, int]:
        """The three integers by name, as stored in recordings."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Any) -> DeviceTime:
        """Inverse of `to_dict`.

        Raises:
            ValueError: not a mapping of exactly the three integers.
        """
        names = {"full_secs", "frac_ticks", "tick_rate_hz"}
        if not isinstance(fields, dict) or set(fields) != names:
            raise ValueError(f"device time is {fields!r}; it must hold exactly {', '.join(sorted(names))}")
        return cls(**fields)


def _rate(sample_rate_hz: float) -> Fraction:
    if not sample_rate_hz > 0 or sample_rate_hz == float("inf"):
        raise ValueError(f"sample_rate_hz is {sample_rate_hz}; it must be positive and finite")
    return Fraction(sample_rate_hz)

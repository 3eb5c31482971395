"""The frame of CSI feedback: where sounding and feedback slots lie in it.

All places are in samples relative to the frame start, as those of `FrameFormat`, whose beacon and numerology it uses:

    | beacon | guard | sounding symbols ... | turn-around | part of user 0 | part of user 1 ... | guard | noise slot |

In each sounding symbol `comb` antennas of the base station send at once, each on every comb-th used subcarrier; after
`sounding_symbols` symbols all have sent, and it begins again. A user's part is some OFDM symbols of pilots, then the
symbols that carry the code, with pilots on some of their subcarriers, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from .frame import FrameFormat

# Of the used subcarriers of a symbol that carries code, one of so many is a pilot.
_PILOT_DISTANCE = 8


class CsiSlots(BaseModel):
    """Lengths of the slots of CSI feedback."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_users: int = Field(2, ge=1, le=64, description="users that feed CSI back, each in its own part of the slot")
    n_subcarriers: int = Field(256, ge=8, le=4096, description="subcarriers around the carrier that CSI is told of")
    n_taps: int = Field(32, ge=1, le=4096, description="delay taps of it that are fed back")
    lead_taps: float = Field(4.0, ge=0, le=64, description="tap at which a user puts its first path")
    comb: int = Field(4, ge=1, le=64, description="antennas that sound at once, each on every comb-th subcarrier")
    sounding_repeats: int = Field(2, ge=2, le=64, description="times that every antenna sounds")
    turnaround_samples: int = Field(256, ge=0, description="between sounding and feedback, for users to begin sending")
    pilot_symbols: int = Field(1, ge=1, le=16, description="OFDM symbols of pilots before a user's code")
    feedback_length: int = Field(64, ge=1, le=65536, description="complex symbols that a user's CSI is coded into")


@dataclass(frozen=True)
class CsiFrame:
    """A frame of CSI feedback: numerology, slots, and the base station's antennas.

    Raises:
        ValueError: they do not fit together; says what to change.
    """

    frame_format: FrameFormat
    slots: CsiSlots
    n_antennas: int

    def __post_init__(self) -> None:
        fmt, slots = self.frame_format, self.slots
        if self.n_antennas < 1:
            raise ValueError(f"n_antennas={self.n_antennas}: at least 1")
        if slots.n_subcarriers % 2 or slots.n_subcarriers > fmt.n_used:
            raise ValueError(
                f"n_subcarriers={slots.n_subcarriers} must be even and at most n_used={fmt.n_used}, which are sounded"
            )
        if slots.n_taps > slots.n_subcarriers or slots.lead_taps >= slots.n_taps:
            raise ValueError(
                f"n_taps={slots.n_taps} must lie above lead_taps={slots.lead_taps:g} and be at most "
                f"n_subcarriers={slots.n_subcarriers}"
            )
        # Delays from a quarter of the prefix before to a whole prefix after the frame's timing must not fold.
        unfolded = fmt.n_fft / slots.comb
        if fmt.cp_samples * 1.25 > unfolded:
            raise ValueError(
                f"comb={slots.comb} of n_fft={fmt.n_fft} tells delays within {unfolded:g} samples apart, but the "
                f"prefix of cp_samples={fmt.cp_samples} lets {fmt.cp_samples * 1.25:g} in; sound on a denser comb, or "
                "shorten the prefix"
            )
        if slots.n_taps * slots.comb > slots.n_subcarriers:
            raise ValueError(
                f"comb={slots.comb} tells delays within {unfolded:g} samples apart, but n_taps={slots.n_taps} span "
                f"{slots.n_taps * fmt.n_fft / slots.n_subcarriers:g}; sound on a denser comb"
            )
        if fmt.frame_samples < self.used_samples:
            raise ValueError(
                f"frame.frame_samples={fmt.frame_samples} is shorter than its slots, which need {self.used_samples}; "
                "lengthen the frame, or shorten sounding, turn-around or feedback"
            )

    @property
    def sounding_symbols(self) -> int:
        """OFDM symbols in which every antenna sounds once."""
        return math.ceil(self.n_antennas / self.slots.comb)

    @property
    def sounding_start(self) -> int:
        """First sample (prefix included) of the sounding slot."""
        return self.frame_format.beacon_samples + self.frame_format.guard_samples

    @property
    def sounding_samples(self) -> int:
        """Length of the sounding slot."""
        return self.sounding_symbols * self.slots.sounding_repeats * self.frame_format.symbol_samples

    @property
    def downlink_samples(self) -> int:
        """Samples from the frame start to the end of what the base station sends."""
        return self.sounding_start + self.sounding_samples

    @property
    def feedback_start(self) -> int:
        """First sample (prefix included) of the feedback slot."""
        return self.downlink_samples + self.slots.turnaround_samples

    @property
    def cells_per_symbol(self) -> int:
        """Code symbols that fit into one OFDM symbol beside its pilots."""
        return self.frame_format.n_used - math.ceil(self.frame_format.n_used / _PILOT_DISTANCE)

    @property
    def code_symbols(self) -> int:
        """OFDM symbols that carry a user's code."""
        return math.ceil(self.slots.feedback_length / self.cells_per_symbol)

    @property
    def part_symbols(self) -> int:
        """OFDM symbols of a user's part."""
        return self.slots.pilot_symbols + self.code_symbols

    @property
    def part_samples(self) -> int:
        """Length of a user's part."""
        return self.part_symbols * self.frame_format.symbol_samples

    def part_start(self, user: int) -> int:
        """First sample (prefix included) of a user's part."""
        return self.feedback_start + user * self.part_samples

    @property
    def noise_start(self) -> int:
        """First sample of the silence in which the base station measures noise."""
        return self.part_start(self.slots.n_users) + self.frame_format.guard_samples

    @property
    def used_samples(self) -> int:
        """Samples from the frame start to the end of the last slot."""
        return self.noise_start + self.frame_format.noise_symbols * self.frame_format.symbol_samples

    @property
    def csi_subcarriers(self) -> np.ndarray:
        """Subcarriers that CSI is told of, ascending in frequency; int, (n_subcarriers,), from the carrier."""
        half = self.slots.n_subcarriers // 2
        return np.arange(-half, half)

    @property
    def used_subcarriers(self) -> np.ndarray:
        """Subcarriers in use, ascending in frequency; int, (n_used,), from the carrier."""
        half = self.frame_format.n_used // 2
        return np.concatenate([np.arange(-half, 0), np.arange(1, half + 1)])

    @property
    def bandwidth_hz(self) -> float:
        """Spanned by the subcarriers that CSI is told of: the inverse of a delay tap."""
        return self.slots.n_subcarriers * self.frame_format.subcarrier_spacing_hz

    @cached_property
    def pilot_cells(self) -> np.ndarray:
        """Which used subcarriers of a symbol with code are pilots; int, ascending."""
        return np.arange(_PILOT_DISTANCE // 2, self.frame_format.n_used, _PILOT_DISTANCE)

    @cached_property
    def code_cells(self) -> np.ndarray:
        """Symbol (from the first with code) and used subcarrier of each code symbol; int, (feedback_length, 2).

        Neighbouring code symbols lie far apart, spread over the whole band.
        """
        return _code_cells(self.frame_format.n_used, self.slots.feedback_length, self.code_symbols)


@lru_cache(maxsize=16)
def _code_cells(n_used: int, length: int, n_symbols: int) -> np.ndarray:
    free = np.setdiff1d(np.arange(n_used), np.arange(_PILOT_DISTANCE // 2, n_used, _PILOT_DISTANCE))
    cells = []
    for symbol, part in enumerate(np.array_split(np.arange(length), n_symbols)):
        picked = free[((np.arange(len(part)) + 0.5) * len(free) / len(part)).astype(int)]
        cells.append(np.stack([np.full(len(part), symbol), picked], axis=1))
    # Codes tell the most in their first symbols; a stride keeps these from sharing a fade.
    ordered = np.concatenate(cells)
    stride = next(step for step in range(max(round(length * 0.38), 1), length + 1) if math.gcd(step, length) == 1)
    ordered = ordered[np.arange(length) * stride % length]
    ordered.setflags(write=False)
    return ordered

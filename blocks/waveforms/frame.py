"""The frame on air: every length and place in it, as one validated description.

All places are in samples relative to the frame start, which is the first sample of the beacon's
synchronisation sequence:

    | sync | training | header ... | guard | access symbols ... | guard | noise slot | rest of the frame |
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

COUNTER_BITS = 32
"""Bits of the frame counter in the beacon's header."""
HEADER_BITS = COUNTER_BITS + 16
"""Counter and its checksum."""


class FrameFormat(BaseModel):
    """OFDM numerology and slots of one TDD frame.

    A preamble of Lp symbols fills each of the `n_groups` groups of `group_width` neighbouring subcarriers,
    subcarriers first, then OFDM symbols; every group carries the same preamble, so that each group on each
    antenna is one snapshot of the activity-detection problem.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sample_rate_hz: float = Field(2e6, gt=0, le=1e9, description="complex samples per second of every chain")
    n_fft: int = Field(128, ge=16, le=8192, description="subcarriers = samples of an OFDM symbol without prefix")
    cp_samples: int = Field(16, ge=1, description="cyclic prefix")
    n_used: int = Field(96, ge=4, description="used subcarriers, half on each side of the empty DC")
    sync_repeats: int = Field(8, ge=2, le=64, description="pieces of n_fft/2 samples in the synchronisation sequence")
    header_symbols: int = Field(4, ge=1, le=64, description="OFDM symbols that carry the frame counter")
    n_groups: int = Field(16, ge=1, description="groups of neighbouring subcarriers in the access slot")
    group_width: int = Field(4, ge=1, description="subcarriers per group")
    max_preamble_length: int = Field(28, ge=1, le=1024, description="symbols of a whole preamble")
    noise_symbols: int = Field(4, ge=1, description="OFDM symbols of silence for the noise estimate")
    guard_samples: int = Field(144, ge=0, description="silence before and after the access slot")
    frame_samples: int = Field(4096, ge=64, description="distance between frame starts")
    sequence_seed: int = Field(1, ge=0, description="seed of the beacon's known sequences")

    @model_validator(mode="after")
    def _fits(self) -> FrameFormat:
        if self.n_fft % 4:
            raise ValueError(f"n_fft={self.n_fft} must be a multiple of 4")
        if self.cp_samples >= self.n_fft:
            raise ValueError(f"cp_samples={self.cp_samples} must be below n_fft={self.n_fft}")
        if self.n_used % 2 or self.n_used > self.n_fft - 2:
            raise ValueError(f"n_used={self.n_used} must be even and at most n_fft-2={self.n_fft - 2}")
        if self.header_symbols * self.n_used < HEADER_BITS:
            raise ValueError(
                f"header_symbols={self.header_symbols} of n_used={self.n_used} hold "
                f"{self.header_symbols * self.n_used} cells, the frame counter needs {HEADER_BITS}; "
                "use more header symbols or subcarriers"
            )
        if self.n_groups * self.group_width > self.n_used:
            raise ValueError(
                f"n_groups*group_width={self.n_groups * self.group_width} subcarriers do not fit into "
                f"n_used={self.n_used}; use fewer or narrower groups"
            )
        if self.frame_samples < self.used_samples:
            raise ValueError(
                f"frame_samples={self.frame_samples} is shorter than its slots, which need {self.used_samples}; "
                "lengthen the frame, or shorten max_preamble_length, noise_symbols or guard_samples"
            )
        return self

    @property
    def symbol_samples(self) -> int:
        """Samples of one OFDM symbol with its prefix."""
        return self.n_fft + self.cp_samples

    @property
    def sync_samples(self) -> int:
        """Samples of the synchronisation sequence."""
        return self.sync_repeats * self.n_fft // 2

    @property
    def training_start(self) -> int:
        """First sample (prefix included) of the training symbol; the header symbols follow it."""
        return self.sync_samples

    @property
    def beacon_samples(self) -> int:
        """Samples from the frame start to the end of the header."""
        return self.sync_samples + (1 + self.header_symbols) * self.symbol_samples

    @property
    def access_start(self) -> int:
        """First sample (prefix included) of the access slot."""
        return self.beacon_samples + self.guard_samples

    @property
    def access_symbols(self) -> int:
        """OFDM symbols that a whole preamble needs."""
        return math.ceil(self.max_preamble_length / self.group_width)

    @property
    def noise_start(self) -> int:
        """First sample of the noise slot."""
        return self.access_start + self.access_symbols * self.symbol_samples + self.guard_samples

    @property
    def used_samples(self) -> int:
        """Samples from the frame start to the end of the last slot."""
        return self.noise_start + self.noise_symbols * self.symbol_samples

    @property
    def subcarrier_spacing_hz(self) -> float:
        """Distance of neighbouring subcarriers."""
        return self.sample_rate_hz / self.n_fft

    @property
    def frame_s(self) -> float:
        """Duration of a frame."""
        return self.frame_samples / self.sample_rate_hz

    @property
    def used_subcarriers(self) -> np.ndarray:
        """FFT bins in use, ascending in frequency. Returns int, (n_used,)."""
        return _used_subcarriers(self.n_fft, self.n_used)

    @property
    def access_subcarriers(self) -> np.ndarray:
        """FFT bins of the access groups, spread evenly over the used band. Returns int, (n_groups, group_width)."""
        stride = self.n_used / self.n_groups
        first = np.floor(np.arange(self.n_groups) * stride + (stride - self.group_width) / 2).astype(int)
        return self.used_subcarriers[first[:, None] + np.arange(self.group_width)]

    def symbols_of_length(self, preamble_length: int) -> int:
        """OFDM symbols that the first `preamble_length` symbols of a preamble need.

        Raises:
            ValueError: the preamble does not fit into the slot.
        """
        if not 1 <= preamble_length <= self.max_preamble_length:
            raise ValueError(
                f"preamble length {preamble_length} does not fit the access slot: allowed 1 to "
                f"{self.max_preamble_length} (max_preamble_length)"
            )
        return math.ceil(preamble_length / self.group_width)


@lru_cache(maxsize=16)
def _used_subcarriers(n_fft: int, n_used: int) -> np.ndarray:
    half = n_used // 2
    bins = np.concatenate([np.arange(-half, 0), np.arange(1, half + 1)]) % n_fft
    bins.setflags(write=False)
    return bins

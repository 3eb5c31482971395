"""The frame of the picture downlink: what the base station's antennas send, and what a user makes of it.

All places are in samples relative to the frame start, as those of `FrameFormat`, whose beacon and numerology it uses:

    | beacon | guard | grant | reference ... | data ... | closing reference | guard | noise slot |

The grant names the users that the frame serves, in the form of the beacon's header. References and data are precoded;
there is one reference symbol for each user served, and so a frame that serves fewer is shorter. The first reference
symbol is sent once more behind the data: what a user's clock has drifted in between, it sees as the angle between the
two, and turns the symbols in between back, evenly. A beacon leaves some tens of hertz: at 20 dB and level "wireless"
the radio chain costs pictures of 128 x 128 pixels 0.05 dB, and 0.8 dB without this.

Every cell is turned by a known phase, which users turn back: reference symbols are the same on all subcarriers, and
would be one peak in time, which converters clip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from .beacon import beacon, read_header
from .frame import COUNTER_BITS, FrameFormat
from .ofdm import demodulate, modulate

MOST_USERS = COUNTER_BITS
"""Users that a grant can name."""

# Over the power of a received cell: a converter that rounds faint noise to nothing leaves silence.
_LEAST_NOISE = 1e-9


class PictureSlots(BaseModel):
    """Lengths of the slots of the picture downlink."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_streams: int = Field(2, ge=1, le=16, description="users served at once, at most; no more than antennas")
    data_symbols: int = Field(
        4, ge=1, le=4096, description="OFDM symbols of the pictures; as many as weights and size of pictures ask for"
    )


@dataclass(frozen=True)
class PictureFrame:
    """A frame of the picture downlink: numerology, slots, the base station's antennas, and who listens.

    Attributes:
        frame_format: numerology.
        slots: lengths.
        n_antennas: of the base station.
        n_users: that listen.
        n_subcarriers: around the carrier, that CSI is told of; as many carry data.

    Raises:
        ValueError: they do not fit together; says what to change.
    """

    frame_format: FrameFormat
    slots: PictureSlots
    n_antennas: int
    n_users: int
    n_subcarriers: int

    def __post_init__(self) -> None:
        fmt, slots = self.frame_format, self.slots
        if not 1 <= self.n_users <= MOST_USERS:
            raise ValueError(f"{self.n_users} users: a grant names 1 to {MOST_USERS}")
        if slots.n_streams > self.n_antennas:
            raise ValueError(
                f"n_streams={slots.n_streams} users at once are more than the base station's n_antennas="
                f"{self.n_antennas}, which cannot tell them apart; serve fewer"
            )
        if slots.n_streams > self.n_users:
            raise ValueError(f"n_streams={slots.n_streams} users at once of {self.n_users} users; serve fewer")
        if self.n_subcarriers % 2 or not 2 <= self.n_subcarriers <= fmt.n_used:
            raise ValueError(f"n_subcarriers={self.n_subcarriers} must be even and at most n_used={fmt.n_used}")
        if fmt.frame_samples < self.used_samples:
            raise ValueError(
                f"frame.frame_samples={fmt.frame_samples} is shorter than its slots, which need {self.used_samples}; "
                "lengthen the frame, or send smaller pictures"
            )

    @property
    def grant_start(self) -> int:
        """First sample (prefix included) of the grant."""
        return self.frame_format.beacon_samples + self.frame_format.guard_samples

    @property
    def grant_samples(self) -> int:
        """Length of the grant: a training symbol and a header."""
        return self.frame_format.beacon_samples - self.frame_format.training_start

    @property
    def reference_start(self) -> int:
        """First sample (prefix included) of the first reference symbol."""
        return self.grant_start + self.grant_samples

    def precoded_symbols(self, n_served: int) -> int:
        """OFDM symbols of references, data and closing reference in a frame that serves so many users."""
        return n_served + self.slots.data_symbols + 1 if n_served else 0

    @property
    def downlink_samples(self) -> int:
        """Samples from the frame start to the end of what the base station may send."""
        return self.reference_start + self.precoded_symbols(self.slots.n_streams) * self.frame_format.symbol_samples

    @property
    def noise_start(self) -> int:
        """First sample of the silence in which users measure noise."""
        return self.downlink_samples + self.frame_format.guard_samples

    @property
    def used_samples(self) -> int:
        """Samples from the frame start to the end of the last slot."""
        return self.noise_start + self.frame_format.noise_symbols * self.frame_format.symbol_samples

    @property
    def subcarriers(self) -> np.ndarray:
        """Subcarriers of references and data, ascending in frequency; int, (n_subcarriers,), from the carrier.

        All around the carrier but itself, where radios leave an offset.
        """
        half = self.n_subcarriers // 2
        return np.concatenate([np.arange(-half, 0), np.arange(1, half + 1)])

    @property
    def bins(self) -> np.ndarray:
        """The same as FFT bins; int, (n_subcarriers,)."""
        return self.subcarriers % self.frame_format.n_fft


def on_data_subcarriers(csi: np.ndarray) -> np.ndarray:
    """CSI of the subcarriers that data lie on, from CSI of those around the carrier with the carrier itself.

    The two sets differ at the carrier and at the upper end, whose CSI is taken from its neighbour.

    Args:
        csi: complex, (..., subcarrier, antenna), on -n/2 to n/2 - 1.

    Returns:
        The same shape, on -n/2 to -1 and 1 to n/2.
    """
    n = csi.shape[-2]
    return csi[..., np.minimum(np.concatenate([np.arange(n // 2), np.arange(n // 2 + 1, n + 1)]), n - 1), :]


def channels_at(frame: PictureFrame, delays_samples: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Channels on the subcarriers of the data.

    Args:
        frame: says which these are.
        delays_samples: float64, (user, path).
        gains: complex64, (user, path, antenna).

    Returns:
        complex64, (user, subcarrier, antenna).
    """
    turns = frame.subcarriers[:, None] / frame.frame_format.n_fft * delays_samples[:, None, :]
    return (np.exp(-2j * np.pi * turns) @ gains).astype(np.complex64)


def grant_number(users: tuple[int, ...]) -> int:
    """The users of a grant as a number: bit u stands for user u.

    Raises:
        ValueError: a user is named twice, or cannot be named.
    """
    if len(set(users)) < len(users) or any(not 0 <= user < MOST_USERS for user in users):
        raise ValueError(f"users={list(users)}: each once, from 0 to {MOST_USERS - 1}")
    return sum(1 << user for user in users)


def granted_users(number: int) -> tuple[int, ...]:
    """Inverse of `grant_number`; ascending. A user's stream is its place in it."""
    return tuple(user for user in range(MOST_USERS) if number >> user & 1)


@lru_cache(maxsize=64)
def _grant(frame: PictureFrame, number: int) -> np.ndarray:
    """Training symbol and header, complex64 (antenna, grant_samples), of unit mean power in all.

    Every antenna sends them under a cyclic delay of its own: a single antenna's channel fades now and then, and with it
    the whole frame would be lost to a user whom the precoded part would have reached.
    """
    fmt = frame.frame_format
    symbols = beacon(fmt, number)[fmt.training_start :].reshape(-1, fmt.symbol_samples)[:, fmt.cp_samples :]
    step = fmt.cp_samples // 2 / frame.n_antennas
    delayed = np.stack([np.roll(symbols, round(step * antenna), axis=1) for antenna in range(frame.n_antennas)])
    part = np.concatenate([delayed[:, :, -fmt.cp_samples :], delayed], axis=2).reshape(frame.n_antennas, -1)
    part /= np.float32(math.sqrt(frame.n_antennas))
    part.setflags(write=False)
    return part


@lru_cache(maxsize=16)
def _scrambling(frame: PictureFrame, n_symbols: int) -> np.ndarray:
    """Phases of the cells, complex64 (n_symbols, n_subcarriers), of unit magnitude."""
    rng = np.random.default_rng([frame.frame_format.sequence_seed, 6])
    phases = np.exp(0.5j * np.pi * rng.integers(0, 4, (n_symbols, frame.n_subcarriers))).astype(np.complex64)
    phases.setflags(write=False)
    return phases


def picture_slot(
    frame: PictureFrame,
    users: tuple[int, ...],
    reference: np.ndarray,
    data: np.ndarray,
    grant_amplitude: float = 1.0,
) -> np.ndarray:
    """What the antennas send from `grant_start` on.

    Cells keep their magnitude: where they have unit mean power over subcarriers, summed over antennas, that is the
    power of a sample over the share of subcarriers in use.

    Args:
        frame: slots and antennas.
        users: served, ascending; none where nothing but an empty grant is sent.
        reference: complex64, (reference symbol, subcarrier, antenna), one symbol for each of these users.
        data: complex64, (OFDM symbol, subcarrier, antenna).
        grant_amplitude: root mean square of the grant, summed over antennas.

    Returns:
        complex64, (antenna, downlink_samples - grant_start).

    Raises:
        ValueError: shapes do not fit.
    """
    fmt, shape = frame.frame_format, (frame.n_subcarriers, frame.n_antennas)
    if len(users) > frame.slots.n_streams or tuple(sorted(users)) != tuple(users):
        raise ValueError(f"users={list(users)}: at most {frame.slots.n_streams}, ascending")
    slot = np.zeros((frame.n_antennas, frame.downlink_samples - frame.grant_start), np.complex64)
    slot[:, : frame.grant_samples] = np.float32(grant_amplitude) * _grant(frame, grant_number(users))
    if not users:
        return slot
    if reference.shape != (len(users), *shape) or data.shape != (frame.slots.data_symbols, *shape):
        raise ValueError(
            f"reference has shape {reference.shape}, data {data.shape}; need {(len(users), *shape)} and "
            f"{(frame.slots.data_symbols, *shape)}"
        )
    cells = np.concatenate([reference, data, reference[:1]])
    cells = cells * _scrambling(frame, len(cells))[:, :, None]
    grid = np.zeros((frame.n_antennas, len(cells), fmt.n_fft), np.complex64)
    grid[:, :, frame.bins] = cells.transpose(2, 0, 1)
    samples = modulate(grid.reshape(-1, fmt.n_fft), fmt.cp_samples).reshape(frame.n_antennas, -1)
    slot[:, frame.grant_samples : frame.grant_samples + samples.shape[1]] = samples
    return slot


@dataclass(frozen=True)
class PictureSlot:
    """What a user makes of a frame, before its decoder.

    Attributes:
        users: served by the frame, ascending; None where the grant could not be read.
        reference: complex64, (reference symbol, subcarrier), scaled to unit mean power.
        data: complex64, (OFDM symbol, subcarrier), on the same scale.
        noise_power: per cell, on the same scale.
        level: mean power of a reference cell as received.
        cfo_hz: carrier offset that was left in the slot, and was removed.
    """

    users: tuple[int, ...] | None
    reference: np.ndarray
    data: np.ndarray
    noise_power: float
    level: float
    cfo_hz: float


def receive_slot(
    samples: np.ndarray,
    frame: PictureFrame,
    fraction_samples: float = 0.0,
    cfo_hz: float = 0.0,
    *,
    follow_drift: bool = True,
) -> PictureSlot:
    """Read the grant, and turn references and data into cells whose phase stands still.

    Args:
        samples: complex, (n,), from `grant_start` on to the end of the noise slot.
        frame: slots.
        fraction_samples: true frame start minus the index that was taken for it.
        cfo_hz: carrier offset of the beacon.
        follow_drift: turn every symbol back by what the clock has drifted, evenly from the first reference to its
            repeat.

    Raises:
        ValueError: too few samples, or some that are not finite.
    """
    fmt = frame.frame_format
    span = frame.used_samples - frame.grant_start
    part = np.asarray(samples)[:span]
    if part.ndim != 1 or len(part) < span:
        raise ValueError(f"samples has shape {np.shape(samples)}; needs ({span},) of one antenna")
    if not np.isfinite(part).all():
        raise ValueError("the slot holds samples that are no numbers")
    silence = demodulate(
        part[None, frame.noise_start - frame.grant_start :], fmt, fmt.noise_symbols, 0.0, 0.0, frame.bins
    )
    noise = float(np.mean(np.abs(silence) ** 2))
    # A header is read behind a training symbol; a synchronisation sequence is not needed again.
    shifted = np.concatenate([np.zeros(fmt.training_start, np.complex64), part[: frame.grant_samples]])
    number = read_header(shifted[None], fmt, fraction_samples, cfo_hz).frame_number
    users = None if number is None else granted_users(number)
    if users is not None and len(users) > frame.slots.n_streams:
        users = None
    if not users:
        nothing = np.empty((0, frame.n_subcarriers), np.complex64)
        return PictureSlot(users, nothing, nothing, noise, 0.0, 0.0)
    n_symbols = frame.precoded_symbols(len(users))
    cells = demodulate(part[None, frame.grant_samples :], fmt, n_symbols, fraction_samples, cfo_hz, frame.bins)[0]
    cells *= _scrambling(frame, n_symbols).conj()
    drift = 0.0
    if follow_drift:
        drift = float(np.angle(np.vdot(cells[0], cells[-1]))) / (n_symbols - 1)
        cells = cells * np.exp(-1j * drift * np.arange(n_symbols)).astype(np.complex64)[:, None]
    level = float(np.mean(np.abs(cells[: len(users)]) ** 2))
    scale = 1 / max(level, float(np.finfo(np.float32).tiny))
    cells = (cells * np.float32(math.sqrt(scale))).astype(np.complex64)
    return PictureSlot(
        users,
        cells[: len(users)],
        cells[len(users) : -1],
        max(noise * scale, _LEAST_NOISE),
        level,
        drift / (2 * math.pi) * fmt.sample_rate_hz / fmt.symbol_samples,
    )

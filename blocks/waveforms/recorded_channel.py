"""A channel that was measured, in the place of one that is drawn: which realisation meets which user in which frame."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from ...models.channels import Paths

_USERS, _LINKS, _FRAMES = range(41, 44)


@dataclass(frozen=True)
class RecordedLinks:
    """Channels as they were estimated, in the units of the recorded samples per unit of the transmitted ones.

    Attributes:
        sample_rate_hz: of the recording.
        first_delay_samples: delay of the first tap, against the frame's arrival rounded to a sample.
        frame_number: int64, (frames,): counter of each frame.
        fraction: float64, (frames,): arrival of each frame minus its rounded value.
        cfo_hz: carrier offset common to all, typical of the recording.
        sampling_offset: relative excess of the transmitters' sampling clock.
        noise_power: float64, (antennas,), per complex sample.
        beacon_taps: complex64, (frames, antennas, delays).
        beacon_power: mean power of the beacon as it was sent.
        link_frame: int64, (links,): index of the frame in which a user was heard.
        link_user: int64, (links,): who.
        link_taps: complex64, (links, antennas, delays).
        link_cfo_hz: float64, (links,): the user's own carrier offset.
        link_error: float64, (links,): expected square error of the taps over their power.
    """

    sample_rate_hz: float
    first_delay_samples: int
    frame_number: np.ndarray
    fraction: np.ndarray
    cfo_hz: float
    sampling_offset: float
    noise_power: np.ndarray
    beacon_taps: np.ndarray
    beacon_power: float
    link_frame: np.ndarray
    link_user: np.ndarray
    link_taps: np.ndarray
    link_cfo_hz: np.ndarray
    link_error: np.ndarray


@dataclass(frozen=True)
class RecordedChannel:
    """Recorded links as the air of new transmissions.

    New users are assigned to recorded ones at random, once for all. In every frame in which a new user sends, it meets
    one of the links of its recorded user, drawn among the frames in which that one was heard. The beacon meets the
    channel of a frame that is drawn likewise. All draws follow from the seed, user and frame.

    Taps are estimates: on average they have less power than the channel. What the error takes away is given back by
    one factor per link, so that the received power is that of the recording.

    Args:
        links: what was recorded.
        n_users: new users.
        frame_samples: distance of the frame starts in the transmitted stream.
        beacon_power: mean power of the beacon as it is sent now; it is received as strong as it was recorded.
        seed: of all draws.
        reuse: let several new users meet the links of the same recorded one, where there are too few.
        mapping: "drawn" as above; "recorded": users and frames of equal number meet again, wherever they were recorded.
        keep_cfo: repeat the carrier offsets of the recording; else there is none.
        keep_timing: repeat sampling offset and the users' timing; else every link's power is centred alike.
        snr_backoff_db: raise the noise by this, 0 or more: nothing is known of higher SNR than was recorded.

    Raises:
        ValueError: too few recorded users, or a value out of range.
    """

    links: RecordedLinks
    n_users: int
    frame_samples: int
    beacon_power: float
    seed: int = 0
    reuse: bool = False
    mapping: Literal["drawn", "recorded"] = "drawn"
    keep_cfo: bool = True
    keep_timing: bool = True
    snr_backoff_db: float = 0.0
    assigned: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.snr_backoff_db < 0:
            raise ValueError(f"snr_backoff_db={self.snr_backoff_db}: 0 or more; recorded noise cannot be taken away")
        recorded = self.recorded_users
        if not recorded.size or (recorded.size < self.n_users and not self.reuse):
            raise ValueError(
                f"n_users={self.n_users}, but the recording has channels of {recorded.size} users; lower n_users, or "
                "allow reuse"
            )
        rng = np.random.default_rng([self.seed, _USERS])
        if self.mapping == "recorded":
            # Who is not in the recording borrows the links of somebody who is.
            assigned = rng.choice(recorded, self.n_users)
            own = recorded[recorded < self.n_users]
            assigned[own] = own
        else:
            rounds = -(-self.n_users // recorded.size)
            assigned = np.concatenate([rng.permutation(recorded) for _ in range(rounds)])[: self.n_users]
        object.__setattr__(self, "assigned", assigned)

    @property
    def n_antennas(self) -> int:
        """Antennas of the recording."""
        return int(self.links.link_taps.shape[1])

    @property
    def recorded_users(self) -> np.ndarray:
        """Users of whom there are links, ascending; int64."""
        return np.unique(self.links.link_user)

    @property
    def noise_power(self) -> float:
        """Per complex sample, on average over the antennas."""
        return float(np.mean(self.links.noise_power)) * 10 ** (self.snr_backoff_db / 10)

    @property
    def cfo_hz(self) -> float:
        """Carrier offset of all transmitters."""
        return self.links.cfo_hz if self.keep_cfo else 0.0

    @property
    def sampling_offset(self) -> float:
        """Relative excess of the transmitters' sampling clock."""
        return self.links.sampling_offset if self.keep_timing else 0.0

    @cached_property
    def chain_gain_db(self) -> np.ndarray:
        """Gain of each chain against their mean, from its noise power; float64, (antennas,)."""
        noise = np.maximum(self.links.noise_power, np.finfo(float).tiny)
        return 10 * np.log10(noise / noise.mean())

    @property
    def earliest_samples(self) -> float:
        """The least delay that a tap may have."""
        return float(self.links.first_delay_samples - 1 + min(self._shifts.min(initial=0.0), 0.0))

    @cached_property
    def beacon_reach_samples(self) -> tuple[float, float]:
        """Least and largest delay of the beacon's taps."""
        least = self.links.first_delay_samples - float(self.links.fraction.max())
        n_delays = self.links.beacon_taps.shape[2]
        return least, self.links.first_delay_samples + n_delays - 1 - float(self.links.fraction.min())

    def link_of(self, user: int, frame: int) -> int:
        """Index of the recorded link that a user meets in a frame."""
        mine = self._links_of[int(self.assigned[user])]
        if self.mapping == "recorded":
            same = mine[self.links.frame_number[self.links.link_frame[mine]] == frame]
            if same.size:
                return int(same[0])
        return int(np.random.default_rng([self.seed, _LINKS, user, frame]).choice(mine))

    def user_paths(self, user: int, frame: int) -> Paths:
        """The channel that a user meets in a frame, without the gains of the chains."""
        link = self.link_of(user, frame)
        restored = 1 / np.sqrt(max(1 - float(self.links.link_error[link]), 0.1))
        late = self._shifts[link] - self.links.fraction[self.links.link_frame[link]]
        return self._paths(self.links.link_taps[link] * restored, late)

    def user_cfo_hz(self, user: int, frame: int) -> float:
        """A user's own carrier offset in a frame."""
        return float(self.links.link_cfo_hz[self.link_of(user, frame)]) if self.keep_cfo else 0.0

    def beacon_paths(self, frame: int) -> Paths:
        """The channel that the beacon meets in a frame, without the gains of the chains."""
        chosen = int(np.random.default_rng([self.seed, _FRAMES, frame]).integers(len(self.links.beacon_taps)))
        if self.mapping == "recorded":
            same = np.flatnonzero(self.links.frame_number == frame)
            chosen = int(same[0]) if same.size else chosen
        scale = np.sqrt(self.links.beacon_power / self.beacon_power)
        return self._paths(self.links.beacon_taps[chosen] * scale, -self.links.fraction[chosen])

    def describe(self) -> dict[str, Any]:
        """The choices made, in plain values, for metrics and reports."""
        return {
            "mapping": self.mapping,
            "recorded_users": int(self.recorded_users.size),
            "recorded_links": len(self.links.link_user),
            "recorded_frames": len(self.links.beacon_taps),
            "users_reused": bool(self.n_users > self.recorded_users.size),
            "cfo": "kept" if self.keep_cfo else "removed",
            "timing": "kept" if self.keep_timing else "removed",
            "noise": "white, at the recorded power of each antenna",
            "snr_backoff_db": self.snr_backoff_db,
            "cell_snr_db": self.cell_snr_db - self.snr_backoff_db,
            "estimation_error_db": 10 * float(np.log10(max(np.mean(self.links.link_error), 1e-12))),
        }

    @cached_property
    def cell_snr_db(self) -> float:
        """Recorded SNR of one user that sends unit power on a subcarrier, on average over links and antennas."""
        taps = self.links.link_taps
        power = np.sum(np.abs(taps) ** 2, axis=2) / np.maximum(1 - self.links.link_error, 0.1)[:, None]
        return 10 * float(np.log10(np.mean(power / np.maximum(self.links.noise_power, np.finfo(float).tiny))))

    @cached_property
    def _links_of(self) -> dict[int, np.ndarray]:
        return {int(user): np.flatnonzero(self.links.link_user == user) for user in self.recorded_users}

    @cached_property
    def _shifts(self) -> np.ndarray:
        """Samples by which each link is moved when timing is not kept; float64, (links,)."""
        if self.keep_timing:
            return np.zeros(len(self.links.link_user))
        powers = np.sum(np.abs(self.links.link_taps) ** 2, axis=1)
        centres = powers @ np.arange(powers.shape[1]) / np.maximum(powers.sum(axis=1), 1e-300)
        centres = centres - self.links.fraction[self.links.link_frame]
        return centres.mean() - centres

    def _paths(self, taps: np.ndarray, late_samples: float) -> Paths:
        delays = np.arange(taps.shape[1]) + self.links.first_delay_samples + late_samples
        gains = (taps / 10 ** (self.chain_gain_db / 20)[:, None]).T.astype(np.complex128)
        return Paths(delays / self.links.sample_rate_hz, gains, np.zeros(len(delays)))

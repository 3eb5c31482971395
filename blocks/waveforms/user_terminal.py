"""What a user terminal works out: where the base station's frames stand on its clock, and what its users send."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from .access import access_mix
from .frame import FrameFormat

# Those that the growing memory has after 80 frames: crystals change more slowly.
_LEAST_TIMING_GAIN, _LEAST_PERIOD_GAIN, _LEAST_CFO_GAIN = 0.05, 0.001, 0.1


def draw_active(n_users: int, activity: float, seed: int, frame: int) -> np.ndarray:
    """Users active in a frame: each on its own with probability `activity`.

    Keyed by seed and frame, so that the draw does not depend on what was drawn before, nor on who draws.

    Returns:
        int, ascending user numbers.
    """
    rng = np.random.default_rng([seed, 11, frame])
    return np.flatnonzero(rng.random(n_users) < activity)


class BeaconTracker:
    """Follows the beacons of a base station on a terminal's clock, and tells where later frames will begin.

    A growing-memory filter of second order, which becomes an alpha-beta filter: it knows the place of the last frame
    and the distance of frames, which a sampling offset makes longer or shorter.

    Source: E. Brookner, Tracking and Kalman Filtering Made Easy, Wiley 1998, sections 1.2 and 7.4 (weights of the
    growing-memory filter: 2 (2n + 1) / ((n + 1)(n + 2)) and 6 / ((n + 1)(n + 2))).

    Args:
        frame_samples: nominal distance of frames.
        slack_samples: how far from where it is due a frame may stand; beyond, the frames jumped.
        settle_frames: heard in a row before the tracker says that it is settled.
        lost_frames: missing in a row, after which the beacon counts as lost.
    """

    def __init__(self, frame_samples: int, slack_samples: float, settle_frames: int = 8, lost_frames: int = 8) -> None:
        if settle_frames < 2 or lost_frames < 1:
            raise ValueError(
                f"settle_frames={settle_frames} must be at least 2 and lost_frames={lost_frames} at least 1"
            )
        self.frame_samples = frame_samples
        self.slack_samples = slack_samples
        self.settle_frames = settle_frames
        self.lost_frames = lost_frames
        self.frame = -1
        """The last frame that was heard."""
        self.cfo_hz = 0.0
        """Smoothed carrier offset."""
        self._heard = 0
        self._place = 0.0
        self._period = float(frame_samples)

    @property
    def settled(self) -> bool:
        """Whether enough frames were heard in a row to predict others."""
        return self._heard >= self.settle_frames

    @property
    def period_samples(self) -> float:
        """Distance of frames on the terminal's clock."""
        return self._period

    def place(self, frame: int) -> float:
        """Where a frame begins, or will, in samples of the terminal's clock."""
        return self._place + (frame - self.frame) * self._period

    def forget(self) -> None:
        """Begin anew with the next beacon."""
        self._heard = 0
        self._period = float(self.frame_samples)

    def hear(self, frame: int, place: float, cfo_hz: float) -> Literal["first", "heard", "lost", "jumped"]:
        """Take a beacon.

        Args:
            frame: its number.
            place: of the frame's begin on the terminal's clock, in samples.
            cfo_hz: its carrier offset.

        Returns:
            "heard"; or why everything begins anew with it: it is the "first"; too many before it were "lost"; it
            "jumped", standing where no frame was due.
        """
        steps = frame - self.frame
        why: Literal["first", "heard", "lost", "jumped"] = "heard"
        if not self._heard:
            why = "first"
        elif steps <= 0 or abs(place - self.place(frame)) > self.slack_samples:
            why = "jumped"
        elif steps > self.lost_frames:
            why = "lost"
        if why != "heard":
            self.forget()
            self.frame, self._place, self.cfo_hz, self._heard = frame, place, cfo_hz, 1
            return why
        n = self._heard
        weight = (n + 1) * (n + 2)
        timing_gain = max(2 * (2 * n + 1) / weight, _LEAST_TIMING_GAIN)
        # The distance of frames is known beforehand to a few millionths, which two places do not tell.
        period_gain = max(6 / weight, _LEAST_PERIOD_GAIN) if n >= 4 else 0.0
        expected = self.place(frame)
        error = place - expected
        self._place = expected + timing_gain * error
        self._period += period_gain * error / steps
        self.cfo_hz += max(1 / (n + 1), _LEAST_CFO_GAIN) * (cfo_hz - self.cfo_hz)
        self.frame = frame
        self._heard += 1
        return "heard"


class TerminalUsers:
    """The users that one terminal stands for, and the samples that they send together.

    Args:
        frame_format: numerology and slots.
        preambles: complex64, (max_preamble_length, users), of all users of the link.
        users: numbers of those that this terminal stands for.
        activity: probability that a user is active in a frame.
        preamble_lengths: length sent in frame f is preamble_lengths[f % len(preamble_lengths)].
        seed: of the activity, as the base station's, and of the fading.
        quiet_frames: frames at the beginning in which nobody sends.
        fading: "rayleigh" gives each user a complex Gaussian gain of its own, of mean power 1, per frame and group of
            subcarriers, before the one channel that all users of a terminal share.
    """

    def __init__(
        self,
        frame_format: FrameFormat,
        preambles: np.ndarray,
        users: Sequence[int],
        *,
        activity: float,
        preamble_lengths: Sequence[int],
        seed: int,
        quiet_frames: int = 0,
        fading: Literal["none", "rayleigh"] = "none",
    ) -> None:
        n_users = preambles.shape[1]
        wrong = [user for user in users if not 0 <= user < n_users]
        if wrong or len(set(users)) != len(users):
            raise ValueError(f"users={list(users)}: there are users 0 to {n_users - 1}, each to be given once")
        for length in preamble_lengths:
            frame_format.symbols_of_length(length)
        self.frame_format = frame_format
        self.preambles = preambles
        self.users = np.asarray(sorted(users), int)
        self.activity = activity
        self.preamble_lengths = tuple(preamble_lengths)
        self.seed = seed
        self.quiet_frames = quiet_frames
        self.fading = fading

    def length(self, frame: int) -> int:
        """Preamble symbols sent in a frame."""
        return self.preamble_lengths[frame % len(self.preamble_lengths)]

    def active(self, frame: int) -> np.ndarray:
        """Those of this terminal's users that send in a frame; int, ascending."""
        if frame < self.quiet_frames:
            return np.empty(0, int)
        drawn = draw_active(self.preambles.shape[1], self.activity, self.seed, frame)
        return np.intersect1d(drawn, self.users)

    def samples(self, frame: int, cfo_hz: float = 0.0, amplitude: float = 1.0) -> np.ndarray | None:
        """What the terminal sends from `access_start` of a frame on.

        Args:
            frame: its number.
            cfo_hz: the base station's carrier minus the terminal's; turned by as much, the users arrive at the base
                station's carrier.
            amplitude: of a user's cell.

        Returns:
            complex64, (samples,); None where none of its users is active.
        """
        active = self.active(frame)
        if not len(active):
            return None
        fmt, length = self.frame_format, self.length(frame)
        gains = np.full((len(active), fmt.n_groups), amplitude, complex)
        if self.fading == "rayleigh":
            # One draw for all users of the link: a user's gains do not depend on which terminal it is at.
            rng = np.random.default_rng([self.seed, 12, frame])
            drawn = rng.standard_normal((self.preambles.shape[1], fmt.n_groups, 2)) @ np.array([1, 1j]) / np.sqrt(2)
            gains *= drawn[active]
        mixed = access_mix(fmt, self.preambles[:length, active], gains)
        if cfo_hz:
            turns = cfo_hz / fmt.sample_rate_hz * np.arange(len(mixed))
            mixed = (mixed * np.exp(2j * np.pi * turns)).astype(np.complex64)
        return mixed

"""Whom the base station serves with which pictures, and what it knows of their channels.

The picture downlink asks a function, `serve(frame) -> Served`, for each frame in order; see
`blocks.picture_transmitter.Served`. `every_user` makes the one that serves all users in turn, with the CSI that a
scenario names; other experiments give one of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..blocks.picture_transmitter import Serve, Served
from ..blocks.waveforms.sounding import from_delay_angle, to_delay_angle
from ..errors import ScenarioError
from .radios import csi_drops
from .scenario import Scenario

if TYPE_CHECKING:
    from ..models.csi.codec import Codec

Known = Callable[[int], tuple[np.ndarray, float]]
"""By the number of a frame: CSI of all users as the base station has it, complex64 (user, subcarrier, antenna), and the
error in dB that it reckons with."""

_PERFECT_DB = -40.0
_CSI_NOISE, _DRAWN = 81, 82
_DRAWN_SIDE = 160
_MOST_PICTURES = 10_000


class Pictures(Protocol):
    """Pictures by number, as often as asked.

    Attributes:
        name: for people.
        skipped: files that could not be read, with the reason.
    """

    name: str
    skipped: dict[str, str]

    def __getitem__(self, number: int) -> np.ndarray:
        """uint8, (row, column, 3)."""


class DrawnPictures:
    """Pictures that need no files, each drawn from seed and number.

    Args:
        side: in pixels.
        seed: at least 0.
    """

    def __init__(self, side: int, seed: int) -> None:
        self.name = "drawn"
        self.skipped: dict[str, str] = {}
        self.side, self.seed = side, seed

    def __getitem__(self, number: int) -> np.ndarray:
        """See `Pictures`."""
        from ..models.semantic.images import draw, prepare

        rng = np.random.default_rng([self.seed, _DRAWN, number])
        return prepare(draw(_DRAWN_SIDE, rng), (self.side, self.side))


class GivenPictures:
    """Pictures of files, one after the other, and again from the first; see `Pictures`."""

    def __init__(self, name: str, pictures: Sequence[np.ndarray], skipped: dict[str, str]) -> None:
        self.name, self.skipped = name, skipped
        self._pictures = list(pictures)

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, number: int) -> np.ndarray:
        """See `Pictures`."""
        return self._pictures[number % len(self._pictures)]


def read_pictures(places: Sequence[Path], side: int, most: int | None = None) -> GivenPictures:
    """Read pictures, cut to squares.

    Args:
        places: pictures, folders of them, .zip or .tar archives; of folders and archives, files that cannot be read
            are skipped and told of.
        side: in pixels.
        most: pictures are wanted, more are not read; None: 10 000.

    Raises:
        ScenarioError: there is nothing at a place, a picture that is named cannot be read, or none can.
    """
    from ..models.semantic.images import ENDINGS, picture_files, prepare

    most = _MOST_PICTURES if most is None else most
    found: list[np.ndarray] = []
    skipped: dict[str, str] = {}
    for place in places:
        if place.is_file() and place.suffix.lower() in ENDINGS:
            found.append(prepare(place, (side, side)))
            continue
        if not place.exists():
            raise ScenarioError(f"there is no picture, folder or archive {place}; give one that exists")
        before = len(found)
        for name, data in picture_files(place):
            if len(found) >= most:
                break
            try:
                found.append(prepare(data, (side, side), name))
            except ScenarioError as error:
                skipped[f"{place.name}/{name}"] = str(error)
        if len(found) == before and len(found) < most:
            why = f"; none of {len(skipped)} files can be read: {next(iter(skipped.values()))}" if skipped else ""
            raise ScenarioError(f"{place} holds no pictures ({', '.join(ENDINGS)}){why}; give others")
    return GivenPictures(", ".join(place.name for place in places), found[:most], skipped)


def every_user(scenario: Scenario, pictures: Pictures, known: Known) -> Serve:
    """Serve all users in turn, as many at once as there are streams, each frame with pictures of its own."""
    frame = scenario.picture_frame
    n = frame.slots.n_streams

    def serve(number: int) -> Served:
        users = tuple(sorted((number * n + place) % frame.n_users for place in range(n)))
        csi, nmse_db = known(number)
        chosen = np.stack([pictures[number * n + place] for place in range(n)])
        return Served(users, chosen, csi[list(users)], nmse_db)

    return serve


def known_csi(scenario: Scenario, codec: Codec | None = None) -> Known:
    """What the base station knows of the users' channels, as the scenario says.

    Args:
        scenario: with a section `pictures`.
        codec: of the CSI feedback; needed where CSI is fed back.

    Raises:
        ScenarioError: CSI is fed back, and its codec's card does not fit.
    """
    wanted, told = scenario.pictures, scenario.csi
    assert wanted is not None and told is not None
    drops = csi_drops(scenario)

    def perfect(number: int) -> tuple[np.ndarray, float]:
        return drops(number).h, _PERFECT_DB

    def estimated(number: int) -> tuple[np.ndarray, float]:
        h = drops(number).h
        nmse = 10 ** (min(wanted.nmse_db, -0.1) / 10)
        rng = np.random.default_rng([scenario.seed, _CSI_NOISE, number])
        # As an MMSE estimator has it: its error is independent of the estimate.
        noise = rng.standard_normal((*h.shape, 2)) @ np.array([1, 1j]) * np.sqrt(nmse / (1 - nmse) / 2)
        return ((h + noise) * (1 - nmse)).astype(np.complex64), wanted.nmse_db

    def fed_back(number: int) -> tuple[np.ndarray, float]:
        assert codec is not None
        h = drops(number).h
        rng = np.random.default_rng([scenario.seed, _CSI_NOISE, number])
        csi = to_delay_angle(h, told.n_taps).astype(np.complex64)
        words = np.stack([codec.encode(one, told.feedback_length, told.snr_db) for one in csi])
        noise = rng.standard_normal((*words.shape, 2)) @ np.array([1, 1j]) * np.sqrt(10 ** (-told.snr_db / 10) / 2)
        found, _ = codec.decode((words + noise).astype(np.complex64), told.snr_db, told.snr_db)
        return from_delay_angle(found, told.n_subcarriers).astype(np.complex64), expected_db

    if wanted.csi == "perfect":
        return perfect
    if wanted.csi == "estimated":
        return estimated
    from ..models.semantic.downlink import expected_nmse_db

    expected_db = expected_nmse_db(told.model, told.feedback_length, told.snr_db)
    return fed_back

"""What a run of the picture downlink measured: pictures against those sent and at symbol level, SINR, latencies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from ..blocks.picture_transmitter import Served
from ..blocks.waveforms.picture_frame import on_data_subcarriers
from ..blocks.waveforms.sounding import aligned
from ..models.statistics import mean_ci95
from .metrics import latencies, percentiles, spread
from .runfolder import RunFolder
from .scenario import Scenario

if TYPE_CHECKING:
    from ..models.semantic.codec import PictureCodec

SENT = "sent.npy"
"""Table of the pictures sent; one row per frame and user served."""
CHANNELS = "channels.npy"
"""Table of true CSI on the data's subcarriers, of known CSI on those that CSI is told of, and of the error of that; one
row per frame and user served."""
JUDGED = "judged.npy"
"""Table of the quality of what users received; one row per picture received."""
SKIPPED = "skipped.npy"
"""Table of frames that a user heard and that brought it no picture."""
REASONS = ("not served", "grant not read", "samples were lost inside the slot")

JUDGED_DTYPE = np.dtype(
    [
        ("frame", "<i8"),
        ("user", "<i4"),
        ("psnr_db", "<f8"),
        ("ms_ssim", "<f8"),
        ("sinr_db", "<f8"),
        ("true_sinr_db", "<f8"),
        ("csi_nmse_db", "<f8"),
        ("symbol_psnr_db", "<f8"),
        ("symbol_ms_ssim", "<f8"),
    ]
)
"""`symbol_`: the same picture over the same channel without radio and synchronisation."""

SKIPPED_DTYPE = np.dtype([("frame", "<i8"), ("user", "<i4"), ("sample_time", "<i8"), ("reason", "u1")])
"""One row per frame that a user heard and that brought it nothing; `reason` is a place in `REASONS`."""

_SYMBOL_NOISE = 83


class Quality(NamedTuple):
    """How like what was sent a picture is."""

    psnr_db: float
    ms_ssim: float


class SymbolLevel(NamedTuple):
    """What users would have received without radio and synchronisation.

    Attributes:
        pictures: uint8, (user, row, column, 3), of the users served.
        sinr_db: float64, (user,): true SINR, mean over subcarriers of the ratio in dB.
    """

    pictures: np.ndarray
    sinr_db: np.ndarray


class Transceiver(Protocol):
    """Both ends of a picture code."""

    def transmit(
        self, pictures: np.ndarray, csi: np.ndarray, csi_nmse_db: float, snr_db: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `models.semantic.codec.PictureCodec`."""

    def receive(
        self, reference: np.ndarray, data: np.ndarray, noise_power: float, user: int, size: tuple[int, int]
    ) -> tuple[np.ndarray, float]:
        """See `models.semantic.codec.PictureCodec`."""


def quality(sent: np.ndarray, found: np.ndarray) -> Quality:
    """Compare two pictures, uint8 (row, column, 3)."""
    from ..models.semantic.metrics import compare

    return Quality(*compare(sent, found))


def at_symbol_level(
    codec: Transceiver, served: Served, h: np.ndarray, snr_db: float, rng: np.random.Generator
) -> SymbolLevel:
    """Send a frame's pictures over their channels as symbols, with white noise.

    Args:
        codec: of base station and users.
        served: whom, with what; at least one user.
        h: complex64, (user, subcarrier, antenna): true channels of these users on the data's subcarriers.
        snr_db: transmit power over noise power, which users know.
        rng: of the noise.
    """
    reference, data = codec.transmit(served.pictures, on_data_subcarriers(served.csi), served.csi_nmse_db, snr_db)
    noise = 10 ** (-snr_db / 10)
    n = len(served.users)
    # Reference symbols are precoders times a matrix of phases whose rows are orthogonal.
    phases = np.exp(2j * np.pi / n * np.outer(np.arange(n), np.arange(n))) / n
    pictures, sinr_db = [], []
    for place in range(n):
        heard = []
        for part in (reference, data):
            clean = np.einsum("sa,qsa->qs", h[place], part)
            white = rng.standard_normal((*clean.shape, 2)) @ np.array([1, 1j]) * np.sqrt(noise / 2)
            heard.append((clean + white).astype(np.complex64))
        streams = np.abs(phases @ np.einsum("sa,qsa->qs", h[place], reference)) ** 2
        ratio = streams[place] / (streams.sum(axis=0) - streams[place] + noise)
        sinr_db.append(float(np.mean(10 * np.log10(np.clip(ratio, 1e-4, 1e6)))))
        rows, columns = served.pictures.shape[1:3]
        picture, _ = codec.receive(heard[0], heard[1], noise, place, (rows, columns))
        pictures.append(picture)
    return SymbolLevel(np.stack(pictures), np.array(sinr_db))


def csi_nmse_db(h: np.ndarray, known: np.ndarray) -> float:
    """Error of known CSI against the truth, in the timing, phase and amplitude that fit best: a precoder does not mind
    them.

    Args:
        h: complex64, (subcarrier, antenna), subcarriers side by side: the truth.
        known: complex64, of the same shape.

    Returns:
        0 dB where nothing is known.
    """
    energy = float(np.sum(np.abs(h) ** 2) * np.sum(np.abs(known) ** 2))
    if not energy > 0:
        return 0.0
    moved, _ = aligned(h, known)
    return float(10 * np.log10(max(1 - abs(np.vdot(moved, known)) ** 2 / energy, 1e-4)))


def judge_pictures(
    folder: RunFolder, decisions: np.ndarray, scenario: Scenario, codec: PictureCodec | None
) -> np.ndarray:
    """Judge the pictures that users received.

    Args:
        folder: of a live run, which knows what was sent.
        decisions: rows of pictures received, live or in a replay.
        scenario: of it.
        codec: sends the very same pictures over the very same channels at symbol level, for comparison; None: by the
            figures of the live run, where it has them.

    Returns:
        Rows of `JUDGED_DTYPE`, by frame and user.
    """
    wanted = scenario.pictures
    assert wanted is not None
    truth = folder.rows(folder.truth)
    sent, channels = folder.rows(folder.path / SENT), folder.rows(folder.path / CHANNELS)
    places: dict[int, list[int]] = {}
    for k, row in enumerate(sent):
        places.setdefault(int(row["frame"]), []).append(k)
    known: dict[tuple[int, int], np.void] = {}
    if codec is None and (folder.path / JUDGED).is_file():
        known = {(int(row["frame"]), int(row["user"])): row for row in folder.rows(folder.path / JUDGED)}
    reckoned = dict(zip(truth["frame"].tolist(), truth["csi_nmse_db"].tolist(), strict=True))
    received: dict[int, list[np.void]] = {}
    for row in decisions:
        received.setdefault(int(row["frame"]), []).append(row)
    judged = []
    for frame in sorted(received):
        at = places.get(frame, [])
        users = [int(sent["user"][k]) for k in at]
        level = None
        if codec is not None and at:
            served = Served(tuple(users), sent["picture"][at], channels["known"][at], reckoned[frame])
            rng = np.random.default_rng([scenario.seed, _SYMBOL_NOISE, frame])
            level = at_symbol_level(codec, served, channels["h"][at], wanted.snr_db, rng)
        for row in sorted(received[frame], key=lambda row: int(row["user"])):
            if int(row["user"]) not in users:
                # A grant that was read wrong.
                continue
            place = users.index(int(row["user"]))
            found = np.zeros((), JUDGED_DTYPE)
            found["frame"], found["user"], found["sinr_db"] = frame, row["user"], row["sinr_db"]
            found["psnr_db"], found["ms_ssim"] = quality(sent["picture"][at[place]], row["picture"])
            found["csi_nmse_db"] = channels["nmse_db"][at[place]]
            before = known.get((frame, int(row["user"])))
            for name in ("true_sinr_db", "symbol_psnr_db", "symbol_ms_ssim"):
                found[name] = np.nan if before is None else before[name]
            if level is not None:
                found["true_sinr_db"] = level.sinr_db[place]
                found["symbol_psnr_db"], found["symbol_ms_ssim"] = quality(
                    sent["picture"][at[place]], level.pictures[place]
                )
            judged.append(found)
    return np.array(judged, JUDGED_DTYPE)


def semantic_metrics(
    folder: RunFolder, scenario: Scenario, counts: dict[str, Any], *, truth_folder: RunFolder | None = None
) -> dict[str, Any]:
    """Compute metrics.json of a run or replay from its tables.

    Args:
        folder: holds the decisions.
        scenario: of the run.
        counts: what the blocks counted.
        truth_folder: holds what was sent, and how it was judged; None: the same folder.

    Returns:
        Plain values.
    """
    source = truth_folder or folder
    decisions = folder.rows(folder.decisions)
    metrics: dict[str, Any] = {
        "kind": "semantic-downlink",
        "counts": counts,
        "latency_ms": latencies(decisions),
        "flagged": {},
    }
    if not source.truth.is_file():
        return metrics
    truth, sent = source.rows(source.truth), source.rows(source.path / SENT)
    if len(truth):
        metrics["latency_ms"]["transmit"] = percentiles(truth["transmit_s"] * 1e3)
    # What was still on its way when a run was interrupted is not missed.
    last = last_whole_frame(sent, decisions) if counts.get("interrupted") else truth["frame"].max(initial=-1)
    places = {(int(row["frame"]), int(row["user"])) for row in sent}
    due = {place for place in places if place[0] <= last}
    got = [(int(row["frame"]), int(row["user"])) for row in decisions]
    skipped = folder.rows(folder.path / SKIPPED) if (folder.path / SKIPPED).is_file() else np.empty(0, SKIPPED_DTYPE)
    metrics["frames"] = {
        "sent": len(truth),
        "empty": int(np.count_nonzero(truth["length"] == 0)),
        "counted_on": int(np.count_nonzero(decisions["counted"])),
    }
    metrics["pictures"] = {
        "sent": len(sent),
        "decided": len(decisions),
        "missed": len(due - set(got)),
        "false": sum(place not in places for place in got),
        "grants_not_read": int(np.count_nonzero(skipped["reason"] == REASONS.index("grant not read"))),
        "dropped": int(np.count_nonzero(skipped["reason"] == len(REASONS) - 1)),
    }
    metrics["synchronisation"] = _synchronisation(decisions, truth, source)
    judged_path = folder.path / JUDGED
    judged = folder.rows(judged_path) if judged_path.is_file() else judge_pictures(source, decisions, scenario, None)
    if len(judged):
        metrics["quality"] = quality_figures(judged)
    return metrics


def last_whole_frame(sent: np.ndarray, decisions: np.ndarray) -> int:
    """The last frame of an interrupted run up to which no picture was on its way; -1: none.

    Every user decides for itself: one may be ahead of another.

    Args:
        sent: with fields `frame` and `user`, one row per picture.
        decisions: the same of pictures received.
    """
    last = int(decisions["frame"].max(initial=-1))
    for user in np.unique(sent["user"]):
        own = sent["frame"][sent["user"] == user]
        done = decisions["frame"][decisions["user"] == user].max(initial=-1)
        last = min(last, int(own[own > done].min(initial=last + 1)) - 1)
    return last


def quality_figures(judged: np.ndarray) -> dict[str, Any]:
    """Means over frames, with 95 % intervals, of rows of `JUDGED_DTYPE`: [mean, low, high].

    Users of a frame have channels in common and count as one sample.
    """

    def over_frames(values: np.ndarray) -> list[float | None]:
        _, at = np.unique(judged["frame"], return_inverse=True)
        means = np.bincount(at, values) / np.bincount(at)
        return [float(x) if np.isfinite(x) else None for x in mean_ci95(means)]

    figures: dict[str, Any] = {
        "pictures": len(judged),
        "psnr_db": over_frames(judged["psnr_db"]),
        "ms_ssim": over_frames(judged["ms_ssim"]),
        "sinr_db": spread(judged["sinr_db"]),
        "csi_nmse_db": spread(judged["csi_nmse_db"]),
        "psnr_db_by_user": {
            str(user): float(judged["psnr_db"][judged["user"] == user].mean()) for user in np.unique(judged["user"])
        },
    }
    if np.isfinite(judged["symbol_psnr_db"]).all():
        figures["symbol_psnr_db"] = over_frames(judged["symbol_psnr_db"])
        figures["symbol_ms_ssim"] = over_frames(judged["symbol_ms_ssim"])
        figures["chain_loss_db"] = over_frames(judged["symbol_psnr_db"] - judged["psnr_db"])
        figures["true_sinr_db"] = spread(judged["true_sinr_db"])
    return figures


def _synchronisation(decisions: np.ndarray, truth: np.ndarray, source: RunFolder) -> dict[str, Any]:
    """Estimates of the users' timing and carrier offset against truth."""
    radio = source.read_json(source.run_json)["radio"]
    known = radio.get("users_truth")
    places = {int(frame): k for k, frame in enumerate(truth["frame"])}
    rows = decisions[[int(frame) in places for frame in decisions["frame"]]]
    if not len(rows):
        return {}
    result: dict[str, Any] = {"beacon_snr_db": spread(rows["snr_db"]), "drift_hz": spread(rows["drift_hz"])}
    if known:
        users = rows["user"]
        arrival = truth["arrival"][[places[int(frame)] for frame in rows["frame"]], users]
        cfo_hz = np.array(known["cfo_hz"])[users]
        noise = known["noise_power"] * known["gain"] ** 2
        result |= {
            "timing_error_samples": spread(rows["sample_time"] + rows["fraction"] - arrival),
            "cfo_error_hz": spread(rows["cfo_hz"] - cfo_hz),
            "cfo_error_behind_drift_hz": spread(rows["cfo_hz"] + rows["drift_hz"] - cfo_hz),
            "cfo_true_hz": float(np.mean(cfo_hz)),
            "noise_power_estimated_over_true": spread(rows["noise_power"] * rows["level"] / noise),
        }
    return result

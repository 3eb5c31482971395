"""What semantic precoding claims at symbol level: pictures beside other schemes on the same frames, parts, latency.

Pictures and the weights of LPIPS are those of the folder that SEMAIR_DATA names (`images`, `lpips`), or that lies
beside the source folder; where there is none, pictures are drawn and LPIPS is left out.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...models.semantic.codec import PictureCodec
from ...models.semantic.downlink import DownlinkConfig
from ...models.semantic.evaluate import WMMSE, Condition, Contender, Evaluation, Row, load_contender, part_latencies
from ...models.semantic.images import Collection
from ...models.semantic.metrics import LPIPS_NAME, Lpips
from ...models.semantic.train import shipped
from ...models.statistics import mean_ci95
from . import _running
from .entry import Entry, Measurement, OnShare, machine

AREA = "semantic"

OURS = "lab"
CODER = "lab-swin-rzf"
ADJSCC = "lab-adjscc"
ABLATIONS = ("lab-no-data", "lab-no-knowledge", "lab-no-fusion")
SNR_DB = (-5.0, 0.0, 5.0, 10.0, 15.0, 20.0)
DIGITAL_SNR_DB = (-5.0, 0.0, 5.0, 10.0)
CSI: tuple[Literal["perfect", "fed back"], ...] = ("perfect", "fed back")
ENGINE = "onnxruntime"
PARTS = ("transmit", "encoder", "receive", "decoder")
_TARGETS = {"transmit": "precoder below 10", "encoder": "", "receive": "below 20", "decoder": "below 20"}


def measurements(quick: bool) -> list[Measurement]:
    """All measurements of this area, as far as the weights are there; `quick` takes fewer drops and conditions."""
    there = shipped()
    if OURS not in there:
        return []
    n = 16 if quick else 200
    snrs = (0.0, 10.0) if quick else SNR_DB
    kinds = CSI[:1] if quick else CSI
    qualities = ("lpips", "ms_ssim") if _lpips_folder() else ("ms_ssim",)
    found = []
    if ADJSCC in there:
        names = [_name("over-adjscc", csi, snr, quality) for csi in kinds for snr in snrs for quality in qualities]
        run = partial(over, "over-adjscc", (ADJSCC,), kinds, snrs, n, 1)
        found.append(Measurement(tuple(names), run, n / 16 * len(names)))
    if importlib.util.find_spec("pillow_heif") and importlib.util.find_spec("gnuradio"):
        digital = (10.0,) if quick else DIGITAL_SNR_DB
        names = [_name("over-hevc-best", "perfect", snr, quality) for snr in digital for quality in qualities]
        found.append(Measurement(tuple(names), partial(over_digital, digital, n, 1), n / 4 * len(names)))
    peers = [name for name in (CODER, CODER + WMMSE, *ABLATIONS) if name.removesuffix(WMMSE) in there]
    if peers:
        at = (0.0,)
        names = [
            _name(f"over-{peer.removeprefix('lab-')}", csi, snr, quality)
            for csi in kinds
            for snr in at
            for peer in peers
            for quality in qualities
        ]
        run = partial(over, "over-{peer}", tuple(peers), kinds, at, n, 1)
        found.append(Measurement(tuple(names), run, n / 16 * len(names)))
    names = [f"lab/latency/{part}/{label}" for part in PARTS for label in ("median", "p99")]
    found.append(Measurement(tuple(names), partial(latency, 100 if quick else 1000), 5.0))
    return found


def over(
    label: str,
    peers: Sequence[str],
    kinds: Sequence[Literal["perfect", "fed back"]],
    snrs: Sequence[float],
    n_drops: int,
    seed: int,
    tell: OnShare,
) -> Iterator[Entry]:
    """Quality of ours less that of other networks, drop by drop.

    Args:
        label: of the entries; `{peer}` stands for the peer's name.
        peers: names of weights.
        kinds: of CSI.
        snrs: in dB.
        n_drops: of each condition.
        seed: of drops and noise.
        tell: told the share done.
    """
    evaluation = _evaluation([load_contender(name)[1] for name in (OURS, *peers)], n_drops, seed)
    conditions = [Condition(snr_db=snr, csi=csi) for csi in kinds for snr in snrs]
    for k, condition in enumerate(conditions):
        ours, *others = evaluation.rows(condition, lambda share, k=k: tell((k + share) / len(conditions)))  # type: ignore[misc]
        for peer, row in zip(peers, others, strict=True):
            yield from _differences(label.format(peer=peer.removeprefix("lab-")), ours, row, seed, evaluation)


def over_digital(snrs: Sequence[float], n_drops: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """Quality of ours less that of HEVC, LDPC and QAM at the best of a grid of rates for every SNR, drop by drop.

    Args:
        snrs: in dB.
        n_drops: of each.
        seed: of drops and noise.
        tell: told the share done.
    """
    from ..semantic_digital import BestOfGrid

    evaluation = _evaluation([load_contender(OURS)[1], BestOfGrid()], n_drops, seed)
    for k, snr in enumerate(snrs):
        ours, row = evaluation.rows(Condition(snr_db=snr), lambda share, k=k: tell((k + share) / len(snrs)))  # type: ignore[misc]
        yield from _differences("over-hevc-best", ours, row, seed, evaluation)


def latency(n_runs: int, tell: OnShare) -> Iterator[Entry]:
    """Time of one frame of 64 x 64 pixels for two users, one core: the whole transmitter, its encoder of both pictures,
    one user's whole receiver, its decoder.

    Args:
        n_runs: timed.
        tell: told the share done.
    """
    codec = PictureCodec(OURS, engine=ENGINE)
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)

    def noise(*shape: int) -> Any:
        return (rng.standard_normal((*shape, 2)) @ np.array([1, 1j])).astype(np.complex64)

    antennas, subcarriers = codec.size
    csi, references = noise(2, subcarriers, antennas), noise(2, subcarriers)
    data = noise(codec.n_symbols(64, 64), subcarriers)
    runs = {
        "transmit": lambda: codec.transmit(pictures, csi, -20.0, 10.0),
        "receive": lambda: codec.receive(references, data, 0.1, 0, (64, 64)),
    }
    settings = {"runs": n_runs, "users": 2, "pixels": 64, "engine": ENGINE, "machine": machine()}
    for k, part in enumerate(PARTS):
        if part in runs:
            times = _timed(runs[part], n_runs)
        else:
            times = part_latencies(OURS, "encoder" if part == "encoder" else "decoder", n_runs, ENGINE)
        for label, share in (("median", 0.5), ("p99", 0.99)):
            value, low, high = _running.quantile_ci95(1e3 * times, share)
            yield Entry(f"lab/latency/{part}/{label}", value, (low, high), "ms", _TARGETS[part], settings)
        tell((k + 1) / len(PARTS))


def _timed(run: Any, n_runs: int) -> Any:
    for _ in range(5):
        run()
    times = np.empty(n_runs)
    for k in range(n_runs):
        begin = time.perf_counter()
        run()
        times[k] = time.perf_counter() - begin
    return times


def _name(label: str, csi: str, snr_db: float, quality: str) -> str:
    return f"lab/{label}/{csi.replace(' ', '-')}/{snr_db:g}dB/{quality.replace('_', '-')}"


def _differences(label: str, ours: Row, peer: Row, seed: int, evaluation: Evaluation) -> Iterator[Entry]:
    condition = ours.condition
    for quality in ("lpips", "ms_ssim"):
        if quality not in ours.values:
            continue
        value, low, high = mean_ci95(ours.values[quality] - peer.values[quality])
        settings = {
            **vars(condition),
            "ours": ours.quality[quality].value,
            "peer": peer.quality[quality].value,
            "peer_name": peer.contender,
            "peer_failed": peer.failed,
            "ours_psnr_db": ours.quality["psnr_db"].value,
            "peer_psnr_db": peer.quality["psnr_db"].value,
            "drops": ours.drops,
            "seed": seed,
            "pictures": evaluation.pictures.name,
            "level": "symbols",
            **({"metric": LPIPS_NAME} if quality == "lpips" else {}),
        }
        target = "below 0" if quality == "lpips" else "above 0"
        yield Entry(_name(label, condition.csi, condition.snr_db, quality), value, (low, high), "1", target, settings)


def _evaluation(chosen: Sequence[Contender], n_drops: int, seed: int) -> Evaluation:
    folder = _lpips_folder()
    lpips = Lpips(folder) if folder else None
    return Evaluation(chosen, DownlinkConfig(), _pictures(), n_drops, seed, lpips)


@cache
def _pictures() -> Collection:
    place = _data() / "images"
    return Collection.read(place) if place.is_dir() else Collection.drawn()


def _lpips_folder() -> Path | None:
    place = _data() / "lpips"
    return place if (place / Lpips.BACKBONE).is_file() else None


def _data() -> Path:
    return Path(os.environ.get("SEMAIR_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))

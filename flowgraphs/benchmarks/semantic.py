"""What semantic precoding claims at symbol level: pictures beside other schemes on the same frames, parts, latency.

Pictures and the weights of LPIPS are those of the folder that SEMAIR_DATA names (`images`, `lpips`), or that lies
beside the source folder; where there is none, pictures are drawn and LPIPS is left out.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
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
from ..scenario import load_scenario
from . import _running
from .entry import Entry, Measurement, OnShare, machine

AREA = "semantic"

OURS = "lab"
CODER = "lab-swin-rzf"
ADJSCC = "lab-adjscc"
ABLATIONS = ("lab-no-data", "lab-no-knowledge", "lab-no-fusion")
PRECODING = "lab-no-fusion"
"""Ours, its coder told nothing of the channel: what precoding alone is worth."""

SNR_DB = (-5.0, 0.0, 5.0, 10.0, 15.0, 20.0)
PEER_SNR_DB = (0.0, 10.0)
DIGITAL = ("hevc-best", "hevc-e2e", "hevc-fixed")
"""Digital schemes in the names of entries: the best rate for every SNR, the same by an autoencoder, one fixed rate."""

DIGITAL_TARGET_SNR_DB = 10.0
"""Up to which digital schemes shall be beaten."""

CSI: tuple[Literal["perfect", "fed back"], ...] = ("perfect", "fed back")
CHAIN = "cabled"
"""Level of the radio chain that pictures are sent through."""

ENGINE = "onnxruntime"
PARTS = ("transmit", "encoder", "receive", "decoder")
_TARGETS = {"transmit": "precoder below 10", "encoder": "", "receive": "below 20", "decoder": "below 20"}


def measurements(quick: bool) -> list[Measurement]:
    """All measurements of this area, as far as the weights are there; `quick` takes fewer drops and conditions."""
    there = shipped()
    found = []
    sent = load_scenario("semantic-lab").pictures
    if sent is not None and sent.model in there:
        n_frames = 10 if quick else 100
        run = partial(radio_chain, CHAIN, n_frames, 1)
        found.append(Measurement((f"lab/radio/{CHAIN}",), run, 10 + n_frames / 4))
    if OURS not in there:
        return found
    n = 16 if quick else 200
    snrs: Sequence[float] = (0.0, 10.0) if quick else SNR_DB
    kinds = CSI[:1] if quick else CSI
    qualities = ("lpips", "ms_ssim") if _lpips_folder() else ("ms_ssim",)
    if ADJSCC in there:
        names = [_name("over-adjscc", csi, snr, quality) for csi in kinds for snr in snrs for quality in qualities]
        run = partial(over, "over-adjscc", (ADJSCC,), kinds, snrs, n, 1)
        found.append(Measurement(tuple(names), run, n / 16 * len(names)))
    digital = _digital_there()
    if digital:
        at: Sequence[float] = (10.0,) if quick else SNR_DB
        names = [
            _name(f"over-{peer}", "perfect", snr, quality) for snr in at for peer in digital for quality in qualities
        ]
        found.append(Measurement(tuple(names), partial(over_digital, digital, at, n, 1), n / 4 * len(names)))
    peers = tuple(name for name in (CODER, CODER + WMMSE, *ABLATIONS) if name.removesuffix(WMMSE) in there)
    compared = [("over-{peer}", OURS, peers)]
    if not quick and PRECODING in there and CODER in there:
        compared.append(("precoding-over-{peer}", PRECODING, (CODER, CODER + WMMSE)))
    at = PEER_SNR_DB[:1] if quick else PEER_SNR_DB
    for label, ours, others in compared:
        names = [
            _name(label.format(peer=peer.removeprefix("lab-")), csi, snr, quality)
            for csi in kinds
            for snr in at
            for peer in others
            for quality in qualities
        ]
        if names:
            run = partial(over, label, others, kinds, at, n, 1, ours=ours)
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
    ours: str = OURS,
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
        ours: name of the weights that are compared.
    """
    evaluation = _evaluation([load_contender(name)[1] for name in (ours, *peers)], n_drops, seed)
    conditions = [Condition(snr_db=snr, csi=csi) for csi in kinds for snr in snrs]
    for k, condition in enumerate(conditions):
        first, *others = evaluation.rows(condition, lambda share, k=k: tell((k + share) / len(conditions)))  # type: ignore[misc]
        for peer, row in zip(peers, others, strict=True):
            yield from _differences(label.format(peer=peer.removeprefix("lab-")), first, row, seed, evaluation)


def over_digital(
    peers: Sequence[str], snrs: Sequence[float], n_drops: int, seed: int, tell: OnShare
) -> Iterator[Entry]:
    """Quality of ours less that of HEVC pictures with LDPC codes, drop by drop, perfect CSI.

    Args:
        peers: of `DIGITAL`.
        snrs: in dB.
        n_drops: of each.
        seed: of drops and noise.
        tell: told the share done.
    """
    from .. import semantic_digital

    make: dict[str, Callable[[], Contender]] = {
        "hevc-best": semantic_digital.best_of_qam,
        "hevc-e2e": semantic_digital.best_of_autoencoder,
        "hevc-fixed": semantic_digital.fixed_rate,
    }
    evaluation = _evaluation([load_contender(OURS)[1], *(make[peer]() for peer in peers)], n_drops, seed)
    for k, snr in enumerate(snrs):
        ours, *others = evaluation.rows(Condition(snr_db=snr), lambda share, k=k: tell((k + share) / len(snrs)))  # type: ignore[misc]
        for peer, row in zip(peers, others, strict=True):
            yield from _differences(f"over-{peer}", ours, row, seed, evaluation)


def radio_chain(level: str, n_frames: int, seed: int, tell: OnShare) -> Iterator[Entry]:
    """What the whole radio chain costs of PSNR, against symbol level over the same channels, in dB.

    Args:
        level: preset of impairments.
        n_frames: frames of the run, one drop each.
        seed: of everything.
        tell: told the share done.
    """
    from ..picture_schedule import DrawnPictures
    from ..semantic_downlink_run import run_semantic_downlink

    scenario = load_scenario("semantic-lab", [f"level={level}", f"seed={seed}"])
    wanted = scenario.pictures
    assert wanted is not None
    with tempfile.TemporaryDirectory(prefix="semair-benchmark-") as place:
        done = run_semantic_downlink(
            scenario,
            Path(place) / "run",
            n_frames=n_frames,
            record=False,
            on_progress=lambda progress: tell(min(progress.sent / n_frames, 1.0)),
            pictures=DrawnPictures(wanted.side, seed),
        )
    found = done.metrics["quality"]
    value, low, high = found["chain_loss_db"]
    settings = {
        "scenario": "semantic-lab",
        "level": level,
        "model": wanted.model,
        "frames": n_frames,
        "seed": seed,
        **{name: done.metrics["pictures"][name] for name in ("sent", "decided", "missed")},
        **{name: found[name] for name in ("psnr_db", "symbol_psnr_db", "ms_ssim", "symbol_ms_ssim", "sinr_db")},
        "ci95_from": "frames, paired",
    }
    yield Entry(f"lab/radio/{level}", value, (low, high), "dB", "at most 1", settings)


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
        name = _name(label, condition.csi, condition.snr_db, quality)
        yield Entry(name, value, (low, high), "1", _target(label, quality, condition.snr_db), settings)


def _target(label: str, quality: str, snr_db: float) -> str:
    """What is to be reached; nothing where a part's worth is measured, or where digital schemes may win."""
    if label.removeprefix("over-") in DIGITAL:
        beaten = quality == "lpips" and snr_db <= DIGITAL_TARGET_SNR_DB and label != "over-hevc-fixed"
        return "below 0" if beaten else ""
    if f"lab-{label.removeprefix('over-')}" in ABLATIONS:
        return ""
    return "below 0" if quality == "lpips" else "above 0"


def _digital_there() -> tuple[str, ...]:
    """Digital schemes that can be measured here."""
    if not (importlib.util.find_spec("pillow_heif") and importlib.util.find_spec("gnuradio")):
        return ()
    from ...models.semantic.autoencoder_train import shipped as shipped_autoencoders
    from ..semantic_digital import AUTOENCODER

    return DIGITAL if AUTOENCODER in shipped_autoencoders() else (DIGITAL[0], DIGITAL[2])


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

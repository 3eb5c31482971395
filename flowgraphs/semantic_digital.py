"""Digital picture downlinks to compare with: HEVC intra pictures, LDPC codes, QAM, regularised zero forcing.

What HEVC's container repeats in every file (parameter sets, boxes) is not counted as sent, which favours these schemes;
a check sum of 16 bits is. Where no quality fits, the picture is sent at half its size, or at a quarter.
"""

from __future__ import annotations

import binascii
import io
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..blocks.channel_coding import CodedModulation
from ..errors import SetupError

if TYPE_CHECKING:
    from ..models.semantic.evaluate import Condition, Contender, Evaluation

BEST = "hevc-best"
FIXED = "hevc-16qam-1/2"

MODES = ((2, 1 / 3), (2, 1 / 2), (2, 3 / 4), (4, 1 / 2), (4, 3 / 4), (6, 1 / 2), (6, 3 / 4))
"""Bits per symbol and code rates that the best is chosen among; none of them twice the rate of the next."""

FIXED_MODE = (4, 1 / 2)

CHECK_BITS = 16
_LENGTH_BITS = 16
_VALIDATION_DROPS = 16
_QUALITIES = range(0, 101, 4)
_SHRINKS = (1, 2, 4)


class HevcCoder:
    """HEVC intra at the best quality that fits, a check sum, an LDPC code and QAM of a fixed rate.

    Args:
        bits_per_symbol: Of the QAM.
        rate: Of the code.

    Raises:
        SetupError: pillow-heif is not installed.
    """

    def __init__(self, bits_per_symbol: int, rate: float) -> None:
        _heif()
        self.bits_per_symbol, self.rate = bits_per_symbol, rate
        self._shown: dict[bytes, NDArray[np.uint8]] = {}

    def encode(self, picture: NDArray[np.uint8], n_symbols: int) -> NDArray[np.complex64]:
        """See `models.semantic.digital.PictureCoder`."""
        modulation = self._modulation(n_symbols)
        room = (modulation.n_info - CHECK_BITS - _LENGTH_BITS) // 8
        payload, shown = fitting(picture, room)
        content = struct.pack(">H", len(payload)) + payload
        sealed = content + struct.pack(">H", binascii.crc_hqx(content, 0xFFFF))
        # Headers are no part of what is sent: a receiver knows them, here by the content that arrived.
        self._shown[sealed] = shown
        bits = np.zeros(modulation.n_info, np.uint8)
        bits[: 8 * len(sealed)] = np.unpackbits(np.frombuffer(sealed, np.uint8))
        # Filled up with noise rather than with zeros, which no scrambler would send.
        fill = np.random.default_rng(len(sealed)).integers(0, 2, modulation.n_info, dtype=np.uint8)
        bits[8 * len(sealed) :] = fill[8 * len(sealed) :]
        return modulation.encode(bits[None])[0]

    def decode(
        self, received: NDArray[np.complex64], noise_power: NDArray[np.float64], size: tuple[int, int]
    ) -> NDArray[np.uint8] | None:
        """See `models.semantic.digital.PictureCoder`."""
        bits = self._modulation(len(received)).decode(received[None], noise_power[None])[0]
        data = np.packbits(bits).tobytes()
        end = 2 + int.from_bytes(data[:2], "big")
        sealed = data[: end + 2]
        if len(sealed) < end + 2 or struct.pack(">H", binascii.crc_hqx(sealed[:end], 0xFFFF)) != sealed[end:]:
            return None
        return self._shown.get(sealed)

    def _modulation(self, n_symbols: int) -> CodedModulation:
        return _modulation(n_symbols, self.bits_per_symbol, self.rate)


class BestOfGrid:
    """Contender that takes, for each condition, the mode of best MS-SSIM on validation pictures and channels."""

    name = BEST

    def __init__(self) -> None:
        from ..models.semantic.digital import DigitalContender

        self._modes = [DigitalContender(f"{bits} bit, {rate:.2f}", HevcCoder(bits, rate)) for bits, rate in MODES]
        self._chosen: dict[Any, int] = {}
        self._now = self._modes[0]

    def prepare(self, condition: Condition, evaluation: Evaluation) -> None:
        """See `models.semantic.evaluate.Contender`."""
        from ..models.semantic.evaluate import Evaluation

        key = (condition, evaluation.pictures.fingerprint, evaluation.seed)
        if key not in self._chosen:
            trial = Evaluation(
                self._modes, evaluation.config, evaluation.pictures, _VALIDATION_DROPS, evaluation.seed, split="valid"
            )
            rows = trial.rows(condition)
            self._chosen[key] = int(np.argmax([row.quality["ms_ssim"].value for row in rows]))
        self._now = self._modes[self._chosen[key]]

    def deliver(self, pictures: Any, channels: Any, snr_db: float, generator: Any) -> Any:
        """See `models.semantic.evaluate.Contender`."""
        return self._now.deliver(pictures, channels, snr_db, generator)


def digital_contenders() -> list[Contender]:
    """The best of a grid of rates for every condition, and the fixed rate, whose cliff shows.

    Raises:
        SetupError: pillow-heif or GNU Radio is not installed.
    """
    from ..models.semantic.digital import DigitalContender

    return [BestOfGrid(), DigitalContender(FIXED, HevcCoder(*FIXED_MODE))]


def fitting(picture: NDArray[np.uint8], room: int) -> tuple[bytes, NDArray[np.uint8]]:
    """The best HEVC picture of at most so many bytes.

    Args:
        picture: uint8, (row, column, 3).
        room: bytes.

    Returns:
        Payload, empty where nothing fits, and the picture as decoded, grey in that case.
    """
    found = _ladder(picture.tobytes(), picture.shape)
    for payload, shown in found:
        if len(payload) <= room:
            return payload, shown
    return b"", np.full(picture.shape, 128, np.uint8)


def hevc(picture: NDArray[np.uint8], quality: int) -> tuple[bytes, NDArray[np.uint8]]:
    """One intra picture by HEVC: its payload without the container, and the picture as decoded."""
    heif = _heif()
    rows, columns = picture.shape[:2]
    file = heif.from_bytes("RGB", (columns, rows), np.ascontiguousarray(picture).tobytes())
    target = io.BytesIO()
    file.save(target, quality=quality, save_nclx_profile=False)
    data = target.getvalue()
    decoded = np.asarray(heif.open_heif(data, convert_hdr_to_8bit=True).to_pillow().convert("RGB"))
    # Four bytes before it are the container's: how long the one NAL unit is.
    return b"".join(content[4:] for kind, content in _boxes(data) if kind == b"mdat"), decoded


@lru_cache(maxsize=4096)
def _ladder(pixels: bytes, shape: tuple[int, int, int]) -> list[tuple[bytes, NDArray[np.uint8]]]:
    """Payloads of a picture from the best quality to the worst, whole before shrunk."""
    from PIL import Image

    picture = np.frombuffer(pixels, np.uint8).reshape(shape)
    found: list[tuple[bytes, NDArray[np.uint8]]] = []
    for shrink in _SHRINKS:
        size = (shape[1] // shrink, shape[0] // shrink)
        small = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
        steps = {}
        for quality in _QUALITIES:
            payload, shown = hevc(small, quality)
            steps[len(payload)] = (payload, shown)
        for length in sorted(steps, reverse=True):
            payload, shown = steps[length]
            if shrink > 1:
                shown = np.asarray(Image.fromarray(shown).resize((shape[1], shape[0]), Image.Resampling.BICUBIC))
            found.append((payload, shown))
    return found


@lru_cache(maxsize=64)
def _modulation(n_symbols: int, bits_per_symbol: int, rate: float) -> CodedModulation:
    return CodedModulation(n_symbols, bits_per_symbol, rate)


def _heif() -> Any:
    try:
        import pillow_heif
    except ImportError as error:
        raise SetupError(
            "HEVC pictures need pillow-heif: `pip install pillow-heif`, or leave digital schemes out with --no-digital"
        ) from error
    return pillow_heif


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Boxes of an ISO base media file: kind and content."""
    at = 0
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        header = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, at + 8)
            header = 16
        end = len(data) if length == 0 else at + length
        if end < at + header:
            return
        yield kind, data[at + header : end]
        at = end

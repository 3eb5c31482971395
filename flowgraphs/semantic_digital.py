"""Digital picture downlinks to compare with: HEVC intra pictures and LDPC codes, sent by QAM behind regularised zero
forcing, or by an autoencoder that is trained end to end.

What HEVC's container repeats in every file (parameter sets, boxes) is not counted as sent, which favours these schemes;
a check sum of 16 bits is. Where no quality fits, the picture is sent at half its size, or at a quarter.
"""

from __future__ import annotations

import binascii
import io
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Resampling
from PIL.Image import fromarray as _image

from ..blocks.channel_coding import CodedModulation
from ..errors import SetupError

if TYPE_CHECKING:
    from ..models.semantic.evaluate import Condition, Contender, Evaluation

BEST = "hevc-best"
FIXED = "hevc-16qam-1/2"
E2E = "hevc-e2e"

AUTOENCODER = "lab-e2e"
"""Weights of the autoencoder that carries bits in place of QAM and precoding matrix."""

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
        return self._modulation(n_symbols).encode(self._message(picture, n_symbols))[0]

    def to_bits(self, picture: NDArray[np.uint8], n_symbols: int) -> NDArray[np.uint8]:
        """See `models.semantic.autoencoder.BitCoder`."""
        return self._modulation(n_symbols).encode_bits(self._message(picture, n_symbols))[0]

    def decode(
        self, received: NDArray[np.complex64], noise_power: NDArray[np.float64], size: tuple[int, int]
    ) -> NDArray[np.uint8] | None:
        """See `models.semantic.digital.PictureCoder`."""
        return self._picture(self._modulation(len(received)).decode(received[None], noise_power[None])[0])

    def from_ratios(self, llr: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.uint8] | None:
        """See `models.semantic.autoencoder.BitCoder`."""
        return self._picture(self._modulation(len(llr) // self.bits_per_symbol).decode_bits(llr[None])[0])

    def _message(self, picture: NDArray[np.uint8], n_symbols: int) -> NDArray[np.uint8]:
        """A picture as information bits; uint8, (1, bit)."""
        n_info = self._modulation(n_symbols).n_info
        payload, shown = fitting(picture, (n_info - CHECK_BITS - _LENGTH_BITS) // 8)
        content = struct.pack(">H", len(payload)) + payload
        sealed = content + struct.pack(">H", binascii.crc_hqx(content, 0xFFFF))
        # Headers are no part of what is sent: a receiver knows them, here by the content that arrived.
        self._shown[sealed] = shown
        bits = np.zeros(n_info, np.uint8)
        bits[: 8 * len(sealed)] = np.unpackbits(np.frombuffer(sealed, np.uint8))
        # Filled up with noise rather than with zeros, which no scrambler would send.
        fill = np.random.default_rng(len(sealed)).integers(0, 2, n_info, dtype=np.uint8)
        bits[8 * len(sealed) :] = fill[8 * len(sealed) :]
        return bits[None]

    def _picture(self, bits: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
        """The picture of information bits; None where they are wrong."""
        data = np.packbits(bits).tobytes()
        end = 2 + int.from_bytes(data[:2], "big")
        sealed = data[: end + 2]
        if len(sealed) < end + 2 or struct.pack(">H", binascii.crc_hqx(sealed[:end], 0xFFFF)) != sealed[end:]:
            return None
        return self._shown.get(sealed)

    def _modulation(self, n_symbols: int) -> CodedModulation:
        return _modulation(n_symbols, self.bits_per_symbol, self.rate)


class BestOfGrid:
    """Contender that takes, for each condition, the mode of best MS-SSIM on validation pictures and channels.

    Args:
        name: For people.
        modes: One contender for each mode.
    """

    def __init__(self, name: str, modes: Sequence[Contender]) -> None:
        self.name = name
        self._modes = list(modes)
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

    @property
    def mode(self) -> str:
        """Name of the mode that was chosen last."""
        return self._now.name

    def deliver(self, pictures: Any, channels: Any, snr_db: float, generator: Any) -> Any:
        """See `models.semantic.evaluate.Contender`."""
        return self._now.deliver(pictures, channels, snr_db, generator)


def best_of_qam() -> BestOfGrid:
    """Best of a grid of QAM and code rates, behind regularised zero forcing.

    Raises:
        SetupError: pillow-heif or GNU Radio is not installed.
    """
    from ..models.semantic.digital import DigitalContender

    return BestOfGrid(BEST, [DigitalContender(_title(*mode), HevcCoder(*mode)) for mode in MODES])


def best_of_autoencoder(name: str = AUTOENCODER) -> BestOfGrid:
    """Best of the same grid, sent by an autoencoder instead of QAM and precoding matrix.

    Args:
        name: of shipped weights, or a folder.

    Raises:
        ScenarioError: there are no such weights.
        ModelError: they are damaged.
        SetupError: pillow-heif or GNU Radio is not installed.
    """
    from ..models.semantic.autoencoder import AutoencoderContender
    from ..models.semantic.autoencoder_train import load

    network = load(name)[1]
    return BestOfGrid(E2E, [AutoencoderContender(_title(*mode), HevcCoder(*mode), network) for mode in MODES])


def fixed_rate() -> Contender:
    """One rate at every SNR, whose cliff shows.

    Raises:
        SetupError: pillow-heif or GNU Radio is not installed.
    """
    from ..models.semantic.digital import DigitalContender

    return DigitalContender(FIXED, HevcCoder(*FIXED_MODE))


def digital_contenders() -> list[Contender]:
    """The best of a grid of rates for every condition, the fixed rate, and the same bits by an autoencoder.

    Raises:
        SetupError: pillow-heif or GNU Radio is not installed.
    """
    from ..models.semantic.autoencoder_train import shipped

    return [best_of_qam(), fixed_rate(), *([best_of_autoencoder()] if AUTOENCODER in shipped() else [])]


def fitting(picture: NDArray[np.uint8], room: int) -> tuple[bytes, NDArray[np.uint8]]:
    """The best HEVC picture of at most so many bytes.

    Args:
        picture: uint8, (row, column, 3).
        room: bytes.

    Returns:
        Payload, empty where nothing fits, and the picture as decoded, grey in that case.
    """
    return _versions(picture.tobytes(), picture.shape).fitting(room)


def hevc(picture: NDArray[np.uint8], quality: int) -> tuple[bytes, NDArray[np.uint8]]:
    """One intra picture by HEVC: its payload without the container, and the picture as decoded."""
    file = _file(picture, quality)
    return _payload(file), _decoded(file)


class _Versions:
    """A picture at all qualities, whole and shrunk, made as they are asked for."""

    def __init__(self, picture: NDArray[np.uint8]) -> None:
        self._picture = picture
        self._files: dict[tuple[int, int], bytes] = {}
        self._shown: dict[tuple[int, int], NDArray[np.uint8]] = {}

    def fitting(self, room: int) -> tuple[bytes, NDArray[np.uint8]]:
        for shrink in _SHRINKS:
            # Payloads grow with quality.
            quality = bisect_right(_QUALITIES, room, key=lambda q, s=shrink: len(_payload(self._file(s, q))))  # type: ignore[misc]
            if quality:
                at = (shrink, _QUALITIES[quality - 1])
                return _payload(self._file(*at)), self._as_shown(*at)
        return b"", np.full(self._picture.shape, 128, np.uint8)

    def _file(self, shrink: int, quality: int) -> bytes:
        if (shrink, quality) not in self._files:
            size = (self._picture.shape[1] // shrink, self._picture.shape[0] // shrink)
            small = np.asarray(_image(self._picture).resize(size, Resampling.LANCZOS))
            self._files[shrink, quality] = _file(small, quality)
        return self._files[shrink, quality]

    def _as_shown(self, shrink: int, quality: int) -> NDArray[np.uint8]:
        if (shrink, quality) not in self._shown:
            shown = _decoded(self._file(shrink, quality))
            if shrink > 1:
                size = (self._picture.shape[1], self._picture.shape[0])
                shown = np.asarray(_image(shown).resize(size, Resampling.BICUBIC))
            self._shown[shrink, quality] = shown
        return self._shown[shrink, quality]


@lru_cache(maxsize=1024)
def _versions(pixels: bytes, shape: tuple[int, int, int]) -> _Versions:
    return _Versions(np.frombuffer(pixels, np.uint8).reshape(shape))


def _file(picture: NDArray[np.uint8], quality: int) -> bytes:
    rows, columns = picture.shape[:2]
    file = _heif().from_bytes("RGB", (columns, rows), np.ascontiguousarray(picture).tobytes())
    target = io.BytesIO()
    file.save(target, quality=quality, save_nclx_profile=False)
    return target.getvalue()


def _payload(file: bytes) -> bytes:
    # Four bytes before it are the container's: how long the one NAL unit is.
    return b"".join(content[4:] for kind, content in _boxes(file) if kind == b"mdat")


def _decoded(file: bytes) -> NDArray[np.uint8]:
    return np.asarray(_heif().open_heif(file, convert_hdr_to_8bit=True).to_pillow().convert("RGB"))


@lru_cache(maxsize=64)
def _modulation(n_symbols: int, bits_per_symbol: int, rate: float) -> CodedModulation:
    return CodedModulation(n_symbols, bits_per_symbol, rate)


def _title(bits_per_symbol: int, rate: float) -> str:
    return f"{bits_per_symbol} bit, {rate:.2f}"


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

"""Checksums of metadata and small files, which find every changed byte and tell where a single bit was flipped.

A metadata file carries a checksum of itself, white space included: the field `semair:seal`, taken over the file with
the seal's own characters as zeros. Other files of a run are named with their checksums in the collection.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SEAL_KEY = "semair:seal"
_ZERO = "0" * 64 + "-" + "0" * 8
_PLACE = re.compile(rb'"semair:seal": ?"([0-9a-f]{64})-([0-9a-f]{8})"')
_CHUNK = re.compile(r"([0-9]{1,18}) ([0-9a-f]{64})")
_READ_BYTES = 1 << 20
_CRC_POLYNOMIAL = 0xEDB88320
_LOCATABLE_BYTES = 1 << 27


def seal_text(text: bytes) -> bytes:
    """Text of a metadata file with a seal of zeros, or an old one, given a true one.

    Raises:
        ValueError: it has not exactly one seal.
    """
    blank, _ = _blanked(text)
    seal = f"{hashlib.sha256(blank).hexdigest()}-{zlib.crc32(blank):08x}"
    return blank.replace(f'"{_ZERO}"'.encode(), f'"{seal}"'.encode(), 1)


def blank_seal() -> str:
    """Value of the field before the text is sealed."""
    return _ZERO


def seal_problem(text: bytes) -> str | None:
    """What is wrong with the seal of a metadata file; None if nothing is."""
    try:
        blank, (sha256, crc) = _blanked(text)
    except ValueError as err:
        return str(err)
    if hashlib.sha256(blank).hexdigest() == sha256:
        return None if zlib.crc32(blank) == int(crc, 16) else "a character of the seal itself was changed"
    if zlib.crc32(blank) == int(crc, 16):
        return "a character of the seal itself was changed"
    return _changed(blank, sha256, int(crc, 16))


def file_record(path: Path) -> dict[str, Any]:
    """Size and checksums of a file, for a collection."""
    content = path.read_bytes()
    return {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "crc32": f"{zlib.crc32(content):08x}",
    }


def file_problem(path: Path, record: dict[str, Any]) -> str | None:
    """How a file differs from its record; None if it does not."""
    try:
        content = path.read_bytes()
    except OSError as err:
        return f"cannot be read ({err.strerror})"
    if hashlib.sha256(content).hexdigest() == record["sha256"]:
        return None
    if len(content) != record["bytes"]:
        return f"has {len(content)} bytes, {record['bytes']} were recorded"
    return _changed(content, record["sha256"], int(record["crc32"], 16))


def parse_chunks(listed: Any, n_samples: int) -> list[tuple[int, int, str]]:
    """First sample, sample after the last, and SHA-256 of each stretch of a recording's data.

    Args:
        listed: `semair:chunks` as in the metadata.
        n_samples: samples per channel.

    Raises:
        ValueError: they do not cover the recording, or are malformed.
    """
    matches = [_CHUNK.fullmatch(item) if isinstance(item, str) else None for item in listed or ()]
    if not isinstance(listed, list) or not matches or not all(matches):
        raise ValueError('must be "START SHA256" of every chunk')
    starts = [int(match[1]) for match in matches if match]
    ends = [*starts[1:], n_samples]
    if starts[0] != 0 or any(start >= end for start, end in zip(starts, ends, strict=True)):
        raise ValueError("do not cover the samples from the first to the last, in order")
    return [(start, end, match[2]) for start, end, match in zip(starts, ends, matches, strict=True) if match]


def damaged_chunks(
    path: Path, chunks: Sequence[tuple[int, int, str]], frame_bytes: int, whole: Any = None
) -> Iterator[tuple[int, int]]:
    """First sample and sample after the last of each chunk whose data are not those of its checksum.

    Args:
        path: data file.
        chunks: as from `parse_chunks`.
        frame_bytes: bytes of one sample of all channels.
        whole: hash object that is fed all bytes on the way.
    """
    with path.open("rb") as file:
        for start, end, expected in chunks:
            digest, left = hashlib.sha256(), (end - start) * frame_bytes
            while left and (piece := file.read(min(left, _READ_BYTES))):
                left -= len(piece)
                digest.update(piece)
                if whole is not None:
                    whole.update(piece)
            if digest.hexdigest() != expected:
                yield start, end


def _blanked(text: bytes) -> tuple[bytes, tuple[str, str]]:
    found = list(_PLACE.finditer(text))
    if len(found) != 1:
        raise ValueError(f"{len(found) or 'no'} seals ({SEAL_KEY}) where one belongs")
    match = found[0]
    blank = text[: match.start(1)] + _ZERO.encode() + text[match.end(2) :]
    return blank, (match[1].decode(), match[2].decode())


def _changed(content: bytes, sha256: str, crc: int) -> str:
    bit = flipped_bit(content, crc)
    if bit is not None:
        mended = bytearray(content)
        mended[bit // 8] ^= 1 << bit % 8
        if hashlib.sha256(mended).hexdigest() == sha256:
            line = content.count(b"\n", 0, bit // 8) + 1
            return (
                f"one bit was flipped: byte {bit // 8}, in line {line} if it is text, is 0x{content[bit // 8]:02x} and"
                f" was 0x{mended[bit // 8]:02x}"
            )
    return f"some of its {len(content)} bytes were changed, more than one bit of them"


def flipped_bit(content: bytes, crc: int) -> int | None:
    """The bit whose flip explains a CRC-32: 8 x byte + bit of it, the lowest being 0; None if there is none.

    A CRC is linear, so a flipped bit changes it by an amount that depends only on how many bits follow: a power of x.
    Its exponent is found by baby steps and giant steps (Shanks).
    """
    n_bits = 8 * len(content)
    if not content or len(content) > _LOCATABLE_BYTES:
        return None
    difference = zlib.crc32(content) ^ crc
    forward = np.array([_CRC_POLYNOMIAL] + [1 << bit for bit in range(31)], np.uint32)
    backward = np.array([1 << (bit + 1) for bit in range(31)] + [((1 << 31 ^ _CRC_POLYNOMIAL) << 1 | 1) & 0xFFFFFFFF])
    doublings = (n_bits.bit_length() + 1) // 2
    baby = _powers(forward, 1, doublings)
    giant_step = backward.astype(np.uint32)
    for _ in range(doublings):
        giant_step = _apply(giant_step, giant_step)
    giant = _powers(giant_step, difference, doublings)
    for j in np.flatnonzero(np.isin(giant, baby)):
        following = (int(j) << doublings) + int(np.flatnonzero(baby == giant[j])[0])
        if 1 <= following <= n_bits:
            return n_bits - following
    return None


def _apply(images: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A linear map of 32 bits, given by its images of the single bits, applied to many values; uint32."""
    out = np.zeros_like(values)
    for bit in range(32):
        out ^= np.where(values >> np.uint32(bit) & np.uint32(1), images[bit], np.uint32(0))
    return out


def _powers(step: np.ndarray, start: int, doublings: int) -> np.ndarray:
    """start, step(start), step(step(start)) and so on; uint32, (2**doublings,)."""
    values = np.array([start], np.uint32)
    for _ in range(doublings):
        values = np.concatenate([values, _apply(step, values)])
        step = _apply(step, step)
    return values

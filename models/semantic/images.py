"""Pictures: read whatever comes, cut to size; collections with a split that is kept; pictures that are drawn.

pictures = Collection.read("photos")            # a folder, a .zip or a .tar
pictures.crops(16, "train", 64, rng)            # uint8, (16, 64, 64, 3)
"""

from __future__ import annotations

import hashlib
import io
import lzma
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError

from ...errors import ScenarioError

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")

MOST_PIXELS = 100_000_000
"""Of a picture that is opened."""

MOST_BYTES = 512 << 20
"""Of the file of a picture."""

_STORED_SIDE = 512
# NotImplementedError and RuntimeError: packed in unknown ways, or with a password.
_DAMAGES = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
)
_NAMED_SPLITS: dict[str, Split] = {"val": "valid", "valid": "valid", "validation": "valid", "test": "test"}
# Of 20 pictures one is for validation and one for tests.
_SHARES = 20


def prepare(picture: str | Path | bytes | Image.Image | NDArray[Any], size: tuple[int, int], name: str = "") -> Any:
    """Make any picture one of a wanted size: upright, in colour, 8 bit, cut to the aspect in its middle.

    Grey becomes colour, transparent parts become white, 16 bit become 8, small pictures are enlarged.

    Args:
        picture: path, the bytes of a file, a PIL image, or an array: (row, column), (row, column, 1, 3 or 4), uint8,
            uint16 or float in [0, 1].
        size: rows and columns.
        name: for messages.

    Returns:
        uint8, (row, column, 3).

    Raises:
        ScenarioError: there is no such file, it is no picture, damaged or too large, or the array is of another kind.
    """
    if min(size) < 1:
        raise ValueError(f"size={size}: rows and columns, at least 1 each")
    colour = opened(picture, name)
    return np.array(ImageOps.fit(colour, (size[1], size[0]), Image.Resampling.LANCZOS))


def opened(picture: str | Path | bytes | Image.Image | NDArray[Any], name: str = "", side: int = 0) -> Image.Image:
    """Open any picture as 8 bit RGB; see `prepare`.

    Args:
        picture, name: see `prepare`.
        side: a hint: a larger JPEG may come smaller, but no side shorter than this; 0: as it is.
    """
    if isinstance(picture, np.ndarray):
        return _from_array(picture, name or "picture")
    named = name or (str(picture) if isinstance(picture, str | Path) else "picture")
    try:
        if isinstance(picture, Image.Image):
            # Until then a file that was only opened is not read.
            picture.load()
            return _in_colour(picture, named)
        source = io.BytesIO(picture) if isinstance(picture, bytes) else Path(picture)
        with warnings.catch_warnings():
            # Its own limit warns long before it refuses; ours is checked below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(source) as image:
                columns, rows = image.size
                if columns * rows > MOST_PIXELS:
                    raise ScenarioError(
                        f"{named} has {columns} x {rows} pixels; at most {MOST_PIXELS // 10**6} million are opened, "
                        "make it smaller"
                    )
                if side:
                    image.draft("RGB", (side, side))
                image.load()
                return _in_colour(ImageOps.exif_transpose(image), named)
    except FileNotFoundError as error:
        raise ScenarioError(f"there is no picture {named}") from error
    except UnidentifiedImageError as error:
        raise ScenarioError(f"{named} is no picture of a known kind; give a JPEG, PNG, WebP, BMP or TIFF") from error
    except Image.DecompressionBombError as error:
        raise ScenarioError(f"{named} is too large to be opened: {error}") from error
    except ScenarioError:
        raise
    # Decoders of damaged files raise whatever they stumble over.
    except Exception as error:
        raise ScenarioError(f"{named} cannot be read, it may be cut or damaged: {error}") from error


@dataclass
class Collection:
    """Pictures in memory, each in one split for good: by its pixels, unless a folder is called val or test.

    Attributes:
        name: For people and cards.
        pictures: uint8, (row, column, 3) each, by split.
        skipped: Files that could not be read, with the reason.
        fingerprint: Of all pictures and their splits.
    """

    name: str
    pictures: dict[Split, list[NDArray[np.uint8]]]
    skipped: dict[str, str] = field(default_factory=dict)
    fingerprint: str = ""

    @classmethod
    def read(cls, source: str | Path) -> Collection:
        """Read all pictures of a folder, with those of its folders, or of a .zip or .tar archive.

        Raises:
            ScenarioError: there is nothing, or it holds no picture that can be read.
        """
        place = Path(source)
        found: dict[Split, list[NDArray[np.uint8]]] = {split: [] for split in SPLITS}
        skipped, digest = {}, hashlib.blake2b(digest_size=16)
        for name, data in picture_files(place):
            try:
                image = opened(data, name, _STORED_SIDE)
            except ScenarioError as error:
                skipped[name] = str(error)
                continue
            if min(image.size) > _STORED_SIDE:
                shrink = _STORED_SIDE / min(image.size)
                image = image.resize((round(image.width * shrink), round(image.height * shrink)), Image.Resampling.BOX)
            pixels = np.array(image)
            mark = hashlib.blake2b(pixels.tobytes(), digest_size=8).digest()
            split = _split(name, mark)
            found[split].append(pixels)
            digest.update(mark + split.encode())
        if not any(found.values()):
            why = f"; none of {len(skipped)} files can be read: {next(iter(skipped.values()))}" if skipped else ""
            raise ScenarioError(f"{place} holds no pictures ({', '.join(ENDINGS)}){why}")
        return cls(place.name, found, skipped, digest.hexdigest())

    @classmethod
    def drawn(cls, n: int = 300, side: int = 160, seed: int = 1) -> Collection:
        """Pictures that need no files: shapes, gradients and textures, drawn at random."""
        rng = np.random.default_rng([seed, 0x50494354])
        found: dict[Split, list[NDArray[np.uint8]]] = {split: [] for split in SPLITS}
        for k in range(n):
            split: Split = "valid" if k % 5 == 3 else "test" if k % 5 == 4 else "train"
            found[split].append(draw(side, rng))
        return cls("drawn", found, {}, f"drawn-{n}-{side}-{seed}")

    def crops(self, n: int, split: Split, side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Cut squares out of pictures drawn at random, at any scale that leaves no pixel enlarged, mirrored or not.

        Args:
            n: squares.
            split: of the pictures.
            side: of the squares, in pixels.
            rng: of everything.

        Returns:
            uint8, (n, row, column, 3).

        Raises:
            ScenarioError: the split is empty.
        """
        chosen = self._of(split)
        found = np.empty((n, side, side, 3), np.uint8)
        for k in range(n):
            pixels = chosen[int(rng.integers(len(chosen)))]
            rows, columns = pixels.shape[:2]
            most = min(rows, columns)
            cut = round(most * (min(side, most) / most) ** float(rng.uniform()))
            top, left = int(rng.integers(rows - cut + 1)), int(rng.integers(columns - cut + 1))
            square = pixels[top : top + cut, left : left + cut]
            if cut != side:
                square = np.array(Image.fromarray(square).resize((side, side), Image.Resampling.BICUBIC))
            found[k] = square[:, ::-1] if rng.random() < 0.5 else square
        return found

    def fixed(self, n: int, split: Split, side: int) -> NDArray[np.uint8]:
        """The first pictures of a split, whole but for what the square leaves out; again from the first if there are
        fewer.

        Returns:
            uint8, (n, row, column, 3).

        Raises:
            ScenarioError: the split is empty.
        """
        chosen = self._of(split)
        # By their pixels, so that kinds of pictures mix whatever the files are called.
        order = sorted(range(len(chosen)), key=lambda k: hashlib.blake2b(chosen[k].tobytes()).digest())
        return np.stack([prepare(chosen[order[k % len(order)]], (side, side)) for k in range(n)])

    def _of(self, split: Split) -> list[NDArray[np.uint8]]:
        if not self.pictures[split]:
            counts = ", ".join(f"{len(found)} for {name}" for name, found in self.pictures.items())
            raise ScenarioError(f"{self.name} has no pictures for {split} ({counts}); give more pictures")
        return self.pictures[split]


def draw(side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw one picture: a gradient, a texture whose spectrum falls as that of photographs, shapes on top.

    Returns:
        uint8, (side, side, 3).
    """
    at = np.linspace(-1, 1, side)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = 0.5 + 0.35 * (np.cos(angle) * at[:, None] + np.sin(angle) * at)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    noise = rng.standard_normal((3, side, frequency.shape[1])) + 1j * rng.standard_normal((3, side, frequency.shape[1]))
    texture = np.fft.irfft2(noise / np.maximum(frequency, 1 / side) ** rng.uniform(0.9, 1.6), s=(side, side))
    texture = (texture / texture.std((1, 2), keepdims=True)).transpose(1, 2, 0)
    colours = rng.uniform(0, 1, (2, 3))
    ground = ramp[..., None] * colours[0] + (1 - ramp[..., None]) * colours[1] + rng.uniform(0.02, 0.12) * texture
    image = Image.fromarray((255 * ground.clip(0, 1)).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(2, 9))):
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        x, y = rng.uniform(-0.1, 0.9, 2) * side
        width, height = rng.uniform(0.1, 0.6, 2) * side
        box = (x, y, x + width, y + height)
        kind = int(rng.integers(4))
        if kind == 0:
            pen.ellipse(box, fill=colour)
        elif kind == 1:
            pen.rectangle(box, fill=colour)
        elif kind == 2:
            pen.polygon([tuple(point) for point in (rng.uniform(0, 1, (3, 2)) * side).tolist()], fill=colour)
        else:
            pen.line(box, fill=colour, width=int(rng.integers(1, 6)))
    return np.array(image)


def picture_files(place: Path) -> Iterator[tuple[str, bytes]]:
    """Names, relative to the place, and contents of all files that may be pictures, sorted by name.

    Raises:
        ScenarioError: there is no such place, or it, or one of its files, cannot be read or is far too large.
    """
    if not (place.is_dir() or place.is_file()):
        raise ScenarioError(f"there is neither a folder nor an archive of pictures at {place}")
    try:
        if place.is_dir():
            for path in sorted(place.rglob("*")):
                if path.is_file() and path.suffix.lower() in ENDINGS:
                    name = str(path.relative_to(place))
                    _refuse_large(name, path.stat().st_size)
                    yield name, path.read_bytes()
        elif zipfile.is_zipfile(place):
            with zipfile.ZipFile(place) as archive:
                for name in sorted(archive.namelist()):
                    if name.lower().endswith(ENDINGS):
                        _refuse_large(name, archive.getinfo(name).file_size)
                        yield name, archive.read(name)
        else:
            with tarfile.open(place) as tar:
                members = {member.name: member for member in tar.getmembers() if member.isfile()}
                for name in sorted(members):
                    if name.lower().endswith(ENDINGS):
                        _refuse_large(name, members[name].size)
                        content = tar.extractfile(members[name])
                        yield name, content.read() if content else b""
    except _DAMAGES as error:
        raise ScenarioError(f"{place} is no folder, .zip or .tar of pictures, or damaged: {error}") from error


def _refuse_large(name: str, n_bytes: int) -> None:
    """Before it is read, and unpacked, which may be much more than an archive is."""
    if n_bytes > MOST_BYTES:
        raise ScenarioError(f"{name} has {n_bytes >> 20} MB; pictures have at most {MOST_BYTES >> 20}, leave it out")


def _split(name: str, mark: bytes) -> Split:
    for part in Path(name).parts[:-1]:
        if part.lower() in _NAMED_SPLITS:
            return _NAMED_SPLITS[part.lower()]
    rank = int.from_bytes(mark, "big") % _SHARES
    return "valid" if rank == 0 else "test" if rank == 1 else "train"


def _in_colour(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.array(image)
        # Greyscale files of 16 bit come as integers of 16 or 32.
        return _from_array(values if image.mode == "F" else values.clip(0, 65535).astype(np.uint16), name)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layers = image.convert("RGBA")
        white = Image.new("RGBA", layers.size, "white")
        return Image.alpha_composite(white, layers).convert("RGB")
    return image.convert("RGB")


def _from_array(values: NDArray[Any], name: str) -> Image.Image:
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (1, 3, 4)) or 0 in values.shape:
        raise ScenarioError(
            f"{name} is an array of shape {values.shape}; a picture is (row, column) or (row, column, 1, 3 or 4)"
        )
    if values.dtype == np.uint16:
        values = (values / 257 + 0.5).astype(np.uint8)
    elif np.issubdtype(values.dtype, np.floating):
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise ScenarioError(f"{name} holds numbers outside 0 to 1, which pictures of floats keep to")
        values = (255 * values + 0.5).astype(np.uint8)
    elif values.dtype == bool:
        values = values.astype(np.uint8) * 255
    elif values.dtype != np.uint8:
        raise ScenarioError(f"{name} is an array of {values.dtype}; pictures are uint8, uint16 or floats in 0 to 1")
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    return _in_colour(Image.fromarray(np.ascontiguousarray(values)), name)

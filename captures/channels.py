"""Channel recordings: what the air did to known waveforms, frame by frame, to be put on new ones.

Two files, `NAME.channel.npz` with the arrays of `ARRAYS` and `NAME.channel.json` with what they mean, where they come
from and how good they are. The description holds the hash of the arrays and of itself and is written last: what
cannot be trusted is refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RecordingError
from .storage import make_folder, replace_file

FORMAT = "semair-channel"
VERSION = 1
INFO_SUFFIX = ".channel.json"
DATA_SUFFIX = ".channel.npz"

ARRAYS: dict[str, tuple[str, tuple[str, ...]]] = {
    "frame": ("<i8", ("frames",)),
    "arrival": ("<f8", ("frames",)),
    "length": ("<i4", ("frames",)),
    "cfo_hz": ("<f8", ("frames",)),
    "noise_power": ("<f8", ("frames", "antennas")),
    "residual": ("<f8", ("frames", "antennas")),
    "condition": ("<f8", ("frames",)),
    "beacon_taps": ("<c8", ("frames", "antennas", "delays")),
    "beacon_error": ("<f8", ("frames",)),
    "link_frame": ("<i8", ("links",)),
    "link_user": ("<i8", ("links",)),
    "link_taps": ("<c8", ("links", "antennas", "delays")),
    "link_cfo_hz": ("<f8", ("links",)),
    "link_error": ("<f8", ("links",)),
}
"""Type and axes of every array.

frame: counter; arrival: of the frame's first sample, in samples of the recording; length: preamble symbols sent;
cfo_hz: common carrier offset removed; noise_power: per complex sample; residual: what the estimate leaves unexplained,
over the noise power and per degree of freedom; condition: of the least-squares problem; beacon_taps and link_taps:
received samples per transmitted sample, tap d at `first_delay_samples` + d after the arrival rounded to a sample;
beacon_error and link_error: expected square error of the taps over their mean power; link_frame: index along the
frames; link_user: who was heard; link_cfo_hz: the user's own offset beside the common one.
"""

_NUMBERS = ("sample_rate_hz", "frequency_hz", "band_hz", "beacon_power", "sampling_offset", "cfo_hz")
_MAX_MEMBER_BYTES = 1 << 34


@dataclass(frozen=True)
class ChannelRecording:
    """Estimated channels with their description.

    Attributes:
        arrays: as `ARRAYS` says.
        sample_rate_hz: of the recording.
        frequency_hz: its centre frequency.
        band_hz: the channel is known from minus this to this, from the carrier.
        first_delay_samples: delay of the first tap.
        beacon_power: mean power of the transmitted beacon.
        sampling_offset: relative excess of the transmitters' sampling clock.
        cfo_hz: typical common carrier offset.
        source: of what recording: name, sha512, path (air, cable, loopback, sim), and whatever tells it from others.
        method: how it was estimated.
        quality: summary of errors and residuals.
        created: when and with what versions it was estimated.
    """

    arrays: Mapping[str, np.ndarray]
    sample_rate_hz: float
    frequency_hz: float
    band_hz: float
    first_delay_samples: int
    beacon_power: float
    sampling_offset: float
    cfo_hz: float
    source: dict[str, Any]
    method: dict[str, Any]
    quality: dict[str, Any]
    created: dict[str, Any]

    @property
    def n_antennas(self) -> int:
        """Receive antennas."""
        return int(self.arrays["noise_power"].shape[1])

    @property
    def users(self) -> np.ndarray:
        """Users that were heard at least once, ascending; int64."""
        return np.unique(self.arrays["link_user"])

    def write(self, path: Path) -> Path:
        """Write both files, the description last.

        Args:
            path: with or without one of the endings.

        Returns:
            Path of the description.

        Raises:
            StorageError: the folder cannot be written.
            ValueError: the arrays are not what `ARRAYS` says.
        """
        info_path, data_path = channel_files(path)
        problem = _wrong(self.arrays, {name: getattr(self, name) for name in (*_NUMBERS, "first_delay_samples")})
        if problem:
            raise ValueError(problem)
        buffer = io.BytesIO()
        plain: dict[str, Any] = {
            name: np.ascontiguousarray(self.arrays[name], np.dtype(kind)) for name, (kind, _) in ARRAYS.items()
        }
        np.savez(buffer, **plain)
        info: dict[str, Any] = {"format": FORMAT, "version": VERSION}
        info |= {name: value for name, value in vars(self).items() if name != "arrays"}
        info["data_sha256"] = hashlib.sha256(buffer.getbuffer()).hexdigest()
        info["info_sha256"] = _info_hash(info)
        make_folder(info_path.parent)
        replace_file(data_path, bytes(buffer.getbuffer()))
        replace_file(info_path, (json.dumps(info, indent=1, allow_nan=False) + "\n").encode())
        return info_path


def channel_files(path: Path) -> tuple[Path, Path]:
    """Description and arrays that a path means: one of the two, their common name, or a folder with one of them.

    Raises:
        RecordingError: the folder holds none, or several.
    """
    path = Path(path)
    if path.is_dir():
        found = sorted(path.glob(f"*{INFO_SUFFIX}"))
        if len(found) != 1:
            names = ", ".join(item.name for item in found) or f"no file *{INFO_SUFFIX}"
            raise RecordingError(f"{path} holds {names}; name one channel recording, or make one from a run")
        path = found[0]
    name = path.name.removesuffix(INFO_SUFFIX).removesuffix(DATA_SUFFIX)
    return path.with_name(name + INFO_SUFFIX), path.with_name(name + DATA_SUFFIX)


def read_channels(path: Path) -> ChannelRecording:
    """Read a channel recording, and check all of it.

    Args:
        path: see `channel_files`.

    Raises:
        RecordingError: a file is missing, damaged, foreign, or of a newer version; names file and field.
    """
    info_path, data_path = channel_files(path)
    try:
        info = json.loads(info_path.read_text(encoding="utf-8"))
        data = data_path.read_bytes()
    except FileNotFoundError as error:
        raise RecordingError(f"{error.filename} is missing: not a whole channel recording; check the path") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RecordingError(f"{info_path} cannot be read: {error}; restore it from a copy") from error
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        raise RecordingError(f"{info_path}, format: this is no channel recording")
    if info.get("version") != VERSION:
        raise RecordingError(
            f"{info_path}, version: is {info.get('version')!r}, and {VERSION} is read here; use the semair it is from"
        )
    if info.get("info_sha256") != _info_hash(info):
        raise RecordingError(f"{info_path}, info_sha256: the description was changed or damaged; restore it")
    if info.get("data_sha256") != hashlib.sha256(data).hexdigest():
        raise RecordingError(f"{data_path}, data_sha256: the arrays were changed or damaged; restore them from a copy")
    fields: dict[str, Any] = {
        name: info.get(name) for name in ChannelRecording.__dataclass_fields__ if name != "arrays"
    }
    for name in ("source", "method", "quality", "created"):
        if not isinstance(fields[name], dict):
            raise RecordingError(f"{info_path}, {name}: is missing or no object; restore the file from a copy")
    arrays = _load(data, data_path)
    problem = _wrong(arrays, fields)
    if problem:
        raise RecordingError(f"{info_path}: {problem}; restore the recording from a copy")
    return ChannelRecording(arrays, **fields)


def _info_hash(info: Mapping[str, Any]) -> str:
    kept = {name: value for name, value in info.items() if name != "info_sha256"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _load(data: bytes, path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz, none of which claims more than its bytes."""
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name, (kind, axes) in ARRAYS.items():
                member = archive.getinfo(f"{name}.npy")
                if member.compress_type != zipfile.ZIP_STORED or member.file_size > min(len(data), _MAX_MEMBER_BYTES):
                    raise ValueError(f"{name} is compressed or larger than its file")
                content = io.BytesIO(archive.read(member))
                if np.lib.format.read_magic(content) != (1, 0):
                    raise ValueError(f"{name} has an unknown header")
                shape, _, dtype = np.lib.format.read_array_header_1_0(content)
                values = content.read()
                if dtype != np.dtype(kind) or len(shape) != len(axes):
                    raise ValueError(f"{name} is {dtype} {shape}, not {kind} with axes {axes}")
                if math.prod(shape) * dtype.itemsize != len(values):
                    raise ValueError(f"{name} has {len(values)} bytes for shape {shape}")
                arrays[name] = np.frombuffer(values, dtype).reshape(shape)
    except (zipfile.BadZipFile, KeyError, ValueError, NotImplementedError, EOFError) as error:
        raise RecordingError(f"{path} is no file of this format: {error}; restore it from a copy") from error
    return arrays


def _wrong(arrays: Mapping[str, np.ndarray], fields: Mapping[str, Any]) -> str:
    """What does not fit together; empty where all does."""
    sizes: dict[str, int] = {}
    for name, (_, axes) in ARRAYS.items():
        if name not in arrays or arrays[name].ndim != len(axes):
            return f"{name}: missing, or without the axes {', '.join(axes)}"
        for axis, size in zip(axes, arrays[name].shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                return f"{name}: {size} {axis}, other arrays have {sizes[axis]}"
        if not np.isfinite(arrays[name]).all():
            return f"{name}: holds NaN or infinite values"
    if not all(sizes.values()):
        return f"empty: {', '.join(axis for axis, size in sizes.items() if not size)}"
    for name in _NUMBERS:
        value = fields.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return f"{name}: is {value!r}, not a finite number"
    first = fields.get("first_delay_samples")
    if isinstance(first, bool) or not isinstance(first, int) or not -(2**16) <= first <= 2**16:
        return f"first_delay_samples: is {first!r}, not a small integer"
    for name in ("sample_rate_hz", "band_hz", "beacon_power"):
        if not fields[name] > 0:
            return f"{name}: is {fields[name]}; it must be above 0"
    if abs(fields["sampling_offset"]) > 1e-3:
        return f"sampling_offset: is {fields['sampling_offset']}; clocks differ by less"
    index, users = arrays["link_frame"], arrays["link_user"]
    if index.min() < 0 or index.max() >= sizes["frames"]:
        return f"link_frame: holds {index.min()} to {index.max()}, there are {sizes['frames']} frames"
    if users.min() < 0:
        return f"link_user: holds {users.min()}"
    if min(arrays["noise_power"].min(), arrays["link_error"].min(), arrays["beacon_error"].min()) < 0:
        return "noise_power, link_error or beacon_error: negative"
    return ""

"""Recordings in the forms that other programs take: one per channel, NumPy, HDF5. Archives: see `archive`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RecordingError, SetupError, StorageError
from . import storage
from .collection import write_collection
from .derive import excerpt, stored_pieces, stretches, write_recording
from .meta import check_name
from .reader import OnShare, Recording, to_complex

_AXES = ["channel", "sample"]


def per_channel(
    recording: Recording, folder: Path, *, overwrite: bool = False, on_share: OnShare | None = None
) -> Path:
    """One recording per channel and a collection over them, the form that the SigMF specification prefers.

    Args:
        recording: the source; compared with its checksum first.
        folder: where to.
        overwrite: replace earlier results.
        on_share: told the share done.

    Returns:
        The collection.

    Raises:
        RecordingError: the source is damaged, or the result exists.
        StorageError: it cannot be written.
    """
    if recording.sha512 is not None or recording.chunks is not None:
        recording.check_hash()
    names = {f"channel-{c}": f"{recording.name}-ch{c}" for c in range(recording.n_channels)}
    for channel, name in enumerate(names.values()):

        def tell(share: float, channel: int = channel) -> None:
            if on_share is not None:
                on_share((channel + share) / recording.n_channels)

        meta = excerpt(recording, channels=[channel], how="export")
        pieces = stored_pieces(recording, channels=[channel], on_share=tell)
        write_recording(folder, name, meta, pieces, overwrite=overwrite)
    title = f"{recording.name}-channels"
    return write_collection(folder, title, names, overwrite=overwrite)


def to_numpy(recording: Recording, target: Path, *, overwrite: bool = False, on_share: OnShare | None = None) -> Path:
    """Samples as complex64 (channels, samples) in a .npy file, to be mapped, and all metadata in .json beside it.

    Args:
        recording: the source; compared with its checksum on the way.
        target: the .npy file.
        overwrite: replace earlier results.
        on_share: told the share done.

    Returns:
        The .npy file.

    Raises:
        RecordingError: the source is damaged, or the result exists.
        StorageError: it cannot be written.
    """
    target = target if target.suffix == ".npy" else target.with_name(f"{target.name}.npy")
    description = target.with_suffix(".json")
    with _unfinished(target, description, overwrite=overwrite) as partial:
        shape = (recording.n_channels, recording.n_samples)
        _require_room(target.parent, 8 * shape[0] * shape[1])
        with partial.open("xb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<c8", "fortran_order": False, "shape": shape})
            begin = file.tell()
            for start, samples in _samples(recording, on_share):
                for channel, row in enumerate(samples):
                    file.seek(begin + 8 * (channel * recording.n_samples + start))
                    file.write(row.data)
        text = json.dumps({"array": target.name, "axes": _AXES, "name": recording.name, **_facts(recording)}, indent=1)
        storage.replace_file(description, text.encode())
    return target


def to_hdf5(recording: Recording, target: Path, *, overwrite: bool = False, on_share: OnShare | None = None) -> Path:
    """Samples as complex64 (channels, samples) in the data set ``iq`` of an HDF5 file; metadata as its attributes.

    Args:
        recording: the source; compared with its checksum on the way.
        target: the .h5 file.
        overwrite: replace earlier results.
        on_share: told the share done.

    Returns:
        The .h5 file.

    Raises:
        RecordingError: the source is damaged, or the result exists.
        SetupError: h5py is not installed.
        StorageError: it cannot be written.
    """
    try:
        import h5py
    except ImportError as err:
        raise SetupError("HDF5 files need h5py; install it: pip install 'semair[hdf5]'") from err
    target = target if target.suffix in (".h5", ".hdf5") else target.with_name(f"{target.name}.h5")
    with _unfinished(target, overwrite=overwrite) as partial:
        _require_room(target.parent, 8 * recording.n_channels * recording.n_samples)
        with h5py.File(partial, "w") as file:
            iq = file.create_dataset("iq", (recording.n_channels, recording.n_samples), np.complex64)
            iq.attrs["axes"] = _AXES
            for start, samples in _samples(recording, on_share):
                iq[:, start : start + samples.shape[1]] = samples
            facts = _facts(recording)
            # Attributes hold at most 64 kB; the whole metadata may be longer.
            file.create_dataset("sigmf_meta", data=json.dumps(facts.pop("meta")))
            for key, value in facts.items():
                file.attrs[key] = h5py.Empty("f8") if value is None else value
            segments = [(s.sample_start, -1 if s.global_index is None else s.global_index) for s in recording.segments]
            kind = np.dtype([("sample_start", "<i8"), ("global_index", "<i8")])
            file.create_dataset("segments", data=np.array(segments, kind))
    return target


@contextmanager
def _unfinished(*files: Path, overwrite: bool) -> Iterator[Path]:
    """Hidden file that becomes the first of the files if all goes well, and disappears if not."""
    target = files[0]
    check_name(target.name)
    for file in files:
        if file.exists() and not overwrite:
            raise RecordingError(f"{file} exists; choose another name, or overwrite it")
    with storage.unfinished(target) as partial:
        yield partial


def _require_room(folder: Path, n_bytes: int) -> None:
    free = storage.free_bytes(folder)
    if free < n_bytes + storage.PIECE_BYTES:
        raise StorageError(f"{n_bytes} bytes are needed in {folder}, {free} are free; free space or choose another")


def _samples(recording: Recording, on_share: OnShare | None) -> Iterator[tuple[int, np.ndarray]]:
    """First sample and complex64 (channels, samples), stretch by stretch."""
    start = 0
    for stretch in stretches(recording, check=True, on_share=on_share):
        out = np.empty((recording.n_channels, len(stretch)), np.complex64)
        to_complex(stretch, list(out))
        yield start, out
        start += len(stretch)


def _facts(recording: Recording) -> dict[str, Any]:
    return {
        "sample_rate_hz": recording.sample_rate_hz,
        "frequency_hz": recording.frequency_hz,
        "sha512": recording.sha512 or "",
        "meta": recording.meta,
    }

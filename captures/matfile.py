"""Arrays of IQ samples in MATLAB files: version 5 to 7 through SciPy, 7.3 (HDF5) through h5py."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from ..errors import RecordingError, SetupError

EXPANSION_LIMIT = 64
"""Times the file's own size that an array in it may have: compressed IQ samples stay far below."""
SIZE_LIMIT_BYTES = 2 << 30
_HDF5 = b"\x89HDF\r\n\x1a\n"


def read_array(path: Path, key: str | None = None, n_channels: int | None = None) -> tuple[str, np.ndarray]:
    """IQ samples in a .mat file.

    Args:
        path: the file.
        key: the variable; the only complex one if None.
        n_channels: length of the channel axis; if None, the shorter axis is taken for it.

    Returns:
        Name of the variable; complex64, (channels, samples).

    Raises:
        RecordingError: it is damaged, holds no such array or several, or it is not clear which axis is which.
        SetupError: it is an HDF5 file and h5py is not installed.
    """
    with path.open("rb") as file:
        start = file.read(1024)
    reader = _read_hdf5 if _HDF5 in (start[:8], start[512:520]) else _read_scipy
    name, values = reader(path, key)
    if values.dtype.kind != "c":
        raise RecordingError(f"{path}, {name}: is {values.dtype}, not complex; IQ samples are needed")
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or 0 in values.shape:
        raise RecordingError(f"{path}, {name}: has shape {values.shape}; channels and samples are needed, two axes")
    lengths = list(values.shape)
    if n_channels is None:
        if lengths[0] == lengths[1]:
            raise RecordingError(
                f"{path}, {name}: has shape {values.shape}; give --channels, either axis could be that"
            )
        axis = int(np.argmin(lengths))
    elif lengths.count(n_channels) == 1:
        axis = lengths.index(n_channels)
    elif n_channels in lengths:
        axis = 0
    else:
        raise RecordingError(f"{path}, {name}: has shape {values.shape}; no axis has {n_channels} channels")
    with np.errstate(over="ignore"):
        return name, np.ascontiguousarray(np.moveaxis(values, axis, 0), np.complex64)


def _chosen(path: Path, key: str | None, complex_names: list[str], all_names: list[str]) -> str:
    if key is not None:
        if key not in all_names:
            raise RecordingError(f"{path} has no variable {key!r}; it has: {', '.join(all_names[:20]) or 'none'}")
        return key
    if len(complex_names) != 1:
        found = ", ".join((complex_names or all_names)[:20]) or "none"
        raise RecordingError(
            f"{path} has {len(complex_names)} arrays that could be IQ samples; name one with --key, there are: {found}"
        )
    return complex_names[0]


def _bounded(path: Path, name: str, n_bytes: int) -> None:
    limit = min(SIZE_LIMIT_BYTES, max(1 << 20, EXPANSION_LIMIT * path.stat().st_size))
    if n_bytes > limit:
        raise RecordingError(
            f"{path}, {name}: claims to have {n_bytes} bytes, and {limit} are read at most from a file of"
            f" {path.stat().st_size}; save it as raw samples and import those"
        )


def _read_scipy(path: Path, key: str | None) -> tuple[str, np.ndarray]:
    try:
        listed = {name: shape for name, shape, kind in scipy.io.whosmat(str(path)) if kind in _NUMERIC}
        for name, shape in listed.items():
            _bounded(path, name, 16 * math.prod(shape))
        if key is None:
            # Whether an array is complex is known only once it is read.
            read = scipy.io.loadmat(str(path), variable_names=list(listed), squeeze_me=False)
            read = {name: value for name, value in read.items() if name in listed}
        else:
            read = scipy.io.loadmat(str(path), variable_names=[_chosen(path, key, [], list(listed))])
        used = _chosen(path, key, [n for n, v in read.items() if np.iscomplexobj(v) and v.size > 1], list(listed))
        return used, np.asarray(read[used])
    except RecordingError:
        raise
    # SciPy raises whatever it stumbles over in a damaged file.
    except Exception as err:
        raise RecordingError(f"{path} is damaged or no .mat file ({type(err).__name__}: {err}); get it again") from err


_NUMERIC = ("double", "single", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


@contextmanager
def _hdf5(path: Path) -> Iterator[Any]:
    try:
        import h5py
    except ImportError as err:
        raise SetupError(f"{path} is an HDF5 file; install h5py to read it: pip install 'semair[hdf5]'") from err
    try:
        with h5py.File(path, "r") as file:
            yield file
    except RecordingError:
        raise
    except Exception as err:
        raise RecordingError(f"{path} is damaged or no HDF5 file ({type(err).__name__}: {err}); get it again") from err


def _read_hdf5(path: Path, key: str | None) -> tuple[str, np.ndarray]:
    with _hdf5(path) as file:
        import h5py

        names, iq = [], []
        for name in file:
            # Soft and external links may lead to other files.
            if not isinstance(file.get(name, getlink=True), h5py.HardLink):
                continue
            item = file[name]
            if not isinstance(item, h5py.Dataset) or item.external or item.is_virtual or item.shape is None:
                continue
            names.append(name)
            if _is_complex(item.dtype) and math.prod(item.shape) > 1:
                iq.append(name)
        used = _chosen(path, key, iq, names)
        data = file[used]
        _bounded(path, used, 16 * math.prod(data.shape))
        values = data[()]
    if values.dtype.names is not None and set(values.dtype.names) == {"real", "imag"}:
        values = values["real"] + 1j * values["imag"]
    # MATLAB stores the first axis fastest.
    return used, np.asarray(values).T


def _is_complex(dtype: np.dtype) -> bool:
    return dtype.kind == "c" or (dtype.names is not None and set(dtype.names) == {"real", "imag"})

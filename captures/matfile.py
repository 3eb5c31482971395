"""Arrays of IQ samples in MATLAB files: version 5 to 7 through SciPy, 7.3 (HDF5) through h5py."""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RecordingError, SetupError

EXPANSION_LIMIT = 64
"""Times the file's own size that an array in it may have: compressed IQ samples stay far below."""
SIZE_LIMIT_BYTES = 2 << 30
TIME_LIMIT_S = 120
_HDF5 = b"\x89HDF\r\n\x1a\n"


def read_array(path: Path, key: str | None = None, n_channels: int | None = None) -> tuple[str, np.ndarray]:
    """IQ samples in a .mat file.

    The libraries that know these formats are compiled, and damaged files crash them. They run in a process of their
    own, with bounded memory.

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
    command = [sys.executable, "-m", f"{__package__}.matfile", str(path.resolve()), key or "", str(n_channels or 0)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, env=environment, timeout=TIME_LIMIT_S, stdin=subprocess.DEVNULL, check=False
        )
    except subprocess.TimeoutExpired as err:
        raise RecordingError(f"{path} took longer than {TIME_LIMIT_S} s to read; save it as raw samples") from err
    head, _, content = done.stdout.partition(b"\n")
    if done.returncode != 0 or not head:
        raise RecordingError(f"{path} is damaged: it crashed the library that reads it; get it again")
    told = json.loads(head)
    if "error" in told:
        raise (SetupError if told["setup"] else RecordingError)(told["error"])
    return told["name"], np.frombuffer(content, np.complex64).reshape(told["shape"])


def _serve(path: Path, key: str | None, n_channels: int | None) -> None:
    """The other process: a line of JSON, and the samples."""
    _bound_memory(path)
    out = sys.stdout.buffer
    try:
        name, values = read_unguarded(path, key, n_channels)
    except (RecordingError, SetupError, MemoryError) as err:
        text = str(err) or f"{path} needs more memory than a file of its size should; save it as raw samples"
        out.write(json.dumps({"error": text, "setup": isinstance(err, SetupError)}).encode() + b"\n")
        return
    out.write(json.dumps({"name": name, "shape": values.shape}).encode() + b"\n")
    out.write(values.reshape(-1).view(np.uint8).data)


def _bound_memory(path: Path) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (256 << 20) + 4 * _limit_bytes(path)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def read_unguarded(path: Path, key: str | None = None, n_channels: int | None = None) -> tuple[str, np.ndarray]:
    """As `read_array`, in this process: for files that are known to be sound."""
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
            raise RecordingError(f"{path}, {name}: has shape {values.shape}; either axis could be the channels")
        axis = int(np.argmin(lengths))
    elif n_channels in lengths:
        axis = lengths.index(n_channels)
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


def _limit_bytes(path: Path) -> int:
    return min(SIZE_LIMIT_BYTES, max(1 << 20, EXPANSION_LIMIT * path.stat().st_size))


def _bounded(path: Path, name: str, n_bytes: int) -> None:
    if n_bytes > _limit_bytes(path):
        raise RecordingError(
            f"{path}, {name}: claims to have {n_bytes} bytes, and {_limit_bytes(path)} are read at most from a file of"
            f" {path.stat().st_size}; save it as raw samples and import those"
        )


def _read_scipy(path: Path, key: str | None) -> tuple[str, np.ndarray]:
    import scipy.io

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


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), sys.argv[2] or None, int(sys.argv[3]) or None)

"""Reference sequences for the preamble detector: standard ones by name, others from a file."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.fft
import sigmf
from sigmf.error import SigMFError

from ...errors import RecordingError, ScenarioError

# IEEE Std 802.11-2020, 17.3.3, equation (17-8): subcarriers -26 to 26 of the long training symbol.
_SIGNS_BELOW_DC = [1, 1, -1, -1, 1, 1, -1, 1, -1, 1, 1, 1, 1, 1, 1, -1, -1, 1, 1, -1, 1, -1, 1, 1, 1, 1]
_SIGNS_ABOVE_DC = [1, -1, -1, 1, 1, -1, 1, -1, 1, -1, -1, -1, -1, -1, 1, 1, -1, -1, 1, -1, 1, -1, 1, 1, 1, 1]
_LONG_TRAINING = np.array([*_SIGNS_BELOW_DC, 0, *_SIGNS_ABOVE_DC])

# IEEE Std 802.11-2020, 17.3.3, equation (17-6): every fourth subcarrier from -24 to 24 of the short training
# symbol, in units of sqrt(13/6) (1 + j).
_SHORT_TRAINING = np.array([1, -1, 1, -1, -1, 1, 0, -1, -1, 1, 1, 1, 1])


def _training_symbol(subcarriers: np.ndarray) -> np.ndarray:
    """64 samples of an OFDM symbol from its subcarriers -n to n; complex128."""
    half = len(subcarriers) // 2
    spectrum = np.zeros(64, complex)
    spectrum[np.arange(-half, half + 1)] = subcarriers
    return scipy.fft.ifft(spectrum)


def _l_ltf_64() -> np.ndarray:
    return _training_symbol(_LONG_TRAINING)


def _l_ltf() -> np.ndarray:
    symbol = _l_ltf_64()
    return np.concatenate([symbol[-32:], symbol, symbol])


def _l_stf() -> np.ndarray:
    subcarriers = np.zeros(53, complex)
    subcarriers[2:51:4] = (1 + 1j) * _SHORT_TRAINING
    return np.tile(_training_symbol(subcarriers)[:16], 10)


_STANDARD: dict[str, Callable[[], np.ndarray]] = {"l-ltf": _l_ltf, "l-ltf-64": _l_ltf_64, "l-stf": _l_stf}

_RAW_TYPES = {".cf32": "<c8", ".fc32": "<c8", ".cfile": "<c8", ".ci16": "<i2", ".sc16": "<i2"}
_SIGMF_SUFFIXES = (".sigmf", ".sigmf-meta", ".sigmf-data")


def reference_names() -> list[str]:
    """Names of the standard sequences that `named_reference` knows."""
    return sorted(_STANDARD)


def named_reference(name: str) -> np.ndarray:
    """A standard reference sequence, at 64 samples per symbol (20 MS/s in 802.11a/g/n).

    - `l-ltf`: legacy long training field, 160 samples: a prefix of 32 and two equal symbols of 64.
    - `l-ltf-64`: one of those symbols.
    - `l-stf`: legacy short training field, 160 samples: ten times the same 16.

    IEEE Std 802.11-2020, 17.3.3. The transitions that the standard's windowing allows are left out.

    Args:
        name: one of `reference_names()`.

    Returns:
        complex64, (samples,), unit mean power.

    Raises:
        ScenarioError: unknown name.
    """
    if name not in _STANDARD:
        raise ScenarioError(
            f"reference {name!r} is not known; use {', '.join(reference_names())}, or the path of a file"
        )
    return _unit_power(_STANDARD[name]())


def read_reference(path: str | Path, start_sample: int = 0, n_samples: int | None = None) -> np.ndarray:
    """Read a reference sequence, or a cut of it, from a file.

    The ending decides: `.npy` (one axis, complex), `.sigmf-meta`, `.sigmf-data` or `.sigmf` (one channel),
    raw little-endian `.cf32`, `.fc32`, `.cfile` (pairs of float32), `.ci16`, `.sc16` (pairs of int16).

    Args:
        path: the file.
        start_sample: first sample of the cut, from 0.
        n_samples: length of the cut; None: up to the end.

    Returns:
        complex64, (samples,), unit mean power.

    Raises:
        ScenarioError: the ending is unknown, or the cut is empty or lies outside the file.
        RecordingError: the file is missing or damaged, has several channels, is not complex, holds
            values that are not finite, or is zero throughout the cut.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix != ".npy" and suffix not in _SIGMF_SUFFIXES and suffix not in _RAW_TYPES:
        known = ", ".join([".npy", *_SIGMF_SUFFIXES, *_RAW_TYPES])
        raise ScenarioError(f"reference file {path}: ending {path.suffix!r} is not known; use one of {known}")
    if not path.is_file():
        raise RecordingError(f"reference file {path} does not exist; give the path of an existing file")
    if suffix == ".npy":
        samples = _read_npy(path)
    elif suffix in _SIGMF_SUFFIXES:
        samples = _read_sigmf(path)
    else:
        samples = _read_raw(path, np.dtype(_RAW_TYPES[suffix]))
    if samples.ndim != 1 or not np.iscomplexobj(samples):
        raise RecordingError(
            f"reference file {path} holds {samples.dtype} of shape {samples.shape}; one axis of complex "
            "samples is needed: extract one channel"
        )
    end = len(samples) if n_samples is None else start_sample + n_samples
    if not 0 <= start_sample < end <= len(samples):
        raise ScenarioError(
            f"reference cut start_sample={start_sample}, n_samples={n_samples} does not fit the "
            f"{len(samples)} samples of {path}"
        )
    cut = samples[start_sample:end]
    if not np.all(np.isfinite(cut)) or not np.any(cut):
        raise RecordingError(
            f"reference file {path}: samples {start_sample} to {end - 1} must be finite and not zero "
            "throughout; choose another part"
        )
    return _unit_power(cut)


def load_reference(name_or_path: str | Path, start_sample: int = 0, n_samples: int | None = None) -> np.ndarray:
    """A reference sequence by its standard name, or from a file; see `named_reference` and `read_reference`.

    Returns:
        complex64, (samples,), unit mean power.
    """
    if str(name_or_path) not in _STANDARD and Path(name_or_path).suffix:
        return read_reference(name_or_path, start_sample, n_samples)
    sequence = named_reference(str(name_or_path))
    if start_sample != 0 or n_samples not in (None, len(sequence)):
        raise ScenarioError(f"reference {name_or_path!r} is a whole sequence; start_sample and n_samples are for files")
    return sequence


def _unit_power(samples: np.ndarray) -> np.ndarray:
    wide = samples.astype(complex)
    wide /= np.max(np.abs(wide))
    return (wide / np.sqrt(np.mean(np.abs(wide) ** 2))).astype(np.complex64)


def _read_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise RecordingError(f"reference file {path} is not a readable .npy file: {error}") from error


def _read_sigmf(path: Path) -> np.ndarray:
    try:
        return np.asarray(sigmf.fromfile(str(path)).read_samples())
    except (SigMFError, tarfile.TarError, ValueError, OSError, KeyError) as error:
        raise RecordingError(f"reference file {path} is not a readable SigMF recording: {error}") from error


def _read_raw(path: Path, dtype: np.dtype) -> np.ndarray:
    size = path.stat().st_size
    per_sample = 8 if dtype.kind == "c" else 2 * dtype.itemsize
    if size == 0 or size % per_sample:
        raise RecordingError(
            f"reference file {path} has {size} bytes, not a positive multiple of the {per_sample} bytes of a "
            f"{path.suffix} sample; check the ending or copy the file again"
        )
    values = np.fromfile(path, dtype)
    return values if dtype.kind == "c" else values[0::2] + 1j * values[1::2]

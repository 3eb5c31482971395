"""Compiled kernels on Hermitian matrices packed as real ones.

A Hermitian matrix A is stored as the real square matrix T = Re A + Im A: its symmetric part is Re A, its
antisymmetric part Im A, so nothing is lost and nothing is held twice. Then a quadratic form is one real
inner product, s^H A s = sum(F * T) with F = Re conj(s) s^T - Im conj(s) s^T, and a rank-one update touches
L^2 reals.

All kernels work in units of the noise: received values over the noise's standard deviation, powers over its
variance. They use one thread, release the GIL, and treat each sample alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

_FAST = {"reassoc", "contract", "nsz", "arcp"}
_SOURCES: dict[str, set[str]] = {}
"""Files from which the compiled functions of a file are made, by file."""


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function of arrays: vectorised sums and fused multiply-adds, but NaN and infinities keep their meaning.

    Inlined by force: a function called across libraries may be another copy, vectorised otherwise, when it is compiled
    than when it is loaded from the cache, and a replay would differ from its run in the last bits.

    What was compiled is kept on disk. numba makes it again when the function's own file has changed, but not when one
    has from which it inlines; here that counts, too.
    """
    file = function.__code__.co_filename
    sources = _SOURCES.setdefault(file, {file})
    for name in function.__code__.co_names:
        used = function.__globals__.get(name)
        used_file = getattr(getattr(used, "py_func", None), "__globals__", {}).get("__file__")
        sources |= _SOURCES.get(used_file or getattr(used, "__file__", None) or "", set())
    dispatcher = njit(nogil=True, cache=True, fastmath=_FAST, forceinline=True)(function)
    # Without a compiler (NUMBA_DISABLE_JIT) there are no statistics, and nothing is kept.
    kept = getattr(getattr(dispatcher, "stats", None), "cache_path", None)
    if kept is not None:
        newest = max(os.stat(source).st_mtime for source in sources)
        for index in Path(kept).glob(f"{Path(file).stem}.{function.__qualname__}-*.nbi"):
            if index.stat().st_mtime < newest:
                index.unlink(missing_ok=True)
    return dispatcher


PAD = 4
"""Matrix sides are padded with zeros to a multiple of this many doubles, a vector register."""

NOISE_FLOOR = 1e-7
"""Least noise power, as a share of the received power, that double precision carries through the updates."""


def padded(length: int) -> int:
    """Side of the packed matrices for preambles of `length` symbols."""
    return -(-length // PAD) * PAD


def forms(preambles: NDArray[np.complex64]) -> NDArray[np.float64]:
    """Prepare quadratic forms: complex64 (symbol, user) -> float64 (user, padded symbol * padded symbol)."""
    s = preambles.T.astype(np.complex128)
    length = s.shape[1]
    outer = s.conj()[:, :, None] * s[:, None, :]
    side = padded(length)
    packed = np.zeros((s.shape[0], side, side))
    packed[:, :length, :length] = outer.real - outer.imag
    return packed.reshape(s.shape[0], side * side)


def columns(preambles: NDArray[np.complex64]) -> NDArray[np.float64]:
    """Real and imaginary parts: complex64 (symbol, user) -> float64 (user, 2, padded symbol)."""
    length, n_users = preambles.shape
    parts = np.zeros((n_users, 2, padded(length)))
    parts[:, 0, :length] = preambles.real.T
    parts[:, 1, :length] = preambles.imag.T
    return parts


class Prepared:
    """Columns and quadratic forms of a pool, worked out once for each length that is asked for."""

    def __init__(self, preambles: NDArray[np.complex64]) -> None:
        self._preambles = preambles
        self._known: dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}

    def of(self, length: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """`columns` and `forms` of the first `length` symbols."""
        if length not in self._known:
            sent = self._preambles[:length]
            self._known[length] = (columns(sent), forms(sent))
        return self._known[length]


@compiled
def covariance(y, noise_power, out):
    """Write the packed Y Y^H / (M noise) of one sample into `out`; return the noise power used.

    y: complex64 (symbol, snapshot); out: float64 (side, side). The noise power is raised to `NOISE_FLOOR` of
    the received power where it lies below.
    """
    length, n_snapshots = y.shape
    re = np.empty((length, n_snapshots))
    im = np.empty((length, n_snapshots))
    power = 0.0
    for i in range(length):
        for m in range(n_snapshots):
            re[i, m] = y[i, m].real
            im[i, m] = y[i, m].imag
            power += re[i, m] * re[i, m] + im[i, m] * im[i, m]
    used = max(noise_power, NOISE_FLOOR * power / (length * n_snapshots))
    scale = 1.0 / (n_snapshots * used)
    out[:, :] = 0.0
    for i in range(length):
        for j in range(i + 1):
            real = 0.0
            imag = 0.0
            for m in range(n_snapshots):
                real += re[i, m] * re[j, m] + im[i, m] * im[j, m]
                imag += im[i, m] * re[j, m] - re[i, m] * im[j, m]
            out[i, j] = (real + imag) * scale
            out[j, i] = (real - imag) * scale
    return used


@compiled
def form(features, packed):
    """Quadratic form s^H A s; both float64 (side * side,)."""
    total = 0.0
    for k in range(packed.size):
        total += features[k] * packed[k]
    return total


@compiled
def quadratic(packed, x):
    """Quadratic form x^H A x of a vector without prepared features; packed (side, side), x (2, side)."""
    side = packed.shape[0]
    total = 0.0
    for i in range(side):
        real = 0.0
        imag = 0.0
        for j in range(side):
            real += packed[i, j] * x[0, j]
            imag += packed[i, j] * x[1, j]
        total += (x[0, i] + x[1, i]) * real + (x[1, i] - x[0, i]) * imag
    return total


@compiled
def product(packed, s, out):
    """Write A s into `out`; packed float64 (side, side), s and out float64 (2, side).

    With T the packed matrix: 2 Re A s = T (s_r - s_i) + T' (s_r + s_i),
    2 Im A s = T (s_r + s_i) + T' (s_i - s_r).
    """
    side = packed.shape[0]
    for j in range(side):
        out[0, j] = 0.0
        out[1, j] = 0.0
    for i in range(side):
        plus = 0.5 * (s[0, i] + s[1, i])
        minus = 0.5 * (s[1, i] - s[0, i])
        for j in range(side):
            out[0, j] += packed[i, j] * plus
            out[1, j] += packed[i, j] * minus
    for i in range(side):
        real = 0.0
        imag = 0.0
        for j in range(side):
            real += packed[i, j] * s[0, j]
            imag += packed[i, j] * s[1, j]
        out[0, i] += 0.5 * (real - imag)
        out[1, i] += 0.5 * (real + imag)


@compiled
def inner(x, y):
    """Real part of x^H y; both float64 (2, side)."""
    total = 0.0
    for i in range(x.shape[1]):
        total += x[0, i] * y[0, i] + x[1, i] * y[1, i]
    return total


@compiled
def subtract_outer(packed, b, factor):
    """A -= factor b b^H in place; packed float64 (side, side), b float64 (2, side)."""
    side = packed.shape[0]
    for i in range(side):
        plus = factor * (b[0, i] + b[1, i])
        minus = factor * (b[1, i] - b[0, i])
        for j in range(side):
            packed[i, j] -= plus * b[0, j] + minus * b[1, j]


@compiled
def subtract_outer_pair(packed, b, c):
    """A -= b c^H + c b^H in place; packed float64 (side, side), b and c float64 (2, side)."""
    side = packed.shape[0]
    for i in range(side):
        plus = b[0, i] + b[1, i]
        minus = b[1, i] - b[0, i]
        for j in range(side):
            packed[i, j] -= plus * c[0, j] + minus * c[1, j]
    for i in range(side):
        plus = c[0, i] + c[1, i]
        minus = c[1, i] - c[0, i]
        for j in range(side):
            packed[i, j] -= plus * b[0, j] + minus * b[1, j]


@compiled
def add_user(inverse, weighted, s, delta, b, c):
    """Change Sigma by delta s s^H in place: Q = Sigma^-1 and P = Q C Q by rank-one formulas.

    inverse, weighted: packed Q and P, float64 (side, side); s: float64 (2, side); b, c: work, as s.
    With b = Q s, c = P s, v = s^H b, u = s^H c, k = delta / (1 + delta v):
    Q -= k b b^H and P -= k (b w^H + w b^H) with w = c - (k u / 2) b.
    """
    side = inverse.shape[0]
    product(inverse, s, b)
    product(weighted, s, c)
    k = delta / (1.0 + delta * inner(s, b))
    half = 0.5 * k * inner(s, c)
    for i in range(side):
        c[0, i] = k * (c[0, i] - half * b[0, i])
        c[1, i] = k * (c[1, i] - half * b[1, i])
    subtract_outer(inverse, b, k)
    subtract_outer_pair(weighted, b, c)


@compiled
def sandwich(outer, middle, out, b, c):
    """Write A B A into `out` for Hermitian A, B; all packed (side, side); b, c: work, float64 (2, side)."""
    side = outer.shape[0]
    for i in range(side):
        for j in range(side):
            b[0, j] = 0.5 * (outer[j, i] + outer[i, j])
            b[1, j] = 0.5 * (outer[j, i] - outer[i, j])
        product(middle, b, c)
        product(outer, c, b)
        for j in range(side):
            out[j, i] = b[0, j] + b[1, j]


@compiled
def rebuild(powers, s, packed_covariance, inverse, weighted, b, c):
    """Write Q and P for Sigma = I + sum powers_n s_n s_n^H from scratch, which sheds rounding errors."""
    side = inverse.shape[0]
    for i in range(side):
        for j in range(side):
            inverse[i, j] = 0.0
        inverse[i, i] = 1.0
    for n in range(powers.size):
        if powers[n] > 0.0:
            product(inverse, s[n], b)
            subtract_outer(inverse, b, powers[n] / (1.0 + powers[n] * inner(s[n], b)))
    sandwich(inverse, packed_covariance, weighted, b, c)

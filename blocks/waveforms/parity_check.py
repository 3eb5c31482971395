"""Parity-check matrices of short codes of any length and rate, for a decoder that passes beliefs along their edges.

The last columns form a staircase (repeat-accumulate codes; Jin, Khandekar, McEliece 2000), which makes every matrix
full rank and every code systematic. The edges of the other columns are placed one by one, each at a check as far as
can be from the column in the graph so far (progressive edge growth; Hu, Eleftheriou, Arnold, IEEE Trans. Inf. Theory
51(1), 2005), so that short cycles, which a decoder of beliefs suffers from, come as late as they can.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numba
import numpy as np
from numpy.typing import NDArray

MAX_CODED = 4096
"""Longest code word in bits."""

_EDGES = 3
_MANY_EDGES = 8
_MANY_SHARE = 0.12


@lru_cache(maxsize=256)
def parity_check(n_info: int, n_coded: int) -> NDArray[np.uint8]:
    """Parity-check matrix of a code; the same one for the same numbers.

    Args:
        n_info: information bits, at least 1.
        n_coded: bits of a code word, more than n_info.

    Returns:
        uint8, (n_coded - n_info, n_coded), not writable: the first n_info columns are those of the information bits.

    Raises:
        ValueError: sizes are out of range.
    """
    if not 1 <= n_info < n_coded <= MAX_CODED:
        raise ValueError(f"n_info={n_info}, n_coded={n_coded}: need 1 <= n_info < n_coded <= {MAX_CODED}")
    n_checks = n_coded - n_info
    matrix = np.zeros((n_checks, n_coded), np.uint8)
    steps = np.arange(n_checks)
    matrix[steps, n_info + steps] = 1
    matrix[steps[1:], n_info + steps[:-1]] = 1
    degrees = np.full(n_info, min(_EDGES, n_checks))
    # A few columns with many edges make decoding start at lower SNR; they do harm where there are few checks.
    many = round(_MANY_SHARE * n_coded) if n_checks >= 3 * _MANY_EDGES and n_info <= 2 * n_checks else 0
    degrees[n_info - min(many, n_info) :] = min(_MANY_EDGES, n_checks)
    _grow(matrix, degrees, np.random.default_rng(n_info * MAX_CODED + n_coded).random((n_info, n_checks)))
    matrix.flags.writeable = False
    return matrix


def as_alist(matrix: NDArray[np.uint8]) -> str:
    """A matrix in MacKay's alist format, as GNU Radio reads it; uint8, (check, column)."""
    columns = [np.flatnonzero(column) + 1 for column in matrix.T]
    rows = [np.flatnonzero(row) + 1 for row in matrix]
    lines: list[Iterable[int]] = [
        [matrix.shape[1], matrix.shape[0]],
        [max(map(len, columns)), max(map(len, rows))],
        [len(places) for places in columns],
        [len(places) for places in rows],
        *columns,
        *rows,
    ]
    return "".join(" ".join(str(number) for number in line) + "\n" for line in lines)


@numba.njit(cache=True)
def _grow(matrix, degrees, order):
    """Place the edges of the first columns; `order`, (column, check), decides among equally good checks."""
    n_checks, n_columns = matrix.shape
    # Edges by check and by column.
    members, load = np.zeros((n_checks, n_columns), np.int32), np.zeros(n_checks, np.int32)
    checks, degree = np.zeros((n_columns, n_checks), np.int32), np.zeros(n_columns, np.int32)
    for check in range(n_checks):
        for column in range(n_columns):
            if matrix[check, column]:
                members[check, load[check]] = column
                load[check] += 1
                checks[column, degree[column]] = check
                degree[column] += 1
    depth = np.zeros(n_checks, np.int32)
    seen = np.zeros(n_columns, np.bool_)
    queue = np.zeros(n_checks, np.int32)
    for column in range(len(degrees)):
        for _ in range(degrees[column]):
            # Breadth first from the column; a depth of 0 is that of checks never reached.
            depth[:] = 0
            seen[:] = False
            seen[column] = True
            head, tail = 0, degree[column]
            for k in range(tail):
                queue[k] = checks[column, k]
                depth[queue[k]] = 1
            while head < tail:
                check = queue[head]
                head += 1
                for k in range(load[check]):
                    other = members[check, k]
                    if not seen[other]:
                        seen[other] = True
                        for j in range(degree[other]):
                            further = checks[other, j]
                            if depth[further] == 0:
                                depth[further] = depth[check] + 1
                                queue[tail] = further
                                tail += 1
            wanted = 0 if tail < n_checks else depth[queue[tail - 1]]
            best = -1
            for check in range(n_checks):
                if depth[check] == wanted and (
                    best < 0
                    or load[check] < load[best]
                    or (load[check] == load[best] and order[column, check] < order[column, best])
                ):
                    best = check
            matrix[best, column] = 1
            members[best, load[best]] = column
            load[best] += 1
            checks[column, degree[column]] = best
            degree[column] += 1

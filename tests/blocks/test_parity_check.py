"""Parity-check matrices: rank, cycles, and their file format read back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from semair.blocks.waveforms.parity_check import MAX_CODED, as_alist, parity_check


def rank(matrix: np.ndarray) -> int:
    """Over GF(2), by elimination."""
    rows, found = matrix.copy().astype(bool), 0
    for column in range(rows.shape[1]):
        pivots = np.flatnonzero(rows[found:, column]) + found
        if pivots.size:
            rows[[found, pivots[0]]] = rows[[pivots[0], found]]
            others = rows[:, column].copy()
            others[found] = False
            rows[others] ^= rows[found]
            found += 1
            if found == len(rows):
                break
    return found


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 120), st.integers(1, 120))
def test_every_size_has_full_rank_and_no_idle_column(n_info, n_checks):
    matrix = parity_check(n_info, n_info + n_checks)
    assert matrix.shape == (n_checks, n_info + n_checks)
    assert rank(matrix) == n_checks
    assert matrix.any(0).all()
    assert (matrix.sum(0)[:n_info] >= min(3, n_checks)).all()


@pytest.mark.parametrize(("n_info", "n_coded"), [(64, 128), (170, 512), (256, 512), (384, 768)])
def test_no_two_columns_share_two_checks(n_info, n_coded):
    shared = parity_check(n_info, n_coded).astype(int)
    shared = shared.T @ shared
    np.fill_diagonal(shared, 0)
    assert shared.max() == 1


def test_the_same_sizes_give_the_same_matrix():
    first = parity_check(30, 70).copy()
    parity_check.cache_clear()
    np.testing.assert_array_equal(parity_check(30, 70), first)


def test_the_file_says_what_the_matrix_says():
    matrix = parity_check(20, 50)
    numbers = [[int(word) for word in line.split()] for line in as_alist(matrix).splitlines()]
    (n, m), (most_of_a_column, most_of_a_row), by_column, by_row, *lists = numbers
    assert (n, m) == (50, 30)
    assert (max(by_column), max(by_row)) == (most_of_a_column, most_of_a_row)
    from_columns, from_rows = np.zeros((m, n), np.uint8), np.zeros((m, n), np.uint8)
    for column, places in enumerate(lists[:n]):
        assert len(places) == by_column[column]
        from_columns[np.array(places) - 1, column] = 1
    for row, places in enumerate(lists[n:]):
        assert len(places) == by_row[row]
        from_rows[row, np.array(places) - 1] = 1
    np.testing.assert_array_equal(from_columns, matrix)
    np.testing.assert_array_equal(from_rows, matrix)


@pytest.mark.parametrize(("n_info", "n_coded"), [(0, 4), (4, 4), (5, 4), (1, MAX_CODED + 1)])
def test_sizes_out_of_range_are_refused(n_info, n_coded):
    with pytest.raises(ValueError, match="need 1 <= n_info < n_coded"):
        parity_check(n_info, n_coded)

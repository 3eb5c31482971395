"""Tables on disk: any rows come back, and a crash at any byte leaves the complete ones."""

from __future__ import annotations

import errno

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from semair.errors import RecordingError, StorageError
from semair.flowgraphs.rowlog import RowLog, read_rows

DTYPES = st.sampled_from(
    [
        np.dtype([("frame", "<i8"), ("scores", "<f8", (3,)), ("ok", "?")]),
        np.dtype([("values", "<c8", (5,))]),
        np.dtype([("bits", "u1", (16,)), ("t", "<f4"), ("n", "<i4")]),
    ]
)


@st.composite
def tables(draw) -> np.ndarray:
    dtype = draw(DTYPES)
    n_bytes = draw(st.integers(0, 8)) * dtype.itemsize
    return np.frombuffer(draw(st.binary(min_size=n_bytes, max_size=n_bytes)), dtype)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rowlog")


@given(rows=tables(), cuts=st.lists(st.integers(0, 8), max_size=4), one_by_one=st.booleans())
@settings(max_examples=40, deadline=None)
def test_rows_come_back_bit_for_bit_however_they_were_appended(folder, rows, cuts, one_by_one):
    path = folder / "rows.npy"
    with RowLog(path, rows.dtype) as log:
        for part in rows if one_by_one else np.split(rows, sorted(cuts)):
            log.append(part)
        assert log.rows == len(rows)
    assert read_rows(path).tobytes() == rows.tobytes()
    assert read_rows(path).dtype == rows.dtype
    # A finished table is a plain NumPy file.
    assert np.load(path).tobytes() == rows.tobytes()


@given(rows=tables(), part=st.floats(0, 1), of_header=st.booleans())
@settings(max_examples=60, deadline=None)
def test_crash_at_any_byte_leaves_the_complete_rows(folder, rows, part, of_header):
    log = RowLog(folder / "rows.npy", rows.dtype)
    for row in rows:
        log.append(row)
    # Not closed: what another process would find after this one was killed.
    content = (folder / "rows.npy").read_bytes()
    log.close()
    head = len(content) - rows.nbytes
    cut = round(part * (head - 1)) if of_header else head + round(part * rows.nbytes)
    (folder / "cut.npy").write_bytes(content[:cut])
    if cut < head:
        with pytest.raises(RecordingError, match=r"cut\.npy"):
            read_rows(folder / "cut.npy")
    else:
        whole = (cut - head) // rows.dtype.itemsize
        assert read_rows(folder / "cut.npy").tobytes() == rows[:whole].tobytes()


def test_every_appended_row_outlives_the_process_at_once(tmp_path):
    dtype = np.dtype([("n", "<i8")])
    log = RowLog(tmp_path / "rows.npy", dtype)
    assert len(read_rows(tmp_path / "rows.npy")) == 0
    for n in range(3):
        log.append(np.array((n,), dtype))
        assert read_rows(tmp_path / "rows.npy")["n"].tolist() == list(range(n + 1))
    log.close()
    log.close()


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x02\x00" + bytes(100), bytes(9000)]
)
def test_what_is_no_table_is_refused(tmp_path, content):
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(RecordingError, match=r"x\.npy is not a table"):
        read_rows(tmp_path / "x.npy")


def test_missing_table_is_told(tmp_path):
    with pytest.raises(RecordingError, match="is missing"):
        read_rows(tmp_path / "x.npy")


def test_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(StorageError, match="cannot write"):
        RowLog(tmp_path / "none" / "x.npy", np.dtype([("n", "<i8")]))


def test_full_disk_is_told_and_rows_before_are_kept(tmp_path, monkeypatch):
    dtype = np.dtype([("n", "<i8")])
    log = RowLog(tmp_path / "x.npy", dtype)
    log.append(np.array([(1,), (2,)], dtype))

    class Full:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    file = log._file
    log._file = Full(file)
    with pytest.raises(StorageError, match=r"No space left on device.*rows before are kept"):
        log.append(np.array((3,), dtype))
    log._file = file
    log.close()
    assert read_rows(tmp_path / "x.npy")["n"].tolist() == [1, 2]

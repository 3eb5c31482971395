"""Messages between blocks come back as they were packed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

pmt = pytest.importorskip("pmt", reason="GNU Radio is not installed")

from semair.blocks.messages import c32array, c32vector, fields_of, pack, u8array, u8vector, unpack  # noqa: E402

INT32 = st.integers(-(2**31), 2**31 - 1)
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
    st.lists(INT32, max_size=20),
)
KEYS = st.text(st.characters(codec="ascii", min_codepoint=33), min_size=1, max_size=12)
COMPLEX = hnp.arrays(
    np.complex64, st.integers(0, 50), elements=st.complex_numbers(width=64, allow_nan=True, allow_infinity=True)
)


@given(COMPLEX)
def test_complex_vectors_come_back_bit_for_bit(values):
    returned = c32array(c32vector(values))
    assert returned.dtype == np.complex64
    assert returned.tobytes() == values.tobytes()


def test_vector_is_the_same_as_gnu_radios_own():
    values = np.array([1 + 2j, -3.5, 0.25j], np.complex64)
    assert pmt.equal(c32vector(values), pmt.init_c32vector(3, values.tolist()))
    np.testing.assert_array_equal(c32array(pmt.init_c32vector(3, values.tolist())), values)


@given(st.binary(max_size=400))
def test_bytes_come_back_as_bytes(data):
    values = np.frombuffer(data, np.uint8)
    fields, returned = unpack(pack({"rows": 3}, values))
    assert fields == {"rows": 3}
    assert returned.dtype == np.uint8
    assert returned.tobytes() == data
    assert pmt.equal(u8vector(values), pmt.init_u8vector(len(data), list(data)))


def test_a_vector_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="vector of bytes"):
        u8array(c32vector(np.ones(2, np.complex64)))


def test_wide_and_strided_arrays_are_packed_by_value():
    wide = np.arange(10).astype(complex)[::3]
    np.testing.assert_array_equal(c32array(c32vector(wide)), [0, 3, 6, 9])


def test_returned_vector_is_a_copy_that_can_be_written():
    vector = c32vector(np.ones(3, np.complex64))
    c32array(vector)[0] = 5
    assert c32array(vector)[0] == 1


@given(st.dictionaries(KEYS, PLAIN, max_size=6), COMPLEX)
def test_pack_and_unpack_are_inverse(fields, vector):
    returned, samples = unpack(pack(fields, vector))
    assert returned == fields
    assert {key: type(value) for key, value in returned.items()} == {key: type(value) for key, value in fields.items()}
    assert samples.tobytes() == vector.tobytes()


def test_numpy_scalars_become_plain_values_and_float_arrays_stay_exact():
    scores = np.array([1 / 3, -np.inf, np.nan, 1e-300])
    returned, samples = unpack(pack({"frame": np.int64(7), "snr": np.float64(1.5), "ok": np.bool_(True), "s": scores}))
    assert returned["frame"] == 7
    assert type(returned["frame"]) is int
    assert type(returned["snr"]) is float
    assert returned["ok"] is True
    assert np.asarray(returned["s"], np.float64).tobytes() == scores.tobytes()
    assert samples.dtype == np.complex64
    assert len(samples) == 0


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (pmt.from_long(3), "PDU"),
        (pmt.intern("hello"), "PDU"),
        (pmt.PMT_NIL, "PDU"),
        (pmt.cons(pmt.from_long(1), pmt.from_long(2)), "PDU"),
        (pmt.cons(pmt.make_dict(), pmt.from_long(2)), "c32vector"),
        (pmt.cons(pmt.make_dict(), pmt.init_f32vector(2, [1.0, 2.0])), "c32vector"),
    ],
)
def test_other_messages_are_refused(message, words):
    with pytest.raises(ValueError, match=words):
        unpack(message)


def test_fields_of_something_else_are_refused():
    with pytest.raises(ValueError, match="dictionary"):
        fields_of(pmt.from_long(3))

"""Messages between blocks: a dictionary of plain values with one vector.

Vectors, and fields that are read, go through the serialised form of a PMT, which is several times faster than
one call for every item.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Any

import numpy as np

from .runtime import pmt

# Tags of the serialised form, as in GNU Radio's pmt-serial-tags.scm.
_TRUE, _FALSE, _SYMBOL, _INT32, _DOUBLE, _NULL, _PAIR, _DICT, _UNIFORM, _INT64 = 0, 1, 2, 3, 4, 6, 7, 9, 10, 13
_S32, _F64 = 5, 9
_ENTRY = bytes([_DICT, _PAIR, _SYMBOL])
_INT32_VALUE, _INT64_VALUE, _DOUBLE_VALUE = struct.Struct(">i"), struct.Struct(">q"), struct.Struct(">d")
_LENGTH_16, _LENGTH_32 = struct.Struct(">H"), struct.Struct(">I")
_C32_PREFIX = b"\x0a\x0a"  # uniform vector, complex float
_U8_PREFIX = b"\x0a\x00"  # uniform vector, bytes
_PADDING = b"\x01\x00"


def c32vector(values: np.ndarray) -> Any:
    """A PMT vector of complex64 values, (n,)."""
    if len(values) == 0:
        return pmt.init_c32vector(0, [])
    body = np.ascontiguousarray(values, ">c8").tobytes()
    return pmt.deserialize_str(_C32_PREFIX + struct.pack(">I", len(values)) + _PADDING + body)


def c32array(vector: Any) -> np.ndarray:
    """The values of a PMT vector of complex floats; complex64, (n,), a copy.

    Raises:
        ValueError: the PMT is another thing.
    """
    if not pmt.is_c32vector(vector):
        raise ValueError("expected a vector of complex floats (c32vector) in this message")
    if pmt.length(vector) == 0:
        return np.empty(0, np.complex64)
    data = pmt.serialize_str(vector)
    if data[:2] != _C32_PREFIX or struct.unpack_from(">I", data, 2)[0] != pmt.length(vector):
        raise ValueError("the serialised form of c32vector in this GNU Radio is not the known one")
    return np.frombuffer(data, ">c8", offset=8).astype(np.complex64)


def u8vector(values: np.ndarray) -> Any:
    """A PMT vector of uint8 values, (n,)."""
    if len(values) == 0:
        return pmt.init_u8vector(0, [])
    body = np.ascontiguousarray(values, np.uint8).tobytes()
    return pmt.deserialize_str(_U8_PREFIX + struct.pack(">I", len(values)) + _PADDING + body)


def u8array(vector: Any) -> np.ndarray:
    """The values of a PMT vector of bytes; uint8, (n,), a copy.

    Raises:
        ValueError: the PMT is another thing.
    """
    if not pmt.is_u8vector(vector):
        raise ValueError("expected a vector of bytes (u8vector) in this message")
    if pmt.length(vector) == 0:
        return np.empty(0, np.uint8)
    data = pmt.serialize_str(vector)
    if data[:2] != _U8_PREFIX or struct.unpack_from(">I", data, 2)[0] != pmt.length(vector):
        raise ValueError("the serialised form of u8vector in this GNU Radio is not the known one")
    return np.frombuffer(data, np.uint8, offset=8).copy()


def pack(fields: dict[str, Any], vector: np.ndarray | None = None) -> Any:
    """Build a message.

    Args:
        fields: plain values: bool, int, float, str, None, lists of int, float64 arrays.
        vector: complex64 or uint8, (n,), the payload, or None.

    Returns:
        PDU: a pair of dictionary and c32vector or u8vector.
    """
    values = np.empty(0, np.complex64) if vector is None else vector
    body = u8vector(values) if values.dtype == np.uint8 else c32vector(values)
    return pmt.cons(extended(pmt.make_dict(), fields), body)


def extended(table: Any, fields: dict[str, Any]) -> Any:
    """A PMT dictionary with more fields, which may be of the kinds that `pack` takes."""
    for key, value in fields.items():
        table = pmt.dict_add(table, _symbol(key), _to_pmt(value))
    return table


def field(table: Any, key: str) -> Any:
    """One plain value of a PMT dictionary.

    Raises:
        ValueError: it has no such key.
    """
    value = pmt.dict_ref(table, _symbol(key), pmt.PMT_EOF)
    if pmt.is_eof_object(value):
        raise ValueError(f"the dictionary has no field {key!r}: {table}")
    return _decoded(pmt.serialize_str(value), 0)[0]


def unpack(message: Any) -> tuple[dict[str, Any], np.ndarray]:
    """Inverse of `pack`.

    Raises:
        ValueError: the message is not a PDU of this form.
    """
    if not (pmt.is_pair(message) and pmt.is_dict(pmt.car(message))):
        raise ValueError("expected a PDU: a pair of dictionary and vector")
    vector = pmt.cdr(message)
    return fields_of(pmt.car(message)), u8array(vector) if pmt.is_u8vector(vector) else c32array(vector)


def fields_of(table: Any) -> dict[str, Any]:
    """The plain values of a PMT dictionary.

    Raises:
        ValueError: the PMT is another thing.
    """
    if not pmt.is_dict(table):
        raise ValueError(f"expected a dictionary, given {table}")
    data = pmt.serialize_str(table)
    fields: dict[str, Any] = {}
    at = 0
    while data[at] != _NULL:
        if not data.startswith(_ENTRY, at):
            raise ValueError(f"expected a dictionary with names as keys, given {table}")
        end = at + 5 + _LENGTH_16.unpack_from(data, at + 3)[0]
        fields[data[at + 5 : end].decode()], at = _decoded(data, end)
    return fields


@lru_cache(maxsize=256)
def _symbol(key: str) -> Any:
    return pmt.intern(key)


def _decoded(data: bytes, at: int) -> tuple[Any, int]:
    """The plain value whose serialised form begins at a place, and the place behind it."""
    tag = data[at]
    at += 1
    if tag == _DOUBLE:
        return _DOUBLE_VALUE.unpack_from(data, at)[0], at + 8
    if tag == _INT32:
        return _INT32_VALUE.unpack_from(data, at)[0], at + 4
    if tag == _INT64:
        return _INT64_VALUE.unpack_from(data, at)[0], at + 8
    if tag in (_TRUE, _FALSE):
        return tag == _TRUE, at
    if tag == _NULL:
        return None, at
    if tag == _SYMBOL:
        end = at + 2 + _LENGTH_16.unpack_from(data, at)[0]
        return data[at + 2 : end].decode(), end
    if tag == _UNIFORM and data[at] in (_S32, _F64):
        dtype = np.dtype(">i4" if data[at] == _S32 else ">f8")
        n = _LENGTH_32.unpack_from(data, at + 1)[0]
        begin = at + 6 + data[at + 5]
        values = np.frombuffer(data, dtype, n, begin)
        return values.tolist() if dtype.kind == "i" else values.astype(float), begin + n * dtype.itemsize
    raise ValueError(f"a field is of a kind (tag {tag} of its serialised form) that messages here do not hold")


def _to_pmt(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    # The kinds that make up most fields, before the general conversion that tries one after the other.
    if isinstance(value, float):
        return pmt.from_double(value)
    if isinstance(value, bool):
        return pmt.PMT_T if value else pmt.PMT_F
    if isinstance(value, int):
        return pmt.from_long(value)
    if isinstance(value, list):
        return pmt.init_s32vector(len(value), value)
    if isinstance(value, np.ndarray) and value.dtype == np.float64:
        return pmt.init_f64vector(len(value), value.tolist())
    return pmt.to_pmt(value)

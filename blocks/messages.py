"""Messages between blocks: a dictionary of plain values with one vector.

Complex vectors go through the serialised form of a PMT, which is several times faster than building the vector
item by item.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from .runtime import pmt

_C32_PREFIX = b"\x0a\x0a"  # uniform vector, complex float
_C32_PADDING = b"\x01\x00"


def c32vector(values: np.ndarray) -> Any:
    """A PMT vector of complex64 values, (n,)."""
    if len(values) == 0:
        return pmt.init_c32vector(0, [])
    body = np.ascontiguousarray(values, ">c8").tobytes()
    return pmt.deserialize_str(_C32_PREFIX + struct.pack(">I", len(values)) + _C32_PADDING + body)


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


def pack(fields: dict[str, Any], vector: np.ndarray | None = None) -> Any:
    """Build a message.

    Args:
        fields: plain values: bool, int, float, str, None, lists of int, float64 arrays.
        vector: complex64, (n,), the payload, or None.

    Returns:
        PDU: a pair of dictionary and c32vector.
    """
    table = extended(pmt.make_dict(), fields)
    return pmt.cons(table, c32vector(np.empty(0, np.complex64) if vector is None else vector))


def extended(table: Any, fields: dict[str, Any]) -> Any:
    """A PMT dictionary with more fields, which may be of the kinds that `pack` takes."""
    for key, value in fields.items():
        table = pmt.dict_add(table, pmt.intern(key), _to_pmt(value))
    return table


def field(table: Any, key: str) -> Any:
    """One plain value of a PMT dictionary.

    Raises:
        ValueError: it has no such key.
    """
    value = pmt.dict_ref(table, pmt.intern(key), pmt.PMT_EOF)
    if pmt.is_eof_object(value):
        raise ValueError(f"the dictionary has no field {key!r}: {table}")
    return _to_plain(value)


def unpack(message: Any) -> tuple[dict[str, Any], np.ndarray]:
    """Inverse of `pack`.

    Raises:
        ValueError: the message is not a PDU of this form.
    """
    if not (pmt.is_pair(message) and pmt.is_dict(pmt.car(message))):
        raise ValueError("expected a PDU: a pair of dictionary and vector")
    return fields_of(pmt.car(message)), c32array(pmt.cdr(message))


def fields_of(table: Any) -> dict[str, Any]:
    """The plain values of a PMT dictionary.

    Raises:
        ValueError: the PMT is another thing.
    """
    if not pmt.is_dict(table):
        raise ValueError(f"expected a dictionary, given {table}")
    items = pmt.dict_items(table)
    fields = {}
    for k in range(pmt.length(items)):
        item = pmt.nth(k, items)
        fields[pmt.symbol_to_string(pmt.car(item))] = _to_plain(pmt.cdr(item))
    return fields


def _to_plain(value: Any) -> Any:
    # The numbers that make up most fields, before the general conversion that tries one type after the other.
    if pmt.is_real(value) and not pmt.is_integer(value):
        return pmt.to_double(value)
    if pmt.is_s32vector(value):
        return pmt.s32vector_elements(value)
    return pmt.to_python(value)


def _to_pmt(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list):
        return pmt.init_s32vector(len(value), value)
    return pmt.to_pmt(value)

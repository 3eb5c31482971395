"""What goes over the network between a served radio and whoever uses it: messages, and how their connection is set up.

A message is one ZeroMQ frame:

    "SEMAIR" | protocol version, 1 byte | 0 | length of the header, 4 bytes, big endian | header, JSON | samples

The header is an object; `is` in it tells the kind of message. Samples are complex64, little endian, channel after
channel. Nothing that comes from the network is executed or unpickled, and no PMT is read from it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import struct
import threading
from dataclasses import asdict
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from .. import errors
from ..blocks.waveforms.frame import FrameFormat
from ..blocks.waveforms.impairments import Impairments
from ..errors import RadioError, SemairError, SetupError, explain_validation
from ..models.channels import ChannelConfig
from .radio import Capabilities, Link, Settings
from .streams import Piece, Tag, pmt_value

VERSION = 1
"""Of the protocol: both sides must have the same."""
HEADER_BYTES = 1 << 20
MESSAGE_BYTES = 16 << 20
HEARTBEAT_MS = 300
PATIENCE_MS = 1200
"""Silence of the other side's machine after which it counts as gone."""
_HEAD = struct.Struct(">6sBxI")
_MAGIC = b"SEMAIR"
_TEXTS = 256
_TAGS = 10_000
_ENDPOINT = re.compile(r"tcp://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.*-]+):(\d{1,5}|\*)")


class ForeignVersionError(ValueError):
    """The other side speaks another version of the protocol."""


def zmq() -> Any:
    """The module zmq.

    Raises:
        SetupError: it is not installed.
    """
    try:
        import zmq
    except ImportError as error:
        raise SetupError(f"pyzmq cannot be imported ({error}); mend it with: pip install pyzmq") from error
    return zmq


def pack(kind: str, fields: dict[str, Any] | None = None, payload: bytes = b"") -> bytes:
    """A message.

    Raises:
        RadioError: it is larger than the other side takes.
    """
    header = json.dumps({"is": kind, **(fields or {})}, separators=(",", ":")).encode()
    size = _HEAD.size + len(header) + len(payload)
    if size > MESSAGE_BYTES or len(header) > HEADER_BYTES:
        raise RadioError(
            f"a message {kind!r} of {size} bytes does not fit the network's {MESSAGE_BYTES}; let fewer users send at "
            "once, or run where the radio is"
        )
    return b"".join((_HEAD.pack(_MAGIC, VERSION, len(header)), header, payload))


def parse(frame: Any) -> tuple[str, dict[str, Any], memoryview]:
    """Kind, header and payload of a message.

    Raises:
        ForeignVersionError: it is of another version of the protocol.
        ValueError: it is no such message.
    """
    view = memoryview(frame)
    if len(view) < _HEAD.size:
        raise ValueError(f"{len(view)} bytes are no message")
    magic, version, length = _HEAD.unpack_from(view)
    if magic != _MAGIC:
        raise ValueError(f"it begins with {bytes(magic)!r}")
    if version != VERSION:
        raise ForeignVersionError(f"it is of version {version} of the protocol, here is version {VERSION}")
    if length > HEADER_BYTES or _HEAD.size + length > len(view):
        raise ValueError(f"its header of {length} bytes does not fit")
    try:
        fields = json.loads(bytes(view[_HEAD.size : _HEAD.size + length]))
    except (ValueError, RecursionError) as error:
        raise ValueError("its header is no JSON") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("is"), str):
        raise ValueError("its header does not say what it is")
    return fields.pop("is"), fields, view[_HEAD.size + length :]


def number(fields: dict[str, Any], name: str, low: int = 0, high: int = 2**62) -> int:
    """A whole number of a header.

    Raises:
        ValueError: it is missing, of another kind, or out of range.
    """
    value = fields.get(name)
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name}={value!r:.60} must be a whole number from {low} to {high}")
    return value


# Samples


def pack_piece(epoch: int, piece: Piece) -> bytes:
    """A message of samples."""
    fields = {"epoch": epoch, "shape": piece.samples.shape, "lost": piece.lost, "tags": piece.tags}
    return pack("samples", fields, np.ascontiguousarray(piece.samples, "<c8").tobytes())


def piece_of(fields: dict[str, Any], payload: memoryview, texts: set[str]) -> Piece:
    """Samples of a message.

    Args:
        fields: its header.
        payload: its samples.
        texts: those that tags held so far; GNU Radio keeps each for good, so that their number has a bound.

    Raises:
        ValueError: anything in it does not fit.
    """
    shape = fields.get("shape")
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape)):
        raise ValueError(f"shape={shape!r:.60} must be two positive whole numbers")
    if shape[0] * shape[1] * 8 != len(payload):
        raise ValueError(f"{len(payload)} bytes of samples do not fit shape {shape}")
    tags = fields.get("tags")
    if not isinstance(tags, list) or len(tags) > _TAGS:
        raise ValueError("tags must be a list")
    samples = np.frombuffer(payload, "<c8").astype(np.complex64, copy=False).reshape(shape)
    return Piece(samples, [_tag(tag, shape, texts) for tag in tags], number(fields, "lost"))


def _tag(tag: Any, shape: list[int], texts: set[str]) -> Tag:
    if not (isinstance(tag, list) and len(tag) == 4 and isinstance(tag[2], str)):
        raise ValueError(f"tag {tag!r:.80} must be item, port, key and value")
    item, port, key, value = tag
    if not (type(item) is int and 0 <= item < shape[1] and type(port) is int and 0 <= port < shape[0]):
        raise ValueError(f"tag {key!r:.60} lies outside of its samples")
    # Numbers that GNU Radio cannot hold are found here and not in its thread.
    pmt_value(value)
    texts.update(text for text in (key, value) if isinstance(text, str))
    if len(texts) > _TEXTS or len(key) > 100:
        raise ValueError("tags of too many kinds")
    return item, port, key, value


def pack_bursts(epoch: int, fields: dict[str, Any], vector: np.ndarray) -> bytes:
    """A message of users' bursts."""
    return pack("bursts", {"epoch": epoch, "fields": fields}, np.ascontiguousarray(vector, "<c8").tobytes())


class _Bursts(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    frame: NonNegativeInt
    start: NonNegativeInt
    length: NonNegativeInt
    users: list[NonNegativeInt] = Field(max_length=4096)
    burst_samples: NonNegativeInt


def bursts_of(fields: dict[str, Any], payload: memoryview) -> tuple[dict[str, Any], np.ndarray]:
    """Users' bursts of a message.

    Raises:
        ValueError: anything in it does not fit.
    """
    bursts = _Bursts.model_validate(fields.get("fields"))
    if len(payload) != 8 * bursts.burst_samples * len(bursts.users):
        raise ValueError(f"{len(payload)} bytes do not hold {len(bursts.users)} bursts of {bursts.burst_samples}")
    return bursts.model_dump(), np.frombuffer(payload, "<c8").astype(np.complex64, copy=False)


# What an experiment wants, and what radios say of themselves


class _Link(BaseModel):
    """A link from the network; bounds as those of scenarios."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    frame_format: FrameFormat
    n_rx: int = Field(ge=1, le=256)
    n_users: int = Field(ge=0, le=4096)
    tail_samples: int = Field(ge=0, le=2**31)
    channel: ChannelConfig
    beacon_channel: ChannelConfig
    impairments: Impairments
    noise_power: float = Field(ge=0, le=1e9)
    expected_power: float = Field(gt=0, le=1e9)
    user_power_spread_db: float = Field(ge=0, le=30)
    losses: list[tuple[NonNegativeInt, PositiveInt]] = Field(max_length=10_000)
    seed: int = Field(ge=0, lt=2**63)


def link_fields(link: Link) -> dict[str, Any]:
    """A link as plain values.

    Raises:
        RadioError: it holds a recorded channel, which lies on one machine only.
    """
    if link.recorded is not None or "recorded" in (link.channel.kind, link.beacon_channel.kind):
        raise RadioError(
            "channel.kind='recorded' cannot be given to a radio on another host; run there, or use another channel"
        )
    models = ("frame_format", "channel", "beacon_channel", "impairments")
    plain = {name: getattr(link, name).model_dump(mode="json") for name in models}
    rest = ("n_rx", "n_users", "tail_samples", "noise_power", "expected_power", "user_power_spread_db", "seed")
    return {**plain, **{name: getattr(link, name) for name in rest}, "losses": [list(loss) for loss in link.losses]}


def link_of(fields: Any) -> Link:
    """Inverse of `link_fields`.

    Raises:
        ValueError: anything in it does not fit.
    """
    try:
        link = _Link.model_validate(fields)
    except ValidationError as error:
        raise ValueError(explain_validation(error)) from error
    if "recorded" in (link.channel.kind, link.beacon_channel.kind):
        raise ValueError("a recorded channel lies on one machine only")
    return Link(**{name: getattr(link, name) for name in _Link.model_fields})


def settings_of(fields: Any) -> Settings:
    """Settings from their plain values.

    Raises:
        ValueError: anything in them does not fit.
    """
    return TypeAdapter(Settings).validate_python(fields)


def capabilities_of(fields: Any) -> Capabilities:
    """Capabilities from their plain values.

    Raises:
        ValueError: anything in them does not fit.
    """
    return TypeAdapter(Capabilities).validate_python(fields)


def capability_fields(capabilities: Capabilities) -> dict[str, Any]:
    """Capabilities as plain values."""
    return asdict(capabilities)


_ERRORS = {
    name: item
    for name, item in vars(errors).items()
    if isinstance(item, type) and issubclass(item, SemairError) and item is not SemairError
}


def error_fields(error: BaseException) -> dict[str, str]:
    """An error for the other side; one that is not meant for users as what it is."""
    if isinstance(error, SemairError):
        return {"error": type(error).__name__, "text": str(error)}
    return {"error": "RadioError", "text": f"{type(error).__name__}: {error}"}


def error_of(fields: dict[str, Any], where: str) -> SemairError:
    """An error from the other side."""
    made = _ERRORS.get(str(fields.get("error")), RadioError)
    return made(f"{fields.get('text')!s:.2000} ({where})")


# Connections


def check_endpoint(endpoint: str, listening: bool = False) -> str:
    """An address of ZeroMQ over TCP.

    Raises:
        RadioError: it is another thing.
    """
    match = _ENDPOINT.fullmatch(endpoint)
    free = match is not None and "*" in match.groups()
    if match is None or (free and not listening) or (match[2] != "*" and int(match[2]) > 65535):
        raise RadioError(
            f"address {endpoint!r} must be tcp://HOST:PORT, such as tcp://127.0.0.1:5900, as `semair serve` shows it"
        )
    return endpoint


def prepare(socket: Any, endpoint: str) -> None:
    """Options of both sides: bounds, and a watch that does not depend on the interpreter being idle."""
    z = zmq()
    socket.setsockopt(z.LINGER, 200)
    socket.setsockopt(z.MAXMSGSIZE, MESSAGE_BYTES)
    socket.setsockopt(z.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(z.HEARTBEAT_TIMEOUT, PATIENCE_MS)
    socket.setsockopt(z.HANDSHAKE_IVL, PATIENCE_MS)
    socket.setsockopt(z.RECONNECT_IVL, -1)
    socket.setsockopt(z.IPV6, int("[" in endpoint))
    # What is sent has a bound of its own: the other side says how much it has taken.
    socket.setsockopt(z.SNDHWM, 0)
    socket.setsockopt(z.RCVHWM, 64)


class Wake:
    """Wakes a thread that waits for its sockets."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._open = True
        self._lock = threading.Lock()

    def __call__(self) -> None:
        """Wake it."""
        with self._lock:
            if self._open:
                os.eventfd_write(self.fd, 1)

    def clear(self) -> None:
        """It is awake."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)

    def close(self) -> None:
        """It has ended. Whoever calls later does nothing."""
        with self._lock:
            self._open = False
            os.close(self.fd)

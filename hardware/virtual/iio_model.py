"""What an IIO context consists of: devices, channels, attributes; and the XML that describes it to clients."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol
from xml.sax.saxutils import quoteattr

_DTD = (
    "<!DOCTYPE context [<!ELEMENT context (device | context-attribute)*>"
    "<!ELEMENT context-attribute EMPTY><!ELEMENT device (channel | attribute | debug-attribute | buffer-attribute)*>"
    "<!ELEMENT channel (scan-element?, attribute*)><!ELEMENT attribute EMPTY><!ELEMENT scan-element EMPTY>"
    "<!ELEMENT debug-attribute EMPTY><!ELEMENT buffer-attribute EMPTY>"
    "<!ATTLIST context name CDATA #REQUIRED description CDATA #IMPLIED>"
    "<!ATTLIST context-attribute name CDATA #REQUIRED value CDATA #REQUIRED>"
    "<!ATTLIST device id CDATA #REQUIRED name CDATA #IMPLIED>"
    "<!ATTLIST channel id CDATA #REQUIRED type (input|output) #REQUIRED name CDATA #IMPLIED>"
    "<!ATTLIST scan-element index CDATA #REQUIRED format CDATA #REQUIRED scale CDATA #IMPLIED>"
    "<!ATTLIST attribute name CDATA #REQUIRED filename CDATA #IMPLIED>"
    "<!ATTLIST debug-attribute name CDATA #REQUIRED><!ATTLIST buffer-attribute name CDATA #REQUIRED>]>"
)


class StreamTimeout(Exception):
    """What a stream was asked for did not come in time."""


class Stream(Protocol):
    """An opened buffer. Waits end when `alive` says no, or with StreamTimeout at a monotonic deadline."""

    columns: tuple[int, ...]

    def take(self, n_bytes: int, alive: Callable[[], bool], deadline_s: float | None) -> memoryview:
        """Received bytes, at most `n_bytes`; empty when no more will come."""

    def push(self, payload: memoryview, alive: Callable[[], bool], deadline_s: float | None) -> None:
        """Hand over bytes to be sent; returns once they are queued."""

    def flag_loss(self) -> None:
        """Set the flag that tells of lost samples."""

    def close(self) -> None:
        """Stop; nothing is sent or received any more."""


class Cell:
    """The value behind one attribute or several: a text, with functions to read and to write it.

    Args:
        read: gives the text; None where it cannot be read.
        write: takes a text, raises OSError with the errno of a refusal; None where it cannot be written.
    """

    def __init__(self, read: Callable[[], str] | None, write: Callable[[str], None] | None = None) -> None:
        self._read = read
        self._write = write

    def read(self) -> str:
        """The text, or OSError."""
        if self._read is None:
            raise OSError(errno.EOPNOTSUPP, "cannot be read")
        return self._read()

    def write(self, text: str) -> None:
        """Set it, or OSError."""
        if self._write is None:
            raise OSError(errno.EACCES, "cannot be written")
        self._write(text)


@dataclass
class Channel:
    """One channel of a device.

    Attributes:
        id: such as voltage0.
        output: direction.
        name: second name by which clients find it.
        scan_index: place in the samples of a buffer, None where it has none.
        format: of its samples.
        attributes: cells by name, in the order in which clients see them.
        filenames: full names; the same one is the same cell.
    """

    id: str
    output: bool
    name: str | None = None
    scan_index: int | None = None
    format: str = ""
    attributes: dict[str, Cell] = field(default_factory=dict)
    filenames: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, cell: Cell, shared: bool = False, filename: str | None = None) -> None:
        """Add an attribute; `shared` ones belong to all channels of this type and direction."""
        prefix = "out" if self.output else "in"
        stem = self.id.rstrip("0123456789") if shared else self.id
        label = f"_{self.name}" if self.name and not shared else ""
        self.attributes[name] = cell
        self.filenames[name] = filename or f"{prefix}_{stem}{label}_{name}"


@dataclass
class Device:
    """One device of a context.

    Attributes:
        id: such as iio:device0.
        name: by which clients find it.
        channels: those with samples first, by scan index; a channel's place here is its bit in a mask.
        attributes, debug, buffer: cells by name.
        open: opens a buffer: samples, enabled scan indices, cyclic, kernel buffers; None where there are no samples.
        outputs_samples: direction of buffers.
        kernel_buffers: how many of them each stream has.
    """

    id: str
    name: str
    channels: list[Channel] = field(default_factory=list)
    attributes: dict[str, Cell] = field(default_factory=dict)
    debug: dict[str, Cell] = field(default_factory=dict)
    buffer: dict[str, Cell] = field(default_factory=dict)
    open: Callable[[int, tuple[int, ...], bool, int], Stream] | None = None
    outputs_samples: bool = False
    kernel_buffers: int = 4

    def channel(self, token: str, output: bool) -> Channel | None:
        """The channel of a direction with this id or name."""
        for channel in self.channels:
            if channel.output == output and token in (channel.id, channel.name):
                return channel
        return None


@dataclass
class Context:
    """All that a client sees of one radio.

    Attributes:
        description: for people.
        facts: context attributes.
        devices: in the order of their ids.
    """

    description: str
    facts: dict[str, str]
    devices: list[Device]

    def device(self, token: str) -> Device | None:
        """The device with this id or name."""
        for device in self.devices:
            if token in (device.id, device.name):
                return device
        return None

    def xml(self) -> str:
        """Description for clients, with the grammar in it, without values."""
        parts = ['<?xml version="1.0" encoding="utf-8"?>', _DTD]
        parts.append(f'<context name="network" description={quoteattr(self.description)}>')
        parts += [_tag("context-attribute", name=name, value=value) for name, value in self.facts.items()]
        for device in self.devices:
            parts.append(_tag("device", id=device.id, name=device.name)[:-3] + ">")
            for channel in device.channels:
                kind = "output" if channel.output else "input"
                label = {} if channel.name is None else {"name": channel.name}
                parts.append(_tag("channel", id=channel.id, type=kind, **label)[:-3] + ">")
                if channel.scan_index is not None:
                    parts.append(_tag("scan-element", index=str(channel.scan_index), format=channel.format))
                parts += [_tag("attribute", name=name, filename=channel.filenames[name]) for name in channel.attributes]
                parts.append("</channel>")
            parts += [_tag("attribute", name=name, filename=name) for name in device.attributes]
            parts += [_tag("debug-attribute", name=name) for name in device.debug]
            parts += [_tag("buffer-attribute", name=name) for name in device.buffer]
            parts.append("</device>")
        return "".join([*parts, "</context>"])


def _tag(kind: str, **values: str) -> str:
    return f"<{kind} " + " ".join(f"{name}={quoteattr(value)}" for name, value in values.items()) + " />"

"""Limits on what TorchServe's worker, which is this process, reads: bytes, and a bounded number of form fields.

The frontend accepts forms with any number of fields, and the worker makes several objects of each field: 1.4 million
fields, which fit into 4 MiB, take 9 seconds. Fields that no handler reads are skipped here while they are in the
socket.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

# Under this name stands, in place of all further ones, that there were more fields.
TOO_MANY_FIELDS = "too many fields"
MOST_FIELDS = 1000

_PEEKED = 1 << 20  # bytes looked at in the socket at once
_NUMBER = struct.Struct("!i")
_LENGTHS = 3 * _NUMBER.size  # bytes of a field of nothing
# Consecutive fields whose parts have at most 63 bytes each: 8 million of them fit into a body of 16 MiB, and one step
# of Python for each would take 2.6 s. Of longer ones at most 260,000 fit in.
_SHORT = 63
_SHORT_PART = rb"\0\0\0(?:%b)" % b"|".join(rb"\x%02x.{%d}" % (size, size) for size in range(_SHORT + 1))
_SHORT_FIELDS = re.compile(rb"(?:%b)*+" % (_SHORT_PART * 3), re.DOTALL)
_END = -1
_PROTOCOL = "ts.protocol.otf_message_handler"

Read = Callable[[socket.socket], "dict[str, Any] | None"]


def take_bytes() -> None:
    """Make the worker pass bytes: by default it parses JSON of any size."""
    os.environ["TS_DECODE_INPUT_REQUEST"] = "false"


def bound_fields(max_items: int) -> None:
    """Make the worker read at most ``max_items`` fields of a request, or ``MOST_FIELDS`` if that is more."""
    protocol: Any = sys.modules.get(_PROTOCOL)
    if protocol is not None:
        read = protocol._retrieve_input_data
        read = read.read if isinstance(read, FieldReader) else read
        protocol._retrieve_input_data = FieldReader(read, max(MOST_FIELDS, max_items))


class FieldReader:
    """Reads a field as TorchServe's function does. If there are too many, it returns the first and ``TOO_MANY_FIELDS``.

    Attributes:
        read: TorchServe's function; returns None at the end of the fields.
    """

    def __init__(self, read: Read, most: int) -> None:
        self.read = read
        self._most = most
        self._count = 0

    def __call__(self, connection: socket.socket) -> dict[str, Any] | None:
        """Return the next field of a request; None after the last one."""
        if self._count > self._most:
            self._count = 0
            return None
        field = self.read(connection)
        self._count = 0 if field is None else self._count + 1
        if self._count <= self._most:
            return field
        self._pass_over(connection)
        return {"name": TOO_MANY_FIELDS, "contentType": "", "value": bytearray()}

    def _pass_over(self, connection: socket.socket) -> None:
        """Read all remaining fields of the request from the socket, and nothing after them."""
        ended = False
        while not ended:
            size, ended = whole_fields(connection.recv(_PEEKED, socket.MSG_PEEK))
            if size == 0:
                # It has not arrived completely, or is larger than the part that is peeked at.
                ended = self.read(connection) is None
            while size:
                size -= len(connection.recv(size))


def whole_fields(data: bytes) -> tuple[int, bool]:
    """Return the length of the complete fields at the beginning of ``data`` in bytes, and whether they are the last.

    A field is its name, its content type and its value, each behind its length; the end of the fields is -1.
    """
    at, last, unpack = 0, len(data) - _NUMBER.size, _NUMBER.unpack_from
    short_fields: Any = _SHORT_FIELDS.match
    while at <= last:
        (length,) = unpack(data, at)
        if length == _END:
            return at + 4, True
        end = at + 4 + length
        if end > last:
            break
        end += 4 + unpack(data, end)[0]
        if end > last:
            break
        end += 4 + unpack(data, end)[0]
        if end > len(data):
            break
        at = short_fields(data, at).end() if end - at <= _SHORT + _LENGTHS else end
    return at, False

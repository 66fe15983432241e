"""Messages between casemated and the process of its wire room: a length (32 bits, little endian) and a pickle.

Requests are ``(number, part, method, arguments)``, answers ``(number, error, value)``, and ``(None, None, event)`` is
an event of a machine. Both ends are one program, started by each other, as one user: there is no border between them,
and pickle saves a second description of every type.
"""

from __future__ import annotations

import asyncio
import pickle
import struct
from typing import Any

_LENGTH = struct.Struct("<I")


async def read_message(reader: asyncio.StreamReader) -> Any:
    """The next message; IncompleteReadError or ConnectionError when there is none any more."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return pickle.loads(await reader.readexactly(length))  # noqa: S301


def write_message(writer: asyncio.StreamWriter, message: object) -> None:
    """Send a message."""
    data = pickle.dumps(message)
    writer.write(_LENGTH.pack(len(data)) + data)

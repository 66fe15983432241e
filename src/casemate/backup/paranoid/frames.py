"""Frames between this host and the disposable: a letter, a length, bytes. Each kind has its own bound.

::

    kind, one byte | length of the body (u32, big-endian) | body
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from casemate.wire.errors import ProtocolError, printable

HEADER = struct.Struct(">cI")
PLACE = struct.Struct(">Q")
"""Where in a volume the bytes of WRITE belong."""
PIECE = 1 << 20
"""Most bytes of the backup, or of a volume, in one frame."""
_SMALL = 64 << 10

ORDER, DATA, RUN, DONE, REFUSED = b"O", b"D", b"R", b"K", b"E"
"""Of this host. DATA without a body is the end of the backup. REFUSED says why."""
NEED, CONTENTS, VOLUME, WRITE, FINISH, FILE, PROGRESS, REPORT, FAILED = (
    b"n", b"c", b"v", b"w", b"f", b"s", b"p", b"r", b"x",
)  # fmt: skip
"""Of the disposable. FAILED ends everything, and says why."""
MAX_CONTENTS = 32 << 20
"""Limit of a backup (bytes): what a disposable may say about the qubes of a backup, and about how it went."""

MOST: Mapping[bytes, int] = MappingProxyType(
    {
        ORDER: _SMALL, DATA: PIECE, RUN: MAX_CONTENTS, DONE: 0, REFUSED: _SMALL,
        NEED: 0, CONTENTS: MAX_CONTENTS, VOLUME: _SMALL, WRITE: PLACE.size + PIECE, FINISH: 0, FILE: _SMALL + PIECE,
        PROGRESS: PLACE.size, REPORT: MAX_CONTENTS, FAILED: _SMALL,
    }
)  # fmt: skip
"""Kinds, and the most bytes that a body of each may have."""


def build(kind: bytes, *parts: bytes | bytearray | memoryview) -> bytes:
    """A frame. ProtocolError when its body is too long."""
    size = sum(map(len, parts))
    if size > MOST[kind]:
        raise ProtocolError(f"A frame of kind {kind.decode()} with {size} bytes; at most {MOST[kind]} are possible")
    return b"".join((HEADER.pack(kind, size), *parts))


def text(value: object) -> bytes:
    """A value as the body of a frame. There is no line feed in it."""
    return json.dumps(value).encode("ascii")


def read(exactly: Callable[[int], bytes], allowed: bytes) -> tuple[bytes, bytes]:
    """The kind and the body of the next frame. ``exactly`` reads so many bytes.

    ProtocolError for a kind that is not one of ``allowed``, or is longer than that kind may be.
    """
    kind, size = HEADER.unpack(exactly(HEADER.size))
    if kind not in MOST or kind not in allowed:
        raise ProtocolError(f"A frame of kind {printable(kind.decode('latin-1'))} where {allowed.decode()} may come")
    if size > MOST[kind]:  # before any of it is read
        raise ProtocolError(f"A frame of kind {kind.decode()} with {size} bytes; at most {MOST[kind]} are possible")
    return kind, exactly(size)


def value(body: bytes) -> Any:
    """The value of a frame with one; ProtocolError."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise ProtocolError("A frame has no value in it") from None

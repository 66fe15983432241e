"""Cuts a byte stream into length-prefixed messages, however the bytes arrive; bounded, sans-I/O."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from struct import Struct
    from typing import Any


class MessageReader:
    """Messages of a fixed header and as many bytes as the header says.

    ``length_of(fields)`` is given the unpacked header as soon as it is complete and returns the length of the body; it
    raises ProtocolError for a header that is not allowed, so that nothing is ever kept for a message that would be
    refused anyway.
    """

    __slots__ = ("_at", "_buffer", "_fields", "_header", "_length", "_length_of")

    def __init__(self, header: Struct, length_of: Callable[[tuple[Any, ...]], int]) -> None:
        self._header = header
        self._length_of = length_of
        self._buffer = bytearray()
        self._at = 0
        self._fields: tuple[Any, ...] | None = None
        self._length = 0

    def feed(self, data: bytes | memoryview) -> None:
        """Take bytes; then call ``next`` until it returns None."""
        if self._at:
            del self._buffer[: self._at]
            self._at = 0
        self._buffer += data

    def next(self) -> tuple[tuple[Any, ...], bytes] | None:
        """The next whole message as (header fields, body), or None when more bytes are needed."""
        fields = self._fields
        if fields is None:
            if len(self._buffer) - self._at < self._header.size:
                return None
            fields = self._header.unpack_from(self._buffer, self._at)
            self._length = self._length_of(fields)
            self._at += self._header.size
            self._fields = fields
        end = self._at + self._length
        if len(self._buffer) < end:
            return None
        with memoryview(self._buffer) as view:
            body = bytes(view[self._at : end])
        self._at = end
        self._fields = None
        return fields, body

    @property
    def partial(self) -> bool:
        """True when a message has begun and is not complete: the end of the stream here is a cut."""
        return self._fields is not None or len(self._buffer) > self._at

    def rest(self) -> bytes:
        """Hand over all bytes after the last message; for a stream that goes on in another way."""
        rest = bytes(self._buffer[self._at :])
        self._buffer.clear()
        self._at = 0
        return rest

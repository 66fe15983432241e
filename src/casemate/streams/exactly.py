"""Reads so many bytes from a socket that waits."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket


def exactly(sock: socket.socket, size: int) -> bytes:
    """So many bytes; EOFError when the other end closes the connection before, OSError as ``recv`` has it."""
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data

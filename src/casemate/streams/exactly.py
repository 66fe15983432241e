"""Reads so many bytes from a socket that waits."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket


def exactly(sock: socket.socket, size: int) -> bytes:
    """So many bytes; EOFError when the other end closes the connection before, OSError as ``recv`` has it."""
    data = bytearray(size)
    left = memoryview(data)
    while left:
        got = sock.recv_into(left)
        if not got:
            raise EOFError
        left = left[got:]
    return bytes(data)

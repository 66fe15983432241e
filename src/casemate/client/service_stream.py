"""A call into a qube as a blocking stream: write its standard input, read its standard output. For tools.

The qube is not trusted: what it says on standard error is kept up to a bound, and each wait has an end.
"""

from __future__ import annotations

import socket

from casemate.wire.call_data import CallerSide
from casemate.wire.errors import DisconnectedError, ProtocolError, printable
from casemate.wire.qrexec import DATA_STDERR, DATA_STDOUT

_READ = 1 << 18
_SAID = 16384


class ServiceStream:
    """One call. Owns its socket; ``close`` ends the call."""

    def __init__(self, sock: socket.socket, qube: str, stall_seconds: float) -> None:
        """``stall_seconds``: how long the qube may take to send, or to take, something."""
        self._socket = sock
        self._qube = qube
        self._side = CallerSide()
        self._output = bytearray()
        self._said = bytearray()
        self._seconds = stall_seconds
        sock.settimeout(stall_seconds)

    def close(self) -> None:
        """End the call, whatever has become of it."""
        self._socket.close()

    def write(self, data: bytes) -> None:
        """Send all of it. DisconnectedError when the qube does not take it."""
        try:
            self._socket.sendall(b"".join(self._side.stdin(data)))
        except TimeoutError:
            raise DisconnectedError(f"{self._qube} takes nothing for {self._seconds:g} s") from None
        except OSError:
            pass  # it has ended; the next read tells

    def exactly(self, count: int) -> bytes:
        """So many bytes. DisconnectedError when the call ends before, with what the qube said."""
        while len(self._output) < count:
            self._more()
        out = bytes(self._output[:count])
        del self._output[:count]
        return out

    def _more(self) -> None:
        if self._side.exit_code is not None:
            raise DisconnectedError(self._why(f"ended with status {self._side.exit_code}"))
        try:
            data = self._socket.recv(_READ)
            if not data:
                raise DisconnectedError(self._why("went away"))
            for kind, piece in self._side.feed(data):
                if kind == DATA_STDOUT:
                    self._output += piece
                elif kind == DATA_STDERR:
                    self._said += piece[: _SAID - len(self._said)]
        except TimeoutError:
            raise DisconnectedError(self._why(f"says nothing for {self._seconds:g} s")) from None
        except ProtocolError as error:
            raise DisconnectedError(f"{self._qube}: {error}") from None
        except OSError as error:
            raise DisconnectedError(f"{self._qube}: {error.strerror}") from None

    def _why(self, what: str) -> str:
        lines = self._said.decode("utf-8", "replace").strip().splitlines()
        return f"{self._qube} {what}{': ' + printable(lines[-1], 300) if lines else ''}"

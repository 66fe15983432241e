"""Calls from a program of this host into a qube, with their output in memory.

::

    input ──▶ CallerSide ──▶ socket ──▶ the qube's link ──▶ service
    stdout, stderr (bounded, or a file) ◀── CallerSide ◀── socket ◀──┘

One thread moves both directions by turns, so that a service that writes before it has read everything stalls nobody.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from casemate.wire.call_data import CallerSide
from casemate.wire.errors import CasemateError, DisconnectedError, ValueInvalidError, printable
from casemate.wire.qrexec import DATA_EXIT_CODE, DATA_STDERR, DATA_STDOUT, MAX_CHUNK

DEFAULT_OUTPUT = 64 << 20
"""Bytes of output that a call may have where the caller names no other number. A qube must not fill our memory."""
_CHUNK = 65536


class CallFailedError(CasemateError):
    """A command in a qube ended with a status other than 0; ``completed`` has its output."""

    def __init__(self, completed: Completed) -> None:
        said = completed.stderr.decode("utf-8", "replace").strip()[-500:]
        text = f"{completed.qube}: {completed.command} ended with status {completed.returncode}"
        super().__init__(f"{text}: {printable(said)}" if said else text)
        self.completed = completed


class CallTimeoutError(CasemateError, TimeoutError):
    """A command in a qube did not end in time; it was told that its caller has gone."""


class OutputTooLongError(CasemateError):
    """A command in a qube wrote more than the caller wanted to take."""


@dataclass(frozen=True, slots=True)
class Completed:
    """A command or service that has ended.

    ``returncode`` is its exit status, 0 to 255; 126 and 127 mean, as in a shell, that there was no permission or no
    such program. ``stdout`` and ``stderr`` are the bytes that it wrote: a qube's words, so escape them before you show
    them on a terminal.
    """

    qube: str
    command: str
    returncode: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """``stdout`` as UTF-8 without the line feeds at its end; what is no UTF-8 becomes U+FFFD."""
        return self.stdout.decode("utf-8", "replace").rstrip("\n")

    def check(self) -> Completed:
        """Itself, where the status is 0. Raises CallFailedError otherwise."""
        if self.returncode:
            raise CallFailedError(self)
        return self


def exchange(
    sock: socket.socket,
    qube: str,
    command: str,
    data: Iterable[bytes],
    timeout: float | None,
    most: int,
    sink: BinaryIO | None = None,
) -> Completed:
    """Carry a call to its end: send ``data`` as its input, collect its output. ``sock`` is closed.

    ``timeout`` is in seconds for all of it (None: no end), ``most`` the bytes of output that are kept in memory. Stdout
    goes to ``sink`` where there is one, and is not kept then. Raises CallTimeoutError, OutputTooLongError,
    DisconnectedError where the qube went away, ProtocolError where it broke the rules of the protocol.
    """
    if most < 0:
        raise ValueInvalidError(f"The bytes of output to take cannot be fewer than 0: {most}")
    deadline = None if timeout is None else time.monotonic() + timeout
    side = CallerSide()
    output = {DATA_STDOUT: bytearray(), DATA_STDERR: bytearray()}
    waiting = (memoryview(piece)[at : at + MAX_CHUNK] for piece in data for at in range(0, len(piece), MAX_CHUNK))
    pending: deque[memoryview] = deque()
    with sock:
        sock.setblocking(False)
        poll = select.poll()
        while side.exit_code is None:
            _frame_next(side, waiting, pending)
            poll.register(sock, select.POLLIN | (select.POLLOUT if pending else 0))
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0 or not (ready := poll.poll(None if left is None else left * 1000 + 1)):
                raise CallTimeoutError(f"{qube}: {command} did not end within {timeout:g} s")
            if ready[0][1] & select.POLLOUT:
                _send(sock, pending)
            if not ready[0][1] & (select.POLLIN | select.POLLHUP | select.POLLERR):
                continue
            try:
                got = sock.recv(_CHUNK)
            except BlockingIOError:
                continue
            except OSError as error:
                raise DisconnectedError(f"{qube} went away: {error.strerror}") from None
            if not got:
                raise DisconnectedError(f"{qube} went away while it ran {command}")
            for kind, piece in side.feed(got):
                if kind == DATA_STDOUT and sink is not None:
                    sink.write(piece)
                elif kind != DATA_EXIT_CODE:
                    output[kind] += piece
            if sum(map(len, output.values())) > most:
                raise OutputTooLongError(f"{qube}: {command} wrote more than {most} bytes")
    return Completed(qube, command, side.status(), bytes(output[DATA_STDOUT]), bytes(output[DATA_STDERR]))


def _frame_next(side: CallerSide, waiting: Iterator[memoryview], pending: deque[memoryview]) -> None:
    """Frame the next piece of the input once all before it was sent, and its end after the last piece."""
    if not pending:
        piece = next(waiting, None)
        pending.extend(memoryview(part) for part in (side.stdin_eof() if piece is None else side.stdin(piece)))


def pieces(data: bytes | str | BinaryIO) -> Iterator[bytes]:
    """Input as pieces: of a file each read as it is wanted, so that a large one needs no memory."""
    if isinstance(data, bytes | str):
        yield data.encode() if isinstance(data, str) else data
        return
    while piece := data.read(_CHUNK):
        yield piece


def _send(sock: socket.socket, pending: deque[memoryview]) -> None:
    """Send what the socket takes now. A service that has ended takes nothing more; its exit code says so."""
    try:
        while pending:
            sent = sock.send(pending[0])
            if sent == len(pending[0]):
                pending.popleft()
            else:
                pending[0] = pending[0][sent:]
    except BlockingIOError:
        pass
    except OSError:
        pending.clear()

"""The caller's end of a qrexec call: a call stream on one side, this program's descriptors on the other.

One poll loop in which nothing blocks; what a slow reader leaves is kept up to a bound, then the stream is not read.
"""

from __future__ import annotations

import os
import select
import socket
import stat

from casemate.wire import qrexec
from casemate.wire.errors import DisconnectedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

CHUNK = qrexec.MAX_CHUNK
KEEP = 4 * CHUNK
"""Bytes kept for one output before the stream is not read any more."""
EXIT_BROKEN_PIPE = 141
"""Exit status when nobody reads our output any more: what a shell says of a program that died of SIGPIPE."""

VISIBLE = bytes(b if 0x20 <= b <= 0x7E or b in b"\t\n\r\b\a" else ord("_") for b in range(256))
"""Translation of output for a terminal: what could be part of an escape sequence becomes ``_``."""


def connect(path: str | os.PathLike[str]) -> socket.socket:
    """Connect to a socket of calls; DisconnectedError when nobody listens."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.connect(os.fspath(path))
    except OSError as error:
        sock.close()
        raise DisconnectedError(error.strerror or "cannot connect") from error
    return sock


def request(sock: socket.socket, target: str, call: str) -> None:
    """In a qube: ask for a call and wait for the answer; CallRefusedError when it is no."""
    try:
        sock.sendall(qrexec.trigger4(target, call))
        kind, length = qrexec.HEADER.unpack(_exactly(sock, qrexec.HEADER.size))
        body = _exactly(sock, qrexec.ANSWERS((kind, length)))
    except OSError as error:
        raise DisconnectedError(error.strerror or "connection lost") from error
    qrexec.check_answer(kind, body)


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise DisconnectedError("The connection was closed before the request was answered")
        data += more
    return data


class Output:
    """A descriptor that takes output without blocking; ``fd`` None throws it away."""

    def __init__(self, fd: int | None, visible: bool = False) -> None:
        self.fd = fd
        self.broken = fd is None
        self.size = 0
        self._visible = visible
        self._waiting: list[memoryview | bytes] = []
        self._own = False
        self._restore = False
        if fd is not None:
            self._open(fd)

    def _open(self, fd: int) -> None:
        """Non-blocking for us alone: a description of our own where the system gives one."""
        mode = os.fstat(fd).st_mode
        if stat.S_ISREG(mode):
            return
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            try:
                self.fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
                self._own = True
                return
            except OSError:
                pass  # a pipe of another user's: share the description and put it back
        if os.get_blocking(fd):
            os.set_blocking(fd, False)
            self._restore = True

    def write(self, pieces: Sequence[memoryview | bytes]) -> None:
        """Write now what can be written, keep a copy of the rest."""
        if self.broken:
            return
        if self._visible:
            pieces = [bytes(piece).translate(VISIBLE) for piece in pieces]
        if self._waiting:
            self._keep(pieces)
        else:
            self._keep(self._push(pieces))

    def _keep(self, pieces: Sequence[memoryview | bytes]) -> None:
        for piece in pieces:
            self._waiting.append(bytes(piece))
            self.size += len(piece)

    def flush(self) -> None:
        """Write what was kept, as far as it goes."""
        self._waiting = list(self._push(self._waiting))
        self.size = sum(map(len, self._waiting))

    def _push(self, pieces: Sequence[memoryview | bytes]) -> Sequence[memoryview | bytes]:
        assert self.fd is not None
        while pieces:
            batch = pieces[:512]
            try:
                count = os.writev(self.fd, batch)
            except BlockingIOError:
                return pieces
            except OSError:
                self.broken = True
                return ()
            done = 0
            while done < len(batch) and count >= len(batch[done]):
                count -= len(batch[done])
                done += 1
            pieces = list(pieces[done:])
            if count:
                pieces[0] = memoryview(pieces[0])[count:]
        return ()

    def close(self, original: int | None = None) -> None:
        """Give back what was taken; with ``original`` close that descriptor too, so that its reader sees the end."""
        if self.fd is not None:
            if self._own:
                os.close(self.fd)
            elif self._restore:
                os.set_blocking(self.fd, True)
            if original is not None:
                os.close(original)
        self.fd = None
        self.broken = True
        self._waiting.clear()
        self.size = 0


class Call:
    """A call that was asked for and accepted. ``run`` moves bytes until it has ended and returns its exit status.

    ``first`` is sent as stdin before what ``stdin`` gives. ``stop_when_broken``: end the call when nobody reads stdout
    any more; else go on without it (its reader is a program that we started and whose end we will see).
    """

    def __init__(
        self,
        sock: socket.socket,
        stdin: int | None,
        stdout: Output,
        stderr: Output,
        first: bytes = b"",
        stop_when_broken: bool = True,
        chunk: int = CHUNK,
    ) -> None:
        self._sock = sock
        self._chunk = chunk
        self._side = qrexec.CallerSide()
        self._stdin = stdin
        self._outputs = {qrexec.DATA_STDOUT: stdout, qrexec.DATA_STDERR: stderr}
        self._stop_when_broken = stop_when_broken and not stdout.broken
        pieces = [first[at : at + chunk] for at in range(0, len(first), chunk)]
        self._sending: list[bytes | memoryview] = [part for piece in pieces for part in self._side.stdin(piece)]
        self._buffer = memoryview(bytearray(2 * CHUNK + 64))
        self._poll = select.poll()
        self._masks: dict[int, int] = {}
        self._open = True
        sock.setblocking(False)
        if stdin is None:
            self._sending += self._side.stdin_eof()

    def _watch(self, fd: int, mask: int | None) -> None:
        """Watch for ``mask`` (0: only for the peer's end); None: not at all."""
        if self._masks.get(fd) != mask:
            if mask is None:
                if fd in self._masks:
                    self._poll.unregister(fd)
                    del self._masks[fd]
            else:
                self._poll.register(fd, mask)
                self._masks[fd] = mask

    def run(self) -> int:
        """The service's exit status. DisconnectedError: the peer vanished; ProtocolError: it broke the rules."""
        stdout = self._outputs[qrexec.DATA_STDOUT]
        sock_fd = self._sock.fileno()
        while True:
            if stdout.broken and self._stop_when_broken:
                return EXIT_BROKEN_PIPE
            waiting = any(output.size for output in self._outputs.values())
            if not self._open and not waiting:
                if self._side.exit_code is None:
                    raise DisconnectedError("The other end went away before the call had ended")
                return self._side.exit_code
            self._rewatch(sock_fd)
            for fd, mask in self._poll.poll():
                if fd == sock_fd:
                    if mask & (select.POLLIN | select.POLLHUP | select.POLLERR):
                        self._receive()
                    if mask & select.POLLOUT:
                        self._send()
                elif fd == self._stdin:
                    self._read_stdin()
                else:
                    for output in self._outputs.values():
                        if output.fd == fd:
                            self._output_ready(output, mask)

    def _rewatch(self, sock_fd: int) -> None:
        full = any(output.size >= KEEP for output in self._outputs.values())
        if self._open and not full:
            self._watch(sock_fd, select.POLLIN | (select.POLLOUT if self._sending else 0))
        else:
            self._watch(sock_fd, select.POLLOUT if self._sending and self._open else None)
        if self._stdin is not None:
            wanted = self._open and not self._sending and self._side.stdin_open
            self._watch(self._stdin, select.POLLIN if wanted else None)
        for output in self._outputs.values():
            if output.fd is not None:
                self._watch(output.fd, None if output.broken else select.POLLOUT if output.size else 0)

    def _output_ready(self, output: Output, mask: int) -> None:
        if output.size and mask & select.POLLOUT:
            output.flush()
        elif mask & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
            output.broken = True
            output.size = 0

    def _receive(self) -> None:
        try:
            count = self._sock.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if count == 0:
            self._end()
            return
        pieces: list[memoryview | bytes] = []
        current = 0
        for kind, view in self._side.feed(self._buffer[:count]):
            if kind != current and pieces:
                self._outputs[current].write(pieces)
                pieces = []
            if kind == qrexec.DATA_EXIT_CODE:
                self._end()
            elif view:
                current = kind
                pieces.append(view)
        if pieces:
            self._outputs[current].write(pieces)

    def _end(self) -> None:
        self._open = False
        self._sending.clear()

    def _read_stdin(self) -> None:
        assert self._stdin is not None
        try:
            data = os.read(self._stdin, self._chunk)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._sending = list(self._side.stdin(data) if data else self._side.stdin_eof())
        self._send()

    def _send(self) -> None:
        if not self._sending:
            return
        try:
            count = self._sock.sendmsg(self._sending[:64])
        except BlockingIOError:
            return
        except OSError:
            # The peer takes no more; what it has said is still to be read.
            self._sending.clear()
            self._side.stdin_open = False
            return
        done = 0
        while done < len(self._sending) and count >= len(self._sending[done]):
            count -= len(self._sending[done])
            done += 1
        del self._sending[:done]
        if count:
            self._sending[0] = memoryview(self._sending[0])[count:]


def run_call(
    sock: socket.socket,
    stdin: int | None,
    stdout: int | None,
    stderr: int | None,
    first: bytes = b"",
    visible: tuple[bool, bool] = (False, False),
    chunk: int = CHUNK,
) -> int:
    """Run an accepted call on these descriptors (None: nothing in, nothing out); as ``Call.run``.

    ``visible`` says whether stdout and stderr are made harmless for a terminal; ``chunk`` is the longest message that
    the other end takes.
    """
    out, err = Output(stdout, visible[0]), Output(stderr, visible[1])
    try:
        return Call(sock, stdin, out, err, first, chunk=chunk).run()
    finally:
        out.close()
        err.close()
        sock.close()


def run_call_with(sock: socket.socket, argv: Sequence[str], first: bytes = b"", chunk: int = CHUNK) -> int:
    """Run an accepted call on a program of ours: its stdin and stdout are the call's.

    The program finds our own stdin and stdout as the descriptors in ``SAVED_FD_0`` and ``SAVED_FD_1``, and our stderr
    as that in ``SAVED_FD_2`` where ``PASS_LOCAL_STDERR`` is set. Returns the call's exit status, or the
    program's when the call succeeded and the program did not; else as ``Call.run``.
    """
    import signal

    saved = [os.dup(fd) for fd in ((0, 1, 2) if "PASS_LOCAL_STDERR" in os.environ else (0, 1))]
    to_program, from_program = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
    environment = dict(os.environ, **{f"SAVED_FD_{number}": str(fd) for number, fd in enumerate(saved)})
    for fd in saved:
        os.set_inheritable(fd, True)
    try:
        program = os.posix_spawnp(
            argv[0],
            list(argv),
            environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, to_program[0], 0), (os.POSIX_SPAWN_DUP2, from_program[1], 1)],
            setsigdef=[signal.SIGPIPE],
        )
    except OSError as error:
        for fd in (*saved, *to_program, *from_program):
            os.close(fd)
        sock.close()
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode("utf-8", "backslashreplace"))
        return qrexec.EXIT_NO_SERVICE
    for fd in (*saved, to_program[0], from_program[1]):
        os.close(fd)
    out, err = Output(to_program[1]), Output(2)
    try:
        status = Call(sock, from_program[0], out, err, first, stop_when_broken=False, chunk=chunk).run()
    finally:
        out.close(to_program[1])
        err.close()
        os.close(from_program[0])
        sock.close()
        code = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    return status or (code if code >= 0 else 128 - code)

"""The caller's end of a call: the call's data phase on one side, this program's descriptors on the other."""

from __future__ import annotations

import os
import socket
import stat

from casemate.streams.loop import Loop
from casemate.streams.pipe_stream import PipeStream
from casemate.streams.ready import readable
from casemate.streams.socket_stream import SocketStream
from casemate.streams.stream import WINDOW, Handler
from casemate.wire import call_data, qrexec
from casemate.wire.call_data import VISIBLE
from casemate.wire.errors import DisconnectedError
from casemate.wire.qrexec import DATA_EXIT_CODE, DATA_STDERR, DATA_STDIN, DATA_STDOUT, HEADER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casemate.streams.stream import Stream

    OnSilence = Callable[[bool], float]
    """Called where nothing has come of a call after SILENCE_SECONDS, with whether any of its input was sent; it returns
    the seconds until it is to be called again. An error that it raises ends the call."""

CHUNK = qrexec.MAX_CHUNK
LOST_LIMIT = 64 * 1024
"""Bytes of output for a reader that has gone after which the call is ended, once no input is on its way.

As much as a pipe holds: what a program of this host could have written before it was told. Less than that does not end
a call, because the service may be about to end by itself, and its exit status is what the caller wants."""
SILENCE_SECONDS = 2.0
"""Seconds without a word of the service after which whoever waits wants to know whether it can answer at all."""
EXIT_LOST = 74
"""Exit status of a call that succeeded and whose output could not be written, as to a full disk (EX_IOERR)."""
EXIT_BROKEN_PIPE = 141
"""Exit status of a call that was ended so: what a shell says of a program that died of SIGPIPE."""
_MESSAGE = HEADER.size


class Output(Handler):
    """A descriptor of this program that takes output of a call without blocking. ``fd`` None throws it away.

    ``on_end`` closes the descriptor itself when the output has ended, so that its reader sees that at once.
    """

    def __init__(
        self, loop: Loop, fd: int | None, visible: bool = False, on_end: Callable[[int], None] = os.close
    ) -> None:
        self.lost = 0
        """Bytes that were thrown away because nobody reads them."""
        self.on_room_again: Callable[[], None] = lambda: None
        self._fd = fd
        self._visible = visible
        self._on_end = on_end
        self._stream: PipeStream | None = None
        self._restore = False
        self._ended = False
        if fd is not None:
            try:
                self._stream = PipeStream(loop, -1, self._open(fd), self, shared=True)
            except OSError:
                self._fd = None  # closed by who started us: nobody reads it

    def _open(self, fd: int) -> int:
        """A descriptor that does not block, without making ``fd`` so for others: with a file of its own where the
        system gives one. A terminal or pipe that we share with our parent would stay non-blocking after us."""
        mode = os.fstat(fd).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            try:
                return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            except OSError:
                pass  # a pipe of another user's: share the file and put it back
        if not stat.S_ISREG(mode) and os.get_blocking(fd):
            os.set_blocking(fd, False)
            self._restore = True
        return os.dup(fd)

    @property
    def closed(self) -> bool:
        """True when everything was written, or nobody reads it."""
        return self._stream is None or self._stream.closed

    @property
    def failure(self) -> int:
        """The errno of a write that failed though nobody had closed the other end; 0 if there was none."""
        return 0 if self._stream is None else self._stream.failure

    def space_left(self) -> int:
        """Bytes that it takes now; an output that has ended holds nobody up."""
        return WINDOW if self._stream is None or self._ended else self._stream.room()

    def write(self, pieces: Sequence[memoryview]) -> None:
        """Write now what can be written, keep a copy of the rest."""
        stream = self._stream
        if stream is None:
            return
        if stream.broken:
            self.lost += sum(map(len, pieces))
        elif self._visible:
            stream.writev([bytes(piece).translate(VISIBLE) for piece in pieces])
        else:
            stream.writev(pieces)

    def eof(self) -> None:
        """The service writes no more: let the reader see that when everything is written."""
        self._ended = True
        if self._stream is not None:
            self._stream.eof()

    def on_room(self) -> None:
        self.on_room_again()

    def on_closed(self) -> None:
        self._give_back()
        if self._fd is not None:
            self._on_end(self._fd)
            self._fd = None

    def on_abort(self, why: str) -> None:
        """Nobody reads it. The descriptor stays open: what was not asked for is not closed early."""

    def close(self) -> None:
        """Let go of it, whatever was written."""
        if self._stream is not None:
            self._stream.abort()
        self._give_back()

    def _give_back(self) -> None:
        if self._restore and self._fd is not None:
            os.set_blocking(self._fd, True)
            self._restore = False


class _Input(Handler):
    """Sends what is read from stdin, each read as one message that is framed in place."""

    def __init__(self, call: Call, stream: SocketStream, chunk: int) -> None:
        self._call = call
        self._stream = stream
        self._end = _MESSAGE + chunk
        self._space = memoryview(b"")

    def buffer(self) -> memoryview:
        self._space = self._stream.space()
        return self._space[_MESSAGE : self._end]

    def filled(self, count: int) -> None:
        self._call.input_sent = True
        HEADER.pack_into(self._space, 0, DATA_STDIN, count)
        self._stream.commit(_MESSAGE + count)

    def on_eof(self) -> None:
        self._call.input_ended()


class Call(Handler):
    """A call that was asked for and accepted. ``run`` moves bytes until it has ended and returns its exit status.

    ``first`` is sent as stdin before what ``stdin`` gives; ``chunk`` is the longest message that the other end takes.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        stdin: int | None,
        stdout: Output,
        stderr: Output,
        first: bytes = b"",
        chunk: int = CHUNK,
    ) -> None:
        self._loop = loop
        self._side = call_data.CallerSide()
        self._outputs = {DATA_STDOUT: stdout, DATA_STDERR: stderr}
        for output in self._outputs.values():
            output.on_room_again = self._resume
        self._over = False
        self.silent = True
        """Whether nothing has come of the service yet."""
        self.input_sent = False
        """Whether any of the input that ``stdin`` gives was sent. It would be lost with the call."""
        # Whoever serves closes its socket after the exit code; what lies before that is still to be read.
        self._stream = SocketStream(loop, sock, self, drain=True)
        for at in range(0, len(first), chunk):
            self._stream.writev(self._side.stdin(first[at : at + chunk]))
        self._stdin_fd = stdin
        self._stdin: Stream | None = None
        try:
            if stdin is None:
                self.input_ended()
            else:
                self._stdin = PipeStream(loop, os.dup(stdin), -1, _Input(self, self._stream, chunk), shared=True)
        except OSError:
            self.input_ended()  # closed by who started us

    def run(self) -> int:
        """The service's exit status. DisconnectedError: the peer vanished; ProtocolError: it broke the rules.

        EXIT_BROKEN_PIPE when the call was ended because nobody reads its output (see LOST_LIMIT).
        """
        stdout = self._outputs[DATA_STDOUT]
        try:
            while not self._over or not all(output.closed for output in self._outputs.values()):
                if stdout.lost > LOST_LIMIT and not self._over and not self._input_waits():
                    return EXIT_BROKEN_PIPE
                self._loop.once(None)
        finally:
            self._stream.abort()
            if self._stdin is not None:
                self._stdin.abort()
        self._loop.once(0)  # outputs that ended in the last round have their descriptors closed
        if self._side.exit_code is None:
            raise DisconnectedError("The other end went away before the call had ended")
        return self._side.exit_code

    def _input_waits(self) -> bool:
        """Whether there is input that the service has not got yet."""
        if self._stream.pending:
            return True
        if self._stdin is None or self._stdin_fd is None:
            return False
        return bool(readable([self._stdin_fd], 0))

    def input_ended(self) -> None:
        """There is no more input."""
        self._stdin = None
        self._stream.writev(self._side.stdin_eof())

    # -- the service

    def room(self) -> int:
        return min(output.space_left() for output in self._outputs.values())

    def _resume(self) -> None:
        self._stream.resume()

    def on_data(self, data: memoryview) -> None:
        self.silent = False
        pieces: list[memoryview] = []
        current = 0
        for kind, view in self._side.feed(data):
            if pieces and (kind != current or not view):
                self._outputs[current].write(pieces)
                pieces = []
            if view:
                current = kind
                pieces.append(view)
            elif kind == DATA_EXIT_CODE:
                self._end()
            else:
                self._outputs[kind].eof()
        if pieces:
            self._outputs[current].write(pieces)

    def on_room(self) -> None:
        if self._stdin is not None:
            self._stdin.resume()

    def on_eof(self) -> None:
        self._end()

    def on_abort(self, why: str) -> None:
        self._end()

    def _end(self) -> None:
        self._over = True
        for output in self._outputs.values():
            output.eof()
        if self._stdin is not None:
            self._stdin.abort()
            self._stdin = None


def run_call(
    sock: socket.socket,
    stdin: int | None,
    stdout: int | None,
    stderr: int | None,
    first: bytes = b"",
    visible: tuple[bool, bool] = (False, False),
    chunk: int = CHUNK,
    on_silence: OnSilence | None = None,
) -> int:
    """Run an accepted call on these descriptors (None: nothing in, nothing out); as ``Call.run``.

    ``visible`` says whether stdout and stderr are made harmless for a terminal; ``chunk`` is the longest message that
    the other end takes; ``on_silence`` is called as ``OnSilence`` says. At the end of the service's output our stdout
    is closed, with /dev/null in its place.
    """
    loop = Loop()
    out = Output(loop, stdout, visible[0], _end_standard)
    err = Output(loop, stderr, visible[1], _end_standard)
    try:
        call = Call(loop, sock, stdin, out, err, first, chunk)
        if on_silence is not None:
            look_at(loop, call, on_silence)
        status = call.run()
        for output, name in ((out, "standard output"), (err, "standard error")):
            if output.failure:
                os.write(2, f"{name}: {os.strerror(output.failure)}; output of the call is lost\n".encode())
                status = status or EXIT_LOST
        return status
    finally:
        out.close()
        err.close()
        sock.close()
        loop.close()


def look_at(loop: Loop, call: Call, on_silence: OnSilence) -> None:
    """Have ``on_silence`` called while nothing comes of a call."""

    def look() -> None:
        if call.silent:
            loop.later(on_silence(call.input_sent), look)

    loop.later(SILENCE_SECONDS, look)


def _end_standard(fd: int) -> None:
    """Let the reader of a standard descriptor see the end of the output. Other descriptors are our caller's to close.

    Stdout becomes /dev/null: the next file opened would get its number else. Stderr stays, because something of our own
    may still have to be said there.
    """
    if fd == 1:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(null, fd)
        os.close(null)
    elif fd == 0:  # a socket that takes output, too
        with socket.socket(fileno=os.dup(fd)) as sock:
            sock.shutdown(socket.SHUT_WR)


def run_call_with(
    sock: socket.socket,
    argv: Sequence[str],
    first: bytes = b"",
    chunk: int = CHUNK,
    on_silence: OnSilence | None = None,
) -> int:
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
    ends = {to_program[1]}

    def close(fd: int) -> None:
        ends.discard(fd)
        os.close(fd)

    loop = Loop()
    out, err = Output(loop, to_program[1], on_end=close), Output(loop, 2, on_end=lambda _fd: None)
    try:
        call = Call(loop, sock, from_program[0], out, err, first, chunk)
        if on_silence is not None:
            look_at(loop, call, on_silence)
        status = call.run()
    finally:
        out.close()
        err.close()
        for fd in (*ends, from_program[0]):
            os.close(fd)
        sock.close()
        loop.close()
        code = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    return status or (code if code >= 0 else 128 - code)

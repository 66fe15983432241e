"""The serving end of a call: a program or a socket on one side, the call's data phase on the other."""

from __future__ import annotations

from casemate.streams.loop import Loop
from casemate.streams.pipe_stream import PipeStream
from casemate.streams.socket_stream import SocketStream
from casemate.streams.stream import WINDOW, Handler, Stream
from casemate.wire.call_data import ServiceSide
from casemate.wire.errors import ProtocolError
from casemate.wire.qrexec import DATA_EXIT_CODE, DATA_STDERR, DATA_STDIN, DATA_STDOUT, HEADER, message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_MESSAGE = HEADER.size


def _nothing() -> None:
    pass


class Output(Handler):
    """Sends what the service writes to one of its outputs, each read as one message that is framed in place."""

    __slots__ = ("_space", "_stream", "call", "kind")

    def __init__(self, call: ServiceCall, stream: Stream, kind: int) -> None:
        self.call = call
        self.kind = kind
        self._stream = stream
        self._space = memoryview(b"")

    def buffer(self) -> memoryview:
        self._space = self._stream.space()
        return self._space[_MESSAGE:]

    def filled(self, count: int) -> None:
        HEADER.pack_into(self._space, 0, self.kind, count)
        self._stream.commit(_MESSAGE + count)

    def on_eof(self) -> None:
        self.call.output_ended(self.kind)

    def on_room(self) -> None:
        self._stream.resume()  # the service takes input again

    def on_abort(self, why: str) -> None:
        self.call.output_ended(self.kind)


class ServiceCall(Handler):
    """One call being served. Owns the streams of its service.

    ``service`` is the service's input and output as one stream, ``stderr`` its third. The call ends when all outputs
    have ended and the service's status is known (``exited``), so output stays open for what a program leaves behind,
    as upstream does; then ``on_done`` is called. It also ends when the caller goes: the service reads what came before
    that, finds its input at its end, and nobody reads its output.
    """

    output: type[Output] = Output
    """What reads the service's outputs."""

    def __init__(
        self,
        stream: Stream,
        service: PipeStream | SocketStream,
        stderr: PipeStream | None,
        on_done: Callable[[ServiceCall], None] | None = None,
        look: Callable[[], None] = _nothing,
    ) -> None:
        self._stream = stream
        self._service = service
        self._stderr = stderr
        self._side = ServiceSide()
        self._on_done = on_done
        self._look = look
        self._outputs = {DATA_STDOUT}
        self._status: int | None = None
        self._done = False
        self._input_open = True
        self.on_hang_up: Callable[[], None] = _nothing
        """Called when the caller has gone while it still held the service's input open, as a terminal does."""
        stream.handler = self
        service.handler = self.output(self, stream, DATA_STDOUT)
        if stderr is not None:
            self._outputs.add(DATA_STDERR)
            stderr.handler = self.output(self, stream, DATA_STDERR)
        else:
            stream.writev(self._side.eof(DATA_STDERR))

    @classmethod
    def of_program(
        cls,
        loop: Loop,
        stream: Stream,
        stdin: int,
        stdout: int,
        stderr: int | None,
        on_done: Callable[[ServiceCall], None] | None = None,
        look: Callable[[], None] = _nothing,
    ) -> ServiceCall:
        """The call of a program, given our ends of its pipes. ``exited`` must be called when it was reaped.

        ``look`` has those told of that have ended by now; it is called when the program's outputs have ended.
        """
        errors = None if stderr is None else PipeStream(loop, stderr, -1)
        return cls(stream, PipeStream(loop, stdout, stdin), errors, on_done, look)

    # -- the caller

    def room(self) -> int:
        return WINDOW if self._status is not None else self._service.room()

    def on_data(self, data: memoryview) -> None:
        try:
            events = self._side.feed(data)
        except ProtocolError:
            self.fail("it broke the protocol")
            return
        pieces = [view for kind, view in events if view]
        if pieces:
            self._service.writev(pieces)
        if events and not events[-1][1] and events[-1][0] == DATA_STDIN:
            self.input_ended()

    def on_eof(self) -> None:
        # A caller that has no more input says so by a message and stays for the exit status. One whose stream ends has
        # gone: it was interrupted, or killed.
        self._hang_up()
        self.input_ended()

    def _hang_up(self) -> None:
        if self._input_open and self._status is None:
            self._input_open = False
            self.on_hang_up()

    def on_room(self) -> None:
        self._service.resume()
        if self._stderr is not None:
            self._stderr.resume()

    def on_abort(self, why: str) -> None:
        if not self._done:
            self._hang_up()
            self._service.finish()
            self._end()

    def fail(self, why: str) -> None:
        """Give the call up."""
        self._stream.abort()
        self.on_abort(why)

    # -- the service

    def input_ended(self) -> None:
        """The caller sends no more."""
        self._input_open = False
        self._service.eof()

    def output_ended(self, kind: int) -> None:
        """The service writes no more to one of its outputs."""
        if kind in self._outputs and not self._done:
            self._outputs.discard(kind)
            self._stream.writev(self._side.eof(kind))
            if not self._outputs and self._status is None:
                self._look()
            self.check()

    def exited(self, status: int) -> None:
        """The service has ended; ``status`` is 0..255, 128+N for signal N."""
        if self._status is None:
            self._status = status
            if not self._done:
                self._service.eof()
                self._stream.resume()
                self.check()

    def check(self) -> None:
        """End the call if nothing is missing any more."""
        if self._done or self._status is None or self._outputs:
            return
        self._stream.writev(self._side.exit(self._status))
        self._stream.eof()
        self._service.abort()
        self._end()

    def _end(self) -> None:
        self._done = True
        if self._stderr is not None:
            self._stderr.abort()
        if self._on_done is not None:
            self._on_done(self)


def tell_status(stream: Stream, status: int) -> None:
    """End a call of which the caller gets its status alone (JUST_EXEC)."""
    stream.write(message(DATA_EXIT_CODE, status.to_bytes(4, "little")))
    stream.eof()


def refuse(stream: Stream, status: int, why: str = "") -> None:
    """End a call that cannot be served: ``why`` on its stderr, then the status (127: no such service)."""
    side = ServiceSide()
    stream.writev(side.output(DATA_STDERR, why.encode("ascii", "replace")[:4096]) + side.exit(status))
    stream.eof()

"""The channel between a link and an agent: a mux on a descriptor, and the bounds of what a qube holds and is owed."""

from __future__ import annotations

import os

from casemate.streams.frame_budget import FrameBudget
from casemate.streams.half_frame import HALF_FRAME_SECONDS, HalfFrame
from casemate.streams.loop import HANGUP, READ, WRITE, Loop
from casemate.streams.mux_stream import AFTER, BEFORE, HIGH_WATER, MuxStream
from casemate.streams.stream import Handler
from casemate.wire import mux
from casemate.wire.errors import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.streams.loop import Timer

GIVEN_UP = "the other end has given it up"
"""Reason of ``on_abort`` where the peer has aborted one stream and its session goes on."""
MAX_OWED = 512 * 1024
"""Limit of a qube's channel (bytes): bytes that a qube asked for and has not read; above it nothing is read from
it until it has taken half of them.

More than HIGH_WATER, so that data alone never reaches it: only replies to a guest that asks and does not read do."""
MAX_HELD = 8 << 20
"""Limit of a qube's channel (bytes): bytes of a qube that their readers have not taken; then it is not read from.

One stream holds at most two windows; this bounds the sum over all."""
UNREAD_SECONDS = 30.0
"""Limit of a qube's channel (seconds): time that a qube may leave so much unread; then the channel is closed."""
_PAGE = 4096
"""What one read of a virtio-serial port returns at most: its driver's buffers are pages."""
_PORT_BATCH = 32
"""Pages asked for in one readv(2) of a port: the driver serves each piece as a read of its own, in one system call."""


class Channel:
    """Owns a mux on a non-blocking descriptor; the descriptor stays its owner's.

    ``on_open(stream, payload)`` decides about a stream that the peer opens: it sets the stream's handler, or aborts it.
    ``on_session`` is called when a session begins. ``on_lost(why)`` is called once, when the descriptor has ended or
    (host) the peer broke the protocol; the channel has let go of the descriptor and aborted all streams by then.
    ``violation`` tells the two apart.

    ``half_frame_seconds`` is how long (host) a frame may take from its first byte to its last.

    ``port``: the descriptor is a virtio-serial port, whose driver returns at most a page for each read and makes a
    transfer of its own of each piece that is written.
    """

    def __init__(
        self,
        loop: Loop,
        fd: int,
        host: bool,
        on_open: Callable[[MuxStream, bytes], None],
        on_session: Callable[[], None],
        on_lost: Callable[[str], None],
        port: bool = False,
        half_frame_seconds: float = HALF_FRAME_SECONDS,
    ) -> None:
        self.mux = mux.Mux(host)
        self.streams: dict[int, MuxStream] = {}
        self.starved: set[int] = set()
        self.violation = False
        self._loop = loop
        self._fd = fd
        self._host = host
        self._on_open = on_open
        self._on_session = on_session
        self._on_lost = on_lost
        self._session = 0
        self._port = port
        self._closed = False
        self._in_events = False
        self._flushing = False
        self._held = 0  # bytes handed over that no window was given back for, of all streams
        self._unread: Timer | None = None  # runs while the peer owes us a read
        self._budget = FrameBudget()
        self._paced = False
        # An agent trusts its host. A host that waited for the rest of a frame for ever would keep what came before it.
        self._half = HalfFrame(loop, half_frame_seconds, lambda: self.fail("half a frame, and then nothing"))
        self._mask = READ
        loop.watch(fd, READ, self._ready)

    def open(self, payload: bytes, handler: Handler) -> MuxStream:
        """Open a stream to the peer."""
        number = self.mux.open(payload)
        stream = MuxStream(self, number, handler)
        self.streams[number] = stream
        self.flush()
        return stream

    def reset(self) -> None:
        """Host: begin a session."""
        self._abandon("the session has ended")
        self.mux.reset(os.urandom(mux.NONCE))
        self.flush()

    def close(self) -> None:
        """Let go of the descriptor, which is not closed, and abort all streams."""
        self._let_go("the channel was closed")

    def fail(self, why: str) -> None:
        """Close it because the peer broke the rules of what a stream carries, and tell the owner."""
        if not self._closed:
            self.violation = True
            self._lose(why)

    # -- streams

    def consumed(self, stream: MuxStream, count: int) -> None:
        """``count`` bytes were handed to the handler of a stream; give the window back if it has room for more."""
        owed = stream.owed + count
        if stream.handler.room() > 0:
            self._held -= stream.owed
            stream.owed = 0
            self.mux.consumed(stream.number, owed)
        else:
            self._held += count
            stream.owed = owed

    def remove(self, stream: MuxStream) -> bool:
        """Forget a stream; False when it was gone already."""
        if self.streams.get(stream.number) is not stream:
            return False
        del self.streams[stream.number]
        self._held -= stream.owed
        stream.owed = 0
        return True

    def tidy(self, stream: MuxStream) -> None:
        """Forget a stream when both of its directions have ended, and tell its handler."""
        if not self.mux.has(stream.number) and self.remove(stream):
            self._loop.soon(stream.say_closed)

    def _abandon(self, why: str) -> None:
        old, self.streams = self.streams, {}
        self.starved.clear()
        self._held = 0
        for stream in old.values():
            stream.handler.on_abort(why)

    def _lose(self, why: str) -> None:
        if not self._closed:
            self._let_go(why)
            self._on_lost(why)

    def _let_go(self, why: str) -> None:
        if not self._closed:
            self._closed = True
            self._loop.unwatch(self._fd)
            self._half.stop()
            if self._unread is not None:
                self._unread.cancel()
            self._abandon(why)

    # -- sending

    def send_in_place(self, number: int, frame: memoryview) -> None:
        """Send a DATA frame that was filled in place. Copies only what the descriptor does not take."""
        if self.mux.output or self._closed or self._in_events:
            self.mux.send(number, bytes(frame[BEFORE:-AFTER]))
            self.flush()
            return
        self.mux.send_in_place(number, frame)
        while frame:
            try:
                frame = frame[os.write(self._fd, frame) :]
            except BlockingIOError:
                self.mux.put(bytes(frame))
                self._rewatch()
                return
            except OSError as error:
                self._lose(f"write failed: {error.strerror}")
                return

    def flush_later(self) -> None:
        """Write what is waiting when this round of the loop is over: small messages go together."""
        if not self._flushing:
            self._flushing = True
            self._loop.soon(self._flush_now)

    def _flush_now(self) -> None:
        self._flushing = False
        self.flush()

    def flush(self) -> None:
        """Write what is waiting, as far as it goes."""
        if not self._closed and not self._in_events and self.mux.output:
            self._write()

    def _write(self) -> None:
        output = self.mux.output
        while output:
            batch = [output[i] for i in range(min(len(output), 64))]
            if self._port and len(batch) > 1:
                joined = b"".join(batch)
                for _piece in batch:
                    output.popleft()
                output.appendleft(joined)
                batch = [joined]
            try:
                count = os.writev(self._fd, batch)
            except BlockingIOError:
                break
            except OSError as error:
                self._lose(f"write failed: {error.strerror}")
                return
            self.mux.pending -= count
            for piece in batch:
                if count < len(piece):
                    if count:
                        output[0] = memoryview(piece)[count:]
                    break
                count -= len(piece)
                output.popleft()
            else:
                continue
            break
        self._rewatch()
        if self.starved and self.mux.pending < HIGH_WATER // 2:
            waiting, self.starved = self.starved, set()
            for number in waiting:
                stream = self.streams.get(number)
                if stream is not None:
                    stream.handler.on_room()

    # -- receiving

    def _rewatch(self) -> None:
        if self._closed:
            return
        mask = (READ if self._may_read() else HANGUP) | (WRITE if self.mux.output else 0)
        if mask != self._mask:
            if (mask ^ self._mask) & READ:
                # While we do not read, the rest of a frame waits for us. It has the whole time again afterwards.
                self._half.stop()
                if self._host and mask & READ:
                    self._half.read(self.mux.cut, self.mux.frames)
            self._mask = mask
            self._loop.watch(self._fd, mask, self._ready)

    def _may_read(self) -> bool:
        """Whether more may be read of the peer. An agent always reads: it trusts its host, and two ends that wait for
        each other to read would wait for ever."""
        if not self._host:
            return True
        if self._unread is not None:
            if self.mux.pending > MAX_OWED // 2:
                return False
            self._unread.cancel()
            self._unread = None
        elif self.mux.pending > MAX_OWED:
            self._unread = self._loop.later(UNREAD_SECONDS, lambda: self.fail("it does not read what it asked for"))
            return False
        return self._held < MAX_HELD and not self._paced

    def _ready(self, mask: int) -> None:
        if mask & WRITE:
            self._write()
        if self._closed:
            return
        if mask & READ:
            self._read()
        elif mask & HANGUP:
            self._lose("closed by the peer")

    def _read(self) -> None:
        view = self.mux.space()
        try:
            if self._port:
                pages = [view[at : at + _PAGE] for at in range(0, min(len(view), _PORT_BATCH * _PAGE), _PAGE)]
                count = os.readv(self._fd, pages)
            else:
                count = os.readv(self._fd, (view,))
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(f"read failed: {error.strerror}")
            return
        if count == 0:
            self._lose("closed by the peer")
            return
        self._in_events = True
        try:
            for kind, number, payload in self.mux.received(count):
                if self.mux.sessions != self._session:
                    self._begin()
                self._dispatch(kind, number, payload)
                if self._closed:
                    return
            if self.mux.sessions != self._session:
                self._begin()
            elif not self.mux.connected and self.streams:
                self._abandon("the host was replaced")
        except ProtocolError as error:
            self.fail(str(error))
        finally:
            self._in_events = False
        if self._host:
            self._half.read(self.mux.cut, self.mux.frames)
            self._pace()
        if self.mux.output and not self._closed:
            self._write()
        else:
            self._rewatch()

    def _pace(self) -> None:
        """Read no more until the frames that moved no data are balanced by time."""
        wait = self._budget.spend(self.mux.idle_frames)
        self.mux.idle_frames = 0
        if self._closed or self._paced or not wait:
            return
        if self._budget.exhausted:
            self.fail("it floods the channel")
            return
        self._paced = True
        self._loop.later(wait, self._paced_enough)

    def _paced_enough(self) -> None:
        self._paced = False
        self._rewatch()

    def _begin(self) -> None:
        self._session = self.mux.sessions
        self._abandon("a new session has begun")
        self._on_session()

    def _dispatch(self, kind: int, number: int, payload: bytes | memoryview) -> None:
        if kind == mux.OPEN:
            stream = MuxStream(self, number, Handler())
            self.streams[number] = stream
            self._on_open(stream, bytes(payload))
            return
        found = self.streams.get(number)
        if found is None:
            return
        if kind == mux.DATA:
            found.handler.on_data(memoryview(payload))
            if self.streams.get(number) is found:
                self.consumed(found, len(payload))
        elif kind == mux.GRANT:
            found.granted()
        elif kind == mux.EOF:
            found.handler.on_eof()
            self.tidy(found)
        elif self.remove(found):
            found.handler.on_abort(GIVEN_UP)

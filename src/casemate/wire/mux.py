"""Many flow-controlled streams over one byte stream (a virtio-serial port), sans-I/O.

virtio-serial does not tell the guest when the host reconnects. After a quick reconnect the guest would glue the rest of
an old message to the first new one. So:

* every connection of the host starts with a *reset*: a run of zeros long enough to complete any frame that was cut,
  then ``RESET`` and a fresh 16-byte nonce. The guest drops all streams and answers ``ACK`` and the nonce; the host
  throws away everything before that answer. Nobody else can know the nonce, so old bytes cannot forge it.
* a frame is ``header, payload, trailer``; header is ``<IIB3x`` (stream, length of payload, type), the trailer repeats
  the first four bytes of the nonce. A frame counts only once its trailer has been seen, so a cut frame that was
  completed by zeros is never delivered. The guest then looks for the next reset.

Streams have ids that are never used again within a session (host even, guest odd). Each direction of a stream has
a window of ``WINDOW`` bytes: a sender never has more than that outstanding, a receiver grants more as its consumer
takes bytes, so a slow reader stalls its own stream only and memory stays bounded.
"""

from __future__ import annotations

import struct
from collections import deque

from casemate.wire.errors import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER = struct.Struct("<IIB3x")
TRAILER = 4
MAX_PAYLOAD = 65536
"""Limit of a qube's channel (bytes): payload of one frame."""
MAX_FRAME = HEADER.size + MAX_PAYLOAD + TRAILER
BUFFER = 4 * MAX_FRAME
WINDOW = 256 * 1024
"""Limit of a qube's channel (bytes): bytes in flight in one direction of one stream."""
MAX_STREAMS = 128
"""Limit of a qube's channel (streams): streams that one end may have open at once."""
LEAST_ROOM = 64
"""Smallest free window worth reporting, in bytes. A sender must fit the header of its own message in; with less than
this it would ask again for ever, so ``room`` returns 0."""

MAX_STALE = 4 << 20
"""Bytes that the host throws away while it waits for the answer to its reset; then it hangs up. What an honest guest
can have under way is far less."""

RESET = b"\xffCASEMATE-RESET\x01"
ACK = b"\xffCASEMATE-ACKN\x01\x01"
NONCE = 16
_PREAMBLE = bytes(MAX_FRAME + HEADER.size)

OPEN, DATA, GRANT, EOF, ABORT = 1, 2, 3, 4, 5
_U32 = struct.Struct("<I")

Event = tuple[int, int, bytes | memoryview]
"""(type, stream, payload): OPEN with its payload, DATA, EOF or ABORT; GRANT when a blocked stream may send again.

The payload of DATA is a view that is good only until the next event is asked for."""


class _Stream:
    __slots__ = ("credit", "eof_in", "eof_out", "heard", "unread", "window")

    def __init__(self) -> None:
        self.credit = WINDOW  # bytes we may still send
        self.window = WINDOW  # bytes the peer may still send
        self.unread = 0  # bytes consumed by our side but not granted back yet
        self.eof_in = False
        self.eof_out = False
        self.heard = False  # whether the peer has sent anything on it


class Mux:
    """One end of a channel. ``feed`` takes bytes of the peer and yields events; ``output`` is what to write.

    The host end starts a session with ``reset``; the guest end waits for one. Events are only produced within a
    session. On the host a violation raises ProtocolError: close the channel. On the guest it means that the host was
    replaced: the streams are dropped (``lost`` is called) and the next reset is looked for.
    """

    def __init__(self, host: bool) -> None:
        self._host = host
        self._buffer = bytearray(BUFFER)
        self._view = memoryview(self._buffer)
        self._start = 0  # of what was received and not used yet
        self._end = 0
        self._stale = 0  # bytes thrown away since the reset
        self._streams: dict[int, _Stream] = {}
        self._peer_opened = 0
        self._synced = False
        self._marker = b"" if host else RESET
        self._tag = b""
        self._next_own = 0
        self._last_peer = 0
        self.output: deque[bytes | memoryview] = deque()
        """Chunks to write to the channel in order; the owner pops what it has written."""
        self.pending = 0
        """Bytes in ``output``; the owner subtracts what it has written."""
        self.idle_frames = 0
        """Frames received that moved no data forward: what a flood is made of. The owner sets it back to 0."""
        self.frames = 0
        """Whole frames that have come."""
        self.sessions = 0
        """Sessions established so far; a change means that all older streams are gone."""

    # -- sessions

    @property
    def cut(self) -> bool:
        """True while the last bytes of a session are the beginning of a frame."""
        return self._synced and self._end > self._start

    @property
    def connected(self) -> bool:
        """True within a session."""
        return self._synced

    def reset(self, nonce: bytes) -> None:
        """Host: begin a session; ``nonce`` is NONCE random bytes."""
        if not self._host or len(nonce) != NONCE:
            raise ValueError("only the host resets, with a nonce of 16 bytes")
        self._forget()
        self._marker = ACK + nonce
        self._tag = nonce[:TRAILER]
        self.put(_PREAMBLE)
        self.put(RESET + nonce)

    def _forget(self) -> None:
        self._streams.clear()
        self._peer_opened = 0
        self._synced = False
        self._start = self._end = 0
        self._stale = 0
        self.output.clear()
        self.pending = 0
        # Own ids: host even from 2, guest odd from 1; 0 is never a stream.
        self._next_own = 2 if self._host else 1
        self._last_peer = 0

    def _resync(self) -> bool:
        """Look for the marker; everything before it is thrown away."""
        need = len(self._marker) + (0 if self._host else NONCE)
        at = self._buffer.find(self._marker, self._start, self._end)
        if at < 0:
            kept = max(self._start, self._end - len(self._marker) + 1)
            self._stale += kept - self._start
            self._start = kept
            if self._host and self._stale > MAX_STALE:
                raise ProtocolError("channel: no answer to the reset, but much else")
            return False
        self._start = at
        if self._end - at < need:
            return False
        self._start = at + need
        if not self._host:
            nonce = bytes(self._view[at + len(self._marker) : at + need])
            start, end = self._start, self._end
            self._forget()
            self._start, self._end = start, end
            self._tag = nonce[:TRAILER]
            self.put(ACK + nonce)
        self._synced = True
        self.sessions += 1
        return True

    # -- input

    def space(self) -> memoryview:
        """Where to put bytes that come from the channel; never empty. Then call ``received``."""
        if self._start == self._end:
            self._start = self._end = 0
        elif len(self._buffer) - self._end < MAX_FRAME:
            kept = self._end - self._start
            self._view[:kept] = self._view[self._start : self._end]
            self._start, self._end = 0, kept
        return self._view[self._end :]

    def received(self, count: int) -> Iterator[Event]:
        """``count`` bytes were put into ``space``: yield what they mean. Exhaust the iterator before the next call."""
        self._end += count
        while True:
            if not self._synced and not self._resync():
                return
            yield from self._frames()
            if self._synced:
                return

    def feed(self, data: bytes | memoryview) -> Iterator[Event]:
        """The same for bytes that lie elsewhere."""
        while data:
            space = self.space()
            count = min(len(space), len(data))
            space[:count] = data[:count]
            data = data[count:]
            yield from self.received(count)

    def _frames(self) -> Iterator[Event]:
        view, session = self._view, self.sessions
        while self._end - self._start >= HEADER.size:
            at = self._start
            stream, length, kind = HEADER.unpack_from(view, at)
            if kind != DATA:
                self.idle_frames += 1
            if not OPEN <= kind <= ABORT or length > MAX_PAYLOAD:
                self._violation(f"bad frame header: type {kind}, length {length}")
                return
            end = at + HEADER.size + length
            if self._end < end + TRAILER:
                return
            self._start = end + TRAILER
            self.frames += 1
            if view[end : end + TRAILER] != self._tag:
                self._violation("bad frame trailer")
                return
            event = self._frame(stream, kind, view[at + HEADER.size : end])
            if event is not None:
                yield event
            if self.sessions != session or not self._synced:
                return  # lost, or the owner began a new session meanwhile

    def _violation(self, why: str) -> None:
        if self._host:
            raise ProtocolError(f"channel: {why}")
        self._synced = False
        self._streams.clear()

    def _frame(self, number: int, kind: int, payload: memoryview) -> Event | None:
        if kind == OPEN:
            if number & 1 == (0 if self._host else 1) or number <= self._last_peer:
                self._violation(f"stream {number} cannot be opened by the peer")
                return None
            if self._peer_opened >= MAX_STREAMS:
                self._violation("too many open streams")
                return None
            self._last_peer = number
            self._peer_opened += 1
            self._streams[number] = _Stream()
            return (OPEN, number, bytes(payload))
        stream = self._streams.get(number)
        if stream is None:
            known = number <= self._last_peer if self._is_peers(number) else 0 < number < self._next_own
            if not known:
                self._violation(f"frame for stream {number}, which never was")
            self.idle_frames += 1
            return None  # a late frame for a stream that this end has aborted
        stream.heard = True
        if kind == DATA:
            if stream.eof_in or len(payload) > stream.window or not payload:
                self._violation(f"data outside the window of stream {number}")
                return None
            stream.window -= len(payload)
            return (DATA, number, payload)
        if kind == GRANT:
            if len(payload) != 4:
                self._violation("bad grant")
                return None
            (more,) = _U32.unpack(payload)
            if stream.credit + more > WINDOW:
                self._violation("grant beyond the window")
                return None
            blocked = stream.credit < LEAST_ROOM
            stream.credit += more
            if more >= WINDOW // 4:
                self.idle_frames -= 1  # what our own data calls for
            return (GRANT, number, b"") if blocked and stream.credit >= LEAST_ROOM and not stream.eof_out else None
        if payload:
            self._violation("payload where none belongs")
            return None
        if kind == ABORT:
            self._drop(number)
            return (ABORT, number, b"")
        if stream.eof_in:
            self._violation("second end of stream")
            return None
        stream.eof_in = True
        if stream.eof_out:
            self._drop(number)
        return (EOF, number, b"")

    def _is_peers(self, number: int) -> bool:
        return (number & 1 == 1) == self._host

    def _drop(self, number: int) -> None:
        if self._streams.pop(number, None) is not None and self._is_peers(number):
            self._peer_opened -= 1

    # -- output

    def put(self, data: bytes | memoryview) -> None:
        """Queue bytes of a frame as they are."""
        self.output.append(data)
        self.pending += len(data)

    def _send(self, number: int, kind: int, payload: bytes | memoryview = b"") -> None:
        # A frame is one object in the queue: three small ones would take four times its size.
        self.put(b"".join((HEADER.pack(number, len(payload), kind), payload, self._tag)))

    def open(self, payload: bytes) -> int:
        """Open a stream; ``payload`` (at most MAX_PAYLOAD bytes) tells the peer what it is for. Returns its id."""
        if not self._synced:
            raise ProtocolError("channel: no session")
        if len(payload) > MAX_PAYLOAD:
            raise ProtocolError("channel: opening payload too long")
        number = self._next_own
        self._next_own += 2
        self._streams[number] = _Stream()
        self._send(number, OPEN, payload)
        return number

    def has(self, number: int) -> bool:
        """True while the stream is open in at least one direction."""
        return number in self._streams

    def heard(self, number: int) -> bool:
        """Whether the peer has sent anything on a stream, or given window back; True when it is gone."""
        stream = self._streams.get(number)
        return stream is None or stream.heard

    def sent(self, number: int) -> int:
        """Bytes sent on a stream that the peer has given no window back for; 0 when it is gone."""
        stream = self._streams.get(number)
        return 0 if stream is None else WINDOW - stream.credit

    def own_streams(self) -> int:
        """How many streams opened by this end are open."""
        return len(self._streams) - self._peer_opened

    def room(self, number: int) -> int:
        """How many bytes the stream takes now: LEAST_ROOM or more, else 0, also when it is gone."""
        stream = self._streams.get(number)
        return 0 if stream is None or stream.eof_out or stream.credit < LEAST_ROOM else stream.credit

    def credit(self, number: int) -> int:
        """How many bytes the peer takes now, to the last one; ``room`` is for those who can wait for more."""
        stream = self._streams.get(number)
        return 0 if stream is None or stream.eof_out else stream.credit

    def send(self, number: int, data: bytes | memoryview) -> None:
        """Queue a copy of ``data``, at most ``credit`` bytes. Data for a stream that is gone is thrown away."""
        stream = self._streams.get(number)
        if stream is None or not data:
            return
        if stream.eof_out or len(data) > stream.credit:
            raise ValueError("more than the stream takes")
        stream.credit -= len(data)
        for at in range(0, len(data), MAX_PAYLOAD):
            self._send(number, DATA, data if len(data) <= MAX_PAYLOAD else data[at : at + MAX_PAYLOAD])

    def send_in_place(self, number: int, frame: memoryview) -> None:
        """Like ``send``, for bytes that lie in a buffer with room around them: HEADER.size before, TRAILER after.

        The caller writes ``frame`` to the channel itself, at once and whole; ``output`` must be empty.
        """
        length = len(frame) - HEADER.size - TRAILER
        stream = self._streams.get(number)
        if stream is None or stream.eof_out or not 0 < length <= min(stream.credit, MAX_PAYLOAD):
            raise ValueError("more than the stream takes")
        stream.credit -= length
        HEADER.pack_into(frame, 0, number, length, DATA)
        frame[-TRAILER:] = self._tag

    def consumed(self, number: int, count: int) -> None:
        """The consumer took ``count`` bytes of the stream: let the peer send as many again (in batches)."""
        stream = self._streams.get(number)
        if stream is None:
            return
        stream.unread += count
        if stream.unread >= WINDOW // 4 and not stream.eof_in:
            stream.window += stream.unread
            self._send(number, GRANT, _U32.pack(stream.unread))
            stream.unread = 0

    def eof(self, number: int) -> None:
        """End of what this end sends on the stream; no-op when already said or gone."""
        stream = self._streams.get(number)
        if stream is None or stream.eof_out:
            return
        stream.eof_out = True
        self._send(number, EOF)
        if stream.eof_in:
            self._drop(number)

    def abort(self, number: int) -> None:
        """Give the stream up in both directions; no-op when gone."""
        if number in self._streams:
            self._send(number, ABORT)
            self._drop(number)

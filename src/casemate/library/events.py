"""Events of the daemon as an iterator with an end.

The daemon buffers a bounded number of events for a subscriber and ends the subscription of one that does not read; in
this process one piece of at most 64 KiB is kept. So a script that does slow work for each event must expect the end,
DaemonAccessError, and subscribe again.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from casemate.client.transport import Transport, receive, send_request
from casemate.wire.admin import ADMIN, EventReader, build_request
from casemate.wire.errors import DaemonAccessError


@dataclass(frozen=True, slots=True)
class Event:
    """Something that has happened. ``qube`` is the qube that it is about, empty for the system.

    ``name`` is such as ``domain-start`` or ``property-set:memory``, ``details`` has its facts as texts; the reference
    page of events lists them all.
    """

    qube: str
    name: str
    details: dict[str, str]


class Events:
    """A subscription, made by ``app.events()``: iterate over it in a ``with`` block.

    Its first event, ``connection-established``, has arrived when it is made: nothing that happens later is missed.
    The iteration ends after ``timeout`` seconds in which nothing came (None: never), and when another thread or a
    handler of a signal calls ``close``. DaemonAccessError where the daemon ends the subscription.
    """

    def __init__(self, transport: Transport, dest: str = ADMIN, timeout: float | None = None) -> None:
        self._timeout = timeout
        self._closed = False
        self._reader = EventReader()
        self._ready: deque[Event] = deque()
        self._connection = transport.connect()
        try:
            send_request(self._connection, build_request("admin.Events", "", dest))
            while not self._ready:
                self._read()
        except BaseException:
            self._connection.close()
            raise

    def next(self, timeout: float | None = None) -> Event:
        """The next event. TimeoutError after ``timeout`` seconds without one, DaemonAccessError once it is closed."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._ready:
            if self._closed:
                raise DaemonAccessError("The subscription was closed")
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"no event within {timeout:g} s")
            self._connection.settimeout(left)
            self._read()
        return self._ready.popleft()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        try:
            return self.next(self._timeout)
        except TimeoutError:
            raise StopIteration from None
        except DaemonAccessError:
            if self._closed:
                raise StopIteration from None
            raise

    def _read(self) -> None:
        try:
            data = receive(self._connection)
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            raise DaemonAccessError("The subscription was closed") from None
        if not data:
            self._reader.finish()
            raise DaemonAccessError("The daemon ended the subscription")
        self._ready.extend(Event(one.subject, one.name, one.details) for one in self._reader.feed(data))

    def close(self) -> None:
        """End the subscription; a thread that waits in it is woken. A second time nothing happens."""
        self._closed = True
        try:
            self._connection.shutdown(socket.SHUT_RDWR)  # close() alone would leave another thread waiting
        except OSError:
            pass  # the daemon has closed it
        self._ready.clear()

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._connection.close()

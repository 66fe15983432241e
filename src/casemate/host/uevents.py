"""Listens to the kernel's events about devices that come, go or change (netlink(7), NETLINK_KOBJECT_UEVENT)."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable

log = logging.getLogger(__name__)

_NETLINK_KOBJECT_UEVENT = 15
_KERNEL_GROUP = 1
_QUIET_SECONDS = 0.3
"""Seconds from the first event of a burst to the call of ``changed``: plugging in one disk makes dozens of events."""


class DeviceEvents:
    """Calls ``changed`` in the event loop after devices of some subsystems have changed.

    Where the kernel announces nothing (in a container), it never does.
    """

    def __init__(self, subsystems: Iterable[str], changed: Callable[[], None]) -> None:
        """``subsystems``: the kernel's names, such as ``block``."""
        self._words = tuple(f"SUBSYSTEM={name}".encode() for name in subsystems)
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._due: asyncio.TimerHandle | None = None
        self._sock: socket.socket | None = None
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_KOBJECT_UEVENT)
        try:
            sock.setblocking(False)
            sock.bind((0, _KERNEL_GROUP))
        except OSError as error:
            sock.close()
            log.warning("changes of devices are not seen: %s", error)
            return
        self._sock = sock
        self._loop.add_reader(sock.fileno(), self._ready)

    def _ready(self) -> None:
        assert self._sock is not None
        seen = False
        while True:
            try:
                data = self._sock.recv(65536)
            except BlockingIOError:
                break
            except OSError:  # too many at once for the buffer: something has changed
                seen = True
                continue
            seen = seen or any(word in data for word in self._words)
        if seen and self._due is None:
            self._due = self._loop.call_later(_QUIET_SECONDS, self._tell)

    def _tell(self) -> None:
        self._due = None
        self._changed()

    def close(self) -> None:
        """Listen no more."""
        if self._due is not None:
            self._due.cancel()
        if self._sock is not None:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
            self._sock = None

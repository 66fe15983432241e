"""The entries of one qube's database: bounded, sorted, and who may write where."""

from __future__ import annotations

from bisect import bisect_left, insort

from casemate.wire import qdb
from casemate.wire.errors import ValueInvalidError

GUEST_KEYS = 1024
"""Limit of QubesDB: entries that a qube has written."""
GUEST_BYTES = 1024 * 1024
"""Limit of QubesDB (bytes): all that a qube has written, with the paths."""
HOST_KEYS = 16384
"""Limit of QubesDB: entries of the host in a qube's database."""
HOST_BYTES = 4 * 1024 * 1024
"""Limits of one database, apart for what the guest and what the host writes; paths and values count."""

GUEST_SUBTREES = (
    "/devices/",
    "/dns/",
    "/features-request/",
    "/qubes-block-devices/",
    "/qubes-firewall-handled/",
    "/qubes-tools/",
    "/qubes-usb-devices/",
    "/status/",
)
"""Where a guest may write and remove. Everything else is the host's: a guest never changes its own settings."""

GUEST_SIGNALS = frozenset({"/qubes-block-devices", "/qubes-usb-devices"})
"""Keys that a guest writes, empty, to say that the subtree of that name has changed."""


def guest_may_write(path: str, value: bytes | None = None) -> bool:
    """True when a guest may write ``value`` at ``path``, or (None) remove the path or subtree."""
    return path.startswith(GUEST_SUBTREES) or (path in GUEST_SIGNALS and value == b"")


class _Account:
    """What one side has stored."""

    __slots__ = ("keys", "max_keys", "max_size", "size")

    def __init__(self, max_keys: int, max_size: int) -> None:
        self.keys = 0
        self.size = 0
        self.max_keys = max_keys
        self.max_size = max_size

    def add(self, keys: int, size: int) -> None:
        """Book a change; ValueInvalidError when there is no room for it."""
        if keys > 0 and self.keys + keys > self.max_keys:
            raise ValueInvalidError(f"The database is full: {self.max_keys} keys")
        if size > 0 and self.size + size > self.max_size:
            raise ValueInvalidError(f"The database is full: {self.max_size} bytes")
        self.keys += keys
        self.size += size


class Tree:
    """Paths and values. Writes validate; reads never raise."""

    __slots__ = ("_guest", "_host", "_paths", "_values")

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._paths: list[str] = []
        self._guest = _Account(GUEST_KEYS, GUEST_BYTES)
        self._host = _Account(HOST_KEYS, HOST_BYTES)

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, path: str) -> bytes | None:
        """The value at ``path``; None when there is none."""
        return self._values.get(path)

    def write(self, path: str, value: bytes) -> None:
        """Store a value; ValueInvalidError when path, value or the database's size are not allowed."""
        qdb.value(value)
        old = self._values.get(path)
        if old is None:
            qdb.stored_path(path)
            self._account(path).add(1, len(path) + len(value))
            insort(self._paths, path)
        else:
            self._account(path).add(0, len(value) - len(old))
        self._values[path] = value

    def _account(self, path: str) -> _Account:
        return self._guest if path.startswith(GUEST_SUBTREES) else self._host

    def remove(self, path: str) -> bool:
        """Remove a key, or all keys below a path that ends with ``/``. False when there was nothing."""
        if not path.endswith("/"):
            value = self._values.pop(path, None)
            if value is None:
                return False
            del self._paths[bisect_left(self._paths, path)]
            self._account(path).add(-1, -len(path) - len(value))
            return True
        first, last = self._range(path)
        for key in self._paths[first:last]:
            self._account(key).add(-1, -len(key) - len(self._values.pop(key)))
        del self._paths[first:last]
        return last > first

    def _range(self, prefix: str) -> tuple[int, int]:
        if not prefix:
            return 0, len(self._paths)
        first = bisect_left(self._paths, prefix)
        # ASCII text: the least string after all those with this prefix is the prefix with its last character raised.
        return first, bisect_left(self._paths, prefix[:-1] + chr(ord(prefix[-1]) + 1), first)

    def paths(self, prefix: str = "") -> list[str]:
        """Paths that start with ``prefix`` (a plain string prefix), sorted."""
        first, last = self._range(prefix)
        return self._paths[first:last]

    def items(self, prefix: str = "") -> list[tuple[str, bytes]]:
        """Paths that start with ``prefix`` and their values, sorted."""
        values = self._values
        return [(path, values[path]) for path in self.paths(prefix)]

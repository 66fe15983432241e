"""A database on a socket, as a link serves it: by a loop in a thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from casemate.qdb.server import DatabaseServer
from casemate.qdb.session import Database
from casemate.streams.listener import listen
from casemate.streams.loop import Loop


@contextmanager
def served_database(path: Path, content: Mapping[str, bytes]) -> Iterator[None]:
    """Serve a database that holds ``content`` on the socket ``path``."""
    loop, database = Loop(), Database()
    for key, value in content.items():
        database.write(key, value)
    DatabaseServer(loop, listen(str(path), 0o600), database)
    stopping, wake = os.pipe()
    loop.watch(stopping, 1, lambda _mask: loop.stop())
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        yield
    finally:
        os.write(wake, b"x")
        thread.join()
        os.close(wake)
        os.close(stopping)

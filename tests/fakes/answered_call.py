"""The link of a qube that is a test: one call of this host's comes, and is answered at once."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from casemate.wire.call_data import ServiceSide
from casemate.wire.qrexec import DATA_STDOUT


@contextmanager
def answered_call(path: Path, output: bytes, status: int) -> Iterator[bytearray]:
    """Answer the first call at the link's socket ``path`` with an output and an exit status. At the end of the block,
    which waits for that, the array holds the request."""
    path.parent.mkdir(parents=True, exist_ok=True)
    heard = bytearray()

    def answer() -> None:
        with listener.accept()[0] as call:
            while not heard.endswith(b"\0"):
                heard.extend(call.recv(4096))
            side = ServiceSide()
            for piece in [*side.output(DATA_STDOUT, output), *side.exit(status)]:
                call.sendall(piece)

    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.settimeout(60)
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield heard
        finally:
            thread.join(60)
            path.unlink()

"""``python -m casemate.backup.job FD``: the process that writes one backup to a descriptor, for the daemon.

It is a process of its own because it keeps processors and memory busy for minutes. It speaks JSON, a line each:

    daemon → job   the order: passphrase, filter, store, files in their order
    job → daemon   {"open": NAME}, for each volume when its turn comes
    daemon → job   {"path": PATH} of a raw image, or {"error": WHY}
    job → daemon   {"close": NAME}; {"progress": BYTES} now and then
    job → daemon   {"done": BYTES, "id": BACKUP_ID}, or {"error": WHY}, last

When its standard input ends it stops: nobody waits for it any more.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from casemate.backup.container import Cost
from casemate.backup.errors import BackupError
from casemate.backup.outer import sync
from casemate.backup.tar_writer import Content, FileContent
from casemate.backup.writer import File, Writer, bytes_file

_PROGRESS_SECONDS = 0.5


def _say(**message: object) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _ask(**message: object) -> dict[str, Any]:
    _say(**message)
    line = sys.stdin.readline()
    if not line:
        raise BackupError("the daemon has gone")
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise BackupError(str(answer["error"]))
    return answer


class _Progress:
    """Adds bytes up and tells of them now and then."""

    def __init__(self) -> None:
        self._total = 0
        self._next = 0.0

    def __call__(self, count: int) -> None:
        self._total += count
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _PROGRESS_SECONDS
            _say(progress=self._total)


def _volume(name: str) -> File:
    def begin() -> tuple[Content, Callable[[], None]]:
        answer = _ask(open=name)
        fd = os.open(answer["path"], os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

        def end() -> None:
            os.close(fd)
            _say(close=name)

        return FileContent(fd), end

    return File(name, begin, large=True)


def main(argv: list[str]) -> int:
    """Write the backup; 0 when all of it was written."""
    order: dict[str, Any] = json.loads(sys.stdin.readline())
    fd = int(argv[1])
    files = [
        bytes_file(one["name"], base64.b64decode(one["data"])) if "data" in one else _volume(one["name"])
        for one in order["files"]
    ]
    with open(fd, "wb", buffering=0) as stream:
        writer = Writer(
            _Whole(stream.fileno()), base64.b64decode(order["passphrase"]), order["filter"], Cost(int(order["log_n"])),
            _Progress(),
        )  # fmt: skip
        try:
            writer.run(base64.b64decode(order["store"]), files)
            sync(fd)
        except (BackupError, OSError) as error:
            _say(error=str(error) if isinstance(error, BackupError) else f"not written: {error.strerror}")
            return 1
        finally:
            writer.close()
    _say(done=writer.written, id=writer.backup_id)
    return 0


class _Whole:
    """Writes all of what it is given: a pipe takes less at once."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view[: 1 << 22]) :]


if __name__ == "__main__":
    sys.exit(main(sys.argv))

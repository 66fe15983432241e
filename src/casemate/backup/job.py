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
import os
import sys
from collections.abc import Callable

from casemate.backup.container import Cost
from casemate.backup.errors import BackupError
from casemate.backup.job_line import Progress, ask, order, say
from casemate.backup.outer import sync
from casemate.backup.tar_writer import Content, FileContent
from casemate.backup.writer import File, Writer, bytes_file


def _volume(name: str) -> File:
    def begin() -> tuple[Content, Callable[[], None]]:
        answer = ask(open=name)
        fd = os.open(answer["path"], os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

        def end() -> None:
            os.close(fd)
            say(close=name)

        return FileContent(fd), end

    return File(name, begin, large=True)


def main(argv: list[str]) -> int:
    """Write the backup; 0 when all of it was written."""
    given = order()
    fd = int(argv[1])
    files = [
        bytes_file(one["name"], base64.b64decode(one["data"])) if "data" in one else _volume(one["name"])
        for one in given["files"]
    ]
    with open(fd, "wb", buffering=0) as stream:
        writer = Writer(
            _Whole(stream.fileno()), base64.b64decode(given["passphrase"]), given["filter"], Cost(int(given["log_n"])),
            Progress(),
        )  # fmt: skip
        try:
            writer.run(base64.b64decode(given["store"]), files)
            sync(fd)
        except (BackupError, OSError) as error:
            say(error=str(error) if isinstance(error, BackupError) else f"not written: {error.strerror}")
            return 1
        finally:
            writer.close()
    say(done=writer.written, id=writer.backup_id)
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

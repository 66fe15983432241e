"""qfile-unpacker: takes files from another qube into ~/QubesIncoming/QUBE."""

from __future__ import annotations

import os
import sys

from casemate.filecopy.unpack import MAX_BYTES, MAX_FILES, Unpacker, take
from casemate.wire import qfile
from casemate.wire.names import number, qube_name
from casemate.wire.qfile import FileError


def incoming(home: str, source: str) -> int:
    """The directory for files of a qube, made if need be; its own part of the path is never a link."""
    path = f"{home}/QubesIncoming"
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    base = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            os.mkdir(source, 0o700, dir_fd=base)
        except FileExistsError:
            pass
        return os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=base)
    finally:
        os.close(base)


def main(argv: list[str]) -> int:
    """Take the stream on stdin and answer on stdout; exit status: the result's code, 0 for all taken."""

    def make() -> Unpacker:
        limits = {"--max-bytes": MAX_BYTES, "--max-files": MAX_FILES}
        for word in argv[1:]:
            key, _, value = word.partition("=")
            if key not in limits:
                raise FileError(qfile.EINVAL, f"unknown option {word[:80]!a}")
            limits[key] = number(value, key)
        source = qube_name(os.environ.get("QREXEC_REMOTE_DOMAIN", ""))
        target = incoming(os.environ.get("HOME") or "/", source)
        return Unpacker(0, target, limits["--max-bytes"], limits["--max-files"])

    return take(make, _say)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")

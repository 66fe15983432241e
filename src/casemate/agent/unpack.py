"""qfile-unpacker: takes files from another qube into ~/QubesIncoming/QUBE.

    qfile-unpacker [--allow-all-names] [--max-bytes=N] [--max-files=N] [--max-depth=N]

The limits are those of this qube's database (``/vm-config/filecopy-max-bytes`` and so on, which the host sets by the
features ``vm-config.filecopy-...``) where no option gives them. Without any only the room on the disk counts.
"""

from __future__ import annotations

import os
import sys

from casemate.agent.qubesdb_tool import SOCKET
from casemate.filecopy.limits import NAMES, Limits
from casemate.filecopy.unpack import Unpacker, take
from casemate.qdb.client import QubesDB
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


def configured() -> Limits:
    """The limits that are set for this qube; none where there is no database at all, as on a host."""
    path = os.environ.get("QUBESDB_SOCKET") or SOCKET
    if not os.path.exists(path):
        return Limits()
    with QubesDB(path) as database:
        found = database.multiread("/vm-config/filecopy-")
    return Limits.read(lambda key: found.get(f"/vm-config/{key}", b"").decode("ascii", "replace"))


def main(argv: list[str]) -> int:
    """Take the stream on stdin and answer on stdout; exit status: the result's code, 0 for all taken."""

    def make() -> Unpacker:
        limits, all_names = configured(), False
        for word in argv[1:]:
            key, _, value = word.partition("=")
            if word in ("--allow-all-names", "--no-allow-all-names"):
                all_names = word == "--allow-all-names"
            elif key.removeprefix("--") in NAMES:
                limits.set(key.removeprefix("--"), number(value, key))
            else:
                raise FileError(qfile.EINVAL, f"unknown option {word[:80]!a}")
        source = qube_name(os.environ.get("QREXEC_REMOTE_DOMAIN", ""))
        target = incoming(os.environ.get("HOME") or "/", source)
        return Unpacker(0, target, limits, all_names=all_names)

    return take(make, _say)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")

"""qfile-dom0-unpacker: takes files from a qube into a directory of this host, as a user of this host.

For programs that fetch something from a qube (updates, backups): the call's output is our input and our output its
input. Where upstream's shows files while they come, here all of them appear at the end, or none.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from casemate.cli import tool
from casemate.filecopy.limits import Limits
from casemate.filecopy.unpack import Unpacker, take
from casemate.wire import qfile
from casemate.wire.errors import CasemateError
from casemate.wire.names import number
from casemate.wire.qfile import FileError

PROG = "qfile-dom0-unpacker"
MAX_BYTES, MAX_FILES = 4 << 30, 4096
"""What is taken where UPDATES_MAX_BYTES and UPDATES_MAX_FILES do not say how much: upstream's numbers. A qube that is
asked for an update must not fill the host's disk."""
SHARE_OF_FREE = 0.9
"""Part of the free room that may be filled, where UPDATES_MAX_BYTES does not say how much. It may be less than
MAX_BYTES."""


_VARIABLES = {"max-bytes": "UPDATES_MAX_BYTES", "max-files": "UPDATES_MAX_FILES"}


def _become(user: str) -> None:
    """Give all rights up but the user's; a user who is root may name any, others only themselves."""
    import pwd

    try:
        entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except (KeyError, OverflowError):
        raise FileError(qfile.EINVAL, f"no user {user[:80]!a} here") from None
    if os.geteuid() == entry.pw_uid:
        return
    os.initgroups(entry.pw_name, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


def _limits(directory: int) -> Limits:
    space = os.fstatvfs(directory)
    most = min(MAX_BYTES, int(space.f_bavail * space.f_frsize * SHARE_OF_FREE))
    environ = os.environ
    limits = {"max-bytes": most, "max-files": MAX_FILES}
    for key, name in _VARIABLES.items():
        if name in environ:
            limits[key] = number(environ[name], name)
    return Limits(limits, _VARIABLES)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: the code of the result that was sent, 0 when all was taken."""
    parser = tool.Parser(
        PROG, "Take a stream of files on standard input into a directory; the answer is standard output."
    )
    parser.add_argument("USER", help="user who gets the files: a name or a number")
    parser.add_argument("DIR", help="directory, which is there already")
    parser.add_argument(
        "-w", dest="margin", nargs="?", type=int, const=0, metavar="BYTES",
        help="wait while less than so many bytes would stay free",
    )  # fmt: skip
    parser.add_argument("--only-regular-files", action="store_true", help="refuse directories and links")
    try:
        # -v is the base parser's, which counts; here it lists what was taken.
        args = parser.parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2

    def listed(name: bytes) -> None:
        sys.stderr.write(f"{qfile.shown(name)}\n")

    def make() -> Unpacker:
        try:
            _become(args.USER)
            directory = os.open(args.DIR, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            limits = _limits(directory)
        except FileError:
            raise
        except CasemateError as error:
            raise FileError(qfile.EINVAL, str(error)) from None
        return Unpacker(
            0, directory, limits, files_only=args.only_regular_files,
            on_file=listed if args.verbose else lambda _name: None, margin=args.margin,
        )  # fmt: skip

    return take(make, lambda text: tool.say_error(PROG, text))

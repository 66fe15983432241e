"""qvm-open-in-vm, qvm-open-in-dvm: open a file or a URL in another qube, and take back what was changed there.

The call of ``qubes.OpenInVM`` carries 256 bytes of file name, NUL-padded, then the file; what comes back, if anything,
is the changed file. ``qubes.OpenURL`` gets one line. (upstream's dvm2.h and qopen-in-vm)
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile

from casemate.calls.caller import run_call
from casemate.calls.request import SOCKET, connect, request
from casemate.wire.errors import CallRefusedError, CasemateError
from casemate.wire.qrexec import EXIT_REFUSED

NAME_SIZE = 256
VIEW_ONLY = b"view-only-"
"""Beginning of the name of a file that is not to be changed."""
SCHEMES = ("http://", "https://", "ftp://")
"""What the service takes as a URL."""


def main(argv: list[str]) -> int:
    """``qvm-open-in-vm [--view-only] QUBE FILE|URL``; 0 when it was opened (and closed), 126 refused."""
    tool, words = argv[0], argv[1:]
    view_only = "--view-only" in words[:1]
    if view_only:
        del words[0]
    target = "@dispvm"
    if not tool.endswith("dvm"):
        if len(words) != 2:
            return _usage(tool)
        target = words.pop(0)
    if len(words) != 1 or words[0].startswith("-"):
        return _usage(tool)
    try:
        if words[0].startswith(SCHEMES):
            return _open_url(target, words[0])
        return _open_file(tool, target, words[0].removeprefix("file://"), view_only)
    except CallRefusedError as error:
        print(error, file=sys.stderr)
        return EXIT_REFUSED
    except UnicodeEncodeError:
        print(f"{tool}: the name of a qube is ASCII", file=sys.stderr)
    except CasemateError as error:
        print(f"{tool}: {error}", file=sys.stderr)
    except OSError as error:
        print(f"{tool}: {error.filename or words[0]!a}: {error.strerror}", file=sys.stderr)
    return 1


def _usage(tool: str) -> int:
    print(f"usage: {tool} [--view-only] {'' if tool.endswith('dvm') else 'QUBE '}FILE|URL", file=sys.stderr)
    return 2


def _open_url(target: str, url: str) -> int:
    sock = connect(os.environ.get("QREXEC_AGENT_SOCKET") or SOCKET)
    request(sock, target, "qubes.OpenURL")
    return run_call(sock, None, 1, 2, url.encode() + b"\n")


def header(name: str, view_only: bool) -> bytes:
    """The name as it is sent; of one that is too long its end, where the type is."""
    room = NAME_SIZE - 1 - (len(VIEW_ONLY) if view_only else 0)
    encoded = os.fsencode(name)
    if len(encoded) > room:
        encoded = os.fsencode(encoded[-room:].decode("utf-8", "ignore"))
    return ((VIEW_ONLY if view_only else b"") + encoded).ljust(NAME_SIZE, b"\0")


def _open_file(tool: str, target: str, path: str, view_only: bool) -> int:
    path = os.path.realpath(path)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        before = os.fstat(fd)
        if not stat.S_ISREG(before.st_mode):
            print(f"{tool}: {path!a} is not a regular file", file=sys.stderr)
            return 1
        sock = connect(os.environ.get("QREXEC_AGENT_SOCKET") or SOCKET)
        request(sock, target, "qubes.OpenInVM")
        first = header(os.path.basename(path), view_only)
        if view_only:
            return run_call(sock, fd, None, 2, first)
        out, changed = _place_beside(path)
        try:
            status = run_call(sock, fd, out, 2, first)
            size = os.fstat(out).st_size
            if status == 0 and size:
                changed = _take(tool, out, changed, path, before)
            return status
        finally:
            os.close(out)
            if changed:
                os.unlink(changed)
    finally:
        os.close(fd)


def _place_beside(path: str) -> tuple[int, str]:
    """A new file for what comes back: beside the original, or where that cannot be written, for temporary files."""
    name = f".{os.path.basename(path)[:100]}."
    try:
        return tempfile.mkstemp(prefix=name, dir=os.path.dirname(path))
    except OSError:
        return tempfile.mkstemp(prefix=name)


def _take(tool: str, fd: int, changed: str, path: str, before: os.stat_result) -> str:
    """Put the changed file in the place of the original, whose mode it gets. Returns what is still to be removed.

    An original that was changed here meanwhile, or cannot be replaced, stays; then the new one keeps a name of its own.
    """
    try:
        now = os.stat(path)
        same = (now.st_ino, now.st_mtime_ns, now.st_size) == (before.st_ino, before.st_mtime_ns, before.st_size)
    except FileNotFoundError:
        same = False
    if same and os.path.dirname(changed) == os.path.dirname(path):
        os.fchmod(fd, stat.S_IMODE(before.st_mode))
        os.fsync(fd)
        os.rename(changed, path)
        return ""
    why = "cannot be replaced" if same else "was changed here meanwhile"
    print(f"{tool}: {path!a} {why}; the file as it was edited there is {changed!a}", file=sys.stderr)
    return ""

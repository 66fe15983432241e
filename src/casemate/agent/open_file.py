"""The service ``qubes.OpenInVM``: takes a file from another qube, opens it, sends it back when it was changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile

from casemate.agent.open_in_vm import NAME_SIZE, VIEW_ONLY
from casemate.streams.ready import readable
from casemate.wire.errors import CasemateError, ProtocolError
from casemate.wire.names import qube_name

OPENER = "qubes-open"
CHUNK = 1 << 18
MAX_BYTES = 4 << 30
"""Limit of what a qube says of itself (bytes): file to be opened in another qube."""
IDLE_SECONDS = 60.0
"""Limit of what a qube says of itself (seconds): time without data of such a file."""


def main(argv: list[str]) -> int:
    """``open-file``; 0 when the opener ended well, else its status; 1 for a file that cannot be taken."""
    try:
        source = qube_name(os.environ.get("QREXEC_REMOTE_DOMAIN", ""))
        name, view_only = parse_name(_exactly(NAME_SIZE))
        directory = tempfile.mkdtemp(prefix=f"{source}-")
    except CasemateError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    try:
        return _serve(f"{directory}/{name}", view_only)
    except ProtocolError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"the file cannot be kept: {error.strerror}\n")
        return 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def parse_name(raw: bytes) -> tuple[str, bool]:
    """File name and whether it is only to be looked at; ProtocolError for what no sender of good will sends."""
    encoded, _, padding = raw.partition(b"\0")
    if padding.strip(b"\0") or len(raw) != NAME_SIZE or len(encoded) >= NAME_SIZE:
        raise ProtocolError("the file's name is not padded with NUL")
    view_only = encoded.startswith(VIEW_ONLY)
    try:
        name = encoded.removeprefix(VIEW_ONLY).decode("utf-8")
    except UnicodeDecodeError:
        raise ProtocolError("the file's name is not UTF-8") from None
    if not name or name in (".", "..") or "/" in name or not name.isprintable():
        raise ProtocolError("that is not the name of a file")
    return name, view_only


def _exactly(size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = _some(size - len(data))
        if not more:
            raise ProtocolError("the request was cut")
        data += more
    return data


def _some(size: int) -> bytes:
    if not readable([0], IDLE_SECONDS):
        raise ProtocolError(f"nothing was sent for {IDLE_SECONDS:g} seconds")
    return os.read(0, size)


def _serve(path: str, view_only: bool) -> int:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        left = MAX_BYTES
        while data := _some(CHUNK):
            left -= len(data)
            if left < 0:
                raise ProtocolError(f"the file is longer than {MAX_BYTES} bytes")
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
        if view_only:
            os.fchmod(fd, 0o400)
    finally:
        os.close(fd)
    before = _mark(path)
    # The opener's own words go to the caller's standard error: standard output is the changed file.
    status = subprocess.run([OPENER, path], stdin=subprocess.DEVNULL, stdout=2, check=False).returncode
    if not view_only and status == 0 and _mark(path) != before:
        _send(path)
    return status if 0 <= status < 256 else 128 - status


def _mark(path: str) -> tuple[int, int, int]:
    found = os.stat(path, follow_symlinks=False)
    return found.st_ino, found.st_mtime_ns, found.st_size


def _send(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        while data := os.read(fd, CHUNK):
            view = memoryview(data)
            while view:
                view = view[os.write(1, view) :]
    finally:
        os.close(fd)

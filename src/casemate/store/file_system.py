"""Refuses a store on a network file system, because other machines may use it and its locks cannot be relied on.

``CASEMATE_REMOTE_STORE=1`` says that the operator has made sure that only one machine uses the directory.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from casemate.wire.errors import StoreError, printable

_log = logging.getLogger(__name__)

OVERRIDE = "CASEMATE_REMOTE_STORE"
MOUNTS = Path("/proc/self/mountinfo")

REMOTE = frozenset({
    "9p", "afs", "ceph", "cifs", "coda", "davfs", "fuse.ceph", "fuse.davfs2", "fuse.glusterfs", "fuse.rclone",
    "fuse.s3fs", "fuse.smbnetfs", "fuse.sshfs", "ncpfs", "nfs", "nfs4", "smb3", "smbfs",
})  # fmt: skip
"""Types of file systems that other machines may use at the same time, as /proc/self/mountinfo names them."""

_OCTAL = re.compile(rb"\\([0-7]{3})")


def type_of(directory: Path, mounts: bytes) -> str:
    """The type of the file system that a directory lies on, by the table of mounts; empty where that does not say."""
    path = os.fsencode(directory)
    best, found = -1, ""
    for line in mounts.splitlines():
        mount, separator, source = line.partition(b" - ")
        fields = mount.split(b" ")
        if not separator or len(fields) < 5:
            continue
        point = _OCTAL.sub(lambda match: bytes([int(match[1], 8) & 255]), fields[4])
        inside = path == point or path.startswith(point.rstrip(b"/") + b"/")
        if inside and len(point) >= best:  # of two at the same place the later one lies on top
            best, found = len(point), source.split(b" ", 1)[0].decode("ascii", "replace")
    return found


def require_local(directory: Path) -> None:
    """Refuse a directory on a file system of other machines, or warn where the operator wants it so."""
    try:
        mounts = MOUNTS.read_bytes()
    except OSError:
        return  # not Linux, or no /proc: nothing is known
    kind = type_of(Path(os.path.realpath(directory)), mounts)
    if kind not in REMOTE:
        return
    text = f"{directory} is on a file system of the type {printable(kind, 40)}, whose locks cannot be relied on"
    if os.environ.get(OVERRIDE, "") in ("", "0"):
        raise StoreError(
            f"{text}; keep the state on a local disk (CASEMATE_STATE), or set {OVERRIDE}=1 if no other machine uses it"
        )
    _log.warning("%s; %s is set: two machines that use it will lose changes", text, OVERRIDE)

"""Which files a machine's QEMU may open when it runs as a user of its own.

Rule: what a qube writes belongs to its user alone; what it only reads (layers below its disks) belongs to root and is
readable by the group of this installation's qubes; directories on the way can be searched and not listed. QEMU never
owns, and so never can change, a file that another qube uses.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import zlib
from pathlib import Path

from casemate.host.hypervisor import MachineSpec
from casemate.settings import Settings
from casemate.wire.errors import HypervisorError

KVM = Path("/dev/kvm")
_ACL = "system.posix_acl_access"
_ENTRY = struct.Struct("<HHI")  # linux/posix_acl_xattr.h
_VERSION = struct.pack("<I", 2)
_USER, _USER_OBJ, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x02, 0x01, 0x04, 0x08, 0x10, 0x20
_UNDEFINED = 0xFFFFFFFF

_FIRST_UID = 1_900_000_000
"""Above the ranges that Debian and systemd give to people, services and containers."""
_UIDS_PER_STATE = 10_000


def users_of(settings: Settings) -> range:
    """The ids of users (and, the first, of the group) of a state directory's qubes."""
    first = _FIRST_UID + zlib.crc32(bytes(settings.state)) % 20_000 * _UIDS_PER_STATE
    return range(first, first + _UIDS_PER_STATE)


def grant(spec: MachineSpec) -> None:
    """Give a machine's user what it needs, before it starts. Nothing to do where we are not root."""
    if spec.uid is None or spec.gid is None:
        return
    for disk in spec.disks:
        if disk.readonly:
            _own(disk.path, 0, spec.gid, 0o640)
        else:
            _own(disk.path, spec.uid, spec.gid, 0o600)
        for path, _format in disk.backing:
            if disk.own_layers:
                _own(path, spec.uid, spec.gid, 0o400)
            else:
                _own(path, 0, spec.gid, 0o640)
    if spec.acceleration == "kvm":
        allow_group(KVM, spec.gid)


def hand_over(spec: MachineSpec) -> None:
    """Give the sockets that libvirt has made to the machine's user, whose link connects to them."""
    if spec.uid is None or spec.gid is None:
        return
    for path in (spec.channel, spec.console):
        os.chown(path, spec.uid, spec.gid, follow_symlinks=False)


def _own(path: Path, uid: int, gid: int, mode: int) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise HypervisorError(f"Cannot prepare disk {path}: {error.strerror}") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise HypervisorError(f"Cannot prepare disk {path}: not a regular file")
        if (status.st_uid, status.st_gid) != (uid, gid):
            os.fchown(fd, uid, gid)
        if stat.S_IMODE(status.st_mode) != mode:
            os.fchmod(fd, mode)
    finally:
        os.close(fd)


def allow_group(path: Path, gid: int) -> None:
    """Let a group use a device, by an access list entry; the owner and the device's own group stay as they are."""
    status = path.stat()
    if status.st_mode & 0o006 == 0o006 or (status.st_gid == gid and status.st_mode & 0o060 == 0o060):
        return
    _change(path, _GROUP, gid, 6)


def allow_user(path: Path, uid: int) -> bool:
    """Let a user use a device, by an access list entry; False when everybody may already."""
    if path.stat().st_mode & 0o006 == 0o006:
        return False
    _change(path, _USER, uid, 6)
    return True


def forget_user(path: Path, uid: int) -> None:
    """Take that entry back."""
    _change(path, _USER, uid, 0)


def lend(path: Path, uid: int, readonly: bool) -> None:
    """Let a qube's user use a block device of the host, by an access list entry."""
    _need_block(path)
    _change(path, _USER, uid, 4 if readonly else 6)


def take_back(path: Path, uid: int) -> None:
    """Take it back. A device that has gone meanwhile is fine."""
    try:
        _need_block(path)
        _change(path, _USER, uid, 0)
    except FileNotFoundError:
        return


def take_all_back(users: range, root: Path = Path("/sys/class/block"), dev: Path = Path("/dev")) -> None:
    """Take back what any of these users was lent, of all block devices: those users are to be forgotten."""
    for name in sorted(path.name for path in root.iterdir()):
        try:
            acl = os.getxattr(dev / name, _ACL)
        except OSError:
            continue  # no list, or no such node
        for at in range(len(_VERSION), len(acl), _ENTRY.size):
            tag, _bits, ident = _ENTRY.unpack_from(acl, at)
            if tag == _USER and ident in users:
                take_back(dev / name, ident)


def _need_block(path: Path) -> None:
    if not stat.S_ISBLK(path.lstat().st_mode):
        raise HypervisorError(f"{path} is not a block device")


def _change(path: Path, tag: int, ident: int, bits: int) -> None:
    try:
        present = os.getxattr(path, _ACL)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise
        present = b""
    wanted = with_entry(present, stat.S_IMODE(path.stat().st_mode), tag, ident, bits)
    if wanted == present:
        return
    try:
        os.setxattr(path, _ACL, wanted)
    except OSError as error:
        raise HypervisorError(f"Cannot let qubes use {path}: {error.strerror}") from None


def with_entry(acl: bytes, mode: int, tag: int, ident: int, bits: int) -> bytes:
    """A POSIX access list in which a user or group has these rights (0: no entry); empty where it need not be a list.

    ``mode`` are the file's mode bits, which count where there was no list.
    """
    if acl:
        entries = [_ENTRY.unpack_from(acl, at) for at in range(len(_VERSION), len(acl), _ENTRY.size)]
    else:
        entries = [
            (_USER_OBJ, mode >> 6 & 7, _UNDEFINED),
            (_GROUP_OBJ, mode >> 3 & 7, _UNDEFINED),
            (_OTHER, mode & 7, _UNDEFINED),
        ]
    mask = next((have for kind, have, _id in entries if kind == _MASK), mode >> 3 & 7) | bits
    entries = [e for e in entries if (e[0], e[2]) != (tag, ident) and e[0] != _MASK]
    if bits:
        entries.append((tag, bits, ident))
    if not any(entry[0] in (_USER, _GROUP) for entry in entries):
        return b"" if not acl else _VERSION + b"".join(_ENTRY.pack(*entry) for entry in sorted(entries))
    entries.append((_MASK, mask, _UNDEFINED))
    entries.sort(key=lambda entry: (entry[0], entry[2]))
    return _VERSION + b"".join(_ENTRY.pack(*entry) for entry in entries)

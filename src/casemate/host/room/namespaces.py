"""Makes, finds and enters the namespaces of the wire room (user_namespaces(7), network_namespaces(7))."""

from __future__ import annotations

import ctypes
import errno
import os
from dataclasses import dataclass
from pathlib import Path

from casemate.wire.errors import CasemateError

_CLONE_NEWUSER = 0x10000000  # linux/sched.h
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class NoRoomError(CasemateError):
    """This host does not let us make or enter the namespaces, so no qube can have a wire."""


@dataclass(frozen=True, slots=True)
class Room:
    """Descriptors of the room's namespaces; they keep it alive while nothing runs in it."""

    user: int
    net: int

    @property
    def inode(self) -> int:
        """The number that names the network namespace until it ends."""
        return os.fstat(self.net).st_ino

    def close(self) -> None:
        """Let go of both."""
        os.close(self.user)
        os.close(self.net)


def _call(what: str, result: int) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise NoRoomError(f"{what}: {os.strerror(error)}")


def _descriptors(pid: str) -> Room:
    user = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return Room(user, os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        os.close(user)
        raise


def _refusal(error: int) -> str:
    """Why the kernel makes no namespace for us, with what a person could change."""
    why = f"a user namespace cannot be made: {os.strerror(error)}"
    if error in (errno.ENOSPC, errno.EUSERS):
        for limit in ("/proc/sys/user/max_user_namespaces", "/proc/sys/user/max_net_namespaces"):
            try:
                most = Path(limit).read_text().strip()
            except OSError:
                continue
            if most == "0":
                return f"this host forbids user namespaces ({limit} is 0)"
        return f"this host has too many namespaces already (limits: /proc/sys/user/max_*_namespaces): {why}"
    if error in (errno.EPERM, errno.EACCES):
        for switch, off in (
            ("/proc/sys/kernel/unprivileged_userns_clone", "0"),
            ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"),
        ):
            try:
                if Path(switch).read_text().strip() == off:
                    return f"this host forbids user namespaces to ordinary users ({switch} is {off})"
            except OSError:
                continue  # a switch of other kernels
    return why


def make(owner: int | None) -> Room:
    """New, empty namespaces. ``owner`` is the user that they belong to, when we are root; None: we ourselves.

    A child makes them and ends, so that this process enters them by the same way as those of an earlier daemon.
    """
    uid, gid = (os.geteuid(), os.getegid()) if owner is None else (owner, owner)
    # c tells p that the namespaces are there; p tells c that it holds them.
    made_read, made_write = os.pipe()
    held_read, held_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(made_read)
            os.close(held_write)
            if owner is not None:
                os.setgroups([])
                os.setresgid(gid, gid, gid)
                os.setresuid(uid, uid, uid)
                # setresuid() makes the process undumpable, and then its /proc files belong to root.
                _libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE
            if _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
                os.write(made_write, _refusal(ctypes.get_errno()).encode())
            else:
                Path("/proc/self/setgroups").write_text("deny")
                Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
                Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
                os.write(made_write, b"made")
                os.read(held_read, 1)
            status = 0
        except OSError as error:
            os.write(made_write, _refusal(error.errno or 0).encode())
        finally:
            os._exit(status)
    os.close(made_write)
    os.close(held_read)
    try:
        told = os.read(made_read, 512)
        if told != b"made":
            raise NoRoomError(told.decode("utf-8", "replace") or "a user and network namespace: the child ended")
        return _descriptors(str(pid))
    finally:
        os.close(made_read)
        os.close(held_write)
        os.waitpid(pid, 0)


def find(inode: int) -> Room | None:
    """The room with this number, through any process that is in it; None when it has ended."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            if (entry / "ns" / "net").stat().st_ino != inode:
                continue
            # A process may be in the network namespace and not in the user namespace that owns it, as QEMU of root is.
            # The owner is asked of the namespace itself (ioctl_ns(2), NS_GET_USERNS).
            net = os.open(entry / "ns" / "net", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # it has ended, or is not ours to look at
        if os.fstat(net).st_ino == inode and (user := _owner(net)) is not None:
            return Room(user, net)
        os.close(net)
    return None


def _owner(net: int) -> int | None:
    import fcntl

    try:
        return int(fcntl.ioctl(net, 0xB701))  # NS_GET_USERNS, linux/nsfs.h: _IO(0xb7, 1)
    except OSError:
        return None


def enter(room: Room) -> None:
    """Move this process, which must have one thread, into the room: as root into its network only.

    Nobody can come back out of a user namespace.
    """
    if os.geteuid() != 0:
        _call("enter the user namespace", _libc.setns(room.user, _CLONE_NEWUSER))
    _call("enter the network namespace", _libc.setns(room.net, _CLONE_NEWNET))


def make_silent() -> None:
    """Have the room's own network stack keep still: no IPv6 on new links, no forwarding, no answers to ARP.

    It has no address, so nothing of this should matter. It is the second reason why nothing happens.
    """
    for name, value in (
        ("ipv6/conf/all/disable_ipv6", "1"),
        ("ipv6/conf/default/disable_ipv6", "1"),
        ("ipv4/conf/default/arp_ignore", "8"),
        ("ipv4/ip_forward", "0"),
    ):
        try:
            Path("/proc/sys/net", name).write_text(value)
        except FileNotFoundError:
            continue  # a kernel without IPv6
        except OSError as error:
            raise NoRoomError(f"/proc/sys/net/{name}: {error.strerror}") from None

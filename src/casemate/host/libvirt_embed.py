"""Configures libvirt's QEMU driver where it is embedded in this process: directory, qemu.conf, short paths."""

from __future__ import annotations

import asyncio
import fcntl
import grp
import hashlib
import logging
import os
import pwd
import stat
import time
from pathlib import Path
from urllib.parse import quote

from casemate.host import qemu_access
from casemate.host.files import replace_file
from casemate.host.protections import can_unshare_mounts
from casemate.settings import Settings
from casemate.wire.errors import HypervisorError

log = logging.getLogger(__name__)

SOCKET_PATH_MAX = 107  # sizeof sun_path - 1, unix(7)
_LONGEST_BELOW_ROOT = "/lib/qemu/domain-2147483647-01234567890123456789/monitor.sock"
_SHORT = "/tmp/casemate-{uid}"  # noqa: S108
_ACCOUNT = "libvirt-qemu"
_QUOTED_MOUNT = ' "mount" '

_ALWAYS = """\
# Written by Casemate at each start; changes here are lost.
stdio_handler = "file"
seccomp_sandbox = 1
clear_emulator_capabilities = 1
remember_owner = 0
max_core = 0
save_image_format = "raw"
"""

# user and group are for machines without a security label; all of ours have one. dynamic_ownership = 0: libvirt changes
# no owner of any file, see host/qemu_access.py.
_AS_ROOT = """\
user = "libvirt-qemu"
group = "libvirt-qemu"
dynamic_ownership = 0
max_processes = 256
max_files = 1024
cgroup_device_acl = [ "/dev/null", "/dev/full", "/dev/zero", "/dev/random", "/dev/urandom", "/dev/ptmx", "/dev/kvm" ]
"""


def check_socket_path(path: Path, what: str) -> None:
    """Refuse a socket that the kernel would refuse, and say which setting makes it too long."""
    length = len(os.fsencode(path))
    if length > SOCKET_PATH_MAX:
        raise HypervisorError(
            f"The path of {what} has {length} bytes, the system allows {SOCKET_PATH_MAX}: {path}. "
            f"Use a shorter state directory (CASEMATE_STATE, CASEMATE_RUN)"
        )


def configuration(root: bool, mount_namespaces: bool) -> str:
    """The driver's qemu.conf."""
    if not root:
        return _ALWAYS
    return _ALWAYS + _AS_ROOT + f"namespaces = [{_QUOTED_MOUNT if mount_namespaces else ''}]\n"


def _need_account() -> int:
    """The id of libvirt's group for QEMU. Debian's libvirt does not open its driver for root without this account."""
    for find, kind in ((pwd.getpwnam, "user"), (grp.getgrnam, "group")):
        try:
            find(_ACCOUNT)
        except KeyError:
            raise HypervisorError(
                f"libvirt needs the {kind} {_ACCOUNT}, which does not exist: run packaging/setup.sh as root"
            ) from None
    return grp.getgrnam(_ACCOUNT).gr_gid


def _settle_kvm(gid: int) -> None:
    """Let libvirt's own account use /dev/kvm. libvirt probes QEMU with this device and keeps what it found only while
    that account may open it: else it probes again at every step of every start, for seconds."""
    if not qemu_access.KVM.exists():
        return
    try:
        qemu_access.allow_group(qemu_access.KVM, gid)
    except (OSError, HypervisorError) as error:
        log.warning("starts will be slow: %s", error)


def _share_probes(settings: Settings, directory: Path) -> None:
    """Keep what libvirt finds out about QEMU in the cache that all states share: probing takes seconds."""
    shared, link = settings.cache / "libvirt", directory / "cache"
    shared.mkdir(mode=0o711, parents=True, exist_ok=True)
    if not link.exists():
        link.unlink(missing_ok=True)
        link.symlink_to(shared)


def prepare(settings: Settings) -> str:
    """Make the driver's directory and configuration; the URI to open."""
    directory = settings.state / "libvirt"
    directory.mkdir(mode=0o711, parents=True, exist_ok=True)
    _share_probes(settings, directory)
    (directory / "etc").mkdir(mode=0o700, exist_ok=True)
    root = os.geteuid() == 0
    if root:
        _settle_kvm(_need_account())
    text = configuration(root, root and can_unshare_mounts())
    path = directory / "etc" / "qemu.conf"
    if not path.exists() or path.read_text() != text:
        replace_file(path, text.encode())
    short = directory if _fits(directory) else _alias(directory)
    check_socket_path(Path(f"{short}{_LONGEST_BELOW_ROOT}"), "libvirt's monitor sockets")
    return f"qemu:///embed?root={quote(str(short))}"


async def driver_is_free(settings: Settings, seconds: float) -> bool:
    """Wait until no other process has the driver's directory, at most so long; whether that is so then.

    libvirt locks its pid file (fcntl(2)) while a driver is open. To be called before the driver is opened here: closing
    any descriptor of the file gives up all locks that this process has on it.
    """
    path = settings.state / "libvirt" / "run" / "qemu" / "driver.pid"
    end = time.monotonic() + seconds
    while _is_locked(path):
        if time.monotonic() >= end:
            return False
        await asyncio.sleep(0.05)
    return True


def _is_locked(path: Path) -> bool:
    try:
        with open(path, "r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is none yet; what else is wrong, libvirt will say
        return False
    return False


def logs(settings: Settings) -> Path:
    """Where the driver writes down how each machine was started, and what its QEMU said."""
    return settings.state / "libvirt" / "log" / "qemu"


def pids(settings: Settings) -> Path:
    """Where the driver writes the pid of each machine's QEMU."""
    return settings.state / "libvirt" / "run" / "qemu"


def _fits(directory: Path) -> bool:
    return len(os.fsencode(f"{directory}{_LONGEST_BELOW_ROOT}")) <= SOCKET_PATH_MAX


def _alias(directory: Path) -> Path:
    """A short name for the driver's directory: a link in a directory of /tmp that is ours alone, always the same."""
    home = Path(_SHORT.format(uid=os.geteuid()))
    try:
        home.mkdir(mode=0o700)
    except FileExistsError:
        status = home.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise HypervisorError(f"{home} is there and is not a directory that only we can change") from None
    if os.geteuid() == 0:
        home.chmod(0o711)  # each qube's user passes through to its monitor
    link = home / hashlib.sha256(os.fsencode(directory)).hexdigest()[:12]
    if not link.is_symlink() or link.readlink() != directory:
        link.unlink(missing_ok=True)
        link.symlink_to(directory)
    return link

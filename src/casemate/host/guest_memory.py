"""Memory of machines as files in memory (memfd): saved once, then the start of many machines.

::

    a machine that boots ── maps its own file, shared ──▶ memfd ── save() ──▶ DIRECTORY/memory
                                                            │ sealed
    machines from the image ── map it private ◀── sealed memfd ◀── loaded again by the next process
    machines that share nothing ── map a copy of it, shared ◀──┘

A private mapping shares the image's pages until its machine writes to them; each machine's writes are its own. QEMU
before 8.2 can only open such a file for writing, even to map it privately. So the file is sealed before anybody gets
it: the kernel then refuses every write to it, also one by a QEMU that its guest has taken over
(memfd_create(2), fcntl(2): F_SEAL_WRITE).

libvirt hands no descriptor of ours to QEMU. It starts a launcher instead (``LAUNCHER``), which gets the file through a
socket in the qube's directory and then becomes QEMU; QEMU opens it as ``PATH``.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from casemate.host.files import copy_data, replace_file
from casemate.host.hypervisor import MachineSpec
from casemate.host.memory_map import FD, MappedMemory
from casemate.streams.ready import readable
from casemate.wire.errors import HypervisorError

log = logging.getLogger(__name__)

PATH = f"/proc/self/fd/{FD}"
VARIABLE = "CASEMATE_MEMORY"
"""Variable of the launcher's environment: the socket at which the memory waits."""
MEMORY, STATE, DEVICES = "memory", "state", "devices"
"""Files of an image: the memory, with holes where it is empty; the state of the devices, as QEMU writes it when it
leaves shared memory out; the same of a machine that was forked, whose memory is in no file."""

_QEMU = "qemu-system-x86_64"
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_HAND_OVER_SECONDS = 30.0
"""Until a launcher has come for its memory. It comes within a tenth of a second; a busy host may need longer."""

LAUNCHER = """\
#!{python} -IS
# Written by Casemate; changes here are lost. libvirt starts this as if it were QEMU.
import os, socket, sys

path = os.environ.pop("{variable}", None)
if path is not None:
    with socket.socket(socket.AF_UNIX) as memory:
        memory.settimeout({seconds})
        memory.connect(path)
        _data, fds, _flags, _address = socket.recv_fds(memory, 1, 1)
    os.dup2(fds[0], {fd})
os.execv("{qemu}", ["{qemu}", *sys.argv[1:]])
"""


def qemu_identity() -> str:
    """Tells this host's QEMU from the one after an upgrade."""
    qemu = shutil.which(_QEMU)
    if qemu is None:
        return "none"
    status = Path(qemu).stat()
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}"


def make_launcher(directory: Path) -> Path | None:
    """Write the launcher of this host's QEMU; None where there is no QEMU.

    libvirt keeps what it found out about an emulator until the emulator's file changes. So the name has the identity
    of the QEMU behind it: another QEMU is another launcher. States share the directory, so that one probe does for all.
    """
    qemu = shutil.which(_QEMU)
    if qemu is None:
        return None
    path = directory / f"qemu-{qemu_identity()}"
    # The interpreter itself: a link to it may lie where a qube's user cannot pass.
    python = os.path.realpath(sys.executable)
    text = LAUNCHER.format(python=python, variable=VARIABLE, seconds=_HAND_OVER_SECONDS, fd=FD, qemu=qemu)
    if not path.exists() or path.read_text() != text:
        directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        replace_file(path, text.encode(), mode=0o755)
    return path


def socket_of(spec: MachineSpec) -> Path:
    """Where a machine's memory waits for its launcher: beside the machine's other sockets."""
    return spec.channel.with_name("memory.sock")


class GuestMemories:
    """Owns the memory files of this process: those that machines write, until saved, and sealed ones of images."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._own: dict[UUID, int] = {}
        self._sealed: dict[tuple[int, int, int], int] = {}
        self._forked: dict[Path, int] = {}
        """Copies of the memory of machines that ran, by the directory that stands for the image."""

    def for_machine(self, spec: MachineSpec) -> int:
        """A descriptor of a machine's memory, which is the caller's to close."""
        assert spec.memory is not None
        image = None if spec.memory.image is None else self._of_image(spec.memory.image, spec.memory_mib << 20)
        if image is not None and not spec.memory.copied:
            return image
        fd = os.memfd_create(f"casemate-{spec.name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, spec.memory_mib << 20)
        if image is not None:
            try:
                copy_data(image, fd)
            finally:
                os.close(image)
        with self._lock:
            earlier, self._own[spec.uuid] = self._own.get(spec.uuid), fd
            lent = os.dup(fd)
        if earlier is not None:
            os.close(earlier)
        return lent

    def _of_image(self, image: Path, size: int) -> int:
        """A descriptor of an image's memory, which is the caller's: the image may be released at any moment, and the
        number of a descriptor that was closed can be another file's by the time it is sent to a QEMU."""
        with self._lock:
            forked = self._forked.get(image)
            if forked is not None:
                return os.dup(forked)
        path = image / MEMORY
        with self._lock, open(path, "rb") as file:
            key = _identity(file.fileno())
            found = self._sealed.get(key)
            if found is not None:
                return os.dup(found)
            if key[-1] != size:
                raise HypervisorError(f"{path} has {key[-1]} bytes; the machine has {size} bytes of memory")
            fd = os.memfd_create("casemate-image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                copy_data(file.fileno(), fd)
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            except BaseException:
                os.close(fd)
                raise
            self._sealed[key] = fd
            return os.dup(fd)

    def fork(self, memory: MappedMemory, image: Path) -> None:
        """Keep a copy of the memory of a machine that stands still, until ``release``."""
        fd = os.memfd_create("casemate-fork", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            memory.copy_to(fd)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(fd)
            raise
        with self._lock:
            self._forked[image] = fd

    def keep_fork(self, image: Path) -> None:
        """Write the copy of a machine's memory into the directory that stands for it, for later processes."""
        with self._lock:
            fd = self._forked.get(image)
            source = None if fd is None else os.dup(fd)
        if source is None:
            raise HypervisorError("The copy of the machine's memory is gone")
        try:
            _write_memory(source, image)
        finally:
            os.close(source)

    def save(self, uuid: UUID, directory: Path) -> None:
        """Write the memory of a machine that stands still into an image's directory."""
        with self._lock:
            fd = self._own.get(uuid)
        if fd is None:
            raise HypervisorError("The machine was not started to become an image, or by an earlier process")
        _write_memory(fd, directory)

    def drop_own(self, uuid: UUID) -> None:
        """The machine has ended, or never began. Absent is fine."""
        with self._lock:
            fd = self._own.pop(uuid, None)
        if fd is not None:
            os.close(fd)

    def release(self, image: Path) -> None:
        """Let go of an image's memory; machines that map it keep it."""
        with self._lock:
            forked = self._forked.pop(image, None)
        if forked is not None:
            os.close(forked)
            return
        try:
            with open(image / MEMORY, "rb") as file:
                key = _identity(file.fileno())
        except FileNotFoundError:
            return
        with self._lock:
            fd = self._sealed.pop(key, None)
        if fd is not None:
            os.close(fd)


def _write_memory(source: int, directory: Path) -> None:
    target = os.open(directory / MEMORY, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        copy_data(source, target)
    finally:
        os.close(target)


def _identity(fd: int) -> tuple[int, int, int]:
    status = os.fstat(fd)
    return status.st_ino, status.st_mtime_ns, status.st_size


@contextmanager
def waiting_for_launcher(spec: MachineSpec, memory: int) -> Iterator[None]:
    """While the block runs, the first who connects to the machine's socket gets the memory: its launcher."""
    path = socket_of(spec)
    path.unlink(missing_ok=True)
    # A thread in accept(2) is not woken by a shutdown of its socket, so it waits for two things at once.
    given_up = os.eventfd(0, os.EFD_CLOEXEC)
    with os.fdopen(given_up), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        try:
            path.chmod(0o600)
            if spec.uid is not None and spec.gid is not None:
                os.chown(path, spec.uid, spec.gid, follow_symlinks=False)
            listener.listen(1)
            thread = threading.Thread(target=_hand_over, args=(listener, given_up, memory, spec.name), daemon=True)
            thread.start()
            try:
                yield
            finally:
                os.eventfd_write(given_up, 1)
                thread.join()
        finally:
            path.unlink(missing_ok=True)


def _hand_over(listener: socket.socket, given_up: int, memory: int, name: str) -> None:
    """Serve one, then nobody."""
    either: list[socket.socket | int] = [listener, given_up]
    ready = readable(either, _HAND_OVER_SECONDS)
    try:
        if listener not in ready:
            raise TimeoutError("its QEMU was not started")
        with listener.accept()[0] as connection:
            listener.close()
            socket.send_fds(connection, [b"m"], [memory])
    except OSError as error:
        log.info("nobody came for the memory of %s: %s", name, error)

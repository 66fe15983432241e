"""Memory files of machines: sealed before anybody gets them, handed to one launcher, let go of."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from casemate.host import guest_memory, memory_map
from casemate.host.guest_memory import GuestMemories, make_launcher, waiting_for_launcher
from casemate.host.hypervisor import GuestMemory, MachineSpec
from casemate.wire.errors import HypervisorError
from tests.builders import short_directory

MIB = 1 << 20


@pytest.fixture
def spec() -> Iterator[MachineSpec]:
    """A machine of 4 MiB whose sockets have short paths."""
    with short_directory() as directory:
        yield MachineSpec(
            name="one", uuid=uuid4(), title="", memory_mib=4, vcpus=1, acceleration="tcg", kernel=directory,
            initrd=directory, cmdline="", disks=(), channel=directory / "channel.sock", console=directory / "c.sock",
            memory=GuestMemory(),
        )  # fmt: skip


class Lender(GuestMemories):
    """Closes at the end what the tests were lent."""

    def __init__(self) -> None:
        super().__init__()
        self.lent: list[int] = []

    def for_machine(self, spec: MachineSpec) -> int:
        self.lent.append(super().for_machine(spec))
        return self.lent[-1]

    def close(self) -> None:
        while self.lent:
            os.close(self.lent.pop())


@pytest.fixture
def memories() -> Iterator[Lender]:
    made = Lender()
    yield made
    made.close()
    for fd in (*made._own.values(), *made._sealed.values(), *made._forked.values()):
        os.close(fd)


def held(name: str) -> int:
    """How many descriptors of memory files of that name this process has."""
    links = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sum(link.startswith(f"/memfd:{name} ") for link in links)


def image_of(spec: MachineSpec, memories: GuestMemories, directory: Path) -> MachineSpec:
    """A machine that goes on from an image of this one, in whose memory ``secret`` stands at 2 MiB."""
    os.pwrite(memories.for_machine(spec), b"secret", 2 * MIB)
    memories.save(spec.uuid, directory)
    return replace(spec, name="two", uuid=uuid4(), memory=GuestMemory(directory))


def test_an_image_has_the_memory_without_its_holes(spec: MachineSpec, memories: Lender, tmp_path: Path) -> None:
    other = image_of(spec, memories, tmp_path)
    status = (tmp_path / guest_memory.MEMORY).stat()
    assert status.st_size == 4 * MIB and status.st_blocks * 512 <= MIB
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert os.pread(memories.for_machine(other), 6, 2 * MIB) == b"secret"


def cannot_be_written(fd: int) -> None:
    """By whoever has the descriptor; ``secret`` stands at 2 MiB, and still does."""
    # As QEMU opens it: for writing, by its path.
    opened = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    try:
        for attempt in (
            lambda: os.pwrite(opened, b"hostile", 2 * MIB),
            lambda: os.ftruncate(opened, 0),
            lambda: mmap.mmap(opened, MIB, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
            lambda: fcntl.fcntl(opened, fcntl.F_ADD_SEALS, 0),
        ):
            with pytest.raises(OSError) as refused:
                attempt()
            assert refused.value.errno == errno.EPERM
        with mmap.mmap(opened, 4 * MIB, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mine:
            mine[2 * MIB : 2 * MIB + 6] = b"altered"[:6]
        assert os.pread(fd, 6, 2 * MIB) == b"secret"
    finally:
        os.close(opened)


def test_nobody_can_write_an_image(spec: MachineSpec, memories: Lender, tmp_path: Path) -> None:
    cannot_be_written(memories.for_machine(image_of(spec, memories, tmp_path)))


def test_nobody_can_write_what_forks_share(spec: MachineSpec, memories: Lender, tmp_path: Path) -> None:
    qube = memories.for_machine(spec)
    os.pwrite(qube, b"secret", 2 * MIB)
    os.dup2(qube, memory_map.FD)  # where QEMU has it; we stand for one
    try:
        memories.fork(memory_map.MappedMemory(os.getpid(), ((0, 4 * MIB, 0),), private=False), tmp_path)
    finally:
        os.close(memory_map.FD)
    os.pwrite(qube, b"later!", 2 * MIB)
    shared = memories.for_machine(replace(spec, name="two", uuid=uuid4(), memory=GuestMemory(tmp_path)))
    cannot_be_written(shared)
    memories.release(tmp_path)
    assert os.pread(shared, 6, 2 * MIB) == b"secret", "who was lent it before has it"
    memories.close()
    assert not held("casemate-fork")


def test_a_copy_that_is_kept_is_found_by_the_next_process(spec: MachineSpec, memories: Lender, tmp_path: Path) -> None:
    qube = memories.for_machine(spec)
    os.pwrite(qube, b"secret", 2 * MIB)
    os.dup2(qube, memory_map.FD)
    try:
        memories.fork(memory_map.MappedMemory(os.getpid(), ((0, 4 * MIB, 0),), private=False), tmp_path)
    finally:
        os.close(memory_map.FD)
    memories.keep_fork(tmp_path)
    assert (tmp_path / guest_memory.MEMORY).stat().st_blocks * 512 <= MIB
    later = GuestMemories()
    fd = later.for_machine(replace(spec, name="two", uuid=uuid4(), memory=GuestMemory(tmp_path)))
    cannot_be_written(fd)
    os.close(fd)
    later.release(tmp_path)
    memories.release(tmp_path)
    with pytest.raises(HypervisorError, match="is gone"):
        memories.keep_fork(tmp_path)


def test_machines_of_one_image_get_one_file_until_it_is_released(
    spec: MachineSpec, memories: Lender, tmp_path: Path
) -> None:
    other = image_of(spec, memories, tmp_path)
    files = {os.fstat(memories.for_machine(replace(other, uuid=uuid4()))).st_ino for _ in range(2)}
    assert len(files) == 1
    memories.close()
    assert held("casemate-image") == 1
    memories.release(tmp_path)
    assert not held("casemate-image")
    memories.release(tmp_path)
    memories.release(tmp_path / "absent")


def test_an_image_of_another_size_is_refused(spec: MachineSpec, memories: Lender, tmp_path: Path) -> None:
    other = image_of(spec, memories, tmp_path)
    with pytest.raises(HypervisorError, match=f"has {4 * MIB} bytes; the machine has {8 * MIB} bytes"):
        memories.for_machine(replace(other, memory_mib=8))


def test_a_machine_that_was_not_started_for_it_has_no_memory_to_save(
    spec: MachineSpec, memories: Lender, tmp_path: Path
) -> None:
    memories.for_machine(spec)
    memories.close()
    assert held("casemate-one") == 1
    memories.drop_own(spec.uuid)
    assert not held("casemate-one")
    with pytest.raises(HypervisorError, match="not started to become an image"):
        memories.save(spec.uuid, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_first_who_comes_gets_the_memory_and_nobody_after_him(spec: MachineSpec, memories: Lender) -> None:
    memory = memories.for_machine(spec)
    path = guest_memory.socket_of(spec)
    with waiting_for_launcher(spec, memory):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(path))
            _data, fds, _flags, _address = socket.recv_fds(first, 1, 1)
        assert os.path.samestat(os.fstat(fds[0]), os.fstat(memory))
        os.close(fds[0])
        with socket.socket(socket.AF_UNIX) as second, pytest.raises(ConnectionRefusedError):
            second.connect(str(path))
    assert not path.exists()


def test_a_machine_that_never_starts_keeps_nobody_waiting(spec: MachineSpec, memories: Lender) -> None:
    before = threading.active_count()
    with pytest.raises(RuntimeError), waiting_for_launcher(spec, memories.for_machine(spec)):
        raise RuntimeError("libvirt refused it")
    assert threading.active_count() == before
    assert not guest_memory.socket_of(spec).exists()


def test_the_launcher_becomes_qemu_with_the_memory_at_its_place(
    spec: MachineSpec, memories: Lender, tmp_path: Path
) -> None:
    """It runs a program of ours in QEMU's place, which says what it sees."""
    stand_in = tmp_path / "qemu-system-x86_64"
    stand_in.write_text(
        f"#!{sys.executable}\nimport os, sys\n"
        f"print(sys.argv[1:], os.pread({memory_map.FD}, 6, 0), '{guest_memory.VARIABLE}' in os.environ)\n"
    )
    stand_in.chmod(0o755)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        launcher = make_launcher(tmp_path / "launchers")
    assert launcher is not None
    memory = memories.for_machine(spec)
    os.pwrite(memory, b"memory", 0)
    with waiting_for_launcher(spec, memory):
        said = subprocess.run(
            [launcher, "-name", "one"], env={guest_memory.VARIABLE: str(guest_memory.socket_of(spec))},
            capture_output=True, text=True, timeout=60, check=True,
        ).stdout  # fmt: skip
    assert said == "['-name', 'one'] b'memory' False\n"


def test_another_qemu_has_another_launcher(tmp_path: Path) -> None:
    qemu = tmp_path / "qemu-system-x86_64"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PATH", str(tmp_path))
        assert make_launcher(tmp_path) is None, "where there is no QEMU there is none"
        found = []
        for time_ns in (1_000, 2_000):
            qemu.write_bytes(b"")
            qemu.chmod(0o755)
            os.utime(qemu, ns=(time_ns, time_ns))
            found.append(make_launcher(tmp_path / "launchers"))
    assert len(set(found)) == 2

"""Block devices of the host, given to a real guest and taken back."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.cli.loop_device import LoopDevice
from casemate.host import qemu_access
from tests.builders import wait_for
from tests.live.world import World

pytestmark = [pytest.mark.live, pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root")]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    with open(path, "wb") as file:
        file.write(b"from the host".ljust(512, b"\0"))
        file.truncate(4 << 20)
    return path


@pytest.fixture
def loop(image: Path) -> Iterator[str]:
    with LoopDevice(str(image)) as name:
        yield name


def loops_of(path: Path) -> str:
    return subprocess.run(["losetup", "-j", path], capture_output=True, text=True, check=True).stdout


def acl(name: str) -> list[str]:
    return os.listxattr(f"/dev/{name}")


def test_clean_takes_back_what_qubes_were_lent(tmp_path: Path, loop: str) -> None:
    """A qube that ends with its daemon leaves its entry; other installations' entries stay."""
    other, own = World(tmp_path / "other"), World(tmp_path / "own")
    for world in (other, own):
        world.settings.state.mkdir()
        world.settings.store_file.touch()
        qemu_access.lend(Path(f"/dev/{loop}"), qemu_access.users_of(world.settings)[7], False)
    before = os.getxattr(f"/dev/{loop}", "system.posix_acl_access")
    own.clean()
    after = os.getxattr(f"/dev/{loop}", "system.posix_acl_access")
    assert len(after) == len(before) - 8
    other.clean()
    assert acl(loop) == []


def test_a_disk_comes_is_written_to_and_goes(world: World, usable: str, image: Path, loop: str) -> None:
    assert f"dom0:{loop}" in world.run("qvm-block", "ls").stdout.decode()
    world.run("qvm-block", "attach", usable, f"dom0:{loop}")
    wait_for(lambda: world.inside(usable, "test -b /dev/vdd && echo there", "root", None) == "there")
    assert world.inside(usable, "head -c 13 /dev/vdd", "root") == "from the host"
    world.inside(usable, "printf 'from the qube' | dd of=/dev/vdd conv=notrunc,fsync 2>/dev/null", "root")
    assert "system.posix_acl_access" in acl(loop)
    # Nobody else gets it, nor the same qube twice; and all this is known to a daemon that was not there.
    world.kill_daemon()
    assert usable in world.run("qvm-block", "ls").stdout.decode()
    assert b"already" in world.run("qvm-block", "attach", usable, f"dom0:{loop}", status=1).stderr
    world.run("qvm-block", "detach", usable, f"dom0:{loop}")
    assert world.inside(usable, "test -b /dev/vdd || echo gone", "root") == "gone"
    assert acl(loop) == []
    with open(image, "rb") as file:
        assert file.read(13) == b"from the qube"
    world.run("qvm-block", "attach", "--ro", usable, f"dom0:{loop}")
    wait_for(lambda: world.inside(usable, "cat /sys/block/vdd/ro 2>/dev/null", "root", None) == "1")
    world.run("qvm-block", "detach", usable)


def test_a_start_gets_what_it_requires_and_fails_without(world: World, tmp_path: Path, image: Path, loop: str) -> None:
    world.run("qvm-create", "--label", "red", "needy")
    try:
        world.run("qvm-block", "assign", "--required", "--ro", "needy", f"dom0:{loop}")
        world.run("qvm-start", "needy")
        assert world.inside("needy", "head -c 13 /dev/vdd", "root") == "from the host"
        world.run("qvm-kill", "needy")
        wait_for(lambda: world.state("needy") == "Halted")
        assert acl(loop) == []
        world.run("qvm-block", "unassign", "needy", f"dom0:{loop}")
        world.run("qvm-block", "assign", "--required", "--port", "needy", "dom0:nothing")
        assert b"requires" in world.run("qvm-start", "needy", status=1).stderr
        assert world.state("needy") == "Halted"
        world.run("qvm-block", "unassign", "needy")
        # A file of the host as a CD-ROM; its loop device goes with the machine.
        other = tmp_path / "other.iso"
        other.write_bytes(b"disc".ljust(1 << 20, b"\0"))
        world.run("qvm-start", "needy", f"--cdrom=dom0:{other}")
        assert world.inside("needy", "head -c 4 /dev/vdd; cat /sys/block/vdd/ro", "root") == "disc1"
        assert loops_of(other)
        world.run("qvm-kill", "needy")
        wait_for(lambda: not loops_of(other))
        assert world.run("qvm-block", "--format", "json", "ls", "needy").stdout == b"[]\n"
    finally:
        world.run("qvm-kill", "needy", status=None)
        wait_for(lambda: world.state("needy") == "Halted")
        world.run("qvm-remove", "-f", "needy")

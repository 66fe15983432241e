"""What the volume tools do to real disks."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.builders import wait_for
from tests.live.world import World

pytestmark = pytest.mark.live


def test_an_imported_volume_is_what_the_qube_sees_and_a_cleared_one_is_empty(world: World, tmp_path: Path) -> None:
    content = tmp_path / "content"
    content.mkdir()
    (content / "marker").write_text("imported")
    image = tmp_path / "image"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", content, image, "64M"], check=True, env={"PATH": "/usr/sbin:/sbin:/usr/bin"})  # fmt: skip  # noqa: E501
    world.run("qvm-create", "--label", "red", "disk")
    try:
        world.run("qvm-volume", "import", "disk:private", str(image))
        world.run("qvm-start", "disk")
        assert world.inside("disk", "cat /rw/marker") == "imported"
        assert world.run("qvm-volume", "import", "disk:private", str(image), status=1).stderr
        world.run("qvm-kill", "disk")
        wait_for(lambda: world.state("disk") == "Halted")
        world.run("qvm-volume", "clear", "--force", "disk:private")
        world.run("qvm-start", "disk")
        assert world.inside("disk", "ls /rw/marker 2>/dev/null || echo none") == "none"
    finally:
        world.run("qvm-kill", "disk", status=None)
        wait_for(lambda: world.state("disk") == "Halted")
        world.run("qvm-remove", "-f", "disk")


def test_a_volume_goes_back_to_what_it_was_before_the_last_run(world: World) -> None:
    world.run("qvm-create", "--label", "red", "disk")
    try:
        for text in ("first", "second"):
            world.run("qvm-start", "disk")
            world.inside("disk", f"echo {text} > /rw/word; sync", "root")
            world.run("qvm-shutdown", "--wait", "disk")
        assert world.run("qvm-volume", "info", "disk:private", "revisions").stdout.count(b"\n") == 1
        world.run("qvm-volume", "revert", "disk:private")
        world.run("qvm-start", "disk")
        assert world.inside("disk", "cat /rw/word") == "first"
        assert world.run("qvm-volume", "info", "disk:root", "is_outdated").stdout == b"False\n"
        assert b"running" in world.run("qvm-volume", "revert", "disk:private", status=1).stderr
    finally:
        world.run("qvm-kill", "disk", status=None)
        wait_for(lambda: world.state("disk") == "Halted")
        world.run("qvm-remove", "-f", "disk")


@pytest.mark.parametrize("driver", ["file-reflink", "file"])
def test_a_qube_on_a_pool_of_raw_files_keeps_what_it_writes(world: World, driver: str) -> None:
    world.run("qvm-pool", "add", "raw", driver, "-o", "revisions_to_keep=1")
    try:
        world.run("qvm-create", "--label", "red", "--pool", "private=raw", "--pool", "volatile=raw", "disk")
        for text in ("first", "second"):
            world.run("qvm-start", "disk")
            world.inside("disk", f"cat /rw/word 2>/dev/null; echo {text} > /rw/word; sync", "root")
            world.run("qvm-shutdown", "--wait", "disk")
        world.run("qvm-start", "disk")
        assert world.inside("disk", "cat /rw/word") == "second"
        files = world.settings.state / "pools" / "raw" / "disk"
        assert (files / "private.img").is_file() and (files / "volatile.run.img").is_file()
        world.run("qvm-kill", "disk")
        wait_for(lambda: world.state("disk") == "Halted")
        assert not (files / "volatile.run.img").exists()
    finally:
        world.run("qvm-kill", "disk", status=None)
        wait_for(lambda: "disk" not in world.qubes() or world.state("disk") == "Halted")
        world.run("qvm-remove", "-f", "disk", status=None)
        world.run("qvm-pool", "remove", "raw")
    assert not files.exists()


def test_a_running_qube_is_enlarged_and_copied(world: World) -> None:
    """The guest grows its file system at once; a copy has what was saved last, not what the qube has written since."""

    def rw_mib(name: str) -> int:
        return int(world.inside(name, "df -m --output=size /rw | tail -1"))

    world.run("qvm-create", "--label", "red", "alive")
    try:
        world.inside("alive", "echo saved > /home/user/file; sync")
        world.run("qvm-shutdown", "--wait", "alive")
        world.inside("alive", "echo later > /home/user/file; sync")
        before = rw_mib("alive")
        world.run("qvm-volume", "resize", "alive:private", "3GiB")
        assert rw_mib("alive") > before + 900
        assert world.inside("alive", "cat /home/user/file") == "later"
        for volume in ("root", "volatile"):
            assert world.run("qvm-volume", "resize", f"alive:{volume}", "40GiB", status=1).stderr
        world.run("qvm-clone", "alive", "copy")
        assert world.run("qvm-volume", "info", "copy:private", "size").stdout == b"%d\n" % (3 << 30)
        assert world.inside("copy", "cat /home/user/file") == "saved" and rw_mib("copy") > before + 900
        world.run("qvm-pause", "alive")
        assert b"is paused" in world.run("qvm-volume", "resize", "alive:private", "4GiB", status=1).stderr
        world.run("qvm-unpause", "alive")
        # A guest that has no such service: the volume is larger, and the file system after the next start.
        world.inside("alive", "mount --bind /bin/false /etc/qubes-rpc/qubes.ResizeDisk", "root")
        assert b"at its next start" in world.run("qvm-volume", "resize", "alive:private", "4GiB", status=1).stderr
        world.run("qvm-shutdown", "--wait", "alive")
        assert rw_mib("alive") > before + 1900 and world.inside("alive", "cat /home/user/file") == "later"
    finally:
        for name in ("alive", "copy"):
            world.run("qvm-kill", name, status=None)
            world.run("qvm-remove", "-f", name, status=None)

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

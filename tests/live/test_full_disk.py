"""A disk without room: everything that needs some says so, nothing is half done, and it all works again with room."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders import wait_for
from tests.live.world import TEMPLATE, World

pytestmark = [pytest.mark.live, pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")]


@pytest.fixture
def small() -> Iterator[World]:
    """An installation on a disk of 330 MiB, of which a template takes half."""
    with tempfile.TemporaryDirectory(prefix="cmf", dir="/tmp") as directory:  # noqa: S108
        mount = Path(directory)
        mount.chmod(0o711)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=330m,mode=711", "tmpfs", mount], check=True)
        made = World(mount / "s")
        try:
            made.run("casemate", "template", "build", timeout=1800)
            made.without_images()
            yield made
        finally:
            made.clean()
            subprocess.run(["umount", mount], check=True)


@pytest.mark.timeout(600)
def test_a_full_disk_is_said_and_nothing_is_half_done(small: World) -> None:
    small.run("qvm-create", "--label", "red", "before")
    filler = small.settings.state.parent / "filler"
    with open(filler, "wb") as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(1 << 20))
            file.flush()
    for argv in (
        ("qvm-create", "--label", "red", "late"),
        ("qvm-start", "before"),
        ("qvm-prefs", "before", "memory", "333"),
    ):
        done = small.run(*argv, status=None)
        assert done.returncode == 1, argv
        assert b"No space" in done.stderr or b"No room" in done.stderr, done.stderr
    assert set(small.qubes()) == {"dom0", "before", TEMPLATE}
    assert not (small.settings.state / "pools" / "default" / "late").exists()
    assert small.machines() == []
    filler.unlink()
    small.run("qvm-prefs", "before", "memory", "333")
    small.run("qvm-start", "before")
    # A guest that writes more than there is room for is paused, not broken.
    fill = small.start("qvm-run", "before", "dd if=/dev/urandom of=/home/user/big bs=1M count=400")
    wait_for(lambda: small.state("before") == "Paused", 120)
    fill.terminate()
    fill.communicate()
    assert "no room" in small.log()
    # Whoever looks is told, and unpausing it does not pretend to have helped.
    assert b"stuck          before: a disk of it has no room" in small.run("casemate", "status").stdout
    done = small.run("qvm-unpause", "before", status=1)
    assert b"has paused again at once" in done.stderr and small.state("before") == "Paused"
    small.run("qvm-kill", "before")
    assert small.state("before") == "Halted"

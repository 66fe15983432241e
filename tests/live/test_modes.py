"""Modes of directories: ours are set whatever the umask is, others' are never changed."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest

from tests.live.world import TEMPLATE, World

pytestmark = [pytest.mark.live, pytest.mark.skipif(os.geteuid() != 0, reason="as a user, qubes run as that user")]


@pytest.mark.parametrize("umask", [0o077, 0o000])
def test_a_state_begun_under_any_umask_runs_qubes_and_is_closed_to_others(umask: int) -> None:
    directory = Path(tempfile.mkdtemp(prefix="cmm", dir="/tmp"))  # noqa: S108
    directory.chmod(0o711)
    world = World(directory / "deep" / "state")
    before = os.umask(umask)
    try:
        world.run("casemate", "template", "build", timeout=1800)
        world.without_images()
        world.run("qvm-create", "--label", "red", "box")
        world.run("qvm-start", "box")
        assert world.inside("box", "echo on") == "on"
        for path in (directory, *directory.rglob("*")):
            status = path.lstat()
            if not (path.is_symlink() or stat.S_ISSOCK(status.st_mode)) and world.settings.cache not in path.parents:
                assert not status.st_mode & 0o002, f"{path} is writable by all: {stat.filemode(status.st_mode)}"
        world.run("qvm-kill", "box")
    finally:
        os.umask(before)
        world.clean()
        shutil.rmtree(directory, ignore_errors=True)


def test_directories_of_others_are_never_changed(world: World, tmp_path: Path) -> None:
    top = Path(tempfile.mkdtemp(prefix="cmp", dir="/tmp"))  # noqa: S108
    theirs = top / "theirs"
    theirs.mkdir()
    modes = {top: 0o1777, theirs: 0o755}
    for path, mode in modes.items():
        path.chmod(mode)
    try:
        for name, path in (("made", theirs / "new" / "pool"), ("there", theirs)):
            world.run("qvm-pool", "add", name, "qcow2", "-o", f"dir_path={path}")
            world.run("qvm-create", "--label", "red", "-P", name, "inpool", status=None)
            world.run("qvm-remove", "-f", "inpool", status=None)
            world.run("qvm-pool", "remove", name)
        assert {path: stat.S_IMODE(path.stat().st_mode) for path in modes} == modes
        assert stat.S_IMODE((theirs / "new").stat().st_mode) == 0o711
        # A directory that is closed to the qubes' users is named, and stays closed.
        world.run("qvm-pool", "add", "closed", "qcow2", "-o", f"dir_path={theirs}")
        top.chmod(0o700)
        refused = world.run("qvm-pool", "add", "late", "qcow2", "-o", f"dir_path={theirs}", status=1).stderr
        assert f"{top} does not let others pass".encode() in refused
        done = world.run("qvm-create", "--label", "red", "-P", "closed", "inpool", status=None)
        world.run("qvm-pool", "remove", "closed", status=None)
        assert done.returncode != 0 and f"{top} does not let others pass".encode() in done.stderr
        assert stat.S_IMODE(top.stat().st_mode) == 0o700 and "inpool" not in world.qubes()
    finally:
        shutil.rmtree(top, ignore_errors=True)


def test_a_volume_that_is_made_anew_at_each_start_is_not_resized(world: World, usable: str) -> None:
    before = world.run("qvm-volume", "info", f"{usable}:root", "size").stdout
    world.run("qvm-create", "--label", "red", "--template", TEMPLATE, "sized")
    done = world.run("qvm-volume", "resize", "sized:root", "25GiB", status=1)
    assert b"made anew from another at each start" in done.stderr
    assert world.run("qvm-volume", "info", "sized:root", "size").stdout == before
    world.run("qvm-volume", "resize", "sized:private", "3GiB")
    world.run("qvm-remove", "-f", "sized")


@pytest.mark.parametrize("driver", ["qcow2", "file-reflink"])
def test_a_qube_in_another_pool_starts_and_clones_to_a_third(world: World, driver: str) -> None:
    """Kept volumes go to the chosen pool, layers stay with what they lie over; a clone copies between pools."""
    pool = f"second-{driver}"
    world.run("qvm-pool", "add", pool, driver)
    world.run("qvm-create", "--label", "red", "-P", pool, "inpool")
    world.run("qvm-start", "inpool")
    world.inside("inpool", "echo kept > ~/kept; sync")
    world.run("qvm-shutdown", "--wait", "inpool")
    world.run("qvm-clone", "-P", "default", "inpool", "copied")
    assert world.run("qvm-volume", "info", "copied:private", "pool").stdout == b"default\n"
    world.run("qvm-start", "copied")
    assert world.inside("copied", "cat ~/kept") == "kept"
    world.run("qvm-kill", "copied")
    world.run("qvm-remove", "-f", "copied", "inpool")
    world.run("qvm-pool", "remove", pool)
    spool = world.settings.state / "spool"
    assert not spool.exists() or list(spool.iterdir()) == []


def test_templates_and_kernels_are_closed_to_other_users(world: World, usable: str) -> None:
    """Volumes and kernels are read by the group of all qubes alone, built images by nobody but the daemon."""
    state, cache = world.settings.state, world.settings.cache
    group = next((state / "pools" / "default" / TEMPLATE).glob("root.qcow2")).stat().st_gid
    kernels = [path for path in (state / "kernels").rglob("*") if path.is_file()]
    assert kernels
    for path in kernels:
        assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_gid) == (0o640, group), path
    assert stat.S_IMODE((cache / "templates").stat().st_mode) == 0o700


def test_a_running_link_is_confined(world: World, usable: str) -> None:
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{world.link_pid(usable)}/status").read_text().splitlines()
    )
    assert status["Uid"].split()[0] != "0" and status["Groups"].split() == []
    assert status["NoNewPrivs"].strip() == "1" and status["Seccomp"].strip() == "2"
    assert int(status["CapEff"], 16) == 0


def test_a_pool_whose_directory_is_no_use_is_not_added(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "pool", Path("/proc/nothing")):
        done = world.run("qvm-pool", "add", "useless", "qcow2", "-o", f"dir_path={path}", status=1)
        assert b"No volumes can be kept in" in done.stderr and str(path).encode() in done.stderr, done.stderr
    assert b"useless" not in world.run("qvm-pool", "list").stdout

"""Disposables and app qubes that go on from a warm image, on real machines."""

from __future__ import annotations

import errno
import json
import mmap
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.cli.clean import machines_of
from casemate.host import guest_memory, memory_map
from tests.builders import wait_for
from tests.live.world import TEMPLATE, World

SECONDS = 240
FULL = bool(os.environ.get("CASEMATE_FULL"))


@pytest.fixture(scope="module")
def base(world: World) -> Iterator[str]:
    """A disposable template with a warm image."""
    world.run("qvm-create", "--label", "red", "--prop", "template_for_dispvms=True", "warm")
    world.run("qvm-features", "warm", "casemate-warm", "1")
    world.run("casemate", "warm", "build", "warm", timeout=SECONDS)
    yield "warm"
    world.run("casemate", "warm", "drop", "--all")
    world.run("qvm-remove", "-f", "warm")
    wait_for(lambda: not any(name.startswith("disp") for name in [*world.qubes(), *world.machines()]), SECONDS)


def images(world: World) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(world.run("casemate", "warm", "list", "--json").stdout)
    return found


def pid_of(world: World, name: str) -> int:
    """The QEMU of a qube."""
    (pid,) = [pid for pid, found in machines_of(world.settings).items() if found == name]
    return pid


def went_on(pid: int) -> bool:
    """Whether a machine came from an image."""
    return b"-incoming" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


@pytest.fixture
def clone(world: World, base: str) -> Iterator[str]:
    """A running disposable from the image, with a name of its own."""
    world.run("qvm-create", "--class", "DispVM", "--template", base, "--label", "red", "one")
    world.run("qvm-start", "one")
    yield "one"
    world.run("qvm-kill", "one", status=None)
    world.run("qvm-remove", "-f", "one")


def test_it_answers_as_itself(world: World, clone: str) -> None:
    pid = pid_of(world, clone)
    assert went_on(pid)
    lines = world.inside(clone, "hostname; qubesdb-read /name; cat /etc/hostname; date +%s; ls /run/qubes-service")
    *names, clock = lines.split()[:4]
    assert names == [clone] * 3
    assert abs(int(clock) - time.time()) <= 5
    assert world.inside(clone, "echo kept > ~/x; cat ~/x; df --output=target / /rw | tail -n 2") == "kept\n/\n/rw"


def test_it_is_as_confined_as_one_that_boots(world: World, clone: str, usable: str) -> None:
    def confinement(pid: int) -> dict[str, str]:
        text = Path(f"/proc/{pid}/status").read_text()
        names = ("Seccomp", "NoNewPrivs", "CapEff", "CapPrm", "CapBnd")
        return {name: value for name, value in re.findall(r"(\w+):\s*(.*)", text) if name in names}

    mine, other = pid_of(world, clone), pid_of(world, usable)
    assert confinement(mine) == confinement(other)
    assert confinement(mine)["Seccomp"] == "2"
    assert Path(f"/proc/{mine}/exe").readlink() == Path(f"/proc/{other}/exe").readlink()
    if os.geteuid() == 0:
        assert len({Path(f"/proc/{pid}").stat().st_uid for pid in (mine, other)} - {0}) == 2


def test_it_cannot_change_the_image(world: World, clone: str) -> None:
    # QEMU has the memory open for writing, so what it may do we may try with the very same descriptor.
    path = f"/proc/{pid_of(world, clone)}/fd/{memory_map.FD}"
    fd = os.open(path, os.O_RDWR)
    try:
        for attempt in (
            lambda: os.pwrite(fd, b"hostile", 0),
            lambda: os.ftruncate(fd, 0),
            lambda: mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
        ):
            with pytest.raises(OSError) as refused:
                attempt()
            assert refused.value.errno == errno.EPERM
    finally:
        os.close(fd)


IDENTITY = """
cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid
od -An -tx1 -N16 /dev/urandom
python3 -IS -c 'import os, random; print(os.urandom(8).hex(), random.random(), hash("x"), sep="\\n")'
mktemp -u
"""
"""Numbers that no two guests may have in common: of the kernel, of a fresh Python, of a tool."""


def test_no_two_have_a_number_in_common(world: World, base: str) -> None:
    count = 50 if FULL else 5
    world.run("qvm-features", base, "preload-dispvm-max", "0")  # each from the image, none twice
    said: list[str] = []
    for _ in range(count):
        out = world.run("qvm-run", "--pass-io", f"--dispvm={base}", IDENTITY).stdout.decode()
        numbers = [" ".join(line.split()) for line in out.splitlines()]
        assert len(numbers) == 7, out
        said += numbers
    world.run("qvm-features", "--unset", base, "preload-dispvm-max")
    assert len(set(said)) == 7 * count, sorted(said)


def test_one_that_was_used_is_followed_by_one_that_waits(world: World, base: str) -> None:
    world.run("qvm-run", "--pass-io", f"--dispvm={base}", "true")
    words = ("qvm-ls", "--raw-data", "--fields", "name", "--internal", "y", "--paused")
    wait_for(lambda: world.run(*words, status=None).stdout.strip(), SECONDS)
    name = world.run(*words).stdout.decode().split()[0]
    assert went_on(pid_of(world, name))
    assert world.run("qvm-run", "--pass-io", f"--dispvm={base}", "qubesdb-read /name").stdout.decode().strip() == name


def test_a_template_that_has_changed_is_seen_at_once(world: World, base: str) -> None:
    def mine() -> set[str]:
        """Images for disposables; the disposable template's own start has one made for app qubes."""
        return {image["key"] for image in images(world) if image["template"] == base}

    before = mine()
    world.run("qvm-run", "--pass-io", base, "date +%N > changed")
    world.run("qvm-shutdown", "--wait", base)
    # The image is of the old home. This disposable boots, and has a new image made.
    assert "changed" in world.run("qvm-run", "--pass-io", f"--dispvm={base}", "ls").stdout.decode()
    wait_for(lambda: mine() - before, SECONDS)
    world.run("qvm-features", base, "preload-dispvm-max", "0")
    world.run("qvm-create", "--class", "DispVM", "--template", base, "--label", "red", "two")
    world.run("qvm-start", "two")
    assert went_on(pid_of(world, "two"))
    assert "changed" in world.inside("two", "ls")
    world.run("qvm-kill", "two")
    world.run("qvm-remove", "-f", "two")
    world.run("qvm-features", "--unset", base, "preload-dispvm-max")


@pytest.mark.parametrize("file", [guest_memory.STATE, guest_memory.MEMORY])
def test_a_damaged_image_costs_a_boot_and_nothing_else(world: World, base: str, file: str) -> None:
    world.run("casemate", "warm", "build", base, timeout=SECONDS)
    (key,) = [image["key"] for image in images(world) if image["template"] == base][-1:]
    path = world.settings.state / "warm" / key / file
    size = path.stat().st_size
    path.write_bytes(b"\xff" * 4096 if file == guest_memory.STATE else b"")
    if file == guest_memory.MEMORY:
        os.truncate(path, size + 4096)
    world.run("qvm-create", "--class", "DispVM", "--template", base, "--label", "red", "hurt")
    world.run("qvm-start", "hurt", timeout=SECONDS)
    assert not went_on(pid_of(world, "hurt"))
    assert world.inside("hurt", "hostname") == "hurt"
    assert key not in {image["key"] for image in images(world)}
    assert not path.parent.exists()
    world.run("qvm-kill", "hurt")
    world.run("qvm-remove", "-f", "hurt")


def test_images_outlive_the_daemon_and_what_was_half_made_does_not(world: World, base: str) -> None:
    world.run("casemate", "warm", "build", base, timeout=SECONDS)
    key = images(world)[-1]["key"]
    half = world.settings.state / "warm" / ".0123456789abcdef"
    layers = world.settings.state / "pools" / "default" / ".warm-123456789abcdef"
    world.kill_daemon()
    for path in (half, layers):
        path.mkdir(mode=0o700)
    assert key in {image["key"] for image in images(world)}
    assert not half.exists() and not layers.exists()
    world.run("qvm-create", "--class", "DispVM", "--template", base, "--label", "red", "after")
    world.run("qvm-start", "after")
    assert went_on(pid_of(world, "after"))
    # One that runs does not need its image any more.
    world.run("casemate", "warm", "drop", "--all")
    assert world.inside("after", "cat /usr/bin/env > /dev/null; ls /etc | wc -l; hostname").endswith("after")
    assert images(world) == []
    world.run("qvm-kill", "after")
    world.run("qvm-remove", "-f", "after")


def test_a_daemon_that_is_killed_while_it_makes_one_leaves_nothing(world: World, base: str) -> None:
    world.run("casemate", "warm", "drop", "--all")
    building = world.start("casemate", "warm", "build", base)
    wait_for(lambda: any(name.startswith("disp") for name in world.machines()), SECONDS)
    world.kill_daemon()
    building.communicate(timeout=SECONDS)
    world.run("qvm-ls")
    wait_for(lambda: not any(name.startswith("disp") for name in [*world.qubes(), *world.machines()]), SECONDS)
    assert images(world) == []
    world.run("casemate", "warm", "build", base, timeout=SECONDS)


@pytest.fixture(scope="module")
def app(world: World) -> Iterator[str]:
    """A halted app qube of a template that has a warm image for it, with a file in its home."""
    world.run("casemate", "warm", "drop", "--all")
    world.run("qvm-create", "--label", "blue", "app")
    world.run("qvm-features", "app", "casemate-warm", "1")
    world.run("qvm-start", "app")
    assert not went_on(pid_of(world, "app"))
    world.inside("app", "echo from a boot > ~/kept; echo -n root > /tmp/x")
    world.run("qvm-shutdown", "--wait", "app")
    # The boot has an image made, in the background.
    wait_for(lambda: any(image["template"] == TEMPLATE for image in images(world)), SECONDS)
    wait_for(lambda: not any(name.startswith("warm-") for name in world.qubes()), SECONDS)
    yield "app"
    world.run("qvm-kill", "app", status=None)
    world.run("qvm-remove", "-f", "app")


def test_an_app_qube_keeps_its_data_however_it_starts(world: World, app: str) -> None:
    world.run("qvm-start", app)
    assert went_on(pid_of(world, app))
    assert world.inside(app, "hostname; cat ~/kept; stat -c %U ~; df --output=target ~ | tail -n 1") == (
        f"{app}\nfrom a boot\nuser\n/home"
    )
    world.inside(app, "echo from an image > ~/more; dd if=/dev/urandom of=big bs=1M count=8; sha256sum big > sum")
    world.run("qvm-shutdown", "--wait", app)
    world.run("qvm-features", app, "casemate-warm", "")
    world.run("qvm-start", app)
    assert not went_on(pid_of(world, app))
    assert world.inside(app, "cat kept more; sha256sum --check --quiet sum && echo whole") == (
        "from a boot\nfrom an image\nwhole"
    )
    world.run("qvm-shutdown", "--wait", app)
    world.run("qvm-features", app, "casemate-warm", "1")


def test_two_app_qubes_of_one_image_share_neither_disk_nor_memory(world: World, app: str) -> None:
    world.run("qvm-create", "--label", "green", "other")
    world.run("qvm-features", "other", "casemate-warm", "1")
    world.run("qvm-volume", "resize", "other:private", "3GiB")
    for name in (app, "other"):
        world.run("qvm-start", name)
    pids = [pid_of(world, name) for name in (app, "other")]
    assert all(map(went_on, pids))
    assert len({os.stat(f"/proc/{pid}/fd/{memory_map.FD}").st_ino for pid in pids}) == 2
    # It has a file system of 2 GiB on a disk of 3, which grows, as it does in a qube that boots.
    empty, mebibytes = world.inside("other", "ls -A | wc -l; df --output=size -BM /rw | tail -n 1").split()
    assert empty == "0" and int(mebibytes.rstrip("M")) > 2900
    said = [world.inside(name, IDENTITY).splitlines() for name in (app, "other")]
    assert not set(said[0]) & set(said[1])
    world.run("qvm-shutdown", "--wait", app)
    world.run("qvm-kill", "other")
    world.run("qvm-remove", "-f", "other")


def test_a_killed_app_qube_starts_again(world: World, app: str) -> None:
    world.run("qvm-start", app)
    world.inside(app, "echo synced > ~/synced; sync")
    world.run("qvm-kill", app)
    world.run("qvm-start", app)
    assert went_on(pid_of(world, app))
    assert world.inside(app, "cat ~/synced") == "synced"
    world.run("qvm-shutdown", "--wait", app)

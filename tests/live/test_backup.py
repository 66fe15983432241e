"""Backups of real qubes: to a file and into a qube, of one that runs, and back."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.host import qemu_access
from tests.builders import wait_for
from tests.live.world import World

pytestmark = pytest.mark.live

PLACE = "/home/user"


@pytest.fixture
def lab(world: World) -> Iterator[str]:
    """A qube with something on its disk, running with something more."""
    world.run("qvm-create", "--label", "red", "lab")
    try:
        world.run("qvm-start", "lab")
        world.inside("lab", "echo before > note; head -c 3000000 /dev/urandom > noise; sync")
        world.run("qvm-shutdown", "--wait", "lab")
        world.run("qvm-start", "lab")
        world.inside("lab", "echo meanwhile > note; sync")
        yield "lab"
    finally:
        gone(world, "lab")


def gone(world: World, name: str) -> None:
    world.run("qvm-kill", name, status=None)
    wait_for(lambda: name not in world.qubes() or world.state(name) == "Halted")
    world.run("qvm-remove", "-f", name, status=None)


def running(world: World, name: str, pattern: str) -> list[str]:
    """Processes in a qube with that in their command line; ``[]`` in the pattern keep the question itself out."""
    found = world.inside(name, f"grep -ls '{pattern}' /proc/[0-9]*/cmdline || true")
    return [line.split("/")[2] for line in found.splitlines()]


@pytest.fixture
def passphrase(tmp_path: Path) -> str:
    path = tmp_path / "passphrase"
    path.write_text("five words that nobody knows\n")
    return str(path)


def test_into_a_qube_and_back(world: World, lab: str, usable: str, passphrase: str, tmp_path: Path) -> None:
    noise = world.inside(lab, "sha256sum noise")
    # The service's own failure reaches us, and nothing is noted as backed up.
    done = world.run("qvm-backup", "-y", "-p", passphrase, "-d", usable, "cat >/dev/full", lab, status=1)
    assert b"did not take the backup" in done.stderr and b"No space left" in done.stderr
    assert world.run("qvm-prefs", lab, "backup_timestamp", status=None).stdout.strip() in (b"", b"None", b"0")

    done = world.run("qvm-backup", "-y", "-p", passphrase, "-d", usable, PLACE, lab)
    assert b"lab is running: what is backed up is its state from before this run" in done.stdout
    assert not list((world.settings.state / "spool").glob("*"))
    name = world.inside(usable, f"ls {PLACE} | grep qubes-backup")
    gone(world, lab)

    verify = ["qvm-backup-restore", "--verify-only", "-p", passphrase, "-d", usable]
    world.run(*verify, f"cat {PLACE}/{name}")  # by a command
    done = world.run(*verify, f"{PLACE}/nothing", status=1)
    assert b"does not give the backup" in done.stderr
    world.inside(usable, f"head -c 2000000 {PLACE}/{name} > {PLACE}/cut")
    world.run(*verify, f"{PLACE}/cut", status=1)
    wrong = tmp_path / "wrong"
    wrong.write_text("no\n")
    done = world.run(*verify[:2], "-p", str(wrong), "-d", usable, f"{PLACE}/{name}", status=1)
    assert b"passphrase is wrong" in done.stderr
    wait_for(lambda: not running(world, usable, "tar2[q]file"))  # told that we have had enough, it has ended

    # By an id, which lasts as long as the call that registered the place.
    by_id = ["qvm-backup-restore", "--verify-only", "-p", passphrase, "-d", usable, "--location-is-service"]
    register = ["qvm-run", "--pass-io", "--service", "--", usable, "qubes.RegisterBackupLocation"]
    with subprocess.Popen(register, env=world.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as registered:
        assert registered.stdin is not None and registered.stdout is not None
        registered.stdin.write(f"{PLACE}/{name}\n".encode())
        registered.stdin.flush()
        ident = registered.stdout.readline().decode().strip()
        assert len(ident) == 8
        world.run(*by_id, f"qubes.RestoreById+{ident}")
        for wrong_id in ("", "../../etc/passwd", "nothing0"):
            done = world.run(*by_id, f"qubes.RestoreById+{wrong_id}", status=None)
            assert done.returncode != 0, wrong_id
        # Killed, it leaves the file of its id behind; the id is worth nothing all the same.
        (pid,) = running(world, usable, "Register[B]ackupLocation")
        world.inside(usable, f"kill -9 {pid}")
    done = world.run(*by_id, f"qubes.RestoreById+{ident}", status=1)
    assert b"there is no backup of this id" in done.stderr

    world.run("qvm-backup-restore", "-y", "-p", passphrase, "-d", usable, f"{PLACE}/{name}")
    world.run("qvm-start", lab)
    assert world.inside(lab, "cat note") == "before"
    assert world.inside(lab, "sha256sum noise") == noise
    world.inside(usable, f"rm {PLACE}/{name} {PLACE}/cut")


def test_only_what_a_run_has_written_is_backed_up_again(
    world: World, lab: str, passphrase: str, tmp_path: Path
) -> None:
    repository = str(tmp_path / "repository")

    def backup(verb: str, *words: str) -> bytes:
        return world.run("casemate", "backup", verb, "-p", passphrase, *words).stdout

    def fresh() -> list[int]:
        """Bytes that each backup has given to borg, oldest first."""
        from casemate.backup.incremental.repository import Repository

        secret = Path(passphrase).read_bytes().strip()
        found = Repository(Path(repository), secret, tmp_path / "state").listing()
        return [one.bytes for one in found.snapshots]

    backup("init", repository)
    noise = world.inside(lab, "sha256sum noise")
    backup("create", "-y", repository, lab)  # it is running: its state from before this run
    world.run("qvm-shutdown", "--wait", lab)
    backup("create", "-y", repository, lab)  # with what the run has written
    backup("create", "-y", repository, lab)
    first, second, third = fresh()
    assert first > 3_000_000 and second < first / 2 and third < second / 4, (first, second, third)
    assert b"whole" in backup("verify", repository)
    gone(world, lab)
    backup("restore", "-y", repository, lab)
    world.run("qvm-start", lab)
    assert world.inside(lab, "cat note") == "meanwhile"
    assert world.inside(lab, "sha256sum noise") == noise


def loops(world: World) -> list[str]:
    """Loop devices of files below the state directory."""
    found = Path("/sys/block").glob("loop*/loop/backing_file")
    return [str(path) for path in found if str(world.settings.state) in path.read_text()]


@pytest.fixture
def opener(world: World) -> Iterator[str]:
    """A disposable template."""
    world.run("qvm-create", "--label", "red", "--prop", "template_for_dispvms=True", "opener")
    world.run("qvm-features", "opener", "preload-dispvm-max", "0")
    yield "opener"
    wait_for(lambda: world.run("qvm-remove", "-f", "opener", status=None).returncode == 0)


def test_a_file_of_a_backup_is_looked_at_in_a_disposable(
    world: World, lab: str, opener: str, passphrase: str, tmp_path: Path
) -> None:
    repository = str(tmp_path / "repository")
    base = ["casemate", "backup"]
    world.run(*base, "init", "-p", passphrase, repository)
    noise = world.inside(lab, "sha256sum noise")
    world.run("qvm-shutdown", "--wait", lab)
    world.run(*base, "create", "-y", "-p", passphrase, repository, lab)
    before = set(world.qubes())
    options = [*base, "open", "-p", passphrase, "--dispvm", opener]

    # One word is a command line; its output, and its status, are the tool's. There is no network.
    done = world.run(*options, repository, lab, "cat home/user/note; ls /sys/class/net; exit 7", status=7)
    assert done.stdout == b"meanwhile\nlo\n"
    assert world.run(*options, repository, lab, "sha256sum", "home/user/noise").stdout.split()[0].decode() in noise
    done = world.run(*options, repository, lab, "touch home/user/new", status=1)
    assert b"Read-only" in done.stderr
    for words, why in (((lab, "--volume", "root"), b"no volume root"), (("nobody",), b"nobody is not in the backup")):
        done = world.run(*options, *words[1:], repository, words[0], status=1)
        assert why in done.stderr
    # Without a command it waits for a line, or the end of the input. Killed, it leaves nothing either.
    assert b"Press Enter" in world.run(*options, repository, lab).stderr
    with world.start(*options, repository, lab, "echo there; sleep 1000") as tool:
        assert tool.stdout is not None and tool.stdout.readline() == b"there\n"
        assert loops(world)
        tool.kill()
    wait_for(lambda: set(world.qubes()) == before and not loops(world), 60)
    # The devices' nodes stay, and will be other files': nobody who had one may open them.
    users = qemu_access.users_of(world.settings)
    for node in Path("/dev").glob("loop[0-9]*"):
        if "system.posix_acl_access" in os.listxattr(node):
            entries = struct.iter_unpack("<HHI", os.getxattr(node, "system.posix_acl_access")[4:])
            assert not [ident for tag, _bits, ident in entries if tag == 2 and ident in users], node

"""Disposables that are started before they are asked for, on real machines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.builders import wait_for
from tests.live.world import World

SECONDS = 240


def ready(world: World) -> list[str]:
    """Disposables of the template that wait."""
    words = ("qvm-ls", "--raw-data", "--fields", "name", "--internal", "y", "--paused")
    return world.run(*words, status=None).stdout.decode().split()


def one_waits(world: World, *but: str) -> str:
    """The disposable that waits, once there is one that is none of those."""
    wait_for(lambda: set(ready(world)) - set(but), SECONDS)
    (name,) = set(ready(world)) - set(but)
    return name


@pytest.fixture(scope="module")
def base(world: World) -> Iterator[str]:
    """A disposable template of which one disposable waits."""
    world.run("qvm-create", "--label", "red", "--prop", "template_for_dispvms=True", "pre")
    world.run("qvm-features", "pre", "preload-dispvm-delay", "0")
    world.run("qvm-features", "pre", "preload-dispvm-max", "1")
    yield "pre"
    world.run("qvm-remove", "-f", "pre")  # with what waits
    assert not any(name.startswith("disp") for name in [*world.qubes(), *world.machines()])


def test_each_call_gets_one_of_its_own(world: World, base: str) -> None:
    said = set()
    for _ in range(2):
        name = one_waits(world)
        asks = "qubesdb-read /name; od -An -tx1 -N16 /dev/urandom; cat /proc/sys/kernel/random/boot_id; date +%s"
        done = world.run("qvm-run", "--pass-io", f"--dispvm={base}", asks)
        named, *identity, then = done.stdout.decode().splitlines()
        assert named == name
        # It stood still while others worked. Its clock is the host's all the same.
        now = int(world.run("date", "+%s").stdout)
        assert abs(now - int(then)) <= 5
        said.update(identity)
        wait_for(lambda name=name: name not in [*world.qubes(), *world.machines()], SECONDS)
    assert len(said) == 4, "random bytes and boot ids differ"


def test_a_daemon_that_is_killed_leaves_it_to_the_next(world: World, base: str) -> None:
    name = one_waits(world)
    world.kill_daemon()
    assert world.state(name) == "Paused"
    assert world.run("qvm-run", "--pass-io", f"--dispvm={base}", "qubesdb-read /name").stdout.decode().strip() == name


def test_one_that_is_outdated_is_replaced(world: World, base: str) -> None:
    before = one_waits(world)
    world.run("qvm-run", "--pass-io", base, "touch marked")
    world.run("qvm-shutdown", "--wait", base)
    one_waits(world, before)
    out = world.run("qvm-run", "--pass-io", f"--dispvm={base}", "ls").stdout.decode()
    assert "marked" in out
    wait_for(lambda: before not in [*world.qubes(), *world.machines()], SECONDS)


def test_the_caller_of_a_call_has_it_as_his_own(world: World, base: str, usable: str) -> None:
    policy = world.settings.state / "policy.d" / "30-user.policy"
    policy.write_text(f"qubes.VMShell * {usable} @dispvm:{base} allow\n")
    name = one_waits(world)
    call = f"echo 'qubesdb-read /name; exit 5' | qrexec-client-vm @dispvm:{base} qubes.VMShell; echo $?"
    assert world.inside(usable, call).split() == [name, "5"]
    policy.unlink()
    wait_for(lambda: name not in [*world.qubes(), *world.machines()], SECONDS)


def test_unpaused_by_hand_it_is_a_disposable_like_any_other(world: World, base: str) -> None:
    name = one_waits(world)
    world.run("qvm-unpause", name)
    assert world.inside(name, "echo up") == "up"
    wait_for(lambda: world.run("qvm-prefs", name, "is_preload").stdout.strip() == b"False", SECONDS)
    other = one_waits(world, name)
    assert world.state(name) == "Running" and other != name
    assert b"1 of 1 of pre wait" in world.run("casemate", "status", status=None).stdout
    world.run("qvm-kill", name)
    wait_for(lambda: name not in world.qubes(), SECONDS)

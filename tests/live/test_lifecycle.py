"""Start and stop of real qubes, and what happens when something is killed meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from casemate.model.classes import CLASSES
from casemate.model.system import System
from tests.builders import wait_for
from tests.live.world import TEMPLATE, World

pytestmark = pytest.mark.live


@pytest.fixture
def box(world: World) -> str:
    """A halted qube of the test's own."""
    world.run("qvm-create", "--label", "red", "box")
    yield "box"  # type: ignore[misc]
    world.run("qvm-kill", "box", status=None)
    wait_for(lambda: world.state("box") == "Halted")
    world.run("qvm-remove", "-f", "box")
    assert not (world.settings.state / "pools" / "default" / "box").exists()


def test_two_starts_at_once_are_one_start_and_both_succeed(world: World, box: str) -> None:
    tools = [world.start("qvm-start", "--skip-if-running", box) for _ in range(2)]
    for tool in tools:
        _out, err = tool.communicate(timeout=120)
        assert tool.returncode == 0, err
    assert world.machines().count(box) == 1
    assert world.state(box) == "Running"


def files_of(world: World, box: str) -> list[str]:
    """The files of a qube's volumes, without their older states."""
    names = (path.name for path in (world.settings.state / "pools" / "default" / box).iterdir())
    return sorted(name for name in names if "@" not in name)


def test_a_guest_that_powers_itself_off_is_halted_within_a_second(world: World, box: str) -> None:
    world.run("qvm-start", box)
    pid = next(iter(machine_pids(world, box)))
    world.run("qvm-run", "-u", "root", box, "echo o > /proc/sysrq-trigger", status=None)
    wait_for(lambda: not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes())
    assert wait_for(lambda: world.state(box) == "Halted") < 2.0
    assert not (world.settings.run / "qubes" / box).exists()
    assert files_of(world, box) == ["private.qcow2"]


def machine_pids(world: World, qube: str) -> list[int]:
    from casemate.cli.clean import machines_of

    return [pid for pid, name in machines_of(world.settings).items() if name == qube]


def test_pause_and_unpause(world: World, usable: str) -> None:
    world.run("qvm-pause", usable)
    assert world.state(usable) == "Paused"
    world.run("qvm-unpause", usable)
    assert world.inside(usable, "echo on") == "on"


def test_kill_of_a_link_fails_its_calls_at_once_and_the_qube_is_usable_again(world: World, usable: str) -> None:
    call = world.start("qvm-run", "--pass-io", usable, "echo started; sleep 100")
    assert call.stdout is not None
    assert call.stdout.readline() == b"started\n"
    os.kill(world.link_pid(usable), signal.SIGKILL)
    begin = time.monotonic()
    _out, err = call.communicate(timeout=80)
    assert time.monotonic() - begin < 60  # the program would sleep for 100 s
    assert call.returncode == 255
    assert err.strip()
    wait_for(lambda: world.run("qvm-run", "--pass-io", usable, "true", status=None).returncode == 0)
    assert world.inside(usable, "qubesdb-read /name") == usable


def prefs(world: World, *words: str) -> str:
    """What a tool says of one property."""
    return world.run(*words).stdout.decode().strip()


def test_kill_of_the_daemon_leaves_qubes_running_and_the_next_one_adopts_them(world: World, usable: str) -> None:
    pids = machine_pids(world, usable)
    started = prefs(world, "qvm-prefs", usable, "start_time")
    world.kill_daemon()
    assert world.state(usable) == "Running"
    assert prefs(world, "qvm-prefs", usable, "start_time") == started != ""
    assert machine_pids(world, usable) == pids
    assert world.inside(usable, "echo still here") == "still here"
    # It is really ours again: stop and start work.
    world.run("qvm-shutdown", "--wait", usable)
    assert machine_pids(world, usable) == []
    world.run("qvm-start", usable)


def test_a_qube_with_autostart_starts_once_a_boot_of_the_host(world: World, box: str) -> None:
    world.run("qvm-prefs", box, "autostart", "True")
    world.kill_daemon()
    assert world.state(box) == "Halted", "this boot had its first daemon long ago"
    world.kill_daemon()
    (world.settings.run / "boot-id").write_text("that of an earlier boot\n")
    wait_for(lambda: world.state(box) == "Running", 120)


def test_every_live_property_of_a_real_qube_and_host_has_a_value(world: World, usable: str) -> None:
    """The same as over libvirt's test driver in tests/component, of a machine and a host that are real."""
    for holder, words in ((CLASSES["AppVM"], ("qvm-prefs", usable)), (System, ("qubes-prefs",))):
        for name, rule in holder.live().items():
            value = prefs(world, *words, name)
            assert value not in ("", "None", str(rule.otherwise)), f"{name} is live, and nobody gives it a value"
    memory = int(prefs(world, "qubes-prefs", "maxmem"))
    assert memory == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20


@pytest.mark.parametrize("delay", [0.05, 0.5, 1.5, 3.0])
def test_kill_of_the_daemon_during_a_start_is_cleaned_up(world: World, box: str, delay: float) -> None:
    tool = world.start("qvm-start", box)
    time.sleep(delay)
    world.kill_daemon()
    tool.communicate(timeout=60)
    # The next daemon has ended what was half started. A start that had come as far as the agent's answer is adopted.
    if world.state(box) == "Halted":
        assert tool.returncode != 0
        assert box not in world.machines()
        assert not (world.settings.run / "qubes" / box).exists()
        world.run("qvm-start", box)
    else:
        # Where the machine is so busy that the tool had not connected yet, the tool has started the next daemon itself.
        assert delay > 1 or tool.returncode == 0, "so early no agent can have answered"
        assert world.state(box) == "Running" and world.machines().count(box) == 1
    assert world.inside(box, "echo ok") == "ok"


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.1, 0.2])
def test_kill_of_the_daemon_during_a_creation_leaves_all_or_nothing(world: World, delay: float) -> None:
    name = f"half{int(delay * 100)}"
    tool = world.start("qvm-create", "--label", "red", name)
    time.sleep(0.15 + delay)
    world.kill_daemon()
    tool.communicate(timeout=60)
    volume = world.settings.state / "pools" / "default" / name / "private.qcow2"
    if name in world.qubes():
        assert volume.exists()
        world.run("qvm-remove", "-f", name)
    assert name not in world.qubes()
    assert not volume.parent.exists()
    assert list((world.settings.state / "intents").glob("*")) == []
    world.run("qvm-create", "--label", "red", name)
    world.run("qvm-remove", "-f", name)


def test_kill_of_the_daemon_during_a_stop_is_finished_by_the_next(world: World, box: str) -> None:
    world.run("qvm-start", box)
    tool = world.start("qvm-shutdown", "--wait", box)
    time.sleep(0.4)
    world.kill_daemon()
    tool.communicate(timeout=60)
    wait_for(lambda: world.state(box) == "Halted", 60)
    assert not (world.settings.run / "qubes" / box).exists()
    assert files_of(world, box) == ["private.qcow2"]


def test_a_template_without_agent_fails_the_start_with_its_console_shown_and_leaves_nothing(
    world: World, box: str, tmp_path: Path
) -> None:
    world.run("qvm-clone", TEMPLATE, "broken")
    image, raw = world.settings.state / "pools" / "default" / "broken" / "root.qcow2", tmp_path / "raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw], check=True)
    subprocess.run(["debugfs", "-w", "-R", "rm /usr/lib/casemate/agent.pyz", raw], check=True, capture_output=True)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image], check=True)
    world.run("qvm-prefs", box, "template", "broken")
    done = world.run("qvm-start", box, status=None)
    assert done.returncode == 1
    text = done.stderr.decode()
    assert "Cannot start box" in text
    assert "its console ends" in text and "agent.pyz" in text
    assert box not in world.machines()
    assert world.state(box) == "Halted"
    assert not (world.settings.run / "qubes" / box).exists()
    world.run("qvm-prefs", box, "template", TEMPLATE)
    world.run("qvm-remove", "-f", "broken")


def test_root_is_thrown_away_and_private_is_kept(world: World, usable: str) -> None:
    world.inside(usable, "echo 1 > /etc/gone; echo 2 > /rw/kept; echo 3 > /home/user/kept", user="root")
    world.run("qvm-shutdown", "--wait", usable)
    world.run("qvm-start", usable)
    assert world.inside(usable, "ls /etc/gone 2>/dev/null; cat /rw/kept /home/user/kept") == "2\n3"


@pytest.mark.skipif(os.geteuid() != 0, reason="as a user, qubes run as that user")
def test_a_state_that_qubes_cannot_reach_is_refused_with_the_directory_that_bars_them(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    hidden = World(tmp_path / "s")
    done = hidden.run("qvm-ls", status=None)
    assert done.returncode != 0
    assert str(tmp_path).encode() in done.stderr and b"chmod o+x" in done.stderr


def test_unknown_qube_is_an_error_that_names_it(world: World) -> None:
    for tool in ("qvm-start", "qvm-shutdown", "qvm-kill", "qvm-pause", "qvm-prefs", "qvm-run"):
        argv = [tool, "nosuch"] + (["true"] if tool == "qvm-run" else [])
        done = world.run(*argv, status=None)
        assert done.returncode != 0
        assert b"nosuch" in done.stderr, tool


def test_subprocess_output_is_whole(world: World, usable: str) -> None:
    done = subprocess.run(
        ["qvm-run", "--pass-io", usable, "head -c 3000000 /dev/zero | tr '\\0' x"],
        env=world.environment, capture_output=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == b"x" * 3_000_000

"""A guest whose root turns against its channel: its own channel closes, nobody else notices."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.builders import wait_for
from tests.live.world import TEMPLATE, World

pytestmark = pytest.mark.live

ATTACK = (
    "systemd-run --quiet --unit=attack /bin/sh -c "
    "'systemctl stop casemate-agent; "
    "while true; do timeout 5 dd if=/dev/zero of=/dev/vport0p1 bs=32768 count=256 2>/dev/null; sleep 0.1; done'"
)


@pytest.fixture
def rogue(world: World) -> Iterator[str]:
    """A running qube with systemd, in which the agent is a service like any other."""
    world.run("casemate", "template", "build", "--kind", "systemd", timeout=1800)
    world.run("qvm-create", "--label", "red", "--template", f"{TEMPLATE}-systemd", "rogue")
    world.run("qvm-start", "rogue")
    yield "rogue"
    world.run("qvm-kill", "rogue", status=None)
    wait_for(lambda: world.state("rogue") == "Halted")
    world.run("qvm-remove", "-f", "rogue")


@pytest.mark.timeout(900)
def test_garbage_from_a_guest_closes_its_channel_and_harms_nobody_else(world: World, rogue: str, usable: str) -> None:
    link, daemon = world.link_pid(usable), world.daemon_pid()
    wait_for(lambda: world.run("qvm-run", "-u", "root", rogue, "systemctl is-active dbus", status=None).returncode == 0)
    world.run("qvm-run", "--pass-io", "-u", "root", rogue, ATTACK, status=None)
    log = world.settings.run / "log" / f"link-{rogue}.log"
    wait_for(lambda: "broke the protocol too often" in log.read_text(), 120)
    # Its calls fail at once, with a reason; the others' go on, served by the same processes.
    done = world.run("qvm-run", "--pass-io", rogue, "true", status=None, timeout=30)
    assert done.returncode == 255
    assert done.stderr.strip()
    assert world.inside(usable, "echo fine") == "fine"
    assert (world.link_pid(usable), world.daemon_pid()) == (link, daemon)
    assert world.state(rogue) == "Running"
    # Started anew it is an ordinary qube again.
    world.run("qvm-kill", rogue)
    world.run("qvm-start", rogue)
    assert world.inside(rogue, "echo back") == "back"

"""Laws 1 and 2 on QEMU: a few rounds of what tests/component/laws does many times without machines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from casemate.qdb.client import QubesDB
from casemate.wire.errors import DisconnectedError
from tests.builders import wait_for
from tests.live.world import World

pytestmark = pytest.mark.live

WATCH = [sys.executable, "-m", "tests.component.laws.client", "watch"]


def test_watchers_while_a_qube_comes_and_goes(world: World) -> None:
    """Created, started, killed and removed under the eyes of two watchers; its name and its files are free after."""
    watchers = [
        subprocess.Popen(WATCH, env=world.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)
    ]
    try:
        for _ in range(3):
            world.run("qvm-create", "--label", "red", "fleeting")
            world.run("qvm-start", "fleeting")
            world.run("qvm-kill", "fleeting")
            wait_for(lambda: world.state("fleeting") == "Halted")
            world.run("qvm-remove", "-f", "fleeting")
            assert "fleeting" not in world.qubes() and "fleeting" not in world.machines()
    finally:
        for watcher in watchers:
            out, _ = watcher.communicate(b"stop\n", timeout=60)
            assert watcher.returncode == 0 and int(out) > 0, out


def test_the_database_of_a_killed_link_is_an_error_and_its_successor_answers(world: World, usable: str) -> None:
    database = QubesDB(world.settings.database_socket(usable))
    assert database.read("/name") == usable.encode()
    link = world.link_pid(usable)
    os.kill(link, signal.SIGKILL)
    begin = time.monotonic()
    with pytest.raises(DisconnectedError):
        while time.monotonic() - begin < 60:
            assert database.read("/name") is not None
    wait_for(lambda: world.has_link_but(usable, link))
    database.refresh()
    assert database.read("/name") == usable.encode()
    database.close()
    assert world.inside(usable, "echo on") == "on"

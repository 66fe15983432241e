"""What a change writes into the database of a qube that runs."""

from __future__ import annotations

import pytest

from tests.builders import wait_for
from tests.live.world import World

pytestmark = pytest.mark.live


def test_services_and_settings_reach_a_running_qube_at_once(world: World, usable: str) -> None:
    def inside(key: str) -> str:
        return world.inside(usable, f"qubesdb-read {key}", status=None)

    world.run("casemate", "qubesdb", usable, "write", "/vm-config/by-hand", "mine")
    world.run("qvm-service", usable, "follow", "on")
    wait_for(lambda: inside("/qubes-service/follow") == "1")
    world.run("qvm-service", usable, "follow", "off")
    wait_for(lambda: inside("/qubes-service/follow") == "0")
    world.run("qvm-service", "--default", usable, "follow")
    wait_for(lambda: inside("/qubes-service/follow") == "")
    world.run("qvm-features", usable, "vm-config.follow", "some text")
    wait_for(lambda: inside("/vm-config/follow") == "some text")
    world.run("qvm-prefs", usable, "debug", "True")
    wait_for(lambda: inside("/qubes-debug-mode") == "1")
    # Another daemon goes on where the killed one stopped.
    world.kill_daemon()
    world.run("qvm-prefs", usable, "debug", "False")
    wait_for(lambda: inside("/qubes-debug-mode") == "0")
    world.run("qvm-features", "--unset", usable, "vm-config.follow")
    wait_for(lambda: inside("/vm-config/follow") == "")
    assert inside("/vm-config/by-hand") == "mine"

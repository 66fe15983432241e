"""Services of a real guest beyond the shell: files opened there, TCP, what it says of itself."""

from __future__ import annotations

import pytest

from casemate.agent.open_in_vm import header
from tests.live.world import TEMPLATE, World

pytestmark = pytest.mark.live


def test_a_file_is_opened_changed_and_comes_back(world: World, usable: str) -> None:
    script = '#!/bin/sh\\nid -un >>"$1"; ls -ld "${1%/*}" | cut -c1-10 >>"$1"\\n'
    world.inside(usable, f"mkdir -p /rw/config; printf %b '{script}' >/rw/config/qubes-open", user="root")
    world.inside(usable, "chmod 755 /rw/config/qubes-open", user="root")
    try:
        data = header("a letter.txt", False) + b"text\n"
        argv = ("qvm-run", "--pass-io", "--service", usable, "qubes.OpenInVM")
        assert world.run(*argv, data=data).stdout == b"text\nuser\ndrwx------\n"
        assert world.inside(usable, "ls /tmp | grep -c ^dom0-; true") == "0"
    finally:
        world.inside(usable, "rm -f /rw/config/qubes-open", user="root")
    assert world.run(*argv, data=data, status=127).stdout == b""  # nothing there opens it, and it says so


def test_a_port_of_the_guest(world: World, usable: str) -> None:
    serve = (
        'import socket; s = socket.create_server(("127.0.0.1", 7000)); print("up", flush=True); c, _ = s.accept();'
        'd = b"".join(iter(lambda: c.recv(65536), b"")); c.sendall(d[::-1])'
    )
    world.inside(usable, "ip link set lo up", user="root")
    world.inside(usable, f"setsid python3 -c '{serve}' >/tmp/up 2>&1 & until grep -q up /tmp/up; do sleep 0.1; done")
    done = world.run("qvm-run", "--pass-io", "--service", usable, "qubes.ConnectTCP+7000", data=b"abc" * 50_000)
    assert done.stdout == b"cba" * 50_000
    world.run("qvm-run", "--pass-io", "--service", usable, "qubes.ConnectTCP+70000", status=125)


def test_what_a_template_based_qube_may_say_of_itself(world: World, usable: str) -> None:
    """All four are allowed by the policy that comes with us; features of this qube are its template's to decide."""
    world.run("qvm-run", "--pass-io", "--service", usable, "qubes.PostInstall")
    assert world.inside(usable, "qubesdb-read /features-request/os") == "Linux"
    assert world.run("qvm-features", usable).stdout == b""
    assert world.inside(usable, "echo 7 | qrexec-client-vm dom0 qubes.NotifyUpdates; echo $?") == "0"
    assert world.run("qvm-features", TEMPLATE, "updates-available").stdout == b"1\n"
    assert world.inside(usable, "echo x | qrexec-client-vm dom0 qubes.NotifyUpdates; echo $?") == "1"
    assert world.inside(usable, "qrexec-client-vm dom0 internal.GetSystemInfo </dev/null; echo $?") == "126"
    world.run("qvm-features", "--unset", TEMPLATE, "updates-available")


def test_the_clock(world: World, usable: str) -> None:
    world.run("qvm-run", "--pass-io", "--service", usable, "qubes.SetDateTime", data=b"2031-02-03T04:05:06+00:00\n")
    assert world.inside(usable, "date -u +%F").startswith("2031-02-03")
    now = world.inside(usable, "echo; date +%s")
    done = world.run("date", "-u", "-Iseconds").stdout
    world.run("qvm-run", "--pass-io", "--service", usable, "qubes.SetDateTime", data=done)
    assert int(now) > 1_900_000_000 and int(world.inside(usable, "date +%s")) < int(now)

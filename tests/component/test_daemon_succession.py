"""A new daemon waits for what the one before it still holds, and then takes over."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from casemate.cli.clean import clean_state
from casemate.client.transport import Transport
from tests.builders import settings_in, short_directory

# Locks a file as libvirt does (fcntl) or as the daemon does (flock), until its standard input ends.
HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "w")
print(sys.argv[3], file=file, flush=True)
getattr(fcntl, sys.argv[2])(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
HELD = 3.0
"""Seconds. libvirt's driver can be opened ten times in a process, and a try takes a few hundredths of a second."""


@pytest.mark.parametrize(
    ("place", "lock"),
    [("libvirt/run/qemu/driver.pid", "lockf"), ("run/casemated.pid", "flock"), ("daemon.lock", "flock")],
)
def test_what_an_ending_daemon_holds_is_waited_for(place: str, lock: str) -> None:
    with short_directory() as directory:
        settings = settings_in(directory, prefix="casemate-suc-")
        path = settings.state / place
        path.parent.mkdir(parents=True, exist_ok=True)
        argv = [sys.executable, "-c", HOLDER, str(path), lock, str(settings.run)]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdin is not None and holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            begin = time.monotonic()
            timer = threading.Timer(HELD, holder.stdin.close)
            timer.start()
            try:
                assert b"dom0" in Transport(settings).call("admin.vm.List")
                assert time.monotonic() - begin >= HELD
            finally:
                timer.join()
                clean_state(settings)

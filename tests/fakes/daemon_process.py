"""The fake daemon as a program: serves until it gets SIGTERM, as the real one would. Appends its pid to a file."""

from __future__ import annotations

import os
import signal
import sys
import threading

from casemate.settings import load
from tests.fakes.daemon import running

if __name__ == "__main__":
    settings = load()
    with open(settings.state / "started", "a") as started:
        started.write(f"{os.getpid()}\n")
    if "--fail" in sys.argv:
        sys.exit("cannot start: \x1b[31mno hypervisor")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with running(settings.state):
        stop.wait()

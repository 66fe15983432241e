"""The real daemon killed again and again under load: what it acknowledged is kept, clients come back, events resume."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.cli.clean import alive, clean_state
from casemate.client.qubes import Qubes
from casemate.client.transport import Transport
from casemate.settings import Settings, load
from casemate.store.store import Store
from casemate.wire.admin import CONNECTED
from casemate.wire.errors import CasemateError, DaemonAccessError, DisconnectedError
from tests.builders import settings_in, short_directory

KILLS = 6
WORKERS = 8

BIN = Path(__file__).resolve().parents[2] / "bin"


@pytest.fixture
def settings() -> Iterator[Settings]:
    with short_directory() as directory:
        found = settings_in(directory, cache=load().cache, prefix=f"casemate-killed-{os.getpid()}-")
        yield found
        clean_state(found)


class Client:
    """One that writes to a qube of its own, and knows what was acknowledged and what only asked for."""

    def __init__(self, settings: Settings, number: int) -> None:
        self.name = f"work{number}"
        self.acknowledged = 0
        self.asked = 0
        self.interrupted = 0
        self._qubes = Qubes(Transport(settings))
        self._random = random.Random(number)

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            value = self.asked + 1
            try:
                if self._random.random() < 0.3:
                    assert any(q.name == self.name for q in self._qubes.listed())
                    continue
                self.asked = value
                self._qubes.call("admin.vm.feature.Set", "count", self.name, str(value))
                self.acknowledged = value
            except (DaemonAccessError, DisconnectedError, ConnectionError):
                self.interrupted += 1


class Listener:
    """One that subscribes anew whenever its stream ends, as upstream's does."""

    def __init__(self, settings: Settings) -> None:
        self._transport = Transport(settings)
        self.sessions = 0
        self.seen = 0
        self.wrong: list[str] = []

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                with self._transport.events("dom0", timeout=5) as events:
                    if events.next(5).name != CONNECTED:
                        self.wrong.append("a stream that does not begin with the event that says so")
                    self.sessions += 1
                    while not stop.is_set():
                        events.next(1)
                        self.seen += 1
            except TimeoutError:
                continue
            except (CasemateError, ConnectionError):
                continue


def test_kills_under_load(settings: Settings) -> None:
    qubes = Qubes(Transport(settings))
    for number in range(WORKERS):
        qubes.create("StandaloneVM", f"work{number}", "red")
    clients = [Client(settings, number) for number in range(WORKERS)]
    listener = Listener(settings)
    stop = threading.Event()
    threads = [threading.Thread(target=one.run, args=(stop,)) for one in (*clients, listener)]
    for thread in threads:
        thread.start()
    try:
        for kill in range(KILLS):
            before = [one.acknowledged for one in clients]
            deadline = time.monotonic() + 60
            while any(one.acknowledged < was + 3 for one, was in zip(clients, before, strict=True)) or (
                listener.sessions <= kill
            ):
                assert time.monotonic() < deadline, "somebody is not served any more"
                time.sleep(0.01)
            pid = int((settings.run / "casemated.pid").read_text())
            os.kill(pid, signal.SIGKILL)
            while alive(pid):
                time.sleep(0.005)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    system = Store(settings.store_file).snapshot()
    for one in clients:
        kept = int(system.domains[one.name].features["count"])
        assert one.acknowledged <= kept <= one.asked, one.name
        assert one.acknowledged >= 3 * KILLS
    assert sum(one.interrupted for one in clients) >= KILLS and listener.sessions >= KILLS
    assert listener.seen > 0 and not listener.wrong
    assert not list(settings.state.glob("qubes.xml?*.tmp*"))


def test_two_daemons_of_one_state_cannot_serve_from_two_places(settings: Settings) -> None:
    """A session with another run-time directory is told where the sockets of the running daemon are."""
    assert [qube.name for qube in Qubes(Transport(settings)).listed()] == ["dom0"]
    other = Settings(settings.state, settings.state / "elsewhere", settings.cache, settings.hypervisor, settings.prefix)
    with pytest.raises(DaemonAccessError) as caught:
        Qubes(Transport(other)).listed()
    assert f"with its sockets in {settings.run}: set CASEMATE_RUN={settings.run}" in str(caught.value)
    assert [qube.name for qube in Qubes(Transport(settings)).listed()] == ["dom0"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_is_the_reason_that_is_told(settings: Settings) -> None:
    """The log cannot tell it: the log is on that disk."""
    script = (
        "mount -t tmpfs -o size=64k,mode=711 tmpfs $1; mkdir -p $1/run; head -c 100000 /dev/zero >$1/fill 2>/dev/null; "
        'shift; exec "$@"'
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", str(settings.state), str(BIN / "qvm-ls")],
        env={**os.environ, **settings.environment()}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"The daemon ended at once: casemated: {settings.state}: No space left on device" in done.stderr

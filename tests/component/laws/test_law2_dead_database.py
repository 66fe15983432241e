"""Law 2: a dead database is an error, at once; never None, never silence, never the answer of the one before."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from casemate.qdb.client import QubesDB
from casemate.wire.errors import DisconnectedError
from tests.component.laws.daemon import Lab
from tests.component.laws.processes import scaled
from tests.component.rig import Rig

SOON = 1.0


class Qube:
    """A qube whose link dies and comes again; ``/xid`` is the id of the instance, as the start of a qube writes it."""

    def __init__(self, directory: Path) -> None:
        self.rig = Rig(directory)
        self.instance = 0
        self.ends: list[socket.socket] = []
        self.path = directory / "qubesdb.sock"

    def start(self) -> None:
        self.instance += 1
        self.link = self.rig.start_link(**{"/xid": str(self.instance), "/big": "x" * 2000})
        self.ends.append(self.rig.accept())

    def kill(self) -> None:
        self.link.send_signal(signal.SIGKILL)

    def end(self) -> None:
        self.kill()
        self.link.wait()
        self.ends.pop().close()
        for pipe in (self.link.stdin, self.link.stdout):
            if pipe is not None:
                pipe.close()
        self.rig.processes.remove(self.link)


@pytest.fixture
def qube(tmp_path: Path) -> Iterator[Qube]:
    made = Qube(tmp_path)
    made.start()
    yield made
    for end in made.ends:
        end.close()
    made.rig.close()


def endless(work: Callable[[], object]) -> None:
    while True:
        assert work() is not None, "None for a database that is dead"


ACTIONS: dict[str, Callable[[QubesDB], None]] = {
    "read": lambda db: endless(lambda: db.read("/xid")),
    "write": lambda db: endless(lambda: db.write("/y", b"1") or True),
    "multiread": lambda db: endless(lambda: db.multiread("/")),
    "list": lambda db: endless(lambda: db.list("/")),
    "watch": lambda db: endless(lambda: db.read_watch()),
}


@pytest.mark.parametrize("action", ACTIONS)
def test_a_link_killed_in_the_middle(qube: Qube, action: str) -> None:
    """Whatever a program is doing: DisconnectedError within a second; refresh reaches the new instance."""
    for _ in range(scaled(3, 20)):
        database = QubesDB(qube.path)
        if action == "watch":
            database.watch("/")
        outcome: list[object] = []

        def work(database: QubesDB = database, outcome: list[object] = outcome) -> None:
            try:
                ACTIONS[action](database)
            except BaseException as error:
                outcome.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(0.02)  # in the middle of it; any moment will do
        qube.kill()
        begin = time.monotonic()
        thread.join(SOON)
        assert not thread.is_alive() and time.monotonic() - begin < SOON, "it hangs"
        assert isinstance(outcome[0], DisconnectedError), outcome
        with pytest.raises(DisconnectedError):
            database.read("/xid")  # and again, not None
        qube.end()
        begin = time.monotonic()
        with pytest.raises(DisconnectedError):
            database.refresh()  # nobody is there: at once
        with pytest.raises(DisconnectedError):
            QubesDB(qube.path)
        assert time.monotonic() - begin < SOON
        qube.start()
        database.refresh()
        assert database.read("/xid") == str(qube.instance).encode(), "the answer of the instance before"
        database.close()


def test_a_handle_over_many_restarts_leaks_nothing_and_never_answers_for_the_past(qube: Qube) -> None:
    database = QubesDB(qube.path)
    before = None
    for _ in range(scaled(12, 100)):
        assert database.read("/xid") == str(qube.instance).encode()
        database.watch("/xid")
        qube.end()
        qube.start()  # the new instance is there before the first call finds out
        with pytest.raises(DisconnectedError):
            database.read("/xid")
        database.refresh()
        count = len(os.listdir("/proc/self/fd"))
        before = before or count
        assert count == before
    database.close()


def test_status_listings_go_on_without_the_dead(lab: Lab) -> None:
    """A machine that dies behind everybody's back, one that libvirt forgot, one that was never started."""
    for name in ("one", "two", "three"):
        lab.create(name)
    lab.qubes.call("admin.vm.Start", "", "one")
    lab.ask("forget", "two")
    begin = time.monotonic()
    entries = {str(entry["name"]): entry for entry in lab.qubes.inventory(None, None, True)}
    assert set(entries) == {"dom0", "one", "two", "three"}
    assert time.monotonic() - begin < 5
    first = lab.qubes.get("one", "xid").text
    lab.qubes.call("admin.vm.Kill", "", "one")
    assert (lab.qubes.get("one", "xid").text, int(first) > 0) == ("-1", True)
    lab.qubes.call("admin.vm.Start", "", "one")
    assert lab.qubes.get("one", "xid").text not in ("-1", first), "the id of the instance before"


def test_the_tool_says_that_the_qube_does_not_run(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bin/casemate", "qubesdb", "nobody", "read", "/name"], cwd=Path(__file__).parents[3],
        env={**os.environ, "CASEMATE_STATE": str(tmp_path)}, capture_output=True, timeout=20,
    )  # fmt: skip
    assert done.returncode == 1 and b"does not run" in done.stderr

"""Law 5: nothing that is started or told needs the lock that its caller holds; the order of locks is asserted."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from casemate.engine.operations import OperationLocks
from casemate.store import order
from casemate.store.order import LockOrderError
from casemate.store.store import Store
from tests.builders import within
from tests.component.laws.daemon import Lab
from tests.component.laws.processes import BUSY, PROGRAM, counters, finish, line, run, spawn

NOTIFIER = """
import sys
from casemate.client.qubes import Qubes
from casemate.client.transport import Transport
from casemate.settings import load
qubes = Qubes(Transport(load(), daemon=()))
events = qubes.transport.events()
print("listening", flush=True)
for event in events:
    # As a manager's window and a monitor-layout notifier do: every event makes it read the collection.
    entries = qubes.inventory(None, None, True)
    print(event.name, event.subject, len(entries), flush=True)
    if event.name == sys.argv[1]:
        break
"""


def test_a_disposable_starts_while_its_caller_holds_the_exclusive_lock(lab: Lab) -> None:
    """With notifiers and hooks that read the store at every event; in the ordinary time."""
    lab.create("base")
    lab.qubes.set("base", "template_for_dispvms", "True")
    lab.qubes.call("admin.vm.Create.DispVM", "base", "dom0", "name=disp7 label=red")
    lab.qubes.call("admin.vm.Start", "", "disp7")
    begin = time.monotonic()
    lab.qubes.call("admin.vm.Kill", "", "disp7")
    lab.qubes.call("admin.vm.Start", "", "disp7")
    ordinary = time.monotonic() - begin
    lab.qubes.call("admin.vm.Kill", "", "disp7")
    notifiers = [
        subprocess.Popen([sys.executable, "-c", NOTIFIER, "domain-shutdown"], env=lab.environment,
                         stdout=subprocess.PIPE)
        for _ in range(3)
    ]  # fmt: skip
    lab.processes += notifiers
    for notifier in notifiers:
        assert line(notifier) == "listening"
    holder = spawn(lab.settings.store_file, "hold", "exclusive")
    assert line(holder) == "held"
    begin = time.monotonic()
    lab.qubes.call("admin.vm.Start", "", "disp7")
    lab.qubes.call("admin.vm.Pause", "", "disp7")
    lab.qubes.call("admin.vm.Unpause", "", "disp7")
    assert lab.qubes.get("disp7", "template").text == "base"
    lab.qubes.call("admin.vm.Kill", "", "disp7")
    took = time.monotonic() - begin
    for notifier in notifiers:
        heard = notifier.communicate(timeout=20)[0].decode()
        assert "domain-start disp7 3" in heard and "domain-shutdown disp7" in heard
    assert took < 3 * ordinary + 2, "something waited for the lock"
    assert holder.poll() is None, "all of this happened under the lock"
    finish(holder)
    lab.qubes.set("base", "memory", "512")


def test_a_file_edited_by_hand_reaches_those_who_listen(lab: Lab) -> None:
    """Nobody asks the daemon for anything: it sees the new file itself, and reads it without any lock."""
    lab.create("one")
    notifier = subprocess.Popen(
        [sys.executable, "-c", NOTIFIER, "property-set:memory"], env=lab.environment, stdout=subprocess.PIPE
    )
    lab.processes.append(notifier)
    assert line(notifier) == "listening"
    holder = spawn(lab.settings.store_file, "hold", "exclusive")
    assert line(holder) == "held"
    path = lab.settings.store_file
    text = path.read_text().replace(
        '<property name="name">one</property>',
        '<property name="memory">999</property><property name="name">one</property>',
    )
    path.with_name("edited").write_text(text)
    path.with_name("edited").rename(path)
    assert b"property-set:memory one 2" in notifier.communicate(timeout=20)[0]
    assert lab.qubes.get("one", "memory").text == "999"
    finish(holder)


def test_t09_a_child_started_under_the_lock_is_told_that_it_is_busy(path: Path) -> None:
    child = [*PROGRAM, "--timeout", "1", str(path), "increment", "n"]
    begin = time.monotonic()
    with Store(path).write() as transaction:
        transaction.system.admin.features["a"] = "1"
        done = subprocess.run(child, capture_output=True, timeout=30)
    assert done.returncode == BUSY and f"process {os.getpid()}".encode() in done.stderr
    assert time.monotonic() - begin < 15
    assert run(path, "increment", "n").returncode == 0 and counters(path, "n") == (1, 1)


def test_a_child_that_only_looks_needs_no_lock(path: Path) -> None:
    with Store(path).write():
        assert run(path, "snapshot", "n", timeout=0.1).returncode == 0


@pytest.fixture
def debug(monkeypatch: pytest.MonkeyPatch) -> None:
    """As CASEMATE_DEBUG=1 does."""
    monkeypatch.setattr(order, "ENABLED", True)


@pytest.mark.usefixtures("debug")
def test_the_order_is_asserted(path: Path) -> None:
    locks, store = OperationLocks(), Store(path)

    async def right() -> None:
        async with locks["a"], locks["b"]:
            with store.write() as transaction:
                transaction.system.admin.features["a"] = "1"
            await asyncio.to_thread(lambda: store.change(lambda system: system.admin.features.set("a", "2")))

    async def back() -> None:
        with store.write():
            async with locks["a"]:
                pass

    async def wrong_names() -> None:
        async with locks["b"], locks["a"]:
            pass

    async def twice() -> None:
        async with locks["a"], locks["a"]:
            pass

    async def through_a_thread() -> None:
        with store.read():
            await asyncio.to_thread(store.change, lambda system: None)

    asyncio.run(right())
    for wrong in (back, wrong_names, twice, through_a_thread):
        with pytest.raises(LockOrderError):
            asyncio.run(within(5, wrong()))
    asyncio.run(right())
    assert len(locks) == 0, "what was refused is not held"


@pytest.mark.usefixtures("debug")
def test_a_task_made_under_a_lock_does_not_hold_it(path: Path) -> None:
    locks = OperationLocks()

    async def later() -> str:
        async with locks["a"]:
            return "done"

    async def main() -> str:
        async with locks["b"]:
            task = asyncio.create_task(later())
            return await task

    assert asyncio.run(main()) == "done"


def test_operation_locks_exclude_and_are_forgotten() -> None:
    """A name may be removed and made again while others wait for it: there is one lock for all of them."""
    locks, inside, most = OperationLocks(), [], []

    async def work() -> None:
        for _ in range(20):
            async with locks["a"]:
                inside.append(1)
                most.append(len(inside))
                try:
                    await asyncio.sleep(0)
                finally:
                    inside.pop()  # the one that is cancelled may be inside

    async def main() -> None:
        tasks = [asyncio.create_task(work()) for _ in range(5)]
        await asyncio.sleep(0.001)
        tasks[0].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())
    assert max(most) == 1 and len(locks) == 0

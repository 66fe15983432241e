"""Starting and stopping qubes: each as a task of its own, so that the request which asks for it is answered at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass

from casemate.web.admin_api import AdminApi
from casemate.web.guard import Refused
from casemate.web.live import Live
from casemate.wire.admin import ADMIN
from casemate.wire.errors import CasemateError, NotHaltedError

MAX_ACTIONS = 64
"""Limit of the manager page (actions): under way at once. Each holds a connection of the daemon, which has 256."""

AT_ONCE = 4
"""Limit of the manager page (qubes): those that an action on many starts or stops at the same time."""


@dataclass(frozen=True, slots=True)
class Verb:
    """What a button asks for."""

    label: str
    states: frozenset[str]
    """States in which it makes sense."""
    calls: tuple[tuple[str, str], ...]
    """Methods and arguments, one after the other."""
    doing: str
    confirm: str = ""
    """What a person is asked first; ``{}`` is the qube's name."""


_RUNS = frozenset({"Running"})
VERBS: dict[str, Verb] = {
    "start": Verb("Start", frozenset({"Halted"}), (("admin.vm.Start", ""),), "starting"),
    "shutdown": Verb("Shut down", _RUNS, (("admin.vm.Shutdown", "wait"),), "shutting down"),
    "pause": Verb("Pause", _RUNS, (("admin.vm.Pause", ""),), "pausing"),
    "unpause": Verb("Unpause", frozenset({"Paused"}), (("admin.vm.Unpause", ""),), "unpausing"),
    "restart": Verb("Restart", _RUNS, (("admin.vm.Shutdown", "wait"), ("admin.vm.Start", "")), "restarting"),
    "kill": Verb(
        "Kill", frozenset({"Running", "Paused", "Transient", "Halting", "Crashed", "Dying"}),
        (("admin.vm.Kill", ""),), "being killed",
        "Kill {}? Its machine ends at once, and what it has not saved is lost.",
    ),
}  # fmt: skip
"""What can be done to a qube from its row, by the word in the address."""


def verbs_for(state: str, name: str) -> dict[str, Verb]:
    """What can be done to a qube in that state; nothing to the host."""
    return {word: verb for word, verb in VERBS.items() if state in verb.states and name != ADMIN}


class Actions:
    """What is under way. Failures are told to all who look, because no request waits for them."""

    def __init__(self, api: AdminApi, live: Live) -> None:
        self._api = api
        self._live = live
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, word: str, name: str) -> None:
        """Have a verb carried out on a qube; returns at once. Refused where too much is under way."""
        verb = VERBS[word]
        self.run(name, verb.label, verb.doing, lambda: self._carry_out(word, name))

    def begin_many(self, word: str, names: Sequence[str]) -> None:
        """The same for several qubes, as one action: AT_ONCE of them at a time, so that the host is not flooded."""
        verb, places = VERBS[word], asyncio.Semaphore(AT_ONCE)

        async def one(name: str) -> None:
            async with places:
                await self._watched(name, verb.label, verb.doing, lambda: self._carry_out(word, name))

        async def each() -> None:
            await asyncio.gather(*(one(name) for name in names))

        self._add(each())

    def run(self, name: str, label: str, doing: str, work: Callable[[], Awaitable[None]]) -> None:
        """Have ``work`` done on a qube; returns at once. Meanwhile its row says ``doing``; a failure is told to all
        under ``label``. Refused where too much is under way."""
        self._add(self._watched(name, label, doing, work))

    def _add(self, work: Coroutine[None, None, None]) -> None:
        if len(self._tasks) >= MAX_ACTIONS:
            work.close()
            raise Refused(503, f"{MAX_ACTIONS} actions are under way; wait for one of them")
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watched(self, name: str, label: str, doing: str, work: Callable[[], Awaitable[None]]) -> None:
        self._live.busy(name, doing)
        try:
            await work()
        except CasemateError as error:
            notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
            self._live.notice(f"{label} {name}: {error}{notes}")
        finally:
            self._live.busy(name, "")

    async def _carry_out(self, word: str, name: str) -> None:
        for method, arg in VERBS[word].calls:
            try:
                await self._api.call(method, arg, name)
            except NotHaltedError:
                if word != "restart":
                    raise  # else: another qube that needs its network has started it meanwhile

    async def close(self) -> None:
        """Wait for nothing more. What the daemon was asked for it goes on doing."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

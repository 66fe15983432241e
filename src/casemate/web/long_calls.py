"""Calls of the Admin API that take minutes: each as a task of its own, so that the request which asks is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from casemate.web.admin_api import CALL_SECONDS, AdminApi
from casemate.web.guard import Refused
from casemate.web.live import Live
from casemate.wire.admin import ADMIN
from casemate.wire.errors import CasemateError

MAX_LONG_CALLS = 16
"""Limit of the manager page (calls): builds and backups of one page under way at once."""
TOPIC = "done"
"""What streams are told when one has ended."""


class LongCalls:
    """What is under way. A failure is told to all who look. When the process ends the daemon goes on with its work."""

    def __init__(self, api: AdminApi, live: Live) -> None:
        self._api = api
        self._live = live
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(
        self, what: str, method: str, arg: str = "", dest: str = ADMIN, payload: str = "",
        ended: Callable[[str], None] = lambda _why: None, seconds: float = CALL_SECONDS,
    ) -> None:  # fmt: skip
        """Make a call; returns at once. ``what`` names it in a message that it failed; ``ended`` is called at its end
        with why it failed, or empty text, and after so many ``seconds`` at the latest. Refused where too many are
        under way."""
        if len(self._tasks) >= MAX_LONG_CALLS:
            raise Refused(503, f"{MAX_LONG_CALLS} of these are under way; wait for one of them")
        task = asyncio.create_task(self._make(what, method, arg, dest, payload, ended, seconds))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _make(
        self, what: str, method: str, arg: str, dest: str, payload: str, ended: Callable[[str], None], seconds: float
    ) -> None:
        why = ""
        try:
            await self._api.call(method, arg, dest, payload, seconds)
        except CasemateError as error:
            why = str(error) or type(error).__name__
            self._live.notice(f"{what}: {why}")
        ended(why)
        self._live.tell(TOPIC)

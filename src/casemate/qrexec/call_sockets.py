"""The host's own sockets about calls, and the watch over the policy files. Open from the daemon's start to its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from casemate.host.files import replace_file
from casemate.qrexec.ask import Prompters
from casemate.qrexec.calls import Calls
from casemate.qrexec.evaluate import Allow, Deny, SystemInfo
from casemate.qrexec.files import PolicyFiles
from casemate.qrexec.local import listen
from casemate.qrexec.policy_socket import END, MAX_REQUEST, PolicyRequest, serve_request
from casemate.settings import Settings
from casemate.wire.errors import PolicyError, printable

log = logging.getLogger(__name__)

REQUEST_SECONDS = 10.0
"""Seconds that a client of ``policy.sock`` has for its request."""
LOOK_SECONDS = 0.3
"""Debounce: seconds between a change in a policy directory and the parsing, because editors write a file several
times."""


class CallSockets:
    """Listens on three sockets in the run-time directory and reports when the policy breaks.

    While the policy is broken the file ``policy.broken`` beside the sockets says why: tools of this host that make
    calls look for it, because a caller in a qube is never told.

    ``prompt.sock`` is for the programs that answer ``ask`` rules, ``trace.sock`` for live reports of calls, and
    ``policy.sock`` for qrexec daemons of others that want a decision. The daemon opens all at its start.
    """

    def __init__(
        self,
        settings: Settings,
        policy: PolicyFiles,
        info: Callable[[], SystemInfo],
        prompters: Prompters,
        calls: Calls,
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._info = info
        self._prompters = prompters
        self._calls = calls
        self._server: asyncio.Server | None = None
        self._fd = -1
        self._looking: asyncio.TimerHandle | None = None
        self._said = ""

    async def open(self) -> None:
        """Listen, and log at once if the policy is broken."""
        await self._prompters.start(self._settings.prompt_socket)
        await self._calls.start(self._settings.trace_socket)
        self._server = await listen(self._settings.policy_socket, self._serve, MAX_REQUEST)
        self._look()
        self._fd = self._policy.fileno()
        if self._fd >= 0:
            asyncio.get_running_loop().add_reader(self._fd, self._changed)

    async def close(self) -> None:
        """Stop listening."""
        if self._looking is not None:
            self._looking.cancel()
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
        if self._server is not None:
            self._server.close()
        await self._prompters.close()
        await self._calls.close()
        self._policy.close()
        self._settings.policy_alarm.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(REQUEST_SECONDS):
            data = await reader.readuntil(END)
        writer.write(await serve_request(data, self._policy, self._info, self._prompters.ask, self._told))

    def _told(self, request: PolicyRequest, decision: Allow | Deny) -> None:
        """Log, trace and show a decision made for a qrexec daemon, as those for our own qubes are."""
        source = request.requested_source or request.source
        call = (source, request.service, request.argument, request.target)
        if isinstance(decision, Deny):
            self._calls.not_begun(*call, decision.cause, decision.reason)
        if decision.notify and not request.just_evaluate and not request.assume_yes:
            self._prompters.notify("deny" if isinstance(decision, Deny) else "allow", *call)

    # -- reports of a broken policy

    def _changed(self) -> None:
        """The policy may have changed. Parse it after the debounce, unless a call has it parsed before."""
        asyncio.get_running_loop().remove_reader(self._fd)
        self._looking = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look_again)

    def _look_again(self) -> None:
        self._looking = None
        self._look()
        asyncio.get_running_loop().add_reader(self._fd, self._changed)

    def _look(self) -> None:
        try:
            self._policy.current()
        except PolicyError as error:
            if self._said != str(error):
                log.error("THE POLICY IS BROKEN, every call is denied until this is corrected: %s", error)
                self._alarm(str(error))
            self._said = str(error)
        else:
            if self._said:
                log.warning("the policy is in order again")
            self._settings.policy_alarm.unlink(missing_ok=True)
            self._said = ""

    def _alarm(self, why: str) -> None:
        try:
            replace_file(self._settings.policy_alarm, f"{printable(why, 1000)}\n".encode(), mode=0o644)
        except OSError as error:
            log.warning("%s: %s", self._settings.policy_alarm, error.strerror)


def policy_state(policy: PolicyFiles) -> str:
    """What the host's status says of the policy."""
    try:
        return f"{len(policy.current().rules)} rules"
    except PolicyError as error:
        return f"BROKEN, every call is denied: {error}"

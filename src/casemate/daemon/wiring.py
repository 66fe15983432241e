"""Hands the parts of the daemon to each other: the one place that knows them all."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from casemate.api.context import Context
from casemate.api.events import Subscriptions
from casemate.api.guest_calls import GuestCalls
from casemate.api.method import INTERNAL, MISC
from casemate.api.server import Server
from casemate.daemon.follow import Follower
from casemate.engine.engine import Engine
from casemate.engine.guests import Guests
from casemate.host.files import remove_tree, replace_file
from casemate.host.libvirt_machines import connect
from casemate.host.process import Runner
from casemate.qrexec.files import default_policy
from casemate.settings import Settings
from casemate.store.store import Store

DEFAULT_POLICY = "90-default.policy"
SYSTEM_STATE = Path("/var/lib/casemate")
UPSTREAM_DIRECTORY = Path("/var/run")
"""Where upstream's programs look; the state of the whole host is served there too, where nobody else does."""


class Daemon:
    """Everything casemated is made of, as an async context: entered it serves, left it has let go of all."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def __aenter__(self) -> Daemon:
        settings = self._settings
        policy = settings.policy_dir / DEFAULT_POLICY
        if not policy.exists() or policy.read_text() != default_policy():
            replace_file(policy, default_policy().encode(), mode=0o600)
        remove_tree(settings.state / "spool")  # what an import left that a killed daemon had not finished
        store = Store(settings.store_file)
        self._hypervisor = await connect(settings)
        self.engine = Engine(settings, store, self._hypervisor, Runner())
        await self.engine.reconcile()
        events = Subscriptions(store)
        self.engine.bus.subscribe(events.publish)
        context = Context(store, self.engine, events, self.engine.status, self.engine.broker.allows, Guests(settings))
        self.engine.serve_api = GuestCalls(context).serve
        self.engine.api_services = MISC
        self._server = Server(context)
        self._others = {
            settings.internal_socket: Server(context, INTERNAL),
            settings.misc_socket: Server(context, MISC),
        }
        await self.engine.leases.start(settings.lease_socket)
        await self.engine.desk.open()
        await self._server.start(settings.api_socket)
        for path, server in self._others.items():
            await server.start(path)
        if os.geteuid() == 0 and settings.state == SYSTEM_STATE:
            for server in (self._server, *self._others.values()):
                await server.also(UPSTREAM_DIRECTORY / server.name)
        self._follower = Follower(store)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._follower.close()
        for server in (self._server, *self._others.values()):
            await server.close()
        await self.engine.close()

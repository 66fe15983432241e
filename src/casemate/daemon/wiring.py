"""Hands the parts of the daemon to each other: the one place that knows them all."""

from __future__ import annotations

from types import TracebackType

from casemate.api.server import ApiServer
from casemate.engine.engine import Engine
from casemate.host.libvirt_machines import connect
from casemate.host.process import Runner
from casemate.qrexec.files import install_default_policy
from casemate.settings import Settings
from casemate.store.store import Store


class Daemon:
    """Everything casemated is made of, as an async context: entered it serves, left it has let go of all."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def __aenter__(self) -> Daemon:
        settings = self._settings
        install_default_policy(settings.policy_dir)
        store = Store(settings.store_file)
        runner = Runner()
        hypervisor = await connect(settings)
        self.engine = Engine(settings, store, hypervisor, runner)
        await self.engine.reconcile()
        self._server = ApiServer(settings, store, self.engine)
        self.engine.bus.subscribe(self._server.lifecycle_event)
        await self._server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._server.close()
        await self.engine.close()

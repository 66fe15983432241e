"""A running qube's database follows the store, also when writing it breaks off in the middle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from casemate.engine import database_sync as module
from casemate.engine.database_sync import DatabaseSync
from casemate.engine.guests import Guests
from casemate.engine.states import States
from casemate.host.hypervisor import PowerState
from casemate.qdb.client import QubesDB
from casemate.store.store import Store
from casemate.wire.errors import DisconnectedError
from tests.builders import settings_in, uuid
from tests.component.served_database import served_database

SECONDS = 30.0


class BreakingOff(Guests):
    """Real databases; the first write is carried out, but nobody hears of it."""

    broken = False

    async def change_database(self, name: str, write: Mapping[str, str], remove: list[str]) -> None:
        await super().change_database(name, write, remove)
        if not self.broken:
            self.broken = True
            raise DisconnectedError("broken off")


def test_rules_are_told_of_although_an_attempt_broke_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AGAIN_SECONDS", 0.05)
    settings = settings_in(tmp_path)
    store = Store(tmp_path / "qubes.xml")
    with store.write() as transaction:
        system = transaction.system
        system.add("TemplateVM", "deb", uuid=uuid(1))
        system.add("AppVM", "net", uuid=uuid(2), template="deb")
        system.domains["net"].provides_network = True
        system.add("AppVM", "work", uuid=uuid(3), template="deb")
        system.domains["work"].netvm = system.domains["net"]
    address = store.snapshot().domains["work"].ip
    states = States()
    states.put("net", uuid(2), PowerState.RUNNING)
    path = settings.database_socket("net")
    path.parent.mkdir(parents=True)

    async def main(client: QubesDB) -> None:
        sync = DatabaseSync(store, states, BreakingOff(settings), lambda: None, lambda _domain: [])
        sync.start()
        try:
            with store.write() as transaction:  # what it begins with
                transaction.system.domains["net"].features.set("a", "1")
            told = set()
            end = time.monotonic() + SECONDS
            while f"/qubes-firewall/{address}" not in told and time.monotonic() < end:
                if event := await asyncio.to_thread(client.read_watch, 0.1):
                    told.add(event)
            assert f"/qubes-firewall/{address}/policy" in told, "the first write was carried out"
            assert f"/qubes-firewall/{address}" in told
        finally:
            await sync.close()

    with served_database(path, {}), QubesDB(path) as client:
        client.watch("/qubes-firewall/")
        asyncio.run(main(client))

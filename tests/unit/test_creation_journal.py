"""What a killed daemon left half done is cleaned up by the next, with real pools and a real journal."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from casemate.engine.acceleration import AccelerationProbe
from casemate.engine.accounts import Accounts
from casemate.engine.bus import Bus
from casemate.engine.create import Creator
from casemate.engine.journal import JournalEntry, OperationJournal
from casemate.engine.operations import OperationLocks
from casemate.engine.states import States
from casemate.host.process import Runner
from casemate.model.volumes import Volume
from casemate.settings import Settings
from casemate.storage.drivers import load
from casemate.storage.pools import Pools
from casemate.store.store import Store
from casemate.wire.errors import PoolNotFoundError


class Undefined:
    """The part of a hypervisor that a clean-up uses."""

    def __init__(self) -> None:
        self.uuids: list[UUID] = []

    async def undefine(self, uuid: UUID) -> None:
        self.uuids.append(uuid)


class Rig:
    def __init__(self, directory: Path) -> None:
        settings = Settings(state=directory, run=directory / "run", cache=directory / "cache")
        self.store, self.hypervisor = Store(settings.store_file), Undefined()
        accounts = Accounts(settings, root=False)
        self.pools = Pools(settings, Runner(), self.store, accounts.group, load())
        self.journal = OperationJournal(directory / "intents")
        self.creator = Creator(
            settings, self.store, self.hypervisor, self.pools, OperationLocks(), States(), Bus(), self.journal,  # type: ignore[arg-type]
            accounts, AccelerationProbe(settings, Runner(), self.store),
        )  # fmt: skip

    def volume(self, vid: str) -> Volume:
        return Volume("private", "default", vid, 8 << 20, rw=True, save_on_stop=True)

    def begin(self, kind: str, name: str, uuid: UUID, pool: str = "default") -> None:
        self.journal.begin(JournalEntry(kind, name, str(uuid), ((pool, f"{name}/private"),)))


def test_volumes_that_no_qube_has_are_removed(tmp_path: Path) -> None:
    """A creation that was not saved and a removal that was: the store knows neither qube."""
    rig = Rig(tmp_path)

    async def scenario() -> None:
        for kind, name in (("create", "new"), ("remove", "old")):
            rig.begin(kind, name, uuid4())
            await rig.pools.of(rig.volume(f"{name}/private")).create(rig.volume(f"{name}/private"))
        await rig.creator.clean_up()

    asyncio.run(scenario())
    assert rig.journal.unfinished() == [] and len(rig.hypervisor.uuids) == 2
    assert not list((tmp_path / "pools/default").iterdir())


def test_volumes_of_a_qube_that_the_store_has_stay(tmp_path: Path) -> None:
    """A creation that was saved and a removal that was not."""
    rig, uuid = Rig(tmp_path), uuid4()
    with rig.store.write() as transaction:
        transaction.system.add("TemplateVM", "deb", uuid=uuid)
    volume = rig.volume("deb/private")

    async def scenario() -> None:
        await rig.pools.of(volume).create(volume)
        for kind in ("create", "remove"):
            rig.begin(kind, "deb", uuid)
        await rig.creator.clean_up()
        await rig.pools.of(volume).verify(volume)

    asyncio.run(scenario())
    assert rig.journal.unfinished() == [] and rig.hypervisor.uuids == []


def test_what_cannot_be_cleaned_up_keeps_nobody_from_the_rest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A pool whose driver went away: its entry stays, the next one is done."""
    rig = Rig(tmp_path)
    rig.begin("create", "a", uuid4(), "lost")
    rig.begin("create", "b", uuid4())
    asyncio.run(rig.creator.clean_up())
    assert [entry.name for entry in rig.journal.unfinished()] == ["a"]
    assert "a is not cleaned up yet: No such pool: 'lost'" in caplog.text


def test_a_pool_without_its_driver_is_shown_and_cannot_be_used(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    with rig.store.write() as transaction:
        transaction.system.add_pool("lvm", "lvm_thin", {"volume_group": "vg"})
    assert asyncio.run(rig.pools.room("lvm")) is None
    with pytest.raises(PoolNotFoundError, match="driver lvm_thin, which this host does not have"):
        rig.pools.of(Volume("private", "lvm", "work/private"))


def test_an_entry_that_had_no_name_yet_is_removed(tmp_path: Path) -> None:
    journal = OperationJournal(tmp_path)
    entry = JournalEntry("create", "work", str(UUID(int=7)), (("default", "work/private"),))
    journal.begin(entry)
    (tmp_path / ".create-work.json.0123456789ab.new").write_bytes(b"{")
    assert journal.unfinished() == [entry]
    assert [path.name for path in tmp_path.iterdir()] == ["create-work.json"]

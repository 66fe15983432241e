"""Law 7: a volume that a class lacks is None; storage, XML and creation skip it and know no classes."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import ClassVar

import pytest

import casemate
from casemate.engine.accounts import Accounts
from casemate.engine.machine import TARGETS, machine_spec
from casemate.engine.start_steps import VolumesStep
from casemate.engine.steps import Start
from casemate.host.domain_xml_qemu import qemu_xml
from casemate.host.hypervisor import Disk
from casemate.host.process import Runner
from casemate.model import classes, system
from casemate.model.classes import CLASSES, Disposable, Standalone
from casemate.model.domain import Domain
from casemate.model.properties import Role
from casemate.model.system import System
from casemate.model.volumes import KEPT_PRIVATE, KEPT_ROOT, VOLATILE, VOLUME_NAMES, Volume, VolumeRule
from casemate.settings import Settings
from casemate.storage.drivers import load as load_drivers
from casemate.storage.pool import Image
from casemate.storage.pools import Pools
from casemate.store import layout, reader, writer
from casemate.store.store import Store
from casemate.wire.errors import StorageError, VolumeNotFoundError
from tests.builders import small_system, uuid

SOURCE = Path(casemate.__file__).parent


class Appliance(Domain):
    """A class that did not exist when storage and XML were written: one disk, no more."""

    class_name = "ApplianceVM"
    roles = Role.ANY | Role.MANAGED | Role.LOCAL
    layout: ClassVar[Mapping[str, VolumeRule]] = MappingProxyType({"root": VolumeRule(64 << 20, save_on_stop=True)})


@pytest.fixture
def appliance(monkeypatch: pytest.MonkeyPatch) -> None:
    """The class is known: one entry in the table of classes, nothing else."""
    table = MappingProxyType({**CLASSES, Appliance.class_name: Appliance})
    for module in (classes, system, layout):
        monkeypatch.setattr(module, "CLASSES", table)


LAYOUTS = [(cls, missing) for cls in CLASSES.values() for missing in VOLUME_NAMES]


@pytest.mark.parametrize(("cls", "missing"), LAYOUTS, ids=lambda value: getattr(value, "class_name", value))
def test_each_class_without_each_volume(
    cls: type[Domain], missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Created, stored, read, verified, started, resized, cloned and removed; the volume appears nowhere."""
    if cls.class_name == "AdminVM":
        qube = System.initial().admin
        assert qube.volumes == dict.fromkeys(VOLUME_NAMES)
        return
    small = {name: VolumeRule(16 << 20, rule.rw, rule.snap_on_start, rule.save_on_stop) for name, rule in
             cls.layout.items() if name != missing}  # fmt: skip
    monkeypatch.setattr(cls, "layout", MappingProxyType(small))
    template = _small()
    given = {"template": {"AppVM": "deb", "DispVM": "base"}.get(cls.class_name)}
    qube = template.add(cls.class_name, "lacking", uuid=uuid(77), **given)
    asyncio.run(_through_storage(template, qube, missing, tmp_path))


def _small() -> System:
    """The small system, with disks that take no time to make."""
    system = small_system()
    for base in ("deb", "base"):
        for name in ("root", "private"):
            volume = Volume(name, "default", f"{base}/{name}", 16 << 20, True, save_on_stop=True)
            system.domains[base].set_volume(volume)
    return system


async def _through_storage(system: System, qube: Domain, missing: str, directory: Path) -> None:
    assert qube.volumes[missing] is None
    with pytest.raises(VolumeNotFoundError):
        qube.volume(missing)
    text = writer.write(system)
    mine = text[text.index(b'<property name="name">lacking<') :]
    assert f'<volume name="{missing}"'.encode() not in mine[: mine.index(b"</domain>")]
    assert reader.read(text).domains["lacking"].volumes == qube.volumes
    store = Store(directory / "state" / "qubes.xml")
    store.snapshot()
    settings = Settings(directory / "state", directory / "run", directory / "cache")
    pools = Pools(settings, Runner(), store, None, load_drivers())
    for base in ("deb", "base"):
        for name in ("root", "private"):
            volume = system.domains[base].volume(name)
            await pools.of(volume).create(volume)
    before = {path for path in (directory / "state").rglob("*") if path.is_file()}
    disks = {}
    for name, volume in qube.volumes.items():
        if volume is None or name not in TARGETS:
            continue
        pool = pools.of(volume)
        if volume.save_on_stop:
            await pool.create(volume)
            await pool.verify(volume)
            await pool.resize(volume, volume.size * 2)
        started = await pool.start(volume, None, False)
        disks[name] = Disk(TARGETS[name], name, started.path, started.format)
    made = {path.name.partition(".")[0] for path in (directory / "state").rglob("lacking/*") if path.is_file()}
    assert missing not in made
    if qube.has("kernel"):
        qube.set_text("kernel", "any")
        machine = qemu_xml(machine_spec(settings, qube, disks, "tcg", None), "test-")
        assert (f"<serial>{missing}</serial>" in machine, machine.count("<disk ")) == (False, len(disks))
    for name, volume in qube.volumes.items():
        if volume is not None and name in TARGETS:
            await pools.of(volume).stop(volume)
            await pools.of(volume).remove(volume)
    after = {path for path in (directory / "state").rglob("*") if path.is_file()}
    assert after == before, "something is left"


def test_a_start_and_a_stop_skip_what_is_none(tmp_path: Path) -> None:
    """The step of a start asks no pool for a volume that is not there."""
    asked: list[str] = []

    class Pool:
        async def start(self, volume: Volume, owner: object, shared: bool, image: str | None = None) -> Image:
            asked.append(f"start {volume.name}")
            return Image(tmp_path / volume.name, "raw")

        async def stop(self, volume: Volume) -> None:
            asked.append(f"stop {volume.name}")

    settings = Settings(tmp_path, tmp_path / "run", tmp_path / "cache")
    step = VolumesStep(SimpleNamespace(of=lambda volume: Pool()), Accounts(settings, root=False))  # type: ignore[arg-type]
    qube = SimpleNamespace(klass="AppVM", volumes={"root": None, "private": _small().domains["base"].volume("private")})
    qube.volumes |= {"volatile": None, "kernel": None}
    start = Start(qube, lambda event: None)  # type: ignore[arg-type]
    asyncio.run(step.up(start))
    assert asked == ["start private"] and list(start.disks) == ["private"]
    asyncio.run(step.down(qube))  # type: ignore[arg-type]
    assert asked == ["start private", "stop private"]


def test_a_volume_that_should_be_there_is_missed(tmp_path: Path) -> None:
    """None is absent; but what is configured and gone is an error, not absent."""
    system = small_system()
    store = Store(tmp_path / "state" / "qubes.xml")
    store.snapshot()
    pools = Pools(
        Settings(tmp_path / "state", tmp_path / "run", tmp_path / "cache"), Runner(), store, None, load_drivers()
    )
    volume = system.domains["work"].volume("private")
    with pytest.raises(StorageError):
        asyncio.run(pools.of(volume).verify(volume))


@pytest.mark.usefixtures("appliance")
def test_a_new_class_needs_no_change_in_storage_or_xml(tmp_path: Path) -> None:
    path = tmp_path / "qubes.xml"
    store = Store(path)
    with store.write() as transaction:
        made = transaction.system.add("ApplianceVM", "box", uuid=uuid(9))
        assert [name for name, volume in made.volumes.items() if volume is not None] == ["root"]
    again = Store(path).snapshot().domains["box"]
    assert again.klass == "ApplianceVM" and again.volumes["private"] is None and again.volumes["volatile"] is None
    assert again.volume("root").size == 64 << 20
    system = _small()
    asyncio.run(
        _through_storage(system, system.add("ApplianceVM", "lacking", uuid=uuid(9)), "private", tmp_path / "more")
    )


def test_storage_and_xml_know_no_classes() -> None:
    """The names of classes appear in the model; what stores, defines or starts disks must do without."""
    named = {cls.class_name for cls in CLASSES.values()} | {cls.__name__ for cls in (Standalone, Disposable)}
    for path in (*SOURCE.glob("storage/*.py"), *SOURCE.glob("host/domain_xml*.py"), SOURCE / "engine/machine.py",
                 SOURCE / "store/store.py", SOURCE / "store/history.py"):  # fmt: skip
        words = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)
                 and isinstance(node.value, str)}  # fmt: skip
        assert not named & words, path
    assert KEPT_ROOT.save_on_stop and KEPT_PRIVATE.save_on_stop and not VOLATILE.save_on_stop

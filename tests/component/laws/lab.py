"""A daemon on libvirt's test driver: the real API, engine, store and adapter; no QEMU, no disks worth the name.

``python -m tests.component.laws.lab`` serves the settings of its environment, as casemated does, until SIGTERM. Its
machines live and die with it. On standard output it says ``ready``, then after each line of standard input how often
libvirt was told to define, undefine and start a machine so far, and the names that it has now.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import libvirt

from casemate.api.server import Server
from casemate.daemon.follow import Follower
from casemate.daemon.wiring import begin, build, end
from casemate.engine.acceleration import AccelerationProbe
from casemate.engine.accounts import Accounts
from casemate.engine.links import LinkSpec
from casemate.host.acceleration import Acceleration
from casemate.host.domain_xml import child, head, to_text
from casemate.host.hypervisor import MachineSpec
from casemate.host.libvirt_connection import EventThread
from casemate.host.libvirt_machines import LibvirtMachines
from casemate.host.process import Runner
from casemate.model.system import PoolConfig
from casemate.model.volumes import Volume
from casemate.settings import Settings, load
from casemate.storage.driver import DIR_PATH, Driver, Opening
from casemate.storage.pool import Owner
from casemate.store.store import Store
from casemate.wire.errors import DisconnectedError, StorageError
from tests.fakes.wires import FakeWires

MARKER = "<domain type='test'><name>marker</name><memory>1</memory><vcpu>1</vcpu><os><type>hvm</type></os></domain>"


class TestDriver(LibvirtMachines):
    """The adapter on ``test:///default``: what the driver cannot do is said in its own words, nothing else."""

    undefine_flags = 0
    defined = undefined = started = 0
    marked = threading.Event()

    def _xml(self, spec: MachineSpec) -> str:
        machine = head(spec, self._prefix, "test")
        machine.remove(machine.find("memoryBacking"))
        child(child(machine, "os"), "type", "hvm")
        return to_text(machine)

    def _create(self, domain: Any) -> None:
        domain.create()
        domain.suspend()

    def _hear(self, connection: Any, domain: Any, event: int, detail: int, opaque: Any) -> None:
        """Count what libvirt itself says it was told."""
        if domain.name().startswith(self._prefix):
            TestDriver.defined += event == libvirt.VIR_DOMAIN_EVENT_DEFINED
            TestDriver.started += event == libvirt.VIR_DOMAIN_EVENT_STARTED
            TestDriver.undefined += event == libvirt.VIR_DOMAIN_EVENT_UNDEFINED
        elif domain.name() == "marker" and event == libvirt.VIR_DOMAIN_EVENT_UNDEFINED:
            self.marked.set()
        super()._hear(connection, domain, event, detail, opaque)

    async def names(self) -> list[str]:
        """What libvirt lists of ours, asked without our adapter, once all its events so far have come."""
        self.marked.clear()
        self._libvirt.connection.defineXML(MARKER).undefine()
        await asyncio.to_thread(self.marked.wait, 10)
        return sorted(
            d.name().removeprefix(self._prefix)
            for d in self._libvirt.connection.listAllDomains()
            if d.name().startswith(self._prefix)
        )

    async def forget(self, name: str) -> None:
        """Undefine a machine behind everybody's back."""
        self._libvirt.connection.lookupByName(self._prefix + name).undefine()


class LabLinks:
    """Links whose agents answer at once, and whose guests power off when asked."""

    def __init__(self) -> None:
        self.names: dict[str, LinkSpec] = {}
        self.machines: TestDriver | None = None
        self.uuids: dict[str, Any] = {}

    def subscribe(self, on_death: object) -> None:
        """No link of the lab dies."""

    def has(self, name: str) -> bool:
        return name in self.names

    async def start(self, spec: LinkSpec) -> None:
        self.names[spec.name] = spec

    def adopt(self, name: str) -> bool:
        return name in self.names

    async def stop(self, name: str) -> None:
        self.names.pop(name, None)

    def release(self) -> None:
        self.names.clear()

    async def silence(self, name: str) -> str:
        return ""

    async def ask(self, name: str, timeout: float, **request: Any) -> dict[str, Any]:
        if name not in self.names:
            raise DisconnectedError(f"the link of {name} is gone")
        return {"ready": True}


class TouchPool:
    """Volumes that are empty files."""

    format = "raw"

    def __init__(self, opening: Opening) -> None:
        self._directory = opening.directory

    def path(self, volume: Volume) -> Path:
        return self._directory / volume.vid

    def has_left_overs(self, volume: Volume) -> bool:
        return not volume.save_on_stop and self.path(volume).exists()

    async def create(self, volume: Volume) -> None:
        path = self.path(volume)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    async def import_image(self, volume: Volume, source: Path) -> None:
        await self.create(volume)

    async def clone(self, source: Volume, target: Volume, running: bool = False) -> None:
        await self.create(target)

    def start_content(self, volume: Volume) -> None:
        return None

    def images(self) -> list[str]:
        return []

    async def start(self, volume: Volume, owner: Owner | None, shared: bool, image: str | None = None) -> Any:
        if volume.save_on_stop and not self.path(volume).exists():
            raise StorageError(f"volume {volume.vid} is missing")
        if not volume.save_on_stop:
            await self.create(volume)
        return _Image(self.path(volume))

    async def stop(self, volume: Volume) -> None:
        if not volume.save_on_stop:
            await self.remove(volume)

    async def remove(self, volume: Volume) -> None:
        self.path(volume).unlink(missing_ok=True)
        try:
            self.path(volume).parent.rmdir()
        except OSError:
            pass

    async def resize(self, volume: Volume, size: int) -> None:
        pass

    def revisions(self, volume: Volume) -> list[str]:
        return []

    async def revert(self, volume: Volume, revision: str) -> None:
        raise StorageError("there are no older states")

    def is_outdated(self, volume: Volume) -> bool:
        return False

    async def usage(self, volume: Volume) -> int:
        return 0

    async def verify(self, volume: Volume) -> None:
        pass


class _Image:
    format = "raw"
    readonly = scratch = own_layers = False
    backing: tuple[()] = ()

    def __init__(self, path: Path) -> None:
        self.path = path


async def serve(settings: Settings) -> None:
    """As casemate.daemon.wiring does, with the parts of the lab."""
    kernel = settings.state / "kernels/none"
    kernel.mkdir(parents=True, exist_ok=True)
    (kernel / "vmlinuz").touch()
    store = Store(settings.store_file)
    with store.write() as transaction:
        system = transaction.system
        if "touch" not in system.pools:
            system.add_pool("touch", "touch", {})
            system.set_text("default_pool", "touch")
            system.set_text("default_kernel", "none")
    assert isinstance(system.pools["touch"], PoolConfig)
    EventThread.start()
    # As with a daemon of libvirt: machines have no files as their memory, so there are no warm images and no forks.
    settings = Settings(settings.state, settings.run, settings.cache, hypervisor="system", prefix=settings.prefix)
    machines = TestDriver("test:///default", settings.prefix)
    await machines.open()
    runner = Runner()
    acceleration = AccelerationProbe(settings, runner, store)
    acceleration.found = Acceleration("tcg", "libvirt's test driver")
    # Machines of the test driver have no files that could belong to anybody: no accounts.
    parts = build(
        settings, store, machines, runner,
        accounts=Accounts(settings, root=False), acceleration=acceleration, links=LabLinks(),  # type: ignore[arg-type]
        drivers={"touch": Driver("touch", "Empty files.", (DIR_PATH,), TouchPool)},  # type: ignore[arg-type]
        wires=FakeWires(),
    )  # fmt: skip
    await begin(settings, parts)
    server = Server(parts.context)
    await server.start(settings.api_socket)
    follower = Follower(store)
    looking = asyncio.create_task(_look(store, machines))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    commands = asyncio.create_task(_answer(machines, looking))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await stop.wait()
    for task in (commands, looking):
        task.cancel()
    if looking.done() and not looking.cancelled():
        looking.result()
    follower.close()
    await server.close()
    await end(parts)


async def _look(store: Store, machines: TestDriver) -> None:
    """Ask libvirt for every qube all the time: the nearest that a watcher can come."""
    while True:
        await machines.list()
        for domain in list(store.snapshot().domains.values()):
            await machines.info(domain.uuid)
        await asyncio.sleep(0)


async def _answer(machines: TestDriver, looking: asyncio.Task[None]) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := (await reader.readline()).decode().split():
        if line[0] == "forget":
            await machines.forget(line[1])
        if looking.done():
            looking.result()
        names = await machines.names()
        sys.stdout.write(f"{TestDriver.defined} {TestDriver.undefined} {TestDriver.started} {','.join(names)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(serve(load()))

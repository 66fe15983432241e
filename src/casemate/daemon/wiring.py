"""Makes the parts of the daemon and hands them to each other: the one place that knows them all.

One file although it is long: who gets what is read in one place, in the order in which things are made.

``build`` makes the parts without side effects outside this process, ``Parts`` is the record of them, and ``Daemon``
opens and closes them in order. A part gets what it uses by its constructor. Four arrows point up, from a part to one
that is made after it; each is a subscription or a handler, set once while the daemon is built::

    Hypervisor ── machine events ──▶ Lifecycle        Links ── a link ended ──▶ Lifecycle
    Lifecycle ──── after a halt ───▶ Disposables      CallListener ── requests ──▶ Broker
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from casemate.api.context import Context
from casemate.api.events import Subscriptions
from casemate.api.guest_calls import GuestCalls
from casemate.api.methods import INTERNAL, MISC
from casemate.api.server import Server
from casemate.backup.profile import directories as backup_profiles
from casemate.daemon.autostart import Autostart
from casemate.daemon.follow import Follower
from casemate.daemon.status import HostStatus
from casemate.devices import load as device_classes
from casemate.devices.device_class import Opening
from casemate.engine.acceleration import AccelerationProbe
from casemate.engine.accounts import Accounts
from casemate.engine.backups import Backups
from casemate.engine.bus import Bus
from casemate.engine.create import Creator
from casemate.engine.database_sync import DatabaseSync
from casemate.engine.devices import Devices
from casemate.engine.disposable_leases import LeaseServer
from casemate.engine.disposables import Disposables
from casemate.engine.figures import Figures
from casemate.engine.firewall import Firewalls
from casemate.engine.forks import Forks
from casemate.engine.guests import Guests
from casemate.engine.journal import OperationJournal
from casemate.engine.lifecycle import Lifecycle
from casemate.engine.links import Links
from casemate.engine.machine import TARGETS
from casemate.engine.network import Network, NetworkStep
from casemate.engine.network_report import NetworkReport
from casemate.engine.operations import OperationLocks
from casemate.engine.possible import Possible
from casemate.engine.power import Power
from casemate.engine.preloads import Preloads
from casemate.engine.qube_files import QubeFiles
from casemate.engine.reconcile import reconcile
from casemate.engine.snapshots import Snapshots
from casemate.engine.spool import clear as clear_spool
from casemate.engine.start_marks import StartMarks
from casemate.engine.start_steps import AgentStep, DirectoryStep, LinkStep, MachineStep, VolumesStep, host_timezone
from casemate.engine.states import States
from casemate.engine.template_builds import TemplateBuilds
from casemate.engine.templates import Templates
from casemate.engine.upstream_databases import UpstreamDatabases
from casemate.engine.volumes import Volumes
from casemate.engine.warm_builds import WarmBuilds
from casemate.engine.warm_images import WarmImages
from casemate.engine.wires import NoWires, Wires
from casemate.host import memory
from casemate.host.files import replace_file
from casemate.host.hypervisor import Hypervisor
from casemate.host.kernel_devices import KernelDevices
from casemate.host.libvirt_machines import connect
from casemate.host.orphans import is_subreaper, watch_orphans
from casemate.host.process import Runner
from casemate.host.room.client import RoomWires, open_room
from casemate.network.ways_out import WaysOut
from casemate.qrexec.ask import Prompters
from casemate.qrexec.broker import Broker
from casemate.qrexec.call_sockets import CallSockets
from casemate.qrexec.calls import Calls
from casemate.qrexec.decide import API_SERVICES, Permissions
from casemate.qrexec.files import PolicyFiles, delivered_policies
from casemate.qrexec.host_service import run_on_host
from casemate.qrexec.listener import CallListener
from casemate.qrexec.system import Systems
from casemate.settings import Settings
from casemate.storage.driver import Driver
from casemate.storage.drivers import load as load_drivers
from casemate.storage.pools import Pools
from casemate.store.store import Store
from casemate.wire import upstream_paths

SYSTEM_STATE = Path("/var/lib/casemate")
UPSTREAM_DIRECTORY = Path("/var/run")
"""Where upstream's programs look. The state of the whole host is served there too; any other state is not."""


@dataclass(frozen=True)
class Parts:
    """The parts that have a beginning or an end, and the API's context, which refers to the rest."""

    context: Context
    hypervisor: Hypervisor
    pools: Pools
    links: Links
    listener: CallListener
    devices: Devices
    lifecycle: Lifecycle
    creator: Creator
    disposables: Disposables
    broker: Broker
    call_sockets: CallSockets
    leases: LeaseServer
    figures: Figures
    autostart: Autostart
    database_sync: DatabaseSync
    preloads: Preloads
    images: WarmImages
    forks: Forks
    snapshots: Snapshots
    builds: WarmBuilds
    network: Network
    upstream_databases: UpstreamDatabases


def build(
    settings: Settings,
    store: Store,
    hypervisor: Hypervisor,
    runner: Runner,
    *,
    accounts: Accounts | None = None,
    acceleration: AccelerationProbe | None = None,
    links: Links | None = None,
    drivers: Mapping[str, Driver] | None = None,
    wires: Wires | None = None,
    upstream_run: Path | None = None,
) -> Parts:
    """All parts, made and joined; nothing is opened yet. Some parts can be given instead, by a test's own daemon."""
    accounts = accounts or Accounts(settings, root=os.geteuid() == 0)
    acceleration = acceleration or AccelerationProbe(settings, runner, store)
    links = links or Links(settings, runner)
    drivers = drivers or load_drivers()
    wires = wires or NoWires("nobody gave this daemon any")

    # What is known: the stored system, the states of qubes, the policy.
    bus, states, locks = Bus(), States(), OperationLocks()
    pools = Pools(settings, runner, store, accounts.group, drivers)
    policy = PolicyFiles(settings.policy_dir, settings.policy_run_dir)
    systems = Systems(store.snapshot, lambda name: states.of(name).value)

    # What is done to qubes.
    listener = CallListener(settings)
    opening = Opening(KernelDevices(), hypervisor, frozenset(TARGETS.values()))
    devices = Devices(store, bus, states, locks, accounts, device_classes(), opening)
    files = QubeFiles(store.path.parent / "qubes")
    firewalls = Firewalls(files, bus.say)
    network = Network(store, wires, hypervisor, accounts, WaysOut(settings, runner, accounts.room), firewalls)
    bus.subscribe(network.heard)
    link = LinkStep(settings, links, listener, accounts, firewalls.rules_or_none)
    upstream_databases = UpstreamDatabases(settings, upstream_run)
    possible = Possible(settings.state / "kernels")
    steps = (
        VolumesStep(pools, accounts),
        DirectoryStep(settings, accounts),
        NetworkStep(network),
        MachineStep(settings, hypervisor, states, acceleration, accounts, devices.controllers, possible),
        devices,
        link,
        upstream_databases,
        AgentStep(hypervisor, links),
    )
    images = WarmImages(settings, store, hypervisor, pools, acceleration, devices.controllers)
    lifecycle = Lifecycle(store, hypervisor, links, bus, states, locks, StartMarks(settings), steps, link, images)
    guests = Guests(settings)
    database_sync = DatabaseSync(store, states, guests, host_timezone, firewalls.rules_or_none)
    bus.subscribe(database_sync.heard)
    power = Power(store, hypervisor, links, bus, states, locks, lifecycle, guests)
    journal = OperationJournal(settings.state / "intents")
    creator = Creator(settings, store, hypervisor, pools, locks, states, bus, journal, accounts, acceleration)
    disposables = Disposables(store, creator, power, states)
    lifecycle.after_halt.append(disposables.remove_halted)

    volumes = Volumes(store, pools, locks, states, hypervisor, guests)
    preloads = Preloads(
        store, states, bus, power, disposables, guests, volumes.is_outdated, memory.available, images.has
    )
    bus.subscribe(preloads.heard)
    images.on_made = preloads.look
    builds = WarmBuilds(store, states, power, creator, disposables, guests, images, memory.available)
    preloads.before_none = builds.give_up

    forks = Forks(
        settings, store, hypervisor, states, locks, links, pools, lifecycle, disposables, devices, firewalls, images,
        memory.available,
    )  # fmt: skip
    snapshots = Snapshots(settings, hypervisor, pools, forks)

    report = NetworkReport(store, network, firewalls, states)

    # The Admin API.
    events = Subscriptions(store)
    bus.subscribe(events.publish)
    context = Context(
        store=store,
        events=events,
        states=states,
        power=power,
        qubes=creator,
        disposables=preloads,
        warm=builds,
        forks=forks,
        snapshots=snapshots,
        volumes=volumes,
        pools=pools,
        devices=devices,
        templates=TemplateBuilds(Templates(settings, runner, store, creator, volumes, files, accounts), bus.say),
        host=HostStatus(settings, acceleration, states, policy, accounts, runner, report, preloads, images),
        permissions=Permissions(policy, systems),
        guests=guests,
        backups=Backups(
            settings, store, states, volumes, files, runner, guests, bus.say, backup_profiles(settings.state)
        ),
        firewalls=firewalls,
        policy=policy,
        network=report,
    )

    # Calls of qubes. The host's services are the API's methods and the programs of the administrator.
    guest_calls = GuestCalls(context)

    async def serve_on_host(stream: socket.socket, source: str, service: str, argument: str, target: str) -> None:
        if service.startswith(API_SERVICES) or service in MISC:
            await guest_calls.serve(stream, source, service, argument, target)
        else:
            await run_on_host(settings, runner, stream, source, service, argument, target)

    calls, prompters = Calls(), Prompters(settings.state / "prompter", runner)
    broker = Broker(
        settings, listener, policy, systems, power, preloads, serve_on_host,
        prompters.ask, calls, prompters.notify, links.silence,
    )  # fmt: skip
    return Parts(
        context=context,
        hypervisor=hypervisor,
        pools=pools,
        links=links,
        listener=listener,
        devices=devices,
        lifecycle=lifecycle,
        creator=creator,
        disposables=disposables,
        broker=broker,
        call_sockets=CallSockets(settings, policy, systems, prompters, calls),
        leases=LeaseServer(disposables.end),
        figures=Figures(hypervisor, states, lifecycle.missed),
        autostart=Autostart(settings, store.snapshot, power.start),
        database_sync=database_sync,
        preloads=preloads,
        images=images,
        builds=builds,
        forks=forks,
        snapshots=snapshots,
        network=network,
        upstream_databases=upstream_databases,
    )


async def begin(settings: Settings, parts: Parts) -> None:
    """Adopt what an earlier daemon left, then follow what happens by itself. Nobody is served before this."""
    await reconcile(
        settings,
        parts.context.store,
        parts.hypervisor,
        parts.pools,
        parts.lifecycle,
        parts.creator,
        parts.disposables,
    )
    await _take_over_network(parts)
    await parts.forks.recover()
    await parts.images.open(parts.snapshots.open())
    parts.upstream_databases.refresh(parts.context.states.all())
    parts.figures.start()
    parts.database_sync.start()
    await parts.devices.watch()


async def _take_over_network(parts: Parts) -> None:
    found, system = await parts.hypervisor.nics(), parts.context.store.snapshot()
    running = (system.domains[name] for name in parts.context.states.all() if name in system.domains)
    await parts.network.start({domain.name: found.get(domain.uuid, ()) for domain in running})


async def end(parts: Parts) -> None:
    """Let go of everything; qubes and their links go on. In the order opposite to use: callers first."""
    await parts.autostart.close()
    await parts.builds.close()
    await parts.preloads.close()
    await parts.network.close()
    await parts.database_sync.close()
    parts.figures.close()
    parts.devices.close()
    await parts.leases.close()
    await parts.call_sockets.close()
    await parts.listener.close_all()
    await parts.broker.close()
    await parts.lifecycle.close()
    parts.links.release()
    await parts.hypervisor.close()


async def _open_host(settings: Settings, runner: Runner, accounts: Accounts) -> tuple[Hypervisor, Wires]:
    """Machines and wires. With libvirt embedded both are in the wire room; a libvirt daemon has machines alone."""
    if settings.hypervisor != "embed":
        why = f"libvirt is a daemon here (CASEMATE_HYPERVISOR={settings.hypervisor}), so taps would be in its namespace"
        return await connect(settings), NoWires(why)
    machines, wires = await open_room(settings, runner, accounts.room)
    if is_subreaper():
        # A QEMU becomes ours when the room's process, which started it, is killed.
        watch_orphans(asyncio.get_running_loop())
    return machines, wires


def _is_of_the_whole_host(settings: Settings) -> bool:
    """Whether this is the daemon that upstream's programs mean: root's, of the default state."""
    return os.geteuid() == 0 and settings.state == SYSTEM_STATE


def _upstream_run(settings: Settings) -> Path | None:
    """Upstream's run-time directory, made for this boot; None where ``casemate interop install`` was not run."""
    try:
        laid_out = upstream_paths.MARK in Path(upstream_paths.RELEASE).read_text("utf-8", "replace")
    except OSError:
        laid_out = False
    if not laid_out or not _is_of_the_whole_host(settings):
        return None
    directory = Path(upstream_paths.RUN)
    directory.mkdir(mode=0o775, exist_ok=True)
    directory.chmod(0o775)  # whatever the umask was: tools of the group's members lock files there
    try:
        shutil.chown(directory, group=upstream_paths.GROUP)
    except LookupError:
        pass  # there is no such group: then only root has business there
    return directory


class Daemon:
    """Everything casemated is made of, as an async context: entered it serves, left it has let go of all."""

    def __init__(self, settings: Settings, given: Mapping[Path, socket.socket] | None = None) -> None:
        """``given``: listening sockets by their paths, which systemd made before it started us."""
        self._settings = settings
        self._given = given or {}

    async def __aenter__(self) -> Daemon:
        settings = self._settings
        for name, text in delivered_policies().items():
            policy = settings.policy_dir / name
            if not policy.exists() or policy.read_text() != text:
                replace_file(policy, text.encode(), mode=0o600)
        clear_spool(settings.state)
        store = Store(settings.store_file)
        runner, accounts = Runner(), Accounts(settings, root=os.geteuid() == 0)
        hypervisor, wires = await _open_host(settings, runner, accounts)
        self._parts = parts = build(
            settings, store, hypervisor, runner, accounts=accounts, wires=wires, upstream_run=_upstream_run(settings)
        )
        if isinstance(wires, RoomWires):
            wires.process.on_restart.append(parts.network.room_restarted)
        await begin(settings, parts)
        self._server = Server(parts.context)
        self._others = {
            settings.internal_socket: Server(parts.context, INTERNAL),
            settings.misc_socket: Server(parts.context, MISC),
        }
        await parts.leases.start(settings.lease_socket)
        await parts.call_sockets.open()
        await self._server.start(settings.api_socket, self._given_at(settings.api_socket))
        for path, server in self._others.items():
            await server.start(path)
        if _is_of_the_whole_host(settings):
            for server in (self._server, *self._others.values()):
                path = UPSTREAM_DIRECTORY / server.name
                await server.also(path, self._given_at(path))
        self._follower = Follower(store)
        # Last: what these three start may make calls at once.
        await parts.preloads.start()
        parts.builds.start()
        parts.autostart.begin()
        return self

    def _given_at(self, path: Path) -> socket.socket | None:
        return self._given.get(path.parent.resolve() / path.name)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._follower.close()
        for server in (self._server, *self._others.values()):
            await server.close()
        await end(self._parts)

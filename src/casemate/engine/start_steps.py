"""The steps of a start: volumes, directory of sockets, machine, link, agent. The devices' step is in ``devices.py``.

Each can take itself down after a crash of the daemon, with nothing but the qube's entry in the store (``steps.Step``).
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from casemate.engine.acceleration import AccelerationProbe
from casemate.engine.accounts import Accounts
from casemate.engine.content import database_content
from casemate.engine.links import Links, LinkSpec
from casemate.engine.machine import TARGETS, machine_spec
from casemate.engine.possible import Possible
from casemate.engine.states import States
from casemate.engine.steps import Start
from casemate.engine.warm_image import is_being_made, mounts_later
from casemate.host.hypervisor import Disk, GuestMemory, Hypervisor
from casemate.model.classes import Template
from casemate.model.domain import Domain
from casemate.model.qube_settings import MACHINE_PROPERTIES
from casemate.network.keys import Rules
from casemate.settings import Settings
from casemate.storage.pools import Pools
from casemate.wire import events as ev
from casemate.wire.errors import DisconnectedError, StartError, printable
from casemate.wire.link import FORK_KEY, NONE_YET, NOTHING_MOUNTED, PRIVATE_LATER, RENEWED

_WARM_SECONDS = 30
"""Seconds that an agent has that goes on from a warm image: it needs a tenth of one. After that the qube boots."""
CONSOLE_LINES = 8
"""Last lines of a qube's console that an error of its start shows."""


class VolumesStep:
    """The qube's disks: overlay of the template's root, private, fresh volatile."""

    def __init__(self, pools: Pools, accounts: Accounts) -> None:
        self._pools = pools
        self._accounts = accounts

    async def up(self, start: Start) -> None:
        """Prepare every volume that the class has."""
        domain = start.domain
        owner = self._accounts.of(domain)
        for name, volume in domain.volumes.items():
            if volume is None or name not in TARGETS:
                continue
            # A template's root and a disposable template's private volume: others run on them meanwhile.
            shared = (name == "root" and domain.klass == Template.class_name) or (
                name == "private" and bool(getattr(domain, "template_for_dispvms", False))
            )
            image = start.image.key if start.image is not None and not volume.save_on_stop else None
            source = await self._pools.of(volume).start(volume, owner, shared, image)
            start.disks[name] = Disk(
                target=TARGETS[name],
                serial=name,
                path=source.path,
                format=source.format,
                readonly=source.readonly,
                backing=source.backing,
                scratch=source.scratch,
                own_layers=source.own_layers,
            )

    async def down(self, domain: Domain) -> None:
        """Merge what is kept; throw overlays and volatile volumes away."""
        for name, volume in domain.volumes.items():
            if volume is not None and name in TARGETS:
                await self._pools.of(volume).stop(volume)


class DirectoryStep:
    """The directory of the qube's sockets, owned by the user that runs the qube."""

    def __init__(self, settings: Settings, accounts: Accounts) -> None:
        self._settings = settings
        self._accounts = accounts

    async def up(self, start: Start) -> None:
        """Make it, empty."""
        directory = self._settings.qube_run(start.domain.name)
        shutil.rmtree(directory, ignore_errors=True)
        directory.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        directory.mkdir(mode=0o700)
        owner = self._accounts.of(start.domain)
        if owner is not None:
            os.chown(directory, owner.uid, owner.gid)

    async def down(self, domain: Domain) -> None:
        """Remove it."""
        shutil.rmtree(self._settings.qube_run(domain.name), ignore_errors=True)


def _check_possible(possible: Possible, domain: Domain) -> None:
    """StartError for what cannot do, before libvirt or the guest's kernel fail in words of their own."""
    for name in ("memory", "vcpus", "kernel"):
        if why := possible.refusal(name, domain.text(name)):
            raise StartError(f"Cannot start {domain.name}: {why} (property {name})")


class MachineStep:
    """The virtual machine itself, created paused."""

    def __init__(
        self,
        settings: Settings,
        hypervisor: Hypervisor,
        states: States,
        acceleration: AccelerationProbe,
        accounts: Accounts,
        controllers: Callable[[Domain], frozenset[str]],
        possible: Possible,
    ) -> None:
        """``controllers``: those that a qube's machine must have for its devices."""
        self._settings = settings
        self._hypervisor = hypervisor
        self._states = states
        self._acceleration = acceleration
        self._accounts = accounts
        self._controllers = controllers
        self._possible = possible

    async def up(self, start: Start) -> None:
        """Define it anew and create it."""
        domain = start.domain
        _check_possible(self._possible, domain)
        kind = (await self._acceleration.get()).kind
        owner, controllers = self._accounts.of(domain), self._controllers(domain)
        spec = machine_spec(self._settings, domain, start.disks, kind, owner, controllers)
        if start.image is not None:
            # What keeps data shares no memory with other qubes, not even what none of them has written.
            spec = replace(spec, memory=GuestMemory(start.image.directory, copied=mounts_later(domain)))
        elif is_being_made(domain):
            later = f" {PRIVATE_LATER}" if mounts_later(domain) else ""
            spec = replace(spec, memory=GuestMemory(), cmdline=f"{spec.cmdline}{later}")
        elif start.memory_is_file:
            spec = replace(spec, memory=GuestMemory())  # so that it can be forked
        start.say(ev.DomainPreSpawn(domain.name, start.guid))
        await self._hypervisor.start_paused(spec)
        info = await self._hypervisor.info(domain.uuid)
        if info is not None:
            self._states.created(info, f"{time.time():.2f}")  # the state stays TRANSIENT until the start is complete
        for name in MACHINE_PROPERTIES:
            start.say(ev.PropertyChanged(domain.name, name))
        start.say(ev.DomainSpawn(domain.name, start.guid))

    async def down(self, domain: Domain) -> None:
        """Destroy it."""
        await self._hypervisor.destroy(domain.uuid)


class CallSocket(Protocol):
    """The socket at which a running qube's link asks for the qube's calls."""

    async def open(self, name: str) -> None:
        """Listen for the qube's calls."""

    async def close(self, name: str) -> None:
        """Stop listening; nothing to do when nobody listens."""


class LinkStep:
    """The process that holds the qube's channel, and the socket at which it asks for calls."""

    def __init__(self, settings: Settings, links: Links, calls: CallSocket, accounts: Accounts, rules: Rules) -> None:
        self._settings = settings
        self._rules = rules
        self._links = links
        self._calls = calls
        self._accounts = accounts

    async def up(self, start: Start) -> None:
        """Open the call socket, then start the link with the content of the qube's database."""
        fork = start.image.key if start.image is not None and start.image.is_fork else None
        await self.attach(start.domain, fork)
        start.say(ev.DatabaseCreated(start.domain.name))

    async def attach(self, domain: Domain, fork: str | None = None) -> None:
        """Give a running qube its link (at start, and again when one was killed). ``fork``: its guest is a copy of
        another's by this name, and does not know it yet."""
        await self._calls.open(domain.name)
        content = database_content(domain, os.urandom(64), host_timezone(), self._rules)
        if fork is not None:
            content[FORK_KEY] = f"{fork} {domain.uuid}"
        owner = self._accounts.of(domain)
        await self._links.start(
            LinkSpec(
                name=domain.name,
                directory=self._settings.qube_run(domain.name),
                default_user=domain.default_user,
                database=content,
                uid=owner.uid if owner is not None else None,
                gid=owner.gid if owner is not None else None,
            )
        )

    async def reopen(self, domain: Domain) -> None:
        """Open the call socket of a qube whose link is still there from an earlier daemon."""
        await self._calls.open(domain.name)

    async def down(self, domain: Domain) -> None:
        """End the link and close the call socket."""
        await self._links.stop(domain.name)
        await self._calls.close(domain.name)


class AgentStep:
    """Lets the machine run and waits for its agent."""

    def __init__(self, hypervisor: Hypervisor, links: Links) -> None:
        self._hypervisor = hypervisor
        self._links = links

    async def up(self, start: Start) -> None:
        """Let the machine run and wait for its agent; a StartError shows the end of its console."""
        domain = start.domain
        start.say(ev.DomainPreUnpaused(domain.name))
        await self._hypervisor.resume(domain.uuid)
        start.say(ev.DomainUnpaused(domain.name))
        try:
            within = domain.qrexec_timeout  # the link waits so long; 5 s more, so that its answer comes first
            if start.image is not None:
                within = min(within, _WARM_SECONDS)
            answer = await self._links.ask(domain.name, within + 5, op="ready", within=within)
        except DisconnectedError as error:
            answer = {"ready": False, "why": str(error)}
        if answer.get("ready") is not True:
            why = printable(str(answer.get("why", "its agent does not answer")))
            raise StartError(f"Cannot start {domain.name}: {why}{await self._console(domain.name)}")
        expected = NONE_YET if is_being_made(domain) else RENEWED if start.image is not None else None
        told = answer.get("agent")
        if expected == NONE_YET and mounts_later(domain):
            expected = NOTHING_MOUNTED
        if expected is not None and not (isinstance(told, dict) and told.get("identity") == expected):
            # Two guests with one identity would give out the same random numbers.
            raise StartError(f"Cannot start {domain.name}: the agent of its template knows no warm images")

    async def _console(self, name: str) -> str:
        """The end of a qube's console, as an error shows it; empty when the link cannot be asked."""
        try:
            untrusted = str((await self._links.ask(name, 5, op="console")).get("text", ""))
        except DisconnectedError:
            return ""
        lines = [printable(line, 200) for line in untrusted.splitlines() if line.strip()]
        # After a panic the kernel prints a page of registers. What led to the panic stands before that.
        panics = [number for number, line in enumerate(lines) if "Kernel panic" in line]
        lines = lines[: panics[0] + 1 if panics else None][-CONSOLE_LINES:]
        return "; its console ends:\n" + "\n".join(f"  {line}" for line in lines) if lines else ""

    async def down(self, domain: Domain) -> None:
        """Nothing to do: the agent ends with the machine."""


def host_timezone() -> str | None:
    """The host's time zone by name, None where it has none."""
    try:
        target = str(Path("/etc/localtime").readlink())
    except OSError:
        return None
    _before, found, zone = target.partition("zoneinfo/")
    return (
        zone if found and zone.isascii() and zone.replace("/", "").replace("_", "").replace("-", "").isalnum() else None
    )

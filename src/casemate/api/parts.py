"""What the Admin API asks of the rest of the daemon: one small protocol per part.

Names are those of qubes that exist in the store. Errors are CasemateErrors, which go to the caller as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

from casemate.devices.device_class import Attachment, HostDevice
from casemate.model.devices import DeviceRef
from casemate.model.domain import Domain
from casemate.model.system import PoolConfig
from casemate.network.explain import Place
from casemate.storage.driver import Driver
from casemate.wire.events import NetworkStatistics
from casemate.wire.recipe import Recipe


class Machine(Protocol):
    """The figures of a running qube."""

    @property
    def state(self) -> str:
        """The power state's name on the wire."""

    @property
    def xid(self) -> int:
        """The hypervisor's id of the machine; -1 if it has none."""

    @property
    def start_time(self) -> str | None:
        """When it was started, in seconds since the epoch; None before its machine exists."""

    @property
    def memory_kib(self) -> int:
        """Memory in use."""

    @property
    def cpu_time_ns(self) -> int:
        """Processor time used so far."""


class States(Protocol):
    """The power states and figures of all qubes."""

    def all(self) -> Mapping[str, Machine]:
        """The qubes that are not halted, from memory."""


class Image(Protocol):
    """A warm image, from which disposables go on; times are seconds since the epoch, ``bytes`` those of its files."""

    @property
    def key(self) -> str:
        """Its name."""

    @property
    def template(self) -> str:
        """The disposable template."""

    @property
    def made(self) -> float:
        """When it was made."""

    @property
    def used(self) -> float:
        """When a disposable last went on from it."""

    @property
    def bytes(self) -> int:
        """Its size on disk."""


class Warm(Protocol):
    """Keeps warm images."""

    def list(self) -> Sequence[Image]:
        """All of them, oldest first."""

    async def build(self, template: str) -> Image:
        """Make the one of a disposable template, where it is not there."""

    async def drop(self, key: str) -> bool:
        """Remove one; False when there is none of that key."""


class Forks(Protocol):
    """Makes disposables of running qubes."""

    async def fork(self, name: str, count: int, creator: str) -> Sequence[str]:
        """Make so many; their names. All or none."""


class Snapshot(Protocol):
    """A running qube as it was."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def qube(self) -> str:
        """The qube that it was taken of."""

    @property
    def base(self) -> str:
        """The disposable template of what goes on from it."""

    @property
    def made(self) -> float:
        """When it was taken, in seconds since the epoch."""

    @property
    def bytes(self) -> int:
        """Its size on disk, without its disks."""


class Snapshots(Protocol):
    """Keeps running qubes as they were, under names."""

    def list(self) -> Sequence[Snapshot]:
        """All of them, oldest first."""

    async def take(self, qube: str, name: str) -> Snapshot:
        """Keep a running qube as it is now."""

    async def resume(self, name: str, count: int, creator: str) -> Sequence[str]:
        """Make so many disposables that go on from it; their names. All or none."""

    async def drop(self, name: str) -> None:
        """Remove one."""


class Power(Protocol):
    """Starts and stops qubes."""

    async def start(self, name: str) -> None:
        """Start a qube and wait until its agent answers; one that runs stays as it is."""

    async def shutdown(self, name: str, force: bool = False, wait: bool = False) -> None:
        """Ask a qube to stop; with ``wait`` until it has stopped."""

    async def kill(self, name: str) -> None:
        """End a qube's machine."""

    async def pause(self, name: str) -> None:
        """Stop a qube's processors."""

    async def unpause(self, name: str) -> None:
        """Let a paused qube run."""

    async def console(self, name: str) -> str:
        """The path of a terminal that is a running qube's console."""


class Qubes(Protocol):
    """Creates and removes qubes."""

    async def create(
        self,
        klass: str,
        name: str,
        label: str,
        template: str | None,
        pools: Mapping[str, str] | None = None,
        *,
        features: Mapping[str, str] | None = None,
        creator: str = "dom0",
    ) -> object:
        """Create a qube: its volumes and its entry in the store. ``pools`` maps volumes to pools."""

    async def remove(self, name: str) -> None:
        """Remove a halted qube: its entry and its volumes."""


class Disposables(Protocol):
    """Gives disposables away, and starts some before they are asked for."""

    async def create(self, template: str | None, creator: str = "dom0") -> str:
        """A disposable of a template (None: the default one), new or one that waited; its name."""

    def preload(self, template: str | None) -> None:
        """Have the template's disposables started now that are to wait."""

    def none_of(self, template: str) -> AbstractAsyncContextManager[None]:
        """While the block runs, no disposable of the template waits."""


class Volumes(Protocol):
    """Changes and measures single volumes."""

    async def clone(self, source: str, target: str, volume: str) -> None:
        """Replace a volume of one halted qube by a copy of another's."""

    async def resize(self, name: str, volume: str, size: int) -> None:
        """Make a volume larger; ``size`` in bytes."""

    async def clear(self, name: str, volume: str) -> None:
        """Replace a volume of a halted qube by an empty one."""

    async def import_image(self, name: str, volume: str, image: Path, size: int) -> None:
        """Replace a volume of a halted qube by a raw image of ``size`` bytes."""

    async def usage(self, name: str, volume: str) -> int:
        """Bytes that a volume takes on the disk."""

    def revisions(self, name: str, volume: str) -> list[str]:
        """The older states of a volume, oldest first."""

    async def revert(self, name: str, volume: str, revision: str) -> None:
        """Give a volume of a halted qube the content of one of its older states."""

    def is_outdated(self, name: str, volume: str) -> bool:
        """Whether a qube runs on a state of its template that is not the newest."""


class Pools(Protocol):
    """Knows the storage pools."""

    @property
    def drivers(self) -> Mapping[str, Driver]:
        """The storage drivers of this host by name."""

    async def prepare(self, config: PoolConfig) -> None:
        """See that a pool could hold volumes, before it is in the store; StorageError."""

    async def room(self, name: str) -> tuple[int, int] | None:
        """Size and used bytes of what a pool lies on; None where that is not known."""


class Devices(Protocol):
    """The host's devices, and who has them."""

    def check(self, device: DeviceRef, options: Mapping[str, str]) -> None:
        """NotImplementedHereError for a device that no qube can be given here, ValueInvalidError for wrong options."""

    def offered(self, devclass: str) -> Sequence[HostDevice]:
        """The devices of a class that this host could give away; none for a class that it does not know."""

    async def attached(self, domain: Domain, devclass: str) -> Sequence[Attachment]:
        """The devices of a class that a qube has now; none for one that is halted."""

    async def held(self, devclass: str) -> Mapping[UUID, Sequence[Attachment]]:
        """The devices of a class that machines have now, by the UUIDs of their qubes."""

    async def attach(self, name: str, device: DeviceRef, options: Mapping[str, str]) -> None:
        """Give a running qube a device of the host."""

    async def detach(self, name: str, device: DeviceRef) -> None:
        """Take a device from a running qube; DeviceBusyError when its guest does not let go."""


class Templates(Protocol):
    """Makes templates."""

    async def install(self, name: str, recipe: Recipe) -> None:
        """Make a template of a recipe."""

    async def rebuild(self, name: str, fresh: bool) -> None:
        """Put the newest image of its recipe into a halted template; with ``fresh`` one with today's packages."""

    def builds(self) -> list[dict[str, object]]:
        """Builds that are under way, then those that ended last."""

    def cancel(self, name: str) -> None:
        """End a build; NoBuildError where there is none."""

    def recipe(self, template: Domain) -> Recipe:
        """What a template was built from; RecipeNotFoundError where nobody knows."""


class HostFigures(Protocol):
    """What this host has; the global properties of these names."""

    @property
    def maxmem(self) -> int:
        """All memory, in MiB."""

    @property
    def no_cpus(self) -> int:
        """Processors that qubes may use."""


class Host(Protocol):
    """Knows this host."""

    def figures(self) -> HostFigures:
        """What this host has."""

    async def probe(self) -> str:
        """``kvm`` or ``tcg``, and why. Boots a kernel at the first question."""

    def status(self) -> Mapping[str, Any]:
        """What ``casemate status`` shows, ready to be written as JSON; never waits."""


class Network(Protocol):
    """Knows the network of qubes."""

    async def report(self) -> Mapping[str, Any]:
        """Every qube with its way out, ready to be written as JSON."""

    async def statistics(self) -> Sequence[NetworkStatistics]:
        """What each interface of a qube has carried until now."""

    async def enforce(self) -> None:
        """Have the newest firewall rules hold on this host when this returns."""

    def explain(self, domain: Domain, place: Place) -> Sequence[Mapping[str, Any]]:
        """The way from a qube to a place, step by step, ready to be written as JSON."""


class Permissions(Protocol):
    """Knows the policy."""

    def allows(self, source: str, service: str, argument: str, target: str) -> bool:
        """Whether the policy lets a qube make a call of the API."""


class Guests(Protocol):
    """What the daemon asks of running qubes; DisconnectedError for one that does not run or answer."""

    async def database(self, name: str, prefix: str) -> dict[str, bytes]:
        """Keys of a qube's database that begin with ``prefix``, and their values."""

    async def run(self, name: str, service: str, user: str, within: float, stdin: bytes = b"") -> int:
        """Run a service in a qube; its exit status, or TimeoutError after ``within`` seconds."""

    async def ask(self, name: str, service: str, argument: str, within: float) -> bytes:
        """The output of a service in a qube; DisconnectedError where it fails or says nothing ``within`` seconds."""


class Backups(Protocol):
    """Makes backups by profiles."""

    async def info(self, name: str) -> str:
        """What a backup would have in it."""

    async def execute(self, name: str) -> None:
        """Make a backup; returns when it is complete."""

    def cancel(self, name: str) -> None:
        """End a running one."""

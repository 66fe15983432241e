"""What the Admin API stands on: the store, the engine, the subscriptions, the daemon's status."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from casemate.api.imports import Imports
from casemate.api.stats import Stats
from casemate.engine.qube_files import QubeFiles
from casemate.model.domain import Domain
from casemate.store.store import Store
from casemate.wire.admin import ADMIN
from casemate.wire.errors import CasemateError

if TYPE_CHECKING:
    from pathlib import Path

    from casemate.api.events import Subscriptions
    from casemate.engine.devices import Devices


class Machine(Protocol):
    """What the engine knows about a running qube."""

    @property
    def state(self) -> str:
        """The power state's name on the wire."""

    @property
    def xid(self) -> int:
        """The hypervisor's id of the machine; -1 if it has none."""

    @property
    def memory_kib(self) -> int:
        """Memory in use."""

    @property
    def cpu_time_ns(self) -> int:
        """Processor time used so far."""


class Guests(Protocol):
    """What the daemon asks of running qubes; DisconnectedError for one that does not run or answer."""

    async def database(self, name: str, prefix: str) -> dict[str, bytes]:
        """Keys of a qube's database that begin with ``prefix``, and their values."""

    async def run(self, name: str, service: str, user: str, within: float, stdin: bytes = b"") -> int:
        """Run a service in a qube; its exit status, or TimeoutError after ``within`` seconds."""


class Engine(Protocol):
    """What the Admin API asks of the engine; names are those of qubes that exist in the store."""

    @property
    def devices(self) -> Devices:
        """The host's devices, and who has them."""

    def states(self) -> Mapping[str, Machine]:
        """The qubes that are not halted, from a cache."""

    async def start(self, name: str) -> None:
        """Start a qube and wait until its agent answers; one that runs stays as it is."""

    async def shutdown(self, name: str, force: bool = False, wait: bool = False) -> None:
        """Ask a qube to stop; with ``wait`` until it has stopped."""

    async def kill(self, name: str) -> None:
        """End a qube's machine."""

    async def pause(self, name: str) -> None:
        """Stop a qube's time."""

    async def unpause(self, name: str) -> None:
        """Let a qube go on."""

    async def console(self, name: str) -> str:
        """The path of a terminal that is a running qube's console."""

    async def create(
        self,
        klass: str,
        name: str,
        label: str,
        template: str | None,
        pools: Mapping[str, str] | None = None,
        creator: str = "dom0",
    ) -> object:
        """Make a qube: its volumes and its entry in the store."""

    async def remove(self, name: str) -> None:
        """Remove a halted qube: its entry and its volumes."""

    async def create_disposable(self, template: str | None, creator: str = "dom0") -> str:
        """Make a disposable of a template (None: the default one); its name."""

    async def clone_volume(self, source: str, target: str, volume: str) -> None:
        """Replace a volume of one halted qube by a copy of another's."""

    async def resize_volume(self, name: str, volume: str, size: int) -> None:
        """Make a volume larger."""

    async def clear_volume(self, name: str, volume: str) -> None:
        """Make a volume of a halted qube as it was when it was new."""

    async def import_volume(self, name: str, volume: str, image: Path, size: int) -> None:
        """Replace a volume of a halted qube by a raw image."""

    async def pool_room(self, name: str) -> tuple[int, int] | None:
        """Size and used bytes of what a pool lies on; None where that is not known."""

    async def probe(self) -> str:
        """``kvm`` or ``tcg``, and why."""

    async def volume_usage(self, name: str, volume: str) -> int:
        """Bytes that a volume takes on the disk."""

    async def volume_revisions(self, name: str, volume: str) -> list[str]:
        """The older states of a volume, oldest first."""

    async def revert_volume(self, name: str, volume: str, revision: str) -> None:
        """Make a volume of a halted qube as it was."""

    def volume_outdated(self, name: str, volume: str) -> bool:
        """Whether a qube runs on a state of its template that is not the newest."""

    async def install_template(self, name: str, kind: str) -> None:
        """Make a template from a built image of that kind."""


def _nothing(source: str, method: str, argument: str, target: str) -> bool:
    return False


class CloneTokenNotFoundError(CasemateError):
    """No such token of a volume to clone, or it was used."""

    wire_name = "QubesVolumeCopyTokenNotFoundError"


class CloneTokens:
    """Tokens that stand for a volume to be copied: used once, bounded in number, never stored."""

    LIMIT = 256

    def __init__(self) -> None:
        self._tokens: OrderedDict[str, tuple[str, str, str]] = OrderedDict()

    def issue(self, qube: str, volume: str, owner: str = ADMIN) -> str:
        """A fresh token for a volume; the oldest is forgotten when there are too many."""
        token = secrets.token_hex(16)
        self._tokens[token] = (qube, volume, owner)
        while len(self._tokens) > self.LIMIT:
            self._tokens.popitem(last=False)
        return token

    def redeem(self, token: str, owner: str = ADMIN) -> tuple[str, str]:
        """The qube and volume of a token, which is gone then. Only who asked for a token may use it."""
        found = self._tokens.get(token)
        if found is None or found[2] != owner:
            raise CloneTokenNotFoundError("No such token of a volume to clone")
        del self._tokens[token]
        return found[:2]


@dataclass(frozen=True, slots=True)
class Context:
    """Everything that a handler may use; built once by the daemon."""

    store: Store
    engine: Engine
    events: Subscriptions
    status: Callable[[], Mapping[str, Any]]
    """What ``casemate status`` shows, ready to be written as JSON."""
    allows: Callable[[str, str, str, str], bool] = _nothing
    """Whether the policy lets a qube make a call: (source, method, argument, target)."""
    guests: Guests | None = None
    """None: no qube can be asked anything."""
    imports: Imports = field(default_factory=Imports)
    tokens: CloneTokens = field(default_factory=CloneTokens)
    files: QubeFiles = field(init=False)
    stats: Stats = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", QubeFiles(self.store.path.parent / "qubes"))
        object.__setattr__(self, "stats", Stats(self.store, self.engine))

    def may_see(self, source: str, method: str, name: str) -> bool:
        """Whether ``source`` may have ``name`` in the answer to ``method``: itself, and what the policy says."""
        return source in (ADMIN, name) or self.allows(source, method, "", "@adminvm" if name == ADMIN else name)

    def state(self, domain: Domain) -> str:
        """The power state of a qube, by its name on the wire."""
        if domain.klass in ALWAYS_RUNNING:
            return "Running"
        machine = self.engine.states().get(domain.name)
        return "Halted" if machine is None else str(machine.state)


ALWAYS_RUNNING = frozenset({"AdminVM", "RemoteVM"})
"""Classes whose qubes have no machine that could be halted."""

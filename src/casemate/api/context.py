"""What the Admin API stands on: the store, the engine, the subscriptions, the daemon's status."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from casemate.model.domain import Domain
from casemate.store.store import Store
from casemate.wire.errors import CasemateError

if TYPE_CHECKING:
    from casemate.api.events import Subscriptions


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


class Engine(Protocol):
    """What the Admin API asks of the engine; names are those of qubes that exist in the store."""

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

    async def create(
        self, klass: str, name: str, label: str, template: str | None, pools: Mapping[str, str] | None = None
    ) -> object:
        """Make a qube: its volumes and its entry in the store."""

    async def remove(self, name: str) -> None:
        """Remove a halted qube: its entry and its volumes."""

    async def create_disposable(self, template: str | None) -> str:
        """Make a disposable of a template (None: the default one); its name."""

    async def clone_volume(self, source: str, target: str, volume: str) -> None:
        """Replace a volume of one halted qube by a copy of another's."""

    async def resize_volume(self, name: str, volume: str, size: int) -> None:
        """Make a volume larger."""

    async def probe(self) -> str:
        """``kvm`` or ``tcg``, and why."""

    async def volume_usage(self, name: str, volume: str) -> int:
        """Bytes that a volume takes on the disk."""

    async def install_template(self, name: str, kind: str) -> None:
        """Make a template from a built image of that kind."""


class CloneTokenNotFoundError(CasemateError):
    """No such token of a volume to clone, or it was used."""

    wire_name = "QubesVolumeCopyTokenNotFoundError"


class CloneTokens:
    """Tokens that stand for a volume to be copied: used once, bounded in number, never stored."""

    LIMIT = 256

    def __init__(self) -> None:
        self._tokens: OrderedDict[str, tuple[str, str]] = OrderedDict()

    def issue(self, qube: str, volume: str) -> str:
        """A fresh token for a volume; the oldest is forgotten when there are too many."""
        token = secrets.token_hex(16)
        self._tokens[token] = (qube, volume)
        while len(self._tokens) > self.LIMIT:
            self._tokens.popitem(last=False)
        return token

    def redeem(self, token: str) -> tuple[str, str]:
        """The qube and volume of a token, which is gone then."""
        found = self._tokens.pop(token, None)
        if found is None:
            raise CloneTokenNotFoundError("No such token of a volume to clone")
        return found


@dataclass(frozen=True, slots=True)
class Context:
    """Everything that a handler may use; built once by the daemon."""

    store: Store
    engine: Engine
    events: Subscriptions
    status: Callable[[], Mapping[str, Any]]
    """What ``casemate status`` shows, ready to be written as JSON."""
    tokens: CloneTokens = field(default_factory=CloneTokens)

    def state(self, domain: Domain) -> str:
        """The power state of a qube, by its name on the wire."""
        if domain.klass in ALWAYS_RUNNING:
            return "Running"
        machine = self.engine.states().get(domain.name)
        return "Halted" if machine is None else str(machine.state)


ALWAYS_RUNNING = frozenset({"AdminVM", "RemoteVM"})
"""Classes whose qubes have no machine that could be halted."""

"""The record of everything that a handler of the Admin API may use."""

from __future__ import annotations

from dataclasses import dataclass, field

from casemate.api.clone_tokens import CloneTokens
from casemate.api.events import Subscriptions
from casemate.api.imports import Imports
from casemate.api.parts import (
    Backups,
    Devices,
    Disposables,
    Forks,
    Guests,
    Host,
    Network,
    Permissions,
    Pools,
    Power,
    Qubes,
    Snapshots,
    States,
    Templates,
    Volumes,
    Warm,
)
from casemate.api.stats import Stats
from casemate.engine.firewall import Firewalls
from casemate.engine.possible import Possible
from casemate.engine.qube_files import QubeFiles
from casemate.model.domain import Domain
from casemate.qrexec.files import PolicyFiles
from casemate.store.store import Store
from casemate.wire.admin import ADMIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Built once by the daemon. Handlers take from it what they need; it does nothing by itself."""

    store: Store
    events: Subscriptions
    states: States
    power: Power
    qubes: Qubes
    disposables: Disposables
    warm: Warm
    forks: Forks
    snapshots: Snapshots
    volumes: Volumes
    pools: Pools
    devices: Devices
    templates: Templates
    host: Host
    permissions: Permissions
    guests: Guests
    firewalls: Firewalls
    policy: PolicyFiles
    network: Network
    backups: Backups
    tokens: CloneTokens = field(default_factory=CloneTokens)
    imports: Imports = field(init=False)
    files: QubeFiles = field(init=False)
    possible: Possible = field(init=False)
    stats: Stats = field(init=False)

    def __post_init__(self) -> None:
        # Four parts of the API's own that need others of this record; a frozen record is filled this way.
        object.__setattr__(self, "imports", Imports(self.store, self.states, self.volumes, self.events))
        object.__setattr__(self, "files", QubeFiles(self.store.path.parent / "qubes"))
        object.__setattr__(self, "possible", Possible(self.store.path.parent / "kernels"))
        object.__setattr__(self, "stats", Stats(self.store, self.states, self.network))

    def may_see(self, source: str, method: str, name: str) -> bool:
        """Whether ``source`` may have ``name`` in the answer to ``method``: itself, and what the policy allows."""
        if source in (ADMIN, name):
            return True
        return self.permissions.allows(source, method, "", "@adminvm" if name == ADMIN else name)

    def state(self, domain: Domain) -> str:
        """The power state of a qube, by its name on the wire."""
        if domain.klass in ALWAYS_RUNNING:
            return "Running"
        machine = self.states.all().get(domain.name)
        return "Halted" if machine is None else str(machine.state)


ALWAYS_RUNNING = frozenset({"AdminVM", "RemoteVM"})
"""Classes whose qubes have no machine that could be halted."""

"""The store's system as the policy sees it. What is known of a qube is kept until the store changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from casemate.model.domain import Domain
from casemate.model.system import System
from casemate.qrexec.evaluate import QubeInfo, SystemInfo
from casemate.wire.errors import CasemateError


def info_of(domain: Domain) -> QubeInfo:
    """What the policy may know of a qube. The power state is not part of it: it is looked up when a rule needs it."""

    def name_of(prop: str) -> str | None:
        found = getattr(domain, prop) if domain.has(prop) else None
        return found.name if found is not None else None

    def text_of(prop: str) -> str | None:
        return getattr(domain, prop) or None if domain.has(prop) else None

    return QubeInfo(
        name=domain.name,
        klass=domain.klass,
        uuid=str(domain.uuid),
        tags=frozenset(domain.tags),
        default_dispvm=name_of("default_dispvm"),
        template_for_dispvms=domain.has("template_for_dispvms") and bool(domain.template_for_dispvms),
        internal=bool(domain.features.get("internal")),
        icon=domain.icon if domain.has("icon") else "",
        relayvm=name_of("relayvm"),
        transport_rpc=text_of("transport_rpc"),
        remote_name=text_of("remote_name"),
    )


def system_info(system: System, state: Callable[[str], str]) -> SystemInfo:
    """The policy's view of a snapshot of the store; ``state`` returns a qube's power state now."""
    known: dict[str, QubeInfo | None] = {}

    def find(text: str) -> QubeInfo | None:
        try:
            return known[text]
        except KeyError:
            pass
        try:
            found = info_of(system.domains.find(text))
        except CasemateError:
            return None  # not kept: callers could fill the memory with names that do not exist
        known[text] = found
        return found

    def everyone() -> Iterable[QubeInfo]:
        return [qube for name in system.domains if (qube := find(name)) is not None]

    return SystemInfo(find, everyone, state)


class Systems:
    """Returns the policy's view of the newest snapshot. Makes a new one only when the snapshot is another object."""

    def __init__(self, snapshot: Callable[[], System], state: Callable[[str], str]) -> None:
        self._snapshot = snapshot
        self._state = state
        self._system: System | None = None
        self._info: SystemInfo | None = None

    def __call__(self) -> SystemInfo:
        """As the store is now."""
        system = self._snapshot()
        if self._info is None or system is not self._system:
            self._system, self._info = system, system_info(system, self._state)
        return self._info

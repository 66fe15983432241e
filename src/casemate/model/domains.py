"""Domains: all qubes of a system, found by name, UUID or number."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import cast
from uuid import UUID

from casemate.model.classes import Admin
from casemate.model.domain import Domain, Whole
from casemate.model.qube import State
from casemate.wire import names
from casemate.wire.errors import AlreadyExistsError, NotFoundError


class Domains(Mapping[str, Domain]):
    """All qubes of one system, indexed by name, UUID and qid.

    States are kept; the `Domain` of a state is made when somebody asks for it, and kept from then on. So to copy a
    system is to copy three dictionaries, and a new system does not keep an old one alive.
    """

    def __init__(self, system: Whole) -> None:
        self._system = system
        self._states: dict[str, State] = {}
        self._by_uuid: dict[UUID, str] = {}
        self._by_qid: dict[int, str] = {}
        self._made: dict[str, Domain] = {}
        self._own: set[str] = set()

    def copy_to(self, other: Domains) -> None:
        """Give ``other`` the same qubes. From now on both copy a state before they change it (`Domain.own`)."""
        other._states = self._states.copy()
        other._by_uuid = self._by_uuid.copy()
        other._by_qid = self._by_qid.copy()
        self._own.clear()

    def is_shared(self, domain: Domain) -> bool:
        """Whether another system may have this qube's state too; a qube that is not inserted yet shares nothing."""
        name = str(domain.state.values["name"])
        return name not in self._own and self._states.get(name) is domain.state

    def took(self, domain: Domain) -> None:
        """The qube has a state of its own now."""
        name = str(domain.state.values["name"])
        self._states[name] = domain.state
        self._own.add(name)

    def states(self) -> Collection[State]:
        """The states of all qubes, which must not be changed: a quick way to look at every qube."""
        return self._states.values()

    def state(self, name: str) -> State | None:
        """The state of the qube of that name, only read; None where there is none."""
        return self._states.get(name)

    def __getitem__(self, name: str) -> Domain:
        found = self._made.get(name)
        if found is not None:
            return found
        state = self._states.get(name)
        if state is None:
            raise NotFoundError(name)
        # Threads may ask at the same time. setdefault is atomic, so that all get the same object.
        return self._made.setdefault(name, _class_of(state).of_state(self._system, state))

    def get(self, name: object, default: object = None) -> Domain | None:  # type: ignore[override]
        """The qube of that name, or None."""
        return self[str(name)] if name in self._states else None

    def __contains__(self, name: object) -> bool:
        return name in self._states

    def __iter__(self) -> Iterator[str]:
        return iter(self._states)

    def __len__(self) -> int:
        return len(self._states)

    def by_uuid(self, uuid: UUID) -> Domain:
        """The qube with that UUID; raises NotFoundError."""
        try:
            return self[self._by_uuid[uuid]]
        except KeyError:
            raise NotFoundError(f"uuid:{uuid}") from None

    def by_qid(self, qid: int) -> Domain:
        """The qube with that number; raises NotFoundError."""
        try:
            return self[self._by_qid[qid]]
        except KeyError:
            raise NotFoundError(f"qid {qid}") from None

    def find(self, text: str) -> Domain:
        """The qube named ``NAME`` or ``uuid:UUID``; raises NotFoundError, or ValueInvalidError for neither form."""
        if text.startswith("uuid:"):
            return self.by_uuid(UUID(names.uuid_text(text[5:])))
        return self[str(names.qube_name(text))]

    def ordered(self) -> list[Domain]:
        """The admin qube first, then the others by name."""
        return [self[name] for name in sorted(self._states, key=lambda n: (self._states[n].klass is not Admin, n))]

    def require_free(self, name: str, uuid: UUID, qid: int) -> None:
        """Raise AlreadyExistsError where a qube has that name, UUID or number."""
        if name in self._states:
            raise AlreadyExistsError(f"A qube named {name!r} exists already")
        if uuid in self._by_uuid:
            raise AlreadyExistsError(f"UUID {uuid} is that of {self._by_uuid[uuid]!r}")
        if qid in self._by_qid:
            raise AlreadyExistsError(f"qid {qid} is that of {self._by_qid[qid]!r}")

    def insert(self, domain: Domain) -> None:
        """Add a qube to the indexes; raises AlreadyExistsError. Use ``System.add`` to make qubes."""
        name = self.insert_state(domain.state)
        self._made[name] = domain
        self._own.add(name)

    def insert_state(self, state: State) -> str:
        """Add the qube that a state describes (which may be that of another system too); its name."""
        name = cast(str, state.values["name"])
        uuid, qid = cast(UUID, state.values["uuid"]), cast(int, state.values["qid"])
        self.require_free(name, uuid, qid)
        self._states[name] = state
        self._by_uuid[uuid] = name
        self._by_qid[qid] = name
        return name

    def replace_state(self, state: State, text: bytes) -> bool:
        """Replace the state that has ``text`` by a newer one; False, and nothing is done, where it is another
        qube's."""
        old = self._states.get(cast(str, state.values["name"]))
        if old is None or old.text != text or old.klass is not state.klass:
            return False
        if any(old.values[key] != state.values[key] for key in ("name", "uuid", "qid")):
            return False
        self._states[cast(str, state.values["name"])] = state
        return True

    def discard(self, domain: Domain) -> None:
        """Take a qube out of the indexes."""
        name = domain.name
        del self._states[name], self._by_uuid[domain.uuid], self._by_qid[domain.qid]
        self._made.pop(name, None)
        self._own.discard(name)


def _class_of(state: State) -> type[Domain]:
    """The class of a qube: `State` is declared below `Domain`, and knows it only as a `Qube`."""
    return cast(type[Domain], state.klass)

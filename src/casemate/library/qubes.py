"""All qubes of one daemon: where a script begins."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from casemate.client.calling import Disposable
from casemate.client.qubes import Qubes as Client
from casemate.client.transport import Transport
from casemate.library.events import Events
from casemate.library.qube import MissingPropertyError, Qube, get_property, set_property
from casemate.settings import Settings, load
from casemate.wire.admin import ADMIN, PropertyValue, parse_list
from casemate.wire.errors import CasemateError, NoSuchPropertyError, NotFoundError, ProtocolError
from casemate.wire.images import Snapshot, parse_lines


class MissingQubeError(NotFoundError, KeyError):
    """No such qube, raised by ``app[name]``. It is a KeyError too."""


class Qubes:
    """The qubes of one state, over its daemon, which is started where none runs.

    ``state`` is the directory of the state; None means the one that tools take: what ``CASEMATE_STATE`` says, the whole
    host's for root and its group, else the user's own. ``start_daemon=False``: raise DaemonAccessError where no daemon
    runs.

    ``app["work"]`` is a `Qube`, ``for qube in app`` gives all of them with dom0 first, ``"work" in app`` asks for one.
    Global properties are attributes as a qube's are: ``app.default_template = "debian-13"``. Every access may raise
    DaemonAccessError, or the error that the daemon reports. An object may be used by several threads.
    """

    __slots__ = ("_client", "_settings")

    def __init__(self, state: str | os.PathLike[str] | None = None, *, start_daemon: bool = True) -> None:
        settings = load() if state is None else load({**_environment(), "CASEMATE_STATE": os.fspath(state)})
        transport = Transport(settings) if start_daemon else Transport(settings, daemon=())
        object.__setattr__(self, "_settings", settings)
        object.__setattr__(self, "_client", Client(transport))

    @property
    def settings(self) -> Settings:
        """Where the state lies: ``settings.state``, ``settings.run``."""
        found: Settings = object.__getattribute__(self, "_settings")
        return found

    @property
    def client(self) -> Client:
        """The client that all of this is made of. It is internal: its methods may change between versions."""
        found: Client = object.__getattribute__(self, "_client")
        return found

    # -- qubes

    def __getitem__(self, name: str) -> Qube:
        found = self.get(name)
        if found is None:
            raise MissingQubeError(name)
        return found

    def get(self, name: str) -> Qube | None:
        """The qube of that name, or ``uuid:`` with its UUID; None where there is none."""
        try:
            listed = parse_list(self.client.call("admin.vm.List", "", name)) if name != ADMIN else self.client.listed()
        except (NotFoundError, ProtocolError):  # ProtocolError: what no qube can be called
            return None
        by_uuid = name.startswith("uuid:")
        return next((Qube(self, one.name, one.klass) for one in listed if by_uuid or one.name == name), None)

    def __iter__(self) -> Iterator[Qube]:
        return iter([Qube(self, one.name, one.klass) for one in self.client.listed()])

    def __len__(self) -> int:
        return len(self.client.listed())

    def __contains__(self, name: object) -> bool:
        return any(one.name == str(name) for one in self.client.listed())

    def create(
        self,
        name: str,
        klass: str = "AppVM",
        *,
        label: str = "red",
        template: str | Qube | None = None,
        pools: Mapping[str, str] | None = None,
        **properties: object,
    ) -> Qube:
        """Create a qube with these properties; all or nothing.

        ``klass`` is ``AppVM``, ``StandaloneVM``, ``TemplateVM``, ``DispVM`` or ``RemoteVM``. ``template`` None is the
        default one. ``pools`` names the pool of a volume, and under ``""`` that of all. Raises AlreadyExistsError,
        NoTemplateError, ValueInvalidError, LabelNotFoundError, PoolNotFoundError, or what a property refuses.
        """
        base = None if template is None else str(template)
        self.client.create(klass, name, label, base, None if pools is None else dict(pools))
        made = Qube(self, name, klass)
        try:
            for key, value in properties.items():
                set_property(self, name, key, value)
        except BaseException:
            self.client.remove(name)
            raise
        return made

    def clone(self, source: str | Qube, name: str, *, klass: str | None = None, label: str | None = None) -> Qube:
        """Make a qube like another: settings, features, tags, firewall, notes and kept volumes; all or nothing."""
        self.client.clone(str(source), name, klass, label=label)
        return self[name]

    def remove(self, qube: str | Qube) -> None:
        """Remove a halted qube with its volumes. Raises NotFoundError, NotHaltedError, InUseError."""
        self.client.remove(str(qube))

    @contextmanager
    def disposable(self, template: str | Qube | None = None) -> Iterator[Qube]:
        """A disposable for a ``with`` block: ``with app.disposable("dvm") as d: d.run(["id"])``.

        ``template`` None means the system's ``default_dispvm``. The daemon ends it when the block ends, and also when
        this program is killed. Leaving the block does not wait until it is removed. CasemateError for a member of the
        group who uses the whole host's daemon: calls into qubes are root's.
        """
        if self.settings.shared:
            raise CasemateError("Disposables for a block are for the daemon's own user: calls into qubes are root's")
        with Disposable(self.client, "" if template is None else str(template)) as name:
            yield Qube(self, name, "DispVM")

    def snapshots(self) -> list[Snapshot]:
        """The snapshots that `Qube.snapshot` or ``casemate snapshot take`` have made, oldest first."""
        return parse_lines(Snapshot, self.client.call("admin.casemate.snapshot.List"))

    def resume(self, snapshot: str | Snapshot, count: int = 1) -> list[Qube]:
        """Make ``count`` running disposables that go on from a snapshot, at most 64; all or none.

        Each is yours to end: when it is killed or shut down it is removed. Raises ValueInvalidError where there is no
        such snapshot, StartError.
        """
        name = snapshot if isinstance(snapshot, str) else snapshot.name
        names = self.client.call("admin.casemate.snapshot.Resume", name, payload=str(count)).split()
        return [Qube(self, made, "DispVM") for made in names]

    def drop_snapshot(self, snapshot: str | Snapshot) -> None:
        """Remove a snapshot. What went on from it runs on. Raises ValueInvalidError where there is none."""
        self.client.call("admin.casemate.snapshot.Drop", snapshot if isinstance(snapshot, str) else snapshot.name)

    def inventory(
        self,
        *,
        properties: Iterable[str] | None = (),
        features: Iterable[str] | None = (),
        tags: bool = False,
        qubes: Iterable[str] | None = None,
    ) -> list[dict[str, Any]]:
        """Much about many qubes in one call: dictionaries with ``name``, ``class``, ``state`` and ``uuid``.

        ``properties`` and ``features`` are the names of those that are wanted, None all; ``tags`` whether tags are.
        A property is ``{"value": TEXT, "default": BOOL, ...}``.
        """
        return self.client.inventory(properties, features, tags, qubes)

    # -- the system

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self.value_of(get_property(self, None, name))

    def __setattr__(self, name: str, value: object) -> None:
        if name in type(self).__dict__:
            raise AttributeError(f"{name} cannot be set")
        set_property(self, None, name, value)

    def __delattr__(self, name: str) -> None:
        try:
            self.client.reset(None, name)
        except NoSuchPropertyError as error:
            raise MissingPropertyError(str(error)) from None

    def properties(self) -> dict[str, Any]:
        """All global properties with their values, in two calls."""
        return self.values_of(self.client.properties(None))

    def labels(self) -> list[str]:
        """The names of the labels, in the order of their numbers."""
        return self.client.call("admin.label.List").split()

    def pools(self) -> dict[str, dict[str, str]]:
        """The storage pools by name, each with its configuration, size and usage in bytes as texts."""
        found = {}
        for name in self.client.call("admin.pool.List").split():
            lines = self.client.call("admin.pool.Info", name).splitlines()
            found[name] = {key: value for key, _, value in (line.partition("=") for line in lines)}
        return found

    def status(self) -> dict[str, Any]:
        """What the daemon says about its host: what runs guests, which protections are missing."""
        return self.client.status()

    def events(self, timeout: float | None = None) -> Events:
        """A subscription to all events. The iteration ends after ``timeout`` seconds without one (None: never)."""
        return Events(self.client.transport, ADMIN, timeout)

    def call(self, method: str, argument: str = "", qube: str = ADMIN, payload: bytes | str = b"") -> bytes:
        """Any method of the Admin API, for what has no better name here; the content of its reply."""
        return self.client.transport.call(
            method, argument, qube, payload.encode() if isinstance(payload, str) else payload
        )

    def values_of(self, values: Mapping[str, PropertyValue]) -> dict[str, Any]:
        """Properties as Python has them. All qubes that they name are looked up in one call."""
        there = {qube.name: qube for qube in self}
        return {
            name: there.get(value.text) if value.tag == "vm" else self.value_of(value) for name, value in values.items()
        }

    def value_of(self, value: PropertyValue) -> Any:
        """A property as Python has it."""
        if value.tag == "bool":
            return value.text == "True"
        if value.tag == "int":
            return int(value.text) if value.text else None
        if value.tag == "vm":
            return self.get(value.text) if value.text else None
        return value.text

    def __repr__(self) -> str:
        return f"<qubes of {self.settings.state}>"


def _environment() -> dict[str, str]:
    """The environment without what would move a state that was named."""
    return {key: value for key, value in os.environ.items() if key != "CASEMATE_RUN"}

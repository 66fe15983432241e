"""One qube as an object; its properties are attributes, and each access is one call of the Admin API."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO

from casemate.client.calling import open_stream, shell_line
from casemate.library.calls import DEFAULT_OUTPUT, Completed, exchange, pieces
from casemate.library.devices import Devices
from casemate.library.events import Events
from casemate.library.firewall import Firewall
from casemate.library.settings import Features, Tags
from casemate.library.volumes import Volumes
from casemate.wire import vmexec
from casemate.wire.admin import ADMIN, PropertyValue
from casemate.wire.errors import (
    NoSuchPropertyError,
    NotStartedError,
    ShutdownTimeoutError,
    ValueInvalidError,
)
from casemate.wire.qrexec import Command, exec_message

if TYPE_CHECKING:
    from casemate.library.qubes import Qubes

_POLL_SECONDS = 0.1


class MissingPropertyError(NoSuchPropertyError, AttributeError):
    """No such property on this object. It is an AttributeError too, so that ``hasattr`` and ``getattr`` work."""


class Qube:
    """A qube, made by ``app["work"]``, ``app.create`` or iteration over `Qubes`; it holds the name only.

    Properties (their reference page has all of them) are attributes: ``qube.memory``, ``qube.memory = 600``,
    ``del qube.memory`` for the default again. Numbers are int, yes and no bool, other qubes `Qube` or None, the rest
    str. Equal to another object for the same name of the same daemon.
    """

    __slots__ = ("_app", "klass", "name")

    _app: Qubes
    name: str
    klass: str

    def __init__(self, app: Qubes, name: str, klass: str) -> None:
        object.__setattr__(self, "_app", app)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "klass", klass)

    # -- properties

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._app.value_of(get_property(self._app, self.name, name))

    def __setattr__(self, name: str, value: object) -> None:
        own = type(self).__dict__.get(name)
        if isinstance(own, property) and own.fset is not None:
            own.fset(self, value)
            return
        if own is not None:
            raise AttributeError(f"{name} cannot be set")
        set_property(self._app, self.name, name, value)

    def __delattr__(self, name: str) -> None:
        try:
            self._app.client.reset(self.name, name)
        except NoSuchPropertyError as error:
            raise MissingPropertyError(str(error)) from None

    def properties(self) -> dict[str, Any]:
        """All properties with their values, in two calls."""
        return self._app.values_of(self._app.client.properties(self.name))

    def is_default(self, name: str) -> bool:
        """Whether a property has its default."""
        return bool(get_property(self._app, self.name, name).default)

    # -- parts

    @property
    def features(self) -> Features:
        """Its features, a mapping of texts."""
        return Features(self._app.client, self.name)

    @property
    def tags(self) -> Tags:
        """Its tags, a set of texts."""
        return Tags(self._app.client, self.name)

    @property
    def volumes(self) -> Volumes:
        """Its volumes by name."""
        return Volumes(self._app.client, self.name)

    @property
    def devices(self) -> Devices:
        """Its devices by class."""
        return Devices(self._app.client, self.name)

    @property
    def firewall(self) -> Firewall:
        """Its firewall rules."""
        return Firewall(self._app.client, self.name)

    @property
    def notes(self) -> str:
        """Notes about it; empty where there are none."""
        return self._app.client.call("admin.vm.notes.Get", "", self.name)

    @notes.setter
    def notes(self, text: str) -> None:
        self._app.client.call("admin.vm.notes.Set", "", self.name, text)

    # -- power

    @property
    def state(self) -> str:
        """``Halted``, ``Transient`` (it starts), ``Running``, ``Halting``, ``Paused``, ``Crashed``; ``NA`` unknown."""
        return _words(self._app.client.call("admin.vm.CurrentState", "", self.name)).get("power_state", "NA")

    @property
    def running(self) -> bool:
        """Whether it runs, and is not paused."""
        return self.state == "Running"

    def start(self) -> None:
        """Start it and wait until its agent answers. One that runs is left alone.

        Raises StartError, OutOfMemoryError, NotHaltedError (it is paused), and what else keeps it from starting.
        """
        self._app.client.call("admin.vm.Start", "", self.name)

    def shutdown(self, *, force: bool = False, wait: bool = True, timeout: float = 60.0) -> None:
        """Ask it to shut down and, with ``wait``, wait ``timeout`` seconds until it is halted (ShutdownTimeoutError).

        ``force``: also where others get their network from it. One that is halted is left alone.
        """
        try:
            self._app.client.call("admin.vm.Shutdown", "force" if force else "", self.name)
        except NotStartedError:
            return
        if wait:
            try:
                self.wait_for("Halted", timeout)
            except TimeoutError:
                raise ShutdownTimeoutError(f"{self.name} did not shut down within {timeout:g} s") from None

    def kill(self) -> None:
        """End its machine at once, as if its power was cut. Raises NotStartedError."""
        self._app.client.call("admin.vm.Kill", "", self.name)

    def fork(self, count: int = 1) -> list[Qube]:
        """Make ``count`` running disposables of it as it runs now, with its memory, programs and files; all or none.

        It goes on. Each fork is yours to end: when it is killed or shut down it is removed. At most 64. QubeError
        for what cannot be forked, with the reason (docs/howto/disposables.md); NotRunningError.
        """
        names = self._app.client.call("admin.casemate.vm.Fork", str(count), self.name).split()
        return [Qube(self._app, name, "DispVM") for name in names]

    def snapshot(self, name: str) -> None:
        """Keep it as it runs now under a name, from which `Qubes.resume` makes disposables. It goes on.

        Raises QubeError where the name is taken, and as `fork` does.
        """
        self._app.client.call("admin.casemate.vm.Snapshot", name, self.name)

    def pause(self) -> None:
        """Stop its processors. Raises NotRunningError."""
        self._app.client.call("admin.vm.Pause", "", self.name)

    def unpause(self) -> None:
        """Let it run again. Raises NotPausedError."""
        self._app.client.call("admin.vm.Unpause", "", self.name)

    def wait_for(self, state: str, timeout: float = 60.0) -> None:
        """Wait until it is in a state. TimeoutError after ``timeout`` seconds.

        A disposable that is gone counts as halted, because it is removed when it halts.
        """
        deadline = time.monotonic() + timeout
        while True:
            found = next((q.state for q in self._app.client.listed() if q.name == self.name), "Halted")
            if found == state:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name} is {found} and not {state} after {timeout:g} s")
            time.sleep(_POLL_SECONDS)

    # -- calls

    def run(
        self,
        command: Sequence[str | bytes] | str,
        *,
        input: bytes | str | BinaryIO = b"",
        output: BinaryIO | None = None,
        user: str | None = None,
        timeout: float | None = None,
        check: bool = False,
        start: bool = True,
        most: int = DEFAULT_OUTPUT,
    ) -> Completed:
        """Run a command in the qube and return when it has ended.

        ``command`` is a program with its arguments, or one text for the qube's shell. ``input`` is what it reads, a
        file too; ``output`` a file that takes its stdout, which is not kept in memory then. ``user`` is as whom it runs
        (None: the qube's default user), ``timeout`` seconds for all of it, ``most`` the bytes of output that are kept
        at most. While a file waits for data, or is full, the call waits too. The qube is started if need be, or
        NotRunningError with ``start=False``. With ``check`` a status other than 0 raises CallFailedError. Also raises
        CallTimeoutError, OutputTooLongError, DisconnectedError (the qube went away).
        """
        if isinstance(command, str):
            text, first = command, [shell_line(command)]
            call = Command(user or "DEFAULT", "qubes.VMShell", None, ADMIN)
        else:
            text, first = " ".join(map(str, command)), []
            call = Command(user or "DEFAULT", "qubes.VMExec", vmexec.encode_vmexec(command), ADMIN)
        done = self._call(call, text, chain(first, pieces(input)), timeout, start, most, output)
        return done.check() if check else done

    def call(
        self,
        service: str,
        argument: str | None = None,
        *,
        input: bytes | str | BinaryIO = b"",
        output: BinaryIO | None = None,
        user: str | None = None,
        timeout: float | None = None,
        check: bool = True,
        start: bool = True,
        most: int = DEFAULT_OUTPUT,
    ) -> Completed:
        """Call a qrexec service of the qube, such as ``qubes.GetDate``, from this host; otherwise as ``run``.

        The policy does not decide: it is for calls of qubes. A status other than 0 raises CallFailedError, unless
        ``check`` is False.
        """
        command = Command(user or "DEFAULT", service, argument, ADMIN)
        done = self._call(command, service, pieces(input), timeout, start, most, output)
        return done.check() if check else done

    def _call(
        self,
        command: Command,
        text: str,
        data: Iterable[bytes],
        timeout: float | None,
        start: bool,
        most: int,
        sink: BinaryIO | None,
    ) -> Completed:
        if self.name == ADMIN:
            raise ValueInvalidError("Commands of this host are not run through a qube; use subprocess")
        sock = open_stream(self._app.client, self.name, exec_message(command.cmdline()), start)
        return exchange(sock, self.name, text, data, timeout, most, sink)

    # -- the rest

    def events(self, timeout: float | None = None) -> Events:
        """A subscription to events about this qube; see ``Qubes.events``."""
        return Events(self._app.client.transport, self.name, timeout)

    def clone(self, name: str, *, klass: str | None = None, label: str | None = None) -> Qube:
        """Make a qube like this one, with copies of its disks; all or nothing. See ``Qubes.clone``."""
        return self._app.clone(self.name, name, klass=klass, label=label)

    def remove(self) -> None:
        """Remove it with its volumes; it must be halted. What it held is lost."""
        self._app.client.remove(self.name)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Qube):
            return NotImplemented
        return (self.name, self._app.settings) == (other.name, other._app.settings)

    def __hash__(self) -> int:
        return hash(self.name)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<{self.klass} {self.name}>"


def get_property(app: Qubes, dest: str | None, name: str) -> PropertyValue:
    """A property of a qube, or of the system (``dest`` None). Raises MissingPropertyError."""
    try:
        return app.client.get(dest, name)
    except NoSuchPropertyError as error:
        raise MissingPropertyError(str(error)) from None


def set_property(app: Qubes, dest: str | None, name: str, value: object) -> None:
    """Set a property of a qube, or of the system (``dest`` None), to a value as Python has it."""
    if value is None:
        text = ""
    elif isinstance(value, str | bool | int | Qube):
        text = str(value)
    else:
        raise ValueInvalidError(f"A property is text, a number, a truth value, a qube or None, not {value!r}")
    try:
        app.client.set(dest, name, text)
    except NoSuchPropertyError as error:
        raise MissingPropertyError(str(error)) from None


def _words(line: str) -> dict[str, str]:
    """``key=value`` pairs between blanks."""
    return {key: value for key, _, value in (word.partition("=") for word in line.split())}

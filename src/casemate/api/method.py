"""Registry of the Admin API's methods: a handler's signature says what a call must carry.

A handler names what it wants among ``context``, ``system``, ``dest``, ``arg``, ``payload``, ``source``, ``sees``.
A STREAM handler also gets ``transport``, the connection, and ``visible``, which is ``sees`` or, for dom0, None.
Without ``dest`` the call must go to dom0. ``sees`` is a function that says whether the caller may know of a qube.
Without ``arg`` (``payload``) the call must have none; one without a default is required. ``payload: str`` is strict
ASCII, ``payload: bytes`` is raw.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

from casemate.wire import names
from casemate.wire.admin import ADMIN, Request
from casemate.wire.errors import ProtocolError

F = TypeVar("F", bound=Callable[..., Any])


class Access(Enum):
    """How a handler runs."""

    READ = "read"
    """A plain function on a snapshot."""
    WRITE = "write"
    """A plain function inside a transaction."""
    EXECUTE = "execute"
    """A coroutine, outside any transaction."""
    STREAM = "stream"
    """A plain function that begins a stream of events on the connection, and returns how it ends."""


@dataclass(frozen=True, slots=True)
class Method:
    """One registered method."""

    name: str
    access: Access
    handler: Callable[..., Any]
    parameters: dict[str, inspect.Parameter]
    shows_qubes: bool = False
    """Whether the reply lists qubes: the policy is then asked about this method and each of the qubes."""
    bound: dict[str, str] = field(default_factory=dict)

    @property
    def doc(self) -> str:
        """What the method does."""
        return inspect.getdoc(self.handler) or ""

    def wants(self, name: str) -> bool:
        """Whether the handler takes that parameter."""
        return name in self.parameters

    def check(self, request: Request) -> None:
        """Refuse a call that carries too much or too little."""
        if not self.wants("dest") and request.dest != ADMIN:
            raise ProtocolError(f"{self.name} goes to {ADMIN} only")
        for name, given in (("arg", request.arg), ("payload", request.payload)):
            parameter = self.parameters.get(name)
            if parameter is None and given:
                raise ProtocolError(f"{self.name} takes no {name}")
            if parameter is not None and parameter.default is inspect.Parameter.empty and not given:
                raise ProtocolError(f"{self.name} needs a {name}")

    def arguments(self, request: Request) -> dict[str, Any]:
        """What the call gives the handler."""
        found: dict[str, Any] = dict(self.bound)
        if self.wants("arg"):
            found["arg"] = request.arg
        if self.wants("payload"):
            raw = self.parameters["payload"].annotation in ("bytes", bytes)
            found["payload"] = request.payload if raw else names.text(request.payload, "payload")
        if self.wants("source"):
            found["source"] = request.source
        return found


METHODS: dict[str, Method] = {}
"""Every method of the Admin API by name; filled when the modules of this package are imported."""

INTERNAL: dict[str, Method] = {}
"""``internal.*``: what programs of this host ask on a socket of its own; never reachable from a qube."""

MISC: dict[str, Method] = {}
"""``qubes.*``: what qubes tell this host about themselves; ``source`` is the qube."""


def family_of(name: str) -> dict[str, Method]:
    """The registry that a method of that name belongs to."""
    return INTERNAL if name.startswith("internal.") else MISC if name.startswith("qubes.") else METHODS


def method(name: str, access: Access, *, shows_qubes: bool = False, **choices: Iterable[str]) -> Callable[[F], F]:
    """Register a handler. ``{word}`` in the name stands for each of the ``word=`` choices, given to the handler."""

    def register(handler: F) -> F:
        expanded: list[tuple[str, dict[str, str]]] = [(name, {})]
        for word, values in choices.items():
            expanded = [(n.replace(f"{{{word}}}", v), {**b, word: v}) for n, b in expanded for v in values]
        parameters = dict(inspect.signature(handler).parameters)
        for full, bound in expanded:
            family = family_of(full)
            if full in family:
                raise ValueError(f"{full} is registered twice")
            family[full] = Method(full, access, handler, parameters, shows_qubes, bound)
        return handler

    return register

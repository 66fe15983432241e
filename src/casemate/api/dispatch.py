"""Carries out one call: permission, form, lookup, handler; whatever happens, there is a reply."""

from __future__ import annotations

import asyncio
import logging
import secrets
from asyncio import WriteTransport
from collections.abc import Callable, Mapping
from typing import Any

from casemate.api import (
    backup,
    devices,
    domains,
    features,
    firewall,
    host,
    internal,
    labels,
    misc,
    notes,
    policy,
    pools,
    power,
    properties,
    system,
    tags,
    volumes,
)
from casemate.api.context import Context
from casemate.api.events import Subscription
from casemate.api.method import METHODS, MISC, Access, Method
from casemate.api.permissions import check_call
from casemate.wire.admin import ADMIN, Request, failure, success
from casemate.wire.errors import (
    CasemateError,
    InternalError,
    NotFoundError,
    PermissionDeniedError,
    ProtocolError,
    printable,
)

_log = logging.getLogger(__name__)

NOUNS = (
    backup, devices, domains, features, firewall, host, internal, labels, misc, notes, policy, pools, power, properties,
    system, tags, volumes,
)  # fmt: skip
"""The modules whose import registers the methods."""


STREAMS = ("admin.Events", "admin.vm.Stats")
"""Methods whose reply is a stream of events."""

LISTS = frozenset({*STREAMS, "admin.vm.List", "admin.casemate.List"})
"""Methods that show qubes: each qube must be one that the caller may ask the same of."""


def find(request: Request, family: Mapping[str, Method] = METHODS) -> Method:
    """The method of a call on a socket of the host that is permitted and well formed.

    ``family`` is what the socket serves. On that of MISC a program of the host speaks for the qube that it names.
    """
    if family is not MISC:
        check_call(request)
    method = family.get(request.method)
    if method is None:
        raise ProtocolError(f"No such method: {printable(request.method, 80)}")
    method.check(request)
    return method


def seer(context: Context, request: Request) -> Callable[[str], bool]:
    """Whether the caller may know of a qube, as a function of the qube's name."""
    word = request.method if request.method in LISTS else "admin.vm.List"
    return lambda name: context.may_see(request.source, word, name)


def subscribe(
    context: Context, request: Request, transport: WriteTransport
) -> tuple[Subscription, Callable[[Subscription], None]]:
    """Begin the stream that a call asks for; how to end it."""
    dest = context.store.snapshot().domains.find(request.dest).name
    visible = None if request.source == ADMIN else seer(context, request)
    if request.method == "admin.Events":
        return context.events.add(transport, dest, visible, request.source), context.events.discard
    return context.stats.add(transport, dest, visible), context.stats.discard


def read(context: Context, method: Method, request: Request) -> bytes:
    """The reply to a READ call, from a snapshot."""
    try:
        system = context.store.snapshot()
        return success(_call(context, method, request, system))
    except Exception as error:
        return reply_to(error, request)


async def execute(context: Context, method: Method, request: Request) -> bytes:
    """The reply to a WRITE or EXECUTE call."""
    try:
        if method.access is Access.WRITE:
            # Its own thread: another process may hold the store's lock for a while, and the disk takes its time.
            return success(await asyncio.to_thread(_write, context, method, request))
        return success(await _call(context, method, request, context.store.snapshot()) or b"")
    except asyncio.CancelledError:
        raise
    except Exception as error:
        return reply_to(error, request)


def _write(context: Context, method: Method, request: Request) -> Any:
    # Calls that come together are saved together: a burst of changes costs a few saves.
    return context.store.change(lambda system: _call(context, method, request, system))


def _call(context: Context, method: Method, request: Request, system: Any) -> Any:
    given = method.arguments(request)
    if method.wants("dest"):
        given["dest"] = system.domains.find(request.dest)
    if method.wants("system"):
        given["system"] = system
    if method.wants("sees"):
        given["sees"] = seer(context, request)
    if method.wants("context"):
        given["context"] = context
    result = method.handler(**given)
    return b"" if result is None else result


def reply_to(error: Exception, request: Request | None) -> bytes:
    """The reply that reports an error; a fault of ours is logged under an id, and only the id travels."""
    if isinstance(error, NotFoundError) and request is not None and request.source != ADMIN:
        # A qube that is not told of others cannot tell one that is missing from one that it may not see.
        error = PermissionDeniedError()
    if isinstance(error, CasemateError):
        return failure(error)
    ident = secrets.token_hex(4)
    called = "a call that was not read" if request is None else f"{request.method}+{printable(request.arg, 80)}"
    _log.error("internal error %s in %s", ident, called, exc_info=error)
    return failure(InternalError(f"Internal error {ident}; the daemon's log says more"))

"""Carries out one call: permission, form, lookup, handler. Whatever happens, there is a reply."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from casemate.api.context import Context
from casemate.api.events import FrameSink, Stream
from casemate.api.method import Access, Method
from casemate.api.methods import METHODS, MISC
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
    method = METHODS.get(request.method)
    word = request.method if method is not None and method.shows_qubes else "admin.vm.List"
    return lambda name: context.may_see(request.source, word, name)


def subscribe(context: Context, method: Method, request: Request, transport: FrameSink) -> Stream:
    """Begin the stream that a STREAM call asks for; the handler gets the connection as ``transport``."""
    visible = None if request.source == ADMIN else seer(context, request)
    system = context.store.snapshot()
    stream: Stream = _call(context, method, request, system, transport=transport, visible=visible)
    return stream


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


def _call(context: Context, method: Method, request: Request, system: Any, **more: object) -> Any:
    given = {**method.arguments(request), **more}
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
    """The reply that reports an error. A fault of the daemon is logged under an id, and only the id travels."""
    if isinstance(error, NotFoundError) and request is not None and request.source != ADMIN:
        # A qube that is not told of others cannot tell one that is missing from one that it may not see.
        error = PermissionDeniedError()
    if isinstance(error, CasemateError):
        return failure(error)
    ident = secrets.token_hex(4)
    called = "a call that was not read" if request is None else f"{request.method}+{printable(request.arg, 80)}"
    _log.error("internal error %s in %s", ident, called, exc_info=error)
    return failure(InternalError(f"Internal error {ident}; the daemon's log says more"))

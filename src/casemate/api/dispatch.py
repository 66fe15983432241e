"""Carries out one call: permission, form, lookup, handler; whatever happens, there is a reply."""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import Any

from casemate.api import (
    devices,
    domains,
    features,
    firewall,
    host,
    labels,
    pools,
    power,
    properties,
    system,
    tags,
    volumes,
)
from casemate.api.context import Context
from casemate.api.method import METHODS, Access, Method
from casemate.api.permissions import check_call
from casemate.wire.admin import Request, failure, success
from casemate.wire.errors import CasemateError, InternalError, ProtocolError, printable

_log = logging.getLogger(__name__)

NOUNS = (devices, domains, features, firewall, host, labels, pools, power, properties, system, tags, volumes)
"""The modules whose import registers the methods."""


def find(request: Request) -> Method:
    """The method of a call that is permitted and well formed."""
    check_call(request)
    method = METHODS.get(request.method)
    if method is None:
        raise ProtocolError(f"No such method: {printable(request.method, 80)}")
    method.check(request)
    return method


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
    if method.wants("context"):
        given["context"] = context
    result = method.handler(**given)
    return b"" if result is None else result


def reply_to(error: Exception, request: Request | None) -> bytes:
    """The reply that reports an error; a fault of ours is logged under an id, and only the id travels."""
    if isinstance(error, CasemateError):
        return failure(error)
    ident = secrets.token_hex(4)
    called = "a call that was not read" if request is None else f"{request.method}+{printable(request.arg, 80)}"
    _log.error("internal error %s in %s", ident, called, exc_info=error)
    return failure(InternalError(f"Internal error {ident}; the daemon's log says more"))

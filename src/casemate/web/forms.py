"""The body of a POST: a form, as browsers send it."""

from __future__ import annotations

import asyncio
from urllib.parse import parse_qsl

from starlette.requests import Request

from casemate.web.guard import Refused
from casemate.wire.errors import CasemateError

BODY_SECONDS = 10.0
"""Limit of the manager page (seconds): the body of a request."""
MAX_FIELDS = 2000
"""Limit of the manager page (fields): one form. Somebody may choose all of a thousand qubes."""


async def form(request: Request, *names: str) -> dict[str, str]:
    """The fields of a form, each once; CasemateError for a body that is none, or has other fields than ``names``.

    Without ``names`` it may have any.
    """
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await request.body()
        pairs = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, strict_parsing=bool(body), max_num_fields=MAX_FIELDS
        )
    except TimeoutError:
        raise Refused(408, "The request did not come to an end") from None
    except ValueError:
        raise CasemateError("The form is not understood") from None
    found = dict(pairs)
    if len(found) != len(pairs):
        raise CasemateError("A field of the form is there twice")
    if names and found.keys() != set(names):
        raise CasemateError(f"The fields of the form are not {', '.join(names)}")
    return found

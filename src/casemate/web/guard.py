"""What every request must show before anything else looks at it, and the headers of every answer.

A browser sends requests for any page that it shows, also to this host. So being reachable from this host alone proves
nothing; these checks do, each against a way in of its own:

* ``Host`` is exactly the address that was printed. A name of somebody else's that resolves to 127.0.0.1 (DNS
  rebinding) makes the browser treat a foreign page as ours, but it sends that name.
* ``Origin`` and ``Sec-Fetch-Site`` say that a page of ours asks. Another port of this host is another origin.
* The token is in the header ``Authorization``. A browser adds no such header by itself; cookies it would, and it sends
  them to every port of a host. Other users of this host can reach the port, and do not know the token.
* What changes something is POST with a header of ours: a form cannot add it, and a script of another origin needs a
  permission (CORS) that is never given.

The one document that needs no token is the empty frame of the page with its style sheet and module: they are the same
for everybody. The module finds the token in the fragment of the address, which browsers do not send.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Awaitable, Callable, Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_PER_SECOND = 60.0
"""Limit of the manager page (requests a second): what is answered on the average. A person makes a few."""
BURST = 240.0
"""Limit of the manager page (requests): how many may come at once before that rate holds."""
MAX_BODY = 128 << 10
"""Limit of the manager page (bytes): the body of a request. The longest are the rules of a firewall."""
CUSTOM_HEADER = b"x-casemate"
"""What a POST must have."""

SECURITY_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-embedder-policy", b"require-corp"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=(), usb=(), serial=(), hid=()"),
)
"""Headers of every answer, refusals too."""


class Refused(Exception):
    """A request that goes no further: an HTTP status and one sentence for a person."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


class Rate:
    """A bucket of tokens for all requests together: this page has one user."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left = BURST
        self._then = clock()

    def take(self) -> bool:
        """Whether one more request may be answered now."""
        now = self._clock()
        self._left = min(BURST, self._left + (now - self._then) * MOST_PER_SECOND)
        self._then = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Guard:
    """An ASGI application around another. ``authority`` is ``HOST:PORT`` as browsers must name it.

    ``public`` are the paths that need no token. With ``read_only`` nothing that changes something is let through.
    """

    def __init__(
        self, app: ASGIApp, *, authority: str, token: str, public: Iterable[str], read_only: bool = False
    ) -> None:
        self._app = app
        self._host = authority.encode()
        self._origin = b"http://" + self._host
        self._bearer = b"Bearer " + token.encode()
        self._public = frozenset(public)
        self._read_only = read_only
        self._rate = Rate()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            return  # neither WebSocket nor lifespan is served
        begun = False

        async def marked(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message["headers"] = [*message.get("headers", ()), *SECURITY_HEADERS]
            await send(message)

        try:
            self.check(scope["method"], scope["path"], scope["headers"])
            await self._app(scope, _bounded(receive), marked)
        except Refused as refusal:
            if begun:
                raise
            body = refusal.why.encode()
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
            await marked({"type": "http.response.start", "status": refusal.status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    def check(self, method: str, path: str, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Raise Refused unless a request with this head may go on. Names of ``headers`` are in lower case."""
        if not self._rate.take():
            raise Refused(429, "Too many requests at once; wait a moment")
        found: dict[bytes, bytes] = {}
        for name, value in headers:
            if name in found and name in _SINGLE:
                raise Refused(400, f"The header {name.decode('latin-1')} is there twice")
            found[name] = value
        if found.get(b"host") != self._host:
            raise Refused(421, "This page has another address: take the one that casemate web printed")
        if b"origin" in found and found[b"origin"] != self._origin:
            raise Refused(403, "Requests of other origins are refused")
        self._check_site(method, path, found)
        if path not in self._public and not hmac.compare_digest(found.get(b"authorization", b""), self._bearer):
            raise Refused(401, "The token is missing or is not that of this process")
        if method in ("GET", "HEAD"):
            return
        if method != "POST":
            raise Refused(405, "Only GET and POST are served")
        if found.get(CUSTOM_HEADER) != b"1":
            raise Refused(403, "A change needs the header X-Casemate")
        if self._read_only:
            raise Refused(403, "This page was started with --read-only: nothing can be changed here")

    def _check_site(self, method: str, path: str, found: dict[bytes, bytes]) -> None:
        """Whose page makes the browser ask. Every browser of the last years says so, and no script can change it."""
        site = found.get(b"sec-fetch-site")
        if site == b"same-origin":
            return
        # A person opens the frame from a terminal, a bookmark or a local file: the browser says "none" or, for the
        # file, "cross-site". It may be no more than a document of its own: nothing is in it, and nothing can frame it.
        navigated = found.get(b"sec-fetch-mode") == b"navigate" and found.get(b"sec-fetch-dest") == b"document"
        if not (path == "/" and method == "GET" and navigated):
            raise Refused(403, "Only pages from here may ask (header Sec-Fetch-Site)")


_SINGLE = frozenset((b"host", b"origin", b"authorization", b"sec-fetch-site", b"sec-fetch-mode", CUSTOM_HEADER))
"""Headers on which a decision rests: where one came twice, two readers could each believe another."""


def _bounded(receive: Receive) -> Callable[[], Awaitable[Message]]:
    """``receive`` that refuses a body of more than MAX_BODY bytes."""
    size = 0

    async def next_message() -> Message:
        nonlocal size
        message = await receive()
        if message["type"] == "http.request":
            size += len(message.get("body", b""))
            if size > MAX_BODY:
                raise Refused(413, f"The request is longer than {MAX_BODY} bytes")
        return message

    return next_message

"""The head of a request at the manager page's guard: each check alone, with everything else as it should be."""

from __future__ import annotations

import hmac

import pytest

from casemate.web import guard
from casemate.web.guard import BURST, MOST_PER_SECOND, Guard, Rate, Refused

AUTHORITY = "127.0.0.1:4711"
TOKEN = "a" * 43
GOOD = {
    "host": AUTHORITY, "origin": f"http://{AUTHORITY}", "sec-fetch-site": "same-origin", "sec-fetch-mode": "cors",
    "sec-fetch-dest": "empty", "authorization": f"Bearer {TOKEN}", "x-casemate": "1",
}  # fmt: skip
OPENED = {"host": AUTHORITY, "sec-fetch-site": "none", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
"""What a browser sends when a person opens the address."""


def status(method: str, path: str, headers: dict[str, str | None], *, read_only: bool = False) -> int:
    """The status of the refusal; 0 for a request that may go on."""

    async def never(*_: object) -> None:
        raise AssertionError

    made = Guard(never, authority=AUTHORITY, token=TOKEN, public=("/", "/static/a.js"), read_only=read_only)
    try:
        made.check(method, path, [(k.encode(), v.encode()) for k, v in headers.items() if v is not None])
    except Refused as refusal:
        return refusal.status
    return 0


def test_good_requests_go_on() -> None:
    assert status("GET", "/view/qubes", GOOD) == 0
    assert status("POST", "/qubes/work/do/start", GOOD) == 0
    assert status("GET", "/", OPENED) == 0
    assert status("GET", "/", OPENED | {"sec-fetch-site": "cross-site"}) == 0, "opened from a local file"
    assert status("GET", "/static/a.js", OPENED | {"sec-fetch-site": "same-origin"}) == 0


@pytest.mark.parametrize(
    "host",
    ["localhost:4711", "127.0.0.1", "127.0.0.1:4712", "evil.example:4711", "127.0.0.1:4711.evil.example",
     "evil.example", "", "127.0.0.1:4711 ", None],
)  # fmt: skip
def test_another_host_is_refused(host: str | None) -> None:
    """DNS rebinding: a foreign name that resolves to this host."""
    assert status("GET", "/view/qubes", GOOD | {"host": host}) == 421
    assert status("GET", "/", OPENED | {"host": host}) == 421


@pytest.mark.parametrize("origin", ["http://127.0.0.1:8000", "null", "https://127.0.0.1:4711", "http://evil.example"])
def test_another_origin_is_refused(origin: str) -> None:
    for method in ("GET", "POST"):
        assert status(method, "/view/qubes", GOOD | {"origin": origin}) == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site", "none", "", None])
def test_requests_of_other_pages_are_refused(site: str | None) -> None:
    """``same-site`` is a page at another port of this host: cookies would have gone there too."""
    for method, path in (("GET", "/events"), ("POST", "/qubes/work/do/start"), ("GET", "/static/a.js")):
        assert status(method, path, GOOD | {"sec-fetch-site": site}) == 403


def test_only_the_frame_may_be_opened_from_elsewhere_and_only_as_a_document() -> None:
    assert status("GET", "/view/qubes", GOOD | OPENED) == 403
    for change in ({"sec-fetch-dest": "iframe"}, {"sec-fetch-mode": "no-cors"}, {"sec-fetch-dest": "script"}):
        assert status("GET", "/", OPENED | {"sec-fetch-site": "cross-site"} | change) == 403
    assert status("POST", "/", GOOD | OPENED) == 403


@pytest.mark.parametrize(
    "word", [None, "", "Bearer ", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}a", TOKEN, "Bearer " + "b" * 43, "Basic eDp5"]
)
def test_without_the_token_nothing_is_answered(word: str | None) -> None:
    assert status("GET", "/view/qubes", GOOD | {"authorization": word}) == 401
    assert status("GET", "/events", GOOD | {"authorization": word}) == 401
    assert status("POST", "/qubes/work/do/kill", GOOD | {"authorization": word}) == 401
    assert status("GET", "/view/qubes", GOOD | {"authorization": word, "cookie": f"token={TOKEN}"}) == 401


def test_the_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    def compare(a: bytes, b: bytes) -> bool:
        asked.append(a)
        return hmac.compare_digest(a, b)

    monkeypatch.setattr(guard, "hmac", type("hmac", (), {"compare_digest": staticmethod(compare)}))
    assert status("GET", "/view/qubes", GOOD | {"authorization": "Bearer no"}) == 401
    assert asked == [b"Bearer no"]


def test_a_change_is_a_post_with_our_header() -> None:
    assert status("POST", "/qubes/work/do/start", GOOD | {"x-casemate": None}) == 403
    assert status("POST", "/qubes/work/do/start", GOOD | {"x-casemate": "true"}) == 403
    for method in ("PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"):
        assert status(method, "/qubes/work/do/start", GOOD) == 405


def test_a_read_only_page_changes_nothing() -> None:
    assert status("GET", "/view/qubes", GOOD, read_only=True) == 0
    assert status("POST", "/qubes/work/do/start", GOOD, read_only=True) == 403


def test_a_header_that_decides_is_there_once() -> None:
    head = [(k.encode(), v.encode()) for k, v in GOOD.items()]

    async def never(*_: object) -> None:
        raise AssertionError

    for name in ("host", "origin", "authorization", "sec-fetch-site", "x-casemate"):
        made = Guard(never, authority=AUTHORITY, token=TOKEN, public=())
        with pytest.raises(Refused) as caught:
            made.check("GET", "/view/qubes", [(name.encode(), b"evil"), *head])
        assert caught.value.status == 400


def test_the_rate_is_bounded() -> None:
    now = 0.0
    rate = Rate(lambda: now)
    assert sum(rate.take() for _ in range(1000)) == BURST
    now += 1
    assert sum(rate.take() for _ in range(1000)) == MOST_PER_SECOND
    now += 3600
    assert sum(rate.take() for _ in range(1000)) == BURST, "what is saved up is bounded too"


def test_a_flood_is_refused_before_it_is_looked_at() -> None:
    async def never(*_: object) -> None:
        raise AssertionError

    made = Guard(never, authority=AUTHORITY, token=TOKEN, public=())
    statuses = set()
    for _ in range(2000):
        try:
            made.check("GET", "/", [(b"host", b"evil.example")])
        except Refused as refusal:
            statuses.add(refusal.status)
    assert statuses == {421, 429}

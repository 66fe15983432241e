"""The updates proxy: which requests it understands, and where it does not go."""

from __future__ import annotations

import pytest

from casemate.agent.updates_proxy import Refused, allowed, parse


def test_a_request_is_sent_on_in_the_form_of_an_origin() -> None:
    found = parse(
        b"GET http://deb.debian.org/debian/InRelease?x=1 HTTP/1.1\r\nHost: deb.debian.org\r\nUser-Agent: apt\r\n"
        b"Connection: keep-alive\r\nProxy-Authorization: secret"
    )
    assert (found.host, found.port, found.tunnel) == ("deb.debian.org", 80, False)
    assert found.first == (
        b"GET /debian/InRelease?x=1 HTTP/1.1\r\nHost: deb.debian.org\r\nUser-Agent: apt\r\nConnection: close\r\n\r\n"
    )


def test_a_tunnel_goes_to_https() -> None:
    found = parse(b"CONNECT deb.debian.org:443 HTTP/1.1\r\nHost: deb.debian.org:443")
    assert (found.host, found.port, found.tunnel, found.first) == ("deb.debian.org", 443, True, b"")


@pytest.mark.parametrize(
    "head",
    [
        b"", b"GET / HTTP/1.1", b"GET http://x HTTP/1.1", b"POST http://x/ HTTP/1.1", b"GET http://x:22/ HTTP/1.1",
        b"CONNECT x:22 HTTP/1.1", b"CONNECT x:99999 HTTP/1.1", b"GET http://x/a b HTTP/1.1", b"GET http://x/ HTTP/2",
        b"GET http://user@x/ HTTP/1.1", b"GET http://x/ HTTP/1.1\r\nno header", b"GET http://x/\n HTTP/1.1",
        b"GET http://x/ HTTP/1.1\r\nA: b\nC: d", b"GET http://-x/ HTTP/1.1", b"GET file:///etc/passwd HTTP/1.1",
    ],
)  # fmt: skip
def test_anything_else_is_refused(head: bytes) -> None:
    with pytest.raises(Refused):
        parse(head)


def test_addresses_that_it_does_not_go_to() -> None:
    for address in (
        "127.0.0.1",
        "0.0.0.0",
        "169.254.1.1",
        "10.137.0.5",
        "10.138.1.1",
        "10.139.1.1",
        "224.0.0.1",
        "255.255.255.255",
    ):
        assert not allowed(address)
    for address in ("198.51.100.7", "10.0.0.1", "10.136.0.1", "192.168.1.1"):
        assert allowed(address)

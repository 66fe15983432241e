"""DNS messages: which addresses an answer gives to the name that was asked, and what is refused."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.wire import dns
from casemate.wire.errors import ProtocolError


def label(name: str) -> bytes:
    return b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"


def record(owner: bytes, kind: int, body: bytes, ttl: int = 60) -> bytes:
    return owner + struct.pack("!HHIH", kind, 1, ttl, len(body)) + body


def answer(name: str, *records: bytes, kind: int = 1, number: int = 7, flags: int = 0x8180) -> bytes:
    head = struct.pack("!HHHHHH", number, flags, 1, len(records), 0, 0)
    return head + label(name) + struct.pack("!HH", kind, 1) + b"".join(records)


def a(owner: str, address: str, ttl: int = 60) -> bytes:
    return record(label(owner), dns.A, socket.inet_aton(address), ttl)


def cname(owner: str, target: str, ttl: int = 60) -> bytes:
    return record(label(owner), dns.CNAME, label(target), ttl)


ASKED = dns.parse_query(dns.query("a.example.org", dns.A, 7))


def test_a_query_is_read_and_written() -> None:
    asked = dns.parse_query(dns.query("A.Example.ORG.", dns.AAAA, 77))
    assert (asked.number, asked.name, asked.kind, asked.klass) == (77, "a.example.org", dns.AAAA, 1)
    assert dns.parse_query(dns.with_number(dns.query("x.org", 1, 5), 6)).number == 6
    roomy = dns.with_room(dns.query("x.org", 1, 5), 4096)
    assert dns.parse_query(roomy).name == "x.org" and roomy[10:12] == b"\0\1" and dns.with_room(roomy, 9) == roomy


def test_addresses_of_the_name_that_was_asked() -> None:
    data = answer("a.example.org", a("a.example.org", "192.0.2.1", 5), a("A.EXAMPLE.org", "192.0.2.2"))
    assert dns.parse_answer(data, ASKED) == [("192.0.2.1", 5), ("192.0.2.2", 60)]


def test_an_alias_is_followed_and_its_time_counts() -> None:
    data = answer(
        "a.example.org", a("c.net", "192.0.2.9", 500), cname("b.net", "c.net", 90), cname("a.example.org", "b.net", 100)
    )
    assert dns.parse_answer(data, ASKED) == [("192.0.2.9", 90)]


def test_records_of_other_names_count_for_nothing() -> None:
    data = answer("a.example.org", a("www.example.org", "192.0.2.66"), a("a.example.org", "192.0.2.1"))
    assert dns.parse_answer(data, ASKED) == [("192.0.2.1", 60)]
    assert dns.parse_answer(answer("a.example.org", a("b.example.org", "192.0.2.66")), ASKED) == []


def test_aliases_in_a_circle_end() -> None:
    data = answer("a.example.org", cname("a.example.org", "b.net"), cname("b.net", "a.example.org"))
    assert dns.parse_answer(data, ASKED) == []


def test_many_addresses_are_bounded() -> None:
    data = answer("a.example.org", *(a("a.example.org", f"192.0.2.{n}") for n in range(200)))
    assert len(dns.parse_answer(data, ASKED)) == dns.MAX_ADDRESSES


def test_pointers_point_back() -> None:
    pointed = answer("a.example.org", record(b"\xc0\x0c", dns.A, socket.inet_aton("192.0.2.1")))
    assert dns.parse_answer(pointed, ASKED) == [("192.0.2.1", 60)]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 12,
        answer("b.example.org", a("b.example.org", "192.0.2.1")),
        answer("a.example.org", kind=28),
        answer("a.example.org", flags=0x0100),
        answer("a.example.org", record(b"\xc0\xff", dns.A, b"\1\2\3\4")),
        answer("a.example.org", record(label("a.example.org"), dns.A, b"\1\2\3\4"))[:-1],
        answer("a.example.org", b"\xc0"),
        answer("a.example.org", b"\x80abc"),
        struct.pack("!HHHHHH", 7, 0x8180, 1, 60000, 0, 0) + label("a.example.org") + b"\0\1\0\1",
        struct.pack("!HHHHHH", 7, 0x8180, 2, 0, 0, 0) + label("a.example.org") + b"\0\1\0\1",
    ],
)
def test_what_is_no_answer_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        dns.parse_answer(data, ASKED)


@pytest.mark.parametrize(
    "name", [b"\3a.b\3org\0", b"\1\0\0", b"\2a \0", b"\4\xff\xfe\xfd\xfc\0", b"\x3f" + b"a" * 63 + b"\x3f"]
)
def test_odd_names_are_refused(name: bytes) -> None:
    with pytest.raises(ProtocolError):
        dns.parse_query(struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + name + b"\0\1\0\1")


@given(st.binary(max_size=400))
def test_whatever_comes_is_read_or_refused(data: bytes) -> None:
    for parse in (dns.parse_query, lambda found: dns.parse_answer(found, ASKED)):
        try:
            parse(data)
        except ProtocolError:
            pass


@given(st.binary(max_size=300))
def test_whatever_follows_the_question_is_read_or_refused(data: bytes) -> None:
    head = struct.pack("!HHHHHH", 7, 0x8180, 1, 9, 0, 0) + label("a.example.org") + b"\0\1\0\1"
    try:
        assert len(dns.parse_answer(head + data, ASKED)) <= dns.MAX_ADDRESSES
    except ProtocolError:
        pass


def test_names_fit_hosts_of_rules() -> None:
    assert dns.matches("www.example.org", "www.example.org") and dns.matches("WWW.example.org.", "www.example.org")
    assert dns.matches("*.example.org", "a.example.org") and dns.matches("*.example.org", "a.b.example.org")
    assert not dns.matches("*.example.org", "example.org") and not dns.matches("*.example.org", "badexample.org")
    assert not dns.matches("example.org", "a.example.org")


def test_servers_of_a_resolv_conf() -> None:
    text = "# x\nnameserver 10.139.1.1\nnameserver ::1\nnameserver nonsense\nsearch a\nnameserver 10.139.1.2\n"
    assert dns.servers(text) == ["10.139.1.1", "10.139.1.2"]

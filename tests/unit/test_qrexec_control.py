"""Messages between agents, daemons and their clients, by version."""

from __future__ import annotations

import struct

import pytest

from casemate.wire import qrexec
from casemate.wire import qrexec_control as control
from casemate.wire.errors import ProtocolError, ValueInvalidError

IDENT = b"SOCKET7".ljust(32, b"\0")


def body_of(message: bytes) -> tuple[int, bytes]:
    kind, length = qrexec.HEADER.unpack_from(message)
    assert length == len(message) - 8
    return kind, message[8:]


@pytest.mark.parametrize("version", [2, 3, 4])
def test_a_request_comes_through_every_version(version: int) -> None:
    asked = body_of(control.trigger4("$dispvm:x", "svc+a_b"))[1]
    kind, body = body_of(control.trigger(version, asked, b"SOCKET7"))
    assert control.AGENT_MESSAGES[version]((kind, len(body))) == len(body)
    found = control.parse_request(kind, body)
    assert (found.ident, found.target, found.call, found.source) == (IDENT, "@dispvm:x", "svc+a_b", "")
    assert (found.service, found.full) == ("svc", "svc+a_b")
    for other in {2, 3, 4} - {version, version + 1}:
        with pytest.raises(ProtocolError):
            control.AGENT_MESSAGES[other]((kind, len(body)))


def test_the_old_request_byte_by_byte() -> None:
    body = b"svc\0junk".ljust(64, b"x") + b"vault\0".ljust(32, b"y") + IDENT
    found = control.parse_request(qrexec.TRIGGER_SERVICE, body)
    assert (found.target, found.call, found.ident, found.full) == ("vault", "svc", IDENT, "svc+")
    assert control.request_ident(qrexec.TRIGGER_SERVICE, body) == IDENT


def test_what_has_no_room_in_an_old_request() -> None:
    for target, call, source, version in (
        ("v" * 32, "svc", "", 2), ("vault", "s" * 64, "", 2), ("vault", "svc", "other", 3), ("vault", "s", "other", 2),
    ):  # fmt: skip
        with pytest.raises(ValueInvalidError):
            control.trigger(version, body_of(control.trigger4(target, call, source))[1], b"X")
    assert len(control.trigger(2, body_of(control.trigger4("v" * 31, "s" * 63))[1], b"X")) == 8 + 128


@pytest.mark.parametrize(
    ("target", "call", "ident"),
    [
        (b"vault", b"\0", IDENT),
        (b"vault", b"+a\0", IDENT),
        (b"vault", b"svc", IDENT),
        (b"vault", b"s\0vc\0", IDENT),
        (b"vault", b"s" * 256 + b"\0", IDENT),
        (b"v" * 64, b"svc\0", IDENT),
        (b"vault", b"svc\0", b"x" * 32),
        (b"vault", b"svc\0", b"a\0b".ljust(32, b"\0")),
        (b"vault", b"svc\0", b"a/b".ljust(32, b"\0")),
        (b"va/ult", b"svc\0", IDENT),
        (b"vault", b"s/vc\0", IDENT),
        (b"vault", b"svc+a b\0", IDENT),
    ],
)
def test_lesson_L03_requests_that_are_refused_and_still_have_an_id(target: bytes, call: bytes, ident: bytes) -> None:
    body = bytes(64) + target.ljust(64, b"\0") + ident + call
    with pytest.raises(ValueInvalidError):
        control.parse_request(qrexec.TRIGGER_SERVICE4, body)
    assert control.request_ident(qrexec.TRIGGER_SERVICE4, body) == ident


def test_the_longest_service() -> None:
    name = "svc+" + "a" * 64_996
    kind, body = body_of(control.trigger4("vault", name))
    assert control.parse_request(kind, body).call == name
    assert control.LOCAL_TRIGGERS((kind, len(body))) == len(body)
    with pytest.raises(ProtocolError):
        control.LOCAL_TRIGGERS((kind, len(body) + 1))
    with pytest.raises(ValueInvalidError):
        control.trigger4("vault", name + "a")


def test_greetings_and_places() -> None:
    assert control.hello(3) == struct.pack("<III", 0x300, 4, 3)
    assert control.parse_hello(struct.pack("<I", 9)) == 9
    with pytest.raises(ProtocolError):
        control.parse_hello(struct.pack("<I", 1))
    with pytest.raises(ProtocolError):
        control.parse_hello(struct.pack("<I", 2), control.CLIENT_VERSION)
    assert [control.chunk(version) for version in (2, 3, 4, 9)] == [4096, 65536, 65536, 65536]
    assert control.place_answer(6, 513) == struct.pack("<II", 6, 513)
    assert control.parse_params(control.params(0x202, 6, 513, IDENT)[8:]) == (6, 513, IDENT)


@pytest.mark.parametrize("rest", [b"", b"\0", b"user:id", b"us\0er:id\0", b"user:id\0\0"])
def test_command_lines_that_are_none(rest: bytes) -> None:
    with pytest.raises(ProtocolError):
        control.command_text(rest)

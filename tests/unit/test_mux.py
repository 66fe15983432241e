"""The mux: what goes in comes out, whatever the cuts; resets, windows, hostile bytes."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.wire import mux
from casemate.wire.errors import ProtocolError
from casemate.wire.mux import Mux


def drain(end: Mux) -> bytes:
    data = b"".join(bytes(piece) for piece in end.output)
    end.output.clear()
    end.pending = 0
    return data


def carry(source: Mux, target: Mux, step: int = 1 << 30) -> list[mux.Event]:
    data, events = drain(source), []
    for at in range(0, len(data), step):
        events += [(kind, number, bytes(payload)) for kind, number, payload in target.feed(data[at : at + step])]
    return events


def pair() -> tuple[Mux, Mux]:
    host, guest = Mux(host=True), Mux(host=False)
    host.reset(os.urandom(16))
    carry(host, guest)
    carry(guest, host)
    assert host.connected and guest.connected
    return host, guest


@given(st.lists(st.binary(min_size=1, max_size=3000), max_size=8), st.integers(1, 4000))
@settings(max_examples=60, deadline=None)
def test_streams_survive_any_cut(chunks: list[bytes], step: int) -> None:
    host, guest = pair()
    one, two = host.open(b"first"), host.open(b"second")
    for chunk in chunks:
        host.send(one, chunk)
        host.send(two, chunk[::-1])
    host.eof(one)
    events = carry(host, guest, step)
    assert [e for e in events if e[0] == mux.OPEN] == [(mux.OPEN, one, b"first"), (mux.OPEN, two, b"second")]
    assert b"".join(e[2] for e in events if e[:2] == (mux.DATA, one)) == b"".join(chunks)
    assert b"".join(e[2] for e in events if e[:2] == (mux.DATA, two)) == b"".join(c[::-1] for c in chunks)
    assert events[-1] == (mux.EOF, one, b"")


@given(st.integers(0, 70000), st.integers(1, 5000))
@settings(max_examples=60, deadline=None)
def test_a_host_that_reconnects_in_the_middle_of_a_frame_delivers_nothing_of_it(cut: int, step: int) -> None:
    host, guest = pair()
    stream = host.open(b"x")
    carry(host, guest)
    host.send(stream, b"A" * 65536)
    old = drain(host)[: min(cut, 65536 + 15)]
    assert list(guest.feed(old)) == []
    again = Mux(host=True)
    again.reset(os.urandom(16))
    assert carry(again, guest, step) == []
    assert carry(guest, again, step) == []
    assert again.connected and guest.sessions == 2
    fresh = again.open(b"new")
    again.send(fresh, b"hello")
    assert carry(again, guest, step) == [(mux.OPEN, fresh, b"new"), (mux.DATA, fresh, b"hello")]


def test_the_host_throws_away_what_came_before_the_answer_to_its_reset() -> None:
    host, guest = pair()
    stream = guest.open(b"g")
    guest.send(stream, b"stale" * 1000)
    stale = drain(guest)
    again = Mux(host=True)
    again.reset(b"n" * 16)
    assert list(again.feed(stale[:777])) == []
    carry(again, guest)
    assert carry(guest, again) == [] and again.connected


def test_a_stream_never_has_more_than_its_window_outstanding() -> None:
    host, guest = pair()
    stream = host.open(b"")
    sent = 0
    while room := host.room(stream):
        host.send(stream, bytes(min(room, 65536)))
        sent += min(room, 65536)
    assert sent == mux.WINDOW
    with pytest.raises(ValueError, match="more than the stream takes"):
        host.send(stream, b"x")
    carry(host, guest)
    assert host.room(stream) == 0
    guest.consumed(stream, mux.WINDOW // 2)
    assert carry(guest, host) == [(mux.GRANT, stream, b"")]
    assert host.room(stream) == mux.WINDOW // 2
    other = host.open(b"")
    assert host.room(other) == mux.WINDOW


def frame(stream: int, kind: int, payload: bytes, tag: bytes) -> bytes:
    return mux.HEADER.pack(stream, len(payload), kind) + payload + tag


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("type 0", lambda tag: frame(1, 0, b"", tag)),
        ("type 6", lambda tag: frame(1, 6, b"", tag)),
        ("too long", lambda tag: mux.HEADER.pack(1, mux.MAX_PAYLOAD + 1, mux.DATA)),
        ("wrong trailer", lambda tag: frame(1, mux.OPEN, b"", b"zzzz")),
        ("even id", lambda tag: frame(2, mux.OPEN, b"", tag)),
        ("id 0", lambda tag: frame(0, mux.OPEN, b"", tag)),
        ("reopened", lambda tag: frame(1, mux.OPEN, b"", tag) * 2),
        ("never opened", lambda tag: frame(1, mux.DATA, b"x", tag)),
        ("our stream that never was", lambda tag: frame(4, mux.DATA, b"x", tag)),
        ("empty data", lambda tag: frame(1, mux.OPEN, b"", tag) + frame(1, mux.DATA, b"", tag)),
        ("beyond the window", lambda tag: frame(1, mux.OPEN, b"", tag) + frame(1, mux.DATA, bytes(65536), tag) * 5),
        ("two ends", lambda tag: frame(1, mux.OPEN, b"", tag) + frame(1, mux.EOF, b"", tag) * 2),
        (
            "data after the end",
            lambda tag: frame(1, mux.OPEN, b"", tag) + frame(1, mux.EOF, b"", tag) + frame(1, 2, b"x", tag),
        ),
        ("grant too much", lambda tag: frame(1, mux.OPEN, b"", tag) + frame(1, mux.GRANT, b"\x01\0\0\0", tag)),
        ("short grant", lambda tag: frame(1, mux.OPEN, b"", tag) + frame(1, mux.GRANT, b"\0", tag)),
        ("end with payload", lambda tag: frame(1, mux.OPEN, b"", tag) + frame(1, mux.EOF, b"x", tag)),
        ("too many", lambda tag: b"".join(frame(2 * n + 1, mux.OPEN, b"", tag) for n in range(mux.MAX_STREAMS + 1))),
    ],
)
def test_a_violation_of_the_guest_closes_the_channel(name: str, bad: object) -> None:
    host, _guest = pair()
    with pytest.raises(ProtocolError):
        list(host.feed(bad(host._tag)))  # type: ignore[operator]


@given(st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_garbage_of_the_guest_is_a_protocol_error_or_an_incomplete_frame(garbage: bytes) -> None:
    host, _guest = pair()
    try:
        events = list(host.feed(garbage))
    except ProtocolError:
        return
    assert events == []


@given(st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_a_guest_recovers_from_any_garbage_at_the_next_reset(garbage: bytes) -> None:
    _host, guest = pair()
    list(guest.feed(garbage))
    again = Mux(host=True)
    again.reset(os.urandom(16))
    carry(again, guest)
    carry(guest, again)
    assert again.connected


def test_late_frames_of_an_aborted_stream_are_ignored_and_ids_are_never_reused() -> None:
    host, guest = pair()
    stream = guest.open(b"")
    carry(guest, host)
    guest.send(stream, b"late")
    guest.eof(stream)
    host.abort(stream)
    assert carry(guest, host) == []
    assert carry(host, guest) == [(mux.ABORT, stream, b"")]
    assert guest.open(b"") == stream + 2


def test_a_guest_that_never_answers_the_reset_but_sends_is_hung_up_on() -> None:
    host = Mux(host=True)
    host.reset(b"n" * 16)
    with pytest.raises(ProtocolError):
        for _ in range(mux.MAX_STALE // 65536 + 2):
            assert list(host.feed(bytes(65536))) == []

"""The database: tree, local programs, the two mirrors, the blocking client.

One file although it is long: both mirrors are held against the same rig.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.qdb import mirror as mirrors
from casemate.qdb import session as sessions
from casemate.qdb import tree as trees
from casemate.qdb.client import QubesDB
from casemate.qdb.mirror import GuestMirror, HostMirror
from casemate.qdb.session import Database, LocalSession, Session
from casemate.qdb.tree import Tree
from casemate.wire import qdb
from casemate.wire.errors import DisconnectedError, ValueInvalidError

segments = st.text("ab_-.", min_size=1, max_size=3).filter(lambda s: s not in (".", "..") and not s.startswith("-"))
paths = st.lists(segments, min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))


def replies(session: Session) -> list[tuple[int, str, bytes]]:
    """All records that the session has to say."""
    reader, out = qdb.RecordReader(strict=True), []
    while session.pending:
        reader.feed(session.take_output())
        while (record := reader.next()) is not None:
            out.append((record.kind, record.path, record.data))
    return out


def ask(session: Session, kind: int, path: str, data: bytes = b"") -> list[tuple[int, str, bytes]]:
    session.feed(qdb.record(kind, path, data))
    return replies(session)


def join(host: HostMirror, guest: GuestMirror) -> None:
    """Carry bytes between the two ends until both are quiet."""
    while host.pending or guest.pending:
        if guest.pending:
            host.feed(guest.take_output(100))
        if host.pending:
            guest.feed(host.take_output(100))


# -- tree


@given(st.lists(st.tuples(st.booleans(), paths, st.binary(max_size=5).filter(lambda b: b"\0" not in b))), paths)
def test_tree_is_a_sorted_dict(changes: list[tuple[bool, str, bytes]], probe: str) -> None:
    tree, model = Tree(), dict[str, bytes]()
    for write, path, value in changes:
        if write:
            tree.write(path, value)
            model[path] = value
        else:
            assert tree.remove(path) == (model.pop(path, None) is not None)
    for prefix in ("", "/", probe, probe + "/", probe[:-1]):
        assert tree.items(prefix) == sorted((k, v) for k, v in model.items() if k.startswith(prefix))
    assert tree.read(probe) == model.get(probe)
    below = {k for k in model if k.startswith(probe + "/")}
    assert tree.remove(probe + "/") == bool(below)
    assert set(tree.paths()) == set(model) - below
    tree.remove("/")
    assert len(tree) == 0


def test_tree_is_bounded_apart_for_host_and_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "GUEST_KEYS", 3)
    monkeypatch.setattr(trees, "GUEST_BYTES", 60)
    tree = Tree()
    for i in range(3):
        tree.write(f"/status/{i}", b"")
    with pytest.raises(ValueInvalidError):
        tree.write("/status/3", b"")
    tree.write("/name", b"work")
    tree.write("/status/0", b"x" * 33)
    with pytest.raises(ValueInvalidError):
        tree.write("/status/1", b"x")
    assert tree.read("/status/1") == b""
    tree.remove("/status/")
    tree.write("/status/9", b"x" * 51)
    with pytest.raises(ValueInvalidError):
        tree.write("/status/9", b"x" * 52)


@pytest.mark.parametrize(
    ("path", "value", "allowed"),
    [
        ("/status/x", b"1", True),
        ("/features-request/x", b"1", True),
        ("/qubes-block-devices", b"", True),
        ("/qubes-block-devices", b"x", False),
        ("/qubes-block-devices", None, False),
        ("/qubes-block-devices/sda/desc", b"x", True),
        ("/status/", None, True),
        ("/status", b"", False),
        ("/statusx/y", b"", False),
        ("/name", b"dom0", False),
        ("/", None, False),
        ("/qubes-ip", None, False),
    ],
)
def test_lesson_L25_where_a_guest_may_write(path: str, value: bytes | None, allowed: bool) -> None:
    assert trees.guest_may_write(path, value) is allowed


# -- local programs


def test_local_requests() -> None:
    session = LocalSession(Database())
    assert ask(session, qdb.READ, "/a") == [(qdb.NOENT, "/a", b"")]
    assert ask(session, qdb.WRITE, "/a", b"1") == [(qdb.OK, "/a", b"")]
    assert ask(session, qdb.WRITE, "/a/b", b"2") == [(qdb.OK, "/a/b", b"")]
    assert ask(session, qdb.READ, "/a") == [(qdb.RESP_READ, "/a", b"1")]
    assert ask(session, qdb.LIST, "") == [(qdb.RESP_LIST, "/a", b""), (qdb.RESP_LIST, "/a/b", b""), (12, "", b"")]
    assert ask(session, qdb.MULTIREAD, "/a/") == [(11, "/a/b", b"2"), (11, "", b"")]
    assert ask(session, qdb.RM, "/a/") == [(qdb.OK, "/a/", b"")]
    assert ask(session, qdb.RM, "/a/") == [(qdb.NOENT, "/a/", b"")]
    assert ask(session, qdb.RM, "/a") == [(qdb.OK, "/a", b"")]
    assert ask(session, qdb.UNWATCH, "/a") == [(qdb.NOENT, "/a", b"")]
    assert not session.closed


@pytest.mark.parametrize("path", ["", "/", "/a/", "a", "/a//b", "/../x"])
def test_lesson_L25_a_path_that_cannot_be_stored_is_an_error_and_the_connection_lives(path: str) -> None:
    session = LocalSession(Database())
    assert ask(session, qdb.WRITE, path, b"x") == [(qdb.ERROR, path, b"")]
    assert ask(session, qdb.WRITE, "/a", b"x\0") == [(qdb.ERROR, "/a", b"")]
    assert ask(session, qdb.OK, "/a") == [(qdb.ERROR, "/a", b"")]
    assert ask(session, qdb.WRITE, "/a", b"x") == [(qdb.OK, "/a", b"")]


def test_watches() -> None:
    database = Database()
    writer, watcher = LocalSession(database), LocalSession(database)
    for path in ("/a", "/d/", "/d/x", "/a"):
        assert ask(watcher, qdb.WATCH, path) == [(qdb.OK, path, b"")]
    ask(writer, qdb.WRITE, "/a", b"")
    assert replies(watcher) == [(qdb.RESP_WATCH, "/a", b"")] * 2
    assert ask(watcher, qdb.UNWATCH, "/a") == [(qdb.OK, "/a", b"")]
    ask(writer, qdb.WRITE, "/a", b"")
    assert replies(watcher) == [(qdb.RESP_WATCH, "/a", b"")]
    ask(writer, qdb.WRITE, "/ab", b"")
    assert replies(watcher) == []
    ask(writer, qdb.WRITE, "/d/x", b"")
    assert replies(watcher) == [(qdb.RESP_WATCH, "/d/x", b"")] * 2
    ask(writer, qdb.RM, "/d/")
    assert replies(watcher) == [(qdb.RESP_WATCH, "/d/", b""), (qdb.RESP_WATCH, "/d/x", b"")]
    # the reply comes before the event
    assert ask(watcher, qdb.WRITE, "/a", b"") == [(qdb.OK, "/a", b""), (qdb.RESP_WATCH, "/a", b"")]
    watcher.close()
    ask(writer, qdb.WRITE, "/a", b"")
    assert not watcher.pending


def test_a_session_has_so_many_watches() -> None:
    session = LocalSession(Database())
    for i in range(sessions.MAX_WATCHES):
        assert ask(session, qdb.WATCH, f"/{i}") == [(qdb.OK, f"/{i}", b"")]
    assert ask(session, qdb.WATCH, "/x") == [(qdb.ERROR, "/x", b"")]


def test_lesson_L24_a_client_that_does_not_read_costs_bounded_memory_and_only_itself() -> None:
    database = Database()
    database.write("/a", b"x" * 3000)
    lazy, other = LocalSession(database), LocalSession(database)
    request = qdb.record(qdb.READ, "/a")
    sent = 0
    while lazy.wants_input:
        lazy.feed(request * 10)
        sent += 10
    assert sent * 3072 < 2 * sessions.HIGH_WATER
    assert ask(other, qdb.READ, "/a")[0][0] == qdb.RESP_READ
    assert len(replies(lazy)) == sent
    ask(lazy, qdb.WATCH, "/a")
    for _ in range(sessions.MAX_OUTPUT // 72 + 2):
        database.write("/a", b"")
    assert lazy.closed and "read" in lazy.reason and not lazy.pending
    assert ask(other, qdb.READ, "/a") == [(qdb.RESP_READ, "/a", b"")]


def test_a_read_only_session_changes_nothing() -> None:
    database = Database()
    database.write("/a", b"1")
    session = LocalSession(database, read_only=True)
    assert ask(session, qdb.WRITE, "/a", b"2") == [(qdb.ERROR, "/a", b"")]
    assert ask(session, qdb.RM, "/a") == [(qdb.ERROR, "/a", b"")]
    assert ask(session, qdb.READ, "/a") == [(qdb.RESP_READ, "/a", b"1")]
    assert ask(session, qdb.WATCH, "/a") == [(qdb.OK, "/a", b"")]


def test_lesson_L24_half_a_message_stops_nobody() -> None:
    database = Database()
    stalled, other = LocalSession(database), LocalSession(database)
    stalled.feed(qdb.record(qdb.READ, "/a")[:50])
    assert not stalled.pending
    assert ask(other, qdb.READ, "/a") == [(qdb.NOENT, "/a", b"")]
    stalled.feed(qdb.record(qdb.READ, "/a")[50:])
    assert replies(stalled) == [(qdb.NOENT, "/a", b"")]


def test_output_is_announced_once_until_it_is_taken() -> None:
    database = Database()
    watcher, calls = LocalSession(database), list[int]()
    ask(watcher, qdb.WATCH, "/a")
    watcher.on_output = lambda: calls.append(1)
    database.write("/a", b"")
    database.write("/a", b"")
    assert calls == [1]
    replies(watcher)
    database.write("/a", b"")
    assert calls == [1, 1]


# -- mirrors


def pair() -> tuple[Database, Database, HostMirror, GuestMirror]:
    host, guest = Database(), Database(guest=True)
    return host, guest, HostMirror(host), GuestMirror(guest)


def test_mirrors_come_and_stay_in_step() -> None:
    host, guest = Database(), Database(guest=True)
    host.write("/name", b"work")
    host.write("/qubes-ip", b"10.137.0.5")
    at_host, at_guest = HostMirror(host), GuestMirror(guest)
    told = list[str]()
    at_guest.on_synced = lambda: told.append("synced")
    assert not at_guest.synced
    join(at_host, at_guest)
    assert told == ["synced"] and at_guest.synced and at_host.synced
    assert guest.tree.items() == host.tree.items()
    program = LocalSession(guest)
    assert ask(program, qdb.WRITE, "/status/x", b"1") == [(qdb.OK, "/status/x", b"")]
    host.write("/qubes-ip", b"10.137.0.6")
    host.remove("/name")
    join(at_host, at_guest)
    assert guest.tree.items() == host.tree.items() == [("/qubes-ip", b"10.137.0.6"), ("/status/x", b"1")]


def test_the_dump_is_in_descending_order() -> None:
    host = Database()
    for name in ("/b", "/a", "/c"):
        host.write(name, b"")
    mirror = HostMirror(host)
    assert [path for _, path, _ in ask(mirror, qdb.MULTIREAD, "")] == ["/c", "/b", "/a", ""]


def test_changes_reach_watches_at_the_other_end() -> None:
    host, guest, at_host, at_guest = pair()
    in_host, in_guest = LocalSession(host), LocalSession(guest)
    ask(in_host, qdb.WATCH, "/status/")
    ask(in_guest, qdb.WATCH, "/name")
    host.write("/name", b"work")
    join(at_host, at_guest)
    assert replies(in_guest) == [(qdb.RESP_WATCH, "/name", b"")]  # the first sync tells, too
    ask(in_guest, qdb.WRITE, "/status/x", b"")
    host.write("/name", b"home")
    join(at_host, at_guest)
    assert replies(in_guest) == [(qdb.RESP_WATCH, "/name", b"")]
    assert replies(in_host) == [(qdb.RESP_WATCH, "/status/x", b"")]


def test_a_change_during_the_dump_comes_after_it() -> None:
    host, guest, at_host, at_guest = pair()
    for i in range(300):
        host.write(f"/k/{i}", b"old")
    at_host.feed(at_guest.take_output())
    guest_bytes = at_host.take_output(200)
    host.write("/k/0", b"new")
    host.remove("/k/1")
    at_guest.feed(guest_bytes)
    join(at_host, at_guest)
    assert guest.tree.items() == host.tree.items()
    assert guest.tree.read("/k/0") == b"new"


def test_lesson_L25_a_guest_cannot_write_what_is_the_hosts() -> None:
    host = Database()
    host.write("/name", b"work")
    mirror = HostMirror(host)
    ask(mirror, qdb.MULTIREAD, "")
    for kind, path in ((qdb.WRITE, "/name"), (qdb.WRITE, "/new"), (qdb.RM, "/name"), (qdb.RM, "/"), (qdb.RM, "/name/")):
        assert ask(mirror, kind, path, b"x" if kind == qdb.WRITE else b"") == [(qdb.ERROR, path, b"")]
    assert host.tree.items() == [("/name", b"work")]
    assert not mirror.closed
    # and a program in the guest is told so at once
    assert ask(LocalSession(Database(guest=True)), qdb.WRITE, "/name", b"x") == [(qdb.ERROR, "/name", b"")]


@pytest.mark.parametrize(
    ("first", "record"),
    [
        (False, qdb.record(qdb.WRITE, "/status/x", b"")),
        (False, qdb.record(qdb.MULTIREAD, "/a")),
        (True, qdb.record(qdb.MULTIREAD, "")),
        (True, qdb.record(qdb.READ, "/a")),
        (True, qdb.record(qdb.LIST, "")),
        (True, qdb.record(qdb.WATCH, "/a")),
        (True, qdb.record(qdb.RESP_MULTIREAD, "/a")),
        (True, qdb.record(qdb.RESP_WATCH, "/a")),
        (True, qdb.record(qdb.OK, "/a")),
        (True, qdb.record(qdb.ERROR, "/a")),
        (True, qdb.RECORD.pack(99, b"/a", 0)),
        (True, qdb.RECORD.pack(qdb.WRITE, b"/status/x", 2**31)),
        (True, qdb.RECORD.pack(qdb.WRITE, b"x" * 64, 0)),
    ],
)
def test_lesson_L24_a_guest_that_breaks_the_protocol_is_cut_off(first: bool, record: bytes) -> None:
    host = Database()
    mirror, other, told = HostMirror(host), LocalSession(host), list[int]()
    mirror.on_output = lambda: told.append(1)
    if first:
        ask(mirror, qdb.MULTIREAD, "")
    mirror.feed(record)
    assert mirror.closed and mirror.reason and not mirror.pending and told
    host.write("/a", b"")
    mirror.feed(record)
    assert not mirror.pending
    assert ask(other, qdb.READ, "/a") == [(qdb.RESP_READ, "/a", b"")]


def test_a_guest_writes_at_a_bounded_rate() -> None:
    now = [0.0]
    mirror = HostMirror(Database(), clock=lambda: now[0])
    ask(mirror, qdb.MULTIREAD, "")
    done = sum(ask(mirror, qdb.WRITE, "/status/x", b"")[0][0] == qdb.OK for _ in range(int(mirrors.GUEST_BURST) + 20))
    assert done == mirrors.GUEST_BURST
    now[0] += 1
    done = sum(ask(mirror, qdb.WRITE, "/status/x", b"")[0][0] == qdb.OK for _ in range(100))
    assert done == mirrors.GUEST_RATE
    for _ in range(mirrors.MAX_REFUSED):
        ask(mirror, qdb.WRITE, "/status/x", b"")
    assert mirror.closed


def test_a_guest_that_does_not_read_is_cut_off() -> None:
    host = Database()
    mirror = HostMirror(host)
    ask(mirror, qdb.MULTIREAD, "")
    count = 0
    while not mirror.closed:
        host.write("/a", b"x" * 3000)
        count += 1
    assert count * 3072 < sessions.MAX_OUTPUT + 10000
    host.write("/a", b"still works")


def test_a_guest_joins_again_and_loses_what_the_host_removed_meanwhile() -> None:
    host, guest, at_host, at_guest = pair()
    host.write("/name", b"work")
    host.write("/old", b"x")
    join(at_host, at_guest)
    guest.write("/status/kept", b"1")
    join(at_host, at_guest)
    at_host.close()
    at_guest.close()
    fresh = Database()
    fresh.write("/name", b"work")
    fresh.write("/status/stale", b"2")
    guest.write("/status/late", b"3")
    watcher = LocalSession(guest)
    ask(watcher, qdb.WATCH, "/old")
    join(HostMirror(fresh), GuestMirror(guest))
    expected = {"/name": b"work", "/status/kept": b"1", "/status/late": b"3", "/status/stale": b"2"}
    assert dict(guest.tree.items()) == dict(fresh.tree.items()) == expected
    assert replies(watcher) == [(qdb.RESP_WATCH, "/old", b"")]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), paths, st.sampled_from([b"", b"1", b"22"])), max_size=30))
def test_mirrors_agree_after_any_changes(changes: list[tuple[bool, bool, str, bytes]]) -> None:
    host, guest, at_host, at_guest = pair()
    for i, (by_guest, write, path, value) in enumerate(changes):
        database = guest if by_guest else host
        path = ("/status" if by_guest else "/host") + path[:40]
        path = path.rstrip("/")
        try:
            if write:
                database.write(path, value)
            else:
                database.remove(path)
        except ValueInvalidError:
            continue
        if i % 3 == 0:
            join(at_host, at_guest)
    join(at_host, at_guest)
    assert host.tree.items() == guest.tree.items()
    assert not at_host.closed and not at_guest.closed


@given(st.binary(max_size=400), st.integers(1, 99))
def test_garbage_closes_a_mirror_and_never_raises(garbage: bytes, step: int) -> None:
    database = Database()
    for session in (HostMirror(database), GuestMirror(database), LocalSession(database)):
        for at in range(0, len(garbage), step):
            session.feed(garbage[at : at + step])
            replies(session)


def test_replace_writes_differences_only() -> None:
    host = Database()
    host.replace({"/a": b"1", "/b": b"2"})
    host.write("/status/x", b"guest's")
    watcher = LocalSession(host)
    ask(watcher, qdb.WATCH, "/")
    host.replace({"/a": b"1", "/b": b"3", "/c": b"4"})
    assert replies(watcher) == [(qdb.RESP_WATCH, "/b", b""), (qdb.RESP_WATCH, "/c", b"")]
    host.replace({"/a": b"1"})
    assert host.tree.items() == [("/a", b"1"), ("/status/x", b"guest's")]


# -- client


class Server:
    """The database behind a real socket; each connection is served by a thread."""

    def __init__(self, path: Path) -> None:
        self.database = Database()
        self.lock = threading.Lock()
        self.connections: list[socket.socket] = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection = self.listener.accept()[0]
            except OSError:
                return
            self.connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with self.lock:
            session = LocalSession(self.database)
        send = threading.Lock()

        def flush() -> None:
            with send:
                while session.pending:
                    connection.sendall(session.take_output())

        try:
            while data := connection.recv(1000):
                with self.lock:
                    session.feed(data)
                    flush()
                    session.on_output = lambda: threading.Thread(target=flush).start()
        except OSError:
            pass

    def stop(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for connection in self.connections:
            connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "qubesdb.sock")
    yield server
    if server.listener.fileno() >= 0:
        server.stop()


def test_client(server: Server, tmp_path: Path) -> None:
    with QubesDB(tmp_path / "qubesdb.sock") as db:
        assert db.read("/a") is None
        db.write("/a", b"1\n2")
        db.write("/b/c", b"")
        assert db.read("/a") == b"1\n2"
        assert db.list() == ["/a", "/b/c"]
        assert db.multiread("/b") == {"/b/c": b""}
        db.watch("/w/")
        with server.lock:
            server.database.write("/w/x", b"")
        assert db.read("/w/x") == b""
        assert db.read_watch(10) == "/w/x"
        assert db.read_watch(0) is None
        assert db.unwatch("/w/") and not db.unwatch("/w/")
        assert db.rm("/b/") and not db.rm("/b/")
        with pytest.raises(ValueInvalidError):
            db.write("/x/", b"")
        with pytest.raises(ValueInvalidError):
            db.read("/x y")
        for i in range(500):
            db.write(f"/many/{i}", b"x" * 3000)
        assert len(db.multiread("/many/")) == 500


def test_a_new_connection_to_a_database_has_nothing_of_the_old(server: Server, tmp_path: Path) -> None:
    """Neither an answer that was on its way, nor a change that nobody has asked about yet."""
    with QubesDB(tmp_path / "qubesdb.sock") as db:
        db.watch("/w")
        db.write("/w", b"1")
        db.write("/a", b"2")
        assert db.read("/a") == b"2"
        db.refresh()
        assert db.read_watch(0) is None
        db.watch("/a")
        with server.lock:
            server.database.write("/a", b"4")
        assert db.read_watch(10) == "/a"
        assert db.read("/a") == b"4"


def test_a_database_that_is_gone_is_an_error_at_once(server: Server, tmp_path: Path) -> None:
    db, waiting = QubesDB(tmp_path / "qubesdb.sock"), QubesDB(tmp_path / "qubesdb.sock")
    db.write("/a", b"1")
    waiting.watch("/a")
    server.stop()
    with pytest.raises(DisconnectedError):
        waiting.read_watch()
    for _ in range(2):
        with pytest.raises(DisconnectedError):
            db.read("/a")
    with pytest.raises(DisconnectedError):
        QubesDB(tmp_path / "qubesdb.sock")
    with pytest.raises(DisconnectedError):
        QubesDB(tmp_path / "none.sock")

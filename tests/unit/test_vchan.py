"""The vchan transport, its ports and deadlines, and the loop under them."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from casemate.calls.children import Children
from casemate.calls.vchan_sockets import Connector, Listening, Server, SocketDirectory, accept_within
from casemate.streams.deadlines import Deadlines
from casemate.streams.loop import HANGUP, READ, Loop
from casemate.vchan import ports as ports_module
from casemate.vchan.decision import Decision, Policy
from casemate.vchan.ports import Ports
from casemate.vchan.program import LINES, Log
from casemate.wire.errors import DisconnectedError


def run_until(loop: Loop, true: object, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end
        loop.once(0.05)


@pytest.fixture
def place(tmp_path: Path) -> SocketDirectory:
    return SocketDirectory.of({"VCHAN_SOCKET_DIR": str(tmp_path), "VCHAN_DOMAIN": "5"})


def test_where_sockets_are(place: SocketDirectory, tmp_path: Path) -> None:
    assert place.serving(0, 512) == f"{tmp_path}/vchan.5.0.512.sock"
    assert SocketDirectory.of({}).path(1, 2, 3) == "/var/run/vchan/vchan.1.2.3.sock"


def test_a_client_may_come_first_and_names_go(place: SocketDirectory, tmp_path: Path) -> None:
    loop, path = Loop(), place.serving(0, 513)
    found: list[socket.socket] = []
    Connector(loop, str(tmp_path)).connect(path, found.append, pytest.fail)
    loop.once(0)
    assert not found
    Server(loop, path, found.append)
    run_until(loop, lambda: len(found) == 2)
    found[0].send(b"bytes as they are")
    found[1].setblocking(True)
    assert found[1].recv(100) == b"bytes as they are"
    assert os.listdir(tmp_path) == []


def test_waiting_costs_no_time_of_a_processor(place: SocketDirectory, tmp_path: Path) -> None:
    loop = Loop()
    connector = Connector(loop, str(tmp_path))
    Listening(place.serving(0, 600)).sock.close()  # a dead server's name: refused, not missing
    for port in range(600, 650):
        connector.connect(place.serving(0, port), lambda sock: None, lambda why: None)
    loop.once(0)
    begin, end = time.process_time(), time.monotonic() + 0.7
    while time.monotonic() < end:
        loop.once(end - time.monotonic())
    assert time.process_time() - begin < 0.1


def test_a_server_that_does_not_listen_yet(place: SocketDirectory, tmp_path: Path) -> None:
    loop, path = Loop(), place.serving(0, 513)
    found: list[socket.socket] = []
    Connector(loop, str(tmp_path)).connect(path, found.append, pytest.fail)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as late:
        late.bind(path)  # as upstream's: the name is there first
        for _ in range(5):
            loop.once(0.01)
        late.listen(1)
        run_until(loop, lambda: found)


def test_a_client_gives_up_at_its_deadline_and_when_told(place: SocketDirectory, tmp_path: Path) -> None:
    loop = Loop()
    connector = Connector(loop, str(tmp_path), 0.2)
    why: list[str] = []
    begin = time.monotonic()
    connector.connect(place.serving(0, 513), pytest.fail, why.append)
    connector.cancel(connector.connect(place.serving(0, 514), pytest.fail, pytest.fail))
    run_until(loop, lambda: why)
    assert time.monotonic() - begin < 30 and why == ["nobody is there"]
    (tmp_path / "vchan.5.0.515.sock").write_text("no socket")
    connector.connect(place.serving(0, 515), pytest.fail, why.append)
    run_until(loop, lambda: len(why) == 2)


def test_a_server_takes_only_its_own_name_away(place: SocketDirectory) -> None:
    loop, path = Loop(), place.serving(0, 513)
    first = Server(loop, path, pytest.fail)
    second = Listening(path)  # replaces the name
    first.close()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(path)
        second.accept().close()
    assert not os.path.exists(path)
    with pytest.raises(DisconnectedError):
        accept_within(Listening(path), 0.05)
    assert not os.path.exists(path)


def test_a_descriptor_number_that_is_used_again_gets_no_event_of_the_old(tmp_path: Path) -> None:
    loop = Loop()
    first, first_peer = socket.socketpair()
    second, second_peer = socket.socketpair()
    number = second.fileno()
    wrong: list[int] = []
    made: list[socket.socket] = []

    def replace(_mask: int) -> None:
        loop.unwatch(first.fileno())
        loop.unwatch(number)
        second.close()
        pair = socket.socketpair()
        made.extend(pair)
        assert number in (pair[0].fileno(), pair[1].fileno())
        loop.watch(number, READ | HANGUP, wrong.append)

    loop.watch(first.fileno(), READ, replace)
    loop.watch(number, READ | HANGUP, lambda mask: None)
    first_peer.send(b"x")
    second_peer.close()  # both are ready in one round, whichever comes first
    loop.once(0)
    if made:
        loop.once(0)
        assert not wrong
    first.close()


def test_deadlines_in_their_order() -> None:
    loop, late = Loop(), list[str]()
    deadlines = Deadlines(loop, 0.1)
    for name in "abc":
        deadlines.add(name, lambda name=name: late.append(name))  # type: ignore[misc]
    deadlines.discard("b")
    deadlines.add("a", lambda: late.append("again"))
    run_until(loop, lambda: len(late) == 2)
    assert late == ["c", "again"] and not len(deadlines)


def test_ports_are_of_two_kinds_and_anybody_can_have_all_of_them(place: SocketDirectory) -> None:
    ports = Ports(place, 6)
    assert [ports.allocate(caller) for caller in (9, 1, 0, 9, 1)] == [514, 513, 515, 516, 517]
    taken = [ports.allocate(1) for _ in range(251)]
    assert taken[:125] == list(range(519, 769, 2)), "those of its kind first"
    assert sorted(port or 0 for port in taken) == list(range(518, 769, 1))[:251]
    assert ports.allocate(1) is None
    assert not ports.release(2, 513) and ports.release(1, 513) and not ports.release(1, 513)
    assert ports.allocate(7) == 513
    assert ports.release(9, 514) and ports.release(0, 515)
    assert [ports.allocate(1), ports.allocate(1), ports.allocate(1)] == [515, 514, None]


def test_a_caller_gets_the_port_of_its_last_call_last(place: SocketDirectory) -> None:
    """The agent of the caller may not have reported the end of that call yet."""
    ports = Ports(place, 6)
    assert ports.allocate(9) == 514 and ports.release(9, 514)
    assert ports.allocate(8) == 514, "another caller's"
    assert ports.release(8, 514)
    assert [ports.allocate(8) for _ in range(128)] == list(range(516, 769, 2)) + [514]


def test_a_port_rests_while_its_old_name_is_there_which_then_goes(
    place: SocketDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports_module, "QUARANTINE", 0.1)
    ports = Ports(place, 6)
    for _ in range(256):
        ports.allocate(1)
    old = Listening(place.path(1, 6, 600))  # a foreign caller's, which never takes it away
    ports.release(1, 600)
    assert ports.allocate(1) is None
    time.sleep(ports.rest() or 0)
    assert ports.allocate(1) == 600 and not os.path.exists(old.path)
    old.sock.close()


def test_a_port_is_not_used_both_ways_between_two_domains(place: SocketDirectory) -> None:
    ports = Ports(place, 6)
    ports.outgoing.add((9, 514))
    assert [ports.allocate(9), ports.allocate(8)] == [516, 514]
    ports.reset()
    assert not ports.outgoing and ports.used == 0


def test_what_the_policy_is_asked_and_answers(tmp_path: Path) -> None:
    from casemate.qrexec.policy_socket import parse_request  # the policy daemon's own reading of it

    loop, found = Loop(), list[Decision]()
    policy = Policy(loop, Children(loop), str(tmp_path / "policy"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "policy"))
        listener.listen(1)
        policy.decide("work", "other", "@dispvm:dvm", "svc+a+b", found.append)
        peer, _ = listener.accept()
        with peer:
            request = parse_request(peer.recv(4096))
            assert (request.source, request.requested_source, request.target) == ("work", "other", "@dispvm:dvm")
            assert (request.service, request.argument) == ("svc", "a+b")
            peer.send(b"result=allow\nuser=root\ntarget=vault\nrequested_target=@dispvm:dvm\nautostart=True\n")
            peer.send(b"target_uuid=uuid:00000000-0000-4000-8000-000000000008\nservice=x+y\npolicy_source=other\n")
    run_until(loop, lambda: found)
    (decision,) = found
    assert decision.allow and decision.autostart
    assert (decision.user, decision.target, decision.service) == ("root", "vault", "x+y")
    assert decision.target_uuid == "00000000-0000-4000-8000-000000000008"
    policy.decide("work", "", "", "svc+", found.append)  # nobody listens any more
    assert not found[1].allow and "cannot be asked" in found[1].reason


def test_a_log_that_nobody_reads_blocks_nobody() -> None:
    reading, writing = os.pipe()
    log = Log("x", writing)
    for number in range(LINES + 10):
        log(f"line {number}\n\x1b[")
    text = os.read(reading, 65536).decode()
    assert text.count("\n") == LINES and "\x1b" not in text and text.startswith("x: line 0")
    os.set_blocking(writing, False)
    while True:
        try:
            os.write(writing, bytes(4096))
        except BlockingIOError:
            break
    os.set_blocking(writing, True)
    full = Log("x", writing)
    full("no room")  # returns
    os.set_blocking(reading, False)
    while True:
        try:
            os.read(reading, 65536)
        except BlockingIOError:
            break
    full("room")
    assert os.read(reading, 65536) == b"x: 1 lines were left out\nx: room\n"
    os.close(reading)
    full("nobody")
    os.close(writing)

"""qrexec over vchan cannot be stalled: idle, dawdling, dying, lying and stuck peers on every channel.

One file although it is long: all abuse is of the same scene.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.component.vchan_place import ME, VchanPlace, eventually
from tests.fakes import foreign_qrexec as foreign

COUNT = 10_000 if os.environ.get("CASEMATE_FULL") == "1" else 400
HELLO3 = struct.pack("<III", foreign.HELLO, 4, 3)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[VchanPlace]:
    made = VchanPlace(tmp_path)
    made.service("echo", "exec cat")
    yield made
    made.close()


@pytest.fixture
def pair(place: VchanPlace) -> VchanPlace:
    """Two of our agents under our daemon, everything allowed."""
    place.policy()
    place.daemon("5:work::" + ME, "6:vault::" + ME)
    place.agent(5)
    place.agent(6)
    place.up("work")
    place.up("vault")
    return place


def quick_call(place: VchanPlace, name: str = "vault") -> None:
    begin = time.monotonic()
    found = place.client(name).call("DEFAULT:QUBESRPC echo dom0", b"data")
    assert (found.status, found.stdout) == (0, b"data")
    assert time.monotonic() - begin < 30  # what it must not wait for takes longer


def quick_call_of_qube(place: VchanPlace) -> None:
    begin = time.monotonic()
    found = place.client_vm(5).call("vault", "echo", b"data")
    assert (found.status, found.stdout) == (0, b"data")
    assert time.monotonic() - begin < 30  # what it must not wait for takes longer


def tell(sock: socket.socket, kind: int, body: bytes) -> None:
    """Send what may be refused before it has been said."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        foreign.send(sock, kind, body)


def connections(path: Path, count: int, data: bytes = b"") -> list[socket.socket]:
    made = []
    for _ in range(count):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(path))
        sock.settimeout(20)
        if data:
            sock.sendall(data)
        made.append(sock)
    return made


# -- many


def test_calls_at_once_none_lost_none_hung(pair: VchanPlace) -> None:
    client, qube = pair.client("vault"), pair.client_vm(5)

    def one(number: int) -> None:
        data = b"%d" % number
        if number % 2:
            found = client.call("DEFAULT:QUBESRPC echo dom0", data)
        else:
            found = qube.call("vault", "echo", data)
        assert (found.status, found.stdout) == (0, data)

    with ThreadPoolExecutor(16) as pool:
        assert len(list(pool.map(one, range(COUNT)))) == COUNT


def test_three_hundred_calls_into_one_qube_at_once(pair: VchanPlace) -> None:
    client, qube = pair.client("vault"), pair.client_vm(5)

    def one(number: int) -> int | None:
        if number % 2:
            return client.call("DEFAULT:QUBESRPC echo dom0").status
        return qube.call("vault", "echo").status

    with ThreadPoolExecutor(300) as pool:
        assert set(pool.map(one, range(300))) == {0}


def test_a_call_waits_for_a_port_when_all_are_used_and_all_can_be_used_by_anybody(place: VchanPlace) -> None:
    place.daemon("5:work")
    agent = foreign.Agent(place.vchan, 5)
    agent.accept()  # takes messages, ends nothing by itself
    client = place.client("work")
    open_calls = []
    for number in range(256):
        sock = client.greeted()
        foreign.send(sock, foreign.EXEC, foreign.exec_body(number % 3, 0, b"user:true"))
        kind, body = foreign.receive(sock)
        domain, port = struct.unpack("<II", body)
        assert (kind, domain) == (foreign.EXEC, 5) and 513 <= port <= 768
        assert foreign.receive(agent.control) == (
            foreign.EXEC, foreign.exec_body(number % 3, port, b"user:true")
        )  # fmt: skip
        open_calls.append((sock, number % 3, port))
    assert len({port for _sock, _domain, port in open_calls}) == 256
    late = client.greeted()
    foreign.send(late, foreign.EXEC, foreign.exec_body(0, 0, b"user:true"))
    late.settimeout(0.3)
    with pytest.raises(TimeoutError):
        late.recv(1)
    sock, domain, port = open_calls[100]
    agent.tell(foreign.TERMINATED, struct.pack("<II", domain + 1, port))  # another's port: nothing happens
    with pytest.raises(TimeoutError):
        late.recv(1)
    agent.tell(foreign.TERMINATED, struct.pack("<II", domain, port))
    late.settimeout(20)
    assert struct.unpack("<II", foreign.receive(late)[1]) == (5, port)
    assert sock.recv(1) == b""
    # A new agent knows of none of these calls: their clients hear that, and all ports can be had again.
    agent.close()
    assert open_calls[0][0].recv(1) == b"" and late.recv(1) == b""
    again = foreign.Agent(place.vchan, 5)
    again.accept()
    place.up("work")
    for _ in range(256):
        sock = client.greeted()
        foreign.send(sock, foreign.EXEC, foreign.exec_body(0, 0, b"user:true"))
        foreign.receive(sock)
        open_calls.append((sock, 0, 0))


# -- idle and slow


def test_a_thousand_idle_clients_and_half_greetings(pair: VchanPlace) -> None:
    path = pair.sockets / "qrexec.vault"
    held = connections(path, 500) + connections(path, 500, HELLO3[:5]) + connections(path, 100, HELLO3)
    held += connections(pair.agent_socket(5), 500) + connections(pair.agent_socket(5), 500, b"\x13")
    quick_call(pair)
    quick_call_of_qube(pair)
    for sock in held:
        sock.close()
    quick_call_of_qube(pair)


def test_no_descriptors_left(place: VchanPlace) -> None:
    place.policy()
    place.files = 60
    process = place.daemon("5:work::" + ME, "6:vault::" + ME)
    agents = place.agent(5), place.agent(6)
    place.up("work")
    place.up("vault")
    held = connections(place.sockets / "qrexec.vault", 100) + connections(place.agent_socket(5), 100)
    held += connections(place.agent_socket(6), 100)
    time.sleep(1)
    assert not [p for p in (process, *agents) if p.poll() is not None]
    for sock in held[100:]:
        sock.close()
    quick_call_of_qube(place)
    quick_call(place)
    assert "Traceback" not in place.log() + place.log("agent5.log") + place.log("agent6.log")


def test_who_does_not_ask_is_sent_away(pair: VchanPlace) -> None:
    held = connections(pair.sockets / "qrexec.vault", 1) + connections(pair.agent_socket(5), 1, b"\x13\x02")
    assert foreign.receive(held[0])[0] == foreign.HELLO
    assert held[0].recv(1) == b"" and held[1].recv(1) == b""


def test_half_a_message_of_an_agent_harms_its_domain_alone(pair: VchanPlace) -> None:
    pair.control("add 7 other")
    agent = foreign.Agent(pair.vchan, 7)
    agent.accept()
    agent.control.sendall(b"\x13")
    quick_call(pair)
    quick_call_of_qube(pair)
    silent = foreign.Agent(pair.vchan, 8)
    pair.control("add 8 silent")
    sock, _ = silent.listener.accept()
    sock.sendall(struct.pack("<II", foreign.HELLO, 4)[:6])
    quick_call_of_qube(pair)


def test_half_a_message_of_an_agent_has_a_deadline(place: VchanPlace) -> None:
    """Its connection is left, with a line in the log; the agent may come again."""
    place.variables["CASEMATE_HALF_FRAME_SECONDS"] = "0.5"
    place.daemon("5:work")
    agent = foreign.Agent(place.vchan, 5)
    agent.accept()
    place.up("work")
    message = struct.pack("<II", foreign.TERMINATED, 8) + bytes(8)
    for _ in range(3):
        agent.control.sendall(message[:10])
        time.sleep(0.1)
        agent.control.sendall(message[10:])
    agent.control.sendall(message[:10])
    assert agent.control.recv(1) == b""
    eventually(lambda: "half a message" in place.log())
    agent.accept()
    place.up("work")
    agent.close()


def test_half_a_message_of_a_daemon_has_a_deadline(place: VchanPlace) -> None:
    place.variables["CASEMATE_HALF_FRAME_SECONDS"] = "0.5"
    place.agent(5)
    daemon = foreign.Daemon(place.vchan, 5)
    daemon.control.sendall(struct.pack("<II", foreign.EXEC, 100) + bytes(50))
    assert daemon.control.recv(1) == b""
    place.service("true", "exit 0")
    assert foreign.Daemon(place.vchan, 5).call(f"{ME}:QUBESRPC true dom0").status == 0, "the next one is served"


def test_an_agent_that_does_not_read_is_not_waited_for(pair: VchanPlace) -> None:
    pair.control("add 7 stuck")
    agent = foreign.Agent(pair.vchan, 7)
    agent.accept()
    pair.up("stuck")
    client = foreign.Client(pair.vchan, pair.sockets / "qrexec.stuck")
    for _ in range(60):  # 60 KB each: more than any buffer keeps
        with client.greeted() as sock:
            foreign.send(sock, foreign.EXEC, foreign.exec_body(0, 0, b"user:" + b"x" * 60_000))
            foreign.receive(sock)
    quick_call_of_qube(pair)


def test_stuck_consumers_hold_up_nobody(pair: VchanPlace) -> None:
    pair.service("flood", "exec head -c 50000000 /dev/zero")
    pair.service("deaf", "exec 0</dev/null; echo said >&2; exit 9")
    pair.service("sleepy", "sleep 2; echo said >&2; exit 9")
    client = pair.client("vault")
    # A caller that reads nothing of a flood.
    stuck = client.greeted()
    foreign.send(stuck, foreign.EXEC, foreign.exec_body(0, 0, b"DEFAULT:QUBESRPC flood dom0"))
    port = struct.unpack("<II", foreign.receive(stuck)[1])[1]
    with pair.vchan.serve(0, 6, port) as listener:
        peer, _ = listener.accept()
    peer.sendall(struct.pack("<III", foreign.HELLO, 4, 4))
    quick_call(pair)
    quick_call_of_qube(pair)
    # Services that read none of their input: what they say and how they end arrives.
    for name in ("deaf", "sleepy"):
        found = client.call(f"DEFAULT:QUBESRPC {name} dom0", bytes(5_000_000))
        assert (found.status, found.stderr) == (9, b"said\n")
    # The flood is whole for who takes it late.
    sock = peer
    assert foreign.receive(sock)[0] == foreign.HELLO
    total, status = 0, None
    while status is None:
        kind, body = foreign.receive(sock)
        total += len(body) if kind == foreign.STDOUT else 0
        status = body if kind == foreign.EXIT else None
    assert total == 50_000_000


# -- long, wrong, late


def test_a_long_service_name_wedges_nothing(pair: VchanPlace) -> None:
    name = "echo+" + "a" * 64_995
    qube = pair.client_vm(5)
    found = qube.call("vault", name, b"data")
    assert (found.status, found.stdout) == (0, b"data")
    assert qube.call("vault", name + "a").status == 126
    assert qube.call("vault", "s" * 256).status == 126
    with ThreadPoolExecutor(16) as pool:
        assert {found.status for found in pool.map(lambda _: qube.call("vault", name), range(32))} == {0}
    quick_call_of_qube(pair)


BODY8 = struct.pack("<II", 0, 600)
TRIGGER = b"\0" * 64 + b"vault".ljust(64, b"\0") + b"X".ljust(32, b"\0")
WRONG_OF_AGENT = {
    "hello again": (4, foreign.HELLO, struct.pack("<I", 4)),
    "exec": (4, foreign.EXEC, BODY8 + b"user:id\0"),
    "refused": (4, foreign.REFUSED, b"X".ljust(32, b"\0")),
    "data": (4, foreign.STDIN, b"x"),
    "v2 request at v4": (4, foreign.TRIGGER2, bytes(128)),
    "v2 request at v3": (3, foreign.TRIGGER2, bytes(128)),
    "v3 request at v2": (2, foreign.TRIGGER3, bytes(96) + b"s\0"),
    "v4 request at v3": (3, foreign.TRIGGER4, TRIGGER + b"s\0"),
    "v4 request without a service": (4, foreign.TRIGGER4, TRIGGER),
    "short v2 request": (2, foreign.TRIGGER2, bytes(127)),
    "too long a request": (4, foreign.TRIGGER4, TRIGGER + bytes(65002)),
    "terminated with a tail": (4, foreign.TERMINATED, BODY8 + b"\0"),
    "unknown": (4, 0x999, b""),
    "enormous": (4, foreign.TRIGGER4, None),
}


@pytest.mark.parametrize("what", WRONG_OF_AGENT)
def test_an_agent_that_breaks_the_rules_is_left_and_may_come_again(place: VchanPlace, what: str) -> None:
    version, kind, body = WRONG_OF_AGENT[what]
    process = place.daemon("5:work", "6:vault::" + ME)
    place.agent(6)
    agent = foreign.Agent(place.vchan, 5, version)
    agent.accept()
    place.up("work")
    if body is None:
        agent.control.sendall(struct.pack("<II", kind, 0xFFFFFFFF))
    else:
        tell(agent.control, kind, body)
    with contextlib.suppress(ConnectionResetError):
        assert agent.control.recv(1) == b""
    eventually(lambda: not (place.sockets / "qrexec.5").exists())
    agent.close()
    again = foreign.Agent(place.vchan, 5, version)
    again.start()
    assert place.client("work").call("user:x", b"y").status == 3
    quick_call(place)
    assert process.poll() is None
    assert "work: its agent was left" in place.log()


@pytest.mark.parametrize("body", [struct.pack("<I", 1), b"\0\0\0", bytes(8)])
def test_a_bad_greeting_of_an_agent(place: VchanPlace, body: bytes) -> None:
    place.daemon("5:work")
    agent = foreign.Agent(place.vchan, 5)
    sock, _ = agent.listener.accept()
    sock.settimeout(20)
    tell(sock, foreign.HELLO, body)
    with contextlib.suppress(ConnectionResetError):
        assert sock.recv(1) == b""


WRONG_OF_CLIENT = {
    "an old version": [(foreign.HELLO, struct.pack("<I", 2))],
    "a long greeting": [(foreign.HELLO, bytes(5))],
    "no greeting": [(foreign.EXEC, BODY8 + b"user:id\0")],
    "no request": [(foreign.HELLO, struct.pack("<I", 3)), (foreign.TERMINATED, BODY8)],
    "two greetings": [(foreign.HELLO, struct.pack("<I", 3))] * 2,
    "no user": [(foreign.HELLO, struct.pack("<I", 3)), (foreign.EXEC, bytes(8) + b"id\0")],
    "no end": [(foreign.HELLO, struct.pack("<I", 3)), (foreign.EXEC, bytes(8) + b"user:id")],
    "an early end": [(foreign.HELLO, struct.pack("<I", 3)), (foreign.EXEC, bytes(8) + b"us\0er:id\0")],
    "no command": [(foreign.HELLO, struct.pack("<I", 3)), (foreign.EXEC, bytes(8))],
    "too long": [(foreign.HELLO, struct.pack("<I", 3)), (foreign.EXEC, bytes(8) + b"u:" + b"x" * 65_526 + b"\0")],
    "nobody asked": [(foreign.HELLO, struct.pack("<I", 3)), (foreign.CONNECT, bytes(8) + b"SOCKET9".ljust(32, b"\0"))],
    "a refusal": [(foreign.HELLO, struct.pack("<I", 3)), (foreign.REFUSED, bytes(32))],
}


def test_a_client_that_breaks_the_rules_is_left_without_a_word(place: VchanPlace) -> None:
    place.daemon("5:work")
    agent = foreign.Agent(place.vchan, 5)
    agent.accept()
    place.up("work")
    for what, messages in WRONG_OF_CLIENT.items():
        (sock,) = connections(place.sockets / "qrexec.work", 1)
        assert foreign.receive(sock)[0] == foreign.HELLO
        for kind, body in messages:
            tell(sock, kind, body)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b"", what
    agent.control.settimeout(0.2)
    with pytest.raises(TimeoutError):  # the agent was told of none of these
        agent.control.recv(1)
    # A byte after a good request ends that connection, and the call goes on.
    client = place.client("work")
    agent.control.settimeout(20)
    sock = client.greeted()
    foreign.send(sock, foreign.EXEC, foreign.exec_body(0, 0, b"user:id"))
    foreign.receive(sock)
    sock.sendall(b"x")
    with contextlib.suppress(ConnectionResetError):
        assert sock.recv(1) == b""
    assert foreign.receive(agent.control)[0] == foreign.EXEC


WRONG_OF_DAEMON = {
    "hello again": (foreign.HELLO, struct.pack("<I", 4)),
    "a request": (foreign.TRIGGER4, TRIGGER + b"s\0"),
    "terminated": (foreign.TERMINATED, BODY8),
    "data": (foreign.STDOUT, b"x"),
    "no end": (foreign.EXEC, BODY8 + b"user:id"),
    "no user": (foreign.EXEC, BODY8 + b"id\0"),
    "a short id": (foreign.CONNECT, BODY8 + b"X"),
    "a short refusal": (foreign.REFUSED, b"X"),
}


def test_a_daemon_that_breaks_the_rules_is_left_and_the_next_is_served(place: VchanPlace) -> None:
    place.agent(5)
    for what, (kind, body) in WRONG_OF_DAEMON.items():
        daemon = foreign.Daemon(place.vchan, 5)
        tell(daemon.control, kind, body)
        with contextlib.suppress(ConnectionResetError):
            assert daemon.control.recv(1) == b"", what
    for version in (0, 1):
        daemon = foreign.Daemon(place.vchan, 5, version)
        assert daemon.control.recv(1) == b""
    assert foreign.Daemon(place.vchan, 5).call(f"{ME}:QUBESRPC echo dom0", b"data").stdout == b"data"


WRONG_OF_PROGRAM = {
    "v3": (foreign.TRIGGER3, bytes(96) + b"s\0"),
    "hello": (foreign.HELLO, struct.pack("<I", 4)),
    "no service": (foreign.TRIGGER4, TRIGGER),
    "too long": (foreign.TRIGGER4, TRIGGER + b"x" * 65_001 + b"\0"),
}


def test_a_program_that_breaks_the_rules_is_sent_away(pair: VchanPlace) -> None:
    for what, (kind, body) in WRONG_OF_PROGRAM.items():
        (sock,) = connections(pair.agent_socket(5), 1)
        tell(sock, kind, body)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b"", what
    quick_call_of_qube(pair)


WRONG_DATA = {
    "stdout": (foreign.STDOUT, b"x"),
    "exit code": (foreign.EXIT, bytes(4)),
    "hello again": (foreign.HELLO, bytes(4)),
    "unknown": (0x777, b""),
    "too long": (foreign.STDIN, bytes(65_537)),
}


@pytest.mark.parametrize("what", WRONG_DATA)
def test_a_caller_that_breaks_the_rules_loses_its_call(place: VchanPlace, what: str) -> None:
    place.service("wait", "echo $$; exec cat")
    place.agent(5)
    daemon = foreign.Daemon(place.vchan, 5)
    port, listener = daemon.begin(f"{ME}:QUBESRPC wait dom0".encode())
    peer, _ = listener.accept()
    peer.settimeout(20)
    foreign.send(peer, foreign.HELLO, struct.pack("<I", 4))
    assert foreign.receive(peer)[0] == foreign.HELLO
    pid = int(foreign.receive(peer)[1])
    tell(peer, *WRONG_DATA[what])
    assert foreign.receive(daemon.control) == (foreign.TERMINATED, struct.pack("<II", 0, port))
    eventually(lambda: not Path(f"/proc/{pid}").exists())


# -- requests of qubes


def test_what_a_request_may_say(place: VchanPlace) -> None:
    policy = place.policy(lambda request: "result=deny\n")
    place.daemon("5:work")
    agent = foreign.Agent(place.vchan, 5)
    agent.start()
    place.up("work")
    assert agent.answer(agent.trigger("va-ult", "e.cho+a:b", source="re_lay")) is None
    assert policy.requests == [
        {"source": "work", "intended_target": "va-ult", "service_and_arg": "e.cho+a:b", "requested_source": "re_lay"}
    ]
    assert agent.answer(agent.trigger("", "echo")) is None
    assert policy.requests[1] == {"source": "work", "intended_target": "@default", "service_and_arg": "echo+"}
    # These are refused before anybody is asked.
    for target, call, ident in (
        ("vault", "+a", b""), ("vault", "", b""), ("vault", "a\0b", b""), ("v" * 64, "echo", b""),
        ("va ult", "echo", b""), ("va/ult", "echo", b""), ("vault\x01", "echo", b""), ("vault", "e/cho", b""),
        ("vault", "echo+a;b", b""), ("vault", "echo+a b", b""),
        ("vault", "s" * 256, b""), ("vault", "echo", b"a/b"), ("vault", "echo", b"a\0b"), ("vault", "echo", b"x" * 32),
    ):  # fmt: skip
        assert agent.answer(agent.trigger(target, call, ident)) is None
    assert len(policy.requests) == 2
    agent.close()


def test_lesson_L12_answers_of_the_policy_that_are_none_refuse(place: VchanPlace) -> None:
    good = "result=allow\nuser=DEFAULT\ntarget=dom0\nrequested_target=dom0\nautostart=True\n"
    answers = [
        "", "result=allow\n", good.replace("allow", "perhaps"), good + "user=root\n", good + "\n", good + "x" * 5000,
        good.replace("autostart=True", "autostart=1"), "result=deny\nuser=root\n", good + "mystery=1\n", "\xe4",
        good + "\0",
    ]  # fmt: skip
    place.service("id", "echo ran", host=True)
    place.policy(lambda request: answers[int(request["service_and_arg"].partition("+")[2])] if "+9" not in "" else "")
    place.daemon("5:work")
    agent = foreign.Agent(place.vchan, 5)
    agent.start()
    place.up("work")
    for number in range(len(answers)):
        assert agent.call("dom0", f"id+{number}").status == 126, answers[number]
    agent.close()


def test_services_of_the_host(place: VchanPlace) -> None:
    place.service("echo", 'cat; echo "$QREXEC_REMOTE_DOMAIN $QREXEC_REQUESTED_TARGET_TYPE $1"', host=True)
    place.policy(lambda request: foreign.allow(request, "dom0"))
    process = place.daemon("5:work", "6:vault::" + ME)
    agent = foreign.Agent(place.vchan, 5)
    agent.start()
    place.agent(6)
    place.up("work")
    place.up("vault")
    found = agent.call("@adminvm", "echo+x", b"data ")
    assert (found.status, found.stdout, found.stderr) == (0, b"data work keyword x\n", b"")
    assert found.kinds[0] == (foreign.STDERR, 0)  # nothing of the host's stderr ever comes
    found = place.client_vm(6).call("dom0", "echo", b"data ")
    assert (found.status, found.stdout) == (0, b"data vault name \n")
    assert place.client_vm(6).call("dom0", "missing").status == 127
    before = foreign.descriptors(process.pid)
    for _ in range(20):
        place.client_vm(6).call("dom0", "echo", b"data")
    eventually(lambda: foreign.descriptors(process.pid) <= before + 2)  # a watch of the directory, the policy


def test_a_policy_program(place: VchanPlace) -> None:
    program = place.directory / "program"
    program.write_text(
        '#!/bin/sh\n[ "$3" = vault ] && [ "$4" = echo ] || { echo result=deny; exit 0; }\n'
        "printf 'result=allow\\nuser=DEFAULT\\ntarget=vault\\nrequested_target=vault\\nautostart=False\\n'\n"
    )
    program.chmod(0o755)
    place.daemon("5:work", "6:vault::" + ME, policy_program=str(program))
    place.agent(5)
    place.agent(6)
    place.up("work")
    place.up("vault")
    assert place.client_vm(5).call("vault", "echo", b"x").stdout == b"x"
    assert place.client_vm(5).call("vault", "other").status == 126
    program.write_text("#!/bin/sh\nexit 1\n")
    assert place.client_vm(5).call("vault", "echo").status == 126
    assert "status 1" in place.log()


def test_refusals_say_why_in_the_log(place: VchanPlace) -> None:
    place.policy(lambda request: foreign.allow(request) if request["intended_target"] != "x" else "result=deny\n")
    place.daemon("5:work", "6:vault")
    place.agent(5)
    place.up("work")
    qube = place.client_vm(5)
    for target, why in (("x", "denied by policy"), ("vault", "does not run")):
        assert qube.call(target, "echo").status == 126
        eventually(lambda why=why: why in place.log())  # type: ignore[misc]


# -- death


def test_killed_processes_leave_nothing_that_breaks_the_next(pair: VchanPlace) -> None:
    quick_call_of_qube(pair)
    daemon, work, vault = pair.processes
    daemon.kill()
    daemon.wait()
    pair.daemon("5:work::" + ME, "6:vault::" + ME)
    quick_call(pair)
    eventually(lambda: pair.control("list").count(" up ") == 2)
    quick_call_of_qube(pair)
    vault.kill()
    vault.wait()
    eventually(lambda: not (pair.sockets / "qrexec.vault").exists())
    assert pair.client_vm(5).call("vault", "echo").status == 126
    pair.agent(6)
    quick_call(pair)
    work.kill()
    work.wait()
    pair.agent(5)
    pair.up("work")
    eventually(lambda: pair.control("list").count(" up ") == 2)
    quick_call_of_qube(pair)


def test_clients_that_die_leave_no_port_behind(pair: VchanPlace) -> None:
    pair.service("wait", "exec cat")
    client = pair.client("vault")
    for _ in range(20):
        sock = client.greeted()
        foreign.send(sock, foreign.EXEC, foreign.exec_body(0, 0, b"DEFAULT:QUBESRPC wait dom0"))
        port = struct.unpack("<II", foreign.receive(sock)[1])[1]
        with pair.vchan.serve(0, 6, port) as listener:
            peer, _ = listener.accept()
        peer.close()
        sock.close()
    eventually(lambda: pair.control("list").split("\n")[1] == "6 vault up 0")
    quick_call(pair)


def test_calls_survive_their_daemon(pair: VchanPlace) -> None:
    pair.service("wait", "cat; exit 4")
    client = pair.client("vault")
    sock = client.greeted()
    foreign.send(sock, foreign.EXEC, foreign.exec_body(0, 0, b"DEFAULT:QUBESRPC wait dom0"))
    port = struct.unpack("<II", foreign.receive(sock)[1])[1]
    with pair.vchan.serve(0, 6, port) as listener:
        peer, _ = listener.accept()
    go = threading.Event()
    found: list[foreign.Result] = []

    def run() -> None:
        go.wait()
        found.append(foreign.caller(peer, b"late"))

    thread = threading.Thread(target=run)
    thread.start()
    pair.processes[0].kill()
    pair.processes[0].wait()
    pair.daemon("5:work::" + ME, "6:vault::" + ME)
    quick_call(pair)
    go.set()
    thread.join()
    assert (found[0].status, found[0].stdout) == (4, b"late")
    eventually(lambda: "6 vault up 0" in pair.control("list"))


# -- domains that do not run


def test_a_domain_is_started_for_a_call_and_a_disposable_ended_after_it(place: VchanPlace) -> None:
    def carry_out(method: str, dest: str) -> bytes:
        if method == "admin.vm.CreateDisposable":
            return b"0\0disp7" if dest == "dvm" else b"2\0QubesException\0\0no\0"
        if method == "admin.vm.Start" and dest in ("late", "disp7"):
            number = 8 if dest == "late" else 9
            place.control(f"add {number} {dest} {uuids[number]} {ME}")
            place.agent(number)
        elif method == "admin.vm.Start":
            return b"2\0QubesVMNotFoundError\0\0no such\0"
        return b"0\0"

    uuids = {8: "00000000-0000-4000-8000-000000000008", 9: "00000000-0000-4000-8000-000000000009"}
    api = foreign.AdminApi(place.directory / "admin", carry_out)
    place.policy(lambda request: foreign.allow(request, autostart=request["intended_target"] != "other"))
    place.daemon("5:work::" + ME, admin_socket=f"{place.directory}/admin")
    place.agent(5)
    place.up("work")
    qube = place.client_vm(5)
    assert qube.call("late", "echo", b"data").stdout == b"data"
    assert (place.sockets / f"qrexec.uuid:{uuids[8]}").readlink() == Path("qrexec.8")
    assert qube.call("late", "echo", b"data").stdout == b"data"
    assert qube.call("@dispvm:dvm", "echo", b"data").stdout == b"data"
    eventually(lambda: ("admin.vm.Kill", "disp7") in api.calls)
    for target in ("gone", "other", "@dispvm:none"):
        assert qube.call(target, "echo").status == 126
    assert api.calls == [
        ("admin.vm.Start", "late"), ("admin.vm.CreateDisposable", "dvm"), ("admin.vm.Start", "disp7"),
        ("admin.vm.Kill", "disp7"), ("admin.vm.Start", "gone"), ("admin.vm.CreateDisposable", "none"),
    ]  # fmt: skip
    api.close()


def test_the_control_socket(place: VchanPlace) -> None:
    place.daemon("5:work")
    assert place.control("list") == "5 work down 0\nok\n"
    for wrong in ("add 5 other", "add 6 work", "add 0 zero", "add x y", "add 6 ../up", "remove 9", "what"):
        assert place.control(wrong).startswith("error "), wrong
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(20)
        sock.connect(str(place.sockets / "casemate-qrexecd.sock"))
        sock.sendall(b"add 6 vault\n")
        assert sock.recv(100) == b"ok\n"
        place.agent(6)
        assert sock.recv(100) == b"up\n"
    assert (place.sockets / "qrexec.vault").is_symlink()
    assert place.control("remove 6") == "ok\n"
    assert not list(place.sockets.glob("qrexec.*"))

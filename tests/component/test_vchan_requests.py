"""Requests of a domain that a program on the host answers in place of the policy, as upstream's clients do."""

from __future__ import annotations

import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.component.test_vchan_tools import host
from tests.component.vchan_place import ME, VchanPlace, eventually
from tests.fakes import foreign_qrexec as foreign

Done = subprocess.CompletedProcess[bytes]


class Waiting:
    """A place with a foreign agent in domain 7, ``foreign``, whose requests wait until the test has answered them."""

    def __init__(self, directory: Path) -> None:
        self.place = VchanPlace(directory)
        self._hold = threading.Event()
        self.place.policy(lambda request: "result=deny\n" if self._hold.wait(60) else "")
        self.place.daemon("5:work::" + ME, "7:foreign")
        self.place.agent(5)
        self.agent = foreign.Agent(self.place.vchan, 7)
        self.agent.start()
        self.place.up("work")
        self.place.up("foreign")
        (directory / "config").mkdir()

    def close(self) -> None:
        self._hold.set()
        self.agent.close()
        self.place.close()

    def served(
        self, command: str, *options: str, data: bytes = b"", hold_stdin: bool = False
    ) -> tuple[Done, foreign.Result]:
        """Have ``qrexec-client -d dom0 -c`` serve a new request: what became of the program, what its caller got."""
        ident = self.agent.trigger("dom0", "whatever")
        eventually(lambda: len(self.place._policies[0].requests) >= self.agent._count)
        joined = f"{ident.rstrip(bytes(1)).decode()},foreign,7"
        results: list[Done] = []
        running = threading.Thread(
            target=lambda: results.append(host(self.place, *options, "-d", "dom0", "-c", joined, command))
        )
        running.start()
        domain, port = self.agent.answer(ident) or (-1, 0)
        assert domain == 0
        with self.place.vchan.serve(7, domain, port) as listener:
            sock, _ = listener.accept()
        found = foreign.caller(sock, data, hold_stdin=hold_stdin)
        self.agent.tell(foreign.TERMINATED, struct.pack("<II", domain, port))
        running.join()
        return results[0], found


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[Waiting]:
    made = Waiting(tmp_path)
    yield made
    made.close()


def test_a_service_of_the_host_for_a_request(waiting: Waiting) -> None:
    waiting.place.service(
        "show",
        'cat; echo "$1 $QREXEC_REMOTE_DOMAIN $QREXEC_REQUESTED_TARGET_TYPE $QREXEC_REQUESTED_TARGET"\n'
        "echo why >&2; exit 7",
        host=True,
    )
    for command, tail in (
        ("QUBESRPC show+arg foreign name other", b"arg foreign name other\n"),
        ("nogui:QUBESRPC show+arg foreign name other", b"arg foreign name other\n"),
        ("QUBESRPC show foreign keyword adminvm", b" foreign keyword \n"),
    ):
        done, caller = waiting.served(command, data=b"data ")
        assert (caller.status, caller.stdout, caller.stderr) == (7, b"data " + tail, b"")
        assert caller.kinds[0] == (foreign.STDERR, 0), "stderr ends first: it stays on this host"
        assert (done.returncode, done.stdout, done.stderr) == (7, b"", b"why\n")
    done, caller = waiting.served("echo out; exit 3")
    assert (caller.status, caller.stdout, done.returncode) == (3, b"out\n", 3)
    done, caller = waiting.served("exit 3", "-E")
    assert (caller.status, done.returncode) == (3, 0)


@pytest.mark.parametrize(
    ("command", "config", "status"),
    [
        ("QUBESRPC missing foreign name dom0", "", 127),
        ("QUBESRPC show+arg foreign name", "", 125),
        ("QUBESRPC show+arg foreign name a b", "", 125),
        ("QUBESRPC show+arg foreign name a", "wait-for-session = 01\n", 125),
    ],
)
def test_a_request_that_cannot_be_served(waiting: Waiting, command: str, config: str, status: int) -> None:
    waiting.place.service("show", "echo never", host=True)
    if config:
        (waiting.place.directory / "config" / "show+arg").write_text(config)
    done, caller = waiting.served(command)
    assert caller.kinds == [(foreign.STDERR, 0), (foreign.STDOUT, 0), (foreign.EXIT, 4)], "and no word of why"
    assert (caller.status, done.returncode) == (status, status)
    assert b"qrexec-client: error: " in done.stderr, "the reason is for who is on the host"


def test_a_socket_service_for_a_request(waiting: Waiting) -> None:
    heard: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(waiting.place.host_services / "door+arg"))
        listener.listen(1)

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                data = b""
                while more := peer.recv(4096):
                    data += more
                heard.append(data)
                peer.sendall(b"answer")

        serving = threading.Thread(target=serve)
        serving.start()
        done, caller = waiting.served("QUBESRPC door+arg foreign name dom0", "-w0", data=b"data")
        serving.join()
    assert heard == [b"door+arg foreign name dom0\0data"]
    assert (caller.status, caller.stdout, done.returncode) == (0, b"answer", 0)


def test_a_service_of_the_host_waits_for_the_session_of_its_user(waiting: Waiting) -> None:
    place = waiting.place
    mark = place.directory / "mark"
    place.service("qubes.WaitForSession", f"read user; echo $user $QREXEC_REMOTE_DOMAIN > {mark}", host=True)
    place.service("late", f"cat {mark}", host=True)
    (place.directory / "config" / "late").write_text("wait-for-session = 1\n")
    done, caller = waiting.served("QUBESRPC late foreign name dom0")
    assert (caller.stdout, done.returncode) == (f"{ME} foreign\n".encode(), 0)


def test_what_a_request_to_serve_must_say(waiting: Waiting) -> None:
    for words in (
        "ident",
        "ident,foreign",
        ",foreign,7",
        "a,foreign,0",
        "a,dom0,7",
        "a,@adminvm,7",
        "a" * 32 + ",foreign,7",
    ):
        done = host(waiting.place, "-d", "dom0", "-c", words, "true")
        assert done.returncode != 0 and b"-c wants" in done.stderr, words
    done = host(waiting.place, "-d", "dom0", "-c", "nobody,foreign,7", "touch never")
    assert done.returncode == 137 and b"refused" in done.stderr
    assert not Path("never").exists()


def connect(client: foreign.Client, domain: int, port: int, ident: bytes) -> socket.socket:
    sock = client.greeted()
    foreign.send(sock, foreign.CONNECT, struct.pack("<II", domain, port) + ident)
    return sock


@pytest.mark.parametrize("padded", [True, False])
def test_a_client_answers_a_waiting_request_once(waiting: Waiting, padded: bool) -> None:
    """Upstream's own clients pad the request id, its test programs do not."""
    client = waiting.place.client("foreign")
    ident = waiting.agent.trigger("work", "echo")
    eventually(lambda: bool(waiting.place._policies[0].requests))
    sent = ident if padded else ident.rstrip(b"\0") + b"\0"
    waiting.agent._answers[sent] = waiting.agent._answers[ident]
    first = connect(client, 5, 513, sent)
    assert waiting.agent.answer(ident) == (5, 513)
    assert waiting.agent.received[-1] == (foreign.CONNECT, struct.pack("<II", 5, 513) + sent)
    count = len(waiting.agent.received)
    for bad in (sent, b"other".ljust(32, b"\0"), b"\0" * 32, b"x" * 32):
        with connect(client, 5, 514, bad) as sock:
            assert sock.recv(1) == b"", "left without a word"
    first.close()
    assert len(waiting.agent.received) == count, "and the agent heard of none of them"


def test_a_client_cannot_name_a_port_that_is_none(waiting: Waiting) -> None:
    client = waiting.place.client("foreign")
    ident = waiting.agent.trigger("work", "echo")
    eventually(lambda: bool(waiting.place._policies[0].requests))
    with connect(client, 5, 512, ident) as sock:
        assert sock.recv(1) == b""
    assert waiting.agent.received == []


PROGRAM = """#!/bin/sh
echo "$@" "${QREXEC_REQUESTED_SOURCE-}" >> DIRECTORY/asked
printf 'result=allow\\nuser=DEFAULT\\ntarget=work\\nrequested_target=work\\nautostart=False\\n'
"""


def test_what_a_policy_program_is_asked(tmp_path: Path) -> None:
    """The call as the caller said it, a request with a source of its own too, and a domain that calls itself."""
    place = VchanPlace(tmp_path)
    program = tmp_path / "program"
    program.write_text(PROGRAM.replace("DIRECTORY", str(tmp_path)))
    program.chmod(0o755)
    place.daemon("5:work::" + ME, policy_program=str(program))
    agent = foreign.Agent(place.vchan, 5)
    agent.start()
    place.up("work")
    try:
        for call, source in (("plain", ""), ("bare+", ""), ("with+arg", "work"), ("relayed", "remote")):
            place_of_call = agent.answer(agent.trigger("work", call, source=source))
            assert place_of_call is not None and place_of_call[0] == 5
            eventually(lambda call=call: any(call.encode() in body for _kind, body in agent.received))  # type: ignore[misc]
        assert (tmp_path / "asked").read_text().splitlines() == [
            "-- work work plain ", "-- work work bare+ ", "-- work work with+arg ", "-- work work relayed remote",
        ]  # fmt: skip
        executed = [body[8:] for kind, body in agent.received if kind == foreign.EXEC]
        assert executed[0] == b"user:QUBESRPC plain+ work\0".replace(b"user", ME.encode())
    finally:
        agent.close()
        place.close()


def test_who_the_service_is_told_that_calls(tmp_path: Path) -> None:
    """A relay speaks for a qube on another machine, and the policy says so."""
    place = VchanPlace(tmp_path)
    place.policy(
        lambda request: foreign.allow(request, target="vault") + f"policy_source={request['requested_source']}\n"
    )
    place.service("who", "echo $QREXEC_REMOTE_DOMAIN")
    place.daemon("5:relay", "6:vault::" + ME)
    place.agent(6)
    agent = foreign.Agent(place.vchan, 5)
    agent.start()
    try:
        place.up("relay")
        place.up("vault")
        domain, port = agent.answer(agent.trigger("vault", "who", source="remote")) or (0, 0)
        with place.vchan.serve(5, domain, port) as listener:
            sock, _ = listener.accept()
        assert foreign.caller(sock, b"").stdout == b"remote\n"
    finally:
        agent.close()
        place.close()

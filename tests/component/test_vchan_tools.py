"""qrexec-client and qrexec-client-vm over vchan: our tools, our daemon and agent, and foreign ones at the other end."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.builders import wait_for
from tests.component.test_calls import Place
from tests.component.vchan_place import ME, VchanPlace
from tests.fakes import foreign_qrexec as foreign

DATA = random.Random(3).randbytes(700_000)
Done = subprocess.CompletedProcess[bytes]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[VchanPlace]:
    made = VchanPlace(tmp_path)
    made.service("echo", "cat; echo to-stderr $QREXEC_REMOTE_DOMAIN >&2; exit 5")
    made.policy(lambda request: foreign.allow(request) if request["intended_target"] != "secret" else "result=deny\n")
    made.daemon("5:work::" + ME, "6:vault::" + ME, "7:foreign")
    made.agent(5)
    made.agent(6)
    made.up("work")
    made.up("vault")
    yield made
    made.close()


def host(place: VchanPlace, *words: str, data: bytes = b"") -> Done:
    argv = [sys.executable, "-m", "casemate.cli", "qrexec-client", f"--socket-dir={place.sockets}", *words]
    environment = {**place.environment(0, host=True), "CASEMATE_STATE": str(place.directory / "state")}
    return subprocess.run(argv, env=environment, input=data, capture_output=True, timeout=20)


def guest(place: VchanPlace, domain: int, *words: str, data: bytes = b"", **environment: str) -> Done:
    argv = [sys.executable, "-m", "casemate.agent.entry", "qrexec-client-vm"]
    argv += [f"--agent-socket={place.agent_socket(domain)}", *words]
    env = {**place.environment(domain), **environment}
    return subprocess.run(argv, env=env, input=data, capture_output=True, timeout=20)


def found(done: Done) -> tuple[int, bytes, bytes]:
    return done.returncode, done.stdout, done.stderr


def test_services_and_commands_from_the_host(place: VchanPlace) -> None:
    call = "DEFAULT:QUBESRPC echo dom0"
    assert found(host(place, "-d", "vault", call, data=DATA)) == (5, DATA, b"to-stderr dom0\n")
    assert found(host(place, "-d", "6", "-p", "first ", call, data=b"x")) == (5, b"first x", b"to-stderr dom0\n")
    assert found(host(place, "-d", "vault", f"{ME}:echo $((6*7)); exit 9")) == (9, b"42\n", b"")
    assert found(host(place, "-E", "-d", "vault", f"{ME}:nogui:exit 9")) == (0, b"", b"")
    assert found(host(place, "-e", "-d", "vault", f"{ME}:echo unheard; exit 3")) == (0, b"", b"")
    assert host(place, "-t", "-d", "vault", f"{ME}:printf '\\033['").stdout == b"_["
    assert host(place, "-d", "vault", "DEFAULT:QUBESRPC missing dom0").returncode == 127
    status, stdout, stderr = found(host(place, "-l", "echo asked; exec cat >&2", "-d", "vault", call))
    assert (status, stdout) == (5, b"") and sorted(stderr.split(b"\n")) == [b"", b"asked", b"to-stderr dom0"]
    assert host(place, "-d", "vault", "without a user").returncode == 126


def test_services_of_the_host_itself(place: VchanPlace) -> None:
    place.service("where", 'cat; echo "$QREXEC_REMOTE_DOMAIN $1"; exit 4', host=True)
    assert found(host(place, "-d", "dom0", "DEFAULT:QUBESRPC where+a dom0", data=b"in ")) == (4, b"in dom0 a\n", b"")
    assert host(place, "-l", "echo asked; exec cat >&2", "DEFAULT:QUBESRPC where dom0").stderr == b"asked\ndom0 \n"
    assert host(place, "DEFAULT:QUBESRPC missing dom0").returncode == 127


def test_a_service_of_another_qube(place: VchanPlace) -> None:
    assert found(guest(place, 5, "vault", "echo", data=DATA)) == (5, DATA, b"to-stderr work\n")
    assert found(guest(place, 5, "secret", "echo")) == (126, b"", b"Request refused\n")
    assert guest(place, 5, "vault", "missing").returncode == 127
    assert found(guest(place, 5, "-p", "first ", "vault", "echo", data=b"x"))[1] == b"first x"
    script = 'echo asked; exec cat >&"$SAVED_FD_1"'
    done = guest(place, 5, "vault", "echo", "/bin/sh", "-c", script)
    assert (done.returncode, done.stdout) == (5, b"asked\n")
    script = 'echo heard >&"$SAVED_FD_2"'
    done = guest(place, 5, "vault", "echo", "/bin/sh", "-c", script, PASS_LOCAL_STDERR="1")
    assert b"heard\n" in done.stderr


def test_a_foreign_agent_of_each_version_serves_our_tools(place: VchanPlace) -> None:
    for version in (2, 3, 4):
        agent = foreign.Agent(place.vchan, 7, version)
        agent.start()
        place.up("foreign")
        done = host(place, "-d", "foreign", "DEFAULT:QUBESRPC echo dom0", data=DATA)
        assert (done.returncode, done.stdout) == (3, DATA)
        done = guest(place, 5, "foreign", "echo", data=b"data")
        assert (done.returncode, done.stdout) == (3, b"data")
        # And it may ask a qube of ours.
        answer = agent.call("vault", "echo", DATA)
        assert (answer.status, answer.stdout) == (5, DATA)
        agent.close()


def test_an_old_data_channel_gets_short_messages(place: VchanPlace) -> None:
    answer = place.client("vault").call("DEFAULT:QUBESRPC echo dom0", DATA, version=2)
    assert (answer.status, answer.stdout) == (5, DATA) and answer.longest <= 4096


def test_a_command_without_input_is_not_waited_for(place: VchanPlace, tmp_path: Path) -> None:
    """The caller is told that it was started, though it still runs: it waits for a reader of a pipe."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    answer = place.client("vault").call(f"{ME}:cat; echo x; echo done > {pipe}; exit 6", kind=foreign.JUST_EXEC)
    assert answer.status == 0 and answer.kinds == [(foreign.EXIT, 4)]
    assert pipe.read_text() == "done\n"
    answer = place.client("vault").call("DEFAULT:QUBESRPC no.Such dom0", kind=foreign.JUST_EXEC)
    assert answer.status == 127 and answer.kinds == [(foreign.EXIT, 4)]


def test_a_request_joined_by_hand(place: VchanPlace) -> None:
    """As a program that decides by itself does: the request waits, -c joins it to a service."""
    hold = threading.Event()
    place._policies[0]._rule = lambda request: "result=deny\n" if hold.wait(20) else ""
    agent = foreign.Agent(place.vchan, 7)
    agent.start()
    place.up("foreign")
    ident = agent.trigger("vault", "echo")
    call = "DEFAULT:QUBESRPC echo foreign"
    done = threading.Thread(target=lambda: results.append(host(place, "-W", "-d", "vault", "-c", joined, call)))
    joined = f"{ident.rstrip(bytes(1)).decode()},foreign,7"
    results: list[Done] = []
    done.start()
    domain, port = agent.answer(ident) or (0, 0)
    with place.vchan.serve(7, domain, port) as listener:
        sock, _ = listener.accept()
    answer = foreign.caller(sock, b"data")
    assert (answer.status, answer.stdout) == (5, b"data")
    agent.tell(foreign.TERMINATED, domain.to_bytes(4, "little") + port.to_bytes(4, "little"))
    done.join()
    assert results[0].returncode == 0
    assert host(place, "-d", "vault", "-c", "SOCKET9,foreign,7", call).returncode in (0, 137)
    hold.set()
    agent.close()


def test_other_users_only_by_root(place: VchanPlace) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:  # one that others may enter
        os.chmod(directory, 0o755)
        place.services = Path(directory)
        place.service("who", 'id -un; echo "$USER"')
        place.agent(8)
        place.control("add 8 other")
        place.up("other")
        done = host(place, "-d", "other", "nobody:QUBESRPC who dom0")
    if ME == "root":
        assert found(done) == (0, b"nobody\nnobody\n", b"")
    else:
        assert done.returncode == 125 and b"serves nobody as" in done.stderr
    assert host(place, "-d", "vault", "no-such-user:id").returncode == 125


def test_socket_services_take_no_process(place: VchanPlace) -> None:
    heard: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                data = b""
                while more := peer.recv(65536):
                    data += more
                heard.append(data.partition(b"\0")[0])
                peer.sendall(data.partition(b"\0")[2])

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(place.services / "sock"))
        listener.listen(8)
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        answer = place.client("vault").call("DEFAULT:QUBESRPC sock+arg dom0", DATA)
        assert (answer.status, answer.stdout, answer.stderr) == (0, DATA, b"")
        answer = place.client_vm(5).call("vault", "sock", b"data")
        assert (answer.status, answer.stdout) == (0, b"data")
        assert heard == [b"sock+arg dom0", b"sock+ work"]
        listener.shutdown(socket.SHUT_RDWR)
    assert place.client("vault").call("DEFAULT:QUBESRPC sock dom0").status == 125


def test_a_qube_of_casemate_is_reached_by_its_link(tmp_path: Path) -> None:
    inside = Place(tmp_path)
    try:
        inside.service("echo", "cat; exit 5")
        inside.start()
        for command, status, output in (
            ("DEFAULT:QUBESRPC echo dom0", 5, b"data"),
            ("user:cat; exit 6", 6, b"data"),
        ):
            argv = [sys.executable, "-m", "casemate.cli", "qrexec-client", "-d", "target", command]
            done = subprocess.run(argv, env=inside.env, input=b"data", capture_output=True, timeout=20)
            assert found(done) == (status, output, b"")
    finally:
        for process in inside.processes:
            process.kill()
            process.wait()


def test_configurations_of_services(place: VchanPlace) -> None:
    """Ends of socket services, no descriptor, a wait for the session, another user than may be had."""
    config = place.directory / "config"
    config.mkdir()
    client = place.client("vault")
    # The service ends its output and reads on: the call ends although the caller's stdin is open.
    (config / "one").write_text("exit-on-service-eof = true\nskip-service-descriptor = true\n")
    (config / "two").write_text("exit-on-client-eof = true\n")
    (config / "late").write_text("wait-for-session = 1\n")
    heard: list[bytes] = []

    def serve(listener: socket.socket, shut: bool) -> None:
        peer, _ = listener.accept()
        with peer:
            heard.append(peer.recv(65536))
            if shut:
                peer.sendall(b"said")
                peer.shutdown(socket.SHUT_WR)
            while peer.recv(65536):
                pass
            time.sleep(0 if shut else 100)  # the service lives on; its caller must not wait for it

    for name, shut in (("one", True), ("two", False)):
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(place.services / name))
        listener.listen(8)
        threading.Thread(target=serve, args=(listener, shut), daemon=True).start()
        with client.greeted() as sock:
            foreign.send(sock, foreign.EXEC, foreign.exec_body(0, 0, f"DEFAULT:QUBESRPC {name} dom0".encode()))
            port = int.from_bytes(foreign.receive(sock)[1][4:], "little")
            with place.vchan.serve(0, 6, port) as door:
                peer, _ = door.accept()
            begin = time.monotonic()
            answer = foreign.caller(peer, b"data", hold_stdin=shut)
            assert answer.status == 0 and time.monotonic() - begin < 50
            assert answer.stdout == (b"said" if shut else b"")
        listener.close()
    wait_for(lambda: len(heard) == 2)  # the second call ends before its service has read what it was sent
    assert heard[0] == b"data" and heard[1].startswith(b"two+ dom0\0")
    # Calls wait for one waiter, and lose nothing of what came meanwhile.
    place.service("late", "cat; cat $0.session")
    place.service("qubes.WaitForSession", f"read user; sleep 0.5; echo $user >> {place.services}/late.session")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: client.call("DEFAULT:QUBESRPC late dom0", DATA), range(4)))
    assert {(answer.status, answer.stdout) for answer in answers} == {(0, DATA + ME.encode() + b"\n")}

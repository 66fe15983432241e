"""The static tools of a guest (host/initrd/tools.c) do what the Python tools do, or become those."""

from __future__ import annotations

import asyncio
import os
import pty
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.host.guest_kernel import compile_static
from casemate.host.process import Runner
from casemate.qdb.client import QubesDB
from tests.component.rig import Rig, rig
from tests.component.test_calls import Place
from tests.component.vchan_place import eventually

Done = subprocess.CompletedProcess[bytes]
NAMES = ("qrexec-client-vm", "qubesdb-read", "qubesdb-write", "qubesdb-rm", "qubesdb-list", "qubesdb-multiread")
NO_SCRIPT = b"/usr/lib/casemate/tool.py"
"""What Python complains of where there is no guest around: the tool has become it."""


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tools")
    program = asyncio.run(compile_static(Runner(), "tools.c", directory))
    for name in NAMES:
        (directory / name).write_bytes(program)
        (directory / name).chmod(0o755)
    return directory


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    for process in made.processes:
        process.kill()
        process.wait()


def run(tools: Path, place: Place, *words: str, data: bytes = b"") -> Done:
    argv = [str(tools / "qrexec-client-vm"), *words]
    return subprocess.run(argv, env=place.env, input=data, capture_output=True, timeout=60)


def test_a_call_is_that_of_the_python_tool(tools: Path, place: Place) -> None:
    place.service("echo", "cat; echo to-stderr >&2; exit 3")
    place.service("die", "kill -9 $$")
    place.start("refuse:secret")
    data = random.Random(1).randbytes(3_000_000)
    for call, sent in (
        ("echo", data),
        ("echo", b""),
        ("echo+arg", b"x"),
        ("die", b""),
        ("missing", b""),
        ("secret", b""),
    ):
        ours, theirs = run(tools, place, "target", call, data=sent), place.call(call, data=sent)
        assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr), call


def test_an_agent_that_goes_away(tools: Path, place: Place) -> None:
    place.start("vanish")
    done = run(tools, place, "target", "any")
    assert done.returncode == 255 and b"The other end went away" in done.stderr


@pytest.mark.parametrize("answer", [b"", b"\x01\x02", b"\xff" * 48, b"\x02\x02\0\0\xff\xff\0\0" + bytes(40)])
def test_an_agent_that_talks_nonsense(tools: Path, place: Place, answer: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(place.env["QREXEC_AGENT_SOCKET"])
        listening.listen(1)
        argv = [str(tools / "qrexec-client-vm"), "target", "any"]
        with subprocess.Popen(argv, env=place.env, stderr=subprocess.PIPE) as caller:
            peer, _address = listening.accept()
            peer.recv(65536)
            peer.sendall(answer)
            peer.close()
            assert caller.wait(20) == 125


def test_output_that_is_read_late_loses_nothing(tools: Path, place: Place) -> None:
    place.service("numbers", "seq 1 300000; seq 1 300000 >&2; exit 4")
    place.start()
    argv = [str(tools / "qrexec-client-vm"), "target", "numbers"]
    with subprocess.Popen(
        argv, env=place.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as caller:
        time.sleep(0.2)  # let it fill the pipe; nothing depends on how far it gets
        out, err = caller.communicate(timeout=60)
        assert caller.returncode == 4
    assert out == err == "".join(f"{number}\n" for number in range(1, 300001)).encode()


def test_standard_streams_are_left_as_they_were(tools: Path, place: Place) -> None:
    """Who shares a pipe with the tool must not find it non-blocking afterwards."""
    place.service("echo", "cat")
    place.start()
    reading, writing = os.pipe()
    argv = [str(tools / "qrexec-client-vm"), "target", "echo"]
    subprocess.run(argv, env=place.env, input=b"x", stdout=writing, check=True, timeout=20)
    assert os.get_blocking(writing) and os.read(reading, 10) == b"x"
    ours, theirs = socket.socketpair()
    subprocess.run(argv, env=place.env, stdin=subprocess.DEVNULL, stdout=theirs, check=True, timeout=20)
    assert theirs.getblocking()
    ours.close()
    theirs.close()


def test_output_on_a_terminal_is_harmless(tools: Path, place: Place) -> None:
    (place.path / "bytes").write_bytes(bytes(range(256)))
    place.service("all", f"cat {place.path}/bytes")
    place.start()
    master, slave = pty.openpty()
    argv = [str(tools / "qrexec-client-vm"), "target", "all"]
    subprocess.run(argv, env=place.env, stdin=subprocess.DEVNULL, stdout=slave, timeout=20, check=True)
    seen = os.read(master, 65536)
    assert b"\x1b" not in seen and b"ABC" in seen and max(seen) < 0x80
    plain = run(tools, place, "--no-filter-escape-chars-stdout", "target", "all")
    assert plain.stdout == bytes(range(256))
    assert b"\x1b" not in run(tools, place, "-t", "target", "all").stdout


@pytest.mark.parametrize(
    "words",
    [
        [], ["target"], ["target", "svc", "program"], ["-p", "x", "target", "svc"], ["--use-stdin-socket", "t", "svc"],
        ["x" * 64, "svc"], ["target", "s" * 512], ["target", ""], ["é", "svc"], ["--unknown", "target", "svc"],
    ],
)  # fmt: skip
def test_what_it_does_not_know_is_left_to_the_python_tool(tools: Path, place: Place, words: list[str]) -> None:
    place.start()
    assert NO_SCRIPT in run(tools, place, *words).stderr


def test_without_an_agent_the_python_tool_says_so(tools: Path, place: Place) -> None:
    assert NO_SCRIPT in run(tools, place, "target", "svc").stderr


def test_a_waiting_call_takes_little_memory(tools: Path, place: Place) -> None:
    place.service("wait", "head -c 100000 /dev/zero; cat")
    place.start()
    argv = [str(tools / "qrexec-client-vm"), "target", "wait"]
    with subprocess.Popen(argv, env=place.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as caller:
        assert caller.stdin is not None and caller.stdout is not None
        assert len(caller.stdout.read(100000)) == 100000
        resident = int(Path(f"/proc/{caller.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        caller.stdin.close()
    assert resident < 512 * 1024


# -- qubesdb-*


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path) as made:
        yield made


def database(tools: Path, made: Rig, tool: str, *words: str, python: bool = False) -> Done:
    argv = [sys.executable, "-m", "casemate.agent.entry", tool] if python else [str(tools / tool)]
    env = {**os.environ, "QUBESDB_SOCKET": str(made.guest_run / "qubesdb.sock")}
    return subprocess.run([*argv, *words], env=env, capture_output=True, timeout=30)


def test_the_database_tools_are_those_of_python(tools: Path, running: Rig) -> None:
    with QubesDB(running.directory / "qubesdb.sock") as host:
        host.write("/odd", bytes([0x1F, 0x20, 0x7E, 0x7F, 0xFF, 0x5C]) + b"end")
        for number in range(3000):
            host.write(f"/many/{number}", b"v" * (number % 50))
    running.call("none")  # the agent serves
    eventually(lambda: database(tools, running, "qubesdb-read", "/many/2999").returncode == 0)
    for tool, words in (
        ("qubesdb-read", ["/odd"]), ("qubesdb-read", ["/name"]), ("qubesdb-read", ["/missing"]),
        ("qubesdb-list", ["/many/"]), ("qubesdb-list", ["/none/"]), ("qubesdb-multiread", ["/many/"]),
        ("qubesdb-multiread", ["/odd"]), ("qubesdb-list", [""]),
    ):  # fmt: skip
        ours, theirs = (database(tools, running, tool, *words, python=python) for python in (False, True))
        if NO_SCRIPT in ours.stderr:
            assert theirs.returncode or not theirs.stdout, (tool, words)
        else:
            assert (ours.returncode, ours.stdout, ours.stderr) == (
                theirs.returncode,
                theirs.stdout,
                theirs.stderr,
            ), tool


def test_writing_and_removing(tools: Path, running: Rig) -> None:
    running.call("none")  # the agent serves
    assert database(tools, running, "qubesdb-write", "/qubes-tools/x", "the value").returncode == 0
    assert database(tools, running, "qubesdb-read", "/qubes-tools/x").stdout == b"the value\n"
    assert database(tools, running, "qubesdb-rm", "/qubes-tools/x").returncode == 0
    assert database(tools, running, "qubesdb-read", "/qubes-tools/x").returncode == 2
    for tool, words in (
        ("qubesdb-write", ["/name", "x"]), ("qubesdb-write", ["/qubes-tools/x", "x" * 4000]),
        ("qubesdb-rm", ["/missing"]), ("qubesdb-read", ["-w", "/x"]), ("qubesdb-read", ["/a", "/b"]),
        ("qubesdb-read", ["/bad path"]), ("qubesdb-read", []), ("qubesdb-read", ["x" * 70]),
    ):  # fmt: skip
        assert NO_SCRIPT in database(tools, running, tool, *words).stderr, (tool, words)

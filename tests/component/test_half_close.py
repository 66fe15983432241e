"""Each direction of a call ends for itself, at once: at every end, over a link and over vchan, with local commands."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from casemate.host.guest_kernel import compile_static
from casemate.host.process import Runner
from casemate.streams.ready import readable
from tests.component.rig import SOURCE, Rig
from tests.component.test_calls import Place
from tests.component.vchan_place import ME, VchanPlace, eventually

CALLER = """
import socket, sys
from casemate.calls.caller import run_call, run_call_with
from casemate.wire.qrexec import exec_message
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
sock.sendall(exec_message("DEFAULT:QUBESRPC " + sys.argv[2] + " dom0"))
if sys.argv[3:]:
    sys.exit(run_call_with(sock, ["/bin/sh", "-c", sys.argv[3]]))
sys.exit(run_call(sock, 0, 1, 2))
"""
BIG = bytes(5_000_000)
Popen = subprocess.Popen[bytes]


class Carrier:
    """Calls a service whose script a test gives; ``path`` is a directory for what it leaves."""

    def __init__(self, path: Path, service: Callable[[str, str], None]) -> None:
        self.path = path
        self.service = service

    def argv(self, local: str = "") -> list[str]:
        raise NotImplementedError

    environment: dict[str, str]

    def start(self, script: str, local: str = "", **streams: int) -> Popen:
        self.service("test", script)
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
        return subprocess.Popen(self.argv(local), env=self.environment, **options)  # type: ignore[call-overload,no-any-return]


class OverLink(Carrier):
    def __init__(self, path: Path) -> None:
        self.rig = Rig(path)
        super().__init__(path, self.rig.service)
        self.environment = {"PYTHONPATH": str(SOURCE), "PATH": os.environ["PATH"]}
        self.rig.start_link()
        self.rig.start_agent()

    def argv(self, local: str = "") -> list[str]:
        words = [str(self.path / "link.sock"), "test", *([local] if local else [])]
        return [sys.executable, "-c", CALLER, *words]

    def close(self) -> None:
        self.rig.close()


class OverVchan(Carrier):
    def __init__(self, path: Path) -> None:
        self.place = VchanPlace(path)
        super().__init__(path, self.place.service)
        self.place.policy()
        self.place.daemon("6:vault::" + ME)
        self.place.agent(6)
        self.place.up("vault")
        self.environment = {**self.place.environment(0, host=True), "CASEMATE_STATE": str(path / "state")}

    def argv(self, local: str = "") -> list[str]:
        words = [f"--socket-dir={self.place.sockets}", "-d", "vault", *(["-l", local] if local else [])]
        return [sys.executable, "-m", "casemate.cli", "qrexec-client", *words, "DEFAULT:QUBESRPC test dom0"]

    def close(self) -> None:
        self.place.close()


class FromAQube(Carrier):
    """The static tool of a guest, on an agent's socket."""

    def __init__(self, path: Path) -> None:
        self.place = Place(path)
        super().__init__(path, self.place.service)
        self.tool = path / "qrexec-client-vm"
        self.tool.write_bytes(asyncio.run(compile_static(Runner(), "tools.c", path)))
        self.tool.chmod(0o755)
        self.environment = self.place.env
        self.place.start()

    def argv(self, local: str = "") -> list[str]:
        if local:
            pytest.skip("joining a local command is left to the Python tool")
        return [str(self.tool), "target", "test"]

    def close(self) -> None:
        for process in self.place.processes:
            process.kill()
            process.wait()


@pytest.fixture(params=[OverLink, OverVchan, FromAQube])
def carrier(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Carrier]:
    made = request.param(tmp_path)
    yield made
    made.close()


def read_to_end(fd: int, seconds: float = 20) -> bytes:
    """What comes until the writer has closed it; fails when that does not happen."""
    data, end = b"", time.monotonic() + seconds
    while True:
        assert readable([fd], max(0.0, end - time.monotonic())), "no end"
        got = os.read(fd, 65536)
        if not got:
            return data
        data += got


def fds(caller: Popen) -> tuple[int, int, int]:
    assert caller.stdin is not None and caller.stdout is not None and caller.stderr is not None
    return caller.stdin.fileno(), caller.stdout.fileno(), caller.stderr.fileno()


def test_the_end_of_the_services_output_comes_while_its_input_goes_on(carrier: Carrier) -> None:
    caller = carrier.start(f"echo out; exec >&-; cat >{carrier.path}/got; exit 5")
    _stdin, stdout, _stderr = fds(caller)
    assert read_to_end(stdout) == b"out\n"
    _out, err = caller.communicate(b"sent afterwards", timeout=20)
    assert (caller.returncode, err) == (5, b"")
    assert (carrier.path / "got").read_bytes() == b"sent afterwards"


def test_the_end_of_the_input_comes_while_output_goes_on(carrier: Carrier) -> None:
    go = carrier.path / "go"
    caller = carrier.start(f"cat; echo eof; while [ ! -e {go} ]; do sleep 0.05; done; echo late; exit 6")
    stdin, stdout, _stderr = fds(caller)
    os.write(stdin, b"in ")
    caller.stdin.close()  # type: ignore[union-attr]
    data = b""
    while b"eof" not in data:
        data += os.read(stdout, 100)
    go.touch()
    assert data + read_to_end(stdout) == b"in eof\nlate\n" and caller.wait(20) == 6


def test_output_without_a_reader_is_lost_and_input_is_not(carrier: Carrier) -> None:
    caller = carrier.start(f"echo unheard; cat >{carrier.path}/got; echo unheard; exit 7")
    caller.stdout.close()  # type: ignore[union-attr]
    caller.stdout = None
    _out, err = caller.communicate(BIG, timeout=30)
    assert (caller.returncode, err) == (7, b"")
    assert (carrier.path / "got").read_bytes() == BIG


def test_output_without_end_and_without_a_reader_ends_the_call(carrier: Carrier) -> None:
    caller = carrier.start("exec yes")
    _stdin, stdout, _stderr = fds(caller)
    os.read(stdout, 10)
    caller.stdout.close()  # type: ignore[union-attr]
    assert caller.wait(20) == 141


def test_a_service_that_closes_its_input_goes_on(carrier: Carrier) -> None:
    caller = carrier.start("exec <&-; sleep 0.2; echo alive; exit 4")
    out, err = caller.communicate(BIG, timeout=30)
    assert (caller.returncode, out, err) == (4, b"alive\n", b"")


def test_a_killed_service_ends_a_call_under_way(carrier: Carrier) -> None:
    caller = carrier.start("head -c 100; kill -9 $$")
    out, _err = caller.communicate(BIG, timeout=30)
    assert (caller.returncode, out) == (137, bytes(100))


def test_a_killed_caller_is_an_end_of_input_after_what_it_sent(carrier: Carrier) -> None:
    got, done = carrier.path / "got", carrier.path / "done"
    caller = carrier.start(f"echo ready; cat >{got}; touch {done}")
    stdin, stdout, _stderr = fds(caller)
    assert os.read(stdout, 100) == b"ready\n"
    os.write(stdin, b"sent before")
    eventually(lambda: got.exists() and got.read_bytes() == b"sent before")
    caller.send_signal(signal.SIGKILL)
    caller.wait(20)
    eventually(done.exists)
    assert got.read_bytes() == b"sent before"


def test_a_killed_caller_stops_a_service_that_only_writes(carrier: Carrier) -> None:
    pid = carrier.path / "pid"
    caller = carrier.start(f"echo $$ >{pid}; exec yes")
    _stdin, stdout, _stderr = fds(caller)
    os.read(stdout, 10)
    number = int(pid.read_text())
    caller.send_signal(signal.SIGKILL)
    caller.wait(20)
    eventually(lambda: not Path(f"/proc/{number}").exists())


def test_a_local_command_sees_the_end_of_the_services_output(carrier: Carrier) -> None:
    """Sorting needs the whole of its input, and the service waits for the sorted lines: neither may wait for both."""
    caller = carrier.start(f'printf "b\\na\\n"; exec >&-; cat >{carrier.path}/sorted; exit 3', local="sort")
    caller.communicate(timeout=20)
    assert caller.returncode == 3 and (carrier.path / "sorted").read_bytes() == b"a\nb\n"


def test_a_local_command_that_closes_its_input_is_heard_to_the_end(carrier: Carrier) -> None:
    local = "exec <&-; sleep 0.2; echo from the local command"
    caller = carrier.start(f"echo unheard; sleep 0.1; echo unheard; cat >{carrier.path}/got; exit 2", local=local)
    caller.communicate(timeout=20)
    assert caller.returncode == 2 and (carrier.path / "got").read_bytes() == b"from the local command\n"


def test_a_local_command_that_is_killed_ends_the_input(carrier: Carrier) -> None:
    caller = carrier.start(f"cat >{carrier.path}/got; exit 0", local="echo before; kill -9 $$")
    caller.communicate(timeout=20)
    assert caller.returncode == 137 and (carrier.path / "got").read_bytes() == b"before\n"

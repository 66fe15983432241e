"""The client: a daemon that is not there is started, once, whoever asks first."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.cli import qubesd_query
from casemate.client.qubes import Qubes
from casemate.client.transport import Transport
from casemate.settings import Settings
from casemate.streams.ready import readable
from casemate.wire.errors import CasemateError, DaemonAccessError
from tests.builders import gone, settings_in

DAEMON = (sys.executable, "-m", "tests.fakes.daemon_process")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    found = settings_in(tmp_path)
    yield found
    for pid in started(found):
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            continue
        gone(pid)


def started(settings: Settings) -> list[int]:
    file = settings.state / "started"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def test_many_tools_at_once_start_one_daemon(settings: Settings) -> None:
    found: list[list[str]] = []

    def ask() -> None:
        found.append([qube.name for qube in Qubes(Transport(settings, daemon=DAEMON)).listed()])

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [["dom0"]] * 6 and len(started(settings)) == 1


def test_a_socket_left_by_a_killed_daemon_is_no_obstacle(settings: Settings) -> None:
    qubes = Qubes(Transport(settings, daemon=DAEMON))
    qubes.create("TemplateVM", "deb", "black")
    (pid,) = started(settings)
    os.kill(pid, signal.SIGKILL)
    gone(pid)
    assert settings.api_socket.exists()
    assert [qube.name for qube in qubes.listed()] == ["dom0", "deb"]
    assert len(started(settings)) == 2


def test_a_daemon_that_ends_at_once_is_reported_with_its_words(settings: Settings) -> None:
    with pytest.raises(DaemonAccessError, match="ended at once") as caught:
        Qubes(Transport(settings, daemon=(*DAEMON, "--fail"))).listed()
    assert "no hypervisor" in str(caught.value) and "\x1b" not in str(caught.value)


def test_nothing_is_started_where_that_is_not_wanted(settings: Settings) -> None:
    with pytest.raises(DaemonAccessError, match="No daemon"):
        Qubes(Transport(settings, daemon=())).listed()
    assert not settings.run.exists()


def test_answers_that_are_none(settings: Settings) -> None:
    settings.run.mkdir()
    answers = [b"", b"junk", b"1\0", b"2\0half"]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(settings.api_socket))
        listener.listen()

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                connection.recv(65536)
                connection.sendall(answer)
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        for _ in answers:
            with pytest.raises(DaemonAccessError):
                Qubes(Transport(settings, daemon=())).listed()
        thread.join()


def test_an_answer_to_half_a_request_arrives(settings: Settings, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """A daemon that refuses at once closes with our data unread: behind the answer the kernel resets the connection."""
    settings.run.mkdir()
    refusal = b"2\0QubesException\0\0no such volume\0"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(settings.api_socket))
        listener.listen()

        def serve() -> None:
            for _ in range(3):
                connection, _address = listener.accept()
                readable([connection], 30)  # something has come, and is not read
                connection.sendall(refusal)
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        transport, data = Transport(settings, daemon=()), bytes(600_000)
        with pytest.raises(CasemateError, match="no such volume"):
            transport.call("admin.vm.volume.Import", "private", "work", data)
        assert transport.send_file_raw("admin.vm.volume.Import", "private", "work", b"", io.BytesIO(data)) == refusal
        assert qubesd_query.main(["-e", "-c", str(settings.api_socket), "dom0", "admin.vm.List", "dom0"]) == 0
        assert capfdbinary.readouterr().out == refusal
        thread.join()


def test_tools_import_neither_asyncio_nor_the_daemons_side() -> None:
    program = (
        "import sys\n"
        "from casemate.cli import entry\n"
        "for name in entry.TOOLS: assert entry.find(name), name\n"
        "print(' '.join(sorted(sys.modules)))\n"
    )
    modules = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout.decode().split()
    for banned in ("asyncio", "lxml", "libvirt", "subprocess", "casemate.model", "casemate.store"):
        assert banned not in modules, banned

"""Services and tools of a guest beyond the shell and file copy: opening things elsewhere, TCP, sessions, menus."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.agent.open_file import parse_name
from casemate.agent.open_in_vm import NAME_SIZE, header
from casemate.wire.errors import ProtocolError
from casemate.wire.qrexec import JUST_EXEC
from tests.component.rig import rig
from tests.component.test_calls import AGENT, ROOT, RPC, Place, eventually

OPENER = ROOT / "src/casemate/agent/guest/bin/qubes-open"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    place.service("qubes.OpenInVM", f"exec {sys.executable} -m casemate.agent.entry open-file")
    tools = tmp_path / "tools"
    tools.mkdir()
    place.env["PATH"] = f"{tools}:{os.environ['PATH']}"
    # What a service's environment has is the agent's own PATH, so the opener is put where the service finds it.
    place.service("qubes.OpenInVM", f"PATH={tools}:$PATH; TMPDIR={tmp_path}/tmp; export PATH TMPDIR\n"
                                    f"exec {sys.executable} -m casemate.agent.entry open-file")  # fmt: skip
    place.service("qubes.OpenURL", f"PATH={tools}:$PATH; export PATH; exec {RPC}/qubes.OpenURL")
    (tmp_path / "tmp").mkdir()
    yield place
    for process in place.processes:
        process.kill()
        process.wait()


def opener(place: Place, script: str) -> None:
    path = place.path / "tools/qubes-open"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_file_that_was_changed_there_comes_back(place: Place) -> None:
    opener(place, 'case "$1" in */work-*/"my letter.txt") echo more >>"$1" ;; *) exit 9 ;; esac')
    place.start()
    letter = place.path / "my letter.txt"
    letter.write_text("text\n")
    letter.chmod(0o640)
    done = place.tool("qvm-open-in-vm", "target", str(letter))
    assert (done.returncode, done.stderr) == (0, b"")
    assert letter.read_text() == "text\nmore\n" and letter.stat().st_mode & 0o777 == 0o640
    assert not list((place.path / "tmp").iterdir()), "the receiver keeps nothing"
    assert sorted(p.name for p in place.path.glob("*letter*")) == ["my letter.txt"]


def test_one_that_was_not_changed_does_not(place: Place) -> None:
    opener(place, 'cat "$1" >&2')
    place.start()
    letter = place.path / "letter"
    letter.write_bytes(os.urandom(300_000))
    before = letter.stat()
    link = place.path / "link"
    link.symlink_to(letter)
    done = place.tool("qvm-open-in-vm", "target", str(link))
    assert (done.returncode, done.stderr) == (0, letter.read_bytes())
    assert letter.stat().st_ino == before.st_ino and link.is_symlink()


def test_view_only_is_read_only_there_and_never_comes_back(place: Place) -> None:
    opener(place, 'stat -c %a "$1" >&2; chmod 600 "$1"; echo changed >"$1"')
    place.start()
    letter = place.path / "letter"
    letter.write_text("text")
    done = place.tool("qvm-open-in-vm", "--view-only", "target", str(letter))
    assert (done.returncode, done.stderr, letter.read_text()) == (0, b"400\n", "text")


def test_an_editor_that_fails_leaves_the_original(place: Place) -> None:
    opener(place, 'echo lost >"$1"; exit 3')
    place.start()
    letter = place.path / "letter"
    letter.write_text("text")
    assert place.tool("qvm-open-in-vm", "target", str(letter)).returncode == 3
    assert letter.read_text() == "text" and len(list(place.path.glob(".letter*"))) == 0


def test_two_edits_at_once_lose_nothing(place: Place) -> None:
    opener(place, f'echo there >"$1"; touch {place.path}/opened; while [ ! -e {place.path}/go ]; do sleep 0.05; done')
    place.start()
    letter = place.path / "letter"
    letter.write_text("text")
    results: list[subprocess.CompletedProcess[bytes]] = []
    thread = threading.Thread(target=lambda: results.append(place.tool("qvm-open-in-vm", "target", str(letter))))
    thread.start()
    eventually((place.path / "opened").exists)
    letter.write_text("changed here meanwhile")
    (place.path / "go").touch()
    thread.join()
    assert results[0].returncode == 0 and b"meanwhile" in results[0].stderr
    assert letter.read_text() == "changed here meanwhile"
    (kept,) = place.path.glob(".letter.*")
    assert kept.read_text() == "there\n" and str(kept).encode() in results[0].stderr


def test_a_peer_that_vanishes_leaves_the_original(place: Place) -> None:
    opener(place, f'echo there >"$1"; touch {place.path}/opened; sleep 60')
    place.start()
    letter = place.path / "letter"
    letter.write_text("text")
    tool = subprocess.Popen([*AGENT, "qvm-open-in-vm", "target", str(letter)], env=place.env, stderr=subprocess.PIPE)
    eventually((place.path / "opened").exists)
    place.processes[0].send_signal(signal.SIGKILL)
    _out, err = tool.communicate(timeout=20)
    assert tool.returncode == 1 and err and letter.read_text() == "text" and not list(place.path.glob(".letter*"))


@pytest.mark.parametrize(
    "raw",
    [b"", b"x" * NAME_SIZE, b"/etc/passwd", b"..", b".", b"a\nb", b"\xff", b"a\0b", b"\x1b[2J", b"view-only-",
     "‮x".encode()],
)  # fmt: skip
def test_names_that_are_none_are_refused(place: Place, raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_name(raw.ljust(NAME_SIZE, b"\0"))
    opener(place, "exit 0")
    place.start()
    done = place.call("qubes.OpenInVM", data=raw.ljust(NAME_SIZE, b"\0") + b"data")
    assert done.returncode == 1 and not list((place.path / "tmp").iterdir())


@pytest.mark.parametrize(
    ("limits", "said"), [("open_file.MAX_BYTES = 10", b"longer"), ("open_file.IDLE_SECONDS = 0.3", b"nothing was sent")]
)
def test_a_sender_without_end_or_without_words_is_sent_away(place: Place, limits: str, said: bytes) -> None:
    program = f"from casemate.agent import open_file; {limits}; raise SystemExit(open_file.main([]))"
    place.service("qubes.OpenInVM", f"TMPDIR={place.path}/tmp; export TMPDIR\nexec {sys.executable} -c '{program}'")
    place.start()
    words = [*AGENT, "qrexec-client-vm", "target", "qubes.OpenInVM"]
    tool = subprocess.Popen(words, env=place.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert tool.stdin is not None and tool.stdout is not None and tool.stderr is not None
    tool.stdin.write(header("x", False) + b"a" * 20)
    tool.stdin.flush()
    assert tool.stdout.read() == b"" and said in tool.stderr.read() and tool.wait(20) == 1
    tool.stdin.close()
    tool.stdout.close()
    tool.stderr.close()
    assert not list((place.path / "tmp").iterdir())


def test_a_long_name_keeps_its_end() -> None:
    name, view_only = parse_name(header("ä" * 300 + ".pdf", True))
    assert view_only and name.endswith("ä.pdf") and 200 < len(name.encode()) < NAME_SIZE


def test_urls(place: Place) -> None:
    opener(place, 'echo "$1"')
    place.start()
    done = place.tool("qvm-open-in-vm", "target", "https://example.org/?a=b&c=$(id)")
    assert (done.returncode, done.stdout) == (0, b"https://example.org/?a=b&c=$(id)\n")
    for data in (b"file:///etc/passwd\n", b"-x\n", b"\n", b"javascript:alert(1)\n"):
        assert place.call("qubes.OpenURL", data=data).returncode == 1
    assert place.tool("qvm-open-in-vm", "target").returncode == 2
    assert place.tool("qvm-open-in-vm", "target", "/no/such/file").returncode == 1
    assert place.tool("qvm-open-in-vm", "target", "/dev/null").returncode == 1
    assert b"nothing in this qube" in subprocess.run(
        [OPENER, "x"], env={"PATH": str(place.path / "rpc")}, capture_output=True
    ).stderr  # fmt: skip


def test_a_disposable_is_what_dvm_asks_for(place: Place) -> None:
    place.service("qubes.OpenURL", "echo $QREXEC_REQUESTED_TARGET_TYPE $QREXEC_REQUESTED_TARGET_KEYWORD")
    place.start("refuse:qubes.OpenInVM")
    done = place.tool("qvm-open-in-dvm", "https://example.org/")
    assert (done.returncode, done.stdout) == (0, b"keyword dispvm\n")
    letter = place.path / "letter"
    letter.write_text("text")
    done = place.tool("qvm-open-in-dvm", str(letter))
    assert (done.returncode, done.stderr) == (126, b"Request refused\n")


def test_tcp_to_a_port_of_another_qube(place: Place) -> None:
    """A server that half-closes, two clients at once, more data than any buffer."""
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=echo, args=(connection,)).start()

    def echo(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(65536):
                connection.sendall(data.upper())

    threading.Thread(target=serve, daemon=True).start()
    (place.services / "qubes.ConnectTCP").symlink_to("/dev/tcp/127.0.0.1")
    place.start()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        local = probe.getsockname()[1]
    tool = subprocess.Popen(
        [*AGENT, "qvm-connect-tcp", "-f", f"{local}:target:{port}"], env=place.env, stderr=subprocess.PIPE
    )
    place.processes.append(tool)
    assert (
        tool.stderr is not None
        and tool.stderr.readline() == f"localhost:{local} leads to port {port} of target\n".encode()
    )
    data = b"abc" * 300_000

    def ask() -> bytes:
        with socket.create_connection(("127.0.0.1", local), timeout=30) as client:
            threading.Thread(target=lambda: (client.sendall(data), client.shutdown(socket.SHUT_WR))).start()
            found = b""
            while more := client.recv(65536):
                found += more
            return found

    results: list[bytes] = []
    clients = [threading.Thread(target=lambda: results.append(ask())) for _ in range(2)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert results == [data.upper()] * 2
    server.close()
    tool.stderr.close()


def test_words_of_qvm_connect_tcp(place: Place) -> None:
    for words in ([], ["x"], ["a:b"], ["1:2:3:4"], ["0:vm:80"], ["vm:65536"], ["-g", "vm:80"]):
        assert place.tool("qvm-connect-tcp", *words).returncode == 2, words
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = place.tool("qvm-connect-tcp", f"{taken.getsockname()[1]}:vm:80")
    assert done.returncode == 1 and b"in use" in done.stderr


def test_a_port_is_given_up_when_nobody_connects(place: Place) -> None:
    """What serves apt's port in a template, with a shorter wait: also a connection that came to nothing has ended."""
    code = "import socket, casemate.agent.connect_tcp as c; c.serve(socket.socket(fileno=0), '@default', 'a.B', 0.3)"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = subprocess.Popen([sys.executable, "-c", code], env=place.env, stdin=listener, stderr=subprocess.PIPE)
        place.processes.append(server)
        with socket.create_connection(listener.getsockname(), timeout=30) as client:
            assert client.recv(1) == b""
        _out, said = server.communicate(timeout=30)
    assert server.returncode == 0 and said.startswith(b"a.B: ")


def test_the_clock_takes_only_a_date(place: Place) -> None:
    script = (RPC / "qubes.SetDateTime").read_text()
    place.service("qubes.SetDateTime", script.replace("exec date", "echo date"))
    place.start()
    assert place.call("qubes.SetDateTime", data=b"2026-01-31T23:59:59+00:00\n").stdout == (
        b"date -u -Iseconds -s 2026-01-31T23:59:59+00:00\n"
    )
    for data in (b"", b"now\n", b"2026-01-31\n", b"2026-01-31T23:59:59+00:00; id\n", b"-f /etc/shadow\n"):
        assert place.call("qubes.SetDateTime", data=data).returncode == 1


def test_menus(place: Place, tmp_path: Path) -> None:
    menus = tmp_path / "applications"
    menus.mkdir()
    (menus / "a b.desktop").write_text("[Desktop Entry]\nName=A\nExec=a %u\n# no\n[Desktop Action x]\nName=X\nExec=x\n")
    (menus / "hidden.desktop").write_text("[Desktop Entry]\nName=H\nNoDisplay=true\n")
    script = (RPC / "qubes.GetAppmenus").read_text().replace("/usr/share/applications", str(menus))
    place.service("qubes.GetAppmenus", script)
    place.start()
    assert place.call("qubes.GetAppmenus").stdout.decode().splitlines() == [
        f"{menus}/a b.desktop:Name=A",
        f"{menus}/a b.desktop:Exec=qubes-desktop-run {menus}/a b.desktop",
    ]


# -- waiting for a session


def test_calls_wait_for_the_session_with_one_waiter(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "show").write_text("wait-for-session=1\n")
    with rig(tmp_path) as found:
        # The rig's own link has no graphical session in its database: nothing is waited for.
        found.service("show", "cat; echo shown")
        found.service("qubes.WaitForSession", "exit 1")
        assert found.call("show", b"x ") == (0, b"x shown\n", b"")


def test_a_call_that_nobody_waits_for(tmp_path: Path) -> None:
    """JUST_EXEC: the caller is told that the service was started. It goes on, without a caller's streams."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with rig(tmp_path) as found:
        found.service("long", f"cat; echo unheard; echo unseen >&2; echo done > {pipe}; exit 6")
        assert found.call("long", kind=JUST_EXEC) == (0, b"", b"")
        assert pipe.read_text() == "done\n"
        assert found.call("no.Such", kind=JUST_EXEC)[0] == 127


def test_with_a_session_to_come(tmp_path: Path) -> None:
    from tests.component.rig import Rig

    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "show").write_text("wait-for-session=1\n")
    made = Rig(tmp_path)
    try:
        made.start_link(**{"/qubes-gui-enabled": "True"})
        made.start_agent()
        made.service("show", "cat; echo shown")
        made.service("other", "echo other")
        made.service(
            "qubes.WaitForSession",
            f"read user; echo $user >>{tmp_path}/waiters; while [ ! -e {tmp_path}/session ]; do sleep 0.02; done",
        )
        data = os.urandom(200_000)

        async def calls() -> None:
            waiting = [asyncio.create_task(made.call_async("show", data)) for _ in range(3)]
            while not (tmp_path / "waiters").exists():
                await asyncio.sleep(0.02)
            assert (await made.call_async("other"))[1] == b"other\n", "other calls go on meanwhile"
            gone = made.caller()
            gone.close()
            assert not any(task.done() for task in waiting)
            (tmp_path / "session").touch()
            for status, out, _err in await asyncio.gather(*waiting):
                assert (status, out) == (0, data + b"shown\n")

        asyncio.run(calls())
        assert (tmp_path / "waiters").read_text() == "user\n"
        # The next finds the session there already; a waiter that fails refuses the call.
        assert made.call("show")[0] == 0
        made.service("qubes.WaitForSession", "exit 1")
        status, _out, err = made.call("show")
        assert status == 125 and b"no session of user" in err
        (made.services / "qubes.WaitForSession").unlink()
        deadline = time.monotonic() + 5  # the agent remembers a directory's names for the step of the clock
        while made.call("show")[0] != 0:
            assert time.monotonic() < deadline
    finally:
        made.close()

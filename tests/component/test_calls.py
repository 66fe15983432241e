"""Calls through real sockets and real programs: qrexec-client-vm, qvm-run, services, file copy, database tools.

One file although it is long: its tests share the rig of a qube without a machine.
"""

from __future__ import annotations

import os
import pty
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from casemate.wire import qfile, vmexec

ROOT = Path(__file__).parents[2]
RPC = ROOT / "src/casemate/agent/guest/rpc"
AGENT = [sys.executable, "-m", "casemate.agent.entry"]
CLI = [sys.executable, "-m", "casemate.cli"]


class Place:
    """A directory with a qube in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.services = path / "rpc"
        self.services.mkdir()
        self.home = path / "home"
        self.home.mkdir()
        self.run = path / "run/qubes/target"
        self.run.mkdir(parents=True)
        self.env = {
            **os.environ,
            "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
            "QREXEC_SERVICE_PATH": f"{self.services}:{RPC}",
            "QUBES_RPC_CONFIG_PATH": str(RPC.parent / "rpc-config"),
            "QREXEC_AGENT_SOCKET": str(path / "agent.sock"),
            "CASEMATE_STATE": str(path / "state"),
            "CASEMATE_RUN": str(path / "run"),
            "HOME": str(self.home),
        }
        self.processes: list[subprocess.Popen[bytes]] = []
        self.service("qubes.Filecopy", f'exec {sys.executable} -m casemate.agent.entry qfile-unpacker "$@"')

    def start(self, *policy: str) -> None:
        argv = [sys.executable, "-m", "tests.fakes.qube", str(self.run / "link.sock"), str(self.path / "agent.sock")]
        process = subprocess.Popen([*argv, *policy], env=self.env, cwd=ROOT, stdout=subprocess.PIPE)
        self.processes.append(process)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"

    def service(self, name: str, script: str) -> None:
        path = self.services / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def tool(self, *argv: str, data: bytes = b"", **options: object) -> subprocess.CompletedProcess[bytes]:
        kind = CLI if argv[0] == "qvm-run" or argv[0].endswith("host") else AGENT
        words = [argv[0].removesuffix("-host"), *argv[1:]]
        return subprocess.run([*kind, *words], env=self.env, input=data, capture_output=True, timeout=60, **options)  # type: ignore[call-overload,no-any-return]

    def call(self, service: str, *program: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return self.tool("qrexec-client-vm", "target", service, *program, data=data)

    @property
    def arrived(self) -> Path:
        return self.home / "QubesIncoming/work"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    for process in place.processes:
        process.kill()
        process.wait()


def eventually(true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


# -- calls


def test_bytes_and_status_both_ways(place: Place) -> None:
    place.service("echo", "cat; echo to-stderr >&2; exit 3")
    place.start()
    data = random.Random(1).randbytes(3_000_000)
    result = place.call("echo", data=data)
    assert (result.returncode, result.stdout, result.stderr) == (3, data, b"to-stderr\n")


def test_what_a_service_is_told(place: Place) -> None:
    place.service("tell", 'echo "$1|$#"; env | grep ^QREXEC_ | grep -v SERVICE_PATH | sort')
    place.env["QREXEC_STALE"] = "x"
    place.start()
    assert place.call("tell+a").stdout.decode().splitlines() == [
        "a|1",
        "QREXEC_REMOTE_DOMAIN=work",
        "QREXEC_REQUESTED_TARGET=target",
        "QREXEC_REQUESTED_TARGET_TYPE=name",
        "QREXEC_SERVICE_ARGUMENT=a",
        "QREXEC_SERVICE_FULL_NAME=tell+a",
    ]
    assert place.tool("qrexec-client-vm", "@default", "tell").stdout.decode().splitlines() == [
        "|0",
        "QREXEC_REMOTE_DOMAIN=work",
        "QREXEC_REQUESTED_TARGET_KEYWORD=default",
        "QREXEC_REQUESTED_TARGET_TYPE=keyword",
        "QREXEC_SERVICE_FULL_NAME=tell",
    ]


def test_a_signal_is_a_status(place: Place) -> None:
    place.service("die", "kill -9 $$")
    place.start()
    assert place.call("die").returncode == 137


def test_refused_missing_and_unreachable(place: Place) -> None:
    result = place.call("any")
    assert result.returncode == 125 and result.stderr
    place.start("refuse:secret")
    result = place.call("secret")
    assert (result.returncode, result.stdout, result.stderr) == (126, b"", b"Request refused\n")
    assert place.call("missing").returncode == 127
    assert place.tool("qrexec-client-vm", "target").returncode == 125
    assert place.tool("qrexec-client-vm", "t" * 70, "x").returncode == 125


def test_a_peer_that_vanishes_is_255(place: Place) -> None:
    place.service("slow", f"touch {place.path}/started; exec cat")
    place.start()
    caller = subprocess.Popen(
        [*AGENT, "qrexec-client-vm", "target", "slow"], env=place.env, stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    eventually((place.path / "started").exists)
    place.processes[0].kill()
    assert caller.stderr is not None and b"went away" in caller.stderr.read()
    assert caller.wait(20) == 255


def test_a_caller_that_dies_ends_the_service(place: Place, tmp_path: Path) -> None:
    place.service("wait", f"echo $$ > {tmp_path}/pid; cat; echo end > {tmp_path}/end")
    place.start()
    caller = subprocess.Popen([*AGENT, "qrexec-client-vm", "target", "wait"], env=place.env, stdin=subprocess.PIPE)
    eventually(lambda: (tmp_path / "pid").exists() and bool((tmp_path / "pid").read_text()))
    caller.kill()
    caller.wait()
    eventually((tmp_path / "end").exists)


def test_stderr_does_not_wait_for_stdout(place: Place) -> None:
    """A reader of stdout that is stuck holds up neither stderr nor stdin."""
    place.service("both", "head -c 200000 /dev/zero; echo now >&2; cat >/dev/null")
    place.start()
    caller = subprocess.Popen(
        [*AGENT, "qrexec-client-vm", "target", "both"],
        env=place.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert caller.stderr is not None and caller.stdin is not None and caller.stdout is not None
    assert caller.stderr.readline() == b"now\n"  # nothing of stdout was read yet
    caller.stdin.close()
    assert len(caller.stdout.read()) == 200000
    assert caller.wait(20) == 0


def test_memory_is_bounded_when_nobody_reads(place: Place) -> None:
    place.service("flood", "exec cat /dev/zero")
    place.start()
    caller = subprocess.Popen(
        [*AGENT, "qrexec-client-vm", "target", "flood"], env=place.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    assert caller.stdout is not None
    caller.stdout.read(1)
    time.sleep(0.5)  # there is nothing to wait for: growth is what must not happen
    status = Path(f"/proc/{caller.pid}/status").read_text()
    rss = int(status.split("VmRSS:")[1].split()[0])
    assert rss < 64 * 1024
    caller.stdout.close()
    assert caller.wait(20) == 141


def test_a_local_program_is_the_calls_other_end(place: Place) -> None:
    place.service("upper", "tr a-z A-Z; exit 4")
    place.start()
    script = "printf hello; exec >&-; cat >&$SAVED_FD_1; cat <&$SAVED_FD_0 >&$SAVED_FD_1"
    result = place.call("upper", "sh", "-c", script, data=b" and stdin")
    assert (result.returncode, result.stdout) == (4, b"HELLO and stdin")
    place.service("ok", "cat >/dev/null")
    assert place.call("ok", "sh", "-c", "exec >&-; cat; exit 7").returncode == 7
    assert place.call("ok", "/nonexistent").returncode == 127


def test_output_on_a_terminal_is_harmless(place: Place) -> None:
    everything = bytes(range(256))
    (place.path / "bytes").write_bytes(everything)
    place.service("all", f"cat {place.path}/bytes; cat {place.path}/bytes >&2")
    place.start()
    master, slave = pty.openpty()
    argv = [*AGENT, "qrexec-client-vm", "target", "all"]
    process = subprocess.Popen(argv, env=place.env, stdin=subprocess.DEVNULL, stdout=slave, stderr=slave)
    os.close(slave)
    seen = b""
    while True:
        try:
            more = os.read(master, 4096)
        except OSError:
            break
        if not more:
            break
        seen += more
    process.wait()
    assert seen and not set(seen) - set(range(0x20, 0x7F)) - set(b"\t\n\r\b\a")
    os.close(master)
    # and what is not a terminal gets every byte
    assert place.call("all").stdout == everything


# -- socket services


def test_a_socket_service(place: Place) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(place.services / "sock"))
    listener.listen()
    heard = list[bytes]()

    def serve() -> None:
        connection = listener.accept()[0]
        data = b""
        while more := connection.recv(4096):
            data += more
        heard.append(data)
        connection.sendall(b"answer" * 50000)
        connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    place.start()
    result = place.call("sock+arg", data=b"question")
    thread.join(20)
    assert heard == [b"sock+arg work name target\0question"]
    assert (result.returncode, result.stdout) == (0, b"answer" * 50000)


# -- qvm-run


def test_qvm_run_passes_everything(place: Place) -> None:
    place.start()
    result = place.tool("qvm-run", "-p", "target", "cat; echo '\"x\"' >&2; exit 5", data=b"in" * 100000)
    assert (result.returncode, result.stdout, result.stderr) == (5, b"in" * 100000, b'"x"\n')


def test_qvm_run_throws_output_away_unless_asked(place: Place) -> None:
    place.start()
    result = place.tool("qvm-run", "-q", "target", "echo secret; echo more >&2; cat; exit 6", data=b"in")
    assert (result.returncode, result.stdout, result.stderr) == (6, b"", b"")


def test_qvm_run_words_and_services(place: Place) -> None:
    place.service("svc", 'echo "$1:$ASKED_USER:$QREXEC_REMOTE_DOMAIN"; exit 9')
    place.start()
    result = place.tool("qvm-run", "-p", "target", "--", "printf", "<%s>", "a b", "-x", "$HOME", "")
    assert (result.returncode, result.stdout) == (0, b"<a b><-x><$HOME><>")
    result = place.tool("qvm-run", "-p", "--no-shell", "target", "true;false")
    assert result.returncode == 127
    result = place.tool("qvm-run", "-p", "--service", "-u", "root", "target", "svc+arg")
    assert (result.returncode, result.stdout) == (9, b"arg:root:dom0\n")
    result = place.tool("qvm-run", "target", "-p", "--service", "svc")
    assert (result.returncode, result.stdout) == (9, b":user:dom0\n")


def test_qvm_run_localcmd(place: Place) -> None:
    place.start()
    for option in ((), ("-p",)):  # upstream's tool wants --pass-io with it
        local = "echo ping; cat >&$SAVED_FD_1"
        result = place.tool("qvm-run", *option, "--localcmd", local, "target", "read x; echo got $x")
        assert (result.returncode, result.stdout) == (0, b"got ping\n")


def test_qvm_run_says_what_is_wrong(place: Place) -> None:
    for argv in (["target"], [], ["--service", "--no-shell", "target", "y"], ["--service", "target", "a", "b"]):
        assert place.tool("qvm-run", *argv).returncode == 2
    place.start("vanish")
    result = place.tool("qvm-run", "-p", "target", "true")
    assert result.returncode == 255 and b"went away" in result.stderr


# -- copying files


def tree(path: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for entry in sorted(path.rglob("*")):
        status = entry.lstat()
        content: object = ""
        if entry.is_symlink():
            content = os.readlink(entry)
        elif entry.is_file():
            content = entry.read_bytes()
        mode = status.st_mode if entry.is_symlink() else status.st_mode & ~0o7000
        found[str(entry.relative_to(path))] = (mode, content, status.st_mtime_ns if not entry.is_symlink() else 0)
    return found


def sample(path: Path) -> Path:
    top = path / "files" / "top"
    (top / "sub/deep").mkdir(parents=True)
    (top / "empty").write_bytes(b"")
    (top / "small").write_bytes(b"small")
    (top / "big").write_bytes(random.Random(2).randbytes(5_000_001))
    (top / "sub/exe").write_text("#!/bin/sh\n")
    (top / "sub/exe").chmod(0o4755)
    (top / "sub/deep/link").symlink_to("../exe")
    (top / "sub/deep/na\u00efve \u6587.txt").write_text("x")
    (top / "sub/locked").mkdir()
    (top / "sub/locked/in").write_text("y")
    (top / "sub/locked").chmod(0o500)
    for entry in (top / "small", top / "sub/deep", top):
        os.utime(entry, ns=(1_000_000_000_123_456_789, 1_100_000_000_987_654_321))
    return top


def test_copy(place: Place) -> None:
    place.start()
    top = sample(place.path)
    (place.path / "files/single").write_bytes(b"one")
    result = place.tool("qvm-copy-to-vm", "target", str(top) + "/", str(place.path / "files/single"))
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
    assert tree(place.arrived) == tree(place.path / "files")
    assert os.listdir(place.arrived) in (["top", "single"], ["single", "top"])
    # nothing is ever overwritten
    (place.path / "files/single").write_bytes(b"two")
    result = place.tool("qvm-copy", str(place.path / "files/single"))
    assert result.returncode == 1 and b'"single"' in result.stderr and b"exists there already" in result.stderr
    assert (place.arrived / "single").read_bytes() == b"one"


def test_move_removes_only_what_was_confirmed(place: Place) -> None:
    place.start()
    top = sample(place.path)
    single = place.path / "files/single"
    single.write_bytes(b"one")
    expected = tree(place.path / "files")
    (place.arrived).mkdir(parents=True)
    (place.arrived / "single").write_bytes(b"theirs")
    assert place.tool("qvm-move", str(top), str(single)).returncode == 1
    assert top.exists() and single.exists()
    assert os.listdir(place.arrived) == ["single"]
    (place.arrived / "single").unlink()
    assert place.tool("qvm-move-to-vm", "target", str(top), str(single)).returncode == 0
    assert not top.exists() and not single.exists()
    assert tree(place.arrived) == expected


def test_copy_from_the_host(place: Place) -> None:
    place.start()
    top = sample(place.path)
    result = place.tool("qvm-copy-to-vm-host", "target", str(top))
    assert (result.returncode, result.stderr) == (0, b"")
    assert tree(place.home / "QubesIncoming/dom0") == tree(place.path / "files")
    assert place.tool("qvm-move-to-vm-host", "target", str(top)).returncode == 1
    assert top.exists()


def test_copy_that_cannot_be(place: Place) -> None:
    place.start("refuse:qubes.Filecopy")
    file = place.path / "file"
    file.write_text("x")
    result = place.tool("qvm-copy", str(file))
    assert (result.returncode, result.stderr) == (126, b"Request refused\n")
    link = place.path / "link"
    link.symlink_to("file")
    (place.path / "d").mkdir()
    (place.path / "d/file").write_text("y")
    os.mkfifo(place.path / "fifo")
    for words in (
        [str(link)],
        [str(place.path / "fifo")],
        ["/"],
        [str(place.path / "missing")],
        [str(file), str(place.path / "d/file")],
    ):
        result = place.tool("qvm-copy", *words)
        assert result.returncode == 1 and result.stderr, words
    assert place.tool("qvm-copy").returncode == 2
    assert place.tool("qvm-copy-to-vm", "target").returncode == 2


HEBREW = "\u05e9\u05dc\u05d5\u05dd.txt"
ODD = [HEBREW, "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\u0928\u092e\u0938\u094d\u0924\u0947", "\U0001f600 5 \u20ac"]
"""Names that need the policy's leave: scripts and signs that upstream's receiver refuses by default, too."""


@pytest.mark.parametrize("tool", ["qvm-copy-to-vm", "qvm-copy-to-vm-host"])
def test_names_that_need_leave_are_asked_for_and_arrive(place: Place, tool: str) -> None:
    place.service(
        "qubes.Filecopy",
        f"""
        case ${{1-}} in allow-all-names) set -- --allow-all-names ;; esac
        exec {sys.executable} -m casemate.agent.entry qfile-unpacker "$@" """,
    )
    place.start()
    top = sample(place.path)
    for name in ODD:
        (top / "sub" / name).write_text(name)
    (top / "sub/deep/to").symlink_to("../" + HEBREW)
    result = place.tool(tool, "--without-progress", "target", str(top))
    assert (result.returncode, result.stderr) == (0, b"")
    source = "dom0" if tool.endswith("host") else "work"
    assert tree(place.home / "QubesIncoming" / source) == tree(place.path / "files")


def test_leave_that_is_not_given(place: Place) -> None:
    """Policy says no to the argument: the tool says which name needs it and how to allow it. Others go as ever."""
    place.start("refuse:qubes.Filecopy+allow-all-names")
    top = sample(place.path)
    (top / "sub" / HEBREW).write_text("x")
    result = place.tool("qvm-copy", str(top))
    assert result.returncode == 126
    assert "top/sub/\\u05e9\\u05dc\\u05d5\\u05dd.txt" in result.stderr.decode() or HEBREW in result.stderr.decode()
    assert b"qubes.Filecopy +allow-all-names SOURCE TARGET allow" in result.stderr
    (top / "sub" / HEBREW).unlink()
    assert place.tool("qvm-copy", str(top)).returncode == 0
    (top / "sub" / "link").symlink_to(HEBREW)
    assert place.tool("qvm-copy", str(top)).returncode == 126
    assert place.tool("qvm-copy", "--ignore-symlinks", str(top / "sub/deep")).returncode == 0
    assert not (place.arrived / "deep/link").exists()
    assert place.tool("qvm-copy", "--allow-all-names", str(top / "small")).returncode == 126, "it asks for that"


def test_a_receiver_that_refuses_a_name_is_blamed_for_that_one(place: Place) -> None:
    """As one that knows nothing of all names: the argument does not reach it."""
    place.start()
    top = sample(place.path)
    (top / "sub" / HEBREW).write_text("x")
    place.service("qubes.Filecopy", f"exec {sys.executable} -m casemate.agent.entry qfile-unpacker")
    result = place.tool("qvm-copy", str(top))
    assert result.returncode == 1
    said = result.stderr.decode()
    assert said.startswith('qvm-copy: "top/sub/') and "characters that the receiver refuses" in said.splitlines()[0]
    assert "U+05E9" in said and "+allow-all-names" in said
    assert place.arrived.exists() and not os.listdir(place.arrived)


def test_a_limit_that_was_set_is_named_to_the_sender(place: Place) -> None:
    place.service("qubes.Filecopy", f"exec {sys.executable} -m casemate.agent.entry qfile-unpacker --max-files=3")
    place.start()
    result = place.tool("qvm-copy", str(sample(place.path)))
    assert result.returncode == 1
    assert b"more than 3 files, directories and links (filecopy-max-files)" in result.stderr


@pytest.mark.parametrize("shape", ["deep", "many"])
def test_a_copy_has_no_limit_of_its_own_and_little_memory(place: Place, shape: str) -> None:
    """1,000 directories deep, or 100,000 files: with few open files, and in the memory that a small copy takes."""
    limits = "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (64, 64)); r.setrlimit(r.RLIMIT_AS, (400 << 20,) * 2)"
    (place.path / "limited").mkdir()
    (place.path / "limited" / "sitecustomize.py").write_text(limits)
    place.service("qubes.Filecopy", f"PYTHONPATH={place.path}/limited:{ROOT}/src exec {sys.executable}"
                  " -m casemate.agent.entry qfile-unpacker")  # fmt: skip
    place.start()
    top = place.path / "top"
    top.mkdir()
    if shape == "deep":
        fd = os.open(top, os.O_RDONLY)
        for level in range(1000):
            os.mkdir(b"d%06d" % level, 0o755, dir_fd=fd)
            inner = os.open(b"d%06d" % level, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = inner
        os.close(os.open(b"file", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=fd))
        os.close(fd)
    else:
        for number in range(100_000):
            if number % 1000 == 0:
                (top / f"{number // 1000}").mkdir()
            os.close(os.open(f"{top}/{number // 1000}/{number}", os.O_WRONLY | os.O_CREAT, 0o600))
    before = {**place.env, "PYTHONPATH": f"{place.path}/limited:{place.env['PYTHONPATH']}"}
    result = subprocess.run([*AGENT, "qvm-move", str(top)], env=before, capture_output=True, timeout=300)
    assert (result.returncode, result.stderr) == (0, b"")
    assert not top.exists()
    found = subprocess.run(["find", place.arrived, "-name", "file" if shape == "deep" else "*", "-type", "f"],
                           capture_output=True, timeout=300).stdout.splitlines()  # fmt: skip
    assert len(found) == (1 if shape == "deep" else 100_000)
    if shape == "deep":
        assert found[0].count(b"/d0") == 1000
    subprocess.run(["rm", "-rf", place.arrived], check=True, timeout=300)


def test_special_files_inside_are_left_out_aloud(place: Place) -> None:
    place.start()
    (place.path / "d").mkdir()
    os.mkfifo(place.path / "d/fifo")
    (place.path / "d/x").write_text("x")
    result = place.tool("qvm-copy", str(place.path / "d"))
    assert result.returncode == 0 and b"fifo" in result.stderr
    assert os.listdir(place.arrived / "d") == ["x"]


@pytest.mark.parametrize(
    "script", ["exit 0", "cat >/dev/null; exit 0", "exec sleep 0.2", "head -c 100 >/dev/null; exit 9"]
)
def test_a_receiver_that_confirms_nothing_has_failed(place: Place, script: str) -> None:
    place.service("qubes.Filecopy", script)
    place.start()
    file = place.path / "file"
    file.write_bytes(bytes(10_000_000))
    result = place.tool("qvm-move", str(file))
    assert result.returncode == 1 and result.stderr
    assert file.exists()


def test_a_wrong_checksum_is_noticed(place: Place) -> None:
    answer = qfile.build_result(0, 12345, b"file")
    (place.path / "answer").write_bytes(answer)
    place.service("qubes.Filecopy", f"cat >/dev/null; cat {place.path}/answer")
    place.start()
    file = place.path / "file"
    file.write_text("x")
    result = place.tool("qvm-move", str(file))
    assert result.returncode == 1 and b"checksum" in result.stderr and file.exists()


def test_a_name_that_was_never_sent_is_not_shown(place: Place) -> None:
    (place.path / "answer").write_bytes(qfile.build_result(17, 0, b"\x1b]0;evil\x07"))
    place.service("qubes.Filecopy", f"cat >/dev/null; cat {place.path}/answer; printf '\\033[2J' >&2")
    place.start()
    file = place.path / "file"
    file.write_text("x")
    result = place.tool("qvm-copy", str(file))
    assert result.returncode == 1 and b"evil" not in result.stderr and b"\x1b" not in result.stderr


def test_an_early_answer_stops_the_sender_at_once(place: Place) -> None:
    (place.path / "answer").write_bytes(qfile.build_result(122, 0, b"file"))
    place.service("qubes.Filecopy", f"cat {place.path}/answer; exec 1>&- 0<&-; exit 122")
    place.start()
    file = place.path / "file"
    with file.open("wb") as out:
        out.truncate(50 * 1024**3)  # sparse; would take minutes
    start = time.monotonic()
    result = place.tool("qvm-copy", str(file))
    assert result.returncode == 1 and b"a limit of the receiver is exceeded" in result.stderr
    assert time.monotonic() - start < 20


def test_a_sender_that_is_killed_leaves_nothing(place: Place) -> None:
    place.start()
    file = place.path / "file"
    with file.open("wb") as out:
        out.truncate(3 * 1024**3)
    sender = subprocess.Popen([*AGENT, "qvm-copy", str(file)], env=place.env, stderr=subprocess.DEVNULL)
    eventually(lambda: place.arrived.exists() and any(n.startswith(".") for n in os.listdir(place.arrived)))
    assert not (place.arrived / "file").exists()
    sender.send_signal(signal.SIGKILL)
    sender.wait()
    eventually(lambda: os.listdir(place.arrived) == [])


def test_vmexec_of_the_guest_agrees_with_the_codec() -> None:
    for words in (
        ["printf", "%s|", "a b", "-", "--", "\n", "\u00e9", "a\\x41b", "$(id)", "'", "", "+", "x"],
        ["true"],
        ["printf", "-- "],
    ):
        argument = vmexec.encode_vmexec(words)
        ours = subprocess.run(
            [*AGENT, "vmexec", argument], env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, capture_output=True
        )
        shell = subprocess.run([str(RPC / "qubes.VMExec"), argument], capture_output=True)
        assert (shell.returncode, shell.stdout) == (ours.returncode, ours.stdout)
    for bad in ("a-", "a-4", "a-ff", "a b", "a/b", "-00", "a;b", "a\nb"):
        shell = subprocess.run([str(RPC / "qubes.VMExec"), bad], capture_output=True)
        assert (shell.returncode, shell.stdout) == (125, b""), bad

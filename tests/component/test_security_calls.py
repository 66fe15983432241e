"""Bulletins and lessons of the field about calls, policy and their errors, each a test under its own name.

``qsb_NNN``: a Qubes Security Bulletin whose cause was in such code. ``lesson_LNN``: one of those that the history of
upstream's repositories teaches. What they say in general is said at each test; links, agents, broker and policy are
real.

One file although it is long: a list of lessons that is looked up by number.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.agent import service as agent_service
from casemate.link.log import LOG_LINES_PER_SECOND
from casemate.qrexec.files import PolicyFiles
from casemate.streams.channel import Channel
from casemate.streams.loop import Loop
from casemate.streams.mux_stream import MuxStream
from casemate.streams.ready import readable
from casemate.streams.stream import Handler
from casemate.wire import call_data, qrexec
from casemate.wire.errors import CasemateError, PolicyError, ProtocolError
from casemate.wire.link import CALL
from tests.builders import wait_for
from tests.component.rig import SOURCE, Rig, rig
from tests.component.two_qubes import Qubes, qubes

POLICY = """
test.Ok         *  work  vault     allow
test.Args       *  work  vault     allow
test.Args       +denied work vault deny
test.Denied     *  work  vault     deny
test.Ask        *  work  vault     ask
test.Disp       *  work  @dispvm   allow
test.Host       *  work  @adminvm  allow
# CANARY-OF-THE-POLICY
"""
REFUSED = (126, b"", b"Request refused\n")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Qubes]:
    """Three qubes that the tests share and leave as they were."""
    with qubes(tmp_path_factory.mktemp("q")) as made:
        made.policy(POLICY)
        made.rigs["vault"].service("test.Ok", "cat; echo ok")
        made.rigs["vault"].service("test.Args", 'printf "%s|" "$#" "$@" "$QREXEC_SERVICE_ARGUMENT"')
        made.rigs["vault"].service("test.Disp", "cat")
        yield made


def log_of(one: Rig) -> bytes:
    return (one.directory / "link.log").read_bytes()


# -- a guest whose agent is ours to write


class RawGuest:
    """The guest's end of a channel, which says whatever a test wants."""

    def __init__(self, made: Rig, **database: str) -> None:
        made.start_link(**database)
        self.attach(made.accept())

    def attach(self, sock: socket.socket) -> None:
        """Take part in a session on this connection of the link's."""
        self.sock = sock
        self.sock.setblocking(False)
        self.loop = Loop()
        self.connected = False
        self.lost = ""
        self.channel = Channel(self.loop, self.sock.fileno(), False, self._opened, self._session, self._lost)
        self.asked: list[tuple[MuxStream, bytes]] = []
        self.until(lambda: self.connected)

    def _opened(self, stream: MuxStream, payload: bytes) -> None:
        self.asked.append((stream, payload))

    def _session(self) -> None:
        self.connected = True
        self.channel.open(b'r{"boot_id": "x", "pid": 1}', Handler())

    def _lost(self, why: str) -> None:
        self.lost = why or "closed"

    def until(self, true: Callable[[], object], seconds: float = 10) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end
            self.loop.once(0.05)

    def ask(self, body: bytes, kind: int = qrexec.TRIGGER_SERVICE4) -> Answer:
        """Ask for a call with any body; what comes back."""
        found = Answer()
        self.channel.open(CALL + struct.pack("<II", kind, len(body)) + body, found)
        self.until(lambda: found.data or found.ended or self.lost)
        self.loop.once(0.05)
        return found


class Answer(Handler):
    def __init__(self) -> None:
        self.data = b""
        self.ended = False

    def on_data(self, data: memoryview) -> None:
        self.data += bytes(data)

    def on_eof(self) -> None:
        self.ended = True

    def on_abort(self, why: str) -> None:
        self.ended = True


def trigger(ident: bytes = b"SOCKET", service: bytes = b"test.Ok\0", target: bytes = b"vault") -> bytes:
    return b"work".ljust(64, b"\0") + target.ljust(64, b"\0") + ident.ljust(32, b"\0") + service


@pytest.fixture
def lone(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


# -- bulletins


def test_qsb_013b_nothing_a_qube_writes_reaches_a_terminal_unasked(tmp_path: Path) -> None:
    """Output is thrown away unless it was asked for; on a terminal it cannot be an escape sequence."""
    from tests.component.test_calls import Place

    place = Place(tmp_path)
    place.service("qubes.VMShell", r"printf '\033]0;owned\007 out'; printf '\033[31m err' >&2")
    try:
        place.start()
        argv = [sys.executable, "-m", "casemate.cli", "qvm-run"]
        for words in (["target", "x"], ["--pass-io", "target", "x"], ["--no-filter-escape-chars", "target", "x"]):
            master, slave = pty.openpty()
            process = subprocess.Popen([*argv, *words], env=place.env, stdin=slave, stdout=slave, stderr=slave)
            os.close(slave)
            shown = b""
            while process.poll() is None or readable([master], 0):
                if readable([master], 0.05):
                    try:
                        shown += os.read(master, 4096)
                    except OSError:
                        break
            os.close(master)
            assert b"\x1b" not in shown, (words, shown)
            assert (b"out" in shown) is ("--pass-io" in words)
    finally:
        for process in place.processes:
            process.kill()
            process.wait()


def test_qsb_038_what_the_policy_saw_is_what_is_run(world: Qubes) -> None:
    """Nothing that a shell could expand is an argument; what is one arrives as it was."""
    for argument in (
        "A$HOME",
        "`id`",
        "$(id)",
        "a;b",
        "a&b",
        "~",
        "*",
        "%s\n",
        "a b",
        "a'b",
        'a"b',
        "a\\b",
        "a|b",
        "x/y",
    ):
        assert world.call("work", "vault", f"test.Args+{argument}") == REFUSED, argument
    for argument in ("-x", "--", "a..b", "..", "@x", "a:b", "0" * 255):
        status, out, _err = world.call("work", "vault", f"test.Args+{argument}")
        assert (status, out.decode()) == (0, f"1|{argument}|{argument}|"), argument
    assert world.call("work", "vault", "test.Args+denied")[0] == 0, "the first rule that fits decides"
    assert world.call("work", "vault", "test.Args+denied$none") == REFUSED


@pytest.mark.parametrize(
    ("service", "argument", "statuses"),
    [("qubes.Filecopy", "--help", (0, 1)), ("qubes.ConnectTCP", "-e", (125,)), ("qubes.ConnectTCP", "22.22", (125,)),
     ("qubes.VMExec", "ls-", (125,)), ("qubes.VMExec", "-2", (125,)), ("qubes.GetDate", "-f", (0,))],
)  # fmt: skip
def test_qsb_071_and_084_words_of_a_caller_are_never_options(
    tmp_path: Path, service: str, argument: str, statuses: tuple[int, ...]
) -> None:
    """Services that wrap a program give it nothing of the caller's that it could take for an option or a descriptor."""
    command = qrexec.Command("DEFAULT", service, argument, "work")
    source = SOURCE / "casemate/agent/guest/rpc"
    directory = tmp_path / "rpc"
    directory.mkdir()
    for path in source.iterdir():
        (directory / path.name).symlink_to(path)
    (directory / "qubes.ConnectTCP").unlink(missing_ok=True)
    (directory / "qubes.ConnectTCP").symlink_to("/dev/tcp/127.0.0.1")
    environ = {"QREXEC_SERVICE_PATH": str(directory), "QUBES_RPC_CONFIG_PATH": str(source.parent / "rpc-config")}
    try:
        found = agent_service.find_service(command, "user", environ)
    except CasemateError as error:
        assert error.exit_status in statuses
        return
    text = Path(found.path).read_text()
    if argument in found.argv:  # the program sees it as one word, and the program is ours and does not use it
        assert not re.search(r"\$[1@*]", text), text
    assert 0 in statuses


def test_qsb_084_the_same_answer_for_what_is_there_and_what_is_not(world: Qubes) -> None:
    times: dict[str, list[float]] = {"vault": [], "nobody": []}
    for _ in range(8):
        for target in times:
            begin = time.perf_counter()
            assert world.call("work", target, "test.Denied") == REFUSED
            times[target].append(time.perf_counter() - begin)
    assert abs(min(times["vault"]) - min(times["nobody"])) < 0.05


@pytest.mark.parametrize("kind", [qrexec.DATA_STDOUT, qrexec.DATA_STDERR, qrexec.DATA_EXIT_CODE, 0x200, 0x300, 0x213])
def test_qsb_087_a_caller_sends_only_what_callers_send(tmp_path: Path, kind: int) -> None:
    with rig(tmp_path) as made:
        made.service("test.Cat", "exec cat")
        assert made.call("no.Such")[0] == 127
        with made.caller() as sock:
            sock.sendall(qrexec.exec_message("DEFAULT:QUBESRPC test.Cat work"))
            sock.sendall(qrexec.HEADER.pack(kind, 4) + b"\x1b[2J")
            heard = b""
            with contextlib.suppress(ConnectionResetError):
                while data := sock.recv(4096):
                    heard += data
            assert b"\x1b" not in heard
        assert made.call("test.Cat", b"x")[:2] == (0, b"x")
        assert b"\x1b" not in log_of(made) and log_of(made).isascii()


def test_qsb_087_a_service_sends_only_what_services_send(lone: Rig) -> None:
    guest = RawGuest(lone)
    heard: list[bytes] = []

    def call() -> None:
        with lone.caller() as sock:
            sock.sendall(qrexec.exec_message("DEFAULT:QUBESRPC test.Any dom0"))
            side = call_data.CallerSide()
            with contextlib.suppress(ProtocolError, ConnectionResetError):
                while data := sock.recv(4096):
                    heard.extend(bytes(view) for _kind, view in side.feed(data))
            heard.append(b"status %d" % side.status())

    thread = threading.Thread(target=call)
    thread.start()
    guest.until(lambda: guest.asked)
    stream, _payload = guest.asked[0]
    stream.write(qrexec.HEADER.pack(qrexec.DATA_STDIN, 4) + b"\x1b[2J")
    guest.until(lambda: not thread.is_alive())
    assert heard[-1] == b"status 255" and b"\x1b[2J" not in heard


@pytest.mark.parametrize(
    "service",
    [b"", b"\0", b"+\0", b"+arg\0", b"x", b"test.Ok", b"test\0Ok\0", b"test.Ok\0\0", b"test.Ok\0x", b"x" * 64 + b"\0",
     b"x+" + b"a" * 256 + b"\0", b".x\0", b"x y\0", b"\xff\0"],
)  # fmt: skip
def test_qsb_089_names_are_bounded_at_both_ends(lone: Rig, service: bytes) -> None:
    """Empty, unterminated, doubly terminated, too long: refused, and the same process serves the next."""
    link = lone
    guest = RawGuest(link)
    answer = guest.ask(trigger(service=service))
    if not guest.lost:
        assert answer.data == qrexec.service_refused(b"SOCKET".ljust(32, b"\0"))
    else:
        assert link.processes[0].poll() is None
    guest.sock.close()


@pytest.mark.parametrize("length", [1, 63])
def test_qsb_089_names_up_to_the_limit_reach_the_policy(world: Qubes, length: int) -> None:
    name = "x" * length
    world.policy(POLICY + f"{name} * work vault allow\n")
    world.rigs["vault"].service(name, "echo there")
    try:
        assert world.call("work", "vault", name)[:2] == (0, b"there\n")
    finally:
        world.policy(POLICY)


def test_qsb_099_no_answer_has_anything_of_the_hosts_in_it(world: Qubes) -> None:
    """Whatever is asked, well or badly: nothing of the policy, of paths or of other qubes comes back."""
    canaries = (b"CANARY", str(world.settings.state).encode(), b"hidden", b"30-test", b"Traceback")
    for target in (
        "vault",
        "nobody",
        "@adminvm",
        "@dispvm",
        "@dispvm:vault",
        "@default",
        "@bad",
        "work",
        "-x",
        "a" * 70,
    ):
        for service in (
            "test.Denied",
            "test.Host",
            "test.Ok+x",
            "no.Such",
            "admin.vm.List",
            "policy.Get",
            "x" * 70,
            "+",
        ):
            status, out, err = world.call("work", target, service)
            assert not any(canary in out + err for canary in canaries), (target, service, out, err)
            assert status in (0, 125, 126, 127)
    world.policy("this is no rule CANARY\n", "20-broken.policy")
    try:
        assert world.call("work", "vault", "test.Ok") == REFUSED
    finally:
        (world.settings.policy_dir / "20-broken.policy").unlink()
    assert world.call("work", "vault", "test.Ok")[:2] == (0, b"ok\n")


# -- lessons about calls


def test_lesson_L01_unknown_hidden_and_denied_targets_are_alike(world: Qubes) -> None:
    """Under "ask" too: nobody is asked about a qube that is not there."""
    for service in ("test.Denied", "test.Ask", "no.Such"):
        for target in ("vault", "hidden", "nobody", "uuid:00000000-0000-0000-0000-00000000ffff", "@dispvm:nobody"):
            assert world.call("work", target, service) == REFUSED, (service, target)


def test_lesson_L02_a_service_must_have_a_name(world: Qubes) -> None:
    for service in ("", "+", "+x", " "):
        status, _out, _err = world.call("work", "vault", service)
        assert status in (2, 125, 126), service


@pytest.mark.parametrize("ident", [b"a/b", b"a\0b", b"\xff", b"x" * 32, b"a;b", b"$x", b"\n"])
def test_lesson_L03_request_ids_are_checked_and_never_rewritten(lone: Rig, ident: bytes) -> None:
    guest = RawGuest(lone)
    answer = guest.ask(trigger(ident=ident))
    assert guest.lost or answer.data == qrexec.service_refused(ident.ljust(32, b"\0"))
    assert b"_" not in answer.data
    guest.sock.close()


def test_lesson_L03_names_that_are_none_do_not_become_others(world: Qubes) -> None:
    world.policy(POLICY + "test_Ok * work vault allow\ntest.Ok +a_b work vault allow\n")
    world.rigs["vault"].service("test_Ok", "echo wrong")
    try:
        for service in ("test/Ok", "test$Ok", "test Ok", "test.Args+a/b"):
            assert world.call("work", "vault", service) == REFUSED
        for target in ("va/ult", "vault ", "vault\n", "Vault", "vault$"):
            assert world.call("work", target, "test.Ok")[0] in (125, 126), target
    finally:
        world.policy(POLICY)


def test_lesson_L04_one_answer_for_each_request_whatever_its_id(lone: Rig) -> None:
    """Ids may be the same: a request is known by its stream."""
    guest = RawGuest(lone)
    for _ in range(3):
        answers = [Answer() for _ in range(5)]
        body = trigger()
        for answer in answers:
            guest.channel.open(CALL + struct.pack("<II", qrexec.TRIGGER_SERVICE4, len(body)) + body, answer)
        guest.until(lambda found=answers: all(one.ended for one in found))  # type: ignore[misc]
        assert [one.data for one in answers] == [qrexec.service_refused(b"SOCKET".ljust(32, b"\0"))] * 5
    assert not guest.lost and lone.processes[0].poll() is None
    guest.sock.close()


@given(
    st.text("ab+: \0QUBESRPCDEFAULTnogui@keyword", max_size=40)
    | st.builds(
        " ".join, st.lists(st.sampled_from(["u:QUBESRPC", "a", "a+b", "name", "keyword", "", "vm", "QUBESRPCx"]))
    ),
)
def test_lesson_L05_one_parser_and_what_it_takes_it_writes_back(text: str) -> None:
    try:
        command = qrexec.parse_command(text)
    except CasemateError:
        return
    again = qrexec.parse_command(command.cmdline())
    assert again.cmdline() == command.cmdline()
    assert command.cmdline() == text.replace(":nogui:", ":", 1)


@pytest.mark.parametrize(
    "text",
    ["u:QUBESRPCx a vm", "u:QUBESRPC  a vm", "u:QUBESRPC a ", "u:QUBESRPC a", "QUBESRPC a vm", "-u:QUBESRPC a vm",
     "u:QUBESRPC a vm name", "u:QUBESRPC a vm other x"],
)  # fmt: skip
def test_lesson_L05_what_is_nearly_a_request_is_none(text: str) -> None:
    with pytest.raises(CasemateError):
        qrexec.parse_command(text)


@pytest.mark.parametrize(
    "how", ["dangling", "directory", "unreadable", "long", "contradiction", "twice", "loop", "binary"]
)
def test_lesson_L06_a_configuration_that_cannot_be_read_is_not_none(tmp_path: Path, how: str) -> None:
    with rig(tmp_path) as made:
        made.service("test.Ok", "echo ok")
        config = tmp_path / "config"
        config.mkdir()
        path = config / "test.Ok"
        if how == "dangling":
            path.symlink_to("nowhere")
        elif how == "directory":
            path.mkdir()
        elif how == "loop":
            path.symlink_to(path)
        else:
            text = {
                "long": "x=1\n" * 20_000, "contradiction": "force-user='root'\nskip-service-descriptor=true\n",
                "twice": "wait-for-session=0\nwait-for-session=1\n", "unreadable": "x=1\n", "binary": "\0\1\2",
            }[how]  # fmt: skip
            path.write_text(text)
        if how == "unreadable":
            if os.geteuid() == 0:
                pytest.skip("root reads everything")
            path.chmod(0)
        status, out, err = made.call("test.Ok")
        assert (status, out) == (125, b"") and err, err


def test_lesson_L07_peers_that_go_silent_or_die_leave_nothing_behind(tmp_path: Path) -> None:
    """A thousand callers that vanish at every point: descriptors are back where they were."""
    with rig(tmp_path) as made:
        made.service("test.Sleep", "exec sleep 60")
        made.service("test.Ok", "echo ok")
        assert made.call("test.Ok")[0] == 0
        link, agent = made.processes

        def open_files(process: subprocess.Popen[bytes]) -> int:
            return len(os.listdir(f"/proc/{process.pid}/fd"))

        def children() -> list[int]:
            return [int(pid) for pid in Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()]

        before = open_files(link), open_files(agent)
        request = qrexec.exec_message("DEFAULT:QUBESRPC test.Sleep work")
        for number in range(1000):
            with made.caller() as sock, contextlib.suppress(OSError):
                sock.sendall(request[: number % (len(request) + 1)])  # a link with too many at once sends some away
        assert made.call("test.Ok")[:2] == (0, b"ok\n")
        # Those 15 whose request was whole run "sleep": it ends when its pipe has no reader and is asked to write; the
        # agent has closed its ends at once.
        wait_for(lambda: open_files(link) <= before[0] + 1 and open_files(agent) <= before[1] + 1)
        for pid in children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not children())


def test_lesson_L08_a_program_has_three_descriptors_and_the_end_travels(tmp_path: Path) -> None:
    with rig(tmp_path) as made:
        made.service("test.Fds", "ls -l /proc/self/fd | grep -c ' -> ' ; exec cat >/dev/null")
        made.service("test.Eof", f"cat >/dev/null; touch {tmp_path}/ended")
        status, out, _err = made.call("test.Fds")
        assert (status, int(out)) == (0, 4)  # ls itself opens the directory
        with made.caller() as sock:
            sock.sendall(qrexec.exec_message("DEFAULT:QUBESRPC test.Eof work"))
            time.sleep(0.3)
        wait_for((tmp_path / "ended").exists)


def test_lesson_L08_a_disposable_goes_with_its_caller(world: Qubes) -> None:
    del world.ended[:]
    process = world.start("work", "qrexec-client-vm", "@dispvm", "test.Disp", stdin=subprocess.PIPE)
    assert process.stdin is not None
    time.sleep(0.5)
    assert not world.ended
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_for(lambda: world.ended == ["vault"], 5)


def test_lesson_L09_a_program_inherits_nothing_of_the_agents(tmp_path: Path) -> None:
    made = Rig(tmp_path)
    stale = {"QREXEC_STALE": "x", "NOTIFY_SOCKET": "x", "LD_LIBRARY_PATH": "/x", "IFS": "x", "BASH_ENV": "/x"}
    real = made.spawn

    def spawn(argv: list[str], **options: object) -> subprocess.Popen[bytes]:
        return real(["env", *(f"{k}={v}" for k, v in stale.items()), *argv], **options)

    made.spawn = spawn  # type: ignore[method-assign]
    try:
        made.start_link()
        made.start_agent()
        made.service("test.Env", "env; cat")
        status, out, _err = made.call("test.Env")
        assert status == 0
        names = {line.partition("=")[0] for line in out.decode().splitlines()}
        assert not names & stale.keys() - {"IFS"} and b"IFS=x" not in out, names
    finally:
        made.close()
    for user in ("-r", "--", "", "root;id", "a b"):
        with pytest.raises(CasemateError):
            qrexec.parse_command(f"{user}:QUBESRPC a vm")


@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_lesson_L10_bytes_may_come_one_by_one_or_all_at_once(tmp_path: Path, step: int) -> None:
    with rig(tmp_path) as made:
        made.service("test.Seven", "cat; echo err >&2; exit 7")
        data = (
            qrexec.exec_message("DEFAULT:QUBESRPC test.Seven work")
            + qrexec.HEADER.pack(qrexec.DATA_STDIN, 3) + b"abc" + qrexec.HEADER.pack(qrexec.DATA_STDIN, 0)
        )  # fmt: skip
        with made.caller() as sock:
            for at in range(0, len(data), step):
                sock.sendall(data[at : at + step])
            sock.shutdown(socket.SHUT_WR)  # at once: nothing of it may be lost for that
            side, out = call_data.CallerSide(), b""
            while (heard := sock.recv(1 if step == 1 else 4096)) != b"":
                out += b"".join(bytes(view) for kind, view in side.feed(heard) if kind == qrexec.DATA_STDOUT)
        assert (side.status(), out) == (7, b"abc")


def test_lesson_L11_nothing_lies_where_everybody_writes(world: Qubes) -> None:
    for path in (world.settings.run / "qubes").rglob("*.sock"):
        if "guest" in path.parts:
            continue  # what is inside a guest is for its users
        assert path.stat().st_mode & 0o077 == 0 or path.name in ("broker.sock", "channel.sock"), path


# -- lessons about the policy


def test_lesson_L13_what_is_no_policy_file_is_ignored_and_a_change_counts_at_once(world: Qubes) -> None:
    directory = world.settings.policy_dir
    strange = [directory / name for name in (".20-x.policy", "20-x.policy~", "20-x.policy.rpmnew", "20-x.txt", "#x#")]
    for path in strange:
        path.write_text("no rule at all\n")
    try:
        assert world.call("work", "vault", "test.Ok")[0] == 0
        (directory / "10-off.policy").write_text("test.Ok * * * deny\n")
        assert world.call("work", "vault", "test.Ok") == REFUSED
        (directory / "10-off.policy").rename(directory.parent / "elsewhere")
        assert world.call("work", "vault", "test.Ok")[0] == 0
        (directory.parent / "elsewhere").rename(directory / "10-off.policy")
        assert world.call("work", "vault", "test.Ok") == REFUSED
    finally:
        for path in (*strange, directory / "10-off.policy", directory.parent / "elsewhere"):
            path.unlink(missing_ok=True)


@pytest.mark.parametrize("broken", [b"\xff\xfe", b"x", b"a * b c allow # comment\n", b"!include no-such-file\n", b"\0"])
def test_lesson_L13_one_broken_file_denies_everything_and_is_named(tmp_path: Path, broken: bytes) -> None:
    (tmp_path / "30-good.policy").write_text("a * * * allow\n")
    files = PolicyFiles(tmp_path)
    files.current()
    (tmp_path / "90-broken.policy").write_bytes(broken)
    with pytest.raises(PolicyError, match=r"90-broken\.policy|no-such-file"):
        files.current()
    (tmp_path / "90-broken.policy").unlink()
    files.current()


# -- lessons about what is shown


def test_lesson_L16_all_256_bytes_on_a_terminal_and_in_a_log(tmp_path: Path) -> None:
    from tests.component.test_calls import Place

    place = Place(tmp_path)
    everything = bytes(range(256))
    (tmp_path / "bytes").write_bytes(everything)
    place.service("all", f"cat {tmp_path}/bytes; cat {tmp_path}/bytes >&2")
    try:
        place.start()
        master, slave = pty.openpty()
        argv = [sys.executable, "-m", "casemate.agent.entry", "qrexec-client-vm", "target", "all"]
        process = subprocess.Popen(argv, env=place.env, stdin=subprocess.DEVNULL, stdout=slave, stderr=slave)
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):
            while data := os.read(master, 4096):
                shown += data
        process.wait()
        os.close(master)
        assert set(shown) <= set(range(0x20, 0x7F)) | set(b"\t\n\r\b\a")
    finally:
        for process in place.processes:
            process.kill()
            process.wait()


def test_lesson_L16_a_flood_of_complaints_is_cut(lone: Rig) -> None:
    """Twelve hundred refusals within seconds: some lines of each second are written, the others counted."""
    guest = RawGuest(lone)
    body = trigger(service=b"bad name \x1b[2J\0")
    begin = time.monotonic()
    for _ in range(12):
        answers = [Answer() for _ in range(100)]
        for answer in answers:
            stream = guest.channel.open(CALL + struct.pack("<II", qrexec.TRIGGER_SERVICE4, len(body)) + body, answer)
            stream.eof()  # so that it ends: only so many may be open
        guest.until(lambda found=answers: all(one.ended for one in found), 60)  # type: ignore[misc]
    seconds = int(time.monotonic() - begin) + 2  # of the clock, with parts of one at both ends
    lines = log_of(lone).splitlines()
    assert not guest.lost, "the flood was to be cut, not the channel"
    assert all(line.isascii() and b"\x1b" not in line for line in lines)
    # A line more a second says how many were left out; what the link says of its session comes first.
    assert len(lines) <= (LOG_LINES_PER_SECOND + 1) * seconds + 1
    assert sum(b"refused: " in line for line in lines) >= LOG_LINES_PER_SECOND // 2, "some of it must be told"
    guest.sock.close()


def test_what_a_qube_sends_before_the_broker_has_answered_ends_its_call(lone: Rig) -> None:
    """The link keeps nothing for a call that may be refused, so the first byte ends it; an answer comes too late."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(lone.directory / "broker.sock"))
    listening.listen()
    listening.settimeout(30)
    guest = RawGuest(lone)
    body, answer = trigger(), Answer()
    stream = guest.channel.open(CALL + struct.pack("<II", qrexec.TRIGGER_SERVICE4, len(body)) + body, answer)
    broker = listening.accept()[0]
    broker.settimeout(30)
    assert b"test.Ok" in broker.recv(4096)
    stream.write(b"early")
    guest.until(lambda: answer.ended or guest.lost, 30)
    assert answer.ended and not answer.data and not guest.lost
    assert broker.recv(1) == b"", "the link has given the call up"
    broker.close()
    listening.close()
    guest.sock.close()


def test_calls_between_qubes_are_really_made(world: Qubes) -> None:
    """The harness itself: without this, refusals would prove nothing."""

    async def many() -> list[tuple[int, bytes, bytes]]:
        return list(
            await asyncio.gather(
                *(asyncio.to_thread(world.call, "work", "vault", "test.Ok", b"%d " % n) for n in range(8))
            )
        )

    assert sorted(out for _status, out, _err in asyncio.run(many())) == [b"%d ok\n" % n for n in range(8)]

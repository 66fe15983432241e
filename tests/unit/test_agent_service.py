"""Which program serves a call: every step of the lookup, and that nothing unreadable is ever skipped."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.agent import entry
from casemate.agent.service import NoServiceError, Service, ServiceError, find_service, parse_config
from casemate.wire.qrexec import parse_command


class Place:
    def __init__(self, path: Path) -> None:
        self.first, self.second = path / "first", path / "second"
        self.config = path / "config"
        for directory in (self.first, self.second, self.config):
            directory.mkdir()
        self.env = {
            "QREXEC_SERVICE_PATH": f"{self.first}:{self.second}:{path}/missing",
            "QUBES_RPC_CONFIG_PATH": str(self.config),
            "LD_PRELOAD": "evil",
            "QREXEC_STALE": "x",
        }

    def find(self, call: str = "svc+arg", user: str = "DEFAULT") -> Service:
        return find_service(parse_command(f"{user}:QUBESRPC {call} work"), "user", self.env)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def program(path: Path, mode: int = 0o755) -> None:
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)


def test_the_whole_name_is_looked_for_everywhere_first(place: Place) -> None:
    with pytest.raises(NoServiceError) as info:
        place.find()
    assert info.value.exit_status == 127
    program(place.second / "svc")
    assert place.find().path == str(place.second / "svc")
    program(place.first / "svc")
    assert place.find().path == str(place.first / "svc")
    program(place.second / "svc+arg")
    assert place.find().path == str(place.second / "svc+arg")
    program(place.first / "svc+")
    assert place.find("svc").path == place.find("svc+").path == str(place.first / "svc+")
    assert place.find("svc+other").path == str(place.first / "svc")


def test_arguments_and_environment(place: Place) -> None:
    program(place.first / "svc")
    found = place.find("svc+arg")
    assert (found.kind, found.argv, found.user) == ("exec", [str(place.first / "svc"), "arg"], "user")
    assert found.environment == {
        "PATH": found.environment["PATH"],
        "QREXEC_SERVICE_PATH": place.env["QREXEC_SERVICE_PATH"],
        "QREXEC_REMOTE_DOMAIN": "work",
        "QREXEC_SERVICE_FULL_NAME": "svc+arg",
        "QREXEC_SERVICE_ARGUMENT": "arg",
        "QREXEC_REQUESTED_TARGET_TYPE": "",
    }
    assert place.find("svc+").argv == place.find("svc").argv == [str(place.first / "svc")]
    assert place.find("svc+").environment["QREXEC_SERVICE_ARGUMENT"] == ""
    assert "QREXEC_SERVICE_ARGUMENT" not in place.find("svc").environment
    assert place.find("svc", user="root").user == "root"


def test_an_argument_too_long_for_a_file_name_is_no_error(place: Place) -> None:
    program(place.first / "svc")
    assert place.find("svc+" + "a" * 5000).argv[1] == "a" * 5000


@pytest.mark.parametrize("broken", ["dangling", "loop", "directory", "not executable", "fifo", "path is a file"])
def test_what_cannot_be_used_is_an_error_never_skipped(place: Place, broken: str) -> None:
    program(place.second / "svc")
    path = place.first / "svc+arg"
    if broken == "dangling":
        path.symlink_to("nowhere")
    elif broken == "loop":
        path.symlink_to(path)
    elif broken == "directory":
        path.mkdir()
    elif broken == "not executable":
        program(path, 0o644)
    elif broken == "fifo":
        os.mkfifo(path, 0o755)
    else:
        place.first.rmdir()
        place.first.write_text("")
    with pytest.raises(ServiceError) as info:
        place.find()
    assert info.value.exit_status == 125


def test_sockets(place: Place) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(place.first / "svc"))
    found = place.find()
    assert found.kind == "socket"
    assert found.argv[-5:] == ["service-connect", "socket", str(place.first / "svc"), "", "svc+arg work"]
    (place.config / "svc").write_text(
        "skip-service-descriptor=true\nexit-on-service-eof=true\nexit-on-client-eof=true\n"
    )
    assert place.find().argv[-2:] == ["sc", ""]
    sock.close()


@pytest.mark.parametrize(
    ("link", "call", "target"),
    [
        ("/dev/tcp/127.0.0.1/80", "svc", "127.0.0.1 80"),
        ("/dev/tcp/127.0.0.1/80", "svc+x", None),
        ("/dev/tcp/127.0.0.1", "svc+81", "127.0.0.1 81"),
        ("/dev/tcp/127.0.0.1", "svc", None),
        ("/dev/tcp", "svc+127.0.0.1+82", "127.0.0.1 82"),
        ("/dev/tcp", "svc+2001+db8++1+82", "2001:db8::1 82"),
        ("/dev/tcp", "svc+2001_db8+82", None),
        ("/dev/tcp", "svc+host.name+82", None),
        ("/dev/tcp", "svc+82", None),
        ("/dev/tcp/127.0.0.1/0", "svc", None),
        ("/dev/tcp/127.0.0.1/65536", "svc", None),
        ("/dev/tcp/a/b/c", "svc", None),
        ("/dev/tcpx", "svc", None),
    ],
)
def test_tcp(place: Place, link: str, call: str, target: str | None) -> None:
    (place.first / "svc").symlink_to(link)
    if target is None:
        with pytest.raises(ServiceError):
            place.find(call)
    else:
        found = place.find(call)
        assert (found.kind, found.argv[-3]) == ("tcp", target)


def test_configuration(place: Place) -> None:
    program(place.first / "svc")
    (place.config / "svc").write_text("# comment\n\nforce-user='root'\nwait-for-session=1\nunknown='x'\n")
    found = place.find("svc+arg", user="user")
    assert found.user == "root" and found.config.wait_for_session
    (place.config / "svc+arg").write_text("wait-for-session=0\n")
    assert not place.find("svc+arg").config.wait_for_session
    assert place.find("svc+other").user == "root"


def test_comments_and_blanks_in_a_configuration(place: Place) -> None:
    program(place.first / "svc")
    (place.config / "svc").write_text(
        "# caf\u00e9\r\n\nforce-user = 'root'# it needs to\r\nwait-for-session = 1 \t # so that = 'it' # shows\n"
        "Un.known = true # of a newer version\nUn.known = 7"
    )
    found = place.find()
    assert found.user == "root" and found.config.wait_for_session
    (place.config / "svc").write_text("wait-for-session = false # not = true\n")
    assert not place.find().config.wait_for_session


def test_keys_that_say_nothing_of_a_program_are_ignored(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    path = place.first / "svc"
    program(path)
    (place.config / "svc").write_text(
        "skip-service-descriptor = true\nexit-on-service-eof = true\nexit-on-client-eof = true\nnew-key = 1\n"
    )
    found = place.find("svc+arg")
    assert found.argv == [str(path), "arg"] and found.config.exit_on_client_eof is False
    said = capfd.readouterr().err.splitlines()
    assert [line.partition(" is ignored")[0] for line in said] == [
        f"{place.config}/svc: line 4: new-key", "svc: skip-service-descriptor", "svc: exit-on-service-eof",
        "svc: exit-on-client-eof",
    ]  # fmt: skip
    (place.config / "svc").write_text("exit-on-client-eof = false\n")
    place.find("svc+arg")
    assert capfd.readouterr().err == "", "nothing is said where nothing is lost"


@pytest.mark.parametrize(
    "text",
    [
        "force-user=root",
        'force-user="root"',
        "force-user='ro'ot'",
        "force-user='root",
        "force-user='-r'",
        "force-user=''",
        "force-user=true",
        "force-user='a'\nforce-user='a'",
        "wait-for-session=2",
        "wait-for-session='1'",
        "skip-service-descriptor=1",
        "exit-on-service-eof=yes",
        "exit-on-client-eof=",
        "exit-on-client-eof",
        "[section]",
        " force-user='root'",
        "force-user='root' c",
        "force-user='root'' # c",
        "force-user='''root'''",
        "wait-for-session = 0 x # c",
        "wait-for-session = # 0",
        "wait-for-session = 0\0",
        "wait-for-session\u00e9 = 0",
        "9=1",
        "force-user='root'\nexit-on-client-eof=true",
        "x=01",
        "x=1_0",
        "x=\u0661",
        "=1",
    ],
)
def test_a_broken_configuration_fails_the_call(place: Place, text: str) -> None:
    program(place.first / "svc")
    (place.config / "svc").write_text(text)
    with pytest.raises(ServiceError):
        place.find()


@pytest.mark.parametrize("broken", ["dangling", "loop", "directory", "long"])
def test_a_configuration_that_cannot_be_read_fails_the_call(place: Place, broken: str) -> None:
    program(place.first / "svc")
    path = place.config / "svc+arg"
    if broken == "dangling":
        path.symlink_to("nowhere")
    elif broken == "loop":
        path.symlink_to(path)
    elif broken == "directory":
        path.mkdir()
    else:
        path.write_text("#" * 70000)
    with pytest.raises(ServiceError):
        place.find()


@given(st.binary(max_size=200))
def test_garbage_is_a_service_error(data: bytes) -> None:
    from casemate.wire.errors import CasemateError

    try:
        parse_config(data)
    except CasemateError:
        pass


def test_every_tool_of_the_agent_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    for module in set(entry.TOOLS.values()):
        assert callable(__import__(module, fromlist=["main"]).main)
    assert entry.main(["nonsense\x1b"]) == 127 == entry.main([])
    assert "\x1b" not in capsys.readouterr().err


def test_tools_of_the_agent_import_little() -> None:
    """Python is slow to start in an emulated guest: what a tool imports is most of what it costs."""
    import subprocess

    source = Path(entry.__file__).parents[2]
    for tool in ("qrexec_client", "copy", "unpack", "vmexec", "qubesdb_tool", "service"):
        code = f"import sys; sys.path.insert(0, {str(source)!r}); import casemate.agent.{tool}; print(*sys.modules)"
        loaded = subprocess.check_output([sys.executable, "-I", "-S", "-c", code]).decode().split()
        assert not {"re", "typing", "asyncio", "subprocess", "argparse", "json", "dataclasses"} & set(loaded), tool
        assert len(loaded) < 80, tool  # 75 with Python 3.13

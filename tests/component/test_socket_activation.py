"""Socket activation: the daemon serves on sockets that its starter, such as systemd, has made and keeps."""

from __future__ import annotations

import grp
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from casemate.api import server
from casemate.cli.clean import clean_state
from casemate.client.transport import Transport, python_path
from casemate.daemon.activation import inherited
from casemate.settings import Settings
from casemate.wire.errors import ValueInvalidError
from tests.builders import short_directory

# What systemd does between fork and exec: the descriptors go to 3 and on, and the variables say for which process.
LAUNCH = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-P", "-m", "casemate.daemon.start", "--foreground"])
"""


def test_the_daemon_serves_on_a_socket_that_it_was_given() -> None:
    with short_directory() as directory:
        settings = Settings(state=directory, run=directory / "run", cache=directory / "cache", prefix="casemate-sa-")
        settings.run.mkdir(mode=0o711)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(settings.api_socket))
            settings.api_socket.chmod(0o600)
            listener.listen()
            before = settings.api_socket.stat().st_ino
            for turn in range(2):
                daemon = subprocess.Popen(
                    [sys.executable, "-c", LAUNCH, str(listener.fileno())],
                    env={**os.environ, **settings.environment(), "PYTHONPATH": python_path()},
                    pass_fds=[listener.fileno()],
                    stderr=subprocess.PIPE,
                )
                try:
                    # The call waits in the socket until the daemon serves: nothing polls, nothing is started for it.
                    assert b"dom0" in Transport(settings, daemon=()).call("admin.vm.List"), turn
                finally:
                    daemon.terminate()
                    said = daemon.communicate(timeout=60)[1].decode()
                assert daemon.returncode == 0, said
                found = settings.api_socket.stat()
                assert found.st_ino == before and stat.S_ISSOCK(found.st_mode), "systemd's socket was removed"
        clean_state(settings)


def test_sockets_for_another_process_are_left_alone() -> None:
    environment = {"LISTEN_PID": str(os.getpid() + 1), "LISTEN_FDS": "1"}
    assert inherited(environment) == {} and environment == {}


@pytest.mark.parametrize("count", ["", "0", "-1", "17", "one"])
def test_a_wrong_number_is_refused(count: str) -> None:
    with pytest.raises(ValueInvalidError, match="LISTEN_FDS"):
        inherited({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count})


def test_a_socket_that_does_not_listen_is_refused(tmp_path: Path) -> None:
    program = (
        "import os, socket, sys; from casemate.daemon.activation import inherited\n"
        "one = socket.socket(socket.AF_UNIX); one.bind(sys.argv[1]); os.dup2(one.fileno(), 3)\n"
        "inherited({'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1'})"
    )
    with short_directory() as directory:
        argv = [sys.executable, "-c", program, str(directory / "s")]
        done = subprocess.run(argv, env={"PYTHONPATH": python_path()}, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "descriptor 3 of LISTEN_FDS is no listening unix socket" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to a group")
def test_only_a_socket_of_the_groups_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "socket"
    path.touch()
    monkeypatch.setattr(grp, "getgrnam", lambda name: SimpleNamespace(gr_gid=77))
    for group, mode, shared in ((77, 0o660, True), (77, 0o666, False), (77, 0o661, False), (78, 0o660, False)):
        os.chown(path, 0, group)
        path.chmod(mode)
        assert server._is_for_group(path) == shared, (group, oct(mode))
    assert not server._is_for_group(tmp_path / "missing")


def test_a_descriptor_that_does_not_listen_is_refused(tmp_path: Path) -> None:
    program = (
        "import os, sys; from casemate.daemon.activation import inherited\n"
        "os.dup2(os.open('/dev/null', os.O_RDONLY), 3)\n"
        "inherited({'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": python_path()}, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0 and "descriptor 3 of LISTEN_FDS is no socket" in done.stderr

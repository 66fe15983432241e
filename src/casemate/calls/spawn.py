"""Starts the program of a call as its user, with three pipes or with none."""

from __future__ import annotations

import fcntl
import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    _Actions = list[tuple[int, int, int] | tuple[int, int, str, int, int]]

PIPE_BYTES = 256 * 1024
RUN_AS = "/usr/lib/casemate/run-as"
"""In a guest: becomes the user, then the program (host/initrd/run_as.c)."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Account:
    """A user of the guest, looked up once."""

    __slots__ = ("gid", "group_list", "home", "name", "shell", "uid")

    def __init__(self, name: str) -> None:
        import pwd

        entry = pwd.getpwnam(name)  # KeyError: no such user
        self.name = name
        self.uid = entry.pw_uid
        self.gid = entry.pw_gid
        self.home = entry.pw_dir
        self.shell = entry.pw_shell or "/bin/sh"
        self.group_list = ",".join(str(group) for group in os.getgrouplist(name, entry.pw_gid))

    def environment(self) -> dict[str, str]:
        """What a login of the user sets."""
        return {"HOME": self.home, "SHELL": self.shell, "USER": self.name, "LOGNAME": self.name, "PATH": PATH}


def spawn(
    argv: Sequence[str], environment: Mapping[str, str], account: Account | None, with_stderr: bool = True
) -> tuple[int, int, int, int | None]:
    """Run ``argv[0]`` (a path) in a session of its own; returns (pid, stdin, stdout, stderr), our ends of its pipes.

    ``account`` None: stay who we are. Without ``with_stderr`` the program keeps our stderr. OSError when there is no
    such program; in a guest its status is 126 then.
    """
    pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3 if with_stderr else 2)]
    for reading, _writing in pipes[:2]:
        try:
            fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            pass  # the user's limit of pipe memory; the default size does, slower
    actions: _Actions = [
        (os.POSIX_SPAWN_DUP2, pipes[0][0], 0),
        (os.POSIX_SPAWN_DUP2, pipes[1][1], 1),
    ]
    if with_stderr:
        actions.append((os.POSIX_SPAWN_DUP2, pipes[2][1], 2))
    try:
        pid = _run(argv, environment, account, actions)
    except OSError:
        for pipe in pipes:
            os.close(pipe[0])
            os.close(pipe[1])
        raise
    os.close(pipes[0][0])
    os.close(pipes[1][1])
    if not with_stderr:
        return pid, pipes[0][1], pipes[1][0], None
    os.close(pipes[2][1])
    return pid, pipes[0][1], pipes[1][0], pipes[2][0]


def spawn_alone(argv: Sequence[str], environment: Mapping[str, str], account: Account | None) -> int:
    """The same for a program that nobody talks with: its three streams are /dev/null. Returns its pid."""
    return _run(argv, environment, account, [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)])


def _run(argv: Sequence[str], environment: Mapping[str, str], account: Account | None, actions: _Actions) -> int:
    words = list(argv)
    if account is not None:
        words = [RUN_AS, str(account.uid), str(account.gid), account.group_list, account.home, *words]
    return os.posix_spawn(
        words[0], words, dict(environment), file_actions=actions, setsid=True, setsigdef=(signal.SIGPIPE,)
    )

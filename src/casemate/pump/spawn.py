"""Starts the program of a call as its user, with three pipes."""

from __future__ import annotations

import fcntl
import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PIPE_BYTES = 256 * 1024
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Account:
    """A user of the guest, looked up once."""

    __slots__ = ("gid", "groups", "home", "name", "shell", "uid")

    def __init__(self, name: str) -> None:
        import pwd

        entry = pwd.getpwnam(name)  # KeyError: no such user
        self.name = name
        self.uid = entry.pw_uid
        self.gid = entry.pw_gid
        self.home = entry.pw_dir
        self.shell = entry.pw_shell or "/bin/sh"
        self.groups = os.getgrouplist(name, entry.pw_gid)

    def environment(self) -> dict[str, str]:
        """What a login of the user sets."""
        return {"HOME": self.home, "SHELL": self.shell, "USER": self.name, "LOGNAME": self.name, "PATH": PATH}


def spawn(
    argv: Sequence[str], environment: Mapping[str, str], account: Account | None, with_stderr: bool = True
) -> tuple[int, int, int, int | None]:
    """Run ``argv[0]`` (a path) in a session of its own; returns (pid, stdin, stdout, stderr), our ends of its pipes.

    ``account`` None: stay who we are. Without ``with_stderr`` the program keeps our stderr. A program
    that cannot be executed ends with status 126.
    """
    pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3 if with_stderr else 2)]
    for reading, _writing in pipes:
        try:
            fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            pass  # the user's limit of pipe memory; the default size does, slower
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.dup2(pipes[0][0], 0)
            os.dup2(pipes[1][1], 1)
            if with_stderr:
                os.dup2(pipes[2][1], 2)
            if account is not None:
                os.setgroups(account.groups)
                os.setgid(account.gid)
                os.setuid(account.uid)
                try:
                    os.chdir(account.home)
                except OSError:
                    os.chdir("/")
            os.execve(argv[0], list(argv), dict(environment))
        except BaseException as error:
            os.write(2, f"{argv[0]}: {error}\n".encode("ascii", "replace"))
        finally:
            os._exit(126)
    os.close(pipes[0][0])
    os.close(pipes[1][1])
    if not with_stderr:
        return pid, pipes[0][1], pipes[1][0], None
    os.close(pipes[2][1])
    return pid, pipes[0][1], pipes[1][0], pipes[2][0]

"""Runner: the one place that spawns programs, with whole argv, clean environment, time limit, log and error."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import casemate
from casemate.wire.errors import ToolError, printable

log = logging.getLogger(__name__)

PACKAGE_PATH = str(Path(casemate.__file__).parent.parent)
"""PYTHONPATH of a program of ours: nothing of our environment leaks into what is run."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_KEEP = ("http_proxy", "https_proxy", "no_proxy", "TMPDIR")
"""The few variables of ours that programs need too: how to reach the network, where there is room."""
_MAX_OUTPUT = 64 << 20
_SHOWN_LINES = 8
_CAUSE = re.compile(r"^(E|Err):|\b(error|fatal)( [^:]{1,40})?:", re.IGNORECASE)
_GRACE_SECONDS = 5.0
"""How long a program that must end early may take to remove its temporary files."""


@dataclass(frozen=True, slots=True)
class Finished:
    """How a program ended and what it said. A status below 0 is the signal that ended it."""

    status: int
    stdout: bytes
    stderr: bytes


def shown(argv: Sequence[str | Path]) -> str:
    """A command as one would paste it into a shell."""
    return printable(shlex.join(str(word) for word in argv), 4096)


def what_went_wrong(output: bytes, count: int = _SHOWN_LINES) -> str:
    """The lines of a program's output that tell why it failed, safe to show, each indented by two.

    Lines that say so themselves (apt's and mmdebstrap's ``E:``, ``error:``, ``fatal:``) come first: the end of a long
    output is often only the clean-up after the failure. Without such lines, the last ones.
    """
    lines = [line for line in output.decode("utf-8", "replace").replace("\r", "\n").split("\n") if line.strip()]
    causes = [line for line in dict.fromkeys(lines) if _CAUSE.search(line)]
    shown_lines = causes[:count] if causes else lines[-count:]
    return "\n".join("  " + printable(line.replace("\t", " "), 300) for line in shown_lines)


class _Collector:
    """Reads one output of a program, whole up to a limit, and hands its lines on as they come."""

    def __init__(self, on_line: Callable[[str], None] | None) -> None:
        self.data = bytearray()
        self._on_line = on_line
        self._line = b""

    async def drain(self, stream: asyncio.StreamReader) -> None:
        while chunk := await stream.read(65536):
            if len(self.data) + len(chunk) > _MAX_OUTPUT:
                raise ToolError(f"said more than {_MAX_OUTPUT >> 20} MiB")
            self.data += chunk
            if self._on_line is not None:
                *lines, self._line = (self._line + chunk).replace(b"\r", b"\n").split(b"\n")
                for line in lines:
                    self._on_line(line.decode("utf-8", "replace"))


class Runner:
    """Runs programs of the host. Nothing is ever handed to a shell; nothing of our environment leaks into them."""

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """What a program gets: fixed path and language, our home, how to reach the network, and ``extra``."""
        env = {"PATH": _PATH, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "HOME": os.environ.get("HOME", "/")}
        env.update({name: os.environ[name] for name in _KEEP if name in os.environ})
        env.update(extra or {})
        return env

    async def run(
        self,
        argv: Sequence[str | Path],
        *,
        input: bytes | None = None,
        timeout: float,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        check: bool = True,
        cwd: Path = Path("/"),
        user: int | None = None,
        group: int | None = None,
        on_line: Callable[[str], None] | None = None,
        failure_log: Path | None = None,
    ) -> Finished:
        """Run a program to its end.

        ``on_line`` hears each line of its standard error as it comes. With ``check`` a status other than 0 is a
        ToolError that shows why, in the program's own words, and never our arguments: they may be a long script, and
        our log has them. After ``timeout`` seconds, or when the caller is cancelled, the program and all its
        descendants in its session are killed; nothing is left running. ``failure_log`` is a file that then gets the
        arguments and the whole output; the error names it.
        """
        words = [str(word) for word in argv]
        log.debug("run %s", shown(words))
        process = await self._start(
            words, env, pass_fds, cwd, user, group,
            stdin=asyncio.subprocess.DEVNULL if input is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        out, err = _Collector(None), _Collector(on_line)
        try:
            async with asyncio.timeout(timeout):
                await asyncio.gather(
                    out.drain(process.stdout), err.drain(process.stderr), _feed(process, input), process.wait()
                )
        except TimeoutError:
            raise _failure(words, f"did not end within {timeout:g} s", bytes(err.data), failure_log) from None
        except ToolError as error:
            raise _failure(words, str(error), bytes(err.data), failure_log) from None
        finally:
            await _end(process)
        status = process.returncode if process.returncode is not None else -signal.SIGKILL
        if check and status != 0:
            how = f"ended with status {status}" if status > 0 else f"was ended by signal {-status}"
            raise _failure(words, how, bytes(err.data) or bytes(out.data), failure_log)
        return Finished(status, bytes(out.data), bytes(err.data))

    async def spawn(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        cwd: Path = Path("/"),
        stdin: int = asyncio.subprocess.DEVNULL,
        stdout: int = asyncio.subprocess.DEVNULL,
        stderr: int = asyncio.subprocess.DEVNULL,
        user: int | None = None,
    ) -> asyncio.subprocess.Process:
        """Start a program in a session of its own and leave it to live on; it is reaped when it ends.

        ``user`` is who runs it, with the group of the same number; None: we ourselves.
        """
        words = [str(word) for word in argv]
        log.debug("spawn %s", shown(words))
        return await self._start(words, env, pass_fds, cwd, user, user, stdin=stdin, stdout=stdout, stderr=stderr)

    async def _start(
        self,
        words: list[str],
        env: Mapping[str, str] | None,
        pass_fds: Sequence[int],
        cwd: Path,
        user: int | None,
        group: int | None,
        *,
        stdin: int,
        stdout: int,
        stderr: int,
    ) -> asyncio.subprocess.Process:
        identity = {} if user is None else {"user": user, "group": group, "extra_groups": ()}
        try:
            return await asyncio.create_subprocess_exec(
                *words, stdin=stdin, stdout=stdout, stderr=stderr, env=self.environment(env), cwd=cwd,
                pass_fds=pass_fds, start_new_session=True, **identity,  # type: ignore[arg-type]
            )  # fmt: skip
        except FileNotFoundError:
            raise ToolError(f"{words[0]} is not installed") from None
        except OSError as error:
            raise ToolError(f"{words[0]} cannot be started: {error.strerror}") from None


def _failure(words: list[str], what: str, said: bytes, failure_log: Path | None) -> ToolError:
    """What is told of a program that failed: the cause first, then where the whole of it can be read."""
    log.warning("%s: %s", what, shown(words))
    text = f"{words[0]} {what}"
    if why := what_went_wrong(said):
        text += f":\n{why}"
    if failure_log is not None:
        try:
            failure_log.parent.mkdir(parents=True, exist_ok=True)
            failure_log.write_bytes(f"$ {shlex.join(words)}\n".encode() + said)
            text += f"\nThe whole output is in {failure_log}"
        except OSError as error:
            log.warning("%s: %s", failure_log, error.strerror)
    return ToolError(text)


def succeeds(argv: Sequence[str]) -> bool:
    """Whether a program that is quick and says nothing ends with status 0. Blocks; for yes-or-no questions only."""
    null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
    try:
        pid = os.posix_spawnp(argv[0], list(argv), {"PATH": _PATH}, file_actions=null)
    except OSError:
        return False
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


async def _feed(process: asyncio.subprocess.Process, data: bytes | None) -> None:
    if process.stdin is None:
        return
    try:
        process.stdin.write(data or b"")
        await process.stdin.drain()
    except (BrokenPipeError, ConnectionResetError):
        pass  # it had enough; its status tells
    process.stdin.close()


async def _end(process: asyncio.subprocess.Process) -> None:
    """End what is left of the program's process group and see it gone; one that still runs may clean up first."""
    if process.returncode is None:
        _signal_group(process.pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(_GRACE_SECONDS):
                await asyncio.shield(process.wait())
        except TimeoutError:
            pass
    _signal_group(process.pid, signal.SIGKILL)
    if process.returncode is None:
        await asyncio.shield(process.wait())


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        pass

"""What tests of all kinds set up: systems built with the model's own verbs, states on disk, waiting.

A test waits for a condition with a generous deadline (`wait_for`), because nobody knows how far another process has got
on a busy machine; and it keeps its sockets in a directory with a short path (`short_directory`), because the name of a
unix socket has 107 bytes at most.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from casemate.model.system import System
from casemate.settings import Settings
from casemate.streams.ready import readable

T = TypeVar("T")


def uuid(number: int) -> UUID:
    """A UUID that tests can name."""
    return UUID(int=number)


def small_system() -> System:
    """Template ``deb``, net qube ``net``, qube ``work``, template of disposables ``base``, disposable ``disp7``."""
    system = System.initial()
    system.add("TemplateVM", "deb", uuid=uuid(1), label="black")
    net = system.add("AppVM", "net", uuid=uuid(2), label="orange", template="deb")
    net.provides_network = True
    net.netvm = None
    system.default_netvm = net
    system.default_template = system.domains["deb"]
    system.add("AppVM", "work", uuid=uuid(3), label="blue")
    base = system.add("AppVM", "base", uuid=uuid(4), label="red")
    base.template_for_dispvms = True
    system.default_dispvm = base
    system.add("DispVM", "disp7", uuid=uuid(5), template="base", dispid=7, properties={"auto_cleanup": True})
    system.changes.clear()
    return system


def settings_in(directory: Path, *, cache: Path | None = None, prefix: str = "casemate-") -> Settings:
    """The settings of a state that is all in one directory; ``cache`` for one that is shared with others."""
    return Settings(directory, directory / "run", cache or directory / "cache", prefix=prefix)


@contextmanager
def short_directory(prefix: str = "cm") -> Iterator[Path]:
    """A directory with a path short enough for unix sockets, removed at the end."""
    directory = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))  # noqa: S108
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def wait_for(condition: Callable[[], object], seconds: float = 30) -> float:
    """Wait until ``condition`` is true; how many seconds that took. Fails after ``seconds``."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds, f"not within {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - begin


async def within(seconds: float, awaited: Awaitable[T]) -> T:
    """What ``awaited`` gives; TimeoutError when it takes longer."""
    async with asyncio.timeout(seconds):
        return await awaited


def gone(pid: int, seconds: float = 10) -> None:
    """Wait until a process has ended, whoever is its parent."""
    try:
        os.waitpid(pid, 0)
        return
    except ChildProcessError:
        pass
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert readable([fd], seconds), f"process {pid} does not end"
    finally:
        os.close(fd)

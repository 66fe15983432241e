"""The console of a qube on the manager page: bytes both ways, and what keeps either end from holding much."""

from __future__ import annotations

import hashlib
import http.client
import os
import pty
import tty
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from urllib.parse import urlencode

from casemate.web import rendering
from casemate.web.qube import console as consoles
from tests.builders import wait_for
from tests.contract.test_web_qube import daemon, post, web
from tests.fakes.console import console
from tests.fakes.daemon import FakeDaemon
from tests.fakes.web import Page

__all__ = ["daemon", "web"]


@contextmanager
def opened(web: Page, name: str) -> Iterator[tuple[http.client.HTTPResponse, str]]:
    """A console's answer, not read yet, and the address for what is typed."""
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=30)
    with closing(connection):
        headers = web.headers()
        headers.pop("host")
        connection.request("POST", f"/qubes/{name}/console", urlencode({"rows": "24", "columns": "80"}), headers)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        yield answer, f"/console/{answer.getheader('x-console')}"


def test_the_console_carries_what_is_harmless(daemon: FakeDaemon, web: Page) -> None:
    daemon.client().call("admin.vm.Start", "", "vault")
    with console(daemon) as guest:
        with opened(web, "vault") as (answer, address):
            assert b"No shell: the agent of vault" in answer.readline()
            guest.write(b"plain \x1b[31mred \x1b]0;title\x07\xff\r\n")
            assert answer.readline() == b"plain \x1b[31mred ^[]0;title\x07_\r\n"
            assert web.ask("POST", address, "ls\u00e9\r")[0] == 200
            assert guest.read_until(b"\r") == "ls\u00e9\r".encode()
            assert web.ask("POST", address, "x" * (consoles.MAX_INPUT + 1))[0] == 409
            status, text = post(web, "/qubes/vault/console", rows="24", columns="80")
            assert status == 409 and "Somebody else" in text
            assert web.ask("POST", address, "x", web.headers(x_casemate=None))[0] == 403
            assert web.ask("POST", address, "x", web.headers(authorization=None))[0] == 401
        wait_for(lambda: not guest.is_used(), 20)
        assert web.ask("POST", address, "x")[0] == 404, "it ended with its answer"
    daemon.client().call("admin.vm.Kill", "", "vault")


def test_neither_end_of_a_console_can_make_the_other_hold_much(daemon: FakeDaemon, web: Page) -> None:
    """A browser that does not read is not read for; a guest that does not read is not written to without end."""
    daemon.client().call("admin.vm.Start", "", "vault")
    with console(daemon) as guest, opened(web, "vault") as (answer, address):
        most = 64 << 20
        before = _memory(web)
        assert guest.write_until_full(b"x" * 4096, most) < most // 4
        assert _memory(web) - before < 8 << 20
        statuses = []
        while len(statuses) < 200 and (not statuses or statuses[-1] == 200):
            statuses.append(web.ask("POST", address, "y" * consoles.MAX_INPUT)[0])
        assert statuses[-1] == 503 and len(statuses) < 20, statuses
        assert answer.read(1) == b"N"
    daemon.client().call("admin.vm.Kill", "", "vault")


def _memory(web: Page) -> int:
    """Bytes of memory of the server's process."""
    return int(Path(f"/proc/{web.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_consoles_are_bounded(daemon: FakeDaemon, web: Page) -> None:
    daemon.client().call("admin.vm.Start", "", "vault")
    ends: list[int] = []

    async def fresh(_: str) -> str:
        ends.extend(pty.openpty())
        tty.setraw(ends[-1])
        return os.ttyname(ends[-1])

    real, daemon.parts.power.console = daemon.parts.power.console, fresh  # type: ignore[method-assign]
    try:
        with ExitStack() as stack:
            for _ in range(consoles.MAX_CONSOLES):
                stack.enter_context(opened(web, "vault"))
            status, text = post(web, "/qubes/vault/console", rows="24", columns="80")
            assert status == 503 and "close one" in text
        wait_for(lambda: _opens(web), 20)
    finally:
        daemon.parts.power.console = real  # type: ignore[method-assign]
        for fd in ends:
            os.close(fd)
    daemon.client().call("admin.vm.Kill", "", "vault")


def _opens(web: Page) -> bool:
    try:
        with opened(web, "vault"):
            return True
    except AssertionError:
        return False


def test_the_machine_ends_and_the_console_says_so(daemon: FakeDaemon, web: Page) -> None:
    daemon.client().call("admin.vm.Start", "", "vault")
    with opened_and_hung_up(daemon, web) as text:
        assert text.endswith(b"The machine has ended.\r\n")
    daemon.client().call("admin.vm.Kill", "", "vault")


@contextmanager
def opened_and_hung_up(daemon: FakeDaemon, web: Page) -> Iterator[bytes]:
    """All that a console shows whose other end goes."""
    with console(daemon) as guest, opened(web, "vault") as (answer, _):
        answer.readline()
        guest.close()
        yield answer.read()


def test_files_of_others_are_those_that_were_looked_at() -> None:
    """xterm.js as its authors published it; its licence is with it."""
    static = rendering.HERE / "static"
    pinned = dict(line.split()[::-1] for line in (static / "VENDORED").read_text().splitlines() if "#" not in line)
    assert pinned.keys() == {"xterm.js", "xterm.css", "xterm-fit.js", "xterm-LICENSE"}
    for name, digest in pinned.items():
        assert hashlib.sha256((static / name).read_bytes()).hexdigest() == digest, name
    assert pinned["xterm.js"] == "1f991ac3b4b283ebf96e60ae23a00a52765dd3a2e46fa6fdda9f1aab032f7495"

"""The page of a real qube: its console's shell, its log, what the page changes as the guest sees it."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from urllib.parse import urlencode

import pytest

from tests.builders import wait_for
from tests.fakes.web import Page, page
from tests.live.world import World

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def web(world: World) -> Iterator[Page]:
    world.run("qvm-create", "--label", "blue", "paged")
    world.run("qvm-prefs", "paged", "qrexec_timeout", "300")
    world.run("qvm-start", "paged", timeout=320)
    try:
        with page(world.settings.state) as found:
            yield found
    finally:
        world.run("qvm-kill", "paged")
        world.run("qvm-remove", "-f", "paged")


class Console:
    """A console of the page: all that it has shown, and what is typed into it."""

    def __init__(self, web: Page, name: str) -> None:
        self._web = web
        self._connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=120)
        headers = web.headers()
        headers.pop("host")
        self._connection.request("POST", f"/qubes/{name}/console", urlencode({"rows": "24", "columns": "80"}), headers)
        answer = self._connection.getresponse()
        assert answer.status == 200, answer.read()
        self._address = f"/console/{answer.getheader('x-console')}"
        self.shown = b""

        def read() -> None:
            with suppress(OSError, http.client.HTTPException):  # a test that fails leaves in the middle
                while data := answer.read1(65536):
                    self.shown += data

        self._thread = threading.Thread(target=read)
        self._thread.start()

    def type(self, text: str) -> int:
        """Send; the status of the answer."""
        return self._web.ask("POST", self._address, text)[0]

    def close(self) -> None:
        """Leave; waits until nothing is read any more."""
        if self._connection.sock is not None:
            self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(60)
        self._connection.close()
        assert not self._thread.is_alive()


def test_the_console_of_the_page_is_a_shell_of_root(web: Page) -> None:
    with closing(Console(web, "paged")) as console:
        end = time.monotonic() + 60
        # What is typed before the shell is there is lost, as on any serial line.
        while b"\rit is 42 0\r\n" not in console.shown:
            assert time.monotonic() < end, console.shown
            assert console.type("echo it is $((6*7)) $(id -u)\r") == 200
            time.sleep(1)
        console.type("stty size; exit\r")
        wait_for(lambda: b"24 80" in console.shown, 30)
        wait_for(lambda: console.shown.endswith(b"The shell has ended.\r\n"), 30)


def test_what_the_page_sets_is_so_in_the_guest(world: World, web: Page) -> None:
    def post(path: str, **fields: str) -> str:
        status, _, text = web.ask("POST", path, urlencode(fields))
        assert status in (200, 202), text
        return text

    post("/qubes/paged/service", service="page-test", state="on")
    wait_for(lambda: world.inside("paged", "qubesdb-read /qubes-service/page-test || true", "root") == "1", 30)
    post("/qubes/paged/feature/remove", feature="service.page-test")
    size = 3 << 30
    post("/qubes/paged/volume/private/resize", size="3", unit="GiB")
    wait_for(lambda: int(world.inside("paged", "blockdev --getsize64 /dev/vdb", "root")) == size, 30)
    assert "3.0 GiB" in web.ask("GET", "/view/qubes/paged/volumes")[2]
    post("/qubes", name="made-here", **{"class": "AppVM"}, template="=default", label="green", netvm="")
    post("/qubes/made-here/clone", name="made-too")
    wait_for(lambda: "made-too" in world.qubes(), 120)
    wait_for(lambda: "being cloned" not in web.ask("GET", "/view/qubes/made-here")[2], 120)
    post("/qubes/made-too/rename", name="named-anew")
    wait_for(lambda: "made-too" not in world.qubes(), 120)
    assert "named-anew" in world.qubes()
    for name in ("made-here", "named-anew"):
        wait_for(lambda: "being" not in web.ask("GET", f"/view/qubes/{name}")[2], 60)
        post(f"/qubes/{name}/remove", state="Halted")
    wait_for(lambda: not {"made-here", "named-anew"} & set(world.qubes()), 120)

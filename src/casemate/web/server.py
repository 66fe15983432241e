"""``casemate-web``: opens a port of this host for browsers and serves the manager page until it is interrupted."""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import socket
import sys
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import uvicorn

from casemate.settings import Settings, load
from casemate.web import rendering
from casemate.web.actions import Actions
from casemate.web.admin_api import AdminApi
from casemate.web.connections import BoundedProtocol
from casemate.web.guard import Guard
from casemate.web.live import Live
from casemate.web.pages import PUBLIC, Pages
from casemate.wire.errors import CasemateError

MAX_HEAD = 16384
"""Limit of the manager page (bytes): the head of a request."""


def listening() -> socket.socket:
    """A socket on a port of the loopback interface that the kernel chooses."""
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        found.bind(("127.0.0.1", 0))
        found.listen(64)
    except BaseException:
        found.close()
        raise
    return found


class QuietServer(uvicorn.Server):
    """uvicorn's server, which by itself wakes ten times a second to see whether it is to end. This one sleeps."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._end = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def main_loop(self) -> None:
        """Wait until a signal says that it is the end."""
        self._loop = asyncio.get_running_loop()
        await self.on_tick(0)  # sets the headers of every answer; ours has none that change with the time
        if not self.should_exit:
            await self._end.wait()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by Python's handler of a signal, between any two steps of the loop."""
        super().handle_exit(sig, frame)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._end.set)  # wakes a loop that waits for descriptors


async def serve(api: AdminApi, door: socket.socket, token: str, read_only: bool, ready: Callable[[], None]) -> None:
    """Serve the page on a listening socket until a signal ends it.

    ``ready`` is called when a signal is already understood: who has read the address may interrupt at once.
    """
    live = Live(api)
    actions = Actions(api, live)
    pages = Pages(api, live, actions, read_only)
    authority = f"127.0.0.1:{door.getsockname()[1]}"
    guarded = Guard(pages.app(), authority=authority, token=token, public=PUBLIC, read_only=read_only)
    config = uvicorn.Config(
        guarded, http=BoundedProtocol, ws="none", loop="asyncio", lifespan="off", access_log=False,
        log_level="warning", proxy_headers=False, server_header=False, date_header=False,
        h11_max_incomplete_event_size=MAX_HEAD, timeout_keep_alive=10,
        timeout_graceful_shutdown=1,  # streams never end by themselves
    )  # fmt: skip
    try:
        ready()
        await QuietServer(config).serve(sockets=[door])
    finally:
        await actions.close()
        await live.close()


def open_browser(url: str, settings: Settings) -> Path:
    """Have the browser open ``url``, by a file that only this user can read; the file is to be removed at the end.

    The address itself would stand in the arguments of the browser's process, where every user of this host can read
    it, and with it the token.
    """
    path = settings.run / f"web-{os.getpid()}.html"
    path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as file:
        file.write(rendering.render("open.html", url=url))
    webbrowser.open(path.as_uri())
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 after an interruption; 1 where the port or the settings cannot be used."""
    parser = argparse.ArgumentParser("casemate web", description="Serve the manager page to a browser on this host.")
    parser.add_argument("--read-only", action="store_true", help="show everything, change nothing")
    parser.add_argument("--no-browser", action="store_true", help="print the address only")
    args = parser.parse_args(argv)
    opened: Path | None = None
    try:
        settings = load()
        token = secrets.token_urlsafe(32)
        with listening() as door:
            url = f"http://127.0.0.1:{door.getsockname()[1]}/#token={token}"

            def ready() -> None:
                nonlocal opened
                sys.stdout.write(f"The manager page is at\n  {url}\nThe address is a password. Ctrl-C ends the page.\n")
                sys.stdout.flush()
                if not args.no_browser and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
                    opened = open_browser(url, settings)

            asyncio.run(serve(AdminApi(), door, token, args.read_only, ready))
    except KeyboardInterrupt:
        pass
    except (CasemateError, OSError) as error:
        sys.stderr.write(f"casemate web: error: {error}\n")
        return 1
    finally:
        if opened is not None:
            opened.unlink(missing_ok=True)
    return 0

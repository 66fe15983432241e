"""The manager page's real server on a real port, in a process of its own, for a daemon that a test chooses."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from casemate.client.transport import python_path
from tests.builders import settings_in

PROGRAM = """
import signal, sys
# A shell that runs tests in the background has them ignore interrupts, and they hand that down. The server installs its
# own handler a moment after it has said its address: an interrupt before that would be lost.
signal.signal(signal.SIGINT, signal.default_int_handler)
from casemate.client import transport
transport.DAEMON = ()  # a test's daemon is started and ended by the test
from casemate.web.server import main
sys.exit(main(sys.argv[1:]))
"""


class Page:
    """The server, and requests as a browser's page of ours sends them."""

    def __init__(self, process: subprocess.Popen[str], port: int, token: str) -> None:
        self.process = process
        self.port = port
        self.token = token

    @property
    def url(self) -> str:
        """What a person opens."""
        return f"http://127.0.0.1:{self.port}/#token={self.token}"

    def headers(self, **changes: str | None) -> dict[str, str]:
        """Those of a good request; ``changes`` with ``_`` for ``-``, None to leave one out."""
        found: dict[str, str | None] = {
            "host": f"127.0.0.1:{self.port}", "sec-fetch-site": "same-origin", "sec-fetch-mode": "cors",
            "sec-fetch-dest": "empty", "authorization": f"Bearer {self.token}", "x-casemate": "1",
            "origin": f"http://127.0.0.1:{self.port}",
        } | {name.replace("_", "-"): value for name, value in changes.items()}  # fmt: skip
        return {name: value for name, value in found.items() if value is not None}

    def ask(
        self, method: str, path: str, body: str = "", headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], str]:
        """Status, headers and text of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in (self.headers() if headers is None else headers).items():
                connection.putheader(name, value)
            connection.putheader("content-length", str(len(body.encode())))
            connection.endheaders(body.encode())
            answer = connection.getresponse()
            text = answer.read().decode()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, text
        finally:
            connection.close()

    @contextmanager
    def stream(self, last_id: str = "", topics: str = "") -> Iterator[Iterator[dict[str, Any]]]:
        """The messages of a stream, each with its ``id``; of ``topics`` (words with ``+`` between them) too."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            headers = self.headers(**({"last_event_id": last_id} if last_id else {}))
            headers.pop("host")
            connection.request("GET", f"/events?topics={topics}", headers=headers)
            answer = connection.getresponse()
            assert answer.status == 200, (answer.status, answer.read())
            assert answer.getheader("content-type", "").startswith("text/event-stream")
            yield _messages(answer)
        finally:
            connection.close()


def _messages(answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    number = ""
    while line := answer.readline().decode():
        if line.startswith("id: "):
            number = line[4:].strip()
        if line.startswith("data: "):
            yield {**json.loads(line[6:]), "id": number}


@contextmanager
def page(state: Path, *options: str) -> Iterator[Page]:
    """A page for the daemon of ``state``; its process is ended by SIGINT and must then end well."""
    environment = {**os.environ, **settings_in(state).environment(), "PYTHONPATH": python_path(),
                   "XDG_CONFIG_HOME": str(state / "config")}  # fmt: skip
    log = open(state / "web.log", "a+")
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", PROGRAM, "--no-browser", *options],
        env=environment, stdout=subprocess.PIPE, stderr=log, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        text = ""
        while "token=" not in text:
            line = process.stdout.readline()
            assert line, "it ended at once: " + (state / "web.log").read_text()
            text += line
        found = re.search(r"http://127\.0\.0\.1:(\d+)/#token=(\S+)", text)
        assert found is not None
        yield Page(process, int(found[1]), found[2])
        assert process.poll() is None, (state / "web.log").read_text()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) in (0, -signal.SIGINT), (state / "web.log").read_text()
        # What the server did not expect it would have said here, with a traceback.
        assert "Traceback" not in (said := (state / "web.log").read_text()), said
    finally:
        process.kill()
        process.wait()
        log.close()
        if process.stdout is not None:
            process.stdout.close()


def post(web: Page, path: str, **fields: str) -> tuple[int, str]:
    """Status and text of a form that was sent."""
    status, _, text = web.ask("POST", path, urlencode(fields))
    return status, text

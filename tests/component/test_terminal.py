"""What tools write on a terminal and nowhere else: colours, and for how long they have been waiting."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

import casemate
from tests.builders import short_directory
from tests.fakes.daemon import FakeDaemon
from tests.fakes.shell import found_by_tools
from tests.terminal import on_terminal

BIN = Path(__file__).resolve().parents[2] / "bin"


@pytest.fixture(scope="module")
def daemon() -> Iterator[FakeDaemon]:
    """A daemon with a qube that runs, ``work``, and one whose start takes a while, ``slow``."""
    with (
        pytest.MonkeyPatch.context() as patch,
        short_directory() as directory,
        found_by_tools(directory, patch) as found,
    ):
        app = casemate.Qubes()
        app.create("deb", "TemplateVM", label="black")
        for name in ("work", "slow"):
            app.create(name, label="blue", template="deb")
        app["work"].start()
        start = found.parts.power.start

        async def slowly(name: str) -> None:
            await asyncio.sleep(2.5)
            await start(name)

        patch.setattr(found.parts.power, "start", slowly)
        yield found


def environment(daemon: FakeDaemon, **more: str) -> dict[str, str]:
    state = str(daemon.socket.parents[1])
    return {"PATH": f"{BIN}:{os.environ['PATH']}", "CASEMATE_STATE": state, "TERM": "xterm", **more}


def shown(daemon: FakeDaemon, *argv: str, **more: str) -> str:
    """What a tool writes on a terminal."""
    with on_terminal(argv, environment(daemon, **more)) as child:
        child.expect(pexpect.EOF)
        return child.before or ""


def piped(daemon: FakeDaemon, *argv: str) -> str:
    """What it writes into pipes."""
    done = subprocess.run(argv, env=environment(daemon), capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


def test_colours_are_for_terminals(daemon: FakeDaemon) -> None:
    text = shown(daemon, "qvm-ls")
    assert "\033[32mRunning\033[0m" in text and "\033[34mblue " in text
    plain = piped(daemon, "qvm-ls")
    assert "\033" not in plain
    # Without the colours it is the same text: they take no room in the table.
    assert text.replace("\r", "").replace("\033[0m", "").replace("\033[32m", "").replace("\033[34m", "").replace(
        "\033[2m", "") == plain  # fmt: skip


def test_errors_are_in_colour_on_a_terminal_only(daemon: FakeDaemon) -> None:
    assert "qvm-start: \033[1;31merror:\033[0m no such domain" in shown(daemon, "qvm-start", "nobody")
    assert piped(daemon, "qvm-start", "nobody").startswith("qvm-start: error: no such domain")


@pytest.mark.parametrize("more", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_nobody_gets_colours_who_does_not_want_them(daemon: FakeDaemon, more: dict[str, str]) -> None:
    for line in (("qvm-ls",), ("qvm-start", "nobody"), ("casemate", "status", "-v")):
        assert "\033" not in shown(daemon, *line, **more)


def test_an_empty_no_color_means_nothing(daemon: FakeDaemon) -> None:
    assert "\033[32m" in shown(daemon, "qvm-ls", NO_COLOR="")


def test_who_waits_for_a_start_sees_for_how_long(daemon: FakeDaemon) -> None:
    assert piped(daemon, "qvm-start", "slow") == ""
    casemate.Qubes()["slow"].kill()
    text = shown(daemon, "qvm-start", "slow")
    *told, wiped, end = text.split("\r")[1:]
    # How many times it is told depends on how busy the machine is.
    assert told and all(re.fullmatch(r"starting slow: \d+ s", line) for line in told), text
    assert wiped == " " * len(told[-1]) and end == "", "the line is wiped"
    casemate.Qubes()["slow"].kill()
    assert shown(daemon, "qvm-start", "-q", "slow") == ""

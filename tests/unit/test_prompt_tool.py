"""``casemate prompt`` in a terminal: what it shows, and what counts as an answer."""

from __future__ import annotations

import json
import os
import pty
import socket
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.cli import prompt
from casemate.streams.ready import readable
from tests.fakes.shell import Shell
from tests.unit.test_policy_tools import shell  # noqa: F401  # a fixture


class Terminal:
    """A prompt on a terminal of its own; the test is the daemon at one side and the person at the other."""

    def __init__(self) -> None:
        self.ours, self.theirs = pty.openpty()
        self.daemon, end = socket.socketpair()
        self.daemon.settimeout(5)
        self.prompt = prompt.Prompt(end, self.theirs, self.theirs)
        self._shown = b""
        self.thread = threading.Thread(target=self.prompt.run, daemon=True)
        self.thread.start()

    def send(self, **body: object) -> None:
        self.daemon.sendall(json.dumps(body).encode() + b"\n")

    def ask(self, number: int, targets: list[str], default: str = "", **more: str) -> None:
        question = {"source": "work", "service": "qubes.Gpg", "argument": "+", "targets": targets,
                    "default_target": default, "icons": {}} | more  # fmt: skip
        self.send(ask=question, id=number, seconds=60.0)

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def until(self, text: str) -> str:
        """What is shown up to a text."""
        limit = time.monotonic() + 5
        while text.encode() not in self._shown:
            assert readable([self.ours], max(0, limit - time.monotonic())), (text, self._shown)
            self._shown += os.read(self.ours, 65536)
        before, _, self._shown = self._shown.partition(text.encode())
        return before.decode()

    def answer(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.daemon.recv(4096))
        return found

    def close(self) -> None:
        self.daemon.close()
        self.thread.join(5)
        assert not self.thread.is_alive()
        for fd in (self.ours, self.theirs):
            os.close(fd)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    found = Terminal()
    yield found
    found.close()


def test_the_prompt_shows_and_takes_a_choice(terminal: Terminal) -> None:
    terminal.ask(7, ["@dispvm:dvm", "dom0", "vault"], "vault")
    shown = terminal.until("Allow? (a number, y for the default, n to deny) ")
    for line in ("source    work", "service   qubes.Gpg", "argument  +", "1  @dispvm:dvm", "3  vault   (default)"):
        assert line in shown
    terminal.type("4\n")
    terminal.until("Allow? ")
    terminal.type("\n")
    terminal.until("Allow? ")
    terminal.type("1\n")
    assert terminal.answer() == {"id": 7, "answer": "allow:@dispvm:dvm"}
    for word, answer in (("y", "allow:vault"), ("n", "deny"), ("NO", "deny"), ("\x04", "deny")):
        terminal.ask(8, ["dom0", "vault"], "vault")
        terminal.until("Allow? ")
        terminal.type(word if word == "\x04" else word + "\n")
        assert terminal.answer() == {"id": 8, "answer": answer}


def test_the_label_of_a_qube_is_shown(terminal: Terminal) -> None:
    terminal.send(id=1, seconds=60, ask={
        "source": "work", "service": "a", "argument": "+", "targets": ["vault"], "default_target": "vault",
        "icons": {"work": "appvm-red", "vault": "appvm-black"},
    })  # fmt: skip
    shown = terminal.until("Allow? ")
    assert "source    work   [appvm-red]" in shown and "1  vault   [appvm-black]   (default)" in shown
    terminal.type("n\n")
    assert terminal.answer()["answer"] == "deny"


def test_yes_needs_a_default_or_one_target(terminal: Terminal) -> None:
    terminal.ask(1, ["dom0", "vault"])
    terminal.until("Allow? (a number, n to deny) ")
    terminal.type("y\n")
    terminal.until("Allow? ")
    terminal.type("2\n")
    assert terminal.answer()["answer"] == "allow:vault"
    terminal.ask(2, ["vault"])
    terminal.until("Allow? ")
    terminal.type("y\n")
    assert terminal.answer()["answer"] == "allow:vault"


def test_what_was_typed_before_does_not_count(terminal: Terminal) -> None:
    terminal.type("y\n1\n")
    begin = time.monotonic()
    terminal.ask(1, ["vault"], "vault")
    terminal.until("vault   (default)")
    terminal.type("y\ny\n1\n")
    terminal.until("Allow? ")
    assert time.monotonic() - begin >= prompt.DEAF_SECONDS
    terminal.daemon.settimeout(0.3)
    with pytest.raises(TimeoutError):
        terminal.answer()
    terminal.type("n\n")
    terminal.daemon.settimeout(5)
    assert terminal.answer() == {"id": 1, "answer": "deny"}


def test_a_withdrawn_question_takes_no_answer(terminal: Terminal) -> None:
    terminal.ask(1, ["vault"])
    terminal.until("Allow? ")
    terminal.send(withdrawn=1)
    terminal.until("withdrawn")
    terminal.type("y\n")
    terminal.ask(2, ["vault"])
    terminal.until("Allow? ")
    terminal.type("n\n")
    assert terminal.answer() == {"id": 2, "answer": "deny"}
    assert termios.tcgetattr(terminal.theirs)[3] & termios.ECHO


def test_control_characters_are_shown_not_obeyed(terminal: Terminal) -> None:
    terminal.ask(1, ["va\x1b[2Jult"], argument="+\x1b]0;x\x07\u202e")
    shown = terminal.until("Allow? ")
    assert "\x1b" not in shown and "\x07" not in shown and "\\x1b]0;x\\x07\\u202e" in shown
    terminal.send(notify={"resolution": "deny", "source": "work", "service": "a", "argument": "+\x1b", "target": "b",
                          "suppressed": 3})  # fmt: skip
    assert "\x1b" not in terminal.until("(and 3 more)")


def test_a_prompt_needs_a_terminal(
    shell: Shell,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "input").write_text("")
    with open(tmp_path / "input") as file:
        monkeypatch.setattr(sys, "stdin", file)
        shell("casemate prompt", status=1)
    assert "needs a terminal" in shell.err

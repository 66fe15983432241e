"""The tools, run in this process on a daemon of a test's own, as a person would run them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from casemate.cli import entry
from casemate.client import transport
from tests.fakes.daemon import FakeDaemon, running


class Shell:
    """Runs tools as a person would: ``shell("qvm-ls --raw-list", "w*k", status=0)``.

    Returns what the tool printed. ``out`` and ``err`` have what the last one wrote.
    """

    def __init__(self, daemon: FakeDaemon, capture: pytest.CaptureFixture[str]) -> None:
        self.daemon = daemon
        self._capture = capture

    def __call__(self, line: str, *more: str, status: int = 0) -> str:
        got = entry.main([*line.split(), *more])
        self.out, self.err = self._capture.readouterr()
        assert got == status, (line, more, self.out, self.err)
        return self.out


@contextmanager
def found_by_tools(
    directory: Path, monkeypatch: pytest.MonkeyPatch, *, request_seconds: float = 30.0
) -> Iterator[FakeDaemon]:
    """A daemon whose state is ``directory``. Tools of this process find it, and start no other."""
    monkeypatch.setenv("CASEMATE_STATE", str(directory))
    monkeypatch.setattr(transport, "DAEMON", ())
    with running(directory, request_seconds=request_seconds) as daemon:
        yield daemon

"""Standard streams that are closed or full: every tool says so or ends with a status; none hangs, crashes or lies."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.cli import entry
from casemate.cli.standard_streams import LOST
from tests.component.rig import SOURCE
from tests.fakes.daemon import FakeDaemon, running

BIN = SOURCE.parent / "bin"
CRASHES = ("Traceback", "Exception ignored", "Error:")
WITH_OUTPUT = (
    "qvm-ls", "qvm-prefs work", "qubes-prefs", "qvm-tags work", "qvm-volume", "qvm-pool", "qvm-features work",
    "qvm-notes -p work", "qvm-firewall work", "qvm-template list", "qubesd-query -e dom0 admin.vm.List dom0",
)  # fmt: skip
"""Command lines that write something."""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeDaemon]:
    with running(tmp_path_factory.mktemp("state")) as found:
        qubes = found.client()
        qubes.create("TemplateVM", "deb", "black")
        qubes.create("AppVM", "work", "red", "deb")
        qubes.call("admin.vm.feature.Set", "some", "work", "value")
        yield found


def shell(daemon: FakeDaemon, line: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **daemon.client().transport.settings.environment()}
    done = subprocess.run(
        ["bash", "-c", f"{BIN}/{line}"], capture_output=True, text=True, timeout=60, env=environment,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert not any(word in done.stderr for word in CRASHES), (line, done.stderr)
    return done


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full"])
@pytest.mark.parametrize("line", WITH_OUTPUT)
def test_lost_output_is_told(daemon: FakeDaemon, line: str, redirection: str) -> None:
    why = "it is closed" if redirection == ">&-" else "No space left on device"
    done = shell(daemon, f"{line} {redirection}")
    assert (done.returncode, done.stderr) == (LOST, f"{line.split()[0]}: error: standard output: {why}\n")
    # Whoever closes standard error as well still has the status.
    assert shell(daemon, f"{line} {redirection} 2>&-").returncode == LOST


@pytest.mark.parametrize("line", WITH_OUTPUT)
def test_output_that_is_there_is_written(daemon: FakeDaemon, line: str) -> None:
    whole = shell(daemon, line)
    for redirection in ("<&-", "2>&-", "<&- 2>&-", "2>/dev/full"):
        done = shell(daemon, f"{line} {redirection}")
        assert (done.returncode, done.stdout) == (0, whole.stdout), redirection


@pytest.mark.parametrize("name", sorted(entry.TOOLS))
def test_every_tool_bears_every_stream_closed(daemon: FakeDaemon, name: str) -> None:
    """With no arguments: a usage error, help, a list or a question that nobody can answer."""
    for redirection in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full"):
        shell(daemon, f"{name} {redirection}")
        assert shell(daemon, f"{name} --help {redirection}").returncode == (
            LOST if ">&- " in f"{redirection} ".replace("2>&-", "") else 0
        )


def test_errors_keep_their_status(daemon: FakeDaemon) -> None:
    for redirection in (">&-", "2>&-", "2>/dev/full", "<&- >&- 2>&-"):
        assert shell(daemon, f"qvm-prefs nobody {redirection}").returncode == 2
        assert shell(daemon, f"qvm-create -l mauve x {redirection}").returncode == 2


def test_input_that_is_closed_is_not_empty_input(daemon: FakeDaemon, tmp_path: Path) -> None:
    """What would be replaced by nothing stays as it is."""
    daemon.client().call("admin.vm.notes.Set", "", "work", "kept")
    done = shell(daemon, "qvm-notes -f --import - work <&-")
    assert done.returncode == 1 and "Bad file descriptor" in done.stderr
    assert daemon.client().call("admin.vm.notes.Get", "", "work") == "kept"
    assert shell(daemon, "qvm-volume import work:private - <&-").returncode == 1
    assert ("work", "private") not in daemon.parts.volumes.images
    assert shell(daemon, "qvm-remove work <&-").returncode != 0

"""Has the host run a command again and again: a timer of systemd where that runs, else a line of cron.

::

    systemd   root: /etc/systemd/system/NAME.service, NAME.timer     (a user: ~/.config/systemd/user)
    cron      the user's crontab, by crontab(1):   # BEGIN NAME ... / @daily COMMAND / # END NAME
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from casemate.backup.schedule import ScheduleError
from casemate.cli.schedule_time import WORDS, When
from casemate.wire.errors import printable

_MARK = "Written by casemate backup schedule; casemate backup unschedule removes it."
_SECONDS = 60
"""How long systemctl or crontab may take. A reload of many units takes a few seconds."""


class Timer(Protocol):
    """One of the two. ``name`` is that of a unit; a second ``put`` of a name replaces the first."""

    kind: str

    def put(self, name: str, text: str, when: When, argv: Sequence[str], env: Mapping[str, str]) -> None:
        """Have a command run at these times; ``text`` describes it. ScheduleError, and then nothing has changed."""

    def remove(self, name: str) -> None:
        """Take away all that ``put`` has written. ScheduleError; nothing to remove is no error."""


def of_host(root: Path) -> Timer:
    """The timer of this host, for the user who runs us. ``root`` is a directory to take for /. ScheduleError."""
    if (root / "run/systemd/system").is_dir():  # how sd_booted(3) tells that systemd runs
        return of_kind("systemd", root)
    if shutil.which("crontab") is None:
        raise ScheduleError("This host has neither systemd nor cron (the program crontab), so nothing can be scheduled")
    return Cron()


def of_kind(kind: str, root: Path) -> Timer:
    """The timer of a kind that a schedule names."""
    if kind == "cron":
        return Cron()
    if os.geteuid() == 0:
        return Systemd(root / "etc/systemd/system", ())
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return Systemd(home / "systemd/user", ("--user",))


class Systemd:
    """Units in a directory, and systemctl with some options."""

    kind = "systemd"

    def __init__(self, directory: Path, options: Sequence[str]) -> None:
        self._directory = directory
        self._options = options

    def put(self, name: str, text: str, when: When, argv: Sequence[str], env: Mapping[str, str]) -> None:
        """Write both units, reload, enable and start the timer."""
        settings = "".join(f"Environment={_quoted(f'{key}={value}')}\n" for key, value in sorted(env.items()))
        command = " ".join(_quoted(word).replace("$", "$$") for word in argv)
        units = {
            # KillMode: the command may start the daemon, which must go on when the command has ended. By default
            # systemd would then kill it, with all running qubes.
            f"{name}.service": (
                f"[Unit]\nDescription={text}\n\n[Service]\nType=oneshot\nKillMode=process\n"
                f"{settings}ExecStart={command}\n"
            ),
            # Persistent: a run that was missed while the host was off is made up for at its start.
            f"{name}.timer": (
                f"[Unit]\nDescription={text}\n\n[Timer]\nOnCalendar={when.expression}\nPersistent=true\n\n"
                "[Install]\nWantedBy=timers.target\n"
            ),
        }
        before = {unit: self._ours(unit) for unit in units}
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            for unit, content in units.items():
                self._write(unit, f"# {_MARK}\n{content}")
            self._systemctl("daemon-reload")
            self._systemctl("enable", f"{name}.timer")
            self._systemctl("restart", f"{name}.timer")  # one that was there takes its new times
        except (OSError, ScheduleError) as error:
            self._take_back(name, before)
            raise ScheduleError(f"Nothing was scheduled: {error}") from None

    def remove(self, name: str) -> None:
        """Stop and disable the timer, remove both units, reload."""
        units = [unit for unit in (f"{name}.timer", f"{name}.service") if self._ours(unit) is not None]
        if not units:
            return
        if f"{name}.timer" in units:
            self._systemctl("disable", "--now", f"{name}.timer")
        for unit in units:
            (self._directory / unit).unlink(missing_ok=True)
        self._systemctl("daemon-reload")

    def _take_back(self, name: str, before: Mapping[str, str | None]) -> None:
        """Make the units what they were. What systemctl says is not of interest: it has just failed."""
        steps = [("daemon-reload",), ("restart", f"{name}.timer")]
        if before[f"{name}.timer"] is None:
            steps = [("daemon-reload",)]
            self._quietly("disable", "--now", f"{name}.timer")
        for unit, content in before.items():
            if content is None:
                (self._directory / unit).unlink(missing_ok=True)
            else:
                self._write(unit, content)
        for step in steps:
            self._quietly(*step)

    def _write(self, unit: str, content: str) -> None:
        (self._directory / unit).write_text(content, "utf-8", "surrogateescape")

    def _ours(self, unit: str) -> str | None:
        """What a unit of ours says, or None where there is no such file. ScheduleError for somebody else's."""
        path = self._directory / unit
        try:
            content = path.read_text("utf-8", "surrogateescape")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ScheduleError(f"{path}: {error.strerror}") from None
        if not content.startswith(f"# {_MARK}\n"):
            raise ScheduleError(f"{path} was not written by us, so it stays: remove it, or rename the profile")
        return content

    def _systemctl(self, *words: str) -> None:
        _run(["systemctl", *self._options, *words])

    def _quietly(self, *words: str) -> None:
        try:
            self._systemctl(*words)
        except ScheduleError:
            pass


class Cron:
    """The crontab of the user who runs us."""

    kind = "cron"

    def put(self, name: str, text: str, when: When, argv: Sequence[str], env: Mapping[str, str]) -> None:
        """Put a line between markers of ours."""
        if when.said not in WORDS:
            raise ScheduleError(f"cron runs things {', '.join(WORDS)}: {printable(when.said, 80)!r} needs systemd")
        words = [f"{key}={shlex.quote(value)}" for key, value in sorted(env.items())] + [shlex.quote(w) for w in argv]
        command = " ".join(words).replace("%", "\\%")  # cron takes a bare % for the end of the line
        self._write([
            *self._without(name), f"# BEGIN {name}: {_MARK}", f"@{when.said} {command}", f"# END {name}",
        ])  # fmt: skip

    def remove(self, name: str) -> None:
        """Take our lines out; a crontab that is empty then is removed."""
        lines = self._lines()
        rest = self._without(name)
        if rest == lines:
            return
        if rest:
            self._write(rest)
        else:
            _run(["crontab", "-r"])

    def _without(self, name: str) -> list[str]:
        kept, inside = [], False
        for line in self._lines():
            if line.startswith(f"# BEGIN {name}: "):
                inside = True
            elif inside and line == f"# END {name}":
                inside = False
            elif not inside:
                kept.append(line)
        if inside:
            raise ScheduleError(
                f"The crontab has the line '# BEGIN {name}' but not its '# END {name}': mend it by hand"
            )
        return kept

    def _lines(self) -> list[str]:
        done = _done(["crontab", "-l"])
        if done.returncode == 0:
            return done.stdout.split("\n")[:-1] if done.stdout.endswith("\n") else done.stdout.split("\n")
        if "no crontab" in done.stderr:  # all implementations of cron say so, with status 1
            return []
        raise ScheduleError(f"crontab -l failed: {_said(done)}")  # to go on would replace lines that were not read

    def _write(self, lines: Sequence[str]) -> None:
        _run(["crontab", "-"], "".join(f"{line}\n" for line in lines))


def _quoted(word: str) -> str:
    """A word as systemd reads it in a unit; % begins a specifier there. (source: systemd.syntax(7))"""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def _run(argv: Sequence[str], data: str | None = None) -> None:
    done = _done(argv, data)
    if done.returncode != 0:
        raise ScheduleError(f"{' '.join(argv)} failed: {_said(done)}")


def _said(done: subprocess.CompletedProcess[str]) -> str:
    return printable(done.stderr.strip() or f"status {done.returncode}", 500)


def _done(argv: Sequence[str], data: str | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            argv, check=False, capture_output=True, text=True, errors="surrogateescape", input=data or "",
            timeout=_SECONDS, env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ScheduleError(f"{argv[0]} cannot be run: {error}") from None

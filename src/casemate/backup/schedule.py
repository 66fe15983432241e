"""Scheduled backups as the state records them: which profile runs when, and how its last run ended.

::

    STATE/backup/schedules/NAME.json   a Schedule; written by ``casemate backup schedule``
    STATE/backup/runs/NAME.json        the last Run; written by ``casemate backup run`` at its start and at its end

Each record is replaced as a whole, so a reader never sees half of one. A run holds a lock (flock) on its schedule's
file: two runs of one profile cannot overlap, and a run that was killed is told from one that is under way.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import UnionType
from typing import TypeVar

from casemate.backup import whole_file
from casemate.backup.errors import BackupError
from casemate.wire import names

MAX_RECORD = 64 * 1024
"""Limit of a backup (bytes): a record of a schedule or of its last run."""
LATE = 1.5
"""A schedule is overdue when no run was whole for this many periods. The half leaves time for the run itself."""
LOCK_SECONDS = 2.0
"""How long a lock is waited for: ``running`` takes it for a moment, which must not make a run fail."""
_MAX_REASON = 2000
"""Characters of an error that are recorded."""


_TYPES: dict[str, type | UnionType] = {
    "profile": str, "when": str, "period": int, "since": int, "timer": str,
    "started": int, "whole": int, "ended": int | None, "reason": str,
}  # fmt: skip
"""Types of the values of both records, which are checked when one is read."""
_Record = TypeVar("_Record", "Schedule", "Run")


class ScheduleError(BackupError):
    """A schedule that cannot be made or removed, or a record that cannot be read."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a profile's backup runs. ``timer`` is what runs it: ``systemd`` or ``cron``."""

    profile: str
    when: str
    """As the user said it."""
    period: int
    """Seconds: the longest time between two runs."""
    since: int
    """When the schedule was made, in seconds since 1970."""
    timer: str


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a schedule. Times are seconds since 1970."""

    started: int
    whole: int = 0
    """When a run was last whole, this one or an earlier one; 0 for never."""
    ended: int | None = None
    """None until the run has ended."""
    reason: str = ""
    """Why the backup failed; empty when it was whole."""


def profile_name(text: str) -> str:
    """A profile's name, checked. It becomes part of file names and an argument of a command.

    Raises ScheduleError, or the error of ``names.argument``.
    """
    name = str(names.argument(text))
    if not name[:1].isalnum():
        raise ScheduleError(f"A scheduled profile's name begins with a letter or a digit, not as {name!r} does")
    return name


class Schedules:
    """The records below a state directory. Has nothing open between two calls."""

    def __init__(self, state: Path) -> None:
        self._schedules = state / "backup" / "schedules"
        self._runs = state / "backup" / "runs"

    def all(self) -> list[Schedule]:
        """All schedules, by name. Raises ScheduleError for a record that cannot be read."""
        return [found for path in sorted(self._schedules.glob("*.json")) if (found := self.find(path.stem)) is not None]

    def find(self, name: str) -> Schedule | None:
        """The schedule of a profile, or None. Raises ScheduleError."""
        return _read(self._path(name), Schedule)

    def last_run(self, name: str) -> Run | None:
        """The last run of a schedule, or None when there was none. Raises ScheduleError."""
        return _read(self._runs / f"{name}.json", Run)

    def put(self, schedule: Schedule) -> None:
        """Record a schedule; one of the same profile is replaced."""
        _write(self._path(schedule.profile), asdict(schedule))

    def remove(self, name: str) -> None:
        """Remove what is recorded of a profile's schedule, its last run included."""
        self._path(name).unlink(missing_ok=True)
        (self._runs / f"{name}.json").unlink(missing_ok=True)
        for directory in (self._schedules, self._runs):
            try:
                directory.rmdir()
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise

    def began(self, name: str) -> None:
        """Record that a run begins."""
        _write(self._runs / f"{name}.json", asdict(Run(int(time.time()), self._last_whole(name))))

    def ended(self, name: str, reason: str = "") -> None:
        """Record that the run has ended; ``reason`` says why it failed and is empty for a backup that is whole."""
        begun, now = self.last_run(name), int(time.time())
        started = now if begun is None else begun.started
        whole = self._last_whole(name) if reason else now
        _write(self._runs / f"{name}.json", asdict(Run(started, whole, now, reason[:_MAX_REASON])))

    def _last_whole(self, name: str) -> int:
        last = self.last_run(name)
        return 0 if last is None else last.whole

    @contextmanager
    def held(self, name: str, wait: float = LOCK_SECONDS) -> Iterator[bool]:
        """Hold the lock of a schedule, whose runs and changes exclude each other; False when there is no schedule.

        Raises ScheduleError when somebody else still holds it after ``wait`` seconds.
        """
        deadline = time.monotonic() + wait
        try:
            fd = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield False
            return
        try:
            while not _locked(fd):
                if time.monotonic() >= deadline:
                    raise ScheduleError(f"A scheduled backup by the profile {name} is running: wait until it has ended")
                time.sleep(0.05)
            yield True
        finally:
            os.close(fd)

    def told(self, schedule: Schedule) -> str:
        """A line that tells how the last run of a schedule ended. Raises ScheduleError."""
        name = schedule.profile
        return verdict(schedule, self.last_run(name), self.running(name), time.time())

    def running(self, name: str) -> bool:
        """Whether a run holds the lock of this schedule."""
        try:
            with self.held(name, wait=0):
                return False
        except ScheduleError:
            return True

    def _path(self, name: str) -> Path:
        return self._schedules / f"{name}.json"


def verdict(schedule: Schedule, last: Run | None, running: bool, now: float) -> str:
    """A line that tells the last run of a schedule, at a time (seconds since 1970). What is wrong is in capitals."""
    late = now - max(schedule.since, last.whole if last else 0) > LATE * schedule.period
    overdue = "OVERDUE: " if late else ""
    if last is None:
        return f"{overdue}has not run yet"
    if running:
        return f"{overdue}running since {_moment(last.started)}"
    if last.ended is None:
        return f"{overdue}BROKEN OFF: the run of {_moment(last.started)} did not come to its end"
    if last.reason:
        return f"{overdue}FAILED {_moment(last.ended)}: {last.reason}"
    return f"{overdue}whole, {_moment(last.ended)}"


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _moment(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _read(path: Path, kind: type[_Record]) -> _Record | None:
    try:
        with open(path, "rb") as file:
            found = json.loads(file.read(MAX_RECORD))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ScheduleError(f"{path}: {error.strerror}") from None
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(found.get(key), _TYPES.get(key, ())) for key in found):
        found = {"damaged": True}
    try:
        return kind(**found)
    except TypeError:
        raise ScheduleError(f"{path} is damaged. Remove it, then schedule the profile anew") from None


def _write(path: Path, record: dict[str, object]) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        whole_file.replace(path, json.dumps(record).encode("ascii"))
    except OSError as error:
        raise ScheduleError(f"{path} cannot be written: {error.strerror}") from None

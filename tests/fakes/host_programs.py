"""Programs of the host that schedules need, as scripts in a directory of PATH: they record what they are asked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_SYSTEMCTL = """#!/bin/sh
echo "$*" >> "{directory}/systemctl.calls"
if [ -e "{directory}/systemctl.fails" ]; then
    echo "Failed to connect to bus" >&2
    exit 1
fi
"""
_CRONTAB = """#!/bin/sh
case $1 in
-l) [ -e "{directory}/crontab.broken" ] && {{ echo "cannot open spool" >&2; exit 1; }}
    [ -e "{directory}/table" ] || {{ echo "no crontab for $USER" >&2; exit 1; }}
    exec cat "{directory}/table" ;;
-r) rm "{directory}/table" ;;
-) exec cat > "{directory}/table" ;;
esac
"""
# What systemd 257 says, for the expressions of the tests.
_ANALYZE = """#!/bin/sh
for last; do :; done
case $last in
"Mon..Fri 02:30") cat <<END
  Original form: Mon..Fri 02:30
Normalized form: Mon..Fri *-*-* 02:30:00
    Next elapse: Fri 2026-11-27 02:30:00 UTC
       From now: 12h left
       Iter. #2: Mon 2026-11-30 02:30:00 UTC
       From now: 3 days left
       Iter. #3: Tue 2026-12-01 02:30:00 UTC
       From now: 4 days left
END
;;
2020-01-01) cat <<END
  Original form: 2020-01-01
Normalized form: 2020-01-01 00:00:00
    Next elapse: never
END
;;
*) echo "Failed to parse calendar specification '$last': Invalid argument" >&2; exit 1 ;;
esac
"""


class HostPrograms:
    """A directory that stands for /, and programs of the host in a directory that is all of PATH but the shell's."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = directory / "root"
        self.programs = directory / "programs"
        self.root.mkdir(parents=True)
        self.programs.mkdir()
        for name in ("cat", "rm", "sh"):
            (self.programs / name).symlink_to(f"/bin/{name}")
        monkeypatch.setenv("PATH", str(self.programs))
        monkeypatch.setenv("XDG_CONFIG_HOME", str(self.root / "home"))

    def with_systemd(self) -> None:
        (self.root / "run/systemd/system").mkdir(parents=True)
        self._program("systemctl", _SYSTEMCTL)
        self._program("systemd-analyze", _ANALYZE)

    def with_cron(self, table: str | None = None) -> None:
        self._program("crontab", _CRONTAB)
        if table is not None:
            self.table.write_text(table)

    @property
    def table(self) -> Path:
        return self.programs / "table"

    @property
    def units(self) -> Path:
        return self.root / ("etc/systemd/system" if os.geteuid() == 0 else "home/systemd/user")

    def asked(self) -> list[str]:
        """The arguments of each call of systemctl, without ``--user``."""
        record = self.programs / "systemctl.calls"
        return [line.removeprefix("--user ") for line in record.read_text().splitlines()] if record.exists() else []

    def written(self) -> list[str]:
        return sorted(path.name for path in self.units.glob("*"))

    def _program(self, name: str, text: str) -> None:
        path = self.programs / name
        path.write_text(text.format(directory=self.programs))
        path.chmod(0o755)

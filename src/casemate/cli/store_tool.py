"""``casemate store``: look at the collection's file, list its earlier saves, put one in place. Needs no daemon."""

from __future__ import annotations

import subprocess
import sys

from casemate.settings import load

COMMANDS = {
    "check": "read the store and name what is wrong with it",
    "history": "list the earlier saves that are kept, newest first",
    "restore": "put an earlier save in place; a damaged file is kept under another name",
}


def run(command: str, name: str | None) -> int:
    """One command on the store of this installation. It is a program of its own: tools do not load the store."""
    argv = [sys.executable, "-P", "-m", "casemate.store", str(load().store_file), command]
    return subprocess.run([*argv, *([name] if name else [])], check=False).returncode

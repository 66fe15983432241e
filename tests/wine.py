"""Wine, which runs programs of Windows for tests: where it is, its environment, the end of its server."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

WINE = next(
    (
        path
        for path in (shutil.which("wine64"), "/usr/lib/wine/wine64", shutil.which("wine"))
        if path and Path(path).exists()
    ),
    None,
)
"""Debian has the 64-bit program beside its libraries, not where programs are."""


def environment(prefix: Path) -> dict[str, str]:
    """What Wine needs. It leaves its server's directory behind in TMPDIR, so that is the prefix too."""
    prefix.mkdir(exist_ok=True)
    return {**os.environ, "WINEPREFIX": str(prefix), "TMPDIR": str(prefix), "WINEDEBUG": "-all", "DISPLAY": ""}


def end_server(prefix: Path) -> None:
    """End the server of a prefix, which would wait for further programs for a while."""
    server = Path("/usr/lib/wine/wineserver64")
    if server.exists():
        subprocess.run([str(server), "-k"], env=environment(prefix), check=False, timeout=60)

"""What is sent to a disposable so that it can read a backup: our modules as one archive, and the line that starts them.

The archive comes first on standard input, after its length. A file in memory keeps it; nothing is written to a disk.
"""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

_HERE = Path(__file__).resolve().parents[2]
_PARTS = ("__init__.py", "wire/*.py", "backup/*.py", "backup/paranoid/*.py")
_DATE = (1980, 1, 1, 0, 0, 0)
LENGTH = struct.Struct(">I")

BOOT = """import os, sys
def take(count):
    parts = []
    while count:
        part = os.read(0, count)
        if not part:
            sys.exit(1)
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
fd = os.memfd_create("casemate")
code = take(int.from_bytes(take(4), "big"))
while code:
    code = code[os.write(fd, code):]
sys.path.insert(0, f"/proc/self/fd/{fd}")
from casemate.backup.paranoid.inside import main
sys.exit(main())
"""
WORDS = ("/usr/bin/python3", "-I", "-S", "-c", BOOT)
"""The command to run there. ``-I -S``: nothing that lies in the disposable is imported but the standard library."""


def code() -> bytes:
    """The archive with its length before it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for pattern in _PARTS:
            for path in sorted(_HERE.glob(pattern)):
                archive.writestr(
                    zipfile.ZipInfo(f"casemate/{path.relative_to(_HERE)}", _DATE), path.read_bytes(),
                    zipfile.ZIP_DEFLATED,
                )  # fmt: skip
    data = out.getvalue()
    return LENGTH.pack(len(data)) + data

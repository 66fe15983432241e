"""Headers of disks that a machine could write: each field that could name another file is refused by itself.

The headers are real ones, of qemu-img. The tools that get such a file are not run here, so nothing else refuses it.
"""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from casemate.storage.qcow2_header import check_file
from casemate.wire.errors import StorageError

BACKING_FORMAT, DATA_FILE, END = 0xE2792ACA, 0x44415441, 0
AFTER_FIXED = 112
"""Where the header of the version that qemu-img writes ends and its extensions begin."""


def layer(directory: Path) -> tuple[Path, Path]:
    """A fresh layer over a base; both paths."""
    base, path = directory / "base.qcow2", directory / "layer.qcow2"
    for argv in (["-f", "qcow2", base, "1M"], ["-f", "qcow2", "-b", base, "-F", "qcow2", path]):
        subprocess.run(["qemu-img", "create", "-q", *map(str, argv)], check=True)
    return base, path


def put(path: Path, at: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


def test_what_was_made_here_is_taken(tmp_path: Path) -> None:
    base, path = layer(tmp_path)
    check_file(path, base)
    check_file(base, None)
    put(path, 72, struct.pack(">Q", 1))  # QEMU sets this bit while it writes; a crash leaves it
    check_file(path, base)


@pytest.mark.parametrize(
    ("at", "data", "why"),
    [
        (0, b"QFX\xfb", "no qcow2 file"),
        (4, struct.pack(">I", 2), "no qcow2 file"),
        (20, struct.pack(">I", 12), "no qcow2 file"),
        (32, struct.pack(">I", 1), "features"),
        (72, struct.pack(">Q", 2), "features"),
        (72, struct.pack(">Q", 4), "features"),  # an external data file
        (72, struct.pack(">Q", 1 << 40), "features"),
        (16, struct.pack(">I", 5), "another file"),
        (8, bytes(12), "another file"),
        (AFTER_FIXED, struct.pack(">II", DATA_FILE, 8), "an extension"),
        (AFTER_FIXED, struct.pack(">II", BACKING_FORMAT, 1 << 31), "an extension"),
        (AFTER_FIXED + 8, b"raw\0\0", "another format"),
    ],
)
def test_what_a_hijacked_machine_could_write_is_refused(tmp_path: Path, at: int, data: bytes, why: str) -> None:
    base, path = layer(tmp_path)
    assert struct.unpack_from(">II", path.read_bytes(), AFTER_FIXED) == (BACKING_FORMAT, 5)
    put(path, at, data)
    with pytest.raises(StorageError, match=why):
        check_file(path, base)


def test_a_file_over_another_base_is_refused(tmp_path: Path) -> None:
    base, path = layer(tmp_path)
    for other in (None, tmp_path / "shadow"):
        with pytest.raises(StorageError, match="another file"):
            check_file(path, other)
    with pytest.raises(StorageError, match="another file"):
        check_file(base, tmp_path / "shadow")

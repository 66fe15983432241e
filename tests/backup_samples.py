"""Backups of all kinds, good, damaged, spliced and hostile, with what must come of each.

``tests/fixtures/backups/samples.tar.zst`` has them: some made by upstream's own programs of several releases, the
others from those by altering a byte, a member, a header or the encrypted content. ``manifest.json`` in it says what
each is.
"""

from __future__ import annotations

import io
import json
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

import zstandard

_ARCHIVE = Path(__file__).parent / "fixtures/backups/samples.tar.zst"
SLOW = frozenset({"v4-gzip-defaultkdf.qbk"})
"""Made with the cost that upstream's tool chose: a gigabyte and four seconds for each member."""


@cache
def files() -> dict[str, bytes]:
    """All files of the archive by name."""
    plain = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(_ARCHIVE.read_bytes())).read()
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        return {Path(one.name).name: archive.extractfile(one).read() for one in archive if one.isfile()}  # type: ignore[union-attr]


@cache
def manifest() -> dict[str, dict[str, Any]]:
    """What each sample is, and what must come of it."""
    found: dict[str, dict[str, Any]] = json.loads(files()["manifest.json"])
    return found


@cache
def contents() -> dict[str, str]:
    """SHA-256 of the files in the good samples of versions 2 and 3, by name."""
    found: dict[str, str] = json.loads(files()["content.json"])
    return found

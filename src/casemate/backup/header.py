"""The member ``backup-header``: which version, how it is compressed and protected. Read, checked, written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from casemate.backup import container, filters, openssl
from casemate.backup.errors import DamagedError, PassphraseError, RefusedError, UntriedError
from casemate.backup.outer import Member
from casemate.wire.errors import printable

NAME, AUTHENTIC = "backup-header", "backup-header.hmac"
STORE = "qubes.xml"
MAX_SIZE = 4096
"""Limit of a backup (bytes): the header, and its authenticated copy."""
_WORD = re.compile(r"[A-Za-z0-9-]*")
_KEYS = frozenset(
    (
        "version", "encrypted", "compressed", "compression-filter", "crypto-algorithm", "hmac-algorithm", "backup-id",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class BackupHeader:
    """What the header says. ``filter`` is "" when nothing is compressed."""

    version: int
    encrypted: bool
    filter: str
    digest: str
    backup_id: str = ""

    @property
    def compressed(self) -> bool:
        """Whether a filter has to be undone."""
        return bool(self.filter)


def parse(data: bytes, forced_filter: str = "") -> BackupHeader:
    """The header; RefusedError for one that no writer makes. ``forced_filter`` counts instead of the one it names."""
    found = _pairs(data)
    # Late backups of version 2 have a header without a version.
    version = {None: 2, "3": 3, "4": 4}.get(found.get("version"), 0)
    if not version:
        raise RefusedError(f"Backups of version {printable(found['version'], 20)} cannot be read; only 2, 3 and 4 can")
    encrypted, compressed = _flag(found, "encrypted"), _flag(found, "compressed")
    digest = found.get("hmac-algorithm", "")
    packed = ""
    if compressed:
        packed = forced_filter or found.get("compression-filter", "gzip")
        filters.check(packed)
    if version == 4:
        if not encrypted or digest != "scrypt":
            raise RefusedError("The header says that the backup is not encrypted by scrypt, which version 4 always is")
        backup_id = found.get("backup-id", "")
        if not backup_id or backup_id.startswith("-"):
            raise RefusedError("The header has no valid backup-id")
        return BackupHeader(version, True, packed, digest, backup_id)
    openssl.check_names(digest, found.get("crypto-algorithm", "") if encrypted else None)
    return BackupHeader(version, encrypted, packed, digest)


def _pairs(data: bytes) -> dict[str, str]:
    try:
        lines = data.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise RefusedError("The header has bytes that are not ASCII") from None
    found: dict[str, str] = {}
    for line in filter(None, lines):
        key, equals, value = line.partition("=")
        if not equals or "=" in value or not _WORD.fullmatch(key) or not _WORD.fullmatch(value):
            raise RefusedError(f"The header has a malformed line: {printable(line, 80)!r}")
        if key in found and key in _KEYS:
            raise RefusedError(f"The header has {key} twice")
        found[key] = value
    return found


def _flag(found: dict[str, str], key: str) -> bool:
    return found.get(key, "").lower() in ("1", "true", "yes")


def read(members: Iterator[Member], passphrase: bytes, forced_filter: str = "") -> tuple[BackupHeader, Member | None]:
    """The header, checked against its authenticated copy, and the member after it where that was read already.

    A backup of the first betas of release 2 has no header: it begins with the store. PassphraseError when the copy
    cannot be opened with the passphrase.
    """
    first = next(members, None)
    if first is None:
        raise RefusedError("The backup is empty")
    if first.name == f"{STORE}.000":
        return BackupHeader(2, True, "", "SHA1"), first
    if first.name != NAME:
        raise RefusedError(f"This is no backup: it begins with {printable(first.name, 80)}, not with {NAME}")
    data = _small(first)
    copy = next(members, None)
    if copy is None or copy.name != AUTHENTIC:
        raise RefusedError(f"The backup has no {AUTHENTIC} after its header")
    text = _small(copy)
    header = parse(bytes(data), forced_filter)
    try:
        if header.version == 4:
            if bytes(container.decrypt(text, f"{NAME}!".encode() + passphrase, AUTHENTIC)) != bytes(data):
                raise PassphraseError("The header was altered: it differs from its authenticated copy")
        else:
            openssl.check_mac(data, bytes(text), header.digest, passphrase, NAME)
    except UntriedError as error:
        raise RefusedError(str(error)) from None
    except DamagedError:
        raise PassphraseError("The passphrase is wrong, or the header of the backup was altered") from None
    return header, None


def _small(member: Member) -> bytearray:
    if member.size > MAX_SIZE:
        raise RefusedError(f"{member.name} has {member.size} bytes; at most {MAX_SIZE} are possible")
    return member.data()


def build(backup_id: str, packed: str) -> bytes:
    """The header of a backup of version 4; ``packed`` names the filter, "" for none."""
    lines = (
        "version=4", "encrypted=True", f"compressed={bool(packed)}", f"compression-filter={packed or 'gzip'}",
        "hmac-algorithm=scrypt", f"backup-id={backup_id}",
    )  # fmt: skip
    return "".join(f"{line}\n" for line in lines).encode("ascii")

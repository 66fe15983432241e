"""A backup profile: what is backed up, where to, and how its passphrase is had. The file is YAML, as upstream's.

Source of the keys: upstream's ``qubes.backup``, and its tool ``qvm-backup --save-profile``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from casemate.backup import filters
from casemate.backup.errors import BackupError
from casemate.backup.incremental.retention import Keep, keep_from
from casemate.wire import names
from casemate.wire.admin import ADMIN
from casemate.wire.errors import BackupProfileNotFoundError, CasemateError, printable

MAX_SIZE = 64 * 1024
"""Limit of a backup (bytes): a profile."""
DEFAULT_FILTER = "zstd"
UPSTREAM_PROFILES = Path("/etc/qubes/backup")
"""Where upstream's ``qvm-backup`` puts profiles of backups; for the state of the whole host too."""
WHOLE_HOST_STATE = "/var/lib/casemate"


class ProfileError(BackupError):
    """The profile says something that is not possible."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What a profile says. ``include`` None: all qubes whose property ``include_in_backups`` is set."""

    destination_vm: str
    destination_path: str
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    filter: str = DEFAULT_FILTER
    passphrase_text: str | None = None
    passphrase_vm: str | None = None
    repository: bool = False
    """Whether ``destination_path`` is a repository of incremental backups, on this host."""
    keep: Keep = Keep()
    """Which older backups of the repository stay after each new one. No rule at all: all of them."""

    def chooses(self, name: str, klass: str, tags: Sequence[str], included: bool) -> bool:
        """Whether a qube is part of the backup; ``included`` is its property ``include_in_backups``."""
        if any(_fits(word, name, klass, tags) for word in self.exclude):
            return False
        return included if self.include is None else any(_fits(word, name, klass, tags) for word in self.include)


def _fits(word: str, name: str, klass: str, tags: Sequence[str]) -> bool:
    kind, colon, what = word.partition(":")
    if colon and kind in ("$type", "@type"):
        return klass == what
    if colon and kind in ("$tag", "@tag"):
        return what in tags
    return fnmatchcase(name, word)


def parse(data: bytes, what: str) -> Profile:
    """The profile in a file; ``what`` names it in errors. Raises ProfileError."""
    import yaml

    if len(data) > MAX_SIZE:
        raise ProfileError(f"{what} is longer than {MAX_SIZE} bytes")
    try:
        found = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ProfileError(f"{what} is no YAML: {printable(str(error), 300)}") from None
    if not isinstance(found, dict):
        raise ProfileError(f"{what} is empty, or no mapping of keys to values")
    known = {
        "include", "exclude", "destination_vm", "destination_path", "compression", "passphrase_text", "passphrase_vm",
        "repository", "keep",
    }  # fmt: skip
    for key in found:
        if key not in known:
            raise ProfileError(
                f"{what} has the key {printable(str(key), 40)!r}; possible are {', '.join(sorted(known))}"
            )
    try:
        made = Profile(
            destination_vm=str(names.qube_name(_text(found, "destination_vm", what) or ADMIN)),
            destination_path=_text(found, "destination_path", what) or "",
            include=_words(found, "include", what),
            exclude=_words(found, "exclude", what) or (),
            filter=_filter(found.get("compression", True)),
            passphrase_text=_text(found, "passphrase_text", what),
            passphrase_vm=_text(found, "passphrase_vm", what),
            repository=_yes_or_no(found, "repository", what),
            keep=keep_from(found.get("keep") or {}, f"{what}: keep"),
        )
    except ProfileError:
        raise
    except CasemateError as error:
        raise ProfileError(f"{what}: {error}") from None
    if made.repository and made.destination_vm != ADMIN:
        raise ProfileError(f"{what}: a repository is a directory of this host, so destination_vm must be {ADMIN}")
    if made.keep and not made.repository:
        raise ProfileError(f"{what}: keep is only possible with repository")
    return made


def find(name: str, directories: Sequence[Path]) -> Profile:
    """The profile of a name, from the first directory that has it. ProfileError, BackupProfileNotFoundError."""
    names.argument(name)
    for directory in directories:
        path = directory / f"{name}.conf"
        try:
            with open(path, "rb") as file:
                return parse(file.read(MAX_SIZE + 1), str(path))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ProfileError(f"{path}: {error.strerror}") from None
    raise BackupProfileNotFoundError(f"There is no backup profile {name!r} in {directories[0]}")


def directories(state: Path) -> tuple[Path, ...]:
    """Where the profiles of a state are looked for, in this order."""
    own = state / "backup"
    return (own, UPSTREAM_PROFILES) if os.fspath(state) == WHOLE_HOST_STATE else (own,)


def _yes_or_no(found: Mapping[str, Any], key: str, what: str) -> bool:
    value = found.get(key, False)
    if not isinstance(value, bool):
        raise ProfileError(f"{what}: {key} must be true or false")
    return value


def _filter(value: object) -> str:
    if value is True:
        return DEFAULT_FILTER
    if value in (False, None, ""):
        return ""
    if not isinstance(value, str):
        raise ProfileError("compression is true, false or the name of a filter")
    filters.compressor(value)
    return value


def _text(found: Mapping[str, Any], key: str, what: str) -> str | None:
    value = found.get(key)
    if value is None:
        return None
    if not isinstance(value, str | int):
        raise ProfileError(f"{what}: {key} must be text")
    return str(value)


def _words(found: Mapping[str, Any], key: str, what: str) -> tuple[str, ...] | None:
    value = found.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise ProfileError(f"{what}: {key} must be a list of names")
    return tuple(value)


def build(profile: Profile) -> bytes:
    """The file of a profile."""
    import yaml

    content: dict[str, object] = {
        "destination_vm": profile.destination_vm,
        "destination_path": profile.destination_path,
        "compression": profile.filter or False,
    }
    if profile.repository:
        content["repository"] = True
    if profile.keep:
        content["keep"] = profile.keep.as_mapping()
    if profile.include is not None:
        content["include"] = list(profile.include)
    if profile.exclude:
        content["exclude"] = list(profile.exclude)
    for key in ("passphrase_text", "passphrase_vm"):
        if (value := getattr(profile, key)) is not None:
            content[key] = value
    return yaml.safe_dump(content, allow_unicode=True).encode()


def check_passphrase(passphrase: str) -> bytes:
    """A passphrase as bytes; ProfileError for one that the scrypt program could not take on its one line."""
    if not passphrase:
        raise ProfileError("The passphrase is empty")
    if any(c in "\0\r\n" for c in passphrase):
        raise ProfileError("A passphrase cannot have line ends or NUL in it")
    return passphrase.encode("utf-8", "surrogateescape")


def strength(passphrase: str) -> float:
    """A rough lower bound of a passphrase's strength in bits: what trying all of its kind and length would take.

    Repeated characters count little, and a word that everybody knows is not noticed: it serves to warn, not to praise.
    """
    from math import log2

    kinds = (("a", "z", 26), ("A", "Z", 26), ("0", "9", 10))
    alphabet = sum(size for low, high, size in kinds if any(low <= c <= high for c in passphrase))
    alphabet += 33 if any(not c.isalnum() for c in passphrase) else 0
    of_words = 2.3  # bits of a letter in running text: words are not random letters
    if " " in passphrase.strip():
        return len(passphrase) * of_words
    varied = len(set(passphrase)) + 0.25 * (len(passphrase) - len(set(passphrase)))
    return varied * (of_words if alphabet in (26, 59) else log2(max(2, alphabet)))


WEAK_BITS = 50.0
"""Below this a passphrase is warned of: with the cost of a key derivation here, a rented rack tries 2**50 in months."""

"""What a template is built from: Debian suite, kind, packages, files, commands. Travels from tool to daemon as JSON.

A person writes it as TOML (docs/howto/templates.md); it is kept with the template, so that ``rebuild`` can repeat it.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from casemate.wire.errors import ValueInvalidError, printable

RELEASES = {"bookworm": "12", "trixie": "13", "forky": "14", "sid": "sid"}
"""Debian's suites that templates can be built from, and what a template of each is called: ``debian-12``."""

STABLE = "trixie"
"""The suite where the host does not suggest one."""

KINDS = ("lean", "systemd")
"""What is process 1 in the qube: our agent, which starts faster, or systemd, which more programs expect."""

MAX_BYTES = 48 << 10
"""Bytes of an encoded recipe. It must fit into one request of the Admin API (64 KiB)."""

_SUITE = re.compile(r"[a-z]{2,20}\Z")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9]+)?\Z")  # Debian Policy 5.6.1, and an architecture
_PATH = re.compile(r"(/[A-Za-z0-9_.@+,:-]+)+\Z")


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """A file that is put into the template: absolute path, content, permission bits. It belongs to root."""

    path: str
    data: bytes
    mode: int = 0o644

    def __post_init__(self) -> None:
        if not _PATH.match(self.path) or {".", ".."} & set(self.path.split("/")):
            raise ValueInvalidError(f"A file's path must be absolute and plain, not {printable(self.path, 80)!r}")
        if not 0 <= self.mode <= 0o7777:
            raise ValueInvalidError(f"The mode of {self.path} must be octal digits such as 644 or 0755")


@dataclass(frozen=True, slots=True)
class Recipe:
    """A template's inputs. ``commands`` are lines for /bin/sh, run as root in the new system, in order."""

    suite: str
    kind: str = "lean"
    packages: tuple[str, ...] = ()
    files: tuple[RecipeFile, ...] = ()
    commands: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.suite not in RELEASES:
            raise ValueInvalidError(f"No such suite: {printable(self.suite, 30)!r}; there are {', '.join(RELEASES)}")
        if self.kind not in KINDS:
            raise ValueInvalidError(f"A template is {' or '.join(KINDS)}, not {printable(self.kind, 30)!r}")
        for package in self.packages:
            if not _PACKAGE.match(package):
                raise ValueInvalidError(f"{printable(package, 80)!r} is not the name of a Debian package")
        for command in self.commands:
            if not command.strip() or "\0" in command:
                raise ValueInvalidError("A command of a recipe is empty or has a NUL character")

    @property
    def default_name(self) -> str:
        """What a template of this suite and kind is called unless a person names it: ``debian-13-systemd``."""
        return f"debian-{RELEASES[self.suite]}" + ("" if self.kind == "lean" else f"-{self.kind}")

    @property
    def extras(self) -> bool:
        """Whether it has more than Debian's packages of its kind."""
        return bool(self.packages or self.files or self.commands)

    def encode(self) -> bytes:
        """As JSON; equal recipes give equal bytes. ValueInvalidError where it is too large for a request."""
        fields = {**asdict(self), "files": [_file_fields(file) for file in self.files]}
        data = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")
        if len(data) > MAX_BYTES:
            raise ValueInvalidError(
                f"The recipe has {len(data)} bytes, {MAX_BYTES} are allowed: put larger files into a package"
            )
        return data


def _file_fields(file: RecipeFile) -> dict[str, Any]:
    return {"path": file.path, "mode": f"{file.mode:04o}", "data": base64.b64encode(file.data).decode("ascii")}


def decode(data: bytes) -> Recipe:
    """The recipe that ``encode`` wrote; ValueInvalidError names what is wrong with other bytes."""
    if len(data) > MAX_BYTES:
        raise ValueInvalidError(f"A recipe has {MAX_BYTES} bytes at most")
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueInvalidError("A recipe is not JSON") from None
    return from_fields(fields)


def from_fields(fields: object) -> Recipe:
    """The recipe of a decoded JSON or TOML document. Each file has its bytes as base64 under ``data``."""
    if not isinstance(fields, dict):
        raise ValueInvalidError("A recipe must be a table of suite, kind, packages, files and commands")
    _known(fields, "a recipe", ("suite", "kind", "packages", "files", "commands"))
    suite, kind = fields.get("suite"), fields.get("kind", "lean")
    if not isinstance(suite, str) or not isinstance(kind, str):
        raise ValueInvalidError("suite and kind of a recipe must be words")
    files = fields.get("files", [])
    if not isinstance(files, list) or not all(isinstance(file, dict) for file in files):
        raise ValueInvalidError("files of a recipe must be tables of path, mode and content")
    return Recipe(
        suite, kind, _texts(fields, "packages"), tuple(_file(file) for file in files), _texts(fields, "commands")
    )


def _known(fields: Mapping[str, object], what: str, known: tuple[str, ...]) -> None:
    for key in fields:
        if key not in known:
            raise ValueInvalidError(f"{printable(str(key), 60)!r} is unknown in {what}; there are {', '.join(known)}")


def _texts(fields: Mapping[str, Any], key: str) -> tuple[str, ...]:
    found = fields.get(key, [])
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ValueInvalidError(f"{key} of a recipe must be a list of texts")
    return tuple(found)


def _file(fields: Mapping[str, Any]) -> RecipeFile:
    _known(fields, "a file of a recipe", ("path", "mode", "data"))
    path, mode, data = fields.get("path"), fields.get("mode", "0644"), fields.get("data", "")
    if not isinstance(path, str) or not isinstance(mode, str) or not isinstance(data, str):
        raise ValueInvalidError("path, mode and content of a recipe's file must be texts")
    try:
        return RecipeFile(path, base64.b64decode(data, validate=True), int(mode, 8))
    except (binascii.Error, ValueError):
        raise ValueInvalidError(
            f'The mode of {printable(path, 80)} must be octal digits in quotes, such as "0755"'
        ) from None

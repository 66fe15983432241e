"""How a storage driver declares itself: its name, its options and how a pool of it is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from casemate.host.plugins import Option
from casemate.host.process import Runner
from casemate.model.kinds import Bool
from casemate.model.volumes import POOL_REVISIONS
from casemate.storage.pool import Pool
from casemate.wire import names
from casemate.wire.errors import NotImplementedHereError, ValueInvalidError, printable


@dataclass(frozen=True, slots=True)
class Opening:
    """What a driver gets to open a pool.

    ``directory`` is where the pool's files lie unless an option says otherwise. ``group`` is the group of all qubes
    (None: we are not root, and all qubes run as our own user).
    """

    options: Mapping[str, str]
    directory: Path
    runner: Runner
    group: int | None


@dataclass(frozen=True, slots=True)
class Driver:
    """A storage driver. Each module of ``storage.drivers`` has one, as ``DRIVER``.

    ``aliases`` are further names that the store and the API accept for it.
    """

    name: str
    doc: str
    options: tuple[Option, ...]
    open: Callable[[Opening], Pool]
    aliases: tuple[str, ...] = ()

    def option(self, name: str) -> Option:
        """The option of that name; ValueInvalidError names it."""
        for option in self.options:
            if option.name == name:
                return option
        raise ValueInvalidError(f"Driver {self.name} has no option {printable(name, 40)!r}")

    def check(self, options: Mapping[str, str]) -> None:
        """ValueInvalidError (or a narrower error) unless a pool can have these options."""
        for name, text in sorted(options.items()):
            option = self.option(name)
            if any(not " " <= c <= "~" for c in text):
                raise ValueInvalidError(f"Option {name} has characters that are not printable ASCII")
            option.check(text)

    def location(self, options: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        """The options that say where a pool is: two pools with the same ones are the same files."""
        return tuple((one.name, options.get(one.name, one.default)) for one in self.options if not one.changeable)


# -- options that drivers have in common


def _check_directory(text: str) -> None:
    if not text.startswith("/") or ".." in text.split("/") or len(text) > 512:
        raise ValueInvalidError("dir_path must be an absolute path without '..'")


def _check_revisions(text: str) -> None:
    if text != "-1":
        names.number(text, "revisions_to_keep", 0, 1000)


def _check_ephemeral(text: str) -> None:
    if Bool().parse(text):
        raise NotImplementedHereError("No pool here can encrypt volumes")


DIR_PATH = Option(
    "dir_path", "Directory of the pool's files: an absolute path. Default: ``STATE/pools/NAME``.", _check_directory
)
REVISIONS_TO_KEEP = Option(
    "revisions_to_keep", "Older states kept of each volume that has no number of its own; -1: none, as 0.",
    _check_revisions,
    str(POOL_REVISIONS), changeable=True,
)  # fmt: skip
EPHEMERAL_VOLATILE = Option(
    "ephemeral_volatile", "Encrypt volatile volumes with a key that nobody keeps. Only ``False`` is possible here.",
    _check_ephemeral, "False", changeable=True,
)  # fmt: skip

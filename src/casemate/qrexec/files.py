"""The policy's files: which are read, in which order, and when again. One that cannot be read denies everything."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from casemate.qrexec.parser import Includes, Parser
from casemate.qrexec.rules import Policy
from casemate.wire.errors import PolicyError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.qrexec.watch import DirectoryWatch

SUFFIX = ".policy"
MAX_SIZE = 16 * 1024 * 1024
"""Limit of calls (bytes): one file of the policy."""
MAX_PATH = 1024
_NAME_BYTES = b"0123456789abcdefghijklmnopqrstuvwxyz_.-"
_OLD_BYTES = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_.-+"
_OLD_COPIES = (".rpmsave", ".rpmnew", ".swp", "~")


class Reader(Includes):
    """Reads files of a policy, and watches each directory that it reads from.

    ``directory`` is what paths are relative to, ``old`` where the files of ``!compat-4.0`` are. ``watch`` gets the
    directories that are read, None where nobody watches; ``unwatched`` says that one of them could not be watched.
    ``instead`` has contents that count in place of files (None: there is no such file), to try a change out.
    """

    def __init__(self, directory: Path, old: Path, instead: Mapping[Path, bytes | None]) -> None:
        self._directory = directory
        self._old = old
        self._instead = instead
        self.watch: DirectoryWatch | None = None
        self.watched: set[str] = set()
        self.unwatched = False

    def _look_at(self, directory: Path) -> None:
        """Watch a directory. This comes before reading, so that a change between the two is not missed."""
        path = str(directory)
        if path not in self.watched:
            self.watched.add(path)
            if directory.is_symlink():
                self._look_at(directory.parent)
            if self.watch is not None and not self.watch.add(path):
                self.unwatched = True

    def _shown(self, path: Path) -> str:
        return printable(str(path.relative_to(self._directory) if path.is_relative_to(self._directory) else path), 120)

    def _included(self, path: str) -> Path:
        if len(path) > MAX_PATH or ".." in path.split("/") or not path.isprintable():
            raise PolicyError(f"{printable(path, 120)!r} is not a path to include: it may not have .. in it")
        return self._directory / path

    def file(self, path: str) -> tuple[str, str]:
        """A file by its path, relative to the policy's directory."""
        return self.read(self._included(path))

    def directory(self, path: str) -> list[tuple[str, str]]:
        """The policy files of a directory."""
        return [self.read(found) for found in self.names(self._included(path))]

    def old(self) -> list[tuple[str, str, str]]:
        """The files of the form that Qubes OS 4.0 had."""
        found = []
        for entry in self._entries(self._old):
            unfit = entry.startswith(".") or entry.endswith(_OLD_COPIES)
            if not unfit and not os.fsencode(entry).translate(None, _OLD_BYTES) and (self._old / entry).is_file():
                found.append((entry, *self.read(self._old / entry)))
        return found

    def read(self, path: Path) -> tuple[str, str]:
        """Name for messages, and text."""
        shown = self._shown(path)
        data = self._instead.get(path)
        if data is None:
            if path in self._instead:
                raise PolicyError(f"{shown}: no such file (it would be removed)")
            data = self._bytes(path, shown)
        try:
            return shown, data.decode("utf-8")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise PolicyError(f"{shown}:{line}: not UTF-8") from None

    def _bytes(self, path: Path, shown: str) -> bytes:
        self._look_at(path.parent)
        try:
            if path.is_symlink():
                self._look_at(path.resolve().parent)
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with open(fd, "rb") as file:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    raise PolicyError(f"{shown}: not a regular file")
                if status.st_mode & stat.S_IWOTH:
                    raise PolicyError(f"{shown}: everybody may write it, so it says nothing (chmod o-w)")
                data = file.read(MAX_SIZE + 1)
        except (OSError, RuntimeError) as error:
            raise PolicyError(f"{shown}: {getattr(error, 'strerror', None) or error}") from error
        if len(data) > MAX_SIZE:
            raise PolicyError(f"{shown}: larger than {MAX_SIZE} bytes")
        return data

    def _entries(self, directory: Path) -> list[str]:
        self._look_at(directory)
        try:
            entries = {os.fsencode(entry) for entry in os.listdir(directory)}
            if directory.stat().st_mode & stat.S_IWOTH:
                raise PolicyError(f"{printable(str(directory), 120)}: everybody may write there (chmod o-w)")
        except OSError as error:
            raise PolicyError(f"{printable(str(directory), 120)}: {error.strerror}") from error
        for path, data in self._instead.items():
            if path.parent == directory:
                (entries.discard if data is None else entries.add)(os.fsencode(path.name))
        return [os.fsdecode(entry) for entry in sorted(entries)]

    def names(self, directory: Path) -> list[Path]:
        """The files of a directory that are policy, in order."""
        found = []
        for entry in self._entries(directory):
            if not entry.endswith(SUFFIX) or entry.startswith("."):
                continue
            if os.fsencode(entry).translate(None, _NAME_BYTES):
                raise PolicyError(f"{printable(entry, 80)}: a policy file's name has only 0-9 a-z _ . - in it")
            path = directory / entry
            if path not in self._instead and path.is_dir():
                continue
            found.append(path)
        return found


class PolicyFiles:
    """The policy in a directory; parsed once, and again when a file or directory of it has changed.

    A file in the directory ``over`` replaces the file of the same name; as that directory is emptied at each boot, so
    is the change. Both directories must exist. The directive ``!compat-4.0`` reads ``qubes-rpc/policy`` beside the
    directory.
    """

    def __init__(self, directory: Path, over: Path | None = None) -> None:
        self.directory = directory
        self.over = over
        self._old = directory.parent / "qubes-rpc" / "policy"
        self._watch: DirectoryWatch | None = None
        self._policy: Policy | None = None
        self._error = ""
        self._unwatched = False

    def current(self) -> Policy:
        """The policy as the files have it now. PolicyError while any file is broken; then every call is denied.

        While nothing has changed this costs one read(2) of the inotify descriptor, however many files there are.
        """
        if self._watch is None or self._watch.changed() or self._unwatched:
            self._reload()
        if self._policy is None:
            raise PolicyError(self._error)
        return self._policy

    def fileno(self) -> int:
        """A descriptor that becomes readable when the policy may have changed since ``current``; -1 for none."""
        return -1 if self._watch is None else self._watch.fileno()

    def close(self) -> None:
        """Stop watching."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def load(self, instead: Mapping[Path, bytes | None] | None = None) -> Policy:
        """Read and parse everything now, once; ``instead`` has contents of files to suppose (None: no such file)."""
        return self._read(Reader(self.directory, self._old, instead or {}))

    def _read(self, reader: Reader) -> Policy:
        files = {path.name: path for path in reader.names(self.directory)}
        if self.over is not None:
            files |= {path.name: path for path in reader.names(self.over)}
        parser = Parser(reader)
        for _name, path in sorted(files.items()):
            parser.parse(*reader.read(path))
        return Policy(parser.rules)

    def _reload(self) -> None:
        from casemate.qrexec.watch import DirectoryWatch  # tools that read once need no watch

        reader = Reader(self.directory, self._old, {})
        self._policy = None
        try:
            if self._watch is None:
                self._watch = DirectoryWatch()
            reader.watch = self._watch
        except OSError:
            reader.unwatched = True
        try:
            self._policy = self._read(reader)
        except PolicyError as error:
            self._error = str(error)
        # When a directory could not be watched (no watches left), each decision reads all files again: slow but right.
        self._unwatched = reader.unwatched
        if self._watch is not None:
            self._watch.only(reader.watched)


def default_policy() -> str:
    """The text of the policy that decides what no other file does."""
    return delivered_policies()["90-default.policy"]


def delivered_policies() -> dict[str, str]:
    """The files that come with Casemate and stand in each policy, by name."""
    from importlib.resources import files

    found = files("casemate").joinpath("data/policy").iterdir()
    return {one.name: one.read_text(encoding="ascii") for one in found if one.name.endswith(SUFFIX)}

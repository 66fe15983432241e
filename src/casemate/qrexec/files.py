"""The policy's files: which are read, in which order, and when again. What cannot be read denies everything."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from casemate.qrexec.parser import Includes, Parser
from casemate.qrexec.rules import Policy
from casemate.wire.errors import PolicyError, printable

SUFFIX = ".policy"
MAX_SIZE = 16 * 1024 * 1024
_NAME_BYTES = b"0123456789abcdefghijklmnopqrstuvwxyz_.-"

_Mark = tuple[int, int, int, int] | None


def _mark(path: Path) -> _Mark:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class _Reader(Includes):
    """Reads files below a policy's directory and remembers what it looked at."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.marks: dict[Path, _Mark] = {}

    def file(self, path: str) -> tuple[str, str]:
        """A file by its path, relative to the policy's directory."""
        return self.read(self._directory / path)

    def directory(self, path: str) -> list[tuple[str, str]]:
        """The policy files of a directory."""
        return [self.read(found) for found in self.names(self._directory / path)]

    def read(self, path: Path) -> tuple[str, str]:
        """Name for messages, and text."""
        self.marks[path] = _mark(path)
        shown = printable(str(path.relative_to(self._directory) if path.is_relative_to(self._directory) else path), 120)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with open(fd, "rb") as file:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise PolicyError(f"{shown}: not a regular file")
                data = file.read(MAX_SIZE + 1)
        except OSError as error:
            raise PolicyError(f"{shown}: {error.strerror}") from error
        if len(data) > MAX_SIZE:
            raise PolicyError(f"{shown}: larger than {MAX_SIZE} bytes")
        try:
            return shown, data.decode("utf-8")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise PolicyError(f"{shown}:{line}: not UTF-8") from None

    def names(self, directory: Path) -> list[Path]:
        """The files of a directory that are policy, in order."""
        self.marks[directory] = _mark(directory)
        try:
            entries = sorted(os.listdir(directory), key=os.fsencode)
        except OSError as error:
            raise PolicyError(f"{printable(str(directory), 120)}: {error.strerror}") from error
        found = []
        for entry in entries:
            if not entry.endswith(SUFFIX) or entry.startswith("."):
                continue
            if os.fsencode(entry).translate(None, _NAME_BYTES):
                raise PolicyError(f"{printable(entry, 80)}: a policy file's name has only 0-9 a-z _ . - in it")
            path = directory / entry
            if path.is_dir():
                continue
            found.append(path)
        return found


class PolicyFiles:
    """The policy in a directory; parsed once, and again when a file or directory of it has changed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._marks: dict[Path, _Mark] = {}
        self._policy: Policy | None = None
        self._error = ""

    def current(self) -> Policy:
        """The policy as the files have it now; PolicyError while any of them is broken: deny everything then."""
        if not self._marks or any(_mark(path) != mark for path, mark in self._marks.items()):
            self._load()
        if self._policy is None:
            raise PolicyError(self._error)
        return self._policy

    def _load(self) -> None:
        reader = _Reader(self._directory)
        parser = Parser(reader)
        self._policy = None
        try:
            for path in reader.names(self._directory):
                parser.parse(*reader.read(path))
            self._policy = Policy(parser.rules)
        except PolicyError as error:
            self._error = str(error)
        finally:
            self._marks = reader.marks


def default_policy() -> str:
    """The text of the policy that a new state starts with."""
    from importlib.resources import files

    return files("casemate").joinpath("data/policy/90-default.policy").read_text(encoding="ascii")

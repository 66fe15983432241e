"""qubesdb-read, -write, -rm, -list, -multiread, -watch: this qube's database on the command line."""

from __future__ import annotations

import os
import sys

from casemate.qdb.client import QubesDB
from casemate.wire.errors import CasemateError, DisconnectedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SOCKET = "/run/qubes/qubesdb.sock"
NOT_FOUND = 2

USAGE = """\
usage: qubesdb-read [-fqrwx] [-e DEFAULT] PATH ...   print values (-w: wait for them; -x: remove them then)
       qubesdb-multiread [-fqr] PREFIX ...           print all entries below
       qubesdb-list [-fq] PREFIX                     print the paths below
       qubesdb-write [-q] PATH VALUE ...             store values
       qubesdb-rm [-q] PATH ...                      remove values, or with a slash at the end all below
       qubesdb-watch [-q] [-n N] PATH ...            print the next N changes (default 1, negative: for ever)
  -f  print whole paths    -r  print values as they are    -q  no messages
"""


class _Usage(Exception):
    """The command line is wrong."""


class _Options:
    def __init__(self, argv: list[str]) -> None:
        self.flags: set[str] = set()
        self.default: str | None = None
        self.count = 1
        self.words = argv
        while self.words and self.words[0].startswith("-") and self.words[0] != "-":
            word = self.words.pop(0)
            if word == "--":
                break
            letters = word[1:]
            while letters:
                letter, letters = letters[0], letters[1:]
                if letter in "frqwx":
                    self.flags.add(letter)
                elif letter in "en":
                    if not letters and not self.words:
                        raise _Usage(f"-{letter} wants a value")
                    self._valued(letter, letters or self.words.pop(0))
                    letters = ""
                elif letter == "d":
                    raise _Usage("-d works on the host only")
                else:
                    raise _Usage(f"unknown option -{letter[:1]!a}")

    def _valued(self, letter: str, value: str) -> None:
        if letter == "e":
            self.default = value
            return
        digits = value[1:] if value.startswith("-") else value
        if not digits or digits.strip("0123456789") or len(digits) > 9:
            raise _Usage("-n wants a number")
        self.count = int(value)


def main(argv: list[str]) -> int:
    """Exit status: 0 fine, 1 failed, 2 not found (read)."""
    try:
        options = _Options(argv[1:])
        command = _COMMANDS.get(argv[0].removeprefix("qubesdb-"))
        if command is None or not options.words:
            raise _Usage("a path is wanted")
        tool = _Tool(options)
    except _Usage as error:
        sys.stderr.write(f"{argv[0]}: {error}\n{USAGE}")
        return 1
    try:
        with QubesDB(os.environ.get("QUBESDB_SOCKET") or SOCKET) as tool.database:
            command(tool)
        sys.stdout.flush()
    except DisconnectedError as error:
        tool.say(str(error))
        return 1
    except BrokenPipeError:
        os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
        return 1
    return tool.status


class _Tool:
    """One run of a tool; ``status`` is the worst that happened."""

    database: QubesDB

    def __init__(self, options: _Options) -> None:
        self.options = options
        self.words = options.words
        self.status = 0

    def say(self, text: str) -> None:
        """A message, unless told to be quiet."""
        if "q" not in self.options.flags:
            sys.stderr.write(text + "\n")

    def fail(self, text: str, status: int = 1) -> None:
        """Something did not work; the rest is still tried."""
        self.say(text)
        self.status = 1 if 1 in (self.status, status) else status

    def show(self, name: str, value: bytes, named: bool) -> None:
        """Print a value: bytes that are not printable ASCII as ``\\xHH``, unless raw is asked for."""
        out = sys.stdout.buffer
        if named:
            out.write(name.encode("ascii") + b" = ")
        if "r" not in self.options.flags:
            value = b"".join(bytes((b,)) if 0x20 <= b < 0x7F else b"\\x%02x" % b for b in value)
        out.write(value + b"\n")

    def base(self, prefix: str) -> int:
        """How much of a path is not printed."""
        return 0 if "f" in self.options.flags else len(prefix)

    def read(self) -> None:
        """Print the values at all paths."""
        for path in self.words:
            try:
                value = self._read(path)
            except DisconnectedError:
                raise
            except CasemateError as error:
                self.fail(str(error))
                continue
            if value is None:
                self.fail(f"Failed to read {path!a}", NOT_FOUND)
            else:
                self.show(path, value, "f" in self.options.flags)

    def _read(self, path: str) -> bytes | None:
        value = self.database.read(path)
        if value is None and "w" in self.options.flags:
            self.database.watch(path)
            while (value := self.database.read(path)) is None:
                self.database.read_watch()
            self.database.unwatch(path)
        if value is not None and "x" in self.options.flags:
            self.database.rm(path)
        if value is None and self.options.default is not None:
            return os.fsencode(self.options.default)
        return value

    def multiread(self) -> None:
        """Print all entries with each prefix."""
        for prefix in self.words:
            try:
                found = self.database.multiread(prefix)
            except DisconnectedError:
                raise
            except CasemateError as error:
                self.fail(str(error))
                continue
            if not found:
                self.fail(f"Failed to read {prefix!a}", NOT_FOUND)
            for path, value in found.items():
                self.show(path[self.base(prefix) :], value, True)

    def list(self) -> None:
        """Print all paths with a prefix."""
        if len(self.words) != 1:
            self.fail("one path is wanted")
            return
        self._try(self._list, self.words[0])

    def _list(self, prefix: str) -> None:
        for path in self.database.list(prefix):
            print(path[self.base(prefix) :])

    def write(self) -> None:
        """Store values."""
        if len(self.words) % 2:
            self.fail("paths and values are wanted in pairs")
            return
        for path, value in zip(self.words[::2], self.words[1::2], strict=True):
            self._try(self.database.write, path, os.fsencode(value))

    def rm(self) -> None:
        """Remove values."""
        for path in self.words:
            self._try(self._rm, path)

    def _rm(self, path: str) -> None:
        if not self.database.rm(path):
            self.fail(f"Failed to remove {path!a}", NOT_FOUND)

    def watch(self) -> None:
        """Print changes as they come."""
        for path in self.words:
            self._try(self.database.watch, path)
        left = self.options.count
        while left and not self.status:
            left -= 1
            print(self.database.read_watch(), flush=True)

    def _try(self, action: Callable[..., object], *args: object) -> None:
        try:
            action(*args)
        except DisconnectedError:
            raise
        except CasemateError as error:
            self.fail(str(error))


_COMMANDS = {
    "read": _Tool.read,
    "write": _Tool.write,
    "rm": _Tool.rm,
    "list": _Tool.list,
    "multiread": _Tool.multiread,
    "watch": _Tool.watch,
}

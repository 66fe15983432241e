"""``casemate __complete SHELL WORD ...``: what the last word of a command line may become; run at each press of Tab.

::

    shell ── words ──▶ complete.py ── which value is wanted? ── data/completion.tsv   written from the tools' parsers
                            └───────── names of qubes, … ────── the daemon's socket   one call or two, half a second
    shell ◀── CANDIDATE TAB DESCRIPTION, a line each; ``:files`` alone: names of files

A person waits for it, so it imports next to nothing: not even ``socket``, which takes as long as all of this together
(``_socket`` is the C part of it). It never starts a daemon, and says nothing where something goes wrong.
"""

from __future__ import annotations

import _socket
import os
import sys

from casemate.settings import load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    Ask = Callable[["Position", str, str, "Names"], Iterator[tuple[str, str]]]
    """Gives values of a kind: called with position, the rest of the kind, the word so far and the daemon's names."""

TABLE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "data", "completion.tsv")  # noqa: PTH100, PTH118, PTH120
"""A line for each option, command and argument: path, what it is, its name, and what follows from that."""
FILES = ":files"
"""Tells the shell to complete names of files itself."""
SECONDS = 0.5
"""How long the daemon may take for one answer. A shell that hangs at Tab is worse than one that knows nothing."""
MAX_ANSWER = 1 << 22
"""Bytes of an answer that are read; the list of ten thousand qubes is shorter."""
_MOST_BACKENDS = 8
"""Qubes that are asked for their devices, at most: each is one call."""

Candidate = tuple[str, str]


class Level:
    """One tool or command: its options, commands and arguments, as the table has them."""

    def __init__(self) -> None:
        self.options: dict[str, tuple[str, str, str]] = {}
        """By flag: kind of its value, how many values, help."""
        self.commands: dict[str, tuple[str, str]] = {}
        """By name or alias: the name that its own lines begin with, and help; of an alias the help is empty."""
        self.arguments: list[tuple[str, str]] = []
        """Kind and how many."""


def read_table(lines: Iterable[str], tool: str) -> dict[str, Level]:
    """The levels of a tool by their paths, words with a blank between them."""
    found: dict[str, Level] = {}
    start = (tool + "\t", tool + " ")
    for line in lines:
        if not line.startswith(start):
            continue
        path, what, name, first, second, text = line.rstrip("\n").split("\t")
        level = found.setdefault(path, Level())
        if what == "option":
            level.options[name] = (first, second, text)
        elif what == "command":
            level.commands[name] = (first, text)
        else:
            level.arguments.append((first, second))
    return found


class Names:
    """Asks the daemon; every answer is empty where it does not run, refuses or is late."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._listed: list[tuple[str, str, str]] | None = None

    def call(self, method: str, arg: str = "", dest: str = "dom0") -> str:
        """The reply to a call as text."""
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            sock.settimeout(SECONDS)
            sock.connect(self._address)
            sock.send(f"{method}+{arg} dom0 name {dest}\0".encode("ascii"))
            sock.shutdown(_socket.SHUT_WR)
            data = bytearray()
            while len(data) < MAX_ANSWER and (more := sock.recv(65536)):
                data += more
        except (OSError, UnicodeError):
            return ""
        finally:
            sock.close()
        return data[2:].decode("utf-8", "replace") if data.startswith(b"0\0") else ""

    def qubes(self) -> list[tuple[str, str, str]]:
        """Name, class and state of each qube; asked once."""
        if self._listed is None:
            self._listed = []
            for line in self.call("admin.vm.List").splitlines():
                name, *fields = line.split(" ")
                facts = dict(field.partition("=")[::2] for field in fields)
                self._listed.append((name, facts.get("class", ""), facts.get("state", "")))
        return self._listed


def split_line(line: str) -> list[str]:
    """The words of the beginning of a command line, as a shell parts them; the last one may be empty or unfinished."""
    words, word, quote, begun = [], "", "", False
    letters = iter(line)
    for letter in letters:
        if letter == "\\" and quote != "'":
            word += next(letters, "")
        elif quote:
            if letter == quote:
                quote = ""
            else:
                word += letter
        elif letter in "'\"":
            quote, begun = letter, True
        elif letter in " \t":
            if word or begun:
                words.append(word)
            word, begun = "", False
        elif letter in ";|&(":
            words, word, begun = [], "", False  # another command begins
        else:
            word += letter
    return [*words, word]


class Position:
    """Where on a command line the last word stands: which kinds of value it may be."""

    def __init__(self, levels: dict[str, Level], words: Sequence[str]) -> None:
        self.path = words[0]
        self.levels = levels
        self.values: dict[str, str] = {}
        """The first value of each kind that was given before."""
        self._at = 0
        self._only_arguments = False
        waiting, many = "", False
        for word in words[1:-1]:
            if word.startswith("-") and len(word) > 1 and not self._only_arguments:
                waiting, many = self._option(word)
            elif waiting:
                waiting = waiting if many else ""
            else:
                self._argument(word)
        self.waiting = waiting

    def option(self, flag: str) -> tuple[str, str, str] | None:
        """What the table has of an option, at this level or one above."""
        path = self.path
        while path:
            found = self.levels[path].options.get(flag) if path in self.levels else None
            if found is not None:
                return found
            path = path.rpartition(" ")[0]
        return None

    def options(self) -> Iterator[Candidate]:
        """Every option that may come now."""
        path = self.path
        while path:
            if path in self.levels:
                for flag, (_kind, _many, text) in self.levels[path].options.items():
                    yield flag, text
            path = path.rpartition(" ")[0]

    def argument(self) -> str:
        """The kind of the argument that comes now; empty where no more come."""
        arguments = self.levels[self.path].arguments
        if self._at < len(arguments):
            return arguments[self._at][0]
        return arguments[-1][0] if arguments and arguments[-1][1] in ("*", "+", "...") else ""

    def _option(self, word: str) -> tuple[str, bool]:
        if word == "--":
            self._only_arguments = True
            return "", False
        flag, equals, value = word.partition("=")
        found = self.option(flag)
        if found is None or found[1] == "0":
            return "", False
        if equals:
            self.values.setdefault(found[0].partition(":")[0], value)
            return "", False
        return ("", False) if found[1] == "?" else (found[0] or "-", found[1] in ("*", "+"))

    def _argument(self, word: str) -> None:
        kind = self.argument()
        level = self.levels[self.path]
        if kind == "command" and word in level.commands:
            self.path = f"{self.path} {level.commands[word][0]}"
            self._at = 0
            self.levels.setdefault(self.path, Level())
            return
        if not self._at and kind.startswith("qube?"):  # qvm-run takes a qube, then words of a command
            kind = "qube"
        self.values.setdefault(kind.partition(":")[0], word)
        self._at += 1

    @property
    def only_arguments(self) -> bool:
        """Whether ``--`` has ended the options."""
        return self._only_arguments


def candidates(words: Sequence[str], names: Names, lines: Iterable[str]) -> Iterator[Candidate]:
    """What the last of ``words`` may become, with a description each; ``FILES`` for names of files."""
    tool = words[0].rpartition("/")[2]
    levels = read_table(lines, tool)
    if tool not in levels or len(words) < 2:
        return
    position, word = Position(levels, [tool, *words[1:]]), words[-1]
    if position.waiting:
        yield from _values(position, position.waiting, word, names)
    elif word.startswith("--") and "=" in word and not position.only_arguments:
        flag, _, begun = word.partition("=")
        found = position.option(flag)
        if found is not None and found[1] != "0":
            for value, text in _values(position, found[0], begun, names):
                yield (value if value == FILES else f"{flag}={value}"), text
    elif word.startswith("-") and not position.only_arguments:
        yield from ((flag, text) for flag, text in position.options() if flag.startswith(word))
    else:
        yield from _values(position, position.argument(), word, names)


def _values(position: Position, kind: str, word: str, names: Names) -> Iterator[Candidate]:
    """Values of a kind that begin with ``word``."""
    kind, _, rest = kind.partition(":")
    if kind == "file":
        yield FILES, ""
        return
    start = ""
    if kind.endswith(","):  # a list: what stands before the last comma is kept
        start, comma, word = word.rpartition(",")
        start, kind = start + comma, kind[:-1]
    end = ""
    if kind.endswith("="):
        kind, end = kind[:-1], "="
    for value, text in _OF_KIND.get(kind, _nothing)(position, rest, word, names):
        if value.startswith(word):
            yield start + value + end, text


def _nothing(_position: Position, _rest: str, _word: str, _names: Names) -> Iterator[Candidate]:
    return iter(())


def _qubes(_position: Position, rest: str, _word: str, names: Names) -> Iterator[Candidate]:
    """``rest``: states or classes that count, between commas, ``!dom0``: all but dom0; empty: all."""
    wanted = rest.split(",") if rest else []
    for name, klass, state in names.qubes():
        if name == "dom0" and wanted:
            continue
        if not wanted or wanted == ["!dom0"] or klass in wanted or state in wanted:
            yield name, f"{klass}, {state}"


def _commands(position: Position, _rest: str, _word: str, _names: Names) -> Iterator[Candidate]:
    commands = position.levels[position.path].commands
    return ((name, text) for name, (first, text) in commands.items() if name == first)


def _words(_position: Position, rest: str, _word: str, _names: Names) -> Iterator[Candidate]:
    return ((word, "") for word in rest.split(","))


def _lines(names: Names, method: str, arg: str = "", dest: str = "dom0", text: str = "") -> Iterator[Candidate]:
    return ((line.partition(" ")[0], text) for line in names.call(method, arg, dest).splitlines())


def _qube(position: Position, names: Names) -> str:
    """The qube that the command line names; else any, for what all qubes have."""
    named = position.values.get("qube", "")
    return named or next((name for name, klass, _state in names.qubes() if klass == "AppVM"), "")


def _of_qube(method: str) -> Ask:
    def ask(position: Position, rest: str, _word: str, names: Names) -> Iterator[Candidate]:
        if rest == "system":
            return _lines(names, "admin.property.List")
        name = _qube(position, names)
        return _lines(names, method, "", name) if name else iter(())

    return ask


def _value(position: Position, rest: str, _word: str, names: Names) -> Iterator[Candidate]:
    """Values of the property that the command line names, by its type."""
    name = position.values.get("property", "")
    if rest == "system":
        told = names.call("admin.property.Get", name)
    else:
        told = names.call("admin.vm.property.Get", name, position.values.get("qube", ""))
    kind = told.partition("type=")[2].partition(" ")[0]
    if kind == "vm":
        return iter([*_qubes(position, "", "", names), ("none", "no qube")])
    if kind == "label":
        return _lines(names, "admin.label.List")
    return iter((("True", ""), ("False", ""))) if kind == "bool" else iter(())


def _services(position: Position, _rest: str, _word: str, names: Names) -> Iterator[Candidate]:
    for name, _text in _lines(names, "admin.vm.feature.List", "", position.values.get("qube", "")):
        if name.startswith("service."):
            yield name[8:], ""


def _volumes(_position: Position, _rest: str, word: str, names: Names) -> Iterator[Candidate]:
    name, colon, _volume = word.partition(":")
    if not colon:
        return ((f"{qube}:", klass) for qube, klass, _state in names.qubes() if qube != "dom0")
    return ((f"{name}:{volume}", "") for volume, _ in _lines(names, "admin.vm.volume.List", "", name))


def _devices(position: Position, rest: str, _word: str, names: Names) -> Iterator[Candidate]:
    """``rest``: ``Available`` by qubes that run, or what the named qube has (``Attached``, ``Assigned``)."""
    devclass = position.values.get("devclass") or position.path.partition(" ")[0].removeprefix("qvm-")
    if rest == "Available":
        running = [name for name, _klass, state in names.qubes() if state == "Running"]
        asked = running[:_MOST_BACKENDS]
    else:
        asked = [position.values.get("qube", "")]
    for name in asked:
        for line in names.call(f"admin.vm.device.{devclass}.{rest}", "", name).splitlines():
            place, _, facts = line.partition(" ")
            port, _, _ident = place.partition(":")
            text = facts.partition("name='")[2].partition("'")[0] or facts.partition("product='")[2].partition("'")[0]
            yield port.replace("+", ":", 1), text


def _pools(_position: Position, rest: str, _word: str, names: Names) -> Iterator[Candidate]:
    return _lines(names, "admin.pool.ListDrivers" if rest == "drivers" else "admin.pool.List")


_OF_KIND: dict[str, Ask] = {
    "command": _commands,
    "words": _words,
    "qube": _qubes,
    "property": _of_qube("admin.vm.property.List"),
    "value": _value,
    "feature": _of_qube("admin.vm.feature.List"),
    "tag": _of_qube("admin.vm.tag.List"),
    "service": _services,
    "volume": _volumes,
    "device": _devices,
    "pool": _pools,
    "label": lambda _p, _r, _w, names: _lines(names, "admin.label.List"),
    "class": lambda _p, _r, _w, names: _lines(names, "admin.vmclass.List"),
    "devclass": lambda _p, _r, _w, names: _lines(names, "admin.deviceclass.List"),
}
"""What gives the values of a kind."""


def main(argv: Sequence[str]) -> int:
    """Write the candidates for ``--line LINE``, or for the words ``-- WORD ...``. Never an error: 0."""
    words = split_line(argv[1]) if argv[:1] == ["--line"] and len(argv) > 1 else list(argv[1:])
    try:
        with open(TABLE, encoding="ascii") as table:
            seen: dict[str, str] = {}
            for value, text in candidates(words, Names(load().api_address), table):
                seen.setdefault(value, text)
        # What comes from the daemon was checked by it, but for texts of devices: no control character may pass.
        lines = [f"{value}\t{text}" if text else value for value, text in seen.items()]
        shown = ("".join(c if c == "\t" or " " <= c <= "~" else "_" for c in line) for line in lines)
        sys.stdout.write("".join(f"{line}\n" for line in shown))
    except Exception:  # a person presses Tab in the middle of a line: a traceback there helps nobody
        return 0
    return 0

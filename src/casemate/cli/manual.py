"""``python -m casemate.cli.manual DIR``: a manual page for each tool, DIR/man1/TOOL.1, from what its parser declares.

Pages of tools that are inside qubes go to DIR/guest/man1, because some have the names of tools of the host. The text is
that of ``--help``, so the two never differ. Pages are written in the macros of man(7) that every formatter knows, and
are the same bytes at each run, because packages must be reproducible.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import casemate
from casemate.agent.entry import main as guest_main
from casemate.cli import declarations
from casemate.cli.declarations import Command

_EXIT = (
    ("0", "All went well."),
    ("1", "Something went wrong; a message on standard error says what."),
    ("2", "The command line is wrong, or names a qube that does not exist."),
    ("130", "It was interrupted."),
    ("141", "Nobody reads its output any more."),
)
_EXIT_OF_CALLS = (
    ("125", "The command could not be run."),
    ("126", "The policy, or the qube, refused it."),
    ("127", "There is no such program or service in the qube."),
    ("255", "The qube went away."),
)
_CALLS = ("qvm-run", "qrexec-client")
"""Tools that end with the status of what they ran."""
_ENVIRONMENT = (
    ("CASEMATE_STATE", "Directory of the state; moves everything but the cache. Without it: that of the whole host for "
     "root and members of the group qubes, else the user's own. casemate status says which it is, and why."),
    ("NO_COLOR", "Where it is set and not empty, nothing is written in colour."),
)  # fmt: skip
_SEE = {
    "casemate": ("casemated", "qvm-ls", "qvm-create", "qvm-run"),
    "qvm-create": ("qvm-clone", "qvm-remove", "qvm-prefs"),
    "qvm-run": ("qvm-start", "qvm-copy-to-vm", "qvm-console"),
    "qvm-backup": ("qvm-backup-restore", "casemate"),
    "qvm-backup-restore": ("qvm-backup", "casemate"),
}
"""Pages to see besides casemate(1)."""
_PROGRAMS = {
    "casemated": (
        "the daemon of Casemate",
        "casemated [--foreground]",
        "Keeps the collection of qubes, runs their machines and decides about calls between them. The first tool that "
        "needs it starts it, so it is seldom called by hand. It may end at any time: qubes go on, and the next daemon "
        "takes them over.",
        (("--foreground", "write the log to the terminal"),),
    ),
    "casemate-qrexecd": (
        "qrexec over vchan sockets, for qubes and programs that speak it",
        "casemate-qrexecd --help",
        "Serves qubes whose agents, and programs whose client library, are those of Qubes OS. Its options are told by "
        "--help.",
        (),
    ),
    "casemate-web": (
        "the manager page, for a browser on this host",
        "casemate-web [--read-only] [--no-browser]",
        "Serves a page with all qubes until it is interrupted, and prints its address, which is a password. It is what "
        "casemate web runs.",
        (("--read-only", "show everything, change nothing"), ("--no-browser", "print the address only")),
    ),
}
"""Programs that are no tools: what they are, how they are called, what they do, options."""


def escape(text: str) -> str:
    """Text as man(7) takes it: backslashes and dashes as such, and no line that begins like a request."""
    out = "".join(
        {"\\": "\\(rs", "-": "\\-"}.get(c, c if " " <= c <= "~" or c == "\n" else f"\\[u{ord(c):04X}]") for c in text
    )
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in out.split("\n"))


def _bold(text: str) -> str:
    return f"\\fB{escape(text)}\\fR"


def _section(title: str) -> str:
    return f".SH {title}"


def _item(head: str, text: str) -> Iterator[str]:
    yield ".TP"
    yield head
    yield escape(text) or "\\&"


def purpose(description: str) -> str:
    """What follows the dash in NAME: the first sentence, as a phrase."""
    first = description.partition(". ")[0].rstrip(".")
    return first[:1].lower() + first[1:] if not first[:2].isupper() else first


def page(name: str) -> str:
    """The page of a tool."""
    tool, *commands = declarations.commands_of(name)
    description = tool.parser.description or ""
    lines = [*_head(name, purpose(description)), *_synopsis(tool), _section("DESCRIPTION"), escape(description)]
    if tool.parser.epilog:
        lines += [".PP", escape(tool.parser.epilog)]
    lines += _arguments(tool, ".SH")
    if commands:
        lines.append(_section("COMMANDS"))
        for command in commands:
            lines += _command(command)
    lines.append(_section("EXIT STATUS"))
    if name in _CALLS:
        lines.append("That of the command or service, else:")
    for status, text in (*_EXIT, *(_EXIT_OF_CALLS if name in _CALLS else ())):
        lines += _item(_bold(status), text)
    lines.append(_section("ENVIRONMENT"))
    for variable, text in _ENVIRONMENT:
        lines += _item(_bold(variable), text)
    others = [one for one in ("casemate", *_SEE.get(name, ())) if one != name]
    return _ended([*lines, *_see(others)])


def program_page(name: str) -> str:
    """The page of a program that is no tool."""
    what, usage, text, options = _PROGRAMS[name]
    lines = [*_head(name, what), _section("SYNOPSIS"), escape(usage), _section("DESCRIPTION"), escape(text)]
    if options:
        lines.append(_section("OPTIONS"))
        for flag, meaning in options:
            lines += _item(_bold(flag), meaning)
    return _ended([*lines, *_see(["casemate"])])


def _head(name: str, what: str) -> Iterator[str]:
    yield '.\\" Written from the code: do not edit.'
    yield f'.TH {name.upper()} 1 "" "Casemate {casemate.__version__}" "Casemate"'
    yield _section("NAME")
    yield f"{escape(name)} \\- {escape(what)}"  # the form that lexgrog(1) reads for apropos


def _see(names: list[str]) -> Iterator[str]:
    yield _section("SEE ALSO")
    yield ",\n".join(f".BR {escape(name)} (1)" for name in names).replace(",\n", " ,\n")


def _ended(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"


def _usage(command: Command) -> str:
    """How it is called. A list of all commands with their aliases would be one word too long for a line."""
    usage = " ".join(command.parser.format_usage().removeprefix("usage: ").split())
    for action in command.parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            usage = usage.replace(f"{{{','.join(action.choices)}}}", "COMMAND")
    return usage


def _synopsis(command: Command) -> Iterator[str]:
    name = command.parser.prog
    yield _section("SYNOPSIS")
    yield from (".nh", ".ad l")  # words of a usage are neither hyphenated nor spread over the line
    yield f"{_bold(name)}{escape(_usage(command).removeprefix(name))}"
    yield from (".ad b", ".hy")


def _command(command: Command) -> Iterator[str]:
    words = " ".join(command.path[1:])
    also = f" (also: {', '.join(command.aliases)})" if command.aliases else ""
    yield f".SS {escape(words)}"
    yield from (".nh", ".ad l", escape(_usage(command)), ".ad b", ".hy", ".PP")
    text = command.help[:1].upper() + command.help[1:]
    yield escape(f"{text}.{also}" if text else also or words)
    for head, said in _described(command):
        yield from _item(head, said)


def _arguments(tool: Command, macro: str) -> Iterator[str]:
    """Arguments and options by the groups that help has them in."""
    for group in tool.parser._action_groups:
        actions = [action for action in group._group_actions if action.help is not argparse.SUPPRESS]
        actions = [action for action in actions if not isinstance(action, argparse._SubParsersAction)]
        if not actions:
            continue
        title = {"positional arguments": "arguments"}.get(group.title or "", group.title or "options")
        yield f"{macro} {escape(title.upper())}"
        for action in actions:
            yield from _item(_action_head(tool, action), _help(tool, action))


def _described(command: Command) -> Iterator[tuple[str, str]]:
    for action in (*command.arguments, *dict.fromkeys(command.options.values())):
        is_help = isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
        if not is_help and (action.option_strings or action.help):
            yield _action_head(command, action), _help(command, action)


def _action_head(command: Command, action: argparse.Action) -> str:
    formatter = command.parser._get_formatter()
    if not action.option_strings:
        return f"\\fI{escape(' '.join(formatter._metavar_formatter(action, action.dest)(1)))}\\fR"
    flags = ", ".join(map(_bold, action.option_strings))
    if action.nargs == 0:
        return flags
    return f"{flags} \\fI{escape(formatter._format_args(action, action.dest.upper()))}\\fR"


def _help(command: Command, action: argparse.Action) -> str:
    return command.parser._get_formatter()._expand_help(action) if action.help else ""


_GUEST = {
    "qrexec-client-vm": "call a service of another qube",
    "qubesdb-list": "list entries of the qube's database",
    "qubesdb-multiread": "print entries below paths of the qube's database",
    "qubesdb-read": "print entries of the qube's database",
    "qubesdb-rm": "remove entries of the qube's database",
    "qubesdb-watch": "wait for changes of the qube's database",
    "qubesdb-write": "change entries of the qube's database",
    "qvm-connect-tcp": "connect a port of this qube to one of another",
    "qvm-copy": "copy files to another qube, which is asked for",
    "qvm-copy-to-vm": "copy files to another qube",
    "qvm-features-request": "ask the host to set features of this qube",
    "qvm-move": "move files to another qube, which is asked for",
    "qvm-move-to-vm": "move files to another qube",
    "qvm-open-in-dvm": "open a file or a link in a new disposable",
    "qvm-open-in-vm": "open a file or a link in another qube",
    "qvm-sync-clock": "set the clock of this qube by that of the host",
}
"""Tools inside a qube, and what they are for. They are small, so their help has no more than how they are called."""
_GUEST_WITHOUT_HELP = {
    "qubes-open": ("open a file or a link in this qube", "qubes-open FILE|URL"),
    "tar2qfile": ("send the files of a tar archive to another qube", "tar2qfile FILE [PREFIX ...]"),
}
"""Programs inside a qube that take any word as a file, ``--help`` too: what they are for and how they are called."""


def guest_page(name: str) -> str:
    """The page of a tool inside a qube: what it says to ``--help``, as it is."""
    if name in _GUEST_WITHOUT_HELP:
        what, usage = _GUEST_WITHOUT_HELP[name]
    else:
        output = io.StringIO()
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            guest_main([name, "--help"])
        what, usage = _GUEST[name], output.getvalue()
        usage = usage[usage.index("usage:") :].removeprefix("usage:").strip("\n")
    lines = [*_head(name, what), _section("SYNOPSIS"), ".nf", ".nh", escape(usage), ".hy", ".fi"]
    lines += [_section("DESCRIPTION"), "For use inside a qube. What it may do is decided by the policy of the host."]
    return _ended(lines)


def write(directory: Path) -> list[str]:
    """Write all pages to ``directory/man1`` and, of tools inside qubes, ``directory/guest/man1``; their names."""
    with declarations.unwrapped():
        pages = {f"man1/{name}.1": page(name) for name in ("casemate", *declarations.names())}
    pages |= {f"man1/{name}.1": program_page(name) for name in _PROGRAMS}
    pages |= {f"guest/man1/{name}.1": guest_page(name) for name in (*_GUEST, *_GUEST_WITHOUT_HELP)}
    for name, text in pages.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    return sorted(pages)


def main(argv: list[str]) -> int:
    """Write the pages below the directory that the first argument names."""
    if len(argv) != 1:
        sys.stderr.write("usage: python -m casemate.cli.manual DIR\n")
        return 2
    print(f"{len(write(Path(argv[0])))} manual pages are in {argv[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

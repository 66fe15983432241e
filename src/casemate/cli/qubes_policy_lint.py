"""qubes-policy-lint: says everything that is wrong with policy files, without putting them in place."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from casemate.cli import tool
from casemate.client.qubes import Qubes
from casemate.qrexec.files import PolicyFiles
from casemate.qrexec.lint import hidden
from casemate.qrexec.parser import Parser
from casemate.qrexec.rules import Rule
from casemate.wire.errors import CasemateError, PolicyError, printable

PROG = "qubes-policy-lint"
_OLD = ("service", "*")


def _text(file: str) -> str:
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise CasemateError(f"{printable(file)}: {error.strerror}") from None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CasemateError(f"{printable(file)}:{line}: not UTF-8") from None


def _checked(args: argparse.Namespace, qubes: Qubes, file: str) -> tuple[list[str], tuple[Rule, ...]]:
    directory = qubes.transport.settings.policy_dir if file == "-" else Path(file).absolute().parent
    if directory.name == "include":
        directory = directory.parent
    parser = Parser(PolicyFiles(directory).includes())
    wrong = parser.check("stdin" if file == "-" else file, _text(file), _OLD if args.include_service else None)
    return wrong, tuple(parser.rules)


def _shown(wrong: str, file: str) -> str:
    """The line of the file that a message is about."""
    name, _, rest = wrong.partition(":")
    number = rest.partition(":")[0]
    if file == "-" or name != file or not number.isdecimal():
        return ""
    return "    " + printable(_text(file).split("\n")[int(number) - 1], 200)


def _installed(qubes: Qubes) -> int:
    from casemate.cli.policy_view import files

    try:
        policy = files(qubes.transport.settings).load()
    except PolicyError as error:
        print(f"{error}\nTHE POLICY IS BROKEN: every call is denied until this is corrected")
        return 1
    _warn(policy.rules)
    return 0


def _warn(rules: tuple[Rule, ...]) -> None:
    for rule, before in hidden(rules):
        print(f"{rule.place}: warning: never decides, {before.place} fits whatever it would fit")


def _body(args: argparse.Namespace, qubes: Qubes) -> int:
    if not args.FILE:
        return _installed(qubes)
    status = 0
    for file in args.FILE:
        wrong, rules = _checked(args, qubes, file)
        for one in wrong:
            status = 1
            print(one)
            shown = _shown(one, file) if args.show else ""
            if shown:
                print(shown)
        if not wrong:
            _warn(rules)
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; 0 when nothing is wrong, 1 when something is. Warnings are not wrong."""
    parser = tool.Parser(
        PROG,
        "Check policy files. Each mistake is a line FILE:LINE: WHAT; nothing is said of a file in order.",
        "Included files are looked for where they would be if the file were in place: beside it.",
    )
    parser.add_argument("FILE", nargs="*", help="files, - for standard input; none: the whole policy that is in place")
    parser.add_argument(
        "-i", "--include-service", action="store_true", help="files for !include-service: SOURCE TARGET ACTION"
    )
    parser.add_argument("-s", "--show", action="store_true", help="show the lines that are wrong")
    return tool.run(parser, _body, argv)

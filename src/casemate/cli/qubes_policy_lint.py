"""qubes-policy-lint: says everything that is wrong with policy files, without putting them in place."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from casemate.cli import tool
from casemate.client.qubes import Qubes
from casemate.qrexec.files import Reader
from casemate.qrexec.lint import hidden
from casemate.qrexec.parser import Parser
from casemate.qrexec.rules import Rule
from casemate.qrexec.tokens import impossible
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


class _Beside(Reader):
    """What a file includes: looked for beside it, then in the directory of the policy in place."""

    def __init__(self, file: str, installed: Path) -> None:
        beside = Path.cwd() if file == "-" else Path(file).absolute().parent
        super().__init__(beside, installed.parent / "qubes-rpc" / "policy", {})
        self._installed = Reader(installed, installed.parent / "qubes-rpc" / "policy", {})
        self._beside = beside

    def file(self, path: str) -> tuple[str, str]:
        """A file by its path."""
        return Reader.file(self if (self._beside / path).exists() else self._installed, path)

    def directory(self, path: str) -> list[tuple[str, str]]:
        """The policy files of a directory."""
        return Reader.directory(self if (self._beside / path).exists() else self._installed, path)

    def old(self) -> list[tuple[str, str, str]]:
        """No files: those of Qubes OS 4.0 belong to the host where the policy will be, and may not be here."""
        return []


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
    for rule in rules:
        for token in (rule.source, rule.target):
            if impossible(token):
                print(f"{rule.location}: warning: never decides, no qube can be {printable(str(token), 80)!r}")
    for rule, before in hidden(rules):
        print(f"{rule.location}: warning: never decides, {before.location} fits whatever it would fit")


def _body(args: argparse.Namespace, qubes: Qubes) -> int:
    if not args.FILE:
        return _installed(qubes)
    status = 0
    for file in args.FILE:
        shown, text = "stdin" if file == "-" else file, _text(file)
        parser = Parser(_Beside(file, qubes.transport.settings.policy_dir))
        wrong = parser.check(shown, text, _OLD if args.include_service else None)
        for one in wrong:
            status = 1
            number, _, what = one.removeprefix(f"{shown}:").partition(": ")
            if not number.isdecimal():  # in a file that this one includes, or the include itself
                print(f"error: {one}")
                continue
            line = ": " + printable(text.split("\n")[int(number) - 1].strip(), 200) if args.show_line else ""
            print(f"{shown}:{number}: error: {what}{line}")
        if not wrong:
            _warn(tuple(parser.rules))
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; 0 when nothing is wrong, 1 when something is. Warnings are not wrong."""
    parser = tool.Parser(
        PROG,
        "Check policy files. Each mistake is a line FILE:LINE: error: WHAT; nothing is said of a file in order.",
        "What a file includes must exist, beside it or in the policy in place, and is checked with it.",
    )
    parser.add_argument("FILE", nargs="*", help="files, - for standard input; none: the whole policy that is in place")
    parser.add_argument(
        "-i", "--include-service", action="store_true", help="files for !include-service: SOURCE TARGET ACTION"
    )
    parser.add_argument("-s", "--show-line", action="store_true", help="show the lines that are wrong")
    return tool.run(parser, _body, argv)
